//! `tidegate bench`: loads a dataset as training would, and shows how fast it is and what limits
//! it.
//!
//! Flow: source + options -> epochs -> samples/s, percentiles of the wait for a batch, stages.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::time::Instant;

use clap::Args;
use serde_json::json;
use tidegate_core::memory::Budget;
use tidegate_core::memory::size::counted;
use tidegate_data::batch::cost::DecodeCost;
use tidegate_data::batch::geometry::Draw;
use tidegate_data::batch::row::{RowBuffer, RowDecoder, RowInput};
use tidegate_data::batch::{Crop, FieldSpec, ImageSpec, Layout};
use tidegate_data::{Error, Result};
use tidegate_decode::Kind;
use tidegate_order::Shuffle;
use tidegate_source::SourceExt;
use tidegate_source::index::Index;

use super::format::{parse_budget, show_progress};
use crate::{Loader, Options};

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The dataset.
    source: String,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64)]
    batch_size: u64,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Side of the random crops of images, in pixels.
    #[arg(long, default_value_t = 224)]
    size: u32,
    /// Decoding threads.
    #[arg(long)]
    workers: Option<usize>,
    /// Number of epochs.
    #[arg(long, default_value_t = 1)]
    epochs: u64,
    /// Do not shuffle.
    #[arg(long)]
    ordered: bool,
    /// Do not load: one thread decodes and crops samples in memory, one after another. A loader
    /// can reach at most this times its cores.
    #[arg(long)]
    decoder: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Samples and rounds of the decoder's measurement.
const DECODED: u64 = 600;
const ROUNDS: usize = 5;

/// Random crops of `size` for every image field. Other fields are inferred.
pub(super) fn training_fields(source: &dyn tidegate_source::Source, size: u32) -> Vec<(String, FieldSpec)> {
    let image = ImageSpec { size: Some((size, size)), crop: Crop::Random, flip: 0.5, ..ImageSpec::default() };
    let images = source.schema().iter().filter(|f| matches!(f.kind, Kind::Image | Kind::Pixels));
    images.map(|f| (f.name.clone(), FieldSpec::Image(image.clone()))).collect()
}

impl Bench {
    /// Measures one thread that decodes, crops and resizes samples in memory.
    fn decoder(&self, source: &dyn tidegate_source::Source) -> Result<()> {
        let layout = Layout::new(source.schema(), &training_fields(source, self.size), true)?;
        let column = &layout.columns[0];
        let n = source.len().min(DECODED);
        let checkpoints = source.index().and_then(Index::checkpoints);
        let fetch = |i| {
            let (at, bytes) = source.fetch(i * source.len() / n)?;
            let record = checkpoints.map(|c| c.fetch(&at)).transpose()?;
            Ok((at, bytes, record))
        };
        let samples = (0..n).map(fetch).collect::<Result<Vec<_>>>()?;
        let (mut decoder, mut row, mut scratch) =
            (RowDecoder::default(), vec![0; column.row_bytes()], Vec::new());
        let mut rates = Vec::new();
        for round in 0..=ROUNDS {
            let began = Instant::now();
            for (position, (at, bytes, record)) in samples.iter().enumerate() {
                let values = source.parse(at, bytes)?;
                let (value, cost) = (column.value(&values), DecodeCost::new(&layout, column, &values)?);
                scratch.resize(scratch.len().max(cost.scratch_bytes as usize), 0);
                let draw = Draw { seed: 0, epoch: round as u64, position: position as u64 };
                let mut buffer = RowBuffer { bytes: &mut row, written: 0, shape: Vec::new(), filled: false };
                let checkpoints = record.as_deref();
                let input = RowInput { layout: &layout, column, value, cost: &cost, checkpoints, draw };
                decoder.fill(&input, &mut scratch, &mut buffer)?;
            }
            rates.push(n as f64 / began.elapsed().as_secs_f64());
        }
        // The first round warms up.
        let mut rates = rates.split_off(1);
        rates.sort_by(f64::total_cmp);
        let median = rates[ROUNDS / 2];
        if self.json {
            println!("{}", json!({"images": n, "decoder_per_second": median, "rounds": rates}));
        } else {
            println!(
                "one thread decodes and crops {median:.0} samples/s ({n} samples, median of {ROUNDS} \
                 rounds)"
            );
        }
        Ok(())
    }

    pub(super) fn run(self) -> Result<()> {
        let source = tidegate_source::open(&self.source, false)?;
        if self.decoder {
            return self.decoder(&*source);
        }
        let options = Options {
            batch_size: Some(self.batch_size),
            fields: training_fields(&*source, self.size),
            shuffle: if self.ordered { Shuffle::None } else { Shuffle::Full },
            workers: self.workers,
            ..Options::default()
        };
        let mut loader = Loader::new(source, options, Budget::new(parse_budget(&self.memory)?))?;
        let mut waits: Vec<f64> = Vec::new();
        let (mut samples, batches, began) = (0u64, loader.len(), Instant::now());
        for epoch in 0..self.epochs {
            let mut asked = Instant::now();
            for batch in loader.epoch()? {
                samples += batch?.rows as u64;
                waits.push(asked.elapsed().as_secs_f64() * 1e3);
                show_progress(&format!("epoch {epoch}"), waits.len() as u64 - epoch * batches, batches);
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
        println!("{} in {seconds:.2} s: {:.0}/s", counted(samples, "sample"), samples as f64 / seconds);
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
