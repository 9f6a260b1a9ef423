//! Volumes: patches of N-d arrays stored in chunks, of several arrays of the same space at once.
//!
//! Flow: URL + arrays + patch -> [`Volume`], a source whose ids are the places where a patch can
//! start
//! -> the chunks of a patch -> its rows.
//! Memory: metadata of arrays, and indexes of their shards within a limit that the loader has
//! charged (account `index`).
//! Not here: caching and decoding chunks (`pipeline`, `cache` of `tidegate-data`), the order of
//! patches (`tidegate-order`).
//!
//! An id is the number of a place in the lattice of origins, in C order, so orders, ranks and
//! states work as for any source.

mod align;
pub mod labels;
mod ngff;
mod open;
pub mod refine;
mod scan;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_array::kernels::boxes::{self, Beyond, Corner, MOST_AXES};

use self::align::{Along, Places};
pub use self::open::{ArrayOptions, Missing, Options, Pad, Scale, levels};
use crate::files::KERNEL_FILE_BYTES;
use crate::files::read::hash_version;
use crate::zarr::{Array, Indexes};
use crate::{Access, ChunkSizes, Chunked, Entry, Located, ReadMode, SizeBounds, Source};
use crate::{Error, Place, Result};
use tidegate_decode::{Schema, Value};
use tidegate_order::lattice::ChunkGrid;

/// One array, and the places of its patches.
#[derive(Debug)]
struct Part {
    name: String,
    array: Array,
    /// Its chunks follow those of the arrays before.
    first_chunk: u64,
    /// Along the axes of the patch, which are the array's last ones.
    along: Vec<Along>,
    /// The patch along all axes.
    shape: Vec<usize>,
}

/// Patches of aligned arrays as samples.
#[derive(Debug)]
pub struct Volume {
    url: String,
    parts: Vec<Part>,
    places: Vec<Places>,
    pad: Pad,
    missing: Missing,
    schema: Schema,
    fingerprint: u64,
    sizes: ChunkSizes,
    indexes: Indexes,
}

/// A value for each axis, on the stack.
type Axes<T> = [T; MOST_AXES];

impl Volume {
    /// The corner of a patch, in voxels of the first array along the axes of the patch.
    #[must_use]
    pub fn origin(&self, id: u64) -> Vec<i64> {
        self.origins(id)[..self.places.len()].to_vec()
    }

    /// The lattice of places, and the places in a chunk of the first array.
    #[must_use]
    pub fn grid(&self) -> ChunkGrid {
        let first = &self.parts[0];
        let chunk = &first.array.chunk[first.array.chunk.len() - self.places.len()..];
        ChunkGrid {
            counts: self.places.iter().map(|places| places.count).collect(),
            steps: self
                .places
                .iter()
                .zip(chunk)
                .map(|(places, chunk)| (chunk / places.stride).max(1))
                .collect(),
        }
    }

    /// Voxels of the first array along the axes of the patch, and of a chunk of it.
    #[must_use]
    pub fn sides(&self) -> (Vec<usize>, Vec<usize>) {
        let Array { shape, chunk, .. } = &self.parts[0].array;
        let last =
            |all: &[u64]| all[all.len() - self.places.len()..].iter().map(|side| *side as usize).collect();
        (last(shape), last(chunk))
    }

    fn origins(&self, mut id: u64) -> Axes<i64> {
        let mut origin = [0; MOST_AXES];
        for (axis, places) in self.places.iter().enumerate().rev() {
            origin[axis] = places.origin(id % places.count);
            id /= places.count;
        }
        origin
    }

    /// The id of the patch that starts nearest to a place.
    ///
    /// # Errors
    /// [`Error::Config`] for a place with another number of axes.
    pub fn nearest(&self, origin: &[i64]) -> Result<u64> {
        if origin.len() != self.places.len() {
            return Err(Error::Config(format!(
                "a place of {} numbers, where the patch has {} axes",
                origin.len(),
                self.places.len()
            )));
        }
        let axes = self.places.iter().zip(origin);
        Ok(axes.fold(0, |id, (places, &at)| id * places.count + places.nearest(at)))
    }

    /// The start of the part's patch, along all axes of its array.
    fn begin(&self, part: &Part, id: u64) -> Axes<i64> {
        let (origin, mut begin) = (self.origins(id), [0; MOST_AXES]);
        let whole = part.shape.len() - part.along.len();
        for (axis, along) in part.along.iter().enumerate() {
            begin[whole + axis] = along.begin(origin[axis]);
        }
        begin
    }

    fn part_of(&self, chunk: u64) -> &Part {
        let after = self.parts.partition_point(|part| part.first_chunk <= chunk);
        &self.parts[after.max(1) - 1]
    }

    /// Makes a patch of one field, chunk by chunk.
    fn patch(&self, id: u64, field: usize, mode: ReadMode, row: &mut [u8]) -> Result<()> {
        let mut staging =
            crate::files::read::aligned(crate::files::read::staging_bytes(self.sizes.stored_bytes) as usize);
        let mut chunks = Vec::new();
        self.chunks_of(id, field, &mut |chunk| chunks.push(chunk));
        for chunk in chunks {
            let stored = self.read_chunk(chunk, mode, &mut staging)?;
            let mut elements = vec![0; self.chunk_bytes(chunk) as usize];
            self.decode_chunk(chunk, stored.map(|range| &staging[range]), &mut elements)?;
            self.copy(id, field, chunk, &elements, row);
        }
        self.finish(id, field, row);
        Ok(())
    }
}

impl Chunked for Volume {
    fn chunks(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.first_chunk + part.array.chunks())
    }

    fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    fn set_index_bytes(&self, bytes: u64) {
        self.indexes.set_limit(bytes);
    }

    fn chunk_bytes(&self, chunk: u64) -> u64 {
        self.part_of(chunk).array.chunk_bytes()
    }

    fn chunks_of(&self, id: u64, field: usize, each: &mut dyn FnMut(u64)) {
        let part = &self.parts[field];
        let (array, begin) = (&part.array, self.begin(part, id));
        let axes = part.shape.len();
        // From the first chunk to the last along each axis.
        let (mut from, mut to) = ([0u64; MOST_AXES], [0u64; MOST_AXES]);
        for axis in 0..axes {
            let low = begin[axis].max(0).cast_unsigned();
            let end = (begin[axis] + part.shape[axis] as i64).min(array.shape[axis].cast_signed());
            if end <= low.cast_signed() {
                return;
            }
            (from[axis], to[axis]) = (low / array.chunk[axis], (end.cast_unsigned() - 1) / array.chunk[axis]);
        }
        let mut at = from;
        loop {
            each(part.first_chunk + array.number(&at[..axes]));
            let Some(axis) = (0..axes).rev().find(|&axis| at[axis] < to[axis]) else { return };
            at[axis] += 1;
            at[axis + 1..axes].copy_from_slice(&from[axis + 1..axes]);
        }
    }

    fn read_chunk(&self, chunk: u64, mode: ReadMode, into: &mut [u8]) -> Result<Option<Range<usize>>> {
        let part = self.part_of(chunk);
        part.array.read(chunk - part.first_chunk, mode, &self.indexes, into)
    }

    fn decode_chunk(&self, chunk: u64, stored: Option<&[u8]>, into: &mut [u8]) -> Result<()> {
        let part = self.part_of(chunk);
        if stored.is_none() && self.missing == Missing::Error {
            let name = part.array.name(chunk - part.first_chunk);
            return Err(Error::decode(format!(
                "{name}: this chunk is not stored: restore it, or take the fill value with missing=\"fill\""
            )));
        }
        part.array.decode(chunk - part.first_chunk, stored, into)
    }

    fn copy(&self, id: u64, field: usize, chunk: u64, elements: &[u8], row: &mut [u8]) {
        let part = &self.parts[field];
        let (array, begin) = (&part.array, self.begin(part, id));
        let axes = part.shape.len();
        let at = array.at(chunk - part.first_chunk);
        let (mut from, mut into, mut extent, mut side) =
            ([0; MOST_AXES], [0; MOST_AXES], [0; MOST_AXES], [0; MOST_AXES]);
        for axis in 0..axes {
            side[axis] = array.chunk[axis] as usize;
            let first = (at[axis] * array.chunk[axis]).cast_signed();
            let low = first.max(begin[axis]);
            let end = (first + side[axis] as i64)
                .min(begin[axis] + part.shape[axis] as i64)
                .min(array.shape[axis].cast_signed());
            extent[axis] = (end - low).max(0) as usize;
            (from[axis], into[axis]) = ((low - first) as usize, (low - begin[axis]) as usize);
        }
        if extent[..axes].contains(&0) {
            return;
        }
        let source = Corner { shape: &side[..axes], at: &from[..axes] };
        let target = Corner { shape: &part.shape, at: &into[..axes] };
        boxes::copy(elements, source, row, target, &extent[..axes], array.dtype.size());
    }

    fn finish(&self, id: u64, field: usize, row: &mut [u8]) {
        let part = &self.parts[field];
        let beyond = match self.pad {
            Pad::None => return,
            Pad::Constant => Beyond::Constant(part.array.fill_value()),
            Pad::Edge => Beyond::Edge,
            Pad::Reflect => Beyond::Reflect,
        };
        let begin = self.begin(part, id);
        let inside: Vec<Range<usize>> = part
            .shape
            .iter()
            .zip(&part.array.shape)
            .zip(begin)
            .map(|((&patch, &shape), begin)| {
                let start = (-begin).clamp(0, patch as i64);
                let end = (shape.cast_signed() - begin).clamp(start, patch as i64);
                start as usize..end as usize
            })
            .collect();
        boxes::extend(row, &part.shape, &inside, part.array.dtype.size(), beyond);
    }

    fn describe(&self, chunk: u64) -> String {
        let part = self.part_of(chunk);
        part.array.name(chunk - part.first_chunk)
    }
}

impl Source for Volume {
    fn name(&self) -> &str {
        &self.url
    }
    fn len(&self) -> u64 {
        self.places.iter().map(|places| places.count).product()
    }
    fn schema(&self) -> &Schema {
        &self.schema
    }
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
    fn content_version(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for part in &self.parts {
            hash.update(part.array.place().as_os_str().as_encoded_bytes());
            hash.update(part.array.description());
            hash_version(&mut hash, &part.array.metadata_file());
        }
        hash.digest()
    }
    fn shard_lengths(&self) -> Vec<u64> {
        vec![self.len()]
    }
    fn access(&self) -> Access {
        Access::Chunked
    }
    fn chunked(&self) -> Option<&dyn Chunked> {
        Some(self)
    }
    fn size_bounds(&self) -> SizeBounds {
        SizeBounds {
            total_bytes: self.sizes.total_bytes,
            sample_bytes: self.sizes.stored_bytes,
            ..SizeBounds::default()
        }
    }
    fn latency(&self) -> Option<Duration> {
        self.parts.iter().filter_map(|part| part.array.latency()).max()
    }
    fn kernel_bytes(&self) -> u64 {
        let local = self.parts.iter().filter(|part| part.array.latency().is_none());
        local.map(|part| part.array.files().saturating_mul(KERNEL_FILE_BYTES)).fold(0, u64::saturating_add)
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let bytes: usize = self.parts.iter().map(Part::bytes).sum();
        let entry = Entry { len: u32::try_from(bytes).unwrap_or(u32::MAX), ..Entry::default() };
        Ok(ids.iter().map(|&id| Located { id, entry, path: "".into() }).collect())
    }
    /// Makes the patches of all fields, one after the other: to look at data. Pipelines share
    /// chunks.
    fn read(&self, at: &Located, _: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        let mut start = 0;
        for (field, part) in self.parts.iter().enumerate() {
            let no_room = || Error::decode("staging is smaller than the patch");
            let row = into.get_mut(start..start + part.bytes()).ok_or_else(no_room)?;
            self.patch(at.id, field, mode, row)?;
            start += part.bytes();
        }
        Ok(0..start)
    }
    fn parse<'a>(&self, _: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        let mut rest = bytes;
        let field = |part: &Part| {
            let (row, after) = rest
                .split_at_checked(part.bytes())
                .ok_or_else(|| Error::decode("a patch that ends early"))?;
            rest = after;
            Ok(Value::Bytes(row))
        };
        self.parts.iter().map(field).collect()
    }
    fn key(&self, id: u64) -> Result<String> {
        Ok(self.origin(id).iter().map(i64::to_string).collect::<Vec<_>>().join(","))
    }
    fn place(&self, at: &Located) -> Place {
        let key = self.origin(at.id).iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        Place { id: at.id, shard: self.parts[0].array.place().display().to_string(), offset: 0, key }
    }
    fn shards(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|part| part.array.metadata_file()).collect()
    }
}

impl Part {
    /// Bytes of a patch.
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.array.dtype.size()
    }
}
