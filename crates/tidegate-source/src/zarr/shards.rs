//! Shards: many chunks in one object, with an index of their places.
//!
//! Flow: a shard's key -> its index, from the cache or read -> a chunk's offset and length.
//! Memory: [`Indexes`] within a limit that its owner has charged. Recently used indexes stay, and
//! the room limits how many are read at once. A second reader of an index waits for the first.
//!
//! An index is small and serves every chunk of its shard, but each shard has one, so their cache
//! has its own limit. Specification: Zarr v3, `sharding_indexed` 1.0.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tidegate_core::sync::lock;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use zarrs::array::{
    Array as Metadata, ArrayMetadata, ArrayToBytesCodecTraits, BytesRepresentation, CodecChain, CodecOptions,
    FillValue, data_type,
};
use zarrs::metadata_ext::codec::sharding::{ShardingCodecConfiguration, ShardingIndexLocation};

use super::codecs;
use crate::files::keyed::{Keyed, Pinned};
use crate::files::read::{ReadMode, aligned, staging_bytes};
use crate::{Error, Result};

/// Bytes of an index in addition to its places: its key and its cache slot.
const SLOT_BYTES: u64 = 1024;
/// Bytes of reading an index in addition to its own: the rounding of direct reads, and codecs.
const READING_BYTES: u64 = 32 << 10;
/// The most indexes that are read at once.
const MAX_READING: u64 = 16;
/// The offset and the length of a chunk that is not stored.
const NONE: u64 = u64::MAX;

/// The layout of shards.
#[derive(Debug)]
pub(super) struct Shards {
    /// The shape of a chunk in them.
    pub(super) inner: Vec<NonZeroU64>,
    /// The codecs of a chunk.
    pub(super) codecs: CodecChain,
    index: CodecChain,
    at_end: bool,
    /// The number of chunks along each axis of a shard.
    per_shard: Vec<u64>,
    /// Bytes of a stored index.
    stored_bytes: u64,
}

impl Shards {
    /// The layout of the shards of an array; None if chunks cannot be read one at a time.
    pub(super) fn new(metadata: &Metadata<()>, outer: &[NonZeroU64]) -> Result<Option<Self>> {
        let ArrayMetadata::V3(v3) = metadata.metadata() else { return Ok(None) };
        // After other codecs a shard is one chunk, decoded as a whole.
        let [only] = &v3.codecs[..] else { return Ok(None) };
        if only.name() != "sharding_indexed" {
            return Ok(None);
        }
        let wrong = |what: String| Error::decode(format!("sharding_indexed: {what}"));
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
        let stored_bytes = match made.map_err(|e| wrong(e.to_string()))? {
            BytesRepresentation::FixedSize(bytes) if bytes <= 16 * count + 4096 => bytes,
            _ => return Err(wrong("an index of varying length: write it without compression".into())),
        };
        Ok(Some(Self {
            inner,
            codecs: codecs::chain(&configuration.codecs)?,
            index,
            at_end: configuration.index_location == ShardingIndexLocation::End,
            per_shard,
            stored_bytes,
        }))
    }

    /// The number of chunks in a shard.
    pub(super) fn chunks(&self) -> u64 {
        self.per_shard.iter().product()
    }

    /// Bytes of an index in memory, and of reading one: stored, decoded, and its places.
    pub(super) fn index_bytes(&self) -> (u64, u64) {
        let places = 16 * self.chunks();
        (places + SLOT_BYTES, 3 * places + READING_BYTES)
    }

    /// The number of chunks along each axis of all shards together.
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
                    "chunk {chunk} has {len} bytes at {offset} by the index, but the shard has {} bytes",
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

/// The places of the chunks of a shard.
#[derive(Debug)]
pub(super) struct Index {
    places: Box<[u64]>,
    pinned: Pinned,
}

impl Index {
    /// Offset and length of a chunk; None if it is not stored.
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
    fn weight(&self, _: &PathBuf, index: &Option<Arc<Index>>) -> u64 {
        index.as_ref().map_or(0, |index| 8 * index.places.len() as u64) + SLOT_BYTES
    }
}

/// The recently used indexes of shards, up to a limit. A missing shard is remembered too.
#[derive(Debug)]
pub(crate) struct Indexes {
    known: Cache<PathBuf, Option<Arc<Index>>, Weight>,
    /// The number of indexes that are being read, and its limit.
    reading: Mutex<(u64, u64)>,
    done: Condvar,
    /// Bytes of the largest, and of reading it.
    one: (u64, u64),
}

impl Indexes {
    /// Starts empty, with room for the largest: bytes kept, and bytes while it is read.
    pub(crate) fn new(one: (u64, u64)) -> Self {
        // In one part: an index may be as large as the whole limit.
        let options = OptionsBuilder::new()
            .shards(1)
            .hot_allocation(1.0)
            .estimated_items_capacity(64)
            .weight_capacity(one.0)
            .build();
        let known = match options {
            Ok(options) => Cache::with_options(
                options,
                Weight,
                DefaultHashBuilder::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            ),
            Err(_) => Cache::with_weighter(64, one.0, Weight),
        };
        Self { known, reading: Mutex::new((0, 1)), done: Condvar::new(), one }
    }

    /// Bytes of `count` indexes, and the smallest useful limit.
    pub(crate) fn bytes(one: (u64, u64), count: u64) -> (u64, u64) {
        let reading = MAX_READING.min(count).saturating_mul(one.1);
        (one.0.saturating_mul(count).saturating_add(reading), one.0.saturating_add(one.1))
    }

    /// Changes the limit; a lower one evicts indexes.
    pub(crate) fn set_limit(&self, bytes: u64) {
        // At most a quarter for reading: a kept index needs no read.
        let room = bytes / 4 / self.one.1.max(1);
        let most = room.clamp(1, MAX_READING);
        lock(&self.reading).1 = most;
        self.known.set_capacity(bytes.saturating_sub(most * self.one.1));
    }

    pub(super) fn get(
        &self,
        store: &Keyed,
        key: &str,
        shards: &Shards,
        mode: ReadMode,
    ) -> Result<Option<Arc<Index>>> {
        let shard = store.path(key);
        self.known.get_or_insert_with(&shard, || {
            let _permit = self.permit();
            Ok(shards.read_index(store, key, mode)?.map(Arc::new))
        })
    }

    /// Waits until another index may be read.
    fn permit(&self) -> ReadPermit<'_> {
        let mut reading = lock(&self.reading);
        while reading.0 >= reading.1 {
            reading = self.done.wait(reading).unwrap_or_else(PoisonError::into_inner);
        }
        reading.0 += 1;
        ReadPermit(self)
    }
}

/// Permission to read an index, returned on drop.
struct ReadPermit<'a>(&'a Indexes);

impl Drop for ReadPermit<'_> {
    fn drop(&mut self) {
        lock(&self.0.reading).0 -= 1;
        self.0.done.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use zarrs::metadata::v3::MetadataV3;

    use super::*;

    /// An index is as large as all the room there is for them, and read once; two are not kept
    /// where one is.
    #[test]
    fn an_index_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let named = |text: &str| MetadataV3::try_from(text).unwrap();
        let little = r#"{"name": "bytes", "configuration": {"endian": "little"}}"#;
        let (side, count) = (NonZeroU64::new(32).unwrap(), 32u64.pow(3));
        let shards = Shards {
            inner: vec![side; 3],
            codecs: codecs::chain(&[named(little)]).unwrap(),
            index: codecs::chain(&[named(little), named(r#"{"name": "crc32c"}"#)]).unwrap(),
            at_end: true,
            per_shard: vec![32; 3],
            stored_bytes: 16 * count + 4,
        };
        let mut shard = vec![0xFF; 16 * count as usize];
        shard[16..24].copy_from_slice(&3u64.to_le_bytes());
        shard[24..32].copy_from_slice(&7u64.to_le_bytes());
        shard.extend(crc32c::crc32c(&shard).to_le_bytes());
        for name in ["a", "b"] {
            std::fs::write(folder.path().join(name), &shard).unwrap();
        }
        let store = Keyed::open(folder.path().to_str().unwrap()).unwrap();
        let indexes = Indexes::new(shards.index_bytes());
        let place = |key| {
            let index = indexes.get(&store, key, &shards, ReadMode::Plain)?;
            Ok::<_, Error>(index.map(|index| (index.place(0), index.place(1))))
        };
        for _ in 0..2 {
            assert_eq!(place("a").unwrap(), Some((None, Some((3, 7)))));
            std::fs::remove_file(folder.path().join("a")).ok();
        }
        place("b").unwrap();
        assert!(indexes.known.weight() <= shards.index_bytes().0);
        let (all, least) = Indexes::bytes(shards.index_bytes(), 2);
        assert!(least < all);
        indexes.set_limit(all);
        std::fs::write(folder.path().join("c"), &shard[..100]).unwrap();
        assert!(place("c").unwrap_err().to_string().contains("no room for its index"));
        place("b").unwrap();
        std::fs::remove_file(folder.path().join("b")).unwrap();
        assert!(place("b").unwrap().is_some());
    }
}
