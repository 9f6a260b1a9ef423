//! Files and objects of stores: their bytes by position, and their names in order.
//!
//! Flow: (file or object, offset, length) -> bytes in the caller's memory; called by indexes and
//! formats.
//! Memory: see each file.

#[cfg(feature = "zarr")]
pub(crate) mod keyed;
pub(crate) mod natural;
pub mod read;
#[cfg(feature = "remote")]
pub(crate) mod remote;
pub mod uring;
