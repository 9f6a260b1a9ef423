//! A slab: equal items that are used again and again without a trip to the arena.
//!
//! Flow: [`Slab::take`] -> [`SlabItem`]; a dropped item is free for the next taker.
//! Memory: a block for each item under one account, from the making of the slab until it is resized or dropped; an item
//! that is out keeps its own.
//!
//! The ring of batch slots is a slab: a batch returns its slot when the last view of it is dropped. One size means no
//! fragmentation at all, and pages stay warm: filling a fresh 38 MB batch costs 13 ms, a used one 1 ms.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::arena::extent_bytes;
use super::{Account, Block, Budget, Priority};
use crate::Result;
use crate::sync::lock;

#[derive(Debug)]
struct State {
    /// The last one used on top: its lines are the warmest.
    free: Vec<Block>,
    /// Items in all, free or not.
    items: usize,
    /// How many there should be: items beyond are dropped when they come back.
    count: usize,
}

#[derive(Debug)]
struct Inner {
    item: usize,
    state: Mutex<State>,
    freed: Condvar,
}

/// Equal items; clones share them.
#[derive(Debug, Clone)]
pub struct Slab(Arc<Inner>);

/// Refers to a slab without keeping it: it is there as long as the slab or one of its items is.
#[derive(Debug, Clone, Default)]
pub struct WeakSlab(std::sync::Weak<Inner>);

impl WeakSlab {
    /// The slab, if anyone still holds it or an item of it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Slab> {
        self.0.upgrade().map(Slab)
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
        let state = Mutex::new(State { free: Vec::new(), items: 0, count: 0 });
        let slab = Self(Arc::new(Inner { item: item_bytes as usize, state, freed: Condvar::new() }));
        slab.resize(budget, account, count, priority)?;
        Ok(slab)
    }

    /// Makes it one of `count` items: new ones are taken now; free ones beyond go now, others when they come back.
    ///
    /// # Errors
    /// As [`Budget::try_block`]; the slab has fewer items then.
    pub fn resize(&self, budget: &Budget, account: Account, count: u64, priority: Priority) -> Result<()> {
        self.shrink(count);
        let mut state = lock(&self.0.state);
        while state.items < count as usize {
            state.free.push(budget.try_block(account, self.0.item.max(1) as u64, priority)?);
            state.items += 1;
            state.count = state.count.max(state.items);
        }
        state.count = count as usize;
        Ok(())
    }

    /// Makes it one of at most `count` items.
    pub fn shrink(&self, count: u64) {
        let mut state = lock(&self.0.state);
        state.count = state.count.min(count as usize);
        let beyond = state.items.saturating_sub(state.count).min(state.free.len());
        let left = state.free.len() - beyond;
        state.free.truncate(left);
        state.items -= beyond;
    }

    /// What one item takes in the slab.
    #[must_use]
    pub fn stride_bytes(item_bytes: u64) -> u64 {
        extent_bytes(item_bytes.max(1))
    }

    /// A free item, if there is one.
    #[must_use]
    pub fn try_take(&self) -> Option<SlabItem> {
        self.item(&mut lock(&self.0.state))
    }

    fn item(&self, state: &mut State) -> Option<SlabItem> {
        let block = state.free.pop()?;
        Some(SlabItem { slab: Arc::clone(&self.0), block: Some(block) })
    }

    /// A free item; waits for one, and gives up when `stop` says so.
    #[must_use]
    pub fn take(&self, stop: &dyn Fn() -> bool) -> Option<SlabItem> {
        let mut state = lock(&self.0.state);
        loop {
            if let Some(item) = self.item(&mut state) {
                return Some(item);
            }
            if stop() {
                return None;
            }
            // The timeout only paces `stop`.
            state = self
                .0
                .freed
                .wait_timeout(state, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A reference that does not keep the slab.
    #[must_use]
    pub fn downgrade(&self) -> WeakSlab {
        WeakSlab(Arc::downgrade(&self.0))
    }

    /// Bytes of an item.
    #[must_use]
    pub fn item_bytes(&self) -> u64 {
        self.0.item as u64
    }

    /// How many items the slab has.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.0.state).count
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        lock(&self.0.state).free.len()
    }

    /// How many are out, and how many take memory in all.
    #[must_use]
    pub fn out(&self) -> (usize, usize) {
        let state = lock(&self.0.state);
        (state.items - state.free.len(), state.items)
    }
}

/// One item of a slab, owned until it is dropped.
#[must_use = "dropping an item frees it at once"]
pub struct SlabItem {
    slab: Arc<Inner>,
    /// Always there but while it is dropped.
    block: Option<Block>,
}

impl fmt::Debug for SlabItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlabItem({} B)", self.slab.item)
    }
}

impl Deref for SlabItem {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.block.as_deref().unwrap_or_default()[..self.slab.item]
    }
}

impl DerefMut for SlabItem {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.block.as_deref_mut().unwrap_or_default()[..self.slab.item]
    }
}

impl Drop for SlabItem {
    fn drop(&mut self) {
        let mut state = lock(&self.slab.state);
        if state.items > state.count {
            state.items -= 1;
            drop(state);
            self.block = None;
        } else {
            state.free.extend(self.block.take());
            drop(state);
        }
        self.slab.freed.notify_one();
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(slab.take(&|| true).is_some());
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
}
