//! Block sparse rows (BSR): dense blocks of one shape, stored by rows of blocks.
//!
//! Flow: row pointers, block columns and block elements, checked -> [`Bsr`] -> products
//! (`product`), CSR, dense arrays.
//! Memory: as in `sparse`.
//!
//! The block shape need not divide the matrix. Blocks at the right and lower edges extend beyond
//! it, and their elements there are ignored.

use super::csr::{CsrBuilder, check_rows};
use super::{Csr, Element, Held, Index, bytes, changed, sparsity};
use crate::{Error, Result, filled};

/// A matrix in block sparse row format.
#[derive(Debug, Clone, PartialEq)]
pub struct Bsr<'a, I: Index, T: Element> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows and columns of a block.
    pub(super) block: (usize, usize),
    pub(super) indptr: Held<'a, I>,
    pub(super) indices: Held<'a, I>,
    /// The blocks, one after the other, each in C order.
    pub(super) data: Held<'a, T>,
}

impl<'a, I: Index, T: Element> Bsr<'a, I, T> {
    /// Builds a matrix from arrays in the layout of SciPy's `bsr_array` and torch's `sparse_bsr`.
    ///
    /// # Errors
    /// As [`Csr::new`], for blocks; also for blocks without elements.
    ///
    /// ```
    /// use tidegate_array::sparse::Bsr;
    /// // Three columns, of which the second block has one.
    /// let data = vec![5.0, 0.0, 7.0, 0.0];
    /// let m = Bsr::<u32, f32>::new((2, 3), (2, 2), vec![0, 1], vec![1], data)?;
    /// assert_eq!(m.to_dense()?, [0.0, 0.0, 5.0, 0.0, 0.0, 7.0]);
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn new(
        (rows, cols): (usize, usize),
        block: (usize, usize),
        indptr: impl Into<Held<'a, I>>,
        indices: impl Into<Held<'a, I>>,
        data: impl Into<Held<'a, T>>,
    ) -> Result<Self> {
        let matrix =
            Self { rows, cols, block, indptr: indptr.into(), indices: indices.into(), data: data.into() };
        if block.0 == 0 || block.1 == 0 {
            return Err(Error::value(format!(
                "blocks of {} by {} elements: both must be at least 1",
                block.0, block.1
            )));
        }
        let block_len = block.0.checked_mul(block.1);
        check_rows(rows.div_ceil(block.0), &matrix.indptr, matrix.indices.len())?;
        if block_len.and_then(|n| n.checked_mul(matrix.indices.len())) != Some(matrix.data.len()) {
            return Err(Error::value(format!(
                "{} elements do not fill {} blocks of {} by {}",
                matrix.data.len(),
                matrix.indices.len(),
                block.0,
                block.1
            )));
        }
        let blocks = cols.div_ceil(block.1);
        if let Some(at) = matrix.indices.iter().position(|index| index.at() >= blocks) {
            return Err(Error::value(format!(
                "block {at} is in column {} of {blocks}",
                matrix.indices[at].shown()
            )));
        }
        Ok(matrix)
    }

    /// As [`Csr::from_validated`], for blocks.
    ///
    /// # Errors
    /// As [`Csr::from_validated`].
    pub fn from_validated(
        (rows, cols): (usize, usize),
        block: (usize, usize),
        indptr: impl Into<Held<'a, I>>,
        indices: impl Into<Held<'a, I>>,
        data: impl Into<Held<'a, T>>,
    ) -> Result<Self> {
        let matrix =
            Self { rows, cols, block, indptr: indptr.into(), indices: indices.into(), data: data.into() };
        let block_len = block.0.checked_mul(block.1).filter(|n| *n > 0).ok_or_else(changed)?;
        let fit = Some(matrix.indptr.len()) == rows.div_ceil(block.0).checked_add(1)
            && block_len.checked_mul(matrix.indices.len()) == Some(matrix.data.len());
        if fit { Ok(matrix) } else { Err(changed()) }
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Rows and columns of a block.
    #[must_use]
    pub fn block(&self) -> (usize, usize) {
        self.block
    }

    /// Number of stored blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.indices.len()
    }

    /// Row pointers, the column of each block, and the elements of the blocks.
    #[must_use]
    pub fn arrays(&self) -> (&[I], &[I], &[T]) {
        (&self.indptr, &self.indices, &self.data)
    }

    /// Bytes of all arrays.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        bytes(&self.indptr) + bytes(&self.indices) + bytes(&self.data)
    }

    /// The share of blocks that are not stored.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        sparsity(self.blocks(), [self.rows.div_ceil(self.block.0), self.cols.div_ceil(self.block.1)])
    }

    /// The blocks of one row of blocks.
    pub(super) fn range(&self, row: usize) -> Result<std::ops::Range<usize>> {
        let range = self.indptr[row].at()..self.indptr[row + 1].at();
        if range.start <= range.end && range.end <= self.indices.len() { Ok(range) } else { Err(changed()) }
    }

    /// Calls `each` with the row, the column and the value of each element within the matrix.
    fn each(&self, row_of_blocks: usize, mut each: impl FnMut(usize, usize, T)) -> Result<()> {
        let (height, width) = self.block;
        for block in self.range(row_of_blocks)? {
            let (row, col) = (row_of_blocks * height, self.indices[block].at().saturating_mul(width));
            if col >= self.cols {
                return Err(changed());
            }
            let elements = &self.data[block * height * width..][..height * width];
            for (r, line) in elements.chunks_exact(width).enumerate().take(self.rows - row) {
                line.iter()
                    .enumerate()
                    .take(self.cols - col)
                    .for_each(|(c, value)| each(row + r, col + c, *value));
            }
        }
        Ok(())
    }

    /// The dense matrix in C order; duplicate blocks are summed.
    ///
    /// # Errors
    /// [`Error::Value`] if the allocation fails, or if borrowed memory has changed.
    pub fn to_dense(&self) -> Result<Vec<T>> {
        let mut dense = filled(self.rows.checked_mul(self.cols), T::ZERO)?;
        for row in 0..self.rows.div_ceil(self.block.0) {
            self.each(row, |row, col, value| {
                let place = &mut dense[row * self.cols + col];
                *place = place.plus(value);
            })?;
        }
        Ok(dense)
    }

    /// The nonzero elements as a CSR matrix, columns ascending.
    ///
    /// # Errors
    /// [`Error::Value`] if borrowed memory has changed, or if the index type cannot count the
    /// entries.
    pub fn to_csr(&self) -> Result<Csr<'static, I, T>> {
        let mut made = CsrBuilder::new(self.rows, 0);
        let mut lines: Vec<Vec<(I, T)>> = vec![Vec::new(); self.block.0.min(self.rows)];
        for row_of_blocks in 0..self.rows.div_ceil(self.block.0) {
            let first = row_of_blocks * self.block.0;
            let mut too_large = None;
            self.each(row_of_blocks, |row, col, value| match I::from_usize(col) {
                Some(index) if value != T::ZERO => lines[row - first].push((index, value)),
                Some(_) => {}
                None => too_large = Some(col),
            })?;
            if let Some(col) = too_large {
                I::checked(col)?;
            }
            for line in lines.iter_mut().take(self.rows - first) {
                made.push(line)?;
                line.clear();
            }
        }
        made.finish(self.cols)
    }
}

impl<I: Index, T: Element> Csr<'_, I, T> {
    /// The matrix in blocks of this shape: those with an entry, columns ascending; duplicates are
    /// summed.
    ///
    /// # Errors
    /// [`Error::Value`] for blocks without elements, if the allocation fails, or if borrowed
    /// memory has changed.
    pub fn to_bsr(&self, (height, width): (usize, usize)) -> Result<Bsr<'static, I, T>> {
        let block_len = height.checked_mul(width).filter(|n| *n > 0);
        let block_len = block_len.ok_or_else(|| {
            Error::value(format!("blocks of {height} by {width} elements: both must be at least 1"))
        })?;
        let (mut indptr, mut indices, mut data) = (vec![I::zeroed()], Vec::<I>::new(), Vec::new());
        let mut columns = Vec::new();
        for first in (0..self.rows).step_by(height) {
            let lines = first..(first + height).min(self.rows);
            columns.clear();
            for row in lines.clone() {
                columns.extend(self.indices[self.range(row)?].iter().map(|index| index.at() / width));
            }
            columns.sort_unstable();
            columns.dedup();
            let start = data.len();
            let more = columns.len().checked_mul(block_len);
            let more = more.filter(|more| data.try_reserve(*more).is_ok()).ok_or_else(|| {
                let blocks = indices.len() + columns.len();
                Error::value(format!(
                    "{blocks} blocks of {height} by {width} elements are more than memory has: use smaller blocks"
                ))
            })?;
            data.resize(start + more, T::ZERO);
            for row in lines {
                for entry in self.range(row)? {
                    let col = self.indices[entry].at();
                    let block = columns.binary_search(&(col / width)).map_err(|_| changed())?;
                    let place = &mut data[start + block * block_len + (row - first) * width + col % width];
                    *place = place.plus(self.data[entry]);
                }
            }
            for col in &columns {
                indices.push(I::checked(*col)?);
            }
            indptr.push(I::checked(indices.len())?);
        }
        Bsr::new((self.rows, self.cols), (height, width), indptr, indices, data)
    }
}
