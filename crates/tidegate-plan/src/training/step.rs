//! The plan of a step: micro-batches and a schedule that fit a budget, and what they cost.
//!
//! Flow: [`Profile`], a batch, [`Limits`] -> [`Planner`], solved once -> [`StepPlan`] for any
//! budget, and the curve of time against memory.
//! Memory: one table of `rotor` for whole batches, one for micro-batches.
//!
//! Of all numbers of micro-batches, the fastest plan within the budget is taken; of equal ones the
//! one with the fewest. Micro-batches add gradients up, so these stay in memory; a whole batch has
//! them stage by stage. What a micro-batch takes is in proportion to its samples.

use serde::Serialize;
use tidegate_core::memory::size::{counted, mib};

use super::batch::micro_batches;
use super::chain::{Chain, Gradients};
use super::profile::Profile;
use super::rotor::Table;
use super::schedule::{Replay, Schedule, Step, plain, replay};
use crate::error::{Error, Result, at_least_one};

/// What a plan may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most micro-batches. 1 where a batch must not be split, as under batch normalization.
    pub micro_batches: u64,
    /// Whether gradients may be used up as they come, by an optimizer that steps in backward.
    pub fused: bool,
    /// Steps of the budget that the plan tells apart.
    pub slots: u32,
}

impl Default for Limits {
    /// Up to 2^16 micro-batches, no fused optimizer, 500 slots.
    fn default() -> Self {
        Self { micro_batches: 1 << 16, fused: false, slots: 500 }
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

/// Plans of one model and one batch, for every budget.
#[derive(Debug)]
pub struct Planner {
    profile: Profile,
    batch: u64,
    limits: Limits,
    /// The chain of the whole batch, and its table.
    whole: (Chain, Table),
    /// The chain of the profile's batch without gradients, and its table, for micro-batches.
    parts: (Chain, Table),
}

impl Planner {
    /// Solves the step of `batch` samples for every budget.
    ///
    /// # Errors
    /// Those of [`Profile::check`] and [`Table::solve`]; [`Error::Parameter`] for a batch of 0.
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
        profile.check()?;
        at_least_one("batch", batch)?;
        at_least_one("micro_batches", limits.micro_batches)?;
        let solved = |chain: Chain, gradients| -> Result<(Chain, Table)> {
            let chain = Chain { gradients, ..chain };
            let limit = replay(&chain, &plain(chain.stages.len()))?.peak.total().max(1);
            // A little more than the plain step takes: sizes are rounded up to slots.
            let table = Table::solve(&chain, limit + limit / 20 + 1, limits.slots)?;
            Ok((chain, table))
        };
        let factor = batch as f64 / profile.batch as f64;
        let gradients = if limits.fused { Gradients::Fused } else { Gradients::Kept };
        let whole = solved(profile.chain.scaled(factor)?, gradients)?;
        let parts = solved(profile.chain.clone(), Gradients::Resident)?;
        Ok(Self { profile, batch, limits, whole, parts })
    }

    /// Numbers of micro-batches that are worth trying: those of a different largest size.
    fn tries(&self) -> impl Iterator<Item = u64> {
        let most = self.limits.micro_batches.min(self.batch);
        let all = (1..=most).take_while(|&n| n <= 16);
        let more = std::iter::successors(Some(20u64), |n| Some(n + n / 4)).take_while(move |&n| n < most);
        all.chain(more).chain((most > 16).then_some(most))
    }

    fn of_parts(&self, parts: u64) -> &(Chain, Table) {
        if parts == 1 { &self.whole } else { &self.parts }
    }

    /// What is held besides the chain: states, the batch, and gradients that micro-batches add to.
    fn held_bytes(&self, parts: u64) -> u64 {
        let input = self.profile.input_bytes as f64 * self.batch as f64 / self.profile.batch as f64;
        let gradients = if parts > 1 { self.profile.chain.gradient_bytes() } else { 0 };
        self.profile.held_bytes() + input.ceil() as u64 + gradients
    }

    /// The largest micro-batch, over the batch of the chain that it is planned with.
    fn factor(&self, parts: u64) -> f64 {
        match parts {
            1 => 1.0,
            _ => self.batch.div_ceil(parts) as f64 / self.profile.batch as f64,
        }
    }

    /// The budget of the table for a budget of the step, or None where nothing is left.
    fn table_bytes(&self, parts: u64, memory_bytes: u64) -> Option<u64> {
        let left = memory_bytes.checked_sub(self.held_bytes(parts) + self.rounded_bytes())?;
        Some((left as f64 / self.factor(parts)) as u64)
    }

    /// The sizes of a scaled chain are rounded up, each by less than a byte.
    fn rounded_bytes(&self) -> u64 {
        8 * self.profile.chain.stages.len() as u64
    }

    /// The time of a step of `parts` micro-batches, when their chain takes `time`.
    fn step_time(&self, parts: u64, time: f64) -> f64 {
        let chains = if parts == 1 { 1.0 } else { self.batch as f64 / self.profile.batch as f64 };
        time * chains + parts as f64 * self.profile.overhead_time
    }

    /// The least bytes of a number of micro-batches.
    fn floor_of(&self, parts: u64) -> u64 {
        let (_, table) = self.of_parts(parts);
        let floor = table.floor_bytes().unwrap_or(0);
        self.held_bytes(parts) + self.rounded_bytes() + (floor as f64 * self.factor(parts)).ceil() as u64
    }

    /// The least bytes of any plan.
    #[must_use]
    pub fn floor_bytes(&self) -> u64 {
        self.tries().map(|parts| self.floor_of(parts)).min().unwrap_or(0)
    }

    /// The fastest plan within a budget.
    ///
    /// # Errors
    /// [`Error::Floor`] when no plan fits, with what the floor consists of and what lowers it.
    pub fn plan(&self, memory_bytes: u64) -> Result<StepPlan> {
        let time_of = |parts: u64| {
            let (_, table) = self.of_parts(parts);
            let time = table.time(self.table_bytes(parts, memory_bytes)?)?;
            Some((parts, self.step_time(parts, time)))
        };
        let fits = self.tries().filter_map(time_of);
        let best = fits.reduce(|best, next| if next.1 < best.1 { next } else { best });
        let Some((parts, time)) = best else { return Err(self.too_little(memory_bytes)) };
        let (chain, table) = self.of_parts(parts);
        let budget = self.table_bytes(parts, memory_bytes).unwrap_or(0);
        let schedule = table.schedule(budget).map(|(schedule, _)| schedule).unwrap_or_default();
        let found = replay(&chain.scaled(self.factor(parts))?, &schedule)?;
        let held = self.held_bytes(parts);
        Ok(StepPlan {
            fingerprint: self.profile.fingerprint.clone(),
            memory_bytes,
            micro_batches: micro_batches(self.batch, parts)?,
            gradients: chain.gradients,
            schedule,
            peak_bytes: held + found.peak.total(),
            peak: self.kinds(parts, &found),
            time,
            plain_time: self.step_time(1, self.whole.0.plain_time()),
            plain_bytes: self.plain_bytes()?,
            floor_bytes: self.floor_bytes(),
            time_unit: self.profile.time_unit.clone(),
            replay: found,
        })
    }

    fn plain_bytes(&self) -> Result<u64> {
        let chain = Chain { gradients: Gradients::Kept, ..self.whole.0.clone() };
        Ok(self.held_bytes(1) + replay(&chain, &plain(chain.stages.len()))?.peak.total())
    }

    fn kinds(&self, parts: u64, found: &Replay) -> Vec<(String, u64)> {
        let held = self.profile.held.iter().map(|held| (held.name.clone(), held.bytes));
        let resident = if parts > 1 { self.profile.chain.gradient_bytes() } else { 0 };
        let input = self.held_bytes(parts) - self.profile.held_bytes() - resident;
        let peak = found.peak;
        let rest = [
            ("batch", input),
            ("gradients", resident + peak.gradients),
            ("outputs of stages", peak.boundaries),
            ("saved for backward", peak.saved),
            ("gradients of outputs", peak.output_gradients),
            ("temporary", peak.temporary),
        ];
        held.chain(rest.map(|(name, bytes)| (name.to_owned(), bytes)))
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }

    fn too_little(&self, memory_bytes: u64) -> Error {
        let parts = self.tries().min_by_key(|&parts| self.floor_of(parts)).unwrap_or(1);
        let floor_bytes = self.floor_of(parts);
        let held = self.profile.held.iter().map(|held| format!("{} {} MiB", held.name, mib(held.bytes)));
        let gradients = self.profile.chain.gradient_bytes();
        let own = self.profile.held_bytes() + gradients;
        let rest = format!(
            "gradients {} MiB, activations of {} {} MiB",
            mib(gradients),
            counted(self.batch.div_ceil(parts), "sample"),
            mib(floor_bytes.saturating_sub(own))
        );
        let mut fix = vec!["parameters in fewer bytes, an optimizer that keeps less, or several devices"];
        if self.limits.micro_batches < self.batch {
            fix.push("more micro-batches");
        }
        if !self.limits.fused {
            fix.push("a fused optimizer");
        }
        Error::Floor {
            floor_bytes,
            given_bytes: memory_bytes,
            parts: held.chain([rest]).collect::<Vec<_>>().join(", "),
            fix: fix.join("; "),
        }
    }

    /// The time of the fastest plan for every budget, from the floor to where more memory brings
    /// nothing.
    #[must_use]
    pub fn curve(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for parts in self.tries() {
            let (_, table) = self.of_parts(parts);
            let (floor, factor) = (self.floor_of(parts), self.factor(parts));
            let least = table.floor_bytes().unwrap_or(0);
            points.extend(table.curve().map(|(bytes, time)| Point {
                memory_bytes: floor + ((bytes - least) as f64 * factor).ceil() as u64,
                time: self.step_time(parts, time),
                micro_batches: parts,
            }));
        }
        points.sort_by(|a, b| {
            (a.memory_bytes, a.micro_batches)
                .cmp(&(b.memory_bytes, b.micro_batches))
                .then(a.time.total_cmp(&b.time))
        });
        let mut best = f64::INFINITY;
        points.retain(|point| {
            let better = point.time < best * (1.0 - 1e-6);
            best = best.min(point.time);
            better
        });
        points
    }
}

/// The largest batch whose step fits a budget, without or with recomputation and micro-batches.
///
/// `predict` says whether a batch fits; it is asked for powers of two, then between.
///
/// # Errors
/// What `predict` returns.
pub fn largest_batch(most: u64, mut predict: impl FnMut(u64) -> Result<bool>) -> Result<u64> {
    let mut fits = 0;
    let mut next = 1;
    while next <= most && predict(next)? {
        fits = next;
        next *= 2;
    }
    let mut too_large = next.min(most + 1);
    while fits + 1 < too_large {
        let middle = fits + (too_large - fits) / 2;
        if predict(middle)? { fits = middle } else { too_large = middle }
    }
    Ok(fits)
}

impl StepPlan {
    /// How many stages run forward more than once.
    #[must_use]
    pub fn recomputed_stages(&self) -> usize {
        fn within(steps: &[Step], recomputed: bool) -> usize {
            let count = |step: &Step| match step {
                Step::Recompute(inner) => within(inner, true),
                _ => usize::from(recomputed),
            };
            steps.iter().map(count).sum()
        }
        within(&self.schedule, false)
    }

    /// The plan in words: what fits, what is recomputed, what it costs, and the peak by kind.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = vec![format!(
            "The step takes {} of {} MiB; without a plan it takes {} MiB.",
            mib(self.peak_bytes),
            mib(self.memory_bytes),
            mib(self.plain_bytes)
        )];
        let parts = self.micro_batches.len() as u64;
        let stages = counted(self.recomputed_stages() as u64, "stage");
        let split = match parts {
            1 => "The batch is one piece".to_owned(),
            _ => format!("The batch is {} of up to {}", counted(parts, "micro-batch"), self.micro_batches[0]),
        };
        let more = self.time / self.plain_time - 1.0;
        lines.push(format!("{split}; {stages} run forward again; the time is {:.1} % more.", 100.0 * more));
        lines.push(format!("The least memory of any plan is {} MiB.", mib(self.floor_bytes)));
        lines.push("At the worst moment:".into());
        for (name, bytes) in &self.peak {
            lines.push(format!("{name:>22}  {:>10} MiB", mib(*bytes)));
        }
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
            let curve = planner.curve();
            assert!(
                curve.len() > 10
                    && curve.is_sorted_by(|a, b| a.memory_bytes < b.memory_bytes && a.time > b.time)
            );
            assert_eq!(curve[0].memory_bytes, planner.floor_bytes());
            for point in &curve {
                let plan = planner.plan(point.memory_bytes).unwrap();
                assert!(
                    plan.peak_bytes <= point.memory_bytes,
                    "{} of {}",
                    plan.peak_bytes,
                    point.memory_bytes
                );
                assert!((plan.time / point.time - 1.0).abs() < 1e-6, "{} and {}", plan.time, point.time);
                assert_eq!(plan.micro_batches.iter().sum::<u64>(), batch);
                assert_eq!(plan.peak.iter().map(|(_, bytes)| bytes).sum::<u64>(), plan.peak_bytes);
            }
            let last = &curve[curve.len() - 1];
            assert_eq!((last.time, last.micro_batches), (planner.plan(1 << 40).unwrap().plain_time, 1));
        }
    }

    #[test]
    fn one_piece_is_recomputed_where_it_must_not_be_split() {
        let one = Limits { micro_batches: 1, ..Limits::default() };
        let planner = Planner::new(profile(), 8, one).unwrap();
        let whole = planner.plan(1 << 40).unwrap();
        assert_eq!((whole.recomputed_stages(), whole.peak_bytes), (0, whole.plain_bytes));
        let plan = planner.plan(whole.plain_bytes / 2).unwrap();
        assert!(plan.recomputed_stages() > 0 && plan.time > plan.plain_time);
        assert!(plan.text().contains("The batch is one piece; "), "{}", plan.text());
    }

    #[test]
    fn below_the_floor_the_error_says_what_would_help() {
        let planner = Planner::new(profile(), 8, Limits { micro_batches: 2, ..Limits::default() }).unwrap();
        let floor = planner.floor_bytes();
        assert!(planner.plan(floor).is_ok());
        let error = planner.plan(floor - (1 << 20)).unwrap_err();
        assert_eq!(error.kind(), tidegate_core::ErrorKind::Budget);
        let text = error.to_string();
        for words in
            ["the step takes at least", "parameters 30.0 MiB", "gradients 30.0 MiB", "more micro-batches"]
        {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn the_largest_batch_is_found_by_halving() {
        for largest in [0, 1, 2, 3, 7, 8, 100, 1000] {
            let mut asked = 0;
            let found = largest_batch(1000, |batch| {
                asked += 1;
                Ok(batch <= largest)
            });
            assert_eq!(found.unwrap(), largest);
            assert!(asked <= 21, "{asked}");
        }
        let fits = |batch| Ok(Planner::new(profile(), batch, Limits::default())?.plan(1 << 30).is_ok());
        assert!(largest_batch(64, fits).unwrap() == 64);
    }
}
