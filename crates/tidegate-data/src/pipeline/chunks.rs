//! Chunks that rows wait for: each is read and decoded once while it is in flight, whoever wants it.
//!
//! Flow: a row -> its chunks, which are lent by the cache, on their way already, or to be read -> a worker decodes one -> its part is copied
//! into every row that waits -> a row that waits for nothing more is complete.
//! Memory: a worker's scratch for the elements of a chunk; what is kept of them is the cache's (`cache.memory`); a few words for each
//! chunk in flight.
//!
//! Nobody waits with a thread: who needs a chunk leaves word where it is noted, so that the order of decoding cannot lock anybody out.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tidegate_core::sync::lock;

use tidegate_core::memory::Staged;

use super::Shared;
use super::feed::Queued;
use super::filling::Filling;
use super::stats::add;
use super::work::{Own, failed, given_twice};
use crate::batch::ColumnPlan;
use crate::batch::row::Needs;
use crate::cache::{Lease, Lent, Tier};
use crate::{Error, Result, panic_message};
use tidegate_source::{Chunked, Located, SourceExt};

/// A row, while its chunks come.
#[derive(Debug)]
pub(super) struct Row {
    filling: Arc<Filling>,
    row: usize,
    at: Located,
    attempt: u8,
    /// What it waits for: chunks, and that what it is lent is copied.
    left: AtomicUsize,
    /// What went wrong at the first column and chunk of those at which something did, whichever was decoded first.
    error: Mutex<Option<((usize, u64), Error)>>,
    /// Held by who writes.
    writing: Mutex<()>,
}

/// A column of a row that wants a chunk.
#[derive(Debug)]
struct Waiter {
    row: Arc<Row>,
    column: usize,
}

/// The chunks of a row that need no decoding.
#[derive(Debug)]
pub(super) struct LentRow {
    row: Arc<Row>,
    lent: Vec<(usize, u64, Lease)>,
}

/// A chunk that was read.
#[derive(Debug)]
pub(super) struct Fetched {
    chunk: u64,
    room: Staged,
    /// What lies in its room, or why it could not be read.
    what: Result<Form, String>,
}

/// In which form a chunk came.
#[derive(Debug, Clone)]
enum Form {
    /// As it is stored.
    Stored(Range<usize>),
    /// It is not stored: all its elements are alike.
    Absent,
    /// Decoded, out of memory that this machine's processes have in common.
    Decoded(Range<usize>),
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Chunks(Mutex<HashMap<u64, Vec<Waiter>>>);

impl Chunks {
    /// Tells the cache of the chunks of a row that is left out.
    pub(super) fn pass(shared: &Shared, at: &Located) {
        let Some(source) = shared.source.chunked() else { return };
        for plan in &shared.layout.columns {
            source.chunks_of(at.id, plan.field, &mut |chunk| {
                let _nobody_wants_it = shared.samples.stored.meet(chunk, source.chunk_bytes(chunk));
            });
        }
    }

    /// Begins a row: reads of what has to be read go behind `reads`; what is lent is a job for a worker.
    pub(super) fn begin(
        &self,
        shared: &Shared,
        task: (Arc<Filling>, usize, Located, u8),
        reads: &mut VecDeque<Queued>,
    ) -> Option<LentRow> {
        let source = shared.source.chunked()?;
        let (filling, row, at, attempt) = task;
        let row = Arc::new(Row {
            filling,
            row,
            at,
            attempt,
            left: AtomicUsize::new(1),
            error: Mutex::default(),
            writing: Mutex::default(),
        });
        let (stored, stats) = (&shared.samples.stored, &shared.stats);
        let mut lent = Vec::new();
        for (column, plan) in shared.layout.columns.iter().enumerate() {
            source.chunks_of(row.at.id, plan.field, &mut |chunk| {
                let bytes = source.chunk_bytes(chunk);
                stats.wanted_chunks.fetch_add(1, Ordering::Relaxed);
                if stored.meet(chunk, bytes) {
                    stats.could_hit_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                let hit = || {
                    stats.hits.fetch_add(1, Ordering::Relaxed);
                    stats.hit_bytes.fetch_add(bytes, Ordering::Relaxed);
                };
                let mut flying = lock(&self.0);
                let waiting = flying.get_mut(&chunk);
                if waiting.is_none()
                    && let Some(Lent::Plain(lease)) = stored.lend(chunk)
                {
                    lent.push((column, chunk, lease));
                    return hit();
                }
                // Before anybody can see that it waits.
                row.left.fetch_add(1, Ordering::AcqRel);
                let waiter = Waiter { row: Arc::clone(&row), column };
                if let Some(waiting) = waiting {
                    waiting.push(waiter);
                    hit();
                } else {
                    flying.insert(chunk, vec![waiter]);
                    reads.push_back(Queued::Chunk(chunk));
                }
            });
        }
        Some(LentRow { row, lent })
    }

    /// Lets go of all who wait.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        drop(waiting);
    }

    fn take(&self, chunk: u64) -> Vec<Waiter> {
        lock(&self.0).remove(&chunk).unwrap_or_default()
    }

    /// Gives what came of a chunk to all who wait for it.
    fn give(&self, shared: &Shared, chunk: u64, elements: &Result<&[u8], String>) {
        for Waiter { row, column } in self.take(chunk) {
            row.take(shared, column, chunk, elements);
            row.done(shared);
        }
    }
}

/// Reads a chunk: from a tier that has it, or from the source, and then for the disk.
pub(super) fn fetch(shared: &Shared, chunk: u64, mut room: Staged) -> Fetched {
    let began = Instant::now();
    let what = match shared.source.chunked() {
        Some(source) => match kept(shared, source, chunk, &mut room) {
            Some(form) => Ok(form),
            None => read(shared, source, chunk, &mut room).map_err(|e| e.to_string()),
        },
        None => Ok(Form::Absent),
    };
    add(&shared.stats.read_ns, began);
    Fetched { chunk, room, what }
}

/// A chunk from the tiers behind the memory: decoded from memory in common, or as it is stored from a disk. One that is not stored is an
/// object without bytes there.
fn kept(shared: &Shared, source: &dyn Chunked, chunk: u64, room: &mut [u8]) -> Option<Form> {
    let stats = &shared.stats;
    shared.config.stores.iter().find_map(|store| {
        let spot = store.find(chunk)?;
        let (form, hits, bytes) = if store.in_memory() {
            let range = store.read(chunk, source.chunk_bytes(chunk), spot, None, room)?;
            (Form::Decoded(range), &stats.hits, &stats.hit_bytes)
        } else {
            let range = store.read_sized(chunk, source.sizes().stored_bytes, spot, room)?;
            let form = if range.is_empty() { Form::Absent } else { Form::Stored(range) };
            (form, &stats.disk_hits, &stats.disk_hit_bytes)
        };
        hits.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(form.len(), Ordering::Relaxed);
        Some(form)
    })
}

fn read(shared: &Shared, source: &dyn Chunked, chunk: u64, room: &mut [u8]) -> Result<Form> {
    let range = source.read_chunk(chunk, shared.mode, room)?;
    // A file without bytes is damaged, not absent.
    if range.as_ref().is_none_or(|range| !range.is_empty()) {
        let bytes = range.clone().and_then(|range| room.get(range)).unwrap_or_default();
        for disk in shared.config.stores.iter().filter(|store| !store.in_memory()) {
            let _it_may_be_full = disk.put(chunk, &[bytes]);
        }
    }
    let form = range.map_or(Form::Absent, Form::Stored);
    shared.stats.reads.fetch_add(1, Ordering::Relaxed);
    shared.stats.read_bytes.fetch_add(form.len(), Ordering::Relaxed);
    Ok(form)
}

impl Form {
    /// Bytes that were read.
    fn len(&self) -> u64 {
        match self {
            Self::Stored(range) | Self::Decoded(range) => range.len() as u64,
            Self::Absent => 0,
        }
    }
}

impl Row {
    /// Copies what a chunk has for a column.
    fn take(&self, shared: &Shared, column: usize, chunk: u64, elements: &Result<&[u8], String>) {
        let (Some(source), Some(plan)) = (shared.source.chunked(), shared.layout.columns.get(column)) else {
            return;
        };
        let outcome = match elements {
            Ok(elements) => {
                let _alone = lock(&self.writing);
                self.stored(column, plan, |stored| {
                    source.copy(self.at.id, plan.field, chunk, elements, stored)
                })
            }
            Err(what) => Err(shared.source.blame(&self.at, &plan.name, what).into()),
        };
        if let Err(error) = outcome {
            let (at, mut first) = ((column, chunk), lock(&self.error));
            if first.as_ref().is_none_or(|(known, _)| at < *known) {
                *first = Some((at, error));
            }
        }
    }

    /// It waits for one thing less.
    fn done(&self, shared: &Shared) {
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let error = lock(&self.error).take().map(|(_, error)| error);
        if let Some(error) = error.or_else(|| self.finish(shared).err()) {
            return failed(shared, &self.filling, self.row, &self.at, self.attempt, error);
        }
        self.filling.complete(self.row, self.at.id);
        shared.stats.samples.fetch_add(1, Ordering::Relaxed);
    }

    fn finish(&self, shared: &Shared) -> Result<()> {
        let Some(source) = shared.source.chunked() else { return Ok(()) };
        for (column, plan) in shared.layout.columns.iter().enumerate() {
            self.stored(column, plan, |stored| source.finish(self.at.id, plan.field, stored))?;
            if let Some(patch) = &plan.patch {
                let mut room = self.filling.room(column, self.row).ok_or_else(given_twice)?;
                let mut row = self.filling.piece(column, self.row).ok_or_else(given_twice)?;
                patch.make(self.filling.draw(self.row), &mut room, &mut row);
            }
        }
        Ok(())
    }

    /// Where the patch of a column lies as it is stored: in its row, or in the room beside it.
    fn stored(&self, column: usize, plan: &ColumnPlan, write: impl FnOnce(&mut [u8])) -> Result<()> {
        match &plan.patch {
            Some(patch) => {
                let mut room = self.filling.room(column, self.row).ok_or_else(given_twice)?;
                write(&mut room[..patch.stored_bytes()]);
            }
            None => write(&mut self.filling.piece(column, self.row).ok_or_else(given_twice)?),
        }
        Ok(())
    }
}

impl LentRow {
    /// Copies what is lent.
    pub(super) fn run(self, shared: &Shared) {
        for (column, chunk, lease) in &self.lent {
            self.row.take(shared, *column, *chunk, &Ok(lease));
        }
        drop(self.lent);
        self.row.done(shared);
    }

    /// Whether there is nothing to copy.
    pub(super) fn is_empty(&self) -> bool {
        self.lent.is_empty()
    }
}

impl Fetched {
    /// Decodes it if it is not, keeps what is wanted, and gives it to all who wait.
    pub(super) fn run(self, shared: &Shared, own: &mut Own) {
        let Some(source) = shared.source.chunked() else { return };
        if let Ok(Form::Decoded(range)) = &self.what {
            let elements = &self.room[range.clone()];
            return pass_on(shared, self.chunk, &Ok(elements));
        }
        let bytes = source.chunk_bytes(self.chunk);
        let needs = Needs::plain(bytes, source.sizes().library_bytes);
        let decode = |scratch: &mut [u8]| self.decode(shared, source, &mut scratch[..bytes as usize]);
        if own.grow(shared, &needs) {
            decode(own.scratch());
        } else {
            own.forget();
            let began = Instant::now();
            let mut common = lock(&shared.reserved.scratch);
            add(&shared.stats.scratch_wait_ns, began);
            decode(common.as_deref_mut().unwrap_or_default());
        }
    }

    fn decode(&self, shared: &Shared, source: &dyn Chunked, elements: &mut [u8]) {
        let outcome = self.what.clone().and_then(|form| {
            let stored = if let Form::Stored(range) = form { Some(&self.room[range]) } else { None };
            let began = std::panic::AssertUnwindSafe(|| source.decode_chunk(self.chunk, stored, elements));
            match std::panic::catch_unwind(began) {
                Ok(outcome) => outcome.map_err(|e| e.to_string()),
                Err(panic) => Err(format!("{}: {}", source.describe(self.chunk), panic_message(&*panic))),
            }
        });
        shared.stats.chunks.fetch_add(1, Ordering::Relaxed);
        let outcome = outcome.map(|()| &*elements);
        if let Ok(elements) = outcome {
            for common in shared.config.stores.iter().filter(|store| store.in_memory()) {
                let _it_may_not_be_wanted = common.put(self.chunk, &[elements]);
            }
        }
        pass_on(shared, self.chunk, &outcome);
    }
}

/// Keeps the elements of a chunk if they are wanted, and gives them to all who wait.
fn pass_on(shared: &Shared, chunk: u64, elements: &Result<&[u8], String>) {
    if let Ok(elements) = elements {
        // Before word is taken from those who wait: whoever comes then finds it there.
        let _it_may_not_be_wanted = shared.samples.stored.put(chunk, &[elements]);
    }
    shared.chunks.give(shared, chunk, elements);
}
