//! What the program tells about itself: metrics and events of control decisions.
//!
//! Flow: [`metrics!`](crate::metrics) -> counters and readings of them; [`event!`](crate::event)
//! -> a tracing subscriber.
//! Memory: 128 bytes for each counter.
//! Not here: reports, which are made from readings (`tidegate::report`).

pub mod event;
pub mod metric;

pub use metric::{Counter, Kind, MetricInfo, MetricValue, Unit, Value};
