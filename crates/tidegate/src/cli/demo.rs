//! `tidegate demo`: the main job in one command, measured by a memory control group.
//!
//! Flow: photo-like tar shards -> a loader under a small budget, inside a new control group if one
//! can be made -> throughput, peak and budget, what limits it, and an HTML page with the memory
//! curve.
//! Memory: the budget; the group's peak includes page cache, heap and stacks.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use tidegate_core::memory::Budget;
use tidegate_core::memory::limit::{Cgroup, cgroups};
use tidegate_core::memory::size::{counted, mib};
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;
use tidegate_source;

use super::bench::training_fields;
use super::format::{parse_budget, show_progress};
use crate::dataset::synth::{self, Form, Recipe};
use crate::html::{append, escape, ticks};
use crate::{Loader, Options};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Folder for shards and page.
    #[arg(long, default_value = "demo")]
    out: PathBuf,
    /// Number of images.
    #[arg(long, default_value_t = 2000)]
    samples: u64,
    /// The budget.
    #[arg(long, default_value = "64MiB")]
    memory: String,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64)]
    batch_size: u64,
}

/// What a process may take beyond its budget, as `make test-memory` has it.
fn allowance(budget: u64) -> u64 {
    (budget / 50).max(8 << 20)
}

/// A control group for the demo. The process joins it, and leaves it when this is dropped.
#[derive(Debug)]
struct Enclosure {
    group: Cgroup,
    parent: PathBuf,
}

impl Enclosure {
    fn enter() -> Option<Self> {
        let own = cgroups().into_iter().find(|g| g.peak_bytes().is_some())?;
        let dir = own.dir.join(format!("tidegate-demo-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let enclosure = Self { group: Cgroup { dir: dir.clone(), ..own.clone() }, parent: own.dir };
        fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).ok()?;
        enclosure.group.peak_bytes()?;
        Some(enclosure)
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // Leaving fails only if the group is gone already. An empty group that stays does no harm.
        fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string()).ok();
        fs::remove_dir(&self.group.dir).ok();
    }
}

impl Demo {
    pub(super) fn run(self) -> Result<()> {
        let shards = self.out.join("shards");
        if !shards.join(format!("shard-{:05}.tar", (self.samples.max(1) - 1) / 500)).exists() {
            println!("making {} photo-like JPEGs in {} …", self.samples, shards.display());
            let recipe = Recipe { samples: self.samples, form: Form::Tar, ..Recipe::default() };
            synth::dataset(&shards, &recipe, &|done| show_progress("images", done, self.samples))?;
        }
        let enclosure = Enclosure::enter();
        let source = tidegate_source::open(&shards.to_string_lossy(), false)?;
        let budget = parse_budget(&self.memory)?;
        println!(
            "streaming {} ({} MiB) under a budget of {} MiB",
            counted(source.len(), "sample"),
            mib(source.size_bounds().total_bytes),
            mib(budget)
        );
        let options = Options {
            batch_size: Some(self.batch_size),
            fields: training_fields(&*source, 224),
            shuffle: Shuffle::Full,
            ..Options::default()
        };
        let group = enclosure.as_ref().map(|e| &e.group);
        let usage = || group.and_then(Cgroup::usage_bytes).unwrap_or_else(resident_bytes);
        let baseline = usage();
        let mut loader = Loader::new(source, options, Budget::new(budget))?;
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let (curve, outcome) = std::thread::scope(|scope| {
            let watch = std::thread::Builder::new().name("tg-watch".into()).spawn_scoped(scope, || {
                let mut curve = Vec::new();
                while !stop.load(Ordering::Acquire) {
                    curve.push((began.elapsed().as_secs_f64(), usage()));
                    std::thread::sleep(Duration::from_millis(20));
                }
                curve
            });
            let outcome = epoch(&mut loader);
            stop.store(true, Ordering::Release);
            let curve = watch.ok().and_then(|w| w.join().ok()).unwrap_or_default();
            (curve, outcome)
        });
        let samples = outcome?;
        let seconds = began.elapsed().as_secs_f64();
        let seen = curve.iter().map(|c| c.1).max().unwrap_or(baseline);
        let peak = group.and_then(Cgroup::peak_bytes).unwrap_or(seen);
        let over = peak.saturating_sub(baseline);
        println!(
            "{} in {seconds:.2} s: {:.0} images/s",
            counted(samples, "sample"),
            samples as f64 / seconds
        );
        let measure = if group.is_some() {
            "control group, page cache included"
        } else {
            "resident memory; no control group could be made"
        };
        println!(
            "peak {} MiB over the baseline of {} MiB, budget {} MiB, and {} MiB allowed for stacks and the \
             allocator ({measure})",
            mib(over),
            mib(baseline),
            mib(budget),
            mib(allowance(budget))
        );
        let report = loader.report();
        println!("{}", report.limit);
        let page = self.out.join("report.html");
        fs::write(&page, html(&curve, baseline, budget, &report.to_string())).map_err(Error::io(&page))?;
        println!("the memory curve is in {}", page.display());
        Ok(())
    }
}

fn epoch(loader: &mut Loader) -> Result<u64> {
    let (mut samples, batches) = (0, loader.len());
    for (i, batch) in loader.epoch()?.enumerate() {
        samples += batch?.rows as u64;
        show_progress("batches", i as u64 + 1, batches);
    }
    Ok(samples)
}

/// Resident bytes of this process, for machines without a control group.
fn resident_bytes() -> u64 {
    let text = fs::read_to_string(Path::new("/proc/self/statm")).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// The page with the memory curve: MiB over seconds.
fn html(curve: &[(f64, u64)], baseline: u64, budget: u64, report: &str) -> String {
    let (width, height, margin) = (900.0, 320.0, 60.0);
    let end = curve.last().map_or(1.0, |c| c.0).max(1e-3);
    let top = curve.iter().map(|c| c.1).max().unwrap_or(0).max(baseline + budget) as f64 * 1.1;
    let x = |seconds: f64| margin + seconds / end * width;
    let y = |bytes: f64| height - bytes / top * height;
    let mut plot = String::new();
    for mebibytes in ticks(top / f64::from(1 << 20)) {
        let y = y(mebibytes * f64::from(1 << 20));
        append(
            &mut plot,
            format_args!(
                "<line x1={margin} x2={} y1={y:.1} y2={y:.1} stroke=#eee /><text x={} y={:.1} text-anchor=end>{mebibytes} \
                 MiB</text>",
                margin + width,
                margin - 6.0,
                y + 4.0
            ),
        );
    }
    for seconds in ticks(end) {
        let (x, under) = (x(seconds), height + 16.0);
        append(&mut plot, format_args!("<text x={x:.1} y={under} text-anchor=middle>{seconds} s</text>"));
    }
    for (bytes, colour, text) in
        [(baseline, "gray", "baseline"), (baseline + budget, "crimson", "baseline + budget")]
    {
        let (y, right) = (y(bytes as f64), margin + width);
        append(
            &mut plot,
            format_args!(
                "<line x1={margin} x2={right} y1={y:.1} y2={y:.1} stroke={colour} stroke-dasharray=6 /><text x={} \
                 y={:.1} fill={colour} text-anchor=end>{text}: {} MiB</text>",
                right - 6.0,
                y - 4.0,
                mib(bytes)
            ),
        );
    }
    let points: Vec<_> =
        curve.iter().map(|(t, bytes)| format!("{:.1},{:.1}", x(*t), y(*bytes as f64))).collect();
    format!(
        "<!doctype html><meta charset=utf-8><title>Tidegate: memory</title><style>body{{font:15px sans-serif;margin:\
         2em}}pre{{white-space:pre-wrap;max-width:110ch}}</style><h1>Memory while streaming</h1><svg width={} height={} \
         font-size=12>{plot}<polyline fill=none stroke=#06c stroke-width=2 points=\"{}\" /></svg><pre>{}</pre>",
        width + 2.0 * margin,
        height + 24.0,
        points.join(" "),
        escape(report)
    )
}
