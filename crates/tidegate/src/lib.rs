//! Tidegate: stream datasets larger than memory into training, under one hard memory budget.
//!
//! Flow: a path or pattern -> [`open`] -> [`Loader`] -> batches; state out and in; a report.
//! Memory: one [`Budget`] for everything, see `tidegate_core::memory`.
//!
//! ```no_run
//! use tidegate::{Loader, Shuffle};
//! let mut loader = Loader::builder("shards/*.tar").batch_size(256).memory("2GiB").shuffle(Shuffle::Full).seed(7).build()?;
//! for batch in loader.epoch()? {
//!     let batch = batch?;
//!     println!("{} rows", batch.rows);
//! }
//! # Ok::<(), tidegate::Error>(())
//! ```

mod atomic_file;
pub mod cli;
pub mod dataset;
mod html;
pub mod loader;
mod report;

pub use dataset::profile::Profile;
pub use loader::{Builder, Curve, Epoch, Loader, MemoryPoint, Options, State, WhatIf};
pub use report::Report;
pub use tidegate_core::memory::Budget;
pub use tidegate_data::batch::{Batch, Column, FieldSpec, ImageSpec};
pub use tidegate_data::pipeline::{Keep, OnError};
pub use tidegate_data::{Error, Result};
pub use tidegate_order::{Shuffle, split::Remainder};
pub use tidegate_source::{Source, open};
