//! Every sampler in the loader: the same samples with any workers, budgets, ranks and
//! interruptions; golden orders.

use std::sync::Arc;

use tidegate::loader::{ClassShares, CurriculumPace, MixtureEnd, SampleData};
use tidegate::{Budget, Loader, Options, SamplerSpec};
use tidegate_order::Order;
use tidegate_order::curriculum::{Curriculum, CurriculumSpec, Pace};
use tidegate_order::stratified::{Classes, Shares, Stratified, Until};
use tidegate_order::testing;
use tidegate_order::uniform::Uniform;
use tidegate_order::weighted::Weighted;

use super::{Form, Synthetic, epoch, images, open, options, rows};

const SAMPLES: u64 = 96;

type DecodedColumn = Box<dyn Fn(u64, &Budget) -> Arc<dyn Order>>;

/// Each sampler with its name, under a seed and a budget.
fn samplers() -> Vec<(&'static str, DecodedColumn)> {
    let labels: Vec<u32> =
        (0..SAMPLES as u32).map(|id| u32::from(id % 4 == 0) + u32::from(id % 16 == 0)).collect();
    let weights: Vec<f64> = (0..SAMPLES).map(|id| (id % 5) as f64).collect();
    let quotas = move |shares: Shares| -> DecodedColumn {
        let labels = labels.clone();
        Box::new(move |seed, budget| {
            let classes = Classes::from_labels(&labels, budget).unwrap();
            Arc::new(Stratified::new(classes, &shares, 12, 8, seed, budget).unwrap())
        })
    };
    let curriculum = weights.clone();
    let samplers: Vec<(&'static str, DecodedColumn)> = vec![
        ("even", Box::new(|seed, _| Arc::new(Uniform::new(SAMPLES, 150, 8, seed).unwrap()))),
        (
            "weighted",
            Box::new(move |seed, budget| Arc::new(Weighted::new(&weights, 130, 8, seed, budget).unwrap())),
        ),
        (
            "curriculum",
            Box::new(move |seed, budget| {
                let spec = CurriculumSpec {
                    start: 0.3,
                    epochs: 2.0,
                    pace: Pace::Root,
                    positions: 96,
                    runs: 8,
                    seed,
                };
                Arc::new(Curriculum::new(&curriculum, spec, budget).unwrap())
            }),
        ),
        ("stratified", quotas(Shares::Natural)),
        ("oversampled", quotas(Shares::Oversampled)),
        ("undersampled", quotas(Shares::Undersampled)),
        ("effective", quotas(Shares::Effective { beta: 0.99, positions: 100 })),
        (
            "mixture",
            Box::new(|seed, budget| {
                let shares = Shares::Proportions { weights: vec![1.0, 2.0], until: Until::All };
                let classes = Classes::from_lengths(&[60, 36]).unwrap();
                Arc::new(Stratified::new(classes, &shares, 12, 8, seed, budget).unwrap())
            }),
        ),
    ];
    samplers
}

#[test]
fn every_sampler_is_an_order() {
    for (name, made) in samplers() {
        testing::sampler(&*made(1, &Budget::new(1 << 20)), SAMPLES)
            .unwrap_or_else(|what| panic!("{name}: {what}"));
    }
}

#[test]
fn the_same_whatever_workers_budgets_ranks_and_interruptions() {
    let source = open(images("samplers", SAMPLES, Form::Tar).to_str().unwrap(), false).unwrap();
    for (name, made) in samplers() {
        let loader = |seed: u64, workers: usize, memory: u64, ranks: (u64, u64)| {
            let image = options(12).fields.split_off(1);
            let options = Options {
                fields: image,
                shuffle: tidegate::Shuffle::None,
                seed,
                workers: Some(workers),
                rank: ranks.0,
                world_size: ranks.1,
                ..options(12)
            };
            let budget = Budget::new(memory);
            let order = made(seed, &budget);
            Loader::with_order(source.clone(), options, budget, order).unwrap()
        };
        let mut whole = loader(5, 2, 256 << 20, (0, 1));
        let expected: Vec<_> = (0..3).map(|_| epoch(&mut whole)).collect();
        assert!(expected[0] != expected[1], "{name}: epochs differ");
        let mut small = loader(5, 1, 3 << 20, (0, 1));
        assert!(expected.iter().all(|expected| epoch(&mut small) == *expected), "{name}: other memory");
        // Stopped, and continued by a loader with another seed: the seed of the state counts.
        let mut batches = small.epoch().unwrap();
        let first: Vec<_> = batches.by_ref().take(1).flat_map(|batch| rows(&batch.unwrap())).collect();
        let state = small.state();
        drop(batches);
        let mut other = loader(6, 3, 64 << 20, (0, 1));
        other.load_state(&state).unwrap();
        let mut whole_fourth = loader(5, 2, 256 << 20, (0, 1));
        whole_fourth.set_epoch(3);
        assert!([first, epoch(&mut other)].concat() == epoch(&mut whole_fourth), "{name}: resumed");
        // All ranks together.
        let mut ranks: Vec<_> = (0..3).map(|rank| loader(5, 1, 64 << 20, (rank, 3))).collect();
        let parts: Vec<Vec<_>> = ranks.iter_mut().map(batches_of).collect();
        let together: Vec<_> =
            (0..parts[0].len()).flat_map(|b| parts.iter().flat_map(move |p| p[b].clone())).collect();
        let padding = together.len() - expected[0].len();
        assert!(padding == 0 && together == expected[0], "{name}: ranks");
        // A state of another sampler is refused.
        let order = Uniform::new(SAMPLES, expected[0].len() as u64, 8, 5).unwrap();
        let others = Options { shuffle: tidegate::Shuffle::None, ..options(12) };
        let others =
            Options { fields: others.fields.into_iter().filter(|(n, _)| n == "jpg").collect(), ..others };
        let mut others =
            Loader::with_order(source.clone(), others, Budget::new(64 << 20), Arc::new(order)).unwrap();
        let refused = others.load_state(&state).map_err(|e| e.to_string());
        assert!(name == "even" || refused.unwrap_err().contains("other ids"), "{name}");
    }
}

fn batches_of(loader: &mut Loader) -> Vec<Vec<(u64, Vec<u8>)>> {
    loader.epoch().unwrap().map(|batch| rows(&batch.unwrap())).collect()
}

/// Frozen: a change here breaks the resume of every run in the field.
#[test]
fn golden_samplers() {
    let budget = Budget::new(1 << 20);
    let found: Vec<(&str, Vec<u64>)> = samplers()
        .iter()
        .map(|(name, made)| {
            let epoch = made(42, &budget).epoch(1).unwrap();
            (*name, (0..8).map(|p| epoch.id(p).unwrap()).collect())
        })
        .collect();
    let golden: Vec<(&str, Vec<u64>)> = GOLDEN.iter().map(|(name, ids)| (*name, ids.to_vec())).collect();
    assert_eq!(found, golden);
}

/// Python and Rust users name samplers by their specs.
#[test]
fn specs_make_the_golden_samplers() {
    let labels: Vec<u32> =
        (0..SAMPLES as u32).map(|id| u32::from(id % 4 == 0) + u32::from(id % 16 == 0)).collect();
    let weights: Vec<f64> = (0..SAMPLES).map(|id| (id % 5) as f64).collect();
    let classes = |shares, beta, positions| SamplerSpec::Classes { shares, beta, positions, block: Some(12) };
    let (sizes, proportions) = (vec![60, 36], vec![1.0, 2.0]);
    let (until, block) = (MixtureEnd::All, Some(12));
    let (weighted, labelled) = (SampleData::Weights64(&weights), SampleData::Labels(&labels));
    let (start, epochs, pace) = (0.3, 2.0, CurriculumPace::Root);
    let specs = [
        (SamplerSpec::Even { positions: Some(150) }, SampleData::None),
        (SamplerSpec::Weighted { positions: Some(130) }, weighted),
        (
            SamplerSpec::Curriculum { start, epochs, pace, positions: None },
            SampleData::Difficulties(&weights),
        ),
        (classes(ClassShares::Stratified, 0.0, None), labelled),
        (classes(ClassShares::Over, 0.0, None), labelled),
        (classes(ClassShares::Under, 0.0, None), labelled),
        (classes(ClassShares::Effective, 0.99, Some(100)), labelled),
        (SamplerSpec::Mixture { sizes, proportions, until, block }, SampleData::None),
    ];
    let (source, budget) = (Synthetic::new(SAMPLES, 8), Budget::new(1 << 20));
    let options = Options { batch_size: Some(12), seed: 42, ..Options::default() };
    for ((spec, data), (name, ids)) in specs.iter().zip(GOLDEN) {
        let epoch = spec.order(*data, &source, &options, &budget).unwrap().epoch(1).unwrap();
        assert_eq!((0..8).map(|p| epoch.id(p).unwrap()).collect::<Vec<_>>(), ids, "{name}");
    }
    let error = specs[1].0.order(SampleData::Weights32(&[1.0]), &source, &options, &budget).unwrap_err();
    assert!(error.to_string().contains("1 weights for 96 samples: give one for each"), "{error}");
}

const GOLDEN: [(&str, [u64; 8]); 8] = [
    ("even", [94, 77, 13, 64, 88, 84, 2, 92]),
    ("weighted", [94, 77, 13, 64, 88, 84, 3, 92]),
    ("curriculum", [58, 92, 45, 47, 43, 28, 5, 63]),
    ("stratified", [62, 7, 81, 74, 33, 72, 42, 91]),
    ("oversampled", [60, 7, 48, 20, 33, 80, 42, 84]),
    ("undersampled", [40, 2, 0, 20, 39, 64, 43, 76]),
    ("effective", [36, 55, 64, 28, 41, 16, 38, 92]),
    ("mixture", [77, 55, 75, 80, 28, 93, 56, 94]),
];
