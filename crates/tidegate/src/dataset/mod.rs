//! Work on whole datasets: check and profile them, find duplicates, pack them, analyse compression,
//! make one.
//!
//! Flow: a source -> one epoch (`scan`) or single samples -> figures or new files.
//! Memory: each module says its own.

pub mod analyse;
pub mod check;
pub mod dedup;
pub mod pack;
pub mod profile;
mod scan;
pub mod synth;
mod target;

pub use self::scan::Progress;
pub(crate) use self::scan::find_field;
