//! CSV and TSV: one record a line, cells separated by commas or tabs, names in the first line
//! (RFC 4180).
//!
//! Flow: the line of names, lines -> types of columns -> a schema; a line -> values that borrow
//! from it.
//! Memory: a few words a cell while a line is parsed.
//!
//! A quoted cell can contain the delimiter, line ends and doubled quotes. An empty cell is
//! missing. A column holds integers or floats if all inspected cells do, else text.

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

/// Infers the schema from lines.
#[derive(Debug)]
pub struct SchemaScan {
    delimiter: u8,
    names: Vec<String>,
    /// For each column: whether all cells so far are integers, whether all are numbers, and
    /// whether there are any.
    columns: Vec<(bool, bool, bool)>,
}

impl SchemaScan {
    /// A scan of files with this delimiter, without lines yet.
    pub fn new(delimiter: u8) -> Self {
        Self { delimiter, names: Vec::new(), columns: Vec::new() }
    }

    /// Reads the line of names of a file.
    ///
    /// # Errors
    /// For names that are empty, repeated, or different from those of earlier files.
    pub fn names(&mut self, line: &[u8]) -> Result<(), String> {
        let name = |cell: &[u8]| match value(cell) {
            Value::Bytes(name) => {
                std::str::from_utf8(name).map(str::to_owned).map_err(|_| "a name that is no UTF-8".to_owned())
            }
            Value::Missing => {
                Err("a column without a name: the first line has them (pandas writes one with index=False)"
                    .into())
            }
            _ => Err("a column name that contains quotes, which a field name cannot".into()),
        };
        let names = cells(line, self.delimiter).map(name).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(format!("the column {:?} comes twice", twice.1));
        }
        if self.names.is_empty() {
            self.columns = vec![(true, true, false); names.len()];
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
        for (cell, (integers, numbers, any)) in cells(line, self.delimiter).zip(&mut self.columns) {
            if cell.is_empty() {
                continue;
            }
            *any = true;
            *integers &= number::<i64>(cell).is_some();
            // An integer beyond int64 would lose digits as a float.
            let digits = cell.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-'));
            *numbers &= number::<f64>(cell).is_some() && (!digits || number::<i64>(cell).is_some());
        }
    }

    /// The common schema of the lines.
    pub fn schema(self) -> Schema {
        let kind = |(integers, numbers, any)| match (any, integers, numbers) {
            (true, true, _) => Kind::Int,
            (true, _, true) => Kind::Float,
            _ => Kind::Text,
        };
        let columns = self.names.into_iter().zip(self.columns);
        columns.map(|(name, column)| Field { name, kind: kind(column) }).collect()
    }
}

/// The values of a line.
///
/// # Errors
/// [`Error::Decode`] if the number of cells is not that of the names, or a cell does not have the
/// type that the schema states.
pub fn parse<'a>(schema: &Schema, delimiter: u8, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let mut values = Vec::with_capacity(schema.len());
    for cell in cells(line, delimiter) {
        let Some(field) = schema.get(values.len()) else {
            let count = cells(line, delimiter).count();
            return Err(Error::decode(format!("{count} cells under {} names", schema.len())));
        };
        let misfit = || {
            let shown = String::from_utf8_lossy(&cell[..cell.len().min(40)]);
            Error::decode(format!(
                "{shown:?} in column {:?}, which is {} in the first lines",
                field.name,
                field.kind.name()
            ))
        };
        values.push(match field.kind {
            _ if cell.is_empty() => Value::Missing,
            Kind::Int => Value::Int(number(cell).ok_or_else(misfit)?),
            Kind::Float => Value::Float(number(cell).ok_or_else(misfit)?),
            _ => value(cell),
        });
    }
    match values.len() == schema.len() {
        true => Ok(values),
        false => Err(Error::decode(format!("{} cells under {} names", values.len(), schema.len()))),
    }
}
