//! How the threads of an epoch are steered: stopping, what the feed lacks, replacements to be
//! read, how many workers run.
//!
//! Flow: the consumer and the stages set flags and wait for them; no payload passes here.
//! Memory: holds none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use tidegate_core::sync::{Gate, StopToken};

/// What the feed waits for, if the consumer may hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Lacking {
    Nothing,
    /// A slot for a batch.
    Slot,
    /// The memory of a ragged column.
    Memory,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) stop: StopToken,
    /// A reader is asking the user's sampler, and may be kept waiting.
    pub(super) asking: AtomicBool,
    /// A [`Lacking`].
    lacking: AtomicU8,
    /// Workers with a lower number run; the others are parked.
    workers: AtomicUsize,
    /// Readers with a lower number run; the others are parked.
    readers: AtomicUsize,
    /// Reads that one reader may have in flight.
    read_depth: AtomicUsize,
    /// Where parked threads wait.
    parked: Arc<Gate<()>>,
}

impl Control {
    pub(super) fn new(workers: usize, readers: usize) -> Self {
        Self {
            stop: StopToken::new(),
            asking: AtomicBool::new(false),
            lacking: AtomicU8::new(Lacking::Nothing as u8),
            workers: AtomicUsize::new(workers),
            readers: AtomicUsize::new(readers),
            read_depth: AtomicUsize::new(usize::MAX),
            parked: Arc::default(),
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// Notes what the feed waits for.
    pub(super) fn set_lacking(&self, what: Lacking) {
        self.lacking.store(what as u8, Ordering::SeqCst);
    }

    pub(super) fn lacks(&self, what: Lacking) -> bool {
        self.lacking.load(Ordering::SeqCst) == what as u8
    }

    /// How many workers run.
    pub(super) fn workers(&self) -> usize {
        self.workers.load(Ordering::Acquire)
    }

    /// How many readers run.
    pub(super) fn readers(&self) -> usize {
        self.readers.load(Ordering::Acquire)
    }

    /// Reads that one reader may have in flight.
    pub(super) fn read_depth(&self) -> usize {
        self.read_depth.load(Ordering::Acquire)
    }

    /// Sets how many reads one reader may have in flight.
    pub(super) fn set_read_depth(&self, depth: usize) {
        self.read_depth.store(depth, Ordering::Release);
    }

    /// Sets how many threads of each stage run; parked ones below the new numbers go on.
    pub(super) fn set_running(&self, workers: usize, readers: usize) {
        self.workers.store(workers, Ordering::Release);
        self.readers.store(readers, Ordering::Release);
        // Under the lock, so that a thread that is about to park sees the change or is woken.
        drop(self.parked.lock());
        self.parked.notify_all();
    }

    /// Parks worker `number` while it is not to run. `idle` is called once before it waits.
    pub(super) fn park_worker(&self, number: usize, idle: impl FnOnce()) {
        self.park(|| number >= self.workers(), idle);
    }

    /// Parks reader `number` while it is not to run.
    pub(super) fn park_reader(&self, number: usize, idle: impl FnOnce()) {
        self.park(|| number >= self.readers(), idle);
    }

    fn park(&self, parked: impl Fn() -> bool, idle: impl FnOnce()) {
        if !parked() {
            return;
        }
        idle();
        self.parked.wait_until(&self.stop, |()| (!parked()).then_some(()));
    }
}
