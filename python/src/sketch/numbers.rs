//! Sketches of numbers: moments, quantiles, and the distance of two distributions.
//!
//! Flow: arrays of numbers -> `tidegate_sketch::{moments,quantile}`.
//! Memory: `size_bytes` of each sketch.

use numpy::PyArray1;
use pyo3::prelude::*;
use tidegate_sketch::{moments, quantile};

use super::class::{raised, sketch};
use super::values::{Values, doubles, given, singles};

sketch! {
    /// Count, mean, variance, extremes and, with `shape`, skewness and kurtosis.
    ///
    /// The results are the same bits however a stream is divided.
    Moments(moments::Moments) stored merged {
        #[new]
        #[pyo3(signature = (*, shape = false))]
        fn new(shape: bool) -> PyResult<Self> {
            Self::of(Ok(moments::Moments::new(shape)))
        }

        /// Add an array of numbers of any shape; NaN and infinities are counted separately.
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

        /// The number of finite values.
        #[getter]
        fn count(&self) -> u64 {
            self.lock().summary().count
        }

        /// The number of NaN.
        #[getter]
        fn nan(&self) -> u64 {
            self.lock().summary().nan
        }

        /// The number of infinities.
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

        /// Return the variance, divided by count - `ddof`.
        #[pyo3(signature = (ddof = 0))]
        fn var(&self, ddof: u64) -> f64 {
            self.lock().summary().variance(ddof)
        }

        /// Return the standard deviation, with `ddof` as in `var`.
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

                /// Add an array of numbers, as float32. Raises ConfigError for NaN.
                fn update(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
                    let values = singles(values)?;
                    let values = values.as_slice()?;
                    self.with(py, |sketch| sketch.update(values)).map_err(raised)
                }

                /// Return the values at these ranks, 0 to 1.
                fn quantiles<'py>(&self, py: Python<'py>, ranks: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<f32>>> {
                    let ranks = doubles(ranks)?;
                    let found = self.lock().quantiles(ranks.as_slice()?).map_err(raised)?;
                    Ok(given(py, found))
                }

                /// Return the fraction of values that are not greater than `value`.
                fn rank(&self, value: f32) -> PyResult<f64> {
                    self.lock().rank(value).map_err(raised)
                }

                /// The number of values so far.
                #[getter]
                fn count(&self) -> u64 {
                    self.lock().count()
                }
            }
        }
    };
}

quantiles! {
    /// Quantiles whose rank is off by at most `error`, with probability 0.99 (KLL).
    Kll, quantile::Kll, {
        #[new]
        #[pyo3(signature = (k = 200))]
        fn new(k: u16) -> PyResult<Self> {
            Self::of(quantile::Kll::new(k))
        }

        /// The most by which a rank is off, with probability 0.99.
        #[getter]
        fn error(&self) -> f64 {
            self.lock().error()
        }
    }
}

quantiles! {
    /// Quantiles with a small relative error of rank at one end (REQ).
    ///
    /// `high` puts that end at the greatest values (default), else at the least.
    Req, quantile::Req, {
        #[new]
        #[pyo3(signature = (k = 12, *, high = true))]
        fn new(k: u16, high: bool) -> PyResult<Self> {
            Self::of(quantile::Req::new(k, high))
        }

        /// Return bounds of a rank, three standard deviations apart from it.
        fn rank_bounds(&self, rank: f64) -> PyResult<(f64, f64)> {
            self.lock().rank_bounds(rank).map_err(raised)
        }
    }
}

/// Test whether two streams differ (Kolmogorov-Smirnov): (statistic, threshold, whether they do).
///
/// `delta` is the probability of a false alarm, by default 0.01.
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
