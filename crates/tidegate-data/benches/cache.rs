//! The cost of planning for and hitting the cache: `cargo bench -p tidegate-data`.
//!
//! Flow: random accesses -> nanoseconds each, as one line of JSON.
//! Memory: its own.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::Instant;

use tidegate_core::memory::Budget;
use tidegate_data::cache::codec::{CANDIDATES, Packer};
use tidegate_data::cache::min::Min;
use tidegate_data::cache::{Memory, MemoryTier, Tier};

const OBJECTS: u32 = 1_000_000;
const ACCESSES: usize = 1_000_000;

/// The median of five runs.
fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..5).map(|_| run()).collect();
    times.sort_by(f64::total_cmp);
    times[2]
}

fn random(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as u32 % OBJECTS
    }
}

fn main() {
    let mut draw = random(7);
    let accesses: Vec<u32> = (0..2 * ACCESSES).map(|_| draw()).collect();
    let sizes: Vec<u32> = (0..OBJECTS).map(|i| 50_000 + i % 1000).collect();
    let total: u64 = sizes.iter().map(|&bytes| u64::from(bytes)).sum();
    let ns = |began: Instant, n: usize| began.elapsed().as_nanos() as f64 / n as f64;
    let mut planning = Vec::new();
    let access = median(|| {
        let mut min = Min::new(total / 4);
        let horizon = accesses.clone();
        let began = Instant::now();
        min.set_future(horizon, OBJECTS);
        planning.push(ns(began, 2 * ACCESSES));
        let began = Instant::now();
        for _ in 0..ACCESSES {
            black_box(min.access(&sizes, &mut |_| ()));
        }
        ns(began, ACCESSES)
    });
    planning.sort_by(f64::total_cmp);
    println!("{{\"look_ahead_ns\": {:.1}, \"access_ns\": {access:.1}}}", planning[2]);

    let keys = 200_000;
    let budget = Budget::new(256 << 20);
    let memory = Memory::new(&budget, keys * 1000, keys);
    memory.set_limit(250 << 20);
    (0..keys).for_each(|key| assert!(memory.put(key, &[&[7; 1000]])));
    let hit = median(|| {
        let mut draw = random(11);
        let began = Instant::now();
        for _ in 0..ACCESSES {
            black_box(memory.get_lease(u64::from(draw()) % keys).unwrap());
        }
        ns(began, ACCESSES)
    });
    println!("{{\"hot_hit_ns\": {hit:.1}, \"keys\": {keys}}}");
    codecs();
}

/// How fast each codec unpacks token ids in words of eight bytes, and its gain.
fn codecs() {
    let mut draw = random(3);
    let tokens: Vec<u8> = (0..64_000).flat_map(|_| u64::from(draw() % 50_000).to_le_bytes()).collect();
    let mut unpacked = vec![0; tokens.len()];
    for codec in CANDIDATES {
        let mut packer = Packer::default();
        let packed = packer.pack(codec, &tokens).unwrap();
        let seconds = median(|| {
            let began = Instant::now();
            (0..20).for_each(|_| assert!(codec.unpack(black_box(packed), &mut unpacked)));
            began.elapsed().as_secs_f64() / 20.0
        });
        let (gain, rate) = (tokens.len() as f64 / packed.len() as f64, tokens.len() as f64 / seconds / 1e9);
        println!("{{\"codec\": \"{codec:?}\", \"gain\": {gain:.2}, \"unpacks_gb_per_s\": {rate:.2}}}");
    }
}
