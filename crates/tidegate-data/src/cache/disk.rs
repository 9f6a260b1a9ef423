//! A tier on a local disk, kept from one run to the next and shared by a machine's processes.
//!
//! Flow: [`open`] -> [`SegmentTier`] over segment files in a folder; called by the loader that is
//! given a [`DiskCache`].
//! Memory: page cache of bytes that are not on the disk yet, and of the table (account
//! `cache.memory`, charged by the plan).
//!
//! ```text
//! FOLDER/lock                  locked while segments are made and removed
//! FOLDER/<dataset>/table       where each object is; locked (shared) while the dataset is open
//! FOLDER/<dataset>/000007      a segment; locked by its one writer; as long as its records
//! ```
//!
//! The tier reserves all space of a segment before it writes to it. So a full disk shows when a
//! segment is made, where it ends the filling and nothing else. The limit counts all datasets of a
//! folder: a dataset that no process has open makes room for another. Locks are the kernel's and
//! end with their process. The clock only tells which dataset was used last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tidegate_core::sync::lock;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, fdatasync, flock, statvfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tidegate_core::memory::PAGE_BYTES;
use tidegate_core::memory::size::mib;

use super::admission::dataset_hash;
use super::segment::{Claimed, HEAD_BYTES, SEGMENT_MOST_BYTES, SEGMENTS_MOST, SegmentTier, Segments, Table};
use crate::{Error, Result};
use tidegate_source::index::trust::{make_own_folder, make_own_place};
use tidegate_source::read::{ReadMode, direct_works, open_file};
use tidegate_source::{Access, Chunked, SizeBounds, Source};

/// A segment is about this part of the limit.
const SEGMENTS: u64 = 64;
const SEGMENT_MIN_BYTES: u64 = 1 << 20;
/// Bytes that may wait in the page cache to be written back, in addition to the current record.
const UNWRITTEN_BYTES: u64 = 2 << 20;
/// How long to wait for a lock where reading can go on without it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for a lock when a cache is opened, which cannot go on without it.
const OPEN_LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// The kernel's type numbers of file systems in memory (tmpfs, ramfs).
const MEMORY_FILE_SYSTEMS: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// The version of the layout. A folder with another version is another dataset.
const VERSION: u32 = 1;

/// A folder on a disk where samples may be kept, and how much it may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskCache {
    /// The folder; each dataset has a folder of its own in it.
    pub folder: PathBuf,
    /// The most bytes that the folder may take, all datasets together.
    pub limit_bytes: u64,
    /// Bytes that must stay free on its file system.
    pub leave_free_bytes: u64,
}

/// Opens the disk cache of a source, or makes an empty one.
///
/// # Errors
/// A folder that cannot be used, with the fix; a source whose samples cannot be read one by one.
pub fn open(source: &dyn Source, options: &DiskCache) -> Result<SegmentTier> {
    let Contents { objects, of, total_bytes } = contents(source).ok_or_else(|| {
        Error::Config(format!(
            "{}: a disk cache keeps samples that can be read one by one, which these cannot: repack the data with \
             `tidegate pack`, or leave the cache out",
            source.name()
        ))
    })?;
    refuse_folder_in_data(source, &options.folder)?;
    let dataset = dataset_hash(source);
    let disk = DiskSegments::open(options, dataset, Table::bytes_for(of), &source.size_bounds())?;
    let table = disk.table.try_clone().map_err(Error::io(&disk.folder))?;
    let table = Table::new(table, 0, disk.table_bytes);
    Ok(SegmentTier::new(Box::new(disk), table, dataset, total_bytes + HEAD_BYTES * objects, objects))
}

/// The objects of a source that a disk can keep.
struct Contents {
    /// The number of objects of this source, and of the whole dataset that it may be a part of.
    objects: u64,
    of: u64,
    /// Bytes that the objects take; 0 if that is unknown.
    total_bytes: u64,
}

fn contents(source: &dyn Source) -> Option<Contents> {
    if let Some(chunks) = source.chunked().map(Chunked::chunks) {
        // The compressed size is unknown, so all chunks are kept until the tier is full.
        return Some(Contents { objects: chunks, of: chunks, total_bytes: 0 });
    }
    let index = source.index().filter(|_| source.access() == Access::Random)?;
    Some(Contents {
        objects: source.len(),
        of: index.meta.samples,
        total_bytes: source.size_bounds().total_bytes,
    })
}

/// Refuses a folder within the data, where its files would be taken for samples.
fn refuse_folder_in_data(source: &dyn Source, folder: &Path) -> Result<()> {
    let whole = |path: &Path| path.ancestors().find_map(|path| path.canonicalize().ok());
    let data = Path::new(source.name());
    let data = if data.is_file() { data.parent().unwrap_or(data) } else { data };
    match (data.canonicalize(), whole(folder)) {
        (Ok(data), Some(folder)) if data.is_dir() && folder.starts_with(&data) => {
            Err(Error::Config(format!(
                "the disk cache cannot be kept in {}, which is inside the data: name a folder outside",
                folder.display()
            )))
        }
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct DiskSegments {
    root: PathBuf,
    folder: PathBuf,
    table: File,
    table_bytes: u64,
    segment_bytes: u64,
    limit: AtomicU64,
    leave_free: u64,
    held: AtomicU64,
    mode: ReadMode,
    /// Open files of segments that were read.
    files: Mutex<BTreeMap<u32, Arc<File>>>,
    /// The offset in the current segment from which nothing is written back yet.
    unwritten: AtomicU64,
    /// Bytes of memory that the tier must charge.
    charged: u64,
}

/// Takes the lock of a file; `false` if another process has it.
fn try_lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn read_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Whether this is the folder of a dataset. Anything else in the cache's folder is not ours.
fn is_dataset(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (hash, version) = name.split_once("-v").unwrap_or_default();
    let named = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    named && version.parse::<u32>().is_ok() && folder.join("table").is_file()
}

/// Bytes that a file takes of the disk, with reserved space; 0 if it was removed.
fn allocated_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512)
}

fn allocated_bytes_in(folder: &Path) -> u64 {
    entries(folder).unwrap_or_default().iter().map(|file| allocated_bytes(file)).sum()
}

/// Removes a dataset, unless a process has it open. The caller holds the folder's lock.
fn remove(dataset: &Path) -> io::Result<()> {
    let table = dataset.join("table");
    if !File::open(&table).is_ok_and(|table| try_lock(&table)) {
        return Ok(());
    }
    for path in entries(dataset)?.iter().filter(|path| number(path).is_some()) {
        fs::remove_file(path)?;
    }
    fs::remove_file(table)?;
    // Other files in it are not ours, and then the folder stays.
    fs::remove_dir(dataset).ok();
    Ok(())
}

/// The lock of a folder, until it is dropped. It is unlocked explicitly, since a forked process
/// may have the file open as well.
struct FolderLock(File);

impl FolderLock {
    fn wait(root: &Path, timeout: Duration) -> io::Result<Self> {
        let (file, since) = (read_write(&root.join("lock"))?, Instant::now());
        while !try_lock(&file) {
            if since.elapsed() > timeout {
                let what = format!(
                    "{} has been locked for {} s by another process",
                    root.display(),
                    timeout.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Self(file))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // The lock is held, so this cannot fail.
        flock(&self.0, FlockOperation::Unlock).ok();
    }
}

impl DiskSegments {
    fn open(options: &DiskCache, dataset: u64, table_bytes: u64, extremes: &SizeBounds) -> Result<Self> {
        let usable = |error: io::Error| {
            let at = options.folder.display();
            Error::Config(format!(
                "the disk cache cannot be kept in {at}: {error}; name another folder, or leave the cache out"
            ))
        };
        let root = make_own_place(&options.folder).map_err(usable)?;
        let folder = root.join(format!("{dataset:016x}-v{VERSION}"));
        let held = FolderLock::wait(&root, OPEN_LOCK_TIMEOUT).map_err(usable)?;
        make_own_folder(&folder).map_err(usable)?;
        let table = read_write(&folder.join("table")).map_err(usable)?;
        // Before another process can take the dataset for unused.
        flock(&table, FlockOperation::NonBlockingLockShared).map_err(|e| usable(e.into()))?;
        // A small dataset has small segments, or one of them would reserve more than the whole
        // dataset takes.
        let usual = (options.limit_bytes / SEGMENTS).min(extremes.total_bytes / (SEGMENTS / 4));
        let segment = usual.max(SEGMENT_MIN_BYTES).max(extremes.sample_bytes + HEAD_BYTES);
        let mode = if direct_works(&folder.join("table")) { ReadMode::Direct } else { ReadMode::Drop };
        let kind = rustix::fs::fstatfs(&table).map_or(0, |system| system.f_type as u32);
        // If the files are in memory, all of them are charged.
        let pages = if MEMORY_FILE_SYSTEMS.contains(&kind) { options.limit_bytes } else { 0 };
        let disk = Self {
            root,
            folder,
            table,
            table_bytes,
            segment_bytes: segment.next_multiple_of(PAGE_BYTES).min(SEGMENT_MOST_BYTES),
            limit: AtomicU64::new(options.limit_bytes),
            leave_free: options.leave_free_bytes,
            held: AtomicU64::new(0),
            mode,
            files: Mutex::default(),
            unwritten: AtomicU64::new(0),
            charged: table_bytes.next_multiple_of(PAGE_BYTES)
                + UNWRITTEN_BYTES
                + extremes.sample_bytes
                + pages,
        };
        if disk.table.metadata().map_err(usable)?.len() != table_bytes {
            // Without a table no record is found, so segments that exist are removed.
            disk.remove_segments(|_| true);
            disk.table.set_len(0).map_err(usable)?;
            disk.reserve(&disk.table, table_bytes, table_bytes).map_err(usable)?;
            disk.table.set_len(table_bytes).map_err(usable)?;
        }
        // The dataset was used last. An old time on failure only makes it the first to be removed.
        disk.table.set_modified(std::time::SystemTime::now()).ok();
        disk.shrink();
        drop(held);
        Ok(disk)
    }

    /// Reserves `len` bytes of a file, `more` of which it does not have yet.
    ///
    /// Stays within the limit and leaves the free space that was asked for, or returns what is
    /// missing. The caller holds the folder's lock.
    fn reserve(&self, file: &File, len: u64, more: u64) -> io::Result<()> {
        let mut missing = self.shortage(more)?;
        for other in self.other_datasets() {
            if missing.is_none() {
                break;
            }
            // A process that opens it meanwhile waits for the lock, and then finds an empty
            // dataset.
            remove(&other)?;
            missing = self.shortage(more)?;
        }
        if let Some(missing) = missing {
            return Err(io::Error::new(io::ErrorKind::StorageFull, missing));
        }
        loop {
            return match fallocate(file, FallocateFlags::KEEP_SIZE, 0, len) {
                Err(Errno::INTR) => continue,
                // The file system cannot reserve space.
                Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => {
                    Err(io::Error::new(io::ErrorKind::StorageFull, errno.to_string()))
                }
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Bytes by which all datasets would exceed the limit with `bytes` more.
    fn excess_bytes(&self, bytes: u64) -> io::Result<u64> {
        let datasets =
            entries(&self.root)?.into_iter().filter(|path| is_dataset(path) || *path == self.folder);
        let taken: u64 = datasets.map(|folder| allocated_bytes_in(&folder)).sum();
        Ok((taken + bytes).saturating_sub(self.limit.load(Ordering::Relaxed)))
    }

    /// Why `bytes` more may not be taken; `None` if they may.
    fn shortage(&self, bytes: u64) -> io::Result<Option<String>> {
        if self.excess_bytes(bytes)? > 0 {
            let limit = mib(self.limit.load(Ordering::Relaxed));
            return Ok(Some(format!("its limit of {limit} MiB is reached")));
        }
        let disk = statvfs(&self.root)?;
        let free = disk.f_bavail * disk.f_frsize;
        let least = self.leave_free;
        Ok((free < least.saturating_add(bytes)).then(|| {
            format!("the disk has {} MiB free, of which {} MiB must stay so", mib(free), mib(least))
        }))
    }

    /// The other datasets, the one that was used longest ago first.
    fn other_datasets(&self) -> Vec<PathBuf> {
        let mut others = entries(&self.root).unwrap_or_default();
        others.retain(|path| *path != self.folder && is_dataset(path));
        others.sort_by_key(|path| fs::metadata(path.join("table")).and_then(|file| file.modified()).ok());
        others
    }

    fn segments(&self) -> io::Result<Vec<(u32, PathBuf)>> {
        let mut found: Vec<_> =
            entries(&self.folder)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
        found.sort();
        Ok(found)
    }

    /// Removes segments for which `go_on` is true, the last ones first, except those that a
    /// process writes. The caller holds the folder's lock.
    fn remove_segments(&self, mut go_on: impl FnMut(u32) -> bool) {
        for (number, path) in self.segments().unwrap_or_default().into_iter().rev() {
            if go_on(number) && File::open(&path).is_ok_and(|file| try_lock(&file)) {
                // A reader keeps the file open, and no process finds it again. It may be gone
                // already.
                fs::remove_file(path).ok();
                lock(&self.files).remove(&number);
            }
        }
        let held = self.segments().unwrap_or_default().iter().map(|(_, path)| allocated_bytes(path)).sum();
        self.held.store(held, Ordering::Relaxed);
    }

    /// Removes what is beyond the limit: datasets that no process has open first. The caller holds
    /// the folder's lock.
    fn shrink(&self) {
        let exceeds = || self.excess_bytes(0).is_ok_and(|bytes| bytes > 0);
        for other in self.other_datasets() {
            if exceeds() {
                // A dataset that cannot be removed stays; segments of this one go instead.
                remove(&other).ok();
            }
        }
        self.remove_segments(|_| exceeds());
    }

    /// A segment that no process writes any more and that has room.
    fn continue_segment(&self, segments: &[(u32, PathBuf)], bytes: u64) -> Option<Claimed> {
        segments.iter().rev().find_map(|(number, path)| {
            let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
            let at = file.metadata().ok()?.len().next_multiple_of(PAGE_BYTES);
            let more = self.segment_bytes.saturating_sub(allocated_bytes(path));
            let fits = at + bytes <= self.segment_bytes && try_lock(&file);
            (fits && self.reserve(&file, self.segment_bytes, more).is_ok()).then(|| Claimed {
                number: *number,
                file: Arc::new(file),
                base: 0,
                at,
            })
        })
    }

    /// Waits until a segment's bytes are on the disk, and drops its pages.
    fn write_back(&self, segment: &Claimed, end: u64) -> io::Result<()> {
        fdatasync(&segment.file)?;
        let start = self.unwritten.swap(end, Ordering::Relaxed) / PAGE_BYTES * PAGE_BYTES;
        // This is advice: a file system that keeps its pages is no reason to fail.
        fadvise(&segment.file, start, NonZeroU64::new(end.saturating_sub(start)), Advice::DontNeed).ok();
        Ok(())
    }
}

impl Segments for DiskSegments {
    fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    fn claim(&self, bytes: u64) -> io::Result<Option<Claimed>> {
        let _held = match FolderLock::wait(&self.root, LOCK_TIMEOUT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            held => held?,
        };
        let segments = self.segments()?;
        if let Some(segment) = self.continue_segment(&segments, bytes) {
            self.unwritten.store(segment.at, Ordering::Relaxed);
            return Ok(Some(segment));
        }
        let number = segments.last().map_or(0, |(number, _)| number + 1);
        if number >= SEGMENTS_MOST {
            return Ok(None);
        }
        let path = self.folder.join(format!("{number:06}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let reserved = match try_lock(&file) {
            true => self.reserve(&file, self.segment_bytes, self.segment_bytes),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        if let Err(error) = reserved {
            fs::remove_file(&path)?;
            // There may be room again in another epoch.
            let full = error.kind() == io::ErrorKind::StorageFull;
            return if full { Ok(None) } else { Err(error) };
        }
        self.unwritten.store(0, Ordering::Relaxed);
        self.held.fetch_add(self.segment_bytes, Ordering::Relaxed);
        Ok(Some(Claimed { number, file: Arc::new(file), base: 0, at: 0 }))
    }

    fn written(&self, segment: &Claimed, range: Range<u64>) -> io::Result<()> {
        if range.end - self.unwritten.load(Ordering::Relaxed) >= UNWRITTEN_BYTES {
            self.write_back(segment, range.end)?;
        }
        Ok(())
    }

    fn finish(&self, segment: Claimed) {
        // A record that could not be written is found out when it is read.
        self.write_back(&segment, segment.at).ok();
        // The lock is held, so this cannot fail.
        flock(&segment.file, FlockOperation::Unlock).ok();
    }

    fn discard(&self, segments: &BTreeSet<u32>) {
        if let Ok(_held) = FolderLock::wait(&self.root, LOCK_TIMEOUT) {
            self.remove_segments(|number| segments.contains(&number));
        }
    }

    fn open(&self, number: u32) -> Option<(Arc<File>, u64)> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&number) {
            // A file that another process removed takes space while it is open, and its number may
            // be given again.
            if file.metadata().is_ok_and(|file| file.nlink() > 0) {
                return Some((Arc::clone(file), 0));
            }
            files.remove(&number);
        }
        let file = Arc::new(open_file(&self.folder.join(format!("{number:06}")), self.mode).ok()?);
        files.insert(number, Arc::clone(&file));
        Some((file, 0))
    }

    fn read_mode(&self) -> ReadMode {
        self.mode
    }

    fn charged_bytes(&self) -> u64 {
        self.charged
    }

    fn limit_bytes(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
        if let Ok(_held) = FolderLock::wait(&self.root, LOCK_TIMEOUT) {
            self.shrink();
        }
    }

    fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn in_memory(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Tally, Tier};
    use super::*;
    use crate::testing;

    const COUNT: u64 = 200;
    const BYTES: u64 = 30_000;

    fn tier(root: &Path, dataset: u64, limit: u64, leave_free: u64) -> Result<SegmentTier> {
        let options = DiskCache { folder: root.to_owned(), limit_bytes: limit, leave_free_bytes: leave_free };
        let disk = DiskSegments::open(&options, dataset, Table::bytes_for(COUNT), &extremes(BYTES))?;
        let table = Table::new(disk.table.try_clone().unwrap(), 0, disk.table_bytes);
        Ok(SegmentTier::new(Box::new(disk), table, dataset, COUNT * (BYTES + HEAD_BYTES), COUNT))
    }

    fn extremes(sample_bytes: u64) -> SizeBounds {
        SizeBounds { sample_bytes, total_bytes: 64 * sample_bytes, ..SizeBounds::default() }
    }

    fn object(key: u64) -> Vec<u8> {
        (0..BYTES).map(|i| (i * key + key) as u8).collect()
    }

    /// The number of objects that are there, each of them the right one.
    fn right(tier: &SegmentTier) -> usize {
        let mut buffer = read_buffer();
        let found = (0..COUNT).filter(|&key| {
            let range =
                tier.find(key).and_then(|location| tier.read(key, BYTES, location, None, &mut buffer));
            range.is_some_and(|range| {
                assert!(buffer[range] == object(key), "object {key} is another one");
                true
            })
        });
        found.count()
    }

    fn read_buffer() -> tidegate_source::read::Aligned {
        tidegate_source::read::aligned(SegmentTier::read_buffer_bytes(BYTES) as usize)
    }

    fn fill(tier: &SegmentTier) -> usize {
        (0..COUNT).filter(|&key| tier.put(key, &[&object(key)])).count()
    }

    #[test]
    fn it_keeps_the_promises_of_a_tier() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let options = DiskCache { folder: dir.path().into(), limit_bytes: 0, leave_free_bytes: 0 };
        let disk = DiskSegments::open(
            &DiskCache { limit_bytes: 1 << 20, ..options },
            1,
            Table::bytes_for(64),
            &extremes(40_000),
        );
        let disk = disk.unwrap();
        let table = Table::new(disk.table.try_clone().unwrap(), 0, disk.table_bytes);
        let tier = SegmentTier::new(Box::new(disk), table, 1, 64 * 20_000, 64);
        testing::tier(&tier, 40_000, 16 << 20).unwrap();
    }

    #[test]
    fn what_one_run_put_the_next_one_and_its_neighbours_find() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let first = tier(dir.path(), 7, 64 << 20, 0).unwrap();
        let half: usize = (0..COUNT / 2).filter(|&key| first.put(key, &[&object(key)])).count();
        let second = tier(dir.path(), 7, 64 << 20, 0).unwrap();
        assert_eq!((half, right(&second)), (100, 100), "while the first still writes");
        assert_eq!((fill(&second), right(&first), second.tally().put_bytes), (200, 200, 100 * BYTES));
        drop((first, second));
        let later = tier(dir.path(), 7, 64 << 20, 0).unwrap();
        assert_eq!((right(&later), later.tally()), (200, Tally::default()));
        // Segments that are not full are continued.
        let files = || entries(&dir.path().join("0000000000000007-v1")).unwrap().len();
        let before = files();
        later.table_cleared();
        assert_eq!((fill(&later), right(&later)), (200, 200));
        assert!(files() <= before + 6, "{} and {before}", files());
        // Other content has nothing in common with it.
        assert_eq!(right(&tier(dir.path(), 8, 64 << 20, 0).unwrap()), 0);
    }

    impl SegmentTier {
        fn table_cleared(&self) {
            (0..COUNT).for_each(|key| self.remove(key));
        }
    }

    type Damage<'a> = (&'static str, &'a dyn Fn(&Path));

    #[test]
    fn damage_of_any_kind_is_a_miss() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let folder = dir.path().join("0000000000000007-v1");
        let damage: [Damage<'_>; 5] = [
            ("bytes", &|segment| {
                let mut bytes = fs::read(segment).unwrap();
                bytes.iter_mut().step_by(100_000).for_each(|byte| *byte ^= 1);
                fs::write(segment, bytes).unwrap();
            }),
            ("truncated", &|segment| {
                File::options().write(true).open(segment).unwrap().set_len(90_000).unwrap()
            }),
            ("gone", &|segment| fs::remove_file(segment).unwrap()),
            ("table", &|_| {
                fs::write(folder.join("table"), vec![0xa5; Table::bytes_for(COUNT) as usize]).unwrap()
            }),
            ("short table", &|_| fs::write(folder.join("table"), b"short").unwrap()),
        ];
        for (name, damage) in damage {
            let before = tier(dir.path(), 7, 64 << 20, 0).unwrap();
            assert_eq!((fill(&before), right(&before)), (200, 200), "{name}");
            drop(before);
            let segments = entries(&folder).unwrap().into_iter().filter(|path| number(path).is_some());
            segments.for_each(|segment| damage(&segment));
            let after = tier(dir.path(), 7, 64 << 20, 0).unwrap();
            let left = right(&after);
            assert!(left < 200, "{name}: {left}");
            assert_eq!((right(&after), fill(&after)), (left, 200), "{name}");
            let healed = right(&after);
            assert!(healed == 200 || name == "table" && healed > 120, "{name}: {healed}");
            drop(after);
            fs::remove_dir_all(&folder).unwrap();
        }
    }

    #[test]
    fn ten_thousand_flipped_bytes_never_give_a_wrong_object() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir_in(".").unwrap();
        let cache = tier(dir.path(), 7, 16 << 20, 0).unwrap();
        let mut draw =
            tidegate_order::random::Stream::new(1, 0, 0, 0, tidegate_order::random::Purpose::Replace);
        let mut lost = 0;
        for round in 0..50 {
            // Damaged segments are removed, so that there is room for objects that are put again.
            cache.set_limit(16 << 20);
            assert_eq!(fill(&cache), 200, "round {round}");
            for path in entries(&dir.path().join("0000000000000007-v1")).unwrap() {
                let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                let len = file.metadata().unwrap().len();
                for _ in 0..200 * len / (7 << 20) + 30 {
                    let (at, mut byte) = (draw.below(len), [0]);
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ 1 << draw.below(8)], at).unwrap();
                }
            }
            lost += 200 - right(&cache);
        }
        assert!(lost > 2_000, "{lost} were read from the source again");
    }

    #[test]
    fn the_limit_counts_all_datasets_and_old_ones_make_room() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let limit = (6 << 20) + (64 << 10);
        let all =
            || entries(dir.path()).unwrap().iter().map(|folder| allocated_bytes_in(folder)).sum::<u64>();
        let first = tier(dir.path(), 1, limit, 0).unwrap();
        assert_eq!(fill(&first), 200);
        let second = tier(dir.path(), 2, limit, 0).unwrap();
        assert_eq!((fill(&second), right(&first)), (0, 200), "the other one is in use");
        assert!(all() <= limit);
        drop(first);
        second.set_limit(limit);
        let (put, there) = (fill(&second), right(&second));
        assert!(put == 200 && there == 200 && all() <= limit, "{put} {there} {}", all());
        assert_eq!(right(&tier(dir.path(), 1, limit, 0).unwrap()), 0, "it made room");
        // A lower limit removes segments at once, and refuses further ones.
        second.set_limit(4 << 20);
        let left = right(&second);
        assert!(all() <= 4 << 20 && left < 140 && left > 60, "{left} of 200 in {}", all());
    }

    #[test]
    fn what_is_not_ours_is_left_alone_and_removed_segments_are_not_met_again() {
        let dir = tempfile::tempdir_in(".").unwrap();
        for name in ["experiment", "0123456789abcdef", "0123456789abcdef-vx", "a-v1"] {
            fs::create_dir_all(dir.path().join(name).join("table")).unwrap();
            fs::write(dir.path().join(name).join("000001"), vec![1; 4 << 20]).unwrap();
        }
        let limit = (6 << 20) + (64 << 10);
        let first = tier(dir.path(), 1, limit, 0).unwrap();
        assert_eq!(fill(&first), 200);
        // Another process of the same dataset sees segments come and go.
        let second = tier(dir.path(), 1, limit, 0).unwrap();
        assert_eq!(right(&second), 200);
        for _ in 0..3 {
            first.set_limit(2 << 20);
            assert!(right(&second) < 80);
            first.set_limit(limit);
            assert_eq!((fill(&first), right(&second), right(&first)), (200, 200, 200));
        }
        assert_eq!((first.tally().damaged, second.tally().damaged), (0, 0));
        drop((first, second));
        assert_eq!(fill(&tier(dir.path(), 2, limit, 0).unwrap()), 200, "the first one makes room");
        let left = entries(dir.path()).unwrap().len();
        assert_eq!(left, 6, "four folders of others, one of ours, and the lock");
        assert!(dir.path().join("experiment/000001").exists());
    }

    #[test]
    fn a_full_disk_and_a_lost_folder_end_the_filling_and_nothing_else() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let error = tier(dir.path(), 1, 64 << 20, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("must stay so") && error.contains("name another folder"), "{error}");
        fs::write(dir.path().join("file"), b"").unwrap();
        let error = tier(&dir.path().join("file"), 1, 64 << 20, 0).unwrap_err().to_string();
        assert!(error.contains("cannot be kept in"), "{error}");
        let cache = tier(dir.path(), 1, 64 << 20, 0).unwrap();
        (0..50).for_each(|key| assert!(cache.put(key, &[&object(key)])));
        fs::remove_dir_all(dir.path()).unwrap();
        fill(&cache);
        assert!(cache.stopped().is_some(), "it says why");
        let left = right(&cache);
        assert!(left <= 200, "what is open may be read on");
    }
}
