//! Random numbers whose state is one word, so that a sketch which draws can be stored and go on.
//!
//! Flow: a seed -> [`Draws`]; called by reservoirs and by hash families.
//! Memory: eight bytes.
//!
//! SplitMix64 (Steele, Lea and Flood, «Fast splittable pseudorandom number generators», OOPSLA 2014).

/// The finalizer of SplitMix64 (Stafford's variant 13): a bijection of 64 bits.
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// By what the state of a stream grows with each draw: 2^64 over the golden ratio.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A stream of draws.
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
        Self(mix(seed ^ 0x7469_6465_6761_7465))
    }

    /// The next 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
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
