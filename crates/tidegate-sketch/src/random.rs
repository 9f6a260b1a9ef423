//! Random numbers with a state of one word, so that a sketch that draws can be stored and resumed.
//!
//! Flow: a seed -> [`Draws`]; called by reservoirs and by hash families.
//! Memory: eight bytes.
//!
//! SplitMix64 (Steele, Lea and Flood, «Fast splittable pseudorandom number generators», OOPSLA
//! 2014).

use tidegate_core::hash::{GOLDEN, splitmix64_finalize};

/// A stream of random numbers.
///
/// ```
/// use tidegate_sketch::random::Draws;
/// let mut draws = Draws::new(7);
/// assert!((0.0..1.0).contains(&(1.0 - draws.positive())));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws(pub(crate) u64);

impl Draws {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(splitmix64_finalize(seed ^ 0x7469_6465_6761_7465))
    }

    /// The next 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        splitmix64_finalize(self.0)
    }

    /// Uniform in (0, 1], so that its logarithm is finite.
    pub fn positive(&mut self) -> f64 {
        ((self.word() >> 11) + 1) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = ((2.0 * self.exponential()).sqrt(), self.positive() * std::f64::consts::TAU);
        radius * angle.cos()
    }

    /// Exponential with mean one.
    pub fn exponential(&mut self) -> f64 {
        -self.positive().ln()
    }
}
