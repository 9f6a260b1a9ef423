//! Checkpoints: positions in the entropy-coded bytes of a JPEG at which decoding can begin. The
//! side-car file keeps them next to the index.
//!
//! Flow: a whole JPEG -> `write_record` -> the side-car file; record + the same JPEG ->
//! `Checkpoints` -> the position at which decoding begins.
//! Memory: one record of fixed size for each image, owned by the caller.
//!
//! A record (little-endian): check u64 (XXH3 of what follows) | crc u32 (CRC32C of the file) |
//! length u32 of the file | version u16 | checkpoints u16 | MCUs between them u32 | then a u64
//! each: the offset of an MCU's first bit in the file (28 bits) and the DC predictors of three
//! components there (12 bits each). The rest is zero. A record of other bytes or of another
//! version is ignored: decoding then begins at the top.

pub(super) const VERSION: u16 = 1;
pub(super) const HEAD_BYTES: usize = 24;
pub(super) const CHECKPOINT_BYTES: usize = 8;
const BIT_BITS: u32 = 28;
const PREDICTOR_BITS: u32 = 12;

/// The decoder's state at the beginning of an MCU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// The index of the MCU.
    pub(super) mcu: usize,
    /// The offset of its first bit in the file, in bits.
    pub(super) bit: u64,
    /// The DC values to which its differences are added.
    pub(super) predictors: [i32; 3],
}

impl Checkpoint {
    pub(super) fn to_word(self) -> Option<u64> {
        let mut word = Some(self.bit).filter(|&bit| bit < 1 << BIT_BITS)?;
        for (i, predictor) in (0u32..).zip(self.predictors) {
            let half = 1 << (PREDICTOR_BITS - 1);
            let fits = (-half..half).contains(&predictor);
            let bits = Some((predictor + half) as u64).filter(|_| fits)?;
            word |= bits << (BIT_BITS + i * PREDICTOR_BITS);
        }
        Some(word)
    }

    fn from_word(word: u64, mcu: usize) -> Self {
        let field = |i: u32| (word >> (BIT_BITS + i * PREDICTOR_BITS)) as i32 & ((1 << PREDICTOR_BITS) - 1);
        let predictors = [0, 1, 2].map(|i| field(i) - (1 << (PREDICTOR_BITS - 1)));
        Self { mcu, bit: word & ((1 << BIT_BITS) - 1), predictors }
    }
}

/// The checkpoints of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoints<'a> {
    words: &'a [[u8; CHECKPOINT_BYTES]],
    every: usize,
}

impl<'a> Checkpoints<'a> {
    /// The checkpoints of a record, if the record belongs to `bytes`.
    pub(super) fn parse(record: &'a [u8], bytes: &[u8]) -> Option<Self> {
        let (head, rest) = record.split_first_chunk::<HEAD_BYTES>()?;
        let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let u16_at = |i: usize| u16::from_le_bytes([head[i], head[i + 1]]);
        let (words, _) = rest.as_chunks::<CHECKPOINT_BYTES>();
        let words = words.get(..usize::from(u16_at(18)))?;
        let every = u32_at(20) as usize;
        let same = u32_at(12) as usize == bytes.len()
            && u16_at(16) == VERSION
            && every > 0
            && xxhash_rust::xxh3::xxh3_64(&record[8..HEAD_BYTES + words.as_flattened().len()]).to_le_bytes()
                == head[..8]
            && crc32c::crc32c(bytes) == u32_at(8);
        same.then_some(Self { words, every })
    }

    /// The last checkpoint at or before `mcu`, if it is after `here`.
    #[inline(always)]
    pub(super) fn before(&self, mcu: usize, here: usize) -> Option<Checkpoint> {
        let number = (mcu / self.every).min(self.words.len());
        let at = number * self.every;
        (at > here).then(|| Checkpoint::from_word(u64::from_le_bytes(self.words[number - 1]), at))
    }
}

/// The number of checkpoints in a record.
#[must_use]
pub fn count(record: &[u8]) -> usize {
    record.get(18..20).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])))
}
