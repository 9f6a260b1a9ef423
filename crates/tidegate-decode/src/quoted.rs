//! Quoted text of JSON and CSV.
//!
//! Flow: the stored bytes of a value -> its text, without quotes and escapes, in the caller's
//! memory.
//! Memory: the caller's. The text is never longer than the stored bytes.

use crate::{Error, Result};

/// Text that is still in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted<'a> {
    /// The text with its quotes.
    bytes: &'a [u8],
    json: bool,
}

impl<'a> Quoted<'a> {
    /// A JSON string, whose syntax was checked before.
    pub fn json(bytes: &'a [u8]) -> Self {
        Self { bytes, json: true }
    }

    /// A CSV cell. Quotes within it are doubled.
    pub fn csv(bytes: &'a [u8]) -> Self {
        Self { bytes, json: false }
    }

    /// An upper bound of the text's length in bytes.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.bytes.len().saturating_sub(2)
    }

    /// The text, in a new vector.
    ///
    /// # Errors
    /// As [`Quoted::unquote`].
    pub fn text(&self) -> Result<Vec<u8>> {
        let mut text = vec![0; self.max_len()];
        let len = self.unquote(&mut text)?;
        text.truncate(len);
        Ok(text)
    }

    /// Writes the text to the beginning of `into` and returns its length in bytes.
    ///
    /// # Errors
    /// [`Error::Decode`] for invalid escapes, [`Error::TooLarge`] if `into` is too short.
    pub fn unquote(&self, into: &mut [u8]) -> Result<usize> {
        let inner = self.bytes.get(1..self.bytes.len().saturating_sub(1)).unwrap_or_default();
        let mut out = Out { into, len: 0 };
        let mut rest = inner;
        let mark = if self.json { b'\\' } else { b'"' };
        while let Some(at) = rest.iter().position(|byte| *byte == mark) {
            out.push(&rest[..at])?;
            rest = if self.json { out.escape(&rest[at + 1..])? } else { out.quote(&rest[at + 1..])? };
        }
        out.push(rest)?;
        Ok(out.len)
    }
}

/// The text that is written so far.
struct Out<'a> {
    into: &'a mut [u8],
    len: usize,
}

fn wrong(what: &str) -> Error {
    Error::decode(what)
}

impl Out<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let to = self.into.get_mut(self.len..self.len + bytes.len());
        let too_large = || Error::too_large("the text is longer than its buffer");
        to.ok_or_else(too_large)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Writes the character of a doubled quote; returns the bytes after it.
    fn quote<'b>(&mut self, rest: &'b [u8]) -> Result<&'b [u8]> {
        let rest =
            rest.strip_prefix(b"\"").ok_or_else(|| wrong("a quote within quotes that is not doubled"))?;
        self.push(b"\"")?;
        Ok(rest)
    }

    /// Writes the character of an escape; returns the bytes after it.
    fn escape<'b>(&mut self, rest: &'b [u8]) -> Result<&'b [u8]> {
        let (kind, rest) = rest.split_first().ok_or_else(|| wrong("an escape without a letter"))?;
        let plain = match kind {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            b'u' => return self.unicode(rest),
            other => *other,
        };
        self.push(&[plain])?;
        Ok(rest)
    }

    fn unicode<'b>(&mut self, rest: &'b [u8]) -> Result<&'b [u8]> {
        let unit = |rest: &'b [u8]| {
            let (digits, rest) = rest.split_at_checked(4)?;
            let text = std::str::from_utf8(digits).ok()?;
            Some((u32::from_str_radix(text, 16).ok()?, rest))
        };
        let lone = || wrong("half of a pair of \\u escapes: no such character");
        let (first, mut rest) = unit(rest).ok_or_else(lone)?;
        let mut code = first;
        if (0xD800..0xDC00).contains(&first) {
            let (second, after) = rest.strip_prefix(b"\\u").and_then(unit).ok_or_else(lone)?;
            if !(0xDC00..0xE000).contains(&second) {
                return Err(lone());
            }
            code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
            rest = after;
        }
        let mut utf8 = [0; 4];
        self.push(char::from_u32(code).ok_or_else(lone)?.encode_utf8(&mut utf8).as_bytes())?;
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn out(quoted: Quoted<'_>) -> Result<String> {
        Ok(String::from_utf8(quoted.text()?).unwrap())
    }

    proptest! {
        #[test]
        fn strings_quoted_by_serde_are_read(text: String, ascii: bool) {
            let mut json = serde_json::to_string(&text).unwrap();
            if ascii {
                let escaped = |c: char| -> String {
                    let mut units = [0; 2];
                    if c.is_ascii() { c.to_string() } else { c.encode_utf16(&mut units).iter().map(|u| format!("\\u{u:04x}")).collect() }
                };
                json = json.chars().map(escaped).collect();
            }
            prop_assert_eq!(out(Quoted::json(json.as_bytes())).unwrap(), text.clone());
            let csv = format!("\"{}\"", text.replace('"', "\"\""));
            prop_assert_eq!(out(Quoted::csv(csv.as_bytes())).unwrap(), text);
        }
    }

    #[test]
    fn invalid_escapes_are_refused() {
        for json in [r#""\ud800""#, r#""\ud800\u0041""#, r#""\udc00""#, r#""\u12""#] {
            assert!(out(Quoted::json(json.as_bytes())).is_err(), "{json}");
        }
        assert!(out(Quoted::csv(br#""a"b""#)).is_err());
    }
}
