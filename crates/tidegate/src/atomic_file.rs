//! Files that are written whole or not at all.
//!
//! Flow: bytes -> a temporary file in the same folder -> renamed; called by `dataset` and `cli`.
//! Memory: one write buffer.

use std::io::Write;
use std::path::Path;

use tidegate_data::{Error, Result};

/// Checks that there is a folder for a file that will be written.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    std::fs::metadata(folder).map(|_| ()).map_err(Error::io(folder))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file whole, or not at all.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let folder = folder_of(path);
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
    let mut out = std::io::BufWriter::new(&mut part);
    write(&mut out).and_then(|()| out.flush()).map_err(Error::io(path))?;
    drop(out);
    // Others may read what is not secret; a file of one's own is for oneself alone until then.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    part.as_file().set_permissions(mode).map_err(Error::io(path))?;
    part.persist(path).map(|_| ()).map_err(|e| Error::io(path)(e.error))
}
