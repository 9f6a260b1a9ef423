//! Files that are written whole or not at all.
//!
//! Flow: bytes -> a temporary file in the same folder -> renamed; called by `dataset` and `cli`.
//! Memory: one write buffer.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tidegate_data::{Error, Result};

/// Checks that the folder of a file that will be written exists.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    std::fs::metadata(folder).map(|_| ()).map_err(Error::io(folder))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file by `write`. After an error the file is as it was before.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let folder = folder_of(path);
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
    let mut out = std::io::BufWriter::new(&mut part);
    write(&mut out).and_then(|()| out.flush()).map_err(Error::io(path))?;
    drop(out);
    // A temporary file is readable by its owner alone; the result is no secret.
    part.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(Error::io(path))?;
    part.persist(path).map(|_| ()).map_err(|e| Error::io(path)(e.error))
}
