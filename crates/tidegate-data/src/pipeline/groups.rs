//! Decoded groups of rows, kept while the order still draws samples from them.
//!
//! Flow: a located sample -> its group, decoded if it is not here -> its row in the reader's staging.
//! Memory: as many groups as the order has in use at once, each as large as the largest (account `decoded`), taken when the
//! epoch starts.
//!
//! The least recently used group makes room. Samples come in order, and the plan counts how many groups an order has in
//! use, so a group is decoded once an epoch, but for those on the border of two shuffle windows.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_core::sync::lock;

use tidegate_core::memory::{Account, Block, Budget, Priority};

use crate::batch::Layout;
use crate::{Error, Result};
use tidegate_source::{Grouped, Located, ReadMode};

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Groups {
    /// Which fields any column wants.
    wanted: Vec<bool>,
    /// The groups, the one that was used last at the end.
    kept: Mutex<Vec<(Option<u64>, Block)>>,
}

impl Groups {
    /// Room for `count` groups of `bytes` bytes.
    pub(super) fn new(budget: &Budget, layout: &Layout, count: u64, bytes: u64) -> Result<Self> {
        let wanted = (0..layout.schema.len()).map(|i| layout.columns.iter().any(|c| c.field == i)).collect();
        let block = |_| Ok((None, budget.try_block(Account::Decoded, bytes, Priority::NextBatch)?));
        Ok(Self { wanted, kept: Mutex::new((0..count).map(block).collect::<Result<_>>()?) })
    }

    /// Copies the row of a sample into `into`; `decoded` counts groups.
    pub(super) fn read(
        &self,
        source: &dyn Grouped,
        at: &Located,
        mode: ReadMode,
        into: &mut [u8],
        decoded: &AtomicU64,
    ) -> Result<Range<usize>> {
        let group = source.group_of(at);
        let mut kept = lock(&self.kept);
        let found = kept.iter().position(|(k, _)| *k == Some(group));
        kept[found.unwrap_or(0)..].rotate_left(1);
        let Some((number, block)) = kept.last_mut() else { return Ok(0..0) };
        if found.is_none() {
            *number = None;
            source.decode(at, &self.wanted, mode, block)?;
            *number = Some(group);
            decoded.fetch_add(1, Ordering::Relaxed);
        }
        let row = source.row(at, block).and_then(|row| Some((row, into.get_mut(..row.len())?)));
        let (row, target) =
            row.ok_or_else(|| Error::decode("a row is not in its group: please report this"))?;
        target.copy_from_slice(row);
        Ok(0..row.len())
    }
}
