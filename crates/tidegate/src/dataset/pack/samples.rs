//! The samples of a source as shards store them, in id order, encoded on all cores.
//!
//! Flow: ids -> read and encoded, some at once -> bytes of one sample after another.
//! Memory: the stored and the encoded bytes of up to 256 samples or 64 MiB, whichever is less, or
//! of one larger sample; 8 bytes a sample while their names are compared.

use std::collections::{HashSet, VecDeque};

use tidegate_data::{Error, Result};
use tidegate_decode::Value;
use tidegate_source::{Access, Source, SourceExt, tar};
use xxhash_rust::xxh3::xxh3_64;

use super::columns::Column;
use super::shard::{self, Format};

/// Samples, and stored bytes of samples, that are encoded at once.
const SAMPLES: u64 = 256;
const BYTES: u64 = 64 << 20;

/// See the head of this file.
pub(super) struct Samples<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) columns: &'a [Column],
    pub(super) format: Format,
    /// How members of an archive are called, if not by numbers.
    names: Option<KeyOf>,
    threads: usize,
    /// What comes next: ids in order.
    ready: VecDeque<(u64, Result<Vec<u8>>)>,
}

impl<'a> Samples<'a> {
    /// The samples of a source, from none on.
    ///
    /// # Errors
    /// When the names of samples cannot be read.
    pub(super) fn new(source: &'a dyn Source, columns: &'a [Column], format: Format) -> Result<Self> {
        // Groups and compressed archives are read in order, by one.
        let threads = match source.access() {
            Access::Random => std::thread::available_parallelism().map_or(2, usize::from),
            _ => 1,
        };
        let names = if format == Format::Tar { names(source)? } else { None };
        Ok(Self { source, columns, format, names, threads, ready: VecDeque::new() })
    }

    /// Whether members of an archive are called as the samples are.
    pub(super) fn has_names(&self) -> bool {
        self.names.is_some()
    }

    /// The member of an archive that holds the names of classes, if there are any.
    pub(super) fn classes_member(&self) -> Result<Option<Vec<u8>>> {
        let classes = self.source.classes();
        if self.format != Format::Tar || classes.is_empty() {
            return Ok(None);
        }
        let mut member = Vec::new();
        let text = serde_json::Value::from(classes).to_string();
        tar::write_member(&mut member, tar::CLASSES, text.as_bytes()).map_err(Error::io(tar::CLASSES))?;
        Ok(Some(member))
    }

    /// The bytes of sample `id`, which follows the last one that was asked for.
    pub(super) fn next(&mut self, id: u64) -> Result<Vec<u8>> {
        if self.ready.front().is_none_or(|(ready, _)| *ready != id) {
            self.ready.clear();
            self.encode_from(id)?;
        }
        let (_, bytes) =
            self.ready.pop_front().ok_or_else(|| Error::Internal(format!("sample {id} was not encoded")))?;
        bytes
    }

    /// Takes back the last sample, which will be asked for again.
    pub(super) fn put_back(&mut self, id: u64, bytes: Vec<u8>) {
        self.ready.push_front((id, Ok(bytes)));
    }

    /// Encodes the samples from `id` on, as many as fit.
    fn encode_from(&mut self, id: u64) -> Result<()> {
        let ids: Vec<u64> = (id..self.source.len().min(id + SAMPLES)).collect();
        let located = self.source.locate(&ids)?;
        let mut bytes = 0;
        let fits = located.iter().take_while(|at| {
            bytes += u64::from(at.entry.len);
            bytes <= BYTES
        });
        let ids = &ids[..fits.count().max(1)];
        let this = &*self;
        let encoded: Vec<_> = std::thread::scope(|scope| {
            let parts = ids.chunks(ids.len().div_ceil(this.threads));
            let encode = |part: &'_ [u64]| part.iter().map(|&id| (id, this.bytes(id))).collect::<Vec<_>>();
            let threads: Vec<_> = parts.map(|part| scope.spawn(move || encode(part))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().flat_map(join).collect()
        });
        self.ready.extend(encoded);
        Ok(())
    }

    fn bytes(&self, id: u64) -> Result<Vec<u8>> {
        let source = self.source;
        let (at, data) = source.fetch(id)?;
        let values = source.parse(&at, &data).map_err(|e| source.sample_error(&at, "", &e))?;
        let bytes = match self.format {
            Format::Mds => {
                // One column more than fields: for the name.
                let name = if self.columns.len() > values.len() { Some(source.key(id)?) } else { None };
                let mut values = values;
                values.extend(name.iter().map(|name| Value::Bytes(name.as_bytes())));
                shard::mds_row(self.columns, &values)
            }
            Format::Tar => {
                let named =
                    |key: KeyOf| Ok::<_, tidegate_source::Error>(key(&source.key(id)?).map(str::to_owned));
                let key = self.names.map(named).transpose()?.flatten();
                shard::tar_members(self.columns, &key.unwrap_or_else(|| format!("{id:09}")), &values)
            }
        };
        bytes.map_err(|e| source.sample_error(&at, "", &e).into())
    }
}

/// The key of a sample in an archive, from its name in the source.
type KeyOf = fn(&str) -> Option<&str>;

/// The column for the names of samples.
///
/// # Errors
/// An archive, which has the names already; a source without names; a field of that name.
pub(super) fn name_column(source: &dyn Source, format: Format, name: &str) -> Result<Column> {
    let refuse = |why: &str| Err(Error::Config(format!("names={name:?}: {why}")));
    if format == Format::Tar {
        return refuse(
            "this column is for MDS; archives keep the names of samples as those of their members",
        );
    }
    if key_of(source).is_none() {
        return refuse("the samples of this source have no names; those of folders and archives have");
    }
    if source.schema().iter().any(|field| field.name == name) {
        return refuse("the source has a field of this name; choose another");
    }
    Ok(Column::text(name))
}

/// How the key of a sample follows from its name, where samples have names of their own.
fn key_of(source: &dyn Source) -> Option<KeyOf> {
    match &*source.index()?.meta.format {
        "folder" => Some(tar::sample_key),
        // A key already.
        "tar" => Some(|name| Some(name)),
        _ => None,
    }
}

/// How the samples are called, if they have names of their own, and no two have the same up to the
/// extension.
fn names(source: &dyn Source) -> Result<Option<KeyOf>> {
    let Some(key) = key_of(source) else { return Ok(None) };
    let mut seen = HashSet::new();
    for id in 0..source.len() {
        if !key(&source.key(id)?).is_some_and(|key| seen.insert(xxh3_64(key.as_bytes()))) {
            return Ok(None);
        }
    }
    Ok(Some(key))
}
