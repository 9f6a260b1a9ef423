//! What compression would bring: what codecs make of the arrays of a data set, beside what can be reached.
//!
//! Flow: source -> elements of some samples of each field -> [`Analysis`]: entropies, codecs, quantizers and bounds, rates -> text, JSON, a plot (`plot`).
//! Memory: elements of one field at a time, at most [`Options::bytes`], and as much again twice for what is packed and unpacked.

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

/// What is looked at.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only this field.
    pub field: Option<String>,
    /// Samples, evenly spread.
    pub samples: u64,
    /// Bytes of elements, at most.
    pub bytes: u64,
    /// Bounds that floats are packed within: names such as `abs:1e-3`.
    pub bounds: Vec<String>,
}

/// A field of arrays or bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Analysis {
    /// Its name.
    pub field: String,
    /// The type of elements; bytes for what is no array.
    pub dtype: DType,
    /// Samples that were looked at.
    pub samples: u64,
    /// Their elements.
    pub bytes: u64,
    /// Bits a byte of a source without memory.
    pub entropy_bits: f64,
    /// The same where each byte of an element has its own statistics.
    pub plane_bits: f64,
    /// Codecs that change nothing.
    pub lossless: Vec<Lossless>,
    /// Of floats, codecs and quantizers that come near.
    pub lossy: Vec<Lossy>,
    /// The variance of floats.
    pub variance: Option<f64>,
    /// What no code of the values one by one can be below: the rate–distortion curve of their histogram.
    pub curve: Vec<RatePoint>,
}

/// What a codec makes of the elements.
#[derive(Debug, Clone, Serialize)]
pub struct Lossless {
    /// Its name.
    pub codec: String,
    /// Bytes before over bytes after.
    pub ratio: f64,
    /// Bytes of elements packed a nanosecond: GB/s.
    pub pack_gb_s: f64,
    /// The same unpacked.
    pub unpack_gb_s: f64,
    /// Bits a byte beyond [`Analysis::plane_bits`]; below 0 where it sees more than single bytes.
    pub gap_bits: f64,
}

/// What comes near to the elements.
#[derive(Debug, Clone, Serialize)]
pub struct Lossy {
    /// The codec or quantizer.
    pub name: String,
    /// Bits a value.
    pub bits: f64,
    /// The largest error of a finite value.
    pub largest_error: f64,
    /// The mean square error.
    pub error: f64,
    /// Bits that a Gaussian source of this variance needs for it.
    pub gaussian_bits: f64,
    /// Bits that the histogram needs for it, where its bins are fine enough to tell.
    pub histogram_bits: Option<f64>,
}

/// Bins of the histogram.
const BINS: usize = 128;

/// Looks at the fields of a source.
///
/// # Errors
/// [`Error::Config`] for a field that there is not, or a bound that is none; samples that cannot be read.
pub fn analyse(source: &dyn Source, options: &Options) -> Result<Vec<Analysis>> {
    if let Some(wanted) = &options.field
        && !source.schema().iter().any(|field| field.name == *wanted)
    {
        let names: Vec<_> = source.schema().iter().map(|field| field.name.as_str()).collect();
        return Err(Error::Config(format!("there is no field {wanted:?}: there are {}", names.join(", "))));
    }
    let wanted = |name: &str| options.field.as_deref().is_none_or(|wanted| wanted == name);
    // The text of sparse rows is no array of theirs.
    let analysed = |field: &Field| wanted(&field.name) && !matches!(field.kind, Kind::Sparse { .. });
    let fields = source.schema().iter().enumerate().filter(|(_, field)| analysed(field));
    let mut found = Vec::new();
    for (i, field) in fields {
        if let Some(elements) = Elements::of(source, i, options)? {
            found.push(elements.analyse(&field.name, options)?);
        }
    }
    Ok(found)
}

/// The elements of a field.
struct Elements {
    dtype: DType,
    /// The shape of all of them together: samples along the first axis, where they are alike.
    shape: Vec<usize>,
    samples: u64,
    bytes: Vec<u8>,
}

impl Elements {
    /// Of some samples; nothing for numbers.
    fn of(source: &dyn Source, i: usize, options: &Options) -> Result<Option<Self>> {
        let count = options.samples.min(source.len());
        let mut found: Option<Self> = None;
        for k in 0..count {
            let (at, data) = source.fetch(k * source.len() / count)?;
            let field = &source.schema()[i];
            let blame = |e: &dyn std::fmt::Display| source.blame(&at, &field.name, e);
            let values = source.parse(&at, &data).map_err(|e| blame(&e))?;
            let Value::Bytes(bytes) = values[i] else { continue };
            let array = field.kind.array(bytes).transpose().map_err(|e| blame(&e))?;
            let (dtype, shape, bytes) = match &array {
                Some(array) => (array.dtype, array.shape.clone(), array.data),
                None => (DType::Uint8, vec![bytes.len()], bytes),
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
            all.bytes.extend(bytes);
            all.samples += 1;
            // Arrays of many shapes are one row of elements.
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
            self.near(&mut found, options)?;
        }
        Ok(found)
    }

    fn lossless(&self, codec: &dyn Codec, planes: f64) -> Result<Lossless> {
        let (packed, back, pack_ns, unpack_ns) = self.run(codec)?;
        if back != self.bytes {
            return Err(Error::decode(format!(
                "{} gave back other elements: please report it",
                codec.name()
            )));
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

    /// Bytes when packed, what came back, and the nanoseconds of both.
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

    /// What comes near, and how few bits that could take.
    fn near(&self, found: &mut Analysis, options: &Options) -> Result<()> {
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
        let near = |name: String, bits: f64, error: f64, largest_error: f64| Lossy {
            name,
            bits,
            largest_error,
            error,
            gaussian_bits: gaussian_rate_bits(variance, error),
            histogram_bits: between(&found.curve, error),
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
            let (error, largest) = distance(&finite, &small.values());
            found.lossy.push(near(format!("{bits} bits, blocks of 128"), bits_a_value, error, largest));
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
            let (error, largest) = distance(&values, &floats(self.dtype, &back));
            let bits_a_value = 8.0 * packed as f64 / values.len() as f64;
            found.lossy.push(near(name.clone(), bits_a_value, error, largest));
        }
        Ok(())
    }
}

/// The mean square and the largest error of finite values.
fn distance(values: &[f32], came: &[f32]) -> (f64, f64) {
    let errors = values.iter().zip(came).filter(|(value, _)| value.is_finite());
    let (count, sum, largest) = errors.fold((0u64, 0.0, 0.0f64), |(count, sum, largest), (value, came)| {
        let error = f64::from(*came) - f64::from(*value);
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
    // Of a Gaussian the slope is −1 / 2D; to where bins are no longer small beside the error.
    let errors = (1..40).map(|i| variance * 0.7f64.powi(i)).take_while(|error| *error > step * step);
    let slopes: Vec<f64> = errors.map(|error| -0.5 / error).collect();
    blahut_arimoto(&centres, &counts, &slopes)
}

/// The curve at an error between its points.
fn between(curve: &[RatePoint], error: f64) -> Option<f64> {
    let pair = curve.windows(2).find(|pair| (pair[1].error..=pair[0].error).contains(&error))?;
    let share = (pair[0].error / error).ln() / (pair[0].error / pair[1].error).ln();
    Some(pair[0].bits + share * (pair[1].bits - pair[0].bits))
}

impl Analysis {
    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let ratio = |bits: f64| if bits > 0.0 { format!("{:.2}x", 8.0 / bits) } else { "all of it".into() };
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{:?}: {} of {} samples, {mib:.1} MiB\n  entropy {:.3} bits a byte: {}; byte by byte of elements {:.3}: {}",
            self.field,
            self.dtype.name(),
            self.samples,
            self.entropy_bits,
            ratio(self.entropy_bits),
            self.plane_bits,
            ratio(self.plane_bits)
        );
        let _written = writeln!(
            text,
            "  {:24} {:>7} {:>10} {:>12} {:>14}",
            "codec", "ratio", "pack GB/s", "unpack GB/s", "gap, bits/byte"
        );
        for Lossless { codec, ratio, pack_gb_s, unpack_gb_s, gap_bits } in &self.lossless {
            let _written = writeln!(
                text,
                "  {codec:24} {ratio:>7.2} {pack_gb_s:>10.2} {unpack_gb_s:>12.2} {gap_bits:>14.3}"
            );
        }
        if !self.lossy.is_empty() {
            let _written = writeln!(
                text,
                "  {:24} {:>11} {:>13} {:>15} {:>16} {:>10}",
                "near", "bits/value", "largest error", "R(D), Gaussian", "R(D), histogram", "gap"
            );
        }
        for Lossy { name, bits, largest_error, gaussian_bits, histogram_bits, .. } in &self.lossy {
            let histogram = histogram_bits.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.2}"));
            let gap = bits - histogram_bits.unwrap_or(*gaussian_bits);
            let _written = writeln!(
                text,
                "  {name:24} {bits:>11.2} {largest_error:>13.3e} {gaussian_bits:>15.2} {histogram:>16} {gap:>10.2}"
            );
        }
        text
    }

    /// Rates over errors, as an SVG picture; nothing for what is no float.
    #[must_use]
    pub fn plot(&self) -> Option<String> {
        plot::draw(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gaussian_is_a_gaussian_and_codecs_are_beside_what_can_be_reached() {
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
            // Nothing is below the bound; what is near it is no further than is known of quantizers.
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
