//! `tidegate.training`: the planners of the training step, by name, with JSON in and out.
//!
//! Flow: the name of a planner, a request as JSON -> `tidegate_plan::training` -> its answer.
//! Memory: that of the planner, outside of any budget: for planning, not for training.

use pyo3::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidegate_plan::Result;
use tidegate_plan::training::batch::{self, Growth, Target};
use tidegate_plan::training::chain::Chain;
use tidegate_plan::training::layers::Layer;
use tidegate_plan::training::memory::{Optimizer, Precision, states};
use tidegate_plan::training::noise::NoiseScale;
use tidegate_plan::training::parallel::{Cluster, compare};
use tidegate_plan::training::pareto::{Better, front};
use tidegate_plan::training::placement::{Lifetime, place};
use tidegate_plan::training::profile::{Model, Profile};
use tidegate_plan::training::rotor::fastest;
use tidegate_plan::training::schedule::{Schedule, replay};
use tidegate_plan::training::sharding::Sharding;
use tidegate_plan::training::stages::{Pipelining, split};
use tidegate_plan::training::step::{Limits, largest_batch};
use tidegate_plan::training::sums::widened;
use tidegate_plan::training::{revolve, segments};

use crate::errors::{config, raise, released};

/// A planner: a request to an answer.
type Answer = Result<Value>;

/// Runs a planner; its name, and its request as JSON.
#[pyfunction]
pub(crate) fn plan_training(py: Python<'_>, name: &str, request: &str) -> PyResult<String> {
    let answer = released(py, || answered(name, request))?.map_err(config)?;
    answer.map(|answer| answer.to_string()).map_err(|error| raise(&error))
}

/// The answer of a planner, or what is wrong with the request.
fn answered(name: &str, request: &str) -> Result<Answer, String> {
    match name {
        "states" => run(request, |r: StatesOf| value(&states(&r.shapes, r.precision, r.optimizer)?)),
        "model" => run(request, |model: Model| value(&model.profile()?)),
        "sums" => run(request, |model: Model| value(&model.words()?)),
        "widened" => run(request, |(layers, factor): (Vec<Layer>, f64)| value(&widened(&layers, factor)?)),
        "profile" => run(request, |text: String| value(&Profile::from_json(&text)?)),
        "sharding" => run(request, |sharding: Sharding| value(&sharding.each()?)),
        "uniform" => run(request, |(blocks, saved, boundary): (u64, u64, u64)| {
            value(&segments::uniform(blocks, saved, boundary)?)
        }),
        "segments" => {
            run(request, |(stages, length): (usize, usize)| value(&segments::schedule(stages, length)?))
        }
        "revolve" => run(request, |(stages, checkpoints): (u64, u64)| {
            value(&(revolve::advances(stages, checkpoints)?, revolve::schedule(stages, checkpoints)?))
        }),
        "rotor" => {
            run(request, |(chain, budget, slots): (Chain, u64, u32)| value(&fastest(&chain, budget, slots)?))
        }
        "replay" => run(request, |(chain, schedule): (Chain, Schedule)| value(&replay(&chain, &schedule)?)),
        "largest_batch" => run(request, largest),
        "micro_batches" => {
            run(request, |(batch, parts): (u64, u64)| value(&batch::micro_batches(batch, parts)?))
        }
        "weights" => run(request, |counts: Vec<u64>| value(&batch::weights(&counts)?)),
        "growth" => run(request, |(growth, epoch): (Growth, u64)| value(&growth.batch(epoch)?)),
        "noise_driven" => run(request, |(b, optimum, share, least, most): (u64, f64, f64, u64, u64)| {
            value(&batch::noise_driven(b, optimum, share, least, most)?)
        }),
        "reached" => {
            run(request, |(target, measured): (Target, Vec<(u64, f64)>)| value(&target.reached(&measured)?))
        }
        "noise" => run(request, |(small, large, decay): (u64, u64, f64)| {
            value(&NoiseScale::new(small, large, decay)?)
        }),
        "noise_add" => run(request, |(mut scale, small, large): (NoiseScale, f64, f64)| {
            scale.add(small, large)?;
            value(&(scale, scale.value()))
        }),
        "front" => {
            run(request, |(points, better): (Vec<Vec<f64>>, Vec<Better>)| value(&front(&points, &better)?))
        }
        "place" => {
            run(request, |(tensors, alignment): (Vec<Lifetime>, u64)| value(&place(&tensors, alignment)?))
        }
        "split" => run(request, |r: Split| {
            value(&split(&r.chain, &r.state_bytes, r.devices, r.micro_batches, r.pipelining, r.limit_bytes)?)
        }),
        "compare" => run(request, |(profile, cluster, limits): (Profile, Cluster, LimitsOf)| {
            value(&compare(&profile, &cluster, limits.into())?)
        }),
        other => Err(format!("no planner is named {other:?}")),
    }
}

/// Reads a request and answers it.
fn run<Q: DeserializeOwned>(request: &str, planner: impl FnOnce(Q) -> Answer) -> Result<Answer, String> {
    let request = serde_json::from_str(request).map_err(|e| e.to_string())?;
    Ok(planner(request))
}

/// The answer as JSON. Every number is finite: the planners bound what they are given.
fn value(answer: &impl Serialize) -> Answer {
    serde_json::to_value(answer).map_err(|e| tidegate_plan::Error::Config(e.to_string()))
}

#[derive(Deserialize)]
struct StatesOf {
    shapes: Vec<Vec<u64>>,
    precision: Precision,
    optimizer: Optimizer,
}

#[derive(Deserialize)]
struct LimitsOf {
    micro_batches: Option<u64>,
    fused: bool,
    recompute: bool,
    slots: u32,
}

impl From<LimitsOf> for Limits {
    fn from(of: LimitsOf) -> Self {
        Self { micro_batches: of.micro_batches, fused: of.fused, recompute: of.recompute, slots: of.slots }
    }
}

#[derive(Deserialize)]
struct Split {
    chain: Chain,
    state_bytes: Vec<u64>,
    devices: u64,
    micro_batches: u64,
    pipelining: Pipelining,
    limit_bytes: Option<u64>,
}

/// Plans of one step for every budget: its tables are solved once.
#[pyclass(frozen, module = "tidegate._tidegate")]
pub(crate) struct Planner(tidegate_plan::training::step::Planner);

#[derive(Deserialize)]
struct StepOf {
    profile: Profile,
    batch: u64,
    limits: LimitsOf,
}

#[pymethods]
impl Planner {
    #[new]
    fn new(request: &str) -> PyResult<Self> {
        let asked: StepOf = serde_json::from_str(request).map_err(|e| config(e.to_string()))?;
        let limits = asked.limits.into();
        let planner = tidegate_plan::training::step::Planner::new(asked.profile, asked.batch, limits);
        planner.map(Self).map_err(|error| raise(&error))
    }

    /// The fastest plan within a budget, as JSON.
    fn plan(&self, py: Python<'_>, memory_bytes: u64) -> PyResult<String> {
        answer(py, || {
            let plan = self.0.plan(memory_bytes)?;
            value(&json!({"plan": plan, "text": plan.text(), "recomputed_stages": plan.recomputed_stages()}))
        })
    }

    /// The time of the fastest plan for every budget, as JSON.
    fn curve(&self, py: Python<'_>) -> PyResult<String> {
        answer(py, || value(&self.0.curve()?))
    }

    /// The least budget of any plan.
    fn floor_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        released(py, || self.0.floor_bytes())?.map_err(|error| raise(&error))
    }
}

/// Runs a planner without the interpreter; its answer as text.
fn answer(py: Python<'_>, planner: impl FnOnce() -> Answer + Send) -> PyResult<String> {
    released(py, planner)?.map(|answer| answer.to_string()).map_err(|error| raise(&error))
}

#[derive(Deserialize)]
struct Largest {
    profile: Profile,
    memory_bytes: u64,
    limits: LimitsOf,
    most: u64,
}

/// The largest batch in one piece or in micro-batches, with or without recomputation.
fn largest(asked: Largest) -> Answer {
    let limits = asked.limits.into();
    value(&largest_batch(&asked.profile, asked.memory_bytes, limits, asked.most)?)
}
