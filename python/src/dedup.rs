//! `tidegate.dedup`: which samples are the same, or nearly the same.
//!
//! Flow: a source and options -> `tidegate::dataset::dedup`, with the interpreter released ->
//! arrays, and JSON for the rest.
//! Memory: that of `tidegate::dataset::dedup`; outside of the budget 8 bytes a kept sample, 4 a
//! weight, and 48 a duplicate.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::PyArray1;
use pyo3::prelude::*;
use tidegate::Error;
use tidegate::dataset::dedup::{Criterion, Duplicates, Search};

use crate::budget::Budget;
use crate::errors::{raise, released};
use crate::profile::Progress;
use crate::source::Source;

/// The duplicates, as columns of numbers.
struct Rows {
    keep: Vec<i64>,
    weights: Vec<f32>,
    index: Vec<i64>,
    of: Vec<i64>,
    similarity: Vec<f64>,
    rest: String,
}

impl Rows {
    fn of(found: Duplicates) -> tidegate::Result<Self> {
        let signed = |ids: Vec<u64>| ids.into_iter().map(u64::cast_signed).collect();
        let (keep, weights) = (signed(found.keep()), found.weights());
        let index = found.duplicates.iter().map(|d| d.index.cast_signed()).collect();
        let of = found.duplicates.iter().map(|d| d.of.cast_signed()).collect();
        let similarity = found.duplicates.iter().map(|d| d.similarity).collect();
        let rest = Duplicates { duplicates: Vec::new(), ..found };
        let rest = serde_json::to_string(&rest).map_err(|e| Error::Config(e.to_string()))?;
        Ok(Self { keep, weights, index, of, similarity, rest })
    }
}

type Integers<'py> = Bound<'py, PyArray1<i64>>;

/// (keep, weights, index, of, similarity, the rest as JSON).
type Found<'py> = (
    Integers<'py>,
    Bound<'py, PyArray1<f32>>,
    Integers<'py>,
    Integers<'py>,
    Bound<'py, PyArray1<f64>>,
    String,
);

/// Finds the duplicates of a source.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the words of `tidegate.dedup`")]
pub(crate) fn dedup<'py>(
    py: Python<'py>,
    source: &Source,
    by: &str,
    field: Option<String>,
    threshold: Option<f64>,
    folder: Option<PathBuf>,
    workers: Option<usize>,
    budget: &Budget,
    progress: Option<Py<PyAny>>,
) -> PyResult<Found<'py>> {
    let words = "by must be 'bytes', 'pixels', 'text' or 'picture', not";
    let by: Criterion =
        serde_json::from_value(by.into()).map_err(|_| raise(&Error::Config(format!("{words} {by:?}"))))?;
    let search = Search { by, field, threshold, folder, workers };
    let progress = Progress::new(progress);
    let (source, budget) = (Arc::clone(&source.0), budget.0.clone());
    let found = released(py, || {
        Rows::of(Duplicates::find(&source, &search, &budget, &|done, of| progress.told(done, of))?)
    })?;
    let rows = found.map_err(|e| progress.raised(&e))?;
    let integers = |values| PyArray1::from_vec(py, values);
    Ok((
        integers(rows.keep),
        PyArray1::from_vec(py, rows.weights),
        integers(rows.index),
        integers(rows.of),
        PyArray1::from_vec(py, rows.similarity),
        rows.rest,
    ))
}
