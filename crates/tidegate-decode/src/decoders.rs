//! The image decoders of one thread, chosen by format.
//!
//! Flow: bytes + [`Request`] -> the format's decoder -> rows in a [`RowSink`]; called by `batch`.
//! Memory: [`Decoders::KEPT_BYTES`] between images; during one, what its header bounds.

use crate::Result;
use crate::header::Format;
use crate::image::{Decode, Decoded, Request, RowSink};
use crate::jpeg::Jpeg;
use crate::pixels::Pixels;
use crate::png_image::Png;
use crate::webp::Webp;

/// The image decoders of one thread; they keep memory that the next image may use again.
#[derive(Debug, Default)]
pub struct Decoders {
    jpeg: Jpeg,
    png: Png,
    webp: Webp,
    pixels: Pixels,
}

impl Decoders {
    /// Bytes kept between images at most: Huffman tables.
    pub const KEPT_BYTES: u64 = 128 << 10;

    /// Decodes the region of `request` into `rows`. `inner` has at least
    /// [`ImageHeader::inner_bytes`](crate::header::ImageHeader::inner_bytes).
    ///
    /// # Errors
    /// For truncated, damaged or unsupported bytes. Some rows may be written by then.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn RowSink,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{self, ImageHeader};
    use crate::image::tests::Whole;
    use crate::image::{Pixel, Region};

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
            let request = Request {
                header: &header,
                halvings: 0,
                region,
                pixel,
                checkpoints: None,
                fill: false,
                wide_gray: None,
            };
            // The channels of the last of four pixels are 20 × depth, 20 × depth + 1, …
            let data: Vec<u8> = (0..4 * depth).map(|i| 17 * depth + i).collect();
            let bytes = [vec![0; header.data_at], data].concat();
            let mut whole = Whole::new(&request);
            Decoders::default().decode(&bytes, &request, &mut [], &mut whole).unwrap();
            assert_eq!(whole.bytes, expected, "{depth} {pixel:?}");
        }
    }
}
