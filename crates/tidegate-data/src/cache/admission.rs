//! Which objects a fixed set admits, and which content they belong to: hashes.
//!
//! Flow: limit and sizes -> [`AdmissionHash`] -> yes or no for a key; a source ->
//! [`dataset_hash`]; called by every tier with a fixed set.
//! Memory: holds none.

use tidegate_core::hash::splitmix64;
use tidegate_source::Source;

/// The keys of a fixed set: those whose hash is at most a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AdmissionHash(u64);

impl AdmissionHash {
    /// Admits as many of `count` objects with `total_bytes` as `limit_bytes` can hold.
    ///
    /// It admits a few more than that, so that the tier gets full. A full tier refuses the rest.
    pub(super) fn for_limit(limit_bytes: u64, total_bytes: u64, count: u64) -> Self {
        let fraction = limit_bytes as f64 / total_bytes.max(1) as f64;
        // The bytes of a random set of n objects spread by about 1 / sqrt(n).
        let spread = 3.0 / (fraction * count as f64).max(1.0).sqrt();
        let fraction = fraction * (1.01 + spread);
        // The cast saturates: a fraction above 1 admits all keys.
        Self((fraction * u64::MAX as f64) as u64)
    }

    pub(super) fn admits(self, key: u64) -> bool {
        splitmix64(key) <= self.0
    }

    /// As [`AdmissionHash::admits`], for the same fraction counted from the largest hash down.
    pub(super) fn admits_from_end(self, key: u64) -> bool {
        !splitmix64(key) <= self.0
    }
}

/// A hash that tells this content from any other, as far as possible without reading it.
pub(super) fn dataset_hash(source: &dyn Source) -> u64 {
    let index = source.index().map_or([0; 2], |index| [index.meta.fingerprint, index.meta.identity()]);
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    index.iter().chain([&source.content_version()]).for_each(|part| hash.update(&part.to_le_bytes()));
    hash.digest()
}
