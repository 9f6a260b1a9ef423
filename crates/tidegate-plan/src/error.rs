//! Errors of plans, with the figures and the fix.
//!
//! Flow: returned by every planner; shown to the user unchanged.
//! Memory: holds none.

use tidegate_core::ErrorKind;
use tidegate_core::memory::size::{counted, mib};

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
        "the step takes at least {}, and {} are given: {parts}. What lowers it: {fix}",
        sized(*floor_bytes),
        sized(*given_bytes)
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
    /// A defect of Tidegate.
    #[error("{0}; this is a defect of Tidegate, please report it")]
    Internal(String),
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Floor { .. } => ErrorKind::Budget,
            Self::Parameter { .. } | Self::Config(_) => ErrorKind::Config,
            Self::Internal(_) => ErrorKind::Internal,
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

/// Times and ratios beyond this are no measurements, and their sums would leave the numbers.
const MOST: f64 = 1e30;

/// Checks that a number is positive, and at most 1e30.
pub(crate) fn positive(name: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value <= MOST {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must be a positive number of at most 1e30"))
}

/// Checks that a number is 0 or more, and at most 1e30.
pub(crate) fn not_negative(name: impl Into<String>, value: f64) -> Result<f64> {
    if (0.0..=MOST).contains(&value) {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must be a number from 0 to 1e30"))
}

/// Checks that a count is from 1 to `most`.
pub(crate) fn counted_to(name: &str, value: u64, most: u64) -> Result<u64> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::parameter(name, value, format!("it must be from 1 to {most}")))
}

/// The most bytes of one figure, 4 TiB: sums of all figures of a plan stay below 2^63.
pub(crate) const MOST_BYTES: u64 = 1 << 42;

/// The product of sizes, as a number of bytes or of elements.
pub(crate) fn product(what: &str, sizes: &[u64]) -> Result<u64> {
    let product = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
    product.filter(|&product| product <= MOST_BYTES).ok_or_else(|| {
        let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
        Error::Config(format!("{what}: {} is more than 2^42", sizes.join(" × ")))
    })
}

/// Bytes for messages: in MiB where that says something.
pub(crate) fn sized(bytes: u64) -> String {
    if bytes < 1 << 20 { counted(bytes, "byte") } else { format!("{} MiB", mib(bytes)) }
}
