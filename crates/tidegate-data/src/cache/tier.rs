//! The traits of a cache tier, and what a tier in memory returns.
//!
//! Flow: [`Tier`] copies objects in and out; [`MemoryTier`] returns them without a copy, as
//! [`Cached`]; implemented by the modules of this folder, called by the pipeline.
//! Memory: holds none; a [`Cached`] keeps the segment that its bytes are in.

use tidegate_core::memory::Lease;
use tidegate_core::observe::{MetricValue, Value};

use super::codec::Codec;

/// Objects by key, up to a limit in bytes.
///
/// Object-safe, and shared by all threads. `testing::tier` checks its promises.
pub trait Tier: Send + Sync + std::fmt::Debug {
    /// Copies an object to the beginning of `into` and returns its length.
    ///
    /// Returns `None` if the object is not in this tier or is longer than `into`.
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize>;

    /// Offers a copy of an object, given in parts; returns whether the tier has it now.
    fn put(&self, key: u64, parts: &[&[u8]]) -> bool;

    /// The most bytes that the tier may hold, its tables included.
    fn limit_bytes(&self) -> u64;

    /// Changes the limit; a lower limit evicts at once.
    fn set_limit(&self, bytes: u64);

    /// Bytes that the tier holds now, its tables included.
    fn held_bytes(&self) -> u64;
}

/// The rule that decides which objects a tier keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// A fixed set, evenly spread: the best where each object is used once an epoch.
    Fixed,
    /// Belady's rule: objects that are used again soonest, where all accesses are known.
    Min,
    /// By past accesses (S3-FIFO of `quick_cache`), where future accesses are unknown.
    Adaptive,
}

impl MetricValue for Policy {
    fn value(&self) -> Value<'_> {
        Value::Text(match self {
            Self::Fixed => "fixed",
            Self::Min => "min",
            Self::Adaptive => "adaptive",
        })
    }
}

/// The keys of future accesses in their order, as far as they are known.
pub type FutureAccesses = Box<dyn Iterator<Item = u64> + Send>;

/// A tier in memory: it returns objects without a copy, and sees each access.
pub trait MemoryTier: Tier {
    /// An object, without a copy; `None` if it is not in this tier.
    fn get_lease(&self, key: u64) -> Option<Cached>;

    /// How objects are packed, and their size before packing over their size after it.
    ///
    /// `None` if objects are not packed.
    fn codec(&self) -> Option<(Codec, f64)> {
        None
    }

    /// The rule that decides which objects are kept.
    fn policy(&self) -> Policy;

    /// Sets the accesses that follow, as far as they are known, and their number.
    ///
    /// A `count` of 0 means that they are not counted.
    fn set_future(&self, accesses: FutureAccesses, count: u64) {
        drop((accesses, count));
    }

    /// Bytes that the best policy would have hit in the last finished epoch.
    ///
    /// `None` unless future accesses are unknown and such an epoch has ended.
    fn optimum_bytes(&self) -> Option<u64> {
        None
    }

    /// Records the next access, of `bytes`; returns whether the best policy would have hit.
    fn record_access(&self, key: u64, bytes: u64) -> bool;
}

/// The sizes of numbered objects; a `u64` is the one size of all objects.
pub trait Objects {
    /// Bytes of an object.
    fn bytes(&self, object: u32) -> u64;
}

impl Objects for u64 {
    fn bytes(&self, _: u32) -> u64 {
        *self
    }
}

impl Objects for Vec<u64> {
    fn bytes(&self, object: u32) -> u64 {
        self[object as usize]
    }
}

impl Objects for Vec<u32> {
    fn bytes(&self, object: u32) -> u64 {
        u64::from(self[object as usize])
    }
}

/// An object of a tier in memory. It stays readable after the tier evicts it.
#[derive(Debug, Clone)]
pub enum Cached {
    /// The object's bytes.
    Plain(Lease),
    /// The object in packed form.
    Packed(Packed),
}

/// A packed object.
#[derive(Debug, Clone)]
pub struct Packed {
    pub(super) lease: Lease,
    pub(super) codec: Codec,
    /// The object's length.
    pub(super) len: usize,
}

impl Packed {
    /// The object's length in bytes.
    #[must_use]
    pub fn unpacked_len(&self) -> usize {
        self.len
    }

    /// Unpacks the object to the beginning of `into`.
    ///
    /// Returns `false` if `into` is too short or the packed bytes are damaged.
    #[must_use]
    pub fn unpack(&self, into: &mut [u8]) -> bool {
        into.get_mut(..self.len).is_some_and(|into| self.codec.unpack(&self.lease, into))
    }
}
