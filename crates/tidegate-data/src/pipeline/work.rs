//! The workers: one sample at a time, from its bytes in staging to its row of the batch.
//!
//! Flow: tasks from the ring -> parse -> decode, crop, resize, write -> the row is complete, skipped or replaced.
//! Memory: a worker's own scratch block, grown where the budget has room; else the shared one, one worker at a time.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tidegate_core::sync::lock;

use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Block, Grant, Priority};

use super::chunks::{Fetched, LentRow};
use super::feed::Retry;
use super::filling::Filling;
use super::observing::{Made, Sample};
use super::plan::sample_room;
use super::stats::add;
use super::{Failure, OnError, Room, Shared, chunks};
use crate::batch::row::{Needs, Target, Tools};
use crate::cache::Tier;
use crate::{Error, Result, panic_message};
use tidegate_decode::Value;
use tidegate_order::random::{Purpose, Stream};
use tidegate_source::{Error as SourceError, Located, SourceExt};

/// How often another sample is tried in place of a failed one.
const ATTEMPTS: u8 = 16;

/// One sample to be made.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) filling: Arc<Filling>,
    pub(super) row: usize,
    pub(super) at: Located,
    pub(super) room: Arc<Room>,
    /// Where the bytes lie in the room, or why they could not be read.
    pub(super) range: Result<Range<usize>, String>,
    /// Where the record of its checkpoints lies in the room, if there is one.
    pub(super) record: Option<Range<usize>>,
    /// 0, or the how-manieth replacement.
    pub(super) attempt: u8,
}

/// What a worker does next.
#[derive(Debug)]
pub(super) enum Job {
    /// A sample that is made from its own bytes.
    Sample(Task),
    /// A chunk that rows wait for, as it is stored.
    Chunk(Fetched),
    /// One that is to be read first.
    Unread(u64),
    /// What of a row needs no decoding.
    Lent(LentRow),
}

/// What a worker has for itself: its tools, and where the budget has room, scratch and what libraries take. Between two tasks
/// it is given back when a batch lacks memory.
#[derive(Debug, Default)]
pub(super) struct Own {
    tools: Tools,
    scratch: Option<Block>,
    /// What the tools keep of the pictures they have made ([`Needs::rows_bytes`]), and what a decoder takes besides.
    library: Option<Grant>,
    kept_bytes: u64,
}

/// Worker number `number`, which is thread number `thread`.
pub(super) fn run(shared: &Arc<Shared>, number: usize, thread: usize) {
    loop {
        shared.watch.note(thread, "waiting for bytes", None);
        let began = Instant::now();
        let Some(job) = shared.ring.pop() else { break };
        add(&shared.stats.idle_ns, began);
        let began = Instant::now();
        let own = &shared.own[number];
        let task = match job {
            Job::Sample(task) => task,
            job => {
                shared.watch.note(thread, "at a chunk", None);
                let done = || run_chunk(shared, job, own);
                if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(done)) {
                    let thread = format!("tg-work-{thread}");
                    shared.fail(Error::Panic { thread, what: panic_message(&*panic) });
                }
                add(&shared.stats.work_ns, began);
                continue;
            }
        };
        shared.watch.note(thread, "decoding", Some(&task.at));
        let made =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(shared, &task, &mut lock(own))));
        match made {
            Ok(Ok(())) => task.filling.complete(task.row, task.at.id),
            Ok(Err(error)) => fail(shared, &task, error),
            Err(panic) => {
                own.clear_poison();
                *lock(own) = Own::default();
                let thread = format!("tg-work-{thread}");
                fail(shared, &task, Error::Panic { thread, what: panic_message(&*panic) });
            }
        }
        give_back_what_is_lacked(shared, own);
        shared.stats.samples.fetch_add(1, Ordering::Relaxed);
        drop(task);
        add(&shared.stats.work_ns, began);
        shared.samples.made(&shared.stats, shared.reserved.plan.readers, shared.config.workers);
    }
    shared.watch.note(thread, "done", None);
}

/// Decodes a chunk for those who wait, or copies those that a row is lent.
fn run_chunk(shared: &Shared, job: Job, own: &Mutex<Own>) {
    match job {
        Job::Chunk(stored) => stored.run(shared, &mut lock(own)),
        Job::Unread(chunk) => {
            // There is as much staging as there are workers, or one waits for another.
            let bytes = sample_room(&*shared.source, &shared.config.stores);
            let room = shared.reserved.staging.take(bytes, &shared.stop);
            if let Some(room) = room {
                chunks::fetch(shared, chunk, room).run(shared, &mut lock(own));
            }
        }
        Job::Lent(row) => row.run(shared),
        Job::Sample(_) => {}
    }
    give_back_what_is_lacked(shared, own);
}

/// Before the batch is delivered: when nothing is in flight, nobody has anything for himself.
fn give_back_what_is_lacked(shared: &Shared, own: &Mutex<Own>) {
    if shared.lacks_memory() {
        *lock(own) = Own::default();
    }
}

fn fail(shared: &Shared, task: &Task, error: Error) {
    failed(shared, &task.filling, task.row, &task.at, task.attempt, error);
}

/// What becomes of a row whose sample failed.
pub(super) fn failed(
    shared: &Shared,
    filling: &Arc<Filling>,
    row: usize,
    at: &Located,
    attempt: u8,
    error: Error,
) {
    let place = shared.source.place(at);
    if shared.config.on_error == OnError::Raise {
        return filling.raise(row, error);
    }
    let position = filling.at.position(row as u64);
    let what = match error {
        Error::Source(SourceError::Sample { field, what, .. }) if !field.is_empty() => {
            format!("field {field:?}: {what}")
        }
        Error::Source(SourceError::Sample { what, .. }) => what,
        other => other.to_string(),
    };
    filling.list(Failure { position, place: place.clone(), what: what.clone() });
    if shared.config.on_error == OnError::Skip || shared.stopped() {
        return filling.skip(row);
    }
    if attempt >= ATTEMPTS {
        let what = format!("{what}; and {ATTEMPTS} other samples in its place failed too");
        return filling
            .raise(row, SourceError::Sample { place: Box::new(place), field: String::new(), what }.into());
    }
    let attempt = attempt + 1;
    let config = &shared.config;
    let mut stream = Stream::new(config.seed, config.epoch, position, attempt, Purpose::Replace);
    let id = match shared.replacement(&mut stream, position) {
        Ok(id) => id,
        Err(error) => return filling.raise(row, error),
    };
    lock(&shared.retries).push(Retry { filling: Arc::clone(filling), row, id, attempt });
    shared.stop.wake_all();
}

/// Fills the row of a task.
fn make(shared: &Shared, task: &Task, own: &mut Own) -> Result<()> {
    let sample = |field: &str, what: String| Error::from(shared.source.blame(&task.at, field, what));
    let range = task.range.clone().map_err(|what| sample("", what))?;
    let bytes = &task.room[range];
    if let Room::Made(_) = &*task.room {
        return copy(shared, task, bytes);
    }
    let values = shared.source.parse(&task.at, bytes).map_err(|e| sample("", e.to_string()))?;
    let checkpoints = task.record.clone().map(|range| &task.room[range]);
    let config = &shared.config;
    let draw = task.filling.draw(task.row);
    // Held until all are there, if the row is to be kept, or somebody looks on.
    let (kept, observer, mut made) = (shared.samples.rows(), config.observer.as_deref(), Vec::new());
    for (c, column) in shared.layout.columns.iter().enumerate() {
        let value = values.get(column.field).copied().unwrap_or(Value::Missing);
        let field = |what: Error| match what {
            Error::Decode(what) => sample(&column.name, what.to_string()),
            other => other,
        };
        if value == Value::Missing && config.partial {
            made.extend(task.filling.piece(c, task.row).map(|piece| (piece, 0, Vec::new())));
            continue;
        }
        let needs = Needs::of(column, value).map_err(field)?;
        let mut piece = task.filling.piece(c, task.row).ok_or_else(given_twice)?;
        let mut target = Target { bytes: &mut piece, written: 0, shape: Vec::new(), filled: false };
        fits(shared, &needs, target.bytes.len()).map_err(field)?;
        let mut fill = |tools: &mut Tools, scratch: &mut [u8]| {
            tools
                .fill(&shared.layout, column, value, &needs, checkpoints, draw, scratch, &mut target)
                .map_err(field)
        };
        if needs.total() == 0 {
            fill(&mut own.tools, &mut [])?;
        } else if own.grow(shared, &needs) {
            fill(&mut own.tools, own.scratch.as_deref_mut().unwrap_or_default())?;
        } else {
            own.forget();
            let began = Instant::now();
            let mut common = lock(&shared.reserved.scratch);
            add(&shared.stats.scratch_wait_ns, began);
            let filled = fill(&mut own.tools, common.as_deref_mut().unwrap_or_default());
            own.tools.forget();
            filled?;
        }
        let Target { written, shape, filled, .. } = target;
        shared.stats.filled.fetch_add(u64::from(filled), Ordering::Relaxed);
        if kept.is_some() || observer.is_some() {
            let len = if column.shape.is_some() { piece.len() } else { written };
            made.push((piece, len, shape.clone()));
        }
        task.filling.written(c, task.row, written, shape);
    }
    if let Some(observer) = observer.filter(|_| !task.filling.padding(task.row)) {
        let made: Vec<Made<'_>> =
            made.iter().map(|(piece, len, shape)| Made { bytes: &piece[..*len], shape }).collect();
        let index = task.filling.index_of(task.row);
        let sample = Sample { id: task.at.id, index, stored: bytes, values: &values, made: &made };
        task.filling.note(task.row, observer.see(&sample));
    }
    if let Some(rows) = kept {
        let parts: Vec<&[u8]> = made.iter().map(|(piece, ..)| &**piece).collect();
        let _it_may_be_full_or_not_want_it = rows.put(task.at.id, &parts);
    }
    Ok(())
}

/// Fills the row of a task that was made before.
fn copy(shared: &Shared, task: &Task, mut row: &[u8]) -> Result<()> {
    for (c, column) in shared.layout.columns.iter().enumerate() {
        let (bytes, rest) = row.split_at_checked(column.row_bytes()).ok_or_else(given_twice)?;
        let mut piece = task.filling.piece(c, task.row).ok_or_else(given_twice)?;
        piece.copy_from_slice(bytes);
        row = rest;
    }
    Ok(())
}

pub(super) fn given_twice() -> Error {
    Error::Config("a row was given out twice: please report this".into())
}

/// Refuses a picture that takes more than the plan has for one, or than its batch has room for.
fn fits(shared: &Shared, needs: &Needs, room: usize) -> Result<()> {
    let plan = &shared.reserved.plan;
    let room = plan.picture_bytes.min(room as u64);
    let (asked, most) = if needs.whole_bytes > room {
        (needs.whole_bytes, room)
    } else {
        (needs.total(), plan.scratch_bytes)
    };
    if asked <= most {
        return Ok(());
    }
    Err(Error::decode(format!(
        "decoding it takes {} MiB, more than the {} MiB that the budget of {} MiB leaves for one picture: raise memory, or run \
         `tidegate index --force` if the file changed",
        mib(asked),
        mib(most),
        mib(shared.reserved.budget.cap_bytes())
    )))
}

impl Own {
    pub(super) fn scratch(&mut self) -> &mut [u8] {
        self.scratch.as_deref_mut().unwrap_or_default()
    }

    /// Makes it large enough, if the budget has room now.
    pub(super) fn grow(&mut self, shared: &Shared, needs: &Needs) -> bool {
        let budget = &shared.reserved.budget;
        let (scratch, rows) = (needs.scratch_bytes, needs.rows_bytes);
        let kept = self.kept_bytes.max(rows);
        if self.library.as_ref().map_or(0, Grant::bytes) < kept.saturating_add(needs.decoder_bytes) {
            self.forget();
            let needed = rows.saturating_add(needs.decoder_bytes);
            // What nobody else wants: the plan leaves room for it, and there is the shared scratch.
            self.library = budget.try_acquire(Account::Library, needed, Priority::CacheFill).ok();
        }
        self.kept_bytes = self.kept_bytes.max(rows);
        if (self.scratch.as_deref().map_or(0, <[u8]>::len) as u64) < scratch {
            self.scratch = None;
            // An eighth more, so that pictures of about one size do not make it grow again and again.
            let bytes = scratch.saturating_add(scratch / 8);
            self.scratch = budget.try_block(Account::Scratch, bytes, Priority::CacheFill).ok();
        }
        self.library.is_some() && (scratch == 0 || self.scratch.is_some())
    }

    /// Gives back what the tools keep, and then what stands for it.
    pub(super) fn forget(&mut self) {
        self.tools.forget();
        (self.library, self.kept_bytes) = (None, 0);
    }
}
