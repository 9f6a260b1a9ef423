//! Checks of what every source must do, for the sources here and for yours.
//!
//! Flow: a [`Source`] -> `Ok`, or the first promise that it breaks, in words.
//! Memory: a few samples.
//!
//! ```
//! use tidegate_source::{Synthetic, testing};
//! testing::source(&Synthetic::new(100, 64))?;
//! # Ok::<(), String>(())
//! ```

use tidegate_decode::Value;

use crate::files::read::{aligned, staging_bytes};
use crate::{Access, Located, ReadMode, Source, SourceExt};

/// The number of samples that are checked.
const CHECKED: u64 = 64;

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the promises of a [`Source`] on up to 64 of its samples.
///
/// # Errors
/// The first promise that does not hold.
pub fn source(source: &dyn Source) -> Result<(), String> {
    let n = source.len();
    must(source.shard_lengths().iter().sum::<u64>() == n, || {
        format!("shard lengths {:?} do not add up to {n}", source.shard_lengths())
    })?;
    must(source.is_empty() == (n == 0), || "is_empty contradicts len".into())?;
    must(source.fetch(n).is_err(), || format!("sample {n} of {n} can be read"))?;
    must((source.access() == Access::Grouped) == source.grouped().is_some(), || {
        "access contradicts grouped".into()
    })?;
    let count = n.min(CHECKED);
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
    let bounds = source.size_bounds();
    must(total <= bounds.total_bytes, || format!("{total} bytes seen, {} in all", bounds.total_bytes))
}

fn locate(source: &dyn Source, ids: &[u64]) -> Result<Vec<Located>, String> {
    let found = source.locate(ids).map_err(|e| e.to_string())?;
    must(found.len() == ids.len(), || format!("{} of {} samples located", found.len(), ids.len()))?;
    Ok(found)
}

fn sample(source: &dyn Source, id: u64, at: &Located) -> Result<(), String> {
    let bounds = source.size_bounds();
    let len = u64::from(at.entry.len);
    must(len <= bounds.sample_bytes, || format!("{len} bytes, more than the largest"))?;
    must(at.entry.decoded_bytes() <= bounds.decoded_bytes, || "a larger image than the largest".into())?;
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
        let empty = values.iter().all(|v| *v == Value::Missing);
        must(empty, || "a field that was not wanted was decoded".into())?;
    }
    Ok(())
}
