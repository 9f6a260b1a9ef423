//! JPEG by zune-jpeg: pure Rust, whole pictures.
//!
//! Flow: bytes -> RGB rows in scratch.
//! Memory: scratch of the caller, and what `ImageHeader::library_bytes` bounds.
//!
//! zune's strict mode misses a truncation within the last row of blocks, so the end marker is checked here: what Pillow
//! calls truncated is an error here too.

use std::io::Seek;

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{Decode, Picture, Region, Request};
use crate::{Error, Result};

#[derive(Debug)]
pub(super) struct Jpeg;

impl Decode for Jpeg {
    fn decode(&mut self, bytes: &[u8], request: &Request<'_>, into: &mut [u8]) -> Result<Picture> {
        let header = request.header;
        if !matches!(header.components, 1 | 3 | 4) || header.bits != 8 {
            return Err(Error::Decode(format!(
                "a JPEG of {} components of {} bits: only 1, 3 or 4 of 8 bits can be decoded",
                header.components, header.bits
            )));
        }
        if request.raw && header.components != 1 {
            return Err(Error::Decode("a mask must have one channel; this JPEG has colours".into()));
        }
        let (space, channels) = if request.raw { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
        let options = DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(65_535)
            .set_max_height(65_535)
            .jpeg_set_max_scans(100)
            .jpeg_set_out_colorspace(space);
        let mut cursor = ZCursor::new(bytes);
        let mut decoder = Box::new(JpegDecoder::new_with_options(&mut cursor, options));
        let words = |e: zune_jpeg::errors::DecodeErrors| {
            let text = format!("{e:?}");
            let cut = ["Premature end", "ExhaustedData", "IoErrors"].iter().any(|w| text.contains(w));
            Error::Decode(if cut { "truncated JPEG: the file ends within the picture".into() } else { in_words(&text) })
        };
        decoder.decode_headers().map_err(words)?;
        let n = decoder.output_buffer_size().unwrap_or(usize::MAX);
        let region = Region { x: 0, y: 0, width: header.width, height: header.height };
        let picture = Picture { region, channels };
        if n != picture.bytes() || n > into.len() {
            return Err(Error::Decode("the JPEG header changes its mind about the size".into()));
        }
        decoder.decode_into(&mut into[..n]).map_err(words)?;
        drop(decoder);
        let end = cursor.stream_position().map_or(bytes.len(), |p| (p as usize).min(bytes.len()));
        if !bytes[..end].ends_with(&[0xFF, 0xD9]) {
            return Err(Error::Decode("truncated JPEG: the end marker is missing".into()));
        }
        Ok(picture)
    }
}

fn in_words(text: &str) -> String {
    if text.contains("Number of components cannot be zero") {
        return "an arithmetic-coded, lossless or hierarchical JPEG: re-encode it as baseline or progressive".into();
    }
    format!("damaged JPEG: {text}")
}
