//! Explicit orders: ids that the user gives, as a list for each epoch or as a stream.
//!
//! Flow: [`Ids`] (an array, a function of the epoch, an iterator) -> [`ExplicitOrder`] -> the id
//! at a position.
//! Memory: 8 bytes a position (account `index`), reserved when the order is made. For a function
//! of the epoch the lists of three epochs.
//!
//! A list is known when its epoch begins, so the cache uses Belady's rule. A stream may depend on
//! what training does: nothing of it is known in advance, and it is asked no further ahead than
//! batches are.

use std::sync::{Arc, Mutex};

use tidegate_core::memory::{Budget, Grant};
use tidegate_core::sync::lock;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::error::{Error, Result};
use crate::memory::reserve;
use crate::traits::{Epoch, Lookahead, Order};

/// A stream of ids: the next one on each call, `None` at the end.
pub type IdStream = Box<dyn FnMut() -> Result<Option<u64>> + Send>;

/// The ids of an epoch.
pub enum Listing {
    /// All ids.
    All(Arc<[u64]>),
    /// One id after another.
    Stream(IdStream),
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All(ids) => write!(f, "All({} ids)", ids.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// The ids of a user's sampler, in their order. Users implement this trait.
pub trait Ids: Send + Sync + std::fmt::Debug {
    /// Positions in an epoch.
    fn len(&self) -> u64;

    /// Whether an epoch has no positions.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`Ids::epoch`] returns [`Listing::All`].
    fn listed(&self) -> bool;

    /// The most bytes that the ids take.
    ///
    /// For lists: those of this epoch, of the next, and of the last until both are made.
    fn bytes(&self) -> u64 {
        if self.listed() { 24 * self.len() } else { 8 * self.len() }
    }

    /// The ids of an epoch. Lists are asked for one epoch in advance, so that both can be planned.
    ///
    /// # Errors
    /// [`Error::Sampler`] when the user's function fails.
    fn epoch(&self, epoch: u64) -> Result<Listing>;
}

/// The same list of ids in each epoch.
#[derive(Debug, Clone)]
pub struct List(pub Arc<[u64]>);

impl Ids for List {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn listed(&self) -> bool {
        true
    }
    fn bytes(&self) -> u64 {
        8 * self.len()
    }
    fn epoch(&self, _: u64) -> Result<Listing> {
        Ok(Listing::All(Arc::clone(&self.0)))
    }
}

/// An order of ids that the user gives; see the head of this file.
#[derive(Debug)]
pub struct ExplicitOrder {
    ids: Arc<dyn Ids>,
    samples: u64,
    runs: u64,
    /// The lists of this epoch and the next, so that each is asked for once.
    lists: Mutex<Vec<(u64, Arc<[u64]>)>>,
    memory: Grant,
}

impl ExplicitOrder {
    /// An order of `ids` over a source of `samples` samples, which are stored in `runs` runs.
    ///
    /// # Errors
    /// [`Error::Budget`] when the ids do not fit.
    pub fn new(ids: Arc<dyn Ids>, samples: u64, runs: u64, budget: &Budget) -> Result<Self> {
        let memory = reserve(budget, ids.bytes(), &format!("the list of the sampler's {} ids", ids.len()))?;
        Ok(Self { ids, samples, runs, lists: Mutex::default(), memory })
    }

    fn list(&self, epoch: u64) -> Result<Option<Arc<[u64]>>> {
        if !self.ids.listed() {
            return Ok(None);
        }
        if let Some((_, list)) = lock(&self.lists).iter().find(|(of, _)| *of == epoch) {
            return Ok(Some(Arc::clone(list)));
        }
        let Listing::All(list) = self.ids.epoch(epoch)? else { return Ok(None) };
        let wanted = self.ids.len();
        if list.len() as u64 != wanted {
            return Err(Error::Config(format!(
                "the sampler gives {} ids for epoch {epoch}, not {wanted} as for others: give each epoch as many",
                list.len()
            )));
        }
        if let Some(position) = list.iter().position(|&id| id >= self.samples) {
            return Err(out_of_range(list[position], position as u64, self.samples));
        }
        let mut lists = lock(&self.lists);
        lists.retain(|(of, _)| of.abs_diff(epoch) <= 1);
        lists.push((epoch, Arc::clone(&list)));
        Ok(Some(list))
    }
}

fn out_of_range(id: u64, position: u64, samples: u64) -> Error {
    Error::Config(format!(
        "the sampler gives id {id} at position {position}, but there are {samples} samples"
    ))
}

impl Order for ExplicitOrder {
    fn len(&self) -> u64 {
        self.ids.len()
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        if let Some(list) = self.list(epoch)? {
            return Ok(Arc::new(ListEpoch(list)));
        }
        let Listing::Stream(stream) = self.ids.epoch(epoch)? else {
            return Err(Error::Internal("a sampler that does not list its ids returned a list".into()));
        };
        let (len, samples) = (self.len(), self.samples);
        let received = Received { ids: Vec::with_capacity(len as usize), digest: (0, 0) };
        Ok(Arc::new(StreamEpoch {
            len,
            samples,
            source: Mutex::new(Ok(stream)),
            received: Mutex::new(received),
        }))
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.runs
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn lookahead(&self) -> Lookahead {
        if self.ids.listed() { Lookahead::Listed } else { Lookahead::Unknown }
    }

    fn digest(&self, epoch: u64) -> Option<u64> {
        let hash = |list: Arc<[u64]>| {
            let mut hash = Xxh3::new();
            list.iter().for_each(|id| hash.update(&id.to_le_bytes()));
            hash.digest()
        };
        self.list(epoch).ok()?.map(hash)
    }
}

#[derive(Debug)]
struct ListEpoch(Arc<[u64]>);

impl Epoch for ListEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.0[position as usize])
    }
}

struct StreamEpoch {
    len: u64,
    samples: u64,
    /// The stream, or the error that ended it. Locked while the user's code runs, which may take
    /// long; ids that were received are read without it.
    source: Mutex<std::result::Result<IdStream, Failed>>,
    received: Mutex<Received>,
}

/// The ids that a stream gave so far. An epoch that restarts with other memory asks for them
/// again.
#[derive(Debug)]
struct Received {
    ids: Vec<u64>,
    /// The hash of the first ids, and how many they are.
    digest: (usize, u64),
}

/// The error that ended a stream. It is returned again when the stream is asked again.
enum Failed {
    Sampler(Arc<dyn std::error::Error + Send + Sync>),
    Config(String),
}

impl Failed {
    fn new(error: &Error) -> Self {
        match error {
            Error::Sampler(error) => Self::Sampler(Arc::clone(error)),
            error => Self::Config(error.to_string()),
        }
    }

    fn to_error(&self) -> Error {
        match self {
            Self::Sampler(error) => Error::Sampler(Arc::clone(error)),
            Self::Config(what) => Error::Config(what.clone()),
        }
    }
}

impl std::fmt::Debug for StreamEpoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamEpoch({} of {})", lock(&self.received).ids.len(), self.len)
    }
}

impl StreamEpoch {
    fn received(&self, position: u64) -> Option<u64> {
        lock(&self.received).ids.get(position as usize).copied()
    }

    /// Asks the stream for the id at `position`, the first that it has not given.
    fn pull(&self, stream: &mut IdStream, position: u64) -> Result<u64> {
        let ended = || {
            Error::Config(format!("the sampler ended after {position} ids, but its length is {}", self.len))
        };
        let id = stream()?.ok_or_else(ended)?;
        if id < self.samples { Ok(id) } else { Err(out_of_range(id, position, self.samples)) }
    }
}

impl Epoch for StreamEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        loop {
            if let Some(id) = self.received(position) {
                return Ok(id);
            }
            let source = &mut *lock(&self.source);
            let next = lock(&self.received).ids.len() as u64;
            if next > position {
                continue;
            }
            let stream = source.as_mut().map_err(|failed| failed.to_error())?;
            match self.pull(stream, next) {
                Ok(id) => lock(&self.received).ids.push(id),
                Err(error) => {
                    // Not asked again: an iterator that failed would say that it has ended.
                    *source = Err(Failed::new(&error));
                    return Err(error);
                }
            }
        }
    }

    fn digest(&self, most: u64) -> Option<(u64, u64)> {
        let received = &mut *lock(&self.received);
        let most = received.ids.len().min(most as usize);
        let (mut count, mut digest) = if received.digest.0 <= most { received.digest } else { (0, 0) };
        for id in &received.ids[count..most] {
            digest = xxh3_64_with_seed(&id.to_le_bytes(), digest);
            count += 1;
        }
        received.digest = (count, digest);
        Some((count as u64, digest))
    }

    fn known(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Counting {
        listed: bool,
        asked: Mutex<Vec<u64>>,
    }

    impl Ids for Counting {
        fn len(&self) -> u64 {
            5
        }
        fn listed(&self) -> bool {
            self.listed
        }
        fn epoch(&self, epoch: u64) -> Result<Listing> {
            lock(&self.asked).push(epoch);
            let mut ids = (epoch..epoch + 4).chain([9]);
            Ok(if self.listed {
                Listing::All(ids.collect())
            } else {
                Listing::Stream(Box::new(move || Ok(ids.next())))
            })
        }
    }

    #[test]
    fn lists_are_asked_for_once_and_iterators_no_further_than_needed() {
        for listed in [true, false] {
            let ids = Arc::new(Counting { listed, asked: Mutex::default() });
            let budget = Budget::new(1 << 20);
            let order = ExplicitOrder::new(Arc::clone(&ids) as Arc<dyn Ids>, 10, 1, &budget).unwrap();
            assert_eq!(order.held_bytes(), if listed { 120 } else { 40 });
            let epochs = [0, 1, 1, 2].map(|n| order.epoch(n).unwrap());
            assert_eq!(*lock(&ids.asked), if listed { vec![0, 1, 2] } else { vec![0, 1, 1, 2] });
            assert_eq!([3, 0, 4].map(|p| epochs[1].id(p).unwrap()), [4, 1, 9]);
            assert_eq!(epochs[0].known(), listed);
            // The digest covers the ids that were received, and no more.
            assert_eq!(epochs[1].digest(9).map(|(count, _)| count), (!listed).then_some(5));
            assert!(epochs.iter().all(|epoch| epoch.id(3).is_ok()));
            assert!(epochs[1].digest(4) == epochs[2].digest(4) && epochs[1].digest(2) == epochs[2].digest(2));
            assert_eq!(epochs[1].digest(4) == epochs[3].digest(4), listed);
            assert_eq!(order.digest(1).is_some(), listed);
            assert_eq!(order.digest(1) == order.digest(2), !listed);
            // An iterator is asked no further than needed: it has not given the id that is too
            // large.
            let order = ExplicitOrder::new(ids, 9, 1, &budget).unwrap();
            let first = order.epoch(0).and_then(|epoch| epoch.id(3));
            assert_eq!(first.is_ok(), !listed);
            let error = order.epoch(0).and_then(|epoch| epoch.id(4)).unwrap_err().to_string();
            assert!(error.contains("id 9 at position 4, but there are 9 samples"), "{error}");
        }
    }

    #[test]
    fn an_iterator_that_ends_early_is_named() {
        let ids = Arc::new(Counting { listed: false, asked: Mutex::default() });
        assert!(ExplicitOrder::new(ids.clone(), 10, 1, &Budget::new(32)).is_err());
        let order = ExplicitOrder::new(ids, 10, 1, &Budget::new(1 << 20)).unwrap();
        let epoch = order.epoch(0).unwrap();
        // Asked again, it fails in the same way.
        for _ in 0..2 {
            let error = epoch.id(5).unwrap_err().to_string();
            assert!(error.contains("ended after 5 ids"), "{error}");
        }
    }

    #[derive(Debug)]
    struct Failing;

    impl Ids for Failing {
        fn len(&self) -> u64 {
            3
        }
        fn listed(&self) -> bool {
            false
        }
        fn epoch(&self, _: u64) -> Result<Listing> {
            Ok(Listing::Stream(Box::new(|| Err(Error::sampler("too small")))))
        }
    }

    #[test]
    fn a_failed_sampler_fails_as_a_sampler_again() {
        let order = ExplicitOrder::new(Arc::new(Failing), 10, 1, &Budget::new(1 << 20)).unwrap();
        let epoch = order.epoch(0).unwrap();
        for _ in 0..2 {
            let error = epoch.id(0).unwrap_err();
            assert!(matches!(&error, Error::Sampler(why) if why.to_string() == "too small"), "{error:?}");
        }
    }
}
