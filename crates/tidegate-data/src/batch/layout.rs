//! The columns of a batch: names, types, shapes, and where they lie in a slot.
//!
//! Flow: schema + wanted specs -> [`Layout`]; read by the pipeline and by whoever presents batches.
//! Memory: holds none; says how many bytes a slot has.

use super::patch::PatchPlan;
use super::row;
use super::spec::{Crop, FieldSpec, ImageSpec, MaskSpec, PixelLayout};
use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Schema};

/// Columns begin at multiples of this.
pub const ALIGN: usize = 64;

/// One column of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnPlan {
    /// Its name.
    pub name: String,
    /// The field of the schema that it is made from.
    pub field: usize,
    /// What the field holds.
    pub kind: Kind,
    /// What is wanted.
    pub spec: FieldSpec,
    /// Element type.
    pub dtype: DType,
    /// Shape of a row; none for a ragged column.
    pub shape: Option<Vec<usize>>,
    /// How it is made of a patch as it is stored, if it is another.
    pub patch: Option<PatchPlan>,
}

impl ColumnPlan {
    /// Bytes of a row; 0 for a ragged column.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.shape.as_ref().map_or(0, |s| s.iter().product::<usize>() * self.dtype.size())
    }

    /// Bytes beside a row, while it is made.
    #[must_use]
    pub fn room_bytes(&self) -> usize {
        self.patch.as_ref().map_or(0, PatchPlan::room_bytes)
    }
}

/// All columns of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The columns, in the order of the schema.
    pub columns: Vec<ColumnPlan>,
    /// Fields of the source.
    pub schema: Schema,
}

impl Layout {
    /// The layout for `wanted` fields. With `only`, fields that are not named are left out; else they are inferred.
    ///
    /// # Errors
    /// [`Error::Config`] for unknown fields, with the known ones; for a spec that does not fit what is stored.
    pub fn new(schema: &Schema, wanted: &[(String, FieldSpec)], only: bool) -> Result<Self> {
        for (name, spec) in wanted {
            spec.check(name)?;
            if !schema.iter().any(|f| &f.name == name) {
                let known: Vec<_> = schema.iter().map(|f| f.name.as_str()).collect();
                return Err(Error::Config(format!(
                    "there is no field {name:?}; the fields are {}",
                    known.join(", ")
                )));
            }
        }
        let mut columns = Vec::new();
        for (i, field) in schema.iter().enumerate() {
            let spec = match wanted.iter().find(|(name, _)| name == &field.name) {
                Some((_, spec)) => spec.clone(),
                None if only => continue,
                None => FieldSpec::inferred(&field.kind),
            };
            let patch = match (&field.kind, &spec) {
                (Kind::Patch { .. }, FieldSpec::Patch(_) | FieldSpec::Mask(_)) => {
                    Some(PatchPlan::new(i, field, &spec, schema, wanted)?)
                }
                _ => None,
            };
            columns.push(match patch {
                Some((patch, dtype, shape)) => ColumnPlan {
                    name: field.name.clone(),
                    field: i,
                    kind: field.kind.clone(),
                    spec,
                    dtype,
                    shape: Some(shape),
                    patch: Some(patch),
                },
                None => column(i, field, spec, wanted)?,
            });
        }
        if columns.is_empty() {
            return Err(Error::Config("no field is wanted: name at least one".into()));
        }
        Ok(Self { columns, schema: schema.clone() })
    }

    /// Bytes of a slot for `rows` rows.
    #[must_use]
    pub fn slot_bytes(&self, rows: usize) -> u64 {
        (self.offset(self.columns.len(), rows)
            + self.columns.iter().map(|c| c.room_bytes() * rows).sum::<usize>()) as u64
    }

    /// Where in a slot for `rows` rows the room beside the first row of column `c` begins.
    #[must_use]
    pub fn room_offset(&self, c: usize, rows: usize) -> usize {
        self.offset(self.columns.len(), rows)
            + self.columns[..c].iter().map(|c| c.room_bytes() * rows).sum::<usize>()
    }

    /// Where column `c` begins in a slot for `rows` rows.
    #[must_use]
    pub fn offset(&self, c: usize, rows: usize) -> usize {
        self.columns[..c].iter().map(|c| (c.row_bytes() * rows).next_multiple_of(ALIGN)).sum()
    }

    /// Bytes of a row, all columns together.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.columns.iter().map(|c| c.row_bytes() as u64).sum()
    }

    /// Why a sample does not make the same row of fixed size each time, if it does not.
    #[must_use]
    pub fn varies(&self) -> Option<&'static str> {
        let drawn = |spec: &FieldSpec| match spec {
            FieldSpec::Image(image) => {
                let mirrored = image.flip > 0.0 && image.flip < 1.0;
                image.crop == Crop::Random || mirrored || image.jitter.is_some()
            }
            _ => false,
        };
        let varying = |c: &ColumnPlan| drawn(&c.spec) || c.patch.as_ref().is_some_and(PatchPlan::varies);
        if self.columns.iter().any(varying) {
            return Some("random crops, flips and colours differ in each epoch");
        }
        self.columns.iter().any(|c| c.shape.is_none()).then_some("a column is ragged: give its size or shape")
    }

    /// Whether anything has to be decoded.
    #[must_use]
    pub fn has_pictures(&self) -> bool {
        self.columns.iter().any(row::is_picture)
    }

    /// The image whose geometry a mask shares.
    #[must_use]
    pub fn image_of(&self, mask: &MaskSpec) -> Option<&ImageSpec> {
        self.columns.iter().find_map(|c| match &c.spec {
            FieldSpec::Image(image) if c.name == mask.of => Some(image),
            _ => None,
        })
    }
}

fn column(i: usize, field: &Field, spec: FieldSpec, wanted: &[(String, FieldSpec)]) -> Result<ColumnPlan> {
    let name = field.name.clone();
    let misfit = |want: &str| {
        Err(Error::Config(format!(
            "field {name:?} holds {}, which cannot be read as {want}",
            field.kind.name()
        )))
    };
    let picture = matches!(field.kind, Kind::Image | Kind::Pixels | Kind::Bytes);
    let array = matches!(
        field.kind,
        Kind::Npy
            | Kind::NdArray { .. }
            | Kind::Compact { .. }
            | Kind::Patch { .. }
            | Kind::Sparse { .. }
            | Kind::Numbers { .. }
            | Kind::Bytes
    );
    let number = matches!(field.kind, Kind::Int | Kind::Float | Kind::Text | Kind::Bytes | Kind::Json);
    let encoded = !matches!(field.kind, Kind::Int | Kind::Float | Kind::Patch { .. });
    let (dtype, shape) = match &spec {
        FieldSpec::Patch(_) => return misfit("a patch of a volume"),
        FieldSpec::Image(_) if !picture => return misfit("an image"),
        FieldSpec::Image(image) => {
            (image.pixels.dtype, image.size.map(|size| image_shape(size, image.pixels.layout)))
        }
        FieldSpec::Mask(_) if !picture => return misfit("a mask"),
        FieldSpec::Mask(mask) => (DType::Uint8, Some(mask_shape(&name, mask, wanted)?)),
        FieldSpec::Int if !number => return misfit("an integer"),
        FieldSpec::Int => (DType::Int64, Some(Vec::new())),
        FieldSpec::Float if !number => return misfit("a float"),
        FieldSpec::Float => (DType::Float64, Some(Vec::new())),
        FieldSpec::Text | FieldSpec::Bytes | FieldSpec::Json if !encoded => return misfit("text or bytes"),
        FieldSpec::Text | FieldSpec::Bytes | FieldSpec::Json => (DType::Uint8, None),
        FieldSpec::Array { .. } if !array => return misfit("an array"),
        FieldSpec::Array { dtype: wanted, shape: wanted_shape }
            if let Kind::Patch { dtype, shape, .. } = &field.kind =>
        {
            if wanted.is_some_and(|wanted| wanted != *dtype)
                || wanted_shape.as_ref().is_some_and(|s| s != shape)
            {
                return Err(Error::Config(format!(
                    "field {name:?} holds patches of {} {shape:?}, as they are stored: ask for these, for others with tg.Patch(dtype=), or leave the field out",
                    dtype.name()
                )));
            }
            (*dtype, Some(shape.clone()))
        }
        FieldSpec::Array { dtype: wanted, shape } if let Some(own) = listed(&field.kind) => {
            if wanted.is_some_and(|wanted| wanted != own) || shape.is_some() {
                return Err(Error::Config(format!(
                    "field {name:?} holds {} of rows of many lengths, as {}: leave its type and shape out",
                    field.kind.name(),
                    own.name()
                )));
            }
            (own, None)
        }
        FieldSpec::Array { dtype: wanted, shape: wanted_shape }
            if let Kind::Compact { dtype, shape, .. } = &field.kind =>
        {
            let float = |dtype| matches!(dtype, DType::Float16 | DType::Bfloat16 | DType::Float32);
            let usual = match FieldSpec::inferred(&field.kind) {
                FieldSpec::Array { dtype: Some(usual), .. } => usual,
                _ => *dtype,
            };
            let wanted = wanted.unwrap_or(usual);
            let can_be = if field.kind.is_quantized() { float(wanted) } else { wanted == *dtype };
            if !can_be || wanted_shape.as_ref().is_some_and(|s| s != shape) {
                return Err(Error::Config(format!(
                    "field {name:?} holds {} arrays of {} {shape:?}: ask for these{}, or leave the field out",
                    if field.kind.is_quantized() { "quantized" } else { "packed" },
                    dtype.name(),
                    if field.kind.is_quantized() { ", as float32, float16 or bfloat16" } else { "" }
                )));
            }
            (wanted, Some(shape.clone()))
        }
        FieldSpec::Array { dtype: Some(dtype), shape } => (*dtype, shape.clone()),
        FieldSpec::Array { dtype: None, shape } if let Some((dtype, declared)) = declared(&field.kind) => {
            (dtype, shape.clone().or(declared))
        }
        FieldSpec::Array { dtype: None, .. } => {
            return Err(Error::Config(format!(
                "field {name:?} is an array: say its type, such as fields={{{name:?}: tg.Array(\"float32\", (3, 4))}}, \
                 or leave the field out by naming the others"
            )));
        }
    };
    Ok(ColumnPlan { name, field: i, kind: field.kind.clone(), spec, dtype, shape, patch: None })
}

/// The type of what text lists, which has a length of its own in each row.
fn listed(kind: &Kind) -> Option<DType> {
    match kind {
        Kind::Sparse { part, .. } => Some(part.dtype()),
        Kind::Numbers { dtype } => Some(*dtype),
        _ => None,
    }
}

/// The type of arrays, and perhaps their shape, where the data declare them.
fn declared(kind: &Kind) -> Option<(DType, Option<Vec<usize>>)> {
    let Kind::NdArray { dtype: Some(dtype), shape } = kind else { return None };
    Some((DType::parse(dtype).ok()?, shape.clone()))
}

fn image_shape((height, width): (u32, u32), layout: PixelLayout) -> Vec<usize> {
    let (h, w) = (height as usize, width as usize);
    match layout {
        PixelLayout::Chw => vec![3, h, w],
        PixelLayout::Hwc => vec![h, w, 3],
    }
}

fn mask_shape(name: &str, mask: &MaskSpec, wanted: &[(String, FieldSpec)]) -> Result<Vec<usize>> {
    let image = wanted.iter().find_map(|(n, spec)| match spec {
        FieldSpec::Image(image) if n == &mask.of => Some(image),
        _ => None,
    });
    let size = image.map(|i| mask.size.or(i.size));
    match size {
        Some(Some((h, w))) => Ok(vec![h as usize, w as usize]),
        Some(None) => {
            Err(Error::Config(format!("mask {name:?} needs a size, since its image {:?} has none", mask.of)))
        }
        None => Err(Error::Config(format!(
            "mask {name:?} shares the geometry of an image field {:?}, which is not among the fields",
            mask.of
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let field = |name: &str, kind| Field { name: name.into(), kind };
        vec![field("jpg", Kind::Image), field("cls", Kind::Int), field("txt", Kind::Text)]
    }

    #[test]
    fn columns_are_aligned_and_unnamed_fields_inferred() {
        let image = FieldSpec::Image(ImageSpec { size: Some((5, 7)), ..ImageSpec::default() });
        let layout = Layout::new(&schema(), &[("jpg".into(), image)], false).unwrap();
        assert_eq!(layout.columns[0].shape, Some(vec![3, 5, 7]));
        assert_eq!((layout.offset(1, 3), layout.slot_bytes(3)), (320, 384));
        assert_eq!(layout.columns[2].shape, None);
    }

    #[test]
    fn arrays_are_of_the_type_that_the_data_declare() {
        let kind = Kind::NdArray { dtype: Some("int16".into()), shape: Some(vec![2, 3]) };
        let schema = vec![Field { name: "x".into(), kind }];
        let array = FieldSpec::Array { dtype: None, shape: None };
        for (wanted, only) in [(vec![], false), (vec![("x".to_owned(), array)], true)] {
            let layout = Layout::new(&schema, &wanted, only).unwrap();
            assert_eq!(
                (layout.columns[0].dtype, layout.columns[0].shape.clone()),
                (DType::Int16, Some(vec![2, 3]))
            );
        }
    }

    #[test]
    fn misfits_are_named() {
        for (name, spec, word) in [
            ("nope", FieldSpec::Int, "jpg, cls, txt"),
            ("cls", FieldSpec::Text, "holds int"),
            ("jpg", FieldSpec::Mask(MaskSpec { of: "x".into(), size: None }), "\"x\""),
        ] {
            let error = Layout::new(&schema(), &[(name.into(), spec)], true).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
