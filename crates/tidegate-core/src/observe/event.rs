//! Events of control decisions, for a `tracing` subscriber.
//!
//! Flow: [`event!`](crate::event) at a decision -> the subscriber that the application installed.
//! Memory: holds none.
//!
//! An event tells of a decision, such as a cache that gives up or a knob that changes: a few in a
//! minute, never one for each sample. Without the cargo feature `tracing` of this crate an event
//! compiles to nothing, and its values are not computed.

#[cfg(feature = "tracing")]
#[doc(hidden)]
pub use tracing as __tracing;

/// Tells of a control decision: a level (`WARN`, `INFO` or `DEBUG`), a text, and named values.
///
/// A value is anything that `tracing` records: an integer, a float, a bool or a string.
///
/// ```
/// let held_bytes = 12_u64;
/// tidegate_core::event!(WARN, "the disk cache stopped", held_bytes = held_bytes, reason = "full");
/// tidegate_core::event!(INFO, "the epoch began");
/// ```
#[cfg(feature = "tracing")]
#[macro_export]
macro_rules! event {
    ($level:ident, $text:literal $(, $key:ident = $value:expr)* $(,)?) => {
        $crate::observe::event::__tracing::event!(
            target: "tidegate",
            $crate::observe::event::__tracing::Level::$level,
            $($key = $value,)*
            $text
        )
    };
}

/// Tells of a control decision: a level (`WARN`, `INFO` or `DEBUG`), a text, and named values.
///
/// A value is anything that `tracing` records: an integer, a float, a bool or a string.
///
/// ```
/// let held_bytes = 12_u64;
/// tidegate_core::event!(WARN, "the disk cache stopped", held_bytes = held_bytes, reason = "full");
/// tidegate_core::event!(INFO, "the epoch began");
/// ```
#[cfg(not(feature = "tracing"))]
#[macro_export]
macro_rules! event {
    ($level:ident, $text:literal $(, $key:ident = $value:expr)* $(,)?) => {
        // Type-checked, so that values do not look unused, and never run.
        if false {
            $($crate::observe::event::ignore(&$value);)*
        }
    };
}

/// Uses a value of an event that is compiled to nothing.
#[doc(hidden)]
#[cfg(not(feature = "tracing"))]
pub fn ignore<T: ?Sized>(_value: &T) {}

#[cfg(all(test, not(feature = "tracing"), not(loom)))]
mod tests {
    #[test]
    fn values_are_not_computed_without_the_feature() {
        fn costly() -> u64 {
            panic!("computed")
        }
        crate::event!(DEBUG, "a decision", bytes = costly());
    }
}

#[cfg(all(test, feature = "tracing", not(loom)))]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<String>>);

    impl Visit for Lines {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.lock().unwrap().push_str(&format!("{field}={value:?} "));
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push_str(event.metadata().target());
            self.0.lock().unwrap().push(' ');
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_subscriber_gets_the_text_and_the_values() {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            crate::event!(WARN, "the cache stopped", held_bytes = 12_u64, reason = "full");
        });
        let text = lines.0.lock().unwrap().clone();
        assert!(text.contains("tidegate ") && text.contains("held_bytes=12"), "{text}");
        assert!(text.contains("the cache stopped") && text.contains("reason=\"full\""), "{text}");
    }
}
