//! Packers: the last step of a chain, which reduces the number of bytes.
//!
//! Flow: bytes -> LZ4, Zstandard, deflate, or pco (for numbers) -> the same bytes.
//! Memory: the libraries' contexts, bounded by [`Packer::scratch_bytes`].

use half::f16;
use pco::ChunkConfig;
use pco::standalone::{DecompressorItem, FileDecompressor, simple_compress};

use crate::{DType, Error, Result};

/// The most scratch that decoding takes, in bytes: windows and tables.
const ZSTD_BYTES: u64 = 192 << 10;
const DEFLATE_BYTES: u64 = 64 << 10;
/// For pco: tables of three streams with 2^14 states and bins each.
const PCO_BYTES: u64 = 2 << 20;

/// How far back pco's encoder looks, as a power of two of numbers.
fn window(numbers: u64) -> u32 {
    numbers.next_power_of_two().ilog2().clamp(4, 15)
}

/// The most scratch that decoding `numbers` numbers with pco takes, in bytes: tables, a
/// dictionary, and twice the window of two streams.
pub(super) fn pco_bytes(numbers: u64, size: u64) -> u64 {
    PCO_BYTES + (numbers + (4 << window(numbers))) * size
}

/// Evaluates an expression with pco's type for the elements.
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
            // Only eight-byte types are left.
            _ => with_pco!(@ u64, $T, $body),
        }
    };
    (@ $type:ty, $T:ident, $body:expr) => {{
        type $T = $type;
        $body
    }};
}

/// The error for bytes that cannot be unpacked.
pub(super) fn damaged(what: impl std::fmt::Display) -> Error {
    Error::value(format!("packed bytes: {what}: they are damaged, or of another codec"))
}

/// A general compressor, or pco.
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
                "unknown codec {name:?}: known are lz4, zstd, deflate, pco, after delta, shuffle or bitround:<bits>, as in \
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

    pub(super) fn scratch_bytes(&self, len: u64) -> u64 {
        match self {
            Self::Lz4 => 0,
            Self::Zstd(_) => ZSTD_BYTES,
            Self::Deflate(_) => DEFLATE_BYTES,
            // Elements that are not aligned are unpacked into scratch first.
            Self::Pco(dtype) => len + pco_bytes(len / dtype.size() as u64, dtype.size() as u64),
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
                    return Err(failed(&"the bytes are no whole number of elements"));
                }
                let numbers: Vec<T> = words.iter().map(|word| T::from_le_bytes(*word)).collect();
                into.extend(simple_compress(&numbers, &ChunkConfig::default()).map_err(|e| failed(&e))?);
            }),
        }
        Ok(())
    }

    pub(super) fn decode(&self, packed: &[u8], into: &mut [u8]) -> Result<()> {
        let wanted = into.len();
        let written = match self {
            Self::Lz4 => lz4_flex::block::decompress_into(packed, into).map_err(damaged)?,
            Self::Zstd(_) => zstd::bulk::decompress_to_buffer(packed, into).map_err(damaged)?,
            Self::Deflate(_) => {
                let mut unpacking = flate2::Decompress::new(false);
                let status = unpacking.decompress(packed, into, flate2::FlushDecompress::Finish);
                if status.map_err(damaged)? != flate2::Status::StreamEnd {
                    return Err(damaged("they end before the last element, or continue after it"));
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
        if written == wanted {
            Ok(())
        } else {
            Err(damaged(format!("{written} bytes of elements instead of {wanted}")))
        }
    }
}

/// Unpacks pco's numbers: exactly as many as `into` holds.
///
/// # Errors
/// [`Error::Value`] for bytes that pco did not write, or of another length.
pub(super) fn unpco<T: pco::data_types::Number>(packed: &[u8], mut into: &mut [T]) -> Result<()> {
    let (file, mut rest) = FileDecompressor::new(packed).map_err(damaged)?;
    loop {
        if !modest(rest, size_of::<T>(), into.len()) {
            return Err(damaged("a chunk claims tables that no encoder makes"));
        }
        match file.chunk_decompressor::<T, _>(rest).map_err(damaged)? {
            DecompressorItem::EndOfData([]) if into.is_empty() => return Ok(()),
            DecompressorItem::EndOfData(_) => {
                return Err(damaged("they end before the last number, or continue after it"));
            }
            DecompressorItem::Chunk(mut chunk) => {
                let claimed = chunk.n();
                let parts = into.split_at_mut_checked(claimed);
                let (numbers, others) = parts.ok_or_else(|| damaged("there are too many numbers"))?;
                let progress = chunk.read(numbers).map_err(damaged)?;
                if !progress.finished || progress.n_processed != claimed {
                    return Err(damaged("a chunk has fewer numbers than it claims"));
                }
                (into, rest) = (others, chunk.into_src());
            }
        }
    }
}

/// Whether a chunk's header makes the decoder allocate no more than an honest chunk of at most
/// `most` numbers needs. pco allocates dictionaries of up to 2^25 numbers and windows of 2^24
/// because a few bytes claim them. Bits of the header, lowest first (pco's `docs/format.md`): type
/// 8, numbers 24, mode 4 and its parameter (a base, 8 bits, or the length of a dictionary in 25
/// bits, to the next byte, and the dictionary), delta 4, and if that is 2: window 5, state 4.
fn modest(chunk: &[u8], size: usize, most: usize) -> bool {
    let bits = |at: usize, count: u32| {
        let mut word = [0; 16];
        let from = chunk.get(at / 8..).unwrap_or_default();
        let len = from.len().min(16);
        word[..len].copy_from_slice(&from[..len]);
        (u128::from_le_bytes(word) >> (at % 8)) as usize & ((1 << count) - 1)
    };
    let (mode, dictionary) = (bits(32, 4), bits(36, 25));
    let delta = match mode {
        1 | 2 => 36 + 8 * size,
        3 => 44,
        4 => 64 + 8 * size * dictionary,
        _ => 36,
    };
    // A window of one number does not exist, so its size minus one is written; encoders leave one
    // number as the state.
    let looks_back = bits(delta, 4) == 2;
    let narrow = bits(delta + 4, 5) < window(most as u64) as usize && bits(delta + 9, 4) == 0;
    (mode != 4 || dictionary <= most) && (!looks_back || narrow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_claim_too_much_are_refused_and_honest_ones_are_not() {
        let drawn = |i: u64| tidegate_core::hash::splitmix64(i);
        let few: Vec<u64> = (0..20_000).map(|i| drawn(drawn(i) % 50)).collect();
        let again: Vec<u64> = (0..600_000).map(|i| drawn(i % 30_000)).collect();
        let usual = ChunkConfig::default();
        // Skips the type and the number count of the first chunk.
        let chunk = |bytes: &[u8], count: u32| {
            let head = [[2].as_slice(), &(count - 1).to_le_bytes()[..3]].concat();
            bytes.windows(4).position(|window| window == head).unwrap() + 4
        };
        let dictionary = usual.clone().with_mode_spec(pco::ModeSpec::TryDict);
        let window = usual.clone().with_delta_spec(pco::DeltaSpec::TryLookback);
        for (numbers, config, count, form) in [(few, dictionary, 20_000, 4), (again, window, 200_000, 0x20)] {
            let (bytes, mut back) = (simple_compress(&numbers, &config).unwrap(), vec![0; numbers.len()]);
            unpco(&bytes, &mut back).unwrap();
            assert!(back == numbers && bytes[chunk(&bytes, count)] & form == form);
        }
        let honest = simple_compress(&(0..1000).collect::<Vec<u64>>(), &usual).unwrap();
        let at = chunk(&honest, 1000);
        // The claims of a chunk about its mode, and the window after it.
        let refused = |mode: u64, delta: usize, log: u64, state: u64| {
            let mut lying = honest[..at].to_vec();
            lying.resize(at + 64, 0);
            for (place, word) in [(0, mode), (delta, 2 | (log - 1) << 4 | state << 9)] {
                let ones = (0..64).filter(|bit| word >> bit & 1 == 1);
                ones.for_each(|bit| lying[at + (place + bit) / 8] |= 1 << ((place + bit) % 8));
            }
            unpco(&lying, &mut vec![0u64; 1000]).unwrap_err().to_string().contains("tables")
        };
        assert!(refused(4 | 1 << 28, 32, 4, 0), "a dictionary of 2^24 numbers");
        let dictionary = 4 | 3 << 4;
        for (mode, delta) in [(0, 4), (1, 4 + 64), (2, 4 + 64), (3, 4 + 8), (dictionary, 32 + 3 * 64)] {
            assert!(refused(mode, delta, 11, 0), "mode {mode}: a window of 2^11 for 1000 numbers");
            assert!(refused(mode, delta, 10, 1), "mode {mode}: a state of two");
            assert!(!refused(mode, delta, 10, 0), "mode {mode}");
        }
    }
}
