//! WebDataset: tar archives where the files of one sample share their name up to the first dot.
//!
//! Flow: .tar / .tar.gz / .tar.zst files -> index (one entry a sample, from its first header to
//! its last byte) -> one read a sample -> fields by extension.
//! Memory: see `index`; one decompressor for compressed archives (`library_bytes`).
//!
//! Grouping follows the webdataset library: the key is the path up to the first dot of the last
//! component, the field is the rest in lower case, and a sample ends where the key changes. Where
//! the members of a sample are scattered, that would make several of one, which is refused.
//! Members that are no part of a sample are counted. Compressed archives have no random access.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tidegate_core::sync::lock;
use xxhash_rust::xxh3::xxh3_64;

use super::tar;
use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::files::read::{Extent, ReadMode, aligned, staging_bytes};
use crate::index::probe::Images;
use crate::index::shard_set::shard_set;
use crate::index::{Builder, Entry, Index, LeftOut, ShardMeta};
use crate::{Access, Located, Source};
use crate::{Error, Result};
use tidegate_decode::header::{self, ImageHeader, Probe};
use tidegate_decode::{Field, Schema, Value, kind_of_extension};

/// Bytes of a read at each header while indexing: most image headers are within.
const LOOK_BYTES: u64 = 16 << 10;
/// The same over a network, where a request takes as long as a megabyte, unless headers are far
/// apart.
const REMOTE_LOOK_BYTES: u64 = 1 << 20;
const REMOTE_GAP_BYTES: u64 = 4 << 20;
/// The number of shards that are indexed at once.
const LOCAL_SHARDS: usize = 4;
const REMOTE_SHARDS: usize = 16;
/// The most zeros at the end of an archive: the largest record that programs write.
const RECORD_BYTES: u64 = 1 << 20;
/// The largest window of a zstd stream: 8 MiB, which the format recommends decoders to support.
const ZSTD_WINDOW_LOG: u32 = 23;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

fn packing(path: &Path) -> Packing {
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz" | "tgz") => Packing::Gzip,
        Some("zst" | "zstd") => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// Tar archives of samples.
#[derive(Debug)]
pub(crate) struct Archive {
    name: String,
    index: Index,
    files: Arc<Files>,
    /// The compressed shard that is read now; they are read in order.
    cursor: Mutex<Option<Cursor>>,
    access: Access,
}

/// A decompressor and its offset in the unpacked shard.
struct Cursor {
    shard: u32,
    stream: Box<dyn Read + Send>,
    at: u64,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor({})", self.at)
    }
}

impl Archive {
    /// Opens shards, indexing them first if their index does not hold.
    ///
    /// # Errors
    /// When an archive is damaged, naming the offset.
    pub(crate) fn open(name: &str, files: Files, force: bool) -> Result<Self> {
        let (beside, set, identity) = shard_set(&files, "tar")?;
        if force {
            Index::remove(&beside, set);
        }
        let files = Arc::new(files);
        let index = match Index::open(&beside, set, identity) {
            Some(index) => index,
            None => build(&files, Builder::new(&beside, set, identity, "tar")?)?,
        };
        let packed = files.paths().iter().any(|s| packing(s) != Packing::Plain);
        let access = if packed {
            let total = index.meta.bounds.total_bytes / 2 / index.meta.shards.len().max(1) as u64;
            let why = format!(
                "{name} is a compressed tar, which has no random access: each random sample would cost the \
                 decompression of {} MiB on average; repack it with `tidegate pack {name} OUT --format tar`, or use \
                 shuffle=False",
                tidegate_core::memory::size::mib(total)
            );
            Access::Sequential { why }
        } else {
            Access::Random
        };
        Ok(Self { name: name.to_owned(), index, files, cursor: Mutex::default(), access })
    }

    fn read_packed(&self, at: &Entry, len: u64, into: &mut [u8]) -> Result<Range<usize>> {
        let path = self.files.path(at.shard)?;
        let mut cursor = lock(&self.cursor);
        if cursor.as_ref().is_none_or(|c| c.shard != at.shard || c.at > at.offset) {
            *cursor = None;
            *cursor = Some(Cursor { shard: at.shard, stream: decompress(&self.files, at.shard)?, at: 0 });
        }
        let Some(c) = cursor.as_mut() else { return Ok(0..0) };
        let skip = at.offset - c.at;
        let target = into.get_mut(..len as usize).ok_or_else(|| {
            Error::format(path, at.offset, format!("a read of {len} bytes needs as many bytes of staging"))
        })?;
        let outcome = std::io::copy(&mut (&mut c.stream).take(skip), &mut std::io::sink())
            .and_then(|_| c.stream.read_exact(target));
        if outcome.is_err() {
            *cursor = None;
        } else {
            c.at = at.offset + len;
        }
        let what = |e| {
            format!(
                "{e}: the compressed archive is damaged or truncated, or its window is more than 8 MiB \
                 (zstd --long)"
            )
        };
        outcome.map_err(|e| Error::format(path, at.offset, what(e))).map(|()| 0..len as usize)
    }
}

fn decompress(files: &Arc<Files>, shard: u32) -> Result<Box<dyn Read + Send>> {
    let (path, file) = (files.path(shard)?, files.stream(shard)?);
    Ok(match packing(path) {
        Packing::Plain => file,
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file))),
        Packing::Zstd => {
            let mut stream = zstd::stream::read::Decoder::new(file).map_err(Error::io(path))?;
            stream.window_log_max(ZSTD_WINDOW_LOG).map_err(Error::io(path))?;
            Box::new(stream)
        }
    })
}

/// A sample while its members are collected.
#[derive(Debug, Default)]
struct Group {
    key: String,
    start: u64,
    end: u64,
    fields: Vec<String>,
    images: Images,
}

/// Collects members into samples while a shard is scanned.
struct Grouping<'a> {
    path: &'a Path,
    shard: u32,
    group: Option<Group>,
    /// The fields of this shard, in order of appearance, and how many samples have each.
    schema: Schema,
    present: Vec<u64>,
    samples: Vec<(Entry, String, Images)>,
    /// By the hash of a key: where its sample begins, and a bit for each of its fields.
    seen: HashMap<u64, (u64, u64)>,
    left_out: Vec<LeftOut>,
}

impl Grouping<'_> {
    fn member(&mut self, member: &tar::Member, image: Option<ImageHeader>) -> Result<()> {
        let Some((key, field)) = split_name(&member.name) else {
            let (what, warn) = match () {
                () if is_meta(&member.name) => ("members named __...__, which hold metadata", false),
                () if file_name(Path::new(&member.name)).starts_with('.') => ("hidden members", false),
                () => ("members without an extension", true),
            };
            self.leave_out(&member.name, what, warn);
            return Ok(());
        };
        if self.group.as_ref().is_none_or(|g| g.key != key) {
            self.flush()?;
            self.group = Some(Group { key: key.to_owned(), start: member.start, ..Group::default() });
        }
        let Some(group) = self.group.as_mut() else { return Ok(()) };
        if !self.schema.iter().any(|f| f.name == field) {
            add_field(&mut self.schema, &field)
                .map_err(|what| Error::format(self.path, member.start, what))?;
            self.present.push(0);
        }
        group.fields.push(field);
        group.end = member.data + member.size;
        if let Some(header) = image {
            group.images.add(header);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let mut fields = 0;
        for (i, field) in self.schema.iter().enumerate() {
            if group.fields.contains(&field.name) {
                fields |= 1 << (i % 64);
                self.present[i] += 1;
            }
        }
        let (before, same) = *self.seen.entry(xxh3_64(group.key.as_bytes())).or_insert((group.start, fields));
        if before != group.start && same & fields == 0 {
            let what = format!(
                "members of sample {:?} are scattered: some at byte {before}, others here. The members of a \
                 sample must be neighbours: sort the archive, as with `tar --sort=name -cf NEW.tar FOLDER`",
                group.key
            );
            return Err(Error::format(self.path, group.start, what));
        }
        let len = u32::try_from(group.end - group.start).map_err(|_| {
            Error::format(self.path, group.start, "a sample of 4 GiB or more: split it into several")
        })?;
        let entry = Entry { shard: self.shard, offset: group.start, len, ..Entry::default() };
        self.samples.push((entry, group.key, group.images));
        Ok(())
    }
}

impl Grouping<'_> {
    /// Counts a member that is no part of a sample.
    fn leave_out(&mut self, name: &str, what: &str, warn: bool) {
        let example = format!("{} of {}", name, file_name(self.path));
        LeftOut { what: what.into(), count: 1, example, warn }.count_in(&mut self.left_out);
    }

    fn skip(&mut self, skipped: &tar::Skipped) {
        if let Some(kind) = skipped.kind {
            self.leave_out(&skipped.name, kind, true);
        }
    }
}

fn add_field(schema: &mut Schema, name: &str) -> std::result::Result<(), &'static str> {
    if schema.len() >= 256 {
        return Err("more than 256 different extensions: the names do not follow the WebDataset convention \
             (key.extension); remove the dots in keys");
    }
    schema.push(Field { kind: kind_of_extension(name), name: name.to_owned() });
    Ok(())
}

/// Indexes several shards at once, since waiting for the disk or the network takes the time.
fn build(files: &Arc<Files>, mut builder: Builder) -> Result<Index> {
    let (mut schema, mut present, mut shards) = (Schema::new(), Vec::new(), Vec::new());
    let count = files.paths().len() as u32;
    let batch = if files.is_remote() { REMOTE_SHARDS } else { LOCAL_SHARDS };
    for first in (0..count).step_by(batch) {
        let some = first..count.min(first + batch as u32);
        let scanned: Vec<Result<Grouping<'_>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = some.map(|shard| scope.spawn(move || scan(files, shard))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        for grouping in scanned {
            let Grouping { path, shard, schema: fields, present: having, samples, left_out, .. } = grouping?;
            left_out.into_iter().for_each(|left_out| builder.add_left_out(left_out));
            for (field, having) in fields.into_iter().zip(having) {
                if let Some(at) = schema.iter().position(|known| *known == field) {
                    present[at] += having;
                } else {
                    add_field(&mut schema, &field.name).map_err(|what| Error::format(path, 0, what))?;
                    present.push(having);
                }
            }
            for (entry, key, images) in &samples {
                builder.push(*entry, key, images)?;
            }
            let (name, samples) = (file_name(path), samples.len() as u64);
            shards.push(ShardMeta { name, bytes: files.bytes(shard)?, samples, groups: Vec::new() });
        }
    }
    if builder.samples() == 0 {
        return Err(Error::Dataset {
            path: files.paths()[0].clone(),
            what: "these archives hold no samples: members must be named key.extension".into(),
        });
    }
    let samples = builder.samples();
    builder.note_missing(present.into_iter().map(|having| samples - having).collect());
    builder.finish(schema, Vec::new(), shards)
}

/// The samples of one shard.
fn scan(files: &Arc<Files>, shard: u32) -> Result<Grouping<'_>> {
    let path = files.path(shard)?;
    let mut grouping = Grouping {
        path,
        shard,
        group: None,
        schema: Schema::new(),
        present: Vec::new(),
        samples: Vec::new(),
        seen: HashMap::new(),
        left_out: Vec::new(),
    };
    if packing(path) == Packing::Plain {
        scan_plain(files, &mut grouping)?;
    } else {
        scan_packed(files, &mut grouping)?;
    }
    grouping.flush()?;
    Ok(grouping)
}

fn scan_plain(files: &Files, grouping: &mut Grouping<'_>) -> Result<()> {
    let path = grouping.path;
    let size = files.bytes(grouping.shard)?;
    let mut window = Window { files, shard: grouping.shard, size, start: 0, bytes: Vec::new() };
    let mut offset = 0;
    loop {
        let member = match tar::next(offset, &mut |at, len| window.at(at, len)) {
            Ok(tar::Next::File(member)) => member,
            Ok(tar::Next::Skip(skipped)) => {
                grouping.skip(&skipped);
                offset = skipped.next;
                continue;
            }
            Ok(tar::Next::End) => {
                let mut at = offset;
                return nothing_behind(path, offset, &mut || {
                    let bytes = window.at(at, LOOK_BYTES)?;
                    at += bytes.len() as u64;
                    Ok(bytes)
                });
            }
            Err(error) => return Err(Error::format(path, error.offset, error.what)),
        };
        if member.data + member.size > size {
            let what = format!(
                "member {:?} has {} bytes by its header, but the archive ends after {}: it is truncated, or \
                 the header is damaged; copy it again",
                member.name,
                member.size,
                size.saturating_sub(member.data)
            );
            return Err(Error::format(path, member.start, what));
        }
        let image = is_image(&member.name)
            .then(|| header::probe_with(member.size, &mut |len| window.at(member.data, len).ok()))
            .flatten();
        offset = member.end();
        grouping.member(&member, image)?;
    }
}

/// Checks that nothing but the zeros of the last record is behind the end of an archive; `read`
/// gives the bytes that follow, and none at the end of the file.
fn nothing_behind(
    path: &Path,
    end: u64,
    read: &mut dyn FnMut() -> std::result::Result<Vec<u8>, String>,
) -> Result<()> {
    let mut zeros = 0;
    loop {
        let bytes = read().map_err(|what| Error::format(path, end + zeros, what))?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
            let what = "there is more behind the end of this archive: it is damaged here, or several archives \
                        were joined; copy it again, or join them with `tar -A`";
            return Err(Error::format(path, end + zeros + at as u64, what));
        }
        zeros += bytes.len() as u64;
        if zeros > RECORD_BYTES {
            let what = "the rest of this file is zeros: a copy of it was broken off; copy it again";
            return Err(Error::format(path, end, what));
        }
    }
}

fn is_image(name: &str) -> bool {
    split_name(name).is_some_and(|(_, field)| kind_of_extension(&field) == tidegate_decode::Kind::Image)
}

/// A window over a shard.
struct Window<'a> {
    files: &'a Files,
    shard: u32,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    fn at(&mut self, offset: u64, len: u64) -> std::result::Result<Vec<u8>, String> {
        let len = len.min(self.size.saturating_sub(offset));
        if offset < self.start || offset + len > self.start + self.bytes.len() as u64 {
            let far = offset.saturating_sub(self.start + self.bytes.len() as u64) > REMOTE_GAP_BYTES;
            let look = if self.files.is_remote() && !far { REMOTE_LOOK_BYTES } else { LOOK_BYTES };
            let wide = len.max(look).min(self.size.saturating_sub(offset));
            let mut staging = aligned(staging_bytes(wide) as usize);
            let got = self
                .files
                .read(self.shard, offset, wide, ReadMode::Drop, &mut staging)
                .map_err(|e| e.to_string())?;
            (self.start, self.bytes) = (offset, staging[got].to_vec());
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes[from..from + len as usize].to_vec())
    }
}

/// Scans a compressed shard in one pass.
fn scan_packed(files: &Arc<Files>, grouping: &mut Grouping<'_>) -> Result<()> {
    let path = grouping.path;
    let mut stream = decompress(files, grouping.shard)?;
    let mut at = 0u64;
    let damaged = |offset: u64, e: &std::io::Error| {
        Error::format(path, offset, format!("{e}: the compressed archive is damaged or truncated"))
    };
    loop {
        let mut failed = None;
        let header_at = next_header(at);
        let member = {
            let mut forward = |offset: u64, len: u64| {
                let skip = offset.saturating_sub(at);
                let mut bytes = Vec::new();
                std::io::copy(&mut (&mut stream).take(skip), &mut std::io::sink())
                    .and_then(|_| (&mut stream).take(len).read_to_end(&mut bytes))
                    .map_err(|e| e.to_string())?;
                at = offset + bytes.len() as u64;
                Ok(bytes)
            };
            tar::next(header_at, &mut forward)
        };
        let member = match member {
            Ok(tar::Next::File(member)) => member,
            Ok(tar::Next::Skip(skipped)) => {
                grouping.skip(&skipped);
                let passed = &mut (&mut stream).take(skipped.next.saturating_sub(at));
                failed = std::io::copy(passed, &mut std::io::sink()).err();
                at = skipped.next;
                if let Some(e) = failed {
                    return Err(damaged(at, &e));
                }
                continue;
            }
            Ok(tar::Next::End) => {
                // To its end, where the checksum of the compressed stream is.
                return nothing_behind(path, header_at, &mut || {
                    let mut bytes = Vec::new();
                    let read = (&mut stream).take(LOOK_BYTES).read_to_end(&mut bytes);
                    read.map(|_| bytes)
                        .map_err(|e| format!("{e}: the compressed archive is damaged or truncated"))
                });
            }
            Err(error) => return Err(Error::format(path, error.offset, error.what)),
        };
        let mut head = Vec::new();
        let wanted = if is_image(&member.name) { member.size.min(header::PROBE_BYTES) } else { 0 };
        if let Err(e) = (&mut stream).take(wanted).read_to_end(&mut head) {
            failed = Some(e);
        }
        let image = match header::probe(&head) {
            Probe::Found(header) => Some(header),
            Probe::Short | Probe::Unknown => None,
        };
        let rest = member.size - head.len() as u64;
        match std::io::copy(&mut (&mut stream).take(rest), &mut std::io::sink()) {
            Ok(n) if n < rest => {
                let e = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(damaged(member.start, &e));
            }
            Ok(_) => {}
            Err(e) => failed = Some(e),
        }
        if let Some(e) = failed {
            return Err(damaged(member.start, &e));
        }
        at = member.data + member.size;
        grouping.member(&member, image)?;
    }
}

fn next_header(at: u64) -> u64 {
    at.next_multiple_of(tar::BLOCK)
}

/// The key and the field of a member; None for names without an extension, and for metadata.
fn split_name(name: &str) -> Option<(&str, String)> {
    let base = name.rfind('/').map_or(0, |i| i + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base && !is_meta(name)).then(|| (&name[..dot], name[dot + 1..].to_lowercase()))
}

/// Whether a name is wholly `__…__`, its extension aside: what webdataset reserves for metadata.
fn is_meta(name: &str) -> bool {
    let stem = |part: &str| part.split('.').next().unwrap_or_default().len();
    let wholly = |part: &str| {
        let stem = &part[..stem(part)];
        stem.len() > 4 && stem.starts_with("__") && stem.ends_with("__")
    };
    name.split('/').any(wholly)
}

impl Source for Archive {
    fn name(&self) -> &str {
        &self.name
    }
    fn side_car_index(&self) -> Option<&Index> {
        Some(&self.index)
    }
    fn files(&self) -> Option<&Files> {
        Some(&self.files)
    }
    fn access(&self) -> Access {
        self.access.clone()
    }
    fn library_bytes(&self) -> u64 {
        match self.files.paths().iter().map(|p| packing(p)).find(|&p| p != Packing::Plain) {
            // The window, two blocks, and tables.
            Some(Packing::Zstd) => 10 << 20,
            Some(_) => 128 << 10,
            None => 0,
        }
    }
    fn read(&self, at: &Located, len: u64, mode: ReadMode, into: &mut [u8]) -> Result<Range<usize>> {
        let entry = &at.entry;
        match self.files.paths().get(entry.shard as usize) {
            Some(path) if packing(path) != Packing::Plain => self.read_packed(entry, len, into),
            _ => self.files.read(entry.shard, entry.offset, len, mode, into),
        }
    }
    fn extent(&self, at: &Located) -> Option<Extent<'_>> {
        let path = self.files.paths().get(at.entry.shard as usize)?;
        (packing(path) == Packing::Plain)
            .then(|| self.files.extent(at.entry.shard, at.entry.offset))
            .flatten()
    }
    fn parse<'a>(&self, at: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        let schema = self.schema();
        let mut values = vec![Value::Missing; schema.len()];
        let path = &self.files.paths()[at.entry.shard as usize];
        let mut read = |offset: u64, len: u64| {
            let start = (offset as usize).min(bytes.len());
            Ok(bytes[start..bytes.len().min(start.saturating_add(len as usize))].to_vec())
        };
        let (mut offset, mut sample) = (0, None);
        while (offset as usize) < bytes.len() {
            match tar::next(offset, &mut read)
                .map_err(|e| Error::format(path, at.entry.offset + e.offset, e.what))?
            {
                tar::Next::File(member) => {
                    offset = member.end();
                    let Some(data) = bytes.get(member.data as usize..(member.data + member.size) as usize)
                    else {
                        let what = "the archive changed since it was indexed: run `tidegate index --force`";
                        return Err(Error::format(path, at.entry.offset + member.start, what));
                    };
                    let named = split_name(&member.name);
                    if let Some((key, _)) = &named
                        && sample.get_or_insert((*key).to_owned()) != key
                    {
                        let what = "two samples where the index has one: the archive changed since it \
                                    was indexed; run `tidegate index --force`";
                        return Err(Error::format(path, at.entry.offset + member.start, what));
                    }
                    if let Some((key, field)) = named
                        && let Some(i) = schema.iter().position(|f| f.name == field)
                    {
                        if !matches!(values[i], Value::Missing) {
                            let what =
                                format!("sample {key:?} has two members {field:?}: rename one of them");
                            return Err(Error::format(path, at.entry.offset + member.start, what));
                        }
                        values[i] = Value::Bytes(data);
                    }
                }
                tar::Next::Skip(skipped) => offset = skipped.next,
                tar::Next::End => break,
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_last_component() {
        assert_eq!(split_name("a.b/c.seg.PNG"), Some(("a.b/c", "seg.png".into())));
        assert_eq!(split_name("a/.hidden"), None);
        assert_eq!(split_name("plain"), None);
        assert_eq!(["__meta__.json", "__x__/a.jpg"].map(split_name), [None, None]);
        assert_eq!(split_name("__AbC.jpg"), Some(("__AbC", "jpg".into())));
    }
}
