//! Compact arrays: quantized, or packed by a codec. Their bytes name the codec.
//!
//! Flow: bytes -> scratch that unpacking needs -> elements, straight into their row of the batch.
//! Memory: scratch of the codec, which the worker reserves before.

use tidegate_array::codec::{self, Packed};
use tidegate_array::quantize::View;

use crate::npy::DType;
use crate::{Error, Result};

/// The codec name of quantized arrays.
pub const QUANTIZED: &str = "quantized";

fn decode(error: tidegate_array::Error) -> Error {
    Error::decode(error.to_string())
}

/// Bytes of scratch that unpacking a value needs at most.
///
/// # Errors
/// [`Error::Decode`] for bytes that are not a compact array, or are cut short.
pub fn scratch_bytes(bytes: &[u8]) -> Result<u64> {
    if View::has_magic(bytes) {
        return Ok(0);
    }
    let packed = Packed::parse(bytes).map_err(decode)?;
    Ok(packed.codec.scratch_bytes(packed.unpacked_bytes().map_err(decode)? as u64))
}

/// Bytes of scratch that unpacking any value of a field needs at most.
#[must_use]
pub fn max_scratch_bytes(dtype: DType, shape: &[usize], codec: &str) -> u64 {
    let bytes = shape.iter().fold(dtype.size() as u64, |n, side| n.saturating_mul(*side as u64));
    if bytes > codec::BYTES_MOST as u64 {
        return bytes;
    }
    // An unknown codec fails sample by sample.
    codec::parse(codec, dtype, shape).map_or(0, |codec| codec.scratch_bytes(bytes))
}

/// Writes the elements of a value, of this type and shape, into `into`.
///
/// # Errors
/// [`Error::Decode`] for another type or shape, and for bytes that contradict their header.
pub fn unpack(bytes: &[u8], dtype: DType, shape: &[usize], into: &mut [u8]) -> Result<()> {
    let other = |found: &[usize], of: &str| {
        Error::decode(format!("an array of {of} {found:?} where {} {shape:?} was declared", dtype.name()))
    };
    if View::has_magic(bytes) {
        let view = View::parse(bytes).map_err(decode)?;
        if view.shape != shape {
            return Err(other(&view.shape, "codes"));
        }
        return view.dequantize(dtype, into).map_err(decode);
    }
    let packed = Packed::parse(bytes).map_err(decode)?;
    if packed.shape != shape || packed.dtype != dtype {
        return Err(other(&packed.shape, packed.dtype.name()));
    }
    packed.unpack(into).map_err(decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_array::quantize::{Extent, Options, Per, Quantized, Rounding, Scheme};

    #[test]
    fn another_type_or_shape_is_refused() {
        let packed = codec::pack("shuffle+zstd", DType::Float32, &[2, 3], &[1; 24]).unwrap();
        let mut row = [0; 24];
        unpack(&packed, DType::Float32, &[2, 3], &mut row).unwrap();
        assert_eq!(row, [1; 24]);
        assert!(scratch_bytes(&packed).unwrap() > 0);
        let words = |bytes: &[u8], dtype, shape: &[usize]| {
            let mut row = vec![0u32; 6];
            unpack(bytes, dtype, shape, bytemuck::cast_slice_mut(&mut row)).unwrap_err().to_string()
        };
        assert!(words(&packed, DType::Int32, &[2, 3]).contains("float32 [2, 3] where int32 [2, 3]"));
        assert!(words(&packed, DType::Float32, &[3, 2]).contains("[2, 3] where float32 [3, 2]"));
        assert_eq!(max_scratch_bytes(DType::Int64, &[usize::MAX, 3], "pco"), u64::MAX);
        assert!(words(&packed[..9], DType::Float32, &[2, 3]).contains("cut short"));
        assert!(words(b"other", DType::Float32, &[2, 3]).contains("something else"));
        let options = Options {
            bits: 4,
            scheme: Scheme::Offset,
            per: Per::Tensor,
            extent: Extent::Whole,
            rounding: Rounding::Nearest,
        };
        let codes = Quantized::new(&[0.0; 6], &[6], &options).unwrap().to_bytes().unwrap();
        assert!(words(&codes, DType::Float32, &[2, 3]).contains("codes [6]"));
        assert!(words(&codes, DType::Int32, &[6]).contains("float32, float16 or bfloat16"));
    }
}
