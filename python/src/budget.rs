//! `tidegate.Budget`: the memory that loaders share.
//!
//! Flow: a size -> `memory::Budget`, which several loaders share.
//! Memory: the budget itself.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};
use tidegate_core::memory::size::Size;
use tidegate_core::memory::{self, Account, Priority};
use tidegate_decode::npy::DType;

use crate::errors::{config, raise, released};

/// One hard memory budget; give it to every loader that shares it.
///
/// Args:
///     memory: the cap: bytes, text such as "2GiB", or a fraction of the memory limit.
///     scope: "process" (default), or "node": all ranks on this machine share the cap. Each may
///         hold an equal part, and the rest caches one copy of each sample for all.
///     processes: with scope="node", the number of ranks; by default as torchrun, MPI or SLURM
///         say.
///     name: with scope="node", the name of the job, the same in each of its ranks; by default as
///         torchrun, MPI or SLURM say.
///     overcommit: allows a cap above what this process may have; by default False.
///
/// Raises ConfigError for a size that is not valid.
///
/// >>> import tidegate as tg
/// >>> tg.Budget("64MiB").cap_bytes
/// 67108864
#[pyclass(frozen, module = "tidegate")]
#[derive(Debug)]
pub(crate) struct Budget(pub(crate) memory::Budget);

/// Reads a size: an int of bytes, a float fraction of the limit, or text such as "2GiB".
pub(crate) fn size(given: &Bound<'_, PyAny>) -> PyResult<Size> {
    if let Ok(text) = given.extract::<String>() {
        return text.parse().map_err(|e: tidegate_core::Error| raise(&e));
    }
    if !given.is_instance_of::<PyBool>() {
        if let Ok(bytes) = given.extract::<u64>() {
            return Ok(Size::Bytes(bytes));
        }
        if let Ok(fraction) = given.extract::<f64>() {
            return Ok(Size::Fraction(fraction));
        }
    }
    let given = given.repr()?;
    let what = format!(
        "memory={given}: expected bytes, text such as \"2GiB\", or a fraction of the limit such as 0.5"
    );
    Err(config(what))
}

/// Return the bytes of a size: an int, a fraction of the memory limit, or text.
#[pyfunction]
pub(crate) fn size_bytes(given: &Bound<'_, PyAny>) -> PyResult<u64> {
    size(given)?.bytes().map_err(|e| raise(&e))
}

#[pymethods]
impl Budget {
    #[new]
    #[pyo3(signature = (memory, *, scope = "process", processes = None, name = None, overcommit = false))]
    fn new(
        py: Python<'_>,
        memory: &Bound<'_, PyAny>,
        scope: &str,
        processes: Option<u64>,
        name: Option<String>,
        overcommit: bool,
    ) -> PyResult<Self> {
        let size = size(memory)?;
        let bytes = if overcommit { size.bytes() } else { size.budget_bytes() }.map_err(|e| raise(&e))?;
        let wrong = |what: &str| Err(raise(&tidegate::Error::Config(what.into())));
        match scope {
            "process" if processes.is_none() && name.is_none() => Ok(Self(memory::Budget::new(bytes))),
            "process" => wrong("processes and name are those of a budget with scope=\"node\""),
            "node" => {
                let made = released(py, || tidegate::loader::ranks::node_budget(bytes, processes, name))?;
                made.map(Self).map_err(|e| raise(&e))
            }
            _ => wrong("scope must be \"process\" or \"node\""),
        }
    }

    /// Make or join the process-wide budget of this size.
    #[staticmethod]
    fn process(memory: &Bound<'_, PyAny>) -> PyResult<Self> {
        memory::Budget::process(&size(memory)?).map(Self).map_err(|e| raise(&e))
    }

    /// Figures of all ranks that share the budget, in bytes, their common cache included; None
    /// with scope="process".
    #[getter]
    fn node<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(node) = self.0.shared_by() else { return Ok(None) };
        let (all, figures, processes) = (node.usage(), PyDict::new(py), PyDict::new(py));
        for (pid, held) in node.held_by_process() {
            processes.set_item(pid, held)?;
        }
        figures.set_item("cap_bytes", all.cap_bytes)?;
        figures.set_item("charged_bytes", all.charged_bytes)?;
        figures.set_item("peak_bytes", all.peak_bytes)?;
        figures.set_item("common_bytes", node.segments_held_bytes())?;
        figures.set_item("processes", processes)?;
        Ok(Some(figures))
    }

    /// The cap in bytes; with scope="node", this process's part.
    #[getter]
    fn cap_bytes(&self) -> u64 {
        self.0.cap_bytes()
    }

    /// Bytes charged now, resident holes included.
    #[getter]
    fn charged_bytes(&self) -> u64 {
        self.0.usage().charged_bytes
    }

    /// The most bytes ever charged.
    #[getter]
    fn peak_bytes(&self) -> u64 {
        self.0.usage().peak_bytes
    }

    /// Return {account: bytes held now}.
    fn accounts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let accounts = PyDict::new(py);
        for &account in Account::ALL {
            accounts.set_item(account.name(), self.0.account(account).held_bytes)?;
        }
        Ok(accounts)
    }

    /// Return an array that is charged to the account `user` until its last view is gone.
    ///
    /// Its elements are not set. Raises BudgetError where it does not fit.
    fn empty<'py>(&self, py: Python<'py>, shape: Vec<usize>, dtype: &str) -> PyResult<Bound<'py, PyAny>> {
        let dtype = DType::parse(dtype).map_err(|e| raise(&tidegate::Error::Config(e)))?;
        let bytes = shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d as u64));
        let bytes = bytes
            .ok_or_else(|| raise(&tidegate::Error::Config(format!("a shape of {shape:?} is absurd"))))?;
        let block = self.0.try_block(Account::User, bytes, Priority::NextBatch).map_err(|e| raise(&e))?;
        crate::array::over_block(py, block, shape, dtype)
    }

    /// Return the same budget, with arrays in memory that worker processes can map.
    fn shared(&self) -> Self {
        Self(self.0.shared())
    }

    /// Return (file, its length, offset) of an address in shared memory, or None.
    fn place(&self, address: usize) -> Option<(i32, u64, u64)> {
        self.0.place(address).map(|at| (at.file, at.file_bytes, at.offset))
    }

    /// Return the pages of all holes to the kernel.
    fn trim(&self, py: Python<'_>) {
        py.detach(|| self.0.trim());
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pyo3::exceptions::PyTypeError::new_err(
            "a Budget belongs to its process: make one in each process; with scope=\"node\" and the same size, processes and name \
             they are one",
        ))
    }

    fn __repr__(&self) -> String {
        format!(
            "Budget({} MiB, {} MiB charged, peak {} MiB)",
            memory::size::mib(self.0.cap_bytes()),
            memory::size::mib(self.charged_bytes()),
            memory::size::mib(self.peak_bytes())
        )
    }
}
