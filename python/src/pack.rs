//! `tidegate.pack`: a dataset in shards of bounded size.
//!
//! Flow: a source and options -> `tidegate::dataset::pack`, with the interpreter released ->
//! counts.
//! Memory: that of `tidegate::dataset::pack`, outside of any budget.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use tidegate::Error;
use tidegate::dataset::pack::{self as packing, Compression, Format, Limits};

use crate::errors::{raise, released};
use crate::profile::Progress;
use crate::source::Source;

/// Packs a source; returns (shards, shards that an earlier run had finished).
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the words of `tidegate.pack`")]
pub(crate) fn pack(
    py: Python<'_>,
    source: &Source,
    out: PathBuf,
    format: &str,
    max_bytes: u64,
    max_samples: u64,
    quantize: Vec<(String, u32)>,
    codecs: Vec<(String, String)>,
    codec: Option<String>,
    names: Option<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(u64, u64)> {
    let format = match format {
        "mds" => Format::Mds,
        "tar" => Format::Tar,
        other => return Err(raise(&Error::Config(format!("format must be 'mds' or 'tar', not {other:?}")))),
    };
    let limits = Limits { bytes: max_bytes, samples: max_samples };
    let (progress, source) = (Progress::new(progress), Arc::clone(&source.0));
    let compression = Compression { quantize, codecs, codec };
    let tell = |done, of| progress.told(done, of);
    let packed = released(py, || {
        packing::pack(&*source, &out, format, limits, &compression, names.as_deref(), &tell)
    })?;
    let packed = packed.map_err(|e| progress.raised(&e))?;
    Ok((packed.shards, packed.kept))
}
