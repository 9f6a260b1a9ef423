//! MosaicML MDS v2: shards with an offset table and typed columns, described by index.json.
//!
//! Flow: index.json + shards -> index -> one read a sample -> columns.
//! Memory: see `index`. A compressed shard is unpacked once into the side-car folder, through a
//! window of 64 KiB.
//!
//! Layout of a shard: u32 n | u32 offsets[n+1] | config JSON | rows; a row is the sizes (u32) of
//! its variable columns, then the values in column order. All little-endian. `pkl` columns are
//! refused: unpickling runs code.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::mds_shards::{ShardJson, check_hashes, raw_files};
use crate::files::file_set::Files;
use crate::files::read::{ReadMode, aligned, staging_bytes};
#[cfg(feature = "remote")]
use crate::files::remote::{Object, Store};
use crate::index::probe::Images;
#[cfg(feature = "remote")]
use crate::index::shard_set::beside;
use crate::index::{Builder, Entry, Index, ShardMeta};
use crate::{Error, Result};
use crate::{Located, Source};
use tidegate_decode::header;
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Schema, Value};

/// The most bytes of an index.json in a store, of some million shards: a server may claim anything.
#[cfg(feature = "remote")]
const INDEX_BYTES: u64 = 1 << 30;
/// Encodings of several images in one value.
const SEVERAL_IMAGES: [&str; 5] = ["jpeg_array", "jpegarray", "list[pil]", "list[jpeg]", "list[png]"];

#[derive(Debug, Deserialize)]
struct IndexJson {
    version: u32,
    shards: Vec<ShardJson>,
    /// Notes of `tidegate pack`, which other readers skip.
    #[serde(default)]
    tidegate: Notes,
}

#[derive(Debug, Default, Deserialize)]
struct Notes {
    /// Columns of bytes that are compact arrays.
    #[serde(default)]
    compact: BTreeMap<String, CompactJson>,
    /// The names of the classes that an integer column counts.
    #[serde(default)]
    classes: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct CompactJson {
    dtype: String,
    shape: Vec<usize>,
    codec: String,
}

/// An MDS dataset.
#[derive(Debug)]
pub(crate) struct Mds {
    root: PathBuf,
    index: Index,
    files: Arc<Files>,
    columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    encoding: String,
    size: Option<u32>,
}

impl Mds {
    /// Opens the dataset in `root`, indexing it first if its index does not hold.
    ///
    /// # Errors
    /// A missing shard, a wrong hash, a `pkl` column, a damaged offset table: each by name.
    pub(crate) fn open(root: &Path, force: bool) -> Result<Self> {
        let path = root.join("index.json");
        let text = fs::read(&path).map_err(Error::io(&path))?;
        let json = parse(&path, &text)?;
        for shard in &json.shards {
            check_file(root, &path, shard)?;
        }
        let identity = xxhash_rust::xxh3::xxh3_64(&text);
        let files = Files::new(raw_files(root, identity, &json.shards, force)?);
        Self::indexed(root, root, &path, &json, identity, files, force)
    }

    /// Opens the dataset below a key of a store, whose `index.json` is `object`.
    ///
    /// # Errors
    /// As [`Mds::open`]; compressed shards, which would have to be downloaded whole.
    #[cfg(feature = "remote")]
    pub(crate) fn open_remote(
        store: &Arc<Store>,
        folder: &str,
        object: &Object,
        force: bool,
    ) -> Result<Self> {
        let path = store.name(object.key.as_ref());
        if object.bytes > INDEX_BYTES {
            let what = format!("an index.json of {} MiB: no dataset has such a one", object.bytes >> 20);
            return Err(Error::Dataset { path, what });
        }
        let mut text = vec![0; object.bytes as usize];
        store.read(object, 0, &mut text)?;
        let json = parse(&path, &text)?;
        let listed = if store.lists() { store.list(folder)? } else { Vec::new() };
        let mut objects = Vec::new();
        for shard in &json.shards {
            let raw = &shard.raw_data;
            let key = store.key([folder, &raw.basename].join("/").trim_start_matches('/'))?;
            let found = listed.binary_search_by(|o| o.key.as_ref().cmp(key.as_ref()));
            let wrong = |what: String| Error::Dataset { path: store.name(key.as_ref()), what };
            match found.map(|i| &listed[i]) {
                Ok(object) if object.bytes == raw.bytes => objects.push(object.clone()),
                Ok(object) => {
                    let what = format!(
                        "it has {} bytes, the index says {}: upload it again",
                        object.bytes, raw.bytes
                    );
                    return Err(wrong(what));
                }
                // Without a list the index is trusted; each read checks the size.
                Err(_) if !store.lists() && shard.zip_data.is_none() => {
                    objects.push(Object { key, bytes: raw.bytes, tag: None });
                }
                Err(_) if shard.zip_data.is_some() => {
                    return Err(wrong(
                        "compressed MDS shards have no random access in a store: copy the dataset to a \
                         local disk, or write it without compression"
                            .into(),
                    ));
                }
                Err(_) => return Err(wrong("the index names this shard, which is missing".into())),
            }
        }
        let mut identity = xxhash_rust::xxh3::Xxh3::new();
        identity.update(&text);
        objects
            .iter()
            .for_each(|object| identity.update(object.tag.as_deref().unwrap_or_default().as_bytes()));
        let files = Files::remote(Arc::clone(store), objects);
        let folder = beside(&files);
        let root = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::indexed(&root, &folder, &path, &json, identity.digest(), files, force)
    }

    fn indexed(
        root: &Path,
        beside: &Path,
        path: &Path,
        json: &IndexJson,
        identity: u64,
        files: Files,
        force: bool,
    ) -> Result<Self> {
        let (schema, columns) = schema(path, &json.shards[0], &json.tidegate.compact)?;
        let files = Arc::new(files);
        let name = xxhash_rust::xxh3::xxh3_64(b"mds");
        if force {
            Index::remove(beside, name);
        }
        let index = match Index::open(beside, name, identity) {
            Some(index) => index,
            None => {
                let builder = Builder::new(beside, name, identity, "mds")?;
                build(&files, json, schema, &columns, builder)?
            }
        };
        Ok(Self { root: root.to_owned(), index, files, columns })
    }
}

/// Parses and checks `index.json`.
fn parse(path: &Path, text: &[u8]) -> Result<IndexJson> {
    let json: IndexJson = serde_json::from_slice(text)
        .map_err(|e| Error::format(path, 0, format!("this is no MDS index: {e}")))?;
    let dataset = |what: String| Error::Dataset { path: path.to_owned(), what };
    if json.version != 2 {
        return Err(dataset(format!("MDS version {}; only version 2 can be read", json.version)));
    }
    let Some(first) = json.shards.first() else { return Err(dataset("it lists no shards".into())) };
    for shard in &json.shards {
        check_shard(path, shard, first)?;
    }
    Ok(json)
}

fn schema(
    path: &Path,
    shard: &ShardJson,
    compact: &BTreeMap<String, CompactJson>,
) -> Result<(Schema, Vec<Column>)> {
    let wrong = |what: String| Error::Dataset { path: path.to_owned(), what };
    let n = shard.column_names.len();
    if shard.column_encodings.len() != n || shard.column_sizes.len() != n {
        return Err(wrong("column names, encodings and sizes differ in number".into()));
    }
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for ((name, encoding), &size) in
        shard.column_names.iter().zip(&shard.column_encodings).zip(&shard.column_sizes)
    {
        let size = size.filter(|&s| s > 0);
        let (base, config) = encoding.split_once(':').unwrap_or((encoding, ""));
        let kind = match base {
            "bytes" if let Some(CompactJson { dtype, shape, codec }) = compact.get(name) => Kind::Compact {
                dtype: DType::parse(dtype).map_err(|e| wrong(format!("column {name:?}: {e}")))?,
                shape: shape.clone(),
                codec: codec.clone(),
            },
            "bytes" => Kind::Bytes,
            several if SEVERAL_IMAGES.contains(&several) => Kind::Bytes,
            "str" | "str_decimal" => Kind::Text,
            "json" => Kind::Json,
            "jpeg" | "png" => Kind::Image,
            "pil" => Kind::Pixels,
            "int" | "uint8" | "uint16" | "uint32" | "uint64" | "int8" | "int16" | "int32" | "int64"
            | "str_int" => Kind::Int,
            "float16" | "float32" | "float64" | "str_float" => Kind::Float,
            "ndarray" => {
                let mut parts = config.split(':').filter(|s| !s.is_empty());
                let dtype = parts.next().map(str::to_owned);
                let shape = parts.next().and_then(|s| s.split(',').map(|d| d.parse().ok()).collect());
                Kind::NdArray { dtype, shape }
            }
            "pkl" => {
                return Err(wrong(format!(
                    "column {name:?} is pickled, and unpickling runs code from the data: rewrite it with \
                     streaming.MDSWriter(columns={{{name:?}: \"json\"}}) or another encoding (bytes, ndarray, …)"
                )));
            }
            other => {
                return Err(wrong(format!("column {name:?} has the encoding {other:?}, which is unknown")));
            }
        };
        let fixed = fixed_size(base);
        if fixed.is_some() && size != fixed {
            return Err(wrong(format!("column {name:?} ({encoding}) says a size of {size:?} bytes")));
        }
        fields.push(Field { name: name.clone(), kind });
        columns.push(Column { encoding: base.to_owned(), size });
    }
    Ok((fields, columns))
}

fn fixed_size(encoding: &str) -> Option<u32> {
    Some(match encoding {
        "uint8" | "int8" => 1,
        "uint16" | "int16" | "float16" => 2,
        "uint32" | "int32" | "float32" => 4,
        "int" | "uint64" | "int64" | "float64" => 8,
        _ => return None,
    })
}

fn check_shard(path: &Path, shard: &ShardJson, first: &ShardJson) -> Result<()> {
    let wrong = |what: String| Err(Error::Dataset { path: path.to_owned(), what });
    let name = &shard.raw_data.basename;
    if shard.format != "mds" {
        return wrong(format!("shard {name} has the format {:?}, not mds", shard.format));
    }
    if shard.column_names != first.column_names || shard.column_encodings != first.column_encodings {
        return wrong(format!("shard {name} has other columns than the first one"));
    }
    let on_disk = shard.zip_data.as_ref().unwrap_or(&shard.raw_data);
    for file in [&shard.raw_data, on_disk] {
        let plain =
            Path::new(&file.basename).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain {
            return wrong(format!("shard {:?} is outside the dataset", file.basename));
        }
    }
    Ok(())
}

/// Checks that a shard exists and has the length of the index.
fn check_file(root: &Path, path: &Path, shard: &ShardJson) -> Result<()> {
    let wrong = |what: String| Err(Error::Dataset { path: path.to_owned(), what });
    let on_disk = shard.zip_data.as_ref().unwrap_or(&shard.raw_data);
    let present = [on_disk, &shard.raw_data]
        .into_iter()
        .find_map(|f| fs::metadata(root.join(&f.basename)).ok().map(|m| (f, m.len())));
    match present {
        None => wrong(format!(
            "the index names shard {}, which is not there: download it, or restore the dataset",
            on_disk.basename
        )),
        Some((file, len)) if len != file.bytes => wrong(format!(
            "shard {} has {len} bytes, the index says {}: it is truncated or was replaced; download it again",
            file.basename, file.bytes
        )),
        Some(_) => Ok(()),
    }
}

fn build(
    files: &Arc<Files>,
    json: &IndexJson,
    schema: Schema,
    columns: &[Column],
    mut builder: Builder,
) -> Result<Index> {
    let mut metas = Vec::new();
    for (i, shard) in json.shards.iter().enumerate() {
        let path = &files.paths()[i];
        // Hashing an object would download it; each read checks the version that was listed.
        if shard.zip_data.is_none() && !files.is_remote() {
            check_hashes(path, &shard.raw_data.hashes)?;
        }
        let offsets = offset_table(files, i as u32, shard)?;
        for (row, pair) in offsets.windows(2).enumerate() {
            let len = pair[1] - pair[0];
            let entry = Entry { shard: i as u32, offset: u64::from(pair[0]), len, ..Entry::default() };
            let images = probe_row(files, i as u32, &entry, columns).unwrap_or_default();
            let key = format!("{}:{row}", shard.raw_data.basename);
            builder.push(entry, &key, &images)?;
        }
        let name = shard.raw_data.basename.clone();
        metas.push(ShardMeta {
            name,
            bytes: shard.raw_data.bytes,
            samples: shard.samples,
            groups: Vec::new(),
        });
    }
    for (field, column) in schema.iter().zip(columns) {
        if SEVERAL_IMAGES.contains(&&*column.encoding) {
            builder.note_uncertain(format!(
                "column {:?} has the encoding {:?}, several images in one value: it comes as bytes, as MDS frames them",
                field.name, column.encoding
            ));
        }
    }
    builder.finish(schema, json.tidegate.classes.clone(), metas)
}

/// The images in a row; None if no column can hold one, or the row cannot be read.
fn probe_row(files: &Files, shard: u32, entry: &Entry, columns: &[Column]) -> Option<Images> {
    if !columns.iter().any(|c| matches!(c.encoding.as_str(), "jpeg" | "png" | "pil" | "bytes")) {
        return None;
    }
    let read = |len: u64| {
        let len = len.min(u64::from(entry.len));
        let mut staging = aligned(staging_bytes(len) as usize);
        let got = files.read(shard, entry.offset, len, ReadMode::Drop, &mut staging).ok()?;
        Some(staging[got].to_vec())
    };
    let head = read(header::LOOK_BYTES)?;
    let spans = spans(columns, &head, u64::from(entry.len)).ok()?;
    let mut images = Images::default();
    for (column, span) in columns.iter().zip(spans) {
        let size = (span.end - span.start) as u64;
        let found = match column.encoding.as_str() {
            "pil" => head.get(span.start..).and_then(header::pixels),
            "jpeg" | "png" | "bytes" => header::probe_with(size, &mut |len| {
                let end = (span.start as u64 + len.min(size)).min(u64::from(entry.len));
                let bytes = if end as usize <= head.len() { None } else { read(end) };
                bytes.as_deref().unwrap_or(&head).get(span.start..end as usize).map(<[u8]>::to_vec)
            }),
            _ => None,
        };
        if let Some(header) = found {
            images.add(header);
        }
    }
    Some(images)
}

fn offset_table(files: &Arc<Files>, number: u32, shard: &ShardJson) -> Result<Vec<u32>> {
    let path = files.path(number)?;
    let wrong =
        |offset: u64, what: &str| Error::format(path, offset, format!("{what}: download the shard again"));
    let mut file = io::BufReader::new(files.stream(number)?);
    let mut word = [0; 4];
    file.read_exact(&mut word).map_err(Error::io(path))?;
    let n = u64::from(u32::from_le_bytes(word));
    let table = 4 * (n + 2);
    if n != shard.samples || table > shard.raw_data.bytes {
        return Err(wrong(0, &format!("the shard says it has {n} samples, the index {}", shard.samples)));
    }
    let mut offsets = Vec::with_capacity(n as usize + 1);
    for i in 0..=n {
        file.read_exact(&mut word).map_err(Error::io(path))?;
        let offset = u32::from_le_bytes(word);
        let least = offsets.last().map_or(table, |&o| u64::from(o));
        if u64::from(offset) < least || u64::from(offset) > shard.raw_data.bytes {
            return Err(wrong(4 * (i + 1), "the offset table does not ascend within the file"));
        }
        offsets.push(offset);
    }
    Ok(offsets)
}

/// The range of each column in a row of `len` bytes; `row` holds at least the sizes.
fn spans(columns: &[Column], row: &[u8], len: u64) -> Result<Vec<Range<usize>>, String> {
    let mut sizes = Vec::with_capacity(columns.len());
    let mut at = 0;
    for column in columns {
        sizes.push(match column.size {
            Some(size) => size as usize,
            None => {
                let word = row.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
                at += 4;
                word.ok_or("the row ends within its sizes")? as usize
            }
        });
    }
    let mut spans = Vec::with_capacity(columns.len());
    for size in sizes {
        spans.push(at..at + size);
        at += size;
    }
    if at as u64 != len {
        return Err(format!("the columns add up to {at} bytes, the row has {len}"));
    }
    Ok(spans)
}

fn scalar(encoding: &str, b: &[u8]) -> Option<Value<'static>> {
    let text = || std::str::from_utf8(b).ok();
    Some(match encoding {
        "int" | "int64" => Value::Int(i64::from_le_bytes(b.try_into().ok()?)),
        "uint64" => Value::Int(i64::try_from(u64::from_le_bytes(b.try_into().ok()?)).ok()?),
        "uint32" => Value::Int(u32::from_le_bytes(b.try_into().ok()?).into()),
        "int32" => Value::Int(i32::from_le_bytes(b.try_into().ok()?).into()),
        "uint16" => Value::Int(u16::from_le_bytes(b.try_into().ok()?).into()),
        "int16" => Value::Int(i16::from_le_bytes(b.try_into().ok()?).into()),
        "uint8" => Value::Int((*b.first()?).into()),
        "int8" => Value::Int(b.first()?.cast_signed().into()),
        "str_int" => Value::Int(text()?.trim().parse().ok()?),
        "float64" => Value::Float(f64::from_le_bytes(b.try_into().ok()?)),
        "float32" => Value::Float(f32::from_le_bytes(b.try_into().ok()?).into()),
        "float16" => Value::Float(half::f16::from_le_bytes(b.try_into().ok()?).into()),
        "str_float" => Value::Float(text()?.trim().parse().ok()?),
        _ => return None,
    })
}

impl Source for Mds {
    fn name(&self) -> &str {
        self.root.to_str().unwrap_or("mds")
    }
    fn side_car_index(&self) -> Option<&Index> {
        Some(&self.index)
    }
    fn files(&self) -> Option<&Files> {
        Some(&self.files)
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        let path = &self.files.paths()[at.entry.shard as usize];
        let spans = spans(&self.columns, bytes, bytes.len() as u64)
            .map_err(|what| Error::format(path, at.entry.offset, format!("{what}: the shard is damaged")))?;
        let values = self.columns.iter().zip(spans).zip(self.schema()).map(|((column, span), field)| {
            let bytes = &bytes[span.clone()];
            if !matches!(field.kind, Kind::Int | Kind::Float) {
                return Ok(Value::Bytes(bytes));
            }
            scalar(&column.encoding, bytes).ok_or_else(|| {
                let what = format!("field {:?} is no {} that fits 64 bits", field.name, column.encoding);
                Error::format(path, at.entry.offset + span.start as u64, what)
            })
        });
        values.collect()
    }
}
