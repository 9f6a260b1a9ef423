//! The first tier: samples in memory, lent without a copy, or packed where that makes room for more of them.
//!
//! Flow: [`Memory::put`] copies an object behind the last one of a segment; [`Near::lend`] gives it out.
//! Memory: segments of some MiB ([`Log`]) and the table of places (account `cache.memory`), taken when they are needed at the lowest
//! priority, given back a segment at a time when the limit falls or others lack memory. Segments of packed objects and what packing
//! takes are of account `cache.compressed`, within the same limit.
//!
//! Objects are packed only where not all of them fit as they are, and a probe of the first ones says that it gains (`codec`).
//!
//! Objects are packed one behind another, since the set that is kept does not change: blocks of whole pages would waste half a
//! page each, and a heap would fragment. A segment lives as long as any of its objects is lent.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use tidegate_core::sync::lock;

use tidegate_core::hash::splitmix64;
use tidegate_core::memory::{Account, Budget, Grant, Lease, Log, PAGE_BYTES, Priority, Reclaim};

use super::codec::{Codec, Packer, Probe};
use super::{Near, Rule, Share, Tier};

/// The largest segment; a tier has 16 of them if it is small.
const SEGMENT_BYTES: u64 = 4 << 20;
/// What the table takes at most for each place it has room for: a key, a place and a tag, in powers of two 7/8 full.
const PLACE_BYTES: u64 = 32;

/// Spreads keys by [`splitmix64`].
#[derive(Debug, Clone, Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
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
struct Place {
    segment: u32,
    start: u32,
    len: u32,
    /// The length of a packed object; 0: it lies there as it is.
    unpacked: u32,
}

/// An object that is lent.
#[derive(Debug, Clone)]
pub enum Lent {
    /// As it is.
    Plain(Lease),
    /// To be unpacked.
    Packed(Packed),
}

/// A packed object.
#[derive(Debug, Clone)]
pub struct Packed {
    lease: Lease,
    codec: Codec,
    len: usize,
}

impl Packed {
    /// The object's length.
    #[must_use]
    pub fn unpacked_len(&self) -> usize {
        self.len
    }

    /// Unpacks it into the beginning of `into`; false if there is no room for it, or its bytes are damaged.
    #[must_use]
    pub fn unpack(&self, into: &mut [u8]) -> bool {
        into.get_mut(..self.len).is_some_and(|into| self.codec.unpack(&self.lease, into))
    }
}

/// Whether objects are packed.
#[derive(Debug)]
enum Packing {
    Never,
    /// Not decided yet.
    Probing(Probe),
    By(Codec, f64),
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
    packing: Packing,
    packer: Packer,
    /// For the packer, and for what threads that unpack keep.
    tools: Option<Grant>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Memory {
    budget: Budget,
    total_bytes: u64,
    count: u64,
    /// The largest object, and the threads that unpack; none: nothing is packed.
    packs: Option<(u64, u64)>,
    state: Mutex<State>,
}

impl Memory {
    /// An empty tier for a source of `count` objects and `total_bytes`; it holds nothing until it has a limit.
    #[must_use]
    pub fn new(budget: &Budget, total_bytes: u64, count: u64) -> Arc<Self> {
        Self::made(budget, total_bytes, count, None)
    }

    /// As [`Memory::new`], for objects of up to `largest` bytes that may be packed, and unpacked by so many threads.
    #[must_use]
    pub fn packing(budget: &Budget, total_bytes: u64, count: u64, largest: u64, threads: u64) -> Arc<Self> {
        Self::made(budget, total_bytes, count, Some((largest, threads)))
    }

    fn made(budget: &Budget, total_bytes: u64, count: u64, packs: Option<(u64, u64)>) -> Arc<Self> {
        let state = State {
            limit: 0,
            held: 0,
            share: Share::fitting(0, total_bytes, count),
            places: HashMap::default(),
            segments: Vec::new(),
            table: None,
            packing: if packs.is_some() { Packing::Probing(Probe::default()) } else { Packing::Never },
            packer: Packer::default(),
            tools: None,
        };
        let state = Mutex::new(state);
        let tier = Arc::new(Self { budget: budget.clone(), total_bytes, count, packs, state });
        budget.reclaim_from(&(Arc::clone(&tier) as Arc<dyn Reclaim>));
        tier
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn fitting(&self, limit: u64, packing: &Packing) -> Share {
        let gain = if let Packing::By(_, gain) = packing { *gain } else { 1.0 };
        Share::fitting(limit, (self.total_bytes as f64 / gain) as u64, self.count)
    }

    /// Looks at one more of the first objects, where packing could make room for more.
    fn probe(&self, state: &mut State, object: &[u8]) {
        let Some((largest, threads)) = self.packs.filter(|_| self.total_bytes > state.limit) else { return };
        let Packing::Probing(probe) = &mut state.packing else { return };
        let room = Packer::room_bytes(largest);
        // What packing takes is not worth it in a small cache.
        let small = room + threads * Codec::Zstd.thread_bytes(largest) > state.limit / 4;
        if small || object.len() as u64 > largest {
            return;
        }
        if state.tools.is_none() && state.held + room <= state.limit {
            state.tools = self.budget.try_acquire(Account::CacheCompressed, room, Priority::CacheFill).ok();
            state.held += state.tools.as_ref().map_or(0, Grant::bytes);
        }
        if state.tools.is_none() {
            return;
        }
        let Some(chosen) = probe.look(&mut state.packer, object) else { return };
        let packing = chosen.and_then(|(codec, gain)| {
            let more = threads * codec.thread_bytes(largest);
            let fits = room + more <= state.limit / 4 && state.held + more <= state.limit;
            let take =
                || self.budget.try_acquire(Account::CacheCompressed, room + more, Priority::CacheFill).ok();
            let tools = fits.then(take).flatten()?;
            state.held += more;
            state.tools = Some(tools);
            Some(Packing::By(codec, gain))
        });
        state.packing = packing.unwrap_or_else(|| {
            (state.packer, state.held) =
                (Packer::default(), state.held - state.tools.take().map_or(0, |g| g.bytes()));
            Packing::Never
        });
        state.share = self.fitting(state.limit, &state.packing);
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
            let packed = matches!(self.packing, Packing::By(..));
            let account = if packed { Account::CacheCompressed } else { Account::CacheMemory };
            let block = budget.try_block(account, bytes, Priority::CacheFill).ok()?;
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
            (self.tools, self.packer) = (None, Packer::default());
            if !matches!(self.packing, Packing::Never) {
                self.packing = Packing::Probing(Probe::default());
            }
        }
    }

    /// Writes an object as it is, or packed.
    fn append(&mut self, budget: &Budget, parts: &[&[u8]], unpacked: u32) -> Option<Place> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if !self.has_room(len as u64) {
            return None;
        }
        self.grow_table(budget)?;
        let range = self.room(budget, len as u64)?.append(parts)?;
        let segment = self.segments.len() as u32 - 1;
        Some(Place { segment, start: range.start as u32, len: u32::try_from(len).ok()?, unpacked })
    }

    /// As [`State::append`], after packing the first of `parts` where that makes it smaller.
    fn append_packed(&mut self, budget: &Budget, parts: &[&[u8]], codec: Codec) -> Option<Place> {
        let object = *parts.first()?;
        let mut packer = std::mem::take(&mut self.packer);
        let packed = packer.pack(codec, object).filter(|packed| packed.len() < object.len());
        let place = match packed {
            Some(packed) => self.append(budget, &[packed], u32::try_from(object.len()).ok()?),
            None => self.append(budget, parts, 0),
        };
        self.packer = packer;
        place
    }
}

impl Near for Memory {
    fn lend(&self, key: u64) -> Option<Lent> {
        let state = self.state();
        let place = state.places.get(&key)?;
        let (start, len) = (place.start as usize, place.len as usize);
        let lease = state.segments.get(place.segment as usize)?.lend(start..start + len);
        match (place.unpacked, &state.packing) {
            (0, _) => Some(Lent::Plain(lease)),
            (len, &Packing::By(codec, _)) => Some(Lent::Packed(Packed { lease, codec, len: len as usize })),
            _ => None,
        }
    }

    fn codec(&self) -> Option<(Codec, f64)> {
        match self.state().packing {
            Packing::By(codec, gain) => Some((codec, gain)),
            _ => None,
        }
    }

    fn rule(&self) -> Rule {
        Rule::Fixed
    }
}

impl Tier for Memory {
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize> {
        match self.lend(key)? {
            Lent::Plain(lease) => {
                into.get_mut(..lease.len())?.copy_from_slice(&lease);
                Some(lease.len())
            }
            Lent::Packed(packed) => packed.unpack(into).then_some(packed.unpacked_len()),
        }
    }

    fn put(&self, key: u64, parts: &[&[u8]]) -> bool {
        let mut state = self.state();
        if state.places.contains_key(&key) {
            return true;
        }
        if !state.share.has(key) {
            return false;
        }
        let place = match (&state.packing, parts) {
            // What comes behind the object can be had elsewhere.
            (&Packing::By(codec, _), [object, ..]) if !object.is_empty() => {
                state.append_packed(&self.budget, parts, codec)
            }
            (_, [object, ..]) => {
                self.probe(&mut state, object);
                state.append(&self.budget, parts, 0)
            }
            _ => state.append(&self.budget, parts, 0),
        };
        let Some(place) = place else { return false };
        state.places.insert(key, place);
        true
    }

    fn limit_bytes(&self) -> u64 {
        self.state().limit
    }

    fn set_limit(&self, bytes: u64) {
        let mut state = self.state();
        state.limit = bytes;
        state.share = self.fitting(bytes, &state.packing);
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

    fn is(tier: &Memory, key: u64, object: &[u8]) -> bool {
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
        let right = |tier: &Memory| (0..count).filter(|&key| is(tier, key, &object(key))).count();
        let plain = Memory::new(&budget, count * bytes, count);
        plain.set_limit(40 << 20);
        let as_they_are = fill(&plain);
        plain.set_limit(0);
        let tier = Memory::packing(&budget, count * bytes, count, bytes, 4);
        tier.set_limit(40 << 20);
        // The probe, and then more room in the same bytes; again once more is wanted.
        let [.., packed] = [(); 3].map(|()| fill(&tier));
        let (codec, gain) = tier.codec().unwrap();
        assert!(packed > 2 * as_they_are, "{packed} and {as_they_are}, {codec:?} gains {gain}");
        // Those of the probe lie there as they are, with what came behind them.
        assert!(right(&tier) >= packed - 32, "{} of {packed}", right(&tier));
        let held = |account| budget.account(account).held_bytes;
        assert_eq!(held(Account::CacheMemory) + held(Account::CacheCompressed), Tier::held_bytes(&*tier));
        assert!(Tier::held_bytes(&*tier) <= 40 << 20);
        let batch = budget.try_block(Account::Batch, 40 << 20, Priority::NextBatch).unwrap();
        assert!(Tier::held_bytes(&*tier) <= 8 << 20);
        drop(batch);
        tier.set_limit(0);
        assert_eq!(held(Account::CacheMemory) + held(Account::CacheCompressed), 0);
        crate::testing::tier(&*Memory::packing(&budget, 64 * 20_000, 64, 40_000, 1), 40_000, 32 << 20)
            .unwrap();
    }

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
        let kept = || (0..count).filter(|&key| is(&tier, key, &object(key))).count();
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
        let Some(Lent::Plain(lease)) = tier.lend(key) else { panic!("it is as it was") };
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
                assert_eq!(is(&tier, key as u64, &[a, b].concat()), put);
                assert!(Tier::held_bytes(&*tier) <= limit);
            }
        }
        assert_eq!(budget.usage().charged_bytes, budget.arena().hole_bytes);
    }
}
