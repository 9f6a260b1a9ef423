//! Indexes tar archives: one pass over their headers, several archives at once.
//!
//! Flow: headers -> members -> samples (grouped by key) with the sizes of their images -> the
//! side-car index.
//! Memory: the samples of a few shards while they are scanned; of a shard a window of its bytes.

use std::collections::HashMap;
use std::io::Read;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use tidegate_decode::header::{self, ImageHeader};
use tidegate_decode::{Field, Kind, Schema, kind_of_extension};
use xxhash_rust::xxh3::xxh3_64;

use super::archive::{Packing, decompress, packing};
use super::tar::{self, is_meta, split_name};
use crate::files::file_set::Files;
use crate::files::natural::file_name;
use crate::files::read::{ReadMode, aligned, staging_bytes};
use crate::index::probe::Images;
use crate::index::{Builder, Entry, Index, ShardMeta};
use crate::left_out::LeftOut;
use crate::{Error, Result};

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
/// The longest list of names of classes.
const CLASSES_BYTES: u64 = 1 << 20;
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
    /// The key and the fields of the first sample, and of the last.
    ends: Option<[(String, Vec<String>); 2]>,
    /// Names of classes, where `pack` wrote them.
    classes: Vec<String>,
}

impl Grouping<'_> {
    /// Takes the next member: `head` are its first bytes.
    fn member(&mut self, member: &tar::Member, head: &Head) -> Result<()> {
        if let Head::Classes(classes) = head {
            self.classes.clone_from(classes);
            return Ok(());
        }
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
        if let Head::Image(header) = head {
            group.images.add(header.clone());
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
        let end = (group.key.clone(), group.fields);
        match &mut self.ends {
            Some([_, last]) => *last = end,
            None => self.ends = Some([end.clone(), end]),
        }
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
pub(super) fn build(files: &Arc<Files>, mut builder: Builder) -> Result<Index> {
    let (mut schema, mut present, mut shards) = (Schema::new(), Vec::new(), Vec::new());
    let (mut classes, mut last, mut halves) = (Vec::new(), None, Vec::<String>::new());
    files.left_out().iter().for_each(|left_out| builder.add_left_out(left_out.clone()));
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
            let Grouping {
                path,
                shard,
                schema: fields,
                present: having,
                samples,
                left_out,
                ends,
                classes: named,
                ..
            } = grouping?;
            if classes.is_empty() {
                classes = named;
            }
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
            if let Some([(key, fields), end]) = ends {
                // Where each archive has keys of its own, the fields are the same.
                let other_half = |(before, others): &(String, Vec<String>)| {
                    *before == key && !fields.iter().any(|field| others.contains(field))
                };
                halves.extend(last.filter(other_half).map(|(key, _)| key));
                last = Some(end);
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
    if let Some(key) = halves.first() {
        builder.note_uncertain(format!(
            "{} samples have members in two archives, such as {key:?}: each comes as two",
            halves.len()
        ));
    }
    let samples = builder.samples();
    builder.note_missing(present.into_iter().map(|having| samples - having).collect());
    builder.finish(schema, classes, shards)
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
        ends: None,
        classes: Vec::new(),
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
    let mut window = Window { files, shard: grouping.shard, size, start: 0, bytes: Vec::new(), failed: None };
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
                let outcome = nothing_behind(path, offset, &mut || {
                    let bytes = window.at(at, LOOK_BYTES)?;
                    at += bytes.len() as u64;
                    Ok(bytes)
                });
                return outcome.map_err(|error| window.failed.take().unwrap_or(error));
            }
            Err(error) => {
                let wrong = || Error::format(path, error.offset, error.what);
                return Err(window.failed.take().unwrap_or_else(wrong));
            }
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
        let head = Head::new(&member, &mut |len| window.at(member.data, len).ok());
        if let Some(error) = window.failed.take() {
            return Err(error);
        }
        offset = member.end();
        grouping.member(&member, &head)?;
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

/// What the first bytes of a member say.
enum Head {
    Image(ImageHeader),
    Classes(Vec<String>),
    Other,
}

impl Head {
    /// The most bytes that are looked at.
    fn most_bytes(name: &str) -> u64 {
        match split_name(name) {
            Some((_, field)) if kind_of_extension(&field) == Kind::Image => header::PROBE_BYTES,
            None if name == tar::CLASSES => CLASSES_BYTES,
            _ => 0,
        }
    }

    /// Looks at a member; `read(length)` returns its first bytes.
    fn new(member: &tar::Member, read: &mut dyn FnMut(u64) -> Option<Vec<u8>>) -> Self {
        let classes = member.name == tar::CLASSES && member.size <= CLASSES_BYTES;
        let found = match () {
            () if Self::most_bytes(&member.name) == 0 => None,
            () if classes => {
                read(member.size).and_then(|text| serde_json::from_slice(&text).ok()).map(Self::Classes)
            }
            () => header::probe_with(member.size, read).map(Self::Image),
        };
        found.unwrap_or(Self::Other)
    }
}

/// A window over a shard.
struct Window<'a> {
    files: &'a Files,
    shard: u32,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
    /// The error of a read, which the reader of members is told as text.
    failed: Option<Error>,
}

impl Window<'_> {
    fn at(&mut self, offset: u64, len: u64) -> std::result::Result<Vec<u8>, String> {
        let len = len.min(self.size.saturating_sub(offset));
        if offset < self.start || offset + len > self.start + self.bytes.len() as u64 {
            let far = offset.saturating_sub(self.start + self.bytes.len() as u64) > REMOTE_GAP_BYTES;
            let look = if self.files.is_remote() && !far { REMOTE_LOOK_BYTES } else { LOOK_BYTES };
            let wide = len.max(look).min(self.size.saturating_sub(offset));
            let mut staging = aligned(staging_bytes(wide) as usize);
            let got =
                self.files.read(self.shard, offset, wide, ReadMode::Drop, &mut staging).map_err(|e| {
                    let what = e.to_string();
                    self.failed = Some(e);
                    what
                })?;
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
        let wanted = member.size.min(Head::most_bytes(&member.name));
        if let Err(e) = (&mut stream).take(wanted).read_to_end(&mut head) {
            failed = Some(e);
        }
        let read = Head::new(&member, &mut |len| {
            head.get(..len.min(head.len() as u64) as usize).map(<[u8]>::to_vec)
        });
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
        grouping.member(&member, &read)?;
    }
}

fn next_header(at: u64) -> u64 {
    at.next_multiple_of(tar::BLOCK)
}
