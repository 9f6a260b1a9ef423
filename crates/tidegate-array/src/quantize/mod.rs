//! Quantization: numbers as codes of 2 to 8 bits, and the grids that convert them back.
//!
//! Flow: values -> the grid of each group ([`grid`], from the group's own range or a
//! [`Calibrator`]'s) -> packed codes -> values.
//! Memory: codes and grids are the caller's; a [`Calibrator`] reports what it holds.
//!
//! A code is unsigned, `0 ..= 2^bits − 1`, and stands for `(code − zero) · scale + base` in f32.
//! Each operation is rounded separately, so that all processors agree. Affine and symmetric grids
//! have no base and represent 0 exactly, as arithmetic with codes needs. Offset grids have no zero
//! and spend no code on it (Jacob et al., 2018, name the first two).

mod blocks;
mod calibrate;
pub mod grid;
mod linear;
mod stored;

pub use self::blocks::{BlockGrid, pack_blocks, unpack_blocks};
pub use self::calibrate::{Calibrator, Extent};
pub use self::grid::{Grid, Scheme};
pub use self::linear::{Rounding, dequantize, quantize};
pub use self::stored::View;

use crate::kernels::bits::{WIDTHS, packed_bytes};
use crate::{DType, Error, Result};

/// Which values share a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All values.
    Tensor,
    /// The values at one index of an axis.
    Channel(usize),
    /// The values along the last axis.
    Row,
    /// This many consecutive values in C order.
    Block(usize),
}

/// How the values of a shape fall into groups: consecutive runs of `inner` values belong to the
/// groups in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Values per run.
    pub inner: usize,
    /// Number of groups.
    pub count: usize,
}

impl Groups {
    /// The groups of a shape.
    ///
    /// # Errors
    /// [`Error::Option`] for an axis that does not exist, or blocks without values.
    pub fn new(per: Per, shape: &[usize]) -> Result<Self> {
        let values: usize = shape.iter().product();
        let (inner, count) = match per {
            Per::Tensor => (values, 1),
            Per::Row => {
                let row = shape.last().copied().unwrap_or(1);
                (row, values.checked_div(row).unwrap_or(0))
            }
            Per::Block(0) => return Err(Error::option("a block of no values: give 32, 64 or 128")),
            Per::Block(block) => (block, values.div_ceil(block)),
            Per::Channel(axis) if axis < shape.len() => (shape[axis + 1..].iter().product(), shape[axis]),
            Per::Channel(axis) => {
                return Err(Error::option(format!(
                    "channels along axis {axis} of an array of {} axes: give an axis that it has",
                    shape.len()
                )));
            }
        };
        Ok(Self { inner: inner.max(1), count: count.max(1) })
    }

    /// The runs of the values in `range`, each with its group.
    pub fn runs(
        self,
        range: std::ops::Range<usize>,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
        let (mut at, run) = (range.start, range.start / self.inner);
        // Counted up, which avoids a division per run.
        let (mut end, mut group) = ((run + 1).saturating_mul(self.inner), run % self.count);
        std::iter::from_fn(move || {
            let found = (at < range.end).then(|| (at..end.min(range.end), group));
            (at, end) = (end, end.saturating_add(self.inner));
            group = if group + 1 == self.count { 0 } else { group + 1 };
            found
        })
    }
}

/// Options of quantization.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Bits per code, 2 to 8.
    pub bits: u32,
    /// How a grid represents 0.
    pub scheme: Scheme,
    /// Which values share a grid.
    pub per: Per,
    /// The range that a grid covers.
    pub extent: Extent,
    /// How values between two codes are rounded.
    pub rounding: Rounding,
}

/// A quantized array: packed codes with their grids.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The shape of the values.
    pub shape: Vec<usize>,
    /// Bits per code.
    pub bits: u32,
    /// How the grids represent 0.
    pub scheme: Scheme,
    /// Which values share a grid.
    pub per: Per,
    /// One grid per group.
    pub grids: Vec<Grid>,
    /// Packed codes: [`packed_bytes`] bytes.
    pub codes: Vec<u8>,
}

/// How far quantized values are from the originals.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Fidelity {
    /// Signal to quantization noise, in dB: 10·log₁₀ of the mean square of the values over that of
    /// the errors; infinite without errors.
    pub sqnr_db: f64,
    /// The largest error.
    pub largest_error: f64,
    /// The mean error.
    pub bias: f64,
    /// Bits per value, grids included.
    pub bits_per_value: f64,
}

impl Quantized {
    /// Quantizes values by grids of their own range (dynamic quantization).
    ///
    /// # Errors
    /// [`Error::Value`] for NaN and infinities (the message names the index), and for a shape of
    /// another number of values; [`Error::Option`] if `bits` is not 2 to 8, or for groups that do
    /// not exist.
    ///
    /// ```
    /// use tidegate_array::quantize::{Extent, Options, Per, Quantized, Rounding, Scheme};
    /// let (bits, scheme, per) = (8, Scheme::Offset, Per::Row);
    /// let (extent, rounding) = (Extent::Whole, Rounding::Nearest);
    /// let options = Options { bits, scheme, per, extent, rounding };
    /// let small = Quantized::new(&[0.0, 51.0, 255.0, 1.0, 1.0, 1.0], &[2, 3], &options)?;
    /// assert_eq!((small.grids.len(), small.codes.len()), (2, 6));
    /// assert_eq!(small.values(), [0.0, 51.0, 255.0, 1.0, 1.0, 1.0]);
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn new(values: &[f32], shape: &[usize], options: &Options) -> Result<Self> {
        let Options { bits, scheme, per, extent, rounding } = *options;
        let groups = checked(values, shape, bits, per)?;
        let grids = calibrate::grids(values, groups, bits, scheme, extent)?;
        Self::with(values, shape, bits, scheme, per, grids, rounding)
    }

    /// Quantizes values by given grids, such as a [`Calibrator`]'s; values beyond a grid are
    /// clipped to its ends.
    ///
    /// # Errors
    /// As [`Quantized::new`]; also for another number of grids.
    pub fn with(
        values: &[f32],
        shape: &[usize],
        bits: u32,
        scheme: Scheme,
        per: Per,
        grids: Vec<Grid>,
        rounding: Rounding,
    ) -> Result<Self> {
        let groups = checked(values, shape, bits, per)?;
        if grids.len() != groups.count {
            return Err(Error::value(format!("{} grids for {} groups of values", grids.len(), groups.count)));
        }
        let mut codes = vec![0; packed_bytes(values.len(), bits)];
        quantize(values, bits, scheme, &grids, groups, rounding, &mut codes)?;
        Ok(Self { shape: shape.to_vec(), bits, scheme, per, grids, codes })
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of codes and grids.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.codes.len() as u64 + self.scheme.grid_bytes() * self.grids.len() as u64
    }

    /// Dequantizes into elements of a type: float32, float16 or bfloat16.
    ///
    /// # Errors
    /// [`Error::Value`] for another type.
    ///
    /// # Panics
    /// If `into` has another length, or is not aligned to its type.
    pub fn dequantize(&self, dtype: DType, into: &mut [u8]) -> Result<()> {
        let groups = Groups::new(self.per, &self.shape)?;
        dequantize(&self.codes, self.bits, |group| self.grids[group], groups, dtype, into)
    }

    /// The dequantized values.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        let done = self.dequantize(DType::Float32, bytemuck::cast_slice_mut(&mut values));
        debug_assert!(done.is_ok(), "float32 is known, and the groups were checked");
        values
    }

    /// Compares with the original values.
    ///
    /// # Errors
    /// [`Error::Value`] for another number of values, and for NaN and infinities.
    pub fn fidelity(&self, values: &[f32]) -> Result<Fidelity> {
        if values.len() != self.len() {
            return Err(Error::value(format!(
                "{} values for {} codes: give the values that were quantized",
                values.len(),
                self.len()
            )));
        }
        let (mut signal, mut noise, mut sum, mut largest) = (0.0, 0.0, 0.0, 0.0f64);
        for (value, came) in values.iter().zip(self.values()) {
            if !value.is_finite() {
                return Err(Error::value(format!("a value is {value}, which no code stands for")));
            }
            let (value, error) = (f64::from(*value), f64::from(came) - f64::from(*value));
            signal += value * value;
            noise += error * error;
            sum += error;
            largest = largest.max(error.abs());
        }
        let count = values.len().max(1) as f64;
        let bits_per_value = 8.0 * self.held_bytes() as f64 / count;
        let sqnr_db = if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() };
        Ok(Fidelity { sqnr_db, largest_error: largest, bias: sum / count, bits_per_value })
    }
}

/// The groups of a shape, after checking the options.
fn checked(values: &[f32], shape: &[usize], bits: u32, per: Per) -> Result<Groups> {
    if !WIDTHS.contains(&bits) {
        return Err(Error::option(format!("codes of {bits} bits: give 2 to 8")));
    }
    let count = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
    if count != Some(values.len()) {
        return Err(Error::value(format!(
            "{} values in the shape {shape:?}: give one value per element",
            values.len()
        )));
    }
    Groups::new(per, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Normally distributed numbers (Box and Muller), the same on every machine.
    fn gaussian(count: usize) -> Vec<f32> {
        let uniform =
            |i: u64| ((tidegate_core::hash::splitmix64(i) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let pair = |i: u64| {
            let (radius, angle) =
                ((-2.0 * uniform(2 * i).ln()).sqrt(), std::f64::consts::TAU * uniform(2 * i + 1));
            [radius * angle.cos(), radius * angle.sin()]
        };
        (0..count as u64 / 2).flat_map(pair).map(|x| x as f32).collect()
    }

    fn options(bits: u32, scheme: Scheme, per: Per, extent: Extent) -> Options {
        Options { bits, scheme, per, extent, rounding: Rounding::Nearest }
    }

    fn sqnr(values: &[f32], options: &Options) -> f64 {
        let small = Quantized::new(values, &[values.len()], options).unwrap();
        small.fidelity(values).unwrap().sqnr_db
    }

    /// The figures of the best uniform quantizers of a Gaussian (Max, 1960), and those known for
    /// blocks in deep learning.
    #[test]
    fn a_gaussian_has_the_fidelity_that_is_known() {
        let values = gaussian(1 << 20);
        let best = [9.25, 14.27, 19.38, 24.57, 29.83, 35.17, 40.57];
        for (bits, expected) in (2..).zip(best) {
            let found = sqnr(&values, &options(bits, Scheme::Offset, Per::Tensor, Extent::Best));
            assert!(
                (found - expected).abs() < 0.1,
                "{bits} bits: {found:.2} dB, where {expected} can be had"
            );
        }
        let block = Per::Block(128);
        for (bits, scheme, expected) in [
            (4, Scheme::Symmetric, 18.6),
            (4, Scheme::Offset, 20.0),
            (8, Scheme::Symmetric, 43.8),
            (8, Scheme::Offset, 44.6),
        ] {
            let found = sqnr(&values, &options(bits, scheme, block, Extent::Whole));
            assert!(
                (found - expected).abs() < 0.1,
                "{bits} bits, {scheme:?}: {found:.2} dB, where {expected} is known"
            );
        }
    }

    #[test]
    fn the_best_range_is_never_worse_than_the_whole() {
        let mut values = gaussian(20_000);
        values.extend([300.0, -40.0]);
        for scheme in [Scheme::Affine, Scheme::Symmetric, Scheme::Offset] {
            for per in [Per::Tensor, Per::Block(50)] {
                let [whole, best] = [Extent::Whole, Extent::Best]
                    .map(|extent| sqnr(&values, &options(4, scheme, per, extent)));
                assert!(best >= whole, "{scheme:?}, {per:?}: {best} and {whole} dB");
            }
        }
        // Observed in pieces, the result is the same.
        let mut seen = Calibrator::new(6, Scheme::Offset, Extent::Best, 1).unwrap();
        values.chunks(777).for_each(|piece| seen.observe(piece, 1).unwrap());
        let whole =
            Quantized::new(&values, &[values.len()], &options(6, Scheme::Offset, Per::Tensor, Extent::Best))
                .unwrap();
        assert_eq!(seen.grids().unwrap(), whole.grids);
    }

    /// Quantizes one by one, by the formula in this file's opening comment.
    fn plain(values: &[f32], shape: &[usize], options: &Options) -> (Vec<u32>, Vec<f32>) {
        let groups = Groups::new(options.per, shape).unwrap();
        let group = |i: usize| i / groups.inner % groups.count;
        let (first, last) = options.scheme.codes(options.bits);
        let of = |i: usize| {
            let all = (0..values.len()).filter(|&j| group(j) == group(i)).map(|j| values[j]);
            let (low, high) = all.fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(x), high.max(x)));
            let grid = Grid::over(low, high, options.bits, options.scheme).unwrap();
            let steps = if grid.scale == 0.0 {
                0.0
            } else {
                ((values[i] - grid.base) / grid.scale).round_ties_even()
            };
            let code = (steps + grid.zero).clamp(first, last);
            (code as u32, (code - grid.zero) * grid.scale + grid.base)
        };
        (0..values.len()).map(of).unzip()
    }

    fn per() -> impl Strategy<Value = Per> {
        prop_oneof![
            Just(Per::Tensor),
            (0usize..3).prop_map(Per::Channel),
            Just(Per::Row),
            (1usize..40).prop_map(Per::Block)
        ]
    }

    fn scheme() -> impl Strategy<Value = Scheme> {
        prop_oneof![Just(Scheme::Affine), Just(Scheme::Symmetric), Just(Scheme::Offset)]
    }

    proptest! {
        #[test]
        fn codes_and_values_are_those_of_the_formula(
            seed: u64, (a, b, c) in (1usize..5, 1usize..30, 1usize..20), bits in 2u32..=8, scheme in scheme(), per in per(),
            scale in -60i32..60, shift in -3f32..3.0, alike in 0u32..4,
        ) {
            let (shape, count) = ([a, b, c], a * b * c);
            let drawn = |i: usize| (tidegate_core::hash::splitmix64(seed ^ i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
            let values: Vec<f32> = (0..count)
                .map(|i| if alike == 0 { shift } else { (drawn(i) + shift) * 2f32.powi(scale) })
                .collect();
            let options = options(bits, scheme, per, Extent::Whole);
            let small = Quantized::new(&values, &shape, &options).unwrap();
            let (codes, expected) = plain(&values, &shape, &options);
            let mut found = vec![0; count];
            crate::kernels::bits::unpack(&small.codes, bits, 0..count, &mut found);
            prop_assert_eq!(found.iter().map(|code| u32::from(*code)).collect::<Vec<_>>(), codes);
            prop_assert_eq!(small.values(), expected.clone());
            for (dtype, round) in [
                (DType::Float16, (|x| half::f16::from_f32(x).to_f32()) as fn(f32) -> f32),
                (DType::Bfloat16, |x| half::bf16::from_f32(x).to_f32()),
            ] {
                let (mut bytes, mut back) = (vec![0u16; count], vec![0.0; count]);
                small.dequantize(dtype, bytemuck::cast_slice_mut(&mut bytes)).unwrap();
                crate::kernels::convert::to_f32(dtype, bytemuck::cast_slice(&bytes), &mut back);
                prop_assert_eq!(back, expected.iter().map(|x| round(*x)).collect::<Vec<_>>());
            }
            let bytes = small.to_bytes().unwrap();
            prop_assert_eq!(View::parse(&bytes).unwrap().to_owned(), small.clone());
            // Within half a step, except for the rounding of a zero.
            if scheme == Scheme::Offset {
                let groups = Groups::new(per, &shape).unwrap();
                for (i, (value, came)) in values.iter().zip(&expected).enumerate() {
                    let step = small.grids[i / groups.inner % groups.count].scale;
                    prop_assert!((value - came).abs() <= step * 0.5001 + value.abs() * 1e-6 + f32::MIN_POSITIVE);
                }
            }
        }

        #[test]
        fn malformed_bytes_are_refused(at in 0usize..60, byte: u8, cut in 0usize..200) {
            let small = Quantized::new(&gaussian(120), &[6, 20], &options(3, Scheme::Affine, Per::Row, Extent::Whole)).unwrap();
            let mut bytes = small.to_bytes().unwrap();
            bytes[at] = byte;
            if let Ok(view) = View::parse(&bytes) {
                let mut values = vec![0f32; view.shape.iter().product()];
                view.dequantize(DType::Float32, bytemuck::cast_slice_mut(&mut values)).unwrap();
                prop_assert!(values.iter().all(|value| value.is_finite()));
            }
            let whole = small.to_bytes().unwrap();
            prop_assert!(cut >= whole.len() || View::parse(&whole[..cut]).is_err());
        }

        #[test]
        fn rounding_either_way_is_right_on_average(value in 0.0f32..255.0, seed: u64) {
            let (values, grid) = ([value; 4000], Grid { scale: 1.0, zero: 0.0, base: 0.0 });
            let codes = |seed| {
                let rounding = Rounding::Stochastic(seed);
                Quantized::with(&values, &[4000], 8, Scheme::Offset, Per::Tensor, vec![grid], rounding).unwrap()
            };
            let small = codes(seed);
            let mean = small.values().iter().map(|x| f64::from(*x)).sum::<f64>() / 4000.0;
            // Five standard deviations of the mean of 4,000 draws, each at most one half.
            prop_assert!((mean - f64::from(value)).abs() < 5.0 * 0.5 / 4000f64.sqrt());
            prop_assert!(small.values().iter().all(|x| (x - value).abs() < 1.0));
            prop_assert_eq!(codes(seed), small);
        }
    }

    #[test]
    fn what_cannot_be_quantized_says_why() {
        let words = |values: &[f32], shape: &[usize], options: &Options| {
            Quantized::new(values, shape, options).unwrap_err().to_string()
        };
        let many = Calibrator::new(8, Scheme::Affine, Extent::Whole, 1 << 50).map(drop);
        assert!(many.unwrap_err().to_string().contains("more than memory has"));
        let usual = options(8, Scheme::Affine, Per::Tensor, Extent::Whole);
        assert!(words(&[1.0, f32::NAN], &[2], &usual).contains("value 1 is NaN"));
        assert!(words(&[f32::INFINITY, 0.0], &[2], &usual).contains("value 0 is inf"));
        assert!(words(&[-3e38, 3e38], &[2], &usual).contains("no wider"));
        assert!(words(&[1.0], &[2], &usual).contains("1 values in the shape"));
        assert!(
            words(&[1.0], &[1], &options(9, Scheme::Affine, Per::Tensor, Extent::Whole)).contains("2 to 8")
        );
        assert!(
            words(&[1.0], &[1], &options(4, Scheme::Affine, Per::Channel(1), Extent::Whole))
                .contains("axis 1")
        );
        assert!(
            words(&[1.0], &[1], &options(4, Scheme::Affine, Per::Block(0), Extent::Whole))
                .contains("no values")
        );
        let grid = Grid::over(0.0, 1.0, 8, Scheme::Offset).unwrap();
        let with = |values: &[f32], grids| {
            Quantized::with(values, &[values.len()], 8, Scheme::Offset, Per::Tensor, grids, Rounding::Nearest)
        };
        assert!(with(&[f32::NAN], vec![grid]).unwrap_err().to_string().contains("value 0 is NaN"));
        assert!(with(&[1.0], vec![]).unwrap_err().to_string().contains("0 grids for 1"));
        assert_eq!(
            with(&[f32::INFINITY, -7.0], vec![grid]).unwrap().values(),
            [1.0, 0.0],
            "beyond the range"
        );
        // Constant and empty arrays are accepted.
        for scheme in [Scheme::Affine, Scheme::Symmetric, Scheme::Offset] {
            let of = |values: &[f32]| {
                let options = options(5, scheme, Per::Tensor, Extent::Best);
                Quantized::new(values, &[values.len()], &options).unwrap().values()
            };
            assert_eq!((of(&[0.0; 3]), of(&[])), (vec![0.0; 3], vec![]));
            assert!((of(&[-2.5; 3])[1] + 2.5).abs() < 1e-6);
        }
        let mut seen = Calibrator::new(4, Scheme::Affine, Extent::Whole, 2).unwrap();
        assert!(seen.observe(&[1.0; 3], 1).unwrap_err().to_string().contains("no whole number"));
        assert!(seen.grids().unwrap_err().to_string().contains("channel 0"));
    }
}
