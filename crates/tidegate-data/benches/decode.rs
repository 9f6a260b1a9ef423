//! One thread's rate for the work of a loader, step by step: `cargo bench -p tidegate-data -- FOLDER`.
//!
//! Flow: the JPEGs of a folder (TIDEGATE_BENCH_DATA) -> images/s of whole decodes, and of random crops of 224.
//! Memory: 600 files and one picture.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints its measurements")]

use std::time::Instant;

use tidegate_data::batch::geometry::Draw;
use tidegate_data::batch::row::{Target, Tools, scratch_bytes};
use tidegate_data::batch::{Crop, FieldSpec, ImageSpec, Layout};
use tidegate_data::decode::{Region, Request, decoder, header};
use tidegate_data::source::{Entry, Field, Kind, SourceExt, Value, open};

fn rate(n: usize, mut each: impl FnMut(usize)) -> f64 {
    let mut rounds: Vec<f64> = (0..5)
        .map(|_| {
            let began = Instant::now();
            (0..n).for_each(&mut each);
            n as f64 / began.elapsed().as_secs_f64()
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[2]
}

fn main() {
    let Ok(folder) = std::env::var("TIDEGATE_BENCH_DATA") else {
        println!("skipped: set TIDEGATE_BENCH_DATA to a folder of JPEGs (`tidegate synth photos` makes one)");
        return;
    };
    let source = open(&folder, false).unwrap();
    let n = source.len().min(600);
    let files: Vec<Vec<u8>> = (0..n).map(|i| source.fetch(i * source.len() / n).unwrap().1).collect();
    let headers: Vec<_> = files.iter().map(|f| header::of(f).unwrap()).collect();
    let spec = ImageSpec { size: Some((224, 224)), crop: Crop::Random, flip: 0.5, ..ImageSpec::default() };
    let schema = vec![Field { name: "image".into(), kind: Kind::Image }];
    let layout = Layout::new(&schema, &[("image".into(), FieldSpec::Image(spec))], true).unwrap();
    let column = &layout.columns[0];
    let most = headers.iter().map(|h| scratch_bytes(column, h)).max().unwrap();
    let (mut scratch, mut row, mut tools) =
        (vec![0; most as usize], vec![0; column.row_bytes()], Tools::default());
    let whole = rate(files.len(), |i| {
        let h = &headers[i];
        let region = Region { x: 0, y: 0, width: h.width, height: h.height };
        let request = Request { header: h, region, entry: None, raw: false };
        decoder(h.format).decode(&files[i], &request, &mut scratch).unwrap();
    });
    let crops = rate(files.len(), |i| {
        let mut target = Target { bytes: &mut row, written: 0, shape: Vec::new() };
        let draw = Draw { seed: 0, epoch: 0, position: i as u64 };
        let value = Value::Bytes(&files[i]);
        tools.fill(&layout, column, value, &Entry::default(), draw, &mut scratch, &mut target).unwrap();
    });
    println!("{{\"whole_decode_per_s\": {whole:.0}, \"crop_224_per_s\": {crops:.0}, \"images\": {n}}}");
}
