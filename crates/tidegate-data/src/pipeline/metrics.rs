//! What each stage of an epoch did: every metric with its unit and meaning, once.
//!
//! Flow: counters that the threads add to -> [`StageStats`], with gauges read at that time ->
//! report, JSON, docs.
//! Memory: a cache line for each counter.

use tidegate_source::ReadMode;

use crate::cache::Policy;

tidegate_core::metrics! {
    /// Counters of an epoch.
    #[derive(Debug, Default)]
    pub struct Metrics;

    /// A reading of the metrics. Nanoseconds are summed over the threads of a stage.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
    pub struct StageStats {
        /// Batches delivered to the consumer.
        counter batches: Count,
        /// Samples made by the workers, samples that failed included.
        counter samples: Count,
        /// Whether reads go over the network.
        gauge remote: bool = Flag,
        /// Time from a request to the store to its first byte; null for local data.
        gauge latency_us: Option<u64> = Microseconds,
        /// How local files are read: `direct` (O_DIRECT), `drop` (through the page cache, dropped
        /// afterwards) or `plain` (page cache kept, and charged to the budget); null where
        /// samples are read in groups, and for data that are not in local files.
        gauge mode: Option<ReadMode> = Text,
        /// Reads from the source; cache hits are not counted.
        counter reads: Count,
        /// Reads that were in flight together with other reads of their thread (io_uring).
        counter together: Count,
        /// Samples whose JPEG checkpoints were read.
        counter checkpoints: Count,
        /// Truncated images that were filled (`load_truncated`).
        counter filled: Count,
        /// Bytes of those reads.
        counter read_bytes: Bytes,
        /// Bytes of samples among those read.
        internal wanted_bytes: Bytes,
        /// Groups of rows that were decoded.
        internal groups: Count,
        /// Bytes read for each 100 bytes of samples: gaps between neighbours, and groups of which
        /// this rank reads a part, or which it reads again.
        gauge amplification_percent: u64 = Percent,
        /// Volumes: how often a patch wanted a chunk.
        counter wanted_chunks: Count,
        /// Volumes: chunks decoded.
        counter decoded_chunks: Count,
        /// Volumes: chunks among those decoded that are not stored, and have the fill value.
        counter absent_chunks: Count,
        /// Samples from the memory cache; volumes: chunks from the cache, or already on their way
        /// for another patch.
        counter hits: Count,
        /// Bytes of those hits.
        counter hit_bytes: Bytes,
        /// Samples from a disk cache; volumes: chunks.
        counter disk_hits: Count,
        /// Bytes of those hits.
        counter disk_hit_bytes: Bytes,
        /// The most that disk caches may take.
        gauge disk_limit_bytes: u64 = Bytes,
        /// What disk caches take now.
        gauge disk_held_bytes: u64 = Bytes,
        /// The most that any memory cache of this size could give in this epoch. Where no sample
        /// comes twice: what the cache held at the start. Where samples repeat: what Belady's
        /// rule would have hit so far, or, for an order that is not known ahead, in the whole
        /// epoch once it has ended.
        counter could_hit_bytes: Bytes,
        /// The most that the memory cache may take; of all processes together where they share
        /// it.
        gauge cache_limit_bytes: u64 = Bytes,
        /// What the memory cache takes now.
        gauge cache_held_bytes: u64 = Bytes,
        /// What decides which samples the memory cache keeps: `fixed` (a fixed set, evenly
        /// spread), `min` (Belady's rule) or `adaptive` (S3-FIFO, for an order that is not known
        /// ahead).
        gauge cache_rule: Option<Policy> = Text,
        /// Whether the memory cache holds decoded samples.
        gauge cache_decoded: bool = Flag,
        /// How cached samples are compressed: `lz4`, `zstd`, `shuffle and zstd`, or not at all.
        gauge cache_codec: Option<&'static str> = Text,
        /// How many samples fit compressed, for each 100 that fit uncompressed.
        gauge cache_gain_percent: u64 = Percent,
        /// Readers: reading.
        counter read_ns: Nanoseconds,
        /// Readers: waiting for a free batch slot.
        counter slot_wait_ns: Nanoseconds,
        /// Readers: waiting for staging memory.
        counter staging_wait_ns: Nanoseconds,
        /// Workers: decoding, cropping, resizing.
        counter work_ns: Nanoseconds,
        /// Workers: waiting for bytes.
        counter idle_ns: Nanoseconds,
        /// Workers: waiting for the shared scratch memory.
        counter scratch_wait_ns: Nanoseconds,
        /// The consumer: waiting for a batch.
        counter consumer_wait_ns: Nanoseconds,
        /// Jobs between readers and workers now.
        gauge queued: u64 = Count,
        /// Batch slots in all.
        gauge slots: u64 = Count,
        /// Batch slots free now.
        gauge slots_free: u64 = Count,
        /// Decoding threads.
        gauge workers: u64 = Count,
        /// Reading threads; for a store, the most requests in flight.
        gauge readers: u64 = Count,
    }
}

impl Metrics {
    /// A number that changes whenever anything moves.
    pub(super) fn movement(&self) -> u64 {
        self.reads.get().wrapping_add(self.samples.get()).wrapping_add(self.batches.get())
    }
}
