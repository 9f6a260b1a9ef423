//! What samples are made of: fields, their kinds, and values borrowed from the bytes that were read.
//!
//! Flow: a source's files -> [`Schema`]; bytes of a sample -> [`Value`]s; called by sources, batches and the pipeline.
//! Memory: holds none; values borrow.

use crate::npy::{ArrayRef, DType};
use crate::text::quoted::Quoted;
use crate::{Result, compact, npy};

/// What a field holds at rest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An encoded image: JPEG, PNG or WebP, told apart by its first bytes.
    Image,
    /// Anything.
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
    /// An array as MDS writes it; the fixed dtype and shape where its column declares them.
    NdArray {
        /// The dtype of every sample, if declared.
        dtype: Option<String>,
        /// The shape of every sample, if declared.
        shape: Option<Vec<usize>>,
    },
    /// An array made small, quantized or packed, as its bytes say: always of this type and shape once it is whole.
    Compact {
        /// Element type; of what is quantized the one that it had.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// The name of the codec; `quantized` where codes are values of a grid.
        codec: String,
    },
    /// A list of numbers as JSON writes it.
    Numbers {
        /// Element type: int64 or float64.
        dtype: DType,
    },
    /// One part of the entries of a sparse row.
    Sparse {
        /// Which.
        part: Part,
        /// The index of the first column in the file; delivered ones begin with 0.
        base: u64,
        /// Columns.
        columns: u64,
    },
    /// A patch of an array that lies in chunks: always of this type and shape.
    Patch {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// Along the patch's axes, the last of the shape, how many of its voxels are how many of the first field's.
        voxels: Vec<(u32, u32)>,
    },
    /// An uncompressed image as MDS' `pil` writes it: width, height, mode, pixels.
    Pixels,
}

impl Kind {
    /// Whether its values are near to what they were, and can be had in several types.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        matches!(self, Kind::Compact { codec, .. } if codec == compact::QUANTIZED)
    }

    /// The array that a value holds, where each says itself or the field says what it is.
    pub fn array<'a>(&self, bytes: &'a [u8]) -> Option<Result<ArrayRef<'a>>> {
        match self {
            Kind::Npy => Some(npy::npy(bytes)),
            Kind::NdArray { dtype, shape } => Some(npy::mds(bytes, dtype.as_deref(), shape.as_deref())),
            Kind::Patch { dtype, shape, .. } => Some(npy::mds(bytes, Some(dtype.name()), Some(shape))),
            _ => None,
        }
    }

    /// The kind's word in schemas and messages.
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
            Kind::Sparse { part: Part::Indices, .. } => "sparse indices",
            Kind::Sparse { part: Part::Values, .. } => "sparse values",
            Kind::Pixels => "pixels",
        }
    }
}

/// What of the entries of a sparse row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Their columns, as uint32.
    Indices,
    /// What they are, as float32.
    Values,
}

impl Part {
    /// The type of its elements.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Part::Indices => DType::Uint32,
            Part::Values => DType::Float32,
        }
    }
}

/// One field of every sample.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it holds.
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
    /// Text within quotes.
    Quoted(Quoted<'a>),
}

impl Value<'_> {
    /// It in a few words, for messages.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Value::Missing => "nothing".into(),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::Int(x) => x.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Quoted(text) => format!("text of {} bytes", text.most()),
        }
    }
}

/// The kind that a file extension promises.
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
