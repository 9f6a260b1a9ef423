//! What every source, every order and every tier must do, as functions: run on our own, and usable on yours.
//!
//! Flow: a [`Source`], an [`Order`] or a [`Tier`] -> nothing, or the first promise that it breaks, in words.
//! Memory: a few samples; an order's check holds eight bytes a position.
//!
//! ```
//! use tidegate_data::{source::Synthetic, testing};
//! testing::source(&Synthetic::new(100, 64))?;
//! # Ok::<(), String>(())
//! ```

use crate::cache::Tier;
use crate::order::{Epoch, Foresight, Order};
use crate::source::read::{aligned, staging_bytes};
use crate::source::{Access, Located, ReadMode, Source, SourceExt};

/// Samples that are looked at.
const LOOKED_AT: u64 = 64;

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the promises of a [`Source`] on up to 64 of its samples.
///
/// # Errors
/// The first promise that does not hold.
pub fn source(source: &dyn Source) -> Result<(), String> {
    let n = source.len();
    must(source.runs().iter().sum::<u64>() == n, || {
        format!("runs {:?} do not add up to {n}", source.runs())
    })?;
    must(source.is_empty() == (n == 0), || "is_empty contradicts len".into())?;
    must(source.fetch(n).is_err(), || format!("sample {n} of {n} can be read"))?;
    must((source.access() == Access::Grouped) == source.grouped().is_some(), || {
        "access contradicts grouped".into()
    })?;
    let count = n.min(LOOKED_AT);
    let ids: Vec<u64> = (0..count).map(|i| i * n / count).collect();
    let found = locate(source, &ids)?;
    let backwards: Vec<u64> = ids.iter().rev().copied().collect();
    let mut again = locate(source, &backwards)?;
    again.reverse();
    must(found == again, || "locate depends on the order it is asked in".into())?;
    let mut total = 0;
    for (&id, at) in ids.iter().zip(&found) {
        total += u64::from(at.entry.len);
        sample(source, id, at).map_err(|what| format!("sample {id}: {what}"))?;
    }
    let extremes = source.extremes();
    must(total <= extremes.total_bytes, || format!("{total} bytes seen, {} in all", extremes.total_bytes))
}

fn locate(source: &dyn Source, ids: &[u64]) -> Result<Vec<Located>, String> {
    let found = source.locate(ids).map_err(|e| e.to_string())?;
    must(found.len() == ids.len(), || format!("{} of {} samples located", found.len(), ids.len()))?;
    Ok(found)
}

fn sample(source: &dyn Source, id: u64, at: &Located) -> Result<(), String> {
    let extremes = source.extremes();
    let len = u64::from(at.entry.len);
    must(len <= extremes.sample_bytes, || format!("{len} bytes, more than the largest"))?;
    must(at.entry.decoded_bytes() <= extremes.decoded_bytes, || "a larger picture than the largest".into())?;
    must(source.place(at).id == at.id, || "its place is that of another".into())?;
    must(!source.key(id).map_err(|e| e.to_string())?.is_empty(), || "no key".into())?;
    let mut first: Option<Vec<u8>> = None;
    for mode in [ReadMode::Direct, ReadMode::Drop, ReadMode::Plain] {
        let mut staging = aligned(staging_bytes(len) as usize);
        let range = source.read(at, len, mode, &mut staging).map_err(|e| format!("{mode:?}: {e}"))?;
        let bytes = staging.get(range).ok_or("a range outside of staging")?;
        must(bytes.len() as u64 == len, || format!("{mode:?}: {} bytes of {len}", bytes.len()))?;
        let values = source.parse(at, bytes).map_err(|e| e.to_string())?;
        must(values.len() == source.schema().len(), || format!("{} values", values.len()))?;
        must(first.get_or_insert_with(|| bytes.to_vec()) == bytes, || format!("{mode:?} reads other bytes"))?;
    }
    if let Some(extent) = source.extent(at) {
        let mut staging = aligned(staging_bytes(len) as usize);
        let range = extent.read(len, &mut staging).map_err(|e| format!("its extent: {e}"))?;
        must(staging.get(range) == first.as_deref(), || "its extent has other bytes".into())?;
    }
    if let Some(grouped) = source.grouped() {
        let mut group = vec![0; grouped.group_bytes() as usize];
        let all = vec![true; source.schema().len()];
        grouped.decode(at, &all, ReadMode::Plain, &mut group).map_err(|e| e.to_string())?;
        must(grouped.row(at, &group) == first.as_deref(), || "its row in its group has other bytes".into())?;
        let none = vec![false; source.schema().len()];
        grouped.decode(at, &none, ReadMode::Plain, &mut group).map_err(|e| e.to_string())?;
        let row = grouped.row(at, &group).ok_or("no row where no field is wanted")?;
        let values = source.parse(at, row).map_err(|e| e.to_string())?;
        let empty = values.iter().all(|v| *v == crate::source::Value::Missing);
        must(empty, || "a field that was not wanted was decoded".into())?;
    }
    Ok(())
}

/// Checks that each epoch of an [`Order`] lists each id once, and is the same when asked again.
///
/// # Errors
/// The first promise that does not hold.
pub fn order(order: &dyn Order) -> Result<(), String> {
    for number in [0, 1, 7] {
        let mut ids = repeatable(order, number)?;
        ids.sort_unstable();
        must(ids.iter().copied().eq(0..order.len()), || {
            format!("epoch {number} does not list each id once")
        })?;
    }
    Ok(())
}

/// Checks that each epoch of an [`Order`] whose ids may repeat is the same when asked again, that its ids are below `samples`, and that it says so.
///
/// # Errors
/// The first promise that does not hold.
pub fn drawn(order: &dyn Order, samples: u64) -> Result<(), String> {
    must(order.foresight() == Foresight::Listed, || "its ids may repeat, and it does not say so".into())?;
    for number in [0, 1, 7] {
        let ids = repeatable(order, number)?;
        must(ids.iter().all(|&id| id < samples), || format!("epoch {number} has an id beyond {samples}"))?;
        must(order.print(number).is_some(), || "nothing tells it from other samplers".into())?;
    }
    Ok(())
}

/// The ids of an epoch, which must be the same when they are asked for again, backwards.
fn repeatable(order: &dyn Order, number: u64) -> Result<Vec<u64>, String> {
    let epoch = || order.epoch(number).map_err(|e| e.to_string());
    let (epoch, again) = (epoch()?, epoch()?);
    let id = |epoch: &dyn Epoch, position| epoch.id(position).map_err(|e| e.to_string());
    let ids: Vec<u64> = (0..order.len()).map(|p| id(&*epoch, p)).collect::<Result<_, _>>()?;
    let same = (0..order.len()).rev().all(|p| id(&*again, p).as_ref() == Ok(&ids[p as usize]));
    must(same, || format!("epoch {number} depends on what was asked before"))?;
    Ok(ids)
}

/// Checks the promises of a [`Tier`] that is empty, for 64 objects of up to `bytes` and keys below 64. The tier should have
/// room for all of them at `limit_bytes`.
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
