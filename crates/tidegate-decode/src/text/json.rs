//! JSON Lines: each line is an object, and its members are the fields.
//!
//! Flow: lines -> members and their types -> a schema; a line -> values that borrow from it.
//! Memory: a few words a field while a line is parsed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::npy::DType;
use crate::quoted::Quoted;
use crate::{Error, Result};
use crate::{Field, Kind, Schema, Value};

/// Calls `each` with the members of a line's object, in order; values borrow from the line.
///
/// # Errors [`Error::Truncated`] for a line that ends within a value, else [`Error::Decode`], if
/// the line is not an object.
fn members<'a>(line: &'a [u8], each: impl FnMut(Cow<'a, str>, &'a RawValue)) -> Result<()> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let read = json.deserialize_map(Members(each)).and_then(|()| json.end());
    read.map_err(|error| {
        // serde_json counts lines from this one, so its own place would be in line 1.
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
        let text = |what: &str| format!("no object of JSON: {what} at character {}", error.column());
        match error.classify() {
            Category::Eof => Error::Truncated(text("the line ends within a value")),
            Category::Data | Category::Syntax | Category::Io => Error::Decode(text(what)),
        }
    })
}

struct Members<F>(F);

impl<'a, F: FnMut(Cow<'a, str>, &'a RawValue)> Visitor<'a> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            (self.0)(name, map.next_value()?);
        }
        Ok(())
    }
}

/// A member's name; copied only if it has escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

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
    /// The type of one value; None for null and for an empty list.
    fn infer(raw: &str) -> Option<Self> {
        let number = |raw: &str| {
            if raw.trim().parse::<i64>().is_ok() {
                Some(DType::Int64)
            } else {
                raw.trim().parse::<f64>().ok().map(|_| DType::Float64)
            }
        };
        Some(match raw.as_bytes().first()? {
            b'n' => return None,
            b'"' => Self::Text,
            b't' | b'f' => Self::Int,
            b'[' => {
                let types: Option<Vec<_>> =
                    items(raw.as_bytes()).map(|item| number(std::str::from_utf8(item).ok()?)).collect();
                match types {
                    Some(types) if types.contains(&DType::Float64) => Self::Numbers(DType::Float64),
                    // An empty list does not show its type.
                    Some(types) if types.is_empty() => return None,
                    Some(_) => Self::Numbers(DType::Int64),
                    _ => Self::Json,
                }
            }
            b'{' => Self::Json,
            // An integer beyond int64 would lose digits as a float.
            _ if raw.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
                && number(raw) != Some(DType::Int64) =>
            {
                Self::Json
            }
            _ => {
                if number(raw) == Some(DType::Int64) {
                    Self::Int
                } else {
                    Self::Float
                }
            }
        })
    }

    /// The type that holds values of both.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (one, other) if one == other => one,
            (Self::Int | Self::Float, Self::Int | Self::Float) => Self::Float,
            (Self::Numbers(_), Self::Numbers(_)) => Self::Numbers(DType::Float64),
            _ => Self::Json,
        }
    }
}

/// The items of a list that contains no lists.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let inner = list.strip_prefix(b"[").and_then(|list| list.strip_suffix(b"]")).unwrap_or_default();
    let blank = inner.trim_ascii().is_empty();
    inner.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).take(if blank { 0 } else { usize::MAX })
}

/// Infers the schema from lines.
#[derive(Debug, Default)]
pub struct SchemaScan {
    /// Members and their types, in the order in which they first appeared.
    members: Vec<(String, Option<Type>)>,
}

impl SchemaScan {
    /// Inspects a line.
    pub fn add_line(&mut self, line: &[u8]) {
        // Of repeated members, the last one counts.
        let mut found = BTreeMap::new();
        let mut order = 0..;
        let read = members(line, |name, raw| {
            found.insert(name, (order.next(), raw));
        });
        // A line that is not an object fails when its sample is read.
        if read.is_err() {
            return;
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_unstable_by_key(|(_, (order, _))| *order);
        let mut finder = NameFinder::default();
        for (name, (_, raw)) in found {
            let this = Type::infer(raw.get());
            match finder.find(&self.members, |(known, _)| *known == name) {
                Some(at) => {
                    let known = &mut self.members[at].1;
                    *known = match (*known, this) {
                        (Some(known), Some(this)) => Some(known.or(this)),
                        (known, this) => known.or(this),
                    }
                }
                None => self.members.push((name.into_owned(), this)),
            }
        }
    }

    /// Whether no inspected line was an object with members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The common schema of the lines.
    pub fn schema(self) -> Schema {
        let kind = |found: Option<Type>| match found {
            Some(Type::Int) => Kind::Int,
            Some(Type::Float) => Kind::Float,
            Some(Type::Text) => Kind::Text,
            Some(Type::Numbers(dtype)) => Kind::Numbers { dtype },
            Some(Type::Json) | None => Kind::Json,
        };
        self.members.into_iter().map(|(name, found)| Field { name, kind: kind(found) }).collect()
    }
}

/// The values of a line.
///
/// # Errors [`Error::Truncated`] or [`Error::Decode`] if the line is not an object, or a member
/// does not have the type that the schema states.
pub fn parse<'a>(schema: &Schema, line: &'a [u8]) -> Result<Vec<Value<'a>>> {
    let mut found: Vec<Option<&'a RawValue>> = vec![None; schema.len()];
    let mut finder = NameFinder::default();
    members(line, |name, raw| {
        if let Some(at) = finder.find(schema, |field| field.name == name) {
            found[at] = Some(raw);
        }
    })?;
    let value = |(field, raw): (&Field, Option<&'a RawValue>)| -> Result<Value<'a>> {
        let Some(raw) = raw.map(RawValue::get) else { return Ok(Value::Missing) };
        let misfit = || {
            let shown: String = raw.chars().take(40).collect();
            Error::decode(format!(
                "{shown} in field {:?}, which is {} in the first lines",
                field.name,
                field.kind.name()
            ))
        };
        let bytes = raw.as_bytes();
        Ok(match (&field.kind, bytes.first()) {
            (_, Some(b'n')) => Value::Missing,
            (Kind::Int, Some(b't')) => Value::Int(1),
            (Kind::Int, Some(b'f')) => Value::Int(0),
            (Kind::Int, _) => Value::Int(raw.parse().map_err(|_| misfit())?),
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

/// Writes the numbers of a list into a row and returns their count.
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
