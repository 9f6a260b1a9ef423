//! Volumes end to end: right patches, chunks decoded once, and the promises of any other source.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidegate::{Budget, Loader, Options, Source};
use tidegate_core::memory::size::Size;
use tidegate_data::batch::FieldSpec;
use tidegate_data::cache::DiskCache;
use tidegate_data::cache::min::{Min, Outcome};
use tidegate_order::Order;
use tidegate_order::uniform::Uniform;
use tidegate_source::Chunked;
use tidegate_source::volume::{self, Volume};

use super::{epoch, folder, rows};

/// The element at a place.
fn element(at: [usize; 3]) -> u16 {
    (at[0] * 7919 + at[1] * 104_729 + at[2] * 1_299_709) as u16
}

/// An uncompressed Zarr v2 array whose size is not a multiple of its chunks. `missing` chunks are
/// not written.
fn array(folder: &Path, shape: [usize; 3], chunk: [usize; 3], missing: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    let text = format!(
        r#"{{"zarr_format": 2, "shape": {shape:?}, "chunks": {chunk:?}, "dtype": "<u2", "compressor": null, "fill_value": 7, "order": "C", "filters": null}}"#
    );
    fs::write(folder.join(".zarray"), text).unwrap();
    let counts: Vec<usize> = (0..3).map(|d| shape[d].div_ceil(chunk[d])).collect();
    for z in 0..counts[0] {
        for y in 0..counts[1] {
            for x in 0..counts[2] {
                let name = format!("{z}.{y}.{x}");
                if missing.contains(&&*name) {
                    continue;
                }
                let mut bytes = Vec::new();
                for k in 0..chunk[0] {
                    for j in 0..chunk[1] {
                        for i in 0..chunk[2] {
                            let at = [z * chunk[0] + k, y * chunk[1] + j, x * chunk[2] + i];
                            bytes.extend(element(at).to_le_bytes());
                        }
                    }
                }
                fs::write(folder.join(name), bytes).unwrap();
            }
        }
    }
}

const SHAPE: [usize; 3] = [50, 40, 60];

fn open(folder: &Path, patch: [u64; 3]) -> Arc<Volume> {
    let options = format!(r#"{{"arrays": [{{"name": "data", "path": "a"}}], "patch": {patch:?}}}"#);
    let options: volume::Options = serde_json::from_str(&options).unwrap();
    Volume::open(folder.to_str().unwrap(), &options).unwrap()
}

fn loader(volume: &Arc<Volume>, options: Options, memory: u64, positions: u64) -> Loader {
    let order = Arc::new(Uniform::new(volume.len(), positions, 1, 3).unwrap());
    let source = Arc::clone(volume) as Arc<dyn Source>;
    Loader::with_order(source, options, Budget::new(memory), order).unwrap()
}

fn options(batch: u64) -> Options {
    Options { global_batch_size: Some(batch), ..Options::default() }
}

fn patch_at(origin: &[i64], patch: [usize; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for k in 0..patch[0] {
        for j in 0..patch[1] {
            for i in 0..patch[2] {
                let at = [k, j, i];
                bytes.extend(element([0, 1, 2].map(|d| origin[d] as usize + at[d])).to_le_bytes());
            }
        }
    }
    bytes
}

#[test]
fn patches_are_right_and_the_same_whatever_the_workers_budget_and_ranks() {
    let dir = folder("volume");
    array(&dir.join("a"), SHAPE, [16, 12, 32], &[]);
    let volume = open(&dir, [9, 16, 20]);
    assert_eq!(volume.len(), 42 * 25 * 41);
    let mut whole = Vec::new();
    for (workers, memory) in [(1, 4 << 20), (2, 4 << 20), (3, 64 << 20)] {
        let mut loader = loader(&volume, Options { workers: Some(workers), ..options(7) }, memory, 300);
        let epoch = epoch(&mut loader);
        assert_eq!(epoch.len(), 300);
        for (id, bytes) in &epoch {
            assert_eq!(*bytes, patch_at(&volume.origin(*id), [9, 16, 20]), "patch {id}");
        }
        whole.push(epoch);
    }
    assert!(whole.windows(2).all(|pair| pair[0] == pair[1]));
    let mut ranked: Vec<Vec<_>> = Vec::new();
    for rank in 0..2 {
        let options = Options { rank, world_size: 2, ..options(7) };
        let mut loader = loader(&volume, options, 8 << 20, 300);
        ranked.push(loader.epoch().unwrap().map(|batch| rows(&batch.unwrap())).collect());
    }
    let put_together: Vec<_> =
        (0..ranked[0].len()).flat_map(|b| [ranked[0][b].clone(), ranked[1][b].clone()].concat()).collect();
    assert_eq!(put_together, whole[0]);
}

/// The draws of a patch depend on its position in the order alone, and labels match their voxels.
#[test]
fn augmented_patches_are_the_same_whatever_the_workers_and_budget() {
    let dir = folder("augmented");
    array(&dir.join("a"), SHAPE, [16, 12, 32], &[]);
    let text = r#"{"arrays": [{"name": "raw", "path": "a"}, {"name": "labels", "path": "a"}], "patch": [16, 16, 16]}"#;
    let volume = Volume::open(dir.to_str().unwrap(), &serde_json::from_str(text).unwrap()).unwrap();
    let fields = |raw: &str| -> Vec<(String, FieldSpec)> {
        let text = format!(r#"[["raw", {raw}], ["labels", {{"kind": "mask", "of": "raw", "size": null}}]]"#);
        serde_json::from_str(&text).unwrap()
    };
    let geometry = r#""crop": [12, 12, 12], "flip": [0, 2], "rotate": [0, 1, 2]"#;
    let turned = fields(&format!(r#"{{"kind": "patch", "geometry": {{{geometry}}}, "dtype": "float32"}}"#));
    let all = fields(&format!(
        r#"{{"kind": "patch", "dtype": "float16", "geometry": {{{geometry}, "elastic":
        {{"spacing": [4, 4, 4], "deviation": [1, 1, 1], "p": 0.5}}}}, "intensity": {{"mean": [1000], "std": [5000],
        "noise": {{"low": 0, "high": 1, "p": 0.5}}, "blur": {{"low": 0.5, "high": 2, "p": 0.5}}, "gamma":
        {{"low": 0.7, "high": 1.5, "p": 0.5}}, "contrast": {{"low": 0.7, "high": 1.5, "p": 0.5}}}}}}"#
    ));
    let run = |fields: &[(String, FieldSpec)], workers, memory| -> Vec<(u64, Vec<u8>, Vec<u8>)> {
        let options = Options { workers: Some(workers), fields: fields.to_vec(), ..options(7) };
        let batches = loader(&volume, options, memory, 60).epoch().unwrap().map(|batch| {
            let batch = batch.unwrap();
            let row = |name, row| {
                let bytes = batch.bytes(batch.column(name).unwrap());
                let size = bytes.len() / batch.rows;
                bytes[row * size..(row + 1) * size].to_vec()
            };
            (0..batch.rows).map(|r| (batch.ids[r], row("raw", r), row("labels", r))).collect::<Vec<_>>()
        });
        batches.collect::<Vec<_>>().concat()
    };
    let mut different = 0;
    for (id, raw, labels) in run(&turned, 2, 16 << 20) {
        let numbers = raw.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
        let same: Vec<u16> =
            labels.chunks_exact(2).map(|x| u16::from_le_bytes(x.try_into().unwrap())).collect();
        assert!(numbers.eq(same.iter().map(|x| f32::from(*x))), "patch {id}");
        let middle: Vec<i64> = volume.origin(id).iter().map(|at| at + 2).collect();
        let untouched = patch_at(&middle, [12, 12, 12]);
        let sorted = |bytes: &[u8]| {
            let mut all: Vec<[u8; 2]> = bytes.chunks_exact(2).map(|x| [x[0], x[1]]).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(sorted(&untouched), sorted(&labels), "patch {id}");
        different += usize::from(untouched != labels);
    }
    assert!(different > 50, "{different} of 60 turned");
    let first = run(&all, 1, 16 << 20);
    assert!(first.iter().all(|(_, raw, _)| raw.len() == 2 * 12 * 12 * 12));
    assert_eq!(first, run(&all, 3, 64 << 20));
}

#[test]
fn chunks_are_decoded_as_rarely_as_the_known_order_allows() {
    let dir = folder("volume-cache");
    array(&dir.join("a"), SHAPE.map(|side| 3 * side), [16, 16, 16], &["1.1.1", "3.2.1"]);
    let (missing, mut filled) = ([[1, 1, 1], [3, 2, 1]], 0);
    let volume = open(&dir, [20, 20, 20]);
    let positions = 400;
    let order = Uniform::new(volume.len(), positions, 1, 3).unwrap();
    let chunks_of = |epoch: u64| {
        let ids = order.epoch(epoch).unwrap();
        let mut chunks = Vec::new();
        for position in 0..positions {
            volume.chunks_of(ids.id(position).unwrap(), 0, &mut |chunk| chunks.push(chunk as u32));
        }
        chunks
    };
    for memory in [5 << 20, 6 << 20, 7 << 20] {
        // One batch in flight, so that exactly the chunks that the cache lacks are decoded.
        let mut loader = loader(&volume, Options { workers: Some(1), ..options(1) }, memory, positions);
        for number in 0..2 {
            let decoded_before = loader.report().stages.decoded_chunks;
            assert!(number == 0 || decoded_before > 0);
            for (id, bytes) in epoch(&mut loader) {
                let origin = volume.origin(id);
                let mut expected = patch_at(&origin, [20; 3]);
                for (i, element) in expected.chunks_exact_mut(2).enumerate() {
                    let at = [i / 400, i / 20 % 20, i % 20];
                    let chunk = [0, 1, 2].map(|d| (origin[d] as usize + at[d]) / 16);
                    if missing.contains(&chunk) {
                        element.copy_from_slice(&[7, 0]);
                        filled += 1;
                    }
                }
                assert!(bytes == expected, "patch {id}");
            }
            let stages = loader.report().stages;
            let accesses = chunks_of(number);
            let horizon: Vec<u32> = accesses.iter().copied().chain(chunks_of(number + 1)).collect();
            assert_eq!(stages.wanted_chunks, accesses.len() as u64);
            let mut min = Min::new(stages.cache_limit_bytes);
            min.set_future(horizon, volume.chunks() as u32);
            // A chunk takes a page and an entry in the tables.
            let misses =
                accesses.iter().filter(|_| min.access(&(8192 + 256u64), &mut |_| ()) != Outcome::Hit).count();
            if number == 0 {
                let (decoded, least) = (stages.decoded_chunks as f64, misses as f64);
                assert!(
                    decoded <= 1.1 * least,
                    "{decoded} decoded of {} where MIN decodes {least}",
                    accesses.len()
                );
            }
        }
    }
    assert!(filled > 1000, "{filled} elements that are not stored");
}

#[test]
fn every_combination_of_tiers_and_any_change_of_the_budget_give_the_same_patches() {
    let dir = folder("volume-tiers");
    array(&dir.join("a"), SHAPE.map(|side| 3 * side), [16, 16, 16], &["1.1.1", "3.2.1"]);
    let volume = open(&dir, [20, 20, 20]);
    let order = || Arc::new(Uniform::new(volume.len(), 200, 1, 3).unwrap());
    let with = |options, budget| {
        let source = Arc::clone(&volume) as Arc<dyn Source>;
        Loader::with_order(source, options, budget, order()).unwrap()
    };
    let expected: Vec<_> = {
        let mut loader = with(options(8), Budget::new(64 << 20));
        (0..2).map(|_| epoch(&mut loader)).collect()
    };
    let disk = |folder: &Path, small: bool| DiskCache {
        folder: folder.to_owned(),
        limit_bytes: if small { 3 << 20 } else { 64 << 20 },
        leave_free_bytes: 0,
    };
    for combination in 0..16 {
        let [on_disk, node, small, changing] = std::array::from_fn(|bit| combination >> bit & 1 == 1);
        let cache = folder("volume-tiers-cache");
        let bytes: u64 = if small { 5 << 20 } else { 32 << 20 };
        let budget = match node {
            true => Budget::node(&format!("volume-tiers-{combination}"), bytes + (1 << 20), 1).unwrap(),
            false => Budget::new(bytes),
        };
        let tiers = Options {
            disk: on_disk.then(|| disk(&cache, small)),
            workers: Some(1 + combination % 3),
            ..options(8)
        };
        let mut loader = with(tiers.clone(), budget);
        let mut kept_in_common = false;
        for (number, expected) in expected.iter().enumerate() {
            let mut seen = Vec::new();
            for (i, batch) in loader.epoch().unwrap().enumerate() {
                seen.extend(rows(&batch.unwrap()));
                // A lower budget may evict all of it later.
                kept_in_common |=
                    loader.budget().shared_by().is_some_and(|node| node.segments_held_bytes() > 0);
                if changing && i % 4 == 1 {
                    let mib = 6 + (i as u64 * 7 + number as u64) % 26;
                    loader.set_memory(&Size::Bytes(mib << 20)).unwrap();
                }
            }
            assert!(seen == *expected, "combination {combination:04b}, epoch {number}");
            let s = loader.report().stages;
            // Chunks in flight when the budget changed are decoded again.
            assert!(
                changing || s.decoded_chunks + s.hits == s.wanted_chunks,
                "combination {combination:04b}"
            );
            assert!(s.disk_held_bytes <= s.disk_limit_bytes);
            // If memory holds all chunks, the disk is not asked.
            assert!(s.disk_hits > 0 || !on_disk || !small || number == 0, "combination {combination:04b}");
        }
        assert_eq!(kept_in_common, node, "combination {combination:04b}");
        drop(loader);
        if !on_disk || small {
            continue;
        }
        // The next run finds all chunks on the disk, missing ones included, and reads no file of
        // the volume.
        let again = |reads: &dyn Fn(u64) -> bool| {
            let mut loader = with(tiers.clone(), Budget::new(32 << 20));
            assert!(epoch(&mut loader) == expected[0], "combination {combination:04b}, again");
            let s = loader.report().stages;
            assert!(reads(s.reads) && s.disk_hits > 0, "{} reads, {} from disk", s.reads, s.disk_hits);
        };
        again(&|reads| reads == 0);
        // Damaged chunks of the disk cache are read from the volume.
        for segment in segments(&cache) {
            let mut bytes = fs::read(&segment).unwrap();
            bytes.iter_mut().step_by(5000).for_each(|byte| *byte ^= 4);
            fs::write(&segment, bytes).unwrap();
        }
        again(&|reads| reads > 0);
    }
}

/// The segments of the one dataset of a disk cache.
fn segments(cache: &Path) -> Vec<std::path::PathBuf> {
    let listed = |folder: &Path| -> Vec<_> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let datasets: Vec<_> = listed(cache).into_iter().filter(|path| path.is_dir()).collect();
    assert_eq!(datasets.len(), 1);
    listed(&datasets[0]).into_iter().filter(|path| path.file_name().unwrap() != "table").collect()
}

#[test]
fn volumes_are_no_place_for_what_counts_samples() {
    let dir = folder("volume-refused");
    array(&dir.join("a"), SHAPE, [16, 16, 16], &[]);
    let volume = open(&dir, [8, 8, 8]) as Arc<dyn Source>;
    let budget = Budget::new(16 << 20);
    let with = |options: Options| Loader::new(Arc::clone(&volume), options, budget.clone());
    let words = |error: tidegate::Error| error.to_string();
    assert!(words(with(Options { profile: true, ..options(1) }).unwrap_err()).contains("overlap"));
    let loader = with(options(1)).unwrap();
    assert!(words(loader.cache_curve(&tidegate::CacheQuery::default()).unwrap_err()).contains("chunks"));
    assert!(
        words(tidegate::open(dir.join("a").to_str().unwrap(), false).unwrap_err().into())
            .contains("tg.volume")
    );
}
