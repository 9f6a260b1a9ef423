//! CSV and TSV: a record a line, cells between commas or tabs, under a line of names (RFC 4180).
//!
//! Flow: the line of names, lines -> types of columns -> a schema; a line -> values, where they lie in it.
//! Memory: a few words a cell while a line is parsed.
//!
//! Cells in quotes may have the delimiter, line ends and doubled quotes. Empty cells are missing. A column is of integers or floats if all cells
//! that were looked at are, else of text.

use super::quoted::Quoted;
use crate::{Error, Result};
use crate::{Field, Kind, Schema, Value};

/// Where in a record one is. Quotes count at the beginning of a cell alone: `5" pipe` is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The beginning of a cell.
    Cell,
    /// Within a cell without quotes, or behind the quotes of another.
    Plain,
    /// Within quotes.
    Quotes,
    /// Behind a quote that ends them, unless another one follows.
    Quote,
}

impl At {
    /// Behind the next byte.
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
        let mut at = At::Cell;
        let end = text.iter().position(|byte| {
            let ends = *byte == delimiter && at != At::Quotes;
            at = at.next(*byte, delimiter);
            ends
        });
        let (cell, behind) = end.map_or((text, None), |end| (&text[..end], Some(&text[end + 1..])));
        rest = behind;
        Some(cell)
    })
}

/// The text of a cell, in quotes or not.
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

/// What lines say of their columns.
#[derive(Debug)]
pub struct Seen {
    delimiter: u8,
    names: Vec<String>,
    /// Whether all cells of a column so far are integers, and whether they are numbers; whether there are any.
    columns: Vec<(bool, bool, bool)>,
}

impl Seen {
    /// No lines yet, of a file with this delimiter.
    pub fn new(delimiter: u8) -> Self {
        Self { delimiter, names: Vec::new(), columns: Vec::new() }
    }

    /// Takes the line of names of a file.
    ///
    /// # Errors
    /// Names that come twice, are empty, or are not those of the files before.
    pub fn names(&mut self, line: &[u8]) -> Result<(), String> {
        let name = |cell: &[u8]| match value(cell) {
            Value::Bytes(name) => {
                std::str::from_utf8(name).map(str::to_owned).map_err(|_| "a name that is no UTF-8".to_owned())
            }
            Value::Missing => {
                Err("a column without a name: the first line has them (pandas writes one with index=False)"
                    .into())
            }
            _ => Err("a name with quotes in it, which is none for a field".into()),
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

    /// Looks at a line.
    pub fn look(&mut self, line: &[u8]) {
        for (cell, (integers, numbers, any)) in cells(line, self.delimiter).zip(&mut self.columns) {
            if cell.is_empty() {
                continue;
            }
            *any = true;
            *integers &= number::<i64>(cell).is_some();
            // What int64 does not hold would lose digits as a float.
            let digits = cell.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-'));
            *numbers &= number::<f64>(cell).is_some() && (!digits || number::<i64>(cell).is_some());
        }
    }

    /// The schema that the lines have in common.
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
/// [`Error::Decode`] for another number of cells than names, and cells of other types than the schema says.
pub fn parse<'a>(schema: &Schema, delimiter: u8, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let mut values = Vec::with_capacity(schema.len());
    for cell in cells(line, delimiter) {
        let Some(field) = schema.get(values.len()) else {
            let count = cells(line, delimiter).count();
            return Err(Error::Decode(format!("{count} cells under {} names", schema.len())));
        };
        let misfit = || {
            let shown = String::from_utf8_lossy(&cell[..cell.len().min(40)]);
            Error::Decode(format!(
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
        false => Err(Error::Decode(format!("{} cells under {} names", values.len(), schema.len()))),
    }
}
