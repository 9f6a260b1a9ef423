//! Sparse arrays: nonzero elements and their positions.
//!
//! Flow: entries ([`Coo`]) -> rows ([`Csr`]) or blocks ([`Bsr`]) -> products with vectors and
//! dense matrices; and back, and to dense arrays.
//! Memory: the arrays' own, or borrowed from NumPy, SciPy or torch; [`Cow`] holds either.
//! Not here: making such arrays from batches of rows (`tidegate-data`).
//!
//! Indices are u32 or u64. A signed index that is not negative has the same bits, so arrays of
//! other libraries are used in place. Borrowed memory may change after the constructor has checked
//! it, so every use checks indices again.

mod bsr;
mod coo;
mod csr;
mod product;

use std::borrow::Cow;
use std::fmt::Debug;

use bytemuck::Pod;

pub use self::bsr::Bsr;
pub use self::coo::Coo;
pub use self::csr::Csr;
use crate::{Error, Result};

/// Index types.
pub trait Index: Pod + Send + Sync + Ord + Debug {
    /// The type's name.
    const NAME: &'static str;

    /// The index as a `usize`; `usize::MAX` if it does not fit.
    fn at(self) -> usize;

    /// The index of a position, if the type can hold it.
    fn from_usize(at: usize) -> Option<Self>;

    /// The index for an error text: a large unsigned number also as the negative number that
    /// another library may have stored.
    fn shown(self) -> String;

    /// The index of a position.
    ///
    /// # Errors
    /// [`Error::Value`] if the type cannot hold it.
    fn checked(at: usize) -> Result<Self> {
        Self::from_usize(at)
            .ok_or_else(|| Error::value(format!("{at} does not fit in {}: use 64-bit indices", Self::NAME)))
    }
}

macro_rules! indices {
    ($($t:ty),*) => {$(
        impl Index for $t {
            const NAME: &'static str = stringify!($t);
            #[inline]
            fn at(self) -> usize {
                usize::try_from(self).unwrap_or(usize::MAX)
            }
            #[inline]
            fn from_usize(at: usize) -> Option<Self> {
                Self::try_from(at).ok()
            }
            fn shown(self) -> String {
                let signed = self.cast_signed();
                if signed < 0 { format!("{self} (or {signed})") } else { self.to_string() }
            }
        }
    )*};
}
indices!(u32, u64);

/// Element types; sums use a type wide enough for products.
pub trait Element: Pod + Send + Sync + PartialEq + Debug {
    /// The type of sums of products: the type itself, or a wider one for small integers.
    type Sum: Pod + Send + Sync + PartialEq + Debug;

    /// Zero.
    const ZERO: Self;

    /// The empty sum.
    const NONE: Self::Sum;

    /// `sum + self * other`; integers wrap.
    #[must_use]
    fn add_product(self, other: Self, sum: Self::Sum) -> Self::Sum;

    /// The sum of two sums.
    #[must_use]
    fn add(one: Self::Sum, other: Self::Sum) -> Self::Sum;

    /// The sum of two entries.
    #[must_use]
    fn plus(self, other: Self) -> Self;
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Sum = Self;
            const ZERO: Self = 0.0;
            const NONE: Self = 0.0;
            #[inline(always)]
            fn add_product(self, other: Self, sum: Self) -> Self {
                sum + self * other
            }
            #[inline(always)]
            fn add(one: Self, other: Self) -> Self {
                one + other
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self + other
            }
        }
    )*};
}
floats!(f32, f64);

macro_rules! integers {
    ($($t:ty => $sum:ty),*) => {$(
        impl Element for $t {
            type Sum = $sum;
            const ZERO: Self = 0;
            const NONE: $sum = 0;
            #[inline(always)]
            fn add_product(self, other: Self, sum: $sum) -> $sum {
                sum.wrapping_add(<$sum>::from(self).wrapping_mul(<$sum>::from(other)))
            }
            #[inline(always)]
            fn add(one: $sum, other: $sum) -> $sum {
                one.wrapping_add(other)
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
        }
    )*};
}
integers!(i8 => i32, u8 => i32, i16 => i32, i32 => i64, i64 => i64);

/// An owned or borrowed array.
type Held<'a, T> = Cow<'a, [T]>;

/// Bytes of an array.
fn bytes<T>(array: &[T]) -> u64 {
    size_of_val(array) as u64
}

/// The share of elements of a shape without entries: 1 if there are no entries, 0 for a dense
/// array.
fn sparsity(entries: usize, places: impl IntoIterator<Item = usize>) -> f64 {
    let places: f64 = places.into_iter().map(|side| side as f64).product();
    if places > 0.0 { 1.0 - entries as f64 / places } else { 0.0 }
}

/// The error for borrowed memory that has changed since the array was made.
fn changed() -> Error {
    Error::value("an index is beyond the array: its memory was changed after the array was made")
}
