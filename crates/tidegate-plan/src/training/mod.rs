//! The memory of a training step: what it takes, what can be recomputed, and how to split it.
//!
//! Flow: a model's figures, a budget -> plans: schedules, micro-batches, places, stages.
//! Memory: see each planner.

pub mod batch;
pub mod chain;
pub mod layers;
pub mod memory;
pub mod noise;
pub mod parallel;
pub mod pareto;
pub mod placement;
pub mod profile;
pub mod revolve;
pub mod rotor;
pub mod schedule;
pub mod segments;
pub mod sharding;
pub mod stages;
pub mod step;
pub mod sums;
