//! Tables: Parquet and Arrow files as samples, a row each, decoded a group of rows at a time.
//!
//! Flow: files -> index (one pass over all rows: their sizes, image headers and keys) -> a group
//! decoded and packed into memory of the caller -> its rows -> values.
//! Memory: see `index`; 56 bytes a group while open. The index bounds what Arrow and the codecs
//! allocate while they decode a group, from its metadata (`library_bytes`). Reading single samples
//! keeps one group for the next call.
//!
//! Why groups: compressed pages hold up to 1,024 rows, so one row costs as much as its group.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_core::sync::lock;

use arrow_array::RecordBatch;
use arrow_schema::Schema as ArrowSchema;
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::arrow_file::ArrowFile;
use super::arrow_values::Cell;
use super::columns::{self, Columns, Folders};
use super::packed_rows::{Packed, head_bytes, packed_row};
use super::parquet_file::ParquetFile;
use super::seen_values::{RowName, SeenValues};
use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::files::read::{ReadMode, aligned, staging_bytes};
use crate::index::probe::Images;
use crate::index::shard_set::shard_set;
use crate::index::{Builder, Entry, GroupMeta, Index, ShardMeta};
use crate::{Access, Grouped, Located, Source};
use crate::{Error, Place, Result, panic_message};
use tidegate_core::memory::size::mib;
use tidegate_decode::Value;
use xxhash_rust::xxh3::xxh3_64;

/// A group with more rows is damaged: their packed sizes alone would exceed 4 GiB.
const MAX_GROUP_ROWS: u64 = 1 << 30;

/// The reader of one file of a format.
pub(crate) trait Shard: Send + Sync + std::fmt::Debug {
    fn schema(&self) -> &ArrowSchema;

    /// The groups, with the library bytes that decoding each takes.
    fn groups(&self, file: &ShardFile) -> Result<Vec<GroupMeta>>;

    /// Visits the batches of a group with the wanted columns only, in the order of the schema.
    fn decode(
        &self,
        file: &ShardFile,
        number: usize,
        group: &GroupMeta,
        wanted: &[bool],
        visit: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()>;
}

/// The formats of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Parquet,
    Arrow,
}

impl Format {
    /// The format that a file's name promises.
    pub(crate) fn from_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" => Some(Self::Arrow),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
        }
    }

    fn open(self, file: &ShardFile) -> Result<Box<dyn Shard>> {
        guarded(file, 0, || {
            Ok(match self {
                Self::Parquet => Box::new(ParquetFile::open(file)?) as Box<dyn Shard>,
                Self::Arrow => Box::new(ArrowFile::open(file)?),
            })
        })
    }
}

/// One file of a table, read in one mode.
#[derive(Debug, Clone)]
pub(crate) struct ShardFile {
    files: Arc<Files>,
    shard: u32,
    mode: ReadMode,
    pub(crate) len: u64,
    /// The most bytes that one row may take once unpacked; checked while it is indexed.
    pub(crate) most_bytes: u64,
}

impl ShardFile {
    fn new(files: &Arc<Files>, shard: u32, mode: ReadMode) -> Result<Self> {
        let len = files.bytes(shard)?;
        Ok(Self { files: Arc::clone(files), shard, mode, len, most_bytes: u64::MAX })
    }

    /// The same, for indexing.
    fn checked(files: &Arc<Files>, shard: u32) -> Result<Self> {
        Ok(Self { most_bytes: files.opening_bytes(), ..Self::new(files, shard, ReadMode::Drop)? })
    }

    /// An error about a row that takes more than it may.
    pub(crate) fn too_large(&self, offset: u64, what: &str, bytes: u64) -> Error {
        let most = mib(self.most_bytes);
        let what = format!(
            "{what} of {} MiB once unpacked, where opening may take {most}: open the dataset with more, as in \
             tg.open(..., memory=\"{} MiB\"), or write smaller ones",
            mib(bytes),
            bytes.div_ceil(1 << 20)
        );
        Error::format(self.path(), offset, what)
    }

    /// Reads a range of the file.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Bytes> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let what = format!(
                "{len} bytes must be here, but the file has {}: it is truncated or damaged",
                self.len
            );
            return Err(Error::format(self.path(), offset, what));
        }
        let mut staging = aligned(staging_bytes(len) as usize);
        let range = self.files.read(self.shard, offset, len, self.mode, &mut staging)?;
        Ok(Bytes::from_owner(staging).slice(range))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.files.paths()[self.shard as usize]
    }

    /// An error about this file, such as one of a library.
    pub(crate) fn error(&self, offset: u64, what: &dyn std::fmt::Display) -> Error {
        Error::format(
            self.path(),
            offset,
            format!("{what}: the file is damaged, or of a kind that cannot be read"),
        )
    }
}

/// Adds the place to errors, and turns a panic of a library on damaged bytes into an error.
fn guarded<T>(file: &ShardFile, offset: u64, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(file.error(offset, &panic_message(&*panic))));
    outcome.map_err(|e| match e {
        Error::Decode(what) => Error::format(file.path(), offset, what.to_string()),
        other => other,
    })
}

/// A group and its place.
#[derive(Debug, Clone, Copy)]
struct Group {
    shard: u32,
    /// Its number within the shard.
    number: u32,
    /// The id of its first row.
    first: u64,
    meta: GroupMeta,
}

/// An open file, and where it has the columns of the table.
#[derive(Debug)]
struct Opened {
    shard: Box<dyn Shard>,
    columns: Columns,
    places: Vec<Option<usize>>,
    folders: Folders,
    /// Whether its columns are those of the table, in the same order and of the same types.
    same: bool,
}

impl Opened {
    fn new(shard: Box<dyn Shard>, of: &Columns, folders: Folders) -> Self {
        let columns = Columns::new(shard.schema());
        Self { places: of.places(&columns), same: columns == *of, columns, folders, shard }
    }

    /// Visits the batches of a group with the wanted columns of the table `of`.
    fn decode(
        &self,
        (file, number, group): (&ShardFile, usize, &GroupMeta),
        of: &Columns,
        wanted: &[bool],
        visit: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        if self.same {
            return self.shard.decode(file, number, group, wanted, visit);
        }
        let mut read = vec![false; self.columns.len()];
        for (place, _) in self.places.iter().zip(wanted).filter(|(_, wanted)| **wanted) {
            place.iter().for_each(|&place| read[place] = true);
        }
        self.shard.decode(file, number, group, &read, &mut |batch| {
            visit(&of.conform(batch, (&self.places, &self.folders), wanted)?)
        })
    }
}

/// Parquet or Arrow files as samples.
#[derive(Debug)]
pub(crate) struct Table {
    name: String,
    format: Format,
    index: Index,
    files: Arc<Files>,
    columns: Columns,
    /// The folders of each file.
    folders: Vec<Folders>,
    groups: Vec<Group>,
    /// The shard that was opened last, with its metadata.
    open: Mutex<Option<(u32, Arc<Opened>)>>,
    /// The last group of a single read, with its number.
    last_group: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Table {
    /// Opens files of one format, indexing them first if their index does not hold.
    ///
    /// # Errors
    /// A damaged file, or one with other columns than the first: by name.
    pub(crate) fn open(name: &str, format: Format, files: Files, force: bool) -> Result<Self> {
        let (beside, mut set, mut identity) = shard_set(&files, format.name())?;
        let folders = folders_of(name, &files);
        if folders.iter().any(|folders| !folders.is_empty()) {
            // The names of folders are data.
            let hash = xxh3_64(format!("{folders:?}").as_bytes());
            (set, identity) = (set ^ hash, identity ^ hash);
        }
        if force {
            Index::remove(&beside, set);
        }
        let files = Arc::new(files);
        let index = match Index::open(&beside, set, identity) {
            Some(index) => index,
            None => {
                let builder = Builder::new(&beside, set, identity, format.name())?;
                build(&files, format, &folders, builder)?
            }
        };
        let (columns, open) = if let Some(columns) = &index.meta.columns {
            (serde_json::from_value(columns.clone()).map_err(|e| index.damaged(e))?, None)
        } else {
            let first = format.open(&ShardFile::new(&files, 0, ReadMode::Drop)?)?;
            let columns = Columns::new(first.schema());
            let first = Opened::new(first, &columns, Folders::new());
            (columns, Some((0, Arc::new(first))))
        };
        if !columns.are_kinds_of(&index.meta.schema) {
            // An earlier build took them for something else.
            Index::remove(&beside, set);
            let files = Arc::into_inner(files).ok_or_else(|| Error::Internal("files in use".into()))?;
            return Self::open(name, format, files, true);
        }
        let mut groups = Vec::new();
        let mut next = 0;
        for (shard, meta) in index.meta.shards.iter().enumerate() {
            for (number, &meta) in meta.groups.iter().enumerate() {
                groups.push(Group { shard: shard as u32, number: number as u32, first: next, meta });
                next += meta.rows;
            }
        }
        let (name, open, last_group) = (name.to_owned(), Mutex::new(open), Mutex::default());
        Ok(Self { name, format, index, files, columns, folders, groups, open, last_group })
    }

    fn shard(&self, number: u32, file: &ShardFile) -> Result<Arc<Opened>> {
        let mut open = lock(&self.open);
        if let Some((shard, opened)) = &*open
            && *shard == number
        {
            return Ok(Arc::clone(opened));
        }
        // Drop the last one first: the memory of dictionaries is reserved once.
        *open = None;
        let folders = self.folders.get(number as usize).cloned().unwrap_or_default();
        let opened = Arc::new(Opened::new(self.format.open(file)?, &self.columns, folders));
        *open = Some((number, Arc::clone(&opened)));
        Ok(opened)
    }

    /// The group of a sample.
    fn group(&self, id: u64) -> Result<&Group> {
        self.groups.get(self.number(id)).ok_or_else(|| Error::Config(format!("no sample {id}")))
    }

    /// The number of the group of a sample.
    fn number(&self, id: u64) -> usize {
        self.groups.partition_point(|g| g.first + g.meta.rows <= id)
    }
}

/// The state while one shard is indexed.
struct Collecting<'a> {
    builder: &'a mut Builder,
    columns: &'a Columns,
    /// For each column, what was seen of its values.
    seen: &'a mut [SeenValues],
    shard: u32,
    file: &'a str,
    rows_before: u64,
}

impl Collecting<'_> {
    fn row(&mut self, row: u64, key: Option<&str>, values: &[Cell<'_>]) -> Result<u64> {
        let len: u64 = values.iter().map(Cell::packed_bytes).sum();
        let too_large = || Error::decode(format!("row {row} has {len} bytes, more than 4 GiB: split it"));
        let len = u32::try_from(len).map_err(|_| too_large())?;
        let entry = Entry { shard: self.shard, offset: row, len, ..Entry::default() };
        let mut images = Images::default();
        let named = format!("{}:{}", self.file, self.rows_before + row);
        let place = RowName { key: key.filter(|key| !key.is_empty()), number: &named };
        for (c, (value, seen)) in values.iter().zip(&mut *self.seen).enumerate() {
            seen.see(value, place, (self.columns, c), &mut images);
        }
        self.builder.push(entry, place.key.unwrap_or(&named), &images)?;
        Ok(len.into())
    }
}

/// The columns of all files and the names of classes; the columns are noted where they differ.
fn all_columns(
    files: &Arc<Files>,
    format: Format,
    folders: &[Folders],
    builder: &mut Builder,
) -> Result<(Columns, Vec<String>)> {
    let first = format.open(&ShardFile::new(files, 0, ReadMode::Drop)?)?;
    let (mut all, mut same) = (Columns::new(first.schema()), true);
    let once = |columns: &Columns, path: &PathBuf| match columns.twice() {
        Some(name) => {
            let what = format!("the column {name:?} comes twice: rename one of them");
            Err(Error::Dataset { path: path.clone(), what })
        }
        None => Ok(()),
    };
    once(&all, &files.paths()[0])?;
    let mut having: Vec<u64> = vec![1; all.len()];
    let columns_of = |i: usize| -> Result<Columns> {
        let file = ShardFile::new(files, i as u32, ReadMode::Drop)?;
        Ok(Columns::new(format.open(&file)?.schema()))
    };
    for (i, path) in files.paths().iter().enumerate().skip(1) {
        let columns = columns_of(i)?;
        once(&columns, path)?;
        same &= columns == all;
        all.join(&columns).map_err(|what| {
            let differs =
                |other: &usize| columns_of(*other).is_ok_and(|mut other| other.join(&columns).is_err());
            let other = file_name(&files.paths()[(0..i).find(differs).unwrap_or(0)]);
            let what = format!(
                "{what}, such as {other}: write it with one type in all files, or open the files apart"
            );
            Error::Dataset { path: path.clone(), what }
        })?;
        having.resize(all.len(), 0);
        for (place, having) in all.places(&columns).iter().zip(&mut having) {
            *having += u64::from(place.is_some());
        }
    }
    all.doubts().for_each(|doubt| builder.note_uncertain(doubt));
    let files = files.paths().len();
    for (name, having) in all.names().zip(having).filter(|(_, having)| *having < files as u64) {
        builder.note_uncertain(format!(
            "column {name:?} is in {having} of {files} files, and missing in the others"
        ));
    }
    if folders.iter().any(|folders| !folders.is_empty()) {
        all.add_folders(folders);
        same = false;
    }
    if !same {
        builder.note_columns(serde_json::to_value(&all).map_err(|e| Error::Internal(e.to_string()))?);
    }
    Ok((all, columns::classes(first.schema())))
}

/// The folders of each file below the dataset: below its folder, or below the one that all files
/// are in.
fn folders_of(name: &str, files: &Files) -> Vec<Folders> {
    let mut root = PathBuf::from(name);
    if !root.is_dir() {
        root = files.paths().first().and_then(|path| path.parent()).unwrap_or(Path::new("")).to_owned();
        while !files.paths().iter().all(|path| path.starts_with(&root)) && root.pop() {}
    }
    let folders = |path: &PathBuf| {
        let below = path.parent().and_then(|folder| folder.strip_prefix(&root).ok()).unwrap_or(Path::new(""));
        let named = below.iter().filter_map(|part| part.to_str()?.split_once('='));
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        named
            .map(|(name, value)| (plain(name), (value != HIVE_NULL).then(|| plain(value))))
            .collect::<Folders>()
    };
    files.paths().iter().map(folders).collect()
}

/// How Hive calls the folder of null.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

fn build(files: &Arc<Files>, format: Format, folders: &[Folders], mut builder: Builder) -> Result<Index> {
    files.left_out().iter().for_each(|left_out| builder.add_left_out(left_out.clone()));
    let (columns, classes) = all_columns(files, format, folders, &mut builder)?;
    let mut seen = vec![SeenValues::default(); columns.len()];
    let mut shards = Vec::new();
    for (i, path) in files.paths().iter().enumerate() {
        let file = ShardFile::checked(files, i as u32)?;
        let opened = Opened::new(format.open(&file)?, &columns, folders[i].clone());
        let inside = folders[i]
            .iter()
            .map(|(name, value)| format!("{name}={}/", value.as_deref().unwrap_or(HIVE_NULL)));
        let name = inside.collect::<String>() + &file_name(path);
        let before = builder.samples();
        let mut groups = guarded(&file, 0, || opened.shard.groups(&file))?;
        if let Some(group) = groups.iter().find(|g| g.rows > MAX_GROUP_ROWS) {
            return Err(file.error(group.offset, &format!("a group of {} rows", group.rows)));
        }
        groups.retain(|g| g.rows > 0);
        let mut collecting = Collecting {
            builder: &mut builder,
            columns: &columns,
            seen: &mut seen,
            shard: i as u32,
            file: &name,
            rows_before: 0,
        };
        for (number, group) in groups.iter_mut().enumerate() {
            index_group(&opened, &file, number, group, &mut collecting)?;
            collecting.rows_before += group.rows;
        }
        shards.push(ShardMeta { name, bytes: file.len, samples: builder.samples() - before, groups });
    }
    if builder.samples() == 0 {
        return Err(Error::Dataset {
            path: files.paths()[0].clone(),
            what: "these files hold no rows".into(),
        });
    }
    let images: Vec<bool> = seen.iter().map(SeenValues::are_images).collect();
    let fields = columns.fields(&images);
    for (field, seen) in fields.iter().zip(&seen) {
        seen.doubts(field).for_each(|doubt| builder.note_uncertain(doubt));
    }
    builder.note_missing(seen.iter().map(|seen| seen.missing).collect());
    builder.finish(columns.fields(&images), classes, shards)
}

fn index_group(
    reader: &Opened,
    file: &ShardFile,
    number: usize,
    group: &mut GroupMeta,
    collecting: &mut Collecting<'_>,
) -> Result<()> {
    let all = vec![true; collecting.columns.len()];
    let meta = *group;
    let (mut row, mut bytes, mut largest) = (0, head_bytes(meta.rows as usize) as u64, 0);
    let columns = collecting.columns;
    guarded(file, meta.offset, || {
        reader.decode((file, number, &meta), columns, &all, &mut |batch| {
            columns.each_row(batch, &mut |key, values| {
                let len = collecting.row(row, key, values)?;
                row += 1;
                bytes += len;
                largest = len.max(largest);
                Ok(())
            })
        })
    })?;
    if row != meta.rows {
        return Err(
            file.error(meta.offset, &format!("a group of {row} rows, where the metadata say {}", meta.rows))
        );
    }
    if bytes > u64::from(u32::MAX) {
        let what = "a group of more than 4 GiB: write the file with a smaller row_group_size";
        return Err(Error::format(file.path(), meta.offset, what));
    }
    group.packed_bytes = bytes;
    // The arrays of one batch of rows, as they are stored and as the table has them, and their
    // packed copy.
    let copies = if reader.same { 2 } else { 3 };
    let arrays = copies * bytes.min(largest * batch_rows(&meta) as u64);
    group.library_bytes = group.library_bytes.saturating_add(arrays);
    Ok(())
}

/// The number of rows that are decoded at a time: about 4 MiB by the metadata.
pub(crate) fn batch_rows(group: &GroupMeta) -> usize {
    match group.batch_rows {
        0 => rows_at_a_time(group.library_bytes / 2, group.rows) as usize,
        rows => rows as usize,
    }
}

/// The same for rows of this many bytes in all.
pub(crate) fn rows_at_a_time(bytes: u64, rows: u64) -> u64 {
    ((4 << 20) / (bytes / rows.max(1)).max(1)).clamp(1, 1024)
}

impl Grouped for Table {
    fn group_bytes(&self) -> u64 {
        self.groups.iter().map(|g| g.meta.packed_bytes).max().unwrap_or(0)
    }

    fn group_of(&self, at: &Located) -> u64 {
        self.number(at.id) as u64
    }

    fn decode(&self, at: &Located, wanted: &[bool], mode: ReadMode, into: &mut [u8]) -> Result<()> {
        let group = self.group(at.id)?;
        let file = ShardFile::new(&self.files, group.shard, mode)?;
        let reader = self.shard(group.shard, &file)?;
        let mut packed = Packed::new(into, group.meta.rows as usize);
        guarded(&file, group.meta.offset, || {
            let group = (&file, group.number as usize, &group.meta);
            reader.decode(group, &self.columns, wanted, &mut |batch| {
                packed.push(&self.columns, batch, wanted)
            })?;
            packed.finish()
        })
    }

    fn row<'a>(&self, at: &Located, group: &'a [u8]) -> Option<&'a [u8]> {
        packed_row(group, at.entry.offset as usize)
    }
}

impl Source for Table {
    fn name(&self) -> &str {
        &self.name
    }
    fn side_car_index(&self) -> Option<&Index> {
        Some(&self.index)
    }
    fn shard_lengths(&self) -> Vec<u64> {
        self.groups.iter().map(|g| g.meta.rows).collect()
    }
    fn access(&self) -> Access {
        Access::Grouped
    }
    fn grouped(&self) -> Option<&dyn Grouped> {
        Some(self)
    }
    fn units(&self) -> Vec<(String, String)> {
        self.columns.units()
    }
    fn content_version(&self) -> u64 {
        self.files.content_version()
    }
    fn index_dir(&self) -> Option<&Path> {
        Some(self.index.dir())
    }
    fn latency(&self) -> Option<Duration> {
        self.files.latency()
    }
    fn library_bytes(&self) -> u64 {
        self.groups.iter().map(|g| g.meta.library_bytes).max().unwrap_or(0)
    }
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        let mut kept = lock(&self.last_group);
        let group = self.group_of(at);
        if kept.as_ref().is_none_or(|(k, _)| *k != group) {
            let mut bytes = kept.take().map(|(_, bytes)| bytes).unwrap_or_default();
            bytes.resize(self.group(at.id)?.meta.packed_bytes as usize, 0);
            self.decode(at, &vec![true; self.columns.len()], mode, &mut bytes)?;
            *kept = Some((group, bytes));
        }
        let row =
            kept.as_ref().and_then(|(_, bytes)| self.row(at, bytes)).filter(|row| row.len() as u64 == len);
        let found = row.zip(into.get_mut(..len as usize));
        let (row, target) = found.ok_or_else(|| {
            Error::Config("a row of another size than in the index: run `tidegate index --force`".into())
        })?;
        target.copy_from_slice(row);
        Ok(0..len as usize)
    }
    fn parse<'a>(&self, _: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        self.columns.parse(bytes)
    }
    fn place(&self, at: &Located) -> Place {
        // The entry holds the number of the row; a message names the byte of its group.
        Place { offset: self.group(at.id).map_or(0, |g| g.meta.offset), ..self.index.place(at) }
    }
    fn shards(&self) -> Vec<PathBuf> {
        self.files.paths().to_vec()
    }
}
