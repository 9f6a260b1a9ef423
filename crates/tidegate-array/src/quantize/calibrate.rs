//! Calibration: the range that the grid of each group covers.
//!
//! Flow: values, all at once or as a stream -> their minimum and maximum, or a histogram ->
//! [`Grid`]s.
//! Memory: 8 bytes per group ([`Extent::Whole`]), or a histogram of 128 KiB per group
//! ([`Extent::Best`]).
//!
//! A histogram's bins are a power of two wide, as narrow as the largest value allows; it merges
//! bins in pairs when a larger value arrives. So it does not depend on the order of the values.
//! The search for the best range moves one end at a time, first over a fixed set of positions and
//! then between the best one and its neighbours.

use super::{Grid, Groups, Scheme};
use crate::kernels::convert::rounded;
use crate::kernels::grid::ends;
use crate::{Error, Result};

/// The range that a grid covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// From the minimum to the maximum.
    Whole,
    /// The range with the least mean square error: rare values far out are clipped.
    Best,
}

/// Bins on each side of 0.
const SIDE: i64 = 4096;
/// The smallest exponent of a bin width that an f32 can need.
const LEAST: i32 = -149 - 12;
/// Positions tried for an end of the range, golden-section steps between neighbours, and rounds
/// over both ends.
const TRIED: usize = 24;
const HALVINGS: usize = 16;
const ROUNDS: usize = 3;

/// A value and its count.
type Point = (f32, f64);

#[derive(Debug, Clone)]
struct Histogram {
    /// Bins are 2^exponent wide.
    exponent: i32,
    counts: Vec<u64>,
    sums: Vec<f64>,
}

impl Histogram {
    /// # Errors
    /// [`Error::Value`] if the allocation fails.
    fn new() -> Result<Self> {
        let bins = Some(2 * SIDE as usize);
        Ok(Self { exponent: LEAST, counts: crate::filled(bins, 0)?, sums: crate::filled(bins, 0.0)? })
    }

    fn clear(&mut self) {
        self.exponent = LEAST;
        self.counts.fill(0);
        self.sums.fill(0.0);
    }

    /// Merges bins until a value this large has one.
    fn grow(&mut self, largest: f64) {
        let bins = largest / SIDE as f64;
        // The next power of two above.
        let exponent = if bins > 0.0 { (bins.log2().floor() as i32 + 1).max(LEAST) } else { LEAST };
        let exponent = if largest >= SIDE as f64 * 2f64.powi(exponent) { exponent + 1 } else { exponent };
        if exponent <= self.exponent {
            return;
        }
        let by = (exponent - self.exponent).min(62);
        let (counts, sums) = (self.counts.clone(), self.sums.clone());
        self.clear();
        self.exponent = exponent;
        for (bin, (count, sum)) in
            counts.into_iter().zip(sums).enumerate().filter(|(_, (count, _))| *count > 0)
        {
            let into = (((bin as i64 - SIDE) >> by) + SIDE) as usize;
            self.counts[into] += count;
            self.sums[into] += sum;
        }
    }

    fn add(&mut self, values: &[f32]) {
        self.grow(values.iter().fold(0.0f32, |most, value| most.max(value.abs())).into());
        let scale = 2f64.powi(-self.exponent);
        for value in values {
            let value = f64::from(*value);
            let bin = ((value * scale).floor() as i64 + SIDE) as usize;
            self.counts[bin] += 1;
            self.sums[bin] += value;
        }
    }

    fn points(&self) -> Vec<Point> {
        let bins = self.counts.iter().zip(&self.sums).filter(|(count, _)| **count > 0);
        bins.map(|(count, sum)| ((sum / *count as f64) as f32, *count as f64)).collect()
    }
}

/// The minimum and maximum of some values.
#[derive(Debug, Clone, Copy)]
struct Ends {
    low: f32,
    high: f32,
}

impl Ends {
    const NONE: Self = Self { low: f32::INFINITY, high: f32::NEG_INFINITY };

    /// # Errors
    /// [`Error::Value`] for a value that is not finite; `first` is the index of the first value,
    /// for the message.
    fn add(&mut self, values: &[f32], first: usize) -> Result<()> {
        let (low, high, finite) = ends(values, (self.low, self.high));
        if !finite {
            let at = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            return Err(Error::value(format!(
                "value {} is {}, which no range can hold: replace or cut such values first",
                first + at,
                values[at]
            )));
        }
        *self = Self { low, high };
        Ok(())
    }

    fn grid(self, bits: u32, scheme: Scheme) -> Result<Grid> {
        // Without values there is no range.
        if self.low > self.high {
            Grid::over(0.0, 0.0, bits, scheme)
        } else {
            Grid::over(self.low, self.high, bits, scheme)
        }
    }
}

/// The grid of each group of values.
pub(super) fn grids(
    values: &[f32],
    groups: Groups,
    bits: u32,
    scheme: Scheme,
    extent: Extent,
) -> Result<Vec<Grid>> {
    let mut ends = vec![Ends::NONE; groups.count];
    for (run, group) in groups.runs(0..values.len()) {
        ends[group].add(&values[run.clone()], run.start)?;
    }
    if extent == Extent::Whole {
        return ends.iter().map(|ends| ends.grid(bits, scheme)).collect();
    }
    let mut histogram = Histogram::new()?;
    let runs = |group: usize| values.chunks(groups.inner).skip(group).step_by(groups.count);
    let grid = |(group, ends): (usize, &Ends)| {
        let few = runs(group).map(<[f32]>::len).sum::<usize>() <= SIDE as usize;
        let points = if few {
            runs(group).flatten().map(|&value| (value, 1.0)).collect()
        } else {
            histogram.clear();
            runs(group).for_each(|run| histogram.add(run));
            histogram.points()
        };
        best(&points, *ends, bits, scheme)
    };
    ends.iter().enumerate().map(grid).collect()
}

/// The mean square error times the number of values.
fn cost(points: &[Point], grid: &Grid, codes: (f32, f32)) -> f64 {
    let line = grid.line(codes);
    let error = |&(value, count): &Point| {
        let error = f64::from(line.value(rounded(line.place(value)) + line.zero)) - f64::from(value);
        error * error * count
    };
    points.iter().map(error).sum()
}

/// The grid with the least error: optimizes each end in turn while the other is fixed.
fn best(points: &[Point], ends: Ends, bits: u32, scheme: Scheme) -> Result<Grid> {
    let whole = ends.grid(bits, scheme)?;
    if whole.scale == 0.0 {
        return Ok(whole);
    }
    let codes = scheme.codes(bits);
    let count: f64 = points.iter().map(|(_, count)| count).sum();
    let mean = (points.iter().map(|&(value, count)| f64::from(value) * count).sum::<f64>() / count) as f32;
    // An end moves between its outermost position and the position at which the range would be
    // empty.
    let (mut low, mut high, middle) = match scheme {
        Scheme::Offset => (ends.low, ends.high, mean.clamp(ends.low, ends.high)),
        Scheme::Affine => (ends.low.min(0.0), ends.high.max(0.0), 0.0),
        Scheme::Symmetric => {
            let most = ends.high.abs().max(ends.low.abs());
            (-most, most, 0.0)
        }
    };
    let (least, most) = (low, high);
    let (mut found, mut found_cost) = (whole, cost(points, &whole, codes));
    for _ in 0..ROUNDS {
        for lower in [false, true] {
            if scheme == Scheme::Symmetric && lower {
                continue;
            }
            let outer = if lower { least } else { most };
            let over = |share: f64| {
                let end = (f64::from(middle) + share * (f64::from(outer) - f64::from(middle))) as f32;
                match (scheme, lower) {
                    (Scheme::Symmetric, _) => (-end, end),
                    (_, true) => (end, high),
                    (_, false) => (low, end),
                }
            };
            let evaluate = |share: f64| {
                let (low, high) = over(share);
                Grid::over(low, high, bits, scheme).map(|grid| (cost(points, &grid, codes), grid))
            };
            let share = least_share(&|share| Ok(evaluate(share)?.0))?;
            let (this, grid) = evaluate(share)?;
            if this < found_cost {
                (found, found_cost) = (grid, this);
                (low, high) = over(share);
            }
        }
    }
    Ok(found)
}

/// Where in (0, 1] a cost is least: the best of a fixed set of positions, refined between its
/// neighbours by golden-section search.
fn least_share(cost: &dyn Fn(f64) -> Result<f64>) -> Result<f64> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let step = 1.0 / TRIED as f64;
    let mut tried = (1.0, f64::INFINITY);
    for i in 1..=TRIED {
        let share = i as f64 * step;
        let this = cost(share)?;
        if this < tried.1 {
            tried = (share, this);
        }
    }
    let (mut low, mut high) = ((tried.0 - step).max(step / 8.0), (tried.0 + step).min(1.0));
    for _ in 0..HALVINGS {
        let (a, b) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
        if cost(a)? < cost(b)? { high = b } else { low = a }
    }
    let middle = (low + high) / 2.0;
    Ok(if cost(middle)? < tried.1 { middle } else { tried.0 })
}

/// Observes values as they pass and computes grids for them.
///
/// ```
/// use tidegate_array::quantize::{Calibrator, Extent, Scheme};
/// let mut seen = Calibrator::new(8, Scheme::Affine, Extent::Whole, 2)?;
/// seen.observe(&[0.0, 1.0, 2.0, -8.0], 1)?; // channels take turns
/// seen.observe(&[4.0, 2.0], 1)?;
/// assert_eq!(seen.grids()?[0].value(255.0), 4.0);
/// # Ok::<(), tidegate_array::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Calibrator {
    bits: u32,
    scheme: Scheme,
    ends: Vec<Ends>,
    /// One per channel, or none.
    histograms: Vec<Histogram>,
}

impl Calibrator {
    /// A calibrator for this many channels.
    ///
    /// # Errors
    /// [`Error::Option`] if `bits` is not 2 to 8, or there are no channels.
    pub fn new(bits: u32, scheme: Scheme, extent: Extent, channels: usize) -> Result<Self> {
        super::checked(&[], &[0], bits, super::Per::Tensor)?;
        if channels == 0 {
            return Err(Error::option("a calibrator of no channels: give 1 for whole tensors"));
        }
        let ends = crate::filled(Some(channels), Ends::NONE)?;
        let histograms = if extent == Extent::Best { channels } else { 0 };
        let histograms = (0..histograms).map(|_| Histogram::new()).collect::<Result<_>>()?;
        Ok(Self { bits, scheme, ends, histograms })
    }

    /// Observes more values, in runs of `inner` values per channel.
    ///
    /// # Errors
    /// [`Error::Value`] for NaN and infinities, and if the values are not a whole number of runs
    /// for all channels.
    pub fn observe(&mut self, values: &[f32], inner: usize) -> Result<()> {
        let groups = Groups { inner: inner.max(1), count: self.ends.len() };
        if groups.count > 1 && !values.len().is_multiple_of(groups.inner * groups.count) {
            return Err(Error::value(format!(
                "{} values are no whole number of {} runs of {inner}",
                values.len(),
                groups.count
            )));
        }
        // Checked before any state changes.
        let mut ends = self.ends.clone();
        for (run, group) in groups.runs(0..values.len()) {
            ends[group].add(&values[run.clone()], run.start)?;
        }
        self.ends = ends;
        for (run, group) in groups.runs(0..values.len()) {
            if let Some(histogram) = self.histograms.get_mut(group) {
                histogram.add(&values[run]);
            }
        }
        Ok(())
    }

    /// The grids of the observed values.
    ///
    /// # Errors
    /// [`Error::Value`] for a channel without values, or whose range f32 cannot represent.
    pub fn grids(&self) -> Result<Vec<Grid>> {
        let grid = |(channel, ends): (usize, &Ends)| {
            if ends.low > ends.high {
                return Err(Error::value(format!(
                    "nothing was observed of channel {channel}: observe values first"
                )));
            }
            match self.histograms.get(channel) {
                Some(histogram) => best(&histogram.points(), *ends, self.bits, self.scheme),
                None => ends.grid(self.bits, self.scheme),
            }
        };
        self.ends.iter().enumerate().map(grid).collect()
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.ends.len() as u64 * 8 + self.histograms.len() as u64 * (2 * SIDE as u64 * 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_does_not_depend_on_the_order_of_values() {
        let values: Vec<f32> =
            (0..5000).map(|i| ((i * 7919 % 5003) as f32 - 2000.0) * 1e-3).chain([3e7, -1e-40, 0.0]).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        let of = |values: &[f32], piece: usize| {
            let mut histogram = Histogram::new().unwrap();
            values.chunks(piece).for_each(|piece| histogram.add(piece));
            (histogram.exponent, histogram.counts)
        };
        assert_eq!(of(&values, 1), of(&sorted, 5003));
        assert_eq!(of(&values[..100], 3), of(&values[..100], 100));
        for (largest, exponent) in [(4095.9, 0), (4096.0, 1), (1.0, -11), (f64::from(f32::MAX), 116)] {
            let mut histogram = Histogram::new().unwrap();
            histogram.grow(largest);
            assert_eq!(histogram.exponent, exponent, "{largest}");
        }
    }
}
