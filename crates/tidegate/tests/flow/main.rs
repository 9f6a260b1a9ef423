//! The flow end to end: the same samples whatever the workers, budget, ranks and interruptions;
//! failures by policy.

#![expect(clippy::unwrap_used, reason = "a test")]

mod compact;
mod dedup;
mod groups;
mod kept;
mod knobs;
mod profile;
mod report;
mod samplers;
mod volume;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate::dataset::synth::{self, Form, Recipe};
use tidegate::{
    Batch, Budget, FieldSpec, ImageSpec, Loader, OnError, Options, Remainder, Shuffle, Source, State, open,
};
use tidegate_data::batch::Crop;
use tidegate_source::{OpenOptions, ReadMode, Synthetic, checkpoints, open_with_checkpoints};

/// A folder in the build directory, so that direct reads are tried on a real file system.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn images(name: &str, samples: u64, form: Form) -> PathBuf {
    let dir = folder(name);
    let recipe = Recipe { samples, classes: 4, seed: 3, width: 72, form, shard: 13 };
    synth::dataset(&dir, &recipe, &|_| ()).unwrap();
    dir
}

fn options(batch: u64) -> Options {
    let image = ImageSpec { size: Some((32, 32)), crop: Crop::Random, flip: 0.5, ..ImageSpec::default() };
    Options {
        global_batch_size: Some(batch),
        fields: vec![
            ("image".into(), FieldSpec::Image(image.clone())),
            ("jpg".into(), FieldSpec::Image(image)),
        ],
        shuffle: Shuffle::Full,
        seed: 5,
        ..Options::default()
    }
}

fn loader(source: &Arc<dyn Source>, options: Options, budget: u64) -> Loader {
    let known: Vec<_> = source.schema().iter().map(|f| f.name.clone()).collect();
    let fields = options.fields.iter().filter(|(n, _)| known.contains(n)).cloned().collect();
    Loader::new(Arc::clone(source), Options { fields, ..options }, Budget::new(budget)).unwrap()
}

/// (id, bytes of every column) of each row that is not padding.
fn rows(batch: &Batch) -> Vec<(u64, Vec<u8>)> {
    let row = |r: usize| {
        let mut bytes = Vec::new();
        for column in &batch.columns {
            let all = batch.bytes(column);
            if column.offsets.is_empty() {
                let n = all.len() / batch.rows;
                bytes.extend(&all[r * n..(r + 1) * n]);
            } else {
                let size = column.dtype.size();
                bytes.extend(&all[column.offsets[r] as usize * size..column.offsets[r + 1] as usize * size]);
            }
        }
        (batch.ids[r], bytes)
    };
    (0..batch.rows).filter(|&r| batch.mask[r]).map(row).collect()
}

fn epoch(loader: &mut Loader) -> Vec<(u64, Vec<u8>)> {
    loader.epoch().unwrap().flat_map(|batch| rows(&batch.unwrap())).collect()
}

#[test]
fn the_same_epoch_for_every_form_worker_count_and_budget() {
    let source = open(images("workers", 83, Form::Folder).to_str().unwrap(), false).unwrap();
    let expected = epoch(&mut loader(&source, options(16), 64 << 20));
    let mut ids: Vec<u64> = expected.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..83).collect::<Vec<_>>(), "every sample once");
    for (workers, budget) in [(1, 8 << 20), (2, 10 << 20), (4, 32 << 20), (8, 256 << 20)] {
        let options = Options { workers: Some(workers), ..options(16) };
        assert!(
            epoch(&mut loader(&source, options, budget)) == expected,
            "{workers} workers, {budget} bytes"
        );
    }
}

#[test]
fn direct_reads_go_to_the_kernel_together() {
    let dir = folder("together");
    let recipe = Recipe { samples: 150, classes: 4, seed: 3, width: 300, form: Form::Folder, shard: 13 };
    synth::dataset(&dir, &recipe, &|_| ()).unwrap();
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let mut loader = loader(&source, options(16), 6 << 20);
    assert_eq!(epoch(&mut loader).len(), 150);
    let stages = loader.report().stages;
    if stages.mode != Some(ReadMode::Direct) || io_uring::IoUring::new(2).is_err() {
        return eprintln!("SKIPPED: no direct reads or no io_uring here ({:?})", stages.mode);
    }
    assert!(stages.together > stages.reads / 2, "{stages:?}");
}

#[test]
fn checkpoints_change_nothing_whether_whole_partial_or_damaged() {
    for (name, form) in [("checkpoints-folder", Form::Folder), ("checkpoints-tar", Form::Tar)] {
        let dir = folder(name);
        let recipe = Recipe { samples: 90, classes: 4, seed: 3, width: 300, form, shard: 40 };
        synth::dataset(&dir, &recipe, &|_| ()).unwrap();
        let url = dir.to_str().unwrap();
        let expected = epoch(&mut loader(&open(url, false).unwrap(), options(16), 64 << 20));
        let check = |words: &str, source: &Arc<dyn Source>| {
            for budget in [6 << 20, 64 << 20] {
                let mut loader = loader(source, options(16), budget);
                assert!(epoch(&mut loader) == expected, "{name} {words}");
                let report = loader.report();
                assert_eq!(report.stages.checkpoints, 90, "{name} {words}");
            }
        };
        let source = open_with_checkpoints(url, &OpenOptions::default(), &|_, _| Ok(())).unwrap();
        let index = source.index().unwrap();
        let bytes = index.checkpoints().unwrap().record_bytes() * 90;
        assert!(bytes * 100 <= 6 * source.size_bounds().total_bytes, "{bytes} bytes of checkpoints");
        check("whole", &source);
        let file = index.dir().join("checkpoints");
        let whole = fs::read(&file).unwrap();
        assert_eq!(whole.len() as u64, bytes);
        let mut damaged = whole.clone();
        damaged.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
        fs::write(&file, &damaged).unwrap();
        check("damaged", &source);
        let partial = index.dir().join("checkpoints.partial");
        fs::remove_file(&file).unwrap();
        fs::write(&partial, [&whole[..whole.len() / 3], &vec![0; whole.len() - whole.len() / 3]].concat())
            .unwrap();
        check("partial", &open(url, false).unwrap());
        // Opened by several threads at once: the first makes the index.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| open_with_checkpoints(url, &OpenOptions::default(), &|_, _| Ok(())).unwrap());
            }
        });
        assert!(fs::read(&file).unwrap() == whole && !partial.exists(), "{name}: gone on with");
        check("gone on with", &open(url, false).unwrap());
    }
}

#[test]
fn checkpoints_are_refused_where_they_cannot_be() {
    let source = Arc::new(Synthetic::new(10, 8)) as Arc<dyn Source>;
    let small = images("checkpoints-small", 20, Form::Folder);
    for (source, words) in
        [(source, "only whole sets"), (open(small.to_str().unwrap(), false).unwrap(), "10 KB")]
    {
        let error = checkpoints::make(&*source, &|_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn ranks_put_together_give_the_global_order() {
    let source = open(images("ranks", 53, Form::Tar).to_str().unwrap(), false).unwrap();
    let expected = epoch(&mut loader(&source, options(12), 64 << 20));
    for world in [1, 2, 3, 8] {
        for remainder in [Remainder::Pad, Remainder::Uneven] {
            let mut ranks: Vec<_> = (0..world)
                .map(|rank| {
                    let options = Options { rank, world_size: world, remainder, ..options(12) };
                    loader(&source, options, 64 << 20)
                })
                .collect();
            let lengths: Vec<u64> = ranks.iter().map(Loader::len).collect();
            assert!(lengths.iter().all(|&n| n == 5), "{lengths:?}");
            let mut epochs: Vec<_> = ranks.iter_mut().map(|r| r.epoch().unwrap()).collect();
            let mut found = Vec::new();
            for _ in 0..5 {
                for epoch in &mut epochs {
                    found.extend(rows(&epoch.next().unwrap().unwrap()));
                }
            }
            assert!(found == expected, "{world} ranks, {remainder:?}");
        }
    }
}

#[test]
fn a_state_goes_on_under_other_workers_budget_ranks_and_batches() {
    let source = open(images("resume", 61, Form::Tar).to_str().unwrap(), false).unwrap();
    let mut whole = loader(&source, options(8), 64 << 20);
    let (first, second) = (epoch(&mut whole), epoch(&mut whole));
    assert!(first != second, "epochs differ");
    for stop in [0, 1, 3, 7, 8] {
        let mut before = loader(&source, options(8), 64 << 20);
        let mut seen: Vec<_> = before.epoch().unwrap().take(stop).flat_map(|b| rows(&b.unwrap())).collect();
        let state = State::from_json(&before.state().to_json().unwrap()).unwrap();
        assert!(state.to_json().unwrap().len() <= 1024);
        let other = Options { workers: Some(3), seed: 99, ..options(10) };
        let mut after = loader(&source, other, 12 << 20);
        after.load_state(&state).unwrap();
        // The state after the last batch is the beginning of the next epoch.
        assert_eq!((state.epoch, state.position), if stop == 8 { (1, 0) } else { (0, stop as u64 * 8) });
        if stop < 8 {
            seen.extend(epoch(&mut after));
        }
        assert!(seen == first, "stopped after {stop} batches");
        assert!(epoch(&mut after) == second, "the epoch after it");
    }
    let other = open(images("resume-other", 61, Form::Folder).to_str().unwrap(), false).unwrap();
    let error = loader(&other, options(8), 64 << 20).load_state(&whole.state()).unwrap_err().to_string();
    assert!(error.contains("other data"), "{error}");
}

#[test]
fn a_seek_costs_nothing_at_a_thousand_million() {
    let source: Arc<dyn Source> = Arc::new(Synthetic::new(10_000_000_000, 64));
    let options = Options { batch_size: Some(64), shuffle: Shuffle::Full, ..Options::default() };
    let mut first = loader(&source, options, 64 << 20);
    let mut state = first.state();
    state.position = 1_000_000_000;
    first.load_state(&state).unwrap();
    assert_eq!(first.epoch().unwrap().next().unwrap().unwrap().rows, 64);
    let json = first.state().to_json().unwrap();
    assert!(json.len() <= 1024 && json.contains("1000000064"), "{json}");
}

/// A folder with one truncated image, one empty file, and one file that is not an image.
fn damaged(name: &str) -> Arc<dyn Source> {
    let dir = images(name, 40, Form::Folder);
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir.join("class_000")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let whole = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &whole[..whole.len() / 2]).unwrap();
    fs::write(&files[1], b"").unwrap();
    fs::write(&files[2], b"<html>not found</html>").unwrap();
    open(dir.to_str().unwrap(), false).unwrap()
}

#[test]
fn failing_samples_follow_the_policy() {
    let source = damaged("policy");
    let with = |on_error| loader(&source, Options { on_error, ..options(8) }, 64 << 20);
    let error = with(OnError::Raise).epoch().unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("class_000") && error.contains("field \"image\""), "{error}");

    let mut skipping = with(OnError::Skip);
    let kept = epoch(&mut skipping);
    assert_eq!(kept.len(), 37);
    let report = skipping.report();
    assert_eq!(report.failures.len(), 3, "{:?}", report.failures);
    for word in ["truncated JPEG", "0 bytes where an image belongs", "begins with 3c 68"] {
        assert!(report.failures.iter().any(|f| f.contains(word)), "{word}: {:?}", report.failures);
    }

    let replaced = epoch(&mut with(OnError::Replace));
    assert_eq!(replaced.len(), 40, "positions never shift");
    let one = Options { workers: Some(1), on_error: OnError::Replace, ..options(8) };
    assert!(epoch(&mut loader(&source, one, 10 << 20)) == replaced, "replacements do not depend on workers");

    let strict = |rate| Options { on_error: OnError::Skip, max_failure_rate: Some(rate), ..options(8) };
    assert_eq!(epoch(&mut loader(&source, strict(0.08), 64 << 20)).len(), 37);
    for rate in [0.0, 0.07] {
        let mut loader = loader(&source, strict(rate), 64 << 20);
        let failed = loader.epoch().unwrap().find_map(Result::err).unwrap().to_string();
        assert!(failed.contains("more than the allowed rate"), "a rate that is given is exact: {failed}");
    }
}

#[test]
fn replacements_fit_where_rows_have_many_sizes() {
    let source = damaged("ragged");
    let plain = Options { fields: Vec::new(), on_error: OnError::Replace, ..options(8) };
    let replaced = epoch(&mut loader(&source, plain, 64 << 20));
    assert_eq!(replaced.len(), 40);
    assert!(replaced.iter().all(|(_, bytes)| bytes.len() > 1000), "every row is a image");
}

#[test]
fn the_least_memory_is_enough_for_the_next_epoch_while_a_batch_is_held() {
    let source = open(images("held", 40, Form::Tar).to_str().unwrap(), false).unwrap();
    let fields = vec![options(8).fields.remove(1)];
    let make = |budget| {
        let options = Options { fields: fields.clone(), workers: Some(1), ..options(8) };
        Loader::new(Arc::clone(&source), options, Budget::new(budget))
    };
    let least = (1..200).map(|i| i * 100_000).find(|&b| make(b).is_ok()).unwrap();
    let mut loader = make(least).unwrap();
    let mut held = None;
    for _ in 0..3 {
        for batch in loader.epoch().unwrap() {
            held = Some(batch.unwrap());
        }
    }
    assert!(held.is_some());
}

#[test]
fn too_many_failures_end_the_epoch() {
    let dir = images("rate", 40, Form::Folder);
    for class in fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.ends_with("class_001")) {
        for file in fs::read_dir(class).unwrap() {
            fs::write(file.unwrap().path(), b"nonsense").unwrap();
        }
    }
    for extra in 0..20 {
        fs::write(dir.join(format!("class_001/x{extra}.jpg")), b"nonsense").unwrap();
    }
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let mut skipping = loader(&source, Options { on_error: OnError::Skip, ..options(8) }, 64 << 20);
    let error = skipping.epoch().unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("samples failed") && error.contains("0.01"), "{error}");
}

#[test]
fn keeping_every_batch_is_an_error_and_letting_go_goes_on() {
    let source: Arc<dyn Source> = Arc::new(Synthetic::new(1000, 4));
    let mut loader = loader(&source, Options { batch_size: Some(10), ..Options::default() }, 64 << 20);
    let mut epoch = loader.epoch().unwrap();
    let mut kept = Vec::new();
    let error = loop {
        match epoch.next().unwrap() {
            Ok(batch) => kept.push(batch),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("held by the consumer") && kept.len() >= 2, "{error}");
    let seen = kept.len();
    kept.clear();
    assert_eq!(epoch.count() + seen, 100);
}

#[test]
fn leaving_at_any_moment_frees_everything() {
    let source = open(images("leave", 60, Form::Tar).to_str().unwrap(), false).unwrap();
    for batches in 0..6 {
        let budget = Budget::new(32 << 20);
        let fields = vec![options(8).fields.remove(1)];
        let mut loader =
            Loader::new(Arc::clone(&source), Options { fields, ..options(8) }, budget.clone()).unwrap();
        let kept: Vec<_> = loader.epoch().unwrap().take(batches.min(1)).collect();
        drop(loader.epoch().unwrap().take(batches).collect::<Vec<_>>());
        assert!(kept.iter().all(Result::is_ok));
        drop((kept, loader));
        budget.trim();
        assert_eq!(budget.usage().charged_bytes, 0, "after {batches} batches");
    }
}

#[test]
fn budgets_and_options_that_cannot_work_say_why() {
    let source = open(images("small", 20, Form::Tar).to_str().unwrap(), false).unwrap();
    let fields = vec![options(8).fields.remove(1)];
    let with = |change: &dyn Fn(&mut Options), budget| {
        let mut options = Options { fields: fields.clone(), ..options(8) };
        change(&mut options);
        Loader::new(Arc::clone(&source), options, Budget::new(budget)).unwrap_err().to_string()
    };
    for (error, words) in [
        (with(&|_| (), 100_000), ["too small", "raise memory"]),
        (with(&|o| o.batch_size = Some(3), 64 << 20), ["batch_size", "not both"]),
        (with(&|o| (o.rank, o.world_size) = (2, 2), 64 << 20), ["rank 2", "world_size 2"]),
        (with(&|o| o.fields = vec![("nope".into(), FieldSpec::Int)], 64 << 20), ["nope", "jpg, cls"]),
    ] {
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    }
}

#[test]
fn a_decompression_bomb_is_an_error_at_plan_time_and_skipped_on_request() {
    let dir = images("bomb", 30, Form::Folder);
    let mut bomb =
        fs::read(fs::read_dir(dir.join("class_000")).unwrap().next().unwrap().unwrap().path()).unwrap();
    let at = bomb.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    bomb[at + 5..at + 9].copy_from_slice(&[0xC3, 0x50, 0xC3, 0x50]);
    let resized = vec![options(8).fields.remove(0)];
    let whole = vec![("image".into(), FieldSpec::Image(ImageSpec::default()))];
    // A baseline image is decoded row by row, so its size does no harm. Of a progressive one all
    // coefficients are held.
    for (kind, fields) in [(0xC0, [&resized, &whole]), (0xC2, [&resized, &whole])] {
        bomb[at + 1] = kind;
        fs::write(dir.join("class_000/zz.jpg"), &bomb).unwrap();
        let source = open(dir.to_str().unwrap(), true).unwrap();
        for fields in fields {
            let make = |on_error| {
                let options = Options { fields: fields.clone(), on_error, ..options(8) };
                Loader::new(Arc::clone(&source), options, Budget::new(64 << 20))
            };
            let error = make(OnError::Raise).map(|_| ()).map_err(|error| error.to_string());
            let named = |error: &String| error.contains("zz.jpg") && error.contains("50000 × 50000");
            assert_eq!(
                error.as_ref().err().is_some_and(named),
                fields != &resized || kind == 0xC2,
                "{error:?}"
            );
            assert_eq!(
                make(OnError::Skip).is_err(),
                error.is_err(),
                "a policy does not depend on the budget"
            );
            let mut fields = fields.clone();
            let FieldSpec::Image(image) = &mut fields[0].1 else { unreachable!() };
            image.max_pixels = Some(1_000_000);
            let options = Options { fields, on_error: OnError::Skip, ..options(8) };
            let mut skipping = Loader::new(Arc::clone(&source), options, Budget::new(64 << 20)).unwrap();
            assert_eq!(epoch(&mut skipping).len(), 30);
            let failures = skipping.report().failures;
            assert_eq!(failures.len(), 1);
            assert!(failures[0].contains("max_pixels is 1000000"), "{failures:?}");
            assert!(skipping.budget().usage().peak_bytes <= 64 << 20);
        }
    }
}

#[test]
fn worker_scratch_goes_to_a_batch_that_lacks_memory() {
    let dir = images("give-back", 60, Form::Folder);
    let class = dir.join("class_000");
    let good = fs::read(fs::read_dir(&class).unwrap().next().unwrap().unwrap().path()).unwrap();
    let at = good.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    // Headers that claim much, and more than memory has.
    for side in (500u16..1300).step_by(50).chain([50_000]) {
        let mut large = good.clone();
        large[at + 5..at + 9].copy_from_slice(&[side.to_be_bytes(), side.to_be_bytes()].concat());
        fs::write(class.join(format!("large-{side}.jpg")), large).unwrap();
    }
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let whole = ImageSpec { max_pixels: Some(1_000_000), ..ImageSpec::default() };
    let fields = vec![("image".into(), FieldSpec::Image(whole))];
    for budget in [16 << 20, 17 << 20, 18 << 20, 20 << 20] {
        let options = Options {
            fields: fields.clone(),
            on_error: OnError::Skip,
            max_failure_rate: Some(1.0),
            workers: Some(8),
            ..options(1)
        };
        let mut loader = Loader::new(Arc::clone(&source), options, Budget::new(budget)).unwrap();
        assert_eq!(epoch(&mut loader).len(), 60, "{budget} bytes");
    }
}

#[test]
fn a_file_that_changes_is_named() {
    let dir = images("change", 12, Form::Tar);
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let shard = dir.join("shard-00000.tar");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let error = epoch_error(&mut loader(&source, options(4), 64 << 20));
    assert!(error.contains("shard-00000.tar") && error.contains("truncated"), "{error}");
    let error = open(dir.to_str().unwrap(), false).unwrap_err().to_string();
    assert!(error.contains("shard-00000.tar") && error.contains("truncated"), "{error}");
}

fn epoch_error(loader: &mut Loader) -> String {
    loader.epoch().unwrap().find_map(Result::err).unwrap().to_string()
}

#[test]
fn packing_keeps_every_sample_and_goes_on_after_an_interruption() {
    use tidegate::dataset::pack::{Compression, Format, Limits, pack};
    let source = open(images("pack", 50, Form::Folder).to_str().unwrap(), false).unwrap();
    let expected = epoch(&mut loader(&source, options(8), 64 << 20));
    for (format, name) in [(Format::Mds, "packed-mds"), (Format::Tar, "packed-tar")] {
        let out = folder(name);
        let limits = Limits { bytes: 40_000, samples: u64::MAX };
        let packed =
            pack(&*source, &out, format, limits, &Compression::default(), None, &|_, _| Ok(())).unwrap();
        assert!(packed.shards > 3 && packed.kept == 0, "{packed:?}");
        let again = open(out.to_str().unwrap(), false).unwrap();
        // Names of fields differ between containers, images and labels do not.
        let mut other = options(8);
        other.fields.truncate(2);
        let found = epoch(&mut loader(&again, other, 64 << 20));
        assert!(found == expected, "{format:?}");
    }
}

/// On a file system of 256 KiB: an error that names the file and says what is wrong, and nothing
/// half-written is opened.
#[test]
fn a_full_disk_while_packing_is_named() {
    use tidegate::dataset::pack::{Compression, Format, Limits, pack};
    let source = open(images("full-source", 200, Form::Folder).to_str().unwrap(), false).unwrap();
    let small = folder("full-disk");
    let mount = |arguments: &[&str]| {
        std::process::Command::new(arguments[0]).args(&arguments[1..]).status().is_ok_and(|s| s.success())
    };
    let at = small.to_str().unwrap();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", at]) {
        eprintln!("SKIPPED: no file system can be mounted here; run as root");
        return;
    }
    let limits = Limits { bytes: 1 << 20, samples: u64::MAX };
    let outcome = pack(
        &*source,
        &small.join("out"),
        Format::Mds,
        limits,
        &Compression::default(),
        None,
        &|_, _| Ok(()),
    );
    let opened = open(small.join("out").to_str().unwrap(), false);
    assert!(mount(&["umount", at]));
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("full-disk") && error.contains("No space left"), "{error}");
    assert!(opened.is_err());
}
