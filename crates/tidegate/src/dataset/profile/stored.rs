//! The profile file: one JSON document with figures for people and sketches for merging.
//!
//! Flow: [`Profile`] <-> JSON <-> a file next to the data's index.
//! Memory: the document, and once more as text.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_source::{Source, open};

use super::measure::{self, Measure};
use super::{Profile, field};
use crate::atomic_file;
use crate::loader::FailedSample;
use crate::{Error, Result};

const VERSION: u32 = 1;

/// The document. The summary is for people and is skipped when a profile is read.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    name: String,
    fingerprint: String,
    edition: String,
    classes: Vec<String>,
    samples: u64,
    #[serde(rename = "of")]
    total: u64,
    failed: u64,
    failures: Vec<FailedSample>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    summary: Option<serde_json::Value>,
    bytes: measure::Stored,
    fields: Vec<field::Stored>,
}

/// The path of a dataset's profile, next to its index.
///
/// # Errors
/// [`Error::Config`] for synthetic data, which has no folder.
pub fn default_path(source: &dyn Source) -> Result<PathBuf> {
    let dir = source.index_dir().ok_or_else(|| {
        Error::Config(format!("{} has no folder for its profile: give a path", source.name()))
    })?;
    Ok(dir.join(format!("profile-{:016x}.json", source.fingerprint())))
}

impl Profile {
    /// Copies the profile. Not all sketches can be cloned, so the copy goes through the document.
    pub(super) fn try_clone(&self) -> Result<Self> {
        Self::read(self.document(None)?)
    }

    /// The document as JSON: figures for people under `summary`, and sketches as base64.
    ///
    /// # Errors
    /// Never in practice: all of it can be written.
    pub fn to_json(&self) -> Result<String> {
        let document = self.document(Some(self.summary()?))?;
        serde_json::to_string(&document).map_err(|e| Error::Config(e.to_string()))
    }

    fn document(&self, summary: Option<serde_json::Value>) -> Result<Document> {
        Ok(Document {
            version: VERSION,
            name: self.name.clone(),
            fingerprint: format!("{:016x}", self.fingerprint),
            edition: format!("{:016x}", self.edition),
            classes: self.classes.clone(),
            samples: self.samples,
            total: self.total,
            failed: self.failed,
            failures: self.failures.clone(),
            summary,
            bytes: self.bytes.store(),
            fields: self.fields.iter().map(field::Field::store).collect::<Result<_>>()?,
        })
    }

    /// Reads a profile from JSON.
    ///
    /// # Errors
    /// [`Error::Config`] for text that is no profile, a damaged one, or one of another version.
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let none = |e: serde_json::Error| Error::Config(format!("this is no profile: {e}"));
        let head: Head = serde_json::from_str(text).map_err(none)?;
        if head.version != VERSION {
            return Err(Error::Config(format!(
                "this profile has version {}, and this program reads version {VERSION}: make a new one \
                 with \
                 `tidegate profile`",
                head.version
            )));
        }
        Self::read(serde_json::from_str(text).map_err(none)?)
    }

    fn read(document: Document) -> Result<Self> {
        let number = |text: &str| {
            u64::from_str_radix(text, 16)
                .map_err(|_| Error::Config(format!("this is no profile: {text:?} is not a fingerprint")))
        };
        Ok(Self {
            fingerprint: number(&document.fingerprint)?,
            edition: number(&document.edition)?,
            name: document.name,
            classes: document.classes,
            samples: document.samples,
            total: document.total,
            failed: document.failed,
            failures: document.failures,
            bytes: Measure::load(&document.bytes)?,
            fields: document.fields.into_iter().map(field::Field::load).collect::<Result<_>>()?,
        })
    }

    /// Writes the profile to a file, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = self.to_json()?;
        atomic_file::write_whole(path, |out| out.write_all(json.as_bytes()))
    }

    /// Reads a profile from a file.
    ///
    /// # Errors
    /// As [`Profile::from_json`], naming the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::from_json(&text).map_err(|e| Error::Config(format!("{}: {e}", path.display())))
    }

    /// Reads a profile from a file, or the profile of the dataset that `what` opens.
    ///
    /// # Errors
    /// As [`Profile::load`] and [`Profile::load_for`]; a path that is neither.
    pub fn find(what: &str) -> Result<Self> {
        let path = Path::new(what);
        let mut first = [0];
        let json = path.is_file()
            && File::open(path).is_ok_and(|mut f| f.read_exact(&mut first).is_ok() && first == *b"{");
        if json || path.extension().is_some_and(|e| e == "json") {
            return Self::load(path);
        }
        Self::load_for(&*open(what, false)?)
    }

    /// Reads the profile that is next to a dataset.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none, or if the data have changed since it was made.
    pub fn load_for(source: &dyn Source) -> Result<Self> {
        let (path, name) = (default_path(source)?, source.name());
        if !path.exists() {
            return Err(Error::Config(format!(
                "{name} has no profile, or has changed since one was made: make one with \
                 `tidegate profile '{name}'`"
            )));
        }
        let found = Self::load(&path)?;
        if found.edition != source.content_version() {
            return Err(Error::Config(format!(
                "{name} has changed since its profile was made: make a new one with `tidegate profile \
                 '{name}'`"
            )));
        }
        Ok(found)
    }
}
