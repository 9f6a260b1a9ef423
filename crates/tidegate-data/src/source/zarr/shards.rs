//! Shards: many chunks in one object, and an index of where each lies.
//!
//! Flow: a shard's key -> its index, from the cache or read -> a chunk's offset and length.
//! Memory: [`Indexes`] within a limit that its owner has charged; the ones that were used last stay.
//!
//! An index is small and used again for every chunk of its shard, but there may be as many as shards, so their cache has a limit of its
//! own. Specification: Zarr v3, `sharding_indexed` 1.0.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use zarrs::array::{
    Array as Metadata, ArrayMetadata, ArrayToBytesCodecTraits, CodecChain, CodecOptions, FillValue, data_type,
};
use zarrs::metadata_ext::codec::sharding::{ShardingCodecConfiguration, ShardingIndexLocation};

use super::codecs;
use crate::source::keyed::{Keyed, Pinned};
use crate::source::read::{ReadMode, aligned, staging_bytes};
use crate::{Error, Result};

/// What an index takes besides its places: its key, and its place in the cache.
const PLACE_BYTES: u64 = 512;
/// Neither offset nor length: the chunk is not stored.
const NONE: u64 = u64::MAX;

/// How shards are made.
#[derive(Debug)]
pub(super) struct Shards {
    /// The shape of a chunk in them.
    pub(super) inner: Vec<NonZeroU64>,
    /// The codecs of a chunk.
    pub(super) codecs: CodecChain,
    index: CodecChain,
    at_end: bool,
    /// Chunks along each axis of a shard.
    per_shard: Vec<u64>,
    /// Bytes of a stored index.
    stored_bytes: u64,
}

impl Shards {
    /// How the shards of an array are made, if it has any that can be read a chunk at a time.
    pub(super) fn of(metadata: &Metadata<()>, outer: &[NonZeroU64]) -> Result<Option<Self>> {
        let ArrayMetadata::V3(v3) = metadata.metadata() else { return Ok(None) };
        // Behind other codecs a shard is one chunk, which is decoded as a whole.
        let [only] = &v3.codecs[..] else { return Ok(None) };
        if only.name() != "sharding_indexed" {
            return Ok(None);
        }
        let wrong = |what: String| Error::Decode(format!("sharding_indexed: {what}"));
        let configuration =
            only.to_typed_configuration::<ShardingCodecConfiguration>().map_err(|e| wrong(e.to_string()))?;
        let ShardingCodecConfiguration::V1(configuration) = configuration else {
            return Err(wrong("an unknown version".into()));
        };
        let inner = configuration.chunk_shape;
        let divides = |(outer, inner): (&NonZeroU64, &NonZeroU64)| outer.get().is_multiple_of(inner.get());
        if inner.len() != outer.len() || !outer.iter().zip(&inner).all(divides) {
            return Err(wrong(format!("shards of {outer:?} cannot be divided in chunks of {inner:?}")));
        }
        let per_shard: Vec<u64> = outer.iter().zip(&inner).map(|(o, i)| o.get() / i.get()).collect();
        let index = codecs::chain(&configuration.index_codecs)?;
        let count = per_shard.iter().try_fold(1u64, |n, side| n.checked_mul(*side));
        let count =
            count.filter(|&n| n <= 1 << 28).ok_or_else(|| wrong("too many chunks in a shard".into()))?;
        let made =
            index.encoded_representation(&index_shape(count), &data_type::uint64(), &FillValue::from(NONE));
        let stored_bytes = made
            .map_err(|e| wrong(e.to_string()))?
            .size()
            .filter(|bytes| *bytes <= 16 * count + 4096)
            .ok_or_else(|| wrong("an index of varying length".into()))?;
        Ok(Some(Self {
            inner,
            codecs: codecs::chain(&configuration.codecs)?,
            index,
            at_end: configuration.index_location == ShardingIndexLocation::End,
            per_shard,
            stored_bytes,
        }))
    }

    /// Chunks in a shard.
    pub(super) fn chunks(&self) -> u64 {
        self.per_shard.iter().product()
    }

    /// What an index takes in memory.
    pub(super) fn index_bytes(&self) -> u64 {
        16 * self.chunks() + PLACE_BYTES
    }

    /// Chunks along each axis of all shards together.
    pub(super) fn grid(&self, shape: &[u64], outer: &[NonZeroU64]) -> Vec<u64> {
        let shards = shape.iter().zip(outer).map(|(n, side)| n.div_ceil(side.get()));
        shards.zip(&self.per_shard).map(|(shards, n)| shards * n).collect()
    }

    /// The shard of a chunk, and the chunk's number in it.
    pub(super) fn divide(&self, at: &[u64]) -> (Vec<u64>, u64) {
        let shard = at.iter().zip(&self.per_shard).map(|(at, n)| at / n).collect();
        let within = at.iter().zip(&self.per_shard).fold(0, |number, (at, n)| number * n + at % n);
        (shard, within)
    }

    fn read_index(&self, store: &Keyed, key: &str, mode: ReadMode) -> Result<Option<Index>> {
        let Some(pinned) = store.pin(key)? else { return Ok(None) };
        let offset = if self.at_end { pinned.bytes.checked_sub(self.stored_bytes) } else { Some(0) };
        let wrong = |offset, what: String| Error::format(store.path(key), offset, what);
        let Some(offset) = offset else {
            let what = format!(
                "a shard of {} bytes has no room for its index of {}: restore it",
                pinned.bytes, self.stored_bytes
            );
            return Err(wrong(0, what));
        };
        let mut staging = aligned(staging_bytes(self.stored_bytes) as usize);
        let range = store.part(key, &pinned, offset, self.stored_bytes, mode, &mut staging)?;
        let damaged = |e: &dyn std::fmt::Display| {
            wrong(offset, format!("the index of the shard is damaged: {e}; restore it"))
        };
        let options = CodecOptions::default().with_concurrent_target(1);
        let (uint64, none) = (data_type::uint64(), FillValue::from(NONE));
        let bytes = Cow::Borrowed(&staging[range]);
        let decoded = self.index.decode(bytes, &index_shape(self.chunks()), &uint64, &none, &options);
        let decoded = decoded.map_err(|e| damaged(&e))?.into_fixed().map_err(|e| damaged(&e))?;
        let (words, _) = decoded.as_chunks::<8>();
        let places: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        for (chunk, place) in places.as_chunks::<2>().0.iter().enumerate() {
            let [offset, len] = *place;
            let inside = offset.checked_add(len).is_some_and(|end| end <= pinned.bytes);
            if place != &[NONE; 2] && !inside {
                let what = format!(
                    "chunk {chunk} is said to lie at {offset}, {len} bytes long, in {} bytes",
                    pinned.bytes
                );
                return Err(damaged(&what));
            }
        }
        Ok(Some(Index { places: places.into(), pinned }))
    }
}

fn index_shape(count: u64) -> [NonZeroU64; 2] {
    let one = NonZeroU64::MIN;
    [NonZeroU64::new(count).unwrap_or(one), one.saturating_add(1)]
}

/// Where the chunks of a shard lie.
#[derive(Debug)]
pub(super) struct Index {
    places: Box<[u64]>,
    pinned: Pinned,
}

impl Index {
    /// Offset and length of a chunk, unless it is not stored.
    pub(super) fn place(&self, chunk: u64) -> Option<(u64, u64)> {
        let [offset, len] = *self.places.as_chunks::<2>().0.get(chunk as usize)?;
        (offset != NONE || len != NONE).then_some((offset, len))
    }

    /// The shard as it was when its index was read.
    pub(super) fn pinned(&self) -> &Pinned {
        &self.pinned
    }
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<PathBuf, Option<Arc<Index>>> for Weight {
    fn weight(&self, shard: &PathBuf, index: &Option<Arc<Index>>) -> u64 {
        let places = index.as_ref().map_or(0, |index| 8 * index.places.len() as u64);
        shard.as_os_str().len() as u64 + places + PLACE_BYTES
    }
}

/// Indexes of shards that were used, up to a limit. A shard that is not there is known too.
#[derive(Debug)]
pub(crate) struct Indexes(Cache<PathBuf, Option<Arc<Index>>, Weight>);

impl Indexes {
    /// None yet, and room for `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Cache::with_weighter((bytes >> 12) as usize + 1, bytes, Weight))
    }

    /// Changes the limit; what is beyond a lower one goes.
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.0.set_capacity(bytes);
    }

    pub(super) fn of(
        &self,
        store: &Keyed,
        key: &str,
        shards: &Shards,
        mode: ReadMode,
    ) -> Result<Option<Arc<Index>>> {
        let shard = store.path(key);
        if let Some(index) = self.0.get(&shard) {
            return Ok(index);
        }
        let index = shards.read_index(store, key, mode)?.map(Arc::new);
        self.0.insert(shard, index.clone());
        Ok(index)
    }
}
