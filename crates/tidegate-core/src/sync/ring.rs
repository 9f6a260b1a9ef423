//! A bounded ring between stages: lock-free while it is neither empty nor full.
//!
//! Flow: [`Ring::push`] by the threads of one stage, [`Ring::pop`] by those of the next.
//! Memory: its slots; the items own what they point to.
//!
//! A queue carries the items; a lock and a condition only put threads to sleep. No wait has a
//! timeout: loom checks that no wake-up is lost.

use std::fmt;

use crossbeam_utils::CachePadded;

use self::queue::Queue;
use super::{AtomicBool, AtomicUsize, Gate, Ordering, Wake, fence};

/// What a wait for an item came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<T> {
    /// The oldest item.
    Item(T),
    /// The thread is not to run now.
    Parked,
    /// The ring is closed.
    Closed,
}

/// A bounded queue whose threads sleep while they have nothing to do.
///
/// ```
/// use tidegate_core::sync::{Popped, Ring};
/// let ring = Ring::new(4);
/// assert!(ring.push(7).is_ok());
/// assert_eq!(ring.pop(|| true), Popped::Item(7));
/// assert_eq!(ring.pop(|| false), Popped::Parked);
/// ring.close();
/// assert_eq!((ring.push(8), ring.pop(|| true)), (Err(8), Popped::Closed));
/// ```
pub struct Ring<T> {
    items: Queue<T>,
    closed: AtomicBool,
    /// Threads that sleep, or are about to. On a line of its own: every push reads it.
    sleepers: CachePadded<AtomicUsize>,
    gate: Gate<()>,
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} of {} items)", self.items.len(), self.items.capacity())
    }
}

impl<T> Ring<T> {
    /// A ring of at most `capacity` items, which must not be 0.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            items: Queue::new(capacity),
            closed: AtomicBool::new(false),
            sleepers: CachePadded::new(AtomicUsize::new(0)),
            gate: Gate::default(),
        }
    }

    /// Puts an item in, waiting for a free place; an item that meets [`Ring::close`] is dropped.
    ///
    /// # Errors
    /// The item, once the ring is closed.
    pub fn push(&self, mut item: T) -> Result<(), T> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(item);
            }
            match self.items.push(item) {
                Ok(()) => {
                    self.wake();
                    // Behind the fence of `wake`: this look sees a close that missed the item.
                    if self.closed.load(Ordering::Acquire) {
                        self.drain();
                    }
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
    ///
    /// `wanted` also runs under the lock of the ring. The code that makes it false calls
    /// [`Ring::wake_all`] afterwards.
    pub fn pop(&self, wanted: impl Fn() -> bool) -> Popped<T> {
        loop {
            if self.closed.load(Ordering::Acquire) {
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

    /// Wakes all threads that sleep, to check again whether they are to run.
    pub fn wake_all(&self) {
        self.gate.wake();
    }

    /// Ends all waits and drops the items, also those of a [`Ring::push`] that runs meanwhile.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Either this drain sees the item of a push, or that push sees the flag.
        fence(Ordering::SeqCst);
        self.gate.wake();
        self.drain();
    }

    /// How many items are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether no item is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn drain(&self) {
        while self.items.pop().is_some() {}
    }

    fn wake(&self) {
        // Either this sees the sleeper, or the sleeper sees the change of the queue.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Takes the lock, so that a sleeper that missed the change sleeps before it is woken.
            self.gate.wake();
        }
    }

    fn sleep(&self, still: impl Fn() -> bool) {
        let gate = self.gate.lock();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if still() && !self.closed.load(Ordering::Acquire) {
            drop(self.gate.wait(gate));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(not(loom))]
mod queue {
    pub(super) use crossbeam_queue::ArrayQueue as Queue;
}

/// A queue that loom can follow.
///
/// A count stands for the head and the tail of `ArrayQueue`, with orderings that are no stronger
/// than those: without the fences of the ring, a look at the queue may miss a change.
#[cfg(loom)]
mod queue {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::{AtomicUsize, Ordering};

    pub(super) struct Queue<T> {
        count: AtomicUsize,
        capacity: usize,
        /// Of the standard library, so that its lock orders nothing in the model.
        items: Mutex<VecDeque<T>>,
    }

    impl<T> Queue<T> {
        pub(super) fn new(capacity: usize) -> Self {
            Self { count: AtomicUsize::new(0), capacity, items: Mutex::default() }
        }

        pub(super) fn capacity(&self) -> usize {
            self.capacity
        }

        pub(super) fn len(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }

        pub(super) fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// Adds one to the count or takes one off it, within the capacity.
        fn step(&self, next: impl Fn(usize) -> Option<usize>) -> bool {
            let mut count = self.len();
            while let Some(next) = next(count) {
                match self.count.compare_exchange(count, next, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return true,
                    Err(seen) => count = seen,
                }
            }
            false
        }

        pub(super) fn push(&self, item: T) -> Result<(), T> {
            if !self.step(|count| (count < self.capacity).then_some(count + 1)) {
                return Err(item);
            }
            self.items.lock().unwrap().push_back(item);
            Ok(())
        }

        pub(super) fn pop(&self) -> Option<T> {
            if !self.step(|count| count.checked_sub(1)) {
                return None;
            }
            loop {
                // Counted, and perhaps not yet put in.
                if let Some(item) = self.items.lock().unwrap().pop_front() {
                    return Some(item);
                }
                loom::thread::yield_now();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
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
        assert_eq!((ring.len(), ring.is_empty()), (1, false));
        ring.close();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(item(&ring).is_none() && ring.push(held).is_err());
        assert!(matches!(Ring::<u8>::new(4).pop(|| false), Popped::Parked));
    }
}

/// Run with `make test-loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use std::sync::Arc;

    fn sum_of(ring: &Ring<u64>, items: usize) -> u64 {
        let item = || match ring.pop(|| true) {
            Popped::Item(item) => item,
            Popped::Parked | Popped::Closed => panic!("the ring is open"),
        };
        (0..items).map(|_| item()).sum()
    }

    /// A ring of `capacity`, and a thread that runs `body` on it.
    fn with_thread<R: 'static>(
        capacity: usize,
        body: impl FnOnce(&Ring<u64>) -> R + 'static,
    ) -> (Arc<Ring<u64>>, loom::thread::JoinHandle<R>) {
        let ring = Arc::new(Ring::new(capacity));
        let thread = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || body(&ring))
        };
        (ring, thread)
    }

    /// A thread that sleeps in a full ring goes on when half of it is free.
    #[test]
    fn loom_a_full_ring_wakes_its_pusher() {
        for capacity in [1, 2] {
            loom::model(move || {
                let (ring, pusher) = with_thread(capacity, |ring| {
                    (1..=3).for_each(|item| ring.push(item).unwrap());
                });
                assert_eq!(sum_of(&ring, 3), 6);
                pusher.join().unwrap();
                assert!(ring.is_empty());
            });
        }
    }

    /// Two threads that sleep in an empty ring: each gets an item.
    #[test]
    fn loom_an_empty_ring_wakes_its_poppers() {
        loom::model(|| {
            let (ring, other) = with_thread(2, |ring| sum_of(ring, 1));
            let third = {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || sum_of(&ring, 1))
            };
            (1..=2).for_each(|item| ring.push(item).unwrap());
            assert_eq!(other.join().unwrap() + third.join().unwrap(), 3);
        });
    }

    /// Two threads that push into a ring of one: neither sleeps for good, and no item is lost.
    #[test]
    fn loom_two_pushers_lose_nothing() {
        loom::model(|| {
            let (ring, other) = with_thread(1, |ring| ring.push(1).unwrap());
            let third = {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || ring.push(2).unwrap())
            };
            assert_eq!(sum_of(&ring, 2), 3);
            other.join().unwrap();
            third.join().unwrap();
        });
    }

    /// A thread that sleeps in an empty ring sees that it is not to run.
    #[test]
    fn loom_wake_all_parks_a_popper() {
        loom::model(|| {
            let wanted = Arc::new(AtomicBool::new(true));
            let seen = Arc::clone(&wanted);
            let (ring, popper) =
                with_thread(1, move |ring| ring.pop(|| seen.load(Ordering::Acquire)) == Popped::Parked);
            wanted.store(false, Ordering::Release);
            ring.wake_all();
            assert!(popper.join().unwrap());
        });
    }

    /// Closing ends the wait for an item and the wait for room.
    #[test]
    fn loom_closing_ends_all_waits() {
        loom::model(|| {
            let (ring, popper) = with_thread(1, |ring| ring.pop(|| true) == Popped::Closed);
            ring.close();
            assert!(popper.join().unwrap());
        });
        loom::model(|| {
            let (ring, pusher) = with_thread(1, |ring| (0..2).all(|item| ring.push(item).is_ok()));
            ring.close();
            assert!(!pusher.join().unwrap() || ring.is_empty());
        });
    }

    /// An item that is pushed while the ring closes is freed, whichever of the two is first.
    #[test]
    fn loom_closing_frees_what_is_pushed_meanwhile() {
        loom::model(|| {
            let (ring, held) = (Arc::new(Ring::new(2)), Arc::new(()));
            let pusher = {
                let (ring, held) = (Arc::clone(&ring), Arc::clone(&held));
                loom::thread::spawn(move || drop(ring.push(held)))
            };
            ring.close();
            pusher.join().unwrap();
            assert_eq!((ring.len(), Arc::strong_count(&held)), (0, 1));
        });
    }
}
