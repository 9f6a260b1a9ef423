//! Wavelet transforms of N-d arrays by lifting: the coarse array first, then its details.
//!
//! Flow: numbers -> for each level, along each axis: sums in the first half, differences in the
//! second -> and back.
//! Memory: the caller's, and [`scratch_len`] numbers of scratch.
//!
//! Sums keep the scale of the numbers (a constant stays the same), so the coarse array can be used
//! directly. Integers are restored exactly by lifting (Calderbank et al., 1998): integer CDF 5/3
//! is JPEG 2000's lossless transform, Haar the S-transform. An odd length has one more sum than
//! differences, and borders are mirrored.

use bytemuck::Pod;

use super::boxes::place;

/// Adjacent numbers processed together.
const ABREAST: usize = 64;

/// The wavelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wavelet {
    /// Means and differences of adjacent pairs.
    Haar,
    /// Cohen–Daubechies–Feauveau 5/3: differences from the line between two neighbours.
    Cdf53,
}

/// Numbers that can be lifted.
pub trait Lift: Pod {
    /// `odd` minus the prediction from its even neighbours.
    fn difference(wavelet: Wavelet, odd: Self, before: Self, after: Self) -> Self;
    /// Inverts [`Lift::difference`].
    fn odd(wavelet: Wavelet, difference: Self, before: Self, after: Self) -> Self;
    /// `even` plus its share of the differences on both sides.
    fn sum(wavelet: Wavelet, even: Self, before: Self, after: Self) -> Self;
    /// Inverts [`Lift::sum`].
    fn even(wavelet: Wavelet, sum: Self, before: Self, after: Self) -> Self;
}

impl Lift for f32 {
    #[inline(always)]
    fn difference(wavelet: Wavelet, odd: Self, before: Self, after: Self) -> Self {
        match wavelet {
            Wavelet::Haar => odd - before,
            Wavelet::Cdf53 => odd - (before + after) * 0.5,
        }
    }
    #[inline(always)]
    fn odd(wavelet: Wavelet, difference: Self, before: Self, after: Self) -> Self {
        match wavelet {
            Wavelet::Haar => difference + before,
            Wavelet::Cdf53 => difference + (before + after) * 0.5,
        }
    }
    #[inline(always)]
    fn sum(wavelet: Wavelet, even: Self, before: Self, after: Self) -> Self {
        match wavelet {
            Wavelet::Haar => even + after * 0.5,
            Wavelet::Cdf53 => even + (before + after) * 0.25,
        }
    }
    #[inline(always)]
    fn even(wavelet: Wavelet, sum: Self, before: Self, after: Self) -> Self {
        match wavelet {
            Wavelet::Haar => sum - after * 0.5,
            Wavelet::Cdf53 => sum - (before + after) * 0.25,
        }
    }
}

/// Sums of numbers near the limits of the type wrap, and are restored exactly all the same.
impl Lift for i32 {
    #[inline(always)]
    fn difference(wavelet: Wavelet, odd: Self, before: Self, after: Self) -> Self {
        match wavelet {
            Wavelet::Haar => odd.wrapping_sub(before),
            Wavelet::Cdf53 => odd.wrapping_sub(before.wrapping_add(after) >> 1),
        }
    }
    #[inline(always)]
    fn odd(wavelet: Wavelet, difference: Self, before: Self, after: Self) -> Self {
        match wavelet {
            Wavelet::Haar => difference.wrapping_add(before),
            Wavelet::Cdf53 => difference.wrapping_add(before.wrapping_add(after) >> 1),
        }
    }
    #[inline(always)]
    fn sum(wavelet: Wavelet, even: Self, before: Self, after: Self) -> Self {
        even.wrapping_add(share(wavelet, before, after))
    }
    #[inline(always)]
    fn even(wavelet: Wavelet, sum: Self, before: Self, after: Self) -> Self {
        sum.wrapping_sub(share(wavelet, before, after))
    }
}

/// An even number's share of the differences on both sides.
#[inline(always)]
fn share(wavelet: Wavelet, before: i32, after: i32) -> i32 {
    match wavelet {
        Wavelet::Haar => after >> 1,
        Wavelet::Cdf53 => before.wrapping_add(after).wrapping_add(2) >> 2,
    }
}

/// Numbers of scratch that an array of this shape needs.
#[must_use]
pub fn scratch_len(shape: &[usize]) -> usize {
    (shape.iter().max().copied().unwrap_or(0) + 1) * ABREAST
}

/// The shape of the coarse array after this many levels.
#[must_use]
pub fn coarse(shape: &[usize], levels: u32) -> Vec<usize> {
    shape.iter().map(|side| (0..levels).fold(*side, |side, _| side.div_ceil(2))).collect()
}

/// Replaces an array by its wavelet transform. The coarse array is in the first corner and has
/// [`coarse`] sides.
///
/// # Panics
/// If `values` does not have the shape's length, `scratch` has fewer than [`scratch_len`] numbers,
/// or the shape has more than eight axes.
///
/// ```
/// use tidegate_array::kernels::wavelet::{Wavelet, forward, inverse, scratch_len};
/// let mut x = [1, 3, 7, 7];
/// let mut scratch = vec![0; scratch_len(&[4])];
/// forward(&mut x, &[4], Wavelet::Haar, 1, &mut scratch);
/// assert_eq!(x, [2, 7, 2, 0]);
/// inverse(&mut x, &[4], Wavelet::Haar, 1, &mut scratch);
/// assert_eq!(x, [1, 3, 7, 7]);
/// ```
pub fn forward<T: Lift>(values: &mut [T], shape: &[usize], wavelet: Wavelet, levels: u32, scratch: &mut [T]) {
    for level in 0..levels {
        let sides = coarse(shape, level);
        (0..shape.len()).for_each(|axis| {
            lines(values, shape, &sides, axis, scratch, |rows, scratch| rows.split(wavelet, scratch))
        });
    }
}

/// Inverts [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn inverse<T: Lift>(values: &mut [T], shape: &[usize], wavelet: Wavelet, levels: u32, scratch: &mut [T]) {
    for level in (0..levels).rev() {
        let sides = coarse(shape, level);
        (0..shape.len()).rev().for_each(|axis| {
            lines(values, shape, &sides, axis, scratch, |rows, scratch| rows.join(wavelet, scratch))
        });
    }
}

/// Rows of an array at a regular distance, and the range of columns to process.
struct Rows<'a, T> {
    values: &'a mut [T],
    step: usize,
    count: usize,
    width: usize,
}

/// Calls `each` with all lines of the box of `sides` along an axis, several at a time if they are
/// adjacent.
fn lines<T: Lift>(
    values: &mut [T],
    shape: &[usize],
    sides: &[usize],
    axis: usize,
    scratch: &mut [T],
    mut each: impl FnMut(&mut Rows<'_, T>, &mut [T]),
) {
    assert_eq!(
        values.len(),
        shape.iter().product::<usize>(),
        "there must be as many numbers as the shape needs"
    );
    let last = shape.len() - 1;
    let (count, step) = (sides[axis], shape[axis + 1..].iter().product::<usize>());
    if count < 2 || sides.contains(&0) {
        return;
    }
    let columns = if axis == last { 1 } else { sides[last] };
    let others: Vec<usize> = (0..shape.len()).filter(|other| *other != axis && *other != last).collect();
    let total: usize = others.iter().map(|other| sides[*other]).product();
    for number in 0..total {
        let at = place(number, others.iter().map(|other| sides[*other]));
        let steps = others.iter().map(|other| shape[other + 1..].iter().product::<usize>());
        let start: usize = steps.zip(at).map(|(step, at)| step * at).sum();
        for from in (0..columns).step_by(ABREAST) {
            let width = ABREAST.min(columns - from);
            each(&mut Rows { values: &mut values[start + from..], step, count, width }, scratch);
        }
    }
}

impl<T: Lift> Rows<'_, T> {
    /// Transforms even and odd rows to sums and differences.
    fn split(&mut self, wavelet: Wavelet, scratch: &mut [T]) {
        if self.step == 1 {
            return split_line(&mut self.values[..self.count], wavelet, scratch);
        }
        let Self { values, step, count, width } = self;
        let (step, count, width) = (*step, *count, *width);
        let (evens, odds) = (count.div_ceil(2), count / 2);
        for (i, row) in scratch.chunks_exact_mut(width).take(count).enumerate() {
            row.copy_from_slice(&values[i * step..][..width]);
        }
        let row = |i: usize| &scratch[i * width..][..width];
        for i in 0..odds {
            let (before, after) = (row(2 * i), row(if 2 * i + 2 < count { 2 * i + 2 } else { 2 * i }));
            let into = &mut values[(evens + i) * step..][..width];
            for (((to, odd), before), after) in into.iter_mut().zip(row(2 * i + 1)).zip(before).zip(after) {
                *to = T::difference(wavelet, *odd, *before, *after);
            }
        }
        for i in 0..evens {
            let alone = wavelet == Wavelet::Haar && i >= odds;
            let (sums, differences) = values.split_at_mut(evens * step);
            let difference = |i: usize| &differences[i.min(odds - 1) * step..][..width];
            let (before, after) = (difference(i.saturating_sub(1)), difference(i));
            let into = &mut sums[i * step..][..width];
            if alone {
                into.copy_from_slice(row(2 * i));
                continue;
            }
            for (((to, even), before), after) in into.iter_mut().zip(row(2 * i)).zip(before).zip(after) {
                *to = T::sum(wavelet, *even, *before, *after);
            }
        }
    }

    /// Inverts [`Rows::split`].
    fn join(&mut self, wavelet: Wavelet, scratch: &mut [T]) {
        if self.step == 1 {
            return join_line(&mut self.values[..self.count], wavelet, scratch);
        }
        let Self { values, step, count, width } = self;
        let (step, count, width) = (*step, *count, *width);
        let (evens, odds) = (count.div_ceil(2), count / 2);
        let (sums, differences) = values.split_at(evens * step);
        for i in 0..evens {
            let alone = wavelet == Wavelet::Haar && i >= odds;
            let difference = |i: usize| &differences[i.min(odds - 1) * step..][..width];
            let (before, after) = (difference(i.saturating_sub(1)), difference(i));
            let (sum, into) = (&sums[i * step..][..width], &mut scratch[2 * i * width..][..width]);
            if alone {
                into.copy_from_slice(sum);
                continue;
            }
            for (((to, sum), before), after) in into.iter_mut().zip(sum).zip(before).zip(after) {
                *to = T::even(wavelet, *sum, *before, *after);
            }
        }
        for i in 0..odds {
            let next = if 2 * i + 2 < count { 2 * i + 2 } else { 2 * i };
            let (first, rest) = scratch.split_at_mut((2 * i + 1) * width);
            let (into, rest) = rest.split_at_mut(width);
            let before = &first[2 * i * width..];
            let after = if next > 2 * i { &rest[..width] } else { before };
            let difference = &differences[i * step..][..width];
            for (((to, difference), before), after) in into.iter_mut().zip(difference).zip(before).zip(after)
            {
                *to = T::odd(wavelet, *difference, *before, *after);
            }
        }
        for (i, row) in scratch.chunks_exact(width).take(count).enumerate() {
            values[i * step..][..width].copy_from_slice(row);
        }
    }
}

/// The same for a single line: separates even from odd first, so that adjacent numbers are
/// processed together.
fn split_line<T: Lift>(line: &mut [T], wavelet: Wavelet, scratch: &mut [T]) {
    let (odds, evens) = (line.len() / 2, line.len().div_ceil(2));
    // One element more than needed: the last one is repeated at the end.
    let (even, odd) = scratch[..line.len() + 1].split_at_mut(evens + 1);
    for ((even, odd), pair) in even.iter_mut().zip(odd.iter_mut()).zip(line.as_chunks::<2>().0) {
        (*even, *odd) = (pair[0], pair[1]);
    }
    even[evens - 1] = line[2 * evens - 2];
    even[evens] = even[evens - 1];
    let (sums, differences) = line.split_at_mut(evens);
    for (((to, odd), before), after) in
        differences.iter_mut().zip(odd.iter()).zip(even.iter()).zip(&even[1..])
    {
        *to = T::difference(wavelet, *odd, *before, *after);
    }
    sums[0] = T::sum(wavelet, even[0], differences[0], differences[0]);
    let neighbours = differences.iter().zip(&differences[1..]);
    for ((to, even), (before, after)) in sums[1..].iter_mut().zip(&even[1..]).zip(neighbours) {
        *to = T::sum(wavelet, *even, *before, *after);
    }
    if evens > odds {
        let last = evens - 1;
        let alone = wavelet == Wavelet::Haar;
        let difference = differences[odds - 1];
        sums[last] = if alone { even[last] } else { T::sum(wavelet, even[last], difference, difference) };
    }
}

fn join_line<T: Lift>(line: &mut [T], wavelet: Wavelet, scratch: &mut [T]) {
    let (odds, evens) = (line.len() / 2, line.len().div_ceil(2));
    let (sums, differences) = line.split_at(evens);
    let even = &mut scratch[..=evens];
    even[0] = T::even(wavelet, sums[0], differences[0], differences[0]);
    let neighbours = differences.iter().zip(&differences[1..]);
    for ((to, sum), (before, after)) in even[1..].iter_mut().zip(&sums[1..]).zip(neighbours) {
        *to = T::even(wavelet, *sum, *before, *after);
    }
    if evens > odds {
        let (sum, difference) = (sums[evens - 1], differences[odds - 1]);
        let alone = wavelet == Wavelet::Haar;
        even[evens - 1] = if alone { sum } else { T::even(wavelet, sum, difference, difference) };
    }
    even[evens] = even[evens - 1];
    let odd = &mut scratch[evens + 1..][..odds];
    odd.copy_from_slice(differences);
    let (even, odd) = scratch.split_at(evens + 1);
    for (pair, ((difference, before), after)) in
        line.as_chunks_mut::<2>().0.iter_mut().zip(odd.iter().zip(even).zip(&even[1..]))
    {
        *pair = [*before, T::odd(wavelet, *difference, *before, *after)];
    }
    if evens > odds {
        line[2 * evens - 2] = even[evens - 1];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = Wavelet> {
        prop_oneof![Just(Wavelet::Haar), Just(Wavelet::Cdf53)]
    }

    proptest! {
        #[test]
        fn integers_come_back_exactly(
            shape in prop::collection::vec(1usize..9, 1..4), wide in 1usize..150, levels in 0u32..4, wavelet in kind(), seed: u64,
        ) {
            let shape = [&shape[..], &[wide]].concat();
            let count: usize = shape.iter().product();
            let before: Vec<i32> =
                (0..count as u64).map(|i| ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as i32).collect();
            let (mut values, mut scratch) = (before.clone(), vec![0; scratch_len(&shape)]);
            forward(&mut values, &shape, wavelet, levels, &mut scratch);
            inverse(&mut values, &shape, wavelet, levels, &mut scratch);
            prop_assert_eq!(values, before);
        }

        /// A constant is unchanged, and CDF 5/3 of a line has no differences except at the border.
        #[test]
        fn what_is_smooth_has_no_differences(len in 4usize..200, wavelet in kind()) {
            let mut scratch = vec![0.0; scratch_len(&[len])];
            let mut values = vec![3.5f32; len];
            forward(&mut values, &[len], wavelet, 2, &mut scratch);
            let low = coarse(&[len], 2)[0];
            prop_assert!(values[..low].iter().all(|x| *x == 3.5) && values[low..].iter().all(|x| *x == 0.0));
            let mut ramp: Vec<f32> = (0..len).map(|i| i as f32).collect();
            forward(&mut ramp, &[len], Wavelet::Cdf53, 1, &mut scratch);
            prop_assert!(ramp[len.div_ceil(2)..len - 1].iter().all(|x| *x == 0.0));
        }
    }

    /// The coarse corner of two axes holds the means of 2 × 2 squares.
    #[test]
    fn haar_is_means_along_all_axes() {
        let before: Vec<f32> = (0..48).map(|i| ((i * 37) % 53) as f32).collect();
        let (mut values, mut scratch) = (before.clone(), vec![0.0; scratch_len(&[6, 8])]);
        forward(&mut values, &[6, 8], Wavelet::Haar, 1, &mut scratch);
        for y in 0..3 {
            for x in 0..4 {
                let at = |dy: usize, dx: usize| before[(2 * y + dy) * 8 + 2 * x + dx];
                let mean = (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0;
                assert_eq!(values[y * 8 + x], mean);
            }
        }
    }
}
