//! A synthetic source of any length: its bytes are a function of the id.
//!
//! Flow: id -> `len` bytes and an integer; called by tests, benches and `tidegate bench
//! --synthetic`.
//! Memory: holds none; 10^12 samples cost nothing.

use std::ops::Range;

use crate::{Entry, Located, ReadMode, SizeBounds, Source};
use crate::{Place, Result};
use tidegate_decode::{Field, Kind, Schema, Value};
use tidegate_order::random::{Purpose, Stream};

/// A source whose bytes are a function of the id.
#[derive(Debug)]
pub struct Synthetic {
    samples: u64,
    sample_bytes: u32,
    schema: Schema,
}

impl Synthetic {
    /// Makes `samples` samples with a field `data` of `sample_bytes` bytes and a field `id`.
    #[must_use]
    pub fn new(samples: u64, sample_bytes: u32) -> Self {
        let field = |name: &str, kind| Field { name: name.into(), kind };
        Self { samples, sample_bytes, schema: vec![field("data", Kind::Bytes), field("id", Kind::Int)] }
    }
}

impl Source for Synthetic {
    fn name(&self) -> &str {
        "synthetic"
    }
    fn len(&self) -> u64 {
        self.samples
    }
    fn schema(&self) -> &Schema {
        &self.schema
    }
    fn fingerprint(&self) -> u64 {
        self.samples ^ u64::from(self.sample_bytes) << 40
    }
    fn shard_lengths(&self) -> Vec<u64> {
        vec![self.samples]
    }
    fn size_bounds(&self) -> SizeBounds {
        SizeBounds {
            total_bytes: self.samples.saturating_mul(u64::from(self.sample_bytes)),
            sample_bytes: u64::from(self.sample_bytes),
            ..SizeBounds::default()
        }
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let entry = Entry { len: self.sample_bytes, ..Entry::default() };
        let offset = |id: u64| id.saturating_mul(u64::from(self.sample_bytes));
        Ok(ids
            .iter()
            .map(|&id| Located { id, entry: Entry { offset: offset(id), ..entry }, path: "".into() })
            .collect())
    }
    fn read(&self, at: &Located, len: u64, _: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        // Neighbours share a read.
        let samples = into[..len as usize].chunks_mut(self.sample_bytes.max(1) as usize);
        for (id, sample) in (at.id..).zip(samples) {
            let mut stream = Stream::new(0, 0, id, 0, Purpose::Synthetic);
            for chunk in sample.chunks_mut(8) {
                chunk.copy_from_slice(&stream.long().to_le_bytes()[..chunk.len()]);
            }
        }
        Ok(0..len as usize)
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        Ok(vec![Value::Bytes(bytes), Value::Int(at.id.cast_signed())])
    }
    fn place(&self, at: &Located) -> Place {
        Place { id: at.id, shard: "synthetic".into(), offset: 0, key: at.id.to_string() }
    }
}
