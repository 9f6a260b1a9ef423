//! The inverse DCT of libjpeg's ISLOW method, for two neighbouring blocks at once, and at its
//! reduced sizes for one.
//!
//! Flow: coefficients of two blocks + quantization table -> 8 rows of 16 samples; of one block ->
//! 4 × 4, 2 × 2 or 1 sample.
//! Memory: holds none.
//!
//! Source: Loeffler, Ligtenberg, Moschytz, «Practical fast 1-D DCT algorithms with 11
//! multiplications» (ICASSP 1989), as arranged in libjpeg's jidctint.c and jidctred.c. Sums of
//! products are regrouped by pairs, which changes no bit. Intermediate values are 16 bits wide,
//! and wrap and saturate where libjpeg-turbo's vector code does; the scalar code does the same.

use super::huffman::Coefficients;

/// Fractional bits of fixed-point factors.
const CONST_BITS: i32 = 13;
/// Bits of precision kept between the passes.
const PASS1_BITS: i32 = 2;

const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12_299;
const F_1_847: i32 = 15_137;
const F_1_961: i32 = 16_069;
const F_2_053: i32 = 16_819;
const F_2_562: i32 = 20_995;
const F_3_072: i32 = 25_172;

/// Pairs of factors for pairs of inputs.
const EVEN_2: [i32; 2] = [F_0_541, F_0_541 - F_1_847];
const EVEN_3: [i32; 2] = [F_0_541 + F_0_765, F_0_541];
const ODD_Z3: [i32; 2] = [F_1_175 - F_1_961, F_1_175];
const ODD_Z4: [i32; 2] = [F_1_175, F_1_175 - F_0_390];
const ODD_0: [i32; 2] = [F_0_298 - F_0_899, -F_0_899];
const ODD_3: [i32; 2] = [-F_0_899, F_1_501 - F_0_899];
const ODD_1: [i32; 2] = [F_2_053 - F_2_562, -F_2_562];
const ODD_2: [i32; 2] = [-F_2_562, F_3_072 - F_2_562];

/// The target of two blocks: 8 rows of 16 samples, `stride` apart.
#[derive(Debug)]
pub(super) struct Samples<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) stride: usize,
}

/// Transforms two horizontal neighbours. `last` is the greatest zigzag index of a coefficient in
/// either block.
pub(super) fn pair(
    blocks: &[Coefficients; 2],
    last: usize,
    quant: &[i16; 64],
    to: &mut Samples<'_>,
    simd: bool,
) {
    if last == 0 {
        return flat(blocks, quant, to);
    }
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is true only where AVX2 was found.
        #[expect(unsafe_code, reason = "vector instructions that were looked for")]
        return unsafe { avx2::pair(blocks, quant, to) };
    }
    for (b, block) in blocks.iter().enumerate() {
        one(block, quant, 8 * b, to);
    }
}

/// Writes blocks that have only a DC coefficient.
fn flat(blocks: &[Coefficients; 2], quant: &[i16; 64], to: &mut Samples<'_>) {
    let value = |block: &Coefficients| {
        let dc = i32::from(block[0].wrapping_mul(quant[0]));
        let first = saturate(dc << PASS1_BITS);
        level(i32::from(first), PASS1_BITS + 3)
    };
    let values = [value(&blocks[0]), value(&blocks[1])];
    for row in 0..8 {
        let row = &mut to.bytes[row * to.stride..][..16];
        row[..8].fill(values[0]);
        row[8..].fill(values[1]);
    }
}

fn saturate(x: i32) -> i16 {
    x.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// Rounds, and moves the range -128..=127 to 0..=255.
fn level(x: i32, bits: i32) -> u8 {
    let x = saturate((x + (1 << (bits - 1))) >> bits);
    (x.clamp(-128, 127) + 128) as u8
}

fn dot(a: i16, b: i16, factors: [i32; 2]) -> i32 {
    i32::from(a) * factors[0] + i32::from(b) * factors[1]
}

/// One pass of the full transform: eight outputs before rounding.
fn pass(x: [i16; 8]) -> [i32; 8] {
    let t0 = i32::from(x[0].wrapping_add(x[4])) << CONST_BITS;
    let t1 = i32::from(x[0].wrapping_sub(x[4])) << CONST_BITS;
    let (t2, t3) = (dot(x[2], x[6], EVEN_2), dot(x[2], x[6], EVEN_3));
    let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
    let (s, t) = (x[7].wrapping_add(x[3]), x[5].wrapping_add(x[1]));
    let (z3, z4) = (dot(s, t, ODD_Z3), dot(s, t, ODD_Z4));
    let odd = [
        dot(x[7], x[1], ODD_3) + z4,
        dot(x[5], x[3], ODD_2) + z3,
        dot(x[5], x[3], ODD_1) + z4,
        dot(x[7], x[1], ODD_0) + z3,
    ];
    let mut out = [0; 8];
    for i in 0..4 {
        out[i] = even[i].wrapping_add(odd[i]);
        out[7 - i] = even[i].wrapping_sub(odd[i]);
    }
    out
}

/// One pass of the 4 × 4 transform, of inputs 0, 2, 6 and 7, 5, 3, 1: four outputs before
/// rounding.
fn pass_to_four(x: [i32; 8]) -> [i32; 4] {
    let zero = x[0] << (CONST_BITS + 1);
    let even = x[2].wrapping_mul(F_1_847).wrapping_sub(x[6].wrapping_mul(F_0_765));
    let sum = |factors: [i32; 4]| {
        let inputs = [x[7], x[5], x[3], x[1]];
        inputs.iter().zip(factors).fold(0i32, |sum, (&x, f)| sum.wrapping_add(x.wrapping_mul(f)))
    };
    let (inner, outer) = (sum([-1730, 11_893, -17_799, 8697]), sum([-4176, -4926, F_0_899, F_2_562]));
    let (first, second) = (zero.wrapping_add(even), zero.wrapping_sub(even));
    [
        first.wrapping_add(outer),
        second.wrapping_add(inner),
        second.wrapping_sub(inner),
        first.wrapping_sub(outer),
    ]
}

/// One pass of the 2 × 2 transform, of inputs 0 and 7, 5, 3, 1: two outputs before rounding.
fn pass_to_two(x: [i32; 8]) -> [i32; 2] {
    let zero = x[0] << (CONST_BITS + 2);
    let factors = [(x[7], -5906), (x[5], 6967), (x[3], -10_426), (x[1], 29_692)];
    let odd = factors.iter().fold(0i32, |sum, (x, f)| sum.wrapping_add(x.wrapping_mul(*f)));
    [zero.wrapping_add(odd), zero.wrapping_sub(odd)]
}

/// Transforms a block to `N` × `N` samples: `pass` over columns, then over rows, each of which
/// leaves `more` bits.
#[inline(always)]
fn reduced<const N: usize>(
    block: &Coefficients,
    quant: &[i16; 64],
    to: &mut Samples<'_>,
    more: i32,
    pass: impl Fn([i32; 8]) -> [i32; N],
) {
    let rounded = |x: i32, bits: i32| x.wrapping_add(1 << (bits - 1)) >> bits;
    let mut work = [[0i32; 8]; N];
    for column in 0..8 {
        let inputs =
            std::array::from_fn(|r| i32::from(block[8 * r + column].wrapping_mul(quant[8 * r + column])));
        for (row, value) in work.iter_mut().zip(pass(inputs)) {
            row[column] = i32::from(saturate(rounded(value, CONST_BITS - PASS1_BITS + more)));
        }
    }
    for (row, inputs) in work.into_iter().enumerate() {
        for (sample, value) in to.bytes[row * to.stride..][..N].iter_mut().zip(pass(inputs)) {
            let value = saturate(rounded(value, CONST_BITS + PASS1_BITS + 3 + more));
            *sample = (value.clamp(-128, 127) + 128) as u8;
        }
    }
}

/// Transforms a block to 4 × 4 samples.
#[inline(always)]
pub(super) fn quarter(block: &Coefficients, quant: &[i16; 64], to: &mut Samples<'_>) {
    reduced(block, quant, to, 1, pass_to_four);
}

/// Transforms a block to 2 × 2 samples.
#[inline(always)]
pub(super) fn sixteenth(block: &Coefficients, quant: &[i16; 64], to: &mut Samples<'_>) {
    reduced(block, quant, to, 2, pass_to_two);
}

/// Transforms a block to its mean.
#[inline(always)]
pub(super) fn mean(block: &Coefficients, quant: &[i16; 64], to: &mut Samples<'_>) {
    to.bytes[0] = level(i32::from(block[0].wrapping_mul(quant[0])), 3);
}

/// Transforms one block by scalar code.
fn one(block: &Coefficients, quant: &[i16; 64], x: usize, to: &mut Samples<'_>) {
    let mut work = [0i16; 64];
    for column in 0..8 {
        let inputs = std::array::from_fn(|r| block[8 * r + column].wrapping_mul(quant[8 * r + column]));
        let bits = CONST_BITS - PASS1_BITS;
        for (row, value) in pass(inputs).into_iter().enumerate() {
            work[8 * row + column] = saturate((value.wrapping_add(1 << (bits - 1))) >> bits);
        }
    }
    for row in 0..8 {
        let inputs = std::array::from_fn(|c| work[8 * row + c]);
        let target = &mut to.bytes[row * to.stride + x..][..8];
        let bits = CONST_BITS + PASS1_BITS + 3;
        for (sample, value) in target.iter_mut().zip(pass(inputs)) {
            let value = saturate(value.wrapping_add(1 << (bits - 1)) >> bits);
            *sample = (value.clamp(-128, 127) + 128) as u8;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Each half of a vector holds a row of one block, so every step is that of 128-bit code.
    #![expect(unsafe_code, reason = "vector loads and stores of memory whose bounds were checked")]
    use std::arch::x86_64::*;

    use super::*;

    type Rows = [__m256i; 8];

    #[target_feature(enable = "avx2")]
    fn factors(pair: [i32; 2]) -> __m256i {
        _mm256_set1_epi32((pair[0] & 0xFFFF) | pair[1] << 16)
    }

    /// One pass over rows, rounded by `BITS` and packed to 16 bits.
    #[target_feature(enable = "avx2")]
    fn pass<const BITS: i32>(x: Rows) -> Rows {
        let zero = _mm256_setzero_si256();
        // A 16-bit number in the upper half of 32 bits, shifted back to CONST_BITS.
        let wide = |v: __m256i| {
            let lo = _mm256_srai_epi32::<{ 16 - CONST_BITS }>(_mm256_unpacklo_epi16(zero, v));
            (lo, _mm256_srai_epi32::<{ 16 - CONST_BITS }>(_mm256_unpackhi_epi16(zero, v)))
        };
        let dots = |a: __m256i, b: __m256i, f: [i32; 2], g: [i32; 2]| {
            let (lo, hi) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
            let (f, g) = (factors(f), factors(g));
            let first = (_mm256_madd_epi16(lo, f), _mm256_madd_epi16(hi, f));
            (first, (_mm256_madd_epi16(lo, g), _mm256_madd_epi16(hi, g)))
        };
        let add = |a: (__m256i, __m256i), b: (__m256i, __m256i)| {
            (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1))
        };
        let sub = |a: (__m256i, __m256i), b: (__m256i, __m256i)| {
            (_mm256_sub_epi32(a.0, b.0), _mm256_sub_epi32(a.1, b.1))
        };
        let t0 = wide(_mm256_add_epi16(x[0], x[4]));
        let t1 = wide(_mm256_sub_epi16(x[0], x[4]));
        let (t2, t3) = dots(x[2], x[6], EVEN_2, EVEN_3);
        let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
        let (z3, z4) = dots(_mm256_add_epi16(x[7], x[3]), _mm256_add_epi16(x[5], x[1]), ODD_Z3, ODD_Z4);
        let (o0, o3) = dots(x[7], x[1], ODD_0, ODD_3);
        let (o1, o2) = dots(x[5], x[3], ODD_1, ODD_2);
        let odd = [add(o3, z4), add(o2, z3), add(o1, z4), add(o0, z3)];
        let round = _mm256_set1_epi32(1 << (BITS - 1));
        let pack = |v: (__m256i, __m256i)| {
            let lo = _mm256_srai_epi32::<BITS>(_mm256_add_epi32(v.0, round));
            _mm256_packs_epi32(lo, _mm256_srai_epi32::<BITS>(_mm256_add_epi32(v.1, round)))
        };
        [
            pack(add(even[0], odd[0])),
            pack(add(even[1], odd[1])),
            pack(add(even[2], odd[2])),
            pack(add(even[3], odd[3])),
            pack(sub(even[3], odd[3])),
            pack(sub(even[2], odd[2])),
            pack(sub(even[1], odd[1])),
            pack(sub(even[0], odd[0])),
        ]
    }

    /// Transposes 8 × 8 numbers of 16 bits in each half.
    #[target_feature(enable = "avx2")]
    fn transpose(x: Rows) -> Rows {
        let step = |v: Rows| -> Rows {
            // One third of the transpose: the perfect shuffle of rows i and i + 4.
            [
                _mm256_unpacklo_epi16(v[0], v[4]),
                _mm256_unpackhi_epi16(v[0], v[4]),
                _mm256_unpacklo_epi16(v[1], v[5]),
                _mm256_unpackhi_epi16(v[1], v[5]),
                _mm256_unpacklo_epi16(v[2], v[6]),
                _mm256_unpackhi_epi16(v[2], v[6]),
                _mm256_unpacklo_epi16(v[3], v[7]),
                _mm256_unpackhi_epi16(v[3], v[7]),
            ]
        };
        step(step(step(x)))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn pair(blocks: &[Coefficients; 2], quant: &[i16; 64], to: &mut Samples<'_>) {
        let row = |r: usize| {
            let at = |numbers: &[i16; 64]| {
                // SAFETY: the eight numbers from 8 r on are within 64, as r < 8.
                unsafe { _mm_loadu_si128(numbers.as_ptr().add(8 * r).cast()) }
            };
            let both = _mm256_set_m128i(at(&blocks[1]), at(&blocks[0]));
            _mm256_mullo_epi16(both, _mm256_broadcastsi128_si256(at(quant)))
        };
        let x: Rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
        let x = pass::<{ CONST_BITS - PASS1_BITS }>(x);
        let x = pass::<{ CONST_BITS + PASS1_BITS + 3 }>(transpose(x));
        let x = transpose(x);
        let middle = _mm256_set1_epi8(-128);
        for i in 0..4 {
            // Bytes of rows 2 i and 2 i + 1: first block (low half), second block (high half).
            let bytes = _mm256_add_epi8(_mm256_packs_epi16(x[2 * i], x[2 * i + 1]), middle);
            let rows = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
            let (above, below) = (_mm256_castsi256_si128(rows), _mm256_extracti128_si256::<1>(rows));
            for (r, half) in [(2 * i, above), (2 * i + 1, below)] {
                let target: &mut [u8] = &mut to.bytes[r * to.stride..][..16];
                // SAFETY: the slice has sixteen bytes.
                unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), half) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The defining sum, in floats.
    fn exact(block: &Coefficients, quant: &[i16; 64]) -> [f64; 64] {
        let c = |k: usize| if k == 0 { 0.5f64.sqrt() } else { 1.0 };
        let angle = |x: usize, k: usize| ((2 * x + 1) as f64 * k as f64 * std::f64::consts::PI / 16.0).cos();
        std::array::from_fn(|i| {
            let (y, x) = (i / 8, i % 8);
            let sum: f64 = (0..64)
                .map(|k| {
                    let (v, u) = (k / 8, k % 8);
                    c(u) * c(v) * f64::from(block[k]) * f64::from(quant[k]) * angle(x, u) * angle(y, v)
                })
                .sum();
            (sum / 4.0 + 128.0).clamp(0.0, 255.0)
        })
    }

    proptest! {
        #[test]
        fn vectors_equal_scalars_and_the_definition(
            places in prop::collection::vec((0usize..64, -40i16..40, 0usize..2), 0..30), step in 1i16..12,
        ) {
            let mut blocks = [[0i16; 64]; 2];
            for (place, value, b) in places {
                blocks[b][place] = value;
            }
            let quant = [step; 64];
            let run = |simd: bool| {
                let mut bytes = vec![0; 8 * 16];
                pair(&blocks, 63, &quant, &mut Samples { bytes: &mut bytes, stride: 16 }, simd);
                bytes
            };
            let scalar = run(false);
            prop_assert_eq!(&run(tidegate_core::simd::avx2()), &scalar);
            for (b, block) in blocks.iter().enumerate() {
                for (i, value) in exact(block, &quant).into_iter().enumerate() {
                    let ours = f64::from(scalar[i / 8 * 16 + 8 * b + i % 8]);
                    prop_assert!((ours - value).abs() <= 1.01, "{} {}", ours, value);
                }
            }
        }

        /// For any numbers, nothing overflows and both ways agree.
        #[test]
        fn vectors_equal_scalars_on_nonsense(blocks: [[i16; 32]; 4], quant: [i16; 32]) {
            let join = |a: [i16; 32], b: [i16; 32]| -> [i16; 64] { std::array::from_fn(|i| if i < 32 { a[i] } else { b[i - 32] }) };
            let blocks = [join(blocks[0], blocks[1]), join(blocks[2], blocks[3])];
            let quant = join(quant, quant);
            let run = |simd: bool, last: usize| {
                let mut bytes = vec![0; 8 * 16];
                pair(&blocks, last, &quant, &mut Samples { bytes: &mut bytes, stride: 16 }, simd);
                bytes
            };
            prop_assert_eq!(run(false, 63), run(tidegate_core::simd::avx2(), 63));
        }
    }

    #[test]
    fn a_flat_block_is_the_same_both_ways() {
        for dc in -2000..2000i16 {
            let mut block = [0; 64];
            block[0] = dc;
            let run = |last: usize| {
                let mut bytes = vec![0; 8 * 16];
                pair(&[block, block], last, &[1; 64], &mut Samples { bytes: &mut bytes, stride: 16 }, false);
                bytes
            };
            assert_eq!(run(0), run(63), "{dc}");
        }
    }
}
