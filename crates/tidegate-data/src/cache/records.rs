//! Objects in numbered segments of files, found through a table: tiers that several processes share.
//!
//! Flow: [`Records::put`] writes a record behind the last one of this process's segment, then its place into the table;
//! [`Records::find`] -> [`Spot`]; [`Records::read`] -> the object in the caller's memory, or nothing.
//! Memory: the caller's for what is read; what the segments and the table take is theirs to charge ([`Segments`]).
//! Not here: where segments lie (`disk`, `node`), and which of them go when there is too much.
//!
//! Nothing that lies here is trusted. A place in the table is a hint, and a record counts only if its key, length and checksum are
//! right: whatever was torn, damaged, given to another object or never written is a miss, and is read from the source
//! again. So processes need no lock between them, and may be killed at any time.

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

use super::{Share, Tier};
use tidegate_source::read::{Extent, ReadMode, aligned, read_open, staging_bytes};

/// What comes before an object: its key u64, its length u32, a checksum over all u32.
pub(super) const HEAD_BYTES: u64 = 16;
/// Records begin at multiples of this.
const ALIGN_BYTES: u64 = 64;
/// Segment `n` begins at place `n << SEGMENT_SHIFT`, so none is larger.
const SEGMENT_SHIFT: u32 = 30;
/// The largest segment.
pub(super) const SEGMENT_MOST_BYTES: u64 = 1 << SEGMENT_SHIFT;
/// Segments that the table can name.
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

/// Where the segments of a tier lie, and how many there may be.
pub(super) trait Segments: Send + Sync + std::fmt::Debug {
    /// Bytes of a segment.
    fn segment_bytes(&self) -> u64;

    /// A segment with room for `bytes` that nobody else writes; nothing if there may be no more.
    ///
    /// # Errors
    /// Why nothing can be written here any more.
    fn claim(&self, bytes: u64) -> io::Result<Option<Claimed>>;

    /// Told of what was written to a segment.
    ///
    /// # Errors
    /// As [`Segments::claim`].
    fn wrote(&self, segment: &Claimed, range: Range<u64>) -> io::Result<()>;

    /// Lets go of segments with damaged records: their other records are misses, too, and their space can be used again.
    fn discard(&self, segments: &BTreeSet<u32>);

    /// This process writes it no more.
    fn finish(&self, segment: Claimed);

    /// The file to read a segment from, and where in it the segment begins; nothing if it is gone.
    fn open(&self, number: u32) -> Option<(Arc<File>, u64)>;

    /// How it is read.
    fn mode(&self) -> ReadMode;

    /// What this process must charge for as long as the tier is open: pages of the table, and what is not yet written back.
    fn charged_bytes(&self) -> u64;

    /// The most that all segments may take.
    fn limit_bytes(&self) -> u64;

    /// Changes the limit, and gives back what is beyond.
    fn set_limit(&self, bytes: u64);

    /// What they take.
    fn held_bytes(&self) -> u64;

    /// Whether they lie in memory.
    fn in_memory(&self) -> bool;
}

/// Places of records by key: buckets of eight words in a file, each a part of the key's hash and a place.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    start: u64,
    buckets: u64,
}

const SLOTS: usize = 8;
const BUCKET_BYTES: u64 = 8 * SLOTS as u64;
/// Buckets that are looked through from a key's own on.
const PROBES: u64 = 8;
const PLACE_BITS: u32 = 40;
const PLACE: u64 = (1 << PLACE_BITS) - 1;
/// A slot that was cleared: keys beyond it are still looked for, as they are not beyond an empty one, which is 0.
const CLEARED: u64 = PLACE;

impl Table {
    /// What a table for `objects` takes: it is half full then.
    pub(super) fn bytes_for(objects: u64) -> u64 {
        (2 * objects).div_ceil(SLOTS as u64).max(1) * BUCKET_BYTES
    }

    /// The table of `bytes` from `start` on.
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

    /// Looks at the slots where a key may be until `found` says so: its place in the file, and what is in it.
    fn look<T>(&self, key: u64, found: impl Fn(u64, u64) -> Option<T>) -> Option<T> {
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

    /// The part of the hash that a slot has, shifted.
    fn tag(key: u64) -> u64 {
        splitmix64(!key) & !PLACE
    }

    fn find(&self, key: u64) -> Option<Spot> {
        self.look(key, |slot, word| {
            let place = word & PLACE;
            (word & !PLACE == Self::tag(key) && place > 0 && place < PLACE)
                .then(|| Spot { place: (place - 1) * ALIGN_BYTES, slot })
        })
    }

    fn insert(&self, key: u64, place: u64) -> bool {
        let free = self.look(key, |slot, word| (word == 0 || word == CLEARED).then_some(slot));
        // A table that is half full always has a free slot; one of garbage gets better this way.
        let slot = free
            .unwrap_or_else(|| self.start + splitmix64(key) % self.buckets * BUCKET_BYTES + 8 * (key % 8));
        let word = Self::tag(key) | (place / ALIGN_BYTES + 1);
        self.file.write_all_at(&word.to_le_bytes(), slot).is_ok()
    }

    fn clear(&self, slot: u64) {
        // Where it cannot be written, what it says is found wrong again.
        let _read_only = self.file.write_all_at(&CLEARED.to_le_bytes(), slot);
    }
}

/// Where a record should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    place: u64,
    /// The slot of the table that says so.
    slot: u64,
}

/// What a tier did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes that were put.
    pub put_bytes: u64,
    /// Records that were not what they should be.
    pub damaged: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Records {
    segments: Box<dyn Segments>,
    table: Table,
    /// What tells the objects of this dataset from others.
    dataset: u64,
    total_bytes: u64,
    count: u64,
    share: Mutex<Share>,
    writer: Mutex<Option<Claimed>>,
    /// There was no more room when it was last looked for.
    full: AtomicBool,
    stopped: OnceLock<String>,
    put_bytes: AtomicU64,
    damaged: AtomicU64,
    /// Segments where records were damaged.
    bad: Mutex<BTreeSet<u32>>,
}

impl Records {
    /// A tier for `count` objects of `total_bytes`.
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
            share: Mutex::new(Share::fitting(limit, total_bytes, count)),
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
            bad: Mutex::default(),
        }
    }

    /// What a reader must provide for an object of `len` bytes.
    #[must_use]
    pub fn room_bytes(len: u64) -> u64 {
        staging_bytes(Self::record_bytes(len))
    }

    /// What the record of an object of `len` bytes takes in its file.
    pub(crate) fn record_bytes(len: u64) -> u64 {
        HEAD_BYTES + len
    }

    /// What whoever has the tier open must charge to its budget.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.segments.charged_bytes()
    }

    /// Whether objects lie in memory, not on a disk.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.segments.in_memory()
    }

    /// Why nothing is written any more, if so.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// Nothing is put for some time: others may go on with the segment that is written, or evict it.
    pub fn rest(&self) {
        if let Some(segment) = lock(&self.writer).take() {
            self.segments.finish(segment);
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally { put_bytes: read(&self.put_bytes), damaged: read(&self.damaged) }
    }

    /// Of the objects of two datasets no two have the same one, as hashes go.
    fn key(&self, id: u64) -> u64 {
        splitmix64(id ^ self.dataset)
    }

    /// Memory has the first of the objects in the order of their hash, and the disk the last, so that they have different ones
    /// as far as there are enough.
    fn wants(&self, id: u64) -> bool {
        let share = *lock(&self.share);
        if self.segments.in_memory() { share.has(id) } else { share.has_from_the_end(id) }
    }

    /// Where an object should be, if it was put.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<Spot> {
        self.table.find(self.key(id))
    }

    /// The record of an object as a place in a file, where that can be read directly.
    #[must_use]
    pub fn extent(&self, spot: Spot) -> Option<Extent<'static>> {
        (self.segments.mode() == ReadMode::Direct).then(|| self.open(spot)).flatten()
    }

    /// Takes an object out of the table.
    #[cfg(test)]
    pub(super) fn forget(&self, id: u64) {
        self.find(id).iter().for_each(|spot| self.table.clear(spot.slot));
    }

    fn open(&self, spot: Spot) -> Option<Extent<'static>> {
        let (file, base) = self.segments.open((spot.place >> SEGMENT_SHIFT) as u32)?;
        Some(Extent::shared(file, base + spot.place % SEGMENT_MOST_BYTES))
    }

    /// Reads the object of `len` bytes into `into`, which has [`Records::room_bytes`], and says where it lies; nothing if it is
    /// not what it should be. `found` is where the record lies if it was read already.
    pub fn read(
        &self,
        id: u64,
        len: u64,
        spot: Spot,
        found: Option<Range<usize>>,
        into: &mut [u8],
    ) -> Option<Range<usize>> {
        let Some(record) = found.or_else(|| self.read_raw(spot, Self::record_bytes(len), into)) else {
            self.table.clear(spot.slot);
            return None;
        };
        let (head, object) = into.get(record.clone())?.split_at_checked(HEAD_BYTES as usize)?;
        if object.len() as u64 != len || *head != head_of(self.key(id), &[object]) {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            lock(&self.bad).insert((spot.place >> SEGMENT_SHIFT) as u32);
            self.table.clear(spot.slot);
            return None;
        }
        Some(record.start + HEAD_BYTES as usize..record.end)
    }

    /// The length of the object of a record, as its head says it; `into` has room for that.
    fn len_at(&self, spot: Spot, into: &mut [u8]) -> Option<u64> {
        let range = self.read_raw(spot, HEAD_BYTES, into)?;
        let len = into.get(range)?.get(8..12)?.try_into().ok().map(u32::from_le_bytes)?;
        Some(u64::from(len))
    }

    /// As [`Records::read`], of an object of at most `most` bytes whose length its record alone knows: it is asked first.
    pub fn read_sized(&self, id: u64, most: u64, spot: Spot, into: &mut [u8]) -> Option<Range<usize>> {
        // What is too long is another object, which the read finds out.
        let len = self.len_at(spot, into).unwrap_or_default().min(most);
        self.read(id, len, spot, None, into)
    }

    fn read_raw(&self, spot: Spot, len: u64, into: &mut [u8]) -> Option<Range<usize>> {
        let extent = self.open(spot)?;
        read_open(extent.file(), Path::new("a record"), extent.offset(), len, self.segments.mode(), into).ok()
    }

    /// Writes a record to the segment of this process.
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
        self.segments.wrote(segment, from..segment.at)?;
        Ok(put)
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Tier for Records {
    fn get(&self, id: u64, into: &mut [u8]) -> Option<usize> {
        let spot = self.find(id)?;
        let mut head = aligned(staging_bytes(HEAD_BYTES) as usize);
        let len = self.len_at(spot, &mut head)?;
        if len > self.segments.segment_bytes().min(into.len() as u64) {
            return None;
        }
        let mut room = aligned(Self::room_bytes(len) as usize);
        let range = self.read(id, len, spot, None, &mut room)?;
        into.get_mut(..range.len())?.copy_from_slice(room.get(range)?);
        Some(len as usize)
    }

    fn put(&self, id: u64, parts: &[&[u8]]) -> bool {
        if self.stopped.get().is_some() || self.full.load(Ordering::Relaxed) || !self.wants(id) {
            return false;
        }
        let key = self.key(id);
        if self.table.find(key).is_some() {
            return true;
        }
        self.append(key, parts).unwrap_or_else(|error| {
            // It is never the only copy of anything: reading goes on without it.
            self.stopped.get_or_init(|| error.to_string());
            false
        })
    }

    fn limit_bytes(&self) -> u64 {
        self.segments.limit_bytes()
    }

    fn set_limit(&self, bytes: u64) {
        if bytes < self.segments.limit_bytes() {
            self.rest();
        }
        let bad = std::mem::take(&mut *lock(&self.bad));
        if !bad.is_empty() {
            self.rest();
            self.segments.discard(&bad);
        }
        self.segments.set_limit(bytes);
        *lock(&self.share) = Share::fitting(bytes, self.total_bytes, self.count);
        self.full.store(false, Ordering::Relaxed);
    }

    fn held_bytes(&self) -> u64 {
        self.segments.held_bytes()
    }
}

/// The head of a record.
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
