//! The file of JPEG checkpoints of an index: a record of fixed size for each sample.
//!
//! Flow: an id -> where its record is ([`Checkpoints`]) -> the record -> the JPEG decoder, which
//! skips what is before the crop.
//! Memory: holds none.
//! Not here: making the records (`crate::checkpoints`).
//!
//! A record carries the checksum of the bytes of its image, and a record of zeros means "none". So
//! the file may be incomplete, resumed, or belong to images that changed. An incomplete file is
//! named `checkpoints.partial`.

use std::ops::Range;
use std::path::Path;

use tidegate_core::memory::PAGE_BYTES;

use super::entry::Located;
use crate::Result;
use crate::files::file_set::Files;
use crate::files::read::{Extent, ReadMode, aligned};

/// The smallest and the largest record.
pub(crate) const RECORD_BYTES: [u64; 2] = [512, 64 << 10];
/// The name of a file with the records of all samples.
pub(crate) const WHOLE: &str = "checkpoints";
/// The name of a file that is being made.
pub(crate) const PARTIAL: &str = "checkpoints.partial";

/// The checkpoints of an index.
#[derive(Debug)]
pub struct Checkpoints {
    file: Files,
    record_bytes: u64,
    whole: bool,
}

impl Checkpoints {
    /// Opens the checkpoints of an index with this number of samples, if it has any.
    pub(crate) fn open(dir: &Path, samples: u64) -> Option<Self> {
        [(WHOLE, true), (PARTIAL, false)].into_iter().find_map(|(name, whole)| {
            let path = dir.join(name);
            let bytes = std::fs::metadata(&path).ok()?.len();
            let record_bytes = bytes.checked_div(samples)?;
            let sound = record_bytes * samples == bytes
                && record_bytes.is_power_of_two()
                && (RECORD_BYTES[0]..=RECORD_BYTES[1]).contains(&record_bytes);
            sound.then(|| Self { file: Files::new(vec![path]), record_bytes, whole })
        })
    }

    /// Whether they were made for every sample.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.whole
    }

    /// Bytes of a record.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        self.record_bytes
    }

    /// Bytes of memory that reading a record takes: whole pages.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.record_bytes.max(PAGE_BYTES)
    }

    /// Where the record of a sample is; None where the file cannot be read directly.
    pub fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        self.file.extent(0, at.id * self.record_bytes)
    }

    /// The record of a sample in fresh memory: for measuring, not for training.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn fetch(&self, at: &Located) -> Result<Vec<u8>> {
        let mut staging = aligned(self.room_bytes() as usize);
        let range = self.read(at, ReadMode::Plain, &mut staging)?;
        Ok(staging[range].to_vec())
    }

    /// Reads the record of a sample into `into` and returns where in `into` it is.
    ///
    /// `into` holds [`Checkpoints::room_bytes`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, at: &Located, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        self.file.read(0, at.id * self.record_bytes, self.record_bytes, mode, into)
    }
}
