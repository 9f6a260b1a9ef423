//! How many bytes the prefix codes of a lossless WebP take once they are tables.
//!
//! Flow: a file -> its lossless streams (also that of an alpha channel) -> the codes of their main
//! image -> bytes.
//! Memory: one code on the stack.
//!
//! A file of 8 × 8 pixels may have 65,536 groups of five codes, and image-webp makes tables of all
//! of them, up to a thousand times the file. How many there are is known once the images before
//! the main one are passed over; of these only the literals matter, because copies and colours of
//! the cache repeat what came before.
//!
//! Specification: WebP Lossless Bitstream (RFC 9649), sections 4 to 6.

/// Bytes of image-webp for one code, without its tables, and for one of at most two symbols.
const CODE_BYTES: u64 = 128;
const SMALL_CODE_BYTES: u64 = 96;
/// Bits of the longest code, and of its first table.
const LONGEST: usize = 15;
const TABLE_BITS: usize = 10;
/// The symbols of the five codes of a group; the first has those of a colour cache too.
const SYMBOLS: [usize; 5] = [280, 256, 256, 256, 40];
const MOST_SYMBOLS: usize = 280 + (1 << 11);
/// In this order come the lengths of the code that the lengths of others are written in.
const LENGTH_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The most bytes that the tables of one of a file's streams take, for an image of this size. A
/// stream that ends early or is damaged counts as far as it goes: the decoder says what is wrong.
pub(super) fn table_bytes(file: &[u8], size: (usize, usize)) -> u64 {
    chunks(file.get(12..).unwrap_or_default(), |name, body| match name {
        // The frames of an animation are lists of chunks; there are no frames within them.
        b"ANMF" => {
            let frame = frame_size(body.get(6..).unwrap_or_default()).unwrap_or(size);
            let frame = (frame.0.min(size.0), frame.1.min(size.1));
            chunks(body.get(16..).unwrap_or_default(), |name, body| stream_bytes(name, body, frame))
        }
        _ => stream_bytes(name, body, size),
    })
}

/// The most that `bytes_of` says of any chunk of a list.
fn chunks(mut bytes: &[u8], bytes_of: impl Fn(&[u8; 4], &[u8]) -> u64) -> u64 {
    let mut most = 0;
    while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
        let [a, b, c, d, len @ ..] = *head;
        let len = u32::from_le_bytes(len) as usize;
        most = most.max(bytes_of(&[a, b, c, d], rest.get(..len).unwrap_or(rest)));
        bytes = rest.get(len.saturating_add(len % 2)..).unwrap_or_default();
    }
    most
}

/// Width and height of a frame, each as three bytes of one less.
fn frame_size(bytes: &[u8]) -> Option<(usize, usize)> {
    let side = |at: usize| {
        let &[a, b, c] = bytes.get(at..)?.first_chunk::<3>()?;
        Some((usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16) + 1)
    };
    side(0).zip(side(3))
}

/// What the tables of a chunk take. An alpha channel has the size of its image, which it does not
/// state.
fn stream_bytes(name: &[u8; 4], body: &[u8], (width, height): (usize, usize)) -> u64 {
    let mut found = 0;
    match name {
        b"VP8L" => {
            let mut bits = Bits { bytes: body, at: 0 };
            _ = bits.header().and_then(|(width, height)| bits.stream(width, height, &mut found));
        }
        b"ALPH" if body.first().is_some_and(|head| head & 3 == 1) => {
            let mut bits = Bits { bytes: &body[1..], at: 0 };
            _ = bits.stream(width, height, &mut found);
        }
        _ => {}
    }
    found
}

/// A stream of bits; None where it ends or states what cannot be.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next bits, at most 16, without taking them; zeros behind the end.
    fn peek(&self) -> u32 {
        let byte = |i: usize| u32::from(self.bytes.get(self.at / 8 + i).copied().unwrap_or(0));
        (byte(0) | byte(1) << 8 | byte(2) << 16) >> (self.at % 8)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= 8 * self.bytes.len()).then_some(())
    }

    fn take(&mut self, count: usize) -> Option<usize> {
        let value = self.peek() as usize & ((1 << count) - 1);
        self.skip(count).map(|()| value)
    }

    /// Width and height.
    fn header(&mut self) -> Option<(usize, usize)> {
        self.take(8).filter(|&sign| sign == 0x2F)?;
        let size = (self.take(14)? + 1, self.take(14)? + 1);
        self.skip(4).map(|()| size)
    }

    /// Passes over everything before the pixels of the main image, and counts its tables.
    fn stream(&mut self, mut width: usize, height: usize, found: &mut u64) -> Option<()> {
        while self.take(1)? == 1 {
            match self.take(2)? {
                0 | 1 => {
                    let shift = self.take(3)? + 2;
                    self.image(blocks(width, shift), blocks(height, shift))?;
                }
                2 => {}
                _ => {
                    let colors = self.take(8)? + 1;
                    self.image(colors, 1)?;
                    let packed = match colors {
                        0..=2 => 3,
                        3..=4 => 2,
                        5..=16 => 1,
                        _ => 0,
                    };
                    width = blocks(width, packed);
                }
            }
        }
        let cache = self.cache()?;
        let mut groups = 1;
        if self.take(1)? == 1 {
            let shift = self.take(3)? + 2;
            groups += self.image(blocks(width, shift), blocks(height, shift))?;
        }
        for _ in 0..groups {
            for (i, symbols) in SYMBOLS.into_iter().enumerate() {
                *found += self.code(symbols + if i == 0 { cache } else { 0 })?.bytes();
            }
        }
        Some(())
    }

    /// The colours that the cache of an image holds.
    fn cache(&mut self) -> Option<usize> {
        if self.take(1)? == 0 {
            return Some(0);
        }
        self.take(4).filter(|bits| (1..=11).contains(bits)).map(|bits| 1 << bits)
    }

    /// Passes over an image with one group of codes; returns the largest number that a pixel has in
    /// its red and green.
    fn image(&mut self, width: usize, height: usize) -> Option<usize> {
        let cache = self.cache()?;
        let mut codes = [const { Code::EMPTY }; 5];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = self.code(SYMBOLS[i] + if i == 0 { cache } else { 0 })?;
        }
        let (mut left, mut most) = (width * height, 0);
        while left > 0 {
            let before = self.at;
            let symbol = codes[0].next(self)?;
            left = match symbol {
                0..256 => {
                    let red = codes[1].next(self)?;
                    codes[2].next(self)?;
                    codes[3].next(self)?;
                    most = most.max(red << 8 | symbol);
                    left - 1
                }
                256..280 => {
                    let len = self.prefixed(symbol - 256)?;
                    let distance = codes[4].next(self)?;
                    self.prefixed(distance)?;
                    left.saturating_sub(len)
                }
                _ => left - 1,
            };
            if self.at == before {
                // Codes of one symbol take no bits: all that follows is the same.
                break;
            }
        }
        Some(most)
    }

    /// The number that a prefix and its extra bits state.
    fn prefixed(&mut self, prefix: usize) -> Option<usize> {
        if prefix < 4 {
            return Some(prefix + 1);
        }
        // There are 40 prefixes of distances, with at most 18 extra bits.
        let extra = Some((prefix - 2) / 2).filter(|extra| *extra < 19)?;
        let low = self.take(extra.min(16))?;
        self.skip(extra.saturating_sub(16))?;
        Some(((2 + prefix % 2) << extra) + low + 1)
    }

    /// Reads a code.
    fn code(&mut self, symbols: usize) -> Option<Code> {
        if self.take(1)? == 1 {
            let two = self.take(1)? == 1;
            let wide = self.take(1)? == 1;
            let first = self.take(if wide { 8 } else { 1 })?;
            let second = if two { Some(self.take(8)?) } else { None };
            return Some(Code::simple(first, second));
        }
        let mut lengths = [0u8; MOST_SYMBOLS];
        for &symbol in &LENGTH_ORDER[..4 + self.take(4)?] {
            lengths[symbol] = self.take(3)? as u8;
        }
        let code = Code::new(&lengths[..19])?;
        lengths[..19].fill(0);
        let mut left = if self.take(1)? == 1 {
            let bits = 2 + 2 * self.take(3)?;
            2 + self.take(bits)?
        } else {
            symbols
        };
        let (mut at, mut before) = (0, 8);
        while at < symbols && left > 0 {
            left -= 1;
            let (value, count) = match code.next(self)? {
                16 => (before, 3 + self.take(2)?),
                17 => (0, 3 + self.take(3)?),
                18 => (0, 11 + self.take(7)?),
                length => {
                    if length > 0 {
                        before = length as u8;
                    }
                    (length as u8, 1)
                }
            };
            lengths.get_mut(at..at + count).filter(|_| at + count <= symbols)?.fill(value);
            at += count;
        }
        Code::new(&lengths[..symbols])
    }
}

fn blocks(size: usize, shift: usize) -> usize {
    (size + (1 << shift) - 1) >> shift
}

/// A canonical prefix code.
struct Code {
    /// The symbols, by length and then by number.
    sorted: [u16; MOST_SYMBOLS],
    /// How many symbols have each length; with one symbol, its code has no bits.
    counts: [u16; LONGEST + 1],
    symbols: usize,
}

impl Code {
    const EMPTY: Self = Self { sorted: [0; MOST_SYMBOLS], counts: [0; LONGEST + 1], symbols: 0 };

    fn simple(first: usize, second: Option<usize>) -> Self {
        let mut code = Self::EMPTY;
        code.symbols = 1 + usize::from(second.is_some());
        code.counts[1] = code.symbols as u16;
        code.sorted[0] = first as u16;
        code.sorted[1] = second.unwrap_or(0) as u16;
        code
    }

    fn new(lengths: &[u8]) -> Option<Self> {
        let mut code = Self::EMPTY;
        for length in 1..=LONGEST {
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| usize::from(**l) == length) {
                code.sorted[code.symbols] = symbol as u16;
                code.symbols += 1;
                code.counts[length] += 1;
            }
        }
        (code.symbols > 0).then_some(code)
    }

    /// The next symbol.
    fn next(&self, bits: &mut Bits<'_>) -> Option<usize> {
        if self.symbols == 1 {
            return Some(self.sorted[0].into());
        }
        let (word, mut code, mut first, mut index) = (bits.peek(), 0u32, 0u32, 0usize);
        for length in 1..=LONGEST {
            code |= word >> (length - 1) & 1;
            let count = u32::from(self.counts[length]);
            if code < first + count {
                bits.skip(length)?;
                return Some(self.sorted[index + (code - first) as usize].into());
            }
            (index, first, code) = (index + count as usize, (first + count) << 1, code << 1);
        }
        None
    }

    /// What image-webp allocates for it.
    fn bytes(&self) -> u64 {
        if self.symbols <= 2 {
            return CODE_BYTES + SMALL_CODE_BYTES;
        }
        let longest = self.counts.iter().rposition(|&count| count > 0).unwrap_or(0);
        let beyond: u64 = self.counts[(TABLE_BITS + 1).min(LONGEST)..].iter().map(|&c| u64::from(c)).sum();
        CODE_BYTES + (4 << longest.min(TABLE_BITS)) + 64 * beyond
    }
}
