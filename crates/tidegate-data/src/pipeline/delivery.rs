//! Finished batches on their way to the consumer, in order; and what ends the epoch.
//!
//! Flow: the last settled row of a batch -> the batch transform, if there is one ->
//! [`Delivery::wait`] by the consumer.
//! Memory: a few words a batch; the batches hold their slots.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::sync::lock;

use super::batch_builder::{BatchBuilder, BatchExtras, Row};
use super::control::Control;
use super::transform::{BatchTransform, TransformQueue, apply};
use crate::batch::Batch;
use crate::{Error, Result};

/// What the consumer gets.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is moved once a batch")]
pub enum Delivered {
    /// A batch.
    Batch(Batch),
    /// What a [`BatchTransform`] made of it.
    Mapped(Box<dyn Any + Send>),
}

/// A finished batch, or why there is none.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) outcome: Result<Delivered>,
    pub(super) extras: BatchExtras,
}

/// What a wait for a batch came to.
#[derive(Debug)]
pub(super) enum Waited {
    Done(Done),
    /// Nothing came in time.
    TimedOut {
        /// No batch has been begun that is not delivered.
        idle: bool,
    },
}

#[derive(Debug, Default)]
struct State {
    done: BTreeMap<u64, Done>,
    /// Batches that were begun and are not yet done.
    in_flight: u64,
    /// What ended the epoch, if anything did.
    fatal: Option<Error>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Delivery {
    control: Arc<Control>,
    map: Option<Arc<dyn BatchTransform>>,
    /// Batches for the transform threads, if there are any.
    pub(super) queue: Option<TransformQueue>,
    state: Mutex<State>,
    ready: Condvar,
}

impl Delivery {
    /// Batches come in order from `next` on.
    pub(super) fn new(
        control: &Arc<Control>,
        map: Option<Arc<dyn BatchTransform>>,
        map_threads: usize,
        next: u64,
    ) -> Self {
        let queue = (map.is_some() && map_threads > 0).then(|| TransformQueue::new(next));
        let control = Arc::clone(control);
        Self { control, map, queue, state: Mutex::default(), ready: Condvar::new() }
    }

    pub(super) fn map(&self) -> Option<&Arc<dyn BatchTransform>> {
        self.map.as_ref()
    }

    /// A batch has its memory and is going to be made.
    pub(super) fn begin(&self) {
        lock(&self.state).in_flight += 1;
    }

    /// Whether a batch was begun that is not yet done.
    pub(super) fn is_busy(&self) -> bool {
        lock(&self.state).in_flight > 0
    }

    /// A row is done with; the last one of a batch has it delivered.
    pub(super) fn settle(&self, row: Row) {
        if let Some(builder) = row.settle() {
            self.finish(builder);
        }
    }

    /// Puts a complete batch together and passes it on: to the transform threads, or through the
    /// transform to the consumer.
    pub(super) fn finish(&self, builder: BatchBuilder) {
        if self.control.stopped() {
            return;
        }
        let index = builder.index;
        let (outcome, extras) = builder.finish();
        let outcome = match (outcome, &self.queue, &self.map) {
            (outcome, Some(queue), _) => return queue.put(index, outcome, extras),
            (Ok(batch), None, Some(map)) => apply(&**map, batch),
            (outcome, ..) => outcome.map(Delivered::Batch),
        };
        self.deliver(index, Done { outcome, extras });
    }

    /// Has the consumer get what came of a batch.
    pub(super) fn deliver(&self, index: u64, done: Done) {
        let mut state = lock(&self.state);
        state.done.insert(index, done);
        state.in_flight -= 1;
        drop(state);
        self.ready.notify_all();
    }

    /// Ends the epoch with an error, which the consumer gets after the batches that are done.
    pub(super) fn fail(&self, error: Error) {
        lock(&self.state).fatal.get_or_insert(error);
        self.control.stop.stop();
        self.ready.notify_all();
    }

    /// Waits up to `timeout` for a batch.
    pub(super) fn wait(&self, index: u64, timeout: Duration) -> Result<Waited> {
        let mut state = lock(&self.state);
        loop {
            if let Some(done) = state.done.remove(&index) {
                return Ok(Waited::Done(done));
            }
            if let Some(error) = state.fatal.take() {
                return Err(error);
            }
            let waited = self.ready.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && !state.done.contains_key(&index) && state.fatal.is_none() {
                return Ok(Waited::TimedOut { idle: state.in_flight == 0 && state.done.is_empty() });
            }
        }
    }

    /// Drops what is not delivered, and ends the waits of the transform threads.
    pub(super) fn close(&self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
        if let Some(map) = &self.map {
            map.stop();
        }
    }

    /// Drops what was not delivered.
    pub(super) fn clear(&self) {
        lock(&self.state).done.clear();
    }
}
