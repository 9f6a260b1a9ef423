//! `tidegate.open`: a dataset to look at, to divide and to load.
//!
//! Flow: path -> source -> samples as Python values, subsets.
//! Memory: what `tidegate_source` says.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt};
use tidegate_array::DType;
use tidegate_decode::{Field, Kind, Value};
use tidegate_source::tokens::Tokens;
use tidegate_source::{OpenOptions, SourceExt};

use crate::errors::{Classed, config, raise, released};

/// A dataset; see `tidegate.open`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Source(pub(crate) Arc<dyn tidegate_source::Source>);

/// Open a dataset.
#[pyfunction]
#[pyo3(signature = (url, *, force=false, checkpoints=false, split=None, allow_missing=false, memory=0))]
pub(crate) fn open(
    py: Python<'_>,
    url: &str,
    force: bool,
    checkpoints: bool,
    split: Option<String>,
    allow_missing: bool,
    memory: u64,
) -> PyResult<Source> {
    let options = OpenOptions { force, split, allow_missing, memory_bytes: memory };
    if !checkpoints {
        return released(py, || tidegate_source::open_with(url, &options))?
            .map(Source)
            .map_err(|e| raise(&e));
    }
    // Other threads read all files, so that this one sees Ctrl-C.
    interruptible(py, |stop| tidegate_source::open_with_checkpoints(url, &options, &|_, _| stopped(stop)))
        .map(Source)
}

/// Open token files as sequences; `dtype` is that of files without a header.
#[pyfunction]
pub(crate) fn tokens(py: Python<'_>, url: &str, length: u64, dtype: Option<&str>) -> PyResult<Source> {
    let dtype = dtype.map(DType::parse).transpose().map_err(config)?;
    let opened = released(py, || Tokens::open(url, length, dtype))?.map_err(|e| raise(&e))?;
    Ok(Source(opened))
}

pub(crate) fn stopped(stop: &AtomicBool) -> tidegate_source::Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(tidegate_source::Error::Interrupted),
        false => Ok(()),
    }
}

/// Runs a long task on another thread, and stops it when the user interrupts.
pub(crate) fn interruptible<T: Send, E: Classed + Send>(
    py: Python<'_>,
    work: impl FnOnce(&AtomicBool) -> Result<T, E> + Send,
) -> PyResult<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| work(&stop));
        while !work.is_finished() {
            py.detach(|| std::thread::sleep(Duration::from_millis(20)));
            py.check_signals().inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        match py.detach(|| work.join()) {
            Ok(done) => done.map_err(|e| raise(&e)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether values of this kind are text, where they are stored as bytes.
fn is_text(kind: &Kind) -> bool {
    matches!(kind, Kind::Text | Kind::Json | Kind::Int | Kind::Float)
}

fn is_digits(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn not_utf8(error: std::str::Utf8Error) -> tidegate_decode::Error {
    tidegate_decode::Error::Decode(format!("not UTF-8: {error}"))
}

/// Return a made-up source of `samples` samples of `sample_bytes` bytes.
#[pyfunction]
pub(crate) fn synthetic(samples: u64, sample_bytes: u32) -> Source {
    Source(Arc::new(tidegate_source::Synthetic::new(samples, sample_bytes)))
}

#[pymethods]
impl Source {
    fn __len__(&self) -> usize {
        self.0.len() as usize
    }

    /// Return {field: value} of sample `id`; encoded values are bytes.
    fn sample<'py>(&self, py: Python<'py>, id: u64) -> PyResult<Bound<'py, PyDict>> {
        if id >= self.0.len() {
            return Err(PyIndexError::new_err(format!("sample {id} of {}", self.0.len())));
        }
        let (at, bytes) = released(py, || self.0.fetch(id))?.map_err(|e| raise(&e))?;
        let blame = |field: &str, e| raise(&self.0.sample_error(&at, field, &e));
        let values = self.0.parse(&at, &bytes).map_err(|e| blame("", e))?;
        let out = PyDict::new(py);
        for (field, value) in self.0.schema().iter().zip(values) {
            match value {
                Value::Missing => {}
                Value::Bytes(b) if is_text(&field.kind) => {
                    let text = std::str::from_utf8(b).map_err(|e| blame(&field.name, not_utf8(e).into()))?;
                    match field.kind {
                        Kind::Int if is_digits(text.trim()) => {
                            // Python's own integers have no limit.
                            out.set_item(&field.name, py.get_type::<PyInt>().call1((text,))?)?;
                        }
                        Kind::Float if let Ok(number) = text.trim().parse::<f64>() => {
                            out.set_item(&field.name, number)?;
                        }
                        _ => out.set_item(&field.name, text)?,
                    }
                }
                Value::Bytes(b) => out.set_item(&field.name, PyBytes::new(py, b))?,
                Value::Int(x) => out.set_item(&field.name, x)?,
                Value::Float(x) => out.set_item(&field.name, x)?,
                Value::Quoted(text) => {
                    let text = text.text().map_err(|e| blame(&field.name, e.into()))?;
                    out.set_item(&field.name, String::from_utf8_lossy(&text))?;
                }
            }
        }
        Ok(out)
    }

    /// The number of columns of sparse rows, or None.
    #[getter]
    fn sparse_columns(&self) -> Option<u64> {
        let columns =
            |field: &Field| if let Kind::Sparse { columns, .. } = field.kind { Some(columns) } else { None };
        self.0.schema().iter().find_map(columns)
    }

    /// Return {field: kind}.
    fn schema<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        for field in self.0.schema() {
            out.set_item(&field.name, field.kind.name())?;
        }
        Ok(out)
    }

    /// Return sizes over all samples, in bytes.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let extremes = self.0.size_bounds();
        let out = PyDict::new(py);
        out.set_item("samples", self.0.len())?;
        out.set_item("shards", self.0.shard_lengths().len())?;
        out.set_item("total_bytes", extremes.total_bytes)?;
        out.set_item("largest_sample_bytes", extremes.sample_bytes)?;
        out.set_item("largest_decode_bytes", extremes.scratch_bytes)?;
        out.set_item("classes", self.0.classes().to_vec())?;
        Ok(out)
    }

    /// Return the folder of the index if it is among the temporary files, or None.
    fn temporary_index(&self) -> Option<String> {
        let index = self.0.side_car_index().filter(|index| index.is_temporary())?;
        Some(index.dir().display().to_string())
    }

    /// Return the folder of an index that others could have written, and where this user's is; or
    /// None.
    fn passed_over_index(&self) -> Option<(String, String)> {
        let index = self.0.side_car_index()?;
        Some((index.passed_over()?.display().to_string(), index.dir().display().to_string()))
    }

    /// Return what is uncertain about the fields, in words.
    fn uncertain(&self) -> Vec<String> {
        self.0.uncertain().to_vec()
    }

    /// Return {field: dtype} of the fields of times, as NumPy calls what their integers count.
    fn units(&self) -> HashMap<String, String> {
        self.0.units().into_iter().collect()
    }

    /// Return {field: samples that lack it} of the fields that some lack.
    fn missing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        for (field, count) in self.0.schema().iter().zip(self.0.missing()).filter(|(_, count)| **count > 0) {
            out.set_item(&field.name, count)?;
        }
        Ok(out)
    }

    /// Return what is no sample, each as (words, whether it may be taken for samples).
    fn left_out(&self) -> Vec<(String, bool)> {
        self.0.left_out().iter().map(|left_out| (left_out.to_string(), left_out.warn)).collect()
    }

    /// Return the name of sample `id`.
    fn key(&self, id: u64) -> PyResult<String> {
        self.0.key(id).map_err(|e| raise(&e))
    }

    #[getter]
    fn name(&self) -> String {
        self.0.name().to_owned()
    }

    #[getter]
    fn fingerprint(&self) -> String {
        format!("{:016x}", self.0.fingerprint())
    }

    fn select(&self, ids: Vec<u64>) -> PyResult<Self> {
        let subset = tidegate_source::Subset::new(Arc::clone(&self.0), ids).map_err(|e| raise(&e))?;
        Ok(Self(Arc::new(subset)))
    }

    fn split(&self, fractions: Vec<f64>, seed: u64) -> PyResult<Vec<Self>> {
        let parts = tidegate_source::split(&self.0, &fractions, seed).map_err(|e| raise(&e))?;
        Ok(parts.into_iter().map(|part| Self(Arc::new(part))).collect())
    }
}
