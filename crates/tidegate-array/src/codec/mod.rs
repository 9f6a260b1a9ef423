//! Codecs: elements packed into fewer bytes, and unpacked.
//!
//! Flow: a codec's name and an element type -> [`parse`] -> [`Codec`] -> packed bytes -> elements.
//! Memory: the caller's, and what [`Codec::scratch_bytes`] states.
//!
//! A name is a chain, applied from left to right: `delta+shuffle+zstd:3`. Filters turn elements
//! into as many bytes (`filter`), and a packer ends the chain (`packer`). The error-bounded codec
//! stands alone (`bounded`). Decoding writes only to the caller's memory, whatever the packed
//! bytes claim; malformed bytes are an error.

mod bounded;
pub mod filter;
mod packer;
mod predict;
mod stored;

use std::fmt::Debug;

pub use self::bounded::Bound;
use self::bounded::Bounded;
use self::filter::Filter;
use self::packer::{Packer, damaged};
pub use self::stored::{BYTES_MOST, Packed, pack};
use crate::{DType, Result};

/// Packs arrays of elements; object-safe, shared by all threads.
pub trait Codec: Send + Sync + Debug {
    /// The name, in the form that [`parse`] reads.
    fn name(&self) -> String;

    /// Packs elements and appends the result to `into`.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for elements that the codec cannot pack.
    fn encode(&self, elements: &[u8], into: &mut Vec<u8>) -> Result<()>;

    /// Unpacks into memory of exactly the original length.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for bytes of another codec, and for too few or too many of them.
    fn decode(&self, packed: &[u8], into: &mut [u8]) -> Result<()>;

    /// The most scratch that decoding `len` bytes of elements takes, in bytes.
    fn scratch_bytes(&self, len: u64) -> u64;

    /// How far unpacked elements may be from the originals; `None` for lossless codecs.
    fn bound(&self) -> Option<Bound> {
        None
    }
}

/// The codec with this name, for elements of a type. The error-bounded codec predicts along the
/// axes of `shape`.
///
/// # Errors
/// [`crate::Error::Option`] for an unknown name (the message lists the known ones), or for a codec
/// that does not support the type.
///
/// ```
/// use tidegate_array::{DType, codec};
/// let numbers: Vec<u8> = (0..1000u32).flat_map(|i| (7 * i).to_le_bytes()).collect();
/// let codec = codec::parse("delta+shuffle+zstd", DType::Uint32, &[1000])?;
/// let (mut packed, mut back) = (Vec::new(), vec![0; numbers.len()]);
/// codec.encode(&numbers, &mut packed)?;
/// codec.decode(&packed, &mut back)?;
/// assert!(packed.len() < 60 && back == numbers);
/// # Ok::<(), tidegate_array::Error>(())
/// ```
pub fn parse(name: &str, dtype: DType, shape: &[usize]) -> Result<Box<dyn Codec>> {
    if let Some(bound) = Bound::parse(name)? {
        return Ok(Box::new(Bounded::new(bound, dtype, shape)?));
    }
    let (filters, last) = name.rsplit_once('+').map_or((None, name), |(filters, last)| (Some(filters), last));
    let filters = filters.into_iter().flat_map(|filters| filters.split('+'));
    let filters: Vec<Filter> = filters.map(|filter| Filter::parse(filter, dtype)).collect::<Result<_>>()?;
    Ok(Box::new(Chain { filters, packer: Packer::parse(last, dtype)? }))
}

/// The lossless codecs worth trying for a type, the simplest first.
#[must_use]
pub fn candidates(dtype: DType) -> Vec<&'static str> {
    let mut names = vec!["lz4", "zstd", "deflate"];
    match dtype.size() {
        1 => names.push("delta+zstd"),
        _ => names.extend(["shuffle+lz4", "shuffle+zstd", "delta+shuffle+zstd"]),
    }
    names.extend(Packer::parse("pco", dtype).is_ok().then_some("pco"));
    names
}

/// Filters followed by a packer.
#[derive(Debug)]
struct Chain {
    filters: Vec<Filter>,
    packer: Packer,
}

impl Chain {
    /// Scratch that the filters need to restore `len` bytes, in bytes.
    fn filter_scratch(&self, len: usize) -> usize {
        if self.filters.iter().any(Filter::needs_scratch) { len } else { 0 }
    }
}

impl Codec for Chain {
    fn name(&self) -> String {
        let filters = self.filters.iter().map(Filter::name);
        filters.chain([self.packer.name()]).collect::<Vec<_>>().join("+")
    }

    fn encode(&self, elements: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let Some((first, others)) = self.filters.split_first() else {
            return self.packer.encode(elements, into);
        };
        let (mut now, mut next) = (vec![0; elements.len()], vec![0; elements.len()]);
        first.forward(elements, &mut now);
        for filter in others {
            filter.forward(&now, &mut next);
            std::mem::swap(&mut now, &mut next);
        }
        self.packer.encode(&now, into)
    }

    fn decode(&self, packed: &[u8], into: &mut [u8]) -> Result<()> {
        if packed.is_empty() {
            return Err(damaged("there are none"));
        }
        self.packer.decode(packed, into)?;
        let mut scratch = crate::filled(Some(self.filter_scratch(into.len())), 0)?;
        self.filters.iter().rev().for_each(|filter| filter.inverse(into, &mut scratch));
        Ok(())
    }

    fn scratch_bytes(&self, len: u64) -> u64 {
        self.packer.scratch_bytes(len) + self.filter_scratch(len as usize) as u64
    }

    fn bound(&self) -> Option<Bound> {
        self.filters.iter().find_map(Filter::bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_without_loss_comes_back(
            seed: u64, count in 0usize..600, spread in 0u32..64, at in 0usize..13, level in 7i32..10, cut in 0usize..400, flip in 0usize..4000,
        ) {
            let dtype = DType::ALL[at];
            let drawn = |i: usize| tidegate_core::hash::splitmix64(seed ^ i as u64) >> spread;
            let elements: Vec<u8> =
                (0..count).flat_map(|i| drawn(i).to_le_bytes()[..dtype.size()].to_vec()).collect();
            let mut names: Vec<String> = candidates(dtype).into_iter().map(str::to_owned).collect();
            names.extend([format!("zstd:{level}"), format!("delta+delta+shuffle+deflate:{level}"), "shuffle+delta+lz4".into()]);
            for name in names {
                let codec = parse(&name, dtype, &[count]).unwrap();
                prop_assert_eq!(codec.name(), name.clone());
                prop_assert!(codec.bound().is_none());
                let (mut packed, mut back) = (vec![7; 3], vec![1; elements.len()]);
                codec.encode(&elements, &mut packed).unwrap();
                codec.decode(&packed[3..], &mut back).unwrap();
                prop_assert!(back == elements, "{} of {:?}", name, dtype);
                // Truncated bytes are refused. Damaged bytes, or bytes of another length, are
                // refused or decode to something, but decoding ends.
                let whole = packed.split_off(3);
                if cut < whole.len() {
                    prop_assert!(codec.decode(&whole[..cut], &mut back).is_err(), "{} cut at {}", name, cut);
                }
                prop_assert!(codec.decode(&whole, &mut vec![0; elements.len() + dtype.size()]).is_err());
                if !elements.is_empty() {
                    prop_assert!(codec.decode(&whole, &mut vec![0; elements.len() - dtype.size()]).is_err());
                    let mut wrong = whole.clone();
                    let at = flip / 8 % wrong.len();
                    wrong[at] ^= 1 << (flip % 8);
                    // An error, or other elements: either is right, as long as decoding ends.
                    codec.decode(&wrong, &mut back).ok();
                }
            }
        }
    }

    #[test]
    fn names_that_are_none_list_those_that_are() {
        let words = |name: &str, dtype| parse(name, dtype, &[1]).unwrap_err().to_string();
        assert!(words("lzma", DType::Uint8).contains("lz4, zstd"));
        assert!(words("zstd+shuffle", DType::Uint8).contains("shuffle"));
        assert!(words("swap+zstd", DType::Uint8).contains("delta, shuffle, bitround"));
        assert!(words("zstd:99", DType::Uint8).contains("levels"));
        assert!(words("bitround:3+zstd", DType::Int32).contains("floats"));
        assert!(words("abs:0", DType::Float32).contains("pco"));
        assert!(words("rel:1e-3", DType::Uint8).contains("float32 or float64"));
    }
}
