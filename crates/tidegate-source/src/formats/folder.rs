//! A folder of image files with one sub-folder a class, as torchvision's ImageFolder reads it.
//!
//! Flow: folder -> index (relative paths as keys) -> one file a sample: fields `image` and
//! `label`.
//! Memory: see `index`; files that are not read take none.
//!
//! Files of other kinds, images beside the folders of classes, and links that lead nowhere are
//! counted. Links to folders are followed.
//!
//! The index holds while the modification times of all folders are unchanged; the size of a file
//! shows a change within it when it is read.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::files::KERNEL_FILE_BYTES;
use crate::files::natural::natural_order;
use crate::files::read::{Extent, ReadMode, hash_version, read_file};
use crate::index::probe;
use crate::index::{Builder, Entry, Index, ShardMeta};
use crate::parts::OpenOptions;
use crate::{Error, Place, Result};
use crate::{Located, Source};
use tidegate_decode::{Field, Kind, Value};

/// The extensions of images, the formats that can be decoded.
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// The extensions of images that are not read.
const OTHER_IMAGES: [&str; 16] = [
    "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif", "heic", "heif", "jxl",
    "jfif", "ico",
];

/// Names of folders that hold kinds of files, not classes.
const KINDS: [&str; 12] = [
    "image",
    "images",
    "img",
    "imgs",
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "annotations",
    "segmentation",
    "segmentations",
];

/// A folder of image files.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    index: Index,
}

struct Listing {
    classes: Vec<String>,
    /// Sub-folders below each class, with the class' number.
    folders: Vec<(PathBuf, usize)>,
    identity: u64,
}

impl Folder {
    /// Opens a folder, indexing it first if its index does not hold.
    ///
    /// # Errors
    /// When it holds no images, or a name is not UTF-8, or a class holds splits.
    pub(crate) fn open(root: &Path, options: &OpenOptions) -> Result<Self> {
        let listing = list_folders(root)?;
        listing.check_splits(root, options)?;
        // Next to the folder, not in it: torchvision takes every folder within for a class.
        let whole = root.canonicalize().map_err(Error::io(root))?;
        let beside = whole.parent().unwrap_or(&whole);
        let name = xxh3_64(format!("folder {}", whole.file_name().unwrap_or_default().display()).as_bytes());
        if options.force {
            Index::remove(beside, name);
        }
        let index = match Index::open(beside, name, listing.identity) {
            Some(index) => index,
            None => build(root, Builder::new(beside, name, listing.identity, "folder")?, &listing)?,
        };
        Ok(Self { root: root.to_owned(), index })
    }
}

impl Listing {
    /// Checks that no folder within a class holds one folder a split, as `images/train` and
    /// `images/val` beside `labels` do.
    fn check_splits(&self, root: &Path, options: &OpenOptions) -> Result<()> {
        let mut within: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
        for (folder, _) in &self.folders {
            let Some(parent) = folder.parent().filter(|parent| *parent != Path::new("")) else { continue };
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            within.entry(parent).or_default().push(name);
        }
        within.iter().try_for_each(|(folder, names)| options.check_class(&root.join(folder), names))
    }
}

fn list_folders(root: &Path) -> Result<Listing> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(root).map_err(Error::io(root))? {
        let entry = entry.map_err(Error::io(root))?;
        let name = utf8(root, &entry.file_name())?;
        if !name.starts_with('.') && entry.path().is_dir() {
            classes.push(name);
        }
    }
    // As torchvision: class numbers follow the plain order of names.
    classes.sort();
    let mut folders = Vec::new();
    if classes.is_empty() {
        folders.push((PathBuf::new(), 0));
    }
    for (i, class) in classes.iter().enumerate() {
        list_below(root, PathBuf::from(class), i, &mut Vec::new(), &mut folders)?;
    }
    let mut hash = Xxh3::new();
    for (folder, _) in &folders {
        let meta = fs::metadata(root.join(folder)).map_err(Error::io(root.join(folder)))?;
        let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        hash.update(folder.as_os_str().as_encoded_bytes());
        hash.update(&changed.map_or(0, |d| d.as_nanos()).to_le_bytes());
    }
    Ok(Listing { classes, folders, identity: hash.digest() })
}

/// Lists a folder and those below it, links to folders too; `above` are those that it is in, so
/// that a link back to one of them is an error and no endless walk.
fn list_below(
    root: &Path,
    folder: PathBuf,
    class: usize,
    above: &mut Vec<(u64, u64)>,
    found: &mut Vec<(PathBuf, usize)>,
) -> Result<()> {
    let path = root.join(&folder);
    let meta = fs::metadata(&path).map_err(Error::io(&path))?;
    let place = (meta.dev(), meta.ino());
    if above.contains(&place) {
        let what = "this link leads back to a folder that it is in: remove it";
        return Err(Error::Dataset { path, what: what.into() });
    }
    let mut below = Vec::new();
    for entry in fs::read_dir(&path).map_err(Error::io(&path))? {
        let entry = entry.map_err(Error::io(&path))?;
        if kind_of(&entry).is_some_and(|kind| kind.is_dir()) {
            below.push(folder.join(utf8(&path, &entry.file_name())?));
        }
    }
    found.push((folder, class));
    below.sort();
    above.push(place);
    for folder in below {
        list_below(root, folder, class, above, found)?;
    }
    above.pop();
    Ok(())
}

/// Whether a key of the index names a file below the root.
fn is_below(key: &str) -> bool {
    Path::new(key).components().all(|part| matches!(part, Component::Normal(_)))
}

fn utf8(folder: &Path, name: &std::ffi::OsStr) -> Result<String> {
    name.to_str().map(str::to_owned).ok_or_else(|| Error::Dataset {
        path: folder.join(name),
        what: "this name is not UTF-8: rename it (for example with convmv)".into(),
    })
}

fn build(root: &Path, mut builder: Builder, listing: &Listing) -> Result<Index> {
    let mut shards: Vec<ShardMeta> = Vec::new();
    let mut counts = vec![0; listing.classes.len().max(1)];
    for (folder, class) in &listing.folders {
        let files = files_in(root, folder, &mut builder)?;
        let before = builder.samples();
        let mut bytes = 0;
        for (path, len, header) in probe::probe_files(root, &files)? {
            bytes += len;
            let len = u32::try_from(len).map_err(|_| Error::Dataset {
                path: root.join(&path),
                what: "a sample of 4 GiB or more: split it".into(),
            })?;
            let entry = Entry::from_file(builder.samples() as u32, len, *class as u64);
            builder.push(entry, &path, &header.into())?;
        }
        let samples = builder.samples() - before;
        counts[*class] += samples;
        if samples > 0 {
            let name = folder.to_string_lossy().into_owned();
            shards.push(ShardMeta { name, bytes, samples, groups: Vec::new() });
        }
    }
    for (class, _) in listing.classes.iter().zip(&counts).filter(|(_, count)| **count == 0) {
        builder.leave_out("classes without an image that can be read", class, true);
    }
    if !listing.classes.is_empty() {
        for path in files_in(root, Path::new(""), &mut builder)? {
            builder.leave_out("images beside the folders of the classes", &path, true);
        }
    }
    if builder.samples() == 0 {
        return Err(Error::Dataset {
            path: root.to_owned(),
            what: "no images here: expected .jpg, .jpeg, .png or .webp files in one folder a class, .tar shards, \
                   or an MDS index.json; an array (.npy) is opened by tg.mapped"
                .into(),
        });
    }
    if listing.classes.len() > 1
        && listing.classes.iter().all(|class| KINDS.contains(&&*class.to_lowercase()))
    {
        builder.note_uncertain(format!(
            "the folders {} are read as classes: if they hold what belongs to the same samples, pack them into a tar, \
             where the files of a sample share their name",
            listing.classes.join(", ")
        ));
    }
    let mut schema = vec![Field { name: "image".into(), kind: Kind::Image }];
    if !listing.classes.is_empty() {
        schema.push(Field { name: "label".into(), kind: Kind::Int });
    }
    builder.finish(schema, listing.classes.clone(), shards)
}

/// What an entry is, or what it links to; None for a link that leads nowhere. Only links cost a
/// request to the file system: it lists the kinds of the rest.
fn kind_of(entry: &fs::DirEntry) -> Option<fs::FileType> {
    match entry.file_type() {
        Ok(kind) if !kind.is_symlink() => Some(kind),
        _ => fs::metadata(entry.path()).ok().map(|meta| meta.file_type()),
    }
}

/// Relative paths of the image files directly in `folder`, in natural order; others are counted.
fn files_in(root: &Path, folder: &Path, builder: &mut Builder) -> Result<Vec<String>> {
    let path = root.join(folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(&path).map_err(Error::io(&path))? {
        let entry = entry.map_err(Error::io(&path))?;
        let name = utf8(&path, &entry.file_name())?;
        let extension = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).unwrap_or_default();
        let kind = kind_of(&entry);
        let relative = folder.join(&name).to_string_lossy().into_owned();
        let is_folder = kind.is_some_and(|kind| kind.is_dir());
        // Folders below those of the classes are walked, hidden ones too, as torchvision does.
        if is_folder && (!name.starts_with('.') || folder != Path::new("")) || name == ".tidegate" {
            continue;
        }
        if name.starts_with('.') {
            builder.leave_out("hidden files and folders", &relative, false);
        } else if kind.is_none() {
            builder.leave_out("links that lead nowhere", &relative, true);
        } else if !kind.is_some_and(|kind| kind.is_file()) {
            builder.leave_out("pipes and devices", &relative, true);
        } else if EXTENSIONS.contains(&extension.as_str()) {
            files.push(relative);
        } else if OTHER_IMAGES.contains(&extension.as_str()) {
            builder.leave_out(&format!("images of a kind that is not read (.{extension})"), &relative, true);
        } else {
            builder.leave_out("files that are no images", &relative, false);
        }
    }
    files.sort_by(|a, b| natural_order(a, b));
    Ok(files)
}

impl Source for Folder {
    fn name(&self) -> &str {
        self.root.to_str().unwrap_or("folder")
    }
    fn side_car_index(&self) -> Option<&Index> {
        Some(&self.index)
    }
    fn kernel_bytes(&self) -> u64 {
        self.len() * KERNEL_FILE_BYTES
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let entries = self.index.entries(ids)?;
        let keys = self.index.keys(ids)?;
        if let Some(key) = keys.iter().find(|key| !is_below(key)) {
            return Err(self.index.damaged(format_args!("its key {key:?} leads out of the folder")));
        }
        let located = ids.iter().zip(entries).zip(keys);
        Ok(located.map(|((&id, entry), key)| Located { id, entry, path: key.into() }).collect())
    }
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        let path = self.root.join(&*at.path);
        read_file(&path, 0, len, mode, into)
    }
    fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        Extent::open(&self.root.join(&*at.path), 0)
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        let label = Value::Int(at.entry.class().cast_signed());
        Ok([Value::Bytes(bytes), label].into_iter().take(self.schema().len()).collect())
    }
    fn place(&self, at: &Located) -> Place {
        Place { id: at.id, shard: at.path.to_string(), offset: 0, key: at.path.to_string() }
    }
    fn changed(&self, at: &Located) -> Option<String> {
        self.index.changed(&self.root.join(&*at.path), at.entry.len.into())
    }
    fn content_version(&self) -> u64 {
        // An image that changes in place changes no folder.
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let ids: Vec<u64> = (0..self.len()).collect();
        for ids in ids.chunks(4096) {
            let keys = self.index.keys(ids).unwrap_or_default();
            keys.iter().for_each(|key| hash_version(&mut hash, &self.root.join(key)));
        }
        hash.digest()
    }
    fn shards(&self) -> Vec<PathBuf> {
        self.index.keys(&[0]).map(|keys| keys.iter().map(|k| self.root.join(k)).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_leads_out_of_the_folder_is_none() {
        assert!(is_below("class/a.jpg") && is_below("a.jpg"));
        for key in ["../a.jpg", "class/../../a.jpg", "/etc/passwd", "./a.jpg"] {
            assert!(!is_below(key), "{key}");
        }
    }
}
