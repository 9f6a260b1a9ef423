//! `pack`: any source into shards of bounded size, MDS v2 or WebDataset tar; arrays as they are, or made small (`small`).
//!
//! Flow: source -> samples in id order -> shards, each written aside and renamed when it is whole.
//! Memory: a sample and its bytes as they are stored, and of MDS the rows of a shard, whose offset table comes first; outside the budget:
//! packing is no training.
//!
//! Where shards are cut is a function of the source and the limits alone, so a run that was interrupted goes on where it
//! stopped: shards that are there with the right size are kept.

mod small;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tidegate_data::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Value};
use tidegate_source::{Source, SourceExt, tar};

pub use self::small::Small;
use self::small::Way;

/// The container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// MosaicML MDS v2: O(1) access, typed columns, read by the stock library.
    Mds,
    /// WebDataset tar.
    Tar,
}

/// Limits of a shard.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes.
    pub bytes: u64,
    /// Samples.
    pub samples: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Shards in all.
    pub shards: u64,
    /// Shards that an earlier run had made.
    pub kept: u64,
}

/// A shard while it is written.
trait ShardWriter {
    /// What the shard takes with the bytes of one more sample.
    fn bytes_with(&self, sample: &[u8]) -> u64;
    /// Puts them there.
    fn push(&mut self, sample: &[u8]) -> Result<()>;
    /// Writes what is left to write and gives the shard's entry for an index, if its format has one.
    fn finish(self: Box<Self>) -> Result<Option<Json>>;
}

/// Packs `source` into `out`.
///
/// # Errors
/// When the disk is full (nothing half-written stays), or a sample cannot be read.
pub fn pack(
    source: &dyn Source,
    out: &Path,
    format: Format,
    limits: Limits,
    small: &Small,
    progress: &dyn Fn(u64),
) -> Result<Packed> {
    if source.schema().iter().any(|field| matches!(field.kind, Kind::Sparse { .. })) {
        return Err(Error::Config(format!(
            "{}: shards have no column for sparse rows: load the file as it is",
            source.name()
        )));
    }
    let ways = small.ways(source)?;
    let small_already = source.schema().iter().any(|field| matches!(field.kind, Kind::Compact { .. }));
    if format == Format::Tar && (small_already || ways.iter().any(Option::is_some)) {
        return Err(Error::Config(
            "only MDS shards say which arrays were made small: give --format mds".into(),
        ));
    }
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let columns = columns(source, format, ways)?;
    let (mut id, mut packed, mut entries) = (0, Packed { shards: 0, kept: 0 }, Vec::new());
    let mut samples = Samples { source, columns: &columns, format, left: None };
    while id < source.len() {
        let name = match format {
            Format::Mds => format!("shard.{:05}.mds", packed.shards),
            Format::Tar => format!("shard-{:05}.tar", packed.shards),
        };
        let path = out.join(&name);
        let note = out.join(format!(".{name}.done"));
        let made: Vec<_> =
            columns.iter().map(|column| format!("{} {:?}", column.encoding, column.way)).collect();
        let fingerprint = format!("{:016x}", source.fingerprint());
        let task = json!([fingerprint, limits.bytes, limits.samples, id, made]);
        if let Some((end, entry)) = kept(&path, &note, &task)? {
            (id, packed.kept) = (end, packed.kept + 1);
            entries.extend(entry);
        } else {
            let (end, entry) = shard(&mut samples, limits, id, &path, progress)?;
            let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
            let text = json!({"task": task, "end": end, "bytes": bytes, "entry": entry}).to_string();
            fs::write(&note, text).map_err(Error::io(&note))?;
            entries.extend(entry);
            id = end;
        }
        packed.shards += 1;
        progress(id);
    }
    if format == Format::Mds {
        let index = out.join("index.json");
        let (mut json, compact) = (json!({"shards": entries, "version": 2}), compact(&columns));
        if compact.as_object().is_some_and(|columns| !columns.is_empty()) {
            json["tidegate"] = json!({"compact": compact});
        }
        fs::write(&index, json.to_string()).map_err(Error::io(index))?;
    }
    for shard in 0..packed.shards {
        let name = match format {
            Format::Mds => format!(".shard.{shard:05}.mds.done"),
            Format::Tar => format!(".shard-{shard:05}.tar.done"),
        };
        fs::remove_file(out.join(&name)).map_err(Error::io(out.join(&name)))?;
    }
    Ok(packed)
}

/// The columns that are made small, for whoever reads them.
fn compact(columns: &[Column]) -> Json {
    let json = |dtype: DType, shape: &[usize], codec: &str| json!({"dtype": dtype.name(), "shape": shape, "codec": codec});
    let note = |column: &Column| {
        let note = match (&column.way, &column.kind) {
            (Some(way), _) => json(way.dtype, &way.shape, way.codec()?),
            // They were small before.
            (None, Kind::Compact { dtype, shape, codec }) => json(*dtype, shape, codec),
            (None, _) => return None,
        };
        Some((column.name.clone(), note))
    };
    Json::Object(columns.iter().filter_map(note).collect())
}

/// The end of a shard that an earlier run of the same task finished, and its entry.
///
/// # Errors
/// When a shard is there that this task did not write.
fn kept(path: &Path, note: &Path, task: &Json) -> Result<Option<(u64, Option<Json>)>> {
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

/// Samples as shards have them.
struct Samples<'a> {
    source: &'a dyn Source,
    columns: &'a [Column],
    format: Format,
    /// The one that did not fit in the shard before.
    left: Option<(u64, Vec<u8>)>,
}

impl Samples<'_> {
    fn bytes(&mut self, id: u64) -> Result<Vec<u8>> {
        if let Some((_, bytes)) = self.left.take_if(|(left, _)| *left == id) {
            return Ok(bytes);
        }
        let (at, data) = self.source.fetch(id)?;
        let values = self.source.parse(&at, &data).map_err(|e| self.source.blame(&at, "", &e))?;
        let bytes = match self.format {
            Format::Mds => row(self.columns, &values),
            Format::Tar => members(self.columns, &format!("{id:09}"), &values),
        };
        bytes.map_err(|e| self.source.blame(&at, "", &e).into())
    }
}

fn shard(
    samples: &mut Samples<'_>,
    limits: Limits,
    start: u64,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<(u64, Option<Json>)> {
    let partial = Partial(path.with_extension("partial"));
    let file = File::create(&partial.0).map_err(Error::io(&partial.0))?;
    let (mut writer, most): (Box<dyn ShardWriter>, u64) = match samples.format {
        Format::Mds => (Box::new(MdsShard::new(file, path, samples.columns)), u64::from(u32::MAX)),
        Format::Tar => {
            let (out, path) = (BufWriter::new(file), partial.0.clone());
            (Box::new(TarShard { out, path, bytes: 0 }), u64::MAX)
        }
    };
    let mut id = start;
    while id < samples.source.len() && id - start < limits.samples {
        let sample = samples.bytes(id)?;
        let bytes = writer.bytes_with(&sample);
        if bytes > limits.bytes.min(most) && id > start {
            samples.left = Some((id, sample));
            break;
        }
        if bytes > most {
            let at = &samples.source.locate(&[id])?[0];
            let what = format!("{bytes} bytes, and an MDS shard holds 4 GiB: pack it as tar");
            return Err(samples.source.blame(at, "", what).into());
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

/// A file that vanishes unless it is renamed.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed on success: then there is nothing to remove.
        let _gone = fs::remove_file(&self.0);
    }
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    encoding: String,
    size: Option<u32>,
    kind: Kind,
    /// How its arrays are made small, if they are.
    way: Option<Way>,
}

fn columns(source: &dyn Source, format: Format, ways: Vec<Option<Way>>) -> Result<Vec<Column>> {
    let (at, data) = source.fetch(0)?;
    let values = source.parse(&at, &data)?;
    let column = |((field, value), way): ((&Field, &Value<'_>), Option<Way>)| {
        let jpeg = matches!(value, Value::Bytes(b) if b.starts_with(&[0xFF, 0xD8]));
        let png = matches!(value, Value::Bytes(b) if b.starts_with(b"\x89PNG"));
        let (encoding, size) = match (&field.kind, value) {
            (Kind::Image, _) if jpeg => ("jpeg", None),
            (Kind::Image, _) if png => ("png", None),
            (Kind::Int, _) => ("int", Some(8)),
            (Kind::Float, _) => ("float64", Some(8)),
            (Kind::Text, _) => ("str", None),
            (Kind::Json | Kind::Numbers { .. }, _) => ("json", None),
            (Kind::Pixels, _) => ("pil", None),
            (Kind::NdArray { .. }, _) => ("ndarray", None),
            _ => ("bytes", None),
        };
        // What the column says of arrays is not said by each.
        let encoding = match &field.kind {
            _ if let Some(way) = &way => way.encoding(),
            Kind::NdArray { dtype: Some(dtype), shape } => {
                let shape = shape
                    .iter()
                    .map(|shape| shape.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
                ["ndarray".to_owned(), dtype.clone()].into_iter().chain(shape).collect::<Vec<_>>().join(":")
            }
            _ => encoding.to_owned(),
        };
        let name = match (format, field.name.as_str()) {
            (Format::Tar, "label") => "cls".to_owned(),
            (Format::Tar, "image") if jpeg => "jpg".to_owned(),
            (Format::Tar, "image") if png => "png".to_owned(),
            (_, name) => name.to_owned(),
        };
        Column { name, encoding, size, kind: field.kind.clone(), way }
    };
    Ok(source.schema().iter().zip(&values).zip(ways).map(column).collect())
}

/// The bytes of a value as a column stores it.
fn encode(column: &Column, value: &Value<'_>) -> Result<Vec<u8>> {
    let misfit = || {
        Error::Config(format!("field {:?}: {value:?} cannot be stored as {}", column.name, column.encoding))
    };
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|t| t.trim().parse::<i64>().ok());
    if let Some(way) = &column.way {
        return way
            .bytes(&column.kind, value)
            .map_err(|e| Error::Config(format!("field {:?}: {e}", column.name)));
    }
    Ok(match (column.encoding.as_str(), value) {
        ("int", Value::Bytes(b)) => number(b).ok_or_else(misfit)?.to_le_bytes().to_vec(),
        ("int", Value::Int(x)) => x.to_le_bytes().to_vec(),
        ("float64", Value::Float(x)) => x.to_le_bytes().to_vec(),
        (_, Value::Bytes(b)) => b.to_vec(),
        (_, Value::Quoted(text)) => text.text()?,
        _ => return Err(misfit()),
    })
}

/// Two blocks of nothing end an archive.
const TAR_END: [u8; 1024] = [0; 1024];

#[derive(Debug)]
struct TarShard {
    out: BufWriter<File>,
    path: PathBuf,
    bytes: u64,
}

fn tar_bytes<'a>(value: &Value<'a>) -> Result<std::borrow::Cow<'a, [u8]>> {
    Ok(match value {
        Value::Bytes(b) => (*b).into(),
        Value::Int(x) => x.to_string().into_bytes().into(),
        Value::Float(x) => x.to_string().into_bytes().into(),
        Value::Quoted(text) => text.text()?.into(),
        Value::Missing => Vec::new().into(),
    })
}

/// The members of a sample in an archive.
fn members(columns: &[Column], key: &str, values: &[Value<'_>]) -> Result<Vec<u8>> {
    let mut members = Vec::new();
    for (column, value) in columns.iter().zip(values).filter(|(_, v)| **v != Value::Missing) {
        let (name, bytes) = (format!("{key}.{}", column.name), tar_bytes(value)?);
        // Its header and what fills its last block up.
        members.reserve(bytes.len() + 1024);
        tar::write_member(&mut members, &name, &bytes).map_err(Error::io(&name))?;
    }
    Ok(members)
}

impl ShardWriter for TarShard {
    fn bytes_with(&self, sample: &[u8]) -> u64 {
        self.bytes + (sample.len() + TAR_END.len()) as u64
    }
    fn push(&mut self, sample: &[u8]) -> Result<()> {
        self.bytes += sample.len() as u64;
        self.out.write_all(sample).map_err(Error::io(&self.path))
    }
    fn finish(mut self: Box<Self>) -> Result<Option<Json>> {
        self.out.write_all(&TAR_END).and_then(|()| self.out.flush()).map_err(Error::io(&self.path))?;
        Ok(None)
    }
}

/// An MDS shard: its rows are collected aside, because the offset table comes first.
#[derive(Debug)]
struct MdsShard {
    out: File,
    path: PathBuf,
    /// What the shard says of its columns, and as text.
    config: Json,
    text: String,
    rows: Vec<u8>,
    ends: Vec<u32>,
}

impl MdsShard {
    fn new(out: File, path: &Path, columns: &[Column]) -> Self {
        let list = |f: &dyn Fn(&Column) -> Json| columns.iter().map(f).collect::<Vec<_>>();
        let config = json!({
            "column_encodings": list(&|c| json!(c.encoding)),
            "column_names": list(&|c| json!(c.name)),
            "column_sizes": list(&|c| json!(c.size)),
            "compression": null,
            "format": "mds",
            "hashes": [],
            "size_limit": null,
        });
        let (path, text) = (path.to_owned(), config.to_string());
        Self { out, path, config, text, rows: Vec::new(), ends: Vec::new() }
    }

    /// The bytes before the rows of so many samples: their number, where each begins and the last ends, and the columns.
    fn head_bytes(&self, samples: usize) -> usize {
        4 * (samples + 2) + self.text.len()
    }
}

/// A sample as a row of MDS: the lengths of what has no fixed one, then all values.
fn row(columns: &[Column], values: &[Value<'_>]) -> Result<Vec<u8>> {
    let parts = columns.iter().zip(values).map(|(c, v)| encode(c, v)).collect::<Result<Vec<_>>>()?;
    let mut row = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for (_, part) in columns.iter().zip(&parts).filter(|(c, _)| c.size.is_none()) {
        row.extend((part.len() as u32).to_le_bytes());
    }
    parts.iter().for_each(|part| row.extend(part));
    Ok(row)
}

impl ShardWriter for MdsShard {
    fn bytes_with(&self, sample: &[u8]) -> u64 {
        (self.head_bytes(self.ends.len() + 1) + self.rows.len() + sample.len()) as u64
    }
    fn push(&mut self, sample: &[u8]) -> Result<()> {
        self.rows.extend(sample);
        self.ends.push(self.rows.len() as u32);
        Ok(())
    }
    fn finish(mut self: Box<Self>) -> Result<Option<Json>> {
        let (n, base) = (self.ends.len() as u32, self.head_bytes(self.ends.len()) as u32);
        let mut head = n.to_le_bytes().to_vec();
        for end in std::iter::once(&0).chain(&self.ends) {
            head.extend((base + end).to_le_bytes());
        }
        head.extend(self.text.as_bytes());
        let write = |out: &mut File| out.write_all(&head).and_then(|()| out.write_all(&self.rows));
        write(&mut self.out).map_err(Error::io(&self.path))?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = head.len() + self.rows.len();
        let mut config = self.config;
        config["raw_data"] = json!({"basename": name, "bytes": bytes, "hashes": {}});
        config["zip_data"] = Json::Null;
        config["samples"] = json!(n);
        config["version"] = json!(2);
        Ok(Some(config))
    }
}
