//! The columns of a shard: their names, encodings and the bytes of a value.
//!
//! Flow: schema and the first sample -> [`Column`]s -> the bytes of each value.
//! Memory: the bytes of one value.

use serde_json::{Value as Json, json};
use tidegate_array::npy::header_of;
use tidegate_data::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::text::libsvm;
use tidegate_decode::{Field, Kind, Value};
use tidegate_source::{Source, SourceExt};

use super::compression::ArrayEncoding;
use super::shard::Format;

/// A column of a shard.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// The name of its encoding in MDS.
    pub(super) encoding: String,
    /// Bytes of a value, if all have the same size.
    pub(super) size: Option<u32>,
    pub(super) kind: Kind,
    /// How its arrays are compressed, if they are.
    array: Option<ArrayEncoding>,
}

impl Column {
    /// A column of text that is no field of the source.
    pub(super) fn text(name: &str) -> Self {
        Self { name: name.to_owned(), encoding: "str".into(), size: None, kind: Kind::Text, array: None }
    }

    /// How its values are stored, as the note of a finished shard names it.
    pub(super) fn resume_key(&self) -> String {
        let array = self.array.as_ref().map_or_else(|| "None".into(), ArrayEncoding::resume_key);
        format!("{} {array}", self.encoding)
    }

    /// What a reader needs to know of compressed arrays, for the index: (name, note).
    pub(super) fn compact_note(&self) -> Option<(String, Json)> {
        let note = |dtype: DType, shape: &[usize], codec: &str| {
            let dtype = dtype.name();
            json!({"dtype": dtype, "shape": shape, "codec": codec})
        };
        let note = match (&self.array, &self.kind) {
            (Some(array), _) => note(array.dtype, &array.shape, array.codec()?),
            // The source has compressed them already.
            (None, Kind::Compact { dtype, shape, codec }) => note(*dtype, shape, codec),
            (None, _) => return None,
        };
        Some((self.name.clone(), note))
    }
}

/// The columns for the fields of a source. The first sample tells the encoding of images.
pub(super) fn columns(
    source: &dyn Source,
    format: Format,
    encodings: Vec<Option<ArrayEncoding>>,
) -> Result<Vec<Column>> {
    let (at, data) = source.fetch(0)?;
    let values = source.parse(&at, &data)?;
    let column = |((field, value), array): ((&Field, &Value<'_>), Option<ArrayEncoding>)| {
        let jpeg = matches!(value, Value::Bytes(b) if b.starts_with(&[0xFF, 0xD8]));
        let png = matches!(value, Value::Bytes(b) if b.starts_with(b"\x89PNG"));
        let (encoding, size) = match (&field.kind, value) {
            (Kind::Image, _) if jpeg => ("jpeg", None),
            (Kind::Image, _) if png => ("png", None),
            (Kind::Int, _) => ("int", Some(8)),
            (Kind::Float, _) => ("float64", Some(8)),
            (Kind::Text, _) => ("str", None),
            (Kind::Json | Kind::Numbers { .. }, _) => ("json", None),
            (Kind::Pixels, _) => ("pil", None),
            (Kind::NdArray { .. }, _) => ("ndarray", None),
            _ => ("bytes", None),
        };
        // Arrays of one type and shape are stored without headers; the encoding has both.
        let encoding = match &field.kind {
            _ if let Some(array) = &array => array.encoding(),
            Kind::NdArray { dtype: Some(dtype), shape } => {
                let shape = shape
                    .iter()
                    .map(|shape| shape.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
                ["ndarray".to_owned(), dtype.clone()].into_iter().chain(shape).collect::<Vec<_>>().join(":")
            }
            Kind::Patch { dtype, shape, .. } => {
                let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
                format!("ndarray:{}:{}", dtype.name(), sides.join(","))
            }
            Kind::Sparse { part, .. } => format!("ndarray:{}", part.dtype().name()),
            _ => encoding.to_owned(),
        };
        let name = match (format, field.name.as_str()) {
            (Format::Tar, name) if is_array(&field.kind) => format!("{name}.npy"),
            (Format::Tar, "label") if field.kind == Kind::Int => "cls".to_owned(),
            (Format::Tar, "image") if jpeg => "jpg".to_owned(),
            (Format::Tar, "image") if png => "png".to_owned(),
            (_, name) => name.to_owned(),
        };
        Column { name, encoding, size, kind: field.kind.clone(), array }
    };
    Ok(source.schema().iter().zip(&values).zip(encodings).map(column).collect())
}

/// Whether values are arrays that an archive needs a header for.
fn is_array(kind: &Kind) -> bool {
    matches!(kind, Kind::NdArray { .. } | Kind::Patch { .. } | Kind::Sparse { .. })
}

/// A part of a sparse row: how many entries there are, and its numbers.
fn sparse(kind: &Kind, value: &Value<'_>) -> Result<Option<(DType, usize, Vec<u8>)>> {
    let (Kind::Sparse { part, base, columns }, Value::Bytes(line)) = (kind, value) else { return Ok(None) };
    // An entry takes three bytes or more.
    let mut numbers = vec![0; 4 * (line.len() / 3 + 1)];
    let count = libsvm::entries(line, *part, *base, *columns, &mut numbers)?;
    numbers.truncate(4 * count);
    Ok(Some((part.dtype(), count, numbers)))
}

/// The bytes of an .npy file, if the value is an array that needs a header.
pub(super) fn npy(kind: &Kind, value: &Value<'_>) -> Result<Option<Vec<u8>>> {
    if let Some((dtype, count, numbers)) = sparse(kind, value)? {
        return Ok(Some([header_of(dtype, &[count]), numbers].concat()));
    }
    let Value::Bytes(bytes) = value else { return Ok(None) };
    let Some(array) = kind.array(bytes).filter(|_| is_array(kind)) else { return Ok(None) };
    let array = array?;
    Ok(Some([&header_of(array.dtype, &array.shape)[..], &array.elements()].concat()))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The bytes of a value as a column stores it.
pub(super) fn encode(column: &Column, value: &Value<'_>) -> Result<Vec<u8>> {
    if *value == Value::Missing {
        return Err(Error::Config(format!(
            "the sample lacks field {:?}, and MDS has no missing values: pack it as tar, or select the samples that \
             have it",
            column.name
        )));
    }
    let misfit = || {
        Error::Config(format!("field {:?}: {value:?} cannot be stored as {}", column.name, column.encoding))
    };
    if let Some(array) = &column.array {
        return array
            .bytes(&column.kind, value)
            .map_err(|e| Error::Config(format!("field {:?}: {e}", column.name)));
    }
    if let Some((_, count, numbers)) = sparse(&column.kind, value)? {
        // MDS: one axis, whose length has four bytes.
        let mut bytes = vec![1 << 2 | 2];
        bytes.extend((count as u32).to_le_bytes());
        bytes.extend(numbers);
        return Ok(bytes);
    }
    Ok(match (column.encoding.as_str(), value) {
        ("int", Value::Bytes(b)) => number::<i64>(b).ok_or_else(misfit)?.to_le_bytes().to_vec(),
        ("float64", Value::Bytes(b)) => number::<f64>(b).ok_or_else(misfit)?.to_le_bytes().to_vec(),
        ("int", Value::Int(x)) => x.to_le_bytes().to_vec(),
        ("float64", Value::Float(x)) => x.to_le_bytes().to_vec(),
        (_, Value::Bytes(b)) => b.to_vec(),
        (_, Value::Quoted(text)) => text.text()?,
        _ => return Err(misfit()),
    })
}
