//! One hard memory budget: a ledger reserves bytes before an arena of mapped pages provides them.
//!
//! Flow: [`Budget::acquire`] -> [`Grant`] (bytes that a library or heap will take);
//! [`Budget::block`] -> [`Block`] (bytes and their place in one step).
//! Memory: charged here, under an [`Account`], and given back when the grant or block is dropped.
//!
//! Why an arena and not malloc: a correct ledger over a general allocator peaked 52 % above its
//! budget, because an allocator keeps what it frees. Here a freed block is a *hole*: its pages
//! still count until they are used again or returned to the kernel, so the ledger counts what is
//! resident.

// Under loom only what waits is built: loom checks the waiting, not the mapping.
mod account;
#[cfg(not(loom))]
mod arena;
#[cfg(not(loom))]
mod buddy;
#[cfg(not(loom))]
mod budget;
mod error;
#[cfg(not(loom))]
mod heap;
mod ledger;
pub mod limit;
#[cfg(not(loom))]
mod log;
#[cfg(not(loom))]
mod node;
#[cfg(not(loom))]
mod pieces;
mod pool;
#[cfg(not(loom))]
mod region;
#[cfg(not(loom))]
mod segments;
pub mod size;
#[cfg(not(loom))]
mod slab;
mod space;
#[cfg(not(loom))]
mod turn;

pub use account::Account;
#[cfg(not(loom))]
pub use arena::{ArenaStats, Block, Place};
#[cfg(not(loom))]
pub use buddy::{Buddy, Staged};
#[cfg(not(loom))]
pub use budget::{Budget, Reclaim, Running};
pub use error::{Error, Result};
#[cfg(not(loom))]
pub use heap::{Heap, LARGE_BYTES};
pub use ledger::{AccountUse, Grant, Priority, Use};
#[cfg(not(loom))]
pub use log::{Lease, Log};
#[cfg(not(loom))]
pub use node::Node;
#[cfg(not(loom))]
pub use pieces::{Piece, Pieces};
pub use pool::Completion;
#[cfg(not(loom))]
pub use region::Backing;
#[cfg(not(loom))]
pub use slab::{Slab, SlabItem, WeakSlab};

/// The unit of the arena: what the kernel gives and takes back.
pub const PAGE_BYTES: u64 = 4096;
