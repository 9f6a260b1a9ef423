//! What is kept from one reading to the next: samples as they are stored, or chunks of volumes, in tiers.
//!
//! Flow: the feed asks for a sample by its key -> a [`Lease`] of its bytes ([`Memory`]), or where they can be read ([`Records`]), or
//! nothing; readers put what is wanted.
//! Memory: each tier's own, within its limit; it shrinks when somebody with a better use lacks memory.
//! Not here: decoded groups of rows that the order has in use (`pipeline::groups`).
//!
//! An epoch without replacement reads each sample once, so at most the kept fraction can hit, and a fixed set that never
//! changes reaches it: no policy that evicts can do better, and the usual ones do far worse (a least recently used cache of
//! half the data hits 15 %, not 50). Which samples are in the set is a hash of their key, so hits are spread evenly over the
//! epoch, whatever the order, and reading never stalls between a stretch of hits and a stretch of misses. Where samples repeat
//! ([`Repeated`]), what comes next soonest is kept.

pub mod codec;
pub mod curve;
pub mod disk;
mod memory;
pub mod min;
pub mod node;
mod records;
mod repeated;

use tidegate_core::hash::splitmix64;
pub use tidegate_core::memory::Lease;

use self::codec::Codec;
pub use self::disk::DiskCache;
pub use self::memory::{Lent, Memory, Packed};
pub use self::records::{Records, Spot, Tally};
pub use self::repeated::Repeated;
use tidegate_source::Source;

/// Objects by key, up to a limit in bytes; object-safe, shared by all threads. `testing::tier` checks its promises.
pub trait Tier: Send + Sync + std::fmt::Debug {
    /// Copies an object into the beginning of `into` and says how long it is; nothing if it is not here, or does not fit.
    fn get(&self, key: u64, into: &mut [u8]) -> Option<usize>;

    /// Keeps a copy of an object, which is given in parts; says whether it is here now.
    fn put(&self, key: u64, parts: &[&[u8]]) -> bool;

    /// The most that the tier may take, all told.
    fn limit_bytes(&self) -> u64;

    /// Changes the limit; what is beyond a lower one is let go of at once.
    fn set_limit(&self, bytes: u64);

    /// What the tier takes now.
    fn held_bytes(&self) -> u64;
}

/// How it is decided what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// A fixed set, evenly spread: the best where each object comes once an epoch.
    Fixed,
    /// Belady's rule: what comes next soonest, where all that comes is known.
    Min,
    /// By what came before (S3-FIFO of `quick_cache`), where nothing is known of what comes.
    Adaptive,
}

impl tidegate_core::observe::MetricValue for Rule {
    fn value(&self) -> tidegate_core::observe::Value<'_> {
        tidegate_core::observe::Value::Text(match self {
            Self::Fixed => "fixed",
            Self::Min => "min",
            Self::Adaptive => "adaptive",
        })
    }
}

/// The accesses to come, as far as they are known.
pub type Coming = Box<dyn Iterator<Item = u64> + Send>;

/// The nearest tier: it lends what it has, and is told what is asked for.
pub trait Near: Tier {
    /// An object, if it is here.
    fn lend(&self, key: u64) -> Option<Lent>;

    /// How objects are packed and how much smaller that makes them, if it does.
    fn codec(&self) -> Option<(Codec, f64)> {
        None
    }

    /// How it is decided what is kept.
    fn rule(&self) -> Rule;

    /// Told what comes from now on, as far as it is known, and how many accesses these are; 0: they are not counted.
    fn look_ahead(&self, coming: Coming, count: u64) {
        drop((coming, count));
    }

    /// Where nothing is known of what comes: the bytes that the best there can be would have hit in an epoch that has ended.
    fn optimum_bytes(&self) -> Option<u64> {
        None
    }

    /// Told of each access in turn: whether the best there can be would have had the object.
    fn meet(&self, key: u64, bytes: u64) -> bool {
        let _nothing_changes = (key, bytes);
        false
    }
}

/// The sizes of numbered objects; one number is the size of all.
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

/// What tells this content from any other, as far as can be told without reading it.
fn edition(source: &dyn Source) -> u64 {
    let index = source.index().map_or([0; 2], |index| [index.meta.fingerprint, index.meta.identity()]);
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    index.iter().chain([&source.edition()]).for_each(|part| hash.update(&part.to_le_bytes()));
    hash.digest()
}

/// Which keys are in the fixed set: those whose hash is below a threshold, a given share of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share(u64);

impl Share {
    /// The share of keys that a tier of `limit_bytes` can hold out of `total_bytes` in `count` objects, and a little more, so
    /// that it gets full: what comes once it is full is refused.
    fn fitting(limit_bytes: u64, total_bytes: u64, count: u64) -> Self {
        let share = limit_bytes as f64 / total_bytes.max(1) as f64;
        // The bytes of a random set of n objects spread by about 1 / sqrt(n).
        let spread = 3.0 / (share * count as f64).max(1.0).sqrt();
        let share = share * (1.01 + spread);
        // Saturates at all keys.
        Self((share * u64::MAX as f64) as u64)
    }

    fn has(self, key: u64) -> bool {
        splitmix64(key) <= self.0
    }

    /// Whether the share of as many keys, taken from the other end of the order, has this one.
    fn has_from_the_end(self, key: u64) -> bool {
        !splitmix64(key) <= self.0
    }
}
