//! From a path or pattern to a source: what lies there decides.
//!
//! Flow: "shards/*.tar", "data/train-*.parquet", a folder, an MDS folder, "s3://bucket/folder" -> the reader of that format.
//! Memory: holds none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::read::Files;
#[cfg(feature = "remote")]
use crate::files::remote::{Object, Store};
use crate::formats::archive::Archive;
use crate::formats::folder::Folder;
use crate::formats::lines::{Format, Lines};
use crate::formats::mds::Mds;
use crate::index::Index;
use crate::index::checkpoints::{self, Checkpoints};
use crate::{Error, Result};
use crate::{Source, natural_order};
use tidegate_decode::{Kind, kind_of_extension};

/// Opens what lies at `url`: a folder of images, tar archives (a file, a folder or a pattern with `*`),
/// Parquet, Arrow, JSON Lines, CSV, TSV or LIBSVM files likewise (`libsvm:FILE` whatever its name), an MDS folder.
///
/// `force` makes a new index even if there is one that holds.
///
/// # Errors
/// What is missing or damaged, with its place and the fix.
pub fn open(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    if let Some(url) = url.strip_prefix(LIBSVM) {
        return open_libsvm(url, force);
    }
    let plain = url.strip_prefix("file://").unwrap_or(url);
    if plain.contains("://") {
        return open_remote(url, force);
    }
    let path = Path::new(plain);
    let missing = |what: &str| Error::Dataset { path: path.to_owned(), what: what.into() };
    if plain.contains(['*', '{', '[']) {
        let files = expand(plain)?;
        if files.is_empty() {
            return Err(missing("no file fits this pattern"));
        }
        return shards(url, Files::new(files), force);
    }
    if path.is_file() {
        return shards(url, Files::new(vec![path.to_owned()]), force);
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
    let (mut files, mut texts, mut others) = (Vec::<PathBuf>::new(), Vec::new(), false);
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if is_archive(&file) || is_table(&file) {
            files.push(file);
        } else if Format::of(&file).is_some() {
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
    // Beside shards, pictures and folders a text file says something of them, and is no dataset.
    if files.is_empty() && !others {
        files = texts;
    }
    if files.is_empty() {
        return Ok(Arc::new(Folder::open(path, force)?));
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    one_split(path, &files)?;
    shards(url, Files::new(files), force)
}

/// Opens what lies at `url` as [`open`] does, and first makes the checkpoints of its JPEGs where they are not all made:
/// reads every sample once.
///
/// # Errors
/// As [`open`] and [`checkpoints::make`], which says what `progress` is.
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

/// Says that a file is a LIBSVM file, whatever its name.
const LIBSVM: &str = "libsvm:";

/// LIBSVM files by their names or a pattern.
fn open_libsvm(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(Lines::open(url, Format::Libsvm, named(url)?, force)?))
}

/// Files by their names or a pattern, here or in an object store, whatever their names end in.
///
/// # Errors
/// Where there is none, or one of several is no file.
pub(crate) fn named(url: &str) -> Result<Files> {
    let missing = || {
        let what = "there is no such file: name files, or a pattern such as \"folder/*.bin\"";
        Error::Dataset { path: url.into(), what: what.into() }
    };
    let plain = url.strip_prefix("file://").unwrap_or(url);
    if plain.contains("://") {
        return named_remote(url)?.ok_or_else(missing);
    }
    let files = expand(plain)?;
    match files.is_empty() || files.iter().any(|file| !file.is_file()) {
        true => Err(missing()),
        false => Ok(Files::new(files)),
    }
}

#[cfg(not(feature = "remote"))]
fn named_remote(url: &str) -> Result<Option<Files>> {
    Err(no_stores(url))
}

#[cfg(feature = "remote")]
fn named_remote(url: &str) -> Result<Option<Files>> {
    let (store, key) = Store::open(url)?;
    let objects = expand_remote(&store, &key)?;
    Ok(if objects.is_empty() { None } else { Some(Files::remote(store, objects)) })
}

/// Refuses a folder with several splits, which are to be opened one at a time: train-00000-of-00002.parquet, test-….
fn one_split(folder: &Path, files: &[PathBuf]) -> Result<()> {
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

#[cfg(feature = "parquet")]
fn is_table(path: &Path) -> bool {
    crate::formats::table::Format::of(path).is_some()
}

#[cfg(not(feature = "parquet"))]
fn is_table(_: &Path) -> bool {
    false
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"].iter().any(|end| name.ends_with(end))
}

fn shards(url: &str, files: Files, force: bool) -> Result<Arc<dyn Source>> {
    let paths = files.paths();
    #[cfg(feature = "parquet")]
    if let Some(format) = paths.first().and_then(|f| crate::formats::table::Format::of(f))
        && paths.iter().all(|f| crate::formats::table::Format::of(f) == Some(format))
    {
        return Ok(Arc::new(crate::formats::table::Table::open(url, format, files, force)?));
    }
    if let Some(format) = paths.first().and_then(|f| Format::of(f))
        && paths.iter().all(|f| Format::of(f) == Some(format))
    {
        return Ok(Arc::new(Lines::open(url, format, files, force)?));
    }
    if let Some(other) = paths.iter().find(|f| !is_archive(f)) {
        return Err(Error::Dataset {
            path: other.clone(),
            what: "no known shard, or not of the same kind as the others: expected .tar, .tar.gz, .tar.zst, .parquet, \
                   .arrow, .jsonl, .csv, .tsv or .libsvm (a folder of images is opened by the folder's path)"
                .into(),
        });
    }
    Ok(Arc::new(Archive::open(url, files, force)?))
}

#[cfg(not(feature = "remote"))]
fn open_remote(url: &str, _: bool) -> Result<Arc<dyn Source>> {
    Err(no_stores(url))
}

#[cfg(not(feature = "remote"))]
fn no_stores(url: &str) -> Error {
    let what = "this build reads no object stores: build it with the feature `remote`".into();
    Error::Dataset { path: url.into(), what }
}

/// Opens what lies at a URL of an object store: shards by their names or a pattern, or a folder of them.
#[cfg(feature = "remote")]
fn open_remote(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    let (store, key) = Store::open(url)?;
    let missing = |what: &str| Error::Dataset { path: url.into(), what: what.into() };
    if key.contains(['*', '{', '?']) {
        let objects = expand_remote(&store, &key)?;
        if objects.is_empty() {
            return Err(missing("no object fits this pattern"));
        }
        return shards(url, Files::remote(store, objects), force);
    }
    let folder = key.trim_end_matches('/');
    if (is_archive(Path::new(folder))
        || is_table(Path::new(folder))
        || Format::of(Path::new(folder)).is_some())
        && let Some(object) = store.find(folder)?
    {
        return shards(url, Files::remote(store, vec![object]), force);
    }
    let below = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    if let Some(index) = store.find(&below("index.json"))? {
        return Ok(Arc::new(Mds::open_remote(&store, folder, &index, force)?));
    }
    if !store.lists() {
        return Err(missing(
            "plain HTTP has no folders: name the files, as in https://host/train-{000..123}.tar, or the folder of an MDS data \
             set with its index.json",
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
    let shard = |path: &Path| is_archive(path) || is_table(path);
    let text = |path: &Path| Format::of(path).is_some();
    let data = below("data");
    let mut found = [within(folder, &shard), within(&data, &shard)];
    // As on a disk, beside shards, pictures and folders a text file is no dataset.
    let others = within(folder, &|path| kind_of_extension(&file_name(path)) == Kind::Image);
    if found.iter().all(Vec::is_empty) && others.is_empty() && within(folder, &|_| true).len() == listed.len()
    {
        found[0] = within(folder, &text);
    }
    for (folder, mut objects) in [folder, &data].into_iter().zip(found) {
        if !objects.is_empty() {
            objects.sort_by(|a, b| natural_order(a.key.as_ref(), b.key.as_ref()));
            let paths: Vec<PathBuf> = objects.iter().map(|o| o.key.as_ref().into()).collect();
            one_split(Path::new(folder), &paths)?;
            return shards(url, Files::remote(store, objects), force);
        }
    }
    Err(missing(match listed.is_empty() {
        true => "there is nothing: check the bucket and the prefix",
        false => {
            "there are objects, but no .tar, .parquet, .arrow, .jsonl, .csv, .tsv or .libsvm files and no MDS index.json; single \
             images cost a request each: `tidegate pack` puts them in shards"
        }
    }))
}

/// Objects that fit a pattern, in natural order.
#[cfg(feature = "remote")]
fn expand_remote(store: &Store, pattern: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for pattern in braces(pattern) {
        let Some(wild) = pattern.find(['*', '?']) else {
            let missing = || Error::Dataset {
                path: store.name(&pattern.as_str().into()),
                what: "there is no such object".into(),
            };
            objects.push(store.find(&pattern)?.ok_or_else(missing)?);
            continue;
        };
        if !store.lists() {
            let what = "plain HTTP cannot be searched: name the files, as in train-{000..123}.tar".into();
            return Err(Error::Dataset { path: store.name(&pattern.as_str().into()), what });
        }
        let prefix = pattern[..wild].rsplit_once('/').map_or("", |(folder, _)| folder);
        let parts: Vec<&str> = pattern.split('/').collect();
        let mut found = store.list(prefix)?;
        found.retain(|object| {
            let names: Vec<_> = object.key.as_ref().split('/').collect();
            names.len() == parts.len()
                && parts.iter().zip(names).all(|(part, name)| fits(part.as_bytes(), name.as_bytes()))
        });
        found.sort_by(|a, b| natural_order(a.key.as_ref(), b.key.as_ref()));
        objects.extend(found);
    }
    Ok(objects)
}

/// Files that fit a pattern: `*` and `?` within names, `{000..123}` and `{a,b}` anywhere, in natural order.
pub(crate) fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for pattern in braces(pattern) {
        if pattern.contains(['*', '?', '[']) {
            let mut found = Vec::new();
            walk(Path::new(&pattern), &mut found)?;
            found.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
            files.extend(found);
        } else {
            files.push(pattern.into());
        }
    }
    Ok(files)
}

fn braces(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let Some((inside, after)) = rest.split_once('}') else { return vec![pattern.to_owned()] };
    let choices: Vec<String> = match inside.split_once("..") {
        Some((low, high)) => match (low.parse::<u64>(), high.parse::<u64>()) {
            (Ok(a), Ok(b)) if a <= b && b - a < 1_000_000 => {
                (a..=b).map(|i| format!("{i:0width$}", width = low.len())).collect()
            }
            _ => return vec![pattern.to_owned()],
        },
        None => inside.split(',').map(str::to_owned).collect(),
    };
    choices.iter().flat_map(|choice| braces(&format!("{before}{choice}{after}"))).collect()
}

fn walk(pattern: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut folders = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy().into_owned();
        if !text.contains(['*', '?']) {
            for folder in &mut folders {
                folder.push(part);
            }
            continue;
        }
        let mut next = Vec::new();
        for folder in &folders {
            let dir = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
                let name = entry.map_err(Error::io(dir))?.file_name();
                let hidden = name.to_string_lossy().starts_with('.') && !text.starts_with('.');
                if !hidden && fits(text.as_bytes(), name.to_string_lossy().as_bytes()) {
                    next.push(folder.join(name));
                }
            }
        }
        folders = next;
    }
    found.extend(folders.into_iter().filter(|f| f.exists()));
    Ok(())
}

/// Whether a name fits a pattern of `*` and `?`.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if p < pattern.len() && (pattern[p] == b'?' || pattern[p] == name[n]) && pattern[p] != b'*' {
            (p, n) = (p + 1, n + 1);
        } else if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if let Some((sp, sn)) = star {
            (p, n) = (sp + 1, sn + 1);
            star = Some((sp, sn + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// What is hashed of each end of a shard: its first headers, and the end that a rewritten one would change.
const END_BYTES: u64 = 8 << 10;

/// The folder, name and identity of a set of shards: their names, sizes and ends, never their times or places; of objects the
/// tags of their versions rather than their ends, where the server has them.
pub(crate) fn shard_set(files: &Files, format: &str) -> Result<(PathBuf, u64, u64)> {
    let mut names = xxhash_rust::xxh3::Xxh3::new();
    let mut identity = xxhash_rust::xxh3::Xxh3::new();
    names.update(format.as_bytes());
    for (i, shard) in files.paths().iter().enumerate() {
        let size = files.bytes(i as u32)?;
        names.update(file_name(shard).as_bytes());
        identity.update(file_name(shard).as_bytes());
        identity.update(&size.to_le_bytes());
        #[cfg(feature = "remote")]
        if let Some(tag) = files.objects().and_then(|objects| objects[i].tag.as_deref()) {
            identity.update(tag.as_bytes());
            continue;
        }
        let len = END_BYTES.min(size);
        let mut staging = crate::files::read::aligned(crate::files::read::staging_bytes(len) as usize);
        for offset in [0, size - len] {
            let got = files.read(i as u32, offset, len, crate::ReadMode::Drop, &mut staging)?;
            identity.update(&staging[got]);
        }
    }
    Ok((beside(files), names.digest(), identity.digest()))
}

/// Where the index of these shards lies: beside them, or for objects in the user's cache folder, under a hash of where they are.
pub(crate) fn beside(files: &Files) -> PathBuf {
    let folder = files.paths().first().and_then(|s| s.parent()).filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if files.is_remote() {
        let place = xxhash_rust::xxh3::xxh3_64(folder.as_os_str().as_encoded_bytes());
        return crate::index::cache_folder().join("remote").join(format!("{place:016x}"));
    }
    folder.to_owned()
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where unpacked shards of a dataset live; another `identity` is another dataset.
pub(crate) fn unpacked_dir(root: &Path, identity: u64) -> Result<PathBuf> {
    let dir = root.join(".tidegate").join(format!("unpacked-{identity:016x}"));
    if fs::create_dir_all(&dir).is_ok() {
        return Ok(dir);
    }
    let cache = std::env::temp_dir().join("tidegate-unpacked");
    let place = xxhash_rust::xxh3::xxh3_64(root.as_os_str().as_encoded_bytes());
    let dir = cache.join(format!("{place:016x}-{identity:016x}"));
    fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(fits(b"*.tar", b"a.tar") && fits(b"a?c*", b"abcd") && !fits(b"*.tar", b"a.tar.gz"));
        assert_eq!(
            braces("s-{08..10}.{tar,x}"),
            ["s-08.tar", "s-08.x", "s-09.tar", "s-09.x", "s-10.tar", "s-10.x"]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for (url, word) in
            [("/nowhere", "no such"), ("/nowhere/*.tar", "nowhere"), ("ftp://x/y", "not known")]
        {
            assert!(open(url, false).unwrap_err().to_string().contains(word), "{url}");
        }
    }
}
