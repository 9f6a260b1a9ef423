//! Files and objects of stores: their bytes by position, and their names in order.
//!
//! Flow: (file or object, offset, length) -> bytes in the caller's memory; called by indexes and
//! formats.
//! Memory: see each file.

#[cfg(feature = "remote")]
mod address;
#[cfg(feature = "remote")]
mod answer;
#[cfg(feature = "remote")]
mod credentials;
pub(crate) mod file_set;
pub(crate) mod glob;
#[cfg(feature = "zarr")]
pub(crate) mod keyed;
pub(crate) mod natural;
pub mod read;
#[cfg(feature = "remote")]
pub(crate) mod remote;
mod stop;
pub mod uring;

/// Bytes that the kernel keeps for a file that was opened: its inode, its name and its part of the
/// inode table. Measured on ext4.
pub(crate) const KERNEL_FILE_BYTES: u64 = 1664;
