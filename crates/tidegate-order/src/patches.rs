//! Patches around boxes, each class as often as is wanted: class-balanced draws from a volume, without a look at its labels.
//!
//! Flow: boxes with their classes + the lattice of places -> for a position a class, a box of it, and a place whose patch has the box.
//! Memory: 8 bytes a box and axis, 8 a box for its weight, 4 for its class (account `index`), charged before they are made.
//! Not here: where boxes come from (`source::volume::labels`, the user).
//!
//! Three draws, each of its own words: the class by the weights of classes, the box by the weights within its class, and the place evenly
//! among those whose patch holds the whole box, if it can.

use std::sync::Arc;

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use super::drawn::{Alias, Words, reserve};
use super::{Epoch, Foresight, Order};
use crate::{Error, Result};

/// The places of patches along one axis, in voxels of the array that has the boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lattice {
    /// Where the first patch begins.
    pub first: i64,
    /// From one place to the next.
    pub step: i64,
    /// Places.
    pub count: u64,
    /// From the first place to the last, which may be less than a step from the one before.
    pub room: i64,
    /// Voxels of a patch.
    pub patch: i64,
}

impl Lattice {
    /// Where the patch of a place begins.
    pub fn origin(&self, place: u64) -> i64 {
        self.first + (place.cast_signed() * self.step).min(self.room)
    }

    /// The places whose patch holds a box, or lies in it where the box is larger; else the nearest to either.
    fn around(&self, low: i64, len: i64) -> (u64, u64) {
        let ends = [low, low + len - self.patch];
        let (from, to) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        let last = self.count.cast_signed() - 1;
        let up = |at: i64| -(self.first - at).div_euclid(self.step);
        let min = up(from).clamp(0, last);
        // The last place may be less than a step from the one before.
        let max = match to - self.first {
            at if at >= self.room => last,
            at => at.div_euclid(self.step).clamp(0, (last - 1).max(0)),
        };
        (min.min(max).cast_unsigned(), max.cast_unsigned())
    }
}

/// What a class takes in tables.
const CLASS_BYTES: usize = 256;

/// Boxes of several classes; see the head of this file.
#[derive(Debug)]
pub struct Boxes {
    axes: usize,
    /// (first voxel, voxels) of each box along each axis, in the order of classes.
    spans: Box<[(i32, u32)]>,
    weights: Box<[f32]>,
    /// The class of a box, and where its boxes begin; one more at the end.
    classes: Box<[(i64, usize)]>,
    print: u64,
}

impl Boxes {
    /// Boxes in any order: class, weight, and (first voxel, voxels) along each of so many axes, one after the other.
    ///
    /// # Errors
    /// [`Error::Config`] for boxes without voxels, weights that are none, and where there are no boxes.
    pub fn new(axes: usize, boxes: &[(i64, f32)], spans: &[(i32, u32)]) -> Result<Self> {
        let wrong = |what: String| Err(Error::Config(what));
        if axes == 0 || spans.len() != boxes.len() * axes {
            return wrong(format!("{} spans for {} boxes of {axes} axes", spans.len(), boxes.len()));
        }
        if boxes.is_empty() || boxes.len() >= u32::MAX as usize {
            return wrong(format!("{} boxes: at least one and fewer than 2^32 can be drawn", boxes.len()));
        }
        if let Some(i) = spans.iter().position(|span| span.1 == 0) {
            return wrong(format!("box {} has no voxels along axis {}", i / axes, i % axes));
        }
        if let Some(i) = boxes.iter().position(|(_, weight)| !(*weight > 0.0 && weight.is_finite())) {
            return wrong(format!(
                "the weight of box {i} is {}: weights are finite and positive",
                boxes[i].1
            ));
        }
        let mut order: Vec<u32> = (0..boxes.len() as u32).collect();
        // The same whatever their order was.
        let place = |i: u32| &spans[i as usize * axes..(i as usize + 1) * axes];
        order.sort_by(|&a, &b| (boxes[a as usize].0, place(a)).cmp(&(boxes[b as usize].0, place(b))));
        let mut print = axes as u64;
        let mut classes: Vec<(i64, usize)> = Vec::new();
        let mut sorted = Vec::with_capacity(spans.len());
        let mut weights = Vec::with_capacity(boxes.len());
        for (nth, &i) in order.iter().enumerate() {
            let (class, weight) = boxes[i as usize];
            if classes.last().is_none_or(|(last, _)| *last != class) {
                classes.push((class, nth));
            }
            let own = place(i);
            sorted.extend_from_slice(own);
            weights.push(weight);
            print = splitmix64_finalize(print ^ class.cast_unsigned()).rotate_left(1)
                ^ u64::from(weight.to_bits());
            own.iter().for_each(|&(low, len)| {
                print = splitmix64_finalize(print ^ (u64::from(low.cast_unsigned()) << 32 | u64::from(len)))
            });
        }
        classes.push((0, boxes.len()));
        let (spans, weights, classes) = (sorted.into(), weights.into(), classes.into());
        Ok(Self { axes, spans, weights, classes, print })
    }

    /// What making one takes, with the lists that they are made from; boxes alone take less.
    const fn making_bytes(axes: usize) -> u64 {
        // Lists grow by doubling.
        2 * (16 + 8 * axes as u64) + 8 + 8 * axes as u64
    }

    /// Pays for so many, while they are made.
    ///
    /// # Errors
    /// A budget without room.
    pub fn pay(budget: &Budget, boxes: u64, axes: usize) -> Result<Grant> {
        reserve(budget, boxes.saturating_mul(Self::making_bytes(axes)), "the boxes of labels")
    }

    fn held_bytes(&self) -> u64 {
        (self.len() * (8 * self.axes + 4) + self.classes.len() * CLASS_BYTES) as u64
    }

    /// Boxes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Axes.
    #[must_use]
    pub fn axes(&self) -> usize {
        self.axes
    }

    /// Each class with the number of its boxes and the sum of their weights.
    #[must_use]
    pub fn classes(&self) -> Vec<(i64, usize, f64)> {
        let of = |pair: &[(i64, usize)]| {
            let range = pair[0].1..pair[1].1;
            (pair[0].0, range.len(), self.weights[range].iter().map(|&weight| f64::from(weight)).sum())
        };
        self.classes.windows(2).map(of).collect()
    }

    /// Box number `i` in the order of classes: its class, its weight, and (first voxel, voxels) along each axis.
    #[must_use]
    pub fn get(&self, i: usize) -> (i64, f32, &[(i32, u32)]) {
        let class = self.classes.partition_point(|(_, start)| *start <= i).max(1) - 1;
        (self.classes[class].0, self.weights[i], &self.spans[i * self.axes..(i + 1) * self.axes])
    }
}

/// An order of patches around boxes.
#[derive(Debug, Clone)]
pub struct Patches {
    boxes: Arc<Boxes>,
    lattice: Arc<[Lattice]>,
    classes: Arc<Alias>,
    /// For each class its first box, and who is drawn of it.
    of: Arc<[(usize, Alias)]>,
    positions: u64,
    seed: u64,
    print: u64,
    /// Pays for the boxes.
    memory: Arc<Grant>,
}

impl Patches {
    /// So many positions an epoch. `wanted` says how often a class comes, of any sum; classes that it does not name come not; none: all
    /// equally often.
    ///
    /// # Errors
    /// [`Error::Config`] for a class without boxes, by name, weights that are none, and boxes of other axes than the lattice; a budget
    /// without room.
    pub fn new(
        boxes: Arc<Boxes>,
        lattice: Vec<Lattice>,
        wanted: &[(i64, f64)],
        positions: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        let known = boxes.classes();
        if lattice.len() != boxes.axes {
            return Err(Error::Config(format!(
                "boxes of {} axes for patches of {}",
                boxes.axes,
                lattice.len()
            )));
        }
        for (class, weight) in wanted {
            if !known.iter().any(|(known, ..)| known == class) {
                let names: Vec<_> = known.iter().take(20).map(|(class, ..)| class.to_string()).collect();
                return Err(Error::Config(format!(
                    "class {class} has no voxels: the classes are {}{}",
                    names.join(", "),
                    if known.len() > 20 { ", …" } else { "" }
                )));
            }
            if !(*weight >= 0.0 && weight.is_finite()) {
                return Err(Error::Config(format!(
                    "the weight of class {class} is {weight}: weights are finite and not negative"
                )));
            }
        }
        let weight_of = |class: i64| match wanted.is_empty() {
            true => 1.0,
            false => wanted.iter().find(|(wanted, _)| *wanted == class).map_or(0.0, |(_, weight)| *weight),
        };
        // Boxes are the user's until an order draws from them.
        let memory = reserve(budget, boxes.held_bytes(), "the boxes of labels")?;
        let weights: Vec<f64> = known.iter().map(|(class, ..)| weight_of(*class)).collect();
        let classes = Alias::new(weights.len(), |i| weights[i], budget)?;
        let table = |pair: &[(i64, usize)]| {
            let start = pair[0].1;
            let weights = &boxes.weights[start..pair[1].1];
            Ok((start, Alias::new(weights.len(), |i| f64::from(weights[i]), budget)?))
        };
        let of: Vec<(usize, Alias)> = boxes.classes.windows(2).map(table).collect::<Result<_>>()?;
        let mut print = splitmix64_finalize(boxes.print);
        weights.iter().for_each(|weight| print = splitmix64_finalize(print ^ weight.to_bits()));
        for axis in &lattice {
            let words = [
                axis.first.cast_unsigned(),
                axis.step.cast_unsigned(),
                axis.count,
                axis.patch.cast_unsigned(),
            ];
            words.iter().for_each(|&word| print = splitmix64_finalize(print ^ word));
        }
        let (lattice, of, classes) = (lattice.into(), of.into(), Arc::new(classes));
        Ok(Self { boxes, lattice, classes, of, positions, seed, print, memory: Arc::new(memory) })
    }
}

impl Order for Patches {
    fn len(&self) -> u64 {
        self.positions
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        1
    }

    fn foresight(&self) -> Foresight {
        Foresight::Listed
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let lane = |lane| Words::new(self.seed, epoch, lane);
        Ok(Arc::new(PatchEpoch { order: self.clone(), class: lane(1), which: lane(2), place: lane(3) }))
    }

    fn held_bytes(&self) -> u64 {
        let tables: usize = self.of.iter().map(|(_, table)| table.len()).sum();
        Alias::BYTES * (tables + self.classes.len()) as u64 + self.memory.bytes()
    }

    fn print(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ self.print))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct PatchEpoch {
    order: Patches,
    class: Words,
    which: Words,
    place: Words,
}

impl PatchEpoch {
    /// The box that is drawn at a position.
    fn which(&self, position: u64) -> usize {
        let (start, table) = &self.order.of[self.order.classes.draw(self.class.at(position)) as usize];
        start + table.draw(self.which.at(position)) as usize
    }
}

impl Epoch for PatchEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let boxes = &self.order.boxes;
        let spans = &boxes.spans[self.which(position) * boxes.axes..];
        let mut word = self.place.at(position);
        let mut id = 0;
        for (lattice, &(low, len)) in self.order.lattice.iter().zip(spans) {
            let (min, max) = lattice.around(i64::from(low), i64::from(len));
            let step = (u128::from(word) * u128::from(max - min + 1)) >> 64;
            id = id * lattice.count + min + step as u64;
            word = splitmix64_finalize(word);
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lattice(count: u64, patch: i64) -> Lattice {
        spaced(0, 1, count, patch)
    }

    fn spaced(first: i64, step: i64, count: u64, patch: i64) -> Lattice {
        Lattice { first, step, count, room: (count.cast_signed() - 1) * step, patch }
    }

    /// Boxes of two axes of three classes, the later ones rarer; each box is a point of its own row.
    fn boxes(count: usize) -> Boxes {
        let class = |i: usize| {
            [7, -1, 300][if i.is_multiple_of(100) { 2 } else { usize::from(i.is_multiple_of(10)) }]
        };
        let all: Vec<_> = (0..count).map(|i| (class(i), 1.0 + (i % 3) as f32)).collect();
        let spans: Vec<_> = (0..count).flat_map(|i| [(i as i32 * 4, 1), (5, 3)]).collect();
        Boxes::new(2, &all, &spans).unwrap()
    }

    #[test]
    fn classes_come_as_wanted_and_boxes_by_weight_within_them() {
        let count = 3000;
        let boxes = Arc::new(boxes(count));
        let budget = Budget::new(1 << 20);
        // A patch is as wide as a row: its place tells the box.
        let axes = vec![spaced(0, 4, count as u64, 4), lattice(100, 10)];
        let draws = 600_000u64;
        for (wanted, shares) in [(vec![], [1.0, 1.0, 1.0]), (vec![(7, 3.0), (300, 1.0)], [0.0, 3.0, 1.0])] {
            let order = Patches::new(Arc::clone(&boxes), axes.clone(), &wanted, draws, 3, &budget).unwrap();
            let epoch = order.epoch(1).unwrap();
            let mut counts = vec![0u64; count];
            for position in 0..draws {
                let id = epoch.id(position).unwrap();
                counts[(id / 100) as usize] += 1;
                assert!(
                    (0..=5).contains(&(id % 100)),
                    "the patch of 10 from {} holds the box of 5..8",
                    id % 100
                );
            }
            let sum: f64 = shares.iter().sum();
            let (mut chi, mut degrees) = (0.0, 0.0);
            for ((_, start, end), share) in
                [(-1, 0, 270), (7, 270, 2970), (300, 2970, 3000)].iter().zip(shares)
            {
                let weight: f64 = (*start..*end).map(|i| f64::from(boxes.get(i).1)).sum();
                for i in *start..*end {
                    let (_, own, spans) = boxes.get(i);
                    let seen = counts[spans[0].0 as usize / 4] as f64;
                    let expected = draws as f64 * share / sum * f64::from(own) / weight;
                    if expected == 0.0 {
                        assert!(seen == 0.0);
                    } else {
                        (chi, degrees) = (chi + (seen - expected).powi(2) / expected, degrees + 1.0);
                    }
                }
            }
            assert!((chi - degrees) / (2.0f64 * degrees).sqrt() < 4.0, "chi-square {chi} over {degrees}");
        }
        assert_eq!(budget.account(tidegate_core::memory::Account::Index).held_bytes, 0);
    }

    #[test]
    fn places_hold_the_box_or_lie_in_it() {
        for (lattice, low, len, expected) in [
            (lattice(91, 10), 20, 4, (14, 20)),
            (lattice(91, 10), 0, 4, (0, 0)),
            (lattice(91, 10), 96, 4, (90, 90)),
            (lattice(91, 10), 20, 30, (20, 40)),
            (spaced(3, 4, 10, 16), 20, 4, (2, 4)),
            // No place of the lattice has all of it: the nearest.
            (spaced(0, 64, 10, 64), 60, 8, (0, 0)),
            (spaced(-5, 1, 100, 10), 0, 1, (0, 5)),
            // The last of four places is at 92, not at 120.
            (Lattice { room: 92, ..spaced(0, 40, 4, 8) }, 93, 2, (3, 3)),
            (Lattice { room: 92, ..spaced(0, 40, 4, 8) }, 82, 2, (2, 2)),
        ] {
            let (min, max) = lattice.around(low, len);
            assert_eq!((min, max), expected, "{lattice:?} {low} {len}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_named() {
        for (boxes, spans, word) in [
            (vec![], vec![], "0 boxes"),
            (vec![(1, 1.0)], vec![(0, 0)], "no voxels along axis 0"),
            (vec![(1, f32::NAN)], vec![(0, 1)], "NaN"),
            (vec![(1, 1.0)], vec![], "0 spans"),
        ] {
            assert!(Boxes::new(1, &boxes, &spans).unwrap_err().to_string().contains(word));
        }
        let boxes = Arc::new(Boxes::new(1, &[(1, 1.0), (2, 1.0)], &[(0, 1), (0, 1)]).unwrap());
        let budget = Budget::new(1 << 20);
        for (wanted, word) in [
            ([(9, 1.0)], "class 9 has no voxels: the classes are 1, 2"),
            ([(1, -1.0)], "-1"),
            ([(1, 0.0)], "sum"),
        ] {
            let error =
                Patches::new(Arc::clone(&boxes), vec![lattice(9, 2)], &wanted, 1, 0, &budget).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
