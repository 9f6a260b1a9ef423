//! The extension module `tidegate._tidegate`: NumPy views of batches, and errors as exceptions.
//!
//! Flow: keyword arguments as JSON -> `tidegate::Options`; batches -> arrays over their memory.
//! Memory: an array keeps its batch alive; the slot returns to the ring when the last one is gone.
//! Not here: policies, formats and algorithms, which are in `tidegate` and its crates; docstrings
//! of most classes, which are in the package. This crate converts arguments and results, chooses
//! the exception for an error, and releases the interpreter while Rust works.

mod array;
mod budget;
mod compress;
mod curve;
mod dedup;
mod drawn;
mod errors;
mod loader;
mod mapped;
mod pack;
mod profile;
mod quantize;
mod sampler;
mod sketch;
mod source;
mod sparse;
mod stitch;
mod tensor_train;
mod training;
mod volume;

/// The extension's own: the interpreter and other libraries keep theirs.
#[global_allocator]
static HEAP: tidegate_core::memory::Heap = tidegate_core::memory::Heap;

#[pyo3::pymodule(gil_used = false)]
mod _tidegate {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::budget::{Budget, size_bytes};
    #[pymodule_export]
    use super::compress::{codecs, pack_array, unpack_array};
    #[pymodule_export]
    use super::curve::cache_curve;
    #[pymodule_export]
    use super::dedup::dedup;
    #[pymodule_export]
    use super::drawn::Drawn;
    #[pymodule_export]
    use super::loader::{Epoch, Loader};
    #[pymodule_export]
    use super::mapped::Mapped;
    #[pymodule_export]
    use super::pack::pack;
    #[pymodule_export]
    use super::profile::{Profile, made};
    #[pymodule_export]
    use super::quantize::{Calibrator, Quantized, pack_blocks, unpack_blocks};
    #[pymodule_export]
    use super::source::{Source, open, synthetic, tokens};
    #[pymodule_export]
    use super::sparse::{Bsr, Coo, Csr};
    #[pymodule_export]
    use super::stitch::Stitch;
    #[pymodule_export]
    use super::tensor_train::Train;
    #[pymodule_export]
    use super::training::{Planner, plan_training};
    #[pymodule_export]
    use super::volume::{Boxes, Volume, levels, volume};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // Arrays need NumPy: report a missing one at import, not at the first batch.
        module.py().import("numpy")?;
        super::sketch::register(module)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Return (rank, world size, the variables they come from) of a launcher, or None.
    #[pyfunction]
    fn ranks() -> PyResult<Option<(u64, u64, &'static str)>> {
        let found = tidegate::loader::ranks::from_environment().map_err(|e| super::errors::raise(&e))?;
        Ok(found.map(|ranks| (ranks.rank, ranks.world_size, ranks.from)))
    }

    /// Run the command line with these arguments and return its exit code.
    #[pyfunction]
    fn cli(py: Python<'_>, arguments: Vec<String>) -> i32 {
        py.detach(|| tidegate::cli::run(arguments))
    }
}
