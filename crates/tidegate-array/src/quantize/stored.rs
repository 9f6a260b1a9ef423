//! Quantized arrays as bytes: the contents of a quantized column of a shard.
//!
//! Flow: [`Quantized`] -> bytes -> [`View`], which reads grids in place.
//! Memory: holds none.
//!
//! ```text
//! "TGQ1"  bits u8  scheme u8  per u8  axes u8  parameter of per u32  shape u32[axes]
//! grids   scale f32, and unless symmetric zero or base f32, of each group
//! codes   packed
//! ```
//! All numbers are little-endian. The length of the bytes must agree with the header.

use super::{Grid, Groups, Per, Quantized, Scheme, dequantize};
use crate::kernels::bits::{WIDTHS, packed_bytes};
use crate::{DType, Error, Result};

const MAGIC: &[u8; 4] = b"TGQ1";
const HEAD_BYTES: usize = 12;
const AXES_MOST: usize = 8;

/// A quantized array in borrowed bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct View<'a> {
    /// The shape of the values.
    pub shape: Vec<usize>,
    /// Bits per code.
    pub bits: u32,
    /// How the grids represent 0.
    pub scheme: Scheme,
    /// Which values share a grid.
    pub per: Per,
    groups: Groups,
    grids: &'a [u8],
    codes: &'a [u8],
}

impl<'a> View<'a> {
    /// Whether the bytes begin like a quantized array.
    #[must_use]
    pub fn has_magic(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Parses a quantized array.
    ///
    /// # Errors
    /// [`Error::Value`] for other bytes, for bytes of another length than the header states, and
    /// for grids that the scheme cannot have.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let wrong = |what: &str| Error::value(format!("quantized array: {what}"));
        let cut = || wrong("the bytes end within its head: it is cut short");
        if !Self::has_magic(bytes) {
            return Err(wrong("the bytes do not begin with TGQ1: they are something else"));
        }
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(cut)?;
        let bits = u32::from(head[4]);
        let scheme = match head[5] {
            0 => Scheme::Affine,
            1 => Scheme::Symmetric,
            2 => Scheme::Offset,
            _ => return Err(wrong("an unknown scheme: a newer version wrote it")),
        };
        let parameter = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let per = match head[6] {
            0 => Per::Tensor,
            1 => Per::Channel(parameter),
            2 => Per::Row,
            3 => Per::Block(parameter),
            _ => return Err(wrong("unknown groups: a newer version wrote it")),
        };
        let axes = usize::from(head[7]);
        if !WIDTHS.contains(&bits) || axes > AXES_MOST {
            return Err(wrong(&format!(
                "{bits} bits and {axes} axes: only 2 to 8 bits and at most {AXES_MOST} axes are possible"
            )));
        }
        let (sides, rest) = rest.split_at_checked(4 * axes).ok_or_else(cut)?;
        let (sides, _) = sides.as_chunks::<4>();
        let shape: Vec<usize> = sides.iter().map(|side| u32::from_le_bytes(*side) as usize).collect();
        let values = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).filter(|n| *n <= 1 << 40);
        let values = values.ok_or_else(|| wrong(&format!("a shape of {shape:?}, which no sample has")))?;
        let groups = Groups::new(per, &shape)?;
        let grids = (groups.count as u64).checked_mul(scheme.grid_bytes());
        let grids = grids.and_then(|bytes| rest.split_at_checked(usize::try_from(bytes).ok()?));
        let (grids, codes) = grids.ok_or_else(|| wrong("the bytes end within its grids: it is cut short"))?;
        if codes.len() != packed_bytes(values, bits) {
            return Err(wrong(&format!(
                "{} bytes of codes, but {shape:?} at {bits} bits needs {}: it is cut short or damaged",
                codes.len(),
                packed_bytes(values, bits)
            )));
        }
        let view = Self { shape, bits, scheme, per, groups, grids, codes };
        match (0..groups.count).find(|&group| !view.grid(group).is_of(scheme, bits)) {
            Some(group) => {
                let grid = view.grid(group);
                Err(wrong(&format!(
                    "group {group} has {grid:?}, which is no grid of its scheme: it is damaged"
                )))
            }
            None => Ok(view),
        }
    }

    fn grid(&self, group: usize) -> Grid {
        let number = |at: usize| {
            let bytes = self.grids.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(f32::NAN, f32::from_le_bytes)
        };
        let at = group * self.scheme.grid_bytes() as usize;
        let (first, last) = self.scheme.codes(self.bits);
        match self.scheme {
            Scheme::Symmetric => Grid { scale: number(at), zero: (first + last) / 2.0, base: 0.0 },
            Scheme::Affine => Grid { scale: number(at), zero: number(at + 4), base: 0.0 },
            Scheme::Offset => Grid { scale: number(at), zero: 0.0, base: number(at + 4) },
        }
    }

    /// As [`Quantized::dequantize`], without a copy of the codes.
    ///
    /// # Errors
    /// As [`Quantized::dequantize`].
    ///
    /// # Panics
    /// As [`Quantized::dequantize`].
    pub fn dequantize(&self, dtype: DType, into: &mut [u8]) -> Result<()> {
        dequantize(self.codes, self.bits, |group| self.grid(group), self.groups, dtype, into)
    }

    /// An owned copy.
    #[must_use]
    pub fn to_owned(&self) -> Quantized {
        let grids = (0..self.groups.count).map(|group| self.grid(group)).collect();
        let (shape, codes) = (self.shape.clone(), self.codes.to_vec());
        Quantized { shape, bits: self.bits, scheme: self.scheme, per: self.per, grids, codes }
    }
}

impl Quantized {
    /// Serializes the array, for [`View::parse`].
    ///
    /// # Errors
    /// [`Error::Value`] for more than 8 axes, or sides and blocks of 2^32 or more.
    ///
    /// ```
    /// use tidegate_array::quantize::{Extent, Options, Per, Quantized, Rounding, Scheme, View};
    /// let (bits, scheme, per) = (4, Scheme::Symmetric, Per::Block(32));
    /// let (extent, rounding) = (Extent::Whole, Rounding::Nearest);
    /// let options = Options { bits, scheme, per, extent, rounding };
    /// let small = Quantized::new(&[0.5; 64], &[64], &options)?;
    /// let bytes = small.to_bytes()?;
    /// assert_eq!(View::parse(&bytes)?.to_owned(), small);
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let small = |n: usize| {
            u32::try_from(n).map_err(|_| {
                Error::value(format!("{n} is more than a quantized array can store: at most 2^32 − 1"))
            })
        };
        if self.shape.len() > AXES_MOST {
            return Err(Error::value(format!(
                "an array of {} axes: at most {AXES_MOST} can be stored",
                self.shape.len()
            )));
        }
        let (per, parameter) = match self.per {
            Per::Tensor => (0, 0),
            Per::Channel(axis) => (1, axis),
            Per::Row => (2, 0),
            Per::Block(block) => (3, block),
        };
        let scheme = match self.scheme {
            Scheme::Affine => 0,
            Scheme::Symmetric => 1,
            Scheme::Offset => 2,
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend([self.bits as u8, scheme, per, self.shape.len() as u8]);
        bytes.extend(small(parameter)?.to_le_bytes());
        for side in &self.shape {
            bytes.extend(small(*side)?.to_le_bytes());
        }
        for Grid { scale, zero, base } in &self.grids {
            bytes.extend(scale.to_le_bytes());
            match self.scheme {
                Scheme::Symmetric => {}
                Scheme::Affine => bytes.extend(zero.to_le_bytes()),
                Scheme::Offset => bytes.extend(base.to_le_bytes()),
            }
        }
        bytes.extend(&self.codes);
        Ok(bytes)
    }
}
