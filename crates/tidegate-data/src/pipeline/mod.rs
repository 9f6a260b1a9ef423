//! Batches in order, from threads that read and threads that decode, within a plan made
//! beforehand.
//!
//! Flow: feed (order -> ids -> entries -> a lane's reads, in order) -> readers -> ring -> workers
//! -> rows of a batch -> delivery -> consumer.
//! Memory: everything is reserved when the epoch starts (see [`plan`]): slots (`batch`), staging
//! (`staging`), one decoder's worth of scratch (`scratch`); more scratch is taken where the budget
//! has it. Steady state allocates no payload memory.
//! Not here: epochs one after another and their state (`tidegate::Loader`).
//!
//! Why nothing can hang: slots and staging are taken in the order of batches, and each job in
//! flight has all it needs except scratch, of which one share is always there. What is left to
//! wait for is the consumer; if it keeps every slot, it gets [`Error::Held`].

mod batch_builder;
mod cache_policy;
mod config;
mod control;
mod decode_row;
mod delivery;
mod feed;
mod future;
mod handles;
mod lane;
mod metrics;
pub mod observer;
pub mod plan;
mod reading;
mod scratch;
mod spec;
mod stages;
mod transform;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_core::memory::{Account, Budget, Grant, Priority, WeakSlab};
use tidegate_core::sync::lock;
use tidegate_decode::Decoders;
use tidegate_order::Epoch;
use tidegate_source::Source;

pub use self::cache_policy::{Keep, Retained};
pub use self::config::{Config, Failure, OnError, Past};
use self::control::{Control, Lacking};
pub use self::delivery::Delivered;
use self::delivery::{Delivery, Done, Waited};
use self::handles::{Handles, Retries};
use self::lane::chunk::ChunkLane;
use self::lane::group::GroupLane;
use self::lane::sample::SampleLane;
pub use self::metrics::{Metrics, StageStats};
use self::plan::{Facts, Held, Plan, STACK_USED_BYTES};
use self::scratch::Scratches;
use self::spec::EpochSpec;
use self::stages::{LaneStages, Stages};
pub use self::transform::BatchTransform;
use self::watchdog::Watchdog;
use crate::batch::Layout;
use crate::{Error, Result};

/// How often a consumer that waits looks for interruptions and stalls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a stopped epoch waits for an answer of the user's sampler.
const SAMPLER_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads that knobs may add to those of the plan.
const SPARE_THREADS: usize = 64;

/// What can be changed while an epoch runs, without a change of its order or its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knobs {
    /// Threads that decode; at least 1.
    pub workers: usize,
    /// Threads that read; at least 1.
    pub readers: usize,
    /// Reads that one reader may have in flight; at least 1.
    pub read_depth: usize,
    /// Slots for batches, which bound how far the stages run ahead of the consumer; at least 2.
    pub slots: usize,
}

/// One epoch of batches; dropping it stops and joins its threads and gives everything back.
#[derive(Debug)]
pub struct Pipeline {
    handles: Handles,
    stages: Box<dyn Stages>,
    readers: Vec<JoinHandle<()>>,
    /// Workers and transform threads.
    others: Vec<JoinHandle<()>>,
    workers: usize,
    /// Memory of threads and slots beyond the plan.
    added: Vec<Grant>,
    next: u64,
    batches: u64,
    failures: Vec<Failure>,
    /// The process that has the threads: after a fork they exist in the parent only.
    process: u32,
}

/// How long the user's function has to return by itself when an epoch ends, and then once more.
const TRANSFORM_PATIENCE: Duration = Duration::from_millis(250);

/// The share of samples that may fail, and how many may in any case, unless the user says.
const FAILURES_BY_DEFAULT: (f64, f64) = (0.01, 10.0);

impl Pipeline {
    /// Reserves the epoch's memory and starts its threads.
    ///
    /// # Errors
    /// When the budget cannot hold the least plan, with the figures and the fix.
    pub fn start(
        source: Arc<dyn Source>,
        layout: Arc<Layout>,
        epoch: Arc<dyn Epoch>,
        config: Config,
        budget: &Budget,
        map: Option<Arc<dyn BatchTransform>>,
        retained: &Retained,
    ) -> Result<Self> {
        let facts = Facts::gather(&*source, &layout, &config);
        // Another epoch that begins now would plan with the same bytes.
        let _planning = budget.planning();
        let held = |plan: &Plan| Held::by_others(plan, budget, &retained.slots);
        let plan = Plan::new(&facts, budget.cap_bytes(), held).map_err(|small| small.explain(&*source))?;
        let could_hit_bytes = retained.divide(&*source, &config, budget, plan.kept_samples_bytes, || {
            future::accesses(&source, &layout, &epoch, &config)
        });
        let reserved = plan.reserve(budget, &retained.slots)?;
        let Past { delivered: next, failures, metrics } = config.past.clone();
        if next == 0 {
            metrics.could_hit_bytes.set(could_hit_bytes);
        }
        let (readers, workers, map_threads) = (reserved.plan.readers, config.workers, config.map_threads);
        let reads_checkpoints = reserved.plan.record_bytes > 0;
        let mode = reserved.plan.mode;
        let control = Arc::new(Control::new(workers, readers));
        let delivery = Delivery::new(&control, map, map_threads, next);
        let batches = config.split.batches();
        let handles = Handles {
            spec: Arc::new(EpochSpec { source, layout, epoch, config, mode, reads_checkpoints }),
            reserved: Arc::new(reserved),
            control,
            delivery: Arc::new(delivery),
            metrics,
            cache: retained.cache(),
            watchdog: Arc::new(Watchdog::new(readers + workers + map_threads + SPARE_THREADS)),
            scratches: Arc::new(Scratches::default()),
            retries: Arc::new(Retries::default()),
        };
        let mut pipeline = Self {
            stages: stages(&handles, next),
            handles,
            readers: Vec::new(),
            others: Vec::new(),
            workers: 0,
            added: Vec::new(),
            next,
            batches,
            failures,
            process: std::process::id(),
        };
        pipeline.spawn(readers, workers, map_threads)?;
        tidegate_core::event!(
            INFO,
            "an epoch started",
            epoch = pipeline.handles.spec.config.epoch,
            first_batch = next,
            workers = workers as u64,
            readers = readers as u64
        );
        Ok(pipeline)
    }

    fn spawn(&mut self, readers: usize, workers: usize, map_threads: usize) -> Result<()> {
        if let Some(map) = self.handles.delivery.map() {
            map.begin(self.handles.spec.config.split.number(self.next));
        }
        for number in 0..readers {
            self.readers.push(self.stages.spawn_reader(number)?);
        }
        for number in 0..workers {
            self.others.push(self.stages.spawn_worker(number)?);
            self.workers += 1;
        }
        for number in 0..map_threads {
            self.others.extend(self.stages.spawn_transform(number)?);
        }
        Ok(())
    }

    /// The next batch, or nothing at the end of the epoch. `interrupted` is asked every 50 ms
    /// while waiting; its error ends the wait (a signal, in Python).
    ///
    /// # Errors
    /// The first failed sample of the batch (under raise), [`Error::Held`], [`Error::Stalled`],
    /// [`Error::TooManyFailed`], or the interruption.
    pub fn next(&mut self, interrupted: &dyn Fn() -> Result<()>) -> Result<Option<Delivered>> {
        if self.next >= self.batches {
            return Ok(None);
        }
        let began = Instant::now();
        let Done { outcome, extras } = self.wait(interrupted)?;
        self.next += 1;
        let h = &self.handles;
        h.metrics.batches.set(self.next);
        h.metrics.consumer_wait_ns.add_elapsed(began);
        self.failures.extend(extras.failures);
        self.check_rate()?;
        if let (Some(observer), Ok(_)) = (&self.handles.spec.config.observer, &outcome) {
            observer.take(extras.notes)?;
        }
        outcome.map(Some)
    }

    /// Waits for what comes of the next batch.
    fn wait(&self, interrupted: &dyn Fn() -> Result<()>) -> Result<Done> {
        let h = &self.handles;
        let (mut stuck_for, mut gave_back) = (0, false);
        let mut moved = (h.metrics.movement(), Instant::now());
        loop {
            let idle = match h.delivery.wait(POLL_INTERVAL)? {
                Waited::Done(done) => return Ok(done),
                Waited::TimedOut { idle } => idle,
            };
            // Nothing is in flight and nothing can begin, twice in a row: a slot that comes back
            // takes less long.
            let stuck = idle && !h.control.lacks(Lacking::Nothing);
            stuck_for = if stuck { stuck_for + 1 } else { 0 };
            if stuck_for >= 2 && !gave_back {
                // What workers keep for the next image is no reason to give up.
                h.scratches.give_back();
                (stuck_for, gave_back) = (0, true);
            } else if stuck_for >= 2 {
                return Err(h.reserved.held_error(h.control.lacks(Lacking::Slot)));
            }
            interrupted()?;
            let now = h.metrics.movement();
            if now != moved.0 {
                moved = (now, Instant::now());
            } else if moved.1.elapsed() > h.spec.config.stall {
                let asking = h.control.asking.load(Ordering::Acquire);
                let who = h.watchdog.describe(&*h.spec.source, asking, h.delivery.calls.len());
                return Err(Error::Stalled { seconds: moved.1.elapsed().as_secs(), who });
            }
        }
    }

    fn check_rate(&self) -> Result<()> {
        let config = &self.handles.spec.config;
        let (rate, least) = config.max_failure_rate.map_or(FAILURES_BY_DEFAULT, |rate| (rate, 0.0));
        let allowed = (rate * config.split.len as f64 / config.split.world as f64).max(least);
        let failed = self.failures.len() + config.failed.len();
        // However few there are: not one sample would come.
        let all = config.max_failure_rate.is_none()
            && config.on_error == OnError::Skip
            && failed as u64 >= config.split.len.div_ceil(config.split.world);
        if failed as f64 <= allowed && !all {
            return Ok(());
        }
        // A position counts once, however many samples failed in its place.
        let mut positions: Vec<u64> =
            self.failures.iter().map(|f| f.position).chain(config.failed.clone()).collect();
        positions.sort_unstable();
        positions.dedup();
        let failed = positions.len() as u64;
        let Some(last) = self.failures.last().filter(|_| failed as f64 > allowed || all) else {
            return Ok(());
        };
        let seen = self.next * config.split.max_rows();
        let last = format!("{}: {}", last.place, last.what);
        Err(Error::TooManyFailed { failed, seen, rate, last })
    }

    /// The knobs as they are.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        let h = &self.handles;
        Knobs {
            workers: h.control.workers(),
            readers: h.control.readers(),
            read_depth: h.control.read_depth(),
            slots: h.reserved.slots.count(),
        }
    }

    /// Turns the knobs in the middle of an epoch: order and contents stay, and what is in flight
    /// goes on. Threads beyond the new numbers park; more threads and slots are taken from the
    /// budget.
    ///
    /// # Errors
    /// A knob below its least value, more threads than [`Pipeline::start`] made and 64 beyond, or
    /// a budget without room: then no knob was turned.
    pub fn set_knobs(&mut self, knobs: Knobs) -> Result<()> {
        let h = &self.handles;
        if knobs.workers == 0 || knobs.readers == 0 || knobs.read_depth == 0 || knobs.slots < 2 {
            return Err(Error::Config(format!(
                "knobs of at least 1 worker, 1 reader, 1 read in flight and 2 slots are needed, not {knobs:?}"
            )));
        }
        let more_workers = knobs.workers.saturating_sub(self.workers);
        let more_readers = knobs.readers.saturating_sub(self.readers.len());
        if more_workers + more_readers > h.watchdog.spare() {
            return Err(Error::Config(format!("{knobs:?} asks for more threads than an epoch can add")));
        }
        let budget = &h.reserved.budget;
        let stacks = (more_workers + more_readers) as u64 * STACK_USED_BYTES;
        let grants = [
            budget.try_acquire(Account::Telemetry, stacks, Priority::NextBatch)?,
            budget.try_acquire(
                Account::Library,
                more_workers as u64 * Decoders::KEPT_BYTES,
                Priority::NextBatch,
            )?,
        ];
        let before = h.reserved.slots.count() as u64;
        let resized =
            h.reserved.slots.resize(budget, Account::Batch, knobs.slots as u64, Priority::NextBatch);
        if let Err(error) = resized {
            h.reserved.slots.shrink(before);
            return Err(error.into());
        }
        self.added.extend(grants);
        h.control.set_read_depth(knobs.read_depth);
        h.control.set_running(knobs.workers, knobs.readers);
        self.stages.wake();
        for _ in 0..more_workers {
            self.others.push(self.stages.spawn_worker(self.workers)?);
            self.workers += 1;
        }
        for _ in 0..more_readers {
            self.readers.push(self.stages.spawn_reader(self.readers.len())?);
        }
        tidegate_core::event!(
            INFO,
            "knobs were turned",
            workers = knobs.workers as u64,
            readers = knobs.readers as u64,
            read_depth = knobs.read_depth as u64,
            slots = knobs.slots as u64
        );
        Ok(())
    }

    /// Samples that failed so far under skip or replace, in order of delivery.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Ends it in the middle: its threads stop and its memory goes back, unless the user's sampler
    /// does not answer for long.
    #[must_use]
    pub fn stop(mut self) -> Past {
        let control = &self.handles.control;
        control.stop.stop();
        let began = Instant::now();
        while control.asking.load(Ordering::SeqCst) && began.elapsed() < SAMPLER_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
        let failures = std::mem::take(&mut self.failures);
        Past { delivered: self.next, failures, metrics: Arc::clone(&self.handles.metrics) }
    }

    /// Batches delivered so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.next
    }

    /// The slots, for the next epoch to use again while the consumer holds some.
    #[must_use]
    pub fn slots(&self) -> WeakSlab {
        self.handles.reserved.slots.downgrade()
    }

    /// What each stage did so far.
    #[must_use]
    pub fn stats(&self) -> StageStats {
        reading::read(&self.handles, self.stages.queued())
    }
}

/// The stages of the lane that a source needs: this is the only place where lanes are told apart.
fn stages(h: &Handles, next: u64) -> Box<dyn Stages> {
    let source = &h.spec.source;
    if source.chunked().is_some() {
        Box::new(LaneStages::new(h.clone(), ChunkLane::default(), next))
    } else if source.grouped().is_some() {
        let blocks = std::mem::take(&mut *lock(&h.reserved.groups));
        Box::new(LaneStages::new(h.clone(), GroupLane::new(&h.spec.layout, blocks), next))
    } else {
        Box::new(LaneStages::new(h.clone(), SampleLane, next))
    }
}

impl Pipeline {
    /// Joins threads, except those in a function of the user that does not return: neither an
    /// error, nor an interrupt, nor the end of the program waits for it.
    fn join(&self, threads: Vec<JoinHandle<()>>) {
        let delivery = &self.handles.delivery;
        delivery.calls.wait_for(&threads, TRANSFORM_PATIENCE);
        if delivery.calls.len() > 0 {
            delivery.map().iter().for_each(|map| map.interrupt());
            delivery.calls.wait_for(&threads, TRANSFORM_PATIENCE);
        }
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            // A panic was caught and delivered where it happened; there is nothing left to tell.
            thread.join().ok();
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // This process could neither join the threads, nor release a lock that one of them
            // held at the fork.
            self.readers.clear();
            return self.others.clear();
        }
        let h = &self.handles;
        h.control.stop.stop();
        self.stages.close();
        h.delivery.close();
        // A reader that asks the user's sampler ends when it answers; the other readers wait for
        // it.
        if h.control.asking.load(Ordering::SeqCst) {
            self.readers.clear();
        }
        let threads = self.readers.drain(..).chain(self.others.drain(..)).collect();
        self.join(threads);
        let h = &self.handles;
        h.spec.config.stores.iter().for_each(|store| store.release_writer());
        self.stages.clear();
        h.delivery.clear();
    }
}
