//! Nearest neighbours among points: a KD-tree for few dimensions, a full scan for many.
//!
//! Flow: rows of numbers -> [`Points`] -> the ids of the nearest rows, with their distances;
//! called by SMOTE and by users.
//! Memory: the rows, and a copy of them in the tree.
//!
//! The tree is `kiddo`'s. Above eight dimensions a tree visits most of its leaves anyway (Weber et
//! al., 1998), and a scan is faster.

use std::num::NonZero;

use kiddo::{ImmutableKdTree, SquaredEuclidean};

use crate::{Error, Result};

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Its row number.
    pub id: u64,
    /// The square of its Euclidean distance.
    pub distance_squared: f64,
}

#[derive(Debug)]
enum Search {
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

/// Points to search.
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
    search: Search,
}

fn tree<const K: usize>(rows: &[f64]) -> Result<ImmutableKdTree<f64, K>> {
    let (points, _) = rows.as_chunks::<K>();
    ImmutableKdTree::new_from_slice(points)
        .map_err(|e| Error::parameter("points", points.len(), format!("{e:?}")))
}

fn nearest<const K: usize>(tree: &ImmutableKdTree<f64, K>, to: &[f64], k: NonZero<usize>) -> Vec<Neighbour> {
    let Some(to) = to.as_array::<K>() else { return Vec::new() };
    let found = tree.query(to).nearest_n::<SquaredEuclidean<f64>>(k).execute();
    found.into_iter().map(|n| Neighbour { id: u64::from(n.item), distance_squared: n.distance }).collect()
}

impl Points {
    /// Points from rows of `dimensions` numbers each.
    ///
    /// # Errors
    /// [`Error::Parameter`] if there are no rows or the last one is incomplete; [`Error::Value`]
    /// for a number that is not finite.
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
        let search = match dimensions {
            1 => Search::D1(tree(&rows)?),
            2 => Search::D2(tree(&rows)?),
            3 => Search::D3(tree(&rows)?),
            4 => Search::D4(tree(&rows)?),
            5 => Search::D5(tree(&rows)?),
            6 => Search::D6(tree(&rows)?),
            7 => Search::D7(tree(&rows)?),
            8 => Search::D8(tree(&rows)?),
            _ => Search::Scan,
        };
        Ok(Self { dimensions, rows, search })
    }

    /// Number of points.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / self.dimensions
    }

    /// Always false: there is at least one point.
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

    /// The `k` nearest points to a position, or all if there are fewer, nearest first. The order
    /// of equally near points is unspecified.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a position of other dimensions or k = 0; [`Error::Value`] for a
    /// number that is not finite.
    pub fn nearest(&self, to: &[f64], k: usize) -> Result<Vec<Neighbour>> {
        if to.len() != self.dimensions {
            return Err(Error::parameter(
                "dimensions",
                to.len(),
                format!("the points have {}", self.dimensions),
            ));
        }
        if let Some(at) = to.iter().position(|x| !x.is_finite()) {
            return Err(Error::value(at, to[at], "a position has finite coordinates"));
        }
        let k = NonZero::new(k.min(self.len()))
            .ok_or_else(|| Error::parameter("k", k, "ask for at least one"))?;
        let mut near = match &self.search {
            Search::D1(tree) => nearest(tree, to, k),
            Search::D2(tree) => nearest(tree, to, k),
            Search::D3(tree) => nearest(tree, to, k),
            Search::D4(tree) => nearest(tree, to, k),
            Search::D5(tree) => nearest(tree, to, k),
            Search::D6(tree) => nearest(tree, to, k),
            Search::D7(tree) => nearest(tree, to, k),
            Search::D8(tree) => nearest(tree, to, k),
            Search::Scan => self.scan(to, k.get()),
        };
        near.sort_by(|a, b| a.distance_squared.total_cmp(&b.distance_squared).then(a.id.cmp(&b.id)));
        Ok(near)
    }

    fn scan(&self, to: &[f64], k: usize) -> Vec<Neighbour> {
        let rows = self.rows.chunks_exact(self.dimensions);
        let mut all: Vec<Neighbour> = (0..)
            .zip(rows)
            .map(|(id, row)| {
                let distance_squared = row.iter().zip(to).map(|(a, b)| (a - b) * (a - b)).sum();
                Neighbour { id, distance_squared }
            })
            .collect();
        let by = |a: &Neighbour, b: &Neighbour| {
            a.distance_squared.total_cmp(&b.distance_squared).then(a.id.cmp(&b.id))
        };
        if k < all.len() {
            all.select_nth_unstable_by(k - 1, by);
            all.truncate(k);
        }
        all
    }

    /// Approximate memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let tree = if matches!(self.search, Search::Scan) { 0 } else { self.rows.len() * 8 + self.len() * 8 };
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
                let distances =
                    |near: &[Neighbour]| near.iter().map(|n| n.distance_squared).collect::<Vec<_>>();
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
