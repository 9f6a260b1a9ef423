//! The threads of an epoch: readers, workers and transform threads of one lane.
//!
//! Flow: `Pipeline` -> [`Stages`] -> threads that run until the epoch ends, or park until a knob
//! is turned.
//! Memory: their stacks, which the plan counts (`telemetry`).

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use tidegate_core::sync::{Popped, Ring, lock};
use tidegate_source::ReadMode;
use tidegate_source::read::stop_reading_when;
use tidegate_source::uring::Uring;

use super::feed::{Feed, Taken};
use super::handles::Handles;
use super::lane::Lane;
use super::plan::STACK_BYTES;
use super::scratch::WorkerScratch;
use crate::{Error, Result, panic_message};

/// The stages of an epoch, whatever its lane is.
pub(super) trait Stages: Send + Sync + std::fmt::Debug {
    /// Starts one more reader.
    fn spawn_reader(&self, number: usize) -> Result<JoinHandle<()>>;
    /// Starts one more worker.
    fn spawn_worker(&self, number: usize) -> Result<JoinHandle<()>>;
    /// Starts one more transform thread, if there is a transform.
    fn spawn_transform(&self, number: usize) -> Result<Option<JoinHandle<()>>>;
    /// Jobs that wait for a worker.
    fn queued(&self) -> usize;
    /// Wakes workers that wait for jobs, so that they see which of them are to park.
    fn wake(&self);
    /// Ends all waits for jobs.
    fn close(&self);
    /// Drops what waits, once the threads have ended.
    fn clear(&self);
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct LaneStages<L: Lane>(Arc<Inner<L>>);

#[derive(Debug)]
struct Inner<L: Lane> {
    h: Handles,
    lane: L,
    ring: Ring<L::Job>,
    feed: Mutex<Feed<L>>,
}

/// Jobs between readers and workers, at most.
const RING_JOBS: usize = 1024;

impl<L: Lane> LaneStages<L> {
    pub(super) fn new(h: Handles, lane: L, next_batch: u64) -> Self {
        let (ring, feed) = (Ring::new(RING_JOBS), Mutex::new(Feed::new(next_batch)));
        Self(Arc::new(Inner { h, lane, ring, feed }))
    }

    fn spawn(&self, name: String, body: impl FnOnce(&Inner<L>) + Send + 'static) -> Result<JoinHandle<()>> {
        let inner = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES as usize);
        thread.spawn(move || body(&inner)).map_err(Error::io(name))
    }
}

impl<L: Lane> Stages for LaneStages<L> {
    fn spawn_reader(&self, number: usize) -> Result<JoinHandle<()>> {
        let thread = self.0.h.watchdog.add();
        self.spawn(format!("tg-read-{number}"), move |stages| stages.run_reader(number, thread))
    }

    fn spawn_worker(&self, number: usize) -> Result<JoinHandle<()>> {
        let (thread, scratch) = (self.0.h.watchdog.add(), self.0.h.scratches.add());
        self.spawn(format!("tg-work-{number}"), move |stages| stages.run_worker(number, thread, &scratch))
    }

    fn spawn_transform(&self, number: usize) -> Result<Option<JoinHandle<()>>> {
        if self.0.h.delivery.map().is_none() {
            return Ok(None);
        }
        let thread = self.0.h.watchdog.add();
        self.spawn(format!("tg-map-{number}"), move |stages| run_transform(&stages.h, thread)).map(Some)
    }

    fn queued(&self) -> usize {
        self.0.ring.len()
    }

    fn wake(&self) {
        self.0.ring.wake_all();
    }

    fn close(&self) {
        self.0.ring.close();
    }

    fn clear(&self) {
        self.0.lane.clear();
        self.0.h.retries.clear();
    }
}

impl<L: Lane> Inner<L> {
    fn run_reader(&self, number: usize, thread: usize) {
        let body = || self.read_all(number, thread);
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
            let thread = format!("tg-read-{number}");
            self.h.delivery.fail(Error::Panic { thread, what: panic_message(&*panic) });
        }
        self.h.watchdog.note(thread, "done", None);
    }

    fn read_all(&self, number: usize, thread: usize) {
        let Self { h, lane, ring, feed } = self;
        stop_reading_when(&h.control.stop);
        let mut uring = if h.spec.mode == ReadMode::Direct { Uring::new() } else { None };
        while !h.control.stopped() {
            h.control.park_reader(number, || h.watchdog.note(thread, "parked", None));
            let most = lane.reads_at_once(uring.is_some()).min(h.control.read_depth());
            let taken = {
                let mut feed = lock(feed);
                h.watchdog.note(thread, "waiting for memory", None);
                feed.take(h, (lane, ring), most)
            };
            match taken {
                Ok(Taken::Nothing) => return,
                Ok(Taken::Job(job)) => {
                    if ring.push(job).is_err() {
                        return;
                    }
                }
                Ok(Taken::Reads(reads)) => {
                    lane.read(h, reads, &mut uring, thread, &mut |job| ring.push(job).is_ok());
                }
                Err(error) => return h.delivery.fail(error),
            }
        }
    }

    fn run_worker(&self, number: usize, thread: usize, scratch: &Mutex<WorkerScratch>) {
        let Self { h, lane, ring, .. } = self;
        loop {
            h.control.park_worker(number, || {
                h.watchdog.note(thread, "parked", None);
                *lock(scratch) = WorkerScratch::default();
            });
            h.watchdog.note(thread, "waiting for bytes", None);
            let began = Instant::now();
            let job = match ring.pop(|| number < h.control.workers()) {
                Popped::Item(job) => job,
                Popped::Parked => continue,
                Popped::Closed => break,
            };
            h.metrics.idle_ns.add_elapsed(began);
            let began = Instant::now();
            lane.run(h, job, scratch, thread);
            h.give_back_if_lacking(scratch);
            h.metrics.work_ns.add_elapsed(began);
        }
        h.watchdog.note(thread, "done", None);
    }
}

fn run_transform(h: &Handles, thread: usize) {
    let (Some(queue), Some(map)) = (&h.delivery.queue, h.delivery.map()) else { return };
    loop {
        h.watchdog.note(thread, "waiting for batches", None);
        let begins = || h.watchdog.note(thread, "transforming a batch", None);
        let Some((index, done)) = queue.run_next(&**map, &h.delivery.calls, begins) else { break };
        h.delivery.deliver(index, done);
    }
    h.watchdog.note(thread, "done", None);
}
