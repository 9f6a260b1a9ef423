//! A bounded ring between stages: lock-free while it is neither empty nor full.
//!
//! Flow: tasks from readers to workers.
//! Memory: its slots (some 100 KiB); what the tasks point to is bounded by staging.
//!
//! crossbeam's ArrayQueue carries the items; a lock and two conditions only put threads to sleep.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use tidegate_core::sync::lock;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

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

    /// Puts an item in, waiting for room; gives it back when the ring is closed.
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
            // Until half of it is free, so that who fills it is not woken for each item.
            self.sleep(|| self.items.len() > self.items.capacity() / 2);
        }
    }

    /// Takes the oldest item, waiting for one; nothing once the ring is closed.
    pub(super) fn pop(&self) -> Option<T> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                // What is left is dropped here, so that its memory goes back.
                while self.items.pop().is_some() {}
                return None;
            }
            if let Some(item) = self.items.pop() {
                if self.items.len() <= self.items.capacity() / 2 {
                    self.wake();
                }
                return Some(item);
            }
            self.sleep(|| self.items.is_empty());
        }
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

    #[test]
    fn nothing_is_lost_and_closing_frees() {
        let ring = Arc::new(Ring::new(4));
        let sum = std::thread::scope(|s| {
            for t in 0..3u64 {
                let ring = Arc::clone(&ring);
                s.spawn(move || (0..1000).for_each(|i| ring.push(t * 1000 + i).unwrap()));
            }
            let takers: Vec<_> =
                (0..2).map(|_| s.spawn(|| (0..1500).map(|_| ring.pop().unwrap()).sum::<u64>())).collect();
            takers.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
        });
        assert_eq!(sum, (0..3000).sum::<u64>());
        let held = Arc::new(());
        let ring = Ring::new(4);
        ring.push(Arc::clone(&held)).unwrap();
        ring.close();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(ring.pop().is_none() && ring.push(held).is_err());
    }
}
