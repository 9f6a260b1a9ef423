//! Which file uses which within a crate, and within the Python package.
//!
//! A path (`use …`, or `a::b` in the code) is followed to the file that defines its item: down
//! modules, and through what a module imports or exports again. The arrow goes to that file,
//! however the path was written. So a parent's `mod child;` and its `pub use child::Item;` are no
//! arrows, unless the parent's own code uses `Item`; and an import of a module is none, but what
//! is used of it is. Tests count for nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::text::{Language, Source};

type Module = Vec<String>;

/// An arrow: the file that uses, the file that is used, and where.
pub(crate) type Arrows = BTreeMap<(String, String), String>;

/// What a file's code says, module by module.
#[derive(Debug, Default)]
struct Scope {
    /// The file it stands in.
    path: String,
    children: BTreeSet<String>,
    defined: BTreeSet<String>,
    bound: BTreeMap<String, Module>,
    globs: Vec<Module>,
}

/// A path that is used somewhere.
#[derive(Debug)]
struct Use {
    at: usize,
    module: Module,
    path: Module,
    /// The name it gets, of an import; None of a path in the code.
    bound: Option<String>,
    public: bool,
    glob: bool,
}

/// The crate of a source, and the module that the file is; None for tests, benches, examples and
/// build scripts.
pub(crate) fn module_of(path: &str) -> Option<(String, Module)> {
    let (root, inside) = path.split_once("/src/")?;
    let name = root.strip_prefix("crates/").unwrap_or(root);
    if !path.starts_with("crates/") && root != "python" || name.contains('/') || crate::text::is_test(path) {
        return None;
    }
    let mut parts: Module = inside.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    match parts.last().map(String::as_str) {
        Some("main") if parts.len() == 1 => return Some((format!("{name}/main"), Vec::new())),
        Some("lib" | "mod") => drop(parts.pop()),
        _ => {}
    }
    Some((name.to_owned(), parts))
}

/// The room of a module: its first name, or `lib`.
pub(crate) fn room_of(path: &str) -> Option<(String, String)> {
    let (name, module) = module_of(path)?;
    Some((name, module.first().map_or("lib", String::as_str).to_owned()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    at: usize,
    text: &'a str,
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let length = match bytes[at] {
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b if word(&b) => bytes[at..].iter().take_while(|b| word(b)).count(),
            b':' if bytes.get(at + 1) == Some(&b':') => 2,
            b if b.is_ascii() => 1,
            _ => code[at..].chars().next().map_or(1, char::len_utf8),
        };
        found.push(Token { at, text: &code[at..at + length] });
        at += length;
    }
    found
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Reads one file: its scopes by module, its uses, and the names in its code outside imports.
struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    path: &'a str,
    scopes: BTreeMap<Module, Scope>,
    uses: Vec<Use>,
    names: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn read(source: &'a Source, module: &Module) -> Self {
        let tokens = tokens(&source.production);
        let mut reader = Reader {
            tokens,
            path: &source.path,
            scopes: BTreeMap::new(),
            uses: Vec::new(),
            names: BTreeSet::new(),
        };
        reader.walk(module);
        reader
    }

    fn text(&self, i: usize) -> &'a str {
        self.tokens.get(i).map_or("", |t| t.text)
    }

    fn scope(&mut self, module: &Module) -> &mut Scope {
        let path = self.path.to_owned();
        self.scopes.entry(module.clone()).or_insert_with(|| Scope { path, ..Scope::default() })
    }

    fn walk(&mut self, file: &Module) {
        let mut module = file.clone();
        // Depths at which inline modules opened.
        let (mut inline, mut depth) = (Vec::new(), 0_usize);
        self.scope(&module);
        let mut i = 0;
        while i < self.tokens.len() {
            let (text, next) = (self.text(i), self.text(i + 1));
            match text {
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    if inline.last() == Some(&depth) {
                        inline.pop();
                        module.pop();
                    }
                }
                "mod" if is_name(next) => {
                    self.scope(&module).children.insert(next.to_owned());
                    if self.text(i + 2) == "{" {
                        module.push(next.to_owned());
                        inline.push(depth);
                        self.scope(&module);
                        depth += 1;
                        i += 2;
                    }
                }
                "use" if next != "<" => {
                    i = self.import(i, &module);
                }
                "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union"
                    if is_name(next) =>
                {
                    let name = if next == "fn" { self.text(i + 2) } else { next };
                    self.scope(&module).defined.insert(name.to_owned());
                }
                _ if is_name(text) => {
                    i = self.inline_path(i, &module);
                }
                _ => {}
            }
            i += 1;
        }
    }

    /// A name in the code, or `a::b::C`; the index of its last token.
    fn inline_path(&mut self, first: usize, module: &Module) -> usize {
        let at = self.tokens[first].at;
        let mut path = vec![self.text(first).to_owned()];
        let mut i = first;
        while self.text(i + 1) == "::" && is_name(self.text(i + 2)) {
            path.push(self.text(i + 2).to_owned());
            i += 2;
        }
        // A name behind `.` is a field or a method.
        if first == 0 || self.text(first - 1) != "." {
            self.names.insert(path[0].clone());
        }
        if path.len() > 1 && (first == 0 || self.text(first - 1) != "::") {
            let module = module.clone();
            self.uses.push(Use { at, module, path, bound: None, public: false, glob: false });
        }
        i
    }

    /// A `use` declaration; the index of its `;`.
    fn import(&mut self, first: usize, module: &Module) -> usize {
        let public = first > 0 && matches!(self.text(first - 1), "pub" | ")");
        let mut i = first + 1;
        self.tree(&mut i, Vec::new(), public, module);
        while i < self.tokens.len() && self.text(i) != ";" {
            i += 1;
        }
        i
    }

    fn tree(&mut self, i: &mut usize, mut path: Module, public: bool, module: &Module) {
        let at = self.tokens.get(*i).map_or(0, |t| t.at);
        loop {
            match self.text(*i) {
                "{" => {
                    *i += 1;
                    while !matches!(self.text(*i), "}" | "") {
                        self.tree(i, path.clone(), public, module);
                        if self.text(*i) == "," {
                            *i += 1;
                        }
                    }
                    *i += 1;
                    return;
                }
                "*" => {
                    *i += 1;
                    let module = module.clone();
                    self.uses.push(Use { at, module, path, bound: None, public, glob: true });
                    return;
                }
                "::" => *i += 1,
                name if is_name(name) && name != "as" => {
                    path.push(name.to_owned());
                    *i += 1;
                }
                _ => break,
            }
        }
        if path.len() > 1 && path.last().is_some_and(|l| l == "self") {
            path.pop();
        }
        let mut bound = path.last().cloned();
        if self.text(*i) == "as" {
            bound = Some(self.text(*i + 1).to_owned());
            *i += 2;
        }
        let module = module.clone();
        self.uses.push(Use { at, module, path, bound, public, glob: false });
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Module(Module),
    Item(String),
}

type Scopes = BTreeMap<Module, Scope>;

fn resolve(scopes: &Scopes, from: &Module, path: &[String], depth: usize) -> Option<Target> {
    if depth > 20 {
        return None;
    }
    let mut at = from.clone();
    let mut rest = path;
    while let Some((name, left)) = rest.split_first() {
        match name.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()),
            // A name that no scope knows is another crate's, or a type's.
            _ => match step(scopes, &at, name, depth)? {
                Target::Module(module) => at = module,
                item @ Target::Item(_) => return Some(item),
            },
        }
        rest = left;
    }
    Some(Target::Module(at))
}

/// What a name means in a module.
fn step(scopes: &Scopes, at: &Module, name: &str, depth: usize) -> Option<Target> {
    let scope = scopes.get(at)?;
    let child: Module = at.iter().cloned().chain([name.to_owned()]).collect();
    if scopes.contains_key(&child) {
        return Some(Target::Module(child));
    }
    if scope.defined.contains(name) {
        return Some(Target::Item(scope.path.clone()));
    }
    if let Some(path) = scope.bound.get(name) {
        // `use a::a;` would ask itself for ever.
        return if path.first().is_some_and(|f| f == name) {
            None
        } else {
            resolve(scopes, at, path, depth + 1)
        };
    }
    scope.globs.iter().find_map(|glob| {
        let Target::Module(module) = resolve(scopes, at, glob, depth + 1)? else { return None };
        if module == *at { None } else { step(scopes, &module, name, depth + 1) }
    })
}

/// The arrows between the files of each crate.
pub(crate) fn arrows(sources: &[Source]) -> BTreeMap<String, Arrows> {
    let mut crates: BTreeMap<String, Vec<(Module, &Source)>> = BTreeMap::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        if let Some((name, module)) = module_of(&source.path) {
            crates.entry(name).or_default().push((module, source));
        }
    }
    crates.into_iter().map(|(name, files)| (name, arrows_of(&files))).collect()
}

fn arrows_of(files: &[(Module, &Source)]) -> Arrows {
    let readers: Vec<_> = files.iter().map(|(module, source)| Reader::read(source, module)).collect();
    let mut scopes = Scopes::new();
    for reader in &readers {
        for (module, scope) in &reader.scopes {
            let mut bound = BTreeMap::new();
            let mut globs = Vec::new();
            for used in reader.uses.iter().filter(|u| u.module == *module) {
                if used.glob {
                    globs.push(used.path.clone());
                } else if let Some(name) = &used.bound {
                    bound.insert(name.clone(), used.path.clone());
                }
            }
            let (path, children, defined) =
                (scope.path.clone(), scope.children.clone(), scope.defined.clone());
            scopes.insert(module.clone(), Scope { path, children, defined, bound, globs });
        }
    }
    let mut found = Arrows::new();
    for ((module, source), reader) in files.iter().zip(&readers) {
        for used in &reader.uses {
            let to = match resolve(&scopes, &used.module, &used.path, 0) {
                Some(Target::Item(path)) => path,
                Some(Target::Module(module)) if used.glob => scopes[&module].path.clone(),
                _ => continue,
            };
            let again = used.public
                && module_of(&to).is_some_and(|(_, to)| to.starts_with(module))
                && !used.bound.as_ref().is_some_and(|name| reader.names.contains(name));
            if to != source.path && !again {
                let said = format!("{} uses {}", source.place(used.at), used.path.join("::"));
                found.entry((source.path.clone(), to)).or_insert(said);
            }
        }
    }
    found
}

/// The arrows between the modules of the Python package: imports at their beginning, not those
/// within functions.
pub(crate) fn python_arrows(sources: &[Source]) -> Arrows {
    let package = "python/tidegate/";
    let paths: BTreeSet<&str> = sources.iter().map(|s| s.path.as_str()).collect();
    let file = |dotted: &str| {
        let stem = format!("python/{}", dotted.replace('.', "/"));
        [format!("{stem}.py"), format!("{stem}/__init__.py")].into_iter().find(|p| paths.contains(p.as_str()))
    };
    let mut found = Arrows::new();
    for source in sources.iter().filter(|s| s.language == Language::Python && s.path.starts_with(package)) {
        for (i, line) in source.code.lines().enumerate() {
            let mut targets = Vec::new();
            if let Some(rest) = line.strip_prefix("from tidegate") {
                let Some((module, _)) = rest.split_once(" import") else { continue };
                let module = format!("tidegate{module}");
                for name in imported(&source.code, i) {
                    targets.push(file(&format!("{module}.{name}")).or_else(|| file(&module)));
                }
            } else if let Some(rest) = line.strip_prefix("import tidegate") {
                let rest = rest.split([' ', ',']).next().unwrap_or("");
                targets.push(file(&format!("tidegate{rest}")));
            }
            for to in targets.into_iter().flatten().filter(|to| *to != source.path) {
                let said = format!("{}:{} imports it", source.path, i + 1);
                found.entry((source.path.clone(), to)).or_insert(said);
            }
        }
    }
    // The package's own file imports what it exports: that is no use of it.
    found.retain(|(from, _), _| !from.ends_with("/__init__.py"));
    found
}

/// The names that a `from … import` statement which begins on this line imports.
fn imported(code: &str, line: usize) -> Vec<String> {
    let rest: String = code.lines().skip(line).collect::<Vec<_>>().join("\n");
    let names = rest.split_once(" import").map_or("", |(_, names)| names);
    let end = if names.trim_start().starts_with('(') { names.find(')') } else { names.find('\n') };
    let names = &names[..end.unwrap_or(names.len())];
    let names = names.trim_start().trim_start_matches('(').split(',').map(str::trim);
    names.filter_map(|name| name.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) fn crate_of(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source::new(&format!("crates/x/src/{path}"), text)).collect()
}

#[cfg(test)]
fn between(files: &[(&str, &str)]) -> Vec<String> {
    let sources = crate_of(files);
    let short =
        |path: &str| path.strip_prefix("crates/x/src/").unwrap().strip_suffix(".rs").unwrap().to_owned();
    let arrows = arrows(&sources).remove("x").unwrap();
    arrows.keys().map(|(from, to)| format!("{}>{}", short(from), short(to))).collect()
}

#[test]
fn paths_are_followed_to_where_items_are() {
    let lib = ("lib.rs", "pub mod a;\npub mod b;\npub use b::Thing;");
    let b = ("b/mod.rs", "mod c;\npub use c::{Thing, other};\npub struct Own;");
    let c = ("b/c.rs", "pub struct Thing; pub fn other() {}");
    for (text, expected) in [
        ("use crate::Thing;", &["a>b/c"][..]),
        ("use crate::b::{Own, Thing as T};", &["a>b/c", "a>b/mod"]),
        ("use super::b; fn f() { b::other(); b::Own; }", &["a>b/c", "a>b/mod"]),
        ("use crate::b;", &[]),
        ("fn f() -> crate::b::Own { }", &["a>b/mod"]),
        ("mod inner { use super::super::b::*; }", &["a>b/mod"]),
        ("use std::b::Own; // crate::b::Own\nconst T: &str = \"crate::b::Own\";", &[]),
        ("#[cfg(test)]\nmod tests { use crate::b::Own; }", &[]),
        ("fn f<T: b::X>() { T::Own; Self::Thing; }", &[]),
    ] {
        assert_eq!(between(&[lib, ("a.rs", text), b, c]), expected, "{text}");
    }
}

#[test]
fn a_parent_uses_what_its_own_code_names() {
    let child = ("p/c.rs", "pub struct C; use super::P;");
    for (parent, expected) in [
        ("mod c; pub use c::C; pub struct P;", &["p/c>p/mod"][..]),
        ("mod c; pub use c::C; pub struct P(C);", &["p/c>p/mod", "p/mod>p/c"]),
        ("mod c; use c::C; pub struct P(C);", &["p/c>p/mod", "p/mod>p/c"]),
        ("mod c; pub struct P(c::C);", &["p/c>p/mod", "p/mod>p/c"]),
    ] {
        assert_eq!(between(&[("lib.rs", "mod p;"), ("p/mod.rs", parent), child]), expected, "{parent}");
    }
}
