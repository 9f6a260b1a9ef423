//! The error-bounded codec: every float comes back within a given bound.
//!
//! Flow: floats -> residuals against `predict`, in steps of 2 × bound -> integers -> pco. Values
//! that no step represents within the bound (outliers) are stored raw.
//! Memory: packing takes an integer and a float per value; unpacking takes an integer per value,
//! and the outliers.
//!
//! The packer unpacks each value as it goes. A value that does not come back within the bound
//! (NaN, infinities, values too large for their step) becomes an outlier.

use pco::standalone::simple_compress;
use pco::{ChunkConfig, DeltaSpec, ModeSpec};

use super::Codec;
use super::packer::{damaged, pco_bytes, unpco};
use super::predict::{AXES_MOST, Float, Predictor, Steps};
use crate::{DType, Error, Result};

/// How far an unpacked value may be from the original.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Absolute error, at most.
    Absolute(f64),
    /// Error at most this share of the range of the finite values.
    Relative(f64),
    /// Error at most this share of the value itself, or of the smallest normal number.
    Each(f64),
}

impl Bound {
    /// Parses `abs:<error>` or `rel:<error>`; `None` for another name.
    ///
    /// # Errors
    /// [`Error::Option`] if the error is not a number above 0.
    pub(super) fn parse(name: &str) -> Result<Option<Self>> {
        let (kind, error): (fn(f64) -> Self, _) = match name.split_once(':') {
            Some(("abs", error)) => (Self::Absolute, error),
            Some(("rel", error)) => (Self::Relative, error),
            _ => return Ok(None),
        };
        match error.parse::<f64>() {
            Ok(error) if error > 0.0 && error.is_finite() => Ok(Some(kind(error))),
            _ => Err(Error::option(format!(
                "{name:?}: the bound must be a number above 0, as in abs:1e-3; without loss pco packs floats best"
            ))),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Absolute(error) => format!("abs:{error:e}"),
            Self::Relative(error) | Self::Each(error) => format!("rel:{error:e}"),
        }
    }
}

/// Bytes of the head: predictor, step, count of outliers, bytes of their indices, bytes of the
/// steps.
const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 8;

/// The codec for one bound, element type and shape.
#[derive(Debug)]
pub(super) struct Bounded {
    bound: Bound,
    dtype: DType,
    /// The last axes of the shape, as many as the predictor uses.
    shape: Vec<usize>,
}

impl Bounded {
    pub(super) fn new(bound: Bound, dtype: DType, shape: &[usize]) -> Result<Self> {
        if !matches!(dtype, DType::Float32 | DType::Float64) {
            return Err(Error::option(format!(
                "an error bound is for float32 or float64, not {}: pack that without loss",
                dtype.name()
            )));
        }
        let last = shape.len().saturating_sub(AXES_MOST);
        Ok(Self { bound, dtype, shape: shape[last..].to_vec() })
    }

    fn pack<T: Float>(&self, bytes: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let values = read::<T>(bytes)?;
        let error = match self.bound {
            Bound::Absolute(error) => error,
            Bound::Relative(share) | Bound::Each(share) => share * extent(&values),
        };
        // Slightly less than the bound allows: a step rounded up must not push values over the
        // bound.
        let step = 2.0 * error * (1.0 - 4.0 * f64::EPSILON);
        if !step.is_finite() {
            return Err(Error::option(format!(
                "an error of {error:e}: no float is twice that; give a smaller one"
            )));
        }
        let steps = Steps::new(step, error);
        let predictor = Predictor::best(&values, &self.shape, steps);
        let (residuals, places) = predictor.pack(&values, &self.shape, steps);
        let failed = |e: pco::errors::PcoError| Error::value(format!("pco: {e}"));
        // The values are already predicted, so pco packs the integers as they are.
        let plain = ChunkConfig::default().with_mode_spec(ModeSpec::Classic).with_delta_spec(DeltaSpec::NoOp);
        let packed = simple_compress(&residuals, &plain).map_err(failed)?;
        let gaps = places.iter().scan(0, |before, at| Some((at - std::mem::replace(before, *at)) as u64));
        let gaps: Vec<u64> = gaps.collect();
        let outliers: Vec<T> = places.iter().map(|at| values[*at]).collect();
        let gaps = simple_compress(&gaps, &plain).map_err(failed)?;
        let outliers = zstd::bulk::compress(bytemuck::cast_slice(&outliers), 3)
            .map_err(|e| Error::value(e.to_string()))?;
        into.push(predictor.code());
        into.extend(step.to_le_bytes());
        for number in [places.len() as u64, gaps.len() as u64, packed.len() as u64] {
            into.extend(number.to_le_bytes());
        }
        into.extend(gaps);
        into.extend(packed);
        into.extend(outliers);
        Ok(())
    }

    fn unpack<T: Float>(&self, packed: &[u8], into: &mut [u8]) -> Result<()> {
        let cut = || damaged("they end early");
        let (head, rest) = packed.split_at_checked(HEAD_BYTES).ok_or_else(cut)?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
        let (predictor, step) = (Predictor::from_code(head[0], self.shape.len()), f64::from_bits(number(1)));
        let part = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (count, gaps) = (part(number(9)), part(number(17)));
        let values = into.len() / size_of::<T>();
        let predictor = predictor.filter(|_| step.is_finite() && count <= values).ok_or_else(|| {
            damaged(format!(
                "predictor {}, a step of {step}, {count} outliers among {values} values",
                head[0]
            ))
        })?;
        let (gaps, rest) = rest.split_at_checked(gaps).ok_or_else(cut)?;
        let (packed, outliers) = rest.split_at_checked(part(number(25))).ok_or_else(cut)?;
        let mut residuals = crate::filled(Some(values), 0i32)?;
        unpco(packed, &mut residuals)?;
        if let Ok(into) = bytemuck::try_cast_slice_mut(into) {
            predictor.unpack::<T>(&mut residuals, &self.shape, step, into);
        } else {
            let mut aligned = crate::filled(Some(values), T::from_f64(0.0))?;
            predictor.unpack(&mut residuals, &self.shape, step, &mut aligned);
            into.copy_from_slice(bytemuck::cast_slice(&aligned));
        }
        let mut places = crate::filled(Some(count), 0u64)?;
        unpco(gaps, &mut places)?;
        let mut whole = crate::filled(Some(count * size_of::<T>()), 0u8)?;
        if zstd::bulk::decompress_to_buffer(outliers, &mut whole).map_err(damaged)? != whole.len() {
            return Err(damaged("the counts of outliers and of their indices differ"));
        }
        let mut at = 0u64;
        for (gap, value) in places.iter().zip(whole.chunks_exact(size_of::<T>())) {
            at = at.saturating_add(*gap);
            let place = usize::try_from(at).ok().and_then(|at| into.chunks_exact_mut(size_of::<T>()).nth(at));
            place
                .ok_or_else(|| damaged("the index of an outlier is beyond the last value"))?
                .copy_from_slice(value);
        }
        Ok(())
    }
}

impl Codec for Bounded {
    fn name(&self) -> String {
        self.bound.name()
    }

    fn encode(&self, elements: &[u8], into: &mut Vec<u8>) -> Result<()> {
        match self.dtype {
            DType::Float32 => self.pack::<f32>(elements, into),
            _ => self.pack::<f64>(elements, into),
        }
    }

    fn decode(&self, packed: &[u8], into: &mut [u8]) -> Result<()> {
        match self.dtype {
            DType::Float32 => self.unpack::<f32>(packed, into),
            _ => self.unpack::<f64>(packed, into),
        }
    }

    fn scratch_bytes(&self, len: u64) -> u64 {
        // Steps; outliers and their indices, at worst one per value; and the library's tables.
        let values = len / self.dtype.size() as u64;
        4 * values + 8 * values + len + pco_bytes(values, 8)
    }

    fn bound(&self) -> Option<Bound> {
        Some(self.bound)
    }
}

fn read<T: Float>(bytes: &[u8]) -> Result<Vec<T>> {
    let values = bytes.chunks_exact(size_of::<T>());
    if !values.remainder().is_empty() {
        return Err(Error::value(format!("{} bytes are no whole number of elements", bytes.len())));
    }
    Ok(values.map(bytemuck::pod_read_unaligned).collect())
}

/// The largest finite value less the least.
fn extent<T: Float>(values: &[T]) -> f64 {
    let finite = values.iter().map(|value| value.to_f64()).filter(|value| value.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if high > low { high - low } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    /// Packs and unpacks; returns the number of values beyond the bound, and the packed bytes.
    fn violations<T: Float>(
        values: &[T],
        shape: &[usize],
        name: &str,
        dtype: DType,
        error: f64,
    ) -> (usize, usize) {
        let codec = parse(name, dtype, shape).unwrap();
        let (mut packed, mut back) = (Vec::new(), vec![T::from_f64(0.0); values.len()]);
        codec.encode(bytemuck::cast_slice(values), &mut packed).unwrap();
        codec.decode(&packed, bytemuck::cast_slice_mut(&mut back)).unwrap();
        let wrong = |(before, after): &(&T, &T)| {
            let same = bytemuck::bytes_of(*before) == bytemuck::bytes_of(*after);
            let near = (before.to_f64() - after.to_f64()).abs() <= error;
            !(same || before.to_f64().is_finite() && near)
        };
        (values.iter().zip(&back).filter(wrong).count(), packed.len())
    }

    /// The i-th value of one kind: smooth, random, of all exponents, of any bits.
    fn value(kind: usize, i: u64) -> f32 {
        let drawn = tidegate_core::hash::splitmix64(i ^ (kind as u64) << 56);
        let uniform = (drawn >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        match kind {
            0 => (i as f32 * 1e-3).sin() + (i as f32 * 7e-4).cos(),
            1 => uniform,
            2 => uniform * 2f32.powi((drawn % 200) as i32 - 120),
            3 => f32::from_bits(drawn as u32),
            _ => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-42, -1e-45, 0.0, -0.0, f32::MAX]
                [drawn as usize % 8],
        }
    }

    /// The number of values is `TIDEGATE_VALUES`: `make test-slow` sets 10⁹.
    #[test]
    fn no_value_is_beyond_the_bound() {
        let count = std::env::var("TIDEGATE_VALUES")
            .ok()
            .and_then(|count| count.parse().ok())
            .unwrap_or(2_000_000u64);
        let piece = 1 << 20;
        for part in 0..count.div_ceil(piece) {
            let kind = part as usize % 5;
            let values: Vec<f32> =
                (part * piece..count.min((part + 1) * piece)).map(|i| value(kind, i)).collect();
            let error = [1e-2, 1e-4, 1e-7, 1e-12][part as usize / 5 % 4];
            let (wrong, _) =
                violations(&values, &[values.len()], &format!("abs:{error}"), DType::Float32, error);
            assert_eq!(wrong, 0, "of kind {kind} at {error}");
        }
    }

    #[test]
    fn all_shapes_types_and_bounds_hold() {
        for shape in [&[][..], &[1000], &[10, 100], &[3, 7, 48], &[2, 3, 5, 33], &[0, 4]] {
            let count: usize = shape.iter().product();
            for kind in 0..5 {
                let singles: Vec<f32> = (0..count as u64).map(|i| value(kind, i)).collect();
                let doubles: Vec<f64> = singles.iter().map(|x| f64::from(*x) * 1.000_000_1).collect();
                for error in [1e-1, 1e-5, 1e-9, 1e-30, 1e30, 1e300] {
                    let name = format!("abs:{error}");
                    assert_eq!(
                        violations(&singles, shape, &name, DType::Float32, error).0,
                        0,
                        "{shape:?} {kind} {error}"
                    );
                    assert_eq!(
                        violations(&doubles, shape, &name, DType::Float64, error).0,
                        0,
                        "{shape:?} {kind} {error}"
                    );
                    if error > 1.0 {
                        continue;
                    }
                    let name = format!("rel:{error}");
                    let relative = error * extent(&doubles);
                    assert_eq!(
                        violations(&doubles, shape, &name, DType::Float64, relative).0,
                        0,
                        "{shape:?} {kind} {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn errors_that_no_float_says_are_refused() {
        let values = [-1.7e308f64, 0.0, 1.7e308];
        let codec = parse("rel:1e-3", DType::Float64, &[3]).unwrap();
        let error = codec.encode(bytemuck::cast_slice(&values), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("no float is twice that"), "{error}");
        assert_eq!(parse("abs:1e308", DType::Float32, &[3]).unwrap().name(), "abs:1e308");
    }

    #[test]
    fn what_is_smooth_becomes_small() {
        let wave = |x: f32, y: f32| (x * 0.05).sin() * (y * 0.03).cos() * 100.0;
        let values: Vec<f32> = (0..256 * 256).map(|i| wave((i / 256) as f32, (i % 256) as f32)).collect();
        let (wrong, flat) = violations(&values, &[1 << 16], "abs:0.01", DType::Float32, 0.01);
        let (also_wrong, square) = violations(&values, &[256, 256], "abs:0.01", DType::Float32, 0.01);
        assert_eq!((wrong, also_wrong), (0, 0));
        assert!(square < flat && square * 20 < 4 << 16, "{square} and {flat} bytes");
    }

    #[test]
    fn damaged_bytes_are_refused_or_something_else() {
        let values: Vec<f32> = (0..500).map(|i| value(i as usize % 5, i)).collect();
        let codec = parse("abs:0.001", DType::Float32, &[10, 50]).unwrap();
        let (mut packed, mut back) = (Vec::new(), vec![0f32; 500]);
        codec.encode(bytemuck::cast_slice(&values), &mut packed).unwrap();
        for cut in 0..packed.len() {
            assert!(
                codec.decode(&packed[..cut], bytemuck::cast_slice_mut(&mut back)).is_err(),
                "{cut} bytes"
            );
        }
        for bit in 0..packed.len() * 8 {
            let mut wrong = packed.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            // An error, or other values: either is right, as long as decoding ends.
            codec.decode(&wrong, bytemuck::cast_slice_mut(&mut back)).ok();
        }
        assert!(codec.decode(&packed, bytemuck::cast_slice_mut(&mut back[..499])).is_err());
    }
}
