//! A block cut in disjoint pieces that several threads fill at the same time.
//!
//! Flow: memory + ranges -> pieces, each with one holder at most -> the memory again.
//! Memory: holds the block or slab item it was given.
//!
//! Decoders write straight into their row of the batch. The check that a row has one holder takes
//! one atomic operation.
#![expect(unsafe_code, reason = "hands out disjoint mutable parts of one block, checked at run time")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Block, SlabItem};

/// Owners of bytes whose address does not change while the owner moves.
///
/// # Safety
/// `deref_mut` must return the same memory for the whole life of the value, moved or not.
#[expect(private_bounds, reason = "sealed: the proof is needed for each owner")]
pub unsafe trait Stable: DerefMut<Target = [u8]> + Send + Sync + Sealed {}
trait Sealed {}
impl Sealed for Block {}
impl Sealed for SlabItem {}
// SAFETY: a block's bytes are an extent of the arena.
unsafe impl Stable for Block {}
// SAFETY: a slab item's bytes are a part of the slab's block.
unsafe impl Stable for SlabItem {}

/// Memory cut in pieces; see the head of this file.
pub struct Pieces<M: Stable> {
    memory: M,
    start: NonNull<u8>,
    pieces: Vec<(Range<usize>, AtomicBool)>,
}

// SAFETY: the memory is Send, and `start` only points into it.
unsafe impl<M: Stable> Send for Pieces<M> {}
// SAFETY: `take` gives each range to one holder only, which the flag of the piece checks.
unsafe impl<M: Stable> Sync for Pieces<M> {}

impl<M: Stable> fmt::Debug for Pieces<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces({} of {} B)", self.pieces.len(), self.memory.len())
    }
}

impl<M: Stable> Pieces<M> {
    /// Cuts `memory` at `ranges`, which must ascend without overlap and stay inside.
    ///
    /// Returns the memory unchanged when they do not.
    ///
    /// # Errors
    /// The memory itself.
    pub fn new(mut memory: M, ranges: impl IntoIterator<Item = Range<usize>>) -> Result<Self, M> {
        let mut end = 0;
        let mut pieces = Vec::new();
        for range in ranges {
            if range.start < end || range.end < range.start || range.end > memory.len() {
                return Err(memory);
            }
            end = range.end;
            pieces.push((range, AtomicBool::new(false)));
        }
        let start = NonNull::from(&mut *memory).cast();
        Ok(Self { memory, start, pieces })
    }

    /// Piece `i`; `None` if there is no such piece or it has a holder.
    #[must_use]
    pub fn take(&self, i: usize) -> Option<Piece<'_>> {
        let (range, taken) = self.pieces.get(i)?;
        if taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: the range is inside the memory (checked in `new`).
        let start = unsafe { self.start.add(range.start) };
        Some(Piece { start, len: range.len(), taken, of: PhantomData })
    }

    /// The whole memory again: `self` proves that no piece is out.
    #[must_use]
    pub fn into_inner(self) -> M {
        self.memory
    }
}

/// One piece, writable by its holder alone, until it is dropped.
pub struct Piece<'a> {
    start: NonNull<u8>,
    len: usize,
    taken: &'a AtomicBool,
    of: PhantomData<&'a mut [u8]>,
}

// SAFETY: a Piece is a `&mut [u8]` in all but name.
unsafe impl Send for Piece<'_> {}

impl fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} B)", self.len)
    }
}

impl Deref for Piece<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside memory that outlives 'a, and no other piece overlaps it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Piece<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` excludes other views of this piece.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        self.taken.store(false, Ordering::Release);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Account, Budget, Priority};

    fn block() -> Block {
        Budget::new(1 << 16).try_block(Account::Batch, 100, Priority::NextBatch).unwrap()
    }

    #[test]
    fn each_piece_is_in_one_hand() {
        let pieces = Pieces::new(block(), [0..10, 16..20, 20..100]).unwrap();
        std::thread::scope(|s| {
            for i in 0..3u8 {
                let pieces = &pieces;
                s.spawn(move || pieces.take(i.into()).unwrap().fill(i + 1));
            }
        });
        let first = pieces.take(1).unwrap();
        assert!(pieces.take(1).is_none() && pieces.take(3).is_none());
        drop(first);
        assert!(pieces.take(1).is_some());
        let block = pieces.into_inner();
        assert_eq!((block[9], block[10], block[16], block[99]), (1, 0, 2, 3));
    }

    #[test]
    fn overlapping_or_outer_ranges_are_refused() {
        assert!(Pieces::new(block(), [0..10, 9..12]).is_err());
        assert!(Pieces::new(block(), std::iter::once(0..101)).is_err());
    }
}
