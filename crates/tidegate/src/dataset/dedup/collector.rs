//! Collects signatures in sample order, and joins samples that are similar into clusters.
//!
//! Flow: a sample -> `signatures`, on the worker -> keys to `external_sort`, signatures to a file
//! -> candidates of one key -> compared by their signatures -> [`Duplicates`].
//! Memory: account `index`: a quarter of the budget for keys at most, two write buffers, the
//! workers' shingles, and four bytes a sample for clusters.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tidegate_core::memory::{Account, Budget, Grant, Priority};
use tidegate_core::sync::lock;
use tidegate_data::pipeline::observer::{Note, Observer, Sample};
use tidegate_source::Source;

use super::external_sort::{ExternalSort, UncachedFile};
use super::signatures::{Signature, Signer};
use super::{Duplicate, Duplicates, Search};
use crate::loader::EpochObserver;
use crate::{Error, Options, Result};

/// The most bytes of keys in memory, however large the budget.
const MAX_KEY_BYTES: u64 = 1 << 30;
/// The most clusters of one key whose representatives are compared with the samples that follow.
const MAX_REPRESENTATIVES: usize = 256;

/// Observes a scan, and finds the duplicates when it has ended.
#[derive(Debug)]
pub(super) struct SignatureCollector {
    signer: Signer,
    collected: Mutex<Collected>,
    samples: u64,
    /// Keys, write buffers, the workers' shingles and the clusters.
    memory: Grant,
}

#[derive(Debug)]
struct Collected {
    keys: ExternalSort,
    signatures: UncachedFile,
    /// Samples whose signature is written.
    written: u64,
}

impl SignatureCollector {
    pub(super) fn new(
        source: &dyn Source,
        search: &Search,
        signer: Signer,
        options: &Options,
        budget: &Budget,
    ) -> Result<Self> {
        if source.len() > u64::from(u32::MAX) {
            return Err(Error::Config(format!(
                "{} samples are too many: search parts of at most 2^32 - 1",
                source.len()
            )));
        }
        let all_keys = source.len() * signer.max_keys() as u64;
        let fitting_keys = (budget.cap_bytes() / 4).min(MAX_KEY_BYTES) / 16;
        let keys = fitting_keys.min(all_keys).max(1024);
        let working = options.workers() as u64 * signer.working_bytes(source.size_bounds().sample_bytes);
        // Two files, one of keys and one of signatures, and the clusters at the end.
        let bytes = 16 * keys + 2 * UncachedFile::MAX_BYTES + working + 4 * source.len();
        let folder = search.folder.clone().or_else(|| source.index_dir().map(Path::to_owned));
        let folder = &folder.unwrap_or_else(std::env::temp_dir);
        Ok(Self {
            memory: budget.try_acquire(Account::Index, bytes, Priority::NextBatch)?,
            collected: Mutex::new(Collected {
                keys: ExternalSort::new(folder, keys as usize),
                signatures: UncachedFile::new(folder)?,
                written: 0,
            }),
            samples: source.len(),
            signer,
        })
    }

    /// Compares samples that share a key, and joins the similar ones.
    pub(super) fn into_duplicates(self) -> Result<Duplicates> {
        let Self { signer, collected, samples, memory: _memory } = self;
        let collected = collected.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Collected { keys, signatures: mut file, .. } = collected;
        file.flush()?;
        let signature_bytes = file.bytes();
        let mut clusters = Clusters::new(samples as usize);
        let mut counts = Counts::default();
        let signatures = SignatureFile { file, bytes: signer.signature_bytes() };
        let key_bytes =
            keys.groups(&mut |ids| compare(ids, &signer, &signatures, &mut clusters, &mut counts))?;
        let mut duplicates = Vec::new();
        let mut kept = BTreeSet::new();
        for index in 0..samples {
            let of = clusters.first_of(index);
            if of != index {
                kept.insert(of);
                let similarity = signer.similarity(&signatures.read(of)?, &signatures.read(index)?);
                duplicates.push(Duplicate { index, of, similarity });
            }
        }
        Ok(Duplicates {
            samples,
            field: String::new(),
            clusters: kept.len() as u64,
            duplicates,
            failed: 0,
            failures: Vec::new(),
            compared: counts.compared,
            truncated: counts.truncated,
            spilled_bytes: key_bytes + signature_bytes,
        })
    }
}

impl Observer for SignatureCollector {
    fn note_bytes(&self) -> u64 {
        self.signer.note_bytes()
    }

    fn see(&self, sample: &Sample<'_>) -> Note {
        Box::new(self.signer.sign(sample))
    }

    fn take(&self, notes: Vec<Note>) -> Result<()> {
        let collected = &mut *lock(&self.collected);
        let none = vec![0; self.signer.signature_bytes()];
        for signed in notes.into_iter().filter_map(|note| note.downcast::<Signature>().ok()) {
            // Samples that failed have no signature, but a place in the file.
            for _ in collected.written..signed.index {
                collected.signatures.write(&none)?;
            }
            collected.signatures.write(&signed.signature)?;
            collected.written = signed.index + 1;
            for key in signed.keys {
                collected.keys.push((key, signed.index))?;
            }
        }
        Ok(())
    }
}

impl EpochObserver for SignatureCollector {}

#[derive(Default)]
struct Counts {
    /// Pairs of signatures that were compared.
    compared: u64,
    /// Samples that replaced a representative, because the key had too many clusters.
    truncated: u64,
}

/// Joins the similar samples of one key. Each is compared with the representatives of the clusters
/// before it.
fn compare(
    ids: &[u64],
    signer: &Signer,
    signatures: &SignatureFile,
    clusters: &mut Clusters,
    counts: &mut Counts,
) -> Result<()> {
    let mut representatives: Vec<(u64, Vec<u8>)> = Vec::new();
    for &id in ids {
        let cluster = clusters.first_of(id);
        if representatives.iter().any(|(of, _)| clusters.first_of(*of) == cluster) {
            continue;
        }
        let signature = signatures.read(id)?;
        let similar = representatives.iter().find(|(_, other)| {
            counts.compared += 1;
            signer.is_duplicate(signer.similarity(other, &signature))
        });
        match similar {
            Some((of, _)) => clusters.join(*of, id),
            None if representatives.len() < MAX_REPRESENTATIVES => representatives.push((id, signature)),
            None => {
                counts.truncated += 1;
                representatives[(counts.truncated as usize) % MAX_REPRESENTATIVES] = (id, signature);
            }
        }
    }
    Ok(())
}

/// The signatures of all samples, each at its index.
struct SignatureFile {
    file: UncachedFile,
    /// Bytes of one signature.
    bytes: usize,
}

impl SignatureFile {
    fn read(&self, index: u64) -> Result<Vec<u8>> {
        let mut signature = vec![0; self.bytes];
        self.file.read(index * self.bytes as u64, &mut signature)?;
        Ok(signature)
    }
}

/// Clusters by union-find (Tarjan): each sample points towards the first sample of its cluster.
struct Clusters(Vec<u32>);

impl Clusters {
    fn new(samples: usize) -> Self {
        Self((0..samples as u32).collect())
    }

    fn first_of(&mut self, index: u64) -> u64 {
        let mut at = index as usize;
        while self.0[at] as usize != at {
            // Path halving makes the next search shorter.
            self.0[at] = self.0[self.0[at] as usize];
            at = self.0[at] as usize;
        }
        at as u64
    }

    fn join(&mut self, one: u64, other: u64) {
        let (one, other) = (self.first_of(one), self.first_of(other));
        self.0[one.max(other) as usize] = one.min(other) as u32;
    }
}
