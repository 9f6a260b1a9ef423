//! The feed: which bytes are read next, in the order of batches.
//!
//! Flow: epoch order -> ids of a batch -> index entries -> the lane's reads and jobs; called by
//! readers, one at a time.
//! Memory: takes a slot for each batch and staging for each read, in order, while its lock is
//! held: what comes first in the order has its memory first, so it never waits for what comes
//! after it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Block, Buddy, PAGE_BYTES, Priority, SlabItem, Staged};
use tidegate_core::sync::Ring;
use tidegate_order::Epoch;
use tidegate_order::partition::RankRows;
use tidegate_source::Located;

use super::batch_builder::{BatchAllocation, BatchBuilder, ragged_columns};
use super::config::OnError;
use super::control::Lacking;
use super::handles::Handles;
use super::lane::{Begun, Lane};
use super::plan::{LEAVE_OUT, WINDOW};
use crate::batch::ColumnPlan;
use crate::batch::cost::ragged_bytes;
use crate::{Error, Result};

/// What small columns of batches in delivery take, which lie in memory of their own.
const SMALL_COLUMNS_BYTES: u64 = 64 << 10;

/// Entries of a batch, and their indices in the source.
type Found = (Vec<Located>, Vec<u64>);

/// What the readers share.
#[derive(Debug)]
pub(super) struct Feed<L: Lane> {
    next_batch: u64,
    reads: VecDeque<L::Read>,
    /// Entries that were looked up ahead and their indices, with the batch they belong to.
    ahead: VecDeque<(u64, Found)>,
}

/// What a reader does next.
#[derive(Debug)]
pub(super) enum Taken<L: Lane> {
    /// It reads these, each into its staging.
    Reads(Vec<(L::Read, Staged)>),
    /// It passes a job on to the workers, which read for themselves.
    Job(L::Job),
    /// The epoch has ended, or was stopped.
    Nothing,
}

impl<L: Lane> Feed<L> {
    pub(super) fn new(next_batch: u64) -> Self {
        Self { next_batch, reads: VecDeque::new(), ahead: VecDeque::new() }
    }

    /// What a reader does next: up to `most` reads with their staging, after the first those of
    /// its batch for which there is staging now, up to a quarter of it.
    pub(super) fn take(
        &mut self,
        h: &Handles,
        (lane, ring): (&L, &Ring<L::Job>),
        most: usize,
    ) -> Result<Taken<L>> {
        let Some(first) = self.next(h, lane, ring)? else { return Ok(Taken::Nothing) };
        let first = match lane.for_worker(h, first) {
            Ok(job) => return Ok(Taken::Job(job)),
            Err(read) => read,
        };
        let staging = &h.reserved.staging;
        let piece = |read: &L::Read| Buddy::piece_bytes(lane.staging_bytes(h, read));
        let mut bytes = piece(&first);
        let Some(first) = Self::stage(h, lane, first)? else { return Ok(Taken::Nothing) };
        let mut taken = vec![first];
        while taken.len() < most {
            let Some(read) = self.reads.front() else { break };
            bytes += piece(read);
            let fits = bytes <= staging.bytes() / 4;
            let staged = fits.then(|| staging.try_take(lane.staging_bytes(h, read))).flatten();
            let Some(staged) = staged else { break };
            taken.extend(self.reads.pop_front().map(|read| (read, staged)));
        }
        Ok(Taken::Reads(taken))
    }

    /// Waits for the staging of a read; nothing if the epoch was stopped.
    fn stage(h: &Handles, lane: &L, read: L::Read) -> Result<Option<(L::Read, Staged)>> {
        let bytes = lane.staging_bytes(h, &read);
        let began = Instant::now();
        let staging = h.reserved.staging.take(bytes, &h.control.stop);
        h.metrics.staging_wait_ns.add_elapsed(began);
        match staging {
            Some(staging) => Ok(Some((read, staging))),
            None if h.control.stopped() => Ok(None),
            None => Err(Error::Config(format!(
                "{}: a sample of {bytes} bytes is larger than when it was indexed: run `tidegate index --force`",
                h.spec.source.name(),
            ))),
        }
    }

    /// The next read; nothing at the end of the epoch.
    fn next(&mut self, h: &Handles, lane: &L, ring: &Ring<L::Job>) -> Result<Option<L::Read>> {
        loop {
            if h.control.stopped() {
                return Ok(None);
            }
            if let Some(retry) = h.retries.pop() {
                let at = h.spec.source.locate(&[retry.id])?.swap_remove(0);
                let job = lane.retry(h, retry.row, at, &mut self.reads);
                push_all(ring, job);
                continue;
            }
            if let Some(read) = self.reads.pop_front() {
                return Ok(Some(read));
            }
            if self.next_batch < h.spec.config.split.batches() {
                self.begin_batch(h, lane, ring)?;
            } else if h.spec.config.on_error != OnError::Replace || !h.delivery.is_busy() {
                return Ok(None);
            } else {
                // A batch in flight may still ask for a replacement.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Takes the memory of the next batch and begins its rows; does nothing if a retry has to go
    /// first.
    fn begin_batch(&mut self, h: &Handles, lane: &L, ring: &Ring<L::Job>) -> Result<()> {
        let (batch, spec) = (self.next_batch, &h.spec);
        if !wait_for_consumer(h, batch) {
            return Ok(());
        }
        let Some(slot) = take_slot(h) else { return Ok(()) };
        let at = spec.config.split.rows(batch);
        let (located, indices) = self.locate(h, batch, at)?;
        if h.control.stopped() {
            return Ok(());
        }
        let row_bytes = ragged_row_bytes(h, &located)?;
        let Some(blocks) = take_blocks(h, &row_bytes)? else {
            // It is begun again.
            self.ahead.push_front((batch, (located, indices)));
            return Ok(());
        };
        let ids: Vec<u64> = located.iter().map(|at| at.id).collect();
        let memory = BatchAllocation { slot, blocks, row_bytes };
        h.delivery.begin();
        self.next_batch += 1;
        let rows = match BatchBuilder::new(spec, (batch, at), &ids, &indices, memory)?.into_rows() {
            Ok(rows) => rows,
            Err(empty) => {
                h.delivery.finish(*empty);
                return Ok(());
            }
        };
        let failed = |row: u64| spec.config.failed.binary_search(&at.position(row)).is_ok();
        let mut skipped = Vec::new();
        let begun = rows.into_iter().zip(located).enumerate().map(|(i, (row, at))| match failed(i as u64) {
            true => {
                row.skip();
                skipped.push(row);
                (None, at)
            }
            false => (Some(row), at),
        });
        let begun: Vec<Begun> = begun.collect();
        let jobs = lane.begin(h, begun, &mut self.reads);
        skipped.into_iter().for_each(|row| h.delivery.settle(row));
        push_all(ring, jobs);
        Ok(())
    }

    /// The entries of a batch; looks up several batches at once, so that the index is read in
    /// order.
    fn locate(&mut self, h: &Handles, batch: u64, rows: RankRows) -> Result<Found> {
        if self.ahead.front().is_none_or(|(b, _)| *b != batch) {
            self.ahead.clear();
            let (epoch, split) = (&*h.spec.epoch, &h.spec.config.split);
            // The first batch alone, for a quick start, and what is asked one by one; then whole
            // windows.
            let count = if batch == h.spec.config.past.delivered || !epoch.known() {
                1
            } else {
                (WINDOW / rows.count.max(1)).max(1)
            };
            let last = (batch + count).min(split.batches());
            let (mut ids, mut counts) = (Vec::new(), Vec::new());
            for b in batch..last {
                let rows = split.rows(b);
                h.control.asking.store(!epoch.known(), Ordering::SeqCst);
                let asked =
                    if h.control.stopped() { Ok(false) } else { ask(epoch, split.len, rows, &mut ids) };
                h.control.asking.store(false, Ordering::SeqCst);
                if !asked? {
                    return Ok(Found::default());
                }
                counts.push((b, rows.count as usize));
            }
            let mut found = h.spec.source.locate(&ids)?.into_iter();
            let mut ids = ids.into_iter();
            for (b, n) in counts {
                let of_batch = (found.by_ref().take(n).collect(), ids.by_ref().take(n).collect());
                self.ahead.push_back((b, of_batch));
            }
        }
        Ok(self.ahead.pop_front().map(|(_, found)| found).unwrap_or_default())
    }
}

/// Asks the order for the ids of a batch. Padding repeats the epoch from its beginning.
fn ask(epoch: &dyn Epoch, len: u64, rows: RankRows, ids: &mut Vec<u64>) -> Result<bool> {
    for position in rows.positions() {
        ids.push(epoch.id(position % len.max(1))?);
    }
    Ok(true)
}

/// Hands jobs to the workers; they are dropped once the epoch was stopped.
fn push_all<T>(ring: &Ring<T>, jobs: impl IntoIterator<Item = T>) {
    for job in jobs {
        if ring.push(job).is_err() {
            return;
        }
    }
}

/// The bytes that each row of each ragged column may take.
///
/// # Errors
/// [`Error::TooLarge`] for a batch that can never fit.
fn ragged_row_bytes(h: &Handles, located: &[Located]) -> Result<Vec<Vec<u64>>> {
    let (spec, plan) = (&h.spec, &h.reserved.plan);
    let any = (spec.config.on_error == OnError::Replace).then(|| spec.source.size_bounds());
    let bytes = |column| {
        let row = |at: &Located| ragged_bytes(column, &at.entry, any.as_ref(), plan.image_bytes);
        located.iter().map(row).collect()
    };
    let rows: Vec<Vec<u64>> = ragged_columns(&spec.layout).map(bytes).collect();
    // Each block is of whole pages, and the batch in delivery has small columns of its own.
    let beside = plan.total() + PAGE_BYTES * rows.len() as u64 + SMALL_COLUMNS_BYTES;
    let cap_bytes = h.reserved.budget.cap_bytes();
    let (asked, most) = (rows.iter().flatten().sum::<u64>(), cap_bytes.saturating_sub(beside));
    let images = ragged_columns(&spec.layout).any(ColumnPlan::is_image);
    if images && asked > most {
        let place = located.first().map(|at| spec.source.place(at).to_string()).unwrap_or_default();
        return Err(Error::TooLarge {
            what: format!(
                "the batch that begins with {place} takes {} MiB with its images as large as they are, more than the {} MiB \
                 that the budget of {} MiB leaves for one batch",
                mib(asked),
                mib(most),
                mib(cap_bytes)
            ),
            fix: format!("lower batch_size, give a size, as in tg.Image(224), or {LEAVE_OUT}"),
        });
    }
    Ok(rows)
}

/// Waits until the consumer is near: what a transform makes of batches, and what is noted of them,
/// is in no slot. False if the epoch was stopped, or a retry has to go first.
fn wait_for_consumer(h: &Handles, batch: u64) -> bool {
    let delivered = || h.metrics.batches.get();
    let far = || batch.saturating_sub(delivered()) >= h.reserved.slots.count() as u64;
    let began = Instant::now();
    while h.delivery.map().is_some() && h.spec.config.observer.is_some() && far() {
        if h.control.stopped() || !h.retries.is_empty() {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    h.metrics.slot_wait_ns.add_elapsed(began);
    true
}

fn take_slot(h: &Handles) -> Option<SlabItem> {
    let began = Instant::now();
    let slot = h.reserved.slots.try_take().or_else(|| {
        h.control.set_lacking(Lacking::Slot);
        let slot = h.reserved.slots.take(h.control.stop.or(&|| !h.retries.is_empty()));
        h.control.set_lacking(Lacking::Nothing);
        slot
    });
    h.metrics.slot_wait_ns.add_elapsed(began);
    slot
}

/// Blocks for the ragged columns; nothing if the epoch was stopped, or a retry has to go first.
fn take_blocks(h: &Handles, row_bytes: &[Vec<u64>]) -> Result<Option<Vec<Block>>> {
    let mut blocks = Vec::new();
    for bytes in row_bytes {
        let bytes: u64 = bytes.iter().sum();
        let budget = &h.reserved.budget;
        let block = budget.try_block(Account::Batch, bytes, Priority::NextBatch).or_else(|error| {
            if matches!(error, tidegate_core::Error::TooLarge { .. }) {
                return Err(error);
            }
            h.control.set_lacking(Lacking::Memory);
            h.scratches.give_back();
            let retry = || !h.retries.is_empty();
            let block = budget.block(Account::Batch, bytes, Priority::NextBatch, h.control.stop.or(&retry));
            h.control.set_lacking(Lacking::Nothing);
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
