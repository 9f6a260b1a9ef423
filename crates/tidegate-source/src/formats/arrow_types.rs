//! Types of Arrow: which field a type becomes, what two types have in common, casts without loss.
//!
//! Flow: a type, or two -> a kind, or the type that holds both; arrays -> arrays of another type.
//! Memory: holds none; `table` bounds the arrays.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::cast::AsArray;
use arrow_array::types::Decimal128Type;
use arrow_cast::{CastOptions, can_cast_types, cast_with_options};
use arrow_schema::{DataType, Field as ArrowField, TimeUnit};
use tidegate_decode::Kind;

/// A cast that is an error where a value does not fit. Arrow's own makes it null.
pub(super) fn exact(array: &ArrayRef, into: &DataType) -> Result<ArrayRef, arrow_schema::ArrowError> {
    cast_with_options(array, into, &CastOptions { safe: false, ..CastOptions::default() })
}

/// Checks that integers become floats without losing digits.
pub(super) fn keeps_digits(array: &ArrayRef, into: &DataType) -> Result<(), String> {
    if !array.data_type().is_integer() || *into != DataType::Float64 {
        return Ok(());
    }
    const MOST: i128 = 1 << 53;
    let wide = exact(array, &DataType::Decimal128(20, 0)).map_err(|e| e.to_string())?;
    match wide.as_primitive::<Decimal128Type>().iter().flatten().find(|x| x.abs() > MOST) {
        Some(x) => {
            Err(format!("the integer {x} here, which a float would round: write one type in all files"))
        }
        None => Ok(()),
    }
}

/// Arrow's canonical extension for tensors of one shape, and how those of Hugging Face begin.
const TENSOR: &str = "arrow.fixed_shape_tensor";
const ARRAY: &str = "datasets.features.features.Array";

/// The shape that a field declares for its lists, if its axes are in the usual order and none is
/// open.
pub(super) fn tensor_shape(field: &ArrowField) -> Option<Vec<usize>> {
    let name = field.extension_type_name()?;
    let note: serde_json::Value = serde_json::from_str(field.extension_type_metadata()?).ok()?;
    let numbers = |of: &serde_json::Value| serde_json::from_value::<Vec<usize>>(of.clone()).ok();
    if name.starts_with(ARRAY) {
        return numbers(note.get(0)?);
    }
    let usual = |axes: Vec<usize>| axes.iter().enumerate().all(|(i, axis)| i == *axis);
    let in_order = note.get("permutation").and_then(numbers).is_none_or(usual);
    (name == TENSOR && in_order).then(|| numbers(note.get("shape")?)).flatten()
}

/// Why the shape that a field declares for its lists cannot be kept.
pub(super) fn shape_doubt(field: &ArrowField) -> Option<&'static str> {
    match field.extension_type_name()? {
        TENSOR if tensor_shape(field).is_none() => {
            Some("holds tensors whose axes are permuted: their elements come in one row, as they are stored")
        }
        name if name.starts_with(ARRAY) && tensor_shape(field).is_none() => {
            Some("holds arrays of which an axis is open: they come as JSON text")
        }
        _ => None,
    }
}

/// The numbers that lists have, perhaps lists of lists.
fn innermost(stored: &DataType) -> &DataType {
    match stored {
        DataType::List(of) | DataType::LargeList(of) | DataType::FixedSizeList(of, _) => {
            innermost(of.data_type())
        }
        other => other,
    }
}

/// The shape of lists that have a fixed length, and whose lists have one too.
fn fixed_shape(stored: &DataType) -> Option<Vec<usize>> {
    match stored {
        DataType::FixedSizeList(of, n) => {
            let within = fixed_shape(of.data_type())?;
            Some([usize::try_from(*n).ok()].into_iter().flatten().chain(within).collect())
        }
        other => number(other).map(|_| Vec::new()),
    }
}

/// The array that each value of a type is, with the shape that its field declares.
pub(super) fn tensor(stored: &DataType, declared: Option<&Vec<usize>>) -> Option<Kind> {
    let dtype = number(innermost(stored))?;
    let shape = declared.cloned().or_else(|| fixed_shape(stored)).filter(|shape| !shape.is_empty())?;
    Some(Kind::NdArray { dtype: Some(dtype.to_owned()), shape: Some(shape) })
}

/// What the integers of a type of times count, as NumPy's dtype: `datetime64[us]`.
pub(super) fn unit(stored: &DataType) -> Option<String> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    let of = |unit: &TimeUnit| match unit {
        Second => "s",
        Millisecond => "ms",
        Microsecond => "us",
        Nanosecond => "ns",
    };
    Some(match stored {
        DataType::Timestamp(unit, _) => format!("datetime64[{}]", of(unit)),
        DataType::Date32 => "datetime64[D]".into(),
        DataType::Date64 => "datetime64[ms]".into(),
        DataType::Time32(unit) | DataType::Time64(unit) | DataType::Duration(unit) => {
            format!("timedelta64[{}]", of(unit))
        }
        DataType::Dictionary(_, values) => return unit(values),
        _ => return None,
    })
}

/// A type that no field has, also within lists and structs, in words.
pub(super) fn odd_type(stored: &DataType) -> Option<String> {
    match stored {
        DataType::Union(..) => Some("a union type".into()),
        DataType::Interval(_) => Some("a type of intervals".into()),
        DataType::List(of) | DataType::LargeList(of) | DataType::FixedSizeList(of, _) => {
            odd_type(of.data_type())
        }
        DataType::ListView(of) | DataType::LargeListView(of) | DataType::Map(of, _) => {
            odd_type(of.data_type())
        }
        DataType::Struct(fields) => fields.iter().find_map(|field| odd_type(field.data_type())),
        stored if is_binary(stored) => {
            Some("bytes within lists or structs, which JSON has as hexadecimal digits".into())
        }
        _ => None,
    }
}

pub(super) fn is_binary(stored: &DataType) -> bool {
    matches!(
        stored,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
    )
}

/// The type that holds the values of both types without loss; None for those that have nothing in
/// common.
pub(super) fn common_type(one: &DataType, other: &DataType) -> Option<DataType> {
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
        (T::FixedSizeList(one, n), T::FixedSizeList(other, m)) if n == m => {
            let of = common_type(one.data_type(), other.data_type())?;
            T::FixedSizeList(Arc::new(ArrowField::new("item", of, true)), *n)
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

pub(super) fn kind(stored: &DataType) -> Kind {
    match stored {
        DataType::Dictionary(_, values) => kind(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        stored if is_binary(stored) => Kind::Bytes,
        stored if stored.is_floating() || stored.is_decimal() => Kind::Float,
        DataType::List(inner)
        | DataType::LargeList(inner)
        | DataType::ListView(inner)
        | DataType::LargeListView(inner)
            if number(inner.data_type()).is_some() =>
        {
            Kind::NdArray { dtype: number(inner.data_type()).map(str::to_owned), shape: None }
        }
        stored if !stored.is_nested() && can_cast_types(stored, &DataType::Int64) => Kind::Int,
        _ => Kind::Json,
    }
}

/// NumPy's name of a number's type.
pub(super) fn number(stored: &DataType) -> Option<&'static str> {
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
