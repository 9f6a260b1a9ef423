//! Writes one value into its row of a batch: decode, crop, resize, change colours, write.
//!
//! Flow: field value -> bytes of the column's row; called by the workers.
//! Memory: the worker's scratch (account `scratch`) holds the resized image, and the whole image
//! for formats that need it. The result goes straight into the batch.

use super::color::{jitter, normalize, normalize_interleaved};
use super::cost::DecodeCost;
use super::geometry::{Draw, Geometry, geometry, halved, halvings, mirror, orient, orient_row, unorient};
use super::layout::{ColumnPlan, Layout};
use super::resize::{self, Nearest, Scaler};
use super::spec::{FieldSpec, ImageSpec, MaskSpec, PixelLayout};
use crate::{Error, Result};
use tidegate_array::kernels::planar;
use tidegate_decode::header::{Format, ImageHeader};
use tidegate_decode::npy::DType;
use tidegate_decode::text::{json, libsvm};
use tidegate_decode::{Decoded, Decoders, Pixel, Quoted, Request, RowSink, compact, npy};
use tidegate_decode::{Kind, Value};
use tidegate_order::random::Purpose;

/// The decoders and the resizer of one worker.
///
/// Between samples it keeps [`Decoders::KEPT_BYTES`], and
/// [`rows_bytes`](super::cost::rows_bytes) of the largest image.
#[derive(Debug, Default)]
pub struct RowDecoder {
    scaler: Scaler,
    decoders: Decoders,
}

/// The memory of one row: a slice of a fixed column, or the part of a ragged column's block that
/// is reserved for this row.
#[derive(Debug)]
pub struct RowBuffer<'a> {
    /// The memory.
    pub bytes: &'a mut [u8],
    /// Ragged columns: the number of bytes written.
    pub written: usize,
    /// Ragged images and arrays: the shape of this row.
    pub shape: Vec<usize>,
    /// Whether an image ended too early and was filled with gray.
    pub filled: bool,
}

/// The value of a column in one sample, and all that decides its row.
#[derive(Debug, Clone, Copy)]
pub struct RowInput<'a> {
    /// The layout of the batch.
    pub layout: &'a Layout,
    /// The column.
    pub column: &'a ColumnPlan,
    /// The value.
    pub value: Value<'a>,
    /// The cost of this value.
    pub cost: &'a DecodeCost,
    /// The side-car record of the sample's largest JPEG, if there is one.
    pub checkpoints: Option<&'a [u8]>,
    /// The sample's random draws.
    pub draw: Draw,
}

/// An encoded image of one sample.
struct EncodedImage<'a> {
    header: &'a ImageHeader,
    bytes: &'a [u8],
    checkpoints: Option<&'a [u8]>,
    draw: Draw,
}

impl RowDecoder {
    /// Frees the memory that [`rows_bytes`](super::cost::rows_bytes) counts.
    pub fn forget(&mut self) {
        self.scaler = Scaler::default();
    }

    /// Writes the value of one column into its row. `scratch` has the bytes of the input's cost.
    ///
    /// # Errors
    /// [`Error::Decode`] for a value that cannot be decoded or does not fit the column.
    pub fn fill(
        &mut self,
        input: &RowInput<'_>,
        scratch: &mut [u8],
        buffer: &mut RowBuffer<'_>,
    ) -> Result<()> {
        let RowInput { layout, column, value, cost, checkpoints, draw } = *input;
        if column.spec == FieldSpec::Valid {
            buffer.bytes.copy_from_slice(&[u8::from(value != Value::Missing)]);
            return Ok(());
        }
        if value == Value::Missing {
            return lacking(column, buffer);
        }
        if let (Some(header), Value::Bytes(bytes)) = (&cost.header, value) {
            let image = EncodedImage { header, bytes, checkpoints, draw };
            return match &column.spec {
                FieldSpec::Image(spec) => self.image(spec, &image, scratch, buffer),
                FieldSpec::Mask(spec) => self.mask(layout, spec, column, &image, scratch, buffer.bytes),
                _ => Err(Error::Internal("an image in a field of another kind".into())),
            };
        }
        match (&column.spec, value) {
            (FieldSpec::Int, value) => int(value).map(|x| buffer.bytes.copy_from_slice(&x.to_le_bytes())),
            (FieldSpec::Float, value) => float(value).map(|x| buffer.bytes.copy_from_slice(&x.to_le_bytes())),
            (FieldSpec::Text | FieldSpec::Bytes | FieldSpec::Json, Value::Bytes(bytes)) => {
                check_text(&column.spec, bytes)?;
                ragged(bytes, buffer)
            }
            (FieldSpec::Text | FieldSpec::Bytes | FieldSpec::Json, Value::Quoted(quoted)) => {
                unquote(&column.spec, quoted, buffer)
            }
            (FieldSpec::Array { .. }, Value::Bytes(list)) if let Kind::Numbers { dtype } = column.kind => {
                let count = json::numbers(list, dtype, buffer.bytes)?;
                (buffer.written, buffer.shape) = (count * dtype.size(), vec![count]);
                Ok(())
            }
            (FieldSpec::Array { .. }, Value::Bytes(line))
                if let Kind::Sparse { part, base, columns } = column.kind =>
            {
                let count = libsvm::entries(line, part, base, columns, buffer.bytes)?;
                (buffer.written, buffer.shape) = (count * part.dtype().size(), vec![count]);
                Ok(())
            }
            (FieldSpec::Array { .. }, Value::Bytes(bytes)) if matches!(column.kind, Kind::Compact { .. }) => {
                let shape = column.shape.as_deref().unwrap_or_default();
                Ok(compact::unpack(bytes, column.dtype, shape, buffer.bytes)?)
            }
            (FieldSpec::Text, Value::Int(x)) => ragged(x.to_string().as_bytes(), buffer),
            (FieldSpec::Text, Value::Float(x)) => ragged(format!("{x:?}").as_bytes(), buffer),
            (FieldSpec::Array { dtype, shape }, Value::Bytes(bytes)) => {
                array(&column.kind, *dtype, shape.as_deref(), bytes, buffer)
            }
            (_, value) => Err(Error::decode(format!("{} does not fit this field", value.describe()))),
        }
    }

    fn image(
        &mut self,
        spec: &ImageSpec,
        image: &EncodedImage<'_>,
        scratch: &mut [u8],
        buffer: &mut RowBuffer<'_>,
    ) -> Result<()> {
        let EncodedImage { header, bytes, checkpoints, draw } = *image;
        let crop = geometry(spec, header.oriented(), draw);
        let region = unorient(crop.region, header.orientation, (header.width, header.height));
        let (inner, rest) =
            scratch.split_at_mut_checked(header.inner_bytes() as usize).ok_or_else(file_changed)?;
        let (fill, wide_gray) = (spec.load_truncated, spec.gray16);
        let Some((height, width)) = spec.size else {
            let pixel = Pixel::Rgb;
            let request = Request { header, halvings: 0, region, pixel, checkpoints, fill, wide_gray };
            return ragged_image(&mut self.decoders, bytes, &request, inner, crop, buffer);
        };
        let to = if header.orientation >= 5 { (width, height) } else { (height, width) };
        let halvings = if spec.draft && header.format == Format::Jpeg { halvings(region, to) } else { 0 };
        let (region, part) = halved(region, halvings);
        let request = Request { header, halvings, region, pixel: Pixel::Rgbx, checkpoints, fill, wide_gray };
        let n = height as usize * width as usize * 3;
        let (small, turned) = rest
            .split_at_mut_checked(n)
            .and_then(|(a, b)| Some((a, b.get_mut(..n)?)))
            .ok_or_else(file_changed)?;
        let RowBuffer { bytes: target, filled, .. } = buffer;
        let size = (region.width, region.height);
        // The order of Pillow's passes depends on the sides of the displayed image.
        let sideways = header.orientation >= 5;
        let shown = if sideways { (size.1, size.0) } else { size };
        let down_first = resize::down_first(shown, (height, width)) != sideways;
        let plain = spec.pixels.dtype == DType::Uint8 && spec.pixels.layout == PixelLayout::Hwc;
        let straight = plain && header.orientation == 1 && spec.jitter.is_none();
        let resized = if straight { &mut **target } else { &mut *small };
        let mut rows = self.scaler.begin(size, part, to, down_first, resized);
        *filled = self.decoders.decode(bytes, &request, inner, &mut rows)? == Decoded::Filled;
        if straight {
            if crop.mirror {
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
        write_pixels(rgb, spec, width as usize, crop.mirror, target);
        Ok(())
    }

    fn mask(
        &mut self,
        layout: &Layout,
        spec: &MaskSpec,
        column: &ColumnPlan,
        image: &EncodedImage<'_>,
        scratch: &mut [u8],
        target: &mut [u8],
    ) -> Result<()> {
        let EncodedImage { header, bytes, draw, .. } = *image;
        let missing = || Error::Internal("the image field of a mask is missing".into());
        let (_, image_spec) = layout.image_of(spec).ok_or_else(missing)?;
        let crop = geometry(image_spec, header.oriented(), draw);
        let inner = header.inner_bytes() as usize;
        if scratch.len() < inner + target.len() {
            return Err(file_changed());
        }
        let (inner, rest) = scratch.split_at_mut(inner);
        let region = unorient(crop.region, header.orientation, (header.width, header.height));
        let request = Request {
            header,
            halvings: 0,
            region,
            pixel: Pixel::Raw,
            checkpoints: None,
            fill: false,
            wide_gray: None,
        };
        let shape = column.shape.as_deref().unwrap_or_default();
        let (height, width) = (shape[0] as u32, shape[1] as u32);
        let to = if header.orientation >= 5 { (width, height) } else { (height, width) };
        let small = &mut rest[..target.len()];
        self.decoders.decode(bytes, &request, inner, &mut Nearest::new(region, to, small))?;
        orient(small, target, header.orientation, (to.1 as usize, to.0 as usize), 1);
        if crop.mirror {
            mirror(target, width as usize, 1);
        }
        Ok(())
    }
}

/// The value is larger than the memory that its index entry reserved.
fn file_changed() -> Error {
    tidegate_decode::Error::too_large(
        "the value is larger than when it was indexed: the file changed; run `tidegate index --force`",
    )
    .into()
}

/// Writes interleaved RGB into the row, in its layout and dtype, mirrored or not.
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
            // Row by row, so that its planes stay in the first-level cache.
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

/// Takes the rows of a whole image and writes them in its displayed orientation.
#[derive(Debug)]
struct Oriented<'a> {
    into: &'a mut [u8],
    orientation: u8,
    width: usize,
    height: usize,
    row: Vec<u8>,
    taken: usize,
}

impl RowSink for Oriented<'_> {
    fn next_row(&mut self) -> &mut [u8] {
        let width = 3 * self.width;
        if self.orientation == 1 { &mut self.into[self.taken * width..][..width] } else { &mut self.row }
    }

    fn finish_row(&mut self) {
        if self.orientation != 1 {
            orient_row(&self.row, self.taken, self.into, self.orientation, (self.width, self.height), 3);
        }
        self.taken += 1;
    }
}

/// Decodes an image at its own size.
fn ragged_image(
    decoders: &mut Decoders,
    bytes: &[u8],
    request: &Request<'_>,
    inner: &mut [u8],
    crop: Geometry,
    buffer: &mut RowBuffer<'_>,
) -> Result<()> {
    let header = request.header;
    let n = header.decoded_bytes() as usize;
    let into = buffer.bytes.get_mut(..n).ok_or_else(file_changed)?;
    let (width, height) = (header.width as usize, header.height as usize);
    let row = vec![0; 3 * width];
    let mut rows =
        Oriented { into: &mut *into, orientation: header.orientation, width, height, row, taken: 0 };
    buffer.filled = decoders.decode(bytes, request, inner, &mut rows)? == Decoded::Filled;
    let (width, height) = header.oriented();
    if crop.mirror {
        mirror(into, width as usize, 3);
    }
    buffer.written = n;
    buffer.shape = vec![height as usize, width as usize, 3];
    Ok(())
}

/// Writes the row of a sample that lacks the field.
fn lacking(column: &ColumnPlan, buffer: &mut RowBuffer<'_>) -> Result<()> {
    let Some(default) = &column.default else {
        return Err(Error::decode(
            "the sample lacks this field: say what it gets instead, with optional=True or default= in the \
             field's spec, or leave the field out of columns=",
        ));
    };
    if column.shape.is_none() {
        buffer.shape = match column.spec {
            FieldSpec::Image(_) => vec![0, 0, 3],
            FieldSpec::Array { .. } => vec![0],
            _ => Vec::new(),
        };
        return ragged(default, buffer);
    }
    if default.is_empty() {
        buffer.bytes.fill(0);
    } else {
        buffer.bytes.chunks_exact_mut(default.len()).for_each(|part| part.copy_from_slice(default));
    }
    Ok(())
}

/// Checks that text is UTF-8, and that JSON is JSON.
fn check_text(spec: &FieldSpec, text: &[u8]) -> Result<()> {
    match spec {
        FieldSpec::Text => {
            std::str::from_utf8(text).map_err(|e| Error::decode(format!("not UTF-8: {e}")))?;
        }
        FieldSpec::Json => json::check(text)?,
        _ => {}
    }
    Ok(())
}

/// Writes the text of a quoted value, which is UTF-8 even in a column of bytes.
fn unquote(spec: &FieldSpec, quoted: Quoted<'_>, buffer: &mut RowBuffer<'_>) -> Result<()> {
    let into = buffer.bytes.get_mut(..quoted.max_len()).ok_or_else(file_changed)?;
    buffer.written = quoted.unquote(into)?;
    let text = &into[..buffer.written];
    check_text(&FieldSpec::Text, text)?;
    if *spec == FieldSpec::Json { check_text(spec, text) } else { Ok(()) }
}

/// Writes bytes of any length.
fn ragged(bytes: &[u8], buffer: &mut RowBuffer<'_>) -> Result<()> {
    buffer.bytes.get_mut(..bytes.len()).ok_or_else(file_changed)?.copy_from_slice(bytes);
    buffer.written = bytes.len();
    Ok(())
}

fn int(value: Value<'_>) -> Result<i64> {
    match value {
        Value::Int(x) => Ok(x),
        Value::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => Ok(x as i64),
        Value::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes).map(str::trim).unwrap_or("(bytes)");
            text.parse().map_err(|_| {
                let beyond = !text.is_empty()
                    && text.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit());
                let what = if beyond {
                    "is beyond int64: take it as tg.Text()"
                } else {
                    "is no integer: tg.Text() takes it as text"
                };
                Error::decode(format!("{:?} {what}", short(text)))
            })
        }
        Value::Quoted(text) => int(Value::Bytes(&text.text()?)),
        other => Err(Error::decode(format!("{} is no integer", other.describe()))),
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

/// The beginning of a text, for messages.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Writes an array, if it has the declared dtype and shape.
fn array(
    kind: &Kind,
    dtype: Option<DType>,
    shape: Option<&[usize]>,
    bytes: &[u8],
    buffer: &mut RowBuffer<'_>,
) -> Result<()> {
    // A field of another kind holds .npy files.
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
    if found.shape.is_empty() && shape.is_none() {
        return Err(Error::decode("an array without axes, which is one number: its spec needs shape=()"));
    }
    found.copy_to(buffer.bytes.get_mut(..found.len()).ok_or_else(file_changed)?);
    buffer.written = found.len();
    buffer.shape = found.shape;
    Ok(())
}
