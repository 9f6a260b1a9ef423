//! Errors of sketches, always with the offending value.
//!
//! Flow: returned by constructors, updates, merges and readers; shown to the user unchanged.
//! Memory: holds none.

use tidegate_core::ErrorKind;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid parameter.
    #[error("{name} is {value}: {expected}")]
    Parameter {
        /// The parameter's name.
        name: &'static str,
        /// The given value.
        value: String,
        /// The accepted values.
        expected: String,
    },
    /// A value that the sketch cannot accept.
    #[error("the value at {at} is {value}: {expected}")]
    Value {
        /// Its index in the input.
        at: usize,
        /// The given value.
        value: String,
        /// The accepted values.
        expected: String,
    },
    /// A query before the first value.
    #[error("{0} needs at least one value: nothing has been seen yet")]
    Empty(&'static str),
    /// Bytes that are not such a sketch, or are truncated.
    #[error("these bytes are no {what}: {why}")]
    Bytes {
        /// The kind of sketch that was to be read.
        what: &'static str,
        /// What is wrong with the bytes.
        why: String,
    },
    /// Two sketches that cannot be merged.
    #[error("{what} cannot be merged: {why}")]
    Mismatch {
        /// The kind of sketch.
        what: &'static str,
        /// How they differ.
        why: String,
    },
    /// A defect of this library.
    #[error("{0}: please report this")]
    Internal(&'static str),
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Internal(_) => ErrorKind::Internal,
            _ => ErrorKind::Config,
        }
    }

    pub(crate) fn parameter(name: &'static str, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Parameter { name, value: value.to_string(), expected: expected.into() }
    }

    pub(crate) fn value(at: usize, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Value { at, value: value.to_string(), expected: expected.into() }
    }

    pub(crate) fn bytes(what: &'static str, why: impl ToString) -> Self {
        Self::Bytes { what, why: why.to_string() }
    }

    pub(crate) fn mismatch<T: std::fmt::Display + PartialEq>(
        what: &'static str,
        name: &str,
        one: T,
        other: T,
    ) -> Result<()> {
        if one == other {
            return Ok(());
        }
        Err(Self::Mismatch { what, why: format!("{name} is {one} in one and {other} in the other") })
    }
}

/// Checks that a parameter is strictly between 0 and 1.
pub(crate) fn fraction(name: &'static str, value: f64) -> Result<f64> {
    if value > 0.0 && value < 1.0 {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must be between 0 and 1, both excluded"))
}

/// Checks that a parameter is positive and finite.
pub(crate) fn positive(name: &'static str, value: f64) -> Result<f64> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must be a positive number"))
}
