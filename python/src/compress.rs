//! `tidegate.compress`: arrays as compressed bytes that name their codec, dtype and shape.
//!
//! Flow: the bytes of an array -> packed bytes -> (dtype, shape, bytes).
//! Memory: returned arrays are NumPy's.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tidegate_array::DType;
use tidegate_array::codec::{self, Packed};

use crate::errors::{array_error, config, released};

/// Packs an array's bytes with a codec, by name.
#[pyfunction]
pub(crate) fn pack_array<'py>(
    py: Python<'py>,
    name: &str,
    dtype: &str,
    shape: Vec<usize>,
    elements: PyReadonlyArray1<'_, u8>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (dtype, elements) = (DType::parse(dtype).map_err(config)?, elements.as_slice()?);
    let packed = released(py, || codec::pack(name, dtype, &shape, elements))?.map_err(|e| array_error(&e))?;
    Ok(PyBytes::new(py, &packed))
}

/// (dtype, shape, bytes).
type Unpacked<'py> = (&'static str, Vec<usize>, Bound<'py, PyArray1<u8>>);

/// Returns a packed array.
#[pyfunction]
pub(crate) fn unpack_array<'py>(py: Python<'py>, packed: &[u8]) -> PyResult<Unpacked<'py>> {
    let packed = Packed::parse(packed).map_err(|e| array_error(&e))?;
    let bytes = packed.unpacked_bytes().map_err(|e| array_error(&e))?;
    // A claim of more elements than memory can hold usually comes from damaged bytes.
    let empty = py.import("numpy")?.call_method1("empty", (bytes, "uint8")).map_err(|_| {
        let what =
            format!("packed array: {bytes} bytes of elements are claimed, more than memory has room for");
        array_error(&tidegate_array::Error::Value { what })
    })?;
    let elements = empty.cast_into::<PyArray1<u8>>()?;
    {
        let mut elements = elements.readwrite();
        let into = elements.as_slice_mut()?;
        released(py, || packed.unpack(into))?.map_err(|e| array_error(&e))?;
    }
    Ok((packed.dtype.name(), packed.shape.clone(), elements))
}

/// Returns the lossless codecs that are worth trying for a dtype.
#[pyfunction]
pub(crate) fn codecs(dtype: &str) -> PyResult<Vec<&'static str>> {
    Ok(codec::candidates(DType::parse(dtype).map_err(config)?))
}
