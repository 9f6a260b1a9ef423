//! Batches: micro-batches with exact weights, how a batch grows, and the best batch by time.
//!
//! Flow: numbers -> sizes and weights, batches of later epochs, the time to a target.
//! Memory: some words a micro-batch.
//!
//! Sources: S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch
//! training", arXiv:1812.06162, for steps and samples to a target; A. Devarakonda, M. Naumov,
//! M. Garland, "AdaBatch", arXiv:1712.02029.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, at_least_one, counted_to, not_negative, positive};

/// The most micro-batches of a step.
pub const MOST_PARTS: u64 = 1 << 16;

/// The sizes of `parts` micro-batches of a batch: as equal as they can be, larger ones first.
///
/// # Errors
/// [`Error::Parameter`] for no parts, more than 2^16, or more than samples.
///
/// # Example
/// ```
/// use tidegate_plan::training::batch::micro_batches;
/// assert_eq!(micro_batches(10, 4)?, [3, 3, 2, 2]);
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn micro_batches(batch: u64, parts: u64) -> Result<Vec<u64>> {
    counted_to("parts", parts, MOST_PARTS)?;
    if parts > batch {
        return Err(Error::parameter(
            "parts",
            parts,
            format!("it must be at most the {batch} samples of the batch"),
        ));
    }
    let (each, more) = (batch / parts, batch % parts);
    Ok((0..parts).map(|i| each + u64::from(i < more)).collect())
}

/// The weight of each micro-batch's mean loss, so that gradients add up to that of the whole batch.
///
/// `counts` are samples, or, where the loss is a mean over tokens, valid tokens. A weight of 1/k is
/// right only for equal counts.
///
/// # Errors
/// [`Error::Config`] when nothing is counted.
pub fn weights(counts: &[u64]) -> Result<Vec<f64>> {
    let sum: u128 = counts.iter().map(|&n| u128::from(n)).sum();
    if sum == 0 {
        return Err(Error::Config("micro-batches without samples have no weights".into()));
    }
    Ok(counts.iter().map(|&n| n as f64 / sum as f64).collect())
}

/// How a batch changes while training goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Growth {
    /// AdaBatch: times `factor` after a number of epochs.
    Adabatch {
        /// The first batch.
        first: u64,
        /// What it is multiplied by.
        factor: f64,
        /// After how many epochs.
        epochs: u64,
        /// The largest batch.
        most: u64,
    },
    /// first · (1 + rate · epoch).
    Linear {
        /// The first batch.
        first: u64,
        /// What is added in an epoch, as a part of the first batch.
        rate: f64,
        /// The largest batch.
        most: u64,
    },
}

impl Growth {
    /// The batch of an epoch, counted from 0.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a first batch or epochs of 0, a factor below 1, a negative rate.
    pub fn batch(&self, epoch: u64) -> Result<u64> {
        let (grown, most) = match *self {
            Self::Adabatch { first, factor, epochs, most } => {
                at_least_one("first", first)?;
                at_least_one("epochs", epochs)?;
                if positive("factor", factor)? < 1.0 {
                    return Err(Error::parameter("factor", factor, "it must be 1 or more"));
                }
                (first as f64 * factor.powf((epoch / epochs) as f64), most)
            }
            Self::Linear { first, rate, most } => {
                at_least_one("first", first)?;
                not_negative("rate", rate)?;
                (first as f64 * (1.0 + rate * epoch as f64), most)
            }
        };
        Ok((grown.round() as u64).min(at_least_one("most", most)?))
    }
}

/// The next batch where the noise of gradients drives it: share · optimum + (1 − share) · batch,
/// between `least` and `most`.
///
/// # Errors
/// [`Error::Parameter`] for a share outside 0 to 1, an optimum that is no positive number, or
/// `least` above `most`.
pub fn noise_driven(batch: u64, optimum: f64, share: f64, least: u64, most: u64) -> Result<u64> {
    positive("optimum", optimum)?;
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::parameter("share", share, "it must be from 0 to 1"));
    }
    if at_least_one("least", least)? > most {
        return Err(Error::parameter(
            "least",
            least,
            format!("it must be at most {most}, the largest batch"),
        ));
    }
    let next = share * optimum + (1.0 - share) * batch as f64;
    Ok((next.round() as u64).clamp(least, most))
}

/// Steps and samples to a target: (S/S_min − 1)(E/E_min − 1) = 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The steps that no batch goes below.
    pub least_steps: f64,
    /// The samples that no batch goes below.
    pub least_samples: f64,
}

/// A batch that was measured: its time, and what it means for the target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reached {
    /// The batch.
    pub batch: u64,
    /// Steps to the target.
    pub steps: f64,
    /// Samples to the target.
    pub samples: f64,
    /// Time to the target, in the unit of the step times.
    pub time: f64,
}

impl Target {
    /// The critical batch: twice the least steps, and twice the least samples.
    #[must_use]
    pub fn critical_batch(&self) -> f64 {
        self.least_samples / self.least_steps
    }

    /// Steps, samples and time for each batch whose step time was measured.
    ///
    /// # Errors
    /// [`Error::Parameter`] for figures that are not positive, and a batch of 0.
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::batch::Target;
    /// let target = Target { least_steps: 1000.0, least_samples: 64_000.0 };
    /// let found = target.reached(&[(64, 0.1), (128, 0.19)])?;
    /// // At the critical batch, 64, both are twice the least.
    /// assert_eq!((found[0].steps, found[0].samples, found[0].time), (2000.0, 128_000.0, 200.0));
    /// assert_eq!(found[1].time, 285.0);
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn reached(&self, measured: &[(u64, f64)]) -> Result<Vec<Reached>> {
        positive("least_steps", self.least_steps)?;
        positive("least_samples", self.least_samples)?;
        let one = |&(batch, step_time): &(u64, f64)| {
            at_least_one("batch", batch)?;
            positive("step_time", step_time)?;
            let steps = self.least_steps * (1.0 + self.critical_batch() / batch as f64);
            Ok(Reached { batch, steps, samples: steps * batch as f64, time: steps * step_time })
        };
        measured.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_add_up_and_weights_are_by_size() {
        for (batch, parts) in [(1, 1), (7, 3), (256, 5), (10, 10)] {
            let sizes = micro_batches(batch, parts).unwrap();
            assert_eq!((sizes.iter().sum::<u64>(), sizes.len() as u64), (batch, parts));
            assert!(sizes[0] - sizes[sizes.len() - 1] <= 1);
        }
        assert!(micro_batches(3, 4).is_err() && micro_batches(3, 0).is_err());
        assert_eq!(weights(&[3, 3, 2]).unwrap(), [0.375, 0.375, 0.25]);
        assert!(weights(&[0, 0]).is_err());
    }

    #[test]
    fn batches_grow_up_to_their_bound() {
        let ada = Growth::Adabatch { first: 128, factor: 2.0, epochs: 20, most: 1000 };
        let of = |growth: &Growth, epochs: &[u64]| -> Vec<u64> {
            epochs.iter().map(|&epoch| growth.batch(epoch).unwrap()).collect()
        };
        assert_eq!(of(&ada, &[0, 19, 20, 40, 60, 10_000]), [128, 128, 256, 512, 1000, 1000]);
        let linear = Growth::Linear { first: 100, rate: 0.1, most: 1000 };
        assert_eq!(of(&linear, &[0, 1, 10, 100]), [100, 110, 200, 1000]);
        assert_eq!(noise_driven(100, 300.0, 0.25, 1, 1000).unwrap(), 150);
        assert_eq!(noise_driven(100, 9e9, 0.25, 1, 1000).unwrap(), 1000);
        assert!(noise_driven(100, 300.0, 1.5, 1, 1000).is_err());
        let json = r#"{"kind":"linear","first":8,"rate":0.5,"most":64}"#;
        assert_eq!(serde_json::from_str::<Growth>(json).unwrap().batch(2).unwrap(), 16);
    }

    #[test]
    fn the_law_of_steps_and_samples_holds() {
        let target = Target { least_steps: 500.0, least_samples: 50_000.0 };
        for found in target.reached(&[(10, 1.0), (100, 1.0), (1000, 1.0)]).unwrap() {
            let law = (found.steps / 500.0 - 1.0) * (found.samples / 50_000.0 - 1.0);
            assert!((law - 1.0).abs() < 1e-9, "{law}");
        }
    }
}
