//! The hash of a value that every sketch uses.
//!
//! Flow: a number or bytes -> MurmurHash3 x64-128 with seed 9001 -> (low, high); called wherever
//! values are distinguished.
//! Memory: holds none.
//!
//! Function and seed are those of Apache DataSketches in C++, Java and Python, so a hash computed
//! here can be compared with the contents of their sketches. Reference: Appleby, «MurmurHash3»,
//! 2011.

use std::hash::{Hash, Hasher};

/// The seed of Apache DataSketches.
const SEED: u64 = 9001;
const C1: u64 = 0x87C3_7B91_1142_53D5;
const C2: u64 = 0x4CF5_AD43_2745_937F;

fn avalanche(mut x: u64) -> u64 {
    x = (x ^ x >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    x = (x ^ x >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    x ^ x >> 33
}

fn first(k: u64) -> u64 {
    k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

fn second(k: u64) -> u64 {
    k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

fn finish(mut low: u64, mut high: u64, len: u64) -> (u64, u64) {
    (low, high) = (low ^ len, high ^ len);
    low = low.wrapping_add(high);
    high = high.wrapping_add(low);
    (low, high) = (avalanche(low), avalanche(high));
    low = low.wrapping_add(high);
    (low, high.wrapping_add(low))
}

/// Hashes a 64-bit number as its eight bytes.
#[must_use]
pub fn hash_word(value: u64) -> (u64, u64) {
    finish(SEED ^ first(value), SEED, 8)
}

/// Hashes bytes.
///
/// ```
/// use tidegate_sketch::hash::{hash_bytes, hash_word};
/// assert_eq!(hash_bytes(&7u64.to_le_bytes()), hash_word(7));
/// ```
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> (u64, u64) {
    let (mut low, mut high) = (SEED, SEED);
    let word = |bytes: &[u8]| {
        let mut eight = [0; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(eight)
    };
    let mut blocks = bytes.chunks_exact(16);
    for block in &mut blocks {
        low = (low ^ first(word(&block[..8]))).rotate_left(27).wrapping_add(high);
        low = low.wrapping_mul(5).wrapping_add(0x52DC_E729);
        high = (high ^ second(word(&block[8..]))).rotate_left(31).wrapping_add(low);
        high = high.wrapping_mul(5).wrapping_add(0x3849_5AB5);
    }
    let tail = blocks.remainder();
    if tail.len() > 8 {
        high ^= second(word(&tail[8..]));
    }
    if !tail.is_empty() {
        low ^= first(word(&tail[..tail.len().min(8)]));
    }
    finish(low, high, bytes.len() as u64)
}

/// The bits that identify a float: −0 equals 0, and all NaNs are equal. Singles are widened to
/// doubles first.
#[must_use]
pub fn float_key(value: f64) -> u64 {
    if value.is_nan() {
        return 0x7FF8_0000_0000_0000;
    }
    (value + 0.0).to_bits()
}

/// A value to count, with its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    bytes: Bytes<'a>,
    /// The value's hash.
    pub hash: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes<'a> {
    Word(u64),
    Slice(&'a [u8]),
}

impl From<u64> for Key<'_> {
    fn from(word: u64) -> Self {
        Self { bytes: Bytes::Word(word), hash: hash_word(word) }
    }
}

impl From<f64> for Key<'_> {
    fn from(value: f64) -> Self {
        float_key(value).into()
    }
}

impl<'a> From<&'a [u8]> for Key<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes: Bytes::Slice(bytes), hash: hash_bytes(bytes) }
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(text: &'a str) -> Self {
        text.as_bytes().into()
    }
}

/// As DataSketches hashes it in any language: only the bytes, without a length prefix.
impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.bytes {
            Bytes::Word(word) => state.write(&word.to_le_bytes()),
            Bytes::Slice(bytes) => state.write(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with `datasketches`, whose Theta sketch keeps half the hash.
    #[test]
    fn hashes_as_datasketches_do() {
        let text = "the quick brown fox jumps over the lazy dog";
        for n in 0..=text.len() {
            let mut sketch = datasketches::theta::ThetaSketchBuilder::default().build().unwrap();
            let key = Key::from(&text[..n]);
            sketch.update(key);
            assert_eq!(sketch.iter().next().unwrap().hash(), key.hash.0 >> 1, "{n} bytes");
        }
    }

    #[test]
    fn floats_that_are_equal_have_one_key() {
        assert_eq!(float_key(-0.0), float_key(0.0));
        assert_eq!(float_key(f64::NAN), float_key(-f64::NAN));
        assert_ne!(float_key(1.0), float_key(-1.0));
    }
}
