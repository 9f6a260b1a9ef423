//! Which positions of a global batch belong to which rank.
//!
//! Flow: (global batch, remainder, rank of world) -> [`Rows`] of a batch; called by the feed and by `len`.
//! Memory: holds none.
//!
//! Rank r of W takes [floor(rG/W), floor((r+1)G/W)) of every global batch, so ranks put together give the same global
//! order for any W, and a run may go on with another number of ranks. Where the order interleaves n places of the data and W
//! divides n, it takes the positions of its own n/W places instead: then no two ranks read the same shard, but for those on a border.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What happens with the samples after the last full global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remainder {
    /// They are left out.
    Drop,
    /// The last batch is filled with repeated samples, marked by the mask.
    Pad,
    /// The last batch is short; a rank may get none of it, but every rank gets the same number of batches.
    Uneven,
}

/// How an epoch is cut in batches and ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Positions in an epoch.
    pub len: u64,
    /// The position at which the first batch begins: 0, or where a resumed epoch goes on.
    pub start: u64,
    /// Samples in a global batch.
    pub global_batch: u64,
    /// What happens with the rest.
    pub remainder: Remainder,
    /// This rank.
    pub rank: u64,
    /// Number of ranks.
    pub world: u64,
    /// Places of the data that the order interleaves, position by position.
    pub places: u64,
}

/// The positions of one rank in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Of each round of so many positions, so many belong to the rank, from this one on.
    round: u64,
    of_each: u64,
    lane: u64,
    /// Positions of the rank before the first row.
    before: u64,
    /// Rows, padding included.
    pub count: u64,
    /// Rows that are no padding.
    pub real: u64,
}

impl Rows {
    /// The position of a row; counts past the end of the epoch where the batch is padded.
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

impl Split {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] naming the parameter.
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

    /// Batches from `start` on: the same on every rank.
    #[must_use]
    pub fn batches(&self) -> u64 {
        match self.remainder {
            Remainder::Drop => self.left() / self.global_batch,
            Remainder::Pad | Remainder::Uneven => self.left().div_ceil(self.global_batch),
        }
    }

    /// The most rows that a batch of this rank has.
    #[must_use]
    pub fn most_rows(&self) -> u64 {
        // All ranks have as many, where they have places of their own; else not the rows of a full batch: a shorter, uneven one may favour another rank.
        self.global_batch.div_ceil(self.world)
    }

    fn bound(&self, rank: u64, batch: u64) -> u64 {
        (u128::from(rank) * u128::from(batch) / u128::from(self.world)) as u64
    }

    /// How many ranks have places of the data for themselves: all, or this one has them all.
    #[must_use]
    pub fn ranks_apart(&self) -> u64 {
        let even = |n: u64| n.is_multiple_of(self.places.max(1));
        let apart = self.places.is_multiple_of(self.world) && even(self.global_batch);
        if apart { self.world } else { 1 }
    }

    /// The positions of this rank in `batch`, which must be below [`Split::batches`].
    #[must_use]
    pub fn rows(&self, batch: u64) -> Rows {
        let start = self.start + batch * self.global_batch;
        let left = self.len.saturating_sub(start);
        let size = match self.remainder {
            Remainder::Uneven => left.min(self.global_batch),
            Remainder::Drop | Remainder::Pad => self.global_batch,
        };
        if self.ranks_apart() > 1 {
            let (round, of_each) = (self.places, self.places / self.world);
            let lane = self.rank * of_each;
            // Of the first n positions of the epoch.
            let own = |n: u64| n / round * of_each + (n % round).saturating_sub(lane).min(of_each);
            let before = own(start);
            let (count, real) = (own(start + size) - before, own(start + left.min(size)) - before);
            return Rows { round, of_each, lane, before, count, real };
        }
        let (low, high) = (self.bound(self.rank, size), self.bound(self.rank + 1, size));
        let (count, real) = (high - low, high.min(left) - low.min(left));
        Rows { round: 0, of_each: u64::MAX, lane: 0, before: start + low, count, real }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Ranks put together give every position once, in order within each batch, for every remainder.
        #[test]
        fn ranks_partition_the_epoch(
            len in 0u64..500, world in 1u64..9, per in 1u64..20, extra in 0u64..9, places in 1u64..17, start in 0u64..20,
        ) {
            for remainder in [Remainder::Drop, Remainder::Pad, Remainder::Uneven] {
                let global_batch = world * per + extra;
                let split = |rank| Split { len, start, global_batch, remainder, rank, world, places };
                let apart = split(0).ranks_apart() > 1;
                let mut seen = Vec::new();
                for batch in 0..split(0).batches() {
                    let before = seen.len();
                    for rank in 0..world {
                        let rows = split(rank).rows(batch);
                        prop_assert!(rows.count <= split(rank).most_rows());
                        prop_assert!(remainder == Remainder::Pad || rows.real == rows.count);
                        let own = rank * places / world..(rank + 1) * places / world;
                        prop_assert!(!apart || rows.positions().all(|p| own.contains(&(p % places))));
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
    fn names_what_is_wrong() {
        let split = Split {
            len: 10,
            start: 0,
            global_batch: 2,
            remainder: Remainder::Pad,
            rank: 0,
            world: 3,
            places: 1,
        };
        assert!(split.check().unwrap_err().to_string().contains("at least 3"));
    }
}
