//! A buddy system over one block: power-of-two pieces for reads in flight.
//!
//! Flow: [`Buddy::take`] -> [`Staged`]; dropped pieces merge with their buddies.
//! Memory: the whole block under one account, for the life of the pool.
//!
//! Staging only: rounding to powers of two wastes some 40 %, which is right for short-lived read buffers, whose taking
//! and giving back must cost nothing and never fragment, and wrong for everything that stays.
#![expect(unsafe_code, reason = "hands out disjoint parts of one block")]

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::{Account, Block, Budget, PAGE_BYTES, Priority};
use crate::Result;
use crate::sync::lock;

#[derive(Debug)]
struct Inner {
    start: NonNull<u8>,
    /// `free[k]`: offsets of free pieces of `PAGE_BYTES << k`.
    free: Mutex<Vec<BTreeSet<usize>>>,
    freed: Condvar,
    bytes: u64,
    _block: Block,
}

// SAFETY: pieces are disjoint parts of the block, each handed to one holder.
unsafe impl Send for Inner {}
// SAFETY: as above; the free lists are behind a lock.
unsafe impl Sync for Inner {}

/// Power-of-two pieces of one block; clones share it.
#[derive(Debug, Clone)]
pub struct Buddy(Arc<Inner>);

impl Buddy {
    /// A pool of `bytes`, a power of two of at least a page.
    ///
    /// # Errors
    /// As [`Budget::try_block`].
    pub fn new(budget: &Budget, account: Account, bytes: u64, priority: Priority) -> Result<Self> {
        let bytes = Self::piece_bytes(bytes);
        let mut block = budget.try_block(account, bytes, priority)?;
        let top = (bytes / PAGE_BYTES).trailing_zeros() as usize;
        let mut free = vec![BTreeSet::new(); top + 1];
        free[top].insert(0);
        let start = NonNull::from(&mut *block).cast();
        Ok(Self(Arc::new(Inner {
            start,
            free: Mutex::new(free),
            freed: Condvar::new(),
            bytes,
            _block: block,
        })))
    }

    /// What a request of `bytes` takes: the next power of two, at least a page.
    #[must_use]
    pub fn piece_bytes(bytes: u64) -> u64 {
        bytes.max(PAGE_BYTES).next_power_of_two()
    }

    /// The size of the pool.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// A page-aligned piece of at least `bytes`; waits for one, and gives up when `stop` says so.
    ///
    /// Who has to wait is woken when a quarter of the pool is free, not at each piece: a wake-up for each sample took
    /// 5 % of the processor from the decoders.
    ///
    /// Returns `None` as well when the pool is smaller than the piece.
    #[must_use]
    pub fn take(&self, bytes: u64, stop: &dyn Fn() -> bool) -> Option<Staged> {
        let order = (Self::piece_bytes(bytes) / PAGE_BYTES).trailing_zeros() as usize;
        let mut free = lock(&self.0.free);
        if order >= free.len() {
            return None;
        }
        loop {
            if let Some(offset) = cut(&mut free, order) {
                return Some(Staged { pool: Arc::clone(&self.0), offset, order, len: bytes as usize });
            }
            if stop() {
                return None;
            }
            free = self
                .0
                .freed
                .wait_timeout(free, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Takes a piece of `order`, splitting the smallest larger one.
fn cut(free: &mut [BTreeSet<usize>], order: usize) -> Option<usize> {
    let from = (order..free.len()).find(|&k| !free[k].is_empty())?;
    let offset = free[from].pop_first()?;
    for k in (order..from).rev() {
        free[k].insert(offset + ((PAGE_BYTES as usize) << k));
    }
    Some(offset)
}

/// Gives a piece back, merging it with free buddies.
fn merge(free: &mut [BTreeSet<usize>], mut offset: usize, mut order: usize) {
    while order + 1 < free.len() {
        let buddy = offset ^ ((PAGE_BYTES as usize) << order);
        if !free[order].remove(&buddy) {
            break;
        }
        offset = offset.min(buddy);
        order += 1;
    }
    free[order].insert(offset);
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
        // SAFETY: the piece lies inside the pool's block, is initialized, and is handed to nobody else.
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
        let mut free = lock(&self.pool.free);
        merge(&mut free, self.offset, self.order);
        let bytes: u64 =
            free.iter().enumerate().map(|(k, pieces)| (PAGE_BYTES << k) * pieces.len() as u64).sum();
        drop(free);
        if bytes >= self.pool.bytes / 4 {
            self.pool.freed.notify_all();
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splits_and_merges() {
        let budget = Budget::new(1 << 20);
        let pool = Buddy::new(&budget, Account::Staging, 16 << 12, Priority::NextBatch).unwrap();
        let a = pool.take(1, &|| true).unwrap();
        let b = pool.take(5 << 12, &|| true).unwrap();
        assert_eq!((a.offset, b.offset, b.len()), (0, 8 << 12, 5 << 12));
        assert!(pool.take(8 << 12, &|| true).is_none());
        assert!(pool.take(17 << 12, &|| false).is_none(), "larger than the pool: no wait can help");
        drop((a, b));
        assert!(pool.take(16 << 12, &|| true).is_some());
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
                } else if let Some(mut piece) = pool.take(bytes, &|| true) {
                    piece.fill(i as u8);
                    live.push((piece, i as u8));
                }
            }
            live.clear();
            prop_assert!(pool.take(1 << 18, &|| true).is_some(), "everything merges again");
        }
    }
}
