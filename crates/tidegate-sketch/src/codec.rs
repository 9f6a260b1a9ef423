//! The serialized form of this crate's own sketches: a head, little-endian words, a checksum.
//!
//! Flow: `to_bytes` -> [`Writer`] -> bytes -> [`Reader`] -> `from_bytes`.
//! Memory: the bytes.
//!
//! Head: `TGSK`, a byte for the kind of sketch, a byte for the version of its layout. End: eight
//! bytes of MurmurHash3 over everything before. HLL, Theta, CPC, KLL, REQ and frequent items use
//! the format of Apache DataSketches instead.

use crate::hash::hash_bytes;
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"TGSK";
const HEAD: usize = 6;
const CHECKSUM: usize = 8;

/// The kinds of sketches; their numbers are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Moments = 1,
    Reservoir = 2,
    CountMin = 3,
    Window = 4,
    Histogram = 5,
    Adwin = 6,
    PageHinkley = 7,
    Delta = 8,
    Unchanged = 9,
    Lsh = 10,
    Online = 11,
}

#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: Kind, version: u8) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([kind as u8, version]);
        Self(bytes)
    }

    pub(crate) fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn word(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn float(&mut self, value: f64) -> &mut Self {
        self.word(value.to_bits())
    }

    pub(crate) fn words(&mut self, values: impl ExactSizeIterator<Item = u64>) -> &mut Self {
        self.word(values.len() as u64);
        for value in values {
            self.word(value);
        }
        self
    }

    pub(crate) fn floats(&mut self, values: &[f64]) -> &mut Self {
        self.words(values.iter().map(|v| v.to_bits()))
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.word(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let sum = hash_bytes(&self.0).0;
        self.word(sum);
        self.0
    }
}

#[derive(Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8], kind: Kind, version: u8) -> Result<Self> {
        let wrong = |why: String| Err(Error::bytes(what, why));
        if bytes.len() < HEAD + CHECKSUM {
            return wrong(format!("{} bytes are fewer than the head and the checksum take", bytes.len()));
        }
        if &bytes[..4] != MAGIC {
            return wrong(format!("they begin with {:02x?}, not with \"TGSK\"", &bytes[..4]));
        }
        if bytes[4] != kind as u8 {
            return wrong(format!("they hold a sketch of kind {}, not {}", bytes[4], kind as u8));
        }
        if bytes[5] != version {
            return wrong(format!("their layout has version {}, this program reads {version}", bytes[5]));
        }
        let (body, sum) = bytes.split_at(bytes.len() - CHECKSUM);
        if sum != hash_bytes(body).0.to_le_bytes() {
            return wrong(format!(
                "the checksum of {} bytes is wrong: they are truncated or damaged",
                bytes.len()
            ));
        }
        Ok(Self { what, left: &body[HEAD..] })
    }

    pub(crate) fn wrong<T>(&self, why: impl ToString) -> Result<T> {
        Err(Error::bytes(self.what, why))
    }

    /// Turns an error of a constructor, caused by parameters that were read, into
    /// [`Error::Bytes`].
    pub(crate) fn constructed<T>(&self, made: Result<T>) -> Result<T> {
        made.map_err(|error| Error::bytes(self.what, error))
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        match self.left.split_first() {
            Some((&byte, left)) => {
                self.left = left;
                Ok(byte)
            }
            None => self.wrong("they are truncated"),
        }
    }

    pub(crate) fn word(&mut self) -> Result<u64> {
        match self.left.split_first_chunk::<8>() {
            Some((word, left)) => {
                self.left = left;
                Ok(u64::from_le_bytes(*word))
            }
            None => self.wrong("they are truncated"),
        }
    }

    pub(crate) fn float(&mut self) -> Result<f64> {
        self.word().map(f64::from_bits)
    }

    pub(crate) fn words(&mut self) -> Result<Vec<u64>> {
        let count = self.word()?;
        if count > self.left.len() as u64 / 8 {
            return self.wrong(format!("they announce {count} words and hold {}", self.left.len() / 8));
        }
        (0..count).map(|_| self.word()).collect()
    }

    pub(crate) fn floats(&mut self) -> Result<Vec<f64>> {
        Ok(self.words()?.into_iter().map(f64::from_bits).collect())
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let count = self.word()?;
        match self.left.split_at_checked(count as usize) {
            Some((bytes, left)) => {
                self.left = left;
                Ok(bytes)
            }
            None => self.wrong(format!("they announce {count} bytes and hold {}", self.left.len())),
        }
    }

    pub(crate) fn end<T>(self, read: T) -> Result<T> {
        if self.left.is_empty() {
            return Ok(read);
        }
        Err(Error::bytes(self.what, format!("{} bytes are left over", self.left.len())))
    }
}
