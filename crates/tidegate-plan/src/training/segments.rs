//! Segments of equal length: what recomputation takes when every block is alike.
//!
//! Flow: blocks, saved bytes, boundary bytes -> [`uniform`] -> length, memory and time; its
//! schedule is [`schedule`].
//! Memory: holds none.
//!
//! Source: T. Chen, B. Xu, C. Zhang, C. Guestrin, "Training deep nets with sublinear memory cost",
//! arXiv:1604.06174. With A = saved bytes of a block / bytes of a boundary, L/k boundaries and k·A
//! saved bytes are least at k = √(L/A); √L is the answer only where A is 1. All but the last
//! segment run forward once more: O(L) time, not O(L·√L).

use serde::Serialize;

use super::schedule::{Schedule, Step};
use crate::error::{Result, at_least_one, counted_to};

/// Equal segments of a chain of equal blocks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Uniform {
    /// Blocks in a segment.
    pub length: u64,
    /// Bytes of boundaries and of what one segment saves.
    pub bytes: u64,
    /// The same without recomputation.
    pub plain_bytes: u64,
    /// Forward passes of a block, on average: below 2.
    pub forwards: f64,
}

/// The length of segments that takes the fewest bytes.
///
/// `saved_bytes` is what the backward of one block needs, its output included.
///
/// # Errors
/// [`crate::Error::Parameter`] when a figure is 0, and for more than 2^16 blocks.
///
/// # Example
/// ```
/// use tidegate_plan::training::segments::uniform;
/// // 64 blocks that save 5 times their boundary: segments of 4, not of √64.
/// let found = uniform(64, 5, 1)?;
/// assert_eq!((found.length, found.bytes, found.plain_bytes), (4, 36, 320));
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn uniform(blocks: u64, saved_bytes: u64, boundary_bytes: u64) -> Result<Uniform> {
    counted_to("blocks", blocks, 1 << 16)?;
    at_least_one("saved_bytes", saved_bytes)?;
    at_least_one("boundary_bytes", boundary_bytes)?;
    let bytes = |length: u64| {
        let boundaries = u128::from(blocks.div_ceil(length)) * u128::from(boundary_bytes);
        u64::try_from(boundaries + u128::from(length) * u128::from(saved_bytes)).unwrap_or(u64::MAX)
    };
    // The sum has steps: near the root of the formula another length may take less.
    let length = (1..=blocks).min_by_key(|&length| (bytes(length), length)).unwrap_or(1);
    let last = blocks - (blocks.div_ceil(length) - 1) * length;
    Ok(Uniform {
        length,
        bytes: bytes(length),
        plain_bytes: blocks.saturating_mul(saved_bytes),
        forwards: 1.0 + (blocks - last) as f64 / blocks as f64,
    })
}

/// The schedule of segments of `length` stages, of which the last is stored at once.
///
/// # Errors
/// [`crate::Error::Parameter`] when a number is 0.
pub fn schedule(stages: usize, length: usize) -> Result<Schedule> {
    counted_to("stages", stages as u64, 1 << 16)?;
    at_least_one("length", length as u64)?;
    let last = (stages.div_ceil(length) - 1) * length;
    let segment = |first: usize| Step::Recompute((first + 1..=first + length).map(Step::Store).collect());
    let steps = (0..last).step_by(length).map(segment);
    Ok(steps.chain((last + 1..=stages).map(Step::Store)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_follows_the_ratio_of_saved_to_boundary() {
        let length = |blocks, saved, boundary| uniform(blocks, saved, boundary).unwrap().length;
        assert_eq!(length(64, 1, 1), 8);
        assert_eq!(length(64, 64, 1), 1);
        assert_eq!(length(1, 5, 1), 1);
        assert_eq!(length(10_000, 4, 1), 50);
        assert_eq!(length(4, 1, 100), 4);
        for (blocks, saved) in [(7, 3), (63, 2), (64, 5), (100, 1), (1000, 17)] {
            let bytes = |length: u64| blocks_div(blocks, length) + length * saved;
            let least = (1..=blocks).map(bytes).min().unwrap();
            assert_eq!(uniform(blocks, saved, 1).unwrap().bytes, least, "{blocks} blocks, {saved} saved");
        }
        assert!(uniform(64, 5, 1).unwrap().forwards < 2.0);
        assert!(uniform(0, 1, 1).is_err());
    }

    fn blocks_div(blocks: u64, length: u64) -> u64 {
        blocks.div_ceil(length)
    }

    #[test]
    fn the_schedule_has_every_stage_once() {
        let json = |stages, length| serde_json::to_string(&schedule(stages, length).unwrap()).unwrap();
        assert_eq!(json(7, 3), "[[1,2,3],[4,5,6],7]");
        assert_eq!(json(6, 3), "[[1,2,3],4,5,6]");
        assert_eq!(json(2, 5), "[1,2]");
    }
}
