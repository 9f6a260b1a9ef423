//! LIBSVM lines: `label index:value index:value …`, as sparse rows.
//!
//! Flow: lines -> how many columns there are -> a schema; a line -> its label, and its entries straight into its row.
//! Memory: none; a row is never longer than its line.
//!
//! Indices ascend in a line and begin with 1, or with 0 where any line has one: which it is holds for all. `qid:` of ranking data is a field. What
//! follows `#` is a comment. Bad lines count towards no number of columns.

use super::{Field, Kind, Part, Schema, Value};
use crate::{Error, Result};

/// What the lines have together.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The largest index, and whether any is 0.
    largest: Option<u64>,
    from_zero: bool,
    queries: bool,
}

/// What of a line is no comment.
pub(super) fn content(line: &[u8]) -> &[u8] {
    &line[..line.iter().position(|byte| *byte == b'#').unwrap_or(line.len())]
}

impl Seen {
    pub(super) fn look(&mut self, text: &[u8]) {
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

    pub(super) fn schema(&self) -> Schema {
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
pub(crate) fn entries(text: &[u8], part: Part, base: u64, columns: u64, into: &mut [u8]) -> Result<usize> {
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
pub(super) fn parse<'a>(schema: &Schema, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
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

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::super::lines::opened;
    use super::*;
    use proptest::prelude::*;

    fn row(text: &str, part: Part, base: u64) -> Result<Vec<[u8; 4]>> {
        let mut room = vec![[0; 4]; text.len() / 4];
        let count = entries(text.as_bytes(), part, base, 10, room.as_flattened_mut())?;
        room.truncate(count);
        Ok(room)
    }

    #[test]
    fn lines_are_rows() {
        let source = opened("x.libsvm", "+1 1:0.5 7:-2e3  # why\n\n# none\n-1\n2.5\t3:1\r\n").unwrap();
        assert_eq!(source.len(), 3);
        assert!(matches!(source.schema()[1].kind, Kind::Sparse { base: 1, columns: 7, .. }));
        assert_eq!(source.key(2).unwrap(), "line 5");
        crate::testing::source(&opened("x.libsvm", "1 0:1\n0 5:2\n").unwrap()).unwrap();
        let ranked = opened("x.libsvm", "1 qid:7 1:1\n0 qid:8\n").unwrap();
        assert_eq!(ranked.schema()[1].name, "qid");
        assert_eq!(ranked.parse(&ranked.locate(&[1]).unwrap()[0], b"0 qid:8").unwrap()[1], Value::Int(8));
        assert!(opened("x.libsvm", "# nothing\n").unwrap_err().to_string().contains("no line"));
        let indices = row("+1 1:0.5 7:-2e3", Part::Indices, 1).unwrap();
        assert_eq!(indices, [0u32.to_le_bytes(), 6u32.to_le_bytes()]);
        assert_eq!(row("1 1:0.5 7:-2e3", Part::Values, 1).unwrap()[1], (-2000f32).to_le_bytes());
    }

    #[test]
    fn what_is_no_line_says_why() {
        let words = |text: &str| row(text, Part::Values, 1).unwrap_err().to_string();
        assert!(words("1 2:1 2:1").contains("index 2 comes after 2"));
        assert!(words("1 3:1 2:1").contains("index 2 comes after 3"));
        assert!(words("1 2").contains("\"2\" is no index:value"));
        assert!(words("1 2:x").contains("\"x\" is no index:value"));
        let column = |text: &str| row(text, Part::Indices, 1).unwrap_err().to_string();
        assert!(column("1 11:1").contains("index 11 of 10 columns"));
        assert!(column("1 0:1").contains("index 0 of 10 columns from 1"));
        assert!(words("1 99999999999999999999:1").contains("no index:value"));
        assert!(words("1 1:1e39").contains("beyond float32"));
        assert_eq!(row("1 1:inf", Part::Values, 1).unwrap(), [f32::INFINITY.to_le_bytes()]);
        let mut room = [[0; 4]; 9];
        let alone = entries(b"1 3:0.5 1:2", Part::Indices, 1, 0, room.as_flattened_mut());
        assert!(alone.unwrap_err().to_string().contains("index 1 comes after 3"));
        let source = opened("x.libsvm", "cat 1:1\n").unwrap();
        let at = &source.locate(&[0]).unwrap()[0];
        assert!(source.parse(at, b"cat 1:1").unwrap_err().to_string().contains("\"cat\" is no number"));
    }

    proptest! {
        #[test]
        fn no_line_panics_or_needs_more_room_than_it_has(text in "[ -~]{0,60}", pairs in prop::collection::vec((0u64..9, "-?[0-9]{1,3}"), 0..9)) {
            let _an_error_or_a_row = row(&text, Part::Indices, 0).is_ok();
            let mut pairs = pairs;
            pairs.sort_unstable_by_key(|pair| pair.0);
            pairs.dedup_by_key(|pair| pair.0);
            let line = pairs.iter().fold("1".to_owned(), |line, (index, value)| format!("{line} {index}:{value}"));
            prop_assert_eq!(row(&line, Part::Values, 0).unwrap().len(), pairs.len());
        }
    }
}
