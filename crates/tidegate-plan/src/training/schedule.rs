//! Schedules of a chain, and the replay that says what one takes.
//!
//! Flow: `rotor`, `revolve` or `segments` -> [`Schedule`] -> [`replay`] -> time, peak and every
//! moment; the same JSON is what an executor runs.
//! Memory: of a replay, some words for each forward and backward of a stage.
//!
//! A replay counts tensors one by one, by who still uses them. It shares no formula with the
//! planner that it checks.

use serde::{Deserialize, Serialize};

use super::chain::{Chain, Gradients};
use crate::error::{Error, Result};

/// What to do with a run of stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Step {
    /// Runs this stage, counted from 1, and keeps what its backward needs.
    Store(usize),
    /// The same, kept in another form.
    Keep {
        /// The stage, counted from 1.
        stage: usize,
        /// The index of the form in the stage's `keeps`.
        keep: usize,
    },
    /// Runs these stages and keeps only their input. Their backward begins with these steps.
    Recompute(Vec<Step>),
}

/// The steps of a whole chain; in JSON, numbers and nested lists: `[[1, 2], 3]` recomputes stages 1
/// and 2 and stores stage 3.
pub type Schedule = Vec<Step>;

/// How deep lists may be within lists: an executor runs one recomputation within another.
pub const DEEPEST: u64 = 100;

/// How deep a schedule is.
#[must_use]
pub fn depth(schedule: &[Step]) -> u64 {
    let of = |step: &Step| match step {
        Step::Recompute(inner) => 1 + depth(inner),
        _ => 0,
    };
    schedule.iter().map(of).max().unwrap_or(0)
}

/// Every stage stored: the step as it is without a plan.
#[must_use]
pub fn plain(stages: usize) -> Schedule {
    (1..=stages).map(Step::Store).collect()
}

/// What a stage is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Forward, for the first time.
    Forward,
    /// Forward once more.
    Recompute,
    /// Backward.
    Backward,
}

/// The bytes of a moment, by kind. Those of a recomputation's own input are boundaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Bytes {
    /// Outputs of stages.
    pub boundaries: u64,
    /// What backward needs besides.
    pub saved: u64,
    /// Gradients of outputs.
    pub output_gradients: u64,
    /// Gradients of parameters.
    pub gradients: u64,
    /// What lives only within the stage.
    pub temporary: u64,
}

impl Bytes {
    /// Their sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.boundaries + self.saved + self.output_gradients + self.gradients + self.temporary
    }
}

/// The worst moment of a stage's forward or backward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moment {
    /// The stage, counted from 1.
    pub stage: usize,
    /// What it is doing.
    pub phase: Phase,
    /// The time at which this ends.
    pub time: f64,
    /// What is in memory.
    pub bytes: Bytes,
}

/// What a schedule takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// The time of the step, in the unit of the chain.
    pub time: f64,
    /// The time of forwards that run once more, and of other forms of keeping.
    pub extra_time: f64,
    /// The bytes of the worst moment.
    pub peak: Bytes,
    /// All moments, in order.
    pub moments: Vec<Moment>,
}

/// Replays a schedule: its time, its peak, and what is in memory at every moment.
///
/// # Errors
/// [`Error::Config`] when the schedule does not run each stage of the chain once, in order.
///
/// # Example
/// ```
/// use tidegate_plan::training::chain::{Chain, Stage};
/// use tidegate_plan::training::schedule::{Step, plain, replay};
///
/// let stage = |output_bytes| Stage {
///     output_bytes, saved_bytes: 2, forward_time: 1.0, backward_time: 2.0, ..Stage::default()
/// };
/// let chain = Chain { stages: vec![stage(1), stage(1), stage(0)], ..Chain::default() };
/// let all = replay(&chain, &plain(3))?;
/// assert_eq!((all.time, all.peak.total()), (9.0, 9));
/// let less = replay(&chain, &vec![Step::Recompute(plain(2)), Step::Store(3)])?;
/// assert_eq!((less.time, less.peak.total()), (11.0, 8));
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn replay(chain: &Chain, schedule: &[Step]) -> Result<Replay> {
    chain.check()?;
    covers(chain, schedule)?;
    let stages = chain.stages.len();
    let last_uses = chain.last_uses();
    let mut ends = vec![Vec::new(); stages + 1];
    for output in 1..stages {
        ends[last_uses[output]].push(output);
    }
    let mut replayer = Replayer {
        chain,
        long: (1..=stages).filter(|&output| last_uses[output] > output + 1).collect(),
        ends,
        last_uses,
        users: vec![0; stages + 1],
        gradient_lives: vec![false; stages + 1],
        bytes: Bytes::default(),
        found: Replay { time: 0.0, extra_time: 0.0, peak: Bytes::default(), moments: Vec::new() },
    };
    replayer.run(schedule, Phase::Forward);
    Ok(replayer.found)
}

/// Checks that a schedule runs each stage once, in order, in forms that exist.
fn covers(chain: &Chain, schedule: &[Step]) -> Result<()> {
    fn walk(chain: &Chain, steps: &[Step], next: &mut usize) -> Result<()> {
        for step in steps {
            let stage = match step {
                Step::Recompute(inner) if inner.is_empty() => {
                    return Err(Error::Config("a schedule that recomputes nothing: [] in it".into()));
                }
                Step::Recompute(inner) => {
                    walk(chain, inner, next)?;
                    continue;
                }
                Step::Store(stage) => *stage,
                Step::Keep { stage, keep } => {
                    if chain.stages.get(stage.wrapping_sub(1)).is_none_or(|s| *keep >= s.keeps.len()) {
                        let what = format!("stage {} has no keep {keep}", chain.called(*stage));
                        return Err(Error::Config(what));
                    }
                    *stage
                }
            };
            if stage != *next {
                let what = format!("the schedule has stage {stage} where stage {next} belongs");
                return Err(Error::Config(what));
            }
            *next += 1;
        }
        Ok(())
    }
    let mut next = 1;
    walk(chain, schedule, &mut next)?;
    let stages = chain.stages.len();
    if next != stages + 1 {
        let what = format!("the schedule ends at stage {}, and the chain has {stages}", next - 1);
        return Err(Error::Config(what));
    }
    Ok(())
}

/// The first and the last stage of a step.
fn ends(step: &Step) -> (usize, usize) {
    match step {
        Step::Store(stage) | Step::Keep { stage, .. } => (*stage, *stage),
        Step::Recompute(inner) => {
            let first = inner.first().map_or(0, |step| ends(step).0);
            (first, inner.last().map_or(0, |step| ends(step).1))
        }
    }
}

/// What is in memory while a schedule runs.
struct Replayer<'a> {
    chain: &'a Chain,
    last_uses: Vec<usize>,
    /// Outputs that more than the next stage uses, in order.
    long: Vec<usize>,
    /// For each stage, the outputs that it is the last to use.
    ends: Vec<Vec<usize>>,
    /// How many still use the output of each stage; entry 0, the input of the step, is not counted.
    users: Vec<u32>,
    /// Whether the gradient of each output is there.
    gradient_lives: Vec<bool>,
    bytes: Bytes,
    found: Replay,
}

impl Replayer<'_> {
    /// Forward of all steps, then their backward in reverse.
    fn run(&mut self, steps: &[Step], phase: Phase) {
        for step in steps {
            let (first, last) = ends(step);
            self.hold(first - 1);
            match step {
                Step::Recompute(_) => self.pass(first, last, phase),
                Step::Store(stage) => self.save(*stage, None, phase),
                Step::Keep { stage, keep } => self.save(*stage, Some(*keep), phase),
            }
            self.hold(last);
        }
        for step in steps.iter().rev() {
            let (first, last) = ends(step);
            match step {
                Step::Recompute(inner) => {
                    self.release(last);
                    self.run(inner, Phase::Recompute);
                }
                Step::Store(stage) => self.back(*stage, None),
                Step::Keep { stage, keep } => self.back(*stage, Some(*keep)),
            }
            self.release(first - 1);
        }
    }

    /// The outputs that cross the boundary behind a stage.
    fn boundary(&self, stage: usize) -> Vec<usize> {
        let long = self.long.iter().copied().take_while(|&from| from < stage);
        let long = long.filter(|&from| self.last_uses[from] > stage);
        long.chain((stage > 0).then_some(stage)).collect()
    }

    fn output_bytes(&self, stage: usize) -> u64 {
        self.chain.stages[stage - 1].output_bytes
    }

    fn hold(&mut self, boundary: usize) {
        for output in self.boundary(boundary) {
            self.users[output] += 1;
            if self.users[output] == 1 {
                self.bytes.boundaries += self.output_bytes(output);
            }
        }
    }

    fn release(&mut self, boundary: usize) {
        for output in self.boundary(boundary) {
            self.users[output] -= 1;
            if self.users[output] == 0 {
                self.bytes.boundaries -= self.output_bytes(output);
            }
        }
    }

    fn note(&mut self, stage: usize, phase: Phase, time: f64, bytes: Bytes) {
        self.found.time += time;
        if phase == Phase::Recompute {
            self.found.extra_time += time;
        }
        if bytes.total() > self.found.peak.total() {
            self.found.peak = bytes;
        }
        self.found.moments.push(Moment { stage, phase, time: self.found.time, bytes });
    }

    /// Runs stages forward and keeps nothing but what the boundaries that are held have.
    fn pass(&mut self, first: usize, last: usize, phase: Phase) {
        self.hold(first - 1);
        for stage in first..=last {
            let now = &self.chain.stages[stage - 1];
            let mut bytes = self.bytes;
            bytes.temporary += now.forward_extra_bytes;
            bytes.boundaries += now.output_bytes;
            let time = now.forward_time;
            self.note(stage, phase, time, bytes);
            self.hold(stage);
            self.release(stage - 1);
        }
        self.release(last);
    }

    fn save(&mut self, stage: usize, keep: Option<usize>, phase: Phase) {
        let now = &self.chain.stages[stage - 1];
        let mut bytes = self.bytes;
        bytes.boundaries += now.output_bytes;
        bytes.saved += now.saved_bytes + keep.map_or(0, |keep| now.keeps[keep].bytes);
        bytes.temporary += now.save_extra_bytes;
        let (time, extra) = (now.forward_time, keep.map_or(0.0, |keep| now.keeps[keep].time));
        self.found.extra_time += extra;
        self.bytes.saved += keep.map_or(now.saved_bytes, |keep| now.keeps[keep].bytes);
        self.note(stage, phase, time, bytes);
        self.found.time += extra;
    }

    fn back(&mut self, stage: usize, keep: Option<usize>) {
        let now = &self.chain.stages[stage - 1];
        let kept = keep.map_or(now.saved_bytes, |keep| now.keeps[keep].bytes);
        // A form that is no tensor of the step is there beside what it is turned back into.
        let unpacked = if keep.is_some() { now.saved_bytes } else { 0 };
        let mut worst = Bytes { saved: self.bytes.saved + unpacked, ..self.bytes };
        let mut made = 0;
        for &output in &self.ends[stage] {
            if !self.gradient_lives[output] {
                self.gradient_lives[output] = true;
                made += self.chain.stages[output - 1].output_gradient();
            }
        }
        worst.output_gradients += made;
        worst.gradients += if self.chain.gradients == Gradients::Resident { 0 } else { now.gradient_bytes };
        let extra = now.backward_extra_bytes;
        worst.temporary += extra.max(0).unsigned_abs();
        let resident = self.chain.gradients == Gradients::Resident;
        let own = now.output_bytes
            + now.saved_bytes
            + if keep.is_some() { kept } else { 0 }
            + worst.output_gradients
            + if resident { 0 } else { now.gradient_bytes };
        let at = lessened(worst, extra.min(0).unsigned_abs().min(own));
        let time = now.backward_time;
        self.bytes.saved -= kept;
        self.bytes.output_gradients += made;
        if self.gradient_lives[stage] {
            self.gradient_lives[stage] = false;
            self.bytes.output_gradients -= self.chain.stages[stage - 1].output_gradient();
        }
        if self.chain.gradients == Gradients::Kept {
            self.bytes.gradients += self.chain.stages[stage - 1].gradient_bytes;
        }
        self.note(stage, Phase::Backward, time, at);
        self.release(stage);
    }
}

/// Takes bytes away that are not there at the worst moment: of what is saved, then of the rest.
fn lessened(mut bytes: Bytes, mut less: u64) -> Bytes {
    for part in [&mut bytes.saved, &mut bytes.boundaries, &mut bytes.output_gradients, &mut bytes.gradients] {
        let taken = less.min(*part);
        *part -= taken;
        less -= taken;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Keep, Skip, Stage};
    use super::*;

    fn chain() -> Chain {
        let stage = |output_bytes| Stage {
            output_bytes,
            saved_bytes: 4,
            gradient_bytes: 1,
            forward_time: 1.0,
            backward_time: 2.0,
            ..Stage::default()
        };
        Chain { stages: vec![stage(2), stage(2), stage(2), stage(0)], ..Chain::default() }
    }

    fn replayed(chain: &Chain, json: &str) -> Replay {
        replay(chain, &serde_json::from_str::<Schedule>(json).unwrap()).unwrap()
    }

    #[test]
    fn a_plain_step_peaks_at_the_end_of_its_forward_or_later() {
        let found = replayed(&chain(), "[1,2,3,4]");
        // 16 saved and 6 of outputs; then the gradients of stage 4's input and parameters.
        assert_eq!((found.time, found.extra_time, found.peak.total()), (12.0, 0.0, 25));
        assert_eq!(found.moments.len(), 8);
        // The last backward leaves the gradients of all parameters, and nothing else grows.
        let last = found.moments[7].bytes;
        assert_eq!((last.gradients, last.output_gradients, last.saved, last.boundaries), (4, 2, 4, 2));
    }

    #[test]
    fn a_recomputed_segment_keeps_its_input_alone() {
        let found = replayed(&chain(), "[[1,2],3,4]");
        assert_eq!((found.time, found.extra_time), (14.0, 2.0));
        let end_of_forward = found.moments[3].bytes;
        assert_eq!((end_of_forward.saved, end_of_forward.boundaries), (8, 4));
        // The boundary between 1 and 2 is there only while the segment runs.
        assert_eq!(found.moments[1].bytes.boundaries, 4);
    }

    #[test]
    fn a_skip_keeps_its_tensor_once() {
        let mut chain = chain();
        chain.skips.push(Skip { from: 1, to: 4 });
        let found = replayed(&chain, "[1,[2,3],4]");
        // Behind stage 3 the outputs of 1 and 3 cross; that of 2 is gone.
        assert_eq!(found.moments[3].bytes.boundaries, 4);
        // The gradient of the skip is made by stage 4 and lives until stage 1's backward.
        let back = found.moments.iter().filter(|m| m.phase == Phase::Backward);
        let gradients: Vec<u64> = back.map(|m| m.bytes.output_gradients).collect();
        assert_eq!(gradients, [4, 6, 4, 2]);
    }

    #[test]
    fn another_form_of_keeping_costs_its_time_and_its_bytes() {
        let mut chain = chain();
        chain.stages[0].keeps.push(Keep { name: "int8".into(), bytes: 1, time: 0.5 });
        let found = replayed(&chain, r#"[{"stage":1,"keep":0},2,3,4]"#);
        assert_eq!((found.time, found.extra_time), (12.5, 0.5));
        assert_eq!(found.moments[1].bytes.saved, 5);
        assert!(replay(&chain, &[Step::Keep { stage: 1, keep: 1 }]).is_err());
    }

    #[test]
    fn what_is_not_there_lowers_the_worst_moment_of_its_stage() {
        let mut chain = chain();
        chain.gradients = Gradients::Fused;
        let plain = replayed(&chain, "[1,2,3,4]").peak.total();
        for stage in &mut chain.stages {
            stage.backward_extra_bytes = -2;
        }
        assert_eq!(replayed(&chain, "[1,2,3,4]").peak.total(), plain - 2);
        for stage in &mut chain.stages {
            stage.backward_extra_bytes = -100;
        }
        // Forward is the worst then; the backward of a stage takes nothing away from the others.
        let found = replayed(&chain, "[1,2,3,4]");
        assert_eq!((found.peak.total(), found.moments[4].bytes.total()), (22, 18));
    }

    #[test]
    fn a_schedule_of_another_chain_is_refused() {
        for wrong in ["[1,2,3]", "[2,1,3,4]", "[1,2,3,4,5]", "[[],1,2,3,4]", "[1,1,2,3,4]"] {
            let schedule: Schedule = serde_json::from_str(wrong).unwrap();
            assert!(matches!(replay(&chain(), &schedule), Err(Error::Config(_))), "{wrong}");
        }
    }
}
