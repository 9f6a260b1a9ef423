//! Change detection, so that only moved metrics are sent and only changed samples processed.
//!
//! Flow: values -> [`SendOnDelta`] -> the few worth sending; (id, bytes) -> [`Unchanged`] ->
//! whether to process them again.
//! Memory: 16 bytes per pending event; 48 bytes per remembered id, up to a capacity.
//!
//! A false «unchanged» would lose data. So metrics are compared with a stated bound and bytes with
//! a 128-bit hash, never with a probabilistic filter, and an id that is not remembered counts as
//! changed. Reference: Miskowicz, «Send-on-delta concept», 2006.

use std::collections::{HashMap, VecDeque};

use crate::codec::{Kind, Reader, Writer};
use crate::error::positive;
use crate::hash::hash_bytes;
use crate::{Error, Result};

/// Sends a metric when it differs by more than `delta` from the value last sent, so a receiver is
/// never off by more.
///
/// ```
/// use tidegate_sketch::event::SendOnDelta;
/// let mut loss = SendOnDelta::new(0.1, 8)?;
/// let values = [1.0, 1.05, 1.2, 1.15].into_iter();
/// let sent = values.map(|x| loss.offer(x)).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(sent, [true, false, true, false]);
/// assert_eq!(loss.drain(), [(0, 1.0), (2, 1.2)]);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SendOnDelta {
    delta: f64,
    capacity: usize,
    last: Option<f64>,
    waiting: VecDeque<(u64, f64)>,
    seen: u64,
    sent: u64,
    dropped: u64,
}

impl SendOnDelta {
    const VERSION: u8 = 1;

    /// At most `capacity` events stay pending; after that each new event drops the oldest, which
    /// is counted.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `delta` is not positive or `capacity` is 0.
    pub fn new(delta: f64, capacity: usize) -> Result<Self> {
        if capacity == 0 || capacity > 1 << 40 {
            return Err(Error::parameter("capacity", capacity, "give between 1 and 2^40 pending events"));
        }
        let delta = positive("delta", delta)?;
        Ok(Self { delta, capacity, last: None, waiting: VecDeque::new(), seen: 0, sent: 0, dropped: 0 })
    }

    /// Adds a value; returns true if it is an event.
    ///
    /// # Errors
    /// [`Error::Value`] for NaN.
    pub fn offer(&mut self, value: f64) -> Result<bool> {
        if value.is_nan() {
            return Err(Error::value(self.seen as usize, value, "NaN cannot be compared with a bound"));
        }
        let at = self.seen;
        self.seen += 1;
        // The difference of two equal infinities is NaN, but they are equal.
        if self.last.is_some_and(|last| value == last || (value - last).abs() <= self.delta) {
            return Ok(false);
        }
        self.last = Some(value);
        self.sent += 1;
        if self.waiting.len() >= self.capacity {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back((at, value));
        Ok(true)
    }

    /// Removes and returns pending events: (index in the stream, value).
    pub fn drain(&mut self) -> Vec<(u64, f64)> {
        self.waiting.drain(..).collect()
    }

    /// (values, events, events that were dropped).
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.seen, self.sent, self.dropped)
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + 16 * self.capacity.next_power_of_two()) as u64
    }

    /// Serializes the state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Delta, Self::VERSION);
        to.float(self.delta).word(self.capacity as u64).float(self.last.unwrap_or(f64::NAN));
        to.word(self.seen).word(self.sent).word(self.dropped);
        to.words(self.waiting.iter().map(|w| w.0)).words(self.waiting.iter().map(|w| w.1.to_bits()));
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("send-on-delta", bytes, Kind::Delta, Self::VERSION)?;
        let (delta, capacity) = (from.float()?, from.word()? as usize);
        let mut state = from.constructed(Self::new(delta, capacity))?;
        state.last = Some(from.float()?).filter(|last| !last.is_nan());
        (state.seen, state.sent, state.dropped) = (from.word()?, from.word()?, from.word()?);
        let (places, values) = (from.words()?, from.floats()?);
        if places.len() != values.len() || places.len() > state.capacity {
            return from.wrong(format!(
                "{} indices and {} values of pending events",
                places.len(),
                values.len()
            ));
        }
        state.waiting = places.into_iter().zip(values).collect();
        from.end(state)
    }
}

/// Recognizes samples whose bytes have not changed.
///
/// ```
/// use tidegate_sketch::event::Unchanged;
/// let mut seen = Unchanged::new(1000)?;
/// assert!(seen.changed(7, b"an image"));
/// assert!(!seen.changed(7, b"an image"));
/// assert!(seen.changed(7, b"another"));
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchanged {
    capacity: usize,
    hashes: HashMap<u64, (u64, u64)>,
    skipped: u64,
    forgotten: u64,
}

impl Unchanged {
    const VERSION: u8 = 1;

    /// Remembers up to `capacity` ids; all other ids count as changed.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `capacity` is 0.
    pub fn new(capacity: usize) -> Result<Self> {
        if capacity == 0 || capacity > 1 << 40 {
            return Err(Error::parameter("capacity", capacity, "give between 1 and 2^40 ids"));
        }
        Ok(Self { capacity, hashes: HashMap::new(), skipped: 0, forgotten: 0 })
    }

    /// Whether the bytes differ from those of the previous call for `id`.
    pub fn changed(&mut self, id: u64, bytes: &[u8]) -> bool {
        let hash = hash_bytes(bytes);
        if let Some(before) = self.hashes.get_mut(&id) {
            let changed = std::mem::replace(before, hash) != hash;
            self.skipped += u64::from(!changed);
            return changed;
        }
        if self.hashes.len() < self.capacity {
            self.hashes.insert(id, hash);
        } else {
            self.forgotten += 1;
        }
        true
    }

    /// (remembered ids, calls that found no change, ids for which there was no space).
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.hashes.len() as u64, self.skipped, self.forgotten)
    }

    /// The most memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + (self.capacity * 8 / 7 + 1).next_power_of_two() * 25) as u64
    }

    /// Serializes the state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut rows: Vec<_> = self.hashes.iter().map(|(&id, &hash)| (id, hash)).collect();
        rows.sort_unstable();
        let mut to = Writer::new(Kind::Unchanged, Self::VERSION);
        to.word(self.capacity as u64).word(self.skipped).word(self.forgotten);
        to.words(rows.iter().map(|r| r.0))
            .words(rows.iter().map(|r| r.1.0))
            .words(rows.iter().map(|r| r.1.1));
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("table of hashes", bytes, Kind::Unchanged, Self::VERSION)?;
        let capacity = from.word()? as usize;
        let mut state = from.constructed(Self::new(capacity))?;
        (state.skipped, state.forgotten) = (from.word()?, from.word()?);
        let (ids, low, high) = (from.words()?, from.words()?, from.words()?);
        if ids.len() != low.len() || ids.len() != high.len() || ids.len() > state.capacity {
            return from.wrong(format!(
                "{} ids, {} and {} halves of hashes",
                ids.len(),
                low.len(),
                high.len()
            ));
        }
        state.hashes = ids.into_iter().zip(low.into_iter().zip(high)).collect();
        from.end(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A receiver is never off by more than the bound, and no more is sent than the changes
        /// require.
        #[test]
        fn the_bound_holds(values in prop::collection::vec(-100.0..100.0f64, 1..200), delta in 0.01..50.0f64) {
            let mut metric = SendOnDelta::new(delta, 1000).unwrap();
            let mut heard = f64::NAN;
            for value in values {
                if metric.offer(value).unwrap() {
                    heard = value;
                }
                prop_assert!((heard - value).abs() <= delta);
            }
            prop_assert_eq!(SendOnDelta::from_bytes(&metric.to_bytes()).unwrap(), metric);
        }
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let mut metric = SendOnDelta::new(0.5, 2).unwrap();
        for value in [1.0, 2.0, 3.0] {
            metric.offer(value).unwrap();
        }
        assert_eq!(metric.counts(), (3, 3, 1));
        assert_eq!(metric.drain(), [(1, 2.0), (2, 3.0)]);
        assert!(metric.offer(f64::NAN).is_err());
        assert!(SendOnDelta::new(0.0, 1).is_err() && SendOnDelta::new(1.0, 0).is_err());

        let mut seen = Unchanged::new(2).unwrap();
        for id in 0..3 {
            assert!(seen.changed(id, b"x"));
        }
        assert!(seen.changed(2, b"x") && !seen.changed(1, b"x"));
        assert_eq!(seen.counts(), (2, 1, 2));
        assert_eq!(Unchanged::from_bytes(&seen.to_bytes()).unwrap(), seen);
    }
}
