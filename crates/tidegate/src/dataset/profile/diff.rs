//! How two profiles differ: for each field a test, and how large the difference is.
//!
//! Flow: two [`Profile`]s -> [`Diff`] -> words or JSON.
//! Memory: holds none.
//!
//! With many samples any difference is significant, so a field has drifted only if the test says so and the difference matters. Ranks come from
//! sketches: their errors are taken off the distance before it is judged, so that a p-value is never too small on their account.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use tidegate_sketch::quantile::ks;

use super::Profile;
use super::field::Field;
use super::measure::Measure;
use super::seen::{Histogram, Label, Sort};
use super::stored::sketch;
use crate::{Error, Result};

/// The level of all tests together.
const LEVEL: f64 = 0.01;

/// How often a value comes on average in the smaller dataset, where their shares are compared.
const EACH: f64 = 5.0;

/// One test of one field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// The field.
    pub field: String,
    /// What of it.
    pub what: String,
    /// "Kolmogorov-Smirnov" or "chi-square".
    pub test: &'static str,
    /// Its statistic.
    pub statistic: f64,
    /// The probability of so large a statistic where nothing has changed; at most this.
    pub p: f64,
    /// How much of the distribution lies elsewhere, between 0 and 1: the greatest difference of ranks, or the total variation of shares.
    pub effect: f64,
    /// Of numbers: by how many standard deviations the mean has moved (Cohen's d).
    pub moved: Option<f64>,
    /// Whether it is no accident, and matters.
    pub drifted: bool,
}

/// What two datasets have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shared {
    /// The field.
    pub field: String,
    /// Contents that are in both, and what their number lies between, with three standard deviations' certainty.
    pub estimate: f64,
    /// See `estimate`.
    pub low: f64,
    /// See `estimate`.
    pub high: f64,
    /// Their share of the second dataset's.
    pub share: f64,
}

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The names of the two, and the samples that were seen of each.
    pub of: [(String, u64); 2],
    /// Fields that only one of them has.
    pub missing: [Vec<String>; 2],
    /// Fields that hold something else in the second: what in the one, and what in the other.
    pub changed: Vec<(String, String, String)>,
    /// From which effect on a difference matters.
    pub matters: f64,
    /// All tests, in the order of fields.
    pub drifts: Vec<Drift>,
    /// What may have leaked from one to the other.
    pub shared: Vec<Shared>,
}

/// The chance that a Kolmogorov–Smirnov distance is so large by accident (its limit for many values).
fn kolmogorov(distance: f64, n: f64, m: f64) -> f64 {
    let lambda = distance.max(0.0) * (n * m / (n + m)).sqrt();
    if lambda < 0.2 {
        return 1.0;
    }
    let term = |k: i32| f64::from(1 - 2 * ((k - 1) % 2)) * (-2.0 * f64::from(k * k) * lambda * lambda).exp();
    (2.0 * (1..=100).map(term).sum::<f64>()).clamp(0.0, 1.0)
}

/// The chance that chi-square is so large with `k` degrees of freedom (Wilson and Hilferty, 1931).
fn chi_square(statistic: f64, k: f64) -> f64 {
    let spread = 2.0 / (9.0 * k);
    let z = ((statistic / k).cbrt() - (1.0 - spread)) / spread.sqrt();
    libm::erfc(z / std::f64::consts::SQRT_2) / 2.0
}

/// As how many samples of even size those of a field count.
fn effective(field: &Field) -> f64 {
    let bytes = field.measures[0].moments.summary();
    let varies = bytes.std(0) / bytes.mean;
    bytes.count as f64 / (1.0 + if varies.is_finite() { varies * varies } else { 0.0 })
}

impl Drift {
    fn numbers(what: &str, one: &Measure, other: &Measure, samples: [u64; 2]) -> Result<Option<Self>> {
        if one.all.count() == 0 || other.all.count() == 0 {
            return Ok(None);
        }
        let statistic = ks(&one.all, &other.all, LEVEL).map_err(sketch)?.statistic;
        // Of an array there are many values, which are not drawn one by one.
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

    /// All values are known here, but those of one sample go together: samples are what is counted, and fewer of them where some are much larger
    /// than others (Kish, «Survey sampling», 1965).
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

    fn values(one: &Field, other: &Field) -> Option<Self> {
        let labels: BTreeSet<&Label> = one.tally.counts.keys().chain(other.tally.counts.keys()).collect();
        if one.tally.beyond || other.tally.beyond {
            return None;
        }
        let count = |field: &Field, label| field.tally.counts.get(label).copied().unwrap_or(0) as f64;
        let pairs: Vec<_> = labels.iter().map(|&label| (count(one, label), count(other, label))).collect();
        let what = match one.sort {
            Sort::Picture => "format",
            Sort::Array => "type and shape",
            _ => "values",
        };
        Self::shares(what, &pairs)
    }

    /// Samples that lack it, or have NaN or an infinity in its place.
    fn missing(one: &Field, other: &Field) -> Option<Self> {
        let counts = |field: &Field| {
            let values = field.measure("value").map(|measure| measure.moments.summary());
            let odd = values.map_or(0, |values| values.nan + values.infinite);
            let all = field.measures[0].moments.summary();
            ((field.missing + odd) as f64, all.count as f64)
        };
        let (a, b) = (counts(one), counts(other));
        // Where none is missing there is nothing to test.
        (a.0 + b.0 > 0.0).then(|| Self::shares("missing or NaN", &[(a.0, b.0), (a.1, b.1)])).flatten()
    }

    /// Whether some things come as often in the one as in the other, by how often each came.
    fn shares(what: &str, pairs: &[(f64, f64)]) -> Option<Self> {
        let totals = pairs.iter().fold([0.0, 0.0], |sum, pair| [sum[0] + pair.0, sum[1] + pair.1]);
        // Of values that hardly come twice the test says nothing (Cochran, 1954).
        let each = totals[0].min(totals[1]) / pairs.len().max(1) as f64;
        if totals.contains(&0.0) || each < EACH {
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
    /// What has changed from one dataset to the other, where differences matter from this effect on.
    ///
    /// # Errors
    /// [`Error::Config`] where that is not between 0 and 1.
    pub fn of(one: &Profile, other: &Profile, matters: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&matters) {
            return Err(Error::Config(format!("an effect lies between 0 and 1, not {matters}")));
        }
        let samples = [one.samples, other.samples];
        let mut drifts: Vec<Drift> =
            Drift::numbers("bytes of a sample", &one.bytes, &other.bytes, samples)?.into_iter().collect();
        let mut shared = Vec::new();
        let mut changed = Vec::new();
        for a in &one.fields {
            let of = |field: &Field| format!("{} ({:?})", field.kind, field.sort).to_lowercase();
            let other = other.fields.iter().find(|b| b.name == a.name && b.sort != a.sort);
            changed.extend(other.map(|b| (a.name.clone(), of(a), of(b))));
        }
        let pairs = one.fields.iter().filter_map(|field| {
            let alike = |other: &&Field| (&other.name, other.sort) == (&field.name, field.sort);
            Some((field, other.fields.iter().find(alike)?))
        });
        for (a, b) in pairs {
            let mut found: Vec<Drift> = Drift::missing(a, b).into_iter().collect();
            // Where all values are told, shares say more than ranks.
            let labels = if a.sort == Sort::Float { None } else { Drift::values(a, b) };
            let told = labels.is_some() && a.sort == Sort::Int;
            found.extend(labels);
            if !told {
                for (name, (x, y)) in a.sort.measures().iter().zip(a.measures.iter().zip(&b.measures)) {
                    found.extend(Drift::numbers(name, x, y, samples)?);
                }
            }
            let channels = ["level of red", "level of green", "level of blue"];
            let tables = a.histograms.iter().zip(&b.histograms);
            for ((x, y), channel) in tables.zip(channels) {
                let what = if a.histograms.len() == 3 { channel } else { "bytes within" };
                found.extend(Drift::levels(what, x, y, [effective(a), effective(b)]));
            }
            found.iter_mut().for_each(|drift| drift.field.clone_from(&a.name));
            drifts.extend(found);
            // Labels are in both, and should be.
            let labels = a.tally.total() > 2 * a.tally.counts.len() as u64 && a.sort == Sort::Text;
            if !matches!(a.sort, Sort::Int | Sort::Float) && !labels {
                shared.extend(Shared::of(a, b)?);
            }
        }
        let level = LEVEL / drifts.len().max(1) as f64;
        drifts.iter_mut().for_each(|drift| drift.drifted = drift.p < level && drift.effect >= matters);
        let lacks = |of: &Profile, than: &Profile| {
            let known = |name: &str| of.fields.iter().any(|field| field.name == name);
            than.fields.iter().map(|field| field.name.clone()).filter(|name| !known(name)).collect()
        };
        Ok(Self {
            of: [(one.name.clone(), samples[0]), (other.name.clone(), samples[1])],
            missing: [lacks(one, other), lacks(other, one)],
            changed,
            matters,
            drifts,
            shared,
        })
    }
}

impl Shared {
    fn of(one: &Field, other: &Field) -> Result<Option<Self>> {
        let both = one.contents.intersection(&other.contents).map_err(sketch)?.estimate(3).map_err(sketch)?;
        let all = other.contents.estimate(3).map_err(sketch)?.value;
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
        let [(one, n), (other, m)] = &self.of;
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
        for (names, of) in self.missing.iter().zip([one, other]) {
            if !names.is_empty() {
                writeln!(f, "{of} has no {}", names.join(", "))?;
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
                "{field}: about {estimate:.0} contents are in both ({low:.0} to {high:.0}), {percent:.1} % of the second"
            )?;
        }
        let drifted = self.drifts.iter().filter(|drift| drift.drifted).count();
        let (of, matters) = (self.drifts.len(), self.matters);
        writeln!(
            f,
            "{drifted} of {of} drifted: p below {LEVEL} over all of them, and an effect of {matters} or more"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_those_of_tables() {
        // Smirnov's table: 1.358 at 5 %, 1.628 at 1 %.
        let at = |lambda: f64| kolmogorov(lambda / 50f64.sqrt(), 100.0, 100.0);
        assert!((at(1.358) - 0.05).abs() < 5e-4 && (at(1.628) - 0.01).abs() < 2e-4);
        assert_eq!((kolmogorov(0.0, 10.0, 10.0), kolmogorov(-1.0, 10.0, 10.0)), (1.0, 1.0));
        // Tables of chi-square: 18.307 at 5 % for 10, 135.807 at 1 % for 100.
        assert!((chi_square(18.307, 10.0) - 0.05).abs() < 1e-3);
        assert!((chi_square(135.807, 100.0) - 0.01).abs() < 1e-4);
    }
}
