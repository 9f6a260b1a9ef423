//! Codecs for samples that are kept in memory, and the probe that chooses one.
//!
//! Flow: the first samples -> a probe -> a [`Codec`] or none; then samples -> packed bytes ->
//! samples.
//! Memory: contexts of zstd and one buffer a thread; the tier that packs charges them.
//!
//! Photos, audio and video are packed already and lose nothing here: below a gain of 1.2 nothing
//! is packed. Labels, token ids, text and raw arrays become smaller. `benches/cache.rs` measures
//! how fast each codec unpacks.

use std::cell::RefCell;

use tidegate_array::codec::filter::{shuffle, unshuffle};

/// The smallest gain for which samples are packed.
const MIN_GAIN: f64 = 1.2;
/// The number of samples, and of their bytes, after which the probe decides.
const PROBE_SAMPLES: u32 = 16;
const PROBE_BYTES: u64 = 4 << 20;
/// Bytes of zstd's contexts: one that packs (level 1), and one in each thread that unpacks.
const COMPRESSOR_BYTES: u64 = 2 << 20;
const DECOMPRESSOR_BYTES: u64 = 192 << 10;

/// How samples are packed; all codecs are lossless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// LZ4 blocks.
    Lz4,
    /// Zstandard, level 1.
    Zstd,
    /// The first bytes of all words of this width, then the second bytes, and so on; then
    /// Zstandard, level 1.
    Shuffled(usize),
}

/// The codecs that the probe tries, the simplest first: of two that gain about the same, it takes
/// the first.
///
/// The probe reads no clock, so a dataset has the same codec in every run.
pub const CANDIDATES: [Codec; 5] =
    [Codec::Lz4, Codec::Zstd, Codec::Shuffled(2), Codec::Shuffled(4), Codec::Shuffled(8)];

struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    shuffled: Vec<u8>,
}

thread_local! {
    static UNPACKER: RefCell<Unpacker> = const { RefCell::new(Unpacker { zstd: None, shuffled: Vec::new() }) };
}

impl Codec {
    /// The codec's name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Shuffled(_) => "shuffle and zstd",
        }
    }

    /// Bytes that each thread that unpacks keeps, for samples of up to `largest` bytes.
    pub(super) fn thread_bytes(self, largest: u64) -> u64 {
        match self {
            Self::Lz4 => 0,
            Self::Zstd => DECOMPRESSOR_BYTES,
            Self::Shuffled(_) => DECOMPRESSOR_BYTES + largest,
        }
    }

    /// Packs `bytes` into `into` and returns the packed length; `into` has
    /// [`Packer::packed_bound`].
    fn pack(self, packer: &mut Packer, bytes: &[u8], into: &mut [u8]) -> Option<usize> {
        match self {
            Self::Lz4 => lz4_flex::block::compress_into(bytes, into).ok(),
            Self::Zstd => packer.zstd()?.compress_to_buffer(bytes, into).ok(),
            Self::Shuffled(width) => {
                let mut shuffled = std::mem::take(&mut packer.shuffled);
                shuffled.resize(bytes.len(), 0);
                shuffle(bytes, width, &mut shuffled);
                let packed = packer.zstd().and_then(|zstd| zstd.compress_to_buffer(&shuffled, into).ok());
                packer.shuffled = shuffled;
                packed
            }
        }
    }

    /// Unpacks a sample, whose length is that of `into`.
    ///
    /// Returns `false` if `packed` is damaged or has another length.
    #[must_use]
    pub fn unpack(self, packed: &[u8], into: &mut [u8]) -> bool {
        match self {
            Self::Lz4 => lz4_flex::block::decompress_into(packed, into).is_ok_and(|n| n == into.len()),
            Self::Zstd => UNPACKER.with_borrow_mut(|unpacker| unpacker.unpack(packed, into)),
            Self::Shuffled(width) => UNPACKER.with_borrow_mut(|unpacker| {
                let mut shuffled = std::mem::take(&mut unpacker.shuffled);
                shuffled.resize(into.len(), 0);
                let complete = unpacker.unpack(packed, &mut shuffled);
                unshuffle(&shuffled, width, into);
                unpacker.shuffled = shuffled;
                complete
            }),
        }
    }
}

impl Unpacker {
    fn unpack(&mut self, packed: &[u8], into: &mut [u8]) -> bool {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Decompressor::new().ok();
        }
        let Some(zstd) = self.zstd.as_mut() else { return false };
        let len = into.len();
        zstd.decompress_to_buffer(packed, into).is_ok_and(|n| n == len)
    }
}

/// The contexts and buffers of packing, used by one thread at a time.
#[derive(Default)]
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    shuffled: Vec<u8>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packer({} B)", self.shuffled.capacity() + self.packed.capacity())
    }
}

impl Packer {
    /// The most bytes that a packer takes for samples of up to `largest` bytes.
    #[must_use]
    pub fn memory_bytes(largest: u64) -> u64 {
        COMPRESSOR_BYTES + 2 * largest + Self::packed_bound(largest)
    }

    /// The most bytes that any codec makes of `len` bytes: LZ4 needs a tenth more.
    fn packed_bound(len: u64) -> u64 {
        len + len / 8 + 1024
    }

    fn zstd(&mut self) -> Option<&mut zstd::bulk::Compressor<'static>> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(1).ok();
        }
        self.zstd.as_mut()
    }

    /// Packs a sample; the bytes stay until the next call. `None` if it cannot be packed.
    pub fn pack(&mut self, codec: Codec, bytes: &[u8]) -> Option<&[u8]> {
        let mut packed = std::mem::take(&mut self.packed);
        packed.resize(Self::packed_bound(bytes.len() as u64) as usize, 0);
        let len = codec.pack(self, bytes, &mut packed);
        self.packed = packed;
        self.packed.get(..len?)
    }
}

/// Packs the first samples with every codec, and chooses one.
#[derive(Debug, Default)]
pub(super) struct Probe {
    samples: u32,
    bytes: u64,
    /// Bytes that each codec saved.
    saved_bytes: [i64; CANDIDATES.len()],
}

impl Probe {
    /// Packs one more sample; returns the choice once it has seen enough: a codec and its gain, or
    /// none.
    pub(super) fn observe(&mut self, packer: &mut Packer, bytes: &[u8]) -> Option<Option<(Codec, f64)>> {
        let mut unpacked = vec![0; bytes.len()];
        for (i, codec) in CANDIDATES.into_iter().enumerate() {
            let Some(packed) = packer.pack(codec, bytes) else {
                continue;
            };
            if codec.unpack(packed, &mut unpacked) && unpacked == bytes {
                self.saved_bytes[i] += bytes.len() as i64 - packed.len() as i64;
            }
        }
        self.samples += 1;
        self.bytes += bytes.len() as u64;
        (self.samples >= PROBE_SAMPLES || self.bytes >= PROBE_BYTES).then(|| self.choose())
    }

    fn choose(&self) -> Option<(Codec, f64)> {
        let gain = |i: usize| self.bytes as f64 / (self.bytes as f64 - self.saved_bytes[i] as f64).max(1.0);
        let mut best = None;
        for i in (0..CANDIDATES.len()).filter(|&i| gain(i) >= MIN_GAIN) {
            // A gain that is a tenth higher is worth a slower codec.
            if best.is_none_or(|(_, most)| gain(i) > 1.1 * most) {
                best = Some((CANDIDATES[i], gain(i)));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chosen(sample: impl Fn(u64) -> Vec<u8>) -> Option<(Codec, f64)> {
        let (mut probe, mut packer) = (Probe::default(), Packer::default());
        (0..).find_map(|i| probe.observe(&mut packer, &sample(i))).unwrap()
    }

    fn noise(seed: u64) -> impl FnMut() -> u64 {
        let mut stream =
            tidegate_order::random::Stream::new(seed, 0, 0, 0, tidegate_order::random::Purpose::Replace);
        move || stream.below(1 << 32)
    }

    #[test]
    fn what_cannot_be_packed_is_left_alone_and_what_can_gains() {
        let random = |i| {
            let mut draw = noise(i);
            (0..50_000).map(|_| draw() as u8).collect()
        };
        assert_eq!(chosen(random), None);
        let labels = |i: u64| (0..50_000u64).map(|j| ((i + j) / 900) as u8).collect();
        assert!(chosen(labels).unwrap().1 > 10.0);
        // Token ids below 2^16 in 64 bits: bytes of the same place in a word are alike.
        let tokens = |i| {
            let mut draw = noise(i);
            (0..8_000).flat_map(|_| (draw() % 50_000).to_le_bytes()).collect()
        };
        let (codec, gain) = chosen(tokens).unwrap();
        assert!(matches!(codec, Codec::Shuffled(_) | Codec::Zstd) && gain > 2.5, "{codec:?} {gain}");
    }

    proptest! {
        #[test]
        fn packed_bytes_unpack_to_themselves_and_nothing_else_does(
            bytes in prop::collection::vec(0u8..4, 0..3000), at in 0usize..1000, codec in 0..CANDIDATES.len(),
        ) {
            let (codec, mut packer) = (CANDIDATES[codec], Packer::default());
            let packed = packer.pack(codec, &bytes).unwrap().to_vec();
            let mut into = vec![9; bytes.len()];
            prop_assert!(codec.unpack(&packed, &mut into));
            prop_assert_eq!(&into, &bytes);
            // Damaged bytes or another length: never a panic, and never more bytes than there is
            // room for.
            let mut damaged = packed.clone();
            let at = at % damaged.len();
            damaged[at] ^= 0x55;
            if codec.unpack(&damaged, &mut into) {
                prop_assert_eq!(into.len(), bytes.len());
            }
            prop_assert!(!codec.unpack(&packed, &mut vec![0; bytes.len() + 1]));
        }
    }
}
