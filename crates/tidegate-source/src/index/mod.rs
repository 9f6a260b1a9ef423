//! The side-car index: where each sample is, and how large it is once decoded, over any container.
//!
//! Flow: a [`Builder`] takes entries while a format scans its files; an [`Index`] finds entries
//! and keys by id.
//! Memory: an index below 1 MiB is held whole (part of an open source); a larger one is read in
//! windows into the caller's memory, past the page cache.
//!
//! Layout of version 5, in a folder `.tidegate` next to the data (or in the user's cache folder
//! where the data are read-only, or among the temporary files where that is too):
//! - `meta.json`, written last;
//! - `entries`, 24 bytes a sample (see [`Entry`]);
//! - `keys`, u64 offsets, then UTF-8 text;
//! - `checkpoints`, if any were made (see [`Checkpoints`]).

mod builder;
pub mod checkpoints;
mod entry;
pub(crate) mod probe;
pub(crate) mod shard_set;
pub mod trust;
mod verify;

use std::fs;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::builder::Builder;
use self::checkpoints::Checkpoints;
pub use self::entry::{ENTRY_BYTES, Entry, HAS_SHAPE, Located, PROGRESSIVE, SizeBounds};
use crate::files::read::{ReadMode, aligned, direct_works, read_file, staging_bytes};
use crate::left_out::LeftOut;
use crate::{Error, Place, Result};
use tidegate_decode::Schema;

const VERSION: u32 = 5;
/// The formats whose indexes of version 4 mean the same.
const SAME_SINCE_4: [&str; 3] = ["folder", "libsvm", "mds"];
/// An index of at most this many bytes is held in memory.
const HELD_BYTES: u64 = 1 << 20;
/// Entries nearer than this are read in one go.
const GAP_BYTES: u64 = 16 << 10;
const CHUNK_BYTES: u64 = 256 << 10;

/// A shard as the index knew it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMeta {
    /// Its name, relative to the dataset.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its samples.
    pub samples: u64,
    /// Its groups of rows, where samples are stored in groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupMeta>,
}

/// A group of rows: a row group of Parquet, a record batch of Arrow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMeta {
    /// Its rows.
    pub rows: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes of all its rows once decoded and packed.
    pub packed_bytes: u64,
    /// Bytes that decoding it takes at most in addition.
    pub library_bytes: u64,
    /// Rows that are decoded at a time; 0 where `library_bytes` says it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub batch_rows: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What `meta.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    version: u32,
    /// Which reader made it.
    pub format: String,
    /// A hash of the files; an index with another one does not hold.
    identity: u64,
    /// Samples.
    pub samples: u64,
    /// See [`crate::Source::fingerprint`].
    pub fingerprint: u64,
    /// Fields.
    pub schema: Schema,
    /// Names of classes.
    pub classes: Vec<String>,
    /// Shards; empty for a folder of files.
    pub shards: Vec<ShardMeta>,
    /// What is no sample.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// What is uncertain about the fields, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uncertain: Vec<String>,
    /// The columns of a table whose files have different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<serde_json::Value>,
    /// For each field, how many samples lack it; empty where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<u64>,
    /// Sizes over all samples.
    #[serde(rename = "extremes")]
    pub bounds: SizeBounds,
    keys_bytes: u64,
    /// A hash of all of the above; indexes of earlier builds have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<u64>,
}

impl Meta {
    /// A hash of the files; an index with another one does not hold.
    pub fn identity(&self) -> u64 {
        self.identity
    }
}

/// An open index.
#[derive(Debug)]
pub struct Index {
    /// What `meta.json` says.
    pub meta: Meta,
    dir: PathBuf,
    /// Where it would be if the folder of the data could be used.
    preferred: PathBuf,
    mode: ReadMode,
    entries: Option<Vec<u8>>,
    keys: Option<Vec<u8>>,
    checkpoints: Option<Checkpoints>,
}

/// A place where nothing is and nothing can be written.
const NOWHERE: &str = "/dev/null/tidegate";

/// Tidegate's folder in the user's cache folder; without a home in the temporary one.
pub(crate) fn cache_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let temporary = || temporary_folder().unwrap_or_else(|| NOWHERE.into());
    cache.map_or_else(temporary, |cache| cache.join("tidegate"))
}

/// This user's folder among the temporary files. Others can make files there too: a folder that is
/// not this user's alone is not used.
pub(crate) fn temporary_folder() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("tidegate-{user}"));
    let Ok(found) = fs::symlink_metadata(&folder) else {
        // There is none. `make_folder` looks at it again.
        return Some(folder);
    };
    (found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0).then_some(folder)
}

/// Makes a folder that others cannot write; among the temporary files one of this user alone.
pub(crate) fn make_folder(folder: &Path, data_owner: u32) -> std::io::Result<()> {
    let Some(temporary) = temporary_folder().filter(|temporary| folder.starts_with(temporary)) else {
        return trust::make_folder(folder, data_owner);
    };
    match fs::DirBuilder::new().mode(0o700).create(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Another user may have been faster.
    match temporary_folder() {
        Some(_) if fs::symlink_metadata(&temporary)?.is_dir() => fs::create_dir_all(folder),
        _ => Err(std::io::ErrorKind::PermissionDenied.into()),
    }
}

/// The folders where the index of a dataset can be, the preferred one first.
///
/// `beside` is the folder of the first file, `name` the hash of the names that the index covers.
pub fn folders(beside: &Path, name: u64) -> Vec<PathBuf> {
    let place = xxhash_rust::xxh3::xxh3_64(beside.as_os_str().as_encoded_bytes());
    let elsewhere = format!("{name:016x}-{place:016x}");
    let mut folders =
        vec![beside.join(".tidegate").join(format!("{name:016x}")), cache_folder().join(&elsewhere)];
    folders.extend(temporary_folder().map(|folder| folder.join(&elsewhere)));
    folders
}

/// What has to be trusted of an index: its files, its folder and the folder of that.
fn files_of(dir: &Path) -> [PathBuf; 5] {
    ["..", "", "meta.json", "entries", "keys"].map(|file| match file {
        ".." => dir.parent().unwrap_or(dir).to_owned(),
        _ => dir.join(file),
    })
}

impl Index {
    /// Opens the index of a dataset, if there is one that still holds, is whole, and cannot be
    /// another user's.
    #[must_use]
    pub fn open(beside: &Path, name: u64, identity: u64) -> Option<Self> {
        let (owner, folders) = (trust::owner_of(beside), folders(beside, name));
        folders.iter().find_map(|dir| {
            if !files_of(dir).iter().all(|path| trust::is_trusted(path, owner)) {
                return None;
            }
            let meta: Meta = serde_json::from_slice(&fs::read(dir.join("meta.json")).ok()?).ok()?;
            let size = |file: &str| fs::metadata(dir.join(file)).ok().map(|m| m.len());
            let entries = meta.samples.checked_mul(ENTRY_BYTES)?;
            let whole = size("entries")? == entries && size("keys")? == meta.keys_bytes;
            let current =
                meta.version == VERSION || meta.version == 4 && SAME_SINCE_4.contains(&&*meta.format);
            let holds = current && whole && meta.identity == identity && meta.is_sound();
            let load = || Self::load(dir.clone(), folders[0].clone(), meta);
            holds.then(load).flatten().filter(Self::is_whole)
        })
    }

    /// Removes the indexes of a dataset, so that the next opening makes a new one.
    pub fn remove(beside: &Path, name: u64) {
        for dir in folders(beside, name) {
            // An error means that there is none.
            fs::remove_dir_all(dir).ok();
        }
    }

    fn load(dir: PathBuf, preferred: PathBuf, meta: Meta) -> Option<Self> {
        let held = |file: &str, bytes: u64| {
            if bytes > HELD_BYTES { Some(None) } else { fs::read(dir.join(file)).ok().map(Some) }
        };
        let entries = held("entries", meta.samples * ENTRY_BYTES)?;
        let keys = held("keys", meta.keys_bytes)?;
        let mode = if direct_works(&dir.join("entries")) { ReadMode::Direct } else { ReadMode::Drop };
        let checkpoints = Checkpoints::open(&dir, meta.samples);
        Some(Self { meta, dir, preferred, mode, entries, keys, checkpoints })
    }

    /// The checkpoints of its JPEGs, if any were made.
    #[must_use]
    pub fn checkpoints(&self) -> Option<&Checkpoints> {
        self.checkpoints.as_ref()
    }

    /// Whether it is among the temporary files, because it could be written nowhere else.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        temporary_folder().is_some_and(|folder| self.dir.starts_with(folder))
    }

    /// The index beside the data, if it was passed over because others could have written it.
    #[must_use]
    pub fn passed_over(&self) -> Option<&Path> {
        let beside = self.preferred.parent().and_then(Path::parent)?;
        let owner = trust::owner_of(beside);
        let other = self.dir != self.preferred && self.preferred.join("meta.json").exists();
        let trusted = files_of(&self.preferred).iter().all(|path| trust::is_trusted(path, owner));
        (other && !trusted).then_some(&*self.preferred)
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entries of `ids`, in the order given, read in ascending order.
    ///
    /// # Errors
    /// When the file cannot be read, or an id is past the end.
    pub fn entries(&self, ids: &[u64]) -> Result<Vec<Entry>> {
        let mut found = vec![Entry::default(); ids.len()];
        let ranges: Vec<_> = ids.iter().map(|&id| id * ENTRY_BYTES..(id + 1) * ENTRY_BYTES).collect();
        self.each("entries", self.entries.as_deref(), &ranges, |i, bytes| {
            let bytes = bytes.try_into().map_err(|_| self.corrupt("entries", 0))?;
            found[i] = Entry::from_bytes(bytes);
            Ok(())
        })?;
        Ok(found)
    }

    /// The keys of `ids`, in the order given, read in ascending order.
    ///
    /// # Errors
    /// When the file cannot be read, or an id is past the end.
    pub fn keys(&self, ids: &[u64]) -> Result<Vec<String>> {
        let held = self.keys.as_deref();
        let offsets: Vec<_> = ids.iter().map(|&id| id * 8..(id + 2) * 8).collect();
        let mut ranges = vec![0..0; ids.len()];
        self.each("keys", held, &offsets, |i, b| {
            let at = |k: usize| b.get(k..k + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
            let range = at(0).zip(at(8)).map(|(start, end)| start..end);
            ranges[i] = range
                .filter(|r| r.start <= r.end && r.end <= self.meta.keys_bytes && r.end - r.start <= 1 << 16)
                .ok_or_else(|| self.corrupt("keys", offsets[i].start))?;
            Ok(())
        })?;
        let mut found = vec![String::new(); ids.len()];
        self.each("keys", held, &ranges, |i, bytes| {
            found[i] = String::from_utf8_lossy(bytes).into_owned();
            Ok(())
        })?;
        Ok(found)
    }

    /// The samples of `ids` in shards, in the order given.
    ///
    /// # Errors
    /// As [`Index::entries`].
    pub fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let entries = self.entries(ids)?;
        Ok(ids.iter().zip(entries).map(|(&id, entry)| Located { id, entry, path: "".into() }).collect())
    }

    /// The key of a sample.
    ///
    /// # Errors
    /// As [`Index::keys`].
    pub fn key(&self, id: u64) -> Result<String> {
        Ok(self.keys(&[id])?.swap_remove(0))
    }

    /// The place of a sample, as far as the index can be read.
    #[must_use]
    pub fn place(&self, at: &Located) -> Place {
        let shard = self.meta.shards.get(at.entry.shard as usize).map(|s| s.name.clone());
        let key = self.key(at.id).unwrap_or_default();
        Place { id: at.id, shard: shard.unwrap_or_default(), offset: at.entry.offset, key }
    }

    /// Visits byte ranges of a file in ascending order; ranges near each other share a read.
    fn each(
        &self,
        file: &str,
        held: Option<&[u8]>,
        ranges: &[Range<u64>],
        mut visit: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_unstable_by_key(|&i| ranges[i].start);
        if let Some(bytes) = held {
            for i in order {
                let part = bytes.get(ranges[i].start as usize..ranges[i].end as usize);
                visit(i, part.ok_or_else(|| self.corrupt(file, ranges[i].start))?)?;
            }
            return Ok(());
        }
        let path = self.dir.join(file);
        let mut staging = aligned(staging_bytes(CHUNK_BYTES) as usize);
        let mut next = 0;
        while next < order.len() {
            let start = ranges[order[next]].start;
            let mut end = ranges[order[next]].end;
            let mut last = next;
            while last + 1 < order.len() {
                let range = &ranges[order[last + 1]];
                if range.start > end + GAP_BYTES || range.end.max(end) - start > CHUNK_BYTES {
                    break;
                }
                end = end.max(range.end);
                last += 1;
            }
            let got = read_file(&path, start, end - start, self.mode, &mut staging)?;
            let bytes = &staging[got];
            for &i in &order[next..=last] {
                visit(i, &bytes[(ranges[i].start - start) as usize..(ranges[i].end - start) as usize])?;
            }
            next = last + 1;
        }
        Ok(())
    }

    /// Whether a file that had `bytes` bytes is another one by now, in words. Then the next opening
    /// makes the index again.
    pub(crate) fn changed(&self, file: &Path, bytes: u64) -> Option<String> {
        let now = fs::metadata(file).ok()?.len();
        if now == bytes {
            return None;
        }
        let fix = match fs::remove_file(self.dir.join("meta.json")) {
            Ok(()) => "open the dataset again, which makes its index again",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "open the dataset again",
            Err(_) => "run `tidegate index --force`",
        };
        Some(format!(
            "the file {} has changed since it was indexed (it has {now} bytes, and had {bytes}): {fix}",
            file.display()
        ))
    }

    /// An error about something that its `meta.json` cannot say.
    pub(crate) fn damaged(&self, what: impl std::fmt::Display) -> Error {
        let what = format!("the index is damaged ({what}): run `tidegate index --force`");
        Error::format(self.dir.join("meta.json"), 0, what)
    }

    fn corrupt(&self, file: &str, offset: u64) -> Error {
        Error::format(self.dir.join(file), offset, "the index is damaged: run `tidegate index --force`")
    }
}

#[cfg(test)]
mod tests {
    use super::builder::Builder;
    use super::probe::Images;
    use super::*;

    #[test]
    fn large_indexes_are_read_in_windows_and_agree_with_a_list() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut builder = Builder::new(dir.path(), 1, 7, "test").unwrap();
        let n = 60_000u64;
        let entry = |i: u64| Entry { offset: i * 3, len: i as u32, ..Entry::default() };
        for i in 0..n {
            let mut images = Images::default();
            images.scratch_bytes = i % 1000;
            builder.push(entry(i), &format!("key/{i}"), &images).unwrap();
        }
        let made = builder.finish(Vec::new(), Vec::new(), Vec::new()).unwrap();
        assert!(made.entries.is_none(), "this one is larger than what is held");
        assert_eq!(made.meta.bounds.scratch_id, 999);
        let index = Index::open(dir.path(), 1, 7).unwrap();
        assert_eq!(index.meta, made.meta);
        let ids: Vec<u64> = (0..500).map(|i| (i * 7919) % n).chain([0, n - 1]).collect();
        assert_eq!(index.entries(&ids).unwrap(), ids.iter().map(|&i| entry(i)).collect::<Vec<_>>());
        assert_eq!(index.keys(&ids).unwrap(), ids.iter().map(|i| format!("key/{i}")).collect::<Vec<_>>());
        assert!(index.entries(&[n]).is_err());
        assert!(Index::open(dir.path(), 1, 8).is_none(), "another identity");
    }
}
