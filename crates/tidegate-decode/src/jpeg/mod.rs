//! JPEG: the wanted part only, with the same bits as libjpeg-turbo.
//!
//! Flow: bytes + region -> MCU rows: coefficients ([`entropy`], [`huffman`], [`checkpoints`]) ->
//! samples ([`idct`]) -> RGB rows of the region ([`color`]).
//! Memory: coefficients of one MCU row and samples of two, of the columns that the region touches;
//! bounded by `ImageHeader::library_bytes`. The caller gets the rows one by one.
//!
//! Above the region and to its sides, the decoder reads only the lengths of codes, or jumps from a
//! checkpoint. Below the region it reads nothing. A progressive file or one of several scans needs
//! all its coefficients first ([`stored`]).
//!
//! Two differences from libjpeg-turbo: a file that it decodes with a warning is an error, unless
//! the file is truncated and the request fills it; and a progressive file that lacks its last
//! scans is not smoothed.

mod checkpoints;
mod color;
mod entropy;
mod errors;
mod frame;
mod huffman;
mod idct;
mod plane;
mod record;
mod stored;
mod zigzag;

use self::checkpoints::Checkpoints;
pub use self::checkpoints::count;
use self::entropy::Walk;
use self::errors::damaged;
use self::frame::{Color, Frame, Markers};
use self::huffman::Tables;
use self::plane::Plane;
pub use self::record::write_record;
use self::stored::Stored;
use tidegate_core::simd;

use crate::image::{Decode, Decoded, Pixel, Request, RowSink};
use crate::{Error, Result};

/// The JPEG decoder of one thread; it keeps the last Huffman tables.
#[derive(Debug, Default)]
pub(super) struct Jpeg {
    tables: Tables,
}

/// The marker of the image's end.
const END: [u8; 2] = [0xFF, 0xD9];

impl Decode for Jpeg {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        _: &mut [u8],
        rows: &mut dyn RowSink,
    ) -> Result<Decoded> {
        let header = request.header;
        if !matches!(header.components, 1 | 3 | 4) || header.bits != 8 {
            return Err(Error::unsupported(format!(
                "a JPEG of {} components of {} bits: only 1, 3 or 4 of 8 bits can be decoded",
                header.components, header.bits
            )));
        }
        if request.pixel == Pixel::Raw && header.components != 1 {
            return Err(Error::unsupported("a mask must have one channel; this JPEG has colours"));
        }
        if !request.fill && !bytes.ends_with(&END) && !bytes[header.data_at..].windows(2).any(|w| w == END) {
            return Err(Error::truncated(
                "truncated JPEG: the end marker is missing; load_truncated=True decodes what is there",
            ));
        }
        let mut markers = Markers::new(bytes, &mut self.tables);
        let scan = markers.next_scan()?.ok_or_else(|| damaged(bytes.len(), "the image has no data"))?;
        let frame =
            markers.frame().cloned().ok_or_else(|| damaged(scan.at, "data before the frame header"))?;
        let size = (frame.width, frame.height, frame.components.len());
        if size != (header.width as usize, header.height as usize, usize::from(header.components)) {
            return Err(Error::decode("the JPEG states two different sizes"));
        }
        let color = markers.color(&frame.components);
        let reduced = frame.clone().reduced(8 >> request.halvings);
        if frame.progressive || scan.parts.len() < frame.components.len() {
            if !header.progressive {
                return Err(Error::decode("the JPEG's scans are not those that its header states"));
            }
            let (stored, extent) = Stored::read(bytes, &mut markers, &frame, scan, request.fill)?;
            let quant: Vec<[i16; 64]> = (0..frame.components.len()).map(|c| stored.quant(c)).collect();
            RegionDecoder::new(&reduced, color, &quant, request).run(Coding::Stored(&stored), rows)?;
            return Ok(extent);
        }
        let quant = frame.components.iter().map(|c| markers.quant(c)).collect::<Result<Vec<_>>>()?;
        let checkpoints = request.checkpoints.and_then(|record| Checkpoints::parse(record, bytes));
        let walk = Walk::new(bytes, &markers, &frame, &scan, checkpoints, request.fill)?;
        RegionDecoder::new(&reduced, color, &quant, request).run(Coding::Sequential(walk), rows)
    }
}

/// The source of coefficients.
enum Coding<'a> {
    /// The bytes, in order.
    Sequential(Walk<'a>),
    /// Memory, after all scans were read.
    Stored(&'a Stored),
}

/// [`Walk::seek`] with the shift instructions of [`RegionDecoder::run`], for callers that only
/// seek.
fn seek_with_bmi2(walk: &mut Walk<'_>, mcu: usize) -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    if simd::avx2() {
        // SAFETY: all four were found, see `simd::avx2`.
        #[expect(unsafe_code, reason = "instructions that were looked for")]
        return unsafe { seek_bmi2(walk, mcu) };
    }
    walk.seek(mcu)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn seek_bmi2(walk: &mut Walk<'_>, mcu: usize) -> Result<()> {
    walk.seek(mcu)
}

/// The state of one decode call.
struct RegionDecoder<'a> {
    frame: &'a Frame,
    color: Color,
    request: &'a Request<'a>,
    planes: Vec<Plane<'a>>,
    /// The decoded MCU columns.
    columns: std::ops::Range<usize>,
    /// The decoded MCU rows.
    rows: std::ops::Range<usize>,
    sums: Vec<u16>,
    /// Whether vertical interpolation reads the rows above and below.
    context: bool,
    simd: bool,
}

/// Pixels around the region that interpolation reads.
const MARGIN: usize = 2;

impl<'a> RegionDecoder<'a> {
    fn new(frame: &'a Frame, color: Color, quant: &'a [[i16; 64]], request: &'a Request<'a>) -> Self {
        let region = request.region;
        let span = |start: u32, len: u32, unit: usize, size: usize| {
            let (start, end) = (start as usize, (start + len) as usize);
            start.saturating_sub(MARGIN) / unit..(end + MARGIN).min(size).div_ceil(unit)
        };
        let columns = span(region.x, region.width, frame.mcu_width(), frame.width);
        let rows = span(region.y, region.height, frame.mcu_height(), frame.height);
        let planes: Vec<Plane<'a>> = frame
            .components
            .iter()
            .zip(quant)
            .map(|(component, quant)| {
                let blocks_across = (columns.len() * component.h).next_multiple_of(2);
                let stride = component.size * blocks_across;
                let blocks = blocks_across * component.v;
                let first = columns.start * component.h * component.size;
                Plane {
                    component,
                    quant,
                    coefficients: vec![[0; 64]; blocks],
                    last: vec![0; blocks],
                    blocks_across,
                    samples: vec![0; stride * 2 * component.size * component.v],
                    stride,
                    full: vec![0; stride * frame.times(component).0 + 8],
                    real: (component.width - first).min(columns.len() * component.h * component.size),
                }
            })
            .collect();
        let sums = vec![0; planes.iter().map(|p| p.stride).max().unwrap_or(0)];
        let context = frame.components.iter().any(|c| frame.times(c).1 == 2);
        Self { frame, color, request, planes, columns, rows, sums, context, simd: simd::avx2() }
    }

    /// Decodes the region.
    fn run(self, coding: Coding<'_>, to: &mut dyn RowSink) -> Result<Decoded> {
        #[cfg(target_arch = "x86_64")]
        if self.simd {
            // SAFETY: `simd` is true only where all four were found, see `simd::avx2`.
            #[expect(unsafe_code, reason = "instructions that were looked for")]
            return unsafe { self.run_bmi2(coding, to) };
        }
        self.each_row(coding, to)
    }

    /// The same code compiled with shift instructions that set no flags: entropy decoding is a
    /// chain of shifts.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run_bmi2(self, coding: Coding<'_>, to: &mut dyn RowSink) -> Result<Decoded> {
        self.each_row(coding, to)
    }

    #[inline(always)]
    fn each_row(mut self, mut coding: Coding<'_>, to: &mut dyn RowSink) -> Result<Decoded> {
        let bottom = self.request.bottom() as usize;
        let mut next = self.request.region.y as usize;
        let across = self.frame.mcus_across();
        for row in self.rows.clone() {
            let last = row + 1 == self.rows.end;
            match &mut coding {
                Coding::Sequential(walk) => {
                    walk.seek(row * across + self.columns.start)?;
                    walk.read(&mut self.planes, self.columns.len())?;
                }
                Coding::Stored(stored) => stored.copy(row, self.columns.clone(), &mut self.planes),
            }
            for plane in &mut self.planes {
                if plane.component.size == 8 {
                    plane.transform(row, self.simd);
                } else {
                    plane.transform_reduced(row);
                }
            }
            // A row that needs the MCU row below it is written with that row.
            let lag = if self.context && !last { self.frame.max_v } else { 0 };
            let ready = ((row + 1) * self.frame.mcu_height() - lag).min(bottom);
            while next < ready {
                self.output(next, to.next_row());
                to.finish_row();
                next += 1;
            }
        }
        let filled = matches!(&coding, Coding::Sequential(walk) if walk.filled());
        Ok(if filled { Decoded::Filled } else { Decoded::Whole })
    }

    /// Writes row `y` of the image to `to`.
    #[inline(always)]
    fn output(&mut self, y: usize, to: &mut [u8]) {
        let frame = self.frame;
        for plane in &mut self.planes {
            plane.expand(y, frame, &mut self.sums);
        }
        let region = self.request.region;
        let start = region.x as usize - self.columns.start * frame.mcu_width();
        let width = region.width as usize;
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for (row, plane) in rows.iter_mut().zip(&self.planes) {
            *row = &plane.row(y, frame)[start..start + width];
        }
        match self.request.pixel {
            Pixel::Raw => to.copy_from_slice(rows[0]),
            Pixel::Rgb => color::to_rgb::<3>(self.color, rows, to, self.simd),
            Pixel::Rgbx => color::to_rgb::<4>(self.color, rows, to, self.simd),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header;
    use crate::image::Region;
    use crate::image::tests::Whole;
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use proptest::prelude::*;

    fn encoded(
        width: u16,
        height: u16,
        sampling: SamplingFactor,
        restart: u16,
        progressive: bool,
    ) -> Vec<u8> {
        let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height) * 3)
            .map(|i| ((i * 31) ^ (i / 97 * 7)) as u8)
            .collect();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 85);
        encoder.set_sampling_factor(sampling);
        encoder.set_progressive(progressive);
        if restart > 0 {
            encoder.set_restart_interval(restart);
        }
        encoder.encode(&pixels, width, height, ColorType::Rgb).unwrap();
        bytes
    }

    fn decode(bytes: &[u8], region: Option<Region>) -> Result<Vec<u8>> {
        decode_by(bytes, region, None)
    }

    fn decode_by(bytes: &[u8], region: Option<Region>, checkpoints: Option<&[u8]>) -> Result<Vec<u8>> {
        decode_halved(bytes, 0, region, checkpoints)
    }

    fn decode_halved(
        bytes: &[u8],
        halvings: u32,
        region: Option<Region>,
        checkpoints: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        let header = header::parse(bytes)?;
        let [width, height] = [header.width, header.height].map(|side| side.div_ceil(1 << halvings));
        let region = region.unwrap_or(Region { x: 0, y: 0, width, height });
        let request = Request {
            header: &header,
            halvings,
            region,
            pixel: Pixel::Rgb,
            checkpoints,
            fill: false,
            wide_gray: None,
        };
        let mut rows = Whole::new(&request);
        Jpeg::default().decode(bytes, &request, &mut [], &mut rows)?;
        Ok(rows.bytes)
    }

    const SAMPLINGS: [SamplingFactor; 7] = [
        SamplingFactor::F_1_1,
        SamplingFactor::F_2_1,
        SamplingFactor::F_1_2,
        SamplingFactor::F_2_2,
        SamplingFactor::F_4_1,
        SamplingFactor::F_4_2,
        SamplingFactor::F_2_4,
    ];

    /// The decoder does use a record: with other predictors in it, the region has other pixels.
    #[test]
    fn a_region_is_entered_at_a_checkpoint() {
        let bytes = encoded(160, 160, SamplingFactor::F_2_2, 0, false);
        let region = Some(Region { x: 80, y: 96, width: 40, height: 40 });
        let mut record = vec![0; 24 + 8 * 20];
        write_record(&bytes, &mut record);
        assert!(checkpoints::count(&record) > 10);
        let plain = decode(&bytes, region).unwrap();
        assert!(decode_by(&bytes, region, Some(&record)).unwrap() == plain);
        for word in record[24..].chunks_exact_mut(8) {
            // A bit of the first predictor.
            word[4] ^= 1;
        }
        let used = 24 + 8 * checkpoints::count(&record);
        let check = xxhash_rust::xxh3::xxh3_64(&record[8..used]);
        record[..8].copy_from_slice(&check.to_le_bytes());
        assert!(decode_by(&bytes, region, Some(&record)).unwrap() != plain);
    }

    proptest! {
        /// The pixels of a region equal those of the whole image, at every size.
        #[test]
        fn a_region_equals_that_of_the_whole(
            width in 1u16..120, height in 1u16..120, sampling in 0usize..7, restart in 0u16..5, progressive: bool,
            halvings in 0u32..4, corner in (0u32..120, 0u32..120), size in (1u32..80, 1u32..80),
        ) {
            let bytes = encoded(width, height, SAMPLINGS[sampling], restart, progressive);
            let [width, height] = [width, height].map(|side| u32::from(side).div_ceil(1 << halvings));
            let (x, y) = (corner.0 % width, corner.1 % height);
            let region = Region { x, y, width: size.0.min(width - x), height: size.1.min(height - y) };
            let whole = decode_halved(&bytes, halvings, None, None).unwrap();
            let part = decode_halved(&bytes, halvings, Some(region), None).unwrap();
            let n = 3 * region.width as usize;
            for (row, part) in (y..).zip(part.chunks_exact(n)) {
                let at = (row * width + x) as usize * 3;
                prop_assert_eq!(part, &whole[at..at + n], "row {}", row);
            }
        }

        /// Checkpoints change no pixel, whatever their number; a record of other bytes is ignored.
        #[test]
        fn checkpoints_lead_to_the_same_pixels(
            width in 1u16..200, height in 1u16..200, sampling in 0usize..7, restart in 0u16..9, record_bytes in 0usize..400,
            corner in (0u32..200, 0u32..200), size in (1u32..120, 1u32..120), damaged in 0usize..4000,
        ) {
            let mut bytes = encoded(width, height, SAMPLINGS[sampling], restart, false);
            let (x, y) = (corner.0 % u32::from(width), corner.1 % u32::from(height));
            let (width, height) = (size.0.min(u32::from(width) - x), size.1.min(u32::from(height) - y));
            let region = Some(Region { x, y, width, height });
            let mut record = vec![1; record_bytes];
            write_record(&bytes, &mut record);
            let known = Checkpoints::parse(&record, &bytes).is_some();
            prop_assert_eq!(known, record_bytes >= 24);
            prop_assert_eq!(decode_by(&bytes, region, Some(&record)).unwrap(), decode(&bytes, region).unwrap());
            let quarter = decode_halved(&bytes, 2, None, None).unwrap();
            prop_assert_eq!(decode_halved(&bytes, 2, None, Some(&record)).unwrap(), quarter);
            let at = damaged % bytes.len();
            bytes[at] ^= 16;
            prop_assert!(Checkpoints::parse(&record, &bytes).is_none());
        }

        /// A forged record that passes its own checks causes no panic.
        #[test]
        fn a_forged_record_is_no_panic(words in prop::collection::vec(any::<u64>(), 1..40), every in 1u32..50) {
            let bytes = encoded(90, 70, SamplingFactor::F_2_2, 3, false);
            let mut record = vec![0; 24 + 8 * words.len()];
            write_record(&bytes, &mut record);
            record[18..20].copy_from_slice(&(words.len() as u16).to_le_bytes());
            record[20..24].copy_from_slice(&every.to_le_bytes());
            for (to, word) in record[24..].chunks_exact_mut(8).zip(&words) {
                to.copy_from_slice(&(word & 0x3FFF_FFFF_F000_1FFF).to_le_bytes());
            }
            let check = xxhash_rust::xxh3::xxh3_64(&record[8..]);
            record[..8].copy_from_slice(&check.to_le_bytes());
            prop_assert!(Checkpoints::parse(&record, &bytes).is_some());
            let region = Region { x: 33, y: 50, width: 20, height: 10 };
            let _result = decode_by(&bytes, Some(region), Some(&record));
        }

        /// An interval that lacks bytes before its restart marker is an error, even if the next
        /// interval is whole.
        #[test]
        fn a_short_interval_is_an_error(interval in 0usize..10, missing in 4usize..12) {
            let bytes = encoded(64, 64, SamplingFactor::F_2_2, 1, false);
            let markers: Vec<usize> = (0..bytes.len() - 1)
                .filter(|&i| bytes[i] == 0xFF && (0xD0..=0xD7).contains(&bytes[i + 1]))
                .collect();
            let end = markers[interval];
            let short = [&bytes[..end - missing], &bytes[end..]].concat();
            prop_assert!(decode(&bytes, None).is_ok());
            prop_assert!(decode(&short, None).is_err());
        }

        /// An image that lacks its end is an error, wherever it is cut and whichever region is
        /// wanted.
        #[test]
        fn truncation_is_an_error(cut in 0usize..3000, rows in 1u32..64, progressive: bool) {
            let baseline = encoded(64, 64, SamplingFactor::F_2_2, 3, false);
            let mut ended = baseline[..cut.min(baseline.len() - 16)].to_vec();
            ended.extend(END);
            prop_assert!(decode(&ended, None).is_err());
            let bytes = encoded(64, 64, SamplingFactor::F_2_2, 0, progressive);
            let region = Region { x: 0, y: 0, width: 64, height: rows };
            prop_assert!(decode(&bytes[..cut.min(bytes.len() - 1)], Some(region)).is_err());
        }
    }
}
