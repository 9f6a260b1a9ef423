//! Pairs of a key and an id, sorted beyond memory: what has the same key comes together.
//!
//! Flow: pairs in any order -> runs that are sorted in memory, and written to a folder once they are many -> merged -> groups of one key.
//! Memory: the buffer that is given, used twice: for the run that is collected, and for windows of the runs that are merged. Of the files no page is
//! left in the kernel's cache.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::{Error, Result};

/// A key and an id.
pub(super) type Pair = (u64, u64);
/// A pair at rest.
const PAIR_BYTES: usize = 16;
/// What is written before it is on the disk, and its pages are dropped.
const WRITE_BYTES: usize = 4 << 20;
/// Ids of one key that are given at once; the first of them comes again with those that follow.
const GROUP: usize = 1 << 16;
/// The least window of a run while runs are merged.
const WINDOW: usize = 64;

/// Writes at the end of a file, whose pages do not stay.
#[derive(Debug)]
pub(super) struct Dropped {
    file: File,
    folder: PathBuf,
    bytes: u64,
    pending: Vec<u8>,
}

impl Dropped {
    /// A file without a name: it is gone when it is closed, whatever happens.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(Error::io(folder))?;
        // Nothing is read ahead: it would stay in the kernel's cache. A kernel that does not listen reads more, and no less.
        let _advised = fadvise(&file, 0, None, Advice::Random);
        Ok(Self { file, folder: folder.to_owned(), bytes: 0, pending: Vec::new() })
    }

    /// What it holds at most.
    pub(super) const MOST_BYTES: u64 = 2 * WRITE_BYTES as u64;

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Bytes that were flushed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(&self.pending, self.bytes).map_err(Error::io(&self.folder))?;
        self.file.sync_data().map_err(Error::io(&self.folder))?;
        self.bytes += self.pending.len() as u64;
        self.pending.clear();
        self.let_go(0, self.bytes);
        Ok(())
    }

    /// Reads what was flushed.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, at).map_err(Error::io(&self.folder))?;
        self.let_go(at, into.len() as u64);
        Ok(())
    }

    fn let_go(&self, at: u64, bytes: u64) {
        // Whole pages: what is asked for in part stays otherwise.
        let (begin, end) = (at / 4096 * 4096, (at + bytes).next_multiple_of(4096));
        // Where the kernel does not want to, it may keep them.
        let _advised = fadvise(&self.file, begin, std::num::NonZeroU64::new(end - begin), Advice::DontNeed);
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Sorted {
    folder: PathBuf,
    buffer: Vec<Pair>,
    most: usize,
    /// Sorted runs, one after another: where each begins and ends, in pairs.
    runs: Vec<(u64, u64)>,
    file: Option<Dropped>,
}

impl Sorted {
    /// With room for so many pairs in memory.
    pub(super) fn new(folder: &Path, most: usize) -> Self {
        Self { folder: folder.to_owned(), buffer: Vec::new(), most, runs: Vec::new(), file: None }
    }

    pub(super) fn push(&mut self, pair: Pair) -> Result<()> {
        if self.buffer.len() == self.most {
            self.spill()?;
        }
        if self.buffer.is_empty() {
            // Never more than there is room for: growing would double it.
            self.buffer.reserve_exact(self.most);
        }
        self.buffer.push(pair);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        self.buffer.sort_unstable();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Dropped::new(&self.folder)?),
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

    /// Gives the ids of each key that came more than once, in ascending order; says how many bytes were written to the folder.
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
        // One window more than runs: the bytes that are being read.
        let window = (self.most / (self.runs.len() + 1)).max(WINDOW);
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

/// A run that is being merged.
struct Run {
    next: u64,
    end: u64,
    /// What was read of it, the first at the end.
    window: Vec<Pair>,
}

impl Run {
    fn pop(&mut self, file: &Dropped, window: usize, bytes: &mut Vec<u8>) -> Result<Option<Pair>> {
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

/// The ids of the key that is being read.
struct Group<'a> {
    key: u64,
    ids: Vec<u64>,
    each: &'a mut dyn FnMut(&[u64]) -> Result<()>,
}

impl Group<'_> {
    fn take(&mut self, (key, id): Pair) -> Result<()> {
        if key != self.key {
            self.give()?;
            self.key = key;
        }
        self.ids.push(id);
        if self.ids.len() == GROUP {
            // The first stands for those before it.
            (self.each)(&self.ids)?;
            self.ids.truncate(1);
        }
        Ok(())
    }

    fn give(&mut self) -> Result<()> {
        if self.ids.len() > 1 {
            (self.each)(&self.ids)?;
        }
        self.ids.clear();
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.give()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_same_in_memory_and_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let pairs: Vec<Pair> =
            (0..20_000u64).map(|id| (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52, id)).collect();
        let mut plain = std::collections::BTreeMap::<u64, Vec<u64>>::new();
        pairs.iter().for_each(|&(key, id)| plain.entry(key).or_default().push(id));
        let plain: Vec<Vec<u64>> = plain.into_values().filter(|ids| ids.len() > 1).collect();
        for most in [100_000, 20_000, 7_001, 512] {
            let mut sorted = Sorted::new(folder.path(), most);
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
        // Nothing is left behind.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = Dropped::new(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
