//! WebP, decoded by image-webp: the first frame of an animation.
//!
//! Flow: bytes -> the whole image in scratch -> rows of the region.
//! Memory: the caller's scratch; image-webp allocates at most `ImageHeader::library_bytes`.

use std::io::Cursor;

use image_webp::WebPDecoder;

use crate::image::{Decode, Decoded, Pixel, Request, RowSink, write_rows};
use crate::webp_codes;
use crate::{Error, Result};

/// The WebP decoder; it keeps nothing between images.
#[derive(Debug, Default)]
pub(super) struct Webp;

impl Decode for Webp {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn RowSink,
    ) -> Result<Decoded> {
        if request.pixel == Pixel::Raw {
            return Err(Error::unsupported("a mask must have one channel; WebP has colours"));
        }
        let stated = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if (bytes.len() as u64) < u64::from(stated) + 8 {
            return Err(Error::truncated("truncated WebP: the file ends within the image"));
        }
        let size = (request.header.width as usize, request.header.height as usize);
        let tables = webp_codes::table_bytes(bytes, size);
        if tables > request.header.code_bytes() {
            return Err(Error::too_large(format!(
                "a WebP of {} × {} pixels whose codes take {} MiB: encode it again",
                request.header.width,
                request.header.height,
                tables >> 20
            )));
        }
        let to_error = |e: image_webp::DecodingError| Error::decode(format!("damaged WebP: {e}"));
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(to_error)?;
        let (width, height) = decoder.dimensions();
        if (width, height) != (request.header.width, request.header.height) {
            return Err(Error::decode("the WebP states two different sizes"));
        }
        let needed = decoder
            .output_buffer_size()
            .filter(|&n| n <= inner.len())
            .ok_or_else(|| Error::too_large("this WebP needs more bytes than its header promised"))?;
        decoder.read_image(&mut inner[..needed]).map_err(to_error)?;
        write_rows(inner, if decoder.has_alpha() { 4 } else { 3 }, request, rows);
        Ok(Decoded::Whole)
    }
}
