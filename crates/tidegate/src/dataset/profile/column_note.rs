//! What is noted of one column of one sample, on the worker that decoded it.
//!
//! Flow: stored values and decoded rows -> [`WatchedColumn::note`] -> [`ColumnNote`] -> `field`.
//! Memory: a note of at most [`WatchedColumn::note_bytes`] a column, which the epoch's plan
//! counts.
//! Not here: what depends on the order of samples. `field` gets the notes in that order.

use tidegate_data::batch::{ColumnPlan, FieldSpec, Layout, PixelLayout};
use tidegate_data::pipeline::observer::DecodedColumn;
use tidegate_decode::Value;
use tidegate_decode::header;
use tidegate_decode::npy::DType;
use tidegate_sketch::moments::Moments;
use xxhash_rust::xxh3::xxh3_64;

/// The longest text that can be a label.
const LABEL_BYTES: usize = 64;
/// Values of an array that are sampled for the quantiles.
const SAMPLED: usize = 64;
/// Pixels of an image whose levels are counted. Of a larger image only evenly spaced rows are.
const PIXELS: usize = 1 << 16;
/// Values that are converted at once.
const BLOCK: usize = 4096;

/// How often each byte value occurred.
pub type Histogram = [u64; 256];

/// What the values of a column are, and so what is measured of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueKind {
    /// Whole numbers.
    Int,
    /// Floats.
    Float,
    /// Text or JSON.
    Text,
    /// Bytes.
    Bytes,
    /// Images.
    #[serde(rename = "picture")]
    Image,
    /// Class labels of pixels.
    Mask,
    /// Arrays.
    Array,
}

impl ValueKind {
    /// The name that profiles and reports use.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Float => "float",
            Self::Text => "text",
            Self::Bytes => "bytes",
            Self::Image => "picture",
            Self::Mask => "mask",
            Self::Array => "array",
        }
    }

    /// The names of what is measured of each value.
    #[must_use]
    pub fn measures(self) -> &'static [&'static str] {
        match self {
            Self::Int | Self::Float => &["value"],
            Self::Text => &["bytes", "characters", "words"],
            Self::Bytes | Self::Mask => &["bytes"],
            Self::Image => &["bytes", "height", "width"],
            Self::Array => &["bytes", "length", "value"],
        }
    }
}

/// One column that is profiled.
#[derive(Debug, Clone)]
pub(super) struct WatchedColumn {
    pub(super) name: String,
    pub(super) value_kind: ValueKind,
    /// The kind of the stored field.
    pub(super) stored_kind: &'static str,
    /// How a row is made, and its place among the columns of a row.
    plan: ColumnPlan,
    place: usize,
    dtype: DType,
    shape: Vec<usize>,
    layout: PixelLayout,
    /// The normalization of float images: they are delivered as (x - mean) / std.
    pub(super) normalized_by: Option<MeanStd>,
}

/// The mean and the standard deviation of R, G and B, in units of \[0, 1\].
pub(super) type MeanStd = ([f64; 3], [f64; 3]);

/// A value that is counted one by one, because there are few of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// A whole number.
    Int(i64),
    /// Text, the format of an image, or the type and shape of an array.
    Text(Box<str>),
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Which smaller types hold all values exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exact {
    /// All are whole numbers.
    pub whole: bool,
    /// float32 holds all.
    pub single: bool,
    /// float16 holds all.
    pub half: bool,
}

impl Default for Exact {
    fn default() -> Self {
        Self { whole: true, single: true, half: true }
    }
}

impl Exact {
    /// Of values in bytes. It stops once no smaller type is left.
    fn new(dtype: DType, bytes: &[u8]) -> Self {
        let float = matches!(dtype, DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64);
        if !float {
            return Self { whole: true, single: false, half: false };
        }
        let mut all = Self::default();
        for_each_block(dtype, bytes, &mut |block| {
            all.update(block);
            all.whole || all.half || (all.single && dtype.size() > 4)
        });
        all
    }

    /// Takes floats into account.
    pub(super) fn update(&mut self, block: &[f64]) {
        let holds = |x: f64, narrow: f64| narrow == x || x.is_nan();
        self.whole = self.whole && block.iter().all(|x| x.fract() == 0.0);
        self.single = self.single && block.iter().all(|&x| holds(x, f64::from(x as f32)));
        self.half = self.half && block.iter().all(|&x| holds(x, half::f16::from_f64(x).to_f64()));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.whole &= other.whole;
        self.single &= other.single;
        self.half &= other.half;
    }
}

/// The note of one value. Numbers are noted as they are, because a row may have hundreds.
#[derive(Debug)]
pub(super) enum ColumnNote {
    /// The sample lacks it.
    Missing,
    Int(i64),
    Float(f64),
    Content(Box<ContentNote>),
}

/// The note of a value that has bytes.
#[derive(Debug)]
pub(super) struct ContentNote {
    /// A number for each of [`ValueKind::measures`].
    pub(super) numbers: [f64; 3],
    /// A hash of the content.
    pub(super) key: u64,
    pub(super) label: Option<Label>,
    pub(super) bytes: Bytes,
    /// Moments of the values of an array, or of each channel of a float image.
    pub(super) moments: Vec<Moments>,
    pub(super) exact: Exact,
    pub(super) sampled: Vec<f32>,
}

/// The bytes of a value, for the histogram.
#[derive(Debug)]
pub(super) enum Bytes {
    None,
    /// The bytes themselves, where they are shorter than their counts.
    Few(Box<[u8]>),
    Counts(Box<[u32; 256]>),
    Channels(Box<[[u32; 256]; 3]>),
}

impl WatchedColumn {
    /// All columns of a layout.
    pub(super) fn from_layout(layout: &Layout) -> Vec<Self> {
        let columns = layout.columns.iter().enumerate();
        let watched = columns.filter(|(_, column)| column.spec != FieldSpec::Valid).map(|(place, column)| {
            let value_kind = match &column.spec {
                FieldSpec::Int => ValueKind::Int,
                FieldSpec::Float => ValueKind::Float,
                FieldSpec::Text | FieldSpec::Json => ValueKind::Text,
                FieldSpec::Bytes => ValueKind::Bytes,
                FieldSpec::Image(_) => ValueKind::Image,
                FieldSpec::Mask(_) => ValueKind::Mask,
                // A layout has no optional specs: its columns say what is missing.
                FieldSpec::Array { .. } | FieldSpec::Patch(_) | FieldSpec::Optional(_) | FieldSpec::Valid => {
                    ValueKind::Array
                }
            };
            let layout = match &column.spec {
                // Images of their own sizes are delivered as they are decoded.
                FieldSpec::Image(image) if column.shape.is_some() => image.pixels.layout,
                _ => PixelLayout::Hwc,
            };
            let normalized_by = match &column.spec {
                FieldSpec::Image(image) if column.dtype != DType::Uint8 => {
                    let wide = |given: Option<[f32; 3]>, default: f64| {
                        given.map_or([default; 3], |given| given.map(f64::from))
                    };
                    Some((wide(image.pixels.mean, 0.0), wide(image.pixels.std, 1.0)))
                }
                _ => None,
            };
            Self {
                normalized_by,
                name: column.name.clone(),
                value_kind,
                stored_kind: column.kind.name(),
                plan: column.clone(),
                place,
                dtype: column.dtype,
                shape: column.shape.clone().unwrap_or_default(),
                layout,
            }
        });
        watched.collect()
    }

    /// Its value in a sample.
    pub(super) fn value<'a>(&self, values: &[Value<'a>]) -> Value<'a> {
        self.plan.value(values)
    }

    /// The largest size of a note.
    pub(super) fn note_bytes(&self) -> u64 {
        let content_bytes = match self.value_kind {
            ValueKind::Int | ValueKind::Float => 0,
            ValueKind::Text | ValueKind::Bytes | ValueKind::Mask => 1024 + LABEL_BYTES,
            ValueKind::Image => 3 * 1024,
            ValueKind::Array => 4 * SAMPLED + LABEL_BYTES + 4 * 128,
        };
        let content = if content_bytes > 0 { size_of::<ContentNote>() } else { 0 };
        (size_of::<ColumnNote>() + content + content_bytes) as u64
    }

    /// Notes the column's value of one sample.
    pub(super) fn note(&self, values: &[Value<'_>], row: &[DecodedColumn<'_>]) -> ColumnNote {
        let Some(&made) = row.get(self.place) else { return ColumnNote::Missing };
        let stored = match (self.value_kind, self.value(values)) {
            (_, Value::Missing) => return ColumnNote::Missing,
            (ValueKind::Int, _) => return ColumnNote::Int(word(made.bytes).cast_signed()),
            (ValueKind::Float, _) => return ColumnNote::Float(f64::from_bits(word(made.bytes))),
            (_, Value::Bytes(bytes)) => bytes,
            (_, Value::Quoted(_)) => made.bytes,
            _ => &[][..],
        };
        let mut note = Box::new(ContentNote {
            numbers: [stored.len() as f64, 0.0, 0.0],
            key: xxh3_64(stored),
            label: None,
            bytes: Bytes::None,
            moments: Vec::new(),
            exact: Exact::default(),
            sampled: Vec::new(),
        });
        match self.value_kind {
            ValueKind::Int | ValueKind::Float => {}
            ValueKind::Text => {
                (note.numbers[1], note.numbers[2]) = (characters(stored) as f64, words(stored) as f64);
                note.bytes = byte_counts(stored);
                let text = (stored.len() <= LABEL_BYTES).then(|| String::from_utf8_lossy(stored));
                note.label = text.map(|text| Label::Text(text.into()));
            }
            ValueKind::Bytes => note.bytes = byte_counts(stored),
            ValueKind::Mask => note.bytes = byte_counts(made.bytes),
            ValueKind::Image => self.note_image(stored, made, &mut note),
            ValueKind::Array => self.note_array(made, &mut note),
        }
        ColumnNote::Content(note)
    }

    fn note_image(&self, stored: &[u8], made: DecodedColumn<'_>, note: &mut ContentNote) {
        // An encoded image has a header. Of raw pixels the stored array tells the size.
        let header =
            if self.stored_kind == "pixels" { header::pixels(stored) } else { header::parse(stored).ok() };
        if let Some(header) = header {
            let (width, height) = header.oriented();
            (note.numbers[1], note.numbers[2]) = (f64::from(height), f64::from(width));
            note.label = Some(Label::Text(format!("{:?}", header.format).to_lowercase().into()));
        }
        match (self.dtype, self.layout) {
            (DType::Uint8, PixelLayout::Hwc) => {
                note.bytes = Bytes::Channels(interleaved(made.bytes, self.shape(&made)[1]));
            }
            (DType::Uint8, PixelLayout::Chw) => {
                note.bytes = Bytes::Channels(planes(made.bytes, self.shape(&made)[2]));
            }
            (dtype, PixelLayout::Chw) => {
                let plane = (made.bytes.len() / 3).max(1);
                note.moments = made.bytes.chunks(plane).map(|plane| moments(dtype, plane)).collect();
            }
            // Channels of interleaved floats are not measured separately.
            (_, PixelLayout::Hwc) => {}
        }
    }

    /// The shape of a row.
    fn shape<'a>(&'a self, made: &DecodedColumn<'a>) -> &'a [usize] {
        if made.shape.is_empty() { &self.shape } else { made.shape }
    }

    fn note_array(&self, made: DecodedColumn<'_>, note: &mut ContentNote) {
        let shape = self.shape(&made);
        note.numbers[1] = shape.first().copied().unwrap_or(1) as f64;
        let label = format!("{} {shape:?}", self.dtype.name());
        note.label = (label.len() <= LABEL_BYTES).then(|| Label::Text(label.into()));
        note.moments = vec![moments(self.dtype, made.bytes)];
        note.exact = Exact::new(self.dtype, made.bytes);
        let (size, count) = (self.dtype.size(), made.bytes.len() / self.dtype.size());
        let sampled = count.min(SAMPLED);
        for i in 0..sampled {
            let at = i * count / sampled * size;
            for_each_block(self.dtype, &made.bytes[at..at + size], &mut |one| {
                note.sampled.push(one[0] as f32);
                true
            });
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word))
}

fn characters(text: &[u8]) -> usize {
    // Bytes that continue a character begin with 10.
    text.iter().filter(|&&b| b & 0xC0 != 0x80).count()
}

fn words(text: &[u8]) -> usize {
    let begins = |two: &&[u8]| two[0].is_ascii_whitespace() && !two[1].is_ascii_whitespace();
    let first = text.first().is_some_and(|b| !b.is_ascii_whitespace());
    usize::from(first) + text.windows(2).filter(begins).count()
}

/// Counts bytes in four tables by turns: counting the same byte twice in a row would wait for the
/// first count to be stored.
fn count<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> [u32; 256] {
    let mut tables = [[0u32; 256]; 4];
    for bytes in pieces {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            for (i, &byte) in word.iter().enumerate() {
                tables[i & 3][usize::from(byte)] += 1;
            }
        }
        for &byte in words.remainder() {
            tables[0][usize::from(byte)] += 1;
        }
    }
    let [mut all, rest @ ..] = tables;
    for table in rest {
        all.iter_mut().zip(table).for_each(|(all, n)| *all += n);
    }
    all
}

fn byte_counts(bytes: &[u8]) -> Bytes {
    if bytes.len() <= 1024 {
        Bytes::Few(bytes.into())
    } else {
        Bytes::Counts(Box::new(count([bytes].into_iter())))
    }
}

/// One row out of this many is counted.
fn row_step(pixels: usize) -> usize {
    (pixels / PIXELS).max(1)
}

fn planes(pixels: &[u8], width: usize) -> Box<[[u32; 256]; 3]> {
    let plane = pixels.len() / 3;
    let mut channels = Box::new([[0; 256]; 3]);
    for (channel, plane) in channels.iter_mut().zip(pixels.chunks(plane.max(1))) {
        *channel = count(plane.chunks(width.max(1)).step_by(row_step(plane.len())));
    }
    channels
}

fn interleaved(pixels: &[u8], width: usize) -> Box<[[u32; 256]; 3]> {
    // Two sets of tables, for two pixels: neighbours are often equal.
    let (mut even, mut odd) = (Box::new([[0u32; 256]; 3]), [[0u32; 256]; 3]);
    for row in pixels.chunks(3 * width.max(1)).step_by(row_step(pixels.len() / 3)) {
        for two in row.chunks(6) {
            let tables = even.iter_mut().chain(&mut odd);
            for (table, &byte) in tables.zip(two) {
                table[usize::from(byte)] += 1;
            }
        }
    }
    for (all, more) in even.iter_mut().flatten().zip(odd.iter().flatten()) {
        *all += more;
    }
    even
}

/// Moments of the values in bytes, closed as one leaf, so that merging them leaves no block open.
fn moments(dtype: DType, bytes: &[u8]) -> Moments {
    let mut values = Moments::new(true);
    if dtype == DType::Float32 {
        let mut block = [0f32; BLOCK];
        for bytes in bytes.chunks(4 * BLOCK) {
            let words = bytes.chunks_exact(4);
            let count = words.len();
            for (to, from) in block.iter_mut().zip(words) {
                *to = from.first_chunk().map_or(0.0, |&word| f32::from_le_bytes(word));
            }
            values.update(&block[..count]);
        }
    } else {
        for_each_block(dtype, bytes, &mut |block| {
            values.update(block);
            true
        });
    }
    let mut leaf = Moments::new(true);
    // This cannot fail: both were made with the same parameters.
    leaf.merge(&values).ok();
    leaf
}

/// Passes the values in bytes to `take` as doubles, block by block, until it returns false.
fn for_each_block(dtype: DType, bytes: &[u8], take: &mut dyn FnMut(&[f64]) -> bool) {
    fn each<const N: usize>(
        bytes: &[u8],
        take: &mut dyn FnMut(&[f64]) -> bool,
        value: impl Fn([u8; N]) -> f64,
    ) {
        let mut block = Vec::with_capacity(BLOCK.min(bytes.len() / N));
        for bytes in bytes.chunks(N * BLOCK) {
            block.clear();
            block.extend(bytes.chunks_exact(N).filter_map(|word| word.first_chunk().copied()).map(&value));
            if !take(&block) {
                break;
            }
        }
    }
    match dtype {
        DType::Bool | DType::Uint8 => each(bytes, take, |[b]| f64::from(b)),
        DType::Int8 => each(bytes, take, |b| f64::from(i8::from_le_bytes(b))),
        DType::Uint16 => each(bytes, take, |b| f64::from(u16::from_le_bytes(b))),
        DType::Int16 => each(bytes, take, |b| f64::from(i16::from_le_bytes(b))),
        DType::Uint32 => each(bytes, take, |b| f64::from(u32::from_le_bytes(b))),
        DType::Int32 => each(bytes, take, |b| f64::from(i32::from_le_bytes(b))),
        DType::Uint64 => each(bytes, take, |b| u64::from_le_bytes(b) as f64),
        DType::Int64 => each(bytes, take, |b| i64::from_le_bytes(b) as f64),
        DType::Float16 => each(bytes, take, |b| half::f16::from_le_bytes(b).to_f64()),
        DType::Bfloat16 => each(bytes, take, |b| half::bf16::from_le_bytes(b).to_f64()),
        DType::Float32 => each(bytes, take, |b| f64::from(f32::from_le_bytes(b))),
        DType::Float64 => each(bytes, take, f64::from_le_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_whatever_their_number() {
        for len in [0, 1, 5, 7, 8, 9, 300, 301, 302, 5000] {
            let bytes: Vec<u8> = (0..len).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let mut plain = [0u32; 256];
            bytes.iter().for_each(|&b| plain[usize::from(b)] += 1);
            assert_eq!(count([&bytes[..]].into_iter()), plain);
        }
    }

    #[test]
    fn levels_are_counted_whole_or_in_rows_row_step() {
        for (height, width) in [(1, 1), (3, 7), (50, 40), (700, 301)] {
            let level = |y: usize, x: usize, c: usize| (y * 31 + x * x + c * 77) as u8;
            let (mut hwc, mut chw) = (Vec::new(), vec![0; 3 * height * width]);
            let mut plain = [[0u32; 256]; 3];
            for (y, x, c) in
                (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (y, x, c))))
            {
                hwc.push(level(y, x, c));
                chw[(c * height + y) * width + x] = level(y, x, c);
                plain[c][usize::from(level(y, x, c))] += u32::from(y % (height * width / PIXELS).max(1) == 0);
            }
            assert_eq!(*interleaved(&hwc, width), plain);
            assert_eq!(*planes(&chw, width), plain);
        }
    }

    #[test]
    fn words_and_characters() {
        let text = " «Grüße» an\n alle ".as_bytes();
        assert_eq!((words(text), characters(text)), (3, 18));
        assert_eq!((words(b""), words(b"a"), words(b" ")), (0, 1, 0));
    }

    #[test]
    fn every_type_is_for_each_block() {
        let one = |dtype, bytes: &[u8]| {
            let mut found = Vec::new();
            for_each_block(dtype, bytes, &mut |block| {
                found.extend_from_slice(block);
                true
            });
            found
        };
        assert_eq!(one(DType::Int16, &[0xFF, 0xFF, 2, 0]), [-1.0, 2.0]);
        assert_eq!(one(DType::Float16, &[0, 0x3C]), [1.0]);
        assert_eq!(one(DType::Bfloat16, &[0x80, 0x3F]), [1.0]);
        assert_eq!(one(DType::Uint64, &u64::MAX.to_le_bytes()), [1.8446744073709552e19]);
        let mut many = Moments::new(true);
        let values: Vec<f32> = (0..10_000).map(|x| x as f32).collect();
        many.update(&values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(moments(DType::Float32, &bytes).summary(), many.summary());
    }
}
