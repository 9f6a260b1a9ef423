//! Linear and logistic regression in one pass over a stream, reset on drift.
//!
//! Flow: rows and targets in batches -> [`Online`] -> predictions, and an alarm if the model's own
//! loss shows that the stream has changed.
//! Memory: 16 bytes per feature, and a drift detector.
//!
//! The optimizer is stochastic gradient descent. A step is η₀ / t^¼ times the gradient of the
//! batch's mean loss (Bottou, «Stochastic gradient descent tricks», 2012). After a drift t
//! restarts at one, so older knowledge is overwritten quickly.

use crate::codec::{Kind, Reader, Writer};
use crate::drift::Adwin;
use crate::error::positive;
use crate::{Error, Result};

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Target {
    /// A number, by least squares.
    Number = 0,
    /// A class, 0 or 1, by its log-odds.
    Class = 1,
}

/// A linear model of a stream.
///
/// ```
/// use tidegate_sketch::online::{Online, Target};
/// let mut model = Online::new(1, Target::Number, 0.1)?;
/// for i in 0..2000 {
///     let x = f64::from(i % 7) / 7.0;
///     model.learn(&[x], &[3.0 * x + 1.0])?;
/// }
/// assert!((model.predict(&[0.5])?[0] - 2.5).abs() < 0.05);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Online {
    target: Target,
    rate: f64,
    /// One weight per feature, then the constant.
    weights: Vec<f64>,
    step: u64,
    seen: u64,
    losses: Adwin,
    drifts: u64,
}

impl Online {
    const VERSION: u8 = 1;

    /// An untrained model for this many features, with this initial learning rate.
    ///
    /// # Errors
    /// [`Error::Parameter`] if there are no features or the rate is not positive.
    pub fn new(features: usize, target: Target, rate: f64) -> Result<Self> {
        if features == 0 || features > 1 << 28 {
            return Err(Error::parameter("features", features, "it must be between 1 and 2^28"));
        }
        Ok(Self {
            target,
            rate: positive("rate", rate)?,
            weights: vec![0.0; features + 1],
            step: 0,
            seen: 0,
            losses: Adwin::new(0.002)?,
            drifts: 0,
        })
    }

    fn features(&self) -> usize {
        self.weights.len() - 1
    }

    fn rows<'a>(&self, rows: &'a [f64]) -> Result<std::slice::ChunksExact<'a, f64>> {
        let features = self.features();
        if !rows.len().is_multiple_of(features) {
            return Err(Error::parameter(
                "features",
                features,
                format!("{} numbers are no whole rows", rows.len()),
            ));
        }
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(Error::value(at / features, rows[at], "features are finite numbers"));
        }
        Ok(rows.chunks_exact(features))
    }

    fn raw(&self, row: &[f64]) -> f64 {
        let (constant, weights) = (self.weights[self.features()], &self.weights[..self.features()]);
        constant + weights.iter().zip(row).map(|(w, x)| w * x).sum::<f64>()
    }

    /// (prediction, loss, derivative of the loss by the raw prediction).
    fn evaluate(&self, row: &[f64], truth: f64) -> (f64, f64, f64) {
        let raw = self.raw(row);
        match self.target {
            Target::Number => (raw, (raw - truth) * (raw - truth) / 2.0, raw - truth),
            Target::Class => {
                let p = 1.0 / (1.0 + (-raw).exp());
                let sign = if truth > 0.5 { -raw } else { raw };
                // ln(1 + e^x), without overflow.
                let loss = sign.max(0.0) + (-sign.abs()).exp().ln_1p();
                (p, loss, p - truth)
            }
        }
    }

    /// Learns from a batch of rows and targets. Returns the mean loss before the step, and whether
    /// the stream has changed.
    ///
    /// # Errors
    /// [`Error::Parameter`] for incomplete rows or another number of targets; [`Error::Value`] for
    /// numbers that are not finite, and for classes other than 0 and 1. The model does not change
    /// then.
    pub fn learn(&mut self, rows: &[f64], targets: &[f64]) -> Result<(f64, bool)> {
        let whole = self.rows(rows)?;
        if whole.len() != targets.len() || targets.is_empty() {
            return Err(Error::parameter(
                "targets",
                targets.len(),
                format!("there are {} rows", whole.len()),
            ));
        }
        let fits = |&y: &f64| if self.target == Target::Class { y == 0.0 || y == 1.0 } else { y.is_finite() };
        if let Some(at) = targets.iter().position(|y| !fits(y)) {
            let expected =
                if self.target == Target::Class { "classes are 0 and 1" } else { "targets are finite" };
            return Err(Error::value(at, targets[at], expected));
        }
        let mut slopes = vec![0.0; self.weights.len()];
        let (mut loss, features) = (0.0, self.features());
        for (row, &truth) in whole.zip(targets) {
            let (_, lost, slope) = self.evaluate(row, truth);
            loss += lost;
            slopes.iter_mut().zip(row).for_each(|(sum, x)| *sum += slope * x);
            slopes[features] += slope;
        }
        let n = targets.len() as f64;
        let loss = loss / n;
        // The check below handles a loss that is no longer finite.
        let before = self.losses.mean();
        // A falling loss is learning, not drift.
        let drifted = loss.is_finite() && self.losses.update(loss)? && self.losses.mean() > before;
        if drifted {
            (self.step, self.drifts) = (0, self.drifts + 1);
        }
        self.step += 1;
        self.seen += targets.len() as u64;
        let step = self.rate / (self.step as f64).powf(0.25) / n;
        self.weights.iter_mut().zip(&slopes).for_each(|(w, slope)| *w -= step * slope);
        if self.weights.iter().any(|w| !w.is_finite()) {
            self.weights.fill(0.0);
            return Err(Error::parameter(
                "rate",
                self.rate,
                "the model diverged and was reset: lower the rate or scale the features",
            ));
        }
        Ok((loss, drifted))
    }

    /// The prediction for each row: a number, or the probability of class 1.
    ///
    /// # Errors
    /// As [`Online::learn`].
    pub fn predict(&self, rows: &[f64]) -> Result<Vec<f64>> {
        Ok(self.rows(rows)?.map(|row| self.evaluate(row, 0.0).0).collect())
    }

    /// One weight per feature, then the constant.
    #[must_use]
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// How often the stream has changed.
    #[must_use]
    pub fn drifts(&self) -> u64 {
        self.drifts
    }

    /// Merges a model of another part of the stream: averages weights by the number of rows that
    /// each has seen.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if features or targets differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::mismatch("models", "the number of features", self.features(), other.features())?;
        Error::mismatch("models", "the target", self.target as u8, other.target as u8)?;
        let all = self.seen + other.seen;
        if all > 0 {
            let share = other.seen as f64 / all as f64;
            self.weights.iter_mut().zip(&other.weights).for_each(|(w, o)| *w += share * (o - *w));
        }
        (self.seen, self.step) = (all, self.step.max(other.step));
        Ok(())
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + 16 * self.weights.len()) as u64 + self.losses.size_bytes()
    }

    /// Serializes the exact state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Online, Self::VERSION);
        to.byte(self.target as u8).float(self.rate).word(self.step).word(self.seen).word(self.drifts);
        to.floats(&self.weights);
        to.bytes(&self.losses.to_bytes());
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("model", bytes, Kind::Online, Self::VERSION)?;
        let target = if from.byte()? == 0 { Target::Number } else { Target::Class };
        let (rate, step, seen, drifts) = (from.float()?, from.word()?, from.word()?, from.word()?);
        let weights = from.floats()?;
        let losses = Adwin::from_bytes(from.bytes()?)?;
        if weights.len() < 2 || !(rate > 0.0 && rate.is_finite()) || weights.iter().any(|w| !w.is_finite()) {
            return from.wrong(format!("{} weights, a rate of {rate}", weights.len()));
        }
        from.end(Self { target, rate, weights, step, seen, losses, drifts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// Rows of three features, with the class given by a plane; `turned` swaps the classes.
    fn batch(draws: &mut Draws, n: usize, turned: bool) -> (Vec<f64>, Vec<f64>) {
        let rows: Vec<f64> = (0..3 * n).map(|_| 2.0 * draws.positive() - 1.0).collect();
        let of = |row: &[f64]| f64::from((row[0] - 2.0 * row[1] + 0.2 > 0.0) != turned);
        let classes = rows.chunks(3).map(of).collect();
        (rows, classes)
    }

    fn accuracy(model: &Online, draws: &mut Draws, turned: bool) -> f64 {
        let (rows, classes) = batch(draws, 4000, turned);
        let right = model
            .predict(&rows)
            .unwrap()
            .into_iter()
            .zip(&classes)
            .filter(|(p, c)| (*p > 0.5) == (**c > 0.5));
        right.count() as f64 / 4000.0
    }

    /// One pass finds the plane that many passes over all data would find.
    #[test]
    fn learns_in_one_pass_and_forgets_on_drift() {
        let (mut model, mut draws) = (Online::new(3, Target::Class, 1.0).unwrap(), Draws::new(1));
        for _ in 0..1500 {
            let (rows, classes) = batch(&mut draws, 16, false);
            model.learn(&rows, &classes).unwrap();
        }
        let before = accuracy(&model, &mut draws, false);
        assert!(before > 0.96, "{before}");
        assert_eq!(model.drifts(), 0);
        let mut stored = Online::from_bytes(&model.to_bytes()).unwrap();
        assert_eq!(stored, model);
        for _ in 0..400 {
            let (rows, classes) = batch(&mut draws, 16, true);
            assert_eq!(stored.learn(&rows, &classes).unwrap(), model.learn(&rows, &classes).unwrap());
        }
        assert!(model.drifts() >= 1);
        let after = accuracy(&model, &mut draws, true);
        assert!(after > 0.93, "{after}");
    }

    /// Compares with the solution of the normal equations of the same rows.
    #[test]
    fn finds_the_least_squares() {
        let (mut model, mut draws) = (Online::new(2, Target::Number, 0.3).unwrap(), Draws::new(2));
        for _ in 0..3000 {
            let rows: Vec<f64> = (0..16).map(|_| 2.0 * draws.positive() - 1.0).collect();
            let noise = draws.positive() - 0.5;
            let targets: Vec<f64> = rows.chunks(2).map(|r| 2.0 * r[0] - r[1] + 0.5 + 0.1 * noise).collect();
            model.learn(&rows, &targets).unwrap();
        }
        let near = model.weights().iter().zip([2.0, -1.0, 0.5]).all(|(w, truth)| (w - truth).abs() < 0.03);
        assert!(near, "{:?}", model.weights());
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let mut model = Online::new(2, Target::Class, 0.1).unwrap();
        assert!(model.learn(&[1.0, 2.0, 3.0], &[1.0]).is_err() && model.learn(&[1.0, 2.0], &[]).is_err());
        assert!(model.learn(&[1.0, 2.0], &[2.0]).unwrap_err().to_string().contains("the value at 0 is 2"));
        assert!(model.learn(&[1.0, f64::NAN], &[1.0]).unwrap_err().to_string().contains("NaN"));
        assert!(Online::new(0, Target::Class, 0.1).is_err() && Online::new(1, Target::Class, 0.0).is_err());
        let other = Online::new(3, Target::Class, 0.1).unwrap();
        assert!(model.merge(&other).is_err());
        let mut wild = Online::new(1, Target::Number, 1e300).unwrap();
        let error = (0..10).find_map(|_| wild.learn(&[1e10], &[1.0]).err()).unwrap();
        assert!(error.to_string().contains("diverged"));
    }
}
