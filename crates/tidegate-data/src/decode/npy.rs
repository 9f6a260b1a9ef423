//! Arrays: NumPy's .npy (versions 1 to 3) and the arrays of MDS.
//!
//! Flow: bytes -> [`ArrayRef`] (dtype, shape, where its data lie) -> copied into its row of the batch.
//! Memory: holds none.
//!
//! Specification: NumPy, «numpy.lib.format». Object arrays are refused: they are pickles.

use crate::{Error, Result};

/// Element types that a batch can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum DType {
    Bool,
    Uint8,
    Int8,
    Uint16,
    Int16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float16,
    Bfloat16,
    Float32,
    Float64,
}

impl DType {
    /// NumPy's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::Uint8 => "uint8",
            DType::Int8 => "int8",
            DType::Uint16 => "uint16",
            DType::Int16 => "int16",
            DType::Uint32 => "uint32",
            DType::Int32 => "int32",
            DType::Uint64 => "uint64",
            DType::Int64 => "int64",
            DType::Float16 => "float16",
            DType::Bfloat16 => "bfloat16",
            DType::Float32 => "float32",
            DType::Float64 => "float64",
        }
    }

    /// The type of that name.
    ///
    /// # Errors
    /// [`Error::Config`] naming the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        use DType::{
            Bfloat16, Bool, Float16, Float32, Float64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32,
            Uint64,
        };
        let all = [
            Bool, Uint8, Int8, Uint16, Int16, Uint32, Int32, Uint64, Int64, Float16, Bfloat16, Float32,
            Float64,
        ];
        all.into_iter().find(|d| d.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|d| d.name()).collect();
            Error::Config(format!("unknown dtype {name:?}; known are {}", names.join(", ")))
        })
    }

    /// Bytes an element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            DType::Bool | DType::Uint8 | DType::Int8 => 1,
            DType::Uint16 | DType::Int16 | DType::Float16 | DType::Bfloat16 => 2,
            DType::Uint32 | DType::Int32 | DType::Float32 => 4,
            DType::Uint64 | DType::Int64 | DType::Float64 => 8,
        }
    }
}

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
/// [`Error::Decode`] for what is no .npy, big-endian, in Fortran order or of objects.
pub fn npy(bytes: &[u8]) -> Result<ArrayRef<'_>> {
    let wrong = |what: &str| Error::Decode(format!("npy: {what}"));
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(wrong("it does not begin with \\x93NUMPY"));
    }
    let (start, len): (usize, Option<usize>) = match bytes.get(6) {
        Some(1) => (10, bytes.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))),
        Some(2 | 3) => (12, bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)),
        _ => return Err(wrong("an unknown version")),
    };
    let header =
        len.and_then(|n| bytes.get(start..start.checked_add(n)?)).ok_or_else(|| wrong("truncated header"))?;
    let text = std::str::from_utf8(header).map_err(|_| wrong("the header is not text"))?;
    let value = |key: &str| {
        let at = text.find(&format!("'{key}'"))?;
        Some(text[at..].split_once(':')?.1.trim_start())
    };
    let descr = value("descr").and_then(|v| v.strip_prefix('\'')?.split('\'').next());
    let dtype = match descr.ok_or_else(|| wrong("a structured dtype cannot be read"))? {
        "|b1" => DType::Bool,
        "|u1" => DType::Uint8,
        "|i1" => DType::Int8,
        "<u2" => DType::Uint16,
        "<i2" => DType::Int16,
        "<u4" => DType::Uint32,
        "<i4" => DType::Int32,
        "<u8" => DType::Uint64,
        "<i8" => DType::Int64,
        "<f2" => DType::Float16,
        "<f4" => DType::Float32,
        "<f8" => DType::Float64,
        "|O" => return Err(wrong("an array of Python objects, which only unpickling could read")),
        other => {
            return Err(wrong(&format!("dtype {other} cannot be read: save it little-endian and numeric")));
        }
    };
    if value("fortran_order").is_none_or(|v| !v.starts_with("False")) {
        return Err(wrong("Fortran order: save np.ascontiguousarray(x)"));
    }
    let inside = value("shape").and_then(|v| v.strip_prefix('(')?.split(')').next());
    let shape: Option<Vec<usize>> = inside
        .map(|s| s.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.parse().ok()).collect())
        .ok_or_else(|| wrong("no shape"))?;
    let shape = shape.ok_or_else(|| wrong("a shape that is no list of numbers"))?;
    let data = &bytes[start + header.len()..];
    check_size(dtype, &shape, data).map(|data| ArrayRef { dtype, shape, data })
}

/// Reads an array of MDS: \[dtype\] \[ndim | shape dtype\] \[shape\] values; what the column fixes is left out.
///
/// # Errors
/// [`Error::Decode`] when the sizes do not fit.
pub fn mds<'a>(bytes: &'a [u8], dtype: Option<&str>, shape: Option<&[usize]>) -> Result<ArrayRef<'a>> {
    let cut = || Error::Decode("ndarray: truncated header".into());
    let mut at = 0;
    let dtype = match dtype {
        Some(name) => DType::parse(name)?,
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
                code => return Err(Error::Decode(format!("ndarray: unknown dtype code {code}"))),
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
        return Err(Error::Decode(format!(
            "an array of {} {shape:?} does not have {} bytes: it is truncated or its header lies",
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
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "unpickling"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (6,), }", "Fortran"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", "lies"),
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
            let _outcome = (npy(&bytes).is_ok(), npy(&file(&text, &bytes)).is_ok(), mds(&bytes, None, None).is_ok());
        }
    }
}
