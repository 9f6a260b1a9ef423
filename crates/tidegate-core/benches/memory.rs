//! What the ledger and the arena cost and how well they fill: `cargo bench -p tidegate-core`.
//!
//! Flow: one JSON object a line on standard output; bench/README.md keeps the figures.
//! Memory: up to 600 MiB.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints its measurements")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use tidegate_core::memory::{Account, Block, Budget, Priority};

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds of one acquire and release, `threads` at once.
fn acquire(threads: u64) -> f64 {
    const N: u64 = 1_000_000;
    let budget = Budget::new(1 << 30);
    let round = || {
        let began = Instant::now();
        std::thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(|| {
                    for _ in 0..N {
                        drop(black_box(
                            budget.try_acquire(Account::Scratch, 4096, Priority::Prefetch).unwrap(),
                        ));
                    }
                });
            }
        });
        began.elapsed().as_nanos() as f64 / N as f64
    };
    median((0..7).map(|_| round()).collect())
}

/// Two threads that each count for themselves: on one cache line, and padded apart.
fn false_sharing() -> (f64, f64) {
    const N: u64 = 20_000_000;
    let run = |a: &AtomicU64, b: &AtomicU64| {
        let began = Instant::now();
        std::thread::scope(|s| {
            for counter in [a, b] {
                s.spawn(move || {
                    for _ in 0..N {
                        black_box(counter.fetch_add(1, Ordering::Relaxed));
                    }
                });
            }
        });
        began.elapsed().as_nanos() as f64 / N as f64
    };
    let shared = [AtomicU64::new(0), AtomicU64::new(0)];
    let padded = [CachePadded::new(AtomicU64::new(0)), CachePadded::new(AtomicU64::new(0))];
    let apart = (0..5).map(|_| run(&padded[0], &padded[1])).collect();
    (median((0..5).map(|_| run(&shared[0], &shared[1])).collect()), median(apart))
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A generator good enough for sizes.
struct Draw(u64);

impl Draw {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Lognormal around 110 KB, as encoded photographs.
    fn mixed(&mut self) -> u64 {
        let normal =
            (-2.0 * self.uniform().max(1e-12).ln()).sqrt() * (self.uniform() * std::f64::consts::TAU).cos();
        (92_000.0 * (0.6 * normal).exp()) as u64 + 1
    }

    /// 300 KiB within a tenth.
    fn fixed(&mut self) -> u64 {
        (307_200.0 * (0.9 + 0.2 * self.uniform())) as u64
    }
}

/// (utilization when full, peak resident over the budget) under churn: blocks come and go in
/// random order.
fn churn(size: impl Fn(&mut Draw) -> u64) -> (f64, f64) {
    const CAP: u64 = 512 << 20;
    let before = resident_bytes();
    let budget = Budget::new(CAP);
    let (mut draw, mut live): (Draw, Vec<Block>) = (Draw(7), Vec::new());
    let (mut used, mut fullest, mut peak) = (0u64, Vec::new(), 0);
    for step in 0..60_000u32 {
        match budget.try_block(Account::Raw, size(&mut draw), Priority::Prefetch) {
            Ok(mut block) => {
                block.fill(1);
                used += block.len() as u64;
                live.push(block);
            }
            Err(_) => {
                fullest.push(used as f64 / CAP as f64);
                for _ in 0..1 + live.len() / 50 {
                    let i = (draw.uniform() * live.len() as f64) as usize;
                    used -= live.swap_remove(i).len() as u64;
                }
            }
        }
        if step % 500 == 0 {
            peak = peak.max(resident_bytes() - before);
        }
    }
    (median(fullest), peak as f64 / CAP as f64)
}

fn main() {
    println!("{{\"acquire_release_ns\": {:.1}, \"two_threads_ns\": {:.1}}}", acquire(1), acquire(2));
    let (shared, padded) = false_sharing();
    println!("{{\"counter_shared_line_ns\": {shared:.2}, \"counter_padded_ns\": {padded:.2}}}");
    let (utilization, resident) = churn(Draw::mixed);
    println!(
        "{{\"sizes\": \"mixed\", \"utilization\": {utilization:.3}, \"peak_rss_of_budget\": {resident:.4}}}"
    );
    let (utilization, resident) = churn(Draw::fixed);
    println!(
        "{{\"sizes\": \"fixed\", \"utilization\": {utilization:.3}, \"peak_rss_of_budget\": {resident:.4}}}"
    );
}
