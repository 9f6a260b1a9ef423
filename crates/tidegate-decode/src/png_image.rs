//! PNG, decoded by the png crate: 8-bit RGB equal to Pillow's `convert("RGB")`, or raw mask
//! values.
//!
//! Flow: bytes -> the chunks of the image, with their checksums (`png_chunks`) -> rows; nothing
//! below the region is inflated. An interlaced image is decoded whole into scratch, then written
//! row by row.
//! Memory: the caller's scratch for interlaced images; the png crate allocates at most
//! `ImageHeader::library_bytes`.

use png::{BitDepth, ColorType, Decoder, Limits, Reader, Transformations};

use crate::image::{Decode, Decoded, Pixel, Request, RowSink, WideGray, write_row};
use crate::png_chunks::Chunks;
use crate::{Error, Result};

/// Bytes that palettes and transparency may allocate.
const PALETTE_BYTES: usize = 64 << 10;

/// The PNG decoder; it keeps nothing between images.
#[derive(Debug, Default)]
pub(super) struct Png;

/// The pixel format of the library's rows.
#[derive(Debug, Clone, Copy)]
enum RowFormat {
    /// This number of bytes a pixel.
    Bytes(usize),
    /// 16-bit gray.
    WideGray(WideGray),
    /// Palette indices or gray of this number of bits.
    Packed(usize),
}

impl Decode for Png {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        inner: &mut [u8],
        rows: &mut dyn RowSink,
    ) -> Result<Decoded> {
        let chunks = Chunks::checked(bytes)?;
        let ended = chunks.ended;
        // The library counts an output row too, of at most four values of two bytes.
        let limits = Limits { bytes: PALETTE_BYTES + 4 * (8 * request.header.width as usize + 1) };
        let mut decoder = Decoder::new_with_limits(chunks, limits);
        decoder.ignore_checksums(true);
        let info = decoder.read_header_info().map_err(to_error)?;
        let (color, depth) = (info.color_type, info.bit_depth);
        let wide_gray = color == ColorType::Grayscale && depth == BitDepth::Sixteen;
        decoder.set_transformations(match (request.pixel, color) {
            // The values of masks stay as they are stored.
            (Pixel::Raw, ColorType::Indexed | ColorType::Grayscale) => Transformations::IDENTITY,
            _ if wide_gray => Transformations::IDENTITY,
            _ => Transformations::EXPAND | Transformations::STRIP_16,
        });
        let mut reader = decoder.read_info().map_err(to_error)?;
        let format = row_format(request, reader.output_color_type())?;
        let size = (request.header.width, request.header.height);
        let first = reader.info().frame_control().map_or(reader.info().size(), |f| (f.width, f.height));
        if first != size || reader.info().size() != size {
            return Err(Error::unsupported("an animated PNG whose first frame is smaller than its canvas"));
        }
        if reader.info().interlaced {
            write_whole(&mut reader, format, request, inner, rows)?;
            return Ok(Decoded::Whole);
        }
        // A file without an end marker may be cut within the image, so all its rows are decoded.
        let end = if ended { request.bottom() } else { request.header.height };
        for y in 0..end {
            let row = reader.next_row().map_err(to_error)?;
            let row = row.ok_or_else(|| Error::decode("damaged PNG: rows are missing"))?;
            if request.wants(y) {
                write(row.data(), format, request, rows);
            }
        }
        Ok(Decoded::Whole)
    }
}

fn to_error(error: png::DecodingError) -> Error {
    let cut =
        matches!(&error, png::DecodingError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof);
    match cut {
        true => Error::truncated("truncated PNG: the file ends within the image"),
        false => Error::decode(format!("damaged PNG: {error}")),
    }
}

fn row_format(request: &Request<'_>, (color, depth): (ColorType, BitDepth)) -> Result<RowFormat> {
    match (color, depth, request.pixel) {
        (ColorType::Grayscale, BitDepth::Eight, _) => Ok(RowFormat::Bytes(1)),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, _) => Ok(RowFormat::Bytes(2)),
        (ColorType::Indexed, depth, Pixel::Raw) => Ok(RowFormat::Packed(depth as usize)),
        (ColorType::Grayscale, depth, Pixel::Raw) if depth != BitDepth::Sixteen => {
            Ok(RowFormat::Packed(depth as usize))
        }
        (color, depth, Pixel::Raw) => Err(Error::unsupported(format!(
            "a mask must have one channel of 8 bits, not {color:?} {depth:?}"
        ))),
        (ColorType::Grayscale, ..) => request.wide_gray.map(RowFormat::WideGray).ok_or_else(|| {
            Error::unsupported(
                "16-bit gray, which 8 bits cannot hold: say gray16=\"scale\" for the upper eight bits, or \
                 gray16=\"clip\" for Pillow's, where 256 and more are white",
            )
        }),
        (ColorType::Rgba, ..) => Ok(RowFormat::Bytes(4)),
        _ => Ok(RowFormat::Bytes(3)),
    }
}

/// Decodes an interlaced image into scratch, then writes the region's rows.
fn write_whole(
    reader: &mut Reader<Chunks<'_>>,
    format: RowFormat,
    request: &Request<'_>,
    inner: &mut [u8],
    rows: &mut dyn RowSink,
) -> Result<()> {
    let needed = reader.output_buffer_size().unwrap_or(usize::MAX);
    let image = inner.get_mut(..needed).ok_or_else(|| {
        Error::too_large(format!("this PNG needs {needed} bytes, more than its header promised"))
    })?;
    let line = reader.next_frame(image).map_err(to_error)?.line_size;
    let wanted = request.region.y as usize..request.bottom() as usize;
    for row in image.chunks_exact(line).take(wanted.end).skip(wanted.start) {
        write(row, format, request, rows);
    }
    Ok(())
}

/// Writes the region's columns of one row of the whole width.
fn write(row: &[u8], format: RowFormat, request: &Request<'_>, rows: &mut dyn RowSink) {
    match format {
        RowFormat::Bytes(depth) => write_row(&row[request.columns(depth)], depth, request.pixel, rows),
        RowFormat::WideGray(how) => {
            let pixels = rows.next_row().chunks_exact_mut(request.pixel.bytes());
            for (to, from) in pixels.zip(row[request.columns(2)].chunks_exact(2)) {
                to[..3].fill(match how {
                    WideGray::Scale => from[0],
                    WideGray::Clip if from[0] > 0 => 255,
                    WideGray::Clip => from[1],
                });
            }
            rows.finish_row();
        }
        RowFormat::Packed(bits) => {
            for (to, x) in rows.next_row().iter_mut().zip(request.columns(1)) {
                let shift = 8 - bits - x * bits % 8;
                *to = row[x * bits / 8] >> shift & ((1u16 << bits) - 1) as u8;
            }
            rows.finish_row();
        }
    }
}
