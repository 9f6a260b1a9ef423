//! Observers: what is noted of each sample while it is made, handed back in order.
//!
//! Flow: a sample with its fresh rows -> [`Observer::see`], on the worker -> a note ->
//! [`Observer::take`], when its batch is delivered.
//! Memory: notes in flight are part of the plan (account `telemetry`), by
//! [`Observer::note_bytes`].
//!
//! Notes are made on the workers, which run in parallel and have the rows in the processor's
//! cache. They are taken in the order of delivery, so the outcome is the same for any number of
//! workers.

use std::any::Any;

use tidegate_decode::Value;

/// What is noted of one sample.
pub type Note = Box<dyn Any + Send>;

/// One column of a sample, as it was decoded.
#[derive(Debug, Clone, Copy)]
pub struct DecodedColumn<'a> {
    /// Its bytes in the batch.
    pub bytes: &'a [u8],
    /// The shape of a ragged image or array; empty where all rows have the shape of the column.
    pub shape: &'a [usize],
}

/// A sample while it is made.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Its id; of a subset the id in the whole source.
    pub id: u64,
    /// Its index in the source.
    pub index: u64,
    /// All its bytes as they are stored.
    pub stored: &'a [u8],
    /// The fields of the source, in the order of its schema.
    pub values: &'a [Value<'a>],
    /// The columns of the layout.
    pub columns: &'a [DecodedColumn<'a>],
}

/// Sees every sample of an epoch while it is made; see the head of this file.
///
/// Samples that fail are not seen. An epoch with an observer decodes every row, also those that
/// the cache has decoded.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// Bytes that the note of a sample takes at most.
    fn note_bytes(&self) -> u64;

    /// Makes the note of a sample. It is called on many threads at once, in any order.
    fn see(&self, sample: &Sample<'_>) -> Note;

    /// Takes the notes of a batch, in the order of its rows. It is called batch after batch.
    ///
    /// # Errors
    /// Whatever ends the epoch.
    fn take(&self, notes: Vec<Note>) -> crate::Result<()>;
}
