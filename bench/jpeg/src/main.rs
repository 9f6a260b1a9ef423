//! Tidegate's JPEG decoder next to libjpeg-turbo and zune-jpeg, on one core:
//! `make bench-jpeg DATA=<folder of JPEGs>`.
//!
//! Flow: a folder of JPEGs, the same at 4:2:0, and images of 3 megapixels -> the same
//! random-resized-crop boxes and the same resize for all, in interleaved rounds -> images a second
//! of CPU time, medians, as a table and as JSON lines.
//! Memory: 200 images of each kind.

mod peers;

use std::path::Path;

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use tidegate::dataset::synth::{self, Form, Recipe};
use tidegate_data::batch::geometry::{Draw, geometry, halved, halvings};
use tidegate_data::batch::resize::{Scaler, down_first};
use tidegate_data::batch::{Crop, ImageSpec};
use tidegate_decode::checkpoints;
use tidegate_decode::header::{self, ImageHeader};
use tidegate_decode::{Decoders, Pixel, Region, Request, RowSink};
use tidegate_source::checkpoints::fitting_bytes;

const SIZE: u32 = 224;
const TO: (u32, u32) = (SIZE, SIZE);
const IMAGES: usize = 200;
const ROUNDS: usize = 7;

type Failure = Box<dyn std::error::Error>;

/// An image, the box that is wanted of it, and its checkpoints.
struct Case {
    bytes: Vec<u8>,
    header: ImageHeader,
    region: Region,
    record: Vec<u8>,
}

/// The buffers that a contender keeps between images.
struct Room {
    pixels: Vec<u8>,
    small: Vec<u8>,
    record: Vec<u8>,
    scaler: Scaler,
    resizer: Resizer,
    decoders: Decoders,
    turbo: peers::Turbo,
}

impl Room {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            pixels: Vec::new(),
            small: vec![0; 3 * (SIZE * SIZE) as usize],
            record: Vec::new(),
            scaler: Scaler::default(),
            resizer: Resizer::new(),
            decoders: Decoders::default(),
            turbo: peers::Turbo::new()?,
        })
    }
}

/// Collects the rows of one image.
struct Whole<'a> {
    into: &'a mut [u8],
    stride: usize,
    rows: usize,
}

impl RowSink for Whole<'_> {
    fn next_row(&mut self) -> &mut [u8] {
        &mut self.into[self.rows * self.stride..][..self.stride]
    }

    fn finish_row(&mut self) {
        self.rows += 1;
    }
}

type Contender = (&'static str, fn(&Case, &mut Room) -> Result<(), Failure>);

/// Crops of 224 pixels, bilinear with antialiasing, by Tidegate's resizer unless another is named.
const CROPS: [Contender; 8] = [
    ("tidegate", |case, room| ours(case, room, 0, None)),
    ("tidegate, checkpoints", |case, room| ours(case, room, 0, Some(&case.record))),
    ("tidegate, checkpoints, draft", |case, room| {
        ours(case, room, halvings(case.region, TO), Some(&case.record))
    }),
    ("libjpeg-turbo, partial", |case, room| {
        let image = room.turbo.partial(&case.bytes, case.region, 1, &mut room.pixels)?;
        resize(room, image, case.region, 0)
    }),
    ("libjpeg-turbo, partial; fast_image_resize", |case, room| {
        let image = room.turbo.partial(&case.bytes, case.region, 1, &mut room.pixels)?;
        library_resize(room, image, case.region)
    }),
    ("libjpeg-turbo, partial, scaled", |case, room| {
        let halvings = halvings(case.region, TO);
        let image = room.turbo.partial(&case.bytes, case.region, 1 << halvings, &mut room.pixels)?;
        resize(room, image, case.region, halvings)
    }),
    ("libjpeg-turbo, whole", |case, room| {
        let image = room.turbo.whole(&case.bytes, &case.header, 4, &mut room.pixels)?;
        resize(room, image, case.region, 0)
    }),
    ("zune-jpeg, whole", |case, room| {
        let image = peers::zune(&case.bytes, &case.header, 4, &mut room.pixels)?;
        resize(room, image, case.region, 0)
    }),
];

/// Whole images, not resized.
const WHOLE: [Contender; 3] = [
    ("tidegate", |case, room| decode(case, whole(&case.header), room)),
    ("libjpeg-turbo", |case, room| {
        room.turbo.whole(&case.bytes, &case.header, 3, &mut room.pixels).map(|_| ())
    }),
    ("zune-jpeg", |case, room| peers::zune(&case.bytes, &case.header, 3, &mut room.pixels).map(|_| ())),
];

/// Makes the checkpoint records, as indexing does.
const RECORDS: [Contender; 1] = [("tidegate", |case, room| {
    room.record.resize(case.record.len(), 0);
    checkpoints::write_record(&case.bytes, &mut room.record);
    Ok(())
})];

fn whole(header: &ImageHeader) -> Region {
    Region { x: 0, y: 0, width: header.width, height: header.height }
}

fn decode(case: &Case, region: Region, room: &mut Room) -> Result<(), Failure> {
    let request = Request {
        header: &case.header,
        halvings: 0,
        region,
        pixel: Pixel::Rgb,
        checkpoints: None,
        fill: false,
    };
    room.pixels.resize(3 * (region.width * region.height) as usize, 0);
    let mut rows = Whole { into: &mut room.pixels, stride: 3 * region.width as usize, rows: 0 };
    room.decoders.decode(&case.bytes, &request, &mut [], &mut rows)?;
    Ok(())
}

fn ours(case: &Case, room: &mut Room, halvings: u32, checkpoints: Option<&[u8]>) -> Result<(), Failure> {
    let (region, part) = halved(case.region, halvings);
    let request =
        Request { header: &case.header, halvings, region, pixel: Pixel::Rgbx, checkpoints, fill: false };
    let size = (region.width, region.height);
    let mut rows = room.scaler.begin(size, part, TO, down_first(size, TO), &mut room.small);
    room.decoders.decode(&case.bytes, &request, &mut [], &mut rows)?;
    Ok(())
}

/// Passes the rows of a region that a peer decoded to Tidegate's resizer.
fn resize(room: &mut Room, image: peers::Decoded, region: Region, halvings: u32) -> Result<(), Failure> {
    let (region, part) = halved(region, halvings);
    let size = (region.width, region.height);
    let mut rows = room.scaler.begin(size, part, TO, down_first(size, TO), &mut room.small);
    let (left, top) = (region.x - image.region.x, region.y - image.region.y);
    let stride = 4 * image.region.width as usize;
    for row in room.pixels.chunks_exact(stride).take((top + size.1) as usize).skip(top as usize) {
        rows.next_row().copy_from_slice(&row[4 * left as usize..][..4 * size.0 as usize]);
        rows.finish_row();
    }
    Ok(())
}

/// Does the same with fast_image_resize.
fn library_resize(room: &mut Room, image: peers::Decoded, region: Region) -> Result<(), Failure> {
    let Region { x, y, width, height } = image.region;
    let bytes = &room.pixels[..4 * (width * height) as usize];
    let source = ImageRef::new(width, height, bytes, PixelType::U8x4)?;
    let cut = CroppedImage::new(&source, region.x - x, region.y - y, region.width, region.height)?;
    let mut target = Image::new(SIZE, SIZE, PixelType::U8x4);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    room.resizer.resize(&cut, &mut target, &options)?;
    Ok(())
}

fn cases(files: Vec<Vec<u8>>) -> Result<Vec<Case>, Failure> {
    let spec = ImageSpec { size: Some((SIZE, SIZE)), crop: Crop::Random, ..ImageSpec::default() };
    let mean = files.iter().map(Vec::len).sum::<usize>() / files.len();
    let room = fitting_bytes(mean as u64).ok_or("images too small for checkpoints")? as usize;
    let case = |(position, bytes): (usize, Vec<u8>)| {
        let header = header::parse(&bytes)?;
        let draw = Draw { seed: 1, epoch: 0, position: position as u64 };
        let region = geometry(&spec, header.oriented(), draw).region;
        let mut record = vec![0; room];
        checkpoints::write_record(&bytes, &mut record);
        Ok(Case { bytes, header, region, record })
    };
    files.into_iter().enumerate().map(case).collect()
}

/// Images a second of CPU time, by round.
type Rates = Vec<f64>;

/// The rates of each contender, in interleaved rounds.
fn measure(cases: &[Case], contenders: &[Contender]) -> Result<Vec<Rates>, Failure> {
    let mut room = Room::new()?;
    let mut rates = vec![Rates::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for ((_, contender), rates) in contenders.iter().zip(&mut rates) {
            let began = seconds();
            for case in cases {
                contender(case, &mut room)?;
            }
            // The first round warms up.
            if round > 0 {
                rates.push(cases.len() as f64 / (seconds() - began));
            }
        }
    }
    Ok(rates)
}

fn median(mut values: Rates) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints a row for each contender: its rates, and their ratio to those of `reference`.
fn table(
    data: &str,
    what: &str,
    cases: &[Case],
    contenders: &[Contender],
    reference: usize,
) -> Result<(), Failure> {
    let measured = measure(cases, contenders)?;
    for ((name, _), rates) in contenders.iter().zip(&measured) {
        let times = rates.iter().zip(&measured[reference]).map(|(ours, theirs)| ours / theirs).collect();
        let (low, high) = rates.iter().fold((f64::MAX, 0f64), |(low, high), &r| (low.min(r), high.max(r)));
        let (rate, times) = (median(rates.clone()), median(times));
        println!("| {what}: {name} | {rate:.0} | {low:.0}–{high:.0} | {times:.2} |");
        eprintln!("{}", serde_json::json!({"data": data, "what": what, "contender": name, "rates": rates}));
    }
    Ok(())
}

/// CPU time of this thread.
fn seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The mean difference of all values between a reduced and a full decode.
fn draft_difference(cases: &[Case]) -> Result<f64, Failure> {
    let mut room = Room::new()?;
    let (mut sum, mut n) = (0u64, 0);
    for case in cases {
        CROPS[0].1(case, &mut room)?;
        let whole = room.small.clone();
        CROPS[2].1(case, &mut room)?;
        sum += whole.iter().zip(&room.small).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        n += whole.len();
    }
    Ok(sum as f64 / n as f64)
}

/// The greatest difference of any value between Tidegate's crops, with and without checkpoints,
/// and those of libjpeg-turbo.
fn difference(cases: &[Case]) -> Result<u8, Failure> {
    let mut room = Room::new()?;
    let mut most = 0;
    for case in cases {
        let mut crops = Vec::new();
        for (_, contender) in [&CROPS[0], &CROPS[1], &CROPS[6]] {
            contender(case, &mut room)?;
            crops.push(room.small.clone());
        }
        for other in &crops[1..] {
            most = crops[0].iter().zip(other).fold(most, |most, (a, b)| most.max(a.abs_diff(*b)));
        }
    }
    Ok(most)
}

fn files_below(folder: &Path, found: &mut Vec<std::path::PathBuf>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "jpg" || e == "jpeg") {
            found.push(path);
        }
    }
    Ok(())
}

fn images(folder: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let mut paths = Vec::new();
    files_below(folder, &mut paths)?;
    paths.sort();
    let step = (paths.len() / IMAGES).max(1);
    Ok(paths.iter().step_by(step).take(IMAGES).map(std::fs::read).collect::<Result<_, _>>()?)
}

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("usage: tidegate-bench-jpeg FOLDER")?;
    let given = images(Path::new(&folder))?;
    let mut turbo = peers::Turbo::new()?;
    let subsampled = given.iter().map(|bytes| turbo.subsampled(bytes)).collect::<Result<Vec<_>, _>>()?;
    let large = tempfile::tempdir()?;
    let recipe = Recipe { samples: 48, classes: 1, seed: 5, width: 2000, form: Form::Folder, shard: 48 };
    synth::dataset(large.path(), &recipe, &|_| ())?;
    let large = images(large.path())?;
    for (name, files) in [("as given", given), ("4:2:0, quality 85", subsampled), ("3 megapixels", large)] {
        let cases = cases(files)?;
        let mean = |of: fn(&Case) -> usize| cases.iter().map(of).sum::<usize>() / cases.len();
        let bytes = mean(|case| case.bytes.len());
        println!(
            "\n{name}: {} images, mean {bytes} bytes, {:.2} megapixels, checkpoints {:.1} % of that; greatest difference \
             from libjpeg-turbo: {}; mean difference of a draft: {:.2}\n",
            cases.len(),
            mean(|case| (case.header.width * case.header.height) as usize) as f64 / 1e6,
            100.0 * mean(|case| case.record.len()) as f64 / bytes as f64,
            difference(&cases)?,
            draft_difference(&cases)?
        );
        println!("| | images/s | range | times libjpeg-turbo |\n|-|-|-|-|");
        table(name, "crop", &cases, &CROPS, 3)?;
        table(name, "whole", &cases, &WHOLE, 1)?;
        table(name, "checkpoints made", &cases, &RECORDS, 0)?;
    }
    Ok(())
}
