//! The plan of an epoch's memory: what is reserved before the first thread starts. Pure: facts and
//! a cap in, a plan out.
//!
//! Flow: [`Facts`] (all I/O) + cap -> [`Plan`] (no I/O) -> [`Reserved`] (`reserve`); a refusal in
//! words (`explain`).
//! Memory: decides all of it, takes none.
//!
//! The least plan: two batches and those that the consumer keeps, and in one of them the largest
//! image if it is wanted as large as it is; two reads of the largest sample; scratch for the
//! largest image once. What the budget has beyond goes to scratch for the other workers, more
//! staging, more batches, in this order, and the rest to the cache.

mod explain;
mod facts;
mod reserve;

use std::time::Duration;

use tidegate_core::memory::{Buddy, PAGE_BYTES, Slab};
use tidegate_source::ReadMode;
use tidegate_source::read::read_mode;

pub use self::explain::TooSmall;
pub use self::facts::Facts;
pub(super) use self::facts::{WINDOW, largest_read_bytes, mean_bytes};
pub use self::reserve::Reserved;

/// The stack of each thread: address space, of which less than 96 KiB is ever touched.
pub const STACK_BYTES: u64 = 2 << 20;
/// What is touched of it.
pub(super) const STACK_USED_BYTES: u64 = 96 << 10;
/// Slots beyond which more are of no use.
const SLOTS_MOST: u64 = 64;
/// Staging that keeps a disk busy.
const STAGING_WANTED_BYTES: u64 = 8 << 20;
/// Threads that read files at most.
const LOCAL_READERS: u64 = 8;
/// Requests in flight to a store, the fewest and the most, and the line of 10 Gbit/s that they are
/// to fill.
const REMOTE_READERS: std::ops::RangeInclusive<u64> = 16..=128;
const LINE_BYTES_PER_S: f64 = 1.25e9;
/// What the connection of each takes, what each may read, and staging that keeps them busy.
const REMOTE_BYTES: u64 = 512 << 10;
const REMOTE_READ_BYTES: u64 = 1 << 20;
const REMOTE_STAGING_BYTES: u64 = 64 << 20;
/// How images that are too large can be left out, whatever the budget.
pub(super) const LEAVE_OUT: &str =
    "bound images with tg.Image(max_pixels=N), and on_error= leaves out or replaces larger ones";
/// What decoding an image within a bound of pixels is given, if there is that much: a few times
/// what most formats take. Long and narrow images take most for each pixel.
const SCRATCH_PER_PIXEL: u64 = 64;
const SCRATCH_PER_IMAGE: u64 = 16 << 20;
/// What all blocks together take beyond what was asked for: whole pages.
const ROUNDING_BYTES: u64 = 16 * PAGE_BYTES;
/// Scratch that is kept free for each further worker, unless the largest image needs less.
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
    /// Scratch for the largest image, with what libraries take at most meanwhile.
    pub scratch_bytes: u64,
    /// Whether scratch is for an image within `max_pixels`, where the index has larger ones.
    pub bounded: bool,
    /// The largest image that is delivered as large as it is.
    pub image_bytes: u64,
    /// Columns of such images.
    pub whole_columns: u64,
    /// Such images that must fit at once.
    pub images_at_once: u64,
    /// What the source's own decompressors take.
    pub source_bytes: u64,
    /// What the workers' decoders keep between images.
    pub kept_bytes: u64,
    /// Decoded groups of rows that the order has in use at once.
    pub groups: u64,
    /// Bytes of each of them.
    pub group_bytes: u64,
    /// The index window.
    pub index_bytes: u64,
    /// Stacks.
    pub stack_bytes: u64,
    /// What an observer notes of a batch.
    pub notes_bytes: u64,
    /// How files are read.
    pub mode: ReadMode,
    /// Page cache of a dataset that is kept there.
    pub cache_bytes: u64,
    /// What tiers behind the memory take of it: tables, and what is not yet written back.
    pub stores_bytes: u64,
    /// What is left for the cache in memory: taken as samples come, and given up when others need
    /// it.
    pub kept_samples_bytes: u64,
    /// Reading threads.
    pub readers: usize,
}

/// What others hold of a budget when an epoch starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes that cannot be had.
    pub bytes: u64,
    /// Slots of the last epoch that the consumer still has and that fit this one.
    pub slots: u64,
}

/// The threads that may read a source of such latency and mean sample size at once.
pub(super) fn readers_most(latency: Option<Duration>, mean_bytes: u64) -> u64 {
    latency.map_or(LOCAL_READERS, |latency| requests(latency, mean_bytes))
}

/// As many requests of `bytes` each as are in flight while the line is full, by Little's law; and
/// a few for the overhead of a request.
fn requests(latency: Duration, bytes: u64) -> u64 {
    let at_once = latency.as_secs_f64() * LINE_BYTES_PER_S / bytes.max(1) as f64;
    (at_once as u64 + 8).clamp(*REMOTE_READERS.start(), *REMOTE_READERS.end())
}

/// How far ahead a source is read: over a network a request takes long, and many in flight are as
/// fast as one.
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
    fn new(facts: &Facts, cap: u64) -> Self {
        let Some(latency) = facts.latency else {
            let readers = match facts.chunks {
                _ if facts.sequential => 1,
                // Files of a chunk each cannot be read ahead: several reads at once make up for
                // it.
                Some(_) => LOCAL_READERS,
                None => facts.workers.clamp(2, LOCAL_READERS),
            };
            let readers = readers as usize;
            return Self { readers, library_bytes: 0, staging_bytes: STAGING_WANTED_BYTES, ahead_bytes: 0 };
        };
        // No more than take an eighth of the budget with what they read.
        let most = cap / 8 / (REMOTE_BYTES + facts.extremes.sample_bytes);
        let chunk = facts.chunks.map(|(sizes, _)| sizes.chunk_bytes / 2);
        let wanted = requests(latency, chunk.unwrap_or(facts.mean_bytes));
        let readers = if facts.sequential { 1 } else { wanted.min(most.max(2)) };
        Self {
            readers: readers as usize,
            library_bytes: readers * REMOTE_BYTES,
            staging_bytes: REMOTE_STAGING_BYTES,
            ahead_bytes: (readers * REMOTE_READ_BYTES).min(REMOTE_STAGING_BYTES),
        }
    }
}

impl Plan {
    /// Plans an epoch under `cap` bytes, of which others hold some.
    ///
    /// # Errors
    /// When `cap` cannot hold the least plan.
    pub fn new(facts: &Facts, cap: u64, held: impl FnOnce(&Self) -> Held) -> Result<Self, TooSmall> {
        let mut plan = Self::smallest(facts, cap)?;
        let held = held(&plan);
        plan.slots = plan.slots.max(held.slots);
        plan.widen(facts, cap, cap.saturating_sub(held.bytes), held.slots);
        Ok(plan)
    }

    /// The least that an epoch can run in.
    fn smallest(facts: &Facts, cap: u64) -> Result<Self, TooSmall> {
        let reach = Reach::new(facts, cap);
        let image = if facts.image_columns == 0 { 0 } else { facts.extremes.scratch_bytes };
        let least_scratch = facts.chunk_scratch_bytes().max(facts.unpacking_bytes);
        let piece = |record: u64| Buddy::piece_bytes(facts.largest_read_bytes + record);
        let threads = facts.workers + reach.readers as u64 + facts.map_threads;
        let mut plan = Self {
            slot_bytes: facts.slot_bytes,
            slots: 2 + facts.held_batches,
            // Two pieces of the largest size: one is read while the other is decoded.
            staging_bytes: 2 * piece(0),
            record_bytes: 0,
            scratch_bytes: image.saturating_add(facts.resize_bytes).max(least_scratch),
            image_bytes: if facts.whole_columns > 0 { facts.largest_image_bytes() } else { 0 },
            whole_columns: facts.whole_columns,
            images_at_once: facts.images_at_once(),
            bounded: false,
            source_bytes: facts.library_bytes + reach.library_bytes,
            kept_bytes: facts.decoders_bytes(facts.workers),
            groups: facts.groups_in_use,
            group_bytes: facts.group_bytes.unwrap_or(0),
            index_bytes: facts.index_bytes(),
            notes_bytes: facts.notes_bytes,
            stack_bytes: threads * STACK_USED_BYTES,
            mode: ReadMode::Plain,
            cache_bytes: 0,
            stores_bytes: facts.stores_bytes,
            kept_samples_bytes: 0,
            readers: reach.readers,
        };
        plan.bound_scratch(facts, cap, least_scratch);
        if plan.least() > cap {
            return Err(TooSmall::new(plan, cap));
        }
        let more = 2 * (piece(facts.checkpoint_bytes) - piece(0));
        if plan.least().saturating_add(more) <= cap {
            // Checkpoints are no need.
            (plan.record_bytes, plan.staging_bytes) = (facts.checkpoint_bytes, plan.staging_bytes + more);
        }
        Ok(plan)
    }

    /// The index has what the largest image takes, and not what the largest takes that `max_pixels`
    /// lets through. If that is not the same, a worker has what is left, or far more than images of
    /// that bound take. One that takes still more ends the epoch.
    fn bound_scratch(&mut self, facts: &Facts, cap: u64, least_scratch: u64) {
        let largest = facts.largest_image_bytes();
        if largest < facts.extremes.decoded_bytes {
            let left = cap.saturating_sub(self.least() - self.scratch_bytes).saturating_sub(ROUNDING_BYTES);
            // The other half is for further images of a batch that are as large as they are.
            let left = if self.whole_columns > 0 { left / 2 } else { left };
            let most = (largest / 3).saturating_mul(SCRATCH_PER_PIXEL).saturating_add(SCRATCH_PER_IMAGE);
            let most = most.saturating_add(facts.resize_bytes);
            self.scratch_bytes = self.scratch_bytes.min(left).min(most).max(least_scratch);
            self.bounded = true;
        }
    }

    /// What the ragged columns of a batch take: samples of twice the mean size, or of the largest.
    fn ragged_bytes(&self, facts: &Facts) -> u64 {
        let other = facts.extremes.sample_bytes.min(2 * facts.mean_bytes);
        let row = self.whole_bytes().saturating_add(other.saturating_mul(facts.ragged_columns));
        facts.rows.saturating_mul(row)
    }

    /// Uses `left` of the `cap` bytes; `out` slots may stay with the consumer.
    fn widen(&mut self, facts: &Facts, cap: u64, left: u64, out: u64) {
        let reach = Reach::new(facts, cap);
        // Each slot comes with the memory of its ragged columns.
        let ragged = self.ragged_bytes(facts);
        let slot = (Slab::stride_bytes(self.slot_bytes) + self.notes_bytes).saturating_add(ragged);
        let used = |plan: &Self| plan.total().saturating_add(ragged.saturating_mul(plan.slots));
        let own = self.scratch_bytes.min(WORKER_SCRATCH_BYTES);
        // A worker takes an eighth more than it needs, in whole pages.
        let own = if own > 0 { own + own / 8 + 2 * PAGE_BYTES } else { 0 };
        let extra = facts.workers.saturating_sub(1) * own;
        let room = |plan: &Self| left.saturating_sub(used(plan)).saturating_sub(extra);
        while self.staging_bytes < reach.staging_bytes && room(self) / 2 >= self.staging_bytes {
            self.staging_bytes *= 2;
        }
        // Small batches may as well be many: an eighth of what is left, so that a few can be kept.
        let small = (room(self) / 8 / slot).min(SLOTS_MOST);
        // Reads are of batches that have their slot: enough of them to have all readers reading.
        let batch = (facts.rows * facts.mean_bytes).max(1);
        let least = 2 + facts.held_batches + facts.prefetch + facts.map_threads;
        // An order that is not known may depend on what becomes of the batches before.
        let known = (least + reach.ahead_bytes / batch).max(small + facts.held_batches);
        let wanted = if facts.order_known { known } else { least }.max(2 + out);
        while self.slots < wanted && room(self) >= slot {
            self.slots += 1;
        }
        // Whole pages are cached, whatever a sample takes of them.
        let rest = facts.objects().saturating_mul(PAGE_BYTES + self.record_bytes);
        let dataset = facts.extremes.total_bytes.saturating_add(rest);
        let room_bytes = if facts.latency.is_some() { 0 } else { room(self) / 2 };
        self.mode = read_mode(dataset, facts.direct_reads, room_bytes);
        if self.mode == ReadMode::Plain {
            self.cache_bytes = dataset;
        }
        if facts.one_by_one || facts.chunks.is_some() {
            // Each worker may have scratch of its own before the cache is full, and the shared one
            // is there too. What the kernel holds of files it gives up when memory is short:
            // it may not take all of the cache's.
            let left = room(self).saturating_sub(own + ROUNDING_BYTES);
            let chunked = facts.chunks.is_some();
            let kernel_bytes = if chunked { facts.kernel_bytes.min(left / 2) } else { facts.kernel_bytes };
            self.kept_samples_bytes = left.saturating_sub(kernel_bytes);
        }
    }

    /// Bytes in all, without what the cache in memory may take.
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
        let slots = (Slab::stride_bytes(self.slot_bytes) + self.notes_bytes) * self.slots;
        parts.iter().fold(slots, |sum, &part| sum.saturating_add(part))
    }

    /// Stacks, and what is noted of the batches.
    fn telemetry_bytes(&self) -> u64 {
        self.stack_bytes + self.notes_bytes * self.slots
    }

    /// With what one batch also takes, if it has the largest image as large as it is.
    fn least(&self) -> u64 {
        self.total().saturating_add(self.images_bytes())
    }

    /// The images that must fit at once, if all are as large as the largest.
    fn images_bytes(&self) -> u64 {
        self.image_bytes.saturating_mul(self.images_at_once)
    }

    /// The largest image, in each of the columns that have it as large as it is.
    fn whole_bytes(&self) -> u64 {
        self.image_bytes.saturating_mul(self.whole_columns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_source::{ChunkSizes, SizeBounds};

    use super::*;
    use crate::pipeline::OnError;

    #[test]
    fn as_many_requests_are_made_as_fill_the_line() {
        let at_once = |ms, bytes| requests(Duration::from_millis(ms), bytes);
        assert_eq!(at_once(20, 1 << 20), 8 + 23);
        assert_eq!(at_once(40, 1 << 20), 8 + 47);
        // Never too few for what else a request takes, nor more than a store likes.
        assert_eq!([at_once(1, 1 << 20), at_once(100, 63 << 10), at_once(0, 0)], [16, 128, 16]);
    }

    fn extremes() -> impl Strategy<Value = SizeBounds> {
        (1u64..1 << 40, 1u64..1 << 26, 0u64..1 << 28, 0u64..1 << 28).prop_map(
            |(total, sample, scratch, decoded)| SizeBounds {
                total_bytes: total.max(sample),
                sample_bytes: sample,
                scratch_bytes: scratch,
                decoded_bytes: decoded,
                side: 4000,
                ..SizeBounds::default()
            },
        )
    }

    fn on_error() -> impl Strategy<Value = OnError> {
        prop_oneof![Just(OnError::Raise), Just(OnError::Skip), Just(OnError::Replace)]
    }

    prop_compose! {
        fn facts()(
            extremes in extremes(), samples in 1u64..1 << 32, rows in 1u64..1024, slot_bytes in 1u64..1 << 28,
            images in 0u64..3, whole in 0u64..2, ragged in 0u64..3, workers in 1u64..32, prefetch in 0u64..8,
            map_threads in 0u64..4, held_batches in 0u64..4, on_error in on_error(), order_known: bool, direct_reads: bool,
            latency in prop::option::of(1u64..200), lane in 0usize..3, stores_bytes in 0u64..1 << 22,
            checkpoint_bytes in prop_oneof![Just(0), 512u64..1 << 16],
        ) -> Facts {
            let chunk = ChunkSizes {
                chunk_bytes: extremes.sample_bytes, library_bytes: 1 << 16, ..ChunkSizes::default()
            };
            Facts {
                samples, extremes, mean_bytes: (extremes.total_bytes / samples).max(1),
                largest_read_bytes: extremes.sample_bytes.next_multiple_of(4096) + 4096,
                latency: latency.map(Duration::from_millis),
                sequential: false, one_by_one: lane == 0,
                chunks: (lane == 1).then_some((chunk, samples)),
                group_bytes: (lane == 2).then_some(extremes.sample_bytes), groups_in_use: u64::from(lane == 2) * 3,
                direct_reads, checkpoint_bytes, rows, slot_bytes,
                image_columns: images.max(whole), whole_columns: whole, ragged_columns: ragged,
                workers, prefetch, held_batches, map_threads, on_error, order_known, stores_bytes,
                ..Facts::default()
            }
        }
    }

    proptest! {
        /// What the plan takes, with what the cache may take, is never above the cap, whatever
        /// others hold of it.
        #[test]
        fn a_plan_is_never_above_the_cap(facts in facts(), cap in 0u64..1 << 34, held in 0u64..1 << 34, out in 0u64..4) {
            if let Ok(plan) = Plan::new(&facts, cap, |_| Held::default()) {
                prop_assert!(plan.total() <= cap, "{plan:?} of {cap}");
                prop_assert!(plan.total().saturating_add(plan.kept_samples_bytes) <= cap, "{plan:?} of {cap}");
            }
            // Beside others it takes no more than the least plan, if they leave less than that.
            if let Ok(plan) = Plan::new(&facts, cap, |_| Held { bytes: held, slots: out }) {
                let slots = (Slab::stride_bytes(plan.slot_bytes) + plan.notes_bytes) * plan.slots.saturating_sub(2 + facts.held_batches);
                let least = Plan::smallest(&facts, cap).map_or(0, |least| least.total());
                prop_assert!(plan.total() <= cap.saturating_sub(held).max(least + slots), "{plan:?} of {cap} - {held}");
            }
        }

        /// A larger cap never refuses what a smaller one allows, and never gives less staging, nor
        /// less in all.
        #[test]
        fn a_plan_is_monotone_in_the_cap(facts in facts(), cap in 0u64..1 << 34, more in 0u64..1 << 34) {
            let plan = |cap| Plan::new(&facts, cap, |_| Held::default());
            if let Ok(small) = plan(cap) {
                let large = plan(cap + more);
                let Ok(large) = large else { return Err(TestCaseError::fail(format!("{large:?}"))) };
                prop_assert!(large.staging_bytes >= small.staging_bytes && large.readers >= small.readers);
                prop_assert!(large.scratch_bytes >= small.scratch_bytes && large.image_bytes >= small.image_bytes);
                prop_assert!(large.record_bytes >= small.record_bytes && large.cache_bytes >= small.cache_bytes);
            } else {
                let least = plan(cap).err().map_or(0, |refused| refused.least_bytes());
                prop_assert!(least > cap);
            }
        }
    }
}
