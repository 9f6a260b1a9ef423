//! Positional reads of files, which leave no page cache behind unless the budget holds it, and of objects in stores.
//!
//! Flow: (file, offset, length) -> bytes within page-aligned memory of the caller.
//! Memory: none of its own; page cache only in [`ReadMode::Plain`], whose caller charges the files to `cache.memory`.
//!
//! Pages that a process reads into the page cache are charged to its control group, so a loader that reads plainly
//! fills whatever limit there is. Mapping files is worse: cold random reads run 17–22 times slower than pread.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{Advice, Mode, OFlags, fadvise};
use tidegate_core::memory::PAGE_BYTES;
use tidegate_core::sync::StopToken;

#[cfg(feature = "remote")]
use super::remote::{Object, Store};
use crate::{Error, Result};

/// How bytes come from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadMode {
    /// `O_DIRECT`: past the page cache. Pages that others cached stay as they are.
    Direct,
    /// Buffered, and our own range dropped afterwards: where the file system has no direct reads.
    Drop,
    /// Buffered and kept: the caller has charged the files to its budget.
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

/// Chooses the read mode of a dataset: kept if the budget has room for all of it, else past the cache.
///
/// `room_bytes` is what the budget has left after its batches, staging and scratch.
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

/// What the caller must provide to read `len` bytes at any offset: whole pages around them.
#[must_use]
pub fn staging_bytes(len: u64) -> u64 {
    (len + 2 * PAGE_BYTES - 2) / PAGE_BYTES * PAGE_BYTES
}

/// Page-aligned memory outside the budget, for looking at single samples and for building an index.
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

/// Where bytes lie as they are: a file that is open for direct reads, and an offset.
#[derive(Debug)]
pub struct Extent<'a> {
    pub(crate) file: Opened<'a>,
    pub(crate) offset: u64,
}

/// A file that stays open, or one that is opened for this read alone.
#[derive(Debug)]
pub(crate) enum Opened<'a> {
    Kept(&'a File),
    Alone(File),
    Shared(Arc<File>),
}

impl std::ops::Deref for Opened<'_> {
    type Target = File;
    fn deref(&self) -> &File {
        match self {
            Self::Kept(file) => file,
            Self::Alone(file) => file,
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

    /// Where in the file it begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A place in a file that is opened for this read alone; nothing where it cannot be read directly.
    #[must_use]
    pub fn of(path: &Path, offset: u64) -> Option<Self> {
        Some(Self { file: Opened::Alone(open_file(path, ReadMode::Direct).ok()?), offset })
    }

    /// A place in a file that others have open too.
    pub fn shared(file: Arc<File>, offset: u64) -> Self {
        Self { file: Opened::Shared(file), offset }
    }

    /// Reads `len` bytes into `into` and says where in it they lie.
    ///
    /// # Errors
    /// As [`read_file`].
    pub fn read(&self, len: u64, into: &mut [u8]) -> Result<Range<usize>> {
        read_open(&self.file, Path::new("an extent"), self.offset, len, ReadMode::Direct, into)
    }
}

/// The whole pages around bytes, which is what a direct read can read.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Where they start in the file.
    pub(crate) start: u64,
    /// Their length.
    pub(crate) bytes: usize,
    /// Where the bytes lie in them.
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
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Reads `len` bytes at `offset` of a file into `into` and says where in `into` they lie.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when the file ends before.
pub fn read_file(
    path: &Path,
    offset: u64,
    len: u64,
    mode: ReadMode,
    into: &mut [u8],
) -> Result<Range<usize>> {
    let (file, mode) = match open_file(path, mode) {
        // A file system without direct reads says so at open; its files are read and dropped instead.
        Err(error) if mode == ReadMode::Direct && error.raw_os_error() == Some(EINVAL) => {
            (open_file(path, ReadMode::Drop), ReadMode::Drop)
        }
        file => (file, mode),
    };
    read_open(&file.map_err(Error::io(path))?, path, offset, len, mode, into)
}

/// The number of `EINVAL`, which every Linux shares.
const EINVAL: i32 = 22;

/// Reads `len` bytes at `offset` of an open file into `into`, and says where in it they are.
///
/// # Errors
/// When the file cannot be read, or ends before.
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
        // A direct read that ends off a page border has met the end of the file; the next one would be refused.
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
        let _advice = fadvise(file, start, std::num::NonZeroU64::new(end - start), Advice::DontNeed);
    }
    Ok(inner)
}

/// A file read from its beginning to its end, whose pages are dropped behind the reader.
#[derive(Debug)]
pub struct Passing {
    file: File,
    at: u64,
    dropped: u64,
}

/// How far the dropping stays behind.
const BEHIND_BYTES: u64 = 1 << 20;

impl Passing {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_file(path, ReadMode::Plain).map_err(Error::io(path))?;
        Ok(Self { file, at: 0, dropped: 0 })
    }

    fn drop_behind(&mut self) {
        let len = std::num::NonZeroU64::new(self.at.next_multiple_of(PAGE_BYTES) - self.dropped);
        // Advice: a file system that keeps its pages is no reason to fail a read.
        let _advice = fadvise(&self.file, self.dropped, len, Advice::DontNeed);
        self.dropped = self.at / PAGE_BYTES * PAGE_BYTES;
    }
}

impl io::Read for Passing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        if self.at - self.dropped >= BEHIND_BYTES {
            self.drop_behind();
        }
        Ok(n)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.drop_behind();
    }
}

thread_local! {
    static STOP: RefCell<Option<StopToken>> = const { RefCell::new(None) };
}

/// Reads of this thread that take long, those over a network, end with an error once `stop` is set.
pub fn stop_reading_when(stop: &StopToken) {
    STOP.with_borrow_mut(|of_thread| *of_thread = Some(stop.clone()));
}

/// Whether reads of this thread should end.
#[cfg(feature = "remote")]
pub(crate) fn stopped() -> bool {
    STOP.with_borrow(|stop| stop.as_ref().is_some_and(|stop| stop.is_stopped()))
}

/// Adds the size of a file, and when it was changed.
pub(crate) fn touch(hash: &mut xxhash_rust::xxh3::Xxh3, path: &Path) {
    if let Ok(file) = std::fs::metadata(path) {
        for figure in [file.len().cast_signed(), file.mtime(), file.mtime_nsec()] {
            hash.update(&figure.to_le_bytes());
        }
    }
}

/// The shards of a dataset: files that stay open, or objects of a store.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    direct: Vec<OnceLock<Option<File>>>,
    plain: Vec<OnceLock<File>>,
    #[cfg(feature = "remote")]
    remote: Option<(Arc<Store>, Vec<Object>)>,
}

impl Files {
    /// Files that are opened at their first read.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let direct = paths.iter().map(|_| OnceLock::new()).collect();
        let plain = paths.iter().map(|_| OnceLock::new()).collect();
        Self {
            paths,
            direct,
            plain,
            #[cfg(feature = "remote")]
            remote: None,
        }
    }

    /// Objects of a store.
    #[cfg(feature = "remote")]
    pub(crate) fn remote(store: Arc<Store>, objects: Vec<Object>) -> Self {
        let paths = objects.iter().map(|object| store.name(&object.key)).collect();
        Self { remote: Some((store, objects)), ..Self::new(paths) }
    }

    /// The objects, where these are no local files.
    #[cfg(feature = "remote")]
    pub(crate) fn objects(&self) -> Option<&[Object]> {
        self.remote.as_ref().map(|(_, objects)| &objects[..])
    }

    /// See [`crate::Source::edition`].
    #[must_use]
    pub(crate) fn edition(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        #[cfg(feature = "remote")]
        for (object, url) in self.objects().unwrap_or_default().iter().zip(&self.paths) {
            hash.update(url.as_os_str().as_encoded_bytes());
            hash.update(&object.bytes.to_le_bytes());
            hash.update(object.tag.as_deref().unwrap_or_default().as_bytes());
        }
        if !self.is_remote() {
            self.paths.iter().for_each(|path| touch(&mut hash, path));
        }
        hash.digest()
    }

    /// See [`crate::Source::latency`].
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        #[cfg(feature = "remote")]
        return self.remote.as_ref().map(|(store, _)| store.latency());
        #[cfg(not(feature = "remote"))]
        None
    }

    /// Whether reading goes over the network: slow to begin, and many reads at once are as fast as one.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.latency().is_some()
    }

    /// Their paths, or URLs.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The path of file number `file`.
    ///
    /// # Errors
    /// A number that is none of theirs.
    pub fn path(&self, file: u32) -> Result<&Path> {
        let what =
            || format!("the index names shard {file} of {}: run `tidegate index --force`", self.paths.len());
        self.paths.get(file as usize).map(PathBuf::as_path).ok_or_else(|| Error::Config(what()))
    }

    /// Bytes of file number `file`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn bytes(&self, file: u32) -> Result<u64> {
        let path = self.path(file)?;
        #[cfg(feature = "remote")]
        if let Some(object) = self.objects().and_then(|objects| objects.get(file as usize)) {
            return Ok(object.bytes);
        }
        Ok(std::fs::metadata(path).map_err(Error::io(path))?.len())
    }

    /// An offset of file number `file`; nothing where it cannot be read directly.
    #[must_use]
    pub fn extent(&self, file: u32, offset: u64) -> Option<Extent<'_>> {
        if self.is_remote() {
            return None;
        }
        Some(Extent { file: Opened::Kept(self.direct(file as usize)?), offset })
    }

    fn direct(&self, i: usize) -> Option<&File> {
        let open = || open_file(self.paths.get(i)?, ReadMode::Direct).ok();
        self.direct.get(i)?.get_or_init(open).as_ref()
    }

    /// Reads as [`read_file`] from file number `file`.
    ///
    /// # Errors
    /// As [`read_file`]; of objects, what the server says.
    pub fn read(
        &self,
        file: u32,
        offset: u64,
        len: u64,
        mode: ReadMode,
        into: &mut [u8],
    ) -> Result<Range<usize>> {
        let (i, path) = (file as usize, self.path(file)?);
        #[cfg(feature = "remote")]
        if let Some((store, objects)) = &self.remote {
            let target = into.get_mut(..len as usize);
            let target = target.ok_or_else(|| Error::format(path, offset, "no room for what is read"))?;
            store.read(&objects[i], offset, target)?;
            return Ok(0..len as usize);
        }
        if mode == ReadMode::Direct {
            if let Some(file) = self.direct(i) {
                return read_open(file, path, offset, len, mode, into);
            }
            return self.read(file, offset, len, ReadMode::Drop, into);
        }
        let file = match self.plain[i].get() {
            Some(file) => file,
            None => {
                let file = open_file(path, mode).map_err(Error::io(path))?;
                self.plain[i].get_or_init(|| file)
            }
        };
        read_open(file, path, offset, len, mode, into)
    }

    /// File number `file` from its beginning to its end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stream(self: &Arc<Self>, file: u32) -> Result<Box<dyn io::Read + Send>> {
        if !self.is_remote() {
            return Ok(Box::new(Passing::open(self.path(file)?)?));
        }
        let left = self.bytes(file)?;
        Ok(Box::new(Stream { files: Arc::clone(self), file, at: 0, left, bytes: Vec::new(), used: 0 }))
    }
}

/// An object from its beginning to its end, a part at a time.
struct Stream {
    files: Arc<Files>,
    file: u32,
    at: u64,
    left: u64,
    bytes: Vec<u8>,
    used: usize,
}

/// What a stream asks for at once.
pub(crate) const STREAM_BYTES: u64 = 1 << 20;

impl io::Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.bytes.len() {
            let len = self.left.min(STREAM_BYTES);
            self.bytes.resize(len as usize, 0);
            self.used = 0;
            self.files
                .read(self.file, self.at, len, ReadMode::Drop, &mut self.bytes)
                .inspect_err(|_| self.bytes.clear())
                .map_err(|e| io::Error::other(e.to_string()))?;
            self.at += len;
            self.left -= len;
        }
        let n = into.len().min(self.bytes.len() - self.used);
        into[..n].copy_from_slice(&self.bytes[self.used..self.used + n]);
        self.used += n;
        Ok(n)
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
