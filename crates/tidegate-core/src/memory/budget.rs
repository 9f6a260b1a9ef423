//! The budget: the ledger and the arena behind one number, shared by everything in the process.
//!
//! Flow: size -> grants (bytes alone) and blocks (bytes with their place).
//! Memory: all of it; every byte that Tidegate holds is charged here first.

use std::collections::HashMap;

use super::arena::{Arena, ArenaStats, Arenas, Block, Place, extent_bytes};
use super::ledger::{AccountUse, Grant, LedgerRef, Priority, Use};
use super::region::Backing;
use super::{Account, Node, size::Size};
use crate::sync::{Arc, StopWhen, lock};
use crate::{Error, Result};

/// Who holds bytes that can be had again at a price: a cache. It takes them with [`Priority::CacheFill`] and gives them up when
/// somebody of a higher priority lacks memory.
pub trait Reclaim: Send + Sync + std::fmt::Debug {
    /// Bytes that it could give up.
    fn held_bytes(&self) -> u64;

    /// Gives up at least `bytes` and at least one, or all there are, without taking any.
    fn reclaim(&self, bytes: u64);
}

#[derive(Debug)]
struct Inner {
    ledger: LedgerRef,
    arenas: Arenas,
    reclaimers: std::sync::Mutex<Vec<std::sync::Weak<dyn Reclaim>>>,
    /// The processes that share the budget, if it is not this one's alone.
    node: Option<Arc<Node>>,
}

/// One hard memory budget; clones share it.
///
/// ```
/// use tidegate_core::memory::{Account, Budget, Priority};
/// let budget = Budget::new(1 << 20);
/// let mut block = budget.try_block(Account::Batch, 1000, Priority::NextBatch)?;
/// block.fill(7);
/// assert_eq!(budget.account(Account::Batch).held_bytes, 4096);
/// drop(block);
/// assert_eq!(budget.account(Account::Batch).held_bytes, 0);
/// # Ok::<(), tidegate_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<Inner>,
    /// Which arena blocks come from.
    backing: Backing,
}

/// The budget that sizes refer to; it lives as long as anyone uses it.
static PROCESS: std::sync::Mutex<std::sync::Weak<Inner>> = std::sync::Mutex::new(std::sync::Weak::new());

/// Budgets that this process shares with others, by name.
static NODES: std::sync::Mutex<Option<HashMap<String, std::sync::Weak<Inner>>>> = std::sync::Mutex::new(None);

impl Budget {
    /// A budget of `bytes`, apart from the process-wide one.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::over(LedgerRef::new(bytes), None)
    }

    fn over(ledger: LedgerRef, node: Option<Arc<Node>>) -> Self {
        let arenas = Arenas::new(&ledger, node.as_ref());
        let reclaimers = std::sync::Mutex::default();
        Self::from_inner(Arc::new(Inner { ledger, arenas, reclaimers, node }))
    }

    fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner, backing: Backing::Private }
    }

    /// The budget of `bytes` that up to `processes` processes of this machine share, made or joined by its name. Each may hold an
    /// equal part by itself; what is left of all keeps objects for all of them ([`Node`]).
    ///
    /// ```
    /// use tidegate_core::memory::Budget;
    /// let budget = Budget::node("example", 64 << 20, 2)?;
    /// assert!(budget.cap_bytes() <= 32 << 20);
    /// assert!(Budget::node("example", 65 << 20, 2).is_err());
    /// # Ok::<(), tidegate_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Node`]: another size than the others', another memory group, or more processes than were said.
    pub fn node(name: &str, bytes: u64, processes: u64) -> Result<Self> {
        let mut nodes = lock(&NODES);
        let nodes = nodes.get_or_insert_default();
        // One process is one member, however many loaders it has.
        if let Some(inner) = nodes.get(name).and_then(std::sync::Weak::upgrade)
            && let Some(node) = &inner.node
            && node.again(bytes, processes)?
        {
            return Ok(Self::from_inner(inner));
        }
        let node = Arc::new(Node::join(name, bytes, processes)?);
        let budget = Self::over(LedgerRef::within(&node), Some(node));
        nodes.insert(name.to_owned(), Arc::downgrade(&budget.inner));
        Ok(budget)
    }

    /// The processes that share the budget, if there are others.
    #[must_use]
    pub fn shared_by(&self) -> Option<&Arc<Node>> {
        self.inner.node.as_ref()
    }

    /// The same budget; its blocks come from memory of `backing`.
    #[must_use]
    pub fn with_backing(&self, backing: Backing) -> Self {
        Self { inner: Arc::clone(&self.inner), backing }
    }

    /// The same budget; its blocks come from memory that other processes can map.
    ///
    /// A forked process sees later writes to it. Of private memory it would keep a copy.
    #[must_use]
    pub fn shared(&self) -> Self {
        self.with_backing(Backing::Shared)
    }

    /// Where in shared memory an address lies, if it does.
    #[must_use]
    pub fn place(&self, address: usize) -> Option<Place> {
        self.inner.arenas.iter().find_map(|arena| arena.place(address))
    }

    /// The process-wide budget: made with this size, or joined if one of this size is in use.
    ///
    /// # Errors
    /// [`Error::OtherBudget`] when a budget of another size is in use; [`Error::Size`] when the size makes no sense.
    pub fn process(size: &Size) -> Result<Self> {
        let bytes = size.bytes()?;
        let mut process = lock(&PROCESS);
        if let Some(inner) = process.upgrade() {
            let have = inner.ledger.cap_bytes();
            return if have == bytes {
                Ok(Self::from_inner(inner))
            } else {
                Err(Error::OtherBudget { have_bytes: have, asked_bytes: bytes })
            };
        }
        let budget = Self::new(bytes);
        *process = Arc::downgrade(&budget.inner);
        Ok(budget)
    }

    /// The cap in bytes; of a budget that several processes share, this one's part.
    #[must_use]
    pub fn cap_bytes(&self) -> u64 {
        self.inner.ledger.cap_bytes()
    }

    /// Makes the cap another from now on, for all processes that share it. Caches give up what they hold beyond it at once; others give back what they have in use
    /// when they are done with it, and until then nobody gets more.
    pub fn set_cap(&self, bytes: u64) {
        match &self.inner.node {
            Some(node) => {
                node.set_cap(bytes);
                self.inner.ledger.wake();
            }
            None => self.inner.ledger.set_cap(bytes),
        }
        self.reclaim(0);
    }

    /// Asks this cache for memory from now on when others lack it, as long as it lives.
    pub fn reclaim_from(&self, cache: &Arc<dyn Reclaim>) {
        lock(&self.inner.reclaimers).push(Arc::downgrade(cache));
    }

    /// Bytes that caches hold and could give up.
    #[must_use]
    pub fn reclaimable_bytes(&self) -> u64 {
        self.caches().iter().map(|cache| cache.held_bytes()).sum()
    }

    fn caches(&self) -> Vec<Arc<dyn Reclaim>> {
        let mut reclaimers = lock(&self.inner.reclaimers);
        reclaimers.retain(|cache| cache.strong_count() > 0);
        reclaimers.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// What is missing to charge `bytes`.
    fn missing(&self, bytes: u64) -> u64 {
        self.inner.ledger.missing(bytes)
    }

    /// Takes from caches what is missing to charge `bytes`, and returns pages; says whether there is room now.
    fn make_room(&self, bytes: u64) -> bool {
        let missing = || self.missing(bytes);
        // Holes first: whoever lacks memory may not have found one that is large enough.
        self.inner.arenas.iter().for_each(|arena| drop_holes(arena, bytes));
        if let Some(node) = &self.inner.node {
            node.make_room(bytes);
        }
        // What would not help is not given up.
        if missing() > 0 && missing() <= self.reclaimable_bytes() {
            self.reclaim(bytes);
        }
        missing() == 0
    }

    /// Takes from caches what is missing to charge `bytes`, as far as they have it.
    fn reclaim(&self, bytes: u64) {
        let missing = || self.missing(bytes);
        self.inner.arenas.iter().for_each(|arena| drop_holes(arena, bytes));
        for cache in self.caches() {
            // What a cache gives up is not free while somebody reads it: then it gives up more.
            while missing() > 0 && cache.held_bytes() > 0 {
                cache.reclaim(missing());
                self.inner.arenas.iter().for_each(|arena| drop_holes(arena, bytes));
            }
        }
    }

    /// `attempt`, and again after caches made room.
    fn attempt<T>(&self, bytes: u64, priority: Priority, attempt: impl Fn() -> Option<T>) -> Option<T> {
        attempt()
            .or_else(|| (priority > Priority::CacheFill && self.make_room(bytes)).then(attempt).flatten())
    }

    /// What is charged over all accounts, resident holes included.
    #[must_use]
    pub fn usage(&self) -> Use {
        self.inner.ledger.usage()
    }

    /// What one account holds.
    #[must_use]
    pub fn account(&self, account: Account) -> AccountUse {
        self.inner.ledger.account(account)
    }

    /// "batch 12.0 MiB, staging 4.0 MiB": who holds bytes, largest first.
    #[must_use]
    pub fn holders(&self) -> String {
        self.inner.ledger.holders()
    }

    /// How well the arena uses its pages.
    #[must_use]
    pub fn arena(&self) -> ArenaStats {
        self.inner.arenas.iter().fold(ArenaStats::default(), |sum, arena| sum.and(arena.stats()))
    }

    /// Reserves `bytes` for an allocation elsewhere, waiting until they are free or `stop` says to give up.
    ///
    /// # Errors
    /// [`Error::TooLarge`] at once when they can never be free; [`Error::Exhausted`] when `stop` ended the wait. `stop` is asked
    /// under the ledger's lock: it may neither take memory nor give any back.
    pub fn acquire<'a>(
        &self,
        account: Account,
        bytes: u64,
        priority: Priority,
        stop: impl Into<StopWhen<'a>>,
    ) -> Result<Grant> {
        let attempt = || self.attempt(bytes, priority, || self.attempt_grant(account, bytes));
        self.inner.ledger.obtain(account, bytes, priority, attempt, Some(stop.into()))
    }

    /// Reserves `bytes` for an allocation elsewhere, if they are free now.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Exhausted`], with the figures.
    pub fn try_acquire(&self, account: Account, bytes: u64, priority: Priority) -> Result<Grant> {
        let attempt = || self.attempt(bytes, priority, || self.attempt_grant(account, bytes));
        self.inner.ledger.obtain(account, bytes, priority, attempt, None)
    }

    fn attempt_grant(&self, account: Account, bytes: u64) -> Option<Grant> {
        let ledger = &self.inner.ledger;
        let mut arenas = self.inner.arenas.iter();
        let charged = ledger.charge(bytes) || arenas.any(|a| a.reclaim(bytes) && ledger.charge(bytes));
        charged.then(|| ledger.grant(account, bytes))
    }

    fn attempt_block(&self, account: Account, bytes: u64) -> Option<Result<Block>> {
        let own = &self.inner.arenas[self.backing];
        let block = own.attempt(account, bytes).transpose();
        if block.is_some() {
            return block;
        }
        // Each arena looks at what is still missing, so the later ones return no pages in vain.
        let extent = extent_bytes(bytes);
        let others = self.inner.arenas.others(self.backing);
        if others.fold(false, |any, other| other.reclaim(extent) || any) {
            return own.attempt(account, bytes).transpose();
        }
        None
    }

    /// Reserves `bytes` with their place in the arena, waiting until they are free or `stop` says to give up.
    ///
    /// # Errors
    /// As [`Budget::acquire`]; [`Error::Map`] when the kernel refuses address space.
    pub fn block<'a>(
        &self,
        account: Account,
        bytes: u64,
        priority: Priority,
        stop: impl Into<StopWhen<'a>>,
    ) -> Result<Block> {
        let extent = extent_bytes(bytes);
        let attempt = || self.attempt(extent, priority, || self.attempt_block(account, bytes));
        self.inner.ledger.obtain(account, extent, priority, attempt, Some(stop.into()))?
    }

    /// Reserves `bytes` with their place in the arena, if they are free now.
    ///
    /// # Errors
    /// As [`Budget::try_acquire`]; [`Error::Map`] when the kernel refuses address space.
    pub fn try_block(&self, account: Account, bytes: u64, priority: Priority) -> Result<Block> {
        let extent = extent_bytes(bytes);
        let attempt = || self.attempt(extent, priority, || self.attempt_block(account, bytes));
        self.inner.ledger.obtain(account, extent, priority, attempt, None)?
    }

    /// Returns the pages of all holes to the kernel.
    pub fn trim(&self) {
        self.inner.arenas.iter().for_each(|arena| arena.release_all());
    }
}

fn drop_holes(arena: &Arena, bytes: u64) {
    let _any_went = arena.reclaim(bytes);
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::StopToken;

    #[test]
    fn the_process_has_one_size() {
        let size = Size::Bytes(64 << 20);
        let first = Budget::process(&size).unwrap();
        assert_eq!(Budget::process(&size).unwrap().cap_bytes(), 64 << 20);
        let error = Budget::process(&Size::Bytes(65 << 20)).unwrap_err().to_string();
        assert!(error.contains("64.0 MiB") && error.contains("65.0 MiB"), "{error}");
        drop(first);
        assert!(Budget::process(&Size::Bytes(65 << 20)).is_ok());
    }

    #[test]
    fn shared_blocks_have_a_place_that_another_mapping_sees() {
        use std::os::unix::fs::FileExt;
        let budget = Budget::new(8 << 12);
        let private = budget.try_block(Account::Batch, 4 << 12, Priority::NextBatch).unwrap();
        assert_eq!(budget.place(private.as_ptr().addr()), None);
        let mut block = budget.shared().try_block(Account::User, 4 << 12, Priority::NextBatch).unwrap();
        block[5000..5004].copy_from_slice(b"here");
        let place = budget.place(block.as_ptr().addr() + 5000).unwrap();
        let file = std::fs::File::open(format!("/proc/self/fd/{}", place.file)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), place.file_bytes);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, place.offset).unwrap();
        assert_eq!(&bytes, b"here");
        // Holes of one arena are given back when the other needs them.
        drop((private, block));
        let large = budget.try_block(Account::Raw, 8 << 12, Priority::NextBatch).unwrap();
        file.read_exact_at(&mut bytes, place.offset).unwrap();
        assert_eq!((bytes, budget.usage().charged_bytes), ([0; 4], 8 << 12));
        drop(large);
        assert!(budget.shared().try_block(Account::Raw, 8 << 12, Priority::NextBatch).is_ok());
    }

    #[test]
    fn a_waiting_block_is_served_when_another_is_dropped() {
        let budget = Budget::new(8 << 12);
        let all = budget.try_block(Account::Batch, 8 << 12, Priority::Prefetch).unwrap();
        let waiter = {
            let budget = budget.clone();
            std::thread::Builder::new()
                .spawn(move || {
                    let stop = StopToken::new();
                    budget.block(Account::Raw, 5 << 12, Priority::Prefetch, &stop).map(|b| b.len())
                })
                .unwrap()
        };
        while budget.usage().waits == 0 {
            std::thread::yield_now();
        }
        drop(all);
        assert_eq!(waiter.join().unwrap().unwrap(), 5 << 12);
        budget.trim();
        assert_eq!(budget.usage().charged_bytes, 0);
    }

    #[derive(Debug)]
    struct Kept(std::sync::Mutex<Vec<Block>>);

    impl Reclaim for Kept {
        fn held_bytes(&self) -> u64 {
            lock(&self.0).iter().map(|block| block.len() as u64).sum()
        }
        fn reclaim(&self, bytes: u64) {
            let mut left = bytes;
            while left > 0
                && let Some(block) = lock(&self.0).pop()
            {
                left = left.saturating_sub(block.len() as u64);
            }
        }
    }

    #[test]
    fn caches_give_way_and_shrink_with_the_cap() {
        let budget = Budget::new(10 << 12);
        let fill = |pages: u64| budget.try_block(Account::CacheMemory, pages << 12, Priority::CacheFill);
        let kept = Arc::new(Kept(std::sync::Mutex::new(vec![fill(4).unwrap(), fill(4).unwrap()])));
        budget.reclaim_from(&(Arc::clone(&kept) as Arc<dyn Reclaim>));
        assert_eq!(budget.reclaimable_bytes(), 8 << 12);
        assert!(fill(3).is_err(), "one cache takes nothing from another");
        let batch = budget.try_block(Account::Batch, 5 << 12, Priority::NextBatch).unwrap();
        assert_eq!(kept.held_bytes(), 4 << 12);
        let grant = budget.try_acquire(Account::Library, 1 << 12, Priority::Prefetch).unwrap();
        assert_eq!((kept.held_bytes(), budget.usage().charged_bytes), (4 << 12, 10 << 12));
        budget.set_cap(7 << 12);
        assert_eq!((kept.held_bytes(), budget.usage().charged_bytes), (0, 7 << 12), "one page is a hole");
        assert!(budget.try_block(Account::Batch, 2 << 12, Priority::NextBatch).is_err());
        budget.set_cap(3 << 12);
        drop(batch);
        assert_eq!(budget.usage().charged_bytes, 3 << 12, "pages go as soon as nobody uses them");
        budget.set_cap(7 << 12);
        drop(grant);
        assert!(budget.try_block(Account::Batch, 7 << 12, Priority::NextBatch).is_ok());
        assert!(budget.try_block(Account::Batch, 8 << 12, Priority::NextBatch).is_err());
        budget.set_cap(8 << 12);
        assert!(budget.try_block(Account::Batch, 8 << 12, Priority::NextBatch).is_ok());
    }
}
