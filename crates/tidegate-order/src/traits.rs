//! The traits of orders: what a loader asks of an order, and an epoch of it.
//!
//! Flow: [`Order`] -> [`Epoch`] -> the id at a position; implemented by this crate and by users.
//! Memory: holds none.

use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};

/// What is known of an order in advance. It decides which cache policy is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookahead {
    /// Each id is at exactly one position of an epoch.
    Permutation,
    /// All ids of this epoch and the next are known. They may repeat.
    Listed,
    /// Nothing is known until an id is asked for.
    Unknown,
}

/// An order of the ids `0..len`. It is object-safe, and one value serves every epoch.
pub trait Order: Send + Sync + std::fmt::Debug {
    /// Positions in an epoch.
    fn len(&self) -> u64;

    /// Whether an epoch has no positions.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The order of one epoch.
    ///
    /// # Errors
    /// For ids that the user gives: the failure of the user's sampler, and ids outside the data.
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>>;

    /// An upper bound of the runs (shards, row groups) that are partly drawn at any one position.
    ///
    /// A rank must have this many at hand. `ranks` is the number of ranks that have canonical
    /// nodes of their own.
    fn runs_in_use(&self, ranks: u64) -> u64;

    /// Canonical nodes: streams of the data that are interleaved, position by position.
    fn canonical_nodes(&self) -> u64 {
        1
    }

    /// Bytes of the budget that the order itself holds.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// What is known of the ids before they are asked for.
    fn lookahead(&self) -> Lookahead {
        Lookahead::Permutation
    }

    /// Begins an epoch: fixes everything that the ids of the epoch depend on.
    ///
    /// # Errors
    /// When the budget cannot grant the tables of the epoch.
    fn begin(&self, epoch: u64) -> Result<()> {
        let _ = epoch;
        Ok(())
    }

    /// The same order under another seed, or `None` when the loader's options seed the order.
    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        let _ = seed;
        None
    }

    /// How well batches mix, and how well without sorting; `None` when nothing is sorted.
    ///
    /// See [`morton`](crate::morton). `batch` is the number of positions in a batch.
    ///
    /// # Errors
    /// As [`Epoch::id`].
    fn mixing(&self, batch: u64) -> Result<Option<[Quality; 2]>> {
        let _ = batch;
        Ok(None)
    }

    /// A hash of an epoch's ids, or `None` when they follow from the seed of the options.
    fn digest(&self, epoch: u64) -> Option<u64> {
        let _ = epoch;
        None
    }

    /// This order as one that takes feedback, or `None` when it takes none.
    fn feedback_order(&self) -> Option<&dyn FeedbackOrder> {
        None
    }

    /// This order as one that takes feedback.
    ///
    /// # Errors
    /// [`Error::Config`] when the order takes no feedback.
    fn require_feedback(&self) -> Result<&dyn FeedbackOrder> {
        self.feedback_order().ok_or_else(|| {
            Error::Config(
                "this order takes no feedback: give the loader a sampler that does, such as samplers.hard()"
                    .into(),
            )
        })
    }
}

/// The order of one epoch.
pub trait Epoch: Send + Sync + std::fmt::Debug {
    /// The id at `position`, which must be below the length of the order.
    ///
    /// # Errors
    /// For ids that are streamed: as [`Order::epoch`].
    fn id(&self, position: u64) -> Result<u64>;

    /// The count and the hash of the ids that were streamed so far, at most the first `most`.
    ///
    /// `None` when the ids are not streamed.
    fn digest(&self, most: u64) -> Option<(u64, u64)> {
        let _ = most;
        None
    }

    /// The weight of a drawn sample, by its index in the source, in an unbiased mean.
    fn weight(&self, index: u64) -> f32 {
        let _ = index;
        1.0
    }

    /// Whether a later position can be asked for early without any effect on the user's sampler.
    fn known(&self) -> bool {
        true
    }
}

/// An order that follows the losses that training reports, from one epoch to the next.
pub trait FeedbackOrder: Order {
    /// Records the losses of samples. They count from the next epoch on.
    ///
    /// # Errors
    /// [`Error::Config`] for ids outside the data, and for losses that are negative or not finite.
    fn feedback(&self, ids: &[u64], losses: &[f32]) -> Result<()>;

    /// How the last epoch that was begun is drawn; `None` before the first.
    fn stats(&self) -> Option<FeedbackStats>;

    /// The recorded losses as bytes, which another loader can [`import`](FeedbackOrder::import).
    fn export(&self) -> Vec<u8>;

    /// Replaces the recorded losses with those of another loader.
    ///
    /// # Errors
    /// [`Error::State`] for bytes that are not the losses of this number of samples.
    fn import(&self, bytes: &[u8]) -> Result<()>;
}

/// How an epoch is drawn from the losses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FeedbackStats {
    /// The epoch.
    pub epoch: u64,
    /// Samples that had a loss when the epoch began.
    pub known: u64,
    /// Whether samples are drawn by their losses. If not, an epoch gives every sample once.
    pub drawn: bool,
    /// The factor by which a batch of uniform draws would have to be larger for the same second
    /// moment of its gradient, if the losses are the norms of the gradients.
    pub gain: f64,
    /// The effective sample size of the weights, as a fraction of the samples.
    pub effective: f64,
}

/// Figures of one order, and what a true shuffle has on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quality {
    /// Mean total variation between the labels of a batch and of all data, which are sorted by
    /// class.
    pub label_variation: f64,
    /// The same for a true shuffle.
    pub label_variation_shuffled: f64,
    /// Mean |id(p+1) − id(p)| / n: 1/3 for a true shuffle, near 0 for a sorted order.
    pub pair_distance: f64,
}

impl Quality {
    /// The label variation divided by that of a true shuffle: 1 is ideal.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.label_variation / self.label_variation_shuffled
    }
}
