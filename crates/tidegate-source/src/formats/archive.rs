//! WebDataset: tar archives where the files of one sample share their name up to the first dot.
//!
//! Flow: .tar / .tar.gz / .tar.zst files -> index (one entry a sample, from its first header to
//! its last byte) -> one read a sample -> fields by extension.
//! Memory: see `index`; one decompressor for compressed archives (`library_bytes`).
//!
//! Grouping follows the webdataset library: the key is the path up to the first dot of the last
//! component, the field is the rest in lower case, and a sample ends where the key changes. Where
//! the members of a sample are scattered, that would make several of one, which is refused.
//! Members that are no part of a sample are counted. Compressed archives have no random access.

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tidegate_core::sync::lock;

use super::archive_index::build;
use super::tar::{self, split_name};
use crate::files::file_set::Files;
use crate::files::read::{Extent, ReadMode};
use crate::index::shard_set::shard_set;
use crate::index::{Builder, Entry, Index};
use crate::{Access, Located, Source};
use crate::{Error, Result};
use tidegate_decode::Value;

/// The largest window of a zstd stream: 8 MiB, which the format recommends decoders to support.
const ZSTD_WINDOW_LOG: u32 = 23;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// How an archive is compressed, by its name.
pub(super) fn packing(path: &Path) -> Packing {
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz" | "tgz") => Packing::Gzip,
        Some("zst" | "zstd") => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// Tar archives of samples.
#[derive(Debug)]
pub(crate) struct Archive {
    name: String,
    index: Index,
    files: Arc<Files>,
    /// The compressed shard that is read now; they are read in order.
    cursor: Mutex<Option<Cursor>>,
    access: Access,
}

/// A decompressor and its offset in the unpacked shard.
struct Cursor {
    shard: u32,
    stream: Box<dyn Read + Send>,
    at: u64,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor({})", self.at)
    }
}

impl Archive {
    /// Opens shards, indexing them first if their index does not hold.
    ///
    /// # Errors
    /// When an archive is damaged, naming the offset.
    pub(crate) fn open(name: &str, files: Files, force: bool) -> Result<Self> {
        let (beside, set, identity) = shard_set(&files, "tar")?;
        if force {
            Index::remove(&beside, set);
        }
        let files = Arc::new(files);
        let index = match Index::open(&beside, set, identity) {
            Some(index) => index,
            None => build(&files, Builder::new(&beside, set, identity, "tar")?)?,
        };
        let packed = files.paths().iter().any(|s| packing(s) != Packing::Plain);
        let access = if packed {
            let total = index.meta.bounds.total_bytes / 2 / index.meta.shards.len().max(1) as u64;
            let why = format!(
                "{name} is a compressed tar, which has no random access: each random sample would cost the \
                 decompression of {} MiB on average; repack it with `tidegate pack '{name}' OUT --format tar`, or use \
                 shuffle=False",
                tidegate_core::memory::size::mib(total)
            );
            Access::Sequential { why }
        } else {
            Access::Random
        };
        Ok(Self { name: name.to_owned(), index, files, cursor: Mutex::default(), access })
    }

    fn read_packed(&self, at: &Entry, len: u64, into: &mut [u8]) -> Result<Range<usize>> {
        let path = self.files.path(at.shard)?;
        let mut cursor = lock(&self.cursor);
        if cursor.as_ref().is_none_or(|c| c.shard != at.shard || c.at > at.offset) {
            *cursor = None;
            *cursor = Some(Cursor { shard: at.shard, stream: decompress(&self.files, at.shard)?, at: 0 });
        }
        let Some(c) = cursor.as_mut() else { return Ok(0..0) };
        let skip = at.offset - c.at;
        let target = into.get_mut(..len as usize).ok_or_else(|| {
            Error::format(path, at.offset, format!("a read of {len} bytes needs as many bytes of staging"))
        })?;
        let outcome = std::io::copy(&mut (&mut c.stream).take(skip), &mut std::io::sink())
            .and_then(|_| c.stream.read_exact(target));
        if outcome.is_err() {
            *cursor = None;
        } else {
            c.at = at.offset + len;
        }
        let what = |e| {
            format!(
                "{e}: the compressed archive is damaged or truncated, or its window is more than 8 MiB \
                 (zstd --long)"
            )
        };
        outcome.map_err(|e| Error::format(path, at.offset, what(e))).map(|()| 0..len as usize)
    }
}

/// The tar within an archive, from its beginning.
pub(super) fn decompress(files: &Arc<Files>, shard: u32) -> Result<Box<dyn Read + Send>> {
    let (path, file) = (files.path(shard)?, files.stream(shard)?);
    Ok(match packing(path) {
        Packing::Plain => file,
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file))),
        Packing::Zstd => {
            let mut stream = zstd::stream::read::Decoder::new(file).map_err(Error::io(path))?;
            stream.window_log_max(ZSTD_WINDOW_LOG).map_err(Error::io(path))?;
            Box::new(stream)
        }
    })
}

impl Source for Archive {
    fn name(&self) -> &str {
        &self.name
    }
    fn side_car_index(&self) -> Option<&Index> {
        Some(&self.index)
    }
    fn files(&self) -> Option<&Files> {
        Some(&self.files)
    }
    fn access(&self) -> Access {
        self.access.clone()
    }
    fn library_bytes(&self) -> u64 {
        match self.files.paths().iter().map(|p| packing(p)).find(|&p| p != Packing::Plain) {
            // The window, two blocks, and tables.
            Some(Packing::Zstd) => 10 << 20,
            Some(_) => 128 << 10,
            None => 0,
        }
    }
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        let entry = &at.entry;
        match self.files.paths().get(entry.shard as usize) {
            Some(path) if packing(path) != Packing::Plain => self.read_packed(entry, len, into),
            _ => self.files.read(entry.shard, entry.offset, len, mode, into),
        }
    }
    fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        let path = self.files.paths().get(at.entry.shard as usize)?;
        (packing(path) == Packing::Plain)
            .then(|| self.files.extent(at.entry.shard, at.entry.offset))
            .flatten()
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        let schema = self.schema();
        let mut values = vec![Value::Missing; schema.len()];
        let path = &self.files.paths()[at.entry.shard as usize];
        let mut read = |offset: u64, len: u64| {
            let start = (offset as usize).min(bytes.len());
            Ok(bytes[start..bytes.len().min(start.saturating_add(len as usize))].to_vec())
        };
        let (mut offset, mut sample) = (0, None);
        while (offset as usize) < bytes.len() {
            match tar::next(offset, &mut read)
                .map_err(|e| Error::format(path, at.entry.offset + e.offset, e.what))?
            {
                tar::Next::File(member) => {
                    offset = member.end();
                    let Some(data) = bytes.get(member.data as usize..(member.data + member.size) as usize)
                    else {
                        let what = "the archive changed since it was indexed: run `tidegate index --force`";
                        return Err(Error::format(path, at.entry.offset + member.start, what));
                    };
                    let named = split_name(&member.name);
                    if let Some((key, _)) = &named
                        && sample.get_or_insert((*key).to_owned()) != key
                    {
                        let what = "two samples where the index has one: the archive changed since it \
                                    was indexed; run `tidegate index --force`";
                        return Err(Error::format(path, at.entry.offset + member.start, what));
                    }
                    if let Some((key, field)) = named
                        && let Some(i) = schema.iter().position(|f| f.name == field)
                    {
                        if !matches!(values[i], Value::Missing) {
                            let what =
                                format!("sample {key:?} has two members {field:?}: rename one of them");
                            return Err(Error::format(path, at.entry.offset + member.start, what));
                        }
                        values[i] = Value::Bytes(data);
                    }
                }
                tar::Next::Skip(skipped) => offset = skipped.next,
                tar::Next::End => break,
            }
        }
        Ok(values)
    }
}
