//! Orders that give each class, or each source, its exact share of every block of positions: stratified, class-balanced, mixtures.
//!
//! Flow: members of classes, how many of each an epoch has -> blocks with exact quotas -> the id at a position.
//! Memory: four bytes a sample for the lists of members (none where classes are ranges of ids), and eight for permutations of classes below 2^16
//! (account `index`), charged before they are made.
//!
//! The j-th of m samples of a class stands at the time (2j + 1) / 2m of the epoch; positions are these times in order, of equal ones the lower class
//! first. So of any stretch a class has its share within one sample, and exactly its share where that is whole. Within a block the order is shuffled. A class is
//! gone through by one permutation after another, from one epoch to the next: oversampled samples come equally often, undersampled ones take turns.

use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::memory::{Budget, Grant};
use tidegate_sketch::random::mix;

use super::drawn::{drawn, reserve};
use super::permutation::{LISTED_BELOW, Permutation};
use super::{Epoch, Foresight, Order};
use crate::{Error, Result};

/// Which samples belong to which class.
#[derive(Debug)]
pub struct Classes {
    /// Where the members of each class begin, and where the last ends.
    starts: Vec<u64>,
    /// The members, class by class; none where they are ranges of ids.
    ids: Option<Box<[u32]>>,
    print: u64,
    memory: Option<Grant>,
}

impl Classes {
    /// Classes by the label of each sample: numbers from 0, of which each up to the greatest must occur.
    ///
    /// # Errors
    /// A class without samples, by its number; 2^32 samples and more; a budget without room.
    pub fn labelled(labels: &[u32], budget: &Budget) -> Result<Self> {
        if labels.len() >= u32::MAX as usize {
            return Err(Error::Config(format!("{} labels are too many: fewer than 2^32", labels.len())));
        }
        let classes = labels.iter().max().map_or(0, |&most| most as usize + 1);
        if classes > labels.len() {
            return Err(empty(labels, classes));
        }
        let memory = reserve(budget, 4 * labels.len() as u64 + 16 * classes as u64, "the lists of classes")?;
        let mut starts = vec![0u64; classes + 1];
        labels.iter().for_each(|&label| starts[label as usize + 1] += 1);
        if starts[1..].contains(&0) {
            return Err(empty(labels, classes));
        }
        (0..classes).for_each(|class| starts[class + 1] += starts[class]);
        let (mut next, mut ids) = (starts.clone(), vec![0u32; labels.len()]);
        let mut print = 0;
        for (id, &label) in (0..).zip(labels) {
            ids[next[label as usize] as usize] = id;
            next[label as usize] += 1;
            print = mix(print ^ u64::from(label));
        }
        Ok(Self { starts, ids: Some(ids.into()), print, memory: Some(memory) })
    }

    /// Classes that are ranges of ids, of these lengths: sources one after another.
    ///
    /// # Errors
    /// A source without samples, by its number.
    pub fn ranges(lengths: &[u64]) -> Result<Self> {
        if let Some(source) = lengths.iter().position(|&len| len == 0) {
            return Err(Error::Config(format!("source {source} of the mixture has no samples")));
        }
        let ends = lengths.iter().scan(0, |at, len| {
            *at += len;
            Some(*at)
        });
        let starts: Vec<u64> = std::iter::once(0).chain(ends).collect();
        let print = starts.iter().fold(1, |print, start| mix(print ^ start));
        Ok(Self { starts, ids: None, print, memory: None })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// How many members each has.
    #[must_use]
    pub fn sizes(&self) -> Vec<u64> {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn id(&self, class: usize, member: u64) -> u64 {
        let place = self.starts[class] + member;
        self.ids.as_ref().map_or(place, |ids| u64::from(ids[place as usize]))
    }

    /// What permutations of small classes take, while two epochs are planned.
    fn listed_bytes(&self) -> u64 {
        8 * self.sizes().into_iter().filter(|&n| n < LISTED_BELOW).sum::<u64>()
    }
}

fn empty(labels: &[u32], classes: usize) -> Error {
    let missing = (0..classes as u32).find(|class| !labels.contains(class)).unwrap_or(0);
    Error::Config(format!(
        "class {missing} of 0 to {} has no samples: number the classes without gaps, as numpy.unique(labels, return_inverse=True) does",
        classes.saturating_sub(1)
    ))
}

/// What an epoch has of each class.
#[derive(Debug, Clone, PartialEq)]
pub enum Shares {
    /// All of each, once.
    Stratified,
    /// As many of each as the largest class has.
    Oversampled,
    /// As many of each as the smallest class has.
    Undersampled,
    /// By the effective number of samples (1 − βⁿ) / (1 − β) (Cui et al., «Class-balanced loss», 2019), so many positions in all.
    Effective {
        /// Near 0 all as they are, near 1 all alike.
        beta: f64,
        /// Positions.
        positions: u64,
    },
    /// In these proportions, until the first class has come once, until all have, or so many positions.
    Proportions {
        /// One a class, of any sum.
        of: Vec<f64>,
        /// When an epoch ends.
        until: Until,
    },
}

/// When an epoch of a mixture ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When the first class has come once.
    First,
    /// When all have.
    All,
    /// After so many positions.
    Positions(u64),
}

impl Shares {
    /// Positions of each class in an epoch.
    fn quotas(&self, sizes: &[u64]) -> Result<Vec<u64>> {
        let (least, most) =
            (sizes.iter().min().copied().unwrap_or(0), sizes.iter().max().copied().unwrap_or(0));
        Ok(match self {
            Self::Stratified => sizes.to_vec(),
            Self::Oversampled => vec![most; sizes.len()],
            Self::Undersampled => vec![least; sizes.len()],
            Self::Effective { beta, positions } => {
                if !(0.0..1.0).contains(beta) {
                    return Err(Error::Config(format!("beta is {beta}: it must be at least 0 and below 1")));
                }
                // A sample of a class of n weighs 1 / E(n), so a class n / E(n).
                let weight = |&n: &u64| n as f64 * (1.0 - beta) / -(n as f64 * beta.ln()).exp_m1();
                apportioned(&sizes.iter().map(weight).collect::<Vec<_>>(), *positions)
            }
            Self::Proportions { of, until } => {
                let wrong = of.iter().position(|p| !(*p >= 0.0 && p.is_finite()));
                if let Some(class) = wrong {
                    let p = of[class];
                    return Err(Error::Config(format!(
                        "proportion {class} is {p}: give finite numbers that are not negative"
                    )));
                }
                if of.len() != sizes.len() || of.iter().sum::<f64>() <= 0.0 {
                    let (given, all) = (of.len(), sizes.len());
                    return Err(Error::Config(format!(
                        "{given} proportions for {all} classes or sources: one each, and not all zero"
                    )));
                }
                let sum: f64 = of.iter().sum();
                let once = of.iter().zip(sizes).filter(|(p, _)| **p > 0.0).map(|(p, n)| *n as f64 * sum / p);
                let positions = match until {
                    Until::First => once.fold(f64::INFINITY, f64::min).floor() as u64,
                    Until::All => once.fold(0.0, f64::max).ceil() as u64,
                    Until::Positions(positions) => *positions,
                };
                apportioned(of, positions)
            }
        })
    }
}

/// Whole parts of `positions` in proportion to the weights: by largest remainders, of equal ones the first.
fn apportioned(weights: &[f64], positions: u64) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|w| w / sum * positions as f64).collect();
    let mut parts: Vec<u64> = exact.iter().map(|x| x.floor() as u64).collect();
    let mut by: Vec<usize> = (0..weights.len()).filter(|&class| weights[class] > 0.0).collect();
    by.sort_by(|&a, &b| (exact[b].fract()).total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let missing = positions.saturating_sub(parts.iter().sum());
    by.iter().cycle().take(missing as usize).for_each(|&class| parts[class] += 1);
    parts
}

/// See the head of this file.
///
/// ```
/// use tidegate_core::memory::Budget;
/// use tidegate_data::order::{Order, quotas::{Classes, Quotas, Shares}};
/// let budget = Budget::new(1 << 20);
/// let classes = Classes::labelled(&[0, 0, 0, 0, 0, 0, 1, 1], &budget)?;
/// let order = Quotas::new(classes, &Shares::Stratified, 4, 1, 0, &budget)?;
/// let epoch = order.epoch(0)?;
/// let ones = |block: u64| (4 * block..4 * block + 4).filter(|&p| epoch.id(p).is_ok_and(|id| id >= 6)).count();
/// assert_eq!((ones(0), ones(1)), (1, 1));
/// # Ok::<(), tidegate_data::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Quotas {
    classes: Arc<Classes>,
    quotas: Arc<[u64]>,
    block: u64,
    positions: u64,
    runs: u64,
    seed: u64,
    listed: Arc<Grant>,
}

impl Quotas {
    /// Shares of classes, exact in every `block` positions, over samples that lie in so many `runs`.
    ///
    /// # Errors
    /// Shares that cannot be met, by what is wrong with them; an empty block or one past 2^16; a budget without room.
    pub fn new(
        classes: Classes,
        shares: &Shares,
        block: u64,
        runs: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        if block == 0 || block > LISTED_BELOW {
            return Err(Error::Config(format!(
                "a block of {block} positions: give between 1 and {LISTED_BELOW}"
            )));
        }
        let quotas = shares.quotas(&classes.sizes())?;
        let positions = quotas.iter().sum();
        if positions > 1 << 50 {
            return Err(Error::Config(format!("an epoch of {positions} positions: at most 2^50")));
        }
        let listed = reserve(budget, classes.listed_bytes() + 32 * block, "the permutations of classes")?;
        Ok(Self {
            classes: Arc::new(classes),
            quotas: quotas.into(),
            block,
            positions,
            runs,
            seed,
            listed: Arc::new(listed),
        })
    }

    /// Positions of each class in an epoch.
    #[must_use]
    pub fn quotas(&self) -> &[u64] {
        &self.quotas
    }
}

impl Order for Quotas {
    drawn!();

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let passes = vec![None; self.classes.count()];
        let blocks = Mutex::new(Blocks { at: None, after: Vec::new(), ids: Vec::new(), passes });
        Ok(Arc::new(QuotasEpoch { order: self.clone(), epoch, blocks }))
    }

    fn held_bytes(&self) -> u64 {
        self.listed.bytes() + self.classes.memory.as_ref().map_or(0, Grant::bytes)
    }

    fn print(&self, _: u64) -> Option<u64> {
        let quotas = self.quotas.iter().fold(self.classes.print, |print, &quota| mix(print ^ quota));
        Some(mix(quotas ^ self.seed ^ self.block.rotate_left(32)))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct QuotasEpoch {
    order: Quotas,
    epoch: u64,
    blocks: Mutex<Blocks>,
}

/// The block that was asked for last, and the permutations that its classes are in.
#[derive(Debug)]
struct Blocks {
    at: Option<u64>,
    /// What each class has until its end.
    after: Vec<u64>,
    ids: Vec<u64>,
    passes: Vec<Option<(u64, Permutation)>>,
}

impl QuotasEpoch {
    /// How many of the first `position` positions each class has.
    fn counts(&self, position: u64) -> Vec<u64> {
        let quotas = &self.order.quotas;
        let total = |at: f64| quotas.iter().map(|&quota| until(quota, at)).sum::<u64>();
        // A class is off its share by one sample at most.
        let (all, slack) = (self.order.positions as f64, quotas.len() as f64 + 1.0);
        let (mut low, mut high) = ((position as f64 - slack) / all, (position as f64 + slack) / all);
        let (mut below, mut above) = (total(low), total(high));
        // Until few are left between the two: as many as there are classes may have the same time.
        while above - below > quotas.len() as u64 + 32 {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            let come = total(middle);
            if come < position { (low, below) = (middle, come) } else { (high, above) = (middle, come) }
        }
        let mut counts: Vec<u64> = quotas.iter().map(|&quota| until(quota, low)).collect();
        let missing = position.saturating_sub(counts.iter().sum()) as usize;
        let mut between: Vec<(f64, usize)> = Vec::new();
        for (class, &quota) in quotas.iter().enumerate() {
            between.extend((counts[class]..until(quota, high)).map(|nth| (time(quota, nth), class)));
        }
        between.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        between.iter().take(missing).for_each(|&(_, class)| counts[class] += 1);
        counts
    }

    fn make(&self, block: u64, blocks: &mut Blocks) {
        let Quotas { classes, quotas, block: size, positions, seed, .. } = &self.order;
        let (first, end) = (block * size, ((block + 1) * size).min(*positions));
        let before = match &blocks.at {
            Some(at) if at + 1 == block => std::mem::take(&mut blocks.after),
            _ => self.counts(first),
        };
        let after = self.counts(end);
        let mut members = Vec::with_capacity((end - first) as usize);
        for class in 0..classes.count() {
            let n = classes.starts[class + 1] - classes.starts[class];
            for nth in before[class]..after[class] {
                let nth = self.epoch * quotas[class] + nth;
                let pass = nth / n;
                let permutation = match &mut blocks.passes[class] {
                    Some((of, permutation)) if *of == pass => permutation,
                    other => {
                        // A lane for each class, beside that of blocks.
                        let made = Permutation::new(n, *seed, pass, CLASS_LANE | class as u64);
                        &mut other.insert((pass, made)).1
                    }
                };
                members.push(classes.id(class, permutation.apply(nth % n)));
            }
        }
        let shuffled = Permutation::new(members.len() as u64, *seed, self.epoch, block);
        blocks.ids.clear();
        blocks.ids.extend((0..members.len() as u64).map(|place| members[shuffled.apply(place) as usize]));
        (blocks.at, blocks.after) = (Some(block), after);
    }
}

/// When the `nth` sample of a class comes that has so many: a fraction of the epoch.
fn time(quota: u64, nth: u64) -> f64 {
    (2 * nth + 1) as f64 / (2 * quota) as f64
}

/// How many of a class have come by a time, exactly as [`time`] tells.
fn until(quota: u64, at: f64) -> u64 {
    let exact = at * quota as f64 + 0.5;
    let mut count = (exact.max(0.0) as u64).min(quota);
    // Unless it is so near to a whole number that rounding may decide.
    let (near, off) = (exact.abs() * 1e-15, exact - exact.floor());
    if off > near && off < 1.0 - near {
        return count;
    }
    while count < quota && time(quota, count) <= at {
        count += 1;
    }
    while count > 0 && time(quota, count - 1) > at {
        count -= 1;
    }
    count
}

/// Lanes of permutations: of blocks below, of classes above.
const CLASS_LANE: u64 = 1 << 63;

impl Epoch for QuotasEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let block = position / self.order.block;
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.at != Some(block) {
            self.make(block, &mut blocks);
        }
        Ok(blocks.ids[(position % self.order.block) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(order: &Quotas, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch).unwrap();
        (0..order.len()).map(|p| epoch.id(p).unwrap()).collect()
    }

    proptest! {
        /// Each id once; of each block a class has its share within one sample, and exactly where it is whole.
        #[test]
        fn stratified_orders_are_exact(labels in prop::collection::vec(0u32..6, 1..400), block in 1u64..50, seed: u64) {
            let mut known: Vec<u32> = labels.clone();
            known.sort_unstable();
            known.dedup();
            let labels: Vec<u32> = labels.iter().map(|l| known.binary_search(l).unwrap() as u32).collect();
            let budget = Budget::new(1 << 20);
            let order = Quotas::new(Classes::labelled(&labels, &budget).unwrap(), &Shares::Stratified, block, 1, seed, &budget).unwrap();
            let (epoch, n) = (ids(&order, 2), labels.len() as u64);
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            for class in 0..known.len() as u32 {
                let size = labels.iter().filter(|&&l| l == class).count() as u64;
                let mut before = 0;
                for part in epoch.chunks(block as usize) {
                    let came = part.iter().filter(|&&id| labels[id as usize] == class).count() as u64;
                    let share = part.len() as f64 * size as f64 / n as f64;
                    prop_assert!((came as f64 - share).abs() < 2.0, "{came} of {share}");
                    before += came;
                }
                prop_assert_eq!(before, size);
            }
        }

        /// The oracle sorts the times of all samples.
        #[test]
        fn counts_are_those_of_sorted_times(quotas in prop::collection::vec(0u64..40, 1..60)) {
            let positions: u64 = quotas.iter().sum();
            prop_assume!(positions > 0);
            let sizes: Vec<u64> = quotas.iter().map(|_| 7).collect();
            let shares = Shares::Proportions { of: quotas.iter().map(|&q| q as f64).collect(), until: Until::Positions(positions) };
            let order = Quotas::new(Classes::ranges(&sizes).unwrap(), &shares, 16, 1, 0, &Budget::new(1 << 20)).unwrap();
            prop_assert_eq!(order.quotas(), &quotas[..]);
            let mut times: Vec<(f64, usize)> = Vec::new();
            for (class, &m) in quotas.iter().enumerate() {
                times.extend((0..m).map(|j| (time(m, j), class)));
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let epoch = |order: Quotas| QuotasEpoch {
                order,
                epoch: 0,
                blocks: Mutex::new(Blocks { at: None, after: vec![], ids: vec![], passes: vec![] }),
            };
            let epoch = epoch(order);
            for position in 0..=positions as usize {
                let mut expected = vec![0u64; quotas.len()];
                times[..position].iter().for_each(|t| expected[t.1] += 1);
                prop_assert_eq!(epoch.counts(position as u64), expected);
            }
        }
    }

    #[test]
    fn balanced_classes_come_equally_often() {
        let budget = Budget::new(1 << 20);
        let labels: Vec<u32> = (0..1000).map(|i| u32::from(i % 10 == 0) + u32::from(i % 100 == 0)).collect();
        let order = |shares: &Shares| {
            Quotas::new(Classes::labelled(&labels, &budget).unwrap(), shares, 30, 1, 7, &budget).unwrap()
        };
        let over = order(&Shares::Oversampled);
        assert_eq!(over.quotas(), [900, 900, 900]);
        for part in ids(&over, 0).chunks(30) {
            let of = |class| part.iter().filter(|&&id| labels[id as usize] == class).count();
            assert_eq!([of(0), of(1), of(2)], [10, 10, 10]);
        }
        // Of the smallest class each sample comes 90 times, and no other number.
        let mut counts = vec![0; 1000];
        ids(&over, 0).iter().for_each(|&id| counts[id as usize] += 1);
        assert!((0..1000).filter(|i| labels[*i] == 2).all(|i| counts[i] == 90));
        assert!((0..1000).filter(|i| labels[*i] == 0).all(|i| counts[i] == 1));
        // Undersampled ones take turns: 90 epochs go through the largest class once.
        let under = order(&Shares::Undersampled);
        assert_eq!(under.quotas(), [10, 10, 10]);
        let mut seen: Vec<u64> =
            (0..90).flat_map(|epoch| ids(&under, epoch)).filter(|&id| labels[id as usize] == 0).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 900);
        let near_none = order(&Shares::Effective { beta: 0.0, positions: 1000 });
        assert_eq!(near_none.quotas(), [900, 90, 10]);
        let strong = order(&Shares::Effective { beta: 0.9999, positions: 1000 });
        assert!(strong.quotas().iter().all(|&quota| (300..370).contains(&quota)), "{:?}", strong.quotas());
        assert_eq!(order(&Shares::Stratified).held_bytes(), 4 * 1000 + 16 * 3 + 8 * 1000 + 32 * 30);
    }

    #[test]
    fn mixtures_end_as_they_are_told() {
        let budget = Budget::new(1 << 20);
        let order = |until| {
            let classes = Classes::ranges(&[600, 10_000_000_000]).unwrap();
            let shares = Shares::Proportions { of: vec![3.0, 1.0], until };
            Quotas::new(classes, &shares, 8, 2, 0, &budget).unwrap()
        };
        let first = order(Until::First);
        assert_eq!((first.quotas(), order(Until::All).len()), (&[600, 200][..], 40_000_000_000));
        let epoch = ids(&first, 0);
        assert!(epoch.chunks(8).all(|part| part.iter().filter(|&&id| id < 600).count() == 6));
        let mut of_first: Vec<u64> = epoch.iter().copied().filter(|&id| id < 600).collect();
        of_first.sort_unstable();
        assert_eq!(of_first, (0..600).collect::<Vec<_>>());
        // The second source goes on where it was.
        let second = |epoch| {
            ids(&first, epoch).into_iter().filter(|&id| id >= 600).collect::<std::collections::BTreeSet<_>>()
        };
        assert!(second(0).is_disjoint(&second(1)));
        // Far into an epoch that no list could hold.
        assert!(order(Until::All).epoch(3).unwrap().id(39_999_999_999).unwrap() < 10_000_000_600);
    }

    #[test]
    fn refuses_what_cannot_be_met() {
        let budget = Budget::new(1 << 20);
        let error = Classes::labelled(&[0, 2, 2], &budget).unwrap_err().to_string();
        assert!(error.contains("class 1 of 0 to 2 has no samples"), "{error}");
        assert!(Classes::labelled(&[4_000_000_000], &budget).unwrap_err().to_string().contains("class 0 of"));
        assert!(Classes::ranges(&[3, 0]).unwrap_err().to_string().contains("source 1"));
        let with = |shares: Shares, block| {
            let classes = Classes::labelled(&[0, 1], &budget).unwrap();
            Quotas::new(classes, &shares, block, 1, 0, &budget).map_err(|e| e.to_string())
        };
        let proportions = |of: &[f64]| Shares::Proportions { of: of.to_vec(), until: Until::First };
        for (shares, says) in [
            (proportions(&[1.0]), "1 proportions for 2"),
            (proportions(&[0.0, 0.0]), "not all zero"),
            (proportions(&[1.0, -1.0]), "proportion 1 is -1"),
            (proportions(&[f64::NAN, 1.0]), "proportion 0 is NaN"),
            (Shares::Effective { beta: 1.0, positions: 5 }, "beta is 1"),
        ] {
            assert!(with(shares, 4).unwrap_err().contains(says), "{says}");
        }
        assert!(with(Shares::Stratified, 0).unwrap_err().contains("block of 0"));
    }
}
