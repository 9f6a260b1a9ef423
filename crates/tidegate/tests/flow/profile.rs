//! Profiles are the same with any workers and budgets, agree with plain sums, merge, compare, and
//! refuse damaged files.

use super::*;
use serde_json::Value as Json;
use tidegate::Profile;
use tidegate::dataset::profile::{Diff, Label};

fn profiled(source: &Arc<dyn Source>, options: Options, budget: u64) -> Profile {
    Profile::scan(Arc::clone(source), options, &Budget::new(budget), &|_, _| Ok(())).unwrap()
}

/// The stored profile without the sketches whose library draws at random, and without figures from
/// them.
fn bits(profile: &Profile) -> Json {
    fn without(value: &mut Json) {
        match value {
            Json::Object(map) => {
                map.retain(|key, _| !["kll", "req", "summary"].contains(&key.as_str()));
                map.values_mut().for_each(without);
            }
            Json::Array(list) => list.iter_mut().for_each(without),
            _ => {}
        }
    }
    let mut document = serde_json::from_str(&profile.to_json().unwrap()).unwrap();
    without(&mut document);
    document
}

#[test]
fn a_profile_is_the_same_for_any_workers_batches_and_budgets() {
    let dir = images("profile-same", 90, Form::Tar);
    let source = open(dir.join("*.tar").to_str().unwrap(), false).unwrap();
    let one = profiled(&source, Options { workers: Some(1), ..Options::default() }, 64 << 20);
    for (workers, batch, budget) in [(2, None, 64), (4, None, 24), (4, Some(7), 64), (2, Some(90), 128)] {
        let options = Options { workers: Some(workers), batch_size: batch, ..Options::default() };
        assert_eq!(
            bits(&one),
            bits(&profiled(&source, options, budget << 20)),
            "{workers} workers, batch {batch:?}"
        );
    }
    let again = Profile::from_json(&one.to_json().unwrap()).unwrap();
    assert_eq!(
        (one.summary().unwrap(), bits(&one)["fields"][1].clone()),
        (again.summary().unwrap(), bits(&again)["fields"][1].clone())
    );
}

#[test]
fn profiles_of_images_and_labels_are_right() {
    let dir = images("profile-sums", 60, Form::Tar);
    let source = open(dir.join("*.tar").to_str().unwrap(), false).unwrap();
    let profile = profiled(&source, Options::default(), 64 << 20);
    let options = Options { batch_size: Some(10), ..Options::default() };
    let mut loader = Loader::new(Arc::clone(&source), options, Budget::new(64 << 20)).unwrap();
    let (mut levels, mut labels) = (vec![[0u64; 256]; 3], std::collections::BTreeMap::<i64, u64>::new());
    for batch in loader.epoch().unwrap() {
        let batch = batch.unwrap();
        for pixel in batch.bytes(batch.column("jpg").unwrap()).chunks(3) {
            (0..3).for_each(|c| levels[c][usize::from(pixel[c])] += 1);
        }
        for label in batch.bytes(batch.column("cls").unwrap()).chunks(8) {
            *labels.entry(i64::from_le_bytes(label.try_into().unwrap())).or_default() += 1;
        }
    }
    let (jpg, cls) = (profile.field("jpg").unwrap(), profile.field("cls").unwrap());
    assert_eq!((profile.samples, profile.total, profile.failed), (60, 60, 0));
    assert_eq!(jpg.histograms, levels);
    let told: Vec<_> = cls.tally.counts.iter().map(|(label, &n)| (label.to_string(), n)).collect();
    assert_eq!(told, labels.iter().map(|(label, &n)| (label.to_string(), n)).collect::<Vec<_>>());
    // With these weights all classes count the same, and the mean over samples is 1.
    let weights = cls.class_weights(None).unwrap();
    for (label, weight) in &weights {
        let Label::Int(label) = label else { panic!("a label of another kind") };
        assert!((weight * labels[label] as f64 - 60.0 / labels.len() as f64).abs() < 1e-9);
    }
    let of: f64 = cls
        .class_weights(Some(0.99))
        .unwrap()
        .iter()
        .zip(labels.values())
        .map(|((_, w), &n)| w * n as f64)
        .sum();
    assert!((of - 60.0).abs() < 1e-9);
    // The bytes of samples are those of the index.
    let total = profile.bytes.summary();
    assert!((total.mean.unwrap() * 60.0 - source.size_bounds().total_bytes as f64).abs() < 1e-3);
    // Both sketches are within their error bounds: ids up to 9,999.
    let ids: Arc<dyn Source> = Arc::new(Synthetic::new(10_000, 8));
    let ids = profiled(&ids, Options::default(), 32 << 20);
    let value = ids.field("id").unwrap().measure("value").unwrap();
    for (rank, at) in value.summary().quantiles {
        let error = if rank < 0.95 { value.summary().rank_error } else { 3.0 * (1.0 - rank) * 0.1 + 1e-3 };
        assert!((at / 10_000.0 - rank).abs() <= error + 1e-4, "rank {rank}: {at}");
    }
    let distinct = ids.field("id").unwrap().distinct.estimate(3).unwrap();
    assert!(distinct.low <= 10_000.0 && 10_000.0 <= distinct.high);
}

#[test]
fn training_profiles_its_first_epoch_and_no_other() {
    let source: Arc<dyn Source> = Arc::new(Synthetic::new(1000, 64));
    let options =
        Options { profile: true, batch_size: Some(50), shuffle: Shuffle::Full, ..Options::default() };
    let mut loader = Loader::new(Arc::clone(&source), options, Budget::new(32 << 20)).unwrap();
    // An unfinished epoch does not count.
    assert_eq!(loader.epoch().unwrap().take(3).count(), 3);
    assert_eq!(loader.profile().unwrap().unwrap().samples, 150);
    for _ in 0..2 {
        assert_eq!(loader.epoch().unwrap().count(), 20);
        assert_eq!(loader.profile().unwrap().unwrap().samples, 1000);
    }
    assert!(
        loader.report().accounts.iter().any(|line| line.account == "telemetry" && line.held_bytes > 100_000)
    );
    // Three ranks, merged: every sample once, and no padding.
    let mut whole: Option<Profile> = None;
    for rank in 0..3 {
        let options = Options {
            profile: true,
            global_batch_size: Some(48),
            rank,
            world_size: 3,
            remainder: Remainder::Pad,
            ..Options::default()
        };
        let mut loader = Loader::new(Arc::clone(&source), options, Budget::new(32 << 20)).unwrap();
        assert_eq!(loader.epoch().unwrap().map(|batch| batch.unwrap().rows).sum::<usize>(), 21 * 16);
        let part = loader.profile().unwrap().unwrap();
        match &mut whole {
            Some(whole) => whole.merge(&part).unwrap(),
            None => whole = Some(part),
        }
    }
    let whole = whole.unwrap();
    assert_eq!((whole.samples, whole.total), (1000, 1000));
    let value = whole.field("id").unwrap().measure("value").unwrap().summary();
    assert!((value.mean.unwrap() - 499.5).abs() < 1e-9);
    let unprofiled = Options { batch_size: Some(10), ..Options::default() };
    assert!(Loader::new(source, unprofiled, Budget::new(32 << 20)).unwrap().profile().is_none());
}

#[test]
fn drift_and_leaks_are_found_and_nothing_else() {
    let make = |name: &str, seed, width, classes, samples| {
        let dir = folder(name);
        let recipe = Recipe { samples, classes, seed, width, form: Form::Tar, shard: 100 };
        synth::dataset(&dir, &recipe, &|_| ()).unwrap();
        profiled(&open(dir.join("*.tar").to_str().unwrap(), false).unwrap(), Options::default(), 64 << 20)
    };
    let one = make("profile-drift-1", 1, 64, 4, 400);
    let similar = make("profile-drift-2", 2, 64, 4, 300);
    let other = make("profile-drift-3", 3, 90, 6, 300);
    let drifted = |a: &Profile, b: &Profile| -> Vec<String> {
        let diff = Diff::new(a, b, 0.1).unwrap();
        diff.drifts.iter().filter(|d| d.drifted).map(|d| format!("{} {}", d.field, d.what)).collect()
    };
    assert_eq!(drifted(&one, &similar), Vec::<String>::new());
    let found = drifted(&one, &other);
    for what in ["jpg height", "jpg width", "cls values"] {
        assert!(found.iter().any(|f| f == what), "{found:?}");
    }
    // The same images are in both: all of them leaked.
    let shared = Diff::new(&one, &one, 0.1).unwrap().shared;
    assert!(
        (shared[0].share - 1.0).abs() < 0.05 && Diff::new(&one, &similar, 0.1).unwrap().shared.is_empty()
    );
}

#[test]
fn samples_that_fail_are_left_out_and_named() {
    let dir = images("profile-broken", 40, Form::Folder);
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let (at, bytes) = {
        use tidegate_source::SourceExt as _;
        source.fetch(7).unwrap()
    };
    fs::write(dir.join(&*at.path), &bytes[..bytes.len() / 2]).unwrap();
    let profile = profiled(&source, Options::default(), 64 << 20);
    assert_eq!((profile.samples, profile.failed, profile.failures.len()), (39, 1, 1));
    assert!(profile.failures[0].place.contains("sample 7"), "{:?}", profile.failures);
    let html = profile.to_html().unwrap();
    assert!(html.contains("1 failed") && html.contains("sample 7") && !html.contains("NaN<"));
}

#[test]
fn foreign_and_damaged_profiles_are_refused_in_words() {
    let ids: Arc<dyn Source> = Arc::new(Synthetic::new(10, 8));
    let text = profiled(&ids, Options::default(), 32 << 20).to_json().unwrap();
    let refused = |text: &str| Profile::from_json(text).unwrap_err().to_string();
    assert!(refused("{}").contains("no profile"));
    assert!(refused(&text.replace("\"version\":1", "\"version\":9")).contains("version 9"));
    assert!(refused(&text.replacen("\"kll\":\"", "\"kll\":\"AAAA", 1)).contains("damaged"));
    assert!(refused(&text[..text.len() / 2]).contains("no profile"));
    let images = open(images("profile-other", 4, Form::Folder).to_str().unwrap(), false).unwrap();
    let mut one = profiled(&images, Options::default(), 32 << 20);
    let other = Profile::from_json(&text).unwrap();
    assert!(one.merge(&other).unwrap_err().to_string().contains("other fields"));
    assert!(one.field("nope").unwrap_err().to_string().contains("nope"));
    assert!(Profile::load_for(&*images).unwrap_err().to_string().contains("tidegate profile"));
    let small = Profile::scan(images, Options::default(), &Budget::new(1 << 20), &|_, _| Ok(()));
    assert!(small.unwrap_err().to_string().contains("budget"));
}

#[test]
fn a_profile_of_nothing_says_nothing() {
    let none: Arc<dyn Source> = Arc::new(Synthetic::new(0, 8));
    let profile = profiled(&none, Options::default(), 32 << 20);
    assert_eq!(profile.samples, 0);
    let summary = profile.summary().unwrap();
    assert!(summary["fields"]["id"]["measures"]["value"]["mean"].is_null());
    assert!(!profile.to_html().unwrap().is_empty() && !profile.to_string().is_empty());
    assert!(profile.field("id").unwrap().class_weights(None).is_err());
    assert!(!Diff::new(&profile, &profile, 0.1).unwrap().drifts.iter().any(|d| d.drifted));
}
