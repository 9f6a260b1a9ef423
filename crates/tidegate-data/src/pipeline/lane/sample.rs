//! The lane of samples that are read and decoded one by one, neighbours in one read.
//!
//! Flow: rows -> what the cache has, and reads of the rest -> a tier, the kernel (io_uring or
//! pread) or a store -> kept where it is wanted -> a job for each row -> `decode_row`.
//! Memory: the staging that the feed took for each read, until the last row of it is decoded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tidegate_core::memory::{PAGE_BYTES, Staged};
use tidegate_core::sync::lock;
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::read::{Extent, staging_bytes};
use tidegate_source::uring::{DEPTH, Uring, Wanted};
use tidegate_source::{Access, Located, SourceExt};

use super::super::batch_builder::Row;
use super::super::decode_row;
use super::super::handles::Handles;
use super::super::scratch::WorkerScratch;
use super::{Begun, Lane};
use crate::cache::{Cached, Lease, MemoryTier, Packed, RecordLocation, SegmentTier, Tier};
use crate::{Error, Result, panic_message};

/// Neighbours are read together up to this many bytes, and over a network up to more.
const READ_BYTES: u64 = 512 << 10;
const REMOTE_READ_BYTES: u64 = 4 << 20;
/// Bytes between neighbours that are read along.
const GAP_BYTES: u64 = 4 << 10;
const REMOTE_GAP_BYTES: u64 = 256 << 10;

/// The lane: it keeps nothing of its own.
#[derive(Debug)]
pub(in super::super) struct SampleLane;

/// One read: consecutive bytes of one shard, for one or more rows, or the one object of a tier;
/// and the checkpoints of each row.
#[derive(Debug)]
pub(in super::super) struct SampleRead {
    rows: Vec<(Row, Located)>,
    len: u64,
    kept: Option<Kept>,
}

/// Where a sample is kept that is not returned as it is.
#[derive(Debug)]
enum Kept {
    /// In which of the stores, and where there.
    Stored(usize, RecordLocation),
    /// In memory, packed.
    Packed(Packed),
}

/// The bytes of a sample: in staging, or in the cache, or the row that was decoded from them.
#[derive(Debug)]
enum SampleBytes {
    Staged(Staged),
    Cached(Lease),
    Decoded(Lease),
}

/// A sample that is to be decoded.
#[derive(Debug)]
pub(in super::super) struct SampleJob {
    row: Row,
    at: Located,
    bytes: Arc<SampleBytes>,
    /// Where in `bytes` the sample is, or why it could not be read.
    range: Result<Range<usize>, Arc<Error>>,
    /// Where in `bytes` the record of its checkpoints is, if there is one.
    record: Option<Range<usize>>,
}

/// Reads a sample from its source, where no tier has it.
pub(super) type SourceRead<'a> = &'a dyn Fn(&Located, u64, &mut [u8]) -> Result<Range<usize>>;

impl std::ops::Deref for SampleBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Staged(staged) => staged,
            Self::Cached(lease) | Self::Decoded(lease) => lease,
        }
    }
}

impl Lane for SampleLane {
    type Read = SampleRead;
    type Job = SampleJob;

    fn reads_at_once(&self, uring: bool) -> usize {
        if uring { DEPTH } else { 1 }
    }

    fn begin(&self, h: &Handles, rows: Vec<Begun>, reads: &mut VecDeque<SampleRead>) -> Vec<SampleJob> {
        begin(h, rows, reads)
    }

    fn retry(
        &self,
        _: &Handles,
        row: Row,
        at: Located,
        reads: &mut VecDeque<SampleRead>,
    ) -> Option<SampleJob> {
        reads.push_front(SampleRead::one(row, at, None));
        None
    }

    fn staging_bytes(&self, h: &Handles, read: &SampleRead) -> u64 {
        read.staging_bytes(h)
    }

    fn read(
        &self,
        h: &Handles,
        reads: Vec<(SampleRead, Staged)>,
        uring: &mut Option<Uring>,
        thread: usize,
        push: &mut dyn FnMut(SampleJob) -> bool,
    ) {
        let from_source = |at: &Located, len: u64, staging: &mut [u8]| {
            Ok(h.spec.source.read(at, len, h.spec.mode, staging)?)
        };
        read(h, reads, &from_source, uring, thread, push);
    }

    fn run(&self, h: &Handles, job: SampleJob, scratch: &Mutex<WorkerScratch>, thread: usize) {
        run(h, job, scratch, thread);
    }
}

impl SampleRead {
    fn one(row: Row, at: Located, kept: Option<Kept>) -> Self {
        let len = u64::from(at.entry.len);
        Self { rows: vec![(row, at)], len, kept }
    }

    /// Staging for its bytes.
    fn bytes_staging(&self) -> u64 {
        match self.kept {
            Some(Kept::Stored(..)) => SegmentTier::read_buffer_bytes(self.len),
            _ => staging_bytes(self.len),
        }
    }

    /// The staging that it takes: its bytes, then a record for each row.
    pub(super) fn staging_bytes(&self, h: &Handles) -> u64 {
        let record = h.spec.checkpoints().map_or(0, Checkpoints::room_bytes);
        self.bytes_staging() + self.rows.len() as u64 * record
    }

    /// The store that has the object, and where there.
    fn stored(&self) -> Option<(usize, RecordLocation)> {
        match self.kept.as_ref()? {
            Kept::Stored(store, spot) => Some((*store, *spot)),
            Kept::Packed(_) => None,
        }
    }

    /// What can be read of it together with others: where it is in a file, and its length there.
    fn extent<'a>(&self, h: &'a Handles) -> Option<(Extent<'a>, u64)> {
        match self.kept {
            Some(Kept::Stored(store, spot)) => {
                Some((h.spec.config.stores[store].extent(spot)?, SegmentTier::record_bytes(self.len)))
            }
            Some(Kept::Packed(_)) => None,
            None => Some((h.spec.source.extent(&self.rows.first()?.1)?, self.len)),
        }
    }

    /// The object from the tier where it is kept, if it is; `found` is where its record is if it
    /// was read already.
    fn read_from_tier(
        &self,
        h: &Handles,
        found: Option<Range<usize>>,
        staging: &mut [u8],
    ) -> Option<Range<usize>> {
        let (range, in_memory) = match (self.kept.as_ref()?, self.rows.first()?) {
            (Kept::Packed(packed), _) => (packed.unpack(staging).then_some(0..packed.unpacked_len())?, true),
            (&Kept::Stored(store, spot), (_, at)) => {
                let store = &h.spec.config.stores[store];
                (store.read(at.id, self.len, spot, found, staging)?, store.in_memory())
            }
        };
        let (hits, bytes) = match in_memory {
            true => (&h.metrics.hits, &h.metrics.hit_bytes),
            false => (&h.metrics.disk_hits, &h.metrics.disk_hit_bytes),
        };
        hits.add(1);
        bytes.add(self.len);
        Some(range)
    }

    /// Its staging, split: the part for its bytes, and one for each record.
    fn split_staging<'a>(
        &self,
        h: &Handles,
        staging: &'a mut [u8],
    ) -> (&'a mut [u8], std::slice::ChunksExactMut<'a, u8>) {
        let (bytes, records) = staging.split_at_mut(self.bytes_staging() as usize);
        let record = h.spec.checkpoints().map_or(PAGE_BYTES, Checkpoints::room_bytes);
        (bytes, records.chunks_exact_mut(record as usize))
    }
}

/// Begins the rows of a batch: jobs for what memory has; reads of objects that tiers have, then of
/// shards.
pub(super) fn begin(h: &Handles, rows: Vec<Begun>, reads: &mut VecDeque<SampleRead>) -> Vec<SampleJob> {
    let (mut jobs, mut kept, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (row, at) in rows {
        record_access(h, &at);
        let Some(row) = row else { continue };
        // An observer sees rows while they are made.
        let rows = h.cache.rows().filter(|_| h.spec.config.observer.is_none());
        if let Some(Cached::Plain(decoded)) = rows.and_then(|rows| rows.get_lease(at.id)) {
            jobs.push(decoded_job(h, row, at, decoded));
            continue;
        }
        match cached(h, &at) {
            Some(Cached::Plain(lease)) => jobs.push(cached_job(h, row, at, lease)),
            Some(Cached::Packed(packed)) => kept.push(SampleRead::one(row, at, Some(Kept::Packed(packed)))),
            None => match find(h, &at) {
                Some((store, spot)) => {
                    kept.push(SampleRead::one(row, at, Some(Kept::Stored(store, spot))));
                }
                None => missing.push((row, at)),
            },
        }
    }
    kept.sort_by_key(SampleRead::stored);
    reads.extend(kept);
    reads.extend(joined(h, missing));
    jobs
}

/// Tells the cache of an access.
fn record_access(h: &Handles, at: &Located) {
    let len = u64::from(at.entry.len);
    let record = h.spec.checkpoints().map_or(0, Checkpoints::record_bytes);
    if h.cache.stored.record_access(at.id, len + record) {
        h.metrics.could_hit_bytes.add(len);
    }
}

/// What the cache has of a sample: its bytes, then its record, if they are what the index says; or
/// its bytes packed.
fn cached(h: &Handles, at: &Located) -> Option<Cached> {
    let len = at.entry.len as usize;
    h.cache.stored.get_lease(at.id).filter(|cached| match cached {
        Cached::Plain(lease) => lease.len() >= len,
        Cached::Packed(packed) => packed.unpacked_len() == len,
    })
}

/// Where behind the memory a sample is kept: in which store, and where there.
fn find(h: &Handles, at: &Located) -> Option<(usize, RecordLocation)> {
    h.spec.config.stores.iter().enumerate().find_map(|(i, store)| Some((i, store.find(at.id)?)))
}

fn count_hit(h: &Handles, bytes: usize) {
    h.metrics.hits.add(1);
    h.metrics.hit_bytes.add(bytes as u64);
}

/// The job of a row that was decoded before.
fn decoded_job(h: &Handles, row: Row, at: Located, decoded: Lease) -> SampleJob {
    count_hit(h, decoded.len());
    let range = Ok(0..decoded.len());
    SampleJob { row, at, bytes: Arc::new(SampleBytes::Decoded(decoded)), range, record: None }
}

/// The job of a row whose bytes need no reading.
fn cached_job(h: &Handles, row: Row, at: Located, lease: Lease) -> SampleJob {
    let len = at.entry.len as usize;
    let record = h.spec.checkpoints().filter(|_| lease.len() > len).map(|_| len..lease.len());
    count_hit(h, len);
    h.metrics.checkpoints.add(u64::from(record.is_some()));
    SampleJob { row, at, bytes: Arc::new(SampleBytes::Cached(lease)), range: Ok(0..len), record }
}

/// The reads of a batch: in order of rows where samples are apart, in order of offsets where they
/// are neighbours.
fn joined(h: &Handles, mut rows: Vec<(Row, Located)>) -> VecDeque<SampleRead> {
    let source = &h.spec.source;
    let join = source.access() == Access::Random && rows.first().is_some_and(|(_, at)| at.path.is_empty());
    if join {
        rows.sort_by_key(|(_, at)| (at.entry.shard, at.entry.offset));
    }
    let record = h.spec.checkpoints().map_or(0, Checkpoints::room_bytes);
    let staging = h.reserved.staging.bytes();
    let (most, gap) = match source.is_remote() {
        true => (REMOTE_READ_BYTES.min(staging / 8), REMOTE_GAP_BYTES),
        false => (READ_BYTES.min(staging / 4), GAP_BYTES),
    };
    let mut reads: VecDeque<SampleRead> = VecDeque::new();
    for (row, at) in rows {
        let end = at.entry.offset + u64::from(at.entry.len);
        if join && let Some(last) = reads.back_mut() {
            let first = &last.rows[0].1.entry;
            let stop = first.offset + last.len;
            let records = (last.rows.len() as u64 + 1) * record;
            let near = first.shard == at.entry.shard
                && at.entry.offset >= stop
                && at.entry.offset - stop <= gap
                && end - first.offset + records <= most;
            if near {
                last.len = end - first.offset;
                last.rows.push((row, at));
                continue;
            }
        }
        reads.push_back(SampleRead::one(row, at, None));
    }
    reads
}

/// Where in the staging of a read its bytes and records are, as far as they came.
#[derive(Debug, Clone, Default)]
struct Found {
    bytes: Option<Range<usize>>,
    records: Vec<Option<Range<usize>>>,
}

/// Reads, and pushes a job for each row.
pub(super) fn read(
    h: &Handles,
    mut reads: Vec<(SampleRead, Staged)>,
    from_source: SourceRead<'_>,
    uring: &mut Option<Uring>,
    thread: usize,
    push: &mut dyn FnMut(SampleJob) -> bool,
) {
    let first = reads.first().and_then(|(read, _)| read.rows.first()).map(|(_, at)| at);
    h.watchdog.note(thread, "reading", first);
    let began = Instant::now();
    let found = read_together(h, &mut reads, uring);
    let mut count = 0;
    for ((read, mut staging), found) in reads.into_iter().zip(found) {
        let Some((_, first)) = read.rows.first() else { continue };
        let kept = read.read_from_tier(h, found.bytes.clone(), &mut staging);
        let of_source = kept.is_none();
        let together = found.bytes.is_some() && read.kept.is_none();
        let outcome = match kept.or(found.bytes.filter(|_| read.kept.is_none())) {
            Some(range) => Ok(range),
            None => from_source(first, read.len, &mut staging),
        };
        if of_source {
            count += 1;
            h.metrics.together.add(u64::from(together));
            h.metrics.read_bytes.add(read.len);
            let wanted = read.rows.iter().map(|(_, at)| u64::from(at.entry.len)).sum();
            h.metrics.wanted_bytes.add(wanted);
        }
        let records = read_records(h, &read, found.records, &mut staging);
        let jobs = jobs_of(h, read, staging, outcome, records, of_source);
        if !jobs.into_iter().all(&mut *push) {
            return;
        }
    }
    h.metrics.read_ns.add_elapsed(began);
    h.metrics.reads.add(count);
}

/// Reads the records of checkpoints that did not come with the rest, and says where in staging
/// they are. One that cannot be read is none: decoding does without.
fn read_records(
    h: &Handles,
    read: &SampleRead,
    mut found: Vec<Option<Range<usize>>>,
    staging: &mut [u8],
) -> Vec<Option<Range<usize>>> {
    found.resize(read.rows.len(), None);
    let Some(checkpoints) = h.spec.checkpoints() else { return found };
    let mut start = read.bytes_staging() as usize;
    for (((_, at), part), found) in read.rows.iter().zip(read.split_staging(h, staging).1).zip(&mut found) {
        let range = found.take().or_else(|| checkpoints.read(at, h.spec.mode, part).ok());
        *found = range.map(|range| start + range.start..start + range.end);
        start += part.len();
    }
    let came = found.iter().flatten().count() as u64;
    h.metrics.checkpoints.add(came);
    found
}

/// Reads what can be in flight together, and says what came of each.
fn read_together(h: &Handles, reads: &mut [(SampleRead, Staged)], uring: &mut Option<Uring>) -> Vec<Found> {
    let mut found = vec![Found::default(); reads.len()];
    let checkpoints = h.spec.checkpoints();
    // Alone, a read is as well off with pread.
    let Some(ring) = uring.as_mut().filter(|_| reads.len() > 1 || checkpoints.is_some()) else {
        return found;
    };
    let (mut of, mut wanted) = (Vec::new(), Vec::new());
    let (mut of_records, mut records_wanted) = (Vec::new(), Vec::new());
    for (i, (read, staging)) in reads.iter_mut().enumerate() {
        let extent = read.extent(h);
        let (bytes, records) = read.split_staging(h, staging);
        if let Some((extent, len)) = extent {
            of.push((i, None));
            wanted.push(Wanted { extent, len, into: bytes, found: None });
        }
        found[i].records.resize(read.rows.len(), None);
        for (row, ((_, at), into)) in read.rows.iter().zip(records).enumerate() {
            if let Some((extent, len)) = checkpoints.and_then(|c| Some((c.extent(at)?, c.record_bytes()))) {
                of_records.push((i, Some(row)));
                records_wanted.push(Wanted { extent, len, into, found: None });
            }
        }
    }
    // The long reads first, so that they are in flight together.
    of.append(&mut of_records);
    wanted.append(&mut records_wanted);
    if ring.read(&mut wanted).is_err() {
        *uring = None;
    }
    for ((i, row), wanted) in of.into_iter().zip(wanted) {
        match row {
            Some(row) => found[i].records[row] = wanted.found,
            None => found[i].bytes = wanted.found,
        }
    }
    found
}

/// The jobs of one read, whose bytes are kept where they are wanted.
fn jobs_of(
    h: &Handles,
    read: SampleRead,
    staging: Staged,
    outcome: Result<Range<usize>>,
    records: Vec<Option<Range<usize>>>,
    of_source: bool,
) -> Vec<SampleJob> {
    let start = read.rows.first().map_or(0, |(_, at)| at.entry.offset);
    let single = read.rows.len() == 1;
    let outcome = outcome.map_err(Arc::new);
    let from = read.stored().map(|(store, _)| store).filter(|_| !of_source);
    let bytes = Arc::new(SampleBytes::Staged(staging));
    let job = |((row, at), record): ((Row, Located), Option<Range<usize>>)| {
        let range = outcome.clone().map(|range| {
            if single {
                return range;
            }
            let from = range.start + (at.entry.offset - start) as usize;
            from..from + at.entry.len as usize
        });
        if let Ok(range) = &range {
            let record = record.clone().map_or(&[][..], |record| &bytes[record]);
            keep(h, &at, &bytes[range.clone()], record, from);
        }
        SampleJob { row, at, bytes: Arc::clone(&bytes), range, record }
    };
    read.rows.into_iter().zip(records).map(job).collect()
}

/// Keeps a sample in the tiers that want it, except the store `from`, which it came from.
fn keep(h: &Handles, at: &Located, bytes: &[u8], record: &[u8], from: Option<usize>) {
    // Each tier may be full, or not want it: then it is read again.
    h.cache.stored.put(at.id, &[bytes, record]);
    for (_, store) in h.spec.config.stores.iter().enumerate().filter(|(i, _)| Some(*i) != from) {
        store.put(at.id, &[bytes]);
    }
}

/// Decodes a sample; its panic is an error of this sample like any other.
pub(super) fn run(h: &Handles, job: SampleJob, scratch: &Mutex<WorkerScratch>, thread: usize) {
    h.watchdog.note(thread, "decoding", Some(&job.at));
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(h, &job, scratch)));
    let made = made.unwrap_or_else(|panic| {
        scratch.clear_poison();
        *lock(scratch) = WorkerScratch::default();
        Err(Error::Panic { thread: format!("tg-work-{thread}"), what: panic_message(&*panic) })
    });
    h.give_back_if_lacking(scratch);
    h.metrics.samples.add(1);
    let SampleJob { row, at, bytes, .. } = job;
    // Staging goes back before the batch can be delivered.
    drop(bytes);
    match made {
        Ok(()) => h.complete(row, at.id),
        Err(error) => h.fail(row, &at, error),
    }
    h.cache.made(&h.metrics, h.control.readers(), h.control.workers());
}

fn make(h: &Handles, job: &SampleJob, scratch: &Mutex<WorkerScratch>) -> Result<()> {
    let SampleJob { row, at, bytes, range, record } = job;
    let range = range.clone().map_err(|what| h.spec.source.sample_error(at, "", what))?;
    let checkpoints = record.clone().map(|range| &bytes[range]);
    match &**bytes {
        SampleBytes::Decoded(decoded) => decode_row::copy(h, row, decoded),
        bytes => decode_row::decode(h, (row, at), &bytes[range], checkpoints, scratch),
    }
}
