//! Arrays: NumPy's .npy (versions 1 to 3) and the arrays of MDS.
//!
//! Flow: bytes -> [`ArrayRef`] (dtype, shape, elements) -> copied into its row of the batch,
//! little-endian and in C order, however they are stored.
//! Memory: holds none.
//!
//! Specification: NumPy, «numpy.lib.format». Object arrays are refused, because they are pickles.

use std::borrow::Cow;

pub use tidegate_array::DType;
use tidegate_array::kernels::transpose::transpose;
use tidegate_array::npy::{Header, header};

use crate::{Error, Result};

/// The bytes of an array where a list of integers with missing values was stored.
/// Longer than arrays that happen to have these bytes.
pub const HAS_NULL: &[u8] = b"\xFF\x00a list of integers that has null\x00\xFF";

/// An array within encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayRef<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// The elements as they are stored.
    stored: &'a [u8],
    big_endian: bool,
    fortran: bool,
}

impl<'a> ArrayRef<'a> {
    /// Bytes of the elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stored.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    /// The elements, little-endian and in C order; copied only where they are stored otherwise.
    #[must_use]
    pub fn elements(&self) -> Cow<'a, [u8]> {
        if !self.big_endian && !self.fortran {
            return Cow::Borrowed(self.stored);
        }
        let mut elements = vec![0; self.stored.len()];
        self.copy_to(&mut elements);
        Cow::Owned(elements)
    }

    /// Writes the elements, little-endian and in C order, into their [`len`](Self::len) bytes.
    pub fn copy_to(&self, into: &mut [u8]) {
        let size = self.dtype.size();
        if self.fortran {
            in_c_order(self.stored, &self.shape, size, into)
        } else {
            into.copy_from_slice(self.stored)
        }
        if self.big_endian {
            into.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    }
}

/// Copies the elements of an array in Fortran order.
fn in_c_order(from: &[u8], shape: &[usize], size: usize, into: &mut [u8]) {
    if let [rows, columns] = *shape {
        return transpose(from, columns, rows, into, size);
    }
    // The distance of neighbours along each axis, in elements of `from`.
    let strides: Vec<usize> =
        shape.iter().scan(1, |stride, side| Some(std::mem::replace(stride, *stride * side))).collect();
    let (mut at, mut place) = (vec![0; shape.len()], 0);
    for element in into.chunks_exact_mut(size) {
        element.copy_from_slice(&from[place * size..(place + 1) * size]);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            place += strides[axis];
            if at[axis] < shape[axis] {
                break;
            }
            place -= strides[axis] * at[axis];
            at[axis] = 0;
        }
    }
}

/// Reads an .npy file.
///
/// # Errors
/// [`Error::Decode`] for bytes that are not .npy, and for arrays of objects or records.
pub fn npy(bytes: &[u8]) -> Result<ArrayRef<'_>> {
    let Header { dtype, big_endian, fortran, shape, offset } = header(bytes).map_err(Error::Decode)?;
    // One axis has one order.
    let fortran = fortran && shape.len() > 1;
    let stored = check_size(dtype, &shape, &bytes[offset..])?;
    Ok(ArrayRef { dtype, shape, stored, big_endian, fortran })
}

/// Reads an array of MDS: \[dtype\] \[ndim | shape dtype\] \[shape\] values. Parts that the column
/// fixes are absent from the bytes.
///
/// # Errors
/// [`Error::Decode`] or [`Error::Truncated`] when the sizes do not fit.
pub fn mds<'a>(bytes: &'a [u8], dtype: Option<&str>, shape: Option<&[usize]>) -> Result<ArrayRef<'a>> {
    if bytes == HAS_NULL {
        return Err(Error::decode("a list of integers has missing values (null), which they cannot have"));
    }
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
    let stored = check_size(dtype, &shape, &bytes[at.min(bytes.len())..])?;
    Ok(ArrayRef { dtype, shape, stored, big_endian: false, fortran: false })
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
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
                "header is wrong",
            ),
            ("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (6,), }", "structured"),
        ] {
            let error = npy(&file(header, &[0; 24])).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(mds(&[9, 1 << 2, 2, 5, 6], None, None).unwrap().elements()[..], [5, 6]);
    }

    #[test]
    fn elements_are_little_endian_and_in_c_order() {
        // The three axes of np.arange(24).reshape(2, 3, 4), stored the other way round.
        let stored: Vec<u8> =
            (0..4).flat_map(|k| (0..3).flat_map(move |j| (0..2).map(move |i| 12 * i + 4 * j + k))).collect();
        let bytes = file("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 4), }", &stored);
        assert_eq!(npy(&bytes).unwrap().elements()[..], (0..24).collect::<Vec<u8>>());
        let bytes =
            file("{'descr': '>u2', 'fortran_order': True, 'shape': (2, 2), }", &[0, 1, 0, 3, 0, 2, 0, 4]);
        assert_eq!(npy(&bytes).unwrap().elements()[..], [1, 0, 2, 0, 3, 0, 4, 0]);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), text in "[ -~]{0,80}") {
            let _results = (npy(&bytes).is_ok(), npy(&file(&text, &bytes)).is_ok(), mds(&bytes, None, None).is_ok());
        }
    }
}
