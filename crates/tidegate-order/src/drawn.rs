//! Orders whose ids are drawn, and so may repeat: evenly, by weight, or from the easier part of the data first.
//!
//! Flow: weights, difficulties -> a table -> the id at a position, as a function of (seed, epoch, position).
//! Memory: nothing for even draws; eight bytes a sample for weights, four for difficulties (account `index`), charged before they are made.
//!
//! A draw is a word of SplitMix64 at the position, whose key is Philox's for (seed, epoch). Weights become an alias table (Walker, 1977; Vose, 1991) that
//! is made in one sweep over heavy and light samples, without lists of them (Hübschle-Schneider and Sanders, «Parallel weighted random sampling», 2019).

use std::sync::Arc;

use tidegate_core::hash::{GOLDEN, splitmix64_finalize};
use tidegate_core::memory::{Account, Budget, Grant, Priority};

use super::random::{Purpose, Stream};
use super::{Epoch, Foresight, Order};
use crate::{Error, Result};

/// Reserves the table of a sampler.
pub fn reserve(budget: &Budget, bytes: u64, what: &str) -> Result<Grant> {
    budget.try_acquire(Account::Index, bytes, Priority::NextBatch).map_err(|source| Error::Budget {
        what: what.to_owned(),
        bytes,
        source,
    })
}

/// A random word for each position.
#[derive(Debug, Clone, Copy)]
pub struct Words(u64);

impl Words {
    /// The words of (seed, epoch, lane); lanes are independent.
    #[must_use]
    pub fn new(seed: u64, epoch: u64, lane: u64) -> Self {
        Self(Stream::new(seed, epoch, lane, 0, Purpose::Draw).long())
    }

    /// The word of a position.
    #[must_use]
    pub fn at(self, position: u64) -> u64 {
        splitmix64_finalize(self.0.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Uniform in `0..n`, off by at most n / 2^64.
    #[must_use]
    pub fn below(self, position: u64, n: u64) -> u64 {
        ((u128::from(self.at(position)) * u128::from(n)) >> 64) as u64
    }
}

/// Checks that an epoch of `positions` can be drawn from so many samples.
pub(super) fn check(positions: u64, samples: u64) -> Result<()> {
    if positions > 0 && samples == 0 {
        return Err(Error::Config(format!(
            "{positions} positions are to be drawn, but there are no samples"
        )));
    }
    Ok(())
}

/// What all orders that draw have in common.
macro_rules! drawn {
    () => {
        fn len(&self) -> u64 {
            self.positions
        }
        fn runs_in_use(&self, _: u64) -> u64 {
            self.runs
        }
        fn foresight(&self) -> Foresight {
            Foresight::Listed
        }
    };
}
pub(super) use drawn;

/// Every sample equally likely at each position.
///
/// ```
/// use tidegate_order::{Order, drawn::Even};
/// let order = Even::new(10_000_000_000, 5, 1, 0)?;
/// assert!(order.epoch(0)?.id(3)? < 10_000_000_000);
/// # Ok::<(), tidegate_order::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Even {
    samples: u64,
    positions: u64,
    runs: u64,
    seed: u64,
}

impl Even {
    /// So many positions an epoch, drawn with replacement from `0..samples`, which lie in so many `runs`.
    ///
    /// # Errors
    /// [`Error::Config`] where there is nothing to draw from.
    pub fn new(samples: u64, positions: u64, runs: u64, seed: u64) -> Result<Self> {
        check(positions, samples)?;
        Ok(Self { samples, positions, runs, seed })
    }
}

impl Order for Even {
    drawn!();

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(EvenEpoch { words: Words::new(self.seed, epoch, 0), samples: self.samples }))
    }

    fn print(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ splitmix64_finalize(self.samples ^ 0x45)))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct EvenEpoch {
    words: Words,
    samples: u64,
}

impl Epoch for EvenEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.words.below(position, self.samples))
    }
}

/// An alias table: for each sample how likely it is to be kept when its column is drawn, and who comes otherwise.
#[derive(Debug)]
pub struct Alias {
    /// (of 2^32, so many keep; else this one).
    columns: Box<[(u32, u32)]>,
    print: u64,
    _memory: Grant,
}

impl Alias {
    /// Bytes of a sample.
    pub const BYTES: u64 = 8;

    /// A table of weights, which need not add up to anything.
    ///
    /// # Errors
    /// A weight that is negative, infinite or no number, by its id; weights that are all zero; 2^32 samples and more; a budget without room.
    pub fn new(samples: usize, weight: impl Fn(usize) -> f64, budget: &Budget) -> Result<Self> {
        if samples >= u32::MAX as usize {
            return Err(Error::Config(format!(
                "{samples} weights are too many: fewer than 2^32 can be drawn by weight"
            )));
        }
        let (mut sum, mut lost, mut print) = (0.0f64, 0.0, 0u64);
        for id in 0..samples {
            let w = weight(id);
            if !(w >= 0.0 && w.is_finite()) {
                return Err(Error::Config(format!(
                    "the weight of id {id} is {w}: weights are finite and not negative"
                )));
            }
            print = splitmix64_finalize(print.rotate_left(1) ^ w.to_bits());
            // Compensated: of 10^8 weights the last would else be lost on the sum.
            let y = w - lost;
            let t = sum + y;
            (lost, sum) = ((t - sum) - y, t);
        }
        if samples > 0 && !(sum > 0.0 && sum.is_finite()) {
            return Err(Error::Config(format!(
                "the {samples} weights add up to {sum}: at least one must be positive, and their sum finite"
            )));
        }
        let memory = reserve(budget, Self::BYTES * samples as u64, "the table of weights")?;
        let scaled = |id: usize| weight(id) / sum * samples as f64;
        Ok(Self { columns: swept(samples, scaled), print, _memory: memory })
    }

    /// The sample that a random word means.
    #[must_use]
    #[inline]
    pub fn draw(&self, word: u64) -> u64 {
        let wide = u128::from(word) * self.columns.len() as u128;
        let column = (wide >> 64) as usize;
        let (keeps, other) = self.columns[column];
        let coin = ((wide as u64) >> 32) as u32;
        if coin < keeps { column as u64 } else { u64::from(other) }
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// The columns of weights whose mean is one: light samples are filled up by the heavy one at hand, which becomes light itself and is filled up by the next.
fn swept(samples: usize, scaled: impl Fn(usize) -> f64) -> Box<[(u32, u32)]> {
    let share = |p: f64| (p * 4_294_967_296.0).clamp(0.0, 4_294_967_295.0) as u32;
    let mut columns: Box<[(u32, u32)]> = (0..samples as u32).map(|id| (u32::MAX, id)).collect();
    let light = |from: usize| (from..samples).find(|&id| scaled(id) < 1.0);
    let heavy = |from: usize| (from..samples).find(|&id| scaled(id) >= 1.0);
    let (mut poor, Some(mut rich)) = (light(0), heavy(0)) else { return columns };
    let (mut left, mut next) = (scaled(rich), heavy(rich + 1));
    loop {
        match next {
            Some(after) if left < 1.0 => {
                columns[rich] = (share(left), after as u32);
                left += scaled(after) - 1.0;
                (rich, next) = (after, heavy(after + 1));
            }
            // The last heavy one fills all that are left: but for rounding it is just enough.
            _ => {
                let Some(id) = poor else { return columns };
                let own = scaled(id);
                columns[id] = (share(own), rich as u32);
                left -= 1.0 - own;
                poor = light(id + 1);
            }
        }
    }
}

/// Samples by their weights, with replacement.
///
/// ```
/// use tidegate_core::memory::Budget;
/// use tidegate_order::{Order, drawn::Weighted};
/// let order = Weighted::new(&[0.0, 1.0, 3.0], 1000, 1, 0, &Budget::new(1 << 20))?;
/// let epoch = order.epoch(0)?;
/// let twos = (0..1000).filter(|&p| epoch.id(p).is_ok_and(|id| id == 2)).count();
/// assert!((700..800).contains(&twos));
/// # Ok::<(), tidegate_order::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Weighted {
    table: Arc<Alias>,
    positions: u64,
    runs: u64,
    seed: u64,
}

impl Weighted {
    /// So many positions an epoch, drawn by weights of all samples, which lie in so many `runs`.
    ///
    /// # Errors
    /// As [`Alias::new`]; positions where there are no samples.
    pub fn new<W: Copy + Into<f64>>(
        weights: &[W],
        positions: u64,
        runs: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        check(positions, weights.len() as u64)?;
        let table = Arc::new(Alias::new(weights.len(), |id| weights[id].into(), budget)?);
        Ok(Self { table, positions, runs, seed })
    }
}

impl Order for Weighted {
    drawn!();

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(WeightedEpoch { words: Words::new(self.seed, epoch, 0), table: Arc::clone(&self.table) }))
    }

    fn held_bytes(&self) -> u64 {
        Alias::BYTES * self.table.len() as u64
    }

    fn print(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ self.table.print))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
pub(super) struct WeightedEpoch {
    pub(super) words: Words,
    pub(super) table: Arc<Alias>,
}

impl Epoch for WeightedEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.table.draw(self.words.at(position)))
    }
}

/// How much of the data may be drawn as training goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// In proportion to what has passed.
    Linear,
    /// To the square root of what has passed, from the square of the start on: harder samples come sooner, since each stays long enough to be drawn as
    /// often (Platanios et al., «Competence-based curriculum learning», 2019).
    Root,
    /// In so many equal steps.
    Step(u32),
}

impl Pace {
    fn print(self) -> u64 {
        match self {
            Self::Linear => 0,
            Self::Root => splitmix64_finalize(1),
            Self::Step(steps) => splitmix64_finalize(2 + u64::from(steps)),
        }
    }
}

/// From the easier part of the data first: the easiest fraction `start` at the beginning, all of it after so many epochs (Bengio et al., «Curriculum
/// learning», 2009).
#[derive(Debug, Clone)]
pub struct Curriculum {
    /// The easiest first.
    ids: Arc<Box<[u32]>>,
    print: u64,
    start: f64,
    epochs: f64,
    pace: Pace,
    positions: u64,
    runs: u64,
    seed: u64,
    memory: Arc<Grant>,
}

impl Curriculum {
    /// By a difficulty for each sample (a loss, a length), of which equal ones come in the order of their ids.
    ///
    /// # Errors
    /// A difficulty that is no number; `start` beyond 0 and 1, or no positive number of epochs or steps; a budget without room.
    #[expect(clippy::too_many_arguments, reason = "each says something else")]
    pub fn new(
        difficulty: &[f64],
        start: f64,
        epochs: f64,
        pace: Pace,
        positions: u64,
        runs: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        let wrong = |what: String| Err(Error::Config(what));
        check(positions, difficulty.len() as u64)?;
        if let Some(id) = difficulty.iter().position(|d| d.is_nan()) {
            return wrong(format!("the difficulty of id {id} is NaN: it has no place in an order"));
        }
        if !(start > 0.0 && start <= 1.0) {
            return wrong(format!(
                "a curriculum starts with a fraction of the data above 0 and up to 1, not {start}"
            ));
        }
        if !(epochs > 0.0 && epochs.is_finite()) || pace == Pace::Step(0) {
            return wrong(format!(
                "a curriculum takes a positive number of epochs and steps, not {epochs}, {pace:?}"
            ));
        }
        if difficulty.len() >= u32::MAX as usize {
            return wrong(format!("{} difficulties are too many: fewer than 2^32", difficulty.len()));
        }
        let memory = Arc::new(reserve(budget, 4 * difficulty.len() as u64, "the order of difficulties")?);
        let mut ids: Vec<u32> = (0..difficulty.len() as u32).collect();
        ids.sort_unstable_by(|&a, &b| {
            difficulty[a as usize].total_cmp(&difficulty[b as usize]).then(a.cmp(&b))
        });
        let print = ids
            .iter()
            .fold(start.to_bits() ^ epochs.to_bits().rotate_left(9) ^ pace.print(), |print, &id| {
                splitmix64_finalize(print ^ u64::from(id))
            });
        Ok(Self { ids: Arc::new(ids.into()), print, start, epochs, pace, positions, runs, seed, memory })
    }

    /// How many of the easiest samples may be drawn once so many epochs have passed.
    #[must_use]
    pub fn open(&self, passed: f64) -> u64 {
        let t = (passed / self.epochs).min(1.0);
        let done = match self.pace {
            Pace::Linear => t,
            Pace::Root => {
                let squared = self.start * self.start;
                let open = ((1.0 - squared) * t + squared).sqrt();
                (open - self.start) / (1.0 - self.start).max(f64::MIN_POSITIVE)
            }
            Pace::Step(steps) => (t * f64::from(steps)).floor() / f64::from(steps),
        };
        let all = self.ids.len() as f64;
        ((self.start + (1.0 - self.start) * done) * all).round().clamp(1.0, all) as u64
    }
}

impl Order for Curriculum {
    drawn!();

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let words = Words::new(self.seed, epoch, 0);
        Ok(Arc::new(CurriculumEpoch { words, epoch, order: self.clone() }))
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn print(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ self.print))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct CurriculumEpoch {
    words: Words,
    epoch: u64,
    order: Curriculum,
}

impl Epoch for CurriculumEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let passed = self.epoch as f64 + position as f64 / self.order.positions as f64;
        let nth = self.words.below(position, self.order.open(passed));
        Ok(u64::from(self.order.ids[nth as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(order: &dyn Order, samples: usize, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch).unwrap();
        let mut counts = vec![0; samples];
        (0..order.len()).for_each(|p| counts[epoch.id(p).unwrap() as usize] += 1);
        counts
    }

    fn chi(counts: &[u64], expected: impl Fn(usize) -> f64) -> f64 {
        let off = |(id, &count): (usize, &u64)| (count as f64 - expected(id)).powi(2) / expected(id);
        counts.iter().enumerate().map(off).sum()
    }

    proptest! {
        /// The table holds exactly the weights, up to 2^-32 a column; what weighs nothing never comes.
        #[test]
        fn a_table_is_its_weights(weights in prop::collection::vec(prop_oneof![Just(0.0), 0.0..1.0f64, 0.0..1e6f64], 1..300)) {
            let sum: f64 = weights.iter().sum();
            prop_assume!(sum > 0.0);
            let table = Alias::new(weights.len(), |id| weights[id], &Budget::new(1 << 20)).unwrap();
            let mut mass = vec![0.0; weights.len()];
            for (column, &(keeps, other)) in table.columns.iter().enumerate() {
                let keeps = if other as usize == column { 1.0 } else { f64::from(keeps) / 4_294_967_296.0 };
                mass[column] += keeps;
                mass[other as usize] += 1.0 - keeps;
            }
            for (mass, weight) in mass.iter().zip(&weights) {
                let expected = weight / sum * weights.len() as f64;
                prop_assert!((mass - expected).abs() < 1e-6, "{mass} for {expected}");
                prop_assert!(*weight > 0.0 || *mass == 0.0);
            }
        }
    }

    #[test]
    fn draws_are_as_frequent_as_weights() {
        let budget = Budget::new(1 << 20);
        let weights: Vec<f32> = (0..100).map(|i| (i % 7) as f32 + 0.25).collect();
        let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let weighted = Weighted::new(&weights, 200_000, 1, 3, &budget).unwrap();
        let even = Even::new(100, 200_000, 1, 3).unwrap();
        let limit = 99.0 + 5.0 * 198f64.sqrt();
        for epoch in 0..3 {
            let found = chi(&counts(&weighted, 100, epoch), |id| f64::from(weights[id]) / sum * 200_000.0);
            assert!(found < limit, "weighted: chi-square {found} over 99 degrees");
            let found = chi(&counts(&even, 100, epoch), |_| 2000.0);
            assert!(found < limit, "even: chi-square {found} over 99 degrees");
        }
        assert_eq!(budget.usage().charged_bytes, 800);
        assert_ne!(counts(&even, 100, 0), counts(&even, 100, 1));
        assert_ne!(weighted.print(0), weighted.reseeded(4).unwrap().print(0));
    }

    /// Pairs of neighbouring draws fall evenly into a 16 by 16 grid.
    #[test]
    fn neighbouring_draws_are_independent() {
        let n = 1u64 << 20;
        let epoch = Even::new(n, n, 1, 9).unwrap().epoch(0).unwrap();
        let mut grid = vec![0u64; 256];
        for position in (0..n).step_by(2) {
            let sixteenth = |position| epoch.id(position).unwrap() * 16 / n;
            grid[(sixteenth(position) * 16 + sixteenth(position + 1)) as usize] += 1;
        }
        let found = chi(&grid, |_| n as f64 / 512.0);
        assert!(found < 255.0 + 5.0 * 510f64.sqrt(), "chi-square {found} over 255 degrees");
    }

    #[test]
    fn a_curriculum_opens_as_it_goes_on() {
        let budget = Budget::new(1 << 20);
        let difficulty: Vec<f64> = (0..1000).map(|i| f64::from((i * 7919) % 1000)).collect();
        for (pace, half) in [(Pace::Linear, 600), (Pace::Root, 721), (Pace::Step(4), 600)] {
            let order = Curriculum::new(&difficulty, 0.2, 2.0, pace, 5000, 1, 0, &budget).unwrap();
            assert_eq!((order.open(0.0), order.open(2.0), order.open(9.0)), (200, 1000, 1000));
            assert_eq!(order.open(1.0), half);
            let epoch = order.epoch(0).unwrap();
            let hardest = |from: u64| {
                (from..from + 500).map(|p| difficulty[epoch.id(p).unwrap() as usize]).fold(0.0, f64::max)
            };
            assert!(hardest(0) < 420.0 && hardest(4500) > hardest(0), "{pace:?}");
        }
        for (start, epochs, pace) in
            [(0.0, 1.0, Pace::Linear), (0.5, 0.0, Pace::Linear), (0.5, 1.0, Pace::Step(0))]
        {
            assert!(Curriculum::new(&difficulty, start, epochs, pace, 10, 1, 0, &budget).is_err());
        }
        let error = Curriculum::new(&[1.0, f64::NAN], 0.5, 1.0, Pace::Root, 10, 1, 0, &budget).unwrap_err();
        assert!(error.to_string().contains("id 1 is NaN"));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let budget = Budget::new(1 << 20);
        for (weights, says) in [
            (vec![1.0, -2.0], "id 1 is -2"),
            (vec![f64::NAN], "id 0 is NaN"),
            (vec![f64::INFINITY], "id 0 is inf"),
            (vec![0.0, 0.0], "add up to 0"),
            (vec![], "no samples"),
        ] {
            let error = Weighted::new(&weights, 5, 1, 0, &budget).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let small = Weighted::new(&vec![1.0f32; 1 << 20], 5, 1, 0, &budget).unwrap_err().to_string();
        assert!(small.contains("too small for the table of weights, which takes 8"), "{small}");
        assert!(Even::new(0, 5, 1, 0).is_err() && Even::new(0, 0, 1, 0).is_ok());
    }
}
