//! What is known of one field: its measures, how many values differ, the few values it has, its bytes.
//!
//! Flow: [`Seen`] of a batch, in the order of samples -> [`Field`] -> what `advice`, `diff` and `page` read.
//! Memory: the sketches (about 100 KiB, and at most 80 KiB a measure), and a tally of at most 32,768 values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_sketch::distinct::{Estimate, Hll, Theta};
use tidegate_sketch::hash::float_key;

use super::measure::{self, Measure};
use super::seen::{Bytes, Content, Exact, Histogram, Label, Scaled, Seen, Sort, Watched};
use super::stored::{base64, broken, bytes_of, sketch};
use crate::{Error, Result};

/// Values that are told one by one, of all fields together: whole numbers, and words, which are longer.
const INTS: usize = 65_536;
const TEXTS: usize = 8_192;
/// Of one field at most, so that two profiles tell the same; and at least.
const MOST: usize = 32_768;
const LEAST: usize = 256;
/// What a value of a tally takes.
const INT_BYTES: usize = 48;
const TEXT_BYTES: usize = 144;
/// 2^12 registers, and as many hashes.
const LG_K: u8 = 12;

/// How often each value came, where they are few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Values and their counts.
    pub counts: BTreeMap<Label, u64>,
    /// There are too many, or some are too long: nothing is counted any more.
    pub beyond: bool,
    /// So many values at most.
    most: usize,
}

impl Tally {
    /// Takes labels, of which none may be missing. Sorted, so that few of them are looked up.
    fn add_all(&mut self, labels: impl Iterator<Item = Option<Label>>) {
        if self.beyond {
            return;
        }
        let Some(mut labels) = labels.collect::<Option<Vec<_>>>() else { return self.give_up() };
        labels.sort_unstable();
        for alike in labels.chunk_by(|a, b| a == b) {
            self.add(alike[0].clone(), alike.len() as u64);
        }
    }

    fn add(&mut self, label: Label, times: u64) {
        if !self.beyond {
            *self.counts.entry(label).or_default() += times;
            if self.counts.len() > self.most {
                self.give_up();
            }
        }
    }

    fn give_up(&mut self) {
        *self = Self { beyond: true, counts: BTreeMap::new(), most: self.most };
    }

    /// All that were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it is watched for.
    pub sort: Sort,
    /// What it is at rest.
    pub kind: String,
    /// One for each of [`Sort::measures`].
    pub measures: Vec<Measure>,
    /// Values that differ; of what has bytes, by a hash of them.
    pub distinct: Hll,
    /// The same, to be intersected with another dataset's.
    pub contents: Theta,
    /// Values, formats, shapes.
    pub tally: Tally,
    /// How often each byte came; of a picture each level of R, G, B.
    pub histograms: Vec<Histogram>,
    /// Of a picture of floats: each channel, as it was delivered.
    pub channels: Vec<Measure>,
    /// Whether smaller types hold all of its floats.
    pub exact: Exact,
    /// Samples that lack it.
    pub missing: u64,
    /// What was taken off `channels`.
    pub(super) scaled: Option<Scaled>,
    /// Bytes of the values that were packed for a probe, and what each codec made of them.
    pub packed: BTreeMap<String, u64>,
}

/// The name of what was packed itself.
pub(super) const UNPACKED: &str = "none";

/// A field as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    name: String,
    sort: Sort,
    kind: String,
    measures: Vec<measure::Stored>,
    hll: String,
    theta: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ints: Option<BTreeMap<i64, u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    texts: Option<BTreeMap<String, u64>>,
    beyond: bool,
    most: usize,
    histograms: Vec<Vec<u64>>,
    channels: Vec<measure::Stored>,
    exact: Exact,
    missing: u64,
    scaled: Option<Scaled>,
    packed: BTreeMap<String, u64>,
}

impl Field {
    /// One of `fields` of its sort.
    pub(super) fn new(watched: &Watched, fields: usize) -> Result<Self> {
        let (name, kind) = (watched.name.clone(), watched.kind.to_owned());
        let measures = watched.sort.measures().iter().map(|_| Measure::new());
        Ok(Self {
            name,
            sort: watched.sort,
            kind,
            measures: measures.collect::<Result<_>>()?,
            distinct: Hll::new(LG_K).map_err(sketch)?,
            contents: Theta::new(LG_K).map_err(sketch)?,
            tally: Tally { most: Self::most(watched.sort, fields), ..Tally::default() },
            histograms: Vec::new(),
            channels: Vec::new(),
            exact: Exact::default(),
            missing: 0,
            scaled: watched.scaled,
            packed: BTreeMap::new(),
        })
    }

    fn most(sort: Sort, fields: usize) -> usize {
        match sort {
            Sort::Int => (INTS / fields).clamp(LEAST, MOST),
            Sort::Text => (TEXTS / fields).clamp(LEAST, MOST),
            // Formats, shapes.
            _ => LEAST,
        }
    }

    /// How many values differ: exactly where all are told, else an estimate with the bounds of three standard deviations.
    ///
    /// # Errors
    /// None that is known.
    pub fn differ(&self) -> Result<Estimate> {
        if matches!(self.sort, Sort::Int | Sort::Text) && !self.tally.beyond {
            let exact = self.tally.counts.len() as f64;
            return Ok(Estimate { value: exact, low: exact, high: exact });
        }
        self.distinct.estimate(3).map_err(sketch)
    }

    /// The measure of this name, if its sort has it.
    #[must_use]
    pub fn measure(&self, name: &str) -> Option<&Measure> {
        let at = self.sort.measures().iter().position(|&own| own == name)?;
        self.measures.get(at)
    }

    /// Takes what was noted of some samples, in their order.
    pub(super) fn add(&mut self, notes: Vec<Seen>) -> Result<()> {
        let (mut ints, mut floats, mut contents) = (Vec::new(), Vec::new(), Vec::new());
        for seen in notes {
            match seen {
                Seen::Missing => self.missing += 1,
                Seen::Int(value) => ints.push(value),
                Seen::Float(value) => floats.push(value),
                Seen::Content(content) => contents.push(*content),
            }
        }
        match self.sort {
            Sort::Int => self.add_ints(ints),
            Sort::Float => self.add_floats(&floats),
            _ => self.add_contents(contents)?,
        }
        Ok(())
    }

    fn tell(&mut self, key: u64) {
        let key = key.into();
        self.distinct.add(&key);
        self.contents.add(&key);
    }

    fn add_ints(&mut self, mut values: Vec<i64>) {
        self.measures[0].add(&values.iter().map(|&x| x as f64).collect::<Vec<_>>());
        values.iter().for_each(|&value| self.tell(value.cast_unsigned()));
        if !self.tally.beyond {
            values.sort_unstable();
            values
                .chunk_by(|a, b| a == b)
                .for_each(|alike| self.tally.add(Label::Int(alike[0]), alike.len() as u64));
        }
    }

    fn add_floats(&mut self, values: &[f64]) {
        self.measures[0].add(values);
        self.exact.look(values);
        values.iter().for_each(|&value| self.tell(float_key(value)));
    }

    fn add_contents(&mut self, mut notes: Vec<Content>) -> Result<()> {
        if !matches!(self.sort, Sort::Bytes | Sort::Mask) {
            self.tally.add_all(notes.iter_mut().map(|seen| seen.label.take()));
        }
        // Of an array all values have their moments, and some their place in the order.
        let of_values = self.measures.len() - usize::from(self.sort == Sort::Array);
        for (m, measure) in self.measures[..of_values].iter_mut().enumerate() {
            measure.add(&notes.iter().map(|seen| seen.numbers[m]).collect::<Vec<_>>());
        }
        for seen in notes {
            self.exact.merge(&seen.exact);
            self.tell(seen.key);
            self.count(&seen.bytes);
            if self.sort == Sort::Array {
                self.measures[of_values].add_some(&seen.sampled);
                self.measures[of_values].add_moments(&seen.moments[0])?;
                continue;
            }
            while self.channels.len() < seen.moments.len() {
                self.channels.push(Measure::new()?);
            }
            for (channel, moments) in self.channels.iter_mut().zip(&seen.moments) {
                channel.add_moments(moments)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: &Bytes) {
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

    /// Takes what is known of the same field, by name and sort, of other data.
    pub(super) fn merge(&mut self, other: &Self) -> Result<()> {
        for (one, other) in self.measures.iter_mut().zip(&other.measures) {
            one.merge(other)?;
        }
        self.distinct.merge(&other.distinct).map_err(sketch)?;
        self.contents.merge(&other.contents).map_err(sketch)?;
        self.tally.most = self.tally.most.min(other.tally.most);
        if other.tally.beyond {
            self.tally.give_up();
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
        if self.scaled != other.scaled {
            // What is merged of them would be neither's.
            (self.scaled, self.channels) = (None, Vec::new());
        }
        for (codec, bytes) in &other.packed {
            *self.packed.entry(codec.clone()).or_default() += bytes;
        }
        Ok(())
    }

    /// What it takes at most, in bytes.
    pub(super) fn most_bytes(&self) -> u64 {
        let channels = if self.sort == Sort::Picture { 3 } else { 0 };
        let measures = (self.measures.len() + channels) as u64 * Measure::MOST_BYTES;
        let each = if self.sort == Sort::Int { INT_BYTES } else { TEXT_BYTES };
        let tables = 3 * size_of::<Histogram>() + size_of::<Self>() + each * self.tally.most;
        measures + self.distinct.size_bytes() + self.contents.size_bytes() + tables as u64
    }

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
            sort: self.sort,
            kind: self.kind.clone(),
            measures: self.measures.iter().map(Measure::store).collect(),
            hll: base64(&self.distinct.to_bytes()),
            theta: base64(&self.contents.to_bytes().map_err(sketch)?),
            ints: (!ints.is_empty()).then_some(ints),
            texts: (!texts.is_empty()).then_some(texts),
            beyond: self.tally.beyond,
            most: self.tally.most,
            histograms: self.histograms.iter().map(|table| table.to_vec()).collect(),
            channels: self.channels.iter().map(Measure::store).collect(),
            exact: self.exact,
            missing: self.missing,
            scaled: self.scaled,
            packed: self.packed.clone(),
        })
    }

    pub(super) fn load(stored: Stored) -> Result<Self> {
        let wrong = |what: &str| Error::Config(format!("field {:?} of this profile has {what}", stored.name));
        if stored.measures.len() != stored.sort.measures().len() {
            return Err(wrong("another number of measures than its sort"));
        }
        let ints = stored.ints.unwrap_or_default().into_iter().map(|(value, n)| (Label::Int(value), n));
        let texts =
            stored.texts.unwrap_or_default().into_iter().map(|(text, n)| (Label::Text(text.into()), n));
        let table = |counts: &Vec<u64>| {
            Histogram::try_from(&counts[..]).map_err(|_| wrong("a histogram of another length than 256"))
        };
        let measures =
            |stored: &[measure::Stored]| stored.iter().map(Measure::load).collect::<Result<Vec<_>>>();
        Ok(Self {
            measures: measures(&stored.measures)?,
            distinct: Hll::from_bytes(&bytes_of(&stored.hll)?).map_err(broken)?,
            contents: Theta::from_bytes(&bytes_of(&stored.theta)?, LG_K).map_err(broken)?,
            tally: Tally { counts: ints.chain(texts).collect(), beyond: stored.beyond, most: stored.most },
            histograms: stored.histograms.iter().map(table).collect::<Result<_>>()?,
            channels: measures(&stored.channels)?,
            exact: stored.exact,
            missing: stored.missing,
            scaled: stored.scaled,
            packed: stored.packed,
            sort: stored.sort,
            kind: stored.kind,
            name: stored.name,
        })
    }
}
