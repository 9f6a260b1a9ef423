//! What can go wrong with a sketch, always with the offending value.
//!
//! Flow: returned by constructors, updates, merges and readers; shown to the user unchanged.
//! Memory: holds none.

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter that makes no sense.
    #[error("{name} is {value}: {expected}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        expected: String,
    },
    /// A value that the sketch cannot take.
    #[error("the value at {at} is {value}: {expected}")]
    Value {
        /// Its place in what was given.
        at: usize,
        /// What was given.
        value: String,
        /// What may be given.
        expected: String,
    },
    /// A question to which there is no answer yet.
    #[error("{0}: nothing has been seen yet")]
    Empty(&'static str),
    /// Bytes that are no such sketch, or only a part of one.
    #[error("these bytes are no {what}: {why}")]
    Bytes {
        /// What was to be read.
        what: &'static str,
        /// What is wrong with them.
        why: String,
    },
    /// Two sketches that cannot become one.
    #[error("{what} cannot be merged: {why}")]
    Mismatch {
        /// What was to be merged.
        what: &'static str,
        /// In what they differ.
        why: String,
    },
}

impl Error {
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

/// Checks that a parameter lies strictly between 0 and 1.
pub(crate) fn fraction(name: &'static str, value: f64) -> Result<f64> {
    if value > 0.0 && value < 1.0 {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must lie between 0 and 1, both excluded"))
}

/// Checks that a parameter is a positive number.
pub(crate) fn positive(name: &'static str, value: f64) -> Result<f64> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(Error::parameter(name, value, "it must be a positive number"))
}
