//! Signs a sample: keys that similar samples probably share, and a signature that tells how
//! similar.
//!
//! Flow: a sample, on the worker that decoded it -> [`Signature`] -> `external_sort` (keys) and a
//! file of signatures.
//! Memory: a signature of at most [`Signer::note_bytes`]; while a text is cut into shingles,
//! [`Signer::working_bytes`].

use serde::{Deserialize, Serialize};
use tidegate_data::pipeline::observer::Sample;
use tidegate_decode::Value;
use tidegate_sketch::hash::float_key;
use tidegate_sketch::neighbour::lsh::Bands;
use tidegate_sketch::neighbour::minhash::{MinHash, shingles};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128, xxh3_128_with_seed};

use super::image_hash::{self, HASH_BITS, HASH_BYTES};
use crate::{Error, Result};

/// Slots of a text's signature. The standard deviation of a similarity is at most 0.045.
const SLOTS: usize = 128;
/// Words in a shingle.
const SHINGLE_WORDS: usize = 5;
/// The bytes of a text that count, from its beginning.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Memory for shingles for each byte of text, for words of two letters or more.
const SHINGLE_BYTES_PER_BYTE: u64 = 12;
/// The smallest probability that texts exactly at the threshold are compared.
const TEXT_RECALL: f64 = 0.97;
/// An estimated similarity may be this many standard deviations below the threshold.
const DEVIATIONS: f64 = 2.0;
/// The smallest probability that images exactly at the threshold are compared, if differing bits
/// are uniform.
const IMAGE_RECALL: f64 = 0.95;

/// What makes two samples duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// The same bytes, as they are stored.
    Bytes,
    /// The same pixels, however they are encoded.
    Pixels,
    /// Similar text, by the fraction of 5-word shingles that two texts share.
    Text,
    /// Images that look similar, by a perceptual hash.
    #[serde(rename = "picture")]
    #[value(name = "picture")]
    Image,
}

impl Criterion {
    /// The default threshold: the smallest similarity of duplicates.
    #[must_use]
    pub fn threshold(self) -> f64 {
        match self {
            Self::Bytes | Self::Pixels => 1.0,
            Self::Text => 0.8,
            // 31 of 256 bits may differ, as in PDQ.
            Self::Image => 1.0 - 31.0 / 256.0,
        }
    }
}

/// The keys and the signature of one sample.
#[derive(Debug)]
pub(super) struct Signature {
    /// The sample's index in the source.
    pub(super) index: u64,
    pub(super) keys: Vec<u64>,
    pub(super) signature: Vec<u8>,
}

/// Signs samples and compares signatures.
#[derive(Debug, Clone)]
pub(super) struct Signer {
    criterion: Criterion,
    /// The index of the field that is signed. None: all fields together.
    field: Option<usize>,
    threshold: f64,
    bands: Bands,
    /// Bits of an image hash in one key.
    key_bits: usize,
}

/// The bands that find pairs at the threshold with the fewest candidates: those with most rows.
fn choose_bands(threshold: f64) -> Result<Bands> {
    let with_rows = |rows: usize| Bands::new(SLOTS / rows, rows).map_err(|e| Error::Config(e.to_string()));
    let mut best = with_rows(1)?;
    for rows in 2..=SLOTS {
        let bands = with_rows(rows)?;
        if bands.probability(threshold) >= TEXT_RECALL {
            best = bands;
        }
    }
    Ok(best)
}

/// The bits of an image hash in each key that find pairs at the threshold with the fewest
/// candidates.
fn choose_key_bits(threshold: f64) -> usize {
    let recall = |bits: usize| 1.0 - (1.0 - threshold.powi(bits as i32)).powi((HASH_BITS / bits) as i32);
    (1..=32).rev().find(|&bits| recall(bits) >= IMAGE_RECALL).unwrap_or(1)
}

impl Signer {
    /// Makes a signer for one field, by its index in the schema, or for all fields together.
    pub(super) fn new(criterion: Criterion, field: Option<usize>, threshold: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&threshold) || threshold == 0.0 {
            return Err(Error::Config(format!("threshold must lie between 0 and 1, not {threshold}")));
        }
        if matches!(criterion, Criterion::Bytes | Criterion::Pixels) && threshold < 1.0 {
            return Err(Error::Config(format!(
                "a threshold of {threshold} has no meaning where all bytes or pixels must be equal: give \
                 by=\"text\" or by=\"picture\" to find similar samples"
            )));
        }
        Ok(Self {
            criterion,
            field,
            threshold,
            bands: choose_bands(threshold)?,
            key_bits: choose_key_bits(threshold),
        })
    }

    /// Bytes of a signature.
    pub(super) fn signature_bytes(&self) -> usize {
        match self.criterion {
            Criterion::Bytes | Criterion::Pixels => 16,
            Criterion::Text => 2 * SLOTS,
            Criterion::Image => HASH_BYTES,
        }
    }

    /// The most keys of a sample.
    pub(super) fn max_keys(&self) -> usize {
        match self.criterion {
            Criterion::Bytes | Criterion::Pixels => 1,
            // One for each band, and one of the whole signature.
            Criterion::Text => 1 + self.bands.bands,
            Criterion::Image => 1 + HASH_BITS / self.key_bits,
        }
    }

    /// The largest size of a sample's keys and signature.
    pub(super) fn note_bytes(&self) -> u64 {
        (size_of::<Signature>() + 8 * self.max_keys() + self.signature_bytes()) as u64
    }

    /// The most memory that a worker needs to sign a sample of up to `largest` bytes.
    pub(super) fn working_bytes(&self, largest: u64) -> u64 {
        if self.criterion == Criterion::Text {
            SHINGLE_BYTES_PER_BYTE * largest.min(MAX_TEXT_BYTES as u64)
        } else {
            0
        }
    }

    /// Signs a sample.
    pub(super) fn sign(&self, sample: &Sample<'_>) -> Signature {
        let stored = match self.field.and_then(|field| sample.values.get(field)) {
            Some(Value::Bytes(bytes)) => bytes,
            Some(Value::Quoted(_)) => sample.columns.first().map_or(&[][..], |made| made.bytes),
            // A missing field makes no two samples duplicates.
            Some(Value::Missing) => {
                return Signature {
                    index: sample.index,
                    keys: Vec::new(),
                    signature: vec![0; self.signature_bytes()],
                };
            }
            _ => &[][..],
        };
        let made = sample.columns.first().map_or(&[][..], |made| made.bytes);
        let (keys, signature) = match self.criterion {
            Criterion::Bytes if self.field.is_none() => from_hash(hash_all(sample.values)),
            Criterion::Bytes => from_hash(xxh3_128(stored)),
            Criterion::Pixels => {
                let shape = sample.columns.first().map_or(&[][..], |made| made.shape);
                let shape: Vec<u8> = shape.iter().flat_map(|axis| axis.to_le_bytes()).collect();
                from_hash(xxh3_128_with_seed(made, xxh3_64(&shape)))
            }
            Criterion::Text => self.sign_text(stored),
            Criterion::Image => self.sign_image(made),
        };
        Signature { index: sample.index, keys, signature }
    }

    fn sign_image(&self, made: &[u8]) -> (Vec<u64>, Vec<u8>) {
        let Some(hash) = image_hash::hash(made) else {
            // An image without contrast is known by its exact pixels.
            return (vec![xxh3_64(made)], vec![0; HASH_BYTES]);
        };
        let bit = |i: usize| u64::from(hash[i / 8] >> (i % 8) & 1);
        let band = |b: usize| {
            let bits = b * self.key_bits..(b + 1) * self.key_bits;
            bits.fold((b as u64 + 1) << 32, |key, i| key ^ bit(i) << (i % self.key_bits))
        };
        let keys = (0..HASH_BITS / self.key_bits).map(band).chain([xxh3_64(&hash)]);
        (keys.collect(), hash.to_vec())
    }

    fn sign_text(&self, stored: &[u8]) -> (Vec<u64>, Vec<u8>) {
        let cut = &stored[..stored.len().min(MAX_TEXT_BYTES)];
        let shingles = shingles(&String::from_utf8_lossy(cut), SHINGLE_WORDS);
        let Some(words) =
            MinHash::new(&shingles, SLOTS).ok().filter(|_| !shingles.is_empty()).map(|hash| hash.words())
        else {
            // A text without words is known by its bytes.
            return (vec![xxh3_64(stored)], vec![0; self.signature_bytes()]);
        };
        let signature: Vec<u8> = words.iter().flat_map(|&word| (word as u16).to_le_bytes()).collect();
        let used = self.bands.bands * self.bands.rows;
        let mut keys = self.bands.keys(&words[..used]).unwrap_or_default();
        keys.push(xxh3_64(&signature));
        (keys, signature)
    }

    /// The similarity of two samples by their signatures, from 0 to 1.
    pub(super) fn similarity(&self, one: &[u8], other: &[u8]) -> f64 {
        match self.criterion {
            Criterion::Bytes | Criterion::Pixels => f64::from(u8::from(one == other)),
            Criterion::Image => image_hash::similarity(one, other),
            Criterion::Text => {
                let equal = one.chunks_exact(2).zip(other.chunks_exact(2)).filter(|(a, b)| a == b).count();
                equal as f64 / SLOTS as f64
            }
        }
    }

    /// Whether two samples of this similarity are duplicates.
    pub(super) fn is_duplicate(&self, similarity: f64) -> bool {
        let t = self.threshold;
        let tolerance = if self.criterion == Criterion::Text {
            DEVIATIONS * (t * (1.0 - t) / SLOTS as f64).sqrt()
        } else {
            0.0
        };
        similarity >= t - tolerance
    }
}

/// One hash of all values of a sample.
fn hash_all(values: &[Value<'_>]) -> u128 {
    let mut hash = Xxh3::new();
    for value in values {
        // Text is hashed without its quoting. Text that cannot be unquoted counts as quoted.
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

fn from_hash(hash: u128) -> (Vec<u64>, Vec<u8>) {
    (vec![hash as u64], hash.to_le_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_reach_their_recall() {
        for (threshold, rows) in [(0.5, 3), (0.7, 5), (0.8, 7), (0.9, 11)] {
            let bands = choose_bands(threshold).unwrap();
            assert_eq!(bands.rows, rows, "{threshold}: {bands:?}");
            assert!(bands.probability(threshold) >= TEXT_RECALL && bands.bands * bands.rows <= SLOTS);
        }
        let default = choose_key_bits(Criterion::Image.threshold());
        assert_eq!((default, choose_key_bits(0.75), choose_key_bits(0.999)), (14, 8, 32));
        assert!(Signer::new(Criterion::Text, None, f64::NAN).is_err());
        assert!(Signer::new(Criterion::Text, None, 0.0).is_err());
        assert!(Signer::new(Criterion::Bytes, None, 0.9).unwrap_err().to_string().contains("by=\"text\""));
    }
}
