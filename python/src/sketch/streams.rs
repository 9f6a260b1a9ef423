//! Sketches that depend on the order of a stream: samples, windows, drift, events, models.
//!
//! Flow: arrays -> `tidegate_sketch::{reservoir,window,drift,event,online}` -> one answer a value.
//! Memory: `size_bytes` of each sketch.

use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tidegate_sketch::{drift, event, online, reservoir, window};

use super::class::{raised, sketch};
use super::values::{doubles, given, ids, table};
use crate::errors::classes::ConfigError;

sketch! {
    /// A random sample of `k` ids of a stream, uniform or by weight (Algorithm L, A-ExpJ).
    Reservoir(reservoir::Reservoir) stored merged {
        #[new]
        #[pyo3(signature = (k, seed = 0))]
        fn new(k: usize, seed: u64) -> PyResult<Self> {
            Self::of(reservoir::Reservoir::new(k, seed))
        }

        /// Offer ids, each with its weight, by default 1; an id of weight 0 is never taken.
        #[pyo3(signature = (ids, weights = None))]
        fn update(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, weights: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
            let (ids, weights) = (self::ids(ids)?, weights.map(doubles).transpose()?);
            let (ids, weights) = (ids.as_slice()?, weights.as_ref().map(|weights| weights.as_slice()).transpose()?);
            if let Some(weights) = weights.filter(|weights| weights.len() != ids.len()) {
                return Err(ConfigError::new_err(format!("{} weights for {} ids", weights.len(), ids.len())));
            }
            self.with(py, |sample| match weights {
                Some(weights) => {
                    if let Some(at) = weights.iter().position(|w| !(*w >= 0.0 && w.is_finite())) {
                        // An array with such a weight is refused as a whole.
                        return sample.clone().offer(ids[at], weights[at]).map(drop);
                    }
                    ids.iter().zip(weights).try_for_each(|(&id, &weight)| sample.offer(id, weight).map(drop))
                }
                None => {
                    sample.offer_ids(ids);
                    Ok(())
                }
            })
            .map_err(raised)
        }

        /// The number of values of weight 1 that may be passed over, unread, before one must be
        /// offered.
        #[getter]
        fn skip(&self) -> u64 {
            self.lock().skip()
        }

        /// Pass over `values` values, at most `skip`.
        fn pass_over(&self, values: u64) -> PyResult<()> {
            let mut sample = self.lock();
            if values > sample.skip() {
                return Err(ConfigError::new_err(format!("{values} are passed over, but only {} may be", sample.skip())));
            }
            sample.pass(values);
            Ok(())
        }

        /// The ids in the sample, in arbitrary order.
        #[getter]
        fn ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
            given(py, self.lock().ids())
        }

        /// The number of values so far.
        #[getter]
        fn seen(&self) -> u64 {
            self.lock().seen()
        }
    }
}

sketch! {
    /// The exact minimum, maximum, sum or mean of the last `len` values.
    ///
    /// `aggregate` is "min", "max", "sum" or "mean".
    Window(window::Window) stored {
        #[new]
        fn new(len: usize, aggregate: &str) -> PyResult<Self> {
            let aggregate = match aggregate {
                "min" => window::Aggregate::Min,
                "max" => window::Aggregate::Max,
                "sum" => window::Aggregate::Sum,
                "mean" => window::Aggregate::Mean,
                other => {
                    return Err(ConfigError::new_err(format!(
                        "aggregate must be 'min', 'max', 'sum' or 'mean', not {other:?}"
                    )));
                }
            };
            Self::of(window::Window::new(len, aggregate))
        }

        /// Add values and return the aggregate after each.
        fn update<'py>(&self, py: Python<'py>, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<f64>>> {
            let values = doubles(values)?;
            let values = values.as_slice()?;
            let after = self.with(py, |window| values.iter().map(|&x| window.push(x)).collect::<Result<Vec<_>, _>>());
            Ok(given(py, after.map_err(raised)?))
        }

        /// The aggregate now.
        #[getter]
        fn value(&self) -> f64 {
            self.lock().value()
        }

        /// Forget all values.
        fn reset(&self) {
            self.lock().reset();
        }
    }
}

sketch! {
    /// Number of events among the last `window` values (exponential histogram).
    ///
    /// The relative error is at most `epsilon`.
    EventCount(window::EventCount) stored {
        #[new]
        #[pyo3(signature = (window, epsilon = 0.01))]
        fn new(window: u64, epsilon: f64) -> PyResult<Self> {
            Self::of(window::EventCount::new(window, epsilon))
        }

        /// Add values; each that is not 0 is an event.
        fn update(&self, py: Python<'_>, events: &Bound<'_, PyAny>) -> PyResult<()> {
            let events = doubles(events)?;
            let events = events.as_slice()?;
            self.with(py, |count| events.iter().for_each(|&event| count.push(event != 0.0)));
            Ok(())
        }

        /// The estimated number of events in the window.
        #[getter]
        fn estimate(&self) -> f64 {
            self.lock().estimate()
        }
    }
}

/// An array with a value that is not valid is refused as a whole.
fn numbers(values: &[f64], fits: impl Fn(f64) -> bool) -> tidegate_sketch::Result<()> {
    match values.iter().position(|&x| !fits(x)) {
        None => Ok(()),
        Some(at) => Err(tidegate_sketch::Error::Value {
            at,
            value: values[at].to_string(),
            expected: "give finite numbers".into(),
        }),
    }
}

/// Returns the places of the values that raised an alarm.
fn alarms<D: Send>(
    values: &[f64],
    detector: &mut D,
    update: impl Fn(&mut D, f64) -> tidegate_sketch::Result<bool>,
) -> tidegate_sketch::Result<Vec<i64>> {
    numbers(values, |x| x.is_finite())?;
    let mut found = Vec::new();
    for (at, &value) in values.iter().enumerate() {
        if update(detector, value)? {
            found.push(at as i64);
        }
    }
    Ok(found)
}

sketch! {
    /// Detects a change of a stream's mean, with a bounded rate `delta` of false alarms (ADWIN).
    ///
    /// It raises the same alarms as river.
    Adwin(drift::Adwin) stored {
        #[new]
        #[pyo3(signature = (delta = 0.002))]
        fn new(delta: f64) -> PyResult<Self> {
            Self::of(drift::Adwin::new(delta))
        }

        /// Add values and return the places, in this array, of those that raised an alarm.
        fn update<'py>(&self, py: Python<'py>, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<i64>>> {
            let values = doubles(values)?;
            let values = values.as_slice()?;
            let found = self.with(py, |adwin| alarms(values, adwin, drift::Adwin::update)).map_err(raised)?;
            Ok(given(py, found))
        }

        /// The mean of the window.
        #[getter]
        fn mean(&self) -> f64 {
            self.lock().mean()
        }

        /// The number of values in the window.
        #[getter]
        fn width(&self) -> u64 {
            self.lock().width()
        }

        /// The number of alarms so far.
        #[getter]
        fn alarms(&self) -> u64 {
            self.lock().alarms()
        }

        /// Forget the window.
        fn reset(&self) {
            self.lock().reset();
        }
    }
}

sketch! {
    /// Detects a rise or fall of a stream's mean (Page-Hinkley).
    ///
    /// It raises the same alarms as river.
    PageHinkley(drift::PageHinkley) stored {
        #[new]
        #[pyo3(signature = (delta = 0.005, threshold = 50.0))]
        fn new(delta: f64, threshold: f64) -> PyResult<Self> {
            Self::of(drift::PageHinkley::new(delta, threshold))
        }

        /// Add values and return the places, in this array, of those that raised an alarm.
        fn update<'py>(&self, py: Python<'py>, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<i64>>> {
            let values = doubles(values)?;
            let values = values.as_slice()?;
            let found = self.with(py, |test| alarms(values, test, drift::PageHinkley::update)).map_err(raised)?;
            Ok(given(py, found))
        }

        /// Forget the stream.
        fn reset(&self) {
            self.lock().reset();
        }
    }
}

sketch! {
    /// A metric that is sent only when it differs by more than `delta` from the last sent value.
    ///
    /// `capacity` is the number of unsent events that are kept.
    SendOnDelta(event::SendOnDelta) stored {
        #[new]
        #[pyo3(signature = (delta, capacity = 1024))]
        fn new(delta: f64, capacity: usize) -> PyResult<Self> {
            Self::of(event::SendOnDelta::new(delta, capacity))
        }

        /// Add values and return which of them are events.
        fn update<'py>(&self, py: Python<'py>, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<bool>>> {
            let values = doubles(values)?;
            let values = values.as_slice()?;
            let sent = self.with(py, |metric| values.iter().map(|&x| metric.offer(x)).collect::<Result<Vec<_>, _>>());
            Ok(given(py, sent.map_err(raised)?))
        }

        /// Return and remove the waiting events: (place in the stream, value).
        fn drain(&self) -> Vec<(u64, f64)> {
            self.lock().drain()
        }

        /// (values, events, events dropped because `drain` came too late).
        #[getter]
        fn counts(&self) -> (u64, u64, u64) {
            self.lock().counts()
        }
    }
}

sketch! {
    /// Detects samples whose bytes changed, by a hash of 128 bits; for `capacity` ids.
    Unchanged(event::Unchanged) stored {
        #[new]
        fn new(capacity: usize) -> PyResult<Self> {
            Self::of(event::Unchanged::new(capacity))
        }

        /// Return whether these bytes differ from the last ones of `id`.
        fn changed(&self, py: Python<'_>, id: u64, bytes: &[u8]) -> bool {
            self.with(py, |seen| seen.changed(id, bytes))
        }

        /// (ids remembered, unchanged answers, ids refused for lack of space).
        #[getter]
        fn counts(&self) -> (u64, u64, u64) {
            self.lock().counts()
        }
    }
}

sketch! {
    /// A linear model that learns from a stream in one pass, and forgets when the stream changes.
    ///
    /// `target` is "number" (least squares) or "class" (0 or 1, by log-odds). `rate` is the
    /// learning rate, by default 0.1.
    Online(online::Online) stored merged {
        #[new]
        #[pyo3(signature = (features, target = "number", rate = 0.1))]
        fn new(features: usize, target: &str, rate: f64) -> PyResult<Self> {
            let target = match target {
                "number" => online::Target::Number,
                "class" => online::Target::Class,
                other => return Err(ConfigError::new_err(format!("target must be 'number' or 'class', not {other:?}"))),
            };
            Self::of(online::Online::new(features, target, rate))
        }

        /// Learn from rows and targets; return the mean loss before, and whether the stream
        /// changed.
        fn learn(&self, py: Python<'_>, rows: &Bound<'_, PyAny>, targets: &Bound<'_, PyAny>) -> PyResult<(f64, bool)> {
            let (rows, targets) = (self.rows(rows)?, doubles(targets)?);
            let (rows, targets) = (rows.as_slice()?, targets.as_slice()?);
            self.with(py, |model| model.learn(rows, targets)).map_err(raised)
        }

        /// Return the prediction for each row: a number, or the probability of class 1.
        fn predict<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<f64>>> {
            let rows = self.rows(rows)?;
            let rows = rows.as_slice()?;
            Ok(given(py, self.with(py, |model| model.predict(rows)).map_err(raised)?))
        }

        /// One weight a feature, then the constant.
        #[getter]
        fn weights<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
            given(py, self.lock().weights().to_vec())
        }

        /// The number of changes of the stream.
        #[getter]
        fn drifts(&self) -> u64 {
            self.lock().drifts()
        }
    }
}

impl Online {
    fn rows<'py>(&self, rows: &Bound<'py, PyAny>) -> PyResult<numpy::PyReadonlyArray2<'py, f64>> {
        let (rows, features) = (table::<f64>(rows, "float64")?, self.lock().weights().len() - 1);
        if rows.shape()[1] != features {
            return Err(ConfigError::new_err(format!(
                "rows have {} features, the model {features}",
                rows.shape()[1]
            )));
        }
        Ok(rows)
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Reservoir>()?;
    module.add_class::<Window>()?;
    module.add_class::<EventCount>()?;
    module.add_class::<Adwin>()?;
    module.add_class::<PageHinkley>()?;
    module.add_class::<SendOnDelta>()?;
    module.add_class::<Unchanged>()?;
    module.add_class::<Online>()
}
