//! Orders that give each class, or each source, its exact share of every block of positions.
//!
//! Flow: the members of classes, and [`Shares`] of an epoch -> blocks with exact quotas -> the id
//! at a position. Stratified and class-balanced orders and mixtures of sources are of this kind.
//! Memory: 4 bytes a sample for the lists of members (none if classes are ranges of ids), and for
//! each class of more than one sample two permutations, 8 bytes a sample below 2^16 samples
//! (account `index`), reserved before they are made.
//!
//! The classes, in an order that is drawn for the epoch, are the leaves of a binary tree. Of the
//! first n positions of a node, the smaller side has its share of n. Each of its units is at a
//! random position within the first half of the unit's share, which rounds the share up or down;
//! the larger side has the rest. So sums are exact at any position, a class has its exact share
//! where all shares are integers, and is off by little elsewhere. Which classes are in a batch
//! differs from batch to batch and from epoch to epoch. Within a block the order is shuffled.
//!
//! A class is read by one permutation after another, across epochs. So oversampled samples are
//! equally frequent, and undersampled ones take turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tidegate_core::hash::{GOLDEN, splitmix64_finalize};
use tidegate_core::memory::{Budget, Grant};
use tidegate_core::sync::lock;

use crate::draw::DrawKey;
use crate::error::{Error, Result};
use crate::memory::reserve;
use crate::permutation::{LISTED_BELOW, Permutation};
use crate::traits::{Epoch, Lookahead, Order};

/// The samples of each class.
#[derive(Debug)]
pub struct Classes {
    /// The index of each class's first member, and the number of samples.
    starts: Vec<u64>,
    /// The members, class by class; `None` if classes are ranges of ids.
    ids: Option<Box<[u32]>>,
    digest: u64,
    memory: Option<Grant>,
}

impl Classes {
    /// Classes by the label of each sample: numbers from 0 without gaps.
    ///
    /// # Errors
    /// [`Error::Config`] for a class without samples, with its number, and for 2^32 samples and
    /// more. [`Error::Budget`] when the lists do not fit.
    pub fn from_labels(labels: &[u32], budget: &Budget) -> Result<Self> {
        if labels.len() >= u32::MAX as usize {
            return Err(Error::Config(format!("{} labels are too many: fewer than 2^32", labels.len())));
        }
        let classes = labels.iter().max().map_or(0, |&most| most as usize + 1);
        if classes > labels.len() {
            return Err(missing_class(labels, classes));
        }
        let memory = reserve(budget, 4 * labels.len() as u64 + 16 * classes as u64, "the lists of classes")?;
        let mut starts = vec![0u64; classes + 1];
        labels.iter().for_each(|&label| starts[label as usize + 1] += 1);
        if starts[1..].contains(&0) {
            return Err(missing_class(labels, classes));
        }
        (0..classes).for_each(|class| starts[class + 1] += starts[class]);
        let (mut next, mut ids) = (starts.clone(), vec![0u32; labels.len()]);
        let mut digest = 0;
        for (id, &label) in (0..).zip(labels) {
            ids[next[label as usize] as usize] = id;
            next[label as usize] += 1;
            digest = splitmix64_finalize(digest ^ u64::from(label));
        }
        Ok(Self { starts, ids: Some(ids.into()), digest, memory: Some(memory) })
    }

    /// Classes that are ranges of ids with these lengths, such as sources one after another.
    ///
    /// # Errors
    /// [`Error::Config`] for a source without samples, with its number.
    pub fn from_lengths(lengths: &[u64]) -> Result<Self> {
        if lengths.iter().try_fold(0u64, |sum, &len| sum.checked_add(len)).is_none() {
            return Err(Error::Config("the sources of the mixture have more than 2^64 samples".into()));
        }
        if let Some(source) = lengths.iter().position(|&len| len == 0) {
            return Err(Error::Config(format!("source {source} of the mixture has no samples")));
        }
        let ends = lengths.iter().scan(0, |at, len| {
            *at += len;
            Some(*at)
        });
        let starts: Vec<u64> = std::iter::once(0).chain(ends).collect();
        let digest = starts.iter().fold(1, |digest, start| splitmix64_finalize(digest ^ start));
        Ok(Self { starts, ids: None, digest, memory: None })
    }

    /// The number of classes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// The number of samples of each class.
    #[must_use]
    pub fn sizes(&self) -> Vec<u64> {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn id(&self, class: usize, member: u64) -> u64 {
        let index = self.starts[class] + member;
        self.ids.as_ref().map_or(index, |ids| u64::from(ids[index as usize]))
    }

    /// Bytes of the permutations of classes and of the tree, while two epochs are planned.
    fn epochs_bytes(&self) -> u64 {
        let permutation = |n: u64| match n {
            0 | 1 => 0,
            _ => PASS_BYTES + if n < LISTED_BELOW { 8 * n } else { 0 },
        };
        self.sizes().into_iter().map(|n| 64 + permutation(n)).sum()
    }
}

fn missing_class(labels: &[u32], classes: usize) -> Error {
    let missing = (0..classes as u32).find(|class| !labels.contains(class)).unwrap_or(0);
    Error::Config(format!(
        "class {missing} of 0 to {} has no samples: number the classes without gaps, as numpy.unique(labels, return_inverse=True) does",
        classes.saturating_sub(1)
    ))
}

/// How many positions of an epoch each class has.
#[derive(Debug, Clone, PartialEq)]
pub enum Shares {
    /// As many as it has samples: every sample once.
    Natural,
    /// As many as the largest class has samples.
    Oversampled,
    /// As many as the smallest class has samples.
    Undersampled,
    /// By the effective number of samples, (1 − βⁿ) / (1 − β) for a class of n (Cui et al.,
    /// «Class-balanced loss based on effective number of samples», 2019).
    Effective {
        /// From 0, which keeps the shares of the data, to below 1, which makes them equal.
        beta: f64,
        /// Positions in an epoch.
        positions: u64,
    },
    /// In these proportions.
    Proportions {
        /// One a class, of any sum.
        weights: Vec<f64>,
        /// When an epoch ends.
        until: Until,
    },
}

/// When an epoch of a mixture ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When the first class has been given once.
    First,
    /// When all classes have been given once.
    All,
    /// After this many positions.
    Positions(u64),
}

impl Shares {
    /// Positions of each class in an epoch.
    fn quotas(&self, sizes: &[u64]) -> Result<Vec<u64>> {
        let (least, most) =
            (sizes.iter().min().copied().unwrap_or(0), sizes.iter().max().copied().unwrap_or(0));
        Ok(match self {
            Self::Natural => sizes.to_vec(),
            Self::Oversampled => vec![most; sizes.len()],
            Self::Undersampled => vec![least; sizes.len()],
            Self::Effective { beta, positions } => {
                if !(0.0..1.0).contains(beta) {
                    return Err(Error::Config(format!("beta is {beta}: it must be at least 0 and below 1")));
                }
                // A sample of a class of n weighs 1 / E(n), so the class weighs n / E(n).
                let weight = |&n: &u64| n as f64 * (1.0 - beta) / -(n as f64 * beta.ln()).exp_m1();
                largest_remainders(
                    &sizes.iter().map(weight).collect::<Vec<_>>(),
                    check_positions(*positions)?,
                )
            }
            Self::Proportions { weights, until } => {
                let wrong = weights.iter().position(|p| !(*p >= 0.0 && p.is_finite()));
                if let Some(class) = wrong {
                    let p = weights[class];
                    return Err(Error::Config(format!(
                        "proportion {class} is {p}: give finite numbers that are not negative"
                    )));
                }
                let sum: f64 = weights.iter().sum();
                if weights.len() != sizes.len() || sum <= 0.0 {
                    let (given, all) = (weights.len(), sizes.len());
                    return Err(Error::Config(format!(
                        "{given} proportions for {all} classes or sources: one each, and not all zero"
                    )));
                }
                let positive = weights.iter().zip(sizes).filter(|(p, _)| **p > 0.0);
                // Positions until a class has been given once.
                let once = positive.map(|(p, n)| *n as f64 * sum / p);
                let positions = match until {
                    Until::First => once.fold(f64::INFINITY, f64::min).floor() as u64,
                    Until::All => once.fold(0.0, f64::max).ceil() as u64,
                    Until::Positions(positions) => *positions,
                };
                largest_remainders(weights, check_positions(positions)?)
            }
        })
    }
}

/// Checks that an epoch of `positions` is not too long.
fn check_positions(positions: u64) -> Result<u64> {
    if positions > MAX_POSITIONS {
        return Err(Error::Config(format!("an epoch of {positions} positions: at most 2^50")));
    }
    Ok(positions)
}

/// `positions` divided in proportion to the weights, by the method of largest remainders.
///
/// Of equal remainders the first is rounded up.
fn largest_remainders(weights: &[f64], positions: u64) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|w| w / sum * positions as f64).collect();
    let mut parts: Vec<u64> = exact.iter().map(|x| x.floor() as u64).collect();
    let mut by: Vec<usize> = (0..weights.len()).filter(|&class| weights[class] > 0.0).collect();
    by.sort_by(|&a, &b| (exact[b].fract()).total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let missing = positions.saturating_sub(parts.iter().sum());
    by.iter().cycle().take(missing as usize).for_each(|&class| parts[class] += 1);
    parts
}

/// Bytes of a class's permutation apart from its list, and of its entry in a table, for two
/// epochs.
const PASS_BYTES: u64 = 512;
/// The longest epoch.
const MAX_POSITIONS: u64 = 1 << 50;

/// An order with exact shares; see the head of this file.
///
/// ```
/// use tidegate_core::memory::Budget;
/// use tidegate_order::{Order, stratified::{Classes, Shares, Stratified}};
/// let budget = Budget::new(1 << 20);
/// let classes = Classes::from_labels(&[0, 0, 0, 0, 0, 0, 1, 1], &budget)?;
/// let order = Stratified::new(classes, &Shares::Natural, 4, 1, 0, &budget)?;
/// let epoch = order.epoch(0)?;
/// let is_one = |&position: &u64| epoch.id(position).is_ok_and(|id| id >= 6);
/// let ones = |block: u64| (4 * block..4 * block + 4).filter(is_one).count();
/// assert_eq!((ones(0), ones(1)), (1, 1));
/// # Ok::<(), tidegate_order::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Stratified {
    classes: Arc<Classes>,
    quotas: Arc<[u64]>,
    block: u64,
    positions: u64,
    runs: u64,
    seed: u64,
    /// The memory of the permutations of classes.
    memory: Arc<Grant>,
}

impl Stratified {
    /// An order in which classes have exact `shares` of every `block` positions, over samples that
    /// are stored in `runs` runs.
    ///
    /// # Errors
    /// [`Error::Config`] for shares that are not valid, and for a block that is not between 1 and
    /// 2^16. [`Error::Budget`] when the permutations do not fit.
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
        let positions = quotas.iter().fold(0u64, |sum, &quota| sum.saturating_add(quota));
        check_positions(positions)?;
        let memory = reserve(budget, classes.epochs_bytes() + 32 * block, "the permutations of classes")?;
        Ok(Self {
            classes: Arc::new(classes),
            quotas: quotas.into(),
            block,
            positions,
            runs,
            seed,
            memory: Arc::new(memory),
        })
    }

    /// Positions of each class in an epoch.
    #[must_use]
    pub fn quotas(&self) -> &[u64] {
        &self.quotas
    }
}

impl Order for Stratified {
    fn len(&self) -> u64 {
        self.positions
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        self.runs
    }

    fn lookahead(&self) -> Lookahead {
        Lookahead::Listed
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let blocks = Mutex::new(Blocks::default());
        Ok(Arc::new(StratifiedEpoch {
            tree: Tree::new(&self.quotas, self.seed, epoch),
            order: self.clone(),
            epoch,
            blocks,
        }))
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes() + self.classes.memory.as_ref().map_or(0, Grant::bytes)
    }

    fn digest(&self, _: u64) -> Option<u64> {
        let mix = |digest, &quota: &u64| splitmix64_finalize(digest ^ quota);
        let quotas = self.quotas.iter().fold(self.classes.digest, mix);
        Some(splitmix64_finalize(quotas ^ self.seed ^ self.block.rotate_left(32)))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

/// The division of positions among classes; see the head of this file.
#[derive(Debug)]
struct Tree {
    /// The class of each leaf.
    classes: Vec<u32>,
    /// The quotas of all leaves before each leaf, and of all leaves.
    before: Vec<u64>,
    key: u64,
}

impl Tree {
    fn new(quotas: &[u64], seed: u64, epoch: u64) -> Self {
        let order = Permutation::new(quotas.len() as u64, seed, epoch, TREE_LANE);
        let classes: Vec<u32> = (0..quotas.len() as u64).map(|leaf| order.apply(leaf) as u32).collect();
        let mut before = vec![0];
        let mut sum = 0;
        before.extend(classes.iter().map(|&class| {
            sum += quotas[class as usize];
            sum
        }));
        Self { classes, before, key: DrawKey::new(seed, epoch, TREE_LANE).word(0) }
    }

    /// How many of the first `position` positions each class has.
    fn counts(&self, position: u64) -> Vec<u64> {
        let mut counts = vec![0; self.classes.len()];
        let mut nodes = vec![(0, self.classes.len(), position)];
        while let Some((from, to, n)) = nodes.pop() {
            if n == 0 || from == to {
                continue;
            }
            if to - from == 1 {
                counts[self.classes[from] as usize] = n;
                continue;
            }
            let middle = from + (to - from) / 2;
            let (left, all) = (self.before[middle] - self.before[from], self.before[to] - self.before[from]);
            let key = splitmix64_finalize(self.key ^ splitmix64_finalize((from as u64) << 32 | to as u64));
            let left_count = match 2 * left <= all {
                true => smaller_side_count(n, left, all, key),
                false => n - smaller_side_count(n, all - left, all, key),
            };
            nodes.push((from, middle, left_count));
            nodes.push((middle, to, n - left_count));
        }
        counts
    }
}

/// How many of the first `n` of `all` positions the smaller side has, which has `smaller` of all.
///
/// Unit j is at a random point between j and j + 1/2 shares, so two units are never at one
/// position.
fn smaller_side_count(n: u64, smaller: u64, all: u64, key: u64) -> u64 {
    let whole = (u128::from(n) * u128::from(smaller) / u128::from(all)) as u64;
    if whole == smaller {
        return whole;
    }
    let drawn = splitmix64_finalize(key.wrapping_add(whole.wrapping_mul(GOLDEN))) >> 33;
    let unit = u128::from(whole) << 32 | u128::from(drawn);
    let at = (unit * u128::from(all) / u128::from(smaller)) >> 32;
    whole + u64::from(at < u128::from(n))
}

#[derive(Debug)]
struct StratifiedEpoch {
    order: Stratified,
    tree: Tree,
    epoch: u64,
    blocks: Mutex<Blocks>,
}

/// The block that was asked for last, and the current permutation of each class.
#[derive(Debug, Default)]
struct Blocks {
    at: Option<u64>,
    /// How many positions each class has up to the end of the block.
    after: Vec<u64>,
    ids: Vec<u64>,
    /// For each class, how often it has been read in full, and its permutation.
    passes: HashMap<usize, (u64, Permutation)>,
}

impl StratifiedEpoch {
    fn make(&self, block: u64, blocks: &mut Blocks) {
        let Stratified { classes, quotas, block: size, positions, seed, .. } = &self.order;
        let (first, end) = (block * size, ((block + 1) * size).min(*positions));
        let before = match &blocks.at {
            Some(at) if at + 1 == block => std::mem::take(&mut blocks.after),
            _ => self.tree.counts(first),
        };
        let after = self.tree.counts(end);
        let mut members = Vec::with_capacity((end - first) as usize);
        for class in 0..classes.count() {
            let n = classes.starts[class + 1] - classes.starts[class];
            for nth in before[class]..after[class] {
                let nth = self.epoch * quotas[class] + nth;
                let pass = nth / n;
                let member = match n {
                    1 => 0,
                    _ => {
                        let made = || (pass, Permutation::new(n, *seed, pass, CLASS_LANE | class as u64));
                        let current = blocks.passes.entry(class).or_insert_with(made);
                        if current.0 != pass {
                            *current = made();
                        }
                        current.1.apply(nth % n)
                    }
                };
                members.push(classes.id(class, member));
            }
        }
        let shuffled = Permutation::new(members.len() as u64, *seed, self.epoch, block);
        blocks.ids.clear();
        blocks.ids.extend((0..members.len() as u64).map(|at| members[shuffled.apply(at) as usize]));
        (blocks.at, blocks.after) = (Some(block), after);
    }
}

/// The first lane of the permutations of classes. Blocks use the lanes from 0 on.
const CLASS_LANE: u64 = 1 << 63;
/// The lane of the tree.
const TREE_LANE: u64 = 1 << 62;

impl Epoch for StratifiedEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let block = position / self.order.block;
        let mut blocks = lock(&self.blocks);
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

    fn ids(order: &Stratified, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch).unwrap();
        (0..order.len()).map(|p| epoch.id(p).unwrap()).collect()
    }

    proptest! {
        /// Each id once, and each class has its share of each block within less than three
        /// samples.
        #[test]
        fn stratified_orders_are_exact(
            labels in prop::collection::vec(0u32..6, 1..400), block in 1u64..50, seed: u64,
        ) {
            let mut known: Vec<u32> = labels.clone();
            known.sort_unstable();
            known.dedup();
            let labels: Vec<u32> = labels.iter().map(|l| known.binary_search(l).unwrap() as u32).collect();
            let budget = Budget::new(1 << 20);
            let classes = Classes::from_labels(&labels, &budget).unwrap();
            let order = Stratified::new(classes, &Shares::Natural, block, 1, seed, &budget).unwrap();
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
                    prop_assert!((came as f64 - share).abs() < 3.0, "{came} of {share}");
                    before += came;
                }
                prop_assert_eq!(before, size);
            }
        }

        /// Prefixes grow by one sample of one class at a time, and stay near the shares of all.
        #[test]
        fn counts_grow_one_by_one(quotas in prop::collection::vec(0u64..40, 1..60), seed: u64) {
            let positions: u64 = quotas.iter().sum();
            let tree = Tree::new(&quotas, seed, 3);
            let mut before = vec![0; quotas.len()];
            for position in 0..=positions {
                let counts = tree.counts(position);
                prop_assert_eq!(counts.iter().sum::<u64>(), position);
                prop_assert!(counts.iter().zip(&before).all(|(now, before)| now >= before));
                for (&count, &quota) in counts.iter().zip(&quotas) {
                    let share = position as f64 * quota as f64 / positions.max(1) as f64;
                    prop_assert!((count as f64 - share).abs() < 2.5, "{count} of {share}");
                }
                before = counts;
            }
            prop_assert_eq!(before, quotas);
        }
    }

    /// A large class among many small ones has its share of every block, and batches differ in
    /// their small classes.
    #[test]
    fn small_classes_are_spread() {
        let budget = Budget::new(1 << 24);
        let labels: Vec<u32> = (0..1000).map(|id| if id < 500 { 0 } else { id - 499 }).collect();
        let order = Stratified::new(
            Classes::from_labels(&labels, &budget).unwrap(),
            &Shares::Natural,
            20,
            1,
            1,
            &budget,
        )
        .unwrap();
        let first = ids(&order, 0);
        for part in first.chunks(20) {
            let large = part.iter().filter(|&&id| id < 500).count();
            assert!((8..=12).contains(&large), "{large}");
        }
        let second = ids(&order, 1);
        let singles = |epoch: &[u64]| {
            epoch[..20].iter().copied().filter(|&id| id >= 500).collect::<std::collections::BTreeSet<_>>()
        };
        assert_ne!(singles(&first), singles(&second));

        let labels: Vec<u32> = (0..1000).map(|id| id / 10).collect();
        let order = Stratified::new(
            Classes::from_labels(&labels, &budget).unwrap(),
            &Shares::Natural,
            20,
            1,
            1,
            &budget,
        )
        .unwrap();
        let sets: std::collections::BTreeSet<Vec<u32>> = ids(&order, 0)
            .chunks(20)
            .map(|part| {
                let mut classes: Vec<u32> = part.iter().map(|&id| labels[id as usize]).collect();
                classes.sort_unstable();
                classes
            })
            .collect();
        assert!(sets.len() > 40, "{} sets of classes in 50 batches", sets.len());
    }

    #[test]
    fn balanced_classes_are_equally_frequent() {
        let budget = Budget::new(1 << 20);
        let labels: Vec<u32> = (0..1000).map(|i| u32::from(i % 10 == 0) + u32::from(i % 100 == 0)).collect();
        let order = |shares: &Shares| {
            Stratified::new(Classes::from_labels(&labels, &budget).unwrap(), shares, 30, 1, 7, &budget)
                .unwrap()
        };
        let over = order(&Shares::Oversampled);
        assert_eq!(over.quotas(), [900, 900, 900]);
        for part in ids(&over, 0).chunks(30) {
            let of = |class| part.iter().filter(|&&id| labels[id as usize] == class).count();
            assert_eq!([of(0), of(1), of(2)], [10, 10, 10]);
        }
        // Each sample of the smallest class is given 90 times.
        let mut counts = vec![0; 1000];
        ids(&over, 0).iter().for_each(|&id| counts[id as usize] += 1);
        assert!((0..1000).filter(|i| labels[*i] == 2).all(|i| counts[i] == 90));
        assert!((0..1000).filter(|i| labels[*i] == 0).all(|i| counts[i] == 1));
        // Undersampled ones take turns: 90 epochs give the largest class once.
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
        assert_eq!(
            order(&Shares::Natural).held_bytes(),
            4 * 1000 + 16 * 3 + 3 * (64 + 512) + 8 * 1000 + 32 * 30
        );
    }

    #[test]
    fn mixtures_end_as_configured() {
        let budget = Budget::new(1 << 20);
        let order = |until| {
            let classes = Classes::from_lengths(&[600, 10_000_000_000]).unwrap();
            let shares = Shares::Proportions { weights: vec![3.0, 1.0], until };
            Stratified::new(classes, &shares, 8, 2, 0, &budget).unwrap()
        };
        let first = order(Until::First);
        assert_eq!((first.quotas(), order(Until::All).len()), (&[600, 200][..], 40_000_000_000));
        let epoch = ids(&first, 0);
        assert!(epoch.chunks(8).all(|part| part.iter().filter(|&&id| id < 600).count() == 6));
        let mut of_first: Vec<u64> = epoch.iter().copied().filter(|&id| id < 600).collect();
        of_first.sort_unstable();
        assert_eq!(of_first, (0..600).collect::<Vec<_>>());
        // The second source goes on in the next epoch where it stopped.
        let second = |epoch| {
            ids(&first, epoch).into_iter().filter(|&id| id >= 600).collect::<std::collections::BTreeSet<_>>()
        };
        assert!(second(0).is_disjoint(&second(1)));
        // A position far into an epoch that no list could hold.
        assert!(order(Until::All).epoch(3).unwrap().id(39_999_999_999).unwrap() < 10_000_000_600);
    }

    #[test]
    fn refuses_shares_that_cannot_be_met() {
        let budget = Budget::new(1 << 20);
        let error = Classes::from_labels(&[0, 2, 2], &budget).unwrap_err().to_string();
        assert!(error.contains("class 1 of 0 to 2 has no samples"), "{error}");
        assert!(
            Classes::from_labels(&[4_000_000_000], &budget).unwrap_err().to_string().contains("class 0 of")
        );
        assert!(Classes::from_lengths(&[3, 0]).unwrap_err().to_string().contains("source 1"));
        let with = |shares: Shares, block| {
            let classes = Classes::from_labels(&[0, 1], &budget).unwrap();
            Stratified::new(classes, &shares, block, 1, 0, &budget).map_err(|e| e.to_string())
        };
        let proportions = |of: &[f64]| Shares::Proportions { weights: of.to_vec(), until: Until::First };
        for (shares, says) in [
            (proportions(&[1.0]), "1 proportions for 2"),
            (proportions(&[0.0, 0.0]), "not all zero"),
            (proportions(&[1.0, -1.0]), "proportion 1 is -1"),
            (proportions(&[f64::NAN, 1.0]), "proportion 0 is NaN"),
            (Shares::Effective { beta: 1.0, positions: 5 }, "beta is 1"),
            (Shares::Effective { beta: 0.5, positions: u64::MAX }, "at most 2^50"),
            (Shares::Proportions { weights: vec![1.0, 1e-300], until: Until::All }, "at most 2^50"),
        ] {
            assert!(with(shares, 4).unwrap_err().contains(says), "{says}");
        }
        assert!(with(Shares::Natural, 0).unwrap_err().contains("block of 0"));
    }
}
