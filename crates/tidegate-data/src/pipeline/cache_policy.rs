//! What stays from one epoch to the next: slots that the consumer holds, and samples in memory.
//!
//! Flow: plan -> a limit -> samples as they are stored, or their decoded rows, whichever saves
//! more time.
//! Memory: that of the tiers (accounts `cache.memory` and `cache.compressed`), within the one
//! limit.
//!
//! A decoded row is larger than the file it came from, so fewer of them fit, but a cached row
//! needs no decoding either. Rows can be cached only where a sample is the same in each epoch: no
//! random crop, no mirroring. The first samples show what decoding and reading cost; until then
//! nothing is cached.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tidegate_core::sync::lock;

use serde::{Deserialize, Serialize};
use tidegate_core::memory::{Account, Budget, Grant, Priority, WeakSlab};

use super::config::Config;
use super::metrics::Metrics;
use super::plan::{mean_bytes, readers_most};
use crate::batch::Layout;
use crate::cache::{FutureAccesses, Memory, MemoryTier, Policy, ReuseCache, Tier};
use crate::{Error, Result};
use tidegate_order::Lookahead;
use tidegate_source::{Access, Chunked, SizeBounds, Source};

/// Samples after which their cost is known.
const SEEN_LEAST: u64 = 256;

/// In which form samples are cached in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Whichever saves more time.
    #[default]
    Auto,
    /// Their bytes as they are stored.
    Stored,
    /// The rows that are made of them.
    Decoded,
    /// Not at all: each is read again.
    Nothing,
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Retained {
    /// The slots of the last epoch, as long as the consumer holds a batch of it.
    pub slots: WeakSlab,
    pub(super) samples: Arc<EpochCache>,
    /// The memory of the chunk index.
    indexes: Option<Arc<Grant>>,
}

/// Memory for the chunk index: all of it, if that is at most a sixteenth of the budget.
fn index_room(chunked: &dyn Chunked, budget: &Budget) -> Result<Grant> {
    let sizes = chunked.sizes();
    let bytes = sizes.index_bytes.min((budget.cap_bytes() / 16).max(sizes.index_least_bytes));
    let grant = budget.try_acquire(Account::Index, bytes, Priority::NextBatch)?;
    chunked.set_index_bytes(bytes);
    Ok(grant)
}

impl Retained {
    /// An empty cache for a source under a budget, by what is known of the order.
    ///
    /// # Errors
    /// [`Error::Config`] if decoded rows are asked for that differ in each epoch.
    pub fn new(
        source: &dyn Source,
        layout: &Layout,
        budget: &Budget,
        lookahead: Lookahead,
        keep: Keep,
    ) -> Result<Self> {
        let SizeBounds { total_bytes, sample_bytes, .. } = source.size_bounds();
        let chunked = source.chunked();
        let count = chunked.map_or(source.len(), Chunked::chunks);
        let indexes = chunked.map(|chunked| index_room(chunked, budget)).transpose()?;
        let stored: Arc<dyn MemoryTier> = match lookahead {
            // Chunks repeat in any order of patches.
            Lookahead::Permutation if chunked.is_some() => ReuseCache::new(budget, total_bytes, count, true),
            Lookahead::Permutation => Memory::with_packing(
                budget,
                total_bytes,
                count,
                sample_bytes,
                readers_most(source.latency(), mean_bytes(source)),
            ),
            _ => ReuseCache::new(budget, total_bytes, count, lookahead == Lookahead::Listed),
        };
        let why_not = if lookahead != Lookahead::Permutation {
            Some("samples of a sampler are kept as they are stored")
        } else if source.access() != Access::Random || source.index().is_none() {
            Some("this source is not read a sample at a time")
        } else {
            layout.varies()
        };
        let keep = match (keep, why_not) {
            (Keep::Decoded, Some(why)) => {
                return Err(Error::Config(format!("cache=\"decoded\", but {why}: leave cache out")));
            }
            // Without images there is nothing to decode.
            (Keep::Auto, _) if why_not.is_some() || !layout.has_images() => Keep::Stored,
            (keep, _) => keep,
        };
        let rows_bytes = count.saturating_mul(layout.row_bytes());
        let rows = matches!(keep, Keep::Auto | Keep::Decoded).then(|| Memory::new(budget, rows_bytes, count));
        let sizes = Sizes { samples: count, stored_bytes: total_bytes, rows_bytes };
        let keep = AtomicU8::new(keep as u8);
        let samples = EpochCache { stored, rows, sizes, keep, limit: Mutex::new(0), seen: AtomicU64::new(0) };
        Ok(Self { slots: WeakSlab::default(), samples: Arc::new(samples), indexes: indexes.map(Arc::new) })
    }

    /// The samples in memory.
    pub(super) fn cache(&self) -> Arc<EpochCache> {
        Arc::clone(&self.samples)
    }

    /// Divides what the plan leaves for caches in memory between this process and the processes of
    /// the machine, tells the cache what is coming, and says how many bytes it could hit in an
    /// epoch.
    pub(super) fn divide(
        &self,
        source: &dyn Source,
        config: &Config,
        budget: &Budget,
        left_bytes: u64,
        coming: impl FnOnce() -> (FutureAccesses, u64),
    ) -> u64 {
        let shared = config.stores.iter().find(|store| store.in_memory());
        // What all processes share is a fixed set, and what each keeps alone follows Belady's rule
        // where objects come again: few processes hit more with this, many with that, and halves
        // of both are never far from the better one.
        let alone_bytes = match shared {
            Some(_) if source.chunked().is_some() => left_bytes / 2,
            Some(_) => 0,
            None => left_bytes,
        };
        self.set_limit(alone_bytes);
        let left = left_bytes - if shared.is_some() { alone_bytes } else { 0 };
        let in_memory = budget.shared_by().map_or(left, |node| node.left_bytes(left));
        for store in &config.stores {
            // Those on disk look again for space; what several processes keep goes when one of
            // them lacks it, not before.
            store.set_limit(if store.in_memory() {
                in_memory.max(store.held_bytes())
            } else {
                store.limit_bytes()
            });
        }
        let (coming, count) = coming();
        let samples = &self.samples;
        samples.stored.set_future(coming, count);
        match shared.map_or(samples.held_bytes(), |store| store.held_bytes()) {
            0 => 0,
            // Told access by access.
            _ if alone_bytes > 0 && samples.stored.policy() != Policy::Fixed => 0,
            _ => {
                let gain = samples.stored.codec().map_or(1.0, |(_, gain)| gain);
                ((in_memory as f64 * gain) as u64).min(samples.total_bytes())
            }
        }
    }

    /// Bytes of the budget that it holds whatever is cached.
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        self.indexes.as_ref().map_or(0, |grant| grant.bytes())
    }

    /// The bytes that cached samples may take.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.samples.limit_bytes()
    }

    /// Changes the limit; samples beyond a lower one are evicted at once.
    pub fn set_limit(&self, bytes: u64) {
        self.samples.set_limit(bytes);
    }
}

/// Samples in memory, in one of two forms.
#[derive(Debug)]
pub(super) struct EpochCache {
    /// As they are stored.
    pub(super) stored: Arc<dyn MemoryTier>,
    /// As rows, where they may be.
    rows: Option<Arc<Memory>>,
    sizes: Sizes,
    /// A [`Keep`].
    keep: AtomicU8,
    /// What the chosen form may take.
    limit: Mutex<u64>,
    seen: AtomicU64,
}

/// Sizes of all samples of a source.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    samples: u64,
    stored_bytes: u64,
    rows_bytes: u64,
}

/// The time that a sample costs an epoch, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Costs {
    reading: f64,
    decoding: f64,
}

impl Costs {
    fn new(metrics: &Metrics, readers: usize, workers: usize) -> Self {
        let samples = metrics.samples.get().max(1) as f64;
        Self {
            reading: metrics.read_ns.get() as f64 / samples / readers.max(1) as f64,
            decoding: metrics.work_ns.get() as f64 / samples / workers.max(1) as f64,
        }
    }

    /// Whether rows in `limit` bytes leave less work than samples as they are stored: in the
    /// slower of reading and decoding, which run at the same time, and if that is equal in both
    /// together.
    fn rows_are_better(self, limit: u64, sizes: Sizes) -> bool {
        let missing = |bytes: u64| 1.0 - (limit as f64 / bytes.max(1) as f64).min(1.0);
        let (stored, rows) = (missing(sizes.stored_bytes), missing(sizes.rows_bytes));
        let left = |reading: f64, decoding: f64| {
            let (reading, decoding) = (reading * self.reading, decoding * self.decoding);
            (reading.max(decoding), reading + decoding)
        };
        let (stored, rows) = (left(stored, 1.0), left(rows, rows));
        // Within a twentieth they count as equal.
        rows.0 < 0.95 * stored.0 || (rows.0 < 1.05 * stored.0 && rows.1 < stored.1)
    }
}

impl EpochCache {
    fn limit(&self) -> MutexGuard<'_, u64> {
        lock(&self.limit)
    }

    fn is(&self, keep: Keep) -> bool {
        self.keep.load(Ordering::Acquire) == keep as u8
    }

    /// Rows, if these are kept.
    pub(super) fn rows(&self) -> Option<&Memory> {
        self.rows.as_deref().filter(|_| self.is(Keep::Decoded))
    }

    /// The tier in use.
    fn tier(&self) -> Option<&dyn Tier> {
        match self.rows() {
            Some(rows) => Some(rows),
            None => self.is(Keep::Stored).then_some(&*self.stored as &dyn Tier),
        }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.tier().map_or_else(|| *self.limit(), Tier::limit_bytes)
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.tier().map_or(0, Tier::held_bytes)
    }

    /// Bytes of all samples, in the form in which they are cached.
    pub(super) fn total_bytes(&self) -> u64 {
        if self.rows().is_some() { self.sizes.rows_bytes } else { self.sizes.stored_bytes }
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        let mut limit = self.limit();
        *limit = bytes;
        if let Some(tier) = self.tier() {
            tier.set_limit(bytes);
        }
    }

    /// One more sample was made: after the first ones the form is chosen.
    pub(super) fn made(&self, metrics: &Metrics, readers: usize, workers: usize) {
        if !self.is(Keep::Auto) {
            return;
        }
        let seen = 1 + self.seen.fetch_add(1, Ordering::Relaxed);
        if seen != SEEN_LEAST.min(self.sizes.samples / 8).max(1) {
            return;
        }
        let limit = self.limit();
        let rows = Costs::new(metrics, readers, workers).rows_are_better(*limit, self.sizes);
        let keep = if rows { Keep::Decoded } else { Keep::Stored };
        self.keep.store(keep as u8, Ordering::Release);
        if let Some(tier) = self.tier() {
            tier.set_limit(*limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_leaves_less_to_do_is_kept() {
        let sizes = Sizes { samples: 1000, stored_bytes: 100 << 20, rows_bytes: 150 << 20 };
        let better =
            |reading, decoding, limit: u64| Costs { reading, decoding }.rows_are_better(limit << 20, sizes);
        // Decoding is what takes long.
        assert!(better(50.0, 500.0, 20) && better(50.0, 500.0, 150));
        // A slow store: two thirds of the rows would leave more to fetch.
        assert!(!better(5000.0, 500.0, 100) && !better(5000.0, 500.0, 20));
        // Once all rows fit, nothing is left to do.
        assert!(better(5000.0, 500.0, 150));
        // As slow as each other: stored samples would leave the decoding.
        assert!(better(500.0, 500.0, 75));
        assert!(!better(500.0, 0.0, 75));
    }
}
