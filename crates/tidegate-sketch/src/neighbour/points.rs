//! The nearest of many points: a KD-tree for few dimensions, all of them looked at for many.
//!
//! Flow: rows of numbers -> [`Points`] -> the ids of the nearest, with their distances; called by SMOTE and by users.
//! Memory: the rows, once more in the tree.
//!
//! The tree is `kiddo`'s. Past eight dimensions a tree looks at most of its leaves anyway (Weber et al., 1998), and a plain scan is faster.

use std::num::NonZero;

use kiddo::{ImmutableKdTree, SquaredEuclidean};

use crate::{Error, Result};

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// Its row.
    pub id: u64,
    /// The square of its Euclidean distance.
    pub distance_squared: f64,
}

#[derive(Debug)]
enum Found {
    D1(ImmutableKdTree<f64, 1>),
    D2(ImmutableKdTree<f64, 2>),
    D3(ImmutableKdTree<f64, 3>),
    D4(ImmutableKdTree<f64, 4>),
    D5(ImmutableKdTree<f64, 5>),
    D6(ImmutableKdTree<f64, 6>),
    D7(ImmutableKdTree<f64, 7>),
    D8(ImmutableKdTree<f64, 8>),
    Scan,
}

/// See the head of this file.
///
/// ```
/// use tidegate_sketch::neighbour::points::Points;
/// let points = Points::new(vec![0.0, 0.0, 1.0, 1.0, 5.0, 5.0], 2)?;
/// let near = points.nearest(&[0.9, 0.9], 2)?;
/// assert_eq!(near.iter().map(|n| n.id).collect::<Vec<_>>(), [1, 0]);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug)]
pub struct Points {
    dimensions: usize,
    rows: Vec<f64>,
    found: Found,
}

fn tree<const K: usize>(rows: &[f64]) -> Result<ImmutableKdTree<f64, K>> {
    let (points, _) = rows.as_chunks::<K>();
    ImmutableKdTree::new_from_slice(points)
        .map_err(|e| Error::parameter("points", points.len(), format!("{e:?}")))
}

fn nearest<const K: usize>(tree: &ImmutableKdTree<f64, K>, to: &[f64], k: NonZero<usize>) -> Vec<Near> {
    let Some(to) = to.as_array::<K>() else { return Vec::new() };
    let found = tree.query(to).nearest_n::<SquaredEuclidean<f64>>(k).execute();
    found.into_iter().map(|n| Near { id: u64::from(n.item), distance_squared: n.distance }).collect()
}

impl Points {
    /// Of rows of so many numbers each.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there are no rows or they are not whole; [`Error::Value`] for what is not finite.
    pub fn new(rows: Vec<f64>, dimensions: usize) -> Result<Self> {
        if dimensions == 0 || rows.is_empty() || !rows.len().is_multiple_of(dimensions) {
            return Err(Error::parameter(
                "dimensions",
                dimensions,
                format!("{} numbers are no whole rows", rows.len()),
            ));
        }
        if rows.len() / dimensions > u32::MAX as usize {
            return Err(Error::parameter("points", rows.len() / dimensions, "at most 2^32 - 1 points"));
        }
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(Error::value(at / dimensions, rows[at], "points have finite coordinates"));
        }
        let found = match dimensions {
            1 => Found::D1(tree(&rows)?),
            2 => Found::D2(tree(&rows)?),
            3 => Found::D3(tree(&rows)?),
            4 => Found::D4(tree(&rows)?),
            5 => Found::D5(tree(&rows)?),
            6 => Found::D6(tree(&rows)?),
            7 => Found::D7(tree(&rows)?),
            8 => Found::D8(tree(&rows)?),
            _ => Found::Scan,
        };
        Ok(Self { dimensions, rows, found })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / self.dimensions
    }

    /// There is at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The coordinates of a point.
    #[must_use]
    pub fn row(&self, id: u64) -> &[f64] {
        let at = id as usize * self.dimensions;
        &self.rows[at..at + self.dimensions]
    }

    /// The `k` nearest to a place, or all if there are fewer; nearest first; which of equally near ones come is not said.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a place of other dimensions or k = 0; [`Error::Value`] for what is not finite.
    pub fn nearest(&self, to: &[f64], k: usize) -> Result<Vec<Near>> {
        if to.len() != self.dimensions {
            return Err(Error::parameter(
                "dimensions",
                to.len(),
                format!("the points have {}", self.dimensions),
            ));
        }
        if let Some(at) = to.iter().position(|x| !x.is_finite()) {
            return Err(Error::value(at, to[at], "a place has finite coordinates"));
        }
        let k = NonZero::new(k.min(self.len()))
            .ok_or_else(|| Error::parameter("k", k, "ask for at least one"))?;
        let mut near = match &self.found {
            Found::D1(tree) => nearest(tree, to, k),
            Found::D2(tree) => nearest(tree, to, k),
            Found::D3(tree) => nearest(tree, to, k),
            Found::D4(tree) => nearest(tree, to, k),
            Found::D5(tree) => nearest(tree, to, k),
            Found::D6(tree) => nearest(tree, to, k),
            Found::D7(tree) => nearest(tree, to, k),
            Found::D8(tree) => nearest(tree, to, k),
            Found::Scan => self.scan(to, k.get()),
        };
        near.sort_by(|a, b| a.distance_squared.total_cmp(&b.distance_squared).then(a.id.cmp(&b.id)));
        Ok(near)
    }

    fn scan(&self, to: &[f64], k: usize) -> Vec<Near> {
        let rows = self.rows.chunks_exact(self.dimensions);
        let mut all: Vec<Near> = (0..)
            .zip(rows)
            .map(|(id, row)| {
                let distance_squared = row.iter().zip(to).map(|(a, b)| (a - b) * (a - b)).sum();
                Near { id, distance_squared }
            })
            .collect();
        let by = |a: &Near, b: &Near| a.distance_squared.total_cmp(&b.distance_squared).then(a.id.cmp(&b.id));
        if k < all.len() {
            all.select_nth_unstable_by(k - 1, by);
            all.truncate(k);
        }
        all
    }

    /// What it takes, in bytes, about.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let tree = if matches!(self.found, Found::Scan) { 0 } else { self.rows.len() * 8 + self.len() * 8 };
        (size_of::<Self>() + self.rows.len() * 8 + tree) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    #[test]
    fn agrees_with_brute_force() {
        for dimensions in [1, 2, 3, 5, 8, 12] {
            let mut draws = Draws::new(dimensions as u64);
            // Coordinates on a grid, so that many are equal.
            let rows: Vec<f64> = (0..400 * dimensions).map(|_| (draws.positive() * 10.0).floor()).collect();
            let points = Points::new(rows, dimensions).unwrap();
            for _ in 0..50 {
                let to: Vec<f64> = (0..dimensions).map(|_| draws.positive() * 10.0).collect();
                let distances = |near: &[Near]| near.iter().map(|n| n.distance_squared).collect::<Vec<_>>();
                let mut scanned = points.scan(&to, 7);
                scanned.sort_by(|a, b| a.distance_squared.total_cmp(&b.distance_squared));
                let near = points.nearest(&to, 7).unwrap();
                let pairs = distances(&near).into_iter().zip(distances(&scanned));
                assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-9), "{dimensions} dimensions");
                assert_eq!(near.len(), 7);
            }
            assert_eq!(points.nearest(&vec![0.0; dimensions], 1000).unwrap().len(), 400);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(Points::new(vec![1.0, 2.0, 3.0], 2).is_err() && Points::new(vec![], 2).is_err());
        assert!(
            Points::new(vec![1.0, f64::NAN], 1).unwrap_err().to_string().contains("the value at 1 is NaN")
        );
        let points = Points::new(vec![1.0, 2.0], 1).unwrap();
        assert!(points.nearest(&[1.0, 2.0], 1).is_err() && points.nearest(&[1.0], 0).is_err());
    }
}
