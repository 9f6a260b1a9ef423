//! Uniform draws: every sample is equally likely at every position, with replacement.
//!
//! Flow: (samples, seed, epoch) -> [`Uniform`] -> the id at a position.
//! Memory: holds none.

use std::sync::Arc;

use tidegate_core::hash::splitmix64_finalize;

use crate::draw::{DrawKey, check_samples};
use crate::error::Result;
use crate::traits::{Epoch, Lookahead, Order};

/// An order of uniform draws with replacement.
///
/// ```
/// use tidegate_order::{Order, uniform::Uniform};
/// let order = Uniform::new(10_000_000_000, 5, 1, 0)?;
/// assert!(order.epoch(0)?.id(3)? < 10_000_000_000);
/// # Ok::<(), tidegate_order::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Uniform {
    samples: u64,
    positions: u64,
    runs: u64,
    seed: u64,
}

impl Uniform {
    /// Epochs of `positions` draws from `0..samples`, which are stored in `runs` runs.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when there are positions but no samples.
    pub fn new(samples: u64, positions: u64, runs: u64, seed: u64) -> Result<Self> {
        check_samples(positions, samples)?;
        Ok(Self { samples, positions, runs, seed })
    }
}

impl Order for Uniform {
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
        Ok(Arc::new(UniformEpoch { key: DrawKey::new(self.seed, epoch, 0), samples: self.samples }))
    }

    fn digest(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ splitmix64_finalize(self.samples ^ 0x45)))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct UniformEpoch {
    key: DrawKey,
    samples: u64,
}

impl Epoch for UniformEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.key.below(position, self.samples))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{chi_square, counts};

    #[test]
    fn draws_are_equally_frequent() {
        let order = Uniform::new(100, 200_000, 1, 3).unwrap();
        for epoch in 0..3 {
            let found = chi_square(&counts(&order, 100, epoch), |_| 2000.0);
            assert!(found < 99.0 + 5.0 * 198f64.sqrt(), "chi-square {found} over 99 degrees");
        }
        assert_ne!(counts(&order, 100, 0), counts(&order, 100, 1));
        assert!(Uniform::new(0, 5, 1, 0).is_err() && Uniform::new(0, 0, 1, 0).is_ok());
    }

    /// Pairs of neighbouring draws are spread evenly over a 16 by 16 grid.
    #[test]
    fn neighbouring_draws_are_independent() {
        let n = 1u64 << 20;
        let epoch = Uniform::new(n, n, 1, 9).unwrap().epoch(0).unwrap();
        let mut grid = vec![0u64; 256];
        for position in (0..n).step_by(2) {
            let sixteenth = |position| epoch.id(position).unwrap() * 16 / n;
            grid[(sixteenth(position) * 16 + sixteenth(position + 1)) as usize] += 1;
        }
        let found = chi_square(&grid, |_| n as f64 / 512.0);
        assert!(found < 255.0 + 5.0 * 510f64.sqrt(), "chi-square {found} over 255 degrees");
    }
}
