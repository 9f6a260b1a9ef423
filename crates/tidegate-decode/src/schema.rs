//! The schema of a source: fields, their kinds, and the values of a sample.
//!
//! Flow: a source's files -> [`Schema`]; bytes of a sample -> [`Value`]s. Used by sources, batches
//! and the pipeline.
//! Memory: holds none; values borrow from the bytes that were read.

use crate::npy::{ArrayRef, DType};
use crate::quoted::Quoted;
use crate::{Result, compact, npy};

/// The stored kind of a field.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An encoded image: JPEG, PNG or WebP. Its first bytes tell which.
    Image,
    /// Bytes of any content.
    Bytes,
    /// UTF-8 text.
    Text,
    /// A JSON document.
    Json,
    /// An integer.
    Int,
    /// A float.
    Float,
    /// An array in NumPy's .npy format.
    Npy,
    /// An array as MDS writes it, with the dtype and shape that its column declares, if it does.
    NdArray {
        /// The dtype of every sample, if declared.
        dtype: Option<String>,
        /// The shape of every sample, if declared.
        shape: Option<Vec<usize>>,
    },
    /// A compact array, quantized or packed: unpacked, it always has this dtype and shape.
    Compact {
        /// Element type; for quantized arrays, the type before quantization.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// The name of the codec; [`QUANTIZED`](compact::QUANTIZED) for quantized arrays.
        codec: String,
    },
    /// A list of numbers in JSON notation.
    Numbers {
        /// Element type: int64 or float64.
        dtype: DType,
    },
    /// The indices or the values of a sparse row.
    Sparse {
        /// Which of the two.
        part: SparsePart,
        /// The index of the first column in the file: 0 or 1. Delivered indices begin with 0.
        base: u64,
        /// The number of columns.
        columns: u64,
    },
    /// A patch of a chunked array: always of this dtype and shape.
    Patch {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// For each axis of the patch (the last axes of the shape), a ratio (n, m): n voxels of
        /// this field are as long as m voxels of the first field.
        voxels: Vec<(u32, u32)>,
    },
    /// An uncompressed image in MDS' `pil` encoding: width, height, mode, pixels.
    Pixels,
}

impl Kind {
    /// Whether its values are approximations, which can be delivered in several float types.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        matches!(self, Kind::Compact { codec, .. } if codec == compact::QUANTIZED)
    }

    /// Parses a value as an array, if the kind is one whose bytes or field state dtype and shape.
    pub fn array<'a>(&self, bytes: &'a [u8]) -> Option<Result<ArrayRef<'a>>> {
        match self {
            Kind::Npy => Some(npy::npy(bytes)),
            Kind::NdArray { dtype, shape } => Some(npy::mds(bytes, dtype.as_deref(), shape.as_deref())),
            Kind::Patch { dtype, shape, .. } => Some(npy::mds(bytes, Some(dtype.name()), Some(shape))),
            _ => None,
        }
    }

    /// The name of the kind in schemas and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Bytes => "bytes",
            Kind::Text => "text",
            Kind::Json => "json",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Npy => "npy",
            Kind::NdArray { .. } => "ndarray",
            Kind::Compact { .. } => "compact array",
            Kind::Numbers { .. } => "numbers",
            Kind::Patch { .. } => "patch",
            Kind::Sparse { part: SparsePart::Indices, .. } => "sparse indices",
            Kind::Sparse { part: SparsePart::Values, .. } => "sparse values",
            Kind::Pixels => "pixels",
        }
    }
}

/// The part of a sparse row's entries that a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparsePart {
    /// Column indices, as uint32.
    Indices,
    /// Values, as float32.
    Values,
}

impl SparsePart {
    /// The element type.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            SparsePart::Indices => DType::Uint32,
            SparsePart::Values => DType::Float32,
        }
    }
}

/// One field of every sample.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// The kind of its values.
    pub kind: Kind,
}

/// The fields of a source, in order.
pub type Schema = Vec<Field>;

/// One field of one sample, borrowed from the bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// The sample lacks this field.
    Missing,
    /// Encoded bytes or text.
    Bytes(&'a [u8]),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text in quotes, with its escapes.
    Quoted(Quoted<'a>),
}

impl Value<'_> {
    /// A short description, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Value::Missing => "nothing".into(),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::Int(x) => x.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Quoted(text) => format!("text of {} bytes", text.max_len()),
        }
    }
}

/// The kind that a file extension stands for.
#[must_use]
pub fn kind_of_extension(extension: &str) -> Kind {
    match extension.rsplit('.').next().unwrap_or(extension).to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "png" | "webp" | "img" | "image" => Kind::Image,
        "cls" | "cls2" | "class" | "count" | "index" | "inx" | "id" => Kind::Int,
        "txt" | "text" | "transcript" => Kind::Text,
        "json" | "jsn" => Kind::Json,
        "npy" => Kind::Npy,
        _ => Kind::Bytes,
    }
}
