//! Objects in numbered segments of files, found through a table: tiers that processes share.
//!
//! Flow: `put` writes a record behind the last one of this process's segment, then its location
//! into the table; [`SegmentTier::find`] -> [`RecordLocation`]; [`SegmentTier::read`] -> the
//! object in the caller's memory, or nothing.
//! Memory: the caller's for bytes that are read. The owner of the segments and the table charges
//! those ([`Segments`]).
//! Not here: the place of the segments (`disk`, `node`), and which of them are evicted.
//!
//! The tier trusts nothing that it reads. A location in the table is a hint, and a record counts
//! only if its key, length and checksum are right. A record that is torn, damaged, overwritten by
//! another object or never written is a miss, and is read from the source again. So processes need
//! no lock between them, and may be killed at any time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tidegate_core::sync::lock;

use rustix::io::Errno;
use tidegate_core::hash::splitmix64;

use super::admission::AdmissionHash;
use super::tier::Tier;
use tidegate_source::read::{Extent, ReadMode, aligned, read_open, staging_bytes};

/// Bytes before an object: its key u64, its length u32, a checksum over everything u32.
pub(super) const HEAD_BYTES: u64 = 16;
/// Records begin at multiples of this many bytes.
const ALIGN_BYTES: u64 = 64;
/// Segment `n` begins at position `n << SEGMENT_SHIFT`, so no segment is larger.
const SEGMENT_SHIFT: u32 = 30;
/// The largest segment.
pub(super) const SEGMENT_MOST_BYTES: u64 = 1 << SEGMENT_SHIFT;
/// The number of segments that the table can name.
pub(super) const SEGMENTS_MOST: u32 = 1 << 16;

/// A segment that this process writes.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) number: u32,
    pub(super) file: Arc<File>,
    /// Where in the file the segment begins.
    pub(super) base: u64,
    /// Where in the segment the next record goes.
    pub(super) at: u64,
}

/// The storage of a tier's segments, and how many there may be.
pub(super) trait Segments: Send + Sync + std::fmt::Debug {
    /// Bytes of a segment.
    fn segment_bytes(&self) -> u64;

    /// A segment with room for `bytes` that no other process writes; `None` at the limit.
    ///
    /// # Errors
    /// Why nothing can be written here any more.
    fn claim(&self, bytes: u64) -> io::Result<Option<Claimed>>;

    /// Called after a write to a segment.
    ///
    /// # Errors
    /// As [`Segments::claim`].
    fn written(&self, segment: &Claimed, range: Range<u64>) -> io::Result<()>;

    /// Removes segments with damaged records. Their other records become misses, and their space
    /// can be used again.
    fn discard(&self, segments: &BTreeSet<u32>);

    /// Called when this process stops writing a segment.
    fn finish(&self, segment: Claimed);

    /// The file of a segment, and where in it the segment begins; `None` if it was removed.
    fn open(&self, number: u32) -> Option<(Arc<File>, u64)>;

    /// How segments are read.
    fn read_mode(&self) -> ReadMode;

    /// Bytes that this process must charge while the tier is open: pages of the table, and writes
    /// that are not on the disk yet.
    fn charged_bytes(&self) -> u64;

    /// The most bytes that all segments may take.
    fn limit_bytes(&self) -> u64;

    /// Changes the limit; a lower limit removes segments.
    fn set_limit(&self, bytes: u64);

    /// Bytes that all segments take.
    fn held_bytes(&self) -> u64;

    /// Whether segments are in memory.
    fn in_memory(&self) -> bool;
}

/// Locations of records by key: buckets of eight words in a file. Each word has a part of the
/// key's hash and a position.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    start: u64,
    buckets: u64,
}

const SLOTS: usize = 8;
const BUCKET_BYTES: u64 = 8 * SLOTS as u64;
/// The number of buckets that are searched, from the key's own on.
const PROBES: u64 = 8;
const POSITION_BITS: u32 = 40;
const POSITION_MASK: u64 = (1 << POSITION_BITS) - 1;
/// A cleared slot. A search goes on behind it, but stops at an empty slot, which is 0.
const CLEARED: u64 = POSITION_MASK;

impl Table {
    /// Bytes of a table for `objects`, which fill half of it.
    pub(super) fn bytes_for(objects: u64) -> u64 {
        (2 * objects).div_ceil(SLOTS as u64).max(1) * BUCKET_BYTES
    }

    /// The table at `start..start + bytes` of a file.
    pub(super) fn new(file: File, start: u64, bytes: u64) -> Self {
        Self { file, start, buckets: (bytes / BUCKET_BYTES).max(1) }
    }

    fn bucket(&self, number: u64) -> io::Result<(u64, [u64; SLOTS])> {
        let at = self.start + number % self.buckets * BUCKET_BYTES;
        let mut bytes = [0; BUCKET_BYTES as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut slots = [0; SLOTS];
        slots.iter_mut().zip(words).for_each(|(slot, word)| *slot = u64::from_le_bytes(*word));
        Ok((at, slots))
    }

    /// Calls `found` with the offset and the word of each slot where a key may be, until it
    /// returns a value.
    fn search<T>(&self, key: u64, found: impl Fn(u64, u64) -> Option<T>) -> Option<T> {
        let first = splitmix64(key);
        for probe in 0..PROBES {
            let (at, slots) = self.bucket(first.wrapping_add(probe)).ok()?;
            let hit = slots.iter().enumerate().find_map(|(i, &slot)| found(at + 8 * i as u64, slot));
            if hit.is_some() || slots.contains(&0) {
                return hit;
            }
        }
        None
    }

    /// The part of the hash that a slot has, in its upper bits.
    fn tag(key: u64) -> u64 {
        splitmix64(!key) & !POSITION_MASK
    }

    fn find(&self, key: u64) -> Option<RecordLocation> {
        self.search(key, |slot, word| {
            let position = word & POSITION_MASK;
            (word & !POSITION_MASK == Self::tag(key) && position > 0 && position < POSITION_MASK)
                .then(|| RecordLocation { position: (position - 1) * ALIGN_BYTES, slot })
        })
    }

    fn insert(&self, key: u64, position: u64) -> bool {
        let free = self.search(key, |slot, word| (word == 0 || word == CLEARED).then_some(slot));
        // A table that is half full always has a free slot; a damaged table gets better this way.
        let slot = free
            .unwrap_or_else(|| self.start + splitmix64(key) % self.buckets * BUCKET_BYTES + 8 * (key % 8));
        let word = Self::tag(key) | (position / ALIGN_BYTES + 1);
        self.file.write_all_at(&word.to_le_bytes(), slot).is_ok()
    }

    fn clear(&self, slot: u64) {
        // If the file cannot be written, the slot stays wrong, and the next read finds that out
        // again.
        self.file.write_all_at(&CLEARED.to_le_bytes(), slot).ok();
    }
}

/// The location where a record should be, as the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordLocation {
    position: u64,
    /// The offset of the slot that says so.
    slot: u64,
}

/// Counts of what a tier did since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes of objects that were put.
    pub put_bytes: u64,
    /// Records with a wrong key, length or checksum.
    pub damaged: u64,
}

/// A tier of records in segments; the head of this file says how it works.
#[derive(Debug)]
pub struct SegmentTier {
    segments: Box<dyn Segments>,
    table: Table,
    /// A hash that tells the objects of this dataset from others.
    dataset: u64,
    total_bytes: u64,
    count: u64,
    admission: Mutex<AdmissionHash>,
    writer: Mutex<Option<Claimed>>,
    /// Set when the last claim found no room.
    full: AtomicBool,
    stopped: OnceLock<String>,
    put_bytes: AtomicU64,
    damaged: AtomicU64,
    /// Segments with damaged records.
    damaged_segments: Mutex<BTreeSet<u32>>,
}

impl SegmentTier {
    /// A tier for `count` objects that take `total_bytes` together.
    pub(super) fn new(
        segments: Box<dyn Segments>,
        table: Table,
        dataset: u64,
        total_bytes: u64,
        count: u64,
    ) -> Self {
        let limit = segments.limit_bytes();
        let (put_bytes, damaged) = Default::default();
        Self {
            admission: Mutex::new(AdmissionHash::for_limit(limit, total_bytes, count)),
            segments,
            table,
            dataset: splitmix64(dataset),
            total_bytes,
            count,
            writer: Mutex::default(),
            full: AtomicBool::new(false),
            stopped: OnceLock::new(),
            put_bytes,
            damaged,
            damaged_segments: Mutex::default(),
        }
    }

    /// Bytes of the buffer that a reader needs for an object of `len` bytes.
    #[must_use]
    pub fn read_buffer_bytes(len: u64) -> u64 {
        staging_bytes(Self::record_bytes(len))
    }

    /// Bytes that the record of an object of `len` bytes takes in its file.
    pub(crate) fn record_bytes(len: u64) -> u64 {
        HEAD_BYTES + len
    }

    /// Bytes that a process must charge to its budget while it has the tier open.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.segments.charged_bytes()
    }

    /// Whether objects are in memory, not on a disk.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.segments.in_memory()
    }

    /// Why the tier writes nothing any more; `None` while it writes.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// Gives up the segment that this process writes, so that others can continue or evict it.
    pub fn release_writer(&self) {
        if let Some(segment) = lock(&self.writer).take() {
            self.segments.finish(segment);
        }
    }

    /// What the tier did since it was opened.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally { put_bytes: read(&self.put_bytes), damaged: read(&self.damaged) }
    }

    /// The key of an object across datasets; two objects share one only if hashes collide.
    fn key(&self, id: u64) -> u64 {
        splitmix64(id ^ self.dataset)
    }

    /// Memory admits the smallest hashes and the disk the largest, so that the two hold different
    /// objects while there are enough.
    fn admits(&self, id: u64) -> bool {
        let admission = *lock(&self.admission);
        if self.segments.in_memory() { admission.admits(id) } else { admission.admits_from_end(id) }
    }

    /// Where an object should be; `None` if the table does not have it.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<RecordLocation> {
        self.table.find(self.key(id))
    }

    /// The record of an object as a range of a file, if the file can be read directly.
    #[must_use]
    pub fn extent(&self, location: RecordLocation) -> Option<Extent<'static>> {
        (self.segments.read_mode() == ReadMode::Direct).then(|| self.open(location)).flatten()
    }

    /// Removes an object from the table.
    #[cfg(test)]
    pub(super) fn remove(&self, id: u64) {
        self.find(id).iter().for_each(|location| self.table.clear(location.slot));
    }

    fn open(&self, location: RecordLocation) -> Option<Extent<'static>> {
        let (file, base) = self.segments.open((location.position >> SEGMENT_SHIFT) as u32)?;
        Some(Extent::shared(file, base + location.position % SEGMENT_MOST_BYTES))
    }

    /// Reads an object of `len` bytes and returns its range in `into`.
    ///
    /// `into` has [`SegmentTier::read_buffer_bytes`]. `found` is the range of the record in `into`
    /// if it was read already. Returns `None` if the record is not the right one.
    pub fn read(
        &self,
        id: u64,
        len: u64,
        location: RecordLocation,
        found: Option<Range<usize>>,
        into: &mut [u8],
    ) -> Option<Range<usize>> {
        let Some(record) = found.or_else(|| self.read_raw(location, Self::record_bytes(len), into)) else {
            self.table.clear(location.slot);
            return None;
        };
        let (head, object) = into.get(record.clone())?.split_at_checked(HEAD_BYTES as usize)?;
        if object.len() as u64 != len || *head != head_of(self.key(id), &[object]) {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            lock(&self.damaged_segments).insert((location.position >> SEGMENT_SHIFT) as u32);
            self.table.clear(location.slot);
            return None;
        }
        Some(record.start + HEAD_BYTES as usize..record.end)
    }

    /// The length of the object, as the record's head says it; `into` has room for the head.
    fn len_at(&self, location: RecordLocation, into: &mut [u8]) -> Option<u64> {
        let range = self.read_raw(location, HEAD_BYTES, into)?;
        let len = into.get(range)?.get(8..12)?.try_into().ok().map(u32::from_le_bytes)?;
        Some(u64::from(len))
    }

    /// As [`SegmentTier::read`], for an object of at most `most` bytes whose length only its
    /// record knows: the head is read first.
    pub fn read_sized(
        &self,
        id: u64,
        most: u64,
        location: RecordLocation,
        into: &mut [u8],
    ) -> Option<Range<usize>> {
        // A longer record is another object, which the read finds out.
        let len = self.len_at(location, into).unwrap_or_default().min(most);
        self.read(id, len, location, None, into)
    }

    fn read_raw(&self, location: RecordLocation, len: u64, into: &mut [u8]) -> Option<Range<usize>> {
        let extent = self.open(location)?;
        read_open(extent.file(), Path::new("a record"), extent.offset(), len, self.segments.read_mode(), into)
            .ok()
    }

    /// Writes a record to this process's segment; `false` if there is no room.
    fn append(&self, key: u64, parts: &[&[u8]]) -> io::Result<bool> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let record = (HEAD_BYTES + len).next_multiple_of(ALIGN_BYTES);
        if record > self.segments.segment_bytes() {
            return Ok(false);
        }
        let mut writer = lock(&self.writer);
        if self.table.find(key).is_some() {
            return Ok(true);
        }
        if let Some(full) = writer.take_if(|segment| segment.at + record > self.segments.segment_bytes()) {
            self.segments.finish(full);
        }
        if writer.is_none() {
            *writer = self.segments.claim(record)?;
        }
        let Some(segment) = writer.as_mut() else {
            self.full.store(true, Ordering::Relaxed);
            return Ok(false);
        };
        let (head, from) = (head_of(key, parts), segment.at);
        write_all(&segment.file, segment.base + from, &head, parts)?;
        segment.at += record;
        let put = self.table.insert(key, (u64::from(segment.number) << SEGMENT_SHIFT) + from);
        self.put_bytes.fetch_add(if put { len } else { 0 }, Ordering::Relaxed);
        self.segments.written(segment, from..segment.at)?;
        Ok(put)
    }
}

impl Drop for SegmentTier {
    fn drop(&mut self) {
        self.release_writer();
    }
}

impl Tier for SegmentTier {
    fn get(&self, id: u64, into: &mut [u8]) -> Option<usize> {
        let location = self.find(id)?;
        let mut head = aligned(staging_bytes(HEAD_BYTES) as usize);
        let len = self.len_at(location, &mut head)?;
        if len > self.segments.segment_bytes().min(into.len() as u64) {
            return None;
        }
        let mut buffer = aligned(Self::read_buffer_bytes(len) as usize);
        let range = self.read(id, len, location, None, &mut buffer)?;
        into.get_mut(..range.len())?.copy_from_slice(buffer.get(range)?);
        Some(len as usize)
    }

    fn put(&self, id: u64, parts: &[&[u8]]) -> bool {
        if self.stopped.get().is_some() || self.full.load(Ordering::Relaxed) || !self.admits(id) {
            return false;
        }
        let key = self.key(id);
        if self.table.find(key).is_some() {
            return true;
        }
        self.append(key, parts).unwrap_or_else(|error| {
            // The source has every object, so reading goes on without this tier.
            self.stopped.get_or_init(|| error.to_string());
            false
        })
    }

    fn limit_bytes(&self) -> u64 {
        self.segments.limit_bytes()
    }

    fn set_limit(&self, bytes: u64) {
        if bytes < self.segments.limit_bytes() {
            self.release_writer();
        }
        let damaged_segments = std::mem::take(&mut *lock(&self.damaged_segments));
        if !damaged_segments.is_empty() {
            self.release_writer();
            self.segments.discard(&damaged_segments);
        }
        self.segments.set_limit(bytes);
        *lock(&self.admission) = AdmissionHash::for_limit(bytes, self.total_bytes, self.count);
        self.full.store(false, Ordering::Relaxed);
    }

    fn held_bytes(&self) -> u64 {
        self.segments.held_bytes()
    }
}

/// The bytes before an object in its record.
fn head_of(key: u64, parts: &[&[u8]]) -> [u8; HEAD_BYTES as usize] {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut head = [0; HEAD_BYTES as usize];
    head[..8].copy_from_slice(&key.to_le_bytes());
    head[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    let crc = parts.iter().fold(crc32c::crc32c(&head[..12]), |crc, part| crc32c::crc32c_append(crc, part));
    head[12..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn write_all(file: &File, at: u64, head: &[u8], parts: &[&[u8]]) -> io::Result<()> {
    let slices: Vec<IoSlice<'_>> =
        std::iter::once(head).chain(parts.iter().copied()).map(IoSlice::new).collect();
    let mut rest = &mut slices.into_boxed_slice()[..];
    let mut at = at;
    while rest.iter().any(|slice| !slice.is_empty()) {
        match rustix::io::pwritev(file, rest, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
