//! Sketches of distinct values, of counts and of frequent items.
//!
//! Flow: arrays of numbers, texts or bytes -> `tidegate_sketch::{distinct,frequency}`; one hash a
//! value.
//! Memory: `size_bytes` of each sketch.

use numpy::PyArray1;
use pyo3::prelude::*;
use tidegate_sketch::distinct::{self, Estimate};
use tidegate_sketch::frequency::{self, Frequent};

use super::class::{raised, sketch};
use super::values::{Slices, Values, given, ids};
use crate::errors::classes::ConfigError;

fn estimate(estimate: tidegate_sketch::Result<Estimate>) -> PyResult<(f64, f64, f64)> {
    estimate.map(|e| (e.value, e.low, e.high)).map_err(raised)
}

macro_rules! distinct {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $($has:ident)*, { $($methods:tt)* }) => {
        sketch! {
            $(#[$doc])*
            $name($inner) $($has)* {
                $($methods)*

                /// Count the values of an array: numbers, strings or bytes.
                fn update(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
                    let values = Values::of(values)?;
                    let values = values.slices()?;
                    self.with(py, |sketch| values.keys(|key| sketch.add(&key)));
                    Ok(())
                }

                /// Return the number of distinct values, with bounds: (estimate, low, high).
                ///
                /// The bounds are `deviations` standard deviations apart from the estimate, 1 to
                /// 3.
                #[pyo3(signature = (deviations = 2))]
                fn estimate(&self, py: Python<'_>, deviations: u8) -> PyResult<(f64, f64, f64)> {
                    estimate(self.with(py, |sketch| sketch.estimate(deviations)))
                }
            }
        }
    };
}

distinct! {
    /// Number of distinct values (HyperLogLog).
    ///
    /// `lg_k` is the base-2 logarithm of the number of registers, 4 to 21. The bytes are those of
    /// Apache DataSketches.
    Hll, distinct::Hll, stored merged, {
        #[new]
        #[pyo3(signature = (lg_k = 12))]
        fn new(lg_k: u8) -> PyResult<Self> {
            Self::of(distinct::Hll::new(lg_k))
        }
    }
}

distinct! {
    /// Number of distinct values (CPC), in fewer stored bytes than `Hll`.
    ///
    /// `lg_k` is the base-2 logarithm of its size, 4 to 26. The bytes are those of Apache
    /// DataSketches.
    Cpc, distinct::Cpc, stored merged, {
        #[new]
        #[pyo3(signature = (lg_k = 11))]
        fn new(lg_k: u8) -> PyResult<Self> {
            Self::of(distinct::Cpc::new(lg_k))
        }
    }
}

distinct! {
    /// Number of distinct values, also of unions and intersections of streams (Theta).
    ///
    /// `lg_k` is the base-2 logarithm of the number of hashes, 5 to 26. The bytes are those of
    /// Apache DataSketches.
    Theta, distinct::Theta, , {
        #[new]
        #[pyo3(signature = (lg_k = 12))]
        fn new(lg_k: u8) -> PyResult<Self> {
            Self::of(distinct::Theta::new(lg_k))
        }

        /// Return a sketch of the values in either stream.
        fn union(&self, other: &Self) -> PyResult<Self> {
            let other = other.try_clone()?;
            Self::of(self.lock().union(&other))
        }

        /// Return a sketch of the values in both streams.
        fn intersection(&self, other: &Self) -> PyResult<Self> {
            let other = other.try_clone()?;
            Self::of(self.lock().intersection(&other))
        }

        /// Return a sketch of the values in this stream only.
        fn difference(&self, other: &Self) -> PyResult<Self> {
            let other = other.try_clone()?;
            Self::of(self.lock().difference(&other))
        }

        /// Add the values of another stream.
        fn merge(&self, other: &Self) -> PyResult<()> {
            let other = other.try_clone()?;
            self.lock().merge(&other).map_err(raised)
        }

        /// Return the bytes of Apache DataSketches, compact and in ascending order.
        fn to_bytes(&self) -> PyResult<Vec<u8>> {
            self.lock().to_bytes().map_err(raised)
        }

        /// Read bytes of Apache DataSketches, which do not contain `lg_k`.
        #[staticmethod]
        #[pyo3(signature = (bytes, lg_k = 12))]
        fn from_bytes(bytes: &[u8], lg_k: u8) -> PyResult<Self> {
            Self::of(distinct::Theta::from_bytes(bytes, lg_k))
        }
    }
}

impl Theta {
    /// A copy, so that two locks are never held together.
    fn try_clone(&self) -> PyResult<distinct::Theta> {
        let sketch = self.lock();
        sketch.try_clone().map_err(raised)
    }
}

sketch! {
    /// Counts of values, never too small (Count-Min).
    ///
    /// A count is too large by at most `epsilon` times the sum of all counts, except for a
    /// fraction `delta` of values.
    CountMin(frequency::CountMin) stored merged {
        #[new]
        #[pyo3(signature = (epsilon = 0.001, delta = 0.01, *, conservative = false))]
        fn new(epsilon: f64, delta: f64, conservative: bool) -> PyResult<Self> {
            Self::of(frequency::CountMin::new(epsilon, delta, conservative))
        }

        /// Count the values of an array, each once or `counts` times.
        #[pyo3(signature = (values, counts = None))]
        fn update(&self, py: Python<'_>, values: &Bound<'_, PyAny>, counts: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
            let (values, counts) = (Values::of(values)?, counts.map(ids).transpose()?);
            let slices = values.slices()?;
            let counts = counts.as_ref().map(|counts| counts.as_slice()).transpose()?;
            if let Some(counts) = counts.filter(|counts| counts.len() != slices.len()) {
                return Err(ConfigError::new_err(format!("{} counts for {} values", counts.len(), slices.len())));
            }
            self.with(py, |sketch| {
                let mut at = 0;
                slices.keys(|key| {
                    sketch.add(&key, counts.map_or(1, |counts| counts[at]));
                    at += 1;
                });
            });
            Ok(())
        }

        /// Return an upper bound of the count of each value.
        fn estimate<'py>(&self, py: Python<'py>, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<u64>>> {
            let values = Values::of(values)?;
            let slices = values.slices()?;
            let found = self.with(py, |sketch| {
                let mut found = Vec::with_capacity(slices.len());
                slices.keys(|key| found.push(sketch.estimate(&key)));
                found
            });
            Ok(given(py, found))
        }

        /// The sum of all counts.
        #[getter]
        fn total(&self) -> u64 {
            self.lock().total()
        }

        /// The most by which an estimate is too large, except for a fraction `delta` of values.
        #[getter]
        fn error_bound(&self) -> f64 {
            self.lock().error_bound()
        }
    }
}

/// Items are integers or texts; the first array decides which.
#[derive(Debug, Clone)]
enum Items {
    None(u8),
    Words(frequency::FrequentItems<i64>),
    Texts(frequency::FrequentItems<String>),
}

impl Items {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::None(_) => 0,
            Self::Words(items) => items.size_bytes(),
            Self::Texts(items) => items.size_bytes(),
        }
    }
}

fn rows<'py, T: IntoPyObject<'py>>(
    py: Python<'py>,
    top: Vec<Frequent<T>>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let row = |row: Frequent<T>| Ok((row.item, row.at_least, row.at_most).into_pyobject(py)?.into_any());
    top.into_iter().map(row).collect()
}

sketch! {
    /// The most frequent values, with bounds of their counts.
    ///
    /// `lg_size` is the base-2 logarithm of the number of values that are tracked. The bytes are
    /// those of Apache DataSketches.
    FrequentItems(Items) {
        #[new]
        #[pyo3(signature = (lg_size = 10))]
        fn new(lg_size: u8) -> PyResult<Self> {
            Self::of(frequency::FrequentItems::<i64>::new(lg_size).map(|_| Items::None(lg_size)))
        }

        /// Count the values of an array: integers or texts.
        fn update(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
            let values = Values::of(values)?;
            let slices = values.slices()?;
            self.with(py, |items| counted(items, slices))
        }

        /// Return (value, least count, greatest count) of values that may exceed `error`, the most
        /// frequent first.
        fn top<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
            // Python objects are made without the lock: making them may run Python, and another
            // thread.
            let (words, texts) = self.with(py, |items| match items {
                Items::None(_) => (Vec::new(), Vec::new()),
                Items::Words(items) => (items.top(), Vec::new()),
                Items::Texts(items) => (Vec::new(), items.top()),
            });
            Ok([rows(py, words)?, rows(py, texts)?].concat())
        }

        /// The distance of the two bounds of any value.
        #[getter]
        fn error(&self) -> u64 {
            match &*self.lock() {
                Items::None(_) => 0,
                Items::Words(items) => items.error(),
                Items::Texts(items) => items.error(),
            }
        }

        /// The sum of all counts.
        #[getter]
        fn total(&self) -> u64 {
            match &*self.lock() {
                Items::None(_) => 0,
                Items::Words(items) => items.total(),
                Items::Texts(items) => items.total(),
            }
        }

        /// Add the counts of another stream; the errors add up.
        fn merge(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
            let other = other.lock().clone();
            self.with(py, |items| match (&mut *items, other) {
                (_, Items::None(_)) => Ok(()),
                (Items::None(_), other) => {
                    *items = other;
                    Ok(())
                }
                (Items::Words(one), Items::Words(other)) => {
                    one.merge(&other);
                    Ok(())
                }
                (Items::Texts(one), Items::Texts(other)) => {
                    one.merge(&other);
                    Ok(())
                }
                _ => Err(ConfigError::new_err("frequent items of numbers and of texts cannot be merged")),
            })
        }

        /// Return the bytes of Apache DataSketches, of longs or of strings.
        fn to_bytes(&self) -> PyResult<Vec<u8>> {
            match &*self.lock() {
                Items::None(lg_size) => Ok(frequency::FrequentItems::<i64>::new(*lg_size).map_err(raised)?.to_bytes()),
                Items::Words(items) => Ok(items.to_bytes()),
                Items::Texts(items) => Ok(items.to_bytes()),
            }
        }

        /// Read bytes of Apache DataSketches; `texts` says that they are of strings, which they do
        /// not contain.
        #[staticmethod]
        #[pyo3(signature = (bytes, *, texts = false))]
        fn from_bytes(bytes: &[u8], texts: bool) -> PyResult<Self> {
            Self::of(if texts {
                frequency::FrequentItems::from_bytes(bytes).map(Items::Texts)
            } else {
                frequency::FrequentItems::from_bytes(bytes).map(Items::Words)
            })
        }
    }
}

fn counted(items: &mut Items, slices: Slices<'_>) -> PyResult<()> {
    if slices.len() == 0 {
        return Ok(());
    }
    if let Items::None(lg_size) = *items {
        *items = match slices {
            Slices::Texts(..) => Items::Texts(frequency::FrequentItems::new(lg_size).map_err(raised)?),
            Slices::Words(..) => Items::Words(frequency::FrequentItems::new(lg_size).map_err(raised)?),
            _ => {
                return Err(ConfigError::new_err(
                    "frequent items are whole numbers or texts: round floats first",
                ));
            }
        };
    }
    match (items, slices) {
        (Items::Words(items), Slices::Words(values, signed)) => {
            if let Some(value) = values.iter().find(|&&value| !signed && value > i64::MAX as u64) {
                return Err(ConfigError::new_err(format!(
                    "{value} is past 2^63 - 1: frequent items are longs or strings"
                )));
            }
            values.iter().for_each(|&value| items.add(value.cast_signed(), 1));
            Ok(())
        }
        (Items::Texts(items), slices @ Slices::Texts(..)) => {
            let mut wrong = None;
            slices.texts(|text| wrong = wrong.take().or(std::str::from_utf8(text).err()));
            if let Some(error) = wrong {
                return Err(ConfigError::new_err(format!("frequent items are texts in UTF-8: {error}")));
            }
            slices.texts(|text| items.add(String::from_utf8_lossy(text).into_owned(), 1));
            Ok(())
        }
        (items, _) => {
            let of = if matches!(items, Items::Texts(_)) { "texts" } else { "whole numbers" };
            Err(ConfigError::new_err(format!("these frequent items are of {of}, the array is not")))
        }
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Hll>()?;
    module.add_class::<Cpc>()?;
    module.add_class::<Theta>()?;
    module.add_class::<CountMin>()?;
    module.add_class::<FrequentItems>()
}
