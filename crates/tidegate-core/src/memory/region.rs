//! One mapping of memory, private or shared: address space at once, pages only when touched.
//!
//! Flow: length -> base pointer; called by the arena alone.
//! Memory: charges nothing itself; the arena charges pages before they are touched.
//!
//! Huge pages are refused: one touch would make 2 MiB resident where 4 KiB were charged. Shared
//! memory is a memfd: it has no name, needs no room in /dev/shm, and is gone with the last process
//! that has it.
#![expect(unsafe_code, reason = "mapping memory is the purpose of this file")]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::sync::AtomicU64;
use crate::{Error, Result};

/// What kind of memory is behind an address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Memory that this process alone can see.
    Private,
    /// A memory file that other processes can map.
    Shared,
}

impl Backing {
    /// Every backing.
    pub const ALL: [Self; 2] = [Self::Private, Self::Shared];
}

#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
    file: Option<OwnedFd>,
}

// SAFETY: a Region is plain memory at a fixed address; the arena decides which part has which
// owner.
unsafe impl Send for Region {}
// SAFETY: as above; no method touches the memory through a shared reference except `release`,
// whose caller owns the range.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes of address space, readable and writable, without any page behind it.
    pub(super) fn map(len: usize, backing: Backing) -> Result<Self> {
        let refused = |errno: rustix::io::Errno| Error::Map { bytes: len as u64, source: errno.into() };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let file = match backing {
            Backing::Private => None,
            Backing::Shared => {
                let file = memfd_create("tidegate", MemfdFlags::CLOEXEC).map_err(refused)?;
                ftruncate(&file, len as u64).map_err(refused)?;
                Some(file)
            }
        };
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let base = unsafe {
            match &file {
                None => {
                    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                    mmap_anonymous(std::ptr::null_mut(), len, access, flags)
                }
                Some(file) => {
                    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
                    mmap(std::ptr::null_mut(), len, access, flags, file, 0)
                }
            }
        }
        .map_err(refused)?;
        // SAFETY: the range was mapped just now; the advice changes no contents. A kernel without
        // huge pages refuses it, and has none to avoid.
        let _unsupported = unsafe { madvise(base, len, Advice::LinuxNoHugepage) };
        let base = NonNull::new(base.cast()).ok_or_else(|| Error::Map {
            bytes: len as u64,
            source: std::io::Error::other("mapped at address zero"),
        })?;
        Ok(Self { base, len, file })
    }

    /// Maps the beginning of a file that other processes have too.
    pub(super) fn attach(file: OwnedFd, len: usize) -> Result<Self> {
        let refused = |errno: rustix::io::Errno| Error::Map { bytes: len as u64, source: errno.into() };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so no existing mapping can be replaced.
        let base = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &file, 0) };
        let base = NonNull::new(base.map_err(refused)?.cast()).ok_or_else(|| Error::Map {
            bytes: len as u64,
            source: std::io::Error::other("mapped at address zero"),
        })?;
        Ok(Self { base, len, file: Some(file) })
    }

    /// Word number `i` of a region of which only words are used.
    pub(super) fn word(&self, i: usize) -> &AtomicU64 {
        assert!((i + 1) * 8 <= self.len, "word {i} is outside a region of {} bytes", self.len);
        // SAFETY: the word is within the mapping, which is aligned to pages and lives as long as
        // `self`. Other processes write it as atomics do; attached regions have no other access,
        // here or there.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u64>().add(i)) }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The file of a shared region and the offset of `address` in it, if it is there.
    pub(super) fn file_at(&self, address: usize) -> Option<(RawFd, u64)> {
        let offset = address.checked_sub(self.base.as_ptr().addr()).filter(|&offset| offset < self.len)?;
        Some((self.file.as_ref()?.as_raw_fd(), offset as u64))
    }

    /// The address of `offset`, which must be within the region.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "offset {offset} is outside a region of {} bytes", self.len);
        // SAFETY: the offset is within the mapping, which is one allocated object.
        unsafe { self.base.add(offset) }
    }

    /// Returns the pages of a range to the kernel; the range reads as zeros afterwards.
    pub(super) fn release(&self, offset: usize, len: usize) {
        assert!(offset + len <= self.len, "a release beyond the region");
        // Pages of a file stay in it when a mapping lets go of them: there they are cut out of the
        // file.
        let advice = if self.file.is_some() { Advice::LinuxRemove } else { Advice::LinuxDontNeed };
        // SAFETY: the range is inside this mapping, and the arena calls this only for holes, to
        // which no reference exists.
        let released = unsafe { madvise(self.at(offset).as_ptr().cast(), len, advice) };
        debug_assert!(released.is_ok(), "madvise refused a mapped range");
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: every block holds the arena and so this region; at this point no reference to
        // the mapping exists.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap refused a mapped range");
    }
}
