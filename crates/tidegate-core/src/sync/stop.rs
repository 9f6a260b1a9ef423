//! A stop that wakes: a flag, and the waits that must see it at once.
//!
//! Flow: a blocked wait registers itself; [`StopToken::stop`] sets the flag and wakes every
//! registered wait.
//! Memory: an entry for each thread that waits now.
//!
//! A plain flag would have to be polled, and the timeout of the poll would hide lost wake-ups.

use std::fmt;
use std::sync::Arc;

use super::{AtomicBool, Mutex, Ordering, lock};

/// A place where threads wait, such as a [`Gate`](super::Gate).
pub trait Wake: Send + Sync {
    /// Wakes every thread that waits here, also one that has checked its condition and is about to
    /// sleep.
    fn wake(&self);
}

#[derive(Default)]
struct Waiters {
    next: u64,
    waiting: Vec<(u64, Arc<dyn Wake>)>,
}

struct Inner {
    stopped: AtomicBool,
    waiters: Mutex<Waiters>,
}

/// Asks threads to stop, and wakes those that wait; clones share the flag.
///
/// ```
/// use tidegate_core::sync::StopToken;
/// let stop = StopToken::new();
/// let seen_by_a_worker = stop.clone();
/// stop.stop();
/// assert!(seen_by_a_worker.is_stopped());
/// ```
#[derive(Clone)]
pub struct StopToken(Arc<Inner>);

impl fmt::Debug for StopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopToken({})", if self.is_stopped() { "stopped" } else { "running" })
    }
}

impl Default for StopToken {
    fn default() -> Self {
        Self::new()
    }
}

impl StopToken {
    /// A token that is not stopped.
    #[must_use]
    pub fn new() -> Self {
        let waiters = Mutex::new(Waiters::default());
        Self(Arc::new(Inner { stopped: AtomicBool::new(false), waiters }))
    }

    /// Whether [`StopToken::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Sets the flag for good and wakes every wait that is registered.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    /// Wakes every wait that is registered, so that it checks its [`StopWhen`] again.
    ///
    /// Call it after a change that makes the condition of a [`StopToken::or`] true, without a lock
    /// that this condition takes.
    pub fn wake_all(&self) {
        // Copied, so that no lock of the token is held while the locks of waits are taken.
        let waiting: Vec<_> = lock(&self.0.waiters).waiting.iter().map(|(_, w)| Arc::clone(w)).collect();
        waiting.iter().for_each(|waiter| waiter.wake());
    }

    /// Stops a wait as well when `condition` holds.
    ///
    /// `condition` runs under the lock of the wait: it may neither wait nor touch what is waited
    /// for. The code that makes it true calls [`StopToken::wake_all`] afterwards.
    #[must_use]
    pub fn or<'a>(&'a self, condition: &'a dyn Fn() -> bool) -> StopWhen<'a> {
        StopWhen { token: self, condition: Some(condition) }
    }

    /// Has `waiter` woken by a stop until the registration is dropped.
    ///
    /// Register before the flag is checked for the last time before sleeping, and without the lock
    /// of `waiter`.
    #[must_use = "dropping a registration ends it"]
    pub fn register(&self, waiter: Arc<dyn Wake>) -> Registration<'_> {
        let mut waiters = lock(&self.0.waiters);
        let id = waiters.next;
        waiters.next += 1;
        waiters.waiting.push((id, waiter));
        Registration { token: self, id }
    }
}

/// Keeps a waiter registered with a [`StopToken`].
#[derive(Debug)]
pub struct Registration<'a> {
    token: &'a StopToken,
    id: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.token.0.waiters);
        let ended = waiters.waiting.iter().position(|&(id, _)| id == self.id);
        let waiter = ended.map(|i| waiters.waiting.swap_remove(i));
        drop(waiters);
        // Perhaps the last reference to what was waited for: its destructor runs without the lock.
        drop(waiter);
    }
}

/// When a wait gives up: a token is stopped, or another condition holds.
#[derive(Clone, Copy)]
pub struct StopWhen<'a> {
    token: &'a StopToken,
    condition: Option<&'a dyn Fn() -> bool>,
}

impl fmt::Debug for StopWhen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopWhen({:?}, or a condition: {})", self.token, self.condition.is_some())
    }
}

impl<'a> From<&'a StopToken> for StopWhen<'a> {
    fn from(token: &'a StopToken) -> Self {
        Self { token, condition: None }
    }
}

impl<'a> StopWhen<'a> {
    /// The token with which a wait registers.
    #[must_use]
    pub fn token(&self) -> &'a StopToken {
        self.token
    }

    /// Whether the wait should give up now.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.token.is_stopped() || self.condition.is_some_and(|condition| condition())
    }
}
