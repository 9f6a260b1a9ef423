//! The places of labels: one scan of a label volume, kept next to it, so no mask is scanned twice.
//!
//! Flow: the chunks of a label array, each once -> for each block of voxels and each label in it
//! the number of voxels and their bounding box -> [`Boxes`], from a file if there is one that
//! still holds.
//! Memory: a chunk and the labels of a block for each thread (account `scratch`); the boxes
//! (account `index`), charged as they come and until they are returned. An order that draws from
//! them charges them again to its own budget.
//!
//! Blocks are half as wide as a patch, so a patch around a block has many places and always
//! contains the label.

use std::collections::HashMap;
use std::fs;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tidegate_array::kernels::boxes::MOST_AXES;
use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Budget, Grant};

use super::Part;
use super::Volume;
use crate::Source;
use crate::index::folders;
use crate::index::trust::{create, is_trusted, make_folder, owner_of};
use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_order::lattice::{Boxes, Lattice};

/// The first bytes of a file of boxes.
const MAGIC: &[u8; 8] = b"TGBOXES1";
/// The number of boxes of one charge.
const STEP: u64 = 1 << 14;
/// The most labels of a block.
const MAX_LABELS: usize = 1 << 16;
/// Up to this number of labels a linear search finds a label; more are hashed.
const LINEAR_SEARCH: usize = 16;

/// The options of [`Volume::labels`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// The field of the volume with the labels.
    pub field: String,
    /// Voxels of a block along each axis of the patch. Default: half of the patch.
    pub block: Option<Vec<u64>>,
    /// Labels that are no classes, such as the background.
    pub ignore: Vec<i64>,
    /// Reads the labels again even if the file of boxes holds.
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

/// The boxes of all threads.
#[derive(Debug, Default)]
struct All {
    boxes: Vec<(i64, f32)>,
    spans: Vec<(i32, u32)>,
    /// The charges for making the boxes.
    paid: Vec<Grant>,
    paid_boxes: u64,
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
            let room = along.begin(places.low + places.room) - first;
            Lattice { first, step, count: places.count, room, patch: along.patch.cast_signed() }
        });
        axis.collect()
    }

    /// The number of a field.
    ///
    /// # Errors
    /// [`Error::Config`] with the known fields.
    pub fn field(&self, name: &str) -> Result<usize> {
        let names = || self.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.parts.iter().position(|part| part.name == name);
        found.ok_or_else(|| Error::Config(format!("there is no array {name:?}: the arrays are {}", names())))
    }

    /// The boxes of the labels of a field, from a file next to the data or by reading the array
    /// once.
    ///
    /// `progress` gets the number of chunks done and the number of all.
    ///
    /// # Errors
    /// A field without labels; chunks that cannot be read; a budget without room; errors of
    /// `progress`.
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
        let boxes = Boxes::new(part.shape.len(), &all.boxes, &all.spans)?;
        // Without a file the next call scans again.
        for path in &file {
            if write(path, &boxes).is_ok() {
                break;
            }
        }
        Ok(boxes)
    }

    /// The files for the boxes: next to the data, or in the user's cache folder.
    fn labels_file(&self, part: &Part, block: &[u64], ignore: &[i64]) -> Vec<PathBuf> {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(part.array.description());
        hash.update(part.array.place().as_os_str().as_encoded_bytes());
        hash.update(&Source::content_version(self).to_le_bytes());
        hash.update(format!("{block:?} {ignore:?}").as_bytes());
        let mut folders = folders(&part.array.place(), hash.digest());
        if part.array.latency().is_some() {
            // Nothing is written to a store.
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
        let block_voxels = block.iter().zip(&part.array.chunk).map(|(block, chunk)| block.min(chunk));
        let block_voxels = block_voxels.fold(1u64, |n, side| n.saturating_mul(*side));
        // A label of a block, and its entry in the hash map; lists grow by doubling.
        let labels = block_voxels.min(MAX_LABELS as u64) * (2 * size_of::<Found>() as u64 + 64);
        let all = Mutex::new(All::default());
        let lock = || tidegate_core::sync::lock(&all);
        self.every_chunk(part, budget, threads, labels, progress, &|chunk, values| {
            each_block(part, chunk, block, ignore, values, &mut |origin, found| {
                lock().take(origin, found, budget)
            })
        })?;
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Gets the start of a chunk and the labels of a block of it.
type Each<'a> = dyn FnMut(&[u64], &[Found]) -> Result<()> + 'a;

/// Calls `each` with the start of the chunk and the labels of every block that has any.
fn each_block(
    part: &Part,
    chunk: u64,
    block: &[u64],
    ignore: &[i64],
    values: &[u8],
    each: &mut Each<'_>,
) -> Result<()> {
    let array = &part.array;
    let at = array.at(chunk);
    let axes = at.len();
    let origin: Vec<u64> = at.iter().zip(&array.chunk).map(|(at, side)| at * side).collect();
    // The part of the chunk in the array, and blocks that divide a chunk evenly.
    let inside: Vec<u64> =
        (0..axes).map(|d| array.chunk[d].min(array.shape[d].saturating_sub(origin[d]))).collect();
    let side: Vec<u64> =
        (0..axes).map(|d| array.chunk[d].div_ceil(array.chunk[d].div_ceil(block[d]))).collect();
    let mut labels = Labels::default();
    let (mut low, last) = (vec![0u64; axes], axes - 1);
    loop {
        let high: Vec<u64> = (0..axes).map(|d| (low[d] + side[d]).min(inside[d])).collect();
        labels.clear();
        let mut index = low.clone();
        loop {
            let start =
                index.iter().zip(&array.chunk).fold(0, |place, (at, side)| place * side + at) as usize;
            let size = array.dtype.size();
            let row = &values[start * size..][..(high[last] - low[last]) as usize * size];
            labels.count(row, array.dtype, &index, ignore)?;
            if !step(&mut index[..last], &low, &high, |_| 1) {
                break;
            }
        }
        if !labels.found.is_empty() {
            each(&origin, &labels.found)?;
        }
        if !step(&mut low, &[0; MOST_AXES], &inside, |axis| side[axis]) {
            return Ok(());
        }
    }
}

/// Steps to the next place below `end` in C order, by `by(axis)`; false after the last.
fn step(at: &mut [u64], begin: &[u64], end: &[u64], by: impl Fn(usize) -> u64) -> bool {
    for axis in (0..at.len()).rev() {
        at[axis] += by(axis);
        if at[axis] < end[axis] {
            return true;
        }
        at[axis] = begin[axis];
    }
    false
}

/// The labels of a block.
#[derive(Debug, Default)]
struct Labels {
    found: Vec<Found>,
    /// The places of labels in `found`, once there are many.
    by_label: HashMap<i64, usize>,
}

impl Labels {
    fn clear(&mut self) {
        self.found.clear();
        self.by_label.clear();
    }

    fn find(&self, label: i64) -> Option<usize> {
        // Mostly the last label comes again.
        match self.found.last() {
            Some(last) if last.label == label => Some(self.found.len() - 1),
            _ if self.by_label.is_empty() => self.found.iter().position(|found| found.label == label),
            _ => self.by_label.get(&label).copied(),
        }
    }

    /// Counts the labels of a row that begins at `index`, in runs.
    fn count(&mut self, row: &[u8], dtype: DType, index: &[u64], ignore: &[i64]) -> Result<()> {
        let size = dtype.size();
        let (last, count) = (index.len() - 1, row.len() / size);
        let mut from = 0;
        while from < count {
            let element = &row[from * size..][..size];
            let run = row[from * size..].chunks_exact(size).take_while(|next| *next == element).count();
            let label = value(element, dtype);
            if !ignore.contains(&label) {
                let mut low = [0u32; MOST_AXES];
                low.iter_mut().zip(index).for_each(|(low, at)| *low = *at as u32);
                low[last] += from as u32;
                let mut high = low;
                high[last] += run as u32 - 1;
                match self.find(label) {
                    Some(known) => self.found[known].grow(run as u32, &low, &high),
                    None => self.push(Found { label, count: run as u32, low, high })?,
                }
            }
            from += run;
        }
        Ok(())
    }

    fn push(&mut self, found: Found) -> Result<()> {
        if self.found.len() >= MAX_LABELS {
            return Err(Error::Config(format!(
                "more than {MAX_LABELS} labels in a block: give a smaller block"
            )));
        }
        self.found.push(found);
        if self.found.len() > LINEAR_SEARCH {
            let known = self.by_label.len();
            self.by_label
                .extend(self.found[known..].iter().zip(known..).map(|(found, at)| (found.label, at)));
        }
        Ok(())
    }
}

impl Found {
    fn grow(&mut self, run: u32, low: &[u32; MOST_AXES], high: &[u32; MOST_AXES]) {
        self.count += run;
        for d in 0..MOST_AXES {
            self.low[d] = self.low[d].min(low[d]);
            self.high[d] = self.high[d].max(high[d]);
        }
    }
}

/// An integer of any width; an unsigned 64-bit one wraps.
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
    fn take(&mut self, origin: &[u64], found: &[Found], budget: &Budget) -> Result<()> {
        let count = self.boxes.len() as u64 + found.len() as u64;
        while self.paid_boxes < count {
            let paid = Boxes::reserve(budget, STEP, origin.len()).map_err(|error| {
                let so_far = mib(self.paid.iter().map(Grant::bytes).sum());
                Error::Config(format!("{error}; {so_far} MiB are taken so far: give a larger block, or ignore labels that are no \
                     classes"))
            })?;
            self.paid.push(paid);
            self.paid_boxes += STEP;
        }
        for found in found {
            self.boxes.push((found.label, found.count as f32));
            for (d, origin) in origin.iter().enumerate() {
                let low = i32::try_from(origin + u64::from(found.low[d]));
                let low =
                    low.map_err(|_| Error::Config("labels beyond voxel 2^31 cannot be drawn".into()))?;
                self.spans.push((low, found.high[d] - found.low[d] + 1));
            }
        }
        Ok(())
    }
}

/// Writes boxes to a file: all or nothing.
fn write(path: &Path, boxes: &Boxes) -> std::io::Result<()> {
    let (folder, beside, owner) = places(path);
    make_folder(beside, owner)?;
    make_folder(folder, owner)?;
    let (name, file) = tempfile_in(folder)?;
    let (mut file, mut sum) = (BufWriter::new(file), 0);
    file.write_all(MAGIC)?;
    file.write_all(&[0; 4])?;
    let mut put = |bytes: &[u8]| {
        sum = crc32c::crc32c_append(sum, bytes);
        file.write_all(bytes)
    };
    put(&(boxes.axes() as u64).to_le_bytes())?;
    for i in 0..boxes.len() {
        let (class, weight, spans) = boxes.get(i);
        put(&class.to_le_bytes())?;
        put(&weight.to_le_bytes())?;
        for (low, len) in spans {
            put(&low.to_le_bytes())?;
            put(&len.to_le_bytes())?;
        }
    }
    file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    file.write_all(&sum.to_le_bytes())?;
    file.into_inner()?.sync_all()?;
    fs::rename(name, path)
}

/// A new file of another name, to be renamed.
fn tempfile_in(folder: &Path) -> std::io::Result<(PathBuf, fs::File)> {
    let path = folder.join(format!("boxes-{}", std::process::id()));
    let file = create(&path)?;
    Ok((path, file))
}

/// The folder of a file of boxes, the one that all of Tidegate's are in, and who owns the data.
fn places(path: &Path) -> (&Path, &Path, u32) {
    let mut above = path.ancestors().skip(1).chain(std::iter::repeat(Path::new(".")));
    let mut next = || above.next().unwrap_or(Path::new("."));
    let (folder, beside, data) = (next(), next(), next());
    (folder, beside, owner_of(data))
}

/// Boxes from a file; None where it is missing, damaged, or could be another user's.
fn read(path: &Path, axes: usize, budget: &Budget) -> Option<Boxes> {
    let (folder, beside, owner) = places(path);
    if ![path, folder, beside].into_iter().all(|place| is_trusted(place, owner)) {
        return None;
    }
    let each = 12 + 8 * axes as u64;
    let bytes = fs::metadata(path).ok()?.len().checked_sub(20).filter(|bytes| bytes.is_multiple_of(each))?;
    let count = bytes / each;
    let _grant = Boxes::reserve(budget, count, axes).ok()?;
    let mut file = BufReader::new(fs::File::open(path).ok()?);
    let mut take = |into: &mut [u8]| file.read_exact(into).ok();
    let (mut magic, mut said, mut found) = ([0; 8], [0; 4], [0; 8]);
    take(&mut magic)?;
    take(&mut said)?;
    take(&mut found)?;
    if &magic != MAGIC || u64::from_le_bytes(found) != axes as u64 {
        return None;
    }
    let mut sum = crc32c::crc32c(&found);
    let (mut boxes, mut spans) =
        (Vec::with_capacity(count as usize), Vec::with_capacity(count as usize * axes));
    let mut record = vec![0; each as usize];
    for _ in 0..count {
        take(&mut record)?;
        sum = crc32c::crc32c_append(sum, &record);
        let (class, rest) = record.split_first_chunk::<8>()?;
        let (weight, rest) = rest.split_first_chunk::<4>()?;
        boxes.push((i64::from_le_bytes(*class), f32::from_le_bytes(*weight)));
        for span in rest.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *span;
            spans.push((i32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])));
        }
    }
    (sum == u32::from_le_bytes(said)).then(|| Boxes::new(axes, &boxes, &spans).ok()).flatten()
}
