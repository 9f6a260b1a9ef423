//! Which patches of a volume an epoch draws: uniformly or around boxes, and sorted in windows.
//!
//! Flow: a volume, boxes, a window -> [`PatchSampler`] -> an order for `Loader::with_order`.
//! Memory: the tables of an order are charged to the loader's budget.

use std::sync::Arc;

use tidegate_core::memory::Budget;
use tidegate_data::{Error, Result};
use tidegate_order::Order;
use tidegate_order::lattice::Boxes;
use tidegate_order::morton::MortonWindows;
use tidegate_order::patches::Patches;
use tidegate_order::uniform::Uniform;
use tidegate_source::Source;
use tidegate_source::volume::Volume;

/// Boxes that patches are drawn around, and the weights of their classes.
#[derive(Debug)]
pub struct PatchBoxes {
    /// The boxes, with their classes.
    pub boxes: Arc<Boxes>,
    /// The index of the array whose voxels the boxes are in.
    pub field: usize,
    /// Classes and their weights.
    pub classes: Vec<(i64, f64)>,
}

/// How patches of a volume are drawn: uniformly or around boxes, and sorted in windows.
#[derive(Debug)]
pub struct PatchSampler {
    /// The volume that the patches are of.
    pub volume: Arc<Volume>,
    /// The positions of an epoch.
    pub positions: u64,
    /// The boxes that patches are drawn around. None: every patch is equally likely.
    pub around: Option<PatchBoxes>,
    /// (positions in a window, places that the window goes through at once). None: not sorted.
    pub window: Option<(u64, u64)>,
}

impl PatchSampler {
    /// The order over a source with this seed.
    ///
    /// # Errors
    /// [`Error::Config`] for a source that is not the volume and for boxes of an array that it does
    /// not have; a budget that cannot hold the tables.
    pub fn order(&self, source: &dyn Source, seed: u64, budget: &Budget) -> Result<Arc<dyn Order>> {
        if source.fingerprint() != self.volume.fingerprint() {
            return Err(Error::Config(
                "this sampler is of another volume than the loader's: make it of the same".into(),
            ));
        }
        let positions = self.positions;
        let patches: Arc<dyn Order> = match &self.around {
            None => Arc::new(Uniform::new(source.len(), positions, 1, seed)?),
            Some(PatchBoxes { boxes, field, classes }) => {
                let fields = source.schema().len();
                if *field >= fields {
                    return Err(Error::Config(format!(
                        "these boxes are of array number {field}, and the volume has {fields}: count from 0"
                    )));
                }
                let lattice = self.volume.lattice(*field);
                Arc::new(Patches::new(Arc::clone(boxes), lattice, classes, positions, seed, budget)?)
            }
        };
        Ok(match self.window {
            None => patches,
            Some((window, places)) => {
                Arc::new(MortonWindows::new(patches, self.volume.grid(), window, places, budget)?)
            }
        })
    }
}
