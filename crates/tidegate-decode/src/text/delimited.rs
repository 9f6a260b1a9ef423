//! CSV and TSV: one record a line, cells separated by commas or tabs, names in the first line
//! (RFC 4180).
//!
//! Flow: the line of names, lines -> types of columns -> a schema; a line -> values that borrow
//! from it.
//! Memory: a few words a cell while a line is parsed.
//!
//! A quoted cell can contain the delimiter, line ends and doubled quotes. An empty cell is
//! missing. A column holds integers or floats if all its cells do, else text. A column without a
//! name is called `Unnamed: 0` and so on, as pandas calls it, which writes its index so.

use super::json::Found;
use crate::quoted::Quoted;
use crate::{Error, Result};
use crate::{Field, Kind, Schema, Value};

/// The state of a scan over a record. A quote is special only at the beginning of a cell: `5"
/// pipe` is plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanState {
    /// At the beginning of a cell.
    Cell,
    /// Within an unquoted cell, or after the closing quote of a quoted one.
    Plain,
    /// Within quotes.
    Quotes,
    /// After a quote that closes the cell, unless another quote follows.
    Quote,
}

impl ScanState {
    /// The state after the next byte.
    pub fn next(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Cell | Self::Quote, b'"') => Self::Quotes,
            (Self::Quotes, b'"') => Self::Quote,
            (Self::Quotes, _) => Self::Quotes,
            (_, byte) if byte == delimiter => Self::Cell,
            _ => Self::Plain,
        }
    }
}

/// The cells of a record.
fn cells(line: &[u8], delimiter: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut at = ScanState::Cell;
        let end = text.iter().position(|byte| {
            let ends = *byte == delimiter && at != ScanState::Quotes;
            at = at.next(*byte, delimiter);
            ends
        });
        let (cell, after) = end.map_or((text, None), |end| (&text[..end], Some(&text[end + 1..])));
        rest = after;
        Some(cell)
    })
}

/// The value of a cell, quoted or not.
fn value(cell: &[u8]) -> Value<'_> {
    match cell {
        [] => Value::Missing,
        [b'"', inner @ .., b'"'] if !inner.contains(&b'"') => Value::Bytes(inner),
        [b'"', .., b'"'] => Value::Quoted(Quoted::csv(cell)),
        plain => Value::Bytes(plain),
    }
}

fn number<T: std::str::FromStr>(cell: &[u8]) -> Option<T> {
    let Value::Bytes(text) = value(cell) else { return None };
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Infers the schema from all lines.
#[derive(Debug)]
pub struct SchemaScan {
    delimiter: u8,
    names: Vec<String>,
    columns: Vec<Cells>,
    lines: u64,
}

/// What the cells of a column have in common, so far.
#[derive(Debug, Clone, Copy, Default)]
struct Cells {
    integers: u64,
    /// Numbers that are no integers.
    fractions: u64,
    /// Cells that are no numbers, and the first sample that has one.
    others: u64,
    other: u64,
    empty: u64,
}

impl SchemaScan {
    /// A scan of files with this delimiter, without lines yet.
    pub fn new(delimiter: u8) -> Self {
        Self { delimiter, names: Vec::new(), columns: Vec::new(), lines: 0 }
    }

    /// Reads the line of names of a file.
    ///
    /// # Errors
    /// For names that are empty, repeated, or different from those of earlier files.
    pub fn names(&mut self, line: &[u8]) -> Result<(), String> {
        let name = |(number, cell): (usize, &[u8])| match value(cell) {
            Value::Missing | Value::Bytes([]) => Ok(format!("Unnamed: {number}")),
            Value::Bytes(name) => {
                std::str::from_utf8(name).map(str::to_owned).map_err(|_| "a name that is no UTF-8".to_owned())
            }
            _ => Err("a column name that contains quotes, which a field name cannot".into()),
        };
        let names = cells(line, self.delimiter).enumerate().map(name).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(format!("the column {:?} comes twice", twice.1));
        }
        if self.names.is_empty() {
            self.columns = vec![Cells::default(); names.len()];
            self.names = names;
        } else if self.names != names {
            return Err(format!(
                "columns {names:?}, where the files before have {:?}: open them apart",
                self.names
            ));
        }
        Ok(())
    }

    /// Inspects a line.
    pub fn add_line(&mut self, line: &[u8]) {
        for (cell, column) in cells(line, self.delimiter).zip(&mut self.columns) {
            // An integer beyond int64 would lose digits as a float.
            let digits = || cell.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-'));
            match () {
                () if cell.is_empty() => column.empty += 1,
                () if number::<i64>(cell).is_some() => column.integers += 1,
                () if number::<f64>(cell).is_some() && !digits() => column.fractions += 1,
                () => {
                    if column.others == 0 {
                        column.other = self.lines;
                    }
                    column.others += 1;
                }
            }
        }
        self.lines += 1;
    }

    /// What the lines have in common.
    pub fn found(self) -> Found {
        let mut found = Found { missing: self.columns.iter().map(|c| c.empty).collect(), ..Found::default() };
        for (name, column) in self.names.into_iter().zip(self.columns) {
            let Cells { integers, fractions, others, other, .. } = column;
            let kind = match (integers, fractions, others) {
                (_, _, 1..) | (0, 0, 0) => Kind::Text,
                (_, 0, _) => Kind::Int,
                _ => Kind::Float,
            };
            if integers + fractions > others && others > 0 {
                found.uncertain.push(format!(
                    "column {name:?} is a number in {} samples and other in {others}, such as in sample {other}: all \
                     come as text",
                    integers + fractions
                ));
            }
            found.schema.push(Field { name, kind });
        }
        found
    }
}

/// The values of a line.
///
/// # Errors
/// [`Error::Decode`] if the number of cells is not that of the names.
pub fn parse<'a>(schema: &Schema, delimiter: u8, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let mut values = Vec::with_capacity(schema.len());
    for cell in cells(line, delimiter) {
        if values.len() == schema.len() {
            let count = cells(line, delimiter).count();
            return Err(Error::decode(format!("{count} cells under {} names", schema.len())));
        }
        // Numbers stay text as well: their column may be wanted as text, with its leading zeros.
        values.push(value(cell));
    }
    match values.len() == schema.len() {
        true => Ok(values),
        false => Err(Error::decode(format!("{} cells under {} names", values.len(), schema.len()))),
    }
}
