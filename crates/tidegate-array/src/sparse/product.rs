//! Products of sparse matrices with vectors and dense matrices.
//!
//! Flow: a matrix, the other factor, an output -> rows divided among threads by their entries ->
//! sums.
//! Memory: the caller's; for BSR one block of sums per thread.
//!
//! One thread computes each row, and adds its products in a fixed order, so the result does not
//! depend on the number of threads. A row uses several independent partial sums, because each
//! addition waits for the one before it.

use std::ops::Range;

use super::{Bsr, Csr, Element, Index, changed};
use crate::{Error, Result};

/// Partial sums per row.
const LANES: usize = 4;
/// Multiplications that justify another thread: about a millisecond.
const WORTH: usize = 1 << 19;

/// Divides rows among threads by equal numbers of entries, and runs each thread on its part of the
/// product.
fn share<I: Index, S: Send>(
    indptr: &[I],
    work: usize,
    threads: usize,
    product: &mut [S],
    row_len: usize,
    run: impl Fn(Range<usize>, &mut [S]) -> Result<()> + Sync,
) -> Result<()> {
    let rows = indptr.len() - 1;
    let threads = threads.clamp(1, work / WORTH + 1).min(rows.max(1));
    if threads == 1 {
        return run(0..rows, product);
    }
    let entries = indptr[rows].at();
    let end = |part: usize| match part + 1 == threads {
        true => rows,
        false => indptr.partition_point(|start| start.at() < entries / threads * (part + 1)).min(rows),
    };
    std::thread::scope(|scope| {
        let (mut rest, mut start) = (product, 0);
        let mut running = Vec::new();
        for part in 0..threads {
            let rows = start..end(part).max(start);
            // The last row of blocks may extend beyond the edge.
            let (mine, others) = rest.split_at_mut((rows.len() * row_len).min(rest.len()));
            (rest, start) = (others, rows.end);
            let run = &run;
            running.push(scope.spawn(move || run(rows, mine)));
        }
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::internal("a thread of the product panicked")))
        })
    })
}

fn lengths(what: &str, found: usize, wanted: Option<usize>) -> Result<()> {
    match wanted == Some(found) {
        true => Ok(()),
        false => {
            let wanted = wanted.map_or_else(|| "2^64 or more".to_owned(), |wanted| wanted.to_string());
            Err(Error::value(format!("{what} has {found} elements, where {wanted} are needed")))
        }
    }
}

impl<I: Index, T: Element> Csr<'_, I, T> {
    /// `product = self · vector`, on at most `threads` threads.
    ///
    /// # Errors
    /// [`Error::Value`] for vectors of other lengths, or if borrowed memory has changed.
    pub fn matvec(&self, vector: &[T], product: &mut [T::Sum], threads: usize) -> Result<()> {
        lengths("the vector", vector.len(), Some(self.cols))?;
        lengths("the product", product.len(), Some(self.rows))?;
        share(&self.indptr, self.entries(), threads, product, 1, |rows, product| {
            for (row, sum) in rows.zip(product) {
                let range = self.range(row)?;
                *sum = dot(&self.indices[range.clone()], &self.data[range], vector).ok_or_else(changed)?;
            }
            Ok(())
        })
    }

    /// `product = self · dense`, both in C order with `columns` columns, on at most `threads`
    /// threads.
    ///
    /// # Errors
    /// As [`Csr::matvec`].
    pub fn matmat(&self, dense: &[T], columns: usize, product: &mut [T::Sum], threads: usize) -> Result<()> {
        lengths("the matrix", dense.len(), self.cols.checked_mul(columns))?;
        lengths("the product", product.len(), self.rows.checked_mul(columns))?;
        if columns == 0 {
            return Ok(());
        }
        let work = self.entries().saturating_mul(columns);
        share(&self.indptr, work, threads, product, columns, |rows, product| {
            for (row, sums) in rows.zip(product.chunks_exact_mut(columns)) {
                sums.fill(T::NONE);
                for entry in self.range(row)? {
                    let at = self.indices[entry].at().saturating_mul(columns);
                    let line = dense.get(at..at.saturating_add(columns)).ok_or_else(changed)?;
                    let value = self.data[entry];
                    sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = value.add_product(*x, *sum));
                }
            }
            Ok(())
        })
    }

    /// `product += selfᵀ · vector`, row by row on the caller's thread: the product that a gradient
    /// needs.
    ///
    /// # Errors
    /// As [`Csr::matvec`].
    pub fn add_transposed_matvec(&self, vector: &[T], product: &mut [T::Sum]) -> Result<()> {
        lengths("the vector", vector.len(), Some(self.rows))?;
        lengths("the product", product.len(), Some(self.cols))?;
        for (row, value) in vector.iter().enumerate() {
            for entry in self.range(row)? {
                let sum = product.get_mut(self.indices[entry].at()).ok_or_else(changed)?;
                *sum = value.add_product(self.data[entry], *sum);
            }
        }
        Ok(())
    }
}

/// The dot product of a row and the vector; `None` if a column is out of range.
#[inline]
fn dot<I: Index, T: Element>(indices: &[I], data: &[T], vector: &[T]) -> Option<T::Sum> {
    let (columns, last_columns) = indices.as_chunks::<LANES>();
    let (entries, last_entries) = data.as_chunks::<LANES>();
    let mut sums = [T::NONE; LANES];
    for (columns, entries) in columns.iter().zip(entries) {
        for lane in 0..LANES {
            sums[lane] = entries[lane].add_product(*vector.get(columns[lane].at())?, sums[lane]);
        }
    }
    let mut sum = sums.into_iter().fold(T::NONE, T::add);
    for (column, entry) in last_columns.iter().zip(last_entries) {
        sum = entry.add_product(*vector.get(column.at())?, sum);
    }
    Some(sum)
}

impl<I: Index, T: Element> Bsr<'_, I, T> {
    /// As [`Csr::matvec`].
    ///
    /// # Errors
    /// As [`Csr::matvec`].
    pub fn matvec(&self, vector: &[T], product: &mut [T::Sum], threads: usize) -> Result<()> {
        lengths("the vector", vector.len(), Some(self.cols))?;
        lengths("the product", product.len(), Some(self.rows))?;
        share(&self.indptr, self.data.len(), threads, product, self.block.0, |rows, product| {
            match self.block.1 {
                2 if self.block.0 == 2 => self.squares::<2>(rows, vector, product),
                4 if self.block.0 == 4 => self.squares::<4>(rows, vector, product),
                8 if self.block.0 == 8 => self.squares::<8>(rows, vector, product),
                2 => self.lines::<2>(rows, vector, product),
                4 => self.lines::<4>(rows, vector, product),
                8 => self.lines::<8>(rows, vector, product),
                16 => self.lines::<16>(rows, vector, product),
                _ => self.any_lines(rows, vector, product),
            }
        })
    }

    /// The part of the vector that a block is multiplied with; padded with zeros at the right
    /// edge.
    fn piece<'v>(&self, block: usize, vector: &'v [T], edge: &'v mut [T]) -> Result<&'v [T]> {
        let width = self.block.1;
        let at = self.indices[block].at().saturating_mul(width);
        if let Some(whole) = vector.get(at..at.saturating_add(width)) {
            return Ok(whole);
        }
        let part = vector.get(at..).ok_or_else(changed)?;
        edge.fill(T::ZERO);
        edge[..part.len()].copy_from_slice(part);
        Ok(edge)
    }

    /// Square blocks of a known side: all sums of a row of blocks stay in registers.
    fn squares<const SIDE: usize>(
        &self,
        rows: Range<usize>,
        vector: &[T],
        product: &mut [T::Sum],
    ) -> Result<()> {
        let (blocks, _) = self.data.as_chunks::<SIDE>();
        let mut edge = [T::ZERO; SIDE];
        for (row, product) in rows.zip(product.chunks_mut(SIDE)) {
            let mut sums = [[T::NONE; SIDE]; SIDE];
            for block in self.range(row)? {
                let piece: &[T; SIDE] =
                    self.piece(block, vector, &mut edge)?.try_into().map_err(|_| changed())?;
                let lines: &[[T; SIDE]; SIDE] =
                    blocks[block * SIDE..][..SIDE].try_into().map_err(|_| changed())?;
                for (sums, line) in sums.iter_mut().zip(lines) {
                    for lane in 0..SIDE {
                        sums[lane] = line[lane].add_product(piece[lane], sums[lane]);
                    }
                }
            }
            let whole = |sums: &[T::Sum; SIDE]| sums.iter().copied().fold(T::NONE, T::add);
            product.iter_mut().zip(&sums).for_each(|(into, sums)| *into = whole(sums));
        }
        Ok(())
    }

    /// Blocks of a known width, so that a line of a block is one vector. The partial sums of a
    /// line are added at the end.
    fn lines<const WIDTH: usize>(
        &self,
        rows: Range<usize>,
        vector: &[T],
        product: &mut [T::Sum],
    ) -> Result<()> {
        let height = self.block.0;
        let mut sums = vec![[T::NONE; WIDTH]; height];
        let mut edge = [T::ZERO; WIDTH];
        for (row, product) in rows.zip(product.chunks_mut(height)) {
            sums.fill([T::NONE; WIDTH]);
            for block in self.range(row)? {
                let piece = self.piece(block, vector, &mut edge)?;
                let piece: &[T; WIDTH] = piece.try_into().map_err(|_| changed())?;
                let (lines, _) = self.data[block * height * WIDTH..][..height * WIDTH].as_chunks::<WIDTH>();
                for (sums, line) in sums.iter_mut().zip(lines) {
                    for lane in 0..WIDTH {
                        sums[lane] = line[lane].add_product(piece[lane], sums[lane]);
                    }
                }
            }
            let whole = |sums: &[T::Sum; WIDTH]| sums.iter().copied().fold(T::NONE, T::add);
            product.iter_mut().zip(&sums).for_each(|(into, sums)| *into = whole(sums));
        }
        Ok(())
    }

    fn any_lines(&self, rows: Range<usize>, vector: &[T], product: &mut [T::Sum]) -> Result<()> {
        let (height, width) = self.block;
        let mut edge = vec![T::ZERO; width];
        for (row, product) in rows.zip(product.chunks_mut(height)) {
            product.fill(T::NONE);
            for block in self.range(row)? {
                let piece = self.piece(block, vector, &mut edge)?;
                let lines = self.data[block * height * width..][..height * width].chunks_exact(width);
                for (sum, line) in product.iter_mut().zip(lines) {
                    *sum = line.iter().zip(piece).fold(*sum, |sum, (value, x)| value.add_product(*x, sum));
                }
            }
        }
        Ok(())
    }

    /// As [`Csr::matmat`].
    ///
    /// # Errors
    /// As [`Csr::matmat`].
    pub fn matmat(&self, dense: &[T], columns: usize, product: &mut [T::Sum], threads: usize) -> Result<()> {
        lengths("the matrix", dense.len(), self.cols.checked_mul(columns))?;
        lengths("the product", product.len(), self.rows.checked_mul(columns))?;
        if columns == 0 {
            return Ok(());
        }
        let (height, width) = self.block;
        let work = self.data.len().saturating_mul(columns);
        share(&self.indptr, work, threads, product, height.saturating_mul(columns), |rows, product| {
            for (row, product) in rows.zip(product.chunks_mut(height * columns)) {
                product.fill(T::NONE);
                for block in self.range(row)? {
                    let at = self.indices[block].at().saturating_mul(width).saturating_mul(columns);
                    let part = dense.get(at..).ok_or_else(changed)?;
                    let lines = self.data[block * height * width..][..height * width].chunks_exact(width);
                    for (sums, line) in product.chunks_exact_mut(columns).zip(lines) {
                        // At the right edge there are fewer lines than the block has columns.
                        for (value, x) in line.iter().zip(part.chunks_exact(columns)) {
                            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum = value.add_product(*x, *sum));
                        }
                    }
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Coo;
    use super::*;
    use proptest::prelude::*;

    /// A matrix with duplicates, as entries.
    fn entries() -> impl Strategy<Value = (usize, usize, Vec<(usize, usize, i32)>)> {
        (1usize..40, 1usize..40).prop_flat_map(|(rows, cols)| {
            let entry = (0..rows, 0..cols, -5i32..6);
            (Just(rows), Just(cols), proptest::collection::vec(entry, 0..200))
        })
    }

    fn coo<I: Index>(rows: usize, cols: usize, entries: &[(usize, usize, i32)]) -> Coo<'static, I, i32> {
        let along = |of: fn(&(usize, usize, i32)) -> usize| -> Vec<I> {
            entries.iter().map(|entry| I::from_usize(of(entry)).unwrap()).collect()
        };
        let coords = vec![along(|entry| entry.0).into(), along(|entry| entry.1).into()];
        Coo::new(&[rows, cols], coords, entries.iter().map(|entry| entry.2).collect::<Vec<_>>()).unwrap()
    }

    proptest! {
        #[test]
        fn all_forms_and_products_are_those_of_the_dense_matrix(
            (rows, cols, entries) in entries(), block in (1usize..9, 1usize..18), columns in 0usize..5, threads in 1usize..4,
        ) {
            let mut dense = vec![0i32; rows * cols];
            entries.iter().for_each(|(row, col, value)| dense[row * cols + col] += value);
            let wide = coo::<u64>(rows, cols, &entries);
            let coo = coo::<u32>(rows, cols, &entries);
            let csr = coo.to_csr().unwrap();
            csr.check_sorted().unwrap();
            let bsr = csr.to_bsr(block).unwrap();
            prop_assert_eq!(&coo.to_dense().unwrap(), &dense);
            prop_assert_eq!(&coo.canonical().unwrap().to_dense().unwrap(), &dense);
            prop_assert_eq!(&csr.to_dense().unwrap(), &dense);
            prop_assert_eq!(&bsr.to_dense().unwrap(), &dense);
            prop_assert_eq!(&wide.to_csr().unwrap().to_dense().unwrap(), &dense);
            prop_assert_eq!(bsr.to_csr().unwrap(), Csr::from_dense((rows, cols), &dense).unwrap());
            prop_assert_eq!(csr.to_coo().unwrap(), coo.canonical().unwrap());
            prop_assert_eq!(&Coo::<u32, i32>::from_dense(&[rows, cols], &dense).unwrap().to_dense().unwrap(), &dense);
            prop_assert_eq!(csr.transposed().unwrap().transposed().unwrap(), csr.clone());
            prop_assert_eq!(csr.canonical().unwrap(), csr.clone());

            let x: Vec<i32> = (0..cols * columns.max(1)).map(|i| (i * 7 % 11) as i32 - 5).collect();
            let expected = |columns: usize| -> Vec<i64> {
                let of = |at: usize| {
                    let (row, column) = (at / columns, at % columns);
                    (0..cols).map(|col| i64::from(dense[row * cols + col]) * i64::from(x[col * columns + column])).sum()
                };
                (0..rows * columns).map(of).collect()
            };
            let mut product = vec![1i64; rows];
            csr.matvec(&x[..cols], &mut product, threads).unwrap();
            let vector = (0..rows).map(|row| (0..cols).map(|col| i64::from(dense[row * cols + col]) * i64::from(x[col])).sum::<i64>());
            prop_assert!(vector.eq(product.iter().copied()));
            let mut of_blocks = vec![1i64; rows];
            bsr.matvec(&x[..cols], &mut of_blocks, threads).unwrap();
            prop_assert_eq!(of_blocks, product.clone());
            let (mut one, mut other) = (vec![1i64; rows * columns], vec![1i64; rows * columns]);
            csr.matmat(&x[..cols * columns], columns, &mut one, threads).unwrap();
            bsr.matmat(&x[..cols * columns], columns, &mut other, threads).unwrap();
            prop_assert_eq!(&one, &if columns == 0 { vec![] } else { expected(columns) });
            prop_assert_eq!(one, other);

            let weights: Vec<i32> = (0..rows as i32).collect();
            let (mut back, mut again) = (vec![0i64; cols], vec![0i64; cols]);
            csr.add_transposed_matvec(&weights, &mut back).unwrap();
            csr.transposed().unwrap().matvec(&weights, &mut again, 1).unwrap();
            prop_assert_eq!(back, again);
        }
    }

    #[test]
    fn threads_do_not_change_the_product() {
        let (rows, cols) = (3000, 500);
        let entry = |i: u64| {
            let drawn = tidegate_core::hash::splitmix64(i);
            // Rows of very different lengths.
            ((drawn % 3000 * (drawn >> 20) % 3000) as usize, (drawn >> 40) as usize % cols, 1i32)
        };
        let entries: Vec<_> = (0..1_200_000).map(entry).collect();
        let csr = coo::<u32>(rows, cols, &entries).to_csr().unwrap();
        let (indptr, indices, _) = csr.arrays();
        let data: Vec<f32> = (0..csr.entries()).map(|i| (i as f32).sin()).collect();
        let csr = Csr::new((rows, cols), indptr, indices, data).unwrap();
        let bsr = csr.to_bsr((7, 4)).unwrap();
        let x: Vec<f32> = (0..cols).map(|i| (i as f32).cos()).collect();
        let of = |threads: usize| {
            let (mut one, mut other) = (vec![0.0; rows], vec![0.0; rows]);
            csr.matvec(&x, &mut one, threads).unwrap();
            bsr.matvec(&x, &mut other, threads).unwrap();
            (one, other)
        };
        assert_eq!(of(1), of(2));
        assert_eq!(of(1), of(5));
    }

    #[test]
    fn what_is_no_matrix_says_why() {
        let csr = |indptr: Vec<u32>, indices: Vec<u32>, data: Vec<f32>| {
            Csr::new((2, 3), indptr, indices, data).map(|csr| csr.check_sorted())
        };
        let words = |result: Result<Result<()>>| result.and_then(|sorted| sorted).unwrap_err().to_string();
        assert!(words(csr(vec![0, 1], vec![0], vec![1.0])).contains("one more than rows"));
        assert!(words(csr(vec![0, 1, 3], vec![0], vec![1.0])).contains("to 3, where there are 1"));
        assert!(
            words(csr(vec![0, 2, 1], vec![0], vec![1.0])).contains("row 1 begins at entry 2 and ends at 1")
        );
        assert!(
            words(csr(vec![0, 1, 1], vec![3], vec![1.0])).contains("entry 0, in row 0, is in column 3 of 3")
        );
        assert!(words(csr(vec![0, 1, 1], vec![1], vec![])).contains("as many"));
        assert!(words(csr(vec![0, 0, 2], vec![2, 1], vec![1.0; 2])).contains("row 1: column 1 comes after"));
        assert!(words(csr(vec![0, 2, 2], vec![1, 1], vec![1.0; 2])).contains("row 0: column 1 comes twice"));
        let sorted = Csr::<u32, f32>::new((2, 3), vec![0, 2, 2], vec![1, 1], vec![1.0; 2]).unwrap();
        let words = |result: Result<()>| result.unwrap_err().to_string();
        assert!(words(sorted.matvec(&[0.0; 2], &mut [0.0; 2], 1)).contains("the vector has 2"));
        assert!(words(sorted.matmat(&[0.0; 6], 2, &mut [0.0; 2], 1)).contains("the product has 2"));
        assert!(sorted.to_bsr((0, 2)).unwrap_err().to_string().contains("0 by 2"));
        let huge = Csr::<u64, u8>::new((1, usize::MAX), vec![0, 0], vec![], vec![]).unwrap();
        assert!(huge.transposed().is_err() || huge.to_dense().is_err());
        assert!(u32::checked(1 << 33).unwrap_err().to_string().contains("64-bit"));
        let bsr = Bsr::<u32, f32>::new((3, 3), (2, 2), vec![0, 0, 1], vec![2], vec![0.0; 4]);
        assert!(bsr.unwrap_err().to_string().contains("block 0 is in column 2 of 2"));
        let coo = Coo::<u32, f32>::new(&[2, 2], vec![vec![0].into(), vec![2].into()], vec![1.0]);
        assert!(coo.unwrap_err().to_string().contains("entry 0 is at 2 of 2 along axis 1"));
    }
}
