//! What an epoch is made from: source, layout, order and options, none of which changes while it
//! runs.
//!
//! Flow: `Pipeline::start` -> [`EpochSpec`] -> every stage.
//! Memory: holds none.

use std::sync::Arc;

use tidegate_order::random::{Purpose, Stream};
use tidegate_order::{Epoch, Lookahead};
use tidegate_source::checkpoints::Checkpoints;
use tidegate_source::{ReadMode, Source};

use super::config::Config;
use crate::Result;
use crate::batch::Layout;
use crate::batch::geometry::Draw;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct EpochSpec {
    pub(super) source: Arc<dyn Source>,
    pub(super) layout: Arc<Layout>,
    pub(super) epoch: Arc<dyn Epoch>,
    pub(super) config: Config,
    pub(super) mode: ReadMode,
    /// Whether the plan has the JPEG checkpoints of samples read.
    pub(super) reads_checkpoints: bool,
}

impl EpochSpec {
    /// The checkpoints of the images, if they are read.
    pub(super) fn checkpoints(&self) -> Option<&Checkpoints> {
        self.source.index().filter(|_| self.reads_checkpoints)?.checkpoints()
    }

    /// What the random draws at a position are functions of.
    pub(super) fn draw(&self, position: u64) -> Draw {
        let Config { seed, epoch, split, .. } = &self.config;
        Draw { seed: *seed, epoch: *epoch, position: position % split.len.max(1) }
    }

    /// The sample that takes a position at a given attempt: any of the source, or of a sampler's,
    /// up to those of the same batch.
    pub(super) fn replacement(&self, position: u64, attempt: u8) -> Result<u64> {
        let Config { seed, epoch, split, order, .. } = &self.config;
        let mut stream = Stream::new(*seed, *epoch, position, attempt, Purpose::Replace);
        let id = match order.lookahead() {
            Lookahead::Permutation => return Ok(stream.below(self.source.len())),
            Lookahead::Listed => self.epoch.id(stream.below(split.len.max(1))),
            Lookahead::Unknown => {
                let batch = position.saturating_sub(split.start) / split.global_batch;
                let asked = split.start + (batch + 1) * split.global_batch;
                self.epoch.id(stream.below(asked.min(split.len).max(1)))
            }
        };
        Ok(id?)
    }
}
