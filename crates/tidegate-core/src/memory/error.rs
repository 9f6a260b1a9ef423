//! What can go wrong with memory, with figures and fix.
//!
//! Flow: returned by the ledger, the arena and limit discovery; shown to the user unchanged.
//! Memory: holds none.

use super::Account;
use super::size::mib;
use crate::ErrorKind;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the memory rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is larger than the whole budget.
    #[error(
        "account {account} asks for {} MiB, the budget holds {} MiB in all ({} MiB are held now); \
         raise memory to at least {} MiB",
        mib(*asked_bytes), mib(*cap_bytes), mib(*held_bytes), mib(*asked_bytes)
    )]
    TooLarge {
        /// The account of the request.
        account: Account,
        /// Bytes asked for.
        asked_bytes: u64,
        /// Bytes held now, over all accounts.
        held_bytes: u64,
        /// The budget.
        cap_bytes: u64,
    },
    /// Others hold the bytes, and the request did not wait or its wait was stopped.
    #[error(
        "account {account} asks for {} MiB, but {} of {} MiB are held: {holders}. \
         Raise memory, or use less at once: fewer loaders on this budget, smaller batches, fewer batches kept",
        mib(*asked_bytes), mib(*held_bytes), mib(*cap_bytes)
    )]
    Exhausted {
        /// The account of the request.
        account: Account,
        /// Bytes asked for.
        asked_bytes: u64,
        /// Bytes held now, over all accounts.
        held_bytes: u64,
        /// The budget.
        cap_bytes: u64,
        /// The accounts that hold bytes and how many, the largest first.
        holders: String,
    },
    /// An epoch is running in the process's budget, which has another size.
    #[error(
        "this process has a budget of {} MiB, and an epoch is running in it; asked for {} MiB. Call \
         loader.set_memory(...) of the running loader, end its epoch, or give this loader a budget of \
         its own, as in memory=tg.Budget(\"{} MiB\")",
        mib(*have_bytes), mib(*asked_bytes), mib(*asked_bytes)
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
    /// A memory size cannot be read, or is outside its range.
    #[error(
        "{text:?} is not a size: write bytes (1048576), a unit (\"512MiB\", \"2GB\") or a fraction of the \
         limit (0.5)"
    )]
    Size {
        /// The size as the user wrote it.
        text: String,
    },
    /// A size of a few bytes, where a unit was probably meant.
    #[error("a budget of {bytes} bytes; did you mean \"{bytes}MiB\"?")]
    Tiny {
        /// The size.
        bytes: u64,
    },
    /// A budget that is more than the process may have.
    #[error(
        "a budget of {} MiB is more than the {} MiB that this process may have ({limit}): give less, such as \
         0.5 for half of it, or insist with tg.Budget(..., overcommit=True)",
        mib(*bytes), mib(*limit_bytes)
    )]
    AboveLimit {
        /// The size.
        bytes: u64,
        /// The memory limit of the process.
        limit_bytes: u64,
        /// Where the limit comes from.
        limit: String,
    },
    /// The kernel refused memory.
    #[error("the kernel refused to map {} MiB: {source}", mib(*bytes))]
    Map {
        /// Bytes to be mapped.
        bytes: u64,
        /// The kernel's error.
        source: std::io::Error,
    },
}

impl Error {
    /// The class of the error.
    ///
    /// ```
    /// use tidegate_core::error::ErrorKind;
    /// use tidegate_core::memory::size::Size;
    /// let error = "2 parsecs".parse::<Size>().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Config);
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Size { .. } | Self::Tiny { .. } | Self::AboveLimit { .. } | Self::OtherBudget { .. } => {
                ErrorKind::Config
            }
            Self::TooLarge { .. } | Self::Exhausted { .. } | Self::Node { .. } | Self::Map { .. } => {
                ErrorKind::Budget
            }
        }
    }
}
