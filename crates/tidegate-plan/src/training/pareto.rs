//! The Pareto front of measured points: those that no other point beats in everything.
//!
//! Flow: points, and which direction is better for each figure -> indices of the front.
//! Memory: some words a point.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which direction of a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less, as of memory or time.
    Less,
    /// More, as of throughput or accuracy.
    More,
}

/// The indices of the points that are on the front, in their order.
///
/// A point is off the front when another is at least as good in every figure and better in one.
/// Equal points are on it together. Only measured points belong here: a model's output is none.
///
/// # Errors
/// [`Error::Config`] for a point with another number of figures; [`Error::Parameter`] for one that
/// is no number.
///
/// # Example
/// ```
/// use tidegate_plan::training::pareto::{Better, front};
/// // Memory and samples a second of four settings.
/// let points = [vec![8.0, 100.0], vec![4.0, 80.0], vec![6.0, 70.0], vec![4.0, 80.0]];
/// assert_eq!(front(&points, &[Better::Less, Better::More])?, [0, 1, 3]);
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn front(points: &[Vec<f64>], better: &[Better]) -> Result<Vec<usize>> {
    for (i, point) in points.iter().enumerate() {
        if point.len() != better.len() {
            let what =
                format!("point {i} has {} figures, and {} have a direction", point.len(), better.len());
            return Err(Error::Config(what));
        }
        if let Some(value) = point.iter().find(|value| !value.is_finite()) {
            return Err(Error::parameter(format!("a figure of point {i}"), value, "a number"));
        }
    }
    let wins = |one: &[f64], other: &[f64]| {
        let mut strictly = false;
        for ((a, b), better) in one.iter().zip(other).zip(better) {
            let (a, b) = if *better == Better::Less { (b, a) } else { (a, b) };
            if a < b {
                return false;
            }
            strictly |= a > b;
        }
        strictly
    };
    let beaten = |i: usize| points.iter().any(|other| wins(other, &points[i]));
    Ok((0..points.len()).filter(|&i| !beaten(i)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_has_what_nothing_beats() {
        let points: Vec<Vec<f64>> = (0..40)
            .map(|i| vec![f64::from(i % 8), f64::from((i * 7) % 5), f64::from((i * 3) % 11)])
            .collect();
        let better = [Better::Less, Better::More, Better::More];
        let found = front(&points, &better).unwrap();
        assert!(!found.is_empty() && found.len() < points.len());
        let as_good = |a: &[f64], b: &[f64]| a[0] <= b[0] && a[1] >= b[1] && a[2] >= b[2];
        for (i, point) in points.iter().enumerate() {
            let beaten = points.iter().any(|other| as_good(other, point) && other != point);
            assert_eq!(found.contains(&i), !beaten, "{point:?}");
        }
        assert!(front(&[vec![1.0]], &better).is_err());
        assert!(front(&[vec![1.0, f64::NAN, 2.0]], &better).is_err());
    }
}
