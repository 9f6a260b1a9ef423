//! The record of a sample in the index, and what an index says of a sample or of all of them.
//!
//! Flow: formats make entries while they index; an index returns them by id.
//! Memory: 24 bytes a sample in the file.
//!
//! Layout of a record, little-endian: shard u32 | offset u48 | length u32 | height u16 | width u16
//! | reserved u32 | zero u8 | flags u8. The reserved word once was a checksum and is 0 in every
//! file.

/// Bytes of an entry in the file.
pub const ENTRY_BYTES: u64 = 24;

/// The decoded shape is known. Bit 4 of the flags belongs to the reserved word.
pub const HAS_SHAPE: u8 = 1;
/// Decoding needs the whole image in memory at once (progressive JPEG, interlaced PNG).
pub const PROGRESSIVE: u8 = 2;

/// One sample in the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// The shard's number; in a folder of files the number of the sample.
    pub shard: u32,
    /// Byte offset in the shard; of a file in a folder see [`Entry::class`].
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Height of the largest image in pixels.
    pub height: u16,
    /// Its width.
    pub width: u16,
    /// Reserved: 0. It keeps the layout of the file.
    pub reserved: u32,
    /// [`HAS_SHAPE`], [`PROGRESSIVE`].
    pub flags: u8,
}

impl Entry {
    /// The entry of a file in a folder: its number, its bytes, and the number of its class.
    ///
    /// Such a file is its own shard and starts at 0, so the word of the offset holds the class.
    #[must_use]
    pub fn from_file(number: u32, len: u32, class: u64) -> Self {
        Self { shard: number, offset: class, len, ..Self::default() }
    }

    /// The number of the class of a file in a folder; see [`Entry::from_file`].
    #[must_use]
    pub fn class(&self) -> u64 {
        self.offset
    }

    /// The entry's bytes in the file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ENTRY_BYTES as usize] {
        let mut b = [0; ENTRY_BYTES as usize];
        b[0..4].copy_from_slice(&self.shard.to_le_bytes());
        b[4..10].copy_from_slice(&self.offset.to_le_bytes()[..6]);
        b[10..14].copy_from_slice(&self.len.to_le_bytes());
        b[14..16].copy_from_slice(&self.height.to_le_bytes());
        b[16..18].copy_from_slice(&self.width.to_le_bytes());
        b[18..22].copy_from_slice(&self.reserved.to_le_bytes());
        b[23] = self.flags;
        b
    }

    /// The entry in those bytes.
    #[must_use]
    pub fn from_bytes(b: &[u8; ENTRY_BYTES as usize]) -> Self {
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        Self {
            shard: u32_at(0),
            offset: u64::from(u32_at(4)) | u64::from(u16_at(8)) << 32,
            len: u32_at(10),
            height: u16_at(14),
            width: u16_at(16),
            reserved: u32_at(18),
            flags: b[23],
        }
    }

    /// Decoded bytes of the largest image, 0 if unknown.
    #[must_use]
    pub fn decoded_bytes(&self) -> u64 {
        3 * u64::from(self.height) * u64::from(self.width)
    }
}

/// Bounds of sizes over the whole source, known before a sample is read.
///
/// They make a byte budget plannable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SizeBounds {
    /// Bytes of all samples.
    pub total_bytes: u64,
    /// Bytes of the largest sample.
    pub sample_bytes: u64,
    /// Scratch bytes that decoding an image takes at most.
    pub scratch_bytes: u64,
    /// The id of the sample with that image.
    pub scratch_id: u64,
    /// Bytes of the largest image once decoded.
    pub decoded_bytes: u64,
    /// The id of the sample with that image.
    pub decoded_id: u64,
    /// The longest side of any image, in pixels.
    pub side: u64,
}

/// A sample found in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its id.
    pub id: u64,
    /// Its record in the index.
    pub entry: Entry,
    /// Its file, where each sample is a file of its own; else empty.
    pub path: Box<str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_survives_its_bytes(shard: u32, offset in 0u64..1 << 48, len: u32, height: u16, width: u16, reserved: u32) {
            let entry = Entry { shard, offset, len, height, width, reserved, flags: 5 };
            prop_assert_eq!(Entry::from_bytes(&entry.to_bytes()), entry);
        }
    }
}
