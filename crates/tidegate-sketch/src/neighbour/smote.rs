//! Synthetic rows of a rare class, between existing ones: SMOTE.
//!
//! Flow: rows of features -> [`Smote`] -> the n-th synthetic row, as a function of (seed, n).
//! Memory: the rows and their tree ([`Points`]), and four bytes per neighbour.
//!
//! Draws a row, one of its k nearest, and a point on the line between them (Chawla et al., «SMOTE:
//! synthetic minority over-sampling technique», 2002). It is meant for features, not for images: a
//! point between two images is not an image.

use super::points::Points;
use crate::{Error, Result};
use tidegate_core::hash::{GOLDEN, splitmix64_finalize};

/// A generator of synthetic rows.
///
/// ```
/// use tidegate_sketch::neighbour::smote::Smote;
/// let smote = Smote::new(vec![0.0, 0.0, 1.0, 1.0, 9.0, 9.0], 2, 1, 7)?;
/// let row = smote.row(3);
/// assert!(row[0] == row[1] && (0.0..=9.0).contains(&row[0]));
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug)]
pub struct Smote {
    points: Points,
    /// The k nearest other points of each point.
    near: Vec<u32>,
    k: usize,
    seed: u64,
}

impl Smote {
    /// A generator from the rows of one class, with `features` numbers each, and their `k` nearest
    /// rows.
    ///
    /// # Errors
    /// As [`Points::new`]; also [`Error::Parameter`] if k is 0 or not less than the number of
    /// rows.
    pub fn new(rows: Vec<f64>, features: usize, k: usize, seed: u64) -> Result<Self> {
        let points = Points::new(rows, features)?;
        if k == 0 || k >= points.len() {
            let expected =
                format!("it must be at least 1 and less than the {} rows of the class", points.len());
            return Err(Error::parameter("k", k, expected));
        }
        let mut near = Vec::with_capacity(k * points.len());
        for id in 0..points.len() as u64 {
            // The point itself is among them, or as many equal points.
            let found = points.nearest(points.row(id), k + 1)?;
            near.extend(
                found.iter().map(|n| n.id).filter(|&other| other != id).take(k).map(|other| other as u32),
            );
        }
        Ok(Self { points, near, k, seed })
    }

    /// The n-th synthetic row.
    #[must_use]
    pub fn row(&self, n: u64) -> Vec<f64> {
        let word = |draw: u64| {
            splitmix64_finalize(splitmix64_finalize(self.seed ^ draw).wrapping_add(n.wrapping_mul(GOLDEN)))
        };
        let below = |draw: u64, most: usize| ((u128::from(word(draw)) * most as u128) >> 64) as usize;
        let row = below(1, self.points.len());
        let other = self.near[row * self.k + below(2, self.k)];
        let part = (word(3) >> 11) as f64 / (1u64 << 53) as f64;
        let (from, to) = (self.points.row(row as u64), self.points.row(u64::from(other)));
        from.iter().zip(to).map(|(a, b)| a + part * (b - a)).collect()
    }

    /// Features per row.
    #[must_use]
    pub fn features(&self) -> usize {
        self.points.row(0).len()
    }

    /// Approximate memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.points.size_bytes() + 4 * self.near.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// Each synthetic row is between a row and one of its k nearest, and all rows are used evenly.
    #[test]
    fn rows_are_between_neighbours() {
        for features in [2, 12] {
            let mut draws = Draws::new(features as u64);
            let rows: Vec<f64> = (0..60 * features).map(|_| (draws.positive() * 8.0).floor()).collect();
            let smote = Smote::new(rows.clone(), features, 3, 5).unwrap();
            let points = Points::new(rows, features).unwrap();
            for n in 0..500 {
                let row = smote.row(n);
                let between = (0..60).any(|id| {
                    let from = points.row(id);
                    // The third nearest, and all points at the same distance.
                    let near = points.nearest(from, 60).unwrap();
                    let far = near[3].distance_squared;
                    near.iter().take_while(|n| n.distance_squared <= far).any(|n| {
                        let to = points.row(n.id);
                        let (mut dot, mut length, mut off) = (0.0, 0.0, 0.0);
                        for f in 0..features {
                            dot += (row[f] - from[f]) * (to[f] - from[f]);
                            length += (to[f] - from[f]).powi(2);
                        }
                        let part = if length > 0.0 { dot / length } else { 0.0 };
                        for f in 0..features {
                            off += (from[f] + part * (to[f] - from[f]) - row[f]).powi(2);
                        }
                        off < 1e-18 && (0.0..=1.0).contains(&part)
                    })
                });
                assert!(between, "row {n} of {features} features");
                assert_eq!(row, smote.row(n));
            }
        }
        let line: Vec<f64> = (0..10).map(|i| f64::from(i) * 100.0).collect();
        let smote = Smote::new(line, 1, 1, 1).unwrap();
        let mut counts = [0u32; 10];
        (0..10_000).for_each(|n| counts[(smote.row(n)[0] / 90.1) as usize] += 1);
        assert!(counts.iter().filter(|&&count| count > 500).count() >= 9, "{counts:?}");
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(
            Smote::new(vec![1.0, 2.0], 1, 2, 0).unwrap_err().to_string().contains("less than the 2 rows")
        );
        assert!(Smote::new(vec![1.0, 2.0], 1, 0, 0).is_err());
        assert!(Smote::new(vec![1.0, f64::NAN], 1, 1, 0).unwrap_err().to_string().contains("NaN"));
    }
}
