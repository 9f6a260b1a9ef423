//! What every tier of a cache must do, as a function: run on our own, and usable on yours.
//!
//! Flow: a [`Tier`] -> nothing, or the first promise that it breaks, in words.
//! Memory: a few objects.

use crate::cache::Tier;

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the promises of a [`Tier`] that is empty, for 64 objects of up to `bytes` and keys below
/// 64. The tier should have room for all of them at `limit_bytes`.
///
/// # Errors
/// The first promise that does not hold.
pub fn tier(tier: &dyn Tier, bytes: usize, limit_bytes: u64) -> Result<(), String> {
    let object = |key: u64| -> Vec<u8> {
        let len = (key as usize * 7919) % (bytes + 1);
        (0..len).map(|i| (i as u64 ^ key.wrapping_mul(0x9e37_79b9)) as u8).collect()
    };
    let put = |key: u64| {
        let object = object(key);
        let (first, rest) = object.split_at(object.len() / 3);
        tier.put(key, &[first, &[], rest])
    };
    let mut into = vec![0; bytes];
    let mut get = |key: u64| tier.get(key, &mut into).map(|len| into[..len].to_vec());
    tier.set_limit(limit_bytes);
    must((0..64).all(|key| get(key).is_none()), || "an empty tier has an object".into())?;
    let kept: Vec<bool> = (0..64).map(put).collect();
    must(kept.iter().all(|kept| *kept), || format!("objects were refused: {kept:?}"))?;
    for key in 0..64 {
        must(get(key) == Some(object(key)), || format!("object {key} is another one"))?;
        must(put(key), || format!("object {key} is here, and was refused"))?;
        let small = &mut vec![0; object(key).len().saturating_sub(1)];
        must(object(key).is_empty() || tier.get(key, small).is_none(), || {
            format!("object {key} was put where it does not fit")
        })?;
    }
    for limit in [limit_bytes / 2, limit_bytes / 7, limit_bytes / 3, 0] {
        tier.set_limit(limit);
        must(tier.limit_bytes() == limit, || format!("the limit is not {limit}"))?;
        for key in 0..64 {
            must(get(key).is_none_or(|found| found == object(key)), || {
                format!("object {key} is another one")
            })?;
            if put(key) {
                must(get(key) == Some(object(key)), || format!("object {key} was kept and is not there"))?;
            }
            let held = tier.held_bytes();
            must(held <= limit, || format!("{held} bytes are held, {limit} allowed"))?;
        }
    }
    must((0..64).all(|key| get(key).is_none()), || "without room there is an object".into())
}
