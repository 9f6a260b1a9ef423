//! The shards of a dataset: files that stay open, up to the limit of the process, or objects of a
//! store.
//!
//! Flow: (number of the file, offset, length) -> bytes in the caller's memory; called by formats.
//! Memory: open file descriptors; a stream of an object holds a part of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidegate_core::sync::lock;

use super::natural::file_name;
use super::read::{Extent, FileRef, ReadMode, SequentialReader, hash_version, open_file};
use super::read::{read_file, read_open};
#[cfg(feature = "remote")]
use super::remote::{Object, Store};
use crate::left_out::LeftOut;
use crate::{Error, Result};

/// What opening may take for one row, line or batch, unless the user says.
const OPENING_BYTES: u64 = 64 << 20;

/// The shards of a dataset; the number of a file is its place in the list.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    direct: Vec<OnceLock<Option<File>>>,
    plain: Vec<OnceLock<File>>,
    /// Files beside them that are not read.
    left_out: Vec<LeftOut>,
    /// The most bytes that one row, line or batch takes while they are indexed.
    opening_bytes: u64,
    /// The files that stay open; those behind them are opened for each read.
    kept: usize,
    #[cfg(feature = "remote")]
    remote: Option<(Arc<Store>, Vec<Object>)>,
}

impl Files {
    /// Local files, each opened at its first read.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let direct = paths.iter().map(|_| OnceLock::new()).collect();
        let plain = paths.iter().map(|_| OnceLock::new()).collect();
        Self {
            kept: files_to_keep(paths.len()),
            paths,
            direct,
            plain,
            left_out: Vec::new(),
            opening_bytes: OPENING_BYTES,
            #[cfg(feature = "remote")]
            remote: None,
        }
    }

    /// Notes what is not read of these files or beside them, for the account of the dataset.
    pub(crate) fn leave_out(&mut self, what: &str, files: &[PathBuf], warn: bool) {
        for file in files {
            let example = if warn { file.display().to_string() } else { file_name(file) };
            LeftOut { what: what.into(), count: 1, example, warn }.count_in(&mut self.left_out);
        }
    }

    /// Sets how much one row, line or batch may take while they are indexed; 0 for what is usual.
    pub(crate) fn set_opening_bytes(&mut self, bytes: u64) {
        self.opening_bytes = if bytes == 0 { OPENING_BYTES } else { bytes };
    }

    /// The most bytes that one row, line or batch takes while they are indexed.
    pub(crate) fn opening_bytes(&self) -> u64 {
        self.opening_bytes
    }

    pub(crate) fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Objects of a store.
    #[cfg(feature = "remote")]
    pub(crate) fn remote(store: Arc<Store>, objects: Vec<Object>) -> Self {
        let paths = objects.iter().map(|object| store.name(object.key.as_ref())).collect();
        let mut files = Self::new(Vec::new());
        files.paths = paths;
        files.remote = Some((store, objects));
        files
    }

    /// The objects; None for local files.
    #[cfg(feature = "remote")]
    pub(crate) fn objects(&self) -> Option<&[Object]> {
        self.remote.as_ref().map(|(_, objects)| &objects[..])
    }

    /// See [`crate::Source::content_version`].
    #[must_use]
    pub(crate) fn content_version(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        #[cfg(feature = "remote")]
        for (object, url) in self.objects().unwrap_or_default().iter().zip(&self.paths) {
            hash.update(url.as_os_str().as_encoded_bytes());
            hash.update(&object.bytes.to_le_bytes());
            hash.update(object.tag.as_deref().unwrap_or_default().as_bytes());
        }
        if !self.is_remote() {
            self.paths.iter().for_each(|path| hash_version(&mut hash, path));
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

    /// Whether reading goes over the network, where many reads at once take as long as one.
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
    /// A number past the last file.
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

    /// An offset of file number `file`; None where it cannot be read directly.
    #[must_use]
    pub fn extent(&self, file: u32, offset: u64) -> Option<Extent<'_>> {
        if self.is_remote() {
            return None;
        }
        if file as usize >= self.kept {
            return Extent::open(self.paths.get(file as usize)?, offset);
        }
        Some(Extent { file: FileRef::Kept(self.direct(file as usize)?), offset })
    }

    fn direct(&self, i: usize) -> Option<&File> {
        let open = || open_file(self.paths.get(i)?, ReadMode::Direct).ok();
        self.direct.get(i)?.get_or_init(open).as_ref()
    }

    /// Reads `len` bytes at `offset` of file number `file` into `into`, and returns where in
    /// `into` they are.
    ///
    /// # Errors
    /// As [`read_open`]; of objects, what the server answers.
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
            let target = target.ok_or_else(|| {
                Error::format(path, offset, format!("a read of {len} bytes needs as many bytes of staging"))
            })?;
            store.read(&objects[i], offset, target)?;
            return Ok(0..len as usize);
        }
        if i >= self.kept {
            return read_file(path, offset, len, mode, into);
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
            return Ok(Box::new(SequentialReader::open(self.path(file)?)?));
        }
        let left = self.bytes(file)?;
        Ok(Box::new(Stream { files: Arc::clone(self), file, at: 0, left, bytes: Vec::new(), used: 0 }))
    }
}

/// How many of these files can stay open, each in two modes, beside those of other datasets. The
/// soft limit of the process is raised as far as its hard limit allows.
fn files_to_keep(files: usize) -> usize {
    let mut promised = lock(&PROMISED);
    let wanted = 2 * files as u64 + *promised + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let mut soft = limit.current.unwrap_or(u64::MAX);
    if soft < wanted {
        let raised = limit.maximum.unwrap_or(u64::MAX).min(wanted);
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }).is_ok() {
            soft = raised;
        }
    }
    let left = soft.saturating_sub(OTHER_FILES + *promised);
    let kept = (left / 2).min(files as u64);
    *promised += 2 * kept;
    kept as usize
}

impl Drop for Files {
    fn drop(&mut self) {
        *lock(&PROMISED) -= 2 * self.kept as u64;
    }
}

/// Descriptors that the datasets of this process may have open.
static PROMISED: Mutex<u64> = Mutex::new(0);

/// Files that are left for everything else in the process.
const OTHER_FILES: u64 = 128;

/// An object from its beginning to its end, a part at a time.
struct Stream {
    files: Arc<Files>,
    file: u32,
    at: u64,
    left: u64,
    bytes: Vec<u8>,
    used: usize,
}

/// Bytes of one request of a stream.
const STREAM_BYTES: u64 = 1 << 20;

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
