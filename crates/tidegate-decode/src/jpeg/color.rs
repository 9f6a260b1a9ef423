//! Chroma interpolation and colour conversion, as libjpeg-turbo does them by default.
//!
//! Flow: rows of samples -> rows of full width ([`wider`], [`taller`], [`both`]) -> interleaved
//! RGB ([`to_rgb`]).
//! Memory: holds none.
//!
//! Sources: libjpeg-turbo's jdsample.c («fancy» triangle filter) and jdcolor.c; CMYK as Pillow
//! shows it.

use super::frame::Color;

/// Doubles the width: each output is 3/4 of the nearer sample and 1/4 of the further one.
#[inline(always)]
pub(super) fn wider(from: &[u8], to: &mut [u8]) {
    let n = from.len();
    let nearer = |i: usize| 3 * u16::from(from[i]);
    for (i, pair) in to[..2 * n].chunks_exact_mut(2).enumerate() {
        let (left, right) = (i.saturating_sub(1), (i + 1).min(n - 1));
        // At the edges the further sample is the nearer one itself, so nothing is rounded.
        pair[0] = ((nearer(i) + u16::from(from[left]) + 1) >> 2) as u8;
        pair[1] = ((nearer(i) + u16::from(from[right]) + 2) >> 2) as u8;
    }
}

/// Doubles the height: one row between two rows. `upper` says which of the two new rows it is.
#[inline(always)]
pub(super) fn taller(near: &[u8], far: &[u8], upper: bool, to: &mut [u8]) {
    let bias = if upper { 1 } else { 2 };
    for ((to, &near), &far) in to.iter_mut().zip(near).zip(far) {
        *to = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    }
}

/// Doubles width and height. `sums` must be at least as long as `near`.
#[inline(always)]
pub(super) fn both(near: &[u8], far: &[u8], sums: &mut [u16], to: &mut [u8]) {
    let n = near.len();
    let sums = &mut sums[..n];
    for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
        *sum = 3 * u16::from(near) + u16::from(far);
    }
    let mut put = |i: usize, left: u16, right: u16| {
        to[2 * i] = ((3 * sums[i] + left + 8) >> 4) as u8;
        to[2 * i + 1] = ((3 * sums[i] + right + 7) >> 4) as u8;
    };
    put(0, sums[0], sums[1.min(n - 1)]);
    put(n - 1, sums[n.saturating_sub(2)], sums[n - 1]);
    if n > 2 {
        let middle = to[2..2 * n - 2].chunks_exact_mut(2);
        for (pair, three) in middle.zip(sums.windows(3)) {
            pair[0] = ((3 * three[1] + three[0] + 8) >> 4) as u8;
            pair[1] = ((3 * three[1] + three[2] + 7) >> 4) as u8;
        }
    }
}

/// Repeats each sample `times` times.
#[inline(always)]
pub(super) fn repeated(from: &[u8], times: usize, to: &mut [u8]) {
    for (group, &sample) in to.chunks_mut(times).zip(from) {
        group.fill(sample);
    }
}

/// Converts one row of each component to interleaved RGB of `N` bytes a pixel. The value of a
/// fourth byte is undefined.
pub(super) fn to_rgb<const N: usize>(color: Color, rows: [&[u8]; 4], to: &mut [u8], simd: bool) {
    let (pixels, _) = to.as_chunks_mut::<N>();
    match color {
        Color::Gray => {
            for (pixel, &gray) in pixels.iter_mut().zip(rows[0]) {
                pixel.fill(gray);
            }
        }
        Color::Rgb => {
            for (x, pixel) in pixels.iter_mut().enumerate() {
                pixel[..3].copy_from_slice(&[rows[0][x], rows[1][x], rows[2][x]]);
            }
        }
        Color::YCbCr => {
            let done = vectors(rows, pixels, simd);
            for (x, pixel) in pixels.iter_mut().enumerate().skip(done) {
                pixel[..3].copy_from_slice(&rgb(rows[0][x], rows[1][x], rows[2][x]));
            }
        }
        Color::Cmyk | Color::Ycck => {
            for (x, pixel) in pixels.iter_mut().enumerate() {
                let inks = if color == Color::Ycck {
                    rgb(rows[0][x], rows[1][x], rows[2][x]).map(|v| 255 - v)
                } else {
                    [rows[0][x], rows[1][x], rows[2][x]]
                };
                // Inks are stored inverted, as Adobe does: `light` is what black leaves.
                let light = u32::from(rows[3][x]);
                pixel[..3].copy_from_slice(&inks.map(|ink| {
                    let product = u32::from(255 - ink) * light + 128;
                    (light - (((product >> 8) + product) >> 8)) as u8
                }));
            }
        }
    }
}

/// One pixel of YCbCr (JFIF), in 16-bit fixed point.
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let half = 1 << 15;
    let red = y + ((91_881 * cr + half) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + half) >> 16);
    let blue = y + ((116_130 * cb + half) >> 16);
    [red, green, blue].map(|v| v.clamp(0, 255) as u8)
}

/// Converts pixels by vector code as far as whole vectors go; returns the number converted.
fn vectors<const N: usize>(rows: [&[u8]; 4], to: &mut [[u8; N]], simd: bool) -> usize {
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is true only where AVX2 was found.
        #[expect(unsafe_code, reason = "vector instructions that were looked for")]
        return unsafe { avx2::rgb([rows[0], rows[1], rows[2]], to) };
    }
    // Without vector code nothing is converted here.
    let _unused = (rows, to, simd);
    0
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Products of more than 16 bits are split as libjpeg-turbo splits them: 1.402 = 1 + 0.402,
    //! 1.772 = 2 - 0.228.
    #![expect(unsafe_code, reason = "vector loads and stores of memory whose bounds were checked")]
    use std::arch::x86_64::*;

    /// Shuffles that place every third byte: red, green and blue of sixteen pixels in three
    /// vectors of sixteen bytes.
    const SHUFFLES: [[[i8; 16]; 3]; 3] = {
        let mut table = [[[-1i8; 16]; 3]; 3];
        let mut byte = 0;
        while byte < 48 {
            table[byte / 16][byte % 3][byte % 16] = (byte / 3) as i8;
            byte += 1;
        }
        table
    };

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; 16]) -> __m256i {
        // SAFETY: sixteen bytes are read from an array of sixteen.
        _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
    }

    #[target_feature(enable = "avx2")]
    fn bytes(v: __m256i) -> __m128i {
        _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))
    }

    /// Sixteen pixels of three bytes.
    #[target_feature(enable = "avx2")]
    fn triples(planes: [__m128i; 3], to: &mut [u8]) {
        for (shuffles, target) in SHUFFLES.iter().zip(to.as_chunks_mut::<16>().0) {
            let part = |c: usize| {
                // SAFETY: sixteen bytes are read from an array of sixteen.
                let shuffle = unsafe { _mm_loadu_si128(shuffles[c].as_ptr().cast()) };
                _mm_shuffle_epi8(planes[c], shuffle)
            };
            store(target, _mm_or_si128(_mm_or_si128(part(0), part(1)), part(2)));
        }
    }

    /// Sixteen pixels of four bytes.
    #[target_feature(enable = "avx2")]
    fn quadruples([red, green, blue]: [__m128i; 3], to: &mut [u8]) {
        let zero = _mm_setzero_si128();
        let (rg0, rg1) = (_mm_unpacklo_epi8(red, green), _mm_unpackhi_epi8(red, green));
        let (bx0, bx1) = (_mm_unpacklo_epi8(blue, zero), _mm_unpackhi_epi8(blue, zero));
        let quarters = [
            _mm_unpacklo_epi16(rg0, bx0),
            _mm_unpackhi_epi16(rg0, bx0),
            _mm_unpacklo_epi16(rg1, bx1),
            _mm_unpackhi_epi16(rg1, bx1),
        ];
        for (target, quarter) in to.as_chunks_mut::<16>().0.iter_mut().zip(quarters) {
            store(target, quarter);
        }
    }

    #[target_feature(enable = "avx2")]
    fn store(to: &mut [u8; 16], v: __m128i) {
        // SAFETY: sixteen bytes are written to an array of sixteen.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), v) };
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn rgb<const N: usize>(rows: [&[u8]; 3], to: &mut [[u8; N]]) -> usize {
        let (y, _) = rows[0].as_chunks::<16>();
        let (cb, _) = rows[1].as_chunks::<16>();
        let (cr, _) = rows[2].as_chunks::<16>();
        let (out, _) = to.as_chunks_mut::<16>();
        let (center, one) = (_mm256_set1_epi16(128), _mm256_set1_epi16(1));
        let green_factors = _mm256_set1_epi32((-22_554 & 0xFFFF) | 18_734 << 16);
        let half = _mm256_set1_epi32(1 << 15);
        let mut done = 0;
        for (((y, cb), cr), out) in y.iter().zip(cb).zip(cr).zip(out) {
            let y = load(y);
            let (cb, cr) = (_mm256_sub_epi16(load(cb), center), _mm256_sub_epi16(load(cr), center));
            // (2 c f >> 16) rounded and halved: c f / 2^16, rounded.
            let scaled = |c: __m256i, factor: i16| {
                let high = _mm256_mulhi_epi16(_mm256_add_epi16(c, c), _mm256_set1_epi16(factor));
                _mm256_srai_epi16::<1>(_mm256_add_epi16(high, one))
            };
            let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), scaled(cr, 26_345));
            let blue = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), scaled(cb, -14_942));
            let sum = |pairs: __m256i| {
                _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(pairs, green_factors), half))
            };
            let low = sum(_mm256_unpacklo_epi16(cb, cr));
            let mixed = _mm256_packs_epi32(low, sum(_mm256_unpackhi_epi16(cb, cr)));
            let green = _mm256_add_epi16(y, _mm256_sub_epi16(mixed, cr));
            let planes = [bytes(red), bytes(green), bytes(blue)];
            if N == 3 {
                triples(planes, out.as_flattened_mut());
            } else {
                quadruples(planes, out.as_flattened_mut());
            }
            done += 16;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted<const N: usize>(rows: [&[u8]; 4], simd: bool) -> Vec<u8> {
        let mut out = vec![0; N * rows[0].len()];
        to_rgb::<N>(Color::YCbCr, rows, &mut out, simd);
        out
    }

    #[test]
    fn vectors_equal_scalars_for_every_chroma() {
        let mut chroma = Vec::new();
        for cb in 0..=255u8 {
            for cr in 0..=255u8 {
                chroma.push((cb, cr));
            }
        }
        let cb: Vec<u8> = chroma.iter().map(|c| c.0).collect();
        let cr: Vec<u8> = chroma.iter().map(|c| c.1).collect();
        for y in [0u8, 1, 77, 128, 200, 254, 255] {
            let y = vec![y; cb.len()];
            let scalar = converted::<3>([&y, &cb, &cr, &[]], false);
            let vectors = tidegate_core::simd::avx2();
            assert_eq!(converted::<3>([&y, &cb, &cr, &[]], vectors), scalar);
            let four = converted::<4>([&y, &cb, &cr, &[]], vectors);
            assert!(four.chunks_exact(4).map(|pixel| &pixel[..3]).eq(scalar.chunks_exact(3)));
        }
    }

    #[test]
    fn interpolation_keeps_flat_rows_flat() {
        for n in 1..40 {
            let row = vec![93u8; n];
            let (mut out, mut sums) = (vec![0; 2 * n], vec![0; n]);
            wider(&row, &mut out);
            assert!(out.iter().all(|&x| x == 93));
            both(&row, &row, &mut sums, &mut out);
            assert!(out.iter().all(|&x| x == 93));
        }
    }
}
