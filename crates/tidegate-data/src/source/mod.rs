//! Where samples come from: files as they are, opened as one indexed dataset.
//!
//! Flow: [`open`] -> [`Source`] -> located entries -> bytes of a sample -> its field values.
//! Memory: the side-car index (account `index`, see [`index`]); sample bytes go into the caller's staging.
//! Not here: decoding of what the fields hold (`decode`), the order of ids (`order`).

mod archive;
#[cfg(feature = "parquet")]
mod arrow_file;
pub mod checkpoints;
#[cfg(feature = "parquet")]
mod columns;
mod delimited;
mod folder;
pub mod index;
pub(crate) mod json;
#[cfg(feature = "zarr")]
mod keyed;
pub(crate) mod libsvm;
mod lines;
mod mds;
mod open;
#[cfg(feature = "parquet")]
mod parquet_file;
#[cfg(feature = "parquet")]
mod parquet_pages;
mod quoted;
pub mod read;
#[cfg(feature = "remote")]
mod remote;
pub mod rows;
mod subset;
mod synthetic;
#[cfg(feature = "parquet")]
mod table;
pub mod tar;
pub mod tokens;
#[cfg(feature = "parquet")]
mod unpacking;
pub(crate) mod uring;
#[cfg(feature = "zarr")]
pub mod volume;
#[cfg(feature = "zarr")]
mod zarr;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::index::Entry;
pub use self::open::{open, open_with_checkpoints};
pub use self::quoted::Quoted;
pub use self::read::ReadMode;
pub use self::subset::{Subset, split};
pub use self::synthetic::Synthetic;
use crate::decode::npy::{ArrayRef, DType};
use crate::decode::{compact, npy};
use crate::{Place, Result};

/// What a field holds at rest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An encoded image: JPEG, PNG or WebP, told apart by its first bytes.
    Image,
    /// Anything.
    Bytes,
    /// UTF-8 text.
    Text,
    /// A JSON document.
    Json,
    /// An integer.
    Int,
    /// A float.
    Float,
    /// An array in NumPy's .npy format.
    Npy,
    /// An array as MDS writes it; the fixed dtype and shape where its column declares them.
    NdArray {
        /// The dtype of every sample, if declared.
        dtype: Option<String>,
        /// The shape of every sample, if declared.
        shape: Option<Vec<usize>>,
    },
    /// An array made small, quantized or packed, as its bytes say: always of this type and shape once it is whole.
    Compact {
        /// Element type; of what is quantized the one that it had.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// The name of the codec; `quantized` where codes are values of a grid.
        codec: String,
    },
    /// A list of numbers as JSON writes it.
    Numbers {
        /// Element type: int64 or float64.
        dtype: DType,
    },
    /// One part of the entries of a sparse row.
    Sparse {
        /// Which.
        part: Part,
        /// The index of the first column in the file; delivered ones begin with 0.
        base: u64,
        /// Columns.
        columns: u64,
    },
    /// A patch of an array that lies in chunks: always of this type and shape.
    Patch {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// Along the patch's axes, the last of the shape, how many of its voxels are how many of the first field's.
        voxels: Vec<(u32, u32)>,
    },
    /// An uncompressed image as MDS' `pil` writes it: width, height, mode, pixels.
    Pixels,
}

impl Kind {
    /// Whether its values are near to what they were, and can be had in several types.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        matches!(self, Kind::Compact { codec, .. } if codec == compact::QUANTIZED)
    }

    /// The array that a value holds, where each says itself or the field says what it is.
    pub fn array<'a>(&self, bytes: &'a [u8]) -> Option<Result<ArrayRef<'a>>> {
        match self {
            Kind::Npy => Some(npy::npy(bytes)),
            Kind::NdArray { dtype, shape } => Some(npy::mds(bytes, dtype.as_deref(), shape.as_deref())),
            Kind::Patch { dtype, shape, .. } => Some(npy::mds(bytes, Some(dtype.name()), Some(shape))),
            _ => None,
        }
    }

    /// The kind's word in schemas and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Bytes => "bytes",
            Kind::Text => "text",
            Kind::Json => "json",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Npy => "npy",
            Kind::NdArray { .. } => "ndarray",
            Kind::Compact { .. } => "compact array",
            Kind::Numbers { .. } => "numbers",
            Kind::Patch { .. } => "patch",
            Kind::Sparse { part: Part::Indices, .. } => "sparse indices",
            Kind::Sparse { part: Part::Values, .. } => "sparse values",
            Kind::Pixels => "pixels",
        }
    }
}

/// What of the entries of a sparse row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Their columns, as uint32.
    Indices,
    /// What they are, as float32.
    Values,
}

impl Part {
    /// The type of its elements.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Part::Indices => DType::Uint32,
            Part::Values => DType::Float32,
        }
    }
}

/// One field of every sample.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

/// The fields of a source, in order.
pub type Schema = Vec<Field>;

/// One field of one sample, borrowed from the bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// The sample lacks this field.
    Missing,
    /// Encoded bytes or text.
    Bytes(&'a [u8]),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text within quotes.
    Quoted(Quoted<'a>),
}

impl Value<'_> {
    /// It in a few words, for messages.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Value::Missing => "nothing".into(),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::Int(x) => x.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Quoted(text) => format!("text of {} bytes", text.most()),
        }
    }
}

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

/// Orders names as people do: shard_2 before shard_10.
#[must_use]
pub fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        match (x.first(), y.first()) {
            (Some(p), Some(q)) if p.is_ascii_digit() && q.is_ascii_digit() => {
                let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
                let (m, n) = (digits(x), digits(y));
                let trim = |s: &[u8]| s.iter().position(|&c| c != b'0').unwrap_or(s.len());
                let (u, v) = (&x[..m][trim(&x[..m])..], &y[..n][trim(&y[..n])..]);
                let order = u.len().cmp(&v.len()).then_with(|| u.cmp(v));
                if order.is_ne() {
                    return order;
                }
                (x, y) = (&x[m..], &y[n..]);
            }
            (Some(p), Some(q)) if p == q => (x, y) = (&x[1..], &y[1..]),
            (p, q) => return p.cmp(&q).then_with(|| a.cmp(b)),
        }
    }
}

/// The kind that a file extension promises.
#[must_use]
pub fn kind_of_extension(extension: &str) -> Kind {
    match extension.rsplit('.').next().unwrap_or(extension).to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "png" | "webp" | "img" | "image" => Kind::Image,
        "cls" | "cls2" | "class" | "count" | "index" | "inx" | "id" => Kind::Int,
        "txt" | "text" | "transcript" => Kind::Text,
        "json" | "jsn" => Kind::Json,
        "npy" => Kind::Npy,
        _ => Kind::Bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_number() {
        let mut names = ["s_10", "s_2", "s_02", "a9z", "a10", "s_1", "s"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["a9z", "a10", "s", "s_1", "s_02", "s_2", "s_10"]);
    }
}
