//! One sample into its row: decode, crop, resize, colour, write.
//!
//! Flow: field values -> bytes of each column's row; called by the workers.
//! Memory: the resized box in the worker's scratch (account `scratch`), and whole pictures of formats that need them so; the result
//! in the batch.

use super::color::{jitter, normalize, normalize_interleaved};
use super::geometry::{Draw, Geometry, geometry, halved, halvings, mirror, orient, orient_row, unorient};
use super::layout::{ColumnPlan, Layout};
use super::resize::{self, Nearest, Scaler};
use super::spec::{FieldSpec, ImageSpec, MaskSpec, PixelLayout};
use crate::{Error, Result};
use tidegate_array::kernels::planar;
use tidegate_decode::header::{self, Format, ImageHeader};
use tidegate_decode::npy::DType;
use tidegate_decode::text::{json, libsvm};
use tidegate_decode::{Decoded, Decoders, Pixel, Request, Rows, compact, npy};
use tidegate_decode::{Kind, Value};
use tidegate_order::random::Purpose;
use tidegate_source::{Entry, Extremes};

/// What a worker keeps between samples: [`Decoders::KEPT_BYTES`], and as much as [`rows_bytes`] of any picture it has made.
#[derive(Debug, Default)]
pub struct Tools {
    scaler: Scaler,
    decoders: Decoders,
}

/// Where a row goes: a slice of the fixed column, or the room that a ragged one has for this row.
#[derive(Debug)]
pub struct Target<'a> {
    /// The memory.
    pub bytes: &'a mut [u8],
    /// Ragged: how many bytes were written.
    pub written: usize,
    /// Ragged pictures and arrays: their shape.
    pub shape: Vec<usize>,
    /// Whether a picture ended too early, and was filled.
    pub filled: bool,
}

/// What filling a row takes besides the row.
#[derive(Debug, Default)]
pub struct Needs {
    /// The header of the picture, if it is one.
    header: Option<ImageHeader>,
    /// Scratch memory.
    pub scratch_bytes: u64,
    /// What the decoder takes at most.
    pub decoder_bytes: u64,
    /// See [`rows_bytes`].
    pub rows_bytes: u64,
    /// The picture itself, where it is delivered as large as it is.
    pub whole_bytes: u64,
}

impl Needs {
    /// What a value of this column needs.
    ///
    /// # Errors
    /// [`Error::Decode`] for what is no picture, and should be one.
    pub fn of(column: &ColumnPlan, value: Value<'_>) -> Result<Self> {
        if let (Kind::Compact { .. }, Value::Bytes(bytes)) = (&column.kind, value) {
            return Ok(Self::plain(0, compact::room_bytes(bytes)?));
        }
        let (true, Value::Bytes(bytes)) = (is_picture(column), value) else { return Ok(Self::default()) };
        let header = picture_header(&column.kind, bytes)?;
        Ok(Self {
            scratch_bytes: header.inner_bytes().saturating_add(small_bytes(column)),
            decoder_bytes: header.library_bytes(),
            rows_bytes: rows_bytes(column, header.width.max(header.height)),
            whole_bytes: if column.shape.is_none() { header.decoded_bytes() } else { 0 },
            header: Some(header),
        })
    }

    /// What decoding something else than a picture needs.
    #[must_use]
    pub fn plain(scratch_bytes: u64, decoder_bytes: u64) -> Self {
        Self { scratch_bytes, decoder_bytes, ..Self::default() }
    }

    /// All but the picture itself.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.scratch_bytes.saturating_add(self.decoder_bytes).saturating_add(self.rows_bytes)
    }
}

/// Scratch for the resized box, and for the same as a viewer shows it.
#[must_use]
pub fn small_bytes(column: &ColumnPlan) -> u64 {
    match &column.spec {
        FieldSpec::Image(ImageSpec { size: Some(size), .. }) => 6 * u64::from(size.0) * u64::from(size.1),
        FieldSpec::Mask(_) => column.row_bytes() as u64,
        _ => 0,
    }
}

/// What taking the rows of pictures of this longer side takes at most, and what of it is kept.
#[must_use]
pub fn rows_bytes(column: &ColumnPlan, side: u32) -> u64 {
    match (&column.spec, column.shape.as_deref()) {
        (FieldSpec::Image(ImageSpec { size: Some(size), .. }), _) => resize::library_bytes(side, *size),
        (FieldSpec::Image(_), _) => 3 * u64::from(side),
        (FieldSpec::Mask(_), Some([h, w])) => u64::from(side) + 8 * (h + w) as u64,
        _ => 0,
    }
}

/// The header of a picture column's value.
fn picture_header(kind: &Kind, bytes: &[u8]) -> Result<ImageHeader> {
    if *kind == Kind::Pixels {
        return header::pixels(bytes).ok_or_else(|| Error::decode("pixels of an unknown mode"));
    }
    Ok(header::of(bytes)?)
}

/// Room that a ragged column needs at most for the value of this sample, or of any sample that may take its place: none
/// for a picture of more than `picture_bytes`, which will not be decoded.
#[must_use]
pub fn ragged_bytes(column: &ColumnPlan, entry: &Entry, any: Option<&Extremes>, picture_bytes: u64) -> u64 {
    match (&column.spec, any) {
        (FieldSpec::Image(_), None) => {
            let bytes = entry.decoded_bytes();
            if bytes <= picture_bytes { bytes } else { 0 }
        }
        (FieldSpec::Image(_), Some(most)) => most.decoded_bytes.min(picture_bytes),
        (_, None) => longest(column) * u64::from(entry.len),
        (_, Some(most)) => longest(column) * most.sample_bytes,
    }
}

/// Bytes of a row for each of its sample, at most: numbers in lists have a digit and a comma, at least.
fn longest(column: &ColumnPlan) -> u64 {
    if matches!(column.kind, Kind::Numbers { .. }) { 4 } else { 1 }
}

/// Whether the column needs scratch: whether it decodes a picture.
#[must_use]
pub fn is_picture(column: &ColumnPlan) -> bool {
    column.patch.is_none() && matches!(column.spec, FieldSpec::Image(_) | FieldSpec::Mask(_))
}

impl Tools {
    /// Gives back what [`rows_bytes`] stands for.
    pub fn forget(&mut self) {
        self.scaler = Scaler::default();
    }

    /// Writes the value of one column into its row. `scratch` holds what it `needs`; `checkpoints` is the side-car record of the
    /// sample's largest JPEG, if there is one.
    ///
    /// # Errors
    /// [`Error::Decode`] in words.
    #[expect(clippy::too_many_arguments, reason = "the sample, what is wanted of it, and the memory for it")]
    pub fn fill(
        &mut self,
        layout: &Layout,
        column: &ColumnPlan,
        value: Value<'_>,
        needs: &Needs,
        checkpoints: Option<&[u8]>,
        draw: Draw,
        scratch: &mut [u8],
        target: &mut Target<'_>,
    ) -> Result<()> {
        if value == Value::Missing {
            return Err(Error::decode(
                "the sample lacks this field: leave it out of fields=, or the sample with on_error=\"skip\"",
            ));
        }
        if let (Some(header), Value::Bytes(bytes)) = (&needs.header, value) {
            return match &column.spec {
                FieldSpec::Image(spec) => self.image(spec, header, bytes, checkpoints, draw, scratch, target),
                FieldSpec::Mask(spec) => {
                    mask(&mut self.decoders, layout, spec, column, header, bytes, draw, scratch, target.bytes)
                }
                _ => Err(Error::decode("a picture in a field of another kind")),
            };
        }
        match (&column.spec, value) {
            (FieldSpec::Int, value) => int(value).map(|x| target.bytes.copy_from_slice(&x.to_le_bytes())),
            (FieldSpec::Float, value) => float(value).map(|x| target.bytes.copy_from_slice(&x.to_le_bytes())),
            (FieldSpec::Text, Value::Bytes(bytes)) => {
                std::str::from_utf8(bytes).map_err(|e| Error::decode(format!("not UTF-8: {e}")))?;
                ragged(bytes, target)
            }
            (FieldSpec::Json, Value::Bytes(bytes)) => {
                serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
                    .map_err(|e| Error::decode(format!("not JSON: {e}")))?;
                ragged(bytes, target)
            }
            (FieldSpec::Bytes, Value::Bytes(bytes)) => ragged(bytes, target),
            (FieldSpec::Text | FieldSpec::Bytes | FieldSpec::Json, Value::Quoted(quoted)) => {
                let room = target.bytes.get_mut(..quoted.most()).ok_or_else(|| Error::decode(CHANGED))?;
                target.written = quoted.unquote(room)?;
                let text = &room[..target.written];
                std::str::from_utf8(text).map_err(|e| Error::decode(format!("not UTF-8: {e}")))?;
                if column.spec == FieldSpec::Json {
                    serde_json::from_slice::<serde::de::IgnoredAny>(text)
                        .map_err(|e| Error::decode(format!("not JSON: {e}")))?;
                }
                Ok(())
            }
            (FieldSpec::Array { .. }, Value::Bytes(list)) if let Kind::Numbers { dtype } = column.kind => {
                let count = json::numbers(list, dtype, target.bytes)?;
                (target.written, target.shape) = (count * dtype.size(), vec![count]);
                Ok(())
            }
            (FieldSpec::Array { .. }, Value::Bytes(line))
                if let Kind::Sparse { part, base, columns } = column.kind =>
            {
                let count = libsvm::entries(line, part, base, columns, target.bytes)?;
                (target.written, target.shape) = (count * part.dtype().size(), vec![count]);
                Ok(())
            }
            (FieldSpec::Array { .. }, Value::Bytes(bytes)) if matches!(column.kind, Kind::Compact { .. }) => {
                let shape = column.shape.as_deref().unwrap_or_default();
                Ok(compact::unpack(bytes, column.dtype, shape, target.bytes)?)
            }
            (FieldSpec::Array { dtype, shape }, Value::Bytes(bytes)) => {
                array(&column.kind, *dtype, shape.as_deref(), bytes, target)
            }
            (_, value) => Err(Error::decode(format!("{} does not fit this field", value.word()))),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call, from `fill`")]
    fn image(
        &mut self,
        spec: &ImageSpec,
        header: &ImageHeader,
        bytes: &[u8],
        checkpoints: Option<&[u8]>,
        draw: Draw,
        scratch: &mut [u8],
        target: &mut Target<'_>,
    ) -> Result<()> {
        let place = geometry(spec, header.oriented(), draw);
        let region = unorient(place.region, header.orientation, (header.width, header.height));
        let (inner, rest) = scratch
            .split_at_mut_checked(header.inner_bytes() as usize)
            .ok_or_else(|| Error::decode(CHANGED))?;
        let fill = spec.load_truncated;
        let Some((height, width)) = spec.size else {
            let request = Request { header, halvings: 0, region, pixel: Pixel::Rgb, checkpoints, fill };
            return ragged_image(&mut self.decoders, bytes, &request, inner, place, target);
        };
        let to = if header.orientation >= 5 { (width, height) } else { (height, width) };
        let halvings = if spec.draft && header.format == Format::Jpeg { halvings(region, to) } else { 0 };
        let (region, part) = halved(region, halvings);
        let request = Request { header, halvings, region, pixel: Pixel::Rgbx, checkpoints, fill };
        let n = height as usize * width as usize * 3;
        let (small, turned) = rest
            .split_at_mut_checked(n)
            .and_then(|(a, b)| Some((a, b.get_mut(..n)?)))
            .ok_or_else(|| Error::decode(CHANGED))?;
        let Target { bytes: target, filled, .. } = target;
        let size = (region.width, region.height);
        // As if the picture had been turned before.
        let turned_before = header.orientation >= 5;
        let shown = if turned_before { (size.1, size.0) } else { size };
        let down_first = resize::down_first(shown, (height, width)) != turned_before;
        let plain = spec.pixels.dtype == DType::Uint8 && spec.pixels.layout == PixelLayout::Hwc;
        let straight = plain && header.orientation == 1 && spec.jitter.is_none();
        let resized = if straight { &mut **target } else { &mut *small };
        let mut rows = self.scaler.begin(size, part, to, down_first, resized);
        *filled = self.decoders.decode(bytes, &request, inner, &mut rows)? == Decoded::Filled;
        if straight {
            if place.mirror {
                mirror(target, width as usize, 3);
            }
            return Ok(());
        }
        let rgb = if header.orientation == 1 {
            small
        } else {
            orient(small, turned, header.orientation, (to.1 as usize, to.0 as usize), 3);
            turned
        };
        if let Some(ranges) = &spec.jitter {
            jitter(rgb, ranges, &mut draw.stream(Purpose::Jitter));
        }
        write_pixels(rgb, spec, width as usize, place.mirror, target);
        Ok(())
    }
}

const CHANGED: &str =
    "the picture is larger than when it was indexed: the file changed; run `tidegate index --force`";

/// Layout, mirroring and dtype, from interleaved RGB into the row.
fn write_pixels(rgb: &mut [u8], spec: &ImageSpec, width: usize, mirrored: bool, target: &mut [u8]) {
    let pixels = &spec.pixels;
    let n = rgb.len() / 3;
    match (pixels.layout, pixels.dtype) {
        (PixelLayout::Hwc, dtype) => {
            if mirrored {
                mirror(rgb, width, 3);
            }
            if dtype == DType::Uint8 {
                target.copy_from_slice(rgb)
            } else {
                normalize_interleaved(rgb, pixels, target)
            }
        }
        (PixelLayout::Chw, DType::Uint8) => {
            let (red, rest) = target.split_at_mut(n);
            let (green, blue) = rest.split_at_mut(n);
            planar::split(rgb, red, green, blue);
            if mirrored {
                mirror(target, width, 1);
            }
        }
        (PixelLayout::Chw, dtype) => {
            // A row at a time: its planes stay in the first-level cache.
            let size = dtype.size();
            let mut planes = vec![0u8; 3 * width];
            for (y, row) in rgb.chunks_exact(3 * width).enumerate() {
                let (red, rest) = planes.split_at_mut(width);
                let (green, blue) = rest.split_at_mut(width);
                planar::split(row, red, green, blue);
                for (c, plane) in [red, green, blue].into_iter().enumerate() {
                    if mirrored {
                        plane.reverse();
                    }
                    let at = (c * n + y * width) * size;
                    normalize(plane, c, pixels, &mut target[at..at + width * size]);
                }
            }
        }
    }
}

/// Puts rows of a whole picture where a viewer shows them.
#[derive(Debug)]
struct Oriented<'a> {
    into: &'a mut [u8],
    orientation: u8,
    width: usize,
    height: usize,
    row: Vec<u8>,
    taken: usize,
}

impl Rows for Oriented<'_> {
    fn room(&mut self) -> &mut [u8] {
        let width = 3 * self.width;
        if self.orientation == 1 { &mut self.into[self.taken * width..][..width] } else { &mut self.row }
    }

    fn done(&mut self) {
        if self.orientation != 1 {
            orient_row(&self.row, self.taken, self.into, self.orientation, (self.width, self.height), 3);
        }
        self.taken += 1;
    }
}

fn ragged_image(
    decoders: &mut Decoders,
    bytes: &[u8],
    request: &Request<'_>,
    inner: &mut [u8],
    place: Geometry,
    target: &mut Target<'_>,
) -> Result<()> {
    let header = request.header;
    let n = header.decoded_bytes() as usize;
    let into = target.bytes.get_mut(..n).ok_or_else(|| Error::decode(CHANGED))?;
    let (width, height) = (header.width as usize, header.height as usize);
    let row = vec![0; 3 * width];
    let mut rows =
        Oriented { into: &mut *into, orientation: header.orientation, width, height, row, taken: 0 };
    target.filled = decoders.decode(bytes, request, inner, &mut rows)? == Decoded::Filled;
    let (width, height) = header.oriented();
    if place.mirror {
        mirror(into, width as usize, 3);
    }
    target.written = n;
    target.shape = vec![height as usize, width as usize, 3];
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one call, from `fill`")]
fn mask(
    decoders: &mut Decoders,
    layout: &Layout,
    spec: &MaskSpec,
    column: &ColumnPlan,
    header: &ImageHeader,
    bytes: &[u8],
    draw: Draw,
    scratch: &mut [u8],
    target: &mut [u8],
) -> Result<()> {
    let image = layout.image_of(spec).ok_or_else(|| Error::decode("its image field is missing"))?;
    let place = geometry(image, header.oriented(), draw);
    let inner = header.inner_bytes() as usize;
    if scratch.len() < inner + target.len() {
        return Err(Error::decode(CHANGED));
    }
    let (inner, rest) = scratch.split_at_mut(inner);
    let region = unorient(place.region, header.orientation, (header.width, header.height));
    let request = Request { header, halvings: 0, region, pixel: Pixel::Raw, checkpoints: None, fill: false };
    let shape = column.shape.as_deref().unwrap_or_default();
    let (height, width) = (shape[0] as u32, shape[1] as u32);
    let to = if header.orientation >= 5 { (width, height) } else { (height, width) };
    let small = &mut rest[..target.len()];
    decoders.decode(bytes, &request, inner, &mut Nearest::new(region, to, small))?;
    orient(small, target, header.orientation, (to.1 as usize, to.0 as usize), 1);
    if place.mirror {
        mirror(target, width as usize, 1);
    }
    Ok(())
}

fn ragged(bytes: &[u8], target: &mut Target<'_>) -> Result<()> {
    let room = target.bytes.get_mut(..bytes.len()).ok_or_else(|| Error::decode(CHANGED))?;
    room.copy_from_slice(bytes);
    target.written = bytes.len();
    Ok(())
}

fn int(value: Value<'_>) -> Result<i64> {
    match value {
        Value::Int(x) => Ok(x),
        Value::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Ok(x as i64),
        Value::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes).map(str::trim).unwrap_or("(bytes)");
            text.parse().map_err(|_| Error::decode(format!("{:?} is no integer", short(text))))
        }
        Value::Quoted(text) => int(Value::Bytes(&text.text()?)),
        other => Err(Error::decode(format!("{} is no integer", other.word()))),
    }
}

fn float(value: Value<'_>) -> Result<f64> {
    match value {
        Value::Int(x) => Ok(x as f64),
        Value::Float(x) => Ok(x),
        Value::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes).map(str::trim).unwrap_or("(bytes)");
            text.parse().map_err(|_| Error::decode(format!("{:?} is no number", short(text))))
        }
        Value::Quoted(text) => float(Value::Bytes(&text.text()?)),
        Value::Missing => Err(Error::decode("missing")),
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

fn array(
    kind: &Kind,
    dtype: Option<DType>,
    shape: Option<&[usize]>,
    bytes: &[u8],
    target: &mut Target<'_>,
) -> Result<()> {
    // What is of no kind of array is a file of one.
    let found = kind.array(bytes).unwrap_or_else(|| npy::npy(bytes))?;
    if dtype.is_some_and(|d| d != found.dtype) || shape.is_some_and(|s| s != found.shape) {
        return Err(Error::decode(format!(
            "an array of {} {:?} where {} {:?} was declared",
            found.dtype.name(),
            found.shape,
            dtype.map_or("any", DType::name),
            shape.unwrap_or_default()
        )));
    }
    let room = target.bytes.get_mut(..found.data.len()).ok_or_else(|| Error::decode(CHANGED))?;
    room.copy_from_slice(found.data);
    target.written = found.data.len();
    target.shape = found.shape;
    Ok(())
}
