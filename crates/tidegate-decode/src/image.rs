//! What every image decoder shares: the region that is wanted, the sink that takes its rows, the
//! [`Decode`] trait.
//!
//! Flow: a decoder's pixels -> [`write_row`] -> the caller's [`RowSink`]; called by every format.
//! Memory: holds none.

use crate::header::{Format, ImageHeader};
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

/// Which values of a pixel are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pixel {
    /// A palette index or a gray value as it is stored: for masks.
    Raw,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue and a byte of undefined value: vector code reads four bytes at once.
    Rgbx,
}

impl Pixel {
    /// Bytes of one pixel.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Pixel::Raw => 1,
            Pixel::Rgb => 3,
            Pixel::Rgbx => 4,
        }
    }
}

/// The part of an image that the caller wants: a decoder may do less work for a smaller part.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The probed header.
    pub header: &'a ImageHeader,
    /// How often width and height are halved: 0 to 3, sizes rounded up. Only a JPEG can be decoded
    /// at a smaller size.
    pub halvings: u32,
    /// The wanted pixels, in the halved image, before orientation.
    pub region: Region,
    /// The wanted values of each pixel.
    pub pixel: Pixel,
    /// The sample's checkpoint record from the side-car file. The JPEG decoder uses it if it
    /// belongs to these bytes.
    pub checkpoints: Option<&'a [u8]>,
    /// Fill a JPEG that ends too early with gray, as libjpeg-turbo does, instead of failing.
    pub fill: bool,
    /// How 16-bit gray becomes 8 bits; None refuses it.
    pub wide_gray: Option<WideGray>,
}

/// How 16-bit gray becomes 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WideGray {
    /// The upper eight bits, as for 16-bit colour, and as OpenCV.
    Scale,
    /// Values above 255 become 255, as by Pillow's `convert`.
    Clip,
}

/// How much of the region the file contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// All of it.
    Whole,
    /// The part that a truncated file contained; the rest is gray.
    Filled,
}

impl Request<'_> {
    /// The byte range of the region's columns in a row of `depth` bytes a pixel.
    pub(crate) fn columns(&self, depth: usize) -> std::ops::Range<usize> {
        let (x, width) = (self.region.x as usize, self.region.width as usize);
        depth * x..depth * (x + width)
    }

    /// Whether row `y` of the image is wanted.
    pub(crate) fn wants(&self, y: u32) -> bool {
        (self.region.y..self.bottom()).contains(&y)
    }

    /// The first row below the region.
    pub(crate) fn bottom(&self) -> u32 {
        self.region.y + self.region.height
    }

    /// Checks that the region is within the image and that the format can be halved.
    ///
    /// # Errors
    /// [`Error::Internal`]: callers compute regions from the header.
    pub(crate) fn check(&self) -> Result<()> {
        let Region { x, y, width, height } = self.region;
        let (right, bottom) = (x.saturating_add(width), y.saturating_add(height));
        if self.halvings > 3 || (self.halvings > 0 && self.header.format != Format::Jpeg) {
            return Err(Error::internal(
                "only a JPEG can be decoded at a half, a quarter or an eighth of its size",
            ));
        }
        let [most_right, most_bottom] =
            [self.header.width, self.header.height].map(|side| side.div_ceil(1 << self.halvings));
        if right > most_right || bottom > most_bottom || width == 0 || height == 0 {
            return Err(Error::internal("a region outside of the image"));
        }
        Ok(())
    }
}

/// Takes the rows of a region, from its top to its bottom.
pub trait RowSink {
    /// The buffer for the next row: as many pixels as the region is wide.
    fn next_row(&mut self) -> &mut [u8];
    /// Says that the row of the last [`RowSink::next_row`] is written.
    fn finish_row(&mut self);
}

/// A decoder of one format; object-safe.
pub trait Decode: Send + std::fmt::Debug {
    /// Decodes the region of `request` into `rows`. `inner` has at least
    /// [`ImageHeader::inner_bytes`].
    ///
    /// # Errors
    /// For truncated, damaged or unsupported bytes. Some rows may be written by then.
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn RowSink,
    ) -> Result<Decoded>;
}

/// Writes the region's rows of a whole image of `depth` bytes a pixel.
pub(crate) fn write_rows(image: &[u8], depth: usize, request: &Request<'_>, rows: &mut dyn RowSink) {
    let stride = request.header.width as usize * depth;
    let wanted = request.region.y as usize..request.bottom() as usize;
    for row in image.chunks_exact(stride).take(wanted.end).skip(wanted.start) {
        write_row(&row[request.columns(depth)], depth, request.pixel, rows);
    }
}

/// Writes one row of `depth` bytes a pixel. Gray is repeated; alpha is dropped.
pub(crate) fn write_row(from: &[u8], depth: usize, pixel: Pixel, rows: &mut dyn RowSink) {
    let to = rows.next_row();
    let pixels = to.chunks_exact_mut(pixel.bytes()).zip(from.chunks_exact(depth));
    match (pixel, depth) {
        (Pixel::Raw, _) => pixels.for_each(|(to, from)| to[0] = from[0]),
        (_, 1 | 2) => pixels.for_each(|(to, from)| to[..3].fill(from[0])),
        (Pixel::Rgb, 3) => to.copy_from_slice(from),
        _ => pixels.for_each(|(to, from)| to[..3].copy_from_slice(&from[..3])),
    }
    rows.finish_row();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Collects rows into one image.
    #[derive(Debug, Default)]
    pub(crate) struct Whole {
        pub(crate) bytes: Vec<u8>,
        stride: usize,
        rows: usize,
    }

    impl Whole {
        pub(crate) fn new(request: &Request<'_>) -> Self {
            let stride = request.region.width as usize * request.pixel.bytes();
            Self { bytes: vec![0; stride * request.region.height as usize], stride, rows: 0 }
        }
    }

    impl RowSink for Whole {
        fn next_row(&mut self) -> &mut [u8] {
            &mut self.bytes[self.rows * self.stride..][..self.stride]
        }

        fn finish_row(&mut self) {
            self.rows += 1;
        }
    }
}
