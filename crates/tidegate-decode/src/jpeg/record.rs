//! Writes the checkpoint record of a JPEG.
//!
//! Flow: a whole JPEG -> one pass over its entropy-coded bytes -> [`write_record`] fills the
//! side-car record; called while an index is built.
//! Memory: the record is the caller's; one word a checkpoint while it is written.

use super::checkpoints::{CHECKPOINT_BYTES, HEAD_BYTES, VERSION};
use super::entropy::Walk;
use super::frame::Markers;
use super::huffman::Tables;
use super::seek_with_bmi2;
use crate::Result;

/// Fills a record with as many checkpoints of a JPEG as fit. A file has none if it is progressive,
/// of several scans, of four components, of 32 MiB or more, or damaged.
pub fn write_record(bytes: &[u8], into: &mut [u8]) {
    into.fill(0);
    let most = (into.len().saturating_sub(HEAD_BYTES) / CHECKPOINT_BYTES).min(usize::from(u16::MAX));
    let (every, words) = collect(bytes, most).ok().flatten().unwrap_or((1, Vec::new()));
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

/// MCUs between checkpoints, and the checkpoints; None for a file that can have none.
fn collect(bytes: &[u8], most: usize) -> Result<Option<(usize, Vec<u64>)>> {
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
        seek_with_bmi2(&mut walk, mcu)?;
        let Some(word) = walk.checkpoint().to_word() else { return Ok(None) };
        words.push(word);
    }
    seek_with_bmi2(&mut walk, mcus)?;
    Ok(Some((every, words)))
}
