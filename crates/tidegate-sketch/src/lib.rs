//! What one pass over a stream can tell, in memory declared beforehand: sketches that merge, are stored, and say how wrong they may be.
//!
//! Flow: values, arrays or hashes in -> counts, moments, quantiles, samples, alarms, neighbours out; called by profiles and samplers.
//! Memory: none but what `size_bytes` of a sketch says, which is bounded by its parameters.
//! Not here: files, threads, clocks: this crate is pure. Orders of samples (`tidegate_data::order`).

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
