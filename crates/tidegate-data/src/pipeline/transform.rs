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
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};

use tidegate_core::sync::lock;

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
}

/// Batches on their way to the function; a batch that failed passes through.
#[derive(Debug, Default)]
pub(super) struct TransformQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    batches: BTreeMap<u64, (Result<Batch>, BatchExtras)>,
    closed: bool,
}

impl TransformQueue {
    /// Batches come in order from `next` on.
    pub(super) fn new(next: u64) -> Self {
        let queue = Self::default();
        lock(&queue.waiting).next = next;
        queue
    }

    /// Puts a batch in, with its extras.
    pub(super) fn put(&self, index: u64, batch: Result<Batch>, extras: BatchExtras) {
        let mut waiting = lock(&self.waiting);
        if !waiting.closed {
            waiting.batches.insert(index, (batch, extras));
        }
        drop(waiting);
        self.changed.notify_all();
    }

    /// The next batch in order; nothing once the queue is closed.
    fn take(&self) -> Option<(u64, Result<Batch>, BatchExtras)> {
        let mut waiting = lock(&self.waiting);
        while !waiting.closed {
            let next = waiting.next;
            if let Some((batch, extras)) = waiting.batches.remove(&next) {
                waiting.next += 1;
                // Another thread may wait for the one that is next now.
                self.changed.notify_all();
                return Some((next, batch, extras));
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Drops what waits, and ends all waits.
    pub(super) fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        waiting.batches.clear();
        self.changed.notify_all();
    }

    /// Takes the next batch and calls the function; nothing once the queue is closed. `begins` is
    /// told before the call.
    pub(super) fn run_next(&self, map: &dyn BatchTransform, begins: impl FnOnce()) -> Option<(u64, Done)> {
        let (index, batch, extras) = self.take()?;
        begins();
        let outcome = batch.and_then(|batch| apply(map, batch));
        Some((index, Done { outcome, extras }))
    }
}

/// Calls the function; its panic is an error like any other.
pub(super) fn apply(map: &dyn BatchTransform, batch: Batch) -> Result<Delivered> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map.map(batch)))
        .unwrap_or_else(|panic| {
            Err(Error::Panic { thread: "transform".into(), what: crate::panic_message(&*panic) })
        })
        .map(Delivered::Mapped)
}
