//! Columns of Arrow as fields of samples.
//!
//! Flow: Arrow schemas of files -> [`Columns`] (fields, kinds); record batches -> values of rows,
//! which `packed_rows` packs; a packed row -> values of fields.
//! Memory: holds none; [`super::table`] bounds Arrow's own arrays.
//!
//! Integers and floats take 8 bytes; numbers of more digits come as text. Lists of numbers are
//! arrays in the form of MDS; so are lists of lists of one shape. Structs, maps and other lists of
//! lists become JSON. Hugging Face stores images and audio as a struct with a child `bytes`: it is
//! one field, and its child `path` is the sample's key.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, BinaryArray, Float64Array, Int64Array, LargeBinaryArray};
use arrow_array::{RecordBatch, RecordBatchOptions, StringArray, new_null_array};
use arrow_cast::cast;
use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema};
use serde::{Deserialize, Serialize};

use super::arrow_types::{
    common_type, exact, is_binary, keeps_digits, kind, odd_type, shape_doubt, tensor, tensor_shape, unit,
};
use super::arrow_values::{Cell, MISSING, WORD, digits, has_many_digits, json, list};
use crate::{Error, Result};
use tidegate_decode::{Field, Kind, Schema, Value};

/// The columns of a table, as fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<NamedType>", into = "Vec<NamedType>")]
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
    /// The shape that its field declares for its lists.
    tensor: Option<Vec<usize>>,
    /// Why that shape cannot be kept.
    doubt: Option<&'static str>,
}

/// A column as the index keeps it: name, type, shape of tensors.
type NamedType = (String, DataType, Option<Vec<usize>>);

impl From<Vec<NamedType>> for Columns {
    fn from(list: Vec<NamedType>) -> Self {
        let column = |(name, stored, tensor): NamedType| Column::new(&name, stored, tensor);
        Self { list: list.into_iter().map(column).collect() }
    }
}

impl From<Columns> for Vec<NamedType> {
    fn from(columns: Columns) -> Self {
        columns.list.into_iter().map(|column| (column.name, column.stored, column.tensor)).collect()
    }
}

/// The names and values of the folders that a file is in, `name=value`, as Hive writes them; null
/// has no value.
pub(crate) type Folders = Vec<(String, Option<String>)>;

/// Gets the key and the values of a row.
type RowVisit<'a> = dyn FnMut(Option<&str>, &[Cell<'_>]) -> Result<()> + 'a;

/// The values of one column of a record batch.
#[derive(Debug)]
pub(super) enum Cells {
    /// The column was not asked for.
    Absent,
    Small(BinaryArray),
    Large(LargeBinaryArray),
    Int(Int64Array),
    Float(Float64Array),
    /// Lists of numbers, with their shape if all have one.
    List(ArrayRef, Option<Vec<usize>>),
    Json(ArrayRef),
    /// Numbers of which some have more digits than their column: these come as text.
    Digits(ArrayRef),
}

impl Columns {
    /// The fields of an Arrow schema.
    pub(crate) fn new(schema: &ArrowSchema) -> Self {
        let column = |field: &ArrowField| Column {
            doubt: shape_doubt(field),
            ..Column::new(field.name(), field.data_type().clone(), tensor_shape(field))
        };
        Self { list: schema.fields().iter().map(|field| column(field)).collect() }
    }

    /// A name that two columns have.
    pub(crate) fn twice(&self) -> Option<&str> {
        let mut names = self.names().enumerate();
        names.find(|(i, name)| self.names().take(*i).any(|before| before == *name)).map(|(_, name)| name)
    }

    /// What is uncertain about the types of columns: those that no field has, in words.
    pub(crate) fn doubts(&self) -> impl Iterator<Item = String> {
        self.list.iter().filter_map(|Column { name, kind, stored, doubt, .. }| {
            if let Some(doubt) = doubt {
                return Some(format!("column {name:?} {doubt}"));
            }
            let odd = if *kind == Kind::Json { odd_type(stored)? } else { return None };
            Some(format!("column {name:?} is of {odd}: it comes as JSON text, in arrow's words"))
        })
    }

    /// The columns of times, and what their integers count, as NumPy's dtype.
    pub(crate) fn units(&self) -> Vec<(String, String)> {
        let of = |column: &Column| Some((column.name.clone(), unit(&column.stored)?));
        self.list.iter().filter_map(of).collect()
    }

    /// Whether a column has bytes, and beside them the paths of the files that they are of.
    pub(crate) fn has_paths(&self, c: usize) -> bool {
        self.list[c].bytes_of_struct
    }

    /// The fields; those in `images` were seen to hold images.
    pub(crate) fn fields(&self, images: &[bool]) -> Schema {
        let field = |(column, &image): (&Column, &bool)| Field {
            name: column.name.clone(),
            kind: if image { Kind::Image } else { column.kind.clone() },
        };
        self.list.iter().zip(images).map(field).collect()
    }

    /// Whether a schema has these columns as arrays where they are.
    pub(crate) fn are_kinds_of(&self, schema: &Schema) -> bool {
        let array = |kind: &Kind| matches!(kind, Kind::NdArray { .. });
        self.list.iter().zip(schema).all(|(column, field)| array(&column.kind) == array(&field.kind))
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|column| &*column.name)
    }

    /// Whether a column holds numbers.
    pub(crate) fn is_number(&self, c: usize) -> bool {
        matches!(self.list[c].kind, Kind::Int | Kind::Float)
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
            if known.tensor != column.tensor {
                return Err(format!("its column {:?} holds tensors of another shape", column.name));
            }
            if stored != known.stored {
                *known = Column::new(&known.name, stored, known.tensor.clone());
            }
        }
        Ok(())
    }

    /// For each column its place in a file with these, if the file has it.
    pub(crate) fn places(&self, file: &Self) -> Vec<Option<usize>> {
        let place = |column: &Column| file.list.iter().position(|other| other.name == column.name);
        self.list.iter().map(place).collect()
    }

    /// Adds columns whose values the names of folders hold: integers if all values are.
    pub(crate) fn add_folders(&mut self, folders: &[Folders]) {
        for (name, _) in folders.iter().flatten() {
            if self.names().any(|known| known == name) {
                continue;
            }
            let mut values =
                folders.iter().flatten().filter(|(key, _)| key == name).flat_map(|(_, value)| value);
            let integers = values.all(|value| value.parse::<i64>().is_ok());
            let stored = if integers { DataType::Int64 } else { DataType::Utf8 };
            self.list.push(Column::new(name, stored, None));
        }
    }

    /// A batch that was read from a file, with the wanted columns in the order and the types of
    /// all files. What the file lacks is in the names of its folders, or null.
    pub(crate) fn conform(
        &self,
        batch: &RecordBatch,
        (places, folders): (&[Option<usize>], &Folders),
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
                Some(array) => {
                    keeps_digits(array, &column.stored).map_err(|what| {
                        Error::decode(format!(
                            "column {:?} holds floats in other files, and {what}",
                            column.name
                        ))
                    })?;
                    exact(array, &column.stored).map_err(words)?
                }
                None => match folders.iter().find(|(name, _)| *name == column.name) {
                    Some((_, Some(value))) => {
                        let text: ArrayRef = Arc::new(StringArray::from(vec![value.as_str(); rows]));
                        exact(&text, &column.stored).map_err(words)?
                    }
                    _ => new_null_array(&column.stored, rows),
                },
            };
            fields.push(ArrowField::new(&column.name, column.stored.clone(), true));
            arrays.push(array);
        }
        let rows = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), arrays, &rows)
            .map_err(|e| Error::decode(e.to_string()))
    }

    /// The wanted columns of a batch that has just those, in the same order.
    pub(super) fn cells(&self, batch: &RecordBatch, wanted: &[bool]) -> Result<Vec<Cells>> {
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
                // A number with more digits comes as text.
                Kind::Int if size == 8 => Value::Int(i64::from_le_bytes(word()?)),
                Kind::Float if size == 8 => Value::Float(f64::from_le_bytes(word()?)),
                _ => Value::Bytes(bytes),
            });
        }
        Ok(values)
    }
}

impl Column {
    fn new(name: &str, stored: DataType, declared: Option<Vec<usize>>) -> Self {
        let bytes_of_struct = matches!(&stored, DataType::Struct(children)
            if children.iter().any(|c| c.name() == "bytes" && is_binary(c.data_type())));
        let kind = match tensor(&stored, declared.as_ref()) {
            _ if bytes_of_struct => Kind::Bytes,
            Some(tensor) => tensor,
            None => kind(&stored),
        };
        Self { name: name.to_owned(), bytes_of_struct, kind, stored, tensor: declared, doubt: None }
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
        let plain = match array.data_type() {
            DataType::Dictionary(_, values) => Some((**values).clone()),
            DataType::RunEndEncoded(_, values) => Some(values.data_type().clone()),
            _ => None,
        };
        if let Some(plain) = plain {
            array = exact(&array, &plain).map_err(words)?;
        }
        Ok(match &self.kind {
            Kind::Int | Kind::Float if has_many_digits(&array) => Cells::Digits(array),
            Kind::Int => Cells::Int(
                exact(&array, &DataType::Int64).map_err(words)?.as_primitive::<Int64Type>().clone(),
            ),
            Kind::Float => Cells::Float(
                exact(&array, &DataType::Float64).map_err(words)?.as_primitive::<Float64Type>().clone(),
            ),
            Kind::Bytes | Kind::Image | Kind::Text => match array.data_type() {
                DataType::LargeBinary => Cells::Large(array.as_binary::<i64>().clone()),
                DataType::LargeUtf8 => Cells::Large(
                    cast(&array, &DataType::LargeBinary).map_err(words)?.as_binary::<i64>().clone(),
                ),
                _ => Cells::Small(cast(&array, &DataType::Binary).map_err(words)?.as_binary::<i32>().clone()),
            },
            Kind::NdArray { shape, .. } => Cells::List(array, shape.clone()),
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
    /// The value of a row.
    pub(super) fn value(&self, row: usize) -> Result<Cell<'_>> {
        let array: &dyn Array = match self {
            Cells::Absent => return Ok(Cell::Missing),
            Cells::Small(a) => a,
            Cells::Large(a) => a,
            Cells::Int(a) => a,
            Cells::Float(a) => a,
            Cells::List(a, _) | Cells::Json(a) | Cells::Digits(a) => a,
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
            Cells::List(a, shape) => Cell::Bytes(list(a, row, shape.as_deref())?.into()),
            Cells::Digits(a) => digits(a, row)?,
            Cells::Json(a) => Cell::Bytes(serde_json::to_vec(&json(a, row)).unwrap_or_default().into()),
        })
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
