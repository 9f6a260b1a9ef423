//! Orders that follow the losses of training: samples with a large loss are drawn more often.
//!
//! Flow: (ids, losses) from the training loop -> a moving mean of each sample's losses -> a
//! snapshot when an epoch begins -> an alias table -> the id at a position, as a function of
//! (seed, epoch, position, snapshot), and the weight of each sample.
//! Memory: 4 bytes a sample for losses, 4 for the snapshot and 8 for its table, and 12 more while
//! the last epoch is still in use (account `index`), reserved before they are made.
//!
//! Losses count only from the next epoch on. So an epoch is known when it begins, and can be
//! planned and resumed; the epoch after it is not known.
//!
//! References: Katharopoulos and Fleuret, «Not all samples are created equal», 2018 (importance
//! sampling, and when it pays); Lin et al., «Focal loss for dense object detection», 2017.

use std::sync::{Arc, Mutex};

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};
use tidegate_core::sync::lock;

use crate::alias::AliasTable;
use crate::draw::{DrawKey, check_samples};
use crate::error::{Error, Result};
use crate::memory::reserve;
use crate::permutation::Permutation;
use crate::traits::{Epoch, FeedbackOrder, FeedbackStats, Lookahead, Order};

/// How the loss of a sample becomes its score: samples are drawn in proportion to their scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// A power of the loss: online hard-example mining.
    Hard {
        /// 0 draws uniformly, 1 in proportion to the loss.
        power: f64,
    },
    /// (1 − e^−loss)^γ, the focal weight of a cross-entropy.
    Focal {
        /// 0 draws uniformly; 2 is usual.
        gamma: f64,
    },
    /// The loss itself, or a bound of the gradient's norm that is reported as the loss.
    ///
    /// A sample with probability p has the weight 1 / (N p), so that the mean gradient is
    /// unbiased. Importance sampling is used only while it is estimated to reduce gradient
    /// variance as much as a batch `gain` times larger would.
    Importance {
        /// Below this gain an epoch gives every sample once: 1 always uses importance, 1.5 is
        /// usual.
        gain: f64,
    },
}

/// The parameters of a [`LossFeedback`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossFeedbackSpec {
    /// How losses become scores.
    pub rule: Rule,
    /// Samples in the data.
    pub samples: u64,
    /// Positions in an epoch.
    pub positions: u64,
    /// The fraction of positions that is drawn uniformly, so that every sample is seen again.
    pub uniform_fraction: f64,
    /// The weight of a new loss against the mean of the former ones, above 0 and up to 1, as in
    /// batch normalization. 1 forgets the former ones.
    pub momentum: f64,
    /// Runs that the samples are stored in.
    pub runs: u64,
    /// The seed of the draws.
    pub seed: u64,
}

/// An order by losses; see the head of this file.
#[derive(Debug, Clone)]
pub struct LossFeedback {
    spec: LossFeedbackSpec,
    budget: Budget,
    known: Arc<Mutex<Known>>,
    /// The memory of the losses.
    _memory: Arc<Grant>,
}

#[derive(Debug)]
struct Known {
    /// The mean loss of each sample, or NaN before its first.
    losses: Box<[f32]>,
    snapshot: Option<Arc<Snapshot>>,
}

/// The losses when an epoch began, and how it is drawn from them.
#[derive(Debug)]
struct Snapshot {
    epoch: u64,
    losses: Box<[f32]>,
    digest: u64,
    /// `None` when the epoch gives every sample once.
    table: Option<Arc<AliasTable>>,
    stats: FeedbackStats,
    /// The score of samples without a loss.
    mean: f64,
    /// The sum of all scores.
    sum: f64,
}

/// A hash of the losses when an epoch begins, and of the rule.
fn losses_digest(losses: &[f32], epoch: u64, rule: u64) -> u64 {
    losses.iter().fold(splitmix64_finalize(epoch ^ rule), |digest, loss| {
        splitmix64_finalize(digest.rotate_left(1) ^ u64::from(loss.to_bits()))
    })
}

impl Rule {
    /// A number for the digest, the parameter's name, and its value.
    fn parameter(self) -> (u64, &'static str, f64) {
        match self {
            Self::Hard { power } => (1, "power", power),
            Self::Focal { gamma } => (2, "gamma", gamma),
            Self::Importance { gain } => (3, "gain", gain),
        }
    }

    fn check(self) -> Result<()> {
        let (_, name, value) = self.parameter();
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

impl LossFeedbackSpec {
    fn check(&self) -> Result<()> {
        check_samples(self.positions, self.samples)?;
        self.rule.check()?;
        // With the names of the Python face in brackets.
        for (name, value, least) in [
            ("uniform_fraction (even)", self.uniform_fraction, 0.0),
            ("momentum (newness)", self.momentum, f64::MIN_POSITIVE),
        ] {
            if !(least..=1.0).contains(&value) {
                return Err(Error::Config(format!("{name} is {value}: it is a fraction between 0 and 1")));
            }
        }
        if self.samples >= u64::from(u32::MAX) {
            return Err(Error::Config(format!(
                "{} samples are too many to keep losses of: fewer than 2^32",
                self.samples
            )));
        }
        Ok(())
    }

    fn digest(&self) -> u64 {
        let (kind, _, value) = self.rule.parameter();
        [kind, value.to_bits(), self.uniform_fraction.to_bits(), self.momentum.to_bits()]
            .into_iter()
            .fold(0, |digest, word| splitmix64_finalize(digest ^ word))
    }
}

impl LossFeedback {
    /// Bytes a sample: its loss, and a snapshot with a table for each of two epochs.
    pub const BYTES: u64 = 4 + 2 * (4 + AliasTable::BYTES);

    /// An order that gives every sample once until losses are known.
    ///
    /// # Errors
    /// [`Error::Config`] for a parameter out of its range, with its name, and for 2^32 samples and
    /// more. [`Error::Budget`] when losses and two tables do not fit.
    pub fn new(spec: LossFeedbackSpec, budget: &Budget) -> Result<Self> {
        spec.check()?;
        let samples = spec.samples;
        // Tables are reserved when they are made. This only checks that they will fit.
        drop(reserve(budget, Self::BYTES * samples, "the losses of samples and two tables of them")?);
        let memory = reserve(budget, 12 * samples, "the losses of samples")?;
        let known = Known { losses: vec![f32::NAN; samples as usize].into(), snapshot: None };
        Ok(Self {
            spec,
            budget: budget.clone(),
            known: Arc::new(Mutex::new(known)),
            _memory: Arc::new(memory),
        })
    }

    fn snapshot(&self, epoch: u64, losses: Box<[f32]>) -> Result<Snapshot> {
        let rule = self.spec.rule;
        let n = losses.len() as f64;
        let (mut known, mut sum) = (0u64, 0.0);
        for &loss in losses.iter().filter(|loss| !loss.is_nan()) {
            known += 1;
            sum += rule.score(f64::from(loss));
        }
        // A sample without a loss has the mean score of the others.
        let mean = if known > 0 { sum / known as f64 } else { 1.0 };
        let sum = mean * n;
        let digest = losses_digest(&losses, epoch, self.spec.digest());
        let stats = FeedbackStats { epoch, known, drawn: false, gain: 1.0, effective: 1.0 };
        let mut snapshot = Snapshot { epoch, losses, digest, table: None, stats, mean, sum };
        if !sum.is_finite() {
            let what = "the scores of the losses add up to more than a number holds: give a smaller power";
            return Err(Error::Config(what.into()));
        }
        if known == 0 || sum <= 0.0 {
            return Ok(snapshot);
        }
        // Second moments of what a draw contributes to the mean gradient: under uniform draws, and
        // under draws by p with the weight 1 / (N p).
        let (mut uniform, mut weighted, mut inverse) = (0.0, 0.0, 0.0);
        for id in 0..snapshot.losses.len() {
            let (p, score) = (self.probability(&snapshot, id), self.score_of(&snapshot, id) / snapshot.mean);
            uniform += score * score / n;
            weighted += score * score / (n * n * p);
            inverse += 1.0 / p;
        }
        snapshot.stats.gain = uniform / weighted;
        snapshot.stats.effective = n * n / inverse;
        if matches!(rule, Rule::Importance { gain } if snapshot.stats.gain < gain) {
            snapshot.stats.effective = 1.0;
            return Ok(snapshot);
        }
        snapshot.stats.drawn = true;
        let probability = |id| self.probability(&snapshot, id);
        let table = AliasTable::new(snapshot.losses.len(), probability, &self.budget)?;
        snapshot.table = Some(Arc::new(table));
        Ok(snapshot)
    }

    fn probability(&self, snapshot: &Snapshot, id: usize) -> f64 {
        let uniform = self.spec.uniform_fraction;
        (1.0 - uniform) * self.score_of(snapshot, id) / snapshot.sum + uniform / self.spec.samples as f64
    }

    fn score_of(&self, snapshot: &Snapshot, id: usize) -> f64 {
        let loss = snapshot.losses[id];
        if loss.is_nan() { snapshot.mean } else { self.spec.rule.score(f64::from(loss)) }
    }
}

impl Order for LossFeedback {
    fn len(&self) -> u64 {
        self.spec.positions
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.spec.runs
    }

    fn lookahead(&self) -> Lookahead {
        Lookahead::Listed
    }

    fn begin(&self, epoch: u64) -> Result<()> {
        let known = &mut *lock(&self.known);
        if known.snapshot.as_ref().is_none_or(|snapshot| snapshot.epoch != epoch) {
            // Dropped first, so that its memory is free for the new one.
            known.snapshot = None;
            known.snapshot = Some(Arc::new(self.snapshot(epoch, known.losses.clone())?));
        }
        Ok(())
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let snapshot = lock(&self.known).snapshot.clone().filter(|snapshot| snapshot.epoch == epoch);
        let snapshot = snapshot.ok_or_else(|| {
            Error::Config(format!(
                "epoch {epoch} depends on the losses that are fed back until it begins, so it is not known \
                 before"
            ))
        })?;
        let ids = match &snapshot.table {
            Some(table) => EpochIds::Drawn(DrawKey::new(self.spec.seed, epoch, 0), Arc::clone(table)),
            None => EpochIds::Once(Permutation::new(self.spec.samples, self.spec.seed, epoch, 0)),
        };
        Ok(Arc::new(FeedbackEpoch { order: self.clone(), snapshot, ids }))
    }

    fn feedback_order(&self) -> Option<&dyn FeedbackOrder> {
        Some(self)
    }

    fn held_bytes(&self) -> u64 {
        Self::BYTES * self.spec.samples
    }

    fn digest(&self, epoch: u64) -> Option<u64> {
        let known = lock(&self.known);
        let begun = known.snapshot.as_ref().filter(|snapshot| snapshot.epoch == epoch);
        let digest = begun.map_or_else(
            || losses_digest(&known.losses, epoch, self.spec.digest()),
            |snapshot| snapshot.digest,
        );
        Some(splitmix64_finalize(digest ^ splitmix64_finalize(self.spec.seed)))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        let spec = LossFeedbackSpec { seed, ..self.spec };
        Some(Arc::new(Self { spec, ..self.clone() }))
    }
}

impl FeedbackOrder for LossFeedback {
    fn feedback(&self, ids: &[u64], losses: &[f32]) -> Result<()> {
        if ids.len() != losses.len() {
            return Err(Error::Config(format!(
                "{} losses for {} ids: give one for each",
                losses.len(),
                ids.len()
            )));
        }
        for (&id, &loss) in ids.iter().zip(losses) {
            if id >= self.spec.samples {
                return Err(Error::Config(format!(
                    "feedback for id {id}, but there are {} samples",
                    self.spec.samples
                )));
            }
            if !(loss >= 0.0 && loss.is_finite()) {
                return Err(Error::Config(format!(
                    "the loss of id {id} is {loss}: losses are finite and not negative"
                )));
            }
        }
        let momentum = self.spec.momentum as f32;
        let known = &mut *lock(&self.known);
        for (&id, &loss) in ids.iter().zip(losses) {
            let mean = &mut known.losses[id as usize];
            *mean = if mean.is_nan() { loss } else { *mean + momentum * (loss - *mean) };
        }
        Ok(())
    }

    fn stats(&self) -> Option<FeedbackStats> {
        lock(&self.known).snapshot.as_ref().map(|snapshot| snapshot.stats)
    }

    /// The epoch of the snapshot, or `u64::MAX` without one; then losses as little-endian floats;
    /// then the snapshot's losses.
    fn export(&self) -> Vec<u8> {
        let known = lock(&self.known);
        let (epoch, snapshot) =
            known.snapshot.as_ref().map_or((u64::MAX, None), |s| (s.epoch, Some(&s.losses)));
        let losses = known.losses.iter().chain(snapshot.into_iter().flatten());
        let mut bytes = epoch.to_le_bytes().to_vec();
        bytes.extend(losses.flat_map(|loss| loss.to_le_bytes()));
        bytes
    }

    fn import(&self, bytes: &[u8]) -> Result<()> {
        let n = self.spec.samples as usize;
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
}

#[derive(Debug)]
struct FeedbackEpoch {
    order: LossFeedback,
    snapshot: Arc<Snapshot>,
    ids: EpochIds,
}

#[derive(Debug)]
enum EpochIds {
    /// Every sample once.
    Once(Permutation),
    /// Draws by the snapshot's table.
    Drawn(DrawKey, Arc<AliasTable>),
}

impl Epoch for FeedbackEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(match &self.ids {
            // An epoch with more positions than samples repeats the permutation.
            EpochIds::Once(permutation) => permutation.apply(position % self.order.spec.samples),
            EpochIds::Drawn(key, table) => table.draw(key.word(position)),
        })
    }

    fn weight(&self, index: u64) -> f32 {
        match (self.order.spec.rule, &self.ids) {
            (Rule::Importance { .. }, EpochIds::Drawn(..)) => {
                let p = self.order.probability(&self.snapshot, index as usize);
                (1.0 / (self.order.spec.samples as f64 * p)) as f32
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: LossFeedbackSpec = LossFeedbackSpec {
        rule: Rule::Hard { power: 1.0 },
        samples: 100,
        positions: 20_000,
        uniform_fraction: 0.1,
        momentum: 0.5,
        runs: 1,
        seed: 3,
    };

    fn made(rule: Rule, budget: &Budget) -> LossFeedback {
        LossFeedback::new(LossFeedbackSpec { rule, ..SPEC }, budget).unwrap()
    }

    fn counts(order: &LossFeedback, epoch: u64) -> Vec<u64> {
        order.begin(epoch).unwrap();
        let epoch = order.epoch(epoch).unwrap();
        let mut counts = vec![0; 100];
        (0..order.len()).for_each(|p| counts[epoch.id(p).unwrap() as usize] += 1);
        counts
    }

    fn feed(order: &LossFeedback) -> Vec<f32> {
        let losses: Vec<f32> = (0..100).map(|id| if id < 10 { 9.0 } else { 1.0 }).collect();
        order.feedback(&(0..100).collect::<Vec<_>>(), &losses).unwrap();
        losses
    }

    #[test]
    fn losses_count_from_the_next_epoch_on() {
        let budget = Budget::new(1 << 20);
        let order = made(Rule::Hard { power: 1.0 }, &budget);
        assert!(counts(&order, 0).iter().all(|&count| count == 200), "at first all are equally frequent");
        feed(&order);
        assert!(order.epoch(1).unwrap_err().to_string().contains("not known before"));
        assert!(counts(&order, 0).iter().all(|&count| count == 200), "this epoch does not change");
        let second = counts(&order, 1);
        // A hard sample has 0.9 * 9 / 180 + 0.1 / 100 of 20,000 draws.
        let hard = second[..10].iter().sum::<u64>() as f64 / 10.0;
        assert!((hard - 920.0).abs() < 40.0, "{hard}");
        let stats = order.stats().unwrap();
        assert!(stats.drawn && stats.known == 100 && stats.gain > 1.5 && stats.effective < 0.9, "{stats:?}");
        // The mean of both losses, for the momentum is a half.
        order.feedback(&[0], &[1.0]).unwrap();
        assert_eq!(lock(&order.known).losses[0], 5.0);
        assert!(order.held_bytes() >= budget.usage().charged_bytes);
    }

    /// A weighted mean over draws is the mean over all samples, and only a large gain uses the
    /// weights.
    #[test]
    fn importance_is_unbiased_and_used_only_for_a_gain() {
        let budget = Budget::new(1 << 20);
        let order = made(Rule::Importance { gain: 1.5 }, &budget);
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
        assert!((effective - order.stats().unwrap().effective).abs() < 0.01);
        let flat = made(Rule::Importance { gain: 1.5 }, &budget);
        flat.feedback(&[1, 2], &[1.0, 1.1]).unwrap();
        assert!(counts(&flat, 0).iter().all(|&count| count == 200));
        assert!(!flat.stats().unwrap().drawn && flat.epoch(0).unwrap().weight(5) == 1.0);
    }

    #[test]
    fn imports_what_was_exported() {
        let budget = Budget::new(1 << 20);
        let order = made(Rule::Focal { gamma: 2.0 }, &budget);
        feed(&order);
        let second = counts(&order, 1);
        order.feedback(&[3], &[0.0]).unwrap();
        let other = made(Rule::Focal { gamma: 2.0 }, &budget);
        assert_ne!(other.digest(1), order.digest(1));
        other.import(&order.export()).unwrap();
        assert_eq!((other.digest(1), other.digest(2)), (order.digest(1), order.digest(2)));
        assert_eq!((counts(&other, 1), counts(&other, 2)), (second, counts(&order, 2)));
        assert!(
            other
                .import(&order.export()[..20])
                .unwrap_err()
                .to_string()
                .contains("20 bytes are not the losses of 100")
        );
        let fresh = made(Rule::Focal { gamma: 2.0 }, &budget);
        other.import(&fresh.export()).unwrap();
        assert_eq!(other.digest(0), fresh.digest(0));
    }

    #[test]
    fn refuses_losses_and_parameters_out_of_range() {
        let budget = Budget::new(1 << 20);
        let order = made(Rule::Hard { power: 1.0 }, &budget);
        for (ids, losses, says) in [
            (vec![100], vec![1.0], "id 100, but there are 100"),
            (vec![5], vec![f32::NAN], "id 5 is NaN"),
            (vec![5], vec![-1.0], "id 5 is -1"),
            (vec![5, 6], vec![1.0], "1 losses for 2 ids"),
        ] {
            assert!(order.feedback(&ids, &losses).unwrap_err().to_string().contains(says), "{says}");
        }
        let new = |rule, uniform_fraction, momentum| {
            let spec = LossFeedbackSpec { rule, uniform_fraction, momentum, ..SPEC };
            LossFeedback::new(spec, &budget).map_err(|e| e.to_string())
        };
        assert!(new(Rule::Hard { power: -1.0 }, 0.1, 0.5).unwrap_err().contains("power is -1"));
        assert!(
            new(Rule::Focal { gamma: 1.0 }, 1.5, 0.5).unwrap_err().contains("uniform_fraction (even) is 1.5")
        );
        assert!(new(Rule::Focal { gamma: 1.0 }, 0.5, 0.0).unwrap_err().contains("momentum (newness) is 0"));
        let large = LossFeedbackSpec { samples: 1 << 20, ..SPEC };
        assert!(matches!(LossFeedback::new(large, &budget), Err(Error::Budget { .. })));
    }
}
