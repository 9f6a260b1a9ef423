//! Checks the length that a header claims for unpacked bytes, before a library allocates it.
//!
//! Flow: packed bytes + the claimed length -> whether it is possible; called by `parquet_pages`
//! and `arrow_file`.
//! Memory: the windows of gzip and brotli, whose output is counted.
//!
//! Why: libraries trust the claimed length, and some unpack without a limit.

use std::io::{self, Read};

/// The codec of packed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain,
    Snappy,
    /// A block of lz4, perhaps in Hadoop's framing.
    Lz4,
    /// A frame of lz4, if it is one.
    Lz4Frame,
    Gzip,
    Brotli,
    Zstd,
}

impl Codec {
    /// The most bytes that one byte can unpack to, by the codec's longest copy or run.
    fn most(self) -> u64 {
        match self {
            Self::Plain => 1,
            Self::Snappy => 32,
            Self::Lz4 | Self::Lz4Frame => 256,
            Self::Gzip => 1040,
            // A block of 128 KiB in four bytes.
            Self::Zstd => 32 << 10,
            Self::Brotli => u64::MAX,
        }
    }

    /// Whether `packed` can unpack to `claimed` bytes; for codecs whose library has no limit,
    /// whether it does.
    pub(crate) fn allows(self, packed: &[u8], claimed: u64) -> bool {
        if claimed > self.most().saturating_mul(packed.len() as u64) {
            return false;
        }
        match self {
            Self::Plain | Self::Snappy | Self::Lz4 => true,
            Self::Zstd => frame_bytes(packed).is_none_or(|n| n == claimed),
            Self::Gzip => counts_to(flate2::read::MultiGzDecoder::new(packed), claimed),
            Self::Brotli => counts_to(brotli_decompressor::Decompressor::new(packed, 4096), claimed),
            Self::Lz4Frame => counts_to(lz4_flex::frame::FrameDecoder::new(packed), claimed),
        }
    }
}

/// The length in the header of a zstd frame, if the bytes are one frame.
fn frame_bytes(packed: &[u8]) -> Option<u64> {
    let whole = zstd::zstd_safe::find_frame_compressed_size(packed).ok()? == packed.len();
    zstd::zstd_safe::get_frame_content_size(packed).ok().flatten().filter(|_| whole)
}

/// Whether a reader yields exactly `bytes` bytes; damage counts as true, so the library reports
/// it.
fn counts_to(reader: impl Read, bytes: u64) -> bool {
    io::copy(&mut reader.take(bytes.saturating_add(1)), &mut io::sink()).map_or(true, |n| n == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_unpacks_to_another_length_than_it_claims_is_found() {
        let plain = vec![0; 1 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&plain).unwrap();
        for (codec, packed) in [
            (Codec::Gzip, gzip.finish().unwrap()),
            (Codec::Lz4Frame, lz4.finish().unwrap()),
            (Codec::Zstd, zstd::bulk::compress(&plain, 1).unwrap()),
        ] {
            assert!(codec.allows(&packed, 1 << 20), "{codec:?}");
            for claimed in [0, 1000, (1 << 20) + 1, 1 << 40] {
                assert!(!codec.allows(&packed, claimed), "{codec:?} {claimed}");
            }
        }
        assert!(!Codec::Snappy.allows(&[0; 100], 1 << 20));
        assert!(!Codec::Plain.allows(&[0; 100], 101));
    }
}
