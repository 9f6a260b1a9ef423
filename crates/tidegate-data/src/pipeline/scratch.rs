//! What a worker has for itself: its decoders, scratch for pixels, and what libraries take
//! meanwhile.
//!
//! Flow: the cost of decoding a value -> [`WorkerScratch::grow`] -> the worker's own scratch, or
//! the epoch's one shared block.
//! Memory: accounts `scratch` and `library`, taken where the budget has room, and given back
//! between two jobs when a batch lacks memory, or when the worker is parked.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tidegate_core::memory::{Account, Block, Budget, Grant, Priority};
use tidegate_core::sync::lock;

use super::metrics::Metrics;
use super::plan::Reserved;
use crate::batch::cost::DecodeCost;
use crate::batch::row::RowDecoder;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct WorkerScratch {
    decoder: RowDecoder,
    scratch: Option<Block>,
    /// What the decoders keep of images they have made ([`DecodeCost::rows_bytes`]), and what one
    /// takes meanwhile.
    library: Option<Grant>,
    kept_bytes: u64,
}

impl WorkerScratch {
    /// Calls `make` with the decoders and as much scratch as `needs` says: the worker's own if the
    /// budget has room, else the epoch's shared block, for which it waits.
    pub(super) fn with<T>(
        &mut self,
        reserved: &Reserved,
        metrics: &Metrics,
        needs: &DecodeCost,
        make: impl FnOnce(&mut RowDecoder, &mut [u8]) -> T,
    ) -> T {
        if needs.total() == 0 {
            return make(&mut self.decoder, &mut []);
        }
        if self.grow(&reserved.budget, needs) {
            return make(&mut self.decoder, self.scratch.as_deref_mut().unwrap_or_default());
        }
        self.forget();
        let began = Instant::now();
        let mut shared = lock(&reserved.scratch);
        metrics.scratch_wait_ns.add_elapsed(began);
        let made = make(&mut self.decoder, shared.as_deref_mut().unwrap_or_default());
        self.decoder.forget();
        made
    }

    /// Makes it large enough, if the budget has room now.
    fn grow(&mut self, budget: &Budget, needs: &DecodeCost) -> bool {
        let (scratch, rows) = (needs.scratch_bytes, needs.rows_bytes);
        let kept = self.kept_bytes.max(rows);
        if self.library.as_ref().map_or(0, Grant::bytes) < kept.saturating_add(needs.decoder_bytes) {
            self.forget();
            let needed = rows.saturating_add(needs.decoder_bytes);
            // At the lowest priority: the plan leaves room for it, and there is the shared
            // scratch.
            self.library = budget.try_acquire(Account::Library, needed, Priority::CacheFill).ok();
        }
        self.kept_bytes = self.kept_bytes.max(rows);
        if (self.scratch.as_deref().map_or(0, <[u8]>::len) as u64) < scratch {
            self.scratch = None;
            // An eighth more, so that images of about one size do not make it grow again and
            // again.
            let bytes = scratch.saturating_add(scratch / 8);
            self.scratch = budget.try_block(Account::Scratch, bytes, Priority::CacheFill).ok();
        }
        self.library.is_some() && (scratch == 0 || self.scratch.is_some())
    }

    /// Gives back what the decoders keep, and then the grant for it.
    fn forget(&mut self) {
        self.decoder.forget();
        (self.library, self.kept_bytes) = (None, 0);
    }
}

/// The scratch of all workers.
#[derive(Debug, Default)]
pub(super) struct Scratches(Mutex<Vec<Arc<Mutex<WorkerScratch>>>>);

impl Scratches {
    /// Scratch for one more worker.
    pub(super) fn add(&self) -> Arc<Mutex<WorkerScratch>> {
        let scratch = Arc::default();
        lock(&self.0).push(Arc::clone(&scratch));
        scratch
    }

    /// Gives back what idle workers hold. Busy ones see for themselves that a batch lacks memory.
    pub(super) fn give_back(&self) {
        for scratch in &*lock(&self.0) {
            if let Ok(mut scratch) = scratch.try_lock() {
                *scratch = WorkerScratch::default();
            }
        }
    }
}
