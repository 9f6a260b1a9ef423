//! What others could have written is not read, and nothing is written where others could have put
//! a link.
//!
//! Flow: a folder or file beside the data, in the user's cache, or among the temporary files ->
//! whether it is to be used; a folder that is made.
//! Memory: holds none.
//!
//! Trusted are this user, root, and who owns the folder of the data, who could change the data as
//! well. An archive that is unpacked, a folder that all can write to, and temporary files may hold
//! an index that another user made.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Bits of a mode by which the group or all others may write.
const OTHERS_WRITE: u32 = 0o022;

/// All others may write.
const ALL_WRITE: u32 = 0o002;
/// Only who made an entry of such a folder may rename or remove it.
const STICKY: u32 = 0o1000;

fn this_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Who owns the data in a folder; this user if there is no such folder.
pub(crate) fn owner_of(folder: &Path) -> u32 {
    fs::metadata(folder).map_or_else(|_| this_user(), |found| found.uid())
}

/// Whether only who is trusted can have written a file or folder, or have made the link to it.
pub(crate) fn is_trusted(path: &Path, data_owner: u32) -> bool {
    let known = |uid: u32| uid == 0 || uid == this_user() || uid == data_owner;
    let link = fs::symlink_metadata(path).is_ok_and(|link| known(link.uid()));
    link && fs::metadata(path).is_ok_and(|found| known(found.uid()) && found.mode() & OTHERS_WRITE == 0)
}

/// Makes a folder that others may read; one that is there must be trusted.
///
/// # Errors
/// The system's; `PermissionDenied` for a folder that others could have written.
pub(crate) fn make_folder(folder: &Path, data_owner: u32) -> io::Result<()> {
    if let Some(parent) = folder.parent().filter(|parent| !parent.exists()) {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    take_rights_away(folder)?;
    if is_trusted(folder, data_owner) {
        return Ok(());
    }
    // What was made just now and belongs to another, as on file systems that change the owner, is
    // in nobody's way. A folder with contents stays.
    fs::remove_dir(folder).ok();
    Err(io::ErrorKind::PermissionDenied.into())
}

/// Takes the right to write away from others, where this user made something under a generous
/// umask.
pub(crate) fn take_rights_away(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() || found.uid() != this_user() || found.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(found.mode() & !OTHERS_WRITE))
}

/// Makes a place that a user named, and returns the folder to use: the place if it is this user's
/// or root's, and a folder of this user's in it if all others may write there. Its group is
/// trusted: who names it chose it.
///
/// # Errors
/// The system's; `PermissionDenied` with the fix.
pub fn make_own_place(place: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(place)?;
    let found = fs::metadata(place)?;
    let (own, common) = (found.uid() == 0 || found.uid() == this_user(), found.mode() & ALL_WRITE != 0);
    if own && !common {
        return Ok(place.to_owned());
    }
    if own && found.mode() & STICKY != 0 {
        // Who made a folder first cannot be trusted, so a name that is taken is an error.
        let folder = place.join(format!("tidegate-{}", this_user()));
        make_own_folder(&folder)?;
        return Ok(folder);
    }
    let what = "another user owns it, or all may write and rename there: name a folder of your own";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// Makes a folder in such a place; one that is there must be this user's or root's.
///
/// # Errors
/// As [`make_own_place`].
pub fn make_own_folder(folder: &Path) -> io::Result<()> {
    make_folder(folder, this_user()).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            io::Error::new(error.kind(), "what is there is another user's: name a folder of your own")
        }
        _ => error,
    })
}

/// Creates a file that was not there, for this user to write and others to read. A link in its
/// place is not followed.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).custom_flags(flags).open(path)?;
    // Whatever the umask allows.
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_can_write_is_not_trusted() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let folder = dir.path().join("a/b");
        let me = this_user();
        make_folder(&folder, me).unwrap();
        assert!(is_trusted(&folder, me));
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        assert!(!is_trusted(&folder, me));
        // It is this user's, who takes the rights away.
        make_folder(&folder, me).unwrap();
        assert!(is_trusted(&folder, me));
        assert!(!is_trusted(&dir.path().join("none"), me));
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let (thesis, link) = (dir.path().join("thesis"), dir.path().join("shard.partial"));
        fs::write(&thesis, "mine").unwrap();
        std::os::unix::fs::symlink(&thesis, &link).unwrap();
        drop(create(&link).unwrap());
        assert_eq!(fs::read_to_string(&thesis).unwrap(), "mine");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
    }
}
