//! `tidegate.quantize`: numbers as codes of a few bits, from NumPy and back.
//!
//! Flow: float32 arrays -> [`Quantized`], [`Calibrator`] -> codes, grids and values as arrays.
//! Memory: arguments and results are NumPy's; codes and grids are the object's.

use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tidegate_array::DType;
use tidegate_array::quantize::{self, Extent, Fidelity, Grid, Options, Scheme, View};

use crate::errors::{array_error, config, released};

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|e| config(e.to_string()))
}

/// Returns (scale, zero, base) of each grid, flat.
fn flat(grids: &[Grid]) -> Vec<f32> {
    grids.iter().flat_map(|grid| [grid.scale, grid.zero, grid.base]).collect()
}

/// Codes with their grids; see `tidegate.quantize`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Quantized(quantize::Quantized);

#[pymethods]
impl Quantized {
    /// `options` is JSON; `grids` are those of a calibrator.
    #[new]
    fn new(
        py: Python<'_>,
        values: PyReadonlyArray1<'_, f32>,
        shape: Vec<usize>,
        options: &str,
        grids: Option<PyReadonlyArray1<'_, f32>>,
    ) -> PyResult<Self> {
        let Options { bits, scheme, per, extent, rounding } = parse(options)?;
        let values = values.as_slice()?;
        let grids = grids.map(|grids| {
            let grids = grids.as_slice()?.as_chunks::<3>().0;
            let grid = |&[scale, zero, base]: &[f32; 3]| Grid { scale, zero, base };
            Ok::<_, PyErr>(grids.iter().map(grid).collect::<Vec<_>>())
        });
        let grids = grids.transpose()?;
        let made = released(py, || match grids {
            Some(grids) => quantize::Quantized::with(values, &shape, bits, scheme, per, grids, rounding),
            None => {
                let options = Options { bits, scheme, per, extent, rounding };
                quantize::Quantized::new(values, &shape, &options)
            }
        })?;
        made.map(Self).map_err(|e| array_error(&e))
    }

    /// Read what `to_bytes` returned.
    #[staticmethod]
    fn of(bytes: &[u8]) -> PyResult<Self> {
        View::parse(bytes).map(|view| Self(view.to_owned())).map_err(|e| array_error(&e))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.0.to_bytes().map_err(|e| array_error(&e))?))
    }

    #[getter]
    fn shape(&self) -> Vec<usize> {
        self.0.shape.clone()
    }

    #[getter]
    fn bits(&self) -> u32 {
        self.0.bits
    }

    #[getter]
    fn held_bytes(&self) -> u64 {
        self.0.held_bytes()
    }

    /// Return the packed codes.
    fn codes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        self.0.codes.clone().into_pyarray(py)
    }

    /// Return three numbers a grid, flat.
    fn grids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        flat(&self.0.grids).into_pyarray(py)
    }

    /// Return the bytes of the values in a dtype.
    fn dequantize<'py>(&self, py: Python<'py>, dtype: &str) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let dtype = DType::parse(dtype).map_err(config)?;
        let values = PyArray1::<u8>::zeros(py, self.0.len() * dtype.size(), false);
        {
            let mut values = values.readwrite();
            let into = values.as_slice_mut()?;
            released(py, || self.0.dequantize(dtype, into))?.map_err(|e| array_error(&e))?;
        }
        Ok(values)
    }

    /// Return (SQNR in dB, largest error, mean error, bits a value).
    fn fidelity(&self, py: Python<'_>, values: PyReadonlyArray1<'_, f32>) -> PyResult<(f64, f64, f64, f64)> {
        let values = values.as_slice()?;
        let found = released(py, || self.0.fidelity(values))?.map_err(|e| array_error(&e))?;
        let Fidelity { sqnr_db, largest_error, bias, bits_per_value } = found;
        Ok((sqnr_db, largest_error, bias, bits_per_value))
    }
}

/// Finds grids from values that come in parts; see `tidegate.quantize`.
#[pyclass(module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Calibrator(quantize::Calibrator);

#[pymethods]
impl Calibrator {
    #[new]
    fn new(bits: u32, scheme: &str, extent: &str, channels: usize) -> PyResult<Self> {
        let (scheme, extent): (Scheme, Extent) = (parse(scheme)?, parse(extent)?);
        quantize::Calibrator::new(bits, scheme, extent, channels).map(Self).map_err(|e| array_error(&e))
    }

    fn observe(&mut self, py: Python<'_>, values: PyReadonlyArray1<'_, f32>, inner: usize) -> PyResult<()> {
        let values = values.as_slice()?;
        released(py, || self.0.observe(values, inner))?.map_err(|e| array_error(&e))
    }

    fn grids<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Ok(flat(&self.0.grids().map_err(|e| array_error(&e))?).into_pyarray(py))
    }

    #[getter]
    fn held_bytes(&self) -> u64 {
        self.0.held_bytes()
    }
}

/// Quantizes float32 values in blocks, into codes and two numbers a block; false where no code
/// stands for a value. With a seed the rounding is stochastic.
#[pyfunction]
pub(crate) fn pack_blocks(
    py: Python<'_>,
    values: PyReadonlyArray1<'_, f32>,
    block: usize,
    seed: Option<u64>,
    mut codes: PyReadwriteArray1<'_, u8>,
    mut grids: PyReadwriteArray1<'_, f32>,
) -> PyResult<bool> {
    let rounding = seed.map_or(quantize::Rounding::Nearest, quantize::Rounding::Stochastic);
    let (values, codes, grids) = (values.as_slice()?, codes.as_slice_mut()?, grids.as_slice_mut()?);
    let grids = grids.as_chunks_mut::<2>().0;
    released(py, || quantize::pack_blocks(values, block, rounding, codes, grids))?
        .map_err(|e| array_error(&e))
}

/// Writes the values of codes in blocks.
#[pyfunction]
pub(crate) fn unpack_blocks(
    py: Python<'_>,
    codes: PyReadonlyArray1<'_, u8>,
    block: usize,
    grids: PyReadonlyArray1<'_, f32>,
    mut values: PyReadwriteArray1<'_, f32>,
) -> PyResult<()> {
    let (codes, grids, values) = (codes.as_slice()?, grids.as_slice()?, values.as_slice_mut()?);
    let grids = grids.as_chunks::<2>().0;
    released(py, || quantize::unpack_blocks(codes, block, grids, values))?.map_err(|e| array_error(&e))
}
