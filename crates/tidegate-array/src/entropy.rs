//! Limits of compression: entropies, and the fewest bits that an allowed error needs.
//!
//! Flow: bytes -> counts -> bits per symbol; a variance or a histogram and an error -> bits per
//! value.
//! Memory: counts of 256 or 65,536 symbols; two matrices with one row and column per bin of a
//! histogram.
//!
//! All figures are for memoryless sources: no codec that codes symbols independently needs fewer
//! bits. A codec that uses the dependence between symbols may.

/// Counts the occurrences of each byte value.
#[must_use]
pub fn count_bytes(bytes: &[u8]) -> [u64; 256] {
    // Four tables: with one, a run of equal bytes would wait for its own counter at every step.
    let mut counts = [[0u64; 256]; 4];
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        counts.iter_mut().zip(four).for_each(|(counts, byte)| counts[usize::from(*byte)] += 1);
    }
    rest.iter().for_each(|byte| counts[0][usize::from(*byte)] += 1);
    let mut sums = [0; 256];
    for counts in &counts {
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sums
}

/// Entropy in bits per symbol, from the count of each symbol (Shannon, 1948).
///
/// ```
/// use tidegate_array::entropy::entropy_bits;
/// assert_eq!(entropy_bits(&[1, 1, 2]), 1.5);
/// ```
#[must_use]
pub fn entropy_bits(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let bits = |count: &u64| {
        let share = *count as f64 / total as f64;
        -share * share.log2()
    };
    counts.iter().filter(|count| **count > 0).map(bits).sum()
}

/// Entropy in bits per element, as the sum over its bytes: what a codec reaches that packs each
/// byte plane separately (`shuffle`).
#[must_use]
pub fn plane_bits(elements: &[u8], width: usize) -> f64 {
    let mut plane = Vec::with_capacity(elements.len() / width.max(1));
    let plane_entropy = |byte: usize| {
        plane.clear();
        plane.extend(elements.iter().skip(byte).step_by(width).copied());
        entropy_bits(&count_bytes(&plane))
    };
    (0..width).map(plane_entropy).sum()
}

/// The fewest bits per value of a Gaussian source of this variance for a mean square error
/// (Shannon, 1959).
///
/// ```
/// use tidegate_array::entropy::gaussian_rate_bits;
/// assert_eq!((gaussian_rate_bits(16.0, 1.0), gaussian_rate_bits(1.0, 2.0)), (2.0, 0.0));
/// ```
#[must_use]
pub fn gaussian_rate_bits(variance: f64, error: f64) -> f64 {
    if variance > error { 0.5 * (variance / error).log2() } else { 0.0 }
}

/// A point of a rate–distortion curve.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct RatePoint {
    /// Mean square error.
    pub error: f64,
    /// The fewest bits per value at this error.
    pub bits: f64,
}

/// Most steps of the iteration, and the change of rate below which it stops.
const STEPS: usize = 2000;
const SETTLED_BITS: f64 = 1e-6;

/// The rate–distortion curve of a histogram for squared errors, at the given slopes of the curve:
/// the algorithm of Blahut and Arimoto (1972). `values` are the values that the bins stand for.
///
/// ```
/// use tidegate_array::entropy::{RatePoint, blahut_arimoto};
/// // Two values that are as likely: one bit tells them apart.
/// let exact = blahut_arimoto(&[-1.0, 1.0], &[5, 5], &[-20.0]);
/// assert!((exact[0].bits - 1.0).abs() < 1e-6 && exact[0].error < 1e-6);
/// ```
#[must_use]
pub fn blahut_arimoto(values: &[f64], counts: &[u64], slopes: &[f64]) -> Vec<RatePoint> {
    let total: u64 = counts.iter().sum();
    let source: Vec<(f64, f64)> = values
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count > 0)
        .map(|(value, count)| (*value, *count as f64 / total as f64))
        .collect();
    slopes.iter().map(|slope| point(&source, *slope)).collect()
}

fn point(source: &[(f64, f64)], slope: f64) -> RatePoint {
    let count = source.len();
    let error = |x: usize, y: usize| (source[x].0 - source[y].0) * (source[x].0 - source[y].0);
    let kernel: Vec<f64> =
        (0..count * count).map(|at| (slope * error(at / count, at % count)).exp()).collect();
    let mut output = vec![1.0 / count as f64; count];
    let mut found = RatePoint { error: 0.0, bits: f64::INFINITY };
    for _ in 0..STEPS {
        let sums: Vec<f64> = kernel
            .chunks_exact(count)
            .map(|line| line.iter().zip(&output).map(|(k, q)| k * q).sum::<f64>().max(f64::MIN_POSITIVE))
            .collect();
        let mut next = vec![0.0; count];
        let (mut distortion, mut bits) = (0.0, 0.0);
        for (x, line) in kernel.chunks_exact(count).enumerate() {
            for (y, k) in line.iter().enumerate() {
                let joint = source[x].1 * output[y] * k / sums[x];
                next[y] += joint;
                if joint > 0.0 {
                    distortion += joint * error(x, y);
                    bits += joint * (k / sums[x]).log2();
                }
            }
        }
        let settled = (found.bits - bits).abs() < SETTLED_BITS;
        found = RatePoint { error: distortion, bits: bits.max(0.0) };
        output = next;
        if settled {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_of_a_gaussian_is_its_formula() {
        // The bins of a Gaussian of variance 1, as counts.
        let values: Vec<f64> = (-60..=60).map(|i| f64::from(i) / 12.0).collect();
        let counts: Vec<u64> = values.iter().map(|x| ((-x * x / 2.0).exp() * 1e9) as u64).collect();
        for RatePoint { error, bits } in blahut_arimoto(&values, &counts, &[-0.6, -1.0, -2.0, -5.0, -10.0]) {
            let known = gaussian_rate_bits(1.0, error);
            assert!(
                (bits - known).abs() < 0.01,
                "{bits} bits at an error of {error}, where {known} are known"
            );
        }
    }

    #[test]
    fn counts_and_bits_are_those_of_the_definition() {
        let bytes: Vec<u8> = (0..1003u32).map(|i| (i * i % 7) as u8).collect();
        let counts = count_bytes(&bytes);
        assert_eq!(counts.iter().sum::<u64>(), 1003);
        assert!(
            (0..=255u8).all(|b| counts[usize::from(b)] == bytes.iter().filter(|x| **x == b).count() as u64)
        );
        assert_eq!(entropy_bits(&count_bytes(&(0..=255).collect::<Vec<_>>())), 8.0);
        assert_eq!((entropy_bits(&[]), entropy_bits(&[9])), (0.0, 0.0));
        let words: Vec<u8> = (0..=255u8).flat_map(|b| [b, 3]).collect();
        assert_eq!(plane_bits(&words, 2), 8.0);
    }
}
