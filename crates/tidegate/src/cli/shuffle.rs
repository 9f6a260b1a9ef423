//! `tidegate shuffle-quality`: measures how well windows mix class-sorted data, and what they
//! cost.
//!
//! Flow: the shards of a dataset, or imagined ones -> `order::tradeoff` -> a table, JSON, a page
//! with a plot.
//! Memory: see `order::tradeoff`.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::PathBuf;

use clap::Args;
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;
use tidegate_order::tradeoff::{Candidate, candidates, cheapest};
use tidegate_source::open;

use crate::html::append;

#[derive(Debug, Args)]
pub(super) struct ShuffleQuality {
    /// The dataset; or give --samples and --shard.
    source: Option<String>,
    /// Samples of an imagined dataset.
    #[arg(long, conflicts_with = "source", requires = "shard")]
    samples: Option<u64>,
    /// Samples in each of its shards.
    #[arg(long)]
    shard: Option<u64>,
    /// Samples in a window, separated by commas; by default 1, 5 and 20 % of all.
    #[arg(long, value_delimiter = ',')]
    windows: Vec<u64>,
    /// Shortest ranges to try, in samples.
    #[arg(long, default_value_t = 10)]
    ranges: u64,
    /// Number of classes that the data are sorted by.
    #[arg(long, default_value_t = 100)]
    classes: u64,
    /// Samples in a batch.
    #[arg(long, default_value_t = 256)]
    batch_size: u64,
    /// How far from the whole dataset batches may be, against those of a full shuffle.
    #[arg(long, default_value_t = 1.1)]
    within: f64,
    /// Seed of the shuffles.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write an HTML page with a plot.
    #[arg(long)]
    html: Option<PathBuf>,
}

fn shuffle_argument(shuffle: Shuffle) -> String {
    match shuffle {
        Shuffle::Window { samples, range_samples: 0, .. } => format!("tg.Window({samples})"),
        Shuffle::Window { samples, range_samples, .. } => {
            format!("tg.Window({samples}, ranges={range_samples})")
        }
        _ => "True".into(),
    }
}

impl ShuffleQuality {
    fn runs(&self) -> Result<Vec<u64>> {
        if let Some(url) = &self.source {
            return Ok(open(url, false)?.shard_lengths());
        }
        let (Some(samples), Some(shard)) = (self.samples, self.shard.filter(|&n| n > 0)) else {
            return Err(Error::Config("give a dataset, or --samples and --shard".into()));
        };
        if samples / shard > 1 << 24 {
            return Err(Error::Config(format!("{} shards are too many: at most 2^24", samples / shard)));
        }
        let rest = Some(samples % shard).filter(|&rest| rest > 0);
        Ok((0..samples / shard).map(|_| shard).chain(rest).collect())
    }

    pub(super) fn run(&self) -> Result<()> {
        let runs = self.runs()?;
        let len: u64 = runs.iter().sum();
        let windows = match &self.windows[..] {
            [] => [100, 20, 5].map(|part| (len / part).max(1)).to_vec(),
            given => given.to_vec(),
        };
        let found = candidates(&runs, &windows, self.ranges, self.classes, self.batch_size, self.seed)?;
        let best = cheapest(&found, self.within);
        if self.json {
            let text = serde_json::to_string(&found).map_err(|e| Error::Config(e.to_string()))?;
            println!("{text}");
        } else {
            println!(
                "{len} samples in {} shards, sorted as {} classes; batches of {}",
                runs.len(),
                self.classes,
                self.batch_size
            );
            println!(
                "{:<36} {:>7} {:>10} {:>9} {:>9} {:>9}",
                "shuffle=", "held", "reads", "labels", "of ideal", "distance"
            );
            for candidate in &found {
                let q = &candidate.quality;
                let bar = "#".repeat((q.ratio() * 8.0).min(40.0) as usize);
                println!(
                    "{:<36} {:>6.1}% {:>10} {:>9.3} {:>8.2}x {:>9.3} {bar}",
                    shuffle_argument(candidate.shuffle),
                    candidate.held * 100.0,
                    candidate.reads,
                    q.label_variation,
                    q.ratio(),
                    q.pair_distance
                );
            }
            match best {
                Some(best) => println!(
                    "the fewest reads within {:.2}x of a true shuffle: shuffle={}",
                    self.within,
                    shuffle_argument(best.shuffle)
                ),
                None => println!("none is within {:.2}x of a true shuffle", self.within),
            }
        }
        if let Some(path) = &self.html {
            std::fs::write(path, page(&found, self.within)).map_err(Error::io(path))?;
        }
        Ok(())
    }
}

/// A page with a plot: reads against the distance of batches from the whole dataset.
fn page(found: &[Candidate], within: f64) -> String {
    let (width, height) = (720.0, 420.0);
    let most_reads = found.iter().map(|c| c.reads).max().unwrap_or(1).max(2) as f64;
    let most = found.iter().map(|c| c.quality.ratio()).fold(within, f64::max) * 1.1;
    let across = |reads: u64| 60.0 + (reads as f64).ln() / most_reads.ln() * (width - 200.0);
    let down = |ratio: f64| height - 40.0 - ratio / most * (height - 70.0);
    let mut plot = String::new();
    for (name, ratio) in [("a true shuffle", 1.0), ("the bound", within)] {
        let y = down(ratio);
        append(
            &mut plot,
            format_args!(
                "<line x1='60' x2='{width}' y1='{y:.1}' y2='{y:.1}' stroke='#bbb'/><text x='{}' y='{:.1}' text-anchor='end'>{name}</text>",
                width - 4.0,
                y - 4.0
            ),
        );
    }
    for candidate in found {
        let (x, y) = (across(candidate.reads), down(candidate.quality.ratio()));
        let radius = 3.0 + 12.0 * candidate.held.sqrt();
        append(
            &mut plot,
            format_args!(
                "<circle cx='{x:.1}' cy='{y:.1}' r='{radius:.1}' fill='#2a7' fill-opacity='0.6'/><text x='{:.1}' y='{:.1}'>{}</text>",
                x + radius + 3.0,
                y + 4.0,
                shuffle_argument(candidate.shuffle)
            ),
        );
    }
    format!(
        "<!doctype html><meta charset='utf-8'><title>Shuffle quality</title><body style='font:14px sans-serif'><h1>Shuffle quality</h1>\
         <p>The distance of a batch's labels from the whole dataset, divided by that of a full shuffle (lower is \
         better), over the reads of an epoch (logarithmic; left is better). A larger dot holds more samples at \
         once.</p>\
         <svg width='{width}' height='{height}' font-size='11'>{plot}<text x='60' y='{}'>1 read</text><text x='{}' y='{}' \
         text-anchor='end'>{most_reads} reads</text></svg>\n",
        height - 12.0,
        width - 140.0,
        height - 12.0
    )
}
