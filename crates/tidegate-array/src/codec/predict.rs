//! Predictors of floats by those around them, and back: what is left, in steps, is small where the array is smooth.
//!
//! Flow: floats of arrays of one shape, a step -> integers, and which floats no step is near enough to -> and back.
//! Memory: the floats once more while they are packed, and a part of them for each predictor that is tried.
//!
//! Differences of steps along one, two or three axes are the Lorenzo predictor (Ibarria et al., 2003): steps are counted first, so that what
//! follows is without loss (as cuSZ has it, Tian et al., 2020). Interpolation foretells each second place from the others, on ever finer grids,
//! by cubics where four are there, and from what they will be once they are unpacked, so that errors do not add up (as SZ3 does, Zhao et al., 2021).

use pco::data_types::Number;

/// Axes along which is predicted, at most.
pub(super) const AXES_MOST: usize = 3;
/// Values, at least, that say how the others are predicted.
const SAMPLE: usize = 1 << 18;
/// Places along the first axis, at least, that say it.
const SIDE_LEAST: usize = 16;
/// The code of interpolation; those below are numbers of axes.
const INTERPOLATED: u8 = AXES_MOST as u8 + 1;
/// Steps that an integer counts, so that differences along three axes wrap to what they were.
const STEPS_MOST: f64 = (1 << 30) as f64;

/// A float.
pub(super) trait Float: bytemuck::Pod + PartialEq + Number {
    fn to_f64(self) -> f64;
    fn of(value: f64) -> Self;
}

impl Float for f32 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as Self
    }
}

impl Float for f64 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
}

/// How far apart values may lie that one integer stands for, and how far from it they may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    step: f64,
    error: f64,
    /// Steps of a difference of 1.
    each: f64,
}

/// The nearest whole number, of numbers below 2^51: without a call on any processor.
#[inline(always)]
fn whole(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    (x + ROUND) - ROUND
}

impl Steps {
    pub(super) fn new(step: f64, error: f64) -> Self {
        Self { step, error, each: if step > 0.0 { 1.0 / step } else { 0.0 } }
    }

    /// The number of steps from what was foretold to a value, and what it will be; nothing where that is not within the bound.
    #[inline(always)]
    fn nearest<T: Float>(self, value: T, foretold: f64) -> Option<(i32, T)> {
        let value = value.to_f64();
        let steps = whole((value - foretold) * self.each);
        let came = came(foretold, steps, self.step);
        // False for what is no number.
        let sound = steps.abs() < STEPS_MOST && (T::to_f64(came) - value).abs() <= self.error;
        sound.then_some((steps as i32, came))
    }
}

/// What so many steps from what was foretold are.
#[inline(always)]
fn came<T: Float>(foretold: f64, steps: f64, step: f64) -> T {
    T::of(foretold + steps * step)
}

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    /// Each less the one before along so many of the last axes, one after the other.
    Differences(usize),
    /// Each less what those around it say.
    Interpolation,
}

/// Integers, and the places of values that they do not stand for, in ascending order.
pub(super) type Packed = (Vec<i32>, Vec<usize>);

impl Predictor {
    /// The one that leaves least of some of the values.
    pub(super) fn best<T: Float>(values: &[T], shape: &[usize], steps: Steps) -> Self {
        // The beginning of an array says it of the rest, and some small ones of the others.
        let mut shape = shape.to_vec();
        if let Some((first, inner)) = shape.split_first_mut() {
            *first = (*first).min(SAMPLE.div_ceil(inner.iter().product::<usize>().max(1)).max(SIDE_LEAST));
        }
        let shape = &shape[..];
        let places = shape.iter().product::<usize>().max(1);
        let sample = &values[..values.len().min(places * SAMPLE.div_ceil(places))];
        // About the bits that they take.
        let cost = |(left, apart): &Packed| -> u64 {
            let bits = |steps: &i32| u64::from(u32::BITS - (2 * steps.unsigned_abs()).leading_zeros());
            left.iter().map(bits).sum::<u64>() + 64 * apart.len() as u64
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

    /// How it is stored.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Differences(axes) => axes as u8,
            Self::Interpolation => INTERPOLATED,
        }
    }

    /// What is stored so, for arrays of so many axes.
    pub(super) fn of(code: u8, axes: usize) -> Option<Self> {
        match code {
            INTERPOLATED if axes > 0 => Some(Self::Interpolation),
            code if usize::from(code) <= axes => Some(Self::Differences(usize::from(code))),
            _ => None,
        }
    }

    /// Leaves what was not foretold.
    pub(super) fn pack<T: Float>(self, values: &[T], shape: &[usize], steps: Steps) -> Packed {
        let (mut left, mut apart) = (vec![0; values.len()], Vec::new());
        match self {
            Self::Differences(axes) => {
                // What goes apart is as the one before, from which it differs least.
                let mut before = 0;
                for (at, (value, left)) in values.iter().zip(&mut left).enumerate() {
                    match steps.nearest(*value, 0.0) {
                        Some((steps, _)) => before = steps,
                        None => apart.push(at),
                    }
                    *left = before;
                }
                (0..axes).for_each(|axis| differences(&mut left, shape, axis));
            }
            Self::Interpolation => {
                let grid = Grid::of(shape);
                let mut known = vec![T::of(0.0); grid.places];
                for (start, (values, left)) in (0..)
                    .step_by(grid.places)
                    .zip(values.chunks_exact(grid.places).zip(left.chunks_exact_mut(grid.places)))
                {
                    grid.interpolate(&mut known, |at, foretold| match steps.nearest(values[at], foretold) {
                        Some((steps, came)) => {
                            left[at] = steps;
                            came
                        }
                        None => {
                            apart.push(start + at);
                            T::of(foretold)
                        }
                    });
                }
                apart.sort_unstable();
            }
        }
        (left, apart)
    }

    /// Undoes it, but for what lies apart.
    pub(super) fn unpack<T: Float>(self, left: &mut [i32], shape: &[usize], step: f64, into: &mut [T]) {
        match self {
            Self::Differences(axes) => {
                (0..axes).rev().for_each(|axis| sums(left, shape, axis));
                into.iter_mut()
                    .zip(left)
                    .for_each(|(value, steps)| *value = came(0.0, f64::from(*steps), step));
            }
            Self::Interpolation => {
                let grid = Grid::of(shape);
                for (values, left) in into.chunks_exact_mut(grid.places).zip(left.chunks_exact(grid.places)) {
                    grid.interpolate(values, |at, foretold| came(foretold, f64::from(left[at]), step));
                }
            }
        }
    }
}

/// Each element less the one before it along an axis, counted from the last one; whole arrays of the shape follow one another.
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

/// Places along an axis, counted from the last one, and elements from one to the next.
fn along(shape: &[usize], axis: usize) -> (usize, usize) {
    let at = shape.len() - 1 - axis;
    (shape[at], shape[at + 1..].iter().product())
}

/// An array of three axes, the first ones of a single place where it has fewer.
#[derive(Debug)]
struct Grid {
    sides: [usize; AXES_MOST],
    strides: [usize; AXES_MOST],
    places: usize,
}

impl Grid {
    fn of(shape: &[usize]) -> Self {
        let mut sides = [1; AXES_MOST];
        sides[AXES_MOST - shape.len()..].copy_from_slice(shape);
        let strides = [sides[1] * sides[2], sides[2], 1];
        Self { sides, strides, places: sides.iter().product::<usize>().max(1) }
    }

    /// Visits all places, those first that foretell others: `each` is told a place and what is foretold of it, and says what it is.
    fn interpolate<T: Float>(&self, known: &mut [T], mut each: impl FnMut(usize, f64) -> T) {
        known[0] = each(0, 0.0);
        let most = self.sides.into_iter().max().unwrap_or(1);
        let mut step = most.next_power_of_two() / 2;
        while step > 0 {
            (0..AXES_MOST).for_each(|axis| self.refine(known, step, axis, &mut each));
            step /= 2;
        }
    }

    /// The places at an odd number of steps along an axis: of those on the finer grid along the axes before it, and on the coarser grid along
    /// those behind.
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
                    let foretold = foretell(known, at, reach, index, step, self.sides[axis]);
                    known[at] = each(at, if foretold.is_finite() { foretold } else { 0.0 });
                }
            }
        }
    }
}

/// What the places one and three steps before and behind say of one.
#[inline(always)]
fn foretell<T: Float>(known: &[T], at: usize, reach: usize, index: usize, step: usize, side: usize) -> f64 {
    let place = |at: usize| known[at].to_f64();
    let before = place(at - reach);
    if index + step >= side {
        return before;
    }
    let behind = place(at + reach);
    if index < 3 * step || index + 3 * step >= side {
        return (before + behind) * 0.5;
    }
    let far = place(at - 3 * reach) + place(at + 3 * reach);
    (9.0 * (before + behind) - far) * 0.0625
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
                if Predictor::of(predictor.code(), shape.len()).is_none() {
                    prop_assert!(shape.is_empty() && predictor == Predictor::Interpolation);
                    continue;
                }
                prop_assert_eq!(Predictor::of(predictor.code(), shape.len()), Some(predictor));
                let (mut left, apart) = predictor.pack(&values, &shape, Steps::new(STEP, 0.010_001));
                let mut found = vec![0f32; count];
                predictor.unpack(&mut left, &shape, STEP, &mut found);
                for (at, (value, found)) in values.iter().zip(&found).enumerate() {
                    let near = (f64::from(*value) - f64::from(*found)).abs() <= 0.010_001;
                    prop_assert!(near || apart.binary_search(&at).is_ok(), "{:?}: {} became {}", predictor, value, found);
                }
                prop_assert!(wild || apart.is_empty());
            }
        }
    }

    #[test]
    fn what_is_smooth_is_foretold() {
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
