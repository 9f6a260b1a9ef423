//! The common memory of a node's processes: segments of its file that one of them writes, all read, and whoever lacks memory evicts.
//!
//! Flow: `claim_segment` -> a segment that this process alone writes -> `seal_segment`; `evict` gives sealed ones back.
//! Memory: segments are charged from when they are claimed until their pages are gone, by the word that says whose they are.
//! Not here: who the processes are and what each holds by itself (`node`); what is written into segments (`tidegate-data`'s `cache`).

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

    /// Where the table begins in the file.
    #[must_use]
    pub fn table_start(&self) -> u64 {
        FIGURES_BYTES
    }

    /// What it takes.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.word(4).load(Ordering::Relaxed)
    }

    /// Bytes of a segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.word(5).load(Ordering::Relaxed)
    }

    /// Where a segment begins in the file.
    #[must_use]
    pub fn segment_start(&self, i: u32) -> u64 {
        FIGURES_BYTES + self.table_bytes() + u64::from(i) * self.segment_bytes()
    }

    /// What claimed segments take.
    #[must_use]
    pub fn segments_held_bytes(&self) -> u64 {
        (0..SEGMENTS).map(|i| self.segment(i).load(Ordering::SeqCst) & SIZE).sum()
    }

    /// The most that segments may take.
    #[must_use]
    pub fn segments_limit_bytes(&self) -> u64 {
        self.word(6).load(Ordering::Relaxed)
    }

    /// Changes the most that segments may take, and evicts what is beyond.
    pub fn set_segments_limit(&self, bytes: u64) {
        self.word(6).store(bytes, Ordering::SeqCst);
        self.evict(self.segments_held_bytes().saturating_sub(bytes));
    }

    /// A segment that this process alone writes, charged; nothing if there is no room.
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
        // Another process may be quicker with the same one.
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

    /// This process writes a segment no more: whoever lacks memory may evict it.
    pub fn seal_segment(&self, i: u32) {
        if self.here() {
            self.segment(i as usize).fetch_and(SIZE, Ordering::SeqCst);
        }
    }

    /// Gives back sealed segments until `bytes` have gone, or there are none, the last ones first; they are not filled again before
    /// the limit is set anew.
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

    /// What evicting could give.
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
