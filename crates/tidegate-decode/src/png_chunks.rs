//! The chunks of a PNG that its pixels need, each with the checksum that it states.
//!
//! Flow: a file -> [`Chunks::checked`], which walks them all -> a reader of only those chunks, for
//! the png crate.
//! Memory: none. What a file has besides (text, profiles, Exif, further frames) is passed over,
//! so the crate, which would keep up to 8 MiB of it for each image, never sees it.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::{Error, Result};

const SIGNATURE_BYTES: usize = 8;

/// The chunks of one file, read in order.
#[derive(Debug)]
pub(super) struct Chunks<'a> {
    bytes: &'a [u8],
    /// Where the next chunk begins.
    next: usize,
    /// What is left of the chunk that is being read.
    left: &'a [u8],
    /// Whether the file has its end marker.
    pub(super) ended: bool,
}

/// A chunk with its length, name and checksum.
struct Chunk<'a> {
    name: [u8; 4],
    whole: &'a [u8],
}

impl Chunk<'_> {
    /// Whether the first image needs it.
    fn is_needed(&self) -> bool {
        matches!(&self.name, b"IHDR" | b"PLTE" | b"tRNS" | b"IDAT" | b"IEND" | b"acTL" | b"fcTL")
    }

    fn is_whole(&self) -> bool {
        let (Some(named), Some(sum)) =
            (self.whole.get(4..self.whole.len() - 4), self.whole.last_chunk::<4>())
        else {
            return false;
        };
        crc32fast::hash(named) == u32::from_be_bytes(*sum)
    }
}

/// The chunk at `at`; None where the file is cut within it.
fn chunk(bytes: &[u8], at: usize) -> Option<Chunk<'_>> {
    let head = bytes.get(at..)?.first_chunk::<8>()?;
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let whole = bytes.get(at..at.checked_add(len)?.checked_add(12)?)?;
    Some(Chunk { name: [head[4], head[5], head[6], head[7]], whole })
}

impl<'a> Chunks<'a> {
    /// Walks the chunks up to the end marker, and checks those that the image needs.
    ///
    /// # Errors [`Error::Decode`] for a checksum that is wrong, [`Error::Truncated`] for a file
    /// that ends within its image. A file that ends between two chunks has only no end marker.
    pub(super) fn checked(bytes: &'a [u8]) -> Result<Self> {
        let (mut at, mut ended) = (SIGNATURE_BYTES, false);
        while !ended && at < bytes.len() {
            let Some(chunk) = chunk(bytes, at) else {
                let name = bytes.get(at + 4..at + 8).unwrap_or_default();
                if b"IEND".starts_with(name) {
                    break;
                }
                return Err(Error::truncated("truncated PNG: the file ends within the image"));
            };
            // Nothing follows from the end marker's.
            if chunk.is_needed() && chunk.name != *b"IEND" && !chunk.is_whole() {
                return Err(Error::decode(format!(
                    "damaged PNG: the chunk {} at byte {at} does not have the checksum that it states",
                    chunk.name.escape_ascii()
                )));
            }
            ended = chunk.name == *b"IEND";
            at += chunk.whole.len();
        }
        Ok(Self {
            bytes,
            next: SIGNATURE_BYTES,
            left: bytes.get(..SIGNATURE_BYTES).unwrap_or_default(),
            ended,
        })
    }
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.left.is_empty() {
            let Some(chunk) = chunk(self.bytes, self.next) else { break };
            self.next += chunk.whole.len();
            if chunk.is_needed() {
                self.left = chunk.whole;
            }
        }
        Ok(self.left)
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.get(count..).unwrap_or_default();
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

/// The crate wants it of its readers, and does not use it for an image that is read once.
impl Seek for Chunks<'_> {
    fn seek(&mut self, _to: SeekFrom) -> io::Result<u64> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}
