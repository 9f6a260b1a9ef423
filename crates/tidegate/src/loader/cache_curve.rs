//! What another amount of memory would give, before training.
//!
//! Flow: a loader and sizes -> for each the plan of an epoch and what its cache would hit -> [`Curve`], in words or JSON.
//! Memory: eight bytes a sample, outside the budget: for planning, not for training.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tidegate_core::memory::size::mib;
use tidegate_data::cache::curve::{Point, Policy, Supply, curve};
use tidegate_data::{Error, Result};
use tidegate_order::Foresight;
use tidegate_source::read::{aligned, staging_bytes};
use tidegate_source::{ReadMode, Source};

use crate::Loader;

/// Samples beyond which the exact answer takes too long.
const SAMPLES_MOST: u64 = 1 << 24;
/// Threads that measure how fast samples are read, and for how long.
const READERS: usize = 4;
const MEASURE: Duration = Duration::from_millis(500);

/// What one amount of memory gives.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryPoint {
    /// The budget.
    pub memory_bytes: u64,
    /// What it gives; nothing if no epoch can run in it.
    pub point: Option<Point>,
    /// Of the bytes to read in an epoch, those that a disk cache does not have.
    pub source_bytes: Option<u64>,
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct WhatIf {
    /// Budgets, in bytes; of all ranks together, where they share one.
    pub memories: Vec<u64>,
    /// How fast bytes come that are not kept; measured if it is not given.
    pub read_bytes_per_s: Option<f64>,
    /// The samples a second that training takes.
    pub rate: Option<f64>,
    /// What a disk cache may take, all told; the loader's own if it is not given.
    pub disk_bytes: Option<u64>,
}

/// See the head of this file.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// Smallest first.
    pub points: Vec<MemoryPoint>,
    /// How fast bytes come that are not kept.
    pub read_bytes_per_s: f64,
    /// The samples a second that are wanted.
    pub rate: Option<f64>,
    /// What a disk cache may take, if there is one.
    pub disk_bytes: Option<u64>,
}

impl Loader {
    /// What other memory would give this loader in each epoch after the first: hits of samples as they are stored (more where they are
    /// kept packed), bytes to read, and the samples a second that never wait. Of ranks that share a budget it is what this one gets.
    ///
    /// # Errors
    /// More than 2²⁴ samples; an index that cannot be read; an order of which nothing is known.
    pub fn cache_curve(&self, asked: &WhatIf) -> Result<Curve> {
        let rule = match self.order().foresight() {
            Foresight::Once => Policy::Fixed,
            Foresight::Listed => Policy::Min,
            Foresight::None => {
                return Err(Error::Config(
                    "this sampler is asked one id after another, so what a cache would hit is not known beforehand: give an \
                     array, or a function of the epoch"
                        .into(),
                ));
            }
        };
        let source = self.source();
        if source.chunked().is_some() {
            return Err(Error::Config(
                "what other memory would give is told of samples, not of the chunks that patches share: the report of an epoch says \
                 how many were decoded, and how many could have been kept"
                    .into(),
            ));
        }
        if source.len() > SAMPLES_MOST {
            return Err(Error::Config(format!(
                "{} samples are too many for an exact curve (at most {SAMPLES_MOST}): select a part of them; hits scale with it",
                source.len()
            )));
        }
        let speed = match asked.read_bytes_per_s {
            Some(speed) if speed > 0.0 && speed.is_finite() => speed,
            Some(_) => {
                return Err(Error::Config("a reading speed must be positive, in bytes a second".into()));
            }
            None => measure(&**source)?,
        };
        let sizes = sizes(&**source)?;
        let disk_bytes = asked.disk_bytes.or(self.options().disk.as_ref().map(|disk| disk.limit_bytes));
        let on_disk = disk_bytes.unwrap_or(0) as f64 / source.extremes().total_bytes.max(1) as f64;
        let node = self.budget().shared_by();
        let mut memories = asked.memories.clone();
        memories.sort_unstable();
        memories.dedup();
        let mut accesses = Vec::new();
        // Those of a sampler may be known already.
        let number = self.epoch_number();
        let epoch = self.ids_of_epoch(number, &mut accesses)?;
        if self.order().fed().is_none() {
            self.ids_of_epoch(number + 1, &mut accesses)?;
        }
        let mut points = Vec::new();
        for memory_bytes in memories {
            let alone = node.map_or(memory_bytes, |node| node.share_of(memory_bytes));
            let point = match self.plan_alone(alone) {
                Ok(plan) => {
                    let mean = source.extremes().total_bytes / source.len().max(1);
                    let ready = plan.slots.saturating_sub(1) * self.options().batch_size.unwrap_or(1) * mean;
                    let supply = Supply { bytes_per_s: speed, ahead_bytes: plan.staging_bytes + ready };
                    let kept = plan.kept_samples_bytes;
                    let limits = [node.map_or(kept, |node| node.left_bytes(kept))];
                    curve(&accesses, epoch, &sizes, rule, supply, &limits).pop()
                }
                Err(_) => None,
            };
            let source_bytes = point.map(|point| missing(&point, on_disk, rule));
            points.push(MemoryPoint { memory_bytes, point, source_bytes });
        }
        Ok(Curve { points, read_bytes_per_s: speed, rate: asked.rate, disk_bytes })
    }

    /// Appends the ids that this rank is given in an epoch, and says how many they are.
    fn ids_of_epoch(&self, number: u64, ids: &mut Vec<u32>) -> Result<usize> {
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

/// The bytes to read that are not on disk, where so large a part of all samples is.
fn missing(point: &Point, on_disk: f64, rule: Policy) -> u64 {
    let in_memory = point.hits as f64 / point.accesses.max(1) as f64;
    let missing = match rule {
        // The two fixed sets begin at opposite ends.
        Policy::Fixed => (1.0 - in_memory - on_disk) / (1.0 - in_memory).max(f64::EPSILON),
        _ => 1.0 - on_disk,
    };
    (point.read_bytes as f64 * missing.clamp(0.0, 1.0)) as u64
}

/// The bytes of every sample.
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

/// How fast samples here and there are read past the page cache, in bytes a second.
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
                let mut into = aligned(staging_bytes(source.extremes().sample_bytes) as usize);
                while began.elapsed() < MEASURE {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(at) = found.get(i as usize) else { break };
                    let len = u64::from(at.entry.len);
                    // What cannot be read is told when it is wanted.
                    if source.read(at, len, ReadMode::Direct, &mut into).is_ok() {
                        bytes.fetch_add(len, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Ok((bytes.into_inner() as f64 / began.elapsed().as_secs_f64()).max(1.0))
}

impl Curve {
    fn disk_column(&self, words: &str) -> String {
        self.disk_bytes.map_or_else(String::new, |_| format!("{words:>12} "))
    }

    /// The least memory that suffices, and the least that no more can better.
    #[must_use]
    pub fn sentence(&self) -> String {
        let points: Vec<_> = self.points.iter().filter_map(|p| Some((p.memory_bytes, p.point?))).collect();
        let Some((most, best)) = points.last().copied() else {
            return "none of these can run an epoch: raise memory".into();
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

impl fmt::Display for Curve {
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
