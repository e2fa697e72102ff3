//! The bytes of one allocation. They are relaxed atomics: a kernel with a data race is a finding of
//! the emulator, never undefined behaviour of this process.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::{AllocationInfo, lock};

/// Byte returned for unwritten memory where reading it is allowed: a NaN in f16, bf16, f32 and f64.
const POISON: u8 = 0xff;

/// The bytes of one allocation and, for each, whether it was written.
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) serial: u64,
    pub(crate) label: String,
    pub(crate) read_only: bool,
    words: Box<[AtomicU32]>,
    /// One entry per word; bit `i` says that byte `i` of the word was written.
    written: Box<[AtomicU8]>,
    /// Makes 64-bit atomics indivisible (they span two words).
    wide: Mutex<()>,
}

/// Contents of ranges, one after the other: whole words and which of their bytes were written.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    words: Vec<u32>,
    written: Vec<u8>,
}

impl Saved {
    /// Bytes it takes.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.words.len() as u64 + self.written.len() as u64
    }
}

/// A byte-lane mask spread over a word: bit `i` becomes byte `i`.
const fn spread(mask: u8) -> u32 {
    let mut out = 0u32;
    let mut i = 0;
    while i < 4 {
        if mask >> i & 1 == 1 {
            out |= 0xff << (8 * i);
        }
        i += 1;
    }
    out
}

impl Allocation {
    /// An allocation nothing was written to; `None` when this process has no memory for it.
    pub(super) fn new(
        base: u64,
        size: u64,
        serial: u64,
        label: &str,
        read_only: bool,
    ) -> Option<Self> {
        let count = usize::try_from(size.div_ceil(4)).ok()?;
        let words = bytemuck::allocation::try_zeroed_slice_box(count).ok()?;
        let written = bytemuck::allocation::try_zeroed_slice_box(count).ok()?;
        let (label, wide) = (label.to_owned(), Mutex::new(()));
        Some(Self { base, size, serial, label, read_only, words, written, wide })
    }

    pub(super) fn info(&self) -> AllocationInfo {
        AllocationInfo {
            address: self.base,
            bytes: self.size,
            label: self.label.clone(),
            serial: self.serial,
        }
    }

    /// The allocation in words.
    pub(crate) fn describe(&self) -> String {
        self.info().to_string()
    }

    /// Whether `bytes` at `address` lie inside.
    pub(crate) fn contains(&self, address: u64, bytes: u64) -> bool {
        address >= self.base
            && address - self.base <= self.size
            && bytes <= self.size - (address - self.base)
    }

    /// Reads up to 8 bytes that lie within one or two words; returns the value and the mask of
    /// bytes written. The caller has checked bounds and natural alignment.
    pub(crate) fn load(&self, offset: u64, bytes: u32) -> (u64, u32) {
        let word = (offset / 4) as usize;
        if bytes == 4 {
            let value = self.words[word].load(Relaxed);
            return (u64::from(value), u32::from(self.written[word].load(Relaxed)));
        }
        if bytes == 8 {
            let (low, high) = (self.words[word].load(Relaxed), self.words[word + 1].load(Relaxed));
            let written = u32::from(self.written[word].load(Relaxed))
                | u32::from(self.written[word + 1].load(Relaxed)) << 4;
            return (u64::from(low) | u64::from(high) << 32, written);
        }
        let shift = (offset % 4) as u32;
        let value = self.words[word].load(Relaxed) >> (8 * shift);
        let written = u32::from(self.written[word].load(Relaxed)) >> shift;
        let keep = (1u32 << bytes) - 1;
        (u64::from(value & spread(keep as u8)), written & keep)
    }

    /// Writes up to 8 naturally aligned bytes and marks them written.
    pub(crate) fn store(&self, offset: u64, bytes: u32, value: u64) {
        let word = (offset / 4) as usize;
        match bytes {
            4 => self.store_word(word, value as u32),
            8 => {
                self.store_word(word, value as u32);
                self.store_word(word + 1, (value >> 32) as u32);
            }
            _ => {
                let shift = (offset % 4) as u32;
                let mask = (((1u32 << bytes) - 1) << shift) as u8;
                self.store_part(word, mask, (value as u32) << (8 * shift));
            }
        }
    }

    fn store_word(&self, word: usize, value: u32) {
        self.words[word].store(value, Relaxed);
        if self.written[word].load(Relaxed) != 0xf {
            self.written[word].store(0xf, Relaxed);
        }
    }

    /// Replaces the bytes in `mask` without disturbing a neighbour that another block writes.
    fn store_part(&self, word: usize, mask: u8, value: u32) {
        let bits = spread(mask);
        // Relaxed read-modify-write: the closure always returns a value, so this cannot fail.
        let _ =
            self.words[word].fetch_update(Relaxed, Relaxed, |old| Some(old & !bits | value & bits));
        self.written[word].fetch_or(mask, Relaxed);
    }

    /// Replaces a naturally aligned 2-, 4- or 8-byte value by `f` of it, indivisibly; returns the
    /// old value and the mask of bytes that were written before.
    pub(crate) fn update(&self, offset: u64, bytes: u32, f: impl Fn(u64) -> u64) -> (u64, u32) {
        let written = self.load(offset, bytes).1;
        let word = (offset / 4) as usize;
        if bytes == 8 {
            let _guard = lock(&self.wide);
            let old = self.load(offset, 8).0;
            self.store(offset, 8, f(old));
            return (old, written);
        }
        let shift = 8 * (offset % 4) as u32;
        let keep = spread(((1u32 << bytes) - 1) as u8);
        let old = self.words[word].fetch_update(Relaxed, Relaxed, |old| {
            let part = f(u64::from(old >> shift & keep)) as u32 & keep;
            Some(old & !(keep << shift) | part << shift)
        });
        let (Ok(old) | Err(old)) = old;
        (u64::from(old >> shift & keep), written)
    }

    /// The words that hold a range.
    fn words_of(offset: u64, bytes: u64) -> std::ops::Range<usize> {
        (offset / 4) as usize..(offset + bytes).div_ceil(4) as usize
    }

    /// Appends what a range in bounds holds.
    pub(crate) fn save(&self, offset: u64, bytes: u64, to: &mut Saved) {
        let range = Self::words_of(offset, bytes);
        to.words.extend(self.words[range.clone()].iter().map(|word| word.load(Relaxed)));
        to.written.extend(self.written[range].iter().map(|written| written.load(Relaxed)));
    }

    /// Puts back what was saved last, and takes it from `from`. Neighbours in a word stay.
    pub(crate) fn restore(&self, offset: u64, bytes: u64, from: &mut Saved) {
        for word in Self::words_of(offset, bytes).rev() {
            let (Some(value), Some(written)) = (from.words.pop(), from.written.pop()) else {
                return;
            };
            let start = 4 * word as u64;
            let low = offset.saturating_sub(start).min(4);
            let high = (offset + bytes - start).min(4);
            let mask = ((1u32 << high) - (1u32 << low)) as u8;
            self.store_part(word, mask, value);
            self.written[word].fetch_and(written | !mask, Relaxed);
        }
    }

    /// Whether a byte was written.
    pub(super) fn is_written(&self, offset: u64) -> bool {
        self.load(offset, 1).1 != 0
    }

    /// Reads naturally aligned elements of up to 8 bytes, one after the other; whether all of their
    /// bytes were written.
    pub(crate) fn load_run(&self, offset: u64, bytes: u32, out: &mut [u64]) -> bool {
        let first = (offset / 4) as usize;
        let mut all = true;
        match bytes {
            4 => {
                let range = first..first + out.len();
                let words = self.words[range.clone()].iter().zip(&self.written[range]);
                for (out, (word, written)) in out.iter_mut().zip(words) {
                    *out = u64::from(word.load(Relaxed));
                    all &= written.load(Relaxed) == 0xf;
                }
            }
            8 => {
                let range = first..first + 2 * out.len();
                let words = self.words[range.clone()].as_chunks::<2>().0;
                let written = self.written[range].as_chunks::<2>().0;
                for (out, ([low, high], [a, b])) in out.iter_mut().zip(words.iter().zip(written)) {
                    *out = u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
                    all &= a.load(Relaxed) & b.load(Relaxed) == 0xf;
                }
            }
            _ => {
                for (i, out) in out.iter_mut().enumerate() {
                    let (value, written) = self.load(offset + i as u64 * u64::from(bytes), bytes);
                    *out = value;
                    all &= written == (1 << bytes) - 1;
                }
            }
        }
        all
    }

    /// Writes naturally aligned elements of up to 8 bytes, one after the other.
    pub(crate) fn store_run(&self, offset: u64, bytes: u32, values: &[u64]) {
        if bytes == 4 {
            let first = (offset / 4) as usize;
            let words = &self.words[first..first + values.len()];
            let written = &self.written[first..first + values.len()];
            for (value, (word, written)) in values.iter().zip(words.iter().zip(written)) {
                word.store(*value as u32, Relaxed);
                written.store(0xf, Relaxed);
            }
            return;
        }
        for (i, value) in values.iter().enumerate() {
            self.store(offset + i as u64 * u64::from(bytes), bytes, *value);
        }
    }

    /// Copies bytes out, `0xff` for those that were not written; the offset of the first of those.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Option<u64> {
        let mut first_unwritten = None;
        let mut byte = |at: u64, out: &mut u8| {
            let (value, written) = self.load(at, 1);
            *out = if written != 0 { value as u8 } else { POISON };
            if written == 0 && first_unwritten.is_none() {
                first_unwritten = Some(at);
            }
        };
        let (head, words, tail) = parts(offset, out.len());
        let (first, rest) = out.split_at_mut(head);
        for (i, out) in first.iter_mut().enumerate() {
            byte(offset + i as u64, out);
        }
        let start = (offset + head as u64) / 4;
        let (middle, last) = rest.split_at_mut(4 * words);
        let range = start as usize..start as usize + words;
        let records = self.words[range.clone()].iter().zip(&self.written[range]);
        for (i, (out, (word, written))) in
            middle.as_chunks_mut::<4>().0.iter_mut().zip(records).enumerate()
        {
            if written.load(Relaxed) == 0xf {
                *out = word.load(Relaxed).to_le_bytes();
                continue;
            }
            for (k, out) in out.iter_mut().enumerate() {
                byte(4 * (start + i as u64) + k as u64, out);
            }
        }
        let end = offset + (head + 4 * words) as u64;
        for (i, out) in last.iter_mut().enumerate().take(tail) {
            byte(end + i as u64, out);
        }
        first_unwritten
    }

    /// Copies bytes in.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let (head, words, _) = parts(offset, data.len());
        let (first, rest) = data.split_at(head);
        let (middle, last) = rest.split_at(4 * words);
        let start = offset + head as u64;
        for (i, byte) in first.iter().enumerate() {
            self.store(offset + i as u64, 1, u64::from(*byte));
        }
        let range = (start / 4) as usize..(start / 4) as usize + words;
        let records = self.words[range.clone()].iter().zip(&self.written[range]);
        for (value, (word, written)) in middle.as_chunks::<4>().0.iter().zip(records) {
            word.store(u32::from_le_bytes(*value), Relaxed);
            written.store(0xf, Relaxed);
        }
        for (i, byte) in last.iter().enumerate() {
            self.store(start + (4 * words + i) as u64, 1, u64::from(*byte));
        }
    }

    /// Writes the low `width` (1, 2 or 4) bytes of `pattern` over `bytes` bytes, a multiple of it.
    pub(super) fn fill(&self, offset: u64, pattern: u32, width: u32, bytes: u64) {
        let pattern = match width {
            1 => (pattern & 0xff) * 0x0101_0101,
            2 => (pattern & 0xffff) * 0x0001_0001,
            _ => pattern,
        };
        // A multiple of the width, so that the repeated pattern fits every word.
        let (head, words, tail) = parts(offset, usize::try_from(bytes).unwrap_or(usize::MAX));
        let value = |at: u64| u64::from(pattern >> (8 * (at % 4)));
        for at in offset..offset + head as u64 {
            self.store(at, 1, value(at));
        }
        let start = (offset + head as u64) / 4;
        let range = start as usize..start as usize + words;
        for word in &self.words[range.clone()] {
            word.store(pattern, Relaxed);
        }
        for written in &self.written[range] {
            written.store(0xf, Relaxed);
        }
        let end = 4 * (start + words as u64);
        for at in end..end + tail as u64 {
            self.store(at, 1, value(at));
        }
    }

    /// Clears the record of what was written in a range (copies of unwritten bytes).
    pub(super) fn forget(&self, offset: u64) {
        let mask = 1u8 << (offset % 4);
        self.written[(offset / 4) as usize].fetch_and(!mask, Relaxed);
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Allocation").field(&self.info()).finish()
    }
}

/// A range cut at word boundaries: bytes before, whole words, bytes after.
fn parts(offset: u64, len: usize) -> (usize, usize, usize) {
    let head = ((4 - offset % 4) % 4).min(len as u64) as usize;
    let words = (len - head) / 4;
    (head, words, len - head - 4 * words)
}
