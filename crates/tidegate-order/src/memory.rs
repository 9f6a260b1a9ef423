//! Memory of tables: reserved under account `index` before a table is made.
//!
//! Flow: (budget, bytes, name of the table) -> a grant; called by the samplers and by what finds
//! boxes.
//! Memory: none of its own; the caller keeps the grant for as long as the table lives.

use tidegate_core::memory::{Account, Budget, Grant, Priority};

use crate::error::{Error, Result};

/// Reserves `bytes` for a table; `what` names the table in the error.
///
/// # Errors
/// [`Error::Budget`] when the budget cannot grant the bytes now.
pub fn reserve(budget: &Budget, bytes: u64, what: &str) -> Result<Grant> {
    budget.try_acquire(Account::Index, bytes, Priority::NextBatch).map_err(|source| Error::Budget {
        what: what.to_owned(),
        bytes,
        source,
    })
}
