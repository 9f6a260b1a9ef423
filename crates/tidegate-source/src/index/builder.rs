//! Writes a new index in one step.
//!
//! Flow: formats push entries with keys while they scan files -> `entries`, `keys`, `meta.json` in
//! a temporary folder -> renamed into place.
//! Memory: three write buffers.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidegate_decode::Schema;
use xxhash_rust::xxh3::Xxh3;

use super::entry::{Entry, SizeBounds};
use super::probe::Images;
use super::{Index, Meta, ShardMeta, VERSION, folders, make_folder, trust};
use crate::left_out::LeftOut;
use crate::{Error, Result};

/// A temporary folder next to `target`, removed on drop unless it was renamed.
fn partial(target: &Path, data_owner: u32) -> std::io::Result<TempDir> {
    let parent = target.parent().unwrap_or(Path::new("."));
    make_folder(parent, data_owner)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let open_to_readers = Permissions::from_mode(0o755);
    let mut folder = tempfile::Builder::new();
    folder.prefix(&format!("{name}.")).suffix(".partial").permissions(open_to_readers).tempdir_in(parent)
}

/// Whether two files are there and have the same bytes.
fn is_same(one: &Path, other: &Path) -> bool {
    let open = |path: &Path| File::open(path).map(std::io::BufReader::new);
    let (Ok(mut one), Ok(mut other)) = (open(one), open(other)) else { return false };
    loop {
        let (Ok(left), Ok(right)) = (one.fill_buf(), other.fill_buf()) else { return false };
        let len = left.len().min(right.len());
        if left[..len] != right[..len] {
            return false;
        }
        if len == 0 {
            return left.len() == right.len();
        }
        one.consume(len);
        other.consume(len);
    }
}

/// Collects the entries of a dataset and writes its index.
pub struct Builder {
    dir: TempDir,
    target: PathBuf,
    /// Where the index of these data would be if the folder of the data could be used.
    preferred: PathBuf,
    entries: BufWriter<File>,
    offsets: BufWriter<File>,
    text: BufWriter<File>,
    text_bytes: u64,
    hash: Xxh3,
    meta: Meta,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Builder({} samples for {})", self.meta.samples, self.target.display())
    }
}

impl Builder {
    /// Starts an index next to the data, or in the user's cache folder where the data are
    /// read-only.
    ///
    /// # Errors
    /// When neither folder can be written.
    pub fn new(beside: &Path, name: u64, identity: u64, format: &str) -> Result<Self> {
        let (mut refused, owner, folders) = (None, trust::owner_of(beside), folders(beside, name));
        for target in &folders {
            match partial(target, owner) {
                Ok(dir) => {
                    return Self::within(dir, (target.clone(), folders[0].clone()), identity, format);
                }
                Err(error) => refused = Some(Error::io(target)(error)),
            }
        }
        Err(refused.unwrap_or_else(|| Error::Config("no folder for an index".into())))
    }

    fn within(
        dir: TempDir,
        (target, preferred): (PathBuf, PathBuf),
        identity: u64,
        format: &str,
    ) -> Result<Self> {
        let create = |name: &str| {
            let path = dir.path().join(name);
            trust::create(&path).map(BufWriter::new).map_err(Error::io(path))
        };
        let (entries, offsets, text) = (create("entries")?, create("offsets")?, create("text")?);
        let meta = Meta {
            version: VERSION,
            format: format.to_owned(),
            identity,
            samples: 0,
            fingerprint: 0,
            schema: Vec::new(),
            classes: Vec::new(),
            shards: Vec::new(),
            left_out: Vec::new(),
            uncertain: Vec::new(),
            columns: None,
            missing: Vec::new(),
            bounds: SizeBounds::default(),
            keys_bytes: 0,
            seal: None,
        };
        Ok(Self { dir, target, preferred, entries, offsets, text, text_bytes: 0, hash: Xxh3::new(), meta })
    }

    /// Adds the next sample with its key and its images.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, mut entry: Entry, key: &str, images: &Images) -> Result<()> {
        images.write(&mut entry);
        let bytes = entry.to_bytes();
        self.hash.update(&bytes);
        self.hash.update(key.as_bytes());
        let io = Error::io(self.dir.path());
        let mut write = || -> std::io::Result<()> {
            self.entries.write_all(&bytes)?;
            self.offsets.write_all(&self.text_bytes.to_le_bytes())?;
            self.text.write_all(key.as_bytes())
        };
        write().map_err(io)?;
        self.text_bytes += key.len() as u64;
        let bounds = &mut self.meta.bounds;
        bounds.total_bytes += u64::from(entry.len);
        bounds.sample_bytes = bounds.sample_bytes.max(u64::from(entry.len));
        bounds.side = bounds.side.max(images.side);
        if images.scratch_bytes > bounds.scratch_bytes {
            (bounds.scratch_bytes, bounds.scratch_id) = (images.scratch_bytes, self.meta.samples);
        }
        if entry.decoded_bytes() > bounds.decoded_bytes {
            (bounds.decoded_bytes, bounds.decoded_id) = (entry.decoded_bytes(), self.meta.samples);
        }
        self.meta.samples += 1;
        Ok(())
    }

    /// Counts something that is no sample: see [`LeftOut`].
    pub fn leave_out(&mut self, what: &str, example: &str, warn: bool) {
        self.add_left_out(LeftOut { what: what.into(), count: 1, example: example.into(), warn });
    }

    /// Counts what is no sample.
    pub fn add_left_out(&mut self, more: LeftOut) {
        more.count_in(&mut self.meta.left_out);
    }

    /// Notes what is uncertain about a field, in words.
    pub fn note_uncertain(&mut self, what: String) {
        self.meta.uncertain.push(what);
    }

    /// Notes the columns of a table whose files have different ones.
    pub fn note_columns(&mut self, columns: serde_json::Value) {
        self.meta.columns = Some(columns);
    }

    /// Notes how many samples lack each field of the schema.
    pub fn note_missing(&mut self, missing: Vec<u64>) {
        if missing.iter().any(|&count| count > 0) {
            self.meta.missing = missing;
        }
    }

    /// Samples so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.meta.samples
    }

    /// Writes the index in one step: afterwards all of it is there, or none.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self, schema: Schema, classes: Vec<String>, shards: Vec<ShardMeta>) -> Result<Index> {
        for shard in &shards {
            self.hash.update(shard.name.as_bytes());
            self.hash.update(&shard.bytes.to_le_bytes());
        }
        for class in &classes {
            self.hash.update(class.as_bytes());
        }
        self.meta.fingerprint = self.hash.digest();
        let head = (self.meta.samples + 1) * 8;
        self.meta.keys_bytes = head + self.text_bytes;
        (self.meta.schema, self.meta.classes, self.meta.shards) = (schema, classes, shards);
        let target = self.target.clone();
        self.write_keys(head).map_err(Error::io(&target))?;
        let Self { dir, mut meta, preferred, .. } = self;
        meta.seal();
        let json = serde_json::to_vec_pretty(&meta).map_err(|e| Error::Config(e.to_string()))?;
        let commit = || -> std::io::Result<()> {
            let meta = dir.path().join("meta.json");
            trust::create(&meta)?.write_all(&json)?;
            if ["entries", "keys"].iter().all(|file| is_same(&dir.path().join(file), &target.join(file))) {
                // The same samples: a profile and checkpoints that are kept there still hold.
                for file in ["", "entries", "keys"] {
                    trust::take_rights_away(&target.join(file))?;
                }
                return fs::rename(meta, target.join("meta.json"));
            }
            if target.exists() {
                fs::remove_dir_all(&target)?;
            }
            fs::rename(dir.path(), &target)
        };
        commit().map_err(Error::io(&target))?;
        Index::load(target.clone(), preferred, meta).ok_or_else(|| Error::Dataset {
            path: target,
            what: "the new index is gone: another process removed it; open the dataset again".into(),
        })
    }

    /// Joins offsets (shifted past their own table) and text into `keys`.
    fn write_keys(&mut self, head: u64) -> std::io::Result<()> {
        self.entries.flush()?;
        self.offsets.write_all(&self.text_bytes.to_le_bytes())?;
        self.offsets.flush()?;
        self.text.flush()?;
        let path = |name: &str| self.dir.path().join(name);
        let mut keys = BufWriter::new(trust::create(&path("keys"))?);
        let mut offsets = std::io::BufReader::new(File::open(path("offsets"))?);
        let mut word = [0; 8];
        for _ in 0..=self.meta.samples {
            std::io::Read::read_exact(&mut offsets, &mut word)?;
            keys.write_all(&(u64::from_le_bytes(word) + head).to_le_bytes())?;
        }
        std::io::copy(&mut File::open(path("text"))?, &mut keys)?;
        keys.flush()?;
        fs::remove_file(path("offsets"))?;
        fs::remove_file(path("text"))
    }
}
