//! `tidegate check`: reads everything once and lists what is wrong.
//!
//! Flow: a dataset -> `dataset::check` -> text or JSON, and an exit code.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use clap::Args;
use tidegate_core::memory::Budget;
use tidegate_data::{Error, Result};
use tidegate_source::{OpenOptions, open_with};

use super::format::{parse_budget, show_progress};
use crate::Options;
use crate::dataset::check::check;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The dataset.
    source: String,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Decoding threads.
    #[arg(long)]
    workers: Option<usize>,
    /// The split to check, or "all".
    #[arg(long)]
    split: Option<String>,
    /// Check what is there of files that are numbered and not complete.
    #[arg(long)]
    allow_missing: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Returns the exit code: 1 if something is wrong.
    pub(super) fn run(self) -> Result<i32> {
        let Self { source, memory, workers, split, allow_missing, json } = self;
        let source = open_with(&source, &OpenOptions { split, allow_missing, ..OpenOptions::default() })?;
        let budget = Budget::new(parse_budget(&memory)?);
        let options = Options { workers, ..Options::default() };
        let found = check(&source, &options, &budget, &|done, all| {
            show_progress("checked", done, all);
            Ok(())
        })?;
        if json {
            println!("{}", serde_json::to_string(&found).map_err(|e| Error::Internal(e.to_string()))?);
        } else {
            println!("{found}");
        }
        Ok(i32::from(!found.is_fine()))
    }
}
