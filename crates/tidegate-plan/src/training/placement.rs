//! Static places of tensors in one block of memory, by when each one lives.
//!
//! Flow: sizes and lifetimes -> [`place`] -> offsets, the peak, its lower bound and colouring.
//! Memory: some words a tensor; time is the square of their number at most.
//!
//! The largest tensor is placed first, each in the smallest gap between those that live at the same
//! time (greedy by size with best fit: Y. Pisarchyk, J. Lee, "Efficient memory management for deep
//! neural net inference", arXiv:2001.03288). Finding the optimum is NP-hard: the peak is given
//! beside the lower bound that no placement can beat.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A tensor: its bytes, and the first and the last step at which it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetime {
    /// Its bytes.
    pub bytes: u64,
    /// The step that makes it.
    pub first: u64,
    /// The last step that uses it, itself included.
    pub last: u64,
}

impl Lifetime {
    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where each tensor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The offset of each tensor, in the order in which they were given.
    pub offsets: Vec<u64>,
    /// The bytes of the block.
    pub peak_bytes: u64,
    /// The most bytes that live at one step: no placement takes less.
    pub bound_bytes: u64,
    /// Bytes when tensors share whole buffers instead, each as large as its largest (colouring).
    pub colouring_bytes: u64,
    /// Bytes when nothing is shared.
    pub sum_bytes: u64,
}

/// Places tensors so that no two that live at the same step overlap.
///
/// # Errors
/// [`Error::Parameter`] for a tensor that ends before it begins, more than 2^42 bytes, or more than
/// 2^14 tensors; for an alignment that is 0.
///
/// # Example
/// ```
/// use tidegate_plan::training::placement::{Lifetime, place};
/// let tensor = |bytes, first, last| Lifetime { bytes, first, last };
/// let found = place(&[tensor(4, 0, 1), tensor(2, 1, 2), tensor(3, 2, 3)], 1)?;
/// assert_eq!((found.peak_bytes, found.bound_bytes, found.sum_bytes), (6, 6, 9));
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn place(tensors: &[Lifetime], alignment: u64) -> Result<Placement> {
    check(tensors, alignment)?;
    let sizes: Vec<u64> = tensors.iter().map(|t| t.bytes.next_multiple_of(alignment)).collect();
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(sizes[i]), tensors[i].first, i));
    let mut offsets = vec![0u64; tensors.len()];
    // Those that have a place, by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(tensors.len());
    for &i in &order {
        let (mut end, mut best) = (0, None);
        for &other in placed.iter().filter(|&&other| tensors[other].meets(&tensors[i])) {
            let gap = offsets[other].saturating_sub(end);
            if gap >= sizes[i] && best.is_none_or(|(least, _)| gap < least) {
                best = Some((gap, end));
            }
            end = end.max(offsets[other] + sizes[other]);
        }
        offsets[i] = best.map_or(end, |(_, offset)| offset);
        let at = placed.partition_point(|&other| offsets[other] <= offsets[i]);
        placed.insert(at, i);
    }
    let peak_bytes = (0..tensors.len()).map(|i| offsets[i] + sizes[i]).max().unwrap_or(0);
    Ok(Placement {
        offsets,
        peak_bytes,
        bound_bytes: bound(tensors, &sizes),
        colouring_bytes: colouring(tensors, &sizes, &order),
        sum_bytes: sizes.iter().sum(),
    })
}

fn check(tensors: &[Lifetime], alignment: u64) -> Result<()> {
    if alignment == 0 || alignment > 1 << 30 {
        return Err(Error::parameter("alignment", alignment, "it must be from 1 to 2^30"));
    }
    if tensors.len() > 1 << 14 {
        return Err(Error::parameter("the number of tensors", tensors.len(), "it must be at most 2^14"));
    }
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.last < tensor.first {
            let value = format!("{} to {}", tensor.first, tensor.last);
            return Err(Error::parameter(
                format!("the life of tensor {i}"),
                value,
                "it must end after it begins",
            ));
        }
        if tensor.bytes > 1 << 42 {
            return Err(Error::parameter(
                format!("the size of tensor {i}"),
                tensor.bytes,
                "it must be at most 2^42",
            ));
        }
    }
    Ok(())
}

/// The most bytes that live at one step.
fn bound(tensors: &[Lifetime], sizes: &[u64]) -> u64 {
    let mut events: Vec<(u64, bool, u64)> = Vec::with_capacity(2 * tensors.len());
    for (tensor, &size) in tensors.iter().zip(sizes) {
        // At one step, what begins is there together with what ends.
        events.push((tensor.first, false, size));
        events.push((tensor.last, true, size));
    }
    events.sort_unstable();
    let (mut now, mut most) = (0u64, 0);
    for (_, ends, size) in events {
        now = if ends { now - size } else { now + size };
        most = most.max(now);
    }
    most
}

/// Bytes of buffers that tensors use one after another: each takes the first free buffer.
fn colouring(tensors: &[Lifetime], sizes: &[u64], order: &[usize]) -> u64 {
    let mut buffers: Vec<(u64, Vec<usize>)> = Vec::new();
    for &i in order {
        let free = |users: &Vec<usize>| users.iter().all(|&other| !tensors[other].meets(&tensors[i]));
        match buffers.iter_mut().find(|(_, users)| free(users)) {
            Some((_, users)) => users.push(i),
            None => buffers.push((sizes[i], vec![i])),
        }
    }
    buffers.iter().map(|(size, _)| size).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_two_that_live_together_overlap(
            given in prop::collection::vec((1u64..100, 0u64..30, 0u64..10), 1..60),
            alignment in prop::sample::select(vec![1u64, 8, 64]),
        ) {
            let tensors: Vec<Lifetime> = given
                .iter()
                .map(|&(bytes, first, more)| Lifetime { bytes, first, last: first + more })
                .collect();
            let found = place(&tensors, alignment).unwrap();
            for (i, one) in tensors.iter().enumerate() {
                prop_assert_eq!(found.offsets[i] % alignment, 0);
                for (j, other) in tensors.iter().enumerate().skip(i + 1) {
                    let apart = found.offsets[i] + one.bytes <= found.offsets[j]
                        || found.offsets[j] + other.bytes <= found.offsets[i];
                    prop_assert!(apart || !one.meets(other), "{i} and {j}: {:?}", found.offsets);
                }
            }
            prop_assert!(found.bound_bytes <= found.peak_bytes && found.peak_bytes <= found.sum_bytes);
            prop_assert!(found.bound_bytes <= found.colouring_bytes);
        }
    }

    /// The tensors of a chain's forward and backward: activations nest, and reach the bound.
    #[test]
    fn nested_lives_reach_the_bound_and_colouring_does_not() {
        let stages = 20;
        let mut tensors: Vec<Lifetime> =
            (0..stages).map(|i| Lifetime { bytes: 10 + 3 * i, first: i, last: 2 * stages - i }).collect();
        tensors.extend((0..stages).map(|i| Lifetime { bytes: 7 + i, first: 2 * i, last: 2 * i }));
        let found = place(&tensors, 1).unwrap();
        assert_eq!(found.peak_bytes, found.bound_bytes);
        assert!(found.colouring_bytes >= found.peak_bytes);
    }

    #[test]
    fn wrong_lives_are_named() {
        let wrong = Lifetime { bytes: 1, first: 3, last: 2 };
        assert!(place(&[wrong], 1).unwrap_err().to_string().contains("the life of tensor 0 is 3 to 2"));
        assert!(place(&[], 0).is_err());
        assert_eq!(place(&[], 1).unwrap().peak_bytes, 0);
    }
}
