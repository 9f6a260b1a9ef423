//! The feed: which bytes are read next, in the order of batches; and the threads that read them.
//!
//! Flow: epoch order -> ids of a batch -> index entries -> reads (neighbours in one) -> staging -> tasks for workers.
//! Memory: takes a slot for each batch and staging for each read, in order, while it holds the feed's lock: whoever
//! comes first in the order has its memory first, so nobody waits for those behind.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tidegate_core::sync::lock;

use tidegate_core::memory::{Account, Block, Buddy, Priority, SlabItem, Staged};

use super::chunks::{Chunks, LentRow};
use super::filling::{Filling, Shape, ragged_columns};
use super::reading::{Kept, Read, fetch};
use super::stats::add;
use super::work::{Job, Task};
use super::{Room, Shared, Starved, plan};
use crate::batch::Layout;
use crate::batch::row::{is_picture, ragged_bytes};
use crate::cache::{Lease, Lent, Near, Spot};
use crate::{Error, Result, panic_message};
use tidegate_order::Epoch;
use tidegate_order::split::Rows;
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::read::stop_reading_when;
use tidegate_source::uring::{DEPTH, Uring};
use tidegate_source::{Access, Located, ReadMode};

/// Neighbours are read together up to this many bytes, and over a network up to more.
const READ_BYTES: u64 = 512 << 10;
const REMOTE_READ_BYTES: u64 = 4 << 20;
/// Bytes between neighbours that are read along.
const GAP_BYTES: u64 = 4 << 10;
const REMOTE_GAP_BYTES: u64 = 256 << 10;

/// What a reader takes next.
#[derive(Debug)]
pub(super) enum Queued {
    Read(Read),
    /// A chunk that rows wait for.
    Chunk(u64),
}

impl Queued {
    /// The staging that it takes.
    fn room_bytes(&self, shared: &Shared) -> u64 {
        match self {
            Self::Read(read) => read.room_bytes(shared),
            Self::Chunk(_) => plan::sample_room(&*shared.source, &shared.config.stores),
        }
    }
}

/// A sample that takes the place of a failed one.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) filling: Arc<Filling>,
    pub(super) row: usize,
    pub(super) id: u64,
    pub(super) attempt: u8,
}

/// What the readers share.
#[derive(Debug)]
pub(super) struct Feed {
    epoch: Arc<dyn Epoch>,
    next_batch: u64,
    reads: VecDeque<Queued>,
    /// Entries that were looked up ahead and their indices, with the batch they belong to.
    ahead: VecDeque<(u64, Found)>,
}

/// A reader thread.
pub(super) fn run(shared: &Arc<Shared>, feed: &Mutex<Feed>, thread: usize) {
    let body = || {
        stop_reading_when(&shared.stop);
        let mut uring = if shared.mode == ReadMode::Direct { Uring::new() } else { None };
        if shared.workers_read() {
            return pass_chunks(shared, feed, thread);
        }
        while !shared.stopped() {
            // Chunks are read one by one: others take the rest.
            let most = if uring.is_some() && shared.source.chunked().is_none() { DEPTH } else { 1 };
            let next = {
                let mut feed = lock(feed);
                shared.watch.note(thread, "waiting for memory", None);
                feed.take(shared, most)
            };
            match next {
                Ok(reads) if reads.is_empty() => return,
                Ok(reads) => fetch(shared, reads, &mut uring, thread),
                Err(error) => return shared.fail(error),
            }
        }
    };
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        shared.fail(Error::Panic { thread: format!("tg-read-{thread}"), what: panic_message(&*panic) });
    }
    shared.watch.note(thread, "done", None);
}

/// Has workers read chunks as well as decode them: what is in the page cache takes no time to come.
fn pass_chunks(shared: &Arc<Shared>, feed: &Mutex<Feed>, thread: usize) {
    while !shared.stopped() {
        let next = {
            let mut feed = lock(feed);
            shared.watch.note(thread, "waiting for memory", None);
            feed.next_queued(shared)
        };
        match next {
            Ok(Some(Queued::Chunk(chunk))) => {
                if shared.ring.push(Job::Unread(chunk)).is_err() {
                    return;
                }
            }
            Ok(_) => return,
            Err(error) => return shared.fail(error),
        }
    }
}

impl Feed {
    pub(super) fn new(epoch: Arc<dyn Epoch>, next_batch: u64) -> Self {
        Self { epoch, next_batch, reads: VecDeque::new(), ahead: VecDeque::new() }
    }

    /// The next reads with their staging, none at the end of the epoch: beyond the first those of its batch for which
    /// there is staging now, up to a quarter of it.
    fn take(&mut self, shared: &Arc<Shared>, most: usize) -> Result<Vec<(Queued, Staged)>> {
        let mut taken: Vec<_> = self.next(shared)?.into_iter().collect();
        let staging = &shared.reserved.staging;
        let piece = |read: &Queued| Buddy::piece_bytes(read.room_bytes(shared));
        let mut bytes: u64 = taken.iter().map(|(read, _)| piece(read)).sum();
        while !taken.is_empty() && taken.len() < most {
            let Some(read) = self.reads.front() else { break };
            bytes += piece(read);
            let room = bytes <= staging.bytes() / 4;
            let Some(staged) = room.then(|| staging.try_take(read.room_bytes(shared))).flatten() else {
                break;
            };
            taken.extend(self.reads.pop_front().map(|read| (read, staged)));
        }
        Ok(taken)
    }

    /// The next read; nothing at the end of the epoch.
    fn next_queued(&mut self, shared: &Arc<Shared>) -> Result<Option<Queued>> {
        loop {
            if shared.stopped() {
                return Ok(None);
            }
            let retry = lock(&shared.retries).pop();
            if let Some(retry) = retry {
                match self.replace(shared, retry)? {
                    Some(read) => return Ok(Some(read)),
                    None => continue,
                }
            }
            if let Some(read) = self.reads.pop_front() {
                return Ok(Some(read));
            }
            if self.next_batch < shared.config.split.batches() {
                self.begin_batch(shared)?;
            } else if shared.in_flight.load(Ordering::Acquire) == 0
                || shared.config.on_error != super::OnError::Replace
            {
                return Ok(None);
            } else {
                // A batch in flight may still ask for a replacement.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// The next read with its staging; nothing at the end of the epoch.
    fn next(&mut self, shared: &Arc<Shared>) -> Result<Option<(Queued, Staged)>> {
        let Some(read) = self.next_queued(shared)? else { return Ok(None) };
        let began = Instant::now();
        let staging = shared.reserved.staging.take(read.room_bytes(shared), &shared.stop);
        add(&shared.stats.staging_wait_ns, began);
        match staging {
            Some(staging) => Ok(Some((read, staging))),
            None if shared.stopped() => Ok(None),
            None => Err(Error::Config(format!(
                "{}: a sample of {} bytes is larger than when it was indexed: run `tidegate index --force`",
                shared.source.name(),
                read.room_bytes(shared)
            ))),
        }
    }

    /// Takes a slot and queues the reads of the next batch; does nothing if a retry has to go first.
    fn begin_batch(&mut self, shared: &Arc<Shared>) -> Result<()> {
        let batch = self.next_batch;
        if !wait_for_consumer(shared, batch) {
            return Ok(());
        }
        let Some(slot) = take_slot(shared) else { return Ok(()) };
        let rows = shared.config.split.rows(batch);
        let (located, indices) = self.locate(shared, batch, rows)?;
        if shared.stopped() {
            return Ok(());
        }
        let any = (shared.config.on_error == super::OnError::Replace).then(|| shared.source.extremes());
        let picture = shared.reserved.plan.picture_bytes;
        let mut room: Vec<Vec<u64>> = ragged_columns(&shared.layout)
            .map(|column| {
                located.iter().map(|at| ragged_bytes(column, &at.entry, any.as_ref(), picture)).collect()
            })
            .collect();
        if shared.config.on_error == super::OnError::Skip {
            let plan = &shared.reserved.plan;
            let most = shared.reserved.budget.cap_bytes().saturating_sub(plan.total());
            leave_out(&shared.layout, &mut room, most);
        }
        let Some(blocks) = take_blocks(shared, &room)? else { return Ok(()) };
        let ids: Vec<u64> = located.iter().map(|at| at.id).collect();
        let shape = Shape { index: batch, at: rows, rows: rows.count as usize, real: rows.real as usize };
        shared.in_flight.fetch_add(1, Ordering::AcqRel);
        let filling = Filling::new(shared, shape, &ids, &indices, slot, &room, blocks)?;
        let failed = |row: usize| shared.config.failed.binary_search(&rows.position(row as u64)).is_ok();
        (0..shape.rows).filter(|row| failed(*row)).for_each(|row| filling.skip(row));
        if shared.source.chunked().is_some() {
            let begin = |(row, at): (usize, Located)| {
                if failed(row) {
                    Chunks::pass(shared, &at);
                    return None;
                }
                shared.chunks.begin(shared, (Arc::clone(&filling), row, at, 0), &mut self.reads)
            };
            let lent: Vec<LentRow> = located.into_iter().enumerate().filter_map(begin).collect();
            self.next_batch += 1;
            lent.into_iter().for_each(|row| pass_on(shared, row));
            return Ok(());
        }
        let (mut lent, mut kept, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (row, at) in located.into_iter().enumerate() {
            meet(shared, &at);
            if failed(row) {
                continue;
            }
            // Who looks on wants to see it made.
            let rows = shared.samples.rows().filter(|_| shared.config.observer.is_none());
            if let Some(Lent::Plain(made)) = rows.and_then(|rows| rows.lend(at.id)) {
                lent.push(made_task(shared, &filling, row, made, at));
                continue;
            }
            match lend(shared, &at) {
                Some(Lent::Plain(lease)) => lent.push(lent_task(shared, &filling, row, lease, at)),
                Some(Lent::Packed(packed)) => kept.push((Kept::Packed(packed), row, at)),
                None => match find(shared, &at) {
                    Some((store, spot)) => kept.push((Kept::Stored(store, spot), row, at)),
                    None => missing.push((row, at)),
                },
            }
        }
        kept.sort_by_key(|(place, ..): &(Kept, _, _)| place.place());
        let kept = kept.into_iter().map(|(place, row, at)| kept_read(&filling, row, at, place));
        self.reads = kept.chain(reads(shared, &filling, missing)).map(Queued::Read).collect();
        self.next_batch += 1;
        for task in lent {
            if shared.ring.push(Job::Sample(task)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Another sample in the place of a failed one: its read, unless it is made of chunks, which are read next.
    fn replace(&mut self, shared: &Shared, retry: Retry) -> Result<Option<Queued>> {
        let Retry { filling, row, id, attempt } = retry;
        filling.replaced(row, id);
        let at = shared.source.locate(&[id])?.swap_remove(0);
        if shared.source.chunked().is_none() {
            let len = u64::from(at.entry.len);
            return Ok(Some(Queued::Read(Read { filling, attempt, rows: vec![(row, at)], len, kept: None })));
        }
        let mut reads = VecDeque::new();
        let lent = shared.chunks.begin(shared, (filling, row, at, attempt), &mut reads);
        reads.into_iter().rev().for_each(|read| self.reads.push_front(read));
        lent.into_iter().for_each(|row| pass_on(shared, row));
        Ok(None)
    }

    /// The entries of a batch; looks up several batches at once, so that the index is read in order.
    fn locate(&mut self, shared: &Shared, batch: u64, rows: Rows) -> Result<Found> {
        if self.ahead.front().is_none_or(|(b, _)| *b != batch) {
            self.ahead.clear();
            // The first batch alone, for a quick start, and what is asked one by one; then whole windows.
            let count = if batch == shared.config.past.delivered || !self.epoch.known() {
                1
            } else {
                (plan::WINDOW / rows.count.max(1)).max(1)
            };
            let split = &shared.config.split;
            let last = (batch + count).min(split.batches());
            let (mut ids, mut counts) = (Vec::new(), Vec::new());
            for b in batch..last {
                let rows = split.rows(b);
                // Padding repeats the epoch from its beginning.
                let positions = rows.positions().map(|position| position % split.len.max(1));
                let asking = Asking::new(shared, &*self.epoch);
                if shared.stopped() {
                    return Ok(Found::default());
                }
                for position in positions {
                    ids.push(self.epoch.id(position)?);
                }
                drop(asking);
                counts.push((b, rows.count as usize));
            }
            let mut found = shared.source.locate(&ids)?.into_iter();
            let mut ids = ids.into_iter();
            for (b, n) in counts {
                let of_batch = (found.by_ref().take(n).collect(), ids.by_ref().take(n).collect());
                self.ahead.push_back((b, of_batch));
            }
        }
        Ok(self.ahead.pop_front().map(|(_, found)| found).unwrap_or_default())
    }
}

/// Entries of a batch, and their indices in the source.
type Found = (Vec<Located>, Vec<u64>);

/// While a reader asks the user's sampler: whoever stops the epoch does not wait for him, or he sees that it is stopped.
struct Asking<'a>(&'a Shared);

impl<'a> Asking<'a> {
    fn new(shared: &'a Shared, epoch: &dyn Epoch) -> Self {
        shared.asking.store(!epoch.known(), Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.store(false, Ordering::SeqCst);
    }
}

/// Has a worker copy what a row is lent, if it is anything.
fn pass_on(shared: &Shared, row: LentRow) {
    if row.is_empty() {
        row.run(shared);
    } else if shared.ring.push(Job::Lent(row)).is_err() {
        // The epoch was stopped.
    }
}

/// Where behind the memory a sample is kept: in which store, and where there.
fn find(shared: &Shared, at: &Located) -> Option<(usize, Spot)> {
    shared.config.stores.iter().enumerate().find_map(|(i, store)| Some((i, store.find(at.id)?)))
}

fn kept_read(filling: &Arc<Filling>, row: usize, at: Located, place: Kept) -> Read {
    let len = u64::from(at.entry.len);
    Read { filling: Arc::clone(filling), attempt: 0, rows: vec![(row, at)], len, kept: Some(place) }
}

/// Tells the cache of an access.
fn meet(shared: &Shared, at: &Located) {
    let len = u64::from(at.entry.len);
    let record = shared.checkpoints().map_or(0, Checkpoints::record_bytes);
    if shared.samples.stored.meet(at.id, len + record) {
        shared.stats.could_hit_bytes.fetch_add(len, Ordering::Relaxed);
    }
}

/// What is kept in memory of a sample: its bytes, then its record, if they are what the index says they are; or its bytes packed.
fn lend(shared: &Shared, at: &Located) -> Option<Lent> {
    let len = at.entry.len as usize;
    shared.samples.stored.lend(at.id).filter(|lent| match lent {
        Lent::Plain(lease) => lease.len() >= len,
        Lent::Packed(packed) => packed.unpacked_len() == len,
    })
}

/// The task of a row that was made before.
fn made_task(shared: &Shared, filling: &Arc<Filling>, row: usize, made: Lease, at: Located) -> Task {
    shared.stats.hits.fetch_add(1, Ordering::Relaxed);
    shared.stats.hit_bytes.fetch_add(made.len() as u64, Ordering::Relaxed);
    let (range, room) = (Ok(0..made.len()), Arc::new(Room::Made(made)));
    Task { filling: Arc::clone(filling), row, at, room, range, record: None, attempt: 0 }
}

/// The task of a row whose bytes need no reading.
fn lent_task(shared: &Shared, filling: &Arc<Filling>, row: usize, lease: Lease, at: Located) -> Task {
    let len = at.entry.len as usize;
    let record = shared.checkpoints().filter(|_| lease.len() > len).map(|_| len..lease.len());
    shared.stats.hits.fetch_add(1, Ordering::Relaxed);
    shared.stats.hit_bytes.fetch_add(len as u64, Ordering::Relaxed);
    shared.stats.checkpoints.fetch_add(u64::from(record.is_some()), Ordering::Relaxed);
    let (filling, room) = (Arc::clone(filling), Arc::new(Room::Lent(lease)));
    Task { filling, row, at, room, range: Ok(0..len), record, attempt: 0 }
}

/// Leaves the largest pictures out of a batch that can never have more than `most` bytes: they will fail.
fn leave_out(layout: &Layout, room: &mut [Vec<u64>], most: u64) {
    while room.iter().flatten().sum::<u64>() > most {
        let columns = ragged_columns(layout).zip(room.iter_mut()).filter(|(column, _)| is_picture(column));
        match columns.flat_map(|(_, room)| room).max_by_key(|bytes| **bytes) {
            Some(bytes) if *bytes > 0 => *bytes = 0,
            _ => return,
        }
    }
}

/// Waits until the consumer is near: what a map makes of batches, and what is noted of them, lies in no slot. False if the epoch was stopped, or a
/// retry has to go first.
fn wait_for_consumer(shared: &Shared, batch: u64) -> bool {
    let far =
        || batch.saturating_sub(shared.stats.delivered.load(Ordering::Acquire)) >= shared.reserved.plan.slots;
    let began = Instant::now();
    while shared.map.is_some() && shared.config.observer.is_some() && far() {
        if shared.stopped() || !lock(&shared.retries).is_empty() {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    add(&shared.stats.slot_wait_ns, began);
    true
}

fn take_slot(shared: &Shared) -> Option<SlabItem> {
    let began = Instant::now();
    let slot = shared.reserved.slots.try_take().or_else(|| {
        shared.starve(Starved::Slot);
        let slot = shared.reserved.slots.take(shared.stop.or(&|| !lock(&shared.retries).is_empty()));
        shared.starve(Starved::Nothing);
        slot
    });
    add(&shared.stats.slot_wait_ns, began);
    slot
}

/// Blocks for the ragged columns; nothing if the epoch was stopped, or a retry has to go first.
fn take_blocks(shared: &Shared, room: &[Vec<u64>]) -> Result<Option<Vec<Block>>> {
    let mut blocks = Vec::new();
    for room in room {
        let bytes: u64 = room.iter().sum();
        let budget = &shared.reserved.budget;
        let block = budget.try_block(Account::Batch, bytes, Priority::NextBatch).or_else(|error| {
            if matches!(error, tidegate_core::Error::TooLarge { .. }) {
                return Err(error);
            }
            shared.starve(Starved::Memory);
            shared.give_back();
            let retry = || !lock(&shared.retries).is_empty();
            let block = budget.block(Account::Batch, bytes, Priority::NextBatch, shared.stop.or(&retry));
            shared.starve(Starved::Nothing);
            block
        });
        match block {
            Ok(block) => blocks.push(block),
            Err(tidegate_core::Error::Exhausted { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(blocks))
}

/// The reads of a batch: in order of rows where samples lie apart, in order of offsets where they are neighbours.
fn reads(shared: &Shared, filling: &Arc<Filling>, mut rows: Vec<(usize, Located)>) -> VecDeque<Read> {
    let joined =
        shared.source.access() == Access::Random && rows.first().is_some_and(|(_, at)| at.path.is_empty());
    if joined {
        rows.sort_by_key(|(_, at)| (at.entry.shard, at.entry.offset));
    }
    let record = shared.checkpoints().map_or(0, Checkpoints::room_bytes);
    let staging = shared.reserved.staging.bytes();
    let (most, gap) = match shared.source.is_remote() {
        true => (REMOTE_READ_BYTES.min(staging / 8), REMOTE_GAP_BYTES),
        false => (READ_BYTES.min(staging / 4), GAP_BYTES),
    };
    let mut reads: VecDeque<Read> = VecDeque::new();
    for (row, at) in rows {
        let end = at.entry.offset + u64::from(at.entry.len);
        if joined && let Some(last) = reads.back_mut() {
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
        let len = u64::from(at.entry.len);
        reads.push_back(Read {
            filling: Arc::clone(filling),
            attempt: 0,
            rows: vec![(row, at)],
            len,
            kept: None,
        });
    }
    reads
}
