//! The noise scale of gradients, from the norms of two batches.
//!
//! Flow: squared norms of gradients of a small and a large batch -> [`NoiseScale`].
//! Memory: a few words.
//!
//! Source: S. McCandlish et al., arXiv:1812.06162, appendix A. With batches b < B,
//! (B·|g_B|² − b·|g_b|²) / (B − b) is an unbiased estimate of |G|², and
//! (|g_b|² − |g_B|²) / (1/b − 1/B) of the trace of the covariance. Each is averaged by itself and
//! then they are divided: the mean of their quotients is biased.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, not_negative};

/// Averages of both estimates. Micro-batches give the small norm, their sum the large one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseScale {
    small_batch: u64,
    large_batch: u64,
    /// What an older estimate weighs after each newer one; 1 is the mean of all.
    decay: f64,
    weight: f64,
    squared_gradient: f64,
    trace: f64,
}

impl NoiseScale {
    /// Starts with nothing seen. A `decay` of 1 averages over all steps; below 1, mostly over the
    /// last 1 / (1 − decay).
    ///
    /// # Errors
    /// [`Error::Parameter`] when the batches are not 0 < small < large, or the decay not in (0, 1].
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::noise::NoiseScale;
    /// let mut scale = NoiseScale::new(1, 4, 1.0)?;
    /// // |G|² = 1 and a trace of 8: E|g|² = 1 + 8/b.
    /// scale.add(9.0, 3.0)?;
    /// assert_eq!(scale.value(), Some(8.0));
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn new(small_batch: u64, large_batch: u64, decay: f64) -> Result<Self> {
        if small_batch == 0 || small_batch >= large_batch {
            let value = format!("{small_batch} and {large_batch}");
            return Err(Error::parameter(
                "the two batches",
                value,
                "the first must be at least 1, and smaller than the second",
            ));
        }
        if !(decay > 0.0 && decay <= 1.0) {
            return Err(Error::parameter("decay", decay, "it must be above 0, and 1 at most"));
        }
        Ok(Self { small_batch, large_batch, decay, weight: 0.0, squared_gradient: 0.0, trace: 0.0 })
    }

    /// Takes the squared norms of one step: of the gradient of a small batch (or the mean over
    /// several) and of the large batch.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a norm that is negative or no number.
    pub fn add(&mut self, small_squared: f64, large_squared: f64) -> Result<()> {
        for (name, value) in [("small_squared", small_squared), ("large_squared", large_squared)] {
            not_negative(name, value)?;
        }
        let (b, big) = (self.small_batch as f64, self.large_batch as f64);
        let squared = (big * large_squared - b * small_squared) / (big - b);
        let trace = (small_squared - large_squared) / (1.0 / b - 1.0 / big);
        let kept = self.weight * self.decay;
        self.weight = kept + 1.0;
        self.squared_gradient += (squared - self.squared_gradient) / self.weight;
        self.trace += (trace - self.trace) / self.weight;
        Ok(())
    }

    /// The simple noise scale tr Σ / |G|², which is about the critical batch; None while the
    /// estimate of |G|² is not positive.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        (self.squared_gradient > 0.0).then(|| (self.trace / self.squared_gradient).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::hash::{GOLDEN, splitmix64};

    use super::*;

    /// Standard normal numbers by Box and Muller, from SplitMix64.
    struct Normal(u64);

    impl Normal {
        fn word(&mut self) -> f64 {
            let word = splitmix64(self.0);
            self.0 = self.0.wrapping_add(GOLDEN);
            (word >> 11) as f64 / (1u64 << 53) as f64
        }

        fn next(&mut self) -> f64 {
            let radius = (-2.0 * (1.0 - self.word()).ln()).sqrt();
            radius * (std::f64::consts::TAU * self.word()).cos()
        }
    }

    /// Gradients of 50 dimensions with a known mean and known deviations: the estimate is within
    /// 5 % of the true scale, and the mean of quotients is not.
    #[test]
    fn the_estimate_is_within_five_percent_of_the_truth() {
        let mean: Vec<f64> = (0..50).map(|i| 0.02 * f64::from(i % 7)).collect();
        let deviation: Vec<f64> = (0..50).map(|i| 0.5 + 0.01 * f64::from(i)).collect();
        let squared: f64 = mean.iter().map(|m| m * m).sum();
        let trace: f64 = deviation.iter().map(|d| d * d).sum();
        let (small, large) = (8u64, 64u64);
        let mut normal = Normal(1);
        let mut scale = NoiseScale::new(small, large, 1.0).unwrap();
        let mut quotients = Vec::new();
        for _ in 0..4000 {
            let mut draw = |batch: u64| -> Vec<f64> {
                let each = mean.iter().zip(&deviation);
                each.map(|(m, d)| m + d * normal.next() / (batch as f64).sqrt()).collect()
            };
            // The large batch is the mean of eight small ones.
            let micro: Vec<Vec<f64>> = (0..large / small).map(|_| draw(small)).collect();
            let sum: Vec<f64> = (0..50).map(|i| micro.iter().map(|g| g[i]).sum::<f64>() / 8.0).collect();
            let norm = |g: &[f64]| g.iter().map(|x| x * x).sum::<f64>();
            let small_norm = micro.iter().map(|g| norm(g)).sum::<f64>() / 8.0;
            scale.add(small_norm, norm(&sum)).unwrap();
            let mut alone = NoiseScale::new(small, large, 1.0).unwrap();
            alone.add(small_norm, norm(&sum)).unwrap();
            quotients.extend(alone.value());
        }
        let truth = trace / squared;
        let found = scale.value().unwrap();
        assert!((found / truth - 1.0).abs() < 0.05, "{found} of {truth}");
        let naive = quotients.iter().sum::<f64>() / quotients.len() as f64;
        assert!((naive / truth - 1.0).abs() > 0.05, "{naive} of {truth}");
    }

    #[test]
    fn older_steps_fade_and_wrong_numbers_are_refused() {
        let mut scale = NoiseScale::new(1, 4, 0.5).unwrap();
        scale.add(9.0, 3.0).unwrap();
        for _ in 0..40 {
            scale.add(5.0, 2.0).unwrap();
        }
        assert!((scale.value().unwrap() - 4.0).abs() < 1e-9);
        assert!(scale.add(f64::NAN, 1.0).is_err());
        assert!(NoiseScale::new(4, 4, 1.0).is_err() && NoiseScale::new(1, 4, 0.0).is_err());
        let mut still = NoiseScale::new(1, 4, 1.0).unwrap();
        still.add(9.0, 1.0).unwrap();
        assert_eq!(still.value(), None);
    }
}
