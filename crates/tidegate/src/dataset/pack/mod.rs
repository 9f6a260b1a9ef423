//! Packs any source into shards of bounded size: MDS v2 or WebDataset tar.
//!
//! Flow: source -> samples in id order, some at once -> shards, each written under another name,
//! synced and then renamed.
//! Memory: outside the budget, because packing is not training: up to 64 MiB of samples (see
//! `samples`), and of MDS the rows of one shard.
//!
//! Where shards are cut depends on the source and the limits alone. So an interrupted run
//! continues where it stopped: finished shards of the right size are kept. The note that a shard is
//! finished is there before the shard is, so that no shard lacks one.

mod columns;
mod compression;
mod samples;
mod shard;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tidegate_data::{Error, Result};
use tidegate_decode::Kind;
use tidegate_source::{Source, SourceExt};

use self::columns::Column;
pub use self::compression::Compression;
use self::samples::Samples;
pub use self::shard::Format;
use super::Progress;

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

/// Packs `source` into the folder `out`. `progress` is called with samples done and samples in all.
///
/// `names` is a column for the names of samples, such as paths of files, in MDS. Archives keep them
/// as the names of members.
///
/// # Errors
/// A sample that cannot be read or stored; names that the samples do not have; a disk that is full
/// (no half-written shard stays); a folder with other data, or with shards of another dataset.
pub fn pack(
    source: &dyn Source,
    out: &Path,
    format: Format,
    limits: Limits,
    compression: &Compression,
    names: Option<&str>,
    progress: Progress<'_>,
) -> Result<Packed> {
    let encodings = compression.encodings(source)?;
    let compact = source.schema().iter().any(|field| matches!(field.kind, Kind::Compact { .. }));
    if format == Format::Tar && (compact || encodings.iter().any(Option::is_some)) {
        return Err(Error::Config(
            "only MDS shards record how arrays are compressed: give --format mds".into(),
        ));
    }
    let own = |name: &str| {
        let shard = name.trim_start_matches('.').starts_with("shard");
        let index = format == Format::Mds && matches!(name, "index.json" | "index.json.partial");
        shard || index || name == ".tidegate"
    };
    let mut columns = columns::columns(source, format, encodings)?;
    columns.extend(names.map(|name| samples::name_column(source, format, name)).transpose()?);
    super::target::prepare(out, own)?;
    let (mut id, mut packed, mut entries) = (0, Packed { shards: 0, kept: 0 }, Vec::new());
    let mut samples = Samples::new(source, &columns, format)?;
    let fingerprint = format!("{:016x}", source.fingerprint());
    let mut stored: Vec<_> = columns.iter().map(Column::resume_key).collect();
    stored.extend(samples.has_names().then(|| "names".to_owned()));
    while id < source.len() {
        let path = out.join(format.shard_name(packed.shards));
        let note = out.join(format.note_name(packed.shards));
        let task = json!([fingerprint, limits.bytes, limits.samples, id, stored]);
        let (end, entry) = if let Some(finished) = finished(&path, &note, &task)? {
            packed.kept += 1;
            finished
        } else {
            write_shard(&mut samples, limits, id, (&path, &note, &task), progress)?
        };
        entries.extend(entry);
        id = end;
        packed.shards += 1;
        progress(id, source.len())?;
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
    write_synced(&out.join("index.json"), &index.to_string())
}

/// Writes a text file, which is there whole or not at all, also after a loss of power.
fn write_synced(path: &Path, text: &str) -> Result<()> {
    let partial = Partial(partial_of(path));
    let mut file = File::create(&partial.0).map_err(Error::io(&partial.0))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io(&partial.0))?;
    rename_synced(&partial.0, path)
}

/// Gives a file that was synced its name, and syncs the folder, which holds names.
fn rename_synced(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io(to))?;
    let folder = to.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))
}

/// The name of a file as long as it is written.
fn partial_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.partial"))
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

/// Writes one shard from sample `start` on, and before it gets its name the note that it is
/// finished. Returns the first sample after it, and its index entry.
fn write_shard(
    samples: &mut Samples<'_>,
    limits: Limits,
    start: u64,
    (path, note, task): (&Path, &Path, &Json),
    progress: Progress<'_>,
) -> Result<(u64, Option<Json>)> {
    let partial = Partial(partial_of(path));
    let (mut writer, max_bytes) = shard::create(samples.format, &partial.0, path, samples.columns)?;
    if start == 0
        && let Some(member) = samples.classes_member()?
    {
        writer.push(&member)?;
    }
    let mut id = start;
    while id < samples.source.len() && id - start < limits.samples {
        let sample = samples.next(id)?;
        let bytes = writer.bytes_with(&sample);
        if bytes > limits.bytes.min(max_bytes) && id > start {
            samples.put_back(id, sample);
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
            progress(id, samples.source.len())?;
        }
    }
    let entry = writer.finish()?;
    let bytes = fs::metadata(&partial.0).map_err(Error::io(&partial.0))?.len();
    write_synced(note, &json!({"task": task, "end": id, "bytes": bytes, "entry": entry}).to_string())?;
    rename_synced(&partial.0, path)?;
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
