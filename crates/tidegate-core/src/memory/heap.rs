//! The heap of the process that has Tidegate: a large piece goes back to the kernel when it is
//! freed.
//!
//! Flow: the crate that is linked last declares a [`Heap`]; every `Vec` and `Box` goes through it.
//! Memory: a piece of [`LARGE_BYTES`] or more is a mapping of its own, and so counts while it is
//! in use, not longer. Smaller ones are the system's.
//!
//! Why: a decoder's or a library's bytes are bounded and charged while it works. But a general
//! allocator keeps what is freed, for each thread, and glibc's raises the size from which it does
//! not, up to 32 MiB. So with many workers the process exceeded a budget that the ledger kept.
//! Changing the settings of the system's allocator would change them for all other libraries of
//! the process.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

use super::PAGE_BYTES;

/// From this size on a piece has a mapping of its own; what glibc begins with.
pub const LARGE_BYTES: usize = 128 << 10;

/// An allocator that never keeps large pieces that are free.
///
/// ```
/// #[global_allocator]
/// static HEAP: tidegate_core::memory::Heap = tidegate_core::memory::Heap;
/// # assert_eq!(vec![0u8; 1 << 20].len(), 1 << 20);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Heap;

/// Whether a piece has a mapping of its own; only from size and alignment, because nothing else is
/// known when it is freed.
fn is_large(size: usize, align: usize) -> bool {
    size >= LARGE_BYTES && align <= PAGE_BYTES as usize
}

/// Maps a piece that reads as zeros; null if the kernel refuses.
fn map(size: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: no address is asked for, so no existing mapping can be replaced.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, MapFlags::PRIVATE) };
    mapped.map_or(std::ptr::null_mut(), <*mut _>::cast)
}

// SAFETY: pieces that are not large are the system's, and large ones are mappings of their own,
// aligned to pages and at least as long as asked. `is_large` has the same answer for a piece when
// it is made and when it is freed, because both have its layout. Nothing here unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: what the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: what the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_large(layout.size(), layout.align()) {
            // SAFETY: a large piece is a whole mapping, made by `map` or `mremap`, and the caller
            // gives it up.
            let unmapped = unsafe { munmap(piece.cast(), layout.size()) };
            debug_assert!(unmapped.is_ok(), "munmap refused a mapped range");
            return;
        }
        // SAFETY: `alloc` took it from the system with this layout.
        unsafe { System.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (is_large(layout.size(), layout.align()), is_large(size, layout.align())) {
            // SAFETY: the piece is a whole mapping of that size; it may move, because the caller
            // uses what this returns. Where the kernel refuses, the piece is as it was.
            (true, true) => unsafe { mremap(piece.cast(), layout.size(), size, MremapFlags::MAYMOVE) }
                .map_or(std::ptr::null_mut(), <*mut _>::cast),
            // SAFETY: as in `dealloc`.
            (false, false) => unsafe { System.realloc(piece, layout, size) },
            _ => {
                // SAFETY: the caller promised that the size, rounded up to the alignment, is not
                // too large.
                let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
                if !new.is_null() {
                    // SAFETY: two pieces, each at least as long as what is copied; the old one is
                    // given up by the caller.
                    unsafe {
                        std::ptr::copy_nonoverlapping(piece, new, size.min(layout.size()));
                        self.dealloc(piece, layout);
                    }
                }
                new
            }
        }
    }
}
