//! `tidegate dedup`: finds samples that are the same or similar.
//!
//! Flow: a dataset -> `dataset::dedup` -> text or JSON, and a folder with ids to keep and weights.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_array::DType;
use tidegate_core::memory::Budget;
use tidegate_core::memory::size::mib;
use tidegate_data::{Error, Result};
use tidegate_source::{Source, open};

use super::format::{parse_budget, show_progress};
use crate::atomic_file::write_whole;
use crate::dataset::dedup::{Criterion, Duplicate, Duplicates, Search, write_npy};

#[derive(Debug, Args)]
pub(super) struct Dedup {
    /// The dataset.
    source: String,
    /// What makes two samples duplicates.
    #[arg(long, value_enum, default_value_t = Criterion::Bytes)]
    by: Criterion,
    /// Field to compare. By default the only field that fits; for bytes the only image field, else
    /// all fields together.
    #[arg(long)]
    field: Option<String>,
    /// Smallest similarity of duplicates, for text (default 0.8) and images (default 0.879: 31 of
    /// 256 bits differ).
    #[arg(long)]
    threshold: Option<f64>,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Decoding threads.
    #[arg(long)]
    workers: Option<usize>,
    /// Folder for temporary files; by default that of the data's index.
    #[arg(long)]
    spill: Option<PathBuf>,
    /// Folder for keep.npy (ids), weights.npy (one for each sample) and duplicates.csv.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The most duplicates that are printed.
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
        let budget = Budget::new(parse_budget(&self.memory)?);
        let progress = |done, of| {
            show_progress("searched", done, of);
            Ok(())
        };
        if let Some(folder) = &self.out {
            // Fail before the scan, not after it.
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let found = Duplicates::find(&source, &search, &budget, &progress)?;
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
        if found.truncated > 0 {
            println!(
                "{} samples share a key with too many others: some of their duplicates may be missing",
                found.truncated
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
    write_npy(&folder.join("keep.npy"), DType::Int64, keep.len(), keep.iter().map(|id| id.to_le_bytes()))?;
    let weights = found.weights();
    write_npy(
        &folder.join("weights.npy"),
        DType::Float32,
        weights.len(),
        weights.iter().map(|w| w.to_le_bytes()),
    )?;
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
