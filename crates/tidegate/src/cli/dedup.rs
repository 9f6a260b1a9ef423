//! `tidegate dedup`: which samples are the same, or nearly so.
//!
//! Flow: a dataset -> `crate::dataset::dedup` -> text or JSON, and a folder with what to keep and what to draw by.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_core::memory::Budget;
use tidegate_core::memory::size::mib;
use tidegate_data::{Error, Result};
use tidegate_source::{Source, open};

use crate::atomic_file::write_whole;
use crate::dataset::dedup::{By, Duplicate, Duplicates, Search, write_npy};

#[derive(Debug, Args)]
pub(super) struct Dedup {
    /// The data set.
    source: String,
    /// What makes two samples duplicates.
    #[arg(long, value_enum, default_value_t = By::Bytes)]
    by: By,
    /// The field that tells; by default the only one that fits, or for bytes the only picture, else all fields together.
    #[arg(long)]
    field: Option<String>,
    /// The least similarity of text (default 0.8) or of pictures that look alike (default 0.879: 31 of 256 bits).
    #[arg(long)]
    threshold: Option<f64>,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Threads.
    #[arg(long)]
    workers: Option<usize>,
    /// Where signatures lie, and keys that memory has no room for; by default beside the data's index.
    #[arg(long)]
    spill: Option<PathBuf>,
    /// A folder for keep.npy (ids), weights.npy (one for each sample) and duplicates.csv.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Duplicates that are printed.
const SHOWN: usize = 10;

impl Dedup {
    pub(super) fn run(self) -> Result<()> {
        let source = open(&self.source, false)?;
        let search = Search {
            by: self.by,
            field: self.field,
            threshold: self.threshold,
            folder: self.spill,
            workers: self.workers,
        };
        let budget = Budget::new(super::bytes(&self.memory)?);
        let progress = |done, of| {
            super::progress("searched", done, of);
            Ok(())
        };
        if let Some(folder) = &self.out {
            // Before the pass, which would be lost.
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let found = Duplicates::of(&source, &search, &budget, &progress)?;
        if let Some(folder) = &self.out {
            write(&found, &*source, folder)?;
        }
        if self.json {
            println!("{}", serde_json::to_string(&found).map_err(|e| Error::Config(e.to_string()))?);
            return Ok(());
        }
        println!(
            "{} of {} samples are duplicates of {} others by {}; {} failed",
            found.duplicates.len(),
            found.samples,
            found.clusters,
            found.field,
            found.failed
        );
        for failed in &found.failures {
            println!("  {}: {}", failed.place, failed.what);
        }
        if found.failed > found.failures.len() as u64 {
            println!("  and {} more", found.failed - found.failures.len() as u64);
        }
        for duplicate in found.duplicates.iter().take(SHOWN) {
            let names = (source.key(duplicate.index)?, source.key(duplicate.of)?);
            println!("  {} is {} ({:.3})", names.0, names.1, duplicate.similarity);
        }
        if found.duplicates.len() > SHOWN {
            println!("  and {} more", found.duplicates.len() - SHOWN);
        }
        println!("{} signatures were compared, {} MiB spilled", found.compared, mib(found.spilled_bytes));
        if found.crowded > 0 {
            println!(
                "{} samples share a key with so many that some of their duplicates may be missing",
                found.crowded
            );
        }
        if let Some(folder) = &self.out {
            println!("keep.npy, weights.npy and duplicates.csv in {}", folder.display());
        }
        Ok(())
    }
}

fn write(found: &Duplicates, source: &dyn Source, folder: &Path) -> Result<()> {
    let keep = found.keep();
    write_npy(&folder.join("keep.npy"), "<i8", keep.len(), keep.iter().map(|id| id.to_le_bytes()))?;
    let weights = found.weights();
    write_npy(&folder.join("weights.npy"), "<f4", weights.len(), weights.iter().map(|w| w.to_le_bytes()))?;
    let quoted = |id| source.key(id).map(|key| format!("\"{}\"", key.replace('"', "\"\"")));
    write_whole(&folder.join("duplicates.csv"), |out| {
        writeln!(out, "id,key,kept_id,kept_key,similarity")?;
        for &Duplicate { index, of, similarity } in &found.duplicates {
            let key = |id| quoted(id).map_err(std::io::Error::other);
            writeln!(out, "{index},{},{of},{},{similarity}", key(index)?, key(of)?)?;
        }
        Ok(())
    })
}
