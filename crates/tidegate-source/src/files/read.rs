//! Positional reads of files, past the page cache or dropped from it.
//!
//! Flow: (file, offset, length) -> bytes within page-aligned memory of the caller.
//! Memory: none of its own; page cache only in [`ReadMode::Plain`], whose caller charges the files
//! to `cache.memory`.
//!
//! The kernel charges pages that a process reads into the page cache to its control group, so
//! plain reads fill any limit. Mapping files is worse: cold random reads run 17–22 times slower
//! than pread.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, Mode, OFlags, fadvise};
use tidegate_core::memory::PAGE_BYTES;

pub use super::file_set::Files;
pub use super::stop::stop_reading_when;

use crate::{Error, Result};

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadMode {
    /// `O_DIRECT`: past the page cache. Pages that others cached stay cached.
    Direct,
    /// Buffered, then the range is dropped: for file systems without direct reads.
    Drop,
    /// Buffered and kept: the caller charged the files to its budget.
    Plain,
}

impl tidegate_core::observe::MetricValue for ReadMode {
    fn value(&self) -> tidegate_core::observe::Value<'_> {
        tidegate_core::observe::Value::Text(match self {
            Self::Direct => "direct",
            Self::Drop => "drop",
            Self::Plain => "plain",
        })
    }
}

/// Chooses the read mode of a dataset: kept if the budget has room for all of it, else past the
/// cache.
///
/// `room_bytes` is what the budget has left after batches, staging and scratch.
#[must_use]
pub fn read_mode(dataset_bytes: u64, direct_works: bool, room_bytes: u64) -> ReadMode {
    if dataset_bytes <= room_bytes {
        ReadMode::Plain
    } else if direct_works {
        ReadMode::Direct
    } else {
        ReadMode::Drop
    }
}

/// Whether the file system of `path` opens files for direct reads.
#[must_use]
pub fn direct_works(path: &Path) -> bool {
    let Ok(file) = open_file(path, ReadMode::Direct) else { return false };
    let mut page = aligned(PAGE_BYTES as usize);
    file.read_at(&mut page, 0).is_ok()
}

/// Bytes of memory that a read of `len` bytes at any offset needs: whole pages around them.
#[must_use]
pub fn staging_bytes(len: u64) -> u64 {
    (len + 2 * PAGE_BYTES - 2) / PAGE_BYTES * PAGE_BYTES
}

/// Page-aligned memory outside the budget, for single samples and for building an index.
#[must_use]
pub fn aligned(len: usize) -> Aligned {
    let page = PAGE_BYTES as usize;
    let bytes = vec![0; len + page];
    let skip = bytes.as_ptr().align_offset(page);
    Aligned { bytes, skip, len }
}

/// Page-aligned heap memory.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.skip..self.skip + self.len]
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

/// The place of stored bytes: a file that is open for direct reads, and an offset.
#[derive(Debug)]
pub struct Extent<'a> {
    pub(crate) file: FileRef<'a>,
    pub(crate) offset: u64,
}

/// A file that stays open, is opened for one read, or is shared.
#[derive(Debug)]
pub(crate) enum FileRef<'a> {
    Kept(&'a File),
    Owned(File),
    Shared(Arc<File>),
}

impl std::ops::Deref for FileRef<'_> {
    type Target = File;
    fn deref(&self) -> &File {
        match self {
            Self::Kept(file) => file,
            Self::Owned(file) => file,
            Self::Shared(file) => file,
        }
    }
}

impl Extent<'_> {
    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The byte where it begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A place in a file that is opened for one read; None where it cannot be read directly.
    #[must_use]
    pub fn open(path: &Path, offset: u64) -> Option<Self> {
        Some(Self { file: FileRef::Owned(open_file(path, ReadMode::Direct).ok()?), offset })
    }

    /// A place in a file that is shared.
    pub fn shared(file: Arc<File>, offset: u64) -> Self {
        Self { file: FileRef::Shared(file), offset }
    }

    /// Reads `len` bytes into `into` and returns where in `into` they are.
    ///
    /// # Errors
    /// As [`read_file`].
    pub fn read(&self, len: u64, into: &mut [u8]) -> Result<Range<usize>> {
        read_open(&self.file, Path::new("an extent"), self.offset, len, ReadMode::Direct, into)
    }
}

/// The whole pages around a range of bytes: a direct read reads whole pages.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The byte of the file where the pages start.
    pub(crate) start: u64,
    /// Bytes of the pages.
    pub(crate) bytes: usize,
    /// The range of bytes within the pages.
    pub(crate) inner: Range<usize>,
}

impl Pages {
    pub(crate) fn around(offset: u64, len: u64) -> Self {
        let skip = offset % PAGE_BYTES;
        let end = (skip + len) as usize;
        Self {
            start: offset - skip,
            bytes: end.next_multiple_of(PAGE_BYTES as usize),
            inner: skip as usize..end,
        }
    }
}

/// Opens a file for reading in `mode`.
///
/// # Errors
/// When it cannot be opened.
pub fn open_file(path: &Path, mode: ReadMode) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let flags = if mode == ReadMode::Direct { flags | OFlags::DIRECT } else { flags };
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if mode == ReadMode::Drop {
        // Pages that the kernel reads ahead are in pieces of up to 2 MiB, which are not dropped
        // where only a part of them was asked for.
        fadvise(&file, 0, None, Advice::Random).ok();
    }
    Ok(file)
}

/// Reads `len` bytes at `offset` of a file into `into` and returns where in `into` they are.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when the file ends before the last byte.
pub fn read_file(
    path: &Path,
    offset: u64,
    len: u64,
    mode: ReadMode,
    into: &mut [u8],
) -> Result<Range<usize>> {
    let (file, mode) = match open_file(path, mode) {
        // A file system without direct reads refuses the open; read and drop its pages instead.
        Err(error) if mode == ReadMode::Direct && error.raw_os_error() == Some(EINVAL) => {
            (open_file(path, ReadMode::Drop), ReadMode::Drop)
        }
        file => (file, mode),
    };
    read_open(&file.map_err(Error::io(path))?, path, offset, len, mode, into)
}

/// The number of `EINVAL` on every Linux.
const EINVAL: i32 = 22;

/// Reads `len` bytes at `offset` of an open file into `into` and returns where in `into` they are.
///
/// # Errors
/// As [`read_file`].
pub fn read_open(
    file: &File,
    path: &Path,
    offset: u64,
    len: u64,
    mode: ReadMode,
    into: &mut [u8],
) -> Result<Range<usize>> {
    let direct = mode == ReadMode::Direct;
    let pages = match direct {
        true => Pages::around(offset, len),
        false => Pages { start: offset, bytes: len as usize, inner: 0..len as usize },
    };
    let Pages { start, bytes, inner } = pages;
    let target = into.get_mut(..bytes).ok_or_else(|| {
        Error::format(path, offset, format!("a read of {len} bytes needs {bytes} bytes of staging"))
    })?;
    let mut done = 0;
    while done < inner.end {
        let came = match file.read_at(&mut target[done..], start + done as u64) {
            Ok(came) => came,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(path)(error)),
        };
        done += came;
        // A direct read that ends off a page border met the end of the file; the kernel would
        // refuse the next one.
        let ended = came == 0 || direct && !done.is_multiple_of(PAGE_BYTES as usize);
        if ended && done < inner.end {
            let what = format!(
                "the file ends after {} of {len} bytes: it is truncated, or it changed since it was indexed; restore \
                 it or run `tidegate index --force`",
                done.saturating_sub(inner.start)
            );
            return Err(Error::format(path, offset, what));
        }
    }
    if mode == ReadMode::Drop {
        let start = offset / PAGE_BYTES * PAGE_BYTES;
        let end = (offset + len).next_multiple_of(PAGE_BYTES);
        // Advice: a file system that keeps its pages is no reason to fail a read.
        fadvise(file, start, std::num::NonZeroU64::new(end - start), Advice::DontNeed).ok();
    }
    Ok(inner)
}

/// Reads a file from beginning to end and drops its pages behind itself.
#[derive(Debug)]
pub struct SequentialReader {
    file: File,
    at: u64,
    dropped: u64,
}

/// The largest piece of the page cache that the kernel drops as a whole.
const PIECE_BYTES: u64 = 2 << 20;
/// Bytes between the last one read and the pages that are dropped.
const READ_BEHIND_BYTES: u64 = 1 << 20;

impl SequentialReader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_file(path, ReadMode::Plain).map_err(Error::io(path))?;
        Ok(Self { file, at: 0, dropped: 0 })
    }

    fn drop_behind(&mut self) {
        // The piece that the last drop ended in could not be dropped then.
        let start = self.dropped.saturating_sub(PIECE_BYTES);
        let len = std::num::NonZeroU64::new(self.at.next_multiple_of(PAGE_BYTES) - start);
        // Advice: a file system that keeps its pages is no reason to fail a read.
        fadvise(&self.file, start, len, Advice::DontNeed).ok();
        self.dropped = self.at / PAGE_BYTES * PAGE_BYTES;
    }
}

impl io::Read for SequentialReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        if self.at - self.dropped >= READ_BEHIND_BYTES {
            self.drop_behind();
        }
        Ok(n)
    }
}

impl Drop for SequentialReader {
    fn drop(&mut self) {
        self.drop_behind();
    }
}

/// Hashes the size of a file and the time of its last change.
pub(crate) fn hash_version(hash: &mut xxhash_rust::xxh3::Xxh3, path: &Path) {
    if let Ok(file) = std::fs::metadata(path) {
        for figure in [file.len().cast_signed(), file.mtime(), file.mtime_nsec()] {
            hash.update(&figure.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_a_function_of_size_file_system_and_room() {
        for (dataset, direct, room, mode) in [
            (100, true, 100, ReadMode::Plain),
            (101, true, 100, ReadMode::Direct),
            (101, false, 100, ReadMode::Drop),
            (0, true, 0, ReadMode::Plain),
        ] {
            assert_eq!(read_mode(dataset, direct, room), mode, "{dataset} {direct} {room}");
        }
    }

    #[test]
    fn every_mode_reads_the_same_and_notices_the_end() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("data");
        let data: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        let files = Files::new(vec![path.clone()]);
        for mode in [ReadMode::Direct, ReadMode::Drop, ReadMode::Plain] {
            for (offset, len) in [(0, 1), (4095, 2), (5000, 9000), (19_999, 1), (0, 20_000), (8192, 0)] {
                let mut into = aligned(staging_bytes(len) as usize);
                for range in [
                    files.read(0, offset, len, mode, &mut into),
                    read_file(&path, offset, len, mode, &mut into),
                ] {
                    let expected = &data[offset as usize..(offset + len) as usize];
                    assert_eq!(&into[range.unwrap()], expected, "{mode:?} {offset} {len}");
                }
            }
            let mut into = aligned(staging_bytes(9000) as usize);
            let error = files.read(0, 15_000, 9000, mode, &mut into).unwrap_err().to_string();
            assert!(error.contains("ends after 5000 of 9000 bytes"), "{mode:?}: {error}");
        }
        assert!(files.read(1, 0, 1, ReadMode::Plain, &mut [0; 8192]).is_err());
    }
}
