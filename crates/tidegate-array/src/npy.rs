//! The header of NumPy's .npy files, versions 1 to 3.
//!
//! Flow: the first bytes of a file -> [`Header`]: element type, order, shape, and offset of the
//! elements.
//! Memory: holds none.
//!
//! Specification: NumPy, «numpy.lib.format». Object arrays are refused because they are pickles.

use crate::DType;

/// The longest header that is read, in bytes.
pub const HEADER_BYTES: usize = 64 << 10;

/// What a file's header says about its array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type.
    pub dtype: DType,
    /// Whether elements are big-endian.
    pub big_endian: bool,
    /// Whether the array is in Fortran order: elements next to each other along the first axis are
    /// adjacent in the file.
    pub fortran: bool,
    /// Shape.
    pub shape: Vec<usize>,
    /// Offset of the first element, in bytes.
    pub offset: usize,
}

/// The bytes before the elements of an array in C order, of this machine's byte order.
///
/// ```
/// use tidegate_array::DType;
/// use tidegate_array::npy::{header, header_of};
/// let bytes = header_of(DType::Uint16, &[3, 4]);
/// assert_eq!(bytes.len() % 64, 0);
/// assert_eq!(header(&bytes).unwrap().shape, [3, 4]);
/// ```
#[must_use]
pub fn header_of(dtype: DType, shape: &[usize]) -> Vec<u8> {
    let size = dtype.size();
    let order = if size == 1 { '|' } else { '<' };
    let kind = match dtype {
        DType::Bool => 'b',
        // NumPy has no name of its own for it.
        DType::Bfloat16 => 'V',
        _ => match dtype.name().as_bytes()[0] {
            b'u' => 'u',
            b'i' => 'i',
            _ => 'f',
        },
    };
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let mut text = format!(
        "{{'descr': '{order}{kind}{size}', 'fortran_order': False, 'shape': ({}), }}",
        sides.trim_end()
    );
    // The elements begin at a multiple of 64 bytes, after ten bytes, the header and a newline.
    while !(10 + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Parses a header.
///
/// # Errors
/// A message if the bytes are not an .npy header, or if the array holds objects or records.
pub fn header(bytes: &[u8]) -> Result<Header, String> {
    let wrong = |what: &str| format!("npy: {what}");
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(wrong("it does not begin with \\x93NUMPY"));
    }
    let (start, len): (usize, Option<usize>) = match bytes.get(6) {
        Some(1) => (10, bytes.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))),
        Some(2 | 3) => (12, bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)),
        _ => return Err(wrong("unknown version")),
    };
    let header = len
        .and_then(|n| bytes.get(start..start.checked_add(n)?))
        .ok_or_else(|| wrong("the header is truncated"))?;
    let text = std::str::from_utf8(header).map_err(|_| wrong("the header is not text"))?;
    let value = |key: &str| {
        let at = text.find(&format!("'{key}'"))?;
        Some(text[at..].split_once(':')?.1.trim_start())
    };
    let descr = value("descr").and_then(|v| v.strip_prefix('\'')?.split('\'').next());
    let descr = descr
        .ok_or_else(|| wrong("a structured dtype cannot be read: save each field as an array of its own"))?;
    let (order, code) = descr.split_at_checked(1).ok_or_else(|| wrong("the dtype is empty"))?;
    let dtype = match (order, code) {
        ("|", "O") => {
            return Err(wrong(
                "an array of Python objects can only be unpickled, which is not done: save it as numbers",
            ));
        }
        ("|", "b1") => DType::Bool,
        ("|", "u1") => DType::Uint8,
        ("|", "i1") => DType::Int8,
        ("<" | ">", "u2") => DType::Uint16,
        ("<" | ">", "i2") => DType::Int16,
        ("<" | ">", "u4") => DType::Uint32,
        ("<" | ">", "i4") => DType::Int32,
        ("<" | ">", "u8") => DType::Uint64,
        ("<" | ">", "i8") => DType::Int64,
        ("<" | ">", "f2") => DType::Float16,
        ("<" | ">", "f4") => DType::Float32,
        ("<" | ">", "f8") => DType::Float64,
        // NumPy has no bfloat16: ml_dtypes saves it as two bytes without a meaning.
        ("<" | "|", "V2") => DType::Bfloat16,
        _ => return Err(wrong(&format!("dtype {descr} cannot be read: save it as numbers"))),
    };
    let fortran = match value("fortran_order") {
        Some(v) if v.starts_with("False") => false,
        Some(v) if v.starts_with("True") => true,
        _ => return Err(wrong("fortran_order is missing")),
    };
    let inside = value("shape").and_then(|v| v.strip_prefix('(')?.split(')').next());
    let shape: Option<Vec<usize>> = inside
        .map(|s| s.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.parse().ok()).collect())
        .ok_or_else(|| wrong("the shape is missing"))?;
    let shape = shape.ok_or_else(|| wrong("the shape is not a list of numbers"))?;
    Ok(Header { dtype, big_endian: order == ">", fortran, shape, offset: start + header.len() })
}
