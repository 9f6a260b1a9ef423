//! Grids: the value that each code stands for.
//!
//! Flow: the minimum and maximum of a group -> [`Grid`].
//! Memory: holds none.

use bytemuck::{Pod, Zeroable};

use crate::kernels::grid::Line;
use crate::{Error, Result};

/// How a grid represents 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// 0 has a code: the range is widened to contain it.
    Affine,
    /// 0 has the middle code, and one code is unused, so that every value's negation also has a
    /// code.
    Symmetric,
    /// The minimum has code 0: the most accurate for storage.
    Offset,
}

impl Scheme {
    /// The first and the last code in use.
    #[must_use]
    pub fn codes(self, bits: u32) -> (f32, f32) {
        let last = ((1u32 << bits) - 1) as f32;
        (if self == Self::Symmetric { 1.0 } else { 0.0 }, last)
    }

    /// Stored bytes of a grid: its scale, and its zero or base if the scheme has one.
    #[must_use]
    pub fn grid_bytes(self) -> u64 {
        if self == Self::Symmetric { 4 } else { 8 }
    }
}

/// A grid: code `q` stands for `(q − zero) · scale + base`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Grid {
    /// Distance between codes; 0 if all values are equal.
    pub scale: f32,
    /// The code of 0; a whole number.
    pub zero: f32,
    /// The value of code 0, if it is not 0.
    pub base: f32,
}

impl Grid {
    /// The grid of a scheme from `low` to `high`.
    ///
    /// # Errors
    /// [`Error::Value`] for ends that are not finite, in the wrong order, or further apart than
    /// the largest f32.
    ///
    /// ```
    /// use tidegate_array::quantize::{Grid, Scheme};
    /// let grid = Grid::over(-1.0, 2.0, 8, Scheme::Affine)?;
    /// assert_eq!((grid.zero, grid.value(grid.zero)), (85.0, 0.0));
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn over(low: f32, high: f32, bits: u32, scheme: Scheme) -> Result<Self> {
        if !(low <= high && (high - low).is_finite()) {
            return Err(Error::value(format!(
                "a range from {low} to {high}: it must be finite, and no wider than the largest f32"
            )));
        }
        let (first, last) = scheme.codes(bits);
        let (low, high) = (f64::from(low), f64::from(high));
        // In f64, so that the scale is rounded once.
        Ok(match scheme {
            Scheme::Offset => {
                Self { scale: ((high - low) / f64::from(last)) as f32, zero: 0.0, base: low as f32 }
            }
            Scheme::Symmetric => {
                let zero = (first + last) / 2.0;
                Self { scale: (low.abs().max(high.abs()) / f64::from(last - zero)) as f32, zero, base: 0.0 }
            }
            Scheme::Affine => {
                let (low, high) = (low.min(0.0), high.max(0.0));
                let scale = ((high - low) / f64::from(last)) as f32;
                let zero = if scale > 0.0 { (-low / f64::from(scale)).round_ties_even() as f32 } else { 0.0 };
                Self { scale, zero: zero.clamp(0.0, last), base: 0.0 }
            }
        })
    }

    /// The grid's line, with the codes in use.
    #[must_use]
    pub fn line(&self, codes: (f32, f32)) -> Line {
        Line { scale: self.scale, zero: self.zero, base: self.base, codes }
    }

    /// The value of a code.
    #[must_use]
    pub fn value(&self, code: f32) -> f32 {
        self.line((0.0, 0.0)).value(code)
    }

    /// Whether this is a grid of the scheme.
    pub(super) fn is_of(&self, scheme: Scheme, bits: u32) -> bool {
        let (first, last) = scheme.codes(bits);
        let zero = match scheme {
            Scheme::Offset => self.zero == 0.0,
            Scheme::Symmetric => self.zero == (first + last) / 2.0,
            Scheme::Affine => self.zero.fract() == 0.0 && (0.0..=last).contains(&self.zero),
        };
        let finite = self.scale.is_finite() && self.scale >= 0.0 && self.base.is_finite();
        zero && finite && (scheme == Scheme::Offset || self.base == 0.0)
    }
}
