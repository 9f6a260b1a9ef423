//! Sketches of numbers: moments, quantiles, and the distance of two distributions.
//!
//! Flow: arrays of numbers -> `tidegate_sketch::{moments,quantile}`.
//! Memory: as `size_bytes` says.

use numpy::PyArray1;
use pyo3::prelude::*;
use tidegate_sketch::{moments, quantile};

use super::values::{Values, doubles, given, singles};
use super::{raised, sketch};

sketch! {
    /// Count, mean, variance, extremes and, with `shape`, skewness and kurtosis; bit for bit the same however a stream is cut.
    Moments(moments::Moments) stored merged {
        #[new]
        #[pyo3(signature = (*, shape = false))]
        fn new(shape: bool) -> PyResult<Self> {
            Self::of(Ok(moments::Moments::new(shape)))
        }

        /// Takes an array of numbers of any shape; what is NaN or infinite is counted apart.
        fn update(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
            if let Values::Singles(values) = &Values::of(values)? {
                let values = values.as_slice()?;
                self.with(py, |sketch| sketch.update(values));
                return Ok(());
            }
            let values = doubles(values)?;
            let values = values.as_slice()?;
            self.with(py, |sketch| sketch.update(values));
            Ok(())
        }

        /// The count of finite values.
        #[getter]
        fn count(&self) -> u64 {
            self.lock().summary().count
        }

        /// How many values were NaN.
        #[getter]
        fn nan(&self) -> u64 {
            self.lock().summary().nan
        }

        /// How many values were infinite.
        #[getter]
        fn infinite(&self) -> u64 {
            self.lock().summary().infinite
        }

        /// The mean of the finite values; NaN if there is none.
        #[getter]
        fn mean(&self) -> f64 {
            let all = self.lock().summary();
            if all.count == 0 { f64::NAN } else { all.mean }
        }

        /// The least finite value, or inf.
        #[getter]
        fn min(&self) -> f64 {
            self.lock().summary().min
        }

        /// The greatest finite value, or -inf.
        #[getter]
        fn max(&self) -> f64 {
            self.lock().summary().max
        }

        /// The variance, over count - ddof.
        #[pyo3(signature = (ddof = 0))]
        fn var(&self, ddof: u64) -> f64 {
            self.lock().summary().variance(ddof)
        }

        /// The standard deviation.
        #[pyo3(signature = (ddof = 0))]
        fn std(&self, ddof: u64) -> f64 {
            self.lock().summary().std(ddof)
        }

        /// The third standardized moment; NaN without `shape`.
        #[getter]
        fn skewness(&self) -> f64 {
            let sketch = self.lock();
            if sketch.has_shape() { sketch.summary().skewness() } else { f64::NAN }
        }

        /// The fourth standardized moment less 3; NaN without `shape`.
        #[getter]
        fn kurtosis(&self) -> f64 {
            let sketch = self.lock();
            if sketch.has_shape() { sketch.summary().kurtosis() } else { f64::NAN }
        }
    }
}

macro_rules! quantiles {
    ($(#[$doc:meta])* $name:ident, $inner:ty, { $($methods:tt)* }) => {
        sketch! {
            $(#[$doc])*
            $name($inner) stored merged {
                $($methods)*

                /// Takes an array of numbers, as singles; NaN is an error.
                fn update(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
                    let values = singles(values)?;
                    let values = values.as_slice()?;
                    self.with(py, |sketch| sketch.update(values)).map_err(raised)
                }

                /// The values at these ranks, between 0 and 1.
                fn quantiles<'py>(&self, py: Python<'py>, ranks: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<f32>>> {
                    let ranks = doubles(ranks)?;
                    let found = self.lock().quantiles(ranks.as_slice()?).map_err(raised)?;
                    Ok(given(py, found))
                }

                /// The fraction of values that are not greater.
                fn rank(&self, value: f32) -> PyResult<f64> {
                    self.lock().rank(value).map_err(raised)
                }

                /// Values so far.
                #[getter]
                fn count(&self) -> u64 {
                    self.lock().count()
                }
            }
        }
    };
}

quantiles! {
    /// Quantiles whose rank is off by at most `error`, with 99 % certainty (KLL).
    Kll, quantile::Kll, {
        #[new]
        #[pyo3(signature = (k = 200))]
        fn new(k: u16) -> PyResult<Self> {
            Self::of(quantile::Kll::new(k))
        }

        /// By how much a rank may be off.
        #[getter]
        fn error(&self) -> f64 {
            self.lock().error()
        }
    }
}

quantiles! {
    /// Quantiles whose relative error of rank is small towards the greatest values, or the least (REQ).
    Req, quantile::Req, {
        #[new]
        #[pyo3(signature = (k = 12, *, high = true))]
        fn new(k: u16, high: bool) -> PyResult<Self> {
            Self::of(quantile::Req::new(k, high))
        }

        /// What a rank lies between, with three standard deviations' certainty.
        fn rank_bounds(&self, rank: f64) -> PyResult<(f64, f64)> {
            self.lock().rank_bounds(rank).map_err(raised)
        }
    }
}

/// The Kolmogorov-Smirnov test of two KLL sketches: (statistic, threshold, whether the streams differ).
#[pyfunction]
#[pyo3(signature = (one, other, *, delta = 0.01))]
fn ks(py: Python<'_>, one: &Kll, other: &Kll, delta: f64) -> PyResult<(f64, f64, bool)> {
    let (one, other) = (one.lock().clone(), other.lock().clone());
    let distance = py.detach(|| quantile::ks(&one, &other, delta)).map_err(raised)?;
    Ok((distance.statistic, distance.threshold, distance.differs()))
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Moments>()?;
    module.add_class::<Kll>()?;
    module.add_class::<Req>()?;
    module.add_function(wrap_pyfunction!(ks, module)?)
}
