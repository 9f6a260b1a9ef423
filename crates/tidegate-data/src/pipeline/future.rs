//! What the cache may know of accesses to come, when an epoch starts.
//!
//! Flow: order + split -> the ids of this epoch and the next -> of volumes the chunks of their
//! patches -> the cache.
//! Memory: none; ids are computed as the cache asks for them.

use std::sync::Arc;

use tidegate_order::partition::{RankPartition, RankRows};
use tidegate_order::{Epoch, Lookahead};
use tidegate_source::{ChunkSizes, Source};

use super::config::Config;
use crate::batch::Layout;
use crate::cache::FutureAccesses;

/// What this rank is going to ask for in this epoch and the next, where that is listed, and how
/// many accesses these are.
pub(super) fn accesses(
    source: &Arc<dyn Source>,
    layout: &Layout,
    epoch: &Arc<dyn Epoch>,
    config: &Config,
) -> (FutureAccesses, u64) {
    let chunked = source.chunked();
    let listed = match config.order.lookahead() {
        Lookahead::Listed => true,
        Lookahead::Permutation => chunked.is_some(),
        Lookahead::Unknown => false,
    };
    let per_sample = chunked.map_or(1, |chunked| {
        let ChunkSizes { patch_bytes, chunk_bytes, .. } = chunked.sizes();
        patch_bytes.div_ceil(chunk_bytes.max(1)).max(1)
    });
    if !listed {
        // One that goes on with other memory is not judged: what came before is not known here.
        let batches = if config.past.delivered == 0 { config.split.batches() } else { 0 };
        let count: u64 = (0..batches).map(|batch| config.split.rows(batch).count).sum();
        return (Box::new(std::iter::empty()), count * per_sample);
    }
    let ids = |epoch: Arc<dyn Epoch>, split: RankPartition, from: u64| {
        let rows = (from..split.batches()).map(move |batch| split.rows(batch));
        let positions = rows.flat_map(RankRows::positions);
        positions.map_while(move |position| epoch.id(position % split.len.max(1)).ok())
    };
    let this = ids(Arc::clone(epoch), config.split, config.past.delivered);
    // There may be no next epoch, for all the user's function knows.
    let whole = RankPartition { start: 0, ..config.split };
    let next = config.order.epoch(config.epoch + 1).ok().map(|epoch| ids(epoch, whole, 0));
    let batches = config.split.batches() + whole.batches();
    let (all, count) = (this.chain(next.into_iter().flatten()), batches * config.split.max_rows());
    if chunked.is_none() {
        return (Box::new(all), count);
    }
    let fields: Vec<usize> = layout.columns.iter().map(|column| column.field).collect();
    let source = Arc::clone(source);
    let chunks = all.flat_map(move |id| {
        let mut chunks = Vec::new();
        // A part of a source has numbers of its own.
        let at = source.locate(&[id]).ok().and_then(|mut found| found.pop());
        if let (Some(chunked), Some(at)) = (source.chunked(), at) {
            fields.iter().for_each(|&field| chunked.chunks_of(at.id, field, &mut |chunk| chunks.push(chunk)));
        }
        chunks
    });
    (Box::new(chunks), count * per_sample)
}
