//! `tidegate.mapped`: arrays in files, mapped, and their rows as a source.
//!
//! Flow: a path -> a mapping -> a NumPy array over it; or a source whose rows are read.
//! Memory: what `tidegate_array::mmap` says.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use tidegate_array::DType;
use tidegate_array::mmap::{self, Advice, Mode};
use tidegate_array::stored::Stored;
use tidegate_source::rows::Rows;

use crate::array::over_mapped;
use crate::errors::{array_error, config, raise, released};
use crate::source::Source;

/// A mapped array; see `tidegate.mapped`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Mapped(Mutex<Option<Arc<mmap::Mapped>>>);

impl Mapped {
    fn get(&self) -> PyResult<Arc<mmap::Mapped>> {
        let mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.clone().ok_or_else(|| config("this array is closed"))
    }
}

#[pymethods]
impl Mapped {
    /// `raw` is (dtype, shape, offset) of a file without a header; `verify` compares checksums.
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        mode: &str,
        name: Option<&str>,
        raw: Option<(String, Vec<usize>, u64)>,
        verify: bool,
    ) -> PyResult<Self> {
        if verify {
            released(py, || Stored::verify(&path, name))?.map_err(|e| array_error(&e))?;
        }
        let mode = Mode::parse(mode).map_err(config)?;
        let stored = match raw {
            Some((dtype, shape, offset)) => {
                Stored::raw(&path, DType::parse(&dtype).map_err(config)?, shape, offset)
            }
            None => Stored::open(&path, name),
        };
        let mapped =
            stored.and_then(|stored| mmap::Mapped::open(stored, mode)).map_err(|e| array_error(&e))?;
        Ok(Self(Mutex::new(Some(Arc::new(mapped)))))
    }

    /// Return the elements, and whether they are in Fortran order, with the axes reversed.
    fn array<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, bool)> {
        let mapped = self.get()?;
        Ok((over_mapped(py, &mapped)?, mapped.stored().fortran))
    }

    fn advise(&self, advice: &str) -> PyResult<()> {
        let advice = Advice::parse(advice).map_err(config)?;
        self.get()?.advise(advice).map_err(|e| array_error(&e))
    }

    /// Return (resident, dirty) bytes.
    fn usage(&self) -> PyResult<(u64, u64)> {
        let usage = self.get()?.usage().map_err(|e| array_error(&e))?;
        Ok((usage.resident_bytes, usage.dirty_bytes))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let mapped = self.get()?;
        released(py, || mapped.flush())?.map_err(|e| array_error(&e))
    }

    /// Unmap the array. Raises ConfigError while there is a view of it.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = mapped.take() else { return Ok(()) };
        let views = Arc::strong_count(&open) - 1;
        if views > 0 {
            let path = open.stored().path.display().to_string();
            *mapped = Some(open);
            return Err(config(format!(
                "{path}: {views} arrays still view it: let go of them first, or leave closing to them: the last one unmaps it"
            )));
        }
        // The flush below releases the interpreter. Other threads find the array closed already.
        drop(mapped);
        released(py, || {
            let flushed = open.flush();
            drop(open);
            flushed
        })?
        .map_err(|e| array_error(&e))
    }

    /// Return the rows as a source with one field.
    fn rows(&self, field: &str) -> PyResult<Source> {
        let stored = self.get()?.stored().clone();
        Ok(Source(Rows::new(stored, field).map_err(|e| raise(&e))?))
    }
}
