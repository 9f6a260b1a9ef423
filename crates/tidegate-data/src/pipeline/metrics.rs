//! What each stage of an epoch did: every metric with its unit and meaning, once.
//!
//! Flow: counters that the threads add to -> [`StageStats`], with gauges read at that time -> report, JSON, docs.
//! Memory: a cache line for each counter.

use tidegate_source::ReadMode;

use crate::cache::Rule;

tidegate_core::metrics! {
    /// Counters of an epoch.
    #[derive(Debug, Default)]
    pub struct Metrics;

    /// A reading of the metrics. Nanoseconds are summed over the threads of a stage.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
    pub struct StageStats {
        /// Batches that were delivered.
        counter batches: Count,
        /// Samples that were made.
        counter samples: Count,
        /// Whether reads go over the network.
        gauge remote: bool = Flag,
        /// Time that a request to the store takes before its first byte.
        gauge latency_us: Option<u64> = Microseconds,
        /// How files are read, where each read is one of a file.
        gauge mode: Option<ReadMode> = Text,
        /// Reads from the source.
        counter reads: Count,
        /// Reads that were in flight together with others of their thread (io_uring).
        counter together: Count,
        /// Samples whose JPEG checkpoints were read.
        counter checkpoints: Count,
        /// Truncated images that were filled (`load_truncated`).
        counter filled: Count,
        /// Bytes read from the source.
        counter read_bytes: Bytes,
        /// Bytes of samples among those read.
        internal wanted_bytes: Bytes,
        /// Groups of rows that were decoded.
        internal groups: Count,
        /// Bytes read for each hundred of samples: gaps between neighbours, and groups that this rank reads a part of or again.
        gauge amplification_percent: u64 = Percent,
        /// Of volumes: how often a row wanted a chunk.
        counter wanted_chunks: Count,
        /// Of volumes: chunks that were decoded.
        counter decoded_chunks: Count,
        /// Samples that came from the cache; of volumes chunks that did, or were in flight for another row.
        counter hits: Count,
        /// Bytes of the hits.
        counter hit_bytes: Bytes,
        /// Samples that came from a disk cache.
        counter disk_hits: Count,
        /// Bytes of the disk hits.
        counter disk_hit_bytes: Bytes,
        /// What disk caches may take.
        gauge disk_limit_bytes: u64 = Bytes,
        /// What disk caches take.
        gauge disk_held_bytes: u64 = Bytes,
        /// What any cache of this limit could have given in this epoch: where no sample comes twice, what it held before; where
        /// they do, what Belady's rule would have hit so far, or, if the order is not known ahead, in the whole epoch once it
        /// has ended.
        counter could_hit_bytes: Bytes,
        /// What the cache of samples in memory may take; of all processes together where they share it.
        gauge cache_limit_bytes: u64 = Bytes,
        /// What the cache of samples in memory takes.
        gauge cache_held_bytes: u64 = Bytes,
        /// How it is decided which samples are kept in memory.
        gauge cache_rule: Option<Rule> = Text,
        /// Whether what is kept in memory is decoded.
        gauge cache_decoded: bool = Flag,
        /// How samples in memory are packed, if they are.
        gauge cache_codec: Option<&'static str> = Text,
        /// How much smaller packing makes them, in a hundred parts.
        gauge cache_gain_percent: u64 = Percent,
        /// Time that readers spent reading.
        counter read_ns: Nanoseconds,
        /// Time that readers waited for a slot.
        counter slot_wait_ns: Nanoseconds,
        /// Time that readers waited for staging.
        counter staging_wait_ns: Nanoseconds,
        /// Time that workers spent at samples.
        counter work_ns: Nanoseconds,
        /// Time that workers waited for samples.
        counter idle_ns: Nanoseconds,
        /// Time that workers waited for the shared scratch.
        counter scratch_wait_ns: Nanoseconds,
        /// Time that the consumer waited for batches.
        counter consumer_wait_ns: Nanoseconds,
        /// Jobs that wait for a worker now.
        gauge queued: u64 = Count,
        /// Slots for batches.
        gauge slots: u64 = Count,
        /// Slots that are free now.
        gauge slots_free: u64 = Count,
        /// Workers that run.
        gauge workers: u64 = Count,
        /// Readers that run.
        gauge readers: u64 = Count,
    }
}

impl Metrics {
    /// A number that changes whenever anything moves.
    pub(super) fn movement(&self) -> u64 {
        self.reads.get().wrapping_add(self.samples.get()).wrapping_add(self.batches.get())
    }
}
