//! Drift detection in the mean of a stream: ADWIN and Page–Hinkley.
//!
//! Flow: numbers (losses, lengths, features) one by one -> alarms; the caller then resets a
//! window, a model or a normalization.
//! Memory: ADWIN takes 16 bytes per bucket and at most 6 buckets per power of two, 6 KiB for any
//! stream; Page–Hinkley a few words.
//!
//! ADWIN bounds its false alarms; Page–Hinkley reacts with less delay. Both raise alarms at the
//! same values as river (0.26). [`crate::quantile::ks`] compares whole distributions. References:
//! Bifet and Gavaldà, «Learning from time-changing data with adaptive windowing», 2007; Page,
//! «Continuous inspection schemes», 1954.

use crate::codec::{Kind, Reader, Writer};
use crate::error::fraction;
use crate::{Error, Result};

/// The most buckets of a size before two are merged.
const BUCKETS: usize = 5;
/// Values between two checks of the window.
const CLOCK: u64 = 32;
/// The smallest part of the window that is compared with the rest.
const LEAST_PART: f64 = 5.0;
/// Values before the first check.
const GRACE: u64 = 10;

fn number(at: u64, value: f64) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::value(at as usize, value, "a detector takes finite numbers"))
}

/// Sums and variances of the buckets of one size, the oldest first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Row {
    len: usize,
    totals: [f64; BUCKETS + 1],
    variances: [f64; BUCKETS + 1],
}

impl Row {
    fn push(&mut self, total: f64, variance: f64) {
        (self.totals[self.len], self.variances[self.len]) = (total, variance);
        self.len += 1;
    }

    fn drop_oldest(&mut self, n: usize) {
        for row in [&mut self.totals, &mut self.variances] {
            row.copy_within(n.., 0);
            row[BUCKETS + 1 - n..].fill(0.0);
        }
        self.len -= n;
    }
}

/// ADWIN: a window that shrinks when the means of its older and its newer part differ.
///
/// ```
/// use tidegate_sketch::drift::Adwin;
/// let mut losses = Adwin::new(0.002)?;
/// let mut alarms = Vec::new();
/// for i in 0..2000 {
///     if losses.update(if i < 1000 { 0.2 } else { 0.9 })? {
///         alarms.push(i);
///     }
/// }
/// assert!(alarms.len() == 1 && (1000..1100).contains(&alarms[0]));
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Adwin {
    delta: f64,
    rows: Vec<Row>,
    width: u64,
    total: f64,
    variance: f64,
    ticks: u64,
    seen: u64,
    alarms: u64,
    /// The last value raised an alarm, so the next update starts a new window.
    alarmed: bool,
}

impl Adwin {
    const VERSION: u8 = 1;

    /// A detector with a false-alarm probability of at most `delta` per check, for values between
    /// 0 and 1.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `delta` is not between 0 and 1.
    pub fn new(delta: f64) -> Result<Self> {
        Ok(Self {
            delta: fraction("delta", delta)?,
            rows: vec![Row::default()],
            width: 0,
            total: 0.0,
            variance: 0.0,
            ticks: 0,
            seen: 0,
            alarms: 0,
            alarmed: false,
        })
    }

    /// Clears the window.
    pub fn reset(&mut self) {
        self.rows.clear();
        self.rows.push(Row::default());
        (self.width, self.ticks) = (0, 0);
        (self.total, self.variance, self.alarmed) = (0.0, 0.0, false);
    }

    /// Adds a value; returns true if the stream has changed. After an alarm the window restarts.
    ///
    /// # Errors
    /// [`Error::Value`] for a value that is not finite; it changes nothing.
    pub fn update(&mut self, value: f64) -> Result<bool> {
        let value = number(self.seen, value)?;
        if self.alarmed {
            self.reset();
        }
        self.seen += 1;
        self.insert(value);
        self.ticks += 1;
        let look = self.ticks.is_multiple_of(CLOCK) && self.width > GRACE;
        self.alarmed = look && self.shrink();
        self.alarms += u64::from(self.alarmed);
        Ok(self.alarmed)
    }

    fn insert(&mut self, value: f64) {
        self.rows[0].push(value, 0.0);
        self.width += 1;
        if self.width > 1 {
            let before = (self.width - 1) as f64;
            let off = value - self.total / before;
            self.variance += before * off * off / self.width as f64;
        }
        self.total += value;
        let mut level = 0;
        while self.rows[level].len > BUCKETS {
            if level + 1 == self.rows.len() {
                self.rows.push(Row::default());
            }
            let size = (1u64 << level) as f64;
            let row = &mut self.rows[level];
            let ([a, b, ..], [va, vb, ..]) = (row.totals, row.variances);
            let off = a / size - b / size;
            row.drop_oldest(2);
            self.rows[level + 1].push(a + b, va + vb + size * size * off * off / (size + size));
            level += 1;
        }
    }

    fn drop_oldest(&mut self) -> f64 {
        let level = self.rows.len() - 1;
        let size = 1u64 << level;
        let (n, row) = (size as f64, &mut self.rows[level]);
        let (total, variance) = (row.totals[0], row.variances[0]);
        row.drop_oldest(1);
        if row.len == 0 && level > 0 {
            self.rows.pop();
        }
        self.width -= size;
        self.total -= total;
        let left = self.width as f64;
        let off = total / n - self.total / left;
        self.variance -= variance + n * left * off * off / (n + left);
        n
    }

    /// Drops the oldest buckets while any older part differs from the rest.
    fn shrink(&mut self) -> bool {
        let mut changed = false;
        while self.differs() {
            changed = true;
            if self.width as f64 - self.drop_oldest() <= 0.0 {
                break;
            }
        }
        changed
    }

    fn differs(&self) -> bool {
        let width = self.width as f64;
        let (variance, confidence) = (self.variance / width, (2.0 * width.ln() / self.delta).ln());
        let (mut n0, mut n1, mut u0, mut u1) = (0.0, width, 0.0, self.total);
        for (level, row) in self.rows.iter().enumerate().rev() {
            let size = (1u64 << level) as f64;
            for k in 0..row.len {
                n0 += size;
                n1 -= size;
                u0 += row.totals[k];
                u1 -= row.totals[k];
                if level == 0 && k + 1 == row.len {
                    return false;
                }
                if n0 < LEAST_PART || n1 < LEAST_PART {
                    continue;
                }
                let m = 1.0 / (n0 - LEAST_PART + 1.0) + 1.0 / (n1 - LEAST_PART + 1.0);
                let cut = (2.0 * m * variance * confidence).sqrt() + 2.0 / 3.0 * confidence * m;
                if (u0 / n0 - u1 / n1).abs() > cut {
                    return true;
                }
            }
        }
        false
    }

    /// The mean of the window.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.width == 0 { 0.0 } else { self.total / self.width as f64 }
    }

    /// Number of values in the window.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Number of alarms so far.
    #[must_use]
    pub fn alarms(&self) -> u64 {
        self.alarms
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + 64 * size_of::<Row>()) as u64
    }

    /// Serializes the exact state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Adwin, Self::VERSION);
        to.float(self.delta).word(self.width).float(self.total).float(self.variance);
        to.word(self.ticks).word(self.seen).word(self.alarms).byte(u8::from(self.alarmed));
        to.word(self.rows.len() as u64);
        for row in &self.rows {
            to.floats(&row.totals[..row.len]).floats(&row.variances[..row.len]);
        }
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("ADWIN detector", bytes, Kind::Adwin, Self::VERSION)?;
        let delta = from.float()?;
        let mut adwin = from.constructed(Self::new(delta))?;
        (adwin.width, adwin.total, adwin.variance) = (from.word()?, from.float()?, from.float()?);
        (adwin.ticks, adwin.seen, adwin.alarms) = (from.word()?, from.word()?, from.word()?);
        adwin.alarmed = from.byte()? != 0;
        adwin.rows.clear();
        let mut width = 0u64;
        for level in 0..from.word()?.min(63) {
            let (totals, variances) = (from.floats()?, from.floats()?);
            if totals.len() > BUCKETS || totals.len() != variances.len() {
                return from.wrong(format!("{} buckets of one size", totals.len()));
            }
            let mut row = Row::default();
            totals.iter().zip(&variances).for_each(|(&total, &variance)| row.push(total, variance));
            width = width.saturating_add((row.len as u64) << level);
            adwin.rows.push(row);
        }
        let empty = adwin.rows.last().is_none_or(|row| row.len == 0) && width > 0;
        if width != adwin.width || adwin.rows.is_empty() || empty {
            return from.wrong(format!("a window of {} values in buckets of {width}", adwin.width));
        }
        from.end(adwin)
    }
}

/// Page–Hinkley: raises an alarm when the cumulative deviation from the mean has risen, or fallen,
/// by a threshold.
///
/// ```
/// use tidegate_sketch::drift::PageHinkley;
/// let mut test = PageHinkley::new(0.005, 50.0)?;
/// let alarm = (0..2000).position(|i| test.update(if i < 1000 { 0.0 } else { 1.0 }) == Ok(true));
/// assert!(alarm.is_some_and(|at| (1040..1080).contains(&at)));
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PageHinkley {
    delta: f64,
    threshold: f64,
    count: u64,
    mean: f64,
    rise: f64,
    fall: f64,
    least_rise: f64,
    greatest_fall: f64,
    alarmed: bool,
}

impl PageHinkley {
    const VERSION: u8 = 1;
    /// The share of a sum that remains after each value.
    const FORGETTING: f64 = 1.0 - 0.0001;
    /// Values before the first alarm.
    const LEAST_VALUES: u64 = 30;

    /// A detector that ignores changes of the mean below `delta`. A larger `threshold` gives fewer
    /// false alarms and more delay.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `delta` or `threshold` is negative or NaN.
    pub fn new(delta: f64, threshold: f64) -> Result<Self> {
        if !(delta >= 0.0 && delta.is_finite()) {
            return Err(Error::parameter("delta", delta, "it must be a number that is not negative"));
        }
        let threshold = crate::error::positive("threshold", threshold)?;
        Ok(Self {
            delta,
            threshold,
            count: 0,
            mean: 0.0,
            rise: 0.0,
            fall: 0.0,
            least_rise: f64::INFINITY,
            greatest_fall: -1.0,
            alarmed: false,
        })
    }

    /// Forgets the stream.
    pub fn reset(&mut self) {
        (self.count, self.mean, self.rise, self.fall) = (0, 0.0, 0.0, 0.0);
        (self.least_rise, self.greatest_fall, self.alarmed) = (f64::INFINITY, -1.0, false);
    }

    /// Adds a value; returns true if the mean has changed. After an alarm the test restarts.
    ///
    /// # Errors
    /// [`Error::Value`] for a value that is not finite; it changes nothing.
    pub fn update(&mut self, value: f64) -> Result<bool> {
        let value = number(self.count, value)?;
        if self.alarmed {
            self.reset();
        }
        self.count += 1;
        self.mean += (value - self.mean) / self.count as f64;
        let off = value - self.mean;
        self.rise = Self::FORGETTING * self.rise + off - self.delta;
        self.fall = Self::FORGETTING * self.fall + off + self.delta;
        self.least_rise = self.least_rise.min(self.rise);
        self.greatest_fall = self.greatest_fall.max(self.fall);
        let (rise, fall) = (self.rise - self.least_rise, self.greatest_fall - self.fall);
        self.alarmed = self.count >= Self::LEAST_VALUES && (rise > self.threshold || fall > self.threshold);
        Ok(self.alarmed)
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        size_of::<Self>() as u64
    }

    /// Serializes the exact state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::PageHinkley, Self::VERSION);
        to.float(self.delta).float(self.threshold).word(self.count).float(self.mean).float(self.rise);
        to.float(self.fall).float(self.least_rise).float(self.greatest_fall).byte(u8::from(self.alarmed));
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("Page-Hinkley detector", bytes, Kind::PageHinkley, Self::VERSION)?;
        let (delta, threshold) = (from.float()?, from.float()?);
        let mut test = from.constructed(Self::new(delta, threshold))?;
        (test.count, test.mean, test.rise) = (from.word()?, from.float()?, from.float()?);
        (test.fall, test.least_rise, test.greatest_fall) = (from.float()?, from.float()?, from.float()?);
        test.alarmed = from.byte()? != 0;
        from.end(test)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// At most δ of stationary runs raise an alarm.
    #[test]
    fn false_alarms_are_seldom() {
        let (runs, delta) = (10_000, 0.002);
        let false_alarms = (0..runs)
            .filter(|&seed| {
                let (mut adwin, mut draws) = (Adwin::new(delta).unwrap(), Draws::new(seed));
                (0..1000).any(|_| adwin.update(f64::from(draws.positive() < 0.3)).unwrap())
            })
            .count();
        assert!(false_alarms as f64 <= delta * runs as f64, "{false_alarms} of {runs} runs");
    }

    #[test]
    fn is_stored_in_the_middle() {
        let stream = |i: u64| f64::from((i * 7919 % 13) as u32) + if i > 1500 { 3.0 } else { 0.0 };
        let (mut adwin, mut test) = (Adwin::new(0.01).unwrap(), PageHinkley::new(0.005, 20.0).unwrap());
        for i in 0..3000 {
            let mut stored = Adwin::from_bytes(&adwin.to_bytes()).unwrap();
            assert_eq!(stored.update(stream(i)), adwin.update(stream(i)));
            assert_eq!(stored, adwin);
            let mut stored = PageHinkley::from_bytes(&test.to_bytes()).unwrap();
            assert_eq!(stored.update(stream(i)), test.update(stream(i)));
            assert_eq!(stored, test);
        }
        assert!(adwin.alarms() >= 1);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for delta in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(Adwin::new(delta).unwrap_err().to_string().contains(&format!("delta is {delta}")));
        }
        assert!(PageHinkley::new(-1.0, 1.0).is_err() && PageHinkley::new(0.0, 0.0).is_err());
        let mut adwin = Adwin::new(0.1).unwrap();
        adwin.update(1.0).unwrap();
        assert!(adwin.update(f64::NAN).unwrap_err().to_string().contains("the value at 1 is NaN"));
        assert_eq!(adwin.width(), 1);
        let bytes = adwin.to_bytes();
        assert!((0..bytes.len()).all(|n| Adwin::from_bytes(&bytes[..n]).is_err()));
    }
}
