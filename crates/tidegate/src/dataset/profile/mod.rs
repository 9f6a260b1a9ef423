//! What is in a dataset: one pass over all fields, or what training saw of them.
//!
//! Flow: samples as they are made -> notes (`seen`), on the workers -> `Collector`, in the order of samples -> [`Profile`] -> advice, drift, a page.
//! Memory: declared before the pass (account `telemetry`); about 300 KiB a field, and what tells the few values of a field from each other.
//!
//! All that depends on the order is fed by one thread in the order of samples, and all that is made by many is of one sample alone, or counts: so a
//! profile has the same bits for any number of workers and any budget, but for KLL and REQ, whose library draws bits of its own.

mod advice;
mod diff;
mod field;
mod measure;
mod page;
mod seen;
mod stored;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tidegate_core::memory::{Account, Budget, Grant, Priority};
use tidegate_data::batch::Layout;
use tidegate_data::cache::codec::{CANDIDATES, Codec, Packer};
use tidegate_data::pipeline::observer::{Note, Observer, Sample};
use tidegate_decode::Value;
use tidegate_source::Source;

pub use self::advice::{Advice, Padding, Quantized, padding};
pub use self::diff::{Diff, Drift, Shared};
pub use self::field::{Field, Tally};
pub use self::measure::{Measure, Summary};
pub use self::seen::{Exact, Histogram, Label, Sort};
use self::seen::{Seen, Watched};
pub use self::stored::path_of;
use crate::dataset::scan::{self, Failed, Progress};
use crate::{Error, Options, Result};

/// One of so many samples is packed for a probe, if it is worth packing at all.
const PROBED: u64 = 64;
const PACKED_BYTES: usize = 64;

/// See the head of this file.
#[derive(Debug)]
pub struct Profile {
    /// The path or words that opened the data.
    pub name: String,
    /// Of the data.
    pub fingerprint: u64,
    /// Of the files.
    pub edition: u64,
    /// Names of classes, where labels are folders.
    pub classes: Vec<String>,
    /// Samples that were seen.
    pub samples: u64,
    /// Samples that there are.
    pub of: u64,
    /// Samples that could not be made.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failed>,
    /// Bytes of a sample as it is stored.
    pub bytes: Measure,
    /// The fields that were delivered.
    pub fields: Vec<Field>,
}

impl Profile {
    fn empty(source: &dyn Source, edition: u64, watched: &[Watched]) -> Result<Self> {
        let field = |one: &Watched| {
            let alike = watched.iter().filter(|other| other.sort == one.sort).count();
            Field::new(one, alike)
        };
        Ok(Self {
            name: source.name().to_owned(),
            fingerprint: source.fingerprint(),
            edition,
            classes: source.classes().to_vec(),
            samples: 0,
            of: source.len(),
            failed: 0,
            failures: Vec::new(),
            bytes: Measure::new()?,
            fields: watched.iter().map(field).collect::<Result<_>>()?,
        })
    }

    /// Profiles a dataset in one pass, in which samples that cannot be made are left out and named. `options` say which fields, how many workers, and
    /// may say how large batches are; `progress` is told how many samples of how many are done, and its error ends the pass.
    ///
    /// # Errors
    /// As [`crate::Loader::new`] and its epochs; whatever `progress` returns.
    pub fn of(
        source: Arc<dyn Source>,
        options: Options,
        budget: &Budget,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let mut loader = scan::loader(&source, &Options { profile: true, ..options }, budget)?;
        let _they_are_in_the_profile = scan::run(&mut loader, progress)?;
        loader
            .take_profile()
            .unwrap_or_else(|| Err(Error::Config("a pass that profiles nothing: please report this".into())))
    }

    /// Takes what is known of other data, with the same fields: of the parts of a dataset, or of the ranks that saw them.
    ///
    /// # Errors
    /// [`Error::Config`] where the fields are others.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let names = |profile: &Self| {
            let fields = profile.fields.iter();
            fields.map(|f| format!("{} ({:?})", f.name, f.sort)).collect::<Vec<_>>()
        };
        if names(self) != names(other) {
            return Err(Error::Config(format!(
                "profiles of other fields cannot be merged: {:?} and {:?}",
                names(self),
                names(other)
            )));
        }
        for (one, other) in self.fields.iter_mut().zip(&other.fields) {
            one.merge(other)?;
        }
        self.bytes.merge(&other.bytes)?;
        // Parts of one dataset are not more than it has.
        let parts = self.fingerprint == other.fingerprint
            && self.samples + self.failed + other.samples + other.failed <= self.of;
        if !parts {
            self.of += other.of;
            self.name = format!("{} and {}", self.name, other.name);
            self.fingerprint ^= other.fingerprint.rotate_left(1);
        }
        if self.classes != other.classes {
            self.classes.clear();
        }
        self.samples += other.samples;
        self.failed += other.failed;
        scan::joined(&mut self.failures, &other.failures);
        Ok(())
    }

    /// The field of this name.
    ///
    /// # Errors
    /// [`Error::Config`] naming those that there are.
    pub fn field(&self, name: &str) -> Result<&Field> {
        self.fields.iter().find(|field| field.name == name).ok_or_else(|| {
            let names: Vec<_> = self.fields.iter().map(|field| field.name.as_str()).collect();
            Error::Config(format!("this profile has no field {name:?}; it has {}", names.join(", ")))
        })
    }

    /// What people read of it.
    ///
    /// # Errors
    /// None that is known.
    pub fn summary(&self) -> Result<serde_json::Value> {
        let mut fields = serde_json::Map::new();
        for field in &self.fields {
            let distinct = field.differ()?;
            let measures: serde_json::Map<_, _> = field
                .sort
                .measures()
                .iter()
                .zip(&field.measures)
                .map(|(name, measure)| ((*name).to_owned(), json!(measure.summary())))
                .collect();
            let values: serde_json::Map<_, _> =
                field.tally.counts.iter().map(|(label, n)| (label.to_string(), json!(n))).collect();
            let known = json!({
                "kind": field.kind,
                "sort": field.sort,
                "measures": measures,
                "distinct": {"estimate": distinct.value, "low": distinct.low, "high": distinct.high},
                "missing": field.missing,
                "values": if field.tally.beyond || field.tally.counts.is_empty() { None } else { Some(values) },
                "entropy_bits": field.entropies(),
                "channels": field.channels.iter().map(Measure::summary).collect::<Vec<_>>(),
                "advice": Advice::of(field),
            });
            fields.insert(field.name.clone(), known);
        }
        Ok(json!({
            "name": self.name,
            "samples": self.samples,
            "of": self.of,
            "failed": self.failed,
            "failures": self.failures,
            "bytes": self.bytes.summary(),
            "fields": fields,
        }))
    }
}

/// What is noted of a sample.
struct Noted {
    bytes: u64,
    seen: Vec<Seen>,
    /// Of each column that was packed: its bytes, and what each codec made of them.
    packed: Vec<(usize, u64, [u64; CANDIDATES.len()])>,
}

/// Collects a profile while a loader makes samples.
pub(crate) struct Collector {
    watched: Vec<Watched>,
    source: Arc<dyn Source>,
    edition: u64,
    profile: Mutex<Profile>,
    packer: Mutex<Packer>,
    finished: AtomicBool,
    memory: Grant,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Collector({} columns, {} B)", self.watched.len(), self.memory.bytes())
    }
}

impl Collector {
    /// Of the columns of a loader, with its memory reserved.
    pub(crate) fn new(source: Arc<dyn Source>, layout: &Layout, budget: &Budget) -> Result<Self> {
        let watched = Watched::of(layout);
        // Asked once: it looks at every file.
        let edition = source.edition();
        let profile = Profile::empty(&*source, edition, &watched)?;
        let fields = profile.fields.iter().map(Field::most_bytes).sum::<u64>() + Measure::MOST_BYTES;
        let packs = watched.iter().any(|w| packable(w.sort));
        let packer = if packs { Packer::room_bytes(source.extremes().sample_bytes) } else { 0 };
        Ok(Self {
            memory: budget.try_acquire(Account::Telemetry, fields + packer, Priority::NextBatch)?,
            packer: Mutex::default(),
            finished: AtomicBool::new(false),
            profile: Mutex::new(profile),
            watched,
            source,
            edition,
        })
    }

    /// What it holds of the budget.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn profile(&self) -> MutexGuard<'_, Profile> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an epoch was seen to its end.
    pub(crate) fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    fn empty(&self) -> Result<Profile> {
        Profile::empty(&*self.source, self.edition, &self.watched)
    }

    /// An epoch begins: what came of one that was left counts no more.
    pub(crate) fn begin(&self) -> Result<()> {
        *self.profile() = self.empty()?;
        Ok(())
    }

    /// So many samples have failed, the first of them these.
    pub(crate) fn note_failed(&self, (failed, failures): (u64, Vec<Failed>)) {
        let mut profile = self.profile();
        (profile.failed, profile.failures) = (failed, failures);
    }

    /// The epoch has come to its end.
    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// A copy of what was collected so far.
    pub(crate) fn copy(&self) -> Result<Profile> {
        self.profile().again()
    }

    /// What was collected; nothing is left.
    pub(crate) fn take_away(&self) -> Result<Profile> {
        Ok(std::mem::replace(&mut *self.profile(), self.empty()?))
    }

    fn pack(&self, values: &[Value<'_>]) -> Vec<(usize, u64, [u64; CANDIDATES.len()])> {
        let mut packer = self.packer.lock().unwrap_or_else(PoisonError::into_inner);
        let columns = self.watched.iter().enumerate().filter(|(_, w)| packable(w.sort));
        let values = columns.filter_map(|(c, w)| match values.get(w.field()) {
            Some(Value::Bytes(bytes)) if bytes.len() >= PACKED_BYTES => Some((c, *bytes)),
            _ => None,
        });
        let packed = values.map(|(c, bytes)| {
            let len = |codec| packer.pack(codec, bytes).map_or(bytes.len(), <[u8]>::len) as u64;
            (c, bytes.len() as u64, CANDIDATES.map(len))
        });
        packed.collect()
    }
}

/// Whether it is stored so that a codec could gain something: pictures are packed, and numbers are too few bytes.
fn packable(sort: Sort) -> bool {
    matches!(sort, Sort::Text | Sort::Bytes | Sort::Array)
}

fn codec_name(codec: Codec) -> String {
    match codec {
        Codec::Shuffled(width) => format!("shuffle{width} and zstd"),
        other => other.name().to_owned(),
    }
}

impl Observer for Collector {
    fn note_bytes(&self) -> u64 {
        let packed = size_of::<(usize, u64, [u64; CANDIDATES.len()])>() * self.watched.len();
        (size_of::<Noted>() + packed) as u64 + self.watched.iter().map(Watched::note_bytes).sum::<u64>()
    }

    fn see(&self, sample: &Sample<'_>) -> Note {
        let columns = self.watched.iter().zip(sample.made);
        Box::new(Noted {
            bytes: sample.stored.len() as u64,
            seen: columns.map(|(watched, made)| watched.see(sample.values, *made)).collect(),
            packed: if sample.id.is_multiple_of(PROBED) { self.pack(sample.values) } else { Vec::new() },
        })
    }

    fn take(&self, notes: Vec<Note>) -> Result<()> {
        let mut profile = self.profile();
        let mut columns: Vec<Vec<Seen>> =
            self.watched.iter().map(|_| Vec::with_capacity(notes.len())).collect();
        let mut bytes = Vec::with_capacity(notes.len());
        for noted in notes.into_iter().filter_map(|note| note.downcast::<Noted>().ok()) {
            bytes.push(noted.bytes as f64);
            for (c, unpacked, packed) in noted.packed {
                let sums = &mut profile.fields[c].packed;
                *sums.entry(field::UNPACKED.to_owned()).or_default() += unpacked;
                for (codec, bytes) in CANDIDATES.into_iter().zip(packed) {
                    *sums.entry(codec_name(codec)).or_default() += bytes;
                }
            }
            columns.iter_mut().zip(noted.seen).for_each(|(column, seen)| column.push(seen));
        }
        profile.samples += bytes.len() as u64;
        profile.bytes.add(&bytes);
        for (field, seen) in profile.fields.iter_mut().zip(columns) {
            field.add(seen)?;
        }
        Ok(())
    }
}
