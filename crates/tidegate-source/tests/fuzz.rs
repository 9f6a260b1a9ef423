//! Every parser under mutated input: no panic, no endless work, no allocation beyond what its
//! header bounds.
//!
//! A second a parser in `make test`, a minute in `make test-slow` (`TIDEGATE_FUZZ_SECONDS`);
//! inputs follow from a fixed seed.
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, with an allocator that counts"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use tidegate_decode::header::{self, ImageHeader};
use tidegate_decode::{Decoders, Pixel, Region, Request, RowSink, WideGray, npy};
use tidegate_order::random::{Purpose, Stream};
use tidegate_source::tar;

/// Counts the bytes that this thread holds, and their peak.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // A thread that is ending has no counters any more, and nobody asks for them.
    let _ending = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn seconds() -> Duration {
    let given = std::env::var("TIDEGATE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs_f64(given.unwrap_or(1.0))
}

/// Asserts, when it goes, that this thread has allocated at most that number of bytes at once since
/// it came.
struct Bounded {
    most: i64,
    before: i64,
}

impl Bounded {
    fn new(most: i64) -> Self {
        let before = HELD.with(Cell::get);
        PEAK.with(|peak| peak.set(before));
        Self { most, before }
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let peak = PEAK.with(Cell::get) - self.before;
        assert!(std::thread::panicking() || peak <= self.most, "{peak} bytes where {} were to do", self.most);
    }
}

/// Calls `target` with mutations of the seeds until the time is over.
fn fuzz(name: &str, seeds: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    let mut stream = Stream::new(1, 0, name.len() as u64, 0, Purpose::Synthetic);
    let (began, mut runs) = (Instant::now(), 0u64);
    while began.elapsed() < seconds() {
        stream = Stream::new(1, runs, name.len() as u64, 0, Purpose::Synthetic);
        let mut input = seeds[stream.below(seeds.len() as u64) as usize].clone();
        for _ in 0..stream.below(8) {
            mutate(&mut input, &mut stream);
        }
        target(&input);
        runs += 1;
    }
    let _last = stream.word();
    println!("{name}: {runs} inputs");
    assert!(runs > 0);
}

fn mutate(input: &mut Vec<u8>, stream: &mut Stream) {
    let n = input.len() as u64;
    let at = stream.below(n.max(1)) as usize;
    match stream.below(6) {
        0 if n > 0 => input[at] ^= 1 << stream.below(8),
        1 if n > 0 => input[at] = [0, 1, 0x7F, 0x80, 0xFF][stream.below(5) as usize],
        2 => input.truncate(at),
        3 => input.insert(at.min(input.len()), stream.word() as u8),
        4 if n > 4 => {
            let end = (at + stream.below(32) as usize).min(input.len());
            let part = input[at..end].to_vec();
            let to = stream.below(n) as usize;
            input.splice(to..to, part);
        }
        5 if n > 4 && at + 4 <= input.len() => {
            let value = [0, 1, u32::MAX, 1 << 31, n as u32][stream.below(5) as usize];
            input[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        _ => {}
    }
}

fn jpeg(width: u16, height: u16, progressive: bool, sampling: jpeg_encoder::SamplingFactor) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..usize::from(width) * usize::from(height) * 3).map(|i| (i * 37 % 251) as u8).collect();
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 80);
    encoder.set_progressive(progressive);
    encoder.set_sampling_factor(sampling);
    encoder.encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

fn png(color: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 24, 17);
    encoder.set_color(color);
    encoder.set_depth(depth);
    let row = (24 * color.samples() * depth as usize).div_ceil(8);
    let data: Vec<u8> = (0..row * 17).map(|i| (i * 7) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&data).unwrap();
    bytes
}

fn webp() -> Vec<u8> {
    let pixels: Vec<u8> = (0..20 * 13 * 3).map(|i| (i * 11) as u8).collect();
    let mut bytes = Vec::new();
    image_webp::WebPEncoder::new(&mut bytes).encode(&pixels, 20, 13, image_webp::ColorType::Rgb8).unwrap();
    bytes
}

/// Decodes within the header's bound, which must hold whatever the bytes are.
fn decode(bytes: &[u8]) {
    let Ok(header) = header::parse(bytes) else { return };
    if header.scratch_bytes() > 8 << 20 {
        return;
    }
    let mut inner = vec![0; header.inner_bytes() as usize];
    let ways = [
        (0, Pixel::Rgb, false),
        (0, Pixel::Rgb, true),
        (0, Pixel::Raw, true),
        (1, Pixel::Rgbx, false),
        (2, Pixel::Rgbx, true),
        (3, Pixel::Rgbx, true),
    ];
    for (halvings, pixel, fill) in ways {
        let width = header.width.div_ceil(1 << halvings);
        let region = Region { x: 0, y: 0, width, height: header.height.div_ceil(2 << halvings) };
        let request = Request {
            header: &header,
            halvings,
            region,
            pixel,
            checkpoints: None,
            fill,
            wide_gray: Some(WideGray::Clip),
        };
        let mut row = Row(vec![0; region.width as usize * pixel.bytes()]);
        PEAK.with(|peak| peak.set(HELD.with(Cell::get)));
        let before = HELD.with(Cell::get);
        let mut decoders = Decoders::default();
        drop(decoders.decode(bytes, &request, &mut inner, &mut row));
        let kept = HELD.with(Cell::get) - before;
        assert!(kept <= Decoders::KEPT_BYTES as i64, "{kept} bytes are kept");
        let taken = PEAK.with(Cell::get) - before;
        check_bound(&header, bytes, taken);
    }
}

/// Takes one row after another.
#[derive(Debug)]
struct Row(Vec<u8>);

impl RowSink for Row {
    fn next_row(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn finish_row(&mut self) {}
}

fn check_bound(header: &ImageHeader, bytes: &[u8], taken: i64) {
    let bound = header.library_bytes() + 2 * bytes.len() as u64;
    assert!(taken <= bound as i64, "{header:?} of {} bytes took {taken}, bound {bound}", bytes.len());
}

#[test]
fn images() {
    use jpeg_encoder::SamplingFactor::{F_1_1, F_2_1, F_2_2};
    let seeds = vec![
        jpeg(50, 41, false, F_2_2),
        jpeg(64, 16, false, F_1_1),
        jpeg(33, 40, true, F_2_1),
        png(png::ColorType::Rgb, png::BitDepth::Eight),
        png(png::ColorType::Rgba, png::BitDepth::Sixteen),
        png(png::ColorType::Grayscale, png::BitDepth::Two),
        png(png::ColorType::Grayscale, png::BitDepth::Sixteen),
        webp(),
    ];
    fuzz("images", &seeds, decode);
}

#[test]
fn arrays() {
    let mut npy_file = b"\x93NUMPY\x01\x00\x46\x00".to_vec();
    npy_file.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n");
    npy_file.extend([0; 24]);
    fuzz("arrays", &[npy_file, vec![9, 1 << 2, 2, 5, 6]], |bytes| {
        let _outcomes = (npy::npy(bytes).is_ok(), npy::mds(bytes, None, None).is_ok());
    });
}

#[test]
fn archives() {
    let mut archive = tar::header("a.jpg", 5);
    archive.resize(1024, 1);
    archive.extend(tar::header(&"long/".repeat(40), 0));
    archive.extend(tar::header("a.cls", 700));
    archive.resize(archive.len() + 1024, 2);
    archive.resize(archive.len() + 1024, 0);
    fuzz("archives", &[archive], |bytes| {
        let mut read = |offset: u64, len: u64| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes[start..bytes.len().min(start.saturating_add(len as usize))].to_vec())
        };
        let (mut offset, mut steps) = (0, 0);
        while let Ok(next) = tar::next(offset, &mut read) {
            steps += 1;
            assert!(steps < 10_000, "an endless walk");
            offset = match next {
                tar::Next::File(member) => member.end(),
                tar::Next::Skip(skipped) => skipped.next,
                tar::Next::End => break,
            };
        }
    });
}

/// Whole data sets: a folder with a mutated index, MDS shard or tar must open with an error or be
/// read with errors.
#[test]
fn data_sets() {
    use tidegate_source::{SourceExt, open};
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shard = {
        let config =
            br#"{"column_encodings":["int","str"],"column_names":["a","b"],"column_sizes":[8,null]}"#;
        let mut bytes = 2u32.to_le_bytes().to_vec();
        let base = 16 + config.len() as u32;
        for end in [base, base + 14, base + 28] {
            bytes.extend(end.to_le_bytes());
        }
        bytes.extend(config);
        for row in 0..2u64 {
            bytes.extend(2u32.to_le_bytes());
            bytes.extend(row.to_le_bytes());
            bytes.extend(b"hi");
        }
        bytes
    };
    let index = format!(
        r#"{{"version":2,"shards":[{{"format":"mds","compression":null,"column_names":["a","b"],"column_encodings":["int","str"],"column_sizes":[8,null],"raw_data":{{"basename":"s.mds","bytes":{},"hashes":{{}}}},"zip_data":null,"samples":2}}]}}"#,
        shard.len()
    );
    let good = |dir: &std::path::Path| {
        std::fs::write(dir.join("s.mds"), &shard).unwrap();
        std::fs::write(dir.join("index.json"), &index).unwrap();
    };
    good(dir.path());
    let (_, bytes) = open(dir.path().to_str().unwrap(), true).unwrap().fetch(1).unwrap();
    assert_eq!(bytes.len(), 14);
    for file in ["s.mds", "index.json"] {
        let seed = if file == "s.mds" { shard.clone() } else { index.clone().into_bytes() };
        fuzz(file, &[seed], |input| {
            good(dir.path());
            std::fs::write(dir.path().join(file), input).unwrap();
            if let Ok(source) = open(dir.path().to_str().unwrap(), true) {
                for id in 0..source.len().min(3) {
                    if let Ok((at, bytes)) = source.fetch(id) {
                        let _outcome = source.parse(&at, &bytes).is_ok();
                    }
                }
            }
        });
    }
}

/// Parquet and Arrow files of some 10 KiB by pyarrow, mutated: an error, or rows, in little
/// memory.
#[test]
#[cfg(feature = "parquet")]
fn tables() {
    use tidegate_source::{SourceExt, open};
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/tests/golden/tables");
    for extension in ["parquet", "arrow"] {
        let mut files: Vec<_> = std::fs::read_dir(&golden).unwrap().map(|f| f.unwrap().path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == extension));
        files.sort();
        let seeds: Vec<_> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = dir.path().join("x").with_extension(extension);
        fuzz(extension, &seeds, |bytes| {
            std::fs::write(&file, bytes).unwrap();
            let _bounded = Bounded::new(64 << 20);
            let Ok(source) = open(file.to_str().unwrap(), true) else { return };
            for id in (0..source.len()).step_by(16) {
                if let Ok((at, bytes)) = source.fetch(id) {
                    let _outcome = source.parse(&at, &bytes).is_ok();
                }
            }
        });
    }
}
