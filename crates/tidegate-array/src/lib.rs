//! Arrays: the kernels that move their elements.
//!
//! Flow: bytes of elements in C order -> the same elements elsewhere, in another order.
//! Memory: holds none.
//! Not here: where arrays come from (`tidegate-data`), whose memory they are in (`tidegate-core`).

pub mod kernels;
