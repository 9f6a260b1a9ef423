//! Ids a second of each order on one core, and the independence of a shuffle's neighbours.
//!
//! `cargo bench -p tidegate-order --bench order`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tidegate_core::memory::Budget;
use tidegate_order::alias::AliasTable;
use tidegate_order::curriculum::{Curriculum, CurriculumSpec, Pace};
use tidegate_order::draw::DrawKey;
use tidegate_order::lattice::{Boxes, Lattice};
use tidegate_order::patches::Patches;
use tidegate_order::permutation::Permutation;
use tidegate_order::stratified::{Classes, Shares, Stratified};
use tidegate_order::uniform::Uniform;
use tidegate_order::weighted::Weighted;
use tidegate_order::{Order, Shuffle, order};

const IDS: u64 = 2_000_000;

fn rate(name: &str, mut id: impl FnMut(u64) -> u64) {
    let mut rounds: Vec<f64> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let sum = (0..IDS).fold(0u64, |sum, position| sum ^ id(position));
            black_box(sum);
            IDS as f64 / began.elapsed().as_secs_f64() / 1e6
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name}: {:.1} M ids/s ({:.1}-{:.1})", rounds[2], rounds[0], rounds[4]);
}

fn main() {
    let budget = Budget::new(4 << 30);
    for n in [1_000_000usize, 100_000_000] {
        let table = AliasTable::new(n, |id| (id % 1000) as f64 + 0.5, &budget).unwrap();
        let key = DrawKey::new(1, 0, 0);
        rate(&format!("alias draws, {n} ids"), |position| table.draw(key.word(position)));
    }
    let billion = Permutation::new(1_000_000_000, 1, 0, 0);
    rate("permutation of 10^9 ids", |position| billion.apply(position));
    neighbours(&billion, 1_000_000_000);
    let n = 1_000_000usize;
    let labels: Vec<u32> = (0..n as u32).map(|id| id % 1000).collect();
    let difficulty: Vec<f64> = (0..n).map(|id| (id * 7919 % n) as f64).collect();
    let classes = || Classes::from_labels(&labels, &budget).unwrap();
    let weights: Vec<f32> = labels.iter().map(|&label| label as f32).collect();
    let spec =
        CurriculumSpec { start: 0.2, epochs: 3.0, pace: Pace::Root, positions: n as u64, runs: 1, seed: 1 };
    let orders: [(&str, Box<dyn Order>); 6] = [
        ("full shuffle", order(Shuffle::Full, 1, &[n as u64]).unwrap()),
        ("uniform draws", Box::new(Uniform::new(n as u64, n as u64, 1, 1).unwrap())),
        ("weighted draws", Box::new(Weighted::new(&weights, n as u64, 1, 1, &budget).unwrap())),
        ("curriculum", Box::new(Curriculum::new(&difficulty, spec, &budget).unwrap())),
        (
            "stratified, 1,000 classes",
            Box::new(Stratified::new(classes(), &Shares::Natural, 256, 1, 1, &budget).unwrap()),
        ),
        (
            "oversampled, 1,000 classes",
            Box::new(Stratified::new(classes(), &Shares::Oversampled, 256, 1, 1, &budget).unwrap()),
        ),
    ];
    for (name, order) in orders {
        let epoch = order.epoch(0).unwrap();
        let len = order.len();
        rate(&format!("{name}, 10^6 ids, as an order"), |position| epoch.id(position % len).unwrap());
    }
    let patches = patches(&budget);
    let epoch = patches.epoch(0).unwrap();
    rate("patches around 10^5 boxes of 10 classes", |position| epoch.id(position).unwrap());
}

/// Boxes in a volume of 2,048^3, the first classes rarer, and patches of 64^3.
fn patches(budget: &Budget) -> Patches {
    let key = DrawKey::new(1, 0, 0);
    let boxes: Vec<(i64, f32)> =
        (0..100_000u64).map(|i| ((i % 55).isqrt() as i64, 1.0 + (i % 7) as f32)).collect();
    let span = |i: u64| (key.below(i, 2000) as i32, 8 + key.below(i, 32) as u32);
    let spans: Vec<(i32, u32)> = (0..300_000).map(span).collect();
    let boxes = Boxes::new(3, &boxes, &spans).unwrap();
    let lattice = vec![Lattice { first: 0, step: 1, count: 2048 - 64 + 1, room: 2048 - 64, patch: 64 }; 3];
    Patches::new(Arc::new(boxes), lattice, &[], IDS, 1, budget).unwrap()
}

/// Prints the z score of the differences between neighbours: chi-square over 4,096 cells and 10^6
/// pairs.
fn neighbours(permutation: &Permutation, n: u64) {
    let (cells, pairs) = (4096u64, 1_000_000u64);
    let mut counts = vec![0u64; cells as usize];
    for pair in 0..pairs {
        let (a, b) = (permutation.apply(2 * pair), permutation.apply(2 * pair + 1));
        counts[((b + n - a) % n * cells / n) as usize] += 1;
    }
    let expected = pairs as f64 / cells as f64;
    let chi: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
    let freedom = cells as f64 - 1.0;
    println!("differences of neighbours: z = {:.2}", (chi - freedom) / (2.0 * freedom).sqrt());
}
