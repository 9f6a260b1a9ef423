//! The shape of files: how they open, how long they and their functions are, how wide prose runs,
//! where unsafe code is, how large crates are, and what manifests depend on.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::module_of;
use crate::text::{Language, Source, is_test};

/// Files without an opening line, and modules that do not say their flow and their memory.
pub(crate) fn openings(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        if !source.text.starts_with("//! ") {
            breaches.push(format!("{} opens with no `//! ` line", source.path));
        }
        if source.path.contains("/src/")
            && !source.path.ends_with("main.rs")
            && !source.path.starts_with("bench/")
        {
            let opening: Vec<_> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
            for word in ["//! Flow: ", "//! Memory: "] {
                if !opening.iter().any(|line| line.starts_with(word)) {
                    breaches.push(format!("{} opens with no `{word}` line", source.path));
                }
            }
        }
    }
    breaches
}

/// Python modules of the package without a docstring at their beginning.
pub(crate) fn docstrings(sources: &[Source]) -> Vec<String> {
    let package =
        sources.iter().filter(|s| s.path.starts_with("python/tidegate/") && s.path.ends_with(".py"));
    let bare = package.filter(|s| !s.text.starts_with("\"\"\"") || s.text[3..].starts_with("\"\"\""));
    bare.map(|s| format!("{} opens with no docstring", s.path)).collect()
}

/// Whether code holds a block, function, implementation or trait that is unsafe.
fn is_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let alone = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let next = code[at + word.len()..].trim_start();
        alone && ["{", "fn ", "impl", "trait ", "extern "].iter().any(|start| next.starts_with(start))
    })
}

/// Files with unsafe code that the list does not name, and names on it that have none.
pub(crate) fn unsafe_outside(sources: &[Source], listed: &[&str]) -> Vec<String> {
    // What is measured for comparison, in `bench/`, calls C.
    let house = sources.iter().filter(|s| !s.path.starts_with("bench/"));
    let found: BTreeSet<&str> =
        house.filter(|s| s.is_rust() && is_unsafe(&s.code)).map(|s| s.path.as_str()).collect();
    let listed: BTreeSet<&str> = listed.iter().copied().collect();
    let more =
        found.difference(&listed).map(|path| format!("{path} holds unsafe code and is not on the list"));
    let gone = listed.difference(&found).map(|path| format!("{path} is listed and holds no unsafe code"));
    more.chain(gone).collect()
}

/// Manifests that depend on crates of ours which the table does not allow, and crates that the
/// table does not name.
pub(crate) fn crate_arrows(sources: &[Source], table: &[(&str, &str)]) -> Vec<String> {
    let allowed: BTreeMap<&str, &str> = table.iter().copied().collect();
    let mut breaches = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources {
        let Some(folder) = source.path.strip_suffix("/Cargo.toml") else { continue };
        let name = folder.strip_prefix("crates/").unwrap_or(folder);
        if name.contains('/') {
            continue;
        }
        seen.insert(name);
        let Some(uses) = allowed.get(name) else {
            breaches.push(format!("{}: the table does not name this crate", source.path));
            continue;
        };
        let mut section = "";
        for line in source.text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            }
            let word = |line: &str| line.split(['.', ' ', '=', ']']).next().unwrap_or("").to_owned();
            let on = match section.split_once("dependencies.") {
                Some((_, name)) if line == section => word(name),
                _ if section.ends_with("dependencies]") => word(line),
                _ => continue,
            };
            if on.starts_with("tidegate") && !uses.split_whitespace().any(|used| used == on) {
                breaches.push(format!("{} may not depend on {on}", source.path));
            }
        }
    }
    breaches.extend(
        allowed.keys().filter(|name| !seen.contains(*name)).map(|name| format!("there is no crate {name}")),
    );
    breaches
}

/// Files with more lines than `most` outside their tests.
pub(crate) fn long_files(sources: &[Source], most: usize) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let tested = if is_test(&source.path) { &source.code } else { &source.production };
        let code = source.code.lines().zip(tested.lines()).zip(source.text.lines());
        // A line counts if it is blank, or a comment, or code that is no test's.
        let lines = code.filter(|((all, kept), _)| all.trim().is_empty() || !kept.trim().is_empty()).count();
        // Comments within tests are part of them.
        let inside = comments_within_tests(source);
        if lines.saturating_sub(inside) > most {
            breaches.push(format!(
                "{} has {} lines before its tests, of {most} at most",
                source.path,
                lines - inside
            ));
        }
    }
    breaches
}

/// Lines without code that are in test items.
fn comments_within_tests(source: &Source) -> usize {
    if is_test(&source.path) {
        return 0;
    }
    let (mut count, mut pending, mut within) = (0, 0, false);
    for (all, kept) in source.code.lines().zip(source.production.lines()) {
        if all.trim().is_empty() {
            pending += 1;
        } else {
            let test = kept.trim().is_empty();
            count += if within && test { pending } else { 0 };
            (pending, within) = (0, test);
        }
    }
    count
}

/// Functions with more lines than `most`, from `fn` to the closing brace.
pub(crate) fn long_functions(sources: &[Source], most: usize) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let code = &source.production;
        for (at, _) in code.match_indices("fn ") {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let end = crate::text::item_end(code, at);
            let lines = source.line(end - 1) + 1 - source.line(at);
            if lines > most {
                let name =
                    code[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
                breaches.push(format!("{}: `{name}` has {lines} lines, of {most} at most", source.place(at)));
            }
        }
    }
    breaches
}

/// Paths with a part that begins like a drawer, in Rust and Python.
pub(crate) fn drawers(sources: &[Source]) -> Vec<String> {
    let drawer =
        |part: &str| ["util", "common", "helper", "manager", "misc"].iter().any(|d| part.starts_with(d));
    let code = sources.iter().filter(|s| s.language != Language::Markdown);
    code.filter(|s| s.path.split('/').any(drawer)).map(|s| format!("{} is a drawer", s.path)).collect()
}

/// Files more than two folders below `src`.
pub(crate) fn deep_files(sources: &[Source]) -> Vec<String> {
    let deep =
        |s: &&Source| s.path.split_once("/src/").is_some_and(|(_, inside)| inside.matches('/').count() > 2);
    let rust = sources.iter().filter(|s| s.is_rust());
    rust.filter(deep).map(|s| format!("{} is more than two folders below src", s.path)).collect()
}

/// Lines of Rust by crate, the largest first; of `crates/` and `python/src`.
pub(crate) fn crate_lines(sources: &[Source]) -> Vec<(String, usize)> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let mut parts = source.path.split('/');
        let name = match (parts.next(), parts.next()) {
            (Some("crates"), Some(name)) => name,
            (Some("python"), Some("src")) => "python",
            _ => continue,
        };
        *lines.entry(name).or_default() += source.text.lines().count();
    }
    let mut lines: Vec<_> = lines.into_iter().map(|(name, lines)| (name.to_owned(), lines)).collect();
    lines.sort_by_key(|(_, lines)| std::cmp::Reverse(*lines));
    lines
}

/// Crates with more than this part of all Rust lines.
pub(crate) fn large_crates(sources: &[Source], most_percent: f64) -> Vec<String> {
    let lines = crate_lines(sources);
    let all: usize = lines.iter().map(|(_, lines)| lines).sum();
    let percent = |lines: usize| 100.0 * lines as f64 / all as f64;
    let large = lines.iter().filter(|(_, lines)| percent(*lines) > most_percent);
    large
        .map(|(name, lines)| format!("{name} has {lines} of {all} lines, {:.1} %", percent(*lines)))
        .collect()
}

/// A line that is one link: nothing to break.
fn is_link(line: &str) -> bool {
    let words = line.trim_start_matches(['/', '!', '#', ' ', '-', '*', '>', '<']).split_whitespace();
    let words: Vec<_> = words.collect();
    match words.as_slice() {
        [one] => one.contains("://") || one.starts_with('['),
        // `[label]: url`, or a link whose words hold blanks.
        [first, .., last] => {
            (first.starts_with('[') && first.ends_with("]:"))
                || (line.trim().starts_with('[') && last.ends_with(')'))
        }
        [] => true,
    }
}

/// Lines of comments, docs and Markdown that run beyond this column.
pub(crate) fn wide_prose(sources: &[Source], columns: usize) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources {
        let prose = match source.language {
            Language::Markdown => markdown_prose(&source.text),
            Language::Other => continue,
            _ => source.comments.lines().map(|line| !line.trim().is_empty()).collect(),
        };
        for (i, (line, prose)) in source.text.lines().zip(prose).enumerate() {
            let width = line.chars().count();
            if prose && width > columns && !is_link(line) {
                breaches.push(format!("{}:{}: prose up to column {width}", source.path, i + 1));
            }
        }
    }
    breaches
}

/// Which lines of a Markdown text are prose: not of a table, nor of code.
fn markdown_prose(text: &str) -> Vec<bool> {
    let (mut fence, mut blank, mut indented, mut list) = (false, true, false, false);
    text.lines()
        .map(|line| {
            let trimmed = line.trim_start();
            let fences = trimmed.starts_with("```") || trimmed.starts_with("~~~");
            let was = fence;
            fence ^= fences;
            if trimmed.is_empty() {
                blank = true;
                return false;
            }
            let deep = line.starts_with("    ");
            indented = deep && (indented || (blank && !list));
            let item = trimmed.starts_with("- ") || trimmed.starts_with("* ");
            let numbered =
                trimmed.split_once(". ").is_some_and(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()));
            list = item || numbered || (list && (line.starts_with(' ') || !blank));
            blank = false;
            !(was || fences || indented || trimmed.starts_with('|'))
        })
        .collect()
}

/// FNV-1a over bytes, from where an earlier call stopped.
pub(crate) fn fnv(from: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(from, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The hash of golden files by the first part of their paths below the golden folder; files of
/// Python are no data.
pub(crate) fn golden_hashes(files: &[(String, Vec<u8>)]) -> BTreeMap<String, u64> {
    let mut hashes = BTreeMap::new();
    for (path, bytes) in files.iter().filter(|(path, _)| !path.ends_with(".py")) {
        let first = path.split('/').next().unwrap_or(path).to_owned();
        let hash = hashes.entry(first).or_insert(0xcbf2_9ce4_8422_2325);
        *hash = fnv(fnv(*hash, path.as_bytes()), bytes);
    }
    hashes
}

/// Golden files that are missing or not those that were recorded, and golden files that were not
/// recorded.
pub(crate) fn golden_changes(files: &[(String, Vec<u8>)], recorded: &[(&str, u64)]) -> Vec<String> {
    let found = golden_hashes(files);
    let mut breaches = Vec::new();
    for (path, hash) in recorded {
        match found.get(*path) {
            None => breaches.push(format!("golden {path} is missing")),
            Some(now) if now != hash => {
                breaches.push(format!("golden {path} is not what was recorded: {now:#018x}"))
            }
            Some(_) => {}
        }
    }
    let new = found.iter().filter(|(path, _)| !recorded.iter().any(|(known, _)| known == path));
    breaches
        .extend(new.map(|(path, hash)| format!("golden files not recorded: (\"{path}\", {hash:#018x}),")));
    breaches
}

/// Paths of Rust modules of the house, for other checks: (crate, module path).
pub(crate) fn modules(sources: &[Source]) -> BTreeSet<(String, Vec<String>)> {
    let all = sources.iter().filter_map(|s| module_of(&s.path));
    all.filter(|(name, path)| !path.is_empty() && !name.contains('/')).collect()
}

#[cfg(test)]
fn rust(text: &str) -> [Source; 1] {
    [Source::new("crates/x/src/a.rs", text)]
}

#[test]
fn a_file_that_does_not_say_what_it_is_is_found() {
    let good = "//! What.\n//!\n//! Flow: a -> b.\n//! Memory: holds none.\n";
    assert_eq!(openings(&rust(good)), Vec::<String>::new());
    assert_eq!(openings(&rust("fn f() {}\n")).len(), 3);
    assert_eq!(openings(&rust(&good.replace("//! Flow", "//! Way"))).len(), 1);
    assert_eq!(openings(&rust(&good.replace("//! Memory", "// Memory"))).len(), 1);
    assert_eq!(openings(&[Source::new("crates/x/tests/a.rs", "//! Tests.\n")]), Vec::<String>::new());
    let python = |text| docstrings(&[Source::new("python/tidegate/a.py", text)]).len();
    assert_eq!((python("\"\"\"What.\"\"\"\n"), python("import os\n"), python("\"\"\"\"\"\"\n")), (0, 1, 1));
}

#[test]
fn unsafe_code_outside_its_files_is_found() {
    for text in
        ["fn f() { unsafe { g() } }", "unsafe fn f() {}", "unsafe impl Send for X {}", "unsafe\n{ g() }"]
    {
        assert_eq!(unsafe_outside(&rust(text), &[]).len(), 1, "{text}");
        assert_eq!(unsafe_outside(&rust(text), &["crates/x/src/a.rs"]), Vec::<String>::new());
    }
    let none = "// unsafe { }\nconst A: &str = \"unsafe fn\";\n#![forbid(unsafe_code)]\n";
    assert_eq!(unsafe_outside(&rust(none), &[]), Vec::<String>::new());
    assert_eq!(unsafe_outside(&rust(none), &["crates/x/src/a.rs"]).len(), 1, "listed for nothing");
}

#[test]
fn a_crate_that_depends_on_what_it_may_not_is_found() {
    let manifest = |text: &str| [Source::new("crates/tidegate-x/Cargo.toml", text)];
    let table: &[(&str, &str)] = &[("tidegate-x", "tidegate-core")];
    let good =
        "[package]\nname = \"tidegate-x\"\n[dependencies]\ntidegate-core.workspace = true\nserde = \"1\"\n";
    assert_eq!(crate_arrows(&manifest(good), table), Vec::<String>::new());
    for more in [
        "tidegate-data.workspace = true\n",
        "tidegate-data = { path = \"../data\" }\n",
        "[dev-dependencies]\ntidegate-data.workspace = true\n",
        "[target.'cfg(unix)'.dependencies]\ntidegate-data = \"1\"\n",
        "[dependencies.tidegate-data]\npath = \"../data\"\n",
    ] {
        assert_eq!(crate_arrows(&manifest(&format!("{good}{more}")), table).len(), 1, "{more}");
    }
    assert_eq!(crate_arrows(&manifest(good), &[]).len(), 1, "no crate without a line");
    assert_eq!(crate_arrows(&[], table).len(), 1, "no line without a crate");
}

#[test]
fn long_files_and_functions_are_found() {
    let tests = "#[cfg(test)]\nmod tests {\n    // Here.\n\n    fn t() {\n\n    }\n}\n";
    let text = |lines: usize| format!("{}fn f() {{}}\n{tests}", "// Note.\n".repeat(lines - 1));
    assert_eq!(long_files(&rust(&text(10)), 10), Vec::<String>::new());
    assert_eq!(
        long_files(&rust(&text(11)), 10),
        ["crates/x/src/a.rs has 11 lines before its tests, of 10 at most"]
    );
    let function =
        |lines: usize| format!("fn g();\nfn f(a: [u8; 4]) {{\n{}}}\n", "    // \"}\n".repeat(lines - 2));
    assert_eq!(long_functions(&rust(&function(80)), 80), Vec::<String>::new());
    let found = long_functions(&rust(&function(81)), 80);
    assert_eq!(found, ["crates/x/src/a.rs:2: `f` has 81 lines, of 80 at most"]);
    let tested = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(200));
    assert_eq!(long_functions(&rust(&tested), 80), Vec::<String>::new());
}

#[test]
fn drawers_depth_and_large_crates_are_found() {
    let of = |path: &str, lines: usize| Source::new(path, &"x\n".repeat(lines));
    for path in ["crates/x/src/utils.rs", "crates/common/src/lib.rs", "python/tidegate/helpers.py"] {
        assert_eq!(drawers(&[of(path, 1)]).len(), 1, "{path}");
    }
    assert_eq!(drawers(&[of("crates/x/src/cache/mod.rs", 1)]), Vec::<String>::new());
    assert_eq!(deep_files(&[of("crates/x/src/a/b/c.rs", 1)]), Vec::<String>::new());
    assert_eq!(deep_files(&[of("crates/x/src/a/b/c/d.rs", 1)]).len(), 1);
    let crates =
        [of("crates/a/src/lib.rs", 22), of("crates/b/src/lib.rs", 21), of("crates/c/tests/t.rs", 57)];
    assert_eq!(large_crates(&crates, 57.0), Vec::<String>::new());
    assert_eq!(large_crates(&crates, 22.0), ["c has 57 of 100 lines, 57.0 %"]);
}

#[test]
fn wide_prose_is_found() {
    let long = "word ".repeat(20) + "x";
    let count = |path: &str, text: &str| wide_prose(&[Source::new(path, text)], 100).len();
    assert_eq!(count("crates/x/src/a.rs", &format!("// {}\n", &long[..97])), 0);
    for text in [format!("// {long}\n"), format!("let x = 1; // {long}\n"), format!("/* a\n{long}\n*/\n")] {
        assert_eq!(count("crates/x/src/a.rs", &text), 1, "{text}");
    }
    assert_eq!(
        count("crates/x/src/a.rs", &format!("let x = \"{long}\";\n")),
        0,
        "code is as wide as rustfmt has it"
    );
    assert_eq!(count("crates/x/src/a.rs", &format!("// https://{}\n", "x".repeat(100))), 0);
    assert_eq!(
        count("python/tidegate/a.py", &format!("def f():\n    \"\"\"What.\n\n    {long}\n    \"\"\"\n")),
        1
    );
    assert_eq!(count("python/tidegate/a.pyi", &format!("x = 1  # {long}\n")), 1);
    for (text, found) in [
        (format!("{long}\n"), 1),
        (format!("- {long}\n\n    {long}\n"), 2),
        (format!("| {long} |\n"), 0),
        (format!("```\n{long}\n```\n{long}\n"), 1),
        (format!("a\n\n    {long}\n\n{long}\n"), 1),
        (format!("[a]: https://{}\n", "x".repeat(100)), 0),
    ] {
        assert_eq!(count("docs/a.md", &text), found, "{text}");
    }
}

#[test]
fn a_changed_golden_file_is_found() {
    let file = |path: &str, bytes: &[u8]| (path.to_owned(), bytes.to_vec());
    let files = [file("a/1", b"x"), file("a/2", b"y"), file("b", b"z"), file("make.py", b"")];
    let hashes = golden_hashes(&files);
    let recorded: Vec<_> = hashes.iter().map(|(path, hash)| (path.as_str(), *hash)).collect();
    assert_eq!(recorded.len(), 2);
    assert_eq!(golden_changes(&files, &recorded), Vec::<String>::new());
    assert_eq!(golden_changes(&files[1..], &recorded).len(), 1, "a file of a folder is gone");
    assert_eq!(golden_changes(&files[..2], &recorded), ["golden b is missing"]);
    let mut changed = files.clone();
    changed[2].1 = b"!".to_vec();
    assert_eq!(golden_changes(&changed, &recorded).len(), 1);
    assert_eq!(golden_changes(&files, &recorded[..1]).len(), 1, "new ones are recorded");
}
