//! How well an order mixes: what a shuffle window costs in randomness, in figures.
//!
//! Flow: an [`Epoch`] over class-sorted data -> [`Quality`]; windows and ranges -> [`candidates`] -> the one with the fewest reads that mixes well
//! enough; called by `tidegate shuffle-quality`, benches and tests.
//! Memory: a count a class.
//!
//! Data sorted by class are the worst case: batches of a window that holds few classes are of few classes. Measures of how far ids travel saturate long
//! before that ends, so what counts here is the labels of a batch.

use serde::Serialize;

use super::{Epoch, Shuffle, order};
use crate::{Error, Result};

/// Batches that are looked at, evenly spread over the epoch.
const BATCHES: u64 = 2000;

/// Figures of one order, each beside what a true shuffle would give on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quality {
    /// Mean total variation between the labels of a batch and the labels of the whole, on class-sorted data.
    pub label_variation: f64,
    /// The same for a true shuffle.
    pub label_variation_shuffled: f64,
    /// Mean |id(p+1) − id(p)| / n: 1/3 for a true shuffle, near 0 for a sorted order.
    pub pair_distance: f64,
}

impl Quality {
    /// How many times as far from the labels of the whole a batch is as one of a true shuffle.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.label_variation / self.label_variation_shuffled
    }
}

/// A shuffle with what it is worth and what it costs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Candidate {
    /// The shuffle.
    pub shuffle: Shuffle,
    /// How well it mixes.
    pub quality: Quality,
    /// Pieces that lie together: reads of an epoch, at least.
    pub reads: u64,
    /// The samples from which it draws at once, of all.
    pub held: f64,
}

/// Windows of so many samples over data in `runs`, with whole runs and ever shorter ranges down to `least`, and a full shuffle, each with its figures.
///
/// # Errors
/// [`Error::Config`] where there are no samples, classes or rows in a batch.
pub fn candidates(
    runs: &[u64],
    windows: &[u64],
    least: u64,
    classes: u64,
    batch: u64,
    seed: u64,
) -> Result<Vec<Candidate>> {
    let len: u64 = runs.iter().sum();
    if len == 0 || classes == 0 || batch == 0 {
        let what = format!("{len} samples, {classes} classes, batches of {batch}: give at least one of each");
        return Err(Error::Config(what));
    }
    let candidate = |shuffle, reads, held: u64| -> Result<Candidate> {
        let quality = measure(&*order(shuffle, seed, runs)?.epoch(0)?, len, classes, batch)?;
        Ok(Candidate { shuffle, quality, reads, held: held.min(len) as f64 / len as f64 })
    };
    let mut found = Vec::new();
    let longest = runs.iter().max().copied().unwrap_or(1);
    for &samples in windows {
        let window = |ranges| Shuffle::Window { samples, canonical_nodes: 1, ranges };
        found.push(candidate(window(0), runs.len() as u64, samples)?);
        let mut ranges = longest / 10;
        while ranges >= least.max(1) {
            found.push(candidate(window(ranges), len.div_ceil(ranges), samples)?);
            ranges /= 10;
        }
    }
    found.push(candidate(Shuffle::Full, len, len)?);
    Ok(found)
}

/// The candidate with the fewest reads, and then the smallest window, whose batches are at most so many times as far from the whole as a true shuffle's.
#[must_use]
pub fn cheapest(candidates: &[Candidate], within: f64) -> Option<&Candidate> {
    let good = candidates.iter().filter(|candidate| candidate.quality.ratio() <= within);
    good.min_by(|a, b| a.reads.cmp(&b.reads).then(a.held.total_cmp(&b.held)))
}

/// Measures `epoch` over `len` ids in `classes` equal sorted classes, by batches of `batch`, at most 2,000 of them.
///
/// # Errors
/// As [`Epoch::id`].
pub fn measure(epoch: &dyn Epoch, len: u64, classes: u64, batch: u64) -> Result<Quality> {
    let batches = (len / batch.max(1)).max(1);
    let class = |id: u64| (u128::from(id) * u128::from(classes) / u128::from(len.max(1))) as usize;
    let (mut variation, mut distance, mut pairs) = (0.0, 0.0, 0u64);
    let looked_at = batches.min(BATCHES);
    for nth in 0..looked_at {
        let (b, mut last) = ((u128::from(nth) * u128::from(batches) / u128::from(looked_at)) as u64, None);
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
        label_variation: variation / looked_at as f64,
        label_variation_shuffled: expected_variation(classes, batch),
        pair_distance: distance / pairs.max(1) as f64,
    })
}

fn total_variation(counts: &[u64], batch: f64) -> f64 {
    let even = 1.0 / counts.len() as f64;
    counts.iter().map(|&c| (c as f64 / batch - even).abs()).sum::<f64>() / 2.0
}

/// E[TV] of a multinomial with equal classes: classes/2 · E|X/batch − 1/classes|, X binomial (mean absolute deviation
/// by de Moivre's formula).
fn expected_variation(classes: u64, batch: u64) -> f64 {
    let (n, p) = (batch as f64, 1.0 / classes as f64);
    let k = (n * p).floor() + 1.0;
    let ln_choose: f64 = (1..=k as u64).map(|i| ((n - k + i as f64) / i as f64).ln()).sum();
    let deviation = 2.0 * k * (1.0 - p) * (ln_choose + k * p.ln() + (n - k) * (1.0 - p).ln()).exp();
    classes as f64 / 2.0 * deviation / n
}

#[cfg(test)]
mod tests {
    use super::super::{Shuffle, order};
    use super::*;

    #[test]
    fn tells_sorted_windowed_and_full_apart() {
        let n = 200_000;
        let runs = vec![1000; 200];
        let of = |shuffle| measure(&*order(shuffle, 1, &runs).unwrap().epoch(0).unwrap(), n, 10, 64).unwrap();
        let (sorted, full) = (of(Shuffle::None), of(Shuffle::Full));
        let window = of(Shuffle::Window { samples: 16_384, canonical_nodes: 4, ranges: 0 });
        assert!((full.label_variation / full.label_variation_shuffled - 1.0).abs() < 0.02, "{full:?}");
        assert!((full.pair_distance - 1.0 / 3.0).abs() < 0.01, "{full:?}");
        assert!(sorted.label_variation > 0.89 && sorted.pair_distance < 1e-4, "{sorted:?}");
        assert!(window.label_variation < 1.5 * full.label_variation, "{window:?} against {full:?}");
    }

    /// The figures of an order of 10^6 class-sorted samples in shards of 1,000 that holds 1 % of them: ranges of 100 mix far better than a buffer over
    /// shuffled shards does, and ranges of 10 as well as a true shuffle.
    #[test]
    fn shorter_ranges_mix_better_in_the_same_window() {
        let found = candidates(&[1000; 1000], &[10_000], 10, 100, 256, 1).unwrap();
        let ratio = |n: usize| found[n].quality.ratio();
        let ranges: Vec<u64> = found.iter().map(|c| c.reads).collect();
        assert_eq!(ranges, [1000, 10_000, 100_000, 1_000_000]);
        assert!(ratio(0) > 1.5 && ratio(1) < 0.75 * ratio(0) && ratio(2) < 1.1, "{found:#?}");
        assert!((ratio(3) - 1.0).abs() < 0.02);
        let best = cheapest(&found, 1.1).unwrap();
        assert_eq!((best.reads, best.held), (100_000, 0.01));
        assert!(cheapest(&found, 0.1).is_none());
        assert!(candidates(&[], &[10], 10, 10, 10, 1).is_err());
    }

    /// Pairs of neighbours fall evenly into a 16 × 16 grid: four Feistel rounds fail this, eight pass.
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
