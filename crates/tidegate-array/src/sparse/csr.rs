//! Compressed sparse rows (CSR): the entries of each row, one row after the other.
//!
//! Flow: row pointers, columns and entries, checked -> [`Csr`] -> products (`product`), dense
//! arrays, the transpose.
//! Memory: as in `sparse`.

use std::borrow::Cow;

use super::{Element, Held, Index, bytes, changed, sparsity};
use crate::{Error, Result, filled};

/// A matrix in compressed sparse row format.
#[derive(Debug, Clone, PartialEq)]
pub struct Csr<'a, I: Index, T: Element> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Row pointers: the index of each row's first entry, then the end of the last row.
    pub(super) indptr: Held<'a, I>,
    pub(super) indices: Held<'a, I>,
    pub(super) data: Held<'a, T>,
}

impl<'a, I: Index, T: Element> Csr<'a, I, T> {
    /// Builds a matrix from arrays in the layout of SciPy's `csr_array` and torch's `sparse_csr`.
    ///
    /// # Errors
    /// [`Error::Value`] if the lengths do not match, a row ends before it begins, or a column is
    /// out of range (the message names the row and the entry). [`Csr::check_sorted`] checks the
    /// order within rows.
    ///
    /// ```
    /// use tidegate_array::sparse::Csr;
    /// let m = Csr::<u32, f32>::new((2, 3), vec![0, 2, 3], vec![0, 2, 1], vec![1.0, 2.0, 3.0])?;
    /// let mut y = [0.0; 2];
    /// m.matvec(&[1.0, 10.0, 100.0], &mut y, 1)?;
    /// assert_eq!(y, [201.0, 30.0]);
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn new(
        (rows, cols): (usize, usize),
        indptr: impl Into<Held<'a, I>>,
        indices: impl Into<Held<'a, I>>,
        data: impl Into<Held<'a, T>>,
    ) -> Result<Self> {
        let matrix = Self { rows, cols, indptr: indptr.into(), indices: indices.into(), data: data.into() };
        check_rows(rows, &matrix.indptr, matrix.indices.len())?;
        if matrix.data.len() != matrix.indices.len() {
            return Err(Error::value(format!(
                "{} entries have {} columns: there must be as many",
                matrix.data.len(),
                matrix.indices.len()
            )));
        }
        if let Some(entry) = matrix.indices.iter().position(|index| index.at() >= cols) {
            return Err(Error::value(format!(
                "entry {entry}, in row {}, is in column {} of {cols}",
                matrix.row_of(entry),
                matrix.indices[entry].shown()
            )));
        }
        Ok(matrix)
    }

    /// Builds a matrix from arrays that [`Csr::new`] has accepted before. It checks only lengths;
    /// every use checks the indices again.
    ///
    /// # Errors
    /// [`Error::Value`] if the lengths do not match.
    pub fn from_validated(
        (rows, cols): (usize, usize),
        indptr: impl Into<Held<'a, I>>,
        indices: impl Into<Held<'a, I>>,
        data: impl Into<Held<'a, T>>,
    ) -> Result<Self> {
        let matrix = Self { rows, cols, indptr: indptr.into(), indices: indices.into(), data: data.into() };
        let fit =
            Some(matrix.indptr.len()) == rows.checked_add(1) && matrix.indices.len() == matrix.data.len();
        if fit { Ok(matrix) } else { Err(changed()) }
    }

    fn row_of(&self, entry: usize) -> usize {
        self.indptr.partition_point(|start| start.at() <= entry).saturating_sub(1)
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Number of stored entries, explicit zeros included.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.indices.len()
    }

    /// Row pointers, the column of each entry, and the entries.
    #[must_use]
    pub fn arrays(&self) -> (&[I], &[I], &[T]) {
        (&self.indptr, &self.indices, &self.data)
    }

    /// Bytes of all arrays.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        bytes(&self.indptr) + bytes(&self.indices) + bytes(&self.data)
    }

    /// The share of elements without an entry.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        sparsity(self.entries(), [self.rows, self.cols])
    }

    /// Checks that the columns of each row ascend without duplicates.
    ///
    /// # Errors
    /// [`Error::Value`]; the message names the row and the entry.
    pub fn check_sorted(&self) -> Result<()> {
        for row in 0..self.rows {
            let range = self.range(row)?;
            let at = self.indices[range.clone()].windows(2).position(|pair| pair[0] >= pair[1]);
            if let Some(at) = at {
                let (first, second) = (self.indices[range.start + at], self.indices[range.start + at + 1]);
                let what = if first == second { "comes twice" } else { "comes after a larger one" };
                return Err(Error::value(format!(
                    "row {row}: column {second:?} {what}, at entry {}: sort the columns and sum the duplicates",
                    range.start + at + 1
                )));
            }
        }
        Ok(())
    }

    /// The entries of a row.
    pub(super) fn range(&self, row: usize) -> Result<std::ops::Range<usize>> {
        let range = self.indptr[row].at()..self.indptr[row + 1].at();
        if range.start <= range.end && range.end <= self.indices.len() { Ok(range) } else { Err(changed()) }
    }

    /// The same matrix with ascending columns in each row, and duplicates summed in their original
    /// order.
    ///
    /// # Errors
    /// [`Error::Value`] if borrowed memory has changed.
    pub fn canonical(&self) -> Result<Csr<'static, I, T>> {
        let mut made = CsrBuilder::new(self.rows, self.entries());
        let mut row: Vec<(I, T)> = Vec::new();
        for r in 0..self.rows {
            let range = self.range(r)?;
            row.clear();
            row.extend(self.indices[range.clone()].iter().copied().zip(self.data[range].iter().copied()));
            made.push(&mut row)?;
        }
        made.finish(self.cols)
    }

    /// The transpose. Read as compressed sparse columns, its arrays describe the original matrix.
    ///
    /// # Errors
    /// As [`Csr::canonical`].
    pub fn transposed(&self) -> Result<Csr<'static, I, T>> {
        let mut next = filled(self.cols.checked_add(1), 0usize)?;
        for index in self.indices.iter() {
            *next.get_mut(index.at() + 1).ok_or_else(changed)? += 1;
        }
        for col in 0..self.cols {
            next[col + 1] += next[col];
        }
        let indptr: Vec<I> = next.iter().map(|&start| I::checked(start)).collect::<Result<_>>()?;
        I::checked(self.rows)?;
        let (mut indices, mut data) = (vec![I::zeroed(); self.entries()], vec![T::ZERO; self.entries()]);
        for row in 0..self.rows {
            let this = I::checked(row)?;
            for entry in self.range(row)? {
                let place = next.get_mut(self.indices[entry].at()).ok_or_else(changed)?;
                *indices.get_mut(*place).ok_or_else(changed)? = this;
                data[*place] = self.data[entry];
                *place += 1;
            }
        }
        Csr::new((self.cols, self.rows), indptr, indices, data)
    }

    /// The dense matrix in C order; duplicates are summed.
    ///
    /// # Errors
    /// As [`Csr::canonical`]; also if the allocation fails.
    pub fn to_dense(&self) -> Result<Vec<T>> {
        let mut dense = filled(self.rows.checked_mul(self.cols), T::ZERO)?;
        for row in 0..self.rows {
            for entry in self.range(row)? {
                let col = self.indices[entry].at();
                if col >= self.cols {
                    return Err(changed());
                }
                let place = &mut dense[row * self.cols + col];
                *place = place.plus(self.data[entry]);
            }
        }
        Ok(dense)
    }

    /// The nonzero elements of a dense matrix in C order.
    ///
    /// # Errors
    /// [`Error::Value`] if the array has another length than the shape needs, or if the index type
    /// is too small for it.
    pub fn from_dense((rows, cols): (usize, usize), dense: &[T]) -> Result<Csr<'static, I, T>> {
        if rows.checked_mul(cols) != Some(dense.len()) {
            return Err(Error::value(format!(
                "{} elements do not fill a matrix of {rows} by {cols}",
                dense.len()
            )));
        }
        let mut made = CsrBuilder::new(rows, 0);
        let mut row: Vec<(I, T)> = Vec::new();
        for r in 0..rows {
            row.clear();
            for (col, value) in
                dense[r * cols..][..cols].iter().enumerate().filter(|(_, value)| **value != T::ZERO)
            {
                row.push((I::checked(col)?, *value));
            }
            made.push(&mut row)?;
        }
        made.finish(cols)
    }

    /// An owned copy.
    #[must_use]
    pub fn into_owned(self) -> Csr<'static, I, T> {
        let own = |array: Held<'a, I>| Cow::Owned(array.into_owned());
        let data = Cow::Owned(self.data.into_owned());
        Csr { rows: self.rows, cols: self.cols, indptr: own(self.indptr), indices: own(self.indices), data }
    }
}

/// Checks the row pointers.
pub(super) fn check_rows<I: Index>(rows: usize, indptr: &[I], entries: usize) -> Result<()> {
    if Some(indptr.len()) != rows.checked_add(1) {
        return Err(Error::value(format!(
            "{rows} rows have {} row pointers: there must be one more than rows",
            indptr.len()
        )));
    }
    if indptr[0].at() != 0 || indptr[rows].at() != entries {
        return Err(Error::value(format!(
            "rows go from entry {:?} to {:?}, where there are {entries}",
            indptr[0], indptr[rows]
        )));
    }
    match indptr.windows(2).position(|pair| pair[0] > pair[1]) {
        Some(row) => Err(Error::value(format!(
            "row {row} begins at entry {:?} and ends at {:?}",
            indptr[row],
            indptr[row + 1]
        ))),
        None => Ok(()),
    }
}

/// A builder of a matrix, row by row.
#[derive(Debug)]
pub(super) struct CsrBuilder<I, T> {
    indptr: Vec<I>,
    indices: Vec<I>,
    data: Vec<T>,
}

impl<I: Index, T: Element> CsrBuilder<I, T> {
    pub(super) fn new(rows: usize, entries: usize) -> Self {
        let mut indptr = Vec::with_capacity(rows + 1);
        indptr.push(I::zeroed());
        Self { indptr, indices: Vec::with_capacity(entries), data: Vec::with_capacity(entries) }
    }

    /// Appends a row: sorts its entries and sums duplicates.
    pub(super) fn push(&mut self, row: &mut [(I, T)]) -> Result<()> {
        row.sort_by_key(|(col, _)| *col);
        let start = self.indices.len();
        for (col, value) in row.iter() {
            match self.data.last_mut() {
                Some(last) if self.indices.len() > start && self.indices.last() == Some(col) => {
                    *last = last.plus(*value);
                }
                _ => {
                    self.indices.push(*col);
                    self.data.push(*value);
                }
            }
        }
        self.indptr.push(I::checked(self.indices.len())?);
        Ok(())
    }

    pub(super) fn finish(self, cols: usize) -> Result<Csr<'static, I, T>> {
        Csr::new((self.indptr.len() - 1, cols), self.indptr, self.indices, self.data)
    }
}
