//! Compresses arrays for shards: quantized, or by a codec that is given or found by trial.
//!
//! Flow: fields and [`Compression`] -> an [`ArrayEncoding`] for each array field -> the bytes of
//! an array.
//! Memory: one sample at a time.

use tidegate_array::codec;
use tidegate_array::kernels::convert::floats;
use tidegate_array::quantize::{Extent, Options, Per, Quantized, Rounding, Scheme};
use tidegate_data::{Error, Result};
use tidegate_decode::compact::QUANTIZED;
use tidegate_decode::npy::{ArrayRef, DType};
use tidegate_decode::{Kind, Value};
use tidegate_source::{Source, SourceExt};

/// Values that share the grid of a quantizer.
const BLOCK: usize = 128;
/// Samples that codecs are tried on, and the smallest gain for which `auto` uses one.
const TRIED: u64 = 64;
const MIN_GAIN: f64 = 1.2;
/// A codec replaces a simpler one only if its size is below this fraction of it.
const MAX_RATIO: f64 = 0.98;

/// Which arrays to compress, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compression {
    /// Float fields to quantize, and the bits of a value (2 to 8).
    pub quantize: Vec<(String, u32)>,
    /// Codecs of single fields: names of [`codec::parse`], or `auto` for the one that gains most,
    /// if one makes the arrays at least 1.2 times smaller.
    pub codecs: Vec<(String, String)>,
    /// The codec of all other array fields.
    pub codec: Option<String>,
}

/// How the arrays of a field are stored. All have one type and shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ArrayEncoding {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    method: Method,
}

#[derive(Debug, Clone, PartialEq)]
enum Method {
    /// Bits of a value.
    Quantized(u32),
    /// The name of a codec.
    Packed(String),
    /// Uncompressed and without a header, because no codec gains enough.
    Raw,
}

fn array<'a>(kind: &Kind, value: &Value<'a>) -> Result<ArrayRef<'a>> {
    let found = if let Value::Bytes(bytes) = value { kind.array(bytes) } else { None };
    match found {
        Some(array) => Ok(array?),
        None => Err(Error::decode(format!("{} is no array", value.describe()))),
    }
}

fn is_array(kind: &Kind) -> bool {
    matches!(kind, Kind::Npy | Kind::NdArray { .. })
}

impl Compression {
    /// The encoding of each field; none for a field that is stored as it is.
    ///
    /// # Errors
    /// [`Error::Config`] for a field that does not exist or holds no arrays, and for a
    /// codec that does not fit.
    pub(super) fn encodings(&self, source: &dyn Source) -> Result<Vec<Option<ArrayEncoding>>> {
        let quantized = self.quantize.iter().map(|(name, bits)| (name, *bits));
        // The bits do not matter for a codec: any valid number passes the check.
        for (name, bits) in quantized.chain(self.codecs.iter().map(|(name, _)| (name, 8))) {
            let field = source.schema().iter().find(|field| field.name == *name);
            let what = match field {
                None => {
                    let names: Vec<_> = source.schema().iter().map(|field| field.name.as_str()).collect();
                    format!("there is no field {name:?} to compress; the fields are {}", names.join(", "))
                }
                Some(field) if !is_array(&field.kind) => {
                    format!("field {name:?} holds {}, and only arrays can be compressed", field.kind.name())
                }
                Some(_) if !(2..=8).contains(&bits) => format!("{bits} bits for {name:?}: give 2 to 8"),
                Some(_) => continue,
            };
            return Err(Error::Config(what));
        }
        if self.codec.is_some() && !source.schema().iter().any(|field| is_array(&field.kind)) {
            return Err(Error::Config(
                "no field holds arrays that a codec could compress: leave the codec out".into(),
            ));
        }
        let (at, data) = source.fetch(0)?;
        let values = source.parse(&at, &data).map_err(|e| source.sample_error(&at, "", &e))?;
        source
            .schema()
            .iter()
            .zip(&values)
            .enumerate()
            .map(|(i, (field, value))| {
                if !is_array(&field.kind) {
                    return Ok(None);
                }
                let bits = self.quantize.iter().find(|(name, _)| *name == field.name).map(|(_, bits)| *bits);
                let own = self.codecs.iter().find(|(name, _)| *name == field.name).map(|(_, codec)| codec);
                let codec = own.or(self.codec.as_ref()).map(String::as_str);
                if bits.is_none() && codec.is_none() {
                    return Ok(None);
                }
                let first =
                    array(&field.kind, value).map_err(|e| source.sample_error(&at, &field.name, &e))?;
                choose(source, i, &first, bits, codec)
            })
            .collect()
    }
}

/// The encoding of a field; `first` is its first array.
fn choose(
    source: &dyn Source,
    i: usize,
    first: &ArrayRef<'_>,
    bits: Option<u32>,
    codec: Option<&str>,
) -> Result<Option<ArrayEncoding>> {
    let (field, dtype, shape) = (&source.schema()[i], first.dtype, first.shape.clone());
    let method = match (bits, codec) {
        (Some(bits), _) => {
            if !matches!(dtype, DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64) {
                return Err(Error::Config(format!(
                    "field {:?} holds {}, and only floats are quantized: give a codec for it",
                    field.name,
                    dtype.name()
                )));
            }
            Method::Quantized(bits)
        }
        (None, Some("auto")) => match try_codecs(source, i, first)? {
            Trial::Codec(name) => Method::Packed(name.to_owned()),
            // Arrays of different types or shapes, and types without a name in MDS, are stored as
            // they are.
            Trial::Mixed => return Ok(None),
            Trial::NoGain if matches!(dtype, DType::Bool | DType::Bfloat16) => return Ok(None),
            Trial::NoGain => Method::Raw,
        },
        (None, name) => {
            let name = name.unwrap_or_default();
            codec::parse(name, dtype, &shape).map_err(|e| {
                let name = &field.name;
                Error::Config(format!(
                    "field {name:?}: {e}; give it a codec of its own with --codec {name}=NAME"
                ))
            })?;
            Method::Packed(name.to_owned())
        }
    };
    Ok(Some(ArrayEncoding { dtype, shape, method }))
}

/// The outcome of trying codecs.
enum Trial {
    Codec(&'static str),
    NoGain,
    /// Some arrays have another type or shape than the first.
    Mixed,
}

/// Tries all codecs on some samples, and chooses the one that compresses best.
fn try_codecs(source: &dyn Source, i: usize, first: &ArrayRef<'_>) -> Result<Trial> {
    let field = &source.schema()[i];
    let candidates = codec::candidates(first.dtype);
    let (mut whole, mut sizes) = (0, vec![0; candidates.len()]);
    for k in 0..TRIED.min(source.len()) {
        let (at, data) = source.fetch(k * source.len() / TRIED.min(source.len()))?;
        let values = source.parse(&at, &data).map_err(|e| source.sample_error(&at, "", &e))?;
        let found = array(&field.kind, &values[i]).map_err(|e| source.sample_error(&at, &field.name, &e))?;
        if (found.dtype, &found.shape) != (first.dtype, &first.shape) {
            return Ok(Trial::Mixed);
        }
        let elements = found.elements();
        whole += elements.len();
        for (name, size) in candidates.iter().zip(&mut sizes) {
            *size += packed(name, found.dtype, &found.shape, &elements)?.len();
        }
    }
    let mut chosen = (None, whole as f64 / MIN_GAIN);
    for (name, size) in candidates.into_iter().zip(sizes) {
        let least = if chosen.0.is_some() { MAX_RATIO * chosen.1 } else { chosen.1 };
        if (size as f64) < least {
            chosen = (Some(name), size as f64);
        }
    }
    Ok(chosen.0.map_or(Trial::NoGain, Trial::Codec))
}

fn packed(name: &str, dtype: DType, shape: &[usize], elements: &[u8]) -> Result<Vec<u8>> {
    codec::pack(name, dtype, shape, elements).map_err(|e| Error::decode(e.to_string()))
}

impl ArrayEncoding {
    /// The words for it in the note of a finished shard. They must not change: a run that was
    /// interrupted is continued only if they are equal.
    pub(super) fn resume_key(&self) -> String {
        let method = match &self.method {
            Method::Quantized(bits) => format!("Quantized({bits})"),
            Method::Packed(name) => format!("Packed({name:?})"),
            Method::Raw => "Whole".into(),
        };
        format!("Some(Way {{ dtype: {:?}, shape: {:?}, how: {method} }})", self.dtype, self.shape)
    }

    /// The name of the codec for readers, if the arrays are compressed.
    pub(super) fn codec(&self) -> Option<&str> {
        match &self.method {
            Method::Quantized(_) => Some(QUANTIZED),
            Method::Packed(name) => Some(name),
            Method::Raw => None,
        }
    }

    /// The name of the column's encoding in MDS.
    pub(super) fn encoding(&self) -> String {
        match &self.method {
            Method::Raw => {
                let shape: Vec<_> = self.shape.iter().map(usize::to_string).collect();
                format!("ndarray:{}:{}", self.dtype.name(), shape.join(","))
            }
            _ => "bytes".to_owned(),
        }
    }

    /// The bytes of a sample's array.
    ///
    /// # Errors
    /// [`Error::Decode`] for an array of another type or shape than the first, and for NaN or
    /// infinity in an array that is quantized.
    pub(super) fn bytes(&self, kind: &Kind, value: &Value<'_>) -> Result<Vec<u8>> {
        let found = array(kind, value)?;
        if found.dtype != self.dtype || found.shape != self.shape {
            return Err(Error::decode(format!(
                "an array of {} {:?}, where the first one is {} {:?}: only fields whose arrays have one \
                 type \
                 and shape can be compressed",
                found.dtype.name(),
                found.shape,
                self.dtype.name(),
                self.shape
            )));
        }
        let elements = found.elements();
        match &self.method {
            Method::Raw => Ok(elements.into_owned()),
            Method::Packed(name) => packed(name, self.dtype, &self.shape, &elements),
            Method::Quantized(bits) => {
                let options = Options {
                    bits: *bits,
                    scheme: Scheme::Offset,
                    per: Per::Block(BLOCK),
                    extent: Extent::Whole,
                    rounding: Rounding::Nearest,
                };
                let values = floats(self.dtype, &elements);
                let small = Quantized::new(&values, &self.shape, &options).and_then(|small| small.to_bytes());
                small.map_err(|e| Error::decode(e.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_finished_shards_keep_their_words() {
        let encoding = |method| ArrayEncoding { dtype: DType::Float32, shape: vec![2, 3], method };
        let key = |method| encoding(method).resume_key();
        assert_eq!(
            key(Method::Quantized(4)),
            "Some(Way { dtype: Float32, shape: [2, 3], how: Quantized(4) })"
        );
        assert_eq!(
            key(Method::Packed("zstd".into())),
            "Some(Way { dtype: Float32, shape: [2, 3], how: Packed(\"zstd\") })"
        );
        assert_eq!(key(Method::Raw), "Some(Way { dtype: Float32, shape: [2, 3], how: Whole })");
    }
}
