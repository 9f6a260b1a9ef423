//! A file for sums that do not fit in memory.
//!
//! Flow: bytes of one size -> a slot of the file -> the same bytes.
//! Memory: none: pages are written and dropped. The file has no name and is gone when the process
//! ends.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};

use crate::{Error, Result};

/// The spill file: slots of equal size.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    path: PathBuf,
    slot_bytes: u64,
    slots: u64,
    free: Vec<u64>,
}

impl Spill {
    /// Creates the file in a folder.
    pub(super) fn new(folder: &Path, slot_bytes: u64) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".spill-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Error::io(&path))?;
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
        Ok(Self { file, path, slot_bytes, slots: 0, free: Vec::new() })
    }

    /// Writes bytes to a free slot and returns its number.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        let written =
            self.file.write_all_at(bytes, slot * self.slot_bytes).and_then(|()| drop_pages(&self.file));
        if let Err(error) = written {
            self.free.push(slot);
            return Err(Error::io(&self.path)(error));
        }
        Ok(slot)
    }

    /// Reads a slot and frees it.
    pub(super) fn take(&mut self, slot: u64, into: &mut [u8]) -> Result<()> {
        let read =
            self.file.read_exact_at(into, slot * self.slot_bytes).and_then(|()| drop_pages(&self.file));
        read.map_err(Error::io(&self.path))?;
        self.free.push(slot);
        Ok(())
    }
}

/// Writes a file's pages to the disk and drops them from the page cache.
pub(super) fn drop_pages(file: &File) -> std::io::Result<()> {
    file.sync_data()?;
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}
