//! From the bytes of a sample to its row of the batch.
//!
//! Flow: bytes -> fields -> decoded, cropped, resized, written to each column of the row ->
//! observer, cache of rows.
//! Memory: the worker's scratch, see `scratch`.

use std::sync::Mutex;

use tidegate_core::memory::Piece;
use tidegate_core::memory::size::mib;
use tidegate_core::sync::lock;
use tidegate_decode::Value;
use tidegate_source::{Located, SourceExt};

use super::batch_builder::Row;
use super::handles::Handles;
use super::observer::{DecodedColumn, Sample};
use super::plan::LEAVE_OUT;
use super::scratch::WorkerScratch;
use crate::batch::ColumnPlan;
use crate::batch::cost::DecodeCost;
use crate::batch::row::{RowBuffer, RowInput};
use crate::cache::Tier;
use crate::{Error, Result};

/// A column that was written: its memory, how much of it was used, and the shape of a ragged one.
type Written<'a> = (Piece<'a>, usize, Vec<usize>);

/// Writes the row of a sample from its bytes; `checkpoints` is the record of its largest JPEG.
pub(super) fn decode(
    h: &Handles,
    (row, at): (&Row, &Located),
    bytes: &[u8],
    checkpoints: Option<&[u8]>,
    scratch: &Mutex<WorkerScratch>,
) -> Result<()> {
    let spec = &*h.spec;
    let scratch = &mut *lock(scratch);
    let values = spec.source.parse(at, bytes).map_err(|e| spec.source.sample_error(at, "", e))?;
    // Held until all are there, if the row is to be kept, or an observer sees it.
    let (kept, observer) = (h.cache.rows(), spec.config.observer.as_deref());
    let mut made: Vec<Written<'_>> = Vec::new();
    for (c, column) in spec.layout.columns.iter().enumerate() {
        let value = column.value(&values);
        if value == Value::Missing && column.default.is_none() && spec.config.partial {
            made.extend(row.piece(c).map(|piece| (piece, 0, Vec::new())));
            continue;
        }
        let written = decode_column(h, (row, at), (c, column), &values, checkpoints, scratch);
        let (piece, written, shape) = written.map_err(|error| match error {
            Error::Decode(what) => spec.source.sample_error(at, &column.name, what).into(),
            other => other,
        })?;
        if kept.is_some() || observer.is_some() {
            let len = if column.shape.is_some() { piece.len() } else { written };
            made.push((piece, len, shape.clone()));
        }
        row.wrote(c, written, shape);
    }
    if let Some(observer) = observer.filter(|_| !row.is_padding()) {
        let made: Vec<DecodedColumn<'_>> =
            made.iter().map(|(piece, len, shape)| DecodedColumn { bytes: &piece[..*len], shape }).collect();
        let sample = Sample { id: at.id, index: row.index(), stored: bytes, values: &values, columns: &made };
        row.note(observer.see(&sample));
    }
    if let Some(rows) = kept {
        let parts: Vec<&[u8]> = made.iter().map(|(piece, ..)| &**piece).collect();
        // The cache may be full, or not want this sample: then it is decoded again in the next
        // epoch.
        rows.put(at.id, &parts);
    }
    Ok(())
}

/// Writes one column of a row.
fn decode_column<'a>(
    h: &Handles,
    (row, at): (&'a Row, &Located),
    (c, column): (usize, &ColumnPlan),
    values: &[Value<'_>],
    checkpoints: Option<&[u8]>,
    scratch: &mut WorkerScratch,
) -> Result<Written<'a>> {
    let (layout, draw) = (&h.spec.layout, row.draw());
    let (value, needs) = (column.value(values), DecodeCost::new(layout, column, values)?);
    let mut piece = row.piece(c).ok_or_else(given_twice)?;
    let mut target = RowBuffer { bytes: &mut piece, written: 0, shape: Vec::new(), filled: false };
    fits(h, at, &needs, target.bytes.len())?;
    scratch.with(&h.reserved, &h.metrics, &needs, |decoder, scratch| {
        decoder.fill(
            &RowInput { layout, column, value, cost: &needs, checkpoints, draw },
            scratch,
            &mut target,
        )
    })?;
    let RowBuffer { written, shape, filled, .. } = target;
    if filled && h.spec.source.changed(at).is_some() {
        // The rest may be in the file by now. Where the failure is handled, the change is said.
        return Err(Error::decode("the image is incomplete"));
    }
    h.metrics.filled.add(u64::from(filled));
    Ok((piece, written, shape))
}

/// Writes a row that was decoded in an earlier epoch.
pub(super) fn copy(h: &Handles, row: &Row, mut decoded: &[u8]) -> Result<()> {
    for (c, column) in h.spec.layout.columns.iter().enumerate() {
        let (bytes, rest) = decoded.split_at_checked(column.row_bytes()).ok_or_else(given_twice)?;
        row.piece(c).ok_or_else(given_twice)?.copy_from_slice(bytes);
        decoded = rest;
    }
    Ok(())
}

/// Two hands on one row: a defect of ours.
pub(super) fn given_twice() -> Error {
    Error::Internal("a row was given out twice".into())
}

/// Refuses an image that takes more than the plan has for one, or than its batch has room for.
///
/// The plan has room for the largest image of the index, so one that takes more was changed: that
/// is a failure of the sample. Only within `max_pixels` it is not known beforehand.
fn fits(h: &Handles, at: &Located, needs: &DecodeCost, row_bytes: usize) -> Result<()> {
    let plan = &h.reserved.plan;
    let (asked, most) = (needs.total(), plan.scratch_bytes);
    let whole = needs.whole_bytes > plan.image_bytes.min(row_bytes as u64);
    if !whole && asked <= most {
        return Ok(());
    }
    if whole && needs.is_long() {
        return Err(Error::decode(
            "an image of more than 65,535 pixels a side needs a size, as in tg.Image(224)",
        ));
    }
    if whole || !plan.bounded || h.spec.source.changed(at).is_some() {
        return Err(Error::decode(
            "the image is larger than when it was indexed: the file changed; run `tidegate index --force`",
        ));
    }
    Err(Error::TooLarge {
        what: format!(
            "{}: decoding it takes {} MiB, more than the {} MiB that the budget of {} MiB leaves for one image",
            h.spec.source.place(at),
            mib(asked),
            mib(most),
            mib(h.reserved.budget.cap_bytes())
        ),
        fix: LEAVE_OUT.into(),
    })
}
