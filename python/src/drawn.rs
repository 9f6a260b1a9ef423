//! The samplers of `tidegate.samplers` that are computed from parameters.
//!
//! Flow: words, numbers and arrays -> `tidegate::SamplerSpec` -> when a loader is made, an order
//! with its seed and budget.
//! Memory: refers to the user's arrays; the order's tables are charged to the loader's budget.

use std::sync::Arc;

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use tidegate::loader::{ClassShares, CurriculumPace, FeedbackRule, MixtureEnd, NumberOrWord, SampleData};
use tidegate::{Budget, Error, Options, Result, SamplerSpec, Source};
use tidegate_order::Order;
use tidegate_order::lattice::Boxes;
use tidegate_order::morton::MortonWindows;
use tidegate_order::patches::Patches;
use tidegate_order::uniform::Uniform;
use tidegate_source::volume::Volume;

use crate::errors::raise;

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
    Patches { patching: Patching, positions: u64 },
}

/// Boxes that patches are drawn around, and the weights of their classes.
#[derive(Debug)]
struct Around {
    boxes: Arc<Boxes>,
    /// The index of the array whose voxels the boxes are in.
    field: usize,
    classes: Vec<(i64, f64)>,
}

/// How patches of a volume are drawn: uniformly or around boxes, and sorted in windows.
#[derive(Debug)]
struct Patching {
    volume: Arc<Volume>,
    around: Option<Around>,
    /// (positions in a window, places that the window goes through at once).
    window: Option<(u64, u64)>,
}

impl Patching {
    fn order(
        &self,
        source: &dyn Source,
        positions: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Arc<dyn Order>> {
        if source.fingerprint() != self.volume.fingerprint() {
            return Err(Error::Config(
                "this sampler is of another volume than the loader's: make it of the same".into(),
            ));
        }
        let patches: Arc<dyn Order> = match &self.around {
            None => Arc::new(Uniform::new(source.len(), positions, 1, seed)?),
            Some(Around { boxes, field, classes }) => {
                let fields = source.schema().len();
                if *field >= fields {
                    return Err(Error::Config(format!(
                        "these boxes are of array number {field}, and the volume has {fields}: count from 0"
                    )));
                }
                let lattice = self.volume.lattice(*field);
                Arc::new(Patches::new(Arc::clone(boxes), lattice, classes, positions, seed, budget)?)
            }
        };
        Ok(match self.window {
            None => patches,
            Some((window, places)) => {
                Arc::new(MortonWindows::new(patches, self.volume.grid(), window, places, budget)?)
            }
        })
    }
}

/// A sampler without its seed and budget; `tidegate.samplers` makes it.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Drawn(Kind);

#[pymethods]
impl Drawn {
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
        let around = |boxes: PyRef<'_, crate::volume::Boxes>| Around {
            boxes: Arc::clone(&boxes.boxes),
            field: boxes.field,
            classes,
        };
        let patching = Patching { volume: Arc::clone(&volume.0), around: boxes.map(around), window };
        Self(Kind::Patches { patching, positions })
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
            Kind::Patches { patching, positions } => {
                let order = py.detach(|| patching.order(source, *positions, options.seed, budget));
                return order.map_err(|e| raise(&e));
            }
            Kind::Spec(spec, array) => (spec, array),
        };
        let order = |data| py.detach(|| spec.order(data, source, options, budget)).map_err(|e| raise(&e));
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
