//! The budget: the ledger and the arena behind one number, shared by everything in the process.
//!
//! Flow: size -> grants (bytes alone) and blocks (bytes with their place).
//! Memory: all of it; every byte that Tidegate holds is charged here first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::arena::{Arena, ArenaStats, Arenas, Block, Place, extent_bytes};
use super::ledger::{AccountUse, Grant, LedgerRef, Priority, Use};
use super::region::Backing;
use super::{Account, Node, size::Size};
use crate::sync::{Arc, StopWhen, lock};
use crate::{Error, Result};

/// A holder of reclaimable bytes, such as a cache.
///
/// It allocates with [`Priority::CacheFill`], and frees memory when a request of a higher priority
/// does not fit. It counts bytes in `held_bytes` under the lock under which it allocates them: a
/// request that waits is not woken when bytes become reclaimable later.
pub trait Reclaim: Send + Sync + std::fmt::Debug {
    /// Bytes that it can free.
    fn held_bytes(&self) -> u64;

    /// Frees at least `bytes` (one byte for 0), or all that it holds. It allocates nothing
    /// meanwhile.
    fn reclaim(&self, bytes: u64);
}

#[derive(Debug)]
struct Inner {
    ledger: LedgerRef,
    arenas: Arenas,
    reclaimers: std::sync::Mutex<Vec<std::sync::Weak<dyn Reclaim>>>,
    /// The processes that share the budget, if several do.
    node: Option<Arc<Node>>,
    /// Epochs that run in the budget.
    running: AtomicUsize,
    /// One at a time finds out what is free and takes it.
    planning: std::sync::Mutex<()>,
}

/// An epoch that runs in a budget; the budget keeps its size meanwhile.
#[derive(Debug)]
pub struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
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

/// The budget that sizes refer to; it exists as long as it is used.
static PROCESS: std::sync::Mutex<std::sync::Weak<Inner>> = std::sync::Mutex::new(std::sync::Weak::new());

/// Budgets that this process shares with others, by name.
static NODES: std::sync::Mutex<Option<HashMap<String, std::sync::Weak<Inner>>>> = std::sync::Mutex::new(None);

impl Budget {
    /// A budget of `bytes`, apart from the process-wide one.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::over(LedgerRef::new(bytes), None)
    }

    /// Waits until nobody else plans with what is free, and holds others off until it is dropped:
    /// between the two, what is free is reserved.
    pub fn planning(&self) -> std::sync::MutexGuard<'_, ()> {
        self.inner.planning.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn over(ledger: LedgerRef, node: Option<Arc<Node>>) -> Self {
        let arenas = Arenas::new(&ledger, node.as_ref());
        let reclaimers = std::sync::Mutex::default();
        Self::from_inner(Arc::new(Inner {
            ledger,
            arenas,
            reclaimers,
            node,
            running: AtomicUsize::new(0),
            planning: std::sync::Mutex::default(),
        }))
    }

    fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner, backing: Backing::Private }
    }

    /// A budget of `bytes` that up to `processes` processes of this machine share, made or joined
    /// by its name.
    ///
    /// Each process may hold an equal part by itself. The rest caches objects for all of them
    /// ([`Node`]).
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
    /// [`Error::Node`] if the other processes gave another size, are in another memory group, or
    /// are too many.
    pub fn node(name: &str, bytes: u64, processes: u64) -> Result<Self> {
        let mut nodes = lock(&NODES);
        let nodes = nodes.get_or_insert_default();
        // One process is one member, however many loaders it has.
        if let Some(inner) = nodes.get(name).and_then(std::sync::Weak::upgrade)
            && let Some(node) = &inner.node
            && node.rejoin(bytes, processes)?
        {
            return Ok(Self::from_inner(inner));
        }
        let node = Arc::new(Node::join(name, bytes, processes)?);
        let budget = Self::over(LedgerRef::within(&node), Some(node));
        nodes.insert(name.to_owned(), Arc::downgrade(&budget.inner));
        Ok(budget)
    }

    /// The processes that share the budget, if it is one of several processes.
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

    /// The place of an address in shared memory; `None` if it is elsewhere.
    #[must_use]
    pub fn place(&self, address: usize) -> Option<Place> {
        self.inner.arenas.iter().find_map(|arena| arena.place(address))
    }

    /// The process-wide budget: made with this size, or the one in use, which takes this size if
    /// no epoch runs in it.
    ///
    /// # Errors
    /// [`Error::OtherBudget`] while an epoch runs in a budget of another size; those of
    /// [`Size::budget_bytes`].
    pub fn process(size: &Size) -> Result<Self> {
        let bytes = size.budget_bytes()?;
        let mut process = lock(&PROCESS);
        if let Some(inner) = process.upgrade() {
            let budget = Self::from_inner(inner);
            let have_bytes = budget.cap_bytes();
            if have_bytes != bytes {
                if budget.inner.running.load(Ordering::Acquire) > 0 {
                    return Err(Error::OtherBudget { have_bytes, asked_bytes: bytes });
                }
                budget.set_cap(bytes);
            }
            return Ok(budget);
        }
        let budget = Self::new(bytes);
        *process = Arc::downgrade(&budget.inner);
        Ok(budget)
    }

    /// Notes that an epoch runs, until the result is dropped.
    #[must_use]
    pub fn run(&self) -> Running {
        self.inner.running.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(&self.inner))
    }

    /// The cap in bytes. If several processes share the budget, the part of this process.
    #[must_use]
    pub fn cap_bytes(&self) -> u64 {
        self.inner.ledger.cap_bytes()
    }

    /// Changes the cap, for all processes that share it.
    ///
    /// Caches free what they hold beyond a lower cap at once. Memory in use stays until its holder
    /// drops it, and until then no request gets more.
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

    /// From now on reclaims memory from this cache when a request does not fit, as long as the
    /// cache exists.
    pub fn reclaim_from(&self, cache: &Arc<dyn Reclaim>) {
        lock(&self.inner.reclaimers).push(Arc::downgrade(cache));
    }

    /// Bytes that caches hold and can free.
    #[must_use]
    pub fn reclaimable_bytes(&self) -> u64 {
        self.caches().iter().map(|cache| cache.held_bytes()).sum()
    }

    fn caches(&self) -> Vec<Arc<dyn Reclaim>> {
        let mut reclaimers = lock(&self.inner.reclaimers);
        reclaimers.retain(|cache| cache.strong_count() > 0);
        reclaimers.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// Bytes that must be freed before `bytes` can be charged.
    fn missing(&self, bytes: u64) -> u64 {
        self.inner.ledger.missing(bytes)
    }

    /// Frees holes and cached bytes until `bytes` can be charged; returns whether they can.
    fn make_room(&self, bytes: u64) -> bool {
        let missing = || self.missing(bytes);
        // Holes first: the request may have found none that is large enough.
        self.inner.arenas.iter().for_each(|arena| drop_holes(arena, bytes));
        if let Some(node) = &self.inner.node {
            node.make_room(bytes);
        }
        // Caches free nothing if that would not be enough.
        if missing() > 0 && missing() <= self.reclaimable_bytes() {
            self.reclaim(bytes);
        }
        missing() == 0
    }

    /// Frees cached bytes until `bytes` can be charged, or caches have no more.
    fn reclaim(&self, bytes: u64) {
        let missing = || self.missing(bytes);
        self.inner.arenas.iter().for_each(|arena| drop_holes(arena, bytes));
        for cache in self.caches() {
            // Bytes that a reader still uses are not free yet: then the cache frees more.
            while missing() > 0 && cache.held_bytes() > 0 {
                cache.reclaim(missing());
                self.inner.arenas.iter().for_each(|arena| drop_holes(arena, bytes));
            }
        }
    }

    /// Runs `attempt`, and again after caches have made room.
    fn attempt<T>(&self, bytes: u64, priority: Priority, attempt: impl Fn() -> Option<T>) -> Option<T> {
        attempt()
            .or_else(|| (priority > Priority::CacheFill && self.make_room(bytes)).then(attempt).flatten())
    }

    /// Bytes charged over all accounts, resident holes included.
    #[must_use]
    pub fn usage(&self) -> Use {
        self.inner.ledger.usage()
    }

    /// Bytes that one account holds.
    #[must_use]
    pub fn account(&self, account: Account) -> AccountUse {
        self.inner.ledger.account(account)
    }

    /// The accounts that hold bytes, the largest first: "batch 12.0 MiB, staging 4.0 MiB".
    #[must_use]
    pub fn holders(&self) -> String {
        self.inner.ledger.holders()
    }

    /// How well the arena uses its pages.
    #[must_use]
    pub fn arena(&self) -> ArenaStats {
        self.inner.arenas.iter().fold(ArenaStats::default(), |sum, arena| sum.and(arena.stats()))
    }

    /// Reserves `bytes` for an allocation elsewhere; waits until they are free or `stop` is met.
    ///
    /// # Errors
    /// [`Error::TooLarge`] at once when the cap is smaller; [`Error::Exhausted`] when `stop` ended
    /// the wait. `stop` is checked under the lock of the ledger: its condition may neither take
    /// memory nor give any back.
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
        if others.filter(|other| other.reclaim(extent)).count() > 0 {
            return own.attempt(account, bytes).transpose();
        }
        None
    }

    /// Reserves `bytes` with their place in the arena; waits until they are free or `stop` is met.
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
    arena.reclaim(bytes);
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
        let running = first.run();
        let error = Budget::process(&Size::Bytes(65 << 20)).unwrap_err().to_string();
        assert!(error.contains("64.0 MiB") && error.contains("65.0 MiB"), "{error}");
        drop(running);
        let second = Budget::process(&Size::Bytes(65 << 20)).unwrap();
        assert_eq!((first.cap_bytes(), second.cap_bytes()), (65 << 20, 65 << 20), "the newest size counts");
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
