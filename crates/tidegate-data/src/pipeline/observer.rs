//! Looking on: what somebody notes of each sample while it is made, and gets back in order.
//!
//! Flow: a sample with its fresh rows -> [`Observer::see`], on the worker -> a note -> [`Observer::take`], when its batch is delivered.
//! Memory: notes on their way are part of the plan (account `telemetry`), by [`Observer::note_bytes`].
//!
//! Workers are where there is time, and rows are still in the processor's cache; the order of delivery is what makes the outcome the same
//! for any number of them.

use std::any::Any;

use tidegate_decode::Value;

/// What is noted of one sample.
pub type Note = Box<dyn Any + Send>;

/// One column of a sample, as it was made.
#[derive(Debug, Clone, Copy)]
pub struct Made<'a> {
    /// Its bytes in the batch.
    pub bytes: &'a [u8],
    /// The shape of a ragged picture or array; else empty, as all rows have that of the column.
    pub shape: &'a [usize],
}

/// A sample while it is made.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Its id; of a subset that of the whole source.
    pub id: u64,
    /// Its place in the source.
    pub index: u64,
    /// All its bytes as they are stored.
    pub stored: &'a [u8],
    /// The fields of the source, in the order of its schema.
    pub values: &'a [Value<'a>],
    /// The columns of the layout.
    pub made: &'a [Made<'a>],
}

/// Who looks on; see the head of this file.
///
/// Samples that fail are not seen; while somebody looks on, rows that were kept from an earlier epoch are made again.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// What the note of a sample takes at most, in bytes.
    fn note_bytes(&self) -> u64;

    /// Notes what it wants of a sample: on many threads at once, in any order.
    fn see(&self, sample: &Sample<'_>) -> Note;

    /// Takes the notes of a batch, in the order of its rows; called batch after batch.
    ///
    /// # Errors
    /// Whatever ends the epoch.
    fn take(&self, notes: Vec<Note>) -> crate::Result<()>;
}
