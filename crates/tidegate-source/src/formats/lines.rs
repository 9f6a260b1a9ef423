//! Text files with a sample a line: LIBSVM, JSON Lines, CSV and TSV.
//!
//! Flow: files -> each line once -> schema and index -> one read a line; neighbours share a read
//! -> values as slices of the line.
//! Memory: see `index`; one line while indexing. A quoted value is unquoted into its row.
//!
//! Each line is read and parsed by itself, so every order costs the same, and a bad line is one
//! failed sample. Its key is the number of the line. All lines decide the types (`json`,
//! `delimited`).

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::index::probe::Images;
use crate::index::shard_set::shard_set;
use crate::index::{Builder, Entry, Index, ShardMeta};
use crate::{Error, Result};
use crate::{Located, Source};
use tidegate_decode::Value;
use tidegate_decode::text::delimited::ScanState;
use tidegate_decode::text::json::Found;
use tidegate_decode::text::{delimited, json, libsvm};

/// Bytes of a read while indexing.
const BUFFER_BYTES: usize = 1 << 20;
/// The byte order mark of UTF-8, and those of UTF-16.
const MARK: &[u8] = b"\xEF\xBB\xBF";
const WIDE_MARKS: [&[u8]; 2] = [b"\xFF\xFE", b"\xFE\xFF"];
/// The most bytes of a record; an entry could hold 16 times as many.
const RECORD_MOST: u64 = 256 << 20;

/// The format of the lines of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Libsvm,
    Json,
    /// Cells separated by this byte, under a line of names.
    Delimited(u8),
}

impl Format {
    /// Cells separated by commas.
    pub(crate) const CSV: Self = Self::Delimited(b',');
    /// Cells separated by tabs.
    pub(crate) const TSV: Self = Self::Delimited(b'\t');

    /// The format that a file's name promises.
    pub(crate) fn from_name(path: &Path) -> Option<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str())?;
        Some(match extension.to_ascii_lowercase().as_str() {
            "libsvm" | "svm" | "svmlight" => Self::Libsvm,
            "jsonl" | "ndjson" => Self::Json,
            "csv" => Self::CSV,
            "tsv" => Self::TSV,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Libsvm => "libsvm",
            Self::Json => "jsonl",
            Self::Delimited(b'\t') => "tsv",
            Self::Delimited(_) => "csv",
        }
    }

    /// The part of a line that is its sample; it starts where the line starts.
    fn content(self, line: &[u8]) -> &[u8] {
        let line = if self == Self::Libsvm { libsvm::content(line) } else { line };
        let blank = |byte: &u8| match self {
            // Cells may be blank.
            Self::Delimited(_) => matches!(byte, b'\n' | b'\r'),
            _ => byte.is_ascii_whitespace(),
        };
        let end = line.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1);
        &line[..end]
    }
}

/// Text files with a sample a line.
#[derive(Debug)]
pub(crate) struct Lines {
    name: String,
    format: Format,
    index: Index,
    files: Arc<Files>,
}

impl Lines {
    /// Opens files, indexing them first if their index does not hold.
    ///
    /// # Errors
    /// Files that cannot be read, have no sample or other columns; lines of 256 MiB.
    pub(crate) fn open(url: &str, format: Format, files: Files, force: bool) -> Result<Self> {
        let files = Arc::new(files);
        let (beside, name, identity) = shard_set(&files, format.name())?;
        if force {
            Index::remove(&beside, name);
        }
        let index = match Index::open(&beside, name, identity) {
            Some(index) => index,
            None => build(url, format, &files, Builder::new(&beside, name, identity, format.name())?)?,
        };
        Ok(Self { name: url.to_owned(), format, index, files })
    }
}

/// The types that the lines seen so far imply. Each needs all of them.
#[derive(Debug)]
enum Seen {
    Libsvm(libsvm::SchemaScan),
    Json(json::SchemaScan),
    Delimited(delimited::SchemaScan),
}

impl Seen {
    fn new(format: Format) -> Self {
        match format {
            Format::Libsvm => Self::Libsvm(libsvm::SchemaScan::default()),
            Format::Json => Self::Json(json::SchemaScan::default()),
            Format::Delimited(delimiter) => Self::Delimited(delimited::SchemaScan::new(delimiter)),
        }
    }

    fn look(&mut self, line: &[u8]) {
        match self {
            Self::Libsvm(seen) => seen.add_line(line),
            Self::Json(seen) => seen.add_line(line),
            Self::Delimited(seen) => seen.add_line(line),
        }
    }

    fn found(self) -> Found {
        match self {
            Self::Libsvm(seen) => Found { schema: seen.schema(), ..Found::default() },
            Self::Json(seen) => seen.found(),
            Self::Delimited(seen) => seen.found(),
        }
    }
}

fn build(url: &str, format: Format, files: &Arc<Files>, mut builder: Builder) -> Result<Index> {
    let (mut seen, mut shards) = (Seen::new(format), Vec::new());
    // A line and what is made of it.
    let most = (files.opening_bytes() / 2).min(RECORD_MOST) as usize;
    files.left_out().iter().for_each(|left_out| builder.add_left_out(left_out.clone()));
    for (number, path) in files.paths().iter().enumerate() {
        let mut file = BufReader::with_capacity(BUFFER_BYTES, files.stream(number as u32)?);
        let (before, mut at, mut row) = (builder.samples(), 0u64, 0u64);
        // Some editors write a byte order mark, which belongs to no line.
        let head = file.fill_buf().map_err(Error::io(path))?;
        if WIDE_MARKS.iter().any(|mark| head.starts_with(mark)) {
            let what = "this is text in UTF-16: save it as UTF-8, as with `iconv -f UTF-16 -t UTF-8`";
            return Err(Error::format(path, 0, what));
        }
        if head.starts_with(MARK) {
            file.consume(MARK.len());
            at = MARK.len() as u64;
        }
        let mut record = Vec::new();
        loop {
            let first = row + 1;
            let wrong = |what: String| Error::format(path, at, format!("line {first}: {what}"));
            record.clear();
            row += next(&mut file, format, most, &mut record).map_err(Error::io(path))?.map_err(wrong)?;
            if record.is_empty() {
                break;
            }
            let text = format.content(&record);
            if let (Seen::Delimited(seen), 1) = (&mut seen, first) {
                seen.names(text).map_err(wrong)?;
            } else if !text.is_empty() {
                seen.look(text);
                let len = text.len() as u32;
                let entry = Entry { shard: number as u32, offset: at, len, ..Entry::default() };
                builder.push(entry, &format!("line {first}"), &Images::default())?;
            }
            at += record.len() as u64;
        }
        let samples = builder.samples() - before;
        shards.push(ShardMeta { name: file_name(path), bytes: at, samples, groups: Vec::new() });
    }
    let none = |what: String| Err(Error::Dataset { path: url.into(), what });
    if builder.samples() == 0 {
        return none("there is no line with a sample".into());
    }
    if let Seen::Json(seen) = &seen
        && seen.is_empty()
    {
        return none("no line is an object: JSON Lines have one a line, in UTF-8".into());
    }
    let Found { schema, missing, uncertain } = seen.found();
    builder.note_missing(missing);
    uncertain.into_iter().for_each(|what| builder.note_uncertain(what));
    builder.finish(schema, Vec::new(), shards)
}

/// Reads the next record and returns its number of lines; at the end of the file it reads nothing.
fn next(
    file: &mut impl BufRead,
    format: Format,
    most: usize,
    record: &mut Vec<u8>,
) -> io::Result<Result<u64, String>> {
    let (mut at, mut lines) = (ScanState::Cell, 0);
    loop {
        let start = record.len();
        let read = file.take((most - start) as u64).read_until(b'\n', record)?;
        if record.len() == most {
            let what = "this is no text file of samples, a quote is never closed, or the dataset must be opened with \
                        more memory, as in tg.open(..., memory=\"1GiB\")";
            return Ok(Err(format!("it goes on for {} MiB: {what}", most >> 20)));
        }
        lines += u64::from(read > 0);
        if let Format::Delimited(delimiter) = format {
            at = record[start..].iter().fold(at, |at, byte| at.next(*byte, delimiter));
        }
        if at != ScanState::Quotes {
            return Ok(Ok(lines));
        }
        if read == 0 {
            let what = "a quote at the beginning of a cell is never closed: double quotes within quotes";
            return Ok(Err(what.into()));
        }
    }
}

impl Source for Lines {
    fn name(&self) -> &str {
        &self.name
    }
    fn side_car_index(&self) -> Option<&Index> {
        Some(&self.index)
    }
    fn files(&self) -> Option<&Files> {
        Some(&self.files)
    }
    fn parse<'a>(&self, _: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        Ok(match self.format {
            Format::Libsvm => libsvm::parse(self.schema(), bytes)?,
            Format::Json => json::parse(self.schema(), bytes)?,
            Format::Delimited(delimiter) => delimited::parse(self.schema(), delimiter, bytes)?,
        })
    }
}
