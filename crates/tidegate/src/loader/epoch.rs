//! One epoch while it runs: the consumer's side of a pipeline, and where he is.
//!
//! Flow: [`crate::Loader::epoch`] -> [`Epoch::next_with`], batch after batch -> the position that a state is made of.
//! Memory: that of its pipeline, given back when it ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tidegate_data::batch::Batch;
use tidegate_data::pipeline::{self, Delivered, Failure, Pipeline, StageStats};
use tidegate_data::{Error, Result};

use crate::dataset::profile::Collector;
use crate::dataset::scan::{self, Failed};

/// Where the consumer is; shared by a loader and its epoch.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) epoch: u64,
    pub(crate) position: u64,
    /// A loaded state or `set_epoch` says where the next epoch begins; else it is the one after this.
    pub(crate) placed: bool,
    /// How many ids came, and what tells them from others, where a sampler gives them one after another.
    pub(crate) print: Option<(u64, u64)>,
    pub(crate) failed: Vec<u64>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) stats: StageStats,
    pub(crate) elapsed: Duration,
}

/// An epoch while it runs; shared with the loader, which may have to begin it again with other memory.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pipeline: Option<Pipeline>,
    pub(crate) config: pipeline::Config,
    /// Its ids; those of a sampler come only once.
    pub(crate) ids: Arc<dyn tidegate_order::Epoch>,
    /// Why it could not go on with other memory.
    pub(crate) stopped: Option<String>,
}

/// The epoch, while nobody waits for a batch of it: a caller who does so himself (from a signal's handler, or the function that
/// makes the batch) would wait for ever.
pub(crate) fn between_batches(running: &Mutex<Running>) -> Result<MutexGuard<'_, Running>> {
    for _ in 0..200 {
        match running.try_lock() {
            Ok(running) => return Ok(running),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(Error::Config(
        "the budget is changed, but a batch is being waited for, so what the epoch holds beyond it goes when it ends: call set_memory \
         between two batches"
            .into(),
    ))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many samples failed, and the first of them.
pub(crate) fn failed_of(progress: &Progress) -> (u64, Vec<Failed>) {
    (progress.failures.len() as u64, scan::named(&progress.failures))
}

/// One epoch: an iterator of batches.
#[derive(Debug)]
pub struct Epoch {
    pub(crate) running: Arc<Mutex<Running>>,
    pub(crate) progress: Arc<Mutex<Progress>>,
    pub(crate) collector: Option<Arc<Collector>>,
    pub(crate) began: Instant,
}

impl Epoch {
    /// The next batch; `interrupted` is asked while waiting, and its error ends the epoch.
    ///
    /// # Errors
    /// As [`Pipeline::next`]; the epoch is over afterwards.
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
        // They grow at their end.
        let known = progress.failures.len();
        progress.failures.extend_from_slice(pipeline.failures().get(known..).unwrap_or_default());
        match &outcome {
            Ok(Some(_)) => {
                progress.position = reached;
                progress.print = running.ids.print(reached);
            }
            Ok(None) => {
                if let Some(collector) = &self.collector {
                    collector.note_failed(failed_of(&progress));
                    collector.finish();
                }
                // The end was seen: the state is that of the next epoch's beginning.
                (progress.epoch, progress.position, progress.placed) = (progress.epoch + 1, 0, true);
                progress.failed.clear();
                progress.print = None;
            }
            // What is held can be let go, and then the epoch goes on.
            Err(Error::Held { .. } | Error::Starved { .. } | Error::NotResumed { .. }) => {}
            Err(_) => {
                drop(progress);
                running.pipeline = None;
                return outcome;
            }
        }
        let ended = matches!(outcome, Ok(None));
        drop(progress);
        if ended {
            running.pipeline = None;
        }
        outcome
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
