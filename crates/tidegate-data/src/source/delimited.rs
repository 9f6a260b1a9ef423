//! CSV and TSV: a record a line, cells between commas or tabs, under a line of names (RFC 4180).
//!
//! Flow: the line of names, lines -> types of columns -> a schema; a line -> values, where they lie in it.
//! Memory: a few words a cell while a line is parsed.
//!
//! Cells in quotes may have the delimiter, line ends and doubled quotes. Empty cells are missing. A column is of integers or floats if all cells
//! that were looked at are, else of text.

use super::quoted::Quoted;
use super::{Field, Kind, Schema, Value};
use crate::{Error, Result};

/// Where in a record one is. Quotes count at the beginning of a cell alone: `5" pipe` is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
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
    pub(super) fn next(self, byte: u8, delimiter: u8) -> Self {
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
pub(super) struct Seen {
    delimiter: u8,
    names: Vec<String>,
    /// Whether all cells of a column so far are integers, and whether they are numbers; whether there are any.
    columns: Vec<(bool, bool, bool)>,
}

impl Seen {
    pub(super) fn new(delimiter: u8) -> Self {
        Self { delimiter, names: Vec::new(), columns: Vec::new() }
    }

    /// Takes the line of names of a file.
    ///
    /// # Errors
    /// Names that come twice, are empty, or are not those of the files before.
    pub(super) fn names(&mut self, line: &[u8]) -> Result<(), String> {
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

    pub(super) fn look(&mut self, line: &[u8]) {
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

    pub(super) fn schema(self) -> Schema {
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
pub(super) fn parse<'a>(schema: &Schema, delimiter: u8, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
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

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::super::lines::opened;
    use super::*;

    #[test]
    fn cells_are_fields() {
        let text = "id,name,score,\"a b\"\r\n1,\"x, y\",0.5,\r\n2,\"say \"\"hi\"\"\nthere\",3,z\n\n3,,,\n";
        let source = opened("x.csv", text).unwrap();
        let kinds: Vec<_> =
            source.schema().iter().map(|field| (field.name.as_str(), field.kind.name())).collect();
        assert_eq!(kinds, [("id", "int"), ("name", "text"), ("score", "float"), ("a b", "text")]);
        assert_eq!(
            (source.len(), source.key(1).unwrap(), source.key(2).unwrap()),
            (3, "line 3".into(), "line 6".into())
        );
        crate::testing::source(&opened("y.tsv", "a\tb\n1\tx\n2\ty").unwrap()).unwrap();
        let values = parse(source.schema(), b',', b"1,\"x, y\",0.5,").unwrap();
        assert_eq!(values, [Value::Int(1), Value::Bytes(b"x, y"), Value::Float(0.5), Value::Missing]);
        let values = parse(source.schema(), b',', b"2,\"say \"\"hi\"\"\nthere\",3,z").unwrap();
        let Value::Quoted(quoted) = values[1] else { panic!("it has quotes") };
        assert_eq!(quoted.text().unwrap(), b"say \"hi\"\nthere");
    }

    #[test]
    fn quotes_count_at_the_beginning_of_a_cell_alone() {
        let source = opened("x.csv", "name,n\n5\" pipe,1\n6\" pipe,2\nplain,3\n\"a\"\"\",4\n").unwrap();
        assert_eq!(source.len(), 4);
        let values = parse(source.schema(), b',', b"5\" pipe,1").unwrap();
        assert_eq!(values, [Value::Bytes(b"5\" pipe"), Value::Int(1)]);
        let values = parse(source.schema(), b',', b"\"a\"\"\",4").unwrap();
        assert!(matches!(values[0], Value::Quoted(quoted) if quoted.text().unwrap() == b"a\""));
        let error = opened("x.csv", "name,n\n\"open,1\n2,3\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("never closed"), "{error}");
        // Integers that int64 does not hold stay what they are.
        let source = opened("x.csv", "id\n18446744073709551615\n18446744073709551614\n").unwrap();
        assert_eq!(source.schema()[0].kind, Kind::Text);
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let source = opened("x.csv", "a,b\n1,x\n").unwrap();
        let words = |line: &str| parse(source.schema(), b',', line.as_bytes()).unwrap_err().to_string();
        assert!(words("1").contains("1 cells under 2 names"));
        assert!(words("1,2,3").contains("3 cells under 2 names"));
        assert!(words("x,y").contains("\"x\" in column \"a\", which is int"));
        let words = |text: &str| opened("x.csv", text).unwrap_err().to_string();
        assert!(words("a,a\n1,2\n").contains("line 1") && words("a,a\n1,2\n").contains("comes twice"));
        assert!(words("a,\n1,2\n").contains("without a name"));
        assert!(words("a,b\n").contains("no line with a sample"));
    }
}
