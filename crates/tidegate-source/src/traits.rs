//! The traits of sources: indexed samples, and samples that are stored in groups or in chunks.
//!
//! Flow: every format implements them; the pipeline, scans and `inspect` call them.
//! Memory: a source holds its side-car index (account `index`); sample bytes go into the caller's
//! staging.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_decode::{Schema, Value};

use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::files::read::{Extent, ReadMode, aligned, staging_bytes};
use crate::index::{Index, Located, SizeBounds};
use crate::left_out::LeftOut;
use crate::{Error, Place, Result};

/// How samples can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Any sample by one read of its own bytes.
    Random,
    /// A sample by decoding the group of rows that holds it: see [`Grouped`].
    Grouped,
    /// A sample by decoding the chunks that it overlaps: see [`Chunked`].
    Chunked,
    /// Only in ascending order within a shard.
    Sequential {
        /// Why, and what a random read would cost.
        why: String,
    },
}

/// Indexed samples; object-safe, shared by all threads.
///
/// A source reads by position into memory of the caller, so it holds no sample bytes itself.
///
/// Most methods have a default on top of [`Source::side_car_index`] and [`Source::files`]. A
/// source without an index implements `len`, `schema`, `fingerprint`, `shard_lengths`,
/// `size_bounds` and `locate` itself; one without files, `read`.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The path or URL that opened it.
    fn name(&self) -> &str;

    /// The side-car index, if there is one, for every kind of access.
    fn side_car_index(&self) -> Option<&Index> {
        None
    }

    /// What was found beside the samples and is not one of them, when the data were indexed.
    fn left_out(&self) -> &[LeftOut] {
        self.side_car_index().map_or(&[], |index| &index.meta.left_out)
    }

    /// What is uncertain about the fields, in words.
    fn uncertain(&self) -> &[String] {
        self.side_car_index().map_or(&[], |index| &index.meta.uncertain)
    }

    /// The fields of times, and what their integers count, as NumPy's dtype: `datetime64[us]`.
    fn units(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// For each field of the schema, how many samples of the indexed files lack it; empty where
    /// none does, or where it is not known.
    fn missing(&self) -> &[u64] {
        self.side_car_index().map_or(&[], |index| &index.meta.missing)
    }

    /// The shards of the samples, if each entry of the index names a shard and an offset.
    fn files(&self) -> Option<&Files> {
        None
    }

    /// The number of samples.
    fn len(&self) -> u64 {
        self.side_car_index().map_or(0, |index| index.meta.samples)
    }

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fields of every sample.
    fn schema(&self) -> &Schema {
        static NO_FIELDS: Schema = Vec::new();
        self.side_car_index().map_or(&NO_FIELDS, |index| &index.meta.schema)
    }

    /// A hash over names, sizes and headers: equal for equal data in any folder.
    fn fingerprint(&self) -> u64 {
        self.side_car_index().map_or(0, |index| index.meta.fingerprint)
    }

    /// A hash that changes with the content, as far as sizes, times and version tags tell.
    ///
    /// Caches on disk and profiles are kept under it. Unlike the fingerprint it may differ for
    /// equal data.
    fn content_version(&self) -> u64 {
        self.files().map_or(0, Files::content_version)
    }

    /// The number of samples in each shard (file, group or array), in id order.
    fn shard_lengths(&self) -> Vec<u64> {
        let shards = self.side_car_index().map_or(&[][..], |index| &index.meta.shards);
        shards.iter().map(|shard| shard.samples).collect()
    }

    /// How samples can be reached.
    fn access(&self) -> Access {
        Access::Random
    }

    /// Bounds of sizes over all samples.
    fn size_bounds(&self) -> SizeBounds {
        self.side_car_index().map(|index| index.meta.bounds).unwrap_or_default()
    }

    /// Bytes that a library holds while the source is read (decompressors); the reader charges
    /// them.
    fn library_bytes(&self) -> u64 {
        0
    }

    /// The time from a request to its first byte, where reading goes over a network.
    fn latency(&self) -> Option<Duration> {
        self.files().and_then(Files::latency)
    }

    /// Whether reading goes over a network.
    fn is_remote(&self) -> bool {
        self.latency().is_some()
    }

    /// Bytes that the kernel keeps for files that were opened, such as inodes and names.
    fn kernel_bytes(&self) -> u64 {
        0
    }

    /// The groups of samples, with [`Access::Grouped`].
    fn grouped(&self) -> Option<&dyn Grouped> {
        None
    }

    /// The chunks of arrays whose patches are the samples, with [`Access::Chunked`].
    fn chunked(&self) -> Option<&dyn Chunked> {
        None
    }

    /// The side-car index, with [`Access::Random`].
    fn index(&self) -> Option<&Index> {
        self.side_car_index().filter(|_| self.access() == Access::Random)
    }

    /// The folder of the index, where profiles and the like are kept too.
    fn index_dir(&self) -> Option<&Path> {
        self.index().map(Index::dir)
    }

    /// Finds `ids` in the index, in the order given.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let index = self.side_car_index();
        index.ok_or_else(|| not_implemented(self.name(), "locate"))?.locate(ids)
    }

    /// Reads `len` bytes from the start of the sample `at` into `into`, and returns where in
    /// `into` they are.
    ///
    /// `into` holds at least [`staging_bytes`] of `len`.
    ///
    /// # Errors
    /// When the file cannot be read or is shorter than when it was indexed.
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        let files = self.files().ok_or_else(|| not_implemented(self.name(), "read"))?;
        files.read(at.entry.shard, at.entry.offset, len, mode, into)
    }

    /// The place of the stored bytes of the sample `at`, so that several reads can be in flight.
    ///
    /// None where the file cannot be read directly or only [`Source::read`] makes the bytes.
    fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        self.files()?.extent(at.entry.shard, at.entry.offset)
    }

    /// Finds the fields in the bytes of the sample `at`, one value for each field of the schema.
    ///
    /// # Errors
    /// When the bytes do not match the index.
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>>;

    /// Whether the file of the sample `at` has changed since it was indexed, in words. Asked when
    /// the sample fails. The next opening then makes the index again.
    fn changed(&self, at: &Located) -> Option<String> {
        let (index, files) = (self.side_car_index()?, self.files()?);
        let shard = index.meta.shards.get(at.entry.shard as usize)?;
        (!files.is_remote()).then(|| index.changed(files.path(at.entry.shard).ok()?, shard.bytes)).flatten()
    }

    /// The sample's own name; without an index its id.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn key(&self, id: u64) -> Result<String> {
        self.side_car_index().map_or_else(|| Ok(id.to_string()), |index| index.key(id))
    }

    /// The place of a sample, for messages.
    fn place(&self, at: &Located) -> Place {
        if let Some(index) = self.side_car_index() {
            return index.place(at);
        }
        let path = self.files().and_then(|files| files.paths().get(at.entry.shard as usize));
        let shard = path.map(|path| file_name(path)).unwrap_or_default();
        Place { id: at.id, shard, offset: at.entry.offset, key: at.id.to_string() }
    }

    /// Names of classes, where labels are folders.
    fn classes(&self) -> &[String] {
        self.side_car_index().map_or(&[], |index| &index.meta.classes)
    }

    /// The files, for `inspect` and for choosing a read mode.
    fn shards(&self) -> Vec<PathBuf> {
        self.files().map(|files| files.paths().to_vec()).unwrap_or_default()
    }
}

fn not_implemented(name: &str, method: &str) -> Error {
    Error::Internal(format!("{name}: this kind of source does not implement {method}"))
}

/// A source whose samples are stored in groups that are decoded as a whole: row groups of Parquet,
/// record batches of Arrow. The lengths of groups are its shard lengths, in id order.
pub trait Grouped: Send + Sync {
    /// Bytes of the largest group once decoded and packed.
    fn group_bytes(&self) -> u64;

    /// The group of a sample.
    fn group_of(&self, at: &Located) -> u64;

    /// Decodes the group of the sample `at` into `into`, with the `wanted` fields only.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or changed since it was indexed.
    fn decode(&self, at: &Located, wanted: &[bool], mode: ReadMode, into: &mut [u8]) -> Result<()>;

    /// The bytes of the sample `at` in its decoded group.
    fn row<'a>(&self, at: &Located, group: &'a [u8]) -> Option<&'a [u8]>;
}

/// Sizes of the chunks of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkSizes {
    /// Bytes of the elements of all chunks.
    pub total_bytes: u64,
    /// Bytes of the elements of the largest chunk.
    pub chunk_bytes: u64,
    /// The most bytes of a stored chunk.
    pub stored_bytes: u64,
    /// The most bytes that decoding a chunk takes in addition.
    pub library_bytes: u64,
    /// Bytes of the chunk-location table: the whole table.
    pub index_bytes: u64,
    /// Bytes of its smallest useful part.
    pub index_least_bytes: u64,
    /// Bytes of the elements of all chunks of a sample, on average.
    pub patch_bytes: u64,
}

/// A source whose samples are patches of arrays stored in chunks, which several samples share.
///
/// Chunks of all arrays have one numbering.
pub trait Chunked: Send + Sync {
    /// The number of chunks.
    fn chunks(&self) -> u64;

    /// Their sizes.
    fn sizes(&self) -> ChunkSizes;

    /// Limits the chunk-location table to this number of bytes, which the caller has charged.
    fn set_index_bytes(&self, bytes: u64);

    /// Bytes of the elements of a chunk.
    fn chunk_bytes(&self, chunk: u64) -> u64;

    /// Calls `each` with the chunks of a field of a sample.
    fn chunks_of(&self, id: u64, field: usize, each: &mut dyn FnMut(u64));

    /// Reads a stored chunk into `into` and returns where in `into` it is.
    ///
    /// `into` holds [`staging_bytes`] of the largest stored chunk. None means that the chunk is
    /// not stored and all its elements are the fill value.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than its codecs allow.
    fn read_chunk(&self, chunk: u64, mode: ReadMode, into: &mut [u8]) -> Result<Option<Range<usize>>>;

    /// Decodes a chunk into `into`, which has its length; one that is not stored is the fill
    /// value.
    ///
    /// # Errors
    /// When it is damaged, with its name.
    fn decode_chunk(&self, chunk: u64, stored: Option<&[u8]>, into: &mut [u8]) -> Result<()>;

    /// Copies the elements that a chunk and a field of a sample share to their place in the row.
    fn copy(&self, id: u64, field: usize, chunk: u64, elements: &[u8], row: &mut [u8]);

    /// Fills the part of a field of a sample beyond the border, after the last copy.
    fn finish(&self, id: u64, field: usize, row: &mut [u8]);

    /// The name of a chunk, for messages.
    fn describe(&self, chunk: u64) -> String;
}

/// Conveniences on top of [`Source`].
pub trait SourceExt: Source {
    /// Reads one sample's bytes into new memory: to look at data, not to train.
    ///
    /// # Errors
    /// As [`Source::locate`] and [`Source::read`]; an id past the end.
    fn fetch(&self, id: u64) -> Result<(Located, Vec<u8>)> {
        if id >= self.len() {
            return Err(Error::Config(format!("sample {id} of {} has only {}", self.name(), self.len())));
        }
        let at = self.locate(&[id])?.swap_remove(0);
        let len = u64::from(at.entry.len);
        let mut staging = aligned(staging_bytes(len) as usize);
        let range = self.read(&at, len, ReadMode::Plain, &mut staging)?;
        let bytes = staging[range].to_vec();
        Ok((at, bytes))
    }

    /// An error about a field of a sample, with its place; an empty field means the whole sample.
    fn sample_error(&self, at: &Located, field: &str, what: impl std::fmt::Display) -> Error {
        Error::Sample { place: Box::new(self.place(at)), field: field.to_owned(), what: what.to_string() }
    }
}

impl<S: Source + ?Sized> SourceExt for S {}
