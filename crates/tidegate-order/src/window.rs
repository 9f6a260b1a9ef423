//! The windowed shuffle: near neighbours are read together, yet batches are mixed.
//!
//! Flow: runs, or ranges of ids that are shorter, in random order, concatenated; cut in parts (one a canonical node), parts cut in windows;
//! within each window a permutation; parts interleaved sample by sample.
//! Memory: 16 bytes a run (shard or row group), nothing for ranges; the permutations of the windows in use are computed on the fly.

use super::Epoch;
use super::permutation::Permutation;
use crate::Result;
use std::sync::Mutex;
use tidegate_core::sync::lock;

#[derive(Debug)]
pub(super) struct WindowEpoch {
    concatenated: Concatenated,
    len: u64,
    seed: u64,
    epoch: u64,
    samples: u64,
    nodes: u64,
    /// The permutations of the windows in use, one a part: windows are entered in order, so each is made once.
    current: Mutex<Vec<Option<(u64, Permutation)>>>,
}

/// What is concatenated, in random order.
#[derive(Debug)]
enum Concatenated {
    /// Runs: the first place of each in the order, ascending, and its first id.
    Runs { starts: Vec<u64>, ids: Vec<u64> },
    /// Ranges of so many ids, but for the last, which is shorter and stays where it is.
    Ranges { order: Permutation, size: u64, whole: u64 },
}

impl Concatenated {
    fn runs(runs: &[u64], seed: u64, epoch: u64) -> Self {
        let first_id: Vec<u64> = runs
            .iter()
            .scan(0, |at, &n| {
                *at += n;
                Some(*at - n)
            })
            .collect();
        let order = Permutation::new(runs.len() as u64, seed, epoch, 0);
        let (mut starts, mut ids, mut at) =
            (Vec::with_capacity(runs.len()), Vec::with_capacity(runs.len()), 0);
        for i in 0..runs.len() as u64 {
            let run = order.apply(i) as usize;
            if runs[run] > 0 {
                starts.push(at);
                ids.push(first_id[run]);
                at += runs[run];
            }
        }
        Self::Runs { starts, ids }
    }

    fn id(&self, place: u64) -> u64 {
        match self {
            Self::Runs { starts, ids } => {
                let run = starts.partition_point(|&start| start <= place) - 1;
                ids[run] + (place - starts[run])
            }
            Self::Ranges { order, size, whole } if place / size < *whole => {
                order.apply(place / size) * size + place % size
            }
            Self::Ranges { .. } => place,
        }
    }
}

/// The most runs from which `nodes` windows of `samples` can draw at once: the smallest ones whole, and one cut at each end.
pub(super) fn runs_in_use(runs: &[u64], samples: u64, nodes: u64) -> u64 {
    let mut sorted: Vec<u64> = runs.iter().copied().filter(|&n| n > 0).collect();
    sorted.sort_unstable();
    let mut left = samples.saturating_sub(2);
    let whole = sorted.iter().take_while(|&&n| {
        let fits = n <= left;
        left = left.saturating_sub(n);
        fits
    });
    // A run that is cut by a window's border stays in use in the next one.
    let inside = whole.count() as u64 + 2;
    // One that is cut by a part's border is begun in one part's first window and done in another's last.
    inside.saturating_mul(nodes).saturating_add(nodes - 1).min(sorted.len() as u64)
}

impl WindowEpoch {
    /// Over runs, or over ranges of so many ids where that is not 0.
    pub(super) fn new(runs: &[u64], seed: u64, epoch: u64, samples: u64, nodes: u64, ranges: u64) -> Self {
        let len = runs.iter().sum::<u64>();
        let concatenated = match len.checked_div(ranges) {
            Some(whole) => {
                Concatenated::Ranges { order: Permutation::new(whole, seed, epoch, 0), size: ranges, whole }
            }
            None => Concatenated::runs(runs, seed, epoch),
        };
        let current = Mutex::new((0..nodes).map(|_| None).collect());
        Self { concatenated, len, seed, epoch, samples, nodes, current }
    }

    /// (first place, length) of part `k` of the concatenated order.
    fn part(&self, k: u64) -> (u64, u64) {
        let bound = |k: u64| (u128::from(k) * u128::from(self.len) / u128::from(self.nodes)) as u64;
        (bound(k), bound(k + 1) - bound(k))
    }

    /// Part and place within it of a position, when parts are interleaved; parts differ by at most one in length.
    fn part_of(&self, position: u64) -> (u64, u64) {
        let short = self.len / self.nodes;
        if position < short * self.nodes {
            return (position % self.nodes, position / self.nodes);
        }
        // The last, incomplete round visits the longer parts only.
        let nth = position - short * self.nodes;
        let k = (0..self.nodes).filter(|&k| self.part(k).1 > short).nth(nth as usize).unwrap_or(0);
        (k, short)
    }
}

impl Epoch for WindowEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let (part, place) = self.part_of(position);
        let (start, len) = self.part(part);
        let window = place / self.samples;
        let size = self.samples.min(len - window * self.samples);
        let mut current = lock(&self.current);
        let slot = &mut current[part as usize];
        let inside = match slot {
            Some((w, permutation)) if *w == window => permutation.apply(place % self.samples),
            _ => {
                let lane = 1 + (part << 40 | window);
                let permutation = Permutation::new(size, self.seed, self.epoch, lane);
                let image = permutation.apply(place % self.samples);
                *slot = Some((window, permutation));
                image
            }
        };
        let place = start + window * self.samples + inside;
        Ok(self.concatenated.id(place))
    }
}
