//! Sliding windows: exact aggregates of the last values, and approximate event counts.
//!
//! Flow: values -> [`Window`] -> minimum, maximum, sum or mean of the last n; events ->
//! [`EventCount`] -> the number of events among the last n values.
//! Memory: 16 bytes per value of a window; an event count takes at most (1/ε + 4)/2 · log2(n)
//! words.
//!
//! Event counts are within ε of the truth, in logarithmic memory. A window is two stacks
//! (Tangwongsan et al., «General incremental sliding-window aggregation», 2015). Nothing is
//! subtracted, so a value that has left leaves no trace in a sum. An event count is an exponential
//! histogram (Datar, Gionis, Indyk and Motwani, 2002).

use std::collections::VecDeque;

use crate::codec::{Kind, Reader, Writer};
use crate::error::fraction;
use crate::{Error, Result};

/// The aggregate of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Aggregate {
    /// The smallest value.
    Min = 0,
    /// The largest value.
    Max = 1,
    /// The sum of the values.
    Sum = 2,
    /// The mean of the values.
    Mean = 3,
}

impl Aggregate {
    const ALL: [Self; 4] = [Self::Min, Self::Max, Self::Sum, Self::Mean];

    fn neutral(self) -> f64 {
        match self {
            Self::Min => f64::INFINITY,
            Self::Max => f64::NEG_INFINITY,
            Self::Sum | Self::Mean => 0.0,
        }
    }

    fn join(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Min => a.min(b),
            Self::Max => a.max(b),
            Self::Sum | Self::Mean => a + b,
        }
    }
}

/// An aggregate of the last values.
///
/// ```
/// use tidegate_sketch::window::{Aggregate, Window};
/// let mut slowest = Window::new(3, Aggregate::Max)?;
/// let values = [5.0, 1.0, 2.0, 3.0].into_iter();
/// let seen: Vec<f64> = values.map(|x| slowest.push(x)).collect::<Result<_, _>>()?;
/// assert_eq!(seen, [5.0, 5.0, 5.0, 3.0]);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    len: usize,
    aggregate: Aggregate,
    /// Aggregates of the older values, each from one value to the end; the oldest value last.
    old: Vec<f64>,
    /// The newer values, and their aggregate.
    new: Vec<f64>,
    new_together: f64,
}

impl Window {
    const VERSION: u8 = 1;

    /// A window of the last `len` values.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `len` is 0.
    pub fn new(len: usize, aggregate: Aggregate) -> Result<Self> {
        if len == 0 || len > 1 << 40 {
            return Err(Error::parameter("len", len, "a window has between 1 and 2^40 values"));
        }
        let new_together = aggregate.neutral();
        Ok(Self { len, aggregate, old: Vec::new(), new: Vec::new(), new_together })
    }

    /// Adds a value and returns the aggregate of the window.
    ///
    /// # Errors
    /// [`Error::Value`] for NaN, which would stay in a sum as long as it is in the window.
    pub fn push(&mut self, value: f64) -> Result<f64> {
        if value.is_nan() {
            return Err(Error::value(self.count(), value, "a window holds numbers"));
        }
        if self.count() == self.len {
            if self.old.is_empty() {
                let mut together = self.aggregate.neutral();
                while let Some(value) = self.new.pop() {
                    together = self.aggregate.join(value, together);
                    self.old.push(together);
                }
                self.new_together = self.aggregate.neutral();
            }
            self.old.pop();
        }
        self.new.push(value);
        self.new_together = self.aggregate.join(self.new_together, value);
        Ok(self.value())
    }

    /// Number of values in the window.
    #[must_use]
    pub fn count(&self) -> usize {
        self.old.len() + self.new.len()
    }

    /// The current aggregate; the neutral element if the window is empty.
    #[must_use]
    pub fn value(&self) -> f64 {
        let old = self.old.last().copied().unwrap_or(self.aggregate.neutral());
        let together = self.aggregate.join(old, self.new_together);
        match self.aggregate {
            Aggregate::Mean => together / self.count() as f64,
            _ => together,
        }
    }

    /// Forgets all values.
    pub fn reset(&mut self) {
        self.old.clear();
        self.new.clear();
        self.new_together = self.aggregate.neutral();
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + 2 * (self.len + 1) * 8) as u64
    }

    /// Serializes the exact state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Window, Self::VERSION);
        to.byte(self.aggregate as u8).word(self.len as u64);
        to.floats(&self.old).floats(&self.new).float(self.new_together);
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("window", bytes, Kind::Window, Self::VERSION)?;
        let (kind, len) = (from.byte()?, from.word()? as usize);
        let (old, new, new_together) = (from.floats()?, from.floats()?, from.float()?);
        let Some(&aggregate) = Aggregate::ALL.get(usize::from(kind)) else {
            return from.wrong(format!("an aggregate of kind {kind}"));
        };
        if len == 0 || old.len() + new.len() > len {
            return from.wrong(format!("{} values in a window of {len}", old.len() + new.len()));
        }
        from.end(Self { len, aggregate, old, new, new_together })
    }
}

/// The number of events among the last values, within ε of the true number.
///
/// ```
/// use tidegate_sketch::window::EventCount;
/// let mut failures = EventCount::new(10_000, 0.05)?;
/// (0..100_000).for_each(|i| failures.push(i % 4 == 0));
/// assert!((failures.estimate() / 2500.0 - 1.0).abs() <= 0.05);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EventCount {
    window: u64,
    epsilon: f64,
    now: u64,
    /// For level l: the time of the newest event of each bucket of 2^l events, newest first.
    levels: Vec<VecDeque<u64>>,
    /// Number of events in all buckets.
    total: u64,
}

impl EventCount {
    const VERSION: u8 = 1;

    /// A counter over the last `window` values.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the window is empty or `epsilon` is not between 0 and 1.
    pub fn new(window: u64, epsilon: f64) -> Result<Self> {
        if window == 0 {
            return Err(Error::parameter("window", window, "a window has at least one value"));
        }
        let epsilon = fraction("epsilon", epsilon)?;
        Ok(Self { window, epsilon, now: 0, levels: Vec::new(), total: 0 })
    }

    /// The most buckets of a size.
    fn most(&self) -> usize {
        // A window never needs more than it has values.
        (0.5 / self.epsilon).ceil().min(self.window as f64) as usize + 1
    }

    /// Adds a value: whether it is an event.
    pub fn push(&mut self, event: bool) {
        self.now += 1;
        while let Some(oldest) = self.levels.last() {
            match oldest.back() {
                Some(&at) if self.now - at >= self.window => {
                    self.total -= 1 << (self.levels.len() - 1);
                    if let Some(oldest) = self.levels.last_mut() {
                        oldest.pop_back();
                    }
                }
                Some(_) => break,
                None => {
                    self.levels.pop();
                }
            }
        }
        if !event {
            return;
        }
        self.total += 1;
        let (most, mut at, mut level) = (self.most(), self.now, 0);
        loop {
            if level == self.levels.len() {
                self.levels.push(VecDeque::new());
            }
            let buckets = &mut self.levels[level];
            buckets.push_front(at);
            if buckets.len() <= most {
                return;
            }
            // Merges the two oldest buckets; the new one has the time of the newer.
            buckets.pop_back();
            let Some(newer) = buckets.pop_back() else { return };
            (at, level) = (newer, level + 1);
        }
    }

    /// The number of events in the window, off by at most ε times the true number.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        let oldest = if self.levels.is_empty() { 1 } else { 1u64 << (self.levels.len() - 1) };
        // Between one and all events of the oldest bucket are still in the window.
        self.total as f64 - (oldest - 1) as f64 / 2.0
    }

    /// Memory it takes now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let level = size_of::<VecDeque<u64>>() + 8 * (self.most() + 1).next_power_of_two();
        (size_of::<Self>() + self.levels.len() * level) as u64
    }

    /// Serializes the state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Histogram, Self::VERSION);
        to.word(self.window).float(self.epsilon).word(self.now).word(self.levels.len() as u64);
        for buckets in &self.levels {
            to.words(buckets.iter().copied());
        }
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("event count", bytes, Kind::Histogram, Self::VERSION)?;
        let (window, epsilon) = (from.word()?, from.float()?);
        let mut count = from.constructed(Self::new(window, epsilon))?;
        count.now = from.word()?;
        for level in 0..from.word()?.min(63) {
            let buckets: VecDeque<u64> = from.words()?.into();
            if buckets.len() > count.most() || buckets.iter().any(|&at| at > count.now) {
                return from.wrong(format!("{} buckets of one size", buckets.len()));
            }
            count.total += (buckets.len() as u64) << level;
            count.levels.push(buckets);
        }
        from.end(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The oracle scans the whole window each time.
        #[test]
        fn windows_agree_with_brute_force(
            values in prop::collection::vec(-1000i32..1000, 0..300), len in 1usize..40, kind in 0usize..4,
        ) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let mut window = Window::new(len, Aggregate::ALL[kind]).unwrap();
            for n in 0..values.len() {
                let last = &values[(n + 1).saturating_sub(len)..=n];
                let sum: f64 = last.iter().sum();
                let truth = [
                    last.iter().copied().fold(f64::INFINITY, f64::min),
                    last.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    sum,
                    sum / last.len() as f64,
                ];
                prop_assert_eq!(window.push(values[n]).unwrap(), truth[kind]);
                if n % 17 == 0 {
                    window = Window::from_bytes(&window.to_bytes()).unwrap();
                }
            }
        }

        /// Runs of events and of none, the worst case for a histogram.
        #[test]
        fn event_counts_are_within_epsilon(
            runs in prop::collection::vec((any::<bool>(), 1usize..400), 1..30), window in 1u64..1000,
            epsilon in prop::sample::select(vec![0.01, 0.05, 0.1, 0.3, 0.5]),
        ) {
            let mut count = EventCount::new(window, epsilon).unwrap();
            let mut events = Vec::new();
            for (event, times) in runs {
                for _ in 0..times {
                    count.push(event);
                    events.push(event);
                    let last = &events[events.len().saturating_sub(window as usize)..];
                    let truth = last.iter().filter(|&&e| e).count() as f64;
                    let error = (count.estimate() - truth).abs();
                    prop_assert!(error <= epsilon * truth, "{} for {truth} of {}", count.estimate(), window);
                }
            }
            prop_assert_eq!(EventCount::from_bytes(&count.to_bytes()).unwrap(), count);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(Window::new(0, Aggregate::Sum).is_err());
        let mut window = Window::new(2, Aggregate::Sum).unwrap();
        assert!(window.push(f64::NAN).unwrap_err().to_string().contains("NaN"));
        for epsilon in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(EventCount::new(10, epsilon).is_err());
        }
        // Large values leave no trace.
        window.push(1e300).unwrap();
        window.push(1.0).unwrap();
        assert_eq!(window.push(2.0).unwrap(), 3.0);
        assert!(Window::from_bytes(&EventCount::new(1, 0.5).unwrap().to_bytes()).is_err());
    }
}
