//! Values as 8-bit codes in blocks, into memory of the caller: what a training step keeps of
//! activations.
//!
//! Flow: a block of values -> its minimum and its scale -> codes; and back. One pass, since a block
//! fits the first-level cache.
//! Memory: the caller's.

use super::grid::{Grid, Scheme};
use super::linear::either;
use super::{Groups, Per, Rounding};
use crate::kernels::bits::WIDTHS;
use crate::kernels::grid::{ends, nearest, spread};
use crate::{Error, Result};

const BITS: u32 = *WIDTHS.end();

/// The scale of a block, and the value of its code 0.
pub type BlockGrid = [f32; 2];

fn checked(values: usize, block: usize, codes: usize, grids: usize) -> Result<Groups> {
    let groups = Groups::new(Per::Block(block), &[values])?;
    if codes != values || grids != values.div_ceil(block) {
        return Err(Error::value(format!(
            "{values} values in blocks of {block} need as many codes and {} grids: given {codes} and {grids}",
            values.div_ceil(block)
        )));
    }
    Ok(groups)
}

/// Quantizes values in blocks of `block`; false where one is NaN or infinite, or a block is wider
/// than the largest f32: no code stands for it.
///
/// # Errors
/// [`Error::Value`] for another number of codes or grids; [`Error::Option`] for blocks of nothing.
///
/// ```
/// use tidegate_array::quantize::{Rounding, pack_blocks, unpack_blocks};
/// let (values, mut codes, mut grids) = ([1.0, 256.0, 3.0], [0; 3], [[0.0; 2]; 2]);
/// assert!(pack_blocks(&values, 2, Rounding::Nearest, &mut codes, &mut grids)?);
/// assert_eq!((codes, grids), ([0, 255, 0], [[1.0, 1.0], [0.0, 3.0]]));
/// let mut back = [0.0; 3];
/// unpack_blocks(&codes, 2, &grids, &mut back)?;
/// assert_eq!(back, values);
/// # Ok::<(), tidegate_array::Error>(())
/// ```
pub fn pack_blocks(
    values: &[f32],
    block: usize,
    rounding: Rounding,
    codes: &mut [u8],
    grids: &mut [BlockGrid],
) -> Result<bool> {
    checked(values.len(), block, codes.len(), grids.len())?;
    let pieces = values.chunks(block).zip(codes.chunks_mut(block));
    for (number, ((values, codes), into)) in pieces.zip(grids).enumerate() {
        let (low, high, finite) = ends(values, (f32::INFINITY, f32::NEG_INFINITY));
        if !finite || !(high - low).is_finite() {
            return Ok(false);
        }
        let grid = Grid::over(low, high, BITS, Scheme::Offset)?;
        let line = grid.line(Scheme::Offset.codes(BITS));
        match rounding {
            Rounding::Nearest => nearest(values, &line, codes),
            Rounding::Stochastic(seed) => either(values, &line, (seed, number * block), codes),
        };
        if low == 0.0 {
            keep_positive(values, codes);
        }
        *into = [grid.scale, grid.base];
    }
    Ok(true)
}

/// Gives positive values a code of their own, where code 0 stands for 0: the gradient of a ReLU is
/// 0 where its output is.
fn keep_positive(values: &[f32], codes: &mut [u8]) {
    for (value, code) in values.iter().zip(codes) {
        *code = (*code).max(u8::from(*value > 0.0));
    }
}

/// Converts codes in blocks of `block` to the values they stand for.
///
/// # Errors
/// As [`pack_blocks`].
pub fn unpack_blocks(codes: &[u8], block: usize, grids: &[BlockGrid], into: &mut [f32]) -> Result<()> {
    let groups = checked(into.len(), block, codes.len(), grids.len())?;
    let line =
        |group: usize| Grid { scale: grids[group][0], zero: 0.0, base: grids[group][1] }.line((0.0, 0.0));
    spread(codes, BITS, groups.runs(0..into.len()).map(|(run, group)| (run, line(group))), into);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No value is further from its own than half a code (a whole one, stochastic).
        #[test]
        fn values_come_back_within_a_code(
            values in prop::collection::vec(-1e6f32..1e6, 0..300), block in 1usize..80, seed in any::<u64>()
        ) {
            let (mut codes, mut grids) = (vec![0; values.len()], vec![[0.0; 2]; values.len().div_ceil(block)]);
            let mut back = vec![0.0; values.len()];
            for (rounding, codes_away) in [(Rounding::Nearest, 0.5), (Rounding::Stochastic(seed), 1.0)] {
                prop_assert!(pack_blocks(&values, block, rounding, &mut codes, &mut grids).unwrap());
                unpack_blocks(&codes, block, &grids, &mut back).unwrap();
                for (i, (value, found)) in values.iter().zip(&back).enumerate() {
                    // One code, and what f32 rounds off of values of this size.
                    let most = codes_away * grids[i / block][0] * 1.001 + 0.25;
                    prop_assert!((value - found).abs() <= most, "{value} became {found}");
                }
            }
        }
    }

    #[test]
    fn what_is_above_0_stays_above_0() {
        let (values, mut codes, mut grids) = ([0.0, 1e-9, 0.4, 255.0], [0; 4], [[0.0; 2]]);
        for rounding in [Rounding::Nearest, Rounding::Stochastic(1)] {
            assert!(pack_blocks(&values, 4, rounding, &mut codes, &mut grids).unwrap());
            assert_eq!(codes, [0, 1, 1, 255]);
        }
    }

    #[test]
    fn what_no_code_stands_for_is_left_alone() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let done = pack_blocks(&[1.0, odd], 2, Rounding::Nearest, &mut [0; 2], &mut [[0.0; 2]]);
            assert!(!done.unwrap());
        }
        let wide = pack_blocks(&[f32::MIN, f32::MAX], 2, Rounding::Nearest, &mut [0; 2], &mut [[0.0; 2]]);
        assert!(!wide.unwrap());
        assert!(pack_blocks(&[1.0], 0, Rounding::Nearest, &mut [0], &mut [[0.0; 2]]).is_err());
        assert!(unpack_blocks(&[0], 1, &[], &mut [0.0]).is_err());
    }
}
