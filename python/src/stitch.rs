//! `Volume.predictions`: predictions for patches, blended into a Zarr array.
//!
//! Flow: ids and predictions of a batch -> `tidegate_data::stitch`, with the interpreter released.
//! Memory: that of `tidegate_data::stitch`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use tidegate_data::stitch;

use crate::budget::Budget;
use crate::errors::{raise, released};
use crate::volume::Volume;

/// A Zarr array in the making; see `tidegate.Predictions`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Stitch(Mutex<Option<stitch::OverlapWriter>>);

impl Stitch {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut stitch::OverlapWriter) -> tidegate::Result<T>,
    ) -> tidegate::Result<T> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || tidegate::Error::Config("these predictions are closed".into());
        work(inner.as_mut().ok_or_else(closed)?)
    }
}

#[pymethods]
impl Stitch {
    /// `options` is JSON.
    #[new]
    fn new(
        py: Python<'_>,
        volume: &Volume,
        folder: PathBuf,
        options: &str,
        budget: &Budget,
    ) -> PyResult<Self> {
        let options = serde_json::from_str(options)
            .map_err(|e| raise(&tidegate::Error::Config(format!("the options of predictions: {e}"))))?;
        let made = released(py, || stitch::OverlapWriter::new(&volume.0, &folder, &options, &budget.0))?;
        Ok(Self(Mutex::new(Some(made.map_err(|e| raise(&e))?))))
    }

    /// Add predictions of patches, flat, in the order of `ids`.
    fn add(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, u64>,
        predictions: PyReadonlyArray1<'_, f32>,
    ) -> PyResult<()> {
        let (ids, predictions) = (ids.as_slice()?, predictions.as_slice()?);
        released(py, || self.with(|inner| inner.add(ids, predictions)))?.map_err(|e| raise(&e))
    }

    /// Return the ids of patches that chunks still lack.
    fn wanted<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let ids = released(py, || self.with(|inner| Ok(inner.wanted())))?.map_err(|e| raise(&e))?;
        Ok(ids.into_pyarray(py))
    }

    /// Return the number of unwritten chunks, of those that have some of their patches, and of the
    /// latter in memory.
    fn state(&self, py: Python<'_>) -> PyResult<(u64, usize, usize)> {
        let state = |inner: &mut stitch::OverlapWriter| {
            let (open, here) = inner.open_chunks();
            Ok((inner.remaining_chunks(), open, here))
        };
        released(py, || self.with(state))?.map_err(|e| raise(&e))
    }

    /// Free the memory; chunks that lack patches are not written.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}
