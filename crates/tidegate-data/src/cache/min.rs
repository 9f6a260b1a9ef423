//! Which objects to keep when accesses are known: Belady's MIN, weighted by bytes.
//!
//! Flow: the accesses of this epoch and of the next -> for each access in turn: was it a hit, is
//! the object kept, what was evicted.
//! Memory: 8 bytes an access of the horizon (its object, and its next access) and a bit or two;
//! the caller charges them.
//!
//! The rule keeps the objects that are used again soonest. With objects of one size no policy hits
//! more often (Belady 1966). With several sizes it is a greedy rule, since the optimum is NP-hard.
//! A resident object is known by the position of its next access, so the resident set is a set of
//! positions. One bit answers both questions: is this access a hit, and which object is used last.

use super::tier::Objects;

/// No further access within the horizon.
const NEVER: u32 = u32::MAX;
/// The number of accesses whose sizes are looked up together: scattered reads that do not wait for
/// each other.
const SIZES_AHEAD: usize = 64;

/// A set of positions that finds its largest quickly: words of bits, and levels above them that
/// say which words are not empty.
#[derive(Debug, Default)]
struct Positions {
    levels: Vec<Vec<u64>>,
    /// No word beyond this one has a position. The largest is mostly in it.
    last_word: usize,
}

impl Positions {
    fn new(len: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = len.div_ceil(64).max(1);
        loop {
            levels.push(vec![0; words]);
            if words == 1 {
                return Self { levels, last_word: 0 };
            }
            words = words.div_ceil(64);
        }
    }

    fn has(&self, at: u32) -> bool {
        self.levels[0][at as usize / 64] >> (at % 64) & 1 == 1
    }

    fn add(&mut self, at: u32) {
        let mut at = at as usize;
        self.last_word = self.last_word.max(at / 64);
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let was_empty = *word == 0;
            *word |= 1 << (at % 64);
            if !was_empty {
                return;
            }
            at /= 64;
        }
    }

    fn remove(&mut self, at: u32) {
        let mut at = at as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    fn largest(&mut self) -> Option<u32> {
        let bit = |word: u64, at: usize| 64 * at + 63 - word.leading_zeros() as usize;
        let word = self.levels[0][self.last_word];
        if word != 0 {
            return Some(bit(word, self.last_word) as u32);
        }
        let mut at = 0usize;
        for level in self.levels.iter().rev() {
            let word = level[at];
            if word == 0 {
                return None;
            }
            at = bit(word, at);
        }
        self.last_word = at / 64;
        Some(at as u32)
    }
}

/// The result of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The object was resident.
    Hit,
    /// The object was not resident, and is kept from now on.
    Admitted,
    /// The object was not resident, and is not worth keeping.
    Rejected,
}

/// Belady's rule over a horizon of accesses; the head of this file says how it works.
#[derive(Debug)]
pub struct Min {
    limit: u64,
    held: u64,
    at: u32,
    /// Bytes of the objects of the accesses around `at`.
    bytes: [u64; SIZES_AHEAD],
    accesses: Vec<u32>,
    next: Vec<u32>,
    resident: Positions,
    /// Resident objects that no access of the horizon uses; they are evicted first.
    unwanted: Vec<u32>,
}

impl Min {
    /// An empty set with room for `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            held: 0,
            at: 0,
            bytes: [0; SIZES_AHEAD],
            accesses: Vec::new(),
            next: Vec::new(),
            resident: Positions::new(0),
            unwanted: Vec::new(),
        }
    }

    /// Sets the accesses that follow: those of the epoch that begins now, and behind them those
    /// that are known beyond it.
    ///
    /// Resident objects stay.
    ///
    /// # Panics
    /// If there are 2³² - 1 accesses or more.
    pub fn set_future(&mut self, accesses: Vec<u32>, objects: u32) {
        assert!(accesses.len() < NEVER as usize, "a horizon of {} accesses", accesses.len());
        let mut kept = std::mem::take(&mut self.unwanted);
        while let Some(at) = self.resident.largest() {
            self.resident.remove(at);
            kept.push(self.accesses[at as usize]);
        }
        // The old lists are freed before the new ones are built.
        (self.accesses, self.next) = (Vec::new(), Vec::new());
        let mut first = vec![NEVER; objects as usize];
        let mut next = vec![NEVER; accesses.len()];
        for (at, &object) in accesses.iter().enumerate().rev() {
            next[at] = std::mem::replace(&mut first[object as usize], at as u32);
        }
        self.resident = Positions::new(accesses.len());
        (self.at, self.accesses, self.next) = (0, accesses, next);
        for object in kept {
            self.add(object, first[object as usize]);
        }
    }

    fn add(&mut self, object: u32, next: u32) {
        if next == NEVER {
            self.unwanted.push(object);
        } else {
            self.resident.add(next);
        }
    }

    /// Bytes of the resident objects.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held
    }

    /// Removes the object that is used last, if its next access is after `than`.
    fn pop_last_after(&mut self, than: u32) -> Option<u32> {
        if let Some(object) = self.unwanted.pop() {
            return Some(object);
        }
        if self.resident.largest()? > than { self.pop_last() } else { None }
    }

    /// Removes the object that is used last.
    fn pop_last(&mut self) -> Option<u32> {
        let last = self.resident.largest()?;
        self.resident.remove(last);
        Some(self.accesses[last as usize])
    }

    /// The accesses of the horizon that are still to come.
    #[must_use]
    pub fn remaining(&self) -> &[u32] {
        &self.accesses[self.at as usize..]
    }

    /// Changes the limit; `evicted` gets each evicted object, the one that is used last first.
    pub fn set_limit<S: Objects + ?Sized>(&mut self, limit: u64, sizes: &S, evicted: &mut impl FnMut(u32)) {
        self.limit = limit;
        while self.held > limit
            && let Some(object) = self.unwanted.pop().or_else(|| self.pop_last())
        {
            self.held -= sizes.bytes(object);
            evicted(object);
        }
    }

    /// Performs the next access; `evicted` gets each object that was evicted for it.
    ///
    /// # Panics
    /// If the horizon has no more accesses.
    pub fn access<S: Objects + ?Sized>(&mut self, sizes: &S, evicted: &mut impl FnMut(u32)) -> Outcome {
        let at = self.at as usize;
        if at.is_multiple_of(SIZES_AHEAD) {
            let some = self.accesses[at..].iter().zip(&mut self.bytes);
            some.for_each(|(&object, bytes)| *bytes = sizes.bytes(object));
        }
        self.access_with_size(self.bytes[at % SIZES_AHEAD], sizes, evicted)
    }

    /// As [`Min::access`], for an object whose size is known; `sizes` gives those of evicted ones.
    ///
    /// # Panics
    /// As [`Min::access`].
    pub fn access_with_size<S: Objects + ?Sized>(
        &mut self,
        bytes: u64,
        sizes: &S,
        evicted: &mut impl FnMut(u32),
    ) -> Outcome {
        let (at, next) = (self.at, self.next[self.at as usize]);
        let object = self.accesses[at as usize];
        self.at += 1;
        if self.resident.has(at) {
            self.resident.remove(at);
            self.add(object, next);
            return Outcome::Hit;
        }
        if bytes > self.limit {
            return Outcome::Rejected;
        }
        while self.held + bytes > self.limit {
            // Objects that are used sooner stay. An object that is never used again evicts
            // nothing.
            let last = if next == NEVER { None } else { self.pop_last_after(next) };
            let Some(object) = last else { return Outcome::Rejected };
            self.held -= sizes.bytes(object);
            evicted(object);
        }
        self.held += bytes;
        self.add(object, next);
        Outcome::Admitted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The same rule over a map from objects to their next access, found by searching.
    fn naive(accesses: &[u32], sizes: &[u64], limit: u64) -> Vec<Outcome> {
        let next = |object: u32, after: usize| {
            accesses[after..].iter().position(|&o| o == object).map_or(usize::MAX, |i| after + i)
        };
        let mut here: BTreeMap<u32, u64> = BTreeMap::new();
        let mut outcomes = Vec::new();
        for (at, &object) in accesses.iter().enumerate() {
            if here.contains_key(&object) {
                outcomes.push(Outcome::Hit);
                continue;
            }
            let (bytes, mine) = (sizes[object as usize], next(object, at + 1));
            if bytes > limit {
                outcomes.push(Outcome::Rejected);
                continue;
            }
            let outcome = loop {
                if here.values().sum::<u64>() + bytes <= limit {
                    here.insert(object, bytes);
                    break Outcome::Admitted;
                }
                let last = here.keys().copied().max_by_key(|&o| next(o, at + 1)).unwrap();
                let theirs = next(last, at + 1);
                if mine == usize::MAX || (theirs != usize::MAX && theirs < mine) {
                    break Outcome::Rejected;
                }
                here.remove(&last);
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    fn hits(accesses: &[u32], objects: u32, limit: u64, epoch: usize, horizon: usize) -> usize {
        let mut min = Min::new(limit);
        let mut hits = 0;
        for start in (0..accesses.len()).step_by(epoch) {
            min.set_future(accesses[start..(start + horizon).min(accesses.len())].to_vec(), objects);
            for _ in 0..epoch.min(accesses.len() - start) {
                hits += usize::from(min.access(&1u64, &mut |_| ()) == Outcome::Hit);
            }
        }
        hits
    }

    proptest! {
        #[test]
        fn it_does_what_the_rule_says(
            accesses in prop::collection::vec(0u32..20, 1..200), limit in 0u64..60, one in any::<bool>(),
        ) {
            let sizes: Vec<u64> = (0..20).map(|i| if one { 5 } else { 1 + i * 7 % 11 }).collect();
            let mut min = Min::new(limit);
            min.set_future(accesses.clone(), 20);
            let outcomes: Vec<_> = accesses.iter().map(|_| min.access(&sizes, &mut |_| ())).collect();
            let naive = naive(&accesses, &sizes, limit);
            let count = |o: &[Outcome]| o.iter().filter(|&&o| o == Outcome::Hit).count();
            if one {
                // Among objects that are never used again, it does not matter which one goes.
                prop_assert_eq!(count(&outcomes), count(&naive));
            }
            prop_assert!(min.held_bytes() <= limit);
        }

        #[test]
        fn what_it_says_is_here_is_here(
            accesses in prop::collection::vec(0u32..30, 40..200),
        ) {
            let sizes: Vec<u64> = (0..30).map(|i| 1 + i * 7 % 11).collect();
            let mut min = Min::new(50);
            let mut here = std::collections::BTreeSet::new();
            for start in (0..accesses.len()).step_by(50) {
                min.set_future(accesses[start..(start + 100).min(accesses.len())].to_vec(), 30);
                for &object in accesses[start..].iter().take(50) {
                    let outcome = min.access(&sizes, &mut |evicted| assert!(here.remove(&evicted), "{evicted} was not here"));
                    prop_assert_eq!(outcome == Outcome::Hit, here.contains(&object));
                    if outcome == Outcome::Admitted {
                        here.insert(object);
                    }
                    let bytes: u64 = here.iter().map(|&o| sizes[o as usize]).sum();
                    prop_assert_eq!(bytes, min.held_bytes());
                }
                prop_assert!(min.held_bytes() <= 50);
            }
        }
    }

    #[test]
    fn an_epoch_without_replacement_hits_what_fits() {
        let epoch = |seed: u64| {
            let order = tidegate_order::permutation::Permutation::new(1000, 7, seed, 0);
            (0..1000).map(move |p| order.apply(p) as u32)
        };
        let accesses: Vec<u32> = (0..5).flat_map(epoch).collect();
        assert_eq!(hits(&accesses, 1000, 250, 1000, 2000), 4 * 250);
        // A known future of this epoch alone is as good here, and no policy knows more.
        assert_eq!(hits(&accesses, 1000, 250, 5000, 5000), 4 * 250);
    }

    /// Processes that draw from the same objects, with memory for a fraction of them: Belady's
    /// rule in equal parts, a fixed set in common, or half of each. Halves are never far from the
    /// better of the other two.
    #[test]
    fn halves_of_a_common_set_and_of_ones_own_are_near_the_better_one() {
        let objects = 1000u64;
        let hits = |accesses: &[u32], limit: u64| {
            let mut min = Min::new(limit);
            min.set_future(accesses.to_vec(), objects as u32);
            accesses.iter().filter(|_| min.access(&1u64, &mut |_| ()) == Outcome::Hit).count() as f64
        };
        for (share, processes) in
            [(100, 1), (100, 4), (100, 8), (300, 1), (300, 4), (300, 8), (500, 1), (500, 4), (500, 8)]
        {
            let drawn = |i: u64| (tidegate_core::hash::splitmix64(i) % objects) as u32;
            let accesses: Vec<u32> = (0..16_000 / processes).map(drawn).collect();
            let count = accesses.len() as f64;
            let (own, common) = (hits(&accesses, share / processes) / count, share as f64 / objects as f64);
            let others: Vec<u32> =
                accesses.iter().copied().filter(|object| u64::from(*object) >= share / 2).collect();
            let halves = (count - others.len() as f64 + hits(&others, share / 2 / processes)) / count;
            assert!(
                halves >= 0.8 * own.max(common),
                "{share} for {processes}: {own:.2}, {common:.2}, halves {halves:.2}"
            );
        }
    }
}
