//! The traits of sources: indexed samples, and those whose samples are stored in groups or in chunks.
//!
//! Flow: implemented by every format; called by the pipeline, by scans and by `inspect`.
//! Memory: a source holds its side-car index (account `index`); sample bytes go into the caller's staging.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_decode::{Schema, Value};

use crate::read::ReadMode;
use crate::{Entry, Place, Result, index, read};

/// How samples can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Any sample by one read of its own bytes.
    Random,
    /// A sample by decoding the whole group of rows that it is stored with: see [`Grouped`].
    Grouped,
    /// A sample by decoding the chunks that it lies in: see [`Chunked`].
    Chunked,
    /// Only in ascending order within a shard.
    Sequential {
        /// Why, and what a random read would cost.
        why: String,
    },
}

/// Sizes over the whole source, known before anything is read: what makes a byte budget plannable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extremes {
    /// Bytes of all samples.
    pub total_bytes: u64,
    /// Bytes of the largest sample.
    pub sample_bytes: u64,
    /// What decoding an image takes at most.
    pub scratch_bytes: u64,
    /// The id of the sample with that image.
    pub scratch_id: u64,
    /// Bytes of the largest image once decoded.
    pub decoded_bytes: u64,
    /// The id of the sample with that image.
    pub decoded_id: u64,
    /// The longest side of any image, in pixels.
    pub side: u64,
}

/// A sample found in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its id.
    pub id: u64,
    /// Its record in the index.
    pub entry: Entry,
    /// Its file, where each sample is a file of its own; else empty.
    pub path: Box<str>,
}

/// Indexed samples; object-safe, shared by all threads.
///
/// Bytes are read by positional reads into memory of the caller, so that a source holds none of its own.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The path or words that opened it.
    fn name(&self) -> &str;

    /// Samples.
    fn len(&self) -> u64;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fields of every sample.
    fn schema(&self) -> &Schema;

    /// A hash over names, sizes and headers: the same data have the same one, wherever they lie.
    fn fingerprint(&self) -> u64;

    /// A hash over what changes with the content, as far as can be told without reading it: tags of objects, sizes and times of
    /// files. What is kept from one run to the next is kept under it; unlike the fingerprint it may differ for the same data.
    fn edition(&self) -> u64 {
        0
    }

    /// Lengths of what is stored together (shards), in id order.
    fn runs(&self) -> Vec<u64>;

    /// How samples can be reached.
    fn access(&self) -> Access {
        Access::Random
    }

    /// Sizes over all samples.
    fn extremes(&self) -> Extremes;

    /// Bytes that a library takes for as long as the source is read (decompressors), to be charged by the reader.
    fn library_bytes(&self) -> u64 {
        0
    }

    /// How long a request to a store takes before its first byte comes, if reading goes over the network.
    fn latency(&self) -> Option<Duration> {
        None
    }

    /// Whether reading goes over the network.
    fn is_remote(&self) -> bool {
        self.latency().is_some()
    }

    /// What the kernel keeps of files that were opened once, if each sample is one: their inodes and names.
    fn kernel_bytes(&self) -> u64 {
        0
    }

    /// The groups, where samples can be reached by groups alone ([`Access::Grouped`]).
    fn grouped(&self) -> Option<&dyn Grouped> {
        None
    }

    /// The chunks, where samples are patches of arrays that lie in chunks ([`Access::Chunked`]).
    fn chunked(&self) -> Option<&dyn Chunked> {
        None
    }

    /// The side-car index of samples that are read one by one.
    fn index(&self) -> Option<&index::Index> {
        None
    }

    /// The folder of the index, where what is known of the data is kept besides.
    fn side_car(&self) -> Option<&Path> {
        self.index().map(index::Index::dir)
    }

    /// Finds `ids` in the index, in the order given.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>>;

    /// Reads `len` bytes that start with the sample `at` into `into`, whose length is at least
    /// [`read::staging_bytes`] of `len`, and says where in `into` they lie.
    ///
    /// # Errors
    /// When the file cannot be read or is shorter than when it was indexed.
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8])
    -> Result<std::ops::Range<usize>>;

    /// Where the bytes of the sample `at` lie as they are in a file that can be read directly, so that several reads can
    /// be in flight at once; nothing where only [`Source::read`] can tell.
    fn extent(&self, at: &Located) -> Option<read::Extent<'_>> {
        let _only_read_can_tell = at;
        None
    }

    /// Finds the fields in the bytes of the sample `at`, one value for each field of the schema.
    ///
    /// # Errors
    /// When the bytes are not what the index says.
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>>;

    /// The sample's own name.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn key(&self, id: u64) -> Result<String>;

    /// Where a sample lies, for messages.
    fn place(&self, at: &Located) -> Place;

    /// Names of classes, where labels are folders.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// The files, for `inspect` and for choosing a read mode.
    fn shards(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// A source whose samples are stored in groups that must be decoded as a whole: row groups of Parquet, record batches of
/// Arrow. Groups are the runs of the source, in id order.
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

    /// Where the sample `at` lies in its decoded group.
    fn row<'a>(&self, at: &Located, group: &'a [u8]) -> Option<&'a [u8]>;
}

/// Sizes of the chunks of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkSizes {
    /// Elements of all chunks.
    pub total_bytes: u64,
    /// Elements of the largest chunk.
    pub chunk_bytes: u64,
    /// What a chunk takes at most as it is stored.
    pub stored_bytes: u64,
    /// What decoding one takes at most besides.
    pub library_bytes: u64,
    /// What where chunks lie takes in memory, all of it, and the least that is of use.
    pub index_bytes: u64,
    /// See `index_bytes`.
    pub index_least_bytes: u64,
    /// Elements of all chunks of a sample, on average.
    pub patch_bytes: u64,
}

/// A source whose samples are patches of arrays that lie in chunks, which several samples have in common: of volumes. Chunks of all
/// arrays have one numbering.
pub trait Chunked: Send + Sync {
    /// Chunks.
    fn chunks(&self) -> u64;

    /// Their sizes.
    fn sizes(&self) -> ChunkSizes;

    /// Keeps where chunks lie in at most so many bytes, which the caller has charged.
    fn set_index_bytes(&self, bytes: u64);

    /// Bytes of the elements of a chunk.
    fn chunk_bytes(&self, chunk: u64) -> u64;

    /// Names the chunks of a field of a sample.
    fn chunks_of(&self, id: u64, field: usize, each: &mut dyn FnMut(u64));

    /// Reads a chunk as it is stored into `into`, which has room for [`read::staging_bytes`] of the most that it may take, and says where
    /// in it it lies; nothing where none is stored, and all its elements are alike.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than it may be.
    fn read_chunk(
        &self,
        chunk: u64,
        mode: ReadMode,
        into: &mut [u8],
    ) -> Result<Option<std::ops::Range<usize>>>;

    /// Decodes a chunk, or what stands for one that is not stored, into `into`, which has its length.
    ///
    /// # Errors
    /// When it is damaged, naming it.
    fn decode_chunk(&self, chunk: u64, stored: Option<&[u8]>, into: &mut [u8]) -> Result<()>;

    /// Copies what the elements of a chunk have in common with a field of a sample to its place there.
    fn copy(&self, id: u64, field: usize, chunk: u64, elements: &[u8], row: &mut [u8]);

    /// Fills what of a field of a sample lies in no chunk, once all were copied.
    fn finish(&self, id: u64, field: usize, row: &mut [u8]);

    /// A chunk in words.
    fn describe(&self, chunk: u64) -> String;
}

/// Conveniences on top of [`Source`].
pub trait SourceExt: Source {
    /// Reads one sample's bytes into fresh memory: for looking at data, not for training.
    ///
    /// # Errors
    /// As [`Source::locate`] and [`Source::read`]; an id past the end.
    fn fetch(&self, id: u64) -> Result<(Located, Vec<u8>)> {
        if id >= self.len() {
            return Err(crate::Error::Config(format!(
                "sample {id} of {} has only {}",
                self.name(),
                self.len()
            )));
        }
        let at = self.locate(&[id])?.swap_remove(0);
        let len = u64::from(at.entry.len);
        let mut staging = read::aligned(read::staging_bytes(len) as usize);
        let range = self.read(&at, len, ReadMode::Plain, &mut staging)?;
        let bytes = staging[range].to_vec();
        Ok((at, bytes))
    }

    /// What went wrong with a field of a sample, or with all of it where no field is named, with its place.
    fn blame(&self, at: &Located, field: &str, what: impl std::fmt::Display) -> crate::Error {
        crate::Error::Sample {
            place: Box::new(self.place(at)),
            field: field.to_owned(),
            what: what.to_string(),
        }
    }
}

impl<S: Source + ?Sized> SourceExt for S {}
