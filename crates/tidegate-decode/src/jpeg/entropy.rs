//! The walk over the MCUs of a sequential scan: it reads wanted MCUs and skips or jumps over
//! others.
//!
//! Flow: entropy-coded bytes (+ checkpoints) -> coefficients of the planes, a part of an MCU row
//! at a time.
//! Memory: holds none.

use super::checkpoints::{Checkpoint, Checkpoints};
use super::errors::damaged;
use super::frame::{Frame, Markers, Scan};
use super::huffman::{AcTable, Bits, Table};
use super::plane::Plane;
use crate::Result;

/// A walk over the MCUs of a scan.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    parts: Vec<Part<'a>>,
    bits: Bits<'a>,
    checkpoints: Option<Checkpoints<'a>>,
    /// Whether MCUs that a truncated file lacks are zero, instead of an error.
    fill: bool,
    /// Whether any MCU was missing.
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

    /// Moves forward to an MCU, from the last checkpoint before it.
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

    /// The current position as a checkpoint.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let mut predictors = [0; 3];
        for (to, part) in predictors.iter_mut().zip(&self.parts) {
            *to = part.predictor;
        }
        Checkpoint { mcu: self.bits.begun(), bit: self.bits.position(), predictors }
    }

    /// Whether MCUs were missing and are zero.
    pub(super) fn filled(&self) -> bool {
        self.filled
    }

    /// Begins an MCU; after a restart marker, DC differences start from 0 again. None if the file
    /// lacks this MCU.
    ///
    /// As in libjpeg, the MCU within which a file ends, or whose restart marker is missing, is
    /// read with bits of zero. The MCUs after it are not searched for.
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

    /// Fails if bits beyond the file's end were used; with `fill`, notes it instead.
    #[inline(always)]
    fn check(&mut self) -> Result<()> {
        if self.fill && self.bits.cut() {
            self.filled = true;
            return Ok(());
        }
        self.bits.check()
    }

    /// Skips `n` MCUs.
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
                        // A block that becomes one sample needs only its mean.
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
