//! Predictions of overlapping patches, blended into one Zarr array.
//!
//! Flow: ids of patches + what a model says of them -> sums of each chunk -> once all its patches came: divided by their weights, as the wanted
//! type, compressed, a file.
//! Memory: sums of the chunks that lack patches, as many as the budget has room for (account `scratch`), the others in a file; a chunk
//! on its way to its file.
//! Not here: reading patches (`source::volume`), models.
//!
//! What is stored is the state: a chunk's file is there when all of it is, so a run that was killed goes on with the patches that chunks
//! still lack. Patches that come in ascending order are added in that order, whatever came of them before: the same bits.
//!
//! Where sums have to give way it is those whose next patch comes last, which is known as long as patches ascend.

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

/// The level of compression: what zarr-python writes too.
const LEVEL: i32 = 3;
/// What a compressor takes at that level.
const COMPRESSOR_BYTES: u64 = 4 << 20;
/// Patches of an array at most, each of which is looked at to say what is wanted.
const PATCHES_MOST: u64 = 1 << 28;
/// Channels at most: what uint16 can name.
const CHANNELS_MOST: usize = 1 << 16;
/// The bytes of a chunk that nobody asked otherwise for, at most.
const CHUNK_BYTES: usize = 4 << 20;

/// What is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Numbers that are predicted for each voxel.
    pub channels: usize,
    /// Writes the channel with the largest sum instead of all of them.
    #[serde(default)]
    pub argmax: bool,
    /// The type of the array; else float32, or for `argmax` the smallest that holds the channels.
    pub dtype: Option<DType>,
    /// Voxels of a chunk along each axis of the patch; else those of the volume's first array, halved until a chunk has 4 MiB.
    pub chunks: Option<Vec<usize>>,
    /// How overlapping patches are blended.
    #[serde(default)]
    pub blend: Blend,
    /// Bytes of sums that stay in memory at most, where others need the budget too; else what it has.
    pub sums_bytes: Option<u64>,
    /// Of `world_size` processes that write parts of the array, which this one is.
    #[serde(default)]
    pub rank: u64,
    /// Processes.
    #[serde(default = "one")]
    pub world_size: u64,
}

fn one() -> u64 {
    1
}

/// The sums of a chunk.
#[derive(Debug)]
enum Sums {
    Here(Block),
    Spilled(u64),
}

/// A chunk that lacks patches.
#[derive(Debug)]
struct Open {
    sums: Sums,
    /// A bit for each patch that came, in ascending order.
    came: Vec<u64>,
    left: usize,
    /// The patch that comes next, if they ascend.
    next: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Stitch {
    folder: PathBuf,
    axes: Vec<Axis>,
    channels: usize,
    argmax: bool,
    dtype: DType,
    budget: Budget,
    most_bytes: u64,
    open: HashMap<u64, Open>,
    /// A bit for each chunk that needs nothing more: written, of another process, or met by no patch.
    done: Vec<u64>,
    left: u64,
    spill: Option<Spill>,
    /// A chunk as its type, and compressed.
    elements: Block,
    packed: Block,
    _held: [Grant; 2],
}

impl Stitch {
    /// Begins an array in a folder, or goes on with it.
    ///
    /// # Errors
    /// [`Error::Config`] for options that fit not, for an array that is already there and was begun otherwise, and for a budget without room for
    /// one chunk; what cannot be read or written.
    pub fn new(volume: &Arc<Volume>, folder: &Path, options: &Options, budget: &Budget) -> Result<Self> {
        let config = |what: String| Error::Config(what);
        let lattice = volume.lattice(0);
        let (shape, chunk_sides) = volume.sides();
        if volume.len() > PATCHES_MOST || options.channels > CHANNELS_MOST {
            return Err(config(format!(
                "{} patches of {} channels: at most {PATCHES_MOST} of {CHANNELS_MOST} can be blended, so open the volume with a stride, such \
                 as half the patch",
                volume.len(),
                options.channels
            )));
        }
        if options.channels == 0 || options.rank >= options.world_size {
            return Err(config(format!(
                "{} channels of rank {} of {}: give at least one channel, and a rank below world_size",
                options.channels, options.rank, options.world_size
            )));
        }
        let dtype = dtype(options)?;
        let depth = if options.argmax { 1 } else { options.channels };
        let chunks = match &options.chunks {
            Some(chunks) if chunks.len() != shape.len() || chunks.contains(&0) => {
                return Err(config("chunks needs a length along each axis of the patch, at least 1".into()));
            }
            Some(chunks) => chunks.clone(),
            None => smaller(chunk_sides, depth * dtype.size()),
        };
        // Origins, and for each voxel what patches count there.
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
        let mut stitch = Self {
            folder: folder.to_owned(),
            axes,
            channels: options.channels,
            argmax: options.argmax,
            dtype,
            budget: budget.clone(),
            most_bytes: options.sums_bytes.unwrap_or(u64::MAX),
            open: HashMap::new(),
            done: vec![0; count.div_ceil(64) as usize],
            left: 0,
            spill: None,
            elements,
            packed,
            _held: [held, tables],
        };
        stitch.describe(volume, options)?;
        let share =
            |rank: u64| (u128::from(count) * u128::from(rank) / u128::from(options.world_size)) as u64;
        let (first, end) = (share(options.rank), share(options.rank + 1));
        for chunk in 0..count {
            let at = stitch.at(chunk);
            let mine = (first..end).contains(&chunk) && stitch.patches(&at) > 0;
            if !mine || stitch.file(&at).exists() {
                stitch.done[chunk as usize / 64] |= 1 << (chunk % 64);
            } else {
                stitch.left += 1;
            }
        }
        Ok(stitch)
    }

    /// Chunks that are to be written.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Chunks that lack some of their patches, and how many of them are in memory.
    #[must_use]
    pub fn open(&self) -> (usize, usize) {
        let here = self.open.values().filter(|open| matches!(open.sums, Sums::Here(_))).count();
        (self.open.len(), here)
    }

    /// The ids of the patches that chunks still lack, ascending.
    #[must_use]
    pub fn wanted(&self) -> Vec<u64> {
        let mut ids = Vec::new();
        for id in 0..self.total() {
            let places = self.places(id);
            let mut wanted = false;
            self.each_chunk(&places, |chunk, at| {
                let came =
                    self.open.get(&chunk).is_some_and(|open| bit(&open.came, self.number(at, &places)));
                wanted |= !bit(&self.done, chunk as usize) && !came;
            });
            if wanted {
                ids.push(id);
            }
        }
        ids
    }

    /// Adds what a model says of patches: for each id all voxels of a channel, and then the next. What was said before of the same patch
    /// counts.
    ///
    /// # Errors
    /// [`Error::Config`] for ids that are none and numbers of another size; a budget without room; what cannot be written.
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
            let places = self.places(id);
            let mut met = Vec::new();
            self.each_chunk(&places, |chunk, at| met.push((chunk, *at)));
            for (chunk, at) in met {
                if !bit(&self.done, chunk as usize) {
                    self.add_to(chunk, &at, &places, id, patch)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a patch to a chunk, and writes the chunk if that was the last it lacked.
    fn add_to(&mut self, chunk: u64, at: &At, places: &At, id: u64, patch: &[f32]) -> Result<()> {
        let number = self.number(at, places);
        if self.open.get(&chunk).is_some_and(|open| bit(&open.came, number)) {
            return Ok(());
        }
        self.bring(chunk, at, id)?;
        let Some(Open { sums: Sums::Here(mut sums), mut came, left, .. }) = self.open.remove(&chunk) else {
            return Err(Error::Config("sums that are not here: please report this".into()));
        };
        self.blend(at, places, patch, bytemuck::cast_slice_mut(&mut sums));
        came[number / 64] |= 1 << (number % 64);
        if left == 1 {
            self.write(at, bytemuck::cast_slice(&sums))?;
            self.done[chunk as usize / 64] |= 1 << (chunk % 64);
            self.left -= 1;
            return Ok(());
        }
        let next = self.next(at, &came);
        self.open.insert(chunk, Open { sums: Sums::Here(sums), came, left: left - 1, next });
        Ok(())
    }

    /// Brings the sums of a chunk to memory, if they are not there. Where there is no room nothing changes.
    fn bring(&mut self, chunk: u64, at: &At, id: u64) -> Result<()> {
        let spilled = match self.open.get(&chunk).map(|open| &open.sums) {
            Some(Sums::Here(_)) => return Ok(()),
            Some(Sums::Spilled(slot)) => Some(*slot),
            None => None,
        };
        let mut sums = self.room(id)?;
        match (spilled, &mut self.spill) {
            (Some(slot), Some(spill)) => spill.take(slot, &mut sums)?,
            _ => sums.fill(0),
        }
        let left = self.patches(at);
        let new = || Open { sums: Sums::Spilled(0), came: vec![0; left.div_ceil(64)], left, next: 0 };
        self.open.entry(chunk).or_insert_with(new).sums = Sums::Here(sums);
        Ok(())
    }

    /// Room for the sums of a chunk: what is free, or of the chunk whose next patch comes last.
    fn room(&mut self, id: u64) -> Result<Block> {
        let (bytes, here) = (self.sums_bytes(), self.open().1 as u64);
        let mut full = String::new();
        // One at least, whatever was said.
        if here == 0 || (here + 1) * bytes <= self.most_bytes {
            match self.budget.try_block(Account::Scratch, bytes, Priority::Prefetch) {
                Ok(block) => return Ok(block),
                Err(error) => full = error.to_string(),
            }
        }
        let spill = match &mut self.spill {
            Some(spill) => spill,
            None => self.spill.insert(Spill::new(&self.folder, bytes)?),
        };
        // What has been passed over comes last: it may not come at all.
        let far = |open: &&mut Open| if open.next < id { u64::MAX } else { open.next };
        let here = self.open.values_mut().filter(|open| matches!(open.sums, Sums::Here(_)));
        if let Some(victim) = here.max_by_key(far)
            && let Sums::Here(sums) = &victim.sums
        {
            let slot = Sums::Spilled(spill.put(sums)?);
            if let Sums::Here(sums) = std::mem::replace(&mut victim.sums, slot) {
                return Ok(sums);
            }
        }
        Err(Error::Config(format!(
            "{full}; the sums of one chunk take {} MiB: raise memory, or give smaller chunks",
            mib(bytes)
        )))
    }

    fn sums_bytes(&self) -> u64 {
        let voxels: usize = self.axes.iter().map(|axis| axis.chunk).product();
        (voxels * self.channels * size_of::<f32>()) as u64
    }

    /// Adds what a patch and a chunk have in common, each voxel by its weight.
    fn blend(&self, at: &At, places: &At, patch: &[f32], sums: &mut [f32]) {
        let common = |axis: usize| {
            let along = &self.axes[axis];
            let common = along.common(places[axis], at[axis]);
            // Where it begins in the chunk and in the patch, and how long it is.
            let in_patch = common.start as i64 - along.origins[places[axis]];
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

    /// Divides by the weights, and writes a chunk.
    fn write(&mut self, at: &At, sums: &[f32]) -> Result<()> {
        let voxels = sums.len() / self.channels;
        let axes = self.axes.len();
        // Of a voxel the weight is a product, which is worked out for a row at a time.
        let width = self.axes[axes - 1].chunk;
        let depth = if self.argmax { 1 } else { self.channels };
        let size = self.dtype.size();
        let mut row = vec![0.0f32; width];
        for start in (0..voxels).step_by(width) {
            let index = place(start / width, self.axes[..axes - 1].iter().map(|axis| axis.chunk));
            let mut weight = 1.0;
            for ((along, at), index) in self.axes[..axes - 1].iter().zip(at).zip(index) {
                // Beyond the border nothing counts.
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

    /// The chunk's place in the grid.
    fn at(&self, chunk: u64) -> At {
        place(chunk as usize, self.axes.iter().map(Axis::chunks))
    }

    /// The place of a patch along each axis.
    fn places(&self, id: u64) -> At {
        place(id as usize, self.axes.iter().map(|axis| axis.origins.len()))
    }

    /// Patches in all.
    fn total(&self) -> u64 {
        self.axes.iter().map(|axis| axis.origins.len() as u64).product()
    }

    /// How many patches meet a chunk.
    fn patches(&self, at: &At) -> usize {
        self.axes.iter().zip(at).map(|(axis, at)| axis.met[*at].len()).product()
    }

    /// The how-manieth of a chunk's patches one is.
    fn number(&self, at: &At, places: &At) -> usize {
        self.axes.iter().zip(at).zip(places).fold(0, |number, ((axis, at), place)| {
            let met = &axis.met[*at];
            number * met.len() + (place - met.start)
        })
    }

    /// The id of the first patch that a chunk lacks.
    fn next(&self, at: &At, came: &[u64]) -> u64 {
        let word = came.iter().position(|word| *word != u64::MAX).unwrap_or(0);
        let number = 64 * word + came[word].trailing_ones() as usize;
        let met = || self.axes.iter().zip(at).map(|(axis, at)| &axis.met[*at]);
        let which = place(number, met().map(ExactSizeIterator::len));
        let places = met().zip(which).map(|(met, which)| (met.start + which) as u64);
        self.axes.iter().zip(places).fold(0, |id, (axis, place)| id * axis.origins.len() as u64 + place)
    }

    /// Calls `each` with the chunks that a patch meets.
    fn each_chunk(&self, places: &At, mut each: impl FnMut(u64, &At)) {
        let ranges: Vec<_> =
            self.axes.iter().zip(places).map(|(axis, place)| axis.chunks_of(*place)).collect();
        let total: usize = ranges.iter().map(ExactSizeIterator::len).product();
        for number in 0..total {
            let mut at = place(number, ranges.iter().map(ExactSizeIterator::len));
            ranges.iter().zip(&mut at).for_each(|(range, at)| *at += range.start);
            let axes = self.axes.iter().zip(at);
            each(axes.fold(0, |chunk, (axis, at)| chunk * axis.chunks() as u64 + at as u64), &at);
        }
    }
}

/// The type of the array.
fn dtype(options: &Options) -> Result<DType> {
    let channels = options.channels;
    // Channels that a type can number.
    let holds = |dtype: DType| match dtype {
        DType::Int8 => 128,
        DType::Uint8 | DType::Bfloat16 => 256,
        DType::Float16 => 2048,
        DType::Int16 => 1 << 15,
        _ => CHANNELS_MOST,
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

/// Halves the longest side until a voxel of so many bytes makes a chunk of moderate size.
fn smaller(mut sides: Vec<usize>, voxel_bytes: usize) -> Vec<usize> {
    while sides.iter().product::<usize>().saturating_mul(voxel_bytes) > CHUNK_BYTES
        && let Some(side) = sides.iter_mut().max().filter(|side| **side > 1)
    {
        *side = side.div_ceil(2);
    }
    sides
}
