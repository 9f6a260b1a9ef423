//! From a path or pattern to a source: the names of the files select the format.
//!
//! Flow: "shards/*.tar", "data/train-*.parquet", a folder, an MDS folder, "s3://bucket/folder" ->
//! the source of that format. [`FORMATS`] lists the formats of shards.
//! Memory: holds none.

use std::fs;
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

/// Opens the dataset at `url`: a folder of images, tar archives (a file, a folder or a pattern
/// with `*`), Parquet, Arrow, JSON Lines, CSV, TSV or LIBSVM files likewise (`libsvm:FILE` with
/// any extension), an MDS folder.
///
/// `force` makes a new index even if there is one that holds.
///
/// # Errors
/// What is missing or damaged, with its place and the fix.
pub fn open(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    if let Some(url) = url.strip_prefix(LIBSVM) {
        return Ok(Arc::new(Lines::open(url, lines::Format::Libsvm, glob::named(url)?, force)?));
    }
    let plain = url.strip_prefix("file://").unwrap_or(url);
    if plain.contains("://") {
        return open_remote(url, force);
    }
    let path = Path::new(plain);
    let missing = |what: &str| Error::Dataset { path: path.to_owned(), what: what.into() };
    if plain.contains(['*', '{', '[']) {
        let files = glob::expand(plain)?;
        if files.is_empty() {
            return Err(missing("no file matches this pattern"));
        }
        return open_shards(url, Files::new(files), force);
    }
    if path.is_file() {
        return open_shards(url, Files::new(vec![path.to_owned()]), force);
    }
    if !path.is_dir() {
        return Err(missing("there is no such file or folder"));
    }
    if ["zarr.json", ".zarray", ".zgroup"].iter().any(|name| path.join(name).is_file()) {
        return Err(missing("this is a Zarr store: open patches of its arrays with tg.volume"));
    }
    if path.join("index.json").is_file() {
        return Ok(Arc::new(Mds::open(path, force)?));
    }
    open_folder(path, url, force)
}

/// Opens a folder of shards or of images.
fn open_folder(path: &Path, url: &str, force: bool) -> Result<Arc<dyn Source>> {
    let (mut files, mut texts, mut others) = (Vec::<PathBuf>::new(), Vec::new(), false);
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if is_shard(&file) {
            files.push(file);
        } else if is_text(&file) {
            texts.push(file);
        } else {
            let hidden = file_name(&file).starts_with('.');
            others |= !hidden && (file.is_dir() || kind_of_extension(&file_name(&file)) == Kind::Image);
        }
    }
    // The layout of a Hugging Face repository: tables in a folder `data`.
    let inner = path.join("data");
    if files.is_empty() && holds_tables(&inner) {
        return open(&inner.to_string_lossy(), force);
    }
    // Next to shards, images and folders a text file describes them, and is no dataset.
    if files.is_empty() && !others {
        files = texts;
    }
    if files.is_empty() {
        return Ok(Arc::new(Folder::open(path, force)?));
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    check_one_split(path, &files)?;
    open_shards(url, Files::new(files), force)
}

/// Opens a dataset as [`open`] does, and first makes the missing checkpoints of its JPEGs, which
/// reads every sample once.
///
/// # Errors
/// As [`open`] and [`checkpoints::make`], which explains `progress`.
pub fn open_with_checkpoints(
    url: &str,
    force: bool,
    progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Arc<dyn Source>> {
    let source = open(url, force)?;
    if source.index().and_then(Index::checkpoints).is_some_and(Checkpoints::whole) {
        return Ok(source);
    }
    checkpoints::make(&*source, progress)?;
    open(url, false)
}

/// Marks a LIBSVM file with any extension.
const LIBSVM: &str = "libsvm:";

/// Refuses a folder with several splits (train-00000-of-00002.parquet, test-…): open them one by
/// one.
fn check_one_split(folder: &Path, files: &[PathBuf]) -> Result<()> {
    let split = |file: &PathBuf| {
        let name = file_name(file);
        let (before, _) = name.split_once("-of-")?;
        let (split, number) = before.rsplit_once('-')?;
        number.bytes().all(|b| b.is_ascii_digit()).then(|| split.to_owned())
    };
    let mut splits: Vec<String> = files.iter().filter(|f| is_table(f)).filter_map(split).collect();
    splits.dedup();
    if splits.len() < 2 {
        return Ok(());
    }
    let what = format!(
        "this folder holds the splits {}: open one of them, such as {:?}",
        splits.join(", "),
        folder.join(format!("{}-*", splits[splits.len() - 1]))
    );
    Err(Error::Dataset { path: folder.to_owned(), what })
}

fn holds_tables(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(|f| is_table(&f.path())))
}

/// Opens files that all have one format of [`FORMATS`].
fn open_shards(url: &str, files: Files, force: bool) -> Result<Arc<dyn Source>> {
    let paths = files.paths();
    if let Some(format) = FORMATS.iter().find(|format| paths.iter().all(|path| (format.matches)(path))) {
        return (format.open)(url, files, force);
    }
    let other = paths.iter().find(|path| !is_archive(path)).unwrap_or(&paths[0]);
    let what = "no known shard, or not of the same kind as the others: expected .tar, .tar.gz, .tar.zst, \
                .parquet, .arrow, .jsonl, .csv, .tsv or .libsvm (a folder of images is opened by the \
                folder's path)"
        .into();
    Err(Error::Dataset { path: other.clone(), what })
}

#[cfg(not(feature = "remote"))]
fn open_remote(url: &str, _: bool) -> Result<Arc<dyn Source>> {
    Err(glob::no_stores(url))
}

/// Opens the dataset at a URL of an object store: shards by name or pattern, or a folder of them.
#[cfg(feature = "remote")]
fn open_remote(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    let (store, key) = Store::open(url)?;
    let missing = |what: &str| Error::Dataset { path: url.into(), what: what.into() };
    if key.contains(['*', '{', '?']) {
        let objects = glob::expand_remote(&store, &key)?;
        if objects.is_empty() {
            return Err(missing("no object matches this pattern"));
        }
        return open_shards(url, Files::remote(store, objects), force);
    }
    let folder = key.trim_end_matches('/');
    if role_of(Path::new(folder)).is_some()
        && let Some(object) = store.find(folder)?
    {
        return open_shards(url, Files::remote(store, vec![object]), force);
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
    for (folder, mut objects) in [folder, &data].into_iter().zip(found) {
        if !objects.is_empty() {
            objects.sort_by(|a, b| natural_order(a.key.as_ref(), b.key.as_ref()));
            let paths: Vec<PathBuf> = objects.iter().map(|o| o.key.as_ref().into()).collect();
            check_one_split(Path::new(folder), &paths)?;
            return open_shards(url, Files::remote(store, objects), force);
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
