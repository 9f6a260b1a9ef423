//! A batch while its rows are being written.
//!
//! Flow: slot + layout + ids -> [`Row`]s, one for each row -> written, skipped or failed -> the
//! last row that is settled gives the builder back -> [`BatchBuilder::finish`].
//! Memory: the slot and the blocks of ragged columns (account `batch`), passed on to the consumer.
//!
//! Each row is one value that cannot be copied, so a batch is complete when its last row is
//! settled, and only then. A row that is dropped instead gives its share of the memory back and
//! completes nothing: that is how a stopped epoch ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tidegate_core::memory::{Block, Piece, Pieces, SlabItem};
use tidegate_core::sync::lock;
use tidegate_order::partition::RankRows;

use super::config::{Failure, OnError};
use super::observer::Note;
use super::spec::EpochSpec;
use crate::batch::geometry::Draw;
use crate::batch::{Batch, BatchMemory, Column, ColumnPlan, FieldSpec, Layout, Part};
use crate::{Error, Result};

/// Row states.
const EMPTY: u64 = 0;
const WRITTEN: u64 = 1;
const FAILED: u64 = 2;

/// A ragged column: the memory of its rows, and how much of it was used.
#[derive(Debug)]
struct Ragged {
    pieces: Option<Pieces<Block>>,
    starts: Vec<usize>,
    written: Vec<AtomicU64>,
    shapes: Mutex<Vec<Vec<usize>>>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    spec: Arc<EpochSpec>,
    /// The batch's number within the epoch.
    pub(super) index: u64,
    /// The global positions of the rows.
    at: RankRows,
    ids: Vec<AtomicU64>,
    /// What the order said: of a subset not the ids.
    indices: Vec<AtomicU64>,
    slot: Option<Pieces<SlabItem>>,
    ragged: Vec<Ragged>,
    /// For each column of the layout: which ragged one it is.
    ragged_of: Vec<Option<usize>>,
    state: Vec<AtomicU64>,
    errors: Mutex<Vec<(usize, Error)>>,
    failures: Mutex<Vec<Failure>>,
    /// What an observer noted of rows.
    notes: Mutex<Vec<(usize, Note)>>,
}

/// What comes with a batch next to its columns.
#[derive(Debug, Default)]
pub(super) struct BatchExtras {
    pub(super) failures: Vec<Failure>,
    /// What an observer noted, in the order of rows.
    pub(super) notes: Vec<Note>,
}

/// A row that is to be written; see the head of this file.
#[derive(Debug)]
pub(super) struct Row {
    builder: Arc<BatchBuilder>,
    row: usize,
    /// 0, or the number of the replacement that is tried.
    pub(super) attempt: u8,
}

/// The memory for a batch: its slot, a block for each ragged column, and the bytes that each row
/// may take of them.
#[derive(Debug)]
pub(super) struct BatchAllocation {
    pub(super) slot: SlabItem,
    pub(super) blocks: Vec<Block>,
    pub(super) row_bytes: Vec<Vec<u64>>,
}

impl BatchBuilder {
    /// A batch of samples with these ids, which the order knows under `indices`.
    pub(super) fn new(
        spec: &Arc<EpochSpec>,
        (index, at): (u64, RankRows),
        ids: &[u64],
        indices: &[u64],
        memory: BatchAllocation,
    ) -> Result<Self> {
        let (layout, rows) = (&spec.layout, at.count as usize);
        let internal = || Error::Internal("a batch larger than its slot".into());
        let ragged =
            memory.row_bytes.iter().zip(memory.blocks).map(|(bytes, block)| Ragged::new(bytes, block));
        let slot = Pieces::new(memory.slot, slot_ranges(layout, rows)).map_err(|_| internal())?;
        let mut next = 0..;
        let ragged_of = layout.columns.iter().map(|c| if c.shape.is_none() { next.next() } else { None });
        Ok(Self {
            spec: Arc::clone(spec),
            index,
            at,
            ids: ids.iter().map(|&id| AtomicU64::new(id)).collect(),
            indices: indices.iter().map(|&index| AtomicU64::new(index)).collect(),
            slot: Some(slot),
            ragged: ragged.collect::<Option<_>>().ok_or_else(internal)?,
            ragged_of: ragged_of.collect(),
            state: (0..rows).map(|_| AtomicU64::new(EMPTY)).collect(),
            errors: Mutex::default(),
            failures: Mutex::default(),
            notes: Mutex::default(),
        })
    }

    /// The rows of the batch, in order; the builder itself where there are none.
    pub(super) fn into_rows(self) -> std::result::Result<Vec<Row>, Box<Self>> {
        let rows = self.state.len();
        if rows == 0 {
            return Err(Box::new(self));
        }
        let builder = Arc::new(self);
        let row = |row| Row { builder: Arc::clone(&builder), row, attempt: 0 };
        // The builder of this function goes with its end, before any row can be settled.
        Ok((0..rows).map(row).collect())
    }

    fn rows(&self) -> usize {
        self.state.len()
    }

    fn is_padding(&self, row: usize) -> bool {
        row >= self.at.real as usize
    }

    fn index_of(&self, row: usize) -> u64 {
        self.indices[row].load(Ordering::Acquire)
    }

    /// The batch, or the error of its first failed row; and its extras.
    pub(super) fn finish(mut self) -> (Result<Batch>, BatchExtras) {
        let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.assemble()));
        let outcome = finished.unwrap_or_else(|panic| {
            Err(Error::Panic { thread: "batch".into(), what: crate::panic_message(&*panic) })
        });
        let mut failures = std::mem::take(&mut *lock(&self.failures));
        failures.sort_by_key(|f| f.position);
        let mut notes = std::mem::take(&mut *lock(&self.notes));
        notes.sort_by_key(|(row, _)| *row);
        let notes = notes.into_iter().map(|(_, note)| note).collect();
        (outcome, BatchExtras { failures, notes })
    }

    fn assemble(&mut self) -> Result<Batch> {
        let mut errors = std::mem::take(&mut *lock(&self.errors));
        errors.sort_by_key(|(row, _)| *row);
        if let Some((_, error)) = errors.into_iter().next() {
            return Err(error);
        }
        let written = |r: &usize| self.state[*r].load(Ordering::Acquire) == WRITTEN;
        let kept: Vec<usize> = (0..self.rows()).filter(written).collect();
        if kept.len() != self.rows() && self.spec.config.on_error == OnError::Raise {
            return Err(Error::Internal("a row of a batch was neither written nor failed".into()));
        }
        let (memory, columns) = self.columns(&kept)?;
        let indices: Vec<u64> = kept.iter().map(|&r| self.index_of(r)).collect();
        let weight = |(&r, &index)| if self.is_padding(r) { 0.0 } else { self.spec.epoch.weight(index) };
        Ok(Batch {
            memory,
            columns,
            rows: kept.len(),
            weights: kept.iter().zip(&indices).map(weight).collect(),
            ids: kept.iter().map(|&r| self.ids[r].load(Ordering::Acquire)).collect(),
            indices,
            positions: kept.iter().map(|&r| self.at.position(r as u64)).collect(),
            mask: kept.iter().map(|&r| !self.is_padding(r)).collect(),
            epoch: self.spec.config.epoch,
            number: self.spec.config.split.number(self.index),
            last: self.index + 1 == self.spec.config.split.batches(),
        })
    }

    /// The columns of the rows that are kept, moved together, and their memory.
    fn columns(&mut self, kept: &[usize]) -> Result<(BatchMemory, Vec<Column>)> {
        let gone = || Error::Internal("a batch was finished twice".into());
        let (rows, layout) = (self.rows(), Arc::clone(&self.spec.layout));
        let mut slot = self.slot.take().ok_or_else(gone)?.into_inner();
        let mut columns = Vec::with_capacity(layout.columns.len());
        let mut blocks = Vec::new();
        for (c, plan) in layout.columns.iter().enumerate() {
            let (part, shape, offsets, shapes) = match self.ragged_of[c] {
                Some(ragged) => {
                    let ragged = &mut self.ragged[ragged];
                    let (block, offsets, shapes) =
                        ragged.compact(kept, plan.dtype.size()).ok_or_else(gone)?;
                    blocks.push(block);
                    (Part::Ragged { block: blocks.len() - 1 }, Vec::new(), offsets, shapes)
                }
                None => {
                    let offset = layout.offset(c, rows);
                    if kept.len() != rows {
                        close_gaps(&mut slot, offset, plan.row_bytes(), kept);
                    }
                    (Part::Slot { offset }, plan.shape.clone().unwrap_or_default(), Vec::new(), Vec::new())
                }
            };
            let text = matches!(plan.spec, FieldSpec::Text | FieldSpec::Json);
            let (name, dtype) = (plan.name.clone(), plan.dtype);
            columns.push(Column { name, dtype, shape, part, offsets, shapes, text });
        }
        Ok((BatchMemory { slot, ragged: blocks }, columns))
    }
}

impl Row {
    /// Memory for a column of the row. A replacement writes over what the failed sample left.
    pub(super) fn piece(&self, column: usize) -> Option<Piece<'_>> {
        let builder = &*self.builder;
        match builder.ragged_of[column] {
            Some(ragged) => builder.ragged[ragged].pieces.as_ref()?.take(self.row),
            None => builder.slot.as_ref()?.take(column * builder.rows() + self.row),
        }
    }

    /// Scratch of a patch that is not delivered as it is stored, next to its row.
    pub(super) fn patch_scratch(&self, column: usize) -> Option<Piece<'_>> {
        let columns = &self.builder.spec.layout.columns;
        columns[column].patch.as_ref()?;
        let before = columns[..column].iter().filter(|column| column.patch.is_some()).count();
        self.builder.slot.as_ref()?.take((columns.len() + before) * self.builder.rows() + self.row)
    }

    /// The global position of the row.
    pub(super) fn position(&self) -> u64 {
        self.builder.at.position(self.row as u64)
    }

    /// What the random draws of the row are functions of.
    pub(super) fn draw(&self) -> Draw {
        self.builder.spec.draw(self.position())
    }

    /// What the order said of the row.
    pub(super) fn index(&self) -> u64 {
        self.builder.index_of(self.row)
    }

    /// Whether the row is padding.
    pub(super) fn is_padding(&self) -> bool {
        self.builder.is_padding(self.row)
    }

    /// Notes how much of a ragged column was used.
    pub(super) fn wrote(&self, column: usize, bytes: usize, shape: Vec<usize>) {
        if let Some(ragged) = self.builder.ragged_of[column].map(|r| &self.builder.ragged[r]) {
            ragged.written[self.row].store(bytes as u64, Ordering::Release);
            lock(&ragged.shapes)[self.row] = shape;
        }
    }

    /// Notes that all columns are written.
    pub(super) fn complete(&self, id: u64) {
        self.builder.ids[self.row].store(id, Ordering::Release);
        self.builder.state[self.row].store(WRITTEN, Ordering::Release);
    }

    /// Keeps what an observer noted.
    pub(super) fn note(&self, note: Note) {
        lock(&self.builder.notes).push((self.row, note));
    }

    /// Another sample takes the row: the next attempt.
    pub(super) fn replace(&mut self, index: u64) {
        self.builder.indices[self.row].store(index, Ordering::Release);
        self.attempt += 1;
    }

    /// The row stays empty under the policy.
    pub(super) fn skip(&self) {
        self.builder.state[self.row].store(FAILED, Ordering::Release);
    }

    /// Lists a failure under skip or replace.
    pub(super) fn list(&self, failure: Failure) {
        lock(&self.builder.failures).push(failure);
    }

    /// The batch raises this error, unless an earlier row raises another.
    pub(super) fn raise(&self, error: Error) {
        lock(&self.builder.errors).push((self.row, error));
    }

    /// The row is done with, whatever became of it: the builder, if it was the last.
    pub(super) fn settle(self) -> Option<BatchBuilder> {
        Arc::into_inner(self.builder)
    }
}

impl Ragged {
    /// `bytes` has what each row takes at most; nothing where the block is smaller than all of
    /// them.
    fn new(bytes: &[u64], block: Block) -> Option<Self> {
        let starts: Vec<usize> = bytes
            .iter()
            .scan(0, |at, &n| {
                *at += n as usize;
                Some(*at - n as usize)
            })
            .collect();
        let ranges = starts.iter().zip(bytes).map(|(&s, &n)| s..s + n as usize);
        Some(Self {
            pieces: Some(Pieces::new(block, ranges).ok()?),
            starts,
            written: bytes.iter().map(|_| AtomicU64::new(0)).collect(),
            shapes: Mutex::new(vec![Vec::new(); bytes.len()]),
        })
    }

    /// Moves the rows together: (memory, offsets in elements, shapes).
    fn compact(&mut self, kept: &[usize], size: usize) -> Option<(Block, Vec<i64>, Vec<Vec<usize>>)> {
        let mut block = self.pieces.take()?.into_inner();
        let mut shapes = std::mem::take(&mut *lock(&self.shapes));
        let mut offsets = vec![0i64];
        let mut at = 0;
        for &row in kept {
            let (start, n) = (self.starts[row], self.written[row].load(Ordering::Acquire) as usize);
            block.copy_within(start..start + n, at);
            at += n;
            offsets.push((at / size) as i64);
        }
        let shapes: Vec<_> = kept.iter().map(|&r| std::mem::take(&mut shapes[r])).collect();
        let shapes = if shapes.iter().all(Vec::is_empty) { Vec::new() } else { shapes };
        Some((block, offsets, shapes))
    }
}

/// The ranges of a slot: each row of each column, then the scratch of each row of a patch.
fn slot_ranges(layout: &Layout, rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let split = move |offset: usize, bytes: usize| {
        (0..rows).map(move |r| offset + r * bytes..offset + (r + 1) * bytes)
    };
    let columns = layout.columns.iter().enumerate();
    let patches = columns.clone().filter(|(_, column)| column.patch.is_some());
    let fixed = columns.flat_map(move |(c, column)| split(layout.offset(c, rows), column.row_bytes()));
    fixed.chain(
        patches
            .flat_map(move |(c, column)| split(layout.workspace_offset(c, rows), column.workspace_bytes())),
    )
}

/// Moves the kept rows of a column together.
fn close_gaps(slot: &mut [u8], offset: usize, row_bytes: usize, kept: &[usize]) {
    for (to, &from) in kept.iter().enumerate().filter(|(to, from)| to != *from) {
        let start = offset + from * row_bytes;
        slot.copy_within(start..start + row_bytes, offset + to * row_bytes);
    }
}

/// The columns of a layout that need blocks of their own, in order.
pub(super) fn ragged_columns(layout: &Layout) -> impl Iterator<Item = &ColumnPlan> {
    layout.columns.iter().filter(|c| c.shape.is_none())
}
