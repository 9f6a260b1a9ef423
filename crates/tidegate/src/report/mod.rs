//! The report of a loader: what limits it, where every byte is, and which samples failed.
//!
//! Flow: counters of the stages + the budget -> [`Report`] -> `text`, or JSON.
//! Memory: holds none.

mod limit;
mod memory;
mod stages;
mod text;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate_core::memory::{Budget, limit as process_limit};
use tidegate_data::cache::SegmentTier;
use tidegate_data::pipeline::{Failure, StageStats};
use tidegate_order::FeedbackStats;
use tidegate_order::quality::Quality;

pub use self::memory::{AccountLine, NodeLine};

/// What limits a loader, where every byte is, and which samples failed.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One sentence on what limits the flow.
    pub limit: String,
    /// The size of the budget; of a budget that processes share, the part of this process.
    pub budget_bytes: u64,
    /// Bytes charged now.
    pub charged_bytes: u64,
    /// The most bytes ever charged.
    pub peak_bytes: u64,
    /// All processes that share the budget, if it is shared.
    pub node: Option<NodeLine>,
    /// The memory limit of this process.
    pub limit_bytes: u64,
    /// What sets the memory limit.
    pub limit_source: String,
    /// The accounts that ever held bytes.
    pub accounts: Vec<AccountLine>,
    /// What each stage did in the current epoch.
    pub stages: StageStats,
    /// Seconds since the epoch began.
    pub elapsed_s: f64,
    /// The samples that failed in the current epoch.
    pub failures: Vec<String>,
    /// What is wrong with caches. No cache holds the only copy of anything.
    pub cache_notes: Vec<String>,
    /// How an order that takes feedback draws samples.
    pub feedback: Option<FeedbackStats>,
    /// How well batches mix with the window of nearby patches, and without it.
    pub mixing: Option<[Quality; 2]>,
}

impl Report {
    pub(crate) fn new(
        budget: &Budget,
        stages: StageStats,
        elapsed: Duration,
        failures: &[Failure],
        stores: &[Arc<SegmentTier>],
    ) -> Self {
        let limit = process_limit::discover();
        let failure = |f: &Failure| format!("position {}: {}: {}", f.position, f.place, f.what);
        Self {
            limit: limit::sentence(&stages, elapsed),
            budget_bytes: budget.cap_bytes(),
            charged_bytes: budget.usage().charged_bytes,
            peak_bytes: budget.usage().peak_bytes,
            node: budget.shared_by().map(|node| NodeLine::new(node)),
            limit_bytes: limit.bytes,
            limit_source: limit.source,
            accounts: memory::account_lines(budget),
            stages,
            elapsed_s: elapsed.as_secs_f64(),
            failures: failures.iter().map(failure).collect(),
            cache_notes: stores.iter().flat_map(|store| cache_notes(store)).collect(),
            feedback: None,
            mixing: None,
        }
    }
}

/// What is wrong with a cache.
fn cache_notes(store: &SegmentTier) -> Vec<String> {
    let name = if store.in_memory() { "the shared cache in memory" } else { "the disk cache" };
    let stopped = store.stopped().map(|why| format!("{name} takes no more samples: {why}"));
    let damaged = Some(store.tally().damaged).filter(|&n| n > 0 && !store.in_memory());
    let damaged = damaged.map(|n| format!("{name} had {n} damaged records, which were read from the source"));
    stopped.into_iter().chain(damaged).collect()
}
