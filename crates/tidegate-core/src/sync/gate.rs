//! A value behind a lock, and the threads that wait for it to change.
//!
//! Flow: a thread changes the value and notifies; `wait_until` returns when the value fits or a
//! stop is asked for.
//! Memory: holds none beyond the value.
//!
//! No wait needs a timeout to see a change: that would hide a lost wake-up. Loom checks the waits
//! built on this.

use std::fmt;
use std::sync::{Arc, PoisonError};

use super::{Condvar, Mutex, MutexGuard, StopWhen, Wake, lock};

/// A mutex and its condition variable, which a [`StopToken`](super::StopToken) can wake.
///
/// ```
/// use std::sync::Arc;
/// use tidegate_core::sync::{Gate, StopToken};
/// let (stop, queue) = (StopToken::new(), Arc::new(Gate::new(vec![1])));
/// assert_eq!(queue.wait_until(&stop, |queue| queue.pop()), Some(1));
/// std::thread::scope(|scope| {
///     let waiter = scope.spawn(|| queue.wait_until(&stop, |queue| queue.pop()));
///     queue.lock().push(2);
///     queue.notify_one();
///     assert_eq!(waiter.join().ok(), Some(Some(2)));
///     let waiter = scope.spawn(|| queue.wait_until(&stop, |queue| queue.pop()));
///     stop.stop();
///     assert_eq!(waiter.join().ok(), Some(None));
/// });
/// ```
pub struct Gate<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl<T: Default> Default for Gate<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Gate<T> {
    /// A gate around `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    /// The value. Notify after a change that a waiter may look for.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.value)
    }

    /// Wakes one waiter: right when any waiter can use the change, and only one of them.
    pub fn notify_one(&self) {
        self.changed.notify_one();
    }

    /// Wakes every waiter.
    pub fn notify_all(&self) {
        self.changed.notify_all();
    }

    /// Releases the lock, waits for a notification and locks again. Wake-ups can be spurious.
    pub fn wait<'a>(&'a self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Gate::wait`], for at most `timeout`; under loom it never times out.
    ///
    /// Only where another process changes what is waited for, or where the waiter has something
    /// else to look at.
    pub fn wait_timeout<'a>(
        &'a self,
        guard: MutexGuard<'a, T>,
        timeout: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        self.changed.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<T: Send + 'static> Gate<T> {
    /// Waits until `look` finds something in the value; returns `None` once `stop` is met.
    ///
    /// `look` is asked before `stop`, so a thread that a notification woke always uses what it was
    /// woken for. Both run under the lock and must not lock this gate.
    pub fn wait_until<'a, R>(
        self: &Arc<Self>,
        stop: impl Into<StopWhen<'a>>,
        mut look: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        let stop = stop.into();
        let mut value = self.lock();
        if let Some(found) = look(&mut value) {
            return Some(found);
        }
        if stop.is_met() {
            return None;
        }
        drop(value);
        // Registered before the next look: a stop that this look misses wakes the wait behind it.
        let registration = stop.token().register(Arc::clone(self) as Arc<dyn Wake>);
        let mut value = self.lock();
        let found = loop {
            if let Some(found) = look(&mut value) {
                break Some(found);
            }
            if stop.is_met() {
                break None;
            }
            value = self.wait(value);
        };
        drop(value);
        drop(registration);
        found
    }
}

impl<T: Send> Wake for Gate<T> {
    fn wake(&self) {
        // A waiter that has checked its condition holds the lock until it sleeps: locking here
        // waits for that.
        drop(self.lock());
        self.changed.notify_all();
    }
}
