//! Mirrors patches and rotates them by quarter turns: every voxel is a stored one.
//!
//! Flow: drawn axes -> [`Turn`] -> voxels copied.
//! Memory: the caller's.

use super::frame::{AXES, Frame};
use tidegate_order::random::Stream;

/// For each delivered axis, the stored axis along which it runs, and whether it runs backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) axis: [usize; AXES],
    pub(super) back: [bool; AXES],
}

impl Turn {
    /// No change.
    pub(super) const NONE: Self = Self { axis: [0, 1, 2], back: [false; AXES] };

    /// Draws whether each axis of `flip` is mirrored, and one of all rotations of the axes of
    /// `rotate` into one another.
    pub(super) fn draw(flip: &[usize], rotate: &[usize], flips: &mut Stream, turns: &mut Stream) -> Self {
        let mut turn = Self::NONE;
        let mut odd = false;
        for i in (1..rotate.len()).rev() {
            let j = turns.below(i as u64 + 1) as usize;
            turn.axis.swap(rotate[i], rotate[j]);
            odd ^= i != j;
        }
        // A rotation does not mirror: the signs compensate for an odd permutation of axes.
        if let Some((&last, others)) = rotate.split_last() {
            for &axis in others {
                turn.back[axis] = turns.below(2) == 1;
                odd ^= turn.back[axis];
            }
            turn.back[last] = odd;
        }
        for &axis in flip {
            turn.back[axis] ^= flips.below(2) == 1;
        }
        turn
    }

    /// Copies voxels; `of` converts each.
    pub(super) fn copy<T: Copy, U>(&self, frame: &Frame, from: &[T], into: &mut [U], of: impl Fn(T) -> U) {
        let (stored, delivered) = (frame.stored, frame.delivered);
        let strides = [stored[1] * stored[2], stored[2], 1].map(|n| n as isize);
        let (mut step, mut first) = ([0isize; AXES], 0isize);
        for (axis, step) in step.iter_mut().enumerate() {
            let along = self.axis[axis];
            *step = if self.back[axis] { -strides[along] } else { strides[along] };
            let at = frame.begin()[along] + if self.back[axis] { delivered[axis] - 1 } else { 0 };
            first += at as isize * strides[along];
        }
        let (voxels, width) = (stored.iter().product::<usize>(), delivered[2]);
        let mut lines = into.chunks_exact_mut(width);
        for channel in from.chunks_exact(voxels) {
            for z in 0..delivered[0] as isize {
                for y in 0..delivered[1] as isize {
                    let Some(line) = lines.next() else { return };
                    let start = (first + z * step[0] + y * step[1]) as usize;
                    match step[2] {
                        1 => line
                            .iter_mut()
                            .zip(&channel[start..start + width])
                            .for_each(|(to, from)| *to = of(*from)),
                        -1 => line
                            .iter_mut()
                            .zip(channel[start + 1 - width..=start].iter().rev())
                            .for_each(|(to, from)| *to = of(*from)),
                        step => line.iter_mut().enumerate().for_each(|(x, to)| {
                            *to = of(channel[(start as isize + x as isize * step) as usize]);
                        }),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use tidegate_order::random::Purpose;

    fn draws(flip: &[usize], rotate: &[usize]) -> BTreeSet<([usize; 3], [bool; 3])> {
        (0..2000)
            .map(|position| {
                let stream = |purpose| Stream::new(1, 0, position, 0, purpose);
                let turn = Turn::draw(flip, rotate, &mut stream(Purpose::Flip), &mut stream(Purpose::Turn));
                (turn.axis, turn.back)
            })
            .collect()
    }

    /// A cube has 24 rotations: six axes can point up, with four turns around each. Mirrors double
    /// that.
    #[test]
    fn all_rotations_are_drawn_and_no_mirrors() {
        assert_eq!(draws(&[], &[0, 1, 2]).len(), 24);
        assert_eq!(draws(&[0], &[0, 1, 2]).len(), 48);
        assert_eq!(draws(&[], &[1, 2]).len(), 4);
        assert_eq!(draws(&[0, 2], &[]).len(), 4);
        for (axis, back) in draws(&[], &[0, 1, 2]) {
            let inversions = [(0, 1), (0, 2), (1, 2)].iter().filter(|(i, j)| axis[*i] > axis[*j]).count();
            assert_eq!((inversions + back.iter().filter(|b| **b).count()) % 2, 0, "{axis:?} {back:?}");
        }
    }

    #[test]
    fn voxels_are_moved_where_the_axes_say() {
        let frame = Frame { stored: [3, 5, 5], delivered: [3, 3, 3] };
        let from: Vec<u16> = (0..150).collect();
        let turn = Turn { axis: [0, 2, 1], back: [true, false, true] };
        let mut into = [0u16; 54];
        turn.copy(&frame, &from, &mut into, |x| x);
        for (i, &x) in into.iter().enumerate() {
            let (channel, z, y, x_at) = (i / 27, i / 9 % 3, i / 3 % 3, i % 3);
            let (stored_y, stored_x) = (1 + (2 - x_at), 1 + y);
            assert_eq!(usize::from(x), channel * 75 + (2 - z) * 25 + stored_y * 5 + stored_x);
        }
    }
}
