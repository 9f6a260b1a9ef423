//! Elastic deformations: every voxel is sampled at a small displacement from its own position.
//!
//! Flow: a random displacement at each point of a coarse grid -> cubic B-splines between them ->
//! the voxel at the displaced position.
//! Memory: the caller's: three numbers for each point of the grid and of one line of it, and eight
//! for each voxel of a row.
//!
//! Sources: random displacements of a grid, Ronneberger et al., «U-Net», MICCAI 2015; B-splines
//! between them, Rueckert et al., IEEE Trans. Med. Imaging 18 (1999), which read four points an
//! axis. Displacements are in space, so fields of other resolutions that share the geometry are
//! deformed alike.

use tidegate_array::kernels::convert::Number;

use super::frame::{AXES, Frame};
use super::turn::Turn;
use tidegate_order::random::Stream;

/// Points of a grid at most: as many as one random stream can fill.
pub(super) const POINTS_MOST: usize = 1 << 15;

/// The grid of a deformation, in voxels of the field that defines the geometry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    /// The size of that field's patch in voxels.
    pub(super) patch: [usize; AXES],
    /// Voxels between two points.
    pub(super) spacing: [f32; AXES],
    /// Standard deviation of displacements, in voxels.
    pub(super) deviation: [f32; AXES],
}

impl Grid {
    /// Points along each axis.
    fn counts(&self) -> [usize; AXES] {
        std::array::from_fn(|axis| {
            ((self.patch[axis] as f32 / self.spacing[axis]).ceil() as usize).saturating_add(3)
        })
    }

    /// The number of points; saturating.
    pub(super) fn points(&self) -> usize {
        self.counts().iter().fold(1, |n: usize, count| n.saturating_mul(*count))
    }

    /// The length of the scratch that a deformation needs, in numbers, for rows of `row` voxels.
    pub(super) fn scratch_len(&self, row: usize) -> usize {
        AXES * (self.points() + self.counts()[2]) + 8 * row
    }

    /// Draws the displacements into the beginning of `scratch`.
    pub(super) fn draw(&self, stream: &mut Stream, scratch: &mut [f32]) {
        for (points, deviation) in scratch.chunks_exact_mut(self.points()).zip(self.deviation) {
            stream.normals(points);
            points.iter_mut().for_each(|x| *x *= deviation);
        }
    }
}

/// The four grid points that influence a position, and their weights.
#[derive(Debug, Clone, Copy)]
struct Taps {
    points: [usize; 4],
    weights: [f32; 4],
}

impl Taps {
    /// The taps at position `at`, in units of points, on an axis of `count` points.
    fn new(at: f32, count: usize) -> Self {
        let first = below(at);
        let t = at - first as f32;
        let (t2, s) = (t * t, 1.0 - t);
        let t3 = t2 * t;
        let weights = [
            s * s * s / 6.0,
            (3.0 * t3 - 6.0 * t2 + 4.0) / 6.0,
            (3.0 * t2 - 3.0 * t3 + 3.0 * t + 1.0) / 6.0,
            t3 / 6.0,
        ];
        let last = count as i32 - 1;
        Self { points: std::array::from_fn(|i| (first + i as i32).clamp(0, last) as usize), weights }
    }

    /// Writes the taps as floats, to be read again for each row.
    fn put(self, into: &mut [f32; 8]) {
        into[..4].copy_from_slice(&self.weights);
        into.iter_mut().skip(4).zip(self.points).for_each(|(to, point)| *to = point as f32);
    }

    fn from_floats(from: &[f32; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = *from;
        Self { points: [e as usize, f as usize, g as usize, h as usize], weights: [a, b, c, d] }
    }

    /// The weighted sum of the points of a line.
    fn sum(&self, line: &[f32]) -> f32 {
        let (p, w) = (self.points, self.weights);
        w[0] * line[p[0]] + w[1] * line[p[1]] + w[2] * line[p[2]] + w[3] * line[p[3]]
    }
}

/// The floor of `x`. `f32::floor` is a function call on processors without SSE 4.1.
fn below(x: f32) -> i32 {
    let whole = x as i32;
    whole - i32::from((whole as f32) > x)
}

/// A deformation and a rotation of one field.
#[derive(Debug)]
pub(super) struct Warp<'a> {
    pub(super) frame: &'a Frame,
    pub(super) turn: Turn,
    pub(super) grid: Grid,
    /// Voxels of the field for each voxel of the field whose geometry it shares.
    pub(super) ratio: [f32; AXES],
}

impl Warp<'_> {
    /// Calls `each` with the index of every delivered voxel and its position in the stored patch,
    /// along the stored axes. Whole numbers are centres of voxels.
    fn positions(&self, scratch: &mut [f32], mut each: impl FnMut(usize, [f32; AXES])) {
        let (points, counts) = (self.grid.points(), self.grid.counts());
        let (grids, rest) = scratch.split_at_mut(AXES * points);
        let (line, table) = rest.split_at_mut(AXES * counts[2]);
        let frame = self.frame;
        let begin = frame.begin();
        // The distance from the middle of the patch, in voxels.
        let away = |axis: usize, at: usize| (at + begin[axis]) as f32 + 0.5 - 0.5 * frame.stored[axis] as f32;
        let near = |axis: usize, away: f32| {
            let at = away / self.ratio[axis] + 0.5 * self.grid.patch[axis] as f32;
            Taps::new(at / self.grid.spacing[axis], counts[axis])
        };
        let (table, _) = table.as_chunks_mut::<8>();
        for (x, entry) in table.iter_mut().take(frame.delivered[2]).enumerate() {
            near(2, away(2, x)).put(entry);
        }
        let mut number = 0;
        for z in 0..frame.delivered[0] {
            let away_z = away(0, z);
            let near_z = near(0, away_z);
            for y in 0..frame.delivered[1] {
                let away_y = away(1, y);
                let near_y = near(1, away_y);
                line.fill(0.0);
                for (grid, line) in grids.chunks_exact(points).zip(line.chunks_exact_mut(counts[2])) {
                    for (z, by_z) in near_z.points.iter().zip(near_z.weights) {
                        for (y, by_y) in near_y.points.iter().zip(near_y.weights) {
                            let weight = by_z * by_y;
                            let row = &grid[(z * counts[1] + y) * counts[2]..][..counts[2]];
                            line.iter_mut().zip(row).for_each(|(to, x)| *to += weight * x);
                        }
                    }
                }
                let (line_z, rest) = line.split_at(counts[2]);
                let (line_y, line_x) = rest.split_at(counts[2]);
                for (x, entry) in table.iter().take(frame.delivered[2]).enumerate() {
                    let near = Taps::from_floats(entry);
                    let away = [
                        away_z + near.sum(line_z) * self.ratio[0],
                        away_y + near.sum(line_y) * self.ratio[1],
                        away(2, x) + near.sum(line_x) * self.ratio[2],
                    ];
                    let mut position = [0.0; AXES];
                    for axis in 0..AXES {
                        let (along, away) = (self.turn.axis[axis], away[axis]);
                        position[along] = 0.5 * frame.stored[along] as f32 - 0.5
                            + if self.turn.back[axis] { -away } else { away };
                    }
                    each(number, position);
                    number += 1;
                }
            }
        }
    }

    /// Samples the nearest voxels.
    pub(super) fn nearest<T: Copy>(&self, scratch: &mut [f32], from: &[T], into: &mut [T]) {
        let stored = self.frame.stored;
        let (voxels, delivered) = self.frame.voxels();
        self.positions(scratch, |number, position| {
            let at: [usize; AXES] = std::array::from_fn(|axis| {
                below(position[axis] + 0.5).clamp(0, stored[axis] as i32 - 1) as usize
            });
            let at = (at[0] * stored[1] + at[1]) * stored[2] + at[2];
            for (from, into) in from.chunks_exact(voxels).zip(into.chunks_exact_mut(delivered)) {
                into[number] = from[at];
            }
        });
    }

    /// Interpolates linearly between eight voxels. Beyond the patch, its border voxels continue.
    pub(super) fn linear<T: Number>(&self, scratch: &mut [f32], from: &[T], into: &mut [f32]) {
        let stored = self.frame.stored;
        let (voxels, delivered) = self.frame.voxels();
        self.positions(scratch, |number, position| {
            let (mut low, mut high, mut part) = ([0; AXES], [0; AXES], [0.0; AXES]);
            for axis in 0..AXES {
                let (cell, last) = (below(position[axis]), stored[axis] as i32 - 1);
                part[axis] = position[axis] - cell as f32;
                low[axis] = cell.clamp(0, last) as usize;
                high[axis] = cell.saturating_add(1).clamp(0, last) as usize;
            }
            let row = |z: usize, y: usize| (z * stored[1] + y) * stored[2];
            let rows =
                [row(low[0], low[1]), row(low[0], high[1]), row(high[0], low[1]), row(high[0], high[1])];
            for (from, into) in from.chunks_exact(voxels).zip(into.chunks_exact_mut(delivered)) {
                let between = |a: f32, b: f32, part: f32| a + part * (b - a);
                let [a, b, c, d] = rows
                    .map(|row| between(from[row + low[2]].to_f32(), from[row + high[2]].to_f32(), part[2]));
                into[number] = between(between(a, b, part[1]), between(c, d, part[1]), part[0]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_order::random::Purpose;

    fn grid(deviation: f32) -> Grid {
        Grid { patch: [12, 16, 16], spacing: [4.0; 3], deviation: [deviation; 3] }
    }

    /// Without displacements, a warp is a rotation; with equal displacements everywhere, a shift,
    /// because B-splines sum to one.
    #[test]
    fn displacements_that_are_equal_shift() {
        let frame = Frame { stored: [12, 16, 16], delivered: [6, 8, 8] };
        let turn = Turn { axis: [0, 2, 1], back: [true, true, false] };
        let warp = Warp { frame: &frame, turn, grid: grid(0.0), ratio: [1.0; 3] };
        let from: Vec<u16> = (0..12 * 16 * 16).collect();
        let mut scratch = vec![0.0; warp.grid.scratch_len(8)];
        let mut turned = [0.0; 6 * 8 * 8];
        turn.copy(&frame, &from, &mut turned, f32::from);
        let mut warped = [1.0; 6 * 8 * 8];
        warp.linear(&mut scratch, &from, &mut warped);
        assert_eq!(turned, warped);
        // One voxel and a half along the first axis, which is stored backwards.
        scratch[..warp.grid.points()].fill(1.5);
        warp.linear(&mut scratch, &from, &mut warped);
        turned.iter().zip(warped).for_each(|(a, b)| assert!((a - 1.5 * 256.0 - b).abs() < 0.01, "{a} {b}"));
    }

    /// A coarse label volume is deformed like the fine one from which it was made.
    #[test]
    fn resolutions_are_deformed_alike() {
        let (fine, coarse) = (
            Frame { stored: [24, 32, 32], delivered: [24, 32, 32] },
            Frame { stored: [12, 16, 16], delivered: [12, 16, 16] },
        );
        let grid = Grid { patch: fine.stored, spacing: [8.0; 3], deviation: [2.0; 3] };
        let warp = |frame, ratio| Warp { frame, turn: Turn::NONE, grid, ratio: [ratio; 3] };
        let mut scratch = vec![0.0; grid.scratch_len(32)];
        grid.draw(&mut Stream::new(3, 0, 9, 0, Purpose::Elastic), &mut scratch);
        // A ramp along y: the position of a coarse voxel is half that of a fine one.
        let ramp = |frame: &Frame| -> Vec<f32> {
            let [z, y, x] = frame.stored;
            let scale = 32.0 / y as f32;
            (0..z * y * x).map(|i| (((i / x) % y) as f32 + 0.5) * scale).collect()
        };
        let mut of_fine = vec![0.0; 24 * 32 * 32];
        warp(&fine, 1.0).linear(&mut scratch, &ramp(&fine), &mut of_fine);
        let mut of_coarse = vec![0.0; 12 * 16 * 16];
        warp(&coarse, 0.5).linear(&mut scratch, &ramp(&coarse), &mut of_coarse);
        let mut moved = 0.0f32;
        for z in 0..12 {
            for y in 3..13 {
                for x in 0..16 {
                    let fine = |dz: usize, dy: usize, dx: usize| {
                        of_fine[((2 * z + dz) * 32 + 2 * y + dy) * 32 + 2 * x + dx]
                    };
                    let mean: f32 = (0..8).map(|i| fine(i / 4, i / 2 % 2, i % 2)).sum::<f32>() / 8.0;
                    let coarse = of_coarse[(z * 16 + y) * 16 + x];
                    assert!((mean - coarse).abs() < 0.2, "{z} {y} {x}: {mean} {coarse}");
                    moved = moved.max((coarse - 2.0 * (y as f32 + 0.5)).abs());
                }
            }
        }
        assert!(moved > 1.0, "moved by {moved}");
    }
}
