//! Packed arrays as bytes: what a compressed column of a shard holds.
//!
//! Flow: elements, their type and shape, a codec -> [`pack`] -> bytes -> [`Packed`] -> elements.
//! Memory: as the codec has it.
//!
//! ```text
//! "TGC1"  place of the type in DType::ALL u8  axes u8  bytes of the name u8  0 u8  shape u32[axes]  name  packed elements
//! ```

use super::{Codec, parse};
use crate::{DType, Error, Result};

const MAGIC: &[u8; 4] = b"TGC1";
const HEAD_BYTES: usize = 8;
const AXES_MOST: usize = 8;
/// Bytes of an array: more than any memory has, and so few that sums of them are no trouble.
pub const BYTES_MOST: usize = 1 << 48;

/// A packed array within bytes.
#[derive(Debug)]
pub struct Packed<'a> {
    /// The type of elements.
    pub dtype: DType,
    /// The shape.
    pub shape: Vec<usize>,
    /// How they are packed.
    pub codec: Box<dyn Codec>,
    packed: &'a [u8],
}

/// Elements of an array as bytes that say what they are.
///
/// # Errors
/// As [`parse`] and [`Codec::encode`]; arrays of more than 8 axes, or 2^32 places along one.
///
/// ```
/// use tidegate_array::{DType, codec};
/// let bytes = codec::pack("shuffle+zstd", DType::Uint16, &[100], &[3, 0].repeat(100))?;
/// let packed = codec::Packed::of(&bytes)?;
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
            "{} bytes of {} in the shape {shape:?}",
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
    let length = length
        .map_err(|_| Error::option(format!("a chain of {} bytes: a name has at most 255", name.len())))?;
    bytes.extend([code, axes, length, 0]);
    for side in shape {
        let side = u32::try_from(*side)
            .map_err(|_| Error::value(format!("{side} places along an axis: 2^32 − 1 can be stored")))?;
        bytes.extend(side.to_le_bytes());
    }
    bytes.extend(name.as_bytes());
    codec.encode(elements, &mut bytes)?;
    Ok(bytes)
}

impl<'a> Packed<'a> {
    /// Whether bytes begin as those of a packed array do.
    #[must_use]
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// What bytes hold.
    ///
    /// # Errors
    /// [`Error::Value`] for bytes that are something else, or cut short.
    pub fn of(bytes: &'a [u8]) -> Result<Self> {
        let wrong = |what: &str| Error::value(format!("packed array: {what}"));
        let cut = || wrong("the bytes end within its head: it is cut short");
        if !Self::is_one(bytes) {
            return Err(wrong("the bytes do not begin with TGC1: they are something else"));
        }
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(cut)?;
        let (code, axes, name) = (usize::from(head[4]), usize::from(head[5]), usize::from(head[6]));
        let dtype =
            *DType::ALL.get(code).ok_or_else(|| wrong("an unknown type: a newer version wrote it"))?;
        if axes > AXES_MOST {
            return Err(wrong(&format!("{axes} axes: at most {AXES_MOST} can be")));
        }
        let (sides, rest) = rest.split_at_checked(4 * axes).ok_or_else(cut)?;
        let shape: Vec<usize> =
            sides.as_chunks::<4>().0.iter().map(|side| u32::from_le_bytes(*side) as usize).collect();
        let (name, packed) = rest.split_at_checked(name).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| wrong("the name of its codec is no text"))?;
        let codec = parse(name, dtype, &shape).map_err(|e| wrong(&e.to_string()))?;
        Ok(Self { dtype, shape, codec, packed })
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// [`Error::Value`] for a shape that no memory has.
    pub fn unpacked_bytes(&self) -> Result<usize> {
        let bytes = self.shape.iter().try_fold(self.dtype.size(), |n, side| n.checked_mul(*side));
        bytes.filter(|bytes| *bytes <= BYTES_MOST).ok_or_else(|| {
            Error::value(format!("packed array: a shape of {:?}, which no memory has", self.shape))
        })
    }

    /// The elements, into memory of their length.
    ///
    /// # Errors
    /// As [`Codec::decode`]; memory of another length.
    pub fn unpack(&self, into: &mut [u8]) -> Result<()> {
        let wanted = self.unpacked_bytes()?;
        if into.len() != wanted {
            return Err(Error::value(format!("packed array: {wanted} bytes into room for {}", into.len())));
        }
        self.codec.decode(self.packed, into)
    }
}
