//! Where samples come from: files as they are, opened as one indexed dataset.
//!
//! Flow: [`open()`] -> [`Source`] -> located entries -> bytes of a sample -> its field values.
//! Memory: the side-car index (account `index`, see [`index`]); sample bytes go into the caller's staging.
//! Not here: decoding of what the fields hold (`tidegate-decode`), the order of ids (`tidegate-order`).

mod archive;
#[cfg(feature = "parquet")]
mod arrow_file;
pub mod checkpoints;
#[cfg(feature = "parquet")]
mod columns;
pub mod error;
mod folder;
pub mod index;
#[cfg(feature = "zarr")]
mod keyed;
mod lines;
mod mds;
mod natural;
mod open;
#[cfg(feature = "parquet")]
mod parquet_file;
#[cfg(feature = "parquet")]
mod parquet_pages;
mod probe;
pub mod read;
#[cfg(feature = "remote")]
mod remote;
pub mod rows;
mod subset;
mod synthetic;
#[cfg(feature = "parquet")]
mod table;
pub mod tar;
pub mod testing;
pub mod tokens;
mod traits;
#[cfg(feature = "parquet")]
mod unpacking;
pub mod uring;
#[cfg(feature = "zarr")]
pub mod volume;
#[cfg(feature = "zarr")]
mod zarr;

pub use self::error::{Error, Place, Result, panic_message};
pub use self::index::Entry;
pub use self::natural::natural_order;
pub use self::open::{open, open_with_checkpoints};
pub use self::read::ReadMode;
pub use self::subset::{Subset, split};
pub use self::synthetic::Synthetic;
pub use self::traits::{Access, ChunkSizes, Chunked, Extremes, Grouped, Located, Source, SourceExt};
