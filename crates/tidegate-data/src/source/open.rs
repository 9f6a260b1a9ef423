//! From a path or pattern to a source: what lies there decides.
//!
//! Flow: "shards/*.tar", "data/train-*.parquet", a folder, an MDS folder -> the reader of that format.
//! Memory: holds none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::Archive;
use super::checkpoints::{self, Checkpoints};
use super::folder::Folder;
use super::index::Index;
use super::mds::Mds;
use super::{Source, natural_order};
use crate::{Error, Result};

/// Opens what lies at `url`: a folder of images, tar archives (a file, a folder or a pattern with `*`),
/// Parquet or Arrow files likewise, an MDS folder.
///
/// `force` makes a new index even if there is one that holds.
///
/// # Errors
/// What is missing or damaged, with its place and the fix.
pub fn open(url: &str, force: bool) -> Result<Arc<dyn Source>> {
    let plain = url.strip_prefix("file://").unwrap_or(url);
    if let Some((scheme, _)) = plain.split_once("://") {
        return Err(Error::Dataset {
            path: url.into(),
            what: format!("{scheme}:// cannot be read yet: copy the files to a local disk"),
        });
    }
    let path = Path::new(plain);
    let missing = |what: &str| Error::Dataset { path: path.to_owned(), what: what.into() };
    if plain.contains(['*', '{', '[']) {
        let files = expand(plain)?;
        if files.is_empty() {
            return Err(missing("no file fits this pattern"));
        }
        return shards(url, files, force);
    }
    if path.is_file() {
        return shards(url, vec![path.to_owned()], force);
    }
    if !path.is_dir() {
        return Err(missing("there is no such file or folder"));
    }
    if path.join("index.json").is_file() {
        return Ok(Arc::new(Mds::open(path, force)?));
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if is_archive(&file) || is_table(&file) {
            files.push(file);
        }
    }
    // The layout of a Hugging Face repository: tables in a folder `data`.
    let inner = path.join("data");
    if files.is_empty() && holds_tables(&inner) {
        return open(&inner.to_string_lossy(), force);
    }
    if files.is_empty() {
        return Ok(Arc::new(Folder::open(path, force)?));
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    one_split(path, &files)?;
    shards(url, files, force)
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
    super::table::Format::of(path).is_some()
}

#[cfg(not(feature = "parquet"))]
fn is_table(_: &Path) -> bool {
    false
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"].iter().any(|end| name.ends_with(end))
}

fn shards(url: &str, files: Vec<PathBuf>, force: bool) -> Result<Arc<dyn Source>> {
    #[cfg(feature = "parquet")]
    if let Some(format) = files.first().and_then(|f| super::table::Format::of(f))
        && files.iter().all(|f| super::table::Format::of(f) == Some(format))
    {
        return Ok(Arc::new(super::table::Table::open(url, format, &files, force)?));
    }
    if let Some(other) = files.iter().find(|f| !is_archive(f)) {
        return Err(Error::Dataset {
            path: other.clone(),
            what: "no known shard, or not of the same kind as the others: expected .tar, .tar.gz, .tar.zst, .parquet or \
                   .arrow (a folder of images is opened by the folder's path)"
                .into(),
        });
    }
    Ok(Arc::new(Archive::open(url, &files, force)?))
}

/// Files that fit a pattern: `*` and `?` within names, `{000..123}` and `{a,b}` anywhere, in natural order.
fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
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

/// The folder, name and identity of a set of shards: their names, sizes and ends, never their times or places.
pub(super) fn shard_set(shards: &[PathBuf], format: &str) -> Result<(PathBuf, u64, u64)> {
    let mut names = xxhash_rust::xxh3::Xxh3::new();
    let mut identity = xxhash_rust::xxh3::Xxh3::new();
    names.update(format.as_bytes());
    for shard in shards {
        let size = fs::metadata(shard).map_err(Error::io(shard))?.len();
        names.update(file_name(shard).as_bytes());
        identity.update(file_name(shard).as_bytes());
        identity.update(&size.to_le_bytes());
        let len = END_BYTES.min(size);
        let mut staging = super::read::aligned(super::read::staging_bytes(len) as usize);
        for offset in [0, size - len] {
            let got = super::read::read_file(shard, offset, len, super::ReadMode::Drop, &mut staging)?;
            identity.update(&staging[got]);
        }
    }
    let beside = shards.first().and_then(|s| s.parent()).filter(|p| !p.as_os_str().is_empty());
    Ok((beside.unwrap_or(Path::new(".")).to_owned(), names.digest(), identity.digest()))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where unpacked shards of a dataset live; another `identity` is another dataset.
pub(super) fn unpacked_dir(root: &Path, identity: u64) -> Result<PathBuf> {
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
        for (url, word) in [("/nowhere", "no such"), ("/nowhere/*.tar", "nowhere"), ("s3://x/y", "s3")] {
            assert!(open(url, false).unwrap_err().to_string().contains(word), "{url}");
        }
    }
}
