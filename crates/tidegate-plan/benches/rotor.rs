//! Seconds to solve a chain for all budgets at once, on one core.
//!
//! `cargo bench -p tidegate-plan --bench rotor`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::time::Instant;

use tidegate_core::hash::splitmix64;
use tidegate_plan::training::chain::{Chain, Stage};
use tidegate_plan::training::rotor::Table;
use tidegate_plan::training::schedule::{plain, replay};

fn chain(stages: u64) -> Chain {
    let drawn = |i: u64, what: u64, below: u64| 1 + splitmix64(i * 8 + what) % below;
    let stage = |i| Stage {
        output_bytes: drawn(i, 0, 6),
        saved_bytes: drawn(i, 1, 12),
        gradient_bytes: drawn(i, 2, 3),
        backward_extra_bytes: drawn(i, 3, 4) as i64,
        forward_time: drawn(i, 4, 8) as f64,
        backward_time: drawn(i, 5, 14) as f64,
        ..Stage::default()
    };
    Chain { stages: (0..stages).map(stage).collect(), ..Chain::default() }
}

fn main() {
    for (stages, slots) in [(64, 500), (200, 500), (512, 500)] {
        let chain = chain(stages);
        let limit = replay(&chain, &plain(chain.stages.len())).unwrap().peak.total();
        let mut seconds: Vec<f64> = (0..5)
            .map(|_| {
                let began = Instant::now();
                let table = Table::solve(&chain, limit, slots).unwrap();
                assert!(table.floor_bytes().is_some());
                began.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let mib = Table::bytes(chain.stages.len(), slots) >> 20;
        println!(
            "{stages} stages, {slots} slots: {:.2} s ({:.2}-{:.2}), {mib} MiB",
            seconds[2], seconds[0], seconds[4]
        );
    }
}
