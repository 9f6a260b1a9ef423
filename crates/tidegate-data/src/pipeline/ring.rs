//! A bounded ring between stages: lock-free while it is neither empty nor full.
//!
//! Flow: jobs from readers to workers.
//! Memory: its slots (some 100 KiB); what the jobs point to is bounded by staging.
//!
//! crossbeam's ArrayQueue carries the items; a lock and a condition only put threads to sleep.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use tidegate_core::sync::lock;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

/// What a wait for an item came to.
#[derive(Debug)]
pub(super) enum Popped<T> {
    /// The oldest item.
    Item(T),
    /// The thread is not to run now.
    Parked,
    /// The epoch has ended.
    Closed,
}

#[derive(Debug)]
pub(super) struct Ring<T> {
    items: ArrayQueue<T>,
    closed: AtomicBool,
    /// Threads that sleep, or are about to.
    sleepers: CachePadded<AtomicUsize>,
    gate: Mutex<()>,
    changed: Condvar,
}

impl<T> Ring<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            items: ArrayQueue::new(capacity),
            closed: AtomicBool::new(false),
            sleepers: CachePadded::new(AtomicUsize::new(0)),
            gate: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Puts an item in, waiting for a free place; gives it back when the ring is closed.
    pub(super) fn push(&self, mut item: T) -> Result<(), T> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(item);
            }
            match self.items.push(item) {
                Ok(()) => {
                    self.wake();
                    return Ok(());
                }
                Err(back) => item = back,
            }
            // Until half of it is free, so that the thread that fills it is not woken for each
            // item.
            self.sleep(|| self.items.len() > self.items.capacity() / 2);
        }
    }

    /// Takes the oldest item, waiting for one while `wanted` says that this thread is to run.
    pub(super) fn pop(&self, wanted: impl Fn() -> bool) -> Popped<T> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                // What is left is dropped here, so that its memory goes back.
                while self.items.pop().is_some() {}
                return Popped::Closed;
            }
            if !wanted() {
                return Popped::Parked;
            }
            if let Some(item) = self.items.pop() {
                if self.items.len() <= self.items.capacity() / 2 {
                    self.wake();
                }
                return Popped::Item(item);
            }
            self.sleep(|| self.items.is_empty() && wanted());
        }
    }

    /// Wakes all threads that sleep, to look again whether they are to run.
    pub(super) fn wake_all(&self) {
        drop(lock(&self.gate));
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(lock(&self.gate));
        self.changed.notify_all();
        while self.items.pop().is_some() {}
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    fn wake(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Orders this wake after a sleeper's last look at the ring.
            drop(lock(&self.gate));
            self.changed.notify_all();
        }
    }

    fn sleep(&self, still: impl Fn() -> bool) {
        let gate = lock(&self.gate);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if still() && !self.closed.load(Ordering::Acquire) {
            // The timeout is a net under the protocol, not a part of it.
            drop(self.changed.wait_timeout(gate, Duration::from_millis(100)));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn item<T>(ring: &Ring<T>) -> Option<T> {
        match ring.pop(|| true) {
            Popped::Item(item) => Some(item),
            Popped::Parked | Popped::Closed => None,
        }
    }

    #[test]
    fn nothing_is_lost_and_closing_frees() {
        let ring = Arc::new(Ring::new(4));
        let sum = std::thread::scope(|s| {
            for t in 0..3u64 {
                let ring = Arc::clone(&ring);
                s.spawn(move || (0..1000).for_each(|i| ring.push(t * 1000 + i).unwrap()));
            }
            let takers: Vec<_> =
                (0..2).map(|_| s.spawn(|| (0..1500).map(|_| item(&ring).unwrap()).sum::<u64>())).collect();
            takers.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
        });
        assert_eq!(sum, (0..3000).sum::<u64>());
        let held = Arc::new(());
        let ring = Ring::new(4);
        ring.push(Arc::clone(&held)).unwrap();
        ring.close();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(item(&ring).is_none() && ring.push(held).is_err());
        assert!(matches!(Ring::<u8>::new(4).pop(|| false), Popped::Parked));
    }
}
