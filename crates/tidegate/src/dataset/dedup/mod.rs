//! Finds duplicates in a dataset: samples that are the same or similar. It deletes nothing.
//!
//! Flow: one scan -> `signatures`, on the workers -> `external_sort` of keys -> `collector`
//! compares candidates -> [`Duplicates`].
//! Memory: within the budget: the loader's, and what `collector` declares. Signatures, and keys
//! beyond a quarter of the budget, are in temporary files without names. The result is the
//! caller's: 24 bytes a duplicate.
//!
//! Similar samples share a key with a known probability (`tidegate_sketch::neighbour::lsh`).
//! Samples that share a key are joined if their signatures are similar enough. All samples that
//! are joined to one sample form a cluster, of which the first sample is kept.

mod collector;
mod external_sort;
mod image_hash;
mod signatures;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tidegate_array::DType;
use tidegate_array::npy::header_of;
use tidegate_core::memory::Budget;
use tidegate_data::batch::{FieldSpec, ImageSpec};
use tidegate_decode::Kind;
use tidegate_source::Source;

use self::collector::SignatureCollector;
pub use self::signatures::Criterion;
use self::signatures::Signer;
use super::scan::{self, Progress, find_field};
use crate::atomic_file::write_whole;
use crate::loader::FailedSample;
use crate::{Error, Options, Result};

/// What to search for, and where to put temporary files.
#[derive(Debug, Clone)]
pub struct Search {
    /// What makes two samples duplicates.
    pub by: Criterion,
    /// The field to compare. By default the only field that fits `by`; for bytes the only image
    /// field, else all fields together.
    pub field: Option<String>,
    /// The smallest similarity of duplicates, in (0, 1]; by default [`Criterion::threshold`].
    pub threshold: Option<f64>,
    /// The folder for signatures and for keys that do not fit in memory. By default the folder of
    /// the data's index, or the system's temporary folder.
    pub folder: Option<PathBuf>,
    /// Decoding threads; by default the cores that this process may use.
    pub workers: Option<usize>,
}

/// A sample, and the one that is kept in its place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Duplicate {
    /// The index of the sample.
    pub index: u64,
    /// The index of the first sample of its cluster.
    pub of: u64,
    /// The similarity of their signatures, from 0 to 1. Not all samples of a cluster need be
    /// similar to the first.
    pub similarity: f64,
}

/// The duplicates of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Duplicates {
    /// All samples of the dataset.
    pub samples: u64,
    /// The field that was compared, or "all fields".
    pub field: String,
    /// Clusters of two or more samples.
    pub clusters: u64,
    /// The samples that are not kept, in ascending order.
    pub duplicates: Vec<Duplicate>,
    /// Samples that could not be decoded. They are kept.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<FailedSample>,
    /// Pairs of signatures that were compared.
    pub compared: u64,
    /// Samples that share a key with more than 256 clusters. They were compared with the last 256
    /// only, so some of their duplicates may be missing.
    #[serde(rename = "crowded")]
    pub truncated: u64,
    /// Bytes of keys and signatures that were written to temporary files.
    pub spilled_bytes: u64,
}

impl Duplicates {
    /// Finds the duplicates of a dataset in one scan.
    ///
    /// `progress` is called with (samples done, samples in all); its error ends the scan.
    ///
    /// # Errors
    /// [`Error::Config`] for a field or a threshold that does not fit the criterion; a budget that
    /// is too small; a folder that cannot be written.
    pub fn find(
        source: &Arc<dyn Source>,
        search: &Search,
        budget: &Budget,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let field = search.find_field(&**source)?;
        let signer = Signer::new(search.by, field, search.threshold.unwrap_or(search.by.threshold()))?;
        let fields: Vec<_> = match field {
            Some(field) => vec![&source.schema()[field]],
            None => source.schema().iter().collect(),
        };
        let name = field.map_or("all fields", |field| &source.schema()[field].name).to_owned();
        let options = Options {
            fields: fields.iter().map(|field| (field.name.clone(), search.spec(&field.kind))).collect(),
            only: true,
            workers: search.workers,
            ..Options::default()
        };
        let collector = Arc::new(SignatureCollector::new(&**source, search, signer, &options, budget)?);
        let mut loader = scan::loader(source, &options, budget, None)?;
        loader.set_observer(Arc::clone(&collector) as _);
        let failed = scan::run(&mut loader, progress)?;
        drop(loader);
        let collector =
            Arc::into_inner(collector).ok_or_else(|| Error::Internal("a scan that has not ended".into()))?;
        let found = collector.into_duplicates()?;
        let (failed, failures) = (failed.count, failed.first);
        Ok(Self { samples: source.len(), field: name, failed, failures, ..found })
    }

    /// The indexes of the samples that are kept, in ascending order.
    #[must_use]
    pub fn keep(&self) -> Vec<u64> {
        let mut removed = self.duplicates.iter().map(|d| d.index).peekable();
        (0..self.samples).filter(|index| removed.next_if_eq(index).is_none()).collect()
    }

    /// A weight for each sample: one over the size of its cluster. A sampler that draws by these
    /// weights draws every cluster equally often.
    #[must_use]
    pub fn weights(&self) -> Vec<f32> {
        let mut sizes = BTreeMap::<u64, u32>::new();
        self.duplicates.iter().for_each(|d| *sizes.entry(d.of).or_insert(1) += 1);
        let mut weights = vec![1.0; self.samples as usize];
        let weight = |of: u64| 1.0 / sizes.get(&of).copied().unwrap_or(1) as f32;
        sizes.keys().for_each(|&of| weights[of as usize] = weight(of));
        self.duplicates.iter().for_each(|d| weights[d.index as usize] = weight(d.of));
        weights
    }
}

impl Search {
    fn fits(&self, kind: &Kind) -> bool {
        match self.by {
            Criterion::Bytes => !matches!(kind, Kind::Int | Kind::Float),
            Criterion::Pixels | Criterion::Image => matches!(kind, Kind::Image | Kind::Pixels),
            Criterion::Text => matches!(kind, Kind::Text | Kind::Json),
        }
    }

    /// The index of the field to compare; none for all fields together.
    fn find_field(&self, source: &dyn Source) -> Result<Option<usize>> {
        let what = match self.by {
            Criterion::Bytes => "bytes",
            Criterion::Pixels | Criterion::Image => "images",
            Criterion::Text => "text",
        };
        let schema = source.schema();
        if let Some(name) = &self.field {
            let field = find_field(source, name)?;
            if !self.fits(&field.kind) {
                return Err(Error::Config(format!("field {name:?} holds {}, not {what}", field.kind.name())));
            }
            return Ok(schema.iter().position(|field| field.name == *name));
        }
        let image = |kind: &Kind| matches!(kind, Kind::Image | Kind::Pixels);
        let wanted = |kind: &Kind| if self.by == Criterion::Bytes { image(kind) } else { self.fits(kind) };
        let found: Vec<usize> = (0..schema.len()).filter(|&c| wanted(&schema[c].kind)).collect();
        let words = |columns: &[usize]| {
            let field = |&c: &usize| format!("{} ({})", schema[c].name, schema[c].kind.name());
            columns.iter().map(field).collect::<Vec<_>>().join(", ")
        };
        match found[..] {
            [one] => Ok(Some(one)),
            _ if self.by == Criterion::Bytes => Ok(None),
            [] => {
                let all: Vec<usize> = (0..schema.len()).collect();
                Err(Error::Config(format!("no field holds {what}: {}", words(&all))))
            }
            _ => Err(Error::Config(format!("several fields hold {what}: say which one: {}", words(&found)))),
        }
    }

    /// How the loader delivers a field.
    fn spec(&self, kind: &Kind) -> FieldSpec {
        let side = image_hash::SIDE as u32;
        match self.by {
            Criterion::Bytes if matches!(kind, Kind::Int | Kind::Float) => FieldSpec::inferred(kind),
            Criterion::Bytes => FieldSpec::Bytes,
            Criterion::Pixels if *kind == Kind::Image => FieldSpec::Image(scan::scanned_image()),
            Criterion::Pixels => FieldSpec::inferred(kind),
            Criterion::Text => FieldSpec::Text,
            Criterion::Image => {
                FieldSpec::Image(ImageSpec { size: Some((side, side)), draft: true, ..scan::scanned_image() })
            }
        }
    }
}

/// Writes a one-dimensional array as a NumPy file, whole or not at all.
pub(crate) fn write_npy<const N: usize>(
    path: &Path,
    dtype: DType,
    len: usize,
    mut values: impl Iterator<Item = [u8; N]>,
) -> Result<()> {
    write_whole(path, |out| {
        out.write_all(&header_of(dtype, &[len]))?;
        values.try_for_each(|value| out.write_all(&value))
    })
}
