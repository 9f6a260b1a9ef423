//! Files and objects by name or pattern.
//!
//! Flow: "shards/*.tar", "s3://bucket/train-{000..123}.tar" -> names in natural order ->
//! [`Files`].
//! Memory: the names.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, PatternError};

use super::file_set::Files;
use super::natural::natural_order;
#[cfg(feature = "remote")]
use super::remote::{Object, Store};
use crate::{Error, Result};

/// The error of a build without object stores.
#[cfg(not(feature = "remote"))]
pub(crate) fn no_stores(url: &str) -> Error {
    let what = "this build reads no object stores: build it with the feature `remote`".into();
    Error::Dataset { path: url.into(), what }
}

/// Files by name or pattern, local or in an object store, with any extension.
///
/// # Errors
/// Where there is no such file, or one of several is not a file.
pub(crate) fn named(url: &str) -> Result<Files> {
    let missing = || {
        let what = "there is no such file: name files, or a pattern such as \"folder/*.bin\"";
        Error::Dataset { path: url.into(), what: what.into() }
    };
    let plain = url.strip_prefix("file://").unwrap_or(url);
    if plain.contains("://") {
        return named_remote(url)?.ok_or_else(missing);
    }
    let files = expand(plain)?;
    match files.is_empty() || files.iter().any(|file| !file.is_file()) {
        true => Err(missing()),
        false => Ok(Files::new(files)),
    }
}

#[cfg(not(feature = "remote"))]
fn named_remote(url: &str) -> Result<Option<Files>> {
    Err(no_stores(url))
}

#[cfg(feature = "remote")]
fn named_remote(url: &str) -> Result<Option<Files>> {
    let (store, key) = Store::open(url)?;
    let objects = expand_remote(&store, &key)?;
    Ok(if objects.is_empty() { None } else { Some(Files::remote(store, objects)) })
}

/// Objects that match a pattern, in natural order.
#[cfg(feature = "remote")]
pub(crate) fn expand_remote(store: &Store, pattern: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for pattern in braces(pattern) {
        let Some(wild) = pattern.find(WILD) else {
            let missing =
                || Error::Dataset { path: store.name(&pattern), what: "there is no such object".into() };
            objects.push(store.find(&pattern)?.ok_or_else(missing)?);
            continue;
        };
        // As on a disk, what has this very name is what is meant.
        if pattern.contains('[')
            && let Some(object) = store.find(&pattern)?
        {
            objects.push(object);
            continue;
        }
        if !store.lists() {
            let what = "plain HTTP cannot be searched: name the files, as in train-{000..123}.tar".into();
            return Err(Error::Dataset { path: store.name(&pattern), what });
        }
        let prefix = pattern[..wild].rsplit_once('/').map_or("", |(folder, _)| folder);
        let matcher = glob::Pattern::new(&pattern).map_err(|e| wrong(&pattern, &e))?;
        let mut found = store.list(prefix)?;
        found.retain(|object| matcher.matches_with(object.key.as_ref(), OPTIONS));
        found.sort_by(|a, b| natural_order(a.key.as_ref(), b.key.as_ref()));
        objects.extend(found);
    }
    Ok(objects)
}

/// Files that match a pattern: `*`, `?` and `[0-9]` within names, `**` for any depth of folders,
/// `{000..123}` and `{a,b}` anywhere, in natural order.
pub(crate) fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for pattern in braces(pattern) {
        if pattern.contains(WILD) && !Path::new(&pattern).exists() {
            let mut found = Vec::new();
            walk(&pattern, &mut found)?;
            found.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
            files.extend(found);
        } else {
            files.push(pattern.into());
        }
    }
    Ok(files)
}

/// How many names the braces of a pattern stand for.
pub(crate) fn count(pattern: &str) -> usize {
    let Some((before, rest)) = pattern.split_once('{') else { return 1 };
    let Some((inside, after)) = rest.split_once('}') else { return 1 };
    braces(&format!("{before}{{{inside}}}")).len().saturating_mul(count(after))
}

pub(crate) fn braces(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let Some((inside, after)) = rest.split_once('}') else { return vec![pattern.to_owned()] };
    let choices: Vec<String> = match inside.split_once("..") {
        Some((low, high)) => match (low.parse::<u64>(), high.parse::<u64>()) {
            (Ok(a), Ok(b)) if a <= b && b - a < 1_000_000 => {
                (a..=b).map(|i| format!("{i:0width$}", width = low.len())).collect()
            }
            _ => return vec![pattern.to_owned()],
        },
        None => inside.split(',').map(str::to_owned).collect(),
    };
    choices.iter().flat_map(|choice| braces(&format!("{before}{choice}{after}"))).collect()
}

/// What a pattern matches, as in a shell: a first dot and a slash have to be written out. `**` is
/// any depth of folders.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The characters that make a name a pattern.
pub(crate) const WILD: [char; 3] = ['*', '?', '['];

fn wrong(pattern: &str, error: &PatternError) -> Error {
    let what = format!("this pattern cannot be read: {} at character {}", error.msg, error.pos + 1);
    Error::Dataset { path: pattern.into(), what }
}

/// The files that match a pattern. Folders are passed over, and what cannot be looked into is an
/// error.
fn walk(pattern: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in glob::glob_with(pattern, OPTIONS).map_err(|e| wrong(pattern, &e))? {
        let path = path.map_err(|e| Error::io(e.path().to_owned())(e.into()))?;
        if path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let matches = |pattern: &str, name| glob::Pattern::new(pattern).unwrap().matches_with(name, OPTIONS);
        assert!(matches("*.tar", "a.tar") && matches("a?c*", "abcd") && matches("x-[0-9].tar", "x-7.tar"));
        assert!(matches("a/**/*.tar", "a/b/c/d.tar") && matches("a/**/*.tar", "a/d.tar"));
        assert!(!matches("*.tar", "a.tar.gz") && !matches("*.tar", "a/b.tar") && !matches("*.tar", ".a.tar"));
        assert!(walk("a[", &mut Vec::new()).unwrap_err().to_string().contains("pattern"));
        assert_eq!(
            braces("s-{08..10}.{tar,x}"),
            ["s-08.tar", "s-08.x", "s-09.tar", "s-09.x", "s-10.tar", "s-10.x"]
        );
    }
}
