//! The columns of a batch: names, types, shapes, and their offsets in a slot.
//!
//! Flow: schema + wanted specs -> [`Layout`]; read by the pipeline and by code that exposes
//! batches.
//! Memory: holds none; computes the bytes of a slot.

use super::COLUMN_ALIGN;
use super::patch::PatchPlan;
use super::spec::{Crop, FieldSpec, ImageSpec, MaskSpec, PixelLayout};
use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Schema, Value};

/// One column of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnPlan {
    /// Its name.
    pub name: String,
    /// The index of its field in the schema.
    pub field: usize,
    /// Other fields that hold the value in samples that lack this one.
    pub others: Vec<usize>,
    /// What a sample without a value gets instead; None if that is an error.
    pub default: Option<Vec<u8>>,
    /// The kind of its field.
    pub kind: Kind,
    /// The spec that the user wants.
    pub spec: FieldSpec,
    /// Element type.
    pub dtype: DType,
    /// Shape of a row; None for a ragged column.
    pub shape: Option<Vec<usize>>,
    /// How its row is made from a stored patch, unless the patch is delivered as stored.
    pub patch: Option<PatchPlan>,
}

impl ColumnPlan {
    /// The value of the column in a sample.
    #[must_use]
    pub fn value<'a>(&self, values: &[Value<'a>]) -> Value<'a> {
        let fields = std::iter::once(&self.field).chain(&self.others);
        let found = fields.filter_map(|&field| values.get(field)).find(|value| **value != Value::Missing);
        found.copied().unwrap_or(Value::Missing)
    }

    /// Whether its values come from a field.
    #[must_use]
    pub fn reads(&self, field: usize) -> bool {
        self.field == field || self.others.contains(&field)
    }

    /// Bytes of a row; 0 for a ragged column.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.shape.as_ref().map_or(0, |s| s.iter().product::<usize>() * self.dtype.size())
    }

    /// Bytes of workspace in which a row is made.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.patch.as_ref().map_or(0, PatchPlan::workspace_bytes)
    }

    /// Whether its values are decoded as images, which needs scratch.
    #[must_use]
    pub fn is_image(&self) -> bool {
        self.patch.is_none() && matches!(self.spec, FieldSpec::Image(_) | FieldSpec::Mask(_))
    }
}

/// All columns of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The columns, in the order of the schema.
    pub columns: Vec<ColumnPlan>,
    /// The fields of the source.
    pub schema: Schema,
}

impl Layout {
    /// The layout for `wanted` fields. With `only`, other fields are left out; else their specs
    /// are inferred.
    ///
    /// A name such as "jpg;png" joins fields of one kind, of which each sample has one.
    ///
    /// # Errors [`Error::Config`] for an unknown field (with the known ones), and for a spec that
    /// does not fit the stored kind.
    pub fn new(schema: &Schema, wanted: &[(String, FieldSpec)], only: bool) -> Result<Self> {
        let wanted =
            wanted.iter().map(|(name, spec)| Wanted::new(schema, name, spec)).collect::<Result<Vec<_>>>()?;
        let specs: Vec<(String, FieldSpec)> =
            wanted.iter().map(|wanted| (wanted.name.clone(), wanted.spec.clone())).collect();
        let mut columns = Vec::new();
        for (i, field) in schema.iter().enumerate() {
            let mut wanting = wanted.iter().filter(|wanted| wanted.fields.contains(&i));
            let (first, second) = (wanting.next(), wanting.next());
            if let (Some(one), Some(other)) = (first, second) {
                return Err(Error::Config(format!(
                    "field {:?} is in {:?} and in {:?}: name it once",
                    field.name, one.name, other.name
                )));
            }
            match first {
                // Fields that are joined come where the first of them is.
                Some(wanted) if wanted.fields.iter().min() == Some(&i) => {
                    wanted.columns(schema, &specs, &mut columns)?;
                }
                Some(_) => {}
                None if only => {}
                None => columns.push(column(i, field, FieldSpec::inferred(&field.kind), schema, &specs)?),
            }
        }
        if columns.is_empty() {
            return Err(Error::Config("no field is wanted: name at least one".into()));
        }
        if let Some(twice) =
            columns.iter().enumerate().find(|(i, c)| columns[..*i].iter().any(|before| before.name == c.name))
        {
            return Err(Error::Config(format!("there would be two columns {:?}", twice.1.name)));
        }
        Ok(Self { columns, schema: schema.clone() })
    }

    /// Bytes of a slot for `rows` rows.
    #[must_use]
    pub fn slot_bytes(&self, rows: usize) -> u64 {
        (self.offset(self.columns.len(), rows)
            + self.columns.iter().map(|c| c.workspace_bytes() * rows).sum::<usize>()) as u64
    }

    /// The offset, in a slot for `rows` rows, of the workspaces of column `c`.
    #[must_use]
    pub fn workspace_offset(&self, c: usize, rows: usize) -> usize {
        self.offset(self.columns.len(), rows)
            + self.columns[..c].iter().map(|c| c.workspace_bytes() * rows).sum::<usize>()
    }

    /// The offset of column `c` in a slot for `rows` rows.
    #[must_use]
    pub fn offset(&self, c: usize, rows: usize) -> usize {
        self.columns[..c].iter().map(|c| (c.row_bytes() * rows).next_multiple_of(COLUMN_ALIGN)).sum()
    }

    /// Bytes of a row over all columns.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.columns.iter().map(|c| c.row_bytes() as u64).sum()
    }

    /// The reason why decoded rows cannot be cached, if there is one: a row is random or ragged.
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

    /// Whether any column decodes images.
    #[must_use]
    pub fn has_images(&self) -> bool {
        self.columns.iter().any(ColumnPlan::is_image)
    }

    /// The most pixels of an image in a column, if there is a bound; a mask has that of its image.
    #[must_use]
    pub fn max_pixels(&self, column: &ColumnPlan) -> Option<u64> {
        match &column.spec {
            FieldSpec::Image(image) => image.max_pixels,
            FieldSpec::Mask(mask) => self.image_of(mask).and_then(|(_, image)| image.max_pixels),
            _ => None,
        }
    }

    /// The image column whose geometry a mask shares.
    #[must_use]
    pub fn image_of(&self, mask: &MaskSpec) -> Option<(&ColumnPlan, &ImageSpec)> {
        self.columns.iter().find_map(|c| match &c.spec {
            FieldSpec::Image(image) if c.name == mask.of => Some((c, image)),
            _ => None,
        })
    }
}

/// Whether a column of this name has values of a field: its own, or as one of "jpg;png".
#[must_use]
pub fn names_field(column: &str, field: &str) -> bool {
    column == field || column.split(';').any(|part| part == field)
}

/// A column that the user named.
struct Wanted {
    name: String,
    /// The fields that hold its values, in the order that they are named; at least one.
    fields: Vec<usize>,
    spec: FieldSpec,
    default: Option<Vec<u8>>,
    optional: bool,
    valid: bool,
}

impl Wanted {
    fn new(schema: &Schema, name: &str, spec: &FieldSpec) -> Result<Self> {
        spec.check(name)?;
        let place = |name: &str| schema.iter().position(|field| field.name == name);
        // Where a sample has several, the first that is named counts, as in webdataset.
        let mut fields: Vec<usize> = Vec::new();
        match place(name) {
            Some(one) => fields.push(one),
            None => fields.extend(name.split(';').filter_map(place)),
        }
        if (1..fields.len()).any(|i| fields[..i].contains(&fields[i])) {
            return Err(Error::Config(format!("{name:?} names a field twice")));
        }
        let Some(&first) = fields.first() else {
            let known: Vec<_> = schema.iter().map(|f| f.name.as_str()).collect();
            return Err(Error::Config(format!(
                "there is no field {name:?}; the fields are {}",
                known.join(", ")
            )));
        };
        if let Some(&other) = fields.iter().find(|&&other| schema[other].kind != schema[first].kind) {
            let [one, other] = [first, other].map(|i| (&schema[i].name, schema[i].kind.name()));
            return Err(Error::Config(format!(
                "{name:?} joins {:?}, which holds {}, and {:?}, which holds {}: name fields of one kind",
                one.0, one.1, other.0, other.1
            )));
        }
        let (name, optional) = (name.to_owned(), matches!(spec, FieldSpec::Optional(_)));
        let (spec, default, valid) = match spec {
            FieldSpec::Optional(optional) => (&optional.of, optional.default.clone(), optional.valid),
            spec => (spec, None, false),
        };
        Ok(Self { name, fields, spec: spec.clone(), default, optional, valid })
    }

    /// Adds its column, and the one of its validity.
    fn columns(
        &self,
        schema: &Schema,
        specs: &[(String, FieldSpec)],
        columns: &mut Vec<ColumnPlan>,
    ) -> Result<()> {
        let first = self.fields[0];
        let mut field = schema[first].clone();
        field.name.clone_from(&self.name);
        let mut plan = column(first, &field, self.spec.clone(), schema, specs)?;
        plan.others = self.fields[1..].to_vec();
        if self.optional {
            let default = self.default.clone().unwrap_or_default();
            let fits = plan.shape.is_none() || default.is_empty() || plan.row_bytes() % default.len() == 0;
            if !fits || plan.patch.is_some() {
                let what = match plan.patch {
                    Some(_) => "a patch of a volume is never missing: leave optional and default out".into(),
                    None => format!(
                        "a default of {} bytes does not fit rows of {:?}",
                        default.len(),
                        plan.shape.unwrap_or_default()
                    ),
                };
                return Err(Error::Config(format!("field {:?}: {what}", self.name)));
            }
            plan.default = Some(default);
        }
        let valid = self.valid.then(|| ColumnPlan {
            name: format!("{}.valid", self.name),
            spec: FieldSpec::Valid,
            dtype: DType::Bool,
            shape: Some(Vec::new()),
            default: None,
            patch: None,
            ..plan.clone()
        });
        columns.push(plan);
        columns.extend(valid);
        Ok(())
    }
}

/// The plan of the column of a field; `specs` are those of all columns that are named.
fn column(
    i: usize,
    field: &Field,
    spec: FieldSpec,
    schema: &Schema,
    specs: &[(String, FieldSpec)],
) -> Result<ColumnPlan> {
    let (name, kind) = (field.name.clone(), field.kind.clone());
    let (dtype, shape, patch) = match (&field.kind, &spec) {
        (Kind::Patch { .. }, FieldSpec::Patch(_) | FieldSpec::Mask(_)) => {
            let (patch, dtype, shape) = PatchPlan::new(i, field, &spec, schema, specs)?;
            (dtype, Some(shape), Some(patch))
        }
        _ => {
            let (dtype, shape) = row_type(field, &spec, specs)?;
            (dtype, shape, None)
        }
    };
    Ok(ColumnPlan { name, field: i, others: Vec::new(), default: None, kind, spec, dtype, shape, patch })
}

/// The dtype, and the shape unless it is ragged, of a column whose field holds no patches, or
/// patches that are delivered as stored.
fn row_type(
    field: &Field,
    spec: &FieldSpec,
    specs: &[(String, FieldSpec)],
) -> Result<(DType, Option<Vec<usize>>)> {
    let name = &field.name;
    let misfit = |want: &str| {
        Err(Error::Config(format!(
            "field {name:?} holds {}, which cannot be read as {want}",
            field.kind.name()
        )))
    };
    let image = matches!(field.kind, Kind::Image | Kind::Pixels | Kind::Bytes);
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
    // Numbers can be had as text: in CSV and tar files they are, with leading zeros.
    let bytes = !matches!(field.kind, Kind::Int | Kind::Float | Kind::Patch { .. });
    let text = !matches!(field.kind, Kind::Patch { .. });
    Ok(match spec {
        FieldSpec::Patch(_) => return misfit("a patch of a volume"),
        FieldSpec::Optional(_) => return misfit("optional twice"),
        FieldSpec::Valid => (DType::Bool, Some(Vec::new())),
        FieldSpec::Image(_) if !image => return misfit("an image"),
        FieldSpec::Image(spec) => {
            (spec.pixels.dtype, spec.size.map(|size| image_shape(size, spec.pixels.layout)))
        }
        FieldSpec::Mask(_) if !image => return misfit("a mask"),
        FieldSpec::Mask(mask) => (DType::Uint8, Some(mask_shape(name, mask, specs)?)),
        FieldSpec::Int if !number => return misfit("an integer"),
        FieldSpec::Int => (DType::Int64, Some(Vec::new())),
        FieldSpec::Float if !number => return misfit("a float"),
        FieldSpec::Float => (DType::Float64, Some(Vec::new())),
        FieldSpec::Text if !text => return misfit("text"),
        FieldSpec::Bytes | FieldSpec::Json if !bytes => return misfit("bytes"),
        FieldSpec::Text | FieldSpec::Bytes | FieldSpec::Json => (DType::Uint8, None),
        FieldSpec::Array { .. } if !array => return misfit("an array"),
        FieldSpec::Array { dtype, shape } => array_type(field, *dtype, shape.as_deref())?,
    })
}

/// The dtype, and the shape unless it is ragged, of a column of arrays.
fn array_type(
    field: &Field,
    wanted: Option<DType>,
    wanted_shape: Option<&[usize]>,
) -> Result<(DType, Option<Vec<usize>>)> {
    let name = &field.name;
    let other_shape = |shape: &[usize]| wanted_shape.is_some_and(|wanted| wanted != shape);
    match (&field.kind, wanted) {
        (Kind::Patch { dtype, shape, .. }, _) => {
            if wanted.is_some_and(|wanted| wanted != *dtype) || other_shape(shape) {
                return Err(Error::Config(format!(
                    "field {name:?} holds patches of {} {shape:?}, as they are stored: ask for these, \
                     for others with tg.Patch(dtype=), or leave the field out",
                    dtype.name()
                )));
            }
            Ok((*dtype, Some(shape.clone())))
        }
        (kind, _) if let Some(own) = list_dtype(kind) => {
            if wanted.is_some_and(|wanted| wanted != own) || wanted_shape.is_some() {
                return Err(Error::Config(format!(
                    "field {name:?} holds {} of rows of many lengths, as {}: leave its type and shape out",
                    kind.name(),
                    own.name()
                )));
            }
            Ok((own, None))
        }
        (kind @ Kind::Compact { dtype, shape, .. }, _) => {
            let float = |dtype| matches!(dtype, DType::Float16 | DType::Bfloat16 | DType::Float32);
            let usual = match FieldSpec::inferred(kind) {
                FieldSpec::Array { dtype: Some(usual), .. } => usual,
                _ => *dtype,
            };
            let wanted = wanted.unwrap_or(usual);
            let can_be = if kind.is_quantized() { float(wanted) } else { wanted == *dtype };
            if !can_be || other_shape(shape) {
                return Err(Error::Config(format!(
                    "field {name:?} holds {} arrays of {} {shape:?}: ask for these{}, or leave the field out",
                    if kind.is_quantized() { "quantized" } else { "packed" },
                    dtype.name(),
                    if kind.is_quantized() { ", as float32, float16 or bfloat16" } else { "" }
                )));
            }
            Ok((wanted, Some(shape.clone())))
        }
        (_, Some(dtype)) => Ok((dtype, wanted_shape.map(<[usize]>::to_vec))),
        (kind, None) if let Some((dtype, declared)) = declared_type(kind) => {
            Ok((dtype, wanted_shape.map(<[usize]>::to_vec).or(declared)))
        }
        (_, None) => Err(Error::Config(format!(
            "field {name:?} is an array: say its type, such as \
             fields={{{name:?}: tg.Array(\"float32\", (3, 4))}}, or leave the field out by naming the others in columns="
        ))),
    }
}

/// The dtype of lists in text, which are ragged.
fn list_dtype(kind: &Kind) -> Option<DType> {
    match kind {
        Kind::Sparse { part, .. } => Some(part.dtype()),
        Kind::Numbers { dtype } => Some(*dtype),
        _ => None,
    }
}

/// The dtype of arrays, and their shape if it is fixed, where the data declare them.
fn declared_type(kind: &Kind) -> Option<(DType, Option<Vec<usize>>)> {
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

/// The shape of a mask: its own size or that of its image.
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
            ("cls", FieldSpec::Bytes, "holds int"),
            ("jpg", FieldSpec::Mask(MaskSpec { of: "x".into(), size: None, exif: None }), "\"x\""),
        ] {
            let error = Layout::new(&schema(), &[(name.into(), spec)], true).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
