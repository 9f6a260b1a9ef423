//! ARCHITECTURE.md against the tree: every module stands in it, what stands in it is there, and
//! its arrows are the table's.
//!
//! A module is named by its path in backticks under the heading of its crate: `memory::ledger`, or
//! several in one as `order::{given, drawn}`, or as files, `src/{array,budget}.rs`. A name in
//! backticks that the tree does not know is stale.

use std::collections::BTreeSet;

use crate::shape::modules;
use crate::text::Source;

/// A code span of the map: the crate whose section it is in, its line, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    section: Option<String>,
    line: usize,
    text: String,
}

const BEGIN: &str = "<!-- arrows:begin -->";
const END: &str = "<!-- arrows:end -->";

/// The text around the printed arrows, and what is between their marks.
fn cut(map: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = map.split_once(BEGIN)?;
    let (between, after) = rest.split_once(END)?;
    Some((before, between, after))
}

fn spans(map: &str) -> Vec<Span> {
    let mut found = Vec::new();
    let (mut section, mut open, mut fence): (Option<String>, Option<Span>, bool) = (None, None, false);
    for (i, line) in map.lines().enumerate() {
        fence ^= line.trim_start().starts_with("```");
        if fence || line.trim_start().starts_with("```") {
            continue;
        }
        if let Some(title) = line.strip_prefix('#') {
            let title =
                title.trim_start_matches('#').trim().trim_matches('`').split([' ', '/']).next().unwrap_or("");
            let named = title == "python" || title == "tidegate" || title.starts_with("tidegate-");
            section = named.then(|| title.to_owned());
        }
        for (part, piece) in line.split('`').enumerate() {
            if part > 0 {
                match open.take() {
                    Some(span) => found.push(span),
                    None => open = Some(Span { section: section.clone(), line: i + 1, text: String::new() }),
                }
            }
            if let Some(span) = &mut open {
                span.text += piece;
            }
        }
        if line.trim().is_empty() {
            // A span ends with its paragraph.
            open = None;
        }
    }
    found
}

/// `a::{b,c::{d,e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expanded(text: &str) -> Vec<String> {
    let Some(open) = text.find('{') else { return vec![text.to_owned()] };
    let close = crate::text::closing(text, open);
    let inside = &text[open + 1..close.saturating_sub(1).max(open + 1)];
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (i, byte) in inside.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&inside[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[from..]);
    let all = parts.iter().map(|part| format!("{}{}{}", &text[..open], part.trim(), &text[close..]));
    all.flat_map(|one| expanded(&one)).collect()
}

/// The names of a path of modules, types and functions; None for other code.
fn path_of(text: &str, crates: &BTreeSet<String>) -> Option<Vec<String>> {
    let file = text.ends_with(".rs");
    let text = text.strip_suffix(".rs").unwrap_or(text).trim_end_matches("()");
    let text = text
        .split_once("src/")
        .filter(|_| file || text.starts_with("src/"))
        .map_or(text, |(_, inside)| inside);
    let text = if file { text.replace('/', "::") } else { text.to_owned() };
    let mut names: Vec<String> = text.split("::").map(str::to_owned).collect();
    let is_name = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !names.iter().all(is_name) {
        return None;
    }
    if names.len() > 1 && (names[0] == "crate" || crates.contains(&crate_name(&names[0]))) {
        names.remove(0);
    }
    Some(names)
}

/// The crate that a path names at its beginning, else the one whose section it is in.
fn crate_of(text: &str, section: Option<&String>, crates: &BTreeSet<String>) -> Option<String> {
    let first = text.split_once("::").map(|(first, _)| crate_name(first));
    first.filter(|name| crates.contains(name)).or_else(|| section.cloned())
}

/// `core` and `tidegate_core` as `tidegate-core`.
fn crate_name(name: &str) -> String {
    if name == "tidegate" || name == "python" || name.starts_with("tidegate_") {
        name.replace('_', "-")
    } else {
        format!("tidegate-{name}")
    }
}

/// Modules that the map does not name under the heading of their crate.
pub(crate) fn unnamed(map: &str, sources: &[Source]) -> Vec<String> {
    let modules = modules(sources);
    let crates: BTreeSet<String> = modules.iter().map(|(name, _)| name.clone()).collect();
    let mut named = BTreeSet::new();
    let map = cut(map).map_or(map.to_owned(), |(before, _, after)| format!("{before}{after}"));
    for span in spans(&map) {
        for one in expanded(&span.text) {
            let (Some(path), Some(of)) =
                (path_of(&one, &crates), crate_of(&one, span.section.as_ref(), &crates))
            else {
                continue;
            };
            for end in 1..=path.len() {
                named.insert((of.clone(), path[..end].to_vec()));
            }
        }
    }
    let missing = modules.difference(&named);
    missing
        .map(|(name, path)| format!("ARCHITECTURE.md does not name `{}` of {name}", path.join("::")))
        .collect()
}

/// Names in backticks that the tree does not know; `known` are words from elsewhere.
pub(crate) fn stale(map: &str, sources: &[Source], known: &[&str]) -> Vec<String> {
    let modules = modules(sources);
    let crates: BTreeSet<String> = modules.iter().map(|(name, _)| name.clone()).collect();
    let mut words: BTreeSet<&str> = known.iter().copied().collect();
    for source in sources.iter().filter(|s| s.is_rust() || !s.path.ends_with(".md")) {
        for text in [&source.code, &source.strings] {
            words.extend(
                text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()),
            );
        }
    }
    let mut breaches = Vec::new();
    for span in spans(map) {
        for one in expanded(&span.text) {
            let Some(path) = path_of(&one, &crates) else { continue };
            if known.contains(&path[0].as_str())
                || (path.len() == 1 && crates.contains(&crate_name(&path[0])))
            {
                continue;
            }
            // The longest part of the path that is a module, of this section's crate if it is in
            // one.
            let of = crate_of(&one, span.section.as_ref(), &crates);
            let here = |end: usize| {
                let found = |(name, module): &(String, Vec<String>)| {
                    of.as_ref().is_none_or(|of| of == name) && *module == path[..end]
                };
                modules.iter().any(found)
            };
            let length = (1..=path.len()).rev().find(|&end| here(end)).unwrap_or(0);
            let room = path.len() > 1 && path[0].starts_with(|c: char| c.is_ascii_lowercase());
            if (room && length == 0) || !path[length..].iter().all(|name| words.contains(name.as_str())) {
                breaches.push(format!("ARCHITECTURE.md:{}: there is no `{one}`", span.line));
            } else if room
                && length < path.len()
                && path[length..].iter().all(|n| n.starts_with(char::is_lowercase))
            {
                // A function of the module, if the module has one of this name.
                let module = path[..length].to_vec();
                let defines = sources.iter().filter(|s| {
                    crate::imports::module_of(&s.path).is_some_and(|(_, of)| of == module)
                        && path[length..].iter().all(|name| s.code.contains(&format!("fn {name}")))
                });
                if defines.count() == 0 {
                    breaches.push(format!("ARCHITECTURE.md:{}: there is no `{one}`", span.line));
                }
            }
        }
    }
    breaches
}

/// What stands between the marks: the tables of crates and of rooms.
pub(crate) fn printed(crates: &[(&str, &str)], rooms: &[(&str, &[(&str, &str)])]) -> String {
    let list = |uses: &str| {
        let uses: Vec<_> = uses.split_whitespace().map(|name| format!("`{name}`")).collect();
        if uses.is_empty() { "–".to_owned() } else { uses.join(", ") }
    };
    let mut text = "\n| crate | may use |\n|-|-|\n".to_owned();
    for (name, uses) in crates {
        text += &format!("| `{name}` | {} |\n", list(uses));
    }
    text += "\n| crate | room | may use |\n|-|-|-|\n";
    for (name, rooms) in rooms {
        // Rooms that use nothing of their crate share a line.
        let alone: Vec<_> = rooms.iter().filter(|(_, uses)| uses.is_empty()).map(|(room, _)| *room).collect();
        if !alone.is_empty() {
            text += &format!("| `{name}` | {} | – |\n", list(&alone.join(" ")));
        }
        for (room, uses) in rooms.iter().filter(|(_, uses)| !uses.is_empty()) {
            text += &format!("| `{name}` | `{room}` | {} |\n", list(uses));
        }
    }
    text
}

/// The map with the arrows of the tables between its marks; None without marks.
pub(crate) fn rewritten(map: &str, printed: &str) -> Option<String> {
    let (before, _, after) = cut(map)?;
    Some(format!("{before}{BEGIN}\n{printed}\n{END}{after}"))
}

/// Whether the map shows other arrows than the tables, and what it should show.
pub(crate) fn arrows_differ(map: &str, printed: &str) -> Vec<String> {
    match rewritten(map, printed) {
        None => {
            vec![format!("ARCHITECTURE.md has no arrows: write {BEGIN} and {END}, and run with TIDY_WRITE=1")]
        }
        Some(right) if right != map => {
            vec![format!("ARCHITECTURE.md shows other arrows; TIDY_WRITE=1 writes these:\n{printed}")]
        }
        Some(_) => Vec::new(),
    }
}

/// Lines of the map without its arrows.
pub(crate) fn length(map: &str) -> usize {
    map.lines().count() - cut(map).map_or(0, |(_, between, _)| between.lines().count() - 1)
}

#[cfg(test)]
fn tree() -> Vec<Source> {
    let paths = [
        "tidegate-x/src/lib.rs",
        "tidegate-x/src/a/mod.rs",
        "tidegate-x/src/a/b.rs",
        "tidegate-x/src/c.rs",
        "tidegate-y/src/c.rs",
    ];
    paths
        .iter()
        .map(|path| Source::new(&format!("crates/{path}"), "pub struct Thing; fn seen() {}"))
        .collect()
}

#[test]
fn a_module_that_the_map_does_not_name_is_found() {
    let good = "### tidegate-x\n`a::{b}`, and `c`\n### `tidegate-y`\n`src/{c}.rs`\n";
    assert_eq!(unnamed(good, &tree()), Vec::<String>::new());
    for (from, to, missing) in [
        ("`a::{b}`", "a::b", 2),
        ("`a::{b}`", "`a` and `b`", 1),
        ("`a::{b}`", "`a::seen`", 1),
        ("`c`", "c", 1),
        ("### `tidegate-y`", "", 1),
    ] {
        let found = unnamed(&good.replace(from, to), &tree());
        assert_eq!(found.len(), missing, "{to}: {found:?}");
    }
    assert_eq!(expanded("a::{b,c::{d, e}}::f"), ["a::b::f", "a::c::d::f", "a::c::e::f"]);
}

#[test]
fn a_name_that_is_gone_is_found() {
    for (text, found) in [
        ("`a::b`, `a::b::seen`, `a::b::Thing`, `Thing`, `seen()`, `x::a::b`, `std::fs`", 0),
        ("`make test`, `--flag`, `docs/a.md`, `1 + 2`, `*.py`", 0),
        ("`a::d`", 1),
        ("`gone::b`", 1),
        ("`Gone`", 1),
        ("`gone`", 1),
        ("`Thing::gone`", 1),
        ("`a::{b,gone}`", 1),
        ("### tidegate-y\n`a::b`", 1),
        ("### tidegate-y\n`x::a::b`", 0),
    ] {
        let breaches = stale(text, &tree(), &["std"]);
        assert_eq!(breaches.len(), found, "{text}: {breaches:?}");
    }
}

#[test]
fn arrows_that_the_map_does_not_show_are_found() {
    let rooms: &[(&str, &str)] = &[("a", "b c"), ("b", ""), ("c", "")];
    let printed = printed(&[("x", "y")], &[("x", rooms)]);
    assert!(printed.contains("| `x` | `y` |\n"), "{printed}");
    assert!(printed.contains("| `x` | `b`, `c` | – |\n| `x` | `a` | `b`, `c` |\n"), "{printed}");
    let map = format!("# Map\n{BEGIN}\nold\n{END}\nend\n");
    assert_eq!(arrows_differ(&map, &printed).len(), 1);
    let right = rewritten(&map, &printed).unwrap();
    assert_eq!(arrows_differ(&right, &printed), Vec::<String>::new());
    assert!(right.starts_with("# Map\n") && right.ends_with("\nend\n"));
    assert_eq!(length(&right), 4);
    assert_eq!(arrows_differ("# Map\n", &printed).len(), 1, "a map without marks shows nothing");
}
