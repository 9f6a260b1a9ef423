//! A group of packed rows: what a decoded group of a table is, until its last row was delivered.
//!
//! Flow: record batches -> rows, packed into memory of the caller; a number -> the bytes of a row.
//! Memory: the caller's.
//!
//! A packed group is u32 offsets\[rows + 1\], then the rows. A row has for each column a u32 size
//! (all ones: missing) and its bytes.

use arrow_array::RecordBatch;

use super::arrow_values::{Cell, MISSING, WORD};
use super::columns::Columns;
use crate::{Error, Result};

/// Rows packed one after another into a group's memory.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    into: &'a mut [u8],
    rows: usize,
    row: usize,
    at: usize,
}

impl<'a> Packed<'a> {
    /// An empty group of `rows` rows.
    pub(crate) fn new(into: &'a mut [u8], rows: usize) -> Self {
        Self { into, rows, row: 0, at: head_bytes(rows) }
    }

    /// Packs a batch of the wanted columns.
    pub(crate) fn push(&mut self, columns: &Columns, batch: &RecordBatch, wanted: &[bool]) -> Result<()> {
        let cells = columns.cells(batch, wanted)?;
        for row in 0..batch.num_rows() {
            self.begin()?;
            for cells in &cells {
                match cells.value(row)? {
                    Cell::Missing => self.put(&MISSING.to_le_bytes())?,
                    Cell::Bytes(bytes) => self.sized(&bytes)?,
                    Cell::Int(x) => self.sized(&x.to_le_bytes())?,
                    Cell::Float(x) => self.sized(&x.to_le_bytes())?,
                }
            }
        }
        Ok(())
    }

    /// Checks that all rows came.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.row != self.rows {
            return Err(Error::decode(format!(
                "a group of {} rows where {} were expected",
                self.row, self.rows
            )));
        }
        self.offset()
    }

    fn begin(&mut self) -> Result<()> {
        if self.row == self.rows {
            return Err(Error::decode(format!(
                "a group of more than the {} rows that were expected",
                self.rows
            )));
        }
        self.offset()?;
        self.row += 1;
        Ok(())
    }

    fn offset(&mut self) -> Result<()> {
        let word = u32::try_from(self.at).map_err(|_| grew())?.to_le_bytes();
        let target = self.into.get_mut(self.row * WORD..(self.row + 1) * WORD).ok_or_else(grew)?;
        target.copy_from_slice(&word);
        Ok(())
    }

    fn sized(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(&u32::try_from(bytes.len()).map_err(|_| grew())?.to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let target = self.into.get_mut(self.at..self.at + bytes.len()).ok_or_else(grew)?;
        target.copy_from_slice(bytes);
        self.at += bytes.len();
        Ok(())
    }
}

fn grew() -> Error {
    Error::decode("a group is larger than when it was indexed: run `tidegate index --force`")
}

/// Bytes of the offsets in front of packed rows.
pub(crate) fn head_bytes(rows: usize) -> usize {
    (rows + 1) * WORD
}

/// A row of a packed group.
pub(crate) fn packed_row(group: &[u8], row: usize) -> Option<&[u8]> {
    let word = |i: usize| {
        let bytes = group.get(i * WORD..(i + 1) * WORD)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    group.get(word(row)?..word(row + 1)?)
}
