//! The locks and atomics of this crate: the standard ones, or loom's under `--cfg loom`.
//!
//! Flow: imported by the ledger, so that the same code runs in production and under the model checker.
//! Memory: holds none.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

/// Locks, and goes on after a panic elsewhere: no section of this crate leaves its data half-written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
