//! Orders that the user gives: ids in a list for each epoch, or one after another.
//!
//! Flow: [`Ids`] (an array, a function of the epoch, an iterator) -> [`Given`] -> the id at a position.
//! Memory: eight bytes a position (account `index`), from the making of the order on; of a function's lists those of three epochs.
//!
//! A list is known when the epoch begins, so what to keep is planned by Belady's rule. Of an iterator nothing is known before
//! it is asked, and it is asked no further ahead than there are batches: it may depend on what training did.

use std::sync::{Arc, Mutex};
use tidegate_core::sync::lock;

use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Budget, Grant, Priority};

use super::{Epoch, Foresight, Order};
use crate::{Error, Result};

/// Ids one after another.
pub type Pull = Box<dyn FnMut() -> Result<Option<u64>> + Send>;

/// The ids of an epoch.
pub enum Listing {
    /// All of them.
    All(Arc<[u64]>),
    /// One after another, until none comes.
    Pulled(Pull),
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All(ids) => write!(f, "All({} ids)", ids.len()),
            Self::Pulled(_) => f.write_str("Pulled"),
        }
    }
}

/// Ids in the order in which they are wanted; what users implement.
pub trait Ids: Send + Sync + std::fmt::Debug {
    /// Positions in an epoch.
    fn len(&self) -> u64;

    /// Whether an epoch is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`Ids::epoch`] lists all ids.
    fn listed(&self) -> bool;

    /// What the ids take at most: of lists this epoch's, the next one's, and the last one's until both are there.
    fn bytes(&self) -> u64 {
        if self.listed() { 24 * self.len() } else { 8 * self.len() }
    }

    /// The ids of an epoch; of listed ones those of the next epoch are asked for too, so that both can be planned.
    ///
    /// # Errors
    /// Whatever the user's function raises, in words.
    fn epoch(&self, epoch: u64) -> Result<Listing>;
}

/// The same ids in each epoch.
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

/// See the head of this file.
#[derive(Debug)]
pub struct Given {
    ids: Arc<dyn Ids>,
    samples: u64,
    runs: u64,
    /// The lists of this epoch and the next, so that each is asked for once.
    lists: Mutex<Vec<(u64, Arc<[u64]>)>>,
    memory: Grant,
}

impl Given {
    /// An order of `ids`, which are below `samples`, over a source of so many `runs`.
    ///
    /// # Errors
    /// When the budget has no room for the lists.
    pub fn new(ids: Arc<dyn Ids>, samples: u64, runs: u64, budget: &Budget) -> Result<Self> {
        let memory =
            budget.try_acquire(Account::Index, ids.bytes(), Priority::NextBatch).map_err(|error| {
                let (len, bytes) = (ids.len(), mib(ids.bytes()));
                Error::Config(format!(
                    "the budget is too small for the sampler's {len} ids, which take {bytes} MiB: {error}"
                ))
            })?;
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
            return Err(beyond(list[position], position as u64, self.samples));
        }
        let mut lists = lock(&self.lists);
        lists.retain(|(of, _)| of.abs_diff(epoch) <= 1);
        lists.push((epoch, Arc::clone(&list)));
        Ok(Some(list))
    }
}

fn beyond(id: u64, position: u64, samples: u64) -> Error {
    Error::Config(format!(
        "the sampler gives id {id} at position {position}, but there are {samples} samples"
    ))
}

impl Order for Given {
    fn len(&self) -> u64 {
        self.ids.len()
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        if let Some(list) = self.list(epoch)? {
            return Ok(Arc::new(Listed(list)));
        }
        let Listing::Pulled(pull) = self.ids.epoch(epoch)? else {
            return Err(Error::Config(
                "a sampler lists its ids, and then does not: please report this".into(),
            ));
        };
        let (len, samples) = (self.len(), self.samples);
        Ok(Arc::new(Pulled {
            len,
            samples,
            source: Mutex::new(Ok(pull)),
            came: Mutex::new(Came { ids: Vec::with_capacity(len as usize), print: (0, 0) }),
        }))
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.runs
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn foresight(&self) -> Foresight {
        if self.ids.listed() { Foresight::Listed } else { Foresight::None }
    }

    fn print(&self, epoch: u64) -> Option<u64> {
        let hash = |list: Arc<[u64]>| {
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            list.iter().for_each(|id| hash.update(&id.to_le_bytes()));
            hash.digest()
        };
        self.list(epoch).ok()?.map(hash)
    }
}

#[derive(Debug)]
struct Listed(Arc<[u64]>);

impl Epoch for Listed {
    fn id(&self, position: u64) -> Result<u64> {
        Ok(self.0[position as usize])
    }
}

struct Pulled {
    len: u64,
    samples: u64,
    /// Where more come from, or why none do. Whoever has it may be kept waiting, and nobody else is.
    source: Mutex<std::result::Result<Pull, String>>,
    came: Mutex<Came>,
}

/// What came so far stays: an epoch that goes on with other memory asks for it again.
#[derive(Debug)]
struct Came {
    ids: Vec<u64>,
    /// So many ids, and what tells them from others.
    print: (usize, u64),
}

impl std::fmt::Debug for Pulled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pulled({} of {})", lock(&self.came).ids.len(), self.len)
    }
}

impl Pulled {
    fn came(&self, position: u64) -> Option<u64> {
        lock(&self.came).ids.get(position as usize).copied()
    }

    /// Asks for the id after those that came, `position` of them.
    fn pull(&self, pull: &mut Pull, position: u64) -> Result<u64> {
        let ended = || {
            Error::Config(format!("the sampler ended after {position} ids, but its length is {}", self.len))
        };
        let id = pull()?.ok_or_else(ended)?;
        if id < self.samples { Ok(id) } else { Err(beyond(id, position, self.samples)) }
    }
}

impl Epoch for Pulled {
    fn id(&self, position: u64) -> Result<u64> {
        loop {
            if let Some(id) = self.came(position) {
                return Ok(id);
            }
            let source = &mut *lock(&self.source);
            let next = lock(&self.came).ids.len() as u64;
            if next > position {
                continue;
            }
            let pull = source.as_mut().map_err(|why| Error::Config(why.clone()))?;
            match self.pull(pull, next) {
                Ok(id) => lock(&self.came).ids.push(id),
                Err(error) => {
                    // An iterator that failed would say that it has ended.
                    *source = Err(error.to_string());
                    return Err(error);
                }
            }
        }
    }

    fn print(&self, most: u64) -> Option<(u64, u64)> {
        let came = &mut *lock(&self.came);
        let most = came.ids.len().min(most as usize);
        let (mut count, mut print) = if came.print.0 <= most { came.print } else { (0, 0) };
        for id in &came.ids[count..most] {
            print = xxhash_rust::xxh3::xxh3_64_with_seed(&id.to_le_bytes(), print);
            count += 1;
        }
        came.print = (count, print);
        Some((count as u64, print))
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
                Listing::Pulled(Box::new(move || Ok(ids.next())))
            })
        }
    }

    #[test]
    fn lists_are_asked_for_once_and_iterators_no_further_than_needed() {
        for listed in [true, false] {
            let ids = Arc::new(Counting { listed, asked: Mutex::default() });
            let budget = Budget::new(1 << 20);
            let order = Given::new(Arc::clone(&ids) as Arc<dyn Ids>, 10, 1, &budget).unwrap();
            assert_eq!(order.held_bytes(), if listed { 120 } else { 40 });
            let epochs = [0, 1, 1, 2].map(|n| order.epoch(n).unwrap());
            assert_eq!(*lock(&ids.asked), if listed { vec![0, 1, 2] } else { vec![0, 1, 1, 2] });
            assert_eq!([3, 0, 4].map(|p| epochs[1].id(p).unwrap()), [4, 1, 9]);
            assert_eq!(epochs[0].known(), listed);
            // What came is known by its print, as far as it came.
            assert_eq!(epochs[1].print(9).map(|(count, _)| count), (!listed).then_some(5));
            assert!(epochs.iter().all(|epoch| epoch.id(3).is_ok()));
            assert!(epochs[1].print(4) == epochs[2].print(4) && epochs[1].print(2) == epochs[2].print(2));
            assert_eq!(epochs[1].print(4) == epochs[3].print(4), listed);
            assert_eq!(order.print(1).is_some(), listed);
            assert_eq!(order.print(1) == order.print(2), !listed);
            // An iterator is asked no further than wanted: the id that is too large has not come yet.
            let order = Given::new(ids, 9, 1, &budget).unwrap();
            let first = order.epoch(0).and_then(|epoch| epoch.id(3));
            assert_eq!(first.is_ok(), !listed);
            let error = order.epoch(0).and_then(|epoch| epoch.id(4)).unwrap_err().to_string();
            assert!(error.contains("id 9 at position 4, but there are 9 samples"), "{error}");
        }
    }

    #[test]
    fn an_iterator_that_ends_early_is_named() {
        let ids = Arc::new(Counting { listed: false, asked: Mutex::default() });
        assert!(Given::new(ids.clone(), 10, 1, &Budget::new(32)).is_err());
        let order = Given::new(ids, 10, 1, &Budget::new(1 << 20)).unwrap();
        let epoch = order.epoch(0).unwrap();
        // Whoever asks again is told the same.
        for _ in 0..2 {
            let error = epoch.id(5).unwrap_err().to_string();
            assert!(error.contains("ended after 5 ids"), "{error}");
        }
    }
}
