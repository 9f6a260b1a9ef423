//! The folder that a command writes into: never one with other data.
//!
//! Flow: called by `synth` and `pack` before they write.
//! Memory: holds none.

use std::fs;
use std::path::Path;

use tidegate_data::{Error, Result};

/// Makes the folder, and refuses one with files that are not the command's `own`.
///
/// # Errors
/// A folder with other data, naming one of its files; a folder that cannot be made or read.
pub(super) fn prepare(out: &Path, own: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(out).map_err(Error::io(out))?;
    for entry in fs::read_dir(out).map_err(Error::io(out))? {
        let name = entry.map_err(Error::io(out))?.file_name().to_string_lossy().into_owned();
        if !own(&name) {
            return Err(Error::Config(format!(
                "{}: this folder has other data ({name}): name a new folder",
                out.display()
            )));
        }
    }
    Ok(())
}
