//! What a loader says of itself: what limits it, where every byte is, what failed.
//!
//! Flow: counters of the stages + the budget -> [`Report`] -> words or JSON.
//! Memory: holds none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Budget, Node, limit};
use tidegate_data::cache::{Records, Rule};
use tidegate_data::pipeline::{Failure, StageStats};
use tidegate_order::fed::About;
use tidegate_order::quality::Quality;
use tidegate_source::ReadMode;

/// One account in the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountLine {
    /// Its name.
    pub account: &'static str,
    /// Bytes held now.
    pub held_bytes: u64,
    /// The most ever held.
    pub peak_bytes: u64,
}

/// The budget of a node in the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeLine {
    /// The cap over all processes.
    pub budget_bytes: u64,
    /// Charged now by all of them, and by what they keep in common.
    pub charged_bytes: u64,
    /// The most ever charged.
    pub peak_bytes: u64,
    /// What they keep in common.
    pub common_bytes: u64,
    /// Processes that are in it, with the bytes that each holds.
    pub processes: Vec<(u32, u64)>,
}

impl NodeLine {
    fn of(node: &Node) -> Self {
        let all = node.usage();
        Self {
            budget_bytes: all.cap_bytes,
            charged_bytes: all.charged_bytes,
            peak_bytes: all.peak_bytes,
            common_bytes: node.segments_held_bytes(),
            processes: node.held_by_process(),
        }
    }
}

/// See the head of this file.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One sentence on what limits the flow.
    pub limit: String,
    /// The budget; of one that several processes share, this one's part.
    pub budget_bytes: u64,
    /// Charged now.
    pub charged_bytes: u64,
    /// The most ever charged.
    pub peak_bytes: u64,
    /// All processes that share the budget, if there are others.
    pub node: Option<NodeLine>,
    /// The memory limit of this process.
    pub limit_bytes: u64,
    /// What sets it.
    pub limit_source: String,
    /// Accounts that ever held bytes.
    pub accounts: Vec<AccountLine>,
    /// What each stage did in the current epoch.
    pub stages: StageStats,
    /// Seconds since the epoch began.
    pub elapsed_s: f64,
    /// Samples that failed in the current epoch.
    pub failures: Vec<String>,
    /// What is wrong with caches, none of which holds the only copy of anything.
    pub cache_notes: Vec<String>,
    /// How an order that takes feedback draws.
    pub feedback: Option<About>,
    /// How well batches mix, and how well they would without a window, where patches of a window are brought near one another.
    pub mixing: Option<[Quality; 2]>,
}

impl Report {
    pub(crate) fn new(
        budget: &Budget,
        stages: StageStats,
        elapsed: Duration,
        failures: &[Failure],
        stores: &[Arc<Records>],
    ) -> Self {
        let found = limit::discover();
        let lines = Account::ALL.iter().map(|&a| {
            let used = budget.account(a);
            AccountLine { account: a.name(), held_bytes: used.held_bytes, peak_bytes: used.peak_bytes }
        });
        Self {
            limit: sentence(&stages, elapsed),
            budget_bytes: budget.cap_bytes(),
            charged_bytes: budget.usage().charged_bytes,
            peak_bytes: budget.usage().peak_bytes,
            node: budget.shared_by().map(|node| NodeLine::of(node)),
            limit_bytes: found.bytes,
            limit_source: found.source,
            accounts: lines.filter(|l| l.peak_bytes > 0).collect(),
            stages,
            elapsed_s: elapsed.as_secs_f64(),
            failures: failures
                .iter()
                .map(|f| format!("position {}: {}: {}", f.position, f.place, f.what))
                .collect(),
            cache_notes: stores.iter().flat_map(|store| notes(store)).collect(),
            feedback: None,
            mixing: None,
        }
    }
}

fn notes(store: &Records) -> Vec<String> {
    let name = if store.in_memory() { "the shared cache in memory" } else { "the disk cache" };
    let stopped = store.stopped().map(|why| format!("{name} takes nothing more: {why}"));
    let damaged = Some(store.tally().damaged).filter(|&n| n > 0 && !store.in_memory());
    let damaged = damaged.map(|n| format!("{name} had {n} damaged records, which were read from the source"));
    stopped.into_iter().chain(damaged).collect()
}

/// What limits the flow, from where threads spent their time.
fn sentence(s: &StageStats, elapsed: Duration) -> String {
    if s.batches == 0 {
        return "nothing was delivered yet".into();
    }
    let elapsed = (elapsed.as_nanos() as f64).max(1.0);
    let share = |ns: u64, threads: u64| 100.0 * ns as f64 / (elapsed * threads.max(1) as f64);
    let (waits, busy) = (share(s.consumer_wait_ns, 1), share(s.work_ns, s.workers));
    let scratch = share(s.scratch_wait_ns, s.workers);
    let reading = share(s.read_ns, s.readers);
    if waits < 10.0 {
        format!("the consumer limits: it waited {waits:.0} % of the time; the workers were busy {busy:.0} %")
    } else if scratch > 20.0 {
        format!(
            "the budget limits: workers waited {scratch:.0} % of the time for scratch memory; raise memory"
        )
    } else if busy > 70.0 {
        format!(
            "decoding limits: {} workers were busy {busy:.0} % of the time and the consumer waited {waits:.0} %; more \
             cores would help, faster disks would not",
            s.workers
        )
    } else if reading > 50.0 {
        format!(
            "reading limits: {} readers were busy {reading:.0} % of the time, the workers only {busy:.0} %",
            s.readers
        )
    } else {
        format!(
            "nothing limits for long: workers busy {busy:.0} %, readers {reading:.0} %, consumer waiting {waits:.0} %"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.stages;
        let per_second = s.samples as f64 / self.elapsed_s.max(1e-9);
        writeln!(f, "{}", self.limit)?;
        writeln!(f, "{} samples in {:.1} s ({per_second:.0}/s)", s.samples, self.elapsed_s)?;
        if let Some(mode) = s.mode.filter(|_| s.reads > 0) {
            let how = match mode {
                ReadMode::Direct => "past the page cache (O_DIRECT)",
                ReadMode::Drop => "through the page cache, dropped behind",
                ReadMode::Plain => "through the page cache, kept and charged",
            };
            writeln!(f, "{} reads {how}, {} of them several at once (io_uring)", s.reads, s.together)?;
        }
        if s.remote {
            let (ms, readers) = (s.latency_us.unwrap_or_default() / 1000, s.readers);
            let at_once = format!("up to {readers} at once, since a request takes {ms} ms");
            writeln!(
                f,
                "{} reads of objects over the network, {} MiB, {at_once}",
                s.reads,
                mib(s.read_bytes)
            )?;
        }
        if s.amplification_percent > 105 {
            let times = s.amplification_percent as f64 / 100.0;
            writeln!(
                f,
                "{times:.2} times the bytes that these samples are were read (gaps, and groups that others read too)"
            )?;
        }
        if s.checkpoints > 0 {
            writeln!(f, "{} samples with JPEG checkpoints", s.checkpoints)?;
        }
        if s.cache_limit_bytes > 0 {
            let could = match s.cache_rule {
                Some(Rule::Adaptive) => match s.could_hit_bytes {
                    0 => "what came often is kept, since the order is not known ahead".into(),
                    best => format!(
                        "what came often is kept, since the order is not known ahead; if it were, {} MiB could be",
                        mib(best)
                    ),
                },
                Some(Rule::Min) => format!(
                    "at most {} MiB could be so far: what comes next soonest is kept",
                    mib(s.could_hit_bytes)
                ),
                _ => format!("at most {} MiB could be in this epoch", mib(s.could_hit_bytes)),
            };
            let of = match s.wanted_chunks {
                0 => format!("samples of {}", s.samples),
                wanted => format!("chunks of {wanted}"),
            };
            writeln!(
                f,
                "{} {of} from memory ({} MiB; {could}); the cache has {} of {} MiB",
                s.hits,
                mib(s.hit_bytes),
                mib(s.cache_held_bytes),
                mib(s.cache_limit_bytes)
            )?;
        }
        if s.wanted_chunks > 0 {
            let per_patch = s.wanted_chunks as f64 / s.samples.max(1) as f64;
            writeln!(f, "{} chunks were decoded; a patch lies in {per_patch:.1}", s.decoded_chunks)?;
        }
        if let Some([own, without]) = &self.mixing {
            writeln!(
                f,
                "patches near one another follow one another: batches are {:.2} times as far from the whole volume as they would be by chance, and \
                 {:.2} times without a window",
                own.ratio(),
                without.ratio()
            )?;
        }
        if s.cache_decoded {
            writeln!(f, "samples are kept decoded: from memory they need no decoding")?;
        }
        if let Some(codec) = s.cache_codec {
            writeln!(
                f,
                "packed by {codec}, {:.1} times as many samples are kept",
                s.cache_gain_percent as f64 / 100.0
            )?;
        }
        if s.disk_limit_bytes > 0 {
            writeln!(
                f,
                "{} samples of {} from the disk cache ({} MiB), which takes {} of {} MiB",
                s.disk_hits,
                s.samples,
                mib(s.disk_hit_bytes),
                mib(s.disk_held_bytes),
                mib(s.disk_limit_bytes)
            )?;
        }
        for note in &self.cache_notes {
            writeln!(f, "{note}")?;
        }
        if let Some(about) = &self.feedback {
            let how = match (about.drawn, about.known) {
                (true, _) => "samples are drawn by them",
                (false, 0) => "so each sample comes once",
                (false, _) => "each sample comes once, since drawing by them would gain too little",
            };
            let (known, epoch, gain) = (about.known, about.epoch, about.gain);
            writeln!(f, "losses of {known} samples were known when epoch {epoch} began: {how}")?;
            writeln!(
                f,
                "that is worth batches {gain:.2} times as large, and the weights are worth {:.0} % of the samples; what to keep is planned to \
                 the end of this epoch, since the next one follows from what is fed back",
                about.effective * 100.0
            )?;
        }
        if s.filled > 0 {
            writeln!(f, "{} truncated JPEGs, filled with gray", s.filled)?;
        }
        let (peak, budget) = (mib(self.peak_bytes), mib(self.budget_bytes));
        writeln!(
            f,
            "budget {budget} MiB, peak {peak} MiB; the process may have {} MiB ({})",
            mib(self.limit_bytes),
            self.limit_source
        )?;
        if let Some(node) = &self.node {
            writeln!(
                f,
                "budget of the node {} MiB, peak {} MiB; now {} MiB by {} processes, and {} MiB that they keep in common",
                mib(node.budget_bytes),
                mib(node.peak_bytes),
                mib(node.charged_bytes.saturating_sub(node.common_bytes)),
                node.processes.len(),
                mib(node.common_bytes)
            )?;
        }
        for line in &self.accounts {
            writeln!(
                f,
                "  {:<18} {:>8} MiB now {:>8} MiB peak",
                line.account,
                mib(line.held_bytes),
                mib(line.peak_bytes)
            )?;
        }
        for failure in self.failures.iter().take(20) {
            writeln!(f, "failed: {failure}")?;
        }
        Ok(())
    }
}
