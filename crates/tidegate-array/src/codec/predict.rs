//! Predictors of floats from their neighbours: smooth arrays leave small residuals.
//!
//! Flow: floats of arrays of one shape, a step -> integer residuals and the indices of outliers,
//! which no step represents within the bound -> and back.
//! Memory: a copy of the floats while packing, and a copy of a sample for each predictor tried.
//!
//! Differences of steps along one, two or three axes are the Lorenzo predictor (Ibarria et al.,
//! 2003). Values are quantized to steps first, so that the differences are lossless (as in cuSZ,
//! Tian et al., 2020). Interpolation predicts every second position from the others, on ever finer
//! grids, by cubics where four neighbours exist. It predicts from unpacked values, so that errors
//! do not add up (as in SZ3, Zhao et al., 2021).

use pco::data_types::Number;

/// The most axes that a predictor uses.
pub(super) const AXES_MOST: usize = 3;
/// The fewest values that the choice of a predictor looks at.
const SAMPLE: usize = 1 << 18;
/// The fewest positions along the first axis that it looks at.
const SIDE_LEAST: usize = 16;
/// The stored code of interpolation; smaller codes are numbers of axes.
const INTERPOLATED: u8 = AXES_MOST as u8 + 1;
/// The most steps that an integer counts, so that differences along three axes wrap back.
const STEPS_MOST: f64 = (1 << 30) as f64;

/// A float that the codec packs.
pub(super) trait Float: bytemuck::Pod + PartialEq + Number {
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

impl Float for f32 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as Self
    }
}

impl Float for f64 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
}

/// The quantization: the step between representable values, and the allowed error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    step: f64,
    error: f64,
    /// Steps per unit.
    each: f64,
}

/// The nearest whole number, for |x| below 2^51: compiles to plain additions on any processor.
#[inline(always)]
fn whole(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    (x + ROUND) - ROUND
}

impl Steps {
    pub(super) fn new(step: f64, error: f64) -> Self {
        Self { step, error, each: if step > 0.0 { 1.0 / step } else { 0.0 } }
    }

    /// The number of steps from the prediction to a value, and the value that unpacking restores;
    /// `None` if that is not within the bound.
    #[inline(always)]
    fn nearest<T: Float>(self, value: T, predicted: f64) -> Option<(i32, T)> {
        let value = value.to_f64();
        let steps = whole((value - predicted) * self.each);
        let restored = restore(predicted, steps, self.step);
        // False for NaN.
        let sound = steps.abs() < STEPS_MOST && (T::to_f64(restored) - value).abs() <= self.error;
        sound.then_some((steps as i32, restored))
    }
}

/// The value that is `steps` steps from the prediction.
#[inline(always)]
fn restore<T: Float>(predicted: f64, steps: f64, step: f64) -> T {
    T::from_f64(predicted + steps * step)
}

/// How values are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    /// Differences along this many of the last axes, one axis after the other.
    Differences(usize),
    /// Interpolation from the values around each.
    Interpolation,
}

/// Integer residuals, and the indices of outliers in ascending order.
pub(super) type Packed = (Vec<i32>, Vec<usize>);

impl Predictor {
    /// The predictor that leaves the smallest residuals on a sample of the values.
    pub(super) fn best<T: Float>(values: &[T], shape: &[usize], steps: Steps) -> Self {
        // Large arrays are represented by their beginning; of small ones several are taken whole.
        let mut shape = shape.to_vec();
        if let Some((first, inner)) = shape.split_first_mut() {
            *first = (*first).min(SAMPLE.div_ceil(inner.iter().product::<usize>().max(1)).max(SIDE_LEAST));
        }
        let shape = &shape[..];
        let places = shape.iter().product::<usize>().max(1);
        let sample = &values[..values.len().min(places * SAMPLE.div_ceil(places))];
        // An estimate of the bits that they take.
        let cost = |(residuals, outliers): &Packed| -> u64 {
            let bits = |steps: &i32| u64::from(u32::BITS - (2 * steps.unsigned_abs()).leading_zeros());
            residuals.iter().map(bits).sum::<u64>() + 64 * outliers.len() as u64
        };
        let others = (1..=shape.len()).map(Self::Differences);
        let others = others.chain(if shape.is_empty() { None } else { Some(Self::Interpolation) });
        let (mut best, mut least) =
            (Self::Differences(0), cost(&Self::Differences(0).pack(sample, shape, steps)));
        for predictor in others {
            let this = cost(&predictor.pack(sample, shape, steps));
            if this < least {
                (best, least) = (predictor, this);
            }
        }
        best
    }

    /// The stored code.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Differences(axes) => axes as u8,
            Self::Interpolation => INTERPOLATED,
        }
    }

    /// The predictor of a stored code, for arrays of `axes` axes.
    pub(super) fn from_code(code: u8, axes: usize) -> Option<Self> {
        match code {
            INTERPOLATED if axes > 0 => Some(Self::Interpolation),
            code if usize::from(code) <= axes => Some(Self::Differences(usize::from(code))),
            _ => None,
        }
    }

    /// Computes the residuals.
    pub(super) fn pack<T: Float>(self, values: &[T], shape: &[usize], steps: Steps) -> Packed {
        let (mut residuals, mut outliers) = (vec![0; values.len()], Vec::new());
        match self {
            Self::Differences(axes) => {
                // The integer of an outlier repeats the previous one, because that difference is
                // smallest.
                let mut before = 0;
                for (at, (value, residual)) in values.iter().zip(&mut residuals).enumerate() {
                    match steps.nearest(*value, 0.0) {
                        Some((steps, _)) => before = steps,
                        None => outliers.push(at),
                    }
                    *residual = before;
                }
                (0..axes).for_each(|axis| differences(&mut residuals, shape, axis));
            }
            Self::Interpolation => {
                let grid = Grid::new(shape);
                let mut known = vec![T::from_f64(0.0); grid.places];
                for (start, (values, residuals)) in (0..)
                    .step_by(grid.places)
                    .zip(values.chunks_exact(grid.places).zip(residuals.chunks_exact_mut(grid.places)))
                {
                    grid.interpolate(&mut known, |at, predicted| {
                        match steps.nearest(values[at], predicted) {
                            Some((steps, restored)) => {
                                residuals[at] = steps;
                                restored
                            }
                            None => {
                                outliers.push(start + at);
                                T::from_f64(predicted)
                            }
                        }
                    });
                }
                outliers.sort_unstable();
            }
        }
        (residuals, outliers)
    }

    /// Restores the values from residuals, except for outliers.
    pub(super) fn unpack<T: Float>(self, residuals: &mut [i32], shape: &[usize], step: f64, into: &mut [T]) {
        match self {
            Self::Differences(axes) => {
                (0..axes).rev().for_each(|axis| sums(residuals, shape, axis));
                into.iter_mut()
                    .zip(residuals)
                    .for_each(|(value, steps)| *value = restore(0.0, f64::from(*steps), step));
            }
            Self::Interpolation => {
                let grid = Grid::new(shape);
                for (values, residuals) in
                    into.chunks_exact_mut(grid.places).zip(residuals.chunks_exact(grid.places))
                {
                    grid.interpolate(values, |at, predicted| {
                        restore(predicted, f64::from(residuals[at]), step)
                    });
                }
            }
        }
    }
}

/// Replaces each element by its difference from the one before it along an axis, counted from the
/// last one. `steps` holds whole arrays of the shape, one after the other.
fn differences(steps: &mut [i32], shape: &[usize], axis: usize) {
    let (side, inner) = along(shape, axis);
    for whole in steps.chunks_mut((side * inner).max(1)) {
        for at in (inner..whole.len()).rev() {
            whole[at] = whole[at].wrapping_sub(whole[at - inner]);
        }
    }
}

/// Undoes [`differences`].
fn sums(steps: &mut [i32], shape: &[usize], axis: usize) {
    let (side, inner) = along(shape, axis);
    for whole in steps.chunks_mut((side * inner).max(1)) {
        for at in inner..whole.len() {
            whole[at] = whole[at].wrapping_add(whole[at - inner]);
        }
    }
}

/// Positions along an axis (counted from the last one), and the stride from one to the next.
fn along(shape: &[usize], axis: usize) -> (usize, usize) {
    let at = shape.len() - 1 - axis;
    (shape[at], shape[at + 1..].iter().product())
}

/// The shape of an array with three axes; missing leading axes have length 1.
#[derive(Debug)]
struct Grid {
    sides: [usize; AXES_MOST],
    strides: [usize; AXES_MOST],
    places: usize,
}

impl Grid {
    fn new(shape: &[usize]) -> Self {
        let mut sides = [1; AXES_MOST];
        sides[AXES_MOST - shape.len()..].copy_from_slice(shape);
        let strides = [sides[1] * sides[2], sides[2], 1];
        Self { sides, strides, places: sides.iter().product::<usize>().max(1) }
    }

    /// Visits all positions, coarse ones first: `each` receives a position and its prediction, and
    /// returns its value.
    fn interpolate<T: Float>(&self, known: &mut [T], mut each: impl FnMut(usize, f64) -> T) {
        known[0] = each(0, 0.0);
        let most = self.sides.into_iter().max().unwrap_or(1);
        let mut step = most.next_power_of_two() / 2;
        while step > 0 {
            (0..AXES_MOST).for_each(|axis| self.refine(known, step, axis, &mut each));
            step /= 2;
        }
    }

    /// Visits the positions at an odd number of steps along an axis. They are on the finer grid
    /// along the axes before it, and on the coarser grid along the axes after it.
    #[inline(always)]
    fn refine<T: Float>(
        &self,
        known: &mut [T],
        step: usize,
        axis: usize,
        each: &mut impl FnMut(usize, f64) -> T,
    ) {
        let every: [(usize, usize); AXES_MOST] = std::array::from_fn(|other| match other.cmp(&axis) {
            std::cmp::Ordering::Less => (0, step),
            std::cmp::Ordering::Equal => (step, 2 * step),
            std::cmp::Ordering::Greater => (0, 2 * step),
        });
        let reach = step * self.strides[axis];
        for x in (every[0].0..self.sides[0]).step_by(every[0].1) {
            for y in (every[1].0..self.sides[1]).step_by(every[1].1) {
                let line = x * self.strides[0] + y * self.strides[1];
                for z in (every[2].0..self.sides[2]).step_by(every[2].1) {
                    let (at, index) = (line + z, [x, y, z][axis]);
                    let predicted = predict(known, at, reach, index, step, self.sides[axis]);
                    known[at] = each(at, if predicted.is_finite() { predicted } else { 0.0 });
                }
            }
        }
    }
}

/// The prediction from the positions one and three steps before and after.
#[inline(always)]
fn predict<T: Float>(known: &[T], at: usize, reach: usize, index: usize, step: usize, side: usize) -> f64 {
    let place = |at: usize| known[at].to_f64();
    let before = place(at - reach);
    if index + step >= side {
        return before;
    }
    let after = place(at + reach);
    if index < 3 * step || index + 3 * step >= side {
        return (before + after) * 0.5;
    }
    let far = place(at - 3 * reach) + place(at + 3 * reach);
    (9.0 * (before + after) - far) * 0.0625
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: f64 = 0.02;

    proptest! {
        #[test]
        fn floats_come_back_within_the_bound(shape in proptest::collection::vec(1usize..12, 0..4), arrays in 0usize..4, seed: u64, wild: bool) {
            let count = arrays * shape.iter().product::<usize>();
            let drawn = |i: usize| {
                let drawn = tidegate_core::hash::splitmix64(seed ^ i as u64);
                if wild { f32::from_bits(drawn as u32) } else { (drawn >> 40) as f32 / 1e6 }
            };
            let values: Vec<f32> = (0..count).map(drawn).collect();
            for predictor in (0..=shape.len()).map(Predictor::Differences).chain([Predictor::Interpolation]) {
                if Predictor::from_code(predictor.code(), shape.len()).is_none() {
                    prop_assert!(shape.is_empty() && predictor == Predictor::Interpolation);
                    continue;
                }
                prop_assert_eq!(Predictor::from_code(predictor.code(), shape.len()), Some(predictor));
                let (mut residuals, outliers) = predictor.pack(&values, &shape, Steps::new(STEP, 0.010_001));
                let mut found = vec![0f32; count];
                predictor.unpack(&mut residuals, &shape, STEP, &mut found);
                for (at, (value, found)) in values.iter().zip(&found).enumerate() {
                    let near = (f64::from(*value) - f64::from(*found)).abs() <= 0.010_001;
                    prop_assert!(near || outliers.binary_search(&at).is_ok(), "{:?}: {} became {}", predictor, value, found);
                }
                prop_assert!(wild || outliers.is_empty());
            }
        }
    }

    #[test]
    fn smooth_arrays_are_interpolated() {
        let wave = |x: usize, y: usize| ((x as f64 * 0.1).sin() * (y as f64 * 0.07).cos() * 10.0) as f32;
        let values: Vec<f32> = (0..64 * 64).map(|i| wave(i / 64, i % 64)).collect();
        assert_eq!(
            Predictor::best(&values, &[64, 64], Steps::new(STEP, 0.010_001)),
            Predictor::Interpolation
        );
        let noise: Vec<f32> =
            (0..4096).map(|i| (tidegate_core::hash::splitmix64(i) % 1000) as f32 - 500.0).collect();
        assert_eq!(Predictor::best(&noise, &[4096], Steps::new(STEP, 0.010_001)), Predictor::Differences(0));
    }
}
