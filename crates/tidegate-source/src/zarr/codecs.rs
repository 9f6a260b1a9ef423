//! From the stored bytes of a chunk to its elements: a chain of codecs, run backwards.
//!
//! Flow: stored bytes -> each codec of bytes, undone within a bound -> elements in C order and
//! native endian, in the caller's memory.
//! Memory: bytes between two codecs, and contexts: at most [`Decoder::library_bytes`], which the
//! caller has charged.
//!
//! The codecs are those of `zarrs`. Some state the length of their output only in the data (zstd,
//! gzip, zlib, bz2, blosc), and `zarrs` allocates what they claim; this file undoes them into
//! memory of a known size. The usual chunk is compressed once: its elements are decoded straight
//! into the caller's memory.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Read;
use std::num::NonZeroU64;
use std::sync::Arc;

use zarrs::array::{
    ArrayBytes, ArrayToBytesCodecTraits, BytesRepresentation, BytesToBytesCodecTraits, CodecChain,
    CodecMetadataOptions, CodecOptions, DataType, FillValue,
};
use zarrs::metadata::v3::MetadataV3;
use zarrs::plugin::ExtensionName;

use crate::{Error, Result};

/// Bytes of contexts: zstd (one a thread) and inflate.
const CONTEXT_BYTES: u64 = 256 << 10;
/// Bytes of the largest blocks of bz2.
const BZ2_BYTES: u64 = 4 << 20;

thread_local! {
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// One codec of bytes.
#[derive(Debug)]
enum Step {
    Zstd,
    Gzip,
    Zlib,
    Bz2,
    Blosc,
    Crc32c,
    /// One that nearly keeps the length; `zarrs` undoes it.
    Other(Arc<dyn BytesToBytesCodecTraits>),
}

/// Decodes the chunks of one array.
#[derive(Debug)]
pub(super) struct Decoder {
    /// In the order of decoding, each with the most bytes it makes.
    steps: Vec<(Step, u64)>,
    /// The codecs from bytes to elements.
    elements: CodecChain,
    /// Whether the bytes are the elements in native order.
    native: bool,
    shape: Vec<NonZeroU64>,
    dtype: DataType,
    fill: FillValue,
    bytes: u64,
    stored_bytes: u64,
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::decode(what.to_string())
}

/// The most that a codec makes of `bytes`, where it states no bound.
fn padded(bytes: u64) -> u64 {
    bytes + bytes / 4 + (64 << 10)
}

impl Decoder {
    /// A decoder of chunks of this shape and type.
    ///
    /// # Errors
    /// [`Error::Decode`] for codecs that do not fit each other.
    pub(super) fn new(
        chain: &CodecChain,
        shape: &[NonZeroU64],
        dtype: &DataType,
        fill: &FillValue,
    ) -> Result<Self> {
        let size = dtype
            .fixed_size()
            .ok_or_else(|| wrong("elements of varying length cannot be read as patches"))?;
        let elements = shape.iter().try_fold(size as u64, |n, side| n.checked_mul(side.get()));
        let bytes = elements.ok_or_else(|| wrong("a chunk of more than 2^64 bytes"))?;
        let (arrays, to_bytes) = (chain.array_to_array_codecs(), chain.array_to_bytes_codec());
        if to_bytes.name_v3().as_deref() == Some("sharding_indexed") {
            // `zarrs` would allocate what its inner chunks claim.
            return Err(wrong(
                "shards in shards, or after other codecs: write the array with sharding_indexed as its \
                 only codec",
            ));
        }
        let mut at = (shape.to_vec(), dtype.clone(), fill.clone());
        for codec in arrays {
            at = codec.encoded_representation(&at.0, &at.1, &at.2).map_err(wrong)?;
        }
        let mut made = to_bytes.encoded_representation(&at.0, &at.1, &at.2).map_err(wrong)?;
        let mut steps = Vec::new();
        for codec in chain.bytes_to_bytes_codecs() {
            let most = made.size().unwrap_or_else(|| padded(bytes));
            steps.push((step(codec), most));
            made = codec.encoded_representation(&made);
        }
        steps.reverse();
        let stored_bytes = made.size().unwrap_or(0).max(padded(bytes));
        let native = arrays.is_empty() && is_native(to_bytes.as_ref(), size);
        Ok(Self {
            steps,
            elements: CodecChain::new(arrays.to_vec(), Arc::clone(to_bytes), Vec::new()),
            native,
            shape: shape.to_vec(),
            dtype: dtype.clone(),
            fill: fill.clone(),
            bytes,
            stored_bytes,
        })
    }

    /// Bytes of a chunk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The most bytes of a stored chunk.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// The most bytes that decoding takes in addition.
    pub(super) fn library_bytes(&self) -> u64 {
        let between = |(step, most): &(Step, u64)| match step {
            Step::Crc32c => 0,
            Step::Bz2 => *most + BZ2_BYTES,
            // Two of its blocks, each as large as the whole at most.
            Step::Blosc => 3 * *most,
            _ => *most,
        };
        let steps: u64 = self.steps.iter().map(between).sum();
        // Each codec of elements makes a copy.
        let elements = if self.native {
            0
        } else {
            self.bytes * (2 + self.elements.array_to_array_codecs().len() as u64)
        };
        steps.saturating_add(elements).saturating_add(CONTEXT_BYTES)
    }

    /// Decodes a chunk into `into`, which has its length.
    ///
    /// # Errors
    /// [`Error::Decode`] naming the codec.
    pub(super) fn decode(&self, stored: &[u8], into: &mut [u8]) -> Result<()> {
        let mut bytes = Cow::Borrowed(stored);
        for (i, (step, most)) in self.steps.iter().enumerate() {
            if self.native
                && i + 1 == self.steps.len()
                && !matches!(step, Step::Other(_) | Step::Crc32c | Step::Blosc)
            {
                let len = step.undo_into(&bytes, into)?;
                return self.check(len);
            }
            bytes = step.undo(bytes, *most)?;
        }
        if self.native {
            self.check(bytes.len())?;
            into.copy_from_slice(&bytes);
            return Ok(());
        }
        let options = CodecOptions::default().with_concurrent_target(1);
        let elements =
            self.elements.decode(bytes, &self.shape, &self.dtype, &self.fill, &options).map_err(wrong)?;
        let ArrayBytes::Fixed(elements) = elements else { return Err(wrong("elements of varying length")) };
        self.check(elements.len())?;
        into.copy_from_slice(&elements);
        Ok(())
    }

    fn check(&self, len: usize) -> Result<()> {
        if len as u64 == self.bytes {
            return Ok(());
        }
        Err(wrong(format!("it decodes to {len} bytes where the chunk shape makes {}", self.bytes)))
    }
}

/// Whether the codec keeps elements of `size` bytes in the machine's byte order.
fn is_native(codec: &dyn ArrayToBytesCodecTraits, size: usize) -> bool {
    let configuration = codec.configuration_v3(&CodecMetadataOptions::default());
    let endian = configuration.as_ref().and_then(|c| c.get("endian")).and_then(|e| e.as_str());
    let native = if cfg!(target_endian = "little") { "little" } else { "big" };
    codec.name_v3().as_deref() == Some("bytes") && (size == 1 || endian == Some(native))
}

fn step(codec: &Arc<dyn BytesToBytesCodecTraits>) -> Step {
    let name = codec.name_v3().or_else(|| codec.name_v2()).unwrap_or_default();
    match name.rsplit('.').next().unwrap_or_default() {
        "zstd" => Step::Zstd,
        "gzip" => Step::Gzip,
        "zlib" => Step::Zlib,
        "bz2" => Step::Bz2,
        "blosc" => Step::Blosc,
        "crc32c" => Step::Crc32c,
        _ => Step::Other(Arc::clone(codec)),
    }
}

impl Step {
    /// Undoes the codec, into at most `most` bytes of its own.
    fn undo<'a>(&self, bytes: Cow<'a, [u8]>, most: u64) -> Result<Cow<'a, [u8]>> {
        match self {
            Self::Crc32c => checked(bytes),
            Self::Other(codec) => {
                let options = CodecOptions::default().with_concurrent_target(1);
                codec.decode(bytes, &BytesRepresentation::BoundedSize(most), &options).map_err(wrong)
            }
            Self::Blosc => blosc(&bytes, most).map(Cow::Owned),
            _ => {
                let mut into = vec![0; most as usize];
                let len = self.undo_into(&bytes, &mut into)?;
                into.truncate(len);
                Ok(Cow::Owned(into))
            }
        }
    }

    /// Undoes the codec into the start of `into` and returns the number of bytes.
    fn undo_into(&self, bytes: &[u8], into: &mut [u8]) -> Result<usize> {
        match self {
            Self::Zstd => ZSTD.with_borrow_mut(|kept| {
                let context = match kept {
                    Some(context) => context,
                    None => kept.insert(zstd::bulk::Decompressor::new().map_err(wrong)?),
                };
                context.decompress_to_buffer(bytes, into).map_err(|e| wrong(format!("zstd: {e}")))
            }),
            Self::Gzip => fill("gzip", flate2::read::MultiGzDecoder::new(bytes), into),
            Self::Zlib => fill("zlib", flate2::read::ZlibDecoder::new(bytes), into),
            Self::Bz2 => fill("bz2", bzip2::read::MultiBzDecoder::new(bytes), into),
            Self::Blosc | Self::Crc32c | Self::Other(_) => {
                Err(Error::Internal("this codec cannot decode into given memory".into()))
            }
        }
    }
}

/// Reads to the end, or until `into` is full.
fn fill(name: &str, mut reader: impl Read, into: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    loop {
        let mut one_more = [0];
        let room = if done < into.len() { &mut into[done..] } else { &mut one_more[..] };
        match reader.read(room) {
            Ok(0) => return Ok(done),
            Ok(_) if done == into.len() => {
                return Err(wrong(format!(
                    "{name}: it decodes to more than the {done} bytes that the chunk shape makes"
                )));
            }
            Ok(came) => done += came,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(wrong(format!("{name}: {error}"))),
        }
    }
}

/// The bytes before their checksum, if it matches.
fn checked(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, [u8]>> {
    let (inner, sum) =
        bytes.split_last_chunk::<4>().ok_or_else(|| wrong("crc32c: it ends before its checksum"))?;
    let (found, said) = (crc32c::crc32c(inner), u32::from_le_bytes(*sum));
    if found != said {
        return Err(wrong(format!("crc32c: its checksum is {found:08x}, and {said:08x} was stored")));
    }
    let len = inner.len();
    Ok(match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..len]),
        Cow::Owned(mut bytes) => {
            bytes.truncate(len);
            Cow::Owned(bytes)
        }
    })
}

/// Undoes blosc, whose header states its length.
fn blosc(bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    use zarrs::array::codec::{blosc_decompress_bytes, blosc_validate};
    let Some(len) = blosc_validate(bytes) else { return Err(wrong("blosc: it is damaged")) };
    if len as u64 > most {
        return Err(wrong(format!("blosc: it decodes to {len} bytes where the chunk shape makes {most}")));
    }
    blosc_decompress_bytes(bytes, len, 1).map_err(|e| wrong(format!("blosc: {e}")))
}

/// The names of the known codecs.
const KNOWN: &str = "bitround, blosc, bytes, bz2, crc32c, fixedscaleoffset, gzip, packbits, reshape, \
                     sharding_indexed, shuffle, squeeze, transpose, zlib, zstd";

/// Makes the chain of codecs of metadata.
///
/// # Errors
/// [`Error::Decode`] with the unknown codec, and the known ones.
pub(super) fn chain(metadata: &[MetadataV3]) -> Result<CodecChain> {
    CodecChain::from_metadata(metadata).map_err(|error| unknown(&error))
}

/// An error about codecs, with the known ones.
pub(super) fn unknown(error: &dyn std::fmt::Display) -> Error {
    wrong(format!("{error}; known codecs are {KNOWN}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library would trust the lengths of inner chunks.
    #[test]
    fn shards_behind_other_codecs_are_refused() {
        let named = |text: &str| MetadataV3::try_from(text).unwrap();
        let shard = r#"{"name": "sharding_indexed", "configuration": {"chunk_shape": [8, 8], "codecs": [{"name": "zstd",
            "configuration": {"level": 3, "checksum": false}}], "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}}"#;
        let shard = shard.replace(
            r#""codecs": ["#,
            r#""codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, "#,
        );
        let chain = chain(&[named(&shard), named(r#"{"name": "crc32c"}"#)]).unwrap();
        let shape = [NonZeroU64::new(64).unwrap(); 2];
        let (dtype, fill) = (zarrs::array::data_type::uint16(), FillValue::from(0u16));
        let error = Decoder::new(&chain, &shape, &dtype, &fill).unwrap_err().to_string();
        assert!(error.contains("only codec"), "{error}");
    }

    #[test]
    fn what_decodes_to_another_length_is_refused_before_it_takes_memory() {
        let shape = [NonZeroU64::new(64).unwrap(); 2];
        let (dtype, fill) = (zarrs::array::data_type::uint16(), FillValue::from(0u16));
        let bytes: Vec<u8> = (0..64 * 64 * 2).map(|i| (i / 7) as u8).collect();
        let huge = vec![0u8; 64 << 20];
        for name in ["zstd", "gzip", "bz2", "zlib"] {
            let step = match name {
                "zstd" => Step::Zstd,
                "gzip" => Step::Gzip,
                "zlib" => Step::Zlib,
                _ => Step::Bz2,
            };
            let pack = |bytes: &[u8]| -> Vec<u8> {
                let mut packed = Vec::new();
                match name {
                    "zstd" => packed = zstd::bulk::compress(bytes, 3).unwrap(),
                    "gzip" => drop(
                        flate2::read::GzEncoder::new(bytes, flate2::Compression::fast())
                            .read_to_end(&mut packed)
                            .unwrap(),
                    ),
                    "zlib" => drop(
                        flate2::read::ZlibEncoder::new(bytes, flate2::Compression::fast())
                            .read_to_end(&mut packed)
                            .unwrap(),
                    ),
                    _ => drop(
                        bzip2::read::BzEncoder::new(bytes, bzip2::Compression::fast())
                            .read_to_end(&mut packed)
                            .unwrap(),
                    ),
                }
                packed
            };
            let chain =
                chain(&[MetadataV3::try_from(r#"{"name": "bytes", "configuration": {"endian": "little"}}"#)
                    .unwrap()])
                .unwrap();
            let mut decoder = Decoder::new(&chain, &shape, &dtype, &fill).unwrap();
            decoder.steps.push((step, decoder.bytes));
            let mut into = vec![0; bytes.len()];
            decoder.decode(&pack(&bytes), &mut into).unwrap();
            assert_eq!(into, bytes, "{name}");
            for (stored, word) in [
                (pack(&huge), ""),
                (pack(&bytes[2..]), "8190 bytes"),
                (pack(&bytes)[..20].to_vec(), ""),
                (Vec::new(), ""),
                (b"no such thing as this".to_vec(), ""),
            ] {
                let error = decoder.decode(&stored, &mut into).unwrap_err().to_string();
                assert!(error.contains(word), "{name}: {error}");
            }
        }
    }
}
