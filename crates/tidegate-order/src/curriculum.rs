//! A curriculum: draws from the easiest samples first, and from all of them in the end.
//!
//! Flow: difficulties -> ids from easy to hard -> the id at a position; the fraction of the ids
//! that may be drawn grows with the epochs that have passed.
//! Memory: 4 bytes a sample (account `index`), reserved before the list is made.
//!
//! Reference: Bengio et al., «Curriculum learning», 2009.

use std::sync::Arc;

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use crate::draw::{DrawKey, check_samples};
use crate::error::{Error, Result};
use crate::memory::reserve;
use crate::traits::{Epoch, Lookahead, Order};

/// How fast the fraction of the data that may be drawn grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// In proportion to the epochs that have passed.
    Linear,
    /// Its square in proportion to the epochs that have passed. Harder samples come sooner,
    /// because each stays long enough to be drawn as often as an easy one (Platanios et al.,
    /// «Competence-based curriculum learning», 2019).
    Root,
    /// In this number of equal steps.
    Step(u32),
}

impl Pace {
    fn digest(self) -> u64 {
        match self {
            Self::Linear => 0,
            Self::Root => splitmix64_finalize(1),
            Self::Step(steps) => splitmix64_finalize(2 + u64::from(steps)),
        }
    }
}

/// The parameters of a [`Curriculum`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurriculumSpec {
    /// The fraction of the samples that is drawn first, from the easiest: above 0, up to 1.
    pub start: f64,
    /// Epochs after which all samples are drawn.
    pub epochs: f64,
    /// How the fraction grows between these two.
    pub pace: Pace,
    /// Positions in an epoch.
    pub positions: u64,
    /// Runs that the samples are stored in.
    pub runs: u64,
    /// The seed of the draws.
    pub seed: u64,
}

impl CurriculumSpec {
    fn check(&self) -> Result<()> {
        let Self { start, epochs, pace, .. } = self;
        if !(*start > 0.0 && *start <= 1.0) {
            return Err(Error::Config(format!(
                "a curriculum starts with a fraction of the data above 0 and up to 1, not {start}"
            )));
        }
        if !(*epochs > 0.0 && epochs.is_finite()) || *pace == Pace::Step(0) {
            return Err(Error::Config(format!(
                "a curriculum takes a positive number of epochs and steps, not {epochs}, {pace:?}"
            )));
        }
        Ok(())
    }
}

/// An order of uniform draws from the easiest samples, of which there are more as training goes
/// on.
#[derive(Debug, Clone)]
pub struct Curriculum {
    /// From easy to hard. A `Vec`, because an `Arc<[u32]>` would be a second copy while it is
    /// made.
    ids: Arc<Vec<u32>>,
    digest: u64,
    spec: CurriculumSpec,
    memory: Arc<Grant>,
}

impl Curriculum {
    /// A curriculum by the difficulty of each sample, such as a loss or a length. Of equally
    /// difficult samples the lower id comes first.
    ///
    /// # Errors
    /// [`Error::Config`] for a difficulty that is NaN, for a `start` outside (0, 1], and for
    /// epochs or steps that are not positive. [`Error::Budget`] when the list does not fit.
    pub fn new(difficulty: &[f64], spec: CurriculumSpec, budget: &Budget) -> Result<Self> {
        check_samples(spec.positions, difficulty.len() as u64)?;
        if let Some(id) = difficulty.iter().position(|d| d.is_nan()) {
            return Err(Error::Config(format!(
                "the difficulty of id {id} is NaN: it has no place in an order"
            )));
        }
        spec.check()?;
        if difficulty.len() >= u32::MAX as usize {
            let count = difficulty.len();
            return Err(Error::Config(format!("{count} difficulties are too many: fewer than 2^32")));
        }
        let memory = Arc::new(reserve(budget, 4 * difficulty.len() as u64, "the order of difficulties")?);
        let mut ids: Vec<u32> = (0..difficulty.len() as u32).collect();
        ids.sort_unstable_by(|&a, &b| {
            difficulty[a as usize].total_cmp(&difficulty[b as usize]).then(a.cmp(&b))
        });
        let parameters = spec.start.to_bits() ^ spec.epochs.to_bits().rotate_left(9) ^ spec.pace.digest();
        let digest = ids.iter().fold(parameters, |digest, &id| splitmix64_finalize(digest ^ u64::from(id)));
        Ok(Self { ids: Arc::new(ids), digest, spec, memory })
    }

    /// The number of samples, from the easiest, that may be drawn after `passed` epochs.
    #[must_use]
    pub fn open(&self, passed: f64) -> u64 {
        let CurriculumSpec { start, epochs, pace, .. } = self.spec;
        let t = (passed / epochs).min(1.0);
        let done = match pace {
            Pace::Linear => t,
            Pace::Root => {
                let squared = start * start;
                let open = ((1.0 - squared) * t + squared).sqrt();
                (open - start) / (1.0 - start).max(f64::MIN_POSITIVE)
            }
            Pace::Step(steps) => (t * f64::from(steps)).floor() / f64::from(steps),
        };
        let all = self.ids.len() as f64;
        ((start + (1.0 - start) * done) * all).round().clamp(1.0, all) as u64
    }
}

impl Order for Curriculum {
    fn len(&self) -> u64 {
        self.spec.positions
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.spec.runs
    }

    fn lookahead(&self) -> Lookahead {
        Lookahead::Listed
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let key = DrawKey::new(self.spec.seed, epoch, 0);
        Ok(Arc::new(CurriculumEpoch { key, epoch, order: self.clone() }))
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn digest(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.spec.seed ^ self.digest))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        let spec = CurriculumSpec { seed, ..self.spec };
        Some(Arc::new(Self { spec, ..self.clone() }))
    }
}

#[derive(Debug)]
struct CurriculumEpoch {
    key: DrawKey,
    epoch: u64,
    order: Curriculum,
}

impl Epoch for CurriculumEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let passed = self.epoch as f64 + position as f64 / self.order.spec.positions as f64;
        let rank = self.key.below(position, self.order.open(passed));
        Ok(u64::from(self.order.ids[rank as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: CurriculumSpec =
        CurriculumSpec { start: 0.2, epochs: 2.0, pace: Pace::Linear, positions: 5000, runs: 1, seed: 0 };

    #[test]
    fn a_curriculum_opens_as_epochs_pass() {
        let budget = Budget::new(1 << 20);
        let difficulty: Vec<f64> = (0..1000).map(|i| f64::from((i * 7919) % 1000)).collect();
        for (pace, half) in [(Pace::Linear, 600), (Pace::Root, 721), (Pace::Step(4), 600)] {
            let order = Curriculum::new(&difficulty, CurriculumSpec { pace, ..SPEC }, &budget).unwrap();
            assert_eq!((order.open(0.0), order.open(2.0), order.open(9.0)), (200, 1000, 1000));
            assert_eq!(order.open(1.0), half);
            let epoch = order.epoch(0).unwrap();
            let hardest = |from: u64| {
                (from..from + 500).map(|p| difficulty[epoch.id(p).unwrap() as usize]).fold(0.0, f64::max)
            };
            assert!(hardest(0) < 420.0 && hardest(4500) > hardest(0), "{pace:?}");
        }
    }

    #[test]
    fn refuses_parameters_that_make_no_curriculum() {
        let budget = Budget::new(1 << 20);
        for (start, epochs, pace) in
            [(0.0, 1.0, Pace::Linear), (0.5, 0.0, Pace::Linear), (0.5, 1.0, Pace::Step(0))]
        {
            let spec = CurriculumSpec { start, epochs, pace, ..SPEC };
            assert!(Curriculum::new(&[1.0, 2.0], spec, &budget).is_err());
        }
        let error = Curriculum::new(&[1.0, f64::NAN], SPEC, &budget).unwrap_err();
        assert!(error.to_string().contains("id 1 is NaN"));
    }
}
