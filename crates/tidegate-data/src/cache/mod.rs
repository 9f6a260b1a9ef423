//! What stays between reads: samples as they are stored, or chunks of volumes, in tiers.
//!
//! Flow: the feed asks for a sample by its key -> its bytes, as [`Cached`] ([`Memory`],
//! [`ReuseCache`]), or their location ([`SegmentTier`]), or nothing; readers put what a tier
//! wants.
//! Memory: each tier's own, within its limit. A tier shrinks when a request of higher priority
//! lacks memory.
//! Not here: decoded groups of rows that the order has in use (`pipeline::groups`).
//!
//! An epoch without replacement reads each sample once, so the hit rate is at most the fraction
//! that is kept. A fixed set reaches that bound. No policy that evicts does better, and the usual
//! ones do far worse: a least-recently-used cache of half the data hits 15 %, not 50 %. A hash of
//! the key decides which samples are in the set, so hits are spread evenly over the epoch in any
//! order, and reading never stalls between a run of hits and a run of misses. Where samples
//! repeat, [`ReuseCache`] keeps those that are used again soonest.

mod admission;
pub mod codec;
pub mod curve;
pub mod disk;
mod memory;
pub mod min;
pub mod node;
mod reuse;
mod segment;
mod tier;

pub use tidegate_core::memory::Lease;

pub use self::disk::DiskCache;
pub use self::memory::Memory;
pub use self::reuse::ReuseCache;
pub use self::segment::{RecordLocation, SegmentTier, Tally};
pub use self::tier::{Cached, FutureAccesses, MemoryTier, Objects, Packed, Policy, Tier};
