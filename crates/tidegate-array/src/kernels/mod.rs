//! Kernels: elements from one place to another.
//!
//! Flow: slices of bytes and shapes in, slices of bytes out; called by sources and batches.
//! Memory: the caller's.

pub mod bits;
pub mod boxes;
pub mod convert;
pub mod grid;
pub mod planar;
pub mod transpose;
pub mod wavelet;
