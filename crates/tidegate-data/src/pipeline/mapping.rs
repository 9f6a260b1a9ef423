//! The user's function over whole batches: on the worker that completes one, or on threads of its own.
//!
//! Flow: a finished batch -> [`super::BatchMap`] -> what the consumer gets.
//! Memory: none of its own; the batch's slot stays taken until the function lets go of it.
//!
//! Threads of their own are for functions that wait for something else, a worker process above all: a worker would
//! decode nothing meanwhile. They take batches in order, so that memory for results can be taken in order too.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tidegate_core::sync::lock;

use super::{BatchMap, Beside, Delivered, Done, Shared};
use crate::batch::Batch;
use crate::{Error, Result, panic_message};

/// Batches on their way to the function; a batch that failed passes through.
#[derive(Debug, Default)]
pub(super) struct Finished {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    batches: BTreeMap<u64, (Result<Batch>, Beside)>,
    closed: bool,
}

impl Finished {
    /// Batches come in order from `next` on.
    pub(super) fn new(next: u64) -> Self {
        let finished = Self::default();
        lock(&finished.waiting).next = next;
        finished
    }

    /// Puts a batch in, with what comes of it besides.
    pub(super) fn put(&self, index: u64, batch: Result<Batch>, beside: Beside) {
        lock(&self.waiting).batches.insert(index, (batch, beside));
        self.changed.notify_all();
    }

    /// The next batch in order; nothing once it is closed.
    fn take(&self) -> Option<(u64, Result<Batch>, Beside)> {
        let mut waiting = lock(&self.waiting);
        while !waiting.closed {
            let next = waiting.next;
            if let Some((batch, beside)) = waiting.batches.remove(&next) {
                waiting.next += 1;
                // Another thread may wait for the one that is next now.
                self.changed.notify_all();
                return Some((next, batch, beside));
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Lets go of what waits, and of who waits for it.
    pub(super) fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        waiting.batches.clear();
        self.changed.notify_all();
    }
}

/// A mapping thread.
pub(super) fn run(shared: &Arc<Shared>, map: &dyn BatchMap, thread: usize) {
    loop {
        shared.watch.note(thread, "waiting for batches", None);
        let Some((index, batch, beside)) = shared.finished.take() else { break };
        shared.watch.note(thread, "transforming a batch", None);
        let outcome = batch.and_then(|batch| apply(map, batch));
        shared.deliver(index, Done { outcome, beside });
    }
    shared.watch.note(thread, "done", None);
}

/// Calls the function; its panic is an error like any other.
pub(super) fn apply(map: &dyn BatchMap, batch: Batch) -> Result<Delivered> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map.map(batch)))
        .unwrap_or_else(|panic| {
            Err(Error::Panic { thread: "transform".into(), what: panic_message(&*panic) })
        })
        .map(Delivered::Mapped)
}
