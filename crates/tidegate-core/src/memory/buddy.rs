//! A buddy system over one block: pieces of a power of two of bytes for reads in flight.
//!
//! Flow: [`Buddy::take`] -> [`Staged`]; dropped pieces merge with their buddies.
//! Memory: the whole block under one account, for the life of the pool.
//!
//! Only for staging. Rounding to powers of two wastes some 40 %: that is right for short-lived
//! read buffers, which must cost nothing to take and give back and must never fragment, and wrong
//! for everything that stays.
#![expect(unsafe_code, reason = "hands out disjoint parts of one block")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::space::{self, Space};
use super::{Account, Block, Budget, PAGE_BYTES, Priority};
use crate::Result;
use crate::sync::{Gate, StopWhen};

#[derive(Debug)]
struct Inner {
    start: NonNull<u8>,
    space: Arc<Gate<Space>>,
    bytes: u64,
    _block: Block,
}

// SAFETY: pieces are disjoint parts of the block, and each has one holder.
unsafe impl Send for Inner {}
// SAFETY: as above; which parts are free is known behind a lock.
unsafe impl Sync for Inner {}

/// Pieces of one block, each a power of two of bytes; clones share the block.
#[derive(Debug, Clone)]
pub struct Buddy(Arc<Inner>);

impl Buddy {
    /// A pool of `bytes`, rounded up to a power of two of at least a page.
    ///
    /// # Errors
    /// As [`Budget::try_block`].
    pub fn new(budget: &Budget, account: Account, bytes: u64, priority: Priority) -> Result<Self> {
        let bytes = Self::piece_bytes(bytes);
        let mut block = budget.try_block(account, bytes, priority)?;
        let start = NonNull::from(&mut *block).cast();
        let space = Arc::new(Gate::new(Space::new(Self::order(bytes))));
        Ok(Self(Arc::new(Inner { start, space, bytes, _block: block })))
    }

    /// Bytes that a request of `bytes` takes: the next power of two, at least a page.
    #[must_use]
    pub fn piece_bytes(bytes: u64) -> u64 {
        bytes.max(PAGE_BYTES).next_power_of_two()
    }

    fn order(bytes: u64) -> usize {
        (Self::piece_bytes(bytes) / PAGE_BYTES).trailing_zeros() as usize
    }

    /// The size of the pool.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// A page-aligned piece of at least `bytes`; waits for one, and returns `None` once `stop` is
    /// met.
    ///
    /// Returns `None` at once when the pool is smaller than the piece. Waiters are not woken for
    /// each small piece that comes back, so the holder of a piece must never wait for another
    /// piece of the same pool.
    #[must_use]
    pub fn take<'a>(&self, bytes: u64, stop: impl Into<StopWhen<'a>>) -> Option<Staged> {
        let order = Self::order(bytes);
        space::take(&self.0.space, order, stop.into()).map(|offset| self.piece(offset, order, bytes))
    }

    /// A page-aligned piece of at least `bytes`, if there is one now.
    #[must_use]
    pub fn try_take(&self, bytes: u64) -> Option<Staged> {
        let order = Self::order(bytes);
        self.0.space.lock().take(order).map(|offset| self.piece(offset, order, bytes))
    }

    fn piece(&self, offset: usize, order: usize, bytes: u64) -> Staged {
        Staged { pool: Arc::clone(&self.0), offset, order, len: bytes as usize }
    }
}

/// A piece of the pool, page-aligned, owned until it is dropped.
#[must_use = "dropping a piece frees it at once"]
pub struct Staged {
    pool: Arc<Inner>,
    offset: usize,
    order: usize,
    len: usize,
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Staged({} B at {})", self.len, self.offset)
    }
}

impl Deref for Staged {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the piece is inside the pool's block, is initialized, and has no other holder.
        unsafe { std::slice::from_raw_parts(self.pool.start.add(self.offset).as_ptr(), self.len) }
    }
}

impl DerefMut for Staged {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` excludes other views.
        unsafe { std::slice::from_raw_parts_mut(self.pool.start.add(self.offset).as_ptr(), self.len) }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        space::give_back(&self.pool.space, self.offset, self.order);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::StopToken;
    use proptest::prelude::*;

    #[test]
    fn splits_and_merges() {
        let budget = Budget::new(1 << 20);
        let pool = Buddy::new(&budget, Account::Staging, 16 << 12, Priority::NextBatch).unwrap();
        let a = pool.try_take(1).unwrap();
        let b = pool.try_take(5 << 12).unwrap();
        assert_eq!((a.offset, b.offset, b.len()), (0, 8 << 12, 5 << 12));
        assert!(pool.try_take(8 << 12).is_none());
        assert!(pool.take(17 << 12, &StopToken::new()).is_none(), "larger than the pool: no wait can help");
        drop((a, b));
        assert!(pool.try_take(16 << 12).is_some());
    }

    proptest! {
        #[test]
        fn pieces_never_overlap(steps in prop::collection::vec((1u64..60_000, any::<bool>()), 1..100)) {
            let budget = Budget::new(1 << 20);
            let pool = Buddy::new(&budget, Account::Staging, 1 << 18, Priority::NextBatch).unwrap();
            let mut live: Vec<(Staged, u8)> = Vec::new();
            for (i, (bytes, release)) in steps.into_iter().enumerate() {
                if release && !live.is_empty() {
                    let (piece, mark) = live.swap_remove(bytes as usize % live.len());
                    prop_assert!(piece.iter().all(|&x| x == mark));
                } else if let Some(mut piece) = pool.try_take(bytes) {
                    piece.fill(i as u8);
                    live.push((piece, i as u8));
                }
            }
            live.clear();
            prop_assert!(pool.try_take(1 << 18).is_some(), "everything merges again");
        }
    }
}
