//! PNG by the png crate: 8-bit RGB as Pillow's `convert("RGB")` gives it, or raw values for masks.
//!
//! Flow: bytes -> rows, of which nothing below the region is inflated; interlaced ones -> the whole picture in scratch -> rows.
//! Memory: scratch of the caller for interlaced pictures, and what `ImageHeader::library_bytes` bounds.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Reader, Transformations};

use super::{Decode, Decoded, Pixel, Request, Rows, give_row};
use crate::{Error, Result};

/// What ancillary chunks may take.
const ANCILLARY_BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Png;

/// How the library gives pixels.
#[derive(Debug, Clone, Copy)]
enum Given {
    /// So many bytes each.
    Bytes(usize),
    /// 16-bit gray.
    WideGray,
    /// Palette indices of so many bits.
    Packed(usize),
}

impl Decode for Png {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn Rows,
    ) -> Result<Decoded> {
        let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: ANCILLARY_BYTES });
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let info = decoder.read_header_info().map_err(words)?;
        let (color, depth) = (info.color_type, info.bit_depth);
        let wide_gray = color == ColorType::Grayscale && depth == BitDepth::Sixteen;
        decoder.set_transformations(match (request.pixel, color) {
            // Palette indices as they are; gray of less than 8 bits unpacked without scaling is not offered, so expand.
            (Pixel::Raw, ColorType::Indexed) => Transformations::IDENTITY,
            _ if wide_gray => Transformations::IDENTITY,
            _ => Transformations::EXPAND | Transformations::STRIP_16,
        });
        let mut reader = decoder.read_info().map_err(words)?;
        let given = given(request.pixel, reader.output_color_type())?;
        let size = (request.header.width, request.header.height);
        let first = reader.info().frame_control().map_or(reader.info().size(), |f| (f.width, f.height));
        if first != size || reader.info().size() != size {
            return Err(Error::Decode("an animated PNG whose first frame is smaller than its canvas".into()));
        }
        if reader.info().interlaced {
            whole(&mut reader, given, request, inner, rows)?;
            return Ok(Decoded::Whole);
        }
        // Of a file without an end, all is looked at: it may be cut within the picture.
        let ended = bytes.windows(4).rev().any(|word| word == b"IEND");
        let end = if ended { request.bottom() } else { request.header.height };
        for y in 0..end {
            let row = reader.next_row().map_err(words)?;
            let row = row.ok_or_else(|| Error::Decode("damaged PNG: rows are missing".into()))?;
            if request.wants(y) {
                give(row.data(), given, request, rows);
            }
        }
        Ok(Decoded::Whole)
    }
}

fn words(error: png::DecodingError) -> Error {
    let cut =
        matches!(&error, png::DecodingError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof);
    Error::Decode(if cut {
        "truncated PNG: the file ends within the picture".into()
    } else {
        format!("damaged PNG: {error}")
    })
}

fn given(pixel: Pixel, (color, depth): (ColorType, BitDepth)) -> Result<Given> {
    match (color, depth, pixel) {
        (ColorType::Grayscale, BitDepth::Eight, _) => Ok(Given::Bytes(1)),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, _) => Ok(Given::Bytes(2)),
        (ColorType::Indexed, depth, Pixel::Raw) => Ok(Given::Packed(depth as usize)),
        (color, depth, Pixel::Raw) => {
            Err(Error::Decode(format!("a mask must have one channel of 8 bits, not {color:?} {depth:?}")))
        }
        (ColorType::Grayscale, ..) => Ok(Given::WideGray),
        (ColorType::Rgba, ..) => Ok(Given::Bytes(4)),
        _ => Ok(Given::Bytes(3)),
    }
}

fn whole(
    reader: &mut Reader<Cursor<&[u8]>>,
    given: Given,
    request: &Request<'_>,
    inner: &mut [u8],
    rows: &mut dyn Rows,
) -> Result<()> {
    let needed = reader.output_buffer_size().unwrap_or(usize::MAX);
    let picture = inner.get_mut(..needed).ok_or_else(|| {
        Error::Decode(format!("this PNG needs {needed} bytes, more than its header promised"))
    })?;
    let line = reader.next_frame(picture).map_err(words)?.line_size;
    let wanted = request.region.y as usize..request.bottom() as usize;
    for row in picture.chunks_exact(line).take(wanted.end).skip(wanted.start) {
        give(row, given, request, rows);
    }
    Ok(())
}

/// Gives one row of the whole width.
fn give(row: &[u8], given: Given, request: &Request<'_>, rows: &mut dyn Rows) {
    match given {
        Given::Bytes(depth) => give_row(&row[request.columns(depth)], depth, request.pixel, rows),
        Given::WideGray => {
            let pixels = rows.room().chunks_exact_mut(request.pixel.bytes());
            for (to, from) in pixels.zip(row[request.columns(2)].chunks_exact(2)) {
                // As Pillow: 16-bit gray is clipped to 255, not scaled.
                to[..3].fill(if from[0] > 0 { 255 } else { from[1] });
            }
            rows.done();
        }
        Given::Packed(bits) => {
            for (to, x) in rows.room().iter_mut().zip(request.columns(1)) {
                let shift = 8 - bits - x * bits % 8;
                *to = row[x * bits / 8] >> shift & ((1u16 << bits) - 1) as u8;
            }
            rows.done();
        }
    }
}
