//! Reading: the bytes of reads into their staging, several at once where that can be, and a task for each row.
//!
//! Flow: [`Read`]s with staging, in order -> a tier, the kernel (io_uring or pread) or a store -> kept where it is wanted -> tasks.
//! Memory: the staging that the feed took for each read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tidegate_core::memory::{PAGE_BYTES, Staged};

use super::feed::Queued;
use super::filling::Filling;
use super::stats::add;
use super::work::{Job, Task};
use super::{Room, Shared, chunks};
use crate::Result;
use crate::cache::{Packed, Records, Spot, Tier};
use tidegate_source::Located;
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::read::{Extent, staging_bytes};
use tidegate_source::uring::{Uring, Wanted};

/// One read: consecutive bytes of one shard, for one or more rows, or the one object of a tier; and the checkpoints of each row.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) filling: Arc<Filling>,
    pub(super) attempt: u8,
    pub(super) rows: Vec<(usize, Located)>,
    pub(super) len: u64,
    pub(super) kept: Option<Kept>,
}

/// Where a sample is kept that is not lent as it is.
#[derive(Debug)]
pub(super) enum Kept {
    /// In which of the stores, and where there.
    Stored(usize, Spot),
    /// In memory.
    Packed(Packed),
}

impl Kept {
    /// Reads of one store in the order of places.
    pub(super) fn place(&self) -> Option<(usize, Spot)> {
        if let Self::Stored(store, spot) = self { Some((*store, *spot)) } else { None }
    }
}

impl Read {
    /// The staging of its bytes.
    fn bytes_room(&self) -> u64 {
        match self.kept {
            Some(Kept::Stored(..)) => Records::room_bytes(self.len),
            _ => staging_bytes(self.len),
        }
    }

    /// The staging that it takes: its bytes, then a record for each row.
    pub(super) fn room_bytes(&self, shared: &Shared) -> u64 {
        let record = shared.checkpoints().map_or(0, Checkpoints::room_bytes);
        self.bytes_room() + self.rows.len() as u64 * record
    }

    /// What can be read of it together with others: where it lies in a file, and its length there.
    fn extent<'a>(&self, shared: &'a Shared) -> Option<(Extent<'a>, u64)> {
        match self.kept {
            Some(Kept::Stored(store, spot)) => {
                Some((shared.config.stores[store].extent(spot)?, Records::record_bytes(self.len)))
            }
            Some(Kept::Packed(_)) => None,
            None => Some((shared.source.extent(&self.rows.first()?.1)?, self.len)),
        }
    }

    /// The object from the tier where it is kept, if it is; `found` is where its record lies if it was read already.
    fn kept(&self, shared: &Shared, found: Option<Range<usize>>, staging: &mut [u8]) -> Option<Range<usize>> {
        let (range, in_memory) = match (self.kept.as_ref()?, self.rows.first()?) {
            (Kept::Packed(packed), _) => (packed.unpack(staging).then_some(0..packed.unpacked_len())?, true),
            (&Kept::Stored(store, spot), (_, at)) => {
                let store = &shared.config.stores[store];
                (store.read(at.id, self.len, spot, found, staging)?, store.in_memory())
            }
        };
        let (hits, bytes) = match in_memory {
            true => (&shared.stats.hits, &shared.stats.hit_bytes),
            false => (&shared.stats.disk_hits, &shared.stats.disk_hit_bytes),
        };
        hits.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(self.len, Ordering::Relaxed);
        Some(range)
    }

    /// Its staging, divided so.
    fn rooms<'a>(
        &self,
        shared: &Shared,
        staging: &'a mut [u8],
    ) -> (&'a mut [u8], std::slice::ChunksExactMut<'a, u8>) {
        let (bytes, records) = staging.split_at_mut(self.bytes_room() as usize);
        let record = shared.checkpoints().map_or(PAGE_BYTES, Checkpoints::room_bytes);
        (bytes, records.chunks_exact_mut(record as usize))
    }
}

/// Where in the staging of a read its bytes and records lie, as far as they came.
#[derive(Debug, Clone, Default)]
struct Found {
    bytes: Option<Range<usize>>,
    records: Vec<Option<Range<usize>>>,
}

/// Reads, and passes a task for each row on to the workers.
pub(super) fn fetch(
    shared: &Arc<Shared>,
    queued: Vec<(Queued, Staged)>,
    uring: &mut Option<Uring>,
    thread: usize,
) {
    let mut reads = Vec::with_capacity(queued.len());
    for (queued, staging) in queued {
        match queued {
            Queued::Read(read) => reads.push((read, staging)),
            Queued::Chunk(chunk) => {
                shared.watch.note(thread, "reading a chunk", None);
                let stored = chunks::fetch(shared, chunk, staging);
                if shared.ring.push(Job::Chunk(stored)).is_err() {
                    return;
                }
            }
        }
    }
    if reads.is_empty() {
        return;
    }
    shared.watch.note(
        thread,
        "reading",
        reads.first().and_then(|(read, _)| read.rows.first()).map(|(_, at)| at),
    );
    let began = Instant::now();
    let found = at_once(shared, &mut reads, uring);
    let mut count = 0;
    for ((read, mut staging), found) in reads.into_iter().zip(found) {
        let Some((_, first)) = read.rows.first() else { continue };
        let kept = read.kept(shared, found.bytes.clone(), &mut staging);
        let from_source = kept.is_none();
        let at_once = found.bytes.is_some() && read.kept.is_none();
        let came = kept.or(found.bytes.filter(|_| read.kept.is_none()));
        let outcome = match (came, shared.source.grouped()) {
            (Some(range), _) => Ok(range),
            (None, Some(source)) => {
                let groups = &shared.reserved.groups;
                groups.read(source, first, shared.mode, &mut staging, &shared.stats.groups)
            }
            (None, None) => {
                shared.source.read(first, read.len, shared.mode, &mut staging).map_err(Into::into)
            }
        };
        if from_source {
            count += 1;
            shared.stats.together.fetch_add(u64::from(at_once), Ordering::Relaxed);
            shared.stats.read_bytes.fetch_add(read.len, Ordering::Relaxed);
            let wanted = read.rows.iter().map(|(_, at)| u64::from(at.entry.len)).sum();
            shared.stats.wanted_bytes.fetch_add(wanted, Ordering::Relaxed);
        }
        let records = read_records(shared, &read, found.records, &mut staging);
        if !pass_on(shared, read, staging, outcome, records, from_source) {
            return;
        }
    }
    add(&shared.stats.read_ns, began);
    shared.stats.reads.fetch_add(count, Ordering::Relaxed);
}

/// Reads the records of checkpoints that did not come with the rest, and says where in staging they lie. One that cannot be
/// read is none: decoding does without.
fn read_records(
    shared: &Shared,
    read: &Read,
    mut found: Vec<Option<Range<usize>>>,
    staging: &mut [u8],
) -> Vec<Option<Range<usize>>> {
    found.resize(read.rows.len(), None);
    let Some(checkpoints) = shared.checkpoints() else { return found };
    let mut start = read.bytes_room() as usize;
    for (((_, at), room), found) in read.rows.iter().zip(read.rooms(shared, staging).1).zip(&mut found) {
        let range = found.take().or_else(|| checkpoints.read(at, shared.mode, room).ok());
        *found = range.map(|range| start + range.start..start + range.end);
        start += room.len();
    }
    let came = found.iter().flatten().count() as u64;
    shared.stats.checkpoints.fetch_add(came, Ordering::Relaxed);
    found
}

/// Reads what can be read in one go, and says what came of each.
fn at_once(shared: &Shared, reads: &mut [(Read, Staged)], uring: &mut Option<Uring>) -> Vec<Found> {
    let mut found = vec![Found::default(); reads.len()];
    let checkpoints = shared.checkpoints();
    // Alone, a read is as well off with pread.
    let Some(ring) = uring.as_mut().filter(|_| reads.len() > 1 || checkpoints.is_some()) else {
        return found;
    };
    let (mut of, mut wanted) = (Vec::new(), Vec::new());
    let (mut of_records, mut records_wanted) = (Vec::new(), Vec::new());
    for (i, (read, staging)) in reads.iter_mut().enumerate() {
        let extent = read.extent(shared);
        let (bytes, records) = read.rooms(shared, staging);
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

/// Makes the tasks of one read; false once the epoch was stopped.
fn pass_on(
    shared: &Arc<Shared>,
    read: Read,
    staging: Staged,
    outcome: Result<Range<usize>>,
    records: Vec<Option<Range<usize>>>,
    from_source: bool,
) -> bool {
    let start = read.rows.first().map_or(0, |(_, at)| at.entry.offset);
    let single = read.rows.len() == 1;
    let outcome = outcome.map_err(|e| e.to_string());
    let room = Arc::new(Room::Staged(staging));
    for ((row, at), record) in read.rows.into_iter().zip(records) {
        let range = outcome.clone().map(|range| {
            if single {
                return range;
            }
            let from = range.start + (at.entry.offset - start) as usize;
            from..from + at.entry.len as usize
        });
        if let Ok(range) = &range {
            let record = record.clone().map_or(&[][..], |record| &room[record]);
            let _it_may_be_full_or_not_want_it =
                shared.samples.stored.put(at.id, &[&room[range.clone()], record]);
            let from =
                read.kept.as_ref().and_then(Kept::place).map(|(store, _)| store).filter(|_| !from_source);
            for (_, store) in shared.config.stores.iter().enumerate().filter(|(i, _)| Some(*i) != from) {
                let _as_well = store.put(at.id, &[&room[range.clone()]]);
            }
        }
        let (filling, room) = (Arc::clone(&read.filling), Arc::clone(&room));
        let task = Task { filling, row, at, room, range, record, attempt: read.attempt };
        if shared.ring.push(Job::Sample(task)).is_err() {
            return false;
        }
    }
    true
}
