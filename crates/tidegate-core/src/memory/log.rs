//! A block that is written once from beginning to end, and read meanwhile.
//!
//! Flow: [`Log::append`] copies bytes behind the last ones -> their range; [`Log::lend`] -> a
//! [`Lease`] of written bytes.
//! Memory: one block, from the making of the log until it and its last lease are dropped.
//!
//! Caches pack small objects this way: written bytes never change, so reading them needs no lock
//! and no copy.
#![expect(unsafe_code, reason = "lends the written part of a block while the rest is being written")]

use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use super::Block;

#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    /// Keeps the memory; reached only through `start`.
    _block: Block,
}

// SAFETY: written bytes are only read, and the one `Log` alone writes the others.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// See the head of this file. It cannot be cloned: there is one writer.
#[derive(Debug)]
pub struct Log {
    memory: Arc<Memory>,
    used: usize,
}

/// Written bytes of a log, for as long as this lives.
#[derive(Clone)]
pub struct Lease {
    memory: Arc<Memory>,
    range: Range<usize>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?} of {} B)", self.range, self.memory.bytes)
    }
}

impl Log {
    /// An empty log over a block.
    #[must_use]
    pub fn new(mut block: Block) -> Self {
        let (start, bytes) = (NonNull::from(&mut *block).cast(), block.len());
        Self { memory: Arc::new(Memory { start, bytes, _block: block }), used: 0 }
    }

    /// Bytes of its block.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Bytes that are not yet written.
    #[must_use]
    pub fn left(&self) -> usize {
        self.memory.bytes - self.used
    }

    /// Writes `parts` one after the other and returns their range; `None` if they do not all fit.
    pub fn append(&mut self, parts: &[&[u8]]) -> Option<Range<usize>> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > self.left() {
            return None;
        }
        let first = self.used;
        for part in parts {
            // SAFETY: `used + part.len()` is at most the block's length, so the range is in it. It
            // is behind every range that a lease can have, and `&mut self` of the only log over
            // this block excludes other writers.
            unsafe {
                let target = self.memory.start.add(self.used).as_ptr();
                std::ptr::copy_nonoverlapping(part.as_ptr(), target, part.len());
            }
            self.used += part.len();
        }
        Some(first..self.used)
    }

    /// Bytes that were written.
    ///
    /// # Panics
    /// If `range` reaches beyond what was written.
    #[must_use]
    pub fn lend(&self, range: Range<usize>) -> Lease {
        assert!(range.start <= range.end && range.end <= self.used, "{range:?} is not written");
        Lease { memory: Arc::clone(&self.memory), range }
    }
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range was written before the lease existed, and is never written again; the
        // block lives as long as `memory`.
        unsafe {
            std::slice::from_raw_parts(self.memory.start.add(self.range.start).as_ptr(), self.range.len())
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::super::{Account, Budget, Priority};
    use super::*;

    #[test]
    fn what_is_lent_stays_while_more_is_written() {
        let budget = Budget::new(1 << 20);
        let block = budget.try_block(Account::CacheMemory, 1000, Priority::CacheFill).unwrap();
        let mut log = Log::new(block);
        let first = log.append(&[b"ab", b"", b"cd"]).unwrap();
        let lease = log.lend(first.clone());
        let reader = lease.clone();
        let reading = std::thread::Builder::new();
        let reading = reading.spawn(move || (0..10_000).all(|_| *reader == *b"abcd")).unwrap();
        let mut ranges = vec![first];
        while let Some(range) = log.append(&[&[7; 33]]) {
            assert_eq!(*log.lend(range.clone()), [7; 33]);
            ranges.push(range);
        }
        assert!(reading.join().unwrap());
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start) && log.left() < 33);
        drop(log);
        assert_eq!((*lease).to_vec(), b"abcd");
        assert_eq!(budget.account(Account::CacheMemory).held_bytes, 4096);
        drop(lease);
        assert_eq!(budget.account(Account::CacheMemory).held_bytes, 0);
    }
}
