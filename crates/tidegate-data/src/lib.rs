//! Tidegate's flow of data: source → (cache) → decode → batch → hand-off, with demand running the other way.
//!
//! Flow: a [`source::Source`] and an [`order::Order`] in, batches out of the [`pipeline::Pipeline`].
//! Memory: every byte is charged to a [`tidegate_core::memory::Budget`]; each room says which account.
//! Not here: choosing knobs and configuration from words (`tidegate`).

pub mod batch;
pub mod cache;
pub mod decode;
pub mod error;
pub mod order;
pub mod pipeline;
pub mod source;
#[cfg(feature = "zarr")]
pub mod stitch;
pub mod testing;

pub use error::{Error, Place, Result};
