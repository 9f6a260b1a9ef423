//! One Parquet file: its row groups, decoded by the parquet crate.
//!
//! Flow: footer -> groups with their bounds; a row group -> pages (read past the page cache) -> record batches.
//! Memory: the footer while open; a page as stored and as decompressed, and the arrays of a batch, while a group is
//! decoded: bounded by the sizes in the footer, which are believed; a page that unpacks to more than its footer says is
//! caught by the packing, not before the crate has made room for it.
//!
//! Specification: Apache Parquet format 2.11.

use std::io::Read;

use arrow_array::RecordBatch;
use arrow_schema::Schema as ArrowSchema;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::index::GroupMeta;
use super::table::{Shard, ShardFile, batch_rows};
use crate::{Error, Result};

/// What is read at a page header.
const HEADER_BYTES: u64 = 8 << 10;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct ParquetFile {
    metadata: ArrowReaderMetadata,
}

impl ParquetFile {
    /// Reads the footer.
    ///
    /// # Errors
    /// For what is no Parquet file, or an encrypted one.
    pub(super) fn open(file: &ShardFile) -> Result<Self> {
        let metadata =
            ArrowReaderMetadata::load(file, ArrowReaderOptions::new()).map_err(|e| file.wrong(0, &e))?;
        Ok(Self { metadata })
    }
}

impl Shard for ParquetFile {
    fn schema(&self) -> &ArrowSchema {
        self.metadata.schema()
    }

    fn groups(&self, file: &ShardFile) -> Result<Vec<GroupMeta>> {
        let mut groups = Vec::new();
        for group in self.metadata.metadata().row_groups() {
            let offset = group.columns().iter().map(|c| c.byte_range().0).min().unwrap_or(0);
            let rows = u64::try_from(group.num_rows());
            let mut library = 0u64;
            for column in group.columns() {
                let sizes =
                    (u64::try_from(column.compressed_size()), u64::try_from(column.uncompressed_size()));
                let (Ok(stored), Ok(decoded)) = sizes else {
                    return Err(file.wrong(offset, &"a column of negative size"));
                };
                if stored > file.len {
                    return Err(file.wrong(offset, &"a column larger than the file"));
                }
                library = library.saturating_add(stored).saturating_add(decoded);
            }
            let rows = rows.map_err(|_| file.wrong(offset, &"a row group of negative length"))?;
            groups.push(GroupMeta { rows, offset, packed_bytes: 0, library_bytes: library });
        }
        Ok(groups)
    }

    fn decode(
        &self,
        file: &ShardFile,
        number: usize,
        group: &GroupMeta,
        wanted: &[bool],
        visit: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let roots = wanted.iter().enumerate().filter(|(_, wanted)| **wanted).map(|(c, _)| c);
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots);
        // Groups without rows have no number of ours.
        let rows = |n: &usize| self.metadata.metadata().row_group(*n).num_rows() > 0;
        let number = (0..self.metadata.metadata().num_row_groups()).filter(rows).nth(number);
        let number = number.ok_or_else(|| file.wrong(group.offset, &"a row group that is not there"))?;
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), self.metadata.clone())
            .with_row_groups(vec![number])
            .with_projection(mask)
            .with_batch_size(batch_rows(group))
            .build()
            .map_err(|e| file.wrong(group.offset, &e))?;
        for batch in batches {
            visit(&batch.map_err(|e| file.wrong(group.offset, &e))?)?;
        }
        Ok(())
    }
}

impl Length for ShardFile {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for ShardFile {
    type T = Headers;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Headers> {
        Ok(Headers { file: self.clone(), at: start, window: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.read(start, length as u64).map_err(external)
    }
}

fn external(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// Reads from a place on, a window at a time: for page headers.
#[derive(Debug)]
pub(super) struct Headers {
    file: ShardFile,
    at: u64,
    window: Bytes,
}

impl Read for Headers {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.window.is_empty() {
            let len = HEADER_BYTES.min(self.file.len.saturating_sub(self.at));
            self.window = self.file.read(self.at, len).map_err(std::io::Error::other)?;
            self.at += len;
        }
        let n = into.len().min(self.window.len());
        into[..n].copy_from_slice(&self.window.split_to(n));
        Ok(n)
    }
}
