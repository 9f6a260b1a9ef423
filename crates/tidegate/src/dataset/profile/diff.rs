//! How two profiles differ: tests of each field, and how large the differences are.
//!
//! Flow: two [`Profile`]s -> [`Diff`] -> text or JSON.
//! Memory: holds none.
//!
//! With many samples any difference is significant. So a field has drifted only if a test says so
//! and the difference is large enough to matter. Ranks are from sketches. Their errors are
//! subtracted from the distance first, so that a p-value is never too small because of a sketch.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use tidegate_sketch::quantile::ks;

use super::Profile;
use super::column_note::{Histogram, Label, ValueKind};
use super::encoding::internal;
use super::field::Field;
use super::measure::Measure;
use crate::{Error, Result};

/// The significance level of all tests together.
const LEVEL: f64 = 0.01;

/// How often a value must occur on average in the smaller dataset for a test of shares.
const MIN_COUNT: f64 = 5.0;

/// One test of one field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// The field.
    pub field: String,
    /// What of the field is compared.
    pub what: String,
    /// "Kolmogorov-Smirnov" or "chi-square".
    pub test: &'static str,
    /// Its statistic.
    pub statistic: f64,
    /// The probability of such a statistic if nothing has changed; the true one is at most this.
    pub p: f64,
    /// The size of the difference, from 0 to 1: the largest difference of ranks, or the total
    /// variation distance of shares.
    pub effect: f64,
    /// Of numbers: the shift of the mean in standard deviations (Cohen's d).
    pub moved: Option<f64>,
    /// Whether the difference is significant and large enough to matter.
    pub drifted: bool,
}

/// The values that two datasets share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shared {
    /// The field.
    pub field: String,
    /// The number of distinct values in both, with bounds of three standard deviations.
    pub estimate: f64,
    /// The lower bound of `estimate`.
    pub low: f64,
    /// The upper bound of `estimate`.
    pub high: f64,
    /// The fraction of the second dataset's distinct values that they are.
    pub share: f64,
}

/// How two datasets differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The name and the number of profiled samples of each.
    #[serde(rename = "of")]
    pub datasets: [(String, u64); 2],
    /// The fields that the first dataset lacks, and those that the second lacks.
    pub missing: [Vec<String>; 2],
    /// Fields of another kind in the second: (name, kind in the first, kind in the second).
    pub changed: Vec<(String, String, String)>,
    /// The smallest effect that matters.
    #[serde(rename = "matters")]
    pub min_effect: f64,
    /// All tests, in the order of fields.
    pub drifts: Vec<Drift>,
    /// Values that may have leaked from one to the other.
    pub shared: Vec<Shared>,
}

/// The p-value of a Kolmogorov–Smirnov distance, by its limit for many values.
fn kolmogorov(distance: f64, n: f64, m: f64) -> f64 {
    let lambda = distance.max(0.0) * (n * m / (n + m)).sqrt();
    if lambda < 0.2 {
        return 1.0;
    }
    let term = |k: i32| f64::from(1 - 2 * ((k - 1) % 2)) * (-2.0 * f64::from(k * k) * lambda * lambda).exp();
    (2.0 * (1..=100).map(term).sum::<f64>()).clamp(0.0, 1.0)
}

/// The p-value of chi-square with `k` degrees of freedom (Wilson and Hilferty, 1931).
fn chi_square(statistic: f64, k: f64) -> f64 {
    let spread = 2.0 / (9.0 * k);
    let z = ((statistic / k).cbrt() - (1.0 - spread)) / spread.sqrt();
    libm::erfc(z / std::f64::consts::SQRT_2) / 2.0
}

/// The number of equally large samples that a field's samples count as (Kish, «Survey sampling»,
/// 1965).
fn effective_samples(field: &Field) -> f64 {
    let bytes = field.measures[0].moments.summary();
    let varies = bytes.std(0) / bytes.mean;
    bytes.count as f64 / (1.0 + if varies.is_finite() { varies * varies } else { 0.0 })
}

impl Drift {
    /// All tests of one field.
    fn field(one: &Field, other: &Field, samples: [u64; 2]) -> Result<Vec<Self>> {
        let mut found: Vec<Self> = Self::missing(one, other).into_iter().collect();
        // Where all values are counted, a test of their shares is stronger than one of ranks.
        let values = if one.value_kind == ValueKind::Float { None } else { Self::values(one, other) };
        let counted = values.is_some() && one.value_kind == ValueKind::Int;
        found.extend(values);
        if !counted {
            let measures = one.measures.iter().zip(&other.measures);
            for (name, (a, b)) in one.value_kind.measures().iter().zip(measures) {
                found.extend(Self::numbers(name, a, b, samples)?);
            }
        }
        let channels = ["level of red", "level of green", "level of blue"];
        let tables = one.histograms.iter().zip(&other.histograms);
        for ((a, b), channel) in tables.zip(channels) {
            let what = if one.histograms.len() == 3 { channel } else { "bytes within" };
            found.extend(Self::levels(what, a, b, [effective_samples(one), effective_samples(other)]));
        }
        found.iter_mut().for_each(|drift| drift.field.clone_from(&one.name));
        Ok(found)
    }

    /// Compares the distributions of a number.
    fn numbers(what: &str, one: &Measure, other: &Measure, samples: [u64; 2]) -> Result<Option<Self>> {
        if one.all.count() == 0 || other.all.count() == 0 {
            return Ok(None);
        }
        let statistic = ks(&one.all, &other.all, LEVEL).map_err(internal)?.statistic;
        // The many values of one array are not independent: count samples.
        let count = |measure: &Measure, samples: u64| measure.all.count().min(samples) as f64;
        let sure = statistic - one.all.error() - other.all.error();
        let (a, b) = (one.moments.summary(), other.moments.summary());
        let pooled = ((a.variance(0) + b.variance(0)) / 2.0).sqrt();
        Ok(Some(Self {
            what: what.to_owned(),
            test: "Kolmogorov-Smirnov",
            statistic,
            p: kolmogorov(sure, count(one, samples[0]), count(other, samples[1])),
            effect: statistic,
            moved: Some((b.mean - a.mean) / pooled).filter(|d| d.is_finite()),
            ..Self::default()
        }))
    }

    /// Compares exact histograms. The bytes of one sample are not independent, so `samples` are
    /// what counts, and fewer of them where some are much larger than others.
    fn levels(what: &str, one: &Histogram, other: &Histogram, samples: [f64; 2]) -> Option<Self> {
        let totals = [one, other].map(|table| table.iter().sum::<u64>() as f64);
        if totals.contains(&0.0) {
            return None;
        }
        let mut ranks = [0.0; 2];
        let statistic = one.iter().zip(other).fold(0f64, |most, (&a, &b)| {
            ranks = [ranks[0] + a as f64 / totals[0], ranks[1] + b as f64 / totals[1]];
            most.max((ranks[0] - ranks[1]).abs())
        });
        Some(Self {
            what: what.to_owned(),
            test: "Kolmogorov-Smirnov",
            statistic,
            p: kolmogorov(statistic, samples[0], samples[1]),
            effect: statistic,
            ..Self::default()
        })
    }

    /// Compares how often each value occurs, where all values are counted.
    fn values(one: &Field, other: &Field) -> Option<Self> {
        let labels: BTreeSet<&Label> = one.tally.counts.keys().chain(other.tally.counts.keys()).collect();
        if one.tally.overflowed || other.tally.overflowed {
            return None;
        }
        let count = |field: &Field, label| field.tally.counts.get(label).copied().unwrap_or(0) as f64;
        let pairs: Vec<_> = labels.iter().map(|&label| (count(one, label), count(other, label))).collect();
        let what = match one.value_kind {
            ValueKind::Image => "format",
            ValueKind::Array => "type and shape",
            _ => "values",
        };
        Self::shares(what, &pairs)
    }

    /// Compares how many samples lack the field, or have NaN or infinity there.
    fn missing(one: &Field, other: &Field) -> Option<Self> {
        let counts = |field: &Field| {
            let values = field.measure("value").map(|measure| measure.moments.summary());
            let odd = values.map_or(0, |values| values.nan + values.infinite);
            let all = field.measures[0].moments.summary();
            ((field.missing + odd) as f64, all.count as f64)
        };
        let (a, b) = (counts(one), counts(other));
        // If none is missing there is nothing to test.
        (a.0 + b.0 > 0.0).then(|| Self::shares("missing or NaN", &[(a.0, b.0), (a.1, b.1)])).flatten()
    }

    /// Compares counts of the same things in both datasets.
    fn shares(what: &str, pairs: &[(f64, f64)]) -> Option<Self> {
        let totals = pairs.iter().fold([0.0, 0.0], |sum, pair| [sum[0] + pair.0, sum[1] + pair.1]);
        // The test says nothing about values that hardly repeat (Cochran, 1954).
        let each = totals[0].min(totals[1]) / pairs.len().max(1) as f64;
        if totals.contains(&0.0) || each < MIN_COUNT {
            return None;
        }
        let (mut statistic, mut variation) = (0.0, 0.0);
        for &(a, b) in pairs {
            let weights = ((totals[1] / totals[0]).sqrt(), (totals[0] / totals[1]).sqrt());
            statistic += (weights.0 * a - weights.1 * b).powi(2) / (a + b);
            variation += (a / totals[0] - b / totals[1]).abs() / 2.0;
        }
        let freedom = (pairs.len() - 1) as f64;
        Some(Self {
            what: what.to_owned(),
            test: "chi-square",
            statistic,
            p: if freedom > 0.0 { chi_square(statistic, freedom) } else { 1.0 },
            effect: variation,
            ..Self::default()
        })
    }
}

impl Default for Drift {
    fn default() -> Self {
        let (field, what) = (String::new(), String::new());
        Self { field, what, test: "", statistic: 0.0, p: 1.0, effect: 0.0, moved: None, drifted: false }
    }
}

impl Diff {
    /// Compares two datasets. A difference of at least `min_effect`, from 0 to 1, matters.
    ///
    /// # Errors
    /// [`Error::Config`] for a `min_effect` outside \[0, 1\].
    pub fn new(one: &Profile, other: &Profile, min_effect: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&min_effect) {
            return Err(Error::Config(format!("an effect is between 0 and 1, not {min_effect}")));
        }
        let samples = [one.samples, other.samples];
        let whole = Drift::numbers("bytes of a sample", &one.bytes, &other.bytes, samples)?;
        let mut drifts: Vec<Drift> = whole.into_iter().collect();
        let (mut shared, mut changed) = (Vec::new(), Vec::new());
        for a in &one.fields {
            let Some(b) = other.fields.iter().find(|b| b.name == a.name) else { continue };
            if a.value_kind != b.value_kind {
                let words = |field: &Field| format!("{} ({})", field.stored_kind, field.value_kind.name());
                changed.push((a.name.clone(), words(a), words(b)));
                continue;
            }
            drifts.extend(Drift::field(a, b, samples)?);
            // Labels occur in both datasets, and should.
            let labels = a.tally.total() > 2 * a.tally.counts.len() as u64 && a.value_kind == ValueKind::Text;
            if !matches!(a.value_kind, ValueKind::Int | ValueKind::Float) && !labels {
                shared.extend(Shared::new(a, b)?);
            }
        }
        let level = LEVEL / drifts.len().max(1) as f64;
        drifts.iter_mut().for_each(|drift| drift.drifted = drift.p < level && drift.effect >= min_effect);
        let lacks = |of: &Profile, than: &Profile| {
            let known = |name: &str| of.fields.iter().any(|field| field.name == name);
            than.fields.iter().map(|field| field.name.clone()).filter(|name| !known(name)).collect()
        };
        Ok(Self {
            datasets: [(one.name.clone(), samples[0]), (other.name.clone(), samples[1])],
            missing: [lacks(one, other), lacks(other, one)],
            changed,
            min_effect,
            drifts,
            shared,
        })
    }
}

impl Shared {
    /// The shared values of a field, if there are any.
    fn new(one: &Field, other: &Field) -> Result<Option<Self>> {
        let both =
            one.contents.intersection(&other.contents).map_err(internal)?.estimate(3).map_err(internal)?;
        let all = other.contents.estimate(3).map_err(internal)?.value;
        Ok((both.value > 0.0).then(|| Self {
            field: one.name.clone(),
            estimate: both.value,
            low: both.low,
            high: both.high,
            share: both.value / all.max(1.0),
        }))
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [(one, n), (other, m)] = &self.datasets;
        writeln!(f, "{one} ({n} samples) and {other} ({m} samples)")?;
        writeln!(
            f,
            "{:<16} {:<18} {:<19} {:>9} {:>9} {:>9}",
            "field", "what", "test", "p", "effect", "moved"
        )?;
        for drift in &self.drifts {
            let moved = drift.moved.map_or(String::new(), |d| format!("{d:+.2} sd"));
            writeln!(
                f,
                "{:<16} {:<18} {:<19} {:>9.2e} {:>9.3} {moved:>9}{}",
                drift.field,
                drift.what,
                drift.test,
                drift.p,
                drift.effect,
                if drift.drifted { "  drifted" } else { "" }
            )?;
        }
        for (names, dataset) in self.missing.iter().zip([one, other]) {
            if !names.is_empty() {
                writeln!(f, "{dataset} has no {}", names.join(", "))?;
            }
        }
        for (field, one, other) in &self.changed {
            writeln!(f, "{field} is {one} in the first, {other} in the second")?;
        }
        for shared in &self.shared {
            let Shared { field, estimate, low, high, share } = shared;
            let percent = share * 100.0;
            writeln!(
                f,
                "{field}: about {estimate:.0} distinct values are in both ({low:.0} to {high:.0}), \
                 {percent:.1} % of the second"
            )?;
        }
        let drifted = self.drifts.iter().filter(|drift| drift.drifted).count();
        let (all, min_effect) = (self.drifts.len(), self.min_effect);
        writeln!(
            f,
            "{drifted} of {all} drifted: p below {LEVEL} over all tests, and an effect of at least \
             {min_effect}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_tables() {
        // Smirnov's table: 1.358 at 5 %, 1.628 at 1 %.
        let at = |lambda: f64| kolmogorov(lambda / 50f64.sqrt(), 100.0, 100.0);
        assert!((at(1.358) - 0.05).abs() < 5e-4 && (at(1.628) - 0.01).abs() < 2e-4);
        assert_eq!((kolmogorov(0.0, 10.0, 10.0), kolmogorov(-1.0, 10.0, 10.0)), (1.0, 1.0));
        // Tables of chi-square: 18.307 at 5 % for 10, 135.807 at 1 % for 100.
        assert!((chi_square(18.307, 10.0) - 0.05).abs() < 1e-3);
        assert!((chi_square(135.807, 100.0) - 0.01).abs() < 1e-4);
    }
}
