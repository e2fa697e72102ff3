//! What one memory instruction costs: sectors of global memory, passes through shared memory.

/// 32-byte sectors of one instruction.
#[derive(Debug)]
pub(crate) struct Sectors {
    seen: [u64; 64],
    len: usize,
    more: u64,
}

impl Default for Sectors {
    fn default() -> Self {
        Self { seen: [0; 64], len: 0, more: 0 }
    }
}

impl Sectors {
    pub(crate) fn add(&mut self, address: u64, bytes: u32) {
        for sector in address / 32..=(address + u64::from(bytes) - 1) / 32 {
            if self.seen[..self.len].iter().rev().any(|seen| *seen == sector) {
                continue;
            }
            // 32 lanes of at most 32 bytes, naturally aligned, touch at most 32 sectors.
            match self.seen.get_mut(self.len) {
                Some(slot) => {
                    *slot = sector;
                    self.len += 1;
                }
                None => self.more += 1,
            }
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.len as u64 + self.more
    }
}

/// Words of one shared-memory instruction, by bank.
#[derive(Debug)]
pub(crate) struct Banks {
    words: [u64; 256],
    len: usize,
    bytes: u32,
}

impl Default for Banks {
    fn default() -> Self {
        Self { words: [0; 256], len: 0, bytes: 0 }
    }
}

impl Banks {
    pub(crate) fn add(&mut self, offset: u64, bytes: u32) {
        self.bytes = bytes;
        for word in offset / 4..(offset + u64::from(bytes)).div_ceil(4) {
            if let Some(slot) = self.words.get_mut(self.len) {
                *slot = word;
                self.len += 1;
            }
        }
    }

    /// Passes beyond the least possible: the fullest bank's distinct words, less what the volume
    /// needs anyway.
    pub(crate) fn conflicts(&mut self) -> u64 {
        if self.len == 0 {
            return 0;
        }
        let words = &mut self.words[..self.len];
        words.sort_unstable();
        let mut per_bank = [0u64; 32];
        let mut last = u64::MAX;
        let mut distinct = 0u64;
        for &word in words.iter() {
            if word != last {
                per_bank[(word % 32) as usize] += 1;
                distinct += 1;
                last = word;
            }
        }
        let most = per_bank.iter().copied().max().unwrap_or(0);
        most.saturating_sub(distinct.div_ceil(32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bank_conflicts_are_passes_beyond_the_least() {
        let conflicts = |stride: u64| {
            let mut banks = Banks::default();
            (0..32).for_each(|lane| banks.add(lane * stride, 4));
            banks.conflicts()
        };
        assert_eq!([0, 4, 8, 128, 132].map(conflicts), [0, 0, 1, 31, 0]);
        let mut wide = Banks::default();
        (0..32).for_each(|lane| wide.add(lane * 16, 16));
        assert_eq!(wide.conflicts(), 0);
    }

    #[test]
    fn sectors_count_each_piece_once() {
        let count = |stride: u64, bytes: u32| {
            let mut sectors = Sectors::default();
            (0..32).for_each(|lane| sectors.add(4096 + lane * stride, bytes));
            sectors.count()
        };
        assert_eq!((count(4, 4), count(2, 2), count(16, 16), count(32, 4)), (4, 2, 16, 32));
    }
}
