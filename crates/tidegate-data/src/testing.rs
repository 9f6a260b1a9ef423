//! Checks that a cache tier keeps its promises, for our tiers and for yours.
//!
//! Flow: a [`Tier`] -> nothing, or the first promise that it breaks, in words.
//! Memory: a few objects.

use crate::cache::Tier;

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the promises of an empty [`Tier`] with 64 objects.
///
/// Objects have up to `bytes` each and keys below 64. The tier has room for all of them at
/// `limit_bytes`.
///
/// # Errors
/// The first promise that the tier breaks.
pub fn tier(tier: &dyn Tier, bytes: usize, limit_bytes: u64) -> Result<(), String> {
    let object = |key: u64| -> Vec<u8> {
        let len = (key as usize * 7919) % (bytes + 1);
        (0..len).map(|i| (i as u64 ^ key.wrapping_mul(0x9e37_79b9)) as u8).collect()
    };
    let put = |key: u64| {
        let object = object(key);
        let (first, second) = object.split_at(object.len() / 3);
        tier.put(key, &[first, &[], second])
    };
    let mut into = vec![0; bytes];
    let mut get = |key: u64| tier.get(key, &mut into).map(|len| into[..len].to_vec());
    tier.set_limit(limit_bytes);
    check((0..64).all(|key| get(key).is_none()), || "the empty tier has an object".into())?;
    let kept: Vec<bool> = (0..64).map(put).collect();
    check(kept.iter().all(|kept| *kept), || format!("put returned false below the limit: {kept:?}"))?;
    for key in 0..64 {
        check(get(key) == Some(object(key)), || format!("object {key} has wrong bytes"))?;
        check(put(key), || format!("object {key} is in the tier, but put returned false"))?;
        let small = &mut vec![0; object(key).len().saturating_sub(1)];
        check(object(key).is_empty() || tier.get(key, small).is_none(), || {
            format!("object {key} was copied into a buffer that is too short")
        })?;
    }
    for limit in [limit_bytes / 2, limit_bytes / 7, limit_bytes / 3, 0] {
        tier.set_limit(limit);
        check(tier.limit_bytes() == limit, || format!("the limit is not {limit} bytes"))?;
        for key in 0..64 {
            check(get(key).is_none_or(|found| found == object(key)), || {
                format!("object {key} has wrong bytes")
            })?;
            if put(key) {
                check(get(key) == Some(object(key)), || {
                    format!("put returned true for object {key}, but it is not in the tier")
                })?;
            }
            let held = tier.held_bytes();
            check(held <= limit, || format!("the tier holds {held} bytes; its limit is {limit}"))?;
        }
    }
    check((0..64).all(|key| get(key).is_none()), || "the tier has an object at a limit of 0 bytes".into())
}
