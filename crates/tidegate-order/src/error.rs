//! What can be wrong with an order.
//!
//! Flow: returned by the orders of this crate and by what users implement of them.
//! Memory: holds none.

use tidegate_core::ErrorKind;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of an order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The budget has no room for a table.
    #[error("the budget is too small for {what}, which takes {} MiB: {source}", tidegate_core::memory::size::mib(*bytes))]
    Budget {
        /// The table.
        what: String,
        /// Bytes that it takes.
        bytes: u64,
        /// Why the budget refused.
        source: tidegate_core::Error,
    },
    /// Options that make no sense, with the fix.
    #[error("{0}")]
    Config(String),
    /// A state that does not belong to this order.
    #[error("this state cannot be loaded: {0}")]
    State(String),
    /// The user's sampler failed.
    #[error("{0}")]
    Sampler(Box<dyn std::error::Error + Send + Sync>),
    /// A defect of Tidegate.
    #[error("{0}; this is a defect of Tidegate, please report it")]
    Internal(String),
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Budget { .. } => ErrorKind::Budget,
            Self::Config(_) => ErrorKind::Config,
            Self::State(_) => ErrorKind::State,
            Self::Sampler(_) => ErrorKind::Sampler,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}
