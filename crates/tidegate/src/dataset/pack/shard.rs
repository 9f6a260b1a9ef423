//! Writers of one shard: MDS v2 and tar.
//!
//! Flow: the bytes of samples -> a [`ShardWriter`] -> a file and, for MDS, its entry in the index.
//! Memory: of tar one write buffer; of MDS the rows of the shard, because the offset table is
//! first.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tidegate_data::{Error, Result};
use tidegate_decode::Value;
use tidegate_source::tar;

use super::columns::{Column, encode, npy};

/// The container of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// MosaicML MDS v2: O(1) access, typed columns, read by the stock library.
    Mds,
    /// WebDataset tar.
    Tar,
}

impl Format {
    /// The name of a shard.
    pub(super) fn shard_name(self, shard: u64) -> String {
        match self {
            Self::Mds => format!("shard.{shard:05}.mds"),
            Self::Tar => format!("shard-{shard:05}.tar"),
        }
    }

    /// The name of the note that a shard is finished.
    pub(super) fn note_name(self, shard: u64) -> String {
        format!(".{}.done", self.shard_name(shard))
    }
}

/// Writes one shard.
pub(super) trait ShardWriter {
    /// The size of the shard with one more sample.
    fn bytes_with(&self, sample: &[u8]) -> u64;
    /// Adds a sample.
    fn push(&mut self, sample: &[u8]) -> Result<()>;
    /// Writes the rest of the shard, and returns its index entry if the format has an index.
    fn finish(self: Box<Self>) -> Result<Option<Json>>;
}

/// Begins a shard in the file `partial`, which will be renamed to `path`. Also returns the largest
/// shard that the format allows.
pub(super) fn create(
    format: Format,
    partial: &Path,
    path: &Path,
    columns: &[Column],
) -> Result<(Box<dyn ShardWriter>, u64)> {
    let file = File::create(partial).map_err(Error::io(partial))?;
    Ok(match format {
        Format::Mds => (Box::new(MdsShard::new(file, path, columns)), u64::from(u32::MAX)),
        Format::Tar => {
            let (out, path) = (BufWriter::new(file), partial.to_owned());
            (Box::new(TarShard { out, path, bytes: 0 }), u64::MAX)
        }
    })
}

/// An archive ends with two blocks of zeros.
const TAR_END: [u8; 1024] = [0; 1024];

#[derive(Debug)]
struct TarShard {
    out: BufWriter<File>,
    path: PathBuf,
    bytes: u64,
}

fn tar_bytes<'a>(value: &Value<'a>) -> Result<std::borrow::Cow<'a, [u8]>> {
    Ok(match value {
        Value::Bytes(b) => (*b).into(),
        Value::Int(x) => x.to_string().into_bytes().into(),
        Value::Float(x) => x.to_string().into_bytes().into(),
        Value::Quoted(text) => text.text()?.into(),
        Value::Missing => Vec::new().into(),
    })
}

/// The members of a sample in an archive.
pub(super) fn tar_members(columns: &[Column], key: &str, values: &[Value<'_>]) -> Result<Vec<u8>> {
    let mut members = Vec::new();
    for (column, value) in columns.iter().zip(values).filter(|(_, v)| **v != Value::Missing) {
        let array = npy(&column.kind, value)?;
        let (name, bytes) = (
            format!("{key}.{}", column.name),
            array.map_or_else(|| tar_bytes(value), |array| Ok(array.into()))?,
        );
        // For the header and the padding of the last block.
        members.reserve(bytes.len() + 1024);
        tar::write_member(&mut members, &name, &bytes).map_err(Error::io(&name))?;
    }
    if members.is_empty() {
        // An archive would not have the sample at all.
        return Err(Error::Config("it lacks every field: leave it out with source.select".into()));
    }
    Ok(members)
}

impl ShardWriter for TarShard {
    fn bytes_with(&self, sample: &[u8]) -> u64 {
        self.bytes + (sample.len() + TAR_END.len()) as u64
    }
    fn push(&mut self, sample: &[u8]) -> Result<()> {
        self.bytes += sample.len() as u64;
        self.out.write_all(sample).map_err(Error::io(&self.path))
    }
    fn finish(mut self: Box<Self>) -> Result<Option<Json>> {
        let end = self.out.write_all(&TAR_END).and_then(|()| self.out.flush());
        end.and_then(|()| self.out.get_ref().sync_all()).map_err(Error::io(&self.path))?;
        Ok(None)
    }
}

/// An MDS shard. Its rows are collected in memory, because the offset table is first.
#[derive(Debug)]
struct MdsShard {
    out: File,
    path: PathBuf,
    /// The description of the columns, and its text.
    config: Json,
    text: String,
    rows: Vec<u8>,
    /// Where each row ends in `rows`.
    ends: Vec<u32>,
}

impl MdsShard {
    fn new(out: File, path: &Path, columns: &[Column]) -> Self {
        let list = |f: &dyn Fn(&Column) -> Json| columns.iter().map(f).collect::<Vec<_>>();
        let config = json!({
            "column_encodings": list(&|c| json!(c.encoding)),
            "column_names": list(&|c| json!(c.name)),
            "column_sizes": list(&|c| json!(c.size)),
            "compression": null,
            "format": "mds",
            "hashes": [],
            "size_limit": null,
        });
        let (path, text) = (path.to_owned(), config.to_string());
        Self { out, path, config, text, rows: Vec::new(), ends: Vec::new() }
    }

    /// Bytes before the rows: the number of samples, the offsets of rows and of their end, and the
    /// description of the columns.
    fn head_bytes(&self, samples: usize) -> usize {
        4 * (samples + 2) + self.text.len()
    }
}

/// The row of a sample in MDS: the lengths of values without a fixed size, then all values.
pub(super) fn mds_row(columns: &[Column], values: &[Value<'_>]) -> Result<Vec<u8>> {
    let parts = columns.iter().zip(values).map(|(c, v)| encode(c, v)).collect::<Result<Vec<_>>>()?;
    let mut row = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for (_, part) in columns.iter().zip(&parts).filter(|(c, _)| c.size.is_none()) {
        row.extend((part.len() as u32).to_le_bytes());
    }
    parts.iter().for_each(|part| row.extend(part));
    Ok(row)
}

impl ShardWriter for MdsShard {
    fn bytes_with(&self, sample: &[u8]) -> u64 {
        (self.head_bytes(self.ends.len() + 1) + self.rows.len() + sample.len()) as u64
    }
    fn push(&mut self, sample: &[u8]) -> Result<()> {
        self.rows.extend(sample);
        self.ends.push(self.rows.len() as u32);
        Ok(())
    }
    fn finish(mut self: Box<Self>) -> Result<Option<Json>> {
        let (n, base) = (self.ends.len() as u32, self.head_bytes(self.ends.len()) as u32);
        let mut head = n.to_le_bytes().to_vec();
        for end in std::iter::once(&0).chain(&self.ends) {
            head.extend((base + end).to_le_bytes());
        }
        head.extend(self.text.as_bytes());
        let write = |out: &mut File| {
            out.write_all(&head)?;
            out.write_all(&self.rows)?;
            out.sync_all()
        };
        write(&mut self.out).map_err(Error::io(&self.path))?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = head.len() + self.rows.len();
        let mut config = self.config;
        config["raw_data"] = json!({"basename": name, "bytes": bytes, "hashes": {}});
        config["zip_data"] = Json::Null;
        config["samples"] = json!(n);
        config["version"] = json!(2);
        Ok(Some(config))
    }
}
