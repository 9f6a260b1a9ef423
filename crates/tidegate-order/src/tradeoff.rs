//! Shuffles compared: how well each mixes, and how many reads it costs.
//!
//! Flow: windows and ranges -> [`candidates`] -> [`cheapest`], the one with the fewest reads that
//! mixes well enough; called by `tidegate shuffle-quality`.
//! Memory: a few words a candidate.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::quality::measure;
use crate::shuffle::{Shuffle, order};
use crate::traits::Quality;

/// A shuffle, how well it mixes and what it costs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Candidate {
    /// The shuffle.
    pub shuffle: Shuffle,
    /// How well it mixes.
    pub quality: Quality,
    /// The least reads of an epoch: the ranges of ids that stay together.
    pub reads: u64,
    /// The fraction of all samples from which it draws at the same time.
    pub held: f64,
}

/// Compares shuffles over data in `runs`: windows of each size in `windows`, and a full shuffle.
///
/// Each window is tried with whole runs and with shorter and shorter ranges, down to `least`
/// samples. `classes` and `batch` are those of [`measure`].
///
/// # Errors
/// [`Error::Config`] when there are no samples, no classes or no rows in a batch.
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
        let window = |range_samples| Shuffle::Window { samples, canonical_nodes: 1, range_samples };
        found.push(candidate(window(0), runs.len() as u64, samples)?);
        let mut range = longest / 10;
        while range >= least.max(1) {
            found.push(candidate(window(range), len.div_ceil(range), samples)?);
            range /= 10;
        }
    }
    found.push(candidate(Shuffle::Full, len, len)?);
    Ok(found)
}

/// The candidate with the fewest reads among those with a [`Quality::ratio`] of at most `within`.
///
/// Of equal ones, the one with the smallest window.
#[must_use]
pub fn cheapest(candidates: &[Candidate], within: f64) -> Option<&Candidate> {
    let good = candidates.iter().filter(|candidate| candidate.quality.ratio() <= within);
    good.min_by(|a, b| a.reads.cmp(&b.reads).then(a.held.total_cmp(&b.held)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10^6 samples sorted by class, in shards of 1,000, with a window of 1 %: ranges of 100 mix
    /// far better than whole shards, and ranges of 10 as well as a true shuffle.
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
}
