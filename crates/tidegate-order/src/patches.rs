//! Patches around boxes: class-balanced draws from a volume without a look at its labels.
//!
//! Flow: [`Boxes`] and the [`Lattice`] of each axis -> for a position a class, a box of the class,
//! and a patch around the box.
//! Memory: the boxes, and 8 bytes a box and a class for alias tables (account `index`), reserved
//! before the tables are made.
//! Not here: where boxes come from (the source of volumes, the user).
//!
//! There are three independent draws: the class by the weights of classes, the box by the weights
//! within the class, and the patch uniformly among those that contain the whole box, if there are
//! any.

use std::sync::Arc;

use tidegate_core::hash::splitmix64_finalize;
use tidegate_core::memory::{Budget, Grant};

use crate::alias::AliasTable;
use crate::draw::DrawKey;
use crate::error::{Error, Result};
use crate::lattice::{Boxes, ClassSum, Lattice};
use crate::memory::reserve;
use crate::traits::{Epoch, Lookahead, Order};

/// An order of patches around boxes, with replacement.
#[derive(Debug, Clone)]
pub struct Patches {
    boxes: Arc<Boxes>,
    lattice: Arc<[Lattice]>,
    classes: Arc<AliasTable>,
    /// For each class the index of its first box, and the table of the weights of its boxes.
    boxes_of_class: Arc<[(usize, AliasTable)]>,
    positions: u64,
    seed: u64,
    digest: u64,
    /// The memory of the boxes.
    memory: Arc<Grant>,
}

/// The weight of each class of `known`: the user's, 0 for a class that the user does not name, or
/// 1 for all when the user names none.
fn class_weights(known: &[ClassSum], named: &[(i64, f64)]) -> Result<Vec<f64>> {
    for (class, weight) in named {
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
    let weight_of = |class: i64| match named.is_empty() {
        true => 1.0,
        false => named.iter().find(|(named, _)| *named == class).map_or(0.0, |(_, weight)| *weight),
    };
    Ok(known.iter().map(|(class, ..)| weight_of(*class)).collect())
}

impl Patches {
    /// Epochs of `positions` patches. `named` says how often each class is drawn, with any sum.
    ///
    /// A class that is not named is not drawn. If none is named, all are drawn equally often.
    ///
    /// # Errors
    /// [`Error::Config`] for a class without boxes, for weights that are negative or not finite,
    /// and for boxes that do not have the axes of the lattice. [`Error::Budget`] when the tables
    /// do not fit.
    pub fn new(
        boxes: Arc<Boxes>,
        lattice: Vec<Lattice>,
        named: &[(i64, f64)],
        positions: u64,
        seed: u64,
        budget: &Budget,
    ) -> Result<Self> {
        if lattice.len() != boxes.axes() {
            let (axes, own) = (lattice.len(), boxes.axes());
            return Err(Error::Config(format!("boxes of {own} axes for patches of {axes}")));
        }
        let weights = class_weights(&boxes.classes(), named)?;
        // The user holds the boxes, unpaid, until an order draws from them.
        let memory = reserve(budget, boxes.held_bytes(), "the boxes of labels")?;
        let classes = AliasTable::new(weights.len(), |i| weights[i], budget)?;
        let table = |(_, start, weights): (i64, usize, &[f32])| {
            Ok((start, AliasTable::new(weights.len(), |i| f64::from(weights[i]), budget)?))
        };
        let boxes_of_class: Vec<(usize, AliasTable)> =
            boxes.class_ranges().map(table).collect::<Result<_>>()?;
        let mut digest = splitmix64_finalize(boxes.digest());
        weights.iter().for_each(|weight| digest = splitmix64_finalize(digest ^ weight.to_bits()));
        for axis in &lattice {
            let words = [
                axis.first.cast_unsigned(),
                axis.step.cast_unsigned(),
                axis.count,
                axis.patch.cast_unsigned(),
            ];
            words.iter().for_each(|&word| digest = splitmix64_finalize(digest ^ word));
        }
        Ok(Self {
            boxes,
            lattice: lattice.into(),
            classes: Arc::new(classes),
            boxes_of_class: boxes_of_class.into(),
            positions,
            seed,
            digest,
            memory: Arc::new(memory),
        })
    }
}

impl Order for Patches {
    fn len(&self) -> u64 {
        self.positions
    }

    fn runs_in_use(&self, _: u64) -> u64 {
        1
    }

    fn lookahead(&self) -> Lookahead {
        Lookahead::Listed
    }

    fn epoch(&self, epoch: u64) -> Result<Arc<dyn Epoch>> {
        let key = |lane| DrawKey::new(self.seed, epoch, lane);
        Ok(Arc::new(PatchEpoch { order: self.clone(), class: key(1), member: key(2), patch: key(3) }))
    }

    fn held_bytes(&self) -> u64 {
        let tables: usize = self.boxes_of_class.iter().map(|(_, table)| table.len()).sum();
        AliasTable::BYTES * (tables + self.classes.len()) as u64 + self.memory.bytes()
    }

    fn digest(&self, _: u64) -> Option<u64> {
        Some(splitmix64_finalize(self.seed ^ self.digest))
    }

    fn reseeded(&self, seed: u64) -> Option<Arc<dyn Order>> {
        Some(Arc::new(Self { seed, ..self.clone() }))
    }
}

#[derive(Debug)]
struct PatchEpoch {
    order: Patches,
    class: DrawKey,
    /// The box within its class.
    member: DrawKey,
    patch: DrawKey,
}

impl PatchEpoch {
    /// The index of the box that is drawn at a position.
    fn drawn_box(&self, position: u64) -> usize {
        let class = self.order.classes.draw(self.class.word(position));
        let (start, table) = &self.order.boxes_of_class[class as usize];
        start + table.draw(self.member.word(position)) as usize
    }
}

impl Epoch for PatchEpoch {
    fn id(&self, position: u64) -> Result<u64> {
        let spans = self.order.boxes.spans(self.drawn_box(position));
        let mut word = self.patch.word(position);
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

    /// Boxes of two axes and three classes, the later ones rarer. Each box is a point in its own
    /// row.
    fn boxes(count: usize) -> Boxes {
        let class = |i: usize| {
            [7, -1, 300][if i.is_multiple_of(100) { 2 } else { usize::from(i.is_multiple_of(10)) }]
        };
        let all: Vec<_> = (0..count).map(|i| (class(i), 1.0 + (i % 3) as f32)).collect();
        let spans: Vec<_> = (0..count).flat_map(|i| [(i as i32 * 4, 1), (5, 3)]).collect();
        Boxes::new(2, &all, &spans).unwrap()
    }

    #[test]
    fn classes_are_drawn_by_weight_and_boxes_by_weight_within_them() {
        let count = 3000;
        let boxes = Arc::new(boxes(count));
        let budget = Budget::new(1 << 20);
        // A patch is as wide as a row, so its origin identifies the box.
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
                    "the patch of 10 from {} contains the box of 5..8",
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
    fn names_classes_that_cannot_be_drawn() {
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
