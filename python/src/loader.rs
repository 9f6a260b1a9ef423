//! `_tidegate.Loader` and `Epoch`, which the Python class `tidegate.Loader` wraps.
//!
//! Flow: options as JSON -> `tidegate::Loader`; `next` -> arrays; waits release the interpreter.
//! Memory: what `tidegate_data::pipeline` plans.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tidegate::{Error, Options, State};
use tidegate_data::batch::Batch;
use tidegate_data::pipeline::{BatchTransform, Delivered};

use crate::array::columns;
use crate::budget::Budget;
use crate::errors::{raise, released};
use crate::profile::Profile;
use crate::sampler::{Asker, Sampler};
use crate::source::Source;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loader; its documentation is in `tidegate/loader.py`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Loader {
    loader: Mutex<tidegate::Loader>,
    /// Identifies the loader to its sampler.
    asker: Asker,
}

impl Loader {
    /// Calls `with` the loader and its lock, with the interpreter released, for which the holder
    /// of the
    /// lock may wait. Refuses a call from the loader's own sampler, for which the holder may wait
    /// too.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        with: impl FnOnce(&mut tidegate::Loader) -> T + Send,
    ) -> PyResult<T> {
        if self.asker.asks() {
            let what = "a sampler cannot ask the loader that asks it: note what it needs beforehand";
            return Err(raise(&Error::Config(what.into())));
        }
        released(py, || with(&mut lock(&self.loader)))
    }
}

#[pymethods]
impl Loader {
    #[new]
    fn new(
        py: Python<'_>,
        source: &Source,
        options: &str,
        budget: &Budget,
        map: Option<PythonMap>,
        sampler: Option<Sampler<'_>>,
    ) -> PyResult<Self> {
        let options: Options =
            serde_json::from_str(options).map_err(|e| raise(&Error::Config(e.to_string())))?;
        let (source, budget) = (Arc::clone(&source.0), budget.0.clone());
        let asker = Asker::default();
        let order =
            sampler.map(|sampler| sampler.order(py, &asker, &*source, &options, &budget)).transpose()?;
        let made = released(py, || match order {
            Some(order) => tidegate::Loader::with_order(source, options, budget, order),
            None => tidegate::Loader::new(source, options, budget),
        })?;
        let mut loader = made.map_err(|e| raise(&e))?;
        if let Some(map) = map {
            loader.set_map(Arc::new(map));
        }
        Ok(Self { loader: Mutex::new(loader), asker })
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |loader| loader.len() as usize)
    }

    /// Return (field, samples that lack it) of the fields that are left out for that.
    fn unnamed(&self, py: Python<'_>) -> PyResult<Vec<(String, u64)>> {
        self.with(py, |loader| loader.unnamed().to_vec())
    }

    /// Begin the next epoch.
    fn epoch(&self, py: Python<'_>) -> PyResult<Epoch> {
        let epoch = self.with(py, tidegate::Loader::epoch)?.map_err(|e| raise(&e))?;
        Ok(Epoch { epoch: Mutex::new(Some(epoch)), closing: AtomicBool::new(false) })
    }

    /// Change the budget, also in the middle of an epoch.
    fn set_memory(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<()> {
        let size = crate::budget::size(given)?;
        self.with(py, |loader| loader.set_memory(&size))?.map_err(|e| raise(&e))
    }

    /// Return what these budgets would give, as (JSON, words).
    fn cache_curve(
        &self,
        py: Python<'_>,
        memories: Vec<Bound<'_, PyAny>>,
        read_bytes_per_s: Option<f64>,
        rate: Option<f64>,
        disk_bytes: Option<u64>,
    ) -> PyResult<(String, String)> {
        let bytes = |given| crate::budget::size(given)?.bytes().map_err(|e| raise(&e));
        let memories = memories.iter().map(bytes).collect::<PyResult<Vec<u64>>>()?;
        let asked = tidegate::CacheQuery { memories, read_bytes_per_s, rate, disk_bytes };
        let curve = self.with(py, |loader| loader.cache_curve(&asked))?.map_err(|e| raise(&e))?;
        let json = serde_json::to_string(&curve).map_err(|e| raise(&Error::Config(e.to_string())))?;
        Ok((json, curve.to_string()))
    }

    fn set_epoch(&self, py: Python<'_>, epoch: u64) -> PyResult<()> {
        self.with(py, |loader| loader.set_epoch(epoch))
    }

    fn seek(&self, py: Python<'_>, epoch: u64, batch: u64) -> PyResult<()> {
        self.with(py, |loader| loader.seek(epoch, batch))?.map_err(|e| raise(&e))
    }

    fn ranks_without_a_row(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |loader| loader.ranks_without_a_row())
    }

    /// Take the losses of samples.
    fn feedback(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, u64>,
        losses: PyReadonlyArray1<'_, f32>,
    ) -> PyResult<()> {
        let (ids, losses) = (ids.as_slice()?, losses.as_slice()?);
        self.with(py, |loader| loader.feedback(ids, losses))?.map_err(|e| raise(&e))
    }

    /// Return all losses as bytes, or None without feedback.
    fn feedback_state(&self, py: Python<'_>) -> PyResult<Option<Vec<u8>>> {
        self.with(py, |loader| loader.feedback_state())
    }

    fn load_feedback(&self, py: Python<'_>, state: &[u8]) -> PyResult<()> {
        self.with(py, |loader| loader.load_feedback(state))?.map_err(|e| raise(&e))
    }

    /// Return the state as JSON.
    fn state(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |loader| loader.state())?.to_json().map_err(|e| raise(&e))
    }

    fn load_state(&self, py: Python<'_>, state: &str) -> PyResult<()> {
        let state = State::from_json(state).map_err(|e| raise(&e))?;
        self.with(py, |loader| loader.load_state(&state))?.map_err(|e| raise(&e))
    }

    /// Return the profile of the first epoch, or None if the loader makes none.
    fn profile(&self, py: Python<'_>) -> PyResult<Option<Profile>> {
        let found = self.with(py, |loader| loader.profile())?.transpose().map_err(|e| raise(&e))?;
        Ok(found.map(Profile::from))
    }

    /// Return the report as (JSON, words).
    fn report(&self, py: Python<'_>) -> PyResult<(String, String)> {
        let report = self.with(py, |loader| loader.report())?;
        let json = serde_json::to_string(&report).map_err(|e| raise(&Error::Config(e.to_string())))?;
        Ok((json, report.to_string()))
    }
}

/// One epoch.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Epoch {
    epoch: Mutex<Option<tidegate::Epoch>>,
    /// Another thread closes it: `next`, which has the lock, gives up.
    closing: AtomicBool,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        // Workers may wait for the interpreter: `close` releases it while it joins them. It calls
        // Python, which must not happen while an exception is on its way, as one often is here.
        Python::attach(|py| {
            let pending = PyErr::take(py);
            self.close(py);
            pending.into_iter().for_each(|error| error.restore(py));
        });
    }
}

#[pymethods]
impl Epoch {
    /// Return the next batch, the result of the batch transform, or None at the end.
    ///
    /// A batch is (columns, rows, ids, mask, epoch, number, positions, weights, indices, last).
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut interrupted = None;
        let outcome = released(py, || {
            let mut epoch = lock(&self.epoch);
            let Some(epoch) = epoch.as_mut() else { return Ok(None) };
            let interrupted = Mutex::new(&mut interrupted);
            epoch.next_with(&|| {
                if self.closing.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                Python::attach(|py| py.check_signals()).map_err(|signal| {
                    **lock(&interrupted) = Some(signal);
                    Error::Interrupted
                })
            })
        })?;
        if let Some(signal) = interrupted {
            self.close(py);
            return Err(signal);
        }
        match outcome {
            // The caller sees that its epoch is no longer the loader's.
            Err(Error::Interrupted) => Ok(None),
            Ok(None) => Ok(None),
            Ok(Some(Delivered::Batch(batch))) => presented(py, batch).map(Some),
            Ok(Some(Delivered::Mapped(made))) => match made.downcast::<PyResult<Py<PyAny>>>() {
                Ok(made) => made.map(|made| Some(made.into_bound(py))),
                Err(_) => Err(raise(&Error::Config("a batch map of another kind".into()))),
            },
            Err(error) => Err(raise(&error)),
        }
    }

    /// Stop the epoch's threads and free its memory.
    fn close(&self, py: Python<'_>) {
        self.closing.store(true, Ordering::Relaxed);
        py.detach(|| drop(lock(&self.epoch).take()));
    }
}

/// (columns, rows, ids, mask, epoch, number, positions, weights, indices, last).
fn presented<'py>(py: Python<'py>, batch: Batch) -> PyResult<Bound<'py, PyAny>> {
    let ids: Vec<i64> = batch.ids.iter().map(|id| id.cast_signed()).collect();
    let ids = numpy::PyArray1::from_vec(py, ids);
    let mask = numpy::PyArray1::from_slice(py, &batch.mask);
    let positions: Vec<i64> = batch.positions.iter().map(|p| p.cast_signed()).collect();
    let positions = numpy::PyArray1::from_vec(py, positions);
    let weights = numpy::PyArray1::from_slice(py, &batch.weights);
    let indices: Vec<i64> = batch.indices.iter().map(|index| index.cast_signed()).collect();
    let indices = numpy::PyArray1::from_vec(py, indices);
    let rows = batch.rows;
    let (epoch, number, last) = (batch.epoch, batch.number, batch.last);
    let columns: Bound<'py, PyDict> = columns(py, batch)?;
    let batch = (columns, rows, ids, mask, epoch, number, positions, weights, indices, last);
    Ok(batch.into_pyobject(py)?.into_any())
}

/// Four Python functions: one that transforms each batch off the consumer's thread, one that is
/// told the number of the first batch, one that ends the waits of the first, and one that ends its
/// work.
#[derive(Debug, FromPyObject)]
pub(crate) struct PythonMap(Py<PyAny>, Option<Py<PyAny>>, Option<Py<PyAny>>, Option<Py<PyAny>>);

impl BatchTransform for PythonMap {
    fn begin(&self, first: u64) {
        call(self.1.as_ref(), |py, begin| begin.call1(py, (first,)));
    }

    fn map(&self, batch: Batch) -> tidegate::Result<Box<dyn Any + Send>> {
        let made: PyResult<Py<PyAny>> = Python::attach(|py| {
            let batch = presented(py, batch)?;
            let made = self.0.bind(py).call1((batch,))?;
            if made.is_none() {
                // None would read as the end of the epoch.
                let what = "batch_transform returned None: return the batch";
                return Err(raise(&Error::Config(what.into())));
            }
            Ok(made.unbind())
        });
        // `Epoch.next` raises the exception itself.
        Ok(Box::new(made))
    }

    fn stop(&self) {
        call(self.2.as_ref(), |py, stop| stop.call0(py));
    }

    fn interrupt(&self) {
        call(self.3.as_ref(), |py, interrupt| interrupt.call0(py));
    }
}

/// Calls a function if there is one; an exception can only go to standard error.
fn call(function: Option<&Py<PyAny>>, how: impl FnOnce(Python<'_>, &Py<PyAny>) -> PyResult<Py<PyAny>>) {
    if let Some(function) = function {
        Python::attach(|py| {
            if let Err(error) = how(py, function) {
                error.write_unraisable(py, None);
            }
        });
    }
}
