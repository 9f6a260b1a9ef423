//! The errors of orders.
//!
//! Flow: returned by the orders of this crate and by the samplers that users implement.
//! Memory: holds none.

use std::sync::Arc;

use tidegate_core::ErrorKind;

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of an order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The budget cannot grant the memory of a table.
    #[error("the budget is too small for {what}, which takes {} MiB: {source}", tidegate_core::memory::size::mib(*bytes))]
    Budget {
        /// The name of the table.
        what: String,
        /// The size of the table.
        bytes: u64,
        /// The reason why the budget refused.
        source: tidegate_core::Error,
    },
    /// Options or ids that are not valid, with the fix.
    #[error("{0}")]
    Config(String),
    /// A state that does not belong to this order.
    #[error("this state cannot be loaded: {0}")]
    State(String),
    /// The user's sampler failed. Shared, because a failed sampler fails again when it is asked
    /// again.
    #[error("{0}")]
    Sampler(Arc<dyn std::error::Error + Send + Sync>),
    /// A defect of Tidegate.
    #[error("{0}; this is a defect of Tidegate, please report it")]
    Internal(String),
}

impl Error {
    /// An error of the user's sampler.
    pub fn sampler(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Sampler(error.into().into())
    }

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
