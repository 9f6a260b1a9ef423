//! Which pieces of a buddy system are free, without the memory itself.
//!
//! Flow: [`take`] and [`give_back`] by `Buddy`, which adds the memory.
//! Memory: a set of offsets for each size of pieces.
//!
//! Loom checks the waiting here, because it needs no mapped memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::PAGE_BYTES;
use crate::sync::{Gate, StopWhen};

/// With fewer pieces out than this, each piece that comes back wakes the waiters: the rest may be
/// held for long.
const FEW_PIECES: usize = 8;
/// A piece of this many bytes wakes the waiters at once: a wake-up costs nothing against reading
/// and decoding it.
const LARGE_BYTES: u64 = 1 << 20;

/// The free pieces of a block.
#[derive(Debug)]
pub(super) struct Space {
    /// `free[k]`: offsets of free pieces of `PAGE_BYTES << k`.
    free: Vec<BTreeSet<usize>>,
    free_bytes: u64,
    /// Pieces that have a holder.
    out: usize,
}

impl Space {
    /// A free block of `PAGE_BYTES << order`.
    pub(super) fn new(order: usize) -> Self {
        let mut free = vec![BTreeSet::new(); order + 1];
        free[order].insert(0);
        Self { free, free_bytes: PAGE_BYTES << order, out: 0 }
    }

    fn bytes(&self) -> u64 {
        PAGE_BYTES << (self.free.len() - 1)
    }

    /// Takes a piece of `order`, splitting the smallest larger one; returns its offset.
    pub(super) fn take(&mut self, order: usize) -> Option<usize> {
        let from = (order..self.free.len()).find(|&k| !self.free[k].is_empty())?;
        let offset = self.free[from].pop_first()?;
        for k in (order..from).rev() {
            self.free[k].insert(offset + ((PAGE_BYTES as usize) << k));
        }
        self.free_bytes -= PAGE_BYTES << order;
        self.out += 1;
        Some(offset)
    }

    /// Gives a piece back, merging it with free buddies.
    fn merge(&mut self, mut offset: usize, mut order: usize) {
        self.free_bytes += PAGE_BYTES << order;
        self.out -= 1;
        while order + 1 < self.free.len() {
            let buddy = offset ^ ((PAGE_BYTES as usize) << order);
            if !self.free[order].remove(&buddy) {
                break;
            }
            offset = offset.min(buddy);
            order += 1;
        }
        self.free[order].insert(offset);
    }
}

/// The offset of a piece of `order`; waits for one until `stop` is met. `None` at once if no piece
/// is that large.
pub(super) fn take(space: &Arc<Gate<Space>>, order: usize, stop: StopWhen<'_>) -> Option<usize> {
    if order >= space.lock().free.len() {
        return None;
    }
    space.wait_until(stop, |space| space.take(order))
}

/// Gives a piece back, and wakes the waiters if that is worth it.
///
/// That is when a quarter of the block is free, the piece is large, or few pieces are out. A
/// wake-up for each sample's piece took 5 % of the processor from the decoders.
pub(super) fn give_back(space: &Gate<Space>, offset: usize, order: usize) {
    let mut state = space.lock();
    state.merge(offset, order);
    let quarter = state.free_bytes >= state.bytes() / 4;
    let wake = quarter || state.out < FEW_PIECES || PAGE_BYTES << order >= LARGE_BYTES;
    drop(state);
    if wake {
        space.notify_all();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{AtomicU64, Ordering, StopToken};

    /// One piece and two takers: each gets it, never both at once.
    #[test]
    fn loom_a_piece_has_one_holder_and_is_not_lost() {
        loom::model(|| {
            let (space, holders) = (Arc::new(Gate::new(Space::new(0))), Arc::new(AtomicU64::new(0)));
            let use_it = {
                let (space, holders) = (Arc::clone(&space), Arc::clone(&holders));
                move || {
                    let offset = take(&space, 0, (&StopToken::new()).into()).unwrap();
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    give_back(&space, offset, 0);
                }
            };
            let other = loom::thread::spawn(use_it.clone());
            use_it();
            other.join().unwrap();
            assert_eq!(space.lock().free_bytes, PAGE_BYTES);
        });
    }

    /// A waiter for the whole block is served when both halves are back.
    #[test]
    fn loom_halves_merge_for_a_waiter() {
        loom::model(|| {
            let space = Arc::new(Gate::new(Space::new(1)));
            let [a, b] = [(); 2].map(|()| space.lock().take(0).unwrap());
            let waiter = {
                let space = Arc::clone(&space);
                loom::thread::spawn(move || take(&space, 1, (&StopToken::new()).into()))
            };
            give_back(&space, a, 0);
            give_back(&space, b, 0);
            assert_eq!(waiter.join().unwrap(), Some(0));
        });
    }

    /// A stop ends the wait for a piece that does not come back.
    #[test]
    fn loom_a_stop_ends_the_wait_for_a_piece() {
        loom::model(|| {
            let (space, stop) = (Arc::new(Gate::new(Space::new(0))), StopToken::new());
            let held = space.lock().take(0);
            let waiter = {
                let (space, stop) = (Arc::clone(&space), stop.clone());
                loom::thread::spawn(move || take(&space, 0, (&stop).into()))
            };
            stop.stop();
            assert_eq!((waiter.join().unwrap(), held), (None, Some(0)));
        });
    }
}
