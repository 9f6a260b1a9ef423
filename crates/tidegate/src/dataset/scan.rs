//! One pass over a dataset for somebody who looks on: a profile, a search for duplicates.
//!
//! Flow: source + options -> `loader` -> `run` -> the samples that failed.
//! Memory: that of the loader, with as many samples in a batch as an eighth of the budget takes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_core::memory::Budget;
use tidegate_data::batch::{FieldSpec, Layout};
use tidegate_data::pipeline::{Failure, Keep, OnError};
use tidegate_decode::npy::{self, DType};
use tidegate_decode::{Field, Value};
use tidegate_source::{Source, SourceExt};

use crate::{Error, Loader, Options, Result};

/// Samples in a batch, if the budget has room for so many: twice as many as KLL takes whole.
const ROWS: u64 = 3072;
/// What is noted of a value, about.
const NOTE_BYTES: u64 = 64;
/// Samples that are looked at for the type of an array.
const LOOKED_AT: u64 = 16;
/// Failed samples that are named.
const NAMED: usize = 20;

/// Who is told how many samples of how many are done; an error ends the pass.
pub type Progress<'a> = &'a dyn Fn(u64, u64) -> Result<()>;

/// A sample that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Where it lies.
    pub place: String,
    /// Why.
    pub what: String,
}

/// The first of the samples that failed, to be named.
pub(crate) fn named(failures: &[Failure]) -> Vec<Failed> {
    let first = failures.iter().take(NAMED);
    first.map(|f| Failed { place: f.place.to_string(), what: f.what.clone() }).collect()
}

/// The two lists as one.
pub(crate) fn joined(one: &mut Vec<Failed>, other: &[Failed]) {
    one.extend(other.iter().cloned());
    one.truncate(NAMED);
}

/// Refuses a source whose samples overlap: what is in them would be counted many times.
pub(crate) fn no_patches(source: &dyn Source) -> Result<()> {
    match source.chunked() {
        Some(_) => Err(Error::Config(format!(
            "{}: patches of a volume overlap, so nothing can be counted in them; `Volume.boxes` counts the voxels of labels",
            source.name()
        ))),
        None => Ok(()),
    }
}

/// A loader that leaves out samples that cannot be made.
pub(crate) fn loader(source: &Arc<dyn Source>, options: &Options, budget: &Budget) -> Result<Loader> {
    no_patches(&**source)?;
    let fields = with_arrays(&**source, options)?;
    // Nothing comes twice, and each sample is to be seen.
    let keep = Keep::Stored;
    let options = Options { on_error: OnError::Skip, max_failure_rate: 1.0, fields, keep, ..options.clone() };
    let made = |options| {
        let mut loader = Loader::new(Arc::clone(source), options, budget.clone())?;
        loader.allow_partial();
        Ok(loader)
    };
    if options.batch_size.is_some() || options.global_batch_size.is_some() {
        return made(options);
    }
    let layout = Layout::new(source.schema(), &options.fields, options.only)?;
    let extremes = source.extremes();
    // Only pictures that are delivered as large as they are take that room.
    let whole = layout.columns.iter().any(|c| c.shape.is_none() && matches!(c.spec, FieldSpec::Image(_)));
    let decoded = if whole { extremes.decoded_bytes } else { 0 };
    let notes = NOTE_BYTES * layout.columns.len() as u64;
    let each = extremes.sample_bytes + decoded + layout.row_bytes() + notes;
    let mut rows = (budget.cap_bytes() / 8 / each.max(1)).clamp(1, ROWS);
    loop {
        match made(Options { batch_size: Some(rows), ..options.clone() }) {
            Err(_) if rows > 1 => rows /= 2,
            made => return made,
        }
    }
}

/// Goes through one epoch, and says how many samples failed, and which ones first.
pub(crate) fn run(loader: &mut Loader, progress: Progress<'_>) -> Result<(u64, Vec<Failed>)> {
    let (mut done, all) = (0, loader.source().len());
    let mut epoch = loader.epoch()?;
    progress(0, all)?;
    while epoch.next_with(&|| progress(done, all))?.is_some() {
        done = loader.position().max(done);
        progress(done, all)?;
    }
    let (failed, first) = loader.failed();
    match first.first().filter(|_| failed == all) {
        Some(Failed { place, what }) => {
            Err(Error::Config(format!("none of {all} samples could be made: {place}: {what}")))
        }
        None => Ok((failed, first)),
    }
}

/// The fields that are asked for, and arrays of which nothing is said as the first sample that has them: others fail, and are named.
fn with_arrays(source: &dyn Source, options: &Options) -> Result<Vec<(String, FieldSpec)>> {
    let mut fields = options.fields.clone();
    let untyped = |spec: &FieldSpec| matches!(spec, FieldSpec::Array { dtype: None, .. });
    let unsaid = |field: &Field| match fields.iter().find(|(name, _)| *name == field.name) {
        Some((_, spec)) => untyped(spec),
        None => !options.only && untyped(&FieldSpec::inferred(&field.kind)),
    };
    let columns = source.schema().iter().enumerate().filter(|(_, field)| unsaid(field));
    let columns: Vec<usize> = columns.map(|(c, _)| c).collect();
    if columns.is_empty() || source.is_empty() {
        return Ok(fields);
    }
    let typed = |column: usize, id: u64| -> Result<Option<DType>> {
        let (at, bytes) = source.fetch(id)?;
        let values = source.parse(&at, &bytes)?;
        let Some(Value::Bytes(bytes)) = values.get(column) else { return Ok(None) };
        let found = source.schema()[column].kind.array(bytes).unwrap_or_else(|| npy::npy(bytes))?;
        Ok(Some(found.dtype))
    };
    for c in columns {
        let name = &source.schema()[c].name;
        // The first may be damaged, or lack it.
        let mut why = String::from("none has one");
        let dtype = (0..source.len().min(LOOKED_AT)).find_map(|id| {
            typed(c, id).unwrap_or_else(|error| {
                why = error.to_string();
                None
            })
        });
        if dtype.is_none() {
            return Err(Error::Config(format!(
                "field {name:?}: the first samples have no array that can be read: {why}; name the other fields to leave it out"
            )));
        }
        fields.retain(|(known, _)| known != name);
        fields.push((name.clone(), FieldSpec::Array { dtype, shape: None }));
    }
    Ok(fields)
}

/// A field's name, checked.
pub(crate) fn known<'a>(source: &'a dyn Source, name: &str) -> Result<&'a Field> {
    source.schema().iter().find(|field| field.name == name).ok_or_else(|| {
        let known: Vec<_> = source.schema().iter().map(|field| field.name.as_str()).collect();
        Error::Config(format!("there is no field {name:?}; the fields are {}", known.join(", ")))
    })
}
