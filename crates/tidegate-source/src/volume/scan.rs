//! Every chunk of an array, once.
//!
//! Flow: an array -> the elements of each chunk -> a function; called by `labels` and `refine`.
//! Memory: a chunk for each thread, stored and decoded (account `scratch`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tidegate_core::sync::lock;

use tidegate_core::memory::{Account, Budget, Grant, Priority};

use super::Part;
use super::Volume;
use crate::files::read::{aligned, staging_bytes};
use crate::{Chunked, ReadMode};
use crate::{Error, Result, panic_message};

impl Volume {
    /// Calls `work` with the elements of every chunk of an array, on as many threads as memory
    /// allows.
    ///
    /// Each thread takes `more_bytes` in addition to its chunk.
    pub(super) fn every_chunk(
        &self,
        part: &Part,
        budget: &Budget,
        threads: usize,
        more_bytes: u64,
        progress: &(dyn Fn(u64, u64) -> Result<()> + Sync),
        work: &(dyn Fn(u64, &[u8]) -> Result<()> + Sync),
    ) -> Result<()> {
        let (chunks, next, failed) = (part.array.chunks(), AtomicU64::new(0), Mutex::new(None));
        let (stored, elements) = (staging_bytes(part.array.stored_bytes()), part.array.chunk_bytes());
        let each = stored + elements + part.array.library_bytes() + more_bytes;
        let run = |_scratch: Grant| {
            let failed = || lock(&failed);
            let (mut staging, mut values) = (aligned(stored as usize), aligned(elements as usize));
            while failed().is_none() {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return;
                }
                let mut one = || -> Result<()> {
                    let values = &mut values[..elements as usize];
                    self.read_whole(part, chunk, &mut staging, values)?;
                    work(chunk, values)?;
                    progress(chunk + 1, chunks)
                };
                if let Err(error) = one() {
                    failed().get_or_insert(error);
                }
            }
        };
        // The first thread must get its memory; more threads start only if there is some left.
        let first = budget.try_acquire(Account::Scratch, each, Priority::NextBatch)?;
        let more =
            (1..threads).map_while(|_| budget.try_acquire(Account::Scratch, each, Priority::CacheFill).ok());
        let scratch: Vec<Grant> = std::iter::once(first).chain(more).collect();
        std::thread::scope(|scope| {
            scratch.into_iter().for_each(|scratch| drop(scope.spawn(|| run(scratch))))
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Reads and decodes a chunk.
    fn read_whole(&self, part: &Part, chunk: u64, staging: &mut [u8], values: &mut [u8]) -> Result<()> {
        let number = part.first_chunk + chunk;
        let range = self.read_chunk(number, ReadMode::Drop, staging)?;
        let stored = range.map(|range| &staging[range]);
        let decode = std::panic::AssertUnwindSafe(|| self.decode_chunk(number, stored, values));
        std::panic::catch_unwind(decode).unwrap_or_else(|panic| {
            Err(Error::decode(format!("{}: {}", self.describe(number), panic_message(&*panic))))
        })
    }
}
