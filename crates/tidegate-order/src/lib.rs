//! Which sample comes next: sample order as a function of (seed, epoch, position).
//!
//! Flow: [`Shuffle`] + source runs -> [`Order`] -> [`Epoch`] -> id at a position; called by the feed of the pipeline.
//! Memory: at most 256 KiB for an epoch (a materialized shuffle below 2^16 ids), or a few words a run; never a list of N, but for
//! what a user gives ([`given`]).
//! Not here: which rank takes which position ([`split`]), random draws of a sample ([`random`]).

pub mod drawn;
pub mod error;
pub mod fed;
pub mod given;
pub mod near;
pub mod patches;
pub mod permutation;
pub mod quality;
pub mod quotas;
pub mod random;
pub mod split;
pub mod testing;
mod window;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::error::{Error, Result};
use self::permutation::Permutation;
use self::window::WindowEpoch;

/// How an epoch is shuffled; part of the state, and never derived from budget, workers or nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Shuffle {
    /// Ids in ascending order.
    None,
    /// Every permutation of all ids.
    Full,
    /// Runs (shards, row groups) in random order, then samples shuffled within windows of this many.
    Window {
        /// Samples in one window: what must be near at hand at once.
        samples: u64,
        /// Places of the data from which windows are drawn at the same time, interleaved sample by sample.
        canonical_nodes: u64,
        /// Ids that stay together, or 0 for all of a run: shorter ranges mix better and are more reads.
        #[serde(default, skip_serializing_if = "is_zero")]
        ranges: u64,
    },
    /// As the user gives them ([`given`]).
    Given {
        /// Positions in an epoch.
        positions: u64,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What is known of an order before it is asked: it decides what is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foresight {
    /// Each sample comes once an epoch.
    Once,
    /// All ids of this epoch and the next, which may repeat.
    Listed,
    /// Nothing.
    None,
}

/// An order of the ids `0..len`; object-safe, one value serves every epoch.
pub trait Order: Send + Sync + std::fmt::Debug {
    /// Positions in an epoch.
    fn len(&self) -> u64;

    /// Whether an epoch is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The order of one epoch.
    ///
    /// # Errors
    /// Where the ids are the user's: what his function raises, and ids that there are not.
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>>;

    /// How many runs have samples left to draw and samples drawn, at most, at any position: what must be near at hand of a rank, where
    /// so many have places of the data for themselves.
    fn runs_in_use(&self, ranks: u64) -> u64;

    /// Places of the data that are interleaved, position by position.
    fn places(&self) -> u64 {
        1
    }

    /// What it holds of the budget by itself.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// What is known before it is asked.
    fn foresight(&self) -> Foresight {
        Foresight::Once
    }

    /// An epoch begins: what it follows from is settled.
    ///
    /// # Errors
    /// When the budget has no room for what it takes.
    fn begin(&self, epoch: u64) -> Result<()> {
        let _follows_from_nothing_else = epoch;
        Ok(())
    }

    /// What training says of samples, from the next epoch on.
    ///
    /// # Errors
    /// [`Error::Config`] where the order takes none; ids that there are not, losses that are none.
    fn feedback(&self, ids: &[u64], losses: &[f32]) -> Result<()> {
        let _nobody_listens = (ids, losses);
        Err(Error::Config(
            "this order takes no feedback: give the loader a sampler that does, such as samplers.hard()"
                .into(),
        ))
    }

    /// The order that takes feedback, if it is one.
    fn fed(&self) -> Option<&fed::Fed> {
        None
    }

    /// The same order under another seed, where it is one of a seed that is not the options'.
    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        let _seeded_by_the_options = seed;
        None
    }

    /// How well batches of so many mix, and how well they would if nothing were brought near: where an order does that ([`near`]).
    ///
    /// # Errors
    /// As [`Epoch::id`].
    fn mixing(&self, batch: u64) -> Result<Option<[quality::Quality; 2]>> {
        let _as_well_as_it_can = batch;
        Ok(None)
    }

    /// What tells the ids of an epoch from others, where they are a sampler's.
    fn print(&self, epoch: u64) -> Option<u64> {
        let _follows_from_the_seed = epoch;
        None
    }
}

/// The order of one epoch.
pub trait Epoch: Send + Sync + std::fmt::Debug {
    /// The id at `position`, which must be below the length of the order.
    ///
    /// # Errors
    /// Where ids come one after another: as [`Order::epoch`].
    fn id(&self, position: u64) -> Result<u64>;

    /// Where ids come one after another: how many of the first `most` came, and what tells these from others.
    fn print(&self, most: u64) -> Option<(u64, u64)> {
        let _known_by_its_order = most;
        None
    }

    /// What the sample at an index of the source counts in a mean, so that it is that of all samples evenly.
    fn weight(&self, index: u64) -> f32 {
        let _all_alike = index;
        1.0
    }

    /// Whether asking ahead costs nothing.
    fn known(&self) -> bool {
        true
    }
}

/// An order by `shuffle` over sources whose ids come in `runs` (lengths of shards or row groups, in id order).
///
/// # Errors
/// [`Error::Config`] when a window is empty.
///
/// ```
/// use tidegate_order::{order, Shuffle};
/// let order = order(Shuffle::Full, 7, &[1_000_000])?;
/// let epoch = order.epoch(0)?;
/// assert_ne!(epoch.id(0)?, epoch.id(1)?);
/// # Ok::<(), tidegate_order::Error>(())
/// ```
pub fn order(shuffle: Shuffle, seed: u64, runs: &[u64]) -> Result<Box<dyn Order>> {
    let len = runs.iter().sum();
    Ok(match shuffle {
        Shuffle::None => Box::new(Sequential { len }),
        Shuffle::Full => Box::new(Shuffled { len, seed, runs: runs.len() as u64 }),
        Shuffle::Window { samples, canonical_nodes, ranges } => {
            if samples == 0 || canonical_nodes == 0 {
                return Err(Error::Config("a shuffle window needs at least one sample and one node".into()));
            }
            Box::new(Windowed {
                runs: runs.into(),
                len,
                seed,
                samples,
                nodes: canonical_nodes.min(len.max(1)),
                ranges,
            })
        }
        Shuffle::Given { .. } => {
            return Err(Error::Config("this order is a sampler's: give the sampler".into()));
        }
    })
}

#[derive(Debug)]
struct Sequential {
    len: u64,
}

impl Order for Sequential {
    fn len(&self) -> u64 {
        self.len
    }
    fn epoch(&self, _: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(Identity))
    }
    fn runs_in_use(&self, _: u64) -> u64 {
        1
    }
}

#[derive(Debug)]
struct Identity;

impl Epoch for Identity {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(position)
    }
}

#[derive(Debug)]
struct Shuffled {
    len: u64,
    seed: u64,
    runs: u64,
}

impl Order for Shuffled {
    fn len(&self) -> u64 {
        self.len
    }
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(Permutation::new(self.len, self.seed, epoch, 0)))
    }
    fn runs_in_use(&self, _: u64) -> u64 {
        self.runs
    }
}

impl Epoch for Permutation {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.apply(position))
    }
}

#[derive(Debug)]
struct Windowed {
    runs: Arc<[u64]>,
    len: u64,
    seed: u64,
    samples: u64,
    nodes: u64,
    ranges: u64,
}

impl Order for Windowed {
    fn len(&self) -> u64 {
        self.len
    }
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let Self { runs, seed, samples, nodes, ranges, .. } = self;
        Ok(Arc::new(WindowEpoch::new(runs, *seed, epoch, *samples, *nodes, *ranges)))
    }
    fn runs_in_use(&self, ranks: u64) -> u64 {
        if self.ranges > 0 {
            // Any run may have a range in any window.
            return self.runs.len() as u64;
        }
        window::runs_in_use(&self.runs, self.samples, self.nodes.div_ceil(ranks.max(1)))
    }
    fn places(&self) -> u64 {
        self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The oracle is a list: every order lists each id once, whatever the parameters.
        #[test]
        fn every_order_is_a_permutation(
            runs in prop::collection::vec(0u64..60, 1..12), seed: u64, epoch in 0u64..5,
            samples in 1u64..200, nodes in 1u64..6,
        ) {
            let len: u64 = runs.iter().sum();
            for shuffle in [Shuffle::None, Shuffle::Full, Shuffle::Window { samples, canonical_nodes: nodes, ranges: 0 }, Shuffle::Window { samples, canonical_nodes: nodes, ranges: 7 }] {
                let order = order(shuffle, seed, &runs).unwrap();
                let epoch = order.epoch(epoch).unwrap();
                let mut ids: Vec<_> = (0..len).map(|p| epoch.id(p).unwrap()).collect();
                let in_use = runs_in_use(&runs, &ids);
                prop_assert!(in_use <= order.runs_in_use(1) as usize, "{:?}: {}", shuffle, in_use);
                ids.sort_unstable();
                prop_assert_eq!(ids, (0..len).collect::<Vec<_>>(), "{:?}", shuffle);
            }
        }
    }

    /// The most runs that are begun and not yet done, by looking at each position.
    fn runs_in_use(runs: &[u64], ids: &[u64]) -> usize {
        let run_of = |id: u64| {
            let mut end = 0;
            runs.iter().position(|n| {
                end += n;
                id < end
            })
        };
        let places: Vec<_> = ids.iter().map(|&id| run_of(id).unwrap()).collect();
        let span = |run: usize| {
            Some((places.iter().position(|&r| r == run)?, places.iter().rposition(|&r| r == run)?))
        };
        let spans: Vec<_> = (0..runs.len()).filter_map(span).collect();
        (0..ids.len())
            .map(|p| spans.iter().filter(|(a, b)| (*a..=*b).contains(&p)).count())
            .max()
            .unwrap_or(0)
    }

    /// Frozen: a change here breaks the resume of every run in the field.
    #[test]
    fn golden_orders() {
        let first = |shuffle, runs: &[u64], epoch| {
            let order = order(shuffle, 42, runs).unwrap();
            let epoch = order.epoch(epoch).unwrap();
            (0..8).map(|p| epoch.id(p).unwrap()).collect::<Vec<_>>()
        };
        let window = Shuffle::Window { samples: 64, canonical_nodes: 2, ranges: 0 };
        let golden = [
            first(Shuffle::Full, &[1000], 0),
            first(Shuffle::Full, &[1000], 1),
            first(Shuffle::Full, &[1_000_000], 0),
            first(Shuffle::Full, &[10_000_000_000], 3),
            first(window, &[100; 10], 0),
            first(window, &[100; 10], 1),
        ];
        assert_eq!(golden.map(|v| <[u64; 8]>::try_from(v).unwrap()), GOLDEN);
    }

    const GOLDEN: [[u64; 8]; 6] = [
        [589, 410, 546, 603, 802, 839, 731, 228],
        [113, 952, 574, 489, 182, 242, 173, 689],
        [713_099, 417_764, 327_654, 439_462, 169_893, 463_604, 217_807, 654_950],
        [
            181_564_367,
            8_512_909_552,
            108_314_094,
            3_954_551_106,
            8_843_067_532,
            9_508_768_109,
            5_289_020_411,
            2_715_071_314,
        ],
        [10, 460, 39, 413, 58, 433, 48, 445],
        [445, 523, 461, 519, 456, 558, 440, 553],
    ];
}
