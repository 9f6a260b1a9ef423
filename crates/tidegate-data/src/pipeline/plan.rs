//! The plan of an epoch's memory: what is reserved before the first thread starts.
//!
//! Flow: sizes from the index + layout + budget -> [`Plan`] -> [`Reserved`].
//! Memory: decides it all; `reserve` takes slots (`batch`), staging, one decoder's scratch and library bound, what decoders keep, the index
//! window, stacks (`telemetry`), decoded groups (`decoded`), and the page cache of a dataset that is kept (`cache.memory`).
//!
//! Least plan: two batches, and in one of them the largest picture if it is wanted as large as it is; two reads of the largest
//! sample; scratch for the largest picture once. What the budget has
//! beyond goes to scratch for the other workers, more staging, more batches, in this order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Block, Buddy, Budget, Grant, PAGE_BYTES, Priority, Slab, WeakSlab};

use super::groups::Groups;
use super::{Config, OnError};
use crate::batch::{Crop, FieldSpec, Layout, row};
use crate::cache::Records;
use crate::{Error, Result};
use tidegate_decode::Kind;
use tidegate_decode::{Decoders, compact};
use tidegate_order::Foresight;
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::index::Index;
use tidegate_source::read::{direct_works, read_mode, staging_bytes};
use tidegate_source::{Access, Chunked, Extremes, Grouped, ReadMode, Source, SourceExt};

/// The stack of each thread: address space, of which less than 96 KiB is ever touched.
pub const STACK_BYTES: u64 = 2 << 20;
const STACK_USED_BYTES: u64 = 96 << 10;
/// Positions whose entries are looked up at once.
pub(super) const WINDOW: u64 = 4096;
/// An entry with its path, in memory.
const LOCATED_BYTES: u64 = 192;
/// Slots beyond which there is no use.
const SLOTS_MOST: u64 = 64;
/// Staging that keeps a disk busy.
const STAGING_WANTED_BYTES: u64 = 8 << 20;
/// Threads that read files at most.
const LOCAL_READERS: u64 = 8;
/// Requests to a store at once, the fewest and the most; what they are to fill: a line of 10 Gbit/s.
const REMOTE_READERS: std::ops::RangeInclusive<u64> = 16..=128;
const LINE_BYTES_PER_S: f64 = 1.25e9;
/// What the connection of each takes, what each may read, and staging that keeps them busy.
const REMOTE_BYTES: u64 = 512 << 10;
const REMOTE_READ_BYTES: u64 = 1 << 20;
const REMOTE_STAGING_BYTES: u64 = 64 << 20;
/// What blocks take beyond what was asked for, all together: whole pages.
const ROUNDING_BYTES: u64 = 16 * PAGE_BYTES;
/// Scratch that is kept free for each further worker, unless the largest picture needs less.
const WORKER_SCRATCH_BYTES: u64 = 4 << 20;

/// What an epoch takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Slots.
    pub slots: u64,
    /// Bytes of the staging pool.
    pub staging_bytes: u64,
    /// Staging for the checkpoints of a sample; 0: they are not read.
    pub record_bytes: u64,
    /// Scratch for the largest picture, and what libraries take at most meanwhile.
    pub scratch_bytes: u64,
    /// The largest picture that is delivered as large as it is.
    pub picture_bytes: u64,
    /// Columns of such pictures.
    pub whole_columns: u64,
    /// What the source's own decompressors take.
    pub source_bytes: u64,
    /// What the workers' decoders keep between pictures.
    pub kept_bytes: u64,
    /// Decoded groups of rows that the order has in use at once, and the bytes of each.
    pub groups: u64,
    /// See `groups`.
    pub group_bytes: u64,
    /// The index window.
    pub index_bytes: u64,
    /// Stacks.
    pub stack_bytes: u64,
    /// What an observer notes of a batch.
    pub notes_bytes: u64,
    /// How files are read.
    pub mode: ReadMode,
    /// Page cache of a kept dataset.
    pub cache_bytes: u64,
    /// What tiers behind the memory take of it: tables, and what is not yet written back.
    pub stores_bytes: u64,
    /// What is left for samples that are kept from one epoch to the next: taken as they come, and given up when it is needed.
    pub kept_samples_bytes: u64,
    /// Reading threads.
    pub readers: usize,
}

/// The threads that may read a source at once.
pub(super) fn readers_most(source: &dyn Source) -> u64 {
    source.latency().map_or(LOCAL_READERS, |latency| requests(latency, mean_bytes(source)))
}

fn mean_bytes(source: &dyn Source) -> u64 {
    let whole = || source.extremes().total_bytes / source.len().max(1);
    // As much as it would be without compression, which is not known.
    source.chunked().map_or_else(whole, |chunked| chunked.sizes().patch_bytes)
}

/// The staging of the largest thing that is read: a sample, or a chunk as it is stored, or as memory in common has it.
pub(super) fn sample_room(source: &dyn Source, stores: &[Arc<Records>]) -> u64 {
    let decoded = source.chunked().filter(|_| stores.iter().any(|store| store.in_memory()));
    let decoded = decoded.map_or(0, |chunked| chunked.sizes().chunk_bytes);
    let bytes = source.extremes().sample_bytes.max(decoded);
    if stores.is_empty() { staging_bytes(bytes) } else { Records::room_bytes(bytes) }
}

/// As many requests of `bytes` each as are on their way at once while the line is full, by Little's law; and a few for what a request
/// takes besides.
fn requests(latency: Duration, bytes: u64) -> u64 {
    let at_once = latency.as_secs_f64() * LINE_BYTES_PER_S / bytes.max(1) as f64;
    (at_once as u64 + 8).clamp(*REMOTE_READERS.start(), *REMOTE_READERS.end())
}

/// How far ahead a source is read: over a network a request takes long, and many at once are as fast as one.
struct Reach {
    readers: usize,
    /// What their connections take.
    library_bytes: u64,
    /// Staging that keeps them busy.
    staging_bytes: u64,
    /// What all of them may read at once.
    ahead_bytes: u64,
}

impl Reach {
    fn of(source: &dyn Source, config: &Config, cap: u64) -> Self {
        let sequential = !matches!(source.access(), Access::Random | Access::Chunked);
        let Some(latency) = source.latency() else {
            let readers = match source.access() {
                _ if sequential => 1,
                // Files of a chunk each cannot be read ahead: several reads at once make up for it.
                Access::Chunked => LOCAL_READERS as usize,
                _ => config.workers.clamp(2, LOCAL_READERS as usize),
            };
            return Self { readers, library_bytes: 0, staging_bytes: STAGING_WANTED_BYTES, ahead_bytes: 0 };
        };
        // No more than take an eighth of the budget with what they read.
        let most = cap / 8 / (REMOTE_BYTES + source.extremes().sample_bytes);
        let chunk = source.chunked().map(|chunked| chunked.sizes().chunk_bytes / 2);
        let wanted = requests(latency, chunk.unwrap_or_else(|| mean_bytes(source)));
        let readers = if sequential { 1 } else { wanted.min(most.max(2)) };
        Self {
            readers: readers as usize,
            library_bytes: readers * REMOTE_BYTES,
            staging_bytes: REMOTE_STAGING_BYTES,
            ahead_bytes: (readers * REMOTE_READ_BYTES).min(REMOTE_STAGING_BYTES),
        }
    }
}

/// The reserved memory of an epoch.
#[derive(Debug)]
pub struct Reserved {
    pub(super) budget: Budget,
    pub(super) slots: Slab,
    pub(super) staging: Buddy,
    pub(super) groups: Groups,
    /// One worker at a time may use this, when it cannot have scratch of its own: so one always goes on.
    pub(super) scratch: Mutex<Option<Block>>,
    pub(super) plan: Plan,
    _grants: Vec<Grant>,
}

impl Reserved {
    /// Why no batch can be begun: every slot is with the consumer, or the memory of ragged columns is held.
    pub(super) fn held_error(&self, slots: bool) -> Error {
        if slots {
            return Error::Held { slots: self.slots.count(), slot_mib: mib(self.plan.slot_bytes) };
        }
        Error::Starved(format!(
            "no batch can be made: the budget of {} MiB is held by {}; drop or copy the batches you keep, or raise memory",
            mib(self.budget.cap_bytes()),
            self.budget.holders()
        ))
    }
}

/// Bytes of staging for the checkpoints of a sample: none where there are none, or no picture is cropped.
fn record_bytes(source: &dyn Source, layout: &Layout) -> u64 {
    let cropped = |spec: &FieldSpec| matches!(spec, FieldSpec::Image(image) if image.crop != Crop::None);
    let index = source.index().filter(|_| layout.columns.iter().any(|c| cropped(&c.spec)));
    index.and_then(Index::checkpoints).map_or(0, Checkpoints::room_bytes)
}

impl Plan {
    /// Plans an epoch beside what others hold of the budget.
    ///
    /// # Errors
    /// When the budget cannot hold the least plan, with each part of it.
    pub fn new(
        source: &dyn Source,
        layout: &Layout,
        config: &Config,
        budget: &Budget,
        last: &WeakSlab,
    ) -> Result<Self> {
        let cap = budget.cap_bytes();
        let mut plan = Self::smallest(source, layout, config, cap)?;
        let free = budget.arena().hole_bytes + budget.reclaimable_bytes();
        let (out, items) = plan.slots_of(last).map_or((0, 0), |slab| slab.out());
        // The slots of the last epoch, of which the consumer still holds some, are used again.
        let again = Slab::stride_bytes(plan.slot_bytes) * items as u64;
        let held = budget.usage().charged_bytes.saturating_sub(free).saturating_sub(again);
        plan.slots = plan.slots.max(out as u64);
        plan.widen(source, layout, config, cap, cap.saturating_sub(held), out as u64);
        Ok(plan)
    }

    /// Plans an epoch that has `cap` bytes for itself.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn alone(source: &dyn Source, layout: &Layout, config: &Config, cap: u64) -> Result<Self> {
        let mut plan = Self::smallest(source, layout, config, cap)?;
        plan.widen(source, layout, config, cap, cap, 0);
        Ok(plan)
    }

    /// The least that an epoch can run in.
    fn smallest(source: &dyn Source, layout: &Layout, config: &Config, cap: u64) -> Result<Self> {
        let extremes = source.extremes();
        let rows = config.split.most_rows();
        let reach = Reach::of(source, config, cap);
        let pictures: Vec<_> = layout.columns.iter().filter(|c| row::is_picture(c)).collect();
        let side = u32::try_from(extremes.side).unwrap_or(u32::MAX);
        let taking =
            pictures.iter().map(|c| row::small_bytes(c).saturating_add(row::rows_bytes(c, side))).max();
        // Pictures as large as they are take room in their batch.
        let whole_columns = pictures.iter().filter(|c| c.shape.is_none()).count() as u64;
        let picture = if pictures.is_empty() { 0 } else { extremes.scratch_bytes };
        let chunk =
            source.chunked().map_or(0, |c| c.sizes().chunk_bytes.saturating_add(c.sizes().library_bytes));
        let unpacking = layout.columns.iter().map(|column| match &column.kind {
            Kind::Compact { dtype, shape, codec } => compact::most_bytes(*dtype, shape, codec),
            _ => 0,
        });
        let unpacking = unpacking.max().unwrap_or(0);
        let sample = sample_room(source, &config.stores);
        let piece = |record: u64| Buddy::piece_bytes(sample + record);
        let mut plan = Self {
            slot_bytes: layout.slot_bytes(rows as usize),
            slots: 2,
            // Two pieces of the largest size: one is read while the other is decoded.
            staging_bytes: 2 * piece(0),
            record_bytes: 0,
            scratch_bytes: picture.saturating_add(taking.unwrap_or(0)).max(chunk).max(unpacking),
            picture_bytes: if whole_columns > 0 { extremes.decoded_bytes } else { 0 },
            whole_columns,
            source_bytes: source.library_bytes() + reach.library_bytes,
            kept_bytes: if pictures.is_empty() { 0 } else { config.workers as u64 * Decoders::KEPT_BYTES },
            groups: source.grouped().map_or(0, |_| config.order.runs_in_use(config.split.ranks_apart())),
            group_bytes: source.grouped().map_or(0, Grouped::group_bytes),
            index_bytes: WINDOW.min(source.len()) * LOCATED_BYTES,
            notes_bytes: config.observer.as_ref().map_or(0, |observer| rows * observer.note_bytes()),
            stack_bytes: (config.workers + reach.readers + config.map_threads) as u64 * STACK_USED_BYTES,
            mode: ReadMode::Plain,
            cache_bytes: 0,
            stores_bytes: config.stores.iter().map(|store| store.charged_bytes()).sum(),
            kept_samples_bytes: 0,
            readers: reach.readers,
        };
        // Pictures that can never fit fail one by one, as the policy says; the rest goes on. Beside the largest there must be
        // room for the rest of its batch, and whatever may take the place of another must fit in every row of two batches.
        let pictures = match config.on_error {
            OnError::Raise => None,
            OnError::Skip => Some(2 * whole_columns),
            OnError::Replace => Some(2 * rows * whole_columns),
        };
        if let Some(pictures) = pictures
            && plan.total().saturating_add(plan.picture_bytes.saturating_mul(pictures)) > cap
            && plan.without_scratch() < cap
        {
            let room = (cap - plan.without_scratch()).saturating_sub(ROUNDING_BYTES);
            plan.scratch_bytes = plan.scratch_bytes.min(room / 2).max(chunk).max(unpacking);
            plan.picture_bytes =
                plan.picture_bytes.min(room.saturating_sub(plan.scratch_bytes) / pictures.max(1));
        }
        if plan.least() > cap {
            return Err(plan.too_small(source, cap));
        }
        let record = record_bytes(source, layout);
        let more = 2 * (piece(record) - piece(0));
        if plan.least().saturating_add(more) <= cap {
            // Checkpoints are no need.
            (plan.record_bytes, plan.staging_bytes) = (record, plan.staging_bytes + more);
        }
        Ok(plan)
    }

    /// The slab of the last epoch, if the consumer still holds a slot of it and its slots fit this one.
    fn slots_of(&self, last: &WeakSlab) -> Option<Slab> {
        last.upgrade().filter(|slab| slab.item_bytes() == self.slot_bytes)
    }

    /// What the ragged columns of a batch take: samples of twice the mean size, or of the largest.
    fn ragged_bytes(&self, source: &dyn Source, layout: &Layout, rows: u64) -> u64 {
        let extremes = source.extremes();
        let mean = mean_bytes(source);
        let columns = layout.columns.iter().filter(|c| c.shape.is_none());
        let bytes = columns.map(|c| match c.spec {
            FieldSpec::Image(_) => self.picture_bytes,
            _ => extremes.sample_bytes.min(2 * mean),
        });
        rows.saturating_mul(bytes.sum())
    }

    /// Uses `left` of the `cap` bytes; `out` slots may stay with the consumer.
    fn widen(
        &mut self,
        source: &dyn Source,
        layout: &Layout,
        config: &Config,
        cap: u64,
        left: u64,
        out: u64,
    ) {
        let rows = config.split.most_rows();
        let reach = Reach::of(source, config, cap);
        // Each slot comes with the memory of its ragged columns.
        let ragged = self.ragged_bytes(source, layout, rows);
        let slot = (Slab::stride_bytes(self.slot_bytes) + self.notes_bytes).saturating_add(ragged);
        let used = |plan: &Self| plan.total().saturating_add(ragged.saturating_mul(plan.slots));
        let own = self.scratch_bytes.min(WORKER_SCRATCH_BYTES);
        // A worker takes an eighth more than it needs, in whole pages.
        let own = if own > 0 { own + own / 8 + 2 * PAGE_BYTES } else { 0 };
        let extra = (config.workers as u64).saturating_sub(1) * own;
        let room = |plan: &Self| left.saturating_sub(used(plan)).saturating_sub(extra);
        while self.staging_bytes < reach.staging_bytes && room(self) / 2 >= self.staging_bytes {
            self.staging_bytes *= 2;
        }
        // Small batches may as well be many: an eighth of what is left, so that a few can be kept.
        let small = (room(self) / 8 / slot).min(SLOTS_MOST);
        // Reads are of batches that have their slot: enough of them to have all readers reading.
        let batch = (rows * mean_bytes(source)).max(1);
        let least = 2 + (config.prefetch + config.map_threads) as u64;
        let wanted = match config.order.foresight() {
            // It may depend on what becomes of the batches before.
            Foresight::None => least,
            _ => (least + reach.ahead_bytes / batch).max(small),
        };
        let wanted = wanted.max(2 + out);
        while self.slots < wanted && room(self) >= slot {
            self.slots += 1;
        }
        // Whole pages are cached, whatever a sample takes of them.
        let objects = source.chunked().map_or(source.len(), Chunked::chunks);
        let rest = objects.saturating_mul(PAGE_BYTES + self.record_bytes);
        let dataset = source.extremes().total_bytes.saturating_add(rest);
        let direct = source.shards().first().is_some_and(|p| direct_works(p));
        let room_bytes = if source.is_remote() { 0 } else { room(self) / 2 };
        self.mode = read_mode(dataset, direct, room_bytes);
        if self.mode == ReadMode::Plain {
            self.cache_bytes = dataset;
        }
        let one_by_one = source.access() == Access::Random && source.index().is_some();
        if one_by_one || source.chunked().is_some() {
            // Each worker may have scratch of its own before the cache is full, and the shared one is there besides.
            // What the kernel holds of files it gives up when memory is short: it may not take all of the cache's.
            let left = room(self).saturating_sub(own + ROUNDING_BYTES);
            let kernel_bytes = source.kernel_bytes();
            let kernel_bytes =
                if source.chunked().is_some() { kernel_bytes.min(left / 2) } else { kernel_bytes };
            self.kept_samples_bytes = left.saturating_sub(kernel_bytes);
        }
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        let parts = [
            self.staging_bytes,
            self.scratch_bytes,
            self.source_bytes,
            self.kept_bytes,
            self.groups.saturating_mul(self.group_bytes.next_multiple_of(PAGE_BYTES)),
            self.index_bytes,
            self.stack_bytes,
            self.cache_bytes,
            self.stores_bytes,
        ];
        // Sizes come from headers, which may claim anything.
        parts
            .iter()
            .fold((Slab::stride_bytes(self.slot_bytes) + self.notes_bytes) * self.slots, |sum, &part| {
                sum.saturating_add(part)
            })
    }

    /// Stacks, and what is noted of the batches.
    fn telemetry_bytes(&self) -> u64 {
        self.stack_bytes + self.notes_bytes * self.slots
    }

    /// With what one batch takes besides, if it has the largest picture as large as it is.
    fn least(&self) -> u64 {
        self.total().saturating_add(self.whole_bytes())
    }

    fn whole_bytes(&self) -> u64 {
        self.picture_bytes.saturating_mul(self.whole_columns)
    }

    fn without_scratch(&self) -> u64 {
        Self { scratch_bytes: 0, ..self.clone() }.total()
    }

    fn too_small(&self, source: &dyn Source, cap: u64) -> Error {
        let batches = 2 * Slab::stride_bytes(self.slot_bytes);
        let parts = [
            (Account::Batch, batches.saturating_add(self.whole_bytes())),
            (Account::Staging, self.staging_bytes),
            (Account::Scratch, self.scratch_bytes),
            (Account::Library, self.source_bytes + self.kept_bytes),
            (Account::Decoded, self.groups.saturating_mul(self.group_bytes)),
            (Account::Index, self.index_bytes),
            (Account::Telemetry, self.telemetry_bytes()),
            (Account::CacheMemory, self.stores_bytes),
        ];
        let words: Vec<_> = parts.iter().map(|(a, b)| format!("{a} {}", mib(*b))).collect();
        let (account, most) = parts.into_iter().max_by_key(|p| p.1).unwrap_or((Account::Batch, 0));
        let Extremes { scratch_id, decoded_id, .. } = source.extremes();
        let fix = match account {
            Account::Scratch if source.chunked().is_some() => {
                "write the arrays again with smaller chunks: one has to be decoded as a whole".to_owned()
            }
            Account::Scratch => format!(
                "the picture that takes most is {}; shrink it, or pass on_error=\"skip\" to leave such pictures out",
                source.fetch_place(scratch_id)
            ),
            Account::Batch if self.whole_bytes() > batches => format!(
                "the largest picture is {}; give a size, as in tg.Image(224), or pass on_error=\"skip\" to leave such \
                 pictures out",
                source.fetch_place(decoded_id)
            ),
            Account::Batch if source.chunked().is_some() => {
                "lower batch_size, or use a smaller patch".to_owned()
            }
            Account::Batch => "lower batch_size".to_owned(),
            Account::Decoded if self.groups > 1 => format!(
                "shuffle less widely: a row can only be read by decoding its whole group, {} MiB for {} rows on average, and \
                 this order draws from {} groups at once; use shuffle=tg.Window(samples) with fewer samples, or repack the \
                 data for random access with `tidegate pack {} OUT`",
                mib(self.group_bytes),
                source.len() / (source.runs().len() as u64).max(1),
                self.groups,
                source.name()
            ),
            Account::Decoded | Account::Library if source.grouped().is_some() => {
                "write the files with smaller groups (row_group_size=100 for images)".to_owned()
            }
            Account::Telemetry => "use fewer workers, or smaller batches".to_owned(),
            Account::CacheMemory => "do without a disk cache".to_owned(),
            _ if source.chunked().is_some() => "write the arrays again with smaller chunks".to_owned(),
            _ => "split the largest samples".to_owned(),
        };
        Error::Config(format!(
            "memory of {} MiB is too small: this loader needs at least {} MiB ({}, in MiB); account {account} asks for \
             {} MiB; raise memory, or {fix}",
            mib(cap),
            mib(self.least()),
            words.join(", "),
            mib(most)
        ))
    }

    /// Takes what the plan says.
    ///
    /// # Errors
    /// When others hold the bytes, naming them.
    pub fn reserve(self, layout: &Layout, budget: &Budget, last: &WeakSlab) -> Result<Reserved> {
        let urgent = Priority::NextBatch;
        if let Some(slab) = self.slots_of(last) {
            // Before anything is taken: there may be less memory than in the last epoch.
            slab.shrink(self.slots);
        }
        let grants = vec![
            budget.try_acquire(Account::Library, self.source_bytes + self.kept_bytes, urgent)?,
            budget.try_acquire(Account::Index, self.index_bytes, urgent)?,
            budget.try_acquire(Account::Telemetry, self.telemetry_bytes(), urgent)?,
            budget.try_acquire(Account::CacheMemory, self.cache_bytes + self.stores_bytes, urgent)?,
        ];
        let scratch = match self.scratch_bytes {
            0 => None,
            bytes => Some(budget.try_block(Account::Scratch, bytes, urgent)?),
        };
        Ok(Reserved {
            groups: Groups::new(budget, layout, self.groups, self.group_bytes)?,
            staging: Buddy::new(budget, Account::Staging, self.staging_bytes, urgent)?,
            slots: match self.slots_of(last) {
                Some(slab) => {
                    slab.resize(budget, Account::Batch, self.slots, urgent)?;
                    slab
                }
                None => Slab::new(budget, Account::Batch, self.slot_bytes, self.slots, urgent)?,
            },
            scratch: Mutex::new(scratch),
            budget: budget.clone(),
            plan: self,
            _grants: grants,
        })
    }
}

/// The place of a sample in words, as far as the index can be read.
trait FetchPlace {
    fn fetch_place(&self, id: u64) -> String;
}

impl<S: SourceExt + ?Sized> FetchPlace for S {
    fn fetch_place(&self, id: u64) -> String {
        match self.locate(&[id]) {
            Ok(found) if !found.is_empty() => {
                let entry = &found[0].entry;
                format!("{} of {} × {} pixels", self.place(&found[0]), entry.width, entry.height)
            }
            _ => format!("sample {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_requests_are_made_as_fill_the_line() {
        let at_once = |ms, bytes| requests(Duration::from_millis(ms), bytes);
        assert_eq!(at_once(20, 1 << 20), 8 + 23);
        assert_eq!(at_once(40, 1 << 20), 8 + 47);
        // Never too few for what else a request takes, nor more than a store likes.
        assert_eq!([at_once(1, 1 << 20), at_once(100, 63 << 10), at_once(0, 0)], [16, 128, 16]);
    }
}
