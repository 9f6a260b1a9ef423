//! The identity of a set of shards, and the folders of what is kept next to them.
//!
//! Flow: the shards of a dataset -> the name and identity of its index, and its folder.
//! Memory: 8 KiB of a shard while it is hashed.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::trust::owner_of;
use super::{cache_folder, make_folder, temporary_folder};
use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::files::read::{ReadMode, aligned, staging_bytes};
use crate::{Error, Result};

/// Bytes that are hashed at each end of a shard: its first headers, and the end, which changes
/// when the shard is written again.
const END_BYTES: u64 = 8 << 10;

/// The folder, name and identity of the index of a set of shards.
///
/// The identity covers names, sizes and both ends of each shard, never times or folders. Of an
/// object with a version tag it covers the tag instead of the ends.
pub(crate) fn shard_set(files: &Files, format: &str) -> Result<(PathBuf, u64, u64)> {
    let mut names = xxhash_rust::xxh3::Xxh3::new();
    let mut identity = xxhash_rust::xxh3::Xxh3::new();
    names.update(format.as_bytes());
    for (i, shard) in files.paths().iter().enumerate() {
        let size = files.bytes(i as u32)?;
        names.update(file_name(shard).as_bytes());
        identity.update(file_name(shard).as_bytes());
        identity.update(&size.to_le_bytes());
        #[cfg(feature = "remote")]
        if let Some(tag) = files.objects().and_then(|objects| objects[i].tag.as_deref()) {
            identity.update(tag.as_bytes());
            continue;
        }
        let len = END_BYTES.min(size);
        let mut staging = aligned(staging_bytes(len) as usize);
        for offset in [0, size - len] {
            let got = files.read(i as u32, offset, len, ReadMode::Drop, &mut staging)?;
            identity.update(&staging[got]);
        }
    }
    Ok((beside(files), names.digest(), identity.digest()))
}

/// The folder for the index of these shards: their own, or for objects one in the user's cache
/// folder, named by a hash of their URL.
pub(crate) fn beside(files: &Files) -> PathBuf {
    let folder = files.paths().first().and_then(|s| s.parent()).filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if files.is_remote() {
        let place = xxhash_rust::xxh3::xxh3_64(folder.as_os_str().as_encoded_bytes());
        return cache_folder().join("remote").join(format!("{place:016x}"));
    }
    folder.to_owned()
}

/// The folder for unpacked shards of a dataset, which no other user can write; another `identity`
/// means another dataset. `to_write`: this user can write there.
pub(crate) fn unpacked_dir(root: &Path, identity: u64, to_write: bool) -> Result<PathBuf> {
    let (beside, owner) = (root.join(".tidegate"), owner_of(root));
    let dir = beside.join(format!("unpacked-{identity:016x}"));
    let fits = |dir: &Path| !to_write || access(dir, Access::WRITE_OK).is_ok();
    if make_folder(&beside, owner).and_then(|()| make_folder(&dir, owner)).is_ok() && fits(&dir) {
        return Ok(dir);
    }
    let cache = temporary_folder().unwrap_or_else(cache_folder).join("unpacked");
    let place = xxhash_rust::xxh3::xxh3_64(root.as_os_str().as_encoded_bytes());
    let dir = cache.join(format!("{place:016x}-{identity:016x}"));
    make_folder(&cache, owner).and_then(|()| make_folder(&dir, owner)).map_err(Error::io(&dir))?;
    Ok(dir)
}
