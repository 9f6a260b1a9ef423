//! What can go wrong with data, always with the place (shard, offset, key) and the fix.
//!
//! Flow: returned by every room of this crate; shown to the user unchanged.
//! Memory: holds none.

use std::io;
use std::path::PathBuf;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a sample lies.
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

/// An error of the data rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A memory error.
    #[error(transparent)]
    Memory(#[from] tidegate_core::Error),
    /// A file could not be read or written.
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
    /// Encoded bytes could not be decoded.
    #[error("{0}")]
    Decode(String),
    /// Parameters that make no sense together.
    #[error("{0}")]
    Config(String),
    /// A state that does not belong to this loader.
    #[error("this state cannot be loaded: {0}")]
    State(String),
    /// Every slot is with the consumer, and nothing is on its way.
    #[error(
        "all {slots} batch slots are held by the consumer, so no batch can be made: drop or copy the batches you keep, \
         or raise prefetch and memory (each slot is {slot_mib} MiB)"
    )]
    Held {
        /// How many slots there are.
        slots: usize,
        /// The size of one.
        slot_mib: String,
    },
    /// Others hold the memory that the next batch needs, and nothing is on its way.
    #[error("{0}")]
    Starved(String),
    /// Too many samples failed.
    #[error("{failed} of {seen} samples failed, more than the allowed rate of {rate}; the last: {last}")]
    TooManyFailed {
        /// Failures.
        failed: u64,
        /// Samples tried.
        seen: u64,
        /// The limit.
        rate: f64,
        /// The last failure in words.
        last: String,
    },
    /// A thread of the pipeline died.
    #[error("the thread {thread} panicked: {what}; this is a defect of Tidegate, please report it")]
    Panic {
        /// Its name.
        thread: String,
        /// The panic's message.
        what: String,
    },
    /// Nothing moved for too long.
    #[error("no progress for {seconds} s: {who}")]
    Stalled {
        /// How long.
        seconds: u64,
        /// Who waits for whom.
        who: String,
    },
}

fn field_of(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(", field {field:?}") }
}

impl Error {
    /// An I/O error with its file.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A format error with its place.
    pub fn format(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Self::Format { path: path.into(), offset, what: what.into() }
    }

    /// The message of a panic that was caught.
    pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
    }
}
