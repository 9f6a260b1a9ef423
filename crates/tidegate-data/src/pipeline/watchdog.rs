//! What each thread is doing: read when nothing moves.
//!
//! Flow: each thread notes its stage and sample -> words in [`crate::Error::Stalled`].
//! Memory: a few words a thread.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tidegate_core::sync::lock;
use tidegate_source::{Located, Source};

#[derive(Debug, Clone)]
struct Note {
    stage: &'static str,
    sample: Option<Located>,
    since: Instant,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// One for each thread there can be: notes of others are not kept.
    notes: Box<[Mutex<Option<Note>>]>,
    threads: AtomicUsize,
}

impl Watchdog {
    /// For up to `threads` threads.
    pub(super) fn new(threads: usize) -> Self {
        Self { notes: (0..threads).map(|_| Mutex::default()).collect(), threads: AtomicUsize::new(0) }
    }

    /// The number of one more thread.
    pub(super) fn add(&self) -> usize {
        self.threads.fetch_add(1, Ordering::Relaxed)
    }

    /// Threads that can be added.
    pub(super) fn spare(&self) -> usize {
        self.notes.len().saturating_sub(self.threads.load(Ordering::Relaxed))
    }

    /// Notes what a thread does from now on.
    pub(super) fn note(&self, thread: usize, stage: &'static str, sample: Option<&Located>) {
        if let Some(note) = self.notes.get(thread) {
            *lock(note) = Some(Note { stage, sample: sample.cloned(), since: Instant::now() });
        }
    }

    /// "thread 0: reading sample 5 (a.tar at byte 512) for 12 s; …"; first what the user's sampler
    /// and functions do.
    pub(super) fn describe(&self, source: &dyn Source, asking: bool, calls: usize) -> String {
        let words = self.notes.iter().enumerate().filter_map(|(i, note)| {
            let note = lock(note).clone()?;
            let what = note.sample.map(|at| format!(" {}", source.place(&at))).unwrap_or_default();
            Some(format!("thread {i}: {}{what} for {} s", note.stage, note.since.elapsed().as_secs()))
        });
        let words: Vec<String> = words.collect();
        let asking = asking.then(|| "the sampler was asked for its next id, and has not answered".to_owned());
        let calls = (calls > 0).then(|| format!("{calls} calls of a transform have not returned"));
        asking.into_iter().chain(calls).chain(words).collect::<Vec<_>>().join("; ")
    }
}
