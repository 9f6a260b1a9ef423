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

pub mod analyse;
mod builder;
pub mod cli;
pub mod dedup;
mod epoch;
mod loader;
mod options;
pub mod pack;
pub mod pass;
pub mod profile;
pub mod ranks;
mod report;
mod state;
pub mod synth;
mod what_if;

pub use builder::Builder;
pub use epoch::Epoch;
pub use loader::Loader;
pub use options::Options;
pub use profile::Profile;
pub use report::Report;
pub use state::State;
pub use tidegate_core::memory::Budget;
pub use tidegate_data::batch::{Batch, Column, FieldSpec, ImageSpec};
pub use tidegate_data::order::{Shuffle, split::Remainder};
pub use tidegate_data::pipeline::{Keep, OnError};
pub use tidegate_data::source::{Source, open};
pub use tidegate_data::{Error, Result};
pub use what_if::{Curve, MemoryPoint, WhatIf};
