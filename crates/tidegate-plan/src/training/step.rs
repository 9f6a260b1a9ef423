//! The plan of a step: micro-batches and a schedule that fit a budget, and what they cost.
//!
//! Flow: [`Profile`], a batch, [`Limits`] -> [`Planner`] -> [`StepPlan`] for any budget, and the
//! curve of time against memory.
//! Memory: one table of `rotor` for whole batches, one for micro-batches, each when it is needed.
//!
//! Of all numbers of micro-batches, the fastest plan within the budget is taken; of equal ones the
//! one with the fewest. Micro-batches add gradients up, so these stay in memory; a whole batch has
//! them stage by stage. What a micro-batch takes is in proportion to its samples.

use std::sync::OnceLock;

use serde::Serialize;
use tidegate_core::memory::size::counted;

use super::batch::{MOST_PARTS, micro_batches};
use super::chain::{Chain, Gradients};
use super::profile::Profile;
use super::rotor::Table;
use super::schedule::{Bytes, Replay, Schedule, Step, plain, replay};
use crate::error::{Error, Result, counted_to, sized};

/// Times that differ by less are equal: tables have them in single precision.
const EQUAL: f64 = 1e-6;

/// What a plan may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most micro-batches. By default 1 under batch normalization, where they change the
    /// result, and else 2^16.
    pub micro_batches: Option<u64>,
    /// Whether gradients may be used up as they come, by an optimizer that steps in backward.
    pub fused: bool,
    /// Whether stages may run forward again in backward.
    pub recompute: bool,
    /// Steps of the budget that the plan tells apart; at least three for each stage are taken.
    pub slots: u32,
}

impl Default for Limits {
    /// No fused optimizer, recomputation, 500 slots.
    fn default() -> Self {
        Self { micro_batches: None, fused: false, recompute: true, slots: 500 }
    }
}

/// A plan of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepPlan {
    /// The fingerprint of the model.
    pub fingerprint: String,
    /// The budget, in bytes.
    pub memory_bytes: u64,
    /// The samples of each micro-batch.
    pub micro_batches: Vec<u64>,
    /// When gradients take memory.
    pub gradients: Gradients,
    /// What is stored and what is recomputed, for each micro-batch.
    pub schedule: Schedule,
    /// The bytes of the worst moment.
    pub peak_bytes: u64,
    /// The same by kind.
    pub peak: Vec<(String, u64)>,
    /// The time of the step.
    pub time: f64,
    /// The time of the step with all the memory that it could use.
    pub plain_time: f64,
    /// What the step takes without a plan.
    pub plain_bytes: u64,
    /// The least bytes of any plan.
    pub floor_bytes: u64,
    /// The unit of times.
    pub time_unit: String,
    /// The moments of the largest micro-batch.
    pub replay: Replay,
}

/// A point of the curve of time against memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// The budget.
    pub memory_bytes: u64,
    /// The time of the fastest plan.
    pub time: f64,
    /// Its number of micro-batches.
    pub micro_batches: u64,
}

/// What a step of some batch holds, for each number of micro-batches.
#[derive(Debug)]
struct Sizes {
    profile: Profile,
    batch: u64,
    most_parts: u64,
    fused: bool,
    recompute: bool,
}

impl Sizes {
    fn new(profile: Profile, batch: u64, limits: Limits) -> Result<Self> {
        profile.check()?;
        counted_to("batch", batch, 1 << 32)?;
        let most = limits.micro_batches.unwrap_or(if profile.batch_norm { 1 } else { MOST_PARTS });
        counted_to("micro_batches", most, MOST_PARTS)?;
        Ok(Self {
            profile,
            batch,
            most_parts: most.min(batch),
            fused: limits.fused,
            recompute: limits.recompute,
        })
    }

    /// Numbers of micro-batches that are worth trying: all up to 16, then a quarter more each.
    fn tries(&self) -> impl Iterator<Item = u64> + use<> {
        let most = self.most_parts;
        let all = 1..=most.min(16);
        let more = std::iter::successors(Some(20u64), |n| Some(n + n / 4)).take_while(move |&n| n < most);
        all.chain(more).chain((most > 16).then_some(most))
    }

    fn gradients(&self, parts: u64) -> Gradients {
        match parts {
            1 if self.fused => Gradients::Fused,
            1 => Gradients::Kept,
            _ => Gradients::Resident,
        }
    }

    /// The samples of the largest micro-batch, over the batch of the profile.
    fn factor(&self, parts: u64) -> f64 {
        self.batch.div_ceil(parts) as f64 / self.profile.batch as f64
    }

    /// The chain of the largest micro-batch.
    fn chain(&self, parts: u64) -> Result<Chain> {
        let chain = self.profile.chain.scaled(self.factor(parts))?;
        Ok(Chain { gradients: self.gradients(parts), ..chain })
    }

    /// What is held besides the chain: states, the batch, and the gradients of micro-batches.
    fn held_bytes(&self, parts: u64) -> u64 {
        let input = self.profile.input_bytes as f64 * self.batch as f64 / self.profile.batch as f64;
        let gradients = if parts > 1 { self.profile.resident_bytes() } else { 0 };
        self.profile.held_bytes() + input.ceil() as u64 + gradients
    }

    /// Bytes of the optimizer's step: activations are gone, gradients are there.
    fn optimizer_bytes(&self, parts: u64) -> u64 {
        let kept = self.gradients(parts) == Gradients::Kept;
        let gradients = if kept { self.profile.chain.gradient_bytes() } else { 0 };
        self.held_bytes(parts) + gradients + self.profile.optimizer_extra_bytes
    }

    /// The worst moment of the chain, or the optimizer's step where that takes more.
    fn peak(&self, parts: u64, found: &Replay) -> Bytes {
        let optimizer = self.optimizer_bytes(parts) - self.held_bytes(parts);
        if found.peak.total() >= optimizer {
            return found.peak;
        }
        let temporary = self.profile.optimizer_extra_bytes;
        Bytes { gradients: optimizer - temporary, temporary, ..Bytes::default() }
    }

    fn peak_bytes(&self, parts: u64, found: &Replay) -> u64 {
        self.held_bytes(parts) + self.peak(parts, found).total()
    }

    /// The bytes of a step that recomputes nothing.
    fn plain_bytes(&self, parts: u64) -> Result<u64> {
        let chain = self.chain(parts)?;
        Ok(self.peak_bytes(parts, &replay(&chain, &plain(chain.stages.len()))?))
    }

    /// The time of a step when the chain of its largest micro-batch takes `time`.
    fn step_time(&self, parts: u64, time: f64) -> f64 {
        let largest = self.batch.div_ceil(parts) as f64;
        time * (self.batch as f64 / largest) + parts as f64 * self.profile.overhead_time
    }

    fn plain_time(&self, parts: u64) -> f64 {
        self.step_time(parts, self.profile.chain.plain_time() * self.factor(parts))
    }

    /// The bytes of the worst moment by kind.
    fn kinds(&self, parts: u64, found: &Replay) -> Vec<(String, u64)> {
        let held = self.profile.held.iter().map(|held| (held.name.clone(), held.bytes));
        let resident = if parts > 1 { self.profile.resident_bytes() } else { 0 };
        let input = self.held_bytes(parts) - self.profile.held_bytes() - resident;
        let peak = self.peak(parts, found);
        let rest = [
            ("batch", input),
            ("gradients", resident + peak.gradients),
            ("outputs of stages", peak.boundaries),
            ("saved for backward", peak.saved),
            ("gradients of outputs", peak.output_gradients),
            ("temporary", peak.temporary),
        ];
        let all = held.chain(rest.map(|(name, bytes)| (name.to_owned(), bytes)));
        all.filter(|(_, bytes)| *bytes > 0).collect()
    }
}

/// Plans of one model and one batch, for every budget.
#[derive(Debug)]
pub struct Planner {
    sizes: Sizes,
    slots: u32,
    /// The table of the whole batch.
    whole: OnceLock<Table>,
    /// The table of micro-batches, whose chain is that of the profile's batch.
    parts: OnceLock<Table>,
}

impl Planner {
    /// Prepares plans for a step of `batch` samples.
    ///
    /// # Errors
    /// Those of [`Profile::check`]; [`Error::Parameter`] for a batch of 0, or more than 2^16
    /// micro-batches.
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::profile::Profile;
    /// use tidegate_plan::training::step::{Limits, Planner};
    ///
    /// let text = r#"{"batch": 8, "optimizer": "adamw", "precision": "bf16_master", "layers": [
    ///     {"kind": "embedding", "vocabulary": 50257, "width": 768, "positions": 1024},
    ///     {"kind": "block", "name": "layer", "repeat": 12, "layers": [
    ///         {"kind": "transformer", "sequence": 1024, "width": 768, "heads": 12}]},
    ///     {"kind": "linear", "inputs": 768, "outputs": 50257, "positions": 1024},
    ///     {"kind": "cross_entropy", "classes": 50257, "positions": 1024}]}"#;
    /// let planner = Planner::new(Profile::from_json(text)?, 8, Limits::default())?;
    /// let plan = planner.plan(6 << 30)?;
    /// assert!(plan.peak_bytes <= 6 << 30 && plan.plain_bytes > 8 << 30);
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn new(profile: Profile, batch: u64, limits: Limits) -> Result<Self> {
        counted_to("slots", u64::from(limits.slots), 1 << 20)?;
        let stages = profile.chain.stages.len() as u32;
        // Each stage is rounded up to a slot: with few slots that is most of the budget.
        let slots = if stages <= 300 { limits.slots.max(3 * stages) } else { limits.slots };
        let sizes = Sizes::new(profile, batch, limits)?;
        Ok(Self { sizes, slots, whole: OnceLock::new(), parts: OnceLock::new() })
    }

    /// The table for a number of micro-batches, and what a byte of it is worth in the step.
    fn table(&self, parts: u64) -> Result<(&Table, f64)> {
        let (cell, factor) = match parts {
            1 => (&self.whole, 1.0),
            _ => (&self.parts, self.sizes.factor(parts)),
        };
        if cell.get().is_none() {
            let chain = match parts {
                1 => self.sizes.chain(1)?,
                _ => Chain { gradients: Gradients::Resident, ..self.sizes.profile.chain.clone() },
            };
            let limit = replay(&chain, &plain(chain.stages.len()))?.peak.total().max(1);
            // Another thread may have solved the same table meanwhile.
            cell.set(Table::solve(&chain, limit, self.slots)?).ok();
        }
        let table = cell.get().ok_or_else(|| Error::Internal("a table that was set is gone".into()))?;
        Ok((table, factor))
    }

    /// The budget of the table for a budget of the step, or None where nothing is left. Sizes of
    /// a scaled chain are rounded up, each by less than a byte.
    fn table_bytes(&self, parts: u64, factor: f64, memory_bytes: u64) -> Option<u64> {
        let left = memory_bytes.checked_sub(self.fixed_bytes(parts))?;
        Some((left as f64 / factor) as u64)
    }

    fn fixed_bytes(&self, parts: u64) -> u64 {
        let rounded = if parts == 1 { 0 } else { 8 * self.sizes.profile.chain.stages.len() as u64 };
        self.sizes.held_bytes(parts) + rounded
    }

    /// What the step takes when the table's budget is `bytes`.
    fn step_bytes(&self, parts: u64, factor: f64, bytes: u64) -> u64 {
        let chain = self.fixed_bytes(parts) + (bytes as f64 * factor).ceil() as u64;
        chain.max(self.sizes.optimizer_bytes(parts))
    }

    /// The least bytes of a number of micro-batches.
    fn floor_of(&self, parts: u64) -> Result<u64> {
        let plain = self.sizes.plain_bytes(parts)?;
        if !self.sizes.recompute {
            return Ok(plain);
        }
        let (table, factor) = self.table(parts)?;
        let floor = table.floor_bytes().map(|bytes| self.step_bytes(parts, factor, bytes));
        Ok(floor.map_or(plain, |floor| floor.min(plain)))
    }

    /// The number of micro-batches with the least floor, and that floor.
    fn floor(&self) -> Result<(u64, u64)> {
        let mut least = (1, u64::MAX);
        for parts in self.sizes.tries() {
            let floor = self.floor_of(parts)?;
            least = if floor < least.1 { (parts, floor) } else { least };
        }
        Ok(least)
    }

    /// The least bytes of any plan.
    ///
    /// # Errors
    /// Those of [`Table::solve`].
    pub fn floor_bytes(&self) -> Result<u64> {
        Ok(self.floor()?.1)
    }

    /// The fastest number of micro-batches within a budget, and whether nothing is recomputed.
    fn best(&self, memory_bytes: u64) -> Result<Option<(u64, bool)>> {
        let mut best: Option<(u64, bool, f64)> = None;
        for parts in self.sizes.tries() {
            let plain = self.sizes.plain_bytes(parts)? <= memory_bytes;
            let time = if plain {
                Some(self.sizes.plain_time(parts))
            } else if self.sizes.recompute && self.sizes.optimizer_bytes(parts) <= memory_bytes {
                let (table, factor) = self.table(parts)?;
                let budget = self.table_bytes(parts, factor, memory_bytes);
                budget.and_then(|budget| table.time(budget)).map(|t| self.sizes.step_time(parts, t * factor))
            } else {
                None
            };
            if let Some(time) =
                time.filter(|&time| best.is_none_or(|(_, _, least)| time < least * (1.0 - EQUAL)))
            {
                best = Some((parts, plain, time));
            }
            // More micro-batches recompute nothing either, and take no less time.
            if plain {
                break;
            }
        }
        Ok(best.map(|(parts, plain, _)| (parts, plain)))
    }

    /// The fastest plan within a budget.
    ///
    /// # Errors
    /// [`Error::Floor`] when no plan fits, with what the floor consists of and what lowers it;
    /// those of [`Table::solve`] and [`Table::schedule`].
    pub fn plan(&self, memory_bytes: u64) -> Result<StepPlan> {
        let Some((parts, whole)) = self.best(memory_bytes)? else {
            return Err(self.too_little(memory_bytes)?);
        };
        let chain = self.sizes.chain(parts)?;
        let schedule = if whole {
            plain(chain.stages.len())
        } else {
            let (table, factor) = self.table(parts)?;
            let budget = self.table_bytes(parts, factor, memory_bytes).unwrap_or(0);
            let fits = |schedule: &Schedule| {
                let found = replay(&chain, schedule)?;
                Ok(self.sizes.peak_bytes(parts, &found) <= memory_bytes)
            };
            let found = table.fitting(budget, fits)?;
            found.ok_or_else(|| Error::Internal("a budget with a time and no schedule".into()))?
        };
        let found = replay(&chain, &schedule)?;
        Ok(StepPlan {
            fingerprint: self.sizes.profile.fingerprint.clone(),
            memory_bytes,
            micro_batches: micro_batches(self.sizes.batch, parts)?,
            gradients: chain.gradients,
            schedule,
            peak_bytes: self.sizes.peak_bytes(parts, &found),
            peak: self.sizes.kinds(parts, &found),
            time: self.sizes.step_time(parts, found.time),
            plain_time: self.sizes.plain_time(1),
            plain_bytes: self.sizes.plain_bytes(1)?,
            floor_bytes: self.floor_bytes()?,
            time_unit: self.sizes.profile.time_unit.clone(),
            replay: found,
        })
    }

    fn too_little(&self, memory_bytes: u64) -> Result<Error> {
        let (parts, floor_bytes) = self.floor()?;
        let profile = &self.sizes.profile;
        let held = profile.held.iter().map(|held| format!("{} {}", held.name, sized(held.bytes)));
        let samples = counted(self.sizes.batch.div_ceil(parts), "sample");
        let above = floor_bytes.saturating_sub(profile.held_bytes());
        let rest = if self.sizes.gradients(parts) == Gradients::Fused {
            format!("gradients of a stage and activations of {samples} {}", sized(above))
        } else {
            let gradients = profile.chain.gradient_bytes();
            let activations = sized(above.saturating_sub(gradients));
            format!("gradients {}, activations of {samples} {activations}", sized(gradients))
        };
        let mut fix = vec!["parameters in fewer bytes, an optimizer that keeps less, or several devices"];
        if self.sizes.most_parts < self.sizes.batch {
            fix.push("more micro-batches");
        }
        if !self.sizes.fused {
            fix.push("a fused optimizer");
        }
        Ok(Error::Floor {
            floor_bytes,
            given_bytes: memory_bytes,
            parts: held.chain([rest]).collect::<Vec<_>>().join(", "),
            fix: fix.join("; "),
        })
    }

    /// The time of the fastest plan for every budget, from the floor to where more memory brings
    /// nothing.
    ///
    /// # Errors
    /// Those of [`Table::solve`].
    pub fn curve(&self) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        for parts in self.sizes.tries() {
            if self.sizes.recompute {
                let (table, factor) = self.table(parts)?;
                points.extend(table.curve().map(|(bytes, time)| Point {
                    memory_bytes: self.step_bytes(parts, factor, bytes),
                    time: self.sizes.step_time(parts, time * factor),
                    micro_batches: parts,
                }));
            }
            points.push(Point {
                memory_bytes: self.sizes.plain_bytes(parts)?,
                time: self.sizes.plain_time(parts),
                micro_batches: parts,
            });
        }
        points.sort_by_key(|point| (point.memory_bytes, point.micro_batches));
        let mut best = f64::INFINITY;
        points.retain(|point| {
            let better = point.time < best * (1.0 - EQUAL) || best.is_infinite();
            best = best.min(point.time);
            better
        });
        Ok(points)
    }
}

/// The largest batch whose step fits a budget, up to `most`; 0 where none does.
///
/// # Errors
/// Those of [`Planner::new`] and [`Planner::plan`].
pub fn largest_batch(profile: &Profile, memory_bytes: u64, limits: Limits, most: u64) -> Result<u64> {
    greatest(most.min(1 << 32), |batch| {
        let planner = Planner::new(profile.clone(), batch, limits)?;
        for parts in planner.sizes.tries() {
            if planner.sizes.plain_bytes(parts)? <= memory_bytes {
                return Ok(true);
            }
        }
        Ok(limits.recompute && planner.best(memory_bytes)?.is_some())
    })
}

/// The greatest number up to `most` for which `holds` is true, where it holds up to some number.
fn greatest(most: u64, mut holds: impl FnMut(u64) -> Result<bool>) -> Result<u64> {
    let (mut yes, mut next) = (0, 1);
    while next <= most && holds(next)? {
        yes = next;
        next *= 2;
    }
    let mut no = next.min(most + 1);
    while yes + 1 < no {
        let middle = yes + (no - yes) / 2;
        if holds(middle)? { yes = middle } else { no = middle }
    }
    Ok(yes)
}

/// Numbers that follow one another as ranges: «1-4, 7».
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let text = |&(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}

impl StepPlan {
    /// The stages that run forward more than once, and those that are kept in another form.
    fn stages(&self) -> (Vec<usize>, Vec<usize>) {
        fn within(steps: &[Step], again: bool, found: &mut (Vec<usize>, Vec<usize>)) {
            for step in steps {
                let stage = match step {
                    Step::Recompute(inner) => {
                        within(inner, true, found);
                        continue;
                    }
                    Step::Store(stage) => *stage,
                    Step::Keep { stage, .. } => {
                        found.1.push(*stage);
                        *stage
                    }
                };
                found.0.extend(again.then_some(stage));
            }
        }
        let mut found = (Vec::new(), Vec::new());
        within(&self.schedule, false, &mut found);
        found
    }

    /// How many stages run forward more than once.
    #[must_use]
    pub fn recomputed_stages(&self) -> usize {
        self.stages().0.len()
    }

    /// The plan in words: what fits, what is recomputed, what it costs, and the peak by kind.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = vec![format!(
            "The step takes {} of {}; without a plan it takes {}.",
            sized(self.peak_bytes),
            sized(self.memory_bytes),
            sized(self.plain_bytes)
        )];
        let (again, kept) = self.stages();
        let split = match self.micro_batches.len() as u64 {
            1 => "The batch is one piece".to_owned(),
            parts => {
                format!("The batch is {} of up to {}", counted(parts, "micro-batch"), self.micro_batches[0])
            }
        };
        let time = if self.plain_time > 0.0 {
            format!("the time is {:.1} % more", 100.0 * (self.time / self.plain_time - 1.0))
        } else {
            "no times are given".into()
        };
        lines.push(match again.len() as u64 {
            0 => format!("{split}; nothing is recomputed; {time}."),
            n => format!("{split}; {} ({}) run forward again; {time}.", counted(n, "stage"), ranges(&again)),
        });
        if !kept.is_empty() {
            lines.push(format!("Kept in another form: {}.", ranges(&kept)));
        }
        lines.push(format!("The least memory of any plan is {}.", sized(self.floor_bytes)));
        lines.push("At the worst moment:".into());
        lines.extend(self.peak.iter().map(|(name, bytes)| format!("{name:>22}  {:>14}", sized(*bytes))));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Stage;
    use super::super::profile::Held;
    use super::*;

    /// Ten stages with 3 MiB of parameters, which save 5 MiB a sample and pass 1 MiB on.
    fn profile() -> Profile {
        let mib = 1 << 20;
        let stage = Stage {
            output_bytes: 8 * mib,
            saved_bytes: 40 * mib,
            gradient_bytes: 3 * mib,
            forward_time: 8.0,
            backward_time: 16.0,
            ..Stage::default()
        };
        Profile {
            batch: 8,
            chain: Chain { stages: vec![stage; 10], ..Chain::default() },
            held: vec![Held { name: "parameters".into(), bytes: 30 * mib }],
            input_bytes: 8 * mib,
            overhead_time: 2.0,
            ..Profile::default()
        }
    }

    #[test]
    fn every_plan_of_the_curve_keeps_its_budget_and_its_time() {
        for (batch, fused) in [(8, false), (24, false), (5, true)] {
            let limits = Limits { fused, ..Limits::default() };
            let planner = Planner::new(profile(), batch, limits).unwrap();
            let curve = planner.curve().unwrap();
            assert!(
                curve.len() > 10
                    && curve.is_sorted_by(|a, b| a.memory_bytes < b.memory_bytes && a.time > b.time)
            );
            assert_eq!(curve[0].memory_bytes, planner.floor_bytes().unwrap());
            for point in &curve {
                let plan = planner.plan(point.memory_bytes).unwrap();
                assert!(
                    plan.peak_bytes <= point.memory_bytes,
                    "{} of {}",
                    plan.peak_bytes,
                    point.memory_bytes
                );
                // The curve rounds sizes up to slots, and a plan is replayed.
                assert!(plan.time < point.time * (1.0 + 1e-6), "{} and {}", plan.time, point.time);
                assert_eq!(plan.micro_batches.iter().sum::<u64>(), batch);
                assert_eq!(plan.peak.iter().map(|(_, bytes)| bytes).sum::<u64>(), plan.peak_bytes);
            }
            let last = &curve[curve.len() - 1];
            assert_eq!((last.time, last.micro_batches), (planner.plan(1 << 40).unwrap().plain_time, 1));
        }
    }

    #[test]
    fn what_is_rounded_up_to_slots_is_used() {
        // Each of ten outputs is a little more than a slot of the plain step's bytes.
        let stage = Stage { output_bytes: 8200, saved_bytes: 400_000, forward_time: 1.0, ..Stage::default() };
        let profile = Profile {
            batch: 1,
            chain: Chain { stages: vec![stage; 10], ..Chain::default() },
            ..Profile::default()
        };
        let limits = Limits { slots: 500, ..Limits::default() };
        let planner = Planner::new(profile, 1, limits).unwrap();
        // Each stage but the last runs forward once more, and nothing else is kept than its input.
        let each: Schedule = serde_json::from_str("[[1],[2],[3],[4],[5],[6],[7],[8],[9],10]").unwrap();
        let chain = planner.sizes.chain(1).unwrap();
        let peak = replay(&chain, &each).unwrap().peak.total();
        let plan = planner.plan(peak).unwrap();
        assert!(plan.peak_bytes <= peak);
        assert_eq!(plan.time, 19.0);
        let table = planner.table(1).unwrap().0;
        assert!(table.time(peak).unwrap() > 19.0);
    }

    #[test]
    fn the_optimizers_step_is_within_the_budget_too() {
        let large = Profile { optimizer_extra_bytes: 1 << 30, ..profile() };
        let planner = Planner::new(large, 8, Limits::default()).unwrap();
        let least = (1 << 30) + (30 + 30 + 8) * (1 << 20);
        assert_eq!(planner.floor_bytes().unwrap(), least);
        let plan = planner.plan(least).unwrap();
        assert_eq!((plan.peak_bytes, plan.recomputed_stages()), (least, 0));
        assert_eq!(plan.peak.iter().map(|(_, bytes)| bytes).sum::<u64>(), least);
        assert!(planner.plan(least - 1).is_err());
    }

    #[test]
    fn one_piece_is_recomputed_where_it_must_not_be_split() {
        let one = Limits { micro_batches: Some(1), ..Limits::default() };
        let planner = Planner::new(profile(), 8, one).unwrap();
        let whole = planner.plan(1 << 40).unwrap();
        assert_eq!((whole.recomputed_stages(), whole.peak_bytes), (0, whole.plain_bytes));
        let plan = planner.plan(whole.plain_bytes / 2).unwrap();
        assert!(plan.recomputed_stages() > 0 && plan.time > plan.plain_time);
        assert!(plan.text().contains("The batch is one piece; "), "{}", plan.text());
    }

    #[test]
    fn below_the_floor_the_error_says_what_would_help() {
        let planner =
            Planner::new(profile(), 8, Limits { micro_batches: Some(2), ..Limits::default() }).unwrap();
        let floor = planner.floor_bytes().unwrap();
        assert!(planner.plan(floor).is_ok());
        let error = planner.plan(floor - (1 << 20)).unwrap_err();
        assert_eq!(error.kind(), tidegate_core::ErrorKind::Budget);
        let text = error.to_string();
        for words in
            ["the step takes at least", "parameters 30.0 MiB", "gradients 30.0 MiB", "more micro-batches"]
        {
            assert!(text.contains(words), "{text}");
        }
        let fused =
            Planner::new(profile(), 8, Limits { micro_batches: Some(1), fused: true, ..Limits::default() });
        let text = fused.unwrap().plan(1 << 20).unwrap_err().to_string();
        assert!(text.contains("gradients of a stage and activations of 8 samples"), "{text}");
        assert!(!text.contains("a fused optimizer"), "{text}");
    }

    #[test]
    fn the_largest_batch_is_found_by_halving() {
        for largest in [0, 1, 2, 3, 7, 8, 100, 1000] {
            let mut asked = 0;
            let found = greatest(1000, |batch| {
                asked += 1;
                Ok(batch <= largest)
            });
            assert_eq!(found.unwrap(), largest);
            assert!(asked <= 21, "{asked}");
        }
    }

    /// The largest batch is the last whose step fits, however many stages there are.
    #[test]
    fn the_largest_batch_fits_and_the_next_does_not() {
        for stages in [10, 100] {
            let mut profile = profile();
            profile.chain.stages = vec![profile.chain.stages[0].clone(); stages];
            let memory =
                Planner::new(profile.clone(), 20, Limits::default()).unwrap().sizes.plain_bytes(1).unwrap();
            for (micro_batches, recompute) in [(1, false), (1, true), (4, false)] {
                let limits = Limits { micro_batches: Some(micro_batches), recompute, ..Limits::default() };
                let largest = largest_batch(&profile, memory, limits, 1 << 20).unwrap();
                let plan = |batch| Planner::new(profile.clone(), batch, limits).unwrap().plan(memory);
                assert!(plan(largest).is_ok() && largest >= 20, "{largest} of {stages} stages");
                assert!(plan(largest + 1).is_err());
                match (micro_batches, recompute) {
                    (1, false) => assert_eq!(largest, 20),
                    (1, true) => assert!(largest > 20),
                    _ => assert!(largest > 60, "{largest}"),
                }
            }
        }
    }

    #[test]
    fn with_all_memory_nothing_is_recomputed_or_cut_whatever_the_slots() {
        for (stages, batch) in [(10, 24), (200, 8)] {
            let mut profile = profile();
            profile.chain.stages = vec![profile.chain.stages[0].clone(); stages];
            let limits = Limits { slots: 10, ..Limits::default() };
            let plan = Planner::new(profile, batch, limits).unwrap().plan(1 << 45).unwrap();
            assert_eq!((plan.recomputed_stages(), plan.micro_batches.len()), (0, 1));
            assert_eq!((plan.time, plan.peak_bytes), (plan.plain_time, plan.plain_bytes));
        }
    }

    #[test]
    fn under_batch_normalization_only_a_user_cuts_the_batch() {
        let normed = Profile { batch_norm: true, ..profile() };
        let parts = |micro_batches| {
            let limits = Limits { micro_batches, ..Limits::default() };
            let planner = Planner::new(normed.clone(), 8, limits).unwrap();
            planner.plan(planner.floor_bytes().unwrap()).unwrap().micro_batches.len()
        };
        assert_eq!(parts(None), 1);
        assert!(parts(Some(8)) > 1);
    }

    #[test]
    fn a_chain_without_times_is_planned_too() {
        let mut profile = profile();
        for stage in &mut profile.chain.stages {
            (stage.forward_time, stage.backward_time) = (0.0, 0.0);
        }
        profile.overhead_time = 0.0;
        let planner =
            Planner::new(profile, 8, Limits { micro_batches: Some(1), ..Limits::default() }).unwrap();
        let plan = planner.plan(planner.floor_bytes().unwrap()).unwrap();
        assert!(
            plan.text().contains("no times are given") && plan.recomputed_stages() > 0,
            "{}",
            plan.text()
        );
    }
}
