//! Scans a dataset once for an observer: a profile, or a search for duplicates.
//!
//! Flow: source + options -> [`loader`] -> [`run`] -> the samples that failed.
//! Memory: that of the loader; a batch takes at most an eighth of the budget.

use std::sync::Arc;

use tidegate_core::memory::Budget;
use tidegate_data::batch::{FieldSpec, ImageSpec, Layout, names_field};
use tidegate_data::pipeline::{Keep, OnError};
use tidegate_decode::npy::{self, DType};
use tidegate_decode::{Field, Kind, Value, WideGray};
use tidegate_source::{Source, SourceExt};

use crate::loader::{FailedSample, FailedSamples, MakeObserver};
use crate::{Error, Loader, Options, Result};

/// Samples in a batch, if the budget allows: twice as many as a KLL sketch holds exactly.
const ROWS: u64 = 3072;
/// An estimate of the bytes that an observer notes of a value.
const NOTE_BYTES: u64 = 64;
/// Samples that are read to find the type of an array field.
const TYPE_SAMPLES: u64 = 16;

/// A function that is called with (samples done, samples in all). Its error ends the scan.
pub type Progress<'a> = &'a dyn Fn(u64, u64) -> Result<()>;

/// Refuses a source whose samples overlap, because their content would be counted several times.
pub(super) fn refuse_patches(source: &dyn Source) -> Result<()> {
    match source.chunked() {
        Some(_) => Err(Error::Config(format!(
            "{}: patches of a volume overlap, so nothing can be counted in them; `Volume.boxes` counts \
             the voxels of labels",
            source.name()
        ))),
        None => Ok(()),
    }
}

/// Makes a loader that visits each sample once and skips those that cannot be decoded. `observe`
/// makes what observes its epochs.
pub(super) fn loader(
    source: &Arc<dyn Source>,
    options: &Options,
    budget: &Budget,
    observe: Option<MakeObserver>,
) -> Result<Loader> {
    refuse_patches(&**source)?;
    let fields = with_array_types(&**source, options)?;
    // No sample comes twice, so a cache gains nothing; decoded rows would hide samples.
    let keep = Keep::Stored;
    let options =
        Options { on_error: OnError::Skip, max_failure_rate: Some(1.0), fields, keep, ..options.clone() };
    let make = |options| {
        let mut loader = Loader::assemble(Arc::clone(source), options, budget.clone(), None, observe)?;
        loader.allow_partial();
        Ok(loader)
    };
    if options.batch_size.is_some() || options.global_batch_size.is_some() {
        return make(options);
    }
    let layout = Layout::new(source.schema(), &options.fields, options.only)?;
    let sizes = source.size_bounds();
    // Only images that are delivered at their own size take that much.
    let whole = layout.columns.iter().any(|c| c.shape.is_none() && matches!(c.spec, FieldSpec::Image(_)));
    let decoded_bytes = if whole { sizes.decoded_bytes } else { 0 };
    let note_bytes = NOTE_BYTES * layout.columns.len() as u64;
    let row_bytes = sizes.sample_bytes + decoded_bytes + layout.row_bytes() + note_bytes;
    let mut rows = (budget.cap_bytes() / 8 / row_bytes.max(1)).clamp(1, ROWS);
    loop {
        match make(Options { batch_size: Some(rows), ..options.clone() }) {
            Err(_) if rows > 1 => rows /= 2,
            made => return made,
        }
    }
}

/// Visits each sample once.
pub(super) fn visit(loader: &mut Loader, progress: Progress<'_>) -> Result<()> {
    let (mut done, all) = (0, loader.source().len());
    let mut epoch = loader.epoch()?;
    progress(0, all)?;
    while epoch.next_with(&|| progress(done, all))?.is_some() {
        done = loader.position().max(done);
        progress(done, all)?;
    }
    Ok(())
}

/// Visits each sample once and returns those that failed; an error if none could be decoded.
pub(super) fn run(loader: &mut Loader, progress: Progress<'_>) -> Result<FailedSamples> {
    visit(loader, progress)?;
    let all = loader.source().len();
    let failed = loader.failed();
    match failed.first.first().filter(|_| failed.count == all) {
        Some(FailedSample { place, what }) => {
            Err(Error::Config(format!("none of {all} samples could be decoded: {place}: {what}")))
        }
        None => Ok(failed),
    }
}

/// The image of a scan that does not say more.
pub(super) fn scanned_image() -> ImageSpec {
    ImageSpec { gray16: Some(WideGray::Scale), ..ImageSpec::default() }
}

/// The fields that are asked for, and a type for each array field without one: that of the first
/// sample that has the array. Samples of another type fail and are named.
fn with_array_types(source: &dyn Source, options: &Options) -> Result<Vec<(String, FieldSpec)>> {
    let mut fields = options.fields.clone();
    if !options.only {
        let spec = |field: &Field| match &field.kind {
            // A scan counts and compares: 16-bit gray is no reason to fail.
            Kind::Image => FieldSpec::Image(scanned_image()),
            kind => FieldSpec::inferred(kind),
        };
        let named = |field: &Field| fields.iter().any(|(name, _)| names_field(name, &field.name));
        let unnamed: Vec<_> = source.schema().iter().filter(|field| !named(field)).collect();
        fields.extend(unnamed.into_iter().map(|field| (field.name.clone(), spec(field))));
    }
    let untyped = |spec: &FieldSpec| matches!(spec, FieldSpec::Array { dtype: None, .. });
    let needs_type = |field: &Field| match fields.iter().find(|(name, _)| *name == field.name) {
        Some((_, spec)) => untyped(spec),
        None => false,
    };
    let columns = source.schema().iter().enumerate().filter(|(_, field)| needs_type(field));
    let columns: Vec<usize> = columns.map(|(c, _)| c).collect();
    if columns.is_empty() || source.is_empty() {
        return Ok(fields);
    }
    for c in columns {
        let name = &source.schema()[c].name;
        // The first sample may be damaged, or lack the field.
        let mut why = String::from("none has one");
        let dtype = (0..source.len().min(TYPE_SAMPLES)).find_map(|id| {
            array_type(source, c, id).unwrap_or_else(|error| {
                why = error.to_string();
                None
            })
        });
        if dtype.is_none() {
            return Err(Error::Config(format!(
                "field {name:?}: the first samples have no array that can be read: {why}; name the other \
                 fields to leave it out"
            )));
        }
        fields.retain(|(known, _)| known != name);
        fields.push((name.clone(), FieldSpec::Array { dtype, shape: None }));
    }
    Ok(fields)
}

/// The type of the array in one field of one sample, if the sample has it.
fn array_type(source: &dyn Source, column: usize, id: u64) -> Result<Option<DType>> {
    let (at, bytes) = source.fetch(id)?;
    let values = source.parse(&at, &bytes)?;
    let Some(Value::Bytes(bytes)) = values.get(column) else { return Ok(None) };
    let array = source.schema()[column].kind.array(bytes).unwrap_or_else(|| npy::npy(bytes))?;
    Ok(Some(array.dtype))
}

/// The field of this name.
pub(crate) fn find_field<'a>(source: &'a dyn Source, name: &str) -> Result<&'a Field> {
    source.schema().iter().find(|field| field.name == name).ok_or_else(|| {
        let names: Vec<_> = source.schema().iter().map(|field| field.name.as_str()).collect();
        Error::Config(format!("there is no field {name:?}; the fields are {}", names.join(", ")))
    })
}
