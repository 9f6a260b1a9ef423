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
    "crates/tidegate-core/src/memory/heap.rs",
    "crates/tidegate-core/src/memory/log.rs",
    "crates/tidegate-core/src/memory/pieces.rs",
    "crates/tidegate-core/src/memory/region.rs",
    "crates/tidegate-data/src/batch/resize.rs",
    "crates/tidegate-decode/src/jpeg/color.rs",
    "crates/tidegate-decode/src/jpeg/idct.rs",
    "crates/tidegate-decode/src/jpeg/mod.rs",
    "crates/tidegate-source/src/files/uring.rs",
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
    ("tidegate-plan", "tidegate-core"),
    (
        "tidegate",
        "tidegate-core tidegate-array tidegate-sketch tidegate-order tidegate-decode tidegate-source tidegate-data tidegate-plan",
    ),
    (
        "python",
        "tidegate-core tidegate-array tidegate-sketch tidegate-order tidegate-decode tidegate-source tidegate-data tidegate-plan tidegate",
    ),
];

/// What a room of a crate may use of the others; `lib` is what the crate's root file defines.
/// Arrows that nothing uses are breaches too, so that the table stays true.
#[rustfmt::skip]
pub(crate) const ROOMS: &[(&str, &[(&str, &str)])] = &[
    (
        "python",
        &[
            ("array", ""),
            ("budget", "array errors"),
            ("compress", "errors"),
            ("curve", "errors"),
            ("dedup", "budget errors profile source"),
            ("drawn", "errors volume"),
            ("errors", ""),
            ("lib", "budget compress curve dedup drawn errors loader mapped pack profile quantize sketch source sparse stitch tensor_train training volume"),
            ("loader", "array budget errors profile sampler source"),
            ("mapped", "array errors source"),
            ("pack", "errors profile source"),
            ("profile", "budget errors source"),
            ("quantize", "errors"),
            ("sampler", "drawn errors"),
            ("sketch", "errors"),
            ("source", "errors"),
            ("sparse", "errors"),
            ("stitch", "budget errors volume"),
            ("tensor_train", "errors"),
            ("training", "errors"),
            ("volume", "budget errors source"),
        ],
    ),
    (
        "tidegate",
        &[
            ("atomic_file", ""),
            ("builder", "dataset loader"),
            ("cli", "atomic_file dataset html loader"),
            ("dataset", "atomic_file html loader"),
            ("html", ""),
            ("loader", "report"),
            ("report", ""),
        ],
    ),
    (
        "tidegate-array",
        &[
            ("codec", "dtype error lib"),
            ("dtype", ""),
            ("entropy", ""),
            ("error", ""),
            ("kernels", "dtype"),
            ("lib", "error"),
            ("mmap", "dtype error stored"),
            ("npy", "dtype"),
            ("quantize", "dtype error kernels lib"),
            ("sparse", "error lib"),
            ("stored", "dtype error npy"),
            ("tensor_train", "error lib"),
        ],
    ),
    (
        "tidegate-core",
        &[
            ("error", ""),
            ("hash", ""),
            ("memory", "error sync"),
            ("observe", "memory"),
            ("simd", ""),
            ("sync", ""),
        ],
    ),
    (
        "tidegate-data",
        &[
            ("batch", "error"),
            ("cache", "error"),
            ("error", ""),
            ("pipeline", "batch cache error"),
            ("stitch", "error"),
            ("testing", "cache"),
        ],
    ),
    (
        "tidegate-decode",
        &[
            ("compact", "error"),
            ("decoders", "error header image jpeg pixels png_image webp"),
            ("error", ""),
            ("header", "error"),
            ("image", "error header"),
            ("jpeg", "error image"),
            ("npy", "error"),
            ("pixels", "error image"),
            ("png_chunks", "error"),
            ("png_image", "error image png_chunks"),
            ("quoted", "error"),
            ("schema", "compact error npy quoted"),
            ("text", "error quoted schema"),
            ("webp", "error image webp_codes"),
            ("webp_codes", ""),
        ],
    ),
    (
        "tidegate-order",
        &[
            ("alias", "error memory"),
            ("curriculum", "draw error memory traits"),
            ("draw", "error random"),
            ("error", ""),
            ("explicit", "error memory traits"),
            ("feedback", "alias draw error memory permutation traits"),
            ("lattice", "error memory"),
            ("memory", "error"),
            ("morton", "error lattice memory quality traits"),
            ("partition", "error"),
            ("patches", "alias draw error lattice memory traits"),
            ("permutation", "random"),
            ("quality", "error traits"),
            ("random", ""),
            ("shuffle", "error permutation traits window"),
            ("stratified", "draw error memory permutation traits"),
            ("testing", "traits"),
            ("tradeoff", "error quality shuffle traits"),
            ("traits", "error"),
            ("uniform", "draw error traits"),
            ("weighted", "alias draw error traits"),
            ("window", "error permutation traits"),
        ],
    ),
    (
        "tidegate-plan",
        &[
            ("error", ""),
            ("training", "error"),
        ],
    ),
    (
        "tidegate-sketch",
        &[
            ("codec", "error hash"),
            ("distinct", "error hash"),
            ("drift", "codec error"),
            ("error", ""),
            ("event", "codec error hash"),
            ("frequency", "codec error hash"),
            ("hash", ""),
            ("moments", "codec error"),
            ("neighbour", "codec error hash random"),
            ("online", "codec drift error"),
            ("quantile", "error random"),
            ("random", ""),
            ("reservoir", "codec error random"),
            ("window", "codec error"),
        ],
    ),
    (
        "tidegate-source",
        &[
            ("checkpoints", "error files index traits"),
            ("error", ""),
            ("files", "error left_out"),
            ("formats", "error files index left_out parts traits"),
            ("index", "error files left_out"),
            ("left_out", ""),
            ("lib", "open"),
            ("lists", "error files parts"),
            ("open", "checkpoints error files formats index lists parts traits"),
            ("parts", "error files"),
            ("testing", "files index traits"),
            ("traits", "error files index left_out"),
            ("volume", "error files index traits zarr"),
            ("zarr", "error files"),
        ],
    ),
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
/// All but the old name of a type are the published name of a criterion of `dedup` and of a kind of
/// a profile's value.
pub(crate) const PHRASES_ALLOWED: &[(&str, &str, &str)] = &[
    ("CHANGELOG.md", "pict|ure", "`dedup(by="),
    ("CHANGELOG.md", "len|t", "| Rust, cache |"),
    ("docs/data.md", "pict|ure", "tidegate dedup photos --by"),
    ("docs/data.md", "pict|ure", "| images that look alike"),
    ("tidegate/src/cli/mod.rs", "pict|ure", "tidegate dedup photos --by"),
    ("dedup/signatures.rs", "pict|ure", "#[serde(rename ="),
    ("dedup/signatures.rs", "pict|ure", "#[value(name ="),
    ("dedup/signatures.rs", "pict|ure", "to find similar samples"),
    ("profile/column_note.rs", "pict|ure", "#[serde(rename ="),
    ("profile/column_note.rs", "pict|ure", "Self::Image =>"),
    ("python/src/dedup.rs", "pict|ure", "by must be"),
    ("python/tidegate/duplicates.py", "pict|ure", "by: Literal["),
    ("python/tidegate/duplicates.py", "pict|ure", "is its old name"),
    ("python/tidegate/duplicates.py", "pict|ure", "if by "),
    ("python/tidegate/duplicates.py", "pict|ure", "renamed('dedup(by="),
    ("python/tidegate/profiling.py", "pict|ure", "known[\"sort\"] =="),
    ("python/tests/test_package.py", "pict|ure", "pytest.warns(DeprecationWarning"),
    ("python/tests/test_package.py", "pict|ure", "tg.dedup("),
];

/// Uses of [`PRONOUNS`] that stand: (end of the path, word, part of the line).
pub(crate) const PRONOUNS_ALLOWED: &[(&str, &str, &str)] = &[];

pub(crate) const FILE_LINES: usize = 620;
pub(crate) const FUNCTION_LINES: usize = 80;
pub(crate) const PROSE_COLUMNS: usize = 100;
pub(crate) const MAP_LINES: usize = 420;
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
