//! Errors of damaged and truncated JPEGs, with the byte offset.
//!
//! Flow: called by every file of the JPEG decoder.
//! Memory: holds none.

use crate::Error;

/// Damaged bytes, by their offset.
pub(super) fn damaged(at: usize, what: &str) -> Error {
    Error::decode(format!("damaged JPEG: at byte {at} of the file: {what}"))
}

/// A file that ends too early.
pub(super) fn truncated(at: usize) -> Error {
    Error::truncated(format!(
        "truncated JPEG: the data end at byte {at}, within the image; load_truncated=True fills the rest"
    ))
}
