//! Values as 8-bit codes in blocks, into memory of the caller: what a training step keeps of
//! activations.
//!
//! Flow: a block of values -> its minimum and its scale -> codes; and back. One pass, since a block
//! fits the first-level cache.
//! Memory: the caller's.
//!
//! Where a block has both signs or 0, 0 has a code, and so has what is nearly 0 on either side:
//! gradients of functions such as ReLU jump at 0. Code `zero ± 1` is 2⁻⁶³ of its sign, and
//! `zero ± (k + 1)` is `± k · scale`. The scale of such a block is stored negative, beside the
//! code of 0. The codes of other blocks are even steps from their minimum.

use super::grid::{Grid, Scheme};
use super::{Groups, Per, Rounding};
use crate::kernels::bits::WIDTHS;
use crate::kernels::grid::{Line, either, ends, nearest, spread};
use crate::{Error, Result};

const BITS: u32 = *WIDTHS.end();
/// What is nearly 0: small beside any value, and large enough that its products are no subnormal
/// numbers, which processors are slow with.
const TINY: f32 = 1.0 / (1u64 << 63) as f32;

/// The scale of a block and its minimum; or the negative scale, and the code of 0.
pub type BlockGrid = [f32; 2];

fn checked(values: usize, block: usize, codes: usize, grids: usize) -> Result<()> {
    Groups::new(Per::Block(block), &[values])?;
    if codes != values || grids != values.div_ceil(block) {
        return Err(Error::value(format!(
            "{values} values in blocks of {block} need as many codes and {} grids: given {codes} and {grids}",
            values.div_ceil(block)
        )));
    }
    Ok(())
}

/// Quantizes values in blocks of `block`; false where one is NaN or infinite, or a block is wider
/// than the largest f32: no code stands for it.
///
/// # Errors
/// [`Error::Value`] for another number of codes or grids; [`Error::Option`] for blocks of nothing.
///
/// ```
/// use tidegate_array::quantize::{Rounding, pack_blocks, unpack_blocks};
/// let (values, mut codes, mut grids) = ([1.0, 256.0, -63.0, 189.0], [0; 4], [[0.0; 2]; 2]);
/// assert!(pack_blocks(&values, 2, Rounding::Nearest, &mut codes, &mut grids)?);
/// assert_eq!((codes, grids), ([0, 255, 0, 254], [[1.0, 1.0], [-1.0, 64.0]]));
/// let mut back = [0.0; 4];
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
        let around = low <= 0.0 && high >= 0.0;
        let line = if around {
            let (scale, zero) = around_zero(low, high);
            Line {
                scale,
                zero: f32::from(zero),
                base: 0.0,
                codes: (f32::from(zero.min(1)), f32::from(u8::MAX - 1)),
            }
        } else {
            Grid::over(low, high, BITS, Scheme::Offset)?.line(Scheme::Offset.codes(BITS))
        };
        match rounding {
            Rounding::Nearest => nearest(values, &line, codes),
            Rounding::Stochastic(seed) => either(values, &line, seed, (number * block) as u64, codes),
        };
        if around {
            keep_signs(values, codes);
        }
        *into = if around { [-line.scale, line.zero] } else { [line.scale, line.base] };
    }
    Ok(true)
}

/// The scale of a range with 0, and the code of 0: two codes go to what is nearly 0.
fn around_zero(low: f32, high: f32) -> (f32, u8) {
    let scale = (((f64::from(high) - f64::from(low)) / f64::from(u8::MAX - 3)) as f32).max(TINY);
    let below = (-low / scale).round_ties_even();
    (scale, if low < 0.0 { below as u8 + 1 } else { 0 })
}

/// Moves codes away from that of 0, by the signs of their values.
fn keep_signs(values: &[f32], codes: &mut [u8]) {
    for (value, code) in values.iter().zip(codes) {
        *code = code.wrapping_add(u8::from(*value > 0.0)).wrapping_sub(u8::from(*value < 0.0));
    }
}

/// The values of a block with 0.
fn unpack_around_zero(codes: &[u8], scale: f32, zero: f32, into: &mut [f32]) {
    for (value, code) in into.iter_mut().zip(codes) {
        let steps = f32::from(*code) - zero;
        let size = ((steps.abs() - 1.0) * scale).max(TINY).copysign(steps);
        *value = if steps == 0.0 { 0.0 } else { size };
    }
}

/// Converts codes in blocks of `block` to the values they stand for.
///
/// # Errors
/// As [`pack_blocks`].
pub fn unpack_blocks(codes: &[u8], block: usize, grids: &[BlockGrid], into: &mut [f32]) -> Result<()> {
    checked(into.len(), block, codes.len(), grids.len())?;
    for ((codes, into), &[scale, second]) in codes.chunks(block).zip(into.chunks_mut(block)).zip(grids) {
        if scale < 0.0 {
            unpack_around_zero(codes, -scale, second, into);
        } else {
            let line = Grid { scale, zero: 0.0, base: second }.line((0.0, 0.0));
            spread(codes, BITS, [(0..into.len(), line)], into);
        }
    }
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
                    // And what f32 rounds off of values of this size.
                    let most = codes_away * grids[i / block][0].abs() * 1.001 + 0.25;
                    prop_assert!((value - found).abs() <= most, "{value} became {found}");
                }
            }
        }
    }

    #[test]
    fn what_is_above_0_stays_above_0_and_0_stays_0() {
        for values in [
            [0.0, 1e-9, 0.4, 255.0],
            [0.0, 1e-9, -1e-9, -255.0],
            [-3.0, -1e-9, 0.0, 7.3],
            [-1e-9, 0.0, 1e-9, 1e6],
            [-7e5, 0.0, -1e-6, 1e-6],
            [0.0; 4],
            [-1e-45, 1e-45, 0.0, 0.0],
        ] {
            for rounding in [Rounding::Nearest, Rounding::Stochastic(1)] {
                let (mut codes, mut grids, mut back) = ([0; 4], [[0.0; 2]], [0.0; 4]);
                assert!(pack_blocks(&values, 4, rounding, &mut codes, &mut grids).unwrap());
                unpack_blocks(&codes, 4, &grids, &mut back).unwrap();
                let sign = |value: &f32| value.partial_cmp(&0.0);
                assert!(values.iter().map(sign).eq(back.iter().map(sign)), "{values:?} became {back:?}");
            }
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
