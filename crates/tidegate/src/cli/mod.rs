//! The command line: it reads words, calls the library, and prints.
//!
//! Flow: arguments -> one of demo, synth, pack, index, inspect, profile, dedup, cache, compress, shuffle-quality, bench -> text, HTML, an exit code (0 good, 1 failed, 2 misused).
//! Memory: that of what it calls.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod bench;
mod cache;
mod compress;
mod dedup;
mod demo;
mod inspect;
mod profile;
mod shuffle;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tidegate_core::memory::size::{Size, mib};
use tidegate_data::{Error, Result};

use crate::dataset::pack::{self, Format};
use crate::dataset::synth::{self, Form, Recipe};

#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about = "Stream datasets larger than memory into training, under one hard budget"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make photo-like JPEG shards and stream them under a small budget.
    #[command(after_help = "Example:\n  tidegate demo --samples 2000 --memory 64MiB")]
    Demo(demo::Demo),
    /// Make a data set of photo-like JPEGs.
    #[command(
        after_help = "Examples:\n  tidegate synth photos --samples 5000\n  tidegate synth shards --form tar"
    )]
    Synth {
        /// Where to.
        out: PathBuf,
        /// Pictures.
        #[arg(long, default_value_t = 1000)]
        samples: u64,
        /// Classes.
        #[arg(long, default_value_t = 10)]
        classes: u64,
        /// Mean width in pixels.
        #[arg(long, default_value_t = 500)]
        width: u32,
        /// Layout.
        #[arg(long, value_enum, default_value_t = Form::Folder)]
        form: Form,
        /// Pictures in a tar shard.
        #[arg(long, default_value_t = 500)]
        shard: u64,
        /// Seed.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Put any data set into shards of bounded size.
    #[command(after_help = "Example:\n  tidegate pack photos packed --format mds --max-size 64MiB")]
    Pack {
        /// What to pack: a folder, "shards/*.tar", an MDS folder.
        source: String,
        /// Where to.
        out: PathBuf,
        /// Container.
        #[arg(long, value_enum, default_value_t = Format::Mds)]
        format: Format,
        /// Bytes of a shard.
        #[arg(long, default_value = "64MiB")]
        max_size: String,
        /// Samples of a shard.
        #[arg(long, default_value_t = u64::MAX)]
        max_samples: u64,
        /// Store the floats of a field as codes of so many bits, in blocks of 128: FIELD=BITS.
        #[arg(long, value_name = "FIELD=BITS")]
        quantize: Vec<String>,
        /// Pack arrays by a codec (lz4, zstd, deflate, pco, shuffle+zstd:3, …; abs:1e-3 or rel:1e-3 within an error), or by the one that
        /// gains most: auto. As FIELD=CODEC for those of one field.
        #[arg(long, value_name = "[FIELD=]CODEC")]
        codec: Vec<String>,
    },
    /// Make the side-car index of a data set.
    #[command(
        after_help = "Examples:\n  tidegate index 'shards/*.tar' --force\n  tidegate index photos --checkpoints"
    )]
    Index {
        /// The data set.
        source: String,
        /// Make it anew even if there is one that holds.
        #[arg(long)]
        force: bool,
        /// Read every JPEG once and note where decoding can begin, so that crops decode less: at most 5 % of the
        /// data in size, and made anew with the index.
        #[arg(long)]
        checkpoints: bool,
    },
    /// Show schema, sizes and samples.
    #[command(after_help = "Example:\n  tidegate inspect photos --html sheet.html")]
    Inspect {
        /// The data set.
        source: String,
        /// Write a contact sheet of samples.
        #[arg(long)]
        html: Option<PathBuf>,
        /// Samples on the sheet.
        #[arg(long, default_value_t = 48)]
        samples: u64,
    },
    /// What is in a data set: distributions, distinct values, classes, what follows for training.
    #[command(
        after_help = "Examples:\n  tidegate profile photos --html profile.html\n  tidegate profile diff train val"
    )]
    Profile(profile::ProfileArgs),
    /// Find samples that are the same, or nearly so; write what to keep. Nothing is deleted.
    #[command(
        after_help = "Examples:\n  tidegate dedup photos --by picture --out duplicates\n  tidegate dedup 'docs/*.parquet' --by text --threshold 0.7"
    )]
    Dedup(dedup::Dedup),
    /// What memory would give.
    #[command(subcommand)]
    Cache(cache::Cache),
    /// What compression would bring.
    #[command(subcommand)]
    Compress(compress::Compress),
    /// How well windows mix data that are sorted by class, and what they cost.
    #[command(
        after_help = "Examples:\n  tidegate shuffle-quality photos\n  tidegate shuffle-quality --samples 1000000 --shard 1000 --html quality.html"
    )]
    ShuffleQuality(shuffle::ShuffleQuality),
    /// Load a data set as training would and say what limits it.
    #[command(
        after_help = "Example:\n  tidegate bench photos --batch-size 64 --memory 256MiB --size 224 --json"
    )]
    Bench(bench::Bench),
}

/// Runs the command line and returns the exit code.
#[must_use]
pub fn run(arguments: Vec<String>) -> i32 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; a closed output is nobody's loss.
            let _printed = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    match execute(cli.command) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("tidegate: {}", error.to_string().replace('\n', " "));
            1
        }
    }
}

fn bytes(text: &str) -> Result<u64> {
    Ok(text.parse::<Size>().and_then(|s| s.bytes())?)
}

/// A progress line on a terminal; nothing elsewhere.
fn progress(what: &str, done: u64, total: u64) {
    if std::io::stderr().is_terminal() && (done.is_multiple_of(16) || done == total) {
        let filled = (done * 30 / total.max(1)) as usize;
        eprint!("\r{what} [{}{}] {done}/{total}", "#".repeat(filled), " ".repeat(30 - filled.min(30)));
        if done >= total {
            eprintln!();
        }
        // A terminal that is gone needs no progress.
        let _flushed = std::io::stderr().flush();
    }
}

/// A field and its bits.
fn quantized(wish: &str) -> Result<(String, u32)> {
    let found = wish.rsplit_once('=').and_then(|(field, bits)| Some((field.to_owned(), bits.parse().ok()?)));
    found.ok_or_else(|| Error::Config(format!("--quantize {wish:?}: give a field and its bits, as in x=4")))
}

fn small(quantize: &[String], codecs: &[String]) -> Result<pack::Small> {
    let quantize = quantize.iter().map(|wish| quantized(wish)).collect::<Result<_>>()?;
    let mut small = pack::Small { quantize, ..pack::Small::default() };
    for wish in codecs {
        match wish.rsplit_once('=') {
            Some((field, own)) => small.codecs.push((field.to_owned(), own.to_owned())),
            None if small.codec.is_none() => small.codec = Some(wish.clone()),
            None => {
                let what =
                    format!("--codec {wish:?}: one is for all fields, others for one each, as in x={wish}");
                return Err(Error::Config(what));
            }
        }
    }
    Ok(small)
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Demo(demo) => demo.run(),
        Command::Synth { out, samples, classes, width, form, shard, seed } => {
            if !(16..=16_000).contains(&width) {
                return Err(Error::Config("width must lie between 16 and 16000".into()));
            }
            let recipe = Recipe { samples, classes, seed, width, form, shard };
            synth::dataset(&out, &recipe, &|done| progress("pictures", done, samples))?;
            println!("{samples} pictures of {classes} classes in {}", out.display());
            Ok(())
        }
        Command::Compress(compress) => compress.run(),
        Command::Pack { source, out, format, max_size, max_samples, quantize, codec } => {
            let small = small(&quantize, &codec)?;
            let limits = pack::Limits { bytes: bytes(&max_size)?, samples: max_samples.max(1) };
            let source = tidegate_source::open(&source, false)?;
            let packed = pack::pack(&*source, &out, format, limits, &small, &|done| {
                progress("packed", done, source.len())
            })?;
            println!(
                "{} samples in {} shards in {} ({} kept from an earlier run)",
                source.len(),
                packed.shards,
                out.display(),
                packed.kept
            );
            Ok(())
        }
        Command::Index { source, force, checkpoints } => {
            let source = match checkpoints {
                true => tidegate_source::open_with_checkpoints(&source, force, &|done, total| {
                    progress("checkpoints", done, total);
                    Ok(())
                }),
                false => tidegate_source::open(&source, force),
            }?;
            println!(
                "{} samples, {} MiB, fingerprint {:016x}",
                source.len(),
                mib(source.extremes().total_bytes),
                source.fingerprint()
            );
            Ok(())
        }
        Command::Inspect { source, html, samples } => inspect::inspect(&source, html.as_deref(), samples),
        Command::Profile(asked) => asked.run(),
        Command::Dedup(asked) => asked.run(),
        Command::Cache(cache) => cache::run(&cache),
        Command::ShuffleQuality(asked) => asked.run(),
        Command::Bench(bench) => bench.run(),
    }
}
