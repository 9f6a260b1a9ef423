//! Taking what a plan says, before the first thread starts.
//!
//! Flow: [`Plan`] + budget -> [`Reserved`]; what is held by others -> [`Held`].
//! Memory: slots (`batch`), staging, one decoder's scratch and library bound, what decoders keep,
//! the index window, stacks (`telemetry`), decoded groups (`decoded`), and the page cache of a
//! dataset that is kept (`cache.memory`). All of it goes back when the epoch ends.

use std::sync::Mutex;

use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Block, Buddy, Budget, Grant, Priority, Running, Slab, WeakSlab};

use super::{Held, Plan};
use crate::{Error, Result};

/// The reserved memory of an epoch.
#[derive(Debug)]
pub struct Reserved {
    pub(in super::super) budget: Budget,
    pub(in super::super) slots: Slab,
    pub(in super::super) staging: Buddy,
    /// Blocks for decoded groups of rows, for the lane that keeps them.
    pub(in super::super) groups: Mutex<Vec<Block>>,
    /// One worker at a time may use this, when it cannot have scratch of its own: so one always
    /// goes on.
    pub(in super::super) scratch: Mutex<Option<Block>>,
    pub(in super::super) plan: Plan,
    _grants: Vec<Grant>,
    _running: Running,
}

impl Reserved {
    /// Why no batch can be begun: every slot is with the consumer, or the memory of ragged columns
    /// is held.
    pub(in super::super) fn held_error(&self, slots: bool) -> Error {
        if slots {
            return Error::Held { slots: self.slots.count(), slot_mib: mib(self.plan.slot_bytes) };
        }
        Error::Starved { cap_bytes: self.budget.cap_bytes(), holders: self.budget.holders() }
    }
}

/// The slab of the last epoch, if the consumer still holds a slot of it and its slots fit this
/// plan.
fn slots_of(plan: &Plan, last: &WeakSlab) -> Option<Slab> {
    last.upgrade().filter(|slab| slab.item_bytes() == plan.slot_bytes)
}

impl Held {
    /// What others hold of `budget`, without the slots of the last epoch, which are used again.
    #[must_use]
    pub fn by_others(plan: &Plan, budget: &Budget, last: &WeakSlab) -> Self {
        let free = budget.arena().hole_bytes + budget.reclaimable_bytes();
        let (out, items) = slots_of(plan, last).map_or((0, 0), |slab| slab.out());
        let again = Slab::stride_bytes(plan.slot_bytes) * items as u64;
        let bytes = budget.usage().charged_bytes.saturating_sub(free).saturating_sub(again);
        Self { bytes, slots: out as u64 }
    }
}

impl Plan {
    /// Takes what the plan says.
    ///
    /// # Errors
    /// When others hold the bytes, naming them.
    pub fn reserve(self, budget: &Budget, last: &WeakSlab) -> Result<Reserved> {
        let urgent = Priority::NextBatch;
        if let Some(slab) = slots_of(&self, last) {
            // Before anything is taken: there may be less memory than in the last epoch.
            slab.shrink(self.slots);
        }
        let grants = vec![
            budget.try_acquire(Account::Library, self.source_bytes + self.kept_bytes, urgent)?,
            budget.try_acquire(Account::Index, self.index_bytes, urgent)?,
            budget.try_acquire(Account::Telemetry, self.telemetry_bytes(), urgent)?,
            budget.try_acquire(Account::CacheMemory, self.cache_bytes + self.stores_bytes, urgent)?,
        ];
        let scratch = match self.scratch_bytes {
            0 => None,
            bytes => Some(budget.try_block(Account::Scratch, bytes, urgent)?),
        };
        let group = |_| budget.try_block(Account::Decoded, self.group_bytes, urgent);
        Ok(Reserved {
            groups: Mutex::new((0..self.groups).map(group).collect::<Result<_, _>>()?),
            staging: Buddy::new(budget, Account::Staging, self.staging_bytes, urgent)?,
            slots: match slots_of(&self, last) {
                Some(slab) => {
                    slab.resize(budget, Account::Batch, self.slots, urgent)?;
                    slab
                }
                None => Slab::new(budget, Account::Batch, self.slot_bytes, self.slots, urgent)?,
            },
            scratch: Mutex::new(scratch),
            budget: budget.clone(),
            plan: self,
            _grants: grants,
            _running: budget.run(),
        })
    }
}
