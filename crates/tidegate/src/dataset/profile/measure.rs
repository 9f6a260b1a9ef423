//! One number of every sample: its moments, its distribution, and the tail of the distribution.
//!
//! Flow: numbers in sample order -> [`Measure`] -> [`Summary`], quantiles, distances.
//! Memory: at most 80 KiB, most of it the open block of moments and REQ's compactors.
//!
//! Quantiles and distances are of float32, as DataSketches stores them, so whole numbers above
//! 2^24 are exact to seven digits only.

use serde::{Deserialize, Serialize};
use tidegate_sketch::moments::Moments;
use tidegate_sketch::quantile::{Kll, Req};

use super::encoding::{damaged, from_base64, internal, to_base64};
use crate::Result;

/// The ranks whose values a summary has.
const RANKS: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];
/// From this rank on the sketch of the tail answers.
const TAIL: f64 = 0.95;
/// Bars of a histogram.
const BARS: usize = 40;

/// The distribution of one number over all samples.
#[derive(Debug, Clone)]
pub struct Measure {
    pub(super) moments: Moments,
    pub(super) all: Kll,
    tail: Req,
}

/// The figures of a measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Finite values.
    pub count: u64,
    /// Values that are not a number.
    pub nan: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// The mean of the finite values, if there are any.
    pub mean: Option<f64>,
    /// Their standard deviation (of the population).
    pub std: Option<f64>,
    /// Their skewness.
    pub skewness: Option<f64>,
    /// Their excess kurtosis.
    pub kurtosis: Option<f64>,
    /// The smallest.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// (rank, value at it).
    pub quantiles: Vec<(f64, f64)>,
    /// The largest error of a rank up to 0.95, with 99 % confidence.
    pub rank_error: f64,
    /// A histogram: the fraction of values in each of 40 bars from the smallest to the largest.
    pub bars: Vec<f64>,
}

/// The sketches of a measure in a profile file, in the bytes of Apache DataSketches.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    moments: String,
    kll: String,
    req: String,
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

impl Measure {
    /// A measure without values.
    ///
    /// # Errors
    /// Never in practice: the parameters are ours.
    pub fn new() -> Result<Self> {
        let (all, tail) = (Kll::new(200), Req::new(12, true));
        Ok(Self { moments: Moments::new(true), all: all.map_err(internal)?, tail: tail.map_err(internal)? })
    }

    /// Adds numbers.
    pub fn add(&mut self, values: &[f64]) {
        self.moments.update(values);
        self.add_some(&values.iter().map(|&x| x as f32).collect::<Vec<_>>());
    }

    /// Adds sampled numbers to the quantiles. [`Measure::add_moments`] adds the moments of all.
    pub(super) fn add_some(&mut self, values: &[f32]) {
        self.all.update_numbers(values);
        self.tail.update_numbers(values);
    }

    /// Adds the moments of numbers.
    pub(super) fn add_moments(&mut self, moments: &Moments) -> Result<()> {
        self.moments.merge(moments).map_err(internal)
    }

    /// Adds another measure.
    ///
    /// # Errors
    /// Never in practice: the parameters are ours.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.moments.merge(&other.moments).map_err(internal)?;
        self.all.merge(&other.all).map_err(internal)?;
        self.tail.merge(&other.tail).map_err(internal)
    }

    /// The values at these ranks, each between 0 and 1; nothing if there are no values.
    #[must_use]
    pub fn quantiles(&self, ranks: &[f64]) -> Vec<f64> {
        let all = self.all.quantiles(ranks).unwrap_or_default();
        let tail = self.tail.quantiles(ranks).unwrap_or_default();
        let each = ranks.iter().zip(all.into_iter().zip(tail));
        each.map(|(&rank, (all, tail))| f64::from(if rank < TAIL { all } else { tail })).collect()
    }

    /// The figures of the measure.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let known = self.moments.summary();
        let known_value = |value: f64| finite(value).filter(|_| known.count > 0);
        Summary {
            count: known.count,
            nan: known.nan,
            infinite: known.infinite,
            mean: known_value(known.mean),
            std: known_value(known.std(0)),
            skewness: known_value(known.skewness()),
            kurtosis: known_value(known.kurtosis()),
            min: known_value(known.min),
            max: known_value(known.max),
            quantiles: RANKS.into_iter().zip(self.quantiles(&RANKS)).collect(),
            rank_error: self.all.error(),
            bars: self.bars(known.min, known.max).unwrap_or_default(),
        }
    }

    fn bars(&self, min: f64, max: f64) -> Option<Vec<f64>> {
        let width = finite((max - min) / BARS as f64).filter(|&width| width > 0.0)?;
        let mut before = 0.0;
        let bar = |i: usize| {
            let end = if i + 1 == BARS { f32::MAX } else { (min + width * (i + 1) as f64) as f32 };
            let rank = self.all.rank(end).ok()?;
            Some((rank - std::mem::replace(&mut before, rank)).max(0.0))
        };
        (0..BARS).map(bar).collect()
    }

    /// The most bytes that it can take: the open block of moments, and about ten thousand values
    /// in the two sketches, however long the stream is.
    pub(super) const MAX_BYTES: u64 = 80 << 10;

    pub(super) fn store(&self) -> Stored {
        Stored {
            moments: to_base64(&self.moments.to_bytes()),
            kll: to_base64(&self.all.to_bytes()),
            req: to_base64(&self.tail.to_bytes()),
        }
    }

    pub(super) fn load(stored: &Stored) -> Result<Self> {
        Ok(Self {
            moments: Moments::from_bytes(&from_base64(&stored.moments)?).map_err(damaged)?,
            all: Kll::from_bytes(&from_base64(&stored.kll)?).map_err(damaged)?,
            tail: Req::from_bytes(&from_base64(&stored.req)?).map_err(damaged)?,
        })
    }
}
