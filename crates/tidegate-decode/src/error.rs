//! What can be wrong with encoded bytes.
//!
//! Flow: returned by every decoder and parser of this crate; the caller adds the sample and its place.
//! Memory: holds none.

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of decoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are damaged, or not of the format that was promised.
    #[error("{0}")]
    Decode(String),
}

impl Error {
    /// Damaged bytes, in words.
    pub fn decode(what: impl Into<String>) -> Self {
        Self::Decode(what.into())
    }
}
