//! Samplers of the user: an array of ids, a function of the epoch, or an iterator.
//!
//! Flow: the result of `prepared` in `tidegate/sampler.py` -> [`Ids`]; called when an epoch
//! begins, and by the reader for each id of an iterator.
//! Memory: one copy of the ids of an array.

use std::cell::RefCell;
use std::sync::Arc;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use tidegate::{Budget, Options, Source};
use tidegate_order::Error;
use tidegate_order::Order;
use tidegate_order::explicit::{ExplicitOrder, Ids, List, Listing};

use crate::drawn::Drawn;
use crate::errors::{raise, released};

/// One of `drawn`; an array of ids; or a function of the epoch, with the length of an epoch and
/// whether it returns arrays or iterators.
#[derive(FromPyObject)]
pub(crate) enum Sampler<'py> {
    Drawn(PyRef<'py, Drawn>),
    Array(PyReadonlyArray1<'py, u64>),
    Function(Py<PyAny>, u64, bool),
}

thread_local! {
    /// The loaders whose samplers this thread is calling.
    static ASKING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A loader's identity, by which a call from its own sampler is recognized.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker(Arc<u8>);

impl Asker {
    fn number(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Whether this thread is calling the loader's sampler.
    pub(crate) fn asks(&self) -> bool {
        ASKING.with_borrow(|asking| asking.contains(&self.number()))
    }

    /// Calls the sampler.
    fn ask<T>(&self, sampler: impl FnOnce(Python<'_>) -> PyResult<T>) -> tidegate_order::Result<T> {
        ASKING.with_borrow_mut(|asking| asking.push(self.number()));
        let answer = Python::attach(sampler);
        ASKING.with_borrow_mut(Vec::pop);
        answer.map_err(|error| Error::sampler(format!("the sampler raised {error}")))
    }
}

impl Sampler<'_> {
    /// Returns the order that the loader takes.
    pub(crate) fn order(
        self,
        py: Python<'_>,
        asker: &Asker,
        source: &dyn Source,
        options: &Options,
        budget: &Budget,
    ) -> PyResult<Arc<dyn Order>> {
        let ids: Arc<dyn Ids> = match self {
            Self::Drawn(drawn) => return drawn.order(py, source, options, budget),
            Self::Array(ids) => Arc::new(List(ids.as_slice()?.into())),
            Self::Function(function, len, listed) => {
                Arc::new(Function { function, len, listed, asker: asker.clone() })
            }
        };
        let runs = source.shard_lengths().len() as u64;
        let order =
            released(py, || ExplicitOrder::new(ids, source.len(), runs, budget))?.map_err(|e| raise(&e))?;
        Ok(Arc::new(order))
    }
}

#[derive(Debug)]
struct Function {
    function: Py<PyAny>,
    len: u64,
    listed: bool,
    asker: Asker,
}

impl Ids for Function {
    fn len(&self) -> u64 {
        self.len
    }

    fn listed(&self) -> bool {
        self.listed
    }

    fn epoch(&self, epoch: u64) -> tidegate_order::Result<Listing> {
        self.asker.ask(|py| {
            let given = self.function.bind(py).call1((epoch,))?;
            if self.listed {
                return Ok(Listing::All(given.extract::<PyReadonlyArray1<'_, u64>>()?.as_slice()?.into()));
            }
            let (next, asker) = (given.getattr("__next__")?.unbind(), self.asker.clone());
            Ok(Listing::Stream(Box::new(move || asker.ask(|py| pull(py, &next)))))
        })
    }
}

/// Returns the next id of an iterator.
fn pull(py: Python<'_>, next: &Py<PyAny>) -> PyResult<Option<u64>> {
    match next.bind(py).call0() {
        Ok(id) => id.extract().map(Some),
        Err(end) if end.is_instance_of::<pyo3::exceptions::PyStopIteration>(py) => Ok(None),
        Err(error) => Err(error),
    }
}
