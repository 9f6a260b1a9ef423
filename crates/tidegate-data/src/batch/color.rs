//! Colour jitter as in torchvision's ColorJitter over Pillow, and conversion to normalized floats.
//!
//! Flow: RGB bytes, changed in place; bytes -> floats in the row of the batch.
//! Memory: holds none.
//!
//! Every operation is on integers or rounds one f32 operation at a time (never fused), so the bits
//! are the same on every processor. Formulas: Pillow's ImageEnhance (blend with a degenerate
//! image, truncated) and its RGB↔HSV conversion.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::spec::{Jitter, Pixels};
use tidegate_decode::npy::DType;
use tidegate_order::random::Stream;

/// Changes brightness, contrast, saturation and hue, in random order, by random amounts.
pub fn jitter(rgb: &mut [u8], spec: &Jitter, stream: &mut Stream) {
    let mut steps = [0, 1, 2, 3];
    for i in (1..steps.len()).rev() {
        steps.swap(i, stream.below(i as u64 + 1) as usize);
    }
    let mut factor = |x: f32| stream.between(f64::from((1.0 - x).max(0.0)), f64::from(1.0 + x)) as f32;
    let (brightness, contrast, saturation) =
        (factor(spec.brightness), factor(spec.contrast), factor(spec.saturation));
    let hue = stream.between(-f64::from(spec.hue), f64::from(spec.hue));
    for step in steps {
        match step {
            0 if spec.brightness > 0.0 => rgb.iter_mut().for_each(|x| *x = blend(0, *x, brightness)),
            1 if spec.contrast > 0.0 => {
                let sum: u64 = rgb.chunks_exact(3).map(|p| u64::from(luma(p))).sum();
                let n = (rgb.len() / 3).max(1) as u64;
                let mean = ((2 * sum + n) / (2 * n)) as u8;
                rgb.iter_mut().for_each(|x| *x = blend(mean, *x, contrast));
            }
            2 if spec.saturation > 0.0 => {
                for pixel in rgb.chunks_exact_mut(3) {
                    let gray = luma(pixel);
                    pixel.iter_mut().for_each(|x| *x = blend(gray, *x, saturation));
                }
            }
            3 if spec.hue > 0.0 => {
                let shift = ((hue * 255.0) as i32) as u8;
                for pixel in rgb.chunks_exact_mut(3) {
                    let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
                    pixel.copy_from_slice(&from_hsv([h.wrapping_add(shift), s, v]));
                }
            }
            _ => {}
        }
    }
}

/// ITU-R 601 luma in 16-bit fixed point.
fn luma(p: &[u8]) -> u8 {
    ((19_595 * u32::from(p[0]) + 38_470 * u32::from(p[1]) + 7_471 * u32::from(p[2]) + 32_768) >> 16) as u8
}

/// `from + factor · (to − from)`, truncated and clamped.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    let x = from + factor * (to - from);
    x.clamp(0.0, 255.0) as u8
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let part = |c: u8| f32::from(most - c) / range;
    let h = if r == most {
        part(b) - part(g)
    } else if g == most {
        2.0 + part(r) - part(b)
    } else {
        4.0 + part(g) - part(r)
    };
    let turned = h / 6.0 + 1.0;
    let h = turned - turned.floor();
    [(h * 255.0) as u8, (range / f32::from(most) * 255.0) as u8, most]
}

fn from_hsv([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v, v, v];
    }
    let turn = f32::from(h) * 6.0 / 255.0;
    let (sector, f) = (turn.floor(), turn - turn.floor());
    let s = f32::from(s) / 255.0;
    let round = |x: f32| (f32::from(v) * x + 0.5).floor().clamp(0.0, 255.0) as u8;
    let (p, q, t) = (round(1.0 - s), round(1.0 - s * f), round(1.0 - s * (1.0 - f)));
    match sector as u32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

/// Scale and shift that normalize bytes of channel `c` as the spec says: x · scale + shift.
fn affine(pixels: &Pixels, c: usize) -> (f32, f32) {
    let (mean, std) = (pixels.mean.map_or(0.0, |m| m[c]), pixels.std.map_or(1.0, |s| s[c]));
    (1.0 / (255.0 * std), -mean / std)
}

/// Writes one plane as little-endian floats of `pixels.dtype`.
pub fn normalize(plane: &[u8], c: usize, pixels: &Pixels, into: &mut [u8]) {
    let (scale, shift) = affine(pixels, c);
    let mut floats = [0f32; 256];
    let size = pixels.dtype.size();
    for (from, to) in plane.chunks(floats.len()).zip(into.chunks_mut(floats.len() * size)) {
        let floats = &mut floats[..from.len()];
        for (f, &x) in floats.iter_mut().zip(from) {
            *f = f32::from(x) * scale + shift;
        }
        write_floats(floats, pixels.dtype, to);
    }
}

/// Writes interleaved RGB as floats of `pixels.dtype`.
pub fn normalize_interleaved(rgb: &[u8], pixels: &Pixels, into: &mut [u8]) {
    let affine = [affine(pixels, 0), affine(pixels, 1), affine(pixels, 2)];
    let mut floats = [0f32; 255];
    let size = pixels.dtype.size();
    for (from, to) in rgb.chunks(floats.len()).zip(into.chunks_mut(floats.len() * size)) {
        let floats = &mut floats[..from.len()];
        for (out, pixel) in floats.chunks_exact_mut(3).zip(from.chunks_exact(3)) {
            for ((f, &x), (scale, shift)) in out.iter_mut().zip(pixel).zip(affine) {
                *f = f32::from(x) * scale + shift;
            }
        }
        write_floats(floats, pixels.dtype, to);
    }
}

fn write_floats(floats: &[f32], dtype: DType, to: &mut [u8]) {
    match dtype {
        DType::Float16 => {
            let mut halves = [f16::ZERO; 256];
            let halves = &mut halves[..floats.len()];
            halves.convert_from_f32_slice(floats);
            for (to, h) in to.chunks_exact_mut(2).zip(halves) {
                to.copy_from_slice(&h.to_le_bytes());
            }
        }
        DType::Bfloat16 => {
            for (to, &f) in to.chunks_exact_mut(2).zip(floats) {
                to.copy_from_slice(&bf16::from_f32(f).to_le_bytes());
            }
        }
        _ => {
            for (to, f) in to.chunks_exact_mut(4).zip(floats) {
                to.copy_from_slice(&f.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::PixelLayout;
    use super::*;
    use tidegate_order::random::Purpose;

    #[test]
    fn hsv_round_trip_is_close_and_gray_is_exact() {
        for r in (0..=255).step_by(15) {
            for g in (0..=255).step_by(15) {
                for b in (0..=255).step_by(15) {
                    let back = from_hsv(to_hsv([r, g, b]));
                    let far = [r, g, b].iter().zip(back).map(|(&a, b)| a.abs_diff(b)).max().unwrap();
                    assert!(far <= 7, "{:?} -> {back:?}", [r, g, b]);
                }
            }
            assert_eq!(from_hsv(to_hsv([r, r, r])), [r, r, r]);
        }
    }

    #[test]
    fn nothing_changes_without_ranges_and_draws_repeat() {
        let image: Vec<u8> = (0..300).map(|i| (i * 7) as u8).collect();
        let run = |spec: &Jitter, position| {
            let mut rgb = image.clone();
            jitter(&mut rgb, spec, &mut Stream::new(1, 0, position, 0, Purpose::Jitter));
            rgb
        };
        let spec = Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
        assert_eq!(run(&Jitter::default(), 0), image);
        assert_eq!(run(&spec, 3), run(&spec, 3));
        assert_ne!(run(&spec, 3), run(&spec, 4));
    }

    #[test]
    fn floats_are_normalized() {
        let pixels = Pixels {
            dtype: DType::Float32,
            mean: Some([0.5, 0.0, 0.0]),
            std: Some([0.25, 1.0, 1.0]),
            layout: PixelLayout::Chw,
        };
        let mut out = [0; 8];
        normalize(&[255, 0], 0, &pixels, &mut out);
        let values = [0, 4].map(|i| f32::from_le_bytes(out[i..i + 4].try_into().unwrap()));
        assert!((values[0] - 2.0).abs() < 1e-6 && (values[1] + 2.0).abs() < 1e-6, "{values:?}");
        for (dtype, one) in [(DType::Float16, 0x3C00u16), (DType::Bfloat16, 0x3F80)] {
            let mut out = [0; 2];
            normalize(&[255], 1, &Pixels { dtype, ..pixels }, &mut out);
            assert_eq!(u16::from_le_bytes(out), one);
        }
    }
}
