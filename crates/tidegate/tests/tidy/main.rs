//! Holds the house. Each test runs one check over the tree; next to each check, tests plant
//! breaches in memory and see that it finds them.
//!
//! - [`shape`]: opening comments, lengths, width of prose, unsafe code, arrows between crates,
//!   their sizes, golden files.
//! - [`imports`], [`circles`]: arrows between files and rooms, and circles. [`map`]:
//!   ARCHITECTURE.md against the tree.
//! - [`words`]: forbidden words. [`errors`]: code that looks at the text of an error.
//! - [`rules`]: the tables. [`text`]: files taken apart into code, comments and strings. [`tree`]:
//!   the files.
//!
//! `TIDY_WRITE=1` writes the arrows of [`rules`] into ARCHITECTURE.md.

#![expect(clippy::unwrap_used, reason = "a test")]

mod circles;
mod errors;
mod imports;
mod map;
mod rules;
mod shape;
mod text;
mod tree;
mod words;

use std::fs;

use rules::*;
use tree::{all, below, root};
use words::Phrases;

/// Fails with all breaches of a check.
fn none(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    none(shape::openings(all()));
}

#[test]
fn every_python_module_says_what_it_is() {
    none(shape::docstrings(all()));
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    none(shape::unsafe_outside(all(), UNSAFE));
}

#[test]
fn crates_point_one_way() {
    none(shape::crate_arrows(all(), CRATES));
}

#[test]
fn rooms_use_what_they_may() {
    let breaches = circles::rooms_outside(all(), ROOMS);
    assert!(
        breaches.is_empty(),
        "{} breaches:\n{}\nThe arrows that there are:\n{}",
        breaches.len(),
        breaches.join("\n"),
        circles::as_table(all())
    );
}

#[test]
fn rooms_use_each_other_in_no_circle() {
    none(circles::room_circles(all()));
}

#[test]
fn files_import_each_other_in_no_large_circle() {
    let all = imports::arrows(all());
    none(all.values().flat_map(|arrows| circles::file_circles(arrows, CIRCLE_FILES)).collect());
}

#[test]
fn python_modules_import_each_other_in_no_large_circle() {
    none(circles::file_circles(&imports::python_arrows(all()), CIRCLE_FILES));
}

fn map_text() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap()
}

#[test]
fn the_map_names_every_module() {
    none(map::unnamed(&map_text(), all()));
}

#[test]
fn the_map_names_nothing_that_is_gone() {
    none(map::stale(&map_text(), all(), KNOWN_NAMES));
}

#[test]
fn the_map_shows_the_arrows() {
    let printed = map::printed(CRATES, ROOMS);
    if std::env::var_os("TIDY_WRITE").is_some_and(|value| value == "1") {
        let text = map::rewritten(&map_text(), &printed).unwrap();
        fs::write(root().join("ARCHITECTURE.md"), text).unwrap();
    }
    none(map::arrows_differ(&map_text(), &printed));
}

#[test]
fn the_map_is_short() {
    let lines = map::length(&map_text());
    assert!(
        lines <= MAP_LINES,
        "ARCHITECTURE.md has {lines} lines without its arrows, of {MAP_LINES} at most"
    );
}

#[test]
fn files_are_short() {
    none(shape::long_files(all(), FILE_LINES));
}

#[test]
fn functions_are_short() {
    none(shape::long_functions(all(), FUNCTION_LINES));
}

#[test]
fn rooms_have_names() {
    none(shape::drawers(all()));
}

#[test]
fn folders_are_two_deep_at_most() {
    none(shape::deep_files(all()));
}

#[test]
fn no_crate_is_large() {
    none(shape::large_crates(all(), CRATE_PERCENT));
}

#[test]
fn prose_ends_before_the_edge() {
    none(shape::wide_prose(all(), PROSE_COLUMNS));
}

#[test]
fn words_are_plain() {
    none(words::forbidden(all(), Phrases { phrases: PHRASES, in_strings: true, allowed: PHRASES_ALLOWED }));
}

#[test]
fn threads_and_caches_are_it() {
    none(words::forbidden(
        all(),
        Phrases { phrases: PRONOUNS, in_strings: false, allowed: PRONOUNS_ALLOWED },
    ));
}

#[test]
fn names_are_no_sentences() {
    none(words::prose_identifiers(all()));
}

#[test]
fn nothing_looks_at_the_text_of_an_error() {
    none(errors::text_tests(all()));
}

#[test]
fn golden_files_are_what_they_were() {
    let folder = root().join(GOLDEN_FOLDER);
    let paths = below(&folder, "", &["__pycache__"]);
    let files: Vec<_> = paths.into_iter().map(|p| (p.clone(), fs::read(folder.join(p)).unwrap())).collect();
    none(shape::golden_changes(&files, GOLDEN));
}
