//! Objects by key below a root: files of a folder, or objects of a store. Zarr arrays are read so.
//!
//! Flow: (key, range) -> bytes in the caller's memory; called by `zarr`.
//! Memory: the caller's; metadata, at most [`SMALL_BYTES`] an object, counts to the index.
//! Not here: datasets whose files are known in advance (`file_set`).

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
#[cfg(feature = "remote")]
use std::sync::Arc;
use std::time::Duration;

use super::read::{ReadMode, open_file, read_open};
#[cfg(feature = "remote")]
use super::remote::{Object, Store};
use crate::{Error, Result};

/// The most bytes of metadata.
const SMALL_BYTES: u64 = 16 << 20;

#[derive(Debug)]
enum Root {
    Folder(PathBuf),
    #[cfg(feature = "remote")]
    Store(Arc<Store>, String),
}

/// A folder or a prefix of a store, whose objects are read by key.
#[derive(Debug)]
pub(crate) struct Keyed {
    root: Root,
}

/// A version of an object whose parts are read: its size, and what identifies it.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) bytes: u64,
    /// Of a file: the time of its last change.
    modified: Option<std::time::SystemTime>,
    #[cfg(feature = "remote")]
    object: Option<Object>,
}

#[cfg(feature = "remote")]
fn below(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") }
}

impl Keyed {
    /// Opens a folder, or a prefix of a store.
    ///
    /// # Errors
    /// A missing folder; a URL with an unknown scheme.
    pub(crate) fn open(url: &str) -> Result<Self> {
        let plain = url.strip_prefix("file://").unwrap_or(url);
        if !plain.contains("://") {
            let folder = PathBuf::from(plain.trim_end_matches('/'));
            if !folder.is_dir() {
                return Err(Error::Dataset { path: folder, what: "there is no such folder".into() });
            }
            return Ok(Self { root: Root::Folder(folder) });
        }
        #[cfg(feature = "remote")]
        {
            let (store, prefix) = Store::open(url)?;
            Ok(Self { root: Root::Store(store, prefix.trim_matches('/').to_owned()) })
        }
        #[cfg(not(feature = "remote"))]
        {
            let what = "this build reads no object stores: build it with the feature `remote`".into();
            Err(Error::Dataset { path: url.into(), what })
        }
    }

    /// The path or URL of a key.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        match &self.root {
            Root::Folder(folder) => folder.join(key),
            #[cfg(feature = "remote")]
            Root::Store(store, prefix) => store.name(&below(prefix, key)),
        }
    }

    /// The time from a request to its first byte, over a network.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match &self.root {
            Root::Folder(_) => None,
            #[cfg(feature = "remote")]
            Root::Store(store, _) => Some(store.latency()),
        }
    }

    /// Reads a small object, such as metadata; None if there is none of this name.
    ///
    /// # Errors
    /// [`Error::Io`]; an object that is too large for metadata.
    pub(crate) fn small(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let Some(pinned) = self.pin(key)? else { return Ok(None) };
        if pinned.bytes > SMALL_BYTES {
            let what = format!("{} bytes of metadata: at most {SMALL_BYTES} are read", pinned.bytes);
            return Err(Error::format(self.path(key), 0, what));
        }
        let mut bytes = vec![0; pinned.bytes as usize];
        self.part(key, &pinned, 0, pinned.bytes, ReadMode::Plain, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Finds an object whose parts will be read; None if there is none of this name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn pin(&self, key: &str) -> Result<Option<Pinned>> {
        match &self.root {
            Root::Folder(folder) => {
                let path = folder.join(key);
                match std::fs::metadata(&path) {
                    Ok(file) if file.is_file() => Ok(Some(Pinned {
                        bytes: file.len(),
                        modified: file.modified().ok(),
                        #[cfg(feature = "remote")]
                        object: None,
                    })),
                    Ok(_) => Ok(None),
                    Err(error) if absent(&error) => Ok(None),
                    Err(error) => Err(Error::io(path)(error)),
                }
            }
            #[cfg(feature = "remote")]
            Root::Store(store, prefix) => {
                let found = store.find(&below(prefix, key))?;
                Ok(found.map(|object| Pinned { bytes: object.bytes, modified: None, object: Some(object) }))
            }
        }
    }

    /// Reads a part of an object into `into` and returns where in `into` it is.
    ///
    /// `into` has room for [`super::read::staging_bytes`] of `len`.
    ///
    /// # Errors
    /// As [`super::read::read_file`], and where the file has changed; of an object, what the
    /// server answers.
    pub(crate) fn part(
        &self,
        key: &str,
        of: &Pinned,
        offset: u64,
        len: u64,
        mode: ReadMode,
        into: &mut [u8],
    ) -> Result<Range<usize>> {
        if offset.checked_add(len).is_none_or(|end| end > of.bytes) {
            let what = format!("{len} bytes must be here, but the file ends after {}: restore it", of.bytes);
            return Err(Error::format(self.path(key), offset, what));
        }
        match &self.root {
            Root::Folder(folder) => {
                let path = folder.join(key);
                let opened = open_or_none(&path, mode).map_err(Error::io(&path))?;
                let changed = || {
                    Error::format(
                        &path,
                        offset,
                        "the file changed since it was first read: open the dataset again",
                    )
                };
                let (file, mode) = opened.ok_or_else(changed)?;
                let now = file.metadata().map_err(Error::io(&path))?;
                if (now.len(), now.modified().ok()) != (of.bytes, of.modified) {
                    return Err(changed());
                }
                read_open(&file, &path, offset, len, mode, into)
            }
            #[cfg(feature = "remote")]
            Root::Store(store, _) => {
                let no_room = || {
                    let what = format!("a read of {len} bytes needs as many bytes of staging");
                    Error::format(self.path(key), offset, what)
                };
                let target = into.get_mut(..len as usize).ok_or_else(no_room)?;
                let object = of.object.as_ref().ok_or_else(no_room)?;
                store.read(object, offset, target)?;
                Ok(0..len as usize)
            }
        }
    }

    /// Reads a whole object into `into` and returns where in `into` it is; None if there is none
    /// of this name.
    ///
    /// # Errors
    /// As [`Keyed::part`]; an object of more than `most` bytes.
    pub(crate) fn whole(
        &self,
        key: &str,
        most: u64,
        mode: ReadMode,
        into: &mut [u8],
    ) -> Result<Option<Range<usize>>> {
        match &self.root {
            Root::Folder(folder) => {
                let path = folder.join(key);
                let (file, mode) = match open_or_none(&path, mode) {
                    Ok(Some(opened)) => opened,
                    Ok(None) => return Ok(None),
                    Err(error) => return Err(Error::io(path)(error)),
                };
                let len = file.metadata().map_err(Error::io(&path))?.len();
                if len > most {
                    return Err(too_long(&path, len, most));
                }
                read_open(&file, &path, 0, len, mode, into).map(Some)
            }
            #[cfg(feature = "remote")]
            Root::Store(store, prefix) => {
                let room = into.len().min(most as usize);
                let came = store.whole(&below(prefix, key), &mut into[..room])?;
                Ok(came.map(|len| 0..len))
            }
        }
    }
}

fn too_long(path: &Path, len: u64, most: u64) -> Error {
    let what = format!(
        "a chunk of {len} bytes, where its codecs make at most {most}: restore it, or check the \
         array's metadata"
    );
    Error::format(path, 0, what)
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Opens a file and returns it with the mode it can be read in; None if there is no such file.
fn open_or_none(path: &Path, mode: ReadMode) -> io::Result<Option<(std::fs::File, ReadMode)>> {
    let modes = if mode == ReadMode::Direct { &[ReadMode::Direct, ReadMode::Drop][..] } else { &[mode] };
    let mut outcome = Ok(None);
    for &mode in modes {
        match open_file(path, mode) {
            Ok(file) => return Ok(Some((file, mode))),
            Err(error) if absent(&error) => return Ok(None),
            // A file system without direct reads refuses the open.
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}
