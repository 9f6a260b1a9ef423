//! A slab: equal items that are used again and again without a trip to the arena.
//!
//! Flow: [`Slab::take`] -> [`SlabItem`]; a dropped item is free for the next taker, at once or
//! after an event.
//! Memory: a block for each item under one account, from the making of the slab until it is
//! resized or dropped. An item that is out keeps its own block.
//!
//! The ring of batch slots is a slab: a batch returns its slot when the last view of it is
//! dropped, and a slot that a device still reads returns when the device's event has completed.
//! Items of one size cannot fragment, and their pages stay warm: filling a fresh 38 MB batch takes
//! 13 ms, a used one 1 ms.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use super::arena::extent_bytes;
use super::pool::{self, Completion, Completions, Pool};
use super::{Account, Block, Budget, Priority};
use crate::Result;
use crate::sync::{Gate, StopWhen};

/// Equal items; clones share them.
#[derive(Debug, Clone)]
pub struct Slab {
    item_bytes: usize,
    pool: Arc<Gate<Pool<Block>>>,
}

/// Refers to a slab without keeping it: the slab exists as long as a [`Slab`] or one of its items
/// does.
#[derive(Debug, Clone, Default)]
pub struct WeakSlab {
    item_bytes: usize,
    pool: Weak<Gate<Pool<Block>>>,
}

impl WeakSlab {
    /// The slab, if a handle on it or one of its items still exists.
    #[must_use]
    pub fn upgrade(&self) -> Option<Slab> {
        self.pool.upgrade().map(|pool| Slab { item_bytes: self.item_bytes, pool })
    }
}

impl Slab {
    /// A slab of `count` items of `item_bytes`, each aligned to a page.
    ///
    /// # Errors
    /// As [`Budget::try_block`].
    pub fn new(
        budget: &Budget,
        account: Account,
        item_bytes: u64,
        count: u64,
        priority: Priority,
    ) -> Result<Self> {
        let slab = Self { item_bytes: item_bytes as usize, pool: Arc::new(Gate::new(Pool::new())) };
        slab.resize(budget, account, count, priority)?;
        Ok(slab)
    }

    /// Changes the number of items to `count`.
    ///
    /// New items are made now. Free items beyond `count` are dropped now, others when they come
    /// back.
    ///
    /// # Errors
    /// As [`Budget::try_block`]; then the slab has fewer items than asked for.
    pub fn resize(&self, budget: &Budget, account: Account, count: u64, priority: Priority) -> Result<()> {
        let bytes = self.item_bytes.max(1) as u64;
        pool::resize(&self.pool, count as usize, || budget.try_block(account, bytes, priority))
    }

    /// Lowers the number of items to `count`, as [`Slab::resize`] does; never raises it.
    pub fn shrink(&self, count: u64) {
        self.pool.lock().shrink(count as usize);
    }

    /// Bytes of the budget that one item of `item_bytes` takes.
    #[must_use]
    pub fn stride_bytes(item_bytes: u64) -> u64 {
        extent_bytes(item_bytes.max(1))
    }

    /// A free item, if there is one now.
    #[must_use]
    pub fn try_take(&self) -> Option<SlabItem> {
        self.pool.lock().try_take().map(|block| self.item(block))
    }

    /// A free item; waits for one, and returns `None` once `stop` is met.
    ///
    /// If none is free, it waits for the item that was parked first ([`SlabItem::release_after`]),
    /// or, if none is parked, for an item to be dropped.
    #[must_use]
    pub fn take<'a>(&self, stop: impl Into<StopWhen<'a>>) -> Option<SlabItem> {
        pool::take(&self.pool, stop.into()).map(|block| self.item(block))
    }

    fn item(&self, block: Block) -> SlabItem {
        let (slab, block) = (self.clone(), Some(block));
        SlabItem { slab, block, completions: Vec::new() }
    }

    /// A reference that does not keep the slab.
    #[must_use]
    pub fn downgrade(&self) -> WeakSlab {
        WeakSlab { item_bytes: self.item_bytes, pool: Arc::downgrade(&self.pool) }
    }

    /// Bytes of an item.
    #[must_use]
    pub fn item_bytes(&self) -> u64 {
        self.item_bytes as u64
    }

    /// How many items the slab should have.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.lock().count()
    }

    /// How many items are free. Parked ones whose completion is pending are not.
    #[must_use]
    pub fn free(&self) -> usize {
        self.pool.lock().free()
    }

    /// How many items are out or parked, and how many take memory in all.
    #[must_use]
    pub fn out(&self) -> (usize, usize) {
        let mut pool = self.pool.lock();
        // `free` first: it may drop parked items that are too many.
        let free = pool.free();
        (pool.items() - free, pool.items())
    }
}

/// One item of a slab, owned until it is dropped.
#[must_use = "dropping an item frees it at once"]
pub struct SlabItem {
    slab: Slab,
    /// `None` only while the item is being dropped.
    block: Option<Block>,
    completions: Completions,
}

impl fmt::Debug for SlabItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlabItem({} B)", self.slab.item_bytes)
    }
}

impl SlabItem {
    /// Keeps the memory from the next taker until `completion` is complete, also after this item
    /// is dropped.
    ///
    /// For memory that something other than a thread of ours still reads, such as a copy to a
    /// device. After several calls the item waits for all completions. If the whole slab is
    /// dropped first, its destructor waits for them.
    pub fn release_after(&mut self, completion: Box<dyn Completion>) {
        self.completions.push(completion);
    }
}

impl Deref for SlabItem {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.block.as_deref().unwrap_or_default()[..self.slab.item_bytes]
    }
}

impl DerefMut for SlabItem {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.block.as_deref_mut().unwrap_or_default()[..self.slab.item_bytes]
    }
}

impl Drop for SlabItem {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            pool::give_back(&self.slab.pool, block, std::mem::take(&mut self.completions));
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::StopToken;

    #[test]
    fn items_are_disjoint_aligned_and_come_back() {
        let budget = Budget::new(1 << 20);
        let slab = Slab::new(&budget, Account::Batch, 1000, 4, Priority::NextBatch).unwrap();
        let mut items: Vec<_> = (0..4).map(|_| slab.try_take().unwrap()).collect();
        assert!(slab.try_take().is_none());
        for (i, item) in items.iter_mut().enumerate() {
            assert_eq!(item.as_ptr() as usize % 4096, 0);
            item.fill(i as u8);
        }
        assert!(items.iter().enumerate().all(|(i, item)| item.iter().all(|&x| x == i as u8)));
        items.pop();
        assert_eq!(slab.free(), 1);
        let stop = StopToken::new();
        stop.stop();
        assert!(slab.take(&stop).is_some(), "what is free needs no wait");
        // A smaller one lets go of what is free now, and of the rest when it comes back.
        slab.shrink(2);
        assert_eq!((slab.count(), slab.free(), slab.out()), (2, 0, (3, 3)));
        assert_eq!(budget.account(Account::Batch).held_bytes, 3 * 4096);
        items.pop();
        assert_eq!((slab.free(), budget.account(Account::Batch).held_bytes), (0, 2 * 4096));
        items.pop();
        assert_eq!((slab.free(), slab.out()), (1, (1, 2)));
        slab.resize(&budget, Account::Batch, 5, Priority::NextBatch).unwrap();
        assert_eq!((slab.count(), slab.free(), slab.out()), (5, 4, (1, 5)));
        drop((slab, items));
        assert_eq!(budget.account(Account::Batch).held_bytes, 0);
    }

    #[test]
    fn an_item_waits_for_its_event_before_it_is_free() {
        #[derive(Debug)]
        struct Copying(std::sync::atomic::AtomicU32);
        impl Completion for std::sync::Arc<Copying> {
            fn is_complete(&self) -> bool {
                self.0.load(std::sync::atomic::Ordering::SeqCst) == 0
            }
            fn wait(&self) {
                while !self.is_complete() {
                    std::thread::yield_now();
                }
            }
        }
        let budget = Budget::new(1 << 20);
        let slab = Slab::new(&budget, Account::Batch, 1000, 2, Priority::NextBatch).unwrap();
        let copying = Arc::new(Copying(1.into()));
        let mut item = slab.try_take().unwrap();
        item.release_after(Box::new(Arc::clone(&copying)));
        assert_eq!(slab.out(), (1, 2));
        drop(item);
        assert_eq!((slab.free(), slab.out()), (1, (1, 2)), "parked");
        slab.shrink(1);
        assert_eq!((slab.free(), slab.out(), slab.count()), (0, (1, 1), 1));
        copying.0.store(0, std::sync::atomic::Ordering::SeqCst);
        assert_eq!((slab.free(), slab.out()), (1, (0, 1)));
        assert!(slab.take(&StopToken::new()).is_some());
        drop(slab);
        assert_eq!(budget.account(Account::Batch).held_bytes, 0);
    }
}
