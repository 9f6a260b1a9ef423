//! Arrays made small on their way into shards: quantized, or packed by a codec that is given or found by trying.
//!
//! Flow: fields and wishes -> a [`Way`] for each field of arrays -> the bytes of a sample's array.
//! Memory: one sample at a time; some of them while codecs are tried.

use tidegate_array::codec;
use tidegate_array::kernels::convert::floats;
use tidegate_array::quantize::{Extent, Options, Per, Quantized, Rounding, Scheme};
use tidegate_data::{Error, Result};
use tidegate_decode::compact::QUANTIZED;
use tidegate_decode::npy::{ArrayRef, DType};
use tidegate_decode::{Kind, Value};
use tidegate_source::{Source, SourceExt};

/// Values that share a grid.
const BLOCK: usize = 128;
/// Samples that codecs are tried on, and the least gain for which one is used.
const TRIED: u64 = 64;
const GAIN: f64 = 1.2;
/// A codec has to be so much smaller than a simpler one.
const BETTER: f64 = 0.98;

/// What is to be made small.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Small {
    /// Fields of floats, and the bits of a value.
    pub quantize: Vec<(String, u32)>,
    /// The codecs of single fields: names of [`codec::parse`], or `auto` for the one that gains most, if any gains a fifth.
    pub codecs: Vec<(String, String)>,
    /// The codec of all other arrays.
    pub codec: Option<String>,
}

/// How the arrays of a field are made small: all of one type and shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Bits of a quantized value, or the name of a codec.
    how: How,
}

#[derive(Debug, Clone, PartialEq)]
enum How {
    Quantized(u32),
    Packed(String),
    /// As they are: no codec gains enough.
    Whole,
}

fn array<'a>(kind: &Kind, value: &Value<'a>) -> Result<ArrayRef<'a>> {
    let found = if let Value::Bytes(bytes) = value { kind.array(bytes) } else { None };
    match found {
        Some(array) => Ok(array?),
        None => Err(Error::decode(format!("{} is no array", value.word()))),
    }
}

fn is_array(kind: &Kind) -> bool {
    matches!(kind, Kind::Npy | Kind::NdArray { .. })
}

impl Small {
    /// The way of each field, if it is made small.
    ///
    /// # Errors
    /// [`Error::Config`] for fields that there are not, or that are no arrays, and codecs that cannot have them.
    pub(super) fn ways(&self, source: &dyn Source) -> Result<Vec<Option<Way>>> {
        let quantized = self.quantize.iter().map(|(name, bits)| (name, *bits));
        // Any width will do to see whether a field is there and holds arrays.
        for (name, bits) in quantized.chain(self.codecs.iter().map(|(name, _)| (name, 8))) {
            let field = source.schema().iter().find(|field| field.name == *name);
            let what = match field {
                None => {
                    let names: Vec<_> = source.schema().iter().map(|field| field.name.as_str()).collect();
                    format!("there is no field {name:?} to make small: there are {}", names.join(", "))
                }
                Some(field) if !is_array(&field.kind) => {
                    format!("field {name:?} holds {}, and only arrays can be made small", field.kind.name())
                }
                Some(_) if !(2..=8).contains(&bits) => format!("{bits} bits for {name:?}: 2 to 8 can be had"),
                Some(_) => continue,
            };
            return Err(Error::Config(what));
        }
        if self.codec.is_some() && !source.schema().iter().any(|field| is_array(&field.kind)) {
            return Err(Error::Config("no field holds arrays, which a codec is for: leave it out".into()));
        }
        let (at, data) = source.fetch(0)?;
        let values = source.parse(&at, &data).map_err(|e| source.blame(&at, "", &e))?;
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
                let first = array(&field.kind, value).map_err(|e| source.blame(&at, &field.name, &e))?;
                way(source, i, &first, bits, codec)
            })
            .collect()
    }
}

/// How the arrays of a field are made small, of which this is the first.
fn way(
    source: &dyn Source,
    i: usize,
    first: &ArrayRef<'_>,
    bits: Option<u32>,
    codec: Option<&str>,
) -> Result<Option<Way>> {
    let (field, dtype, shape) = (&source.schema()[i], first.dtype, first.shape.clone());
    let how = match (bits, codec) {
        (Some(bits), _) => {
            if !matches!(dtype, DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64) {
                return Err(Error::Config(format!(
                    "field {:?} holds {}, and only floats are quantized: give a codec for it",
                    field.name,
                    dtype.name()
                )));
            }
            How::Quantized(bits)
        }
        (None, Some("auto")) => match best(source, i, first)? {
            Found::Codec(name) => How::Packed(name.to_owned()),
            // Arrays that are not alike, and types that MDS has no name for, stay in the format that they came in.
            Found::Unlike => return Ok(None),
            Found::NoGain if matches!(dtype, DType::Bool | DType::Bfloat16) => return Ok(None),
            Found::NoGain => How::Whole,
        },
        (None, name) => {
            let name = name.unwrap_or_default();
            codec::parse(name, dtype, &shape).map_err(|e| {
                let name = &field.name;
                Error::Config(format!("field {name:?}: {e}; --codec {name}=NAME gives it one of its own"))
            })?;
            How::Packed(name.to_owned())
        }
    };
    Ok(Some(Way { dtype, shape, how }))
}

/// What trying codecs finds.
enum Found {
    Codec(&'static str),
    NoGain,
    /// Arrays of other types or shapes than the first one.
    Unlike,
}

/// The codec that makes some samples smallest, if it gains enough.
fn best(source: &dyn Source, i: usize, first: &ArrayRef<'_>) -> Result<Found> {
    let field = &source.schema()[i];
    let candidates = codec::candidates(first.dtype);
    let (mut whole, mut sizes) = (0, vec![0; candidates.len()]);
    for k in 0..TRIED.min(source.len()) {
        let (at, data) = source.fetch(k * source.len() / TRIED.min(source.len()))?;
        let values = source.parse(&at, &data).map_err(|e| source.blame(&at, "", &e))?;
        let found = array(&field.kind, &values[i]).map_err(|e| source.blame(&at, &field.name, &e))?;
        if (found.dtype, &found.shape) != (first.dtype, &first.shape) {
            return Ok(Found::Unlike);
        }
        whole += found.data.len();
        for (name, size) in candidates.iter().zip(&mut sizes) {
            *size += packed(name, found.dtype, &found.shape, found.data)?.len();
        }
    }
    let mut chosen = (None, whole as f64 / GAIN);
    for (name, size) in candidates.into_iter().zip(sizes) {
        let least = if chosen.0.is_some() { BETTER * chosen.1 } else { chosen.1 };
        if (size as f64) < least {
            chosen = (Some(name), size as f64);
        }
    }
    Ok(chosen.0.map_or(Found::NoGain, Found::Codec))
}

fn packed(name: &str, dtype: DType, shape: &[usize], elements: &[u8]) -> Result<Vec<u8>> {
    codec::pack(name, dtype, shape, elements).map_err(|e| Error::decode(e.to_string()))
}

impl Way {
    /// What a reader calls it, if it is smaller.
    pub(super) fn codec(&self) -> Option<&str> {
        match &self.how {
            How::Quantized(_) => Some(QUANTIZED),
            How::Packed(name) => Some(name),
            How::Whole => None,
        }
    }

    /// The encoding of its column.
    pub(super) fn encoding(&self) -> String {
        match &self.how {
            How::Whole => {
                let shape: Vec<_> = self.shape.iter().map(usize::to_string).collect();
                format!("ndarray:{}:{}", self.dtype.name(), shape.join(","))
            }
            _ => "bytes".to_owned(),
        }
    }

    /// The bytes of a sample's array.
    ///
    /// # Errors
    /// [`Error::Decode`] for an array of another type or shape than the first one, NaN and infinities in what is quantized.
    pub(super) fn bytes(&self, kind: &Kind, value: &Value<'_>) -> Result<Vec<u8>> {
        let found = array(kind, value)?;
        if found.dtype != self.dtype || found.shape != self.shape {
            return Err(Error::decode(format!(
                "an array of {} {:?}, where the first one is {} {:?}: only fields whose arrays are alike can be made small",
                found.dtype.name(),
                found.shape,
                self.dtype.name(),
                self.shape
            )));
        }
        match &self.how {
            How::Whole => Ok(found.data.to_vec()),
            How::Packed(name) => packed(name, self.dtype, &self.shape, found.data),
            How::Quantized(bits) => {
                let options = Options {
                    bits: *bits,
                    scheme: Scheme::Offset,
                    per: Per::Block(BLOCK),
                    extent: Extent::Whole,
                    rounding: Rounding::Nearest,
                };
                let values = floats(self.dtype, found.data);
                let small = Quantized::new(&values, &self.shape, &options).and_then(|small| small.to_bytes());
                small.map_err(|e| Error::decode(e.to_string()))
            }
        }
    }
}
