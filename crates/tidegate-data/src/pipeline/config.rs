//! How an epoch is run, and what it has done so far.
//!
//! Flow: options of a loader -> [`Config`] -> `Pipeline::start`; a stopped epoch -> [`Past`] ->
//! the one that goes on.
//! Memory: holds none.

use std::sync::Arc;
use std::time::Duration;

use tidegate_order::Order;
use tidegate_order::partition::RankPartition;
use tidegate_source::Place;

use super::metrics::Metrics;
use super::observer::Observer;
use crate::cache::SegmentTier;

/// What happens when a sample fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The batch raises the error.
    #[default]
    Raise,
    /// The position stays empty: the batch is shorter.
    Skip,
    /// Another sample takes the position, as a function of (seed, epoch, position, attempt).
    Replace,
}

/// How an epoch is run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The seed of all random draws.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// Batches, ranks, where to begin.
    pub split: RankPartition,
    /// What the epoch did before, if it goes on with other memory.
    pub past: Past,
    /// Tiers behind the cache in memory, the nearest first.
    pub stores: Vec<Arc<SegmentTier>>,
    /// Decoding threads.
    pub workers: usize,
    /// Batches beyond the one being consumed and the one being filled.
    pub prefetch: usize,
    /// Batches that the consumer keeps beyond the one being consumed.
    pub held_batches: usize,
    /// Threads that call the batch transform; 0: the worker that completes a batch does.
    pub map_threads: usize,
    /// What happens when a sample fails.
    pub on_error: OnError,
    /// The share of an epoch's samples that may fail. None: 0.01, and ten in any case.
    pub max_failure_rate: Option<f64>,
    /// The order of all epochs.
    pub order: Arc<dyn Order>,
    /// Sees each sample while it is made.
    pub observer: Option<Arc<dyn Observer>>,
    /// Fields that a sample lacks stay empty: for an observer, which alone gets the batches.
    pub partial: bool,
    /// Positions that failed before and stay failed (from a resumed state), in ascending order.
    pub failed: Vec<u64>,
    /// The time without any progress after which the epoch ends with `Error::Stalled`.
    pub stall: Duration,
}

/// What an epoch has done so far: `Pipeline::stop` gives it, and the one that goes on from there
/// takes it.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Batches that were delivered.
    pub(super) delivered: u64,
    pub(super) failures: Vec<Failure>,
    pub(super) metrics: Arc<Metrics>,
}

/// A sample that failed under skip or replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its global position.
    pub position: u64,
    /// Where it is.
    pub place: Place,
    /// Why it failed.
    pub what: String,
}
