//! `tidegate profile`: profiles a dataset, compares two profiles, and merges profiles of parts.
//!
//! Flow: a dataset -> `dataset::profile` -> a file next to it, text, JSON, a page; two profiles ->
//! how they differ.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use tidegate_core::memory::Budget;
use tidegate_core::memory::size::counted;
use tidegate_data::batch::FieldSpec;
use tidegate_data::{Error, Result};
use tidegate_source::{Source, open};

use super::format::{parse_budget, show_progress};
use crate::dataset::find_field;
use crate::dataset::profile::{Diff, Profile, default_path};
use crate::{Options, atomic_file};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ProfileArgs {
    /// The dataset.
    #[arg(required = true)]
    source: Option<String>,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Decoding threads.
    #[arg(long)]
    workers: Option<usize>,
    /// Profile only these fields, separated by commas.
    #[arg(long, value_delimiter = ',')]
    fields: Vec<String>,
    /// File for the profile; by default it is next to the data's index.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write an HTML page with histograms.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare two datasets field by field: tests, and how large the differences are.
    #[command(after_help = "Example:\n  tidegate profile diff train.json val.json")]
    Diff {
        /// A profile, or a dataset that has one.
        one: String,
        /// The profile or dataset to compare with.
        other: String,
        /// Smallest effect (0 to 1) that matters.
        #[arg(long, default_value_t = 0.1)]
        effect: f64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Merge the profiles of parts of a dataset.
    #[command(after_help = "Example:\n  tidegate profile merge part1.json part2.json --out whole.json")]
    Merge {
        /// The profiles.
        #[arg(required = true, num_args = 2..)]
        parts: Vec<String>,
        /// File for the merged profile.
        #[arg(long)]
        out: PathBuf,
    },
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Config(e.to_string()))
}

/// The named fields, with inferred types.
fn select_fields(source: &dyn Source, names: &[String]) -> Result<Vec<(String, FieldSpec)>> {
    let field = |name: &String| Ok((name.clone(), FieldSpec::inferred(&find_field(source, name)?.kind)));
    names.iter().map(field).collect()
}

impl ProfileArgs {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Some(Command::Diff { one, other, effect, json: false }) => {
                print!("{}", Diff::new(&Profile::find(&one)?, &Profile::find(&other)?, effect)?);
                Ok(())
            }
            Some(Command::Diff { one, other, effect, json: true }) => {
                println!("{}", json(&Diff::new(&Profile::find(&one)?, &Profile::find(&other)?, effect)?)?);
                Ok(())
            }
            Some(Command::Merge { parts, out }) => {
                let mut parts = parts.iter();
                let Some(first) = parts.next() else { return Ok(()) };
                let mut whole = Profile::find(first)?;
                for part in parts {
                    whole.merge(&Profile::find(part)?)?;
                }
                whole.save(&out)?;
                println!("{} in {}", counted(whole.samples, "sample"), out.display());
                Ok(())
            }
            None => self.profile(),
        }
    }

    fn profile(self) -> Result<()> {
        let source = open(&self.source.unwrap_or_default(), false)?;
        let options = Options {
            fields: select_fields(&*source, &self.fields)?,
            only: !self.fields.is_empty(),
            workers: self.workers,
            ..Options::default()
        };
        let budget = Budget::new(parse_budget(&self.memory)?);
        let progress = |done, of| {
            show_progress("profiled", done, of);
            Ok(())
        };
        // A profile of some fields does not replace that of the whole dataset.
        let out = match self.out {
            None if self.fields.is_empty() => Some(default_path(&*source)?),
            given => given,
        };
        // Fail before the scan, not after it.
        out.iter().chain(&self.html).try_for_each(|path| atomic_file::check_folder(path))?;
        let profile = Profile::scan(Arc::clone(&source), options, &budget, &progress)?;
        if let Some(out) = &out {
            profile.save(out)?;
        }
        if let Some(path) = &self.html {
            let page = profile.to_html()?;
            atomic_file::write_whole(path, |out| out.write_all(page.as_bytes()))?;
        }
        match self.json {
            true => println!("{}", json(&profile.summary()?)?),
            false => print!("{profile}"),
        }
        match out {
            Some(out) if !self.json => println!("profile in {}", out.display()),
            None if !self.json => {
                println!("the profile is of some fields only and was not saved: give --out")
            }
            _ => {}
        }
        Ok(())
    }
}
