//! Blends predictions of overlapping patches into one Zarr array.
//!
//! Flow: patch ids + a model's predictions -> weighted sums of each chunk -> once a chunk has all
//! its patches: divided by the weights, converted, compressed, written to a file.
//! Memory: the sums of incomplete chunks, as many as the budget can hold (account `scratch`); the
//! others are spilled to a file. Also one chunk while it is compressed and written.
//! Not here: reading patches (`source::volume`), models.
//!
//! The files are the state: a chunk's file exists once the chunk is complete, so a run that was
//! killed continues with the patches that chunks still lack. Patches are added in the order in
//! which they arrive; ascending ids give the same bits in every run, also after a restart.
//!
//! When memory is short, the chunk whose next patch is furthest in the future is spilled. That is
//! known as long as patches ascend.

mod array;
mod axis;
mod spill;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tidegate_array::kernels::boxes::{Axes as At, place};
use tidegate_array::kernels::convert::from_f32;
use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Block, Budget, Grant, Priority};

use self::array::put;
use self::axis::Axis;
pub use self::axis::Blend;
use self::spill::Spill;
use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_source::Source;
use tidegate_source::volume::Volume;

/// The compression level, which is also zarr-python's.
const LEVEL: i32 = 3;
/// Bytes that the compressor allocates at that level.
const COMPRESSOR_BYTES: u64 = 4 << 20;
/// Patches of an array at most: [`OverlapWriter::wanted`] inspects each.
const PATCHES_MAX: u64 = 1 << 28;
/// Channels at most: as many as uint16 can number.
const CHANNELS_MAX: usize = 1 << 16;
/// Bytes of a chunk at most, if the user gives no chunk shape.
const CHUNK_BYTES: usize = 4 << 20;

/// Options of the written array.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Predicted numbers for each voxel.
    pub channels: usize,
    /// Write the index of the channel with the largest sum instead of all channels.
    #[serde(default)]
    pub argmax: bool,
    /// Element type of the array. Default: float32, or for `argmax` uint8 or uint16, the smallest
    /// that numbers the channels.
    pub dtype: Option<DType>,
    /// Voxels of a chunk along each axis of the patch. Default: the chunks of the volume's first
    /// array, halved until a chunk has at most 4 MiB.
    pub chunks: Option<Vec<usize>>,
    /// How overlapping patches are blended.
    #[serde(default)]
    pub blend: Blend,
    /// Bytes of sums that stay in memory at most. Default: all that the budget has.
    pub sums_bytes: Option<u64>,
    /// The rank of this process among the `world_size` processes that write the array.
    #[serde(default)]
    pub rank: u64,
    /// The number of processes that write the array.
    #[serde(default = "one")]
    pub world_size: u64,
}

fn one() -> u64 {
    1
}

/// The sums of a chunk.
#[derive(Debug)]
enum Sums {
    InMemory(Block),
    /// The slot of the spill file.
    Spilled(u64),
}

/// A chunk that has some of its patches.
#[derive(Debug)]
struct OpenChunk {
    sums: Sums,
    /// A bit for each of its patches, in ascending order: whether it was added.
    added: Vec<u64>,
    /// The number of patches still missing.
    missing: usize,
    /// The id of the next patch, if ids ascend.
    next: u64,
}

/// Writes one array from predictions of overlapping patches.
#[derive(Debug)]
pub struct OverlapWriter {
    folder: PathBuf,
    axes: Vec<Axis>,
    channels: usize,
    argmax: bool,
    dtype: DType,
    budget: Budget,
    max_sums_bytes: u64,
    open: HashMap<u64, OpenChunk>,
    /// A bit for each chunk that needs no more patches: it is written, belongs to another process,
    /// or overlaps no patch.
    done: Vec<u64>,
    /// Chunks still to be written.
    remaining: u64,
    spill: Option<Spill>,
    /// A chunk as elements of the array's type.
    elements: Block,
    /// The same chunk, compressed.
    packed: Block,
    _held: [Grant; 2],
}

impl OverlapWriter {
    /// Begins an array in a folder, or continues it.
    ///
    /// # Errors [`Error::Config`] for options that do not fit and for an array in the folder that
    /// was begun with other options; a memory error for a budget that cannot hold one chunk; I/O
    /// errors.
    pub fn new(volume: &Arc<Volume>, folder: &Path, options: &Options, budget: &Budget) -> Result<Self> {
        let config = |what: String| Error::Config(what);
        let lattice = volume.lattice(0);
        let (shape, chunk_sides) = volume.sides();
        check_counts(volume, options)?;
        let dtype = dtype(options)?;
        let depth = if options.argmax { 1 } else { options.channels };
        let chunks = match &options.chunks {
            Some(chunks) if chunks.len() != shape.len() || chunks.contains(&0) => {
                return Err(config("chunks needs a length along each axis of the patch, at least 1".into()));
            }
            Some(chunks) => chunks.clone(),
            None => shrink_chunk(chunk_sides, depth * dtype.size()),
        };
        // Origins of patches, and weights of voxels.
        let tables: u64 =
            lattice.iter().zip(&shape).map(|(along, side)| 8 * along.count + 12 * *side as u64).sum();
        let tables = budget.try_acquire(Account::Scratch, tables, Priority::NextBatch)?;
        let axis = |axis: usize| {
            let along = &lattice[axis];
            let origins = (0..along.count).map(|place| along.origin(place));
            let chunk = chunks[axis].min(shape[axis]);
            Axis::new(origins.collect(), along.patch as usize, shape[axis], chunk, options.blend)
        };
        let axes: Vec<Axis> = (0..shape.len()).map(axis).collect();
        let voxels: usize = axes.iter().map(|axis| axis.chunk).product();
        let bytes = (voxels * depth * dtype.size()) as u64;
        let count: u64 = axes.iter().map(|axis| axis.chunks() as u64).product();
        let held = budget.try_acquire(
            Account::Scratch,
            COMPRESSOR_BYTES + count.div_ceil(8),
            Priority::NextBatch,
        )?;
        let block = |bytes| budget.try_block(Account::Scratch, bytes, Priority::NextBatch);
        let (elements, packed) =
            (block(bytes)?, block(zstd::zstd_safe::compress_bound(bytes as usize) as u64)?);
        let mut writer = Self {
            folder: folder.to_owned(),
            axes,
            channels: options.channels,
            argmax: options.argmax,
            dtype,
            budget: budget.clone(),
            max_sums_bytes: options.sums_bytes.unwrap_or(u64::MAX),
            open: HashMap::new(),
            done: vec![0; count.div_ceil(64) as usize],
            remaining: 0,
            spill: None,
            elements,
            packed,
            _held: [held, tables],
        };
        writer.describe(volume, options)?;
        writer.mark_done(options.rank, options.world_size);
        Ok(writer)
    }

    /// Marks the chunks that this process does not write, and counts the remaining ones. Ranks get
    /// equal ranges of chunks.
    fn mark_done(&mut self, rank: u64, world_size: u64) {
        let count: u64 = self.axes.iter().map(|axis| axis.chunks() as u64).product();
        let share = |rank: u64| (u128::from(count) * u128::from(rank) / u128::from(world_size)) as u64;
        let (first, end) = (share(rank), share(rank + 1));
        for chunk in 0..count {
            let at = self.at(chunk);
            let mine = (first..end).contains(&chunk) && self.patches(&at) > 0;
            if !mine || self.file(&at).exists() {
                self.done[chunk as usize / 64] |= 1 << (chunk % 64);
            } else {
                self.remaining += 1;
            }
        }
    }

    /// Chunks still to be written.
    #[must_use]
    pub fn remaining_chunks(&self) -> u64 {
        self.remaining
    }

    /// Chunks that have some but not all of their patches, and the number of them in memory.
    #[must_use]
    pub fn open_chunks(&self) -> (usize, usize) {
        let in_memory = self.open.values().filter(|open| matches!(open.sums, Sums::InMemory(_))).count();
        (self.open.len(), in_memory)
    }

    /// The ids of the patches that chunks still lack, ascending.
    #[must_use]
    pub fn wanted(&self) -> Vec<u64> {
        let mut ids = Vec::new();
        for id in 0..self.total() {
            let indices = self.indices(id);
            let mut wanted = false;
            self.each_chunk(&indices, |chunk, at| {
                let added =
                    self.open.get(&chunk).is_some_and(|open| bit(&open.added, self.bit_of(at, &indices)));
                wanted |= !bit(&self.done, chunk as usize) && !added;
            });
            if wanted {
                ids.push(id);
            }
        }
        ids
    }

    /// Adds predictions of patches: for each id, all voxels of a channel, then the next channel. A
    /// patch that was added before is ignored.
    ///
    /// # Errors [`Error::Config`] for unknown ids and for predictions of another size, and if the
    /// budget cannot hold the sums of one chunk; I/O errors.
    pub fn add(&mut self, ids: &[u64], predictions: &[f32]) -> Result<()> {
        let each = self.channels * self.axes.iter().map(|axis| axis.patch).product::<usize>();
        if ids.len() * each != predictions.len() {
            return Err(Error::Config(format!(
                "{} numbers for {} patches: each has {} channels of {:?} voxels",
                predictions.len(),
                ids.len(),
                self.channels,
                self.axes.iter().map(|axis| axis.patch).collect::<Vec<_>>()
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id >= self.total()) {
            return Err(Error::Config(format!("patch {id} of {}", self.total())));
        }
        for (&id, patch) in ids.iter().zip(predictions.chunks_exact(each)) {
            let indices = self.indices(id);
            let mut chunks = Vec::new();
            self.each_chunk(&indices, |chunk, at| chunks.push((chunk, *at)));
            for (chunk, at) in chunks {
                if !bit(&self.done, chunk as usize) {
                    self.add_to(chunk, &at, &indices, id, patch)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a patch to a chunk, and writes the chunk if it is complete then.
    fn add_to(&mut self, chunk: u64, at: &At, indices: &At, id: u64, patch: &[f32]) -> Result<()> {
        let number = self.bit_of(at, indices);
        if self.open.get(&chunk).is_some_and(|open| bit(&open.added, number)) {
            return Ok(());
        }
        self.load(chunk, at, id)?;
        let Some(OpenChunk { sums: Sums::InMemory(mut sums), mut added, missing, .. }) =
            self.open.remove(&chunk)
        else {
            return Err(Error::Internal("the sums of a chunk are not in memory".into()));
        };
        self.blend(at, indices, patch, bytemuck::cast_slice_mut(&mut sums));
        added[number / 64] |= 1 << (number % 64);
        if missing == 1 {
            self.write(at, bytemuck::cast_slice(&sums))?;
            self.done[chunk as usize / 64] |= 1 << (chunk % 64);
            self.remaining -= 1;
            return Ok(());
        }
        let next = self.next(at, &added);
        let open = OpenChunk { sums: Sums::InMemory(sums), added, missing: missing - 1, next };
        self.open.insert(chunk, open);
        Ok(())
    }

    /// Loads the sums of a chunk to memory, if they are not there. If that fails, nothing changes.
    fn load(&mut self, chunk: u64, at: &At, id: u64) -> Result<()> {
        let spilled = match self.open.get(&chunk).map(|open| &open.sums) {
            Some(Sums::InMemory(_)) => return Ok(()),
            Some(Sums::Spilled(slot)) => Some(*slot),
            None => None,
        };
        let mut sums = self.allocate_sums(id)?;
        match (spilled, &mut self.spill) {
            (Some(slot), Some(spill)) => spill.take(slot, &mut sums)?,
            _ => sums.fill(0),
        }
        let missing = self.patches(at);
        let new =
            || OpenChunk { sums: Sums::Spilled(0), added: vec![0; missing.div_ceil(64)], missing, next: 0 };
        self.open.entry(chunk).or_insert_with(new).sums = Sums::InMemory(sums);
        Ok(())
    }

    /// Memory for the sums of a chunk: free memory, or that of the chunk whose next patch is
    /// furthest in the future, which is spilled. `id` is the current patch.
    fn allocate_sums(&mut self, id: u64) -> Result<Block> {
        let (bytes, in_memory) = (self.sums_bytes(), self.open_chunks().1 as u64);
        let mut full = String::new();
        // At least one chunk is in memory, whatever the option says.
        if in_memory == 0 || (in_memory + 1) * bytes <= self.max_sums_bytes {
            match self.budget.try_block(Account::Scratch, bytes, Priority::Prefetch) {
                Ok(block) => return Ok(block),
                Err(error) => full = error.to_string(),
            }
        }
        let spill = match &mut self.spill {
            Some(spill) => spill,
            None => self.spill.insert(Spill::new(&self.folder, bytes)?),
        };
        // A chunk whose next patch was passed over is spilled first: that patch may never come.
        let far = |open: &&mut OpenChunk| if open.next < id { u64::MAX } else { open.next };
        let in_memory = self.open.values_mut().filter(|open| matches!(open.sums, Sums::InMemory(_)));
        if let Some(victim) = in_memory.max_by_key(far)
            && let Sums::InMemory(sums) = &victim.sums
        {
            let slot = Sums::Spilled(spill.put(sums)?);
            if let Sums::InMemory(sums) = std::mem::replace(&mut victim.sums, slot) {
                return Ok(sums);
            }
        }
        Err(Error::Config(format!(
            "{full}; the sums of one chunk take {} MiB: raise memory, or give smaller chunks",
            mib(bytes)
        )))
    }

    /// Bytes of the sums of one chunk.
    fn sums_bytes(&self) -> u64 {
        let voxels: usize = self.axes.iter().map(|axis| axis.chunk).product();
        (voxels * self.channels * size_of::<f32>()) as u64
    }

    /// Adds the voxels that a patch and a chunk share, each by its weight.
    fn blend(&self, at: &At, indices: &At, patch: &[f32], sums: &mut [f32]) {
        let common = |axis: usize| {
            let along = &self.axes[axis];
            let common = along.common(indices[axis], at[axis]);
            // The start in the chunk, the start in the patch, and the length.
            let in_patch = common.start as i64 - along.origins[indices[axis]];
            (common.start - at[axis] * along.chunk, in_patch as usize, common.len())
        };
        let axes = self.axes.len();
        let spans: Vec<_> = (0..axes).map(common).collect();
        let (outer, last) = (&spans[..axes - 1], spans[axes - 1]);
        let rows: usize = outer.iter().map(|span| span.2).product();
        let weights = &self.axes[axes - 1].weights[last.1..last.1 + last.2];
        let sizes = |of: fn(&Axis) -> usize| self.axes.iter().map(of).product::<usize>();
        let (chunk_voxels, patch_voxels) = (sizes(|axis| axis.chunk), sizes(|axis| axis.patch));
        for row in 0..rows {
            let index = place(row, outer.iter().map(|span| span.2));
            let (mut in_chunk, mut in_patch, mut weight) = (0, 0, 1.0);
            for ((along, (first, from, _)), index) in self.axes.iter().zip(outer).zip(index) {
                in_chunk = in_chunk * along.chunk + first + index;
                in_patch = in_patch * along.patch + from + index;
                weight *= along.weights[from + index];
            }
            let along = &self.axes[axes - 1];
            (in_chunk, in_patch) = (in_chunk * along.chunk + last.0, in_patch * along.patch + last.1);
            for channel in 0..self.channels {
                let into = &mut sums[channel * chunk_voxels + in_chunk..][..last.2];
                let of = &patch[channel * patch_voxels + in_patch..][..last.2];
                into.iter_mut()
                    .zip(of)
                    .zip(weights)
                    .for_each(|((sum, x), along)| *sum += x * (weight * along));
            }
        }
    }

    /// Divides the sums by their weights and writes the chunk.
    fn write(&mut self, at: &At, sums: &[f32]) -> Result<()> {
        let voxels = sums.len() / self.channels;
        let axes = self.axes.len();
        // The weight of a voxel is a product over axes; the outer factors are computed once a row.
        let width = self.axes[axes - 1].chunk;
        let depth = if self.argmax { 1 } else { self.channels };
        let size = self.dtype.size();
        let mut row = vec![0.0f32; width];
        for start in (0..voxels).step_by(width) {
            let index = place(start / width, self.axes[..axes - 1].iter().map(|axis| axis.chunk));
            let mut weight = 1.0;
            for ((along, at), index) in self.axes[..axes - 1].iter().zip(at).zip(index) {
                // Voxels beyond the border have no weight.
                weight *= along.sums.get(at * along.chunk + index).copied().unwrap_or(0.0);
            }
            let along = &self.axes[axes - 1];
            let begin = at[axes - 1] * width;
            let last = &along.sums[begin.min(along.shape)..(begin + width).min(along.shape)];
            for channel in 0..depth {
                row.fill(0.0);
                for (x, (to, sum)) in row.iter_mut().zip(last).enumerate() {
                    let total = weight * sum;
                    let of = |channel: usize| sums[channel * voxels + start + x];
                    *to = match () {
                        () if total <= 0.0 => 0.0,
                        () if self.argmax => largest(self.channels, of),
                        () => of(channel) / total,
                    };
                }
                let into = (channel * voxels + start) * size;
                from_f32(&row, self.dtype, &mut self.elements[into..into + width * size]);
            }
        }
        let bytes = depth * voxels * size;
        let path = self.file(at);
        let packed = zstd::bulk::compress_to_buffer(&self.elements[..bytes], &mut self.packed[..], LEVEL);
        let packed = packed.map_err(Error::io(&path))?;
        put(&path, &self.packed[..packed]).map_err(Error::io(&path))
    }

    /// The position of a chunk in the grid.
    fn at(&self, chunk: u64) -> At {
        place(chunk as usize, self.axes.iter().map(Axis::chunks))
    }

    /// The index of a patch's origin along each axis.
    fn indices(&self, id: u64) -> At {
        place(id as usize, self.axes.iter().map(|axis| axis.origins.len()))
    }

    /// The number of patches.
    fn total(&self) -> u64 {
        self.axes.iter().map(|axis| axis.origins.len() as u64).product()
    }

    /// The number of patches that overlap a chunk.
    fn patches(&self, at: &At) -> usize {
        self.axes.iter().zip(at).map(|(axis, at)| axis.overlapping[*at].len()).product()
    }

    /// The bit of a patch in [`OpenChunk::added`] of a chunk.
    fn bit_of(&self, at: &At, indices: &At) -> usize {
        self.axes.iter().zip(at).zip(indices).fold(0, |bit, ((axis, at), index)| {
            let overlapping = &axis.overlapping[*at];
            bit * overlapping.len() + (index - overlapping.start)
        })
    }

    /// The id of the first patch that a chunk lacks.
    fn next(&self, at: &At, added: &[u64]) -> u64 {
        let word = added.iter().position(|word| *word != u64::MAX).unwrap_or(0);
        let number = 64 * word + added[word].trailing_ones() as usize;
        let overlapping = || self.axes.iter().zip(at).map(|(axis, at)| &axis.overlapping[*at]);
        let index = place(number, overlapping().map(ExactSizeIterator::len));
        let indices = overlapping().zip(index).map(|(range, index)| (range.start + index) as u64);
        self.axes.iter().zip(indices).fold(0, |id, (axis, index)| id * axis.origins.len() as u64 + index)
    }

    /// Calls `each` with the chunks that a patch overlaps.
    fn each_chunk(&self, indices: &At, mut each: impl FnMut(u64, &At)) {
        let ranges: Vec<_> =
            self.axes.iter().zip(indices).map(|(axis, index)| axis.chunks_of(*index)).collect();
        let total: usize = ranges.iter().map(ExactSizeIterator::len).product();
        for number in 0..total {
            let mut at = place(number, ranges.iter().map(ExactSizeIterator::len));
            ranges.iter().zip(&mut at).for_each(|(range, at)| *at += range.start);
            let axes = self.axes.iter().zip(at);
            each(axes.fold(0, |chunk, (axis, at)| chunk * axis.chunks() as u64 + at as u64), &at);
        }
    }
}

/// Checks the numbers of patches, channels and processes.
fn check_counts(volume: &Volume, options: &Options) -> Result<()> {
    if volume.len() > PATCHES_MAX || options.channels > CHANNELS_MAX {
        return Err(Error::Config(format!(
            "{} patches of {} channels: at most {PATCHES_MAX} of {CHANNELS_MAX} can be blended, so open \
                 the volume with a stride, such as half the patch",
            volume.len(),
            options.channels
        )));
    }
    if options.channels == 0 || options.rank >= options.world_size {
        return Err(Error::Config(format!(
            "{} channels of rank {} of {}: give at least one channel, and a rank below world_size",
            options.channels, options.rank, options.world_size
        )));
    }
    Ok(())
}

/// The element type of the array.
fn dtype(options: &Options) -> Result<DType> {
    let channels = options.channels;
    // The number of channels that a type can number.
    let holds = |dtype: DType| match dtype {
        DType::Int8 => 128,
        DType::Uint8 | DType::Bfloat16 => 256,
        DType::Float16 => 2048,
        DType::Int16 => 1 << 15,
        _ => CHANNELS_MAX,
    };
    match options.dtype {
        Some(DType::Bool) => Err(Error::Config("predictions are no bool: write uint8".into())),
        Some(dtype) if options.argmax && channels > holds(dtype) => {
            Err(Error::Config(format!("{} cannot number {channels} channels: leave dtype out", dtype.name())))
        }
        Some(dtype) => Ok(dtype),
        None if options.argmax && channels <= holds(DType::Uint8) => Ok(DType::Uint8),
        None if options.argmax => Ok(DType::Uint16),
        None => Ok(DType::Float32),
    }
}

/// Bit `at` of a bit set.
fn bit(bits: &[u64], at: usize) -> bool {
    bits[at / 64] >> (at % 64) & 1 == 1
}

/// The channel of the largest number, the first of several.
fn largest(channels: usize, of: impl Fn(usize) -> f32) -> f32 {
    (1..channels)
        .fold((0, of(0)), |best, channel| {
            let x = of(channel);
            if x > best.1 { (channel, x) } else { best }
        })
        .0 as f32
}

/// Halves the longest side until a chunk has at most [`CHUNK_BYTES`].
fn shrink_chunk(mut sides: Vec<usize>, voxel_bytes: usize) -> Vec<usize> {
    while sides.iter().product::<usize>().saturating_mul(voxel_bytes) > CHUNK_BYTES
        && let Some(side) = sides.iter_mut().max().filter(|side| **side > 1)
    {
        *side = side.div_ceil(2);
    }
    sides
}
