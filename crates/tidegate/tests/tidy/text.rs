//! A source file taken apart: code, comments and strings, each in a text of the same length.
//!
//! A check that looks for a word of the language reads `code`, where comments and the insides of
//! strings are blank. A check of prose reads `comments` (in Python with docstrings) and `strings`.
//! Line numbers agree in all of them.

use std::ops::Range;

/// The language of a file, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Rust,
    Python,
    Markdown,
    Other,
}

/// A file and its parts.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) language: Language,
    /// The text without comments and without what stands in quotes.
    pub(crate) code: String,
    /// `code` without the items under `#[cfg(test)]`; empty if the whole file is a test.
    pub(crate) production: String,
    /// Comments, and docstrings in Python; all of a Markdown file.
    pub(crate) comments: String,
    /// What stands in quotes, without escapes.
    pub(crate) strings: String,
    starts: Vec<usize>,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let language = match path.rsplit('.').next() {
            Some("rs") => Language::Rust,
            Some("py" | "pyi") => Language::Python,
            Some("md") => Language::Markdown,
            _ => Language::Other,
        };
        let [code, comments, strings] = match language {
            Language::Rust => rust(text),
            Language::Python => python(text),
            Language::Markdown => [String::new(), text.to_owned(), String::new()],
            Language::Other => [text.to_owned(), String::new(), String::new()],
        };
        let production = if is_test(path) { String::new() } else { without_tests(&code) };
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            language,
            code,
            production,
            comments,
            strings,
            starts,
        }
    }

    /// The number of the line that holds this byte, from 1 on.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|&start| start <= at)
    }

    /// The text of a line, by its number from 1 on.
    pub(crate) fn line_text(&self, line: usize) -> &str {
        self.text.lines().nth(line - 1).unwrap_or("")
    }

    /// `path:line`, for a message.
    pub(crate) fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.line(at))
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.language == Language::Rust
    }
}

/// Whether a file holds nothing but tests and benchmarks.
pub(crate) fn is_test(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs" | "conftest.py"))
}

/// Which text a byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code = 0,
    Comment = 1,
    Str = 2,
    /// An escape: in none of them.
    Blank = 3,
}

/// Collects for each byte which part it is.
struct Parts<'a> {
    text: &'a str,
    parts: Vec<Part>,
}

impl<'a> Parts<'a> {
    fn new(text: &'a str) -> Self {
        Parts { text, parts: vec![Part::Code; text.len()] }
    }

    fn set(&mut self, range: Range<usize>, part: Part) {
        let end = range.end.min(self.parts.len());
        self.parts[range.start.min(end)..end].fill(part);
    }

    /// A string whose inside begins at `from` and that ends at `close`; the byte after its closing
    /// quotes.
    fn string(&mut self, from: usize, close: &str, escapes: bool, part: Part) -> usize {
        let bytes = self.text.as_bytes();
        let mut at = from;
        while at < bytes.len() && !bytes[at..].starts_with(close.as_bytes()) {
            if escapes && bytes[at] == b'\\' {
                self.set(at..at + 2, Part::Blank);
                at += 2;
            } else {
                self.set(at..at + 1, part);
                at += 1;
            }
        }
        at + close.len()
    }

    fn split(self) -> [String; 3] {
        [Part::Code, Part::Comment, Part::Str].map(|part| {
            let kept = self.text.bytes().zip(&self.parts);
            let kept = kept.map(|(byte, is)| if *is == part || byte == b'\n' { byte } else { b' ' });
            String::from_utf8_lossy(&kept.collect::<Vec<_>>()).into_owned()
        })
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Code, comments and strings of a Rust file.
fn rust(text: &str) -> [String; 3] {
    let bytes = text.as_bytes();
    let mut parts = Parts::new(text);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word_before = at > 0 && is_word(bytes[at - 1]);
        if rest.starts_with(b"//") {
            let end = text[at..].find('\n').map_or(bytes.len(), |n| at + n);
            parts.set(at..end, Part::Comment);
            at = end;
        } else if rest.starts_with(b"/*") {
            let end = at + block_comment(rest);
            parts.set(at..end, Part::Comment);
            at = end;
        } else if let Some((skip, hashes)) = (!word_before).then(|| raw_string(rest)).flatten() {
            let close = format!("\"{}", "#".repeat(hashes));
            at = parts.string(at + skip, &close, false, Part::Str);
        } else if rest[0] == b'"' {
            at = parts.string(at + 1, "\"", true, Part::Str);
        } else if rest[0] == b'\'' {
            let next = text[at + 1..].chars().next().map_or(1, char::len_utf8);
            if rest.get(1) == Some(&b'\\') || rest.get(1 + next) == Some(&b'\'') {
                at = parts.string(at + 1, "'", true, Part::Blank);
            } else {
                at += 1;
            }
        } else {
            at += 1;
        }
    }
    parts.split()
}

/// The length of a block comment, which may hold others.
fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < rest.len() && depth > 0 {
        if rest[at..].starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if rest[at..].starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
        } else {
            at += 1;
        }
    }
    at
}

/// The length of `r##"` and its number of hashes, if a raw string begins here.
fn raw_string(rest: &[u8]) -> Option<(usize, usize)> {
    let prefix = [&b"br"[..], b"cr", b"r"].into_iter().find(|p| rest.starts_with(p))?.len();
    let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
    (rest.get(prefix + hashes) == Some(&b'"')).then_some((prefix + hashes + 1, hashes))
}

/// Code, comments with docstrings, and other strings of a Python file.
fn python(text: &str) -> [String; 3] {
    let bytes = text.as_bytes();
    let mut parts = Parts::new(text);
    let (mut at, mut depth) = (0, 0_usize);
    // Whether only blanks and a prefix were seen since the line began.
    let mut fresh = true;
    while at < bytes.len() {
        match bytes[at] {
            b'#' => {
                let end = text[at..].find('\n').map_or(bytes.len(), |n| at + n);
                parts.set(at..end, Part::Comment);
                at = end;
            }
            quote @ (b'"' | b'\'') => {
                let one = char::from(quote).to_string();
                let close =
                    if bytes[at..].starts_with(one.repeat(3).as_bytes()) { one.repeat(3) } else { one };
                let prefix = bytes[..at].iter().rev().take_while(|b| b.is_ascii_alphabetic()).count();
                let raw = bytes[at - prefix..at].iter().any(|b| matches!(b, b'r' | b'R'));
                let doc = fresh && depth == 0 && close.len() == 3;
                let part = if doc { Part::Comment } else { Part::Str };
                at = parts.string(at + close.len(), &close, !raw, part);
                fresh = false;
            }
            byte => {
                depth = match byte {
                    b'(' | b'[' | b'{' => depth + 1,
                    b')' | b']' | b'}' => depth.saturating_sub(1),
                    _ => depth,
                };
                fresh =
                    byte == b'\n' || (fresh && (byte == b' ' || matches!(byte, b'r' | b'R' | b'f' | b'b')));
                at += 1;
            }
        }
    }
    parts.split()
}

/// The byte after the bracket that closes the one at `open`, in code without strings.
pub(crate) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return i + 1;
        }
    }
    code.len()
}

/// The byte after the item that begins here: after its `;`, or after the `}` of its body.
pub(crate) fn item_end(code: &str, from: usize) -> usize {
    let bytes = code.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b';' => return at + 1,
            b'{' => return closing(code, at),
            b'(' | b'[' => at = closing(code, at),
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The files that a file declares as modules of tests: `#[cfg(test)] mod name;`.
fn test_modules(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for mark in TEST_MARKS {
        for (at, _) in source.code.match_indices(mark) {
            let from = closing(&source.code, at + 1);
            let item = source.code[from..item_end(&source.code, from)].trim();
            if let Some(name) = item.split("mod ").nth(1).and_then(|rest| rest.strip_suffix(';')) {
                let stem = source.path.strip_suffix(".rs").unwrap_or(&source.path);
                let folder = stem.strip_suffix("/mod").or(stem.strip_suffix("/lib")).unwrap_or(stem);
                found.extend([format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]);
            }
        }
    }
    found
}

/// Takes files that are modules of tests for what they are.
pub(crate) fn mark_test_modules(sources: &mut [Source]) {
    let tests: Vec<String> = sources.iter().filter(|s| s.is_rust()).flat_map(test_modules).collect();
    for source in sources.iter_mut().filter(|s| tests.contains(&s.path)) {
        source.production.clear();
    }
}

const TEST_MARKS: [&str; 3] = ["#[cfg(test)]", "#[cfg(all(test", "#[test]"];

/// The same code with its test items blank.
fn without_tests(code: &str) -> String {
    let mut bytes = code.as_bytes().to_vec();
    for mark in TEST_MARKS {
        for (at, _) in code.match_indices(mark) {
            for byte in &mut bytes[at..item_end(code, closing(code, at + 1))] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn rust_is_taken_apart() {
    let text = "let a = \"x // no { \\\" }\"; // yes \"q\"\nlet c = '\"'; let l: &'a str = r#\"raw \" \"#; /* b /* n */ */ f()\n";
    let source = Source::new("crates/x/src/a.rs", text);
    let comments: Vec<_> = source.comments.lines().map(str::trim).collect();
    assert_eq!(comments, ["// yes \"q\"", "/* b /* n */ */"]);
    assert_eq!(source.comments.find("/* b"), text.find("/* b"));
    assert!(source.strings.contains("x // no {") && source.strings.contains("raw \" "));
    assert!(source.code.contains("let l: &'a str = r#\""), "{}", source.code);
    assert!(source.code.contains("f()") && !source.code.contains("raw"));
    assert_eq!((source.line(0), source.line(text.len() - 1)), (1, 2));
}

#[test]
fn python_is_taken_apart() {
    let text = "\"\"\"Doc.\"\"\"\nx = f(\n    \"a # b\",\n)  # note\ndef f():\n    r\"\"\"Doc \\d.\"\"\"\n    y = '''no doc'''\n";
    let source = Source::new("python/tidegate/a.py", text);
    for word in ["Doc.", "# note", "Doc \\d."] {
        assert!(source.comments.contains(word), "{word}");
    }
    for word in ["a # b", "no doc"] {
        assert!(source.strings.contains(word) && !source.comments.contains(word), "{word}");
    }
}

#[test]
fn tests_are_left_out_wherever_they_stand() {
    let text = "fn a() {}\n#[cfg(test)]\nfn b(x: [u8; 4]) { { } }\nfn c() {}\n#[cfg(all(test, loom))]\nmod t {\n fn d() {}\n}\n";
    let source = Source::new("crates/x/src/a.rs", text);
    assert!(source.production.contains("fn a()") && source.production.contains("fn c()"));
    assert!(!source.production.contains("fn b(") && !source.production.contains("fn d("));
    assert_eq!(source.production.lines().count(), source.text.lines().count());
    assert_eq!(Source::new("crates/x/tests/a.rs", text).production, "");
}

#[test]
fn files_of_tests_are_known_by_their_declaration() {
    let mut sources = ["lib", "a", "oracle", "a/naive", "other"].map(|name| {
        let text = "#[cfg(test)]\nmod oracle;\n#[cfg(all(test, loom))]\npub(crate) mod naive;\nmod other;\nfn f() {}\n";
        Source::new(&format!("crates/x/src/{name}.rs"), text)
    });
    mark_test_modules(&mut sources);
    assert_eq!(sources.map(|s| s.production.is_empty()), [false, false, true, true, false]);
}
