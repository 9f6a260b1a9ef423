//! Makes the JPEG checkpoints of a source.
//!
//! Flow: every sample of a source, read once on all cores -> [`make`] -> the file `checkpoints` in
//! the folder of its index.
//! Memory: for each thread the largest sample and 64 records.
//! Not here: reading the records (`index::checkpoints`), their format (`tidegate-decode`).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{Advice, fadvise};
use tidegate_core::sync::lock;
use tidegate_decode::{Kind, Value, checkpoints, header};

use crate::files::read::{ReadMode, aligned, direct_works, staging_bytes};
pub use crate::index::checkpoints::Checkpoints;
use crate::index::checkpoints::{PARTIAL, RECORD_BYTES, WHOLE};
use crate::{Error, Located, Result, Source};

/// Samples whose records are written in one go.
const CHUNK: u64 = 64;
/// A record is at most this part of the mean sample, in percent.
const SHARE: u64 = 5;

/// Bytes of a record for samples of this mean size; None where images are too small for records.
#[must_use]
pub fn fitting_bytes(mean_bytes: u64) -> Option<u64> {
    let most = mean_bytes * SHARE / 100;
    let bytes = 1 << most.checked_ilog2()?;
    (bytes >= RECORD_BYTES[0]).then_some(bytes.min(RECORD_BYTES[1]))
}

/// Makes the checkpoints of a source that has none, or resumes making them.
///
/// `progress` gets the number of samples done and the number of all; an error of it stops the
/// work, which a later call resumes. Samples without a sound baseline JPEG get none. Where another
/// process is making them, this one waits for it.
///
/// # Errors
/// [`Error::Config`] for a source whose samples have no baseline JPEGs of their own; [`Error::Io`]
/// for files that cannot be read, or when the disk is full.
pub fn make(source: &dyn Source, progress: &(dyn Fn(u64, u64) -> Result<()> + Sync)) -> Result<()> {
    let refused = |what: &str| Error::Config(format!("{}: {what}", source.name()));
    let images = source.schema().iter().any(|f| f.kind == Kind::Image);
    let index = source.index().filter(|index| images && index.meta.fingerprint == source.fingerprint());
    let index = index.ok_or_else(|| {
        refused("only whole sets of images in folders, plain tar or MDS shards can have checkpoints")
    })?;
    let samples = source.len();
    let bounds = source.size_bounds();
    let record_bytes = fitting_bytes(bounds.total_bytes / samples.max(1)).ok_or_else(|| {
        refused("samples of less than 10 KB on average: checkpoints would not make them faster")
    })?;
    let (path, whole) = (index.dir().join(PARTIAL), index.dir().join(WHOLE));
    let file = locked(&path)?;
    if Checkpoints::open(index.dir(), samples).is_some_and(|made| made.whole()) {
        // Another process was faster, and the file that was opened here is empty.
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
        return Ok(());
    }
    file.set_len(samples * record_bytes).map_err(Error::io(&path))?;
    let direct = source.shards().first().is_some_and(|shard| direct_works(shard));
    let work = Making {
        source,
        file: &file,
        path: &path,
        record_bytes: record_bytes as usize,
        mode: if direct { ReadMode::Direct } else { ReadMode::Drop },
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        made: AtomicU64::new(0),
        failed: Mutex::new(None),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(chunk) = work.take(samples) {
                    if let Err(error) = work.chunk(chunk).and_then(|done| progress(done, samples)) {
                        work.failed().get_or_insert(error);
                    }
                }
            });
        }
    });
    if let Some(error) = work.failed().take() {
        return Err(error);
    }
    if work.made.load(Ordering::Relaxed) == 0 {
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
        return Err(refused("none of these samples is a sound baseline JPEG, so none can have checkpoints"));
    }
    std::fs::rename(&path, &whole).map_err(Error::io(&path))
}

/// Opens the file that is being made, once no other process holds it.
fn locked(path: &Path) -> Result<File> {
    let attempt = || -> std::io::Result<Option<File>> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        // Another process may have renamed or removed it.
        let same = std::fs::metadata(path).is_ok_and(|there| {
            file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        });
        Ok(same.then_some(file))
    };
    loop {
        if let Some(file) = attempt().map_err(Error::io(path))? {
            return Ok(file);
        }
    }
}

/// What the threads of [`make`] share.
struct Making<'a> {
    source: &'a dyn Source,
    file: &'a File,
    path: &'a Path,
    record_bytes: usize,
    mode: ReadMode,
    next: AtomicU64,
    done: AtomicU64,
    made: AtomicU64,
    failed: Mutex<Option<Error>>,
}

impl Making<'_> {
    fn failed(&self) -> MutexGuard<'_, Option<Error>> {
        lock(&self.failed)
    }

    /// The next ids; none at the end, or after a failure.
    fn take(&self, samples: u64) -> Option<Range<u64>> {
        let start = self.next.fetch_add(CHUNK, Ordering::Relaxed);
        (start < samples && self.failed().is_none()).then(|| start..(start + CHUNK).min(samples))
    }

    /// Makes the records of some samples that have none, and returns how many samples are done in
    /// all.
    fn chunk(&self, ids: Range<u64>) -> Result<u64> {
        let mut records = vec![0; self.record_bytes * (ids.end - ids.start) as usize];
        let place = ids.start * self.record_bytes as u64;
        self.file.read_exact_at(&mut records, place).map_err(Error::io(self.path))?;
        let list: Vec<u64> = ids.clone().collect();
        let located = self.source.locate(&list)?;
        let mut new = false;
        for (at, record) in located.iter().zip(records.chunks_exact_mut(self.record_bytes)) {
            if record.iter().all(|&byte| byte == 0) {
                new |= self.record(at, record)?;
            }
            self.made.fetch_add(u64::from(checkpoints::count(record) > 0), Ordering::Relaxed);
        }
        if new {
            self.file.write_all_at(&records, place).map_err(Error::io(self.path))?;
            self.file.sync_data().map_err(Error::io(self.path))?;
        }
        // Advice: a file system that keeps its pages is no reason to fail.
        let length = std::num::NonZeroU64::new(records.len() as u64);
        fadvise(self.file, place, length, Advice::DontNeed).ok();
        let count = ids.end - ids.start;
        Ok(self.done.fetch_add(count, Ordering::Relaxed) + count)
    }

    /// Makes the record of a sample's largest JPEG, if it has one; damaged samples have none.
    fn record(&self, at: &Located, into: &mut [u8]) -> Result<bool> {
        let len = u64::from(at.entry.len);
        let mut staging = aligned(staging_bytes(len) as usize);
        let range = match self.source.read(at, len, self.mode, &mut staging) {
            Ok(range) => range,
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(_) => return Ok(false),
        };
        let Ok(values) = self.source.parse(at, &staging[range]) else { return Ok(false) };
        let images = values.iter().filter_map(|value| match value {
            Value::Bytes(bytes) => Some((header::parse(bytes).ok()?, *bytes)),
            _ => None,
        });
        let largest = images
            .filter(|(header, _)| header.format == header::Format::Jpeg)
            .max_by_key(|(header, _)| header.decoded_bytes());
        if let Some((_, bytes)) = largest {
            checkpoints::write_record(bytes, into);
        }
        Ok(largest.is_some())
    }
}
