//! Frequencies: an upper bound for any value (Count–Min), and the most frequent values.
//!
//! Flow: keys with their hash -> counters -> estimates with bounds.
//! Memory: eight bytes per counter of a Count–Min sketch; a map of bounded size for frequent
//! items.

use std::hash::Hash;

use datasketches::frequencies::{ErrorType, FrequentItemValue, FrequentItemsSketch};

use crate::codec::{Kind, Reader, Writer};
use crate::error::fraction;
use crate::hash::Key;
use crate::{Error, Result};
use tidegate_core::hash::splitmix64_finalize;

/// A Count–Min sketch: counts that are never too small (Cormode and Muthukrishnan, «An improved
/// data stream summary», 2005).
///
/// With probability 1 − δ, an estimate is too large by at most ε times the total. A *conservative*
/// sketch raises only the counters that must be raised (Estan and Varghese, 2002). It is more
/// exact, but after a merge only the plain bound holds. The serialized form is our own: no two
/// libraries are compatible.
///
/// ```
/// use tidegate_sketch::frequency::CountMin;
/// let mut counts = CountMin::new(0.001, 0.01, false)?;
/// counts.add(&"cat".into(), 3);
/// assert_eq!(counts.estimate(&"cat".into()), 3);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountMin {
    lg_width: u32,
    depth: usize,
    conservative: bool,
    total: u64,
    counters: Vec<u64>,
}

impl CountMin {
    const VERSION: u8 = 1;

    /// A sketch whose estimates are too large by at most `epsilon` times the total, except for a
    /// fraction `delta` of values.
    ///
    /// # Errors
    /// [`Error::Parameter`] if one is not between 0 and 1, or so small that the counters take more
    /// than 4 GiB.
    pub fn new(epsilon: f64, delta: f64, conservative: bool) -> Result<Self> {
        let width = (std::f64::consts::E / fraction("epsilon", epsilon)?).ceil();
        let depth = (1.0 / fraction("delta", delta)?).ln().ceil().max(1.0);
        if width.log2().ceil().exp2() * depth > f64::from(1 << 29) {
            return Err(Error::parameter(
                "epsilon",
                epsilon,
                "the counters would take more than 4 GiB: give a larger one",
            ));
        }
        let (lg_width, depth) = (width.log2().ceil() as u32, depth as usize);
        Ok(Self { lg_width, depth, conservative, total: 0, counters: vec![0; depth << lg_width] })
    }

    /// The counters of a hash, one per row. Row functions are multiply-shift functions of a 64-bit
    /// hash.
    fn cells(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let (lg_width, shift) = (self.lg_width, 64 - self.lg_width.max(1));
        (0..self.depth).map(move |row| {
            let odd = splitmix64_finalize(row as u64 + 1) | 1;
            let column = if lg_width == 0 { 0 } else { (hash.wrapping_mul(odd) >> shift) as usize };
            (row << lg_width) + column
        })
    }

    /// Adds `times` to a value's count.
    pub fn add(&mut self, key: &Key<'_>, times: u64) {
        self.total = self.total.saturating_add(times);
        if self.conservative {
            let least = self.estimate(key).saturating_add(times);
            for cell in self.cells(key.hash.0) {
                self.counters[cell] = self.counters[cell].max(least);
            }
        } else {
            for cell in self.cells(key.hash.0) {
                self.counters[cell] = self.counters[cell].saturating_add(times);
            }
        }
    }

    /// An upper bound of a value's count.
    #[must_use]
    pub fn estimate(&self, key: &Key<'_>) -> u64 {
        self.cells(key.hash.0).map(|cell| self.counters[cell]).min().unwrap_or(0)
    }

    /// The most by which an estimate is too large, except for one value in e^depth.
    #[must_use]
    pub fn error_bound(&self) -> f64 {
        std::f64::consts::E * self.total as f64 / (1u64 << self.lg_width) as f64
    }

    /// The sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Merges another stream's counts; a merged conservative sketch has the bound of a plain one.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if sizes or modes differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::mismatch("Count-Min sketches", "the width's logarithm", self.lg_width, other.lg_width)?;
        Error::mismatch("Count-Min sketches", "the depth", self.depth, other.depth)?;
        Error::mismatch("Count-Min sketches", "conservative", self.conservative, other.conservative)?;
        self.total = self.total.saturating_add(other.total);
        self.counters
            .iter_mut()
            .zip(&other.counters)
            .for_each(|(one, other)| *one = one.saturating_add(*other));
        Ok(())
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.counters.len() * 8) as u64
    }

    /// Serializes the state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::CountMin, Self::VERSION);
        to.byte(u8::from(self.conservative)).word(u64::from(self.lg_width)).word(self.depth as u64);
        to.word(self.total).words(self.counters.iter().copied());
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("Count-Min sketch", bytes, Kind::CountMin, Self::VERSION)?;
        let conservative = from.byte()? != 0;
        let (lg_width, depth, total) = (from.word()?, from.word()?, from.word()?);
        let counters = from.words()?;
        if lg_width > 29 || depth == 0 || depth > 1 << 29 || counters.len() as u64 != depth << lg_width {
            return from.wrong(format!("{} counters in {depth} rows of 2^{lg_width}", counters.len()));
        }
        let (lg_width, depth) = (lg_width as u32, depth as usize);
        from.end(Self { lg_width, depth, conservative, total, counters })
    }
}

/// A frequent value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequent<T> {
    /// The value.
    pub item: T,
    /// The lower bound of its count.
    pub at_least: u64,
    /// The upper bound of its count.
    pub at_most: u64,
}

/// The most frequent values (Misra and Gries, 1982; Anderson et al., «A high-performance algorithm
/// for identifying frequent items», 2017), in the format of Apache DataSketches.
///
/// ```
/// use tidegate_sketch::frequency::FrequentItems;
/// let mut labels = FrequentItems::<i64>::new(10)?;
/// for label in [1, 2, 1, 1] {
///     labels.add(label, 1);
/// }
/// assert_eq!((labels.top()[0].item, labels.top()[0].at_least), (1, 3));
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct FrequentItems<T>(FrequentItemsSketch<T>);

impl<T: Eq + Hash + Clone + Ord + FrequentItemValue> FrequentItems<T> {
    /// A sketch with a map of at most 2^`lg_size` slots, of which three quarters are used.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `lg_size` is not between 3 and 26.
    pub fn new(lg_size: u8) -> Result<Self> {
        if !(3..=26).contains(&lg_size) {
            return Err(Error::parameter("lg_size", lg_size, "it must be between 3 and 26"));
        }
        let made = FrequentItemsSketch::new(1 << lg_size);
        Ok(Self(made.map_err(|e| Error::parameter("lg_size", lg_size, e.message()))?))
    }

    /// Adds `times` to a value's count.
    pub fn add(&mut self, item: T, times: u64) {
        self.0.update_with_count(item, times);
    }

    /// The bounds of an item's count: (lower, upper).
    #[must_use]
    pub fn bounds(&self, item: &T) -> (u64, u64) {
        (self.0.lower_bound(item), self.0.upper_bound(item))
    }

    /// All items that may be more frequent than the error, most frequent first.
    #[must_use]
    pub fn top(&self) -> Vec<Frequent<T>> {
        let mut rows: Vec<_> = self
            .0
            .frequent_items(ErrorType::NoFalseNegatives)
            .into_iter()
            .map(|row| Frequent {
                item: row.item().clone(),
                at_least: row.lower_bound(),
                at_most: row.upper_bound(),
            })
            .collect();
        rows.sort_by(|a, b| (b.at_most, &a.item).cmp(&(a.at_most, &b.item)));
        rows
    }

    /// The width of the bounds of any count; 0 while all counts are exact.
    #[must_use]
    pub fn error(&self) -> u64 {
        self.0.maximum_error()
    }

    /// The sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.total_weight()
    }

    /// Merges another stream's counts; errors add up.
    pub fn merge(&mut self, other: &Self) {
        self.0.merge(&other.0);
    }

    /// Memory it takes now, in bytes, without the contents of strings.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.estimated_size() as u64
    }

    /// Serializes in the format of Apache DataSketches.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// Reads the format of Apache DataSketches.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a sketch.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self(
            FrequentItemsSketch::deserialize(bytes)
                .map_err(|e| Error::bytes("frequent-items sketch", e.message()))?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// Values with Zipf-distributed frequencies, by inversion.
    fn zipf(draws: &mut Draws) -> u64 {
        (50_000f64.powf(draws.positive()) as u64).min(49_999)
    }

    #[test]
    fn never_below_and_seldom_far_above() {
        for conservative in [false, true] {
            let (epsilon, delta) = (0.002, 0.02);
            let mut counts = CountMin::new(epsilon, delta, conservative).unwrap();
            let mut truth = vec![0u64; 50_000];
            let mut draws = Draws::new(1);
            for _ in 0..300_000 {
                let value = zipf(&mut draws);
                truth[value as usize] += 1;
                counts.add(&value.into(), 1);
            }
            let over: Vec<u64> = (0..50_000)
                .map(|value| counts.estimate(&(value as u64).into()).checked_sub(truth[value]).unwrap())
                .collect();
            assert!(counts.error_bound() <= epsilon * 300_000.0);
            let far = over.iter().filter(|&&o| o as f64 > counts.error_bound()).count();
            assert!((far as f64) <= delta * 50_000.0, "{far} are too large by more than the bound");
            if conservative {
                let mut plain = CountMin::new(epsilon, delta, false).unwrap();
                let mut draws = Draws::new(1);
                (0..300_000).for_each(|_| plain.add(&zipf(&mut draws).into(), 1));
                let sum: u64 = (0..50_000u64).map(|v| plain.estimate(&v.into()) - truth[v as usize]).sum();
                assert!(over.iter().sum::<u64>() * 3 < sum * 2, "conservative errs a third less");
            }
        }
    }

    #[test]
    fn merges_and_is_stored() {
        let new = || CountMin::new(0.01, 0.1, false).unwrap();
        let (mut one, mut other, mut both) = (new(), new(), new());
        for value in 0..1000u64 {
            (if value % 3 == 0 { &mut one } else { &mut other }).add(&(value % 17).into(), value);
            both.add(&(value % 17).into(), value);
        }
        one.merge(&other).unwrap();
        assert_eq!(one, both);
        let bytes = one.to_bytes();
        assert_eq!(CountMin::from_bytes(&bytes).unwrap(), one);
        for n in [0, 5, 20, bytes.len() - 1] {
            assert!(CountMin::from_bytes(&bytes[..n]).is_err());
        }
        let foreign = Kind::Moments as u8;
        let error = CountMin::from_bytes(&crate::moments::Moments::new(false).to_bytes()).unwrap_err();
        assert!(error.to_string().contains(&format!("kind {foreign}")), "{error}");
        for (epsilon, delta) in
            [(0.0, 0.1), (1.0, 0.1), (f64::NAN, 0.1), (0.1, -0.1), (0.1, 1.5), (1e-12, 0.1)]
        {
            assert!(CountMin::new(epsilon, delta, true).is_err(), "{epsilon} {delta}");
        }
        let wider = CountMin::new(0.001, 0.1, false).unwrap();
        assert!(one.merge(&wider).unwrap_err().to_string().contains("width"));
    }

    #[test]
    fn frequent_items_are_bounded() {
        let (mut items, mut truth, mut draws) =
            (FrequentItems::<i64>::new(8).unwrap(), vec![0u64; 50_000], Draws::new(2));
        for _ in 0..200_000 {
            let value = zipf(&mut draws);
            truth[value as usize] += 1;
            items.add(value.cast_signed(), 1);
        }
        let top = items.top();
        assert!(top.iter().all(|f| (f.at_least..=f.at_most).contains(&truth[f.item as usize])));
        let often: Vec<i64> = (0..50_000).filter(|&v| truth[v as usize] > items.error()).collect();
        assert!(often.iter().all(|v| top.iter().any(|f| f.item == *v)), "none is missing");
        let again = FrequentItems::<i64>::from_bytes(&items.to_bytes()).unwrap();
        assert_eq!(again.top(), top);
        assert!(FrequentItems::<i64>::from_bytes(&items.to_bytes()[..7]).is_err());
        assert!(FrequentItems::<i64>::new(2).is_err());
    }
}
