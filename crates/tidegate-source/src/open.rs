//! From a path or pattern to a source: the names of the files select the format.
//!
//! Flow: "shards/*.tar", "data/train-*.parquet", a folder, an MDS folder, "s3://bucket/folder" ->
//! the source of that format. [`FORMATS`] lists the formats of shards.
//! Memory: holds none.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_decode::{Kind, kind_of_extension};

use crate::checkpoints::{self, Checkpoints};
use crate::files::file_set::Files;
use crate::files::glob;
use crate::files::natural::{file_name, natural_order};
#[cfg(feature = "remote")]
use crate::files::remote::{Object, Store};
use crate::formats::archive::Archive;
use crate::formats::folder::Folder;
use crate::formats::lines::{self, Lines};
use crate::formats::mds::Mds;
#[cfg(feature = "parquet")]
use crate::formats::table::{self, Table};
use crate::index::Index;
use crate::lists::{self, List};
use crate::parts::{OpenOptions, within_values};
use crate::{Error, Result, Source};

/// What a folder with such files is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A dataset of its shards.
    Shards,
    /// A dataset of tables, which may have several splits.
    Tables,
    /// A dataset only if there is nothing but text files: next to shards and images they describe
    /// these.
    Texts,
}

/// A format of shards. All files of a dataset have the same one.
struct Format {
    role: Role,
    /// Whether a file's name is of this format.
    matches: fn(&Path) -> bool,
    /// Opens files of it: name, files, whether to make a new index.
    open: fn(&str, Files, bool) -> Result<Arc<dyn Source>>,
}

/// The formats of shards. A new one needs a line here.
const FORMATS: &[Format] = &[
    #[cfg(feature = "parquet")]
    Format {
        role: Role::Tables,
        matches: |path| table::Format::from_name(path) == Some(table::Format::Parquet),
        open: |name, files, force| Ok(Arc::new(Table::open(name, table::Format::Parquet, files, force)?)),
    },
    #[cfg(feature = "parquet")]
    Format {
        role: Role::Tables,
        matches: |path| table::Format::from_name(path) == Some(table::Format::Arrow),
        open: |name, files, force| Ok(Arc::new(Table::open(name, table::Format::Arrow, files, force)?)),
    },
    Format {
        role: Role::Texts,
        matches: |path| lines::Format::from_name(path) == Some(lines::Format::Json),
        open: |name, files, force| Ok(Arc::new(Lines::open(name, lines::Format::Json, files, force)?)),
    },
    Format {
        role: Role::Texts,
        matches: |path| lines::Format::from_name(path) == Some(lines::Format::CSV),
        open: |name, files, force| Ok(Arc::new(Lines::open(name, lines::Format::CSV, files, force)?)),
    },
    Format {
        role: Role::Texts,
        matches: |path| lines::Format::from_name(path) == Some(lines::Format::TSV),
        open: |name, files, force| Ok(Arc::new(Lines::open(name, lines::Format::TSV, files, force)?)),
    },
    Format {
        role: Role::Texts,
        matches: |path| lines::Format::from_name(path) == Some(lines::Format::Libsvm),
        open: |name, files, force| Ok(Arc::new(Lines::open(name, lines::Format::Libsvm, files, force)?)),
    },
    Format {
        role: Role::Shards,
        matches: is_archive,
        open: |name, files, force| Ok(Arc::new(Archive::open(name, files, force)?)),
    },
];

/// The role of a file by its name; None for what is no shard.
fn role_of(path: &Path) -> Option<Role> {
    FORMATS.iter().find(|format| (format.matches)(path)).map(|format| format.role)
}

fn is_shard(path: &Path) -> bool {
    matches!(role_of(path), Some(Role::Shards | Role::Tables))
}

fn is_text(path: &Path) -> bool {
    role_of(path) == Some(Role::Texts)
}

fn is_table(path: &Path) -> bool {
    role_of(path) == Some(Role::Tables)
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"].iter().any(|end| name.ends_with(end))
}

/// Opens the dataset at `url` as [`open_with`] does, with other options as by default.
///
/// # Errors
/// As [`open_with`].
pub fn open(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    open_with(url, &OpenOptions { force, ..OpenOptions::default() })
}

/// Opens the dataset at `url`: a folder of images, tar archives (a file, a folder or a pattern with
/// `*`, `?`, `[0-9]` or `**`), Parquet, Arrow, JSON Lines, CSV, TSV or LIBSVM files likewise
/// (`libsvm:FILE` with any extension), an MDS folder.
///
/// # Errors
/// What is missing, damaged or ambiguous, with its place and the fix.
pub fn open_with(url: &str, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    if let Some(url) = url.strip_prefix(LIBSVM) {
        let mut files = glob::named(url)?;
        files.set_opening_bytes(options.memory_bytes);
        return Ok(Arc::new(Lines::open(url, lines::Format::Libsvm, files, options.force)?));
    }
    let plain = url.strip_prefix("file://").unwrap_or(url);
    if plain.contains("://") {
        return open_remote(url, options);
    }
    let path = Path::new(plain);
    let missing = |what: &str| Error::Dataset { path: path.to_owned(), what: what.into() };
    if path.is_file() {
        if has_ending(path, &[".json"])
            && let Some(list) = lists::wids(path, options)?
        {
            return open_list(list, options);
        }
        return open_shards(url, Files::new(vec![path.to_owned()]), options);
    }
    if path.is_dir() {
        return open_folder(path, url, options);
    }
    if plain.contains('{') || plain.contains(glob::WILD) {
        let mut files = glob::expand(plain)?;
        if files.is_empty() {
            return Err(missing("no file matches this pattern"));
        }
        // Names that are written out are what is wanted.
        if plain.contains(glob::WILD) {
            files = options.select(path, files, PathBuf::as_path)?;
        }
        return open_shards(url, Files::new(files), options);
    }
    Err(missing("there is no such file or folder"))
}

/// Opens a folder: an MDS dataset, shards, splits, or images.
fn open_folder(path: &Path, url: &str, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    if ["zarr.json", ".zarray", ".zgroup"].iter().any(|name| path.join(name).is_file()) {
        let what = "this is a Zarr store: open patches of its arrays with tg.volume".into();
        return Err(Error::Dataset { path: path.to_owned(), what });
    }
    if let Some(list) = lists::energon(path, options)? {
        return open_list(list, options);
    }
    let index = path.join("index.json");
    if index.is_file() {
        return match lists::wids(&index, options)? {
            Some(list) => open_list(list, options),
            None => Ok(Arc::new(Mds::open(path, options.force)?)),
        };
    }
    let (mut files, mut texts, mut folders, mut others) = (Vec::new(), Vec::new(), Vec::new(), false);
    let mut odd = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        let name = file_name(&file);
        match () {
            () if name.starts_with('.') => {}
            () if file.is_dir() => folders.push(name),
            // Opening a pipe would wait for a program that writes into it.
            () if !file.is_file() => odd.push(file),
            () if is_shard(&file) => files.push(file),
            () if is_text(&file) => texts.push(file),
            () => others |= kind_of_extension(&name) == Kind::Image,
        }
    }
    // The layout of a Hugging Face repository: tables in a folder `data`.
    let inner = path.join("data");
    if files.is_empty() && holds_tables(&inner) {
        return open_folder(&inner, &inner.to_string_lossy(), options);
    }
    // Next to shards, images and folders a text file describes them, and is no dataset.
    if files.is_empty() && folders.is_empty() && !others {
        files = texts;
    }
    if files.is_empty() && !folders.is_empty() && folders.iter().all(|name| name.contains('=')) {
        hive_files(path, &mut files)?;
    }
    if let (true, true, Some(first)) = (files.is_empty(), folders.is_empty() && !others, odd.first()) {
        let what = "there is no other file, and this one leads nowhere, or is a pipe or a device".into();
        return Err(Error::Dataset { path: first.clone(), what });
    }
    if files.is_empty() {
        if let Some(splits) = saved_splits(path) {
            return open_saved(path, splits, options);
        }
        return match options.select_folder(path, &folders)? {
            Some(split) => open_split(&path.join(split), options),
            None => Ok(Arc::new(Folder::open(path, options)?)),
        };
    }
    let tables = described(&mut files, PathBuf::as_path);
    if let Some(saved) = saved_files(path) {
        // What was written by an earlier call, and caches, lie beside them.
        files.retain(|file| saved.contains(&file_name(file)));
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    let mut files = Files::new(options.select(path, files, PathBuf::as_path)?);
    files.leave_out(DESCRIBING, &tables, false);
    files.leave_out("links that lead nowhere, pipes and devices", &odd, true);
    open_shards(url, files, options)
}

/// What img2dataset writes beside each archive; the archive's members say the same.
const DESCRIBING: &str = "tables that describe an archive of the same name";

/// Takes the tables that describe an archive out of a list of files, and returns their names.
fn described<T>(files: &mut Vec<T>, path: impl Fn(&T) -> &Path) -> Vec<PathBuf> {
    let archives: HashSet<PathBuf> =
        files.iter().map(&path).filter(|file| is_archive(file)).map(|file| file.with_extension("")).collect();
    let describes = |file: &Path| is_table(file) && archives.contains(&file.with_extension(""));
    let tables = files.extract_if(.., |file| describes(path(file)));
    tables.map(|file| path(&file).to_owned()).collect()
}

/// Opens the shards that a list names.
fn open_list(list: List, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    let shards = list.shards.iter().filter(|shard| shard.is_file()).cloned().collect();
    let source = open_shards(&list.path.to_string_lossy(), Files::new(shards), options)?;
    list.check(source.len())?;
    Ok(source)
}

/// The tables in folders that are called `name=value`, as Hive and Spark write them.
fn hive_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = file_name(&path);
        match () {
            () if path.is_dir() && name.contains('=') => hive_files(&path, found)?,
            // Spark's own notes.
            () if name.starts_with(['_', '.']) => {}
            () if is_table(&path) => found.push(path),
            () => {}
        }
    }
    Ok(())
}

/// Opens what `save_to_disk` wrote of a `DatasetDict`, or its chosen split.
fn open_saved(path: &Path, splits: Vec<String>, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    let parts = splits.into_iter().map(|split| (split.clone(), vec![split])).collect();
    let chosen = options.select_parts(path, parts)?;
    if let [split] = &*chosen {
        return open_split(&path.join(split), options);
    }
    let mut files = Vec::new();
    for split in chosen {
        let folder = path.join(split);
        let saved = saved_files(&folder).ok_or_else(|| Error::Dataset {
            path: folder.join("state.json"),
            what: "this split of a dataset cannot be read: write it again with save_to_disk".into(),
        })?;
        files.extend(saved.iter().map(|name| folder.join(name)));
    }
    open_shards(&path.to_string_lossy(), Files::new(files), options)
}

/// Opens a folder that is one split.
fn open_split(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    open_folder(path, &path.to_string_lossy(), &OpenOptions { split: None, ..options.clone() })
}

/// The files of a dataset that Hugging Face's `save_to_disk` wrote, as its `state.json` names them.
fn saved_files(folder: &Path) -> Option<Vec<String>> {
    let state: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("state.json")).ok()?).ok()?;
    let files = state.get("_data_files")?.as_array()?;
    files.iter().map(|file| Some(file.get("filename")?.as_str()?.to_owned())).collect()
}

/// The splits of a `DatasetDict` that `save_to_disk` wrote.
fn saved_splits(folder: &Path) -> Option<Vec<String>> {
    let dict: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("dataset_dict.json")).ok()?).ok()?;
    dict.get("splits")?.as_array()?.iter().map(|split| Some(split.as_str()?.to_owned())).collect()
}

/// Opens a dataset as [`open`] does, and first makes the missing checkpoints of its JPEGs, which
/// reads every sample once.
///
/// # Errors
/// As [`open`] and [`checkpoints::make`], which explains `progress`.
pub fn open_with_checkpoints(
    url: &str,
    options: &OpenOptions,
    progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Arc<dyn Source>> {
    let source = open_with(url, options)?;
    if source.index().and_then(Index::checkpoints).is_some_and(Checkpoints::whole) {
        return Ok(source);
    }
    checkpoints::make(&*source, progress)?;
    open_with(url, &OpenOptions { force: false, ..options.clone() })
}

/// Marks a LIBSVM file with any extension.
const LIBSVM: &str = "libsvm:";

fn holds_tables(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(|f| is_table(&f.path())))
}

/// Opens files that all have one format of [`FORMATS`].
fn open_shards(url: &str, mut files: Files, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    files.set_opening_bytes(options.memory_bytes);
    let paths = files.paths();
    if let Some(format) = FORMATS.iter().find(|format| paths.iter().all(|path| (format.matches)(path))) {
        if format.role != Role::Tables {
            let named: Vec<PathBuf> = within_values(paths).cloned().collect();
            files.leave_out(
                "values in the names of folders, which only tables have as columns",
                &named,
                true,
            );
        }
        return (format.open)(url, files, options.force);
    }
    if paths.iter().all(|path| has_ending(path, &[".json"])) {
        return open_json(url, files, options.force);
    }
    let other = paths.iter().find(|path| role_of(path).is_none()).unwrap_or(&paths[0]);
    Err(Error::Dataset { path: other.clone(), what: not_read(other).into() })
}

/// Opens files that are called .json: they have an object a line, or one array.
fn open_json(url: &str, files: Files, force: bool) -> Result<Arc<dyn Source>> {
    let files_of = Arc::new(files);
    let mut first = [0];
    let read = files_of.stream(0)?.read(&mut first).map_err(Error::io(&files_of.paths()[0]))?;
    if read == 1 && first[0] == b'[' {
        let what = "this is one array of JSON, which has no random access: write an object a line, as with \
                    `jq -c '.[]' FILE.json > FILE.jsonl`";
        return Err(Error::Dataset { path: files_of.paths()[0].clone(), what: what.into() });
    }
    let files = Arc::into_inner(files_of).ok_or_else(|| Error::Internal("files that are in use".into()))?;
    Ok(Arc::new(Lines::open(url, lines::Format::Json, files, force)?))
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Why a file is no shard, and what to do.
fn not_read(path: &Path) -> &'static str {
    let packed = [".gz", ".zst", ".bz2", ".xz"];
    let unpacked = Path::new(path.file_stem().unwrap_or_default());
    match () {
        () if has_ending(path, &packed) && (is_text(unpacked) || has_ending(unpacked, &[".json"])) => {
            "compressed lines have no random access: unpack the file, as with `gunzip` or `zstd -d`"
        }
        () if has_ending(path, &[".npy", ".npz", ".safetensors"]) => {
            "this is an array, not samples: tg.mapped opens it, and its rows() are samples"
        }
        () if role_of(path).is_some() => {
            "the files are of several kinds: open those of each kind by themselves"
        }
        () => {
            "no known shard: expected .tar, .tar.gz, .tar.zst, .parquet, .arrow, .jsonl, .csv, .tsv or .libsvm \
             (a folder of images is opened by the folder's path)"
        }
    }
}

#[cfg(not(feature = "remote"))]
fn open_remote(url: &str, _: &OpenOptions) -> Result<Arc<dyn Source>> {
    Err(glob::no_stores(url))
}

/// Opens the dataset at a URL of an object store: shards by name or pattern, or a folder of them.
#[cfg(feature = "remote")]
fn open_remote(url: &str, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    let force = options.force;
    let (store, key) = Store::open(url)?;
    // Without the query that gives access.
    let shown = store.name(&key);
    let url = &*shown.to_string_lossy();
    let missing = |what: &str| Error::Dataset { path: url.into(), what: what.into() };
    let folder = key.trim_end_matches('/');
    // As on a disk, what has this very name is what is meant.
    let named = key.contains('[') && store.lists() && !store.list(folder)?.is_empty();
    if !named && (key.contains('{') || key.contains(glob::WILD)) {
        let mut objects = glob::expand_remote(&store, &key)?;
        if objects.is_empty() {
            return Err(missing("no object matches this pattern"));
        }
        if key.contains(glob::WILD) {
            objects = options.select(Path::new(url), objects, |object| Path::new(object.key.as_ref()))?;
        }
        return open_shards(url, Files::remote(store, objects), options);
    }
    let named_file = role_of(Path::new(url.trim_end_matches('/'))).is_some();
    if named_file && let Some(object) = store.find(folder)? {
        return open_shards(url, Files::remote(store, vec![object]), options);
    }
    if named_file && !store.lists() {
        return Err(missing("the server has no such file"));
    }
    let below = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    if let Some(index) = store.find(&below("index.json"))? {
        return Ok(Arc::new(Mds::open_remote(&store, folder, &index, force)?));
    }
    if !store.lists() {
        return Err(missing(
            "plain HTTP has no folders: name the files, as in https://host/train-{000..123}.tar, or the \
             folder of an MDS dataset with its index.json",
        ));
    }
    let listed = store.list(folder)?;
    let splits = below(lists::ENERGON);
    if listed.iter().any(|object| object.key.as_ref().starts_with(&splits)) {
        return Err(missing(
            "the splits of a dataset of Energon are read on a disk only: name the shards of a split, as in \
             folder/shard_{000..099}.tar",
        ));
    }
    let within = |folder: &str, is: &dyn Fn(&Path) -> bool| -> Vec<Object> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let inside = |o: &&Object| {
            let name = o.key.as_ref().strip_prefix(&prefix);
            name.is_some_and(|name| !name.contains('/') && is(Path::new(name)))
        };
        listed.iter().filter(inside).cloned().collect()
    };
    let data = below("data");
    let mut found = [within(folder, &is_shard), within(&data, &is_shard)];
    // As on a disk, next to shards, images and folders a text file is no dataset.
    let others = within(folder, &|path| kind_of_extension(&file_name(path)) == Kind::Image);
    let only_files = within(folder, &|_| true).len() == listed.len();
    if found.iter().all(Vec::is_empty) && others.is_empty() && only_files {
        found[0] = within(folder, &is_text);
    }
    for mut objects in found {
        if !objects.is_empty() {
            let tables = described(&mut objects, |object| Path::new(object.key.as_ref()));
            objects.sort_by(|a, b| natural_order(a.key.as_ref(), b.key.as_ref()));
            let objects = options.select(Path::new(url), objects, |object| Path::new(object.key.as_ref()))?;
            let mut files = Files::remote(store, objects);
            files.leave_out(DESCRIBING, &tables, false);
            return open_shards(url, files, options);
        }
    }
    Err(missing(match listed.is_empty() {
        true => "there is no object: check the bucket and the prefix",
        false => {
            "there are objects, but no .tar, .parquet, .arrow, .jsonl, .csv, .tsv or .libsvm files and no \
             MDS index.json; single images cost a request each: `tidegate pack` puts them in shards"
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        for (url, word) in
            [("/nowhere", "no such"), ("/nowhere/*.tar", "nowhere"), ("ftp://x/y", "not known")]
        {
            assert!(open(url, false).unwrap_err().to_string().contains(word), "{url}");
        }
    }
}
