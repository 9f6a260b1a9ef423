//! Neighbours: similar sets by MinHash, similar vectors by hashing, nearest points by a tree.
//!
//! Flow: documents -> [`minhash`] -> signatures -> [`lsh`] -> candidates; vectors -> [`lsh`];
//! points -> [`points`] -> neighbours, and [`smote`] -> new points.
//! Memory: each type reports its `size_bytes`.

pub mod lsh;
pub mod minhash;
pub mod points;
pub mod smote;
