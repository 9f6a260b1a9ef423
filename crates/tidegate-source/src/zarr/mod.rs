//! One Zarr array, of version 2 or 3: its chunks, by number.
//!
//! Flow: metadata -> [`Array`] -> the place of a chunk -> its stored bytes -> its elements.
//! Memory: metadata; indexes of shards are in the caller's [`Indexes`].
//! Not here: patches and several arrays (`volume`).
//!
//! A chunk is the unit of decoding: in a sharded array an inner chunk. Chunks are numbered in C
//! order of the grid; the number is their key in caches. Specifications: Zarr v2 and v3,
//! `sharding_indexed`.

mod codecs;
mod shards;

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use zarrs::array::{Array as Metadata, ArrayCreateError, ArrayMetadata};

use self::codecs::Decoder;
pub(crate) use self::shards::Indexes;
use self::shards::Shards;
use crate::error::panic_message;
use crate::files::keyed::Keyed;
use crate::files::read::ReadMode;
use crate::{Error, Result};
use tidegate_decode::npy::DType;

/// A Zarr array, whose chunks are read by number.
#[derive(Debug)]
pub(crate) struct Array {
    store: Arc<Keyed>,
    /// The array's path in the store.
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
    /// The metadata file as it was read.
    text: Vec<u8>,
}

/// The most elements along an axis, and chunks in all: no product of them overflows.
const MAX_SIDE: u64 = 1 << 48;
/// The most bytes of a chunk, which limits what damaged metadata can request.
const MAX_CHUNK_BYTES: u64 = 1 << 32;

/// The key of a name in a folder of the store.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The attributes of an array or a group of either version; None where there is neither.
///
/// # Errors
/// [`Error::Io`]; text that is no JSON.
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
    /// Opens the array at `path` of a store; None if there is none.
    ///
    /// # Errors
    /// Metadata that are damaged or name an unknown extension.
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
        // The library panics on some values of codecs.
        let made = std::panic::catch_unwind(|| Metadata::new_with_metadata(Arc::new(()), "/", metadata));
        let metadata = made
            .map_err(|panic| wrong(format!("metadata that no array can have: {}", panic_message(&*panic))))?
            .map_err(|error| match error {
                // Of version 2 the library reports an unknown codec and an unknown type as one.
                ArrayCreateError::CodecsCreateError(_) | ArrayCreateError::UnsupportedZarrV2Array(_) => {
                    wrong(codecs::unknown(&error).to_string())
                }
                other => wrong(other.to_string()),
            })?;
        let array = Self::new(store, path, metadata, text).map_err(|e| match e {
            Error::Decode(what) => wrong(what.to_string()),
            other => other,
        })?;
        Ok(Some(array))
    }

    fn new(store: &Arc<Keyed>, path: &str, metadata: Metadata<()>, text: Vec<u8>) -> Result<Self> {
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
        if let Some(side) = shape.iter().find(|side| **side > MAX_SIDE) {
            return Err(Error::decode(format!("an axis of {side} elements: at most 2^48 can be read")));
        }
        let outer = regular(&metadata)?;
        let chain = metadata.codecs();
        let shards = Shards::new(&metadata, &outer)?;
        let (inner, decoder) = match &shards {
            Some(shards) => {
                (shards.inner.clone(), Decoder::new(&shards.codecs, &shards.inner, &dtype, &fill)?)
            }
            None => (outer.clone(), Decoder::new(&chain, &outer, &dtype, &fill)?),
        };
        let chunk: Vec<u64> = inner.iter().map(|side| side.get()).collect();
        // In a sharded array the grid covers whole shards.
        let grid = match &shards {
            Some(shards) => shards.grid(&shape, &outer),
            None => shape.iter().zip(&chunk).map(|(n, side)| n.div_ceil(*side)).collect(),
        };
        if grid.iter().try_fold(1u64, |n, side| n.checked_mul(*side)).is_none_or(|chunks| chunks > MAX_SIDE) {
            return Err(Error::decode(format!("a grid of {grid:?} chunks: at most 2^48 can be numbered")));
        }
        if decoder.bytes() > MAX_CHUNK_BYTES {
            return Err(Error::decode(format!(
                "chunks of {chunk:?} elements take {} bytes each: at most 4 GiB can be read, so write the \
                 array again with smaller chunks",
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

    /// The bytes of its metadata file, which identify it.
    pub(crate) fn description(&self) -> &[u8] {
        &self.text
    }

    /// Its metadata file.
    pub(crate) fn metadata_file(&self) -> PathBuf {
        let name =
            if matches!(self.metadata.metadata(), ArrayMetadata::V3(_)) { "zarr.json" } else { ".zarray" };
        self.store.path(&join(&self.path, name))
    }

    /// The number of chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.grid.iter().product()
    }

    /// The number of files, if each chunk or shard has one.
    pub(crate) fn files(&self) -> u64 {
        self.chunks() / self.shards.as_ref().map_or(1, Shards::chunks)
    }

    /// Bytes of a chunk's elements.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.decoder.bytes()
    }

    /// The most bytes of a stored chunk.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.decoder.stored_bytes()
    }

    /// The most bytes that decoding a chunk takes in addition.
    pub(crate) fn library_bytes(&self) -> u64 {
        self.decoder.library_bytes()
    }

    /// The number of its shards, and the bytes of the index of one: kept, and while it is read.
    pub(crate) fn shards(&self) -> Option<(u64, (u64, u64))> {
        self.shards.as_ref().map(|shards| (self.files(), shards.index_bytes()))
    }

    /// The latency of its store.
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

    /// The name of a chunk, for messages.
    pub(crate) fn name(&self, number: u64) -> String {
        let (key, within) = self.key(number);
        let path = self.store.path(&key);
        if self.shards.is_some() {
            format!("chunk {within} of {}", path.display())
        } else {
            path.display().to_string()
        }
    }

    /// Reads a stored chunk into `into` and returns where in `into` it is; None for a chunk that
    /// is not stored, whose elements are the fill value.
    ///
    /// `into` has room for [`crate::files::read::staging_bytes`] of [`Array::stored_bytes`].
    ///
    /// # Errors
    /// A failed read; a chunk or an index that is too long, or outside of its file.
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
                let Some(index) = indexes.get(&self.store, &key, shards, mode)? else { return Ok(None) };
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

    /// Decodes a stored chunk into `into`, which has its length.
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

    /// Sets each element to the fill value.
    pub(crate) fn fill(&self, into: &mut [u8]) {
        let fill = self.fill_value();
        match fill.iter().all(|byte| *byte == fill[0]) {
            true => into.fill(fill[0]),
            false => into.chunks_exact_mut(fill.len()).for_each(|element| element.copy_from_slice(fill)),
        }
    }

    /// The bytes of the fill value.
    pub(crate) fn fill_value(&self) -> &[u8] {
        self.metadata.fill_value().as_ne_bytes()
    }
}

/// The shape of chunks, which must be equal for all.
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
