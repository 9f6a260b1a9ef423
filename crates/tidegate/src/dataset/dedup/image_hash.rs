//! A perceptual image hash: 256 bits that change little when an image is scaled, encoded again or
//! made slightly brighter.
//!
//! Flow: 32 × 32 pixels -> luma -> the lowest 16 × 16 frequencies, without the means of rows and
//! columns -> a bit for each frequency above their median.
//! Memory: a few KiB on the stack.
//!
//! The method is that of pHash and PDQ (Zauner, «Implementation and benchmarking of perceptual
//! image hash functions», 2010; Facebook's PDQ, 2019). A mirrored, rotated or cropped image has
//! another hash.

/// The width and height of the image that is hashed, in pixels.
pub(super) const SIDE: usize = 32;
/// Frequencies along each axis.
const LOW: usize = 16;
/// The length of a hash in bits and in bytes.
pub(super) const HASH_BITS: usize = LOW * LOW;
pub(super) const HASH_BYTES: usize = HASH_BITS / 8;
/// The smallest contrast, in levels of 255. An image with less is of one colour, or nearly so.
const MIN_CONTRAST: f32 = 1.0;

/// cos(π (2x + 1) u / 64) for u from 1 to 16: the rows of the transform, without the mean.
fn cosines() -> [[f32; SIDE]; LOW] {
    let mut table = [[0.0; SIDE]; LOW];
    for (u, row) in table.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let angle = std::f64::consts::PI * (2 * x + 1) as f64 * (u + 1) as f64 / (2 * SIDE) as f64;
            *value = libm::cos(angle) as f32;
        }
    }
    table
}

/// The hash of 32 × 32 pixels in planes of R, G, B. An image without contrast has none.
pub(super) fn hash(planes: &[u8]) -> Option<[u8; HASH_BYTES]> {
    let table = cosines();
    let area = SIDE * SIDE;
    let level = |at: usize, c: usize| f32::from(planes.get(c * area + at).copied().unwrap_or(0));
    let luma = |at: usize| 0.299 * level(at, 0) + 0.587 * level(at, 1) + 0.114 * level(at, 2);
    // Along rows, then along columns.
    let mut rows = [[0f32; LOW]; SIDE];
    for (y, row) in rows.iter_mut().enumerate() {
        for (u, value) in row.iter_mut().enumerate() {
            *value = (0..SIDE).map(|x| luma(y * SIDE + x) * table[u][x]).sum();
        }
    }
    let mut low = [0f32; LOW * LOW];
    for (i, value) in low.iter_mut().enumerate() {
        let (v, u) = (i / LOW, i % LOW);
        *value = (0..SIDE).map(|y| rows[y][u] * table[v][y]).sum::<f32>() * 2.0 / SIDE as f32;
    }
    let strength = (low.iter().map(|x| x * x).sum::<f32>() / area as f32).sqrt();
    if strength < MIN_CONTRAST {
        return None;
    }
    let mut sorted = low;
    sorted.sort_unstable_by(f32::total_cmp);
    let median = f32::midpoint(sorted[LOW * LOW / 2 - 1], sorted[LOW * LOW / 2]);
    let mut hash = [0; HASH_BYTES];
    for (i, _) in low.iter().enumerate().filter(|(_, value)| **value > median) {
        hash[i / 8] |= 1 << (i % 8);
    }
    Some(hash)
}

/// The fraction of bits that are equal.
pub(super) fn similarity(one: &[u8], other: &[u8]) -> f64 {
    let differ: u32 = one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum();
    1.0 - f64::from(differ) / HASH_BITS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(seed: usize, brighter: i32) -> Vec<u8> {
        let level = |at: usize, c: usize| {
            let (y, x) = ((at / SIDE) as f64, (at % SIDE) as f64);
            let s = seed as f64;
            let waves =
                (x * (0.1 + 0.07 * s)).sin() + (y * (0.13 + 0.05 * s)).cos() + (x * y * 0.003 * s).sin();
            (128.0 + 30.0 * waves) as i32 + brighter + c as i32
        };
        (0..3).flat_map(|c| (0..SIDE * SIDE).map(move |at| level(at, c) as u8)).collect()
    }

    #[test]
    fn similar_images_have_similar_hashes() {
        let one = hash(&image(1, 0)).unwrap();
        assert_eq!(one.iter().map(|b| b.count_ones()).sum::<u32>(), 128);
        assert!(similarity(&one, &hash(&image(1, 9)).unwrap()) > 0.97);
        for other in 2..8 {
            assert!(similarity(&one, &hash(&image(other, 0)).unwrap()) < 0.8);
        }
        assert_eq!(hash(&[77; 3 * SIDE * SIDE]), None);
    }
}
