//! Streaming antialiased bilinear resizing with the same bits as Pillow, and nearest-value
//! resizing of masks.
//!
//! Flow: rows of a box, from its top to its bottom -> each resized horizontally -> weighted means
//! of rows -> the target. If [`down_first`] says so, the means of rows come first.
//! Memory: the rows that one target row reads, two more, and weights: bounded by
//! [`library_bytes`], which the caller reserves, and used again for the next image.
//!
//! Source: Pillow's Resample.c: weights of 22 bits, rounded to 8 bits between the two passes. Why
//! not a library: none takes one row after another, and none has Pillow's bits. `make bench-jpeg`
//! compares with fast_image_resize.

use tidegate_core::simd;

use tidegate_decode::{Region, RowSink};

/// Fractional bits of a weight.
const WEIGHT_BITS: u32 = 22;
const HALF: i32 = 1 << (WEIGHT_BITS - 1);
/// Inputs that vector code takes at once.
const GROUP: usize = 4;
/// Bytes of rows that may be kept before they are resized horizontally. Beyond it, rows are
/// resized horizontally first, even where Pillow does not.
const WIDE_BYTES: u64 = 1 << 20;

/// The inputs and weights of all outputs along one axis.
#[derive(Debug, Default)]
struct Axis {
    /// For each output, its first input and the number of its inputs.
    spans: Vec<(u32, u32)>,
    /// Inputs of an output at most.
    max_inputs: usize,
    /// `max_inputs` weights for each output; zeros after its last.
    weights: Vec<i32>,
}

impl Axis {
    /// Inputs of one output at most, if `length` inputs become `outputs`.
    fn max_inputs(length: f64, outputs: u32) -> usize {
        2 * (length / f64::from(outputs)).max(1.0).ceil() as usize + 1
    }

    /// Computes spans and weights of `outputs` outputs from the `length` inputs at `start`, of
    /// `inputs` in all.
    fn set(&mut self, inputs: u32, (start, length): (f64, f64), outputs: u32) {
        let scale = length / f64::from(outputs);
        let support = scale.max(1.0);
        let closeness = 1.0 / support;
        self.max_inputs = Self::max_inputs(length, outputs);
        empty(&mut self.spans, outputs as usize);
        empty(&mut self.weights, self.max_inputs * outputs as usize);
        for out in 0..outputs {
            let center = start + (f64::from(out) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as u32;
            let end = ((center + support + 0.5) as u32).min(inputs);
            let weight = |input: u32| {
                let far = ((f64::from(input) - center + 0.5) * closeness).abs();
                (1.0 - far).max(0.0)
            };
            let sum: f64 = (first..end).map(weight).fold(0.0, |sum, w| sum + w);
            let share = |w: f64| if sum == 0.0 { w } else { w / sum };
            let rounded = |input| (0.5 + share(weight(input)) * f64::from(1 << WEIGHT_BITS)) as i32;
            self.weights.extend((first..end).map(rounded));
            self.spans.push((first, end - first));
            self.weights.resize(self.max_inputs * self.spans.len(), 0);
        }
    }

    fn weights(&self, output: usize) -> &[i32] {
        &self.weights[output * self.max_inputs..][..self.max_inputs]
    }

    /// Groups of inputs that vector code takes for an output.
    fn groups(&self) -> usize {
        self.spans.iter().map(|span| span.1 as usize).max().unwrap_or(1).div_ceil(GROUP)
    }
}

/// Weights of a group of inputs for two neighbouring outputs: the upper bits of the first two
/// inputs and of the last two, then the lower eight bits of both. Each half belongs to one output
/// and repeats its pairs of inputs for each channel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Pair([[i16; 16]; 4]);

/// The rows of the ring from `first` on.
#[derive(Debug, Clone, Copy)]
struct Ring<'a> {
    bytes: &'a [u8],
    stride: usize,
    first: usize,
}

impl<'a> Ring<'a> {
    /// The rows in order, each with its weight.
    #[inline(always)]
    fn weighted(self, weights: &'a [i32]) -> impl Iterator<Item = (&'a [u8], i32)> {
        let at = self.first * self.stride % self.bytes.len();
        let rows =
            self.bytes[at..].chunks_exact(self.stride).chain(self.bytes[..at].chunks_exact(self.stride));
        rows.zip(weights.iter().copied())
    }
}

/// The resizer of one thread. It keeps its memory between images.
#[derive(Debug)]
pub struct Scaler {
    across: Axis,
    down: Axis,
    /// The weight groups of outputs 0 and 1, then of 2 and 3, and so on.
    pairs: Vec<Pair>,
    /// For each pair of outputs, the byte offsets of their first inputs in a row.
    starts: Vec<[u32; 2]>,
    /// A row before horizontal resizing, of four bytes a pixel, with padding for vector loads.
    row: Vec<u8>,
    /// The rows whose means are taken: row i is at i modulo `down.max_inputs`.
    ring: Vec<u8>,
    /// A row after horizontal resizing, of three bytes a pixel.
    line: Vec<u8>,
    simd: bool,
}

impl Default for Scaler {
    fn default() -> Self {
        Self::new(simd::avx2())
    }
}

/// Bytes that a [`Scaler`] holds at most, after images whose sides are at most `side` and which
/// became (height, width) or, if rotated, (width, height).
#[must_use]
pub fn library_bytes(side: u32, (height, width): (u32, u32)) -> u64 {
    let most = |outputs: u32| Axis::max_inputs(side.into(), outputs) as u64;
    let groups = |outputs: u32| most(outputs).div_ceil(GROUP as u64);
    // The larger of both orientations. It saturates, because headers may claim any size.
    let either = |bytes: &dyn Fn(u32, u32) -> u64| bytes(height, width).max(bytes(width, height));
    let row = 4 * (u64::from(side) + GROUP as u64 * groups(height.min(width)));
    let line = either(&|_, across| stride(across as usize) as u64);
    let wide = WIDE_BYTES.min(most(height.min(width)).saturating_mul(row.next_multiple_of(32)));
    let ring = either(&|down, across| most(down).saturating_mul(stride(across as usize) as u64)).max(wide);
    let axis = either(&|outputs, _| u64::from(outputs).saturating_mul(4 * most(outputs) + 8));
    let pair = |outputs: u32| groups(outputs) * size_of::<Pair>() as u64 + 8;
    let pairs = either(&|_, across| u64::from(across).div_ceil(2).saturating_mul(pair(across)));
    [row, line, axis, axis, pairs].into_iter().fold(ring, u64::saturating_add)
}

/// Bytes of a row in the ring. Pixels are written two at a time, with one more byte.
fn stride(width: usize) -> usize {
    (6 * width.div_ceil(2) + 1).next_multiple_of(32)
}

/// Whether Pillow, since version 13, takes the means of rows before it resizes horizontally.
#[must_use]
pub fn down_first((width, height): (u32, u32), (to_height, to_width): (u32, u32)) -> bool {
    let less = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (across, down) = (less(width, to_width), less(height, to_height));
    down > 0 && down > 2 * across
}

impl Scaler {
    fn new(simd: bool) -> Self {
        let (across, down) = (Axis::default(), Axis::default());
        Self {
            across,
            down,
            pairs: Vec::new(),
            starts: Vec::new(),
            row: Vec::new(),
            ring: Vec::new(),
            line: Vec::new(),
            simd,
        }
    }

    /// Begins an image of `height` rows of `width` pixels, of four bytes each.
    ///
    /// Its part `[x, y]`, each a (start, length) in pixels, becomes RGB rows of `size` (height,
    /// width) in `into`. Means of rows are taken first if `down_first` is set and that needs at
    /// most 1 MiB.
    ///
    /// ```
    /// use tidegate_data::batch::resize::Scaler;
    /// use tidegate_decode::RowSink;
    /// let (mut scaler, mut into) = (Scaler::default(), [0; 3]);
    /// let mut rows = scaler.begin((2, 2), [(0.0, 2.0), (0.0, 2.0)], (1, 1), false, &mut into);
    /// for row in [[10, 20, 30, 0, 30, 40, 50, 0], [50, 60, 70, 0, 70, 80, 90, 0]] {
    ///     rows.next_row().copy_from_slice(&row);
    ///     rows.finish_row();
    /// }
    /// assert_eq!(into, [40, 50, 60]);
    /// ```
    pub fn begin<'a>(
        &'a mut self,
        (width, height): (u32, u32),
        [x, y]: [(f64, f64); 2],
        size: (u32, u32),
        down_first: bool,
        into: &'a mut [u8],
    ) -> Resizing<'a> {
        self.across.set(width, x, size.1);
        self.down.set(height, y, size.0);
        let groups = self.across.groups();
        let (width, to_width) = (4 * width as usize, size.1 as usize);
        let wide = width.next_multiple_of(32);
        let down_first = down_first && (wide * self.down.max_inputs) as u64 <= WIDE_BYTES;
        let stride = if down_first { wide } else { stride(to_width) };
        grow(&mut self.row, width + 4 * GROUP * groups);
        grow(&mut self.ring, stride * self.down.max_inputs);
        grow(&mut self.line, self::stride(to_width));
        if self.simd {
            self.pair_up(groups);
        }
        Resizing { scaler: self, into, width, to_width: 3 * to_width, down_first, stride, taken: 0, made: 0 }
    }

    /// Arranges the weights for vector code.
    fn pair_up(&mut self, groups: usize) {
        let across = &self.across;
        let outputs = across.spans.len();
        empty(&mut self.pairs, outputs.div_ceil(2) * groups);
        empty(&mut self.starts, outputs.div_ceil(2));
        for left in (0..outputs).step_by(2) {
            let both = [left, (left + 1).min(outputs - 1)];
            self.starts.push(both.map(|output| 4 * across.spans[output].0));
            let weights = both.map(|output| across.weights(output));
            for group in 0..groups {
                let of = |half: usize, i: usize| weights[half].get(GROUP * group + i).map_or(0, |&w| w);
                let upper = |i: usize| std::array::from_fn(|at| (of(at / 8, i + at % 2) >> 8) as i16);
                let lower = |i: usize| std::array::from_fn(|at| (of(at / 8, i + at % 2) & 255) as i16);
                self.pairs.push(Pair([upper(0), upper(2), lower(0), lower(2)]));
            }
        }
    }
}

/// Clears a vector and gives it a capacity of `len`. Old memory is freed before new is allocated.
fn empty<T>(items: &mut Vec<T>, len: usize) {
    items.clear();
    if items.capacity() < len {
        *items = Vec::new();
        items.reserve_exact(len);
    }
}

/// Sets the length to `len`; the bytes are arbitrary.
fn grow(bytes: &mut Vec<u8>, len: usize) {
    if bytes.capacity() < len {
        empty(bytes, len);
    }
    bytes.resize(len, 0);
}

/// An image that is being resized: the sink of its rows.
#[derive(Debug)]
pub struct Resizing<'a> {
    scaler: &'a mut Scaler,
    into: &'a mut [u8],
    /// Bytes of an input row.
    width: usize,
    /// Bytes of a target row.
    to_width: usize,
    down_first: bool,
    /// Bytes of a row in the ring.
    stride: usize,
    /// Input rows taken so far.
    taken: usize,
    /// Target rows made so far.
    made: usize,
}

impl RowSink for Resizing<'_> {
    fn next_row(&mut self) -> &mut [u8] {
        let slot = self.slot();
        let Scaler { row, ring, .. } = &mut *self.scaler;
        let into = if self.down_first { &mut ring[slot..] } else { row };
        &mut into[..self.width]
    }

    fn finish_row(&mut self) {
        let (slot, stride) = (self.slot(), self.stride);
        let Scaler { across, down, pairs, starts, row, ring, line, simd } = &mut *self.scaler;
        let resize = |row: &[u8], to: &mut [u8]| resize_row(across, (starts, pairs), row, to, *simd);
        if !self.down_first {
            resize(row, &mut ring[slot..slot + stride]);
        }
        self.taken += 1;
        while let Some(&(first, n)) = down.spans.get(self.made) {
            let (first, n) = (first as usize, n as usize);
            if first + n > self.taken {
                return;
            }
            let to = &mut self.into[self.made * self.to_width..][..self.to_width];
            let (weights, rows) = (&down.weights(self.made)[..n], Ring { bytes: ring, stride, first });
            if self.down_first {
                mean_of_rows(weights, rows, &mut row[..self.width], *simd);
                resize(row, line);
                to.copy_from_slice(&line[..self.to_width]);
            } else {
                mean_of_rows(weights, rows, to, *simd);
            }
            self.made += 1;
        }
    }
}

impl Resizing<'_> {
    /// The offset of the next row in the ring.
    fn slot(&self) -> usize {
        self.taken % self.scaler.down.max_inputs * self.stride
    }
}

/// Resizes a row horizontally: four bytes a pixel become three.
fn resize_row(axis: &Axis, (starts, pairs): (&[[u32; 2]], &[Pair]), row: &[u8], to: &mut [u8], simd: bool) {
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is true only where AVX2 was found.
        #[expect(unsafe_code, reason = "vector instructions that were looked for")]
        return unsafe { avx2::resize_row(starts, pairs, row, to) };
    }
    // Only vector code uses them.
    let _unused = (starts, pairs, simd);
    let (pixels, _) = row.as_chunks::<4>();
    for ((output, &(first, n)), to) in axis.spans.iter().enumerate().zip(to.as_chunks_mut::<3>().0) {
        let mut sums = [HALF; 4];
        for (pixel, &weight) in pixels[first as usize..][..n as usize].iter().zip(axis.weights(output)) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(value) * weight;
            }
        }
        let [red, green, blue, _] = sums.map(|sum| (sum >> WEIGHT_BITS) as u8);
        *to = [red, green, blue];
    }
}

/// The weighted mean of rows, byte by byte.
fn mean_of_rows(weights: &[i32], rows: Ring<'_>, to: &mut [u8], simd: bool) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is true only where AVX2 was found.
        #[expect(unsafe_code, reason = "vector instructions that were looked for")]
        let vectors = unsafe { avx2::mean_of_rows(weights, rows, to) };
        done = vectors;
    }
    let _unused = simd;
    for (x, to) in to.iter_mut().enumerate().skip(done) {
        let sum = |sum: i32, (row, weight): (&[u8], i32)| sum + i32::from(row[x]) * weight;
        *to = (rows.weighted(weights).fold(HALF, sum) >> WEIGHT_BITS) as u8;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Exact products of 8 and 23 bits: a weight is split into its upper bits and its lower eight,
    //! and both are multiplied by the same pairs of 16-bit inputs.
    #![expect(unsafe_code, reason = "vector loads and stores of memory whose bounds were checked")]
    use std::arch::x86_64::*;

    use super::{HALF, Pair, Ring, WEIGHT_BITS};

    /// The sums of both parts, as bytes in 32-bit numbers.
    #[target_feature(enable = "avx2")]
    fn whole(upper: __m256i, lower: __m256i) -> __m256i {
        _mm256_srli_epi32::<{ WEIGHT_BITS as i32 }>(_mm256_add_epi32(_mm256_slli_epi32::<8>(upper), lower))
    }

    #[target_feature(enable = "avx2")]
    fn load_wide(bytes: &[u8], at: usize) -> __m256i {
        assert!(at + 32 <= bytes.len());
        // SAFETY: thirty-two bytes are read; the assertion checked that they exist.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn load_weights(weights: &[i16; 16]) -> __m256i {
        // SAFETY: thirty-two bytes are read from an array of thirty-two.
        unsafe { _mm256_loadu_si256(weights.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn resize_row(starts: &[[u32; 2]], pairs: &[Pair], row: &[u8], to: &mut [u8]) {
        let groups = pairs.len() / starts.len();
        // One group is most common by far, and then there is no inner loop.
        if groups == 1 {
            groups_of::<1>(starts, pairs, row, to)
        } else {
            groups_of::<0>(starts, pairs, row, to)
        }
    }

    /// Computes two outputs at a time, one in each half of a vector, from `N` groups of four
    /// inputs of four bytes. `N` = 0 takes the number of groups from `pairs`.
    #[target_feature(enable = "avx2")]
    fn groups_of<const N: usize>(starts: &[[u32; 2]], pairs: &[Pair], row: &[u8], to: &mut [u8]) {
        let inputs = |a: i8| {
            let b = a + 4;
            let shuffle =
                _mm_setr_epi8(a, -1, b, -1, a + 1, -1, b + 1, -1, a + 2, -1, b + 2, -1, a + 3, -1, b + 3, -1);
            _mm256_broadcastsi128_si256(shuffle)
        };
        let (first_two, last_two) = (inputs(0), inputs(8));
        // Red, green, blue and the unused channel: from 32 bits to a byte each.
        let gather = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        let groups = if N > 0 { N } else { pairs.len() / starts.len() };
        assert!(row.len() >= 16 * groups && to.len() > 6 * starts.len());
        let (last, half) = (row.len() - 16 * groups, _mm256_set1_epi32(HALF));
        for (i, (starts, pairs)) in starts.iter().zip(pairs.chunks_exact(groups)).enumerate() {
            let [left, right] = starts.map(|start| start as usize);
            assert!(left <= last && right <= last);
            let (mut upper, mut lower) = (_mm256_setzero_si256(), half);
            for (group, Pair(weights)) in pairs.iter().enumerate() {
                // SAFETY: sixteen bytes are read from `start + 16 group` on, and `start + 16
                // groups` is within the row.
                let load =
                    |start: usize| unsafe { _mm_loadu_si128(row.as_ptr().add(start + 16 * group).cast()) };
                let four = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(left)), load(right));
                let (a, b) = (_mm256_shuffle_epi8(four, first_two), _mm256_shuffle_epi8(four, last_two));
                let a_upper = _mm256_madd_epi16(a, load_weights(&weights[0]));
                let b_upper = _mm256_madd_epi16(b, load_weights(&weights[1]));
                let a_lower = _mm256_madd_epi16(a, load_weights(&weights[2]));
                let b_lower = _mm256_madd_epi16(b, load_weights(&weights[3]));
                upper = _mm256_add_epi32(upper, _mm256_add_epi32(a_upper, b_upper));
                lower = _mm256_add_epi32(lower, _mm256_add_epi32(a_lower, b_lower));
            }
            let sums = whole(upper, lower);
            let left = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_castsi256_si128(sums), gather));
            let right = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_extracti128_si256::<1>(sums), gather));
            // Four bytes are written for three: the next pixel overwrites the fourth. SAFETY:
            // seven bytes are written from 6 i on, where i < starts.len(), and `to` has at least 6
            // starts.len() + 1 bytes.
            unsafe {
                let to = to.as_mut_ptr().add(6 * i);
                to.cast::<i32>().write_unaligned(left);
                to.add(3).cast::<i32>().write_unaligned(right);
            }
        }
    }

    /// Writes as many bytes as fill whole vectors, and returns their number.
    #[target_feature(enable = "avx2")]
    pub(super) fn mean_of_rows(weights: &[i32], rows: Ring<'_>, to: &mut [u8]) -> usize {
        let zero = _mm256_setzero_si256();
        let (blocks, _) = to.as_chunks_mut::<32>();
        for (x, to) in blocks.iter_mut().enumerate() {
            let (mut upper, mut lower) = ([zero; 4], [_mm256_set1_epi32(HALF); 4]);
            let mut weighted = rows.weighted(weights);
            while let Some((row, first)) = weighted.next() {
                let a = load_wide(row, 32 * x);
                let (b, second) = match weighted.next() {
                    Some((row, second)) => (load_wide(row, 32 * x), second),
                    None => (zero, 0),
                };
                let parts = _mm256_set1_epi32(first >> 8 | (second >> 8) << 16);
                let lowest = _mm256_set1_epi32(first & 255 | (second & 255) << 16);
                let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                let quarters = [
                    _mm256_unpacklo_epi8(low, zero),
                    _mm256_unpackhi_epi8(low, zero),
                    _mm256_unpacklo_epi8(high, zero),
                    _mm256_unpackhi_epi8(high, zero),
                ];
                for (q, quarter) in quarters.into_iter().enumerate() {
                    upper[q] = _mm256_add_epi32(upper[q], _mm256_madd_epi16(quarter, parts));
                    lower[q] = _mm256_add_epi32(lower[q], _mm256_madd_epi16(quarter, lowest));
                }
            }
            let part = |q: usize| whole(upper[q], lower[q]);
            let (a, b, c, d) = (part(0), part(1), part(2), part(3));
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            // SAFETY: thirty-two bytes are written to an array of thirty-two.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
        }
        blocks.len() * 32
    }
}

/// Resizes to the nearest value, one byte a pixel.
#[derive(Debug)]
pub struct Nearest<'a> {
    into: &'a mut [u8],
    /// The columns that are taken.
    columns: Vec<usize>,
    /// The rows still to be taken, the last first.
    rows: Vec<usize>,
    row: Vec<u8>,
    taken: usize,
}

impl<'a> Nearest<'a> {
    /// Begins the box `region` of an image, of which only the box's rows follow, as `size`
    /// (height, width) in `into`.
    #[must_use]
    pub fn new(region: Region, size: (u32, u32), into: &'a mut [u8]) -> Self {
        let columns = nearest_indices(region.x, region.width, size.1).collect();
        let mut rows: Vec<usize> = nearest_indices(region.y, region.height, size.0).collect();
        rows.reverse();
        Self { into, columns, rows, row: vec![0; region.width as usize], taken: 0 }
    }
}

/// The indices, relative to `start`, of `to` values out of the `len` from `start` on. Positions
/// are accumulated as in Pillow.
fn nearest_indices(start: u32, len: u32, to: u32) -> impl Iterator<Item = usize> {
    let step = f64::from(len) / f64::from(to);
    let mut at = f64::from(start) + 0.5 * step;
    (0..to).map(move |_| {
        let index = (at as u32).min(start + len - 1) - start;
        at += step;
        index as usize
    })
}

impl RowSink for Nearest<'_> {
    fn next_row(&mut self) -> &mut [u8] {
        &mut self.row
    }

    fn finish_row(&mut self) {
        while self.rows.last() == Some(&self.taken) {
            let width = self.columns.len();
            let made = self.into.len() / width - self.rows.len();
            for (to, &column) in self.into[made * width..][..width].iter_mut().zip(&self.columns) {
                *to = self.row[column];
            }
            self.rows.pop();
        }
        self.taken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An image to be resized: its size, the part, the target size, the order, the seed of its
    /// noise (0: none).
    type Case = ((u32, u32), [(f64, f64); 2], (u32, u32), bool, u32);

    fn resized(scaler: &mut Scaler, (size, part, to, down_first, seed): Case) -> Vec<u8> {
        let mut out = vec![0; (to.0 * to.1 * 3) as usize];
        let mut rows = scaler.begin(size, part, to, down_first, &mut out);
        let mut at = seed;
        for _ in 0..size.1 {
            for value in rows.next_row() {
                at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *value = if seed == 0 { 77 } else { (at >> 24) as u8 };
            }
            rows.finish_row();
        }
        assert_eq!(rows.made as u32, to.0, "every row");
        out
    }

    fn held(Scaler { across, down, pairs, starts, row, ring, line, .. }: &Scaler) -> usize {
        let axis = |axis: &Axis| 8 * axis.spans.capacity() + 4 * axis.weights.capacity();
        let bytes: usize = [row, ring, line].map(Vec::capacity).iter().sum();
        bytes + axis(across) + axis(down) + 128 * pairs.capacity() + 8 * starts.capacity()
    }

    proptest! {
        /// Any sizes, and parts that begin and end within a pixel; then another image, perhaps
        /// rotated.
        #[test]
        fn vectors_equal_scalars_within_the_bound(
            sizes in [(1u32..300, 1u32..120), (1u32..120, 1u32..300)], to in (1u32..90, 1u32..90),
            inset in prop::array::uniform4(0.0f64..0.4), down_first: bool, turned: bool, seed: u32,
        ) {
            let part = |len: u32, from: f64, less: f64| (from * f64::from(len), f64::from(len) * (1.0 - from - less));
            let mut scaler = Scaler::new(simd::avx2());
            for (i, size) in sizes.into_iter().enumerate() {
                let parts = [part(size.0, inset[0], inset[1]), part(size.1, inset[2], inset[3])];
                let to = if turned && i == 1 { (to.1, to.0) } else { to };
                let case = (size, parts, to, down_first, seed);
                let out = resized(&mut scaler, case);
                prop_assert!(resized(&mut Scaler::new(false), case) == out);
                prop_assert!(seed != 0 || out.iter().all(|&value| value == 77));
            }
            let side = sizes.iter().map(|size| size.0.max(size.1)).max().unwrap_or(0);
            prop_assert!(held(&scaler) as u64 <= library_bytes(side, to), "{} of {}", held(&scaler), library_bytes(side, to));
        }
    }

    #[test]
    fn a_flat_image_stays_flat() {
        for (size, to) in [((97, 61), (31, 47)), ((3, 2), (50, 60)), ((1000, 900), (3, 2))] {
            let part = [(0.0, f64::from(size.0)), (0.0, f64::from(size.1))];
            for down_first in [false, true] {
                let flat = resized(&mut Scaler::default(), (size, part, to, down_first, 0));
                assert!(flat.iter().all(|&value| value == 77));
            }
        }
    }

    #[test]
    fn nearest_takes_stored_values_only() {
        let mut out = [0; 4];
        let mut rows = Nearest::new(Region { x: 1, y: 0, width: 4, height: 4 }, (2, 2), &mut out);
        for y in 0..4u8 {
            rows.next_row().copy_from_slice(&[1, 2, 3, 4].map(|x| 5 * y + x));
            rows.finish_row();
        }
        assert_eq!(out, [7, 9, 17, 19]);
    }
}
