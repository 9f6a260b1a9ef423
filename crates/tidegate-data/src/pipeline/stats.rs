//! What each stage did: time, samples, bytes.
//!
//! Flow: relaxed counters written by the threads -> [`StageStats`] for reports.
//! Memory: a few cache lines.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use crate::cache::{Rule, Tier};
use tidegate_source::ReadMode;

/// Counters of an epoch.
#[derive(Debug, Default)]
pub struct Stats {
    pub(super) delivered: AtomicU64,
    /// Reads that were in flight together with others of their thread.
    pub(super) together: AtomicU64,
    /// Samples whose checkpoints were read.
    pub(super) checkpoints: AtomicU64,
    /// Pictures that ended too early, and were filled.
    pub(super) filled: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) reads: AtomicU64,
    /// Of the bytes that were read, those of samples.
    pub(super) wanted_bytes: AtomicU64,
    /// Groups that were decoded.
    pub(super) groups: AtomicU64,
    /// Chunks that were decoded, and how often rows wanted one.
    pub(super) chunks: AtomicU64,
    pub(super) wanted_chunks: AtomicU64,
    /// Samples that came from the cache, and their bytes; of volumes chunks that needed no decoding.
    pub(super) hits: AtomicU64,
    pub(super) hit_bytes: AtomicU64,
    /// Samples that came from a disk cache, and their bytes.
    pub(super) disk_hits: AtomicU64,
    pub(super) disk_hit_bytes: AtomicU64,
    /// What a cache of this size could have had at most.
    pub(super) could_hit_bytes: AtomicU64,
    pub(super) read_ns: AtomicU64,
    pub(super) slot_wait_ns: AtomicU64,
    pub(super) staging_wait_ns: AtomicU64,
    pub(super) samples: AtomicU64,
    pub(super) work_ns: AtomicU64,
    pub(super) idle_ns: AtomicU64,
    pub(super) scratch_wait_ns: AtomicU64,
    pub(super) consumer_wait_ns: AtomicU64,
}

/// A reading of the counters: nanoseconds are summed over the threads of a stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct StageStats {
    pub batches: u64,
    pub samples: u64,
    /// Whether reads go over the network.
    pub remote: bool,
    /// Microseconds that a request to the store takes before its first byte.
    pub latency_us: Option<u64>,
    /// How files are read, where each read is one of a file.
    pub mode: Option<ReadMode>,
    pub reads: u64,
    /// Reads that were in flight together with others of their thread (io_uring).
    pub together: u64,
    /// Samples whose JPEG checkpoints were read.
    pub checkpoints: u64,
    /// Truncated pictures that were filled (`load_truncated`).
    pub filled: u64,
    pub read_bytes: u64,
    /// Bytes read for each hundred of samples: gaps between neighbours, and groups that this rank reads a part of or again.
    pub amplification_percent: u64,
    /// Of volumes: how often a row wanted a chunk, and how many were decoded.
    pub wanted_chunks: u64,
    /// See `wanted_chunks`.
    pub decoded_chunks: u64,
    /// Samples that came from the cache; of volumes chunks that did, or were on their way for another row.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Samples that came from a disk cache.
    pub disk_hits: u64,
    /// Their bytes.
    pub disk_hit_bytes: u64,
    /// What disk caches may take, and take.
    pub disk_limit_bytes: u64,
    /// See `disk_limit_bytes`.
    pub disk_held_bytes: u64,
    /// What any cache of this limit could have given in this epoch: where no sample comes twice, what it held before; where they do,
    /// what Belady's rule would have hit so far, or, if the order is not known ahead, in the whole epoch once it has ended.
    pub could_hit_bytes: u64,
    /// What the cache of samples in memory may take, and takes; of all processes together where they share it.
    pub cache_limit_bytes: u64,
    /// See `cache_limit_bytes`.
    pub cache_held_bytes: u64,
    /// How it is decided which samples are kept in memory.
    pub cache_rule: Option<Rule>,
    /// Whether what is kept in memory is decoded.
    pub cache_decoded: bool,
    /// How samples in memory are packed, if they are, and how much smaller that makes them in a hundred parts.
    pub cache_codec: Option<&'static str>,
    /// See `cache_codec`.
    pub cache_gain_percent: u64,
    pub read_ns: u64,
    pub slot_wait_ns: u64,
    pub staging_wait_ns: u64,
    pub work_ns: u64,
    pub idle_ns: u64,
    pub scratch_wait_ns: u64,
    pub consumer_wait_ns: u64,
    pub queued: u64,
    pub slots: u64,
    pub slots_free: u64,
    pub workers: u64,
    pub readers: u64,
}

pub(super) fn add(counter: &AtomicU64, since: std::time::Instant) {
    counter.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

impl Stats {
    /// A number that changes whenever anything moves.
    pub(super) fn movement(&self) -> u64 {
        let read = |c: &AtomicU64| c.load(Ordering::Relaxed);
        read(&self.reads).wrapping_add(read(&self.samples)).wrapping_add(read(&self.delivered))
    }

    fn amplification_percent(&self, shared: &Shared) -> u64 {
        let read = |c: &AtomicU64| u128::from(c.load(Ordering::Relaxed));
        let (whole, part) = match shared.source.grouped() {
            // Each group once for all of its samples, which is known when all were asked for.
            Some(_) if self.delivered.load(Ordering::Relaxed) < shared.config.split.batches() => (1, 1),
            Some(_) => {
                let groups = shared.source.runs().len() as u128;
                (read(&self.groups) * u128::from(shared.source.len()), groups * read(&self.samples))
            }
            None => (read(&self.read_bytes), read(&self.wanted_bytes)),
        };
        (100 * whole).checked_div(part).unwrap_or(100) as u64
    }

    pub(super) fn stages(&self, shared: &Shared) -> StageStats {
        let read = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let remote = shared.source.is_remote();
        let files = !shared.source.shards().is_empty() && !remote;
        let stores = || shared.config.stores.iter().map(|store| &**store);
        let disks = || stores().filter(|store| !store.in_memory());
        let common = || stores().filter(|store| store.in_memory());
        let codec = shared.samples.stored.codec();
        let decoded = shared.samples.rows().is_some();
        StageStats {
            cache_codec: codec.map(|(codec, _)| codec.name()),
            // What ranks keep in common is a fixed set; of volumes each keeps some alone.
            cache_rule: Some(if common().next().is_some() && shared.source.chunked().is_none() {
                Rule::Fixed
            } else {
                shared.samples.stored.rule()
            }),
            cache_decoded: decoded,
            cache_gain_percent: codec.map_or(100, |(_, gain)| (100.0 * gain) as u64),
            batches: read(&self.delivered),
            samples: read(&self.samples),
            remote,
            latency_us: shared.source.latency().map(|latency| latency.as_micros() as u64),
            mode: (files && shared.source.grouped().is_none()).then_some(shared.mode),
            reads: read(&self.reads),
            together: read(&self.together),
            checkpoints: read(&self.checkpoints),
            filled: read(&self.filled),
            read_bytes: read(&self.read_bytes),
            amplification_percent: self.amplification_percent(shared),
            wanted_chunks: read(&self.wanted_chunks),
            decoded_chunks: read(&self.chunks),
            hits: read(&self.hits),
            hit_bytes: read(&self.hit_bytes),
            disk_hits: read(&self.disk_hits),
            disk_hit_bytes: read(&self.disk_hit_bytes),
            disk_limit_bytes: disks().map(Tier::limit_bytes).sum(),
            disk_held_bytes: disks().map(Tier::held_bytes).sum(),
            could_hit_bytes: shared
                .samples
                .stored
                .optimum_bytes()
                .unwrap_or_else(|| read(&self.could_hit_bytes)),
            cache_limit_bytes: shared.samples.limit_bytes() + common().map(Tier::limit_bytes).sum::<u64>(),
            cache_held_bytes: shared.samples.held_bytes() + common().map(Tier::held_bytes).sum::<u64>(),
            read_ns: read(&self.read_ns),
            slot_wait_ns: read(&self.slot_wait_ns),
            staging_wait_ns: read(&self.staging_wait_ns),
            work_ns: read(&self.work_ns),
            idle_ns: read(&self.idle_ns),
            scratch_wait_ns: read(&self.scratch_wait_ns),
            consumer_wait_ns: read(&self.consumer_wait_ns),
            queued: shared.ring.len() as u64,
            slots: shared.reserved.slots.count() as u64,
            slots_free: shared.reserved.slots.free() as u64,
            workers: shared.config.workers as u64,
            readers: shared.reserved.plan.readers as u64,
        }
    }
}
