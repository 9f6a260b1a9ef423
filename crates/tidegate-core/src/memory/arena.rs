//! The arena: best-fit extents of 4 KiB pages; reserving bytes and placing them is one operation.
//!
//! Flow: `attempt(account, bytes)` -> [`Block`]; a dropped block becomes a *warm* hole, resident
//! and still charged.
//! Memory: warm holes count against the budget until they are used again or released; cold ones
//! cost address space only.
//!
//! No request waits because of fragmentation. Address space is plentiful, so a request that fits
//! the budget always finds a place: at worst in a new region, after enough warm pages have gone
//! back to the kernel. A buddy system over the same bytes would waste some 40 % of the budget to
//! rounding.
#![expect(unsafe_code, reason = "hands out disjoint parts of mapped memory")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::ledger::{Grant, LedgerRef};
use super::region::{Backing, Region};
use super::{Account, Node, PAGE_BYTES};
use crate::Result;
use crate::sync::{Arc, Mutex, lock};

/// Region `i` starts at place `i << REGION_SHIFT`, so holes of two regions are never neighbours.
const REGION_SHIFT: u32 = 44;
/// The least address space of a region; the first one spans the whole budget.
const REGION_MIN_BYTES: u64 = 64 << 20;

/// How well the arena uses its pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Bytes that live blocks asked for.
    pub used_bytes: u64,
    /// Pages of live blocks: the difference to `used_bytes` is internal fragmentation.
    pub extent_bytes: u64,
    /// Resident pages of holes: external fragmentation.
    pub hole_bytes: u64,
    /// The largest resident hole.
    pub largest_hole_bytes: u64,
    /// Mapped regions.
    pub regions: u64,
    /// Bytes given back to the kernel so far.
    pub released_bytes: u64,
}

impl ArenaStats {
    /// The figures of two arenas together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            used_bytes: self.used_bytes + other.used_bytes,
            extent_bytes: self.extent_bytes + other.extent_bytes,
            hole_bytes: self.hole_bytes + other.hole_bytes,
            largest_hole_bytes: self.largest_hole_bytes.max(other.largest_hole_bytes),
            regions: self.regions + other.regions,
            released_bytes: self.released_bytes + other.released_bytes,
        }
    }
}

/// A place in shared memory: what another process needs to map the bytes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The memfd, open for as long as the budget is used.
    pub file: std::os::fd::RawFd,
    /// Its length.
    pub file_bytes: u64,
    /// The offset of the bytes in it.
    pub offset: u64,
}

/// The whole pages that a block of `bytes` takes.
pub(super) fn extent_bytes(bytes: u64) -> u64 {
    bytes.clamp(1, u64::MAX - PAGE_BYTES).next_multiple_of(PAGE_BYTES)
}

/// Free extents, findable by length and by place.
#[derive(Debug, Default)]
struct Holes {
    by_place: BTreeMap<u64, u64>,
    by_len: BTreeSet<(u64, u64)>,
    total: u64,
}

impl Holes {
    /// Adds a hole, merged with its neighbours.
    fn add(&mut self, mut place: u64, mut len: u64) {
        self.total += len;
        if let Some((&before, &n)) = self.by_place.range(..place).next_back()
            && before + n == place
        {
            self.forget(before, n);
            (place, len) = (before, n + len);
        }
        if let Some(&n) = self.by_place.get(&(place + len)) {
            self.forget(place + len, n);
            len += n;
        }
        self.by_place.insert(place, len);
        self.by_len.insert((len, place));
    }

    fn forget(&mut self, place: u64, len: u64) {
        self.by_place.remove(&place);
        self.by_len.remove(&(len, place));
    }

    /// Cuts `len` bytes from the smallest hole that holds them.
    fn best_fit(&mut self, len: u64) -> Option<u64> {
        let &(hole, place) = self.by_len.range((len, 0)..).next()?;
        self.cut(place, hole, len);
        Some(place)
    }

    fn cut(&mut self, place: u64, hole: u64, len: u64) {
        self.forget(place, hole);
        if hole > len {
            self.by_place.insert(place + len, hole - len);
            self.by_len.insert((hole - len, place + len));
        }
        self.total -= len;
    }

    fn largest(&self) -> Option<(u64, u64)> {
        self.by_len.last().map(|&(len, place)| (place, len))
    }
}

#[derive(Debug, Default)]
struct State {
    regions: Vec<Region>,
    warm: Holes,
    cold: Holes,
    used: u64,
    extents: u64,
    released: u64,
}

/// Mapped memory in extents; see the head of this file.
#[derive(Debug)]
pub(super) struct Arena {
    ledger: LedgerRef,
    backing: Backing,
    state: Mutex<State>,
    /// A member of a node stays one for as long as it holds a block.
    _node: Option<Arc<Node>>,
}

impl Arena {
    pub(super) fn new(ledger: LedgerRef, backing: Backing, node: Option<Arc<Node>>) -> Arc<Self> {
        Arc::new(Self { ledger, backing, state: Mutex::default(), _node: node })
    }

    /// The place of an address, if the arena is shared and the address is in it.
    pub(super) fn place(&self, address: usize) -> Option<Place> {
        let state = lock(&self.state);
        state.regions.iter().find_map(|region| {
            let (file, offset) = region.file_at(address)?;
            Some(Place { file, file_bytes: region.len() as u64, offset })
        })
    }

    pub(super) fn stats(&self) -> ArenaStats {
        let state = lock(&self.state);
        ArenaStats {
            used_bytes: state.used,
            extent_bytes: state.extents,
            hole_bytes: state.warm.total,
            largest_hole_bytes: state.warm.largest().map_or(0, |(_, len)| len),
            regions: state.regions.len() as u64,
            released_bytes: state.released,
        }
    }

    /// A block of `bytes`, if the budget holds them now: from a warm hole, or from cold pages
    /// charged here.
    pub(super) fn attempt(self: &Arc<Self>, account: Account, bytes: u64) -> Result<Option<Block>> {
        let extent = extent_bytes(bytes);
        let mut state = lock(&self.state);
        let place = match state.warm.best_fit(extent) {
            Some(place) => place,
            None => {
                if !self.ledger.charge(extent) {
                    self.release(&mut state, extent);
                    if !self.ledger.charge(extent) {
                        return Ok(None);
                    }
                }
                match state.cold_place(extent, self.ledger.cap_bytes(), self.backing) {
                    Ok(place) => place,
                    Err(error) => {
                        drop(state);
                        self.ledger.discharge(extent);
                        return Err(error);
                    }
                }
            }
        };
        state.used += bytes;
        state.extents += extent;
        let start = state.address(place);
        drop(state);
        let grant = self.ledger.grant(account, extent);
        Ok(Some(Block { arena: Arc::clone(self), start, place, bytes, grant: Some(grant) }))
    }

    /// Returns warm pages until `bytes` more can be charged, largest holes first; true if any page
    /// went.
    pub(super) fn reclaim(&self, bytes: u64) -> bool {
        self.release(&mut lock(&self.state), bytes)
    }

    fn release(&self, state: &mut State, bytes: u64) -> bool {
        let mut missing = self.ledger.missing(bytes).next_multiple_of(PAGE_BYTES);
        let mut any = false;
        while missing > 0
            && let Some((place, len)) = state.warm.largest()
        {
            let part = len.min(missing);
            state.warm.cut(place, len, part);
            let region = &state.regions[(place >> REGION_SHIFT) as usize];
            region.release((place & ((1 << REGION_SHIFT) - 1)) as usize, part as usize);
            state.cold.add(place, part);
            state.released += part;
            self.ledger.discharge(part);
            missing -= part;
            any = true;
        }
        any
    }

    /// Returns every warm page to the kernel.
    pub(super) fn release_all(&self) {
        let mut state = lock(&self.state);
        let all = state.warm.total + self.ledger.cap_bytes();
        self.release(&mut state, all);
    }

    fn give_back(&self, place: u64, bytes: u64, extent: u64) {
        let mut state = lock(&self.state);
        state.used -= bytes;
        state.extents -= extent;
        state.warm.add(place, extent);
        if self.ledger.missing(0) > 0 {
            // The cap was lowered while the block was in use: its pages go now.
            self.release(&mut state, 0);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state.regions);
        self.ledger.discharge(state.warm.total);
    }
}

impl State {
    fn cold_place(&mut self, extent: u64, cap: u64, backing: Backing) -> Result<u64> {
        if let Some(place) = self.cold.best_fit(extent) {
            return Ok(place);
        }
        let len = extent.max(REGION_MIN_BYTES).max(if self.regions.is_empty() { cap } else { 0 });
        let len = len.next_multiple_of(PAGE_BYTES);
        let region = Region::map(len as usize, backing)?;
        let place = (self.regions.len() as u64) << REGION_SHIFT;
        self.cold.add(place, region.len() as u64);
        self.regions.push(region);
        let hole = self.cold.by_place[&place];
        self.cold.cut(place, hole, extent);
        Ok(place)
    }

    fn address(&self, place: u64) -> NonNull<u8> {
        self.regions[(place >> REGION_SHIFT) as usize].at((place & ((1 << REGION_SHIFT) - 1)) as usize)
    }
}

/// The arenas of a budget: one for each [`Backing`].
#[derive(Debug)]
pub(super) struct Arenas([Arc<Arena>; Backing::ALL.len()]);

impl Arenas {
    pub(super) fn new(ledger: &LedgerRef, node: Option<&Arc<Node>>) -> Self {
        Self(Backing::ALL.map(|backing| Arena::new(ledger.clone(), backing, node.cloned())))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Arena>> {
        self.0.iter()
    }

    /// All arenas but the one of `backing`.
    pub(super) fn others(&self, backing: Backing) -> impl Iterator<Item = &Arc<Arena>> {
        self.iter().filter(move |arena| arena.backing != backing)
    }
}

impl std::ops::Index<Backing> for Arenas {
    type Output = Arc<Arena>;
    fn index(&self, backing: Backing) -> &Arc<Arena> {
        // `ALL` lists the variants in the order of their declaration.
        &self.0[backing as usize]
    }
}

/// Page-aligned bytes of the budget. They start as zeros or as what the last block there left.
#[must_use = "dropping a block gives its pages back at once"]
pub struct Block {
    arena: Arc<Arena>,
    start: NonNull<u8>,
    place: u64,
    bytes: u64,
    grant: Option<Grant>,
}

// SAFETY: a Block owns its extent alone, like a Box<[u8]>.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:?}, {} B)", self.grant, self.bytes)
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the extent is mapped for as long as the arena lives, initialized (the kernel
        // gives zeros) and owned by this block alone until it is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes as usize) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes as usize) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.give_back(self.place, self.bytes, extent_bytes(self.bytes));
        if let Some(grant) = self.grant.take() {
            grant.leave_resident();
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Budget, Priority};
    use proptest::prelude::*;

    #[test]
    fn a_hole_is_used_again_and_released_when_another_size_needs_it() {
        let budget = Budget::new(16 * PAGE_BYTES);
        let block = |pages: u64| budget.try_block(Account::Raw, pages * PAGE_BYTES, Priority::Prefetch);
        let (a, b, c) = (block(5).unwrap(), block(6).unwrap(), block(5).unwrap());
        let address = a.as_ptr();
        assert!(block(1).is_err());
        drop(a);
        assert_eq!(budget.arena().hole_bytes, 5 * PAGE_BYTES);
        let again = block(4).unwrap();
        assert_eq!((again.as_ptr(), budget.arena().hole_bytes), (address, PAGE_BYTES));
        drop((again, c));
        // Two holes of five pages each: ten pages fit the budget but no hole, so pages move.
        let large = block(10).unwrap();
        assert!(large.iter().all(|&x| x == 0));
        assert_eq!(budget.usage().charged_bytes, 16 * PAGE_BYTES);
        drop((large, b));
    }

    proptest! {
        /// Blocks never overlap, never exceed the cap, and keep what was written into them.
        #[test]
        fn blocks_are_disjoint_and_bounded(steps in prop::collection::vec((1u64..40_000, any::<bool>()), 1..120)) {
            let budget = Budget::new(256 << 10);
            let mut live: Vec<(Block, u8)> = Vec::new();
            for (i, (bytes, release)) in steps.into_iter().enumerate() {
                if release && !live.is_empty() {
                    let (block, mark) = live.swap_remove(bytes as usize % live.len());
                    prop_assert!(block.iter().all(|&x| x == mark));
                } else if let Ok(mut block) = budget.try_block(Account::Raw, bytes, Priority::Prefetch) {
                    let mark = i as u8;
                    block.fill(mark);
                    live.push((block, mark));
                } else {
                    let extents: u64 = live.iter().map(|(b, _)| (b.len() as u64).next_multiple_of(PAGE_BYTES)).sum();
                    prop_assert!(extents + bytes.next_multiple_of(PAGE_BYTES) > 256 << 10, "refused what fits");
                }
                prop_assert!(budget.usage().charged_bytes <= 256 << 10);
                let stats = budget.arena();
                prop_assert_eq!(stats.extent_bytes + stats.hole_bytes, budget.usage().charged_bytes);
            }
            for (block, mark) in &live {
                prop_assert!(block.iter().all(|x| x == mark));
            }
        }
    }
}
