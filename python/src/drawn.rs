//! The samplers of `tidegate.samplers`, which are worked out and not listed.
//!
//! Flow: arrays and parameters, kept until a loader is made -> an order of `tidegate_order::{drawn,fed,quotas}` under its seed and budget.
//! Memory: refers to the user's arrays; the order's tables are charged to the loader's budget.

use std::sync::Arc;

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use tidegate::{Budget, Error, Options, Result, Source};
use tidegate_order::Order;
use tidegate_order::drawn::{Curriculum, Even, Pace, Weighted};
use tidegate_order::fed::{Fed, Rule};
use tidegate_order::near::Near;
use tidegate_order::patches::{Boxes, Patches};
use tidegate_order::quotas::{Classes, Quotas, Shares, Until};

use tidegate_source::volume::Volume;

use crate::errors::raise;

/// Numbers of either precision.
#[derive(Debug, FromPyObject)]
enum Reals {
    Singles(Py<PyArray1<f32>>),
    Doubles(Py<PyArray1<f64>>),
}

/// A word, or a number.
#[derive(Debug, Clone, FromPyObject)]
enum WordOr {
    Number(u64),
    Word(String),
}

#[derive(Debug)]
enum Kind {
    Even,
    Weighted(Reals),
    Classes(Py<PyArray1<u32>>, String, f64),
    Mixture(Vec<u64>, Vec<f64>, WordOr),
    Curriculum(Py<PyArray1<f64>>, f64, f64, WordOr),
    Fed(Rule, f64, f64),
    Patches(Patching),
}

/// Boxes that patches are drawn around, by the weights of their classes.
#[derive(Debug)]
struct Around {
    boxes: Arc<Boxes>,
    /// The field whose voxels they are in.
    field: usize,
    classes: Vec<(i64, f64)>,
}

/// Patches of a volume: evenly or around boxes, and near one another in windows.
#[derive(Debug)]
struct Patching {
    volume: Arc<Volume>,
    around: Option<Around>,
    /// Positions, and places that are gone through at once.
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
            None => Arc::new(Even::new(source.len(), positions, 1, seed)?),
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
                Arc::new(Near::new(patches, self.volume.grid(), window, places, budget)?)
            }
        })
    }
}

/// An order to be, without seed and budget; `tidegate.samplers` makes them.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Drawn {
    kind: Kind,
    positions: Option<u64>,
    block: Option<u64>,
}

#[pymethods]
impl Drawn {
    #[staticmethod]
    fn even(positions: Option<u64>) -> Self {
        Self { kind: Kind::Even, positions, block: None }
    }

    #[staticmethod]
    fn weighted(weights: Reals, positions: Option<u64>) -> Self {
        Self { kind: Kind::Weighted(weights), positions, block: None }
    }

    #[staticmethod]
    fn classes(
        labels: Py<PyArray1<u32>>,
        how: String,
        beta: f64,
        positions: Option<u64>,
        block: Option<u64>,
    ) -> Self {
        Self { kind: Kind::Classes(labels, how, beta), positions, block }
    }

    #[staticmethod]
    fn mixture(sizes: Vec<u64>, proportions: Vec<f64>, until: WordOr, block: Option<u64>) -> Self {
        Self { kind: Kind::Mixture(sizes, proportions, until), positions: None, block }
    }

    #[staticmethod]
    fn fed(how: &str, value: f64, even: f64, newness: f64, positions: Option<u64>) -> Self {
        let rule = match how {
            "importance" => Rule::Importance { gain: value },
            "focal" => Rule::Focal { gamma: value },
            _ => Rule::Hard { power: value },
        };
        Self { kind: Kind::Fed(rule, even, newness), positions, block: None }
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
        Self { kind: Kind::Patches(patching), positions: Some(positions), block: None }
    }

    #[staticmethod]
    fn curriculum(
        difficulty: Py<PyArray1<f64>>,
        start: f64,
        epochs: f64,
        pace: WordOr,
        positions: Option<u64>,
    ) -> Self {
        Self { kind: Kind::Curriculum(difficulty, start, epochs, pace), positions, block: None }
    }
}

/// Checks that what is given for each sample is given for each.
fn one_each(what: &str, given: usize, samples: u64) -> PyResult<()> {
    if given as u64 == samples {
        return Ok(());
    }
    Err(raise(&Error::Config(format!("{given} {what} for {samples} samples: give one for each"))))
}

fn made<T: Order + 'static>(order: tidegate_order::Result<T>) -> PyResult<Arc<dyn Order>> {
    order.map(|order| Arc::new(order) as Arc<dyn Order>).map_err(|e| raise(&e))
}

impl Drawn {
    /// The order over a source, under the seed of these options.
    pub(crate) fn order(
        &self,
        py: Python<'_>,
        source: &dyn Source,
        options: &Options,
        budget: &Budget,
    ) -> PyResult<Arc<dyn Order>> {
        let (samples, runs, seed) = (source.len(), source.runs().len() as u64, options.seed);
        let positions = self.positions.unwrap_or(samples);
        // By default a global batch, as far as blocks go.
        let global_batch = options.global_batch().map_err(|e| raise(&e))?;
        let block = self.block.unwrap_or_else(|| global_batch.min(1 << 16));
        match &self.kind {
            Kind::Patches(patching) => {
                py.detach(|| patching.order(source, positions, seed, budget)).map_err(|e| raise(&e))
            }
            Kind::Even => made(Even::new(samples, positions, runs, seed)),
            Kind::Weighted(Reals::Singles(weights)) => {
                let weights = weights.bind(py).readonly();
                let weights = weights.as_slice()?;
                one_each("weights", weights.len(), samples)?;
                made(py.detach(|| Weighted::new(weights, positions, runs, seed, budget)))
            }
            Kind::Weighted(Reals::Doubles(weights)) => {
                let weights = weights.bind(py).readonly();
                let weights = weights.as_slice()?;
                one_each("weights", weights.len(), samples)?;
                made(py.detach(|| Weighted::new(weights, positions, runs, seed, budget)))
            }
            Kind::Classes(labels, how, beta) => {
                let labels = labels.bind(py).readonly();
                let labels = labels.as_slice()?;
                one_each("labels", labels.len(), samples)?;
                let shares = match how.as_str() {
                    "over" => Shares::Oversampled,
                    "under" => Shares::Undersampled,
                    "effective" => Shares::Effective { beta: *beta, positions },
                    _ => Shares::Stratified,
                };
                made(py.detach(|| {
                    Quotas::new(Classes::labelled(labels, budget)?, &shares, block, runs, seed, budget)
                }))
            }
            Kind::Mixture(sizes, proportions, until) => {
                let all = sizes.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
                one_each("samples in all sources", all as usize, samples)?;
                let until = match until {
                    WordOr::Number(positions) => Until::Positions(*positions),
                    WordOr::Word(word) if word == "all" => Until::All,
                    WordOr::Word(_) => Until::First,
                };
                let shares = Shares::Proportions { of: proportions.clone(), until };
                made(py.detach(|| Quotas::new(Classes::ranges(sizes)?, &shares, block, runs, seed, budget)))
            }
            Kind::Fed(rule, even, newness) => {
                let (rule, even, newness) = (*rule, *even, *newness);
                made(py.detach(|| Fed::new(rule, samples, positions, even, newness, runs, seed, budget)))
            }
            Kind::Curriculum(difficulty, start, epochs, pace) => {
                let difficulty = difficulty.bind(py).readonly();
                let difficulty = difficulty.as_slice()?;
                one_each("difficulties", difficulty.len(), samples)?;
                let pace = match pace {
                    WordOr::Number(steps) => Pace::Step(u32::try_from(*steps).unwrap_or(u32::MAX)),
                    WordOr::Word(word) if word == "root" => Pace::Root,
                    WordOr::Word(_) => Pace::Linear,
                };
                let (start, epochs) = (*start, *epochs);
                made(py.detach(|| {
                    Curriculum::new(difficulty, start, epochs, pace, positions, runs, seed, budget)
                }))
            }
        }
    }
}
