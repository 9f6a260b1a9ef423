//! What is noted of one sample, on the worker that has just made it.
//!
//! Flow: stored values and fresh rows -> [`Watched::see`] for each column -> [`Seen`] -> `field`.
//! Memory: a note of at most [`Watched::note_bytes`] a column, which the plan of the epoch counts.
//!
//! Whatever depends on the order of samples is left to `field`, which gets the notes in that order; what is noted here is of one sample alone.

use tidegate_data::batch::{FieldSpec, Layout, PixelLayout};
use tidegate_data::pipeline::observer::Made;
use tidegate_decode::Value;
use tidegate_decode::header;
use tidegate_decode::npy::DType;
use tidegate_sketch::moments::Moments;
use xxhash_rust::xxh3::xxh3_64;

/// Text that is longer is no label.
const LABEL_BYTES: usize = 64;
/// Values of an array that stand for all of them where quantiles are told.
const SAMPLED: usize = 64;
/// Pixels of a picture whose levels are counted, of a larger one: in whole rows that lie evenly apart.
const PIXELS: usize = 1 << 16;
/// Values that are widened at once.
const BLOCK: usize = 4096;

/// How often each byte came: of 256 at most.
pub type Histogram = [u64; 256];

/// What a column is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// Whole numbers.
    Int,
    /// Floats.
    Float,
    /// Text, JSON.
    Text,
    /// Bytes.
    Bytes,
    /// Pictures.
    Picture,
    /// Labels of pixels.
    Mask,
    /// Arrays.
    Array,
}

impl Sort {
    /// What is measured of each value.
    #[must_use]
    pub fn measures(self) -> &'static [&'static str] {
        match self {
            Self::Int | Self::Float => &["value"],
            Self::Text => &["bytes", "characters", "words"],
            Self::Bytes | Self::Mask => &["bytes"],
            Self::Picture => &["bytes", "height", "width"],
            Self::Array => &["bytes", "length", "value"],
        }
    }
}

/// One column that is watched.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) name: String,
    pub(super) sort: Sort,
    /// What it is at rest.
    pub(super) kind: &'static str,
    field: usize,
    dtype: DType,
    shape: Vec<usize>,
    layout: PixelLayout,
    /// What pictures of floats were delivered by: (x - mean) / std.
    pub(super) scaled: Option<Scaled>,
}

/// Means and standard deviations of R, G, B that were taken off.
pub(super) type Scaled = ([f64; 3], [f64; 3]);

/// A value of few, of which all are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// A whole number.
    Int(i64),
    /// Words: text, the format of a picture, the shape of an array.
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

/// Whether smaller types hold all values as they are.
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
    /// Of values in some bytes; looks no further once nothing is left to hold.
    fn of(dtype: DType, bytes: &[u8]) -> Self {
        let float = matches!(dtype, DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64);
        if !float {
            return Self { whole: true, single: false, half: false };
        }
        let mut all = Self::default();
        widened(dtype, bytes, &mut |block| {
            all.look(block);
            all.whole || all.half || (all.single && dtype.size() > 4)
        });
        all
    }

    /// Looks at floats.
    pub(super) fn look(&mut self, block: &[f64]) {
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

/// What is noted of a value: of numbers, of which rows may have hundreds, no more than they are.
#[derive(Debug)]
pub(super) enum Seen {
    /// The sample lacks it.
    Missing,
    Int(i64),
    Float(f64),
    Content(Box<Content>),
}

/// What is noted of a value that has bytes.
#[derive(Debug)]
pub(super) struct Content {
    /// A number for each of [`Sort::measures`].
    pub(super) numbers: [f64; 3],
    /// What tells it from others.
    pub(super) key: u64,
    pub(super) label: Option<Label>,
    pub(super) bytes: Bytes,
    /// Of the values of an array; of each channel of a picture of floats.
    pub(super) moments: Vec<Moments>,
    pub(super) exact: Exact,
    pub(super) sampled: Vec<f32>,
}

/// The bytes of a value, to be counted.
#[derive(Debug)]
pub(super) enum Bytes {
    None,
    /// So few that they are shorter than their counts.
    Few(Box<[u8]>),
    Counts(Box<[u32; 256]>),
    Channels(Box<[[u32; 256]; 3]>),
}

impl Watched {
    /// All columns of a layout.
    pub(super) fn of(layout: &Layout) -> Vec<Self> {
        let watched = layout.columns.iter().map(|column| {
            let sort = match &column.spec {
                FieldSpec::Int => Sort::Int,
                FieldSpec::Float => Sort::Float,
                FieldSpec::Text | FieldSpec::Json => Sort::Text,
                FieldSpec::Bytes => Sort::Bytes,
                FieldSpec::Image(_) => Sort::Picture,
                FieldSpec::Mask(_) => Sort::Mask,
                FieldSpec::Array { .. } | FieldSpec::Patch(_) => Sort::Array,
            };
            let layout = match &column.spec {
                // Pictures of many sizes are as they are decoded.
                FieldSpec::Image(image) if column.shape.is_some() => image.pixels.layout,
                _ => PixelLayout::Hwc,
            };
            let scaled = match &column.spec {
                FieldSpec::Image(image) if column.dtype != DType::Uint8 => {
                    let wide = |of: Option<[f32; 3]>, none: f64| of.map_or([none; 3], |of| of.map(f64::from));
                    Some((wide(image.pixels.mean, 0.0), wide(image.pixels.std, 1.0)))
                }
                _ => None,
            };
            Self {
                scaled,
                name: column.name.clone(),
                sort,
                kind: column.kind.name(),
                field: column.field,
                dtype: column.dtype,
                shape: column.shape.clone().unwrap_or_default(),
                layout,
            }
        });
        watched.collect()
    }

    /// Its place in the schema.
    pub(super) fn field(&self) -> usize {
        self.field
    }

    /// What a note takes at most.
    pub(super) fn note_bytes(&self) -> u64 {
        let more = match self.sort {
            Sort::Int | Sort::Float => 0,
            Sort::Text | Sort::Bytes | Sort::Mask => 1024 + LABEL_BYTES,
            Sort::Picture => 3 * 1024,
            Sort::Array => 4 * SAMPLED + LABEL_BYTES + 4 * 128,
        };
        let content = if more > 0 { size_of::<Content>() } else { 0 };
        (size_of::<Seen>() + content + more) as u64
    }

    /// What is noted of its value.
    pub(super) fn see(&self, values: &[Value<'_>], made: Made<'_>) -> Seen {
        let stored = match (self.sort, values.get(self.field)) {
            (_, None | Some(Value::Missing)) => return Seen::Missing,
            (Sort::Int, _) => return Seen::Int(word(made.bytes).cast_signed()),
            (Sort::Float, _) => return Seen::Float(f64::from_bits(word(made.bytes))),
            (_, Some(Value::Bytes(bytes))) => bytes,
            (_, Some(Value::Quoted(_))) => made.bytes,
            _ => &[][..],
        };
        let mut seen = Box::new(Content {
            numbers: [stored.len() as f64, 0.0, 0.0],
            key: xxh3_64(stored),
            label: None,
            bytes: Bytes::None,
            moments: Vec::new(),
            exact: Exact::default(),
            sampled: Vec::new(),
        });
        match self.sort {
            Sort::Int | Sort::Float => {}
            Sort::Text => {
                (seen.numbers[1], seen.numbers[2]) = (characters(stored) as f64, words(stored) as f64);
                seen.bytes = counted(stored);
                let text = (stored.len() <= LABEL_BYTES).then(|| String::from_utf8_lossy(stored));
                seen.label = text.map(|text| Label::Text(text.into()));
            }
            Sort::Bytes => seen.bytes = counted(stored),
            Sort::Mask => seen.bytes = counted(made.bytes),
            Sort::Picture => self.picture(stored, made, &mut seen),
            Sort::Array => self.array(made, &mut seen),
        }
        Seen::Content(seen)
    }

    fn picture(&self, stored: &[u8], made: Made<'_>, seen: &mut Content) {
        // What was decoded has a header; but of pixels that are stored as they are the picture tells the size.
        let header = if self.kind == "pixels" { header::pixels(stored) } else { header::of(stored).ok() };
        if let Some(header) = header {
            let (width, height) = header.oriented();
            (seen.numbers[1], seen.numbers[2]) = (f64::from(height), f64::from(width));
            seen.label = Some(Label::Text(format!("{:?}", header.format).to_lowercase().into()));
        }
        match (self.dtype, self.layout) {
            (DType::Uint8, PixelLayout::Hwc) => {
                seen.bytes = Bytes::Channels(interleaved(made.bytes, self.shape(&made)[1]));
            }
            (DType::Uint8, PixelLayout::Chw) => {
                seen.bytes = Bytes::Channels(planes(made.bytes, self.shape(&made)[2]));
            }
            (dtype, PixelLayout::Chw) => {
                let plane = (made.bytes.len() / 3).max(1);
                seen.moments = made.bytes.chunks(plane).map(|plane| moments(dtype, plane)).collect();
            }
            // Channels of interleaved floats are not told apart.
            (_, PixelLayout::Hwc) => {}
        }
    }

    /// The shape of a row.
    fn shape<'a>(&'a self, made: &Made<'a>) -> &'a [usize] {
        if made.shape.is_empty() { &self.shape } else { made.shape }
    }

    fn array(&self, made: Made<'_>, seen: &mut Content) {
        let shape = self.shape(&made);
        seen.numbers[1] = shape.first().copied().unwrap_or(1) as f64;
        let words = format!("{} {shape:?}", self.dtype.name());
        seen.label = (words.len() <= LABEL_BYTES).then(|| Label::Text(words.into()));
        seen.moments = vec![moments(self.dtype, made.bytes)];
        seen.exact = Exact::of(self.dtype, made.bytes);
        let (size, count) = (self.dtype.size(), made.bytes.len() / self.dtype.size());
        let few = count.min(SAMPLED);
        for i in 0..few {
            let at = i * count / few * size;
            widened(self.dtype, &made.bytes[at..at + size], &mut |one| {
                seen.sampled.push(one[0] as f32);
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

/// Four tables by turns: to count the same byte twice in a row takes as long as it takes to write and read it again.
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

fn counted(bytes: &[u8]) -> Bytes {
    if bytes.len() <= 1024 {
        Bytes::Few(bytes.into())
    } else {
        Bytes::Counts(Box::new(count([bytes].into_iter())))
    }
}

/// Every how-manieth row of a picture is counted.
fn apart(pixels: usize) -> usize {
    (pixels / PIXELS).max(1)
}

fn planes(pixels: &[u8], width: usize) -> Box<[[u32; 256]; 3]> {
    let plane = pixels.len() / 3;
    let mut channels = Box::new([[0; 256]; 3]);
    for (channel, plane) in channels.iter_mut().zip(pixels.chunks(plane.max(1))) {
        *channel = count(plane.chunks(width.max(1)).step_by(apart(plane.len())));
    }
    channels
}

fn interleaved(pixels: &[u8], width: usize) -> Box<[[u32; 256]; 3]> {
    // Two sets of tables, for two pixels: neighbours are often equal.
    let (mut even, mut odd) = (Box::new([[0u32; 256]; 3]), [[0u32; 256]; 3]);
    for row in pixels.chunks(3 * width.max(1)).step_by(apart(pixels.len() / 3)) {
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

/// Moments of the values in some bytes, as one leaf: where they are joined to others, no block of theirs is open.
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
        widened(dtype, bytes, &mut |block| {
            values.update(block);
            true
        });
    }
    let mut leaf = Moments::new(true);
    // Both know the shape.
    let _joined = leaf.merge(&values);
    leaf
}

/// Gives the values in some bytes as doubles, a block at a time, until that is enough.
fn widened(dtype: DType, bytes: &[u8], take: &mut dyn FnMut(&[f64]) -> bool) {
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
    fn levels_are_counted_whole_or_in_rows_apart() {
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
    fn every_type_is_widened() {
        let one = |dtype, bytes: &[u8]| {
            let mut found = Vec::new();
            widened(dtype, bytes, &mut |block| {
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
