//! The common memory of the processes of a node: segments that one process writes and all read.
//!
//! Flow: `claim_segment` -> a segment that this process alone writes -> `seal_segment`. A process
//! that lacks memory frees sealed ones with `evict`.
//! Memory: segments are charged from when they are claimed until their pages are gone, by the word
//! that holds their owner.
//! Not here: the processes and what each holds by itself (`node`); the contents of segments
//! (`cache` in `tidegate-data`).

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};

use super::node::{FIGURES_BYTES, FREEING, Node, OWNER_SHIFT, SEGMENTS, SIZE, WRITTEN};
use crate::sync::Ordering;

impl Node {
    /// A handle on the file, for reading and writing segments and the table.
    ///
    /// # Errors
    /// When this process may have no more open files.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The offset of the table in the file.
    #[must_use]
    pub fn table_start(&self) -> u64 {
        FIGURES_BYTES
    }

    /// Bytes of the table.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.word(4).load(Ordering::Relaxed)
    }

    /// Bytes of a segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.word(5).load(Ordering::Relaxed)
    }

    /// The offset of a segment in the file.
    #[must_use]
    pub fn segment_start(&self, i: u32) -> u64 {
        FIGURES_BYTES + self.table_bytes() + u64::from(i) * self.segment_bytes()
    }

    /// Bytes of the claimed segments.
    #[must_use]
    pub fn segments_held_bytes(&self) -> u64 {
        (0..SEGMENTS).map(|i| self.segment(i).load(Ordering::SeqCst) & SIZE).sum()
    }

    /// The most bytes that segments may take.
    #[must_use]
    pub fn segments_limit_bytes(&self) -> u64 {
        self.word(6).load(Ordering::Relaxed)
    }

    /// Changes the most bytes that segments may take, and evicts those beyond it.
    pub fn set_segments_limit(&self, bytes: u64) {
        self.word(6).store(bytes, Ordering::SeqCst);
        self.evict(self.segments_held_bytes().saturating_sub(bytes));
    }

    /// Claims and charges a segment that this process alone writes; `None` if none fits.
    #[must_use]
    pub fn claim_segment(&self) -> Option<u32> {
        let (bytes, owner) = (self.segment_bytes(), (self.me as u64 + 1) << OWNER_SHIFT);
        let written =
            (0..SEGMENTS).filter(|&i| self.segment(i).load(Ordering::SeqCst) & !SIZE == owner).count();
        let full = self.segments_held_bytes() + bytes > self.segments_limit_bytes();
        if full || !self.here() || written as u64 >= WRITTEN {
            return None;
        }
        let taken = std::cell::Cell::new(None);
        // Another process may claim the same one first.
        let free = |i: &usize| {
            self.segment(*i).compare_exchange(0, bytes | owner, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        let add = || taken.set((0..SEGMENTS).find(free));
        let undo = || {
            if let Some(i) = taken.take() {
                self.segment(i).store(0, Ordering::SeqCst);
            }
        };
        self.try_add(bytes, add, undo).then(|| taken.get().map(|i| i as u32)).flatten()
    }

    /// Ends the writing of a segment: a process that lacks memory may evict it from now on.
    pub fn seal_segment(&self, i: u32) {
        if self.here() {
            self.segment(i as usize).fetch_and(SIZE, Ordering::SeqCst);
        }
    }

    /// Frees sealed segments, the last ones first, until `bytes` are free or no sealed one is
    /// left. They are not filled again before the limit is set again.
    pub(super) fn evict(&self, bytes: u64) {
        let mut gone = 0;
        for i in (0..SEGMENTS).rev() {
            if gone >= bytes || !self.here() {
                return;
            }
            let (word, now) = (self.segment(i), self.segment(i).load(Ordering::SeqCst));
            let freeing = now | FREEING | (self.me as u64 + 1) << OWNER_SHIFT;
            let sealed = now != 0 && now & !SIZE == 0;
            if sealed && word.compare_exchange(now, freeing, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                self.word(6).fetch_min(self.segments_held_bytes() - now, Ordering::SeqCst);
                self.free(i);
                gone += now;
            }
        }
    }

    /// Bytes that evicting can free.
    pub(super) fn evictable_bytes(&self) -> u64 {
        let words = (0..SEGMENTS).map(|i| self.segment(i).load(Ordering::SeqCst));
        words.filter(|word| word & !SIZE == 0).sum()
    }

    pub(super) fn free(&self, i: usize) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = fallocate(&self.file, hole, self.segment_start(i as u32), self.segment_bytes());
        debug_assert!(punched.is_ok(), "a memory file refused a hole");
        self.segment(i).store(0, Ordering::SeqCst);
    }
}
