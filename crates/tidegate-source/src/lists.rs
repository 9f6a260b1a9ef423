//! Lists of shards that other programs keep beside them: Energon's splits, and indexes of wids.
//!
//! Flow: a folder, or a file of JSON -> the shards of a split, and how many samples they should
//! have; called by `open`.
//! Memory: one list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;
use yaml_rust2::{Yaml, YamlLoader};

use crate::files::glob;
use crate::parts::OpenOptions;
use crate::{Error, Result};

/// Where Energon keeps what it knows of a dataset.
pub(crate) const ENERGON: &str = ".nv-meta";
/// The most bytes of a list.
const MOST_BYTES: u64 = 64 << 20;
/// The most blanks and marks before the words of a line.
const MOST_INDENT: usize = 64;
/// The most shards that a list may name.
const MOST_SHARDS: usize = 1_000_000;

/// The shards that a list names.
#[derive(Debug)]
pub(crate) struct List {
    /// The file of the list.
    pub(crate) path: PathBuf,
    pub(crate) shards: Vec<PathBuf>,
    /// The samples of all of them, where the list says it.
    samples: Option<u64>,
}

impl List {
    /// Checks that the shards have as many samples as the list says.
    ///
    /// # Errors
    /// Other numbers.
    pub(crate) fn check(&self, found: u64) -> Result<()> {
        match self.samples {
            Some(samples) if samples != found => {
                let what = format!(
                    "it lists {samples} samples, and the shards have {found}: get the shards that it was made \
                     of, or open them by a pattern"
                );
                Err(Error::Dataset { path: self.path.clone(), what })
            }
            _ => Ok(()),
        }
    }
}

/// Energon's list in a folder; None where there is none.
///
/// # Errors
/// A list that cannot be read; several splits, unless one was chosen; a shard that is missing.
pub(crate) fn energon(folder: &Path, options: &OpenOptions) -> Result<Option<List>> {
    let path = folder.join(ENERGON).join("split.yaml");
    if !path.is_file() {
        return Ok(None);
    }
    let wrong = |what: &str| Error::Dataset { path: path.clone(), what: what.into() };
    let text = String::from_utf8(small(&path)?).map_err(|_| wrong("this is not UTF-8"))?;
    // A few lines with references can stand for gigabytes, and deep ones exhaust the stack.
    let lines = || text.lines().map(|line| line.split(" #").next().unwrap_or_default());
    if lines().filter(|line| !line.starts_with('#')).any(|line| line.contains(['&', '*'])) {
        return Err(wrong("it has references (& and *), which are not read: write the names out"));
    }
    if lines().any(|line| line.len() - line.trim_start_matches([' ', '\t', '-', '?']).len() > MOST_INDENT) {
        return Err(wrong("its lines are indented too deeply"));
    }
    let documents = YamlLoader::load_from_str(&text).map_err(|e| wrong(&format!("no YAML: {e}")))?;
    let document = documents.first().unwrap_or(&Yaml::BadValue);
    let parts = document["split_parts"].as_hash().ok_or_else(|| wrong("split_parts is missing"))?;
    let mut splits = BTreeMap::new();
    for (name, shards) in parts {
        let name = name.as_str().ok_or_else(|| wrong("the name of a split is no text"))?;
        splits.insert(name.to_owned(), names(shards).ok_or_else(|| wrong("a split is no list of shards"))?);
    }
    let excluded: BTreeSet<String> = match &document["exclude"] {
        Yaml::BadValue | Yaml::Null => BTreeSet::new(),
        list => names(list).ok_or_else(|| wrong("exclude is no list"))?.into_iter().collect(),
    };
    if let Some(one) = excluded.iter().find(|name| !name.ends_with(".tar")) {
        let what = format!("exclude names {one:?}, a single sample: only whole shards can be left out");
        return Err(wrong(&what));
    }
    let mut chosen = options.select_parts(folder, splits)?;
    chosen.retain(|name| !excluded.contains(name));
    let shards = below(&path, folder, &chosen)?;
    present(&path, &shards, options)?;
    Ok(Some(List { path, shards, samples: None }))
}

/// The texts of a list, with braces written out.
fn names(list: &Yaml) -> Option<Vec<String>> {
    let texts: Option<Vec<&str>> = list.as_vec()?.iter().map(Yaml::as_str).collect();
    let texts = texts?;
    let count = texts.iter().fold(0usize, |count, text| count.saturating_add(glob::count(text)));
    (count <= MOST_SHARDS).then(|| texts.into_iter().flat_map(glob::braces).collect())
}

/// An index of wids; any other object has no list.
#[derive(Deserialize)]
struct Wids<'a> {
    #[serde(borrow)]
    shardlist: Option<&'a RawValue>,
    #[serde(default)]
    base_path: String,
}

#[derive(Deserialize)]
struct Shard {
    url: String,
    nsamples: u64,
}

/// The list of a file, if it is an index of wids.
///
/// # Errors
/// A list that cannot be read, of shards in stores, or of a shard that is missing.
pub(crate) fn wids(path: &Path, options: &OpenOptions) -> Result<Option<List>> {
    if fs::metadata(path).map_err(Error::io(path))?.len() > MOST_BYTES {
        return Ok(None);
    }
    let text = small(path)?;
    if !text.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    let Ok(Wids { shardlist: Some(list), base_path }) = serde_json::from_slice(&text) else {
        return Ok(None);
    };
    let wrong = |what: String| Error::Dataset { path: path.to_owned(), what };
    let list: Vec<Shard> = serde_json::from_str(list.get()).map_err(|_| {
        wrong("an index of wids needs a list \"shardlist\" with url and nsamples of each shard".into())
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    let named = |shard: &Shard| {
        let place = Path::new(&base_path).join(shard.url.trim_start_matches("file:"));
        place.to_string_lossy().into_owned()
    };
    let urls: Vec<String> = list.iter().map(named).collect();
    if let Some(url) = urls.iter().find(|url| url.contains("://")) {
        return Err(wrong(format!("it lists {url}, which is in a store: open the shards by their URL")));
    }
    let all = below(path, base, &urls)?;
    let count = all.len();
    let shards = match options.split {
        Some(_) => options.select(path, all, PathBuf::as_path)?,
        None => all,
    };
    present(path, &shards, options)?;
    let samples = list.iter().fold(0u64, |sum, shard| sum.saturating_add(shard.nsamples));
    let samples = Some(samples).filter(|_| !options.allow_missing && shards.len() == count);
    Ok(Some(List { path: path.to_owned(), shards, samples }))
}

/// The paths of shards that a list names; all are in its folder, or in folders there.
fn below(list: &Path, folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let is_below = |name: &&String| {
        Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    };
    if let Some(name) = names.iter().find(|name| !is_below(name)) {
        let what = format!(
            "it lists {name:?}, which is outside of the dataset: write names that are relative to the folder, or \
             open the shards by a pattern"
        );
        return Err(Error::Dataset { path: list.to_owned(), what });
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

fn small(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
    if bytes > MOST_BYTES {
        let what = format!("a list of {bytes} bytes: at most {MOST_BYTES} are read");
        return Err(Error::Dataset { path: path.to_owned(), what });
    }
    fs::read(path).map_err(Error::io(path))
}

/// Checks that the listed shards are there.
fn present(list: &Path, shards: &[PathBuf], options: &OpenOptions) -> Result<()> {
    let missing = shards.iter().find(|shard| !shard.is_file()).filter(|_| !options.allow_missing);
    let what = match (shards.iter().find(|shard| shard.is_file()), missing) {
        (None, None) => "it lists no shards that are there".to_owned(),
        (_, Some(shard)) => {
            format!("it lists {}, which is missing: get it, or pass allow_missing=True", shard.display())
        }
        _ => return Ok(()),
    };
    Err(Error::Dataset { path: list.to_owned(), what })
}
