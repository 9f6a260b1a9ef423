//! Samples in memory where some are used more often than others: the least useful ones go.
//!
//! Flow: the feed records each access in turn ([`MemoryTier::record_access`]) -> which objects are
//! kept from now on, and which are evicted; readers [`Tier::put`] objects that are kept and not in
//! memory yet; [`MemoryTier::get_lease`] returns them.
//! Memory: a block of whole pages for each object and its entries in tables, and some bytes for
//! each access of the horizon (account `cache.memory`), all within the limit.
//!
//! If the order is listed, Belady's rule ([`Min`]) decides what to keep, over the part of this
//! epoch and the next that an eighth of the memory can list. Otherwise a library's adaptive policy
//! decides. The policy is ahead of the bytes: an object that it keeps may still be on its way, or
//! may have found no memory, and is then read again. If accesses are unknown, the bytes that
//! Belady's rule would have hit are computed when the epoch ends.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::iter::Peekable;
use std::sync::{Arc, Mutex, MutexGuard};
use tidegate_core::sync::lock;

use quick_cache::unsync::Cache;
use quick_cache::{Lifecycle, Weighter};
use tidegate_core::memory::{Account, Budget, Grant, Lease, Log, PAGE_BYTES, Priority, Reclaim};

use super::memory::KeyHasher;
use super::min::{Min, Outcome};
use super::tier::{Cached, FutureAccesses, MemoryTier, Objects, Policy, Tier};

type Hash = BuildHasherDefault<KeyHasher>;

/// Bytes that an object takes in addition to its block: its entries in the tables.
const ENTRY_BYTES: u64 = 256;
/// Bytes of an access of the horizon: its object, its next access and a bit, and all of that a
/// second time while the horizon moves.
const ACCESS_BYTES: u64 = 13;
/// The shortest horizon that is of use.
const MIN_HORIZON: u64 = 256;

/// An object that the policy keeps.
#[derive(Debug)]
struct Entry {
    /// Bytes that the object takes, its entries included.
    bytes: u32,
    /// The object once it is put, and the grant for its entries.
    object: Option<(Lease, Grant)>,
}

/// Entries by object number, since keys are numbers below the count of objects.
#[derive(Debug, Default)]
struct Entries(HashMap<u32, Entry, Hash>);

impl Objects for Entries {
    fn bytes(&self, object: u32) -> u64 {
        self.0.get(&object).map_or(0, |entry| u64::from(entry.bytes))
    }
}

/// Weighs an object of the library's cache by its size.
#[derive(Debug, Clone)]
struct Sizes;

impl Weighter<u32, u32> for Sizes {
    fn weight(&self, _: &u32, bytes: &u32) -> u64 {
        u64::from(*bytes)
    }
}

/// Notes evicted objects.
#[derive(Debug, Clone)]
struct Evicted;

impl Lifecycle<u32, u32> for Evicted {
    type RequestState = Vec<u32>;

    fn on_evict(&self, evicted: &mut Vec<u32>, object: u32, _: u32) {
        evicted.push(object);
    }
}

/// The state of the policy.
enum PolicyState {
    Min { min: Box<Min>, horizon: usize, future: Peekable<FutureAccesses>, memory: Grant },
    Adaptive(Cache<u32, u32, Sizes, Hash, Evicted>),
}

impl PolicyState {
    /// Fills the horizon with further accesses, once half of it is past.
    fn move_horizon(&mut self, objects: u32) {
        let Self::Min { min, horizon, future, .. } = self else { return };
        if min.remaining().len() > *horizon / 2 || future.peek().is_none() {
            return;
        }
        let mut accesses = Vec::with_capacity(*horizon);
        accesses.extend_from_slice(min.remaining());
        let more = *horizon - accesses.len();
        accesses.extend(future.by_ref().take(more).map(|key| key as u32));
        min.set_future(accesses, objects);
    }

    fn access(&mut self, object: u32, bytes: u32, entries: &Entries, evicted: &mut Vec<u32>) -> Outcome {
        match self {
            // The list did not have this access, so the rule could only guess.
            Self::Min { min, .. } if min.remaining().first() != Some(&object) => Outcome::Rejected,
            Self::Min { min, .. } => {
                min.access_with_size(u64::from(bytes), entries, &mut |object| evicted.push(object))
            }
            Self::Adaptive(cache) if cache.get(&object).is_some() => Outcome::Hit,
            Self::Adaptive(cache) => {
                cache.insert_with_lifecycle(object, bytes, evicted);
                if cache.contains_key(&object) { Outcome::Admitted } else { Outcome::Rejected }
            }
        }
    }

    fn set_capacity(&mut self, bytes: u64, entries: &Entries, evicted: &mut Vec<u32>) {
        match self {
            Self::Min { min, .. } => min.set_limit(bytes, entries, &mut |object| evicted.push(object)),
            Self::Adaptive(cache) => {
                cache.set_capacity(bytes);
                evicted.extend(entries.0.keys().filter(|object| !cache.contains_key(*object)));
            }
        }
    }

    /// Bytes that the policy itself takes.
    fn bytes(&self) -> u64 {
        if let Self::Min { memory, .. } = self { memory.bytes() } else { 0 }
    }
}

/// The accesses of an epoch that was not known, to be judged when it ends.
struct Trace {
    /// Objects that were in memory when the epoch began, then those accessed, with their lengths.
    accesses: Vec<(u32, u32)>,
    /// The number of objects in memory at the beginning, and of accesses in the whole epoch.
    before: usize,
    count: usize,
    memory: Grant,
}

impl Trace {
    /// Bytes of an access, with its part of the rule's own memory, and of an object in both.
    const ACCESS_BYTES: u64 = 8 + ACCESS_BYTES;
    const OBJECT_BYTES: u64 = 8;

    /// Bytes that Belady's rule would have hit within `limit`.
    fn optimum(&self, limit: u64, objects: u32) -> u64 {
        let mut sizes = vec![0u32; objects as usize];
        self.accesses.iter().for_each(|&(object, len)| sizes[object as usize] = charged_bytes(len.into()));
        let mut min = Min::new(limit);
        min.set_future(self.accesses.iter().map(|&(object, _)| object).collect(), objects);
        let mut hits = 0;
        for (i, &(_, len)) in self.accesses.iter().enumerate() {
            let hit = min.access(&sizes, &mut |_| ()) == Outcome::Hit && i >= self.before;
            hits += u64::from(len) * u64::from(hit);
        }
        hits
    }
}

#[derive(Default)]
struct State {
    limit: u64,
    /// All bytes that are charged.
    held: u64,
    policy: Option<PolicyState>,
    entries: Entries,
    trace: Option<Trace>,
    /// Bytes that Belady's rule would have hit in the last epoch that was not known.
    optimum_bytes: Option<u64>,
}

/// Samples of an order that repeats them; the head of this file says how it works.
pub struct ReuseCache {
    budget: Budget,
    objects: u64,
    mean_bytes: u64,
    policy: Policy,
    state: Mutex<State>,
}

impl fmt::Debug for ReuseCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReuseCache({:?}, {} bytes)", self.policy, Tier::held_bytes(self))
    }
}

/// Bytes that an object of `bytes` takes, with whole pages and entries.
fn charged_bytes(bytes: u64) -> u32 {
    u32::try_from(bytes.max(1).next_multiple_of(PAGE_BYTES) + ENTRY_BYTES).unwrap_or(u32::MAX)
}

impl ReuseCache {
    /// An empty tier for keys below `objects`, which take `total_bytes` together.
    ///
    /// It takes nothing until it has a limit. `listed` says that the accesses will be given by
    /// `set_future`.
    #[must_use]
    pub fn new(budget: &Budget, total_bytes: u64, objects: u64, listed: bool) -> Arc<Self> {
        let policy = if listed { Policy::Min } else { Policy::Adaptive };
        let mean_bytes = u64::from(charged_bytes(total_bytes / objects.max(1)));
        let tier =
            Arc::new(Self { budget: budget.clone(), objects, mean_bytes, policy, state: Mutex::default() });
        budget.reclaim_from(&(Arc::clone(&tier) as Arc<dyn Reclaim>));
        tier
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A trace for an epoch of `count` accesses; `None` if that takes too much memory.
    fn trace(&self, state: &mut State, count: u64) -> Option<Trace> {
        let count = usize::try_from(count).ok().filter(|&count| count > 0)?;
        let most = state.entries.0.len() + count;
        let bytes = most as u64 * Trace::ACCESS_BYTES + self.objects * Trace::OBJECT_BYTES;
        if self.objects >= u64::from(u32::MAX) || bytes > state.limit / 8 {
            return None;
        }
        state.fit(state.limit - bytes);
        let memory = self.budget.try_acquire(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
        let mut accesses = Vec::with_capacity(most);
        let here =
            state.entries.0.iter().filter_map(|(&object, entry)| Some((object, entry.object.as_ref()?)));
        accesses.extend(here.map(|(object, (lease, _))| (object, lease.len() as u32)));
        Some(Trace { before: accesses.len(), accesses, count, memory })
    }

    /// The policy within the limit; `None` if the limit is too small to be of use.
    fn new_policy(
        &self,
        state: &mut State,
        old: Option<Box<Min>>,
        future: FutureAccesses,
        count: u64,
    ) -> Option<PolicyState> {
        let limit = state.limit;
        if self.objects >= u64::from(u32::MAX) || limit < self.mean_bytes {
            return None;
        }
        if self.policy == Policy::Adaptive {
            let items = (limit / self.mean_bytes) as usize;
            return Some(PolicyState::Adaptive(Cache::with(items, limit, Sizes, Hash::default(), Evicted)));
        }
        // While the horizon is built, it also takes a number for each object.
        let bytes = (limit / 8).saturating_sub(4 * self.objects);
        let horizon = (bytes / ACCESS_BYTES).min(count.max(MIN_HORIZON)).min(u64::from(u32::MAX) - 1);
        if horizon < MIN_HORIZON {
            return None;
        }
        let bytes = 4 * self.objects + horizon * ACCESS_BYTES;
        let mut min = old.unwrap_or_else(|| Box::new(Min::new(limit)));
        let mut evicted = Vec::new();
        min.set_limit(limit - bytes, &state.entries, &mut |object| evicted.push(object));
        state.remove(&evicted);
        let memory = self.budget.try_acquire(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
        Some(PolicyState::Min { min, horizon: horizon as usize, future: future.peekable(), memory })
    }
}

impl State {
    /// Notes an access; the last one ends the epoch.
    fn trace(&mut self, object: u32, len: u64, objects: u32) {
        let Some(trace) = &mut self.trace else { return };
        trace.accesses.push((object, len as u32));
        if trace.accesses.len() == trace.before + trace.count {
            self.optimum_bytes =
                Some(trace.optimum(self.limit.saturating_sub(trace.memory.bytes()), objects));
            self.held -= self.trace.take().map_or(0, |trace| trace.memory.bytes());
        }
    }

    fn remove(&mut self, evicted: &[u32]) {
        for object in evicted {
            let entry = self.entries.0.remove(object).filter(|entry| entry.object.is_some());
            self.held -= entry.map_or(0, |entry| u64::from(entry.bytes));
        }
    }

    /// Drops everything.
    fn clear(&mut self) {
        (self.policy, self.entries, self.trace, self.held) = (None, Entries::default(), None, 0);
    }

    /// Bytes that are not of objects: the trace and the policy.
    fn overhead_bytes(&self) -> u64 {
        let trace = self.trace.as_ref().map_or(0, |trace| trace.memory.bytes());
        trace + self.policy.as_ref().map_or(0, PolicyState::bytes)
    }

    /// Evicts until everything takes at most `bytes`.
    fn fit(&mut self, bytes: u64) {
        let overhead = self.overhead_bytes();
        let Some(policy) = &mut self.policy else { return };
        let Some(capacity) = bytes.checked_sub(overhead).filter(|&capacity| capacity > 0) else {
            return self.clear();
        };
        let mut evicted = Vec::new();
        policy.set_capacity(capacity, &self.entries, &mut evicted);
        self.remove(&evicted);
    }
}

impl MemoryTier for ReuseCache {
    fn get_lease(&self, key: u64) -> Option<Cached> {
        let object = u32::try_from(key).ok()?;
        let state = self.state();
        let (lease, _) = state.entries.0.get(&object)?.object.as_ref()?;
        Some(Cached::Plain(lease.clone()))
    }

    fn policy(&self) -> Policy {
        self.policy
    }

    fn set_future(&self, future: FutureAccesses, count: u64) {
        let state = &mut *self.state();
        if self.policy == Policy::Adaptive {
            state.held -= state.trace.take().map_or(0, |trace| trace.memory.bytes());
            state.optimum_bytes = None;
            state.trace = self.trace(state, count);
            state.held += state.trace.as_ref().map_or(0, |trace| trace.memory.bytes());
            if state.policy.is_some() {
                return state.fit(state.limit);
            }
        }
        state.held -= state.policy.as_ref().map_or(0, PolicyState::bytes);
        // The old horizon goes before the new one is taken. Objects stay as far as they are
        // wanted.
        let old = match state.policy.take() {
            Some(PolicyState::Min { min, .. }) => Some(min),
            _ => None,
        };
        let Some(mut policy) = self.new_policy(state, old, future, count) else { return state.clear() };
        if let PolicyState::Min { min, horizon, future, .. } = &mut policy {
            let mut accesses = Vec::with_capacity(*horizon);
            accesses.extend(future.by_ref().take(*horizon).map(|key| key as u32));
            min.set_future(accesses, self.objects as u32);
        }
        state.held += policy.bytes();
        state.policy = Some(policy);
        state.fit(state.limit);
    }

    fn optimum_bytes(&self) -> Option<u64> {
        self.state().optimum_bytes
    }

    fn record_access(&self, key: u64, len: u64) -> bool {
        let state = &mut *self.state();
        let (Some(policy), Ok(object)) = (&mut state.policy, u32::try_from(key)) else { return false };
        policy.move_horizon(self.objects as u32);
        let (bytes, mut evicted) = (charged_bytes(len), Vec::new());
        let outcome = policy.access(object, bytes, &state.entries, &mut evicted);
        state.remove(&evicted);
        state.trace(object, len, self.objects as u32);
        if outcome == Outcome::Admitted {
            state.entries.0.insert(object, Entry { bytes, object: None });
        }
        outcome == Outcome::Hit && self.policy == Policy::Min
    }
}

impl Tier for ReuseCache {
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
        let Cached::Plain(lease) = self.get_lease(key)? else { return None };
        into.get_mut(..lease.len())?.copy_from_slice(&lease);
        Some(lease.len())
    }

    fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
        let state = &mut *self.state();
        let Some(entry) = u32::try_from(key).ok().and_then(|object| state.entries.0.get_mut(&object)) else {
            return false;
        };
        if entry.object.is_some() {
            return true;
        }
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let put = || {
            let grant =
                self.budget.try_acquire(Account::CacheMemory, ENTRY_BYTES, Priority::CacheFill).ok()?;
            let block = self.budget.try_block(Account::CacheMemory, len.max(1), Priority::CacheFill).ok()?;
            let mut log = Log::new(block);
            let range = log.append(parts)?;
            Some((log.lend(range), grant))
        };
        // An object larger than its access said would take more than the policy decided.
        entry.object = (charged_bytes(len) <= entry.bytes).then(put).flatten();
        state.held += entry.object.as_ref().map_or(0, |_| u64::from(entry.bytes));
        entry.object.is_some()
    }

    fn limit_bytes(&self) -> u64 {
        self.state().limit
    }

    fn set_limit(&self, bytes: u64) {
        let mut state = self.state();
        state.limit = bytes;
        state.fit(bytes);
    }

    fn held_bytes(&self) -> u64 {
        self.state().held
    }
}

impl Reclaim for ReuseCache {
    fn held_bytes(&self) -> u64 {
        Tier::held_bytes(self)
    }

    fn reclaim(&self, bytes: u64) {
        let mut state = self.state();
        let most = state.held.saturating_sub(bytes);
        state.fit(most);
        // Without a lower limit the tier would take the memory again at once. The next epoch's
        // plan sets a limit that fits.
        state.limit = state.limit.min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTS: u64 = 1000;

    fn bytes(key: u64) -> u64 {
        1000 + key * 7919 % 30_000
    }

    fn object(key: u64) -> Vec<u8> {
        vec![key as u8; bytes(key) as usize]
    }

    /// Accesses of which the first keys have most.
    fn accesses(seed: u64, count: usize) -> Vec<u64> {
        let mut draw = seed;
        let mut next = || {
            draw = tidegate_core::hash::splitmix64(draw);
            draw % OBJECTS
        };
        (0..count).map(|_| next() * next() / OBJECTS).collect()
    }

    fn tier(budget: &Budget, listed: bool) -> Arc<ReuseCache> {
        ReuseCache::new(budget, (0..OBJECTS).map(bytes).sum(), OBJECTS, listed)
    }

    /// An epoch, as the feed and a reader go through it: (hits, hits that the rule predicted,
    /// bytes of hits).
    fn epoch(tier: &ReuseCache, accesses: &[u64], next: &[u64]) -> (usize, usize, u64) {
        let future: Vec<u64> = accesses.iter().chain(next).copied().collect();
        let count = if tier.policy == Policy::Min { future.len() } else { accesses.len() };
        tier.set_future(Box::new(future.into_iter()), count as u64);
        let (mut hits, mut could, mut hit_bytes) = (0, 0, 0);
        for &key in accesses {
            could += usize::from(tier.record_access(key, bytes(key)));
            match tier.get_lease(key) {
                Some(Cached::Plain(lease)) => {
                    assert_eq!(*lease, object(key)[..]);
                    (hits, hit_bytes) = (hits + 1, hit_bytes + bytes(key));
                }
                _ => {
                    tier.put(key, &[&object(key)]);
                }
            }
            assert!(Tier::held_bytes(tier) <= tier.limit_bytes());
        }
        (hits, could, hit_bytes)
    }

    #[test]
    fn the_best_is_kept_where_the_future_is_known_and_what_came_often_where_not() {
        let epochs: Vec<_> = (0..4).map(|seed| accesses(seed + 1, 3000)).collect();
        let limit = 4 << 20;
        let hits = |listed| {
            // No more than the tier may have.
            let budget = Budget::new(limit);
            let tier = tier(&budget, listed);
            assert!(!tier.put(1, &[b"x"]), "it was not accessed");
            tier.set_limit(limit);
            let run = |e: &[Vec<u64>]| {
                let (hits, could, hit_bytes) = epoch(&tier, &e[0], &e[1]);
                // The rule's hits are known afterwards, and exceed those of a policy that cannot
                // predict.
                let best = tier.optimum_bytes();
                assert!(
                    if listed { best.is_none() } else { best.unwrap() * 10 > hit_bytes * 11 },
                    "{best:?} {hit_bytes}"
                );
                (hits, could)
            };
            let hits: Vec<_> = epochs.windows(2).map(run).collect();
            let charged = budget.account(Account::CacheMemory).held_bytes;
            assert_eq!(charged, Tier::held_bytes(&*tier));
            assert!(charged > limit / 2 && tier.state().trace.is_none());
            tier.set_limit(0);
            assert_eq!(budget.account(Account::CacheMemory).held_bytes, 0);
            hits
        };
        let (listed, unknown) = (hits(true), hits(false));
        for ((hits, could), (adaptive, predicted)) in listed.into_iter().zip(unknown) {
            assert!(hits == could && predicted == 0, "{hits} of {could}");
            // A quarter of the bytes are kept.
            assert!(hits > adaptive + 100 && adaptive > 1000, "{hits} and {adaptive}");
        }
    }

    #[test]
    fn a_short_horizon_moves_on() {
        let budget = Budget::new(64 << 20);
        let tier = tier(&budget, true);
        // An eighth of the memory lists 600 accesses, of 6,000.
        tier.set_limit(8 * (4 * OBJECTS + 600 * ACCESS_BYTES));
        let (now, next) = (accesses(1, 3000), accesses(2, 3000));
        let (hits, could, _) = epoch(&tier, &now, &next);
        assert!(hits == could && hits > 50, "{hits} of {could}");
        // An access that the list did not have is not kept.
        tier.set_future(Box::new([1, 2].into_iter()), 2);
        assert!(!tier.record_access(7, bytes(7)) && !tier.put(7, &[&object(7)]));
    }

    #[test]
    fn it_gives_way_and_takes_what_there_is_again() {
        for listed in [true, false] {
            let budget = Budget::new(8 << 20);
            let tier = tier(&budget, listed);
            tier.set_limit(6 << 20);
            let accesses = accesses(5, 3000);
            let before = epoch(&tier, &accesses, &accesses).0;
            let leased: Vec<_> = (0..OBJECTS).filter_map(|key| Some((key, tier.get_lease(key)?))).collect();
            let (key, Cached::Plain(lease)) = leased.into_iter().next().unwrap() else {
                panic!("it is not packed")
            };
            let batch = budget.try_block(Account::Batch, 5 << 20, Priority::NextBatch).unwrap();
            assert!(Tier::held_bytes(&*tier) <= 3 << 20 && budget.usage().charged_bytes <= 8 << 20);
            assert_eq!(*lease, object(key)[..]);
            let less = epoch(&tier, &accesses, &accesses).0;
            assert!(less < before, "{less} of {before}");
            drop((batch, lease));
            tier.set_limit(6 << 20);
            epoch(&tier, &accesses, &accesses);
            assert!(epoch(&tier, &accesses, &accesses).0 >= before);
        }
    }

    /// A tier that records an access before each put.
    #[derive(Debug)]
    struct RecordBeforePut(Arc<ReuseCache>);

    impl Tier for RecordBeforePut {
        fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
            self.0.get(key, into)
        }
        fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
            self.0.record_access(key, parts.iter().map(|part| part.len() as u64).sum());
            self.0.put(key, parts)
        }
        fn limit_bytes(&self) -> u64 {
            self.0.limit_bytes()
        }
        fn set_limit(&self, bytes: u64) {
            self.0.set_limit(bytes);
            self.0.set_future(Box::new(std::iter::empty()), 0);
        }
        fn held_bytes(&self) -> u64 {
            Tier::held_bytes(&*self.0)
        }
    }

    #[test]
    fn it_keeps_the_promises_of_a_tier() {
        let budget = Budget::new(8 << 20);
        crate::testing::tier(
            &RecordBeforePut(ReuseCache::new(&budget, 64 * 20_000, 64, false)),
            40_000,
            4 << 20,
        )
        .unwrap();
    }
}
