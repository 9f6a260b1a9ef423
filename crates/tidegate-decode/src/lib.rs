//! From encoded bytes to pixels and arrays.
//!
//! Flow: bytes + header + the region that is wanted -> rows of pixels, one after another, to whoever takes them ([`Rows`]);
//! called by `batch`.
//! Memory: [`ImageHeader::inner_bytes`] of the caller's scratch for decoders that hold a whole picture; what a decoder takes
//! besides is bounded by [`ImageHeader::library_bytes`] and reserved by the caller before.
//! Not here: cropping, resizing and what follows (`batch`).

pub mod compact;
pub mod error;
pub mod header;
mod jpeg;
pub mod npy;
mod png_image;
pub mod schema;
pub mod text;
mod webp;

pub use self::error::{Error, Result};
use self::header::{Format, ImageHeader};
pub use self::jpeg::checkpoints;
pub use self::schema::{Field, Kind, Part, Schema, Value, kind_of_extension};

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

/// What is delivered of each pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pixel {
    /// A palette index or a gray value as it is stored: for masks.
    Raw,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, and a byte that means nothing: what vectors like to read.
    Rgbx,
}

impl Pixel {
    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Pixel::Raw => 1,
            Pixel::Rgb => 3,
            Pixel::Rgbx => 4,
        }
    }
}

/// What the caller needs of a picture: a decoder may do less work for less.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The header, as it was probed.
    pub header: &'a ImageHeader,
    /// How often width and height are halved, up to three times, rounded up: only JPEGs can be decoded smaller than they are.
    pub halvings: u32,
    /// The pixels that are wanted, before orientation, of the halved picture.
    pub region: Region,
    /// What is wanted of each.
    pub pixel: Pixel,
    /// The side-car record of the sample's checkpoints, which a JPEG decoder uses if it is of these bytes.
    pub checkpoints: Option<&'a [u8]>,
    /// A JPEG that ends too early is filled with gray, as libjpeg-turbo does it, instead of an error.
    pub fill: bool,
}

/// How much of the region was in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// All of it.
    Whole,
    /// What a truncated file had: the rest is gray.
    Filled,
}

impl Request<'_> {
    /// The region's columns in a row of `depth` bytes a pixel.
    fn columns(&self, depth: usize) -> std::ops::Range<usize> {
        let (x, width) = (self.region.x as usize, self.region.width as usize);
        depth * x..depth * (x + width)
    }

    /// Whether the picture's row `y` is wanted.
    fn wants(&self, y: u32) -> bool {
        (self.region.y..self.bottom()).contains(&y)
    }

    /// The first row that is no longer wanted.
    fn bottom(&self) -> u32 {
        self.region.y + self.region.height
    }

    fn check(&self) -> Result<()> {
        let Region { x, y, width, height } = self.region;
        let (right, bottom) = (x.saturating_add(width), y.saturating_add(height));
        if self.halvings > 3 || (self.halvings > 0 && self.header.format != Format::Jpeg) {
            return Err(Error::Decode(
                "only a JPEG can be decoded at a half, a quarter or an eighth of its size".into(),
            ));
        }
        let [most_right, most_bottom] =
            [self.header.width, self.header.height].map(|side| side.div_ceil(1 << self.halvings));
        if right > most_right || bottom > most_bottom || width == 0 || height == 0 {
            return Err(Error::Decode("a region outside of the picture".into()));
        }
        Ok(())
    }
}

/// Who takes the rows of a region, from its top to its bottom.
pub trait Rows {
    /// Room for the next row, of as many pixels as the region is wide.
    fn room(&mut self) -> &mut [u8];
    /// The row is written.
    fn done(&mut self);
}

/// A decoder of one format; object-safe.
pub trait Decode: Send + std::fmt::Debug {
    /// Decodes the region of `request` into `rows`. `inner` holds [`ImageHeader::inner_bytes`] at least.
    ///
    /// # Errors
    /// [`Error::Decode`] in words, for truncated or damaged bytes; some rows may be written by then.
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn Rows,
    ) -> Result<Decoded>;
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

    /// Decodes the region of `request` into `rows`. `inner` holds [`ImageHeader::inner_bytes`] at least.
    ///
    /// # Errors
    /// [`Error::Decode`] in words, for truncated or damaged bytes; some rows may be written by then.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn Rows,
    ) -> Result<Decoded> {
        request.check()?;
        let decoder: &mut dyn Decode = match request.header.format {
            Format::Jpeg => &mut self.jpeg,
            Format::Png => &mut self.png,
            Format::Webp => &mut self.webp,
            Format::Pixels => &mut self.pixels,
        };
        decoder.decode(bytes, request, inner, rows)
    }
}

/// Uncompressed pixels as MDS' `pil` column holds them.
#[derive(Debug, Default)]
struct Pixels;

impl Decode for Pixels {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        _: &mut [u8],
        rows: &mut dyn Rows,
    ) -> Result<Decoded> {
        let h = request.header;
        let depth = h.components as usize;
        let data = bytes.get(h.data_at..).unwrap_or_default();
        let belong = h.width as usize * h.height as usize * depth;
        if data.len() != belong {
            return Err(Error::Decode(format!("{} bytes of pixels where {belong} belong", data.len())));
        }
        if request.pixel == Pixel::Raw && depth != 1 {
            return Err(Error::Decode("a mask must have one channel".into()));
        }
        give_rows(data, depth, request, rows);
        Ok(Decoded::Whole)
    }
}

/// Gives the region's rows of a whole picture of `depth` bytes a pixel.
fn give_rows(picture: &[u8], depth: usize, request: &Request<'_>, rows: &mut dyn Rows) {
    let stride = request.header.width as usize * depth;
    let wanted = request.region.y as usize..request.bottom() as usize;
    for row in picture.chunks_exact(stride).take(wanted.end).skip(wanted.start) {
        give_row(&row[request.columns(depth)], depth, request.pixel, rows);
    }
}

/// Gives a row of `depth` bytes a pixel: gray is repeated, alpha is left out.
fn give_row(from: &[u8], depth: usize, pixel: Pixel, rows: &mut dyn Rows) {
    let to = rows.room();
    let pixels = to.chunks_exact_mut(pixel.bytes()).zip(from.chunks_exact(depth));
    match (pixel, depth) {
        (Pixel::Raw, _) => pixels.for_each(|(to, from)| to[0] = from[0]),
        (_, 1 | 2) => pixels.for_each(|(to, from)| to[..3].fill(from[0])),
        (Pixel::Rgb, 3) => to.copy_from_slice(from),
        _ => pixels.for_each(|(to, from)| to[..3].copy_from_slice(&from[..3])),
    }
    rows.done();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Takes rows into one picture.
    #[derive(Debug, Default)]
    pub(crate) struct Whole {
        pub(crate) bytes: Vec<u8>,
        stride: usize,
        rows: usize,
    }

    impl Whole {
        pub(crate) fn of(request: &Request<'_>) -> Self {
            let stride = request.region.width as usize * request.pixel.bytes();
            Self { bytes: vec![0; stride * request.region.height as usize], stride, rows: 0 }
        }
    }

    impl Rows for Whole {
        fn room(&mut self) -> &mut [u8] {
            &mut self.bytes[self.rows * self.stride..][..self.stride]
        }

        fn done(&mut self) {
            self.rows += 1;
        }
    }

    #[test]
    fn rows_of_any_depth_become_pixels() {
        let header = |depth| ImageHeader {
            components: depth,
            ..header::pixels(b"\x02\0\0\0\x02\0\0\0\x01\0\0\0L").unwrap()
        };
        for (depth, pixel, expected) in [
            (1, Pixel::Raw, vec![20]),
            (1, Pixel::Rgb, vec![20, 20, 20]),
            (3, Pixel::Rgb, vec![60, 61, 62]),
            (3, Pixel::Rgbx, vec![60, 61, 62, 0]),
            (4, Pixel::Rgb, vec![80, 81, 82]),
        ] {
            let header = header(depth);
            let region = Region { x: 1, y: 1, width: 1, height: 1 };
            let request =
                Request { header: &header, halvings: 0, region, pixel, checkpoints: None, fill: false };
            // The channels of the last of four pixels are 20 depth and what follows.
            let data: Vec<u8> = (0..4 * depth).map(|i| 17 * depth + i).collect();
            let bytes = [vec![0; header.data_at], data].concat();
            let mut whole = Whole::of(&request);
            Decoders::default().decode(&bytes, &request, &mut [], &mut whole).unwrap();
            assert_eq!(whole.bytes, expected, "{depth} {pixel:?}");
        }
    }
}
