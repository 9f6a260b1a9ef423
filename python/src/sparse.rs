//! `tidegate.sparse`: sparse arrays over NumPy's memory, laid out as SciPy's and torch's.
//!
//! Flow: arrays of indices and entries, checked once -> products, other forms, dense arrays.
//! Memory: given arrays are kept without a copy; results are NumPy's.

use numpy::{Element as NumPyElement, IntoPyArray, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tidegate_array::filled;
use tidegate_array::sparse::{self, Element, Index};

use crate::errors::{array_error, config, released};

fn made<T>(result: tidegate_array::Result<T>) -> PyResult<T> {
    result.map_err(|e| array_error(&e))
}

/// Indices by their width; they are not negative, whatever their type.
enum Indices<'py> {
    Signed(PyReadonlyArray1<'py, i32>),
    Unsigned(PyReadonlyArray1<'py, u32>),
    WideSigned(PyReadonlyArray1<'py, i64>),
    Wide(PyReadonlyArray1<'py, u64>),
}

/// The same bits as an unsigned integer.
#[derive(Clone, Copy)]
enum Words<'a> {
    Narrow(&'a [u32]),
    Wide(&'a [u64]),
}

impl<'py> Indices<'py> {
    fn of(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.extract() {
            return Ok(Self::Signed(array));
        }
        if let Ok(array) = array.extract() {
            return Ok(Self::WideSigned(array));
        }
        if let Ok(array) = array.extract() {
            return Ok(Self::Unsigned(array));
        }
        array.extract().map(Self::Wide).map_err(|_| {
            config(format!(
                "indices must be one-dimensional arrays of int32, int64, uint32 or uint64, not {}",
                name(array)
            ))
        })
    }

    /// # Errors
    /// For an array that is not contiguous.
    fn words(&self) -> PyResult<Words<'_>> {
        Ok(match self {
            Self::Signed(array) => Words::Narrow(bytemuck::cast_slice(array.as_slice()?)),
            Self::Unsigned(array) => Words::Narrow(array.as_slice()?),
            Self::WideSigned(array) => Words::Wide(bytemuck::cast_slice(array.as_slice()?)),
            Self::Wide(array) => Words::Wide(array.as_slice()?),
        })
    }
}

fn name(array: &Bound<'_, PyAny>) -> String {
    array.cast::<PyUntypedArray>().map_or_else(|_| "that".to_owned(), |array| array.dtype().to_string())
}

/// An element type that NumPy has, as it has the type of its sums.
trait Number: Element<Sum: NumPyElement> + NumPyElement {}
impl<T: Element<Sum: NumPyElement> + NumPyElement> Number for T {}

/// An index type as NumPy's signed one, which SciPy and torch need.
trait Signed: Index {
    type Signed: NumPyElement + bytemuck::Pod;
}
impl Signed for u32 {
    type Signed = i32;
}
impl Signed for u64 {
    type Signed = i64;
}

fn indices<I: Signed>(py: Python<'_>, words: &[I]) -> Py<PyAny> {
    let signed: &[I::Signed] = bytemuck::cast_slice(words);
    signed.to_vec().into_pyarray(py).into_any().unbind()
}

fn elements<T: NumPyElement>(py: Python<'_>, elements: Vec<T>) -> Py<PyAny> {
    elements.into_pyarray(py).into_any().unbind()
}

/// Runs an expression with the type of an array's elements and its slice.
macro_rules! with_data {
    ($array:expr, |$slice:ident: $T:ident| $body:expr) => {{
        let array: &Bound<'_, PyAny> = $array;
        with_data!(@ array, $slice, $T, $body, f32, f64, i8, u8, i16, i32, i64)
    }};
    (@ $array:ident, $slice:ident, $T:ident, $body:expr, $($type:ty),*) => {{
        $(if let Ok(data) = $array.extract::<PyReadonlyArray1<'_, $type>>() {
            type $T = $type;
            let $slice: &[$T] = data.as_slice()?;
            $body
        } else)* {
            Err(config(format!(
                "entries must be a one-dimensional array of float32, float64, int8, uint8, int16, int32 or int64, not {}",
                name($array)
            )))
        }
    }};
}

/// Runs an expression with the type of two arrays of indices and their slices.
macro_rules! with_indices {
    ($one:expr, $other:expr, |$a:ident, $b:ident: $I:ident| $body:expr) => {
        match ($one.words()?, $other.words()?) {
            (Words::Narrow($a), Words::Narrow($b)) => {
                type $I = u32;
                $body
            }
            (Words::Wide($a), Words::Wide($b)) => {
                type $I = u64;
                $body
            }
            _ => Err(config("indptr and indices of different widths: give both the same dtype")),
        }
    };
}

/// Returns the product of a matrix with a vector, or with a matrix of `columns` columns.
macro_rules! multiplied {
    ($m:ident, $T:ident, $py:ident, $other:ident, $columns:ident, $threads:ident) => {{
        let other = $other.extract::<PyReadonlyArray1<'_, $T>>()?;
        let other = other.as_slice()?;
        let places = $m.shape().0.checked_mul($columns.unwrap_or(1));
        let mut product = made(filled(places, $T::NONE))?;
        made(released($py, || match $columns {
            Some(columns) => $m.matmat(other, columns, &mut product, $threads),
            None => $m.matvec(other, &mut product, $threads),
        })?)?;
        Ok(elements($py, product))
    }};
}

/// A matrix by rows; see `tidegate.sparse`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Csr {
    #[pyo3(get)]
    shape: (usize, usize),
    #[pyo3(get)]
    indptr: Py<PyAny>,
    #[pyo3(get)]
    indices: Py<PyAny>,
    #[pyo3(get)]
    data: Py<PyAny>,
}

/// Runs an expression with a matrix and its types.
macro_rules! with_csr {
    ($self:expr, $py:expr, |$m:ident: $I:ident, $T:ident| $body:expr) => {{
        let (indptr, indices) = (Indices::of($self.indptr.bind($py))?, Indices::of($self.indices.bind($py))?);
        with_data!($self.data.bind($py), |data: $T| with_indices!(indptr, indices, |p, i: $I| {
            let $m = made(sparse::Csr::<$I, $T>::from_validated($self.shape, p, i, data))?;
            $body
        }))
    }};
}

impl Csr {
    fn from<I: Signed, T: Number>(py: Python<'_>, matrix: &sparse::Csr<'_, I, T>) -> Self {
        let (indptr, columns, data) = matrix.arrays();
        let (indptr, columns, data) =
            (indices(py, indptr), indices(py, columns), elements(py, data.to_vec()));
        Self { shape: matrix.shape(), indptr, indices: columns, data }
    }
}

#[pymethods]
impl Csr {
    #[new]
    fn new(
        py: Python<'_>,
        indptr: Py<PyAny>,
        indices: Py<PyAny>,
        data: Py<PyAny>,
        shape: (usize, usize),
        sorted: bool,
    ) -> PyResult<Self> {
        {
            let (indptr, indices) = (Indices::of(indptr.bind(py))?, Indices::of(indices.bind(py))?);
            with_data!(data.bind(py), |data: T| with_indices!(indptr, indices, |p, i: I| {
                made(released(py, || {
                    let matrix = sparse::Csr::<I, T>::new(shape, p, i, data)?;
                    if sorted { matrix.check_sorted() } else { Ok(()) }
                })?)
            }))?;
        }
        Ok(Self { shape, indptr, indices, data })
    }

    /// Take the nonzero entries of a dense matrix; indices have 64 bits if `wide`, else 32.
    #[staticmethod]
    fn from_dense(
        py: Python<'_>,
        dense: &Bound<'_, PyAny>,
        shape: (usize, usize),
        wide: bool,
    ) -> PyResult<Self> {
        with_data!(dense, |dense: T| Ok(if wide {
            Self::from(py, &made(released(py, || sparse::Csr::<u64, T>::from_dense(shape, dense))?)?)
        } else {
            Self::from(py, &made(released(py, || sparse::Csr::<u32, T>::from_dense(shape, dense))?)?)
        }))
    }

    /// Return (bytes of all arrays, fraction of places without an entry).
    fn size(&self, py: Python<'_>) -> PyResult<(u64, f64)> {
        with_csr!(self, py, |m: I, T| Ok((m.held_bytes(), m.sparsity())))
    }

    /// Return the product with a vector, or with a matrix of `columns` columns.
    fn product(
        &self,
        py: Python<'_>,
        other: &Bound<'_, PyAny>,
        columns: Option<usize>,
        threads: usize,
    ) -> PyResult<Py<PyAny>> {
        with_csr!(self, py, |m: I, T| multiplied!(m, T, py, other, columns, threads))
    }

    /// Return the product of the transposed matrix with a vector.
    fn transposed_product(&self, py: Python<'_>, vector: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        with_csr!(self, py, |m: I, T| {
            let vector = vector.extract::<PyReadonlyArray1<'_, T>>()?;
            let vector = vector.as_slice()?;
            let mut product = made(filled(Some(self.shape.1), T::NONE))?;
            made(released(py, || m.add_transposed_matvec(vector, &mut product))?)?;
            Ok(elements(py, product))
        })
    }

    fn transposed(&self, py: Python<'_>) -> PyResult<Self> {
        with_csr!(self, py, |m: I, T| Ok(Self::from(py, &made(released(py, || m.transposed())?)?)))
    }

    fn canonical(&self, py: Python<'_>) -> PyResult<Self> {
        with_csr!(self, py, |m: I, T| Ok(Self::from(py, &made(released(py, || m.canonical())?)?)))
    }

    fn to_dense(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        with_csr!(self, py, |m: I, T| Ok(elements(py, made(released(py, || m.to_dense())?)?)))
    }

    fn to_bsr(&self, py: Python<'_>, block: (usize, usize)) -> PyResult<Bsr> {
        with_csr!(self, py, |m: I, T| Ok(Bsr::from(py, &made(released(py, || m.to_bsr(block))?)?)))
    }

    fn to_coo(&self, py: Python<'_>) -> PyResult<Coo> {
        with_csr!(self, py, |m: I, T| Ok(Coo::from(py, &made(released(py, || m.to_coo())?)?)))
    }
}

/// A matrix by blocks; see `tidegate.sparse`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Bsr {
    #[pyo3(get)]
    shape: (usize, usize),
    #[pyo3(get)]
    block: (usize, usize),
    #[pyo3(get)]
    indptr: Py<PyAny>,
    #[pyo3(get)]
    indices: Py<PyAny>,
    /// The blocks, flat.
    #[pyo3(get)]
    data: Py<PyAny>,
}

macro_rules! with_bsr {
    ($self:expr, $py:expr, |$m:ident: $I:ident, $T:ident| $body:expr) => {{
        let (indptr, indices) = (Indices::of($self.indptr.bind($py))?, Indices::of($self.indices.bind($py))?);
        with_data!($self.data.bind($py), |data: $T| with_indices!(indptr, indices, |p, i: $I| {
            let $m = made(sparse::Bsr::<$I, $T>::from_validated($self.shape, $self.block, p, i, data))?;
            $body
        }))
    }};
}

impl Bsr {
    fn from<I: Signed, T: Number>(py: Python<'_>, matrix: &sparse::Bsr<'_, I, T>) -> Self {
        let (indptr, columns, data) = matrix.arrays();
        let (indptr, columns, data) =
            (indices(py, indptr), indices(py, columns), elements(py, data.to_vec()));
        Self { shape: matrix.shape(), block: matrix.block(), indptr, indices: columns, data }
    }
}

#[pymethods]
impl Bsr {
    #[new]
    fn new(
        py: Python<'_>,
        indptr: Py<PyAny>,
        indices: Py<PyAny>,
        data: Py<PyAny>,
        shape: (usize, usize),
        block: (usize, usize),
    ) -> PyResult<Self> {
        {
            let (indptr, indices) = (Indices::of(indptr.bind(py))?, Indices::of(indices.bind(py))?);
            with_data!(data.bind(py), |data: T| with_indices!(indptr, indices, |p, i: I| {
                made(released(py, || sparse::Bsr::<I, T>::new(shape, block, p, i, data).map(drop))?)
            }))?;
        }
        Ok(Self { shape, block, indptr, indices, data })
    }

    /// Return (bytes of all arrays, fraction of blocks that are not stored).
    fn size(&self, py: Python<'_>) -> PyResult<(u64, f64)> {
        with_bsr!(self, py, |m: I, T| Ok((m.held_bytes(), m.sparsity())))
    }

    /// Return the product, as for `Csr`.
    fn product(
        &self,
        py: Python<'_>,
        other: &Bound<'_, PyAny>,
        columns: Option<usize>,
        threads: usize,
    ) -> PyResult<Py<PyAny>> {
        with_bsr!(self, py, |m: I, T| multiplied!(m, T, py, other, columns, threads))
    }

    fn to_dense(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        with_bsr!(self, py, |m: I, T| Ok(elements(py, made(released(py, || m.to_dense())?)?)))
    }

    fn to_csr(&self, py: Python<'_>) -> PyResult<Csr> {
        with_bsr!(self, py, |m: I, T| Ok(Csr::from(py, &made(released(py, || m.to_csr())?)?)))
    }
}

/// An array as a list of entries; see `tidegate.sparse`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Coo {
    shape: Vec<usize>,
    coords: Vec<Py<PyAny>>,
    #[pyo3(get)]
    data: Py<PyAny>,
}

/// Runs an expression with an array made of indices and entries.
macro_rules! with_coo {
    ($shape:expr, $coords:expr, $data:expr, $py:expr, |$m:ident: $I:ident, $T:ident| $body:expr) => {{
        let coords = $coords.iter().map(|axis| Indices::of(axis.bind($py))).collect::<PyResult<Vec<_>>>()?;
        let words = coords.iter().map(Indices::words).collect::<PyResult<Vec<_>>>()?;
        with_data!($data.bind($py), |data: $T| {
            if words.iter().all(|words| matches!(words, Words::Narrow(_))) {
                type $I = u32;
                let coords = words
                    .iter()
                    .filter_map(|w| if let Words::Narrow(w) = w { Some((*w).into()) } else { None });
                let $m = made(sparse::Coo::<$I, $T>::new($shape, coords.collect(), data))?;
                $body
            } else if words.iter().all(|words| matches!(words, Words::Wide(_))) {
                type $I = u64;
                let coords = words
                    .iter()
                    .filter_map(|w| if let Words::Wide(w) = w { Some((*w).into()) } else { None });
                let $m = made(sparse::Coo::<$I, $T>::new($shape, coords.collect(), data))?;
                $body
            } else {
                Err(config("coordinates of different widths: give all axes the same dtype"))
            }
        })
    }};
}

impl Coo {
    fn from<I: Signed, T: Number>(py: Python<'_>, array: &sparse::Coo<'_, I, T>) -> Self {
        let (coords, data) = array.arrays();
        let coords = coords.into_iter().map(|axis| indices(py, axis)).collect();
        Self { shape: array.shape().to_vec(), coords, data: elements(py, data.to_vec()) }
    }
}

#[pymethods]
impl Coo {
    #[new]
    fn new(py: Python<'_>, coords: Vec<Py<PyAny>>, data: Py<PyAny>, shape: Vec<usize>) -> PyResult<Self> {
        // Checks the arrays.
        with_coo!(&shape, &coords, &data, py, |m: I, T| {
            drop(m);
            Ok(())
        })?;
        Ok(Self { shape, coords, data })
    }

    #[staticmethod]
    fn from_dense(py: Python<'_>, dense: &Bound<'_, PyAny>, shape: Vec<usize>, wide: bool) -> PyResult<Self> {
        with_data!(dense, |dense: T| Ok(if wide {
            Self::from(py, &made(released(py, || sparse::Coo::<u64, T>::from_dense(&shape, dense))?)?)
        } else {
            Self::from(py, &made(released(py, || sparse::Coo::<u32, T>::from_dense(&shape, dense))?)?)
        }))
    }

    #[getter]
    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    #[getter]
    fn coords(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.coords.iter().map(|axis| axis.clone_ref(py)).collect()
    }

    /// Return (bytes of all arrays, fraction of places without an entry).
    fn size(&self, py: Python<'_>) -> PyResult<(u64, f64)> {
        with_coo!(&self.shape, &self.coords, &self.data, py, |m: I, T| Ok((m.held_bytes(), m.sparsity())))
    }

    fn canonical(&self, py: Python<'_>) -> PyResult<Self> {
        with_coo!(&self.shape, &self.coords, &self.data, py, |m: I, T| {
            Ok(Self::from(py, &made(released(py, || m.canonical())?)?))
        })
    }

    fn to_csr(&self, py: Python<'_>) -> PyResult<Csr> {
        with_coo!(&self.shape, &self.coords, &self.data, py, |m: I, T| {
            Ok(Csr::from(py, &made(released(py, || m.to_csr())?)?))
        })
    }

    fn to_dense(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        with_coo!(&self.shape, &self.coords, &self.data, py, |m: I, T| {
            Ok(elements(py, made(released(py, || m.to_dense())?)?))
        })
    }
}
