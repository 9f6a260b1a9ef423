//! Patches in Morton order: any order of patches, sorted along a space-filling curve in windows.
//!
//! Flow: an order of patches -> the ids of a window -> the same ids, sorted by the Morton code (Z
//! order) of the chunk in which they begin.
//! Memory: 8 bytes a position of three windows, and 56 a position of one while it is sorted
//! (account `index`), reserved when the order is made.
//!
//! Neighbouring patches share chunks, so a small cache serves many patches: with a cache of 1 % of
//! the data, hits rise from 1 % to 40 % as the window grows. The price is batches that mix less.
//! Therefore an epoch visits several regions of a window at once, and [`Order::mixing`] measures
//! what remains.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};
use tidegate_core::sync::lock;

use crate::error::{Error, Result};
use crate::lattice::ChunkGrid;
use crate::memory::reserve;
use crate::quality::measure;
use crate::traits::{Epoch, Lookahead, Order, Quality};

/// Sorted windows in memory: for the reader, for the cache that looks ahead, and for the next
/// epoch.
const HELD_WINDOWS: u64 = 3;
/// Bytes a position that sorting a window takes in addition: the keys.
const SORTING_BYTES: u64 = 56;
/// Windows of which [`Order::mixing`] measures the batches.
const MEASURED_WINDOWS: u64 = 4;
/// The largest window, in positions.
const MAX_WINDOW: u64 = 1 << 24;
/// Parts of the volume that count as the classes of a batch when mixing is measured.
const MEASURED_PARTS: u64 = 16;

/// An order of patches whose windows are sorted; see the head of this file.
#[derive(Debug, Clone)]
pub struct MortonWindows {
    inner: Arc<dyn Order>,
    grid: Arc<ChunkGrid>,
    /// Positions in a window.
    window: u64,
    /// Regions of a window that are visited at once.
    regions: u64,
    memory: Arc<Grant>,
    /// Held while a window is sorted: memory is reserved for one at a time.
    sorting: Arc<Mutex<()>>,
}

impl MortonWindows {
    /// The order `inner`, sorted in windows of `window` positions; `regions` of a window are
    /// visited at once, in turn.
    ///
    /// # Errors
    /// [`Error::Config`] for a window that is empty or too large, for more regions than positions,
    /// and for an order that is not known in advance. [`Error::Budget`] when the windows do not
    /// fit.
    pub fn new(
        inner: Arc<dyn Order>,
        grid: ChunkGrid,
        window: u64,
        regions: u64,
        budget: &Budget,
    ) -> Result<Self> {
        if window == 0 || window > MAX_WINDOW || regions == 0 || regions > window {
            return Err(Error::Config(format!(
                "a window of {window} positions with {regions} places: give a window of 1 to {MAX_WINDOW} \
                 positions, and at least 1 place but no more than positions"
            )));
        }
        if inner.lookahead() == Lookahead::Unknown {
            return Err(Error::Config(
                "a window cannot sort ids that a sampler streams: give an order whose ids are known in advance".into(),
            ));
        }
        let bytes = (8 * HELD_WINDOWS + SORTING_BYTES) * window.min(inner.len());
        let memory = Arc::new(reserve(budget, bytes, "the windows of patches")?);
        Ok(Self { inner, grid: Arc::new(grid), window, regions, memory, sorting: Arc::default() })
    }

    /// Positions in a window.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }
}

impl Order for MortonWindows {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(MortonEpoch {
            order: self.clone(),
            inner: self.inner.epoch(epoch)?,
            windows: Mutex::default(),
        }))
    }
    fn runs_in_use(&self, ranks: u64) -> u64 {
        self.inner.runs_in_use(ranks)
    }
    fn lookahead(&self) -> Lookahead {
        self.inner.lookahead()
    }
    fn held_bytes(&self) -> u64 {
        self.memory.bytes() + self.inner.held_bytes()
    }
    fn begin(&self, epoch: u64) -> Result<()> {
        self.inner.begin(epoch)
    }
    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        let inner = self.inner.reseeded(seed)?;
        Some(Arc::new(Self { inner, ..self.clone() }))
    }
    fn digest(&self, epoch: u64) -> Option<u64> {
        Some(splitmix64_finalize(
            self.inner.digest(epoch).unwrap_or(0) ^ splitmix64_finalize(self.window ^ self.regions << 40),
        ))
    }
    fn mixing(&self, batch: u64) -> Result<Option<[Quality; 2]>> {
        let ids = self.grid.counts.iter().product();
        // A few windows represent all of them, and each has to be sorted.
        let positions = self.len().min(self.window.saturating_mul(MEASURED_WINDOWS));
        let of = |order: &dyn Order| measure_positions(&*order.epoch(0)?, positions, ids, batch);
        Ok(Some([of(self)?, of(&*self.inner)?]))
    }
}

/// [`measure`] of the first `positions` of an epoch whose ids are below `ids`, and may repeat.
fn measure_positions(epoch: &dyn Epoch, positions: u64, ids: u64, batch: u64) -> Result<Quality> {
    /// Ids scaled to the number of positions, which is what [`measure`] expects.
    #[derive(Debug)]
    struct Scaled<'a>(&'a dyn Epoch, u64, u64);
    impl Epoch for Scaled<'_> {
        fn id(&self, position: u64) -> Result<u64> {
            let id = u128::from(self.0.id(position)?) * u128::from(self.1) / u128::from(self.2.max(1));
            Ok(id as u64)
        }
    }
    measure(&Scaled(epoch, positions, ids), positions, MEASURED_PARTS, batch)
}

type Window = Arc<[u64]>;

#[derive(Debug)]
struct MortonEpoch {
    order: MortonWindows,
    inner: Arc<dyn Epoch>,
    /// The windows that were sorted last, by number.
    windows: Mutex<VecDeque<(u64, Window)>>,
}

impl MortonEpoch {
    /// The sorted ids of a window.
    fn window(&self, number: u64) -> Result<Window> {
        let mut windows = lock(&self.windows);
        if let Some((_, ids)) = windows.iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(ids));
        }
        // One of the windows that memory is reserved for is the next epoch's.
        while windows.len() as u64 >= HELD_WINDOWS - 1 {
            windows.pop_front();
        }
        let start = number * self.order.window;
        let end = (start + self.order.window).min(self.order.len());
        let _sorting = lock(&self.order.sorting);
        let mut ids = Vec::with_capacity((end - start) as usize);
        for position in start..end {
            ids.push(self.inner.id(position)?);
        }
        ids.sort_by_cached_key(|&id| (self.order.grid.morton_code(id), id));
        let ids: Window = ids.into();
        windows.push_back((number, Arc::clone(&ids)));
        Ok(ids)
    }
}

impl Epoch for MortonEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let ids = self.window(position / self.order.window)?;
        let (at, len) = (position % self.order.window, ids.len() as u64);
        let regions = self.order.regions.min(len.max(1));
        let (region, within) = (at % regions, at / regions);
        let start = region * (len / regions) + region.min(len % regions);
        let id = ids.get((start + within) as usize).copied();
        id.ok_or_else(|| Error::Internal(format!("position {position} of an epoch of {}", self.order.len())))
    }
    fn weight(&self, index: u64) -> f32 {
        self.inner.weight(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uniform::Uniform;

    fn order(window: u64, regions: u64, positions: u64) -> MortonWindows {
        let grid = ChunkGrid { counts: vec![40, 50, 60], steps: vec![8, 8, 8] };
        let uniform = Arc::new(Uniform::new(40 * 50 * 60, positions, 1, 5).unwrap());
        MortonWindows::new(uniform, grid, window, regions, &Budget::new(16 << 20)).unwrap()
    }

    fn ids(order: &dyn Order, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch).unwrap();
        (0..order.len()).map(|position| epoch.id(position).unwrap()).collect()
    }

    #[test]
    fn windows_have_the_same_ids_sorted() {
        for (window, regions, positions) in [(1000, 1, 3500), (1000, 7, 3500), (64, 64, 200), (1, 1, 50)] {
            let order = order(window, regions, positions);
            let (ours, inner) = (ids(&order, 2), ids(&*order.inner, 2));
            for (a, b) in ours.chunks(window as usize).zip(inner.chunks(window as usize)) {
                let sorted = |ids: &[u64]| {
                    let mut ids = ids.to_vec();
                    ids.sort_unstable();
                    ids
                };
                assert_eq!(sorted(a), sorted(b));
            }
            // The ids do not depend on the order in which they are asked for.
            let epoch = order.epoch(2).unwrap();
            assert!((0..positions).rev().all(|p| epoch.id(p).unwrap() == ours[p as usize]));
        }
    }

    #[test]
    fn neighbours_share_chunks_and_several_regions_mix_them() {
        let changes = |order: &MortonWindows| {
            let chunks: Vec<_> = ids(order, 0).iter().map(|&id| order.grid.morton_code(id)).collect();
            chunks.windows(2).filter(|pair| pair[0] != pair[1]).count()
        };
        let (wide, narrow) = (order(10_000, 1, 20_000), order(100, 1, 20_000));
        assert!(changes(&wide) < 600 && changes(&narrow) > 10_000, "{} {}", changes(&wide), changes(&narrow));
        let ratio = |order: &MortonWindows| {
            let [own, without] = order.mixing(32).unwrap().unwrap();
            assert!((without.ratio() - 1.0).abs() < 0.1, "{without:?}");
            own.ratio()
        };
        let many = order(10_000, 32, 20_000);
        assert!(ratio(&wide) > 2.0 && ratio(&many) < 1.2, "{} {}", ratio(&wide), ratio(&many));
    }

    #[test]
    fn refuses_windows_that_cannot_be() {
        let grid = ChunkGrid { counts: vec![10], steps: vec![1] };
        for (window, regions) in [(0, 1), (10, 0), (10, 11), (1 << 25, 1)] {
            let uniform = Arc::new(Uniform::new(10, 10, 1, 5).unwrap());
            let made = MortonWindows::new(uniform, grid.clone(), window, regions, &Budget::new(1 << 30));
            assert!(made.unwrap_err().to_string().contains("places"));
        }
    }
}
