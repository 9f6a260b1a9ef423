//! Checks the spec of a patch field against its stored patches, and against the field whose
//! geometry it shares.
//!
//! Flow: field + spec -> [`PatchPlan`], dtype and shape, or the reason why it does not fit.
//! Memory: holds none.

use tidegate_array::kernels::wavelet;

use super::PatchPlan;
use super::elastic::{Grid, POINTS_MOST};
use super::frame::{AXES, Frame};
use crate::batch::spec::{Elastic, FieldSpec, Intensity, PatchGeometry, PatchSpec};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Schema};

/// How patches are stored: dtype, shape, and the ratio of their voxels to those of the first
/// field.
type Stored<'a> = (DType, &'a [usize], &'a [(u32, u32)]);
/// Along an axis, the ratio of voxels to those of the field whose geometry is shared.
type Ratio = (u64, u64);

/// How the patches of a field are stored, if it holds patches.
fn stored(kind: &Kind) -> Option<Stored<'_>> {
    let Kind::Patch { dtype, shape, voxels } = kind else { return None };
    Some((*dtype, shape, voxels))
}

/// The plan of field `number`, and the dtype and shape of its rows.
///
/// # Errors
/// In words, for a spec that does not fit.
pub(super) fn plan(
    number: usize,
    field: &Field,
    spec: &FieldSpec,
    schema: &Schema,
    wanted: &[(String, FieldSpec)],
) -> Result<(PatchPlan, DType, Vec<usize>), String> {
    let (dtype, shape, voxels) = stored(&field.kind).ok_or("it holds no patches of a volume")?;
    let axes = voxels.len();
    if axes > AXES {
        return Err(format!(
            "patches of {axes} axes are delivered as they are stored: at most {AXES} can be changed"
        ));
    }
    let (of, values, delivered, wavelet) = match spec {
        FieldSpec::Patch(patch) => {
            let values = Some(Box::new(patch.intensity.clone()));
            (patch.of.as_deref(), values, patch.dtype.unwrap_or(dtype), patch.wavelet)
        }
        FieldSpec::Mask(mask) if mask.size.is_some() => {
            return Err("a mask of patches is as large as the patch: leave size out".into());
        }
        FieldSpec::Mask(mask) => (Some(mask.of.as_str()), None, dtype, None),
        _ => return Err("it holds patches: use tg.Patch, or tg.Mask for labels".into()),
    };
    let untouched = values.as_ref().is_none_or(|values| !values.changes()) && wavelet.is_none();
    let (reference, own) = reference(of, field, spec, schema, wanted)?;
    if own.wavelet != wavelet {
        return Err(format!(
            "it has the geometry of {:?} and other wavelet levels: labels have none, so leave wavelet out, or open the labels' coarse level",
            of.unwrap_or_default()
        ));
    }
    if delivered == DType::Bool && !(untouched && (values.is_none() || own.geometry.elastic.is_none())) {
        return Err("booleans can be cut, mirrored and turned: for more give a dtype, such as uint8".into());
    }
    let (leading, side) = shape.split_at(shape.len() - axes);
    let channels = leading.iter().product();
    let geometry = &own.geometry;
    check_counts(geometry, values.as_deref(), axes, channels)?;
    let ratio: Vec<Ratio> = voxels
        .iter()
        .zip(reference.2)
        .map(|(&(num, den), &(of_num, of_den))| {
            (u64::from(num) * u64::from(of_den), u64::from(den) * u64::from(of_num))
        })
        .collect();
    let cut = cut(geometry.crop.as_deref(), side, &ratio)?;
    let flip = geometry.flip.resolve(axes).map_err(|error| format!("flip: {error}"))?;
    let rotate = geometry.rotate.resolve(axes).map_err(|error| format!("rotate: {error}"))?;
    check_turn(&rotate, side, &cut, &ratio)?;
    // From here on all patches have AXES axes.
    let before = AXES - axes;
    let moved = |axes: Vec<usize>| axes.iter().map(|axis| axis + before).collect();
    let grid =
        geometry.elastic.as_ref().map(|elastic| grid(elastic, &reference.1[reference.1.len() - axes..]));
    if grid.is_some_and(|(grid, _)| grid.points() > POINTS_MOST) {
        return Err(format!(
            "more than {POINTS_MOST} points of an elastic deformation: make them fewer by a wider spacing"
        ));
    }
    let plan = PatchPlan {
        channels,
        frame: Frame { stored: padded(side, 1), delivered: padded(&cut, 1) },
        stored: dtype,
        delivered,
        values,
        flip: moved(flip),
        rotate: moved(rotate),
        grid,
        ratio: padded(
            &ratio.iter().map(|(num, den)| (*num as f64 / *den as f64) as f32).collect::<Vec<_>>(),
            1.0,
        ),
        wavelet,
        view: number as u8,
    };
    let halved = wavelet::coarse(&cut, wavelet.map_or(0, |wavelet| wavelet.levels));
    Ok((plan, delivered, leading.iter().copied().chain(halved).collect()))
}

/// One number for each axis, with `none` for the added leading axes.
fn padded<T: Copy>(numbers: &[T], none: T) -> [T; AXES] {
    let before = AXES - numbers.len();
    std::array::from_fn(|axis| axis.checked_sub(before).map_or(none, |axis| numbers[axis]))
}

/// The stored patches and the spec that define a field's geometry: its own, or another field's.
fn reference<'a>(
    of: Option<&str>,
    field: &'a Field,
    spec: &'a FieldSpec,
    schema: &'a Schema,
    wanted: &'a [(String, FieldSpec)],
) -> Result<(Stored<'a>, &'a PatchSpec), String> {
    let found = match of {
        None => Some((field, spec)),
        Some(of) => {
            let field = schema.iter().find(|field| field.name == of);
            field.zip(wanted.iter().find(|(name, _)| name == of).map(|(_, spec)| spec))
        }
    };
    match found.map(|(field, spec)| (stored(&field.kind), spec)) {
        Some((Some(stored), FieldSpec::Patch(patch))) if patch.of.is_none() => Ok((stored, patch)),
        _ => Err(format!(
            "it shares the geometry of {:?}, which is no tg.Patch of its own among the fields",
            of.unwrap_or_default()
        )),
    }
}

/// Checks that each option has one number, or one for each axis or channel.
fn check_counts(
    geometry: &PatchGeometry,
    values: Option<&Intensity>,
    axes: usize,
    channels: usize,
) -> Result<(), String> {
    let elastic = geometry.elastic.iter().flat_map(|elastic| {
        [
            ("spacing of elastic", elastic.spacing.len(), axes),
            ("deviation of elastic", elastic.deviation.len(), axes),
        ]
    });
    let values = values
        .into_iter()
        .flat_map(|values| [("mean", values.mean.len(), channels), ("std", values.std.len(), channels)]);
    match elastic.chain(values).find(|(_, given, of)| *given > 1 && given != of) {
        Some((what, given, of)) => Err(format!("{what} has {given} numbers: give one, or {of}")),
        None => Ok(()),
    }
}

/// The size of the delivered part, which is in the middle of `side`. `crop` is in voxels of the
/// field that defines the geometry.
fn cut(crop: Option<&[usize]>, side: &[usize], ratio: &[Ratio]) -> Result<Vec<usize>, String> {
    let Some(crop) = crop else { return Ok(side.to_vec()) };
    if crop.len() != side.len() {
        return Err(format!("crop needs a length for each of {} axes", side.len()));
    }
    let axis = |axis: usize| {
        let ((num, den), stored) = (ratio[axis], side[axis]);
        let cut = (crop[axis] as u64).saturating_mul(num);
        if !cut.is_multiple_of(den) {
            return Err(format!(
                "axis {axis}: the crop is no whole number of its voxels: make it a multiple of {den}"
            ));
        }
        let cut = (cut / den) as usize;
        if cut == 0 || cut > stored || !(stored - cut).is_multiple_of(2) {
            return Err(format!(
                "axis {axis}: a crop of {cut} voxels cannot be in the middle of {stored}: make it smaller, and both even or odd"
            ));
        }
        Ok(cut)
    };
    (0..side.len()).map(axis).collect()
}

/// Checks that axes that are rotated into one another have equal numbers of voxels, of one length.
fn check_turn(rotate: &[usize], side: &[usize], cut: &[usize], ratio: &[Ratio]) -> Result<(), String> {
    let Some(&first) = rotate.first() else { return Ok(()) };
    let as_first = |&axis: &usize| {
        (side[axis], cut[axis], ratio[axis].0 * ratio[first].1)
            == (side[first], cut[first], ratio[first].0 * ratio[axis].1)
    };
    if rotate.iter().all(as_first) {
        return Ok(());
    }
    Err(format!(
        "axes {rotate:?} of a patch of {side:?} cannot be turned into one another: name axes of one length, such as rotate=(1, 2)"
    ))
}

/// The grid of a deformation, and its probability.
fn grid(Elastic { spacing, deviation, p }: &Elastic, patch: &[usize]) -> (Grid, f64) {
    let along = |numbers: &[f64], none: f32| {
        let at = |axis: usize| numbers.get(axis).or(numbers.first()).map_or(none, |x| *x as f32);
        padded(&(0..patch.len()).map(at).collect::<Vec<_>>(), none)
    };
    (Grid { patch: padded(patch, 1), spacing: along(spacing, 1.0), deviation: along(deviation, 0.0) }, *p)
}
