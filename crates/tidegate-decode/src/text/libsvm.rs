//! LIBSVM lines: `label index:value index:value …`, as sparse rows.
//!
//! Flow: lines -> the number of columns -> a schema; a line -> its label, and its entries straight
//! into its row.
//! Memory: none; a row is never longer than its line.
//!
//! Indices ascend within a line. They begin with 0 if any line has index 0, else with 1, in all
//! lines. `qid:` of ranking data is a field. Text after `#` is a comment. A malformed line does
//! not count towards the number of columns.

use crate::{Error, Result};
use crate::{Field, Kind, Schema, SparsePart, Value};

/// Infers the schema from lines.
#[derive(Debug, Default)]
pub struct SchemaScan {
    /// The largest index.
    largest: Option<u64>,
    /// Whether any index is 0.
    from_zero: bool,
    /// Whether any line has a `qid:`.
    queries: bool,
}

/// The part of a line before its comment.
pub fn content(line: &[u8]) -> &[u8] {
    &line[..line.iter().position(|byte| *byte == b'#').unwrap_or(line.len())]
}

impl SchemaScan {
    /// Inspects a line.
    pub fn add_line(&mut self, text: &[u8]) {
        let mut line = Line::new(text);
        self.queries |= line.query().is_some();
        let (mut first, mut last) = (None, None);
        for entry in line {
            let Ok((index, _)) = entry else { return };
            // Column indices are 32-bit. A larger index fails when its line is read and is ignored
            // here.
            if index > u64::from(u32::MAX) {
                return;
            }
            first.get_or_insert(index);
            last = Some(index);
        }
        self.from_zero |= first == Some(0);
        self.largest = self.largest.max(last);
    }

    /// The common schema of the lines.
    pub fn schema(&self) -> Schema {
        let base = u64::from(!self.from_zero);
        let columns = self.largest.map_or(0, |largest| largest + 1 - base);
        let features = |part| Kind::Sparse { part, base, columns };
        let field = |name: &str, kind| Field { name: name.into(), kind };
        let mut schema = vec![field("label", Kind::Float)];
        if self.queries {
            schema.push(field("qid", Kind::Int));
        }
        schema.extend([
            field("indices", features(SparsePart::Indices)),
            field("values", features(SparsePart::Values)),
        ]);
        schema
    }
}

/// Digits of an index at most, so that it fits in 64 bits.
const DIGITS_MOST: usize = 19;

/// The entries of a line, in order.
#[derive(Debug)]
struct Line<'a> {
    rest: &'a [u8],
    before: Option<u64>,
}

/// The next word, and the text after it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = text.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let text = &text[start..];
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    Some(text.split_at(end))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned()
}

impl<'a> Line<'a> {
    /// The entries after the label.
    fn new(text: &'a [u8]) -> Self {
        Self { rest: word(text).map_or(&[][..], |(_, rest)| rest), before: None }
    }

    /// The `qid:` of ranking data, if it comes next.
    fn query(&mut self) -> Option<i64> {
        let (query, rest) = word(self.rest)?;
        let query = number(query.strip_prefix(b"qid:")?)?;
        self.rest = rest;
        Some(query)
    }
}

impl<'a> Iterator for Line<'a> {
    /// An index, and the text of its value.
    type Item = Result<(u64, &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let text = &self.rest[start..];
        let digits = text.iter().take(DIGITS_MOST).take_while(|byte| byte.is_ascii_digit()).count();
        let end =
            digits + text[digits..].iter().position(u8::is_ascii_whitespace).unwrap_or(text.len() - digits);
        let (entry, rest) = text.split_at(end);
        self.rest = rest;
        if digits == 0 || entry.get(digits) != Some(&b':') {
            return Some(Err(odd(entry)));
        }
        let index = entry[..digits].iter().fold(0, |n, byte| 10 * n + u64::from(byte - b'0'));
        if let Some(before) = self.before.filter(|before| *before >= index) {
            let what =
                format!("index {index} comes after {before}: sort each line by its indices, once each");
            return Some(Err(what));
        }
        self.before = Some(index);
        Some(Ok((index, &entry[digits + 1..])))
    }
}

fn odd(entry: &[u8]) -> String {
    format!("{:?} is no index:value", shown(entry))
}

/// The column of an index.
fn column(index: u64, base: u64, columns: u64) -> Result<u32> {
    let column = index.checked_sub(base).filter(|column| *column < columns);
    column.and_then(|column| u32::try_from(column).ok()).ok_or_else(|| {
        Error::decode(format!(
            "index {index} of {columns} columns from {base} on: the file changed, or it has 2^32 and more"
        ))
    })
}

/// Parses a value as float32.
fn float(text: &[u8]) -> Result<f32> {
    let parsed = lexical_core::parse::<f32>(text).ok().or_else(|| number(text));
    let value = parsed.ok_or_else(|| Error::Decode(odd(text)))?;
    if value.is_infinite() && text.iter().any(u8::is_ascii_digit) {
        return Err(Error::decode(format!("{:?} is beyond float32: scale the column", shown(text))));
    }
    Ok(value)
}

/// Writes the indices or the values of a line's entries into a row and returns their count.
///
/// # Errors
/// [`Error::Decode`] for malformed entries and for indices out of order or range;
/// [`Error::TooLarge`] if the row is too short.
pub fn entries(text: &[u8], part: SparsePart, base: u64, columns: u64, into: &mut [u8]) -> Result<usize> {
    let mut line = Line::new(text);
    // A `qid:` is a field of its own.
    let _query = line.query();
    let (words, _) = into.as_chunks_mut::<4>();
    let mut words = words.iter_mut();
    let mut count = 0;
    while let Some(entry) = line.next() {
        let (index, value) = entry.map_err(Error::Decode)?;
        let too_large = || Error::too_large("a line has more entries than its row can hold");
        let word = words.next().ok_or_else(too_large)?;
        *word = match part {
            SparsePart::Indices => match column(index, base, columns) {
                Ok(column) => column.to_le_bytes(),
                // A line with indices out of order did not count towards the columns. Report its
                // order rather than its range.
                Err(beyond) => {
                    return Err(line.find_map(std::result::Result::err).map_or(beyond, Error::Decode));
                }
            },
            SparsePart::Values => float(value)?.to_le_bytes(),
        };
        count += 1;
    }
    Ok(count)
}

/// The values of a line. The value of `indices` and `values` is the line itself.
///
/// # Errors
/// [`Error::Decode`] for a label that is not a number.
pub fn parse<'a>(schema: &Schema, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let label = word(line).map_or(&[][..], |(label, _)| label);
    let label =
        number(label).ok_or_else(|| Error::decode(format!("the label {:?} is no number", shown(label))))?;
    let of = |field: &Field| match field.kind {
        Kind::Float => Value::Float(label),
        Kind::Int => Line::new(line).query().map_or(Value::Missing, Value::Int),
        _ => Value::Bytes(line),
    };
    Ok(schema.iter().map(of).collect())
}
