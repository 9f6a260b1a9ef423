//! Values and codes of an even grid: `value = (code − zero) · scale + base`, a code a byte or packed in fewer bits.
//!
//! Flow: values -> their ends, their nearest codes; codes -> values.
//! Memory: the caller's, and a KiB on the stack.
//!
//! Each operation is rounded by itself, so that vectors of any width give the same bits. What is written once is compiled twice, for processors
//! with AVX2 and for others.

#![expect(unsafe_code, reason = "functions for AVX2 and BMI2, called where the processor has them")]

use tidegate_core::simd;

use super::bits::{self, TOGETHER};
use super::convert::{Number, rounded};

/// Numbers side by side that are worked on at once.
const LANES: usize = 16;
/// Codes that are unpacked at once without AVX2.
const AT_ONCE: usize = 1024;

/// A grid, and the codes in use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// From one code to the next; 0 where all values are alike.
    pub scale: f32,
    /// The code of 0; a whole number.
    pub zero: f32,
    /// The value of code 0, where that is not 0.
    pub base: f32,
    /// The first code in use, and the last.
    pub codes: (f32, f32),
}

impl Line {
    /// What a code stands for.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, code: f32) -> f32 {
        (code - self.zero) * self.scale + self.base
    }

    /// Where a value lies between codes, from the first in use to the last, before it is rounded; less the zero.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, value: f32) -> f32 {
        // Without a step all is one code.
        let place = if self.scale > 0.0 { (value - self.base) / self.scale } else { 0.0 };
        place.max(self.codes.0 - self.zero).min(self.codes.1 - self.zero)
    }
}

/// The least and the largest of some values and of those before, and whether all are finite.
#[must_use]
pub fn ends(values: &[f32], before: (f32, f32)) -> (f32, f32, bool) {
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: the processor has AVX2.
        return unsafe { ends_avx2(values, before) };
    }
    ends_any(values, before)
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn ends_avx2(values: &[f32], before: (f32, f32)) -> (f32, f32, bool) {
    ends_any(values, before)
}

#[inline(always)]
fn ends_any(values: &[f32], before: (f32, f32)) -> (f32, f32, bool) {
    let (mut low, mut high, mut gone) = ([before.0; LANES], [before.1; LANES], [0.0; LANES]);
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut see = |lane: usize, value: f32| {
        low[lane] = if value < low[lane] { value } else { low[lane] };
        high[lane] = if value > high[lane] { value } else { high[lane] };
        // What is not finite leaves a NaN.
        gone[lane] += value * 0.0;
    };
    for values in whole {
        (0..LANES).for_each(|lane| see(lane, values[lane]));
    }
    rest.iter().for_each(|value| see(0, *value));
    let least = low.into_iter().fold(before.0, f32::min);
    (least, high.into_iter().fold(before.1, f32::max), gone.iter().all(|sum| *sum == 0.0))
}

/// The nearest code of each value, ties to even; false if one is NaN.
///
/// # Panics
/// If there are not as many codes as values.
///
/// ```
/// use tidegate_array::kernels::grid::{Line, nearest, spread};
/// let line = Line { scale: 0.5, zero: 0.0, base: 1.0, codes: (0.0, 15.0) };
/// let (mut codes, mut values) = ([0; 3], [0.0; 3]);
/// assert!(nearest(&[1.0, 2.6, 99.0], &line, &mut codes));
/// assert_eq!(codes, [0, 3, 15]);
/// spread(&[0x30, 0x0F], 4, 0, &line, &mut values);
/// assert_eq!(values, [1.0, 2.5, 8.5]);
/// ```
pub fn nearest(values: &[f32], line: &Line, codes: &mut [u8]) -> bool {
    assert_eq!(values.len(), codes.len(), "as many codes");
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: the processor has AVX2.
        return unsafe { nearest_avx2(values, line, codes) };
    }
    nearest_any(values, line, codes)
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn nearest_avx2(values: &[f32], line: &Line, codes: &mut [u8]) -> bool {
    nearest_any(values, line, codes)
}

#[inline(always)]
fn nearest_any(values: &[f32], line: &Line, codes: &mut [u8]) -> bool {
    let line = *line;
    let (whole, rest) = values.as_chunks::<LANES>();
    let (whole_codes, rest_codes) = codes.as_chunks_mut::<LANES>();
    let mut odd = [0u32; LANES];
    for (values, codes) in whole.iter().zip(whole_codes) {
        for lane in 0..LANES {
            odd[lane] |= u32::from(values[lane].is_nan());
            codes[lane] = u8::from_f32(rounded(line.place(values[lane])) + line.zero);
        }
    }
    for (value, code) in rest.iter().zip(rest_codes) {
        odd[0] |= u32::from(value.is_nan());
        *code = u8::from_f32(rounded(line.place(*value)) + line.zero);
    }
    odd == [0; LANES]
}

/// What packed codes stand for: those from `first` on, as many as `values`.
///
/// # Panics
/// Where the codes end before the values.
pub fn spread(packed: &[u8], bits: u32, first: usize, line: &Line, values: &mut [f32]) {
    assert!(packed.len() >= bits::packed_bytes(first + values.len(), bits), "as many codes");
    // Up to where codes begin on a byte.
    let head = (first.next_multiple_of(TOGETHER) - first).min(values.len());
    let (odd, values) = values.split_at_mut(head);
    if head > 0 {
        let (group, mut codes) = (first / TOGETHER * TOGETHER, [0; TOGETHER]);
        let codes = &mut codes[..first + head - group];
        bits::unpack(packed, bits, group..first + head, codes);
        odd.iter_mut()
            .zip(&codes[first - group..])
            .for_each(|(value, code)| *value = line.value(f32::from(*code)));
    }
    if values.is_empty() {
        return;
    }
    let packed = &packed[bits::packed_bytes(first + head, bits)..];
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: the processor has AVX2 and BMI2.
        return unsafe { spread_avx2(packed, bits, line, values) };
    }
    spread_any(packed, bits, line, values);
}

#[inline(never)]
fn spread_any(packed: &[u8], bits: u32, line: &Line, values: &mut [f32]) {
    let mut codes = [0; AT_ONCE];
    for (start, values) in (0..).step_by(AT_ONCE).zip(values.chunks_mut(AT_ONCE)) {
        let codes = &mut codes[..values.len()];
        bits::unpack(packed, bits, start..start + values.len(), codes);
        values.iter_mut().zip(codes).for_each(|(value, code)| *value = line.value(f32::from(*code)));
    }
}

/// # Safety
/// The processor must have AVX2 and BMI2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2")]
unsafe fn spread_avx2(packed: &[u8], bits: u32, line: &Line, values: &mut [f32]) {
    use std::arch::x86_64::{
        _mm_cvtsi64_si128, _mm256_add_ps, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_mul_ps,
        _mm256_set1_ps, _mm256_sub_ps, _pdep_u64,
    };
    let (zero, scale, base) =
        (_mm256_set1_ps(line.zero), _mm256_set1_ps(line.scale), _mm256_set1_ps(line.base));
    let mask = bits::mask(bits);
    // A word of eight bytes has the codes of eight values, and what is behind them.
    let readable = packed.len().saturating_sub(8 - bits as usize) / bits as usize;
    let whole = (values.len() / TOGETHER).min(readable);
    let (eights, _) = values[..whole * TOGETHER].as_chunks_mut::<TOGETHER>();
    for (group, eight) in eights.iter_mut().enumerate() {
        let at = group * bits as usize;
        let word = u64::from_le_bytes(packed[at..at + 8].try_into().unwrap_or_default());
        let codes = _mm_cvtsi64_si128(_pdep_u64(word, mask).cast_signed());
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
        let values = _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(codes, zero), scale), base);
        *eight = bytemuck::cast(values);
    }
    let rest = &mut values[whole * TOGETHER..];
    if !rest.is_empty() {
        spread_any(&packed[whole * bits as usize..], bits, line, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vectors_and_scalars_agree(
            seed: u64, count in 0usize..300, bits in 2u32..=8, first in 0usize..40, scale in -3f32..3.0, zero in 0u8..9, base in -2f32..2.0,
        ) {
            let line = Line { scale: scale.exp2(), zero: f32::from(zero), base, codes: (0.0, ((1 << bits) - 1) as f32) };
            let packed: Vec<u8> = (0..bits::packed_bytes(first + count, bits) as u64).map(|i| tidegate_core::mix(seed ^ i) as u8).collect();
            let mut codes = vec![0; first + count];
            bits::unpack(&packed, bits, 0..first + count, &mut codes);
            let mut values = vec![0.0; count];
            spread(&packed, bits, first, &line, &mut values);
            let expected: Vec<f32> = codes[first..].iter().map(|code| (f32::from(*code) - line.zero) * line.scale + line.base).collect();
            prop_assert_eq!(&values, &expected);
            let mut scalar = vec![0.0; count + first];
            spread_any(&packed, bits, &line, &mut scalar);
            prop_assert_eq!(&scalar[first..], &expected);
            let (mut one, mut other) = (vec![0; count], vec![0; count]);
            prop_assert!(nearest(&values, &line, &mut one) && nearest_any(&values, &line, &mut other));
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(ends(&values, (1.0, 1.0)), ends_any(&values, (1.0, 1.0)));
            let (low, high, finite) = ends(&values, (1.0, 1.0));
            prop_assert!(finite && values.iter().all(|value| (low..=high).contains(value)));
            if count > 0 {
                values[seed as usize % count] = [f32::NAN, f32::INFINITY][first % 2];
                prop_assert!(!ends(&values, (1.0, 1.0)).2);
                prop_assert_eq!(nearest(&values, &line, &mut one), first % 2 == 1);
            }
        }
    }
}
