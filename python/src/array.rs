//! NumPy arrays over the memory of a batch, without a copy.
//!
//! Flow: batch -> one array a column, writable, each holding the batch's memory.
//! Memory: that of columns of up to 4 KiB, which NumPy has. The slot of a batch returns to the
//! ring when the last of its other arrays is gone.
#![expect(unsafe_code, reason = "hands memory to NumPy")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API, npy_intp};
use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tidegate_array::mmap::{Mapped, Mode};
use tidegate_core::memory::Block;
use tidegate_data::batch::{Batch, BatchMemory, Column, Part};
use tidegate_decode::npy::DType;

/// Columns of up to this many bytes get memory of their own.
const SMALL_BYTES: usize = 4096;

/// Holds the memory of a batch for the arrays that view it.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
struct Lease {
    #[expect(dead_code, reason = "kept for its drop, which gives the memory back")]
    memory: Held,
}

/// The owner of memory that arrays view.
#[derive(Debug)]
#[expect(dead_code, reason = "kept for their drop, which gives the memory back")]
enum Held {
    Batch(BatchMemory),
    Block(Block),
    Mapped(Arc<Mapped>),
}

/// A place for an array's data.
struct View {
    start: NonNull<u8>,
    shape: Vec<usize>,
    dtype: DType,
}

impl View {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// NumPy's descriptor of an element type; bfloat16 is that of `ml_dtypes`.
pub(crate) fn descr(py: Python<'_>, dtype: DType) -> PyResult<Bound<'_, PyArrayDescr>> {
    if dtype == DType::Bfloat16 {
        let module = py.import("ml_dtypes").map_err(|_| {
            pyo3::exceptions::PyImportError::new_err(
                "bfloat16 needs the package ml_dtypes: pip install ml_dtypes",
            )
        })?;
        return PyArrayDescr::new(py, module.getattr("bfloat16")?);
    }
    PyArrayDescr::new(py, dtype.name())
}

/// Returns a batch as {name: array}. A ragged column is (values, offsets, shapes, is text), of
/// which Python makes a `Ragged`.
pub(crate) fn columns<'py>(py: Python<'py>, mut batch: Batch) -> PyResult<Bound<'py, PyDict>> {
    let columns = std::mem::take(&mut batch.columns);
    let rows = batch.rows;
    let views: Vec<View> = columns.iter().map(|c| view(&mut batch, c, rows)).collect();
    // Moving the batch into the lease moves owners, not bytes: slots and blocks keep their
    // addresses.
    let lease = Bound::new(py, Lease { memory: Held::Batch(batch.memory) })?;
    let out = PyDict::new(py);
    for (column, view) in columns.iter().zip(views) {
        let descr = descr(py, view.dtype)?;
        // SAFETY: the view is of memory that `lease` owns, and nothing else refers to it.
        let mut array = unsafe { array(lease.as_any(), &view, descr, true)? };
        if view.bytes() <= SMALL_BYTES {
            // A user who keeps labels would keep the slot of their images.
            array = array.call_method0("copy")?;
        }
        if let Part::Slot { .. } = column.part {
            out.set_item(&column.name, array)?;
        } else {
            let offsets = numpy::PyArray1::from_slice(py, &column.offsets);
            let shapes = PyList::new(py, column.shapes.iter().cloned())?;
            out.set_item(&column.name, (array, offsets, shapes, column.text))?;
        }
    }
    Ok(out)
}

/// Returns an array over a block of the budget; its elements are not set.
pub(crate) fn over_block<'py>(
    py: Python<'py>,
    mut block: Block,
    shape: Vec<usize>,
    dtype: DType,
) -> PyResult<Bound<'py, PyAny>> {
    let view = View { start: NonNull::from(&mut *block).cast(), shape, dtype };
    // Moving the block into the lease moves the owner; its bytes are an extent of the arena and
    // keep their address.
    let lease = Bound::new(py, Lease { memory: Held::Block(block) })?;
    // SAFETY: the block has the bytes that the shape needs (the caller requested them), and only
    // `lease` refers to it.
    unsafe { array(lease.as_any(), &view, descr(py, dtype)?, true) }
}

/// Returns an array over a mapped one, which stays mapped while a view of it exists. Fortran order
/// is returned with its axes reversed.
pub(crate) fn over_mapped<'py>(py: Python<'py>, mapped: &Arc<Mapped>) -> PyResult<Bound<'py, PyAny>> {
    let stored = mapped.stored();
    let mut shape = stored.shape.clone();
    if stored.fortran {
        shape.reverse();
    }
    let view = View { start: mapped.start(), shape, dtype: stored.dtype };
    let descr = match stored.big_endian && stored.dtype.size() > 1 {
        true => descr(py, stored.dtype)?.call_method1("newbyteorder", (">",))?.cast_into()?,
        false => descr(py, stored.dtype)?,
    };
    let lease = Bound::new(py, Lease { memory: Held::Mapped(Arc::clone(mapped)) })?;
    // SAFETY: the mapping has the bytes that the shape needs and lives as long as `lease`. Other
    // writers to the file are NumPy's contract for memory maps, documented there and in
    // `tidegate.mapped`.
    unsafe { array(lease.as_any(), &view, descr, mapped.mode() != Mode::Read) }
}

fn view(batch: &mut Batch, column: &Column, rows: usize) -> View {
    let bytes = batch.bytes_mut(column);
    let shape = match column.part {
        Part::Slot { .. } => std::iter::once(rows).chain(column.shape.iter().copied()).collect(),
        Part::Ragged { .. } => vec![bytes.len() / column.dtype.size()],
    };
    View { start: NonNull::from(bytes).cast(), shape, dtype: column.dtype }
}

/// Returns an array over `view` that keeps `owner` alive.
///
/// # Safety
/// The view must be of memory that lives as long as `owner` and that nothing else reads or writes
/// meanwhile.
unsafe fn array<'py>(
    owner: &Bound<'py, PyAny>,
    view: &View,
    descr: Bound<'py, PyArrayDescr>,
    writable: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = owner.py();
    let mut dims: Vec<npy_intp> = view.shape.iter().map(|&d| d.cast_signed()).collect();
    // SAFETY: the descriptor and the owner are passed with a reference that NumPy steals; dims
    // outlives the call; the data are valid for the shape (`Batch::bytes_mut` gave a slice of that
    // many elements) and C-contiguous.
    unsafe {
        let made = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            npyffi::get_type_object(py, NpyTypes::PyArray_Type),
            descr.into_dtype_ptr(),
            dims.len() as c_int,
            dims.as_mut_ptr(),
            std::ptr::null_mut(),
            view.start.as_ptr().cast(),
            if writable { npyffi::NPY_ARRAY_WRITEABLE } else { 0 },
            std::ptr::null_mut(),
        );
        let made = Bound::from_owned_ptr_or_err(py, made)?;
        if PY_ARRAY_API.PyArray_SetBaseObject(py, made.as_ptr().cast(), owner.clone().into_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(made)
    }
}
