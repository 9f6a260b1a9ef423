//! The words that DESIGN.md forbids, in comments, docs, Markdown and strings; and prose within
//! identifiers.

use crate::text::{Language, Source};

/// A list of phrases that must not be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phrases<'a> {
    /// Words and phrases, with a `|` somewhere within them, so that a list does not hold what it
    /// forbids.
    pub(crate) phrases: &'a [&'a str],
    /// Whether strings are searched as well, not only comments, docs and Markdown.
    pub(crate) in_strings: bool,
    /// What may stand all the same: (end of the path, phrase, part of the line).
    pub(crate) allowed: &'a [(&'a str, &'a str, &'a str)],
}

/// A word of prose, in lower case, where it begins, and whether it goes on from the word before.
struct Word {
    at: usize,
    text: String,
    joined: bool,
}

fn words(prose: &str) -> Vec<Word> {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '\'' | '’');
    let mut found: Vec<Word> = Vec::new();
    let mut end = 0;
    let mut rest = prose;
    while let Some(skip) = rest.find(is_word) {
        let at = prose.len() - rest.len() + skip;
        let length = rest[skip..].find(|c| !is_word(c)).unwrap_or(rest.len() - skip);
        let text = prose[at..at + length].to_lowercase();
        let text =
            text.trim_matches(['-', '\'', '’']).trim_end_matches("'s").trim_end_matches("’s").to_owned();
        // Between the words of a phrase are blanks, line ends and the marks of comments.
        let joined = prose[end..at].chars().all(|c| c.is_whitespace() || matches!(c, '/' | '!' | '#' | '>'));
        found.push(Word { at, text, joined });
        end = at + length;
        rest = &prose[end..];
    }
    found
}

/// Where prose uses a phrase of the list.
pub(crate) fn forbidden(sources: &[Source], list: Phrases<'_>) -> Vec<String> {
    let phrases: Vec<Vec<String>> = list
        .phrases
        .iter()
        .map(|phrase| phrase.replace('|', "").split_whitespace().map(str::to_owned).collect())
        .collect();
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.language != Language::Other) {
        let texts = [(&source.comments, true), (&source.strings, list.in_strings)];
        for prose in texts.into_iter().filter(|(_, searched)| *searched).map(|(prose, _)| prose) {
            let words = words(prose);
            for i in 0..words.len() {
                for phrase in &phrases {
                    let here = words.get(i..i + phrase.len()).is_some_and(|found| {
                        found.iter().zip(phrase).all(|(word, wanted)| word.text == *wanted)
                            && found[1..].iter().all(|word| word.joined)
                    });
                    // The element of HTML.
                    let before = prose[..words[i].at].trim_end_matches('/');
                    let element = phrase.len() == 1 && phrase[0].starts_with("pict") && before.ends_with('<');
                    if here && !element {
                        let line = source.line(words[i].at);
                        let text = source.line_text(line);
                        let allowed = |(path, word, part): &(&str, &str, &str)| {
                            source.path.ends_with(path)
                                && word.replace('|', "") == phrase.join(" ")
                                && text.contains(part)
                        };
                        if !list.allowed.iter().any(allowed) {
                            breaches.push(format!("{}:{line}: “{}”", source.path, phrase.join(" ")));
                        }
                    }
                }
            }
        }
    }
    breaches
}

/// Bindings that are sentences: `let _it_may_be_full = …` outside tests.
pub(crate) fn prose_identifiers(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        for (at, start) in source.production.match_indices("let _") {
            let rest = &source.production[at + start.len()..];
            let length = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
            let name = &rest[..length];
            if name.trim_matches('_').contains('_') && rest[length..].trim_start().starts_with(['=', ':']) {
                breaches.push(format!("{}: the name `_{name}` is a sentence", source.place(at)));
            }
        }
    }
    breaches
}

#[cfg(test)]
fn found(path: &str, text: &str, in_strings: bool, allowed: &[(&str, &str, &str)]) -> Vec<String> {
    let phrases: &[&str] = &["foo|ness", "but |bar", "pict|ure"];
    forbidden(&[Source::new(path, text)], Phrases { phrases, in_strings, allowed })
}

#[test]
fn forbidden_words_are_found() {
    let element = concat!("pict", "ure");
    for (path, text, count) in [
        ("crates/x/src/a.rs", "//! A Fooness, foonesses and foo_ness.\n".to_owned(), 1),
        ("crates/x/src/a.rs", "let fooness = f(); // but\n    // bar\n".to_owned(), 1),
        ("crates/x/src/a.rs", "// But, bar\nlet a = 'b'; // bar\n".to_owned(), 0),
        ("crates/x/src/a.rs", "let a = \"no \\nfooness but bar\";\n".to_owned(), 2),
        ("crates/x/src/a.rs", "#[cfg(test)]\nmod tests { // fooness's end\n}\n".to_owned(), 1),
        ("crates/x/src/a.rs", format!("/// `<{element}>` and a {element}\n"), 1),
        (
            "python/tidegate/a.py",
            "\"\"\"Fooness.\"\"\"\nx = 'but bar'  # fooness\nfooness = 1\n".to_owned(),
            3,
        ),
        ("python/tidegate/a.pyi", "x: int  # fooness\n".to_owned(), 1),
        ("docs/a.md", "# Fooness\n\n> but\n> bar\n".to_owned(), 2),
        ("Cargo.toml", "# fooness\n".to_owned(), 0),
    ] {
        assert_eq!(found(path, &text, true, &[]).len(), count, "{text}");
    }
    assert_eq!(found("crates/x/src/a.rs", "let a = \"fooness\"; // fooness\n", false, &[]).len(), 1);
    let allowed = [("src/a.rs", "foo|ness", "let b")];
    let text = "let a = \"fooness\";\nlet b = \"fooness\";\n";
    assert_eq!(found("crates/x/src/a.rs", text, true, &allowed), ["crates/x/src/a.rs:1: “fooness”"]);
}

#[test]
fn prose_within_identifiers_is_found() {
    let of = |text: &str| prose_identifiers(&[Source::new("crates/x/src/a.rs", text)]).len();
    assert_eq!(of("fn f() { let _it_may_be_full = g(); }"), 1);
    assert_eq!(of("fn f() { let _guard = g(); let _ = g(); let _held: u8 = 1; let it_is = 1; }"), 0);
    assert_eq!(of("#[cfg(test)]\nmod tests { fn f() { let _it_may_be = g(); } }"), 0);
}
