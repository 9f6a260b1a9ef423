//! Advice from a field's profile: normalization, class weights, smaller types, codecs, padding.
//!
//! Flow: [`Field`] -> [`Advice`].
//! Memory: a table of 512 lengths while bucket edges are searched.

use std::collections::BTreeMap;

use serde::Serialize;

use super::column_note::{Histogram, Label, ValueKind};
use super::field::{Field, UNPACKED};
use super::measure::Measure;
use crate::{Error, Result};

/// Quantiles that represent all lengths, at equal steps of rank.
const STEPS: usize = 512;
/// The batch size and the number of buckets that the advice on padding assumes.
const BATCH: u32 = 32;
const BUCKETS: usize = 8;
/// The smallest gain for which a codec is advised.
const MIN_GAIN: f64 = 1.2;
/// 2^63.
const TWO_POW_63: f64 = 9_223_372_036_854_775_808.0;
/// The most classes whose weights a summary lists.
const MAX_CLASSES: usize = 1000;

/// Quantization to eight bits: (x - `zero`) / `scale`, rounded, from 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantized {
    /// The width of a step.
    pub scale: f64,
    /// The number that becomes 0.
    pub zero: f64,
    /// Signal to noise in decibels: the variance of the numbers over that of the error, if errors
    /// are uniform within a step.
    pub signal_to_noise_db: f64,
}

/// What padding wastes, as fractions of a batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Padding {
    /// The padding in a batch of 32 random samples, each padded to the longest.
    pub waste: f64,
    /// The bucket ends that pad least; the last one is the longest length.
    pub edges: Vec<f64>,
    /// The padding if each sample is padded to the end of its bucket.
    pub waste_in_buckets: f64,
}

/// What a field's profile suggests for training.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Advice {
    /// Means to subtract; of an image those of R, G, B in \[0, 1\].
    pub mean: Option<Vec<f64>>,
    /// Standard deviations to divide by.
    pub std: Option<Vec<f64>>,
    /// The weight of each class with which all classes count the same.
    pub class_weights: Option<BTreeMap<String, f64>>,
    /// The smallest type that holds all values exactly.
    pub dtype: Option<&'static str>,
    /// Quantization to eight bits, which is lossy.
    pub quantized: Option<Quantized>,
    /// (codec, uncompressed over compressed bytes), each sample compressed alone.
    pub codec: Option<(String, f64)>,
    /// The type and the shape, if all arrays have the same.
    pub array: Option<(String, Vec<usize>)>,
    /// Padding of texts (in characters) and of arrays (along their first axis).
    pub padding: Option<Padding>,
}

impl Advice {
    /// The advice for a field.
    #[must_use]
    pub fn new(field: &Field) -> Self {
        let (mean, std) = field.normalization().map_or((None, None), |(mean, std)| (Some(mean), Some(std)));
        // Values that hardly repeat are not classes.
        let few = field.tally.counts.len().min(MAX_CLASSES) as u64 * 2 <= field.tally.total();
        let labels = matches!(field.value_kind, ValueKind::Int | ValueKind::Text)
            && few
            && field.tally.counts.len() <= MAX_CLASSES;
        let weights = if labels { field.class_weights(None).ok() } else { None };
        Self {
            mean,
            std,
            class_weights: weights.map(|w| w.into_iter().map(|(label, x)| (label.to_string(), x)).collect()),
            dtype: field.dtype(),
            quantized: field.quantized(),
            codec: field.codec(),
            array: field.array(),
            padding: field.lengths().and_then(|lengths| padding(lengths, BATCH, BUCKETS)),
        }
    }
}

fn mean_std_of(measure: &Measure) -> Option<(f64, f64)> {
    let all = measure.moments.summary();
    (all.count > 0).then(|| (all.mean, all.std(0)))
}

/// Mean and standard deviation of bytes.
fn mean_std(counts: &Histogram) -> Option<(f64, f64)> {
    let sums =
        counts.iter().zip(0u128..).fold((0u128, 0u128, 0u128), |(n, sum, squares), (&count, value)| {
            let count = u128::from(count);
            (n + count, sum + count * value, squares + count * value * value)
        });
    let (n, sum, squares) = sums;
    // In integers, because the difference cancels most digits.
    let squared = (n * squares - sum * sum) as f64;
    (n > 0).then(|| (sum as f64 / n as f64, squared.sqrt() / n as f64))
}

fn entropy(counts: impl Iterator<Item = u64> + Clone) -> Option<f64> {
    let n = counts.clone().sum::<u64>() as f64;
    let bits = counts.filter(|&c| c > 0).map(|c| c as f64 / n).map(|p| -p * p.log2());
    (n > 0.0).then(|| bits.sum())
}

impl Field {
    /// Entropies in bits (Shannon, 1948): of a byte without its context, of each channel of an
    /// image, and of a label.
    #[must_use]
    pub fn entropies(&self) -> Vec<f64> {
        let labels =
            matches!(self.value_kind, ValueKind::Int).then(|| entropy(self.tally.counts.values().copied()));
        let tables = self.histograms.iter().map(|table| entropy(table.iter().copied()));
        labels.into_iter().chain(tables).flatten().collect()
    }

    /// Means and standard deviations to normalize by: of an image for each channel in \[0, 1\], of
    /// numbers one. The standard deviation is 1 for values that never vary.
    #[must_use]
    pub fn normalization(&self) -> Option<(Vec<f64>, Vec<f64>)> {
        let found: Option<Vec<(f64, f64)>> = match self.value_kind {
            ValueKind::Image if !self.histograms.is_empty() => {
                let tables = self.histograms.iter().map(mean_std);
                tables.map(|level| level.map(|(mean, std)| (mean / 255.0, std / 255.0))).collect()
            }
            // Undo the normalization that the channels were delivered with.
            ValueKind::Image => {
                self.normalized_by.filter(|_| self.channels.len() == 3).and_then(|(mean, std)| {
                    let channels = self.channels.iter().zip(mean).zip(std);
                    let before = |((channel, mean), std)| {
                        mean_std_of(channel).map(|(m, s): (f64, f64)| (m * std + mean, s * std))
                    };
                    channels.map(before).collect()
                })
            }
            ValueKind::Float | ValueKind::Array => {
                self.measures.last().map(mean_std_of).map(|found| found.map(|f| vec![f]))?
            }
            _ => None,
        };
        // Values that never vary are not divided by zero.
        let divisor = |std: f64| if std > 0.0 { std } else { 1.0 };
        found.map(|found| found.into_iter().map(|(mean, std)| (mean, divisor(std))).unzip())
    }

    /// The weight of each class: n / (k n_c). With `beta` in \[0, 1) it is by the effective number
    /// of samples (Cui et al., «Class-balanced loss», 2019), scaled to the same sum.
    ///
    /// # Errors
    /// [`Error::Config`] for a field without classes, and for a `beta` outside \[0, 1).
    pub fn class_weights(&self, beta: Option<f64>) -> Result<Vec<(Label, f64)>> {
        let wrong = |what: String| Err(Error::Config(format!("field {:?} {what}", self.name)));
        if !matches!(self.value_kind, ValueKind::Int | ValueKind::Text) {
            return wrong("has no classes: it holds neither whole numbers nor text".into());
        }
        if self.tally.overflowed || self.tally.counts.is_empty() {
            return wrong("has no classes: it has too many values, or none".into());
        }
        if let Some(beta) = beta.filter(|beta| !(0.0..1.0).contains(beta)) {
            return wrong(format!("takes a beta in [0, 1), not {beta}"));
        }
        let effective = |n: u64| match beta {
            Some(beta) if beta > 0.0 => (1.0 - beta.powf(n as f64)) / (1.0 - beta),
            Some(_) => 1.0,
            None => n as f64,
        };
        let inverse: Vec<f64> = self.tally.counts.values().map(|&n| 1.0 / effective(n)).collect();
        // The mean weight over samples is 1.
        let weighed = inverse.iter().zip(self.tally.counts.values()).map(|(w, &n)| w * n as f64);
        let scale = self.tally.total() as f64 / weighed.sum::<f64>();
        Ok(self.tally.counts.keys().cloned().zip(inverse.into_iter().map(|w| w * scale)).collect())
    }

    /// The measure of lengths, for a field that batches pad.
    #[must_use]
    pub fn lengths(&self) -> Option<&Measure> {
        match self.value_kind {
            ValueKind::Text => self.measure("characters"),
            ValueKind::Array => self.measure("length"),
            _ => None,
        }
    }

    fn dtype(&self) -> Option<&'static str> {
        let values = self.measure("value")?.moments.summary();
        let (low, high) = (values.min, values.max);
        if values.count == 0 {
            return None;
        }
        let all_whole = match self.value_kind {
            ValueKind::Int => true,
            _ => self.exact.whole && values.nan + values.infinite == 0,
        };
        let fits = |least: f64, most: f64| all_whole && least <= low && high <= most;
        let types = [
            ("uint8", 0.0, 255.0),
            ("int8", -128.0, 127.0),
            ("uint16", 0.0, 65_535.0),
            ("int16", -32_768.0, 32_767.0),
            ("uint32", 0.0, 4_294_967_295.0),
            ("int32", -2_147_483_648.0, 2_147_483_647.0),
        ];
        let whole = types.into_iter().find(|&(_, least, most)| fits(least, most));
        match (whole, self.value_kind) {
            (Some((name, ..)), _) => Some(name),
            (None, ValueKind::Int) => Some("int64"),
            _ if self.exact.half => Some("float16"),
            _ if self.exact.single => Some("float32"),
            _ if fits(-TWO_POW_63, TWO_POW_63.next_down()) => Some("int64"),
            _ if fits(0.0, (2.0 * TWO_POW_63).next_down()) => Some("uint64"),
            _ => Some("float64"),
        }
    }

    fn quantized(&self) -> Option<Quantized> {
        if !matches!(self.value_kind, ValueKind::Float | ValueKind::Array) {
            return None;
        }
        let values = self.measure("value")?;
        // From the smallest to the largest value: nothing is clipped.
        let all = values.moments.summary();
        let (zero, scale, variance) = (all.min, (all.max - all.min) / 255.0, all.variance(0));
        (scale > 0.0 && scale.is_finite() && variance > 0.0).then(|| Quantized {
            scale,
            zero,
            signal_to_noise_db: 10.0 * (12.0 * variance / (scale * scale)).log10(),
        })
    }

    fn codec(&self) -> Option<(String, f64)> {
        let all = *self.packed.get(UNPACKED)? as f64;
        let gains = self.packed.iter().map(|(codec, &bytes)| (codec, all / bytes as f64));
        let best = gains.max_by(|a, b| a.1.total_cmp(&b.1))?;
        (best.1 >= MIN_GAIN).then(|| (best.0.clone(), best.1))
    }

    fn array(&self) -> Option<(String, Vec<usize>)> {
        let only = (self.value_kind == ValueKind::Array && self.tally.counts.len() == 1)
            .then(|| self.tally.counts.keys().next());
        let Some(Label::Text(words)) = only.flatten() else { return None };
        let (dtype, shape) = words.strip_suffix(']')?.split_once(" [")?;
        let axes = shape.split(", ").filter(|n| !n.is_empty()).map(|n| n.parse().ok());
        Some((dtype.to_owned(), axes.collect::<Option<_>>()?))
    }
}

/// What padding wastes in batches of `batch` random samples, and with `buckets` buckets.
#[must_use]
pub fn padding(lengths: &Measure, batch: u32, buckets: usize) -> Option<Padding> {
    let all = lengths.moments.summary();
    let ranks: Vec<f64> = (1..=STEPS).map(|i| i as f64 / STEPS as f64).collect();
    let mut table = lengths.quantiles(&ranks);
    *table.last_mut()? = all.max;
    // The tail is from another sketch, whose values may be a little lower.
    (1..STEPS).for_each(|i| table[i] = table[i].max(table[i - 1]));
    if all.count == 0 || all.mean <= 0.0 {
        return None;
    }
    // The rank of the longest of `batch` samples, to the power `batch`, is uniform.
    let longest: f64 = (0..STEPS)
        .map(|i| {
            let power = |i: usize| (i as f64 / STEPS as f64).powf(f64::from(batch));
            table[i] * (power(i + 1) - power(i))
        })
        .sum();
    let edges = edges(&table, buckets);
    let mean: f64 = table.iter().sum::<f64>() / STEPS as f64;
    let padded: f64 = table.iter().map(|&x| edges.iter().copied().find(|&e| x <= e).unwrap_or(x)).sum();
    Some(Padding {
        waste: (1.0 - all.mean / longest.max(all.mean)).max(0.0),
        waste_in_buckets: (1.0 - mean * STEPS as f64 / padded).max(0.0),
        edges,
    })
}

/// The bucket ends that pad an ascending table of lengths least, found by dynamic programming.
fn edges(table: &[f64], buckets: usize) -> Vec<f64> {
    let n = table.len();
    // cost[b][i]: of the first i lengths in b buckets; from[b][i]: where the last bucket begins.
    let mut cost = vec![(0..=n).map(|i| if i == 0 { 0.0 } else { f64::INFINITY }).collect::<Vec<_>>()];
    let mut from = Vec::new();
    for b in 0..buckets.clamp(1, n) {
        let best = |i: usize| {
            let begins = (0..i).map(|j| (cost[b][j] + (i - j) as f64 * table[i - 1], j));
            begins.min_by(|x, y| x.0.total_cmp(&y.0)).unwrap_or((cost[b][0], 0))
        };
        let (costs, begins): (Vec<f64>, Vec<usize>) = (0..=n).map(best).unzip();
        cost.push(costs);
        from.push(begins);
    }
    let mut ends = Vec::new();
    let mut i = n;
    for begins in from.iter().rev() {
        if i > 0 {
            ends.push(table[i - 1]);
            i = begins[i];
        }
    }
    ends.reverse();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_the_best_there_are() {
        assert_eq!(edges(&[1.0, 1.0, 1.0, 9.0, 9.0, 50.0], 3), [1.0, 9.0, 50.0]);
        assert_eq!(edges(&[1.0, 2.0, 3.0], 1), [3.0]);
        assert_eq!(edges(&[5.0, 5.0], 8), [5.0]);
    }

    #[test]
    fn padding_is_what_batches_would_waste() {
        let mut lengths = Measure::new().unwrap();
        lengths.add(&(0..10_000).map(|i| f64::from(i % 100 + 1)).collect::<Vec<_>>());
        let found = padding(&lengths, 32, 4).unwrap();
        // The longest of 32 even draws from 1 to 100 is 97.4 on average, their mean 50.5.
        assert!((found.waste - (1.0 - 50.5 / 97.4)).abs() < 0.02, "{found:?}");
        assert!((found.waste_in_buckets - (1.0 - 50.5 / 62.5)).abs() < 0.02, "{found:?}");
        assert_eq!(found.edges.len(), 4);
        assert_eq!(padding(&Measure::new().unwrap(), 32, 4), None);
    }

    #[test]
    fn the_spread_of_bytes_is_exact() {
        let mut counts = [0u64; 256];
        (counts[0], counts[255]) = (1 << 40, 1 << 40);
        assert_eq!(mean_std(&counts), Some((127.5, 127.5)));
        assert_eq!(mean_std(&[0; 256]), None);
        assert_eq!(entropy([4u64, 4, 0].into_iter()), Some(1.0));
    }
}
