//! What can go wrong with arrays in files, with the place and the fix.
//!
//! Flow: returned by every room of this crate.
//! Memory: holds none.

use std::io;
use std::path::PathBuf;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the array rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written or mapped.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A file is not what it says it is.
    #[error("{path}: at byte {offset}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong, and the fix.
        what: String,
    },
    /// Numbers that cannot be what is asked for.
    #[error("{what}")]
    Value {
        /// What is wrong, and the fix.
        what: String,
    },
    /// An option that makes no sense, whatever the numbers are.
    #[error("{what}")]
    Option {
        /// Which, and the fix.
        what: String,
    },
    /// Something that this array or mode cannot do.
    #[error("{path}: {what}")]
    Misuse {
        /// The file.
        path: PathBuf,
        /// What, and the fix.
        what: String,
    },
}

impl Error {
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

    pub(crate) fn misuse(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Misuse { path: path.into(), what: what.into() }
    }
}
