//! The shards of MDS as they are without compression: unpacked once, and kept.
//!
//! Flow: an `index.json` -> the files of its shards; compressed ones through a bounded reader into
//! the side-car folder, with their hashes compared, and a note of what they were then.
//! Memory: the reader's; of a shard compressed by snappy all of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use md5::Digest;
use serde::Deserialize;

use crate::files::read::SequentialReader;
use crate::index::shard_set::unpacked_dir;
use crate::index::trust::{create, is_trusted, make_folder, owner_of};
use crate::{Error, Result};

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ShardJson {
    pub(super) format: String,
    #[serde(default)]
    pub(super) compression: Option<String>,
    pub(super) column_names: Vec<String>,
    pub(super) column_encodings: Vec<String>,
    pub(super) column_sizes: Vec<Option<u32>>,
    pub(super) raw_data: FileJson,
    pub(super) zip_data: Option<FileJson>,
    pub(super) samples: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FileJson {
    pub(super) basename: String,
    pub(super) bytes: u64,
    #[serde(default)]
    pub(super) hashes: BTreeMap<String, String>,
}

/// The uncompressed files: next to the index if they exist, else unpacked once into the side-car
/// folder.
pub(super) fn raw_files(
    root: &Path,
    identity: u64,
    shards: &[ShardJson],
    force: bool,
) -> Result<Vec<PathBuf>> {
    let (mut files, mut places, owner) = (Vec::new(), None, owner_of(root));
    for shard in shards {
        let raw = root.join(&shard.raw_data.basename);
        if raw.exists() {
            files.push(raw);
            continue;
        }
        // They are one folder, unless that beside the data is read-only.
        let (beside, own) = match &places {
            Some(places) => places,
            None => {
                places.insert((unpacked_dir(root, identity, false)?, unpacked_dir(root, identity, true)?))
            }
        };
        let (beside, own) = (beside.join(&shard.raw_data.basename), own.join(&shard.raw_data.basename));
        if !force && is_usable(&beside, shard, owner) {
            files.push(beside);
            continue;
        }
        if force || beside == own || !is_usable(&own, shard, owner) {
            unpack(root, shard, &own)?;
        }
        files.push(own);
    }
    Ok(files)
}

/// Whether a file is the shard, unpacked: by the note of what it was, or where that is missing or
/// differs, as after a copy, by its hashes.
fn is_usable(target: &Path, shard: &ShardJson, owner: u32) -> bool {
    if !is_trusted(target, owner) {
        return false;
    }
    if is_whole(target, shard.raw_data.bytes) && is_trusted(&marker_of(target), owner) {
        return true;
    }
    let (bytes, hashes) = (shard.raw_data.bytes, &shard.raw_data.hashes);
    let same_length = fs::symlink_metadata(target).is_ok_and(|file| file.is_file() && file.len() == bytes);
    let same = same_length && check_hashes(target, hashes).is_ok_and(|compared| compared > 0);
    if same {
        // Where nothing can be written the hashes are compared again the next time.
        note_state(target, &target.with_extension("note")).ok();
    }
    same
}

/// Notes what an unpacked shard is now, by way of a file of another name.
fn note_state(target: &Path, partial: &Path) -> io::Result<()> {
    create(partial)?.write_all(state_of(target).unwrap_or_default().as_bytes())?;
    fs::rename(partial, marker_of(target))
}

/// The note beside an unpacked shard of what it was when its hash was right.
fn marker_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{name}.whole"))
}

/// The length of a file and when it was changed, in words; nothing for what is no file.
fn state_of(path: &Path) -> Option<String> {
    let found = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(format!("{} {}.{:09}", found.len(), found.mtime(), found.mtime_nsec()))
}

/// Whether an unpacked shard is as it was when its hash was right.
fn is_whole(target: &Path, bytes: u64) -> bool {
    let state = state_of(target).filter(|state| state.starts_with(&format!("{bytes} ")));
    state.is_some_and(|state| fs::read_to_string(marker_of(target)).is_ok_and(|noted| noted == state))
}

fn unpack(root: &Path, shard: &ShardJson, target: &Path) -> Result<()> {
    let Some(zip) = &shard.zip_data else {
        return Err(Error::Dataset {
            path: root.join(&shard.raw_data.basename),
            what: "this shard is missing".into(),
        });
    };
    let path = root.join(&zip.basename);
    check_hashes(&path, &zip.hashes)?;
    // Threads and processes may unpack the same shard at the same time.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let partial = target.with_extension(format!("{}-{number}.partial", std::process::id()));
    let copy = || -> io::Result<u64> {
        if let Some(parent) = target.parent() {
            make_folder(parent, owner_of(root))?;
        }
        let file = io::BufReader::new(SequentialReader::open(&path).map_err(io::Error::other)?);
        let algorithm = shard.compression.as_deref().unwrap_or("").split(':').next().unwrap_or("").to_owned();
        let mut stream: Box<dyn Read> = match algorithm.as_str() {
            "zstd" => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
            "gz" => Box::new(flate2::read::MultiGzDecoder::new(file)),
            "bz2" => Box::new(bzip2::read::MultiBzDecoder::new(file)),
            "br" => Box::new(brotli_decompressor::Decompressor::new(file, 64 << 10)),
            "snappy" => Box::new(io::Cursor::new(
                snap::raw::Decoder::new().decompress_vec(&fs::read(&path)?).map_err(io::Error::other)?,
            )),
            other => return Err(io::Error::other(format!("unknown compression {other:?}"))),
        };
        let mut out = create(&partial)?;
        // One byte more than the index says proves it wrong.
        let copied = io::copy(&mut (&mut stream).take(shard.raw_data.bytes + 1), &mut out)?;
        // Write the pages back, so that a reader past the cache can drop them.
        out.sync_all()?;
        Ok(copied)
    };
    let outcome = copy().map_err(Error::io(&path)).and_then(|copied| {
        if copied != shard.raw_data.bytes {
            let what =
                format!("it does not unpack to the {} bytes that the index says", shard.raw_data.bytes);
            return Err(Error::Dataset { path: path.clone(), what });
        }
        check_hashes(&partial, &shard.raw_data.hashes)?;
        fs::rename(&partial, target).map_err(Error::io(target))?;
        note_state(target, &partial).map_err(Error::io(target))
    });
    if outcome.is_err() {
        // The error that is returned says more than a failed removal.
        fs::remove_file(&partial).ok();
    }
    outcome
}

/// Compares a file with the hashes of the index whose algorithms are known, and counts them.
pub(super) fn check_hashes(path: &Path, hashes: &BTreeMap<String, String>) -> Result<u64> {
    let mut compared = 0;
    for (algorithm, expected) in hashes {
        let got = match algorithm.as_str() {
            "md5" => digest::<md5::Md5>(path)?,
            "sha1" => digest::<sha1::Sha1>(path)?,
            "sha256" => digest::<sha2::Sha256>(path)?,
            "sha512" => digest::<sha2::Sha512>(path)?,
            "xxh64" => each_chunk(path, xxhash_rust::xxh64::Xxh64::new(0), |h, b| h.update(b))
                .map(|h| format!("{:016x}", h.digest()))?,
            "xxh32" => each_chunk(path, xxhash_rust::xxh32::Xxh32::new(0), |h, b| h.update(b))
                .map(|h| format!("{:08x}", h.digest()))?,
            "xxh3_64" => each_chunk(path, xxhash_rust::xxh3::Xxh3::new(), |h, b| h.update(b))
                .map(|h| format!("{:016x}", h.digest()))?,
            "xxh128" | "xxh3_128" => each_chunk(path, xxhash_rust::xxh3::Xxh3::new(), |h, b| h.update(b))
                .map(|h| format!("{:032x}", h.digest128()))?,
            _ => continue,
        };
        if &got != expected {
            let what = format!("its {algorithm} is {got}, the index says {expected}: download it again");
            return Err(Error::Dataset { path: path.to_owned(), what });
        }
        compared += 1;
    }
    Ok(compared)
}

fn digest<D: Digest>(path: &Path) -> Result<String> {
    let hash = each_chunk(path, D::new(), |h, b| h.update(b))?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn each_chunk<H>(path: &Path, mut hash: H, mut update: impl FnMut(&mut H, &[u8])) -> Result<H> {
    let mut file = SequentialReader::open(path)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hash),
            n => update(&mut hash, &buffer[..n]),
        }
    }
}
