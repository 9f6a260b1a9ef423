//! The profile of one field: its measures, its distinct values, counts of few values, its bytes.
//!
//! Flow: the [`ColumnNote`]s of a batch, in sample order -> [`Field`] -> `advice`, `diff`, `page`.
//! Memory: sketches of about 100 KiB, at most 80 KiB a measure, and a tally of at most 32,768
//! values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_sketch::distinct::{Estimate, Hll, Theta};
use tidegate_sketch::hash::float_key;

use super::column_note::{
    Bytes, ColumnNote, ContentNote, Exact, Histogram, Label, MeanStd, ValueKind, WatchedColumn,
};
use super::encoding::{damaged, from_base64, internal, to_base64};
use super::measure::{self, Measure};
use crate::{Error, Result};

/// Values that are counted one by one, over all fields: whole numbers, and texts, which are
/// longer.
const INTS: usize = 65_536;
const TEXTS: usize = 8_192;
/// The bounds for one field. The upper one makes profiles of different layouts comparable.
const MAX_VALUES: usize = 32_768;
const MIN_VALUES: usize = 256;
/// The memory of one value of a tally.
const INT_BYTES: usize = 48;
const TEXT_BYTES: usize = 144;
/// Both sketches have 2^12 entries: registers of HLL, hashes of Theta.
const LG_K: u8 = 12;

/// How often each value occurred, for a field with few values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Values and their counts.
    pub counts: BTreeMap<Label, u64>,
    /// There are too many values, or one is too long; nothing is counted any more.
    pub overflowed: bool,
    /// The most values that are counted.
    capacity: usize,
}

impl Tally {
    /// Counts labels; a value without a label overflows the tally. Labels are sorted first, so
    /// that the map is searched once for each distinct label.
    fn add_all(&mut self, labels: impl Iterator<Item = Option<Label>>) {
        if self.overflowed {
            return;
        }
        let Some(mut labels) = labels.collect::<Option<Vec<_>>>() else { return self.overflow() };
        labels.sort_unstable();
        for equal in labels.chunk_by(|a, b| a == b) {
            self.add(equal[0].clone(), equal.len() as u64);
        }
    }

    fn add(&mut self, label: Label, times: u64) {
        if !self.overflowed {
            *self.counts.entry(label).or_default() += times;
            if self.counts.len() > self.capacity {
                self.overflow();
            }
        }
    }

    fn overflow(&mut self) {
        *self = Self { overflowed: true, counts: BTreeMap::new(), capacity: self.capacity };
    }

    /// The number of values that were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// The profile of one field.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What its values are.
    pub value_kind: ValueKind,
    /// The kind of the stored field.
    pub stored_kind: String,
    /// One for each of [`ValueKind::measures`].
    pub measures: Vec<Measure>,
    /// The number of distinct values; of values with bytes, by a hash of them.
    pub distinct: Hll,
    /// The same as a sketch that can be intersected with another dataset's.
    pub contents: Theta,
    /// Counts of values, image formats or array shapes.
    pub tally: Tally,
    /// How often each byte value occurred; of an image, one histogram each for R, G and B.
    pub histograms: Vec<Histogram>,
    /// Of a float image: each channel, as it was delivered.
    pub channels: Vec<Measure>,
    /// Which smaller types hold all of its floats exactly.
    pub exact: Exact,
    /// Samples that lack the field.
    pub missing: u64,
    /// The normalization that `channels` were delivered with.
    pub(super) normalized_by: Option<MeanStd>,
    /// Bytes of some values by codec, and uncompressed under "none".
    pub packed: BTreeMap<String, u64>,
}

/// The key of the uncompressed bytes in [`Field::packed`].
pub(super) const UNPACKED: &str = "none";

/// A field in a profile file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    name: String,
    #[serde(rename = "sort")]
    value_kind: ValueKind,
    #[serde(rename = "kind")]
    stored_kind: String,
    measures: Vec<measure::Stored>,
    hll: String,
    theta: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ints: Option<BTreeMap<i64, u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    texts: Option<BTreeMap<String, u64>>,
    #[serde(rename = "beyond")]
    overflowed: bool,
    #[serde(rename = "most")]
    capacity: usize,
    histograms: Vec<Vec<u64>>,
    channels: Vec<measure::Stored>,
    exact: Exact,
    missing: u64,
    #[serde(rename = "scaled")]
    normalized_by: Option<MeanStd>,
    packed: BTreeMap<String, u64>,
}

impl Field {
    /// An empty profile of a column that is one of `fields` columns of its kind.
    pub(super) fn new(watched: &WatchedColumn, fields: usize) -> Result<Self> {
        let (name, stored_kind) = (watched.name.clone(), watched.stored_kind.to_owned());
        let measures = watched.value_kind.measures().iter().map(|_| Measure::new());
        Ok(Self {
            name,
            value_kind: watched.value_kind,
            stored_kind,
            measures: measures.collect::<Result<_>>()?,
            distinct: Hll::new(LG_K).map_err(internal)?,
            contents: Theta::new(LG_K).map_err(internal)?,
            tally: Tally { capacity: Self::capacity(watched.value_kind, fields), ..Tally::default() },
            histograms: Vec::new(),
            channels: Vec::new(),
            exact: Exact::default(),
            missing: 0,
            normalized_by: watched.normalized_by,
            packed: BTreeMap::new(),
        })
    }

    fn capacity(kind: ValueKind, fields: usize) -> usize {
        match kind {
            ValueKind::Int => (INTS / fields).clamp(MIN_VALUES, MAX_VALUES),
            ValueKind::Text => (TEXTS / fields).clamp(MIN_VALUES, MAX_VALUES),
            // Image formats or array shapes.
            _ => MIN_VALUES,
        }
    }

    /// The number of distinct values: exact where all are counted, else an estimate with bounds of
    /// three standard deviations.
    ///
    /// # Errors
    /// Never in practice: the sketch is ours.
    pub fn distinct_values(&self) -> Result<Estimate> {
        if matches!(self.value_kind, ValueKind::Int | ValueKind::Text) && !self.tally.overflowed {
            let exact = self.tally.counts.len() as f64;
            return Ok(Estimate { value: exact, low: exact, high: exact });
        }
        self.distinct.estimate(3).map_err(internal)
    }

    /// The measure of this name, if values of this kind have it.
    #[must_use]
    pub fn measure(&self, name: &str) -> Option<&Measure> {
        let at = self.value_kind.measures().iter().position(|&own| own == name)?;
        self.measures.get(at)
    }

    /// Adds the notes of a batch, in sample order.
    pub(super) fn add(&mut self, notes: Vec<ColumnNote>) -> Result<()> {
        let (mut ints, mut floats, mut contents) = (Vec::new(), Vec::new(), Vec::new());
        for note in notes {
            match note {
                ColumnNote::Missing => self.missing += 1,
                ColumnNote::Int(value) => ints.push(value),
                ColumnNote::Float(value) => floats.push(value),
                ColumnNote::Content(content) => contents.push(*content),
            }
        }
        match self.value_kind {
            ValueKind::Int => self.add_ints(ints),
            ValueKind::Float => self.add_floats(&floats),
            _ => self.add_contents(contents)?,
        }
        Ok(())
    }

    fn add_key(&mut self, key: u64) {
        let key = key.into();
        self.distinct.add(&key);
        self.contents.add(&key);
    }

    fn add_ints(&mut self, mut values: Vec<i64>) {
        self.measures[0].add(&values.iter().map(|&x| x as f64).collect::<Vec<_>>());
        values.iter().for_each(|&value| self.add_key(value.cast_unsigned()));
        if !self.tally.overflowed {
            values.sort_unstable();
            values
                .chunk_by(|a, b| a == b)
                .for_each(|alike| self.tally.add(Label::Int(alike[0]), alike.len() as u64));
        }
    }

    fn add_floats(&mut self, values: &[f64]) {
        self.measures[0].add(values);
        self.exact.update(values);
        values.iter().for_each(|&value| self.add_key(float_key(value)));
    }

    fn add_contents(&mut self, mut notes: Vec<ContentNote>) -> Result<()> {
        if !matches!(self.value_kind, ValueKind::Bytes | ValueKind::Mask) {
            self.tally.add_all(notes.iter_mut().map(|note| note.label.take()));
        }
        // Of an array, the moments are of all values, the quantiles of sampled ones.
        let of_values = self.measures.len() - usize::from(self.value_kind == ValueKind::Array);
        for (m, measure) in self.measures[..of_values].iter_mut().enumerate() {
            measure.add(&notes.iter().map(|note| note.numbers[m]).collect::<Vec<_>>());
        }
        for note in notes {
            self.exact.merge(&note.exact);
            self.add_key(note.key);
            self.count_bytes(&note.bytes);
            if self.value_kind == ValueKind::Array {
                self.measures[of_values].add_some(&note.sampled);
                self.measures[of_values].add_moments(&note.moments[0])?;
                continue;
            }
            while self.channels.len() < note.moments.len() {
                self.channels.push(Measure::new()?);
            }
            for (channel, moments) in self.channels.iter_mut().zip(&note.moments) {
                channel.add_moments(moments)?;
            }
        }
        Ok(())
    }

    fn count_bytes(&mut self, bytes: &Bytes) {
        let channels = match bytes {
            Bytes::None => 0,
            Bytes::Few(_) | Bytes::Counts(_) => 1,
            Bytes::Channels(_) => 3,
        };
        if self.histograms.len() < channels {
            self.histograms.resize(channels, [0; 256]);
        }
        let sum = |all: &mut Histogram, counts: &[u32; 256]| {
            all.iter_mut().zip(counts).for_each(|(all, &n)| *all += u64::from(n));
        };
        match bytes {
            Bytes::None => {}
            Bytes::Few(bytes) => bytes.iter().for_each(|&b| self.histograms[0][usize::from(b)] += 1),
            Bytes::Counts(counts) => sum(&mut self.histograms[0], counts),
            Bytes::Channels(channels) => {
                self.histograms.iter_mut().zip(channels.iter()).for_each(|(all, counts)| sum(all, counts));
            }
        }
    }

    /// Adds the profile of the same field of other data.
    pub(super) fn merge(&mut self, other: &Self) -> Result<()> {
        for (one, other) in self.measures.iter_mut().zip(&other.measures) {
            one.merge(other)?;
        }
        self.distinct.merge(&other.distinct).map_err(internal)?;
        self.contents.merge(&other.contents).map_err(internal)?;
        self.tally.capacity = self.tally.capacity.min(other.tally.capacity);
        if other.tally.overflowed {
            self.tally.overflow();
        }
        for (label, &times) in &other.tally.counts {
            self.tally.add(label.clone(), times);
        }
        self.histograms.resize(self.histograms.len().max(other.histograms.len()), [0; 256]);
        for (one, other) in self.histograms.iter_mut().zip(&other.histograms) {
            one.iter_mut().zip(other).for_each(|(one, n)| *one += n);
        }
        while self.channels.len() < other.channels.len() {
            self.channels.push(Measure::new()?);
        }
        for (one, other) in self.channels.iter_mut().zip(&other.channels) {
            one.merge(other)?;
        }
        self.exact.merge(&other.exact);
        self.missing += other.missing;
        if self.normalized_by != other.normalized_by {
            // Channels of different normalizations cannot be merged.
            (self.normalized_by, self.channels) = (None, Vec::new());
        }
        for (codec, bytes) in &other.packed {
            *self.packed.entry(codec.clone()).or_default() += bytes;
        }
        Ok(())
    }

    /// The most bytes that it can take.
    pub(super) fn max_bytes(&self) -> u64 {
        let channels = if self.value_kind == ValueKind::Image { 3 } else { 0 };
        let measures = (self.measures.len() + channels) as u64 * Measure::MAX_BYTES;
        let each = if self.value_kind == ValueKind::Int { INT_BYTES } else { TEXT_BYTES };
        let tables = 3 * size_of::<Histogram>() + size_of::<Self>() + each * self.tally.capacity;
        measures + self.distinct.size_bytes() + self.contents.size_bytes() + tables as u64
    }

    /// The field for a profile file.
    pub(super) fn store(&self) -> Result<Stored> {
        let mut ints = BTreeMap::new();
        let mut texts = BTreeMap::new();
        for (label, &times) in &self.tally.counts {
            match label {
                Label::Int(value) => ints.insert(*value, times),
                Label::Text(text) => texts.insert(text.to_string(), times),
            };
        }
        Ok(Stored {
            name: self.name.clone(),
            value_kind: self.value_kind,
            stored_kind: self.stored_kind.clone(),
            measures: self.measures.iter().map(Measure::store).collect(),
            hll: to_base64(&self.distinct.to_bytes()),
            theta: to_base64(&self.contents.to_bytes().map_err(internal)?),
            ints: (!ints.is_empty()).then_some(ints),
            texts: (!texts.is_empty()).then_some(texts),
            overflowed: self.tally.overflowed,
            capacity: self.tally.capacity,
            histograms: self.histograms.iter().map(|table| table.to_vec()).collect(),
            channels: self.channels.iter().map(Measure::store).collect(),
            exact: self.exact,
            missing: self.missing,
            normalized_by: self.normalized_by,
            packed: self.packed.clone(),
        })
    }

    /// Reads a field of a profile file.
    pub(super) fn load(stored: Stored) -> Result<Self> {
        let wrong = |what: &str| Error::Config(format!("field {:?} of this profile has {what}", stored.name));
        if stored.measures.len() != stored.value_kind.measures().len() {
            return Err(wrong("a wrong number of measures for its kind"));
        }
        let ints = stored.ints.unwrap_or_default().into_iter().map(|(value, n)| (Label::Int(value), n));
        let texts =
            stored.texts.unwrap_or_default().into_iter().map(|(text, n)| (Label::Text(text.into()), n));
        let table = |counts: &Vec<u64>| {
            Histogram::try_from(&counts[..]).map_err(|_| wrong("a histogram whose length is not 256"))
        };
        let measures =
            |stored: &[measure::Stored]| stored.iter().map(Measure::load).collect::<Result<Vec<_>>>();
        Ok(Self {
            measures: measures(&stored.measures)?,
            distinct: Hll::from_bytes(&from_base64(&stored.hll)?).map_err(damaged)?,
            contents: Theta::from_bytes(&from_base64(&stored.theta)?, LG_K).map_err(damaged)?,
            tally: Tally {
                counts: ints.chain(texts).collect(),
                overflowed: stored.overflowed,
                capacity: stored.capacity,
            },
            histograms: stored.histograms.iter().map(table).collect::<Result<_>>()?,
            channels: measures(&stored.channels)?,
            exact: stored.exact,
            missing: stored.missing,
            normalized_by: stored.normalized_by,
            packed: stored.packed,
            value_kind: stored.value_kind,
            stored_kind: stored.stored_kind,
            name: stored.name,
        })
    }
}
