//! Errors of plans, with the figures and the fix.
//!
//! Flow: returned by every planner; shown to the user unchanged.
//! Memory: holds none.

use tidegate_core::ErrorKind;
use tidegate_core::memory::size::mib;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number that makes no sense.
    #[error("{name} is {value}: {expected}")]
    Parameter {
        /// The name of the number.
        name: String,
        /// The given value.
        value: String,
        /// The accepted values.
        expected: String,
    },
    /// Numbers that do not belong together, with the fix.
    #[error("{0}")]
    Config(String),
    /// The step cannot run in this memory.
    #[error(
        "the step takes at least {} MiB, and {} MiB are given: {parts}. What lowers it: {fix}",
        mib(*floor_bytes),
        mib(*given_bytes)
    )]
    Floor {
        /// The least bytes of any plan.
        floor_bytes: u64,
        /// The bytes that the user gives.
        given_bytes: u64,
        /// What the floor consists of.
        parts: String,
        /// What would lower it.
        fix: String,
    },
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Floor { .. } => ErrorKind::Budget,
            Self::Parameter { .. } | Self::Config(_) => ErrorKind::Config,
        }
    }

    pub(crate) fn parameter(
        name: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Parameter { name: name.into(), value: value.to_string(), expected: expected.into() }
    }
}

/// Checks that a number is at least one.
pub(crate) fn at_least_one(name: &str, value: u64) -> Result<u64> {
    if value > 0 { Ok(value) } else { Err(Error::parameter(name, value, "it must be 1 or more")) }
}

/// Checks that a number is positive and finite.
pub(crate) fn positive(name: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must be a positive number"))
}
