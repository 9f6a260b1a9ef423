//! `tidegate compress`: predicts what compression would bring.
//!
//! Flow: arguments -> `dataset::analyse` -> text, JSON, SVG images.
//! Memory: that of what it calls.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tidegate_data::{Error, Result};

use super::format::parse_bytes;
use crate::dataset::analyse::{Options, analyse};

/// Predict what compression would bring.
#[derive(Debug, Subcommand)]
pub(super) enum Compress {
    /// Show entropies, the ratio and speed of codecs, and the bits that an error allows.
    #[command(
        after_help = "Examples:\n  tidegate compress analyse packed\n  tidegate compress analyse packed --field x --bound abs:1e-3 --plot plots"
    )]
    Analyse(Analyse),
}

#[derive(Debug, Args)]
pub(super) struct Analyse {
    /// The dataset.
    source: String,
    /// Analyse only this field.
    #[arg(long)]
    field: Option<String>,
    /// Samples to read, evenly spread.
    #[arg(long, default_value_t = 256)]
    samples: u64,
    /// Most bytes of elements to read of each field.
    #[arg(long, default_value = "64MiB")]
    bytes: String,
    /// Errors that floats may have: abs:<error>, or rel:<fraction of the range>.
    #[arg(long, default_values = ["rel:1e-2", "rel:1e-3", "rel:1e-4"])]
    bound: Vec<String>,
    /// Write a plot of bits and errors of each float field to this folder.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Compress {
    pub(super) fn run(self) -> Result<()> {
        let Self::Analyse(Analyse { source, field, samples, bytes, bound, plot, json }) = self;
        let source = tidegate_source::open(&source, false)?;
        let options = Options { field, samples: samples.max(1), bytes: parse_bytes(&bytes)?, bounds: bound };
        let found = analyse(&*source, &options)?;
        if found.is_empty() {
            return Err(Error::Config(format!("{} has no field of arrays or bytes", source.name())));
        }
        if let Some(folder) = &plot {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
            for analysis in &found {
                let path = folder.join(format!("{}.svg", analysis.field.replace('/', "-")));
                if let Some(svg) = analysis.plot() {
                    std::fs::write(&path, svg).map_err(Error::io(&path))?;
                }
            }
        }
        if json {
            println!("{}", serde_json::json!(found));
        } else {
            found.iter().for_each(|analysis| println!("{}", analysis.text()));
        }
        Ok(())
    }
}
