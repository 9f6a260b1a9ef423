//! The command line: it parses arguments, calls the library, and prints.
//!
//! Flow: arguments -> one of demo, synth, pack, index, inspect, check, profile, dedup, cache,
//! compress, shuffle-quality, plan, bench -> text, HTML, an exit code (0 success, 1 failure, 2
//! wrong usage).
//! Memory: that of what it calls.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod bench;
mod cache;
mod check;
mod compress;
mod dedup;
mod demo;
mod format;
mod inspect;
mod plan;
mod profile;
mod shuffle;

use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};
use tidegate_core::memory::size::{counted, mib};
use tidegate_data::{Error, Result};
use tidegate_source::OpenOptions;

use self::format::{parse_bytes, show_progress};
use crate::dataset::pack::{self, Compression, Format};
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
    /// Make a dataset of photo-like JPEGs.
    #[command(
        after_help = "Examples:\n  tidegate synth photos --samples 5000\n  tidegate synth shards --form tar"
    )]
    Synth {
        /// The folder to write to.
        out: PathBuf,
        /// Number of images.
        #[arg(long, default_value_t = 1000)]
        samples: u64,
        /// Number of classes.
        #[arg(long, default_value_t = 10)]
        classes: u64,
        /// Mean width in pixels.
        #[arg(long, default_value_t = 500)]
        width: u32,
        /// Layout on disk.
        #[arg(long, value_enum, default_value_t = Form::Folder)]
        form: Form,
        /// Images in a tar shard.
        #[arg(long, default_value_t = 500)]
        shard: u64,
        /// Seed of the images.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Pack any dataset into shards of bounded size.
    #[command(after_help = "Example:\n  tidegate pack photos packed --format mds --max-size 64MiB")]
    Pack {
        /// What to pack: a folder, "shards/*.tar", an MDS folder.
        source: String,
        /// The folder to write to.
        out: PathBuf,
        /// Container.
        #[arg(long, value_enum, default_value_t = Format::Mds)]
        format: Format,
        /// Largest size of a shard.
        #[arg(long, default_value = "64MiB")]
        max_size: String,
        /// Most samples in a shard; without it, only the size counts.
        #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
        max_samples: u64,
        /// Quantize the floats of a field to 2 to 8 bits, in blocks of 128: FIELD=BITS.
        #[arg(long, value_name = "FIELD=BITS")]
        quantize: Vec<String>,
        /// Compress arrays by a codec (lz4, zstd, deflate, pco, shuffle+zstd:3, …; abs:1e-3 or
        /// rel:1e-3 within an error), or by the one that gains most: auto. FIELD=CODEC is for one
        /// field.
        #[arg(long, value_name = "[FIELD=]CODEC")]
        codec: Vec<String>,
        /// A column of MDS for the names of samples, such as the paths of files.
        #[arg(long, value_name = "COLUMN")]
        names: Option<String>,
    },
    /// Make the index of a dataset, in a folder next to it.
    #[command(
        after_help = "Examples:\n  tidegate index 'shards/*.tar' --force\n  tidegate index photos --checkpoints"
    )]
    Index {
        /// The dataset.
        source: String,
        /// Replace an index that is still valid.
        #[arg(long)]
        force: bool,
        /// Read every JPEG once and store where decoding can begin, so that crops decode less. It
        /// takes at most 5 % of the data's size, and is made again with the index.
        #[arg(long)]
        checkpoints: bool,
    },
    /// Show the schema, sizes and some samples.
    #[command(after_help = "Example:\n  tidegate inspect photos --html sheet.html")]
    Inspect {
        /// The dataset.
        source: String,
        /// Write an HTML page with samples.
        #[arg(long)]
        html: Option<PathBuf>,
        /// Samples on the page.
        #[arg(long, default_value_t = 48)]
        samples: u64,
    },
    /// Read everything once and list what is wrong, with places. The exit code is 1 if anything is.
    #[command(after_help = "Example:\n  tidegate check 'shards/*.tar' --json")]
    Check(check::Check),
    /// Profile a dataset: distributions, distinct values, classes, advice for training.
    #[command(
        after_help = "Examples:\n  tidegate profile photos --html profile.html\n  tidegate profile diff train val"
    )]
    Profile(profile::ProfileArgs),
    /// Find samples that are the same or similar, and write which to keep. Nothing is deleted.
    #[command(
        after_help = "Examples:\n  tidegate dedup photos --by picture --out duplicates\n  tidegate dedup 'docs/*.parquet' --by text --threshold 0.7"
    )]
    Dedup(dedup::Dedup),
    /// Predict what more or less memory would give.
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Predict what compression would bring.
    #[command(subcommand)]
    Compress(compress::Compress),
    /// Measure how well windows mix data that are sorted by class, and what they cost.
    #[command(
        after_help = "Examples:\n  tidegate shuffle-quality photos\n  tidegate shuffle-quality --samples 1000000 --shard 1000 --html quality.html"
    )]
    ShuffleQuality(shuffle::ShuffleQuality),
    /// Plan the memory of a training step: what is recomputed, what it costs, what would fit.
    #[command(
        after_help = "Examples:\n  tidegate plan model.json --memory 8GiB --html plan.html\n  tidegate plan model.json --memory 24GiB --devices 8 --link 25GB"
    )]
    Plan(plan::Plan),
    /// Load a dataset as training would, and show what limits it.
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
            // Help and version are no failures. If the output is closed nothing can be shown.
            error.print().ok();
            if let Some(pattern) = split_pattern(&error) {
                eprintln!("\n  tip: quote a pattern, so that the shell leaves it whole: {pattern}");
            }
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    // What cannot be checked is no finding.
    let trouble = if matches!(cli.command, Command::Check(_)) { 2 } else { 1 };
    execute(cli.command).unwrap_or_else(|error| {
        eprintln!("tidegate: {}", error.to_string().replace('\n', " "));
        trouble
    })
}

/// The pattern that a shell has made into several arguments, if one that is too many is a file.
fn split_pattern(error: &clap::Error) -> Option<String> {
    let unknown = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand];
    let Some(ContextValue::String(argument)) = unknown.into_iter().find_map(|kind| error.get(kind)) else {
        return None;
    };
    let path = Path::new(argument);
    let (_, endings) = path.file_name()?.to_str()?.split_once('.')?;
    let pattern = path.with_file_name(format!("*.{endings}")).display().to_string();
    path.is_file().then(|| format!("'{}'", pattern.replace('\'', r"'\''")))
}

/// Parses FIELD=BITS.
fn parse_bits(argument: &str) -> Result<(String, u32)> {
    let found =
        argument.rsplit_once('=').and_then(|(field, bits)| Some((field.to_owned(), bits.parse().ok()?)));
    found.ok_or_else(|| {
        Error::Config(format!("--quantize {argument:?}: give a field and its bits, as in x=4"))
    })
}

fn parse_compression(quantize: &[String], codecs: &[String]) -> Result<Compression> {
    let quantize = quantize.iter().map(|argument| parse_bits(argument)).collect::<Result<_>>()?;
    let mut compression = Compression { quantize, ..Compression::default() };
    for argument in codecs {
        match argument.rsplit_once('=') {
            Some((field, codec)) => compression.codecs.push((field.to_owned(), codec.to_owned())),
            None if compression.codec.is_none() => compression.codec = Some(argument.clone()),
            None => {
                return Err(Error::Config(format!(
                    "--codec {argument:?} is a second codec for all fields: give it to one field, as in \
                     x={argument}"
                )));
            }
        }
    }
    Ok(compression)
}

fn execute(command: Command) -> Result<i32> {
    let outcome = match command {
        Command::Demo(demo) => demo.run(),
        Command::Synth { out, samples, classes, width, form, shard, seed } => {
            if !(16..=16_000).contains(&width) {
                return Err(Error::Config("width must be between 16 and 16000".into()));
            }
            let recipe = Recipe { samples, classes, seed, width, form, shard };
            synth::dataset(&out, &recipe, &|done| show_progress("images", done, samples))?;
            let (images, classes) = (counted(samples, "image"), counted(classes, "class"));
            println!("{images} of {classes} in {}", out.display());
            Ok(())
        }
        Command::Compress(compress) => compress.run(),
        Command::Pack { source, out, format, max_size, max_samples, quantize, codec, names } => {
            let compression = parse_compression(&quantize, &codec)?;
            if out.is_file() {
                return Err(Error::Config(format!(
                    "{} is a file, where a folder to write to is wanted; quote a pattern, as in 'shards/*.tar'",
                    out.display()
                )));
            }
            let limits = pack::Limits { bytes: parse_bytes(&max_size)?, samples: max_samples.max(1) };
            let source = tidegate_source::open(&source, false)?;
            let packed =
                pack::pack(&*source, &out, format, limits, &compression, names.as_deref(), &|done, all| {
                    show_progress("packed", done, all);
                    Ok(())
                })?;
            println!(
                "{} in {} in {} ({} kept from an earlier run)",
                counted(source.len(), "sample"),
                counted(packed.shards, "shard"),
                out.display(),
                packed.kept
            );
            Ok(())
        }
        Command::Index { source, force, checkpoints } => {
            let options = OpenOptions { force, ..OpenOptions::default() };
            let source = match checkpoints {
                true => tidegate_source::open_with_checkpoints(&source, &options, &|done, total| {
                    show_progress("checkpoints", done, total);
                    Ok(())
                }),
                false => tidegate_source::open_with(&source, &options),
            }?;
            println!(
                "{}, {} MiB, fingerprint {:016x}",
                counted(source.len(), "sample"),
                mib(source.size_bounds().total_bytes),
                source.fingerprint()
            );
            for doubt in source.uncertain() {
                println!("uncertain: {doubt}");
            }
            for left_out in source.left_out() {
                println!("left out: {left_out}");
            }
            Ok(())
        }
        Command::Inspect { source, html, samples } => inspect::inspect(&source, html.as_deref(), samples),
        Command::Check(asked) => return asked.run(),
        Command::Profile(asked) => asked.run(),
        Command::Dedup(asked) => asked.run(),
        Command::Cache(cache) => cache::run(&cache),
        Command::ShuffleQuality(asked) => asked.run(),
        Command::Plan(plan) => plan.run(),
        Command::Bench(bench) => bench.run(),
    };
    outcome.map(|()| 0)
}
