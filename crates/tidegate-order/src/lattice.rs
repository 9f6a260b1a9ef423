//! Places of patches in a volume: the lattice of origins, chunks of it, and boxes with classes.
//!
//! Flow: the volume's geometry -> [`Lattice`], [`ChunkGrid`]; labels -> [`Boxes`]; read by the
//! orders of patches and by the sources of volumes.
//! Memory: [`Boxes`] take 8 bytes a box and axis, 4 a box for its weight and 256 a class. The
//! caller pays while they are made ([`Boxes::reserve`]), an order of patches while it lives
//! (account `index`).
//! Not here: which place is drawn when (`patches`, `morton`); where boxes come from (the source of
//! volumes, the user).

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use crate::error::{Error, Result};
use crate::memory::reserve;

/// Origins of patches along one axis, in voxels of the array that the boxes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lattice {
    /// The origin of the first patch.
    pub first: i64,
    /// The distance from one origin to the next.
    pub step: i64,
    /// The number of origins.
    pub count: u64,
    /// The distance from the first origin to the last, whose step may be shorter than `step`.
    pub room: i64,
    /// Voxels of a patch.
    pub patch: i64,
}

impl Lattice {
    /// The origin of the patch with this number.
    pub fn origin(&self, number: u64) -> i64 {
        self.first + (number.cast_signed() * self.step).min(self.room)
    }

    /// The numbers of the first and last patch that contain a box, or are inside a larger box.
    ///
    /// Where there is no such patch, the nearest one.
    pub(crate) fn around(&self, low: i64, len: i64) -> (u64, u64) {
        let ends = [low, low + len - self.patch];
        let (from, to) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        let last = self.count.cast_signed() - 1;
        let up = |at: i64| -(self.first - at).div_euclid(self.step);
        let min = up(from).clamp(0, last);
        // The step to the last origin may be shorter than the others.
        let max = match to - self.first {
            at if at >= self.room => last,
            at => at.div_euclid(self.step).clamp(0, (last - 1).max(0)),
        };
        (min.min(max).cast_unsigned(), max.cast_unsigned())
    }
}

/// The ids of patches as a grid in C order, and how many of them begin in a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkGrid {
    /// Patches along each axis.
    pub counts: Vec<u64>,
    /// Patches that begin in a chunk along each axis, at least 1.
    pub steps: Vec<u64>,
}

impl ChunkGrid {
    /// The Morton code (Z order) of the chunk in which the patch of an id begins.
    pub(crate) fn morton_code(&self, mut id: u64) -> u128 {
        let axes = self.counts.len();
        let mut code = 0u128;
        for axis in (0..axes).rev() {
            let chunk = id % self.counts[axis] / self.steps[axis];
            id /= self.counts[axis];
            for bit in 0..(128 / axes).min(64) {
                code |= u128::from(chunk >> bit & 1) << (bit * axes + (axes - 1 - axis));
            }
        }
        code
    }
}

/// Memory of the tables of one class.
const CLASS_BYTES: usize = 256;

/// A class with the number of its boxes and the sum of their weights.
pub type ClassSum = (i64, usize, f64);

/// Boxes of several classes, sorted by class.
#[derive(Debug)]
pub struct Boxes {
    axes: usize,
    /// The first voxel and the number of voxels along each axis, box by box.
    spans: Box<[(i32, u32)]>,
    weights: Box<[f32]>,
    /// Each class with the index of its first box. The last entry is the number of boxes.
    classes: Box<[(i64, usize)]>,
    digest: u64,
}

impl Boxes {
    /// Boxes in any order: the class and weight of each, and its spans along each of `axes` axes.
    ///
    /// A span is the first voxel and the number of voxels; `spans` has `axes` of them a box.
    ///
    /// # Errors
    /// [`Error::Config`] when there are no boxes, for a box without voxels, and for a weight that
    /// is not positive and finite.
    pub fn new(axes: usize, boxes: &[(i64, f32)], spans: &[(i32, u32)]) -> Result<Self> {
        check_boxes(axes, boxes, spans)?;
        // Sorted, so that the boxes do not depend on the order in which they were found.
        let span_of = |i: u32| &spans[i as usize * axes..(i as usize + 1) * axes];
        let mut order: Vec<u32> = (0..boxes.len() as u32).collect();
        order.sort_by(|&a, &b| (boxes[a as usize].0, span_of(a)).cmp(&(boxes[b as usize].0, span_of(b))));
        let mut digest = axes as u64;
        let mut classes: Vec<(i64, usize)> = Vec::new();
        let mut sorted = Vec::with_capacity(spans.len());
        let mut weights = Vec::with_capacity(boxes.len());
        for (nth, &i) in order.iter().enumerate() {
            let (class, weight) = boxes[i as usize];
            if classes.last().is_none_or(|(last, _)| *last != class) {
                classes.push((class, nth));
            }
            let own = span_of(i);
            sorted.extend_from_slice(own);
            weights.push(weight);
            digest = splitmix64_finalize(digest ^ class.cast_unsigned()).rotate_left(1)
                ^ u64::from(weight.to_bits());
            own.iter().for_each(|&(low, len)| {
                digest = splitmix64_finalize(digest ^ (u64::from(low.cast_unsigned()) << 32 | u64::from(len)))
            });
        }
        classes.push((0, boxes.len()));
        let (spans, weights, classes) = (sorted.into(), weights.into(), classes.into());
        Ok(Self { axes, spans, weights, classes, digest })
    }

    /// Bytes a box while boxes are made, including the caller's lists. Made boxes take less.
    const fn making_bytes(axes: usize) -> u64 {
        // Lists grow by doubling.
        2 * (16 + 8 * axes as u64) + 8 + 8 * axes as u64
    }

    /// Reserves the memory of making this many boxes; hold the grant until they are made.
    ///
    /// # Errors
    /// [`Error::Budget`] when they do not fit.
    pub fn reserve(budget: &Budget, boxes: u64, axes: usize) -> Result<Grant> {
        reserve(budget, boxes.saturating_mul(Self::making_bytes(axes)), "the boxes of labels")
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        (self.len() * (8 * self.axes + 4) + self.classes.len() * CLASS_BYTES) as u64
    }

    /// The number of boxes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are no boxes, which [`Boxes::new`] refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The number of axes.
    #[must_use]
    pub fn axes(&self) -> usize {
        self.axes
    }

    /// Each class with the number of its boxes and the sum of their weights.
    #[must_use]
    pub fn classes(&self) -> Vec<ClassSum> {
        let sum = |weights: &[f32]| weights.iter().map(|&weight| f64::from(weight)).sum();
        self.class_ranges().map(|(class, _, weights)| (class, weights.len(), sum(weights))).collect()
    }

    /// Each class with the index of its first box and the weights of its boxes.
    pub(crate) fn class_ranges(&self) -> impl Iterator<Item = (i64, usize, &[f32])> {
        self.classes.windows(2).map(|pair| (pair[0].0, pair[0].1, &self.weights[pair[0].1..pair[1].1]))
    }

    /// The box at index `i`: class, weight, and first voxel and number of voxels along each axis.
    #[must_use]
    pub fn get(&self, i: usize) -> (i64, f32, &[(i32, u32)]) {
        let class = self.classes.partition_point(|(_, start)| *start <= i).max(1) - 1;
        (self.classes[class].0, self.weights[i], self.spans(i))
    }

    /// The first voxel and the number of voxels of the box at index `i` along each axis.
    pub(crate) fn spans(&self, i: usize) -> &[(i32, u32)] {
        &self.spans[i * self.axes..(i + 1) * self.axes]
    }

    /// A hash of classes, weights and spans.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

fn check_boxes(axes: usize, boxes: &[(i64, f32)], spans: &[(i32, u32)]) -> Result<()> {
    let count = boxes.len();
    if axes == 0 || spans.len() != count * axes {
        return Err(Error::Config(format!("{} spans for {count} boxes of {axes} axes", spans.len())));
    }
    if boxes.is_empty() || count >= u32::MAX as usize {
        return Err(Error::Config(format!("{count} boxes: give at least one and fewer than 2^32")));
    }
    if let Some(i) = spans.iter().position(|span| span.1 == 0) {
        return Err(Error::Config(format!("box {} has no voxels along axis {}", i / axes, i % axes)));
    }
    if let Some(i) = boxes.iter().position(|(_, weight)| !(*weight > 0.0 && weight.is_finite())) {
        return Err(Error::Config(format!(
            "the weight of box {i} is {}: weights are finite and positive",
            boxes[i].1
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lattice(count: u64, patch: i64) -> Lattice {
        spaced(0, 1, count, patch)
    }

    fn spaced(first: i64, step: i64, count: u64, patch: i64) -> Lattice {
        Lattice { first, step, count, room: (count.cast_signed() - 1) * step, patch }
    }

    #[test]
    fn patches_contain_the_box_or_are_inside_it() {
        for (lattice, low, len, expected) in [
            (lattice(91, 10), 20, 4, (14, 20)),
            (lattice(91, 10), 0, 4, (0, 0)),
            (lattice(91, 10), 96, 4, (90, 90)),
            (lattice(91, 10), 20, 30, (20, 40)),
            (spaced(3, 4, 10, 16), 20, 4, (2, 4)),
            // No patch contains all of the box: the nearest one.
            (spaced(0, 64, 10, 64), 60, 8, (0, 0)),
            (spaced(-5, 1, 100, 10), 0, 1, (0, 5)),
            // The last of four origins is at 92, not at 120.
            (Lattice { room: 92, ..spaced(0, 40, 4, 8) }, 93, 2, (3, 3)),
            (Lattice { room: 92, ..spaced(0, 40, 4, 8) }, 82, 2, (2, 2)),
        ] {
            let (min, max) = lattice.around(low, len);
            assert_eq!((min, max), expected, "{lattice:?} {low} {len}");
        }
    }

    #[test]
    fn names_boxes_that_cannot_be_drawn() {
        for (boxes, spans, word) in [
            (vec![], vec![], "0 boxes"),
            (vec![(1, 1.0)], vec![(0, 0)], "no voxels along axis 0"),
            (vec![(1, f32::NAN)], vec![(0, 1)], "NaN"),
            (vec![(1, 1.0)], vec![], "0 spans"),
        ] {
            assert!(Boxes::new(1, &boxes, &spans).unwrap_err().to_string().contains(word));
        }
    }
}
