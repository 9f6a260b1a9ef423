//! Holds the house: opening comments, the arrows between crates, the list of files with unsafe code, modules named in
//! ARCHITECTURE.md, no drawers, no giants.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Files that may hold unsafe code, each block with its proof.
const UNSAFE: [&str; 18] = [
    "crates/tidegate-array/src/kernels/bits.rs",
    "crates/tidegate-array/src/kernels/grid.rs",
    "crates/tidegate-array/src/kernels/planar.rs",
    "crates/tidegate-array/src/kernels/transpose.rs",
    "crates/tidegate-array/src/mmap.rs",
    "crates/tidegate-core/src/memory/arena.rs",
    "crates/tidegate-core/src/memory/buddy.rs",
    "crates/tidegate-core/src/memory/log.rs",
    "crates/tidegate-core/src/memory/pieces.rs",
    "crates/tidegate-core/src/memory/region.rs",
    "crates/tidegate-data/src/batch/resize.rs",
    "crates/tidegate-decode/src/jpeg/color.rs",
    "crates/tidegate-decode/src/jpeg/idct.rs",
    "crates/tidegate-decode/src/jpeg/mod.rs",
    "crates/tidegate-source/src/uring.rs",
    "crates/tidegate-source/tests/fuzz.rs",
    "crates/tidegate-sketch/src/moments.rs",
    "python/src/array.rs",
];

/// What a crate may use of the others.
const ARROWS: [(&str, &[&str]); 9] = [
    ("crates/tidegate-array", &["tidegate-core"]),
    ("crates/tidegate-core", &[]),
    ("crates/tidegate-sketch", &["tidegate-core"]),
    ("crates/tidegate-order", &["tidegate-core"]),
    ("crates/tidegate-decode", &["tidegate-array", "tidegate-core"]),
    ("crates/tidegate-source", &["tidegate-array", "tidegate-core", "tidegate-decode", "tidegate-order"]),
    (
        "crates/tidegate-data",
        &["tidegate-array", "tidegate-core", "tidegate-decode", "tidegate-order", "tidegate-source"],
    ),
    (
        "crates/tidegate",
        &[
            "tidegate-array",
            "tidegate-core",
            "tidegate-data",
            "tidegate-decode",
            "tidegate-order",
            "tidegate-sketch",
            "tidegate-source",
        ],
    ),
    (
        "python",
        &[
            "tidegate",
            "tidegate-array",
            "tidegate-core",
            "tidegate-data",
            "tidegate-decode",
            "tidegate-order",
            "tidegate-sketch",
            "tidegate-source",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// (path from the root, text) of every Rust source.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut folders = vec![root.join("crates"), root.join("python/src")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 40, "the walk finds the sources");
    found
}

fn before_tests(text: &str) -> Vec<&str> {
    text.lines().take_while(|l| !l.starts_with("#[cfg(test)]") && !l.starts_with("#[cfg(all(test")).collect()
}

#[test]
fn every_file_says_what_it_is() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} opens with no //! line");
        let module = name.contains("/src/") && !name.ends_with("main.rs");
        if module {
            for word in ["//! Flow: ", "//! Memory: "] {
                assert!(text.contains(word), "{name} does not say its {word:?}");
            }
        }
    }
}

#[test]
fn unsafe_code_lives_where_it_may() {
    for (name, text) in sources() {
        let code = text.lines().any(|l| {
            let l = l.trim_start();
            !l.starts_with("//")
                && (l.contains("unsafe {") || l.contains("unsafe fn") || l.contains("unsafe impl"))
        });
        if code && !name.ends_with("tests/tidy.rs") {
            assert!(UNSAFE.contains(&name.as_str()), "{name} holds unsafe code and is not on the list");
        }
    }
}

#[test]
fn crates_point_one_way() {
    for (folder, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter(|l| l.starts_with("tidegate")) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(allowed.contains(&name), "{folder} depends on {name}");
        }
    }
}

#[test]
fn files_are_short_and_rooms_have_names() {
    for (name, text) in sources() {
        assert!(before_tests(&text).len() <= 620, "{name} holds two rooms");
        for drawer in ["util", "common", "helper", "manager", "misc"] {
            assert!(!name.split('/').any(|part| part.starts_with(drawer)), "{name} is a drawer");
        }
    }
}

#[test]
fn the_map_names_every_module() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(map.lines().count() <= 200, "the map is longer than 200 lines");
    for (name, _) in sources().iter().filter(|(name, _)| name.contains("/src/")) {
        let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
        if !matches!(stem, "mod" | "lib" | "main") {
            assert!(map.contains(stem), "ARCHITECTURE.md does not name {name}");
        }
    }
}
