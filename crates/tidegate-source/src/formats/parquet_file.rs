//! One Parquet file: its row groups, decoded by the parquet crate.
//!
//! Flow: footer -> groups with their bounds; a row group -> pages (read past the page cache) ->
//! record batches.
//! Memory: the footer while open; while a group is decoded, a stored page, its decompressed copy,
//! and the arrays of a batch. The sizes in the footer bound them: `parquet_pages` checks each page
//! before the crate allocates it.
//!
//! Specification: Apache Parquet format 2.11.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tidegate_core::memory::size::mib;
use tidegate_core::sync::lock;

use arrow_array::RecordBatch;
use arrow_schema::Schema as ArrowSchema;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};

use super::parquet_pages::{PageSizes, can_unpack, page_sizes};
use super::table::{Shard, ShardFile, batch_rows, rows_at_a_time};
use crate::index::GroupMeta;
use crate::{Error, Result};

/// Bytes of a read at a page header.
const HEADER_BYTES: u64 = 8 << 10;
/// Bytes that unpacking brotli takes: its largest window, and its tables.
const BROTLI_BYTES: u64 = 17 << 20;

/// How many times what one row may take all values of the pages of a batch may take.
const ROWS_OF_A_PAGE: u64 = 8;

/// An open Parquet file.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    metadata: ArrowReaderMetadata,
}

impl ParquetFile {
    /// Reads the footer.
    ///
    /// # Errors
    /// For a file of another format, or an encrypted one.
    pub(crate) fn open(file: &ShardFile) -> Result<Self> {
        let reading = Reading::of_footer(file);
        let metadata = ArrowReaderMetadata::load(&reading, ArrowReaderOptions::new())
            .map_err(|e| reading.error(0, &e))?;
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
            let (mut library, mut unpacked) = (0u64, 0u64);
            for column in group.columns() {
                let sizes =
                    (u64::try_from(column.compressed_size()), u64::try_from(column.uncompressed_size()));
                let (Ok(stored), Ok(decoded)) = sizes else {
                    return Err(file.error(offset, &"a column of negative size"));
                };
                if stored > file.len {
                    return Err(file.error(offset, &"a column larger than the file"));
                }
                library = library.saturating_add(stored).saturating_add(decoded);
                let values = u64::try_from(column.num_values()).unwrap_or(0);
                let values = values.saturating_mul(value_bytes(file, column)?);
                unpacked = unpacked.saturating_add(decoded.max(values));
            }
            if group.columns().iter().any(|c| matches!(c.compression(), Compression::BROTLI(_))) {
                library = library.saturating_add(BROTLI_BYTES);
            }
            let mut places: Vec<(u64, u64)> =
                group.columns().iter().map(ColumnChunkMetaData::byte_range).collect();
            places.sort_unstable();
            if places.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0) {
                return Err(file.error(offset, &"columns that overlap"));
            }
            let rows = rows.map_err(|_| file.error(offset, &"a row group of negative length"))?;
            let mean = unpacked / rows.max(1);
            if mean > file.most_bytes {
                return Err(file.too_large(offset, "rows", mean));
            }
            let batch_rows = rows_at_a_time(unpacked, rows);
            groups.push(GroupMeta { rows, offset, packed_bytes: 0, library_bytes: library, batch_rows });
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
        // Groups without rows are not numbered.
        let rows = |n: &usize| self.metadata.metadata().row_group(*n).num_rows() > 0;
        let number = (0..self.metadata.metadata().num_row_groups()).filter(rows).nth(number);
        let number = number.ok_or_else(|| file.error(group.offset, &"a row group that is missing"))?;
        let reading = Reading::of_group(file, self.metadata.metadata().row_group(number))?;
        let batches =
            ParquetRecordBatchReaderBuilder::new_with_metadata(reading.clone(), self.metadata.clone())
                .with_row_groups(vec![number])
                .with_projection(mask)
                .with_batch_size(batch_rows(group))
                .build()
                .map_err(|e| reading.error(group.offset, &e))?;
        for batch in batches {
            visit(&batch.map_err(|e| reading.error(group.offset, &e))?)?;
            lock(&reading.chunks).iter_mut().for_each(|chunk| chunk.loaded = 0);
        }
        Ok(())
    }
}

/// The file for the parquet crate, which checks each page against the footer.
#[derive(Debug, Clone)]
struct Reading {
    file: ShardFile,
    chunks: Arc<Mutex<Vec<Chunk>>>,
    /// The error that ended a read. The crate passes it on as text, without its class and place.
    failed: Arc<Mutex<Option<Error>>>,
}

/// A column of a row group: its place, its bounds, and the bytes of its pages so far.
#[derive(Debug)]
struct Chunk {
    place: Range<u64>,
    codec: Compression,
    unpacked: u64,
    taken: u64,
    /// The last page: its start and its sizes.
    page: Option<(u64, PageSizes)>,
    /// Bytes of a value, in a column whose rows may have any number of them; else 0.
    value_bytes: u64,
    /// Bytes of the values of pages since the last batch: one row may have them all.
    loaded: u64,
    most: u64,
}

/// Bytes that a value takes in memory, on average: of text and bytes those in the dictionary. A
/// page may have any number of values in a few bytes.
fn value_bytes(file: &ShardFile, column: &ColumnChunkMetaData) -> Result<u64> {
    Ok(match column.column_type() {
        Type::BOOLEAN => 1,
        Type::INT32 | Type::FLOAT => 4,
        Type::INT64 | Type::DOUBLE => 8,
        Type::INT96 => 12,
        Type::FIXED_LEN_BYTE_ARRAY => u64::try_from(column.column_descr().type_length()).unwrap_or(0),
        Type::BYTE_ARRAY => {
            let at = column.dictionary_page_offset().and_then(|at| u64::try_from(at).ok());
            let Some(at) = at.filter(|at| *at < file.len) else { return Ok(0) };
            let header = file.read(at, HEADER_BYTES.min(file.len - at))?;
            page_sizes(&header).map_or(0, |page| page.unpacked / page.values.max(1))
        }
    })
}

impl Reading {
    fn of_footer(file: &ShardFile) -> Self {
        Self { file: file.clone(), chunks: Arc::default(), failed: Arc::default() }
    }

    fn of_group(file: &ShardFile, group: &RowGroupMetaData) -> Result<Self> {
        let chunk = |column: &ColumnChunkMetaData| {
            let (start, length) = column.byte_range();
            let repeated = column.column_descr().max_rep_level() > 0 && file.most_bytes < u64::MAX;
            Ok(Chunk {
                value_bytes: if repeated { value_bytes(file, column)? } else { 0 },
                loaded: 0,
                most: file.most_bytes,
                place: start..start.saturating_add(length),
                codec: column.compression(),
                unpacked: u64::try_from(column.uncompressed_size()).unwrap_or(0),
                taken: 0,
                page: None,
            })
        };
        let chunks = group.columns().iter().map(chunk).collect::<Result<Vec<_>>>()?;
        Ok(Self { file: file.clone(), chunks: Arc::new(Mutex::new(chunks)), failed: Arc::default() })
    }

    /// Runs `check` on the column that holds `place`; outside the row group there is none.
    fn checked(
        &self,
        place: u64,
        check: impl FnOnce(&mut Chunk) -> Result<(), String>,
    ) -> parquet::errors::Result<()> {
        let mut chunks = lock(&self.chunks);
        let chunk = chunks.iter_mut().find(|chunk| chunk.place.contains(&place));
        chunk.map_or(Ok(()), check).map_err(|what| self.fail(self.file.error(place, &what)))
    }

    /// Keeps the error of a read, and returns what the crate is told instead.
    fn fail(&self, error: Error) -> ParquetError {
        let told = ParquetError::General(error.to_string());
        *lock(&self.failed) = Some(error);
        told
    }

    /// The error of a read that failed; else that of the crate, with this place.
    fn error(&self, offset: u64, told: &dyn std::fmt::Display) -> Error {
        lock(&self.failed).take().unwrap_or_else(|| self.file.error(offset, told))
    }
}

impl Chunk {
    /// Checks the page whose header starts at `at` against the footer.
    fn begin_page(&mut self, at: u64, header: &[u8]) -> Result<(), String> {
        if self.page.is_some_and(|(last, _)| at <= last) {
            return Ok(());
        }
        let sizes = page_sizes(header).ok_or("there is no page header")?;
        self.taken = self.taken.saturating_add(sizes.unpacked);
        self.loaded = self.loaded.saturating_add(sizes.values.saturating_mul(self.value_bytes));
        // Pages usually have many rows: only what is far beyond says that one row has them all.
        if self.loaded > self.most.saturating_mul(ROWS_OF_A_PAGE) {
            return Err(format!(
                "a row whose values may take {} MiB, where opening may take {} (tg.open(..., memory=\"1GiB\") \
                 gives it more)",
                mib(self.loaded),
                mib(self.most)
            ));
        }
        self.page = Some((at, sizes));
        let most = self.unpacked;
        if self.taken <= most {
            Ok(())
        } else {
            Err(format!("a page of {} bytes, in a column whose footer says {most} in all", sizes.unpacked))
        }
    }

    /// Checks the stored bytes of the last page against its header.
    fn unpack(&self, bytes: &[u8]) -> Result<(), String> {
        match self.page {
            Some((_, sizes))
                if sizes.stored == bytes.len() as u64 && !can_unpack(self.codec, bytes, sizes) =>
            {
                Err(format!(
                    "a page that unpacks to another length than the {} bytes of its header",
                    sizes.unpacked
                ))
            }
            _ => Ok(()),
        }
    }
}

impl Length for Reading {
    fn len(&self) -> u64 {
        self.file.len
    }
}

impl ChunkReader for Reading {
    type T = Headers;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Headers> {
        Ok(Headers { of: self.clone(), start, at: start, window: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let bytes = self.file.read(start, length as u64).map_err(|e| self.fail(e))?;
        self.checked(start, |chunk| chunk.unpack(&bytes))?;
        Ok(bytes)
    }
}

/// Reads page headers from a place on, a window at a time.
///
/// The crate also makes readers that it never reads, at places without a header.
#[derive(Debug)]
struct Headers {
    of: Reading,
    start: u64,
    at: u64,
    window: Bytes,
}

impl Headers {
    fn fill(&mut self) -> std::io::Result<()> {
        if self.window.is_empty() {
            let file = &self.of.file;
            let len = HEADER_BYTES.min(file.len.saturating_sub(self.at));
            self.window = file.read(self.at, len).map_err(|e| self.of.fail(e))?;
            if self.at == self.start {
                self.of.checked(self.start, |chunk| chunk.begin_page(self.start, &self.window))?;
            }
            self.at += len;
        }
        Ok(())
    }
}

impl Read for Headers {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.fill()?;
        let n = into.len().min(self.window.len());
        into[..n].copy_from_slice(&self.window.split_to(n));
        Ok(n)
    }
}
