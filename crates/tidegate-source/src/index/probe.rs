//! Image headers while indexing: the images of a sample, and those of the files of a folder.
//!
//! Flow: files -> the first bytes of each -> [`ImageHeader`] -> [`Images`] -> an index entry.
//! Memory: a few KiB for each thread that reads headers.

use std::path::Path;

use tidegate_decode::header::{ImageHeader, probe_with};

use super::entry::{Entry, HAS_SHAPE, PROGRESSIVE};
use crate::files::read::{ReadMode, aligned, read_file, staging_bytes};
use crate::{Error, Result};

/// What an index keeps of the images of one sample.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images {
    largest: Option<ImageHeader>,
    /// Scratch bytes that decoding any of them takes at most.
    pub scratch_bytes: u64,
    /// The longest side of any of them, in pixels.
    pub side: u64,
}

impl Images {
    /// Adds one.
    pub fn add(&mut self, header: ImageHeader) {
        self.scratch_bytes = self.scratch_bytes.max(header.scratch_bytes());
        self.side = self.side.max(header.width.max(header.height).into());
        if self.largest.as_ref().is_none_or(|h| h.decoded_bytes() < header.decoded_bytes()) {
            self.largest = Some(header);
        }
    }

    /// Writes the shape of the largest into an index entry.
    pub fn write(&self, entry: &mut Entry) {
        if let Some(header) = &self.largest {
            // Sizes beyond 65,535 do not fit an entry.
            let (Ok(width), Ok(height)) = (u16::try_from(header.width), u16::try_from(header.height)) else {
                return;
            };
            (entry.width, entry.height) = (width, height);
            entry.flags |= HAS_SHAPE | if header.progressive { PROGRESSIVE } else { 0 };
        }
    }
}

impl From<Option<ImageHeader>> for Images {
    fn from(header: Option<ImageHeader>) -> Self {
        let mut images = Self::default();
        if let Some(header) = header {
            images.add(header);
        }
        images
    }
}

/// A file below a folder: its path, its size, and its header if it is an image.
pub(crate) type Probed = (String, u64, Option<ImageHeader>);

/// Reads the header of each file below `root`, on a few threads, since opening files takes long.
///
/// # Errors
/// When a file cannot be opened.
pub(crate) fn probe_files(root: &Path, files: &[String]) -> Result<Vec<Probed>> {
    let one = |file: &String| -> Result<Probed> {
        let path = root.join(file);
        let size = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        let header = probe_with(size, &mut |len| {
            let mut staging = aligned(staging_bytes(len) as usize);
            let got = read_file(&path, 0, len, ReadMode::Drop, &mut staging).ok()?;
            Some(staging[got].to_vec())
        });
        Ok((file.clone(), size, header))
    };
    let threads = std::thread::available_parallelism().map_or(4, |n| n.get() * 2).min(16);
    let part = files.len().div_ceil(threads).max(256);
    let parts: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let run = |part| move || -> Result<Vec<_>> { <[String]>::iter(part).map(one).collect() };
        let handles: Vec<_> = files
            .chunks(part)
            .map(|part| std::thread::Builder::new().name("tg-index".into()).spawn_scoped(scope, run(part)))
            .collect();
        let joined = handles.into_iter().map(|handle| match handle.map(|h| h.join()) {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(Error::Panic { thread: "tg-index".into(), what: "while probing files".into() }),
            Err(error) => Err(Error::io(root)(error)),
        });
        joined.collect()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}
