//! Element conversion: any type to f32 and back.
//!
//! Flow: elements of a [`DType`] -> f32 -> elements of another type.
//! Memory: the caller's.
//!
//! Conversion to integers rounds to the nearest, ties to even, and saturates; NaN becomes 0. Each
//! direction rounds once, so all processors agree.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::DType;

/// A numeric element type.
pub trait Number: Pod {
    /// The nearest f32.
    fn to_f32(self) -> f32;
    /// The nearest number of this type.
    fn from_f32(x: f32) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            #[inline]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline]
            fn from_f32(x: f32) -> Self {
                x.round_ties_even() as Self
            }
        }
    )*};
}
integers!(u32, i32, u64, i64);

/// Adding this to a small number leaves no bits for the fraction, so the processor rounds to the
/// nearest, ties to even.
const ROUND: f32 = 12_582_912.0;

/// Rounds to the nearest whole number, ties to even, for |x| below 2^22. Compiles to vector
/// instructions on any processor.
#[inline]
#[must_use]
pub fn rounded(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

macro_rules! small_integers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            #[inline]
            fn to_f32(self) -> f32 {
                f32::from(self)
            }
            /// Compiles to vector instructions on any processor.
            #[inline]
            fn from_f32(x: f32) -> Self {
                let x = if x.is_nan() { 0.0 } else { x };
                let x = x.max(f32::from(Self::MIN)).min(f32::from(Self::MAX));
                ((x + ROUND).to_bits().wrapping_sub(ROUND.to_bits())) as Self
            }
        }
    )*};
}
small_integers!(u8, i8, u16, i16);

impl Number for f32 {
    #[inline]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Number for f64 {
    #[inline]
    fn to_f32(self) -> f32 {
        self as f32
    }
    #[inline]
    fn from_f32(x: f32) -> Self {
        Self::from(x)
    }
}

impl Number for f16 {
    #[inline]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
    #[inline]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Number for bf16 {
    #[inline]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
    #[inline]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Evaluates an expression with a type parameter set to the element type of a [`DType`]; booleans
/// are bytes.
#[macro_export]
macro_rules! with_number {
    ($dtype:expr, $number:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Bool | $crate::DType::Uint8 => $crate::with_number!(@ u8, $number => $body),
            $crate::DType::Int8 => $crate::with_number!(@ i8, $number => $body),
            $crate::DType::Uint16 => $crate::with_number!(@ u16, $number => $body),
            $crate::DType::Int16 => $crate::with_number!(@ i16, $number => $body),
            $crate::DType::Uint32 => $crate::with_number!(@ u32, $number => $body),
            $crate::DType::Int32 => $crate::with_number!(@ i32, $number => $body),
            $crate::DType::Uint64 => $crate::with_number!(@ u64, $number => $body),
            $crate::DType::Int64 => $crate::with_number!(@ i64, $number => $body),
            $crate::DType::Float16 => $crate::with_number!(@ $crate::kernels::convert::Half, $number => $body),
            $crate::DType::Bfloat16 => $crate::with_number!(@ $crate::kernels::convert::Brain, $number => $body),
            $crate::DType::Float32 => $crate::with_number!(@ f32, $number => $body),
            $crate::DType::Float64 => $crate::with_number!(@ f64, $number => $body),
        }
    };
    (@ $type:ty, $number:ident => $body:expr) => {{
        type $number = $type;
        $body
    }};
}

/// IEEE half precision.
pub type Half = f16;
/// bfloat16: the upper half of an f32.
pub type Brain = bf16;

/// Converts elements to f32.
///
/// # Panics
/// If `from` is not aligned to its type, or `from` and `into` differ in their numbers of elements.
///
/// ```
/// use tidegate_array::{DType, kernels::convert::to_f32};
/// let mut x = [0.0; 2];
/// to_f32(DType::Uint16, &[1, 0, 0, 1], &mut x);
/// assert_eq!(x, [1.0, 256.0]);
/// ```
pub fn to_f32(dtype: DType, from: &[u8], into: &mut [f32]) {
    match dtype {
        DType::Float16 => bytemuck::cast_slice::<u8, f16>(from).convert_to_f32_slice(into),
        DType::Bfloat16 => bytemuck::cast_slice::<u8, bf16>(from).convert_to_f32_slice(into),
        dtype => with_number!(dtype, T => {
            let from = bytemuck::cast_slice::<u8, T>(from);
            assert_eq!(from.len(), into.len(), "both must have as many elements");
            from.iter().zip(into).for_each(|(from, into)| *into = Number::to_f32(*from));
        }),
    }
}

/// Converts elements to f32, whatever their alignment.
///
/// # Panics
/// If the bytes are not a whole number of elements.
#[must_use]
pub fn floats(dtype: DType, from: &[u8]) -> Vec<f32> {
    // Bytes of a file may not be aligned to the element type.
    let mut aligned = vec![0u64; from.len().div_ceil(8)];
    let elements = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..from.len()];
    elements.copy_from_slice(from);
    let mut values = vec![0.0; from.len() / dtype.size()];
    to_f32(dtype, elements, &mut values);
    values
}

/// Converts f32 to elements of another type.
///
/// # Panics
/// As [`to_f32`].
///
/// ```
/// use tidegate_array::{DType, kernels::convert::from_f32};
/// let mut bytes = [0; 4];
/// from_f32(&[2.5, 300.0, -1.0, f32::NAN], DType::Uint8, &mut bytes);
/// assert_eq!(bytes, [2, 255, 0, 0]);
/// ```
pub fn from_f32(from: &[f32], dtype: DType, into: &mut [u8]) {
    match dtype {
        DType::Float16 => bytemuck::cast_slice_mut::<u8, f16>(into).convert_from_f32_slice(from),
        DType::Bfloat16 => bytemuck::cast_slice_mut::<u8, bf16>(into).convert_from_f32_slice(from),
        dtype => with_number!(dtype, T => {
            let into = bytemuck::cast_slice_mut::<u8, T>(into);
            assert_eq!(from.len(), into.len(), "both must have as many elements");
            from.iter().zip(into).for_each(|(from, into)| *into = T::from_f32(*from));
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_are_rounded_and_saturate(x in -70_000.0f32..70_000.0, half in -300i32..300) {
            for x in [x, x / 300.0, half as f32 + 0.5, f32::INFINITY, -f32::INFINITY, f32::NAN] {
                let exact = x.round_ties_even();
                prop_assert_eq!(u8::from_f32(x), exact as u8);
                prop_assert_eq!(i8::from_f32(x), exact as i8);
                prop_assert_eq!(u16::from_f32(x), exact as u16);
                prop_assert_eq!(i16::from_f32(x), exact as i16);
            }
        }

        /// Converting an element to f32 and back gives the element, for types that f32 holds
        /// exactly.
        #[test]
        fn there_and_back(x: u16, at in 0usize..6) {
            use DType::{Bfloat16, Float16, Float32, Float64, Int16, Uint16};
            let dtype = [Uint16, Int16, Float16, Bfloat16, Float32, Float64][at];
            prop_assume!(!(dtype == Float16 && f16::from_bits(x).is_nan() || dtype == Bfloat16 && bf16::from_bits(x).is_nan()));
            let mut element = [0u64; 1];
            let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut element)[..dtype.size()];
            if bytes.len() == 2 { bytes.copy_from_slice(&x.to_le_bytes()) } else { from_f32(&[f32::from(x)], dtype, bytes) }
            let (before, mut number) = (bytes.to_vec(), [0.0]);
            to_f32(dtype, bytes, &mut number);
            from_f32(&number, dtype, bytes);
            prop_assert_eq!(&before[..], &*bytes);
        }
    }
}
