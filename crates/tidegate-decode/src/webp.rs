//! WebP by image-webp: pure Rust, the first frame of an animation.
//!
//! Flow: bytes -> the whole picture in scratch -> rows of the region.
//! Memory: scratch of the caller, and what `ImageHeader::library_bytes` bounds.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::{Decode, Decoded, Pixel, Request, Rows, give_rows};
use crate::{Error, Result};

#[derive(Debug, Default)]
pub(super) struct Webp;

impl Decode for Webp {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn Rows,
    ) -> Result<Decoded> {
        if request.pixel == Pixel::Raw {
            return Err(Error::Decode("a mask must have one channel; WebP has colours".into()));
        }
        let stated = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if (bytes.len() as u64) < u64::from(stated) + 8 {
            return Err(Error::Decode("truncated WebP: the file ends within the picture".into()));
        }
        let words = |e: image_webp::DecodingError| Error::Decode(format!("damaged WebP: {e}"));
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(words)?;
        let (width, height) = decoder.dimensions();
        if (width, height) != (request.header.width, request.header.height) {
            return Err(Error::Decode("the WebP header changes its mind about the size".into()));
        }
        let needed = decoder
            .output_buffer_size()
            .filter(|&n| n <= inner.len())
            .ok_or_else(|| Error::Decode("this WebP needs more bytes than its header promised".into()))?;
        decoder.read_image(&mut inner[..needed]).map_err(words)?;
        give_rows(inner, if decoder.has_alpha() { 4 } else { 3 }, request, rows);
        Ok(Decoded::Whole)
    }
}
