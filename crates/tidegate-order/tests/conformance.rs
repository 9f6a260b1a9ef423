//! Every order keeps the promises of its trait.

use tidegate_core::memory::Budget;
use tidegate_order::curriculum::{Curriculum, CurriculumSpec, Pace};
use tidegate_order::stratified::{Classes, Shares, Stratified};
use tidegate_order::uniform::Uniform;
use tidegate_order::weighted::Weighted;
use tidegate_order::{Order, Shuffle, order, testing};

#[test]
fn every_shuffle_is_an_order() {
    for shuffle in [
        Shuffle::None,
        Shuffle::Full,
        Shuffle::Window { samples: 50, canonical_nodes: 1, range_samples: 0 },
        Shuffle::Window { samples: 33, canonical_nodes: 3, range_samples: 0 },
        Shuffle::Window { samples: 5000, canonical_nodes: 2, range_samples: 9 },
    ] {
        testing::order(&*order(shuffle, 4, &[100, 0, 70_000, 3]).unwrap()).unwrap();
    }
}

/// Frozen: a saved state names its sampler by these.
#[test]
fn golden_digests() {
    let budget = Budget::new(1 << 20);
    let weights: Vec<f64> = (0..960).map(|i| f64::from(i % 7) + 0.25).collect();
    let labels: Vec<u32> = (0..960u32).map(|id| u32::from(id % 4 == 0) + u32::from(id % 16 == 0)).collect();
    let curriculum =
        CurriculumSpec { start: 0.2, epochs: 4.0, pace: Pace::Linear, positions: 1000, runs: 5, seed: 11 };
    let classes = Classes::from_labels(&labels, &budget).unwrap();
    let orders: [Box<dyn Order>; 4] = [
        Box::new(Uniform::new(960, 1000, 5, 11).unwrap()),
        Box::new(Weighted::new(&weights, 1000, 5, 11, &budget).unwrap()),
        Box::new(Curriculum::new(&weights, curriculum, &budget).unwrap()),
        Box::new(Stratified::new(classes, &Shares::Natural, 32, 5, 11, &budget).unwrap()),
    ];
    let golden = [
        10_091_201_929_838_312_790,
        17_755_580_242_898_647_517,
        5_163_156_068_474_121_676,
        2_970_880_898_327_936_973,
    ];
    for (order, digest) in orders.iter().zip(golden) {
        testing::sampler(&**order, 960).unwrap();
        assert_eq!(order.digest(2), Some(digest), "{order:?}");
    }
}
