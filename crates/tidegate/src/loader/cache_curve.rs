//! What other amounts of memory would give a loader, before training.
//!
//! Flow: a loader and budget sizes -> for each the plan of an epoch and the hits of its cache ->
//! [`CacheCurve`], as text or JSON.
//! Memory: eight bytes a sample, outside the budget: it is used for planning, not for training.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tidegate_core::memory::size::mib;
use tidegate_data::cache::curve::{Point, SimulatedPolicy, Supply, curve};
use tidegate_data::{Error, Result};
use tidegate_order::Lookahead;
use tidegate_source::read::{aligned, staging_bytes};
use tidegate_source::{ReadMode, Source};

use super::Loader;

/// The most samples for which the exact answer is fast enough.
const MAX_SAMPLES: u64 = 1 << 24;
/// Threads that measure how fast samples are read, and for how long.
const READERS: usize = 4;
const MEASURE: Duration = Duration::from_millis(500);

/// What one amount of memory gives.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryPoint {
    /// The size of the budget.
    pub memory_bytes: u64,
    /// What it gives; nothing if no epoch can run in it.
    pub point: Option<Point>,
    /// The part of the bytes to read in an epoch that a disk cache does not have.
    pub source_bytes: Option<u64>,
}

/// The amounts of memory to compare, and what else is known.
#[derive(Debug, Clone, Default)]
pub struct CacheQuery {
    /// Budgets, in bytes. Where ranks share a budget, each size is that of all ranks together.
    pub memories: Vec<u64>,
    /// How fast the source is read, in bytes a second; by default it is measured.
    pub read_bytes_per_s: Option<f64>,
    /// The samples a second that training takes.
    pub rate: Option<f64>,
    /// The size of a disk cache, in bytes; by default that of the loader's own.
    pub disk_bytes: Option<u64>,
}

/// What several amounts of memory give.
#[derive(Debug, Clone, Serialize)]
pub struct CacheCurve {
    /// One for each amount of memory, in ascending order.
    pub points: Vec<MemoryPoint>,
    /// How fast the source is read, in bytes a second.
    pub read_bytes_per_s: f64,
    /// The samples a second that training takes.
    pub rate: Option<f64>,
    /// The size of the disk cache, if there is one.
    pub disk_bytes: Option<u64>,
}

/// The ids that a rank loads, and the sizes of samples.
struct Accesses {
    ids: Vec<u32>,
    /// Of `ids`, those of the first epoch.
    epoch: usize,
    /// Bytes of each sample of the source.
    sizes: Vec<u32>,
}

impl Loader {
    /// What other amounts of memory would give in each epoch after the first.
    ///
    /// It counts cache hits of samples as they are stored (a compressed cache has more), bytes to
    /// read, and the samples a second that training can take without ever waiting. Where ranks
    /// share a budget, it is the part of this rank.
    ///
    /// # Errors
    /// More than 2²⁴ samples; an index that cannot be read; an order that is not known ahead.
    pub fn cache_curve(&self, query: &CacheQuery) -> Result<CacheCurve> {
        let source = self.source();
        let policy = self.check_curve()?;
        let read_bytes_per_s = match query.read_bytes_per_s {
            Some(speed) if speed > 0.0 && speed.is_finite() => speed,
            Some(_) => {
                return Err(Error::Config("a reading speed must be positive, in bytes a second".into()));
            }
            None => measure(&**source)?,
        };
        let disk_bytes = query.disk_bytes.or(self.options().disk.as_ref().map(|disk| disk.limit_bytes));
        let on_disk = disk_bytes.unwrap_or(0) as f64 / source.size_bounds().total_bytes.max(1) as f64;
        let accesses = self.accesses()?;
        let mut memories = query.memories.clone();
        memories.sort_unstable();
        memories.dedup();
        let point = |memory_bytes| {
            let point = self.curve_point(memory_bytes, &accesses, policy, read_bytes_per_s);
            let source_bytes = point.map(|point| missing_bytes(&point, on_disk, policy));
            MemoryPoint { memory_bytes, point, source_bytes }
        };
        let points = memories.into_iter().map(point).collect();
        Ok(CacheCurve { points, read_bytes_per_s, rate: query.rate, disk_bytes })
    }

    /// Checks that a curve can be computed, and names the policy of the cache.
    fn check_curve(&self) -> Result<SimulatedPolicy> {
        let policy = match self.order().lookahead() {
            Lookahead::Permutation => SimulatedPolicy::Fixed,
            Lookahead::Listed => SimulatedPolicy::Min,
            Lookahead::Unknown => {
                return Err(Error::Config(
                    "this sampler gives one id after another, so what a cache would hit is not known \
                     beforehand: give an array, or a function of the epoch"
                        .into(),
                ));
            }
        };
        let source = self.source();
        if source.chunked().is_some() {
            return Err(Error::Config(
                "a curve is of samples, and patches of a volume share chunks: the report of an epoch \
                 says \
                 how many chunks were decoded, and how many could have been kept"
                    .into(),
            ));
        }
        if source.len() > MAX_SAMPLES {
            return Err(Error::Config(format!(
                "{} samples are too many for an exact curve (at most {MAX_SAMPLES}): select a part of \
                 them; \
                 hits grow in proportion",
                source.len()
            )));
        }
        Ok(policy)
    }

    fn accesses(&self) -> Result<Accesses> {
        let sizes = sizes(&**self.source())?;
        let mut ids = Vec::new();
        // A sampler may know this epoch and the next, so ask for no others.
        let number = self.epoch_number();
        let epoch = self.append_ids(number, &mut ids)?;
        if self.order().feedback_order().is_none() {
            self.append_ids(number + 1, &mut ids)?;
        }
        Ok(Accesses { ids, epoch, sizes })
    }

    /// What a budget gives; nothing if no epoch can run in it.
    fn curve_point(
        &self,
        memory_bytes: u64,
        accesses: &Accesses,
        policy: SimulatedPolicy,
        bytes_per_s: f64,
    ) -> Option<Point> {
        let (source, node) = (self.source(), self.budget().shared_by());
        let own_bytes = node.map_or(memory_bytes, |node| node.share_of(memory_bytes));
        let plan = self.plan_alone(own_bytes).ok()?;
        let mean_bytes = source.size_bounds().total_bytes / source.len().max(1);
        let ready_bytes = plan.slots.saturating_sub(1) * self.options().batch_size.unwrap_or(1) * mean_bytes;
        let supply = Supply { bytes_per_s, ahead_bytes: plan.staging_bytes + ready_bytes };
        let cache_bytes = plan.kept_samples_bytes;
        let limits = [node.map_or(cache_bytes, |node| node.left_bytes(cache_bytes))];
        curve(&accesses.ids, accesses.epoch, &accesses.sizes, policy, supply, &limits).pop()
    }

    /// Appends the ids that this rank loads in an epoch, and returns how many they are.
    fn append_ids(&self, number: u64, ids: &mut Vec<u32>) -> Result<usize> {
        let (split, order, before) = (self.split(0)?, self.order().epoch(number)?, ids.len());
        for batch in 0..split.batches() {
            let rows = split.rows(batch);
            let positions = rows.positions().map(|p| p % split.len.max(1));
            for position in positions {
                ids.push(order.id(position)? as u32);
            }
        }
        Ok(ids.len() - before)
    }
}

/// The bytes to read that are not on disk; `on_disk` is the fraction of samples that the disk has.
fn missing_bytes(point: &Point, on_disk: f64, policy: SimulatedPolicy) -> u64 {
    let in_memory = point.hits as f64 / point.accesses.max(1) as f64;
    let missing = match policy {
        // The fixed sets of memory and disk begin at opposite ends of the ids.
        SimulatedPolicy::Fixed => (1.0 - in_memory - on_disk) / (1.0 - in_memory).max(f64::EPSILON),
        _ => 1.0 - on_disk,
    };
    (point.read_bytes as f64 * missing.clamp(0.0, 1.0)) as u64
}

/// The stored bytes of every sample.
fn sizes(source: &dyn Source) -> Result<Vec<u32>> {
    let mut sizes = Vec::new();
    let mut ids = Vec::new();
    for start in (0..source.len()).step_by(4096) {
        ids.clear();
        ids.extend(start..(start + 4096).min(source.len()));
        sizes.extend(source.locate(&ids)?.iter().map(|at| at.entry.len));
    }
    Ok(sizes)
}

/// Measures how fast spread samples are read past the page cache, in bytes a second.
fn measure(source: &dyn Source) -> Result<f64> {
    let count = source.len().min(4096);
    if count == 0 {
        return Ok(1.0);
    }
    let ids: Vec<u64> = (0..count).map(|i| (i * 7919) % count * (source.len() / count)).collect();
    let found = source.locate(&ids)?;
    let (next, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut into = aligned(staging_bytes(source.size_bounds().sample_bytes) as usize);
                while began.elapsed() < MEASURE {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(at) = found.get(i as usize) else { break };
                    let len = u64::from(at.entry.len);
                    // A read error is reported when training asks for the sample.
                    if source.read(at, len, ReadMode::Direct, &mut into).is_ok() {
                        bytes.fetch_add(len, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Ok((bytes.into_inner() as f64 / began.elapsed().as_secs_f64()).max(1.0))
}

impl CacheCurve {
    fn disk_column(&self, words: &str) -> String {
        self.disk_bytes.map_or_else(String::new, |_| format!("{words:>12} "))
    }

    /// One sentence: the smallest memory that suffices, and the size above which more is useless.
    #[must_use]
    pub fn sentence(&self) -> String {
        let points: Vec<_> = self.points.iter().filter_map(|p| Some((p.memory_bytes, p.point?))).collect();
        let Some((most, best)) = points.last().copied() else {
            return "no epoch fits in any of these: raise memory".into();
        };
        let mut words = Vec::new();
        if let Some(rate) = self.rate {
            words.push(match points.iter().find(|(_, p)| p.stall_free_per_s >= rate) {
                Some((memory, _)) => format!("{} MiB: no stall at {rate:.0} samples/s", mib(*memory)),
                None => format!("no stall at {:.0} samples/s, not at {rate:.0}", best.stall_free_per_s),
            });
        }
        let enough = points.iter().find(|(_, p)| p.hits == best.hits).map_or(most, |p| p.0);
        if enough < most {
            words.push(format!("more than {} MiB buys nothing", mib(enough)));
        }
        words.join("; ")
    }
}

impl fmt::Display for CacheCurve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "reading at {} MiB/s", mib(self.read_bytes_per_s as u64))?;
        writeln!(
            f,
            "{:>10} {:>10} {:>7} {:>12} {}{:>14}",
            "memory",
            "cache",
            "hits",
            "read/epoch",
            self.disk_column("not on disk"),
            "without stall"
        )?;
        for MemoryPoint { memory_bytes, point, source_bytes } in &self.points {
            let Some(p) = point else {
                writeln!(f, "{:>10} too small for an epoch", mib(*memory_bytes))?;
                continue;
            };
            let hits = p.hits as f64 / p.accesses.max(1) as f64;
            let rate = match p.stall_free_per_s {
                rate if rate.is_finite() => format!("{rate:.0}/s"),
                _ => "at any speed".into(),
            };
            let bar = "#".repeat((hits * 40.0).round() as usize);
            writeln!(
                f,
                "{:>10} {:>10} {:>6.1}% {:>12} {}{rate:>14} {bar}",
                mib(*memory_bytes),
                mib(p.cache_bytes),
                100.0 * hits,
                mib(p.read_bytes),
                self.disk_column(&mib(source_bytes.unwrap_or_default()).to_string())
            )?;
        }
        writeln!(f, "{}", self.sentence())
    }
}
