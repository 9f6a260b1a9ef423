//! Errors of this crate: what is wrong, where, and the fix.
//!
//! Flow: returned by every module of this crate.
//! Memory: holds none.

use std::io;
use std::path::PathBuf;

use tidegate_core::ErrorKind;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written or mapped.
    #[error("{path}: {source}")]
    Io {
        /// The file's path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file's contents do not match its format.
    #[error("{path}: at byte {offset}: {what}")]
    Format {
        /// The file's path.
        path: PathBuf,
        /// Position in the file, in bytes.
        offset: u64,
        /// What is wrong, and the fix.
        what: String,
    },
    /// Numbers that the operation cannot accept.
    #[error("{what}")]
    Value {
        /// What is wrong, and the fix.
        what: String,
    },
    /// An option that is invalid for any input.
    #[error("{what}")]
    Option {
        /// Which option, and the fix.
        what: String,
    },
    /// An operation that this array or mode does not support.
    #[error("{path}: {what}")]
    Misuse {
        /// The file's path.
        path: PathBuf,
        /// What is not supported, and the fix.
        what: String,
    },
    /// A defect of this library.
    #[error("{what}: please report this")]
    Internal {
        /// What happened.
        what: String,
    },
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Format { .. } | Self::Value { .. } => ErrorKind::Data,
            Self::Option { .. } | Self::Misuse { .. } => ErrorKind::Config,
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Self::Format { path: path.into(), offset, what: what.into() }
    }

    pub(crate) fn value(what: impl Into<String>) -> Self {
        Self::Value { what: what.into() }
    }

    pub(crate) fn option(what: impl Into<String>) -> Self {
        Self::Option { what: what.into() }
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::Internal { what: what.into() }
    }

    pub(crate) fn misuse(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Misuse { path: path.into(), what: what.into() }
    }
}
