//! How a sketch becomes a Python class: one lock, common methods, errors as exceptions.
//!
//! Flow: `sketch! { … }` in a module of sketches -> a `pyclass` with its methods.
//! Memory: holds none; a class holds its sketch.

use pyo3::prelude::*;

use crate::errors::raise;

/// The exception for an error of a sketch.
pub(super) fn raised(error: tidegate_sketch::Error) -> PyErr {
    raise(&error)
}

/// A Python class over a sketch: one lock, taken with the interpreter released, and common
/// methods.
///
/// `stored` adds `to_bytes` and `from_bytes`, also used by pickle and copy; `merged` adds `merge`.
macro_rules! sketch {
    ($(#[$doc:meta])* $name:ident($inner:ty) stored $($has:ident)* { $($methods:tt)* }) => {
        sketch! {
            $(#[$doc])*
            $name($inner) $($has)* {
                $($methods)*

                /// Return the state as bytes.
                fn to_bytes(&self) -> Vec<u8> {
                    self.lock().to_bytes()
                }

                /// Read what `to_bytes` returned. Raises ConfigError for other bytes.
                #[staticmethod]
                fn from_bytes(bytes: &[u8]) -> PyResult<Self> {
                    Self::of(<$inner>::from_bytes(bytes))
                }

                fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Vec<u8>,))> {
                    Ok((slf.get_type().getattr("from_bytes")?, (slf.get().to_bytes(),)))
                }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident($inner:ty) merged { $($methods:tt)* }) => {
        sketch! {
            $(#[$doc])*
            $name($inner) {
                $($methods)*

                /// Add the stream of another sketch with the same parameters.
                fn merge(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
                    // Copied first, so that two locks are never held together.
                    let other = other.lock().clone();
                    self.with(py, |sketch| sketch.merge(&other)).map_err($crate::sketch::class::raised)
                }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident($inner:ty) { $($methods:tt)* }) => {
        $(#[$doc])*
        #[pyclass(frozen, module = "tidegate.sketch")]
        #[derive(Debug)]
        pub(crate) struct $name(std::sync::Mutex<$inner>);

        impl $name {
            fn of(sketch: tidegate_sketch::Result<$inner>) -> PyResult<Self> {
                sketch.map(|sketch| Self(std::sync::Mutex::new(sketch))).map_err($crate::sketch::class::raised)
            }

            fn lock(&self) -> std::sync::MutexGuard<'_, $inner> {
                self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
            }

            /// Calls `with` the sketch, with the interpreter released.
            fn with<T: Send>(&self, py: Python<'_>, with: impl FnOnce(&mut $inner) -> T + Send) -> T {
                py.detach(|| with(&mut self.lock()))
            }
        }

        #[pymethods]
        impl $name {
            $($methods)*

            /// Bytes that the sketch takes.
            #[getter]
            fn size_bytes(&self, py: Python<'_>) -> u64 {
                self.with(py, |sketch| sketch.size_bytes())
            }
        }
    };
}
pub(super) use sketch;
