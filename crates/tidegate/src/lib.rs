//! Tidegate: stream datasets larger than memory into training, under one hard memory budget.
//!
//! Flow: a path or pattern -> [`open`] -> [`Loader`] -> batches; a state out and in; a report.
//! Memory: one [`Budget`] for everything, see `tidegate_core::memory`.
//!
//! ```no_run
//! use tidegate::{Loader, Shuffle};
//! let builder = Loader::builder("shards/*.tar").batch_size(256).memory("2GiB");
//! let mut loader = builder.shuffle(Shuffle::Full).seed(7).build()?;
//! for batch in loader.epoch()? {
//!     let batch = batch?;
//!     println!("{} rows", batch.rows);
//! }
//! println!("{}", loader.report());
//! # Ok::<(), tidegate::Error>(())
//! ```
//!
//! The rooms: `loader` loads, `report` says what limits it, `dataset` works on whole datasets
//! (profile, dedup, pack, analyse, synth), `builder` makes loaders, `cli` is the command
//! `tidegate`. `dataset` uses `loader`, `builder` and `cli` use both, and `loader` uses neither.

mod atomic_file;
mod builder;
pub mod cli;
pub mod dataset;
mod html;
pub mod loader;
mod report;

pub use builder::Builder;
pub use dataset::profile::Profile;
pub use loader::{
    CacheCurve, CacheQuery, Epoch, FailedSample, Loader, MemoryPoint, Options, SamplerSpec, State,
};
pub use report::{AccountLine, NodeLine, Report};
pub use tidegate_core::memory::Budget;
pub use tidegate_data::batch::{Batch, Column, FieldSpec, ImageSpec};
pub use tidegate_data::pipeline::{Keep, Knobs, OnError};
pub use tidegate_data::{Error, Result};
pub use tidegate_order::{Shuffle, partition::Remainder};
pub use tidegate_source::{Source, open};
