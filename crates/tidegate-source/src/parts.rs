//! Which files of a folder or a pattern are one dataset: its splits, and shards that are missing.
//!
//! Flow: names of files -> those of one split, or an error that names the splits; called by `open`.
//! Memory: the names.
//!
//! Nothing is guessed: files of several splits are refused unless one is chosen, and so are files
//! that say «3 of 4» where the fourth is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::files::natural::file_name;
use crate::{Error, Result};

/// How a dataset is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Makes a new index even if there is one that holds.
    pub force: bool,
    /// The split to open, where there are several; "all" joins them.
    pub split: Option<String>,
    /// Opens a dataset of which shards are missing.
    pub allow_missing: bool,
    /// The most bytes that making an index takes for one row, line or batch; 0: 64 MiB.
    pub memory_bytes: u64,
}

/// Joins all splits.
const ALL: &str = "all";
/// Words for splits; those of a line mean the same.
const SPLITS: [&[&str]; 3] = [
    &["train", "training"],
    &["val", "valid", "validation", "dev", "eval", "evaluation"],
    &["test", "testing"],
];

/// The word of a split in a name, such as "train" of "x-train-0.tar".
pub(crate) fn split_of(name: &str) -> Option<&'static str> {
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let words =
        stem.split(['-', '_', ' ', '+']).map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    words
        .filter_map(|word| SPLITS.iter().flat_map(|line| *line).find(|split| **split == word))
        .copied()
        .next()
}

/// What is before the number of "en-00000-of-00002.parquet", the two numbers, and what follows; the
/// signs between them may be others.
fn numbered(name: &str) -> Option<(&str, u64, u64, &str)> {
    const BETWEEN: [char; 4] = ['-', '_', '.', ' '];
    let at = |sign: &char| name.find(&format!("{sign}of{sign}")).map(|at| (&name[..at], &name[at + 4..]));
    let (before, after) = BETWEEN.iter().find_map(at)?;
    let (prefix, number) = before.rsplit_once(BETWEEN)?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    Some((prefix, number.parse().ok()?, after[..digits].parse().ok()?, &after[digits..]))
}

/// The split that a file is of: by its own name, else by the nearest folder whose whole name is
/// that of a split. Folders above all files name none.
fn split_of_file(path: &Path, common: usize) -> Option<String> {
    let name = file_name(path);
    let folders = || {
        let below = path.parent()?.components().skip(common).collect::<Vec<_>>();
        below.iter().rev().find_map(|part| is_split_folder(&part.as_os_str().to_string_lossy()))
    };
    split_of(&name)
        .or_else(folders)
        .map(str::to_owned)
        .or_else(|| numbered(&name).map(|parts| parts.0.to_owned()))
}

/// The word of a folder's name that is a split's, perhaps with a number: "train", "val_0".
fn is_split_folder(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    split_of(&lower).filter(|word| {
        let rest = lower.strip_prefix(word).unwrap_or("x");
        rest.trim_start_matches(['-', '_', ' ']).chars().all(|c| c.is_ascii_digit())
    })
}

/// Whether a folder that not all files are in is called `name=value`, as Hive and Spark do.
pub(crate) fn within_values<'a>(paths: &'a [PathBuf]) -> impl Iterator<Item = &'a PathBuf> {
    let common = in_common(paths.iter().map(PathBuf::as_path));
    let named = move |path: &&'a PathBuf| {
        let folders = path.parent().into_iter().flat_map(Path::components).skip(common);
        folders.into_iter().any(|part| part.as_os_str().as_encoded_bytes().contains(&b'='))
    };
    paths.iter().filter(named)
}

/// How many folders all files have in common.
fn in_common<'a>(mut paths: impl Iterator<Item = &'a Path>) -> usize {
    let first: Vec<_> =
        paths.next().and_then(Path::parent).map(|p| p.components().collect()).unwrap_or_default();
    paths.fold(first.len(), |most, path| {
        let folders = path.parent().into_iter().flat_map(Path::components);
        first.iter().zip(folders).take(most).take_while(|(a, b)| **a == *b).count()
    })
}

/// Whether a split is the one that was asked for, by its own word or another for the same.
fn is_split(found: &str, wanted: &str) -> bool {
    let line = |word: &str| SPLITS.iter().position(|line| line.contains(&word));
    found == wanted || line(found).is_some_and(|found| Some(found) == line(wanted))
}

impl OpenOptions {
    /// The files of the chosen split; all of them if there is only one. A name without one of the
    /// usual words is of the split of its folder, or of that before its number, as in
    /// "en-00000-of-00002.parquet".
    ///
    /// # Errors
    /// Several splits, or none of the chosen name, with their names; missing shards, with their
    /// numbers.
    pub(crate) fn select<T>(&self, from: &Path, files: Vec<T>, path: impl Fn(&T) -> &Path) -> Result<Vec<T>> {
        let common = in_common(files.iter().map(&path));
        let split = |file: &T| split_of_file(path(file), common);
        let splits: BTreeSet<String> = files.iter().filter_map(split).collect();
        let files = match self.split.as_deref() {
            Some(ALL) => files,
            Some(wanted) => {
                let of = |file: &T| split(file).is_some_and(|found| is_split(&found, wanted));
                let chosen: Vec<T> = files.into_iter().filter(of).collect();
                if chosen.is_empty() {
                    return Err(none(from, wanted, &splits));
                }
                chosen
            }
            None if splits.len() > 1 => return Err(several(from, &splits)),
            None => files,
        };
        if !self.allow_missing {
            check_whole(from, files.iter().map(|file| file_name(path(file))))?;
        }
        Ok(files)
    }

    /// The files of the chosen split of a list; splits without files do not count.
    ///
    /// # Errors
    /// As [`OpenOptions::select`].
    pub(crate) fn select_parts(
        &self,
        from: &Path,
        parts: BTreeMap<String, Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut parts: BTreeMap<String, Vec<String>> =
            parts.into_iter().filter(|(_, files)| !files.is_empty()).collect();
        let names: BTreeSet<String> = parts.keys().cloned().collect();
        match self.split.as_deref() {
            Some(ALL) => Ok(parts.into_values().flatten().collect()),
            Some(wanted) => {
                let found = names.iter().find(|name| is_split(name, wanted));
                found.and_then(|name| parts.remove(name)).ok_or_else(|| none(from, wanted, &names))
            }
            None if names.len() > 1 => Err(several(from, &names)),
            None => Ok(parts.into_values().flatten().collect()),
        }
    }

    /// Checks that the folders within a class are not different splits.
    ///
    /// # Errors
    /// Those that are, with what to open.
    pub(crate) fn check_class(&self, class: &Path, folders: &[String]) -> Result<()> {
        let mut words = folders.iter().filter_map(|name| Some((name, is_split_folder(name)?)));
        let Some((one, word)) = words.next() else { return Ok(()) };
        if self.split.as_deref() == Some(ALL) || words.all(|(_, other)| is_split(other, word)) {
            return Ok(());
        }
        let what = format!(
            "there are the splits {}: open {}, or join them with split=\"all\"",
            folders.join(", "),
            class.join(one).display()
        );
        Err(Error::Dataset { path: class.to_owned(), what })
    }

    /// The chosen one of folders that are splits; None where they are not, or all are wanted.
    ///
    /// They are splits if all are called so, or two of them mean different ones. One alone may be
    /// a class: a train is a thing that one can see.
    ///
    /// # Errors
    /// As [`OpenOptions::select`].
    pub(crate) fn select_folder(&self, from: &Path, folders: &[String]) -> Result<Option<String>> {
        let word = |name: &String| is_split_folder(name);
        let splits: BTreeSet<String> = folders.iter().filter(|name| word(name).is_some()).cloned().collect();
        let differ = |one: &&str| splits.iter().filter_map(word).any(|other| !is_split(other, one));
        let are_splits = !splits.is_empty()
            && (splits.len() == folders.len() || splits.iter().filter_map(word).any(|one| differ(&one)));
        let Some(wanted) = self.split.as_deref() else {
            return if are_splits { Err(several(from, &splits)) } else { Ok(None) };
        };
        if wanted == ALL {
            return Ok(None);
        }
        let is_wanted = |name: &&String| {
            is_split(&name.to_ascii_lowercase(), wanted)
                || word(name).is_some_and(|found| is_split(found, wanted))
        };
        let mut found = folders.iter().filter(is_wanted);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(Some(one.clone())),
            (Some(one), Some(other)) => Err(Error::Dataset {
                path: from.to_owned(),
                what: format!(
                    "the folders {one} and {other} are both of the split {wanted:?}: open one of them"
                ),
            }),
            (None, _) => Err(none(from, wanted, &folders.iter().cloned().collect())),
        }
    }
}

fn several(from: &Path, splits: &BTreeSet<String>) -> Error {
    let names: Vec<&str> = splits.iter().map(String::as_str).collect();
    let what = format!(
        "there are the splits {}: choose one with split={:?}, or join them with split=\"all\"; a pattern such as \"folder/train*\" \
         names the files of one too",
        names.join(", "),
        names.iter().find(|name| is_split(name, "train")).unwrap_or(&names[0])
    );
    Error::Dataset { path: from.to_owned(), what }
}

fn none(from: &Path, wanted: &str, splits: &BTreeSet<String>) -> Error {
    let names: Vec<&str> = splits.iter().map(String::as_str).collect();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Error::Dataset {
        path: from.to_owned(),
        what: format!("there is no split {wanted:?}; there are: {there}"),
    }
}

/// Checks that of files numbered «n of m» all are there.
fn check_whole(from: &Path, names: impl Iterator<Item = String>) -> Result<()> {
    let mut sets: BTreeMap<(String, u64, String), BTreeSet<u64>> = BTreeMap::new();
    for name in names {
        if let Some((prefix, number, of, rest)) = numbered(&name) {
            sets.entry((prefix.to_owned(), of, rest.to_owned())).or_default().insert(number);
        }
    }
    for ((prefix, of, _), there) in sets {
        // Some count from 1.
        let from_one = u64::from(!there.contains(&0) && there.contains(&of));
        let missing: Vec<u64> =
            (from_one..of + from_one).filter(|number| !there.contains(number)).take(11).collect();
        if missing.is_empty() {
            continue;
        }
        let mut numbers: Vec<String> = missing.iter().take(10).map(u64::to_string).collect();
        if missing.len() > 10 {
            numbers.push("…".to_owned());
        }
        let what = format!(
            "{} of {of} files {prefix:?} are there; missing: {}. Get them, or pass allow_missing=True",
            there.len(),
            numbers.join(", ")
        );
        return Err(Error::Dataset { path: from.to_owned(), what });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(options: &OpenOptions, names: &[&str]) -> std::result::Result<Vec<String>, String> {
        let files: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        let files = options.select(Path::new("data"), files, PathBuf::as_path).map_err(|e| e.to_string())?;
        Ok(files.iter().map(|path| file_name(path)).collect())
    }

    #[test]
    fn splits_are_refused_until_one_is_chosen() {
        let names = ["x-train-0.tar", "x-train-1.tar", "x-val-0.tar"];
        let said = selected(&OpenOptions::default(), &names).unwrap_err();
        assert!(said.contains("splits train, val") && said.contains("split=\"train\""), "{said}");
        let of = |split: &str| OpenOptions { split: Some(split.into()), ..OpenOptions::default() };
        assert_eq!(selected(&of("train"), &names).unwrap().len(), 2);
        assert_eq!(selected(&of("validation"), &names).unwrap(), ["x-val-0.tar"]);
        assert_eq!(selected(&of("all"), &names).unwrap().len(), 3);
        assert!(
            selected(&of("test"), &names).unwrap_err().contains("no split \"test\"; there are: train, val")
        );
        for one in [&["train0.tar", "train1.tar"], &["a-0.tar", "b-0.tar"], &["trainer.csv", "testify.csv"]] {
            assert_eq!(selected(&OpenOptions::default(), one).unwrap().len(), 2, "{one:?}");
        }
        assert!(selected(&OpenOptions::default(), &["Train.csv", "TEST.csv"]).is_err());
    }

    #[test]
    fn folders_name_the_splits_of_files_without_such_names() {
        let names = ["/train/a/train/0.tar", "/train/a/val/0.tar", "/train/a/val/1.tar"];
        let said = selected(&OpenOptions::default(), &names).unwrap_err();
        assert!(said.contains("splits train, val"), "{said}");
        let of = |split: &str| OpenOptions { split: Some(split.into()), ..OpenOptions::default() };
        assert_eq!(selected(&of("valid"), &names).unwrap(), ["0.tar", "1.tar"]);
        assert!(selected(&OpenOptions::default(), &["/x/train_0/0.tar", "/x/val_0/0.tar"]).is_err());
        // The folder above all files says nothing of them, and a word of a name is no split.
        for one in [["/train/val/0.tar", "/train/val/1.tar"], ["/x/test-runs/0.tar", "/x/train-runs/1.tar"]] {
            assert_eq!(selected(&OpenOptions::default(), &one).unwrap().len(), 2, "{one:?}");
        }
    }

    #[test]
    fn values_in_the_names_of_folders_are_found() {
        let of = |names: &[&str]| {
            let paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
            within_values(&paths).count()
        };
        assert_eq!(of(&["/lr=1/label=a/x.jsonl", "/lr=1/label=b/x.jsonl", "/lr=1/x.jsonl"]), 2);
        assert_eq!(of(&["/lr=1/x.jsonl", "/lr=1/y.jsonl"]), 0);
    }

    #[test]
    fn missing_shards_are_named() {
        let names =
            ["train-00000-of-00004.parquet", "train-00001-of-00004.parquet", "train-00003-of-00004.parquet"];
        let said = selected(&OpenOptions::default(), &names).unwrap_err();
        assert!(
            said.contains("3 of 4") && said.contains("missing: 2.") && said.contains("allow_missing"),
            "{said}"
        );
        let allowing = OpenOptions { allow_missing: true, ..OpenOptions::default() };
        assert_eq!(selected(&allowing, &names).unwrap().len(), 3);
        for names in [["x_00000_of_00003.tar", "x_00002_of_00003.tar"], ["x.0-of-3.tar", "x.2-of-3.tar"]] {
            let said = selected(&OpenOptions::default(), &names).unwrap_err();
            assert!(said.contains("2 of 3") && said.contains("missing: 1."), "{said}");
        }
        assert!(selected(&OpenOptions::default(), &["a-1-of-2.tar", "a-2-of-2.tar"]).is_ok());
        assert!(selected(&OpenOptions::default(), &["a-0-of-2.tar", "a-1-of-2.tar"]).is_ok());
    }

    #[test]
    fn folders_of_splits_are_no_classes() {
        let of = |folders: &[&str], split: Option<&str>| {
            let options = OpenOptions { split: split.map(str::to_owned), ..OpenOptions::default() };
            let folders: Vec<String> = folders.iter().map(|name| (*name).to_owned()).collect();
            options.select_folder(Path::new("data"), &folders).map_err(|e| e.to_string())
        };
        assert!(of(&["train", "Val"], None).unwrap_err().contains("splits Val, train"));
        assert_eq!(of(&["train", "val"], Some("valid")).unwrap().as_deref(), Some("val"));
        assert_eq!(of(&["bus", "car", "train"], None).unwrap(), None);
        assert_eq!(of(&["test", "train"], Some("all")).unwrap(), None);
        assert!(of(&["bus"], Some("train")).unwrap_err().contains("there are: bus"));
        assert!(of(&["docs", "test", "train"], None).unwrap_err().contains("splits test, train"));
        assert!(of(&["train_0", "val_0"], None).unwrap_err().contains("splits train_0, val_0"));
        assert_eq!(of(&["train_0", "val_0"], Some("train")).unwrap().as_deref(), Some("train_0"));
        assert!(of(&["train_0", "train_1"], Some("train")).unwrap_err().contains("both of the split"));
        assert_eq!(of(&["testament", "trainer"], None).unwrap(), None);
    }
}
