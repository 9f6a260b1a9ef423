//! One word from another, every bit of which hangs on all bits of that.
//!
//! Flow: keys, places, seeds -> words for tables, sets and draws.
//! Memory: holds none.

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the key changes half of the result's. What is stored under it on
/// disks and drawn by it stays as it is: it never changes.
///
/// ```
/// assert_eq!(tidegate_core::mix(0), 0xe220_a839_7b1d_cdaf);
/// ```
#[must_use]
pub fn mix(key: u64) -> u64 {
    let x = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
