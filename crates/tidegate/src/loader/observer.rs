//! What observes a loader's epochs from their first sample to their last, and samples that failed.
//!
//! Flow: `tidegate_data::pipeline` -> [`EpochObserver`], called by `Loader` and `Epoch`.
//! Memory: holds none; an observer says what it holds.
//! Not here: the observers themselves, which are in `dataset::{profile, dedup}`.

use std::any::Any;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_core::memory::Budget;
use tidegate_data::batch::Layout;
use tidegate_data::pipeline::Failure;
use tidegate_data::pipeline::observer::Observer;
use tidegate_source::Source;

use crate::Result;

/// Failed samples that are named; the rest are only counted.
const NAMED: usize = 20;

/// A sample that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedSample {
    /// Its shard, offset and key.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

impl From<&Failure> for FailedSample {
    fn from(failure: &Failure) -> Self {
        Self { place: failure.place.to_string(), what: failure.what.clone() }
    }
}

/// How many samples failed, and the first of them by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FailedSamples {
    pub(crate) count: u64,
    pub(crate) first: Vec<FailedSample>,
}

impl FailedSamples {
    pub(crate) fn new(failures: &[Failure]) -> Self {
        let first = failures.iter().take(NAMED).map(FailedSample::from);
        Self { count: failures.len() as u64, first: first.collect() }
    }
}

/// Appends the failures of another part of the data, as far as samples are named.
pub(crate) fn append_failures(failures: &mut Vec<FailedSample>, more: &[FailedSample]) {
    failures.extend(more.iter().cloned());
    failures.truncate(NAMED);
}

/// An [`Observer`] of whole epochs. It sees an epoch only from its first sample on.
pub(crate) trait EpochObserver: Observer + Any {
    /// Bytes of the budget that it holds as long as the loader exists.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Whether it has seen enough: later epochs are not observed.
    fn is_done(&self) -> bool {
        false
    }

    /// An epoch begins. What an unfinished epoch gave no longer counts.
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// The samples that have failed so far in the epoch.
    fn set_failed(&self, _failed: FailedSamples) {}

    /// The epoch has reached its end.
    fn finish(&self) {}
}

/// Makes the observer that `Options::profile` asks for, with its memory reserved.
pub(crate) type MakeObserver = fn(&Arc<dyn Source>, &Layout, &Budget) -> Result<Arc<dyn EpochObserver>>;
