//! A training step as a chain of stages, with the bytes that cross each boundary.
//!
//! Flow: measured or computed stages, skip connections -> [`Chain`], checked -> `rotor`,
//! `schedule`.
//! Memory: a few words a stage.
//!
//! A model whose blocks branch is a chain too: in the order in which its blocks run, what crosses
//! the boundary behind block i is every output that a later block still uses. [`Chain::skips`]
//! says until when an output is used.

use serde::{Deserialize, Serialize};

use crate::error::{Error, MOST_BYTES, Result, not_negative};

/// One stage: a block of the model in forward and backward.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    /// Its name, for messages.
    pub name: String,
    /// Bytes of its output, which the next stage takes. Of the last stage, the loss: about 0.
    pub output_bytes: u64,
    /// Bytes of the gradient of its output, where these are not those of the output: a gradient
    /// may be a part of a larger tensor, or share one with another.
    pub output_gradient_bytes: Option<u64>,
    /// Bytes that its backward needs besides its input and its output.
    pub saved_bytes: u64,
    /// Bytes of the gradients of its own parameters.
    pub gradient_bytes: u64,
    /// Bytes above the output while it runs forward and keeps nothing.
    pub forward_extra_bytes: u64,
    /// Bytes above what is saved and the output while it runs forward and saves.
    pub save_extra_bytes: u64,
    /// Bytes of its backward at its worst moment, above what is saved, the output and all
    /// gradients. Negative where not all of them are there at that moment.
    pub backward_extra_bytes: i64,
    /// Time of its forward, in seconds or any other unit.
    pub forward_time: f64,
    /// Time of its backward, in the same unit.
    pub backward_time: f64,
    /// Other ways to keep what backward needs: compressed, or in other memory.
    pub keeps: Vec<Keep>,
}

/// A way to keep what the backward of a stage needs, other than to leave it where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Its name: `int8`, `bf16`, `offload`, ….
    pub name: String,
    /// Bytes of the saved tensors in this form.
    pub bytes: u64,
    /// Time to bring them into this form and back, beyond what runs beside the step.
    pub time: f64,
}

/// An output that more than the next stage uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skip {
    /// The stage that makes it, counted from 1.
    pub from: usize,
    /// The last stage that uses it.
    pub to: usize,
}

/// When the gradients of parameters take memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradients {
    /// From the backward of their stage until the optimizer's step.
    #[default]
    Kept,
    /// All the time, because micro-batches add to them. They are then no part of the chain.
    Resident,
    /// Only in the backward of their stage, whose end is the optimizer's step.
    Fused,
}

/// The stages of a step, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chain {
    /// The stages; the last one makes the loss.
    pub stages: Vec<Stage>,
    /// Outputs that more than the next stage uses.
    pub skips: Vec<Skip>,
    /// When the gradients of parameters take memory.
    pub gradients: Gradients,
}

/// The most stages of a chain.
const MOST_STAGES: u64 = 1 << 16;

fn at_most(name: &str, value: u64, most: u64) -> Result<()> {
    if value <= most {
        return Ok(());
    }
    Err(Error::parameter(name, value, format!("at most {most}")))
}

impl Stage {
    /// Bytes of the gradient of its output.
    pub(crate) fn output_gradient(&self) -> u64 {
        self.output_gradient_bytes.unwrap_or(self.output_bytes)
    }
}

impl Chain {
    /// Checks that the chain can be planned.
    ///
    /// # Errors
    /// [`Error::Config`] for a chain without stages; [`Error::Parameter`] for times that are
    /// not from 0 to 1e30, for more than 2^16 stages or 2^42 bytes, and for a skip that does
    /// not lead to a later stage.
    pub fn check(&self) -> Result<()> {
        if self.stages.is_empty() {
            return Err(Error::Config("a chain without stages: give one stage or more".into()));
        }
        at_most("stages", self.stages.len() as u64, MOST_STAGES)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let sizes = [
                ("output_bytes", stage.output_bytes),
                ("output_gradient_bytes", stage.output_gradient()),
                ("saved_bytes", stage.saved_bytes),
                ("gradient_bytes", stage.gradient_bytes),
                ("forward_extra_bytes", stage.forward_extra_bytes),
                ("save_extra_bytes", stage.save_extra_bytes),
                ("backward_extra_bytes", stage.backward_extra_bytes.unsigned_abs()),
            ];
            let keeps = stage.keeps.iter().map(|keep| ("bytes of a keep", keep.bytes));
            for (what, bytes) in sizes.into_iter().chain(keeps) {
                at_most(&format!("{what} of stage {}", self.called(i + 1)), bytes, MOST_BYTES)?;
            }
            let times = [("forward_time", stage.forward_time), ("backward_time", stage.backward_time)];
            let keeps = stage.keeps.iter().map(|keep| ("time of a keep", keep.time));
            for (what, time) in times.into_iter().chain(keeps) {
                not_negative(format!("{what} of stage {}", self.called(i + 1)), time)?;
            }
        }
        for skip in &self.skips {
            if skip.from == 0 || skip.to <= skip.from || skip.to > self.stages.len() {
                let value = format!("from {} to {}", skip.from, skip.to);
                let expected = format!(
                    "stages are counted from 1, there are {}, and a skip leads to a later one",
                    self.stages.len()
                );
                return Err(Error::parameter("a skip", value, expected));
            }
        }
        Ok(())
    }

    /// A stage's number, and its name where it has one.
    #[must_use]
    pub fn called(&self, stage: usize) -> String {
        match self.stages.get(stage.wrapping_sub(1)).map(|stage| stage.name.as_str()) {
            None | Some("") => stage.to_string(),
            Some(name) => format!("{stage} ({name})"),
        }
    }

    /// For each stage, counted from 1, the last stage that uses its output; entry 0 is the input.
    pub(crate) fn last_uses(&self) -> Vec<usize> {
        let mut last: Vec<usize> = (1..=self.stages.len() + 1).collect();
        for skip in &self.skips {
            last[skip.from] = last[skip.from].max(skip.to);
        }
        last
    }

    /// The bytes of the gradients of parameters that stay until the optimizer's step.
    #[must_use]
    pub fn gradient_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.gradient_bytes).sum()
    }

    /// The time of forward and backward of all stages, without any recomputation.
    #[must_use]
    pub fn plain_time(&self) -> f64 {
        self.stages.iter().map(|stage| stage.forward_time + stage.backward_time).sum()
    }

    /// The chain for another batch: bytes and times of activations times `factor`, gradients as
    /// they are. Bytes are rounded up.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the factor is no positive number.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        crate::error::positive("the factor of the batch", factor)?;
        let bytes = |n: u64| (n as f64 * factor).ceil() as u64;
        let mut chain = self.clone();
        for stage in &mut chain.stages {
            stage.output_bytes = bytes(stage.output_bytes);
            stage.output_gradient_bytes = stage.output_gradient_bytes.map(bytes);
            stage.saved_bytes = bytes(stage.saved_bytes);
            stage.forward_extra_bytes = bytes(stage.forward_extra_bytes);
            stage.save_extra_bytes = bytes(stage.save_extra_bytes);
            stage.backward_extra_bytes = (stage.backward_extra_bytes as f64 * factor).ceil() as i64;
            stage.forward_time *= factor;
            stage.backward_time *= factor;
            for keep in &mut stage.keeps {
                keep.bytes = bytes(keep.bytes);
                keep.time *= factor;
            }
        }
        Ok(chain)
    }
}
