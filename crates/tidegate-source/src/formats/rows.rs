//! An array in a file as a source: a sample is a row, all elements with one index of the first
//! axis.
//!
//! Flow: `tidegate_array::stored` -> [`Rows`] -> one read a row; neighbours share a read.
//! Memory: none of its own; pread puts rows into staging, past the page cache where the budget has
//! no room for the file.
//!
//! Why: an array larger than memory trains well so. A mapped one is read by page faults, one after
//! the other.

use std::sync::Arc;

use tidegate_array::stored::Stored;

use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::{Entry, Located, SizeBounds, Source};
use crate::{Error, Result};
use tidegate_decode::{Field, Kind, Schema, Value};

/// The rows of an array in a file.
#[derive(Debug)]
pub struct Rows {
    stored: Stored,
    files: Files,
    name: String,
    schema: Schema,
    row_bytes: u32,
}

impl Rows {
    /// Makes a source of the rows of an array, with a field of this name.
    ///
    /// # Errors
    /// [`Error::Config`] for arrays whose rows are not contiguous or are big-endian, with the fix.
    pub fn new(stored: Stored, field: &str) -> Result<Arc<Self>> {
        let name = stored.path.display().to_string();
        let wrong = |what: &str| Err(Error::Config(format!("{name}: {what}")));
        let Some((_, inner)) = stored.shape.split_first() else {
            return wrong("an array without axes has no rows");
        };
        if stored.fortran && stored.shape.len() > 1 {
            return wrong("its rows are not contiguous (Fortran order): save np.ascontiguousarray(x)");
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
    fn files(&self) -> Option<&Files> {
        Some(&self.files)
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
    fn shard_lengths(&self) -> Vec<u64> {
        vec![self.len()]
    }
    fn size_bounds(&self) -> SizeBounds {
        let sample_bytes = u64::from(self.row_bytes);
        SizeBounds { total_bytes: self.stored.bytes(), sample_bytes, ..SizeBounds::default() }
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let entry = |&id: &u64| {
            let offset = self.stored.offset + id * u64::from(self.row_bytes);
            Located { id, entry: Entry { offset, len: self.row_bytes, ..Entry::default() }, path: "".into() }
        };
        Ok(ids.iter().map(entry).collect())
    }
    fn parse<'a>(&self, _: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        Ok(vec![Value::Bytes(bytes)])
    }
}
