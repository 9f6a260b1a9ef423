//! Matrices as tensor trains, with one core per pair of row and column digits.
//!
//! Flow: a matrix, the digits of its rows and columns -> [`TtMatrix`] -> products with vectors,
//! single rows (of an embedding table).
//! Memory: the cores; a product holds the intermediate vector.
//!
//! Row `i` of `m₁ · … · m_d` has the digits `i₁ … i_d`, the most significant first; columns
//! likewise. Core `k` is `r_k × m_k n_k × r_{k+1}` (Oseledets, 2010; Novikov et al., 2015).

use super::{Limit, TensorTrain, places};
use crate::{Error, Result};

/// A matrix as a tensor train.
#[derive(Debug, Clone, PartialEq)]
pub struct TtMatrix {
    pub(super) rows: Vec<usize>,
    pub(super) cols: Vec<usize>,
    pub(super) train: TensorTrain,
}

impl TtMatrix {
    /// The matrix of a train whose sides are `rows[k] · cols[k]`.
    ///
    /// # Errors
    /// [`Error::Value`] for other sides.
    pub fn new(rows: &[usize], cols: &[usize], train: TensorTrain) -> Result<Self> {
        let sides = rows.iter().zip(cols).map(|(m, n)| m.checked_mul(*n));
        if rows.len() != cols.len() || !sides.eq(train.shape().into_iter().map(Some)) {
            return Err(Error::value(format!(
                "cores with sides {:?} do not match rows of {rows:?} and columns of {cols:?}",
                train.shape()
            )));
        }
        places(rows).and(places(cols))?;
        Ok(Self { rows: rows.to_vec(), cols: cols.to_vec(), train })
    }

    /// Decomposes a matrix in C order.
    ///
    /// # Errors
    /// As [`TensorTrain::decompose`]; also if rows and columns have different numbers of digits.
    ///
    /// ```
    /// use tidegate_array::tensor_train::{Limit, TtMatrix};
    /// // 6 rows of 4 columns; element (i, j) is (i + 1)(j + 1).
    /// let matrix: Vec<f64> = (0..24).map(|at| ((at / 4 + 1) * (at % 4 + 1)) as f64).collect();
    /// let limit = Limit { tolerance: 1e-9, rank: None };
    /// let table = TtMatrix::decompose(&matrix, &[2, 3], &[2, 2], limit)?;
    /// assert!((table.row(5)?[3] - 24.0).abs() < 1e-6);
    /// assert!((table.matvec(&[1.0; 4])?[0] - 10.0).abs() < 1e-6);
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn decompose(matrix: &[f64], rows: &[usize], cols: &[usize], limit: Limit) -> Result<Self> {
        let (height, width) = (places(rows)?, places(cols)?);
        if rows.len() != cols.len() || height.checked_mul(width) != Some(matrix.len()) {
            return Err(Error::value(format!(
                "{} elements do not match rows of {rows:?} and columns of {cols:?}: give as many digits for each, whose product is the number of elements",
                matrix.len()
            )));
        }
        let sides: Vec<usize> = rows.iter().zip(cols).map(|(m, n)| m * n).collect();
        let mut paired = vec![0.0; matrix.len()];
        for (at, value) in matrix.iter().enumerate() {
            let (mut row, mut col, mut place, mut step) = (at / width, at % width, 0, 1);
            for (m, n) in rows.iter().zip(cols).rev() {
                place += step * (row % m * n + col % n);
                (row, col, step) = (row / m, col / n, step * m * n);
            }
            paired[place] = *value;
        }
        Self::new(rows, cols, TensorTrain::decompose(&paired, &sides, limit)?)
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows.iter().product(), self.cols.iter().product())
    }

    /// The digits of rows and of columns.
    #[must_use]
    pub fn digits(&self) -> (&[usize], &[usize]) {
        (&self.rows, &self.cols)
    }

    /// The tensor train.
    #[must_use]
    pub fn train(&self) -> &TensorTrain {
        &self.train
    }

    /// `self · vector`, one core at a time from the last one on.
    ///
    /// # Errors
    /// [`Error::Value`] for a vector of another length.
    pub fn matvec(&self, vector: &[f64]) -> Result<Vec<f64>> {
        let (_, cols) = self.shape();
        if vector.len() != cols {
            return Err(Error::value(format!("a vector of {} elements for {cols} columns", vector.len())));
        }
        // Axes: remaining column digits × this digit × rank × finished row digits.
        let (mut now, mut done) = (vector.to_vec(), 1);
        for ((core, m), n) in self.train.cores().iter().zip(&self.rows).zip(&self.cols).rev() {
            let ahead = now.len() / (n * core.right * done);
            let places = [core.left, *m, done].iter().try_fold(ahead, |n, side| n.checked_mul(*side));
            let mut next = crate::filled(places, 0.0)?;
            for p in 0..ahead {
                for (left, i) in (0..core.left).flat_map(|left| (0..*m).map(move |i| (left, i))) {
                    let sums = &mut next[((p * core.left + left) * m + i) * done..][..done];
                    for j in 0..*n {
                        let line = &core.data[((left * m + i) * n + j) * core.right..][..core.right];
                        for (right, g) in line.iter().enumerate() {
                            let x = &now[((p * n + j) * core.right + right) * done..][..done];
                            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += g * x);
                        }
                    }
                }
            }
            (now, done) = (next, done * m);
        }
        Ok(now)
    }

    /// One row; in an embedding table, the vector of a token.
    ///
    /// # Errors
    /// [`Error::Value`] for a row that does not exist.
    pub fn row(&self, row: usize) -> Result<Vec<f64>> {
        let (rows, _) = self.shape();
        if row >= rows {
            return Err(Error::value(format!("row {row} is beyond the {rows} rows")));
        }
        // Axes: finished columns × rank.
        let (mut now, mut below) = (vec![1.0], rows);
        for ((core, m), n) in self.train.cores().iter().zip(&self.rows).zip(&self.cols) {
            below /= m;
            let i = row / below % m;
            let done = now.len() / core.left;
            let mut next = crate::filled(done.checked_mul(*n).and_then(|n| n.checked_mul(core.right)), 0.0)?;
            for (sums, x) in next.chunks_exact_mut(n * core.right).zip(now.chunks_exact(core.left)) {
                for (left, x) in x.iter().enumerate() {
                    let lines = &core.data[((left * m + i) * n) * core.right..][..n * core.right];
                    sums.iter_mut().zip(lines).for_each(|(sum, g)| *sum += x * g);
                }
            }
            now = next;
        }
        Ok(now)
    }

    /// Several rows, one after the other.
    ///
    /// # Errors
    /// As [`TtMatrix::row`]; also if the allocation fails.
    pub fn some_rows(&self, rows: &[usize]) -> Result<Vec<f64>> {
        let (_, cols) = self.shape();
        let mut all = crate::filled(rows.len().checked_mul(cols), 0.0)?;
        for (row, into) in rows.iter().zip(all.chunks_exact_mut(cols.max(1))) {
            into.copy_from_slice(&self.row(*row)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_and_rows_are_those_of_the_matrix(digits in proptest::collection::vec((1usize..5, 1usize..4), 1..5), seed: u64) {
            let (rows, cols): (Vec<_>, Vec<_>) = digits.into_iter().unzip();
            let (height, width) = (rows.iter().product::<usize>(), cols.iter().product::<usize>());
            let drawn = |i: u64| (tidegate_core::hash::splitmix64(seed ^ i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
            let matrix: Vec<f64> = (0..(height * width) as u64).map(drawn).collect();
            let table = TtMatrix::decompose(&matrix, &rows, &cols, Limit { tolerance: 0.0, rank: None }).unwrap();
            let x: Vec<f64> = (0..width as u64).map(|i| drawn(i + (1 << 40))).collect();
            let product = table.matvec(&x).unwrap();
            for row in 0..height {
                let line = &matrix[row * width..][..width];
                prop_assert!(table.row(row).unwrap().iter().zip(line).all(|(a, b)| (a - b).abs() < 1e-10));
                let sum: f64 = line.iter().zip(&x).map(|(a, b)| a * b).sum();
                prop_assert!((product[row] - sum).abs() < 1e-9);
            }
            prop_assert_eq!(&table.some_rows(&[0, height - 1]).unwrap()[width..], &table.row(height - 1).unwrap());
            prop_assert!(table.row(height).is_err() && table.matvec(&matrix[..width - 1]).is_err());
        }
    }
}
