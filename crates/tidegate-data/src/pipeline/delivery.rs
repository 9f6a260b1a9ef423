//! Finished batches on their way to the consumer, in order; and what ends the epoch.
//!
//! Flow: the last settled row of a batch -> the batch transform, if there is one ->
//! [`Delivery::wait`] by the consumer.
//! Memory: a few words a batch; the batches hold their slots.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::sync::{Ordered, Taken};

use super::batch_builder::{BatchBuilder, BatchExtras, Row};
use super::control::Control;
use super::transform::{BatchTransform, TransformQueue, UserCalls};
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
#[expect(clippy::large_enum_variant, reason = "it is moved once a batch")]
#[derive(Debug)]
pub(super) enum Waited {
    Done(Done),
    /// Nothing came in time.
    TimedOut {
        /// No batch has been begun that is not delivered.
        idle: bool,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Delivery {
    control: Arc<Control>,
    map: Option<Arc<dyn BatchTransform>>,
    /// Batches for the transform threads, if there are any.
    pub(super) queue: Option<TransformQueue>,
    pub(super) calls: UserCalls,
    /// What came of the batches, and what ended the epoch, if anything did.
    batches: Ordered<Done, Error>,
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
        Self {
            control: Arc::clone(control),
            map,
            queue,
            calls: UserCalls::default(),
            batches: Ordered::new(next),
        }
    }

    pub(super) fn map(&self) -> Option<&Arc<dyn BatchTransform>> {
        self.map.as_ref()
    }

    /// A batch has its memory and is going to be made.
    pub(super) fn begin(&self) {
        self.batches.begin();
    }

    /// Whether a batch was begun that is not yet done.
    pub(super) fn is_busy(&self) -> bool {
        self.batches.is_busy()
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
            (Ok(batch), None, Some(map)) => self.calls.apply(&**map, batch),
            (outcome, ..) => outcome.map(Delivered::Batch),
        };
        self.deliver(index, Done { outcome, extras });
    }

    /// Has the consumer get what came of a batch.
    pub(super) fn deliver(&self, index: u64, done: Done) {
        self.batches.finish(index, done);
    }

    /// Ends the epoch with an error, which the consumer gets after the batches that are done.
    pub(super) fn fail(&self, error: Error) {
        self.batches.fail(error);
        self.control.stop.stop();
    }

    /// Waits up to `timeout` for the next batch.
    pub(super) fn wait(&self, timeout: Duration) -> Result<Waited> {
        match self.batches.take(Some(timeout)) {
            Taken::Item(_, done) => Ok(Waited::Done(done)),
            Taken::Failed(error) => Err(error),
            Taken::TimedOut { idle } => Ok(Waited::TimedOut { idle }),
            // The consumer is the only one that waits here, and it clears at its end.
            Taken::Closed => Ok(Waited::TimedOut { idle: true }),
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

    /// Drops what was not delivered, and what still comes.
    pub(super) fn clear(&self) {
        self.batches.close();
    }
}
