//! Whole datasets: what is in one, what is in it twice, and how to store it smaller.
//!
//! Flow: a source -> `scan` (one epoch of a loader) or single samples -> a result, or new files.
//! Memory: each module says its own.

pub mod analyse;
pub mod dedup;
pub mod pack;
pub mod profile;
pub mod scan;
pub mod synth;
