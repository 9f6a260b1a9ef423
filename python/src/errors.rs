//! Errors as Python exceptions: one tree under `tidegate.Error`.
//!
//! Flow: `tidegate::Error` -> the class of `tidegate.errors` that fits.
//! Memory: holds none.

use pyo3::prelude::*;
use tidegate::Error;

pub(crate) mod classes {
    //! Imported from Python, where a class can have two bases.
    pyo3::import_exception!(tidegate.errors, BudgetError);
    pyo3::import_exception!(tidegate.errors, HeldError);
    pyo3::import_exception!(tidegate.errors, ConfigError);
    pyo3::import_exception!(tidegate.errors, StateError);
    pyo3::import_exception!(tidegate.errors, DataError);
    pyo3::import_exception!(tidegate.errors, SampleError);
    pyo3::import_exception!(tidegate.errors, StalledError);
    pyo3::import_exception!(tidegate.errors, InternalError);
}

/// The exception for an error of arrays.
pub(crate) fn array_error(error: &tidegate_array::Error) -> PyErr {
    let text = error.to_string();
    match error {
        tidegate_array::Error::Misuse { .. } | tidegate_array::Error::Option { .. } => {
            classes::ConfigError::new_err(text)
        }
        _ => classes::DataError::new_err(text),
    }
}

/// The exception for an argument that makes no sense.
pub(crate) fn config(what: impl Into<String>) -> PyErr {
    classes::ConfigError::new_err(what.into())
}

/// The exception for an error.
pub(crate) fn raise(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Memory(tidegate_core::Error::Size { .. } | tidegate_core::Error::OtherBudget { .. }) => {
            classes::ConfigError::new_err(text)
        }
        Error::Memory(_) => classes::BudgetError::new_err(text),
        Error::Held { .. } | Error::Starved(_) => classes::HeldError::new_err(text),
        Error::Config(what) if what.contains("too small") => classes::BudgetError::new_err(text),
        Error::Config(_) => classes::ConfigError::new_err(text),
        Error::State(_) => classes::StateError::new_err(text),
        Error::Stalled { .. } => classes::StalledError::new_err(text),
        Error::Panic { .. } => classes::InternalError::new_err(text),
        Error::Sample { place, .. } => classes::SampleError::new_err((
            text,
            place.id,
            place.shard.clone(),
            place.offset,
            place.key.clone(),
        )),
        _ => classes::DataError::new_err(text),
    }
}
