//! Speed of unpacking compact data: `cargo bench -p tidegate-array --bench compact`.
//!
//! Flow: codes, sparse matrices, packed elements -> values and bytes per second on one core, as
//! lines of JSON.
//! Memory: its own.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::Instant;

use tidegate_array::entropy::plane_bits;
use tidegate_array::quantize::{Extent, Options, Per, Quantized, Rounding, Scheme};
use tidegate_array::sparse::Csr;
use tidegate_array::tensor_train::{Limit, TensorTrain};
use tidegate_array::{DType, codec};

/// The fastest of seven runs, or of as many as fit in a third of a second, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (all, mut runs, mut least) = (Instant::now(), 0, f64::INFINITY);
    while runs < 7 || all.elapsed().as_secs_f64() < 0.3 {
        let began = Instant::now();
        run();
        least = least.min(began.elapsed().as_secs_f64());
        runs += 1;
    }
    least
}

fn uniform(i: u64) -> f32 {
    (tidegate_core::hash::splitmix64(i) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

fn main() {
    quantized(1 << 16, "in the cache");
    quantized(1 << 25, "beyond the caches");
    sparse();
    packed();
    let side = |i: usize| i as f64 / 16.0;
    let values: Vec<f64> = (0..65_536)
        .map(|i| 1.0 / (1.0 + side(i / 4096) + side(i / 256 % 16) + side(i / 16 % 16) + side(i % 16)))
        .collect();
    let limit = Limit { tolerance: 1e-4, rank: None };
    let seconds = best(|| drop(black_box(TensorTrain::decompose(&values, &[16; 4], limit))));
    println!("{{\"train of 16^4\": \"decompose\", \"ms\": {:.2}}}", seconds * 1e3);
}

fn quantized(count: usize, place: &str) {
    let values: Vec<f32> = (0..count as u64).map(uniform).collect();
    // The time of copying as many bytes as are written, for the share of bandwidth.
    let (from, mut into) = (values.clone(), vec![0f32; count]);
    let copy = best(|| black_box(&mut into[..]).copy_from_slice(black_box(&from[..])));
    for bits in 2..=8 {
        for per in [Per::Tensor, Per::Block(128)] {
            let (scheme, extent, rounding) = (Scheme::Offset, Extent::Whole, Rounding::Nearest);
            let options = Options { bits, scheme, per, extent, rounding };
            let small = Quantized::new(&values, &[count], &options).unwrap();
            let pack = best(|| drop(black_box(Quantized::new(&values, &[count], &options))));
            let unpack = best(|| {
                small.dequantize(DType::Float32, bytemuck::cast_slice_mut(black_box(&mut into[..]))).unwrap();
            });
            println!(
                "{{\"quantized\": \"{bits} bits, {per:?}, {place}\", \"values\": {count}, \"quantize_g_values_s\": {:.2}, \
                 \"dequantize_g_values_s\": {:.2}, \"share_of_copy\": {:.2}}}",
                count as f64 / pack / 1e9,
                count as f64 / unpack / 1e9,
                copy / unpack
            );
        }
    }
}

fn sparse() {
    let (rows, of_a_row) = (100_000usize, 100usize);
    let indptr: Vec<u32> = (0..=rows as u32).map(|row| row * of_a_row as u32).collect();
    let mut indices: Vec<u32> = (0..(rows * of_a_row) as u64)
        .map(|i| (tidegate_core::hash::splitmix64(i) % 100_000) as u32)
        .collect();
    indices.chunks_mut(of_a_row).for_each(<[u32]>::sort_unstable);
    let data: Vec<f32> = (0..indices.len() as u64).map(uniform).collect();
    let matrix = Csr::new((rows, 100_000), indptr, indices, data).unwrap();
    let vector: Vec<f32> = (0..100_000).map(uniform).collect();
    let mut product = vec![0f32; rows];
    for threads in [1, 2] {
        let seconds = best(|| matrix.matvec(&vector, black_box(&mut product), threads).unwrap());
        println!(
            "{{\"csr times vector\": \"10^7 entries, {threads} threads\", \"g_entries_s\": {:.2}}}",
            1e-2 / seconds
        );
    }
}

fn packed() {
    let count = 1 << 23;
    let kinds: [(&str, DType, Vec<u8>); 3] = [
        (
            "tokens below 50,000",
            DType::Uint32,
            (0..count)
                .flat_map(|i| ((tidegate_core::hash::splitmix64(i) % 50_000) as u32).to_le_bytes())
                .collect(),
        ),
        (
            "smooth floats",
            DType::Float32,
            (0..count).flat_map(|i| ((i as f32 * 1e-3).sin() + 1e-3 * uniform(i)).to_le_bytes()).collect(),
        ),
        (
            "labels of a volume",
            DType::Uint64,
            (0..count / 2)
                .flat_map(|i| tidegate_core::hash::splitmix64(i / 700 % 90).to_le_bytes())
                .collect(),
        ),
    ];
    for (name, dtype, elements) in kinds {
        let mut names = codec::candidates(dtype);
        names.extend(if dtype == DType::Float32 { &["abs:1e-2", "abs:1e-3", "abs:1e-4"][..] } else { &[] });
        // Bits per byte of a source whose byte planes each have their own statistics.
        let entropy = plane_bits(&elements, dtype.size()) / dtype.size() as f64;
        for codec in names {
            let shape = [elements.len() / dtype.size()];
            let codec = codec::parse(codec, dtype, &shape).unwrap();
            let (mut packed, mut back) = (Vec::new(), vec![0; elements.len()]);
            let began = Instant::now();
            codec.encode(&elements, &mut packed).unwrap();
            let pack = began.elapsed().as_secs_f64();
            let unpack = best(|| codec.decode(&packed, black_box(&mut back)).unwrap());
            let bytes = elements.len() as f64;
            let gap = match codec.bound() {
                None => format!("{:.2}", 8.0 * packed.len() as f64 / bytes - entropy),
                Some(_) => "null".into(),
            };
            println!(
                "{{\"codec\": \"{}\", \"of\": \"{name}\", \"ratio\": {:.2}, \"gap_bits\": {gap}, \"pack_gb_s\": {:.2}, \"unpack_gb_s\": {:.2}}}",
                codec.name(),
                bytes / packed.len() as f64,
                bytes / pack / 1e9,
                bytes / unpack / 1e9
            );
        }
    }
}
