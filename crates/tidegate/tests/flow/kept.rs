//! Epochs are the same whatever the caches in memory and on disk hold, and whatever the budget.

use tidegate::dataset::synth::{self, Form, Recipe};
use tidegate::{Budget, FieldSpec, Loader, Options, open};
use tidegate_core::memory::size::Size;
use tidegate_data::batch::{Crop, ImageSpec};
use tidegate_data::cache::DiskCache;
use tidegate_data::cache::Policy;
use tidegate_data::pipeline::Keep;
use tidegate_decode::npy::DType;
use tidegate_order::explicit::{Ids, List, Listing};
use tidegate_source::{OpenOptions, ReadMode, open_with_checkpoints};

use super::{epoch, folder, images, loader, options, rows};

#[test]
fn epochs_are_the_same_with_samples_kept_in_memory_and_hits_are_what_fits() {
    for (name, form) in [("kept-folder", Form::Folder), ("kept-tar", Form::Tar)] {
        let dir = folder(name);
        let recipe = Recipe { samples: 300, classes: 4, seed: 3, width: 200, form, shard: 60 };
        synth::dataset(&dir, &recipe, &|_| ()).unwrap();
        let url = dir.to_str().unwrap();
        let source = open_with_checkpoints(url, &OpenOptions::default(), &|_, _| Ok(())).unwrap();
        let total = source.size_bounds().total_bytes;
        let mut all = loader(&source, options(16), 256 << 20);
        let expected: Vec<_> = (0..4).map(|_| epoch(&mut all)).collect();
        let stages = all.report().stages;
        assert_eq!(
            (stages.mode, stages.hits),
            (Some(ReadMode::Plain), 300),
            "in memory, once they were read"
        );
        for budget in [5 << 20, 7 << 20, 3 * total / 2 + (7 << 20)] {
            let mut loader = loader(&source, options(16), budget);
            for (number, expected) in expected.iter().enumerate() {
                assert!(epoch(&mut loader) == *expected, "{name}, epoch {number}, budget {budget}");
                let s = loader.report().stages;
                let limit = s.cache_limit_bytes;
                assert!(s.cache_held_bytes <= limit && limit > 0, "{s:?}");
                if number > 0 {
                    assert_eq!(s.could_hit_bytes, limit.min(total));
                    // A cache of 40 samples wastes some of it at the ends of pages.
                    let least = if limit > total * 11 / 10 { 100 } else { 80 };
                    assert!(s.hit_bytes * 100 >= least * s.could_hit_bytes, "{name}: {s:?}");
                    assert_eq!((s.checkpoints, s.reads > 0), (300, s.hits < 300), "{s:?}");
                } else {
                    assert_eq!((s.hits, s.could_hit_bytes), (0, 0));
                }
            }
            drop(loader);
        }
    }
}

#[test]
fn memory_changes_in_the_middle_of_an_epoch_change_nothing_else() {
    for (name, form) in [("resized-folder", Form::Folder), ("resized-tar", Form::Tar)] {
        let source = open(images(name, 240, form).to_str().unwrap(), false).unwrap();
        let expected: Vec<_> = {
            let mut loader = loader(&source, options(8), 256 << 20);
            (0..3).map(|_| epoch(&mut loader)).collect()
        };
        for (turn, workers) in [(0usize, 1), (1, 2), (2, 4)] {
            let sizes = [5u64 << 20, 40 << 20, 6 << 20, 24 << 20, 5 << 20, 9 << 20];
            let mut loader = loader(&source, Options { workers: Some(workers), ..options(8) }, 64 << 20);
            for expected in &expected {
                let mut seen = Vec::new();
                let mut held = Vec::new();
                for batch in loader.epoch().unwrap() {
                    let batch = batch.unwrap();
                    seen.extend(rows(&batch));
                    held.push(batch);
                    // The consumer holds one batch, as it does while a step runs.
                    held.drain(..held.len() - 1);
                    if (held[0].number as usize + turn).is_multiple_of(4) {
                        let cap = sizes[(held[0].number as usize / 4 + turn) % sizes.len()];
                        loader.set_memory(&Size::Bytes(cap)).unwrap();
                        let charged = loader.budget().usage().charged_bytes;
                        assert!(charged <= cap, "{charged} of {cap}");
                    }
                }
                assert!(seen == *expected, "{name}, {workers} workers");
            }
        }
    }
}

#[test]
fn too_little_memory_is_refused_and_changes_nothing() {
    let source = open(images("resized-badly", 60, Form::Tar).to_str().unwrap(), false).unwrap();
    let mut loader = loader(&source, options(8), 64 << 20);
    let mut batches = loader.epoch().unwrap();
    let first = batches.next().unwrap().unwrap();
    let error = loader.set_memory(&Size::Bytes(100 << 10)).unwrap_err().to_string();
    assert!(error.contains("needs at least"), "{error}");
    assert_eq!(loader.budget().cap_bytes(), 64 << 20);
    // The consumer holds all slots that fit in memory: it gets an error, and nothing is lost.
    let mut seen = rows(&first);
    let mut held = vec![first];
    for batch in batches.by_ref().take(3) {
        let batch = batch.unwrap();
        seen.extend(rows(&batch));
        held.push(batch);
    }
    let least = (1..).map(|n| n << 18).find(|&bytes| loader.set_memory(&Size::Bytes(bytes)).is_ok());
    assert!(least.is_some_and(|bytes| bytes <= 5 << 20), "{least:?}");
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(error, tidegate_data::Error::Held { .. }), "{error}");
    held.clear();
    seen.extend(batches.flat_map(|batch| rows(&batch.unwrap())));
    let mut whole = self::loader(&source, options(8), 64 << 20);
    assert!(seen == epoch(&mut whole));
}

#[test]
fn epochs_are_the_same_with_samples_kept_on_disk_and_the_next_run_reads_nothing_else() {
    for (name, form) in [("disk-folder", Form::Folder), ("disk-tar", Form::Tar)] {
        let (dir, cache) = (folder(name), folder(&format!("{name}-cache")));
        let recipe = Recipe { samples: 240, classes: 4, seed: 3, width: 400, form, shard: 60 };
        synth::dataset(&dir, &recipe, &|_| ()).unwrap();
        let source = open(dir.to_str().unwrap(), false).unwrap();
        let expected: Vec<_> = {
            let mut loader = loader(&source, options(16), 64 << 20);
            (0..3).map(|_| epoch(&mut loader)).collect()
        };
        // What memory does not hold: all of it on disk, then a third of it, then what another run
        // left there.
        let total = source.size_bounds().total_bytes;
        for (limit, workers, least, most) in
            [(64 << 20, 1, 240, 240), (4 << 20, 2, 45, 200), (64 << 20, 4, 240, 240)]
        {
            let disk = DiskCache { folder: cache.clone(), limit_bytes: limit, leave_free_bytes: 0 };
            let options = Options { disk: Some(disk), workers: Some(workers), ..options(16) };
            for run in 0..2 {
                // The smallest budget, so that memory holds little.
                let mut loader = loader(&source, options.clone(), 7 << 20);
                for (number, expected) in expected.iter().enumerate() {
                    assert!(epoch(&mut loader) == *expected, "{name}, epoch {number}, limit {limit}");
                    let s = loader.report().stages;
                    assert!(s.disk_held_bytes <= limit, "{s:?}");
                    if run + number > 0 && limit > total {
                        assert_eq!((s.reads, s.hits + s.disk_hits), (0, 240), "{name}: {s:?}");
                    }
                    if run + number > 0 {
                        let kept = s.hits + s.disk_hits;
                        assert!((least..=most).contains(&kept), "{name}, limit {limit}: {s:?}");
                    }
                }
            }
            std::fs::remove_dir_all(&cache).unwrap();
        }
    }
}

#[test]
fn every_combination_of_tiers_and_any_change_of_the_budget_give_the_same_epochs() {
    let dir = folder("combined");
    let recipe = Recipe { samples: 200, classes: 4, seed: 3, width: 300, form: Form::Tar, shard: 60 };
    synth::dataset(&dir, &recipe, &|_| ()).unwrap();
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let expected: Vec<_> = {
        let mut loader = loader(&source, options(8), 256 << 20);
        (0..3).map(|_| epoch(&mut loader)).collect()
    };
    let mut draw = 7u64;
    let mut below = move |n: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % n
    };
    for combination in 0..16 {
        let [on_disk, node, small, changing] = std::array::from_fn(|bit| combination >> bit & 1 == 1);
        let cache = folder("combined-cache");
        let disk = on_disk.then_some(DiskCache {
            folder: cache,
            limit_bytes: if small { 3 << 20 } else { 64 << 20 },
            leave_free_bytes: 0,
        });
        let bytes: u64 = if small { 8 << 20 } else { 64 << 20 };
        let budget = match node {
            true => Budget::node(&format!("combined-{combination}"), bytes + (1 << 20), 1).unwrap(),
            false => Budget::new(bytes),
        };
        let fields = options(8).fields.into_iter().filter(|(name, _)| name == "jpg").collect();
        let options = Options { disk, fields, workers: Some(1 + combination % 3), ..options(8) };
        let mut loader = Loader::new(std::sync::Arc::clone(&source), options, budget).unwrap();
        let (mut kept, mut read, mut from_disk) = (0, 0, 0);
        for (number, expected) in expected.iter().enumerate() {
            let mut seen = Vec::new();
            for (i, batch) in loader.epoch().unwrap().enumerate() {
                seen.extend(rows(&batch.unwrap()));
                if changing && i % 4 == 1 {
                    loader.set_memory(&Size::Bytes((8 << 20) + (below(56) << 20))).unwrap();
                }
            }
            assert!(seen == *expected, "combination {combination:04b}, epoch {number}");
            let s = loader.report().stages;
            (kept, read, from_disk) = (kept + s.hits, read + s.reads, from_disk + s.disk_hits);
            assert!(s.disk_held_bytes <= s.disk_limit_bytes);
        }
        let common = loader.budget().shared_by().map(|node| node.segments_held_bytes());
        assert_eq!(common.is_some_and(|bytes| bytes > 0), node, "combination {combination:04b}");
        // If memory holds all samples, the disk is not asked.
        assert!(from_disk > 0 || !on_disk || !small, "combination {combination:04b}");
        assert!(kept > 0 && read > 0, "combination {combination:04b}: {kept} kept, {read} read");
    }
}

#[test]
fn samples_that_pack_are_kept_packed_and_stay_the_same() {
    // Arrays of eight-byte integers below 50,000, in shards: three times as many fit compressed.
    let dir = folder("packed");
    let mut draw = 3u64;
    let mut npy = || {
        let header = "{'descr': '<i8', 'fortran_order': False, 'shape': (4000,), }";
        let mut bytes = b"\x93NUMPY\x01\x00v\x00".to_vec();
        bytes.extend(format!("{header:<117}\n").bytes());
        bytes.extend((0..4000).flat_map(|_| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((draw >> 33) as i64 % 50_000).to_le_bytes()
        }));
        bytes
    };
    let mut tar = Vec::new();
    for i in 0..1500 {
        let (bytes, mut header) = (npy(), vec![0u8; 512]);
        let name = format!("{i:06}.npy");
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(&bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend([0; 1024]);
    std::fs::write(dir.join("a.tar"), tar).unwrap();
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let array = FieldSpec::Array { dtype: Some(DType::parse("int64").unwrap()), shape: Some(vec![4000]) };
    let options = Options { fields: vec![("npy".into(), array)], ..options(16) };
    let total = source.size_bounds().total_bytes;
    let mut all = loader(&source, options.clone(), total * 3);
    let mut some = loader(&source, options, total / 2 + (8 << 20));
    for number in 0..3 {
        assert!(epoch(&mut some) == epoch(&mut all), "epoch {number}");
        let s = some.report().stages;
        assert!(s.cache_held_bytes <= s.cache_limit_bytes, "{s:?}");
        if number == 2 {
            assert!(s.cache_codec.is_some() && s.cache_gain_percent > 200, "{s:?}");
            assert!(s.hits > 1300 && s.hit_bytes > s.cache_limit_bytes, "{s:?}");
        }
    }
    assert_eq!(all.report().stages.cache_codec, None, "what fits is left as it is");
}

/// Ids as a list, or one by one.
#[derive(Debug)]
struct Drawn(bool);

impl Ids for Drawn {
    fn len(&self) -> u64 {
        700
    }
    fn listed(&self) -> bool {
        self.0
    }
    fn epoch(&self, epoch: u64) -> tidegate_order::Result<Listing> {
        // The smaller an id is, the more often it comes.
        let mut draw = epoch + 1;
        let mut next = move || {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (draw >> 33) % 300
        };
        let mut ids = (0..700).map(move |_| next() * next() / 300);
        Ok(if self.0 {
            Listing::All(ids.collect())
        } else {
            Listing::Stream(Box::new(move || Ok(ids.next())))
        })
    }
}

/// An epoch whose budget changes after each batch.
fn epoch_with_other_memory(loader: &mut Loader, number: u64) -> Vec<(u64, Vec<u8>)> {
    loader.set_epoch(number);
    let mut seen = Vec::new();
    for batch in loader.epoch().unwrap() {
        let batch = batch.unwrap();
        seen.extend(rows(&batch));
        let size = [6 << 20, 24 << 20, 5 << 20][batch.number as usize % 3];
        drop(batch);
        loader.set_memory(&Size::Bytes(size)).unwrap();
    }
    seen
}

#[test]
fn a_sampler_gives_the_order_and_what_comes_again_soonest_is_kept() {
    let dir = folder("sampled");
    let recipe = Recipe { samples: 300, classes: 4, seed: 3, width: 200, form: Form::Tar, shard: 60 };
    synth::dataset(&dir, &recipe, &|_| ()).unwrap();
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let sampled = |listed, budget, workers| {
        let options = Options { shuffle: tidegate::Shuffle::None, workers: Some(workers), ..options(16) };
        let known =
            Options { fields: options.fields.into_iter().filter(|(n, _)| n == "jpg").collect(), ..options };
        Loader::with_sampler(source.clone(), known, Budget::new(budget), std::sync::Arc::new(Drawn(listed)))
            .unwrap()
    };
    let mut large = sampled(true, 256 << 20, 2);
    let expected: Vec<_> = (0..3).map(|_| epoch(&mut large)).collect();
    for (number, expected) in expected.iter().enumerate() {
        let Listing::All(ids) = Drawn(true).epoch(number as u64).unwrap() else { panic!("it is listed") };
        assert!(expected.iter().map(|(id, _)| *id).eq(ids.iter().copied()));
    }
    let total = source.size_bounds().total_bytes;
    for listed in [true, false] {
        let mut loader = sampled(listed, 7 << 20, 1);
        for (number, expected) in expected.iter().enumerate() {
            assert!(epoch(&mut loader) == *expected, "listed {listed}, epoch {number}");
            let s = loader.report().stages;
            assert_eq!(s.cache_rule, Some(if listed { Policy::Min } else { Policy::Adaptive }));
            assert!(
                s.cache_held_bytes <= s.cache_limit_bytes && s.cache_limit_bytes < 3 * total / 4,
                "{s:?}"
            );
            if listed {
                assert!(s.hit_bytes * 100 > 90 * s.could_hit_bytes && s.hits > 350, "{s:?}");
            } else {
                assert!(s.could_hit_bytes > s.hit_bytes && s.hits > 200, "{s:?}");
            }
        }
        // With another budget in the middle: an iterator is not asked for delivered ids again.
        assert!(epoch_with_other_memory(&mut loader, 0) == expected[0]);
        // Stopped, and continued by another loader.
        let mut batches = loader.epoch().unwrap();
        let first: Vec<_> = batches.by_ref().take(9).flat_map(|batch| rows(&batch.unwrap())).collect();
        let state = loader.state();
        drop(batches);
        let mut other = sampled(listed, 64 << 20, 3);
        other.load_state(&state).unwrap();
        assert!([first, epoch(&mut other)].concat() == expected[1]);
        let none = &mut self::loader(&source, options(16), 64 << 20);
        let error = none.load_state(&state).unwrap_err().to_string();
        assert!(error.contains("saved with a sampler of 700 ids, and this loader has no sampler"), "{error}");
    }
    let mut list = Loader::with_sampler(
        source,
        Options { global_batch_size: Some(2), ..Options::default() },
        Budget::new(64 << 20),
        std::sync::Arc::new(List([5, 5, 2].into())),
    )
    .unwrap();
    assert!((0..2).all(|_| epoch(&mut list).iter().map(|(id, _)| *id).eq([5, 5, 2])));
}

#[test]
fn rows_that_are_the_same_each_time_are_kept_decoded() {
    let source = open(images("decoded", 240, Form::Tar).to_str().unwrap(), false).unwrap();
    let image = ImageSpec { size: Some((32, 32)), crop: Crop::Center, ..ImageSpec::default() };
    let same = Options { fields: vec![("jpg".into(), FieldSpec::Image(image))], ..options(16) };
    let expected: Vec<_> = {
        let mut loader = loader(&source, Options { keep: Keep::Stored, ..same.clone() }, 256 << 20);
        (0..3).map(|_| epoch(&mut loader)).collect()
    };
    for (keep, budget) in [(Keep::Decoded, 5 << 20), (Keep::Decoded, 64 << 20), (Keep::Auto, 64 << 20)] {
        let mut loader = loader(&source, Options { keep, ..same.clone() }, budget);
        for (number, expected) in expected.iter().enumerate() {
            assert!(epoch(&mut loader) == *expected, "{keep:?}, epoch {number}, budget {budget}");
            let s = loader.report().stages;
            assert!(s.cache_held_bytes <= s.cache_limit_bytes, "{s:?}");
            // By default the cache's form depends on measured times.
            assert!(keep != Keep::Decoded || s.cache_decoded);
            if keep == Keep::Decoded && number > 0 {
                assert!(s.hits > 0 && s.hit_bytes <= s.could_hit_bytes, "{s:?}");
                assert!(budget < 64 << 20 || (s.hits, s.reads) == (240, 0), "{s:?}");
            }
        }
        // With another budget in the middle.
        assert!(epoch_with_other_memory(&mut loader, 1) == expected[1]);
    }
    let fields = options(16).fields.split_off(1);
    let drawn = Options { keep: Keep::Decoded, fields, ..options(16) };
    let error = Loader::new(source, drawn, Budget::new(64 << 20)).unwrap_err().to_string();
    assert!(error.contains("random crops, flips and colours differ in each epoch"), "{error}");
}
