//! Measures what compression of a dataset's arrays would bring, next to what is possible in
//! theory.
//!
//! Flow: source -> elements of some samples of each field -> [`Analysis`]: entropies, codecs,
//! quantizers and error bounds -> text, JSON, a plot (`plot`).
//! Memory: the elements of one field at a time, at most [`Options::bytes`], and twice as much
//! again for the compressed and the decompressed bytes.

mod plot;

use std::time::Instant;

use serde::Serialize;
use tidegate_array::codec::{self, Codec};
use tidegate_array::entropy::{
    RatePoint, blahut_arimoto, count_bytes, entropy_bits, gaussian_rate_bits, plane_bits,
};
use tidegate_array::kernels::convert::floats;
use tidegate_array::quantize::{self, Extent, Per, Quantized, Rounding, Scheme};
use tidegate_data::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Value};
use tidegate_source::{Source, SourceExt};

use crate::html::append;

/// What to analyse.
#[derive(Debug, Clone)]
pub struct Options {
    /// Analyse only this field.
    pub field: Option<String>,
    /// Samples to read, evenly spread.
    pub samples: u64,
    /// The most bytes of elements of a field.
    pub bytes: u64,
    /// Error bounds to compress floats with: names such as `abs:1e-3`.
    pub bounds: Vec<String>,
}

/// The analysis of a field of arrays or bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Analysis {
    /// The name of the field.
    pub field: String,
    /// The type of its elements; uint8 for bytes.
    pub dtype: DType,
    /// Samples that were read.
    pub samples: u64,
    /// Bytes of their elements.
    pub bytes: u64,
    /// The entropy of a byte in bits, if bytes were independent.
    pub entropy_bits: f64,
    /// The same with separate statistics for each byte of an element.
    pub plane_bits: f64,
    /// The lossless codecs.
    pub lossless: Vec<Lossless>,
    /// Of floats, the lossy codecs and quantizers.
    pub lossy: Vec<Lossy>,
    /// The variance of floats.
    pub variance: Option<f64>,
    /// The lower bound for codes of single values: the rate–distortion curve of their histogram.
    pub curve: Vec<RatePoint>,
}

/// What a lossless codec achieves.
#[derive(Debug, Clone, Serialize)]
pub struct Lossless {
    /// The name of the codec.
    pub codec: String,
    /// Uncompressed bytes over compressed bytes.
    pub ratio: f64,
    /// The speed of compression, in GB/s of uncompressed bytes.
    pub pack_gb_s: f64,
    /// The speed of decompression, in GB/s of uncompressed bytes.
    pub unpack_gb_s: f64,
    /// Bits a byte above [`Analysis::plane_bits`]; negative if the codec uses more than single
    /// bytes.
    pub gap_bits: f64,
}

/// What a lossy codec or quantizer achieves.
#[derive(Debug, Clone, Serialize)]
pub struct Lossy {
    /// The name of the codec or quantizer.
    pub name: String,
    /// Bits for a value.
    pub bits: f64,
    /// The largest error of a finite value.
    pub largest_error: f64,
    /// The mean square error.
    pub error: f64,
    /// Bits that a Gaussian source of this variance needs for this error.
    pub gaussian_bits: f64,
    /// Bits that the histogram needs for this error, if its bins are fine enough to tell.
    pub histogram_bits: Option<f64>,
}

/// Bins of the histogram of values.
const BINS: usize = 128;

/// Analyses the fields of a source that hold arrays or bytes.
///
/// # Errors
/// [`Error::Config`] for a field that does not exist or a bound that is not valid; a sample that
/// cannot be read.
pub fn analyse(source: &dyn Source, options: &Options) -> Result<Vec<Analysis>> {
    if let Some(wanted) = &options.field
        && !source.schema().iter().any(|field| field.name == *wanted)
    {
        let names: Vec<_> = source.schema().iter().map(|field| field.name.as_str()).collect();
        return Err(Error::Config(format!(
            "there is no field {wanted:?}; the fields are {}",
            names.join(", ")
        )));
    }
    let wanted = |name: &str| options.field.as_deref().is_none_or(|wanted| wanted == name);
    // Sparse rows are stored as text, which is no array.
    let analysed = |field: &Field| wanted(&field.name) && !matches!(field.kind, Kind::Sparse { .. });
    let fields = source.schema().iter().enumerate().filter(|(_, field)| analysed(field));
    let mut found = Vec::new();
    for (i, field) in fields {
        if let Some(elements) = Elements::read(source, i, options)? {
            found.push(elements.analyse(&field.name, options)?);
        }
    }
    Ok(found)
}

/// The elements of some samples of a field.
struct Elements {
    dtype: DType,
    /// The shape of all elements: samples along the first axis, if all have one shape.
    shape: Vec<usize>,
    samples: u64,
    bytes: Vec<u8>,
}

impl Elements {
    /// Reads the elements; nothing for a field of numbers.
    fn read(source: &dyn Source, i: usize, options: &Options) -> Result<Option<Self>> {
        let count = options.samples.min(source.len());
        let mut found: Option<Self> = None;
        for k in 0..count {
            let (at, data) = source.fetch(k * source.len() / count)?;
            let field = &source.schema()[i];
            let blame = |e: &dyn std::fmt::Display| source.sample_error(&at, &field.name, e);
            let values = source.parse(&at, &data).map_err(|e| blame(&e))?;
            let Value::Bytes(bytes) = values[i] else { continue };
            let array = field.kind.array(bytes).transpose().map_err(|e| blame(&e))?;
            let (dtype, shape, bytes) = match &array {
                Some(array) => (array.dtype, array.shape.clone(), array.elements()),
                None => (DType::Uint8, vec![bytes.len()], bytes.into()),
            };
            let all = found.get_or_insert_with(|| Self {
                dtype,
                shape: [vec![0], shape.clone()].concat(),
                samples: 0,
                bytes: Vec::new(),
            });
            if dtype != all.dtype {
                continue;
            }
            if all.samples > 0 && (all.bytes.len() + bytes.len()) as u64 > options.bytes {
                break;
            }
            all.bytes.extend_from_slice(&bytes);
            all.samples += 1;
            // Arrays of different shapes become one row of elements.
            all.shape = if all.shape[1..] == shape {
                [&[all.samples as usize], &shape[..]].concat()
            } else {
                vec![all.bytes.len() / dtype.size()]
            };
        }
        Ok(found.filter(|all| !all.bytes.is_empty()))
    }

    fn analyse(&self, field: &str, options: &Options) -> Result<Analysis> {
        let width = self.dtype.size();
        let entropy = entropy_bits(&count_bytes(&self.bytes));
        let planes = plane_bits(&self.bytes, width) / width as f64;
        let names = codec::candidates(self.dtype).into_iter().map(str::to_owned);
        let codecs = names.filter_map(|name| codec::parse(&name, self.dtype, &self.shape).ok());
        let lossless = codecs.map(|codec| self.lossless(&*codec, planes)).collect::<Result<_>>()?;
        let float = matches!(self.dtype, DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64);
        let mut found = Analysis {
            field: field.to_owned(),
            dtype: self.dtype,
            samples: self.samples,
            bytes: self.bytes.len() as u64,
            entropy_bits: entropy,
            plane_bits: planes,
            lossless,
            lossy: Vec::new(),
            variance: None,
            curve: Vec::new(),
        };
        if float {
            self.lossy(&mut found, options)?;
        }
        Ok(found)
    }

    fn lossless(&self, codec: &dyn Codec, planes: f64) -> Result<Lossless> {
        let (packed, back, pack_ns, unpack_ns) = self.run(codec)?;
        if back != self.bytes {
            return Err(Error::Internal(format!("{} returned other elements than it got", codec.name())));
        }
        let bytes = self.bytes.len() as f64;
        Ok(Lossless {
            codec: codec.name(),
            ratio: bytes / packed as f64,
            pack_gb_s: bytes / pack_ns,
            unpack_gb_s: bytes / unpack_ns,
            gap_bits: 8.0 * packed as f64 / bytes - planes,
        })
    }

    /// Compresses and decompresses. Returns the compressed size, the decompressed bytes, and the
    /// nanoseconds of both.
    fn run(&self, codec: &dyn Codec) -> Result<(usize, Vec<u8>, f64, f64)> {
        let failed = |e: tidegate_array::Error| Error::decode(format!("{}: {e}", codec.name()));
        let (mut packed, mut back) = (Vec::new(), vec![0; self.bytes.len()]);
        let began = Instant::now();
        codec.encode(&self.bytes, &mut packed).map_err(failed)?;
        let pack_ns = began.elapsed().as_nanos().max(1) as f64;
        let began = Instant::now();
        codec.decode(&packed, &mut back).map_err(failed)?;
        Ok((packed.len(), back, pack_ns, began.elapsed().as_nanos().max(1) as f64))
    }

    /// Tries quantizers and error bounds, and computes the lower bound of bits.
    fn lossy(&self, found: &mut Analysis, options: &Options) -> Result<()> {
        let values = floats(self.dtype, &self.bytes);
        let finite: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
        if finite.is_empty() {
            return Ok(());
        }
        let count = finite.len() as f64;
        let mean = finite.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = finite.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        let (low, high) =
            finite.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        let step = (f64::from(high) - f64::from(low)) / BINS as f64;
        found.variance = Some(variance);
        if variance == 0.0 {
            return Ok(());
        }
        found.curve = curve(&finite, f64::from(low), step, variance);
        let lossy = |name: String, bits: f64, error: f64, largest_error: f64| Lossy {
            name,
            bits,
            largest_error,
            error,
            gaussian_bits: gaussian_rate_bits(variance, error),
            histogram_bits: interpolate(&found.curve, error),
        };
        for bits in 2..=8 {
            let quantizer = quantize::Options {
                bits,
                scheme: Scheme::Offset,
                per: Per::Block(128),
                extent: Extent::Whole,
                rounding: Rounding::Nearest,
            };
            let small = Quantized::new(&finite, &[finite.len()], &quantizer);
            let small = small.map_err(|e| Error::decode(e.to_string()))?;
            let bits_a_value = 8.0 * small.held_bytes() as f64 / count;
            let (error, largest) = errors(&finite, &small.values());
            found.lossy.push(lossy(format!("{bits} bits, blocks of 128"), bits_a_value, error, largest));
        }
        for name in &options.bounds {
            let codec = match codec::parse(name, self.dtype, &self.shape) {
                Ok(codec) => codec,
                Err(e) if matches!(self.dtype, DType::Float32 | DType::Float64) => {
                    return Err(Error::Config(e.to_string()));
                }
                Err(_) => continue,
            };
            let (packed, back, ..) = self.run(&*codec)?;
            let (error, largest) = errors(&values, &floats(self.dtype, &back));
            let bits_a_value = 8.0 * packed as f64 / values.len() as f64;
            found.lossy.push(lossy(name.clone(), bits_a_value, error, largest));
        }
        Ok(())
    }
}

/// The mean square error and the largest error of finite values.
fn errors(values: &[f32], approximate: &[f32]) -> (f64, f64) {
    let pairs = values.iter().zip(approximate).filter(|(value, _)| value.is_finite());
    let (count, sum, largest) = pairs.fold((0u64, 0.0, 0.0f64), |(count, sum, largest), (value, other)| {
        let error = f64::from(*other) - f64::from(*value);
        (count + 1, sum + error * error, largest.max(error.abs()))
    });
    (sum / count.max(1) as f64, largest)
}

/// The rate–distortion curve of the histogram of some values.
fn curve(values: &[f32], low: f64, step: f64, variance: f64) -> Vec<RatePoint> {
    let mut counts = vec![0u64; BINS];
    for value in values {
        counts[(((f64::from(*value) - low) / step) as usize).min(BINS - 1)] += 1;
    }
    let centres: Vec<f64> = (0..BINS).map(|bin| low + (bin as f64 + 0.5) * step).collect();
    // The slope of a Gaussian is −1 / 2D. Stop where bins are no longer small against the error.
    let errors = (1..40).map(|i| variance * 0.7f64.powi(i)).take_while(|error| *error > step * step);
    let slopes: Vec<f64> = errors.map(|error| -0.5 / error).collect();
    blahut_arimoto(&centres, &counts, &slopes)
}

/// The bits at an error between two points of the curve.
fn interpolate(curve: &[RatePoint], error: f64) -> Option<f64> {
    let pair = curve.windows(2).find(|pair| (pair[1].error..=pair[0].error).contains(&error))?;
    let share = (pair[0].error / error).ln() / (pair[0].error / pair[1].error).ln();
    Some(pair[0].bits + share * (pair[1].bits - pair[0].bits))
}

impl Analysis {
    /// The analysis as a text with tables.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let ratio = |bits: f64| if bits > 0.0 { format!("{:.2}x", 8.0 / bits) } else { "all of it".into() };
        append(
            &mut text,
            format_args!(
                "{:?}: {} of {} samples, {mib:.1} MiB\n  entropy {:.3} bits a byte: {}; \
                 by byte of an element {:.3}: {}\n",
                self.field,
                self.dtype.name(),
                self.samples,
                self.entropy_bits,
                ratio(self.entropy_bits),
                self.plane_bits,
                ratio(self.plane_bits)
            ),
        );
        append(
            &mut text,
            format_args!(
                "  {:24} {:>7} {:>10} {:>12} {:>14}\n",
                "codec", "ratio", "pack GB/s", "unpack GB/s", "gap, bits/byte"
            ),
        );
        for Lossless { codec, ratio, pack_gb_s, unpack_gb_s, gap_bits } in &self.lossless {
            append(
                &mut text,
                format_args!(
                    "  {codec:24} {ratio:>7.2} {pack_gb_s:>10.2} {unpack_gb_s:>12.2} {gap_bits:>14.3}\n"
                ),
            );
        }
        if !self.lossy.is_empty() {
            append(
                &mut text,
                format_args!(
                    "  {:24} {:>11} {:>13} {:>15} {:>16} {:>10}\n",
                    "near", "bits/value", "largest error", "R(D), Gaussian", "R(D), histogram", "gap"
                ),
            );
        }
        for Lossy { name, bits, largest_error, gaussian_bits, histogram_bits, .. } in &self.lossy {
            let histogram = histogram_bits.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.2}"));
            let gap = bits - histogram_bits.unwrap_or(*gaussian_bits);
            append(
                &mut text,
                format_args!(
                    "  {name:24} {bits:>11.2} {largest_error:>13.3e} {gaussian_bits:>15.2} \
                     {histogram:>16} {gap:>10.2}\n"
                ),
            );
        }
        text
    }

    /// Bits over errors as an SVG image; nothing for a field without floats.
    #[must_use]
    pub fn plot(&self) -> Option<String> {
        plot::draw(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_of_a_gaussian_stay_above_its_bound() {
        let uniform =
            |i: u64| ((tidegate_core::hash::splitmix64(i) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let normal =
            |i: u64| (-2.0 * uniform(2 * i).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * i + 1)).cos();
        let bytes: Vec<u8> = (0..200_000).flat_map(|i| (normal(i) as f32 * 3.0).to_le_bytes()).collect();
        let elements = Elements { dtype: DType::Float32, shape: vec![200_000], samples: 1, bytes };
        let options = Options {
            field: None,
            samples: 1,
            bytes: 1 << 30,
            bounds: vec!["abs:0.1".into(), "rel:0.001".into()],
        };
        let found = elements.analyse("x", &options).unwrap();
        assert!((found.variance.unwrap() - 9.0).abs() < 0.1);
        assert!(
            found.plane_bits < found.entropy_bits
                && found.lossless.len() == codec::candidates(DType::Float32).len()
        );
        for lossy in &found.lossy {
            // Nothing is below the bound, and quantizers are as close to it as theory says.
            let least = lossy.histogram_bits.unwrap_or(lossy.gaussian_bits);
            assert!(lossy.bits > least - 0.02, "{lossy:?}");
            let bounded = lossy.name.contains(':');
            assert!(!bounded || lossy.bits - lossy.gaussian_bits < 0.35, "{lossy:?}");
            if let Some(bits) = lossy.histogram_bits {
                assert!((bits - lossy.gaussian_bits).abs() < 0.03, "{lossy:?}");
            }
        }
        assert!(found.lossy.iter().any(|lossy| lossy.name == "abs:0.1" && lossy.largest_error <= 0.1));
        let text = found.text();
        assert!(text.contains("shuffle+zstd") && text.contains("abs:0.1"), "{text}");
        let plot = found.plot().unwrap();
        assert!(plot.starts_with("<svg") && plot.contains("Gaussian") && plot.ends_with("</svg>\n"));
    }
}
