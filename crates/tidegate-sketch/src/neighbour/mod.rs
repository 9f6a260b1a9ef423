//! What is near to what: sets by MinHash, vectors by hashing, points by a tree.
//!
//! Flow: documents -> [`minhash`] -> signatures -> [`lsh`] -> candidates; vectors -> [`lsh`]; points -> [`points`] -> neighbours,
//! and [`smote`] -> new points.
//! Memory: said by `size_bytes` of each.

pub mod lsh;
pub mod minhash;
pub mod points;
pub mod smote;
