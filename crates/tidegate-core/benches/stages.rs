//! What it costs to hand items from thread to thread: `cargo bench -p tidegate-core --bench
//! stages`.
//!
//! Flow: one JSON object a line on standard output; bench/README.md keeps the figures.
//! Memory: some MiB.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints its measurements")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_core::sync::{Mutex, Ordered, Popped, Ring, Taken, lock};

/// Items that each measurement hands over.
const ITEMS: u64 = 240_000;

/// Nanoseconds an item: the median of five rounds.
fn each(round: impl Fn()) -> f64 {
    let mut rounds = [(); 5].map(|()| {
        let began = Instant::now();
        round();
        began.elapsed().as_nanos() as f64 / ITEMS as f64
    });
    rounds.sort_by(f64::total_cmp);
    rounds[2]
}

fn uncontended_lock() -> f64 {
    let count = Mutex::new(0u64);
    each(|| (0..ITEMS).for_each(|_| *lock(&count) += 1))
}

fn ring_in_one_thread() -> f64 {
    let ring = Ring::new(1024);
    each(|| {
        for item in 0..ITEMS {
            ring.push(item).unwrap();
            assert!(matches!(ring.pop(|| true), Popped::Item(_)));
        }
    })
}

fn ring(pushers: u64, poppers: u64) -> f64 {
    each(|| {
        let (ring, left) = (Ring::new(1024), AtomicU64::new(ITEMS));
        std::thread::scope(|s| {
            for _ in 0..pushers {
                s.spawn(|| (0..ITEMS / pushers).for_each(|item| ring.push(item).unwrap()));
            }
            for _ in 0..poppers {
                s.spawn(|| {
                    while let Popped::Item(_) = ring.pop(|| true) {
                        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                            ring.close();
                        }
                    }
                });
            }
        });
    })
}

fn ordered_in_one_thread() -> f64 {
    each(|| {
        let items: Ordered<u64, ()> = Ordered::new(0);
        for index in 0..ITEMS {
            items.begin();
            items.finish(index, index);
            assert!(matches!(items.take(None), Taken::Item(..)));
        }
    })
}

/// Each putter finishes every `putters`-th item; the taker waits as the consumer does.
fn ordered(putters: u64) -> f64 {
    each(|| {
        let items: Ordered<u64, ()> = Ordered::new(0);
        std::thread::scope(|s| {
            for putter in 0..putters {
                let items = &items;
                s.spawn(move || {
                    for index in (putter..ITEMS).step_by(putters as usize) {
                        items.begin();
                        items.finish(index, index);
                    }
                });
            }
            let mut taken = 0;
            while taken < ITEMS {
                if let Taken::Item(..) = items.take(Some(Duration::from_millis(50))) {
                    taken += 1;
                }
            }
        });
    })
}

fn main() {
    println!("{{\"uncontended_lock_ns\": {:.1}}}", uncontended_lock());
    println!("{{\"ring\": \"one thread\", \"item_ns\": {:.1}}}", ring_in_one_thread());
    for (pushers, poppers) in [(1, 1), (1, 2), (2, 2)] {
        let ns = ring(pushers, poppers);
        println!("{{\"ring\": \"{pushers} push, {poppers} pop\", \"item_ns\": {ns:.1}}}");
    }
    println!("{{\"ordered\": \"one thread\", \"item_ns\": {:.1}}}", ordered_in_one_thread());
    for putters in 1..=3 {
        println!("{{\"ordered\": \"{putters} finish, 1 takes\", \"item_ns\": {:.1}}}", ordered(putters));
    }
}
