//! The heap of a process: contents survive each change of a size, and nothing large is kept.
//!
//! Flow: vectors that grow and shrink, on the heap that this program declares.
//! Memory: this program's own, whose resident bytes are read from `/proc`.

use std::sync::{Barrier, Mutex};

use proptest::prelude::*;
use tidegate_core::memory::{Heap, LARGE_BYTES};

#[global_allocator]
static HEAP: Heap = Heap;

/// One test at a time: the bytes of the process are counted.
static ALONE: Mutex<()> = Mutex::new(());

/// An element that must begin with every second page.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(8192))]
struct Wide(u8);

fn byte(i: usize) -> u8 {
    (i % 251) as u8
}

fn resident_bytes() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(4096)
}

fn resize<T>(values: &mut Vec<T>, len: usize, make: impl Fn(usize) -> T) {
    values.truncate(len);
    values.shrink_to_fit();
    values.extend((values.len()..len).map(make));
}

proptest! {
    #[test]
    fn contents_survive_each_change_of_a_size(sizes in prop::collection::vec(0..3 * LARGE_BYTES, 1..8)) {
        let _alone = ALONE.lock();
        let (mut bytes, mut wide) = (Vec::new(), Vec::new());
        for size in sizes {
            prop_assert!(vec![0u8; size].iter().all(|&b| b == 0));
            resize(&mut bytes, size, byte);
            prop_assert!(bytes.iter().enumerate().all(|(i, &b)| b == byte(i)));
            resize(&mut wide, size >> 13, |i| Wide(byte(i)));
            prop_assert!(wide.as_ptr().addr() % 8192 == 0);
            prop_assert!(wide.iter().enumerate().all(|(i, w)| *w == Wide(byte(i))));
        }
    }
}

/// With the system's allocator 16 threads keep 271 MiB here.
#[test]
fn threads_that_freed_large_pieces_keep_none() {
    const THREADS: usize = 16;
    let _alone = ALONE.lock();
    let before = resident_bytes().unwrap();
    let (all, measured) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for size in [20 << 20, 12 << 20, LARGE_BYTES, 3 << 20] {
                    let pieces = [vec![1u8; size], vec![2u8; size / 2]];
                    assert!(pieces[0][size - 1] + pieces[1][0] == 3);
                }
                all.wait();
                measured.wait();
            });
        }
        all.wait();
        let kept = resident_bytes().unwrap().saturating_sub(before);
        measured.wait();
        assert!(kept < 8 << 20, "{kept} bytes are kept");
    });
}
