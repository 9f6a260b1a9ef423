//! `tidegate profile`: what is in a dataset, how two differ, and parts put together.
//!
//! Flow: a dataset -> `crate::dataset::profile` -> a file beside it, text, JSON, a page; two profiles -> how they differ.
//! Memory: the budget that is given.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use tidegate_core::memory::Budget;
use tidegate_data::batch::FieldSpec;
use tidegate_data::{Error, Result};
use tidegate_source::{Source, open};

use crate::dataset::profile::{Diff, Profile, path_of};
use crate::dataset::scan;
use crate::{Options, atomic_file};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ProfileArgs {
    /// The data set.
    #[arg(required = true)]
    source: Option<String>,
    /// The budget.
    #[arg(long, default_value = "256MiB")]
    memory: String,
    /// Decoding threads.
    #[arg(long)]
    workers: Option<usize>,
    /// Only these fields, parted by commas.
    #[arg(long, value_delimiter = ',')]
    fields: Vec<String>,
    /// Where to write it; by default beside the data's index.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write a page with histograms.
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
    /// How two datasets differ, field by field: a test, and how large the difference is.
    #[command(after_help = "Example:\n  tidegate profile diff train.json val.json")]
    Diff {
        /// A profile, or a dataset that has one beside it.
        one: String,
        /// Another.
        other: String,
        /// From which effect on (0 to 1) a difference matters.
        #[arg(long, default_value_t = 0.1)]
        effect: f64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put profiles of parts of a dataset together.
    #[command(after_help = "Example:\n  tidegate profile merge part1.json part2.json --out whole.json")]
    Merge {
        /// The profiles.
        #[arg(required = true, num_args = 2..)]
        parts: Vec<String>,
        /// Where to write it.
        #[arg(long)]
        out: PathBuf,
    },
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Config(e.to_string()))
}

/// The named fields, as they are inferred.
fn named(source: &dyn Source, names: &[String]) -> Result<Vec<(String, FieldSpec)>> {
    let field = |name: &String| Ok((name.clone(), FieldSpec::inferred(&scan::known(source, name)?.kind)));
    names.iter().map(field).collect()
}

impl ProfileArgs {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Some(Command::Diff { one, other, effect, json: false }) => {
                print!("{}", Diff::of(&Profile::find(&one)?, &Profile::find(&other)?, effect)?);
                Ok(())
            }
            Some(Command::Diff { one, other, effect, json: true }) => {
                println!("{}", json(&Diff::of(&Profile::find(&one)?, &Profile::find(&other)?, effect)?)?);
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
                println!("{} samples in {}", whole.samples, out.display());
                Ok(())
            }
            None => self.profile(),
        }
    }

    fn profile(self) -> Result<()> {
        let source = open(&self.source.unwrap_or_default(), false)?;
        let options = Options {
            fields: named(&*source, &self.fields)?,
            only: !self.fields.is_empty(),
            workers: self.workers,
            ..Options::default()
        };
        let budget = Budget::new(super::bytes(&self.memory)?);
        let progress = |done, of| {
            super::progress("profiled", done, of);
            Ok(())
        };
        // Of some fields only, it does not take the place of the whole.
        let out = match self.out {
            None if self.fields.is_empty() => Some(path_of(&*source)?),
            given => given,
        };
        // Before the pass, which would be lost.
        out.iter().chain(&self.html).try_for_each(|path| atomic_file::check_folder(path))?;
        let profile = Profile::of(Arc::clone(&source), options, &budget, &progress)?;
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
            None if !self.json => println!("not kept, as it is of some fields only: give --out"),
            _ => {}
        }
        Ok(())
    }
}
