//! The partition of an epoch among ranks: which positions of a global batch belong to which rank.
//!
//! Flow: (global batch, remainder, rank, world size) -> the [`RankRows`] of a batch; called by the
//! pipeline's reader and by the length of a loader.
//! Memory: holds none.
//!
//! Rank r of W takes the positions [floor(rG/W), floor((r+1)G/W)) of every global batch of G. So
//! the ranks together have the same global order for any W, and a run can resume with another W.
//! Where the order interleaves n canonical nodes and W divides n, a rank takes the positions of
//! its own n/W nodes instead. Then two ranks read the same shard only if it is cut by the border
//! between their nodes.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What happens to the samples after the last full global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remainder {
    /// They are skipped.
    Drop,
    /// The last batch is filled with repeated samples, which its mask marks.
    Pad,
    /// The last batch is short: of its R rows rank r of W has those from floor(rR/W) to
    /// floor((r+1)R/W). Every rank has the same number of batches, so a rank without a row of the
    /// last one gets a padded row, which its mask marks.
    Uneven,
}

/// The partition of an epoch into batches, and of batches among ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankPartition {
    /// Positions in an epoch.
    pub len: u64,
    /// The position of the first batch: 0, or the position at which a resumed epoch goes on.
    pub start: u64,
    /// Positions in a global batch.
    pub global_batch: u64,
    /// What happens to the samples after the last full batch.
    pub remainder: Remainder,
    /// This rank.
    pub rank: u64,
    /// The number of ranks.
    pub world: u64,
    /// Canonical nodes that the order interleaves, position by position.
    pub canonical_nodes: u64,
}

/// The positions of one rank in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankRows {
    /// Positions in a round. Of each round the rank has `of_each` positions, from `lane` on.
    round: u64,
    of_each: u64,
    lane: u64,
    /// Positions of the rank before the first row.
    before: u64,
    /// Rows, including padding.
    pub count: u64,
    /// Rows that are not padding.
    pub real: u64,
}

impl RankRows {
    /// The position of a row. In a padded batch it may be past the end of the epoch.
    #[must_use]
    pub fn position(&self, row: u64) -> u64 {
        let nth = self.before + row;
        nth / self.of_each * self.round + self.lane + nth % self.of_each
    }

    /// The positions of all rows.
    pub fn positions(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |row| self.position(row))
    }
}

impl RankPartition {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] with the parameter's name.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Config(what));
        if self.global_batch == 0 {
            return wrong("batch_size must be at least 1".into());
        }
        if self.world == 0 || self.rank >= self.world {
            return wrong(format!("rank {} is not below world_size {}", self.rank, self.world));
        }
        if self.global_batch < self.world {
            return wrong(format!(
                "global_batch_size {} gives some of {} ranks nothing: raise it to at least {}",
                self.global_batch, self.world, self.world
            ));
        }
        Ok(())
    }

    fn left(&self) -> u64 {
        self.len.saturating_sub(self.start)
    }

    /// The number of batches from `start` on, which is the same on every rank.
    #[must_use]
    pub fn batches(&self) -> u64 {
        match self.remainder {
            Remainder::Drop => self.left() / self.global_batch,
            Remainder::Pad | Remainder::Uneven => self.left().div_ceil(self.global_batch),
        }
    }

    /// The number of a batch from `start` on, counted from the beginning of the epoch.
    #[must_use]
    pub fn number(&self, batch: u64) -> u64 {
        self.start.div_ceil(self.global_batch) + batch
    }

    /// Ranks without a row of their own in the last batch of an epoch.
    #[must_use]
    pub fn ranks_without_a_row(&self) -> u64 {
        let last = self.batches().checked_sub(1);
        let real = |rank| last.is_none_or(|last| Self { rank, ..*self }.rows(last).real > 0);
        (0..self.world).filter(|&rank| !real(rank)).count() as u64
    }

    /// The most rows that a batch of this rank has.
    #[must_use]
    pub fn max_rows(&self) -> u64 {
        // An upper bound: a short last batch can give this rank one row more than a full batch
        // does.
        self.global_batch.div_ceil(self.world)
    }

    fn bound(&self, rank: u64, batch: u64) -> u64 {
        (u128::from(rank) * u128::from(batch) / u128::from(self.world)) as u64
    }

    /// The number of ranks with canonical nodes of their own: all, or 1 if nodes are shared.
    #[must_use]
    pub fn ranks_with_own_nodes(&self) -> u64 {
        let apart = self.canonical_nodes.is_multiple_of(self.world)
            && self.global_batch.is_multiple_of(self.canonical_nodes.max(1));
        if apart { self.world } else { 1 }
    }

    /// The positions of this rank in `batch`, which must be below [`RankPartition::batches`].
    #[must_use]
    pub fn rows(&self, batch: u64) -> RankRows {
        let start = self.start + batch * self.global_batch;
        let left = self.len.saturating_sub(start);
        let size = match self.remainder {
            Remainder::Uneven => left.min(self.global_batch),
            Remainder::Drop | Remainder::Pad => self.global_batch,
        };
        if self.ranks_with_own_nodes() > 1 {
            let (round, of_each) = (self.canonical_nodes, self.canonical_nodes / self.world);
            let lane = self.rank * of_each;
            // The rank's positions among the first n of the epoch.
            let own = |n: u64| n / round * of_each + (n % round).saturating_sub(lane).min(of_each);
            let before = own(start);
            let (count, real) = (own(start + size) - before, own(start + left.min(size)) - before);
            return RankRows { round, of_each, lane, before, count: count.max(1), real };
        }
        let (low, high) = (self.bound(self.rank, size), self.bound(self.rank + 1, size));
        let (count, real) = (high - low, high.min(left) - low.min(left));
        // A row that only pads repeats the first of its batch.
        let before = if count == 0 { start } else { start + low };
        RankRows { round: 0, of_each: u64::MAX, lane: 0, before, count: count.max(1), real }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The ranks together have every position once, in order within each batch, for every
        /// remainder.
        #[test]
        fn ranks_partition_the_epoch(
            len in 0u64..500, world in 1u64..9, per in 1u64..20, extra in 0u64..9,
            canonical_nodes in 1u64..17, start in 0u64..20,
        ) {
            for remainder in [Remainder::Drop, Remainder::Pad, Remainder::Uneven] {
                let global_batch = world * per + extra;
                let partition =
                    |rank| RankPartition { len, start, global_batch, remainder, rank, world, canonical_nodes };
                let apart = partition(0).ranks_with_own_nodes() > 1;
                let mut seen = Vec::new();
                for batch in 0..partition(0).batches() {
                    let before = seen.len();
                    for rank in 0..world {
                        let rows = partition(rank).rows(batch);
                        prop_assert!(rows.count <= partition(rank).max_rows());
                        prop_assert!(rows.count > 0);
                        let padded = remainder == Remainder::Uneven && rows.count == 1;
                        prop_assert!(remainder == Remainder::Pad || padded || rows.real == rows.count);
                        let own = rank * canonical_nodes / world..(rank + 1) * canonical_nodes / world;
                        prop_assert!(!apart || rows.positions().all(|p| own.contains(&(p % canonical_nodes))));
                        seen.extend(rows.positions().take(rows.real as usize));
                    }
                    if apart {
                        seen[before..].sort_unstable();
                    }
                }
                let left = len.saturating_sub(start);
                let whole =
                    if remainder == Remainder::Drop { start + left / global_batch * global_batch } else { len };
                prop_assert_eq!(seen, (start.min(whole)..whole).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_short_batch_is_divided_evenly() {
        let rows = |remainder, len, rank| {
            let partition = RankPartition {
                len,
                start: 0,
                global_batch: 8,
                remainder,
                rank,
                world: 4,
                canonical_nodes: 1,
            };
            let of = partition.rows(partition.batches() - 1);
            (of.positions().collect::<Vec<_>>(), of.real, partition.ranks_without_a_row())
        };
        let uneven = |len| (0..4).map(|rank| rows(Remainder::Uneven, len, rank)).collect::<Vec<_>>();
        let of = |positions: &[u64], real, without| (positions.to_vec(), real, without);
        assert_eq!(uneven(13), [of(&[8], 1, 0), of(&[9], 1, 0), of(&[10], 1, 0), of(&[11, 12], 2, 0)]);
        // Two ranks have nothing of it: they repeat its first row.
        assert_eq!(uneven(10), [of(&[8], 0, 2), of(&[8], 1, 2), of(&[8], 0, 2), of(&[9], 1, 2)]);
        assert_eq!(rows(Remainder::Pad, 10, 1), of(&[10, 11], 0, 3));
    }

    #[test]
    fn names_the_wrong_parameter() {
        let partition = RankPartition {
            len: 10,
            start: 0,
            global_batch: 2,
            remainder: Remainder::Pad,
            rank: 0,
            world: 3,
            canonical_nodes: 1,
        };
        assert!(partition.check().unwrap_err().to_string().contains("at least 3"));
    }
}
