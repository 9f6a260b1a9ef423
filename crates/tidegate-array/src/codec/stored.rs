//! Packed arrays as bytes: the contents of a compressed column of a shard.
//!
//! Flow: elements, their type and shape, a codec -> [`pack`] -> bytes -> [`Packed`] -> elements.
//! Memory: that of the codec.
//!
//! ```text
//! "TGC1"  index of the type in DType::ALL u8  axes u8  bytes of the name u8  0 u8
//! shape u32[axes]  name  packed elements
//! ```

use super::{Codec, parse};
use crate::{DType, Error, Result};

const MAGIC: &[u8; 4] = b"TGC1";
const HEAD_BYTES: usize = 8;
const AXES_MOST: usize = 8;
/// The largest array, in bytes: more than any memory, yet sums of such lengths do not overflow.
pub const BYTES_MOST: usize = 1 << 48;

/// A packed array in borrowed bytes.
#[derive(Debug)]
pub struct Packed<'a> {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Vec<usize>,
    /// The codec that packed the elements.
    pub codec: Box<dyn Codec>,
    packed: &'a [u8],
}

/// Packs an array into self-describing bytes.
///
/// # Errors
/// As [`parse`] and [`Codec::encode`]; also for more than 8 axes, or a side of 2^32 or more.
///
/// ```
/// use tidegate_array::{DType, codec};
/// let bytes = codec::pack("shuffle+zstd", DType::Uint16, &[100], &[3, 0].repeat(100))?;
/// let packed = codec::Packed::parse(&bytes)?;
/// let mut back = vec![0; 200];
/// packed.unpack(&mut back)?;
/// assert_eq!((packed.shape, back), (vec![100], [3, 0].repeat(100)));
/// # Ok::<(), tidegate_array::Error>(())
/// ```
pub fn pack(name: &str, dtype: DType, shape: &[usize], elements: &[u8]) -> Result<Vec<u8>> {
    let codec = parse(name, dtype, shape)?;
    let name = codec.name();
    let places = shape.iter().try_fold(dtype.size(), |n, side| n.checked_mul(*side));
    if places != Some(elements.len()) {
        return Err(Error::value(format!(
            "{} bytes of {} do not fill the shape {shape:?}",
            elements.len(),
            dtype.name()
        )));
    }
    let axes = u8::try_from(shape.len()).ok().filter(|axes| usize::from(*axes) <= AXES_MOST);
    let axes = axes.ok_or_else(|| {
        Error::value(format!("an array of {} axes: at most {AXES_MOST} can be stored", shape.len()))
    })?;
    let code = DType::ALL.iter().position(|known| *known == dtype).unwrap_or_default() as u8;
    let mut bytes = MAGIC.to_vec();
    let length = u8::try_from(name.len());
    let length = length.map_err(|_| {
        Error::option(format!("the name of a codec has {} bytes: at most 255 can be stored", name.len()))
    })?;
    bytes.extend([code, axes, length, 0]);
    for side in shape {
        let side = u32::try_from(*side).map_err(|_| {
            Error::value(format!("{side} elements along an axis: at most 2^32 − 1 can be stored"))
        })?;
        bytes.extend(side.to_le_bytes());
    }
    bytes.extend(name.as_bytes());
    codec.encode(elements, &mut bytes)?;
    Ok(bytes)
}

impl<'a> Packed<'a> {
    /// Whether the bytes begin like a packed array.
    #[must_use]
    pub fn has_magic(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Parses a packed array.
    ///
    /// # Errors
    /// [`Error::Value`] for other bytes, and for truncated ones.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let wrong = |what: &str| Error::value(format!("packed array: {what}"));
        let cut = || wrong("the bytes end within its head: it is cut short");
        if !Self::has_magic(bytes) {
            return Err(wrong("the bytes do not begin with TGC1: they are something else"));
        }
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(cut)?;
        let (code, axes, name) = (usize::from(head[4]), usize::from(head[5]), usize::from(head[6]));
        let dtype =
            *DType::ALL.get(code).ok_or_else(|| wrong("an unknown type: a newer version wrote it"))?;
        if axes > AXES_MOST {
            return Err(wrong(&format!("{axes} axes: at most {AXES_MOST} are possible")));
        }
        let (sides, rest) = rest.split_at_checked(4 * axes).ok_or_else(cut)?;
        let shape: Vec<usize> =
            sides.as_chunks::<4>().0.iter().map(|side| u32::from_le_bytes(*side) as usize).collect();
        let (name, packed) = rest.split_at_checked(name).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| wrong("the name of its codec is not text"))?;
        let codec = parse(name, dtype, &shape).map_err(|e| wrong(&e.to_string()))?;
        Ok(Self { dtype, shape, codec, packed })
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// [`Error::Value`] for a shape larger than any memory.
    pub fn unpacked_bytes(&self) -> Result<usize> {
        let bytes = self.shape.iter().try_fold(self.dtype.size(), |n, side| n.checked_mul(*side));
        bytes.filter(|bytes| *bytes <= BYTES_MOST).ok_or_else(|| {
            Error::value(format!("packed array: a shape of {:?} is larger than any memory", self.shape))
        })
    }

    /// Unpacks the elements into memory of exactly their length.
    ///
    /// # Errors
    /// As [`Codec::decode`]; also for memory of another length.
    pub fn unpack(&self, into: &mut [u8]) -> Result<()> {
        let wanted = self.unpacked_bytes()?;
        if into.len() != wanted {
            return Err(Error::value(format!(
                "packed array: {wanted} bytes do not fill a buffer of {}",
                into.len()
            )));
        }
        self.codec.decode(self.packed, into)
    }
}
