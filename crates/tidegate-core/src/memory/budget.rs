//! The budget: the ledger and the arena behind one number, shared by everything in the process.
//!
//! Flow: size -> grants (bytes alone) and blocks (bytes with their place).
//! Memory: all of it; every byte that Tidegate holds is charged here first.

use super::arena::{Arena, ArenaStats, Block, extent_bytes};
use super::ledger::{AccountUse, Grant, LedgerRef, Priority, Use};
use super::{Account, size::Size};
use crate::sync::{Arc, lock};
use crate::{Error, Result};

#[derive(Debug)]
struct Inner {
    ledger: LedgerRef,
    arena: Arc<Arena>,
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
pub struct Budget(Arc<Inner>);

/// The budget that sizes refer to; it lives as long as anyone uses it.
static PROCESS: std::sync::Mutex<std::sync::Weak<Inner>> = std::sync::Mutex::new(std::sync::Weak::new());

impl Budget {
    /// A budget of `bytes`, apart from the process-wide one.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let ledger = LedgerRef::new(bytes);
        let arena = Arena::new(ledger.clone());
        Self(Arc::new(Inner { ledger, arena }))
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
                Ok(Self(inner))
            } else {
                Err(Error::OtherBudget { have_bytes: have, asked_bytes: bytes })
            };
        }
        let budget = Self::new(bytes);
        *process = Arc::downgrade(&budget.0);
        Ok(budget)
    }

    /// The cap in bytes.
    #[must_use]
    pub fn cap_bytes(&self) -> u64 {
        self.0.ledger.cap_bytes()
    }

    /// What is charged over all accounts, resident holes included.
    #[must_use]
    pub fn usage(&self) -> Use {
        self.0.ledger.usage()
    }

    /// What one account holds.
    #[must_use]
    pub fn account(&self, account: Account) -> AccountUse {
        self.0.ledger.account(account)
    }

    /// "batch 12.0 MiB, staging 4.0 MiB": who holds bytes, largest first.
    #[must_use]
    pub fn holders(&self) -> String {
        self.0.ledger.holders()
    }

    /// How well the arena uses its pages.
    #[must_use]
    pub fn arena(&self) -> ArenaStats {
        self.0.arena.stats()
    }

    /// Reserves `bytes` for an allocation elsewhere, waiting until they are free or `stop` says to give up.
    ///
    /// # Errors
    /// [`Error::TooLarge`] at once when they can never be free; [`Error::Exhausted`] when `stop` ended the wait.
    pub fn acquire(
        &self,
        account: Account,
        bytes: u64,
        priority: Priority,
        stop: &dyn Fn() -> bool,
    ) -> Result<Grant> {
        self.0.ledger.obtain(account, bytes, priority, || self.attempt_grant(account, bytes), Some(stop))
    }

    /// Reserves `bytes` for an allocation elsewhere, if they are free now.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Exhausted`], with the figures.
    pub fn try_acquire(&self, account: Account, bytes: u64, priority: Priority) -> Result<Grant> {
        self.0.ledger.obtain(account, bytes, priority, || self.attempt_grant(account, bytes), None)
    }

    fn attempt_grant(&self, account: Account, bytes: u64) -> Option<Grant> {
        let ledger = &self.0.ledger;
        (ledger.charge(bytes) || (self.0.arena.reclaim(bytes) && ledger.charge(bytes)))
            .then(|| ledger.grant(account, bytes))
    }

    /// Reserves `bytes` with their place in the arena, waiting until they are free or `stop` says to give up.
    ///
    /// # Errors
    /// As [`Budget::acquire`]; [`Error::Map`] when the kernel refuses address space.
    pub fn block(
        &self,
        account: Account,
        bytes: u64,
        priority: Priority,
        stop: &dyn Fn() -> bool,
    ) -> Result<Block> {
        let attempt = || self.0.arena.attempt(account, bytes).transpose();
        self.0.ledger.obtain(account, extent_bytes(bytes), priority, attempt, Some(stop))?
    }

    /// Reserves `bytes` with their place in the arena, if they are free now.
    ///
    /// # Errors
    /// As [`Budget::try_acquire`]; [`Error::Map`] when the kernel refuses address space.
    pub fn try_block(&self, account: Account, bytes: u64, priority: Priority) -> Result<Block> {
        let attempt = || self.0.arena.attempt(account, bytes).transpose();
        self.0.ledger.obtain(account, extent_bytes(bytes), priority, attempt, None)?
    }

    /// Returns the pages of all holes to the kernel.
    pub fn trim(&self) {
        self.0.arena.release_all();
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_waiting_block_is_served_when_another_is_dropped() {
        let budget = Budget::new(8 << 12);
        let all = budget.try_block(Account::Batch, 8 << 12, Priority::Prefetch).unwrap();
        let waiter = {
            let budget = budget.clone();
            std::thread::Builder::new()
                .spawn(move || {
                    budget.block(Account::Raw, 5 << 12, Priority::Prefetch, &|| false).map(|b| b.len())
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
}
