//! The profile of a training step: a chain for some batch, and what it holds besides.
//!
//! Flow: JSON of a measured step, or of layers -> [`Profile`] -> `step`, `stages`, `parallel`.
//! Memory: a few words a stage.

use serde::{Deserialize, Serialize};

use super::chain::{Chain, Stage};
use super::layers::{Figures, Layer, Norm};
use super::memory::{Optimizer, Part, Precision, states};
use crate::error::{Error, MOST_BYTES, Result, at_least_one, counted_to, not_negative, product};

/// A kind of memory that the step holds from its first to its last moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// What it is: `parameters`, `optimizer`, `buffers`, …
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A training step for some batch.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// The name of the model.
    pub name: String,
    /// What tells this model from others, where a program made the profile.
    pub fingerprint: String,
    /// The samples of the batch that bytes and times are for.
    pub batch: u64,
    /// The stages.
    pub chain: Chain,
    /// What is held all the time, without gradients.
    pub held: Vec<Held>,
    /// Bytes that the optimizer's step takes besides, when activations are gone.
    pub optimizer_extra_bytes: u64,
    /// Bytes of the largest gradient of a parameter, which micro-batches make beside the sum that
    /// they add it to; by default those of the largest stage.
    pub largest_gradient_bytes: u64,
    /// Bytes of the batch itself.
    pub input_bytes: u64,
    /// Whether a batch that is cut gives another result, because statistics are over the batch.
    pub batch_norm: bool,
    /// Time that each micro-batch takes besides its stages.
    pub overhead_time: f64,
    /// The unit of all times: `s`, or `Tflop` where they are computed from layers.
    pub time_unit: String,
}

/// A model by its layers, as a user writes it down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name of the model.
    #[serde(default)]
    pub name: String,
    /// Samples of a batch.
    pub batch: u64,
    /// The layers: each, and each block, is a stage.
    pub layers: Vec<Layer>,
    /// What updates the parameters.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// In which numbers the model trains.
    #[serde(default)]
    pub precision: Precision,
    /// Bytes of one sample of the input.
    #[serde(default)]
    pub sample_bytes: u64,
}

impl Model {
    /// The shapes of all parameters.
    ///
    /// # Errors
    /// Those of [`Layer::figures`].
    pub fn parameters(&self) -> Result<Vec<Vec<u64>>> {
        let stages = self.stages()?;
        Ok(stages.into_iter().flat_map(|(_, figures)| figures.parameters).collect())
    }

    /// The parts of memory that do not depend on the batch, gradients among them.
    ///
    /// # Errors
    /// Those of [`Layer::figures`].
    pub fn states(&self) -> Result<Vec<Part>> {
        states(&self.parameters()?, self.precision, self.optimizer)
    }

    fn stages(&self) -> Result<Vec<(String, Figures)>> {
        at_least_one("batch", self.batch)?;
        let element_bytes = self.precision.element_bytes();
        let mut stages = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let (name, repeat) = match layer {
                Layer::Block { name, repeat, .. } if !name.is_empty() => (name.clone(), *repeat),
                Layer::Block { repeat, .. } => (format!("block {}", i + 1), *repeat),
                other => (other.kind().to_owned(), 1),
            };
            if repeat > 1 << 16 {
                return Err(Error::parameter("repeat", repeat, "at most 65536"));
            }
            let figures = layer.figures(self.batch, element_bytes)?;
            for n in 1..=repeat {
                let name = if repeat > 1 { format!("{name} {n}") } else { name.clone() };
                stages.push((name, figures.clone()));
            }
        }
        Ok(stages)
    }

    /// The step of this model: bytes by formula, times by the number of multiplications.
    ///
    /// # Errors
    /// Those of [`Layer::figures`]; [`Error::Config`] without layers.
    pub fn profile(&self) -> Result<Profile> {
        let gradient_bytes = self.precision.parameter_bytes()[1];
        let stage = |(name, figures): (String, Figures)| -> Result<Stage> {
            Ok(Stage {
                name,
                output_bytes: figures.output_bytes,
                saved_bytes: figures.saved_bytes,
                gradient_bytes: figures.parameter_count()? * gradient_bytes,
                forward_time: figures.flops / 1e12,
                backward_time: 2.0 * figures.flops / 1e12,
                ..Stage::default()
            })
        };
        let stages = self.stages()?.into_iter().map(stage).collect::<Result<_>>()?;
        let chain = Chain { stages, ..Chain::default() };
        let parameters = self.parameters()?;
        let sizes =
            parameters.iter().map(|shape| product("a gradient", &[&[gradient_bytes], &shape[..]].concat()));
        let largest = sizes.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        let kept = self.states()?.into_iter().filter(|part| part.name != "gradients");
        let profile = Profile {
            name: self.name.clone(),
            batch: self.batch,
            chain,
            held: kept.map(|part| Held { name: part.name.into(), bytes: part.bytes }).collect(),
            input_bytes: product("the batch", &[self.batch, self.sample_bytes])?,
            largest_gradient_bytes: largest,
            batch_norm: self.layers.iter().any(has_batch_norm),
            time_unit: "Tflop".into(),
            ..Profile::default()
        };
        profile.check()?;
        Ok(profile)
    }
}

/// Whether a layer is batch normalization, or has it within.
fn has_batch_norm(layer: &Layer) -> bool {
    match layer {
        Layer::Norm { form, .. } => *form == Norm::Batch,
        Layer::Block { layers, .. } => layers.iter().any(has_batch_norm),
        _ => false,
    }
}

impl Profile {
    /// Reads a profile, or a model's layers, from JSON.
    ///
    /// # Errors
    /// [`Error::Config`] for text that is neither, with line and column; those of
    /// [`Model::profile`] and [`Profile::check`].
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::profile::Profile;
    /// let text = r#"{"name": "small", "batch": 32, "layers": [
    ///     {"kind": "linear", "inputs": 784, "outputs": 256},
    ///     {"kind": "activation", "elements": 256},
    ///     {"kind": "linear", "inputs": 256, "outputs": 10},
    ///     {"kind": "cross_entropy", "classes": 10}]}"#;
    /// let profile = Profile::from_json(text)?;
    /// assert_eq!(profile.chain.stages.len(), 4);
    /// assert_eq!(profile.held_bytes(), (784 * 256 + 256 + 256 * 10 + 10) * 12);
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::Config(format!("this is no model and no profile: {e}"));
        let value: serde_json::Value = serde_json::from_str(text).map_err(wrong)?;
        if value.get("layers").is_none() && value.get("chain").is_none() {
            return Err(Error::Config(
                "this is no model and no profile: it has neither layers nor a chain".into(),
            ));
        }
        if value.get("layers").is_some() {
            return serde_json::from_str::<Model>(text).map_err(wrong)?.profile();
        }
        let profile: Self = serde_json::from_str(text).map_err(wrong)?;
        profile.check()?;
        Ok(profile)
    }

    /// Bytes of gradients that micro-batches hold all the time: the sums, and one that is added.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let stages = self.chain.stages.iter().map(|stage| stage.gradient_bytes);
        let largest = match self.largest_gradient_bytes {
            0 => stages.max().unwrap_or(0),
            bytes => bytes,
        };
        self.chain.gradient_bytes() + largest
    }

    /// Checks that the profile can be planned.
    ///
    /// # Errors
    /// Those of [`Chain::check`]; [`Error::Parameter`] for a batch of 0, for times that are
    /// negative or no numbers, and for more than 2^42 bytes of one kind.
    pub fn check(&self) -> Result<()> {
        not_negative("overhead_time", self.overhead_time)?;
        counted_to("batch", self.batch, 1 << 32)?;
        let held = self.held.iter().map(|held| (held.name.as_str(), held.bytes));
        for (name, bytes) in held.chain([
            ("input_bytes", self.input_bytes),
            ("optimizer_extra_bytes", self.optimizer_extra_bytes),
            ("largest_gradient_bytes", self.largest_gradient_bytes),
        ]) {
            if bytes > MOST_BYTES {
                return Err(Error::parameter(name, bytes, "it must be at most 2^42 bytes"));
            }
        }
        if self.held.len() > 1000 {
            return Err(Error::parameter("the kinds of what is held", self.held.len(), "at most 1000"));
        }
        self.chain.check()
    }

    /// The step of another batch.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a batch of 0; those of [`Chain::scaled`].
    pub fn scaled(&self, batch: u64) -> Result<Self> {
        counted_to("batch", batch, 1 << 32)?;
        let factor = batch as f64 / self.batch as f64;
        let input_bytes = (self.input_bytes as f64 * factor).ceil() as u64;
        let scaled = Self { batch, input_bytes, chain: self.chain.scaled(factor)?, ..self.clone() };
        scaled.check()?;
        Ok(scaled)
    }

    /// The bytes that are held all the time.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held.iter().map(|held| held.bytes).sum()
    }
}
