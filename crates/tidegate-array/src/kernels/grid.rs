//! Values and codes of a uniform grid, with codes in bytes or packed.
//!
//! Flow: values -> minimum and maximum, nearest codes; codes -> values.
//! Memory: the caller's, and one KiB of stack.
//!
//! A code stands for `(code − zero) · scale + base`. Each operation is rounded separately, so that
//! vectors of any width give the same bits. Outputs larger than a core's caches are written with
//! streaming stores: a cache line that is written whole is then not read first, which saves a
//! third of a copy's traffic.

#![expect(
    unsafe_code,
    reason = "functions for AVX2 and BMI2, called if the processor has them; streaming stores"
)]

use std::ops::Range;

use tidegate_core::hash::splitmix64;
use tidegate_core::simd;

use super::bits::{self, TOGETHER};
use super::convert::{Number, rounded};

/// Numbers per vector.
const LANES: usize = 8;
/// Codes unpacked per step without AVX2.
const AT_ONCE: usize = 1024;
/// Outputs of at least this many bytes are streamed: the size of a core's own caches.
const STREAMED_BYTES: usize = 4 << 20;
/// Floats per cache line, and the length from which a run's partial lines do not matter.
const LINE_FLOATS: usize = 16;
const LONG_RUN: usize = 1024;

/// A grid and its codes in use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Distance between codes; 0 if all values are equal.
    pub scale: f32,
    /// The code of 0; a whole number.
    pub zero: f32,
    /// The value of code 0, if it is not 0.
    pub base: f32,
    /// The first and the last code in use.
    pub codes: (f32, f32),
}

impl Line {
    /// The value of a code.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, code: f32) -> f32 {
        (code - self.zero) * self.scale + self.base
    }

    /// The position of a value among the codes in use, before rounding, minus the zero.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, value: f32) -> f32 {
        // Without a scale there is only one code.
        let place = if self.scale > 0.0 { (value - self.base) / self.scale } else { 0.0 };
        place.max(self.codes.0 - self.zero).min(self.codes.1 - self.zero)
    }
}

/// The minimum and maximum of the values and of `before`, never −0, and whether all are finite.
#[must_use]
pub fn ends(values: &[f32], before: (f32, f32)) -> (f32, f32, bool) {
    // The minimum of 0 and −0 depends on the order, so −0 becomes 0.
    let one_zero = |(low, high, finite)| (low + 0.0, high + 0.0, finite);
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: the processor has AVX2.
        return one_zero(unsafe { ends_avx2(values, before) });
    }
    one_zero(ends_any(values, before))
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn ends_avx2(values: &[f32], (mut least, mut largest): (f32, f32)) -> (f32, f32, bool) {
    use std::arch::x86_64::{
        _CMP_UNORD_Q, _mm256_cmp_ps, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_or_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_sub_ps,
    };
    // Two accumulators each, so that no instruction waits for its own result.
    let (mut low, mut high) = ([_mm256_set1_ps(least); 2], [_mm256_set1_ps(largest); 2]);
    let mut odd = [_mm256_setzero_ps(); 2];
    let (whole, rest) = values.as_chunks::<{ 2 * LANES }>();
    for values in whole {
        let values: [_; 2] = bytemuck::cast(*values);
        for i in 0..2 {
            // A value that is not finite makes this NaN.
            let zero = _mm256_sub_ps(values[i], values[i]);
            odd[i] = _mm256_or_ps(odd[i], _mm256_cmp_ps::<_CMP_UNORD_Q>(zero, zero));
            low[i] = _mm256_min_ps(values[i], low[i]);
            high[i] = _mm256_max_ps(values[i], high[i]);
        }
    }
    let mut finite = _mm256_movemask_ps(_mm256_or_ps(odd[0], odd[1])) == 0;
    let low: [f32; 2 * LANES] = bytemuck::cast(low);
    let high: [f32; 2 * LANES] = bytemuck::cast(high);
    for value in rest {
        finite &= value.is_finite();
    }
    for (low, high) in low.iter().zip(&high).chain(rest.iter().zip(rest)) {
        least = if *low < least { *low } else { least };
        largest = if *high > largest { *high } else { largest };
    }
    (least, largest, finite)
}

/// In lanes, which the compiler vectorizes.
fn ends_any(values: &[f32], before: (f32, f32)) -> (f32, f32, bool) {
    let (mut low, mut high, mut gone) = ([before.0; LANES], [before.1; LANES], [0.0; LANES]);
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut see = |lane: usize, value: f32| {
        low[lane] = if value < low[lane] { value } else { low[lane] };
        high[lane] = if value > high[lane] { value } else { high[lane] };
        gone[lane] += value * 0.0;
    };
    for values in whole {
        (0..LANES).for_each(|lane| see(lane, values[lane]));
    }
    rest.iter().for_each(|value| see(0, *value));
    let least = low.into_iter().fold(before.0, f32::min);
    (least, high.into_iter().fold(before.1, f32::max), gone.iter().all(|sum| *sum == 0.0))
}

/// Finds the nearest code of each value, ties to even; returns false if a value is NaN.
///
/// # Panics
/// If values and codes differ in length.
///
/// ```
/// use tidegate_array::kernels::grid::{Line, nearest, spread};
/// let line = Line { scale: 0.5, zero: 0.0, base: 1.0, codes: (0.0, 15.0) };
/// let (mut codes, mut values) = ([0; 3], [0.0; 3]);
/// assert!(nearest(&[1.0, 2.6, 99.0], &line, &mut codes));
/// assert_eq!(codes, [0, 3, 15]);
/// spread(&[0x30, 0x0F], 4, [(0..3, line)], &mut values);
/// assert_eq!(values, [1.0, 2.5, 8.5]);
/// ```
pub fn nearest(values: &[f32], line: &Line, codes: &mut [u8]) -> bool {
    assert_eq!(values.len(), codes.len(), "there must be one code per value");
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() && line.scale > 0.0 {
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
    use std::arch::x86_64::{
        _CMP_UNORD_Q, _mm_cvtsi128_si64, _mm_packs_epi32, _mm_packus_epi16, _mm256_add_epi32,
        _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_extracti128_si256,
        _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_or_ps, _mm256_set1_epi32, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_sub_ps,
    };
    let (scale, base) = (_mm256_set1_ps(line.scale), _mm256_set1_ps(line.base));
    let zero = _mm256_set1_epi32(line.zero as i32);
    let (first, last) = (_mm256_set1_ps(line.codes.0 - line.zero), _mm256_set1_ps(line.codes.1 - line.zero));
    let mut odd = _mm256_setzero_ps();
    let (whole, rest) = values.as_chunks::<LANES>();
    let (whole_codes, rest_codes) = codes.as_chunks_mut::<LANES>();
    for (values, codes) in whole.iter().zip(whole_codes) {
        let values = bytemuck::cast(*values);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps::<_CMP_UNORD_Q>(values, values));
        let place = _mm256_div_ps(_mm256_sub_ps(values, base), scale);
        // Rounds to the nearest, ties to even.
        let code = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(place, first), last));
        let code = _mm256_add_epi32(code, zero);
        let code = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256::<1>(code));
        *codes = _mm_cvtsi128_si64(_mm_packus_epi16(code, code)).to_le_bytes();
    }
    nearest_any(rest, line, rest_codes) && _mm256_movemask_ps(odd) == 0
}

fn nearest_any(values: &[f32], line: &Line, codes: &mut [u8]) -> bool {
    let mut sound = true;
    for (value, code) in values.iter().zip(codes) {
        sound &= !value.is_nan();
        *code = u8::from_f32(rounded(line.place(*value)) + line.zero);
    }
    sound
}

/// Takes one of the two codes next to each value, the nearer one more often, so that their mean is
/// the value; returns false if a value is NaN. What is taken follows from the seed and the index
/// of the value, of which `first` is that of the first.
///
/// # Panics
/// If values and codes differ in length.
///
/// ```
/// use tidegate_array::kernels::grid::{Line, either};
/// let line = Line { scale: 1.0, zero: 0.0, base: 0.0, codes: (0.0, 255.0) };
/// let mut codes = [0; 1000];
/// assert!(either(&[7.25; 1000], &line, 1, 0, &mut codes));
/// let above = codes.iter().filter(|code| **code == 8).count();
/// assert!(codes.iter().all(|code| [7, 8].contains(code)) && (200..300).contains(&above));
/// ```
pub fn either(values: &[f32], line: &Line, seed: u64, first: u64, codes: &mut [u8]) -> bool {
    assert_eq!(values.len(), codes.len(), "there must be one code per value");
    let (mut values, mut codes, mut at, mut sound) = (values, codes, first, true);
    while !values.is_empty() {
        let count = values.len().min((DRAWS - at % DRAWS) as usize);
        let (part, others) = values.split_at(count);
        let (into, rest) = codes.split_at_mut(count);
        let key = splitmix64(seed ^ splitmix64(at / DRAWS));
        sound &= either_of(part, line, key, (at % DRAWS) as u32, into);
        (values, codes, at) = (others, rest, at + count as u64);
    }
    sound
}

/// Indices that share a key: within them 16 bits tell one from another.
const DRAWS: u64 = 1 << 16;

/// The same for indices that share a key.
fn either_of(values: &[f32], line: &Line, key: u64, place: u32, codes: &mut [u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() && line.scale > 0.0 {
        // SAFETY: the processor has AVX2.
        return unsafe { either_avx2(values, line, key, place, codes) };
    }
    either_any(values, line, key, place, codes)
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn either_avx2(values: &[f32], line: &Line, key: u64, mut place: u32, codes: &mut [u8]) -> bool {
    use std::arch::x86_64::{
        _CMP_GT_OQ, _CMP_UNORD_Q, _mm_cvtsi128_si64, _mm_packs_epi32, _mm_packus_epi16, _mm256_add_epi32,
        _mm256_add_ps, _mm256_castps_si256, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi32_ps,
        _mm256_cvttps_epi32, _mm256_div_ps, _mm256_extracti128_si256, _mm256_max_ps, _mm256_min_ps,
        _mm256_movemask_ps, _mm256_mul_ps, _mm256_mullo_epi32, _mm256_or_ps, _mm256_set1_epi32,
        _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps, _mm256_srli_epi32, _mm256_sub_epi32,
        _mm256_sub_ps, _mm256_xor_si256,
    };
    let (scale, base, zero) =
        (_mm256_set1_ps(line.scale), _mm256_set1_ps(line.base), _mm256_set1_ps(line.zero));
    let (first, last) = (_mm256_set1_ps(line.codes.0 - line.zero), _mm256_set1_ps(line.codes.1 - line.zero));
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let keys = (_mm256_set1_epi32(key as i32), _mm256_set1_epi32((key >> 32) as i32));
    let factors = (_mm256_set1_epi32(FACTORS[0] as i32), _mm256_set1_epi32(FACTORS[1] as i32));
    let mut odd = _mm256_setzero_ps();
    let (whole, rest) = values.as_chunks::<LANES>();
    let (whole_codes, rest_codes) = codes.as_chunks_mut::<LANES>();
    for (values, codes) in whole.iter().zip(whole_codes) {
        let values = bytemuck::cast(*values);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps::<_CMP_UNORD_Q>(values, values));
        let steps = _mm256_div_ps(_mm256_sub_ps(values, base), scale);
        let steps = _mm256_add_ps(_mm256_min_ps(_mm256_max_ps(steps, first), last), zero);
        // As in `fraction`, eight at once.
        let mixed = _mm256_xor_si256(_mm256_add_epi32(_mm256_set1_epi32(place as i32), lanes), keys.0);
        let mixed = _mm256_mullo_epi32(_mm256_xor_si256(mixed, _mm256_srli_epi32::<16>(mixed)), factors.0);
        let mixed = _mm256_add_epi32(_mm256_xor_si256(mixed, _mm256_srli_epi32::<15>(mixed)), keys.1);
        let mixed = _mm256_mullo_epi32(mixed, factors.1);
        let mixed = _mm256_srli_epi32::<8>(_mm256_xor_si256(mixed, _mm256_srli_epi32::<16>(mixed)));
        let drawn = _mm256_mul_ps(_mm256_cvtepi32_ps(mixed), _mm256_set1_ps(UNIT));
        let down = _mm256_cvttps_epi32(steps);
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_sub_ps(steps, _mm256_cvtepi32_ps(down)), drawn);
        // The mask is −1 where the code above is taken.
        let code = _mm256_sub_epi32(down, _mm256_castps_si256(above));
        let code = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256::<1>(code));
        *codes = _mm_cvtsi128_si64(_mm_packus_epi16(code, code)).to_le_bytes();
        place += LANES as u32;
    }
    either_any(rest, line, key, place, rest_codes) && _mm256_movemask_ps(odd) == 0
}

fn either_any(values: &[f32], line: &Line, key: u64, place: u32, codes: &mut [u8]) -> bool {
    let mut sound = true;
    for ((value, code), place) in values.iter().zip(codes).zip(place..) {
        sound &= !value.is_nan();
        // Not below 0, so that truncation gives the code below.
        let steps = line.place(*value) + line.zero;
        let down = steps as u8;
        *code = down + u8::from(steps - f32::from(down) > fraction(key, place));
    }
    sound
}

const FACTORS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];
const UNIT: f32 = 1.0 / (1 << 24) as f32;

/// A number in \[0, 1) of 24 bits, by products of 32 bits, of which processors make eight at once:
/// the finalizer «lowbias32» of C. Wellons, with half of the key before each product.
fn fraction(key: u64, place: u32) -> f32 {
    let mut mixed = place ^ key as u32;
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(FACTORS[0]);
    mixed = (mixed ^ (mixed >> 15)).wrapping_add((key >> 32) as u32).wrapping_mul(FACTORS[1]);
    mixed ^= mixed >> 16;
    (mixed >> 8) as f32 * UNIT
}

/// Dequantizes packed codes, each run with its own line. Runs are consecutive and cover as many
/// codes as there are `values`.
///
/// # Panics
/// If the codes end before the values, or the runs do not cover all values.
pub fn spread(
    packed: &[u8],
    bits: u32,
    runs: impl IntoIterator<Item = (Range<usize>, Line)>,
    values: &mut [f32],
) {
    let streamed = size_of_val(values) >= STREAMED_BYTES;
    // The fence orders streaming stores before everything after this call, an unwinding panic
    // included.
    let fence = streamed.then_some(Fence);
    let mut rest = values;
    for (run, line) in runs {
        let (values, others) = rest.split_at_mut(run.len());
        // SAFETY: the fence is dropped after the stores, and until then nothing else accesses the
        // values.
        unsafe { spread_run(packed, bits, run.start, &line, values, streamed) };
        rest = others;
    }
    drop(fence);
    assert!(rest.is_empty(), "the runs must cover all values");
}

/// Waits, when dropped, for preceding streaming stores.
struct Fence;

impl Drop for Fence {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// # Safety
/// If values are streamed, a [`Fence`] must be dropped before anything else accesses them.
unsafe fn spread_run(
    packed: &[u8],
    bits: u32,
    first: usize,
    line: &Line,
    values: &mut [f32],
    streamed: bool,
) {
    assert!(packed.len() >= bits::packed_bytes(first + values.len(), bits), "there are too few codes");
    // Up to the next group of codes that begins on a byte.
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
        // A cache line that is written partly by streaming is slow, so only long or whole lines
        // are streamed.
        let lines = values.len() >= LONG_RUN || (head == 0 && values.len().is_multiple_of(LINE_FLOATS));
        let streamed = streamed && lines && values.as_ptr().addr().is_multiple_of(16);
        // SAFETY: the processor has AVX2 and BMI2; streamed values are aligned, and the caller
        // fences them.
        return unsafe {
            match streamed {
                true => spread_avx2::<true>(packed, bits, line, values),
                false => spread_avx2::<false>(packed, bits, line, values),
            }
        };
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
/// The processor must have AVX2 and BMI2. Streamed values must be aligned to 16 bytes, and a fence
/// must follow before anything else accesses them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2")]
unsafe fn spread_avx2<const STREAMED: bool>(packed: &[u8], bits: u32, line: &Line, values: &mut [f32]) {
    use std::arch::x86_64::{
        _mm_cvtsi64_si128, _mm_stream_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_cvtepi32_ps,
        _mm256_cvtepu8_epi32, _mm256_extractf128_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_sub_ps, _pdep_u64,
    };
    let (zero, scale, base) =
        (_mm256_set1_ps(line.zero), _mm256_set1_ps(line.scale), _mm256_set1_ps(line.base));
    let mask = bits::mask(bits);
    // A word of eight bytes holds the codes of eight values and the bytes after them. Near the end
    // there may be fewer than eight bytes.
    let mut whole = values.len() / TOGETHER;
    if whole * bits as usize + TOGETHER - bits as usize > packed.len() {
        whole = whole.min(packed.len().saturating_sub(TOGETHER - bits as usize) / bits as usize);
    }
    let (eights, _) = values[..whole * TOGETHER].as_chunks_mut::<TOGETHER>();
    for (group, eight) in eights.iter_mut().enumerate() {
        let at = group * bits as usize;
        let word = u64::from_le_bytes(packed[at..at + 8].try_into().unwrap_or_default());
        let codes = _mm_cvtsi64_si128(_pdep_u64(word, mask).cast_signed());
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
        let values = _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(codes, zero), scale), base);
        if STREAMED {
            let at = eight.as_mut_ptr();
            // SAFETY: there are eight values from `at` on, aligned as the caller promises.
            unsafe {
                _mm_stream_ps(at, _mm256_castps256_ps128(values));
                _mm_stream_ps(at.add(4), _mm256_extractf128_ps::<1>(values));
            }
        } else {
            *eight = bytemuck::cast(values);
        }
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

    /// Values of all kinds: both zeros, infinities and NaN among them.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let odd = prop_oneof![
            8 => -9f32..9.0,
            2 => Just(0.0f32),
            2 => Just(-0.0f32),
            1 => Just(f32::MAX),
            1 => prop_oneof![Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(f32::NAN)],
        ];
        let finite = prop_oneof![-9f32..9.0, Just(0.0f32), Just(-0.0f32)];
        prop_oneof![
            proptest::collection::vec(odd, 0..60),
            proptest::collection::vec(finite, 0..60),
            proptest::collection::vec(prop_oneof![Just(0.0f32), Just(-0.0f32), Just(1.0f32)], 0..60)
        ]
    }

    proptest! {
        #[test]
        fn vectors_and_scalars_find_the_same(values in values(), bits in 2u32..=8, scale in -9f32..3.0, flat: bool, zero in 0u8..4, base in -2f32..2.0) {
            let bits_of = |(low, high, finite): (f32, f32, bool)| (low.to_bits(), high.to_bits(), finite);
            let (low, high, finite) = ends_any(&values, (1.0, 1.0));
            let found = ends(&values, (1.0, 1.0));
            prop_assert_eq!(found.2, values.iter().all(|value| value.is_finite()));
            prop_assert_eq!(found.2, finite);
            if finite {
                prop_assert_eq!(bits_of(found), bits_of((low + 0.0, high + 0.0, finite)));
                prop_assert!(values.iter().all(|value| (found.0..=found.1).contains(value)));
            }
            let scale = if flat { 0.0 } else { scale.exp2() };
            let line = Line { scale, zero: f32::from(zero), base, codes: (0.0, ((1 << bits) - 1) as f32) };
            let (mut one, mut other) = (vec![0; values.len()], vec![0; values.len()]);
            let numbers = values.iter().all(|value| !value.is_nan());
            prop_assert_eq!(nearest(&values, &line, &mut one), numbers);
            prop_assert_eq!(nearest_any(&values, &line, &mut other), numbers);
            if numbers {
                prop_assert_eq!(&one, &other);
            }
            // What is taken follows from the index alone, also where keys change.
            prop_assert_eq!(either_of(&values, &line, 7, 5, &mut one), numbers);
            prop_assert_eq!(either_any(&values, &line, 7, 5, &mut other), numbers);
            if numbers {
                prop_assert_eq!(&one, &other);
            }
            for first in [0, DRAWS - 7, u64::from(u32::MAX) - 7] {
                let half = values.len() / 2;
                either(&values, &line, 9, first, &mut one);
                either(&values[..half], &line, 9, first, &mut other[..half]);
                either(&values[half..], &line, 9, first + half as u64, &mut other[half..]);
                prop_assert_eq!(&one, &other);
            }
        }

        #[test]
        fn codes_stand_for_the_same_however_they_are_spread(
            seed: u64, count in 0usize..300, bits in 2u32..=8, first in 0usize..40, scale in -3f32..3.0, zero in 0u8..9, base in -2f32..2.0,
        ) {
            let line = Line { scale: scale.exp2(), zero: f32::from(zero), base, codes: (0.0, ((1 << bits) - 1) as f32) };
            let packed = drawn(seed, bits::packed_bytes(first + count, bits));
            let mut codes = vec![0; first + count];
            bits::unpack(&packed, bits, 0..first + count, &mut codes);
            let expected: Vec<f32> = codes[first..].iter().map(|code| (f32::from(*code) - line.zero) * line.scale + line.base).collect();
            let (half, mut values) = (first + count / 2, vec![0.0; count]);
            spread(&packed, bits, [(first..half, line), (half..first + count, line)], &mut values);
            prop_assert_eq!(&values, &expected);
            let mut scalar = vec![0.0; count + first];
            spread_any(&packed, bits, &line, &mut scalar);
            prop_assert_eq!(&scalar[first..], &expected);
        }
    }

    fn drawn(seed: u64, count: usize) -> Vec<u8> {
        (0..count as u64).map(|i| tidegate_core::hash::splitmix64(seed ^ i) as u8).collect()
    }

    /// Runs of whole lines, long runs, and runs that are never streamed.
    #[test]
    fn what_is_beyond_the_caches_is_spread_alike() {
        let count = STREAMED_BYTES / 4;
        let packed = drawn(1, bits::packed_bytes(count, 5));
        let line = |run: usize| Line { scale: 0.5, zero: 3.0, base: run as f32, codes: (0.0, 31.0) };
        for length in [128, 1500, 100, count] {
            let runs = (0..count)
                .step_by(length)
                .map(|start| (start..count.min(start + length), line(start / length)));
            let mut values = vec![0.0; count];
            spread(&packed, 5, runs, &mut values);
            let mut codes = vec![0; count];
            bits::unpack(&packed, 5, 0..count, &mut codes);
            let expected = |i: usize| line(i / length).value(f32::from(codes[i]));
            assert!((0..count).all(|i| values[i] == expected(i)), "runs of {length}");
        }
    }
}
