//! Reservoir sampling of a stream of unknown length, uniform or weighted, with skips.
//!
//! Flow: ids, weights -> [`Reservoir::skip`], [`Reservoir::offer`] -> a sample without
//! replacement; readers need not read skipped values.
//! Memory: 16 bytes per id of the sample.
//!
//! Each value has an exponential key with its weight as rate, and the k smallest keys stay
//! (Efraimidis and Spirakis, «Weighted random sampling with a reservoir», 2006). Keys are drawn
//! only for values that stay: the weight that passes until the next one is exponential too (their
//! A-ExpJ), and with equal weights it is a number of values to skip (Li's Algorithm L, 1994).
//! Because keys are kept, two samples merge by the k smallest of both.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::codec::{Kind, Reader, Writer};
use crate::random::Draws;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    key: f64,
    id: u64,
}

impl Eq for Entry {}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.total_cmp(&other.key).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A sample of a stream, without replacement.
///
/// ```
/// use tidegate_sketch::reservoir::Reservoir;
/// let mut sample = Reservoir::new(10, 7)?;
/// let (mut at, stream, mut looked_at) = (0, 1_000_000, 0);
/// while at + sample.skip() < stream {
///     let skipped = sample.skip();
///     sample.pass(skipped);
///     sample.offer(at + skipped, 1.0)?; // only these are read
///     (at, looked_at) = (at + skipped + 1, looked_at + 1);
/// }
/// sample.pass(stream - at);
/// assert_eq!((sample.ids().len(), sample.seen()), (10, 1_000_000));
/// assert!(looked_at < 300);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Reservoir {
    k: usize,
    /// Samples with the same seed use the same draws and are not independent.
    seed: u64,
    draws: Draws,
    /// Largest key first.
    entries: BinaryHeap<Entry>,
    seen: u64,
    /// Weight to pass before the next value stays.
    left: f64,
}

impl PartialEq for Reservoir {
    fn eq(&self, other: &Self) -> bool {
        let state =
            |r: &Self| (r.k, r.seed, r.draws, r.seen, r.left.to_bits(), r.entries.clone().into_sorted_vec());
        state(self) == state(other)
    }
}

impl Reservoir {
    const VERSION: u8 = 1;

    /// A sample of `k` values, with random numbers from `seed`.
    ///
    /// # Errors
    /// [`Error::Parameter`] if k is 0 or above 2^32.
    pub fn new(k: usize, seed: u64) -> Result<Self> {
        if k == 0 || k as u64 > 1 << 32 {
            return Err(Error::parameter("k", k, "a sample has between 1 and 2^32 values"));
        }
        Ok(Self { k, seed, draws: Draws::new(seed), entries: BinaryHeap::new(), seen: 0, left: 0.0 })
    }

    fn greatest(&self) -> Option<f64> {
        self.entries.peek().filter(|_| self.entries.len() == self.k).map(|entry| entry.key)
    }

    /// How many values of weight one may be skipped unread before the next must be offered.
    #[must_use]
    pub fn skip(&self) -> u64 {
        if self.greatest().is_none() { 0 } else { self.left as u64 }
    }

    /// Skips this many values of weight one, at most [`Reservoir::skip`].
    pub fn pass(&mut self, values: u64) {
        self.seen += values;
        self.left -= values as f64;
    }

    /// Offers the next value. Returns the id that leaves the sample; `None` if the sample still
    /// grows, or stays as it is.
    ///
    /// # Errors
    /// [`Error::Value`] if the weight is negative, infinite or NaN. A weight of zero is never
    /// sampled.
    pub fn offer(&mut self, id: u64, weight: f64) -> Result<Option<u64>> {
        if !(weight >= 0.0 && weight.is_finite()) {
            return Err(Error::value(self.seen as usize, weight, "weights are finite and not negative"));
        }
        self.seen += 1;
        if weight == 0.0 {
            return Ok(None);
        }
        let Some(greatest) = self.greatest() else {
            let key = self.draws.exponential() / weight;
            if self.entries.len() == self.entries.capacity() {
                // Never above k, which is what `size_bytes` reports.
                self.entries.reserve_exact((self.k - self.entries.len()).min(self.entries.len().max(64)));
            }
            self.entries.push(Entry { key, id });
            self.draw_next();
            return Ok(None);
        };
        if self.left >= weight {
            self.left -= weight;
            return Ok(None);
        }
        // A key below the largest one: an exponential distribution, truncated there.
        let below = -(-greatest * weight).exp_m1();
        let key = -(-self.draws.positive() * below).ln_1p() / weight;
        let left = self.entries.pop();
        self.entries.push(Entry { key, id });
        self.draw_next();
        Ok(left.map(|entry| entry.id))
    }

    /// Offers this many ids of weight one; `id` returns the id at an index and is called only for
    /// values that are not skipped.
    fn offer_places(&mut self, values: u64, id: impl Fn(u64) -> u64) {
        let mut at = 0;
        while at < values && self.skip() < values - at {
            let skipped = self.skip();
            self.pass(skipped);
            // A weight of one is always accepted, and the id that leaves is of no interest.
            self.offer(id(at + skipped), 1.0).ok();
            at += skipped + 1;
        }
        self.pass(values - at);
    }

    /// Offers consecutive ids of weight one, from `first` on.
    pub fn offer_run(&mut self, first: u64, values: u64) {
        self.offer_places(values, |place| first + place);
    }

    /// Offers ids of weight one.
    pub fn offer_ids(&mut self, ids: &[u64]) {
        self.offer_places(ids.len() as u64, |place| ids[place as usize]);
    }

    fn draw_next(&mut self) {
        self.left = match self.greatest() {
            Some(greatest) => self.draws.exponential() / greatest,
            None => 0.0,
        };
    }

    /// The sample, in no particular order.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.entries.clone().into_sorted_vec().into_iter().map(|entry| entry.id).collect()
    }

    /// Number of values so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Merges the sample of another stream. The streams must be disjoint and the seeds different.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the sizes differ or the seeds are equal.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Error::mismatch("reservoirs", "k", self.k, other.k)?;
        if self.seed == other.seed && self.seen > 0 && other.seen > 0 {
            let why = format!(
                "both have the seed {} and therefore the same draws: give each another seed",
                self.seed
            );
            return Err(Error::Mismatch { what: "reservoirs", why });
        }
        for &entry in &other.entries {
            self.entries.push(entry);
            if self.entries.len() > self.k {
                self.entries.pop();
            }
        }
        self.seen += other.seen;
        self.draw_next();
        Ok(())
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.k * size_of::<Entry>()) as u64
    }

    /// Serializes the state; a sketch read from it continues in the same way.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Reservoir, Self::VERSION);
        to.word(self.k as u64).word(self.seed).word(self.draws.0).word(self.seen).float(self.left);
        let entries = self.entries.clone().into_sorted_vec();
        to.words(entries.iter().map(|entry| entry.id)).words(entries.iter().map(|entry| entry.key.to_bits()));
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("reservoir", bytes, Kind::Reservoir, Self::VERSION)?;
        let (k, seed, draws) = (from.word()? as usize, from.word()?, Draws(from.word()?));
        let (seen, left) = (from.word()?, from.float()?);
        let (ids, keys) = (from.words()?, from.floats()?);
        if ids.len() != keys.len() || ids.len() > k || k == 0 || keys.iter().any(|key| !key.is_finite()) {
            return from.wrong(format!("{} ids and {} keys in a sample of {k}", ids.len(), keys.len()));
        }
        let entries = ids.into_iter().zip(keys).map(|(id, key)| Entry { key, id }).collect();
        from.end(Self { k, seed, draws, entries, seen, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(n: u64, k: usize, seed: u64) -> Vec<u64> {
        let mut sample = Reservoir::new(k, seed).unwrap();
        sample.offer_run(0, n);
        assert_eq!(sample.seen(), n);
        let mut ids = sample.ids();
        ids.sort_unstable();
        ids
    }

    /// Every subset of 3 of 8 is equally frequent: 56 cells.
    #[test]
    fn every_subset_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        let runs = 56_000;
        for seed in 0..runs {
            *counts.entry(uniform(8, 3, seed)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 56);
        let expected = f64::from(runs as u32) / 56.0;
        let chi: f64 = counts.values().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
        assert!(chi < 55.0 + 5.0 * 110f64.sqrt(), "chi-square {chi} over 55 degrees");
    }

    /// Early and late values of a long stream stay equally often, merged or not.
    #[test]
    fn inclusion_is_uniform() {
        let (n, k, runs) = (1000u64, 20, 4000u64);
        for merged in [false, true] {
            let mut counts = [0u32; 10];
            for seed in 0..runs {
                let mut sample = Reservoir::new(k, 2 * seed).unwrap();
                if merged {
                    sample.offer_run(0, n / 4);
                    let mut other = Reservoir::new(k, 2 * seed + 1).unwrap();
                    other.offer_run(n / 4, n / 2);
                    sample.merge(&other).unwrap();
                    sample.offer_run(3 * n / 4, n / 4);
                } else {
                    sample.offer_run(0, n);
                }
                sample.ids().iter().for_each(|id| counts[(id * 10 / n) as usize] += 1);
            }
            let expected = (runs * k as u64) as f64 / 10.0;
            let chi: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
            assert!(chi < 9.0 + 5.0 * 18f64.sqrt(), "chi-square {chi} over 9 degrees, merged {merged}");
        }
    }

    /// A-Res draws a key for every value. A-ExpJ, which jumps, must have the same distribution,
    /// and both that of successive draws.
    #[test]
    fn jumps_sample_as_keys_of_all_values_do() {
        let weights = [1.0, 2.0, 3.0, 4.0, 0.5, 0.0];
        let runs = 60_000;
        let total: f64 = weights.iter().sum();
        let pair = |a: usize, b: usize| {
            let of = |a: usize, b: usize| weights[a] / total * weights[b] / (total - weights[a]);
            of(a, b) + of(b, a)
        };
        let res = |seed| {
            let mut draws = Draws::new(seed);
            let mut keys: Vec<(f64, usize)> = (0..5).map(|i| (draws.exponential() / weights[i], i)).collect();
            keys.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut two = [keys[0].1, keys[1].1];
            two.sort_unstable();
            two
        };
        let jump = |seed| {
            let mut sample = Reservoir::new(2, seed).unwrap();
            for (id, weight) in weights.into_iter().enumerate() {
                sample.offer(id as u64, weight).unwrap();
            }
            let mut two: Vec<usize> = sample.ids().into_iter().map(|id| id as usize).collect();
            two.sort_unstable();
            [two[0], two[1]]
        };
        let chi = |sampled: &dyn Fn(u64) -> [usize; 2]| {
            let mut counts = std::collections::BTreeMap::new();
            (0..runs).for_each(|seed| *counts.entry(sampled(seed)).or_insert(0u32) += 1);
            assert_eq!(counts.len(), 10);
            counts
                .into_iter()
                .map(|([a, b], count)| {
                    let expected = pair(a, b) * runs as f64;
                    (f64::from(count) - expected).powi(2) / expected
                })
                .sum::<f64>()
        };
        for (name, chi) in [("A-Res", chi(&res)), ("A-ExpJ", chi(&jump))] {
            assert!(chi < 9.0 + 5.0 * 18f64.sqrt(), "{name}: chi-square {chi} over 9 degrees");
        }
    }

    #[test]
    fn goes_on_where_it_was_stored() {
        let mut whole = Reservoir::new(50, 3).unwrap();
        whole.offer_run(0, 5000);
        let mut stored = Reservoir::from_bytes(&whole.to_bytes()).unwrap();
        assert_eq!(stored, whole);
        whole.offer_run(5000, 100_000);
        stored.offer_run(5000, 60_000);
        stored.offer_run(65_000, 40_000);
        assert_eq!(stored.seen(), whole.seen());
        assert_eq!(stored.ids().len(), 50);
        assert_eq!(stored, whole);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(Reservoir::new(0, 1).unwrap_err().to_string().contains("k is 0"));
        let mut sample = Reservoir::new(2, 1).unwrap();
        for weight in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(sample.offer(0, weight).unwrap_err().to_string().contains(&weight.to_string()));
        }
        sample.offer(3, 0.0).unwrap();
        assert!(sample.ids().is_empty());
        let other = Reservoir::new(3, 1).unwrap();
        assert!(sample.merge(&other).unwrap_err().to_string().contains("k is 2 in one and 3"));
    }
}
