//! What every order must do, as functions: run on our own, and usable on yours.
//!
//! Flow: an [`Order`] -> nothing, or the first promise that it breaks, in words.
//! Memory: eight bytes a position.
//!
//! ```
//! use tidegate_order::{Shuffle, order, testing};
//! testing::order(&*order(Shuffle::Full, 7, &[1000]).map_err(|e| e.to_string())?)?;
//! # Ok::<(), String>(())
//! ```

use crate::{Epoch, Foresight, Order};

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
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
