//! What the stages of an epoch share: one handle for each concern, none of which refers to jobs.
//!
//! Flow: made by `Pipeline::start`, cloned for each thread.
//! Memory: holds none itself; [`Reserved`] and the cache hold theirs.

use std::sync::{Arc, Mutex};

use tidegate_core::sync::lock;
use tidegate_source::{Error as SourceError, Located, SourceExt};

use super::batch_builder::Row;
use super::cache_policy::EpochCache;
use super::config::{Failure, OnError};
use super::control::{Control, Lacking};
use super::delivery::Delivery;
use super::metrics::Metrics;
use super::plan::Reserved;
use super::scratch::{Scratches, WorkerScratch};
use super::spec::EpochSpec;
use super::watchdog::Watchdog;
use crate::Error;

/// How many other samples are tried in place of a failed one.
const ATTEMPTS: u8 = 16;

/// See the head of this file.
#[derive(Debug, Clone)]
pub(super) struct Handles {
    pub(super) spec: Arc<EpochSpec>,
    pub(super) reserved: Arc<Reserved>,
    pub(super) control: Arc<Control>,
    pub(super) delivery: Arc<Delivery>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cache: Arc<EpochCache>,
    pub(super) watchdog: Arc<Watchdog>,
    pub(super) scratches: Arc<Scratches>,
    pub(super) retries: Arc<Retries>,
}

/// A row that another sample is to fill.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) row: Row,
    /// The sample that is tried.
    pub(super) id: u64,
}

/// Rows that wait for the feed to read another sample.
#[derive(Debug, Default)]
pub(super) struct Retries(Mutex<Vec<Retry>>);

impl Retries {
    fn push(&self, retry: Retry) {
        lock(&self.0).push(retry);
    }

    pub(super) fn pop(&self) -> Option<Retry> {
        lock(&self.0).pop()
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}

/// The field and the words of an error about a sample.
fn of_sample(error: Error) -> (String, String) {
    match error {
        Error::Source(SourceError::Sample { field, what, .. }) => (field, what),
        other => (String::new(), other.to_string()),
    }
}

impl Handles {
    /// The row of a sample is written.
    pub(super) fn complete(&self, row: Row, id: u64) {
        row.complete(id);
        self.delivery.settle(row);
    }

    /// The row of a sample that failed: raised, skipped or tried again, as the policy says.
    pub(super) fn fail(&self, mut row: Row, at: &Located, error: Error) {
        let (config, source) = (&self.spec.config, &self.spec.source);
        let error = match source.changed(at).filter(|_| !matches!(error, Error::TooLarge { .. })) {
            Some(changed) => {
                let (field, what) = of_sample(error);
                source.sample_error(at, &field, format!("{what}; {changed}")).into()
            }
            None => error,
        };
        if config.on_error == OnError::Raise || matches!(error, Error::TooLarge { .. }) {
            let error = match error {
                Error::Source(SourceError::Sample { place, field, what }) => {
                    let what = format!("{what}; on_error=\"skip\" leaves such samples out");
                    SourceError::Sample { place, field, what }.into()
                }
                other => other,
            };
            return self.raise(row, error);
        }
        let (position, place) = (row.position(), source.place(at));
        let what = match of_sample(error) {
            (field, what) if !field.is_empty() => format!("field {field:?}: {what}"),
            (_, what) => what,
        };
        row.list(Failure { position, place: place.clone(), what: what.clone() });
        if config.on_error == OnError::Skip || self.control.stopped() {
            row.skip();
            return self.delivery.settle(row);
        }
        if row.attempt >= ATTEMPTS {
            let what = format!("{what}; and {ATTEMPTS} other samples in its place failed too");
            let error = SourceError::Sample { place: Box::new(place), field: String::new(), what };
            return self.raise(row, error.into());
        }
        match self.spec.replacement(position, row.attempt + 1) {
            Ok(id) => {
                row.replace(id);
                self.retries.push(Retry { row, id });
                // A reader may wait for a slot or for memory, which this row holds.
                self.control.stop.wake_all();
            }
            Err(error) => self.raise(row, error),
        }
    }

    fn raise(&self, row: Row, error: Error) {
        row.raise(error);
        self.delivery.settle(row);
    }

    /// Gives back a worker's scratch if a batch lacks memory: called before the batch is
    /// delivered, since nothing gives it back once nothing is in flight.
    pub(super) fn give_back_if_lacking(&self, scratch: &Mutex<WorkerScratch>) {
        if self.control.lacks(Lacking::Memory) {
            *lock(scratch) = WorkerScratch::default();
        }
    }
}
