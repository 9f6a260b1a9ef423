//! Batches, and how one sample's fields become a row of a batch.
//!
//! Flow: [`spec`] (what the user wants) + schema -> [`layout`] (columns and sizes) -> [`row`]
//! (decode, crop, resize, write) -> [`Batch`].
//! Memory: rows are written straight into the batch's slot (account `batch`). Images pass through
//! the worker's scratch (account `scratch`).
//! Not here: which worker fills which batch, and when (`pipeline`).

pub mod color;
pub mod cost;
pub mod geometry;
pub mod layout;
pub mod patch;
pub mod resize;
pub mod row;
pub mod spec;

use tidegate_core::memory::{Block, SlabItem};

pub use self::layout::{ColumnPlan, Layout, names_field};
pub use self::spec::{Crop, FieldSpec, ImageSpec, Jitter, MaskSpec, PixelLayout, Pixels};
use tidegate_decode::npy::DType;

/// Columns begin at multiples of this number of bytes.
pub const COLUMN_ALIGN: usize = 64;

/// The memory that holds a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The batch's slot.
    Slot {
        /// Offset of the first row in bytes.
        offset: usize,
    },
    /// A block of its own.
    Ragged {
        /// Its index in [`BatchMemory::ragged`].
        block: usize,
    },
}

/// One field of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape of a row; empty for scalars and for ragged columns.
    pub shape: Vec<usize>,
    /// The memory of the values.
    pub part: Part,
    /// Ragged columns: row i is the values `offsets[i]..offsets[i + 1]`. Else empty.
    pub offsets: Vec<i64>,
    /// Ragged images and arrays: the shape of each row. Else empty.
    pub shapes: Vec<Vec<usize>>,
    /// Whether the bytes of a ragged column are UTF-8 text.
    pub text: bool,
}

/// The memory of a batch. Dropping it returns the slot to the ring.
#[derive(Debug)]
pub struct BatchMemory {
    /// The values of ragged columns. They are freed before the slot, because the next user of the
    /// slot needs that memory.
    pub ragged: Vec<Block>,
    /// The slot, with all fixed columns.
    pub slot: SlabItem,
}

/// A batch. It is writable and belongs to the consumer alone.
#[derive(Debug)]
pub struct Batch {
    /// The memory of all columns.
    pub memory: BatchMemory,
    /// The fields.
    pub columns: Vec<Column>,
    /// The number of rows.
    pub rows: usize,
    /// The sample id of each row. In a subset it is the id in the whole source.
    pub ids: Vec<u64>,
    /// The index of each row in the loader's source, which samplers and feedback use. In a subset
    /// it differs from the id.
    pub indices: Vec<u64>,
    /// The weight of each row in a mean, so that the mean is unbiased: 1, unless the order draws
    /// by importance; 0 for padding.
    pub weights: Vec<f32>,
    /// The global position of each row in the epoch.
    pub positions: Vec<u64>,
    /// False for rows that only pad the batch.
    pub mask: Vec<bool>,
    /// Its epoch.
    pub epoch: u64,
    /// Its number within the epoch, from 0; a resumed epoch goes on counting.
    pub number: u64,
    /// Whether it is the last of its epoch.
    pub last: bool,
}

impl Batch {
    /// The bytes of a column: `rows` rows, or all values of a ragged one.
    #[must_use]
    pub fn bytes(&self, column: &Column) -> &[u8] {
        let range = self.range(column);
        match column.part {
            Part::Slot { .. } => &self.memory.slot[range],
            Part::Ragged { block } => &self.memory.ragged[block][range],
        }
    }

    /// The writable bytes of a column.
    #[must_use]
    pub fn bytes_mut(&mut self, column: &Column) -> &mut [u8] {
        let range = self.range(column);
        match column.part {
            Part::Slot { .. } => &mut self.memory.slot[range],
            Part::Ragged { block } => &mut self.memory.ragged[block][range],
        }
    }

    fn range(&self, column: &Column) -> std::ops::Range<usize> {
        match column.part {
            Part::Slot { offset } => {
                let row = column.shape.iter().product::<usize>() * column.dtype.size();
                offset..offset + row * self.rows
            }
            Part::Ragged { .. } => {
                0..column.offsets.last().map_or(0, |&n| usize::try_from(n).unwrap_or(0)) * column.dtype.size()
            }
        }
    }

    /// The column of a name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}
