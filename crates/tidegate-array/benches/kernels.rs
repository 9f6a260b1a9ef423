//! Speed of kernels compared with copying: `cargo bench -p tidegate-array`.
//!
//! Flow: arrays larger than the caches -> bytes written per second, and their share of a copy's,
//! as lines of JSON.
//! Memory: its own.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::Instant;

use tidegate_array::DType;
use tidegate_array::kernels::boxes::{Corner, copy};
use tidegate_array::kernels::convert::{from_f32, to_f32};
use tidegate_array::kernels::transpose::{gather, transpose};
use tidegate_array::kernels::wavelet::{Wavelet, forward};

const BYTES: usize = 64 << 20;

/// The fastest of seven runs, in GB/s of `bytes`.
fn best(bytes: usize, mut run: impl FnMut()) -> f64 {
    run();
    let times = (0..7).map(|_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    });
    bytes as f64 / times.fold(f64::INFINITY, f64::min) / 1e9
}

fn main() {
    let from: Vec<u64> = (0..BYTES as u64 / 8).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 1).collect();
    let mut into = vec![0u64; BYTES / 8];
    let from: &[u8] = bytemuck::cast_slice(&from);
    let into: &mut [u8] = bytemuck::cast_slice_mut(&mut into);
    let memcpy = best(BYTES, || black_box(&mut *into).copy_from_slice(black_box(from)));
    println!("{{\"kernel\": \"copy\", \"gb_s\": {memcpy:.2}}}");
    let say = |name: &str, gb_s: f64, of: f64| {
        println!("{{\"kernel\": \"{name}\", \"gb_s\": {gb_s:.2}, \"share_of_copy\": {:.2}}}", gb_s / of);
    };
    for (size, name) in [(1, "u8"), (2, "u16"), (4, "u32"), (8, "u64")] {
        let side = ((BYTES / size) as f64).sqrt() as usize / 64 * 64;
        let bytes = side * side * size;
        let gb_s = best(bytes, || transpose(&from[..bytes], side, side, black_box(&mut into[..bytes]), size));
        say(&format!("transpose {name} {side}x{side}"), gb_s, memcpy);
        for channels in [3, 4] {
            let pixels = BYTES / size / channels;
            let bytes = pixels * channels * size;
            let run = |rows, columns, into: &mut [u8]| {
                best(bytes, || transpose(&from[..bytes], rows, columns, black_box(&mut into[..bytes]), size))
            };
            say(&format!("HWC to CHW {name} x{channels}"), run(pixels, channels, into), memcpy);
            say(&format!("CHW to HWC {name} x{channels}"), run(channels, pixels, into), memcpy);
        }
    }
    for width in [16, 64, 1024] {
        let rows = (BYTES / width) as u64;
        let numbers: Vec<u64> = (0..rows).map(|i| i.wrapping_mul(0x9E37_79B1) % rows).collect();
        let gb_s = best(BYTES, || gather(from, width, &numbers, black_box(&mut *into)));
        say(&format!("gather rows of {width} bytes"), gb_s, memcpy);
    }
    // A patch of 64^3 of a 128^3 chunk of u16, in the second-level cache as in the pipeline.
    let (chunk, patch) = ([128; 3], [64; 3]);
    let patch_bytes = 2 * 64usize.pow(3);
    let in_cache = best(patch_bytes * 100, || {
        (0..100).for_each(|_| {
            black_box(&mut into[..patch_bytes]).copy_from_slice(black_box(&from[..patch_bytes]))
        });
    });
    let gb_s = best(patch_bytes * 100, || {
        for at in 0..100 {
            let source = Corner { shape: &chunk, at: &[at % 64, 32, at % 63] };
            copy(
                &from[..2 << 21],
                source,
                &mut into[..patch_bytes],
                Corner { shape: &patch, at: &[0; 3] },
                &patch,
                2,
            );
        }
    });
    say("patch of a chunk, u16", gb_s, in_cache);
    // Conversions: bytes read and written, compared with a copy's.
    let count = BYTES / 4;
    let mut numbers = vec![0.0f32; count];
    for dtype in [DType::Uint8, DType::Uint16, DType::Float16, DType::Bfloat16] {
        let stored = count * dtype.size();
        let gb_s = best(stored + BYTES, || to_f32(dtype, &from[..stored], black_box(&mut numbers)));
        say(&format!("{} to float32", dtype.name()), gb_s, 2.0 * memcpy);
        let gb_s = best(stored + BYTES, || from_f32(&numbers, dtype, black_box(&mut into[..stored])));
        say(&format!("float32 to {}", dtype.name()), gb_s, 2.0 * memcpy);
    }
    for (wavelet, name) in [(Wavelet::Haar, "haar"), (Wavelet::Cdf53, "cdf53")] {
        let mut scratch = vec![0.0; 256 * 256];
        let gb_s =
            best(BYTES, || forward(&mut numbers, &[256, 256, 256], wavelet, 1, black_box(&mut scratch)));
        say(&format!("{name} of 256^3 float32, one level in place"), gb_s, memcpy);
    }
}
