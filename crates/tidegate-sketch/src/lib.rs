//! One-pass summaries of streams in bounded memory: sketches that merge and state their error.
//!
//! Flow: values, arrays or hashes -> counts, moments, quantiles, samples, alarms, neighbours;
//! called by profiles and samplers.
//! Memory: only what `size_bytes` of a sketch reports, which its parameters bound.
//! Not here: files, threads and clocks, because this crate is pure; sample orders
//! (`tidegate-order`).

mod codec;
pub mod distinct;
pub mod drift;
mod error;
pub mod event;
pub mod frequency;
pub mod hash;
pub mod moments;
pub mod neighbour;
pub mod online;
pub mod quantile;
pub mod random;
pub mod reservoir;
pub mod window;

pub use error::{Error, Result};
