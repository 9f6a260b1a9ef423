//! Synthetic photos that cost as much as real ones: about 500 × 375 pixels, 110 KB, 76 % in 4:4:4.
//!
//! Flow: (seed, number) -> pixels with a 1/f spectrum, edges and texture -> JPEG -> a folder for
//! each class, or tar shards.
//! Memory: one image on each thread.
//!
//! The class of an image sets its main colour and the direction of its stripes, so that a small
//! network can learn the classes.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use tidegate_data::{Error, Result};
use tidegate_order::random::{Purpose, Stream};
use tidegate_source::tar;

/// The layout of a dataset on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// A folder for each class.
    Folder,
    /// WebDataset tar shards with `jpg` and `cls`.
    Tar,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The number of images.
    pub samples: u64,
    /// The number of classes.
    pub classes: u64,
    /// The seed.
    pub seed: u64,
    /// The mean width in pixels; the mean height is three quarters of it.
    pub width: u32,
    /// The layout on disk.
    pub form: Form,
    /// Images in a tar shard.
    pub shard: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { samples: 1000, classes: 10, seed: 0, width: 500, form: Form::Folder, shard: 500 }
    }
}

/// Makes a photo-like JPEG of class `class`.
///
/// # Errors
/// Never in practice: the encoder writes into memory.
pub fn photo(seed: u64, number: u64, class: u64, classes: u64, width: u32) -> Result<Vec<u8>> {
    let mut stream = Stream::new(seed, 0, number, 0, Purpose::Synthetic);
    let width = (f64::from(width) * stream.between(0.9, 1.1)) as u32;
    let height = (f64::from(width) * stream.between(0.68, 0.82)) as u32;
    let rgb = pixels(&mut stream, class as f64 / classes.max(1) as f64, width as usize, height as usize);
    let quality = stream.between(92.0, 98.5) as u8;
    let mut bytes = Vec::with_capacity(160 << 10);
    let mut encoder = Encoder::new(&mut bytes, quality);
    let full = stream.uniform() < 0.76;
    encoder.set_sampling_factor(if full { SamplingFactor::F_1_1 } else { SamplingFactor::F_2_2 });
    let (w, h) = (width as u16, height as u16);
    encoder
        .encode(&rgb, w, h, ColorType::Rgb)
        .map_err(|e| Error::Config(format!("encoding an image: {e}")))?;
    Ok(bytes)
}

/// RGB pixels: octaves of smooth noise whose amplitude falls with frequency, edges, stripes,
/// grain.
fn pixels(stream: &mut Stream, hue: f64, width: usize, height: usize) -> Vec<u8> {
    let mut planes = [vec![0f32; width * height], vec![0f32; width * height], vec![0f32; width * height]];
    for (octave, size) in [256usize, 128, 64, 32, 16, 8, 4, 2].into_iter().enumerate() {
        let luma = 52.0 * 0.72f32.powi(octave as i32);
        add_noise(&mut planes[0], width, height, size, luma, stream);
        if size >= 8 {
            add_noise(&mut planes[1], width, height, size, luma * 0.35, stream);
            add_noise(&mut planes[2], width, height, size, luma * 0.35, stream);
        }
    }
    for _ in 0..6 {
        let (cx, cy) = (stream.between(0.0, width as f64) as f32, stream.between(0.0, height as f64) as f32);
        let radius = stream.between(20.0, 160.0) as f32;
        let lift = stream.between(-40.0, 40.0) as f32;
        for (i, value) in planes[0].iter_mut().enumerate() {
            let (x, y) = ((i % width) as f32 - cx, (i / width) as f32 - cy);
            if x * x + y * y < radius * radius {
                *value += lift;
            }
        }
    }
    let angle = (hue * std::f64::consts::PI) as f32;
    let (dx, dy) = (angle.cos() * 0.35, angle.sin() * 0.35);
    let grain = stream.between(3.0, 13.0) as f32;
    let turn = hue * std::f64::consts::TAU;
    let (cb, cr) = (turn.cos() as f32 * 42.0, turn.sin() as f32 * 42.0);
    let mut rgb = Vec::with_capacity(width * height * 3);
    let mut noise = 0x9E37_79B9u32 ^ stream.word();
    let [luma, blue, red] = &planes;
    for (i, ((&y, &b), &r)) in luma.iter().zip(blue).zip(red).enumerate() {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        let stripe = ((i % width) as f32 * dx + (i / width) as f32 * dy).sin() * 9.0;
        let y = 124.0 + y + stripe + (noise as f32 / u32::MAX as f32 - 0.5) * 2.0 * grain;
        let (b, r) = (b + cb, r + cr);
        for value in [y + 1.402 * r, y - 0.344 * b - 0.714 * r, y + 1.772 * b] {
            rgb.push(value.clamp(0.0, 255.0) as u8);
        }
    }
    rgb
}

/// Adds noise that is smooth over `size` pixels.
fn add_noise(
    plane: &mut [f32],
    width: usize,
    height: usize,
    size: usize,
    amplitude: f32,
    stream: &mut Stream,
) {
    let columns = width / size + 2;
    let mut draw = || -> Vec<f32> {
        (0..columns).map(|_| (stream.word() as f32 / u32::MAX as f32 - 0.5) * 2.0 * amplitude).collect()
    };
    let (mut above, mut below) = (draw(), draw());
    for y in 0..height {
        if y > 0 && y % size == 0 {
            above = std::mem::replace(&mut below, draw());
        }
        let v = (y % size) as f32 / size as f32;
        for (x, value) in plane[y * width..][..width].iter_mut().enumerate() {
            let (k, u) = (x / size, (x % size) as f32 / size as f32);
            let top = above[k] + (above[k + 1] - above[k]) * u;
            let bottom = below[k] + (below[k + 1] - below[k]) * u;
            *value += top + (bottom - top) * v;
        }
    }
}

/// Makes a dataset in the folder `out`. `progress` is called with the number of images done.
///
/// # Errors
/// When the disk is full, or `out` cannot be written or has other data.
pub fn dataset(out: &Path, recipe: &Recipe, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    super::target::prepare(out, |name| match recipe.form {
        Form::Folder => name.strip_prefix("class_").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())),
        Form::Tar => {
            // An earlier call may have been broken off.
            let whole = name.trim_end_matches(".partial");
            name == ".tidegate" || (whole.starts_with("shard-") && whole.ends_with(".tar"))
        }
    })?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let done = std::sync::atomic::AtomicU64::new(0);
    let tick = || progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
    let units = match recipe.form {
        Form::Folder => recipe.samples,
        Form::Tar => recipe.samples.div_ceil(recipe.shard.max(1)),
    };
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let run = |t: u64| {
            let tick = &tick;
            move || -> Result<()> {
                for unit in (t..units).step_by(threads as usize) {
                    match recipe.form {
                        Form::Folder => write_photo(out, recipe, unit)?,
                        Form::Tar => write_shard(out, recipe, unit, tick)?,
                    }
                    if recipe.form == Form::Folder {
                        tick();
                    }
                }
                Ok(())
            }
        };
        let handles: Vec<_> = (0..threads)
            .map(|t| std::thread::Builder::new().name("tg-synth".into()).spawn_scoped(scope, run(t)))
            .collect();
        let joined = handles.into_iter().map(|h| match h.map(|h| h.join()) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Panic { thread: "tg-synth".into(), what: "while making images".into() }),
            Err(error) => Err(Error::io(out)(error)),
        });
        joined.collect()
    });
    outcomes.into_iter().collect()
}

fn class_of(recipe: &Recipe, number: u64) -> u64 {
    Stream::new(recipe.seed, 1, number, 0, Purpose::Synthetic).below(recipe.classes.max(1))
}

fn write_photo(out: &Path, recipe: &Recipe, number: u64) -> Result<()> {
    let class = class_of(recipe, number);
    let dir = out.join(format!("class_{class:03}"));
    fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    let path = dir.join(format!("{number:08}.jpg"));
    let bytes = photo(recipe.seed, number, class, recipe.classes, recipe.width)?;
    fs::write(&path, bytes).map_err(Error::io(path))
}

fn write_shard(out: &Path, recipe: &Recipe, shard: u64, tick: &dyn Fn()) -> Result<()> {
    let path = out.join(format!("shard-{shard:05}.tar"));
    let partial = path.with_extension("tar.partial");
    let mut file = BufWriter::new(fs::File::create(&partial).map_err(Error::io(&partial))?);
    let first = shard * recipe.shard;
    for number in first..(first + recipe.shard).min(recipe.samples) {
        let class = class_of(recipe, number);
        let bytes = photo(recipe.seed, number, class, recipe.classes, recipe.width)?;
        let members = [("jpg", bytes), ("cls", class.to_string().into_bytes())];
        for (extension, data) in members {
            tar::write_member(&mut file, &format!("{number:08}.{extension}"), &data)
                .map_err(Error::io(&partial))?;
        }
        tick();
    }
    file.write_all(&[0; 1024]).and_then(|()| file.flush()).map_err(Error::io(&partial))?;
    fs::rename(&partial, &path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_are_reproducible_and_as_large_as_real_ones() {
        let sizes: Vec<usize> = (0..12).map(|i| photo(1, i, i % 10, 10, 500).unwrap().len()).collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((80_000..140_000).contains(&mean), "mean {mean} bytes: {sizes:?}");
        assert_eq!(photo(1, 3, 0, 10, 100).unwrap(), photo(1, 3, 0, 10, 100).unwrap());
    }
}
