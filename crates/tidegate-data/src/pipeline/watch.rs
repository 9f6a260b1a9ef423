//! Who is doing what: read when nothing moves.
//!
//! Flow: each thread notes its stage and sample -> words in [`crate::Error::Stalled`].
//! Memory: a few words a thread.

use std::sync::Mutex;
use std::time::Instant;
use tidegate_core::sync::lock;

use tidegate_source::{Located, Source};

#[derive(Debug, Clone)]
struct Note {
    stage: &'static str,
    sample: Option<Located>,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Watch {
    notes: Vec<Mutex<Option<Note>>>,
}

impl Watch {
    pub(super) fn new(threads: usize) -> Self {
        Self { notes: (0..threads).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn note(&self, thread: usize, stage: &'static str, sample: Option<&Located>) {
        *lock(&self.notes[thread]) = Some(Note { stage, sample: sample.cloned(), since: Instant::now() });
    }

    /// "thread 0: reading sample 5 (a.tar at byte 512) for 12 s; …"
    pub(super) fn who(&self, source: &dyn Source, asking: bool) -> String {
        let words = self.notes.iter().enumerate().filter_map(|(i, note)| {
            let note = lock(note).clone()?;
            let what = note.sample.map(|at| format!(" {}", source.place(&at))).unwrap_or_default();
            Some(format!("thread {i}: {}{what} for {} s", note.stage, note.since.elapsed().as_secs()))
        });
        let asking = asking.then(|| "the sampler was asked for its next id, and has not answered".to_owned());
        asking.into_iter().chain(words).collect::<Vec<_>>().join("; ")
    }
}
