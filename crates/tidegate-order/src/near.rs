//! Patches that lie near one another, one after the other: another order in windows, each sorted along a curve through space.
//!
//! Flow: an order of patches -> the ids of a window -> the same ids, in the order of the chunks that they begin in.
//! Memory: 8 bytes a position of the windows that are looked at, three of them (account `index`), charged before they are made.
//!
//! Neighbours share chunks, so a small cache serves many patches: with a cache of a hundredth, hits rise from 1 to 40 of a hundred as the
//! window grows. The price is that a batch is less of a mixture: several places of the window are gone through at once, and
//! [`Order::mixing`] says what is left. The curve is Morton's (Z order).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tidegate_core::sync::lock;

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use super::drawn::reserve;
use super::quality::{Quality, measure};
use super::{Epoch, Foresight, Order};
use crate::{Error, Result};

/// Windows that are kept: of the feed, of who looks ahead, and of the next epoch.
const KEPT: u64 = 3;
/// What sorting a window takes for each position besides: keys along the curve.
const SORTING_BYTES: u64 = 56;
/// Windows whose batches are measured.
const MEASURED: u64 = 4;
/// Positions of a window at most.
const WINDOW_MOST: u64 = 1 << 24;
/// Parts of the volume between which a batch should be a mixture.
const PARTS: u64 = 16;

/// Where ids lie: a lattice in C order, and how many of its steps a chunk has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Places along each axis.
    pub counts: Vec<u64>,
    /// Places in a chunk along each axis, at least 1.
    pub steps: Vec<u64>,
}

impl Grid {
    /// The number along the curve of the chunk that the patch of an id begins in.
    fn along_curve(&self, mut id: u64) -> u128 {
        let axes = self.counts.len();
        let mut curve = 0u128;
        for axis in (0..axes).rev() {
            let chunk = id % self.counts[axis] / self.steps[axis];
            id /= self.counts[axis];
            for bit in 0..(128 / axes).min(64) {
                curve |= u128::from(chunk >> bit & 1) << (bit * axes + (axes - 1 - axis));
            }
        }
        curve
    }
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Near {
    inner: Arc<dyn Order>,
    grid: Arc<Grid>,
    window: u64,
    places: u64,
    memory: Arc<Grant>,
    /// One window is sorted at a time.
    sorting: Arc<Mutex<()>>,
}

impl Near {
    /// Windows of so many positions of `inner`, gone through in so many places at once.
    ///
    /// # Errors
    /// [`Error::Config`] for a window that is empty or too large, more places than positions in it, and an order that is not known ahead; a
    /// budget without room.
    pub fn new(inner: Arc<dyn Order>, grid: Grid, window: u64, places: u64, budget: &Budget) -> Result<Self> {
        if window == 0 || window > WINDOW_MOST || places == 0 || places > window {
            return Err(Error::Config(format!(
                "a window of {window} positions in {places} places: give 1 to {WINDOW_MOST} positions, and no more places than that"
            )));
        }
        if inner.foresight() == Foresight::None {
            return Err(Error::Config(
                "a window over ids that come one by one: give ids that are known ahead".into(),
            ));
        }
        let bytes = (8 * KEPT + SORTING_BYTES) * window.min(inner.len());
        let memory = Arc::new(reserve(budget, bytes, "the windows of patches")?);
        Ok(Self { inner, grid: Arc::new(grid), window, places, memory, sorting: Arc::default() })
    }

    /// Positions of a window.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }
}

impl Order for Near {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        Ok(Arc::new(NearEpoch {
            order: self.clone(),
            inner: self.inner.epoch(epoch)?,
            kept: Mutex::default(),
        }))
    }
    fn runs_in_use(&self, ranks: u64) -> u64 {
        self.inner.runs_in_use(ranks)
    }
    fn foresight(&self) -> Foresight {
        self.inner.foresight()
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
    fn print(&self, epoch: u64) -> Option<u64> {
        Some(splitmix64_finalize(
            self.inner.print(epoch).unwrap_or(0) ^ splitmix64_finalize(self.window ^ self.places << 40),
        ))
    }
    fn mixing(&self, batch: u64) -> Result<Option<[Quality; 2]>> {
        let places = self.grid.counts.iter().product();
        // A few windows are as good as all of them, and each has to be sorted.
        let positions = self.len().min(self.window.saturating_mul(MEASURED));
        let of = |order: &dyn Order| measure_positions(&*order.epoch(0)?, positions, places, batch);
        Ok(Some([of(self)?, of(&*self.inner)?]))
    }
}

/// [`measure`] of the ids of an epoch that draws them.
fn measure_positions(epoch: &dyn Epoch, positions: u64, ids: u64, batch: u64) -> Result<Quality> {
    /// Ids as parts of as many as there are positions, which is what is measured.
    #[derive(Debug)]
    struct Scaled<'a>(&'a dyn Epoch, u64, u64);
    impl Epoch for Scaled<'_> {
        fn id(&self, position: u64) -> Result<u64> {
            let id = u128::from(self.0.id(position)?) * u128::from(self.1) / u128::from(self.2.max(1));
            Ok(id as u64)
        }
    }
    measure(&Scaled(epoch, positions, ids), positions, PARTS, batch)
}

type Window = Arc<[u64]>;

#[derive(Debug)]
struct NearEpoch {
    order: Near,
    inner: Arc<dyn Epoch>,
    kept: Mutex<VecDeque<(u64, Window)>>,
}

impl NearEpoch {
    /// The ids of a window, sorted.
    fn window(&self, number: u64) -> Result<Window> {
        let mut kept = lock(&self.kept);
        if let Some((_, ids)) = kept.iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(ids));
        }
        // One for the next epoch, which keeps it itself.
        while kept.len() as u64 >= KEPT - 1 {
            kept.pop_front();
        }
        let start = number * self.order.window;
        let end = (start + self.order.window).min(self.order.len());
        let _turn = lock(&self.order.sorting);
        let mut ids = Vec::with_capacity((end - start) as usize);
        for position in start..end {
            ids.push(self.inner.id(position)?);
        }
        ids.sort_by_cached_key(|&id| (self.order.grid.along_curve(id), id));
        let ids: Window = ids.into();
        kept.push_back((number, Arc::clone(&ids)));
        Ok(ids)
    }
}

impl Epoch for NearEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let ids = self.window(position / self.order.window)?;
        let (at, len) = (position % self.order.window, ids.len() as u64);
        let places = self.order.places.min(len.max(1));
        let (place, within) = (at % places, at / places);
        let start = place * (len / places) + place.min(len % places);
        let id = ids.get((start + within) as usize).copied();
        id.ok_or_else(|| Error::Config(format!("position {position} of {}", self.order.len())))
    }
    fn weight(&self, index: u64) -> f32 {
        self.inner.weight(index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::drawn::Even;
    use super::*;

    fn near(window: u64, places: u64, positions: u64) -> Near {
        let grid = Grid { counts: vec![40, 50, 60], steps: vec![8, 8, 8] };
        let even = Arc::new(Even::new(40 * 50 * 60, positions, 1, 5).unwrap());
        Near::new(even, grid, window, places, &Budget::new(16 << 20)).unwrap()
    }

    fn ids(order: &dyn Order, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch).unwrap();
        (0..order.len()).map(|position| epoch.id(position).unwrap()).collect()
    }

    #[test]
    fn windows_have_the_same_ids_near_one_another() {
        for (window, places, positions) in [(1000, 1, 3500), (1000, 7, 3500), (64, 64, 200), (1, 1, 50)] {
            let order = near(window, places, positions);
            let (ours, inner) = (ids(&order, 2), ids(&*order.inner, 2));
            for (a, b) in ours.chunks(window as usize).zip(inner.chunks(window as usize)) {
                let sorted = |ids: &[u64]| {
                    let mut ids = ids.to_vec();
                    ids.sort_unstable();
                    ids
                };
                assert_eq!(sorted(a), sorted(b));
            }
            // As if asked in any order.
            let epoch = order.epoch(2).unwrap();
            assert!((0..positions).rev().all(|p| epoch.id(p).unwrap() == ours[p as usize]));
        }
    }

    #[test]
    fn neighbours_share_chunks_and_several_places_mix_them() {
        let changes = |order: &Near| {
            let chunks: Vec<_> = ids(order, 0).iter().map(|&id| order.grid.along_curve(id)).collect();
            chunks.windows(2).filter(|pair| pair[0] != pair[1]).count()
        };
        let (wide, narrow) = (near(10_000, 1, 20_000), near(100, 1, 20_000));
        assert!(changes(&wide) < 600 && changes(&narrow) > 10_000, "{} {}", changes(&wide), changes(&narrow));
        let ratio = |order: &Near| {
            let [own, without] = order.mixing(32).unwrap().unwrap();
            assert!((without.ratio() - 1.0).abs() < 0.1, "{without:?}");
            own.ratio()
        };
        let many = near(10_000, 32, 20_000);
        assert!(ratio(&wide) > 2.0 && ratio(&many) < 1.2, "{} {}", ratio(&wide), ratio(&many));
    }

    #[test]
    fn what_makes_no_window_is_refused() {
        let grid = Grid { counts: vec![10], steps: vec![1] };
        for (window, places) in [(0, 1), (10, 0), (10, 11), (1 << 25, 1)] {
            let even = Arc::new(Even::new(10, 10, 1, 5).unwrap());
            let made = Near::new(even, grid.clone(), window, places, &Budget::new(1 << 30));
            assert!(made.unwrap_err().to_string().contains("places"));
        }
    }
}
