//! Locks and atomics, of the standard library or of loom, and waits that a stop ends.
//!
//! Flow: imported wherever threads meet, so that production and the model checker run the same
//! code.
//! Memory: holds none.

mod gate;
mod ordered;
mod ring;
mod stop;

pub use gate::Gate;
pub use ordered::{Ordered, Taken};
pub use ring::{Popped, Ring};
pub use stop::{Registration, StopToken, StopWhen, Wake};

#[cfg(loom)]
pub use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

/// Locks `mutex`, also after another thread panicked while it held it.
///
/// Poisoning is ignored on purpose: no critical section of Tidegate leaves its data half-written.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
