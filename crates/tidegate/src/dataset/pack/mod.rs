//! Packs any source into shards of bounded size: MDS v2 or WebDataset tar.
//!
//! Flow: source -> samples in id order -> shards, each written under another name and then
//! renamed.
//! Memory: outside the budget, because packing is not training: one sample and its stored bytes,
//! and of MDS the rows of one shard.
//!
//! Where shards are cut depends on the source and the limits alone. So an interrupted run
//! continues where it stopped: finished shards of the right size are kept.

mod columns;
mod compression;
mod shard;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tidegate_data::{Error, Result};
use tidegate_decode::Kind;
use tidegate_source::{Source, SourceExt};

use self::columns::Column;
pub use self::compression::Compression;

/// The container of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// MosaicML MDS v2: O(1) access, typed columns, read by the stock library.
    Mds,
    /// WebDataset tar.
    Tar,
}

impl Format {
    fn shard_name(self, shard: u64) -> String {
        match self {
            Self::Mds => format!("shard.{shard:05}.mds"),
            Self::Tar => format!("shard-{shard:05}.tar"),
        }
    }

    /// The name of the note that a shard is finished.
    fn note_name(self, shard: u64) -> String {
        format!(".{}.done", self.shard_name(shard))
    }
}

/// The largest shard.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes in a shard.
    pub bytes: u64,
    /// Samples in a shard.
    pub samples: u64,
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// All shards.
    pub shards: u64,
    /// The shards that an earlier run had finished.
    pub kept: u64,
}

/// Packs `source` into the folder `out`. `progress` is called with the number of samples done.
///
/// # Errors
/// A sample that cannot be read or stored; a disk that is full (no half-written shard stays); a
/// folder with other data, or with shards of another dataset.
pub fn pack(
    source: &dyn Source,
    out: &Path,
    format: Format,
    limits: Limits,
    compression: &Compression,
    progress: &dyn Fn(u64),
) -> Result<Packed> {
    if source.schema().iter().any(|field| matches!(field.kind, Kind::Sparse { .. })) {
        return Err(Error::Config(format!(
            "{}: shards have no column for sparse rows: load the file as it is",
            source.name()
        )));
    }
    let encodings = compression.encodings(source)?;
    let compact = source.schema().iter().any(|field| matches!(field.kind, Kind::Compact { .. }));
    if format == Format::Tar && (compact || encodings.iter().any(Option::is_some)) {
        return Err(Error::Config(
            "only MDS shards record how arrays are compressed: give --format mds".into(),
        ));
    }
    let own = |name: &str| {
        let shard = name.trim_start_matches('.').starts_with("shard");
        shard || (format == Format::Mds && name == "index.json") || name == ".tidegate"
    };
    super::target::prepare(out, own)?;
    let columns = columns::columns(source, format, encodings)?;
    let (mut id, mut packed, mut entries) = (0, Packed { shards: 0, kept: 0 }, Vec::new());
    let mut samples = Samples { source, columns: &columns, format, left: None };
    let fingerprint = format!("{:016x}", source.fingerprint());
    let stored: Vec<_> = columns.iter().map(Column::resume_key).collect();
    while id < source.len() {
        let path = out.join(format.shard_name(packed.shards));
        let note = out.join(format.note_name(packed.shards));
        let task = json!([fingerprint, limits.bytes, limits.samples, id, stored]);
        let (end, entry) = if let Some(finished) = finished(&path, &note, &task)? {
            packed.kept += 1;
            finished
        } else {
            let (end, entry) = write_shard(&mut samples, limits, id, &path, progress)?;
            let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
            let text = json!({"task": task, "end": end, "bytes": bytes, "entry": entry}).to_string();
            fs::write(&note, text).map_err(Error::io(&note))?;
            (end, entry)
        };
        entries.extend(entry);
        id = end;
        packed.shards += 1;
        progress(id);
    }
    if format == Format::Mds {
        write_index(out, &entries, &columns, source.classes())?;
    }
    for shard in 0..packed.shards {
        let note = out.join(format.note_name(shard));
        fs::remove_file(&note).map_err(Error::io(&note))?;
    }
    Ok(packed)
}

/// Writes the index of MDS shards, with a note for the reader of compressed columns and the names
/// of classes.
fn write_index(out: &Path, entries: &[Json], columns: &[Column], classes: &[String]) -> Result<()> {
    let mut index = json!({"shards": entries, "version": 2});
    let compact = columns.iter().filter_map(Column::compact_note);
    let compact: serde_json::Map<_, _> = compact.collect();
    let mut notes = serde_json::Map::new();
    if !compact.is_empty() {
        notes.insert("compact".into(), compact.into());
    }
    if !classes.is_empty() {
        notes.insert("classes".into(), classes.into());
    }
    if !notes.is_empty() {
        index["tidegate"] = notes.into();
    }
    let path = out.join("index.json");
    fs::write(&path, index.to_string()).map_err(Error::io(path))
}

/// The end and the index entry of a shard that an earlier run of the same task finished.
///
/// # Errors
/// A shard that another task wrote.
fn finished(path: &Path, note: &Path, task: &Json) -> Result<Option<(u64, Option<Json>)>> {
    let Ok(bytes) = fs::metadata(path).map(|m| m.len()) else { return Ok(None) };
    let json: Option<Json> = fs::read(note).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let same = |json: &Json| {
        json.get("task") == Some(task) && json.get("bytes").and_then(Json::as_u64) == Some(bytes)
    };
    let end = json.as_ref().filter(|json| same(json)).and_then(|json| json.get("end")?.as_u64());
    let Some(end) = end else {
        let what = "this shard is of another data set or other limits: pack into an empty folder".into();
        return Err(tidegate_source::Error::Dataset { path: path.to_owned(), what }.into());
    };
    Ok(Some((end, json.and_then(|json| json.get("entry").filter(|e| !e.is_null()).cloned()))))
}

/// The bytes of samples in shards.
struct Samples<'a> {
    source: &'a dyn Source,
    columns: &'a [Column],
    format: Format,
    /// (id, bytes) of the sample that did not fit in the shard before.
    left: Option<(u64, Vec<u8>)>,
}

impl Samples<'_> {
    fn bytes(&mut self, id: u64) -> Result<Vec<u8>> {
        if let Some((_, bytes)) = self.left.take_if(|(left, _)| *left == id) {
            return Ok(bytes);
        }
        let (at, data) = self.source.fetch(id)?;
        let values = self.source.parse(&at, &data).map_err(|e| self.source.sample_error(&at, "", &e))?;
        let bytes = match self.format {
            Format::Mds => shard::mds_row(self.columns, &values),
            Format::Tar => shard::tar_members(self.columns, &format!("{id:09}"), &values),
        };
        bytes.map_err(|e| self.source.sample_error(&at, "", &e).into())
    }
}

/// Writes one shard from sample `start` on. Returns the first sample after it, and its index
/// entry.
fn write_shard(
    samples: &mut Samples<'_>,
    limits: Limits,
    start: u64,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<(u64, Option<Json>)> {
    let partial = Partial(path.with_extension("partial"));
    let (mut writer, max_bytes) = shard::create(samples.format, &partial.0, path, samples.columns)?;
    let mut id = start;
    while id < samples.source.len() && id - start < limits.samples {
        let sample = samples.bytes(id)?;
        let bytes = writer.bytes_with(&sample);
        if bytes > limits.bytes.min(max_bytes) && id > start {
            samples.left = Some((id, sample));
            break;
        }
        if bytes > max_bytes {
            let at = &samples.source.locate(&[id])?[0];
            let what = format!("{bytes} bytes, and an MDS shard holds 4 GiB: pack it as tar");
            return Err(samples.source.sample_error(at, "", what).into());
        }
        writer.push(&sample)?;
        id += 1;
        if id.is_multiple_of(64) {
            progress(id);
        }
    }
    let entry = writer.finish()?;
    fs::rename(&partial.0, path).map_err(Error::io(path))?;
    Ok((id, entry))
}

/// A file that is removed unless it is renamed.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename there is no file to remove.
        fs::remove_file(&self.0).ok();
    }
}
