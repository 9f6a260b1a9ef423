//! Locality-sensitive hashing: candidates for similar items, without comparing all pairs.
//!
//! Flow: MinHash words -> [`Bands`], vectors -> [`Hyperplanes`] or [`Projections`] -> keys ->
//! [`Index`] -> candidates.
//! Memory: 16 bytes per key; the hash families of vectors hold their random directions.
//!
//! The more similar two items are, the more likely they have an equal key. References: Indyk and
//! Motwani, 1998 (banding); Charikar, «Similarity estimation techniques from rounding algorithms»,
//! 2002 (hyperplanes); Datar et al., «Locality-sensitive hashing scheme based on p-stable
//! distributions», 2004.

use crate::codec::{Kind, Reader, Writer};
use crate::error::positive;
use tidegate_core::hash::splitmix64_finalize;

use crate::random::Draws;
use crate::{Error, Result};

fn key(table: usize, parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(splitmix64_finalize(table as u64 + 1), |key, part| {
        splitmix64_finalize(key.rotate_left(7) ^ part)
    })
}

/// Banding of signatures: two signatures that agree on all rows of a band become candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bands {
    /// Bands per signature.
    pub bands: usize,
    /// Slots per band.
    pub rows: usize,
}

impl Bands {
    /// A banding for signatures of `bands * rows` slots.
    ///
    /// # Errors
    /// [`Error::Parameter`] if one is 0, or for more than 4,096 slots.
    pub fn new(bands: usize, rows: usize) -> Result<Self> {
        match bands.checked_mul(rows) {
            Some(1..=4096) => Ok(Self { bands, rows }),
            _ => Err(Error::parameter(
                "bands",
                format!("{bands} x {rows}"),
                "give between 1 and 4,096 slots in all",
            )),
        }
    }

    /// The probability that two sets of this similarity become candidates: 1 − (1 − s^rows)^bands.
    #[must_use]
    pub fn probability(&self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// The keys of a signature, one per band.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the signature has another number of slots.
    pub fn keys(&self, words: &[u32]) -> Result<Vec<u64>> {
        if words.len() != self.bands * self.rows {
            let expected =
                format!("{} bands of {} rows take {}", self.bands, self.rows, self.bands * self.rows);
            return Err(Error::parameter("slots", words.len(), expected));
        }
        let bands = words.chunks(self.rows).enumerate();
        Ok(bands.map(|(band, rows)| key(band, rows.iter().map(|&word| u64::from(word)))).collect())
    }
}

/// Random directions, `parts` for each of `tables`.
#[derive(Debug, Clone)]
struct Directions {
    dimensions: usize,
    parts: usize,
    tables: usize,
    normals: Vec<f32>,
}

impl Directions {
    fn new(dimensions: usize, parts: usize, tables: usize, seed: u64) -> Result<Self> {
        let all = dimensions.checked_mul(parts).and_then(|n| n.checked_mul(tables));
        let Some(all) = all.filter(|n| (1..=1 << 28).contains(n)) else {
            let given = format!("{dimensions} x {parts} x {tables}");
            return Err(Error::parameter("dimensions", given, "give between 1 and 2^28 numbers in all"));
        };
        let mut draws = Draws::new(seed);
        Ok(Self { dimensions, parts, tables, normals: (0..all).map(|_| draws.normal() as f32).collect() })
    }

    fn keys(&self, vector: &[f32], part: impl Fn(usize, f32) -> u64) -> Result<Vec<u64>> {
        if vector.len() != self.dimensions {
            let expected = format!("the directions have {}", self.dimensions);
            return Err(Error::parameter("dimensions", vector.len(), expected));
        }
        if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
            return Err(Error::value(at, vector[at], "a vector has finite numbers"));
        }
        let dot = |normal: &[f32]| normal.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
        let tables = self.normals.chunks(self.dimensions * self.parts).enumerate();
        let keys = tables.map(|(table, normals)| {
            let parts = normals.chunks(self.dimensions).enumerate();
            key(table, parts.map(|(i, normal)| part(table * self.parts + i, dot(normal))))
        });
        Ok(keys.collect())
    }

    fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.normals.len() * 4) as u64
    }

    fn probability(&self, one: f64) -> f64 {
        1.0 - (1.0 - one.powi(self.parts as i32)).powi(self.tables as i32)
    }
}

/// A hash family for angles: vectors at a small angle are on the same sides of random planes.
#[derive(Debug, Clone)]
pub struct Hyperplanes(Directions);

impl Hyperplanes {
    /// A family for vectors of `dimensions` numbers, with `bits` planes for each of `tables` keys.
    ///
    /// # Errors
    /// [`Error::Parameter`] if one is 0, or if all planes together take more than 1 GiB.
    pub fn new(dimensions: usize, bits: usize, tables: usize, seed: u64) -> Result<Self> {
        Directions::new(dimensions, bits, tables, seed).map(Self)
    }

    /// The keys of a vector.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another number of dimensions; [`Error::Value`] for a number that
    /// is not finite.
    pub fn keys(&self, vector: &[f32]) -> Result<Vec<u64>> {
        self.0.keys(vector, |_, dot| u64::from(dot >= 0.0))
    }

    /// The probability that two vectors at this angle, in radians, become candidates.
    #[must_use]
    pub fn probability(&self, angle: f64) -> f64 {
        self.0.probability(1.0 - angle / std::f64::consts::PI)
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

/// A hash family for Euclidean distances: close vectors fall into the same cells of random lines.
#[derive(Debug, Clone)]
pub struct Projections {
    directions: Directions,
    width: f32,
    offsets: Vec<f32>,
}

impl Projections {
    /// A family for vectors of `dimensions` numbers, with cells of this width on `lines` lines for
    /// each of `tables` keys.
    ///
    /// # Errors
    /// As [`Hyperplanes::new`]; also for a width that is not positive.
    pub fn new(dimensions: usize, width: f64, lines: usize, tables: usize, seed: u64) -> Result<Self> {
        let width = positive("width", width)?;
        let directions = Directions::new(dimensions, lines, tables, seed)?;
        let mut draws = Draws::new(splitmix64_finalize(seed));
        let offsets = (0..lines * tables).map(|_| (draws.positive() * width) as f32).collect();
        Ok(Self { directions, width: width as f32, offsets })
    }

    /// The keys of a vector.
    ///
    /// # Errors
    /// As [`Hyperplanes::keys`].
    pub fn keys(&self, vector: &[f32]) -> Result<Vec<u64>> {
        self.directions.keys(vector, |line, dot| {
            (((dot + self.offsets[line]) / self.width).floor() as i64).cast_unsigned()
        })
    }

    /// The probability that two vectors at this distance become candidates, by the formula of
    /// Datar et al.
    #[must_use]
    pub fn probability(&self, distance: f64) -> f64 {
        let c = f64::from(self.width) / distance;
        let density = (2.0 / std::f64::consts::PI).sqrt() / c * (1.0 - (-c * c / 2.0).exp());
        self.directions.probability(1.0 - 2.0 * normal_below(-c) - density)
    }

    /// Memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.directions.size_bytes() + 4 * self.offsets.len() as u64
    }
}

/// The normal distribution function for x below zero, within 1e-7 (Abramowitz and Stegun,
/// 26.2.17).
fn normal_below(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let series = t
        * (0.319_381_53
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * series
}

/// An index of ids by key.
///
/// ```
/// use tidegate_sketch::neighbour::lsh::{Bands, Index};
/// let bands = Bands::new(2, 2)?;
/// let mut index = Index::default();
/// index.add(7, &bands.keys(&[1, 2, 3, 4])?);
/// assert_eq!(index.candidates(&bands.keys(&[1, 2, 9, 9])?), [7]);
/// # Ok::<(), tidegate_sketch::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// (key, id), sorted except for the entries added since the last query.
    entries: Vec<(u64, u64)>,
    sorted: usize,
}

impl Index {
    const VERSION: u8 = 1;

    /// Adds an id under its keys.
    pub fn add(&mut self, id: u64, keys: &[u64]) {
        self.entries.extend(keys.iter().map(|&key| (key, id)));
    }

    fn sort(&mut self) {
        if self.sorted < self.entries.len() {
            self.entries.sort_unstable();
            self.sorted = self.entries.len();
        }
    }

    /// The ids with one of these keys, in ascending order.
    pub fn candidates(&mut self, keys: &[u64]) -> Vec<u64> {
        self.sort();
        let mut found: Vec<u64> = Vec::new();
        for &key in keys {
            let from = self.entries.partition_point(|&(of, _)| of < key);
            found.extend(self.entries[from..].iter().take_while(|&&(of, _)| of == key).map(|&(_, id)| id));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// All ids that share a key, in one group per key. Two similar items may be in different
    /// groups.
    pub fn groups(&mut self) -> impl Iterator<Item = &[(u64, u64)]> {
        self.sort();
        self.entries.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1)
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the ids of another index, whose keys must be from the same family.
    pub fn merge(&mut self, other: &Self) {
        self.entries.extend(&other.entries);
    }

    /// Memory it takes now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (size_of::<Self>() + self.entries.capacity() * 16) as u64
    }

    /// Serializes the state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new(Kind::Lsh, Self::VERSION);
        to.words(self.entries.iter().map(|e| e.0)).words(self.entries.iter().map(|e| e.1));
        to.finish()
    }

    /// Reads a serialized state.
    ///
    /// # Errors
    /// [`Error::Bytes`] if the bytes are not such a state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new("LSH index", bytes, Kind::Lsh, Self::VERSION)?;
        let (keys, ids) = (from.words()?, from.words()?);
        if keys.len() != ids.len() {
            return from.wrong(format!("{} keys and {} ids", keys.len(), ids.len()));
        }
        from.end(Self { entries: keys.into_iter().zip(ids).collect(), sorted: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::minhash::MinHash;
    use super::*;

    fn vector(draws: &mut Draws, dimensions: usize) -> Vec<f32> {
        (0..dimensions).map(|_| (draws.positive() * 2.0 - 1.0) as f32).collect()
    }

    /// The S-curve: candidates are as frequent as the formula states.
    #[test]
    fn bands_follow_their_curve() {
        let (bands, runs, n) = (Bands::new(14, 8).unwrap(), 1500u64, 400u64);
        for similarity in [0.5, 0.7, 0.8, 0.9] {
            let both = (2.0 * n as f64 * similarity / (1.0 + similarity)).round() as u64;
            let truth = both as f64 / (2 * n - both) as f64;
            let hits = (0..runs)
                .filter(|seed| {
                    let keys = |ids: &mut dyn Iterator<Item = u64>| {
                        let set: Vec<u64> = ids.map(|i| splitmix64_finalize(seed << 32 | i)).collect();
                        bands.keys(&MinHash::new(&set, 112).unwrap().words()).unwrap()
                    };
                    let mut index = Index::default();
                    index.add(1, &keys(&mut (0..n)));
                    !index.candidates(&keys(&mut (0..both).chain(n..2 * n - both))).is_empty()
                })
                .count() as f64
                / runs as f64;
            let p = bands.probability(truth);
            let deviation = (p * (1.0 - p) / runs as f64).sqrt();
            assert!((hits - p).abs() < 5.0 * deviation + 0.01, "{similarity}: {hits} for {p}");
        }
    }

    #[test]
    fn vectors_meet_as_often_as_said() {
        let (planes, lines) =
            (Hyperplanes::new(16, 6, 8, 1).unwrap(), Projections::new(16, 2.0, 4, 8, 2).unwrap());
        let (mut draws, runs) = (Draws::new(3), 2000);
        let meets = |a: Vec<u64>, b: Vec<u64>| a.iter().zip(&b).any(|(a, b)| a == b);
        let (mut by_angle, mut by_distance, mut expected) = (0.0, 0.0, [0.0; 2]);
        for _ in 0..runs {
            let one = vector(&mut draws, 16);
            let other: Vec<f32> = one.iter().zip(vector(&mut draws, 16)).map(|(a, b)| a + 0.4 * b).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let angle = (dot(&one, &other) / (dot(&one, &one) * dot(&other, &other)).sqrt()).acos();
            let off: Vec<f32> = one.iter().zip(&other).map(|(a, b)| a - b).collect();
            expected[0] += planes.probability(angle) / f64::from(runs);
            expected[1] += lines.probability(dot(&off, &off).sqrt()) / f64::from(runs);
            by_angle +=
                f64::from(meets(planes.keys(&one).unwrap(), planes.keys(&other).unwrap())) / f64::from(runs);
            by_distance +=
                f64::from(meets(lines.keys(&one).unwrap(), lines.keys(&other).unwrap())) / f64::from(runs);
        }
        // The directions are drawn once, so pairs are not independent; the bound is looser.
        assert!((by_angle - expected[0]).abs() < 0.06, "{by_angle} for {}", expected[0]);
        assert!((by_distance - expected[1]).abs() < 0.1, "{by_distance} for {}", expected[1]);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(Bands::new(0, 3).is_err() && Bands::new(100, 100).is_err());
        assert!(Bands::new(2, 2).unwrap().keys(&[1]).unwrap_err().to_string().contains("take 4"));
        let planes = Hyperplanes::new(2, 1, 1, 0).unwrap();
        assert!(planes.keys(&[1.0, f32::NAN]).unwrap_err().to_string().contains("NaN"));
        assert!(planes.keys(&[1.0]).is_err() && Hyperplanes::new(2, 0, 1, 0).is_err());
        assert!(Projections::new(2, 0.0, 1, 1, 0).is_err());
        let mut index = Index::default();
        index.add(1, &[5, 6]);
        index.add(2, &[6]);
        let mut again = Index::from_bytes(&index.to_bytes()).unwrap();
        assert_eq!(again.groups().map(<[_]>::len).collect::<Vec<_>>(), [2]);
        assert!(Index::from_bytes(&index.to_bytes()[..9]).is_err());
    }
}
