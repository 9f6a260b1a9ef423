//! Objects by name below a root: files of a folder, or objects of a store. What Zarr lies in.
//!
//! Flow: (key, range) -> bytes in the caller's memory; called by `source::zarr`.
//! Memory: the caller's; what describes the data, at most [`SMALL_BYTES`] an object, is the index's.
//! Not here: data sets whose files are known beforehand (`read::Files`).

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

/// What describes data is small.
const SMALL_BYTES: u64 = 16 << 20;

#[derive(Debug)]
enum Root {
    Folder(PathBuf),
    #[cfg(feature = "remote")]
    Store(Arc<Store>, String),
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Keyed {
    root: Root,
}

/// An object whose parts are read: its size, and which version of it this is.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) bytes: u64,
    /// Of a file: when it was written.
    modified: Option<std::time::SystemTime>,
    #[cfg(feature = "remote")]
    object: Option<Object>,
}

fn below(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") }
}

impl Keyed {
    /// What lies below a folder, or below a prefix of a store.
    ///
    /// # Errors
    /// A folder that is not there; a URL of an unknown kind.
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
            Root::Store(store, prefix) => store.name(&below(prefix, key).into()),
        }
    }

    /// How long a request takes before its first byte comes, over a network.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match &self.root {
            Root::Folder(_) => None,
            #[cfg(feature = "remote")]
            Root::Store(store, _) => Some(store.latency()),
        }
    }

    /// An object that describes others; nothing if there is none of this name.
    ///
    /// # Errors
    /// [`Error::Io`]; an object that is too large to describe anything.
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

    /// An object of which parts are to be read; nothing if there is none of this name.
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

    /// Reads a part of an object into `into`, which has room for [`super::read::staging_bytes`], and says where in it they lie.
    ///
    /// # Errors
    /// As [`super::read::read_file`], and where the file has changed; of an object, what the server says.
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
            let what =
                format!("{len} bytes are said to lie here, but it ends after {}: restore it", of.bytes);
            return Err(Error::format(self.path(key), offset, what));
        }
        match &self.root {
            Root::Folder(folder) => {
                let path = folder.join(key);
                let opened = open_or_none(&path, mode).map_err(Error::io(&path))?;
                let changed =
                    || Error::format(&path, offset, "it has changed since it was first read: open it again");
                let (file, mode) = opened.ok_or_else(changed)?;
                let now = file.metadata().map_err(Error::io(&path))?;
                if (now.len(), now.modified().ok()) != (of.bytes, of.modified) {
                    return Err(changed());
                }
                read_open(&file, &path, offset, len, mode, into)
            }
            #[cfg(feature = "remote")]
            Root::Store(store, _) => {
                let no_room = || Error::format(self.path(key), offset, "no room for what is read");
                let target = into.get_mut(..len as usize).ok_or_else(no_room)?;
                let object = of.object.as_ref().ok_or_else(no_room)?;
                store.read(object, offset, target)?;
                Ok(0..len as usize)
            }
        }
    }

    /// Reads a whole object into `into` and says where in it it lies; nothing if there is none of this name.
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
        "a chunk of {len} bytes, where its codecs make at most {most}: restore it, or check the array's metadata"
    );
    Error::format(path, 0, what)
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The file, and how it can be read; nothing if there is none.
fn open_or_none(path: &Path, mode: ReadMode) -> io::Result<Option<(std::fs::File, ReadMode)>> {
    let modes = if mode == ReadMode::Direct { &[ReadMode::Direct, ReadMode::Drop][..] } else { &[mode] };
    let mut outcome = Ok(None);
    for &mode in modes {
        match open_file(path, mode) {
            Ok(file) => return Ok(Some((file, mode))),
            Err(error) if absent(&error) => return Ok(None),
            // A file system without direct reads says so here.
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}
