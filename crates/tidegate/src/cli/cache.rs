//! `tidegate cache`: what memory would give, before training.
//!
//! Flow: a data set and sizes -> [`crate::Curve`] -> a table with bars.
//! Memory: see `loader::cache_curve`.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use clap::{Args, Subcommand};
use tidegate_core::memory::Budget;
use tidegate_core::memory::size::Size;
use tidegate_data::Result;
use tidegate_data::batch::{Crop, FieldSpec, ImageSpec};
use tidegate_decode::Kind;
use tidegate_order::Shuffle;
use tidegate_source::open;

use crate::{Loader, Options, WhatIf};

#[derive(Debug, Subcommand)]
pub(super) enum Cache {
    /// Hits, bytes to read and samples a second without a stall, for several amounts of memory.
    #[command(
        after_help = "Example:\n  tidegate cache plan photos --memory 64MiB,128MiB,256MiB,512MiB --rate 2000"
    )]
    Plan(Plan),
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The data set.
    source: String,
    /// Budgets, parted by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    memory: Vec<String>,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64)]
    batch_size: u64,
    /// Side of the pictures in a batch, in pixels; other fields as they are.
    #[arg(long, default_value_t = 224)]
    image_size: u32,
    /// Ids in ascending order rather than shuffled.
    #[arg(long)]
    no_shuffle: bool,
    /// Bytes a second that reading gives, such as 200MiB; measured if it is not given.
    #[arg(long)]
    read: Option<String>,
    /// The samples a second that training takes.
    #[arg(long)]
    rate: Option<f64>,
    /// What a disk cache may take, such as 200GiB.
    #[arg(long)]
    disk: Option<String>,
}

pub(super) fn run(cache: &Cache) -> Result<()> {
    let Cache::Plan(plan) = cache;
    let source = open(&plan.source, false)?;
    let bytes = |text: &String| text.parse::<Size>().and_then(|size| size.bytes());
    let memories = plan.memory.iter().map(bytes).collect::<tidegate_core::Result<Vec<_>>>()?;
    let read = plan.read.as_ref().map(bytes).transpose()?;
    let size = Some((plan.image_size, plan.image_size));
    let picture = |name: &String| {
        let spec = ImageSpec { size, crop: Crop::Random, ..ImageSpec::default() };
        (name.clone(), FieldSpec::Image(spec))
    };
    let pictures = source.schema().iter().filter(|f| matches!(f.kind, Kind::Image | Kind::Pixels));
    let options = Options {
        batch_size: Some(plan.batch_size),
        fields: pictures.map(|f| picture(&f.name)).collect(),
        shuffle: if plan.no_shuffle { Shuffle::None } else { Shuffle::Full },
        ..Options::default()
    };
    let largest = memories.iter().copied().max().unwrap_or(0);
    let loader = Loader::new(source, options, Budget::new(largest))?;
    let disk_bytes = plan.disk.as_ref().map(bytes).transpose()?;
    let read_bytes_per_s = read.map(|bytes| bytes as f64);
    print!("{}", loader.cache_curve(&WhatIf { memories, read_bytes_per_s, rate: plan.rate, disk_bytes })?);
    Ok(())
}
