//! Rotor: the fastest schedule of a heterogeneous chain for every budget, from one table.
//!
//! Flow: [`Chain`], a limit in bytes, slots -> [`Table`] -> `time` and `schedule` of any budget.
//! Memory: four bytes for each slot of each pair of stages, and 16 for each pair: 39 MiB for 200
//! stages and 500 slots.
//!
//! Source: O. Beaumont, L. Eyraud-Dubois, J. Herrmann, A. Joly, A. Shilova, "Optimal checkpointing
//! for heterogeneous chains: how to train deep neural networks with limited memory",
//! arXiv:1911.13214. Optimal among memory-persistent schedules: what is kept stays until its
//! backward. Added here: several ways to keep a stage; gradients that stay; and outputs that later
//! stages use too, which are counted once because what crosses two boundaries is one tensor.
//!
//! Bytes are rounded up to slots and the budget down, so a schedule never exceeds its budget.

use super::chain::{Chain, Gradients};
use super::schedule::{DEEPEST, Schedule, Step, depth, plain, replay};
use crate::error::{Error, Result, at_least_one, sized};

/// The most bytes of a table.
const TABLE_BYTES: u64 = 1 << 30;
/// Slots above a budget whose schedules are replayed: a slot for each stage is rounded at most.
const MOST_ABOVE: usize = 64;
/// The most sums of a table, which take half a minute.
const MOST_WORK: f64 = 2e10;

/// Times of all budgets for all runs of stages.
#[derive(Debug)]
pub struct Table {
    costs: Costs,
    unit: u64,
    slots: usize,
    /// For stages i to j and each budget, the least time of their forward and backward.
    times: Vec<f32>,
    /// The least slot with a schedule, and the bytes that this takes: less than the slot's budget.
    floor: Option<(usize, u64)>,
}

/// The fastest schedule of a chain within a budget, and its time. For several budgets of one
/// chain, [`Table::solve`] once.
///
/// # Errors
/// Those of [`Table::solve`]; [`Error::Floor`] when no schedule fits, with the least that one
/// takes.
pub fn fastest(chain: &Chain, budget_bytes: u64, slots: u32) -> Result<(Schedule, f64)> {
    chain.check()?;
    let whole = plain(chain.stages.len());
    let plain_bytes = replay(chain, &whole)?.peak.total();
    if plain_bytes <= budget_bytes {
        return Ok((whole, chain.plain_time()));
    }
    if let Some(found) = Table::solve(chain, budget_bytes.max(1), slots)?.schedule(budget_bytes)? {
        return Ok(found);
    }
    let least = Table::solve(chain, plain_bytes, slots)?.floor_bytes();
    Err(Error::Floor {
        floor_bytes: least.unwrap_or(plain_bytes),
        given_bytes: budget_bytes,
        parts: format!("all stages stored take {}", sized(plain_bytes)),
        fix: "smaller batches, stages that are cut finer, or more slots".into(),
    })
}

/// A step of the recursion, and what is left for the rest.
enum Choice {
    Store(Option<usize>),
    Split(usize),
}

impl Table {
    /// Solves a chain for all budgets up to `limit_bytes`, in steps of `limit_bytes / slots`.
    ///
    /// # Errors
    /// Those of [`Chain::check`]; [`Error::Config`] when the table would take more than 1 GiB or
    /// half a minute.
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::chain::{Chain, Stage};
    /// use tidegate_plan::training::rotor::Table;
    ///
    /// let stage = Stage { output_bytes: 1, saved_bytes: 2, ..Stage::default() };
    /// let stage = Stage { forward_time: 1.0, backward_time: 2.0, ..stage };
    /// let mut stages = vec![stage; 64];
    /// stages[63].output_bytes = 0;
    /// let chain = Chain { stages, ..Chain::default() };
    /// let table = Table::solve(&chain, 200, 200)?;
    /// let (schedule, time) = table.schedule(32)?.unwrap();
    /// assert_eq!(time, 248.0); // 1.292 times the 192 of the step without recomputation
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn solve(chain: &Chain, limit_bytes: u64, slots: u32) -> Result<Self> {
        chain.check()?;
        at_least_one("slots", u64::from(slots))?;
        at_least_one("the limit in bytes", limit_bytes)?;
        let bytes = Self::bytes(chain.stages.len(), slots);
        let work = (chain.stages.len() as f64).powi(3) / 6.0 * f64::from(slots);
        if bytes > TABLE_BYTES || work > MOST_WORK {
            let what = format!(
                "{} stages and {slots} slots take a table of {} MiB and {:.0} billion sums, and the most are {} MiB \
                 and {:.0} billion: merge stages",
                chain.stages.len(),
                bytes >> 20,
                work / 1e9,
                TABLE_BYTES >> 20,
                MOST_WORK / 1e9
            );
            return Err(Error::Config(what));
        }
        let slots = slots as usize;
        let unit = limit_bytes.div_ceil(slots as u64);
        let costs = Costs::new(chain);
        let rows = costs.stages * (costs.stages + 1) / 2;
        let times = vec![f32::INFINITY; rows * (slots + 1)];
        let mut table = Self { costs, unit, slots, times, floor: None };
        table.fill();
        if let Some(slot) = table.row(1, table.costs.stages).iter().position(|time| time.is_finite()) {
            let peak = replay(chain, &table.steps(slot)?)?.peak;
            table.floor = Some((slot, peak.total()));
        }
        Ok(table)
    }

    /// The bytes of a table.
    #[must_use]
    pub fn bytes(stages: usize, slots: u32) -> u64 {
        let stages = stages as u64;
        stages * (stages + 1) / 2 * (u64::from(slots) + 1) * 4 + 16 * (stages + 2) * (stages + 2)
    }

    /// The budgets that the table knows, and the time of each: from the least that suffices.
    pub fn curve(&self) -> impl Iterator<Item = (u64, f64)> {
        let row = self.row(1, self.costs.stages);
        self.floor.into_iter().flat_map(move |(least, least_bytes)| {
            (least..=self.slots).map(move |slot| {
                let bytes = if slot == least { least_bytes } else { slot as u64 * self.unit };
                (bytes, f64::from(row[slot]))
            })
        })
    }

    /// The least budget of any schedule, in bytes.
    #[must_use]
    pub fn floor_bytes(&self) -> Option<u64> {
        self.floor.map(|(_, bytes)| bytes)
    }

    /// The slot of a budget, if a schedule fits.
    fn slot_of(&self, bytes: u64) -> Option<usize> {
        let (least, least_bytes) = self.floor?;
        let slot = usize::try_from(bytes / self.unit).unwrap_or(usize::MAX).min(self.slots);
        (bytes >= least_bytes).then_some(slot.max(least))
    }

    /// The least time within a budget of bytes.
    #[must_use]
    pub fn time(&self, budget_bytes: u64) -> Option<f64> {
        let row = self.row(1, self.costs.stages);
        self.slot_of(budget_bytes).map(|slot| f64::from(row[slot]))
    }

    /// The schedule of a slot.
    fn steps(&self, slot: usize) -> Result<Schedule> {
        let mut steps = Schedule::new();
        self.rebuild(1, self.costs.stages, slot, &mut steps)?;
        Ok(steps)
    }

    /// The fastest schedule within a budget of bytes, and its time.
    ///
    /// # Errors
    /// [`Error::Config`] when it recomputes within recomputations more than 100 deep, as only
    /// budgets near the floor of long chains need.
    pub fn schedule(&self, budget_bytes: u64) -> Result<Option<(Schedule, f64)>> {
        let Some(slot) = self.slot_of(budget_bytes) else { return Ok(None) };
        let steps = self.steps(slot)?;
        let deep = depth(&steps);
        if deep > DEEPEST {
            let what = format!(
                "a schedule that recomputes within recomputations {deep} deep, and {DEEPEST} is the most: give more \
                 memory, or merge stages"
            );
            return Err(Error::Config(what));
        }
        let time = replay(&self.costs.chain, &steps)?.time;
        Ok(Some((steps, time)))
    }

    /// The fastest schedule that fits, of those of a budget and of a few slots above it: sizes are
    /// rounded up to slots, so what a schedule takes may be much less than its slots.
    ///
    /// # Errors
    /// Those of [`Self::schedule`] and of `fits`.
    pub fn fitting(
        &self,
        budget_bytes: u64,
        mut fits: impl FnMut(&Schedule) -> Result<bool>,
    ) -> Result<Option<Schedule>> {
        let Some(slot) = self.slot_of(budget_bytes) else { return Ok(None) };
        let most = self.slots.min(slot + self.costs.stages.min(MOST_ABOVE));
        for above in (slot + 1..=most).rev() {
            let steps = self.steps(above)?;
            if depth(&steps) <= DEEPEST && fits(&steps)? {
                return Ok(Some(steps));
            }
        }
        Ok(self.schedule(budget_bytes)?.map(|(steps, _)| steps))
    }

    fn units(&self, bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(self.unit)).unwrap_or(usize::MAX)
    }

    fn row(&self, i: usize, j: usize) -> &[f32] {
        row(&self.times, self.costs.stages, self.slots, i, j)
    }

    fn fill(&mut self) {
        for length in 0..self.costs.stages {
            for i in 1..=self.costs.stages - length {
                let j = i + length;
                let at = place(self.costs.stages, i, j) * (self.slots + 1);
                let (known, rest) = self.times.split_at_mut(at);
                let best = &mut rest[..=self.slots];
                fill_row(&self.costs, known, self.unit, (i, j), best);
            }
        }
    }

    /// Finds the choice that gave the time of a row, and those of its parts.
    fn rebuild(&self, i: usize, j: usize, slot: usize, steps: &mut Schedule) -> Result<()> {
        let choice = self.choice(i, j, slot).ok_or_else(|| {
            Error::Internal(format!("no choice gives the time of stages {i} to {j} in {slot} slots"))
        })?;
        match choice {
            Choice::Store(keep) => {
                steps.push(keep.map_or(Step::Store(i), |keep| Step::Keep { stage: i, keep }));
                if j > i {
                    let used = self.units(self.costs.kept_bytes(i, keep));
                    self.rebuild(i + 1, j, slot - used, steps)?;
                }
            }
            Choice::Split(k) => {
                let mut first = Schedule::new();
                self.rebuild(i, k - 1, slot, &mut first)?;
                steps.push(Step::Recompute(first));
                let used = self.units(self.costs.crossing(i, k));
                self.rebuild(k, j, slot - used, steps)?;
            }
        }
        Ok(())
    }

    fn choice(&self, i: usize, j: usize, slot: usize) -> Option<Choice> {
        let wanted = self.row(i, j)[slot];
        let costs = &self.costs;
        for keep in costs.keeps(i) {
            let used = self.units(costs.kept_bytes(i, keep));
            if slot < self.units(costs.storing_bytes(i, j, keep)) || (j > i && slot < used) {
                continue;
            }
            let rest = if j > i { self.row(i + 1, j)[slot - used] } else { 0.0 };
            if costs.storing_time(i, keep) + rest == wanted {
                return Some(Choice::Store(keep));
            }
        }
        let split = (i + 1..=j).find(|&k| {
            let used = self.units(costs.crossing(i, k));
            let least = self.units(costs.passing_bytes(i, k - 1, j)).max(used);
            least <= slot
                && costs.forward_time(i, k - 1) + self.row(k, j)[slot - used] + self.row(i, k - 1)[slot]
                    == wanted
        });
        split.map(Choice::Split)
    }
}

/// The number of the row of stages i to j: rows of equal length are side by side.
fn place(stages: usize, i: usize, j: usize) -> usize {
    let length = j - i;
    length * stages - length * length.saturating_sub(1) / 2 + i - 1
}

fn row(times: &[f32], stages: usize, slots: usize, i: usize, j: usize) -> &[f32] {
    let at = place(stages, i, j) * (slots + 1);
    &times[at..=at + slots]
}

/// The least times of stages i to j, of which all shorter runs are known.
fn fill_row(costs: &Costs, known: &[f32], unit: u64, (i, j): (usize, usize), best: &mut [f32]) {
    let slots = best.len() - 1;
    let known = |i, j| row(known, costs.stages, slots, i, j);
    let units = |bytes: u64| usize::try_from(bytes.div_ceil(unit)).unwrap_or(usize::MAX);
    for keep in costs.keeps(i) {
        let used = if j > i { units(costs.kept_bytes(i, keep)) } else { 0 };
        let least = units(costs.storing_bytes(i, j, keep)).max(used);
        let time = costs.storing_time(i, keep);
        let Some(into) = best.get_mut(least..) else { continue };
        if j == i {
            into.iter_mut().for_each(|best| *best = least_of(*best, time));
        } else {
            let rest = &known(i + 1, j)[least - used..];
            into.iter_mut().zip(rest).for_each(|(best, rest)| *best = least_of(*best, time + rest));
        }
    }
    for k in i + 1..=j {
        let used = units(costs.crossing(i, k));
        let least = units(costs.passing_bytes(i, k - 1, j)).max(used);
        let Some(into) = best.get_mut(least..) else { continue };
        let (right, left) = (&known(k, j)[least - used..], &known(i, k - 1)[least..]);
        let time = costs.forward_time(i, k - 1);
        for ((best, right), left) in into.iter_mut().zip(right).zip(left) {
            *best = least_of(*best, time + right + left);
        }
    }
}

/// The least of two times. `f32::min` also looks for NaN, which keeps the loop from vector code.
fn least_of(one: f32, other: f32) -> f32 {
    if other < one { other } else { one }
}

/// The bytes and times of a chain, summed once.
#[derive(Debug)]
struct Costs {
    chain: Chain,
    stages: usize,
    last_uses: Vec<usize>,
    /// Sums of forward times: entry i is that of stages 1 to i.
    forward: Vec<f64>,
    /// Gradients of outputs that are there when the backward of a stage begins.
    incoming: Vec<u64>,
    /// Gradients of parameters of the stages behind a stage.
    later: Vec<u64>,
    /// For i <= k: bytes across the boundary in front of k whose outputs stages from i on make.
    crossing: Vec<u64>,
    /// For i <= j: the worst moment of a forward from i to j that keeps nothing.
    passing: Vec<u64>,
}

impl Costs {
    fn new(chain: &Chain) -> Self {
        let stages = chain.stages.len();
        let last_uses = chain.last_uses();
        let output = |t: usize| chain.stages[t - 1].output_bytes;
        let mut forward = vec![0.0; stages + 1];
        for i in 1..=stages {
            forward[i] = forward[i - 1] + chain.stages[i - 1].forward_time;
        }
        let gradient = |t: usize| chain.stages[t - 1].output_gradient();
        let gradients = |i: usize| (1..=i).filter(|&t| last_uses[t] > i).map(gradient).sum();
        let incoming = (0..=stages).map(|i| if i < stages { gradients(i) } else { 0 }).collect();
        let mut ends = vec![Vec::new(); stages + 2];
        (1..=stages).for_each(|t| ends[last_uses[t]].push(t));
        let mut later = vec![0; stages + 2];
        for i in (1..=stages).rev().filter(|_| chain.gradients == Gradients::Kept) {
            later[i] = later[i + 1] + chain.stages[i - 1].gradient_bytes;
        }
        let side = stages + 2;
        let (mut crossing, mut passing) = (vec![0; side * side], vec![0; side * side]);
        for i in 1..=stages {
            let (mut worst, mut before) = (0, 0);
            for k in i..=stages {
                crossing[i * side + k] = before;
                worst = worst.max(before + output(k) + chain.stages[k - 1].forward_extra_bytes);
                passing[i * side + k] = worst;
                let ended: u64 = ends[k].iter().filter(|&&t| t >= i).map(|&t| output(t)).sum();
                before = before + output(k) - ended;
            }
        }
        Self { chain: chain.clone(), stages, last_uses, forward, incoming, later, crossing, passing }
    }

    fn side(&self) -> usize {
        self.stages + 2
    }

    /// The ways to keep a stage: as it is, then in its other forms.
    fn keeps(&self, i: usize) -> impl Iterator<Item = Option<usize>> {
        std::iter::once(None).chain((0..self.chain.stages[i - 1].keeps.len()).map(Some))
    }

    /// Bytes that stay between forward and backward of a stored stage.
    fn kept_bytes(&self, i: usize, keep: Option<usize>) -> u64 {
        let stage = &self.chain.stages[i - 1];
        stage.output_bytes + keep.map_or(stage.saved_bytes, |keep| stage.keeps[keep].bytes)
    }

    /// Bytes that the forward and the backward of a stored stage take at their worst moments, while
    /// the gradients of all behind stage j are there.
    fn storing_bytes(&self, i: usize, j: usize, keep: Option<usize>) -> u64 {
        let stage = &self.chain.stages[i - 1];
        let kept = stage.output_bytes + stage.saved_bytes + keep.map_or(0, |keep| stage.keeps[keep].bytes);
        let forward = kept + stage.save_extra_bytes + self.incoming[j] + self.later[j + 1];
        let made: u64 = (1..i).filter(|&t| self.last_uses[t] == i).map(|t| self.output_gradient(t)).sum();
        let gradients = if self.chain.gradients == Gradients::Resident { 0 } else { stage.gradient_bytes };
        let worst =
            (kept + self.incoming[i] + made + gradients).saturating_add_signed(stage.backward_extra_bytes);
        forward.max(worst + self.later[i + 1])
    }

    fn storing_time(&self, i: usize, keep: Option<usize>) -> f32 {
        let stage = &self.chain.stages[i - 1];
        (stage.forward_time + stage.backward_time + keep.map_or(0.0, |keep| stage.keeps[keep].time)) as f32
    }

    /// Bytes that cross the boundary in front of stage k, without those that cross that of i.
    fn crossing(&self, i: usize, k: usize) -> u64 {
        self.crossing[i * self.side() + k]
    }

    /// The worst moment of a forward from i to `last` that keeps nothing, on the way to the
    /// backward of stage j.
    fn passing_bytes(&self, i: usize, last: usize, j: usize) -> u64 {
        self.passing[i * self.side() + last] + self.incoming[j] + self.later[j + 1]
    }

    fn forward_time(&self, i: usize, last: usize) -> f32 {
        (self.forward[last] - self.forward[i - 1]) as f32
    }

    fn output_gradient(&self, t: usize) -> u64 {
        self.chain.stages[t - 1].output_gradient()
    }
}
