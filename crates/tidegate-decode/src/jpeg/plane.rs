//! One component of the decoded part: its coefficients, samples, and rows at full size.
//!
//! Flow: coefficients of an MCU row ([`super::entropy`], [`super::stored`]) -> samples
//! ([`super::idct`]) -> a row as wide as the image ([`super::color`]).
//! Memory: coefficients of one MCU row and samples of two; bounded by
//! `ImageHeader::library_bytes`.

use super::frame::{Component, Frame};
use super::huffman::Coefficients;
use super::{color, idct};

/// One component of the part that is decoded.
pub(super) struct Plane<'a> {
    pub(super) component: &'a Component,
    pub(super) quant: &'a [i16; 64],
    /// The blocks of an MCU row: an even number in each row of blocks.
    pub(super) coefficients: Vec<Coefficients>,
    /// For each block, the last zigzag index that is not zero.
    pub(super) last: Vec<u8>,
    pub(super) blocks_across: usize,
    /// The samples of two MCU rows, one after another.
    pub(super) samples: Vec<u8>,
    pub(super) stride: usize,
    /// A row at the image's full width.
    pub(super) full: Vec<u8>,
    /// Samples of a row without padding, from the first decoded column on.
    pub(super) real: usize,
}

impl Plane<'_> {
    /// Transforms the coefficients of an MCU row to samples.
    pub(super) fn transform(&mut self, mcu_row: usize, simd: bool) {
        let height = 8 * self.component.v;
        for v in 0..self.component.v {
            let top = mcu_row % 2 * height + 8 * v;
            for pair in 0..self.blocks_across / 2 {
                let block = v * self.blocks_across + 2 * pair;
                let Some((blocks, _)) = self.coefficients[block..].split_first_chunk::<2>() else { return };
                let last = usize::from(self.last[block].max(self.last[block + 1]));
                let bytes = &mut self.samples[top * self.stride + 16 * pair..];
                let mut to = idct::Samples { bytes, stride: self.stride };
                idct::pair(blocks, last, self.quant, &mut to, simd);
            }
        }
    }

    /// Transforms the coefficients of an MCU row to fewer samples than coefficients.
    #[inline(always)]
    pub(super) fn transform_reduced(&mut self, mcu_row: usize) {
        let Component { v, size, .. } = *self.component;
        for (i, block) in self.coefficients.iter().enumerate() {
            let (row, column) = (i / self.blocks_across, i % self.blocks_across);
            let at = ((mcu_row % 2 * v + row) * self.stride + column) * size;
            let mut to = idct::Samples { bytes: &mut self.samples[at..], stride: self.stride };
            match size {
                4 => idct::quarter(block, self.quant, &mut to),
                2 => idct::sixteenth(block, self.quant, &mut to),
                _ => idct::mean(block, self.quant, &mut to),
            }
        }
    }

    /// Row `row` of samples, which must be in one of the two MCU rows that are held.
    fn samples(&self, row: usize) -> &[u8] {
        let row = row % (2 * self.component.size * self.component.v);
        &self.samples[row * self.stride..][..self.real]
    }

    /// Interpolates the samples for row `y` of the image, if they are fewer than its pixels.
    #[inline(always)]
    pub(super) fn expand(&mut self, y: usize, frame: &Frame, sums: &mut [u16]) {
        let component = self.component;
        let (h, v) = frame.times(component);
        if h == 1 && v == 1 {
            return;
        }
        let row = y / v;
        let upper = y.is_multiple_of(v);
        let far = if upper { row.saturating_sub(1) } else { (row + 1).min(component.height - 1) };
        let mut full = std::mem::take(&mut self.full);
        let (near, far) = (self.samples(row), self.samples(far));
        // libjpeg does not interpolate two columns, nor means of blocks.
        let fancy = frame.unit > 1;
        let wide = fancy && component.width > 2;
        match (h, v) {
            (2, 1) if wide => color::wider(near, &mut full),
            (2, 2) if wide => color::both(near, far, sums, &mut full),
            (1, 2) if fancy => color::taller(near, far, upper, &mut full),
            _ => color::repeated(near, h, &mut full),
        }
        self.full = full;
    }

    /// This component's samples of row `y` of the image, after [`Plane::expand`].
    pub(super) fn row(&self, y: usize, frame: &Frame) -> &[u8] {
        if frame.times(self.component) == (1, 1) {
            return self.samples(y);
        }
        &self.full
    }
}
