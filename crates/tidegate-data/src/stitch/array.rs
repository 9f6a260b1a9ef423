//! The written array: its description and the files of its chunks.
//!
//! Flow: [`OverlapWriter`] -> zarr.json, or a check of the one that exists; a chunk's bytes -> its
//! file.
//! Memory: holds none.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tidegate_array::kernels::boxes::Axes as At;

use super::spill::drop_pages;
use super::{LEVEL, Options, OverlapWriter};
use crate::{Error, Result};
use tidegate_source::Source;
use tidegate_source::volume::Volume;

impl OverlapWriter {
    /// The file of a chunk.
    pub(super) fn file(&self, at: &At) -> PathBuf {
        let mut path = self.folder.join("c");
        if !self.argmax {
            // All channels are in one chunk.
            path.push("0");
        }
        at[..self.axes.len()].iter().for_each(|at| path.push(at.to_string()));
        path
    }

    /// Writes the description of the array, or checks the one that exists.
    pub(super) fn describe(&self, volume: &Volume, options: &Options) -> Result<()> {
        let with_channels = |sides: Vec<usize>| -> Vec<usize> {
            if self.argmax { sides } else { std::iter::once(self.channels).chain(sides).collect() }
        };
        let shape = with_channels(self.axes.iter().map(|axis| axis.shape).collect());
        let chunk = with_channels(self.axes.iter().map(|axis| axis.chunk).collect());
        let first = volume.shards().into_iter().next().unwrap_or_default();
        let place = fs::canonicalize(&first).unwrap_or(first).display().to_string();
        let description = serde_json::json!({
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": self.dtype.name(),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": LEVEL, "checksum": false}},
            ],
            "attributes": {"tidegate": {
                "volume": format!("{:016x}", volume.fingerprint()),
                "place": place,
                "channels": self.channels,
                "blend": options.blend,
            }},
        });
        let path = self.folder.join("zarr.json");
        let same = || -> Result<Option<bool>> {
            match fs::read(&path) {
                Ok(bytes) => {
                    let known = serde_json::from_slice::<serde_json::Value>(&bytes);
                    Ok(Some(known.is_ok_and(|known| known == description)))
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io(&path)(error)),
            }
        };
        let mut here = same()?;
        if here.is_none() && !self.is_empty() {
            // A process that began the same array at this moment has written it by now.
            here = Some(same()?.unwrap_or(false));
        }
        match here {
            Some(true) => Ok(()),
            Some(false) => Err(self.other(&self.folder)),
            None => put(&path, format!("{description:#}\n").as_bytes()).map_err(Error::io(&path)),
        }
    }

    /// Whether the folder is empty, apart from an unfinished zarr.json of a process that was
    /// killed or is starting.
    fn is_empty(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.folder) else { return true };
        entries.flatten().all(|entry| entry.file_name().to_string_lossy().starts_with("zarr.json."))
    }

    /// Another array or other files are in the folder.
    fn other(&self, path: &Path) -> Error {
        Error::Config(format!(
            "{}: something else is there than predictions that were begun with the same volume, channels, \
             chunks, dtype and blend: remove it, or write elsewhere",
            path.display()
        ))
    }
}

/// Writes a whole file atomically and drops its pages from the page cache.
pub(super) fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = folder.join(name);
    let mut file = fs::File::create(&unfinished)?;
    file.write_all(bytes)?;
    drop_pages(&file)?;
    fs::rename(unfinished, path)
}
