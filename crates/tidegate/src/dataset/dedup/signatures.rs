//! What a sample is known by: keys that alike samples are likely to share, and a signature that tells how alike they are.
//!
//! Flow: a sample, on the worker that has made it -> [`Mark`] -> `sorted` (keys) and a file of signatures.
//! Memory: a mark of at most [`Marker::note_bytes`]; while a text is cut in shingles [`Marker::working_bytes`].

use serde::{Deserialize, Serialize};
use tidegate_data::pipeline::observer::Sample;
use tidegate_decode::Value;
use tidegate_sketch::hash::float_key;
use tidegate_sketch::neighbour::lsh::Bands;
use tidegate_sketch::neighbour::minhash::{MinHash, shingles};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128, xxh3_128_with_seed};

use super::image_hash::{self, HASH_BITS, HASH_BYTES};
use crate::{Error, Result};

/// Slots of a text's signature: similarities are told to a standard deviation of at most 0.045.
const SLOTS: usize = 128;
/// Words of a shingle.
const WORDS: usize = 5;
/// Bytes of a text that it is judged by.
const TEXT_BYTES: usize = 1 << 20;
/// What cutting a text takes for each byte of it: words of two letters and more, and as many shingles.
const CUTTING: u64 = 12;
/// The least chance that texts of just the threshold are compared.
const CAUGHT: f64 = 0.97;
/// Similarities that are estimated may lie this many standard deviations below the threshold.
const DEVIATIONS: f64 = 2.0;
/// The least chance that pictures of just the threshold are compared, if bits differ evenly.
const SEEN: f64 = 0.95;

/// What makes two samples duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The same bytes, as they are stored.
    Bytes,
    /// The same pixels, however they are stored.
    Pixels,
    /// Nearly the same text, by the 5-word shingles they share.
    Text,
    /// Pictures that look alike, by a perceptual hash.
    Picture,
}

impl By {
    /// The least similarity of duplicates where nothing is said.
    #[must_use]
    pub fn threshold(self) -> f64 {
        match self {
            Self::Bytes | Self::Pixels => 1.0,
            Self::Text => 0.8,
            // 31 bits of 256, as PDQ has it.
            Self::Picture => 1.0 - 31.0 / 256.0,
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Mark {
    /// Its place in the source.
    pub(super) index: u64,
    pub(super) keys: Vec<u64>,
    pub(super) signature: Vec<u8>,
}

/// Makes marks.
#[derive(Debug, Clone)]
pub(super) struct Marker {
    by: By,
    /// None: all of them together.
    field: Option<usize>,
    threshold: f64,
    bands: Bands,
    /// Bits of a picture's hash that lie in one key.
    bits: usize,
}

/// The bands that catch a similarity with the fewest candidates: as many rows as may be.
fn bands(threshold: f64) -> Result<Bands> {
    let of = |rows: usize| Bands::new(SLOTS / rows, rows).map_err(|e| Error::Config(e.to_string()));
    let mut best = of(1)?;
    for rows in 2..=SLOTS {
        let bands = of(rows)?;
        if bands.probability(threshold) >= CAUGHT {
            best = bands;
        }
    }
    Ok(best)
}

/// The bits of a picture's hash in each key that catch a similarity with the fewest candidates.
fn bits(threshold: f64) -> usize {
    let seen = |bits: usize| 1.0 - (1.0 - threshold.powi(bits as i32)).powi((HASH_BITS / bits) as i32);
    (1..=32).rev().find(|&bits| seen(bits) >= SEEN).unwrap_or(1)
}

impl Marker {
    /// By which field, the how-manieth of the schema, samples are told; or by all.
    pub(super) fn new(by: By, field: Option<usize>, threshold: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&threshold) || threshold == 0.0 {
            return Err(Error::Config(format!("threshold must lie between 0 and 1, not {threshold}")));
        }
        if matches!(by, By::Bytes | By::Pixels) && threshold < 1.0 {
            let more = "give by=\"text\" or by=\"picture\" for what is nearly the same";
            return Err(Error::Config(format!(
                "a threshold of {threshold} has no meaning where all must be the same: {more}"
            )));
        }
        Ok(Self { by, field, threshold, bands: bands(threshold)?, bits: bits(threshold) })
    }

    pub(super) fn signature_bytes(&self) -> usize {
        match self.by {
            By::Bytes | By::Pixels => 16,
            By::Text => 2 * SLOTS,
            By::Picture => HASH_BYTES,
        }
    }

    /// Keys of a sample at most.
    pub(super) fn keys(&self) -> usize {
        match self.by {
            By::Bytes | By::Pixels => 1,
            // And one of the whole.
            By::Text => 1 + self.bands.bands,
            By::Picture => 1 + HASH_BITS / self.bits,
        }
    }

    pub(super) fn note_bytes(&self) -> u64 {
        (size_of::<Mark>() + 8 * self.keys() + self.signature_bytes()) as u64
    }

    /// What each worker takes meanwhile at most, of samples of up to `largest` bytes.
    pub(super) fn working_bytes(&self, largest: u64) -> u64 {
        if self.by == By::Text { CUTTING * largest.min(TEXT_BYTES as u64) } else { 0 }
    }

    pub(super) fn mark(&self, sample: &Sample<'_>) -> Mark {
        let stored = match self.field.and_then(|field| sample.values.get(field)) {
            Some(Value::Bytes(bytes)) => bytes,
            Some(Value::Quoted(_)) => sample.made.first().map_or(&[][..], |made| made.bytes),
            // What a sample lacks it has in common with nobody.
            Some(Value::Missing) => {
                return Mark {
                    index: sample.index,
                    keys: Vec::new(),
                    signature: vec![0; self.signature_bytes()],
                };
            }
            _ => &[][..],
        };
        let made = sample.made.first().map_or(&[][..], |made| made.bytes);
        let (keys, signature) = match self.by {
            By::Bytes if self.field.is_none() => whole(together(sample.values)),
            By::Bytes => whole(xxh3_128(stored)),
            By::Pixels => {
                let shape = sample.made.first().map_or(&[][..], |made| made.shape);
                let shape: Vec<u8> = shape.iter().flat_map(|axis| axis.to_le_bytes()).collect();
                whole(xxh3_128_with_seed(made, xxh3_64(&shape)))
            }
            By::Text => self.text(stored),
            By::Picture => self.picture(made),
        };
        Mark { index: sample.index, keys, signature }
    }

    fn picture(&self, made: &[u8]) -> (Vec<u64>, Vec<u8>) {
        let Some(hash) = image_hash::hash(made) else {
            // Nothing to be known by but its own pixels.
            return (vec![xxh3_64(made)], vec![0; HASH_BYTES]);
        };
        let bit = |i: usize| u64::from(hash[i / 8] >> (i % 8) & 1);
        let band = |b: usize| {
            let bits = b * self.bits..(b + 1) * self.bits;
            bits.fold((b as u64 + 1) << 32, |key, i| key ^ bit(i) << (i % self.bits))
        };
        let keys = (0..HASH_BITS / self.bits).map(band).chain([xxh3_64(&hash)]);
        (keys.collect(), hash.to_vec())
    }

    fn text(&self, stored: &[u8]) -> (Vec<u64>, Vec<u8>) {
        let cut = &stored[..stored.len().min(TEXT_BYTES)];
        let shingles = shingles(&String::from_utf8_lossy(cut), WORDS);
        let Some(words) =
            MinHash::new(&shingles, SLOTS).ok().filter(|_| !shingles.is_empty()).map(|hash| hash.words())
        else {
            // Without a word, texts are told by their bytes.
            return (vec![xxh3_64(stored)], vec![0; self.signature_bytes()]);
        };
        let signature: Vec<u8> = words.iter().flat_map(|&word| (word as u16).to_le_bytes()).collect();
        let used = self.bands.bands * self.bands.rows;
        let mut keys = self.bands.keys(&words[..used]).unwrap_or_default();
        keys.push(xxh3_64(&signature));
        (keys, signature)
    }

    /// How alike two samples are by their signatures.
    pub(super) fn similarity(&self, one: &[u8], other: &[u8]) -> f64 {
        match self.by {
            By::Bytes | By::Pixels => f64::from(u8::from(one == other)),
            By::Picture => image_hash::similarity(one, other),
            By::Text => {
                let equal = one.chunks_exact(2).zip(other.chunks_exact(2)).filter(|(a, b)| a == b).count();
                equal as f64 / SLOTS as f64
            }
        }
    }

    /// Whether two samples of this similarity are duplicates.
    pub(super) fn alike(&self, similarity: f64) -> bool {
        let t = self.threshold;
        let unsure =
            if self.by == By::Text { DEVIATIONS * (t * (1.0 - t) / SLOTS as f64).sqrt() } else { 0.0 };
        similarity >= t - unsure
    }
}

/// One hash of all values.
fn together(values: &[Value<'_>]) -> u128 {
    let mut hash = Xxh3::new();
    for value in values {
        // The same text is the same, however it is quoted; what cannot be unquoted is as it is.
        let text = if let Value::Quoted(quoted) = value { quoted.text().ok() } else { None };
        let value = text.as_deref().map_or(*value, Value::Bytes);
        let (kind, word) = match value {
            Value::Missing => (0u8, 0),
            Value::Bytes(bytes) => (1, bytes.len() as u64),
            Value::Int(x) => (2, x.cast_unsigned()),
            Value::Float(x) => (3, float_key(x)),
            Value::Quoted(_) => (4, 0),
        };
        hash.update(&[kind]);
        hash.update(&word.to_le_bytes());
        if let Value::Bytes(bytes) = value {
            hash.update(bytes);
        }
    }
    hash.digest128()
}

fn whole(hash: u128) -> (Vec<u64>, Vec<u8>) {
    (vec![hash as u64], hash.to_le_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_catch_what_they_must() {
        for (threshold, rows) in [(0.5, 3), (0.7, 5), (0.8, 7), (0.9, 11)] {
            let bands = bands(threshold).unwrap();
            assert_eq!(bands.rows, rows, "{threshold}: {bands:?}");
            assert!(bands.probability(threshold) >= CAUGHT && bands.bands * bands.rows <= SLOTS);
        }
        let of = |by: By| bits(by.threshold());
        assert_eq!((of(By::Picture), bits(0.75), bits(0.999)), (14, 8, 32));
        assert!(Marker::new(By::Text, None, f64::NAN).is_err());
        assert!(Marker::new(By::Text, None, 0.0).is_err());
        assert!(Marker::new(By::Bytes, None, 0.9).unwrap_err().to_string().contains("by=\"text\""));
    }
}
