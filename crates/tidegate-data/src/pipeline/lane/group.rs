//! The lane of rows that are stored in groups: Parquet row groups, Arrow record batches.
//!
//! Flow: a located row -> its group, decoded if it is not here -> its bytes in the reader's
//! staging -> as the sample lane.
//! Memory: as many groups as the order has in use at once, each as large as the largest (account
//! `decoded`), reserved when the epoch starts.
//!
//! The least recently used group makes room. Samples come in order, and the plan counts how many
//! groups an order has in use, so a group is decoded once an epoch, except for those on the border
//! of two shuffle windows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use tidegate_core::memory::{Block, Staged};
use tidegate_core::sync::lock;
use tidegate_source::uring::Uring;
use tidegate_source::{Grouped, Located};

use super::super::batch_builder::Row;
use super::super::handles::Handles;
use super::super::scratch::WorkerScratch;
use super::sample::{self, SampleJob, SampleRead};
use super::{Begun, Lane};
use crate::batch::Layout;
use crate::{Error, Result};

/// See the head of this file.
#[derive(Debug)]
pub(in super::super) struct GroupLane {
    /// Which fields any column wants.
    wanted: Vec<bool>,
    /// The groups, the one that was used last at the end.
    groups: Mutex<Vec<(Option<u64>, Block)>>,
}

impl GroupLane {
    /// A lane that keeps decoded groups in these blocks.
    pub(in super::super) fn new(layout: &Layout, blocks: Vec<Block>) -> Self {
        let wanted = (0..layout.schema.len()).map(|i| layout.columns.iter().any(|c| c.reads(i))).collect();
        Self { wanted, groups: Mutex::new(blocks.into_iter().map(|block| (None, block)).collect()) }
    }

    /// Copies the bytes of a row into `into`.
    fn copy_row(
        &self,
        h: &Handles,
        source: &dyn Grouped,
        at: &Located,
        into: &mut [u8],
    ) -> Result<Range<usize>> {
        let group = source.group_of(at);
        let mut groups = lock(&self.groups);
        let found = groups.iter().position(|(k, _)| *k == Some(group));
        groups[found.unwrap_or(0)..].rotate_left(1);
        let Some((number, block)) = groups.last_mut() else { return Ok(0..0) };
        if found.is_none() {
            *number = None;
            source.decode(at, &self.wanted, h.spec.mode, block)?;
            *number = Some(group);
            h.metrics.groups.add(1);
        }
        let row = source.row(at, block).and_then(|row| Some((row, into.get_mut(..row.len())?)));
        let (row, target) = row.ok_or_else(|| Error::Internal("a row is not in its group".into()))?;
        target.copy_from_slice(row);
        Ok(0..row.len())
    }
}

impl Lane for GroupLane {
    type Read = SampleRead;
    type Job = SampleJob;

    fn reads_at_once(&self, uring: bool) -> usize {
        sample::SampleLane.reads_at_once(uring)
    }

    fn begin(&self, h: &Handles, rows: Vec<Begun>, reads: &mut VecDeque<SampleRead>) -> Vec<SampleJob> {
        sample::begin(h, rows, reads)
    }

    fn retry(
        &self,
        h: &Handles,
        row: Row,
        at: Located,
        reads: &mut VecDeque<SampleRead>,
    ) -> Option<SampleJob> {
        sample::SampleLane.retry(h, row, at, reads)
    }

    fn staging_bytes(&self, h: &Handles, read: &SampleRead) -> u64 {
        read.staging_bytes(h)
    }

    fn read(
        &self,
        h: &Handles,
        reads: Vec<(SampleRead, Staged)>,
        uring: &mut Option<Uring>,
        thread: usize,
        push: &mut dyn FnMut(SampleJob) -> bool,
    ) {
        let from_group = |at: &Located, _: u64, staging: &mut [u8]| match h.spec.source.grouped() {
            Some(source) => self.copy_row(h, source, at, staging),
            None => Err(Error::Internal("a source of groups without groups".into())),
        };
        sample::read(h, reads, &from_group, uring, thread, push);
    }

    fn run(&self, h: &Handles, job: SampleJob, scratch: &Mutex<WorkerScratch>, thread: usize) {
        sample::run(h, job, scratch, thread);
    }
}
