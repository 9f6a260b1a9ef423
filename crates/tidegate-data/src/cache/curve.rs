//! What a cache of any size would give, before there is one: hits, bytes and steadiness.
//!
//! Flow: accesses, sizes and limits -> a [`Point`] for each limit, computed in parallel.
//! Memory: eight bytes an access and thread for Belady's rule, a bit an access for steadiness; the
//! caller's, outside a budget.

use std::num::NonZeroUsize;

use super::admission::AdmissionHash;
use super::min::{Min, Outcome};
use super::tier::Objects;

/// The rule by which a simulated cache keeps objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimulatedPolicy {
    /// A fixed fraction of the objects, the first ones accessed: right for epochs without
    /// replacement.
    Fixed,
    /// Objects that are used again soonest, as far as this epoch and the next tell.
    Min,
    /// Objects that are used again soonest, with the whole future known: an upper bound.
    Optimum,
}

/// How fast bytes are read, and how far ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Supply {
    /// Bytes a second that are read on misses.
    pub bytes_per_s: f64,
    /// Bytes that may be read ahead.
    pub ahead_bytes: u64,
}

/// The result of a cache of one size over the epochs after the first.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Point {
    /// The limit of the cache.
    pub cache_bytes: u64,
    /// The number of accesses.
    pub accesses: u64,
    /// The number of accesses that were hits.
    pub hits: u64,
    /// Bytes of the misses.
    pub read_bytes: u64,
    /// The most accesses a second that never wait for a read.
    pub stall_free_per_s: f64,
}

/// Accesses whose bytes are summed for the computation of steadiness.
const WINDOW: usize = 64;

/// Runs `accesses`, cut in epochs of `epoch`, through caches of each of `limits`.
///
/// The first epoch warms the caches and is not counted, unless it is the only one.
///
/// # Panics
/// If there are no accesses in an epoch, or an object of `sizes` is missing.
pub fn curve(
    accesses: &[u32],
    epoch: usize,
    sizes: &(dyn Objects + Sync),
    policy: SimulatedPolicy,
    supply: Supply,
    limits: &[u64],
) -> Vec<Point> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(limits.len().max(1));
    let objects = accesses.iter().max().map_or(0, |&most| most + 1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut points = Vec::new();
        loop {
            let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(&limit) = limits.get(i) else { return points };
            points.push((i, point(accesses, epoch, objects, sizes, policy, supply, limit)));
        }
    };
    let mut points = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut points = work();
        for other in others {
            match other.join() {
                Ok(more) => points.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        points
    });
    points.sort_by_key(|(i, _)| *i);
    points.into_iter().map(|(_, point)| point).collect()
}

fn point(
    accesses: &[u32],
    epoch: usize,
    objects: u32,
    sizes: &(dyn Objects + Sync),
    policy: SimulatedPolicy,
    supply: Supply,
    limit: u64,
) -> Point {
    let counted = if accesses.len() > epoch { epoch } else { 0 };
    let mut counter = HitCounter { counted, ..HitCounter::default() };
    match policy {
        SimulatedPolicy::Fixed => fixed(accesses, objects, sizes, limit, &mut counter),
        SimulatedPolicy::Min => min(accesses, epoch, 2 * epoch, objects, sizes, limit, &mut counter),
        SimulatedPolicy::Optimum => {
            min(accesses, accesses.len(), accesses.len(), objects, sizes, limit, &mut counter);
        }
    }
    let counted = accesses.len() - counted;
    Point {
        cache_bytes: limit,
        accesses: counted as u64,
        hits: counter.hits,
        read_bytes: counter.windows.iter().sum(),
        stall_free_per_s: stall_free_per_s(&counter.windows, counted, supply),
    }
}

/// Hits, and bytes read in each window of accesses.
#[derive(Debug, Default)]
struct HitCounter {
    counted: usize,
    seen: usize,
    hits: u64,
    windows: Vec<u64>,
}

impl HitCounter {
    fn add(&mut self, hit: bool, bytes: impl FnOnce() -> u64) {
        self.seen += 1;
        if self.seen <= self.counted {
            return;
        }
        if (self.seen - self.counted - 1).is_multiple_of(WINDOW) {
            self.windows.push(0);
        }
        self.hits += u64::from(hit);
        if !hit && let Some(window) = self.windows.last_mut() {
            *window += bytes();
        }
    }
}

/// The policy of [`super::Memory`].
fn fixed(accesses: &[u32], objects: u32, sizes: &dyn Objects, limit: u64, counter: &mut HitCounter) {
    let total: u64 = (0..objects).map(|object| sizes.bytes(object)).sum();
    let admission = AdmissionHash::for_limit(limit, total, u64::from(objects));
    let (mut held, mut here) = (0, vec![false; objects as usize]);
    for &object in accesses {
        let hit = here[object as usize];
        counter.add(hit, || sizes.bytes(object));
        if !hit && admission.admits(u64::from(object)) && held + sizes.bytes(object) <= limit {
            held += sizes.bytes(object);
            here[object as usize] = true;
        }
    }
}

fn min(
    accesses: &[u32],
    epoch: usize,
    horizon: usize,
    objects: u32,
    sizes: &(dyn Objects + Sync),
    limit: u64,
    counter: &mut HitCounter,
) {
    let mut min = Min::new(limit);
    for (i, now) in accesses.chunks(epoch).enumerate() {
        let known = &accesses[i * epoch..(i * epoch + horizon).min(accesses.len())];
        min.set_future(known.to_vec(), objects);
        for &object in now {
            let hit = min.access(sizes, &mut |_| ()) == Outcome::Hit;
            counter.add(hit, || sizes.bytes(object));
        }
    }
}

/// The most accesses a second at which the bytes read ahead never run out.
///
/// Found by bisection, since waiting only grows with speed.
fn stall_free_per_s(windows: &[u64], accesses: usize, supply: Supply) -> f64 {
    let total: u64 = windows.iter().sum();
    if total == 0 {
        return f64::INFINITY;
    }
    let waits = |per_s: f64| {
        let (mut behind, came) = (0.0, supply.bytes_per_s * WINDOW as f64 / per_s);
        windows.iter().any(|&bytes| {
            behind = f64::max(0.0, behind + bytes as f64 - came);
            behind > supply.ahead_bytes as f64
        })
    };
    // At this speed the reads of all misses take as long as the accesses.
    let mean = supply.bytes_per_s * accesses as f64 / total as f64;
    let (mut slow, mut fast) = (0.0, mean * 2.0);
    for _ in 0..40 {
        let half = f64::midpoint(slow, fast);
        if waits(half) {
            fast = half;
        } else {
            slow = half;
        }
    }
    slow
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, MemoryTier, Tier};
    use super::*;
    use tidegate_order::permutation::Permutation;

    const SUPPLY: Supply = Supply { bytes_per_s: 1e6, ahead_bytes: 512 };

    fn shuffles(samples: u64, epochs: u64) -> Vec<u32> {
        let epoch = |e| {
            let order = Permutation::new(samples, 3, e, 0);
            (0..samples).map(move |p| order.apply(p) as u32)
        };
        (0..epochs).flat_map(epoch).collect()
    }

    #[test]
    fn shuffled_epochs_hit_what_fits_and_evenly() {
        let accesses = shuffles(20_000, 4);
        let limits = [0, 5_000, 10_000, 15_000, 20_000];
        let fixed = curve(&accesses, 20_000, &1u64, SimulatedPolicy::Fixed, SUPPLY, &limits);
        let min = curve(&accesses, 20_000, &1u64, SimulatedPolicy::Min, SUPPLY, &limits);
        let optimum = curve(&accesses, 20_000, &1u64, SimulatedPolicy::Optimum, SUPPLY, &limits);
        for (((limit, fixed), min), optimum) in limits.iter().zip(&fixed).zip(&min).zip(&optimum) {
            assert_eq!((fixed.accesses, fixed.hits, optimum.hits), (60_000, 3 * limit, 3 * limit));
            assert_eq!(min.hits, 3 * limit);
            assert_eq!(fixed.read_bytes, 60_000 - fixed.hits);
        }
        // Half of the samples are kept: nearly twice as many a second. Belady's rule has all its
        // hits first and then none.
        assert!(fixed[2].stall_free_per_s > 1.85 * fixed[0].stall_free_per_s, "{fixed:?}");
        assert!(min[2].stall_free_per_s < 1.2 * min[0].stall_free_per_s, "{min:?}");
        assert!(fixed[4].stall_free_per_s.is_infinite());
    }

    /// How much longer, in percent, a consumer takes than without waiting. It uses a sample in
    /// each unit of time; misses are read one after the other, each in `miss_time`, and up to 512
    /// samples are read ahead.
    fn stall(hits: &[bool], miss_time: f64) -> f64 {
        let (mut used, mut disk) = (Vec::with_capacity(hits.len()), 0f64);
        for (i, &hit) in hits.iter().enumerate() {
            let begun = i.checked_sub(512).map_or(0.0, |i| used[i]);
            if !hit {
                disk = disk.max(begun) + miss_time;
            }
            let before: f64 = used.last().copied().unwrap_or(0.0);
            used.push((before + 1.0).max(if hit { begun } else { disk }));
        }
        100.0 * (used[hits.len() - 1] / hits.len() as f64 - 1.0)
    }

    #[test]
    fn in_virtual_time_half_of_the_data_kept_never_stalls_where_lru_does_half_of_the_time() {
        let (samples, bytes) = (20_000, 128);
        let accesses = shuffles(samples, 5);
        let budget = tidegate_core::memory::Budget::new(16 << 20);
        let tier = Memory::new(&budget, samples * bytes, samples);
        // About half of the objects, and the table of their locations.
        tier.set_limit(samples / 2 * bytes + (16_384 << 5));
        let object = vec![7; bytes as usize];
        let fixed: Vec<bool> = accesses
            .iter()
            .map(|&id| {
                let hit = tier.get_lease(id.into()).is_some();
                if !hit {
                    tier.put(id.into(), &[&object]);
                }
                hit
            })
            .collect();
        let (mut last, mut by_use) = (std::collections::HashMap::new(), std::collections::BTreeMap::new());
        let recent: Vec<bool> = accesses
            .iter()
            .enumerate()
            .map(|(now, &id)| {
                let before = last.insert(id, now).filter(|before| by_use.remove(before).is_some());
                by_use.insert(now, id);
                if by_use.len() as u64 > samples / 2 {
                    by_use.pop_first();
                }
                before.is_some()
            })
            .collect();
        let share =
            fixed[samples as usize..].iter().filter(|hit| **hit).count() as f64 / (4 * samples) as f64;
        assert!((0.48..0.53).contains(&share), "{share} of the samples are kept");
        // The disk gives 1.1 times the bytes that the misses need.
        let stalls = |hits: &[bool]| stall(&hits[samples as usize..], 1.0 / (1.1 * (1.0 - share)));
        assert!(
            stalls(&fixed) <= 2.0 && stalls(&recent) > 45.0,
            "{} and {}",
            stalls(&fixed),
            stalls(&recent)
        );
    }

    #[test]
    fn with_replacement_the_known_future_beats_a_fixed_set() {
        let mut stream =
            tidegate_order::random::Stream::new(1, 0, 0, 0, tidegate_order::random::Purpose::Replace);
        // Zipf over 2,000 objects of several sizes.
        let mut draw = || {
            let x = (stream.below(1 << 20) as f64 + 1.0) / f64::from(1 << 20);
            (2000f64.powf(x) - 1.0) as u32
        };
        let accesses: Vec<u32> = (0..60_000).map(|_| draw()).collect();
        let sizes: Vec<u64> = (0..2000).map(|i| 50 + i * 37 % 100).collect();
        let limits = [20_000];
        let point = |policy| curve(&accesses, 10_000, &sizes, policy, SUPPLY, &limits)[0].hits;
        let (fixed, min, optimum) =
            (point(SimulatedPolicy::Fixed), point(SimulatedPolicy::Min), point(SimulatedPolicy::Optimum));
        assert!(fixed < min && min <= optimum && min * 100 >= optimum * 98, "{fixed} {min} {optimum}");
    }
}
