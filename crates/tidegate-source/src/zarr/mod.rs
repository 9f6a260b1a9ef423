//! One Zarr array, of version 2 or 3: its chunks, by number.
//!
//! Flow: metadata -> [`Array`] -> where a chunk lies -> its stored bytes -> its elements.
//! Memory: metadata; indexes of shards are in the caller's [`Indexes`].
//! Not here: patches and several arrays (`source::volume`).
//!
//! A chunk is what is decoded as a whole: of a sharded array an inner one. Chunks are numbered in C order of the grid, so that a number
//! is enough to cache it. Specifications: Zarr v2 and v3, `sharding_indexed`.

mod codecs;
mod shards;

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use zarrs::array::{Array as Metadata, ArrayMetadata};

use self::codecs::Decoder;
pub(crate) use self::shards::Indexes;
use self::shards::Shards;
use crate::files::keyed::Keyed;
use crate::files::read::ReadMode;
use crate::{Error, Result};
use tidegate_decode::npy::DType;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Array {
    store: Arc<Keyed>,
    /// The array's place in the store.
    path: String,
    metadata: Metadata<()>,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    /// The shape of a chunk.
    pub(crate) chunk: Vec<u64>,
    /// Chunks along each axis.
    grid: Vec<u64>,
    shards: Option<Shards>,
    decoder: Decoder,
    /// What was read of the array's description.
    text: Vec<u8>,
}

/// Elements along an axis, and chunks in all: far beyond what exists, and far below what could overflow.
const SIDE_MOST: u64 = 1 << 48;
/// Bytes of a chunk: what a file that lies about itself can ask for.
const CHUNK_MOST: u64 = 1 << 32;

/// The name of something in a folder of the store.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The attributes of an array or a group, of either version; nothing where there is neither.
///
/// # Errors
/// [`Error::Io`]; what is no JSON.
pub(crate) fn attributes(store: &Keyed, path: &str) -> Result<Option<serde_json::Value>> {
    let json = |name: &str| -> Result<Option<serde_json::Value>> {
        let key = join(path, name);
        let Some(bytes) = store.small(&key)? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|e| Error::format(store.path(&key), 0, format!("no JSON: {e}")))
    };
    if let Some(mut node) = json("zarr.json")? {
        return Ok(Some(node.get_mut("attributes").map(serde_json::Value::take).unwrap_or_default()));
    }
    if let Some(attributes) = json(".zattrs")? {
        return Ok(Some(attributes));
    }
    Ok((json(".zgroup")?.is_some() || json(".zarray")?.is_some()).then(serde_json::Value::default))
}

impl Array {
    /// The array at `path` of a store; nothing if there is none.
    ///
    /// # Errors
    /// Metadata that make no sense, or that ask for what is not known, by name.
    pub(crate) fn open(store: &Arc<Keyed>, path: &str) -> Result<Option<Self>> {
        let mut found = None;
        for name in ["zarr.json", ".zarray"] {
            let key = join(path, name);
            if let Some(bytes) = store.small(&key)? {
                found = Some((store.path(&key), bytes));
                break;
            }
        }
        let Some((file, text)) = found else { return Ok(None) };
        let wrong = |what: String| Error::Dataset { path: file.clone(), what };
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("no JSON: {e}")))?;
        if json.get("node_type").is_some_and(|kind| kind != "array") {
            return Ok(None);
        }
        let metadata: ArrayMetadata =
            serde_json::from_value(json).map_err(|e| wrong(format!("no metadata of a Zarr array: {e}")))?;
        let metadata = Metadata::new_with_metadata(Arc::new(()), "/", metadata).map_err(|e| {
            let words = e.to_string();
            wrong(if words.contains("codec") { codecs::unknown(&words).to_string() } else { words })
        })?;
        let array = Self::of(store, path, metadata, text).map_err(|e| match e {
            Error::Decode(what) => wrong(what.to_string()),
            other => other,
        })?;
        Ok(Some(array))
    }

    fn of(store: &Arc<Keyed>, path: &str, metadata: Metadata<()>, text: Vec<u8>) -> Result<Self> {
        let (dtype, fill) = (metadata.data_type().clone(), metadata.fill_value().clone());
        let name = zarrs::plugin::ExtensionName::name_v3(&dtype).unwrap_or_default().into_owned();
        let own = DType::parse(&name).map_err(Error::decode)?;
        let shape = metadata.shape().to_vec();
        if shape.len() > tidegate_array::kernels::boxes::MOST_AXES {
            return Err(Error::decode(format!("an array of {} axes: at most 8 can be read", shape.len())));
        }
        if shape.contains(&0) {
            return Err(Error::decode(format!("an array without elements: its shape is {shape:?}")));
        }
        if let Some(side) = shape.iter().find(|side| **side > SIDE_MOST) {
            return Err(Error::decode(format!("an axis of {side} elements: at most 2^48 can be read")));
        }
        let outer = regular(&metadata)?;
        let chain = metadata.codecs();
        let shards = Shards::of(&metadata, &outer)?;
        let (inner, decoder) = match &shards {
            Some(shards) => {
                (shards.inner.clone(), Decoder::new(&shards.codecs, &shards.inner, &dtype, &fill)?)
            }
            None => (outer.clone(), Decoder::new(&chain, &outer, &dtype, &fill)?),
        };
        let chunk: Vec<u64> = inner.iter().map(|side| side.get()).collect();
        // Of a sharded array the grid of whole shards.
        let grid = match &shards {
            Some(shards) => shards.grid(&shape, &outer),
            None => shape.iter().zip(&chunk).map(|(n, side)| n.div_ceil(*side)).collect(),
        };
        if grid.iter().try_fold(1u64, |n, side| n.checked_mul(*side)).is_none_or(|chunks| chunks > SIDE_MOST)
        {
            return Err(Error::decode(format!("a grid of {grid:?} chunks: at most 2^48 can be numbered")));
        }
        if decoder.bytes() > CHUNK_MOST {
            return Err(Error::decode(format!(
                "chunks of {chunk:?} elements take {} bytes each: at most 4 GiB can be read, so write the array again in smaller ones",
                decoder.bytes()
            )));
        }
        let (store, path) = (Arc::clone(store), path.to_owned());
        Ok(Self { store, path, metadata, dtype: own, shape, chunk, grid, shards, decoder, text })
    }

    /// Its path or URL.
    pub(crate) fn place(&self) -> PathBuf {
        self.store.path(&self.path)
    }

    /// What tells it from others: its description, as it was read.
    pub(crate) fn description(&self) -> &[u8] {
        &self.text
    }

    /// The file that describes it.
    pub(crate) fn metadata_file(&self) -> PathBuf {
        let name =
            if matches!(self.metadata.metadata(), ArrayMetadata::V3(_)) { "zarr.json" } else { ".zarray" };
        self.store.path(&join(&self.path, name))
    }

    /// Chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.grid.iter().product()
    }

    /// Files, if each chunk or shard has one.
    pub(crate) fn files(&self) -> u64 {
        self.chunks() / self.shards.as_ref().map_or(1, Shards::chunks)
    }

    /// Bytes of a chunk's elements.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.decoder.bytes()
    }

    /// What a chunk takes at most as it is stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.decoder.stored_bytes()
    }

    /// What decoding one takes at most besides.
    pub(crate) fn library_bytes(&self) -> u64 {
        self.decoder.library_bytes()
    }

    /// Its shards, and what the index of one takes, kept and while it is read.
    pub(crate) fn shards(&self) -> Option<(u64, (u64, u64))> {
        self.shards.as_ref().map(|shards| (self.files(), shards.index_bytes()))
    }

    /// How far away it is.
    pub(crate) fn latency(&self) -> Option<std::time::Duration> {
        self.store.latency()
    }

    /// The number of the chunk at a place of the grid.
    pub(crate) fn number(&self, at: &[u64]) -> u64 {
        at.iter().zip(&self.grid).fold(0, |number, (at, n)| number * n + at)
    }

    /// The place in the grid of a chunk.
    pub(crate) fn at(&self, number: u64) -> Vec<u64> {
        let mut at = vec![0; self.grid.len()];
        self.grid.iter().zip(&mut at).rev().fold(number, |number, (n, at)| {
            *at = number % n;
            number / n
        });
        at
    }

    /// The key of the object that has a chunk, and the chunk's number in it.
    fn key(&self, number: u64) -> (String, u64) {
        let (outer, within) = match &self.shards {
            Some(shards) => shards.divide(&self.at(number)),
            None => (self.at(number), 0),
        };
        (join(&self.path, self.metadata.chunk_key(&outer).as_str()), within)
    }

    /// A chunk in words.
    pub(crate) fn name(&self, number: u64) -> String {
        let (key, within) = self.key(number);
        let path = self.store.path(&key);
        if self.shards.is_some() {
            format!("chunk {within} of {}", path.display())
        } else {
            path.display().to_string()
        }
    }

    /// Reads a chunk as it is stored into `into`, which has room for [`crate::files::read::staging_bytes`] of the most that it may take, and
    /// says where in it it lies; nothing where the array has none, and its fill value stands.
    ///
    /// # Errors
    /// What cannot be read; a chunk or an index that is longer than it may be, or lies outside of its file.
    pub(crate) fn read(
        &self,
        number: u64,
        mode: ReadMode,
        indexes: &Indexes,
        into: &mut [u8],
    ) -> Result<Option<Range<usize>>> {
        let (key, within) = self.key(number);
        match &self.shards {
            None => self.store.whole(&key, self.stored_bytes(), mode, into),
            Some(shards) => {
                let Some(index) = indexes.of(&self.store, &key, shards, mode)? else { return Ok(None) };
                let Some((offset, len)) = index.place(within) else { return Ok(None) };
                if len > self.stored_bytes() {
                    let what = format!(
                        "chunk {within} has {len} bytes, where its codecs make at most {}: restore the shard",
                        self.stored_bytes()
                    );
                    return Err(Error::format(self.store.path(&key), offset, what));
                }
                self.store.part(&key, index.pinned(), offset, len, mode, into).map(Some)
            }
        }
    }

    /// The elements of a chunk from what is stored of it, into `into`, which has their length.
    ///
    /// # Errors
    /// [`Error::Decode`] naming the chunk's file.
    pub(crate) fn decode(&self, number: u64, stored: Option<&[u8]>, into: &mut [u8]) -> Result<()> {
        let Some(stored) = stored else {
            self.fill(into);
            return Ok(());
        };
        self.decoder
            .decode(stored, into)
            .map_err(|e| Error::decode(format!("{}: {e}: restore it, or write it again", self.name(number))))
    }

    /// The fill value in each element.
    pub(crate) fn fill(&self, into: &mut [u8]) {
        let fill = self.fill_value();
        match fill.iter().all(|byte| *byte == fill[0]) {
            true => into.fill(fill[0]),
            false => into.chunks_exact_mut(fill.len()).for_each(|element| element.copy_from_slice(fill)),
        }
    }

    /// The bytes of an element that is not stored.
    pub(crate) fn fill_value(&self) -> &[u8] {
        self.metadata.fill_value().as_ne_bytes()
    }
}

/// The shape of chunks, which must be the same for all.
fn regular(metadata: &Metadata<()>) -> Result<Vec<NonZeroU64>> {
    let origin = vec![0; metadata.dimensionality()];
    let kind = match metadata.metadata() {
        ArrayMetadata::V3(v3) => v3.chunk_grid.name().to_owned(),
        ArrayMetadata::V2(_) => "regular".to_owned(),
    };
    if kind != "regular" {
        return Err(Error::decode(format!("a chunk grid of kind {kind:?}: only regular ones can be read")));
    }
    metadata.chunk_shape(&origin).map_err(|e| Error::decode(e.to_string()))
}
