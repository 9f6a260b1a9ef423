//! Coordinate format (COO): the entries of an N-d array in any order, each with its coordinates.
//!
//! Flow: coordinates along each axis and entries, checked -> [`Coo`] -> summed duplicates, CSR
//! ([`Csr`]), dense arrays.
//! Memory: as in `sparse`.

use super::csr::CsrBuilder;
use super::{Csr, Element, Held, Index, bytes, changed, sparsity};
use crate::{Error, Result, filled};

/// An array in coordinate format. Entries with equal coordinates are summed.
#[derive(Debug, Clone, PartialEq)]
pub struct Coo<'a, I: Index, T: Element> {
    shape: Vec<usize>,
    /// For each axis, the coordinate of every entry.
    coords: Vec<Held<'a, I>>,
    data: Held<'a, T>,
}

impl<'a, I: Index, T: Element> Coo<'a, I, T> {
    /// Builds an array from entries. `coords` has one array per axis, as SciPy's
    /// `coo_array.coords` and the rows of torch's `indices()`.
    ///
    /// # Errors
    /// [`Error::Value`] if the lengths do not match, or if a coordinate is out of range (the
    /// message names the entry and the axis).
    ///
    /// ```
    /// use tidegate_array::sparse::Coo;
    /// let coords = vec![vec![1, 0, 1].into(), vec![0, 1, 0].into()];
    /// let one = Coo::<u32, i32>::new(&[2, 2], coords, vec![5, 7, 6])?;
    /// assert_eq!(one.to_dense()?, [0, 7, 11, 0]);
    /// assert_eq!(one.to_csr()?.arrays(), (&[0, 1, 2][..], &[1, 0][..], &[7, 11][..]));
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn new(shape: &[usize], coords: Vec<Held<'a, I>>, data: impl Into<Held<'a, T>>) -> Result<Self> {
        let array = Self { shape: shape.to_vec(), coords, data: data.into() };
        if array.coords.len() != shape.len() {
            return Err(Error::value(format!(
                "coordinates along {} axes for an array of {} axes",
                array.coords.len(),
                shape.len()
            )));
        }
        for (axis, (coords, side)) in array.coords.iter().zip(shape).enumerate() {
            if coords.len() != array.data.len() {
                return Err(Error::value(format!(
                    "{} entries have {} coordinates along axis {axis}: there must be as many",
                    array.data.len(),
                    coords.len()
                )));
            }
            if let Some(entry) = coords.iter().position(|at| at.at() >= *side) {
                return Err(Error::value(format!(
                    "entry {entry} is at {} of {side} along axis {axis}",
                    coords[entry].shown()
                )));
            }
        }
        Ok(array)
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of stored entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.data.len()
    }

    /// The coordinates along each axis, and the entries.
    #[must_use]
    pub fn arrays(&self) -> (Vec<&[I]>, &[T]) {
        (self.coords.iter().map(|coords| &**coords).collect(), &self.data)
    }

    /// Bytes of all arrays.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.coords.iter().map(|coords| bytes(coords)).sum::<u64>() + bytes(&self.data)
    }

    /// The share of elements without an entry, if no coordinates repeat.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        sparsity(self.entries(), self.shape.iter().copied())
    }

    /// The same array in C order, with duplicates summed in their original order.
    ///
    /// # Errors
    /// [`Error::Value`] if the index type cannot count the entries.
    pub fn canonical(&self) -> Result<Coo<'static, I, T>> {
        let place = |entry: usize| self.coords.iter().map(move |coords| coords[entry]);
        let mut order: Vec<usize> = (0..self.entries()).collect();
        order.sort_by(|&a, &b| place(a).cmp(place(b)));
        let mut coords: Vec<Vec<I>> = vec![Vec::with_capacity(order.len()); self.shape.len()];
        let mut data: Vec<T> = Vec::with_capacity(order.len());
        let mut before: Option<usize> = None;
        for entry in order {
            match data.last_mut() {
                Some(last) if before.is_some_and(|before| place(before).eq(place(entry))) => {
                    *last = last.plus(self.data[entry]);
                }
                _ => {
                    coords.iter_mut().zip(place(entry)).for_each(|(coords, at)| coords.push(at));
                    data.push(self.data[entry]);
                }
            }
            before = Some(entry);
        }
        Coo::new(&self.shape, coords.into_iter().map(Into::into).collect(), data)
    }

    /// The matrix in CSR format, columns ascending, duplicates summed.
    ///
    /// # Errors
    /// [`Error::Value`] if the array does not have two axes.
    pub fn to_csr(&self) -> Result<Csr<'static, I, T>> {
        let ([rows, cols], [row_of, col_of]) = (&self.shape[..], &self.coords[..]) else {
            return Err(Error::value(format!(
                "an array of {} axes cannot become CSR: it needs two axes",
                self.shape.len()
            )));
        };
        // Entries by row, in their original order.
        let mut next = filled(rows.checked_add(1), 0usize)?;
        for row in row_of.iter() {
            *next.get_mut(row.at() + 1).ok_or_else(changed)? += 1;
        }
        for row in 0..*rows {
            next[row + 1] += next[row];
        }
        let starts = next.clone();
        let mut entries = vec![(I::zeroed(), T::ZERO); self.entries()];
        for (entry, row) in row_of.iter().enumerate() {
            let place = next.get_mut(row.at()).ok_or_else(changed)?;
            *entries.get_mut(*place).ok_or_else(changed)? = (col_of[entry], self.data[entry]);
            *place += 1;
        }
        let mut made = CsrBuilder::new(*rows, self.entries());
        for row in 0..*rows {
            made.push(&mut entries[starts[row]..starts[row + 1]])?;
        }
        made.finish(*cols)
    }

    /// The dense array in C order; duplicates are summed.
    ///
    /// # Errors
    /// [`Error::Value`] if the allocation fails.
    pub fn to_dense(&self) -> Result<Vec<T>> {
        let places = self.shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        let mut dense = filled(places, T::ZERO)?;
        for (entry, value) in self.data.iter().enumerate() {
            let at = self
                .coords
                .iter()
                .zip(&self.shape)
                .fold(0, |at, (coords, side)| at * side + coords[entry].at());
            let place = dense.get_mut(at).ok_or_else(changed)?;
            *place = place.plus(*value);
        }
        Ok(dense)
    }

    /// The nonzero elements of a dense array in C order.
    ///
    /// # Errors
    /// [`Error::Value`] if the array has another length than the shape needs, or if the index type
    /// is too small for it.
    pub fn from_dense(shape: &[usize], dense: &[T]) -> Result<Coo<'static, I, T>> {
        if shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)) != Some(dense.len()) {
            return Err(Error::value(format!("{} elements do not fill the shape {shape:?}", dense.len())));
        }
        let mut coords: Vec<Vec<I>> = vec![Vec::new(); shape.len()];
        let mut data = Vec::new();
        for (at, value) in dense.iter().enumerate().filter(|(_, value)| **value != T::ZERO) {
            let mut rest = at;
            for (coords, side) in coords.iter_mut().zip(shape).rev() {
                coords.push(I::checked(rest % side)?);
                rest /= side;
            }
            data.push(*value);
        }
        Coo::new(shape, coords.into_iter().map(Into::into).collect(), data)
    }
}

impl<I: Index, T: Element> Csr<'_, I, T> {
    /// The matrix in coordinate format, row by row.
    ///
    /// # Errors
    /// [`Error::Value`] if borrowed memory has changed, or if the index type cannot count the
    /// rows.
    pub fn to_coo(&self) -> Result<Coo<'static, I, T>> {
        let mut rows = Vec::with_capacity(self.entries());
        for row in 0..self.rows {
            let this = I::checked(row)?;
            rows.extend(self.range(row)?.map(|_| this));
        }
        let coords = vec![rows.into(), self.indices.to_vec().into()];
        Coo::new(&[self.rows, self.cols], coords, self.data.to_vec())
    }
}
