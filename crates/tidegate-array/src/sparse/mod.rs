//! Sparse arrays: what is not zero, and where it lies.
//!
//! Flow: entries ([`Coo`]) -> rows ([`Csr`]) or blocks ([`Bsr`]) -> products with vectors and dense matrices; and back, and to dense.
//! Memory: the arrays' own, or borrowed from whoever has them (NumPy, SciPy, torch): [`Cow`] holds either.
//! Not here: how batches of rows become such arrays (`tidegate-data`).
//!
//! Indices are u32 or u64; a signed index that is not negative has the same bits, so arrays of other libraries are taken as they lie. What
//! is checked when an array is made is checked again where it is used, as borrowed memory may have changed since: no index is trusted.

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

/// What tells where an entry lies.
pub trait Index: Pod + Send + Sync + Ord + Debug {
    /// Its name.
    const NAME: &'static str;

    /// As a place in memory; one that no memory has is the last of all.
    fn at(self) -> usize;

    /// The index of a place, if it has one.
    fn of(at: usize) -> Option<Self>;

    /// As people read it: what others wrote as a number below 0, as that too.
    fn shown(self) -> String;

    /// The index of a place.
    ///
    /// # Errors
    /// [`Error::Value`] where it has none.
    fn checked(at: usize) -> Result<Self> {
        Self::of(at).ok_or_else(|| Error::value(format!("{at} is no {}: use 64-bit indices", Self::NAME)))
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
            fn of(at: usize) -> Option<Self> {
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

/// What an entry is; sums are as wide as they have to be.
pub trait Element: Pod + Send + Sync + PartialEq + Debug {
    /// What products are added up in: the type itself, or for small integers a wider one.
    type Sum: Pod + Send + Sync + PartialEq + Debug;

    /// Nothing.
    const ZERO: Self;

    /// No sum yet.
    const NONE: Self::Sum;

    /// `sum + self * other`; integers wrap.
    #[must_use]
    fn add_product(self, other: Self, sum: Self::Sum) -> Self::Sum;

    /// Two sums in one.
    #[must_use]
    fn add(one: Self::Sum, other: Self::Sum) -> Self::Sum;

    /// Two entries of one place.
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

/// An array that is one's own or another's.
type Held<'a, T> = Cow<'a, [T]>;

/// Bytes of an array, whoever has it.
fn bytes<T>(array: &[T]) -> u64 {
    size_of_val(array) as u64
}

/// What is left of `shape` without entries: 1 for none, 0 for a dense array.
fn sparsity(entries: usize, places: impl IntoIterator<Item = usize>) -> f64 {
    let places: f64 = places.into_iter().map(|side| side as f64).product();
    if places > 0.0 { 1.0 - entries as f64 / places } else { 0.0 }
}

/// What an array has that was changed by somebody else after it was made.
fn changed() -> Error {
    Error::value("an index lies beyond the array: its memory was changed after the array was made")
}
