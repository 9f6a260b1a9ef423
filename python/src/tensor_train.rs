//! `tidegate.tensor_train`: arrays and matrices as chains of small arrays (cores).
//!
//! Flow: float64 arrays -> [`Train`] -> entries, slices, products, blocks.
//! Memory: arguments and results are NumPy's; cores are the object's.

use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use tidegate_array::tensor_train::{Core, Limit, TensorTrain, TtMatrix};

use crate::errors::{array_error, released};

/// A tensor train of an array or a matrix; see `tidegate.tensor_train`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Train {
    train: TensorTrain,
    /// The factors of a matrix's rows and columns; None for an array.
    digits: Option<(Vec<usize>, Vec<usize>)>,
}

impl From<TensorTrain> for Train {
    fn from(train: TensorTrain) -> Self {
        Self { train, digits: None }
    }
}

impl From<TtMatrix> for Train {
    fn from(matrix: TtMatrix) -> Self {
        let (rows, cols) = matrix.digits();
        Self { digits: Some((rows.to_vec(), cols.to_vec())), train: matrix.train().clone() }
    }
}

fn made<T>(result: tidegate_array::Result<T>) -> PyResult<T> {
    result.map_err(|e| array_error(&e))
}

impl Train {
    fn matrix(&self) -> PyResult<TtMatrix> {
        let (rows, cols) = self.digits.clone().unwrap_or_default();
        made(TtMatrix::new(&rows, &cols, self.train.clone()))
    }
}

#[pymethods]
impl Train {
    /// Decompose an array of `shape`, or a matrix with factors `shape` of its rows and `cols` of
    /// its columns.
    #[staticmethod]
    fn decompose(
        py: Python<'_>,
        values: PyReadonlyArray1<'_, f64>,
        shape: Vec<usize>,
        cols: Option<Vec<usize>>,
        tolerance: f64,
        rank: Option<usize>,
    ) -> PyResult<Self> {
        let (values, limit) = (values.as_slice()?, Limit { tolerance, rank });
        made(released(py, || match cols {
            Some(cols) => TtMatrix::decompose(values, &shape, &cols, limit).map(Self::from),
            None => TensorTrain::decompose(values, &shape, limit).map(Self::from),
        })?)
    }

    /// Make a train of cores, each (left rank, side, right rank, elements).
    #[staticmethod]
    fn of(
        cores: Vec<(usize, usize, usize, Vec<f64>)>,
        digits: Option<(Vec<usize>, Vec<usize>)>,
    ) -> PyResult<Self> {
        let cores =
            cores.into_iter().map(|(left, side, right, data)| Core { left, side, right, data }).collect();
        let train = made(TensorTrain::new(cores))?;
        match digits {
            Some((rows, cols)) => made(TtMatrix::new(&rows, &cols, train)).map(Self::from),
            None => Ok(train.into()),
        }
    }

    #[staticmethod]
    fn load(path: PathBuf, matrix: bool) -> PyResult<Self> {
        made(if matrix {
            TtMatrix::load(&path).map(Self::from)
        } else {
            TensorTrain::load(&path).map(Self::from)
        })
    }

    fn save(&self, path: PathBuf) -> PyResult<()> {
        match self.digits {
            Some(_) => made(self.matrix()?.save(&path)),
            None => made(self.train.save(&path)),
        }
    }

    #[getter]
    fn shape(&self) -> Vec<usize> {
        self.train.shape()
    }

    #[getter]
    fn ranks(&self) -> Vec<usize> {
        self.train.ranks()
    }

    #[getter]
    fn digits(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        self.digits.clone()
    }

    #[getter]
    fn held(&self) -> usize {
        self.train.held()
    }

    /// Return the cores, each flat.
    fn cores<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyArray1<f64>>> {
        self.train.cores().iter().map(|core| core.data.clone().into_pyarray(py)).collect()
    }

    fn entry(&self, at: Vec<usize>) -> PyResult<f64> {
        made(self.train.entry(&at))
    }

    fn slice(&self, axis: usize, index: usize) -> PyResult<Self> {
        made(self.train.slice(axis, index)).map(Self::from)
    }

    fn dot(&self, py: Python<'_>, other: &Self) -> PyResult<f64> {
        made(released(py, || self.train.dot(&other.train))?)
    }

    fn norm(&self, py: Python<'_>) -> PyResult<f64> {
        made(released(py, || self.train.norm())?)
    }

    fn round(&self, py: Python<'_>, tolerance: f64, rank: Option<usize>) -> PyResult<Self> {
        let train = made(released(py, || self.train.round(Limit { tolerance, rank }))?)?;
        Ok(Self { train, digits: self.digits.clone() })
    }

    fn to_dense<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(made(released(py, || self.train.to_dense())?)?.into_pyarray(py))
    }

    /// Call `each(start, block)` for the blocks of the array in C order.
    fn blocks(&self, py: Python<'_>, memory_bytes: u64, each: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut failed = None;
        let done = self.train.reconstruct(memory_bytes, |start, block| {
            each.call1((start, PyArray1::from_slice(py, block))).map(drop).map_err(|error| {
                failed = Some(error);
                tidegate_array::Error::Value { what: "the caller raised".into() }
            })
        });
        failed.map_or_else(|| made(done), Err)
    }

    fn matvec<'py>(
        &self,
        py: Python<'py>,
        vector: PyReadonlyArray1<'_, f64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let (matrix, vector) = (self.matrix()?, vector.as_slice()?);
        Ok(made(released(py, || matrix.matvec(vector))?)?.into_pyarray(py))
    }

    /// Return rows of the matrix, flat.
    fn rows<'py>(&self, py: Python<'py>, rows: Vec<usize>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let matrix = self.matrix()?;
        Ok(made(released(py, || matrix.some_rows(&rows))?)?.into_pyarray(py))
    }
}
