//! `tidegate shuffle-quality`: measures how well windows mix class-sorted data, and what they
//! cost.
//!
//! Flow: the shards of a dataset, or imagined ones -> `order::tradeoff` -> a table, JSON, a page
//! with a plot.
//! Memory: see `order::tradeoff`.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::PathBuf;

use clap::Args;
use tidegate_core::memory::size::counted;
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;
use tidegate_order::tradeoff::{Candidate, candidates, cheapest};
use tidegate_source::open;

use crate::html::{append, ticks};

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
                "{} in {}, sorted as {}; batches of {}",
                counted(len, "sample"),
                counted(runs.len() as u64, "shard"),
                counted(self.classes, "class"),
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
            println!(
                "held: the share of all samples that it draws from at once; reads: of an epoch, at least; \
                 labels: how\nfar a batch's labels are from those of the whole (total variation); of ideal: \
                 against a full shuffle;\ndistance: between samples that follow one another, as a share of all"
            );
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

/// A page with a plot: reads against the distance of batches from the whole dataset. Its dots have
/// numbers, which a table explains.
fn page(found: &[Candidate], within: f64) -> String {
    let (width, height, margin) = (720.0, 420.0, 60.0);
    let most_reads = found.iter().map(|c| c.reads).max().unwrap_or(1).max(2) as f64;
    let most = found.iter().map(|c| c.quality.ratio()).fold(within, f64::max) * 1.1;
    let across = |reads: f64| margin + reads.ln() / most_reads.ln() * (width - 2.0 * margin);
    let down = |ratio: f64| height - margin - ratio / most * (height - 1.5 * margin);
    let mut plot = String::new();
    let lines = ticks(most).into_iter().map(|ratio| (ratio.to_string(), ratio, "#ddd"));
    for (name, ratio, colour) in lines.chain([(format!("bound {within}"), within, "#c30")]) {
        let (y, right) = (down(ratio), width - margin);
        let (x, above, anchor) =
            if colour == "#ddd" { (margin - 6.0, -4.0, "end") } else { (margin + 6.0, 4.0, "start") };
        append(
            &mut plot,
            format_args!(
                "<line x1='{margin}' x2='{right}' y1='{y:.1}' y2='{y:.1}' stroke='{colour}'/><text x='{x}' y='{:.1}' \
                 text-anchor='{anchor}'>{name}</text>",
                y - above
            ),
        );
    }
    let powers = (0..=most_reads.log10() as i32).map(|power| 10f64.powi(power));
    for reads in powers {
        let (x, under) = (across(reads), height - margin + 16.0);
        append(&mut plot, format_args!("<text x='{x:.1}' y='{under}' text-anchor='middle'>{reads}</text>"));
    }
    let mut table = String::new();
    for (i, candidate) in found.iter().enumerate() {
        let (x, y) = (across(candidate.reads as f64), down(candidate.quality.ratio()));
        let radius = 8.0 + 12.0 * candidate.held.sqrt();
        let (number, shuffle) = (i + 1, shuffle_argument(candidate.shuffle));
        append(
            &mut plot,
            format_args!(
                "<circle cx='{x:.1}' cy='{y:.1}' r='{radius:.1}' fill='#2a7' fill-opacity='0.4'><title>{shuffle}</title>\
                 </circle><text x='{x:.1}' y='{:.1}' text-anchor='middle'>{number}</text>",
                y + 4.0
            ),
        );
        append(
            &mut table,
            format_args!(
                "<tr><td>{number}<td>{shuffle}<td>{:.1} %<td>{}<td>{:.2}",
                candidate.held * 100.0,
                candidate.reads,
                candidate.quality.ratio()
            ),
        );
    }
    format!(
        "<!doctype html><meta charset='utf-8'><title>Shuffle quality</title><style>body{{font:14px sans-serif}}td,th{{\
         padding:2px 12px 2px 0;text-align:right}}</style><h1>Shuffle quality</h1><p>Vertical: the distance of a \
         batch's labels from the whole dataset, divided by that of a full shuffle; lower is better, and 1 is a full \
         shuffle. Horizontal: the reads of an epoch, logarithmic; fewer are better. A larger dot holds more samples at \
         once.</p><svg width='{width}' height='{height}' font-size='11'>{plot}<text x='{}' y='{}' text-anchor='middle'>\
         reads of an epoch</text></svg><table><tr><th>dot<th>shuffle=<th>held at once<th>reads<th>of ideal{table}\
         </table>\n",
        width / 2.0,
        height - margin + 36.0
    )
}
