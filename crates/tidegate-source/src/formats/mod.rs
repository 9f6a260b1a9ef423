//! The formats of datasets, each a [`crate::Source`].
//!
//! Flow: files -> index -> samples -> field values; opened by `open`, which lists them.
//! Memory: see each file; all hold their side-car index (account `index`).

pub(crate) mod archive;
mod archive_index;
#[cfg(feature = "parquet")]
mod arrow_file;
#[cfg(feature = "parquet")]
mod arrow_types;
#[cfg(feature = "parquet")]
mod arrow_values;
#[cfg(feature = "parquet")]
mod columns;
pub(crate) mod folder;
pub(crate) mod lines;
pub(crate) mod mds;
mod mds_shards;
#[cfg(feature = "parquet")]
mod packed_rows;
#[cfg(feature = "parquet")]
mod parquet_file;
#[cfg(feature = "parquet")]
mod parquet_pages;
pub mod rows;
#[cfg(feature = "parquet")]
mod seen_values;
pub(crate) mod subset;
pub(crate) mod synthetic;
#[cfg(feature = "parquet")]
pub(crate) mod table;
pub mod tar;
pub mod tokens;
#[cfg(feature = "parquet")]
mod unpacking;
