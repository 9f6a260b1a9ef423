//! Filters: elements transformed into as many bytes that pack better.
//!
//! Flow: elements -> differences, byte planes, or rounded mantissas -> and back.
//! Memory: the caller's.

use half::{bf16, f16};

use super::Bound;
use crate::{DType, Error, Result};

/// A reversible transform of elements, except for rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Filter {
    /// Each element minus the one before, as wrapping integers of this width in bytes.
    Delta(usize),
    /// Byte planes: the first bytes of all elements of this width, then the second bytes, and so
    /// on.
    Shuffle(usize),
    /// Floats with this many bits of mantissa, rounded to even. The dropped bits are zeros, which
    /// pack to nothing.
    BitRound(DType, u32),
}

impl Filter {
    pub(super) fn parse(name: &str, dtype: DType) -> Result<Self> {
        let unknown =
            || Error::option(format!("unknown filter {name:?}: known are delta, shuffle, bitround:<bits>"));
        match name.split_once(':') {
            None if name == "delta" => Ok(Self::Delta(dtype.size())),
            None if name == "shuffle" => Ok(Self::Shuffle(dtype.size())),
            Some(("bitround", bits)) => {
                let most = mantissa(dtype)
                    .ok_or_else(|| Error::option(format!("bitround is for floats, not {}", dtype.name())))?;
                let bits = bits.parse().ok().filter(|bits| (1..=most).contains(bits));
                bits.map(|bits| Self::BitRound(dtype, bits)).ok_or_else(|| {
                    Error::option(format!("{name:?}: give 1 to {most} bits of mantissa for {}", dtype.name()))
                })
            }
            _ => Err(unknown()),
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Delta(_) => "delta".into(),
            Self::Shuffle(_) => "shuffle".into(),
            Self::BitRound(_, bits) => format!("bitround:{bits}"),
        }
    }

    /// Whether undoing it needs scratch as long as the bytes.
    pub(super) fn needs_scratch(&self) -> bool {
        matches!(self, Self::Shuffle(_))
    }

    pub(super) fn bound(&self) -> Option<Bound> {
        match self {
            // Half of the last bit kept, for a mantissa between one and two.
            Self::BitRound(_, bits) => Some(Bound::Each(0.5 * 0.5f64.powi(*bits as i32))),
            _ => None,
        }
    }

    /// Applies it.
    pub(super) fn forward(&self, from: &[u8], into: &mut [u8]) {
        match self {
            Self::Delta(width) => {
                into.copy_from_slice(from);
                differences(*width, into);
            }
            Self::Shuffle(width) => shuffle(from, *width, into),
            Self::BitRound(dtype, bits) => {
                into.copy_from_slice(from);
                round(*dtype, *bits, into);
            }
        }
    }

    /// Undoes it. `scratch` must be as long as `bytes` if [`Self::needs_scratch`] says so.
    pub(super) fn inverse(&self, bytes: &mut [u8], scratch: &mut [u8]) {
        match self {
            Self::Delta(width) => sums(*width, bytes),
            Self::Shuffle(width) => {
                scratch.copy_from_slice(bytes);
                unshuffle(scratch, *width, bytes);
            }
            // Dropped bits cannot be restored.
            Self::BitRound(..) => {}
        }
    }
}

/// Moves byte `b` of element `e` to index `b` × elements + `e`. Bytes after the last whole element
/// stay at the end.
///
/// # Panics
/// If `into` has another length than `from`.
pub fn shuffle(from: &[u8], width: usize, into: &mut [u8]) {
    let words = from.len() / width;
    let (whole, rest) = from.split_at(words * width);
    let (planes, end) = into.split_at_mut(words * width);
    for (b, plane) in planes.chunks_exact_mut(words.max(1)).enumerate() {
        plane.iter_mut().zip(whole.iter().skip(b).step_by(width)).for_each(|(to, from)| *to = *from);
    }
    end.copy_from_slice(rest);
}

/// Undoes [`shuffle`].
///
/// # Panics
/// As [`shuffle`].
pub fn unshuffle(from: &[u8], width: usize, into: &mut [u8]) {
    let words = from.len() / width;
    let (planes, rest) = from.split_at(words * width);
    let (whole, end) = into.split_at_mut(words * width);
    for (b, plane) in planes.chunks_exact(words.max(1)).enumerate() {
        whole.iter_mut().skip(b).step_by(width).zip(plane).for_each(|(to, from)| *to = *from);
    }
    end.copy_from_slice(rest);
}

/// Evaluates an expression with the unsigned integer type of a width, and the bytes as arrays of
/// that width.
macro_rules! with_words {
    ($width:expr, $bytes:expr, |$words:ident: $T:ident| $body:expr) => {
        match $width {
            2 => with_words!(@ u16, 2, $bytes, $words, $T, $body),
            4 => with_words!(@ u32, 4, $bytes, $words, $T, $body),
            8 => with_words!(@ u64, 8, $bytes, $words, $T, $body),
            _ => with_words!(@ u8, 1, $bytes, $words, $T, $body),
        }
    };
    (@ $type:ty, $width:literal, $bytes:expr, $words:ident, $T:ident, $body:expr) => {{
        type $T = $type;
        let ($words, _) = $bytes.as_chunks_mut::<$width>();
        $body
    }};
}

/// Bytes after the last whole element stay as they are.
fn differences(width: usize, bytes: &mut [u8]) {
    with_words!(width, bytes, |words: T| {
        let mut before = 0;
        for word in words {
            let this = T::from_le_bytes(*word);
            *word = this.wrapping_sub(before).to_le_bytes();
            before = this;
        }
    });
}

fn sums(width: usize, bytes: &mut [u8]) {
    with_words!(width, bytes, |words: T| {
        let mut sum: T = 0;
        for word in words {
            sum = sum.wrapping_add(T::from_le_bytes(*word));
            *word = sum.to_le_bytes();
        }
    });
}

/// Stored bits of a mantissa.
fn mantissa(dtype: DType) -> Option<u32> {
    match dtype {
        DType::Float16 => Some(f16::MANTISSA_DIGITS - 1),
        DType::Bfloat16 => Some(bf16::MANTISSA_DIGITS - 1),
        DType::Float32 => Some(f32::MANTISSA_DIGITS - 1),
        DType::Float64 => Some(f64::MANTISSA_DIGITS - 1),
        _ => None,
    }
}

/// Rounds mantissas to `bits` bits, as the `bitround` codec of numcodecs does. NaN and infinities
/// stay; a value that rounding would make infinite is truncated instead.
fn round(dtype: DType, bits: u32, bytes: &mut [u8]) {
    let all = mantissa(dtype).unwrap_or(bits);
    let drop = all - bits;
    if drop == 0 {
        return;
    }
    with_words!(dtype.size(), bytes, |words: T| {
        let exponent: T = (T::MAX >> 1) & (T::MAX << all);
        for word in words {
            let this = T::from_le_bytes(*word);
            if this & exponent == exponent {
                continue;
            }
            let half = ((1 as T) << (drop - 1)) - 1 + ((this >> drop) & 1);
            let kept = T::MAX << drop;
            let rounded = this.wrapping_add(half) & kept;
            let overflows = rounded & exponent == exponent;
            *word = if overflows { this & kept } else { rounded }.to_le_bytes();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_is_within_half_a_bit_and_keeps_what_is_no_number(bits in 1u32..=23, values in proptest::collection::vec(any::<f32>(), 1..50)) {
            let filter = Filter::parse(&format!("bitround:{bits}"), DType::Float32).unwrap();
            let Some(Bound::Each(share)) = filter.bound() else { panic!("it has a bound") };
            let mut values = values;
            values.extend([f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, -0.0, f32::MAX, 1e-42]);
            let mut rounded = vec![0.0f32; values.len()];
            filter.forward(bytemuck::cast_slice(&values), bytemuck::cast_slice_mut(&mut rounded));
            for (before, after) in values.iter().zip(&rounded) {
                if before.is_finite() && *before != f32::MAX {
                    // Below the normal numbers, the last bit kept has a fixed size.
                    let allowed = f64::from(before.abs()).max(f64::from(f32::MIN_POSITIVE)) * share;
                    prop_assert!((f64::from(*before) - f64::from(*after)).abs() <= allowed, "{} {}", before, after);
                } else if *before != f32::MAX {
                    prop_assert_eq!(before.to_bits(), after.to_bits());
                }
                prop_assert!(after.is_finite() == before.is_finite());
            }
        }
    }
}
