//! The ledger: one hard cap, counted in bytes that are or may become resident.
//!
//! Flow: `obtain(account, bytes, priority)` -> [`Grant`]; dropping the grant gives the bytes back
//! and wakes waiters.
//! Memory: a few cache lines. It counts bytes only; the arena places them.
//!
//! `charged` = granted bytes + resident holes of the arena, so `charged <= cap` bounds what is
//! resident. The fast path is one compare-and-swap; only a request that does not fit takes the
//! lock and queues by (priority, arrival). A new request passes the queue only with a higher
//! priority than all waiters, so large requests are not starved.

use std::fmt;
use std::sync::Arc;
#[cfg(not(loom))]
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::Account;
use crate::sync::{AtomicU64, Gate, MutexGuard, Ordering, StopWhen, Wake};
use crate::{Error, Result};

/// Which request goes first when bytes are short: the next batch, then read-ahead, then caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Filling a cache: goes last.
    CacheFill = 1,
    /// Reading ahead of the consumer.
    Prefetch = 2,
    /// The batch that the consumer waits for.
    NextBatch = 3,
}

/// Bytes that one account holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AccountUse {
    /// Bytes held now.
    pub held_bytes: u64,
    /// The most ever held at once.
    pub peak_bytes: u64,
}

/// Bytes that the whole ledger has charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// The cap.
    pub cap_bytes: u64,
    /// Granted bytes and resident holes.
    pub charged_bytes: u64,
    /// The most ever charged.
    pub peak_bytes: u64,
    /// Requests that had to wait.
    pub waits: u64,
}

#[derive(Debug, Default)]
struct Cell {
    held: AtomicU64,
    peak: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    /// Counts releases while there are waiters, so that none slips between an attempt and the
    /// sleep after it.
    releases: u64,
    /// (priority, ticket) of every waiter.
    waiting: Vec<(Priority, u64)>,
}

impl Queue {
    fn first(&self) -> Option<(Priority, u64)> {
        self.waiting.iter().copied().max_by_key(|&(priority, ticket)| (priority, std::cmp::Reverse(ticket)))
    }
}

/// How often a request looks again at what other processes gave back.
#[cfg(not(loom))]
const NODE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Counts bytes against a cap; see the head of this file.
pub(super) struct Ledger {
    /// The budget of several processes of which this ledger is a part, if it is; it is charged for
    /// every byte too.
    #[cfg(not(loom))]
    node: Option<std::sync::Weak<super::Node>>,
    cap: AtomicU64,
    // On a line of its own: every thread writes it. `cargo bench -p tidegate-core` shows what
    // sharing would cost.
    charged: CachePadded<AtomicU64>,
    peak: CachePadded<AtomicU64>,
    /// The highest priority in the queue, 0 without waiters; read without the lock on every
    /// request and release.
    top: CachePadded<AtomicU64>,
    waits: AtomicU64,
    accounts: Vec<CachePadded<Cell>>,
    queue: Arc<Gate<Queue>>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("use", &self.usage()).finish_non_exhaustive()
    }
}

/// What a grant holds of its ledger: an address, because a count of references would cost each
/// grant two more atomic operations, 18 of 58 ns here.
#[derive(Debug, Clone)]
struct Address(#[cfg(loom)] crate::sync::Arc<Ledger>, #[cfg(not(loom))] &'static Ledger);

impl std::ops::Deref for Address {
    type Target = Ledger;
    #[cfg(loom)]
    fn deref(&self) -> &Ledger {
        &self.0
    }
    #[cfg(not(loom))]
    fn deref(&self) -> &Ledger {
        self.0
    }
}

/// A handle on a ledger.
///
/// A ledger is never freed, because grants may outlive all handles. When the last handle is
/// dropped it waits in [`UNUSED`] for the next budget.
#[derive(Debug, Clone)]
pub(super) struct LedgerRef {
    ledger: Address,
    #[cfg(not(loom))]
    _owner: Arc<Owner>,
}

/// Ledgers without a handle, about 2 KiB each. One whose last grants are still out is passed over.
#[cfg(not(loom))]
static UNUSED: std::sync::Mutex<Vec<&'static Ledger>> = std::sync::Mutex::new(Vec::new());

/// All handles on a ledger.
#[cfg(not(loom))]
#[derive(Debug)]
struct Owner(&'static Ledger);

#[cfg(not(loom))]
impl Drop for Owner {
    fn drop(&mut self) {
        // That of a node budget refers to its node, and a process has few of them.
        if self.0.node.is_none() {
            crate::sync::lock(&UNUSED).push(self.0);
        }
    }
}

impl std::ops::Deref for LedgerRef {
    type Target = Ledger;
    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl LedgerRef {
    /// A ledger of `cap_bytes`.
    pub(super) fn new(cap_bytes: u64) -> Self {
        #[cfg(not(loom))]
        if let Some(ledger) = Ledger::unused() {
            ledger.begin(cap_bytes);
            return Self::of(ledger);
        }
        Self::of_new(Ledger::new(cap_bytes))
    }

    /// The ledger of one of several processes that share a budget.
    #[cfg(not(loom))]
    pub(super) fn within(node: &std::sync::Arc<super::Node>) -> Self {
        Self::of_new(Ledger { node: Some(std::sync::Arc::downgrade(node)), ..Ledger::new(0) })
    }

    fn of_new(ledger: Ledger) -> Self {
        #[cfg(loom)]
        return Self { ledger: Address(crate::sync::Arc::new(ledger)) };
        #[cfg(not(loom))]
        Self::of(Box::leak(Box::new(ledger)))
    }

    #[cfg(not(loom))]
    fn of(ledger: &'static Ledger) -> Self {
        Self { ledger: Address(ledger), _owner: Arc::new(Owner(ledger)) }
    }
}

impl Ledger {
    fn new(cap_bytes: u64) -> Self {
        Self {
            #[cfg(not(loom))]
            node: None,
            cap: AtomicU64::new(cap_bytes),
            charged: CachePadded::new(AtomicU64::new(0)),
            peak: CachePadded::new(AtomicU64::new(0)),
            top: CachePadded::new(AtomicU64::new(0)),
            waits: AtomicU64::new(0),
            accounts: Account::ALL.iter().map(|_| CachePadded::new(Cell::default())).collect(),
            queue: Arc::default(),
        }
    }

    /// One without a handle and without a grant, if there is any.
    ///
    /// A grant gives back its bytes last of all, so that one with nothing charged is only read by
    /// grants that are just being dropped: they may wake a waiter in vain.
    #[cfg(not(loom))]
    fn unused() -> Option<&'static Self> {
        let mut unused = crate::sync::lock(&UNUSED);
        let at = unused.iter().position(|ledger| ledger.charged.load(Ordering::SeqCst) == 0)?;
        Some(unused.swap_remove(at))
    }

    /// Begins again, with another cap.
    #[cfg(not(loom))]
    fn begin(&self, cap_bytes: u64) {
        self.cap.store(cap_bytes, Ordering::SeqCst);
        self.peak.store(0, Ordering::Relaxed);
        self.waits.store(0, Ordering::Relaxed);
        self.accounts.iter().for_each(|cell| cell.peak.store(0, Ordering::Relaxed));
        // A request that panicked has left its place in the queue.
        let mut queue = self.queue.lock();
        queue.waiting.clear();
        self.publish_top(&queue);
    }

    #[cfg(not(loom))]
    fn node(&self) -> Option<std::sync::Arc<super::Node>> {
        self.node.as_ref()?.upgrade()
    }

    /// Charges the budget of the node too; true if there is none.
    fn charge_node(&self, bytes: u64) -> bool {
        #[cfg(not(loom))]
        return self.node().is_none_or(|node| node.charge(bytes));
        #[cfg(loom)]
        return bytes < u64::MAX;
    }

    /// Bytes that must be freed before `bytes` can be charged, here and among all processes.
    #[cfg(not(loom))]
    pub(super) fn missing(&self, bytes: u64) -> u64 {
        let charged = self.charged.load(Ordering::Relaxed);
        let here = charged.saturating_add(bytes).saturating_sub(self.cap_bytes());
        if let Some(node) = self.node() {
            return here.max(node.lacks(bytes));
        }
        here
    }

    /// Gives bytes back to the budget of the node too; false if there is none.
    fn discharge_node(&self, bytes: u64) -> bool {
        #[cfg(not(loom))]
        if let Some(node) = self.node() {
            node.discharge(bytes);
            return true;
        }
        bytes == u64::MAX
    }

    /// The cap in bytes.
    #[must_use]
    pub(super) fn cap_bytes(&self) -> u64 {
        #[cfg(not(loom))]
        if let Some(node) = self.node() {
            return node.share_bytes();
        }
        self.cap.load(Ordering::SeqCst)
    }

    /// Changes the cap. Bytes charged beyond a lower cap stay charged until their holders give
    /// them back.
    #[cfg(not(loom))]
    pub(super) fn set_cap(&self, bytes: u64) {
        self.cap.store(bytes, Ordering::SeqCst);
        self.wake();
    }

    /// Bytes charged over all accounts, holes included.
    #[must_use]
    pub(super) fn usage(&self) -> Use {
        Use {
            cap_bytes: self.cap_bytes(),
            charged_bytes: self.charged.load(Ordering::Relaxed),
            peak_bytes: self.peak.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
        }
    }

    /// Bytes that one account holds.
    #[must_use]
    pub(super) fn account(&self, account: Account) -> AccountUse {
        let cell = &self.accounts[account as usize];
        AccountUse {
            held_bytes: cell.held.load(Ordering::Relaxed),
            peak_bytes: cell.peak.load(Ordering::Relaxed),
        }
    }

    fn park<'a>(&'a self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        // Another process of a node budget cannot notify this one when it gives bytes back.
        #[cfg(not(loom))]
        if self.node.is_some() {
            return self.queue.wait_timeout(queue, NODE_POLL_INTERVAL);
        }
        self.queue.wait(queue)
    }

    fn publish_top(&self, queue: &Queue) {
        let top = queue.first().map_or(0, |(priority, _)| priority as u64);
        self.top.store(top, Ordering::SeqCst);
    }

    /// Adds `bytes` to what is charged, unless the cap forbids it. The arena calls it for pages it
    /// will touch.
    pub(super) fn charge(&self, bytes: u64) -> bool {
        let fits = |charged: u64| charged.checked_add(bytes).filter(|&next| next <= self.cap_bytes());
        let mut now = self.charged.load(Ordering::SeqCst);
        // The node first: bytes that it refuses never show up in `charged`, where they would make
        // others fail that fit.
        if fits(now).is_none() || !self.charge_node(bytes) {
            return false;
        }
        loop {
            let Some(next) = fits(now) else {
                // Other threads were quicker. A request that the node refused meanwhile may fit
                // now.
                if self.discharge_node(bytes) {
                    self.wake();
                }
                return false;
            };
            match self.charged.compare_exchange_weak(now, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    if next > self.peak.load(Ordering::Relaxed) {
                        self.peak.fetch_max(next, Ordering::Relaxed);
                    }
                    return true;
                }
                Err(seen) => now = seen,
            }
        }
    }

    /// Takes `bytes` off what is charged and wakes waiters. The arena calls it for pages it
    /// returned.
    pub(super) fn discharge(&self, bytes: u64) {
        self.charged.fetch_sub(bytes, Ordering::SeqCst);
        self.discharge_node(bytes);
        self.wake();
    }

    /// Wakes waiters: bytes were released, or a hole became usable.
    pub(super) fn wake(&self) {
        if self.top.load(Ordering::SeqCst) != 0 {
            self.queue.lock().releases += 1;
            self.queue.notify_all();
        }
    }

    fn too_large(&self, account: Account, bytes: u64) -> Error {
        Error::TooLarge {
            account,
            asked_bytes: bytes,
            held_bytes: self.usage().charged_bytes,
            cap_bytes: self.cap_bytes(),
        }
    }

    /// The error for bytes that others hold, naming them.
    pub(super) fn exhausted(&self, account: Account, bytes: u64) -> Error {
        Error::Exhausted {
            account,
            asked_bytes: bytes,
            held_bytes: self.usage().charged_bytes,
            cap_bytes: self.cap_bytes(),
            holders: self.holders(),
        }
    }

    /// "batch 12.0 MiB, staging 4.0 MiB": the accounts that hold bytes, largest first.
    #[must_use]
    pub(super) fn holders(&self) -> String {
        let mut held: Vec<_> = Account::ALL.iter().map(|&a| (self.account(a).held_bytes, a)).collect();
        held.retain(|&(bytes, _)| bytes > 0);
        held.sort_by_key(|&(bytes, _)| std::cmp::Reverse(bytes));
        let words: Vec<_> =
            held.iter().map(|&(bytes, a)| format!("{a} {} MiB", super::size::mib(bytes))).collect();
        let words = if words.is_empty() { "no account".to_owned() } else { words.join(", ") };
        #[cfg(not(loom))]
        if let Some(node) = self.node() {
            let (all, cap) = (node.usage().charged_bytes, node.cap_bytes());
            let (all, cap) = (super::size::mib(all), super::size::mib(cap));
            return format!("{words} here, and {all} of {cap} MiB by all processes of the node");
        }
        words
    }
}

impl LedgerRef {
    /// Takes `bytes` if they are free and no request of the same or a higher priority waits.
    #[cfg(test)]
    pub(super) fn try_take(&self, account: Account, bytes: u64, priority: Priority) -> Option<Grant> {
        (self.top.load(Ordering::SeqCst) < priority as u64 && self.charge(bytes))
            .then(|| self.grant(account, bytes))
    }

    /// Runs `attempt` until it succeeds, in the order of priority and arrival among all waiters.
    ///
    /// `attempt` may reclaim holes and charge; it is called without any lock of the ledger held.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the cap could never hold `bytes`; [`Error::Exhausted`] when `stop`
    /// is absent and the first attempt fails, or as soon as `stop` is met.
    pub(super) fn obtain<T>(
        &self,
        account: Account,
        bytes: u64,
        priority: Priority,
        attempt: impl Fn() -> Option<T>,
        stop: Option<StopWhen<'_>>,
    ) -> Result<T> {
        if bytes > self.cap_bytes() {
            return Err(self.too_large(account, bytes));
        }
        if self.top.load(Ordering::SeqCst) < priority as u64
            && let Some(got) = attempt()
        {
            return Ok(got);
        }
        let Some(stop) = stop else { return Err(self.exhausted(account, bytes)) };
        self.waits.fetch_add(1, Ordering::Relaxed);
        // Registered before `stop` is checked, so that no stop slips between the check and the
        // sleep.
        let registration = stop.token().register(Arc::clone(&self.queue) as Arc<dyn Wake>);
        let mut queue = self.queue.lock();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push((priority, ticket));
        self.publish_top(&queue);
        let outcome = loop {
            if queue.first() == Some((priority, ticket)) {
                let seen = queue.releases;
                drop(queue);
                // Adding nothing orders this look at `charged` with every release: one that comes
                // later sees `top`.
                self.charged.fetch_add(0, Ordering::SeqCst);
                let got = attempt();
                queue = self.queue.lock();
                if let Some(got) = got {
                    break Ok(got);
                }
                if queue.releases != seen {
                    continue;
                }
            }
            if bytes > self.cap_bytes() {
                // The cap was lowered meanwhile.
                break Err(self.too_large(account, bytes));
            }
            if stop.is_met() {
                break Err(self.exhausted(account, bytes));
            }
            queue = self.park(queue);
        };
        queue.waiting.retain(|&(_, t)| t != ticket);
        self.publish_top(&queue);
        // The next in the queue may fit as well.
        queue.releases += 1;
        self.queue.notify_all();
        drop(queue);
        drop(registration);
        outcome
    }

    /// Adds charged bytes to an account: the second half of every grant.
    pub(super) fn grant(&self, account: Account, bytes: u64) -> Grant {
        let cell = &self.accounts[account as usize];
        let held = cell.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > cell.peak.load(Ordering::Relaxed) {
            cell.peak.fetch_max(held, Ordering::Relaxed);
        }
        Grant { ledger: self.ledger.clone(), account, bytes, resident_after: false }
    }
}

/// Bytes that the ledger has reserved; dropping it gives them back.
#[must_use = "dropping a grant gives its bytes back at once"]
pub struct Grant {
    ledger: Address,
    account: Account,
    bytes: u64,
    /// The bytes stay charged after the drop, because their pages stay resident as a hole of the
    /// arena.
    resident_after: bool,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({} {} B)", self.account, self.bytes)
    }
}

impl Grant {
    /// The reserved bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The account that holds them.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
    }

    /// Drops the grant, but leaves its bytes charged: their pages stay resident as a hole.
    #[cfg(not(loom))]
    pub(super) fn leave_resident(mut self) {
        self.resident_after = true;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.ledger.accounts[self.account as usize].held.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.resident_after {
            self.ledger.wake();
        } else {
            self.ledger.discharge(self.bytes);
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::StopToken;
    use proptest::prelude::*;

    fn take(ledger: &LedgerRef, account: Account, bytes: u64, stop: Option<&StopToken>) -> Result<Grant> {
        let attempt = || ledger.charge(bytes).then(|| ledger.grant(account, bytes));
        ledger.obtain(account, bytes, Priority::Prefetch, attempt, stop.map(StopWhen::from))
    }

    #[test]
    fn names_figures_and_fix_when_the_cap_is_too_small() {
        let ledger = LedgerRef::new(1 << 20);
        let error = take(&ledger, Account::Batch, 3 << 20, None).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("batch asks for 3.0 MiB") && text.contains("raise memory to at least 3.0 MiB"),
            "{text}"
        );
    }

    #[test]
    fn a_higher_priority_passes_the_queue_and_an_equal_one_does_not() {
        let ledger = LedgerRef::new(100);
        let most = ledger.try_take(Account::Staging, 90, Priority::Prefetch).unwrap();
        let waiter = {
            let ledger = ledger.clone();
            std::thread::Builder::new()
                .spawn(move || take(&ledger, Account::Staging, 50, Some(&StopToken::new())))
                .unwrap()
        };
        while ledger.top.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert!(ledger.try_take(Account::Staging, 5, Priority::Prefetch).is_none());
        let urgent = ledger.try_take(Account::Batch, 5, Priority::NextBatch);
        assert!(urgent.is_some());
        drop(most);
        assert_eq!(waiter.join().unwrap().unwrap().bytes(), 50);
    }

    #[test]
    fn waiting_ends_when_told_to_stop() {
        let ledger = LedgerRef::new(10);
        let _all = ledger.try_take(Account::User, 10, Priority::Prefetch).unwrap();
        let stop = StopToken::new();
        let stopper = {
            let (stop, ledger) = (stop.clone(), ledger.clone());
            std::thread::Builder::new()
                .spawn(move || {
                    while ledger.top.load(Ordering::SeqCst) == 0 {
                        std::thread::yield_now();
                    }
                    stop.stop();
                })
                .unwrap()
        };
        let error = take(&ledger, Account::Batch, 1, Some(&stop)).unwrap_err();
        assert!(error.to_string().contains("user"), "{error}");
        stopper.join().unwrap();
    }

    #[test]
    fn a_budget_takes_a_ledger_that_nothing_uses() {
        let first = LedgerRef::new(100);
        let address = std::ptr::from_ref::<Ledger>(&first);
        let kept = first.try_take(Account::User, 60, Priority::Prefetch).unwrap();
        drop(first.clone());
        drop(first);
        // Other tests run beside this one and may take it, but none may before the grant is gone.
        let unused = || crate::sync::lock(&UNUSED).iter().any(|&ledger| std::ptr::eq(ledger, address));
        let others: Vec<_> = (0..64).map(|_| LedgerRef::new(1)).collect();
        assert!(unused() && others.iter().all(|other| !std::ptr::eq::<Ledger>(&**other, address)));
        drop(kept);
        let all: Vec<_> = std::iter::from_fn(|| unused().then(|| LedgerRef::new(7))).collect();
        for ledger in &all {
            let use_ = Use { cap_bytes: 7, ..Use::default() };
            assert_eq!((ledger.usage(), ledger.account(Account::User)), (use_, AccountUse::default()));
        }
    }

    proptest! {
        /// The oracle is a plain sum over the live grants.
        #[test]
        fn equals_a_naive_sum(steps in prop::collection::vec((0usize..12, 0u64..400, any::<bool>()), 1..200)) {
            let ledger = LedgerRef::new(1000);
            let mut live: Vec<Grant> = Vec::new();
            let (mut peak, mut peaks) = (0, [0u64; 12]);
            for (account, bytes, release) in steps {
                if release && !live.is_empty() {
                    drop(live.swap_remove(usize::try_from(bytes).unwrap() % live.len()));
                } else {
                    let sum: u64 = live.iter().map(Grant::bytes).sum();
                    let grant = ledger.try_take(Account::ALL[account], bytes, Priority::Prefetch);
                    prop_assert_eq!(grant.is_some(), sum + bytes <= 1000);
                    live.extend(grant);
                }
                let sum: u64 = live.iter().map(Grant::bytes).sum();
                peak = peak.max(sum);
                for (i, most) in peaks.iter_mut().enumerate() {
                    let held: u64 = live.iter().filter(|g| g.account() as usize == i).map(Grant::bytes).sum();
                    *most = (*most).max(held);
                    let account = ledger.account(Account::ALL[i]);
                    prop_assert_eq!((account.held_bytes, account.peak_bytes), (held, *most));
                }
                prop_assert_eq!(ledger.usage().charged_bytes, sum);
                prop_assert_eq!(ledger.usage().peak_bytes, peak);
            }
            drop(live);
            prop_assert_eq!(ledger.usage().charged_bytes, 0);
        }
    }
}

/// Run with `make test-loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::StopToken;

    /// Two waiters and one holder: under every interleaving both are served and the cap holds.
    #[test]
    fn loom_no_wakeup_is_lost() {
        loom::model(|| {
            let ledger = LedgerRef::new(2);
            let first = ledger.try_take(Account::Staging, 2, Priority::Prefetch);
            let other = {
                let ledger = ledger.clone();
                loom::thread::spawn(move || {
                    let attempt = || ledger.charge(2).then(|| ledger.grant(Account::Batch, 2));
                    let stop = StopToken::new();
                    let stop = Some(StopWhen::from(&stop));
                    let grant = ledger.obtain(Account::Batch, 2, Priority::NextBatch, attempt, stop);
                    assert!(grant.is_ok() && ledger.usage().charged_bytes <= 2);
                })
            };
            drop(first);
            other.join().unwrap();
            assert_eq!(ledger.usage().charged_bytes, 0);
        });
    }

    /// Concurrent charges never pass the cap.
    #[test]
    fn loom_the_cap_holds() {
        loom::model(|| {
            let ledger = LedgerRef::new(3);
            let other = {
                let ledger = ledger.clone();
                loom::thread::spawn(move || ledger.try_take(Account::Batch, 2, Priority::Prefetch).is_some())
            };
            let mine = ledger.try_take(Account::Batch, 2, Priority::Prefetch);
            assert!(ledger.usage().charged_bytes <= 3);
            let won = other.join().unwrap();
            assert!(won || mine.is_some());
        });
    }

    /// A stop ends a wait that nothing else would end.
    #[test]
    fn loom_a_stop_ends_the_wait() {
        loom::model(|| {
            let (ledger, stop) = (LedgerRef::new(1), StopToken::new());
            let all = ledger.try_take(Account::Staging, 1, Priority::Prefetch);
            let waiter = {
                let (ledger, stop) = (ledger.clone(), stop.clone());
                loom::thread::spawn(move || {
                    let attempt = || ledger.charge(1).then(|| ledger.grant(Account::Batch, 1));
                    let stop = Some(StopWhen::from(&stop));
                    ledger.obtain(Account::Batch, 1, Priority::NextBatch, attempt, stop).is_err()
                })
            };
            stop.stop();
            assert!(waiter.join().unwrap());
            drop(all);
            assert_eq!(ledger.usage().charged_bytes, 0);
        });
    }
}
