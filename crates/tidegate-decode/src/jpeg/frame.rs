//! The markers of a JPEG: frame, tables, scans, and the colour space that libjpeg infers from
//! them.
//!
//! Flow: bytes -> [`Frame`] -> one [`Scan`] after another, each with its tables ([`Markers`]).
//! Memory: tables of a few KiB an image. Sizes are those of the header, which the caller has
//! bounded.
//!
//! Specification: ITU-T T.81; JFIF 1.02; Adobe TN 5116. Colour decisions are those of
//! libjpeg-turbo's `default_decompress_parms`.

use std::sync::Arc;

use super::errors::{damaged, truncated};
use super::huffman::{AcTable, Table, Tables};
use super::zigzag::NATURAL;
use crate::{Error, Result};

/// The colour space of the components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Color {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// The sampling, tables and size of one component.
#[derive(Debug, Clone, Default)]
pub(super) struct Component {
    id: u8,
    /// Blocks of an MCU, horizontally.
    pub(super) h: usize,
    /// Blocks of an MCU, vertically.
    pub(super) v: usize,
    quant: usize,
    /// Samples of a block in each direction: 8, or fewer in a halved image.
    pub(super) size: usize,
    /// Samples in a row; those beyond in the last block are padding.
    pub(super) width: usize,
    /// Rows of samples; those beyond in the last block are padding.
    pub(super) height: usize,
}

/// The frame: the sizes and components that hold for all scans.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    pub(super) progressive: bool,
    pub(super) max_h: usize,
    pub(super) max_v: usize,
    /// Pixels of a block of the component with most samples, in each direction: 8, or fewer in a
    /// halved image.
    pub(super) unit: usize,
}

/// A scan: which components, coefficients and bits it has.
#[derive(Debug)]
pub(super) struct Scan {
    /// Component, DC table, AC table.
    pub(super) parts: Vec<[usize; 3]>,
    /// Zigzag indices of its coefficients; all of them in a sequential file.
    pub(super) places: std::ops::RangeInclusive<usize>,
    /// Progressive: the lowest bit of earlier scans.
    pub(super) high: u32,
    /// Progressive: the lowest bit of this scan.
    pub(super) low: u32,
    /// The offset of the entropy-coded data.
    pub(super) at: usize,
}

/// A reader of markers, with all that it has read so far.
#[derive(Debug)]
pub(super) struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Quantization tables in natural order, as the bits of 16-bit numbers: libjpeg-turbo
    /// multiplies modulo 2^16.
    quant: [Option<[i16; 64]>; 4],
    pub(super) dc: [Option<Arc<Table>>; 4],
    pub(super) ac: [Option<Arc<AcTable>>; 4],
    tables: &'a mut Tables,
    /// MCUs between restart markers; 0: none.
    pub(super) restart: usize,
    frame: Option<Frame>,
    jfif: bool,
    adobe: Option<u8>,
    /// Whether the file ended where a marker was expected.
    cut: bool,
}

impl<'a> Markers<'a> {
    /// A reader at the beginning of a file.
    pub(super) fn new(bytes: &'a [u8], tables: &'a mut Tables) -> Self {
        Self {
            bytes,
            tables,
            at: 2,
            quant: [None; 4],
            dc: Default::default(),
            ac: Default::default(),
            restart: 0,
            frame: None,
            jfif: false,
            adobe: None,
            cut: false,
        }
    }

    /// Reads up to the next scan; None at the end of the image.
    ///
    /// # Errors
    /// [`Error::Decode`] and [`Error::Truncated`] with the offset of the damage;
    /// [`Error::Unsupported`] for kinds that cannot be decoded.
    pub(super) fn next_scan(&mut self) -> Result<Option<Scan>> {
        loop {
            let at = self.at;
            // Before the next marker there can be fill bytes and unread bytes of the last scan.
            let rest = self.bytes.get(at..).unwrap_or_default();
            let skip = rest.windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xFF | 0xD0..=0xD7));
            self.cut = skip.is_none();
            let Some(skip) = skip else { return Err(truncated(self.bytes.len())) };
            let (at, code) = (at + skip, rest[skip + 1]);
            if matches!(code, 0x01 | 0xD8) {
                self.at = at + 2;
                continue;
            }
            if code == 0xD9 {
                return Ok(None);
            }
            let len = self.bytes.get(at + 2..at + 4).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
            let body = len.and_then(|n| self.bytes.get(at + 4..at + 2 + n.max(2)));
            self.cut = body.is_none();
            let body = body.ok_or_else(|| truncated(self.bytes.len()))?;
            self.at = at + 4 + body.len();
            let wrong = |what: &str| damaged(at, what);
            match code {
                0xDB => self.quantization(body).ok_or_else(|| wrong("a quantization table"))?,
                0xC4 => self.huffman(body).ok_or_else(|| wrong("a Huffman table"))?,
                0xC0..=0xC2 => self.start_of_frame(body, code == 0xC2, at)?,
                0xC3 | 0xC5..=0xCF => {
                    return Err(Error::unsupported(
                        "an arithmetic-coded, lossless or hierarchical JPEG: \
                         re-encode it as baseline or progressive",
                    ));
                }
                0xDD => {
                    let word = body.first_chunk::<2>().ok_or_else(|| wrong("a restart interval"))?;
                    self.restart = usize::from(u16::from_be_bytes(*word));
                }
                0xE0 => self.jfif |= body.starts_with(b"JFIF\0"),
                0xEE if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied(),
                0xDA => {
                    let scan = self.frame.as_ref().and_then(|frame| self.scan(body, frame));
                    return scan.map(Some).ok_or_else(|| wrong("the scan header"));
                }
                _ => {}
            }
        }
    }

    /// The frame, if its marker was read.
    pub(super) fn frame(&self) -> Option<&Frame> {
        self.frame.as_ref()
    }

    /// The current quantization table of a component.
    pub(super) fn quant(&self, component: &Component) -> Result<[i16; 64]> {
        self.quant[component.quant].ok_or_else(|| damaged(self.at, "a quantization table is missing"))
    }

    /// Whether the file ended where a marker was looked for.
    pub(super) fn cut(&self) -> bool {
        self.cut
    }

    /// Sets the offset at which the search for the next marker continues.
    pub(super) fn continue_at(&mut self, at: usize) {
        self.at = at;
    }
}

impl Frame {
    /// The frame of the image at `unit` eighths of its size: 1, 2, 4 or 8.
    ///
    /// A component with fewer samples than another keeps more of them if that saves interpolation,
    /// as in libjpeg's `jpeg_calc_output_dimensions`.
    pub(super) fn reduced(mut self, unit: usize) -> Self {
        for c in &mut self.components {
            let fits = |size: usize| {
                (self.max_h * unit).is_multiple_of(c.h * size)
                    && (self.max_v * unit).is_multiple_of(c.v * size)
            };
            c.size = unit;
            while c.size < 8 && fits(2 * c.size) {
                c.size *= 2;
            }
            c.width = (self.width * c.h * c.size).div_ceil(8 * self.max_h);
            c.height = (self.height * c.v * c.size).div_ceil(8 * self.max_v);
        }
        (self.width, self.height) = ((self.width * unit).div_ceil(8), (self.height * unit).div_ceil(8));
        Self { unit, ..self }
    }

    /// The width of an MCU in pixels.
    pub(super) fn mcu_width(&self) -> usize {
        self.unit * self.max_h
    }

    /// The height of an MCU in pixels.
    pub(super) fn mcu_height(&self) -> usize {
        self.unit * self.max_v
    }

    /// Pixels for each sample of a component, horizontally and vertically.
    pub(super) fn times(&self, c: &Component) -> (usize, usize) {
        (self.mcu_width() / (c.h * c.size), self.mcu_height() / (c.v * c.size))
    }

    /// MCUs in a row.
    pub(super) fn mcus_across(&self) -> usize {
        self.width.div_ceil(self.mcu_width())
    }
}

impl Markers<'_> {
    fn quantization(&mut self, mut body: &[u8]) -> Option<()> {
        while let Some((&first, rest)) = body.split_first() {
            let wide = first >> 4;
            let slot = self.quant.get_mut(usize::from(first & 15)).filter(|_| wide < 2)?;
            let size = if wide == 1 { 2 } else { 1 };
            let (values, rest) = rest.split_at_checked(64 * size)?;
            let mut table = [0i16; 64];
            for (&place, value) in NATURAL.iter().zip(values.chunks_exact(size)) {
                let value = value.iter().fold(0u16, |n, &b| n << 8 | u16::from(b));
                table[usize::from(place)] = value.cast_signed();
            }
            *slot = Some(table);
            body = rest;
        }
        Some(())
    }

    fn huffman(&mut self, mut body: &[u8]) -> Option<()> {
        while let Some((&first, rest)) = body.split_first() {
            let n: usize = rest.get(..16)?.iter().map(|&c| usize::from(c)).sum();
            let (definition, rest) = rest.split_at_checked(16 + n)?;
            let slot = usize::from(first & 15);
            match first >> 4 {
                0 => *self.dc.get_mut(slot)? = Some(self.tables.dc(definition)?),
                1 => *self.ac.get_mut(slot)? = Some(self.tables.ac(definition)?),
                _ => return None,
            }
            body = rest;
        }
        Some(())
    }

    fn start_of_frame(&mut self, body: &[u8], progressive: bool, at: usize) -> Result<()> {
        let wrong = || damaged(at, "the frame header");
        let (head, parts) = body.split_first_chunk::<6>().ok_or_else(wrong)?;
        let [bits, h1, h0, w1, w0, n] = *head;
        let (width, height) =
            (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        if parts.len() != usize::from(n) * 3 || width == 0 || height == 0 || bits != 8 || self.frame.is_some()
        {
            return Err(wrong());
        }
        let component = |c: &[u8]| {
            let (h, v) = (usize::from(c[1] >> 4), usize::from(c[1] & 15));
            Component { id: c[0], h, v, quant: usize::from(c[2]), size: 8, ..Component::default() }
        };
        let mut components: Vec<Component> = parts.chunks_exact(3).map(component).collect();
        if let [gray] = components.as_mut_slice() {
            // A scan of one component has one block an MCU, whatever its sampling factors.
            (gray.h, gray.v) = (1, 1);
        }
        let (max_h, max_v) = components.iter().fold((0, 0), |(h, v), c| (h.max(c.h), v.max(c.v)));
        for c in &mut components {
            let whole = |n: usize, max: usize| (1..=4).contains(&n) && max.is_multiple_of(n);
            if !whole(c.h, max_h) || !whole(c.v, max_v) || c.quant > 3 {
                return Err(damaged(at, "sampling factors that do not divide each other"));
            }
            (c.width, c.height) = ((width * c.h).div_ceil(max_h), (height * c.v).div_ceil(max_v));
        }
        if !matches!(components.len(), 1 | 3 | 4) {
            return Err(wrong());
        }
        self.frame = Some(Frame { width, height, components, progressive, max_h, max_v, unit: 8 });
        Ok(())
    }

    fn scan(&self, body: &[u8], frame: &Frame) -> Option<Scan> {
        let (&n, rest) = body.split_first()?;
        let (named, rest) = rest.split_at_checked(2 * usize::from(n))?;
        let [start, end, bits] = *rest.first_chunk::<3>()?;
        let part = |c: &[u8]| {
            let component = frame.components.iter().position(|k| k.id == c[0])?;
            Some([component, usize::from(c[1] >> 4), usize::from(c[1] & 15)])
        };
        let parts: Vec<[usize; 3]> = named.chunks_exact(2).map(part).collect::<Option<_>>()?;
        let (places, high, low) = if frame.progressive {
            (usize::from(start)..=usize::from(end), u32::from(bits >> 4), u32::from(bits & 15))
        } else {
            (0..=63, 0, 0)
        };
        let tables = parts.iter().all(|&[_, dc, ac]| {
            let wants_dc = *places.start() == 0 && high == 0;
            let known = |table: Option<bool>| table == Some(true);
            (!wants_dc || known(self.dc.get(dc).map(Option::is_some)))
                && (*places.end() == 0 || known(self.ac.get(ac).map(Option::is_some)))
        });
        // Each component once, in order; AC coefficients of one component at a time.
        let ordered = parts.windows(2).all(|w| w[0][0] < w[1][0]) && !parts.is_empty();
        let spans = *places.end() < 64 && places.start() <= places.end() && low < 14;
        let alone = !frame.progressive
            || (*places.end() == 0) == (*places.start() == 0) && (*places.end() == 0 || parts.len() == 1);
        (tables && ordered && spans && alone).then_some(Scan { parts, places, high, low, at: self.at })
    }

    /// The colour space that libjpeg infers.
    pub(super) fn color(&self, components: &[Component]) -> Color {
        match (components, self.adobe) {
            ([_], _) => Color::Gray,
            ([_, _, _, _], Some(0) | None) => Color::Cmyk,
            ([_, _, _, _], Some(_)) => Color::Ycck,
            _ if self.jfif => Color::YCbCr,
            (_, Some(0)) => Color::Rgb,
            (_, Some(_)) => Color::YCbCr,
            ([r, g, b], None) if [r.id, g.id, b.id] == *b"RGB" => Color::Rgb,
            _ => Color::YCbCr,
        }
    }
}
