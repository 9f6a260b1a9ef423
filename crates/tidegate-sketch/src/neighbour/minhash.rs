//! Similarity of sets from small signatures: MinHash.
//!
//! Flow: text -> [`shingles`] -> hashes -> [`MinHash`] -> [`similarity`], or `lsh` to find similar
//! sets without comparing all.
//! Memory: eight bytes per slot.
//!
//! Fast similarity sketching (Dahlgaard, Knudsen and Thorup, FOCS 2017) fills all slots together
//! in rounds. A set of n elements takes about n + t log t hashes for t slots, where the classical
//! scheme takes n·t, and the estimate is still unbiased.

use crate::hash::hash_bytes;
use crate::{Error, Result};
use tidegate_core::hash::{GOLDEN, splitmix64_finalize};

/// The signature of a set of hashes.
///
/// ```
/// use tidegate_sketch::neighbour::minhash::{MinHash, shingles};
/// let signature = |text: &str| MinHash::new(&shingles(text, 2), 256);
/// let one = signature("the cat sat on the mat today")?;
/// let other = signature("The cat sat on the mat, yesterday.")?;
/// assert!(one.similarity(&other)? > 0.4);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinHash(Vec<u64>);

/// The value of an element for a slot in a round; a slot keeps the smallest.
fn slot_value(element: u64, round: u64) -> u64 {
    // Without this product, elements that are not hashes would leave their pattern.
    let spread = element.wrapping_mul(GOLDEN);
    let wide = u128::from(spread ^ spread >> 32 ^ splitmix64_finalize(round)) * 0xA076_1D64_78BD_642F;
    (wide >> 64) as u64 ^ wide as u64
}

impl MinHash {
    /// The signature of a set, with this many slots. Elements are 64-bit hashes and may repeat.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0 slots, or more than 4,096.
    pub fn new(elements: &[u64], slots: usize) -> Result<Self> {
        if !(1..=4096).contains(&slots) {
            return Err(Error::parameter("slots", slots, "a summary has between 1 and 4,096 slots"));
        }
        let mut least = vec![u64::MAX; slots];
        let mut empty = if elements.is_empty() { 0 } else { slots };
        for round in 0..slots as u64 {
            if empty == 0 {
                return Ok(Self(least));
            }
            for &element in elements {
                let hash = slot_value(element, round);
                let slot = (((hash >> 32) * slots as u64) >> 32) as usize;
                let value = round << 32 | hash & 0xFFFF_FFFF;
                empty -= usize::from(least[slot] == u64::MAX);
                least[slot] = least[slot].min(value);
            }
        }
        // A few slots may be empty: a round of its own fills each.
        for (round, slot) in (slots as u64..).zip(&mut least).filter(|(_, slot)| **slot == u64::MAX) {
            *slot = elements
                .iter()
                .map(|&e| round << 32 | slot_value(e, round) & 0xFFFF_FFFF)
                .min()
                .unwrap_or(u64::MAX);
        }
        Ok(Self(least))
    }

    /// Merges with another signature: the result is that of the union of both sets.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the numbers of slots differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::mismatch("MinHash summaries", "the number of slots", self.0.len(), other.0.len())?;
        self.0.iter_mut().zip(&other.0).for_each(|(one, other)| *one = (*one).min(*other));
        Ok(())
    }

    /// Estimates the Jaccard similarity, |A ∩ B| / |A ∪ B|. The standard deviation is at most that
    /// of as many coin flips as slots.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the numbers of slots differ.
    pub fn similarity(&self, other: &Self) -> Result<f64> {
        Error::mismatch("MinHash summaries", "the number of slots", self.0.len(), other.0.len())?;
        Ok(similarity(&self.words(), &other.words()))
    }

    /// 32 bits of each slot, which suffice for comparison.
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        self.0.iter().map(|&slot| splitmix64_finalize(slot) as u32).collect()
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.0.len() * 8) as u64
    }
}

/// The fraction of equal slots of two signatures of the same length.
#[must_use]
pub fn similarity(one: &[u32], other: &[u32]) -> f64 {
    one.iter().zip(other).filter(|(a, b)| a == b).count() as f64 / one.len() as f64
}

/// Whether the character's script does not separate words by spaces: each character is then a
/// word.
fn is_word(c: char) -> bool {
    // Thai to Burmese, Khmer, kana, and the ideographs with their extensions.
    matches!(c as u32, 0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x2_0000..=0x3_FFFF)
}

/// The hashes of all runs of `n` words of a text, in lower case, without characters other than
/// letters and digits. A text of fewer words gives the hash of all its words. In scripts without
/// spaces each character is a word.
#[must_use]
pub fn shingles(text: &str, n: usize) -> Vec<u64> {
    let n = n.max(1);
    let (mut word, mut words) = (String::new(), Vec::new());
    let mut end = |word: &mut String| {
        if !word.is_empty() {
            words.push(hash_bytes(word.as_bytes()).0);
            word.clear();
        }
    };
    for c in text.chars() {
        if !c.is_alphanumeric() {
            end(&mut word);
        } else if is_word(c) {
            end(&mut word);
            word.push(c);
            end(&mut word);
        } else if c.is_ascii() {
            word.push(c.to_ascii_lowercase());
        } else {
            word.extend(c.to_lowercase());
        }
    }
    end(&mut word);
    let together =
        |run: &[u64]| run.iter().fold(n as u64, |hash, word| splitmix64_finalize(hash.rotate_left(5) ^ word));
    if words.len() < n {
        return if words.is_empty() { Vec::new() } else { vec![together(&words)] };
    }
    words.windows(n).map(together).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sets of n elements each that share a fraction of them.
    fn pair(seed: u64, n: u64, similarity: f64) -> (Vec<u64>, Vec<u64>) {
        let both = (2.0 * n as f64 * similarity / (1.0 + similarity)).round() as u64;
        let element = |i: u64| splitmix64_finalize(seed << 32 | i);
        let one = (0..n).map(element).collect();
        let other = (0..both).chain(n..2 * n - both).map(element).collect();
        (one, other)
    }

    /// No bias, and no more variance than t independent coins; small sets and large.
    #[test]
    fn is_unbiased() {
        let (slots, runs) = (128, 1000);
        for n in [10, 100, 1000] {
            for similarity in [0.2, 0.5, 0.8] {
                let (one, other) = pair(0, n, similarity);
                let both = one.iter().filter(|e| other.contains(e)).count() as f64;
                let truth = both / (2.0 * n as f64 - both);
                let errors: Vec<f64> = (0..runs)
                    .map(|seed| {
                        let (one, other) = pair(seed + 1, n, similarity);
                        let of = |set: &[u64]| MinHash::new(set, slots).unwrap();
                        of(&one).similarity(&of(&other)).unwrap() - truth
                    })
                    .collect();
                let (mean, square) = errors
                    .iter()
                    .fold((0.0, 0.0), |(m, s), e| (m + e / runs as f64, s + e * e / runs as f64));
                let coins = (truth * (1.0 - truth) / slots as f64).sqrt();
                assert!(mean.abs() < 4.0 * coins / (runs as f64).sqrt(), "bias {mean} for {n}, {truth}");
                assert!(
                    square.sqrt() < 1.1 * coins,
                    "RMSE {} for {n}, {truth}, coins {coins}",
                    square.sqrt()
                );
            }
        }
    }

    #[test]
    fn plain_numbers_leave_no_pattern() {
        for step in [1, 2, 7, 1000] {
            let of = |from: u64| {
                MinHash::new(&(from..from + 5000).map(|i| i * step).collect::<Vec<_>>(), 2048).unwrap()
            };
            let found = of(0).similarity(&of(2500)).unwrap();
            assert!((found - 1.0 / 3.0).abs() < 0.04, "{found} for steps of {step}");
        }
    }

    #[test]
    fn merges_as_if_sketched_together() {
        for n in [1, 5, 50, 500] {
            let (one, other) = pair(3, n, 0.3);
            let of = |set: &[u64]| MinHash::new(set, 64).unwrap();
            let mut merged = of(&one);
            merged.merge(&of(&other)).unwrap();
            assert_eq!(merged, of(&[one.clone(), other, one].concat()));
        }
        let mut empty = MinHash::new(&[], 64).unwrap();
        assert!(empty.merge(&MinHash::new(&[1], 32).unwrap()).is_err());
        assert!(MinHash::new(&[1], 0).is_err());
    }

    #[test]
    fn shingles_are_runs_of_words() {
        assert_eq!(shingles("One two, three!", 2), shingles("one  TWO three", 2));
        assert_eq!(
            (shingles("a b c d", 2).len(), shingles("a b", 5).len(), shingles(" ,", 5).len()),
            (3, 1, 0)
        );
        assert_ne!(shingles("a b", 2), shingles("b a", 2));
        assert_eq!(shingles("abc漢字かな", 1), shingles("ABC 漢 字 か な", 1));
    }
}
