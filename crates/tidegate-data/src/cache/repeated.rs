//! Samples in memory where some come more often than others: what is worth least makes room.
//!
//! Flow: the feed tells of each access in turn ([`Near::meet`]) -> what is kept from now on, and what goes; readers [`Tier::put`] what is
//! kept and not yet here; [`Near::lend`] gives it out.
//! Memory: a block of whole pages for each object and its places in tables, and before the first of them some bytes for each access of
//! the horizon (account `cache.memory`), all within the limit.
//!
//! Where the order is listed, Belady's rule ([`Min`]) decides, over as much of this epoch and the next as an eighth of the memory can list;
//! where it is not, a library's adaptive policy. The rule is ahead of the bytes: what it keeps may still be being read, or may have
//! found no memory, and is then read again. What the rule would have hit where nothing was known is worked out when the epoch ends.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::iter::Peekable;
use std::sync::{Arc, Mutex, MutexGuard};
use tidegate_core::sync::lock;

use quick_cache::unsync::Cache;
use quick_cache::{Lifecycle, Weighter};
use tidegate_core::memory::{Account, Budget, Grant, Lease, Log, PAGE_BYTES, Priority, Reclaim};

use super::memory::Mix;
use super::min::{Min, Outcome};
use super::{Coming, Lent, Near, Objects, Rule, Tier};

type Hash = BuildHasherDefault<Mix>;

/// What an object takes besides its block: its places in the tables, and what refers to it.
const PLACE_BYTES: u64 = 256;
/// What an access of the horizon takes: its object, when that comes next, a bit, and again while the horizon moves on.
const ACCESS_BYTES: u64 = 13;
/// A shorter horizon is of no use.
const HORIZON_LEAST: u64 = 256;

/// An object that is wanted here.
#[derive(Debug)]
struct Place {
    /// What it takes, all told.
    bytes: u32,
    /// The object once it came, and what pays for its place.
    here: Option<(Lease, Grant)>,
}

/// By number, since objects are numbered by their keys.
#[derive(Debug, Default)]
struct Places(HashMap<u32, Place, Hash>);

impl Objects for Places {
    fn bytes(&self, object: u32) -> u64 {
        self.0.get(&object).map_or(0, |place| u64::from(place.bytes))
    }
}

/// What the library's cache weighs and keeps: sizes.
#[derive(Debug, Clone)]
struct Sizes;

impl Weighter<u32, u32> for Sizes {
    fn weight(&self, _: &u32, bytes: &u32) -> u64 {
        u64::from(*bytes)
    }
}

/// Notes what goes.
#[derive(Debug, Clone)]
struct Gone;

impl Lifecycle<u32, u32> for Gone {
    type RequestState = Vec<u32>;

    fn on_evict(&self, gone: &mut Vec<u32>, object: u32, _: u32) {
        gone.push(object);
    }
}

/// Who decides.
enum Decides {
    Min { min: Box<Min>, horizon: usize, coming: Peekable<Coming>, memory: Grant },
    Adaptive(Cache<u32, u32, Sizes, Hash, Gone>),
}

impl Decides {
    /// Looks at as much of what comes as the horizon holds, once half of it is behind.
    fn move_on(&mut self, objects: u32) {
        let Self::Min { min, horizon, coming, .. } = self else { return };
        if min.rest().len() > *horizon / 2 || coming.peek().is_none() {
            return;
        }
        let mut accesses = Vec::with_capacity(*horizon);
        accesses.extend_from_slice(min.rest());
        let more = *horizon - accesses.len();
        accesses.extend(coming.by_ref().take(more).map(|key| key as u32));
        min.look_ahead(accesses, objects);
    }

    fn access(&mut self, object: u32, bytes: u32, places: &Places, gone: &mut Vec<u32>) -> Outcome {
        match self {
            // Told of something else than what comes, it could only guess.
            Self::Min { min, .. } if min.rest().first() != Some(&object) => Outcome::Passed,
            Self::Min { min, .. } => min.access_of(u64::from(bytes), places, &mut |object| gone.push(object)),
            Self::Adaptive(cache) if cache.get(&object).is_some() => Outcome::Hit,
            Self::Adaptive(cache) => {
                cache.insert_with_lifecycle(object, bytes, gone);
                if cache.contains_key(&object) { Outcome::Kept } else { Outcome::Passed }
            }
        }
    }

    fn set_capacity(&mut self, bytes: u64, places: &Places, gone: &mut Vec<u32>) {
        match self {
            Self::Min { min, .. } => min.set_limit(bytes, places, &mut |object| gone.push(object)),
            Self::Adaptive(cache) => {
                cache.set_capacity(bytes);
                gone.extend(places.0.keys().filter(|object| !cache.contains_key(*object)));
            }
        }
    }

    /// What it takes itself.
    fn bytes(&self) -> u64 {
        if let Self::Min { memory, .. } = self { memory.bytes() } else { 0 }
    }
}

/// The accesses of an epoch of which nothing was known, to be judged when it ends.
struct Trace {
    /// What was here when it began, then what was asked for: objects and their lengths.
    accesses: Vec<(u32, u32)>,
    /// How many of them were here, and how many there will be in all.
    before: usize,
    count: usize,
    memory: Grant,
}

impl Trace {
    /// What an access takes, and then its share of the rule's own, and an object's in both.
    const ACCESS_BYTES: u64 = 8 + ACCESS_BYTES;
    const OBJECT_BYTES: u64 = 8;

    /// Bytes that Belady's rule would have hit within `limit`.
    fn optimum(&self, limit: u64, objects: u32) -> u64 {
        let mut sizes = vec![0u32; objects as usize];
        self.accesses.iter().for_each(|&(object, len)| sizes[object as usize] = taken(len.into()));
        let mut min = Min::new(limit);
        min.look_ahead(self.accesses.iter().map(|&(object, _)| object).collect(), objects);
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
    /// All that is charged.
    held: u64,
    decides: Option<Decides>,
    places: Places,
    trace: Option<Trace>,
    /// What the rule would have hit in the last epoch of which nothing was known.
    optimum_bytes: Option<u64>,
}

/// See the head of this file.
pub struct Repeated {
    budget: Budget,
    objects: u64,
    mean_bytes: u64,
    rule: Rule,
    state: Mutex<State>,
}

impl fmt::Debug for Repeated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repeated({:?}, {} bytes)", self.rule, Tier::held_bytes(self))
    }
}

/// What an object of so many bytes takes.
fn taken(bytes: u64) -> u32 {
    u32::try_from(bytes.max(1).next_multiple_of(PAGE_BYTES) + PLACE_BYTES).unwrap_or(u32::MAX)
}

impl Repeated {
    /// An empty tier that takes nothing yet, for keys below `objects`, which take `total_bytes` in all; `listed`: it will be told what
    /// comes.
    #[must_use]
    pub fn new(budget: &Budget, total_bytes: u64, objects: u64, listed: bool) -> Arc<Self> {
        let rule = if listed { Rule::Min } else { Rule::Adaptive };
        let mean_bytes = u64::from(taken(total_bytes / objects.max(1)));
        let tier =
            Arc::new(Self { budget: budget.clone(), objects, mean_bytes, rule, state: Mutex::default() });
        budget.reclaim_from(&(Arc::clone(&tier) as Arc<dyn Reclaim>));
        tier
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What it takes to judge an epoch of `count` accesses, unless that is too much.
    fn trace(&self, state: &mut State, count: u64) -> Option<Trace> {
        let count = usize::try_from(count).ok().filter(|&count| count > 0)?;
        let most = state.places.0.len() + count;
        let bytes = most as u64 * Trace::ACCESS_BYTES + self.objects * Trace::OBJECT_BYTES;
        if self.objects >= u64::from(u32::MAX) || bytes > state.limit / 8 {
            return None;
        }
        state.fit(state.limit - bytes);
        let memory = self.budget.try_acquire(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
        let mut accesses = Vec::with_capacity(most);
        let here = state.places.0.iter().filter_map(|(&object, place)| Some((object, place.here.as_ref()?)));
        accesses.extend(here.map(|(object, (lease, _))| (object, lease.len() as u32)));
        Some(Trace { before: accesses.len(), accesses, count, memory })
    }

    /// Who decides, within the limit; nobody where that is not worth it.
    fn decides(
        &self,
        state: &mut State,
        before: Option<Box<Min>>,
        coming: Coming,
        count: u64,
    ) -> Option<Decides> {
        let limit = state.limit;
        if self.objects >= u64::from(u32::MAX) || limit < self.mean_bytes {
            return None;
        }
        if self.rule == Rule::Adaptive {
            let items = (limit / self.mean_bytes) as usize;
            return Some(Decides::Adaptive(Cache::with(items, limit, Sizes, Hash::default(), Gone)));
        }
        // While the horizon is made, it takes a number for each object too.
        let room = (limit / 8).saturating_sub(4 * self.objects);
        let horizon = (room / ACCESS_BYTES).min(count.max(HORIZON_LEAST)).min(u64::from(u32::MAX) - 1);
        if horizon < HORIZON_LEAST {
            return None;
        }
        let bytes = 4 * self.objects + horizon * ACCESS_BYTES;
        let mut min = before.unwrap_or_else(|| Box::new(Min::new(limit)));
        let mut gone = Vec::new();
        min.set_limit(limit - bytes, &state.places, &mut |object| gone.push(object));
        state.remove(&gone);
        let memory = self.budget.try_acquire(Account::CacheMemory, bytes, Priority::CacheFill).ok()?;
        Some(Decides::Min { min, horizon: horizon as usize, coming: coming.peekable(), memory })
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

    fn remove(&mut self, gone: &[u32]) {
        for object in gone {
            let place = self.places.0.remove(object).filter(|place| place.here.is_some());
            self.held -= place.map_or(0, |place| u64::from(place.bytes));
        }
    }

    /// Lets go of all.
    fn clear(&mut self) {
        (self.decides, self.places, self.trace, self.held) = (None, Places::default(), None, 0);
    }

    /// What is taken besides objects.
    fn besides(&self) -> u64 {
        let trace = self.trace.as_ref().map_or(0, |trace| trace.memory.bytes());
        trace + self.decides.as_ref().map_or(0, Decides::bytes)
    }

    /// Makes `bytes` the most that all of it takes.
    fn fit(&mut self, bytes: u64) {
        let besides = self.besides();
        let Some(decides) = &mut self.decides else { return };
        let Some(capacity) = bytes.checked_sub(besides).filter(|&capacity| capacity > 0) else {
            return self.clear();
        };
        let mut gone = Vec::new();
        decides.set_capacity(capacity, &self.places, &mut gone);
        self.remove(&gone);
    }
}

impl Near for Repeated {
    fn lend(&self, key: u64) -> Option<Lent> {
        let object = u32::try_from(key).ok()?;
        let state = self.state();
        let (lease, _) = state.places.0.get(&object)?.here.as_ref()?;
        Some(Lent::Plain(lease.clone()))
    }

    fn rule(&self) -> Rule {
        self.rule
    }

    fn look_ahead(&self, coming: Coming, count: u64) {
        let state = &mut *self.state();
        if self.rule == Rule::Adaptive {
            state.held -= state.trace.take().map_or(0, |trace| trace.memory.bytes());
            state.optimum_bytes = None;
            state.trace = self.trace(state, count);
            state.held += state.trace.as_ref().map_or(0, |trace| trace.memory.bytes());
            if state.decides.is_some() {
                return state.fit(state.limit);
            }
        }
        state.held -= state.decides.as_ref().map_or(0, Decides::bytes);
        // Its memory goes before there is more, and what is here stays, as far as it is wanted.
        let before = match state.decides.take() {
            Some(Decides::Min { min, .. }) => Some(min),
            _ => None,
        };
        let Some(mut decides) = self.decides(state, before, coming, count) else { return state.clear() };
        if let Decides::Min { min, horizon, coming, .. } = &mut decides {
            let mut accesses = Vec::with_capacity(*horizon);
            accesses.extend(coming.by_ref().take(*horizon).map(|key| key as u32));
            min.look_ahead(accesses, self.objects as u32);
        }
        state.held += decides.bytes();
        state.decides = Some(decides);
        state.fit(state.limit);
    }

    fn optimum_bytes(&self) -> Option<u64> {
        self.state().optimum_bytes
    }

    fn meet(&self, key: u64, len: u64) -> bool {
        let state = &mut *self.state();
        let (Some(decides), Ok(object)) = (&mut state.decides, u32::try_from(key)) else { return false };
        decides.move_on(self.objects as u32);
        let (bytes, mut gone) = (taken(len), Vec::new());
        let outcome = decides.access(object, bytes, &state.places, &mut gone);
        state.remove(&gone);
        state.trace(object, len, self.objects as u32);
        if outcome == Outcome::Kept {
            state.places.0.insert(object, Place { bytes, here: None });
        }
        outcome == Outcome::Hit && self.rule == Rule::Min
    }
}

impl Tier for Repeated {
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
        let Lent::Plain(lease) = self.lend(key)? else { return None };
        into.get_mut(..lease.len())?.copy_from_slice(&lease);
        Some(lease.len())
    }

    fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
        let state = &mut *self.state();
        let Some(place) = u32::try_from(key).ok().and_then(|object| state.places.0.get_mut(&object)) else {
            return false;
        };
        if place.here.is_some() {
            return true;
        }
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let put = || {
            let pays =
                self.budget.try_acquire(Account::CacheMemory, PLACE_BYTES, Priority::CacheFill).ok()?;
            let block = self.budget.try_block(Account::CacheMemory, len.max(1), Priority::CacheFill).ok()?;
            let mut log = Log::new(block);
            let range = log.append(parts)?;
            Some((log.lend(range), pays))
        };
        // Larger than was said, it would take more than was decided.
        place.here = (taken(len) <= place.bytes).then(put).flatten();
        state.held += place.here.as_ref().map_or(0, |_| u64::from(place.bytes));
        place.here.is_some()
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

impl Reclaim for Repeated {
    fn held_bytes(&self) -> u64 {
        Tier::held_bytes(self)
    }

    fn reclaim(&self, bytes: u64) {
        let mut state = self.state();
        let most = state.held.saturating_sub(bytes);
        state.fit(most);
        // It would be taken again at once; the next epoch's plan says how much there is to have.
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

    fn tier(budget: &Budget, listed: bool) -> Arc<Repeated> {
        Repeated::new(budget, (0..OBJECTS).map(bytes).sum(), OBJECTS, listed)
    }

    /// An epoch, as the feed and a reader go through it: (hits, those of them that the rule foretold, bytes of hits).
    fn epoch(tier: &Repeated, accesses: &[u64], next: &[u64]) -> (usize, usize, u64) {
        let coming: Vec<u64> = accesses.iter().chain(next).copied().collect();
        let count = if tier.rule == Rule::Min { coming.len() } else { accesses.len() };
        tier.look_ahead(Box::new(coming.into_iter()), count as u64);
        let (mut hits, mut could, mut hit_bytes) = (0, 0, 0);
        for &key in accesses {
            could += usize::from(tier.meet(key, bytes(key)));
            match tier.lend(key) {
                Some(Lent::Plain(lease)) => {
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
            assert!(!tier.put(1, &[b"x"]), "nobody asked for it");
            tier.set_limit(limit);
            let run = |e: &[Vec<u64>]| {
                let (hits, could, hit_bytes) = epoch(&tier, &e[0], &e[1]);
                // What the rule would have hit is told afterwards, and more than what nobody foretold.
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
        for ((hits, could), (adaptive, nobody_knows)) in listed.into_iter().zip(unknown) {
            assert!(hits == could && nobody_knows == 0, "{hits} of {could}");
            // A quarter of the bytes are kept.
            assert!(hits > adaptive + 100 && adaptive > 1000, "{hits} and {adaptive}");
        }
    }

    #[test]
    fn a_short_horizon_moves_on() {
        let budget = Budget::new(64 << 20);
        let tier = tier(&budget, true);
        // An eighth of it lists 600 accesses, of 6,000.
        tier.set_limit(8 * (4 * OBJECTS + 600 * ACCESS_BYTES));
        let (now, next) = (accesses(1, 3000), accesses(2, 3000));
        let (hits, could, _) = epoch(&tier, &now, &next);
        assert!(hits == could && hits > 50, "{hits} of {could}");
        // Told of something else than what comes, it keeps nothing of it.
        tier.look_ahead(Box::new([1, 2].into_iter()), 2);
        assert!(!tier.meet(7, bytes(7)) && !tier.put(7, &[&object(7)]));
    }

    #[test]
    fn it_gives_way_and_takes_what_there_is_again() {
        for listed in [true, false] {
            let budget = Budget::new(8 << 20);
            let tier = tier(&budget, listed);
            tier.set_limit(6 << 20);
            let accesses = accesses(5, 3000);
            let before = epoch(&tier, &accesses, &accesses).0;
            let lent: Vec<_> = (0..OBJECTS).filter_map(|key| Some((key, tier.lend(key)?))).collect();
            let (key, Lent::Plain(lease)) = lent.into_iter().next().unwrap() else { panic!("as it is") };
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

    /// As where each object is asked for before it is put.
    #[derive(Debug)]
    struct Asked(Arc<Repeated>);

    impl Tier for Asked {
        fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
            self.0.get(key, into)
        }
        fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
            self.0.meet(key, parts.iter().map(|part| part.len() as u64).sum());
            self.0.put(key, parts)
        }
        fn limit_bytes(&self) -> u64 {
            self.0.limit_bytes()
        }
        fn set_limit(&self, bytes: u64) {
            self.0.set_limit(bytes);
            self.0.look_ahead(Box::new(std::iter::empty()), 0);
        }
        fn held_bytes(&self) -> u64 {
            Tier::held_bytes(&*self.0)
        }
    }

    #[test]
    fn it_keeps_the_promises_of_a_tier() {
        let budget = Budget::new(8 << 20);
        crate::testing::tier(&Asked(Repeated::new(&budget, 64 * 20_000, 64, false)), 40_000, 4 << 20)
            .unwrap();
    }
}
