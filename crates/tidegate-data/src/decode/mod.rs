//! From encoded bytes to pixels and arrays.
//!
//! Flow: bytes + header + the region that is wanted -> RGB rows in the caller's scratch; called by `batch`.
//! Memory: the picture goes into the caller's scratch (account `scratch`); what a decoder takes besides is bounded by
//! [`header::ImageHeader::library_bytes`] and reserved by the caller before.
//! Not here: cropping, resizing and what follows (`batch`).

pub mod header;
mod jpeg;
pub mod npy;
mod png_image;
pub mod simd;
mod webp;

use self::header::{Format, ImageHeader};
pub use self::jpeg::checkpoints;
use crate::{Error, Result};

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Region {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

/// What the caller needs of a picture: a decoder may do less work for less.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The header, as it was probed.
    pub header: &'a ImageHeader,
    /// The pixels that will be looked at, before orientation.
    pub region: Region,
    /// The side-car record of the sample's checkpoints, which a JPEG decoder uses if it is of these bytes.
    pub checkpoints: Option<&'a [u8]>,
    /// Palette indices and gray values as they are, one byte a pixel: for masks.
    pub raw: bool,
}

/// Pixels in scratch memory: rows of `region`, 3 bytes a pixel, or 1 where raw values were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    /// What was decoded: it contains the region asked for.
    pub region: Region,
    /// Bytes a pixel.
    pub channels: u32,
}

impl Picture {
    /// Bytes of the picture at the start of the scratch memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.region.width as usize * self.region.height as usize * self.channels as usize
    }

    /// A rectangle of the stored image, in pixels of this part of it.
    #[must_use]
    pub fn within(&self, region: Region) -> Region {
        let x = region.x.saturating_sub(self.region.x);
        Region { x, y: region.y.saturating_sub(self.region.y), ..region }
    }
}

/// A decoder of one format; object-safe.
pub trait Decode: Send + std::fmt::Debug {
    /// Decodes at least `request.region` into the start of `into`, which holds
    /// [`ImageHeader::decoded_bytes`] at least.
    ///
    /// # Errors
    /// [`Error::Decode`] in words, for truncated or damaged bytes.
    fn decode(&mut self, bytes: &[u8], request: &Request<'_>, into: &mut [u8]) -> Result<Picture>;
}

/// The decoders of one thread, which keep what the next picture may use again.
#[derive(Debug, Default)]
pub struct Decoders {
    jpeg: jpeg::Jpeg,
    png: png_image::Png,
    webp: webp::Webp,
    pixels: Pixels,
}

impl Decoders {
    /// What they keep at most: Huffman tables.
    pub const KEPT_BYTES: u64 = 128 << 10;

    /// The decoder of a format.
    pub fn of(&mut self, format: Format) -> &mut dyn Decode {
        match format {
            Format::Jpeg => &mut self.jpeg,
            Format::Png => &mut self.png,
            Format::Webp => &mut self.webp,
            Format::Pixels => &mut self.pixels,
        }
    }
}

/// Uncompressed pixels as MDS' `pil` column holds them.
#[derive(Debug, Default)]
struct Pixels;

impl Decode for Pixels {
    fn decode(&mut self, bytes: &[u8], request: &Request<'_>, into: &mut [u8]) -> Result<Picture> {
        let h = request.header;
        let n = h.width as usize * h.height as usize;
        let data = bytes.get(h.data_at..).unwrap_or_default();
        let depth = h.components as usize;
        if data.len() != n * depth {
            return Err(Error::Decode(format!("{} bytes of pixels where {} belong", data.len(), n * depth)));
        }
        let region = Region { x: 0, y: 0, width: h.width, height: h.height };
        match (depth, request.raw) {
            (1, true) => into[..n].copy_from_slice(data),
            (1, false) => spread_gray(data, &mut into[..n * 3]),
            (3 | 4, false) => {
                for (to, from) in into[..n * 3].chunks_exact_mut(3).zip(data.chunks_exact(depth)) {
                    to.copy_from_slice(&from[..3]);
                }
            }
            _ => return Err(Error::Decode("a mask must have one channel".into())),
        }
        Ok(Picture { region, channels: if request.raw { 1 } else { 3 } })
    }
}

/// Gray to RGB.
fn spread_gray(gray: &[u8], rgb: &mut [u8]) {
    for (to, &from) in rgb.chunks_exact_mut(3).zip(gray) {
        to.fill(from);
    }
}

/// Turns `n` pixels of `from` bytes into pixels of 3 bytes, in place: gray is repeated, alpha is left out.
fn to_rgb_in_place(buffer: &mut [u8], n: usize, from: usize) {
    match from {
        // Backwards: a pixel is written past every pixel that is still to be read.
        1 | 2 => {
            for i in (0..n).rev() {
                let v = buffer[i * from];
                buffer[i * 3..i * 3 + 3].fill(v);
            }
        }
        4 => {
            for i in 0..n {
                buffer.copy_within(i * 4..i * 4 + 3, i * 3);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_in_place() {
        for (from, pixels) in [(1usize, vec![1u8, 2, 3]), (2, vec![1, 9, 2, 9, 3, 9]), (4, (0..12).collect())]
        {
            let mut buffer = vec![0u8; 12];
            buffer[..pixels.len()].copy_from_slice(&pixels);
            to_rgb_in_place(&mut buffer, 3, from);
            let expected: [u8; 9] =
                if from == 4 { [0, 1, 2, 4, 5, 6, 8, 9, 10] } else { [1, 1, 1, 2, 2, 2, 3, 3, 3] };
            assert_eq!(buffer[..9], expected, "{from} channels");
        }
    }
}
