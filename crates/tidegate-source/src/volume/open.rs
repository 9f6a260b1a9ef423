//! Opens a volume: its arrays, the chosen levels of images, and their alignment.
//!
//! Flow: URL + [`Options`] -> arrays -> [`Along`] for each axis of each -> [`Volume`].
//! Memory: descriptions of arrays.

use std::sync::Arc;

use serde::Deserialize;

use super::Part;
use super::align::{Along, Places, Space, on_axis};
use super::{Volume, ngff};
use crate::ChunkSizes;
use crate::files::keyed::Keyed;
use crate::zarr::{self, Array, Indexes};
use crate::{Error, Result};
use tidegate_decode::{Field, Kind};

/// The content beyond the border of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pad {
    /// Patches stay inside.
    #[default]
    None,
    /// The array's fill value.
    Constant,
    /// The nearest voxel.
    Edge,
    /// The voxels mirrored at the border.
    Reflect,
}

/// What a chunk is that is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The array's fill value, as Zarr says.
    #[default]
    Fill,
    /// A failure of the patches that need it.
    Error,
}

/// Which level of an image is read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Scale {
    /// Its number; 0 is the finest.
    Level(usize),
    /// The lengths of its voxels along the axes of the patch.
    Lengths(Vec<f64>),
}

/// One array of a volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayOptions {
    /// The name of its field.
    pub name: String,
    /// The path of an array or an OME-NGFF image below the URL, or its own URL.
    #[serde(default)]
    pub path: String,
    /// The level of an image. Default: the finest for the first array, for others the nearest to
    /// it.
    pub scale: Option<Scale>,
    /// The patch in its own voxels, around the same centre. Default: the extent of the first
    /// array's.
    pub patch: Option<Vec<u64>>,
}

/// The options of a volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// At least one; the first defines the places of patches.
    pub arrays: Vec<ArrayOptions>,
    /// The patch in voxels of the first array, along its last axes; other axes are read whole.
    pub patch: Vec<u64>,
    /// Voxels from one place to the next. Default: the fewest that alignment allows.
    pub stride: Option<Vec<u64>>,
    /// Whether patches may cross the border, and the content there.
    #[serde(default)]
    pub pad: Pad,
    /// What a chunk is that is not stored.
    #[serde(default)]
    pub missing: Missing,
}

/// The lengths of voxels of each level of an OME-NGFF image, from the finest.
///
/// # Errors
/// A missing group, or one that is no image.
pub fn levels(url: &str, path: &str) -> Result<Vec<Vec<f64>>> {
    let store = Keyed::open(url)?;
    let attributes = zarr::attributes(&store, path.trim_matches('/'))?;
    let image = attributes.as_ref().map_or(Ok(None), ngff::image);
    let no_image = || "no OME-NGFF image, which has levels: open it with tg.volume".to_owned();
    let image = image.and_then(|image| image.ok_or_else(no_image));
    let image = image.map_err(|what| Error::Dataset { path: store.path(path), what })?;
    Ok(image.levels.into_iter().map(|level| level.scale).collect())
}

impl Volume {
    /// Opens the arrays of a volume.
    ///
    /// # Errors
    /// Missing or unreadable arrays, by name; arrays that cannot be aligned; a patch larger than
    /// an array.
    pub fn open(url: &str, options: &Options) -> Result<Arc<Self>> {
        check(options)?;
        let mut parts: Vec<Part> = Vec::new();
        let mut first: Option<Placed> = None;
        for wanted in &options.arrays {
            if parts.iter().any(|part| part.name == wanted.name) {
                return Err(Error::Config(format!("there are two arrays of the name {:?}", wanted.name)));
            }
            let (array, placed) = open_array(url, wanted, options.patch.len(), first.as_ref())?;
            let along = match &first {
                None => along_first(wanted, &array, &options.patch)?,
                Some(first) if first.physical != placed.physical => {
                    let (with, without) = if placed.physical {
                        (&wanted.name, &parts[0].name)
                    } else {
                        (&parts[0].name, &wanted.name)
                    };
                    return Err(Error::Config(format!(
                        "array {with:?} says where its voxels lie in space and {without:?} does not: open \
                         both as OME-NGFF images, or both as plain arrays, which are aligned voxel by voxel"
                    )));
                }
                Some(first) => align(wanted, &array, (&placed.space, &first.space), &options.patch)?,
            };
            let shape = patch_shape(wanted, &array, &along)?;
            let first_chunk = parts.last().map_or(0, |part| part.first_chunk + part.array.chunks());
            first.get_or_insert(placed);
            parts.push(Part { name: wanted.name.clone(), array, first_chunk, along, shape });
        }
        let places = places(&parts, options)?;
        let total = places.iter().try_fold(1u64, |n, places| n.checked_mul(places.count));
        if total.is_none() {
            return Err(Error::Config("more than 2^64 places: raise the stride".into()));
        }
        let field = |part: &Part| Field {
            name: part.name.clone(),
            kind: Kind::Patch {
                dtype: part.array.dtype,
                shape: part.shape.clone(),
                voxels: part.along.iter().map(Along::voxels).collect(),
            },
        };
        let schema = parts.iter().map(field).collect();
        let fingerprint = fingerprint(&parts, options);
        let sizes = sizes(&parts);
        let indexes = Indexes::new(index_bytes(&parts).1);
        Ok(Arc::new(Self {
            url: url.to_owned(),
            parts,
            places,
            pad: options.pad,
            missing: options.missing,
            schema,
            fingerprint,
            sizes,
            indexes,
        }))
    }
}

/// Checks the options that need no data.
fn check(options: &Options) -> Result<()> {
    let config = |what: &str| Err(Error::Config(what.into()));
    let axes = options.patch.len();
    if options.arrays.is_empty() {
        return config("a volume needs an array: array=\"path\" or array={\"name\": \"path\"}");
    }
    if axes == 0 || options.patch.contains(&0) {
        return config("a patch needs a length along each axis, at least 1, such as patch=(64, 64, 64)");
    }
    if options.stride.as_ref().is_some_and(|stride| stride.len() != axes || stride.contains(&0)) {
        return config("a stride needs a number for each axis of the patch, at least 1");
    }
    Ok(())
}

/// The axes of the first array.
fn along_first(wanted: &ArrayOptions, array: &Array, patch: &[u64]) -> Result<Vec<Along>> {
    if wanted.patch.is_some() {
        return Err(Error::Config("the patch of the first array is patch= itself".into()));
    }
    let shape = &array.shape[array.shape.len() - patch.len()..];
    Ok(patch.iter().zip(shape).map(|(&patch, &shape)| Along::first(patch, shape)).collect())
}

/// The shape of an array's patch along all axes of the array.
fn patch_shape(wanted: &ArrayOptions, array: &Array, along: &[Along]) -> Result<Vec<usize>> {
    let whole = array.shape.len() - along.len();
    let shape = array.shape[..whole].iter().copied().chain(along.iter().map(|along| along.patch));
    let shape: Vec<usize> = shape.map(|side| side as usize).collect();
    let bytes = shape.iter().try_fold(array.dtype.size(), |n, side| n.checked_mul(*side));
    if bytes.is_none_or(|bytes| bytes > u32::MAX as usize) {
        return Err(Error::Config(format!(
            "a patch of {shape:?} of array {:?} takes more than 4 GiB",
            wanted.name
        )));
    }
    Ok(shape)
}

/// The voxels of an array in space, along the axes of the patch.
struct Placed {
    /// Whether the metadata say so; else voxels of all arrays are counted from 0.
    physical: bool,
    space: Space,
}

/// The space of a level, along the last `axes` axes.
fn space_of(image: &ngff::Image, level: &ngff::Level, axes: usize) -> Space {
    let last = |all: &[f64]| all[all.len() - axes.min(all.len())..].to_vec();
    let own = &image.axes[image.axes.len() - axes.min(image.axes.len())..];
    Space {
        scale: last(&level.scale),
        translation: last(&level.translation),
        units: own.iter().map(|axis| axis.unit.clone()).collect(),
    }
}

/// Opens an array, or a level of an image, and finds where its voxels are.
fn open_array(
    url: &str,
    wanted: &ArrayOptions,
    axes: usize,
    first: Option<&Placed>,
) -> Result<(Array, Placed)> {
    let elsewhere = wanted.path.contains("://") || wanted.path.starts_with('/');
    let (root, path) =
        if elsewhere { (wanted.path.as_str(), "") } else { (url, wanted.path.trim_matches('/')) };
    let store = Arc::new(Keyed::open(root)?);
    let Some(array) = Array::open(&store, path)? else {
        return open_level(&store, path, wanted, axes, first);
    };
    if array.shape.len() < axes {
        return Err(Error::Config(format!(
            "array {:?} has {} axes and the patch {axes}",
            wanted.name,
            array.shape.len()
        )));
    }
    if wanted.scale.is_some() {
        let what = "this is an array of one resolution: give scale= with the OME-NGFF image that it \
                    belongs to"
            .into();
        return Err(Error::Dataset { path: store.path(path), what });
    }
    let found = image_around(&store, path)?.filter(|(image, _)| image.axes.len() == array.shape.len());
    let placed = match found.filter(|(image, level)| image.placed(*level)) {
        Some((image, level)) => {
            Placed { physical: true, space: space_of(&image, &image.levels[level], axes) }
        }
        None => {
            let (scale, translation, units) = (vec![1.0; axes], vec![0.0; axes], vec![None; axes]);
            Placed { physical: false, space: Space { scale, translation, units } }
        }
    };
    Ok((array, placed))
}

/// The image in a folder above an array, and the level that the array is.
fn image_around(store: &Keyed, path: &str) -> Result<Option<(ngff::Image, usize)>> {
    for (at, _) in path.rmatch_indices('/').chain((!path.is_empty()).then_some((0, ""))) {
        let (folder, name) = (&path[..at], path[at..].trim_start_matches('/'));
        let Some(attributes) = zarr::attributes(store, folder)? else { continue };
        if !ngff::names(&attributes, name) {
            continue;
        }
        let image = ngff::image(&attributes).map_err(|what| Error::Dataset {
            path: store.path(folder),
            what: format!("multiscales: {what}"),
        })?;
        let level = |image: ngff::Image| {
            let level = image.levels.iter().position(|level| level.path == name)?;
            Some((image, level))
        };
        if let Some(found) = image.and_then(level) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Opens the wanted level of the image at `path`.
fn open_level(
    store: &Arc<Keyed>,
    path: &str,
    wanted: &ArrayOptions,
    axes: usize,
    first: Option<&Placed>,
) -> Result<(Array, Placed)> {
    let wrong = |what: String| Error::Dataset { path: store.path(path), what };
    let attributes = zarr::attributes(store, path)?.ok_or_else(|| {
        wrong("there is no Zarr array and no group: expected zarr.json, .zarray or .zgroup".into())
    })?;
    let image = ngff::image(&attributes).map_err(|what| wrong(format!("multiscales: {what}")))?;
    let image = image.ok_or_else(|| {
        let what = "this is a group and no OME-NGFF image: name the array in it, as in \
                    array=\"path/in/the/group\"";
        wrong(what.into())
    })?;
    if image.axes.len() < axes {
        return Err(Error::Config(format!(
            "image {:?} has {} axes and the patch {axes}",
            wanted.name,
            image.axes.len()
        )));
    }
    let spaces: Vec<Space> = image.levels.iter().map(|level| space_of(&image, level, axes)).collect();
    let level = choose_level(wanted, &spaces, axes, first)?;
    let inner = zarr::join(path, &image.levels[level].path);
    let missing = || Error::Dataset {
        path: store.path(&inner),
        what: "the image names this array, which is missing: restore it".into(),
    };
    let array = Array::open(store, &inner)?.ok_or_else(missing)?;
    if array.shape.len() != image.axes.len() {
        return Err(wrong(format!(
            "multiscales has {} axes where the array {inner:?} has {}",
            image.axes.len(),
            array.shape.len()
        )));
    }
    Ok((array, Placed { physical: image.placed(level), space: spaces[level].clone() }))
}

/// The level of the wanted scale; else the finest of the first array, and the nearest to it of
/// others.
fn choose_level(
    wanted: &ArrayOptions,
    spaces: &[Space],
    axes: usize,
    first: Option<&Placed>,
) -> Result<usize> {
    let level = match &wanted.scale {
        Some(Scale::Level(level)) => (*level < spaces.len()).then_some(*level),
        Some(Scale::Lengths(lengths)) => spaces.iter().position(|space| {
            let same = |(a, b): (&f64, &f64)| (a - b).abs() <= 0.01 * b.abs();
            lengths.len() == axes && lengths.iter().zip(&space.scale).all(same)
        }),
        None => match first {
            None => Some(0),
            Some(first) => {
                let distance = |space: &Space| space.distance(&first.space).unwrap_or(f64::INFINITY);
                let distances = spaces.iter().map(distance);
                distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(level, _)| level)
            }
        },
    };
    level.ok_or_else(|| {
        let scales: Vec<_> = spaces.iter().map(|space| format!("{:?}", space.scale)).collect();
        Error::Config(format!(
            "image {:?} has no level of scale {:?}: its levels are {}",
            wanted.name,
            wanted.scale,
            scales.join(", ")
        ))
    })
}

fn align(
    wanted: &ArrayOptions,
    array: &Array,
    spaces: (&Space, &Space),
    patch: &[u64],
) -> Result<Vec<Along>> {
    let own = wanted.patch.as_ref();
    if own.is_some_and(|own| own.len() != patch.len() || own.contains(&0)) {
        return Err(Error::Config(format!(
            "the patch of array {:?} needs as many axes as the first's",
            wanted.name
        )));
    }
    let shape = &array.shape[array.shape.len() - patch.len()..];
    let along = (0..patch.len()).map(|axis| {
        Along::aligned(axis, spaces, patch[axis], own.map(|own| own[axis]), shape[axis])
            .map_err(|what| on_axis(&wanted.name, axis, &what))
    });
    along.collect()
}

fn places(parts: &[Part], options: &Options) -> Result<Vec<Places>> {
    let axis = |axis: usize| {
        let arrays: Vec<Along> = parts.iter().map(|part| part.along[axis]).collect();
        let stride = options.stride.as_ref().map(|stride| stride[axis]);
        Places::of(&arrays, stride, options.pad != Pad::None).map_err(|misfit| {
            let fix = if misfit.array.is_some() { ": use a smaller patch, or pad=\"reflect\"" } else { "" };
            let (array, what) = (&parts[misfit.array.unwrap_or(0)].name, format!("{}{fix}", misfit.what));
            match misfit.larger {
                true => Error::PatchTooLarge { array: array.clone(), axis, what },
                false => on_axis(array, axis, &what),
            }
        })
    };
    (0..options.patch.len()).map(axis).collect()
}

/// A hash of the metadata of arrays, not of their folders or content.
fn fingerprint(parts: &[Part], options: &Options) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hash.update(part.name.as_bytes());
        hash.update(part.array.description());
        hash.update(format!("{:?}", part.along).as_bytes());
    }
    hash.update(format!("{:?} {:?}", options.stride, options.pad).as_bytes());
    // Caches may hold fill values for a volume that takes them.
    if options.missing == Missing::Error {
        hash.update(b"missing: error");
    }
    hash.digest()
}

/// The number of shards of all arrays, and the bytes of the largest index: kept, and while it is
/// read.
fn index_bytes(parts: &[Part]) -> (u64, (u64, u64)) {
    let shards = parts.iter().filter_map(|part| part.array.shards());
    shards.fold((0, (0, 0)), |(count, one), (more, of)| {
        (count.saturating_add(more), (one.0.max(of.0), one.1.max(of.1)))
    })
}

fn sizes(parts: &[Part]) -> ChunkSizes {
    let arrays = || parts.iter().map(|part| &part.array);
    let most = |of: fn(&Array) -> u64| arrays().map(of).max().unwrap_or(0);
    let (shards, one) = index_bytes(parts);
    let (index_bytes, index_least_bytes) = if shards > 0 { Indexes::bytes(one, shards) } else { (0, 0) };
    let patch = |part: &Part| -> f64 {
        // The mean number of chunks that a patch overlaps along an axis.
        let whole = part.shape.iter().zip(&part.array.chunk).zip(&part.array.shape);
        whole
            .map(|((&patch, &chunk), &shape)| {
                let met = if patch as u64 == shape {
                    shape.div_ceil(chunk) as f64
                } else {
                    1.0 + (patch as f64 - 1.0) / chunk as f64
                };
                met * chunk as f64
            })
            .product::<f64>()
            * part.array.dtype.size() as f64
    };
    ChunkSizes {
        total_bytes: arrays()
            .map(|array| array.chunks().saturating_mul(array.chunk_bytes()))
            .fold(0, u64::saturating_add),
        chunk_bytes: most(Array::chunk_bytes),
        stored_bytes: most(Array::stored_bytes),
        library_bytes: most(Array::library_bytes),
        index_bytes,
        index_least_bytes,
        patch_bytes: parts.iter().map(patch).sum::<f64>() as u64,
    }
}
