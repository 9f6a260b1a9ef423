//! Orders that the user gives: ids in a list for each epoch, or one after another.
//!
//! Flow: [`Ids`] (an array, a function of the epoch, an iterator) -> [`Given`] -> the id at a position.
//! Memory: eight bytes a position of at most two epochs (account `index`), from the making of the order on.
//!
//! A list is known when the epoch begins, so what to keep is planned by Belady's rule. Of an iterator nothing is known before
//! it is asked, and it is asked no more than a batch ahead: it may depend on what training did.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

    /// What its lists take at most: by itself those of two epochs.
    fn bytes(&self) -> u64 {
        16 * self.len()
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
    _memory: Grant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Given {
    /// An order of `ids`, which are below `samples`, over a source of so many `runs`.
    ///
    /// # Errors
    /// When the budget has no room for the lists.
    pub fn new(ids: Arc<dyn Ids>, samples: u64, runs: u64, budget: &Budget) -> Result<Self> {
        let memory = budget.try_acquire(Account::Index, ids.bytes(), Priority::NextBatch)?;
        Ok(Self { ids, samples, runs, lists: Mutex::default(), _memory: memory })
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
                "the sampler gives {} ids for epoch {epoch}, not {wanted}",
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
        Ok(Arc::new(Pulled { len, samples, state: Mutex::new((Vec::new(), pull)) }))
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.runs
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

/// What came so far stays: an epoch that goes on with other memory asks for it again.
struct Pulled {
    len: u64,
    samples: u64,
    state: Mutex<(Vec<u64>, Pull)>,
}

impl std::fmt::Debug for Pulled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pulled({} of {})", lock(&self.state).0.len(), self.len)
    }
}

impl Epoch for Pulled {
    fn id(&self, position: u64) -> Result<u64> {
        let (ids, pull) = &mut *lock(&self.state);
        while ids.len() as u64 <= position {
            let came = ids.len() as u64;
            let id = pull()?.ok_or_else(|| {
                Error::Config(format!("the sampler ended after {came} ids, but its length is {}", self.len))
            })?;
            if id >= self.samples {
                return Err(beyond(id, came, self.samples));
            }
            ids.push(id);
        }
        Ok(ids[position as usize])
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
            assert_eq!(budget.account(Account::Index).held_bytes, 80);
            let epochs = [0, 1, 1, 2].map(|n| order.epoch(n).unwrap());
            assert_eq!(*lock(&ids.asked), if listed { vec![0, 1, 2] } else { vec![0, 1, 1, 2] });
            assert_eq!([3, 0, 4].map(|p| epochs[1].id(p).unwrap()), [4, 1, 9]);
            assert_eq!(epochs[0].known(), listed);
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
        assert!(Given::new(ids.clone(), 10, 1, &Budget::new(64)).is_err());
        let order = Given::new(ids, 10, 1, &Budget::new(1 << 20)).unwrap();
        let error = order.epoch(0).unwrap().id(5).unwrap_err().to_string();
        assert!(error.contains("ended after 5 ids"), "{error}");
    }
}
