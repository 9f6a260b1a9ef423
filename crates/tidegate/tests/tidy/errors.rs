//! Code that looks at the text of an error to know what happened: it breaks when the message is
//! reworded.
//!
//! What is found: in Rust, `contains`, `starts_with`, `ends_with`, `find`, `==` or `!=` with a
//! string on `….to_string()`, on a binding with the name of an error, on one that a pattern takes
//! out of an `Error::…`, and on one that was made of an error's `to_string()` or `format!`; in
//! Python, the same on `str(error)` and on what was made of it.

use std::collections::BTreeSet;

use crate::text::{Language, Source};

/// Names that bindings of errors and of their texts have.
const NAMES: [&str; 16] = [
    "err",
    "error",
    "errors",
    "e",
    "exc",
    "exception",
    "raised",
    "what",
    "why",
    "reason",
    "message",
    "msg",
    "cause",
    "failure",
    "told",
    "answer",
];

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The name that ends a piece of code, and the code before it.
fn last_name(code: &str) -> (&str, &str) {
    let start =
        code.rfind(|c| !is_word(c)).map_or(0, |at| at + code[at..].chars().next().map_or(1, char::len_utf8));
    (&code[start..], &code[..start])
}

/// The name on which a chain of conversions ends: `what` of `what.as_str().trim()`; and whether it
/// made a string.
fn receiver(code: &str) -> (&str, bool) {
    let mut code = code.trim_end();
    let mut made = false;
    while let Some(rest) = code.strip_suffix("()") {
        let (method, before) = last_name(rest);
        if !matches!(
            method,
            "as_str" | "to_string" | "to_lowercase" | "trim" | "as_ref" | "to_owned" | "clone" | "deref"
        ) {
            return ("", made);
        }
        made |= method == "to_string";
        let Some(before) = before.trim_end().strip_suffix('.') else { return ("", made) };
        code = before.trim_end();
    }
    (last_name(code).0, made)
}

/// Bindings of a Rust file that hold errors or their texts, besides those whose names say so.
fn rust_bindings(code: &str) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    for (at, _) in code.match_indices("Error::") {
        let rest = code[at + 7..].trim_start_matches(is_word);
        if let Some(inside) = rest.strip_prefix('(').and_then(|rest| rest.split(')').next()) {
            // A pattern, not a value that is made: names alone.
            let bound = inside.split(',').map(|part| part.trim().trim_start_matches("ref ").trim());
            let pattern = rest[inside.len() + 2..].trim_start_matches([')', ' ', '\n']);
            if pattern.starts_with("=>") || pattern.starts_with("if ") || pattern.starts_with("= ") {
                names.extend(bound.filter(|b| !b.is_empty() && b.chars().all(is_word)).map(str::to_owned));
            }
        }
    }
    for (at, _) in code.match_indices("let ") {
        let rest = &code[at + 4..];
        let Some((name, value)) = rest.split_once(';').and_then(|(s, _)| s.split_once('=')) else { continue };
        let name = name.trim().trim_start_matches("mut ").split(':').next().unwrap_or("").trim();
        if let Some(value) = value.trim().strip_suffix(".to_string()") {
            let from = last_name(value).0;
            if names.contains(from) && !name.is_empty() && name.chars().all(is_word) {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

const METHODS: [&str; 7] =
    ["contains", "starts_with", "ends_with", "find", "matches", "strip_prefix", "strip_suffix"];

fn rust_tests(source: &Source) -> Vec<usize> {
    let code = &source.production;
    let names = rust_bindings(code);
    let mut found = Vec::new();
    let suspect = |before: &str, alone: bool| {
        let (name, made) = receiver(before);
        // An `e` that equals a string is seldom an error: an extension, an encoding.
        let counts = names.contains(name) && (made || alone || name != "e");
        counts || (made && name.is_empty())
    };
    for method in METHODS {
        let call = format!(".{method}(");
        for (at, _) in code.match_indices(&call) {
            let (argument, before) = (code[at + call.len()..].trim_start(), &code[..at]);
            if (argument.starts_with('"') || argument.starts_with("&format!") || receiver(before).1)
                && suspect(before, true)
            {
                found.push(at);
            }
        }
    }
    for sign in ["== ", "!= "] {
        for (at, _) in code.match_indices(sign) {
            let (after, before) = (code[at + sign.len()..].trim_start(), &code[..at]);
            let text = after.starts_with('"') || after.starts_with("format!") || receiver(before).1;
            if text && suspect(before, false) {
                found.push(at);
            }
        }
    }
    found
}

/// Bindings of a Python file that hold errors, and those that hold their texts.
fn python_bindings(code: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let names = ["err", "error", "e", "exc", "exception", "raised"];
    let mut errors: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    for line in code.lines().map(str::trim).filter(|line| line.starts_with("except")) {
        if let Some((_, name)) = line.split_once(" as ") {
            errors.insert(name.trim_end_matches(':').trim().to_owned());
        }
    }
    let mut texts = BTreeSet::new();
    for line in code.lines() {
        if let Some((name, value)) = line.split_once(" = ") {
            let (name, value) = (name.trim(), value.trim());
            if errors.iter().any(|e| text_of(value, e)) && name.chars().all(is_word) {
                texts.insert(name.to_owned());
            }
        }
    }
    (errors, texts)
}

/// Whether an expression begins with the text of this error.
fn text_of(value: &str, error: &str) -> bool {
    ["str", "repr"].iter().any(|f| value.starts_with(&format!("{f}({error})")))
        || value.starts_with(&format!("{error}.args[0]"))
}

fn python_tests(source: &Source) -> Vec<usize> {
    // An f-string's fields are code: for them the text is read with its strings.
    let code = &source.code;
    let (errors, texts) = python_bindings(code);
    let mut forms: Vec<String> = texts.iter().cloned().collect();
    for error in &errors {
        forms.extend(["str", "repr"].map(|f| format!("{f}({error})")));
        forms.push(format!("{error}.args[0]"));
    }
    let calls =
        ["startswith", "endswith", "find", "index", "count", "split", "partition", "removeprefix", "lower"];
    let mut found = BTreeSet::new();
    for form in &forms {
        for (at, _) in code.match_indices(form.as_str()) {
            let (before, after) = (&code[..at], &code[at + form.len()..]);
            if before.ends_with(|c: char| is_word(c) || c == '.') || after.starts_with(is_word) {
                continue;
            }
            let (before, after) = (before.trim_end_matches(' '), after.trim_start_matches(' '));
            let searched = before.ends_with(" in") || before.ends_with("==") || before.ends_with("!=");
            let looped = searched && line_before(before).trim_start().starts_with("for ");
            let called = calls.iter().any(|call| after.starts_with(&format!(".{call}(")));
            let pattern =
                ["re.search(", "re.match(", "re.fullmatch("].iter().any(|f| line_before(before).contains(f));
            let compared = after.starts_with("== ") || after.starts_with("!= ") || after.starts_with("in (");
            if (searched && !looped) || called || pattern || compared {
                found.insert(at);
            }
        }
    }
    found.into_iter().collect()
}

fn line_before(code: &str) -> &str {
    code.rsplit('\n').next().unwrap_or("")
}

/// Places outside tests that look at the text of an error.
pub(crate) fn text_tests(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| !crate::text::is_test(&s.path)) {
        let mut found = match source.language {
            Language::Rust => rust_tests(source),
            Language::Python => python_tests(source),
            _ => continue,
        };
        found.sort_unstable();
        found.dedup_by_key(|at| source.line(*at));
        for at in found {
            let line = source.line_text(source.line(at)).trim();
            breaches.push(format!("{}: {line}", source.place(at)));
        }
    }
    breaches
}

#[test]
fn tests_of_an_errors_text_are_found_in_rust() {
    let of = |text: &str| text_tests(&[Source::new("crates/x/src/a.rs", text)]).len();
    for text in [
        "if error.to_string().contains(\"small\") {}",
        "if f().unwrap_err().to_string().starts_with(PREFIX) {}",
        "match e { Error::Config(s) if s.contains(\"small\") => {} }",
        "if matches!(e, Error::Config(s) if s == \"interrupted\") {}",
        "if let Error::Config(s) = e { if s.ends_with(\"small\") {} }",
        "let text = error.to_string(); if text.contains(\"small\") {}",
        "if what == \"interrupted\" {}",
        "if \"a\" != b && message.as_str() != \"gone\" {}",
        "if what.strip_prefix(\"the sampler raised\").is_some() {}",
        "let answer = text_of(error); if answer.contains(\"403\") {}",
    ] {
        assert_eq!(of(&format!("fn f() {{ {text} }}")), 1, "{text}");
        assert_eq!(of(&format!("#[cfg(test)]\nmod tests {{ fn f() {{ {text} }} }}")), 0, "{text}");
    }
    for text in [
        "if name.contains(\"a\") {}",
        "// error.to_string().contains(\"x\")",
        "if error == Error::Held {}",
        "if path.to_string().len() == 3 {}",
        "Err(Error::Config(name)); if name.contains(\"a\") {}",
        "if errors.contains(&id) {}",
        "if path.extension().is_some_and(|e| e == \"json\") {}",
    ] {
        assert_eq!(of(&format!("fn f() {{ {text}\n }}")), 0, "{text}");
    }
}

#[test]
fn tests_of_an_errors_text_are_found_in_python() {
    let of = |path: &str, text: &str| text_tests(&[Source::new(path, text)]).len();
    for text in [
        "if str(error).startswith(\"the sampler\"):\n    pass\n",
        "if \"fewer\" not in str(error):\n    pass\n",
        "try:\n    f()\nexcept ValueError as bad:\n    if 'x' in str(bad):\n        raise\n",
        "text = str(error)\nif 'x' in text:\n    pass\n",
        "if error.args[0] == 'x':\n    pass\n",
        "if re.search('x', str(error)):\n    pass\n",
        "found = [e for e in all if str(e).lower() == 'x']\n",
    ] {
        assert_eq!(of("python/tidegate/a.py", text), 1, "{text}");
        assert_eq!(of("python/tests/test_a.py", text), 0, "{text}");
    }
    for text in [
        "raise ConfigError(str(error)) from error\n",
        "if isinstance(error, ConfigError):\n    pass\n",
        "if 'x' in str(path):\n    pass\n",
        "text = str(error)\nprint(text)\n",
        "# if 'x' in str(error)\n",
    ] {
        assert_eq!(of("python/tidegate/a.py", text), 0, "{text}");
    }
}
