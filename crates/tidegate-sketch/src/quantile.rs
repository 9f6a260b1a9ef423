//! Quantiles of a stream: KLL and REQ sketches, and the distance of two distributions.
//!
//! Flow: numbers -> sketch -> quantiles, ranks; two KLL sketches -> the Kolmogorov–Smirnov
//! distance. Serialized as by Apache DataSketches.
//! Memory: KLL with k = 200 about 5 KiB; REQ with k = 12 about 16 KiB for a million values.
//!
//! KLL has the same rank error everywhere, REQ a smaller one towards one end. Compaction keeps one
//! of two values by a fair bit that the library draws without a seed, so two sketches of one
//! stream differ within their errors. References: Karnin, Lang and Liberty, «Optimal quantile
//! approximation in streams», 2016; Cormode et al., «Relative error streaming quantiles», 2021.

use datasketches::codec::{SketchBytes, SketchSlice};
use datasketches::common::{NumStdDev, SearchCriteria};
use datasketches::error::ErrorKind;
use datasketches::kll::{KllSketch, KllValue};
use datasketches::req::{RankAccuracy, ReqSketch, ReqValue};

use crate::error::fraction;
use crate::random::Draws;
use crate::{Error, Result};

fn rank(value: f64) -> Result<f64> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(Error::parameter("rank", value, "it must be between 0 and 1"))
}

fn number(at: usize, value: f32) -> Error {
    Error::value(at, value, "NaN has no rank: leave it out, and count it with Moments")
}

/// A float other than NaN as an integer with the same order: integers sort faster than floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Single(i32);

impl Single {
    fn new(value: f32) -> Option<Self> {
        // −0 becomes 0: they are equal, but have different bits.
        let bits = (value + 0.0).to_bits().cast_signed();
        (!value.is_nan()).then_some(Self(Self::turned(bits)))
    }

    /// The bits of negative numbers have the opposite order.
    fn turned(bits: i32) -> i32 {
        bits ^ (bits >> 31) & i32::MAX
    }

    fn value(self) -> f32 {
        f32::from_bits(Self::turned(self.0).cast_unsigned())
    }

    fn read(from: &mut SketchSlice<'_>) -> std::result::Result<Self, datasketches::error::Error> {
        let wrong = |what: &str| datasketches::error::Error::new(ErrorKind::InvalidData, what);
        let value = from.read_f32_le().map_err(|_| wrong("a float is cut"))?;
        Self::new(value).ok_or_else(|| wrong("a float is NaN"))
    }
}

impl KllValue for Single {
    const MIN_SERIALIZED_SIZE: usize = 4;

    fn serialized_size(_: &Self) -> usize {
        4
    }
    fn serialize(value: &Self, to: &mut SketchBytes) {
        to.write_f32_le(value.value());
    }
    fn deserialize(from: &mut SketchSlice<'_>) -> std::result::Result<Self, datasketches::error::Error> {
        Self::read(from)
    }
}

impl ReqValue for Single {
    fn serialize_size(_: &Self) -> usize {
        4
    }
    fn serialize_value(&self, to: &mut SketchBytes) {
        to.write_f32_le(self.value());
    }
    fn deserialize_value(
        from: &mut SketchSlice<'_>,
    ) -> std::result::Result<Self, datasketches::error::Error> {
        Self::read(from)
    }
}

macro_rules! quantiles {
    () => {
        /// Adds values, or none of them if one is NaN.
        ///
        /// # Errors
        /// [`Error::Value`] with the index of the first NaN.
        pub fn update(&mut self, values: &[f32]) -> Result<()> {
            if let Some(at) = values.iter().position(|x| x.is_nan()) {
                return Err(number(at, values[at]));
            }
            self.add_all(values);
            Ok(())
        }

        /// Adds all values except NaNs; returns the number of values added.
        pub fn update_numbers(&mut self, values: &[f32]) -> u64 {
            let before = self.0.n();
            self.add_all(values);
            self.0.n() - before
        }

        fn add(&mut self, value: f32) {
            if let Some(value) = Single::new(value) {
                self.0.update(value);
            }
        }

        /// The values at these ranks, each between 0 and 1.
        ///
        /// # Errors
        /// [`Error::Parameter`] for another rank; [`Error::Empty`] before the first value.
        pub fn quantiles(&self, ranks: &[f64]) -> Result<Vec<f32>> {
            for &rank in ranks {
                self::rank(rank)?;
            }
            let found = self.0.quantiles(ranks, SearchCriteria::Inclusive);
            let found = found.map_err(|e| Error::parameter("rank", format!("{ranks:?}"), e.message()))?;
            let found = found.ok_or(Error::Empty("a quantile"))?;
            Ok(found.into_iter().map(Single::value).collect())
        }

        /// The fraction of values that are at most `value`.
        ///
        /// # Errors
        /// [`Error::Value`] for NaN; [`Error::Empty`] before the first value.
        pub fn rank(&self, value: f32) -> Result<f64> {
            let point = Single::new(value).ok_or_else(|| number(0, value))?;
            self.0.rank(&point, SearchCriteria::Inclusive).ok_or(Error::Empty("a rank"))
        }

        /// Number of values so far.
        #[must_use]
        pub fn count(&self) -> u64 {
            self.0.n()
        }

        /// Serializes as a float sketch of Apache DataSketches.
        #[must_use]
        pub fn to_bytes(&self) -> Vec<u8> {
            self.0.serialize()
        }
    };
}

/// A KLL sketch: ranks of its quantiles are off by at most [`Kll::error`], with 99 % confidence.
///
/// ```
/// use tidegate_sketch::quantile::Kll;
/// let mut lengths = Kll::new(200)?;
/// lengths.update(&(0..10_000).map(|x| x as f32).collect::<Vec<_>>())?;
/// assert!((lengths.quantiles(&[0.5])?[0] - 5000.0).abs() < 10_000.0 * lengths.error() as f32);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Kll(KllSketch<Single>);

/// The compaction levels skipped per chunk: of 2^LEVELS sorted values, the sketch receives one
/// with the weight of all.
const LEVELS: u8 = 3;

impl Kll {
    quantiles!();

    /// Sorts whole chunks at once and adds every eighth value, from a random one on, at level 3.
    /// That is what three levels of compaction would leave; their small steps would take most of
    /// the time.
    fn add_all(&mut self, values: &[f32]) {
        let kept = usize::from(self.0.k()).min(192);
        let mut draws = Draws::new(self.0.n());
        let mut sorted: Vec<Single> = Vec::with_capacity(kept << LEVELS);
        for chunk in values.chunks(kept << LEVELS) {
            sorted.clear();
            sorted.extend(chunk.iter().filter_map(|&value| Single::new(value)));
            let added = sorted.len() == kept << LEVELS && {
                sorted.sort_unstable();
                let from = (draws.word() >> (64 - LEVELS)) as usize;
                let image = chunk_image(self.0.k(), &sorted, from);
                KllSketch::deserialize(&image).is_ok_and(|chunk| self.0.merge(&chunk).is_ok())
            };
            if !added {
                chunk.iter().for_each(|&value| self.add(value));
            }
        }
    }

    /// An empty sketch; its error is about 2.3 / k^0.9.
    ///
    /// # Errors
    /// [`Error::Parameter`] if k is less than 8.
    pub fn new(k: u16) -> Result<Self> {
        Ok(Self(KllSketch::new(k).map_err(|e| Error::parameter("k", k, e.message()))?))
    }

    /// The most by which a rank is off.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.0.normalized_rank_error()
    }

    /// Merges another stream's sketch.
    ///
    /// # Errors
    /// None for sketches of this program; the error becomes that of the smaller k.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let merged = self.0.merge(&other.0);
        merged.map_err(|e| Error::Mismatch { what: "KLL sketches", why: e.message().to_owned() })
    }

    /// Memory it takes now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.0.num_retained() * 4 + 64 * 24) as u64
    }

    /// Reads a float sketch of Apache DataSketches.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a sketch.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self(KllSketch::deserialize(bytes).map_err(|e| Error::bytes("KLL sketch", e.message()))?))
    }
}

/// The serialized form of a KLL sketch that holds every eighth of some sorted values at level 3.
fn chunk_image(k: u16, sorted: &[Single], from: usize) -> Vec<u8> {
    // The capacity of a level, by its distance from the top: k (2/3)^depth, rounded, and at least
    // 8.
    let level = |depth: u32| (((u64::from(k) << (depth + 1)) / 3u64.pow(depth)).div_ceil(2)).max(8);
    let capacity: u64 = (0..=u32::from(LEVELS)).map(level).sum();
    let kept = sorted.iter().skip(from).step_by(1 << LEVELS);
    let mut image = vec![5, 1, 15, 0];
    image.extend(k.to_le_bytes());
    image.extend([8, 0]);
    image.extend((sorted.len() as u64).to_le_bytes());
    image.extend(k.to_le_bytes());
    image.extend([LEVELS + 1, 0]);
    let first = capacity as u32 - (sorted.len() >> LEVELS) as u32;
    (0..=LEVELS).for_each(|_| image.extend(first.to_le_bytes()));
    let ends = [sorted.first(), sorted.last()].into_iter().flatten();
    ends.chain(kept).for_each(|single| image.extend(single.value().to_le_bytes()));
    image
}

/// A REQ sketch: the relative error of ranks is small towards one end.
///
/// ```
/// use tidegate_sketch::quantile::Req;
/// let mut losses = Req::new(12, true)?;
/// losses.update(&(0..100_000).map(|x| x as f32).collect::<Vec<_>>())?;
/// assert!((losses.quantiles(&[0.999])?[0] - 99_900.0).abs() < 20.0);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Req(ReqSketch<Single>);

impl Req {
    quantiles!();

    fn add_all(&mut self, values: &[f32]) {
        values.iter().for_each(|&value| self.add(value));
    }

    /// An empty sketch that is exact towards the largest values (`high`) or the smallest.
    ///
    /// # Errors
    /// [`Error::Parameter`] if k is odd, less than 4 or above 1,024.
    pub fn new(k: u16, high: bool) -> Result<Self> {
        let accuracy = if high { RankAccuracy::HighRank } else { RankAccuracy::LowRank };
        Ok(Self(ReqSketch::new(k, accuracy).map_err(|e| Error::parameter("k", k, e.message()))?))
    }

    /// Bounds of a rank, with three standard deviations' confidence.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the rank is not between 0 and 1.
    pub fn rank_bounds(&self, rank: f64) -> Result<(f64, f64)> {
        let (rank, n) = (self::rank(rank)?, NumStdDev::Three);
        Ok((self.0.rank_lower_bound(rank, n), self.0.rank_upper_bound(rank, n)))
    }

    /// Merges another stream's sketch.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if they are exact towards different ends.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let merged = self.0.merge(&other.0);
        merged.map_err(|e| Error::Mismatch { what: "REQ sketches", why: e.message().to_owned() })
    }

    /// Memory it takes now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.0.num_retained() as usize * 4 + 64 * 64) as u64
    }

    /// Reads a float sketch of Apache DataSketches.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a sketch.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self(ReqSketch::deserialize(bytes).map_err(|e| Error::bytes("REQ sketch", e.message()))?))
    }
}

/// The distance of two distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// The Kolmogorov–Smirnov statistic: the largest difference of ranks found.
    pub statistic: f64,
    /// The value above which the difference is significant at the chosen level, the errors of both
    /// sketches included.
    pub threshold: f64,
}

impl Distance {
    /// Whether the distributions differ significantly.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.statistic > self.threshold
    }
}

/// Ranks at which two distributions are compared.
const STEPS: usize = 512;

/// The two-sample Kolmogorov–Smirnov test on sketches. If the streams are alike, it is wrong with
/// probability at most `delta`.
///
/// The threshold is sqrt(ln(2/δ)/2 · (n+m)/(nm)) (Smirnov; Hodges, 1958) plus the rank errors of
/// both sketches. Ranks are compared at 512 quantiles of each, so the statistic may be too small
/// by up to 1/512.
///
/// # Errors
/// [`Error::Empty`] if one sketch is empty; [`Error::Parameter`] if `delta` is not between 0 and
/// 1.
pub fn ks(one: &Kll, other: &Kll, delta: f64) -> Result<Distance> {
    let ranks: Vec<f64> = (0..=STEPS).map(|i| i as f64 / STEPS as f64).collect();
    let (first, second) = (one.0.sorted_view(), other.0.sorted_view());
    let mut statistic = 0f64;
    for value in [one.quantiles(&ranks)?, other.quantiles(&ranks)?].concat() {
        let point = Single::new(value).ok_or_else(|| number(0, value))?;
        for criteria in [SearchCriteria::Inclusive, SearchCriteria::Exclusive] {
            if let (Some(a), Some(b)) = (first.rank(&point, criteria), second.rank(&point, criteria)) {
                statistic = statistic.max((a - b).abs());
            }
        }
    }
    let (n, m) = (one.count() as f64, other.count() as f64);
    let chance = ((2.0 / fraction("delta", delta)?).ln() / 2.0 * (n + m) / (n * m)).sqrt();
    Ok(Distance { statistic, threshold: chance + one.error() + other.error() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, n: usize, shift: f32) -> Vec<f32> {
        let mut draws = Draws::new(seed);
        (0..n).map(|_| draws.normal() as f32 + shift).collect()
    }

    fn true_rank(sorted: &[f32], value: f32) -> f64 {
        sorted.partition_point(|&x| x <= value) as f64 / sorted.len() as f64
    }

    /// The published bounds, alone and merged. KLL's bound holds with 99 % confidence for one
    /// rank, so at most two of 40 sketches may break it.
    #[test]
    fn ranks_are_within_the_published_bounds() {
        let mut broken = 0;
        for seed in 0..40 {
            let all = values(seed, 20_000, 0.0);
            let mut kll = Kll::new(200).unwrap();
            let mut part = Kll::new(200).unwrap();
            kll.update(&all[..13_000]).unwrap();
            part.update(&all[13_000..]).unwrap();
            kll.merge(&part).unwrap();
            let mut req = Req::new(12, true).unwrap();
            let mut part = Req::new(12, true).unwrap();
            req.update(&all[..5_000]).unwrap();
            part.update(&all[5_000..]).unwrap();
            req.merge(&part).unwrap();
            let mut sorted = all;
            sorted.sort_by(f32::total_cmp);
            assert_eq!(kll.count(), 20_000);
            let ranks: Vec<f64> = (1..20).map(|i| f64::from(i) / 20.0).collect();
            for (rank, value) in ranks.iter().zip(kll.quantiles(&ranks).unwrap()) {
                broken += u32::from((true_rank(&sorted, value) - rank).abs() > kll.error());
            }
            for rank in [0.5, 0.9, 0.99, 0.999] {
                let at = sorted[(rank * 20_000.0) as usize - 1];
                let (low, high) = req.rank_bounds(rank).unwrap();
                let found = req.rank(at).unwrap();
                assert!((low - 1e-3..=high + 1e-3).contains(&found), "rank {rank}: {found} of {low}..{high}");
            }
        }
        assert!(broken <= 2 * 19, "{broken} of 760 ranks are off by more than the bound");
    }

    #[test]
    fn tells_distributions_apart() {
        let kll = |seed, n, shift| {
            let mut kll = Kll::new(200).unwrap();
            kll.update(&values(seed, n, shift)).unwrap();
            kll
        };
        let (one, same, other) = (kll(1, 30_000, 0.0), kll(2, 20_000, 0.0), kll(3, 20_000, 0.3));
        assert!(!ks(&one, &same, 0.01).unwrap().differs());
        let distance = ks(&one, &other, 0.01).unwrap();
        // Two normal distributions 0.3 apart: 2 Φ(0.15) - 1.
        assert!(distance.differs() && (distance.statistic - 0.1192).abs() < 0.03, "{distance:?}");
        let empty = Kll::new(200).unwrap();
        assert!(ks(&one, &empty, 0.01).unwrap_err().to_string().contains("nothing has been seen"));
        assert!(ks(&one, &same, 0.0).unwrap_err().to_string().contains("delta is 0"));
        let alike = (0..200)
            .filter(|&s| ks(&kll(2 * s, 500, 0.0), &kll(2 * s + 1, 700, 0.0), 0.05).unwrap().differs());
        assert!(alike.count() <= 10, "false alarms");
    }

    /// Whole chunks are accepted for every k, and the error is as published for small streams too.
    #[test]
    fn chunks_are_taken_whole() {
        for k in [8, 11, 64, 200, 500, 4000] {
            let kept = usize::from(k).min(192) << LEVELS;
            let mut sorted: Vec<Single> = values(1, kept, 0.0).into_iter().filter_map(Single::new).collect();
            sorted.sort_unstable();
            let chunk = KllSketch::<Single>::deserialize(&chunk_image(k, &sorted, 5)).unwrap();
            assert_eq!((chunk.n(), chunk.num_retained()), (kept as u64, kept >> LEVELS), "k {k}");
            let mut kll = Kll::new(k).unwrap();
            kll.update(&values(2, 3 * kept + 7, 0.0)).unwrap();
            assert_eq!(kll.count(), 3 * kept as u64 + 7);
            let mut all = values(2, 3 * kept + 7, 0.0);
            all.sort_by(f32::total_cmp);
            let off = (true_rank(&all, kll.quantiles(&[0.5]).unwrap()[0]) - 0.5).abs();
            assert!(off <= 1.5 * kll.error(), "k {k}: {off} of {}", kll.error());
        }
    }

    #[test]
    fn singles_are_ordered_as_floats() {
        let all = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, 0.0, 1e-40, 1.0, 2.0, f32::INFINITY];
        let singles = all.map(|x| Single::new(x).unwrap());
        assert!(singles.is_sorted());
        assert_eq!(singles.map(Single::value), all);
        assert_eq!((Single::new(-0.0), Single::new(f32::NAN)), (Single::new(0.0), None));
    }

    #[test]
    fn refuses_what_has_no_rank() {
        let mut kll = Kll::new(200).unwrap();
        assert!(kll.update(&[1.0, f32::NAN]).unwrap_err().to_string().contains("the value at 1 is NaN"));
        assert_eq!(kll.count(), 0);
        assert_eq!(kll.update_numbers(&[1.0, f32::NAN, f32::INFINITY]), 2);
        assert!(kll.quantiles(&[1.5]).unwrap_err().to_string().contains("rank is 1.5"));
        assert!(Kll::new(4).is_err() && Req::new(3, true).is_err());
        let (mut high, low) = (Req::new(12, true).unwrap(), Req::new(12, false).unwrap());
        high.update(&[1.0]).unwrap();
        assert!(low.quantiles(&[0.5]).is_err());
        let mut other = Req::new(12, false).unwrap();
        other.update(&[1.0]).unwrap();
        assert!(high.merge(&other).is_err());
        for cut in [0, 3, 7] {
            assert!(Kll::from_bytes(&kll.to_bytes()[..cut]).is_err());
            assert!(Req::from_bytes(&high.to_bytes()[..cut]).is_err());
        }
        assert_eq!(Kll::from_bytes(&kll.to_bytes()).unwrap().to_bytes(), kll.to_bytes());
    }
}
