//! Matrix transposition, close to the speed of copying at any size.
//!
//! Flow: a matrix in C order -> its columns as rows. HWC to CHW transposes height · width rows
//! with one column per channel; an array of structures becomes a structure of arrays with one
//! column per member.
//! Memory: the caller's; two tiles of stack.
//!
//! Cache-oblivious (Frigo et al., «Cache-oblivious algorithms», FOCS 1999): the longer side is
//! halved until few tiles are left, each a cache line on either side. A tile is copied through the
//! stack, so that every line is read and written whole and once, and rows at a power-of-two
//! distance do not evict each other. Meanwhile the next tile's lines are prefetched. Within a
//! tile, log2 rounds of register interleaving transpose it. `cargo bench -p tidegate-array`
//! compares the speed with copying.

#![expect(unsafe_code, reason = "vector instructions")]

use bytemuck::Pod;

use super::planar;

/// Bytes of a cache line: the row of a tile.
const LINE: usize = 64;
/// Tiles on each side of a part that is not halved further.
const AHEAD: usize = 4;
/// The most columns, or rows, of a matrix that is not tiled.
const NARROW: usize = 4;
/// Rows of a narrow matrix per step, so that they stay in the first-level cache.
const NARROW_ROWS: usize = 2048;

/// Transposes a matrix of `rows` × `columns` elements of `size` bytes.
///
/// # Panics
/// If either slice is not `rows * columns * size` bytes long.
///
/// ```
/// use tidegate_array::kernels::transpose::transpose;
/// let mut planes = [0; 6];
/// transpose(b"rgbRGB", 2, 3, &mut planes, 1);
/// assert_eq!(&planes, b"rRgGbB");
/// ```
pub fn transpose(from: &[u8], rows: usize, columns: usize, into: &mut [u8], size: usize) {
    let bytes = rows * columns * size;
    assert!(
        from.len() == bytes && into.len() == bytes,
        "both slices must be rows * columns * size bytes long"
    );
    if bytes == 0 {
        return;
    }
    match size {
        1 if columns == 3 => {
            let (red, rest) = into.split_at_mut(rows);
            let (green, blue) = rest.split_at_mut(rows);
            planar::split(from, red, green, blue);
        }
        1 => elements::<1>(from, rows, columns, into),
        2 => elements::<2>(from, rows, columns, into),
        4 => elements::<4>(from, rows, columns, into),
        8 => elements::<8>(from, rows, columns, into),
        size => Matrix { from, into, rows, columns, size }.parts(
            0..rows,
            0..columns,
            LINE,
            &mut Matrix::one_by_one,
        ),
    }
}

/// Transposes elements of a size known at compile time.
fn elements<const SIZE: usize>(from: &[u8], rows: usize, columns: usize, into: &mut [u8]) {
    let (all, _) = from.as_chunks::<SIZE>();
    let (made, _) = into.as_chunks_mut::<SIZE>();
    match (rows, columns) {
        (_, NARROW) if SIZE == 1 => split_words(from, into),
        (1, _) | (_, 1) => into.copy_from_slice(from),
        (_, 2) => split::<2, SIZE>(all, made),
        (_, 3) => split::<3, SIZE>(all, made),
        (_, NARROW) => split::<NARROW, SIZE>(all, made),
        (2, _) => join::<2, SIZE>(all, made),
        (3, _) => join::<3, SIZE>(all, made),
        (NARROW, _) => join::<NARROW, SIZE>(all, made),
        _ => {
            let mut stack = Tiles([[0; LINE * LINE]; 2]);
            let mut matrix = Matrix { from, into, rows, columns, size: SIZE };
            matrix.parts(0..rows, 0..columns, AHEAD * LINE / SIZE, &mut |matrix, rows, columns| {
                matrix.tiles::<SIZE>(rows, columns, &mut stack);
            });
        }
    }
}

/// Few columns: one column at a time, over rows that stay in the cache.
fn split<const COLUMNS: usize, const SIZE: usize>(from: &[[u8; SIZE]], into: &mut [[u8; SIZE]]) {
    let rows = from.len() / COLUMNS;
    let (from, _) = from.as_chunks::<COLUMNS>();
    for (block, part) in from.chunks(NARROW_ROWS).enumerate() {
        for column in 0..COLUMNS {
            let made = &mut into[column * rows + block * NARROW_ROWS..][..part.len()];
            made.iter_mut().zip(part).for_each(|(to, row)| *to = row[column]);
        }
    }
}

/// Four columns of bytes: reads words and extracts one byte of each at a time.
fn split_words(from: &[u8], into: &mut [u8]) {
    let rows = from.len() / NARROW;
    let (from, _) = from.as_chunks::<NARROW>();
    for (block, part) in from.chunks(NARROW_ROWS).enumerate() {
        for column in 0..NARROW {
            let made = &mut into[column * rows + block * NARROW_ROWS..][..part.len()];
            made.iter_mut()
                .zip(part)
                .for_each(|(to, row)| *to = (u32::from_le_bytes(*row) >> (8 * column)) as u8);
        }
    }
}

/// Few rows: interleaves them.
fn join<const ROWS: usize, const SIZE: usize>(from: &[[u8; SIZE]], into: &mut [[u8; SIZE]]) {
    let columns = from.len() / ROWS;
    let rows: [&[[u8; SIZE]]; ROWS] = std::array::from_fn(|row| &from[row * columns..][..columns]);
    let (into, _) = into.as_chunks_mut::<ROWS>();
    for (column, to) in into.iter_mut().enumerate() {
        *to = std::array::from_fn(|row| rows[row][column]);
    }
}

/// A tile and its transpose.
#[repr(align(64))]
struct Tiles([[u8; LINE * LINE]; 2]);

/// The input and output of a transposition.
struct Matrix<'a> {
    from: &'a [u8],
    into: &'a mut [u8],
    rows: usize,
    columns: usize,
    size: usize,
}

type Span = std::ops::Range<usize>;

impl Matrix<'_> {
    /// Halves the longer side until both are at most `side`.
    fn parts(&mut self, rows: Span, columns: Span, side: usize, leaf: &mut dyn FnMut(&mut Self, Span, Span)) {
        if rows.len() <= side && columns.len() <= side {
            return leaf(self, rows, columns);
        }
        let half = |span: &Span| span.start + (span.len() / 2).next_multiple_of(side).min(span.len() - 1);
        if rows.len() >= columns.len() {
            let at = half(&rows);
            self.parts(rows.start..at, columns.clone(), side, leaf);
            self.parts(at..rows.end, columns, side, leaf);
        } else {
            let at = half(&columns);
            self.parts(rows.clone(), columns.start..at, side, leaf);
            self.parts(rows, at..columns.end, side, leaf);
        }
    }

    /// Transposes a part element by element, for any element size.
    fn one_by_one(&mut self, rows: Span, columns: Span) {
        for column in columns {
            for row in rows.clone() {
                let (a, b) =
                    ((row * self.columns + column) * self.size, (column * self.rows + row) * self.size);
                self.into[b..b + self.size].copy_from_slice(&self.from[a..a + self.size]);
            }
        }
    }

    /// Transposes tile by tile, column by column; each step prefetches the next tile.
    fn tiles<const SIZE: usize>(&mut self, rows: Span, columns: Span, stack: &mut Tiles) {
        let side = LINE / SIZE;
        for column in columns.clone().step_by(side) {
            for row in rows.clone().step_by(side) {
                let next =
                    if row + side < rows.end { (row + side, column) } else { (rows.start, column + side) };
                self.fetch::<SIZE>(next);
                let span = |start: usize, all: &Span| start..(start + side).min(all.end);
                self.tile::<SIZE>(span(row, &rows), span(column, &columns), stack);
            }
        }
    }

    /// Prefetches the lines of a tile that is read and written soon.
    fn fetch<const SIZE: usize>(&self, (row, column): (usize, usize)) {
        #[cfg(target_arch = "x86_64")]
        for i in 0..LINE / SIZE {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let from = ((row + i) * self.columns + column) * SIZE;
            let into = ((column + i) * self.rows + row) * SIZE;
            // SAFETY: prefetching accesses no memory, whatever the address; the address is not
            // used otherwise.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.from.as_ptr().wrapping_add(from).cast());
                _mm_prefetch::<_MM_HINT_T0>(self.into.as_ptr().wrapping_add(into).cast());
            }
        }
    }

    /// Transposes a tile of at most a cache line on each side, through the stack.
    fn tile<const SIZE: usize>(&mut self, rows: Span, columns: Span, Tiles([lines, turned]): &mut Tiles) {
        let side = LINE / SIZE;
        let width = columns.len() * SIZE;
        for (line, row) in lines.chunks_exact_mut(LINE).zip(rows.clone()) {
            let start = (row * self.columns + columns.start) * SIZE;
            copy(&mut line[..width], &self.from[start..start + width]);
        }
        turn::<SIZE>(&lines[..side * LINE], &mut turned[..side * LINE]);
        let height = rows.len() * SIZE;
        for (line, column) in turned.chunks_exact(LINE).zip(columns) {
            let start = (column * self.rows + rows.start) * SIZE;
            copy(&mut self.into[start..start + height], &line[..height]);
        }
    }
}

/// A copy that is inlined for a whole cache line.
fn copy(into: &mut [u8], from: &[u8]) {
    match (into.first_chunk_mut::<LINE>(), from.first_chunk::<LINE>()) {
        (Some(into), Some(from)) => *into = *from,
        _ => into.copy_from_slice(from),
    }
}

/// Transposes a square with `LINE / SIZE` elements on each side.
fn turn<const SIZE: usize>(lines: &[u8], turned: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64 as vector;
        macro_rules! shuffle {
            ($lanes:literal, $low:ident, $high:ident) => {{
                // SAFETY: every x86-64 processor has SSE2, and only registers are accessed.
                let low = |a, b| unsafe { vector::$low(a, b) };
                // SAFETY: as above.
                let high = |a, b| unsafe { vector::$high(a, b) };
                return shuffled::<SIZE, $lanes>(lines, turned, low, high);
            }};
        }
        match SIZE {
            1 => shuffle!(16, _mm_unpacklo_epi8, _mm_unpackhi_epi8),
            2 => shuffle!(8, _mm_unpacklo_epi16, _mm_unpackhi_epi16),
            4 => shuffle!(4, _mm_unpacklo_epi32, _mm_unpackhi_epi32),
            8 => shuffle!(2, _mm_unpacklo_epi64, _mm_unpackhi_epi64),
            _ => {}
        }
    }
    let side = LINE / SIZE;
    for row in 0..side {
        for column in 0..side {
            let (a, b) = (row * LINE + column * SIZE, column * LINE + row * SIZE);
            turned[b..b + SIZE].copy_from_slice(&lines[a..a + SIZE]);
        }
    }
}

/// Transposes squares with `LANES` elements on each side, one row per register: interleaves rows i
/// and i + LANES / 2, log2(LANES) times.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn shuffled<const SIZE: usize, const LANES: usize>(
    lines: &[u8],
    turned: &mut [u8],
    low: impl Fn(Register, Register) -> Register,
    high: impl Fn(Register, Register) -> Register,
) {
    let read = |at: usize| -> Register { bytemuck::pod_read_unaligned(&lines[at..at + 16]) };
    for row in (0..LINE / SIZE).step_by(LANES) {
        for column in (0..LINE).step_by(16) {
            let mut registers: [Register; LANES] = std::array::from_fn(|i| read((row + i) * LINE + column));
            let mut times = LANES;
            while times > 1 {
                registers = std::array::from_fn(|i| {
                    let (a, b) = (registers[i / 2], registers[i / 2 + LANES / 2]);
                    if i % 2 == 0 { low(a, b) } else { high(a, b) }
                });
                times /= 2;
            }
            for (i, register) in registers.iter().enumerate() {
                let at = (column / SIZE + i) * LINE + row * SIZE;
                turned[at..at + 16].copy_from_slice(bytemuck::bytes_of(register));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
type Register = std::arch::x86_64::__m128i;

/// Gathers rows of an array by their numbers.
///
/// # Panics
/// If a number is beyond the last row, or `into` does not have one row per number.
///
/// ```
/// use tidegate_array::kernels::transpose::gather;
/// let mut rows = [0u16; 4];
/// gather(&[1u16, 2, 3, 4, 5, 6], 2, &[2, 0], &mut rows);
/// assert_eq!(rows, [5, 6, 1, 2]);
/// ```
pub fn gather<T: Pod>(from: &[T], width: usize, numbers: &[u64], into: &mut [T]) {
    assert_eq!(into.len(), numbers.len() * width, "there must be one row per number");
    match width * size_of::<T>() {
        0 => {}
        // A run of known length compiles to a move; a function call would take longer.
        4 => rows::<T, 4>(from, numbers, into),
        8 => rows::<T, 8>(from, numbers, into),
        16 => rows::<T, 16>(from, numbers, into),
        32 => rows::<T, 32>(from, numbers, into),
        64 => rows::<T, 64>(from, numbers, into),
        _ => {
            for (row, number) in into.chunks_exact_mut(width).zip(numbers) {
                let start = *number as usize * width;
                row.copy_from_slice(&from[start..start + width]);
            }
        }
    }
}

fn rows<T: Pod, const BYTES: usize>(from: &[T], numbers: &[u64], into: &mut [T]) {
    let (from, _) = bytemuck::cast_slice::<T, u8>(from).as_chunks::<BYTES>();
    let (into, _) = bytemuck::cast_slice_mut::<T, u8>(into).as_chunks_mut::<BYTES>();
    into.iter_mut().zip(numbers).for_each(|(row, number)| *row = from[*number as usize]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_element_goes_to_its_place(rows in 0usize..150, columns in 0usize..150, size in 0usize..6) {
            let size = [1, 2, 3, 4, 8, 12][size];
            let from: Vec<u8> = (0..rows * columns * size).map(|i| (i * 31 + i / 251) as u8).collect();
            let mut into = vec![0; from.len()];
            transpose(&from, rows, columns, &mut into, size);
            for row in 0..rows {
                for column in 0..columns {
                    let (a, b) = ((row * columns + column) * size, (column * rows + row) * size);
                    prop_assert_eq!(&into[b..b + size], &from[a..a + size], "{} {}", row, column);
                }
            }
        }

        #[test]
        fn few_columns_and_few_rows(long in 0usize..5000, short in 1usize..5, size in 0usize..4) {
            let size = [1, 2, 4, 8][size];
            let from: Vec<u8> = (0..long * short * size).map(|i| (i * 31 + i / 251) as u8).collect();
            let (mut columns, mut back) = (vec![0; from.len()], vec![0; from.len()]);
            transpose(&from, long, short, &mut columns, size);
            for (i, element) in columns.chunks_exact(size).enumerate() {
                let (column, row) = (i / long, i % long);
                prop_assert_eq!(element, &from[(row * short + column) * size..][..size]);
            }
            transpose(&columns, short, long, &mut back, size);
            prop_assert_eq!(back, from);
        }

        #[test]
        fn rows_are_gathered(width in 0usize..20, numbers in prop::collection::vec(0u64..50, 0..80)) {
            let from: Vec<u32> = (0..50 * width as u32).collect();
            let mut into = vec![0; width * numbers.len()];
            gather(&from, width, &numbers, &mut into);
            for (i, x) in into.iter().enumerate() {
                prop_assert_eq!(*x as usize, numbers[i / width] as usize * width + i % width);
            }
        }
    }
}
