//! Every source and every order keeps the promises of its trait.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_source::{Source, Subset, Synthetic, open, testing};

/// A copy of the golden data, so that indexes do not land in the tree.
fn golden(test: &str, name: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/tests/golden").join(name);
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance").join(test).join(name);
    copy(&from, &to);
    to
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            copy(&file.path(), &to.join(file.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn check(source: &dyn Source) {
    if let Err(what) = testing::source(source) {
        assert_eq!(what, "", "{}", source.name());
    }
}

#[test]
fn every_format_is_a_source() {
    for name in ["mds", "mds-zstd", "wds", "gnu.tar", "pax.tar", "hf", "hf-disk"] {
        check(&*open(golden("formats", name).to_str().unwrap(), true).unwrap());
    }
    for table in fs::read_dir(golden("formats", "tables")).unwrap() {
        let path = table.unwrap().path();
        if path.is_file() {
            check(&*open(path.to_str().unwrap(), true).unwrap());
        }
    }
}

#[test]
fn compressed_tars_and_folders_are_sources() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance-made");
    fs::create_dir_all(dir.join("photos/a")).unwrap();
    let tar = fs::read(golden("packed", "wds").join("000.tar")).unwrap();
    let packed = dir.join("x.tar.zst");
    fs::write(&packed, zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    check(&*open(packed.to_str().unwrap(), true).unwrap());
    for i in 0..5u8 {
        let mut bytes = Vec::new();
        let pixels = vec![i; 3 * 9 * 7];
        jpeg_encoder::Encoder::new(&mut bytes, 90)
            .encode(&pixels, 9, 7, jpeg_encoder::ColorType::Rgb)
            .unwrap();
        fs::write(dir.join(format!("photos/a/{i}.jpg")), bytes).unwrap();
    }
    check(&*open(dir.join("photos").to_str().unwrap(), true).unwrap());
}

#[test]
fn made_up_and_partial_sources_are_sources() {
    let whole: Arc<dyn Source> = Arc::new(Synthetic::new(1000, 40));
    check(&*whole);
    check(&Subset::new(whole, vec![3, 999, 3, 0]).unwrap());
    let table = open(golden("subset", "hf").to_str().unwrap(), false).unwrap();
    check(&Subset::new(table, vec![7, 2, 11]).unwrap());
}
