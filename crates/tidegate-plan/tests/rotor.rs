//! Rotor's table against every memory-persistent schedule, and against schedules of any kind.
//!
//! Flow: random small chains -> the table, all nested schedules replayed, and a search over all
//! states -> equal times, stated distances, no replay above its budget.
//! Memory: some megabytes.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tidegate_core::hash::{GOLDEN, splitmix64};
use tidegate_plan::training::chain::{Chain, Gradients, Keep, Skip, Stage};
use tidegate_plan::training::rotor::Table;
use tidegate_plan::training::schedule::{Schedule, Step, plain, replay};

/// Numbers from a seed, by SplitMix64.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        let word = splitmix64(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        word % n
    }
}

/// A chain of small whole numbers, so that times are exact.
fn drawn(draws: &mut Draws, stages: usize, with_skips: bool, with_keeps: bool) -> Chain {
    let stage = |draws: &mut Draws, last: bool| Stage {
        output_bytes: if last { 0 } else { 1 + draws.below(5) },
        output_gradient_bytes: (draws.below(3) == 0).then(|| draws.below(9)),
        saved_bytes: draws.below(12),
        gradient_bytes: draws.below(3),
        forward_extra_bytes: draws.below(4),
        save_extra_bytes: draws.below(4),
        backward_extra_bytes: draws.below(7) as i64 - 3,
        forward_time: (1 + draws.below(8)) as f64,
        backward_time: (1 + draws.below(14)) as f64,
        keeps: (0..if with_keeps { draws.below(3) } else { 0 })
            .map(|_| Keep { name: "other".into(), bytes: draws.below(5), time: draws.below(6) as f64 })
            .collect(),
        ..Stage::default()
    };
    let all = (1..=stages).map(|i| stage(draws, i == stages)).collect();
    let mut skips = Vec::new();
    while with_skips && stages > 2 && draws.below(3) > 0 {
        let from = 1 + draws.below(stages as u64 - 2) as usize;
        let to = from + 2 + draws.below((stages - from - 1) as u64) as usize;
        skips.push(Skip { from, to });
    }
    let gradients = [Gradients::Kept, Gradients::Resident, Gradients::Fused][draws.below(3) as usize];
    Chain { stages: all, skips, gradients }
}

/// Every memory-persistent schedule of stages `from` to `to`.
fn all_schedules(chain: &Chain, from: usize, to: usize) -> Vec<Schedule> {
    if from > to {
        return vec![Vec::new()];
    }
    let mut found = Vec::new();
    let stored = (0..chain.stages[from - 1].keeps.len()).map(|keep| Step::Keep { stage: from, keep });
    let stored: Vec<Step> = std::iter::once(Step::Store(from)).chain(stored).collect();
    for rest in all_schedules(chain, from + 1, to) {
        found.extend(stored.iter().map(|first| std::iter::once(first.clone()).chain(rest.clone()).collect()));
    }
    for end in from..to {
        for first in all_schedules(chain, from, end) {
            for rest in all_schedules(chain, end + 1, to) {
                let segment = Step::Recompute(first.clone());
                found.push(std::iter::once(segment).chain(rest).collect());
            }
        }
    }
    found
}

/// For every budget, the least time of any schedule; by its peak.
fn fastest_by_peak(chain: &Chain) -> Vec<(u64, f64)> {
    let all = all_schedules(chain, 1, chain.stages.len());
    all.iter().map(|schedule| replay(chain, schedule).unwrap()).map(|r| (r.peak.total(), r.time)).collect()
}

fn plain_peak(chain: &Chain) -> u64 {
    replay(chain, &plain(chain.stages.len())).unwrap().peak.total()
}

#[test]
fn the_table_has_the_optimum_of_all_persistent_schedules() {
    let mut draws = Draws(1);
    let mut pairs = 0;
    for round in 0..400 {
        let stages = 1 + draws.below(if round % 20 == 0 { 7 } else { 6 }) as usize;
        let keeps = round % 4 == 0 && stages < 6;
        let chain = drawn(&mut draws, stages, round % 2 == 0, keeps);
        let limit = plain_peak(&chain) + 3;
        let table = Table::solve(&chain, limit, limit as u32).unwrap();
        let all = fastest_by_peak(&chain);
        for budget in 0..=limit {
            let fits = all.iter().filter(|(peak, _)| *peak <= budget).map(|(_, time)| *time);
            let expected = fits.reduce(f64::min);
            assert_eq!(table.time(budget), expected, "budget {budget} of {chain:?}");
            pairs += 1;
            let Some((schedule, time)) = table.schedule(budget).unwrap() else { continue };
            let found = replay(&chain, &schedule).unwrap();
            assert_eq!(found.time, time, "{schedule:?}");
            assert!(found.peak.total() <= budget, "{} of {budget} for {schedule:?}", found.peak.total());
        }
    }
    assert!(pairs > 10_000, "{pairs}");
}

#[test]
fn a_thousand_random_pairs_stay_within_their_budgets() {
    let mut draws = Draws(2);
    let mut pairs = 0;
    while pairs < 1000 {
        let stages = 5 + draws.below(30) as usize;
        let chain = drawn(&mut draws, stages, pairs % 3 == 0, pairs % 5 == 0);
        let full = plain_peak(&chain);
        let table = Table::solve(&chain, full, 40 + draws.below(120) as u32).unwrap();
        for _ in 0..4 {
            let budget = full / 5 + draws.below(full);
            let Some((schedule, time)) = table.schedule(budget).unwrap() else { continue };
            let found = replay(&chain, &schedule).unwrap();
            assert!(found.peak.total() <= budget, "{} of {budget}", found.peak.total());
            assert_eq!(found.time, time);
            pairs += 1;
        }
    }
}

/// What is kept: outputs and saved stages as bit sets, and the stage whose backward is next.
type State = (u32, u32, usize);

/// The least time of any schedule at all, which may drop and remake what it likes: Dijkstra's
/// search over what is kept. Of chains without skips and other forms, whose gradients are kept.
fn fastest_of_all(chain: &Chain, budget: u64) -> Option<u64> {
    let count = chain.stages.len();
    let stage = |i: usize| &chain.stages[i - 1];
    let incoming = |i: usize| match i > 0 && i < count {
        true => stage(i).output_gradient_bytes.unwrap_or(stage(i).output_bytes),
        false => 0,
    };
    let later = |i: usize| (i + 1..=count).map(|t| stage(t).gradient_bytes).sum::<u64>();
    let has = |set: u32, i: usize| set >> i & 1 == 1;
    let kept = |i: usize| stage(i).output_bytes + stage(i).saved_bytes;
    let held = |(outputs, saved, next): State| {
        let outputs: u64 = (1..=count).filter(|&i| has(outputs, i)).map(|i| stage(i).output_bytes).sum();
        let saved: u64 = (1..=count).filter(|&i| has(saved, i)).map(kept).sum();
        outputs + saved + incoming(next) + later(next)
    };
    let mut least = HashMap::from([((1, 0, count), 0)]);
    let mut open = BinaryHeap::from([Reverse((0, (1, 0, count)))]);
    while let Some(Reverse((time, state))) = open.pop() {
        let (outputs, saved, next) = state;
        if next == 0 {
            return Some(time);
        }
        if time > least[&state] {
            continue;
        }
        let now = held(state);
        let mut to = |time: u64, state: State| {
            if least.get(&state).is_none_or(|known| time < *known) {
                least.insert(state, time);
                open.push(Reverse((time, state)));
            }
        };
        for i in 1..=count {
            if has(outputs, i) {
                to(time, (outputs & !(1 << i), saved, next));
            }
            if has(saved, i) {
                to(time, (outputs, saved & !(1 << i), next));
            }
            if i > next || !(has(outputs, i - 1) || has(saved, i - 1)) || has(saved, i) {
                continue;
            }
            let forward = time + stage(i).forward_time as u64;
            let passing = now + stage(i).output_bytes + stage(i).forward_extra_bytes;
            if !has(outputs, i) && i < next && passing <= budget {
                to(forward, (outputs | 1 << i, saved, next));
            }
            let there = if has(outputs, i) { stage(i).output_bytes } else { 0 };
            if now - there + kept(i) + stage(i).save_extra_bytes <= budget {
                to(forward, (outputs & !(1 << i), saved | 1 << i, next));
            }
        }
        if has(saved, next) && (has(outputs, next - 1) || has(saved, next - 1)) {
            let made = incoming(next - 1) + stage(next).gradient_bytes;
            let own = kept(next) + incoming(next);
            let worst = (own + made).saturating_add_signed(stage(next).backward_extra_bytes);
            if now - own + worst <= budget {
                let backward = time + stage(next).backward_time as u64;
                to(backward, (outputs & !(1 << next), saved & !(1 << next), next - 1));
            }
        }
    }
    None
}

/// How far memory-persistent schedules are from the best of all kinds, on random chains: four of
/// five are equal, the mean is within 2 %. Whatever fits at all fits here too, in the table's way.
#[test]
fn the_distance_to_schedules_of_any_kind_is_small() {
    let mut draws = Draws(3);
    let (mut pairs, mut equal, mut sum, mut worst, mut only) = (0, 0, 0.0, 1.0f64, 0);
    for _ in 0..250 {
        let stages = 2 + draws.below(5) as usize;
        let mut chain = drawn(&mut draws, stages, false, false);
        chain.gradients = Gradients::Kept;
        let full = plain_peak(&chain);
        let table = Table::solve(&chain, full, full as u32).unwrap();
        for part in [40, 55, 70, 85, 100] {
            let budget = full * part / 100;
            let (found, best) = (table.time(budget), fastest_of_all(&chain, budget));
            match (found, best) {
                (Some(found), Some(best)) => {
                    let ratio = found / best as f64;
                    assert!(ratio >= 1.0, "{ratio} at {budget} of {chain:?}");
                    pairs += 1;
                    equal += u32::from(ratio == 1.0);
                    sum += ratio;
                    worst = worst.max(ratio);
                }
                (Some(_), None) => panic!("a schedule of the table that the search does not find: {chain:?}"),
                (None, Some(_)) => only += 1,
                (None, None) => {}
            }
        }
    }
    println!(
        "{pairs} pairs: {equal} equal, mean {}, worst {worst}; {only} fit only otherwise",
        sum / f64::from(pairs)
    );
    assert!(pairs > 400 && f64::from(equal) > 0.75 * f64::from(pairs), "{equal} of {pairs}");
    assert!(sum / f64::from(pairs) < 1.02 && worst < 1.4, "mean {}, worst {worst}", sum / f64::from(pairs));
}

/// 64 equal stages that save three times their boundary, forward 1 and backward 2.
#[test]
fn the_uniform_table_is_that_of_the_reference() {
    let stage =
        Stage { output_bytes: 1, saved_bytes: 2, forward_time: 1.0, backward_time: 2.0, ..Stage::default() };
    let stages = vec![stage; 64];
    let chain = Chain { stages, ..Chain::default() };
    let table = Table::solve(&chain, 200, 200).unwrap();
    let ratio = |budget| (table.time(budget).unwrap() / 192.0 * 1000.0).round() / 1000.0;
    let found = [10, 14, 18, 24, 32, 64, 128].map(ratio);
    assert_eq!(found, [1.839, 1.563, 1.448, 1.318, 1.292, 1.229, 1.115]);
}
