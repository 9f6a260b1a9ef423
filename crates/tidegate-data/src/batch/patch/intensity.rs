//! Changes of a patch's values: normalization, noise, blur, intensity, contrast and gamma, in this
//! order.
//!
//! Flow: numbers of a patch, changed in place.
//! Memory: the caller's; blurring needs [`scratch_len`] numbers of scratch.
//!
//! The order and the formulas are those of batchgenerators (nnU-Net): one drawn number for all
//! channels, statistics for each channel. Sums have a fixed order and nothing is fused, so the
//! bits are the same on all processors.

use tidegate_array::kernels::convert::rounded;

use super::frame::{AXES, Frame};
use crate::batch::geometry::Draw;
use crate::batch::spec::{Drawn, Intensity};
use tidegate_order::random::{Purpose, Stream};

/// Adjacent columns that are blurred together along an axis other than the last.
const ABREAST: usize = 64;
/// Numbers of noise that are drawn from one stream; each part has its own.
const NOISE_PART: usize = 1 << 18;
/// Weights of a blur at most: four standard deviations of [`Drawn::BLUR_MAX`] on each side.
const WEIGHTS_MOST: usize = 2 * 4 * Drawn::BLUR_MAX as usize + 3;

/// The length of the scratch that blurring a patch needs, in numbers.
pub(super) fn scratch_len(intensity: &Intensity, frame: &Frame) -> usize {
    let longest = frame.delivered.iter().max().copied().unwrap_or(0);
    intensity.blur.map_or(0, |blur| (longest + 2 * radius(blur.high)) * ABREAST)
}

fn radius(deviation: f64) -> usize {
    (4.0 * deviation + 0.5) as usize
}

/// Changes the values of a field. `view` is the field's index, which selects its random streams.
pub(super) fn apply(
    intensity: &Intensity,
    frame: &Frame,
    (draw, view): (Draw, u8),
    values: &mut [f32],
    scratch: &mut [f32],
) {
    let channel = frame.voxels().1;
    let stream = |purpose| Stream::new(draw.seed, draw.epoch, draw.position, view, purpose);
    let drawn = |range: Option<Drawn>, purpose| range.and_then(|range| range.draw(&mut stream(purpose)));
    if !intensity.mean.is_empty() || !intensity.std.is_empty() {
        let of = |all: &[f32], i: usize, none: f32| all.get(i % all.len().max(1)).copied().unwrap_or(none);
        for (i, values) in values.chunks_exact_mut(channel).enumerate() {
            let (mean, std) = (of(&intensity.mean, i, 0.0), of(&intensity.std, i, 1.0));
            values.iter_mut().for_each(|x| *x = (*x - mean) / std);
        }
    }
    if let Some(deviation) = drawn(intensity.noise, Purpose::Noise) {
        let mut seeds = stream(Purpose::NoisePart);
        for part in values.chunks_mut(NOISE_PART) {
            let mut stream = Stream::new(seeds.long(), draw.epoch, draw.position, view, Purpose::Noise);
            stream.add_normals(deviation as f32, part);
        }
    }
    if let Some(deviation) = drawn(intensity.blur, Purpose::Blur).filter(|deviation| *deviation > 0.0) {
        blur(values, frame.delivered, deviation, scratch);
    }
    if let Some(factor) = drawn(intensity.intensity, Purpose::Intensity) {
        values.iter_mut().for_each(|x| *x *= factor as f32);
    }
    if let Some(factor) = drawn(intensity.contrast, Purpose::Contrast) {
        values.chunks_exact_mut(channel).for_each(|values| contrast(values, factor as f32));
    }
    if let Some(power) = drawn(intensity.gamma, Purpose::Gamma) {
        values.chunks_exact_mut(channel).for_each(|values| gamma(values, power as f32));
    }
}

/// Blurs along all axes. At the border voxels are mirrored, as in SciPy's `gaussian_filter`.
fn blur(values: &mut [f32], shape: [usize; AXES], deviation: f64, scratch: &mut [f32]) {
    let radius = radius(deviation);
    let mut weights = [0.0f32; WEIGHTS_MOST];
    let weight = |i: usize| {
        let away = (i as f64 - radius as f64) / deviation;
        libm::exp(-0.5 * away * away)
    };
    let weights = &mut weights[..=2 * radius];
    let sum: f64 = (0..weights.len()).map(weight).sum();
    weights.iter_mut().enumerate().for_each(|(i, w)| *w = (weight(i) / sum) as f32);
    let mut inner = 1;
    for axis in (0..AXES).rev() {
        let len = shape[axis];
        if len > 1 {
            for slab in values.chunks_exact_mut(len * inner) {
                for from in (0..inner).step_by(ABREAST) {
                    along(slab, (len, inner), from..(from + ABREAST).min(inner), weights, scratch);
                }
            }
        }
        inner *= len;
    }
}

/// Blurs a range of columns of `len` rows.
fn along(
    slab: &mut [f32],
    (len, inner): (usize, usize),
    columns: std::ops::Range<usize>,
    weights: &[f32],
    scratch: &mut [f32],
) {
    let (radius, width) = (weights.len() / 2, columns.len());
    let mirrored = |i: usize| {
        let at = (i as i64 - radius as i64).rem_euclid(2 * len as i64) as usize;
        if at < len { at } else { 2 * len - 1 - at }
    };
    let rows = &mut scratch[..(len + 2 * radius) * width];
    for (i, row) in rows.chunks_exact_mut(width).enumerate() {
        let start = mirrored(i) * inner + columns.start;
        row.copy_from_slice(&slab[start..start + width]);
    }
    if inner == 1 {
        // One column: all its rows at once, one weight after another.
        slab.fill(0.0);
        for (i, weight) in weights.iter().enumerate() {
            slab.iter_mut().zip(&rows[i..]).for_each(|(to, x)| *to += weight * x);
        }
        return;
    }
    for i in 0..len {
        let into = &mut slab[i * inner + columns.start..][..width];
        into.fill(0.0);
        for (row, weight) in rows[i * width..].chunks_exact(width).zip(weights) {
            into.iter_mut().zip(row).for_each(|(to, x)| *to += weight * x);
        }
    }
}

/// Scales the distance from the mean by a factor, within the range of the values.
fn contrast(values: &mut [f32], factor: f32) {
    let mean = (values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len().max(1) as f64) as f32;
    let (low, high) = extremes(values);
    values.iter_mut().for_each(|x| *x = ((*x - mean) * factor + mean).max(low).min(high));
}

/// Raises to a power, relative to the range of the values.
fn gamma(values: &mut [f32], power: f32) {
    let (low, high) = extremes(values);
    let range = high - low;
    if range > 0.0 && range.is_finite() {
        values.iter_mut().for_each(|x| *x = raised((*x - low) / range, power) * range + low);
    }
}

fn extremes(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

/// `x` in \[0, 1\] to a power, within 4e-6 of the exact value. It calls no function, so the
/// compiler can vectorize it.
fn raised(x: f32, power: f32) -> f32 {
    const TWO_OF_LN_2: f32 = std::f32::consts::LOG2_E * 2.0;
    // log2: the mantissa from 1/√2 to √2, by the series of atanh.
    let bits = x.to_bits();
    let shifted = bits.wrapping_sub(0x3F35_04F3);
    let exponent = (shifted as i32) >> 23;
    let mantissa = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    let log = exponent as f32 + TWO_OF_LN_2 * s * series;
    // exp2: the whole part into the exponent, and a Taylor series of the rest.
    let y = (log * power).clamp(-126.0, 126.0);
    let whole = rounded(y);
    let t = (y - whole) * std::f32::consts::LN_2;
    let exp =
        1.0 + t * (1.0 + t * (0.5 + t * (1.0 / 6.0 + t * (1.0 / 24.0 + t * (1.0 / 120.0 + t / 720.0)))));
    let result = f32::from_bits((exp.to_bits() as i32 + ((whole as i32) << 23)) as u32);
    if x > 0.0 { result } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn powers_are_near(x in 1e-6f32..1.0, power in 0.2f32..5.0) {
            let exact = libm::pow(f64::from(x), f64::from(power));
            prop_assert!((f64::from(raised(x, power)) - exact).abs() <= 4e-6, "{} {}", raised(x, power), exact);
        }
    }

    #[test]
    fn powers_keep_the_ends() {
        for power in [0.3, 1.0, 2.7] {
            assert_eq!((raised(0.0, power), raised(1.0, power)), (0.0, 1.0));
        }
    }

    /// Compares with sums over all of a small array.
    #[test]
    fn blurring_is_a_sum_over_neighbours() {
        let (shape, deviation) = ([3, 4, 70], 1.3);
        let values: Vec<f32> = (0..840).map(|i| ((i * 7919) % 101) as f32).collect();
        let mut blurred = values.clone();
        let mut scratch = vec![0.0; (70 + 2 * radius(deviation)) * ABREAST];
        blur(&mut blurred, shape, deviation, &mut scratch);
        let r = radius(deviation) as i64;
        let weight = |away: i64| (-0.5 * (away as f64 / deviation).powi(2)).exp();
        let sum: f64 = (-r..=r).map(weight).sum();
        let mirrored = |at: i64, len: usize| {
            let at = at.rem_euclid(2 * len as i64) as usize;
            if at < len { at } else { 2 * len - 1 - at }
        };
        for (z, y, x) in [(0, 0, 0), (2, 1, 69), (1, 3, 35), (0, 2, 2)] {
            let mut total = 0.0;
            for (dz, dy, dx) in
                (-r..=r).flat_map(|a| (-r..=r).flat_map(move |b| (-r..=r).map(move |c| (a, b, c))))
            {
                let at = [z + dz, y + dy, x + dx];
                let [a, b, c]: [usize; 3] = std::array::from_fn(|i| mirrored(at[i], shape[i]));
                total += weight(dz) * weight(dy) * weight(dx) / sum.powi(3)
                    * f64::from(values[(a * 4 + b) * 70 + c]);
            }
            let got = f64::from(blurred[((z * 4 + y) * 70 + x) as usize]);
            assert!((got - total).abs() < 1e-3, "{got} {total}");
        }
    }

    #[test]
    fn contrast_and_gamma_stay_within_what_the_values_were() {
        let mut values = [0.0, 1.0, 2.0, 5.0];
        contrast(&mut values, 2.0);
        assert_eq!(values, [0.0, 0.0, 2.0, 5.0]);
        let mut values = [1.0, 2.0, 5.0];
        gamma(&mut values, 2.0);
        assert!(values.iter().zip([1.0, 1.25, 5.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?}");
    }
}
