//! What a plan follows from: sizes, counts and properties, gathered with all the I/O that this
//! takes.
//!
//! Flow: source + layout + options of an epoch -> [`Facts`]; called when an epoch starts and
//! before a budget changes.
//! Memory: holds none.
//! Not here: any decision (`plan`).

use std::sync::Arc;
use std::time::Duration;

use tidegate_decode::{Decoders, Kind, compact};
use tidegate_order::Lookahead;
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::index::Index;
use tidegate_source::read::{direct_works, staging_bytes};
use tidegate_source::{Access, ChunkSizes, Grouped, SizeBounds, Source};

use super::super::config::{Config, OnError};
use crate::batch::{Crop, FieldSpec, Layout, cost};
use crate::cache::SegmentTier;

/// An index entry with its path, in memory.
const LOCATED_BYTES: u64 = 192;
/// Positions whose index entries are looked up at once.
pub(in super::super) const WINDOW: u64 = 4096;

/// See the head of this file. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    // The source.
    /// Samples.
    pub samples: u64,
    /// Sizes over all samples.
    pub extremes: SizeBounds,
    /// A sample on average; of volumes the chunks of a patch.
    pub mean_bytes: u64,
    /// The staging of the largest thing that is read at once, without checkpoints.
    pub largest_read_bytes: u64,
    /// How long a request takes before its first byte, where reading goes over a network.
    pub latency: Option<Duration>,
    /// Samples can be read in ascending order only.
    pub sequential: bool,
    /// Each sample is read by itself, found by a side-car index.
    pub one_by_one: bool,
    /// Sizes of chunks, and how many there are, where samples are patches of chunked arrays.
    pub chunks: Option<(ChunkSizes, u64)>,
    /// The largest decoded group, where samples are rows of groups.
    pub group_bytes: Option<u64>,
    /// Groups that the order draws from at once.
    pub groups_in_use: u64,
    /// What the source's own decompressors take.
    pub library_bytes: u64,
    /// What the kernel keeps of files that were opened.
    pub kernel_bytes: u64,
    /// Whether the first file can be read past the page cache.
    pub direct_reads: bool,
    /// The staging of a sample's JPEG checkpoints; 0 where there are none, or no image is cropped.
    pub checkpoint_bytes: u64,

    // The layout.
    /// Rows of a batch, at most.
    pub rows: u64,
    /// A slot for one batch.
    pub slot_bytes: u64,
    /// Columns of images.
    pub image_columns: u64,
    /// The most pixels of an image that is decoded, if each column of images has such a bound.
    pub max_pixels: Option<u64>,
    /// Columns of images that are delivered as large as they are.
    pub whole_columns: u64,
    /// Ragged columns of other kinds.
    pub ragged_columns: u64,
    /// Working memory of the resampler, for the largest image.
    pub resize_bytes: u64,
    /// What unpacking a compact array takes at most.
    pub unpacking_bytes: u64,

    // The options.
    /// Decoding threads.
    pub workers: u64,
    /// Batches beyond the one being consumed and the one being filled.
    pub prefetch: u64,
    /// Batches that the consumer keeps beyond the one being consumed.
    pub held_batches: u64,
    /// Threads that run the batch transform.
    pub map_threads: u64,
    /// What happens when a sample fails.
    pub on_error: OnError,
    /// Whether the order is known before it is asked.
    pub order_known: bool,
    /// What an observer notes of a batch.
    pub notes_bytes: u64,
    /// What tiers behind the memory take of it: tables, and what is not yet written back.
    pub stores_bytes: u64,
}

impl Facts {
    /// Gathers the facts of an epoch.
    #[must_use]
    pub fn gather(source: &dyn Source, layout: &Layout, config: &Config) -> Self {
        let extremes = source.size_bounds();
        let side = u32::try_from(extremes.side).unwrap_or(u32::MAX);
        let images = || layout.columns.iter().filter(|c| c.is_image());
        let ragged = || layout.columns.iter().filter(|c| c.shape.is_none());
        let is_image = |spec: &FieldSpec| matches!(spec, FieldSpec::Image(_));
        let unpacking = layout.columns.iter().map(|column| match &column.kind {
            Kind::Compact { dtype, shape, codec } => compact::max_scratch_bytes(*dtype, shape, codec),
            _ => 0,
        });
        let resizing = images().map(|c| cost::resized_bytes(c).saturating_add(cost::rows_bytes(c, side)));
        let rows = config.split.max_rows();
        let groups = source.grouped().map(|_| config.order.runs_in_use(config.split.ranks_with_own_nodes()));
        Self {
            samples: source.len(),
            extremes,
            mean_bytes: mean_bytes(source),
            largest_read_bytes: largest_read_bytes(source, &config.stores),
            latency: source.latency(),
            sequential: !matches!(source.access(), Access::Random | Access::Chunked),
            one_by_one: source.access() == Access::Random && source.index().is_some(),
            chunks: source.chunked().map(|chunked| (chunked.sizes(), chunked.chunks())),
            group_bytes: source.grouped().map(Grouped::group_bytes),
            groups_in_use: groups.unwrap_or(0),
            library_bytes: source.library_bytes(),
            kernel_bytes: source.kernel_bytes(),
            direct_reads: source.shards().first().is_some_and(|path| direct_works(path)),
            checkpoint_bytes: checkpoint_bytes(source, layout),
            rows,
            slot_bytes: layout.slot_bytes(rows as usize),
            image_columns: images().count() as u64,
            max_pixels: images()
                .map(|column| layout.max_pixels(column))
                .collect::<Option<Vec<_>>>()
                .and_then(|bounds| bounds.into_iter().max()),
            whole_columns: images().filter(|c| c.shape.is_none()).count() as u64,
            ragged_columns: ragged().filter(|c| !is_image(&c.spec)).count() as u64,
            resize_bytes: resizing.max().unwrap_or(0),
            unpacking_bytes: unpacking.max().unwrap_or(0),
            workers: config.workers as u64,
            prefetch: config.prefetch as u64,
            held_batches: config.held_batches as u64,
            map_threads: config.map_threads as u64,
            on_error: config.on_error,
            order_known: config.order.lookahead() != Lookahead::Unknown,
            notes_bytes: config.observer.as_ref().map_or(0, |observer| rows * observer.note_bytes()),
            stores_bytes: config.stores.iter().map(|store| store.charged_bytes()).sum(),
        }
    }

    /// Bytes of a chunk's elements, and what decoding one also takes; 0 where there are no
    /// chunks.
    pub(super) fn chunk_scratch_bytes(&self) -> u64 {
        self.chunks.map_or(0, |(sizes, _)| sizes.chunk_bytes.saturating_add(sizes.library_bytes))
    }

    /// What the decoders of `workers` threads keep between images.
    pub(super) fn decoders_bytes(&self, workers: u64) -> u64 {
        if self.image_columns == 0 { 0 } else { workers * Decoders::KEPT_BYTES }
    }

    /// The largest image that is decoded.
    pub(super) fn largest_image_bytes(&self) -> u64 {
        let allowed = self.max_pixels.map_or(u64::MAX, |pixels| pixels.saturating_mul(3));
        self.extremes.decoded_bytes.min(allowed)
    }

    /// Images as large as the largest that must fit at once: one in each column that has it as
    /// large as it is. A replacement must fit in every row of a batch.
    pub(super) fn images_at_once(&self) -> u64 {
        match self.on_error {
            OnError::Raise | OnError::Skip => self.whole_columns,
            OnError::Replace => self.whole_columns.saturating_mul(self.rows),
        }
    }

    /// The index entries that are looked up at once.
    pub(super) fn index_bytes(&self) -> u64 {
        WINDOW.min(self.samples) * LOCATED_BYTES
    }

    /// Objects that can be read one by one: samples, or chunks.
    pub(super) fn objects(&self) -> u64 {
        self.chunks.map_or(self.samples, |(_, chunks)| chunks)
    }
}

/// A sample on average; of volumes the chunks of a patch.
pub(in super::super) fn mean_bytes(source: &dyn Source) -> u64 {
    let whole = || source.size_bounds().total_bytes / source.len().max(1);
    // As much as it would be without compression, which is not known.
    source.chunked().map_or_else(whole, |chunked| chunked.sizes().patch_bytes)
}

/// The staging of the largest thing that is read: a sample, or a chunk as it is stored, or as
/// shared memory has it.
pub(in super::super) fn largest_read_bytes(source: &dyn Source, stores: &[Arc<SegmentTier>]) -> u64 {
    let decoded = source.chunked().filter(|_| stores.iter().any(|store| store.in_memory()));
    let decoded = decoded.map_or(0, |chunked| chunked.sizes().chunk_bytes);
    let bytes = source.size_bounds().sample_bytes.max(decoded);
    if stores.is_empty() { staging_bytes(bytes) } else { SegmentTier::read_buffer_bytes(bytes) }
}

fn checkpoint_bytes(source: &dyn Source, layout: &Layout) -> u64 {
    let cropped = |spec: &FieldSpec| matches!(spec, FieldSpec::Image(image) if image.crop != Crop::None);
    let index = source.index().filter(|_| layout.columns.iter().any(|c| cropped(&c.spec)));
    index.and_then(Index::checkpoints).map_or(0, Checkpoints::room_bytes)
}
