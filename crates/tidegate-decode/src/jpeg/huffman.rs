//! Huffman decoding. Most codes are found in pairs, with their values, in one look-up.
//!
//! Flow: entropy-coded bytes -> [`Bits`] (64 at a time) -> the coefficients of a block, or nothing
//! if the block is skipped.
//! Memory: 5 KiB for a table of DC codes, 24 KiB for one of AC codes. [`Tables`] keeps a few,
//! because most files share theirs.
//!
//! Why skipping has its own code: more than half of an image is outside a random crop, and there
//! only the lengths of codes and the values of DC differences matter.

use std::sync::Arc;

use super::errors::{damaged, truncated};
use super::zigzag::NATURAL;
use crate::{Error, Result};

/// Bits of the index of a look-up table.
const LOOK_BITS: u32 = 10;
/// Bits of the index of the table of pairs.
const PAIR_BITS: u32 = 11;
/// The coefficients of a block.
pub(super) type Coefficients = [i16; 64];

/// A Huffman table: a look-up by the next ten bits and, for longer codes, the greatest code of
/// each length.
#[derive(Debug)]
pub(super) struct Table {
    look: [Code; 1 << LOOK_BITS],
    /// For each length, one past its greatest code, shifted to 16 bits.
    ends: [u32; 17],
    /// For each length, the number to add to a code to get the index of its symbol.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

/// A table of AC codes: a code stands for a run of zeros and the size of a value.
#[derive(Debug)]
pub(super) struct AcTable {
    pub(super) codes: Table,
    pairs: Box<[Pair; 1 << PAIR_BITS]>,
    /// For skipping blocks: all symbols within the index bits.
    several: Box<[Several; 1 << LOOK_BITS]>,
}

/// A symbol as `run << 24 | size << 16 | bits << 8 | total`: zeros before its value, bits of the
/// value, bits of the code, and bits of both. 0 if the code is longer than the index. It is one
/// word, because all further work waits for this load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Code(u32);

/// One or two coefficients, perhaps followed by the end of the block, as `second << 48 | first <<
/// 32
/// | ends << 24 | places << 16 | place << 8 | total`: their values, the number of zigzag places
/// that both and the first advance, and the bits of all. A single coefficient is written twice. 0
/// if not even one is within the index. An end takes a place as well: after the last place there
/// is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pair(u64);

/// Successive symbols within the index bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Several {
    /// Their bits; 0 if the first code is longer than the index.
    total: u8,
    /// Zigzag places that they fill; the end of the block counts as one.
    places: u8,
    /// Whether the last one ends the block.
    ends: bool,
}

/// A cache of built tables: the last few of each kind, by their definition in the file.
#[derive(Debug, Default)]
pub(super) struct Tables {
    dc: TableCache<Table>,
    ac: TableCache<AcTable>,
}

/// The last four tables of a kind, newest last, each with its definition.
#[derive(Debug)]
struct TableCache<T>(Vec<(Vec<u8>, Arc<T>)>);

impl<T> Default for TableCache<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> TableCache<T> {
    fn get(&mut self, definition: &[u8], build: impl Fn() -> Option<T>) -> Option<Arc<T>> {
        if let Some((_, table)) = self.0.iter().find(|(known, _)| known == definition) {
            return Some(Arc::clone(table));
        }
        let table = Arc::new(build()?);
        if self.0.len() == 4 {
            self.0.remove(0);
        }
        self.0.push((definition.to_vec(), Arc::clone(&table)));
        Some(table)
    }
}

impl Tables {
    /// The table of DC codes of a definition (16 counts, then symbols); None if it is not a prefix
    /// code.
    pub(super) fn dc(&mut self, definition: &[u8]) -> Option<Arc<Table>> {
        self.dc.get(definition, || Table::new(definition).filter(|t| t.symbols.iter().all(|&s| s <= 15)))
    }

    /// The table of AC codes of a definition.
    pub(super) fn ac(&mut self, definition: &[u8]) -> Option<Arc<AcTable>> {
        self.ac.get(definition, || Table::new(definition).and_then(AcTable::new))
    }
}

impl Table {
    fn new(definition: &[u8]) -> Option<Self> {
        let (counts, symbols) = definition.split_first_chunk::<16>()?;
        let mut table = Self {
            look: [Code::default(); 1 << LOOK_BITS],
            ends: [0; 17],
            offsets: [0; 17],
            symbols: [0; 256],
        };
        table.symbols.get_mut(..symbols.len())?.copy_from_slice(symbols);
        let (mut code, mut next) = (0u32, 0usize);
        for (bits, &count) in (1..=16u32).zip(counts) {
            table.offsets[bits as usize] = next as i32 - code.cast_signed();
            for _ in 0..count {
                if code >= 1 << bits {
                    return None;
                }
                if bits <= LOOK_BITS {
                    let start = (code << (LOOK_BITS - bits)) as usize;
                    let looks = &mut table.look[start..start + (1 << (LOOK_BITS - bits))];
                    looks.fill(Code::new(bits, symbols[next]));
                }
                code += 1;
                next += 1;
            }
            table.ends[bits as usize] = code << (16 - bits);
            code <<= 1;
        }
        Some(table)
    }

    /// Finds a code that is longer than the index; None for no valid code.
    #[cold]
    #[inline(never)]
    fn long(&self, next16: u32) -> Option<Code> {
        let bits = (LOOK_BITS + 1..=16).find(|&bits| next16 < self.ends[bits as usize])?;
        let index = self.offsets[bits as usize] + (next16 >> (16 - bits)).cast_signed();
        Some(Code::new(bits, *self.symbols.get(usize::try_from(index).ok()?)?))
    }
}

impl AcTable {
    fn new(codes: Table) -> Option<Self> {
        // Built on the heap: they are larger than a worker's stack is planned for.
        let pairs: Vec<_> = (0..1 << PAIR_BITS).map(|look| codes.pair(look)).collect();
        let several: Vec<_> = (0..1 << LOOK_BITS).map(|look| codes.several(look)).collect();
        Some(Self { codes, pairs: pairs.try_into().ok()?, several: several.try_into().ok()? })
    }
}

impl Table {
    /// The coefficients within the index bits `look`.
    fn pair(&self, look: u64) -> Pair {
        let within = |next: Next| next.code(self).filter(|code| code.total() <= next.count);
        let next = Next { word: look << (64 - PAIR_BITS), count: PAIR_BITS };
        let Some(first) = within(next).filter(|code| code.size() > 0) else { return Pair::default() };
        let place = first.run() + 1;
        let one = Pair::new([place, place], [next.value(first), next.value(first)], first.total(), false);
        let rest = next.without(first.total());
        match within(rest) {
            Some(second) if second.ends() => Pair::new(
                [place, place],
                [next.value(first), next.value(first)],
                first.total() + second.total(),
                true,
            ),
            Some(second) if second.size() > 0 => {
                let places = [place, place + second.run() + 1];
                Pair::new(
                    places,
                    [next.value(first), rest.value(second)],
                    first.total() + second.total(),
                    false,
                )
            }
            _ => one,
        }
    }

    /// The symbols within the index bits `look`: after each symbol, the rest is looked up in turn.
    fn several(&self, look: usize) -> Several {
        let mut found = Several::default();
        let mut rest = look;
        loop {
            let code = self.look[rest & ((1 << LOOK_BITS) - 1)];
            let within = u32::from(found.total) + code.total() <= LOOK_BITS;
            // The value of the first may reach beyond: its code alone tells its length.
            if code.total() == 0 || (found.total > 0 && !within) {
                return found;
            }
            found.total += code.total() as u8;
            found.places += if code.ends() { 1 } else { code.run() as u8 + 1 };
            found.ends = code.ends();
            if code.ends() || !within || found.places > 64 {
                return found;
            }
            rest <<= code.total();
        }
    }
}

impl Pair {
    fn new(places: [usize; 2], values: [i32; 2], total: u32, ends: bool) -> Self {
        let value = |i: usize| u64::from((values[i] as i16).cast_unsigned());
        let places = (places[1] as u64) << 16 | (places[0] as u64) << 8;
        Self(value(1) << 48 | value(0) << 32 | u64::from(ends) << 24 | places | u64::from(total))
    }

    #[inline(always)]
    fn total(self) -> u32 {
        self.0 as u32 & 0xFF
    }

    /// Places that the first, and that both, advance.
    #[inline(always)]
    fn places(self) -> [usize; 2] {
        [(self.0 >> 8) as usize & 0xFF, (self.0 >> 16) as usize & 0xFF]
    }

    /// 1 if the block ends, else 0.
    #[inline(always)]
    fn ends(self) -> usize {
        (self.0 >> 24) as usize & 1
    }

    #[inline(always)]
    fn values(self) -> [i16; 2] {
        [(self.0 >> 32) as i16, (self.0 >> 48) as i16]
    }
}

impl Code {
    fn new(bits: u32, symbol: u8) -> Self {
        let size = u32::from(symbol & 15);
        Self(u32::from(symbol >> 4) << 24 | size << 16 | bits << 8 | (bits + size))
    }

    #[inline(always)]
    fn total(self) -> u32 {
        self.0 & 0xFF
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.0 >> 8 & 0xFF
    }

    #[inline(always)]
    fn size(self) -> u32 {
        self.0 >> 16 & 0xFF
    }

    #[inline(always)]
    fn run(self) -> usize {
        (self.0 >> 24) as usize
    }

    /// Whether the block ends here.
    #[inline(always)]
    fn ends(self) -> bool {
        self.size() == 0 && self.run() != 15
    }
}

/// The bits of entropy-coded data. Stuffed zeros are removed. After a marker, zero bits are made
/// up and counted.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    next: Next,
    /// Bits that were made up after the end.
    made_up: u32,
    /// MCUs between restart markers; 0: none.
    interval: usize,
    /// MCUs begun so far.
    begun: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize, interval: usize) -> Self {
        Self { bytes, at, next: Next::default(), made_up: 0, interval, begun: 0 }
    }

    /// The offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// MCUs begun so far.
    #[inline(always)]
    pub(super) fn begun(&self) -> usize {
        self.begun
    }

    /// The offset of the next bit in the file, in bits.
    pub(super) fn position(&self) -> u64 {
        let unread = self.next.count.saturating_sub(self.made_up);
        let mut at = self.at;
        for _ in 0..unread.div_ceil(8) {
            // A zero after 0xFF is stuffed: both are one byte of data.
            let stuffed = at >= 2 && self.bytes.get(at - 2..at) == Some(&[0xFF, 0]);
            at = at.saturating_sub(if stuffed { 2 } else { 1 });
        }
        8 * at as u64 + u64::from(unread.next_multiple_of(8) - unread)
    }

    /// Moves to MCU `begun`, which begins at `bit`: see [`Bits::position`].
    pub(super) fn jump(&mut self, begun: usize, bit: u64) {
        *self = Self { begun, ..Self::new(self.bytes, (bit / 8) as usize, self.interval) };
        self.next = self.filled(self.next).without((bit % 8) as u32);
    }

    /// Whether made-up bits were used.
    #[inline(always)]
    pub(super) fn ran_out(&self) -> bool {
        self.made_up > self.next.count
    }

    /// Whether the file has no more data: the next marker is the last, or there is none.
    #[cold]
    pub(super) fn ended(&self) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let marker = rest.windows(2).find(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xFF));
        marker.is_none_or(|w| w[1] == 0xD9)
    }

    /// Whether the file ends where bits were needed.
    #[inline(always)]
    pub(super) fn cut(&self) -> bool {
        self.ran_out() && self.ended()
    }

    /// The value that was read; or `instead`, if the file ends within it and `fill` is set.
    #[inline(always)]
    pub(super) fn found<T>(&self, read: Option<T>, fill: bool, instead: T) -> Result<T> {
        match read {
            Some(read) => Ok(read),
            None if fill && self.cut() => Ok(instead),
            None => Err(self.wrong()),
        }
    }

    /// Begins an MCU after the end of the file.
    #[cold]
    pub(super) fn end(&mut self) {
        *self = Self { begun: self.begun + 1, ..Self::new(self.bytes, self.bytes.len(), self.interval) };
    }

    /// Fails if made-up bits were used.
    pub(super) fn check(&self) -> Result<()> {
        if self.ran_out() { Err(self.wrong()) } else { Ok(()) }
    }

    /// Why no code was found.
    pub(super) fn wrong(&self) -> Error {
        if self.ran_out() { truncated(self.at) } else { damaged(self.at, "bits that no Huffman table knows") }
    }

    /// Begins an MCU: skips the restart marker if one is due, and returns whether one was.
    #[inline(always)]
    pub(super) fn begin_mcu(&mut self) -> Result<bool> {
        let due = self.interval > 0 && self.begun > 0 && self.begun.is_multiple_of(self.interval);
        if due {
            let missing = || damaged(self.at, "a restart marker is missing, or comes too early");
            let at = self.marker(self.begun / self.interval - 1).ok_or_else(missing)?;
            *self = Self { begun: self.begun, ..Self::new(self.bytes, at, self.interval) };
        }
        self.begun += 1;
        Ok(due)
    }

    /// The offset after the restart marker of this number, if that marker comes next.
    fn marker(&self, number: usize) -> Option<usize> {
        let rest = self.bytes.get(self.at..).filter(|_| !self.ran_out())?;
        let marker = rest.windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xFF))?;
        (rest[marker + 1] == 0xD0 + (number % 8) as u8).then_some(self.at + marker + 2)
    }

    /// Refills `next` to at least 32 bits.
    #[inline(always)]
    fn filled(&mut self, next: Next) -> Next {
        if next.count >= 32 {
            return next;
        }
        if let Some(eight) = self.bytes.get(self.at..).and_then(|b| b.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*eight);
            // No byte is 0xFF: there is no stuffed zero and no marker.
            if !has_ff(word) {
                let bytes = (63 - next.count) >> 3;
                self.at += bytes as usize;
                return Next { word: next.word | word >> next.count, count: next.count + 8 * bytes };
            }
        }
        self.filled_bytewise(next)
    }

    #[cold]
    #[inline(never)]
    fn filled_bytewise(&mut self, mut next: Next) -> Next {
        while next.count <= 56 {
            let byte = match self.bytes.get(self.at) {
                Some(0xFF) if self.bytes.get(self.at + 1) == Some(&0) => {
                    self.at += 2;
                    0xFF
                }
                None | Some(0xFF) => {
                    self.made_up += 8;
                    0
                }
                Some(&byte) => {
                    self.at += 1;
                    byte
                }
            };
            next.word |= u64::from(byte) << (56 - next.count);
            next.count += 8;
        }
        next
    }

    /// Reads the DC difference of a block.
    #[inline(always)]
    pub(super) fn dc(&mut self, table: &Table) -> Option<i32> {
        let next = self.filled(self.next);
        let code = next.code(table)?;
        self.next = next.without(code.total());
        Some(if code.size() == 0 { 0 } else { next.value(code) })
    }

    /// Reads the AC coefficients of a block into natural order; returns the zigzag index of the
    /// last.
    #[inline(always)]
    pub(super) fn ac(&mut self, table: &AcTable, block: &mut Coefficients) -> Option<usize> {
        let mut next = self.next;
        let mut k = 0;
        while k < 63 {
            next = self.filled(next);
            let pair = table.pairs[(next.word >> (64 - PAIR_BITS)) as usize];
            let [first, last] = pair.places().map(|places| k + places);
            // In a pair that reaches beyond the block, the second belongs to the next block.
            if pair.0 != 0 && last + pair.ends() < 64 {
                let [one, other] = pair.values();
                block[usize::from(NATURAL[first & 63]) & 63] = one;
                block[usize::from(NATURAL[last & 63]) & 63] = other;
                next = next.without(pair.total());
                k = last;
                if pair.ends() == 1 {
                    break;
                }
                continue;
            }
            let code = next.code(&table.codes)?;
            if code.size() == 0 {
                next = next.without(code.bits());
                if code.run() != 15 {
                    break;
                }
                k += 16;
            } else {
                k += code.run() + 1;
                // Indices beyond the block map to the last one. The check after the loop refuses
                // them.
                block[usize::from(NATURAL[k & 127])] = next.value(code) as i16;
                next = next.without(code.total());
            }
        }
        self.next = next;
        (k <= 63).then_some(k)
    }

    /// Skips the AC coefficients of a block.
    #[inline(always)]
    pub(super) fn skip_ac(&mut self, table: &AcTable) -> Option<()> {
        let mut next = self.next;
        let mut k = 1;
        while k < 64 {
            next = self.filled(next);
            let several = table.several[next.look()];
            let after = k + usize::from(several.places);
            // If they fill more places than are left, some belong to the next block.
            if several.total > 0 && after <= 64 {
                next = next.without(several.total.into());
                k = if several.ends { 64 } else { after };
                continue;
            }
            let code = next.code(&table.codes)?;
            next = next.without(code.total());
            k = if code.ends() { 64 } else { k + code.run() + 1 };
        }
        self.next = next;
        (k == 64).then_some(())
    }

    /// Reads the next code and returns its run and size; the value stays unread.
    pub(super) fn symbol(&mut self, table: &Table) -> Option<(usize, u32)> {
        let next = self.filled(self.next);
        let code = next.code(table)?;
        self.next = next.without(code.bits());
        Some((code.run(), code.size()))
    }

    /// Reads the next `n` bits, at most 16, as a number.
    pub(super) fn take(&mut self, n: u32) -> u32 {
        let next = self.filled(self.next);
        self.next = next.without(n);
        // Two shifts, because a shift by 64 is not defined.
        (next.word >> 1 >> (63 - n)) as u32
    }

    /// Reads a value of `size` bits, at least one: a first bit of 0 means minus the complement.
    pub(super) fn magnitude(&mut self, size: u32) -> i32 {
        let next = self.filled(self.next);
        self.next = next.without(size);
        next.value(Code(size << 16))
    }
}

/// The next bits, from the highest on. It is passed by value so that it stays in a register while
/// a block is read: each symbol waits for the shift by the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Next {
    word: u64,
    count: u32,
}

impl Next {
    #[inline(always)]
    fn look(self) -> usize {
        (self.word >> (64 - LOOK_BITS)) as usize
    }

    #[inline(always)]
    fn without(self, bits: u32) -> Self {
        Self { word: self.word << bits, count: self.count - bits }
    }

    /// The code that comes next.
    #[inline(always)]
    fn code(self, table: &Table) -> Option<Code> {
        let code = table.look[self.look()];
        if code.0 == 0 { table.long((self.word >> 48) as u32) } else { Some(code) }
    }

    /// The value of a code, at least one bit long: a first bit of 0 means minus the complement.
    #[inline(always)]
    fn value(self, code: Code) -> i32 {
        let bits = self.word << code.bits();
        let sign = !(bits.cast_signed() >> 63).cast_unsigned();
        let magnitude = (bits ^ sign) >> (64 - code.size());
        (magnitude ^ sign).wrapping_sub(sign) as i32
    }
}

fn has_ff(word: u64) -> bool {
    let inverse = !word;
    inverse.wrapping_sub(0x0101_0101_0101_0101) & !inverse & 0x8080_8080_8080_8080 != 0
}
