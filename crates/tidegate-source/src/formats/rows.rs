//! An array in a file as a source: a sample is a row, which is everything behind an index of the first axis.
//!
//! Flow: `tidegate_array::stored` -> [`Rows`] -> one read a row, neighbours in one.
//! Memory: none of its own; rows go by pread into staging, past the page cache where the budget has no room for the file.
//!
//! This is how an array larger than memory is trained on: what is mapped is read by page faults, one after the other.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tidegate_array::stored::Stored;

use crate::files::read::{Extent, Files};
use crate::open::file_name;
use crate::{Entry, Extremes, Located, ReadMode, Source};
use crate::{Error, Place, Result};
use tidegate_decode::{Field, Kind, Schema, Value};

/// See the head of this file.
#[derive(Debug)]
pub struct Rows {
    stored: Stored,
    files: Files,
    name: String,
    schema: Schema,
    row_bytes: u32,
}

impl Rows {
    /// The rows of an array, as a field of this name.
    ///
    /// # Errors
    /// [`Error::Config`] for arrays whose rows do not lie together or have the other byte order, with the fix.
    pub fn new(stored: Stored, field: &str) -> Result<Arc<Self>> {
        let name = stored.path.display().to_string();
        let wrong = |what: &str| Err(Error::Config(format!("{name}: {what}")));
        let Some((_, inner)) = stored.shape.split_first() else {
            return wrong("an array without axes has no rows");
        };
        if stored.fortran && stored.shape.len() > 1 {
            return wrong("its rows do not lie together (Fortran order): save np.ascontiguousarray(x)");
        }
        if stored.big_endian && stored.dtype.size() > 1 {
            return wrong("its elements are big-endian: save them little-endian");
        }
        let bytes = inner.iter().try_fold(stored.dtype.size(), |n, side| n.checked_mul(*side));
        let Some(row_bytes) = bytes.and_then(|bytes| u32::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
        else {
            return wrong("a row must have at least a byte, and less than 4 GiB");
        };
        let kind = Kind::NdArray { dtype: Some(stored.dtype.name().to_owned()), shape: Some(inner.to_vec()) };
        let schema = vec![Field { name: field.to_owned(), kind }];
        let files = Files::new(vec![stored.path.clone()]);
        Ok(Arc::new(Self { stored, files, name, schema, row_bytes }))
    }
}

impl Source for Rows {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> u64 {
        self.stored.shape.first().map_or(0, |&rows| rows as u64)
    }
    fn schema(&self) -> &Schema {
        &self.schema
    }
    fn fingerprint(&self) -> u64 {
        let Stored { path, dtype, shape, offset, .. } = &self.stored;
        let text = format!("{} {} {shape:?} {offset}", file_name(path), dtype.name());
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
    fn edition(&self) -> u64 {
        self.files.edition()
    }
    fn runs(&self) -> Vec<u64> {
        vec![self.len()]
    }
    fn extremes(&self) -> Extremes {
        let sample_bytes = u64::from(self.row_bytes);
        Extremes { total_bytes: self.stored.bytes(), sample_bytes, ..Extremes::default() }
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let entry = |&id: &u64| {
            let offset = self.stored.offset + id * u64::from(self.row_bytes);
            Located { id, entry: Entry { offset, len: self.row_bytes, ..Entry::default() }, path: "".into() }
        };
        Ok(ids.iter().map(entry).collect())
    }
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        self.files.read(0, at.entry.offset, len, mode, into)
    }
    fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        self.files.extent(0, at.entry.offset)
    }
    fn parse<'a>(&self, _: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        Ok(vec![Value::Bytes(bytes)])
    }
    fn key(&self, id: u64) -> Result<String> {
        Ok(id.to_string())
    }
    fn place(&self, at: &Located) -> Place {
        Place {
            id: at.id,
            shard: file_name(&self.stored.path),
            offset: at.entry.offset,
            key: at.id.to_string(),
        }
    }
    fn shards(&self) -> Vec<PathBuf> {
        self.files.paths().to_vec()
    }
}
