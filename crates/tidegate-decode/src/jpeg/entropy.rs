//! The walk over the MCUs of a sequential scan: read where they are wanted, passed over or jumped over elsewhere.
//!
//! Flow: entropy-coded bytes (+ checkpoints) -> coefficients of the planes, a part of an MCU row at a time.
//! Memory: holds none.

use super::Plane;
use super::checkpoints::{Checkpoint, Checkpoints};
use super::frame::{Frame, Markers, Scan, damaged};
use super::huffman::{AcTable, Bits, Table};
use crate::Result;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    parts: Vec<Part<'a>>,
    bits: Bits<'a>,
    checkpoints: Option<Checkpoints<'a>>,
    /// MCUs that the file lacks, at its end, are zero.
    fill: bool,
    /// Some were.
    filled: bool,
}

/// A component's share of an MCU.
#[derive(Debug)]
struct Part<'a> {
    dc: &'a Table,
    ac: &'a AcTable,
    h: usize,
    v: usize,
    predictor: i32,
}

impl<'a> Walk<'a> {
    /// Starts at the beginning of a scan of all components.
    pub(super) fn new(
        bytes: &'a [u8],
        markers: &'a Markers<'_>,
        frame: &Frame,
        scan: &Scan,
        checkpoints: Option<Checkpoints<'a>>,
        fill: bool,
    ) -> Result<Self> {
        let parts = scan.parts.iter().map(|&[c, dc, ac]| {
            let component = &frame.components[c];
            let missing = || damaged(scan.at, "a Huffman table is missing");
            let dc = markers.dc[dc].as_deref().ok_or_else(missing)?;
            let ac = markers.ac[ac].as_deref().ok_or_else(missing)?;
            Ok(Part { dc, ac, h: component.h, v: component.v, predictor: 0 })
        });
        let parts = parts.collect::<Result<_>>()?;
        let bits = Bits::new(bytes, scan.at, markers.restart);
        Ok(Self { parts, bits, checkpoints, fill, filled: false })
    }

    /// Goes to an MCU further on, over the last checkpoint before it.
    #[inline(always)]
    pub(super) fn seek(&mut self, mcu: usize) -> Result<()> {
        if let Some(found) = self.checkpoints.and_then(|all| all.before(mcu, self.bits.begun())) {
            self.bits.jump(found.mcu, found.bit);
            for (part, predictor) in self.parts.iter_mut().zip(found.predictors) {
                part.predictor = predictor;
            }
        }
        self.skip(mcu.saturating_sub(self.bits.begun()))
    }

    /// Where it stands.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let mut predictors = [0; 3];
        for (to, part) in predictors.iter_mut().zip(&self.parts) {
            *to = part.predictor;
        }
        Checkpoint { mcu: self.bits.begun(), bit: self.bits.position(), predictors }
    }

    /// Whether MCUs were missing, and zero.
    pub(super) fn filled(&self) -> bool {
        self.filled
    }

    /// Before each MCU: behind a restart marker, differences begin anew. Nothing if the file lacks this one.
    ///
    /// As libjpeg: the one within which a file ends, or that a restart marker is missing for, is read with bits of zero; the
    /// next are not looked for.
    #[inline(always)]
    fn begin(&mut self) -> Result<Option<()>> {
        if self.fill && (self.filled || self.bits.ran_out()) {
            self.check()?;
            return Ok(None);
        }
        let restarted = match self.bits.begin_mcu() {
            Err(_) if self.fill && self.bits.ended() => {
                self.bits.end();
                true
            }
            begun => begun?,
        };
        if restarted {
            self.parts.iter_mut().for_each(|part| part.predictor = 0);
        }
        Ok(Some(()))
    }

    /// Refuses bits that are not in the file, or notes them.
    #[inline(always)]
    fn check(&mut self) -> Result<()> {
        if self.fill && self.bits.cut() {
            self.filled = true;
            return Ok(());
        }
        self.bits.check()
    }

    /// Passes over `n` MCUs.
    #[inline(always)]
    pub(super) fn skip(&mut self, n: usize) -> Result<()> {
        for _ in 0..n {
            if self.begin()?.is_none() {
                return Ok(());
            }
            for part in &mut self.parts {
                for _ in 0..part.h * part.v {
                    let passed = self.bits.dc(part.dc).and_then(|difference| {
                        part.predictor = part.predictor.wrapping_add(difference);
                        self.bits.skip_ac(part.ac)
                    });
                    self.bits.found(passed, self.fill, ())?;
                }
            }
        }
        self.check()
    }

    /// Reads `n` MCUs into the coefficients of the planes.
    #[inline(always)]
    pub(super) fn read(&mut self, planes: &mut [Plane<'_>], n: usize) -> Result<()> {
        for plane in planes.iter_mut() {
            plane.coefficients.as_flattened_mut().fill(0);
            if self.fill {
                plane.last.fill(0);
            }
        }
        for mcu in 0..n {
            if self.begin()?.is_none() {
                return Ok(());
            }
            for (part, plane) in self.parts.iter_mut().zip(planes.iter_mut()) {
                for v in 0..part.v {
                    let first = v * plane.blocks_across + mcu * part.h;
                    for i in first..first + part.h {
                        let difference = {
                            let difference = self.bits.dc(part.dc);
                            self.bits.found(difference, self.fill, 0)?
                        };
                        part.predictor = part.predictor.wrapping_add(difference);
                        let block = &mut plane.coefficients[i];
                        block[0] = part.predictor as i16;
                        // Of a block that becomes one sample, only the mean is wanted.
                        let last = if plane.component.size == 1 {
                            self.bits.skip_ac(part.ac).map(|()| 0)
                        } else {
                            self.bits.ac(part.ac, block)
                        };
                        plane.last[i] = self.bits.found(last, self.fill, 63)? as u8;
                    }
                }
            }
        }
        self.check()
    }
}
