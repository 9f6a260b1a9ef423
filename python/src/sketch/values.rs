//! The arguments of a sketch: NumPy arrays, Arrow arrays and lists, of numbers or texts.
//!
//! Flow: any of them -> [`Values`] -> slices that need no interpreter.
//! Memory: a copy where the type does not fit: integers of other than 64 bits, float16, lists, and
//! NumPy's text. Arrow's text is read in place.

use numpy::{
    PyArray1, PyArrayDescrMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};
use tidegate_sketch::hash::Key;

use crate::errors::classes::ConfigError;

/// An array of one type; it is kept alive while its slice is read.
pub(crate) enum Values<'py> {
    Singles(PyReadonlyArray1<'py, f32>),
    Doubles(PyReadonlyArray1<'py, f64>),
    /// Integers, as 64 bits, and whether they are signed.
    Words(PyReadonlyArray1<'py, u64>, bool),
    /// The offsets of texts (one more than texts), and the bytes of all.
    Arrow(PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, u8>),
    Texts(Vec<i64>, Vec<u8>),
}

/// The same slices, which need no interpreter.
#[derive(Clone, Copy)]
pub(crate) enum Slices<'a> {
    Singles(&'a [f32]),
    Doubles(&'a [f64]),
    Words(&'a [u64], bool),
    Texts(&'a [i64], &'a [u8]),
}

fn wrong(what: String) -> PyErr {
    ConfigError::new_err(what)
}

/// Returns the array that NumPy makes of an argument. Refuses Arrow nulls, which would become
/// values.
fn array<'py>(given: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    without_nulls(given)?;
    let array = given.py().import("numpy")?.call_method1("asarray", (given,));
    let array = array.map_err(|e| wrong(format!("values that make no array: {}", e.value(given.py()))))?;
    Ok(array.cast_into::<PyUntypedArray>()?)
}

fn without_nulls(given: &Bound<'_, PyAny>) -> PyResult<()> {
    let Ok(nulls) = given.getattr("null_count").and_then(|nulls| nulls.extract::<u64>()) else {
        return Ok(());
    };
    if nulls > 0 {
        return Err(wrong(format!(
            "an Arrow array with {nulls} nulls: drop_null() or fill_null(...) them first"
        )));
    }
    Ok(())
}

/// Returns an array as one axis of a type, copied only where it is not that already.
fn row<'py>(array: &Bound<'py, PyUntypedArray>, dtype: &str) -> PyResult<Bound<'py, PyAny>> {
    let numpy = array.py().import("numpy")?;
    numpy.call_method1("ascontiguousarray", (array, dtype))?.call_method1("reshape", (-1,))
}

impl<'py> Values<'py> {
    pub(crate) fn of(given: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Some(texts) = arrow(given)? {
            return Ok(texts);
        }
        let array = array(given)?;
        let (kind, size) = (array.dtype().kind(), array.dtype().itemsize());
        Ok(match kind {
            b'f' if size <= 4 => Self::Singles(row(&array, "float32")?.extract()?),
            b'f' => Self::Doubles(row(&array, "float64")?.extract()?),
            b'b' | b'i' => {
                Self::Words(row(&array, "int64")?.call_method1("view", ("uint64",))?.extract()?, true)
            }
            b'u' => Self::Words(row(&array, "uint64")?.extract()?, false),
            b'U' | b'S' | b'O' => listed(&array)?,
            _ => {
                let dtype = array.dtype();
                return Err(wrong(format!("values of type {dtype}: give numbers, strings or bytes")));
            }
        })
    }

    pub(crate) fn slices(&self) -> PyResult<Slices<'_>> {
        Ok(match self {
            Self::Singles(values) => Slices::Singles(values.as_slice()?),
            Self::Doubles(values) => Slices::Doubles(values.as_slice()?),
            Self::Words(values, signed) => Slices::Words(values.as_slice()?, *signed),
            Self::Arrow(ends, bytes) => Slices::Texts(ends.as_slice()?, bytes.as_slice()?),
            Self::Texts(ends, bytes) => Slices::Texts(ends, bytes),
        })
    }
}

/// Returns the text of an Arrow array in place, if it is one; as large binary, with 64-bit
/// offsets.
fn arrow<'py>(given: &Bound<'py, PyAny>) -> PyResult<Option<Values<'py>>> {
    if !given.hasattr("type")? || !given.hasattr("cast")? || !given.hasattr("null_count")? {
        return Ok(None);
    }
    let of = given.getattr("type")?.str()?.to_string();
    if !["string", "large_string", "string_view", "binary", "large_binary", "binary_view"]
        .contains(&of.as_str())
    {
        return Ok(None);
    }
    without_nulls(given)?;
    let whole =
        if given.hasattr("combine_chunks")? { given.call_method0("combine_chunks")? } else { given.clone() };
    let large = whole.call_method1("cast", ("large_binary",))?;
    let (offset, len): (usize, usize) = (large.getattr("offset")?.extract()?, large.len()?);
    if len == 0 {
        return Ok(Some(Values::Texts(vec![0], Vec::new())));
    }
    let buffers = large.call_method0("buffers")?;
    let numpy = given.py().import("numpy")?;
    let buffer = |at: usize, dtype: &str, named: &Bound<'py, PyDict>| {
        let buffer = buffers.get_item(at)?;
        if buffer.is_none() {
            return numpy.call_method1("zeros", (usize::from(at == 1), dtype));
        }
        numpy.call_method("frombuffer", (buffer, dtype), Some(named))
    };
    let ends = PyDict::new(given.py());
    ends.set_item("count", len + 1)?;
    ends.set_item("offset", 8 * offset)?;
    let bytes = buffer(2, "uint8", &PyDict::new(given.py()))?;
    Ok(Some(Values::Arrow(buffer(1, "int64", &ends)?.extract()?, bytes.extract()?)))
}

fn listed<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Values<'py>> {
    let (mut ends, mut bytes) = (vec![0], Vec::new());
    for (at, item) in array.call_method0("ravel")?.call_method0("tolist")?.try_iter()?.enumerate() {
        let item = item?;
        if let Ok(text) = item.cast::<PyString>() {
            let text = text.to_str();
            let text = text.map_err(|_| wrong(format!("the text at {at} has what UTF-8 cannot hold")))?;
            bytes.extend(text.as_bytes());
        } else if let Ok(raw) = item.cast::<PyBytes>() {
            bytes.extend(raw.as_bytes());
        } else {
            return Err(wrong(format!(
                "the value at {at} is {item}, in an array of Python objects: give an array of numbers (astype), or strings and bytes alone"
            )));
        }
        ends.push(bytes.len() as i64);
    }
    Ok(Values::Texts(ends, bytes))
}

impl Slices<'_> {
    /// Calls a function with the hash of each value.
    pub(crate) fn keys(self, mut take: impl FnMut(Key<'_>)) {
        match self {
            Self::Singles(values) => values.iter().for_each(|&value| take(f64::from(value).into())),
            Self::Doubles(values) => values.iter().for_each(|&value| take(value.into())),
            Self::Words(values, _) => values.iter().for_each(|&value| take(value.into())),
            Self::Texts(..) => self.texts(|text| take(text.into())),
        }
    }

    /// Calls a function with each text.
    pub(crate) fn texts(self, mut take: impl FnMut(&[u8])) {
        if let Self::Texts(ends, bytes) = self {
            for end in ends.windows(2) {
                take(bytes.get(end[0] as usize..end[1] as usize).unwrap_or_default());
            }
        }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::Singles(values) => values.len(),
            Self::Doubles(values) => values.len(),
            Self::Words(values, _) => values.len(),
            Self::Texts(ends, _) => ends.len() - 1,
        }
    }
}

/// Returns numbers of any type as one axis of f64.
pub(crate) fn doubles<'py>(given: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, f64>> {
    row(&numeric(given)?, "float64")?.extract()
}

/// Returns numbers of any type as one axis of f32.
pub(crate) fn singles<'py>(given: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, f32>> {
    row(&numeric(given)?, "float32")?.extract()
}

/// Returns rows of numbers; an array of one axis is one row.
pub(crate) fn table<'py, T: numpy::Element>(
    given: &Bound<'py, PyAny>,
    dtype: &str,
) -> PyResult<PyReadonlyArray2<'py, T>> {
    let array = numeric(given)?;
    if array.ndim() > 2 || array.ndim() == 0 {
        return Err(wrong(format!("rows of numbers have two dimensions, not {}", array.ndim())));
    }
    let numpy = given.py().import("numpy")?;
    let whole = numpy.call_method1("ascontiguousarray", (array, dtype))?;
    numpy.call_method1("atleast_2d", (whole,))?.extract()
}

fn numeric<'py>(given: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = array(given)?;
    if !b"fiub".contains(&array.dtype().kind()) {
        return Err(wrong(format!("values of type {}: give numbers", array.dtype())));
    }
    Ok(array)
}

/// Returns ids as one axis of u64.
pub(crate) fn ids<'py>(given: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, u64>> {
    let array = array(given)?;
    let whole = b"iub".contains(&array.dtype().kind()) || array.len() == 0;
    if !whole || (array.dtype().kind() == b'i' && array.len() > 0 && array.call_method0("min")?.lt(0)?) {
        return Err(wrong("ids are whole numbers from 0 on".into()));
    }
    row(&array, "uint64")?.extract()
}

/// Returns numbers as a NumPy array.
pub(crate) fn given<T: numpy::Element>(py: Python<'_>, values: Vec<T>) -> Bound<'_, PyArray1<T>> {
    PyArray1::from_vec(py, values)
}
