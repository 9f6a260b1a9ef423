//! `tidegate bench`: loads a data set as training would, and says how fast and what limits it.
//!
//! Flow: source + options -> epochs -> samples/s, percentiles of the wait for a batch, the stage table.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::time::Instant;

use clap::Args;
use serde_json::json;
use tidegate_core::memory::Budget;
use tidegate_data::batch::{Crop, FieldSpec, ImageSpec};
use tidegate_data::order::Shuffle;
use tidegate_data::source::{self, Kind};
use tidegate_data::{Error, Result};

use crate::{Loader, Options};

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The data set.
    source: String,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64)]
    batch_size: u64,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Side of the random crops of images.
    #[arg(long, default_value_t = 224)]
    size: u32,
    /// Decoding threads.
    #[arg(long)]
    workers: Option<usize>,
    /// Epochs.
    #[arg(long, default_value_t = 1)]
    epochs: u64,
    /// No shuffling.
    #[arg(long)]
    ordered: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Random crops of `size` for every image field; other fields as they are inferred.
pub(super) fn training_fields(source: &dyn source::Source, size: u32) -> Vec<(String, FieldSpec)> {
    let image = ImageSpec { size: Some((size, size)), crop: Crop::Random, flip: 0.5, ..ImageSpec::default() };
    let images = source.schema().iter().filter(|f| matches!(f.kind, Kind::Image | Kind::Pixels));
    images.map(|f| (f.name.clone(), FieldSpec::Image(image.clone()))).collect()
}

impl Bench {
    pub(super) fn run(self) -> Result<()> {
        let source = source::open(&self.source, false)?;
        let options = Options {
            batch_size: Some(self.batch_size),
            fields: training_fields(&*source, self.size),
            shuffle: if self.ordered { Shuffle::None } else { Shuffle::Full },
            workers: self.workers,
            ..Options::default()
        };
        let mut loader = Loader::new(source, options, Budget::new(super::bytes(&self.memory)?))?;
        let mut waits: Vec<f64> = Vec::new();
        let (mut samples, batches, began) = (0u64, loader.len(), Instant::now());
        for epoch in 0..self.epochs {
            let mut asked = Instant::now();
            for batch in loader.epoch()? {
                samples += batch?.rows as u64;
                waits.push(asked.elapsed().as_secs_f64() * 1e3);
                super::progress(&format!("epoch {epoch}"), waits.len() as u64 - epoch * batches, batches);
                asked = Instant::now();
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        waits.sort_by(f64::total_cmp);
        let at = |q: f64| waits.get(((waits.len() as f64 - 1.0) * q) as usize).copied().unwrap_or(0.0);
        let report = loader.report();
        if self.json {
            let figures = json!({
                "samples": samples,
                "seconds": seconds,
                "samples_per_second": samples as f64 / seconds,
                "wait_ms": {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)},
                "report": report,
            });
            println!("{}", serde_json::to_string_pretty(&figures).map_err(|e| Error::Config(e.to_string()))?);
            return Ok(());
        }
        println!("{samples} samples in {seconds:.2} s: {:.0}/s", samples as f64 / seconds);
        println!(
            "wait for a batch, ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
        let s = &report.stages;
        println!("{:<10} {:>8} {:>12} {:>12}", "stage", "threads", "busy s", "waiting s");
        let rows = [
            ("read", s.readers, s.read_ns, s.slot_wait_ns + s.staging_wait_ns),
            ("decode", s.workers, s.work_ns, s.idle_ns + s.scratch_wait_ns),
            ("consumer", 1, 0, s.consumer_wait_ns),
        ];
        for (stage, threads, busy, waiting) in rows {
            println!("{stage:<10} {threads:>8} {:>12.2} {:>12.2}", busy as f64 / 1e9, waiting as f64 / 1e9);
        }
        print!("{report}");
        Ok(())
    }
}
