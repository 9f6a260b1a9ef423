//! Why a plan does not fit, in words: each part, and what the user can change.
//!
//! Flow: a [`Plan`] above its cap -> [`TooSmall`] -> [`Error::TooSmall`] with the sample that
//! takes most.
//! Memory: holds none.

use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Slab};
use tidegate_source::{SizeBounds, Source};

use super::{LEAVE_OUT, Plan};
use crate::Error;

/// A budget that cannot hold the least plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooSmall {
    plan: Box<Plan>,
    cap_bytes: u64,
}

impl TooSmall {
    pub(super) fn new(plan: Plan, cap_bytes: u64) -> Self {
        Self { plan: Box::new(plan), cap_bytes }
    }

    /// Bytes that the least plan takes.
    #[must_use]
    pub fn least_bytes(&self) -> u64 {
        self.plan.least()
    }

    /// The error that the user gets: it names the account that asks for most, and the sample that
    /// makes it so.
    #[must_use]
    pub fn explain(&self, source: &dyn Source) -> Error {
        let parts = self.parts();
        let words: Vec<_> = parts.iter().map(|(a, b)| format!("{a} {}", mib(*b))).collect();
        let (account, asked_bytes) = parts.into_iter().max_by_key(|p| p.1).unwrap_or((Account::Batch, 0));
        Error::TooSmall {
            cap_bytes: self.cap_bytes,
            least_bytes: self.least_bytes(),
            parts: words.join(", "),
            account,
            asked_bytes,
            fix: self.fix(account, source),
        }
    }

    fn batches_bytes(&self) -> u64 {
        self.plan.slots * Slab::stride_bytes(self.plan.slot_bytes)
    }

    fn parts(&self) -> [(Account, u64); 8] {
        let plan = &*self.plan;
        [
            (Account::Batch, self.batches_bytes().saturating_add(plan.images_bytes())),
            (Account::Staging, plan.staging_bytes),
            (Account::Scratch, plan.scratch_bytes),
            (Account::Library, plan.source_bytes + plan.kept_bytes),
            (Account::Decoded, plan.groups.saturating_mul(plan.group_bytes)),
            (Account::Index, plan.index_bytes),
            (Account::Telemetry, plan.telemetry_bytes()),
            (Account::CacheMemory, plan.stores_bytes),
        ]
    }

    /// What the user can do about the account that asks for most.
    fn fix(&self, account: Account, source: &dyn Source) -> String {
        let SizeBounds { scratch_id, decoded_id, .. } = source.size_bounds();
        let chunked = source.chunked().is_some();
        match account {
            Account::Scratch if chunked => {
                "write the arrays again with smaller chunks: one has to be decoded as a whole".to_owned()
            }
            Account::Scratch => format!(
                "the image that takes most is {}; shrink it, or {LEAVE_OUT}",
                describe(source, scratch_id)
            ),
            Account::Batch if self.plan.images_bytes() > self.batches_bytes() => format!(
                "the largest image is {}; give a size, as in tg.Image(224), or {LEAVE_OUT}",
                describe(source, decoded_id)
            ),
            Account::Batch if chunked => "lower batch_size, or use a smaller patch".to_owned(),
            Account::Batch if self.plan.slots > 2 => "lower batch_size or held_batches".to_owned(),
            Account::Batch => "lower batch_size".to_owned(),
            Account::Decoded if self.plan.groups > 1 => self.shuffle_less(source),
            Account::Decoded | Account::Library if source.grouped().is_some() => {
                "write the files with smaller groups (row_group_size=100 for images)".to_owned()
            }
            Account::Telemetry => "use fewer workers, or smaller batches".to_owned(),
            Account::CacheMemory => "do without a disk cache".to_owned(),
            _ if chunked => "write the arrays again with smaller chunks".to_owned(),
            _ => "split the largest samples".to_owned(),
        }
    }

    fn shuffle_less(&self, source: &dyn Source) -> String {
        format!(
            "shuffle less widely: a row can only be read by decoding its whole group, {} MiB for {} rows on average, \
             and this order draws from {} groups at once; use shuffle=tg.Window(samples) with fewer samples, or repack \
             the data for random access with `tidegate pack '{}' OUT`",
            mib(self.plan.group_bytes),
            source.len() / (source.shard_lengths().len() as u64).max(1),
            self.plan.groups,
            source.name()
        )
    }
}

/// A sample and its size in words, as far as the index can be read.
fn describe(source: &dyn Source, id: u64) -> String {
    match source.locate(&[id]) {
        Ok(found) if !found.is_empty() => {
            let entry = &found[0].entry;
            let place = source.place(&found[0]);
            match (entry.width, entry.height) {
                (0, _) | (_, 0) => format!("{place}, which is more than 65,535 pixels long"),
                (width, height) => format!("{place} of {width} × {height} pixels"),
            }
        }
        _ => format!("sample {id}"),
    }
}
