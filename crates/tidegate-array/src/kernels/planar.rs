//! Interleaved RGB to three planes: HWC to CHW.
//!
//! Flow: rows of RGB -> red, green and blue planes; called by `transpose` and by batch assembly.
//! Memory: holds none.
//!
//! Sixteen pixels per step with byte shuffles if the processor has them (nine shuffles per 48
//! bytes), else pixel by pixel, with the same result. `cargo bench -p tidegate-array` compares the
//! speed with copying.
#![expect(unsafe_code, reason = "vector instructions")]

/// Splits `rgb` into three planes.
///
/// # Panics
/// If a plane is not a third as long as `rgb`.
pub fn split(rgb: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    let n = rgb.len() / 3;
    assert!(red.len() == n && green.len() == n && blue.len() == n, "the planes must have the image's size");
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if tidegate_core::simd::enabled() && std::arch::is_x86_feature_detected!("ssse3") {
        // SAFETY: the processor has SSSE3, and the planes hold n pixels (checked above).
        done = unsafe { split_ssse3(rgb, red, green, blue) };
    }
    scalar(&rgb[done * 3..], &mut red[done..], &mut green[done..], &mut blue[done..]);
}

fn scalar(rgb: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    for (((pixel, r), g), b) in rgb.chunks_exact(3).zip(red).zip(green).zip(blue) {
        (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
    }
}

/// Splits whole groups of 16 pixels; returns the number of pixels done.
///
/// # Safety
/// The processor must have SSSE3; each plane must hold `rgb.len() / 3` bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "ssse3")]
unsafe fn split_ssse3(rgb: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) -> usize {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_or_si128, _mm_shuffle_epi8, _mm_storeu_si128};
    /// For channel c and part p of 48 bytes: the source of each byte of the plane, or 0x80 for
    /// "elsewhere".
    const fn mask(c: usize, p: usize) -> [u8; 16] {
        let mut m = [0x80; 16];
        let mut i = 0;
        while i < 16 {
            let at = 3 * i + c;
            if at / 16 == p {
                m[i] = (at % 16) as u8;
            }
            i += 1;
        }
        m
    }
    const MASKS: [[[u8; 16]; 3]; 3] = [
        [mask(0, 0), mask(0, 1), mask(0, 2)],
        [mask(1, 0), mask(1, 1), mask(1, 2)],
        [mask(2, 0), mask(2, 1), mask(2, 2)],
    ];
    let groups = rgb.len() / 48;
    let planes = [red.as_mut_ptr(), green.as_mut_ptr(), blue.as_mut_ptr()];
    for group in 0..groups {
        // SAFETY: group < len / 48, so 48 bytes may be read here and 16 written to each plane;
        // access is unaligned.
        unsafe {
            let from = rgb.as_ptr().add(group * 48);
            let parts: [__m128i; 3] = [0, 16, 32].map(|o| _mm_loadu_si128(from.add(o).cast()));
            for (plane, masks) in planes.iter().zip(&MASKS) {
                let pick = |p: usize| _mm_shuffle_epi8(parts[p], _mm_loadu_si128(masks[p].as_ptr().cast()));
                let all = _mm_or_si128(_mm_or_si128(pick(0), pick(1)), pick(2));
                _mm_storeu_si128(plane.add(group * 16).cast(), all);
            }
        }
    }
    groups * 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vectors_equal_scalars(rgb in prop::collection::vec(any::<u8>(), 0..600)) {
            let n = rgb.len() / 3;
            let rgb = &rgb[..n * 3];
            let mut fast = vec![0u8; n * 3];
            let mut slow = fast.clone();
            for (out, vectors) in [(&mut fast, true), (&mut slow, false)] {
                let (r, rest) = out.split_at_mut(n);
                let (g, b) = rest.split_at_mut(n);
                if vectors { split(rgb, r, g, b) } else { scalar(rgb, r, g, b) }
            }
            prop_assert_eq!(fast, slow);
        }
    }
}
