//! How well an order mixes: what a shuffle window costs in randomness, in figures.
//!
//! Flow: an [`Epoch`] over data sorted by class -> [`Quality`]; called by [`crate::tradeoff`], by
//! [`crate::morton`] for the loader's report, by benches and tests.
//! Memory: one count a class.
//!
//! Data sorted by class are the worst case: a window has few classes, and so have its batches.
//! Measures of how far ids travel saturate long before batches are mixed, so the labels of batches
//! are measured.

use crate::error::Result;
use crate::traits::Epoch;

pub use crate::traits::Quality;

/// The most batches that are measured, evenly spread over the epoch.
const MAX_BATCHES: u64 = 2000;

/// Measures `epoch` over `len` ids in `classes` equal sorted classes, by batches of `batch` ids.
///
/// At most 2,000 batches are measured, evenly spread over the epoch.
///
/// # Errors
/// As [`Epoch::id`].
pub fn measure(epoch: &dyn Epoch, len: u64, classes: u64, batch: u64) -> Result<Quality> {
    let batches = (len / batch.max(1)).max(1);
    let class = |id: u64| (u128::from(id) * u128::from(classes) / u128::from(len.max(1))) as usize;
    let (mut variation, mut distance, mut pairs) = (0.0, 0.0, 0u64);
    let measured = batches.min(MAX_BATCHES);
    for nth in 0..measured {
        let (b, mut last) = ((u128::from(nth) * u128::from(batches) / u128::from(measured)) as u64, None);
        let mut counts = vec![0u64; classes as usize];
        for position in b * batch..((b + 1) * batch).min(len) {
            let id = epoch.id(position)?;
            counts[class(id)] += 1;
            if let Some(before) = last.replace(id) {
                distance += id.abs_diff(before) as f64 / len as f64;
                pairs += 1;
            }
        }
        variation += total_variation(&counts, batch as f64);
    }
    Ok(Quality {
        label_variation: variation / measured as f64,
        label_variation_shuffled: expected_variation(classes, batch),
        pair_distance: distance / pairs.max(1) as f64,
    })
}

fn total_variation(counts: &[u64], batch: f64) -> f64 {
    let expected = 1.0 / counts.len() as f64;
    counts.iter().map(|&c| (c as f64 / batch - expected).abs()).sum::<f64>() / 2.0
}

/// E[TV] of a multinomial with equal classes: classes/2 · E|X/batch − 1/classes| with X binomial.
///
/// The mean absolute deviation is de Moivre's formula.
fn expected_variation(classes: u64, batch: u64) -> f64 {
    let (n, p) = (batch as f64, 1.0 / classes as f64);
    let k = (n * p).floor() + 1.0;
    let ln_choose: f64 = (1..=k as u64).map(|i| ((n - k + i as f64) / i as f64).ln()).sum();
    let deviation = 2.0 * k * (1.0 - p) * (ln_choose + k * p.ln() + (n - k) * (1.0 - p).ln()).exp();
    classes as f64 / 2.0 * deviation / n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shuffle::{Shuffle, order};

    #[test]
    fn tells_sorted_windowed_and_full_apart() {
        let n = 200_000;
        let runs = vec![1000; 200];
        let of = |shuffle| measure(&*order(shuffle, 1, &runs).unwrap().epoch(0).unwrap(), n, 10, 64).unwrap();
        let (sorted, full) = (of(Shuffle::None), of(Shuffle::Full));
        let window = of(Shuffle::Window { samples: 16_384, canonical_nodes: 4, range_samples: 0 });
        assert!((full.label_variation / full.label_variation_shuffled - 1.0).abs() < 0.02, "{full:?}");
        assert!((full.pair_distance - 1.0 / 3.0).abs() < 0.01, "{full:?}");
        assert!(sorted.label_variation > 0.89 && sorted.pair_distance < 1e-4, "{sorted:?}");
        assert!(window.label_variation < 1.5 * full.label_variation, "{window:?} against {full:?}");
    }

    /// Pairs of neighbours are spread evenly over a 16 × 16 grid. Four Feistel rounds fail, eight
    /// pass.
    #[test]
    fn neighbours_of_the_computed_shuffle_are_independent() {
        let n = 1u64 << 20;
        let epoch = order(Shuffle::Full, 9, &[n]).unwrap().epoch(0).unwrap();
        let mut grid = vec![0u64; 256];
        for position in (0..n).step_by(2) {
            let sixteenth = |position| epoch.id(position).unwrap() * 16 / n;
            grid[(sixteenth(position) * 16 + sixteenth(position + 1)) as usize] += 1;
        }
        let expected = n as f64 / 2.0 / 256.0;
        let chi: f64 = grid.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
        assert!(chi < 255.0 + 5.0 * (2.0f64 * 255.0).sqrt(), "chi-square {chi} over 255 degrees");
    }
}
