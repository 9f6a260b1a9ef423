//! The sizes in a Parquet page header, checked before the parquet crate allocates them.
//!
//! Flow: the start of a page -> its sizes, which `parquet_file` compares with the footer; sizes
//! and page -> whether the page can have them.
//! Memory: holds none.
//!
//! Specification: Apache Parquet format 2.11, parquet.thrift; Thrift compact protocol.

use parquet::basic::Compression;

use super::unpacking::Codec;

/// The sizes in a page header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PageSizes {
    /// Once unpacked, levels included.
    pub(crate) unpacked: u64,
    /// As stored after the header.
    pub(crate) stored: u64,
    /// Its values, or those of a dictionary; nulls count.
    pub(crate) values: u64,
    /// Of the levels, which a page of version 2 stores unpacked before the packed values.
    pub(crate) levels: u64,
    /// Whether the values are unpacked too.
    pub(crate) plain: bool,
}

/// Reads the sizes at the start of a page; None where there is no page header.
///
/// Fields must ascend, as every writer orders them, so no later field can contradict the sizes.
pub(crate) fn page_sizes(bytes: &[u8]) -> Option<PageSizes> {
    let mut thrift = Compact { rest: bytes };
    let mut sizes = PageSizes::default();
    let (mut last, mut seen) = (0, 0);
    // A header that ends after `bytes` has long statistics; its sizes are at its start.
    while let Some((id, kind)) = thrift.field(last) {
        match (id, kind) {
            (2, I32) => (sizes.unpacked, seen) = (thrift.size()?, seen + 1),
            (3, I32) => (sizes.stored, seen) = (thrift.size()?, seen + 1),
            (5 | 7, STRUCT) => {
                let mut last = 0;
                while let Some((id, kind)) = thrift.field(last) {
                    match (id, kind) {
                        (1, I32) => sizes.values = thrift.size().unwrap_or(0),
                        _ if thrift.skip(kind, 0).is_none() => return (seen == 2).then_some(sizes),
                        _ => {}
                    }
                    last = id;
                }
            }
            (8, STRUCT) => {
                let mut last = 0;
                while let Some((id, kind)) = thrift.field(last) {
                    match (id, kind) {
                        (1, I32) => sizes.values = thrift.size()?,
                        (5 | 6, I32) => sizes.levels += thrift.size()?,
                        (7, TRUE | FALSE) => sizes.plain = kind == FALSE,
                        // The crate would read them with the expected type.
                        (5..=7, _) => return None,
                        (0..5, _) => thrift.skip(kind, 0)?,
                        _ => break,
                    }
                    last = id;
                }
                break;
            }
            (2 | 3 | 8, _) => return None,
            _ if id > 8 || thrift.skip(kind, 0).is_none() => break,
            _ => {}
        }
        last = id;
    }
    (seen == 2).then_some(sizes)
}

/// Whether a page can unpack to the size in its header.
pub(crate) fn can_unpack(codec: Compression, page: &[u8], sizes: PageSizes) -> bool {
    let packed = page.get(sizes.levels as usize..).filter(|_| !sizes.plain);
    let codec = match codec {
        Compression::UNCOMPRESSED | Compression::LZO => Codec::Plain,
        Compression::SNAPPY => Codec::Snappy,
        Compression::GZIP(_) => Codec::Gzip,
        Compression::BROTLI(_) => Codec::Brotli,
        Compression::LZ4_RAW => Codec::Lz4,
        // In Hadoop's framing or, from old writers, in lz4's own.
        Compression::LZ4 => Codec::Lz4Frame,
        Compression::ZSTD(_) => Codec::Zstd,
    };
    match (packed, sizes.unpacked.checked_sub(sizes.levels)) {
        (None, _) => sizes.plain,
        (_, None) => false,
        (Some(_), Some(0)) => true,
        (Some(packed), Some(unpacked)) => codec.allows(packed, unpacked),
    }
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const I32: u8 = 5;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// The deepest nesting of structures that is skipped.
const MAX_DEPTH: u32 = 8;

/// Thrift's compact protocol, as far as a page header needs it.
struct Compact<'a> {
    rest: &'a [u8],
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A non-negative 32-bit number.
    fn size(&mut self) -> Option<u64> {
        let zigzag = self.varint()?;
        (zigzag % 2 == 0 && zigzag / 2 <= i32::MAX as u64).then_some(zigzag / 2)
    }

    /// The number and type of the next field, above the last one; None at the end of the
    /// structure.
    fn field(&mut self, last: u64) -> Option<(u64, u8)> {
        let head = self.byte().filter(|&head| head != 0)?;
        let id = match head >> 4 {
            0 => self.size()?,
            delta => last + u64::from(delta),
        };
        (id > last).then_some((id, head & 15))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        match kind {
            TRUE | FALSE => {}
            3 => _ = self.byte()?,
            4..=6 => _ = self.varint()?,
            7 => self.rest = self.rest.get(8..)?,
            BINARY => {
                let length = self.varint()?;
                self.rest = self.rest.get(usize::try_from(length).ok()?..)?;
            }
            LIST | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                for _ in 0..count {
                    self.skip(if head & 15 <= FALSE { 3 } else { head & 15 }, depth + 1)?;
                }
            }
            STRUCT if depth < MAX_DEPTH => {
                let mut last = 0;
                while let Some((id, kind)) = self.field(last) {
                    self.skip(kind, depth + 1)?;
                    last = id;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nothing_behind_them_can_contradict_them() {
        // type = 0, unpacked = 300, stored = 20, crc = 1, data_page_header { num_values = 3 },
        // stop.
        let header = [0x15, 0, 0x15, 0xD8, 4, 0x15, 40, 0x15, 2, 0x1C, 0x15, 6, 0, 0];
        let sizes = PageSizes { unpacked: 300, stored: 20, values: 3, levels: 0, plain: false };
        assert_eq!(page_sizes(&header), Some(sizes));
        // Statistics that go on behind what was read.
        assert_eq!(page_sizes(&header[..11]), Some(PageSizes { values: 0, ..sizes }));
        assert_eq!(page_sizes(&header[..6]), None);
        // Version 2: levels of 4 and 2 bytes, not packed.
        let second = [0x15, 6, 0x15, 0xD8, 4, 0x15, 40, 0x5C, 0x55, 8, 0x15, 4, 0x12, 0, 0];
        assert_eq!(page_sizes(&second), Some(PageSizes { levels: 6, plain: true, values: 0, ..sizes }));
        // The same field again, by its full number; a negative size.
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 8, 0x15, 8, 0x05, 4, 0x7F, 0]).unwrap().unpacked, 4);
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 7, 0x15, 8, 0]), None);
        // Levels as 64-bit numbers; long statistics behind those of version 2.
        assert_eq!(page_sizes(&[0x15, 6, 0x15, 0xD8, 4, 0x15, 40, 0x5C, 0x56, 8, 0x15, 4, 0x12, 0, 0]), None);
        let long =
            [0x15, 6, 0x15, 0xD8, 4, 0x15, 40, 0x5C, 0x55, 8, 0x15, 4, 0x12, 0x1C, 0x18, 0xFF, 0x40, 1, 2];
        assert_eq!(page_sizes(&long), page_sizes(&second));
    }
}
