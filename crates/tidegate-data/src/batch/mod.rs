//! From one sample's fields to its row of a batch.
//!
//! Flow: [`spec`] (what is wanted) + schema -> [`layout`] (columns and sizes) -> [`row`] (decode, crop, resize, write)
//! -> [`Batch`].
//! Memory: rows are written straight into the batch's slot (account `batch`); pictures pass through the worker's
//! scratch (account `scratch`).
//! Not here: who fills which batch when (`pipeline`).

pub mod color;
pub mod geometry;
pub mod layout;
pub mod patch;
pub mod resize;
pub mod row;

pub mod spec;

use tidegate_core::memory::{Block, SlabItem};

pub use self::layout::{ColumnPlan, Layout};
pub use self::spec::{Crop, FieldSpec, ImageSpec, Jitter, MaskSpec, PixelLayout, Pixels};
use tidegate_decode::npy::DType;

/// Where a column's values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// In the slot, from this byte on.
    Slot {
        /// Offset of the first row.
        offset: usize,
    },
    /// In a block of its own.
    Ragged {
        /// Which one.
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
    /// Where the values lie.
    pub part: Part,
    /// Ragged: row i is values `offsets[i]..offsets[i + 1]`; else empty.
    pub offsets: Vec<i64>,
    /// Ragged images and arrays: the shape of each row; else empty.
    pub shapes: Vec<Vec<usize>>,
    /// The bytes of a ragged column are UTF-8 text.
    pub text: bool,
}

/// The memory of a batch; dropping it returns the slot to the ring.
#[derive(Debug)]
pub struct BatchMemory {
    /// The values of ragged columns: given back before the slot, for whoever gets the slot will want them.
    pub ragged: Vec<Block>,
    /// The slot with all fixed columns.
    pub slot: SlabItem,
}

/// A batch: writable, and the consumer's alone.
#[derive(Debug)]
pub struct Batch {
    /// The memory of all columns.
    pub memory: BatchMemory,
    /// The fields.
    pub columns: Vec<Column>,
    /// Rows.
    pub rows: usize,
    /// The id of each row; of a subset that of the whole source.
    pub ids: Vec<u64>,
    /// The index of each row in the source of the loader, which is what samplers and feedback speak of; of a subset not its id.
    pub indices: Vec<u64>,
    /// What each row counts in a mean, so that it is that of all samples evenly: 1, but where an order draws by importance; 0 for padding.
    pub weights: Vec<f32>,
    /// The global position of each row.
    pub positions: Vec<u64>,
    /// False for rows that only pad the batch.
    pub mask: Vec<bool>,
    /// Its epoch.
    pub epoch: u64,
    /// Its number within the epoch.
    pub index: u64,
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

    /// The same, writable.
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

    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}
