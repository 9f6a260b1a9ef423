//! A reading of an epoch's metrics: the counters, with gauges of cache, tiers, slots and threads.
//!
//! Flow: `Pipeline::stats` -> [`StageStats`].
//! Memory: holds none.

use super::handles::Handles;
use super::metrics::{Metrics, StageStats};
use crate::cache::{Policy, Tier};

/// Reads all metrics; `queued` jobs wait for a worker.
pub(super) fn read(h: &Handles, queued: usize) -> StageStats {
    let (spec, slots) = (&h.spec, &h.reserved.slots);
    let remote = spec.source.is_remote();
    let files = !spec.source.shards().is_empty() && !remote;
    let stores = || spec.config.stores.iter().map(|store| &**store);
    let disks = || stores().filter(|store| !store.in_memory());
    let shared = || stores().filter(|store| store.in_memory());
    let codec = h.cache.stored.codec();
    // What ranks share is a fixed set; of volumes each keeps some alone.
    let fixed = shared().next().is_some() && spec.source.chunked().is_none();
    let counters = h.metrics.snapshot();
    StageStats {
        remote,
        latency_us: spec.source.latency().map(|latency| latency.as_micros() as u64),
        mode: (files && spec.source.grouped().is_none()).then_some(spec.mode),
        amplification_percent: amplification_percent(h, &h.metrics),
        disk_limit_bytes: disks().map(Tier::limit_bytes).sum(),
        disk_held_bytes: disks().map(Tier::held_bytes).sum(),
        could_hit_bytes: h.cache.stored.optimum_bytes().unwrap_or(counters.could_hit_bytes),
        cache_limit_bytes: h.cache.limit_bytes() + shared().map(Tier::limit_bytes).sum::<u64>(),
        cache_held_bytes: h.cache.held_bytes() + shared().map(Tier::held_bytes).sum::<u64>(),
        cache_rule: Some(if fixed { Policy::Fixed } else { h.cache.stored.policy() }),
        cache_decoded: h.cache.rows().is_some(),
        cache_codec: codec.map(|(codec, _)| codec.name()),
        cache_gain_percent: codec.map_or(100, |(_, gain)| (100.0 * gain) as u64),
        queued: queued as u64,
        slots: slots.count() as u64,
        slots_free: slots.free() as u64,
        workers: h.control.workers() as u64,
        readers: h.control.readers() as u64,
        ..counters
    }
}

fn amplification_percent(h: &Handles, metrics: &Metrics) -> u64 {
    let source = &h.spec.source;
    let read = |counter: u64| u128::from(counter);
    let (whole, part) = match source.grouped() {
        // Each group once for all of its samples, which is known when all were asked for.
        Some(_) if metrics.batches.get() < h.spec.config.split.batches() => (1, 1),
        Some(_) => {
            let groups = source.shard_lengths().len() as u128;
            (read(metrics.groups.get()) * read(source.len()), groups * read(metrics.samples.get()))
        }
        None => (read(metrics.read_bytes.get()), read(metrics.wanted_bytes.get())),
    };
    (100 * whole).checked_div(part).unwrap_or(100) as u64
}
