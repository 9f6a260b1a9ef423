//! Orders that follow what training says: samples with a large loss come more often, from one boundary to the next.
//!
//! Flow: (ids, losses) that the training loop feeds back -> a mean of each sample's losses -> at the beginning of an epoch a snapshot -> an alias table
//! -> the id at a position, as a function of (seed, epoch, position, snapshot), and what each sample weighs.
//! Memory: 4 bytes a sample for losses, 4 for the snapshot, 8 for its table, and 12 more while the last epoch is still held (account `index`), charged
//! before they are made.
//!
//! Until a boundary nothing that is fed back has a say: so an epoch is known when it begins, resumes, and is planned; not the one after it.
//! References: Katharopoulos and Fleuret, «Not all samples are created equal», 2018 (importance, and when it pays); Lin et al., «Focal loss», 2017.

use std::sync::{Arc, Mutex};
use tidegate_core::sync::lock;

use serde::Serialize;
use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use super::drawn::{Alias, Words, check, drawn, reserve};
use super::permutation::Permutation;
use super::{Epoch, Foresight, Order};
use crate::{Error, Result};

/// What a loss makes of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// It is drawn in proportion to this power of its loss: online hard-example mining.
    Hard {
        /// 0 draws evenly, 1 in proportion.
        power: f64,
    },
    /// It is drawn in proportion to (1 − e^−loss)^γ, the focal weight of a cross-entropy.
    Focal {
        /// 0 draws evenly; 2 is usual.
        gamma: f64,
    },
    /// It is drawn in proportion to what is fed back (a bound of its gradient's norm), and weighs 1 / (N p), so that the mean gradient is unbiased; only
    /// while that is estimated to divide the variance of the gradient so as a batch this much larger would.
    Importance {
        /// Below this gain all come once: 1 always draws by importance, 1.5 is usual.
        gain: f64,
    },
}

/// How an epoch is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct About {
    /// The epoch of the snapshot.
    pub epoch: u64,
    /// Samples of which a loss was known then.
    pub known: u64,
    /// Whether they are drawn by it; else all come once.
    pub drawn: bool,
    /// How much larger a batch would have to be for the same second moment of its gradient, were all drawn evenly and what is fed back their norms.
    pub gain: f64,
    /// The effective sample size of the weights, as a fraction.
    pub effective: f64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Fed {
    samples: u64,
    positions: u64,
    runs: u64,
    seed: u64,
    rule: Rule,
    /// The fraction of positions that is drawn evenly, so that no sample is lost sight of.
    even: f64,
    /// What a new loss counts against those before.
    newness: f64,
    budget: Budget,
    known: Arc<Mutex<Known>>,
    memory: Arc<Grant>,
}

#[derive(Debug)]
struct Known {
    /// NaN where nothing is known.
    losses: Box<[f32]>,
    snapshot: Option<Arc<Snapshot>>,
}

/// What was known at the beginning of an epoch.
#[derive(Debug)]
struct Snapshot {
    epoch: u64,
    losses: Box<[f32]>,
    print: u64,
    /// None where all come once.
    table: Option<Arc<Alias>>,
    about: About,
    /// Of unknown samples.
    mean: f64,
    /// What the scores of all add up to.
    sum: f64,
}

/// What tells losses at the beginning of an epoch, and what a rule makes of them, from others.
fn print_of(losses: &[f32], epoch: u64, rule: u64) -> u64 {
    losses.iter().fold(splitmix64_finalize(epoch ^ rule), |print, loss| {
        splitmix64_finalize(print.rotate_left(1) ^ u64::from(loss.to_bits()))
    })
}

impl Rule {
    fn check(self) -> Result<()> {
        let (name, value) = match self {
            Self::Hard { power } => ("power", power),
            Self::Focal { gamma } => ("gamma", gamma),
            Self::Importance { gain } => ("gain", gain),
        };
        if value >= 0.0 && value.is_finite() {
            return Ok(());
        }
        Err(Error::Config(format!("{name} is {value}: give a number that is not negative")))
    }

    fn score(self, loss: f64) -> f64 {
        match self {
            Self::Hard { power } => loss.powf(power),
            Self::Focal { gamma } => (-(-loss).exp_m1()).powf(gamma),
            Self::Importance { .. } => loss,
        }
    }
}

impl Fed {
    /// Bytes of a sample: its loss, the snapshot's, the table's, and those of the last epoch while it is still held.
    pub const BYTES: u64 = 4 + 2 * (4 + Alias::BYTES);

    /// So many positions an epoch over so many samples, which lie in so many `runs`.
    ///
    /// # Errors
    /// Parameters that make no sense, by name; 2^32 samples and more; a budget without room.
    #[expect(clippy::too_many_arguments, reason = "each says something else")]
    pub fn new(
        rule: Rule,
        samples: u64,
        positions: u64,
        even: f64,
        newness: f64,
        runs: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        check(positions, samples)?;
        rule.check()?;
        for (name, value, least) in [("even", even, 0.0), ("newness", newness, f64::MIN_POSITIVE)] {
            if !(least..=1.0).contains(&value) {
                return Err(Error::Config(format!("{name} is {value}: it is a fraction between 0 and 1")));
            }
        }
        if samples >= u64::from(u32::MAX) {
            return Err(Error::Config(format!(
                "{samples} samples are too many to keep losses of: fewer than 2^32"
            )));
        }
        // The tables are charged when they are made; here it is checked that there will be room.
        drop(reserve(budget, Self::BYTES * samples, "the losses of samples and two tables of them")?);
        let memory = reserve(budget, 12 * samples, "the losses of samples")?;
        let known = Known { losses: vec![f32::NAN; samples as usize].into(), snapshot: None };
        Ok(Self {
            samples,
            positions,
            runs,
            seed,
            rule,
            even,
            newness,
            budget: budget.clone(),
            known: Arc::new(Mutex::new(known)),
            memory: Arc::new(memory),
        })
    }

    /// How the epoch that was begun last is drawn.
    #[must_use]
    pub fn about(&self) -> Option<About> {
        lock(&self.known).snapshot.as_ref().map(|snapshot| snapshot.about)
    }

    /// All that is known, so that another loader can go on: little-endian floats, the snapshot's behind them.
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        let known = lock(&self.known);
        let (epoch, snapshot) =
            known.snapshot.as_ref().map_or((u64::MAX, None), |s| (s.epoch, Some(&s.losses)));
        let losses = known.losses.iter().chain(snapshot.into_iter().flatten());
        let mut bytes = epoch.to_le_bytes().to_vec();
        bytes.extend(losses.flat_map(|loss| loss.to_le_bytes()));
        bytes
    }

    /// Takes what another loader knew.
    ///
    /// # Errors
    /// [`Error::State`] for bytes of another number of samples.
    pub fn import(&self, bytes: &[u8]) -> Result<()> {
        let n = self.samples as usize;
        let wrong = || Error::State(format!("{} bytes are not the losses of {n} samples", bytes.len()));
        let (epoch, rest) = bytes.split_first_chunk::<8>().ok_or_else(wrong)?;
        let epoch = u64::from_le_bytes(*epoch);
        let with_snapshot = epoch != u64::MAX;
        if rest.len() != 4 * n * (1 + usize::from(with_snapshot)) {
            return Err(wrong());
        }
        let (floats, _) = rest.as_chunks::<4>();
        let losses: Vec<f32> = floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        if losses.iter().any(|loss| !(loss.is_nan() || *loss >= 0.0 && loss.is_finite())) {
            return Err(wrong());
        }
        let known = &mut *lock(&self.known);
        known.losses.copy_from_slice(&losses[..n]);
        known.snapshot = None;
        if with_snapshot {
            known.snapshot = Some(Arc::new(self.snapshot(epoch, losses[n..].into())?));
        }
        Ok(())
    }

    fn snapshot(&self, epoch: u64, losses: Box<[f32]>) -> Result<Snapshot> {
        let n = losses.len() as f64;
        let score = |loss: f32| self.rule.score(f64::from(loss));
        let (mut known, mut sum) = (0u64, 0.0);
        for &loss in losses.iter().filter(|loss| !loss.is_nan()) {
            known += 1;
            sum += score(loss);
        }
        // What is not known is as hard as the others on average.
        let mean = if known > 0 { sum / known as f64 } else { 1.0 };
        let sum = mean * n;
        let print = print_of(&losses, epoch, self.rule_print());
        let mut snapshot = Snapshot {
            epoch,
            losses,
            print,
            table: None,
            about: About { epoch, known, drawn: false, gain: 1.0, effective: 1.0 },
            mean,
            sum,
        };
        if !sum.is_finite() {
            let what = "the scores of the losses add up to more than a number holds: give a smaller power";
            return Err(Error::Config(what.into()));
        }
        if known == 0 || sum <= 0.0 {
            return Ok(snapshot);
        }
        // Second moments of what a draw contributes to the mean: drawn evenly, and by p with the weight 1 / (N p).
        let (mut evenly, mut weighted, mut inverse) = (0.0, 0.0, 0.0);
        for id in 0..snapshot.losses.len() {
            let (p, score) = (self.probability(&snapshot, id), self.score_of(&snapshot, id) / snapshot.mean);
            evenly += score * score / n;
            weighted += score * score / (n * n * p);
            inverse += 1.0 / p;
        }
        snapshot.about.gain = evenly / weighted;
        snapshot.about.effective = n * n / inverse;
        if matches!(self.rule, Rule::Importance { gain } if snapshot.about.gain < gain) {
            snapshot.about.effective = 1.0;
            return Ok(snapshot);
        }
        snapshot.about.drawn = true;
        let table = Alias::new(snapshot.losses.len(), |id| self.probability(&snapshot, id), &self.budget)?;
        snapshot.table = Some(Arc::new(table));
        Ok(snapshot)
    }

    fn rule_print(&self) -> u64 {
        let (kind, value) = match self.rule {
            Rule::Hard { power } => (1, power),
            Rule::Focal { gamma } => (2, gamma),
            Rule::Importance { gain } => (3, gain),
        };
        [kind, value.to_bits(), self.even.to_bits(), self.newness.to_bits()]
            .into_iter()
            .fold(0, |print, word| splitmix64_finalize(print ^ word))
    }

    fn probability(&self, snapshot: &Snapshot, id: usize) -> f64 {
        (1.0 - self.even) * self.score_of(snapshot, id) / snapshot.sum + self.even / self.samples as f64
    }

    fn score_of(&self, snapshot: &Snapshot, id: usize) -> f64 {
        let loss = snapshot.losses[id];
        if loss.is_nan() { snapshot.mean } else { self.rule.score(f64::from(loss)) }
    }
}

impl Order for Fed {
    drawn!();

    fn begin(&self, epoch: u64) -> Result<()> {
        let known = &mut *lock(&self.known);
        if known.snapshot.as_ref().is_none_or(|snapshot| snapshot.epoch != epoch) {
            known.snapshot = None;
            known.snapshot = Some(Arc::new(self.snapshot(epoch, known.losses.clone())?));
        }
        Ok(())
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let snapshot = lock(&self.known).snapshot.clone().filter(|snapshot| snapshot.epoch == epoch);
        let snapshot = snapshot.ok_or_else(|| {
            Error::Config(format!(
                "epoch {epoch} follows from what is fed back until it begins, so it is not known before"
            ))
        })?;
        let draws = match &snapshot.table {
            Some(table) => Draws::ByWeight(Words::new(self.seed, epoch, 0), Arc::clone(table)),
            None => Draws::Once(Permutation::new(self.samples, self.seed, epoch, 0)),
        };
        let order = Self {
            known: Arc::clone(&self.known),
            memory: Arc::clone(&self.memory),
            budget: self.budget.clone(),
            ..*self
        };
        Ok(Arc::new(FedEpoch { order, snapshot, draws }))
    }

    fn feedback(&self, ids: &[u64], losses: &[f32]) -> Result<()> {
        if ids.len() != losses.len() {
            return Err(Error::Config(format!(
                "{} losses for {} ids: give one for each",
                losses.len(),
                ids.len()
            )));
        }
        for (&id, &loss) in ids.iter().zip(losses) {
            if id >= self.samples {
                return Err(Error::Config(format!(
                    "feedback for id {id}, but there are {} samples",
                    self.samples
                )));
            }
            if !(loss >= 0.0 && loss.is_finite()) {
                return Err(Error::Config(format!(
                    "the loss of id {id} is {loss}: losses are finite and not negative"
                )));
            }
        }
        let known = &mut *lock(&self.known);
        for (&id, &loss) in ids.iter().zip(losses) {
            let before = &mut known.losses[id as usize];
            *before = if before.is_nan() { loss } else { *before + self.newness as f32 * (loss - *before) };
        }
        Ok(())
    }

    fn fed(&self) -> Option<&Self> {
        Some(self)
    }

    fn held_bytes(&self) -> u64 {
        Self::BYTES * self.samples
    }

    fn print(&self, epoch: u64) -> Option<u64> {
        let known = lock(&self.known);
        let begun = known.snapshot.as_ref().filter(|snapshot| snapshot.epoch == epoch);
        let print = begun
            .map_or_else(|| print_of(&known.losses, epoch, self.rule_print()), |snapshot| snapshot.print);
        Some(splitmix64_finalize(print ^ splitmix64_finalize(self.seed)))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        let (known, memory) = (Arc::clone(&self.known), Arc::clone(&self.memory));
        Some(Arc::new(Self { seed, known, memory, budget: self.budget.clone(), ..*self }))
    }
}

#[derive(Debug)]
struct FedEpoch {
    order: Fed,
    snapshot: Arc<Snapshot>,
    draws: Draws,
}

#[derive(Debug)]
enum Draws {
    Once(Permutation),
    ByWeight(Words, Arc<Alias>),
}

impl Epoch for FedEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(match &self.draws {
            // A longer epoch begins again.
            Draws::Once(permutation) => permutation.apply(position % self.order.samples),
            Draws::ByWeight(words, table) => table.draw(words.at(position)),
        })
    }

    fn weight(&self, index: u64) -> f32 {
        match (self.order.rule, &self.draws) {
            (Rule::Importance { .. }, Draws::ByWeight(..)) => {
                (1.0 / (self.order.samples as f64 * self.order.probability(&self.snapshot, index as usize)))
                    as f32
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(rule: Rule, budget: &Budget) -> Fed {
        Fed::new(rule, 100, 20_000, 0.1, 0.5, 1, 3, budget).unwrap()
    }

    fn counts(order: &Fed, epoch: u64) -> Vec<u64> {
        order.begin(epoch).unwrap();
        let epoch = order.epoch(epoch).unwrap();
        let mut counts = vec![0; 100];
        (0..order.len()).for_each(|p| counts[epoch.id(p).unwrap() as usize] += 1);
        counts
    }

    fn feed(order: &Fed) -> Vec<f32> {
        let losses: Vec<f32> = (0..100).map(|id| if id < 10 { 9.0 } else { 1.0 }).collect();
        order.feedback(&(0..100).collect::<Vec<_>>(), &losses).unwrap();
        losses
    }

    #[test]
    fn what_is_fed_back_counts_from_the_next_epoch_on() {
        let budget = Budget::new(1 << 20);
        let order = fed(Rule::Hard { power: 1.0 }, &budget);
        assert!(counts(&order, 0).iter().all(|&count| count == 200), "at first all come equally often");
        feed(&order);
        assert!(order.epoch(1).unwrap_err().to_string().contains("not known before"));
        assert!(counts(&order, 0).iter().all(|&count| count == 200), "this epoch is as it began");
        let second = counts(&order, 1);
        // Hard ones: 0.9 * 9 / 180 + 0.1 / 100 of 20,000 draws.
        let hard = second[..10].iter().sum::<u64>() as f64 / 10.0;
        assert!((hard - 920.0).abs() < 40.0, "{hard}");
        let about = order.about().unwrap();
        assert!(about.drawn && about.known == 100 && about.gain > 1.5 && about.effective < 0.9, "{about:?}");
        // A mean of losses, half of it the newest.
        order.feedback(&[0], &[1.0]).unwrap();
        assert_eq!(lock(&order.known).losses[0], 5.0);
        assert!(order.held_bytes() >= budget.usage().charged_bytes);
    }

    /// The mean of any function over weighted draws is its mean over all samples; and the gate opens only where it pays.
    #[test]
    fn importance_is_unbiased_and_gated() {
        let budget = Budget::new(1 << 20);
        let order = fed(Rule::Importance { gain: 1.5 }, &budget);
        let losses = feed(&order);
        order.begin(0).unwrap();
        let epoch = order.epoch(0).unwrap();
        let ids: Vec<u64> = (0..order.len()).map(|p| epoch.id(p).unwrap()).collect();
        let mean: f64 =
            ids.iter().map(|&id| f64::from(epoch.weight(id) * losses[id as usize])).sum::<f64>() / 20_000.0;
        assert!((mean - 1.8).abs() < 0.02, "{mean}");
        let (sum, squares) = ids
            .iter()
            .map(|&id| f64::from(epoch.weight(id)))
            .fold((0.0, 0.0), |(s, q), w| (s + w, q + w * w));
        let effective = sum * sum / squares / 20_000.0;
        assert!((effective - order.about().unwrap().effective).abs() < 0.01);
        let flat = fed(Rule::Importance { gain: 1.5 }, &budget);
        flat.feedback(&[1, 2], &[1.0, 1.1]).unwrap();
        assert!(counts(&flat, 0).iter().all(|&count| count == 200));
        assert!(!flat.about().unwrap().drawn && flat.epoch(0).unwrap().weight(5) == 1.0);
    }

    #[test]
    fn goes_on_where_it_was_exported() {
        let budget = Budget::new(1 << 20);
        let order = fed(Rule::Focal { gamma: 2.0 }, &budget);
        feed(&order);
        let second = counts(&order, 1);
        order.feedback(&[3], &[0.0]).unwrap();
        let other = fed(Rule::Focal { gamma: 2.0 }, &budget);
        assert_ne!(other.print(1), order.print(1));
        other.import(&order.export()).unwrap();
        assert_eq!((other.print(1), other.print(2)), (order.print(1), order.print(2)));
        assert_eq!((counts(&other, 1), counts(&other, 2)), (second, counts(&order, 2)));
        assert!(
            other
                .import(&order.export()[..20])
                .unwrap_err()
                .to_string()
                .contains("20 bytes are not the losses of 100")
        );
        let fresh = fed(Rule::Focal { gamma: 2.0 }, &budget);
        other.import(&fresh.export()).unwrap();
        assert_eq!(other.print(0), fresh.print(0));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let budget = Budget::new(1 << 20);
        let order = fed(Rule::Hard { power: 1.0 }, &budget);
        for (ids, losses, says) in [
            (vec![100], vec![1.0], "id 100, but there are 100"),
            (vec![5], vec![f32::NAN], "id 5 is NaN"),
            (vec![5], vec![-1.0], "id 5 is -1"),
            (vec![5, 6], vec![1.0], "1 losses for 2 ids"),
        ] {
            assert!(order.feedback(&ids, &losses).unwrap_err().to_string().contains(says), "{says}");
        }
        let new = |rule, even, newness| {
            Fed::new(rule, 100, 10, even, newness, 1, 0, &budget).map_err(|e| e.to_string())
        };
        assert!(new(Rule::Hard { power: -1.0 }, 0.1, 0.5).unwrap_err().contains("power is -1"));
        assert!(new(Rule::Focal { gamma: 1.0 }, 1.5, 0.5).unwrap_err().contains("even is 1.5"));
        assert!(new(Rule::Focal { gamma: 1.0 }, 0.5, 0.0).unwrap_err().contains("newness is 0"));
        assert!(Fed::new(Rule::Focal { gamma: 1.0 }, 1 << 20, 10, 0.1, 0.5, 1, 0, &budget).is_err());
    }
}
