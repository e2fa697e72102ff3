//! Shared memory of a block: bytes, and which of them were written.

use crate::ptx::ir::SharedArray;

/// A shared array with its size in this launch.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    pub(crate) name: String,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// The memory.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    pub(crate) extents: Vec<Extent>,
    words: Vec<u32>,
    /// For each word, the bytes that were written.
    written: Vec<u8>,
}

impl SharedMemory {
    pub(crate) fn new(arrays: &[SharedArray], dynamic: u32) -> Self {
        let extent = |array: &SharedArray| {
            let bytes = if array.dynamic { dynamic } else { array.bytes };
            let (start, end) = (array.offset, array.offset.saturating_add(bytes));
            Extent { name: array.name.clone(), start, end }
        };
        let extents: Vec<Extent> = arrays.iter().map(extent).collect();
        let end = extents.iter().map(|extent| extent.end as usize).max().unwrap_or(0);
        let end = end.next_multiple_of(16);
        Self { extents, words: vec![0; end / 4], written: vec![0; end / 4] }
    }

    /// Bytes, gaps included.
    pub(crate) fn size(&self) -> usize {
        4 * self.words.len()
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        for extent in &self.extents {
            // Arrays start at multiples of 16, so no word belongs to two.
            let words = extent.start as usize / 4..(extent.end as usize).div_ceil(4);
            self.written[words].fill(0);
        }
    }

    /// The array that holds the whole range.
    pub(crate) fn extent(&self, offset: u64, bytes: u64) -> Option<&Extent> {
        self.extents.iter().find(|extent| {
            offset >= u64::from(extent.start)
                && offset.checked_add(bytes).is_some_and(|end| end <= u64::from(extent.end))
        })
    }

    /// Reads up to 8 naturally aligned bytes in bounds; `None` if one was never written.
    pub(crate) fn load(&self, offset: u64, bytes: u32) -> Option<u64> {
        let word = offset as usize / 4;
        match bytes {
            4 => (self.written[word] == 0xf).then(|| u64::from(self.words[word])),
            8 => {
                let known = self.written[word] & self.written[word + 1] == 0xf;
                let (low, high) = (self.words[word], self.words[word + 1]);
                known.then(|| u64::from(low) | u64::from(high) << 32)
            }
            _ => {
                let shift = offset as u32 % 4;
                let mask = (1u8 << bytes) - 1;
                let known = self.written[word] >> shift & mask == mask;
                let keep = (1u32 << (8 * bytes)) - 1;
                known.then(|| u64::from(self.words[word] >> (8 * shift) & keep))
            }
        }
    }

    /// Writes up to 8 naturally aligned bytes in bounds.
    pub(crate) fn store(&mut self, offset: u64, bytes: u32, value: u64) {
        let word = offset as usize / 4;
        match bytes {
            4 => {
                self.words[word] = value as u32;
                self.written[word] = 0xf;
            }
            8 => {
                (self.words[word], self.words[word + 1]) = (value as u32, (value >> 32) as u32);
                (self.written[word], self.written[word + 1]) = (0xf, 0xf);
            }
            _ => {
                let shift = offset as u32 % 4;
                let keep = ((1u32 << (8 * bytes)) - 1) << (8 * shift);
                self.words[word] = self.words[word] & !keep | (value as u32) << (8 * shift) & keep;
                self.written[word] |= ((1u8 << bytes) - 1) << shift;
            }
        }
    }
}
