//! Boxes of an array: large where it is smooth, small where it varies.
//!
//! Flow: an array, each chunk once -> mean and spread of blocks -> blocks joined eight by eight
//! while the result is smooth -> [`Boxes`], whose class is how often a block was joined.
//! Memory: a chunk (account `scratch`); three numbers for each block, and the boxes while they are
//! made (account `index`).
//!
//! An order that draws all classes equally often puts more patches where the array varies. A small
//! array, such as a coarse level of an image, is enough to compute the boxes.

use std::sync::{Mutex, PoisonError};
use tidegate_core::sync::lock;

use serde::Deserialize;
use tidegate_array::kernels::boxes::place;
use tidegate_array::kernels::convert::to_f32;
use tidegate_core::memory::Budget;

use super::Volume;
use crate::{Error, Result};
use tidegate_order::lattice::Boxes;
use tidegate_order::memory::reserve;

/// The options of [`Volume::refine`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smooth {
    /// The field of the volume.
    pub field: String,
    /// The largest standard deviation of a smooth box, in the units of the array.
    pub tolerance: f64,
    /// Voxels of the smallest box along each axis of the patch. Default: an eighth of the patch.
    pub block: Option<Vec<u64>>,
}

/// Values of a block: their number, mean, and sum of squared distances from it.
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    /// The union of both (Chan, Golub and LeVeque, 1983).
    fn with(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let apart = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + apart * other.count / count,
            squares: self.squares + other.squares + apart * apart * self.count * other.count / count,
        }
    }

    fn of(row: &[f32]) -> Self {
        let count = row.len() as f64;
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        Self { count, mean, squares: row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum() }
    }

    fn is_within(&self, tolerance: f64) -> bool {
        self.squares <= tolerance * tolerance * self.count
    }
}

impl Volume {
    /// Makes boxes, the larger the smoother the array is there. It reads the whole array once.
    ///
    /// # Errors
    /// [`Error::Config`] for a field with channels, a negative tolerance, and a budget without
    /// room; chunks that cannot be read; errors of `progress`.
    pub fn refine(
        &self,
        wanted: &Smooth,
        budget: &Budget,
        progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
    ) -> Result<Boxes> {
        let part = &self.parts[self.field(&wanted.field)?];
        let misfit = |what: &str| Error::Config(format!("array {:?}: {what}", wanted.field));
        let axes = part.shape.len();
        if axes != part.along.len() {
            return Err(misfit("it has more axes than the patch: name one without channels"));
        }
        if !(wanted.tolerance >= 0.0 && wanted.tolerance.is_finite()) {
            return Err(misfit("the tolerance is a standard deviation: a number that is not negative"));
        }
        let block: Vec<u64> = match &wanted.block {
            Some(block) if block.len() != axes || block.contains(&0) => {
                return Err(misfit("a block needs a length along each axis of the patch, at least 1"));
            }
            Some(block) => block.clone(),
            None => part.shape.iter().map(|side| (*side as u64 / 8).max(1)).collect(),
        };
        let shape = &part.array.shape;
        let block: Vec<u64> = block.iter().zip(shape).map(|(block, side)| *block.min(side)).collect();
        let sides: Vec<u64> = shape.iter().zip(&block).map(|(n, side)| n.div_ceil(*side)).collect();
        let count = sides.iter().fold(1u64, |n, side| n.saturating_mul(*side));
        // All coarser grids together take less than another.
        let bytes = count.saturating_mul(2 * size_of::<Option<Spread>>() as u64);
        let _grids = reserve(budget, bytes, "blocks of an array")?;
        let cells = Mutex::new(vec![Spread::default(); count as usize]);
        let row_bytes = part.array.chunk[axes - 1] * size_of::<f32>() as u64;
        // One thread: sums are the same each time.
        self.every_chunk(part, budget, 1, row_bytes, progress, &|chunk, values| {
            let mut cells = lock(&cells);
            let array = &part.array;
            let (at, size) = (array.at(chunk), array.dtype.size());
            let origin: Vec<u64> = at.iter().zip(&array.chunk).map(|(at, side)| at * side).collect();
            let inside: Vec<u64> =
                (0..axes).map(|d| array.chunk[d].min(shape[d].saturating_sub(origin[d]))).collect();
            let rows: u64 = inside[..axes - 1].iter().product();
            let mut numbers = vec![0.0f32; inside[axes - 1] as usize];
            for row in 0..rows {
                let index = place(row as usize, inside[..axes - 1].iter().map(|side| *side as usize));
                let (mut start, mut cell) = (0, 0);
                for d in 0..axes {
                    // Along the last axis a row starts with the chunk.
                    let index = if d + 1 < axes { index[d] as u64 } else { 0 };
                    start = start * array.chunk[d] + index;
                    let number = if d + 1 < axes { (origin[d] + index) / block[d] } else { 0 };
                    cell = cell * sides[d] + number;
                }
                let bytes = &values[start as usize * size..][..numbers.len() * size];
                to_f32(array.dtype, bytes, &mut numbers);
                let (mut from, end) = (origin[axes - 1], origin[axes - 1] + inside[axes - 1]);
                while from < end {
                    let number = from / block[axes - 1];
                    let to = ((number + 1) * block[axes - 1]).min(end);
                    let own = &numbers[(from - origin[axes - 1]) as usize..(to - origin[axes - 1]) as usize];
                    let cell = &mut cells[(cell + number) as usize];
                    *cell = cell.with(Spread::of(own));
                    from = to;
                }
            }
            Ok(())
        })?;
        let cells = cells.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut found = Found { shape, block: &block, boxes: Vec::new(), spans: Vec::new() };
        let _grant = Boxes::reserve(budget, count, axes)?;
        join(cells, sides, wanted.tolerance, &mut found);
        if found.spans.iter().any(|(low, _)| *low < 0) {
            return Err(misfit("boxes beyond voxel 2^31 cannot be drawn"));
        }
        Ok(Boxes::new(axes, &found.boxes, &found.spans)?)
    }
}

/// The boxes of all levels so far.
struct Found<'a> {
    shape: &'a [u64],
    block: &'a [u64],
    boxes: Vec<(i64, f32)>,
    spans: Vec<(i32, u32)>,
}

impl Found<'_> {
    /// A box of the grid of a level.
    fn push(&mut self, level: u32, at: &[usize]) {
        let mut voxels = 1.0;
        for (d, at) in at.iter().enumerate() {
            let side = self.block[d] << level;
            let low = *at as u64 * side;
            let len = side.min(self.shape[d] - low);
            // The caller reports a box beyond 2^31.
            let low = if u32::try_from(len).is_ok() { i32::try_from(low).unwrap_or(-1) } else { -1 };
            self.spans.push((low, len as u32));
            voxels *= len as f32;
        }
        self.boxes.push((i64::from(level), voxels));
    }
}

/// Joins blocks level by level; a block that is not joined becomes a box.
fn join(cells: Vec<Spread>, mut sides: Vec<u64>, tolerance: f64, found: &mut Found<'_>) {
    let axes = sides.len();
    let at = |cell: usize, sides: &[u64]| place(cell, sides.iter().map(|side| *side as usize));
    // The blocks that can still be joined.
    let mut cells: Vec<Option<Spread>> = cells.into_iter().map(Some).collect();
    for level in 0.. {
        let halved: Vec<u64> = sides.iter().map(|side| side.div_ceil(2)).collect();
        let last = halved == sides;
        let mut joined: Vec<Option<Spread>> =
            vec![Some(Spread::default()); halved.iter().product::<u64>() as usize];
        let parent =
            |at: &[usize]| at.iter().zip(&halved).fold(0, |cell, (at, side)| cell * *side as usize + at / 2);
        for (cell, spread) in cells.iter().enumerate() {
            let into = &mut joined[parent(&at(cell, &sides)[..axes])];
            *into = into.zip(*spread).map(|(a, b)| a.with(b));
        }
        for whole in &mut joined {
            *whole = whole.filter(|whole| !last && whole.is_within(tolerance));
        }
        for (cell, _) in cells.iter().enumerate().filter(|(_, spread)| spread.is_some()) {
            let at = at(cell, &sides);
            if joined[parent(&at[..axes])].is_none() {
                found.push(level, &at[..axes]);
            }
        }
        if joined.iter().all(Option::is_none) {
            return;
        }
        (cells, sides) = (joined, halved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One block of sixty-four by sixty-four varies; every voxel is in one box, and boxes are
    /// smaller the nearer to it.
    #[test]
    fn boxes_are_small_where_something_changes() {
        let sides = [16u64, 13];
        let rough = (5, 9);
        let cell = |y: u64, x: u64| match (y, x) == rough {
            true => Spread { count: 16.0, mean: 10.0, squares: 1600.0 },
            false => Spread { count: 16.0, mean: 1.0, squares: 0.0 },
        };
        let cells = (0..16 * 13).map(|i| cell(i / 13, i % 13)).collect();
        let mut found = Found { shape: &[64, 50], block: &[4, 4], boxes: vec![], spans: vec![] };
        join(cells, sides.to_vec(), 0.5, &mut found);
        let mut covered = vec![0; 64 * 50];
        for (i, spans) in found.spans.chunks(2).enumerate() {
            let ((y, h), (x, w)) = (spans[0], spans[1]);
            for at in (y as usize..y as usize + h as usize)
                .flat_map(|y| (x as usize..x as usize + w as usize).map(move |x| y * 50 + x))
            {
                covered[at] += 1;
            }
            assert_eq!(found.boxes[i].1, (h * w) as f32);
        }
        assert!(covered.iter().all(|times| *times == 1));
        let of = |level| found.boxes.iter().filter(|(class, _)| *class == level).count();
        // The rough block and its three neighbours; then three times four, and what is left.
        assert_eq!((of(0), of(1), of(2)), (4, 3, 3));
        let smooth = |spread: f64| Spread { count: 4.0, mean: 0.0, squares: 4.0 * spread * spread };
        assert!(smooth(0.5).is_within(0.5) && !smooth(0.51).is_within(0.5));
    }
}
