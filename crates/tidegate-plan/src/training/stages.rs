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

use super::batch::MOST_PARTS;
use super::chain::{Chain, Stage};
use crate::error::{Error, MOST_BYTES, Result, counted_to};

/// The most stages of a chain that is cut.
const MOST_STAGES: u64 = 2000;

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
/// [`Error::Parameter`] for no devices, no micro-batches, or more than 2^16.
pub fn bubble(devices: u64, micro_batches: u64) -> Result<f64> {
    let p = counted_to("devices", devices, MOST_PARTS)?;
    let m = counted_to("micro_batches", micro_batches, MOST_PARTS)?;
    Ok((p - 1) as f64 / (m + p - 1) as f64)
}

/// Cuts a chain, whose bytes and times are those of one micro-batch, for `devices` devices.
///
/// `state_bytes` are the parameters, gradients and optimizer of each stage. With `limit_bytes`,
/// only cuts whose devices all stay within it are looked at.
///
/// # Errors
/// [`Error::Parameter`] for fewer stages than devices, or more than 2,000; [`Error::Config`] for
/// state bytes of another number of stages, and when no cut fits or all would cross a skip.
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
        return Err(Error::parameter(
            "devices",
            devices,
            format!("they must be at most the {count} stages of the chain"),
        ));
    }
    counted_to("the number of stages", count as u64, MOST_STAGES)?;
    if let Some(bytes) = state_bytes.iter().find(|&&bytes| bytes > MOST_BYTES) {
        return Err(Error::parameter("state bytes", bytes, "they must be at most 2^42"));
    }
    if state_bytes.len() != count {
        let what = format!("{} state bytes of {count} stages: give one for each", state_bytes.len());
        return Err(Error::Config(what));
    }
    let p = devices as usize;
    let sums = Sums::new(chain, state_bytes);
    let in_flight = |number: usize| match pipelining {
        Pipelining::Gpipe => micro_batches,
        Pipelining::OneForwardOneBackward => micro_batches.min(devices - number as u64),
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
            let mut extra = 0;
            for first in (n..=last).rev() {
                let before = slowest[n - 1][first - 1].0;
                extra = extra.max(extra_of(&chain.stages[first - 1]));
                let found = sums.device(first, last, in_flight(n - 1), extra);
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
        let extra = chain.stages[first - 1..last].iter().map(extra_of).max().unwrap_or(0);
        found.push(sums.device(first, last, in_flight(n - 1), extra));
        last = first - 1;
    }
    found.reverse();
    Ok(Split { devices: found, time: time * (micro_batches + devices - 1) as f64, bubble })
}

/// Bytes that a stage takes at its worst moment, besides what it keeps.
fn extra_of(stage: &Stage) -> u64 {
    stage.save_extra_bytes.max(stage.backward_extra_bytes.max(0).unsigned_abs())
}

/// Sums over the first stages of a chain.
struct Sums<'a> {
    chain: &'a Chain,
    times: Vec<f64>,
    kept: Vec<u64>,
    states: Vec<u64>,
}

impl<'a> Sums<'a> {
    fn new(chain: &'a Chain, state_bytes: &[u64]) -> Self {
        let (mut times, mut kept, mut states) = (vec![0.0], vec![0], vec![0]);
        for (stage, bytes) in chain.stages.iter().zip(state_bytes) {
            times.push(times.last().unwrap_or(&0.0) + stage.forward_time + stage.backward_time);
            kept.push(kept.last().unwrap_or(&0) + stage.output_bytes + stage.saved_bytes);
            states.push(states.last().unwrap_or(&0) + bytes);
        }
        Self { chain, times, kept, states }
    }

    fn device(&self, first: usize, last: usize, in_flight: u64, extra: u64) -> Device {
        let input = if first > 1 { self.chain.stages[first - 2].output_bytes } else { 0 };
        let output =
            if last < self.chain.stages.len() { self.chain.stages[last - 1].output_bytes } else { 0 };
        let kept = self.kept[last] - self.kept[first - 1] + input;
        Device {
            first,
            last,
            time: self.times[last] - self.times[first - 1],
            in_flight,
            // The gradient of the output that comes in, and the input of each micro-batch.
            bytes: (self.states[last] - self.states[first - 1])
                .saturating_add(in_flight.saturating_mul(kept))
                .saturating_add(output + extra),
            sent_bytes: output + input,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Skip;
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
