//! Sizes and counts as text: "2GiB", 0.5 of the limit; "12.0" MiB and "1 shard" in messages.
//!
//! Flow: text or number -> bytes; bytes and counts -> text.
//! Memory: holds none.

use std::str::FromStr;

use super::limit;
use crate::{Error, Result};

/// Bytes as MiB with one decimal, for messages.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}

/// A count and its noun, which gets its plural: "1 shard", "2 classes".
#[must_use]
pub fn counted(count: u64, noun: &str) -> String {
    let hisses = ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end));
    let plural = match (count, hisses) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {noun}{plural}")
}

/// A memory size as a user gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// A fraction of the memory limit of the process, see [`limit::discover`].
    Fraction(f64),
}

impl Size {
    /// The size in bytes.
    ///
    /// # Errors
    /// [`Error::Size`] for a fraction outside (0, 1] or no bytes at all.
    pub fn bytes(&self) -> Result<u64> {
        match *self {
            Size::Bytes(bytes) if bytes > 0 => Ok(bytes),
            Size::Fraction(f) if f > 0.0 && f <= 1.0 => Ok((limit::discover().bytes as f64 * f) as u64),
            Size::Bytes(bytes) => Err(Error::Size { text: bytes.to_string() }),
            Size::Fraction(f) => Err(Error::Size { text: f.to_string() }),
        }
    }
}

/// A budget below this many bytes is probably a number without its unit.
const TINY_BYTES: u64 = 16 << 10;

impl Size {
    /// The size in bytes, as that of a budget of this process.
    ///
    /// # Errors
    /// As [`Size::bytes`]; [`Error::Tiny`] for a few bytes; [`Error::AboveLimit`] for more than
    /// [`limit::discover`] finds.
    pub fn budget_bytes(&self) -> Result<u64> {
        let (bytes, limit) = (self.bytes()?, limit::discover());
        if bytes < TINY_BYTES {
            return Err(Error::Tiny { bytes });
        }
        if bytes > limit.bytes {
            return Err(Error::AboveLimit { bytes, limit_bytes: limit.bytes, limit: limit.source });
        }
        Ok(bytes)
    }
}

impl FromStr for Size {
    type Err = Error;

    /// Reads "1048576", "512MiB", "2 GB", "1.5GiB" or "0.5" (a fraction).
    ///
    /// ```
    /// use tidegate_core::memory::size::Size;
    /// assert_eq!("1.5GiB".parse::<Size>()?, Size::Bytes(3 << 29));
    /// assert_eq!("2GB".parse::<Size>()?, Size::Bytes(2_000_000_000));
    /// assert_eq!("0.5".parse::<Size>()?, Size::Fraction(0.5));
    /// # Ok::<(), tidegate_core::Error>(())
    /// ```
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Size { text: text.to_owned() };
        let lower = text.trim().to_ascii_lowercase();
        let split = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
        let (number, unit) = (lower[..split].trim(), &lower[split..]);
        let value: f64 = number.parse().map_err(|_| bad())?;
        let factor: f64 = match unit {
            "" if number.contains('.') && value <= 1.0 => return Ok(Size::Fraction(value)),
            "" | "b" => 1.0,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1_048_576.0,
            "g" | "gib" => 1_073_741_824.0,
            "t" | "tib" => 1_099_511_627_776.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(bad()),
        };
        let bytes = value * factor;
        if !(1.0..=1.8e19).contains(&bytes) {
            return Err(bad());
        }
        Ok(Size::Bytes(bytes as u64))
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_nonsense() {
        for (text, bytes) in [("1048576", 1 << 20), ("64 MiB", 64 << 20), ("1k", 1024), ("3mb", 3_000_000)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size::Bytes(bytes), "{text}");
        }
        for text in ["", "GiB", "-1MiB", "2 parsecs", "0", "1e99GiB", "nan"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!(Size::Fraction(1.5).bytes().is_err());
        assert!(Size::Fraction(0.5).bytes().unwrap() > 0);
    }

    #[test]
    fn nouns_have_plurals() {
        let said = [(0, "shard"), (1, "class"), (2, "class"), (3, "batch")].map(|(n, noun)| counted(n, noun));
        assert_eq!(said, ["0 shards", "1 class", "2 classes", "3 batches"]);
    }

    #[test]
    fn a_budget_is_within_reason() {
        let said = |size: Size| size.budget_bytes().unwrap_err().to_string();
        assert!(said(Size::Bytes(64)).contains("did you mean \"64MiB\""));
        assert!(said(Size::Bytes(1 << 50)).contains("overcommit"));
        assert_eq!(Size::Bytes(64 << 20).budget_bytes().unwrap(), 64 << 20);
    }
}
