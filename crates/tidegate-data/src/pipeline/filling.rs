//! A batch while its rows are being written.
//!
//! Flow: slot + layout + ids -> rows taken by workers -> when the last of them lets go, the batch is delivered.
//! Memory: the slot and the blocks of ragged columns (account `batch`), passed on to the consumer.
//!
//! The last reference is what completes a batch: whatever happens to a task (done, failed, panicked, dropped at the end
//! of the epoch), letting go of it is enough, so a batch cannot be forgotten.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tidegate_core::sync::lock;

use tidegate_core::memory::{Block, Piece, Pieces, SlabItem};

use super::mapping::apply;
use super::observing::Note;
use super::{Beside, Delivered, Done, Failure, OnError, Shared};
use crate::batch::geometry::Draw;
use crate::batch::layout::Layout;
use crate::batch::{Batch, BatchMemory, Column, FieldSpec, Part};
use crate::{Error, Result, panic_message};
use tidegate_order::split::Rows;

/// Row states.
const EMPTY: u64 = 0;
const WRITTEN: u64 = 1;
const FAILED: u64 = 2;

/// A ragged column: its rows' room and how much of it was used.
#[derive(Debug)]
struct Ragged {
    pieces: Option<Pieces<Block>>,
    starts: Vec<usize>,
    written: Vec<AtomicU64>,
    shapes: Mutex<Vec<Vec<usize>>>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Filling {
    shared: Arc<Shared>,
    /// The batch's number within the epoch.
    pub(super) index: u64,
    /// The global positions of the rows.
    pub(super) at: Rows,
    rows: usize,
    real: usize,
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

/// The rows of a batch: how many, and which are no padding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) index: u64,
    pub(super) at: Rows,
    pub(super) rows: usize,
    pub(super) real: usize,
}

impl Filling {
    /// `room` has, for each ragged column, the bytes that each row needs at most; `blocks` their memory.
    pub(super) fn new(
        shared: &Arc<Shared>,
        shape: Shape,
        ids: &[u64],
        indices: &[u64],
        slot: SlabItem,
        room: &[Vec<u64>],
        blocks: Vec<Block>,
    ) -> Result<Arc<Self>> {
        let layout = &shared.layout;
        let internal = || Error::Config("a batch larger than its slot: please report this".into());
        let ranges = layout.columns.iter().enumerate().flat_map(|(c, column)| {
            let (offset, bytes) = (layout.offset(c, shape.rows), column.row_bytes());
            (0..shape.rows).map(move |r| offset + r * bytes..offset + (r + 1) * bytes)
        });
        let rooms = layout.columns.iter().enumerate().filter(|(_, column)| column.patch.is_some()).flat_map(
            |(c, column)| {
                let (offset, bytes) = (layout.room_offset(c, shape.rows), column.room_bytes());
                (0..shape.rows).map(move |r| offset + r * bytes..offset + (r + 1) * bytes)
            },
        );
        let slot = Pieces::new(slot, ranges.chain(rooms)).map_err(|_| internal())?;
        let mut ragged = Vec::new();
        for (room, block) in room.iter().zip(blocks) {
            let starts: Vec<usize> = room
                .iter()
                .scan(0, |at, &n| {
                    *at += n as usize;
                    Some(*at - n as usize)
                })
                .collect();
            let ranges = starts.iter().zip(room).map(|(&s, &n)| s..s + n as usize);
            ragged.push(Ragged {
                pieces: Some(Pieces::new(block, ranges).map_err(|_| internal())?),
                starts,
                written: room.iter().map(|_| AtomicU64::new(0)).collect(),
                shapes: Mutex::new(vec![Vec::new(); shape.rows]),
            });
        }
        let mut next = 0;
        let ragged_of = layout
            .columns
            .iter()
            .map(|c| {
                c.shape.is_none().then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        Ok(Arc::new(Self {
            shared: Arc::clone(shared),
            index: shape.index,
            at: shape.at,
            rows: shape.rows,
            real: shape.real,
            ids: ids.iter().map(|&id| AtomicU64::new(id)).collect(),
            indices: indices.iter().map(|&index| AtomicU64::new(index)).collect(),
            slot: Some(slot),
            ragged,
            ragged_of,
            state: (0..shape.rows).map(|_| AtomicU64::new(EMPTY)).collect(),
            errors: Mutex::default(),
            failures: Mutex::default(),
            notes: Mutex::default(),
        }))
    }

    /// The memory of a row's column. A replaced sample writes over what the failed one left.
    pub(super) fn piece(&self, column: usize, row: usize) -> Option<Piece<'_>> {
        match self.ragged_of[column] {
            Some(ragged) => self.ragged[ragged].pieces.as_ref()?.take(row),
            None => self.slot.as_ref()?.take(column * self.rows + row),
        }
    }

    /// The room beside a row of a patch that is not delivered as it is stored.
    pub(super) fn room(&self, column: usize, row: usize) -> Option<Piece<'_>> {
        let columns = &self.shared.layout.columns;
        columns[column].patch.as_ref()?;
        let before = columns[..column].iter().filter(|column| column.patch.is_some()).count();
        self.slot.as_ref()?.take((columns.len() + before) * self.rows + row)
    }

    /// What the random draws of a row are functions of.
    pub(super) fn draw(&self, row: usize) -> Draw {
        let config = &self.shared.config;
        let position = self.at.position(row as u64) % config.split.len.max(1);
        Draw { seed: config.seed, epoch: config.epoch, position }
    }

    /// Notes how much of a ragged row was used.
    pub(super) fn written(&self, column: usize, row: usize, bytes: usize, shape: Vec<usize>) {
        if let Some(ragged) = self.ragged_of[column].map(|r| &self.ragged[r]) {
            ragged.written[row].store(bytes as u64, Ordering::Release);
            lock(&ragged.shapes)[row] = shape;
        }
    }

    /// What the order said of a row.
    pub(super) fn index_of(&self, row: usize) -> u64 {
        self.indices[row].load(Ordering::Acquire)
    }

    /// The row is complete.
    pub(super) fn complete(&self, row: usize, id: u64) {
        self.ids[row].store(id, Ordering::Release);
        self.state[row].store(WRITTEN, Ordering::Release);
    }

    /// Keeps what was noted of a row.
    pub(super) fn note(&self, row: usize, note: Note) {
        lock(&self.notes).push((row, note));
    }

    /// Another sample takes the row.
    pub(super) fn replaced(&self, row: usize, index: u64) {
        self.indices[row].store(index, Ordering::Release);
    }

    /// The row stays empty under the policy; the failure is listed.
    pub(super) fn skip(&self, row: usize) {
        self.state[row].store(FAILED, Ordering::Release);
    }

    /// Lists a failure under skip or replace.
    pub(super) fn list(&self, failure: Failure) {
        lock(&self.failures).push(failure);
    }

    /// The batch raises this error, unless an earlier row raises another.
    pub(super) fn raise(&self, row: usize, error: Error) {
        lock(&self.errors).push((row, error));
    }

    /// Whether a row is padding.
    pub(super) fn padding(&self, row: usize) -> bool {
        row >= self.real
    }

    fn finish(&mut self) -> Result<Batch> {
        let mut errors = std::mem::take(&mut *lock(&self.errors));
        errors.sort_by_key(|(row, _)| *row);
        if let Some((_, error)) = errors.into_iter().next() {
            return Err(error);
        }
        let kept: Vec<usize> =
            (0..self.rows).filter(|&r| self.state[r].load(Ordering::Acquire) == WRITTEN).collect();
        let whole = kept.len() == self.rows;
        if !whole && self.shared.config.on_error == OnError::Raise {
            return Err(Error::Config("the epoch ended before this batch was complete".into()));
        }
        let gone = || Error::Config("a batch was finished twice: please report this".into());
        let mut slot = self.slot.take().ok_or_else(gone)?.into_inner();
        let layout = Arc::clone(&self.shared.layout);
        let mut columns = Vec::with_capacity(layout.columns.len());
        let mut blocks = Vec::new();
        for (c, plan) in layout.columns.iter().enumerate() {
            let text = matches!(plan.spec, FieldSpec::Text | FieldSpec::Json);
            let column = |part, shape, offsets, shapes| Column {
                name: plan.name.clone(),
                dtype: plan.dtype,
                shape,
                part,
                offsets,
                shapes,
                text,
            };
            if let Some(ragged) = self.ragged_of[c].map(|r| &mut self.ragged[r]) {
                let (block, offsets, shapes) = ragged.compact(&kept, plan.dtype.size()).ok_or_else(gone)?;
                columns.push(column(Part::Ragged { block: blocks.len() }, Vec::new(), offsets, shapes));
                blocks.push(block);
            } else {
                let offset = layout.offset(c, self.rows);
                if !whole {
                    close_gaps(&mut slot, offset, plan.row_bytes(), &kept);
                }
                let shape = plan.shape.clone().unwrap_or_default();
                columns.push(column(Part::Slot { offset }, shape, Vec::new(), Vec::new()));
            }
        }
        let indices: Vec<u64> = kept.iter().map(|&r| self.index_of(r)).collect();
        let weight = |(&r, &index)| if self.padding(r) { 0.0 } else { self.shared.epoch.weight(index) };
        Ok(Batch {
            memory: BatchMemory { slot, ragged: blocks },
            columns,
            rows: kept.len(),
            weights: kept.iter().zip(&indices).map(weight).collect(),
            ids: kept.iter().map(|&r| self.ids[r].load(Ordering::Acquire)).collect(),
            indices,
            positions: kept.iter().map(|&r| self.at.position(r as u64)).collect(),
            mask: kept.iter().map(|&r| !self.padding(r)).collect(),
            epoch: self.shared.config.epoch,
            index: self.index,
        })
    }
}

impl Ragged {
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

/// Moves the kept rows of a column together.
fn close_gaps(slot: &mut [u8], offset: usize, row_bytes: usize, kept: &[usize]) {
    for (to, &from) in kept.iter().enumerate().filter(|(to, from)| to != *from) {
        let start = offset + from * row_bytes;
        slot.copy_within(start..start + row_bytes, offset + to * row_bytes);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if self.shared.stopped() {
            return self.shared.abandon();
        }
        let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish()));
        let outcome = finished.unwrap_or_else(|panic| {
            Err(Error::Panic { thread: "batch".into(), what: panic_message(&*panic) })
        });
        let mut failures = std::mem::take(&mut *lock(&self.failures));
        failures.sort_by_key(|f| f.position);
        let mut notes = std::mem::take(&mut *lock(&self.notes));
        notes.sort_by_key(|(row, _)| *row);
        let beside = Beside { failures, notes: notes.into_iter().map(|(_, note)| note).collect() };
        // The slot, if it is still here, goes back before anyone looks for it.
        self.ragged.clear();
        drop(self.slot.take());
        let outcome = match (outcome, &self.shared.map) {
            (batch, Some(_)) if self.shared.config.map_threads > 0 => {
                return self.shared.finished.put(self.index, batch, beside);
            }
            (Ok(batch), Some(map)) => apply(&**map, batch),
            (outcome, _) => outcome.map(Delivered::Batch),
        };
        self.shared.deliver(self.index, Done { outcome, beside });
    }
}

/// Where the layout needs ragged blocks: the columns, in order.
pub(super) fn ragged_columns(layout: &Layout) -> impl Iterator<Item = &crate::batch::ColumnPlan> {
    layout.columns.iter().filter(|c| c.shape.is_none())
}
