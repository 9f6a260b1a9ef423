//! Sorts more (key, id) pairs than memory holds, and groups the ids of each key.
//!
//! Flow: pairs in any order -> runs that are sorted in memory and, if there are several, written
//! to a file -> merged -> groups of one key.
//! Memory: one buffer of a given size, first for the run that is collected, then for windows of
//! the runs that are merged. The files leave no pages in the page cache.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::{Error, Result};

/// A key and an id.
pub(super) type Pair = (u64, u64);
/// Bytes of a pair in a file.
const PAIR_BYTES: usize = 16;
/// Bytes that are written before they are synced and their pages are dropped.
const WRITE_BYTES: usize = 4 << 20;
/// The most ids of one key in a group. The next group of the key begins with the first id again.
const GROUP_IDS: usize = 1 << 16;
/// The smallest window of a run while runs are merged, in pairs.
const MIN_WINDOW: usize = 64;

/// An append-only temporary file whose pages do not stay in the page cache.
#[derive(Debug)]
pub(super) struct UncachedFile {
    file: File,
    folder: PathBuf,
    bytes: u64,
    pending: Vec<u8>,
}

impl UncachedFile {
    /// Makes a file without a name in `folder`. It vanishes when it is closed.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(Error::io(folder))?;
        // Read-ahead would fill the page cache. A kernel that ignores the advice only reads more.
        fadvise(&file, 0, None, Advice::Random).ok();
        Ok(Self { file, folder: folder.to_owned(), bytes: 0, pending: Vec::new() })
    }

    /// The most memory that it holds.
    pub(super) const MAX_BYTES: u64 = 2 * WRITE_BYTES as u64;

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Bytes that were flushed to the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(&self.pending, self.bytes).map_err(Error::io(&self.folder))?;
        self.file.sync_data().map_err(Error::io(&self.folder))?;
        self.bytes += self.pending.len() as u64;
        self.pending.clear();
        self.drop_pages(0, self.bytes);
        Ok(())
    }

    /// Reads bytes that were flushed.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, at).map_err(Error::io(&self.folder))?;
        self.drop_pages(at, into.len() as u64);
        Ok(())
    }

    fn drop_pages(&self, at: u64, bytes: u64) {
        // The kernel drops whole pages only.
        let (begin, end) = (at / 4096 * 4096, (at + bytes).next_multiple_of(4096));
        // It is advice: a kernel that keeps the pages does no harm.
        fadvise(&self.file, begin, std::num::NonZeroU64::new(end - begin), Advice::DontNeed).ok();
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct ExternalSort {
    folder: PathBuf,
    buffer: Vec<Pair>,
    /// The most pairs in memory.
    capacity: usize,
    /// The sorted runs in the file: (begin, end), in pairs.
    runs: Vec<(u64, u64)>,
    file: Option<UncachedFile>,
}

impl ExternalSort {
    /// Makes a sort with at most `capacity` pairs in memory.
    pub(super) fn new(folder: &Path, capacity: usize) -> Self {
        Self { folder: folder.to_owned(), buffer: Vec::new(), capacity, runs: Vec::new(), file: None }
    }

    pub(super) fn push(&mut self, pair: Pair) -> Result<()> {
        if self.buffer.len() == self.capacity {
            self.spill()?;
        }
        if self.buffer.is_empty() {
            // The exact size: growing would double it.
            self.buffer.reserve_exact(self.capacity);
        }
        self.buffer.push(pair);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        self.buffer.sort_unstable();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(UncachedFile::new(&self.folder)?),
        };
        let begin = self.runs.last().map_or(0, |&(_, end)| end);
        for (key, id) in self.buffer.drain(..) {
            let mut bytes = [0; PAIR_BYTES];
            bytes[..8].copy_from_slice(&key.to_le_bytes());
            bytes[8..].copy_from_slice(&id.to_le_bytes());
            file.write(&bytes)?;
        }
        file.flush()?;
        self.runs.push((begin, file.bytes / PAIR_BYTES as u64));
        Ok(())
    }

    /// Passes the ids of each key that has several to `each`, in ascending order. Returns the
    /// bytes that were written to the file.
    pub(super) fn groups(mut self, each: &mut dyn FnMut(&[u64]) -> Result<()>) -> Result<u64> {
        let mut group = Group { key: 0, ids: Vec::new(), each };
        if self.file.is_none() {
            self.buffer.sort_unstable();
            for &pair in &self.buffer {
                group.take(pair)?;
            }
            return group.end().map(|()| 0);
        }
        if !self.buffer.is_empty() {
            self.spill()?;
        }
        self.buffer = Vec::new();
        let Some(file) = &self.file else { return Ok(0) };
        // One window for each run, and one for the bytes that are being read.
        let window = (self.capacity / (self.runs.len() + 1)).max(MIN_WINDOW);
        let mut bytes = Vec::new();
        let mut runs: Vec<Run> =
            self.runs.iter().map(|&(next, end)| Run { next, end, window: Vec::new() }).collect();
        let mut heap = BinaryHeap::new();
        for (r, run) in runs.iter_mut().enumerate() {
            if let Some(pair) = run.pop(file, window, &mut bytes)? {
                heap.push(Reverse((pair, r)));
            }
        }
        while let Some(Reverse((pair, r))) = heap.pop() {
            group.take(pair)?;
            if let Some(pair) = runs[r].pop(file, window, &mut bytes)? {
                heap.push(Reverse((pair, r)));
            }
        }
        group.end()?;
        Ok(file.bytes)
    }
}

/// One run while runs are merged.
struct Run {
    next: u64,
    end: u64,
    /// Pairs that were read, in descending order.
    window: Vec<Pair>,
}

impl Run {
    fn pop(&mut self, file: &UncachedFile, window: usize, bytes: &mut Vec<u8>) -> Result<Option<Pair>> {
        if self.window.is_empty() && self.next < self.end {
            let pairs = (self.end - self.next).min(window as u64);
            bytes.resize(pairs as usize * PAIR_BYTES, 0);
            file.read(self.next * PAIR_BYTES as u64, bytes)?;
            let word = |half: &[u8]| half.first_chunk().map_or(0, |&half| u64::from_le_bytes(half));
            let pairs = bytes.chunks_exact(PAIR_BYTES).rev();
            self.window.extend(pairs.map(|pair| (word(&pair[..8]), word(&pair[8..]))));
            self.next += self.window.len() as u64;
        }
        Ok(self.window.pop())
    }
}

/// Collects the ids of one key.
struct Group<'a> {
    key: u64,
    ids: Vec<u64>,
    each: &'a mut dyn FnMut(&[u64]) -> Result<()>,
}

impl Group<'_> {
    fn take(&mut self, (key, id): Pair) -> Result<()> {
        if key != self.key {
            self.flush()?;
            self.key = key;
        }
        self.ids.push(id);
        if self.ids.len() == GROUP_IDS {
            // The first id represents the group in the next one.
            (self.each)(&self.ids)?;
            self.ids.truncate(1);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.ids.len() > 1 {
            (self.each)(&self.ids)?;
        }
        self.ids.clear();
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_same_with_and_without_spilling() {
        let folder = tempfile::tempdir().unwrap();
        let pairs: Vec<Pair> =
            (0..20_000u64).map(|id| (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52, id)).collect();
        let mut plain = std::collections::BTreeMap::<u64, Vec<u64>>::new();
        pairs.iter().for_each(|&(key, id)| plain.entry(key).or_default().push(id));
        let plain: Vec<Vec<u64>> = plain.into_values().filter(|ids| ids.len() > 1).collect();
        for most in [100_000, 20_000, 7_001, 512] {
            let mut sorted = ExternalSort::new(folder.path(), most);
            pairs.iter().for_each(|&pair| sorted.push(pair).unwrap());
            let mut found = Vec::new();
            let spilled = sorted
                .groups(&mut |ids| {
                    found.push(ids.to_vec());
                    Ok(())
                })
                .unwrap();
            assert_eq!((found, spilled > 0), (plain.clone(), most < 20_000), "{most}");
        }
        // No file is left.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = UncachedFile::new(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
