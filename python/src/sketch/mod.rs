//! The sketches of `tidegate_sketch` as Python classes that take whole arrays.
//!
//! Flow: NumPy arrays, Arrow arrays, lists -> `values` -> a sketch, with the interpreter released
//! -> numbers and arrays.
//! Memory: `size_bytes` of each sketch, outside of any budget; arrays are read in place where
//! their type fits.

mod class;
mod counts;
mod near;
mod numbers;
mod streams;
mod values;

use pyo3::prelude::*;

/// Adds the classes to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    numbers::register(module)?;
    counts::register(module)?;
    streams::register(module)?;
    near::register(module)
}
