//! Files and objects by name or pattern.
//!
//! Flow: "shards/*.tar", "s3://bucket/train-{000..123}.tar" -> names in natural order ->
//! [`Files`].
//! Memory: the names.

use std::fs;
use std::path::{Path, PathBuf};

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
        let Some(wild) = pattern.find(['*', '?']) else {
            let missing = || Error::Dataset {
                path: store.name(&pattern.as_str().into()),
                what: "there is no such object".into(),
            };
            objects.push(store.find(&pattern)?.ok_or_else(missing)?);
            continue;
        };
        if !store.lists() {
            let what = "plain HTTP cannot be searched: name the files, as in train-{000..123}.tar".into();
            return Err(Error::Dataset { path: store.name(&pattern.as_str().into()), what });
        }
        let prefix = pattern[..wild].rsplit_once('/').map_or("", |(folder, _)| folder);
        let parts: Vec<&str> = pattern.split('/').collect();
        let mut found = store.list(prefix)?;
        found.retain(|object| {
            let names: Vec<_> = object.key.as_ref().split('/').collect();
            names.len() == parts.len()
                && parts.iter().zip(names).all(|(part, name)| glob_match(part.as_bytes(), name.as_bytes()))
        });
        found.sort_by(|a, b| natural_order(a.key.as_ref(), b.key.as_ref()));
        objects.extend(found);
    }
    Ok(objects)
}

/// Files that match a pattern: `*` and `?` within names, `{000..123}` and `{a,b}` anywhere, in
/// natural order.
pub(crate) fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for pattern in braces(pattern) {
        if pattern.contains(['*', '?', '[']) {
            let mut found = Vec::new();
            walk(Path::new(&pattern), &mut found)?;
            found.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
            files.extend(found);
        } else {
            files.push(pattern.into());
        }
    }
    Ok(files)
}

fn braces(pattern: &str) -> Vec<String> {
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

fn walk(pattern: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut folders = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy().into_owned();
        if !text.contains(['*', '?']) {
            for folder in &mut folders {
                folder.push(part);
            }
            continue;
        }
        let mut next = Vec::new();
        for folder in &folders {
            let dir = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
                let name = entry.map_err(Error::io(dir))?.file_name();
                let hidden = name.to_string_lossy().starts_with('.') && !text.starts_with('.');
                if !hidden && glob_match(text.as_bytes(), name.to_string_lossy().as_bytes()) {
                    next.push(folder.join(name));
                }
            }
        }
        folders = next;
    }
    found.extend(folders.into_iter().filter(|f| f.exists()));
    Ok(())
}

/// Whether a name matches a pattern of `*` and `?`.
fn glob_match(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if p < pattern.len() && (pattern[p] == b'?' || pattern[p] == name[n]) && pattern[p] != b'*' {
            (p, n) = (p + 1, n + 1);
        } else if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if let Some((sp, sn)) = star {
            (p, n) = (sp + 1, sn + 1);
            star = Some((sp, sn + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(glob_match(b"*.tar", b"a.tar") && glob_match(b"a?c*", b"abcd"));
        assert!(!glob_match(b"*.tar", b"a.tar.gz"));
        assert_eq!(
            braces("s-{08..10}.{tar,x}"),
            ["s-08.tar", "s-08.x", "s-09.tar", "s-09.x", "s-10.tar", "s-10.x"]
        );
    }
}
