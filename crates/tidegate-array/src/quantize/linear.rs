//! Quantization and dequantization of values.
//!
//! Flow: values and the grids of their groups -> packed codes; codes -> float32, float16 or
//! bfloat16.
//! Memory: one to two KiB of stack; the rest is the caller's.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Grid, Groups, Scheme};
use crate::kernels::bits::{pack, packed_bytes};
use crate::kernels::grid::{either, nearest, spread};
use crate::{DType, Error, Result};

/// Values per step: they fit the first-level cache, and are whole groups of packed codes.
const AT_ONCE: usize = 1024;

/// How a value between two codes is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest code; ties to even.
    Nearest,
    /// To either code, with probabilities that make the mean exact: a function of this seed and
    /// the value's index.
    Stochastic(u64),
}

/// Quantizes values into packed codes, by the grids of their groups.
///
/// # Errors
/// [`Error::Value`] for a NaN; the message names its index.
///
/// # Panics
/// If `codes` is not [`packed_bytes`] long.
pub fn quantize(
    values: &[f32],
    bits: u32,
    scheme: Scheme,
    grids: &[Grid],
    groups: Groups,
    rounding: Rounding,
    codes: &mut [u8],
) -> Result<()> {
    assert_eq!(codes.len(), packed_bytes(values.len(), bits), "there must be one code per value");
    let (ends, mut numbers) = (scheme.codes(bits), [0; AT_ONCE]);
    for (start, into) in (0..).step_by(AT_ONCE).zip(codes.chunks_mut(packed_bytes(AT_ONCE, bits))) {
        let range = start..values.len().min(start + AT_ONCE);
        let numbers = &mut numbers[..range.len()];
        for (run, group) in groups.runs(range) {
            let (values, into) = (&values[run.clone()], &mut numbers[run.start - start..run.end - start]);
            let line = grids[group].line(ends);
            let numbers = match rounding {
                Rounding::Nearest => nearest(values, &line, into),
                Rounding::Stochastic(seed) => either(values, &line, seed, run.start as u64, into),
            };
            if !numbers {
                let at = run.start + values.iter().position(|value| value.is_nan()).unwrap_or(0);
                return Err(Error::value(format!(
                    "value {at} is NaN, which no code stands for: replace it first"
                )));
            }
        }
        pack(numbers, bits, into);
    }
    Ok(())
}

/// Converts packed codes to the values they stand for; `grid` returns the grid of a group.
///
/// # Errors
/// [`Error::Value`] for a type other than float32, float16 and bfloat16.
///
/// # Panics
/// If there are fewer codes than values, or `into` is not aligned to its type.
pub fn dequantize(
    codes: &[u8],
    bits: u32,
    grid: impl Fn(usize) -> Grid,
    groups: Groups,
    dtype: DType,
    into: &mut [u8],
) -> Result<()> {
    if !matches!(dtype, DType::Float32 | DType::Float16 | DType::Bfloat16) {
        let what = format!("codes cannot become {}: give float32, float16 or bfloat16", dtype.name());
        return Err(Error::value(what));
    }
    // An empty slice need not be aligned.
    if into.is_empty() {
        return Ok(());
    }
    let lines = |range| groups.runs(range).map(|(run, group)| (run, grid(group).line((0.0, 0.0))));
    if dtype == DType::Float32 {
        let values: &mut [f32] = bytemuck::cast_slice_mut(into);
        spread(codes, bits, lines(0..values.len()), values);
        return Ok(());
    }
    let mut values = [0.0; AT_ONCE];
    for (start, piece) in (0..).step_by(AT_ONCE).zip(into.chunks_mut(AT_ONCE * dtype.size())) {
        let values = &mut values[..piece.len() / dtype.size()];
        spread(codes, bits, lines(start..start + values.len()), values);
        match dtype {
            DType::Float16 => {
                bytemuck::cast_slice_mut::<u8, f16>(piece).convert_from_f32_slice(values);
            }
            _ => bytemuck::cast_slice_mut::<u8, bf16>(piece).convert_from_f32_slice(values),
        }
    }
    Ok(())
}
