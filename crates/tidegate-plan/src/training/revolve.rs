//! Revolve: the fewest forward steps of a uniform chain with a given number of checkpoints.
//!
//! Flow: steps, checkpoints -> [`advances`], [`schedule`]; called by `segments` and by users.
//! Memory: holds none; a schedule takes a few words a stage.
//!
//! Source: A. Griewank, A. Walther, "Algorithm 799: revolve", ACM TOMS 26(1), 2000. With s
//! checkpoints, the input's included, beta(s, r) = C(s + r, s) steps can be reversed when none runs
//! more than r times; the least number of forward steps is t(l, s) = r·l − beta(s + 1, r − 1).

use super::schedule::{DEEPEST, Schedule, Step};
use crate::error::{Result, at_least_one, counted_to};

/// C(s + r, s), or the largest number where it is larger.
fn beta(s: u64, r: u64) -> u64 {
    let mut value: u128 = 1;
    for i in 1..=s.min(r) {
        value = value * u128::from(s.max(r) + i) / u128::from(i);
        if value > u128::from(u64::MAX) {
            return u64::MAX;
        }
    }
    value as u64
}

/// The least forward steps that run besides those of the backward itself.
///
/// # Errors
/// [`crate::Error::Parameter`] for no checkpoints, no steps, or more than 2^31.
///
/// # Example
/// ```
/// use tidegate_plan::training::revolve::advances;
/// assert_eq!([advances(10, 3)?, advances(100, 10)?, advances(1000, 10)?], [15, 222, 3636]);
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn advances(steps: u64, checkpoints: u64) -> Result<u64> {
    counted_to("steps", steps, 1 << 31)?;
    at_least_one("checkpoints", checkpoints)?;
    Ok(least(steps, checkpoints))
}

fn least(steps: u64, checkpoints: u64) -> u64 {
    if steps <= 1 {
        return 0;
    }
    let s = checkpoints.min(steps - 1);
    let r = runs(steps, s);
    r * steps - beta(s + 1, r - 1)
}

/// How many times a step runs forward at most: with one checkpoint `steps - 1`, else far fewer.
fn runs(steps: u64, checkpoints: u64) -> u64 {
    if checkpoints == 1 {
        return steps.saturating_sub(1).max(1);
    }
    (1..).find(|&r| beta(checkpoints, r) >= steps).unwrap_or(1)
}

/// A schedule with that many forward steps: of `stages` equal ones, with `checkpoints` inputs kept
/// at a time.
///
/// # Errors
/// [`crate::Error::Parameter`] for no stages or no checkpoints, and for more than 2^12 stages,
/// or for checkpoints with which a stage would run more than 100 times.
pub fn schedule(stages: u64, checkpoints: u64) -> Result<Schedule> {
    counted_to("stages", stages, 1 << 12)?;
    at_least_one("checkpoints", checkpoints)?;
    let runs = runs(stages, checkpoints.min(stages.max(2) - 1));
    if runs > DEEPEST {
        let what = format!(
            "{stages} stages with {checkpoints} checkpoints would run up to {runs} times, and {DEEPEST} is the \
             most: give more checkpoints"
        );
        return Err(crate::Error::Config(what));
    }
    let mut steps = Schedule::new();
    reverse(1, stages, checkpoints, &mut steps);
    Ok(steps)
}

/// Appends the steps of `count` stages from `first` on.
fn reverse(mut first: u64, mut count: u64, mut checkpoints: u64, steps: &mut Schedule) {
    while count > 1 {
        let split = split(count, checkpoints);
        let mut inner = Schedule::new();
        reverse(first, split, checkpoints, &mut inner);
        steps.push(Step::Recompute(inner));
        (first, count) = (first + split, count - split);
        checkpoints = checkpoints.saturating_sub(1).max(1);
    }
    steps.push(Step::Store(first as usize));
}

/// How many stages to advance before the next checkpoint.
fn split(count: u64, checkpoints: u64) -> u64 {
    if checkpoints == 1 {
        return count - 1;
    }
    let costs = |k: u64| k + least(count - k, checkpoints - 1) + least(k, checkpoints);
    (1..count).min_by_key(|&k| costs(k)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Chain, Stage};
    use super::super::schedule::{Phase, replay};
    use super::*;

    /// The recursion that the formula solves: advance k, reverse the rest with one checkpoint
    /// less, then the first k.
    fn by_recursion(most: usize, checkpoints: usize) -> Vec<Vec<u64>> {
        let mut least = vec![vec![0; most + 1]; checkpoints + 1];
        for s in 1..=checkpoints {
            for l in 2..=most {
                least[s][l] = match s {
                    1 => (l * (l - 1) / 2) as u64,
                    _ => (1..l).map(|k| k as u64 + least[s - 1][l - k] + least[s][k]).min().unwrap(),
                };
            }
        }
        least
    }

    #[test]
    fn the_formula_is_the_optimum_of_the_recursion() {
        let least = by_recursion(40, 8);
        for (s, row) in least.iter().enumerate().skip(1) {
            for (l, expected) in row.iter().enumerate().skip(1) {
                assert_eq!(advances(l as u64, s as u64).unwrap(), *expected, "{l} steps, {s} checkpoints");
            }
        }
        assert!(advances(0, 1).is_err() && advances(1, 0).is_err());
        // Large numbers are no trouble: with 60 checkpoints 2^31 steps run a few times each.
        assert!(advances(1 << 31, 60).unwrap() < 8 << 31);
    }

    #[test]
    fn a_schedule_runs_that_many_forwards_and_keeps_that_many_inputs() {
        for (l, s) in [(1, 1), (2, 1), (10, 3), (23, 2), (40, 5), (100, 10)] {
            let mut stages =
                vec![Stage { output_bytes: 1, forward_time: 1.0, backward_time: 0.0, ..Stage::default() }; l];
            stages[l - 1].output_bytes = 0;
            let chain = Chain { stages, ..Chain::default() };
            let found = replay(&chain, &schedule(l as u64, s).unwrap()).unwrap();
            assert_eq!(found.time, (l as u64 + advances(l as u64, s).unwrap()) as f64, "{l}, {s}");
            // Besides the checkpoints (the input is not counted): what runs, and its input.
            let forward = found.moments.iter().filter(|m| m.phase != Phase::Backward);
            let most = forward.map(|m| m.bytes.boundaries).max().unwrap();
            assert!(most <= s + 1, "{l} stages, {s} checkpoints: {most} boundaries");
        }
    }
}
