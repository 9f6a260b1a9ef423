//! What can go wrong with files and stores, always with the place (file, offset, key) and the fix.
//!
//! Flow: returned by every format; shown to the user unchanged.
//! Memory: holds none.

use std::io;
use std::path::PathBuf;

use tidegate_core::ErrorKind;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a sample is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The sample's id.
    pub id: u64,
    /// The file, relative to the dataset.
    pub shard: String,
    /// Byte offset in that file.
    pub offset: u64,
    /// The sample's own name, if it has one.
    pub key: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sample {} ({} at byte {}", self.id, self.shard, self.offset)?;
        if !self.key.is_empty() && self.key != self.shard {
            write!(f, ", key {:?}", self.key)?;
        }
        f.write_str(")")
    }
}

/// An error of a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A memory error.
    #[error(transparent)]
    Memory(#[from] tidegate_core::Error),
    /// Boxes or a subset that cannot be made.
    #[error(transparent)]
    Order(#[from] tidegate_order::Error),
    /// Encoded bytes could not be decoded.
    #[error(transparent)]
    Decode(#[from] tidegate_decode::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
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
    /// A dataset as a whole cannot be used.
    #[error("{path}: {what}")]
    Dataset {
        /// The dataset.
        path: PathBuf,
        /// What is wrong, and the fix.
        what: String,
    },
    /// One sample could not be made.
    #[error("{place}{}: {what}", field_of(field))]
    Sample {
        /// Which one.
        place: Box<Place>,
        /// Which field, or empty.
        field: String,
        /// What is wrong.
        what: String,
    },
    /// Options that make no sense together, with the fix.
    #[error("{0}")]
    Config(String),
    /// A patch with more voxels than its array.
    #[error("array {array:?}, axis {axis} of the patch: {what}")]
    PatchTooLarge {
        /// The array.
        array: String,
        /// The axis of the patch.
        axis: usize,
        /// Both sizes, and the fix.
        what: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A thread panicked.
    #[error("the thread {thread} panicked: {what}; this is a defect of Tidegate, please report it")]
    Panic {
        /// Its name.
        thread: String,
        /// The panic's message.
        what: String,
    },
    /// A defect of Tidegate.
    #[error("{0}; this is a defect of Tidegate, please report it")]
    Internal(String),
}

fn field_of(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(", field {field:?}") }
}

impl Error {
    /// Where the sample is that could not be made, if this is about one.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Sample { place, .. } => Some(place),
            _ => None,
        }
    }

    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory(error) => error.kind(),
            Self::Order(error) => error.kind(),
            Self::Config(_) => ErrorKind::Config,
            Self::PatchTooLarge { .. } => ErrorKind::PatchTooLarge,
            Self::Sample { .. } => ErrorKind::Sample,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Panic { .. } | Self::Internal(_) => ErrorKind::Internal,
            Self::Decode(error) => error.kind(),
            Self::Io { .. } | Self::Format { .. } | Self::Dataset { .. } => ErrorKind::Data,
        }
    }

    /// An I/O error with its file.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A format error with its place.
    pub fn format(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Self::Format { path: path.into(), offset, what: what.into() }
    }

    /// Damaged bytes, in words.
    pub fn decode(what: impl Into<String>) -> Self {
        Self::Decode(tidegate_decode::Error::decode(what))
    }
}

/// The message of a panic that was caught.
#[must_use]
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}
