//! Arrays: NumPy's .npy (versions 1 to 3) and the arrays of MDS.
//!
//! Flow: bytes -> [`ArrayRef`] (dtype, shape, data) -> copied into its row of the batch.
//! Memory: holds none.
//!
//! Specification: NumPy, «numpy.lib.format». Object arrays are refused, because they are pickles.

pub use tidegate_array::DType;
use tidegate_array::npy::{Header, header};

use crate::{Error, Result};

/// An array within encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayRef<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian elements in C order.
    pub data: &'a [u8],
}

/// Reads an .npy file.
///
/// # Errors
/// [`Error::Unsupported`] for big-endian elements and Fortran order; [`Error::Decode`] for bytes
/// that are not .npy, and for object arrays.
pub fn npy(bytes: &[u8]) -> Result<ArrayRef<'_>> {
    let Header { dtype, big_endian, fortran, shape, offset } = header(bytes).map_err(Error::Decode)?;
    if big_endian {
        return Err(Error::unsupported("npy: big-endian elements: save them little-endian"));
    }
    if fortran {
        return Err(Error::unsupported("npy: Fortran order: save np.ascontiguousarray(x)"));
    }
    check_size(dtype, &shape, &bytes[offset..]).map(|data| ArrayRef { dtype, shape, data })
}

/// Reads an array of MDS: \[dtype\] \[ndim | shape dtype\] \[shape\] values. Parts that the column
/// fixes are absent from the bytes.
///
/// # Errors
/// [`Error::Decode`] or [`Error::Truncated`] when the sizes do not fit.
pub fn mds<'a>(bytes: &'a [u8], dtype: Option<&str>, shape: Option<&[usize]>) -> Result<ArrayRef<'a>> {
    let cut = || Error::truncated("ndarray: truncated header");
    let mut at = 0;
    let dtype = match dtype {
        Some(name) => DType::parse(name).map_err(Error::Decode)?,
        None => {
            at += 1;
            match bytes.first().ok_or_else(cut)? {
                8 => DType::Uint8,
                9 => DType::Int8,
                16 => DType::Uint16,
                17 => DType::Int16,
                18 => DType::Float16,
                32 => DType::Uint32,
                33 => DType::Int32,
                34 => DType::Float32,
                64 => DType::Uint64,
                65 => DType::Int64,
                66 => DType::Float64,
                code => return Err(Error::unsupported(format!("ndarray: unknown dtype code {code}"))),
            }
        }
    };
    let shape = match shape {
        Some(shape) => shape.to_vec(),
        None => {
            let code = usize::from(*bytes.get(at).ok_or_else(cut)?);
            at += 1;
            let (dims, width) = (code >> 2, 1 << (code & 3));
            let mut shape = Vec::new();
            for _ in 0..dims {
                let word = bytes.get(at..at + width).ok_or_else(cut)?;
                let size = word.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
                shape.push(usize::try_from(size).map_err(|_| cut())?);
                at += width;
            }
            shape
        }
    };
    check_size(dtype, &shape, &bytes[at.min(bytes.len())..]).map(|data| ArrayRef { dtype, shape, data })
}

fn check_size<'a>(dtype: DType, shape: &[usize], data: &'a [u8]) -> Result<&'a [u8]> {
    let size = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
    if size != Some(data.len()) {
        return Err(Error::decode(format!(
            "an array of {} {shape:?} does not have {} bytes: it is truncated or its header is wrong",
            dtype.name(),
            data.len()
        )));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn reads_and_refuses() {
        let good = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", &[0; 24]);
        assert_eq!(npy(&good).unwrap().shape, [2, 3]);
        for (header, word) in [
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "Python objects"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (6,), }", "Fortran"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
                "header is wrong",
            ),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (6,), }", "little-endian"),
        ] {
            let error = npy(&file(header, &[0; 24])).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(mds(&[9, 1 << 2, 2, 5, 6], None, None).unwrap().data, [5, 6]);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), text in "[ -~]{0,80}") {
            let _results = (npy(&bytes).is_ok(), npy(&file(&text, &bytes)).is_ok(), mds(&bytes, None, None).is_ok());
        }
    }
}
