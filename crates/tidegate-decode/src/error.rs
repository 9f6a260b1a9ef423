//! Why encoded bytes could not be decoded.
//!
//! Flow: returned by every decoder and parser of this crate; the caller adds the sample's
//! location.
//! Memory: holds none.

use tidegate_core::ErrorKind;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of decoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are damaged, or are not of the format, type or shape that was declared.
    #[error("{0}")]
    Decode(String),
    /// The bytes end too early.
    #[error("{0}")]
    Truncated(String),
    /// The bytes may be valid, but this crate does not decode their kind.
    #[error("{0}")]
    Unsupported(String),
    /// The value needs more memory than its header or its index entry promised.
    #[error("{0}")]
    TooLarge(String),
    /// A defect of Tidegate.
    #[error("{0}; this is a defect of Tidegate, please report it")]
    Internal(String),
}

impl Error {
    /// Damaged bytes, in words.
    pub fn decode(what: impl Into<String>) -> Self {
        Self::Decode(what.into())
    }

    /// Bytes that end too early, in words.
    pub fn truncated(what: impl Into<String>) -> Self {
        Self::Truncated(what.into())
    }

    /// A kind that cannot be decoded, in words.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }

    /// A value that needs more memory than was promised, in words.
    pub fn too_large(what: impl Into<String>) -> Self {
        Self::TooLarge(what.into())
    }

    /// A defect of Tidegate, in words.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal(what.into())
    }

    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Internal(_) => ErrorKind::Internal,
            _ => ErrorKind::Data,
        }
    }
}
