//! A number of every sample, over all of them: its moments, its distribution, and the tail of that.
//!
//! Flow: numbers in the order of samples -> [`Measure`] -> [`Summary`], quantiles, distances.
//! Quantiles and distances are of singles, as DataSketches stores them: whole numbers past 2^24 are told to seven digits.
//! Memory: at most 80 KiB, most of it the block of moments that is not yet full and REQ's compactors.

use serde::{Deserialize, Serialize};
use tidegate_sketch::moments::Moments;
use tidegate_sketch::quantile::{Kll, Req};

use super::stored::{base64, broken, bytes_of, sketch};
use crate::Result;

/// Ranks that a summary gives values at.
const RANKS: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];
/// From this rank on the tail's sketch is asked.
const TAIL: f64 = 0.95;
/// Bars of a histogram.
const BARS: usize = 40;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Measure {
    pub(super) moments: Moments,
    pub(super) all: Kll,
    tail: Req,
}

/// What is known of a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Finite values.
    pub count: u64,
    /// Values that are not a number.
    pub nan: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// The mean of the finite values; of none, nothing.
    pub mean: Option<f64>,
    /// Their standard deviation, over their count.
    pub std: Option<f64>,
    /// Their skewness.
    pub skewness: Option<f64>,
    /// Their excess kurtosis.
    pub kurtosis: Option<f64>,
    /// The least.
    pub min: Option<f64>,
    /// The greatest.
    pub max: Option<f64>,
    /// (rank, value at it).
    pub quantiles: Vec<(f64, f64)>,
    /// By how much a rank up to 0.95 may be off, with 99 % certainty.
    pub rank_error: f64,
    /// Bars of equal width from the least to the greatest: the fraction of values in each.
    pub bars: Vec<f64>,
}

/// The sketches of a measure, as they are stored: those of Apache DataSketches in its bytes.
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
    /// Of nothing yet.
    ///
    /// # Errors
    /// None that is known: the parameters are ours.
    pub fn new() -> Result<Self> {
        let (all, tail) = (Kll::new(200), Req::new(12, true));
        Ok(Self { moments: Moments::new(true), all: all.map_err(sketch)?, tail: tail.map_err(sketch)? })
    }

    /// Takes numbers.
    pub fn add(&mut self, values: &[f64]) {
        self.moments.update(values);
        self.add_some(&values.iter().map(|&x| x as f32).collect::<Vec<_>>());
    }

    /// Takes numbers that stand for more of them, of which [`Measure::add_moments`] takes the moments.
    pub(super) fn add_some(&mut self, values: &[f32]) {
        let _numbers = self.all.update_numbers(values);
        let _numbers = self.tail.update_numbers(values);
    }

    /// Takes the moments of numbers.
    pub(super) fn add_moments(&mut self, moments: &Moments) -> Result<()> {
        self.moments.merge(moments).map_err(sketch)
    }

    /// Takes another stream.
    ///
    /// # Errors
    /// None that is known.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.moments.merge(&other.moments).map_err(sketch)?;
        self.all.merge(&other.all).map_err(sketch)?;
        self.tail.merge(&other.tail).map_err(sketch)
    }

    /// The values at these ranks, each between 0 and 1; none before the first value.
    #[must_use]
    pub fn quantiles(&self, ranks: &[f64]) -> Vec<f64> {
        let of = |found: tidegate_sketch::Result<Vec<f32>>| found.unwrap_or_default();
        let (all, tail) = (of(self.all.quantiles(ranks)), of(self.tail.quantiles(ranks)));
        let each = ranks.iter().zip(all.into_iter().zip(tail));
        each.map(|(&rank, (all, tail))| f64::from(if rank < TAIL { all } else { tail })).collect()
    }

    /// What is known of it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let known = self.moments.summary();
        let of = |value: f64| finite(value).filter(|_| known.count > 0);
        Summary {
            count: known.count,
            nan: known.nan,
            infinite: known.infinite,
            mean: of(known.mean),
            std: of(known.std(0)),
            skewness: of(known.skewness()),
            kurtosis: of(known.kurtosis()),
            min: of(known.min),
            max: of(known.max),
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

    /// What it takes at most, in bytes: the open block of moments, and some ten thousand values that the other two hold of any stream.
    pub(super) const MOST_BYTES: u64 = 80 << 10;

    pub(super) fn store(&self) -> Stored {
        Stored {
            moments: base64(&self.moments.to_bytes()),
            kll: base64(&self.all.to_bytes()),
            req: base64(&self.tail.to_bytes()),
        }
    }

    pub(super) fn load(stored: &Stored) -> Result<Self> {
        Ok(Self {
            moments: Moments::from_bytes(&bytes_of(&stored.moments)?).map_err(broken)?,
            all: Kll::from_bytes(&bytes_of(&stored.kll)?).map_err(broken)?,
            tail: Req::from_bytes(&bytes_of(&stored.req)?).map_err(broken)?,
        })
    }
}
