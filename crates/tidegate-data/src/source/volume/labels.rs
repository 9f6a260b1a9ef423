//! Where which labels are: one look at a label volume, kept beside it, so that no mask is scanned again.
//!
//! Flow: the chunks of a label array, each once -> for each block of voxels and each label in it how many there are and the box that
//! holds them -> [`Boxes`], from a file if there is one that still holds.
//! Memory: a chunk a thread (account `scratch`), and the boxes (account `index`), charged as they come.
//!
//! Blocks are half as wide as a patch, so that a patch around one can lie in many places and surely has the label.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tidegate_array::kernels::boxes::MOST_AXES;
use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Budget, Grant, Priority};

use super::{Part, Volume};
use crate::decode::npy::DType;
use crate::order::patches::{Boxes, Lattice, reserve_boxes};
use crate::source::index::folders;
use crate::source::read::{aligned, staging_bytes};
use crate::source::{Chunked, ReadMode, Source};
use crate::{Error, Result};

/// The beginning of a file of boxes.
const MAGIC: &[u8; 8] = b"TGBOXES1";
/// Boxes that are paid for at once.
const STEP: u64 = 1 << 14;

/// What is looked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// The field of the volume that has the labels.
    pub field: String,
    /// Voxels of a block along each axis of the patch; else half of the patch.
    pub block: Option<Vec<u64>>,
    /// Labels that are no classes, such as the background.
    pub ignore: Vec<i64>,
    /// Reads the labels even if it was done before: they have changed.
    pub force: bool,
}

/// A label in a block.
#[derive(Debug, Clone, Copy)]
struct Found {
    label: i64,
    count: u32,
    /// The first voxel and the last, along each axis of the chunk.
    low: [u32; MOST_AXES],
    high: [u32; MOST_AXES],
}

/// What all threads have found.
#[derive(Debug, Default)]
struct All {
    boxes: Vec<(i64, f32)>,
    spans: Vec<(i32, u32)>,
    paid: Vec<Grant>,
    paid_boxes: u64,
    error: Option<Error>,
}

impl Volume {
    /// The places of patches, in voxels of a field's array.
    #[must_use]
    pub fn lattice(&self, field: usize) -> Vec<Lattice> {
        let part = &self.parts[field];
        let along = part.along.iter().zip(&self.places);
        let axis = along.map(|(along, places)| {
            let first = along.begin(places.low);
            let step = along.begin(places.low + places.stride.cast_signed()) - first;
            Lattice { first, step, count: places.count, patch: along.patch.cast_signed() }
        });
        axis.collect()
    }

    /// The number of a field.
    ///
    /// # Errors
    /// [`Error::Config`] with the known ones.
    pub fn field(&self, name: &str) -> Result<usize> {
        let names = || self.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.parts.iter().position(|part| part.name == name);
        found.ok_or_else(|| Error::Config(format!("there is no array {name:?}: the arrays are {}", names())))
    }

    /// Where the labels of a field are, from a file beside the data or by reading all of it once; `progress` is told how many chunks are
    /// done, of how many.
    ///
    /// # Errors
    /// A field of no labels; chunks that cannot be read; a budget without room; what `progress` says.
    pub fn labels(
        &self,
        wanted: &Wanted,
        budget: &Budget,
        threads: usize,
        progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
    ) -> Result<Boxes> {
        let field = self.field(&wanted.field)?;
        let part = &self.parts[field];
        let misfit = |what: &str| Error::Config(format!("array {:?} {what}", wanted.field));
        if part.shape.len() != part.along.len() {
            return Err(misfit("has more axes than the patch: name a label array without channels"));
        }
        if matches!(part.array.dtype, DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64) {
            return Err(misfit("holds floats: labels are integers"));
        }
        let block = match &wanted.block {
            Some(block) if block.len() != part.shape.len() || block.contains(&0) => {
                return Err(misfit("needs a block with a length along each axis of the patch, at least 1"));
            }
            Some(block) => block.clone(),
            None => part.shape.iter().map(|side| (*side as u64 / 2).max(1)).collect(),
        };
        let file = self.labels_file(part, &block, &wanted.ignore);
        if !wanted.force
            && let Some(boxes) = file.iter().find_map(|file| read(file, part.shape.len(), budget))
        {
            return Ok(boxes);
        }
        let all = self.scan(part, &block, &wanted.ignore, budget, threads, progress)?;
        if all.boxes.is_empty() {
            return Err(misfit("has no label but those that are ignored"));
        }
        let count = all.boxes.len() as u64;
        let boxes = Boxes::new(part.shape.len(), &all.boxes, &all.spans)?;
        drop(all);
        let boxes = boxes.paid(reserve_boxes(budget, count, part.shape.len())?);
        let _kept_or_made_again = file.iter().any(|file| write(file, &boxes).is_ok());
        Ok(boxes)
    }

    /// Where boxes are kept: beside the data, or in the user's cache folder.
    fn labels_file(&self, part: &Part, block: &[u64], ignore: &[i64]) -> Vec<PathBuf> {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(part.array.description());
        hash.update(part.array.place().as_os_str().as_encoded_bytes());
        hash.update(&Source::edition(self).to_le_bytes());
        hash.update(format!("{block:?} {ignore:?}").as_bytes());
        let mut folders = folders(&part.array.place(), hash.digest());
        if part.array.latency().is_some() {
            // Nothing is written beside what is remote.
            folders.remove(0);
        }
        folders.into_iter().map(|folder| folder.join("boxes")).collect()
    }

    fn scan(
        &self,
        part: &Part,
        block: &[u64],
        ignore: &[i64],
        budget: &Budget,
        threads: usize,
        progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
    ) -> Result<All> {
        let (chunks, next, all) = (part.array.chunks(), AtomicU64::new(0), Mutex::new(All::default()));
        let (stored, elements) = (staging_bytes(part.array.stored_bytes()), part.array.chunk_bytes());
        let each = stored + elements + part.array.library_bytes();
        let run = |_scratch: Grant| {
            let lock = || all.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut staging, mut values) = (aligned(stored as usize), vec![0; elements as usize]);
            while lock().error.is_none() {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return;
                }
                let mut one = || -> Result<()> {
                    let found = self.chunk_labels(part, chunk, block, ignore, &mut staging, &mut values)?;
                    lock().take(found, part.shape.len(), budget)?;
                    progress(chunk + 1, chunks)
                };
                if let Err(error) = one() {
                    lock().error.get_or_insert(error);
                }
            }
        };
        // The first must have its memory, the others have what there is.
        let first = budget.try_acquire(Account::Scratch, each, Priority::NextBatch)?;
        let more =
            (1..threads).map_while(|_| budget.try_acquire(Account::Scratch, each, Priority::CacheFill).ok());
        let scratch: Vec<Grant> = std::iter::once(first).chain(more).collect();
        std::thread::scope(|scope| {
            scratch.into_iter().for_each(|scratch| drop(scope.spawn(|| run(scratch))))
        });
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        match all.error.take() {
            Some(error) => Err(error),
            None => Ok(all),
        }
    }

    /// The labels of a chunk: of each block of it.
    fn chunk_labels(
        &self,
        part: &Part,
        chunk: u64,
        block: &[u64],
        ignore: &[i64],
        staging: &mut [u8],
        values: &mut [u8],
    ) -> Result<Vec<(Vec<i64>, Found)>> {
        let array = &part.array;
        let number = part.first_chunk + chunk;
        let range = self.read_chunk(number, ReadMode::Drop, staging)?;
        self.decode_chunk(number, range.map(|range| &staging[range]), values)?;
        let at = array.at(chunk);
        let axes = at.len();
        let origin: Vec<u64> = at.iter().zip(&array.chunk).map(|(at, side)| at * side).collect();
        // What of the chunk is in the array, and blocks that divide a chunk evenly.
        let inside: Vec<usize> = (0..axes)
            .map(|d| array.chunk[d].min(array.shape[d].saturating_sub(origin[d])) as usize)
            .collect();
        let side: Vec<usize> =
            (0..axes).map(|d| array.chunk[d].div_ceil(array.chunk[d].div_ceil(block[d])) as usize).collect();
        let blocks: Vec<usize> = (0..axes).map(|d| inside[d].div_ceil(side[d])).collect();
        let mut cells: Vec<Vec<Found>> = vec![Vec::new(); blocks.iter().product()];
        let size = array.dtype.size();
        let rows: usize = inside[..axes - 1].iter().product();
        let last = axes - 1;
        let mut index = [0u32; MOST_AXES];
        for _ in 0..rows {
            let place = (0..last).fold(0, |place, d| place * array.chunk[d] as usize + index[d] as usize);
            let row = &values[place * array.chunk[last] as usize * size..][..inside[last] * size];
            let cell =
                (0..last).fold(0, |cell, d| cell * blocks[d] + index[d] as usize / side[d]) * blocks[last];
            for (b, part) in row.chunks(side[last] * size).enumerate() {
                count(part, array.dtype, b * side[last], &mut index, last, ignore, &mut cells[cell + b]);
            }
            for d in (0..last).rev() {
                index[d] += 1;
                if (index[d] as usize) < inside[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        let origin: Vec<i64> = origin.iter().map(|&at| at.cast_signed()).collect();
        Ok(cells.into_iter().flatten().map(|found| (origin.clone(), found)).collect())
    }
}

/// Counts the labels of a part of a row that begins at `start`, in runs.
fn count(
    bytes: &[u8],
    dtype: DType,
    start: usize,
    index: &mut [u32; MOST_AXES],
    last: usize,
    ignore: &[i64],
    found: &mut Vec<Found>,
) {
    let size = dtype.size();
    let count = bytes.len() / size;
    let mut from = 0;
    while from < count {
        let element = &bytes[from * size..][..size];
        let run = bytes[from * size..].chunks_exact(size).take_while(|next| *next == element).count();
        let label = value(element, dtype);
        if !ignore.contains(&label) {
            let (mut low, mut high) = (*index, *index);
            (low[last], high[last]) = ((start + from) as u32, (start + from + run - 1) as u32);
            // The one that came last comes next, mostly.
            match found.iter_mut().rev().find(|found| found.label == label) {
                Some(known) => {
                    known.count += run as u32;
                    for d in 0..=last {
                        known.low[d] = known.low[d].min(low[d]);
                        known.high[d] = known.high[d].max(high[d]);
                    }
                }
                None => found.push(Found { label, count: run as u32, low, high }),
            }
        }
        from += run;
    }
}

/// An integer of any width; one beyond those with a sign wraps.
fn value(element: &[u8], dtype: DType) -> i64 {
    let mut wide = [0u8; 8];
    wide[..element.len()].copy_from_slice(element);
    let value = i64::from_le_bytes(wide);
    let unused = 64 - 8 * element.len() as u32;
    match dtype {
        DType::Int8 | DType::Int16 | DType::Int32 => value << unused >> unused,
        _ => value,
    }
}

impl All {
    fn take(&mut self, found: Vec<(Vec<i64>, Found)>, axes: usize, budget: &Budget) -> Result<()> {
        let count = self.boxes.len() as u64 + found.len() as u64;
        while self.paid_boxes < count {
            // They are sorted into other memory in the end.
            let paid = reserve_boxes(budget, 2 * STEP, axes).map_err(|error| {
                let so_far = mib(self.paid.iter().map(Grant::bytes).sum());
                Error::Config(format!("{error}; {so_far} MiB are taken so far: give a larger block, or ignore labels that are no classes"))
            })?;
            self.paid.push(paid);
            self.paid_boxes += STEP;
        }
        for (origin, found) in found {
            self.boxes.push((found.label, found.count as f32));
            for (d, origin) in origin.iter().enumerate() {
                let low = i32::try_from(origin + i64::from(found.low[d]));
                let low =
                    low.map_err(|_| Error::Config("labels beyond voxel 2^31 cannot be drawn".into()))?;
                self.spans.push((low, found.high[d] - found.low[d] + 1));
            }
        }
        Ok(())
    }
}

/// Writes boxes to a file, all of it or none.
fn write(path: &Path, boxes: &Boxes) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut bytes = Vec::new();
    bytes.extend((boxes.axes() as u64).to_le_bytes());
    for i in 0..boxes.len() {
        let (class, weight, spans) = boxes.get(i);
        bytes.extend(class.to_le_bytes());
        bytes.extend(weight.to_le_bytes());
        spans.iter().for_each(|(low, len)| {
            bytes.extend(low.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        });
    }
    let mut file = tempfile_in(folder)?;
    file.1.write_all(MAGIC)?;
    file.1.write_all(&crc32c::crc32c(&bytes).to_le_bytes())?;
    file.1.write_all(&bytes)?;
    file.1.sync_all()?;
    fs::rename(file.0, path)
}

/// A file of another name, to be renamed.
fn tempfile_in(folder: &Path) -> std::io::Result<(PathBuf, fs::File)> {
    let path = folder.join(format!("boxes-{}", std::process::id()));
    let file = fs::File::create(&path)?;
    Ok((path, file))
}

/// Boxes from a file; nothing where there is none, or one that is damaged.
fn read(path: &Path, axes: usize, budget: &Budget) -> Option<Boxes> {
    let each = 12 + 8 * axes;
    let bytes = fs::metadata(path).ok()?.len().checked_sub(20)?;
    let memory = reserve_boxes(budget, bytes / each as u64, axes).ok()?;
    let bytes = fs::read(path).ok()?;
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (found, body) = rest.split_first_chunk::<8>()?;
    let right = magic == MAGIC
        && u32::from_le_bytes(*sum) == crc32c::crc32c(rest)
        && u64::from_le_bytes(*found) == axes as u64
        && body.len().is_multiple_of(each);
    if !right {
        return None;
    }
    let (mut boxes, mut spans) = (Vec::new(), Vec::new());
    for record in body.chunks_exact(each) {
        let (class, rest) = record.split_first_chunk::<8>()?;
        let (weight, rest) = rest.split_first_chunk::<4>()?;
        boxes.push((i64::from_le_bytes(*class), f32::from_le_bytes(*weight)));
        for span in rest.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *span;
            spans.push((i32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])));
        }
    }
    Boxes::new(axes, &boxes, &spans).ok().map(|boxes| boxes.paid(memory))
}
