//! Packers: the end of a chain, where bytes become fewer.
//!
//! Flow: bytes -> LZ4, Zstandard, deflate, or pco (of numbers) -> the same bytes.
//! Memory: contexts of the libraries, as [`Packer::room_bytes`] bounds them.

use half::f16;
use pco::ChunkConfig;
use pco::standalone::{simple_compress, simple_decompress_into};

use super::damaged;
use crate::{DType, Error, Result};

/// What decoding takes besides, at most: windows and tables. pco's chunks have at most 2^18 numbers of state and 2^14 bins.
const ZSTD_BYTES: u64 = 192 << 10;
const DEFLATE_BYTES: u64 = 64 << 10;
const PCO_BYTES: u64 = 2 << 20;

/// Runs an expression with the type that pco has for elements.
macro_rules! with_pco {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::Uint16 => with_pco!(@ u16, $T, $body),
            DType::Int16 => with_pco!(@ i16, $T, $body),
            DType::Uint32 => with_pco!(@ u32, $T, $body),
            DType::Int32 => with_pco!(@ i32, $T, $body),
            DType::Int64 => with_pco!(@ i64, $T, $body),
            DType::Float16 => with_pco!(@ f16, $T, $body),
            DType::Float32 => with_pco!(@ f32, $T, $body),
            DType::Float64 => with_pco!(@ f64, $T, $body),
            // Of those there are, eight bytes are left.
            _ => with_pco!(@ u64, $T, $body),
        }
    };
    (@ $type:ty, $T:ident, $body:expr) => {{
        type $T = $type;
        $body
    }};
}
/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packer {
    Lz4,
    Zstd(i32),
    Deflate(u32),
    Pco(DType),
}

impl Packer {
    pub(super) fn parse(name: &str, dtype: DType) -> Result<Self> {
        let (kind, level) = name.split_once(':').map_or((name, None), |(kind, level)| (kind, Some(level)));
        let level = |usual: i32, levels: std::ops::RangeInclusive<i32>| match level.map(str::parse::<i32>) {
            None => Ok(usual),
            Some(Ok(level)) if levels.contains(&level) => Ok(level),
            _ => {
                Err(Error::option(format!("{name:?}: levels go from {} to {}", levels.start(), levels.end())))
            }
        };
        match kind {
            "lz4" if name == kind => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd(level(3, 1..=19)?)),
            "deflate" => Ok(Self::Deflate(level(6, 1..=9)?.unsigned_abs())),
            "pco" if dtype.size() == 1 || dtype == DType::Bfloat16 => {
                Err(Error::option(format!("pco packs numbers of 16 to 64 bits, not {}", dtype.name())))
            }
            "pco" if name == kind => Ok(Self::Pco(dtype)),
            _ => Err(Error::option(format!(
                "an unknown codec {name:?}: known are lz4, zstd, deflate, pco, behind delta, shuffle or bitround:<bits>, as in \
                 delta+shuffle+zstd:3; and abs:<error> and rel:<error>"
            ))),
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Lz4 => "lz4".into(),
            Self::Zstd(3) => "zstd".into(),
            Self::Zstd(level) => format!("zstd:{level}"),
            Self::Deflate(6) => "deflate".into(),
            Self::Deflate(level) => format!("deflate:{level}"),
            Self::Pco(_) => "pco".into(),
        }
    }

    pub(super) fn room_bytes(&self, len: u64) -> u64 {
        match self {
            Self::Lz4 => 0,
            Self::Zstd(_) => ZSTD_BYTES,
            Self::Deflate(_) => DEFLATE_BYTES,
            // Elements that are not aligned are made elsewhere.
            Self::Pco(_) => PCO_BYTES + len,
        }
    }

    pub(super) fn encode(&self, bytes: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| Error::value(format!("{}: {e}", self.name()));
        match self {
            Self::Lz4 => {
                let start = into.len();
                into.resize(start + lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
                let len =
                    lz4_flex::block::compress_into(bytes, &mut into[start..]).map_err(|e| failed(&e))?;
                into.truncate(start + len);
            }
            Self::Zstd(level) => into.extend(zstd::bulk::compress(bytes, *level).map_err(|e| failed(&e))?),
            Self::Deflate(level) => {
                let mut packing = flate2::Compress::new(flate2::Compression::new(*level), false);
                loop {
                    into.reserve((bytes.len() / 2).max(4096));
                    let done = packing.total_in() as usize;
                    let status = packing.compress_vec(&bytes[done..], into, flate2::FlushCompress::Finish);
                    if status.map_err(|e| failed(&e))? == flate2::Status::StreamEnd {
                        break;
                    }
                }
            }
            Self::Pco(dtype) => with_pco!(*dtype, T => {
                let (words, rest) = bytes.as_chunks::<{ size_of::<T>() }>();
                if !rest.is_empty() {
                    return Err(failed(&"bytes that are no whole number of elements"));
                }
                let numbers: Vec<T> = words.iter().map(|word| T::from_le_bytes(*word)).collect();
                into.extend(simple_compress(&numbers, &ChunkConfig::default()).map_err(|e| failed(&e))?);
            }),
        }
        Ok(())
    }

    pub(super) fn decode(&self, packed: &[u8], into: &mut [u8]) -> Result<()> {
        let wanted = into.len();
        let came = match self {
            Self::Lz4 => lz4_flex::block::decompress_into(packed, into).map_err(damaged)?,
            Self::Zstd(_) => zstd::bulk::decompress_to_buffer(packed, into).map_err(damaged)?,
            Self::Deflate(_) => {
                let mut unpacking = flate2::Decompress::new(false);
                let status = unpacking.decompress(packed, into, flate2::FlushDecompress::Finish);
                if status.map_err(damaged)? != flate2::Status::StreamEnd {
                    return Err(damaged("they go on behind the last element, or end before it"));
                }
                unpacking.total_out() as usize
            }
            Self::Pco(dtype) => with_pco!(*dtype, T => {
                if let Ok(numbers) = bytemuck::try_cast_slice_mut::<u8, T>(into) {
                    unpco(packed, numbers)?;
                } else {
                    let mut numbers = crate::filled(Some(wanted / size_of::<T>()), T::default())?;
                    unpco(packed, &mut numbers)?;
                    into.copy_from_slice(bytemuck::cast_slice(&numbers));
                }
                wanted
            }),
        };
        if came == wanted {
            Ok(())
        } else {
            Err(damaged(format!("{came} bytes of elements, where {wanted} should be")))
        }
    }
}

/// Numbers of pco, all of them and no more.
///
/// # Errors
/// [`Error::Value`] for bytes that are something else.
pub(super) fn unpco<T: pco::data_types::Number>(packed: &[u8], into: &mut [T]) -> Result<()> {
    let wanted = into.len();
    let progress = simple_decompress_into(packed, into).map_err(damaged)?;
    match progress.finished && progress.n_processed == wanted {
        true => Ok(()),
        false => Err(damaged(format!("not the {wanted} numbers that there should be"))),
    }
}
