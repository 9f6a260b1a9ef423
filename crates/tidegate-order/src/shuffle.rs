//! Shuffles: ids in order, fully shuffled, or shuffled within windows.
//!
//! Flow: [`Shuffle`] and the lengths of runs -> [`order()`] -> an [`Order`]; called by the loader.
//! Memory: holds 8 bytes a run; an epoch of a listed shuffle at most 256 KiB.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::permutation::Permutation;
use crate::traits::{Epoch, Order};
use crate::window::Windowed;

/// How an epoch is shuffled. It is part of the state, and never follows from budget, workers or
/// nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Shuffle {
    /// Ids in ascending order.
    None,
    /// A permutation of all ids.
    Full,
    /// Runs (shards, row groups) in random order, then samples shuffled within windows.
    Window {
        /// Samples in one window: these must be at hand at the same time.
        samples: u64,
        /// Streams of the data that draw from a window each, interleaved position by position.
        canonical_nodes: u64,
        /// Length of the ranges of ids that stay together, or 0 for whole runs. Shorter ranges mix
        /// better and cost more reads.
        #[serde(default, skip_serializing_if = "is_zero", rename = "ranges")]
        range_samples: u64,
    },
    /// The order of a sampler, which the loader is given apart from this.
    #[serde(rename = "given")]
    Sampler {
        /// Positions in an epoch.
        positions: u64,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The order of a shuffle over data in `runs`: the lengths of shards or row groups, by ids.
///
/// # Errors
/// [`Error::Config`] for an empty window, and for [`Shuffle::Sampler`].
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
        Shuffle::Window { samples, canonical_nodes, range_samples } => {
            if samples == 0 || canonical_nodes == 0 {
                return Err(Error::Config("a shuffle window needs at least one sample and one node".into()));
            }
            let nodes = canonical_nodes.min(len.max(1));
            Box::new(Windowed { runs: runs.into(), len, seed, samples, nodes, range_samples })
        }
        Shuffle::Sampler { .. } => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The oracle is a list: every order has each id once, for any parameters.
        #[test]
        fn every_order_is_a_permutation(
            runs in prop::collection::vec(0u64..60, 1..12), seed: u64, epoch in 0u64..5,
            samples in 1u64..200, nodes in 1u64..6,
        ) {
            let len: u64 = runs.iter().sum();
            let window = |range_samples| Shuffle::Window { samples, canonical_nodes: nodes, range_samples };
            for shuffle in [Shuffle::None, Shuffle::Full, window(0), window(7)] {
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

    /// The most runs that are begun and not yet finished, counted at each position.
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

    /// Frozen: a change here breaks the resume of every saved state.
    #[test]
    fn golden_orders() {
        let first = |shuffle, runs: &[u64], epoch| {
            let order = order(shuffle, 42, runs).unwrap();
            let epoch = order.epoch(epoch).unwrap();
            (0..8).map(|p| epoch.id(p).unwrap()).collect::<Vec<_>>()
        };
        let window = Shuffle::Window { samples: 64, canonical_nodes: 2, range_samples: 0 };
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
