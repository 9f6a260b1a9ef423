//! One Arrow IPC file or stream: its record batches, decoded by the arrow crates.
//!
//! Flow: one pass over the messages -> groups (record batches) with their bounds; a message -> its
//! body -> a record batch.
//! Memory: schema and dictionaries while open; the body of a batch and its decompressed buffers
//! while it is decoded.
//!
//! A file is a stream between eight bytes of magic and a footer, which is not needed: Hugging Face
//! writes streams, pandas (Feather 2) and pyarrow write either. Specification: Arrow columnar
//! format
//! 1.5, «IPC».

use std::collections::HashMap;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::{MessageBuffer, try_fb_to_schema};
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_ipc::{CompressionType, MessageHeader, MetadataVersion};
use arrow_schema::{Schema as ArrowSchema, SchemaRef};

use super::table::{Shard, ShardFile};
use super::unpacking::Codec;
use crate::Result;
use crate::index::GroupMeta;

/// A compressed record batch may unpack to this many times its bytes.
const UNPACKED_TIMES: u64 = 16;

const MAGIC: &[u8] = b"ARROW1";
const CONTINUES: u32 = u32::MAX;
/// The most bytes of the metadata of a message; real ones have a few hundred a column.
const MAX_META_BYTES: u64 = 16 << 20;
/// The most bytes of a decompressed batch.
const MAX_BATCH_BYTES: u64 = 4 << 30;

/// An open Arrow file or stream.
#[derive(Debug)]
pub(crate) struct ArrowFile {
    schema: SchemaRef,
    version: MetadataVersion,
    dictionaries: HashMap<i64, ArrayRef>,
    /// The offset of the first record batch.
    first: u64,
}

/// A message and the place of its body.
struct Found {
    meta: MessageBuffer,
    body: u64,
    body_bytes: u64,
}

impl Found {
    fn end(&self) -> u64 {
        self.body + self.body_bytes
    }
}

/// Whether the file ends with the magic of a file; a stream does not.
fn footer(file: &ShardFile) -> Result<bool> {
    let len = MAGIC.len() as u64;
    Ok(file.len >= len && file.read(file.len - len, len)? == MAGIC)
}

/// The message at `offset`; None at the end of the stream.
fn message(file: &ShardFile, offset: u64) -> Result<Option<Found>> {
    if offset == file.len {
        return Ok(None);
    }
    if offset + 8 > file.len {
        return Err(file.error(offset, &"it ends within a message"));
    }
    let head = file.read(offset, 8)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    // Before Arrow 0.15 the length came first.
    let (len, start) = if word(0) == CONTINUES { (word(4), offset + 8) } else { (word(0), offset + 4) };
    if len == 0 {
        // Before Arrow 0.15 the end was four zeros. After an end there is at most a footer.
        let zeros = word(0) == 0 && offset + 8 < file.len && !footer(file)?;
        return if zeros { Err(file.error(offset, &"zeros where a message belongs")) } else { Ok(None) };
    }
    if u64::from(len) > MAX_META_BYTES {
        return Err(file.error(offset, &format!("a message of {len} bytes of metadata")));
    }
    let meta = file.read(start, len.into())?;
    let meta = MessageBuffer::try_new(Buffer::from(meta)).map_err(|e| file.error(offset, &e))?;
    let body = start + u64::from(len);
    let body_bytes = u64::try_from(meta.as_ref().bodyLength()).ok();
    let body_bytes = body_bytes.filter(|n| body.checked_add(*n).is_some_and(|end| end <= file.len));
    let body_bytes = body_bytes.ok_or_else(|| {
        file.error(offset, &format!("a record batch that ends after the {} bytes of the file", file.len))
    })?;
    Ok(Some(Found { meta, body, body_bytes }))
}

impl ArrowFile {
    /// Reads the schema and the dictionaries.
    ///
    /// # Errors
    /// For a file of another format.
    pub(crate) fn open(file: &ShardFile) -> Result<Self> {
        let magic = file.read(0, file.len.min(8))?;
        let mut at = if magic.starts_with(MAGIC) { 8 } else { 0 };
        if at > 0 && !footer(file)? {
            return Err(file.error(file.len, &"its footer is missing: it is truncated"));
        }
        let found = message(file, at)?.ok_or_else(|| file.error(at, &"it has no schema"))?;
        let schema =
            found.meta.as_ref().header_as_schema().ok_or_else(|| file.error(at, &"it has no schema"))?;
        let schema = SchemaRef::new(try_fb_to_schema(schema).map_err(|e| file.error(at, &e))?);
        let version = found.meta.as_ref().version();
        let mut dictionaries = HashMap::new();
        at = found.end();
        while let Some(found) = message(file, at)? {
            let meta = found.meta.as_ref();
            let Some(batch) = meta.header_as_dictionary_batch() else { break };
            let data = batch.data().ok_or_else(|| file.error(at, &"a dictionary without values"))?;
            let body = Buffer::from(file.read(found.body, found.body_bytes)?);
            check(file, at, &data, &body)?;
            read_dictionary(&body, batch, &schema, &mut dictionaries, &version)
                .map_err(|e| file.error(at, &e))?;
            at = found.end();
        }
        Ok(Self { schema, version, dictionaries, first: at })
    }
}

/// Checks what the arrow crates trust, and returns the bytes of all decompressed buffers.
fn check(file: &ShardFile, offset: u64, batch: &arrow_ipc::RecordBatch<'_>, body: &[u8]) -> Result<u64> {
    let wrong = |what: &str| file.error(offset, &what);
    let codec = batch.compression().map(|c| match c.codec() {
        CompressionType::ZSTD => Codec::Zstd,
        // The crate never unpacks more than a frame claims.
        _ => Codec::Lz4,
    });
    let mut total = 0u64;
    for buffer in batch.buffers().iter().flatten() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let bytes = range.and_then(|(at, len)| body.get(at..at.checked_add(len)?));
        let bytes = bytes.ok_or_else(|| wrong("a buffer outside its record batch"))?;
        let decoded = match (bytes.split_first_chunk::<8>(), codec) {
            (Some((word, packed)), Some(codec)) => match i64::from_le_bytes(*word) {
                -1 => bytes.len() as u64,
                len => u64::try_from(len)
                    .ok()
                    .filter(|&len| len == 0 || codec.allows(packed, len))
                    .ok_or_else(|| wrong("a buffer that cannot unpack to the length it claims"))?,
            },
            _ => bytes.len() as u64,
        };
        total = total.saturating_add(decoded);
    }
    let most = total.saturating_mul(8).saturating_add(u64::try_from(batch.length()).unwrap_or(0));
    for node in batch.nodes().iter().flatten() {
        let len = u64::try_from(node.length()).ok().filter(|n| *n <= most);
        let nulls = u64::try_from(node.null_count()).ok();
        if len.zip(nulls).is_none_or(|(len, nulls)| nulls > len) {
            return Err(wrong("a column whose length does not fit its buffers"));
        }
    }
    if total > MAX_BATCH_BYTES {
        return Err(wrong("a record batch of more than 4 GiB"));
    }
    Ok(total)
}

impl Shard for ArrowFile {
    fn schema(&self) -> &ArrowSchema {
        &self.schema
    }

    fn groups(&self, file: &ShardFile) -> Result<Vec<GroupMeta>> {
        let (mut groups, mut at) = (Vec::new(), self.first);
        while let Some(found) = message(file, at)? {
            let meta = found.meta.as_ref();
            if meta.header_type() == MessageHeader::DictionaryBatch {
                return Err(file.error(
                    at,
                    &"a dictionary that changes between record batches: write it once, before them",
                ));
            }
            let batch = meta.header_as_record_batch();
            let batch = batch.ok_or_else(|| file.error(at, &"a message that is no record batch"))?;
            let rows =
                u64::try_from(batch.length()).map_err(|_| file.error(at, &"a batch of negative length"))?;
            let decoded = check(file, at, &batch, &file.read(found.body, found.body_bytes)?)?;
            if rows > decoded.saturating_mul(8) {
                return Err(file.error(at, &"a record batch of more rows than bits"));
            }
            let extra = if batch.compression().is_some() { decoded } else { 0 };
            // The dictionaries stay in memory while the file is open.
            let dictionaries =
                self.dictionaries.values().map(|d| d.get_array_memory_size() as u64).sum::<u64>();
            let library_bytes = found.body_bytes + extra + dictionaries;
            // As much as the file itself has may be unpacked in any case: other programs write
            // record batches of any size.
            let most = file.most_bytes.max(UNPACKED_TIMES.saturating_mul(found.body_bytes));
            if decoded > most {
                return Err(file.too_large(at, "a record batch", decoded));
            }
            groups.push(GroupMeta { rows, offset: at, library_bytes, ..GroupMeta::default() });
            at = found.end();
        }
        Ok(groups)
    }

    fn decode(
        &self,
        file: &ShardFile,
        _: usize,
        group: &GroupMeta,
        wanted: &[bool],
        visit: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let gone = || file.error(group.offset, &"the record batch is gone");
        let found = message(file, group.offset)?.ok_or_else(gone)?;
        let batch = found.meta.as_ref().header_as_record_batch().ok_or_else(gone)?;
        let body = Buffer::from(file.read(found.body, found.body_bytes)?);
        check(file, group.offset, &batch, &body)?;
        let columns: Vec<usize> = wanted.iter().enumerate().filter(|(_, w)| **w).map(|(c, _)| c).collect();
        let words = |e| file.error(group.offset, &e);
        let decoder =
            RecordBatchDecoder::try_new(&body, batch, self.schema.clone(), &self.dictionaries, &self.version);
        let all =
            decoder.map_err(words)?.with_projection(Some(&columns)).read_record_batch().map_err(words)?;
        let step = super::table::batch_rows(group);
        (0..all.num_rows())
            .step_by(step)
            .try_for_each(|row| visit(&all.slice(row, step.min(all.num_rows() - row))))
    }
}
