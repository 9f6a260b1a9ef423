//! Compressed arrays: packed into shards and decompressed in batches, or refused with the reason.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate::dataset::pack::{Compression, Format, Limits, pack};
use tidegate::{Budget, FieldSpec, Loader, OnError, Options, Source, open};
use tidegate_decode::npy::DType;
use tidegate_source::tar::write_member;

use super::folder;

const SAMPLES: u64 = 60;

fn value(id: u64, i: u64) -> f32 {
    ((id * 100 + i) as f32 * 0.01).sin() * 3.0
}

fn token(id: u64, i: u64) -> u16 {
    (id * 7 + i * i % 50) as u16
}

fn npy(dtype: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00v\x00".to_vec();
    bytes.extend(format!("{header:<117}\n").bytes());
    bytes.extend(elements);
    bytes
}

/// Samples with floats of shape 4 × 100 and 300 tokens each.
fn arrays(name: &str) -> PathBuf {
    let dir = folder(name);
    let mut out = std::fs::File::create(dir.join("a.tar")).unwrap();
    for id in 0..SAMPLES {
        let floats: Vec<u8> = (0..400).flat_map(|i| value(id, i).to_le_bytes()).collect();
        let tokens: Vec<u8> = (0..300).flat_map(|i| token(id, i).to_le_bytes()).collect();
        for (field, bytes) in [("x", npy("<f4", "4, 100", &floats)), ("t", npy("<u2", "300,", &tokens))] {
            write_member(&mut out, &format!("{id:04}.{field}.npy"), &bytes).unwrap();
        }
        write_member(&mut out, &format!("{id:04}.cls"), id.to_string().as_bytes()).unwrap();
    }
    std::io::Write::write_all(&mut out, &[0; 1024]).unwrap();
    dir
}

fn packed(from: &Path, name: &str, small: &Compression) -> Arc<dyn Source> {
    let source = open(from.to_str().unwrap(), false).unwrap();
    let out = folder(name);
    let limits = Limits { bytes: 30_000, samples: u64::MAX };
    pack(&*source, &out, Format::Mds, limits, small, None, &|_, _| Ok(())).unwrap();
    open(out.to_str().unwrap(), false).unwrap()
}

fn options() -> Options {
    Options { global_batch_size: Some(7), ..Options::default() }
}

/// The floats and tokens of all samples in order, and the bytes that were read.
fn epoch(source: &Arc<dyn Source>, options: Options) -> (Vec<f32>, Vec<u16>, u64) {
    let mut loader = Loader::new(Arc::clone(source), options, Budget::new(16 << 20)).unwrap();
    let (mut floats, mut tokens): (Vec<f32>, Vec<u16>) = (Vec::new(), Vec::new());
    for batch in loader.epoch().unwrap() {
        let batch = batch.unwrap();
        let bytes = |name: &str| batch.bytes(batch.column(name).unwrap()).to_vec();
        floats.extend(bytes("x.npy").as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)));
        tokens.extend(bytes("t.npy").as_chunks().0.iter().map(|x| u16::from_le_bytes(*x)));
    }
    (floats, tokens, loader.report().stages.read_bytes)
}

#[test]
fn arrays_that_were_made_small_come_back() {
    let from = arrays("compact-from");
    let expected: Vec<f32> = (0..SAMPLES).flat_map(|id| (0..400).map(move |i| value(id, i))).collect();
    let tokens: Vec<u16> = (0..SAMPLES).flat_map(|id| (0..300).map(move |i| token(id, i))).collect();
    let array = |dtype, shape: &[usize]| FieldSpec::Array { dtype: Some(dtype), shape: Some(shape.to_vec()) };
    let plain = open(from.to_str().unwrap(), false).unwrap();
    let fields = vec![
        ("x.npy".to_owned(), array(DType::Float32, &[4, 100])),
        ("t.npy".to_owned(), array(DType::Uint16, &[300])),
    ];
    let (floats, found, whole) = epoch(&plain, Options { fields, ..options() });
    assert!(floats == expected && found == tokens);

    let auto = Compression { codec: Some("auto".into()), ..Compression::default() };
    let source = packed(&from, "compact-auto", &auto);
    let (floats, found, read) = epoch(&source, options());
    assert!(floats == expected && found == tokens);
    assert!(read * 5 < whole * 4, "{read} of {whole} bytes");
    // The limit is of compressed bytes.
    let shards: Vec<u64> =
        source.shards().iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
    let (_, full) = shards.split_last().unwrap();
    assert!(full.iter().all(|bytes| (28_000..=30_000).contains(bytes)), "{shards:?}");

    let codec = Some("delta+shuffle+zstd".into());
    let small = Compression { quantize: vec![("x.npy".into(), 8)], codec, ..Compression::default() };
    let source = packed(&from, "compact-quantized", &small);
    let (floats, found, read) = epoch(&source, options());
    assert!(found == tokens && read * 2 < whole, "{read} of {whole} bytes");
    // The error is half a step, of blocks that span at most six.
    assert!(floats.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 6.0 / 255.0 * 0.501));
    // Delivered as float16 it is the same, rounded.
    let half = |dtype| vec![("x.npy".to_owned(), array(dtype, &[4, 100]))];
    let with =
        |fields| Loader::new(Arc::clone(&source), Options { fields, ..options() }, Budget::new(16 << 20));
    let mut loader = with(half(DType::Float16)).unwrap();
    let batch = loader.epoch().unwrap().next().unwrap().unwrap();
    let halves: Vec<f32> = batch
        .bytes(batch.column("x.npy").unwrap())
        .as_chunks()
        .0
        .iter()
        .map(|x| half::f16::from_le_bytes(*x).to_f32())
        .collect();
    assert!(halves.iter().zip(&floats).all(|(a, b)| *a == half::f16::from_f32(*b).to_f32()));
    let words = |fields| with(fields).map(drop).unwrap_err().to_string();
    assert!(words(half(DType::Int16)).contains("float32, float16 or bfloat16"));
    assert!(
        words(vec![("t.npy".into(), array(DType::Int32, &[300]))]).contains("packed arrays of uint16 [300]")
    );

    // Compressed arrays stay compressed when they are packed again.
    let again = folder("compact-again");
    let limits = Limits { bytes: 1 << 20, samples: u64::MAX };
    pack(&*source, &again, Format::Mds, limits, &Compression::default(), None, &|_, _| Ok(())).unwrap();
    let again = open(again.to_str().unwrap(), false).unwrap();
    assert!(epoch(&again, options()).0 == floats);

    let near = Compression { codec: Some("abs:0.01".into()), ..Compression::default() };
    let out = folder("compact-near");
    let error =
        pack(&*plain, &out, Format::Mds, limits, &near, None, &|_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("t.npy") && error.contains("float32 or float64"), "{error}");
    assert!(error.contains("--codec t.npy="), "{error}");

    // One codec for one field, another for the rest.
    let codecs = vec![("x.npy".into(), "abs:0.01".into())];
    let source = packed(&from, "compact-apart", &Compression { codecs, ..auto });
    let (floats, found, _) = epoch(&source, options());
    assert!(found == tokens && floats != expected);
    assert!(floats.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 0.01));
}

#[test]
fn arrays_that_cannot_be_compressed_are_refused_and_damage_follows_the_policy() {
    let from = arrays("compact-wrong");
    let source = open(from.to_str().unwrap(), false).unwrap();
    let words = |quantize: &[(&str, u32)], codec: Option<&str>, format| {
        let quantize = quantize.iter().map(|(name, bits)| ((*name).to_owned(), *bits)).collect();
        let small = Compression { quantize, codec: codec.map(str::to_owned), ..Compression::default() };
        let limits = Limits { bytes: 1 << 20, samples: u64::MAX };
        pack(&*source, &folder("compact-refused"), format, limits, &small, None, &|_, _| Ok(()))
            .unwrap_err()
            .to_string()
    };
    assert!(words(&[("y", 4)], None, Format::Mds).contains("no field \"y\""));
    assert!(words(&[("cls", 4)], None, Format::Mds).contains("only arrays"));
    assert!(words(&[("x.npy", 1)], None, Format::Mds).contains("2 to 8"));
    assert!(words(&[("t.npy", 4)], None, Format::Mds).contains("only floats"));
    assert!(words(&[], Some("lzma"), Format::Mds).contains("known are lz4"));
    assert!(words(&[], Some("auto"), Format::Tar).contains("--format mds"));

    // An error names the sample of a value that cannot be quantized.
    let dir = arrays("compact-nan");
    let mut bytes = std::fs::read(dir.join("a.tar")).unwrap();
    let value = value(17, 399).to_le_bytes();
    let at = bytes.windows(4).position(|four| four == value).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.join("a.tar"), bytes).unwrap();
    let odd = open(dir.to_str().unwrap(), true).unwrap();
    let small = Compression { quantize: vec![("x.npy".into(), 8)], ..Compression::default() };
    let limits = Limits { bytes: 1 << 20, samples: u64::MAX };
    let error = pack(&*odd, &folder("compact-none"), Format::Mds, limits, &small, None, &|_, _| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(
        ["sample 17", "a.tar", "x.npy", "value 399 is"].iter().all(|word| error.contains(word)),
        "{error}"
    );

    let small = Compression {
        quantize: vec![("x.npy".into(), 4)],
        codec: Some("zstd".into()),
        ..Compression::default()
    };
    packed(&from, "compact-damaged", &small);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compact-damaged");
    let shard = dir.join("shard.00000.mds");
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.windows(4).position(|four| four == b"TGQ1").unwrap();
    bytes[at + 4] = 77;
    std::fs::write(&shard, bytes).unwrap();
    let source = open(dir.to_str().unwrap(), false).unwrap();
    let with = |on_error| {
        let mut loader =
            Loader::new(Arc::clone(&source), Options { on_error, ..options() }, Budget::new(16 << 20))
                .unwrap();
        let rows: Result<Vec<_>, _> =
            loader.epoch().unwrap().map(|batch| batch.map(|batch| batch.rows)).collect();
        rows.map(|rows| rows.iter().sum::<usize>())
    };
    let error = with(OnError::Raise).unwrap_err().to_string();
    assert!(
        error.contains("shard.00000.mds") && error.contains("x.npy") && error.contains("77 bits"),
        "{error}"
    );
    assert_eq!(with(OnError::Skip).unwrap(), SAMPLES as usize - 1);
}
