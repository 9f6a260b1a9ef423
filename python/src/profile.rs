//! `tidegate.profile` and the `Profile` that it makes.
//!
//! Flow: a source, options as JSON -> `tidegate::dataset::profile`, with the interpreter released
//! -> JSON, words, pages, numbers.
//! Memory: that of `tidegate::dataset::profile`; the profile itself, outside of the budget.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use tidegate::dataset::profile::{self, Diff, Label};
use tidegate::{Error, Options};

use crate::budget::Budget;
use crate::errors::{raise, released};
use crate::source::Source;

/// A profile; see `tidegate.Profile`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Profile(Mutex<tidegate::Profile>);

/// Checks signals and reports progress during a pass. An exception of either ends the pass and is
/// kept.
pub(crate) struct Progress {
    tell: Option<Py<PyAny>>,
    raised: Mutex<Option<PyErr>>,
}

impl Progress {
    pub(crate) fn new(tell: Option<Py<PyAny>>) -> Self {
        Self { tell, raised: Mutex::default() }
    }

    pub(crate) fn told(&self, done: u64, of: u64) -> tidegate::Result<()> {
        let told = Python::attach(|py| {
            py.check_signals()?;
            self.tell.as_ref().map_or(Ok(()), |tell| tell.call1(py, (done, of)).map(|_| ()))
        });
        told.map_err(|error| {
            *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Error::Config("interrupted".into())
        })
    }

    /// Returns the exception of Python, or else the error of the pass.
    pub(crate) fn raised(self, error: &Error) -> PyErr {
        let raised = self.raised.into_inner().unwrap_or_else(PoisonError::into_inner);
        raised.unwrap_or_else(|| raise(error))
    }
}

/// Profile a source in one pass.
#[pyfunction]
#[pyo3(name = "profile")]
pub(crate) fn made(
    py: Python<'_>,
    source: &Source,
    options: &str,
    budget: &Budget,
    progress: Option<Py<PyAny>>,
) -> PyResult<Profile> {
    let options: Options = serde_json::from_str(options).map_err(|e| raise(&Error::Config(e.to_string())))?;
    let progress = Progress::new(progress);
    let (source, budget) = (Arc::clone(&source.0), budget.0.clone());
    let found = released(py, || {
        tidegate::Profile::scan(source, options, &budget, &|done, of| progress.told(done, of))
    })?;
    found.map(Profile::from).map_err(|e| progress.raised(&e))
}

impl From<tidegate::Profile> for Profile {
    fn from(profile: tidegate::Profile) -> Self {
        Self(Mutex::new(profile))
    }
}

impl Profile {
    fn lock(&self) -> MutexGuard<'_, tidegate::Profile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `with` the profile, with the interpreter released.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        with: impl FnOnce(&mut tidegate::Profile) -> tidegate::Result<T> + Send,
    ) -> PyResult<T> {
        released(py, || with(&mut self.lock()))?.map_err(|e| raise(&e))
    }
}

#[pymethods]
impl Profile {
    /// Read a profile in a file, or the one next to a dataset.
    #[staticmethod]
    fn find(py: Python<'_>, what: &str) -> PyResult<Self> {
        released(py, || tidegate::Profile::find(what))?.map(Self::from).map_err(|e| raise(&e))
    }

    /// Read the profile next to a source.
    #[staticmethod]
    fn beside(py: Python<'_>, source: &Source) -> PyResult<Self> {
        let source = Arc::clone(&source.0);
        released(py, || tidegate::Profile::load_for(&*source))?.map(Self::from).map_err(|e| raise(&e))
    }

    /// Return the path of the profile of a source.
    #[staticmethod]
    fn path_of(source: &Source) -> PyResult<PathBuf> {
        profile::default_path(&*source.0).map_err(|e| raise(&e))
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        released(py, || tidegate::Profile::from_json(text))?.map(Self::from).map_err(|e| raise(&e))
    }

    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |profile| profile.to_json())
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.with(py, |profile| profile.save(&path))
    }

    /// Return all figures as JSON.
    fn summary(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.with(py, |profile| profile.summary())?.to_string())
    }

    fn to_html(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |profile| profile.to_html())
    }

    fn __str__(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |profile| Ok(profile.to_string()))
    }

    /// Add the profile of other data.
    fn merge(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
        // Copied first, so that two locks are never held together.
        let json = other.to_json(py)?;
        self.with(py, |profile| profile.merge(&tidegate::Profile::from_json(&json)?))
    }

    /// Return how another profile differs, as (JSON, words).
    fn diff(&self, py: Python<'_>, other: &Self, effect: f64) -> PyResult<(String, String)> {
        let json = other.to_json(py)?;
        let diff =
            self.with(py, |profile| Diff::new(profile, &tidegate::Profile::from_json(&json)?, effect))?;
        let json = serde_json::to_string(&diff).map_err(|e| raise(&Error::Config(e.to_string())))?;
        Ok((json, diff.to_string()))
    }

    /// Return (label, weight) of each class.
    fn class_weights(
        &self,
        py: Python<'_>,
        field: &str,
        beta: Option<f64>,
    ) -> PyResult<Vec<(Py<PyAny>, f64)>> {
        let weights = self.with(py, |profile| profile.field(field)?.class_weights(beta))?;
        let label = |label| -> PyResult<Py<PyAny>> {
            Ok(match label {
                Label::Int(value) => value.into_pyobject(py)?.into_any().unbind(),
                Label::Text(text) => text.into_pyobject(py)?.into_any().unbind(),
            })
        };
        weights.into_iter().map(|(of, weight)| Ok((label(of)?, weight))).collect()
    }

    /// Return what padding wastes as JSON, or None for a field without lengths.
    fn padding(&self, py: Python<'_>, field: &str, batch: u32, buckets: usize) -> PyResult<Option<String>> {
        let found = self.with(py, |profile| {
            Ok(profile.field(field)?.lengths().and_then(|lengths| profile::padding(lengths, batch, buckets)))
        })?;
        found
            .map(|found| serde_json::to_string(&found).map_err(|e| raise(&Error::Config(e.to_string()))))
            .transpose()
    }
}
