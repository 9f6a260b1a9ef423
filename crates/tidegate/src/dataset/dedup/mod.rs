//! Duplicates in a dataset: which samples are the same, or nearly so, and what to make of it. Nothing is deleted.
//!
//! Flow: samples as they are made -> `signatures`, on the workers -> `sorted` keys -> candidates -> compared by their signatures -> [`Duplicates`].
//! Memory: within the budget: the loader's, a quarter of it for keys (account `index`), and four bytes a sample for what belongs together. Signatures, and
//! keys beyond that, lie in a folder, in files without a name. What is found, 24 bytes a duplicate, is the caller's.
//!
//! Samples that are alike share a key with a stated chance (`tidegate_sketch::neighbour::lsh`), and are joined where their signatures say so; what is
//! joined to the same sample belongs together (Tarjan's union-find). Of each such cluster the first sample is kept.

mod image_hash;
mod signatures;
mod sorted;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tidegate_core::memory::{Account, Budget, Grant, Priority};
use tidegate_data::batch::{FieldSpec, ImageSpec};
use tidegate_data::pipeline::observer::{Note, Observer, Sample};
use tidegate_decode::Kind;
use tidegate_source::Source;

pub use self::signatures::By;
use self::signatures::{Mark, Marker};
use self::sorted::{Dropped, Sorted};
use crate::atomic_file;
use crate::dataset::scan::{self, Failed, Progress};
use crate::{Error, Options, Result};

/// Keys in memory at most, however large the budget.
const KEYS_MOST_BYTES: u64 = 1 << 30;
/// Samples of one key that stand for a cluster each, and are compared with those that follow.
const STANDING: usize = 256;

/// What is searched for.
#[derive(Debug, Clone)]
pub struct Search {
    /// What makes two samples duplicates.
    pub by: By,
    /// The field that tells; by default the only one that fits, or for bytes the only picture, else all fields together.
    pub field: Option<String>,
    /// The least similarity of duplicates, in (0, 1]; by default [`By::threshold`].
    pub threshold: Option<f64>,
    /// Where signatures lie, and keys that memory has no room for; by default beside the data's index, or where temporary files do.
    pub folder: Option<PathBuf>,
    /// Threads.
    pub workers: Option<usize>,
}

/// A sample and the one that is kept in its place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Duplicate {
    /// The sample.
    pub index: u64,
    /// The first of its cluster.
    pub of: u64,
    /// How alike the two are, as far as their signatures tell; of a cluster not all need be alike.
    pub similarity: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Duplicates {
    /// Samples that there are.
    pub samples: u64,
    /// The field that told, or "all fields".
    pub field: String,
    /// Clusters of two samples and more.
    pub clusters: u64,
    /// Each sample that another is kept for, in ascending order.
    pub duplicates: Vec<Duplicate>,
    /// Samples that could not be made, and stand for themselves.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failed>,
    /// Pairs of signatures that were compared.
    pub compared: u64,
    /// Samples that were compared with only the last of those that share a key with them, so many are they: some of their duplicates may be missing.
    pub crowded: u64,
    /// Bytes of keys and signatures that were written to the folder.
    pub spilled_bytes: u64,
}

impl Duplicates {
    /// Finds the duplicates of a dataset in one pass.
    ///
    /// # Errors
    /// [`Error::Config`] for a field that does not fit, or a threshold that means nothing; a budget that is too small; a folder that cannot be written.
    pub fn of(
        source: &Arc<dyn Source>,
        search: &Search,
        budget: &Budget,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let field = search.field_of(&**source)?;
        let marker = Marker::new(search.by, field, search.threshold.unwrap_or(search.by.threshold()))?;
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
        let marking = Arc::new(Marking::new(&**source, search, marker, &options, budget)?);
        let mut loader = scan::loader(source, &options, budget)?;
        loader.set_observer(Arc::clone(&marking) as _);
        let (failed, failures) = scan::run(&mut loader, progress)?;
        drop(loader);
        let marking = Arc::into_inner(marking)
            .ok_or_else(|| Error::Config("a pass that goes on: please report this".into()))?;
        let found = marking.end()?;
        Ok(Self { samples: source.len(), field: name, failed, failures, ..found })
    }

    /// The samples that are kept, in ascending order.
    #[must_use]
    pub fn keep(&self) -> Vec<u64> {
        let mut gone = self.duplicates.iter().map(|d| d.index).peekable();
        (0..self.samples).filter(|index| gone.next_if_eq(index).is_none()).collect()
    }

    /// For each sample one over the size of its cluster: what a sampler draws it by so that every content comes as often.
    #[must_use]
    pub fn weights(&self) -> Vec<f32> {
        let mut sizes = std::collections::BTreeMap::<u64, u32>::new();
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
            By::Bytes => !matches!(kind, Kind::Int | Kind::Float),
            By::Pixels | By::Picture => matches!(kind, Kind::Image | Kind::Pixels),
            By::Text => matches!(kind, Kind::Text | Kind::Json),
        }
    }

    /// The field that tells, or none for all of them.
    fn field_of(&self, source: &dyn Source) -> Result<Option<usize>> {
        let what = match self.by {
            By::Bytes => "bytes",
            By::Pixels | By::Picture => "pictures",
            By::Text => "text",
        };
        let schema = source.schema();
        if let Some(name) = &self.field {
            let field = scan::known(source, name)?;
            if !self.fits(&field.kind) {
                return Err(Error::Config(format!("field {name:?} holds {}, not {what}", field.kind.name())));
            }
            return Ok(schema.iter().position(|field| field.name == *name));
        }
        let picture = |kind: &Kind| matches!(kind, Kind::Image | Kind::Pixels);
        let wanted = |kind: &Kind| if self.by == By::Bytes { picture(kind) } else { self.fits(kind) };
        let found: Vec<usize> = (0..schema.len()).filter(|&c| wanted(&schema[c].kind)).collect();
        let words = |columns: &[usize]| {
            let field = |&c: &usize| format!("{} ({})", schema[c].name, schema[c].kind.name());
            columns.iter().map(field).collect::<Vec<_>>().join(", ")
        };
        match found[..] {
            [one] => Ok(Some(one)),
            _ if self.by == By::Bytes => Ok(None),
            [] => {
                let all: Vec<usize> = (0..schema.len()).collect();
                Err(Error::Config(format!("no field holds {what}: {}", words(&all))))
            }
            _ => Err(Error::Config(format!("several fields hold {what}: say which one: {}", words(&found)))),
        }
    }

    /// What of the field is made for it.
    fn spec(&self, kind: &Kind) -> FieldSpec {
        let side = image_hash::SIDE as u32;
        match self.by {
            By::Bytes if matches!(kind, Kind::Int | Kind::Float) => FieldSpec::inferred(kind),
            By::Bytes => FieldSpec::Bytes,
            By::Pixels => FieldSpec::inferred(kind),
            By::Text => FieldSpec::Text,
            By::Picture => {
                FieldSpec::Image(ImageSpec { size: Some((side, side)), draft: true, ..ImageSpec::default() })
            }
        }
    }
}

/// Takes marks in the order of samples.
#[derive(Debug)]
struct Marking {
    marker: Marker,
    kept: Mutex<Kept>,
    samples: u64,
    /// Keys, what is not yet written, and what workers take.
    memory: Grant,
}

#[derive(Debug)]
struct Kept {
    keys: Sorted,
    signatures: Dropped,
    /// Samples whose signature is written.
    marked: u64,
}

impl Marking {
    fn new(
        source: &dyn Source,
        search: &Search,
        marker: Marker,
        options: &Options,
        budget: &Budget,
    ) -> Result<Self> {
        if source.len() > u64::from(u32::MAX) {
            return Err(Error::Config(format!(
                "{} samples are too many: search parts of at most 2^32 - 1",
                source.len()
            )));
        }
        let all = source.len() * marker.keys() as u64;
        let room = (budget.cap_bytes() / 4).min(KEYS_MOST_BYTES) / 16;
        let keys = room.min(all).max(1024);
        let working = options.workers() as u64 * marker.working_bytes(source.extremes().sample_bytes);
        // A file of keys and one of signatures; and what belongs together, when all are seen.
        let bytes = 16 * keys + 2 * Dropped::MOST_BYTES + working + 4 * source.len();
        let folder = search.folder.clone().or_else(|| source.side_car().map(Path::to_owned));
        let (folder, most) = (&folder.unwrap_or_else(std::env::temp_dir), keys as usize);
        Ok(Self {
            memory: budget.try_acquire(Account::Index, bytes, Priority::NextBatch)?,
            kept: Mutex::new(Kept {
                keys: Sorted::new(folder, most),
                signatures: Dropped::new(folder)?,
                marked: 0,
            }),
            samples: source.len(),
            marker,
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares what shares a key.
    fn end(self) -> Result<Duplicates> {
        let Self { marker, kept, samples, memory: _memory } = self;
        let Kept { keys, mut signatures, .. } = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        signatures.flush()?;
        let signature_bytes = signatures.bytes();
        let mut clusters = Clusters::new(samples as usize);
        let mut counts = Counts::default();
        let shelf = Shelf { file: signatures, bytes: marker.signature_bytes() };
        let key_bytes = keys.groups(&mut |ids| compare(ids, &marker, &shelf, &mut clusters, &mut counts))?;
        let mut found = Vec::new();
        let mut sizes = std::collections::BTreeSet::new();
        for index in 0..samples {
            let of = clusters.first_of(index);
            if of != index {
                sizes.insert(of);
                let similarity = marker.similarity(&shelf.signature(of)?, &shelf.signature(index)?);
                found.push(Duplicate { index, of, similarity });
            }
        }
        Ok(Duplicates {
            samples,
            field: String::new(),
            clusters: sizes.len() as u64,
            duplicates: found,
            failed: 0,
            failures: Vec::new(),
            compared: counts.compared,
            crowded: counts.crowded,
            spilled_bytes: key_bytes + signature_bytes,
        })
    }
}

impl Observer for Marking {
    fn note_bytes(&self) -> u64 {
        self.marker.note_bytes()
    }

    fn see(&self, sample: &Sample<'_>) -> Note {
        Box::new(self.marker.mark(sample))
    }

    fn take(&self, notes: Vec<Note>) -> Result<()> {
        let kept = &mut *self.kept();
        let none = vec![0; self.marker.signature_bytes()];
        for mark in notes.into_iter().filter_map(|note| note.downcast::<Mark>().ok()) {
            // Samples that failed have none.
            for _ in kept.marked..mark.index {
                kept.signatures.write(&none)?;
            }
            kept.signatures.write(&mark.signature)?;
            kept.marked = mark.index + 1;
            for key in mark.keys {
                kept.keys.push((key, mark.index))?;
            }
        }
        Ok(())
    }
}

/// How much was compared, and how much was not.
#[derive(Default)]
struct Counts {
    compared: u64,
    crowded: u64,
}

/// Joins the samples of one key that are alike: each is compared with those before it that stand for a cluster.
fn compare(
    ids: &[u64],
    marker: &Marker,
    shelf: &Shelf,
    clusters: &mut Clusters,
    counts: &mut Counts,
) -> Result<()> {
    let mut standing: Vec<(u64, Vec<u8>)> = Vec::new();
    for &id in ids {
        let known = clusters.first_of(id);
        if standing.iter().any(|(of, _)| clusters.first_of(*of) == known) {
            continue;
        }
        let signature = shelf.signature(id)?;
        let alike = standing.iter().find(|(_, of)| {
            counts.compared += 1;
            marker.alike(marker.similarity(of, &signature))
        });
        match alike {
            Some((of, _)) => clusters.join(*of, id),
            None if standing.len() < STANDING => standing.push((id, signature)),
            None => {
                counts.crowded += 1;
                standing[(counts.crowded as usize) % STANDING] = (id, signature);
            }
        }
    }
    Ok(())
}

/// Reads signatures.
struct Shelf {
    file: Dropped,
    bytes: usize,
}

impl Shelf {
    fn signature(&self, index: u64) -> Result<Vec<u8>> {
        let mut signature = vec![0; self.bytes];
        self.file.read(index * self.bytes as u64, &mut signature)?;
        Ok(signature)
    }
}

/// What belongs together: each sample points towards the first of its cluster.
struct Clusters(Vec<u32>);

impl Clusters {
    fn new(samples: usize) -> Self {
        Self((0..samples as u32).collect())
    }

    fn first_of(&mut self, index: u64) -> u64 {
        let mut at = index as usize;
        while self.0[at] as usize != at {
            // Half the way for whoever comes next.
            self.0[at] = self.0[self.0[at] as usize];
            at = self.0[at] as usize;
        }
        at as u64
    }

    fn join(&mut self, one: u64, other: u64) {
        let (one, other) = (self.first_of(one), self.first_of(other));
        self.0[one.max(other) as usize] = one.min(other) as u32;
    }
}

/// Writes a row of numbers in NumPy's format, whole or not at all.
pub(crate) fn write_npy<const N: usize>(
    path: &Path,
    descr: &str,
    len: usize,
    mut values: impl Iterator<Item = [u8; N]>,
) -> Result<()> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({len},), }}");
    // The data begin at a multiple of 64, after ten bytes, the header and its end of line.
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    atomic_file::write_whole(path, |out| {
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        values.try_for_each(|value| out.write_all(&value))
    })
}
