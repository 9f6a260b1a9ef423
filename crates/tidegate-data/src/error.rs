//! What can go wrong with data, always with the place (shard, offset, key) and the fix.
//!
//! Flow: returned by every room of this crate; shown to the user unchanged.
//! Memory: holds none.

use std::io;
use std::path::PathBuf;

use tidegate_core::ErrorKind;
use tidegate_core::memory::Account;
use tidegate_core::memory::size::mib;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub use tidegate_source::{Place, panic_message};

/// An error of the data rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A memory error.
    #[error(transparent)]
    Memory(#[from] tidegate_core::Error),
    /// An error of an order.
    #[error(transparent)]
    Order(#[from] tidegate_order::Error),
    /// An error of a source: a file, a format, a sample.
    #[error(transparent)]
    Source(#[from] tidegate_source::Error),
    /// Encoded bytes could not be decoded.
    #[error(transparent)]
    Decode(#[from] tidegate_decode::Error),
    /// Parameters that make no sense together.
    #[error("{0}")]
    Config(String),
    /// A state that does not belong to this loader.
    #[error("this state cannot be loaded: {0}")]
    State(String),
    /// Every slot is with the consumer, and nothing is on its way.
    #[error(
        "all {slots} batch slots are held by the consumer, so no batch can be made: drop or copy the batches you keep, \
         or say how many you keep with held_batches=N (each is {slot_mib} MiB)"
    )]
    Held {
        /// How many slots there are.
        slots: usize,
        /// The size of one.
        slot_mib: String,
    },
    /// Others hold the memory that the next batch needs, and nothing is in flight.
    #[error(
        "no batch can be made: the budget of {} MiB is held by {holders}; drop or copy the batches you keep, or raise memory",
        mib(*cap_bytes)
    )]
    Starved {
        /// The budget.
        cap_bytes: u64,
        /// The accounts that hold most, largest first.
        holders: String,
    },
    /// An epoch could not go on after its budget changed.
    #[error("the epoch could not continue with the changed budget: {why}")]
    NotResumed {
        /// Why.
        why: String,
    },
    /// The budget cannot hold the least plan of an epoch.
    #[error(
        "memory of {} MiB is too small: this loader needs at least {} MiB ({parts}, in MiB); account {account} asks for {} \
         MiB; raise memory, or {fix}",
        mib(*cap_bytes), mib(*least_bytes), mib(*asked_bytes)
    )]
    TooSmall {
        /// The budget.
        cap_bytes: u64,
        /// What the least plan takes.
        least_bytes: u64,
        /// Each account of it.
        parts: String,
        /// The account that asks for most.
        account: Account,
        /// What it asks for.
        asked_bytes: u64,
        /// What the user can do.
        fix: String,
    },
    /// A sample or a batch takes more than the budget leaves for one. Which these are depends on
    /// the budget, so no policy leaves them out.
    #[error("{what}; raise memory, or {fix}")]
    TooLarge {
        /// What takes how much, with the place.
        what: String,
        /// What the user can do.
        fix: String,
    },
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
    /// The caller asked to stop waiting: a signal, in Python.
    #[error("interrupted")]
    Interrupted,
    /// A defect of Tidegate.
    #[error("{0}; this is a defect of Tidegate, please report it")]
    Internal(String),
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

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory(error) => error.kind(),
            Self::Order(error) => error.kind(),
            Self::Source(error) => error.kind(),
            Self::Decode(error) => error.kind(),
            Self::TooManyFailed { .. } => ErrorKind::Data,
            Self::Config(_) => ErrorKind::Config,
            Self::State(_) => ErrorKind::State,
            Self::Held { .. } | Self::Starved { .. } | Self::NotResumed { .. } => ErrorKind::Held,
            Self::TooSmall { .. } | Self::TooLarge { .. } => ErrorKind::Budget,
            Self::Stalled { .. } => ErrorKind::Stalled,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Panic { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// An I/O error with its file.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| tidegate_source::Error::Io { path, source }.into()
    }

    /// Damaged bytes, in words.
    pub fn decode(what: impl Into<String>) -> Self {
        Self::Decode(tidegate_decode::Error::decode(what))
    }

    /// Where the sample is that could not be made, if this is about one.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Source(error) => error.place(),
            _ => None,
        }
    }
}
