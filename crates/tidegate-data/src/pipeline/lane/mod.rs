//! Lanes: the ways in which samples are made, one of which is chosen when an epoch starts.
//!
//! Flow: rows of a batch -> [`Lane::begin`] -> reads and jobs -> [`Lane::read`] on reader threads
//! -> jobs -> [`Lane::run`] on workers -> rows settled.
//! Memory: staging that the feed takes for each read; what a lane keeps is said in its file.
//!
//! `sample` reads and decodes one sample after another; `group` decodes whole groups of rows
//! (Parquet, Arrow) and takes rows from them; `chunk` decodes chunks of arrays and copies their
//! parts into all patches that wait. A job is data: it refers to rows and bytes, never to the
//! handles of the epoch.

pub(super) mod chunk;
pub(super) mod group;
pub(super) mod sample;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Mutex;

use tidegate_core::memory::Staged;
use tidegate_source::Located;
use tidegate_source::uring::Uring;

use super::batch_builder::Row;
use super::handles::Handles;
use super::scratch::WorkerScratch;

/// A row of a batch that begins: the sample it is for, and nothing to write where its position
/// failed before.
pub(super) type Begun = (Option<Row>, Located);

/// See the head of this file.
pub(super) trait Lane: Debug + Send + Sync + Sized + 'static {
    /// What a reader takes next.
    type Read: Debug + Send + 'static;
    /// What a worker does next.
    type Job: Debug + Send + 'static;

    /// Reads that one thread may have in flight together.
    fn reads_at_once(&self, uring: bool) -> usize;

    /// Begins the rows of a batch, in order: what has to be read goes behind `reads`, what needs
    /// no reading is returned.
    fn begin(&self, h: &Handles, rows: Vec<Begun>, reads: &mut VecDeque<Self::Read>) -> Vec<Self::Job>;

    /// Begins a row again with another sample, before everything else in `reads`.
    fn retry(
        &self,
        h: &Handles,
        row: Row,
        at: Located,
        reads: &mut VecDeque<Self::Read>,
    ) -> Option<Self::Job>;

    /// Bytes of staging that a read takes.
    fn staging_bytes(&self, h: &Handles, read: &Self::Read) -> u64;

    /// The job of a read that workers do themselves; else the read, for a reader.
    fn for_worker(&self, h: &Handles, read: Self::Read) -> Result<Self::Job, Self::Read> {
        let _ = h;
        Err(read)
    }

    /// Reads, and hands each job to `push`, which says whether the epoch goes on.
    fn read(
        &self,
        h: &Handles,
        reads: Vec<(Self::Read, Staged)>,
        uring: &mut Option<Uring>,
        thread: usize,
        push: &mut dyn FnMut(Self::Job) -> bool,
    );

    /// Does a job; `thread` is for the watchdog.
    fn run(&self, h: &Handles, job: Self::Job, scratch: &Mutex<WorkerScratch>, thread: usize);

    /// Drops what waits, when the epoch has ended.
    fn clear(&self) {}
}
