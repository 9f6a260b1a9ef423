//! What can go wrong with memory, always with the figures and the fix.
//!
//! Flow: returned by the ledger, the arena and limit discovery; shown to the user unchanged.
//! Memory: holds none.

use crate::memory::Account;
use crate::memory::size::mib;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error, for callers that treat whole classes alike, such as Python's exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Options or arguments that make no sense.
    Config,
    /// The budget is too small, or others hold it.
    Budget,
    /// The consumer holds what the next batch needs.
    Held,
    /// A state that does not belong to this loader.
    State,
    /// Files, formats, bytes.
    Data,
    /// One sample.
    Sample,
    /// No progress for too long.
    Stalled,
    /// The user's sampler failed.
    Sampler,
    /// The caller asked to stop waiting.
    Interrupted,
    /// A defect of Tidegate.
    Internal,
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Size { .. } | Self::OtherBudget { .. } => ErrorKind::Config,
            _ => ErrorKind::Budget,
        }
    }
}

/// An error of the memory rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More was asked than the whole budget could ever give.
    #[error(
        "account {account} asks for {} MiB, the budget holds {} MiB in all ({} MiB are held now); {fix}",
        mib(*asked_bytes), mib(*cap_bytes), mib(*held_bytes)
    )]
    TooLarge {
        /// Who asked.
        account: Account,
        /// What was asked.
        asked_bytes: u64,
        /// What is held now, over all accounts.
        held_bytes: u64,
        /// The budget.
        cap_bytes: u64,
        /// What the user can do.
        fix: String,
    },
    /// The bytes exist, but others hold them and the caller did not want to wait.
    #[error(
        "account {account} asks for {} MiB, but {} of {} MiB are held: {holders}",
        mib(*asked_bytes), mib(*held_bytes), mib(*cap_bytes)
    )]
    Exhausted {
        /// Who asked.
        account: Account,
        /// What was asked.
        asked_bytes: u64,
        /// What is held now, over all accounts.
        held_bytes: u64,
        /// The budget.
        cap_bytes: u64,
        /// The accounts that hold most, largest first.
        holders: String,
    },
    /// The process has a budget of another size already.
    #[error(
        "this process already has a budget of {} MiB; asked for {} MiB. Pass the same size, or one tidegate.Budget \
         to every loader",
        mib(*have_bytes), mib(*asked_bytes)
    )]
    OtherBudget {
        /// The size in force.
        have_bytes: u64,
        /// The size asked for.
        asked_bytes: u64,
    },
    /// A budget that several processes share cannot be joined.
    #[error("the budget of this node: {what}")]
    Node {
        /// Why, with the fix.
        what: String,
    },
    /// A size in words could not be read.
    #[error(
        "{text:?} is no size: write bytes (1048576), a unit (\"512MiB\", \"2GB\") or a fraction of the limit (0.5)"
    )]
    Size {
        /// What was given.
        text: String,
    },
    /// The kernel refused memory.
    #[error("the kernel refused to map {} MiB: {source}", mib(*bytes))]
    Map {
        /// How much was to be mapped.
        bytes: u64,
        /// The kernel's word.
        source: std::io::Error,
    },
}
