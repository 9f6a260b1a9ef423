//! Ends slow reads of a thread once its epoch is stopped.
//!
//! Flow: the pipeline sets the token of a reading thread; reads over a network ask for it.
//! Memory: holds none.

use std::cell::RefCell;

use tidegate_core::sync::StopToken;

thread_local! {
    static STOP: RefCell<Option<StopToken>> = const { RefCell::new(None) };
}

/// Ends network reads of this thread with an error once `stop` is set.
pub fn stop_reading_when(stop: &StopToken) {
    STOP.with_borrow_mut(|of_thread| *of_thread = Some(stop.clone()));
}

/// Whether reads of this thread must end.
#[cfg(feature = "remote")]
pub(crate) fn stopped() -> bool {
    STOP.with_borrow(|stop| stop.as_ref().is_some_and(|stop| stop.is_stopped()))
}
