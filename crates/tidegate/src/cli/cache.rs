//! `tidegate cache`: predicts what more or less memory would give.
//!
//! Flow: a dataset and sizes -> [`crate::CacheCurve`] -> a table with bars.
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

use crate::{CacheQuery, Loader, Options};

#[derive(Debug, Subcommand)]
pub(super) enum Cache {
    /// Show cache hits, bytes to read and samples a second without a stall for several budgets.
    #[command(
        after_help = "Example:\n  tidegate cache plan photos --memory 64MiB,128MiB,256MiB,512MiB --rate 2000"
    )]
    Plan(Plan),
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The dataset.
    source: String,
    /// Budgets, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    memory: Vec<String>,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64)]
    batch_size: u64,
    /// Side of the images in a batch, in pixels.
    #[arg(long, default_value_t = 224)]
    image_size: u32,
    /// Load ids in ascending order instead of shuffled.
    #[arg(long)]
    no_shuffle: bool,
    /// Bytes a second that reading gives, such as 200MiB; by default it is measured.
    #[arg(long)]
    read: Option<String>,
    /// The samples a second that training takes.
    #[arg(long)]
    rate: Option<f64>,
    /// Size of a disk cache, such as 200GiB.
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
    let image = |name: &String| {
        let spec = ImageSpec { size, crop: Crop::Random, ..ImageSpec::default() };
        (name.clone(), FieldSpec::Image(spec))
    };
    let images = source.schema().iter().filter(|f| matches!(f.kind, Kind::Image | Kind::Pixels));
    let options = Options {
        batch_size: Some(plan.batch_size),
        fields: images.map(|f| image(&f.name)).collect(),
        shuffle: if plan.no_shuffle { Shuffle::None } else { Shuffle::Full },
        ..Options::default()
    };
    let largest = memories.iter().copied().max().unwrap_or(0);
    let loader = Loader::new(source, options, Budget::new(largest))?;
    let disk_bytes = plan.disk.as_ref().map(bytes).transpose()?;
    let read_bytes_per_s = read.map(|bytes| bytes as f64);
    let query = CacheQuery { memories, read_bytes_per_s, rate: plan.rate, disk_bytes };
    print!("{}", loader.cache_curve(&query)?);
    Ok(())
}
