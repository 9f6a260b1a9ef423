//! Weighted draws: an alias table (Walker, 1977; Vose, 1991).
//!
//! Flow: weights -> [`AliasTable`] -> the sample that a random word selects, in constant time.
//! Memory: 8 bytes a sample (account `index`), reserved before the table is made.
//!
//! The table is made in one sweep over light and heavy samples without lists of them
//! (Hübschle-Schneider and Sanders, «Parallel weighted random sampling», 2019).

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use crate::error::{Error, Result};
use crate::memory::reserve;

/// An alias table: one column a sample, each with the sample itself and one alias.
#[derive(Debug)]
pub struct AliasTable {
    /// How likely a draw of the column selects its own sample, times 2^32; and the alias.
    columns: Box<[(u32, u32)]>,
    digest: u64,
    /// Held for as long as the table lives.
    _memory: Grant,
}

impl AliasTable {
    /// Bytes a sample.
    pub const BYTES: u64 = 8;

    /// The table of the weights of `samples`, of any sum. `weight` is called several times an id.
    ///
    /// # Errors
    /// [`Error::Config`] for a weight that is negative or not finite, with its id; for weights
    /// that are all zero; for 2^32 samples and more. [`Error::Budget`] when the table does not
    /// fit.
    pub fn new(samples: usize, weight: impl Fn(usize) -> f64, budget: &Budget) -> Result<Self> {
        if samples >= u32::MAX as usize {
            return Err(Error::Config(format!(
                "{samples} weights are too many: fewer than 2^32 can be drawn by weight"
            )));
        }
        let (mut sum, mut lost, mut digest) = (0.0f64, 0.0, 0u64);
        for id in 0..samples {
            let w = weight(id);
            if !(w >= 0.0 && w.is_finite()) {
                return Err(Error::Config(format!(
                    "the weight of id {id} is {w}: weights are finite and not negative"
                )));
            }
            digest = splitmix64_finalize(digest.rotate_left(1) ^ w.to_bits());
            // Kahan's sum: a plain sum of 10^8 weights would lose the last ones.
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
        Ok(Self { columns: build_alias_columns(samples, scaled), digest, _memory: memory })
    }

    /// The sample that a random word selects.
    #[must_use]
    #[inline]
    pub fn draw(&self, word: u64) -> u64 {
        let wide = u128::from(word) * self.columns.len() as u128;
        let column = (wide >> 64) as usize;
        let (keep, alias) = self.columns[column];
        let coin = ((wide as u64) >> 32) as u32;
        if coin < keep { column as u64 } else { u64::from(alias) }
    }

    /// A hash of the weights.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// The number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// The columns of weights that are scaled to a mean of one.
///
/// The current heavy sample fills the columns of light samples. When what is left of it is below
/// one it is light itself, and the next heavy sample fills its column.
fn build_alias_columns(samples: usize, scaled: impl Fn(usize) -> f64) -> Box<[(u32, u32)]> {
    let share = |p: f64| (p * 4_294_967_296.0).clamp(0.0, 4_294_967_295.0) as u32;
    let mut columns: Box<[(u32, u32)]> = (0..samples as u32).map(|id| (u32::MAX, id)).collect();
    let light = |from: usize| (from..samples).find(|&id| scaled(id) < 1.0);
    let heavy = |from: usize| (from..samples).find(|&id| scaled(id) >= 1.0);
    let (mut next_light, Some(mut current)) = (light(0), heavy(0)) else { return columns };
    let (mut left, mut next) = (scaled(current), heavy(current + 1));
    loop {
        match next {
            Some(after) if left < 1.0 => {
                columns[current] = (share(left), after as u32);
                left += scaled(after) - 1.0;
                (current, next) = (after, heavy(after + 1));
            }
            // The last heavy sample fills all columns that are left. Up to rounding it is just
            // enough.
            _ => {
                let Some(id) = next_light else { return columns };
                let own = scaled(id);
                columns[id] = (share(own), current as u32);
                left -= 1.0 - own;
                next_light = light(id + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The table has the exact weights, up to 2^-32 a column, and never draws a weight of
        /// zero.
        #[test]
        fn a_table_is_its_weights(
            weights in prop::collection::vec(prop_oneof![Just(0.0), 0.0..1.0f64, 0.0..1e6f64], 1..300),
        ) {
            let sum: f64 = weights.iter().sum();
            prop_assume!(sum > 0.0);
            let table = AliasTable::new(weights.len(), |id| weights[id], &Budget::new(1 << 20)).unwrap();
            let mut mass = vec![0.0; weights.len()];
            for (column, &(keep, alias)) in table.columns.iter().enumerate() {
                let keep = if alias as usize == column { 1.0 } else { f64::from(keep) / 4_294_967_296.0 };
                mass[column] += keep;
                mass[alias as usize] += 1.0 - keep;
            }
            for (mass, weight) in mass.iter().zip(&weights) {
                let expected = weight / sum * weights.len() as f64;
                prop_assert!((mass - expected).abs() < 1e-6, "{mass} for {expected}");
                prop_assert!(*weight > 0.0 || *mass == 0.0);
            }
        }
    }
}
