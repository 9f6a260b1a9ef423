//! Items that are finished in any order and handed over by their numbers.
//!
//! Flow: [`Ordered::begin`] -> [`Ordered::finish`] by the threads that make items ->
//! [`Ordered::take`] by those that use them.
//! Memory: an entry for each item that is finished and not taken.
//!
//! One lock for each item that is handed over: batches pass here, not samples. `cargo bench -p
//! tidegate-core --bench stages` shows what it costs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::Gate;

/// What a wait for the next item came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T, E> {
    /// The next item and its number.
    Item(u64, T),
    /// The error of [`Ordered::fail`]: nothing is finished in front of it.
    Failed(E),
    /// Nothing came in time.
    TimedOut {
        /// No item is begun and none waits to be taken.
        idle: bool,
    },
    /// It is closed.
    Closed,
}

#[derive(Debug)]
struct State<T, E> {
    /// The number of the item that is taken next.
    next: u64,
    finished: BTreeMap<u64, T>,
    /// Items that were begun and are not yet finished.
    in_flight: u64,
    failure: Option<E>,
    closed: bool,
}

impl<T, E> State<T, E> {
    fn take(&mut self) -> Option<Taken<T, E>> {
        if let Some(item) = self.finished.remove(&self.next) {
            self.next += 1;
            return Some(Taken::Item(self.next - 1, item));
        }
        match self.failure.take() {
            Some(error) => Some(Taken::Failed(error)),
            None => self.closed.then_some(Taken::Closed),
        }
    }

    /// Whether a taker has something to take.
    fn is_ready(&self) -> bool {
        self.finished.contains_key(&self.next)
    }
}

/// Hands items over in the order of their numbers.
///
/// ```
/// use std::time::Duration;
/// use tidegate_core::sync::{Ordered, Taken};
/// let batches: Ordered<&str, String> = Ordered::new(0);
/// batches.put(1, "second");
/// assert_eq!(batches.take(Some(Duration::ZERO)), Taken::TimedOut { idle: false });
/// batches.put(0, "first");
/// batches.fail("the disk is gone".into());
/// assert_eq!(batches.take(None), Taken::Item(0, "first"));
/// assert_eq!(batches.take(None), Taken::Item(1, "second"));
/// assert_eq!(batches.take(None), Taken::Failed("the disk is gone".into()));
/// ```
pub struct Ordered<T, E> {
    state: Gate<State<T, E>>,
}

impl<T, E> fmt::Debug for Ordered<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let (next, finished, in_flight) = (state.next, state.finished.len(), state.in_flight);
        drop(state);
        write!(f, "Ordered(from {next} on, {finished} finished, {in_flight} in flight)")
    }
}

impl<T, E> Ordered<T, E> {
    /// Hands items over from number `next` on.
    #[must_use]
    pub fn new(next: u64) -> Self {
        let finished = BTreeMap::new();
        Self { state: Gate::new(State { next, finished, in_flight: 0, failure: None, closed: false }) }
    }

    /// Counts an item that will be finished.
    pub fn begin(&self) {
        self.state.lock().in_flight += 1;
    }

    /// Whether an item was begun that is not yet finished.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.state.lock().in_flight > 0
    }

    /// Puts in an item that was begun; drops it once this is closed.
    pub fn finish(&self, index: u64, item: T) {
        self.insert(index, item, 1);
    }

    /// Puts in an item that was not begun; drops it once this is closed.
    pub fn put(&self, index: u64, item: T) {
        self.insert(index, item, 0);
    }

    fn insert(&self, index: u64, item: T, begun: u64) {
        let mut state = self.state.lock();
        state.in_flight -= begun;
        // Dropped without the lock.
        let unused = if state.closed { Some(item) } else { state.finished.insert(index, item) };
        let ready = state.is_ready();
        drop(state);
        // Takers wait for the next item only, and any of them can take it.
        if ready {
            self.state.notify_one();
        }
        drop(unused);
    }

    /// Has a taker get `error` after the items in front of the first that is missing; only the
    /// first error counts.
    pub fn fail(&self, error: E) {
        let mut state = self.state.lock();
        if state.failure.is_none() {
            state.failure = Some(error);
        }
        drop(state);
        self.state.notify_all();
    }

    /// Takes the next item; waits for it, for at most `timeout` if there is one.
    pub fn take(&self, timeout: Option<Duration>) -> Taken<T, E> {
        let mut deadline = None;
        let mut state = self.state.lock();
        loop {
            if let Some(taken) = state.take() {
                let more = state.is_ready();
                drop(state);
                // Another taker may wait for the item that is next now.
                if more {
                    self.state.notify_one();
                }
                return taken;
            }
            let Some(timeout) = timeout else {
                state = self.state.wait(state);
                continue;
            };
            let now = Instant::now();
            let left = deadline.get_or_insert(now + timeout).saturating_duration_since(now);
            if left.is_zero() {
                return Taken::TimedOut { idle: state.in_flight == 0 && state.finished.is_empty() };
            }
            state = self.state.wait_timeout(state, left);
        }
    }

    /// Drops the items and ends all waits.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let unused = std::mem::take(&mut state.finished);
        drop(state);
        self.state.notify_all();
        // Without the lock: items may take others.
        drop(unused);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_in_time_and_knows_what_is_in_flight() {
        let items: Ordered<u8, ()> = Ordered::new(3);
        let soon = Some(Duration::from_millis(1));
        assert_eq!(items.take(soon), Taken::TimedOut { idle: true });
        items.begin();
        assert_eq!((items.take(soon), items.is_busy()), (Taken::TimedOut { idle: false }, true));
        items.finish(4, 4);
        assert_eq!((items.take(soon), items.is_busy()), (Taken::TimedOut { idle: false }, false));
        items.put(3, 3);
        assert_eq!([items.take(soon), items.take(soon)], [Taken::Item(3, 3), Taken::Item(4, 4)]);
        items.close();
        items.put(5, 5);
        assert_eq!(items.take(soon), Taken::Closed);
    }

    #[test]
    fn threads_get_each_item_once_and_in_order() {
        let items: Ordered<u64, ()> = Ordered::new(0);
        let mut taken = std::thread::scope(|s| {
            for t in 0..4u64 {
                let items = &items;
                s.spawn(move || (0..250).rev().for_each(|i| items.put(i * 4 + t, i * 4 + t)));
            }
            let take = || {
                let mut taken = Vec::new();
                while let Taken::Item(index, item) = items.take(Some(Duration::from_secs(1))) {
                    assert_eq!(index, item);
                    taken.push(index);
                    if index >= 997 {
                        break;
                    }
                }
                assert!(taken.is_sorted());
                taken
            };
            let takers: Vec<_> = (0..3).map(|_| s.spawn(take)).collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect::<Vec<_>>()
        });
        taken.sort_unstable();
        assert_eq!(taken, (0..1000).collect::<Vec<_>>());
    }
}

/// Run with `make test-loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use std::sync::Arc;

    type Items = Ordered<u64, &'static str>;

    /// Under loom a wait never times out, so that a lost wake-up shows.
    const LONG: Option<Duration> = Some(Duration::from_secs(3600));

    fn with_thread<R: 'static>(
        body: impl FnOnce(&Items) -> R + 'static,
    ) -> (Arc<Items>, loom::thread::JoinHandle<R>) {
        let items = Arc::new(Ordered::new(0));
        let thread = {
            let items = Arc::clone(&items);
            loom::thread::spawn(move || body(&items))
        };
        (items, thread)
    }

    /// Two threads finish items in any order: the taker gets them in theirs.
    #[test]
    fn loom_every_item_is_handed_over_in_order() {
        loom::model(|| {
            let (items, other) = with_thread(|items| items.put(1, 1));
            let third = {
                let items = Arc::clone(&items);
                loom::thread::spawn(move || items.put(0, 0))
            };
            assert_eq!([items.take(LONG), items.take(LONG)], [Taken::Item(0, 0), Taken::Item(1, 1)]);
            other.join().unwrap();
            third.join().unwrap();
        });
    }

    /// Two takers: each gets an item, also if both were put while both slept.
    #[test]
    fn loom_every_taker_is_served() {
        let item = |items: &Items| match items.take(None) {
            Taken::Item(index, _) => index,
            other => panic!("{other:?}"),
        };
        loom::model(move || {
            let (items, other) = with_thread(item);
            let third = {
                let items = Arc::clone(&items);
                loom::thread::spawn(move || item(&items))
            };
            items.put(1, 1);
            items.put(0, 0);
            assert_eq!(other.join().unwrap() + third.join().unwrap(), 1);
        });
    }

    /// A failure reaches a taker that sleeps, after what was finished before it.
    #[test]
    fn loom_a_failure_comes_after_what_is_finished() {
        loom::model(|| {
            let (items, other) = with_thread(|items| {
                items.begin();
                items.finish(0, 0);
                items.fail("late");
            });
            assert_eq!([items.take(LONG), items.take(LONG)], [Taken::Item(0, 0), Taken::Failed("late")]);
            other.join().unwrap();
            assert!(!items.is_busy());
        });
    }

    /// Closing ends the waits of all takers.
    #[test]
    fn loom_closing_ends_all_waits() {
        loom::model(|| {
            let (items, other) = with_thread(|items| items.take(None));
            let third = {
                let items = Arc::clone(&items);
                loom::thread::spawn(move || items.take(LONG))
            };
            items.close();
            assert_eq!((other.join().unwrap(), third.join().unwrap()), (Taken::Closed, Taken::Closed));
        });
    }

    /// An item that is put while it closes is freed or taken, never kept.
    #[test]
    fn loom_closing_frees_what_is_put_meanwhile() {
        loom::model(|| {
            let (items, held) = (Arc::new(Ordered::<_, ()>::new(0)), Arc::new(()));
            let other = {
                let (items, held) = (Arc::clone(&items), Arc::clone(&held));
                loom::thread::spawn(move || items.put(0, held))
            };
            items.close();
            other.join().unwrap();
            assert_eq!(Arc::strong_count(&held), 1);
            assert_eq!(items.take(None), Taken::Closed);
        });
    }
}
