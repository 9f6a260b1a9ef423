//! A subset of a source: chosen ids, in the order given.
//!
//! Flow: source + ids -> a source with its own fingerprint.
//! Memory: 8 bytes an id while the subset is open.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::files::read::Extent;
use crate::index::Index;
use crate::left_out::LeftOut;
use crate::{Access, Chunked, Grouped, Located, ReadMode, SizeBounds, Source};
use crate::{Error, Place, Result};
use tidegate_decode::{Schema, Value};
use tidegate_order::permutation::Permutation;

/// Chosen samples of another source.
#[derive(Debug)]
pub struct Subset {
    base: Arc<dyn Source>,
    ids: Vec<u64>,
    fingerprint: u64,
    shard_lengths: Vec<u64>,
    /// Bytes of these samples, computed at the first call.
    total_bytes: OnceLock<u64>,
}

impl Subset {
    /// The samples `ids` of `base`.
    ///
    /// # Errors
    /// [`Error::Config`] for an id past the end.
    pub fn new(base: Arc<dyn Source>, ids: Vec<u64>) -> Result<Self> {
        if let Some(id) = ids.iter().find(|&&id| id >= base.len()) {
            return Err(Error::Config(format!(
                "cannot select sample {id}: {} has {}",
                base.name(),
                base.len()
            )));
        }
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&base.fingerprint().to_le_bytes());
        for id in &ids {
            hash.update(&id.to_le_bytes());
        }
        let shard_lengths = lengths_of(&ids, &base.shard_lengths());
        Ok(Self { base, ids, fingerprint: hash.digest(), shard_lengths, total_bytes: OnceLock::new() })
    }
}

impl Subset {
    fn sum_bytes(&self) -> Result<u64> {
        self.ids.chunks(4096).try_fold(0, |sum, ids| {
            let found = self.base.locate(ids)?;
            Ok(sum + found.iter().map(|at| u64::from(at.entry.len)).sum::<u64>())
        })
    }
}

/// Lengths of the stretches of `ids` that are in the same shard of the base.
fn lengths_of(ids: &[u64], base: &[u64]) -> Vec<u64> {
    let mut ends = Vec::with_capacity(base.len());
    base.iter().fold(0, |at, n| {
        ends.push(at + n);
        at + n
    });
    let mut runs: Vec<u64> = Vec::new();
    let mut last = None;
    for &id in ids {
        let run = ends.partition_point(|&end| end <= id);
        match (last == Some(run)).then(|| runs.last_mut()).flatten() {
            Some(n) => *n += 1,
            None => runs.push(1),
        }
        last = Some(run);
    }
    runs
}

impl Source for Subset {
    fn name(&self) -> &str {
        self.base.name()
    }
    fn len(&self) -> u64 {
        self.ids.len() as u64
    }
    fn schema(&self) -> &Schema {
        self.base.schema()
    }
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
    fn shard_lengths(&self) -> Vec<u64> {
        self.shard_lengths.clone()
    }
    fn access(&self) -> Access {
        self.base.access()
    }
    fn size_bounds(&self) -> SizeBounds {
        let bounds = self.base.size_bounds();
        // The bounds of the base hold here too, even if their samples are not in the subset.
        let own = |id: u64| self.ids.iter().position(|&own| own == id).unwrap_or(0) as u64;
        let total_bytes = *self.total_bytes.get_or_init(|| self.sum_bytes().unwrap_or(bounds.total_bytes));
        let (scratch_id, decoded_id) = (own(bounds.scratch_id), own(bounds.decoded_id));
        SizeBounds { scratch_id, decoded_id, total_bytes, ..bounds }
    }
    fn library_bytes(&self) -> u64 {
        self.base.library_bytes()
    }
    fn content_version(&self) -> u64 {
        self.base.content_version()
    }
    fn latency(&self) -> Option<Duration> {
        self.base.latency()
    }
    fn kernel_bytes(&self) -> u64 {
        self.base.kernel_bytes()
    }
    fn grouped(&self) -> Option<&dyn Grouped> {
        self.base.grouped()
    }
    fn chunked(&self) -> Option<&dyn Chunked> {
        self.base.chunked()
    }
    fn changed(&self, at: &Located) -> Option<String> {
        self.base.changed(at)
    }
    fn uncertain(&self) -> &[String] {
        self.base.uncertain()
    }
    fn units(&self) -> Vec<(String, String)> {
        self.base.units()
    }
    fn missing(&self) -> &[u64] {
        self.base.missing()
    }
    fn left_out(&self) -> &[LeftOut] {
        self.base.left_out()
    }
    fn index_dir(&self) -> Option<&Path> {
        self.base.index_dir()
    }
    fn index(&self) -> Option<&Index> {
        self.base.index()
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let inner: Option<Vec<u64>> = ids.iter().map(|&id| self.ids.get(id as usize).copied()).collect();
        let inner = inner
            .ok_or_else(|| Error::Config(format!("an id past the {} of this subset", self.ids.len())))?;
        self.base.locate(&inner)
    }
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        self.base.read(at, len, mode, into)
    }
    fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        self.base.extent(at)
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        self.base.parse(at, bytes)
    }
    fn key(&self, id: u64) -> Result<String> {
        let inner = self.ids.get(id as usize).ok_or_else(|| Error::Config(format!("no sample {id}")))?;
        self.base.key(*inner)
    }
    fn place(&self, at: &Located) -> Place {
        self.base.place(at)
    }
    fn classes(&self) -> &[String] {
        self.base.classes()
    }
    fn shards(&self) -> Vec<PathBuf> {
        self.base.shards()
    }
}

/// Splits a source at random into parts of the given fractions; ids ascend in each part.
///
/// # Errors
/// [`Error::Config`] when fractions are negative or add up to more than 1.
pub fn split(base: &Arc<dyn Source>, fractions: &[f64], seed: u64) -> Result<Vec<Subset>> {
    let sum: f64 = fractions.iter().sum();
    if fractions.iter().any(|f| !f.is_finite() || *f < 0.0) || sum > 1.0 + 1e-9 {
        return Err(Error::Config(format!("fractions must be positive and add up to at most 1, not {sum}")));
    }
    let n = base.len();
    let permutation = Permutation::new(n, seed, 0, u64::MAX);
    let mut start = 0u64;
    let mut total = 0.0;
    let mut parts = Vec::new();
    for fraction in fractions {
        total += fraction;
        let end = ((n as f64 * total).round() as u64).clamp(start, n);
        let mut ids: Vec<u64> = (start..end).map(|p| permutation.apply(p)).collect();
        ids.sort_unstable();
        parts.push(Subset::new(Arc::clone(base), ids)?);
        start = end;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Synthetic;

    #[test]
    fn parts_are_disjoint_and_complete() {
        let base: Arc<dyn Source> = Arc::new(Synthetic::new(1000, 16));
        let parts = split(&base, &[0.7, 0.3], 1).unwrap();
        let mut ids: Vec<u64> = parts.iter().flat_map(|p| p.ids.clone()).collect();
        assert_eq!((parts[0].len(), parts[1].len()), (700, 300));
        ids.sort_unstable();
        assert_eq!(ids, (0..1000).collect::<Vec<_>>());
        assert_ne!(parts[0].fingerprint(), parts[1].fingerprint());
        assert!(split(&base, &[0.7, 0.4], 1).is_err());
        assert!(Subset::new(base, vec![1000]).is_err());
    }

    #[test]
    fn shard_lengths_follow_the_base() {
        assert_eq!(lengths_of(&[0, 1, 5, 6, 7, 2], &[5, 5]), [2, 3, 1]);
    }
}
