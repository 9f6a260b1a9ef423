//! The workers: one sample at a time, from its bytes in staging to its row of the batch.
//!
//! Flow: tasks from the ring -> parse -> decode, crop, resize, write -> the row is complete, skipped or replaced.
//! Memory: a worker's own scratch block, grown where the budget has room; else the shared one, one worker at a time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tidegate_core::memory::{Account, Block, Grant, Priority, Staged};

use super::feed::Retry;
use super::filling::Filling;
use super::stats::add;
use super::{Failure, OnError, Shared, lock};
use crate::batch::FieldSpec;
use crate::batch::geometry::Draw;
use crate::batch::row::{self, Target, Tools};
use crate::order::random::{Purpose, Stream};
use crate::source::{Located, Value};
use crate::{Error, Result};

/// How often another sample is tried in place of a failed one.
const ATTEMPTS: u8 = 16;

/// One sample to be made.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) filling: Arc<Filling>,
    pub(super) row: usize,
    pub(super) at: Located,
    pub(super) staging: Arc<Staged>,
    /// Where the bytes lie in staging, or why they could not be read.
    pub(super) range: Result<Range<usize>, String>,
    /// 0, or the how-manieth replacement.
    pub(super) attempt: u8,
}

/// What a worker keeps.
#[derive(Debug, Default)]
struct Worker {
    tools: Tools,
    scratch: Option<Block>,
    library: Option<Grant>,
}

/// A worker thread.
pub(super) fn run(shared: &Arc<Shared>, thread: usize) {
    let mut worker = Worker::default();
    loop {
        shared.watch.note(thread, "waiting for bytes", None);
        let began = Instant::now();
        let Some(task) = shared.ring.pop() else { break };
        add(&shared.stats.idle_ns, began);
        shared.watch.note(thread, "decoding", Some(&task.at));
        let began = Instant::now();
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.make(shared, &task)));
        match made {
            Ok(Ok(())) => task.filling.complete(task.row, task.at.id),
            Ok(Err(error)) => failed(shared, &task, error),
            Err(panic) => {
                worker = Worker::default();
                let thread = format!("tg-work-{thread}");
                failed(shared, &task, Error::Panic { thread, what: Error::words(&*panic) });
            }
        }
        shared.stats.samples.fetch_add(1, Ordering::Relaxed);
        drop(task);
        add(&shared.stats.work_ns, began);
    }
    shared.watch.note(thread, "done", None);
}

fn failed(shared: &Shared, task: &Task, error: Error) {
    let place = shared.source.place(&task.at);
    if shared.config.on_error == OnError::Raise {
        return task.filling.raise(task.row, error);
    }
    let position = task.filling.start + task.row as u64;
    let what = match error {
        Error::Sample { field, what, .. } if !field.is_empty() => format!("field {field:?}: {what}"),
        Error::Sample { what, .. } => what,
        other => other.to_string(),
    };
    task.filling.list(Failure { position, place: place.clone(), what: what.clone() });
    if shared.config.on_error == OnError::Skip || shared.stopped() {
        return task.filling.skip(task.row);
    }
    if task.attempt >= ATTEMPTS {
        let what = format!("{what}; and {ATTEMPTS} other samples in its place failed too");
        return task
            .filling
            .raise(task.row, Error::Sample { place: Box::new(place), field: String::new(), what });
    }
    let attempt = task.attempt + 1;
    let config = &shared.config;
    let mut stream = Stream::new(config.seed, config.epoch, position, attempt, Purpose::Replace);
    let id = stream.below(shared.source.len());
    lock(&shared.retries).push(Retry { filling: Arc::clone(&task.filling), row: task.row, id, attempt });
}

impl Worker {
    fn make(&mut self, shared: &Shared, task: &Task) -> Result<()> {
        let sample = |field: &str, what: String| Error::Sample {
            place: Box::new(shared.source.place(&task.at)),
            field: field.to_owned(),
            what,
        };
        let range = task.range.clone().map_err(|what| sample("", what))?;
        let bytes = &task.staging[range];
        let values = shared.source.parse(&task.at, bytes).map_err(|e| sample("", e.to_string()))?;
        let config = &shared.config;
        let position = (task.filling.start + task.row as u64) % config.split.len.max(1);
        let draw = Draw { seed: config.seed, epoch: config.epoch, position };
        for (c, column) in shared.layout.columns.iter().enumerate() {
            let value = values.get(column.field).copied().unwrap_or(Value::Missing);
            let field = |what: Error| match what {
                Error::Decode(what) => sample(&column.name, what),
                other => other,
            };
            let (scratch, library) = match (&column.spec, value) {
                (FieldSpec::Image(_) | FieldSpec::Mask(_), Value::Bytes(bytes)) => {
                    let header = row::picture_header(&column.kind, bytes).map_err(field)?;
                    (row::scratch_bytes(column, &header), row::library_bytes(column, &header))
                }
                _ => (0, 0),
            };
            let Some(mut piece) = task.filling.piece(c, task.row) else {
                return Err(Error::Config("a row was given out twice: please report this".into()));
            };
            let mut target = Target { bytes: &mut piece, written: 0, shape: Vec::new() };
            let (tools, entry) = (&mut self.tools, &task.at.entry);
            if scratch == 0 {
                tools
                    .fill(&shared.layout, column, value, entry, draw, &mut [], &mut target)
                    .map_err(field)?;
            } else if grow(&mut self.scratch, &mut self.library, shared, scratch, library) {
                let scratch = self.scratch.as_deref_mut().unwrap_or_default();
                tools
                    .fill(&shared.layout, column, value, entry, draw, scratch, &mut target)
                    .map_err(field)?;
            } else {
                let began = Instant::now();
                let mut common = lock(&shared.reserved.scratch);
                add(&shared.stats.scratch_wait_ns, began);
                let room = common.as_deref_mut().unwrap_or_default();
                if (room.len() as u64) < scratch.saturating_add(library) {
                    let text = format!(
                        "decoding it takes {} MiB, more than the {} MiB that the budget of {} MiB leaves for one \
                         picture: raise memory",
                        tidegate_core::memory::size::mib(scratch.saturating_add(library)),
                        tidegate_core::memory::size::mib(room.len() as u64),
                        tidegate_core::memory::size::mib(shared.reserved.budget.cap_bytes())
                    );
                    return Err(sample(&column.name, text));
                }
                tools.fill(&shared.layout, column, value, entry, draw, room, &mut target).map_err(field)?;
            }
            let (written, shape) = (target.written, target.shape);
            drop(piece);
            task.filling.written(c, task.row, written, shape);
        }
        Ok(())
    }
}

/// Makes the worker's own scratch large enough, if the budget has room now.
fn grow(
    scratch: &mut Option<Block>,
    library: &mut Option<Grant>,
    shared: &Shared,
    bytes: u64,
    outside: u64,
) -> bool {
    let budget = &shared.reserved.budget;
    if library.as_ref().map_or(0, Grant::bytes) < outside {
        *library = None;
        *library = budget.try_acquire(Account::Library, outside, Priority::Prefetch).ok();
    }
    if scratch.as_deref().map_or(0, <[u8]>::len) < bytes as usize {
        *scratch = None;
        // An eighth more, so that pictures of about one size do not make it grow again and again.
        *scratch =
            budget.try_block(Account::Scratch, bytes.saturating_add(bytes / 8), Priority::Prefetch).ok();
    }
    library.is_some() && scratch.is_some()
}
