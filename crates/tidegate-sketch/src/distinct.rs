//! Counting distinct values with HyperLogLog, Theta and CPC sketches.
//!
//! Flow: keys with their hash -> sketch -> an estimate with bounds; serialized as by Apache
//! DataSketches.
//! Memory: HLL 2^lg_k bytes, and as many for the copy of its registers; Theta at most 16·2^lg_k;
//! CPC about 2^lg_k.
//!
//! HyperLogLog is the smallest in memory and CPC when stored; Theta supports set operations.
//!
//! Most keys of a stream change nothing. One hash detects them before the library, which hashes on
//! its own, is called. References: Flajolet et al., 2007; Ting, 2014 (the estimator that uses the
//! sketch's history); Dasgupta et al., «A framework for estimating stream expression
//! cardinalities», 2016.

use datasketches::common::NumStdDev;
use datasketches::cpc::{CpcSketch, CpcUnion};
use datasketches::hll::{HllSketch, HllType, HllUnion};
use datasketches::theta::{
    CompactThetaSketch, ThetaANotB, ThetaIntersection, ThetaSketch, ThetaSketchBuilder, ThetaUnionBuilder,
};

use crate::hash::Key;
use crate::{Error, Result};

/// An estimated count with its confidence bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

fn deviations(deviations: u8) -> Result<NumStdDev> {
    match deviations {
        1 => Ok(NumStdDev::One),
        2 => Ok(NumStdDev::Two),
        3 => Ok(NumStdDev::Three),
        _ => Err(Error::parameter("deviations", deviations, "give 1, 2 or 3")),
    }
}

fn lg_k(value: u8, least: u8, most: u8) -> Result<u8> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::parameter("lg_k", value, format!("it must be between {least} and {most}")))
}

macro_rules! estimate {
    () => {
        /// The number of distinct values, with bounds at this many standard deviations (1, 2 or
        /// 3).
        ///
        /// # Errors
        /// [`Error::Parameter`] for another number of deviations.
        pub fn estimate(&self, deviations: u8) -> Result<Estimate> {
            let n = self::deviations(deviations)?;
            let sketch = &self.sketch;
            Ok(Estimate { value: sketch.estimate(), low: sketch.lower_bound(n), high: sketch.upper_bound(n) })
        }
    };
}

/// A HyperLogLog of 2^`lg_k` registers. Its relative standard error is 0.83 / sqrt(2^lg_k), after
/// merges 1.04 / sqrt(2^lg_k).
///
/// ```
/// use tidegate_sketch::distinct::Hll;
/// let mut distinct = Hll::new(12)?;
/// (0..100_000u64).for_each(|value| distinct.add(&(value % 5000).into()));
/// let estimate = distinct.estimate(3)?;
/// assert!(estimate.low <= 5000.0 && 5000.0 <= estimate.high);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hll {
    sketch: HllSketch,
    /// The largest value seen for each register.
    seen: Vec<u8>,
    /// How often a register grew. Above the capacity of the library's list and hash table, the
    /// library keeps only registers.
    rises: u32,
}

impl Hll {
    estimate!();

    /// An empty sketch.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `lg_k` is not between 4 and 21.
    pub fn new(lg_k: u8) -> Result<Self> {
        let lg_k = self::lg_k(lg_k, 4, 21)?;
        let made = HllSketch::new(lg_k, HllType::Hll8);
        Ok(Self::from_sketch(made.map_err(|e| Error::parameter("lg_k", lg_k, e.message()))?))
    }

    fn from_sketch(sketch: HllSketch) -> Self {
        Self { seen: vec![0; 1 << sketch.lg_config_k()], rises: 0, sketch }
    }

    /// Counts a value.
    pub fn add(&mut self, key: &Key<'_>) {
        let (low, high) = key.hash;
        let value = high.leading_zeros().min(62) as u8 + 1;
        let slot = low as usize & (self.seen.len() - 1);
        if self.seen[slot] >= value {
            // While the library lists values, it distinguishes more of them than there are
            // registers.
            if self.rises as usize > self.seen.len().max(64) {
                return;
            }
        } else {
            self.seen[slot] = value;
            self.rises += 1;
        }
        self.sketch.update(*key);
    }

    /// The base-2 logarithm of the number of registers.
    #[must_use]
    pub fn lg_k(&self) -> u8 {
        self.sketch.lg_config_k()
    }

    /// Merges another stream's sketch; the result has the smaller number of registers.
    ///
    /// # Errors
    /// None at present: any two sketches can be merged.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let lg_k = self.lg_k().min(other.lg_k());
        let mut union = HllUnion::new(lg_k).map_err(|e| Error::parameter("lg_k", lg_k, e.message()))?;
        union.update(&self.sketch);
        union.update(&other.sketch);
        *self = Self::from_sketch(union.to_sketch(HllType::Hll8));
        Ok(())
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + 2 * self.seen.len() + 64) as u64
    }

    /// Serializes in the format of Apache DataSketches.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.sketch.serialize()
    }

    /// Reads the format of Apache DataSketches, with registers of 4, 6 or 8 bits.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a sketch.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        HllSketch::deserialize(bytes)
            .map(Self::from_sketch)
            .map_err(|e| Error::bytes("HLL sketch", e.message()))
    }
}

/// A Theta sketch of about 2^`lg_k` hashes. Its relative standard error is 1 / sqrt(2^lg_k).
///
/// ```
/// use tidegate_sketch::distinct::Theta;
/// let of = |range: std::ops::Range<u64>| {
///     let mut theta = Theta::new(12)?;
///     range.for_each(|value| theta.add(&value.into()));
///     Ok::<_, tidegate_sketch::Error>(theta)
/// };
/// let (train, test) = (of(0..50_000)?, of(40_000..60_000)?);
/// let both = train.intersection(&test)?.estimate(3)?;
/// assert!(both.low <= 10_000.0 && 10_000.0 <= both.high);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug)]
pub struct Theta {
    lg_k: u8,
    /// The result of a union, an intersection, a difference or of reading bytes.
    fixed: Option<CompactThetaSketch>,
    /// The values added since.
    recent: ThetaSketch,
}

fn set_operation<T>(made: std::result::Result<T, datasketches::error::Error>) -> Result<T> {
    made.map_err(|e| Error::Mismatch { what: "Theta sketches", why: e.message().to_owned() })
}

impl Theta {
    /// An empty sketch.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `lg_k` is not between 5 and 26.
    pub fn new(lg_k: u8) -> Result<Self> {
        Self::from_parts(None, lg_k)
    }

    fn from_parts(fixed: Option<CompactThetaSketch>, lg_k: u8) -> Result<Self> {
        let lg_k = self::lg_k(lg_k, 5, 26)?;
        let made = ThetaSketchBuilder::default().lg_k(lg_k).build();
        let recent = made.map_err(|e| Error::parameter("lg_k", lg_k, e.message()))?;
        Ok(Self { lg_k, fixed, recent })
    }

    /// Counts a value.
    pub fn add(&mut self, key: &Key<'_>) {
        // A hash that is not below theta changes nothing.
        let fixed = self.fixed.as_ref().map_or(u64::MAX, CompactThetaSketch::theta64);
        if key.hash.0 >> 1 < self.recent.theta64().min(fixed) {
            self.recent.update(*key);
        }
    }

    fn combined(&self) -> Result<CompactThetaSketch> {
        match &self.fixed {
            None => Ok(self.recent.compact(true)),
            Some(fixed) if self.recent.is_empty() => Ok(fixed.clone()),
            Some(fixed) => Self::union_of(self.lg_k, &[fixed, &self.recent.compact(true)]),
        }
    }

    fn union_of(lg_k: u8, sets: &[&CompactThetaSketch]) -> Result<CompactThetaSketch> {
        let mut union = set_operation(ThetaUnionBuilder::default().lg_k(lg_k).build())?;
        for &set in sets {
            set_operation(union.update(set))?;
        }
        Ok(union.to_sketch(true))
    }

    /// The number of distinct values, with bounds at this many standard deviations (1, 2 or 3).
    ///
    /// # Errors
    /// [`Error::Parameter`] for another number of deviations.
    pub fn estimate(&self, deviations: u8) -> Result<Estimate> {
        let (n, sketch) = (self::deviations(deviations)?, self.combined()?);
        Ok(Estimate { value: sketch.estimate(), low: sketch.lower_bound(n), high: sketch.upper_bound(n) })
    }

    /// The union: values of either stream.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another program made them with different seeds.
    pub fn union(&self, other: &Self) -> Result<Self> {
        let lg_k = self.lg_k.min(other.lg_k);
        Self::from_parts(Some(Self::union_of(lg_k, &[&self.combined()?, &other.combined()?])?), lg_k)
    }

    /// The intersection: values of both streams.
    ///
    /// # Errors
    /// As [`Theta::union`].
    pub fn intersection(&self, other: &Self) -> Result<Self> {
        let mut both = ThetaIntersection::default();
        set_operation(both.update(&self.combined()?))?;
        set_operation(both.update(&other.combined()?))?;
        let sketch =
            both.to_sketch(true).ok_or(Error::Internal("an intersection of two sketches has no result"))?;
        Self::from_parts(Some(sketch), self.lg_k.min(other.lg_k))
    }

    /// The difference: values of this stream that the other does not have.
    ///
    /// # Errors
    /// As [`Theta::union`].
    pub fn difference(&self, other: &Self) -> Result<Self> {
        let sketch =
            set_operation(ThetaANotB::default().compute(&self.combined()?, &other.combined()?, true))?;
        Self::from_parts(Some(sketch), self.lg_k.min(other.lg_k))
    }

    /// A copy.
    ///
    /// # Errors
    /// As [`Theta::union`].
    pub fn try_clone(&self) -> Result<Self> {
        Self::from_parts(Some(self.combined()?), self.lg_k)
    }

    /// Merges another stream's sketch.
    ///
    /// # Errors
    /// As [`Theta::union`].
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        *self = self.union(other)?;
        Ok(())
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let fixed = self.fixed.as_ref().map_or(0, CompactThetaSketch::estimated_size);
        (size_of::<Self>() + (16 << self.lg_k) + fixed) as u64
    }

    /// Serializes in the format of Apache DataSketches, compact and in ascending order.
    ///
    /// # Errors
    /// As [`Theta::union`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(self.combined()?.serialize())
    }

    /// Reads the format of Apache DataSketches, which does not store `lg_k`.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a sketch; [`Error::Parameter`] as
    /// [`Theta::new`].
    pub fn from_bytes(bytes: &[u8], lg_k: u8) -> Result<Self> {
        let sketch = CompactThetaSketch::deserialize(bytes);
        Self::from_parts(Some(sketch.map_err(|e| Error::bytes("Theta sketch", e.message()))?), lg_k)
    }
}

/// A CPC sketch (Lang, «Back to the future», 2017): the error of a HyperLogLog at two thirds of
/// its stored bytes.
///
/// ```
/// use tidegate_sketch::distinct::Cpc;
/// let mut distinct = Cpc::new(11)?;
/// (0..1000u64).for_each(|value| distinct.add(&value.into()));
/// assert!((distinct.estimate(1)?.value - 1000.0).abs() < 50.0);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cpc {
    sketch: CpcSketch,
}

impl Cpc {
    estimate!();

    /// An empty sketch.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `lg_k` is not between 4 and 26.
    pub fn new(lg_k: u8) -> Result<Self> {
        let lg_k = self::lg_k(lg_k, 4, 26)?;
        let sketch = CpcSketch::new(lg_k).map_err(|e| Error::parameter("lg_k", lg_k, e.message()))?;
        Ok(Self { sketch })
    }

    /// Counts a value.
    pub fn add(&mut self, key: &Key<'_>) {
        self.sketch.update(*key);
    }

    /// Merges another stream's sketch; the result has the smaller `lg_k`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another program made them with different seeds.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let wrong = |e: datasketches::error::Error| Error::Mismatch {
            what: "CPC sketches",
            why: e.message().to_owned(),
        };
        let mut union = CpcUnion::new(self.sketch.lg_k().min(other.sketch.lg_k())).map_err(wrong)?;
        union.update(&self.sketch).map_err(wrong)?;
        union.update(&other.sketch).map_err(wrong)?;
        self.sketch = union.to_sketch();
        Ok(())
    }

    /// Memory it takes now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.sketch.estimated_size() as u64
    }

    /// Serializes in the format of Apache DataSketches.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.sketch.serialize()
    }

    /// Reads the format of Apache DataSketches.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a sketch.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let sketch = CpcSketch::deserialize(bytes).map_err(|e| Error::bytes("CPC sketch", e.message()))?;
        Ok(Self { sketch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::hash::splitmix64_finalize;

    fn hll(lg_k: u8, values: impl Iterator<Item = u64>) -> Hll {
        let mut sketch = Hll::new(lg_k).unwrap();
        values.for_each(|value| sketch.add(&value.into()));
        sketch
    }

    fn rmse(errors: impl Iterator<Item = f64>) -> f64 {
        let (sum, n) = errors.fold((0.0, 0), |(sum, n), e| (sum + e * e, n + 1));
        (sum / f64::from(n)).sqrt()
    }

    /// Skipping a key before it reaches the library changes no bit of the state.
    #[test]
    fn passing_over_changes_no_bit() {
        for (lg_k, n) in [(4, 100), (8, 40), (8, 10_000), (12, 300), (12, 3000), (12, 200_000), (16, 20_000)]
        {
            let mut plain = HllSketch::new(lg_k, HllType::Hll8).unwrap();
            let values = || (0..2 * n).map(|i| splitmix64_finalize(i % n));
            values().for_each(|value| plain.update(Key::from(value)));
            assert_eq!(hll(lg_k, values()).to_bytes(), plain.serialize(), "lg_k {lg_k}, {n} values");
            let mut theta = Theta::new(lg_k.max(5)).unwrap();
            let mut plain = ThetaSketchBuilder::default().lg_k(lg_k.max(5)).build().unwrap();
            values().for_each(|value| {
                plain.update(Key::from(value));
                theta.add(&value.into());
            });
            assert_eq!(theta.to_bytes().unwrap(), plain.compact(true).serialize());
        }
    }

    /// The RMSE is at most 1.1 times the theoretical one, alone and in unions of different sizes.
    #[test]
    fn errors_are_as_published() {
        let (trials, n) = (400, 20_000u64);
        let distinct =
            |trial: u64, part: u64| (0..n).map(move |i| splitmix64_finalize(trial << 40 | part << 32 | i));
        let alone =
            rmse((0..trials).map(|t| hll(12, distinct(t, 0)).estimate(1).unwrap().value / n as f64 - 1.0));
        let theory = 2f64.ln().sqrt() / 64.0;
        assert!(alone <= 1.1 * theory, "alone {alone}, theory {theory}");
        let united = rmse((0..trials).map(|t| {
            let (mut one, other) = (hll(12, distinct(t, 0)), hll(11, distinct(t, 1)));
            one.merge(&other).unwrap();
            one.estimate(1).unwrap().value / (2 * n) as f64 - 1.0
        }));
        let theory = (3.0 * 2f64.ln() - 1.0).sqrt() / 2048f64.sqrt();
        assert!(united <= 1.1 * theory, "united {united}, theory {theory}");
        let theta = rmse((0..trials / 4).map(|t| {
            let mut theta = Theta::new(11).unwrap();
            distinct(t, 2).for_each(|value| theta.add(&value.into()));
            theta.estimate(1).unwrap().value / n as f64 - 1.0
        }));
        assert!(theta <= 1.2 / 2048f64.sqrt(), "theta {theta}");
    }

    #[test]
    fn sets_and_bytes() {
        let theta = |range: std::ops::Range<u64>| {
            let mut theta = Theta::new(12).unwrap();
            range.for_each(|value| theta.add(&value.into()));
            theta
        };
        let (one, other) = (theta(0..3000), theta(2000..4000));
        let count = |theta: Result<Theta>| theta.unwrap().estimate(1).unwrap().value;
        assert_eq!(count(one.union(&other)), 4000.0);
        assert_eq!(count(one.intersection(&other)), 1000.0);
        assert_eq!(count(one.difference(&other)), 2000.0);
        let mut stored = Theta::from_bytes(&one.to_bytes().unwrap(), 12).unwrap();
        stored.add(&5000u64.into());
        stored.add(&0u64.into());
        assert_eq!(count(Ok(stored)), 3001.0);

        let mut all = hll(10, 0..5000);
        let again = Hll::from_bytes(&all.to_bytes()).unwrap();
        assert_eq!(again.to_bytes(), all.to_bytes());
        all.merge(&hll(12, 0..5000)).unwrap();
        assert!((all.estimate(1).unwrap().value - 5000.0).abs() < 1000.0);
        let mut cpc = Cpc::new(11).unwrap();
        (0..5000u64).for_each(|value| cpc.add(&value.into()));
        let mut other = Cpc::from_bytes(&cpc.to_bytes()).unwrap();
        other.merge(&cpc).unwrap();
        assert!((other.estimate(1).unwrap().value - 5000.0).abs() < 300.0);
        for cut in [0, 1, 7, 9] {
            assert!(Hll::from_bytes(&all.to_bytes()[..cut]).is_err());
            assert!(Theta::from_bytes(&one.to_bytes().unwrap()[..cut], 12).is_err());
            assert!(Cpc::from_bytes(&cpc.to_bytes()[..cut]).is_err());
        }
        assert!(Hll::new(3).unwrap_err().to_string().contains("lg_k is 3"));
        assert!(all.estimate(4).unwrap_err().to_string().contains("deviations is 4"));
    }
}
