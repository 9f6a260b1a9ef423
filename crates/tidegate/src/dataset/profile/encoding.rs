//! Sketches as text in a profile file, and the errors of sketches.
//!
//! Flow: a sketch's bytes <-> base64; `tidegate_sketch::Error` -> [`Error`].
//! Memory: the text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{Error, Result};

pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn from_base64(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|e| Error::Config(format!("a sketch of this profile is not base64: {e}")))
}

/// An error of a sketch that this program made.
pub(super) fn internal(error: tidegate_sketch::Error) -> Error {
    Error::Internal(error.to_string())
}

/// An error of a sketch that was read from a file.
pub(super) fn damaged(error: tidegate_sketch::Error) -> Error {
    Error::Config(format!("this profile is damaged: {error}; make a new one with `tidegate profile`"))
}
