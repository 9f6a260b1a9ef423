//! The windowed shuffle: reads of nearby samples, and still mixed batches.
//!
//! Flow: runs, or ranges of ids, are put in random order and concatenated. The result is cut into
//! one part for each canonical node, and each part into windows. A window is permuted, and the
//! parts are interleaved sample by sample.
//! Memory: 16 bytes a run (shard or row group), nothing for ranges. The permutation of a window is
//! computed when the window begins.

use std::sync::{Arc, Mutex};

use tidegate_core::sync::lock;

use crate::error::Result;
use crate::permutation::Permutation;
use crate::traits::{Epoch, Order};

/// An order in windows; see the head of this file.
#[derive(Debug)]
pub(crate) struct Windowed {
    /// The length of each run, in the order of ids.
    pub(crate) runs: Arc<[u64]>,
    pub(crate) len: u64,
    pub(crate) seed: u64,
    /// Samples in a window.
    pub(crate) samples: u64,
    /// Canonical nodes, at most one a sample.
    pub(crate) nodes: u64,
    /// Length of a range, or 0 for whole runs.
    pub(crate) range_samples: u64,
}

impl Order for Windowed {
    fn len(&self) -> u64 {
        self.len
    }
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(WindowEpoch::new(self, epoch)))
    }
    fn runs_in_use(&self, ranks: u64) -> u64 {
        if self.range_samples > 0 {
            // Any run may have a range in any window.
            return self.runs.len() as u64;
        }
        runs_in_use(&self.runs, self.samples, self.nodes.div_ceil(ranks.max(1)))
    }
    fn canonical_nodes(&self) -> u64 {
        self.nodes
    }
}

#[derive(Debug)]
struct WindowEpoch {
    concatenated: Concatenated,
    len: u64,
    seed: u64,
    epoch: u64,
    samples: u64,
    nodes: u64,
    /// The window that each part is in, with its permutation. Positions mostly ascend, so that
    /// each permutation is computed once.
    current: Mutex<Vec<Option<(u64, Permutation)>>>,
}

/// The pieces in their random order.
#[derive(Debug)]
enum Concatenated {
    /// Runs: for each, its start in the concatenation, ascending, and its first id.
    Runs { starts: Vec<u64>, ids: Vec<u64> },
    /// Ranges of `size` ids, `whole` of them. The rest, shorter than a range, stays at the end.
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

    fn id(&self, at: u64) -> u64 {
        match self {
            Self::Runs { starts, ids } => {
                let run = starts.partition_point(|&start| start <= at) - 1;
                ids[run] + (at - starts[run])
            }
            Self::Ranges { order, size, whole } if at / size < *whole => {
                order.apply(at / size) * size + at % size
            }
            Self::Ranges { .. } => at,
        }
    }
}

/// An upper bound of the runs from which `nodes` windows of `samples` draw at the same time.
///
/// A window covers the most runs when it has the smallest ones whole and one cut at each end.
fn runs_in_use(runs: &[u64], samples: u64, nodes: u64) -> u64 {
    let mut sorted: Vec<u64> = runs.iter().copied().filter(|&n| n > 0).collect();
    sorted.sort_unstable();
    let mut left = samples.saturating_sub(2);
    let whole = sorted.iter().take_while(|&&n| {
        let fits = n <= left;
        left = left.saturating_sub(n);
        fits
    });
    // A run that the end of a window cuts stays in use in the next window.
    let inside = whole.count() as u64 + 2;
    // A run that the end of a part cuts is begun in one part's first window and finished in the
    // last window of the part before it.
    inside.saturating_mul(nodes).saturating_add(nodes - 1).min(sorted.len() as u64)
}

impl WindowEpoch {
    fn new(order: &Windowed, epoch: u64) -> Self {
        let Windowed { runs, len, seed, samples, nodes, range_samples } = order;
        let concatenated = match len.checked_div(*range_samples) {
            Some(whole) => Concatenated::Ranges {
                order: Permutation::new(whole, *seed, epoch, 0),
                size: *range_samples,
                whole,
            },
            None => Concatenated::runs(runs, *seed, epoch),
        };
        let current = Mutex::new((0..*nodes).map(|_| None).collect());
        Self { concatenated, len: *len, seed: *seed, epoch, samples: *samples, nodes: *nodes, current }
    }

    /// Start and length of part `k` of the concatenation.
    fn part(&self, k: u64) -> (u64, u64) {
        let bound = |k: u64| (u128::from(k) * u128::from(self.len) / u128::from(self.nodes)) as u64;
        (bound(k), bound(k + 1) - bound(k))
    }

    /// The part of a position, and the offset within it. The lengths of parts differ by at most
    /// one.
    fn part_of(&self, position: u64) -> (u64, u64) {
        let short = self.len / self.nodes;
        if position < short * self.nodes {
            return (position % self.nodes, position / self.nodes);
        }
        // The last, incomplete round has the longer parts only.
        let nth = position - short * self.nodes;
        let k = (0..self.nodes).filter(|&k| self.part(k).1 > short).nth(nth as usize).unwrap_or(0);
        (k, short)
    }
}

impl Epoch for WindowEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let (part, offset) = self.part_of(position);
        let (start, len) = self.part(part);
        let window = offset / self.samples;
        let size = self.samples.min(len - window * self.samples);
        let mut current = lock(&self.current);
        let slot = &mut current[part as usize];
        let inside = match slot {
            Some((w, permutation)) if *w == window => permutation.apply(offset % self.samples),
            _ => {
                let lane = 1 + (part << 40 | window);
                let permutation = Permutation::new(size, self.seed, self.epoch, lane);
                let image = permutation.apply(offset % self.samples);
                *slot = Some((window, permutation));
                image
            }
        };
        Ok(self.concatenated.id(start + window * self.samples + inside))
    }
}
