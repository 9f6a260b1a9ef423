//! The promises of an order, as functions: run on the orders of this crate, and usable on yours.
//!
//! Flow: an [`Order`] -> nothing, or the first promise that it breaks, in words.
//! Memory: eight bytes a position.
//!
//! ```
//! use tidegate_order::{Shuffle, order, testing};
//! testing::order(&*order(Shuffle::Full, 7, &[1000]).map_err(|e| e.to_string())?)?;
//! # Ok::<(), String>(())
//! ```

use crate::traits::{Epoch, Lookahead, Order};

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks that each epoch of an [`Order`] has each id once, and is the same when asked again.
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

/// Checks an [`Order`] whose ids may repeat.
///
/// Each epoch must be the same when it is asked again, its ids must be below `samples`, and the
/// order must say that its ids are listed and give a digest of them.
///
/// # Errors
/// The first promise that does not hold.
pub fn sampler(order: &dyn Order, samples: u64) -> Result<(), String> {
    must(order.lookahead() == Lookahead::Listed, || {
        "its ids may repeat, but its lookahead is not Listed".into()
    })?;
    for number in [0, 1, 7] {
        let ids = repeatable(order, number)?;
        must(ids.iter().all(|&id| id < samples), || format!("epoch {number} has an id beyond {samples}"))?;
        must(order.digest(number).is_some(), || format!("epoch {number} has no digest"))?;
    }
    Ok(())
}

/// The ids of an epoch, which must be the same when a second epoch is asked backwards.
fn repeatable(order: &dyn Order, number: u64) -> Result<Vec<u64>, String> {
    let epoch = || order.epoch(number).map_err(|e| e.to_string());
    let (epoch, second) = (epoch()?, epoch()?);
    let id = |epoch: &dyn Epoch, position| epoch.id(position).map_err(|e| e.to_string());
    let ids: Vec<u64> = (0..order.len()).map(|p| id(&*epoch, p)).collect::<Result<_, _>>()?;
    let same = (0..order.len()).rev().all(|p| id(&*second, p).as_ref() == Ok(&ids[p as usize]));
    must(same, || format!("epoch {number} depends on what was asked before"))?;
    Ok(ids)
}

/// How often each of `samples` ids is at a position of an epoch.
#[cfg(test)]
pub(crate) fn counts(order: &dyn Order, samples: usize, epoch: u64) -> Vec<u64> {
    let epoch = order.epoch(epoch).unwrap();
    let mut counts = vec![0; samples];
    (0..order.len()).for_each(|p| counts[epoch.id(p).unwrap() as usize] += 1);
    counts
}

/// The chi-square statistic of counts.
#[cfg(test)]
pub(crate) fn chi_square(counts: &[u64], expected: impl Fn(usize) -> f64) -> f64 {
    let cell = |(i, &count): (usize, &u64)| (count as f64 - expected(i)).powi(2) / expected(i);
    counts.iter().enumerate().map(cell).sum()
}
