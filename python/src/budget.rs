//! `tidegate.Budget`: the memory that loaders share.
//!
//! Flow: a size -> the ledger that several loaders are given.
//! Memory: the budget itself.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tidegate_core::memory::size::Size;
use tidegate_core::memory::{self, Account, Priority};
use tidegate_data::decode::npy::DType;

use crate::errors::raise;

/// One hard memory budget; give it to every loader that shares it.
#[pyclass(frozen, module = "tidegate")]
#[derive(Debug)]
pub(crate) struct Budget(pub(crate) memory::Budget);

/// A size as Python gives it: an int of bytes, a float fraction of the limit, or text such as "2GiB".
pub(crate) fn size(given: &Bound<'_, PyAny>) -> PyResult<Size> {
    if let Ok(text) = given.extract::<String>() {
        return text.parse().map_err(|e: tidegate_core::Error| raise(&e.into()));
    }
    if let Ok(bytes) = given.extract::<u64>() {
        return Ok(Size::Bytes(bytes));
    }
    Ok(Size::Fraction(given.extract()?))
}

/// Bytes of a size: an int, a fraction of the limit, or text.
#[pyfunction]
pub(crate) fn size_bytes(given: &Bound<'_, PyAny>) -> PyResult<u64> {
    size(given)?.bytes().map_err(|e| raise(&e.into()))
}

#[pymethods]
impl Budget {
    #[new]
    fn new(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = size(given)?.bytes().map_err(|e| raise(&e.into()))?;
        Ok(Self(memory::Budget::new(bytes)))
    }

    /// The process-wide budget of this size, made or joined.
    #[staticmethod]
    fn process(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        memory::Budget::process(&size(given)?).map(Self).map_err(|e| raise(&e.into()))
    }

    /// The cap in bytes.
    #[getter]
    fn cap_bytes(&self) -> u64 {
        self.0.cap_bytes()
    }

    /// Bytes charged now, resident holes included.
    #[getter]
    fn charged_bytes(&self) -> u64 {
        self.0.usage().charged_bytes
    }

    /// The most ever charged.
    #[getter]
    fn peak_bytes(&self) -> u64 {
        self.0.usage().peak_bytes
    }

    /// Bytes held now, by account.
    fn accounts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let accounts = PyDict::new(py);
        for &account in Account::ALL {
            accounts.set_item(account.name(), self.0.account(account).held_bytes)?;
        }
        Ok(accounts)
    }

    /// An array charged to the account `user` until the last view of it is gone.
    fn empty<'py>(&self, py: Python<'py>, shape: Vec<usize>, dtype: &str) -> PyResult<Bound<'py, PyAny>> {
        let dtype = DType::parse(dtype).map_err(|e| raise(&e))?;
        let bytes = shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d as u64));
        let bytes = bytes
            .ok_or_else(|| raise(&tidegate::Error::Config(format!("a shape of {shape:?} is absurd"))))?;
        let block =
            self.0.try_block(Account::User, bytes, Priority::NextBatch).map_err(|e| raise(&e.into()))?;
        crate::array::over_block(py, block, shape, dtype)
    }

    /// The same budget, whose arrays lie in memory that worker processes can map.
    fn shared(&self) -> Self {
        Self(self.0.shared())
    }

    /// (file, its length, offset) of an address in shared memory, or None.
    fn place(&self, address: usize) -> Option<(i32, u64, u64)> {
        self.0.place(address).map(|at| (at.file, at.file_bytes, at.offset))
    }

    /// Returns the pages of all holes to the kernel.
    fn trim(&self, py: Python<'_>) {
        py.detach(|| self.0.trim());
    }

    fn __repr__(&self) -> String {
        format!(
            "Budget({} MiB, {} MiB charged)",
            memory::size::mib(self.0.cap_bytes()),
            memory::size::mib(self.charged_bytes())
        )
    }
}
