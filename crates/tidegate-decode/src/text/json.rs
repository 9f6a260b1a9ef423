//! JSON Lines: each line is an object, and its members are the fields.
//!
//! Flow: lines -> members and their types -> a schema; a line -> values that borrow from it.
//! Memory: a few words a field while a line is parsed.

use std::borrow::Cow;
use std::collections::HashMap;

use jiter::{Jiter, JiterError, JiterErrorType, JsonErrorType};

use crate::npy::DType;
use crate::quoted::Quoted;
use crate::{Error, Result};
use crate::{Field, Kind, Schema, Value};

/// Calls `each` with the members of a line's object, in order: the name, and the value as it is
/// written. NaN and infinities are numbers, as Python's `json` writes them. What is within strings,
/// lists and objects is looked at where they are delivered.
///
/// # Errors [`Error::Truncated`] for a line that ends within a value, else [`Error::Decode`], if
/// the line is not an object.
fn members<'a>(line: &'a [u8], mut each: impl FnMut(Cow<'a, str>, &'a str)) -> Result<()> {
    let mut scan = Scan { text: utf8(line)?, at: 0 };
    scan.expect(b'{', "an object begins with {")?;
    if !scan.takes(b'}') {
        loop {
            let name = scan.name()?;
            scan.expect(b':', "a name is followed by :")?;
            each(name, scan.value()?);
            if !scan.takes(b',') {
                break;
            }
        }
        scan.expect(b'}', "members are followed by , or }")?;
    }
    match scan.peek() {
        None => Ok(()),
        Some(_) => Err(scan.wrong("there is more behind the object")),
    }
}

/// A place in the text of an object.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    /// The next byte that is not blank.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.text.as_bytes().get(self.at).copied()
    }

    fn takes(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, rule: &str) -> Result<()> {
        if self.takes(byte) { Ok(()) } else { Err(self.wrong(rule)) }
    }

    fn wrong(&self, rule: &str) -> Error {
        let place = self.at + 1;
        if self.at >= self.text.len() {
            return Error::Truncated(format!(
                "no object of JSON: it ends within a value, at character {place}"
            ));
        }
        Error::Decode(format!("no object of JSON: {rule}, at character {place}"))
    }

    fn name(&mut self) -> Result<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("names are in quotes"));
        }
        let raw = self.string()?;
        if !raw.contains('\\') {
            return Ok(raw[1..raw.len() - 1].into());
        }
        let name = Quoted::json(raw.as_bytes()).text()?;
        String::from_utf8(name).map(Cow::from).map_err(|_| self.wrong("a name is no text"))
    }

    /// A string in its quotes.
    fn string(&mut self) -> Result<&'a str> {
        let (start, bytes) = (self.at, self.text.as_bytes());
        self.at += 1;
        loop {
            match bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(byte) if *byte < b' ' => {
                    return Err(self.wrong("a control character is written as an escape"));
                }
                Some(_) => self.at += 1,
                None => {
                    self.at = bytes.len();
                    return Err(self.wrong("a string ends with a quote"));
                }
            }
        }
        self.at += 1;
        Ok(&self.text[start..self.at])
    }

    fn value(&mut self) -> Result<&'a str> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => return self.string(),
            Some(b'[' | b'{') => self.nested()?,
            _ => {
                let rest = &self.text.as_bytes()[start..];
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
                let end = rest.iter().position(ends).unwrap_or(rest.len());
                if !is_scalar(&self.text[start..start + end]) {
                    self.at += if end == rest.len() { end } else { 0 };
                    return Err(self.wrong("this is no value"));
                }
                self.at += end;
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// Passes a list or an object: to the bracket that closes it.
    fn nested(&mut self) -> Result<()> {
        let mut open = 0u64;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'[' | b'{' => open += 1,
                b']' | b'}' => open -= 1,
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                return Ok(());
            }
        }
        Err(self.wrong("a bracket is closed"))
    }
}

/// Whether text is null, a truth value or a number.
fn is_scalar(text: &str) -> bool {
    if matches!(text, "null" | "true" | "false" | "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let zeros = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    digits.starts_with(|first: char| first.is_ascii_digit())
        && !zeros
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.parse::<f64>().is_ok()
}

/// Checks that text is one JSON document, with NaN and infinities.
///
/// # Errors
/// As [`parse`], with the character.
pub fn check(text: &[u8]) -> Result<()> {
    utf8(text)?;
    let mut json = Jiter::new(text).with_allow_inf_nan();
    json.next_skip().and_then(|()| json.finish()).map_err(|error| wrong(&error))
}

fn utf8(text: &[u8]) -> Result<&str> {
    std::str::from_utf8(text).map_err(|error| Error::decode(format!("no JSON: not UTF-8: {error}")))
}

fn wrong(error: &JiterError) -> Error {
    use JsonErrorType as Json;
    let place = error.index + 1;
    let JiterErrorType::JsonError(what) = &error.error_type else {
        return Error::Decode(format!("no JSON: {} at character {place}", error.error_type));
    };
    match what {
        Json::EofWhileParsingList
        | Json::EofWhileParsingObject
        | Json::EofWhileParsingString
        | Json::EofWhileParsingValue => {
            Error::Truncated(format!("no JSON: it ends within a value, at character {place}"))
        }
        Json::LoneLeadingSurrogateInHexEscape | Json::UnexpectedEndOfHexEscape => {
            Error::Decode(format!("half of a pair of \\u escapes at character {place}: no such character"))
        }
        what => Error::Decode(format!("no JSON: {what} at character {place}")),
    }
}

/// Finds names in a list, quickly if they are asked for in its order.
#[derive(Default)]
struct NameFinder {
    next: usize,
}

impl NameFinder {
    /// The index of the item that `is` accepts: usually the one after the last found.
    fn find<T>(&mut self, list: &[T], is: impl Fn(&T) -> bool) -> Option<usize> {
        let expected = list.get(self.next).is_some_and(&is).then_some(self.next);
        let found = expected.or_else(|| list.iter().position(is))?;
        self.next = found + 1;
        Some(found)
    }
}

/// The type of a member's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Int,
    Float,
    Text,
    Numbers(DType),
    Json,
}

impl Type {
    /// The type of one value; None where it does not show: null, and a list without numbers.
    fn infer(raw: &str) -> Option<Self> {
        Some(match raw.as_bytes().first()? {
            b'n' => return None,
            b'"' => Self::Text,
            b't' | b'f' => Self::Int,
            b'[' => {
                let mut found = None;
                for item in items(raw.as_bytes()).filter(|item| *item != NULL) {
                    match std::str::from_utf8(item).ok().and_then(number) {
                        Some(DType::Float64) => found = Some(DType::Float64),
                        Some(dtype) => found = found.or(Some(dtype)),
                        None => return Some(Self::Json),
                    }
                }
                Self::Numbers(found?)
            }
            b'{' => Self::Json,
            _ => match number(raw) {
                Some(DType::Float64) => Self::Float,
                Some(_) => Self::Int,
                None => Self::Json,
            },
        })
    }

    /// The type that holds values of both, if both are numbers, or lists of numbers.
    fn or(self, other: Self) -> Option<Self> {
        match (self, other) {
            (one, other) if one == other => Some(one),
            (Self::Int | Self::Float, Self::Int | Self::Float) => Some(Self::Float),
            (Self::Numbers(_), Self::Numbers(_)) => Some(Self::Numbers(DType::Float64)),
            _ => None,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Int => Kind::Int,
            Self::Float => Kind::Float,
            Self::Text => Kind::Text,
            Self::Numbers(dtype) => Kind::Numbers { dtype },
            Self::Json => Kind::Json,
        }
    }
}

/// The type of a number. An integer beyond int64 has none: it would lose digits as a float.
fn number(text: &str) -> Option<DType> {
    let text = text.trim();
    if text.parse::<i64>().is_ok() {
        return Some(DType::Int64);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    (!digits && text.parse::<f64>().is_ok()).then_some(DType::Float64)
}

/// A value that is missing.
const NULL: &[u8] = b"null";

/// The items of a list that contains no lists.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let inner = list.strip_prefix(b"[").and_then(|list| list.strip_suffix(b"]")).unwrap_or_default();
    let blank = inner.trim_ascii().is_empty();
    inner.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).take(if blank { 0 } else { usize::MAX })
}

/// Infers the schema from all lines.
#[derive(Debug, Default)]
pub struct SchemaScan {
    /// In the order in which they first appeared.
    members: Vec<Member>,
    /// Their places by name.
    places: HashMap<String, usize>,
    /// Those that the last line has.
    touched: Vec<usize>,
    /// The number of lines, and of those that are no objects.
    lines: u64,
    broken: u64,
}

/// A member of the objects seen so far.
#[derive(Debug)]
struct Member {
    name: String,
    /// The types of its values that have nothing in common: each with the number of values, and
    /// the first sample that has one.
    types: Vec<(Type, u64, u64)>,
    /// The lines that have it, with a value other than null.
    present: u64,
    /// The last line that has it, from 1, and the type and presence there.
    last: (u64, Option<Type>, bool),
}

impl Member {
    /// Takes over what the last line had.
    fn settle(&mut self) {
        let (line, this, present) = std::mem::take(&mut self.last);
        self.present += u64::from(present);
        let Some(this) = this else { return };
        for (of, count, _) in &mut self.types {
            if let Some(both) = of.or(this) {
                (*of, *count) = (both, *count + 1);
                return;
            }
        }
        self.types.push((this, 1, line - 1));
    }

    /// Its type, and what is uncertain about it. Nine values in ten decide.
    fn decide(&self) -> (Type, Option<String>) {
        let mut types = self.types.clone();
        types.sort_by_key(|(_, count, first)| (std::cmp::Reverse(*count), *first));
        let [(most, count, _), others @ ..] = &types[..] else { return (Type::Json, None) };
        let Some((other, _, first)) = others.iter().min_by_key(|(.., first)| *first) else {
            return (*most, None);
        };
        let odd: u64 = others.iter().map(|(_, count, _)| count).sum();
        let (of, then) = match count >= &(9 * odd) {
            true => (*most, "those fail"),
            false => (Type::Json, "all come as JSON text"),
        };
        let what = format!(
            "field {:?} is {} in {count} samples and other in {odd}, such as {} in sample {first}: {then}",
            self.name,
            most.kind().name(),
            other.kind().name(),
        );
        (of, Some(what))
    }
}

/// What all lines say about the fields.
#[derive(Debug, Default)]
pub struct Found {
    /// The fields.
    pub schema: Schema,
    /// For each field, how many samples lack it.
    pub missing: Vec<u64>,
    /// Where a type is uncertain, in words.
    pub uncertain: Vec<String>,
}

impl SchemaScan {
    /// Inspects a line.
    pub fn add_line(&mut self, line: &[u8]) {
        let (known, number) = (self.members.len(), self.lines + 1);
        self.lines = number;
        self.touched.clear();
        let mut expected = 0;
        let read = members(line, |name, raw| {
            let last = (number, Type::infer(raw), !raw.starts_with('n'));
            // Members mostly come in the order of the line before.
            let place = match self.members.get(expected) {
                Some(member) if member.name == name => Some(expected),
                _ => self.places.get(&*name).copied(),
            };
            let place = place.unwrap_or_else(|| {
                let name = name.into_owned();
                self.places.insert(name.clone(), self.members.len());
                self.members.push(Member { name, types: Vec::new(), present: 0, last });
                self.members.len() - 1
            });
            expected = place + 1;
            // Of repeated members, the last one counts.
            self.members[place].last = last;
            self.touched.push(place);
        });
        // A line that is not an object fails when its sample is read.
        if read.is_err() {
            self.broken += 1;
            self.members.drain(known..).for_each(|member| {
                self.places.remove(&member.name);
            });
            return;
        }
        for &place in &self.touched {
            // A repeated one is settled once.
            if self.members[place].last.0 == number {
                self.members[place].settle();
            }
        }
    }

    /// Whether no inspected line was an object with members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What the lines have in common.
    pub fn found(self) -> Found {
        let mut found = Found::default();
        for member in self.members {
            let (of, uncertain) = member.decide();
            found.missing.push(self.lines - self.broken - member.present);
            found.uncertain.extend(uncertain);
            found.schema.push(Field { name: member.name, kind: of.kind() });
        }
        found
    }
}

/// The values of a line.
///
/// # Errors [`Error::Truncated`] or [`Error::Decode`] if the line is not an object, or a member
/// does not have the type that the schema states.
pub fn parse<'a>(schema: &Schema, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let mut found: Vec<Option<&'a str>> = vec![None; schema.len()];
    let mut finder = NameFinder::default();
    members(line, |name, raw| {
        if let Some(at) = finder.find(schema, |field| field.name == name) {
            found[at] = Some(raw);
        }
    })?;
    let value = |(field, raw): (&Field, Option<&'a str>)| -> Result<Value<'a>> {
        let Some(raw) = raw else { return Ok(Value::Missing) };
        let misfit = || {
            let shown: String = raw.chars().take(40).collect();
            Error::decode(format!("{shown} in field {:?}, which is {}", field.name, field.kind.name()))
        };
        let bytes = raw.as_bytes();
        Ok(match (&field.kind, bytes.first()) {
            (_, Some(b'n')) => Value::Missing,
            (Kind::Int, Some(b't')) => Value::Int(1),
            (Kind::Int, Some(b'f')) => Value::Int(0),
            (Kind::Int, _) => match raw.parse() {
                Ok(number) => Value::Int(number),
                // A number beyond int64 can be had as text.
                Err(_) if number(raw).is_none() && is_scalar(raw) => Value::Bytes(bytes),
                Err(_) => return Err(misfit()),
            },
            (Kind::Float, _) => Value::Float(raw.parse().map_err(|_| misfit())?),
            (Kind::Text, Some(b'"')) => match bytes.contains(&b'\\') {
                true => Value::Quoted(Quoted::json(bytes)),
                false => Value::Bytes(&bytes[1..bytes.len() - 1]),
            },
            (Kind::Numbers { .. }, Some(b'[')) | (Kind::Json, _) => Value::Bytes(bytes),
            _ => return Err(misfit()),
        })
    };
    schema.iter().zip(found).map(value).collect()
}

/// Writes the numbers of a list into a row and returns their count; null is NaN.
///
/// # Errors
/// [`Error::Decode`] for items that are not numbers of the type; [`Error::TooLarge`] if the row is
/// too short.
pub fn numbers(list: &[u8], dtype: DType, into: &mut [u8]) -> Result<usize> {
    let (words, _) = into.as_chunks_mut::<8>();
    let mut words = words.iter_mut();
    let mut count = 0;
    for item in items(list) {
        let text = std::str::from_utf8(item).unwrap_or_default();
        let misfit = || {
            Error::decode(format!(
                "{:?} in a list of {}",
                text.chars().take(40).collect::<String>(),
                dtype.name()
            ))
        };
        let word = match dtype {
            DType::Float64 if item == NULL => f64::NAN.to_le_bytes(),
            DType::Int64 => text.parse::<i64>().map_err(|_| misfit())?.to_le_bytes(),
            _ => text.parse::<f64>().map_err(|_| misfit())?.to_le_bytes(),
        };
        let too_large = || Error::too_large("a list has more numbers than its row can hold");
        *words.next().ok_or_else(too_large)? = word;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_int64_stay_json() {
        assert_eq!(Type::infer("18446744073709551615"), Some(Type::Json));
        assert_eq!(Type::infer("-5"), Some(Type::Int));
    }
}
