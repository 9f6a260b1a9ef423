//! The files that the house holds: Rust, Python and Markdown sources, read once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::text::{Source, mark_test_modules};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Folders without sources of ours, wherever they are.
const SKIPPED: [&str; 3] = ["target", "results", "__pycache__"];

/// The paths of all files below a folder, from the root, in order.
pub(crate) fn below(root: &Path, folder: &str, skipped: &[&str]) -> Vec<String> {
    let mut folders = vec![root.join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let built = folder == root && name == "demo";
            if built || path.is_symlink() || name.starts_with('.') || skipped.contains(&name.as_str()) {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

static ALL: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let root = root();
    let mut found = Vec::new();
    for path in below(&root, "", &SKIPPED) {
        if [".rs", ".py", ".pyi", ".md", "Cargo.toml"].iter().any(|end| path.ends_with(end)) {
            let text = fs::read_to_string(root.join(&path)).unwrap();
            found.push(Source::new(&path, &text));
        }
    }
    assert!(found.len() > 200, "the walk found only {} sources", found.len());
    mark_test_modules(&mut found);
    found
});

/// Every source of the repository, in the order of the paths.
pub(crate) fn all() -> &'static [Source] {
    &ALL
}
