//! Samples in memory, returned without a copy, and packed where that makes room for more.
//!
//! Flow: [`Memory::put`](super::Tier::put) copies an object behind the last one of a segment;
//! [`Memory::get_lease`](super::MemoryTier::get_lease) returns it.
//! Memory: segments of some MiB ([`Log`]) and the table of locations (account `cache.memory`). The
//! tier takes them when it needs them, at the lowest priority, and returns a segment at a time
//! when the limit falls or others lack memory. Segments of packed objects and the packer's own
//! memory are of account `cache.compressed`, within the same limit.
//!
//! The tier packs objects only if they do not all fit unpacked and a probe of the first ones shows
//! a gain (`codec`).
//!
//! Objects follow each other without gaps, since the set does not change: blocks of whole pages
//! would waste half a page each, and a heap would fragment. A segment lives as long as a lease of
//! any of its objects.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use tidegate_core::sync::lock;

use tidegate_core::hash::splitmix64;
use tidegate_core::memory::{Account, Budget, Grant, Log, PAGE_BYTES, Priority, Reclaim};

use super::admission::AdmissionHash;
use super::codec::{Codec, Packer, Probe};
use super::tier::{Cached, MemoryTier, Packed, Policy, Tier};

/// The largest segment. A small tier has 16 segments instead.
const SEGMENT_BYTES: u64 = 4 << 20;
/// The most that the table takes for each location it has room for: a key, a location and a tag,
/// in powers of two that are 7/8 full.
const LOCATION_BYTES: u64 = 32;

/// Spreads keys by [`splitmix64`].
#[derive(Debug, Clone, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = splitmix64(self.0 ^ u64::from(byte)));
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = splitmix64(key);
    }
}

#[derive(Debug, Clone, Copy)]
struct Location {
    segment: u32,
    start: u32,
    len: u32,
    /// The length of a packed object before packing; 0 if the object is stored unpacked.
    unpacked: u32,
}

/// Whether the tier packs objects.
#[derive(Debug)]
enum Packing {
    Never,
    /// The probe has not decided yet.
    Probing(Probe),
    By(Codec, f64),
}

#[derive(Debug)]
struct State {
    limit: u64,
    held: u64,
    admission: AdmissionHash,
    locations: HashMap<u64, Location, BuildHasherDefault<KeyHasher>>,
    /// All segments but the last are full.
    segments: Vec<Log>,
    table: Option<Grant>,
    packing: Packing,
    packer: Packer,
    /// For the packer, and for the contexts of threads that unpack.
    scratch: Option<Grant>,
}

/// A fixed set of samples in memory; the head of this file says how it works.
#[derive(Debug)]
pub struct Memory {
    budget: Budget,
    total_bytes: u64,
    count: u64,
    /// The largest object, and the number of threads that unpack; `None`: the tier never packs.
    packs: Option<(u64, u64)>,
    state: Mutex<State>,
}

impl Memory {
    /// An empty tier for a source of `count` objects and `total_bytes`. It holds nothing until it
    /// has a limit.
    #[must_use]
    pub fn new(budget: &Budget, total_bytes: u64, count: u64) -> Arc<Self> {
        Self::with_optional_packing(budget, total_bytes, count, None)
    }

    /// As [`Memory::new`], for objects of up to `largest` bytes that may be packed, and that
    /// `threads` threads unpack.
    #[must_use]
    pub fn with_packing(
        budget: &Budget,
        total_bytes: u64,
        count: u64,
        largest: u64,
        threads: u64,
    ) -> Arc<Self> {
        Self::with_optional_packing(budget, total_bytes, count, Some((largest, threads)))
    }

    fn with_optional_packing(
        budget: &Budget,
        total_bytes: u64,
        count: u64,
        packs: Option<(u64, u64)>,
    ) -> Arc<Self> {
        let state = State {
            limit: 0,
            held: 0,
            admission: AdmissionHash::for_limit(0, total_bytes, count),
            locations: HashMap::default(),
            segments: Vec::new(),
            table: None,
            packing: if packs.is_some() { Packing::Probing(Probe::default()) } else { Packing::Never },
            packer: Packer::default(),
            scratch: None,
        };
        let state = Mutex::new(state);
        let tier = Arc::new(Self { budget: budget.clone(), total_bytes, count, packs, state });
        budget.reclaim_from(&(Arc::clone(&tier) as Arc<dyn Reclaim>));
        tier
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn admission_for(&self, limit: u64, packing: &Packing) -> AdmissionHash {
        let gain = if let Packing::By(_, gain) = packing { *gain } else { 1.0 };
        AdmissionHash::for_limit(limit, (self.total_bytes as f64 / gain) as u64, self.count)
    }

    /// Probes one more of the first objects, if packing could make room for more.
    fn probe(&self, state: &mut State, object: &[u8]) {
        let Some((largest, threads)) = self.packs.filter(|_| self.total_bytes > state.limit) else { return };
        let Packing::Probing(probe) = &mut state.packing else { return };
        let packer_bytes = Packer::memory_bytes(largest);
        // The packer's memory is not worth it in a small cache.
        let small = packer_bytes + threads * Codec::Zstd.thread_bytes(largest) > state.limit / 4;
        if small || object.len() as u64 > largest {
            return;
        }
        if state.scratch.is_none() && state.held + packer_bytes <= state.limit {
            state.scratch =
                self.budget.try_acquire(Account::CacheCompressed, packer_bytes, Priority::CacheFill).ok();
            state.held += state.scratch.as_ref().map_or(0, Grant::bytes);
        }
        if state.scratch.is_none() {
            return;
        }
        let Some(chosen) = probe.observe(&mut state.packer, object) else { return };
        let packing = chosen.and_then(|(codec, gain)| {
            let more = threads * codec.thread_bytes(largest);
            let fits = packer_bytes + more <= state.limit / 4 && state.held + more <= state.limit;
            let take = || {
                self.budget
                    .try_acquire(Account::CacheCompressed, packer_bytes + more, Priority::CacheFill)
                    .ok()
            };
            let scratch = fits.then(take).flatten()?;
            state.held += more;
            state.scratch = Some(scratch);
            Some(Packing::By(codec, gain))
        });
        state.packing = packing.unwrap_or_else(|| {
            (state.packer, state.held) =
                (Packer::default(), state.held - state.scratch.take().map_or(0, |g| g.bytes()));
            Packing::Never
        });
        state.admission = self.admission_for(state.limit, &state.packing);
    }
}

impl State {
    fn has_room(&self, len: u64) -> bool {
        self.held + len <= self.limit || self.segments.last().is_some_and(|log| log.left() as u64 >= len)
    }

    /// A segment with `len` free bytes: the last one, or a new one.
    fn segment_with_room(&mut self, budget: &Budget, len: u64) -> Option<&mut Log> {
        if self.segments.last().is_none_or(|log| (log.left() as u64) < len) {
            let left = self.limit.saturating_sub(self.held) / PAGE_BYTES * PAGE_BYTES;
            let usual = (self.limit / 16).clamp(PAGE_BYTES, SEGMENT_BYTES).next_multiple_of(PAGE_BYTES);
            let alone = len.next_multiple_of(PAGE_BYTES);
            // Half an object is wasted at the end of a segment, and half a page behind an object
            // that has a segment of its own.
            let bytes = if len * len > PAGE_BYTES * usual { alone } else { alone.max(usual.min(left)) };
            if bytes > left {
                return None;
            }
            let packed = matches!(self.packing, Packing::By(..));
            let account = if packed { Account::CacheCompressed } else { Account::CacheMemory };
            let block = budget.try_block(account, bytes, Priority::CacheFill).ok()?;
            self.held += bytes;
            self.segments.push(Log::new(block));
        }
        self.segments.last_mut()
    }

    /// Makes the table large enough for one more location.
    fn grow_table(&mut self, budget: &Budget) -> Option<()> {
        if self.locations.len() < self.locations.capacity() {
            return Some(());
        }
        let more = (2 * self.locations.capacity()).max(64);
        let bytes = more as u64 * LOCATION_BYTES;
        let old = self.table.as_ref().map_or(0, Grant::bytes);
        if self.held - old + bytes > self.limit {
            return None;
        }
        let grant = budget.try_acquire(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
        self.locations.reserve(more - self.locations.len());
        self.held = self.held - old + bytes;
        self.table = Some(grant);
        Some(())
    }

    /// Evicts segments, the last ones first, until at most `most` bytes are held.
    fn shrink(&mut self, most: u64) {
        let count = self.segments.len();
        while self.held > most
            && let Some(segment) = self.segments.pop()
        {
            self.held -= segment.bytes() as u64;
        }
        let kept = self.segments.len();
        if kept < count {
            self.locations.retain(|_, location| (location.segment as usize) < kept);
        }
        if kept == 0 && self.held > most {
            self.locations = HashMap::default();
            self.held = 0;
            self.table = None;
            (self.scratch, self.packer) = (None, Packer::default());
            if !matches!(self.packing, Packing::Never) {
                self.packing = Packing::Probing(Probe::default());
            }
        }
    }

    /// Writes bytes to a segment; `unpacked` is the object's length if they are packed, else 0.
    fn append(&mut self, budget: &Budget, parts: &[&[u8]], unpacked: u32) -> Option<Location> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if !self.has_room(len as u64) {
            return None;
        }
        self.grow_table(budget)?;
        let range = self.segment_with_room(budget, len as u64)?.append(parts)?;
        let segment = self.segments.len() as u32 - 1;
        Some(Location { segment, start: range.start as u32, len: u32::try_from(len).ok()?, unpacked })
    }

    /// As [`State::append`], after packing the first of `parts` if that makes it smaller.
    fn append_packed(&mut self, budget: &Budget, parts: &[&[u8]], codec: Codec) -> Option<Location> {
        let object = *parts.first()?;
        let mut packer = std::mem::take(&mut self.packer);
        let packed = packer.pack(codec, object).filter(|packed| packed.len() < object.len());
        let location = match packed {
            Some(packed) => self.append(budget, &[packed], u32::try_from(object.len()).ok()?),
            None => self.append(budget, parts, 0),
        };
        self.packer = packer;
        location
    }
}

impl MemoryTier for Memory {
    fn get_lease(&self, key: u64) -> Option<Cached> {
        let state = self.state();
        let location = state.locations.get(&key)?;
        let (start, len) = (location.start as usize, location.len as usize);
        let lease = state.segments.get(location.segment as usize)?.lend(start..start + len);
        match (location.unpacked, &state.packing) {
            (0, _) => Some(Cached::Plain(lease)),
            (len, &Packing::By(codec, _)) => Some(Cached::Packed(Packed { lease, codec, len: len as usize })),
            _ => None,
        }
    }

    fn codec(&self) -> Option<(Codec, f64)> {
        match self.state().packing {
            Packing::By(codec, gain) => Some((codec, gain)),
            _ => None,
        }
    }

    fn policy(&self) -> Policy {
        Policy::Fixed
    }

    fn record_access(&self, _: u64, _: u64) -> bool {
        // A fixed set does not depend on accesses.
        false
    }
}

impl Tier for Memory {
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
        match self.get_lease(key)? {
            Cached::Plain(lease) => {
                into.get_mut(..lease.len())?.copy_from_slice(&lease);
                Some(lease.len())
            }
            Cached::Packed(packed) => packed.unpack(into).then_some(packed.unpacked_len()),
        }
    }

    fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
        let mut state = self.state();
        if state.locations.contains_key(&key) {
            return true;
        }
        if !state.admission.admits(key) {
            return false;
        }
        let location = match (&state.packing, parts) {
            // The parts behind the object can be read elsewhere.
            (&Packing::By(codec, _), [object, ..]) if !object.is_empty() => {
                state.append_packed(&self.budget, parts, codec)
            }
            (_, [object, ..]) => {
                self.probe(&mut state, object);
                state.append(&self.budget, parts, 0)
            }
            _ => state.append(&self.budget, parts, 0),
        };
        let Some(location) = location else { return false };
        state.locations.insert(key, location);
        true
    }

    fn limit_bytes(&self) -> u64 {
        self.state().limit
    }

    fn set_limit(&self, bytes: u64) {
        let mut state = self.state();
        state.limit = bytes;
        state.admission = self.admission_for(bytes, &state.packing);
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
        // Without a lower limit the tier would take the memory again at once. The next epoch's
        // plan sets a limit that fits.
        state.limit = state.limit.min(state.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(tier: &Memory, key: u64, object: &[u8]) -> bool {
        let mut into = vec![0; object.len()];
        tier.get(key, &mut into) == Some(object.len()) && into == object
    }

    #[test]
    fn packed_objects_are_more_and_the_same() {
        let (count, bytes) = (2_000, 60_000);
        let object =
            |key: u64| -> Vec<u8> { (0..bytes).map(|i| (((i / 50) * (key + 3)) >> 4) as u8).collect() };
        let budget = Budget::new(48 << 20);
        let fill =
            |tier: &Memory| (0..count).filter(|&key| tier.put(key, &[&object(key), b"record"])).count();
        let right = |tier: &Memory| (0..count).filter(|&key| has(tier, key, &object(key))).count();
        let plain = Memory::new(&budget, count * bytes, count);
        plain.set_limit(40 << 20);
        let unpacked = fill(&plain);
        plain.set_limit(0);
        let tier = Memory::with_packing(&budget, count * bytes, count, bytes, 4);
        tier.set_limit(40 << 20);
        // First the probe, then more room in the same bytes, and once more for the rest.
        let [.., packed] = [(); 3].map(|()| fill(&tier));
        let (codec, gain) = tier.codec().unwrap();
        assert!(packed > 2 * unpacked, "{packed} and {unpacked}, {codec:?} gains {gain}");
        // Objects of the probe are stored unpacked, with the part behind them.
        assert!(right(&tier) >= packed - 32, "{} of {packed}", right(&tier));
        let held = |account| budget.account(account).held_bytes;
        assert_eq!(held(Account::CacheMemory) + held(Account::CacheCompressed), Tier::held_bytes(&*tier));
        assert!(Tier::held_bytes(&*tier) <= 40 << 20);
        let batch = budget.try_block(Account::Batch, 40 << 20, Priority::NextBatch).unwrap();
        assert!(Tier::held_bytes(&*tier) <= 8 << 20);
        drop(batch);
        tier.set_limit(0);
        assert_eq!(held(Account::CacheMemory) + held(Account::CacheCompressed), 0);
        crate::testing::tier(&*Memory::with_packing(&budget, 64 * 20_000, 64, 40_000, 1), 40_000, 32 << 20)
            .unwrap();
    }

    #[test]
    fn a_fixed_set_is_kept_and_leased() {
        let (count, bytes) = (10_000, 3000);
        let budget = Budget::new(16 << 20);
        let tier = Memory::new(&budget, count * bytes, count);
        assert!(!tier.put(1, &[b"x"]));
        tier.set_limit(10 << 20);
        let object = |key: u64| vec![key as u8; bytes as usize];
        let fill = || {
            (0..count).filter(|&key| tier.get_lease(key).is_none() && tier.put(key, &[&object(key)])).count()
        };
        let kept = || (0..count).filter(|&key| has(&tier, key, &object(key))).count();
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
        let tenth = |i: u64| (i * 1000..(i + 1) * 1000).filter(|&key| tier.get_lease(key).is_some()).count();
        let spread: Vec<_> = (0..9).map(tenth).collect();
        assert!(spread.iter().all(|n| n.abs_diff(first / 10) < 70), "{spread:?}");
        assert_eq!(fill(), 0);
        assert_eq!(kept(), first, "the set does not change");
        // A batch needs more than is free; leased bytes stay.
        let key = (0..count).rev().find(|&key| tier.get_lease(key).is_some()).unwrap();
        let Some(Cached::Plain(lease)) = tier.get_lease(key) else { panic!("it is as it was") };
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
                assert_eq!(has(&tier, key as u64, &[a, b].concat()), put);
                assert!(Tier::held_bytes(&*tier) <= limit);
            }
        }
        assert_eq!(budget.usage().charged_bytes, budget.arena().hole_bytes);
    }
}
