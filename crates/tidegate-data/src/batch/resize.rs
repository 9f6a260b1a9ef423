//! Antialiased bilinear resizing by fast_image_resize; nearest for masks.
//!
//! Flow: a box of a decoded picture -> pixels of the target size.
//! Memory: an intermediate picture inside the library, bounded by [`library_bytes`] and reserved by the caller.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{CpuExtensions, FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::decode::Region;
use crate::{Error, Result};

/// A resizer of one thread: it keeps its intermediate buffer.
#[derive(Debug)]
pub struct Scaler {
    resizer: Resizer,
    options: ResizeOptions,
}

impl Default for Scaler {
    fn default() -> Self {
        Self::new(crate::decode::simd::enabled())
    }
}

/// What the library takes at most to resize a picture of `width` × `height` to (height, width) `size`: the picture
/// resized along one axis, and coefficients.
#[must_use]
pub fn library_bytes((width, height): (u32, u32), size: (u32, u32)) -> u64 {
    let (w, h) = (u64::from(width), u64::from(height));
    let (th, tw) = (u64::from(size.0), u64::from(size.1));
    let window = |from: u64, to: u64| 2 * from.div_ceil(to.max(1)) + 3;
    3 * (w * th + 64) + (tw * (16 * window(w, tw) + 40)) + (th * (16 * window(h, th) + 40)) + (16 << 10)
}

impl Scaler {
    #[expect(unsafe_code, reason = "choosing no vector instructions is sound on every processor")]
    fn new(simd: bool) -> Self {
        let mut resizer = Resizer::new();
        if !simd {
            // SAFETY: `None` asks for no instruction that a processor could lack.
            unsafe { resizer.set_cpu_extensions(CpuExtensions::None) };
        }
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        Self { resizer, options }
    }

    /// Resizes the box of an RGB picture to `size` (height, width), as if the box were cut out first.
    ///
    /// # Errors
    /// [`Error::Decode`] when the box lies outside.
    pub fn rgb(
        &mut self,
        pixels: &[u8],
        (width, height): (u32, u32),
        region: Region,
        (to_height, to_width): (u32, u32),
        into: &mut [u8],
    ) -> Result<()> {
        let words = |e: String| Error::Decode(format!("resize: {e}"));
        let source =
            ImageRef::new(width, height, pixels, PixelType::U8x3).map_err(|e| words(e.to_string()))?;
        let cut = CroppedImage::new(&source, region.x, region.y, region.width, region.height)
            .map_err(|e| words(e.to_string()))?;
        let mut target = Image::from_slice_u8(to_width, to_height, into, PixelType::U8x3)
            .map_err(|e| words(e.to_string()))?;
        self.resizer.resize(&cut, &mut target, &self.options).map_err(|e| words(e.to_string()))
    }
}

/// The nearest value, one byte a pixel; sample places are accumulated as Pillow does.
pub fn nearest(
    pixels: &[u8],
    width: u32,
    region: Region,
    (to_height, to_width): (u32, u32),
    into: &mut [u8],
) {
    let places = |start: u32, len: u32, to: u32| {
        let step = f64::from(len) / f64::from(to);
        let mut at = f64::from(start) + 0.5 * step;
        (0..to).map(move |_| {
            let place = (at as u32).min(start + len - 1) as usize;
            at += step;
            place
        })
    };
    for (y, row) in places(region.y, region.height, to_height).zip(into.chunks_exact_mut(to_width as usize)) {
        let from = &pixels[y * width as usize..][..width as usize];
        for (x, pixel) in places(region.x, region.width, to_width).zip(row) {
            *pixel = from[x];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_equal_scalars_and_a_flat_picture_stays_flat() {
        let (w, h) = (97u32, 61u32);
        let picture: Vec<u8> = (0..w * h * 3).map(|i| (i * i % 251) as u8).collect();
        let region = Region { x: 3, y: 5, width: 80, height: 41 };
        let run = |simd, picture: &[u8]| {
            let mut out = vec![0; 31 * 47 * 3];
            Scaler::new(simd).rgb(picture, (w, h), region, (31, 47), &mut out).unwrap();
            out
        };
        assert_eq!(run(true, &picture), run(false, &picture));
        assert!(run(true, &vec![77; picture.len()]).iter().all(|&x| x == 77));
    }

    #[test]
    fn nearest_takes_stored_values_only() {
        let picture: Vec<u8> = (0..20).collect();
        let mut out = [0; 4];
        nearest(&picture, 5, Region { x: 1, y: 0, width: 4, height: 4 }, (2, 2), &mut out);
        assert_eq!(out, [7, 9, 17, 19]);
    }
}
