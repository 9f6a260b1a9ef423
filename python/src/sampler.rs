//! Samplers: the ids that a user gives, as an array, a function of the epoch, or an iterator.
//!
//! Flow: what `tidegate/sampler.py` made of it -> [`Ids`]; called when an epoch begins, and by the feed for each id of an iterator.
//! Memory: the ids of an array, once.

use std::sync::Arc;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use tidegate::Error;
use tidegate_data::order::given::{Ids, List, Listing};

/// An array of ids, or a function of the epoch with the length of an epoch and whether it gives arrays or iterators.
#[derive(FromPyObject)]
pub(crate) enum Sampler<'py> {
    Array(PyReadonlyArray1<'py, u64>),
    Function(Py<PyAny>, u64, bool),
}

impl Sampler<'_> {
    /// As the loader wants it.
    pub(crate) fn ids(self) -> PyResult<Arc<dyn Ids>> {
        Ok(match self {
            Self::Array(ids) => Arc::new(List(ids.as_slice()?.into())),
            Self::Function(function, len, listed) => Arc::new(Function { function, len, listed }),
        })
    }
}

#[derive(Debug)]
struct Function {
    function: Py<PyAny>,
    len: u64,
    listed: bool,
}

fn raised(error: PyErr) -> Error {
    Error::Config(format!("the sampler raised {error}"))
}

impl Ids for Function {
    fn len(&self) -> u64 {
        self.len
    }

    fn listed(&self) -> bool {
        self.listed
    }

    fn epoch(&self, epoch: u64) -> tidegate::Result<Listing> {
        let given = Python::attach(|py| {
            let given = self.function.bind(py).call1((epoch,))?;
            if !self.listed {
                let next = given.getattr("__next__")?.unbind();
                return Ok(Listing::Pulled(Box::new(move || pull(&next))));
            }
            Ok(Listing::All(given.extract::<PyReadonlyArray1<'_, u64>>()?.as_slice()?.into()))
        });
        given.map_err(raised)
    }
}

/// The next id of an iterator.
fn pull(next: &Py<PyAny>) -> tidegate::Result<Option<u64>> {
    Python::attach(|py| match next.bind(py).call0() {
        Ok(id) => id.extract().map(Some),
        Err(end) if end.is_instance_of::<pyo3::exceptions::PyStopIteration>(py) => Ok(None),
        Err(error) => Err(error),
    })
    .map_err(raised)
}
