//! Sources of samples: files in their own formats, opened as one indexed dataset.
//!
//! Flow: [`open()`] -> [`Source`] -> located entries -> bytes of a sample -> its field values.
//! Memory: the side-car index (account `index`, see [`index`]); sample bytes go into the caller's
//! staging.
//! Not here: decoding of field values (`tidegate-decode`), the order of ids (`tidegate-order`).

pub mod checkpoints;
pub mod error;
mod files;
mod formats;
pub mod index;
mod left_out;
mod lists;
mod open;
mod parts;
pub mod testing;
mod traits;
#[cfg(feature = "zarr")]
pub mod volume;
#[cfg(feature = "zarr")]
mod zarr;

pub use self::error::{Error, Place, Result, panic_message};
pub use self::files::natural::natural_order;
pub use self::files::read::ReadMode;
pub use self::files::{read, uring};
pub use self::formats::subset::{Subset, split};
pub use self::formats::synthetic::Synthetic;
pub use self::formats::{rows, tar, tokens};
pub use self::index::{Entry, Located, SizeBounds};
pub use self::left_out::LeftOut;
pub use self::open::{open, open_with, open_with_checkpoints};
pub use self::parts::OpenOptions;
pub use self::traits::{Access, ChunkSizes, Chunked, Grouped, Source, SourceExt};
