//! Duplicates: planted ones are found by bytes, pixels, looks and text, in memory and spilled,
//! with any number of workers.

use super::*;
use tidegate::dataset::dedup::{Criterion, Duplicates, Search};

fn search(by: Criterion, name: &str) -> Search {
    Search { by, field: None, threshold: None, folder: Some(folder(&format!("{name}-spill"))), workers: None }
}

fn found(source: &Arc<dyn Source>, search: &Search, budget: u64) -> Duplicates {
    Duplicates::find(source, search, &Budget::new(budget), &|_, _| Ok(())).unwrap()
}

fn pairs(found: &Duplicates) -> Vec<(u64, u64)> {
    found.duplicates.iter().map(|d| (d.index, d.of)).collect()
}

fn encoded(pixels: &[u8], side: u16, quality: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut out, quality);
    encoder.encode(pixels, side, side, jpeg_encoder::ColorType::Rgb).unwrap();
    out
}

/// An image of soft spots: a grid of random levels, interpolated.
fn spots(seed: u32, side: u16) -> Vec<u8> {
    const GRID: usize = 12;
    let spot = |y: usize, x: usize, c: u32| {
        let word = (seed * 1009 + c * 31 + (y * GRID + x) as u32).wrapping_mul(2_654_435_761);
        f64::from(word.wrapping_mul(word | 1) >> 24)
    };
    let level = |y: u16, x: u16, c: u32| {
        let place = |at: u16| f64::from(at) / f64::from(side) * (GRID - 1) as f64;
        let ((y, v), (x, u)) = ((place(y) as usize, place(y).fract()), (place(x) as usize, place(x).fract()));
        let row = |y| spot(y, x, c) * (1.0 - u) + spot(y, x + 1, c) * u;
        (row(y) * (1.0 - v) + row(y + 1) * v) as u8
    };
    (0..side).flat_map(|y| (0..side).flat_map(move |x| (0..3).map(move |c| level(y, x, c)))).collect()
}

#[test]
fn images_are_compared_by_bytes_pixels_and_looks() {
    let dir = folder("dedup-images");
    for i in 0..40u32 {
        fs::write(dir.join(format!("{i:02}.jpg")), encoded(&spots(i, 200), 200, 90)).unwrap();
    }
    let copy = |from: u32, to: &str| {
        fs::copy(dir.join(format!("{from:02}.jpg")), dir.join(to)).unwrap();
    };
    copy(3, "50.jpg");
    copy(3, "51.jpg");
    // The same image with a comment, encoded again with less quality, and scaled.
    let mut commented = fs::read(dir.join("07.jpg")).unwrap();
    commented.splice(2..2, [0xFF, 0xFE, 0, 5, b'h', b'e', b'y']);
    fs::write(dir.join("52.jpg"), commented).unwrap();
    fs::write(dir.join("53.jpg"), encoded(&spots(9, 200), 200, 40)).unwrap();
    fs::write(dir.join("54.jpg"), encoded(&spots(11, 130), 130, 85)).unwrap();
    // A sample that fails is kept.
    fs::write(dir.join("55.jpg"), &fs::read(dir.join("03.jpg")).unwrap()[..900]).unwrap();
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let by = |by| found(&source, &search(by, "dedup-images"), 64 << 20);
    let (bytes, pixels, looks) = (by(Criterion::Bytes), by(Criterion::Pixels), by(Criterion::Image));
    assert_eq!(pairs(&bytes), [(40, 3), (41, 3)]);
    assert_eq!(pairs(&pixels), [(40, 3), (41, 3), (42, 7)]);
    assert_eq!(pairs(&looks), [(40, 3), (41, 3), (42, 7), (43, 9), (44, 11)]);
    assert_eq!((pixels.clusters, pixels.failed, pixels.samples), (2, 1, 46));
    assert!(pixels.failures[0].place.contains("55.jpg"));
    let keep = pixels.keep();
    assert_eq!(keep.len(), 43);
    assert!(keep.contains(&45) && keep.contains(&3) && !keep.contains(&42));
    let weights = pixels.weights();
    assert_eq!(
        [weights[3], weights[40], weights[42], weights[7], weights[0]],
        [1.0 / 3.0, 1.0 / 3.0, 0.5, 0.5, 1.0]
    );
}

#[test]
fn spilling_finds_the_same_duplicates_as_memory() {
    let ids: Arc<dyn Source> = Arc::new(Synthetic::new(800_000, 16));
    // A subset may repeat samples, which are then duplicates.
    let listed: Vec<u64> = (0..800_000).map(|i| if i % 1000 == 999 { i - 50 } else { i }).collect();
    let source: Arc<dyn Source> = Arc::new(tidegate_source::Subset::new(ids, listed).unwrap());
    let search = |workers| Search { workers: Some(workers), ..search(Criterion::Bytes, "dedup-spill") };
    let all = found(&source, &search(1), 256 << 20);
    assert_eq!(pairs(&all), (0..800).map(|i| (i * 1000 + 999, i * 1000 + 949)).collect::<Vec<_>>());
    let spilled = found(&source, &search(4), 32 << 20);
    assert_eq!((pairs(&spilled), spilled.clusters), (pairs(&all), 800));
    assert!(all.spilled_bytes < spilled.spilled_bytes, "{} {}", all.spilled_bytes, spilled.spilled_bytes);
    assert!(all.duplicates.iter().all(|d| d.similarity == 1.0));
}

#[test]
fn mistakes_are_told() {
    let dir = images("dedup-wrong", 6, Form::Tar);
    let source = open(dir.join("*.tar").to_str().unwrap(), false).unwrap();
    let wrong = |search: &Search| {
        Duplicates::find(&source, search, &Budget::new(64 << 20), &|_, _| Ok(())).unwrap_err().to_string()
    };
    let of = |by| search(by, "dedup-wrong");
    assert!(wrong(&of(Criterion::Text)).contains("no field holds text: jpg (image), cls (int)"));
    assert!(
        wrong(&Search { field: Some("cls".into()), ..of(Criterion::Image) })
            .contains("holds int, not images")
    );
    assert!(wrong(&Search { field: Some("no".into()), ..of(Criterion::Bytes) }).contains("jpg, cls"));
    assert!(wrong(&Search { threshold: Some(1.5), ..of(Criterion::Image) }).contains("1.5"));
    assert!(wrong(&Search { folder: Some("/nowhere".into()), ..of(Criterion::Bytes) }).contains("/nowhere"));
    let small = Duplicates::find(&source, &of(Criterion::Bytes), &Budget::new(4 << 20), &|_, _| Ok(()));
    assert!(small.unwrap_err().to_string().contains("budget"));
}
