//! The batch transform: the user's function that makes something else of each batch.
//!
//! Flow: finished batches, in order -> a transform thread -> [`BatchTransform::map`] -> the
//! consumer.
//! Memory: batches that wait hold their slots (account `batch`); what the function makes is the
//! user's.
//!
//! Batches are begun in order, so that a function that waits for others before it cannot wait for
//! ever.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Mutex;
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use tidegate_core::sync::{Ordered, Taken, lock};

use super::batch_builder::BatchExtras;
use super::delivery::{Delivered, Done};
use crate::batch::Batch;
use crate::{Error, Result};

/// Turns a batch into something else, off the consumer's thread: the user's `batch_transform`.
pub trait BatchTransform: Send + Sync + std::fmt::Debug {
    /// Called before the first batch of an epoch, with its number.
    fn begin(&self, first: u64) {
        let _ = first;
    }

    /// Called once a batch; `Batch` may be consumed into what is returned.
    ///
    /// # Errors
    /// Whatever the user's function raises.
    fn map(&self, batch: Batch) -> Result<Box<dyn Any + Send>>;

    /// Called when the epoch ends: calls that wait for something should return soon.
    fn stop(&self) {}

    /// Called where a call has not returned a while after `stop`. If it does not return then, its
    /// thread is left behind with the batch that it has.
    fn interrupt(&self) {}
}

/// Batches on their way to the function; a batch that failed passes through.
#[derive(Debug)]
pub(super) struct TransformQueue(Ordered<(Result<Batch>, BatchExtras), Infallible>);

impl TransformQueue {
    /// Batches come in order from `next` on.
    pub(super) fn new(next: u64) -> Self {
        Self(Ordered::new(next))
    }

    /// Puts a batch in, with its extras.
    pub(super) fn put(&self, index: u64, batch: Result<Batch>, extras: BatchExtras) {
        self.0.put(index, (batch, extras));
    }

    /// Drops what waits, and ends all waits.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Takes the next batch and calls the function; nothing once the queue is closed. `begins` is
    /// told before the call.
    pub(super) fn run_next(
        &self,
        map: &dyn BatchTransform,
        calls: &UserCalls,
        begins: impl FnOnce(),
    ) -> Option<(u64, Done)> {
        let Taken::Item(index, (batch, extras)) = self.0.take(None) else { return None };
        begins();
        let outcome = batch.and_then(|batch| calls.apply(map, batch));
        Some((index, Done { outcome, extras }))
    }
}

/// The threads that are in the user's function: at an epoch's end nobody waits for them for long.
#[derive(Debug, Default)]
pub(super) struct UserCalls(Mutex<Vec<ThreadId>>);

impl UserCalls {
    /// Calls the function; its panic is an error like any other.
    pub(super) fn apply(&self, map: &dyn BatchTransform, batch: Batch) -> Result<Delivered> {
        let thread = std::thread::current().id();
        lock(&self.0).push(thread);
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map.map(batch)));
        lock(&self.0).retain(|other| *other != thread);
        made.unwrap_or_else(|panic| {
            Err(Error::Panic { thread: "transform".into(), what: crate::panic_message(&*panic) })
        })
        .map(Delivered::Mapped)
    }

    /// Calls that have not returned.
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Waits until these threads have ended, or those that have not are all in the function and
    /// `patience` is over.
    pub(super) fn wait_for(&self, threads: &[JoinHandle<()>], patience: Duration) {
        let began = Instant::now();
        loop {
            let within = lock(&self.0).clone();
            let mut left = threads.iter().filter(|thread| !thread.is_finished());
            let mut only_within = || left.all(|thread| within.contains(&thread.thread().id()));
            if began.elapsed() > patience && only_within() || threads.iter().all(JoinHandle::is_finished) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
