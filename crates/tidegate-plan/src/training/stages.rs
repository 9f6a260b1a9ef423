//! Pipeline stages: where to cut a chain for several devices, and what the bubble costs.
//!
//! Flow: a chain, devices, micro-batches, a schedule, a limit -> [`split`] -> stages, time, bubble.
//! Memory: two words for each device and each stage of the chain.
//!
//! The cut is optimal: the slowest device is as fast as it can be among all cuts into runs of
//! stages that fit. Bubble (p − 1) / (m + p − 1) of the time: Y. Huang et al., "GPipe",
//! arXiv:1811.06965; 1F1B, which holds fewer micro-batches: D. Narayanan et al., arXiv:1806.03377.

use serde::{Deserialize, Serialize};
use tidegate_core::memory::size::mib;

use super::chain::Chain;
use crate::error::{Error, Result, at_least_one};

/// In which order a device runs its micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pipelining {
    /// All forwards, then all backwards: every micro-batch is held.
    Gpipe,
    /// One forward, one backward: device i of p holds p − i micro-batches, counted from 0.
    #[default]
    OneForwardOneBackward,
}

/// The stages of one device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Device {
    /// Its first stage, counted from 1.
    pub first: usize,
    /// Its last stage.
    pub last: usize,
    /// Time of forward and backward of a micro-batch.
    pub time: f64,
    /// Micro-batches whose activations it holds at a time.
    pub in_flight: u64,
    /// Bytes of states and of the activations in flight.
    pub bytes: u64,
    /// Bytes that it sends for a micro-batch: its output, and the gradient of its input.
    pub sent_bytes: u64,
}

/// A cut of a chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// The devices, in order.
    pub devices: Vec<Device>,
    /// Time of a step: (m + p − 1) times that of the slowest device. Transfers are not counted.
    pub time: f64,
    /// The part of the time in which a device waits, were all equally fast.
    pub bubble: f64,
}

/// The part of a step in which devices wait: (p − 1) / (m + p − 1).
///
/// # Errors
/// [`Error::Parameter`] for no devices or no micro-batches.
pub fn bubble(devices: u64, micro_batches: u64) -> Result<f64> {
    let (p, m) = (at_least_one("devices", devices)?, at_least_one("micro_batches", micro_batches)?);
    Ok((p - 1) as f64 / (m + p - 1) as f64)
}

/// Cuts a chain, whose bytes and times are those of one micro-batch, for `devices` devices.
///
/// `state_bytes` are the parameters, gradients and optimizer of each stage. With `limit_bytes`,
/// only cuts whose devices all stay within it are looked at.
///
/// # Errors
/// [`Error::Parameter`] for fewer stages than devices; [`Error::Config`] for state bytes of another
/// number of stages, skips across which a pipeline cannot be cut, and when no cut fits.
pub fn split(
    chain: &Chain,
    state_bytes: &[u64],
    devices: u64,
    micro_batches: u64,
    pipelining: Pipelining,
    limit_bytes: Option<u64>,
) -> Result<Split> {
    chain.check()?;
    let bubble = bubble(devices, micro_batches)?;
    let count = chain.stages.len();
    if devices > count as u64 {
        return Err(Error::parameter("devices", devices, format!("at most the {count} stages of the chain")));
    }
    if state_bytes.len() != count {
        let what = format!("{} state bytes of {count} stages: give one for each", state_bytes.len());
        return Err(Error::Config(what));
    }
    let p = devices as usize;
    let device = |number: usize, first: usize, last: usize| {
        let in_flight = match pipelining {
            Pipelining::Gpipe => micro_batches,
            Pipelining::OneForwardOneBackward => micro_batches.min(devices - number as u64),
        };
        device(chain, state_bytes, first, last, in_flight)
    };
    let fits = |found: &Device| limit_bytes.is_none_or(|limit| found.bytes <= limit);
    // A device sends the output of its last stage alone: what stages before it made stays there.
    let crossed = |last: usize| chain.skips.iter().any(|skip| skip.from < last && skip.to > last);
    // The slowest of the first `n` devices when they have the first `last` stages, and where the
    // last of them begins.
    let mut slowest = vec![vec![(f64::INFINITY, 0); count + 1]; p + 1];
    slowest[0][0] = (0.0, 0);
    for n in 1..=p {
        for last in n..=count {
            if last < count && crossed(last) {
                continue;
            }
            for first in n..=last {
                let before = slowest[n - 1][first - 1].0;
                let found = device(n - 1, first, last);
                if before.is_finite() && fits(&found) && found.time.max(before) < slowest[n][last].0 {
                    slowest[n][last] = (found.time.max(before), first);
                }
            }
        }
    }
    let (time, _) = slowest[p][count];
    if !time.is_finite() {
        let limit = limit_bytes.map_or(String::new(), |limit| format!(" within {} MiB each", mib(limit)));
        let what = format!(
            "no cut into {devices} devices{limit}: give more memory or fewer devices, or cut where no skip crosses"
        );
        return Err(Error::Config(what));
    }
    let mut found = Vec::new();
    let mut last = count;
    for n in (1..=p).rev() {
        let first = slowest[n][last].1;
        found.push(device(n - 1, first, last));
        last = first - 1;
    }
    found.reverse();
    Ok(Split { devices: found, time: time * (micro_batches + devices - 1) as f64, bubble })
}

fn device(chain: &Chain, state_bytes: &[u64], first: usize, last: usize, in_flight: u64) -> Device {
    let stages = &chain.stages[first - 1..last];
    let kept: u64 = stages.iter().map(|stage| stage.output_bytes + stage.saved_bytes).sum();
    let input = if first > 1 { chain.stages[first - 2].output_bytes } else { 0 };
    let output = if last < chain.stages.len() { chain.stages[last - 1].output_bytes } else { 0 };
    let extra = stages
        .iter()
        .map(|stage| stage.save_extra_bytes.max(stage.backward_extra_bytes.max(0).unsigned_abs()));
    let states: u64 = state_bytes[first - 1..last].iter().sum();
    Device {
        first,
        last,
        time: stages.iter().map(|stage| stage.forward_time + stage.backward_time).sum(),
        in_flight,
        // The gradient of the output that comes in, and the input of each micro-batch.
        bytes: states + in_flight * (kept + input) + output + extra.max().unwrap_or(0),
        sent_bytes: output + input,
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Skip, Stage};
    use super::*;

    fn chain(times: &[f64]) -> Chain {
        let stage = |&time: &f64| Stage {
            output_bytes: 10,
            saved_bytes: 90,
            forward_time: time / 3.0,
            backward_time: time * 2.0 / 3.0,
            ..Stage::default()
        };
        Chain { stages: times.iter().map(stage).collect(), ..Chain::default() }
    }

    #[test]
    fn the_cut_balances_time() {
        let times = [3.0, 1.0, 1.0, 4.0, 2.0, 1.0, 6.0, 3.0];
        for devices in 1..=8u64 {
            let found = split(&chain(&times), &[0; 8], devices, 4, Pipelining::Gpipe, None).unwrap();
            let slowest = found.devices.iter().map(|d| d.time).fold(0.0, f64::max);
            // All cuts, one by one.
            let best =
                (0..1u32 << 7).filter(|cuts| u64::from(cuts.count_ones()) == devices - 1).map(|cuts| {
                    let (mut most, mut sum) = (0.0f64, 0.0);
                    for (i, time) in times.iter().enumerate() {
                        sum += time;
                        if i == 7 || cuts >> i & 1 == 1 {
                            (most, sum) = (most.max(sum), 0.0);
                        }
                    }
                    most
                });
            assert!((slowest - best.fold(f64::INFINITY, f64::min)).abs() < 1e-9, "{devices} devices");
            assert_eq!(found.devices.len() as u64, devices);
            assert!((found.time - slowest * (4 + devices - 1) as f64).abs() < 1e-9);
        }
        assert_eq!(bubble(4, 12).unwrap(), 0.2);
        assert_eq!(bubble(1, 1).unwrap(), 0.0);
    }

    #[test]
    fn fewer_micro_batches_are_held_when_backward_comes_early() {
        let held = |pipelining| -> Vec<u64> {
            let found = split(&chain(&[1.0; 8]), &[0; 8], 4, 6, pipelining, None).unwrap();
            found.devices.iter().map(|device| device.in_flight).collect()
        };
        assert_eq!(held(Pipelining::Gpipe), [6, 6, 6, 6]);
        assert_eq!(held(Pipelining::OneForwardOneBackward), [4, 3, 2, 1]);
    }

    #[test]
    fn a_limit_moves_the_cut_or_is_refused() {
        let chain = chain(&[1.0; 4]);
        let split = |limit| split(&chain, &[1000, 10, 10, 10], 2, 1, Pipelining::Gpipe, limit);
        let ends = |limit| split(limit).map(|found| found.devices[0].last);
        assert_eq!(ends(None).unwrap(), 2);
        assert_eq!(ends(Some(1110)).unwrap(), 1);
        assert!(ends(Some(900)).unwrap_err().to_string().contains("no cut into 2 devices within"));
    }

    #[test]
    fn no_cut_crosses_a_skip() {
        let mut chain = chain(&[1.0; 6]);
        chain.skips.push(Skip { from: 2, to: 5 });
        let lasts = |devices| -> Vec<usize> {
            let found = split(&chain, &[0; 6], devices, 1, Pipelining::Gpipe, None).unwrap();
            found.devices.iter().map(|device| device.last).collect()
        };
        assert_eq!((lasts(2), lasts(3)), (vec![2, 6], vec![2, 5, 6]));
        assert!(split(&chain, &[0; 6], 5, 1, Pipelining::Gpipe, None).is_err());
        assert!(split(&chain, &[0; 6], 7, 1, Pipelining::Gpipe, None).is_err());
    }
}
