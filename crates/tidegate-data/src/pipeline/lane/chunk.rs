//! The lane of patches that are made of chunks: each chunk is read and decoded once while it is in
//! flight, for all its rows.
//!
//! Flow: a row -> its chunks, which the cache has, which are in flight already, or which are to be
//! read -> a worker decodes one -> its part is copied into every row that waits -> a row that waits
//! for nothing more is complete.
//! Memory: a worker's scratch for the elements of a chunk; the cache keeps what it wants of them
//! (`cache.memory`); a few words for each chunk in flight.
//!
//! No thread blocks on a chunk. A row registers itself as a waiter, so the order of decoding
//! cannot deadlock.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tidegate_core::memory::Staged;
use tidegate_core::sync::lock;
use tidegate_source::uring::Uring;
use tidegate_source::{Chunked, Located, ReadMode, SourceExt};

use super::super::batch_builder::Row;
use super::super::decode_row::given_twice;
use super::super::handles::Handles;
use super::super::plan::largest_read_bytes;
use super::super::scratch::WorkerScratch;
use super::{Begun, Lane};
use crate::batch::ColumnPlan;
use crate::batch::cost::DecodeCost;
use crate::cache::{Cached, Lease, Tier};
use crate::{Error, Result, panic_message};

/// A row, while its chunks come.
#[derive(Debug)]
struct WaitingRow {
    at: Located,
    /// What it waits for: chunks, and that cached ones are copied.
    left: AtomicUsize,
    /// The error of the first column and chunk of those that failed, whichever was decoded first.
    error: Mutex<Option<((usize, u64), Error)>>,
    /// Locked by the thread that writes; taken out when the row is done.
    row: Mutex<Option<Row>>,
}

/// A column of a row that wants a chunk.
#[derive(Debug)]
struct Waiter {
    row: Arc<WaitingRow>,
    column: usize,
}

/// The chunks of a row that the cache has: they need no decoding.
#[derive(Debug)]
pub(in super::super) struct CachedRow {
    row: Arc<WaitingRow>,
    cached: Vec<(usize, u64, Lease)>,
}

/// A chunk that was read.
#[derive(Debug)]
pub(in super::super) struct FetchedChunk {
    chunk: u64,
    staging: Staged,
    /// What is in its staging, or why it could not be read.
    what: Result<ChunkForm>,
}

/// In which form a chunk came.
#[derive(Debug, Clone)]
enum ChunkForm {
    /// As it is stored.
    Stored(Range<usize>),
    /// It is not stored: all its elements are alike.
    Absent,
    /// Decoded, out of memory that the processes of this machine share.
    Decoded(Range<usize>),
}

impl ChunkForm {
    /// Bytes that were read.
    fn len(&self) -> u64 {
        match self {
            Self::Stored(range) | Self::Decoded(range) => range.len() as u64,
            Self::Absent => 0,
        }
    }
}

/// What a worker does next.
#[derive(Debug)]
pub(in super::super) enum ChunkJob {
    /// Copies what the cache has of a row.
    Cached(CachedRow),
    /// Decodes a chunk that was read.
    Fetched(FetchedChunk),
    /// Reads a chunk, then decodes it.
    Unread(u64),
}

/// The lane: who waits for which chunk in flight.
#[derive(Debug, Default)]
pub(in super::super) struct ChunkLane(Mutex<HashMap<u64, Vec<Waiter>>>);

impl Lane for ChunkLane {
    /// A chunk that rows wait for.
    type Read = u64;
    type Job = ChunkJob;

    fn reads_at_once(&self, _: bool) -> usize {
        // Chunks are read one by one: others take the rest.
        1
    }

    fn begin(&self, h: &Handles, rows: Vec<Begun>, reads: &mut VecDeque<u64>) -> Vec<ChunkJob> {
        let mut jobs = Vec::new();
        for (row, at) in rows {
            match row {
                Some(row) => jobs.extend(self.begin_row(h, row, at, reads)),
                None => record_accesses(h, &at),
            }
        }
        jobs
    }

    fn retry(&self, h: &Handles, row: Row, at: Located, reads: &mut VecDeque<u64>) -> Option<ChunkJob> {
        let mut first = VecDeque::new();
        let job = self.begin_row(h, row, at, &mut first);
        first.into_iter().rev().for_each(|chunk| reads.push_front(chunk));
        job
    }

    fn staging_bytes(&self, h: &Handles, _: &u64) -> u64 {
        largest_read_bytes(&*h.spec.source, &h.spec.config.stores)
    }

    /// Workers read what is in the page cache: it takes no time to come.
    fn for_worker(&self, h: &Handles, chunk: u64) -> Result<ChunkJob, u64> {
        match h.spec.mode == ReadMode::Plain && !h.spec.source.is_remote() {
            true => Ok(ChunkJob::Unread(chunk)),
            false => Err(chunk),
        }
    }

    fn read(
        &self,
        h: &Handles,
        reads: Vec<(u64, Staged)>,
        _: &mut Option<Uring>,
        thread: usize,
        push: &mut dyn FnMut(ChunkJob) -> bool,
    ) {
        for (chunk, staging) in reads {
            h.watchdog.note(thread, "reading a chunk", None);
            if !push(ChunkJob::Fetched(fetch(h, chunk, staging))) {
                return;
            }
        }
    }

    fn run(&self, h: &Handles, job: ChunkJob, scratch: &Mutex<WorkerScratch>, thread: usize) {
        h.watchdog.note(thread, "at a chunk", None);
        let run = || match job {
            ChunkJob::Cached(row) => self.copy_cached(h, row),
            ChunkJob::Fetched(fetched) => self.decode(h, fetched, &mut lock(scratch)),
            ChunkJob::Unread(chunk) => {
                // There is as much staging as there are workers, or one waits for another.
                let bytes = largest_read_bytes(&*h.spec.source, &h.spec.config.stores);
                if let Some(staging) = h.reserved.staging.take(bytes, &h.control.stop) {
                    self.decode(h, fetch(h, chunk, staging), &mut lock(scratch));
                }
            }
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            let thread = format!("tg-work-{thread}");
            h.delivery.fail(Error::Panic { thread, what: panic_message(&*panic) });
        }
    }

    fn clear(&self) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        drop(waiting);
    }
}

/// Tells the cache of the chunks of a row that is left out.
fn record_accesses(h: &Handles, at: &Located) {
    let Some(source) = h.spec.source.chunked() else { return };
    for plan in &h.spec.layout.columns {
        source.chunks_of(at.id, plan.field, &mut |chunk| {
            h.cache.stored.record_access(chunk, source.chunk_bytes(chunk));
        });
    }
}

impl ChunkLane {
    /// Begins a row: chunks that have to be read go behind `reads`; what the cache has is a job.
    fn begin_row(&self, h: &Handles, row: Row, at: Located, reads: &mut VecDeque<u64>) -> Option<ChunkJob> {
        let source = h.spec.source.chunked()?;
        let row = Arc::new(WaitingRow {
            at,
            left: AtomicUsize::new(1),
            error: Mutex::default(),
            row: Mutex::new(Some(row)),
        });
        let (stored, metrics) = (&h.cache.stored, &h.metrics);
        let mut cached = Vec::new();
        for (column, plan) in h.spec.layout.columns.iter().enumerate() {
            source.chunks_of(row.at.id, plan.field, &mut |chunk| {
                let bytes = source.chunk_bytes(chunk);
                metrics.wanted_chunks.add(1);
                if stored.record_access(chunk, bytes) {
                    metrics.could_hit_bytes.add(bytes);
                }
                let hit = || {
                    metrics.hits.add(1);
                    metrics.hit_bytes.add(bytes);
                };
                let mut in_flight = lock(&self.0);
                let waiting = in_flight.get_mut(&chunk);
                if waiting.is_none()
                    && let Some(Cached::Plain(lease)) = stored.get_lease(chunk)
                {
                    cached.push((column, chunk, lease));
                    return hit();
                }
                // Before any thread can see that the row waits.
                row.left.fetch_add(1, Ordering::AcqRel);
                let waiter = Waiter { row: Arc::clone(&row), column };
                if let Some(waiting) = waiting {
                    waiting.push(waiter);
                    hit();
                } else {
                    in_flight.insert(chunk, vec![waiter]);
                    reads.push_back(chunk);
                }
            });
        }
        if cached.is_empty() {
            row.settle_one(h);
            return None;
        }
        Some(ChunkJob::Cached(CachedRow { row, cached }))
    }

    /// Copies what the cache has of a row.
    fn copy_cached(&self, h: &Handles, CachedRow { row, cached }: CachedRow) {
        for (column, chunk, lease) in &cached {
            row.copy(h, *column, *chunk, Ok(lease));
        }
        drop(cached);
        row.settle_one(h);
    }

    /// Decodes a chunk if it is not, keeps what is wanted, and copies its parts into all rows that
    /// wait.
    fn decode(&self, h: &Handles, fetched: FetchedChunk, scratch: &mut WorkerScratch) {
        let FetchedChunk { chunk, staging, what } = fetched;
        let Some(source) = h.spec.source.chunked() else { return };
        let stored = match &what {
            Ok(ChunkForm::Decoded(range)) => return self.hand_out(h, chunk, Ok(&staging[range.clone()])),
            Ok(ChunkForm::Stored(range)) => Some(&staging[range.clone()]),
            Ok(ChunkForm::Absent) => None,
            Err(error) => return self.hand_out(h, chunk, Err(error)),
        };
        let bytes = source.chunk_bytes(chunk);
        let needs = DecodeCost::plain(bytes, source.sizes().library_bytes);
        scratch.with(&h.reserved, &h.metrics, &needs, |_, scratch| {
            let elements = &mut scratch[..bytes as usize];
            let outcome = decode_elements(source, chunk, stored, elements);
            h.metrics.decoded_chunks.add(1);
            h.metrics.absent_chunks.add(u64::from(stored.is_none()));
            match outcome {
                Ok(()) => {
                    for shared in h.spec.config.stores.iter().filter(|store| store.in_memory()) {
                        // It may not be wanted there: then each process decodes it for itself.
                        shared.put(chunk, &[elements]);
                    }
                    self.hand_out(h, chunk, Ok(elements));
                }
                Err(error) => self.hand_out(h, chunk, Err(&error)),
            }
        });
    }

    /// Keeps the elements of a chunk if the cache wants them, and copies their parts into all rows
    /// that wait.
    fn hand_out(&self, h: &Handles, chunk: u64, elements: Result<&[u8], &Error>) {
        if let Ok(elements) = elements {
            // Before the waiters are taken: a row that begins later finds it in the cache.
            h.cache.stored.put(chunk, &[elements]);
        }
        let waiters = lock(&self.0).remove(&chunk).unwrap_or_default();
        for Waiter { row, column } in waiters {
            row.copy(h, column, chunk, elements);
            row.settle_one(h);
        }
    }
}

fn decode_elements(
    source: &dyn Chunked,
    chunk: u64,
    stored: Option<&[u8]>,
    elements: &mut [u8],
) -> Result<()> {
    let decode = std::panic::AssertUnwindSafe(|| source.decode_chunk(chunk, stored, elements));
    match std::panic::catch_unwind(decode) {
        Ok(outcome) => Ok(outcome?),
        Err(panic) => Err(Error::decode(format!("{}: {}", source.describe(chunk), panic_message(&*panic)))),
    }
}

/// Reads a chunk: from a tier that has it, or from the source, and then for the disk.
fn fetch(h: &Handles, chunk: u64, mut staging: Staged) -> FetchedChunk {
    let began = Instant::now();
    let what = match h.spec.source.chunked() {
        Some(source) => match from_tier(h, source, chunk, &mut staging) {
            Some(form) => Ok(form),
            None => from_source(h, source, chunk, &mut staging),
        },
        None => Ok(ChunkForm::Absent),
    };
    h.metrics.read_ns.add_elapsed(began);
    FetchedChunk { chunk, staging, what }
}

/// A chunk from the tiers behind the memory: decoded from shared memory, or as it is stored from a
/// disk. One that is not stored is an object without bytes there.
fn from_tier(h: &Handles, source: &dyn Chunked, chunk: u64, staging: &mut [u8]) -> Option<ChunkForm> {
    let metrics = &h.metrics;
    h.spec.config.stores.iter().find_map(|store| {
        let spot = store.find(chunk)?;
        let (form, hits, bytes) = if store.in_memory() {
            let range = store.read(chunk, source.chunk_bytes(chunk), spot, None, staging)?;
            (ChunkForm::Decoded(range), &metrics.hits, &metrics.hit_bytes)
        } else {
            let range = store.read_sized(chunk, source.sizes().stored_bytes, spot, staging)?;
            let form = if range.is_empty() { ChunkForm::Absent } else { ChunkForm::Stored(range) };
            (form, &metrics.disk_hits, &metrics.disk_hit_bytes)
        };
        hits.add(1);
        bytes.add(form.len());
        Some(form)
    })
}

fn from_source(h: &Handles, source: &dyn Chunked, chunk: u64, staging: &mut [u8]) -> Result<ChunkForm> {
    let range = source.read_chunk(chunk, h.spec.mode, staging)?;
    // A file without bytes is damaged, not absent.
    if range.as_ref().is_none_or(|range| !range.is_empty()) {
        let bytes = range.clone().and_then(|range| staging.get(range)).unwrap_or_default();
        for disk in h.spec.config.stores.iter().filter(|store| !store.in_memory()) {
            // It may be full: then the chunk is read again.
            disk.put(chunk, &[bytes]);
        }
    }
    let form = range.map_or(ChunkForm::Absent, ChunkForm::Stored);
    h.metrics.reads.add(1);
    h.metrics.read_bytes.add(form.len());
    Ok(form)
}

impl WaitingRow {
    /// Copies what a chunk has for a column.
    fn copy(&self, h: &Handles, column: usize, chunk: u64, elements: Result<&[u8], &Error>) {
        let (Some(source), Some(plan)) = (h.spec.source.chunked(), h.spec.layout.columns.get(column)) else {
            return;
        };
        let outcome = match elements {
            Ok(elements) => match &*lock(&self.row) {
                Some(row) => with_stored(row, column, plan, |stored| {
                    source.copy(self.at.id, plan.field, chunk, elements, stored);
                }),
                None => Err(given_twice()),
            },
            Err(what) => Err(h.spec.source.sample_error(&self.at, &plan.name, what).into()),
        };
        if let Err(error) = outcome {
            let (at, mut first) = ((column, chunk), lock(&self.error));
            if first.as_ref().is_none_or(|(known, _)| at < *known) {
                *first = Some((at, error));
            }
        }
    }

    /// It waits for one thing less; after the last one the row is settled.
    fn settle_one(&self, h: &Handles) {
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let Some(row) = lock(&self.row).take() else { return };
        let error = lock(&self.error).take().map(|(_, error)| error);
        match error.map_or_else(|| self.finish(h, &row), Err) {
            Ok(()) => {
                h.metrics.samples.add(1);
                h.complete(row, self.at.id);
            }
            Err(error) => h.fail(row, &self.at, error),
        }
    }

    fn finish(&self, h: &Handles, row: &Row) -> Result<()> {
        let Some(source) = h.spec.source.chunked() else { return Ok(()) };
        for (column, plan) in h.spec.layout.columns.iter().enumerate() {
            with_stored(row, column, plan, |stored| source.finish(self.at.id, plan.field, stored))?;
            if let Some(patch) = &plan.patch {
                let mut scratch = row.patch_scratch(column).ok_or_else(given_twice)?;
                let mut piece = row.piece(column).ok_or_else(given_twice)?;
                patch.make(row.draw(), &mut scratch, &mut piece);
            }
        }
        Ok(())
    }
}

/// Writes the patch of a column as it is stored: in its row, or in the scratch next to it.
fn with_stored(row: &Row, column: usize, plan: &ColumnPlan, write: impl FnOnce(&mut [u8])) -> Result<()> {
    match &plan.patch {
        Some(patch) => {
            let mut scratch = row.patch_scratch(column).ok_or_else(given_twice)?;
            write(&mut scratch[..patch.stored_bytes()]);
        }
        None => write(&mut row.piece(column).ok_or_else(given_twice)?),
    }
    Ok(())
}
