//! The first tier: samples in memory, lent without a copy.
//!
//! Flow: [`Memory::put`] copies an object behind the last one of a segment; [`Memory::lend`] gives it out.
//! Memory: segments of some MiB ([`Log`]) and the table of places (account `cache.memory`), taken when they are needed at the lowest
//! priority, given back a segment at a time when the limit falls or others lack memory.
//!
//! Objects are packed one behind another, since the set that is kept does not change: blocks of whole pages would waste half a
//! page each, and a heap would fragment. A segment lives as long as any of its objects is lent.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::memory::{Account, Budget, Grant, Lease, Log, PAGE_BYTES, Priority, Reclaim};

use super::{Share, Tier, mix};

/// The largest segment; a tier has 16 of them if it is small.
const SEGMENT_BYTES: u64 = 4 << 20;
/// What the table takes at most for each place it has room for: a key, a place and a tag, in powers of two 7/8 full.
const PLACE_BYTES: u64 = 32;

/// Spreads keys by [`mix`].
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = mix(self.0 ^ u64::from(byte)));
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = mix(key);
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u32,
    start: u32,
    len: u32,
}

#[derive(Debug)]
struct State {
    limit: u64,
    held: u64,
    share: Share,
    places: HashMap<u64, Place, BuildHasherDefault<Mix>>,
    /// All but the last are full.
    segments: Vec<Log>,
    table: Option<Grant>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Memory {
    budget: Budget,
    total_bytes: u64,
    count: u64,
    state: Mutex<State>,
}

impl Memory {
    /// An empty tier for a source of `count` objects and `total_bytes`; it holds nothing until it has a limit.
    #[must_use]
    pub fn new(budget: &Budget, total_bytes: u64, count: u64) -> Arc<Self> {
        let state = State {
            limit: 0,
            held: 0,
            share: Share::fitting(0, total_bytes, count),
            places: HashMap::default(),
            segments: Vec::new(),
            table: None,
        };
        let tier = Arc::new(Self { budget: budget.clone(), total_bytes, count, state: Mutex::new(state) });
        budget.reclaim_from(&(Arc::clone(&tier) as Arc<dyn Reclaim>));
        tier
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of an object, if it is here.
    #[must_use]
    pub fn lend(&self, key: u64) -> Option<Lease> {
        let state = self.state();
        let place = state.places.get(&key)?;
        let (start, len) = (place.start as usize, place.len as usize);
        Some(state.segments.get(place.segment as usize)?.lend(start..start + len))
    }
}

impl State {
    fn has_room(&self, len: u64) -> bool {
        self.held + len <= self.limit || self.segments.last().is_some_and(|log| log.left() as u64 >= len)
    }

    /// Room behind the last object, in a new segment if need be.
    fn room(&mut self, budget: &Budget, len: u64) -> Option<&mut Log> {
        if self.segments.last().is_none_or(|log| (log.left() as u64) < len) {
            let left = self.limit.saturating_sub(self.held) / PAGE_BYTES * PAGE_BYTES;
            let usual = (self.limit / 16).clamp(PAGE_BYTES, SEGMENT_BYTES).next_multiple_of(PAGE_BYTES);
            let alone = len.next_multiple_of(PAGE_BYTES);
            // Half an object is wasted at the end of a segment, half a page behind an object that is alone.
            let bytes = if len * len > PAGE_BYTES * usual { alone } else { alone.max(usual.min(left)) };
            if bytes > left {
                return None;
            }
            let block = budget.try_block(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
            self.held += bytes;
            self.segments.push(Log::new(block));
        }
        self.segments.last_mut()
    }

    /// Makes the table large enough for one more place.
    fn grow_table(&mut self, budget: &Budget) -> Option<()> {
        if self.places.len() < self.places.capacity() {
            return Some(());
        }
        let more = (2 * self.places.capacity()).max(64);
        let bytes = more as u64 * PLACE_BYTES;
        let old = self.table.as_ref().map_or(0, Grant::bytes);
        if self.held - old + bytes > self.limit {
            return None;
        }
        let grant = budget.try_acquire(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
        self.places.reserve(more - self.places.len());
        self.held = self.held - old + bytes;
        self.table = Some(grant);
        Some(())
    }

    /// Lets go of segments, the last ones first, until no more than `most` is held.
    fn shrink(&mut self, most: u64) {
        let before = self.segments.len();
        while self.held > most
            && let Some(segment) = self.segments.pop()
        {
            self.held -= segment.bytes() as u64;
        }
        let kept = self.segments.len();
        if kept < before {
            self.places.retain(|_, place| (place.segment as usize) < kept);
        }
        if kept == 0 && self.held > most {
            self.places = HashMap::default();
            self.held = 0;
            self.table = None;
        }
    }
}

impl Tier for Memory {
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
        let lease = self.lend(key)?;
        into.get_mut(..lease.len())?.copy_from_slice(&lease);
        Some(lease.len())
    }

    fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
        let mut state = self.state();
        if state.places.contains_key(&key) {
            return true;
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let Ok(short) = u32::try_from(len) else { return false };
        if !state.share.has(key) || !state.has_room(len as u64) || state.grow_table(&self.budget).is_none() {
            return false;
        }
        let range = state.room(&self.budget, len as u64).and_then(|log| log.append(parts));
        let Some(range) = range else { return false };
        let place = Place { segment: state.segments.len() as u32 - 1, start: range.start as u32, len: short };
        state.places.insert(key, place);
        true
    }

    fn limit_bytes(&self) -> u64 {
        self.state().limit
    }

    fn set_limit(&self, bytes: u64) {
        let mut state = self.state();
        state.limit = bytes;
        state.share = Share::fitting(bytes, self.total_bytes, self.count);
        state.shrink(bytes);
    }

    fn held_bytes(&self) -> u64 {
        self.state().held
    }
}

impl Reclaim for Memory {
    fn held_bytes(&self) -> u64 {
        Tier::held_bytes(self)
    }

    fn reclaim(&self, bytes: u64) {
        let mut state = self.state();
        let most = state.held.saturating_sub(bytes);
        state.shrink(most);
        // It would be taken again at once; the next epoch's plan says how much there is to have.
        state.limit = state.limit.min(state.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_share_is_kept_and_lent() {
        let (count, bytes) = (10_000, 3000);
        let budget = Budget::new(16 << 20);
        let tier = Memory::new(&budget, count * bytes, count);
        assert!(!tier.put(1, &[b"x"]));
        tier.set_limit(10 << 20);
        let object = |key: u64| vec![key as u8; bytes as usize];
        let fill =
            || (0..count).filter(|&key| tier.lend(key).is_none() && tier.put(key, &[&object(key)])).count();
        let kept = || (0..count).filter(|&key| tier.lend(key).is_some_and(|l| *l == object(key)[..])).count();
        let put = fill();
        let first = kept();
        assert_eq!(put, first);
        assert!(
            first as u64 * bytes > 97 * (10 << 20) / 100,
            "{first} objects of {bytes}, {} held",
            Tier::held_bytes(&*tier)
        );
        assert_eq!(budget.account(Account::CacheMemory).held_bytes, Tier::held_bytes(&*tier));
        // Hits are spread: each tenth of the keys has about a tenth of them.
        let tenth = |i: u64| (i * 1000..(i + 1) * 1000).filter(|&key| tier.lend(key).is_some()).count();
        let spread: Vec<_> = (0..9).map(tenth).collect();
        assert!(spread.iter().all(|n| n.abs_diff(first / 10) < 70), "{spread:?}");
        assert_eq!(fill(), 0);
        assert_eq!(kept(), first, "the set does not change");
        // Somebody needs more than is free; what is lent stays.
        let key = (0..count).rev().find(|&key| tier.lend(key).is_some()).unwrap();
        let lease = tier.lend(key).unwrap();
        let batch = budget.try_block(Account::Batch, 14 << 20, Priority::NextBatch).unwrap();
        assert!(Tier::held_bytes(&*tier) <= 2 << 20 && budget.usage().charged_bytes <= 16 << 20);
        assert_eq!(*lease, object(key)[..]);
        assert!(kept() > 0);
        drop((batch, lease));
        tier.set_limit(10 << 20);
        let again = kept() + fill();
        assert!(kept() == again && again >= first - 100, "{again} of {first}");
        drop(tier);
        assert_eq!(budget.account(Account::CacheMemory).held_bytes, 0);
    }

    #[test]
    fn it_keeps_the_promises_of_a_tier() {
        let budget = Budget::new(8 << 20);
        crate::testing::tier(&*Memory::new(&budget, 64 * 20_000, 64), 40_000, 4 << 20).unwrap();
    }

    #[test]
    fn objects_of_any_size_are_kept_within_the_limit() {
        let budget = Budget::new(8 << 20);
        let sizes: Vec<u64> = (0..500).map(|i| (i * i * 7919) % 60_000 + i % 3).collect();
        let tier = Memory::new(&budget, sizes.iter().sum(), 500);
        for limit in [1 << 20, 4 << 20, 100_000, 7 << 20, 0] {
            tier.set_limit(limit);
            for (key, &len) in sizes.iter().enumerate() {
                let (a, b) = (vec![1; len as usize / 3], vec![2; len as usize - len as usize / 3]);
                let put = tier.put(key as u64, &[&a, &b]);
                assert_eq!(tier.lend(key as u64).map(|l| l.to_vec()), put.then(|| [a, b].concat()));
                assert!(Tier::held_bytes(&*tier) <= limit);
            }
        }
        assert_eq!(budget.usage().charged_bytes, budget.arena().hole_bytes);
    }
}
