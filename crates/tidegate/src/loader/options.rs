//! The options of a loader.
//!
//! Flow: builder, Python's keyword arguments (as JSON) or command line -> [`Options`] -> `Loader`.
//! Memory: holds none.

use serde::{Deserialize, Serialize};
use tidegate_data::batch::FieldSpec;
use tidegate_data::cache::DiskCache;
use tidegate_data::pipeline::{Keep, OnError};
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;
use tidegate_order::partition::Remainder;

/// All options of a loader.
///
/// An option that torch's DataLoader has too has the same name and default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Samples in a batch of one rank.
    pub batch_size: Option<u64>,
    /// Samples in the batches of all ranks together. It can stay the same while the number of
    /// ranks changes. Give either this or `batch_size`.
    pub global_batch_size: Option<u64>,
    /// How fields are delivered, by name. The type of other fields is inferred.
    pub fields: Vec<(String, FieldSpec)>,
    /// Deliver only the fields that `fields` names.
    pub only: bool,
    /// How an epoch is shuffled.
    pub shuffle: Shuffle,
    /// The seed of order and augmentation.
    pub seed: u64,
    /// What happens after the last full batch.
    pub remainder: Remainder,
    /// Decoding threads. None: as many as cores that the process may use.
    pub workers: Option<usize>,
    /// Batches that are made ahead, beyond the one being consumed and the one being filled.
    pub prefetch: usize,
    /// Batches that the consumer keeps beyond the one being consumed; the plan has a slot for each.
    pub held_batches: usize,
    /// Threads that call the batch map, each for one batch at a time. 0: the worker that
    /// completes a batch calls it.
    pub map_threads: usize,
    /// What happens when a sample fails.
    pub on_error: OnError,
    /// The fraction of samples that may fail under skip or replace, from 0 to 1. None: 0.01, and
    /// ten samples in any case.
    pub max_failure_rate: Option<f64>,
    /// Whether the first epoch is profiled; see `Loader::profile`.
    pub profile: bool,
    /// In which form the memory cache keeps samples.
    pub keep: Keep,
    /// A disk cache, which later epochs and runs use again.
    pub disk: Option<DiskCache>,
    /// This rank, from 0.
    pub rank: u64,
    /// The number of ranks.
    pub world_size: u64,
    /// Seconds without progress after which an error says which stage waits for what.
    pub stall_seconds: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch_size: None,
            global_batch_size: None,
            fields: Vec::new(),
            only: false,
            shuffle: Shuffle::None,
            seed: 0,
            remainder: Remainder::Uneven,
            workers: None,
            prefetch: 1,
            held_batches: 0,
            map_threads: 0,
            on_error: OnError::Raise,
            max_failure_rate: None,
            profile: false,
            keep: Keep::Auto,
            disk: None,
            rank: 0,
            world_size: 1,
            stall_seconds: 300.0,
        }
    }
}

impl Options {
    /// The number of samples in a global batch.
    ///
    /// # Errors
    /// [`Error::Config`] unless exactly one of the two sizes is given.
    pub fn global_batch(&self) -> Result<u64> {
        match (self.batch_size, self.global_batch_size) {
            (Some(size), None) => Ok(size * self.world_size),
            (None, Some(size)) => Ok(size),
            (None, None) => Err(Error::Config("give batch_size (per rank) or global_batch_size".into())),
            (Some(_), Some(_)) => {
                Err(Error::Config("give either batch_size (per rank) or global_batch_size, not both".into()))
            }
        }
    }

    /// Decoding threads: those asked for, else the cores that this process may use by affinity
    /// and cgroup quota.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from)).max(1)
    }
}
