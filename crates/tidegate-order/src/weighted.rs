//! Weighted draws: each sample is as likely as its weight, with replacement.
//!
//! Flow: weights -> an alias table -> the id at a position, as a function of (seed, epoch,
//! position).
//! Memory: 8 bytes a sample (account `index`), reserved before the table is made.

use std::sync::Arc;

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::Budget;

use crate::alias::AliasTable;
use crate::draw::{DrawKey, check_samples};
use crate::error::Result;
use crate::traits::{Epoch, Lookahead, Order};

/// An order of weighted draws with replacement.
///
/// ```
/// use tidegate_core::memory::Budget;
/// use tidegate_order::{Order, weighted::Weighted};
/// let order = Weighted::new(&[0.0, 1.0, 3.0], 1000, 1, 0, &Budget::new(1 << 20))?;
/// let epoch = order.epoch(0)?;
/// let twos = (0..1000).filter(|&p| epoch.id(p).is_ok_and(|id| id == 2)).count();
/// assert!((700..800).contains(&twos));
/// # Ok::<(), tidegate_order::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Weighted {
    table: Arc<AliasTable>,
    positions: u64,
    runs: u64,
    seed: u64,
}

impl Weighted {
    /// Epochs of `positions` draws by the weights of all samples, which are stored in `runs` runs.
    ///
    /// # Errors
    /// As [`AliasTable::new`]; [`crate::Error::Config`] when there are positions but no samples.
    pub fn new<W: Copy + Into<f64>>(
        weights: &[W],
        positions: u64,
        runs: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        check_samples(positions, weights.len() as u64)?;
        let table = Arc::new(AliasTable::new(weights.len(), |id| weights[id].into(), budget)?);
        Ok(Self { table, positions, runs, seed })
    }
}

impl Order for Weighted {
    fn len(&self) -> u64 {
        self.positions
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.runs
    }

    fn lookahead(&self) -> Lookahead {
        Lookahead::Listed
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let (key, table) = (DrawKey::new(self.seed, epoch, 0), Arc::clone(&self.table));
        Ok(Arc::new(WeightedEpoch { key, table }))
    }

    fn held_bytes(&self) -> u64 {
        AliasTable::BYTES * self.table.len() as u64
    }

    fn digest(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ self.table.digest()))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct WeightedEpoch {
    key: DrawKey,
    table: Arc<AliasTable>,
}

impl Epoch for WeightedEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.table.draw(self.key.word(position)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{chi_square, counts};

    #[test]
    fn draws_are_as_frequent_as_weights() {
        let budget = Budget::new(1 << 20);
        let weights: Vec<f32> = (0..100).map(|i| (i % 7) as f32 + 0.25).collect();
        let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let order = Weighted::new(&weights, 200_000, 1, 3, &budget).unwrap();
        for epoch in 0..3 {
            let expected = |id: usize| f64::from(weights[id]) / sum * 200_000.0;
            let found = chi_square(&counts(&order, 100, epoch), expected);
            assert!(found < 99.0 + 5.0 * 198f64.sqrt(), "chi-square {found} over 99 degrees");
        }
        assert_eq!(budget.usage().charged_bytes, 800);
        assert_ne!(order.digest(0), order.reseeded(4).unwrap().digest(0));
    }

    #[test]
    fn refuses_weights_that_cannot_be_drawn_by() {
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
    }
}
