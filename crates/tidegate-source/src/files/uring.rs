//! Several direct reads in flight at once, by io_uring.
//!
//! Flow: extents of files + staging -> one call to the kernel -> which reads came whole; called by
//! the readers of the pipeline.
//! Memory: the ring, a few pages of the kernel.
//!
//! Why: a direct read by pread puts its thread to sleep, wakes it, and notifies the disk, for each
//! sample. Sixteen samples at once share that cost. Containers often deny io_uring; then the
//! reader reads one by one.
#![expect(unsafe_code, reason = "the kernel writes into memory that this thread borrows")]

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use super::read::{Extent, Pages};

/// The most samples that a thread reads at once.
pub const DEPTH: usize = 16;
/// The most reads in flight: for each sample its bytes and its checkpoints.
const IN_FLIGHT: usize = 2 * DEPTH;

/// A requested read.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The place of the bytes in a file.
    pub extent: Extent<'a>,
    /// Their number.
    pub len: u64,
    /// Memory for them, in whole blocks.
    pub into: &'a mut [u8],
    /// The range of the bytes in `into`, if they came; a read by itself tells why they did not.
    pub found: Option<Range<usize>>,
}

/// An io_uring of one thread.
pub struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uring")
    }
}

impl Uring {
    /// A ring for this thread; None where the kernel denies it.
    pub fn new() -> Option<Self> {
        let entries = IN_FLIGHT as u32;
        // The kernel gathers completions until this thread asks for them, so it wakes once for all
        // of them (Linux 6.1).
        let gathered = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
        gathered.or_else(|_| IoUring::new(entries)).ok().map(Self)
    }

    /// Reads all of `wanted`.
    ///
    /// # Errors
    /// When the ring does not work; nothing is in flight then.
    pub fn read(&mut self, wanted: &mut [Wanted<'_>]) -> io::Result<()> {
        wanted.chunks_mut(IN_FLIGHT).try_for_each(|some| self.read_batch(some))
    }

    fn read_batch(&mut self, wanted: &mut [Wanted<'_>]) -> io::Result<()> {
        let mut left = 0;
        for (i, one) in wanted.iter_mut().enumerate() {
            let pages = Pages::around(one.extent.offset, one.len);
            let Some(into) = one.into.get_mut(..pages.bytes) else { continue };
            let fd = types::Fd(one.extent.file.as_raw_fd());
            let read = opcode::Read::new(fd, into.as_mut_ptr(), pages.bytes as u32).offset(pages.start);
            // SAFETY: memory and file are borrowed until this function returns, and it returns
            // only when each read that the kernel took has completed; the ring drops reads that
            // the kernel never took.
            let pushed = unsafe { self.0.submission().push(&read.build().user_data(i as u64)) };
            left += usize::from(pushed.is_ok());
        }
        while left > 0 {
            let outcome = self.0.submit_and_wait(left);
            for done in self.0.completion() {
                left -= 1;
                let Some(one) = wanted.get_mut(done.user_data() as usize) else { continue };
                let pages = Pages::around(one.extent.offset, one.len);
                let came = usize::try_from(done.result()).unwrap_or(0);
                one.found = (came >= pages.inner.end).then_some(pages.inner);
            }
            match outcome {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    if self.0.submission().len() >= left {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::file_set::Files;
    use super::super::read::{aligned, staging_bytes};
    use super::*;

    #[test]
    fn many_reads_at_once_are_those_that_one_by_one_gives() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("data");
        let data: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        let files = Files::new(vec![path]);
        let Some(mut ring) = Uring::new() else {
            return eprintln!("SKIPPED: no io_uring here");
        };
        if files.extent(0, 0).is_none() {
            return eprintln!("SKIPPED: no direct reads here");
        }
        for round in 0..20u64 {
            // The last of them ends behind the file.
            let places: Vec<(u64, u64)> = (0..40).map(|i| (i * 12_345 + round * 77, 1 + i * 997)).collect();
            let mut room: Vec<_> =
                places.iter().map(|&(_, len)| aligned(staging_bytes(len) as usize)).collect();
            let mut wanted: Vec<Wanted<'_>> = places
                .iter()
                .zip(&mut room)
                .map(|(&(offset, len), into)| Wanted {
                    extent: files.extent(0, offset).unwrap(),
                    len,
                    into,
                    found: None,
                })
                .collect();
            ring.read(&mut wanted).unwrap();
            for (one, (offset, len)) in wanted.into_iter().zip(places) {
                let expected = data.get(offset as usize..(offset + len) as usize);
                assert_eq!(one.found.map(|range| &one.into[range]), expected, "{len} at {offset}");
            }
        }
    }
}
