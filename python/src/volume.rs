//! `tidegate.volume`: patches of chunked arrays, and boxes that say where classes are.
//!
//! Flow: options as JSON -> a volume, which is a source -> boxes for `tidegate.samplers.patches`.
//! Memory: what `tidegate_source::volume` says.

use std::sync::Arc;

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use tidegate_decode::Kind;
use tidegate_order::lattice;
use tidegate_source::volume as volumes;
use tidegate_source::volume::labels::Wanted;
use tidegate_source::volume::refine::Smooth;

use crate::budget::Budget;
use crate::errors::{raise, released};
use crate::source::{Source, interruptible, stopped};

/// A class, a weight, and (first voxel, voxels) along each axis.
type Found = (i64, f32, Vec<(i32, u32)>);

/// Boxes with classes, in the voxels of a field of a volume.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Boxes {
    pub(crate) boxes: Arc<lattice::Boxes>,
    pub(crate) field: usize,
}

#[pymethods]
impl Boxes {
    /// `classes` and `weights` have one number a box; `low` and `sizes` one for each axis of a
    /// box.
    #[new]
    fn new(
        py: Python<'_>,
        classes: PyReadonlyArray1<'_, i64>,
        weights: PyReadonlyArray1<'_, f32>,
        low: PyReadonlyArray2<'_, i32>,
        sizes: PyReadonlyArray2<'_, u32>,
        field: usize,
    ) -> PyResult<Self> {
        let axes = low.shape().get(1).copied().unwrap_or(0);
        let (classes, weights) = (classes.as_slice()?, weights.as_slice()?);
        let (low, sizes) = (low.as_slice()?, sizes.as_slice()?);
        let boxes: Vec<(i64, f32)> = classes.iter().copied().zip(weights.iter().copied()).collect();
        let spans: Vec<(i32, u32)> = low.iter().copied().zip(sizes.iter().copied()).collect();
        let boxes = released(py, || lattice::Boxes::new(axes, &boxes, &spans))?.map_err(|e| raise(&e))?;
        Ok(Self { boxes: Arc::new(boxes), field })
    }

    fn __len__(&self) -> usize {
        self.boxes.len()
    }

    /// Return (class, boxes, sum of weights) of each class.
    fn classes(&self) -> Vec<(i64, usize, f64)> {
        self.boxes.classes()
    }

    /// Return the class, the weight, and (first voxel, voxels) along each axis of a box.
    fn get(&self, i: usize) -> PyResult<Found> {
        if i >= self.boxes.len() {
            return Err(PyIndexError::new_err(format!("box {i} of {}", self.boxes.len())));
        }
        let (class, weight, spans) = self.boxes.get(i);
        Ok((class, weight, spans.to_vec()))
    }
}

/// Open the arrays at `url` as patches; `options` is JSON.
#[pyfunction]
pub(crate) fn volume(py: Python<'_>, url: &str, options: &str) -> PyResult<Volume> {
    let options = serde_json::from_str(options)
        .map_err(|e| raise(&tidegate::Error::Config(format!("the options of a volume: {e}"))))?;
    released(py, || volumes::Volume::open(url, &options))?.map(Volume).map_err(|e| raise(&e))
}

/// Return the voxel lengths of each level of the image at `path` below `url`, the finest first.
#[pyfunction]
pub(crate) fn levels(py: Python<'_>, url: &str, path: &str) -> PyResult<Vec<Vec<f64>>> {
    released(py, || volumes::levels(url, path))?.map_err(|e| raise(&e))
}

/// A source of patches; see `tidegate.volume`.
#[pyclass(frozen, module = "tidegate._tidegate")]
#[derive(Debug)]
pub(crate) struct Volume(pub(crate) Arc<volumes::Volume>);

#[pymethods]
impl Volume {
    /// Return the volume as a source.
    fn source(&self) -> Source {
        Source(Arc::clone(&self.0) as Arc<dyn tidegate_source::Source>)
    }

    /// Return (name, dtype, shape of a patch) of each field.
    fn fields(&self) -> Vec<(String, &'static str, Vec<usize>)> {
        let schema = tidegate_source::Source::schema(&*self.0).iter();
        let field = |field: &tidegate_decode::Field| match &field.kind {
            Kind::Patch { dtype, shape, .. } => Some((field.name.clone(), dtype.name(), shape.clone())),
            _ => None,
        };
        schema.filter_map(field).collect()
    }

    /// Return where patch `id` begins, in voxels of the first array.
    fn origin(&self, id: u64) -> PyResult<Vec<i64>> {
        let len = tidegate_source::Source::len(&*self.0);
        if id >= len {
            return Err(PyIndexError::new_err(format!("patch {id} of {len}")));
        }
        Ok(self.0.origin(id))
    }

    /// Find where the labels of a field are; `options` is JSON.
    fn boxes(&self, py: Python<'_>, options: &str, budget: &Budget, threads: usize) -> PyResult<Boxes> {
        let wanted: Wanted = serde_json::from_str(options)
            .map_err(|e| raise(&tidegate::Error::Config(format!("the options of boxes: {e}"))))?;
        let budget = budget.0.clone();
        let field = self.0.field(&wanted.field).map_err(|e| raise(&e))?;
        // Other threads read all chunks, so that this one sees Ctrl-C.
        let made = interruptible(py, |stop| {
            let progress = |_, _| stopped(stop);
            self.0.labels(&wanted, &budget, threads, &progress)
        })?;
        Ok(Boxes { boxes: Arc::new(made), field })
    }

    /// Find boxes as large as a field is smooth; `options` is JSON.
    fn refine(&self, py: Python<'_>, options: &str, budget: &Budget) -> PyResult<Boxes> {
        let wanted: Smooth = serde_json::from_str(options)
            .map_err(|e| raise(&tidegate::Error::Config(format!("the options of refine: {e}"))))?;
        let budget = budget.0.clone();
        let field = self.0.field(&wanted.field).map_err(|e| raise(&e))?;
        let made = interruptible(py, |stop| self.0.refine(&wanted, &budget, &|_, _| stopped(stop)))?;
        Ok(Boxes { boxes: Arc::new(made), field })
    }

    /// Return the id of the patch that begins nearest to a place.
    fn nearest(&self, origin: Vec<i64>) -> PyResult<u64> {
        self.0.nearest(&origin).map_err(|e| raise(&e))
    }
}
