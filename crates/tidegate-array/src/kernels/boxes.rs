//! Boxes of N-d arrays: copying them between arrays, and padding beyond the borders.
//!
//! Flow: a chunk and a patch, both in C order -> their intersection, copied.
//! Memory: the caller's, and at most [`MOST_AXES`] numbers.
//!
//! An axis that the box fully covers in both arrays is merged with the axis before it, so that
//! each copied run is as long as possible.

use std::ops::Range;

/// The most axes of an array.
pub const MOST_AXES: usize = 8;

/// One number per axis.
pub type Axes = [usize; MOST_AXES];

/// The coordinates of the element with this number, in C order, in a grid of these sides.
///
/// # Panics
/// If there are more than [`MOST_AXES`] axes, or an axis of length 0.
///
/// ```
/// use tidegate_array::kernels::boxes::place;
/// assert_eq!(place(11, [3, 4].into_iter())[..2], [2, 3]);
/// ```
pub fn place(mut number: usize, sides: impl DoubleEndedIterator<Item = usize> + ExactSizeIterator) -> Axes {
    let mut at = [0; MOST_AXES];
    for (axis, side) in sides.enumerate().rev() {
        at[axis] = number % side;
        number /= side;
    }
    at
}

/// A box's first corner in an array.
#[derive(Debug, Clone, Copy)]
pub struct Corner<'a> {
    /// The array's shape, in elements.
    pub shape: &'a [usize],
    /// Coordinates of the first element of the box.
    pub at: &'a [usize],
}

/// Copies a box of `extent` elements, `size` bytes each, from one array into another.
///
/// # Panics
/// If the box is not inside both arrays, there are more than [`MOST_AXES`] axes, or the numbers of
/// axes differ.
///
/// ```
/// use tidegate_array::kernels::boxes::{Corner, copy};
/// let from: Vec<u8> = (0..12).collect();
/// let mut into = [0u8; 4];
/// let first = Corner { shape: &[3, 4], at: &[1, 1] };
/// copy(&from, first, &mut into, Corner { shape: &[2, 2], at: &[0, 0] }, &[2, 2], 1);
/// assert_eq!(into, [5, 6, 9, 10]);
/// ```
pub fn copy(
    from: &[u8],
    source: Corner<'_>,
    into: &mut [u8],
    target: Corner<'_>,
    extent: &[usize],
    size: usize,
) {
    let axes = extent.len();
    for corner in [&source, &target] {
        assert!(corner.shape.len() == axes && corner.at.len() == axes && axes <= MOST_AXES, "axes");
        let inside = corner.at.iter().zip(extent).zip(corner.shape).all(|((at, n), side)| at + n <= *side);
        assert!(inside, "the box must be within both arrays");
    }
    if extent.contains(&0) {
        return;
    }
    // Merges the last axis with those before it that are fully covered.
    let mut inner = axes;
    let mut run = size;
    while inner > 0 {
        inner -= 1;
        run *= extent[inner];
        if extent[inner] != source.shape[inner] || extent[inner] != target.shape[inner] {
            break;
        }
    }
    let (steps, steps_into) = (strides(source.shape, size), strides(target.shape, size));
    let start = |corner: &Corner<'_>, steps: &Axes| -> usize {
        corner.at.iter().zip(steps).map(|(at, step)| at * step).sum()
    };
    let (mut a, mut b) = (start(&source, &steps), start(&target, &steps_into));
    // The axis before the inner run has its own loop.
    let rows = if inner > 0 {
        inner -= 1;
        Runs { count: extent[inner], run, step: steps[inner], step_into: steps_into[inner] }
    } else {
        Runs { count: 1, run, step: 0, step_into: 0 }
    };
    let mut index: Axes = [0; MOST_AXES];
    loop {
        rows.copy(&from[a..], &mut into[b..]);
        let mut axis = inner;
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            a += steps[axis];
            b += steps_into[axis];
            if index[axis] < extent[axis] {
                break;
            }
            a -= steps[axis] * extent[axis];
            b -= steps_into[axis] * extent[axis];
            index[axis] = 0;
        }
    }
}

/// Runs of bytes at a regular distance.
struct Runs {
    count: usize,
    run: usize,
    step: usize,
    step_into: usize,
}

impl Runs {
    fn copy(&self, from: &[u8], into: &mut [u8]) {
        // A short run of known length compiles to a move; a function call would take longer.
        match self.run {
            16 => self.copy_known::<16>(from, into),
            32 => self.copy_known::<32>(from, into),
            64 => self.copy_known::<64>(from, into),
            128 => self.copy_known::<128>(from, into),
            run => {
                for i in 0..self.count {
                    let (a, b) = (i * self.step, i * self.step_into);
                    into[b..b + run].copy_from_slice(&from[a..a + run]);
                }
            }
        }
    }

    fn copy_known<const RUN: usize>(&self, from: &[u8], into: &mut [u8]) {
        for i in 0..self.count {
            let (a, b) = (i * self.step, i * self.step_into);
            if let (Some(from), Some(into)) =
                (from[a..].first_chunk::<RUN>(), into[b..].first_chunk_mut::<RUN>())
            {
                *into = *from;
            }
        }
    }
}

/// Strides of an array in C order, in bytes.
fn strides(shape: &[usize], size: usize) -> Axes {
    let mut steps = [0; MOST_AXES];
    let mut step = size;
    for axis in (0..shape.len()).rev() {
        steps[axis] = step;
        step *= shape[axis];
    }
    steps
}

/// The source of elements beyond an array's borders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond<'a> {
    /// This element, everywhere.
    Constant(&'a [u8]),
    /// The nearest element of the array.
    Edge,
    /// The array mirrored at its border, without repeating the border: NumPy's `reflect`.
    Reflect,
}

/// Fills the elements outside the box `inside` of an array, one axis after the other.
///
/// # Panics
/// If the box is not inside the array, or `bytes` does not have the shape's length.
///
/// ```
/// use tidegate_array::kernels::boxes::{Beyond, extend};
/// let mut row = *b"..abcd.";
/// extend(&mut row, &[7], &[2..6], 1, Beyond::Reflect);
/// assert_eq!(&row, b"cbabcdc");
/// ```
pub fn extend(bytes: &mut [u8], shape: &[usize], inside: &[Range<usize>], size: usize, beyond: Beyond<'_>) {
    assert_eq!(
        bytes.len(),
        shape.iter().product::<usize>() * size,
        "`bytes` must have the length that the shape needs"
    );
    assert_eq!(shape.len(), inside.len(), "axes");
    let mut below = size;
    // From the last axis to the first: what is filled along one axis is inside for the axes before
    // it.
    for axis in (0..shape.len()).rev() {
        let (len, Range { start, end }) = (shape[axis], inside[axis].clone());
        assert!(start <= end && end <= len, "the box must be within the array");
        if start > 0 || end < len {
            for slab in bytes.chunks_exact_mut(below * len) {
                for at in (0..start).chain(end..len) {
                    match (beyond, nearest(at, start, end, beyond == Beyond::Reflect)) {
                        (Beyond::Constant(element), _) => {
                            slab[at * below..(at + 1) * below]
                                .chunks_exact_mut(size)
                                .for_each(|place| place.copy_from_slice(element));
                        }
                        (_, Some(from)) => slab.copy_within(from * below..(from + 1) * below, at * below),
                        (_, None) => slab[at * below..(at + 1) * below].fill(0),
                    }
                }
            }
        }
        below *= len;
    }
}

/// The index within `start..end` that an index outside maps to.
fn nearest(at: usize, start: usize, end: usize, reflect: bool) -> Option<usize> {
    let len = end - start;
    if len == 0 {
        return None;
    }
    if !reflect || len == 1 {
        return Some(at.clamp(start, end - 1));
    }
    // Mirrors repeatedly if the border is wider than the inside.
    let period = 2 * (len - 1);
    let from = (at as i64 - start as i64).rem_euclid(period as i64) as usize;
    Some(start + from.min(period - from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All coordinates within a shape.
    fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
        shape.iter().fold(vec![vec![]], |all, &n| {
            all.iter().flat_map(|head| (0..n).map(|i| [&head[..], &[i]].concat())).collect()
        })
    }

    fn place(shape: &[usize], index: &[usize]) -> usize {
        shape.iter().zip(index).fold(0, |at, (n, i)| at * n + i)
    }

    prop_compose! {
        /// (shape of one, corner in it, shape of the other, corner in it, extent)
        fn common()(axes in 1usize..5)(
            extent in prop::collection::vec(0usize..5, axes),
            margins in prop::collection::vec(prop::collection::vec(0usize..3, 4), axes),
        ) -> [Vec<usize>; 5] {
            let sum = |i: usize, j: usize| margins.iter().zip(&extent).map(|(r, n)| r[i] + r[j] + n).collect();
            let at = |i: usize| margins.iter().map(|r| r[i]).collect();
            [sum(0, 1), at(0), sum(2, 3), at(2), extent.clone()]
        }
    }

    proptest! {
        #[test]
        fn boxes_are_copied_as_index_by_index([a, at, b, into_at, extent] in common(), size in 1usize..5) {
            let bytes = |shape: &[usize]| shape.iter().product::<usize>() * size;
            let from: Vec<u8> = (0..bytes(&a)).map(|i| (i * 7 + 1) as u8).collect();
            let mut into = vec![0; bytes(&b)];
            let mut naive = into.clone();
            copy(&from, Corner { shape: &a, at: &at }, &mut into, Corner { shape: &b, at: &into_at }, &extent, size);
            let shifted = |index: &[usize], by: &[usize]| -> Vec<usize> { index.iter().zip(by).map(|(i, b)| i + b).collect() };
            for index in indices(&extent) {
                let (x, y) = (place(&a, &shifted(&index, &at)) * size, place(&b, &shifted(&index, &into_at)) * size);
                naive[y..y + size].copy_from_slice(&from[x..x + size]);
            }
            prop_assert_eq!(into, naive);
        }

        #[test]
        fn borders_are_filled_as_index_by_index(
            inside in prop::collection::vec((0usize..5, 1usize..4, 0usize..5), 1..4), how in 0usize..3,
        ) {
            let shape: Vec<usize> = inside.iter().map(|(a, n, b)| a + n + b).collect();
            let inside: Vec<_> = inside.iter().map(|(a, n, _)| *a..a + n).collect();
            let mut bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| (i + 1) as u8).collect();
            let before = bytes.clone();
            let beyond = [Beyond::Constant(&[200]), Beyond::Edge, Beyond::Reflect][how];
            extend(&mut bytes, &shape, &inside, 1, beyond);
            for index in indices(&shape) {
                let walked: Vec<usize> = index.iter().zip(&inside).map(|(&i, r)| {
                    // A walk that reverses at the borders.
                    let (mut at, mut step) = (r.start as i64, 1);
                    let last = r.end as i64 - 1;
                    if beyond == Beyond::Edge || r.len() == 1 { return i.clamp(r.start, r.end - 1) }
                    let steps = if i >= r.start { i - r.start } else { 2 * (r.len() - 1) * 10 - (r.start - i) };
                    for _ in 0..steps {
                        if at + step > last || at + step < r.start as i64 { step = -step }
                        at += step;
                    }
                    at as usize
                }).collect();
                let own = index.iter().zip(&inside).all(|(i, r)| r.contains(i));
                let expected = if beyond == Beyond::Constant(&[200]) && !own { 200 } else { before[place(&shape, &walked)] };
                prop_assert_eq!(bytes[place(&shape, &index)], expected, "{:?}", index);
            }
        }
    }
}
