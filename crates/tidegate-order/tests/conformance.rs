//! Every order keeps the promises of its trait.
#![expect(clippy::unwrap_used, reason = "a test")]

use tidegate_order::{Shuffle, order, testing};

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
