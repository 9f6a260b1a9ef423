//! Which sample comes next: sample order as a function of (seed, epoch, position).
//!
//! Flow: [`Shuffle`] and run lengths -> [`Order`] -> [`Epoch`] -> the id at a position.
//! Memory: at most 256 KiB an epoch (a listed shuffle below 2^16 ids) or a few words a run. Only
//! ids that a user lists ([`explicit`]) and the tables of samplers grow with the data.
//! Not here: the threads that ask for ids, and the caches that know them in advance.

pub mod alias;
pub mod curriculum;
pub mod draw;
pub mod error;
pub mod explicit;
pub mod feedback;
pub mod lattice;
pub mod memory;
pub mod morton;
pub mod partition;
pub mod patches;
pub mod permutation;
pub mod quality;
pub mod random;
pub mod shuffle;
pub mod stratified;
pub mod testing;
pub mod tradeoff;
mod traits;
pub mod uniform;
pub mod weighted;
mod window;

pub use self::error::{Error, Result};
pub use self::shuffle::{Shuffle, order};
pub use self::traits::{Epoch, FeedbackOrder, FeedbackStats, Lookahead, Order, Quality};
