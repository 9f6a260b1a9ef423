//! Batches in order, from threads that read and threads that decode, within a plan made beforehand.
//!
//! Flow: feed (order -> ids -> entries -> reads, in order) -> readers -> ring -> workers -> slot of the batch -> consumer.
//! Memory: everything is reserved when the epoch starts (see [`plan`]): slots (`batch`), staging (`staging`), one
//! decoder's worth of scratch (`scratch`); more scratch is taken where the budget has it. Steady state allocates no
//! payload memory.
//! Not here: epochs one after another and their state (`tidegate::Loader`).
//!
//! Why nothing can hang: slots and staging are taken in the order of batches, and each task in flight has all it needs
//! except scratch, of which one share is always there. What waits is therefore the consumer's turn; if it keeps every
//! slot, it gets [`Error::Held`].

mod chunks;
mod feed;
mod filling;
mod groups;
mod kept;
mod mapping;
pub mod observing;
pub mod plan;
mod reading;
mod ring;
mod stats;
mod watch;
mod work;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tidegate_core::sync::{StopToken, lock};

use tidegate_core::memory::{Budget, Staged, WeakSlab};

use self::chunks::Chunks;
use self::feed::Feed;
use self::kept::Samples;
pub use self::kept::{Keep, Kept};
use self::mapping::Finished;
use self::observing::{Note, Observer};
use self::plan::{Plan, Reserved};
use self::ring::Ring;
pub use self::stats::{StageStats, Stats};
use self::watch::Watch;
use self::work::{Job, Own};
use crate::batch::{Batch, Layout};
use crate::cache::{Coming, Lease, Records, Rule, Tier};
use crate::{Error, Place, Result};
use tidegate_order::random::Stream;
use tidegate_order::split::{Rows, Split};
use tidegate_order::{Epoch, Foresight, Order};
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::{ChunkSizes, ReadMode, Source};

/// What happens when a sample fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The batch raises the error.
    Raise,
    /// The position stays empty: the batch is shorter.
    Skip,
    /// Another sample takes the position, as a function of (seed, epoch, position, attempt).
    Replace,
}

/// How an epoch is run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The seed of all random draws.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// Batches, ranks, where to begin.
    pub split: Split,
    /// What the epoch did before, if it goes on with other memory.
    pub past: Past,
    /// Tiers behind the cache in memory, the nearest first.
    pub stores: Vec<Arc<Records>>,
    /// Decoding threads.
    pub workers: usize,
    /// Batches beyond the one being consumed and the one being filled.
    pub prefetch: usize,
    /// Threads that call the [`BatchMap`]; 0: the worker that completes a batch does.
    pub map_threads: usize,
    /// What happens when a sample fails.
    pub on_error: OnError,
    /// The share of an epoch's samples that may fail; ten may in any case.
    pub max_failure_rate: f64,
    /// The order of all epochs.
    pub order: Arc<dyn Order>,
    /// Who looks on while samples are made.
    pub observer: Option<Arc<dyn Observer>>,
    /// Fields that a sample lacks stay empty: for who looks on, and nobody else gets the batches.
    pub partial: bool,
    /// Positions that failed before and stay failed (from a resumed state).
    pub failed: Vec<u64>,
    /// After how long without any movement the epoch ends with [`Error::Stalled`].
    pub stall: Duration,
}

/// What an epoch has done so far: [`Pipeline::stop`] says it, and one that goes on from there is given it.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Batches that were delivered.
    delivered: u64,
    failures: Vec<Failure>,
    stats: Arc<Stats>,
}

/// A sample that failed under skip or replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its global position.
    pub position: u64,
    /// Where it lies.
    pub place: Place,
    /// Why.
    pub what: String,
}

/// What this rank is going to ask for in this epoch and the next, where that is listed, and how many ids these are; of volumes the
/// chunks of their patches.
fn coming(
    source: &Arc<dyn Source>,
    layout: &Layout,
    epoch: &Arc<dyn Epoch>,
    config: &Config,
) -> (Coming, u64) {
    let chunked = source.chunked();
    let listed = match config.order.foresight() {
        Foresight::Listed => true,
        Foresight::Once => chunked.is_some(),
        Foresight::None => false,
    };
    let per_sample = chunked.map_or(1, |chunked| {
        let ChunkSizes { patch_bytes, chunk_bytes, .. } = chunked.sizes();
        patch_bytes.div_ceil(chunk_bytes.max(1)).max(1)
    });
    if !listed {
        // One that goes on with other memory is not judged: what came before is not known here.
        let batches = if config.past.delivered == 0 { config.split.batches() } else { 0 };
        let count: u64 = (0..batches).map(|batch| config.split.rows(batch).count).sum();
        return (Box::new(std::iter::empty()), count * per_sample);
    }
    let ids = |epoch: Arc<dyn Epoch>, split: Split, from: u64| {
        let rows = (from..split.batches()).map(move |batch| split.rows(batch));
        let positions = rows.flat_map(Rows::positions);
        positions.map_while(move |position| epoch.id(position % split.len.max(1)).ok())
    };
    let this = ids(Arc::clone(epoch), config.split, config.past.delivered);
    // There may be no next epoch, for all the user's function knows.
    let whole = Split { start: 0, ..config.split };
    let next = config.order.epoch(config.epoch + 1).ok().map(|epoch| ids(epoch, whole, 0));
    let batches = config.split.batches() + whole.batches();
    let (all, count) = (this.chain(next.into_iter().flatten()), batches * config.split.most_rows());
    if chunked.is_none() {
        return (Box::new(all), count);
    }
    let fields: Vec<usize> = layout.columns.iter().map(|column| column.field).collect();
    let source = Arc::clone(source);
    let chunks = all.flat_map(move |id| {
        let mut chunks = Vec::new();
        // A part of a source has numbers of its own.
        let at = source.locate(&[id]).ok().and_then(|mut found| found.pop());
        if let (Some(chunked), Some(at)) = (source.chunked(), at) {
            fields.iter().for_each(|&field| chunked.chunks_of(at.id, field, &mut |chunk| chunks.push(chunk)));
        }
        chunks
    });
    (Box::new(chunks), count * per_sample)
}

/// Where the bytes of a task lie: in staging, or in the cache, or there as the row that is to be made.
#[derive(Debug)]
enum Room {
    Staged(Staged),
    Lent(Lease),
    Made(Lease),
}

impl std::ops::Deref for Room {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Staged(staged) => staged,
            Self::Lent(lease) | Self::Made(lease) => lease,
        }
    }
}

/// Turns a batch into something else, off the consumer's thread: the user's `batch_transform`.
pub trait BatchMap: Send + Sync + std::fmt::Debug {
    /// Called when batches are about to come, the first of them numbered so.
    fn begin(&self, first: u64) {
        let _any_will_do = first;
    }

    /// Called once a batch; `Batch` may be consumed into what is returned.
    ///
    /// # Errors
    /// Whatever the user's function raises, in words.
    fn map(&self, batch: Batch) -> Result<Box<dyn Any + Send>>;

    /// Called when the epoch ends: calls that wait for something should return soon.
    fn stop(&self) {}
}

/// What the consumer gets.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is moved once a batch")]
pub enum Delivered {
    /// A batch.
    Batch(Batch),
    /// What a [`BatchMap`] made of it.
    Mapped(Box<dyn Any + Send>),
}

/// A finished batch, or why there is none.
#[derive(Debug)]
struct Done {
    outcome: Result<Delivered>,
    beside: Beside,
}

/// What comes of a batch besides.
#[derive(Debug, Default)]
struct Beside {
    failures: Vec<Failure>,
    /// What an [`Observer`] noted, in the order of rows.
    notes: Vec<Note>,
}

/// What all threads of an epoch share.
#[derive(Debug)]
struct Shared {
    source: Arc<dyn Source>,
    layout: Arc<Layout>,
    config: Config,
    mode: ReadMode,
    reserved: Reserved,
    samples: Arc<Samples>,
    map: Option<Arc<dyn BatchMap>>,
    epoch: Arc<dyn Epoch>,
    ring: Ring<Job>,
    /// Where samples are made of chunks: who waits for which.
    chunks: Chunks,
    /// Batches for the mapping threads, if there are any.
    finished: Finished,
    retries: Mutex<Vec<feed::Retry>>,
    done: Mutex<BTreeMap<u64, Done>>,
    /// What ended the epoch, if anything did; set under the lock of `done`.
    fatal: Mutex<Option<Error>>,
    ready: Condvar,
    stop: StopToken,
    /// A reader is asking the user's sampler, and may be kept waiting.
    asking: AtomicBool,
    /// Batches begun and not yet done.
    in_flight: AtomicU64,
    /// What the feed waits for: see [`Starved`].
    starved: AtomicU8,
    /// What each worker has for itself.
    own: Vec<Mutex<Own>>,
    stats: Arc<Stats>,
    watch: Watch,
}

/// What the feed waits for, if the consumer may hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Starved {
    Nothing,
    Slot,
    /// The memory of a ragged column.
    Memory,
}

impl Shared {
    /// The checkpoints of the pictures, if the plan has them read.
    fn checkpoints(&self) -> Option<&Checkpoints> {
        self.source.index().filter(|_| self.reserved.plan.record_bytes > 0)?.checkpoints()
    }

    /// The sample that takes the place of another: any of the source, or of a sampler's, up to those of the same batch.
    fn replacement(&self, stream: &mut Stream, position: u64) -> Result<u64> {
        let split = &self.config.split;
        match self.config.order.foresight() {
            Foresight::Once => Ok(stream.below(self.source.len())),
            Foresight::Listed => Ok(self.epoch.id(stream.below(split.len.max(1)))?),
            Foresight::None => {
                let batch = position.saturating_sub(split.start) / split.global_batch;
                let asked = split.start + (batch + 1) * split.global_batch;
                Ok(self.epoch.id(stream.below(asked.min(split.len).max(1)))?)
            }
        }
    }

    /// Whether workers read what they decode.
    fn workers_read(&self) -> bool {
        self.source.chunked().is_some() && self.mode == ReadMode::Plain && !self.source.is_remote()
    }

    fn stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    fn deliver(&self, batch: u64, done: Done) {
        lock(&self.done).insert(batch, done);
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.ready.notify_all();
    }

    /// Notes what the feed waits for.
    fn starve(&self, of: Starved) {
        self.starved.store(of as u8, Ordering::SeqCst);
    }

    fn lacks_memory(&self) -> bool {
        self.starved.load(Ordering::SeqCst) == Starved::Memory as u8
    }

    /// Gives back what idle workers have for themselves: a batch needs it more. Busy ones see that it does.
    fn give_back(&self) {
        for own in &self.own {
            if let Ok(mut own) = own.try_lock() {
                *own = Own::default();
            }
        }
    }

    /// A batch that is left because the epoch was stopped.
    fn abandon(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.ready.notify_all();
    }

    /// Ends the epoch with an error, which the consumer gets after the batches that are done.
    fn fail(&self, error: Error) {
        let done = lock(&self.done);
        lock(&self.fatal).get_or_insert(error);
        drop(done);
        self.stop.stop();
        self.ready.notify_all();
    }
}

/// One epoch of batches; dropping it stops and joins its threads and gives everything back.
#[derive(Debug)]
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    next: u64,
    batches: u64,
    failures: Vec<Failure>,
    /// The process that has the threads: after a fork they exist in the parent only.
    process: u32,
}

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
        map: Option<Arc<dyn BatchMap>>,
        kept: &Kept,
    ) -> Result<Self> {
        let plan = Plan::new(&*source, &layout, &config, budget, &kept.slots)?;
        let (readers, mode) = (plan.readers, plan.mode);
        let alone = plan.kept_samples_bytes;
        let common = config.stores.iter().find(|store| store.in_memory());
        // What all have in common is a fixed set, and what each has alone follows Belady's rule where objects come again: few
        // processes hit more with this, many with that, and halves of both are never far from the better one.
        let alone_bytes = match common {
            Some(_) if source.chunked().is_some() => alone / 2,
            Some(_) => 0,
            None => alone,
        };
        kept.set_limit(alone_bytes);
        let left = alone - if common.is_some() { alone_bytes } else { 0 };
        let in_memory = budget.shared_by().map_or(left, |node| node.left_bytes(left));
        for store in &config.stores {
            // Those on disk look for room again; what several processes keep goes when somebody lacks it, not before.
            store.set_limit(if store.in_memory() {
                in_memory.max(store.held_bytes())
            } else {
                store.limit_bytes()
            });
        }
        let (coming, count) = coming(&source, &layout, &epoch, &config);
        let samples = Arc::clone(&kept.samples);
        samples.stored.look_ahead(coming, count);
        let could_hit_bytes = match common.map_or(samples.held_bytes(), |store| store.held_bytes()) {
            0 => 0,
            // Told access by access.
            _ if alone_bytes > 0 && samples.stored.rule() != Rule::Fixed => 0,
            _ => {
                let gain = samples.stored.codec().map_or(1.0, |(_, gain)| gain);
                ((in_memory as f64 * gain) as u64).min(samples.total_bytes())
            }
        };
        let reserved = plan.reserve(&layout, budget, &kept.slots)?;
        let (workers, map_threads) = (config.workers, config.map_threads);
        let batches = config.split.batches();
        let Past { delivered: next, failures, stats } = config.past.clone();
        if next == 0 {
            stats.could_hit_bytes.store(could_hit_bytes, Ordering::Relaxed);
        }
        let shared = Arc::new(Shared {
            mode,
            reserved,
            samples,
            map,
            epoch: Arc::clone(&epoch),
            ring: Ring::new(1024),
            chunks: Chunks::default(),
            finished: Finished::new(next),
            retries: Mutex::default(),
            done: Mutex::default(),
            fatal: Mutex::default(),
            ready: Condvar::new(),
            stop: StopToken::new(),
            asking: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            starved: AtomicU8::new(Starved::Nothing as u8),
            own: (0..workers).map(|_| Mutex::default()).collect(),
            stats,
            watch: Watch::new(readers + workers + map_threads),
            source,
            layout,
            config,
        });
        let feed = Arc::new(Mutex::new(Feed::new(epoch, next)));
        if let Some(map) = &shared.map {
            map.begin(next);
        }
        let process = std::process::id();
        let mut pipeline = Self { shared, threads: Vec::new(), next, batches, failures, process };
        for i in 0..readers {
            let (shared, feed) = (Arc::clone(&pipeline.shared), Arc::clone(&feed));
            pipeline.spawn(format!("tg-read-{i}"), move || feed::run(&shared, &feed, i))?;
        }
        for i in 0..workers {
            let shared = Arc::clone(&pipeline.shared);
            pipeline.spawn(format!("tg-work-{i}"), move || work::run(&shared, i, readers + i))?;
        }
        for i in 0..map_threads {
            let Some(map) = pipeline.shared.map.clone() else { break };
            let shared = Arc::clone(&pipeline.shared);
            let thread = readers + workers + i;
            pipeline.spawn(format!("tg-map-{i}"), move || mapping::run(&shared, &*map, thread))?;
        }
        Ok(pipeline)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.clone()).stack_size(plan::STACK_BYTES as usize);
        self.threads.push(thread.spawn(body).map_err(Error::io(name))?);
        Ok(())
    }

    /// The next batch, or nothing at the end of the epoch. `interrupted` is asked every 50 ms while waiting; its error
    /// ends the wait (a signal, in Python).
    ///
    /// # Errors
    /// The first failed sample of the batch (under raise), [`Error::Held`], [`Error::Stalled`],
    /// [`Error::TooManyFailed`], or the interruption.
    pub fn next(&mut self, interrupted: &dyn Fn() -> Result<()>) -> Result<Option<Delivered>> {
        if self.next >= self.batches {
            return Ok(None);
        }
        let began = Instant::now();
        let mut starved_for = 0;
        let mut moved = (self.shared.stats.movement(), Instant::now());
        let mut done = lock(&self.shared.done);
        let found = loop {
            if let Some(found) = done.remove(&self.next) {
                break found;
            }
            if let Some(error) = lock(&self.shared.fatal).take() {
                return Err(error);
            }
            let shared = &*self.shared;
            let waited = shared
                .ready
                .wait_timeout(done, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner);
            done = waited.0;
            if waited.1.timed_out() {
                // Nothing is on its way and nothing can begin, twice in a row: a slot that comes back takes less long.
                let starved = shared.starved.load(Ordering::Acquire);
                let stuck = starved != Starved::Nothing as u8
                    && shared.in_flight.load(Ordering::Acquire) == 0
                    && done.is_empty();
                starved_for = if stuck { starved_for + 1 } else { 0 };
                if starved_for >= 2 {
                    return Err(shared.reserved.held_error(starved == Starved::Slot as u8));
                }
                drop(done);
                interrupted()?;
                let now = shared.stats.movement();
                if now != moved.0 {
                    moved = (now, Instant::now());
                } else if moved.1.elapsed() > shared.config.stall {
                    let who = shared.watch.who(&*shared.source, shared.asking.load(Ordering::Acquire));
                    return Err(Error::Stalled { seconds: moved.1.elapsed().as_secs(), who });
                }
                done = lock(&shared.done);
            }
        };
        drop(done);
        self.next += 1;
        let stats = &self.shared.stats;
        stats.delivered.store(self.next, Ordering::Release);
        stats.consumer_wait_ns.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.failures.extend(found.beside.failures);
        self.check_rate()?;
        if let (Some(observer), Ok(_)) = (&self.shared.config.observer, &found.outcome) {
            observer.take(found.beside.notes)?;
        }
        found.outcome.map(Some)
    }

    fn check_rate(&self) -> Result<()> {
        let config = &self.shared.config;
        let allowed =
            (config.max_failure_rate * config.split.len as f64 / config.split.world as f64).max(10.0);
        if (self.failures.len() + config.failed.len()) as f64 <= allowed {
            return Ok(());
        }
        // A position counts once, however many samples failed in its place.
        let mut positions: Vec<u64> =
            self.failures.iter().map(|f| f.position).chain(config.failed.clone()).collect();
        positions.sort_unstable();
        positions.dedup();
        let failed = positions.len() as u64;
        let Some(last) = self.failures.last().filter(|_| failed as f64 > allowed) else { return Ok(()) };
        let seen = self.next * config.split.most_rows();
        let last = format!("{}: {}", last.place, last.what);
        Err(Error::TooManyFailed { failed, seen, rate: config.max_failure_rate, last })
    }

    /// Samples that failed so far under skip or replace, in order of delivery.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Ends it in the middle: its threads stop and its memory goes back, unless the user's sampler does not answer for long.
    #[must_use]
    pub fn stop(mut self) -> Past {
        self.shared.stop.stop();
        let began = Instant::now();
        while self.shared.asking.load(Ordering::SeqCst) && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let failures = std::mem::take(&mut self.failures);
        Past { delivered: self.next, failures, stats: Arc::clone(&self.shared.stats) }
    }

    /// Batches delivered so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.next
    }

    /// The slots, for the next epoch to use again while the consumer holds some.
    #[must_use]
    pub fn slots(&self) -> WeakSlab {
        self.shared.reserved.slots.downgrade()
    }

    /// What each stage did so far.
    #[must_use]
    pub fn stats(&self) -> StageStats {
        self.shared.stats.stages(&self.shared)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Nobody here could join the threads, or release a lock that one of them held at the fork.
            return self.threads.clear();
        }
        self.shared.stop.stop();
        self.shared.ring.close();
        self.shared.finished.close();
        if let Some(map) = &self.shared.map {
            map.stop();
        }
        // Whoever asks the user's sampler ends when it answers; others wait for him.
        let asking = self.shared.asking.load(Ordering::SeqCst);
        let waiting = if asking { self.shared.reserved.plan.readers } else { 0 };
        for thread in self.threads.drain(..).skip(waiting) {
            // A panic was caught and delivered where it happened; there is nothing left to tell.
            let _finished = thread.join();
        }
        self.shared.config.stores.iter().for_each(|store| store.rest());
        // Tasks refer to what is shared, and what is shared to tasks: let go of both.
        self.shared.chunks.clear();
        lock(&self.shared.retries).clear();
        lock(&self.shared.done).clear();
    }
}
