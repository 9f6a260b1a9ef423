//! Token files: ids of a tokenizer, one after the other, cut in sequences of one length.
//!
//! Flow: files of uint16 or uint32 -> [`Tokens`] -> one read a sequence; neighbours share a read.
//! Memory: 24 bytes a file.
//!
//! A sample is `length + 1` tokens: the inputs of a model are all but the last, the targets all
//! but the first. The next sample starts `length` tokens later, so each token is a target once an
//! epoch. Documents are packed: a sequence may hold the end of one and the start of the next.
//! Files of llm.c name their type in a header; others have none (nanoGPT's `train.bin`), and the
//! user gives the type.

use std::path::Path;
use std::sync::Arc;

use crate::files::file_set::Files;
use crate::files::glob;
use crate::files::read::{aligned, staging_bytes};
use crate::index::shard_set::shard_set;
use crate::{Entry, Located, ReadMode, SizeBounds, Source};
use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Kind, Schema, Value};

/// The first word of a header of llm.c, and its type of tokens. A header has 256 words; the third
/// is the number of tokens.
const MAGICS: [(u32, DType); 2] = [(20_240_520, DType::Uint16), (20_240_801, DType::Uint32)];
const HEADER_BYTES: u64 = 1024;

/// The tokens of a file.
#[derive(Debug, Clone, Copy)]
struct Span {
    offset: u64,
    /// The id of its first sequence, and the number of sequences.
    first: u64,
    sequences: u64,
}

/// Sequences of token files.
#[derive(Debug)]
pub struct Tokens {
    name: String,
    files: Files,
    spans: Vec<Span>,
    dtype: DType,
    length: u64,
    schema: Schema,
    fingerprint: u64,
}

impl Tokens {
    /// Opens files by name or pattern, local or in an object store; `dtype` is that of files
    /// without a header.
    ///
    /// # Errors
    /// Missing files; a size that is no whole number of tokens; different types; no whole
    /// sequence.
    pub fn open(url: &str, length: u64, dtype: Option<DType>) -> Result<Arc<Self>> {
        if length == 0 || length >= 1 << 28 {
            return Err(Error::Config(format!("sequences of {length} tokens: give 1 to 2^28, such as 1024")));
        }
        let files = glob::named(url)?;
        let (_, _, identity) = shard_set(&files, "tokens")?;
        let (mut spans, mut found) = (Vec::new(), None);
        let mut first = 0;
        for (number, path) in files.paths().iter().enumerate() {
            let (this, offset, tokens) = look(&files, number as u32, path, dtype)?;
            if *found.get_or_insert(this) != this {
                return Err(Error::Dataset {
                    path: path.clone(),
                    what: format!(
                        "its tokens are {}, those of the files before are not: open them apart",
                        this.name()
                    ),
                });
            }
            let sequences = tokens.saturating_sub(1) / length;
            spans.push(Span { offset, first, sequences });
            first += sequences;
        }
        if first == 0 {
            let what = format!("no file has the {} tokens of a sequence", length + 1);
            return Err(Error::Dataset { path: url.into(), what });
        }
        let dtype = found.unwrap_or(DType::Uint16);
        let kind =
            Kind::NdArray { dtype: Some(dtype.name().to_owned()), shape: Some(vec![length as usize + 1]) };
        let schema = vec![Field { name: "tokens".into(), kind }];
        let fingerprint = [length, dtype.size() as u64]
            .iter()
            .fold(identity, |hash, word| tidegate_core::hash::splitmix64(hash ^ word));
        Ok(Arc::new(Self { name: url.to_owned(), files, spans, dtype, length, schema, fingerprint }))
    }

    fn bytes(&self) -> u32 {
        // Below 2^28 tokens of four bytes.
        ((self.length + 1) * self.dtype.size() as u64) as u32
    }

    /// The file of a sequence.
    fn file_of(&self, id: u64) -> usize {
        self.spans.partition_point(|span| span.first <= id).max(1) - 1
    }
}

/// The type of a file's tokens, the byte where they start, and their number.
fn look(files: &Files, number: u32, path: &Path, dtype: Option<DType>) -> Result<(DType, u64, u64)> {
    let bytes = files.bytes(number)?;
    let wrong = |offset, what: String| Error::format(path, offset, what);
    if bytes >= HEADER_BYTES {
        let mut staging = aligned(staging_bytes(12) as usize);
        let range = files.read(number, 0, 12, ReadMode::Drop, &mut staging)?;
        let words: Vec<u32> =
            staging[range].as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if words[0] == u32::from_le_bytes(*b"\x93NUM") {
            let what = "this is an .npy file, which tg.mapped reads: write bare tokens with tofile".into();
            return Err(wrong(0, what));
        }
        if let Some((_, own)) = MAGICS.iter().find(|(magic, _)| *magic == words[0]) {
            if let Some(other) = dtype.filter(|dtype| dtype != own) {
                let what = format!("its header says {}, not {}: leave dtype out", own.name(), other.name());
                return Err(wrong(0, what));
            }
            let (size, tokens) = (own.size() as u64, u64::from(words[2]));
            if HEADER_BYTES + tokens * size != bytes {
                let what = format!(
                    "its header counts {tokens} tokens of {}, which {bytes} bytes do not hold: copy it again",
                    own.name()
                );
                return Err(wrong(8, what));
            }
            return Ok((*own, HEADER_BYTES, tokens));
        }
    }
    let dtype = dtype.ok_or_else(|| {
        wrong(
            0,
            "it has no header that says the type of its tokens: give dtype=\"uint16\" or \"uint32\"".into(),
        )
    })?;
    if !matches!(dtype, DType::Uint16 | DType::Uint32) {
        return Err(Error::Config(format!("tokens of {}: they can be uint16 or uint32", dtype.name())));
    }
    let size = dtype.size() as u64;
    match bytes.is_multiple_of(size) {
        true => Ok((dtype, 0, bytes / size)),
        false => Err(wrong(
            bytes / size * size,
            format!(
                "{bytes} bytes are no whole number of {}: it is cut short, or of another type",
                dtype.name()
            ),
        )),
    }
}

impl Source for Tokens {
    fn name(&self) -> &str {
        &self.name
    }
    fn files(&self) -> Option<&Files> {
        Some(&self.files)
    }
    fn len(&self) -> u64 {
        self.spans.iter().map(|span| span.sequences).sum()
    }
    fn schema(&self) -> &Schema {
        &self.schema
    }
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
    fn shard_lengths(&self) -> Vec<u64> {
        self.spans.iter().map(|span| span.sequences).collect()
    }
    fn size_bounds(&self) -> SizeBounds {
        let sample_bytes = u64::from(self.bytes());
        SizeBounds { total_bytes: sample_bytes * self.len(), sample_bytes, ..SizeBounds::default() }
    }
    fn locate(&self, ids: &[u64]) -> Result<Vec<Located>> {
        let entry = |&id: &u64| {
            let file = self.file_of(id);
            let Span { offset, first, .. } = self.spans[file];
            let offset = offset + (id - first) * self.length * self.dtype.size() as u64;
            let entry = Entry { shard: file as u32, offset, len: self.bytes(), ..Entry::default() };
            Located { id, entry, path: "".into() }
        };
        Ok(ids.iter().map(entry).collect())
    }
    fn parse<'a>(&self, _: &Located, bytes: &'a [u8]) -> Result<Vec<Value<'a>>> {
        Ok(vec![Value::Bytes(bytes)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SourceExt;

    fn written(dir: &Path, name: &str, header: Option<(u32, u32)>, bytes: &[u8]) -> String {
        let mut whole = Vec::new();
        if let Some((magic, count)) = header {
            whole.extend([magic, 1, count].iter().flat_map(|word| word.to_le_bytes()));
            whole.resize(HEADER_BYTES as usize, 0);
        }
        whole.extend(bytes);
        std::fs::write(dir.join(name), whole).unwrap();
        dir.join(name).to_str().unwrap().to_owned()
    }

    #[test]
    fn sequences_overlap_by_one_token_and_end_with_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<u8> = (0..1000u16).flat_map(u16::to_le_bytes).collect();
        written(dir.path(), "a1.bin", None, &tokens);
        written(dir.path(), "a2.bin", None, &tokens[..400]);
        let source =
            Tokens::open(dir.path().join("a*.bin").to_str().unwrap(), 64, Some(DType::Uint16)).unwrap();
        assert_eq!((source.shard_lengths(), source.len()), (vec![15, 3], 18));
        crate::testing::source(&*source).unwrap();
        let row = |id: u64| -> Vec<u16> {
            source.fetch(id).unwrap().1.as_chunks().0.iter().map(|token| u16::from_le_bytes(*token)).collect()
        };
        for (id, first) in [(0, 0), (14, 14 * 64), (15, 0), (17, 128)] {
            assert_eq!(row(id), (first..first + 65).collect::<Vec<u16>>(), "sequence {id}");
        }
        let wide: Vec<u8> = (0..300u32).flat_map(u32::to_le_bytes).collect();
        let own = written(dir.path(), "b.bin", Some((20_240_801, 300)), &wide);
        let own = Tokens::open(&own, 100, None).unwrap();
        assert_eq!(
            (own.dtype, own.len(), own.fetch(1).unwrap().1[..4].to_vec()),
            (DType::Uint32, 2, vec![100, 0, 0, 0])
        );
    }

    #[test]
    fn what_is_no_token_file_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), "a.bin", None, &[0; 2001]);
        let words = |path: &str, length, dtype| Tokens::open(path, length, dtype).unwrap_err().to_string();
        assert!(words(&path, 8, None).contains("give dtype"));
        assert!(words(&path, 8, Some(DType::Uint16)).contains("no whole number"));
        assert!(words(&path, 0, Some(DType::Uint16)).contains("sequences of 0"));
        assert!(words(&path, 8, Some(DType::Float32)).contains("uint16 or uint32"));
        assert!(words("/nowhere.bin", 8, None).contains("no such file"));
        let short = written(dir.path(), "s.bin", None, &[0; 8]);
        assert!(words(&short, 4, Some(DType::Uint16)).contains("the 5 tokens"));
        let headed = written(dir.path(), "h.bin", Some((20_240_520, 50)), &[0; 100]);
        assert!(words(&headed, 4, Some(DType::Uint32)).contains("says uint16, not uint32"));
        let npy = written(dir.path(), "n.npy", None, &[&b"\x93NUMPY"[..], &[0; 1500]].concat());
        assert!(words(&npy, 4, Some(DType::Uint16)).contains("tg.mapped"));
        let lying = written(dir.path(), "l.bin", Some((20_240_520, 99)), &[0; 100]);
        assert!(words(&lying, 4, None).contains("counts 99 tokens"));
        written(dir.path(), "m1.bin", Some((20_240_520, 50)), &[0; 100]);
        written(dir.path(), "m2.bin", Some((20_240_801, 25)), &[0; 100]);
        assert!(words(dir.path().join("m?.bin").to_str().unwrap(), 4, None).contains("open them apart"));
    }
}
