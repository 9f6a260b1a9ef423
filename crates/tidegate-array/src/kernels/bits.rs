//! Bit packing: numbers of 2 to 8 bits in consecutive bits of bytes, the lowest bits first.
//!
//! Flow: numbers, one per byte -> [`packed_bytes`] of bytes -> the same numbers.
//! Memory: the caller's.
//!
//! Eight numbers of n bits take n bytes, so every group of eight begins on a byte. A group is
//! packed and unpacked as one word, with BMI2 instructions if the processor has them.

#![expect(unsafe_code, reason = "BMI2 functions, called where the processor has it")]

use std::ops::Range;

use tidegate_core::simd;

/// Supported widths, in bits.
pub const WIDTHS: std::ops::RangeInclusive<u32> = 2..=8;

/// Numbers per group; every group begins on a byte.
pub const TOGETHER: usize = 8;

/// Bytes that `count` numbers take.
#[must_use]
pub const fn packed_bytes(count: usize, bits: u32) -> usize {
    count / TOGETHER * bits as usize + (count % TOGETHER * bits as usize).div_ceil(8)
}

/// The bits that eight numbers of this width use when there is one number per byte.
pub(super) const fn mask(bits: u32) -> u64 {
    0x0101_0101_0101_0101 * ((1 << bits) - 1)
}

#[inline]
fn spread(word: u64, bits: u32) -> u64 {
    (0..8).fold(0, |bytes, i| bytes | ((word >> (bits * i)) & ((1 << bits) - 1)) << (8 * i))
}

#[inline]
fn gather(bytes: u64, bits: u32) -> u64 {
    (0..8).fold(0, |word, i| word | ((bytes >> (8 * i)) & ((1 << bits) - 1)) << (bits * i))
}

/// The bytes of a group as a word; bytes after the group may be those of the next.
#[inline]
fn word(from: &[u8], at: usize, bits: u32) -> u64 {
    if let Some(whole) = from.get(at..at + 8) {
        return u64::from_le_bytes(whole.try_into().unwrap_or_default());
    }
    let mut word = [0; 8];
    let part = &from[at..from.len().min(at + bits as usize)];
    word[..part.len()].copy_from_slice(part);
    u64::from_le_bytes(word)
}

/// Unpacks a range of numbers that begins at a multiple of [`TOGETHER`].
///
/// # Panics
/// If `from` is too short, the range begins elsewhere, or `into` has another length than the
/// range.
///
/// ```
/// use tidegate_array::kernels::bits::{pack, packed_bytes, unpack};
/// let mut bytes = [0; packed_bytes(5, 3)];
/// pack(&[1, 2, 3, 4, 5], 3, &mut bytes);
/// let mut numbers = [0; 5];
/// unpack(&bytes, 3, 0..5, &mut numbers);
/// assert_eq!(numbers, [1, 2, 3, 4, 5]);
/// ```
pub fn unpack(from: &[u8], bits: u32, range: Range<usize>, into: &mut [u8]) {
    assert!(
        range.start.is_multiple_of(TOGETHER) && range.len() == into.len(),
        "the range must begin at a group and be as long as `into`"
    );
    assert!(WIDTHS.contains(&bits) && from.len() >= packed_bytes(range.end, bits), "there are too few bytes");
    let from = &from[packed_bytes(range.start, bits)..];
    if bits == 8 {
        return into.copy_from_slice(&from[..into.len()]);
    }
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: `simd::avx2` checks for BMI2 too.
        return unsafe { unpack_bmi2(from, bits, into) };
    }
    unpack_with(from, bits, into, spread);
}

/// # Safety
/// The processor must have BMI2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
unsafe fn unpack_bmi2(from: &[u8], bits: u32, into: &mut [u8]) {
    use std::arch::x86_64::_pdep_u64;
    unpack_with(from, bits, into, |word, bits| _pdep_u64(word, mask(bits)));
}

#[inline(always)]
fn unpack_with(from: &[u8], bits: u32, into: &mut [u8], spread: impl Fn(u64, u32) -> u64) {
    for (i, numbers) in into.chunks_mut(TOGETHER).enumerate() {
        let bytes = spread(word(from, i * bits as usize, bits), bits).to_le_bytes();
        numbers.copy_from_slice(&bytes[..numbers.len()]);
    }
}

/// Packs the lowest `bits` bits of each number.
///
/// # Panics
/// If `into` is not [`packed_bytes`] long.
pub fn pack(numbers: &[u8], bits: u32, into: &mut [u8]) {
    assert!(
        WIDTHS.contains(&bits) && into.len() == packed_bytes(numbers.len(), bits),
        "`into` must be packed_bytes long"
    );
    if bits == 8 {
        return into.copy_from_slice(numbers);
    }
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: `simd::avx2` checks for BMI2 too.
        return unsafe { pack_bmi2(numbers, bits, into) };
    }
    pack_with(numbers, bits, into, gather);
}

/// # Safety
/// The processor must have BMI2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
unsafe fn pack_bmi2(numbers: &[u8], bits: u32, into: &mut [u8]) {
    use std::arch::x86_64::_pext_u64;
    pack_with(numbers, bits, into, |bytes, bits| _pext_u64(bytes, mask(bits)));
}

#[inline(always)]
fn pack_with(numbers: &[u8], bits: u32, into: &mut [u8], gather: impl Fn(u64, u32) -> u64) {
    let (eights, rest) = numbers.as_chunks::<TOGETHER>();
    // Eight numbers take as many bytes as a number has bits.
    let taken = bits as usize;
    for (i, eight) in eights.iter().enumerate() {
        let word = gather(u64::from_le_bytes(*eight), bits).to_le_bytes();
        // Writes a whole word if it fits: the next word overwrites the excess.
        match into[i * taken..].first_chunk_mut() {
            Some(into) => *into = word,
            None => into[i * taken..][..taken].copy_from_slice(&word[..taken]),
        }
    }
    if !rest.is_empty() {
        let mut bytes = [0; TOGETHER];
        bytes[..rest.len()].copy_from_slice(rest);
        let word = gather(u64::from_le_bytes(bytes), bits).to_le_bytes();
        let last = &mut into[eights.len() * taken..];
        last.copy_from_slice(&word[..last.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_restored_from_the_documented_bits(
            numbers in proptest::collection::vec(any::<u8>(), 0..300), bits in 2u32..=8, start in 0usize..10,
        ) {
            let low: Vec<u8> = numbers.iter().map(|n| (u32::from(*n) & ((1 << bits) - 1)) as u8).collect();
            let mut bytes = vec![0; packed_bytes(numbers.len(), bits)];
            pack(&numbers, bits, &mut bytes);
            for (i, n) in low.iter().enumerate() {
                for bit in 0..bits as usize {
                    let at = i * bits as usize + bit;
                    prop_assert_eq!(bytes[at / 8] >> (at % 8) & 1, n >> bit & 1);
                }
            }
            let start = (start * TOGETHER).min(numbers.len() / TOGETHER * TOGETHER);
            let mut back = vec![0; numbers.len() - start];
            unpack(&bytes, bits, start..numbers.len(), &mut back);
            prop_assert_eq!(&back, &low[start..]);
        }

        #[test]
        fn instructions_and_shifts_agree(word: u64, bits in 2u32..8) {
            let spread_out = spread(word, bits);
            prop_assert_eq!(gather(spread_out, bits), word & ((1 << (8 * bits)) - 1));
            let from = word.to_le_bytes();
            let mut numbers = [0; 8];
            unpack(&from, bits, 0..8, &mut numbers);
            prop_assert_eq!(u64::from_le_bytes(numbers), spread_out);
        }
    }
}
