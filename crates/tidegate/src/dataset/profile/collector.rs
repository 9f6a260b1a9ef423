//! Collects a profile while a loader decodes samples.
//!
//! Flow: decoded samples -> notes, on the workers -> [`Collector`], in sample order ->
//! [`Profile`].
//! Memory: all of it is charged to account `telemetry` when the loader is made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tidegate_core::memory::{Account, Budget, Grant, Priority};
use tidegate_core::sync::lock;
use tidegate_data::batch::Layout;
use tidegate_data::cache::codec::{CANDIDATES, Codec, Packer};
use tidegate_data::pipeline::observer::{Note, Observer, Sample};
use tidegate_decode::Value;
use tidegate_source::Source;

use super::Profile;
use super::column_note::{ColumnNote, ValueKind, WatchedColumn};
use super::field::{Field, UNPACKED};
use super::measure::Measure;
use crate::dataset::scan::refuse_patches;
use crate::loader::{EpochObserver, FailedSamples};
use crate::{Error, Loader, Result};

/// Codecs are tried on one sample out of this many.
const CODEC_STEP: u64 = 64;
/// Shorter values are not worth compressing.
const MIN_PACKED_BYTES: usize = 64;

/// The observer that `Options::profile` asks for.
pub(crate) fn observe(
    source: &Arc<dyn Source>,
    layout: &Layout,
    budget: &Budget,
) -> Result<Arc<dyn EpochObserver>> {
    refuse_patches(&**source)?;
    Ok(Arc::new(Collector::new(Arc::clone(source), layout, budget)?))
}

impl Loader {
    /// The profile of the first epoch, complete or so far, if [`crate::Options::profile`] is set.
    #[must_use]
    pub fn profile(&self) -> Option<Result<Profile>> {
        let collector = self.observer_as::<Collector>()?;
        if !collector.is_done() {
            collector.set_failed(self.failed());
        }
        Some(collector.profile().try_clone())
    }

    /// The profile itself, instead of a copy.
    pub(super) fn into_profile(self) -> Result<Profile> {
        match self.observer_as::<Collector>() {
            Some(collector) => collector.take_profile(),
            None => Err(Error::Internal("a scan without a profile".into())),
        }
    }
}

/// The note of a sample.
struct SampleNote {
    bytes: u64,
    columns: Vec<ColumnNote>,
    /// (column, bytes, bytes by codec) of each column that codecs were tried on.
    packed: Vec<(usize, u64, [u64; CANDIDATES.len()])>,
}

/// See the head of this file.
pub(super) struct Collector {
    watched: Vec<WatchedColumn>,
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
    fn new(source: Arc<dyn Source>, layout: &Layout, budget: &Budget) -> Result<Self> {
        let watched = WatchedColumn::from_layout(layout);
        // Asked only once: it looks at every file.
        let edition = source.content_version();
        let profile = Profile::empty(&*source, edition, &watched)?;
        let fields = profile.fields.iter().map(Field::max_bytes).sum::<u64>() + Measure::MAX_BYTES;
        let packs = watched.iter().any(|w| is_packable(w.value_kind));
        let packer = if packs { Packer::memory_bytes(source.size_bounds().sample_bytes) } else { 0 };
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

    fn profile(&self) -> MutexGuard<'_, Profile> {
        lock(&self.profile)
    }

    fn empty(&self) -> Result<Profile> {
        Profile::empty(&*self.source, self.edition, &self.watched)
    }

    /// The collected profile. An empty one takes its place.
    fn take_profile(&self) -> Result<Profile> {
        Ok(std::mem::replace(&mut *self.profile(), self.empty()?))
    }

    /// Tries all codecs on the values of a sample.
    fn pack(&self, values: &[Value<'_>]) -> Vec<(usize, u64, [u64; CANDIDATES.len()])> {
        let mut packer = lock(&self.packer);
        let columns = self.watched.iter().enumerate().filter(|(_, w)| is_packable(w.value_kind));
        let values = columns.filter_map(|(c, w)| match w.value(values) {
            Value::Bytes(bytes) if bytes.len() >= MIN_PACKED_BYTES => Some((c, bytes)),
            _ => None,
        });
        let packed = values.map(|(c, bytes)| {
            let len = |codec| packer.pack(codec, bytes).map_or(bytes.len(), <[u8]>::len) as u64;
            (c, bytes.len() as u64, CANDIDATES.map(len))
        });
        packed.collect()
    }
}

/// Whether a codec may gain something: images are compressed already, and numbers are too short.
fn is_packable(kind: ValueKind) -> bool {
    matches!(kind, ValueKind::Text | ValueKind::Bytes | ValueKind::Array)
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
        (size_of::<SampleNote>() + packed) as u64
            + self.watched.iter().map(WatchedColumn::note_bytes).sum::<u64>()
    }

    fn see(&self, sample: &Sample<'_>) -> Note {
        Box::new(SampleNote {
            bytes: sample.stored.len() as u64,
            columns: self.watched.iter().map(|watched| watched.note(sample.values, sample.columns)).collect(),
            packed: if sample.id.is_multiple_of(CODEC_STEP) { self.pack(sample.values) } else { Vec::new() },
        })
    }

    fn take(&self, notes: Vec<Note>) -> Result<()> {
        let mut profile = self.profile();
        let mut columns: Vec<Vec<ColumnNote>> =
            self.watched.iter().map(|_| Vec::with_capacity(notes.len())).collect();
        let mut bytes = Vec::with_capacity(notes.len());
        for note in notes.into_iter().filter_map(|note| note.downcast::<SampleNote>().ok()) {
            bytes.push(note.bytes as f64);
            for (c, unpacked, packed) in note.packed {
                let sums = &mut profile.fields[c].packed;
                *sums.entry(UNPACKED.to_owned()).or_default() += unpacked;
                for (codec, bytes) in CANDIDATES.into_iter().zip(packed) {
                    *sums.entry(codec_name(codec)).or_default() += bytes;
                }
            }
            columns.iter_mut().zip(note.columns).for_each(|(column, note)| column.push(note));
        }
        profile.samples += bytes.len() as u64;
        profile.bytes.add(&bytes);
        for (field, notes) in profile.fields.iter_mut().zip(columns) {
            field.add(notes)?;
        }
        Ok(())
    }
}

impl EpochObserver for Collector {
    fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn is_done(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    fn begin(&self) -> Result<()> {
        *self.profile() = self.empty()?;
        Ok(())
    }

    fn set_failed(&self, failed: FailedSamples) {
        let mut profile = self.profile();
        (profile.failed, profile.failures) = (failed.count, failed.first);
    }

    fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }
}
