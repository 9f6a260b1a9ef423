//! Progressive and multi-scan JPEG: all coefficients of the image, completed scan by scan.
//!
//! Flow: scans -> coefficients; then one MCU row at a time to the planes.
//! Memory: two bytes for each sample of the image, padded to whole MCUs; bounded by
//! `ImageHeader::library_bytes`.
//!
//! Specification: ITU-T T.81, annex G.

use super::errors::damaged;
use super::frame::{Frame, Markers, Scan};
use super::huffman::{AcTable, Bits, Coefficients, Table};
use super::plane::Plane;
use super::zigzag::NATURAL;
use crate::image::Decoded;
use crate::{Error, Result};

/// Scans that are read at most. Each costs a walk over all blocks, and real files have about ten.
const SCANS_MAX: usize = 100;

/// The coefficients of one component.
#[derive(Debug)]
struct Component {
    blocks: Vec<Coefficients>,
    across: usize,
    quant: Option<[i16; 64]>,
}

/// All coefficients of an image.
#[derive(Debug)]
pub(super) struct Stored {
    components: Vec<Component>,
}

impl Stored {
    /// Reads all scans, from `first` on. With `fill`, reads as much of them as a truncated file
    /// has.
    ///
    /// # Errors
    /// For damaged and truncated files, and for files of too many scans.
    pub(super) fn read(
        bytes: &[u8],
        markers: &mut Markers<'_>,
        frame: &Frame,
        first: Scan,
        fill: bool,
    ) -> Result<(Self, Decoded)> {
        let down = frame.height.div_ceil(frame.mcu_height());
        let component = |c: &super::frame::Component| {
            let across = frame.mcus_across() * c.h;
            Component { blocks: vec![[0; 64]; across * down * c.v], across, quant: None }
        };
        let mut stored = Self { components: frame.components.iter().map(component).collect() };
        let mut next = Some(first);
        for _ in 0..SCANS_MAX {
            let Some(scan) = next else {
                return if fill && stored.lacks_scans() {
                    Ok((stored, Decoded::Filled))
                } else {
                    Ok((stored.checked(bytes)?, Decoded::Whole))
                };
            };
            for &[c, ..] in &scan.parts {
                // A table can be redefined between scans. A component keeps that of its first
                // scan.
                if stored.components[c].quant.is_none() {
                    stored.components[c].quant = Some(markers.quant(&frame.components[c])?);
                }
            }
            let mut walk = Walk {
                bits: Bits::new(bytes, scan.at, markers.restart),
                predictors: [0; 4],
                run: 0,
                cut: false,
                scan: &scan,
                markers,
            };
            let read = walk.scan(frame, &mut stored.components);
            let (at, cut) = (walk.bits.at(), walk.cut);
            markers.continue_at(at);
            let found = read.and_then(|()| markers.next_scan());
            if fill && found.is_err() && (cut || markers.cut()) {
                // The coefficients so far. A component without a scan is gray.
                return Ok((stored, Decoded::Filled));
            }
            next = found?;
        }
        Err(Error::unsupported(format!("a JPEG of {SCANS_MAX} scans or more: re-encode it")))
    }

    /// Whether a component has had no scan.
    fn lacks_scans(&self) -> bool {
        self.components.iter().any(|c| c.quant.is_none())
    }

    fn checked(self, bytes: &[u8]) -> Result<Self> {
        if self.lacks_scans() {
            return Err(damaged(bytes.len(), "a component has no scan"));
        }
        Ok(self)
    }

    /// The quantization table of a component.
    pub(super) fn quant(&self, c: usize) -> [i16; 64] {
        self.components[c].quant.unwrap_or([0; 64])
    }

    /// Copies the MCU columns of an MCU row to the planes.
    pub(super) fn copy(&self, row: usize, columns: std::ops::Range<usize>, planes: &mut [Plane<'_>]) {
        for (component, plane) in self.components.iter().zip(planes) {
            let (h, v) = (plane.component.h, plane.component.v);
            for down in 0..v {
                let from = (row * v + down) * component.across + columns.start * h;
                let blocks = &component.blocks[from..from + columns.len() * h];
                let to = down * plane.blocks_across;
                plane.coefficients[to..to + blocks.len()].copy_from_slice(blocks);
                for (last, block) in plane.last[to..].iter_mut().zip(blocks) {
                    *last = if block[1..].iter().any(|&x| x != 0) { 63 } else { 0 };
                }
            }
        }
    }
}

/// A walk over one scan.
struct Walk<'a, 'b> {
    bits: Bits<'a>,
    predictors: [i32; 4],
    /// Further blocks of an end-of-band run: they have no code of their own.
    run: u32,
    /// Whether the file ends within the scan.
    cut: bool,
    scan: &'b Scan,
    markers: &'b Markers<'a>,
}

impl Walk<'_, '_> {
    fn scan(&mut self, frame: &Frame, components: &mut [Component]) -> Result<()> {
        if let [[c, ..]] = self.scan.parts[..] {
            // One component alone: its blocks without padding, row by row, whatever its sampling.
            let size = &frame.components[c];
            for y in 0..size.height.div_ceil(8) {
                for x in 0..size.width.div_ceil(8) {
                    self.begin()?;
                    let block = y * components[c].across + x;
                    self.block(0, &mut components[c].blocks[block])?;
                }
            }
            return self.end();
        }
        for row in 0..frame.height.div_ceil(frame.mcu_height()) {
            for column in 0..frame.mcus_across() {
                self.begin()?;
                for (p, &[c, ..]) in self.scan.parts.iter().enumerate() {
                    let (h, v) = (frame.components[c].h, frame.components[c].v);
                    for i in 0..h * v {
                        let block = (row * v + i / h) * components[c].across + column * h + i % h;
                        self.block(p, &mut components[c].blocks[block])?;
                    }
                }
            }
        }
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.cut = self.bits.cut();
        self.bits.check()
    }

    fn begin(&mut self) -> Result<()> {
        // Zero bits beyond the end of the data are allowed for one MCU only.
        let begun = self.bits.check().and_then(|()| self.bits.begin_mcu());
        self.cut = begun.is_err() && self.bits.ended();
        if begun? {
            (self.predictors, self.run) = ([0; 4], 0);
        }
        Ok(())
    }

    fn block(&mut self, part: usize, block: &mut Coefficients) -> Result<()> {
        let [_, dc, ac] = self.scan.parts[part];
        let (dc, ac) = (self.markers.dc[dc & 3].as_deref(), self.markers.ac[ac & 3].as_deref());
        let whole = *self.scan.places.end() == 63 && *self.scan.places.start() == 0;
        let done = match (*self.scan.places.start(), self.scan.high) {
            (0, _) if whole => dc.zip(ac).and_then(|(dc, ac)| {
                self.dc_first(part, dc, block)?;
                self.bits.ac(ac, block).map(|_| ())
            }),
            (0, 0) => dc.and_then(|dc| self.dc_first(part, dc, block)),
            (0, _) => {
                block[0] |= (self.bits.take(1) << self.scan.low) as i16;
                Some(())
            }
            (_, 0) => ac.and_then(|ac| self.ac_first(ac, block)),
            _ => ac.and_then(|ac| self.ac_more(ac, block)),
        };
        done.ok_or_else(|| {
            self.cut = self.bits.cut();
            self.bits.wrong()
        })
    }

    fn dc_first(&mut self, part: usize, table: &Table, block: &mut Coefficients) -> Option<()> {
        self.predictors[part] = self.predictors[part].wrapping_add(self.bits.dc(table)?);
        block[0] = self.predictors[part].wrapping_shl(self.scan.low) as i16;
        Some(())
    }

    /// Reads the first bits of AC coefficients.
    fn ac_first(&mut self, table: &AcTable, block: &mut Coefficients) -> Option<()> {
        if self.run > 0 {
            self.run -= 1;
            return Some(());
        }
        let (mut k, end) = (*self.scan.places.start(), *self.scan.places.end());
        while k <= end {
            let (run, size) = self.bits.symbol(&table.codes)?;
            if size > 0 {
                k += run;
                block[usize::from(NATURAL[k & 127])] =
                    self.bits.magnitude(size).wrapping_shl(self.scan.low) as i16;
            } else if run == 15 {
                k += 15;
            } else {
                self.run = (1 << run) + self.bits.take(run as u32) - 1;
                return Some(());
            }
            k += 1;
        }
        (k <= 64).then_some(())
    }

    /// Reads one more bit of AC coefficients, of known and of new ones.
    fn ac_more(&mut self, table: &AcTable, block: &mut Coefficients) -> Option<()> {
        let (mut k, end) = (*self.scan.places.start(), *self.scan.places.end());
        let one = 1i16 << self.scan.low;
        if self.run == 0 {
            while k <= end {
                let (mut zeros, size) = self.bits.symbol(&table.codes)?;
                let mut new = 0;
                if size > 0 {
                    new = if self.bits.take(1) == 1 { one } else { -one };
                } else if zeros != 15 {
                    self.run = (1 << zeros) + self.bits.take(zeros as u32);
                    break;
                }
                while k <= end {
                    let known = &mut block[usize::from(NATURAL[k])];
                    if *known != 0 {
                        refine(&mut self.bits, known, one);
                    } else if zeros == 0 {
                        *known = new;
                        break;
                    } else {
                        zeros -= 1;
                    }
                    k += 1;
                }
                k += 1;
            }
        }
        if self.run > 0 {
            for place in k..=end {
                let known = &mut block[usize::from(NATURAL[place])];
                if *known != 0 {
                    refine(&mut self.bits, known, one);
                }
            }
            self.run -= 1;
        }
        Some(())
    }
}

/// Reads the next bit of a coefficient that is not zero.
fn refine(bits: &mut Bits<'_>, known: &mut i16, one: i16) {
    if bits.take(1) == 1 && *known & one == 0 {
        *known = known.wrapping_add(if *known > 0 { one } else { -one });
    }
}
