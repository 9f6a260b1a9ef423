//! Errors as Python exceptions: one tree under `tidegate.Error`.
//!
//! Flow: `tidegate::Error` -> the class of `tidegate.errors` that fits.
//! Memory: holds none.

use pyo3::prelude::*;
use tidegate_core::ErrorKind;
use tidegate_source::Place;

pub(crate) mod classes {
    //! Imported from Python, where a class can have two bases.
    pyo3::import_exception!(tidegate.errors, BudgetError);
    pyo3::import_exception!(tidegate.errors, HeldError);
    pyo3::import_exception!(tidegate.errors, ConfigError);
    pyo3::import_exception!(tidegate.errors, SamplerError);
    pyo3::import_exception!(tidegate.errors, PatchTooLargeError);
    pyo3::import_exception!(tidegate.errors, StateError);
    pyo3::import_exception!(tidegate.errors, DataError);
    pyo3::import_exception!(tidegate.errors, SampleError);
    pyo3::import_exception!(tidegate.errors, StalledError);
    pyo3::import_exception!(tidegate.errors, InternalError);
}

/// The exception for an error of arrays.
pub(crate) fn array_error(error: &tidegate_array::Error) -> PyErr {
    raise(error)
}

/// Calls `work` with the interpreter released; a panic in it is an `InternalError`, which
/// `except Exception` sees, and not the exception of the bindings, which it does not.
pub(crate) fn released<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let outcome = py.detach(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
    outcome.map_err(|panic| {
        let what = panic.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        classes::InternalError::new_err(format!("a panic: {what}; please report this"))
    })
}

/// The exception for an argument that makes no sense.
pub(crate) fn config(what: impl Into<String>) -> PyErr {
    classes::ConfigError::new_err(what.into())
}

/// An error of any crate: its class, and the sample it is about.
pub(crate) trait Classed: std::fmt::Display {
    fn kind(&self) -> ErrorKind;
    fn place(&self) -> Option<&Place> {
        None
    }
}

macro_rules! classed {
    ($error:ty $(, $place:ident)?) => {
        impl Classed for $error {
            fn kind(&self) -> ErrorKind {
                <$error>::kind(self)
            }
            $(fn place(&self) -> Option<&Place> {
                <$error>::$place(self)
            })?
        }
    };
}

classed!(tidegate_array::Error);
classed!(tidegate_core::Error);
classed!(tidegate_order::Error);
classed!(tidegate_plan::Error);
classed!(tidegate_sketch::Error);
classed!(tidegate_source::Error, place);
classed!(tidegate::Error, place);

/// The exception for an error.
pub(crate) fn raise(error: &impl Classed) -> PyErr {
    let text = error.to_string();
    if let Some(place) = error.place() {
        let (shard, key) = (place.shard.clone(), place.key.clone());
        return classes::SampleError::new_err((text, place.id, shard, place.offset, key));
    }
    match error.kind() {
        ErrorKind::PatchTooLarge => classes::PatchTooLargeError::new_err(text),
        ErrorKind::Config => classes::ConfigError::new_err(text),
        ErrorKind::Sampler => classes::SamplerError::new_err(text),
        ErrorKind::Budget => classes::BudgetError::new_err(text),
        ErrorKind::Held => classes::HeldError::new_err(text),
        ErrorKind::State => classes::StateError::new_err(text),
        ErrorKind::Stalled => classes::StalledError::new_err(text),
        ErrorKind::Internal => classes::InternalError::new_err(text),
        _ => classes::DataError::new_err(text),
    }
}
