//! Rows that are decoded in groups: how often a group is decoded, and shuffles that are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate::{Budget, Loader, Options, Shuffle};
use tidegate_data::Place;
use tidegate_decode::Value;
use tidegate_source::{Access, Grouped, Located, ReadMode, SizeBounds, Source, Synthetic};

use super::{epoch, loader, options};

/// Rows in groups of 100 that know their ids and count how often a group is decoded.
#[derive(Debug)]
struct Rows {
    plain: Synthetic,
    group_bytes: u64,
    decoded: AtomicU64,
}

impl Rows {
    fn new(group_bytes: u64) -> Arc<Self> {
        Arc::new(Self { plain: Synthetic::new(1000, 8), group_bytes, decoded: 0.into() })
    }
}

impl Grouped for Rows {
    fn group_bytes(&self) -> u64 {
        self.group_bytes
    }
    fn group_of(&self, at: &Located) -> u64 {
        at.id / 100
    }
    fn decode(&self, at: &Located, _: &[bool], _: ReadMode, into: &mut [u8]) -> tidegate_source::Result<()> {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        for (row, bytes) in into.chunks_exact_mut(8).take(100).enumerate() {
            bytes.copy_from_slice(&(at.id / 100 * 100 + row as u64).to_le_bytes());
        }
        Ok(())
    }
    fn row<'a>(&self, at: &Located, group: &'a [u8]) -> Option<&'a [u8]> {
        group.chunks_exact(8).nth(at.id as usize % 100)
    }
}

impl Source for Rows {
    fn name(&self) -> &str {
        "rows"
    }
    fn len(&self) -> u64 {
        self.plain.len()
    }
    fn schema(&self) -> &tidegate_decode::Schema {
        self.plain.schema()
    }
    fn fingerprint(&self) -> u64 {
        self.plain.fingerprint()
    }
    fn shard_lengths(&self) -> Vec<u64> {
        vec![100; 10]
    }
    fn access(&self) -> Access {
        Access::Grouped
    }
    fn grouped(&self) -> Option<&dyn Grouped> {
        Some(self)
    }
    fn size_bounds(&self) -> SizeBounds {
        self.plain.size_bounds()
    }
    fn locate(&self, ids: &[u64]) -> tidegate_source::Result<Vec<Located>> {
        self.plain.locate(ids)
    }
    fn read(
        &self,
        _: &Located,
        _: u64,
        _: ReadMode,
        _: &mut [u8],
    ) -> tidegate_source::Result<std::ops::Range<usize>> {
        Err(tidegate_source::Error::Config("rows are read by groups".into()))
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> tidegate_source::Result<Vec<Value<'a>>> {
        self.plain.parse(at, bytes)
    }
    fn key(&self, id: u64) -> tidegate_source::Result<String> {
        self.plain.key(id)
    }
    fn place(&self, at: &Located) -> Place {
        self.plain.place(at)
    }
}

#[test]
fn groups_are_decoded_once_except_on_a_windows_border() {
    for (shuffle, most) in [
        (Shuffle::None, 10),
        (Shuffle::Full, 10),
        // Eight windows: each but the last may cut a group, which the next decodes again.
        (Shuffle::Window { samples: 130, canonical_nodes: 1, range_samples: 0 }, 10 + 7),
    ] {
        let rows = Rows::new(800);
        let source: Arc<dyn Source> = rows.clone();
        let mut loader = loader(&source, Options { shuffle, ..options(32) }, 16 << 20);
        let mut seen = epoch(&mut loader);
        seen.sort();
        let ids: Vec<u64> = seen
            .iter()
            .map(|(id, bytes)| {
                assert_eq!(bytes[..8], id.to_le_bytes(), "{shuffle:?}");
                *id
            })
            .collect();
        assert_eq!(ids, (0..1000).collect::<Vec<_>>());
        let decoded = rows.decoded.load(Ordering::Relaxed);
        assert!((10..=most).contains(&decoded), "{shuffle:?}: {decoded}");
    }
}

#[test]
fn a_shuffle_over_more_groups_than_fit_is_refused_with_its_cost() {
    let source: Arc<dyn Source> = Rows::new(10 << 20);
    let made = |shuffle| {
        Loader::new(
            Arc::clone(&source),
            Options { shuffle, fields: Vec::new(), ..options(32) },
            Budget::new(64 << 20),
        )
    };
    assert!(made(Shuffle::None).is_ok());
    assert!(made(Shuffle::Window { samples: 100, canonical_nodes: 1, range_samples: 0 }).is_ok());
    let error = made(Shuffle::Full).unwrap_err().to_string();
    for words in ["decoded 100.0", "10.0 MiB for 100 rows", "10 groups at once", "tg.Window", "tidegate pack"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
}
