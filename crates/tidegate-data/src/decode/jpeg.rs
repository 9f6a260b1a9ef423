//! JPEG by zune-jpeg: pure Rust, from the top of the picture to the last row that is wanted.
//!
//! Flow: bytes + region -> RGB rows in scratch.
//! Memory: scratch of the caller, and what `ImageHeader::library_bytes` bounds.
//!
//! zune decodes whole pictures. A baseline picture is decoded row of blocks by row of blocks, so its header is shown to
//! zune with a lower height: what lies below the crop is neither entropy-decoded nor transformed, and the rows above are
//! bit for bit those of the whole picture. For random crops this saves about a fifth of the work.
//!
//! zune's strict mode misses a truncation within the last row of blocks, so the end marker is checked here: what Pillow
//! calls truncated is an error here too.

use zune_core::bytestream::{ZByteIoError, ZByteReaderTrait, ZSeekFrom};
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::header::ImageHeader;
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
        if !bytes.ends_with(&END) && !bytes[header.data_at..].windows(2).any(|w| w == END) {
            return Err(Error::Decode("truncated JPEG: the end marker is missing".into()));
        }
        let (space, channels) = if request.raw { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
        let options = DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(65_535)
            .set_max_height(65_535)
            .jpeg_set_max_scans(100)
            .jpeg_set_out_colorspace(space);
        let height = rows_needed(bytes, header, request.region);
        let reader =
            Shortened { bytes, at: 0, height_at: header.data_at, height: (height as u16).to_be_bytes() };
        let mut decoder = Box::new(JpegDecoder::new_with_options(reader, options));
        decoder.decode_headers().map_err(words)?;
        let n = decoder.output_buffer_size().unwrap_or(usize::MAX);
        let picture = Picture { region: Region { x: 0, y: 0, width: header.width, height }, channels };
        if n != picture.bytes() || n > into.len() {
            return Err(Error::Decode("the JPEG header changes its mind about the size".into()));
        }
        decoder.decode_into(&mut into[..n]).map_err(words)?;
        Ok(picture)
    }
}

const END: [u8; 2] = [0xFF, 0xD9];

fn words(error: zune_jpeg::errors::DecodeErrors) -> Error {
    let text = format!("{error:?}");
    let cut =
        ["Premature end", "ExhaustedData", "IoErrors", "ot enough bytes"].iter().any(|w| text.contains(w));
    Error::Decode(if cut {
        "truncated JPEG: the file ends within the picture".into()
    } else if text.contains("Number of components cannot be zero") {
        "an arithmetic-coded, lossless or hierarchical JPEG: re-encode it as baseline or progressive".into()
    } else {
        format!("damaged JPEG: {text}")
    })
}

/// Rows that must be decoded for `region`: whole rows of blocks, and one more where chroma is interpolated across them.
fn rows_needed(bytes: &[u8], header: &ImageHeader, region: Region) -> u32 {
    let frame = header.data_at + 5;
    let parts = usize::from(header.components);
    let factors = bytes.get(frame..frame + 3 * parts).unwrap_or_default();
    let tallest = factors.chunks_exact(3).map(|c| u32::from(c[1] & 15)).max().unwrap_or(0);
    if header.progressive || tallest == 0 || !one_scan(bytes, frame + 3 * parts, header.components) {
        return header.height;
    }
    let block = 8 * tallest;
    let below = if tallest > 1 { block } else { 0 };
    let bottom = region.y.saturating_add(region.height);
    (bottom.next_multiple_of(block) + below).min(header.height)
}

/// Whether the first scan, looked for from `at` on, holds all components.
fn one_scan(bytes: &[u8], mut at: usize, components: u8) -> bool {
    while let Some(&[0xFF, code, high, low]) = bytes.get(at..at + 4) {
        if code == 0xDA {
            return bytes.get(at + 4) == Some(&components);
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
    false
}

/// A JPEG whose header says another height.
struct Shortened<'a> {
    bytes: &'a [u8],
    at: usize,
    height_at: usize,
    height: [u8; 2],
}

impl Shortened<'_> {
    fn left(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Copies what comes next, with the height replaced.
    fn copy(&self, into: &mut [u8]) -> usize {
        let left = self.left();
        let n = into.len().min(left.len());
        into[..n].copy_from_slice(&left[..n]);
        if self.at <= self.height_at + 1 {
            for (i, &byte) in self.height.iter().enumerate() {
                if let Some(to) = (self.height_at + i).checked_sub(self.at).and_then(|k| into[..n].get_mut(k))
                {
                    *to = byte;
                }
            }
        }
        n
    }
}

impl ZByteReaderTrait for Shortened<'_> {
    fn read_byte_no_error(&mut self) -> u8 {
        let mut byte = [0];
        self.at += self.copy(&mut byte);
        byte[0]
    }
    fn read_exact_bytes(&mut self, buf: &mut [u8]) -> Result<(), ZByteIoError> {
        self.peek_exact_bytes(buf)?;
        self.at += buf.len();
        Ok(())
    }
    fn read_bytes(&mut self, buf: &mut [u8]) -> Result<usize, ZByteIoError> {
        let n = self.copy(buf);
        self.at += n;
        Ok(n)
    }
    fn peek_bytes(&mut self, buf: &mut [u8]) -> Result<usize, ZByteIoError> {
        Ok(self.copy(buf))
    }
    fn peek_exact_bytes(&mut self, buf: &mut [u8]) -> Result<(), ZByteIoError> {
        if self.left().len() < buf.len() {
            return Err(ZByteIoError::NotEnoughBytes(self.left().len(), buf.len()));
        }
        self.copy(buf);
        Ok(())
    }
    fn z_seek(&mut self, from: ZSeekFrom) -> Result<u64, ZByteIoError> {
        let (base, by) = match from {
            ZSeekFrom::Start(at) => (0, at.cast_signed()),
            ZSeekFrom::End(by) => (self.bytes.len(), by),
            ZSeekFrom::Current(by) => (self.at, by),
        };
        let to = (base as i64).checked_add(by).and_then(|to| usize::try_from(to).ok());
        self.at = to.ok_or(ZByteIoError::SeekError("a seek before the beginning"))?;
        Ok(self.at as u64)
    }
    fn is_eof(&mut self) -> Result<bool, ZByteIoError> {
        Ok(self.at >= self.bytes.len())
    }
    fn z_position(&mut self) -> Result<u64, ZByteIoError> {
        Ok(self.at as u64)
    }
    fn read_remaining(&mut self, sink: &mut Vec<u8>) -> Result<usize, ZByteIoError> {
        let mut rest = vec![0; self.left().len()];
        let n = self.read_bytes(&mut rest)?;
        sink.extend(rest);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::header;
    use super::*;
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use proptest::prelude::*;

    fn encoded(
        width: u16,
        height: u16,
        sampling: SamplingFactor,
        restart: u16,
        progressive: bool,
    ) -> Vec<u8> {
        let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height) * 3)
            .map(|i| ((i * 31) ^ (i / 97 * 7)) as u8)
            .collect();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 85);
        encoder.set_sampling_factor(sampling);
        encoder.set_progressive(progressive);
        if restart > 0 {
            encoder.set_restart_interval(restart);
        }
        encoder.encode(&pixels, width, height, ColorType::Rgb).unwrap();
        bytes
    }

    fn decode(bytes: &[u8], region: Option<Region>) -> Result<(Vec<u8>, Picture)> {
        let header = header::of(bytes)?;
        let whole = Region { x: 0, y: 0, width: header.width, height: header.height };
        let request = Request { header: &header, region: region.unwrap_or(whole), entry: None, raw: false };
        let mut into = vec![0; header.decoded_bytes() as usize];
        let picture = Jpeg.decode(bytes, &request, &mut into)?;
        into.truncate(picture.bytes());
        Ok((into, picture))
    }

    proptest! {
        /// The rows of a shortened picture are those of the whole one.
        #[test]
        fn a_region_equals_that_of_the_whole(
            width in 1u16..90, height in 1u16..120, sampling in 0usize..4, restart in 0u16..5, progressive: bool,
            y in 0u32..120, rows in 1u32..60,
        ) {
            use SamplingFactor::{F_1_1, F_1_2, F_2_1, F_2_2};
            let bytes = encoded(width, height, [F_1_1, F_2_1, F_1_2, F_2_2][sampling], restart, progressive);
            let y = y.min(u32::from(height) - 1);
            let region = Region { x: 0, y, width: width.into(), height: rows.min(u32::from(height) - y) };
            let (whole, _) = decode(&bytes, None).unwrap();
            let (part, picture) = decode(&bytes, Some(region)).unwrap();
            let bottom = (region.y + region.height) as usize;
            prop_assert!(picture.region.height as usize >= bottom);
            let n = bottom * usize::from(width) * 3;
            prop_assert_eq!(&part[..n], &whole[..n]);
        }

        /// A picture that lacks its end is an error, wherever it was cut and whatever is wanted of it.
        #[test]
        fn truncation_is_an_error(cut in 0usize..3000, rows in 1u32..64) {
            let bytes = encoded(64, 64, SamplingFactor::F_2_2, 0, false);
            let region = Region { x: 0, y: 0, width: 64, height: rows };
            prop_assert!(decode(&bytes[..cut.min(bytes.len() - 1)], Some(region)).is_err());
        }
    }
}
