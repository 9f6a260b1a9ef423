//! Checkpoints: places in the entropy-coded bytes of a JPEG at which decoding can begin, kept beside the index.
//!
//! Flow: a whole JPEG -> [`record`] -> the side-car file; record + the same JPEG -> `Checkpoints` -> where the walk goes on.
//! Memory: a record of fixed size a picture, in the caller's hands.
//!
//! A record (little-endian): check u64 (XXH3 of what follows) | crc u32 (CRC32C of the file) | length u32 of the file |
//! version u16 | checkpoints u16 | MCUs between them u32 | then a u64 each: the place of an MCU's first bit in the
//! file (28 bits) and the DC predictors of three components there (12 bits each). The rest is zero.
//! A record that is not of these bytes, or of another version, is none: decoding then begins at the top.

use super::entropy::Walk;
use super::frame::Markers;
use super::huffman::Tables;
use super::pass_to;
use crate::Result;

const VERSION: u16 = 1;
const HEAD_BYTES: usize = 24;
const CHECKPOINT_BYTES: usize = 8;
const BIT_BITS: u32 = 28;
const PREDICTOR_BITS: u32 = 12;

/// Where an MCU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Its number.
    pub(super) mcu: usize,
    /// The place of its first bit, counted from the file's first.
    pub(super) bit: u64,
    /// The DC values that its differences are added to.
    pub(super) predictors: [i32; 3],
}

impl Checkpoint {
    fn to_word(self) -> Option<u64> {
        let mut word = Some(self.bit).filter(|&bit| bit < 1 << BIT_BITS)?;
        for (i, predictor) in (0u32..).zip(self.predictors) {
            let half = 1 << (PREDICTOR_BITS - 1);
            let fits = (-half..half).contains(&predictor);
            let bits = Some((predictor + half) as u64).filter(|_| fits)?;
            word |= bits << (BIT_BITS + i * PREDICTOR_BITS);
        }
        Some(word)
    }

    fn of_word(word: u64, mcu: usize) -> Self {
        let field = |i: u32| (word >> (BIT_BITS + i * PREDICTOR_BITS)) as i32 & ((1 << PREDICTOR_BITS) - 1);
        let predictors = [0, 1, 2].map(|i| field(i) - (1 << (PREDICTOR_BITS - 1)));
        Self { mcu, bit: word & ((1 << BIT_BITS) - 1), predictors }
    }
}

/// The checkpoints of one picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoints<'a> {
    words: &'a [[u8; CHECKPOINT_BYTES]],
    every: usize,
}

impl<'a> Checkpoints<'a> {
    /// The checkpoints in a record, if it is one of these bytes.
    pub(super) fn of(record: &'a [u8], bytes: &[u8]) -> Option<Self> {
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

    /// The last checkpoint up to `mcu`, if it lies behind `here`.
    #[inline(always)]
    pub(super) fn before(&self, mcu: usize, here: usize) -> Option<Checkpoint> {
        let number = (mcu / self.every).min(self.words.len());
        let at = number * self.every;
        (at > here).then(|| Checkpoint::of_word(u64::from_le_bytes(self.words[number - 1]), at))
    }
}

/// Fills a record with as many checkpoints of a JPEG as it holds: with none where the file can have none, being progressive,
/// of several scans, of four components, of 32 MiB or more, or damaged.
pub fn record(bytes: &[u8], into: &mut [u8]) {
    into.fill(0);
    let most = (into.len().saturating_sub(HEAD_BYTES) / CHECKPOINT_BYTES).min(usize::from(u16::MAX));
    let (every, words) = found(bytes, most).ok().flatten().unwrap_or((1, Vec::new()));
    let Some((head, rest)) = into.split_first_chunk_mut::<HEAD_BYTES>() else { return };
    for (to, word) in rest.as_chunks_mut::<CHECKPOINT_BYTES>().0.iter_mut().zip(&words) {
        *to = word.to_le_bytes();
    }
    head[8..12].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    head[12..16].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    head[16..18].copy_from_slice(&VERSION.to_le_bytes());
    head[18..20].copy_from_slice(&(words.len() as u16).to_le_bytes());
    head[20..24].copy_from_slice(&(every as u32).to_le_bytes());
    let check = xxhash_rust::xxh3::xxh3_64(&into[8..HEAD_BYTES + CHECKPOINT_BYTES * words.len()]);
    into[..8].copy_from_slice(&check.to_le_bytes());
}

/// The number of checkpoints in a record.
#[must_use]
pub fn count(record: &[u8]) -> usize {
    record.get(18..20).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])))
}

/// MCUs between checkpoints, and the checkpoints; nothing where there can be none.
fn found(bytes: &[u8], most: usize) -> Result<Option<(usize, Vec<u64>)>> {
    let mut tables = Tables::default();
    let mut markers = Markers::new(bytes, &mut tables);
    let Some(scan) = markers.next_scan()? else { return Ok(None) };
    let Some(frame) = markers.frame().cloned() else { return Ok(None) };
    let parts = scan.parts.len();
    if frame.progressive || parts < frame.components.len() || parts > 3 || most == 0 {
        return Ok(None);
    }
    let mcus = frame.mcus_across() * frame.height.div_ceil(frame.mcu_height());
    let every = mcus.div_ceil(most + 1);
    let mut walk = Walk::new(bytes, &markers, &frame, &scan, None, false)?;
    let mut words = Vec::with_capacity(mcus / every);
    for mcu in (every..mcus).step_by(every) {
        pass_to(&mut walk, mcu)?;
        let Some(word) = walk.checkpoint().to_word() else { return Ok(None) };
        words.push(word);
    }
    pass_to(&mut walk, mcus)?;
    Ok(Some((every, words)))
}
