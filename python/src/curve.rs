//! `tidegate.cache_curve` over accesses: the hits of caches of several sizes.
//!
//! Flow: arrays of objects and sizes -> points as JSON.
//! Memory: copies of the arrays, outside of any budget: for planning, not for training.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use tidegate::Error;
use tidegate_data::cache::curve::{SimulatedPolicy, Supply, curve};

use crate::errors::{raise, released};

fn wrong(what: impl Into<String>) -> PyErr {
    raise(&Error::Config(what.into()))
}

/// Returns points as JSON, one for each of `limits`.
#[pyfunction]
pub(crate) fn cache_curve(
    py: Python<'_>,
    accesses: PyReadonlyArray1<'_, u32>,
    epoch: usize,
    sizes: PyReadonlyArray1<'_, u32>,
    policy: &str,
    supply: (f64, u64),
    limits: Vec<u64>,
) -> PyResult<String> {
    let policy = match policy {
        "fixed" => SimulatedPolicy::Fixed,
        "min" => SimulatedPolicy::Min,
        "optimum" => SimulatedPolicy::Optimum,
        other => return Err(wrong(format!("policy must be 'fixed', 'min' or 'optimum', not {other:?}"))),
    };
    let (accesses, sizes): (Vec<u32>, Vec<u32>) = (accesses.as_array().to_vec(), sizes.as_array().to_vec());
    if let Some(object) = accesses.iter().find(|&&object| object as usize >= sizes.len()) {
        return Err(wrong(format!("object {object} has no size: there are {}", sizes.len())));
    }
    if epoch == 0 || accesses.is_empty() {
        return Err(wrong("there must be accesses, and an epoch of at least one"));
    }
    if !(supply.0 > 0.0 && supply.0.is_finite()) {
        return Err(wrong(format!("a reading speed must be positive, in bytes a second, not {}", supply.0)));
    }
    let supply = Supply { bytes_per_s: supply.0, ahead_bytes: supply.1 };
    let points = released(py, || curve(&accesses, epoch, &sizes, policy, supply, &limits))?;
    serde_json::to_string(&points).map_err(|e| wrong(e.to_string()))
}
