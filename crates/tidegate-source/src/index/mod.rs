//! The side-car index: where each sample lies and how large it is once decoded, over any container.
//!
//! Flow: a builder takes entries while a source scans its files; an [`Index`] finds entries and keys by id.
//! Memory: an index below 1 MiB is held whole (part of an open source); a larger one is read in windows into the
//! caller's hands, past the page cache.
//!
//! Layout of version 3, in a folder `.tidegate` beside the data (or in the user's cache folder when that is read-only):
//! `meta.json` (written last), `entries` (24 bytes a sample, little-endian), `keys` (u64 offsets, then UTF-8 text) and perhaps
//! `checkpoints` (see there).
//! `entries`: shard u32 | offset u48 | length u32 | height u16 | width u16 | crc32c u32 | zero u8 | flags u8.

pub mod checkpoints;
pub(crate) mod probe;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use self::checkpoints::Checkpoints;
use self::probe::Images;
use crate::files::read::{ReadMode, aligned, direct_works, read_file, staging_bytes};
use crate::{Error, Place, Result};
use crate::{Extremes, Located};
use tidegate_decode::Schema;

/// Bytes of an entry in the file.
pub const ENTRY_BYTES: u64 = 24;
const VERSION: u32 = 4;
/// An index of at most this many bytes is held in memory.
const HELD_BYTES: u64 = 1 << 20;
/// Entries nearer than this are read in one go.
const GAP_BYTES: u64 = 16 << 10;
const CHUNK_BYTES: u64 = 256 << 10;

/// The decoded shape is known.
pub const HAS_SHAPE: u8 = 1;
/// Decoding needs the whole picture in memory at once (progressive JPEG, interlaced PNG).
pub const PROGRESSIVE: u8 = 2;
/// The checksum is known.
pub const HAS_CRC: u8 = 4;

/// One sample in the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// The shard's number; for a folder of files the sample's own.
    pub shard: u32,
    /// Byte offset in the shard; for a folder of files the number of the class.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Height of the largest image in pixels.
    pub height: u16,
    /// Its width.
    pub width: u16,
    /// CRC32C of the bytes.
    pub crc: u32,
    /// [`HAS_SHAPE`], [`PROGRESSIVE`], [`HAS_CRC`].
    pub flags: u8,
}

impl Entry {
    /// The entry's bytes in the file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ENTRY_BYTES as usize] {
        let mut b = [0; ENTRY_BYTES as usize];
        b[0..4].copy_from_slice(&self.shard.to_le_bytes());
        b[4..10].copy_from_slice(&self.offset.to_le_bytes()[..6]);
        b[10..14].copy_from_slice(&self.len.to_le_bytes());
        b[14..16].copy_from_slice(&self.height.to_le_bytes());
        b[16..18].copy_from_slice(&self.width.to_le_bytes());
        b[18..22].copy_from_slice(&self.crc.to_le_bytes());
        b[23] = self.flags;
        b
    }

    /// The entry in those bytes.
    #[must_use]
    pub fn from_bytes(b: &[u8; ENTRY_BYTES as usize]) -> Self {
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        Self {
            shard: u32_at(0),
            offset: u64::from(u32_at(4)) | u64::from(u16_at(8)) << 32,
            len: u32_at(10),
            height: u16_at(14),
            width: u16_at(16),
            crc: u32_at(18),
            flags: b[23],
        }
    }

    /// Decoded bytes of the largest image, 0 if unknown.
    #[must_use]
    pub fn decoded_bytes(&self) -> u64 {
        3 * u64::from(self.height) * u64::from(self.width)
    }
}

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
    /// What decoding it takes at most besides.
    pub library_bytes: u64,
}

/// What `meta.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    version: u32,
    /// Which reader made it.
    pub format: String,
    /// What must be unchanged for the index to hold.
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
    /// Sizes over all samples.
    pub extremes: Extremes,
    keys_bytes: u64,
}

impl Meta {
    /// What must be unchanged for the index to hold.
    pub fn identity(&self) -> u64 {
        self.identity
    }
}

/// An index that was read or made.
#[derive(Debug)]
pub struct Index {
    /// What it says of the whole.
    pub meta: Meta,
    dir: PathBuf,
    mode: ReadMode,
    entries: Option<Vec<u8>>,
    keys: Option<Vec<u8>>,
    checkpoints: Option<Checkpoints>,
}

/// The user's cache folder, or what stands for it.
pub(crate) fn cache_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    cache.join("tidegate")
}

/// The folder of the side-car for a dataset whose first file lies in `beside`, named by the hash of what it covers.
pub fn folders(beside: &Path, name: u64) -> Vec<PathBuf> {
    let cache = cache_folder();
    let place = xxhash_rust::xxh3::xxh3_64(beside.as_os_str().as_encoded_bytes());
    vec![
        beside.join(".tidegate").join(format!("{name:016x}")),
        cache.join(format!("{name:016x}-{place:016x}")),
    ]
}

impl Index {
    /// Opens the index of a dataset, if there is one that still holds.
    #[must_use]
    pub fn open(beside: &Path, name: u64, identity: u64) -> Option<Self> {
        folders(beside, name).into_iter().find_map(|dir| {
            let meta: Meta = serde_json::from_slice(&fs::read(dir.join("meta.json")).ok()?).ok()?;
            let size = |file: &str| fs::metadata(dir.join(file)).ok().map(|m| m.len());
            let whole = size("entries")? == meta.samples * ENTRY_BYTES && size("keys")? == meta.keys_bytes;
            (meta.version == VERSION && meta.identity == identity && whole)
                .then(|| Self::load(dir, meta))
                .flatten()
        })
    }

    /// Removes the indexes of a dataset, so that the next opening makes a new one.
    pub fn remove(beside: &Path, name: u64) {
        for dir in folders(beside, name) {
            // An index that is not there needs no removing.
            let _absent = fs::remove_dir_all(dir);
        }
    }

    fn load(dir: PathBuf, meta: Meta) -> Option<Self> {
        let held = |file: &str, bytes: u64| {
            if bytes > HELD_BYTES { Some(None) } else { fs::read(dir.join(file)).ok().map(Some) }
        };
        let entries = held("entries", meta.samples * ENTRY_BYTES)?;
        let keys = held("keys", meta.keys_bytes)?;
        let mode = if direct_works(&dir.join("entries")) { ReadMode::Direct } else { ReadMode::Drop };
        let checkpoints = Checkpoints::open(&dir, meta.samples);
        Some(Self { meta, dir, mode, entries, keys, checkpoints })
    }

    /// The checkpoints of its JPEGs, if any were made.
    #[must_use]
    pub fn checkpoints(&self) -> Option<&Checkpoints> {
        self.checkpoints.as_ref()
    }

    /// The folder it lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entries of `ids`, in the order given, read in ascending order.
    ///
    /// # Errors
    /// When the file cannot be read, or an id lies past the end.
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
    /// When the file cannot be read, or an id lies past the end.
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

    /// The samples of `ids`, in the order given, where they lie in shards.
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

    /// Where a sample lies, as far as the index can be read.
    #[must_use]
    pub fn place(&self, at: &Located) -> Place {
        let shard = self.meta.shards.get(at.entry.shard as usize).map(|s| s.name.clone());
        let key = self.key(at.id).unwrap_or_default();
        Place { id: at.id, shard: shard.unwrap_or_default(), offset: at.entry.offset, key }
    }

    /// Visits byte ranges of a file in ascending order, several in one read where they lie near each other.
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

    fn corrupt(&self, file: &str, offset: u64) -> Error {
        Error::format(self.dir.join(file), offset, "the index is damaged: run `tidegate index --force`")
    }
}

/// Collects the entries of a dataset and writes its index.
pub struct Builder {
    dir: tempfile_dir::TempDir,
    target: PathBuf,
    entries: BufWriter<File>,
    offsets: BufWriter<File>,
    text: BufWriter<File>,
    text_bytes: u64,
    hash: Xxh3,
    meta: Meta,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Builder({} samples for {})", self.meta.samples, self.target.display())
    }
}

impl Builder {
    /// Starts an index beside the data, or in the user's cache folder when that is read-only.
    ///
    /// # Errors
    /// When neither folder can be written.
    pub fn new(beside: &Path, name: u64, identity: u64, format: &str) -> Result<Self> {
        let mut refused = None;
        for target in folders(beside, name) {
            match tempfile_dir::TempDir::beside(&target) {
                Ok(dir) => return Self::within(dir, target, identity, format),
                Err(error) => refused = Some(Error::io(target)(error)),
            }
        }
        Err(refused.unwrap_or_else(|| Error::Config("no place for an index".into())))
    }

    fn within(dir: tempfile_dir::TempDir, target: PathBuf, identity: u64, format: &str) -> Result<Self> {
        let create = |name: &str| {
            let path = dir.path().join(name);
            File::create(&path).map(BufWriter::new).map_err(Error::io(path))
        };
        let (entries, offsets, text) = (create("entries")?, create("offsets")?, create("text")?);
        let meta = Meta {
            version: VERSION,
            format: format.to_owned(),
            identity,
            samples: 0,
            fingerprint: 0,
            schema: Vec::new(),
            classes: Vec::new(),
            shards: Vec::new(),
            extremes: Extremes::default(),
            keys_bytes: 0,
        };
        Ok(Self { dir, target, entries, offsets, text, text_bytes: 0, hash: Xxh3::new(), meta })
    }

    /// Adds the next sample, which has these images.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, mut entry: Entry, key: &str, images: &Images) -> Result<()> {
        images.write(&mut entry);
        let bytes = entry.to_bytes();
        self.hash.update(&bytes);
        self.hash.update(key.as_bytes());
        let io = Error::io(self.dir.path());
        let mut write = || -> std::io::Result<()> {
            self.entries.write_all(&bytes)?;
            self.offsets.write_all(&self.text_bytes.to_le_bytes())?;
            self.text.write_all(key.as_bytes())
        };
        write().map_err(io)?;
        self.text_bytes += key.len() as u64;
        let extremes = &mut self.meta.extremes;
        extremes.total_bytes += u64::from(entry.len);
        extremes.sample_bytes = extremes.sample_bytes.max(u64::from(entry.len));
        extremes.side = extremes.side.max(images.side);
        if images.scratch_bytes > extremes.scratch_bytes {
            (extremes.scratch_bytes, extremes.scratch_id) = (images.scratch_bytes, self.meta.samples);
        }
        if entry.decoded_bytes() > extremes.decoded_bytes {
            (extremes.decoded_bytes, extremes.decoded_id) = (entry.decoded_bytes(), self.meta.samples);
        }
        self.meta.samples += 1;
        Ok(())
    }

    /// Samples so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.meta.samples
    }

    /// Writes the index in one step: either the whole of it is there afterwards, or none.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self, schema: Schema, classes: Vec<String>, shards: Vec<ShardMeta>) -> Result<Index> {
        for shard in &shards {
            self.hash.update(shard.name.as_bytes());
            self.hash.update(&shard.bytes.to_le_bytes());
        }
        for class in &classes {
            self.hash.update(class.as_bytes());
        }
        self.meta.fingerprint = self.hash.digest();
        let head = (self.meta.samples + 1) * 8;
        self.meta.keys_bytes = head + self.text_bytes;
        (self.meta.schema, self.meta.classes, self.meta.shards) = (schema, classes, shards);
        let target = self.target.clone();
        self.write_keys(head).map_err(Error::io(&target))?;
        let Self { dir, meta, .. } = self;
        let json = serde_json::to_vec_pretty(&meta).map_err(|e| Error::Config(e.to_string()))?;
        let commit = || -> std::io::Result<()> {
            fs::write(dir.path().join("meta.json"), json)?;
            if target.exists() {
                fs::remove_dir_all(&target)?;
            }
            fs::rename(dir.path(), &target)
        };
        commit().map_err(Error::io(&target))?;
        Index::load(target.clone(), meta).ok_or_else(|| Error::Dataset {
            path: target,
            what: "the index vanished while it was written".into(),
        })
    }

    /// Joins offsets (shifted past their own table) and text into `keys`.
    fn write_keys(&mut self, head: u64) -> std::io::Result<()> {
        self.entries.flush()?;
        self.offsets.write_all(&self.text_bytes.to_le_bytes())?;
        self.offsets.flush()?;
        self.text.flush()?;
        let path = |name: &str| self.dir.path().join(name);
        let mut keys = BufWriter::new(File::create(path("keys"))?);
        let mut offsets = std::io::BufReader::new(File::open(path("offsets"))?);
        let mut word = [0; 8];
        for _ in 0..=self.meta.samples {
            std::io::Read::read_exact(&mut offsets, &mut word)?;
            keys.write_all(&(u64::from_le_bytes(word) + head).to_le_bytes())?;
        }
        std::io::copy(&mut File::open(path("text"))?, &mut keys)?;
        keys.flush()?;
        fs::remove_file(path("offsets"))?;
        fs::remove_file(path("text"))
    }
}

mod tempfile_dir {
    //! A folder that vanishes unless it is renamed.
    use std::path::{Path, PathBuf};

    #[derive(Debug)]
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn beside(target: &Path) -> std::io::Result<Self> {
            let parent = target.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(parent)?;
            let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let dir = parent.join(format!("{name}.{}.partial", std::process::id()));
            if dir.exists() {
                std::fs::remove_dir_all(&dir)?;
            }
            std::fs::create_dir(&dir)?;
            Ok(Self(dir))
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            // Renamed on success: then there is nothing to remove.
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_survives_its_bytes(shard: u32, offset in 0u64..1 << 48, len: u32, height: u16, width: u16, crc: u32) {
            let entry = Entry { shard, offset, len, height, width, crc, flags: 5 };
            prop_assert_eq!(Entry::from_bytes(&entry.to_bytes()), entry);
        }
    }

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
        assert_eq!(made.meta.extremes.scratch_id, 999);
        let index = Index::open(dir.path(), 1, 7).unwrap();
        assert_eq!(index.meta, made.meta);
        let ids: Vec<u64> = (0..500).map(|i| (i * 7919) % n).chain([0, n - 1]).collect();
        assert_eq!(index.entries(&ids).unwrap(), ids.iter().map(|&i| entry(i)).collect::<Vec<_>>());
        assert_eq!(index.keys(&ids).unwrap(), ids.iter().map(|i| format!("key/{i}")).collect::<Vec<_>>());
        assert!(index.entries(&[n]).is_err());
        assert!(Index::open(dir.path(), 1, 8).is_none(), "another identity");
    }
}
