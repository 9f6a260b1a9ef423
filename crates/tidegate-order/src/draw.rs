//! Draws with replacement: a random word for each position of an epoch.
//!
//! Flow: (seed, epoch, lane) -> [`DrawKey`] -> a word or a bounded number at a position.
//! Memory: eight bytes on the stack.
//!
//! A word is SplitMix64 at the position under a key from Philox, so any position is one step away.

use tidegate_core::hash::{GOLDEN, splitmix64_finalize};

use crate::error::{Error, Result};
use crate::random::{Purpose, Stream};

/// The key of an epoch's draws.
#[derive(Debug, Clone, Copy)]
pub struct DrawKey(u64);

impl DrawKey {
    /// The key of (seed, epoch, lane); the lanes of an epoch are independent of each other.
    #[must_use]
    pub fn new(seed: u64, epoch: u64, lane: u64) -> Self {
        Self(Stream::new(seed, epoch, lane, 0, Purpose::Draw).long())
    }

    /// The random word at a position.
    #[must_use]
    pub fn word(self, position: u64) -> u64 {
        splitmix64_finalize(self.0.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Uniform in `0..n` at a position, with a bias of at most n / 2^64.
    #[must_use]
    pub fn below(self, position: u64, n: u64) -> u64 {
        ((u128::from(self.word(position)) * u128::from(n)) >> 64) as u64
    }
}

/// Checks that an epoch of `positions` has at least one sample to draw.
///
/// # Errors
/// [`Error::Config`] when there are positions but no samples.
pub(crate) fn check_samples(positions: u64, samples: u64) -> Result<()> {
    if positions > 0 && samples == 0 {
        return Err(Error::Config(format!(
            "{positions} positions are to be drawn, but there are no samples"
        )));
    }
    Ok(())
}
