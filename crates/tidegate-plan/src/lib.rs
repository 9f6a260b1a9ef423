//! Plans the memory and the time of training, from numbers alone.
//!
//! Flow: sizes and times (JSON or structs) -> [`training`] -> plans, with their sums in words.
//! Memory: each function says what its tables take; no budget is charged, for a plan is made before
//! training begins.
//! Not here: clocks, threads, files, random numbers. What was measured comes in as numbers.

pub mod error;
pub mod training;

pub use error::{Error, Result};
