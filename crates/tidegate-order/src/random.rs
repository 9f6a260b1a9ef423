//! Counter-based random numbers: functions of (seed, epoch, position, view, purpose, index).
//!
//! Flow: a [`Stream`] for one sample and purpose -> draws; called by the orders and by
//! augmentation.
//! Memory: a few words on the stack, and 128 KiB a process for the normal distribution.
//!
//! The generator is Philox4x32-10 (Salmon et al., «Parallel random numbers: as easy as 1, 2, 3»,
//! SC'11), checked against the vectors of Random123. Its counter is position (64 bits), epoch
//! (32), purpose (8), view (8) and block (16). So repeated draws of one id differ by their
//! position, and a new purpose never shifts the draws of another.

use std::sync::OnceLock;

/// What draws are used for. The numbers are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Keys of permutations.
    Order = 1,
    /// Crop boxes, shared by all fields of a sample.
    Crop = 2,
    /// Mirroring, shared by all fields of a sample.
    Flip = 3,
    /// Colour jitter.
    Jitter = 4,
    /// The user's transform.
    User = 5,
    /// The id that replaces a failed sample.
    Replace = 6,
    /// Synthetic data.
    Synthetic = 7,
    /// Ids drawn with replacement.
    Draw = 8,
    /// Quarter turns, shared by all fields of a sample.
    Turn = 9,
    /// Deformations, shared by all fields of a sample.
    Elastic = 10,
    /// The amount of noise, and the noise of each part.
    Noise = 11,
    /// The seeds of the parts of noise.
    NoisePart = 12,
    /// Blur.
    Blur = 13,
    /// Intensity: a factor on all values.
    Intensity = 14,
    /// Contrast: a factor on distances from the mean.
    Contrast = 15,
    /// Gamma: an exponent.
    Gamma = 16,
}

/// One of the ten rounds of Philox4x32.
fn round(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    let a = u64::from(c[0]) * 0xD251_1F53;
    let b = u64::from(c[2]) * 0xCD9E_8D57;
    [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32]
}

/// Philox4x32-10: the four random words of a counter under a key.
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        counter = round(counter, key);
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The positive half of the normal distribution in parts of equal probability: 128 KiB, computed
/// on the first use in a process.
static QUANTILES: OnceLock<Vec<f32>> = OnceLock::new();

/// The median of part `i` of the 2^15 parts of the positive half.
fn quantile(i: u32) -> f32 {
    let above = 0.5 - (f64::from(i) + 0.5) / 65_536.0;
    // Newton's method on the probability of the tail. The tail is convex, so that the method does
    // not overshoot from the left.
    let mut x = 0.0;
    for _ in 0..64 {
        let density = libm::exp(-0.5 * x * x) / libm::sqrt(std::f64::consts::TAU);
        let step = (0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2) - above) / density;
        x += step;
        if step.abs() < 1e-12 {
            break;
        }
    }
    x as f32
}

/// The draws of one sample for one purpose.
///
/// ```
/// use tidegate_order::random::{Purpose, Stream};
/// let draw = |position| Stream::new(42, 0, position, 0, Purpose::Flip).uniform();
/// assert_eq!(draw(5), draw(5));
/// assert_ne!(draw(5), draw(6));
/// ```
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    left: usize,
}

impl Stream {
    /// The stream of (seed, epoch, position, view, purpose).
    #[must_use]
    pub fn new(seed: u64, epoch: u64, position: u64, view: u8, purpose: Purpose) -> Self {
        let tail = (purpose as u32) << 24 | u32::from(view) << 16;
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [position as u32, (position >> 32) as u32, epoch as u32, tail],
            words: [0; 4],
            left: 0,
        }
    }

    /// The next 32 random bits. A stream has 2^18 words and then repeats.
    pub fn word(&mut self) -> u32 {
        if self.left == 0 {
            self.words = philox(self.counter, self.key);
            let block = self.counter[3].wrapping_add(1) & 0xFFFF;
            self.counter[3] = self.counter[3] & 0xFFFF_0000 | block;
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// The next 64 random bits.
    pub fn long(&mut self) -> u64 {
        u64::from(self.word()) | u64::from(self.word()) << 32
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.long() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Fills `into` with standard normal numbers, two from a word.
    ///
    /// They are the medians of 65,536 parts of equal probability, so none is beyond ±4.33.
    pub fn normals(&mut self, into: &mut [f32]) {
        into.fill(0.0);
        self.add_normals(1.0, into);
    }

    /// Adds normal numbers with mean 0 and this deviation.
    pub fn add_normals(&mut self, deviation: f32, into: &mut [f32]) {
        let quantiles = QUANTILES.get_or_init(|| (0..1 << 15).map(quantile).collect());
        let normal = |bits: u32| {
            let size = quantiles[(bits & 0x7FFF) as usize];
            if bits & 0x8000 == 0 { size } else { -size }
        };
        for pair in into.chunks_mut(2) {
            let word = self.word();
            pair.iter_mut()
                .zip([word & 0xFFFF, word >> 16])
                .for_each(|(x, bits)| *x += deviation * normal(bits));
        }
    }

    /// Uniform in `0..n`, without bias (Lemire 2019); 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        loop {
            let wide = u128::from(self.long()) * u128::from(n);
            if wide as u64 >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (kat_vectors, philox 4x32 10).
    #[test]
    fn random123_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_is_uniform() {
        let mut counts = [0u32; 64];
        let n = 64_000;
        for position in 0..n {
            counts[(Stream::new(1, 2, position, 0, Purpose::Crop).uniform() * 64.0) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 63.0 + 4.0 * (2.0f64 * 63.0).sqrt(), "chi-square {chi} over 63 degrees");
    }

    #[test]
    fn normals_are_normal() {
        let mut x = vec![0.0; 1 << 18];
        Stream::new(1, 2, 3, 0, Purpose::Noise).normals(&mut x);
        let moment = |power: i32| x.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / x.len() as f64;
        for (power, expected, deviation) in
            [(1, 0.0, 1.0), (2, 1.0, 2f64.sqrt()), (3, 0.0, 15f64.sqrt()), (4, 3.0, 96f64.sqrt())]
        {
            let apart = (moment(power) - expected).abs() / (deviation / 512.0);
            assert!(apart < 4.0, "moment {power}: {} of {expected}", moment(power));
        }
        let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!((4.0..4.33).contains(&largest), "{largest}");
        let within = x.iter().filter(|x| x.abs() < 0.674_49).count();
        assert!((within as f64 - 131_072.0).abs() < 4.0 * 256.0, "{within} within the quartiles");
    }

    /// Frozen: the augmentations of every saved run depend on these.
    #[test]
    fn golden_streams() {
        let draws: Vec<u64> = [Purpose::Crop, Purpose::Flip, Purpose::Jitter, Purpose::User]
            .into_iter()
            .map(|p| Stream::new(0xDEAD_BEEF_0123, 3, 1 << 40, 1, p).long())
            .collect();
        assert_eq!(draws, GOLDEN);
    }

    const GOLDEN: [u64; 4] = [
        12_753_933_856_263_721_234,
        4_176_636_423_790_331_793,
        17_386_509_948_042_845_038,
        14_855_864_822_233_728_268,
    ];
}
