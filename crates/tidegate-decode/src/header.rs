//! Image headers: format, size, orientation, and a bound of the memory that decoding needs.
//!
//! Flow: the first bytes of a file -> [`ImageHeader`]; called while indexing (so that a byte
//! budget can be planned before anything is read) and before each decode.
//! Memory: holds none; sizes are bounded before anything is allocated.
//!
//! Specifications: JPEG ITU-T T.81 (B.2), PNG ISO/IEC 15948, WebP RFC 9649, Exif 2.32
//! (orientation, tag 0x0112).

use crate::{Error, Result};

/// Bytes that the first look at a file reads.
pub const LOOK_BYTES: u64 = 8 << 10;
/// Bytes within which a header must end. Embedded profiles and previews come before it.
pub const PROBE_BYTES: u64 = 4 << 20;

/// How an image is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    Webp,
    /// Raw pixels of MDS.
    Pixels,
}

/// What is known about an image before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHeader {
    /// How it is encoded.
    pub format: Format,
    /// Width in pixels, before orientation.
    pub width: u32,
    /// Height in pixels, before orientation.
    pub height: u32,
    /// Channels as stored.
    pub components: u8,
    /// Bits a channel.
    pub bits: u8,
    /// Whether the decoder must hold the whole image: a progressive JPEG, a JPEG of several scans,
    /// or an interlaced PNG.
    pub progressive: bool,
    /// Exif orientation, 1 to 8; 1 where it is stored behind the bytes that were probed.
    pub orientation: u8,
    /// The offset of raw pixels; for a JPEG, the offset of its height field.
    pub data_at: usize,
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A header.
    Found(ImageHeader),
    /// More bytes are needed.
    Short,
    /// Not an image of a known format.
    Unknown,
}

impl ImageHeader {
    fn new(format: Format, width: u32, height: u32, components: u8, bits: u8) -> Self {
        Self { format, width, height, components, bits, progressive: false, orientation: 1, data_at: 0 }
    }

    /// Bytes of the decoded image.
    #[must_use]
    pub fn decoded_bytes(&self) -> u64 {
        self.area_bytes(3)
    }

    /// Scratch in which the decoder holds a whole image; 0 where it writes row by row.
    #[must_use]
    pub fn inner_bytes(&self) -> u64 {
        match self.format {
            Format::Webp => self.area_bytes(4),
            Format::Png if self.progressive => {
                self.area_bytes(u64::from(self.components) * u64::from(self.bits).div_ceil(8))
            }
            _ => 0,
        }
    }

    /// The sizes are claims of the file, and their product may exceed 64 bits: it saturates.
    fn area_bytes(&self, pixel: u64) -> u64 {
        u64::from(self.width).saturating_mul(u64::from(self.height)).saturating_mul(pixel)
    }

    /// An upper bound of the bytes that the decoder itself allocates, from the header alone.
    ///
    /// Derived from our JPEG decoder and the sources of png 0.18 and image-webp 0.2.
    #[must_use]
    pub fn library_bytes(&self) -> u64 {
        let (w, h, n) = (u64::from(self.width), u64::from(self.height), u64::from(self.components));
        // Whole MCUs, each of at most 32 × 32 pixels.
        let (wide, high) = (w + 31, h + 31);
        let area = wide.saturating_mul(high);
        match self.format {
            // A progressive file: all coefficients. Else a few rows of blocks, upsampled.
            Format::Jpeg if self.progressive => {
                area.saturating_mul(2 * n).saturating_add(220 * n * wide + (256 << 10))
            }
            Format::Jpeg => 220 * n * wide + (256 << 10),
            Format::Png => {
                let row = w * n * u64::from(self.bits).div_ceil(8) + 1;
                9 * (128 << 10).max(4 * row + 64) / 2 + 4 * row + (256 << 10)
            }
            Format::Webp => area.saturating_mul(11).saturating_add(1 << 20).saturating_add(self.code_bytes()),
            Format::Pixels => 0,
        }
    }

    /// The most bytes that the tables of a WebP's codes may take: far more than those of what
    /// encoders write, which have a group of codes for many pixels.
    #[must_use]
    pub fn code_bytes(&self) -> u64 {
        self.area_bytes(1).saturating_add(1 << 20)
    }

    /// All memory that decoding needs at most.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.inner_bytes().saturating_add(self.library_bytes())
    }

    /// Width and height as a viewer shows them.
    #[must_use]
    pub fn oriented(&self) -> (u32, u32) {
        if self.orientation >= 5 { (self.height, self.width) } else { (self.width, self.height) }
    }
}

/// Reads the header from the first bytes of a file.
#[must_use]
pub fn probe(bytes: &[u8]) -> Probe {
    if bytes.starts_with(&[0xFF, 0xD8]) {
        jpeg(bytes)
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        png(bytes)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        webp(bytes)
    } else if bytes.len() < 12 && !bytes.is_empty() {
        Probe::Short
    } else {
        Probe::Unknown
    }
}

/// Reads the header of an object of `size` bytes. `read(length)` returns its first bytes, and is
/// called with growing lengths.
pub fn probe_with(size: u64, read: &mut dyn FnMut(u64) -> Option<Vec<u8>>) -> Option<ImageHeader> {
    let mut len = LOOK_BYTES;
    loop {
        let bytes = read(len.min(size))?;
        match probe(&bytes) {
            Probe::Found(header) => return Some(header),
            Probe::Unknown => return None,
            Probe::Short if len >= size || len >= PROBE_BYTES => return None,
            Probe::Short => len *= 16,
        }
    }
}

/// The header of a whole object.
///
/// # Errors [`Error::Unsupported`] for bytes of no known format, [`Error::Truncated`] for a header
/// that does not end, [`Error::Decode`] for an image without pixels.
pub fn parse(bytes: &[u8]) -> Result<ImageHeader> {
    match probe(bytes) {
        Probe::Found(header) if header.width == 0 || header.height == 0 => {
            Err(Error::decode(format!("an image of {} × {} pixels", header.width, header.height)))
        }
        Probe::Found(header) => Ok(header),
        _ if bytes.is_empty() => Err(Error::truncated("0 bytes where an image belongs")),
        Probe::Short => Err(Error::truncated(format!(
            "truncated: the image header does not end in {} bytes",
            bytes.len()
        ))),
        Probe::Unknown => {
            let first: Vec<String> = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
            Err(Error::unsupported(format!("neither JPEG, PNG nor WebP: it begins with {}", first.join(" "))))
        }
    }
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn jpeg(bytes: &[u8]) -> Probe {
    let (mut at, mut orientation) = (2, 1);
    loop {
        while bytes.get(at) == Some(&0xFF) && bytes.get(at + 1) == Some(&0xFF) {
            at += 1;
        }
        let (Some(&mark), Some(&code)) = (bytes.get(at), bytes.get(at + 1)) else { return Probe::Short };
        if mark != 0xFF {
            return Probe::Unknown;
        }
        if matches!(code, 0x01 | 0xD0..=0xD8) {
            at += 2;
            continue;
        }
        let Some(len) = u16_be(bytes, at + 2) else { return Probe::Short };
        match code {
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let Some(frame) = bytes.get(at + 4..at + 10) else { return Probe::Short };
                let size = |i: usize| u32::from(u16::from_be_bytes([frame[i], frame[i + 1]]));
                let mut header = ImageHeader::new(Format::Jpeg, size(3), size(1), frame[5], frame[0]);
                header.progressive = matches!(code, 0xC2 | 0xC6 | 0xCA | 0xCE);
                header.orientation = orientation;
                header.data_at = at + 5;
                if !header.progressive {
                    let several = several_scans(bytes, at + 2 + usize::from(len), header.components);
                    let Some(several) = several else { return Probe::Short };
                    header.progressive = several;
                }
                return Probe::Found(header);
            }
            0xE1 => {
                let Some(body) = bytes.get(at + 4..at + 2 + usize::from(len)) else { return Probe::Short };
                if let Some(tiff) = body.strip_prefix(b"Exif\0\0") {
                    orientation = exif_orientation(tiff).unwrap_or(1);
                }
            }
            0xD9 | 0xDA => return Probe::Unknown,
            _ => {}
        }
        at += 2 + usize::from(len.max(2));
    }
}

/// Whether the first scan at or after `at` lacks a component: then all coefficients must be held.
/// None if that scan is beyond these bytes.
fn several_scans(bytes: &[u8], mut at: usize, components: u8) -> Option<bool> {
    loop {
        while bytes.get(at..at + 2)? == [0xFF, 0xFF] {
            at += 1;
        }
        if bytes[at] != 0xFF {
            // Damaged: the decoder reports where.
            return Some(false);
        }
        if bytes[at + 1] == 0xDA {
            return bytes.get(at + 4).map(|&n| n < components);
        }
        at += 2 + usize::from(u16_be(bytes, at + 2)?.max(2));
    }
}

/// The orientation in a TIFF structure.
fn exif_orientation(tiff: &[u8]) -> Option<u8> {
    let little = tiff.starts_with(b"II");
    let short = |at: usize| {
        let b: [u8; 2] = tiff.get(at..at + 2)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(b) } else { u16::from_be_bytes(b) })
    };
    let long = |at: usize| {
        let b: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(b) } else { u32::from_be_bytes(b) })
    };
    let directory = long(4)? as usize;
    for i in 0..usize::from(short(directory)?).min(256) {
        let entry = directory.checked_add(2 + 12 * i)?;
        if short(entry)? == 0x0112 {
            return u8::try_from(short(entry + 8)?).ok().filter(|o| (1..=8).contains(o));
        }
    }
    None
}

fn png(bytes: &[u8]) -> Probe {
    let (Some(width), Some(height), Some(&[bits, kind, _, _, interlaced])) =
        (u32_be(bytes, 16), u32_be(bytes, 20), bytes.get(24..29).and_then(<[u8]>::first_chunk::<5>))
    else {
        return Probe::Short;
    };
    if bytes.get(12..16) != Some(b"IHDR") {
        return Probe::Unknown;
    }
    // A palette or a transparent colour can expand to RGBA.
    let components = match kind {
        0 => 2,
        2 | 3 | 6 => 4,
        4 => 2,
        _ => return Probe::Unknown,
    };
    let mut header = ImageHeader::new(Format::Png, width, height, components, bits);
    header.progressive = interlaced != 0;
    header.orientation = chunk(bytes, 8, true, b"eXIf").and_then(exif_orientation).unwrap_or(1);
    Probe::Found(header)
}

/// The body of the chunk `name` of a PNG or a WebP whose chunks begin at `at`, as far as these
/// bytes go. A PNG has the length (big-endian) first, then the name, and a checksum behind it.
fn chunk<'a>(bytes: &'a [u8], mut at: usize, png: bool, name: &[u8; 4]) -> Option<&'a [u8]> {
    loop {
        let head: [[u8; 4]; 2] =
            [bytes.get(at..at + 4)?.try_into().ok()?, bytes.get(at + 4..at + 8)?.try_into().ok()?];
        let (found, len) = if png {
            (head[1], u32::from_be_bytes(head[0]) as usize)
        } else {
            (head[0], u32::from_le_bytes(head[1]) as usize)
        };
        let end = (at + 8).checked_add(len)?;
        if found == *name {
            return bytes.get(at + 8..end);
        }
        at = if png { end.checked_add(4)? } else { end.checked_add(len % 2)? };
    }
}

fn webp(bytes: &[u8]) -> Probe {
    let Some(kind) = bytes.get(12..16) else { return Probe::Short };
    let u24 = |at: usize| bytes.get(at..at + 3).map(|b| u32::from_le_bytes([b[0], b[1], b[2], 0]));
    let size = match kind {
        b"VP8 " => u24(26).zip(u24(28)).map(|(w, h)| (w & 0x3FFF, h & 0x3FFF)).filter(|_| bytes.len() >= 30),
        b"VP8L" => bytes.get(21..25).map(|b| {
            let packed = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
        }),
        b"VP8X" => u24(24).zip(u24(27)).map(|(w, h)| (w + 1, h + 1)),
        _ => return Probe::Unknown,
    };
    // The lossy header ends at byte 30: the third byte that `u24` reads is not part of it.
    let size = size.or_else(|| {
        let word =
            |at: usize| bytes.get(at..at + 2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])) & 0x3FFF);
        (kind == b"VP8 ").then(|| word(26).zip(word(28))).flatten()
    });
    let Some((width, height)) = size else { return Probe::Short };
    let mut header = ImageHeader::new(Format::Webp, width, height, 4, 8);
    if kind == b"VP8X" {
        // Some programs put the six bytes of JPEG's marker in front.
        let exif =
            chunk(bytes, 12, false, b"EXIF").map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
        header.orientation = exif.and_then(exif_orientation).unwrap_or(1);
    }
    Probe::Found(header)
}

/// The header of raw pixels, as MDS' `pil` encoding writes it: width, height and length of the
/// mode as u32, then the mode.
#[must_use]
pub fn pixels(bytes: &[u8]) -> Option<ImageHeader> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (width, height, mode_len) = (word(0)?, word(4)?, word(8)? as usize);
    let components = match bytes.get(12..12 + mode_len.min(16))? {
        b"L" | b"P" => 1,
        b"RGB" => 3,
        b"RGBA" | b"RGBX" => 4,
        _ => return None,
    };
    let mut header = ImageHeader::new(Format::Pixels, width, height, components, 8);
    header.data_at = 12 + mode_len;
    (width > 0 && height > 0).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_jpeg_header_with_orientation() {
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1, 0, 34];
        bytes.extend(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0");
        bytes.extend([0xFF, 0xC2, 0, 17, 8, 0x01, 0x00, 0x02, 0x00, 3]);
        let Probe::Found(header) = probe(&bytes) else { panic!("{:?}", probe(&bytes)) };
        assert_eq!((header.width, header.height, header.orientation), (512, 256, 6));
        assert!(header.progressive && header.oriented() == (256, 512));
        assert!((0..bytes.len()).all(|n| !matches!(probe(&bytes[..n]), Probe::Found(_))));
    }

    proptest! {
        #[test]
        fn nothing_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..4) {
            let magic: [&[u8]; 4] = [b"\xFF\xD8\xFF\xE1", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBPVP8X", b""];
            bytes.splice(0..0, magic[kind].iter().copied());
            let _outcome = (probe(&bytes), pixels(&bytes));
        }
    }
}
