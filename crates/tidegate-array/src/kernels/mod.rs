//! Kernels: loops that move and convert elements.
//!
//! Flow: slices of bytes and shapes -> slices of bytes; called by sources and batches.
//! Memory: the caller's.

pub mod bits;
pub mod boxes;
pub mod convert;
pub mod grid;
pub mod planar;
pub mod transpose;
pub mod wavelet;
