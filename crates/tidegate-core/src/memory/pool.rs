//! Equal items that are taken and given back; some of them only after an event.
//!
//! Flow: [`take`] and [`give_back`] by `Slab`, which adds the memory.
//! Memory: holds the items that are free or parked.
//!
//! The items are a type parameter, so that loom checks the waiting without mapping memory.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::sync::{Gate, StopWhen};

/// Something that still uses an item's memory after its owner dropped it, such as a copy to a
/// device.
pub trait Completion: Send + Sync {
    /// Whether the memory is no longer used. Once true it stays true.
    ///
    /// It is called under the lock of the slab: it must return at once and must not touch the
    /// slab.
    fn is_complete(&self) -> bool;

    /// Blocks until [`Completion::is_complete`]. A stop does not interrupt it, so it must end by
    /// itself, and soon.
    fn wait(&self);
}

/// All of an item's completions; it is free when each of them is complete.
pub(super) type Completions = Vec<Box<dyn Completion>>;

/// An item whose owner has dropped it and whose memory is still in use.
pub(super) struct Parked<T> {
    item: T,
    completions: Completions,
}

/// The items of a slab; see the head of this file.
pub(super) struct Pool<T> {
    /// The one given back last is on top: its cache lines are the warmest.
    free: Vec<T>,
    /// The one parked first is in front.
    parked: VecDeque<Parked<T>>,
    /// Items in all: free, parked or out.
    items: usize,
    /// Items that there should be: those beyond are dropped when they are free.
    count: usize,
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { free, parked, items, count } = self;
        write!(f, "Pool({items} items of {count}, {} free, {} parked)", free.len(), parked.len())
    }
}

impl<T> Pool<T> {
    pub(super) fn new() -> Self {
        Self { free: Vec::new(), parked: VecDeque::new(), items: 0, count: 0 }
    }

    /// How many items there should be.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many items there are in all.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// How many are free now.
    pub(super) fn free(&mut self) -> usize {
        self.settle();
        self.free.len()
    }

    /// Frees the parked items whose completions are complete.
    fn settle(&mut self) {
        let mut i = 0;
        while let Some(parked) = self.parked.get(i) {
            if !parked.completions.iter().all(|completion| completion.is_complete()) {
                i += 1;
            } else if let Some(parked) = self.parked.remove(i) {
                drop(self.keep(parked.item));
            }
        }
    }

    /// Frees an item, or returns it to be dropped if there are more than there should be.
    fn keep(&mut self, item: T) -> Option<T> {
        if self.items > self.count {
            self.items -= 1;
            return Some(item);
        }
        self.free.push(item);
        None
    }

    pub(super) fn try_take(&mut self) -> Option<T> {
        self.settle();
        self.free.pop()
    }

    /// Makes `count` the most items that there should be; free ones beyond it are dropped.
    pub(super) fn shrink(&mut self, count: usize) {
        self.settle();
        self.count = self.count.min(count);
        let beyond = self.items.saturating_sub(self.count).min(self.free.len());
        self.free.truncate(self.free.len() - beyond);
        self.items -= beyond;
    }

    /// Makes items until there are `count`. After an error there are fewer.
    pub(super) fn grow<E>(&mut self, count: usize, make: impl Fn() -> Result<T, E>) -> Result<(), E> {
        while self.items < count {
            self.free.push(make()?);
            self.items += 1;
            self.count = self.count.max(self.items);
        }
        self.count = count;
        Ok(())
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        for parked in &self.parked {
            parked.completions.iter().for_each(|completion| completion.wait());
        }
    }
}

/// Makes it a pool of `count` items: `make` makes new ones now; those beyond are dropped as soon
/// as they are free.
pub(super) fn resize<T, E>(
    pool: &Gate<Pool<T>>,
    count: usize,
    make: impl Fn() -> Result<T, E>,
) -> Result<(), E> {
    let mut state = pool.lock();
    state.shrink(count);
    let outcome = state.grow(count, make);
    drop(state);
    // Several items may be new, and as many waiters served.
    pool.notify_all();
    outcome
}

enum Found<T> {
    Free(T),
    Parked(Parked<T>),
}

/// A free item; waits for one until `stop` is met.
///
/// When none is free it waits for the completion of the item parked longest, although others may
/// be given back earlier: a completion cannot notify, and an owner may keep its item for as long
/// as it likes.
pub(super) fn take<T: Send + 'static>(pool: &Arc<Gate<Pool<T>>>, stop: StopWhen<'_>) -> Option<T> {
    loop {
        let found = pool.wait_until(stop, |state| {
            let free = state.try_take().map(Found::Free);
            // A wait for a completion is not interrupted, so none begins after a stop.
            free.or_else(|| if stop.is_met() { None } else { state.parked.pop_front().map(Found::Parked) })
        });
        let item = match found {
            None => {
                // The notification for a parked item may have come here: pass it on to another
                // waiter.
                pool.notify_one();
                return None;
            }
            Some(Found::Free(item)) => return Some(item),
            Some(Found::Parked(Parked { item, completions })) => {
                completions.iter().for_each(|completion| completion.wait());
                item
            }
        };
        let mut state = pool.lock();
        if state.items <= state.count {
            return Some(item);
        }
        // The pool shrank meanwhile.
        state.items -= 1;
        drop(state);
        drop(item);
    }
}

/// Frees an item, or parks it until its completions are complete.
pub(super) fn give_back<T>(pool: &Gate<Pool<T>>, item: T, completions: Completions) {
    let complete = completions.iter().all(|completion| completion.is_complete());
    let mut state = pool.lock();
    let beyond = if complete {
        state.keep(item)
    } else {
        state.parked.push_back(Parked { item, completions });
        None
    };
    drop(state);
    // Also for a parked item: a waiter has to wait for its completion.
    pool.notify_one();
    drop(beyond);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::StopToken;

    /// An event that a test completes by hand.
    #[derive(Clone, Default)]
    struct Event(Arc<Gate<bool>>);

    impl Event {
        fn complete(&self) {
            *self.0.lock() = true;
            self.0.notify_all();
        }
    }

    impl Completion for Event {
        fn is_complete(&self) -> bool {
            *self.0.lock()
        }

        fn wait(&self) {
            let mut complete = self.0.lock();
            while !*complete {
                complete = self.0.wait(complete);
            }
        }
    }

    fn after(event: &Event) -> Completions {
        vec![Box::new(event.clone())]
    }

    /// A pool of items that are their own numbers.
    fn pool(count: usize) -> Arc<Gate<Pool<usize>>> {
        let pool = Arc::new(Gate::new(Pool::new()));
        let next = std::cell::Cell::new(0);
        resize(&pool, count, || Ok::<_, ()>(next.replace(next.get() + 1))).unwrap();
        pool
    }

    fn figures(pool: &Gate<Pool<usize>>) -> [usize; 3] {
        let mut pool = pool.lock();
        let free = pool.free();
        [pool.count(), pool.items(), free]
    }

    #[cfg(not(loom))]
    #[test]
    fn a_parked_item_is_free_once_all_its_events_are_complete() {
        let (pool, stop) = (pool(2), StopToken::new());
        let [a, b] = [(); 2].map(|()| take(&pool, (&stop).into()).unwrap());
        let [first, second, third] = [(); 3].map(|()| Event::default());
        give_back(&pool, a, vec![Box::new(first.clone()), Box::new(second.clone())]);
        give_back(&pool, b, after(&third));
        first.complete();
        assert_eq!(pool.lock().try_take(), None);
        assert_eq!(figures(&pool), [2, 2, 0]);
        third.complete();
        assert_eq!(figures(&pool), [2, 2, 1]);
        assert_eq!(pool.lock().try_take(), Some(b), "the one that is complete, not the older one");
        let taker = {
            let (pool, stop) = (Arc::clone(&pool), stop.clone());
            std::thread::Builder::new().spawn(move || take(&pool, (&stop).into())).unwrap()
        };
        second.complete();
        assert_eq!((taker.join().unwrap(), figures(&pool)), (Some(a), [2, 2, 0]));
        stop.stop();
        let pending = Event::default();
        give_back(&pool, a, after(&pending));
        assert_eq!(take(&pool, (&stop).into()), None, "no wait for an event begins after a stop");
        pending.complete();
    }

    #[cfg(not(loom))]
    #[test]
    fn a_parked_item_that_is_too_many_goes_when_it_is_complete() {
        let (pool, event) = (pool(2), Event::default());
        let a = pool.lock().try_take().unwrap();
        give_back(&pool, a, after(&event));
        pool.lock().shrink(0);
        assert_eq!(figures(&pool), [0, 1, 0]);
        event.complete();
        assert_eq!(figures(&pool), [0, 0, 0]);
        // The event of an item that a taker waits for completes after the pool shrank.
        resize(&pool, 1, || Ok::<_, ()>(7)).unwrap();
        let (event, stop) = (Event::default(), StopToken::new());
        let item = pool.lock().try_take().unwrap();
        give_back(&pool, item, after(&event));
        let taker = {
            let (pool, stop) = (Arc::clone(&pool), stop.clone());
            std::thread::Builder::new().spawn(move || take(&pool, (&stop).into())).unwrap()
        };
        while !pool.lock().parked.is_empty() {
            std::thread::yield_now();
        }
        pool.lock().shrink(0);
        event.complete();
        while pool.lock().items() > 0 {
            std::thread::yield_now();
        }
        stop.stop();
        assert_eq!((taker.join().unwrap(), figures(&pool)), (None, [0, 0, 0]));
    }

    #[cfg(not(loom))]
    #[test]
    fn dropping_a_pool_waits_for_its_events() {
        let (pool, event) = (pool(1), Event::default());
        let item = pool.lock().try_take().unwrap();
        give_back(&pool, item, after(&event));
        let dropping = std::thread::Builder::new().spawn(move || drop(pool)).unwrap();
        assert!(!dropping.is_finished());
        event.complete();
        dropping.join().unwrap();
    }

    /// One item and two takers: each gets it, never both at once.
    #[cfg(loom)]
    #[test]
    fn loom_an_item_has_one_owner_and_is_not_lost() {
        use crate::sync::{AtomicU64, Ordering};
        loom::model(|| {
            let (pool, owners) = (pool(1), Arc::new(AtomicU64::new(0)));
            let use_it = {
                let (pool, owners) = (Arc::clone(&pool), Arc::clone(&owners));
                move || {
                    let item = take(&pool, (&StopToken::new()).into()).unwrap();
                    assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                    owners.fetch_sub(1, Ordering::SeqCst);
                    give_back(&pool, item, Vec::new());
                }
            };
            let other = loom::thread::spawn(use_it.clone());
            use_it();
            other.join().unwrap();
            assert_eq!(figures(&pool), [1, 1, 1]);
        });
    }

    /// A stop ends the wait for an item that does not come back.
    #[cfg(loom)]
    #[test]
    fn loom_a_stop_ends_the_wait_for_an_item() {
        loom::model(|| {
            let (pool, stop) = (pool(0), StopToken::new());
            let waiter = {
                let (pool, stop) = (Arc::clone(&pool), stop.clone());
                loom::thread::spawn(move || take(&pool, (&stop).into()))
            };
            stop.stop();
            assert_eq!(waiter.join().unwrap(), None);
        });
    }

    /// Waiters see items that a resize makes, and those that come back after a shrink are gone.
    #[cfg(loom)]
    #[test]
    fn loom_a_waiter_sees_a_resize() {
        loom::model(|| {
            let pool = pool(1);
            let item = pool.lock().try_take().unwrap();
            let waiter = {
                let pool = Arc::clone(&pool);
                loom::thread::spawn(move || take(&pool, (&StopToken::new()).into()).unwrap())
            };
            pool.lock().shrink(0);
            give_back(&pool, item, Vec::new());
            resize(&pool, 1, || Ok::<_, ()>(5)).unwrap();
            assert_eq!((waiter.join().unwrap(), figures(&pool)), (5, [1, 1, 0]));
        });
    }

    /// A taker that sleeps when an item is parked wakes, and gets it after its event.
    #[cfg(loom)]
    #[test]
    fn loom_a_parked_item_is_taken_after_its_event() {
        loom::model(|| {
            let (pool, event) = (pool(1), Event::default());
            let item = pool.lock().try_take().unwrap();
            let taker = {
                let (pool, event) = (Arc::clone(&pool), event.clone());
                loom::thread::spawn(move || {
                    let item = take(&pool, (&StopToken::new()).into()).unwrap();
                    assert!(event.is_complete());
                    give_back(&pool, item, Vec::new());
                })
            };
            give_back(&pool, item, after(&event));
            event.complete();
            taker.join().unwrap();
            assert_eq!(figures(&pool), [1, 1, 1]);
        });
    }

    /// Two waiters, one of which is stopped: the notification that it may have got reaches the
    /// other.
    #[cfg(loom)]
    #[test]
    fn loom_a_stopped_waiter_passes_its_notification_on() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let (pool, event, stop) = (pool(1), Event::default(), StopToken::new());
            let item = pool.lock().try_take().unwrap();
            event.complete();
            let [stopped, other] = [stop.clone(), StopToken::new()].map(|stop| {
                let pool = Arc::clone(&pool);
                loom::thread::spawn(move || {
                    let item = take(&pool, (&stop).into());
                    item.is_some_and(|item| {
                        give_back(&pool, item, Vec::new());
                        true
                    })
                })
            });
            give_back(&pool, item, after(&event));
            stop.stop();
            assert!(other.join().unwrap());
            let _either = stopped.join().unwrap();
        });
    }
}
