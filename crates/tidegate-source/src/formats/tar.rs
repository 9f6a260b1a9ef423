//! Tar as GNU tar, bsdtar and Python's tarfile write it: ustar, GNU long names, pax headers,
//! base-256 sizes.
//!
//! Flow: bytes at an offset -> [`Member`]; called by the archive source while indexing and while
//! parsing a sample.
//! Memory: a name; nothing of the payload.
//! Not here: grouping members into samples (`archive`).
//!
//! Specification: POSIX.1-2017 pax interchange format; GNU tar manual, «Basic Tar Format». Sparse
//! members are refused, because their bytes in the archive are not the bytes of the file.

/// Bytes of a block, the unit of tar.
pub const BLOCK: u64 = 512;
/// The most bytes of an extended header; a longer one is damaged.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;

/// A regular file in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path.
    pub name: String,
    /// Offset of the first header that belongs to it (long-name and pax headers come first).
    pub start: u64,
    /// Offset of its bytes.
    pub data: u64,
    /// Its bytes.
    pub size: u64,
}

impl Member {
    /// Offset of the next header.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.data.saturating_add(self.size).saturating_add(BLOCK - 1) / BLOCK * BLOCK
    }
}

/// The content of the archive at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A regular file.
    File(Member),
    /// Something else.
    Skip(Skipped),
    /// The end of the archive.
    End,
}

/// A member that is no regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The offset of the next header.
    pub next: u64,
    /// Its path.
    pub name: String,
    /// What it is, in the plural; nothing for a folder.
    pub kind: Option<&'static str>,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct TarError {
    /// Where in the archive.
    pub offset: u64,
    /// What is wrong, and the fix.
    pub what: String,
}

fn wrong<T>(offset: u64, what: impl Into<String>) -> Result<T, TarError> {
    Err(TarError { offset, what: what.into() })
}

/// Reads bytes of the archive: `read(offset, length)`, fewer at its end.
type ReadAt<'a> = dyn FnMut(u64, u64) -> Result<Vec<u8>, String> + 'a;

/// What extended headers say of the member that follows them.
#[derive(Default)]
struct Extended {
    long_name: Option<String>,
    pax_name: Option<String>,
    pax_size: Option<u64>,
}

/// Reads the member at `offset`.
///
/// # Errors
/// [`TarError`] for a damaged or sparse header, with the reader's own error as its text.
pub fn next(mut offset: u64, read: &mut ReadAt<'_>) -> Result<Next, TarError> {
    let start = offset;
    let mut extended = Extended::default();
    // Each round reads one header. Only an extended header leads to another round.
    for _ in 0..16 {
        let block = read(offset, BLOCK).map_err(|what| TarError { offset, what })?;
        if block.is_empty() || block.iter().all(|&b| b == 0) {
            return if extended.long_name.is_some() || extended.pax_size.is_some() {
                wrong(offset, "the archive ends after an extended header: it is truncated; copy it again")
            } else {
                Ok(Next::End)
            };
        }
        let Ok(header) = <&[u8; BLOCK as usize]>::try_from(block.as_slice()) else {
            return wrong(offset, "the archive ends within a header: it is truncated; copy it again");
        };
        if !checksum_holds(header) {
            return wrong(
                offset,
                "this is no tar header (its checksum is wrong): the archive is damaged or truncated",
            );
        }
        let size = number(&header[124..136]).ok_or_else(|| TarError {
            offset,
            what: "the size of this member is no number: the archive is damaged".into(),
        })?;
        let data = offset + BLOCK;
        let after = end_of(offset, data, size)?;
        match header[156] {
            b'L' => extended.long_name = Some(text(&extended_header(offset, data, size, read)?)),
            b'x' => {
                for (key, value) in pax_records(&extended_header(offset, data, size, read)?) {
                    match key.as_str() {
                        "path" => extended.pax_name = Some(value),
                        "size" => extended.pax_size = value.parse().ok(),
                        k if k.starts_with("GNU.sparse") => return wrong(offset, SPARSE),
                        _ => {}
                    }
                }
            }
            b'g' | b'K' => {}
            b'S' => return wrong(offset, SPARSE),
            _ => return member(header, extended, start, offset, size),
        }
        offset = after;
    }
    wrong(start, "more than 16 extended headers in a row: the archive is damaged")
}

/// The member of a header that is no extended one; `start` is that of its first extended header.
fn member(
    header: &[u8; BLOCK as usize],
    extended: Extended,
    start: u64,
    offset: u64,
    size: u64,
) -> Result<Next, TarError> {
    let (kind, data) = (header[156], offset + BLOCK);
    let size = extended.pax_size.unwrap_or(size);
    let end = end_of(offset, data, size)?;
    let name = extended.pax_name.or(extended.long_name).unwrap_or_else(|| plain_name(header));
    // Links and folders have no bytes, even with a size.
    let (next, kind) = match kind {
        b'0' | 0 | b'7' if name.ends_with('/') => (data, None),
        b'0' | 0 | b'7' => return Ok(Next::File(Member { name, start, data, size })),
        b'5' => (data, None),
        b'1' | b'2' => (data, Some("links")),
        b'3' | b'4' | b'6' => (data, Some("devices and pipes")),
        _ => (end, Some("members of an unknown kind")),
    };
    Ok(Next::Skip(Skipped { next, name, kind }))
}

/// The offset after a member of `size` bytes at `data`.
fn end_of(offset: u64, data: u64, size: u64) -> Result<u64, TarError> {
    let end = data.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
    end.ok_or_else(|| TarError {
        offset,
        what: "the size of this member exceeds any file: the archive is damaged".into(),
    })
}

/// The bytes of an extended header.
fn extended_header(offset: u64, data: u64, size: u64, read: &mut ReadAt<'_>) -> Result<Vec<u8>, TarError> {
    if size > MAX_EXTENDED_BYTES {
        return wrong(offset, format!("an extended header of {size} bytes: the archive is damaged"));
    }
    let bytes = read(data, size).map_err(|what| TarError { offset: data, what })?;
    if bytes.len() as u64 != size {
        return wrong(offset, "the archive ends within an extended header: it is truncated; copy it again");
    }
    Ok(bytes)
}

const SPARSE: &str = "a sparse member, whose bytes in the archive are not those of the file: pack it again \
                      without --sparse";

fn checksum_holds(header: &[u8; 512]) -> bool {
    let Some(stated) = number(&header[148..156]) else { return false };
    let with_blanks = |of: fn(u8) -> i64| -> i64 {
        header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { of(b) }).sum()
    };
    // Old tars summed signed bytes.
    let stated = i64::try_from(stated).unwrap_or(-1);
    stated == with_blanks(i64::from) || stated == with_blanks(|b| i64::from(b.cast_signed()))
}

/// An octal field, or base-256 where its first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7F);
        for &b in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(b))?;
        }
        return Some(value);
    }
    let digits: Vec<u8> =
        field.iter().copied().skip_while(|&b| b == b' ').take_while(|&b| b != 0 && b != b' ').collect();
    let mut value = 0u64;
    for b in digits {
        value = value.checked_mul(8)?.checked_add(u64::from(b.checked_sub(b'0').filter(|d| *d < 8)?))?;
    }
    Some(value)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn plain_name(header: &[u8; 512]) -> String {
    let name = text(&header[..100]);
    let prefix = if &header[257..263] == b"ustar\0" { text(&header[345..500]) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

/// Records of the form "LENGTH KEY=VALUE\n"; any other text ends the list.
fn pax_records(mut bytes: &[u8]) -> Vec<(String, String)> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|&b| b == b' ') {
        let len: Option<usize> = std::str::from_utf8(&bytes[..space]).ok().and_then(|s| s.parse().ok());
        let whole = len.filter(|&n| n > space + 1).and_then(|n| bytes.split_at_checked(n));
        let Some((record, rest)) = whole else { break };
        let record = &record[space + 1..record.len() - 1];
        if let Some(equals) = record.iter().position(|&b| b == b'=') {
            let word = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            records.push((word(&record[..equals]), word(&record[equals + 1..])));
        }
        bytes = rest;
    }
    records
}

/// A header for `size` bytes under `name`, as `pack` writes it: ustar, or pax for a long name.
#[must_use]
pub fn header(name: &str, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > 100 || size >= 1 << 33 {
        let mut records = record("path", name);
        records += &record("size", &size.to_string());
        out.extend(block("pax", records.len() as u64, b'x'));
        out.extend(records.as_bytes());
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
    }
    let mut end = name.len().min(100);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    out.extend(block(&name[..end], size.min((1 << 33) - 1), b'0'));
    out
}

/// Writes a member: header, bytes, padding.
///
/// # Errors
/// The writer's.
pub fn write_member(out: &mut dyn std::io::Write, name: &str, data: &[u8]) -> std::io::Result<()> {
    out.write_all(&header(name, data.len() as u64))?;
    out.write_all(data)?;
    out.write_all(&[0; BLOCK as usize][..data.len().next_multiple_of(BLOCK as usize) - data.len()])
}

/// The member that holds the names of classes, as a list in JSON. Its name is one that webdataset
/// keeps for metadata.
pub const CLASSES: &str = "__classes__";

/// The key of a sample with a member of this name: the path up to the first dot of its last
/// component. None for names without an extension, and for metadata.
#[must_use]
pub fn sample_key(name: &str) -> Option<&str> {
    split_name(name).map(|(key, _)| key)
}

/// The key and the field of a member; None for names without an extension, and for metadata.
pub(crate) fn split_name(name: &str) -> Option<(&str, String)> {
    let base = name.rfind('/').map_or(0, |i| i + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base && !is_meta(name)).then(|| (&name[..dot], name[dot + 1..].to_lowercase()))
}

/// Whether a name is wholly `__…__`: what webdataset keeps for metadata.
pub(crate) fn is_meta(name: &str) -> bool {
    name.len() > 4 && !name.contains('/') && name.starts_with("__") && name.ends_with("__")
}

/// One pax record, whose length counts its own digits.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len += 1;
    }
    format!("{len} {key}={value}\n")
}

fn block(name: &str, size: u64, kind: u8) -> [u8; 512] {
    let mut b = [0; 512];
    b[..name.len()].copy_from_slice(name.as_bytes());
    b[100..108].copy_from_slice(b"0000644\0");
    b[108..116].copy_from_slice(b"0000000\0");
    b[116..124].copy_from_slice(b"0000000\0");
    b[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    b[136..148].copy_from_slice(b"00000000000\0");
    b[156] = kind;
    b[257..265].copy_from_slice(b"ustar\x0000");
    b[148..156].fill(b' ');
    let sum: u32 = b.iter().map(|&x| u32::from(x)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_last_component() {
        assert_eq!(split_name("a.b/c.seg.PNG"), Some(("a.b/c", "seg.png".into())));
        assert_eq!(split_name("a/.hidden"), None);
        assert_eq!(split_name("plain"), None);
        assert_eq!(split_name("__meta.x__"), None);
        assert_eq!(split_name("__x__.jpg"), Some(("__x__", "jpg".into())));
        assert_eq!(split_name("__AbC.jpg"), Some(("__AbC", "jpg".into())));
    }

    fn walk(bytes: &[u8]) -> Result<Vec<Member>, TarError> {
        let mut read = |offset: u64, len: u64| {
            let start = (offset as usize).min(bytes.len());
            Ok(bytes[start..bytes.len().min(start + len as usize)].to_vec())
        };
        let (mut offset, mut members) = (0, Vec::new());
        loop {
            match next(offset, &mut read)? {
                Next::File(member) => {
                    offset = member.end();
                    members.push(member);
                }
                Next::Skip(skipped) => offset = skipped.next,
                Next::End => return Ok(members),
            }
        }
    }

    #[test]
    fn a_pax_record_one_byte_longer_than_its_header_ends_the_list() {
        assert!(pax_records(b"9 path=a").is_empty());
        assert_eq!(pax_records(b"9 path=a\n"), [("path".to_owned(), "a".to_owned())]);
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(names in prop::collection::vec("[a-zé/]{1,150}[a-z]", 1..5), size in 0u64..2000) {
            let mut bytes = Vec::new();
            for name in &names {
                bytes.extend(header(name, size));
                bytes.resize((bytes.len() + size as usize).next_multiple_of(512), 7);
            }
            bytes.resize(bytes.len() + 1024, 0);
            let members = walk(&bytes).unwrap();
            prop_assert_eq!(members.iter().map(|m| m.name.clone()).collect::<Vec<_>>(), names);
            prop_assert!(members.iter().all(|m| m.size == size));
        }

        /// Any damage ends in an error or in members, never in a panic or an endless walk.
        #[test]
        fn damage_is_survived(at in 0usize..1536, value: u8) {
            let mut bytes = header("a.jpg", 100);
            bytes.resize(1024, 1);
            bytes.extend(header("b.jpg", 0));
            bytes[at] = value;
            // Both outcomes are right.
            walk(&bytes).ok();
        }
    }

    #[test]
    fn truncation_and_sparse_members_are_named() {
        let mut bytes = header(&"n".repeat(200), 10);
        bytes.truncate(1024);
        assert!(walk(&bytes).unwrap_err().what.contains("truncated"));
        let mut sparse = block("s", 0, b'S');
        assert!(walk(&sparse).unwrap_err().what.contains("sparse"));
        sparse[0] = b't';
        assert!(walk(&sparse).unwrap_err().what.contains("checksum"));
    }
}
