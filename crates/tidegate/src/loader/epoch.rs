//! A running epoch: the consumer's side of a pipeline, and the consumer's position.
//!
//! Flow: [`crate::Loader::epoch`] -> [`Epoch::next_with`], batch after batch -> the position in a
//! state.
//! Memory: that of its pipeline, returned when the epoch ends.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use tidegate_core::sync::lock;
use tidegate_data::batch::Batch;
use tidegate_data::pipeline::{self, Delivered, Failure, Knobs, Pipeline, StageStats};
use tidegate_data::{Error, Result};

use super::observer::{EpochObserver, FailedSamples};

/// How often and how long `set_memory` tries to get in between two batches: two seconds.
const LOCK_TRIES: usize = 200;
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Where the consumer is. A loader shares it with its epoch.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) epoch: u64,
    pub(crate) position: u64,
    /// `epoch` and `position` are where the next epoch begins, by `set_epoch` or a loaded state.
    /// Otherwise the next epoch is the one after `epoch`.
    pub(crate) start_is_set: bool,
    /// (count, digest) of the ids delivered so far, for a sampler that gives ids one by one.
    pub(crate) delivered_ids: Option<(u64, u64)>,
    /// Positions that failed before the state was saved.
    pub(crate) failed: Vec<u64>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) stats: StageStats,
    pub(crate) elapsed: Duration,
}

impl Progress {
    /// Moves to the beginning of another epoch.
    pub(crate) fn advance_to(&mut self, epoch: u64) {
        (self.epoch, self.position) = (epoch, 0);
        self.failed.clear();
        self.delivered_ids = None;
    }
}

/// An epoch with its pipeline. The loader shares it, because `set_memory` may restart the
/// pipeline.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pipeline: Option<Pipeline>,
    pub(crate) config: pipeline::Config,
    /// The ids of the epoch. A sampler gives them only once.
    pub(crate) ids: Arc<dyn tidegate_order::Epoch>,
    /// Why the epoch could not continue with a changed budget.
    pub(crate) stopped: Option<String>,
}

/// Locks an epoch between two batches.
///
/// It does not wait forever: the caller may itself be inside a batch, as a signal handler or the
/// function that makes the batch.
pub(crate) fn lock_between_batches(running: &Mutex<Running>) -> Result<MutexGuard<'_, Running>> {
    for _ in 0..LOCK_TRIES {
        match running.try_lock() {
            Ok(running) => return Ok(running),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_INTERVAL),
        }
    }
    Err(Error::Config(
        "the budget has its new size, but the consumer is waiting for a batch, so the epoch returns its \
         excess memory only when it ends: call set_memory between two batches"
            .into(),
    ))
}

/// One epoch: an iterator of batches.
#[derive(Debug)]
pub struct Epoch {
    pub(super) running: Arc<Mutex<Running>>,
    pub(super) progress: Arc<Mutex<Progress>>,
    pub(super) observer: Option<Arc<dyn EpochObserver>>,
    pub(super) began: Instant,
}

impl Epoch {
    /// The next batch, or nothing at the end of the epoch.
    ///
    /// While it waits it calls `interrupted`; an error from there ends the epoch.
    ///
    /// # Errors
    /// As [`Pipeline::next`]. The epoch ends with an error, except for [`Error::Held`] and
    /// [`Error::Starved`]: release batches and call it again.
    pub fn next_with(&mut self, interrupted: &dyn Fn() -> Result<()>) -> Result<Option<Delivered>> {
        let running = &mut *lock(&self.running);
        if let Some(why) = running.stopped.take() {
            return Err(Error::NotResumed { why });
        }
        let Some(pipeline) = running.pipeline.as_mut() else { return Ok(None) };
        let outcome = pipeline.next(interrupted);
        let split = &running.config.split;
        let reached = (split.start + pipeline.delivered() * split.global_batch).min(split.len);
        let mut progress = lock(&self.progress);
        progress.stats = pipeline.stats();
        progress.elapsed = self.began.elapsed();
        // The pipeline only appends failures.
        let known = progress.failures.len();
        progress.failures.extend_from_slice(pipeline.failures().get(known..).unwrap_or_default());
        let ended = match &outcome {
            Ok(Some(_)) => {
                progress.position = reached;
                progress.delivered_ids = running.ids.digest(reached);
                false
            }
            Ok(None) => {
                if let Some(observer) = &self.observer {
                    observer.set_failed(FailedSamples::new(&progress.failures));
                    observer.finish();
                }
                // The consumer saw the end: the state is now the beginning of the next epoch.
                let next = progress.epoch + 1;
                progress.advance_to(next);
                progress.start_is_set = true;
                true
            }
            // The consumer can release what it holds, and then the epoch continues.
            Err(Error::Held { .. } | Error::Starved { .. } | Error::NotResumed { .. }) => false,
            Err(_) => true,
        };
        // Stopping a pipeline joins its threads; do not hold the lock meanwhile.
        drop(progress);
        if ended {
            running.pipeline = None;
        }
        outcome
    }
}

impl Epoch {
    /// The knobs of the running epoch; nothing once it has ended.
    #[must_use]
    pub fn knobs(&self) -> Option<Knobs> {
        lock(&self.running).pipeline.as_ref().map(Pipeline::knobs)
    }

    /// Turns the knobs between two batches: order and contents stay the same. It does nothing once
    /// the epoch has ended.
    ///
    /// # Errors
    /// As [`Pipeline::set_knobs`].
    pub fn set_knobs(&self, knobs: Knobs) -> Result<()> {
        match lock_between_batches(&self.running)?.pipeline.as_mut() {
            Some(pipeline) => pipeline.set_knobs(knobs),
            None => Ok(()),
        }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        let pipeline = lock(&self.running).pipeline.take();
        drop(pipeline);
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_with(&|| Ok(())) {
            Ok(Some(Delivered::Batch(batch))) => Some(Ok(batch)),
            Ok(Some(Delivered::Mapped(_))) => {
                Some(Err(Error::Config("a loader with a batch map delivers through next_with".into())))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
