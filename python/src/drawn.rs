//! The samplers of `tidegate.samplers` that are computed from parameters.
//!
//! Flow: words, numbers and arrays -> `tidegate::SamplerSpec` or `PatchSampler` -> when a
//! loader is made, an order with its seed and budget.
//! Memory: refers to the user's arrays; the order's tables are charged to the loader's budget.

use std::sync::Arc;

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use tidegate::loader::{
    ClassShares, CurriculumPace, FeedbackRule, MixtureEnd, NumberOrWord, PatchBoxes, PatchSampler, SampleData,
};
use tidegate::{Budget, Error, Options, SamplerSpec, Source};
use tidegate_order::Order;

use crate::errors::{raise, released};

/// Numbers of either precision.
#[derive(Debug, FromPyObject)]
enum Reals {
    Singles(Py<PyArray1<f32>>),
    Doubles(Py<PyArray1<f64>>),
}

/// A number or a word.
#[derive(Debug, FromPyObject)]
enum WordOr {
    Number(u64),
    Word(String),
}

impl WordOr {
    fn parse<T: TryFrom<NumberOrWord, Error = Error>>(self) -> PyResult<T> {
        let given = match self {
            Self::Number(number) => NumberOrWord::Number(number),
            Self::Word(word) => NumberOrWord::Word(word),
        };
        T::try_from(given).map_err(|e| raise(&e))
    }
}

/// The user's array, if a sampler has one.
#[derive(Debug)]
enum Array {
    None,
    Weights(Reals),
    Labels(Py<PyArray1<u32>>),
    Difficulties(Py<PyArray1<f64>>),
}

#[derive(Debug)]
enum Kind {
    Spec(SamplerSpec, Array),
    Patches(PatchSampler),
}

/// A sampler without its seed and budget; `tidegate.samplers` makes it.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Drawn(Kind);

#[pymethods]
impl Drawn {
    fn __repr__(&self) -> String {
        match &self.0 {
            Kind::Spec(spec, _) => format!("Sampler({spec:?})"),
            Kind::Patches(_) => "Sampler(patches)".into(),
        }
    }

    #[staticmethod]
    fn even(positions: Option<u64>) -> Self {
        Self(Kind::Spec(SamplerSpec::Even { positions }, Array::None))
    }

    #[staticmethod]
    fn weighted(weights: Reals, positions: Option<u64>) -> Self {
        Self(Kind::Spec(SamplerSpec::Weighted { positions }, Array::Weights(weights)))
    }

    #[staticmethod]
    fn classes(
        labels: Py<PyArray1<u32>>,
        how: &str,
        beta: f64,
        positions: Option<u64>,
        block: Option<u64>,
    ) -> PyResult<Self> {
        let shares = ClassShares::parse(how).map_err(|e| raise(&e))?;
        let spec = SamplerSpec::Classes { shares, beta, positions, block };
        Ok(Self(Kind::Spec(spec, Array::Labels(labels))))
    }

    #[staticmethod]
    fn mixture(sizes: Vec<u64>, proportions: Vec<f64>, until: WordOr, block: Option<u64>) -> PyResult<Self> {
        let until = until.parse::<MixtureEnd>()?;
        let spec = SamplerSpec::Mixture { sizes, proportions, until, block };
        Ok(Self(Kind::Spec(spec, Array::None)))
    }

    #[staticmethod]
    fn fed(how: &str, value: f64, even: f64, newness: f64, positions: Option<u64>) -> PyResult<Self> {
        let rule = FeedbackRule::parse(how).map_err(|e| raise(&e))?;
        let spec = SamplerSpec::Feedback { rule, value, even, newness, positions };
        Ok(Self(Kind::Spec(spec, Array::None)))
    }

    #[staticmethod]
    fn patches(
        volume: PyRef<'_, crate::volume::Volume>,
        boxes: Option<PyRef<'_, crate::volume::Boxes>>,
        classes: Vec<(i64, f64)>,
        positions: u64,
        window: Option<(u64, u64)>,
    ) -> Self {
        let around = |boxes: PyRef<'_, crate::volume::Boxes>| PatchBoxes {
            boxes: Arc::clone(&boxes.boxes),
            field: boxes.field,
            classes,
        };
        let around = boxes.map(around);
        Self(Kind::Patches(PatchSampler { volume: Arc::clone(&volume.0), positions, around, window }))
    }

    #[staticmethod]
    fn curriculum(
        difficulty: Py<PyArray1<f64>>,
        start: f64,
        epochs: f64,
        pace: WordOr,
        positions: Option<u64>,
    ) -> PyResult<Self> {
        let pace = pace.parse::<CurriculumPace>()?;
        let spec = SamplerSpec::Curriculum { start, epochs, pace, positions };
        Ok(Self(Kind::Spec(spec, Array::Difficulties(difficulty))))
    }
}

impl Drawn {
    /// The order over a source, with the seed of these options.
    pub(crate) fn order(
        &self,
        py: Python<'_>,
        source: &dyn Source,
        options: &Options,
        budget: &Budget,
    ) -> PyResult<Arc<dyn Order>> {
        let (spec, array) = match &self.0 {
            Kind::Patches(sampler) => {
                let order = released(py, || sampler.order(source, options.seed, budget))?;
                return order.map_err(|e| raise(&e));
            }
            Kind::Spec(spec, array) => (spec, array),
        };
        let order = |data| released(py, || spec.order(data, source, options, budget))?.map_err(|e| raise(&e));
        match array {
            Array::None => order(SampleData::None),
            Array::Weights(Reals::Singles(weights)) => {
                order(SampleData::Weights32(weights.bind(py).readonly().as_slice()?))
            }
            Array::Weights(Reals::Doubles(weights)) => {
                order(SampleData::Weights64(weights.bind(py).readonly().as_slice()?))
            }
            Array::Labels(labels) => order(SampleData::Labels(labels.bind(py).readonly().as_slice()?)),
            Array::Difficulties(difficulties) => {
                order(SampleData::Difficulties(difficulties.bind(py).readonly().as_slice()?))
            }
        }
    }
}
