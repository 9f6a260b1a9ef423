//! What the row of a sample costs before it is decoded: memory, and the header of its image.
//!
//! Flow: the fields of a sample -> [`DecodeCost`], which the workers' scratch and the plan must
//! hold; index entries -> [`ragged_bytes`], what a batch must have.
//! Memory: holds none.

use super::layout::{ColumnPlan, Layout};
use super::resize;
use super::spec::{FieldSpec, ImageSpec};
use crate::{Error, Result};
use tidegate_decode::header::{self, ImageHeader};
use tidegate_decode::{Kind, Value, compact};
use tidegate_source::{Entry, SizeBounds};

/// The memory that writing a row needs in addition to the row.
#[derive(Debug, Default)]
pub struct DecodeCost {
    /// The header of an image.
    pub(super) header: Option<ImageHeader>,
    /// Bytes of the worker's scratch.
    pub scratch_bytes: u64,
    /// Bytes that the decoder allocates at most.
    pub decoder_bytes: u64,
    /// See [`rows_bytes`].
    pub rows_bytes: u64,
    /// Bytes of the decoded image, if it is delivered at its own size; else 0.
    pub whole_bytes: u64,
}

impl DecodeCost {
    /// The cost of a value in this column; `values` are those of all fields of the sample.
    ///
    /// # Errors
    /// [`Error::Decode`] for bytes that are not an image in an image column, for a mask whose
    /// orientation is ambiguous, and for a damaged compact array.
    pub fn new(layout: &Layout, column: &ColumnPlan, values: &[Value<'_>]) -> Result<Self> {
        let value = column.value(values);
        if column.spec == FieldSpec::Valid {
            return Ok(Self::default());
        }
        if let (Kind::Compact { .. }, Value::Bytes(bytes)) = (&column.kind, value) {
            return Ok(Self::plain(0, compact::scratch_bytes(bytes)?));
        }
        let (true, Value::Bytes(bytes)) = (column.is_image(), value) else { return Ok(Self::default()) };
        let mut header = image_header(&column.kind, bytes)?;
        check_pixels(layout, column, &header)?;
        header.orientation = orientation(layout, column, values, &header)?;
        Ok(Self {
            scratch_bytes: header.inner_bytes().saturating_add(resized_bytes(column)),
            decoder_bytes: header.library_bytes(),
            rows_bytes: rows_bytes(column, header.width.max(header.height)),
            whole_bytes: if column.shape.is_none() { header.decoded_bytes() } else { 0 },
            header: Some(header),
        })
    }

    /// The cost of decoding a value that is not an image.
    #[must_use]
    pub fn plain(scratch_bytes: u64, decoder_bytes: u64) -> Self {
        Self { scratch_bytes, decoder_bytes, ..Self::default() }
    }

    /// Whether a side of the image has more than 65,535 pixels, which the index cannot state.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.width.max(header.height) > u32::from(u16::MAX))
    }

    /// All bytes except those of the image itself.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.scratch_bytes.saturating_add(self.decoder_bytes).saturating_add(self.rows_bytes)
    }
}

/// Bytes of scratch for the resized image, and for the same image in its displayed orientation.
#[must_use]
pub fn resized_bytes(column: &ColumnPlan) -> u64 {
    match &column.spec {
        FieldSpec::Image(ImageSpec { size: Some(size), .. }) => 6 * u64::from(size.0) * u64::from(size.1),
        FieldSpec::Mask(_) => column.row_bytes() as u64,
        _ => 0,
    }
}

/// Bytes that taking the rows of images needs at most, if their longer side has `side` pixels. The
/// [`RowDecoder`](super::row::RowDecoder) keeps them between samples.
#[must_use]
pub fn rows_bytes(column: &ColumnPlan, side: u32) -> u64 {
    match (&column.spec, column.shape.as_deref()) {
        (FieldSpec::Image(ImageSpec { size: Some(size), .. }), _) => resize::library_bytes(side, *size),
        (FieldSpec::Image(_), _) => 3 * u64::from(side),
        (FieldSpec::Mask(_), Some([h, w])) => u64::from(side) + 8 * (h + w) as u64,
        _ => 0,
    }
}

/// The header of an image column's value.
fn image_header(kind: &Kind, bytes: &[u8]) -> Result<ImageHeader> {
    if *kind == Kind::Pixels {
        let unknown = || tidegate_decode::Error::unsupported("pixels of an unknown mode");
        return Ok(header::pixels(bytes).ok_or_else(unknown)?);
    }
    Ok(header::parse(bytes)?)
}

/// Refuses an image of more pixels than its field allows.
fn check_pixels(layout: &Layout, column: &ColumnPlan, header: &ImageHeader) -> Result<()> {
    let (width, height) = (u64::from(header.width), u64::from(header.height));
    match layout.max_pixels(column).filter(|most| width * height > *most) {
        None => Ok(()),
        Some(most) => {
            Err(Error::decode(format!("an image of {width} × {height} pixels, and max_pixels is {most}")))
        }
    }
}

/// The orientation in which an image or a mask is taken. Where a mask has none of its own, that of
/// its image applies if it was drawn on the stored pixels.
fn orientation(
    layout: &Layout,
    column: &ColumnPlan,
    values: &[Value<'_>],
    header: &ImageHeader,
) -> Result<u8> {
    let mask = match &column.spec {
        FieldSpec::Image(image) => return Ok(if image.exif { header.orientation } else { 1 }),
        FieldSpec::Mask(mask) => mask,
        _ => return Ok(1),
    };
    let Some((plan, spec)) = layout.image_of(mask) else { return Ok(header.orientation) };
    let Value::Bytes(bytes) = plan.value(values) else { return Ok(header.orientation) };
    let image = image_header(&plan.kind, bytes)?;
    let turned = image.orientation;
    if turned == 1 || header.orientation != 1 {
        return Ok(if spec.exif { header.orientation } else { 1 });
    }
    let lies = |(width, height): (u32, u32)| width.cmp(&height);
    let (stored, own) = (lies((image.width, image.height)), lies((header.width, header.height)));
    let on_stored = match mask.exif {
        Some(displayed) => !displayed,
        // A quarter turn swaps the sides.
        None if turned >= 5 && stored.is_ne() && own.is_ne() => own == stored,
        None if !spec.exif => true,
        None => {
            return Err(Error::decode(format!(
                "Exif turns its image {:?}, and the sizes do not tell whether the mask is turned already: say \
                 tg.Mask(exif=True) for masks drawn on the displayed image, tg.Mask(exif=False) for masks of \
                 the stored pixels",
                mask.of
            )));
        }
    };
    match (on_stored, spec.exif) {
        (true, true) => Ok(turned),
        (true, false) | (false, true) => Ok(1),
        (false, false) => Err(Error::decode(format!(
            "the mask fits its image {:?} as Exif turns it, but the image is delivered as it is stored: leave \
             exif=False out there",
            mask.of
        ))),
    }
}

/// Bytes that a ragged column needs at most for the value of this sample, or for that of any
/// sample that may replace it. Images of more than `max_image_bytes` are not decoded.
#[must_use]
pub fn ragged_bytes(
    column: &ColumnPlan,
    entry: &Entry,
    any: Option<&SizeBounds>,
    max_image_bytes: u64,
) -> u64 {
    let stored = match (&column.spec, any) {
        (FieldSpec::Image(_), None) => {
            // The index has the largest image of a sample, which may be one of another field.
            entry.decoded_bytes().min(max_image_bytes)
        }
        (FieldSpec::Image(_), Some(most)) => most.decoded_bytes.min(max_image_bytes),
        (_, None) => bytes_per_stored_byte(column) * u64::from(entry.len),
        (_, Some(most)) => bytes_per_stored_byte(column) * most.sample_bytes,
    };
    // A number as text may be longer than it is stored, and so may a default.
    let digits = if matches!(column.kind, Kind::Int | Kind::Float) { DIGITS } else { 0 };
    stored.max(digits).max(column.default.as_ref().map_or(0, Vec::len) as u64)
}

/// The most characters of an int64 or a float64.
const DIGITS: u64 = 25;

/// Bytes of a row for each byte of its sample, at most. A number of a list takes 8 bytes and is
/// stored as a digit and a comma, at least.
fn bytes_per_stored_byte(column: &ColumnPlan) -> u64 {
    if matches!(column.kind, Kind::Numbers { .. }) { 4 } else { 1 }
}
