//! Columns of Arrow as fields of samples, and a group of packed rows.
//!
//! Flow: Arrow schema -> [`Columns`] (fields, kinds); record batches -> [`Packed`] rows -> values
//! of one row.
//! Memory: holds none; rows are packed into memory of the caller, and [`super::table`] bounds
//! Arrow's own arrays.
//!
//! A packed group is u32 offsets\[rows + 1\], then the rows. A row has for each column a u32 size
//! (all ones: missing) and its bytes. Integers and floats take 8 bytes; unsigned 64-bit integers
//! keep their bits. Lists of numbers are arrays in the form of MDS. Structs, maps and lists of
//! lists become JSON. Hugging Face stores images and audio as a struct with a child `bytes`: it is
//! one field, and its child `path` is the sample's key.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, BinaryArray, Float64Array, Int64Array, LargeBinaryArray, PrimitiveArray};
use arrow_array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow_cast::{can_cast_types, cast};
use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use tidegate_decode::{Field, Kind, Schema, Value, npy};

/// The size that marks a missing value.
const MISSING: u32 = u32::MAX;
/// Bytes of an offset or a size.
const WORD: usize = 4;

/// The columns of a table, as fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(String, DataType)>", into = "Vec<(String, DataType)>")]
pub(crate) struct Columns {
    list: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    /// A child of the struct of that name holds the bytes.
    bytes_of_struct: bool,
    kind: Kind,
    /// The type as stored, or one that holds those of all files.
    stored: DataType,
}

impl From<Vec<(String, DataType)>> for Columns {
    fn from(list: Vec<(String, DataType)>) -> Self {
        Self { list: list.into_iter().map(|(name, stored)| Column::new(&name, stored)).collect() }
    }
}

impl From<Columns> for Vec<(String, DataType)> {
    fn from(columns: Columns) -> Self {
        columns.list.into_iter().map(|column| (column.name, column.stored)).collect()
    }
}

/// Gets the key and the values of a row.
type RowVisit<'a> = dyn FnMut(Option<&str>, &[Cell<'_>]) -> Result<()> + 'a;

/// One value of a record batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell<'a> {
    Missing,
    Bytes(Cow<'a, [u8]>),
    Int(i64),
    Float(f64),
}

impl Cell<'_> {
    /// Bytes in a packed row.
    pub(crate) fn packed_bytes(&self) -> u64 {
        WORD as u64
            + match self {
                Cell::Missing => 0,
                Cell::Bytes(bytes) => bytes.len() as u64,
                Cell::Int(_) | Cell::Float(_) => 8,
            }
    }
}

/// The values of one column of a record batch.
#[derive(Debug)]
enum Cells {
    /// The column was not asked for.
    Absent,
    Small(BinaryArray),
    Large(LargeBinaryArray),
    Int(Int64Array),
    Float(Float64Array),
    List(ArrayRef),
    Json(ArrayRef),
}

impl Columns {
    /// The fields of an Arrow schema.
    pub(crate) fn new(schema: &ArrowSchema) -> Self {
        let column = |field: &arrow_schema::FieldRef| Column::new(field.name(), field.data_type().clone());
        Self { list: schema.fields().iter().map(column).collect() }
    }

    /// The fields; those in `images` were seen to hold images.
    pub(crate) fn fields(&self, images: &[bool]) -> Schema {
        let field = |(column, &image): (&Column, &bool)| Field {
            name: column.name.clone(),
            kind: if image { Kind::Image } else { column.kind.clone() },
        };
        self.list.iter().zip(images).map(field).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|column| &*column.name)
    }

    /// Whether a column may hold encoded images.
    pub(crate) fn may_hold_images(&self, c: usize) -> bool {
        self.list[c].kind == Kind::Bytes
    }

    /// Adds the columns of another file, by name: numbers become wider, and text and bytes large,
    /// where one of the files needs it.
    ///
    /// # Errors
    /// In words, for a column whose types have nothing in common, and for a file without any of
    /// these columns.
    pub(crate) fn join(&mut self, other: &Self) -> Result<(), String> {
        if !other.list.iter().any(|column| self.list.iter().any(|known| known.name == column.name)) {
            let names = |c: &Self| c.list.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(", ");
            return Err(format!(
                "its columns are {}, those of the files before {}",
                names(other),
                names(self)
            ));
        }
        for column in &other.list {
            let Some(known) = self.list.iter_mut().find(|known| known.name == column.name) else {
                self.list.push(column.clone());
                continue;
            };
            let stored = common_type(&known.stored, &column.stored).ok_or_else(|| {
                let Column { name, stored, .. } = column;
                format!("its column {name:?} holds {stored}, where files before have {}", known.stored)
            })?;
            if stored != known.stored {
                *known = Column::new(&known.name, stored);
            }
        }
        Ok(())
    }

    /// For each column its place in a file with these, if the file has it.
    pub(crate) fn places(&self, file: &Self) -> Vec<Option<usize>> {
        let place = |column: &Column| file.list.iter().position(|other| other.name == column.name);
        self.list.iter().map(place).collect()
    }

    /// A batch that was read from a file, with the wanted columns in the order and the types of
    /// all files. What the file lacks is null.
    pub(crate) fn conform(
        &self,
        batch: &RecordBatch,
        places: &[Option<usize>],
        wanted: &[bool],
    ) -> Result<RecordBatch> {
        // The batch has the columns that are read, in the order of the file.
        let mut read: Vec<usize> =
            places.iter().zip(wanted).filter(|(_, wanted)| **wanted).filter_map(|(at, _)| *at).collect();
        read.sort_unstable();
        let rows = batch.num_rows();
        let (mut fields, mut arrays) = (Vec::new(), Vec::new());
        for ((column, place), _) in self.list.iter().zip(places).zip(wanted).filter(|(_, wanted)| **wanted) {
            let words = |e| Error::decode(format!("column {:?}: {e}", column.name));
            let array = place.and_then(|at| batch.columns().get(read.binary_search(&at).ok()?));
            let array = match array {
                Some(array) if *array.data_type() == column.stored => array.clone(),
                Some(array) => cast(array, &column.stored).map_err(words)?,
                None => new_null_array(&column.stored, rows),
            };
            fields.push(ArrowField::new(&column.name, column.stored.clone(), true));
            arrays.push(array);
        }
        let rows = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), arrays, &rows)
            .map_err(|e| Error::decode(e.to_string()))
    }

    /// The wanted columns of a batch that has just those, in the same order.
    fn cells(&self, batch: &RecordBatch, wanted: &[bool]) -> Result<Vec<Cells>> {
        let mut arrays = batch.columns().iter();
        let cells = self.list.iter().zip(wanted).map(|(column, &wanted)| {
            if !wanted {
                return Ok(Cells::Absent);
            }
            let array = arrays.next().ok_or_else(|| Error::decode("a column is missing"))?;
            column.cells(array)
        });
        cells.collect()
    }

    /// Visits the rows of a batch of all columns.
    pub(crate) fn each_row(&self, batch: &RecordBatch, visit: &mut RowVisit<'_>) -> Result<()> {
        let cells = self.cells(batch, &vec![true; self.list.len()])?;
        let keys: Option<&ArrayRef> = self.list.iter().zip(batch.columns()).find_map(|(column, array)| {
            column.bytes_of_struct.then(|| array.as_struct().column_by_name("path")).flatten()
        });
        let keys = keys.and_then(|paths| cast(paths, &DataType::Utf8).ok());
        for row in 0..batch.num_rows() {
            let values: Vec<Cell<'_>> = cells.iter().map(|c| c.value(row)).collect::<Result<_>>()?;
            let key =
                keys.as_ref().map(|k| k.as_string::<i32>()).filter(|k| k.is_valid(row)).map(|k| k.value(row));
            visit(key, &values)?;
        }
        Ok(())
    }

    /// The values of a packed row.
    pub(crate) fn parse<'a>(&self, row: &'a [u8]) -> Result<Vec<Value<'a>>> {
        let cut = || Error::Internal("a packed row is shorter than its sizes".into());
        let mut rest = row;
        let mut values = Vec::with_capacity(self.list.len());
        for column in &self.list {
            let (size, after) = rest.split_first_chunk::<WORD>().ok_or_else(cut)?;
            rest = after;
            let size = u32::from_le_bytes(*size);
            if size == MISSING {
                values.push(Value::Missing);
                continue;
            }
            let (bytes, after) = rest.split_at_checked(size as usize).ok_or_else(cut)?;
            rest = after;
            let word = || <[u8; 8]>::try_from(bytes).map_err(|_| cut());
            values.push(match column.kind {
                Kind::Int => Value::Int(i64::from_le_bytes(word()?)),
                Kind::Float => Value::Float(f64::from_le_bytes(word()?)),
                _ => Value::Bytes(bytes),
            });
        }
        Ok(values)
    }
}

impl Column {
    fn new(name: &str, stored: DataType) -> Self {
        let bytes_of_struct = matches!(&stored, DataType::Struct(children)
            if children.iter().any(|c| c.name() == "bytes" && is_binary(c.data_type())));
        let kind = if bytes_of_struct { Kind::Bytes } else { kind(&stored) };
        Self { name: name.to_owned(), bytes_of_struct, kind, stored }
    }

    fn cells(&self, array: &ArrayRef) -> Result<Cells> {
        let words = |e: arrow_schema::ArrowError| Error::decode(format!("column {:?}: {e}", self.name));
        let mut array = array.clone();
        if self.bytes_of_struct {
            let outer = array.as_struct();
            let inner = outer.column_by_name("bytes").cloned();
            let inner = inner.ok_or_else(|| Error::decode(format!("column {:?} has no bytes", self.name)))?;
            array = if outer.null_count() == 0 { inner } else { masked(&inner, outer).map_err(words)? };
        }
        Ok(match &self.kind {
            Kind::Int if *array.data_type() == DataType::UInt64 => {
                Cells::Int(array.as_primitive::<UInt64Type>().unary::<_, Int64Type>(u64::cast_signed))
            }
            Kind::Int => {
                Cells::Int(cast(&array, &DataType::Int64).map_err(words)?.as_primitive::<Int64Type>().clone())
            }
            Kind::Float => Cells::Float(
                cast(&array, &DataType::Float64).map_err(words)?.as_primitive::<Float64Type>().clone(),
            ),
            Kind::Bytes | Kind::Image | Kind::Text => match array.data_type() {
                DataType::LargeBinary => Cells::Large(array.as_binary::<i64>().clone()),
                DataType::LargeUtf8 => Cells::Large(
                    cast(&array, &DataType::LargeBinary).map_err(words)?.as_binary::<i64>().clone(),
                ),
                _ => Cells::Small(cast(&array, &DataType::Binary).map_err(words)?.as_binary::<i32>().clone()),
            },
            Kind::NdArray { .. } => Cells::List(array),
            _ => Cells::Json(array),
        })
    }
}

/// `inner` with the nulls of the struct that it belongs to.
fn masked(inner: &ArrayRef, outer: &arrow_array::StructArray) -> Result<ArrayRef, arrow_schema::ArrowError> {
    let nulls = arrow_buffer::NullBuffer::union(inner.nulls(), outer.nulls());
    let data = inner.to_data().into_builder().nulls(nulls).build()?;
    Ok(arrow_array::make_array(data))
}

impl Cells {
    fn value(&self, row: usize) -> Result<Cell<'_>> {
        let array: &dyn Array = match self {
            Cells::Absent => return Ok(Cell::Missing),
            Cells::Small(a) => a,
            Cells::Large(a) => a,
            Cells::Int(a) => a,
            Cells::Float(a) => a,
            Cells::List(a) | Cells::Json(a) => a,
        };
        if array.is_null(row) {
            return Ok(Cell::Missing);
        }
        Ok(match self {
            Cells::Absent => Cell::Missing,
            Cells::Small(a) => Cell::Bytes(a.value(row).into()),
            Cells::Large(a) => Cell::Bytes(a.value(row).into()),
            Cells::Int(a) => Cell::Int(a.value(row)),
            Cells::Float(a) => Cell::Float(a.value(row)),
            Cells::List(a) => Cell::Bytes(list(a, row)?.into()),
            Cells::Json(a) => Cell::Bytes(serde_json::to_vec(&json(a, row)).unwrap_or_default().into()),
        })
    }
}

/// Rows packed one after another into a group's memory.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    into: &'a mut [u8],
    rows: usize,
    row: usize,
    at: usize,
}

impl<'a> Packed<'a> {
    /// An empty group of `rows` rows.
    pub(crate) fn new(into: &'a mut [u8], rows: usize) -> Self {
        Self { into, rows, row: 0, at: head_bytes(rows) }
    }

    /// Packs a batch of the wanted columns.
    pub(crate) fn push(&mut self, columns: &Columns, batch: &RecordBatch, wanted: &[bool]) -> Result<()> {
        let cells = columns.cells(batch, wanted)?;
        for row in 0..batch.num_rows() {
            self.begin()?;
            for cells in &cells {
                match cells.value(row)? {
                    Cell::Missing => self.put(&MISSING.to_le_bytes())?,
                    Cell::Bytes(bytes) => self.sized(&bytes)?,
                    Cell::Int(x) => self.sized(&x.to_le_bytes())?,
                    Cell::Float(x) => self.sized(&x.to_le_bytes())?,
                }
            }
        }
        Ok(())
    }

    /// Checks that all rows came.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.row != self.rows {
            return Err(Error::decode(format!(
                "a group of {} rows where {} were expected",
                self.row, self.rows
            )));
        }
        self.offset()
    }

    fn begin(&mut self) -> Result<()> {
        if self.row == self.rows {
            return Err(Error::decode(format!(
                "a group of more than the {} rows that were expected",
                self.rows
            )));
        }
        self.offset()?;
        self.row += 1;
        Ok(())
    }

    fn offset(&mut self) -> Result<()> {
        let word = u32::try_from(self.at).map_err(|_| grew())?.to_le_bytes();
        let target = self.into.get_mut(self.row * WORD..(self.row + 1) * WORD).ok_or_else(grew)?;
        target.copy_from_slice(&word);
        Ok(())
    }

    fn sized(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(&u32::try_from(bytes.len()).map_err(|_| grew())?.to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let target = self.into.get_mut(self.at..self.at + bytes.len()).ok_or_else(grew)?;
        target.copy_from_slice(bytes);
        self.at += bytes.len();
        Ok(())
    }
}

fn grew() -> Error {
    Error::decode("a group is larger than when it was indexed: run `tidegate index --force`")
}

/// Bytes of the offsets in front of packed rows.
pub(crate) fn head_bytes(rows: usize) -> usize {
    (rows + 1) * WORD
}

/// A row of a packed group.
pub(crate) fn packed_row(group: &[u8], row: usize) -> Option<&[u8]> {
    let word = |i: usize| {
        let bytes = group.get(i * WORD..(i + 1) * WORD)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    group.get(word(row)?..word(row + 1)?)
}

fn is_binary(stored: &DataType) -> bool {
    matches!(
        stored,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
    )
}

/// The type that holds the values of both types without loss; None for those that have nothing in
/// common.
fn common_type(one: &DataType, other: &DataType) -> Option<DataType> {
    use DataType as T;
    let text = |t: &T| matches!(t, T::Utf8 | T::LargeUtf8 | T::Utf8View);
    let integer = |t: &T| t.is_integer();
    Some(match (one, other) {
        (one, other) if one == other => one.clone(),
        (T::Null, some) | (some, T::Null) => some.clone(),
        (T::Dictionary(_, one), other) | (other, T::Dictionary(_, one)) => common_type(one, other)?,
        (one, other) if text(one) && text(other) => T::LargeUtf8,
        (one, other) if is_binary(one) && is_binary(other) => T::LargeBinary,
        // An int64 and a uint64 that is too large for it would lose digits as a float.
        (T::UInt64, other) | (other, T::UInt64) if other.is_signed_integer() => return None,
        (T::UInt64, other) | (other, T::UInt64) if integer(other) => T::UInt64,
        (one, other) if integer(one) && integer(other) => T::Int64,
        (one, other) if one.is_floating() && other.is_floating() => T::Float64,
        (one, other) if integer(one) && other.is_floating() || integer(other) && one.is_floating() => {
            T::Float64
        }
        (T::List(one) | T::LargeList(one), T::List(other) | T::LargeList(other)) => {
            let of = common_type(one.data_type(), other.data_type())?;
            T::LargeList(Arc::new(ArrowField::new("item", of, true)))
        }
        (T::Struct(one), T::Struct(other)) => {
            let mut fields = Vec::new();
            for field in one.iter().chain(other) {
                let in_both = one.find(field.name()).zip(other.find(field.name()));
                let of = match in_both {
                    Some(((_, one), (_, other))) => common_type(one.data_type(), other.data_type())?,
                    // Arrow casts structs of the same fields only.
                    None => return None,
                };
                if !fields.iter().any(|known: &ArrowField| known.name() == field.name()) {
                    fields.push(ArrowField::new(field.name(), of, true));
                }
            }
            T::Struct(fields.into())
        }
        _ => return None,
    })
}

fn kind(stored: &DataType) -> Kind {
    match stored {
        DataType::Dictionary(_, values) => kind(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        stored if is_binary(stored) => Kind::Bytes,
        stored if stored.is_floating() || stored.is_decimal() => Kind::Float,
        DataType::List(inner) | DataType::LargeList(inner) if number(inner.data_type()).is_some() => {
            Kind::NdArray { dtype: number(inner.data_type()).map(str::to_owned), shape: None }
        }
        DataType::FixedSizeList(inner, n) if number(inner.data_type()).is_some() => Kind::NdArray {
            dtype: number(inner.data_type()).map(str::to_owned),
            shape: usize::try_from(*n).ok().map(|n| vec![n]),
        },
        stored if !stored.is_nested() && can_cast_types(stored, &DataType::Int64) => Kind::Int,
        _ => Kind::Json,
    }
}

/// NumPy's name of a number's type.
fn number(stored: &DataType) -> Option<&'static str> {
    Some(match stored {
        DataType::Int8 => "int8",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt8 => "uint8",
        DataType::UInt16 => "uint16",
        DataType::UInt32 => "uint32",
        DataType::UInt64 => "uint64",
        DataType::Float16 => "float16",
        DataType::Float32 => "float32",
        DataType::Float64 => "float64",
        _ => return None,
    })
}

/// The elements of a list; None for another type.
fn elements(array: &ArrayRef, row: usize) -> Option<ArrayRef> {
    Some(match array.data_type() {
        DataType::List(_) => array.as_list::<i32>().value(row),
        DataType::LargeList(_) => array.as_list::<i64>().value(row),
        DataType::FixedSizeList(..) => array.as_fixed_size_list().value(row),
        _ => return None,
    })
}

/// A list of numbers in the form of MDS: one dimension of u32 unless its length is fixed, then the
/// elements.
fn list(array: &ArrayRef, row: usize) -> Result<Vec<u8>> {
    let fixed = matches!(array.data_type(), DataType::FixedSizeList(..));
    let items = elements(array, row).ok_or_else(|| Error::decode("a list was expected"))?;
    let items = match items.null_count() {
        0 => items,
        _ => match with_nan(&items) {
            Some(items) => items,
            None => return Ok(npy::HAS_NULL.to_vec()),
        },
    };
    let data = items.to_data();
    let size = items.data_type().primitive_width().unwrap_or(1);
    let bytes = data.buffers().first().and_then(|b| b.as_slice().get(data.offset() * size..));
    let bytes = bytes.and_then(|b| b.get(..items.len() * size)).unwrap_or_default();
    let mut out = Vec::with_capacity(bytes.len() + 5);
    if !fixed {
        let len = u32::try_from(items.len()).map_err(|_| grew())?;
        out.push(1 << 2 | 2);
        out.extend_from_slice(&len.to_le_bytes());
    }
    out.extend_from_slice(bytes);
    Ok(out)
}

/// Floats with NaN for what is missing; None for integers, which have no such value.
fn with_nan(items: &ArrayRef) -> Option<ArrayRef> {
    fn filled<T: ArrowPrimitiveType>(items: &ArrayRef, nan: T::Native) -> ArrayRef {
        let values = items.as_primitive::<T>().iter().map(|x| x.unwrap_or(nan));
        Arc::new(PrimitiveArray::<T>::from_iter_values(values))
    }
    Some(match items.data_type() {
        DataType::Float16 => filled::<Float16Type>(items, half::f16::NAN),
        DataType::Float32 => filled::<Float32Type>(items, f32::NAN),
        DataType::Float64 => filled::<Float64Type>(items, f64::NAN),
        _ => return None,
    })
}

/// Any value as JSON: structs and maps as objects, lists as arrays, times and decimals as text.
fn json(array: &ArrayRef, row: usize) -> serde_json::Value {
    use serde_json::Value as Json;
    if array.is_null(row) {
        return Json::Null;
    }
    if let Some(items) = elements(array, row) {
        return Json::Array((0..items.len()).map(|i| json(&items, i)).collect());
    }
    let one = array.slice(row, 1);
    match array.data_type() {
        DataType::Struct(_) => {
            let object = array.as_struct();
            let pairs = object.column_names().into_iter().zip(object.columns());
            Json::Object(pairs.map(|(name, child)| (name.to_owned(), json(child, row))).collect())
        }
        DataType::Map(..) => {
            let entries: ArrayRef = std::sync::Arc::new(array.as_map().value(row));
            Json::Array((0..entries.len()).map(|i| json(&entries, i)).collect())
        }
        DataType::Boolean => Json::Bool(array.as_boolean().value(row)),
        stored if stored.is_unsigned_integer() => cast(&one, &DataType::UInt64)
            .map_or(Json::Null, |a| a.as_primitive::<UInt64Type>().value(0).into()),
        stored if stored.is_integer() => {
            cast(&one, &DataType::Int64).map_or(Json::Null, |a| a.as_primitive::<Int64Type>().value(0).into())
        }
        stored if stored.is_floating() => cast(&one, &DataType::Float64)
            .map_or(Json::Null, |a| a.as_primitive::<Float64Type>().value(0).into()),
        _ => arrow_cast::display::array_value_to_string(array, row).map_or(Json::Null, Json::String),
    }
}

/// Names of the classes of the first label column, from the notes of Hugging Face in the schema.
pub(crate) fn classes(schema: &ArrowSchema) -> Vec<String> {
    let note = schema.metadata().get("huggingface").and_then(|text| serde_json::from_str(text).ok());
    let note: serde_json::Value = note.unwrap_or_default();
    let names = schema
        .fields()
        .iter()
        .find_map(|field| note["info"]["features"][field.name()]["names"].as_array().cloned());
    names.unwrap_or_default().iter().filter_map(|n| n.as_str().map(str::to_owned)).collect()
}
