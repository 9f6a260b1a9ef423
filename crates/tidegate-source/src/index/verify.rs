//! Whether an index is what its builder wrote, before any of it is believed.
//!
//! Flow: `meta.json` -> its seal and its sums; entries and keys -> the hash in `meta.json`.
//! Memory: an index that is held, or three read buffers.
//!
//! A bit that flipped would be another label or another place without a word, and a size of 2⁶³ a
//! plan without end. An index that is damaged is made again.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{ENTRY_BYTES, Entry, Index, Meta};

/// No size of a file or of memory is larger than this.
const MOST_BYTES: u64 = 1 << 48;
/// A larger index is checked by its sums alone: reading it would hold up each start.
const CHECKED_BYTES: u64 = 256 << 20;
const BUFFER_BYTES: usize = 256 << 10;
/// The longest key.
const KEY_BYTES: usize = 1 << 16;

impl Meta {
    /// A hash of everything but the seal itself.
    fn digest(&self) -> Option<u64> {
        serde_json::to_vec(&Self { seal: None, ..self.clone() }).ok().map(|json| xxh3_64(&json))
    }

    pub(super) fn seal(&mut self) {
        self.seal = self.digest();
    }

    /// Whether its seal holds, and its figures can be those of a dataset.
    pub(super) fn is_sound(&self) -> bool {
        let b = &self.bounds;
        let sizes = [b.total_bytes, b.sample_bytes, b.scratch_bytes, b.decoded_bytes, b.side];
        let groups = self.shards.iter().flat_map(|shard| &shard.groups);
        let groups = groups.flat_map(|group| [group.rows, group.packed_bytes, group.library_bytes]);
        let counted = self.shards.iter().try_fold(0u64, |sum, shard| sum.checked_add(shard.samples));
        self.seal.is_none_or(|seal| self.digest() == Some(seal))
            && sizes.into_iter().chain(groups).all(|bytes| bytes <= MOST_BYTES)
            && (self.shards.is_empty() || counted == Some(self.samples))
    }
}

impl Index {
    /// Whether entries and keys are those that were hashed, and have the sizes that it states.
    pub(super) fn is_whole(&self) -> bool {
        let bytes = self.meta.samples * ENTRY_BYTES + self.meta.keys_bytes;
        bytes > CHECKED_BYTES || self.matches().unwrap_or(false)
    }

    fn matches(&self) -> std::io::Result<bool> {
        let meta = &self.meta;
        let head = (meta.samples + 1) * 8;
        let mut entries = self.reader("entries", self.entries.as_deref(), 0)?;
        let mut offsets = self.reader("keys", self.keys.as_deref(), 0)?;
        let mut text = self.reader("keys", self.keys.as_deref(), head)?;
        let (mut hash, mut word, mut key) = (Xxh3::new(), [0; 8], vec![0; KEY_BYTES]);
        offsets.read_exact(&mut word)?;
        let (mut start, mut total, mut largest) = (u64::from_le_bytes(word), 0, 0);
        if start != head {
            return Ok(false);
        }
        for _ in 0..meta.samples {
            let mut entry = [0; ENTRY_BYTES as usize];
            entries.read_exact(&mut entry)?;
            offsets.read_exact(&mut word)?;
            let end = u64::from_le_bytes(word);
            let Some(len) = end.checked_sub(start).filter(|&len| len <= KEY_BYTES as u64) else {
                return Ok(false);
            };
            let key = &mut key[..len as usize];
            text.read_exact(key)?;
            hash.update(&entry);
            hash.update(key);
            let bytes = u64::from(Entry::from_bytes(&entry).len);
            (start, total, largest) = (end, total + bytes, bytes.max(largest));
        }
        for shard in &meta.shards {
            hash.update(shard.name.as_bytes());
            hash.update(&shard.bytes.to_le_bytes());
        }
        meta.classes.iter().for_each(|class| hash.update(class.as_bytes()));
        let sums = (meta.bounds.total_bytes, meta.bounds.sample_bytes, meta.keys_bytes);
        Ok(hash.digest() == meta.fingerprint && sums == (total, largest, start))
    }

    fn reader<'a>(
        &self,
        file: &str,
        held: Option<&'a [u8]>,
        from: u64,
    ) -> std::io::Result<Box<dyn Read + 'a>> {
        if let Some(bytes) = held {
            return Ok(Box::new(bytes.get(from as usize..).unwrap_or_default()));
        }
        let mut file = File::open(self.dir.join(file))?;
        file.seek(SeekFrom::Start(from))?;
        Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, file)))
    }
}
