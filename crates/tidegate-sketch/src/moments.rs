//! Moments of a stream: count, mean, variance, skewness, kurtosis, minimum and maximum.
//!
//! Flow: slices of f32 or f64 -> blocks of 4,096 values -> a [`Summary`] each -> a fixed tree of
//! summaries -> [`Moments`].
//! Memory: 32 KiB for the block being filled, and 80 bytes for each of at most 54 summaries.
//!
//! NaNs and infinities are counted, and left out of all else. A block's position in the stream
//! alone determines its position in the tree, so neither the slicing of values nor vector
//! instructions change a bit. A block is summed in sixteen lanes around its first value, and
//! squares are added with fused multiply-add on every processor. Summaries are joined by the
//! formulas of Chan, Golub and LeVeque (1979) and Pébay (2008).

use tidegate_core::simd;

use crate::codec::{Kind, Reader, Writer};
use crate::{Error, Result};

/// Values per block.
const BLOCK: usize = 4096;
const LANES: usize = 16;

/// Number types that have moments.
pub trait Real: Copy + PartialOrd + Into<f64> {
    /// Larger than all numbers.
    const INFINITY: Self;
    /// Smaller than all numbers.
    const NEG_INFINITY: Self;
}

impl Real for f32 {
    const INFINITY: Self = Self::INFINITY;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
}

impl Real for f64 {
    const INFINITY: Self = Self::INFINITY;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
}

/// Statistics of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Number of finite values.
    pub count: u64,
    /// Number of NaNs.
    pub nan: u64,
    /// Number of infinities.
    pub infinite: u64,
    /// Mean of the finite values.
    pub mean: f64,
    /// Sums of the 2nd, 3rd and 4th powers of the deviations from the mean.
    powers: [f64; 3],
    /// Smallest finite value; infinity if there is none.
    pub min: f64,
    /// Largest finite value; negative infinity if there is none.
    pub max: f64,
}

impl Summary {
    const EMPTY: Self = Self {
        count: 0,
        nan: 0,
        infinite: 0,
        mean: 0.0,
        powers: [0.0; 3],
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
    };

    fn join(&self, other: &Self) -> Self {
        let (nan, infinite) = (self.nan + other.nan, self.infinite + other.infinite);
        if self.count == 0 || other.count == 0 {
            let known = if self.count == 0 { other } else { self };
            return Self { nan, infinite, ..*known };
        }
        let count = self.count + other.count;
        let (a, b, n) = (self.count as f64, other.count as f64, count as f64);
        let ([a2, a3, a4], [b2, b3, b4]) = (self.powers, other.powers);
        // Halves, because the difference of two doubles can overflow.
        let half = other.mean / 2.0 - self.mean / 2.0;
        let (d, d_n) = (2.0 * half, 2.0 * (half / n));
        let d2 = d * d;
        let (second, third) = (
            a2 + b2 + d2 * (a * b / n),
            a3 + b3 + d2 * d_n * (a * b / n) * (a - b) + 3.0 * d_n * (a * b2 - b * a2),
        );
        let fourth = a4
            + b4
            + d2 * d_n * d_n * (a * b / n) * (a * a - a * b + b * b)
            + 6.0 * d_n * d_n * (a * a * b2 + b * b * a2)
            + 4.0 * d_n * (a * b3 - b * a3);
        Self {
            count,
            nan,
            infinite,
            mean: self.mean + d_n * b,
            powers: [second, third, fourth],
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    /// The variance over `count - ddof`; NaN if that is not positive.
    #[must_use]
    pub fn variance(&self, ddof: u64) -> f64 {
        if self.count <= ddof {
            return f64::NAN;
        }
        // Squares beyond the range of a double are infinite, or a difference of infinities.
        let squares = if self.powers[0].is_nan() { f64::INFINITY } else { self.powers[0].max(0.0) };
        squares / (self.count - ddof) as f64
    }

    /// The standard deviation.
    #[must_use]
    pub fn std(&self, ddof: u64) -> f64 {
        self.variance(ddof).sqrt()
    }

    /// The third standardized moment; 0 for a symmetric distribution.
    #[must_use]
    pub fn skewness(&self) -> f64 {
        let n = self.count as f64;
        (self.powers[1] / n) / (self.powers[0] / n).powf(1.5)
    }

    /// The excess kurtosis: the fourth standardized moment minus 3, 0 for a normal distribution.
    #[must_use]
    pub fn kurtosis(&self) -> f64 {
        let n = self.count as f64;
        (self.powers[2] / n) / (self.powers[0] / n).powi(2) - 3.0
    }
}

/// Sums of powers around `shift`, in lanes.
struct Sums<T> {
    powers: [[f64; LANES]; 4],
    low: [T; LANES],
    high: [T; LANES],
}

impl<T: Real> Sums<T> {
    #[inline(always)]
    fn new<const SHAPE: bool>(values: &[T], shift: f64) -> Self {
        let mut sums =
            Self { powers: [[0.0; LANES]; 4], low: [T::INFINITY; LANES], high: [T::NEG_INFINITY; LANES] };
        let (rows, rest) = values.as_chunks::<LANES>();
        for row in rows {
            sums.add::<SHAPE>(row, shift);
        }
        if !rest.is_empty() {
            // Padded with the first value, which is the shift and adds nothing.
            let mut row = [values[0]; LANES];
            row[..rest.len()].copy_from_slice(rest);
            sums.add::<SHAPE>(&row, shift);
        }
        sums
    }

    /// One simple loop per array keeps each in vector registers.
    #[inline(always)]
    fn add<const SHAPE: bool>(&mut self, row: &[T; LANES], shift: f64) {
        let Self { powers: [s1, s2, s3, s4], low, high } = self;
        let d = row.map(|x| x.into() - shift);
        for lane in 0..LANES {
            s1[lane] += d[lane];
        }
        for lane in 0..LANES {
            s2[lane] = d[lane].mul_add(d[lane], s2[lane]);
        }
        if SHAPE {
            for lane in 0..LANES {
                s3[lane] += d[lane] * d[lane] * d[lane];
            }
            for lane in 0..LANES {
                s4[lane] += d[lane] * d[lane] * (d[lane] * d[lane]);
            }
        }
        for lane in 0..LANES {
            low[lane] = if row[lane] < low[lane] { row[lane] } else { low[lane] };
        }
        for lane in 0..LANES {
            high[lane] = if row[lane] > high[lane] { row[lane] } else { high[lane] };
        }
    }

    fn summary(&self, count: u64, shift: f64) -> Summary {
        let [s1, s2, s3, s4] = self.powers.map(|lanes| folded(lanes, |a, b| a + b));
        let n = count as f64;
        let m = s1 / n;
        Summary {
            count,
            nan: 0,
            infinite: 0,
            mean: shift + m,
            powers: [
                s2 - m * s1,
                s3 - 3.0 * m * s2 + 2.0 * m * m * s1,
                s4 - 4.0 * m * s3 + 6.0 * m * m * s2 - 3.0 * m * m * m * s1,
            ],
            min: folded(self.low.map(Into::into), f64::min),
            max: folded(self.high.map(Into::into), f64::max),
        }
    }
}

/// Joins halves until one lane is left.
fn folded(mut lanes: [f64; LANES], join: impl Fn(f64, f64) -> f64) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The vector width to use; the sums are the same for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vectors {
    Portable,
    Avx2,
    Avx512,
}

impl Vectors {
    fn found() -> Self {
        match (simd::avx512(), simd::avx2()) {
            (true, _) => Self::Avx512,
            (_, true) => Self::Avx2,
            _ => Self::Portable,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Real, Sums};

    #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
    pub(super) fn avx512<T: Real, const SHAPE: bool>(values: &[T], shift: f64) -> Sums<T> {
        Sums::new::<SHAPE>(values, shift)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<T: Real, const SHAPE: bool>(values: &[T], shift: f64) -> Sums<T> {
        Sums::new::<SHAPE>(values, shift)
    }
}

#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "instructions that not every processor has"))]
fn sums<T: Real, const SHAPE: bool>(values: &[T], shift: f64, vectors: Vectors) -> Sums<T> {
    match vectors {
        // SAFETY: `Vectors::found` detected AVX-512.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => unsafe { wide::avx512::<T, SHAPE>(values, shift) },
        // SAFETY: `Vectors::found` detected AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => unsafe { wide::avx2::<T, SHAPE>(values, shift) },
        _ => Sums::new::<SHAPE>(values, shift),
    }
}

/// The summary of a block, which is not empty.
fn block<T: Real>(values: &[T], shape: bool, vectors: Vectors) -> Summary {
    let summarize = |values: &[T]| {
        let shift = values[0].into();
        let sums = if shape {
            sums::<_, true>(values, shift, vectors)
        } else {
            sums::<_, false>(values, shift, vectors)
        };
        sums.summary(values.len() as u64, shift)
    };
    let summary = summarize(values);
    // A NaN or infinity makes the sums non-finite.
    if summary.powers[0].is_finite() {
        return summary;
    }
    let (mut finite, mut nan) = (Vec::with_capacity(values.len()), 0);
    for &x in values {
        let wide: f64 = x.into();
        nan += u64::from(wide.is_nan());
        if wide.is_finite() {
            finite.push(x);
        }
    }
    let infinite = values.len() as u64 - finite.len() as u64 - nan;
    let mut known = if finite.is_empty() { Summary::EMPTY } else { summarize(&finite) };
    if known.count > 0 && !known.powers[0].is_finite() {
        // The squares overflow: the mean is still known, and the spread is known to be infinite.
        known.mean = finite.iter().map(|&x| x.into() / finite.len() as f64).sum();
        known.powers[0] = f64::INFINITY;
    }
    Summary { nan, infinite, ..known }
}

/// Moments of a stream.
///
/// ```
/// use tidegate_sketch::moments::Moments;
/// let mut moments = Moments::new(true);
/// moments.update(&[1.0f32, 2.0, 3.0, f32::NAN]);
/// let all = moments.summary();
/// assert_eq!((all.count, all.nan, all.mean, all.variance(1)), (3, 1, 2.0, 1.0));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    shape: bool,
    /// Summaries of (a power of two of) joined leaves, each of fewer leaves than those before.
    tree: Vec<(u32, Summary)>,
    /// The values of the block being filled.
    pending: Vec<f64>,
}

impl Moments {
    const VERSION: u8 = 1;

    /// Moments of an empty stream. With `shape` they include the third and fourth powers, at twice
    /// the cost.
    #[must_use]
    pub fn new(shape: bool) -> Self {
        Self { shape, tree: Vec::new(), pending: Vec::new() }
    }

    /// Adds values.
    pub fn update<T: Real>(&mut self, values: &[T]) {
        // Reserves at most a block, because `size_bytes` does not include growth.
        self.pending.reserve_exact(BLOCK - self.pending.len());
        let missing = if self.pending.is_empty() { 0 } else { BLOCK - self.pending.len() };
        let (first, rest) = values.split_at(missing.min(values.len()));
        self.pending.extend(first.iter().map(|&x| x.into()));
        if self.pending.len() == BLOCK {
            self.flush();
        }
        let vectors = Vectors::found();
        let blocks = rest.chunks_exact(BLOCK);
        self.pending.extend(blocks.remainder().iter().map(|&x| x.into()));
        for values in blocks {
            let summary = block(values, self.shape, vectors);
            self.push(0, summary);
        }
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            let summary = block(&self.pending, self.shape, Vectors::found());
            self.pending.clear();
            self.push(0, summary);
        }
    }

    fn push(&mut self, mut level: u32, mut summary: Summary) {
        while let Some((_, before)) = self.tree.pop_if(|(of, _)| *of == level) {
            (level, summary) = (level + 1, before.join(&summary));
        }
        self.tree.push((level, summary));
    }

    /// Appends another stream. It becomes one leaf of the tree, so the same streams in the same
    /// order give the same bits, independent of who computed them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if only one has the shape.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::mismatch("moments", "shape", self.shape, other.shape)?;
        self.flush();
        self.push(0, other.summary());
        Ok(())
    }

    /// The summary of all values.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let pending = (!self.pending.is_empty()).then(|| block(&self.pending, self.shape, Vectors::found()));
        let all = self.tree.iter().map(|(_, summary)| summary).chain(&pending);
        all.copied().reduce(|a, b| a.join(&b)).unwrap_or(Summary::EMPTY)
    }

    /// Whether skewness and kurtosis are computed.
    #[must_use]
    pub fn has_shape(&self) -> bool {
        self.shape
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + BLOCK * 8 + 54 * size_of::<(u32, Summary)>()) as u64
    }

    /// Serializes the exact state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Moments, Self::VERSION);
        to.byte(u8::from(self.shape)).floats(&self.pending).word(self.tree.len() as u64);
        for (level, s) in &self.tree {
            to.word(u64::from(*level)).word(s.count).word(s.nan).word(s.infinite);
            to.float(s.mean)
                .float(s.powers[0])
                .float(s.powers[1])
                .float(s.powers[2])
                .float(s.min)
                .float(s.max);
        }
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("moments", bytes, Kind::Moments, Self::VERSION)?;
        let (shape, pending) = (from.byte()? != 0, from.floats()?);
        let leaves = from.word()?;
        if pending.len() >= BLOCK || leaves > 64 {
            return from.wrong(format!("a block of {} values, {leaves} summaries", pending.len()));
        }
        let mut moments = Self { shape, tree: Vec::new(), pending };
        for _ in 0..leaves {
            let level = from.word()? as u32;
            let (count, nan, infinite) = (from.word()?, from.word()?, from.word()?);
            let (mean, powers) = (from.float()?, [from.float()?, from.float()?, from.float()?]);
            let (min, max) = (from.float()?, from.float()?);
            moments.tree.push((level, Summary { count, nan, infinite, mean, powers, min, max }));
        }
        from.end(moments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Two passes, with a compensated sum.
    fn oracle(values: &[f64]) -> (f64, f64, f64, f64) {
        let sum = |f: &dyn Fn(f64) -> f64| {
            let (mut sum, mut lost) = (0.0, 0.0);
            for &x in values {
                let y = f(x) - lost;
                let t = sum + y;
                (lost, sum) = ((t - sum) - y, t);
            }
            sum
        };
        let n = values.len() as f64;
        let mean = sum(&|x| x) / n;
        let m = |p| sum(&|x| (x - mean).powi(p)) / n;
        (mean, m(2) * n / (n - 1.0), m(3) / m(2).powf(1.5), m(4) / m(2).powi(2) - 3.0)
    }

    fn of(values: &[f64]) -> Summary {
        let mut moments = Moments::new(true);
        moments.update(values);
        moments.summary()
    }

    proptest! {
        /// Neither the slicing of a stream nor vector instructions change a bit.
        #[test]
        fn cuts_change_no_bit(cuts in prop::collection::vec(0usize..9000, 0..6), seed: u64) {
            let mut draws = crate::random::Draws::new(seed);
            let values: Vec<f32> = (0..21_000).map(|_| (draws.positive() * 1e3) as f32).collect();
            let mut whole = Moments::new(true);
            whole.update(&values);
            let mut cut = Moments::new(true);
            let mut rest = &values[..];
            for n in cuts {
                let (part, after) = rest.split_at(n.min(rest.len()));
                cut.update(part);
                rest = after;
            }
            cut.update(rest);
            prop_assert_eq!(&whole, &cut);
            // Only vector widths that were detected: the others fall back to the portable code.
            for vectors in [Vectors::Avx2, Vectors::Avx512].into_iter().filter(|&v| v as u8 <= Vectors::found() as u8) {
                let of = |vectors| block(&values[..1000], true, vectors);
                prop_assert_eq!(of(Vectors::Portable), of(vectors));
            }
            prop_assert_eq!(Moments::from_bytes(&whole.to_bytes()).unwrap(), whole);
        }

        #[test]
        fn agrees_with_two_passes(values in prop::collection::vec(-1e6..1e6f64, 3..3000), offset in -1e9..1e9f64) {
            let values: Vec<f64> = values.iter().map(|x| x + offset).collect();
            let (mean, variance, skewness, kurtosis) = oracle(&values);
            let all = of(&values);
            prop_assert!((all.mean - mean).abs() <= 1e-12 * mean.abs().max(1.0));
            prop_assert!((all.variance(1) / variance - 1.0).abs() < 1e-10);
            prop_assert!((all.skewness() - skewness).abs() < 1e-6, "{} {skewness}", all.skewness());
            prop_assert!((all.kurtosis() - kurtosis).abs() < 1e-6, "{} {kurtosis}", all.kurtosis());
        }

        /// Merging is associative up to rounding, and counts NaNs and infinities.
        #[test]
        fn merges(parts in prop::collection::vec(prop::collection::vec(prop::num::f64::ANY, 0..100), 1..6)) {
            let small = |x: f64| if x.abs() < 1e-100 || x.abs() > 1e50 { x.signum() } else { x };
            let parts: Vec<Vec<f64>> = parts.into_iter()
                .map(|part| part.into_iter().map(|x| if x.is_finite() { small(x) } else { x }).collect()).collect();
            let mut merged = Moments::new(false);
            for part in &parts {
                let mut one = Moments::new(false);
                one.update(part);
                merged.merge(&one).unwrap();
            }
            let all: Vec<f64> = parts.concat();
            let merged = merged.summary();
            prop_assert_eq!(merged.nan, all.iter().filter(|x| x.is_nan()).count() as u64);
            prop_assert_eq!(merged.infinite, all.iter().filter(|x| x.is_infinite()).count() as u64);
            prop_assert_eq!(merged.count + merged.nan + merged.infinite, all.len() as u64);
            let finite = all.into_iter().filter(|x| x.is_finite());
            prop_assert_eq!(merged.min, finite.clone().fold(f64::INFINITY, f64::min));
            prop_assert_eq!(merged.max, finite.fold(f64::NEG_INFINITY, f64::max));
        }
    }

    /// NIST StRD, univariate summary statistics: (data, certified mean, certified standard
    /// deviation).
    #[test]
    fn nist_numerical_accuracy() {
        let alternating = |first: f64, low: f64, high: f64| {
            let mut values = vec![first];
            (0..500).for_each(|_| values.extend([low, high]));
            values
        };
        let sets = [
            (vec![10_000_001.0, 10_000_003.0, 10_000_002.0], 10_000_002.0, 1.0),
            (alternating(1.2, 1.1, 1.3), 1.2, 0.1),
            (alternating(1_000_000.2, 1_000_000.1, 1_000_000.3), 1_000_000.2, 0.1),
            (alternating(10_000_000.2, 10_000_000.1, 10_000_000.3), 10_000_000.2, 0.1),
        ];
        // The data of the last two sets are not exact doubles: the certified figures hold up to
        // the spacing of doubles there, 1.2e-10 and 1.9e-9.
        let bounds = [1e-12, 1e-12, 1.2e-9, 1.9e-8];
        for (set, ((values, mean, deviation), bound)) in sets.into_iter().zip(bounds).enumerate() {
            let all = of(&values);
            assert!((all.mean / mean - 1.0).abs() <= 1e-15, "NumAcc{}: mean {}", set + 1, all.mean);
            let error = (all.std(1) / deviation - 1.0).abs();
            assert!(error <= bound, "NumAcc{}: {error:e}", set + 1);
            let (_, variance, ..) = oracle(&values);
            let exact = (all.variance(1) / variance - 1.0).abs();
            assert!(exact <= 1e-12, "NumAcc{}: {exact:e} from the doubles' own variance", set + 1);
        }
    }

    #[test]
    fn memory_is_as_declared_and_foreign_bytes_are_refused() {
        let mut moments = Moments::new(false);
        for _ in 0..3000 {
            moments.update(&[1.0f32; 1000]);
        }
        let held = moments.tree.capacity() * size_of::<(u32, Summary)>() + moments.pending.capacity() * 8;
        assert!(held as u64 <= moments.size_bytes());
        let bytes = moments.to_bytes();
        for n in 0..bytes.len() {
            assert!(Moments::from_bytes(&bytes[..n]).is_err());
        }
        let shaped = Moments::new(true);
        assert!(moments.merge(&shaped).unwrap_err().to_string().contains("shape is false in one and true"));
        let wide = of(&[1e308, 1e308, -1e308]);
        assert!((wide.mean / 3.333e307 - 1.0).abs() < 1e-3 && wide.variance(0) == f64::INFINITY, "{wide:?}");
        assert_eq!((of(&[0.0, 1e160]).variance(0), of(&[0.0, 1e160]).mean), (f64::INFINITY, 5e159));
        assert!(of(&[]).variance(1).is_nan() && of(&[1.0]).variance(1).is_nan());
    }
}
