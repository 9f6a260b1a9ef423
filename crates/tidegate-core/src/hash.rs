//! Words mixed by SplitMix64: every bit of the result depends on every bit of the key.
//!
//! Flow: keys, places, seeds -> words for tables, sets and draws.
//! Memory: holds none.
//!
//! Both functions are frozen: what is stored on disks and drawn by seeds follows from them.

/// The increment of SplitMix64: 2^64 divided by the golden ratio.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The first output of SplitMix64 seeded with `key`: [`GOLDEN`] is added, then the finalizer is
/// applied.
///
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
///
/// ```
/// assert_eq!(tidegate_core::hash::splitmix64(0), 0xe220_a839_7b1d_cdaf);
/// ```
#[must_use]
pub const fn splitmix64(key: u64) -> u64 {
    splitmix64_finalize(key.wrapping_add(GOLDEN))
}

/// The finalizer of SplitMix64 alone (Stafford's variant 13): a bijection of 64 bits that maps 0
/// to 0.
///
/// ```
/// use tidegate_core::hash::{GOLDEN, splitmix64, splitmix64_finalize};
/// assert_eq!(splitmix64_finalize(0), 0);
/// assert_eq!(splitmix64_finalize(7u64.wrapping_add(GOLDEN)), splitmix64(7));
/// ```
#[must_use]
pub const fn splitmix64_finalize(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}
