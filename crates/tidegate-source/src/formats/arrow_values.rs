//! Values of Arrow that no array of Rust holds: lists, structs, numbers of many digits.
//!
//! Flow: an array and a row -> bytes of a field: lists in the form of MDS, the rest as JSON.
//! Memory: the bytes of one value.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Decimal128Type, Float16Type, Float32Type, Float64Type};
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use arrow_cast::cast;
use arrow_schema::DataType;
use tidegate_decode::npy;

use super::arrow_types::exact;
use crate::{Error, Result};

/// The size that marks a missing value.
pub(super) const MISSING: u32 = u32::MAX;
/// Bytes of an offset or a size.
pub(super) const WORD: usize = 4;

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

/// The digits that any float64 keeps.
pub(super) const DIGITS: i128 = 1_000_000_000_000_000;

/// Whether any number has more digits than its column can keep: unsigned integers beyond int64, and
/// decimals.
pub(super) fn has_many_digits(array: &ArrayRef) -> bool {
    match array.data_type() {
        DataType::UInt64 => {
            array.as_primitive::<UInt64Type>().iter().flatten().any(|x| i64::try_from(x).is_err())
        }
        DataType::Decimal128(..) => {
            array.as_primitive::<Decimal128Type>().iter().flatten().any(|x| x.abs() >= DIGITS)
        }
        DataType::Decimal256(..) => true,
        _ => false,
    }
}

/// A number of a column in which some have many digits.
pub(super) fn digits(array: &ArrayRef, row: usize) -> Result<Cell<'static>> {
    let words = |e: arrow_schema::ArrowError| Error::decode(e.to_string());
    let one = array.slice(row, 1);
    if has_many_digits(&one) {
        let text = arrow_cast::display::array_value_to_string(array, row).map_err(words)?;
        // It is longer than the eight bytes of a number.
        return Ok(Cell::Bytes(text.into_bytes().into()));
    }
    Ok(if array.data_type().is_integer() {
        Cell::Int(exact(&one, &DataType::Int64).map_err(words)?.as_primitive::<Int64Type>().value(0))
    } else {
        Cell::Float(exact(&one, &DataType::Float64).map_err(words)?.as_primitive::<Float64Type>().value(0))
    })
}

/// The elements of a list; None for another type.
pub(super) fn elements(array: &ArrayRef, row: usize) -> Option<ArrayRef> {
    Some(match array.data_type() {
        DataType::List(_) => array.as_list::<i32>().value(row),
        DataType::LargeList(_) => array.as_list::<i64>().value(row),
        DataType::ListView(_) => array.as_list_view::<i32>().value(row),
        DataType::LargeListView(_) => array.as_list_view::<i64>().value(row),
        DataType::FixedSizeList(..) => array.as_fixed_size_list().value(row),
        _ => return None,
    })
}

/// A list of numbers in the form of MDS: one dimension of u32, then the elements. Those of a
/// `shape` have their elements alone, in C order.
pub(super) fn list(array: &ArrayRef, row: usize, shape: Option<&[usize]>) -> Result<Vec<u8>> {
    let items = elements(array, row).ok_or_else(|| Error::decode("a list was expected"))?;
    let items = match shape {
        Some(shape) => match inner_elements(items, shape) {
            Ok(items) => items,
            Err(what) => return Ok(what.to_vec()),
        },
        None => items,
    };
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
    if shape.is_none() {
        let len = u32::try_from(items.len())
            .map_err(|_| Error::decode("a list of more than 4,294,967,295 elements"))?;
        out.push(1 << 2 | 2);
        out.extend_from_slice(&len.to_le_bytes());
    }
    out.extend_from_slice(bytes);
    Ok(out)
}

/// The numbers in lists of lists of a shape, which may also lie in one list. Where they have
/// another shape, no element comes, and decoding says so of that sample.
fn inner_elements(mut items: ArrayRef, shape: &[usize]) -> Result<ArrayRef, &'static [u8]> {
    if items.data_type().is_primitive() {
        return Ok(items);
    }
    for &len in &shape[1..] {
        if items.null_count() > 0 {
            return Err(npy::HAS_NULL);
        }
        let count = items.len();
        let (values, lens): (ArrayRef, Vec<usize>) = match items.data_type() {
            DataType::List(_) => {
                let list = items.as_list::<i32>();
                let ends = list.value_offsets();
                let (start, end) = (ends[0] as usize, ends[count] as usize);
                (list.values().slice(start, end - start), list.offsets().lengths().collect())
            }
            DataType::LargeList(_) => {
                let list = items.as_list::<i64>();
                let ends = list.value_offsets();
                let (start, end) = (ends[0] as usize, ends[count] as usize);
                (list.values().slice(start, end - start), list.offsets().lengths().collect())
            }
            DataType::FixedSizeList(_, n) => {
                (items.as_fixed_size_list().values().clone(), vec![*n as usize; count])
            }
            _ => return Err(&[]),
        };
        if lens.iter().any(|found| *found != len) {
            return Err(&[]);
        }
        items = values;
    }
    Ok(items)
}

/// Floats with NaN for what is missing; None for integers, which have no such value.
pub(super) fn with_nan(items: &ArrayRef) -> Option<ArrayRef> {
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
pub(super) fn json(array: &ArrayRef, row: usize) -> serde_json::Value {
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
