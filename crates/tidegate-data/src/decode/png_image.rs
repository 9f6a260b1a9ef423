//! PNG by the png crate: 8-bit RGB as Pillow's `convert("RGB")` gives it, or raw values for masks.
//!
//! Flow: bytes -> RGB rows (or one byte a pixel) in scratch.
//! Memory: scratch of the caller, and what `ImageHeader::library_bytes` bounds.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::{Decode, Picture, Region, Request, to_rgb_in_place};
use crate::{Error, Result};

/// What ancillary chunks may take.
const ANCILLARY_BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Png;

impl Decode for Png {
    fn decode(&mut self, bytes: &[u8], request: &Request<'_>, into: &mut [u8]) -> Result<Picture> {
        let words = |e: png::DecodingError| {
            let cut = matches!(&e, png::DecodingError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof);
            Error::Decode(if cut {
                "truncated PNG: the file ends within the picture".into()
            } else {
                format!("damaged PNG: {e}")
            })
        };
        let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: ANCILLARY_BYTES });
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let info = decoder.read_header_info().map_err(words)?;
        let (color, depth) = (info.color_type, info.bit_depth);
        let wide_gray = color == ColorType::Grayscale && depth == BitDepth::Sixteen;
        decoder.set_transformations(match (request.raw, color) {
            // Palette indices as they are; gray of less than 8 bits unpacked without scaling is not offered, so expand.
            (true, ColorType::Indexed) => Transformations::IDENTITY,
            _ if wide_gray => Transformations::IDENTITY,
            _ => Transformations::EXPAND | Transformations::STRIP_16,
        });
        let mut reader = decoder.read_info().map_err(words)?;
        let needed = reader.output_buffer_size().unwrap_or(usize::MAX);
        let (width, height) = (request.header.width, request.header.height);
        let n = width as usize * height as usize;
        if needed > into.len() {
            return Err(Error::Decode(format!(
                "this PNG needs {needed} bytes, more than its header promised"
            )));
        }
        let frame = reader.next_frame(&mut into[..needed]).map_err(words)?;
        if (frame.width, frame.height) != (width, height) {
            return Err(Error::Decode("an animated PNG whose first frame is smaller than its canvas".into()));
        }
        let channels = if request.raw {
            raw_values(into, &frame, n)?;
            1
        } else {
            if wide_gray {
                // As Pillow: 16-bit gray is clipped to 255, not scaled.
                for i in 0..n {
                    into[i] = if into[2 * i] > 0 { 255 } else { into[2 * i + 1] };
                }
            }
            let from = match frame.color_type {
                ColorType::Grayscale => 1,
                ColorType::GrayscaleAlpha => 2,
                ColorType::Rgba => 4,
                _ => 3,
            };
            to_rgb_in_place(into, n, from);
            3
        };
        Ok(Picture { region: Region { x: 0, y: 0, width, height }, channels })
    }
}

/// Packs palette indices or gray values to one byte a pixel.
fn raw_values(into: &mut [u8], frame: &png::OutputInfo, n: usize) -> Result<()> {
    match (frame.color_type, frame.bit_depth) {
        (ColorType::Indexed, BitDepth::Eight) | (ColorType::Grayscale, BitDepth::Eight) => Ok(()),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => {
            for i in 0..n {
                into[i] = into[2 * i];
            }
            Ok(())
        }
        (ColorType::Indexed, depth) => {
            let (bits, line) = (depth as usize, frame.line_size);
            let (width, height) = (frame.width as usize, frame.height as usize);
            // Backwards, so that a packed byte is read before its place is written.
            for y in (0..height).rev() {
                for x in (0..width).rev() {
                    let byte = into[y * line + x * bits / 8];
                    let shift = 8 - bits - x * bits % 8;
                    into[y * width + x] = byte >> shift & ((1u16 << bits) - 1) as u8;
                }
            }
            Ok(())
        }
        (color, depth) => {
            Err(Error::Decode(format!("a mask must have one channel of 8 bits, not {color:?} {depth:?}")))
        }
    }
}
