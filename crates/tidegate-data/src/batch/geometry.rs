//! The box of an image that is used, and whether it is mirrored. Both are drawn once a sample and
//! shared by all its fields.
//!
//! Flow: (size, spec, random stream) -> [`Geometry`].
//! Memory: holds none.
//!
//! The random box follows torchvision's RandomResizedCrop.get_params: ten tries, then a centred
//! box. exp, ln and sqrt come from one portable implementation, so that boxes do not depend on the
//! C library or the processor.

use super::spec::{Crop, ImageSpec};
use tidegate_decode::Region;
use tidegate_order::random::{Purpose, Stream};

/// A box and whether it is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The box, in the displayed image.
    pub region: Region,
    /// Whether it is mirrored left to right.
    pub mirror: bool,
}

/// The key of a sample's random draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The loader's seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// The global position.
    pub position: u64,
}

impl Draw {
    /// The random stream for `purpose`.
    #[must_use]
    pub fn stream(&self, purpose: Purpose) -> Stream {
        Stream::new(self.seed, self.epoch, self.position, 0, purpose)
    }
}

/// Draws the geometry of a `width` × `height` image for one sample.
#[must_use]
pub fn geometry(spec: &ImageSpec, (width, height): (u32, u32), draw: Draw) -> Geometry {
    let region = match (spec.crop, spec.size) {
        (Crop::Random, _) => random_box(spec, width, height, &mut draw.stream(Purpose::Crop)),
        (Crop::Center, Some((h, w))) => centre_box(width, height, f64::from(w) / f64::from(h)),
        _ => Region { x: 0, y: 0, width, height },
    };
    let mirror = spec.flip > 0.0 && draw.stream(Purpose::Flip).uniform() < spec.flip;
    Geometry { region, mirror }
}

/// A random box, or a centred one after ten tries.
fn random_box(spec: &ImageSpec, width: u32, height: u32, stream: &mut Stream) -> Region {
    let area = f64::from(width) * f64::from(height);
    let (low, high) = (libm::log(spec.ratio.0), libm::log(spec.ratio.1));
    for _ in 0..10 {
        let target = area * stream.between(spec.scale.0, spec.scale.1);
        let ratio = libm::exp(stream.between(low, high));
        let w = libm::sqrt(target * ratio).round_ties_even();
        let h = libm::sqrt(target / ratio).round_ties_even();
        if w >= 1.0 && h >= 1.0 && w <= f64::from(width) && h <= f64::from(height) {
            let (w, h) = (w as u32, h as u32);
            let y = stream.below(u64::from(height - h) + 1) as u32;
            let x = stream.below(u64::from(width - w) + 1) as u32;
            return Region { x, y, width: w, height: h };
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    centre_box(width, height, ratio.clamp(spec.ratio.0, spec.ratio.1))
}

/// The largest centred box of the aspect ratio `ratio` (width/height).
fn centre_box(width: u32, height: u32, ratio: f64) -> Region {
    let (w, h) = (f64::from(width), f64::from(height));
    let (w, h) =
        if w / h > ratio { ((h * ratio).round_ties_even(), h) } else { (w, (w / ratio).round_ties_even()) };
    let (w, h) = ((w as u32).clamp(1, width), (h as u32).clamp(1, height));
    Region { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
}

/// Converts a box of the displayed image to a box of the stored image, of `width` × `height`
/// pixels.
#[must_use]
pub fn unorient(region: Region, orientation: u8, (width, height): (u32, u32)) -> Region {
    let Region { x, y, width: w, height: h } = region;
    let (sx, sy, sw, sh) = match orientation {
        2 => (width - x - w, y, w, h),
        3 => (width - x - w, height - y - h, w, h),
        4 => (x, height - y - h, w, h),
        5 => (y, x, h, w),
        6 => (y, height - x - w, h, w),
        7 => (width - y - h, height - x - w, h, w),
        8 => (width - y - h, x, h, w),
        _ => (x, y, w, h),
    };
    Region { x: sx, y: sy, width: sw, height: sh }
}

/// How often a box can be halved, up to three times, and still cover (height, width) `to`.
#[must_use]
pub fn halvings(region: Region, to: (u32, u32)) -> u32 {
    let times = (region.width / to.1).min(region.height / to.0);
    times.clamp(1, 8).ilog2()
}

/// The pixels of the halved image that a box touches, and the box within them: (start, length)
/// horizontally and vertically.
#[must_use]
pub fn halved(region: Region, halvings: u32) -> (Region, [(f64, f64); 2]) {
    let span = |start: u32, len: u32| {
        let (first, end) = (start >> halvings, (start + len).div_ceil(1 << halvings));
        let times = f64::from(1 << halvings);
        ((first, end - first), (f64::from(start) / times - f64::from(first), f64::from(len) / times))
    };
    let ((x, width), across) = span(region.x, region.width);
    let ((y, height), down) = span(region.y, region.height);
    (Region { x, y, width, height }, [across, down])
}

/// Copies a stored `width` × `height` image of `channels` bytes a pixel into its displayed
/// orientation.
pub fn orient(from: &[u8], to: &mut [u8], orientation: u8, (width, height): (usize, usize), channels: usize) {
    for (y, row) in from.chunks_exact(width * channels).enumerate() {
        orient_row(row, y, to, orientation, (width, height), channels);
    }
}

/// Copies row `y` of a stored image to its pixels in the displayed image: see [`orient`].
pub fn orient_row(
    row: &[u8],
    y: usize,
    to: &mut [u8],
    orientation: u8,
    (width, height): (usize, usize),
    channels: usize,
) {
    let (w, up) = (width, height - 1 - y);
    // The target indices of the row's first and last pixel, and the distance between neighbours.
    let (first, last, step) = match orientation {
        2 => (y * w + w - 1, y * w, 1),
        3 => (up * w + w - 1, up * w, 1),
        4 => (up * w, up * w + w - 1, 1),
        5 => (y, (w - 1) * height + y, height),
        6 => (up, (w - 1) * height + up, height),
        7 => ((w - 1) * height + up, up, height),
        8 => ((w - 1) * height + y, y, height),
        _ => (y * w, y * w + w - 1, 1),
    };
    for (x, pixel) in row.chunks_exact(channels).enumerate() {
        let at = if first <= last { first + x * step } else { first - x * step } * channels;
        to[at..at + channels].copy_from_slice(pixel);
    }
}

/// Mirrors rows of `width` pixels of `channels` bytes, in place.
pub fn mirror(pixels: &mut [u8], width: usize, channels: usize) {
    for row in pixels.chunks_exact_mut(width * channels) {
        if channels == 1 {
            row.reverse();
            continue;
        }
        for i in 0..width / 2 {
            let j = width - 1 - i;
            for c in 0..channels {
                row.swap(i * channels + c, j * channels + c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draw(position: u64) -> Draw {
        Draw { seed: 1, epoch: 0, position }
    }

    proptest! {
        #[test]
        fn boxes_are_inside(width in 1u32..5000, height in 1u32..5000, position: u64, crop in 0usize..3) {
            let crop = [Crop::Random, Crop::Center, Crop::None][crop];
            let spec = ImageSpec { crop, size: Some((224, 160)), flip: 0.5, ..ImageSpec::default() };
            let Region { x, y, width: w, height: h } = geometry(&spec, (width, height), draw(position)).region;
            prop_assert!(w >= 1 && h >= 1 && x + w <= width && y + h <= height);
        }

        /// Cropping the displayed image equals displaying the crop of the stored one, for all
        /// eight orientations.
        #[test]
        fn orientation_commutes_with_cropping(w in 1usize..7, h in 1usize..7, orientation in 1u8..9, pick: [u32; 4]) {
            let stored: Vec<u8> = (0..(w * h) as u8).collect();
            let mut shown = vec![0; w * h];
            orient(&stored, &mut shown, orientation, (w, h), 1);
            let (sw, sh) = if orientation >= 5 { (h, w) } else { (w, h) };
            let (x, y) = (pick[0] % sw as u32, pick[1] % sh as u32);
            let region = Region {
                x, y, width: 1 + pick[2] % (sw as u32 - x), height: 1 + pick[3] % (sh as u32 - y),
            };
            let cut = |from: &[u8], width: usize, r: Region| -> Vec<u8> {
                let rows = r.y..r.y + r.height;
                rows.flat_map(|y| from[y as usize * width + r.x as usize..][..r.width as usize].to_vec()).collect()
            };
            let inner = unorient(region, orientation, (w as u32, h as u32));
            let part = cut(&stored, w, inner);
            let mut turned = vec![0; part.len()];
            orient(&part, &mut turned, orientation, (inner.width as usize, inner.height as usize), 1);
            prop_assert_eq!(turned, cut(&shown, sw, region));
        }
    }

    /// Frozen, like the streams.
    #[test]
    fn golden_boxes() {
        let spec =
            ImageSpec { crop: Crop::Random, size: Some((224, 224)), flip: 0.5, ..ImageSpec::default() };
        let boxes: Vec<_> = (0..3)
            .map(|p| {
                let g = geometry(&spec, (500, 375), draw(p));
                (g.region.x, g.region.y, g.region.width, g.region.height, g.mirror)
            })
            .collect();
        assert_eq!(boxes, GOLDEN);
    }

    const GOLDEN: [(u32, u32, u32, u32, bool); 3] =
        [(73, 26, 330, 317, false), (89, 2, 361, 342, true), (26, 9, 417, 361, false)];
}
