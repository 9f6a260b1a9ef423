//! From encoded bytes to pixels, arrays, numbers and text.
//!
//! Flow: bytes + header + the region that is wanted -> rows of pixels, one after another, into a
//! [`RowSink`]; lines of text and arrays -> [`Value`]s. Called by sources and by `batch`.
//! Memory: a decoder that holds a whole image uses the caller's scratch, of
//! [`ImageHeader::inner_bytes`](header::ImageHeader::inner_bytes). What it allocates itself is
//! bounded by [`ImageHeader::library_bytes`](header::ImageHeader::library_bytes); the caller
//! reserves that before.
//! Not here: cropping, resizing and what follows (`batch`).

pub mod compact;
mod decoders;
pub mod error;
pub mod header;
mod image;
mod jpeg;
pub mod npy;
mod pixels;
mod png_chunks;
mod png_image;
mod quoted;
pub mod schema;
pub mod text;
mod webp;
mod webp_codes;

pub use self::decoders::Decoders;
pub use self::error::{Error, Result};
pub use self::image::{Decode, Decoded, Pixel, Region, Request, RowSink, WideGray};
pub use self::quoted::Quoted;
pub use self::schema::{Field, Kind, Schema, SparsePart, Value, kind_of_extension};

/// Checkpoint records of JPEGs. The side-car file keeps one for each sample.
pub mod checkpoints {
    pub use crate::jpeg::{count, write_record};
}
