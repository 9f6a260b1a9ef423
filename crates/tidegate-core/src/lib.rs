//! The base of Tidegate: one memory budget for the process, its arena, metrics and locks.
//!
//! Flow: sizes in -> grants and blocks out; called by every other crate.
//! Memory: this crate *is* the memory; see [`memory`].
//! Not here: files, formats, threads of the pipeline (`tidegate-data`).

pub mod error;
pub mod hash;
pub mod memory;
pub mod observe;
pub mod simd;
pub mod sync;

pub use error::ErrorKind;
pub use memory::{Error, Result};
