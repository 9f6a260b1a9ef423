//! Tidegate's flow of data: source → (cache) → decode → batch → hand-off, with demand running the
//! other way.
//!
//! Flow: a [`tidegate_source::Source`] and an [`tidegate_order::Order`] in, batches out of the
//! [`pipeline::Pipeline`].
//! Memory: every byte is charged to a [`tidegate_core::memory::Budget`]; each room says which
//! account.
//! Not here: formats (`tidegate-source`), pixels (`tidegate-decode`), orders (`tidegate-order`),
//! knobs and configuration from words (`tidegate`).

pub mod batch;
pub mod cache;
pub mod error;
pub mod pipeline;
#[cfg(feature = "zarr")]
pub mod stitch;
pub mod testing;

pub use error::{Error, Place, Result, panic_message};
