//! A profile at rest: one JSON document with the figures for people and the sketches for merging.
//!
//! Flow: [`Profile`] <-> JSON <-> a file beside the data's index.
//! Memory: the document, and once more as text.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tidegate_source::{Source, open};

use super::measure::{self, Measure};
use super::{Profile, field};
use crate::atomic_file;
use crate::dataset::scan::Failed;
use crate::{Error, Result};

const VERSION: u32 = 1;

/// The document: what only people read is left out when it is read.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    name: String,
    fingerprint: String,
    edition: String,
    classes: Vec<String>,
    samples: u64,
    of: u64,
    failed: u64,
    failures: Vec<Failed>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    summary: Option<serde_json::Value>,
    bytes: measure::Stored,
    fields: Vec<field::Stored>,
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn bytes_of(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|e| Error::Config(format!("a sketch of this profile is no base64: {e}")))
}

/// What a sketch refuses that we made.
pub(super) fn sketch(error: tidegate_sketch::Error) -> Error {
    Error::Config(error.to_string())
}

/// What a sketch refuses that was read.
pub(super) fn broken(error: tidegate_sketch::Error) -> Error {
    Error::Config(format!("this profile is damaged: {error}; make it anew with `tidegate profile`"))
}

/// Where the profile of a dataset lies: beside its index.
///
/// # Errors
/// Where it has none: made-up data.
pub fn path_of(source: &dyn Source) -> Result<PathBuf> {
    let dir = source.side_car().ok_or_else(|| {
        Error::Config(format!("{} lies nowhere that a profile could lie beside: give a path", source.name()))
    })?;
    Ok(dir.join(format!("profile-{:016x}.json", source.fingerprint())))
}

impl Profile {
    /// The same once more.
    pub(super) fn again(&self) -> Result<Self> {
        Self::read(self.document(None)?)
    }

    /// The document as JSON: under `summary` what people read, and the sketches as base64.
    ///
    /// # Errors
    /// None that is known.
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
            of: self.of,
            failed: self.failed,
            failures: self.failures.clone(),
            summary,
            bytes: self.bytes.store(),
            fields: self.fields.iter().map(field::Field::store).collect::<Result<_>>()?,
        })
    }

    /// A profile that was stored.
    ///
    /// # Errors
    /// [`Error::Config`] for what is none, is damaged, or is of another version.
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let none = |e: serde_json::Error| Error::Config(format!("this is no profile: {e}"));
        let head: Head = serde_json::from_str(text).map_err(none)?;
        if head.version != VERSION {
            return Err(Error::Config(format!(
                "this profile has version {}, this program reads {VERSION}: make it anew with `tidegate profile`",
                head.version
            )));
        }
        Self::read(serde_json::from_str(text).map_err(none)?)
    }

    fn read(document: Document) -> Result<Self> {
        let number = |text: &str| {
            u64::from_str_radix(text, 16)
                .map_err(|_| Error::Config(format!("this is no profile: {text:?} is no fingerprint")))
        };
        Ok(Self {
            fingerprint: number(&document.fingerprint)?,
            edition: number(&document.edition)?,
            name: document.name,
            classes: document.classes,
            samples: document.samples,
            of: document.of,
            failed: document.failed,
            failures: document.failures,
            bytes: Measure::load(&document.bytes)?,
            fields: document.fields.into_iter().map(field::Field::load).collect::<Result<_>>()?,
        })
    }

    /// Writes it to a file, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = self.to_json()?;
        atomic_file::write_whole(path, |out| out.write_all(json.as_bytes()))
    }

    /// Reads one from a file.
    ///
    /// # Errors
    /// As [`Profile::from_json`], naming the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::from_json(&text).map_err(|e| Error::Config(format!("{}: {e}", path.display())))
    }

    /// The one in a file, or the one that lies beside a dataset.
    ///
    /// # Errors
    /// As [`Profile::load`] and [`Profile::beside`]; what is neither.
    pub fn find(what: &str) -> Result<Self> {
        let path = Path::new(what);
        let mut first = [0];
        let json = path.is_file()
            && File::open(path).is_ok_and(|mut f| f.read_exact(&mut first).is_ok() && first == *b"{");
        if json || path.extension().is_some_and(|e| e == "json") {
            return Self::load(path);
        }
        Self::beside(&*open(what, false)?)
    }

    /// The one that lies beside a dataset.
    ///
    /// # Errors
    /// Where there is none, and where the data have changed since.
    pub fn beside(source: &dyn Source) -> Result<Self> {
        let (path, name) = (path_of(source)?, source.name());
        if !path.exists() {
            return Err(Error::Config(format!(
                "{name} has no profile, or has changed since one was made: make one with `tidegate profile {name}`"
            )));
        }
        let found = Self::load(&path)?;
        if found.edition != source.edition() {
            return Err(Error::Config(format!(
                "{name} has changed since its profile was made: make it anew with `tidegate profile {name}`"
            )));
        }
        Ok(found)
    }
}
