//! A tier in memory that all processes of a node budget share: one copy of each object.
//!
//! Flow: [`open`] -> [`SegmentTier`] over the segments of a [`Node`]; called by the loader whose
//! budget others share.
//! Memory: the node's. A segment is charged to the node when a process claims it, to no process in
//! particular, and evicted by the process that lacks memory.
//!
//! A process reads objects out of the memory file with the calls that read files, checks them, and
//! only then uses them. So no process has to be asked before a segment is evicted, and a process
//! that dies while it reads or writes leaves nothing behind. The price is a copy.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tidegate_core::memory::Node;

use super::admission::dataset_hash;
use super::segment::{Claimed, HEAD_BYTES, SegmentTier, Segments, Table};
use crate::{Error, Result};
use tidegate_source::read::ReadMode;
use tidegate_source::{Access, Source};

/// Opens the tier that the processes of a node share for a source.
///
/// Its objects are samples as they are stored, or chunks of volumes once they are decoded, whose
/// size is known. `None` for a source whose samples are not read one by one.
///
/// # Errors
/// When this process may have no more open files.
pub fn open(source: &dyn Source, node: &Arc<Node>) -> Result<Option<SegmentTier>> {
    let objects = match source.chunked() {
        Some(chunked) => chunked.chunks(),
        None if source.index().is_none() || source.access() != Access::Random => return Ok(None),
        None => source.len(),
    };
    let total = source.size_bounds().total_bytes + HEAD_BYTES * objects;
    open_dataset(node, dataset_hash(source), total, objects)
        .map(Some)
        .map_err(Error::io("the memory of this node"))
}

fn open_dataset(node: &Arc<Node>, dataset: u64, total_bytes: u64, count: u64) -> io::Result<SegmentTier> {
    let table = Table::new(node.file()?, node.table_start(), node.table_bytes());
    let segments = NodeSegments { node: Arc::clone(node), file: Arc::new(node.file()?) };
    Ok(SegmentTier::new(Box::new(segments), table, dataset, total_bytes, count))
}

#[derive(Debug)]
struct NodeSegments {
    node: Arc<Node>,
    file: Arc<File>,
}

impl Segments for NodeSegments {
    fn segment_bytes(&self) -> u64 {
        self.node.segment_bytes()
    }

    fn claim(&self, _: u64) -> io::Result<Option<Claimed>> {
        let claimed = |number| {
            let base = self.node.segment_start(number);
            Claimed { number, file: Arc::clone(&self.file), base, at: 0 }
        };
        Ok(self.node.claim_segment().map(claimed))
    }

    fn written(&self, _: &Claimed, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: &BTreeSet<u32>) {
        // An evicted segment looks like a damaged one, and memory is not damaged.
    }

    fn finish(&self, segment: Claimed) {
        self.node.seal_segment(segment.number);
    }

    fn open(&self, number: u32) -> Option<(Arc<File>, u64)> {
        Some((Arc::clone(&self.file), self.node.segment_start(number)))
    }

    fn read_mode(&self) -> ReadMode {
        ReadMode::Plain
    }

    fn charged_bytes(&self) -> u64 {
        0
    }

    fn limit_bytes(&self) -> u64 {
        self.node.segments_limit_bytes()
    }

    fn set_limit(&self, bytes: u64) {
        self.node.set_segments_limit(bytes);
    }

    fn held_bytes(&self) -> u64 {
        self.node.segments_held_bytes()
    }

    fn in_memory(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tier;
    use super::*;
    use tidegate_core::memory::{Account, Budget, Priority};

    #[test]
    fn it_keeps_the_promises_of_a_tier() {
        let budget = Budget::node("tier-promises", 64 << 20, 2).unwrap();
        let tier = open_dataset(budget.shared_by().unwrap(), 1, 64 * 20_000, 64).unwrap();
        crate::testing::tier(&tier, 40_000, 32 << 20).unwrap();
    }

    #[test]
    fn loaders_of_one_dataset_have_one_copy_and_give_way_to_batches() {
        let (count, bytes) = (400, 50_000);
        let budget = Budget::node("tier-copies", 32 << 20, 1).unwrap();
        let node = budget.shared_by().unwrap();
        let open = |dataset| open_dataset(node, dataset, count * (bytes + HEAD_BYTES), count).unwrap();
        let object = |key: u64| vec![key as u8; bytes as usize];
        let (first, second) = (open(1), open(1));
        first.set_limit(30 << 20);
        second.set_limit(30 << 20);
        let fill = |tier: &SegmentTier| (0..count).filter(|&key| tier.put(key, &[&object(key)])).count();
        let right = |tier: &SegmentTier| {
            let mut into = vec![0; bytes as usize];
            let found = (0..count).filter_map(|key| Some((key, tier.get(key, &mut into)?, into.clone())));
            found.map(|(key, _, found)| assert!(found == object(key), "object {key} is another one")).count()
        };
        assert_eq!((fill(&first), fill(&second), right(&second)), (400, 400, 400));
        assert_eq!((first.tally().put_bytes, second.tally().put_bytes), (count * bytes, 0));
        assert_eq!(right(&open(2)), 0, "other data");
        drop(first);
        let before = node.usage().charged_bytes;
        let batch = budget.try_block(Account::Batch, 16 << 20, Priority::NextBatch).unwrap();
        assert!(node.usage().charged_bytes <= 32 << 20 && before < 32 << 20);
        let left = right(&second);
        assert!((100..400).contains(&left), "{left}");
        assert!(
            budget.try_block(Account::Raw, 14 << 20, Priority::CacheFill).is_err(),
            "one cache takes nothing from another"
        );
        drop(batch);
        budget.trim();
        second.set_limit(30 << 20);
        assert_eq!((fill(&second), right(&second)), (400, 400));
    }
}
