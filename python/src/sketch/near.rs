//! Similarity: MinHash of texts, locality-sensitive hashing, nearest points.
//!
//! Flow: texts, rows of words or of numbers -> `tidegate_sketch::neighbour`.
//! Memory: `size_bytes` of each object; signatures are the caller's.

use numpy::{PyArray1, PyArray2, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tidegate_sketch::neighbour::{lsh, minhash, points, smote};

use super::class::{raised, sketch};
use super::values::{Slices, Values, given, ids, table};
use crate::errors::classes::ConfigError;

fn rows<T: numpy::Element>(py: Python<'_>, values: Vec<T>, width: usize) -> PyResult<Bound<'_, PyArray2<T>>> {
    let rows = values.len() / width.max(1);
    given(py, values).call_method1("reshape", ((rows, width),))?.cast_into().map_err(Into::into)
}

/// Return the hashes of all runs of `n` words of a text, in lower case and without punctuation.
#[pyfunction]
#[pyo3(signature = (text, n = 5))]
fn shingles<'py>(py: Python<'py>, text: &str, n: usize) -> Bound<'py, PyArray1<u64>> {
    let hashes = py.detach(|| minhash::shingles(text, n));
    given(py, hashes)
}

/// Return the MinHash signature of a set of hashes, or one row for each text of an array.
///
/// A set of hashes is an array of integers. A signature is `slots` words of 32 bits; `n` is the
/// number of words in a shingle of a text.
#[pyfunction]
#[pyo3(name = "minhash", signature = (values, *, n = 5, slots = 112))]
fn signatures<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    n: usize,
    slots: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let values = Values::of(values)?;
    let slices = values.slices()?;
    match slices {
        Slices::Words(elements, _) => {
            let words = py.detach(|| minhash::MinHash::new(elements, slots)).map_err(raised)?.words();
            Ok(given(py, words).into_any())
        }
        Slices::Texts(..) => {
            let words = py.detach(|| {
                let (mut words, mut wrong) = (Vec::new(), None);
                slices.texts(|text| {
                    match minhash::MinHash::new(&minhash::shingles(&String::from_utf8_lossy(text), n), slots)
                    {
                        Ok(sketch) => words.extend(sketch.words()),
                        Err(error) => wrong = Some(error),
                    }
                });
                wrong.map_or(Ok(words), Err)
            });
            Ok(rows(py, words.map_err(raised)?, slots)?.into_any())
        }
        _ => Err(ConfigError::new_err("a set is an array of integers, or texts")),
    }
}

/// Return the fraction of slots in which two signatures agree: it estimates Jaccard similarity.
#[pyfunction]
fn similarity(one: &Bound<'_, PyAny>, other: &Bound<'_, PyAny>) -> PyResult<f64> {
    let (one, other) = (table::<u32>(one, "uint32")?, table::<u32>(other, "uint32")?);
    if one.shape() != other.shape() || one.is_empty() {
        return Err(ConfigError::new_err(format!(
            "signatures of shapes {:?} and {:?}",
            one.shape(),
            other.shape()
        )));
    }
    Ok(minhash::similarity(one.as_slice()?, other.as_slice()?))
}

/// The way to make keys of a row.
#[derive(Debug)]
enum Family {
    Bands(lsh::Bands),
    Planes(lsh::Hyperplanes),
    Lines(lsh::Projections),
}

/// Rows in the form that a family takes.
enum Rows<'py> {
    Words(PyReadonlyArray2<'py, u32>),
    Vectors(PyReadonlyArray2<'py, f32>),
}

#[derive(Debug)]
struct Table {
    family: Family,
    index: lsh::Index,
}

impl Table {
    fn size_bytes(&self) -> u64 {
        self.index.size_bytes()
            + match &self.family {
                Family::Bands(_) => 0,
                Family::Planes(planes) => planes.size_bytes(),
                Family::Lines(lines) => lines.size_bytes(),
            }
    }

    fn words(&self, row: &[u32]) -> tidegate_sketch::Result<Vec<u64>> {
        match &self.family {
            Family::Bands(bands) => bands.keys(row),
            _ => Ok(Vec::new()),
        }
    }

    fn vector(&self, row: &[f32]) -> tidegate_sketch::Result<Vec<u64>> {
        match &self.family {
            Family::Planes(planes) => planes.keys(row),
            Family::Lines(lines) => lines.keys(row),
            Family::Bands(_) => Ok(Vec::new()),
        }
    }
}

sketch! {
    /// Finds similar rows without comparing all (locality-sensitive hashing).
    ///
    /// `Lsh(bands, rows)` takes MinHash signatures; `Lsh.angles` and `Lsh.distances` take vectors.
    Lsh(Table) {
        #[new]
        #[pyo3(signature = (bands = 14, rows = 8))]
        fn new(bands: usize, rows: usize) -> PyResult<Self> {
            Self::of(lsh::Bands::new(bands, rows).map(|bands| Table { family: Family::Bands(bands), index: lsh::Index::default() }))
        }

        /// Find vectors at a small angle, by random planes: `bits` for each of `tables` keys.
        #[staticmethod]
        #[pyo3(signature = (dimensions, *, bits = 12, tables = 16, seed = 0))]
        fn angles(dimensions: usize, bits: usize, tables: usize, seed: u64) -> PyResult<Self> {
            let planes = lsh::Hyperplanes::new(dimensions, bits, tables, seed);
            Self::of(planes.map(|planes| Table { family: Family::Planes(planes), index: lsh::Index::default() }))
        }

        /// Find vectors at a small distance, by cells of `width` on random lines: `lines` for each
        /// of `tables` keys.
        #[staticmethod]
        #[pyo3(signature = (dimensions, width, *, lines = 8, tables = 16, seed = 0))]
        fn distances(dimensions: usize, width: f64, lines: usize, tables: usize, seed: u64) -> PyResult<Self> {
            let lines = lsh::Projections::new(dimensions, width, lines, tables, seed);
            Self::of(lines.map(|lines| Table { family: Family::Lines(lines), index: lsh::Index::default() }))
        }

        /// Add ids with a row each: a signature, or a vector.
        fn add(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
            let (ids, rows) = (self::ids(ids)?, self.rows(rows)?);
            let (ids, keys) = (ids.as_slice()?, self.keys(py, &rows)?);
            if ids.len() != keys.len() {
                return Err(ConfigError::new_err(format!("{} ids for {} rows", ids.len(), keys.len())));
            }
            self.with(py, |table| ids.iter().zip(&keys).for_each(|(&id, keys)| table.index.add(id, keys)));
            Ok(())
        }

        /// Return for each row the ids that may be similar, in ascending order.
        fn candidates<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyArray1<u64>>>> {
            let rows = self.rows(rows)?;
            let keys = self.keys(py, &rows)?;
            let found = self.with(py, |table| keys.iter().map(|keys| table.index.candidates(keys)).collect::<Vec<_>>());
            Ok(found.into_iter().map(|ids| given(py, ids)).collect())
        }

        /// Return the probability that two rows become candidates.
        ///
        /// `alike` is their similarity, their angle in radians, or their distance.
        fn probability(&self, alike: f64) -> f64 {
            match &self.lock().family {
                Family::Bands(bands) => bands.probability(alike),
                Family::Planes(planes) => planes.probability(alike),
                Family::Lines(lines) => lines.probability(alike),
            }
        }

        /// The number of keys held.
        fn __len__(&self) -> usize {
            self.lock().index.len()
        }
    }
}

impl Lsh {
    fn rows<'py>(&self, rows: &Bound<'py, PyAny>) -> PyResult<Rows<'py>> {
        // Without the lock: making an array may run Python, and another thread.
        let bands = matches!(self.lock().family, Family::Bands(_));
        Ok(if bands { Rows::Words(table(rows, "uint32")?) } else { Rows::Vectors(table(rows, "float32")?) })
    }

    fn keys(&self, py: Python<'_>, rows: &Rows<'_>) -> PyResult<Vec<Vec<u64>>> {
        let keys = match rows {
            Rows::Words(rows) => {
                let (width, rows) = (rows.shape()[1].max(1), rows.as_slice()?);
                self.with(py, |table| {
                    rows.chunks(width).map(|row| table.words(row)).collect::<Result<_, _>>()
                })
            }
            Rows::Vectors(rows) => {
                let (width, rows) = (rows.shape()[1].max(1), rows.as_slice()?);
                self.with(py, |table| {
                    rows.chunks(width).map(|row| table.vector(row)).collect::<Result<_, _>>()
                })
            }
        };
        keys.map_err(raised)
    }
}

/// Rows of ids and rows of distances.
type Neighbours<'py> = (Bound<'py, PyArray2<u64>>, Bound<'py, PyArray2<f64>>);

sketch! {
    /// The nearest of many points: with a KD-tree up to eight dimensions, else by comparing all.
    Points(points::Points) {
        #[new]
        fn new(rows: &Bound<'_, PyAny>) -> PyResult<Self> {
            let rows = table::<f64>(rows, "float64")?;
            Self::of(points::Points::new(rows.as_slice()?.to_vec(), rows.shape()[1]))
        }

        /// Return (ids, distances) of the `k` points nearest to each place, as rows, the nearest
        /// first.
        #[pyo3(signature = (places, k = 1))]
        fn nearest<'py>(
            &self,
            py: Python<'py>,
            places: &Bound<'py, PyAny>,
            k: usize,
        ) -> PyResult<Neighbours<'py>> {
            let places = table::<f64>(places, "float64")?;
            let (width, places) = (places.shape()[1].max(1), places.as_slice()?);
            let near = self.with(py, |points| {
                places.chunks(width).map(|place| points.nearest(place, k)).collect::<Result<Vec<_>, _>>()
            });
            let near = near.map_err(raised)?;
            let k = near.first().map_or(k, Vec::len);
            let near = near.concat();
            let ids = rows(py, near.iter().map(|n| n.id).collect(), k)?;
            Ok((ids, rows(py, near.iter().map(|n| n.distance_squared.sqrt()).collect(), k)?))
        }

        /// Return the number of points.
        fn __len__(&self) -> usize {
            self.lock().len()
        }
    }
}

/// Return `count` synthetic rows between rows of a rare class and their `k` nearest (SMOTE).
///
/// The same `seed` gives the same rows.
#[pyfunction]
#[pyo3(name = "smote", signature = (rows, count, *, k = 5, seed = 0))]
fn synthetic<'py>(
    py: Python<'py>,
    rows: &Bound<'py, PyAny>,
    count: u64,
    k: usize,
    seed: u64,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let given = table::<f64>(rows, "float64")?;
    let (features, given) = (given.shape()[1], given.as_slice()?.to_vec());
    let made = py.detach(|| {
        let smote = smote::Smote::new(given, features, k, seed)?;
        Ok((0..count).flat_map(|n| smote.row(n)).collect::<Vec<f64>>())
    });
    self::rows(py, made.map_err(raised)?, features)
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Lsh>()?;
    module.add_class::<Points>()?;
    module.add_function(wrap_pyfunction!(synthetic, module)?)?;
    module.add_function(wrap_pyfunction!(shingles, module)?)?;
    module.add_function(wrap_pyfunction!(signatures, module)?)?;
    module.add_function(wrap_pyfunction!(similarity, module)?)
}
