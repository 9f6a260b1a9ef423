//! The tables of the house: what may use what, where unsafe code may be, which words are not used,
//! and what is allowed all the same. A change of the house changes a line here.

/// Files that may hold unsafe code, each block with its proof.
pub(crate) const UNSAFE: &[&str] = &[
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
pub(crate) const CRATES: &[(&str, &str)] = &[
    ("tidegate-core", ""),
    ("tidegate-array", "tidegate-core"),
    ("tidegate-sketch", "tidegate-core"),
    ("tidegate-order", "tidegate-core"),
    ("tidegate-decode", "tidegate-core tidegate-array"),
    ("tidegate-source", "tidegate-core tidegate-array tidegate-order tidegate-decode"),
    ("tidegate-data", "tidegate-core tidegate-array tidegate-order tidegate-decode tidegate-source"),
    (
        "tidegate",
        "tidegate-core tidegate-array tidegate-sketch tidegate-order tidegate-decode tidegate-source tidegate-data",
    ),
    (
        "python",
        "tidegate-core tidegate-array tidegate-sketch tidegate-order tidegate-decode tidegate-source tidegate-data tidegate",
    ),
];

/// What a room of a crate may use of the others; `lib` is what the crate's root file defines.
/// Arrows that nothing uses are breaches too, so that the table stays true.
#[rustfmt::skip]
pub(crate) const ROOMS: &[(&str, &[(&str, &str)])] = &[
];

/// Names in backticks of ARCHITECTURE.md that come from elsewhere.
pub(crate) const KNOWN_NAMES: &[&str] = &["std", "pread", "faer", "kiddo", "crossbeam", "make"];

/// Phrases that are not used in comments, docs, Markdown or strings. A `|` keeps them out of this
/// file.
pub(crate) const PHRASES: &[&str] = &[
    "how-man|ieth",
    "man|ieth",
    "who|ever",
    "whom|ever",
    "whoso|ever",
    "some|body",
    "fore|tell",
    "fore|tells",
    "fore|told",
    "fore|telling",
    "a|new",
    "but |for",
    "so |many",
    "pict|ure",
    "pict|ures",
    "li|es",
    "len|t",
    "what is where |it is",
];

/// Words that are not used in comments, docs and Markdown: threads and caches are "it".
pub(crate) const PRONOUNS: &[&str] = &["h|e", "hi|m", "hi|s", "sh|e", "her|s", "him|self", "her|self"];

/// Uses of [`PHRASES`] that stand: (end of the path, phrase, part of the line).
pub(crate) const PHRASES_ALLOWED: &[(&str, &str, &str)] = &[];

/// Uses of [`PRONOUNS`] that stand: (end of the path, word, part of the line).
pub(crate) const PRONOUNS_ALLOWED: &[(&str, &str, &str)] = &[];

/// Tests of a text that is no error's, or of an error that is another program's: (end of the path,
/// part of the line).
pub(crate) const TEXT_TESTS_ALLOWED: &[(&str, &str)] = &[];

pub(crate) const FILE_LINES: usize = 620;
pub(crate) const FUNCTION_LINES: usize = 80;
pub(crate) const PROSE_COLUMNS: usize = 100;
pub(crate) const MAP_LINES: usize = 400;
/// Files that may import each other in a circle, at most.
pub(crate) const CIRCLE_FILES: usize = 3;
/// The part of all Rust lines that one crate may have.
pub(crate) const CRATE_PERCENT: f64 = 22.0;

/// Where the golden files are.
pub(crate) const GOLDEN_FOLDER: &str = "python/tests/golden";

/// The golden files, by the first part of their paths, with the hash of their names and bytes:
/// they never change.
pub(crate) const GOLDEN: &[(&str, u64)] = &[
    ("before", 0x8392fd4a61779c8a),
    ("gnu.tar", 0xd1da50a5f0ceaa89),
    ("hf", 0x0e8c270df192a7dc),
    ("hf-disk", 0x09247af4467e2a68),
    ("hf.json", 0x2692f72e1e0e2fd4),
    ("lists.parquet", 0xf764c78693767945),
    ("mds", 0x2baf397c63de8e46),
    ("mds-zstd", 0xa6c66a69c5cd6cbe),
    ("mds.json", 0x3219d1f1bc18d020),
    ("pax.tar", 0xb574cf176ec5b4e5),
    ("sketches", 0xa4f95a46204e794c),
    ("sketches.json", 0x1117380a53d62d38),
    ("tables", 0xb6d9d82ade767a87),
    ("tables.json", 0x08606bee4edda5ae),
    ("ustar.tar", 0x9ef01e6390715308),
    ("volumes.zip", 0x2c112f91db84dd2e),
    ("wds", 0x270bfd67497e4a0d),
    ("wds.json", 0xb73fa3fc8f8b0dbd),
];
