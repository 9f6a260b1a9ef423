//! LIBSVM lines: `label index:value index:value …`, as sparse rows.
//!
//! Flow: lines -> how many columns there are -> a schema; a line -> its label, and its entries straight into its row.
//! Memory: none; a row is never longer than its line.
//!
//! Indices ascend in a line and begin with 1, or with 0 where any line has one: which it is holds for all. `qid:` of ranking data is a field. What
//! follows `#` is a comment. Bad lines count towards no number of columns.

use crate::{Error, Result};
use crate::{Field, Kind, Part, Schema, Value};

/// What the lines have together.
#[derive(Debug, Default)]
pub struct Seen {
    /// The largest index, and whether any is 0.
    largest: Option<u64>,
    from_zero: bool,
    queries: bool,
}

/// What of a line is no comment.
pub fn content(line: &[u8]) -> &[u8] {
    &line[..line.iter().position(|byte| *byte == b'#').unwrap_or(line.len())]
}

impl Seen {
    /// Looks at a line.
    pub fn look(&mut self, text: &[u8]) {
        let mut line = Line::of(text);
        self.queries |= line.query().is_some();
        let (mut first, mut last) = (None, None);
        for entry in line {
            let Ok((index, _)) = entry else { return };
            // Columns are of 32 bits: who has more fails where he is read, and counts for none.
            if index > u64::from(u32::MAX) {
                return;
            }
            first.get_or_insert(index);
            last = Some(index);
        }
        self.from_zero |= first == Some(0);
        self.largest = self.largest.max(last);
    }

    /// The schema that the lines have in common.
    pub fn schema(&self) -> Schema {
        let base = u64::from(!self.from_zero);
        let columns = self.largest.map_or(0, |largest| largest + 1 - base);
        let features = |part| Kind::Sparse { part, base, columns };
        let field = |name: &str, kind| Field { name: name.into(), kind };
        let mut schema = vec![field("label", Kind::Float)];
        if self.queries {
            schema.push(field("qid", Kind::Int));
        }
        schema.extend([field("indices", features(Part::Indices)), field("values", features(Part::Values))]);
        schema
    }
}

/// Digits of an index: what 64 bits hold.
const DIGITS_MOST: usize = 19;

/// The entries of a line, in order.
#[derive(Debug)]
struct Line<'a> {
    rest: &'a [u8],
    before: Option<u64>,
}

/// The next word, and what is behind it.
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
    /// Behind the label.
    fn of(text: &'a [u8]) -> Self {
        Self { rest: word(text).map_or(&[][..], |(_, rest)| rest), before: None }
    }

    /// The query of a ranking, if it comes next.
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
        Error::Decode(format!(
            "index {index} of {columns} columns from {base} on: the file changed, or it has 2^32 and more"
        ))
    })
}

/// A value, which float32 has to hold.
fn float(text: &[u8]) -> Result<f32> {
    let parsed = lexical_core::parse::<f32>(text).ok().or_else(|| number(text));
    let value = parsed.ok_or_else(|| Error::Decode(odd(text)))?;
    if value.is_infinite() && text.iter().any(u8::is_ascii_digit) {
        return Err(Error::Decode(format!("{:?} is beyond float32: scale the column", shown(text))));
    }
    Ok(value)
}

/// Writes one part of a line's entries into a row, and says how many they are.
///
/// # Errors
/// [`Error::Decode`] for lines that are none, indices out of order or of range.
pub fn entries(text: &[u8], part: Part, base: u64, columns: u64, into: &mut [u8]) -> Result<usize> {
    let mut line = Line::of(text);
    let _not_here = line.query();
    let (words, _) = into.as_chunks_mut::<4>();
    let mut words = words.iter_mut();
    let mut count = 0;
    while let Some(entry) = line.next() {
        let (index, value) = entry.map_err(Error::Decode)?;
        let word =
            words.next().ok_or_else(|| Error::Decode("more entries than the line has room for".into()))?;
        *word = match part {
            Part::Indices => match column(index, base, columns) {
                Ok(column) => column.to_le_bytes(),
                // A line out of order counted for no columns: that is what is wrong with it.
                Err(beyond) => {
                    return Err(line.find_map(std::result::Result::err).map_or(beyond, Error::Decode));
                }
            },
            Part::Values => float(value)?.to_le_bytes(),
        };
        count += 1;
    }
    Ok(count)
}

/// The values of a line; of its entries the line itself.
///
/// # Errors
/// [`Error::Decode`] for a label that is no number.
pub fn parse<'a>(schema: &Schema, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let label = word(line).map_or(&[][..], |(label, _)| label);
    let label =
        number(label).ok_or_else(|| Error::Decode(format!("the label {:?} is no number", shown(label))))?;
    let of = |field: &Field| match field.kind {
        Kind::Float => Value::Float(label),
        Kind::Int => Line::of(line).query().map_or(Value::Missing, Value::Int),
        _ => Value::Bytes(line),
    };
    Ok(schema.iter().map(of).collect())
}
