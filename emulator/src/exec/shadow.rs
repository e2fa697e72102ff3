//! Races between blocks of one launch on global memory.
//!
//! Nothing orders two blocks of a launch here, so two accesses of one byte by different blocks, one
//! of them a plain write (or one plain and one atomic), are a race whatever the schedule was. One
//! word of record per four bytes suffices as long as one block writes a word and its readers read the
//! same bytes of it; the rare rest goes to a table by byte.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};

use crate::memory::lock;

const ID_BITS: u32 = 28;
const ID: u64 = (1 << ID_BITS) - 1;
/// A writer field with this value: the word is recorded by byte.
const SPLIT: u64 = ID;
/// A reader field with this value: several blocks.
const SEVERAL: u64 = ID - 1;

/// The other side of a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// Linear index of the other block, if it was one.
    pub(crate) block: Option<u64>,
    /// What the other block did.
    pub(crate) what: &'static str,
}

/// How a block touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    /// A read that may meet atomics.
    AtomicRead,
    Write,
    Atomic,
}

#[derive(Debug, Clone, Copy, Default)]
struct ByteRecord {
    writer: u64,
    reader: u64,
}

type Cells = OnceLock<Box<[AtomicU64]>>;

/// The records of one launch.
#[derive(Debug)]
pub(crate) struct Shadow {
    plain: Vec<Cells>,
    atomic: Vec<Cells>,
    split: Mutex<HashMap<(usize, usize), [ByteRecord; 4]>>,
}

fn cells(cell: &Cells, words: usize) -> &[AtomicU64] {
    cell.get_or_init(|| bytemuck::allocation::zeroed_slice_box(words))
}

fn conflict_of(id: u64, what: &'static str) -> Conflict {
    Conflict { block: (id != SEVERAL).then(|| id - 1), what }
}

impl Shadow {
    pub(crate) fn new(allocations: usize) -> Self {
        let empty = || (0..allocations).map(|_| OnceLock::new()).collect();
        Self { plain: empty(), atomic: empty(), split: Mutex::new(HashMap::new()) }
    }

    /// Records an access to `bytes` at `offset` of an allocation of `size` bytes.
    pub(crate) fn touch(
        &self,
        allocation: usize,
        size: u64,
        offset: u64,
        bytes: u32,
        block: u64,
        touch: Touch,
    ) -> Result<(), Conflict> {
        let me = block.min(SEVERAL - 2) + 1;
        let words = size.div_ceil(4) as usize;
        let end = offset + u64::from(bytes);
        for word in (offset / 4) as usize..end.div_ceil(4) as usize {
            let start = word as u64 * 4;
            let from = offset.saturating_sub(start).min(4) as u32;
            let to = (end - start).min(4) as u32;
            let mask = u64::from((1u32 << to) - (1u32 << from));
            if touch == Touch::Atomic {
                self.note_atomic(allocation, words, word, mask, me);
            }
            self.note_plain(allocation, words, word, mask, me, touch)?;
            if matches!(touch, Touch::Read | Touch::Write) {
                self.check_atomic(allocation, word, mask, me)?;
            }
        }
        Ok(())
    }

    fn note_atomic(&self, allocation: usize, words: usize, word: usize, mask: u64, me: u64) {
        let cell = &cells(&self.atomic[allocation], words)[word];
        let mut old = cell.load(SeqCst);
        loop {
            let id = old & ID;
            let new_id = if id == 0 || id == me { me } else { SEVERAL };
            let new = new_id | (old >> 56 | mask) << 56;
            if new == old {
                return;
            }
            match cell.compare_exchange_weak(old, new, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    fn check_atomic(
        &self,
        allocation: usize,
        word: usize,
        mask: u64,
        me: u64,
    ) -> Result<(), Conflict> {
        let Some(cells) = self.atomic[allocation].get() else { return Ok(()) };
        let old = cells[word].load(SeqCst);
        let id = old & ID;
        if id != 0 && id != me && old >> 56 & mask != 0 {
            return Err(conflict_of(id, "updated it atomically"));
        }
        Ok(())
    }

    fn note_plain(
        &self,
        allocation: usize,
        words: usize,
        word: usize,
        mask: u64,
        me: u64,
        touch: Touch,
    ) -> Result<(), Conflict> {
        let cell = &cells(&self.plain[allocation], words)[word];
        let mut old = cell.load(SeqCst);
        loop {
            let (writer, reader) = (old & ID, old >> ID_BITS & ID);
            let (written, read) = (old >> 56 & 0xf, old >> 60);
            if writer == SPLIT {
                return self.note_split(allocation, word, mask, me, touch);
            }
            if writer != 0 && writer != me && written & mask != 0 {
                return Err(conflict_of(writer, "wrote it"));
            }
            let writes = matches!(touch, Touch::Write | Touch::Atomic);
            if writes && reader != 0 && reader != me && read & mask != 0 {
                return Err(conflict_of(reader, "read it"));
            }
            let new = match touch {
                Touch::Atomic => return Ok(()),
                Touch::Write if writer == 0 || writer == me => {
                    Some(old & !(ID | 0xf << 56) | me | (written | mask) << 56)
                }
                Touch::Write => None,
                _ => {
                    let next = match reader {
                        0 => Some((me, mask)),
                        id if id == me => Some((me, read | mask)),
                        SEVERAL if read & mask == mask => Some((SEVERAL, read)),
                        id if id != SEVERAL && read == mask => Some((SEVERAL, read)),
                        _ => None,
                    };
                    next.map(|(id, mask)| {
                        old & !(ID << ID_BITS | 0xf << 60) | id << ID_BITS | mask << 60
                    })
                }
            };
            let Some(new) = new else {
                self.split(allocation, word, cell);
                old = cell.load(SeqCst);
                continue;
            };
            if new == old {
                return Ok(());
            }
            match cell.compare_exchange_weak(old, new, SeqCst, SeqCst) {
                Ok(_) => return Ok(()),
                Err(seen) => old = seen,
            }
        }
    }

    /// Moves a word's record to the table by byte.
    fn split(&self, allocation: usize, word: usize, cell: &AtomicU64) {
        let mut table = lock(&self.split);
        let mut old = cell.load(SeqCst);
        while old & ID != SPLIT {
            let (writer, reader) = (old & ID, old >> ID_BITS & ID);
            let record = [0u64, 1, 2, 3].map(|byte| ByteRecord {
                writer: if old >> (56 + byte) & 1 == 1 { writer } else { 0 },
                reader: if old >> (60 + byte) & 1 == 1 { reader } else { 0 },
            });
            table.insert((allocation, word), record);
            match cell.compare_exchange(old, SPLIT, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    fn note_split(
        &self,
        allocation: usize,
        word: usize,
        mask: u64,
        me: u64,
        touch: Touch,
    ) -> Result<(), Conflict> {
        let mut table = lock(&self.split);
        let records = table.entry((allocation, word)).or_default();
        for (byte, record) in records.iter_mut().enumerate() {
            if mask >> byte & 1 == 0 {
                continue;
            }
            if record.writer != 0 && record.writer != me {
                return Err(conflict_of(record.writer, "wrote it"));
            }
            match touch {
                Touch::Read | Touch::AtomicRead => {
                    let first = record.reader == 0 || record.reader == me;
                    record.reader = if first { me } else { SEVERAL };
                }
                Touch::Write | Touch::Atomic => {
                    if record.reader != 0 && record.reader != me {
                        return Err(conflict_of(record.reader, "read it"));
                    }
                    if touch == Touch::Write {
                        record.writer = me;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Address ranges (start, end), ascending and apart.
type Ranges = Vec<(u64, u64)>;

fn extend(ranges: &mut Ranges, start: u64, end: u64) {
    match ranges.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => ranges.push((start, end)),
    }
}

/// Adds the bytes of one word that `mask` names.
fn extend_masked(ranges: &mut Ranges, address: u64, mask: u64, end: u64) {
    if mask == 0xf && address + 4 <= end {
        extend(ranges, address, address + 4);
        return;
    }
    for byte in 0..4 {
        if mask >> byte & 1 == 1 {
            extend(ranges, address + byte, address + byte + 1);
        }
    }
}

impl Shadow {
    /// What was read and what was written, given base and size of each allocation. Atomic updates
    /// are both.
    pub(crate) fn ranges(&self, allocations: impl Iterator<Item = (u64, u64)>) -> (Ranges, Ranges) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let split = lock(&self.split);
        for (index, (base, size)) in allocations.enumerate() {
            let (plain, atomic) = (self.plain[index].get(), self.atomic[index].get());
            if plain.is_none() && atomic.is_none() {
                continue;
            }
            for word in 0..size.div_ceil(4) as usize {
                let record = plain.map_or(0, |cells| cells[word].load(SeqCst));
                let both = atomic.map_or(0, |cells| cells[word].load(SeqCst) >> 56);
                if record == 0 && both == 0 {
                    continue;
                }
                let (mut written, mut read) = (record >> 56 & 0xf, record >> 60);
                if record & ID == SPLIT
                    && let Some(bytes) = split.get(&(index, word))
                {
                    (written, read) = (0, 0);
                    for (byte, record) in bytes.iter().enumerate() {
                        written |= u64::from(record.writer != 0) << byte;
                        read |= u64::from(record.reader != 0) << byte;
                    }
                }
                let at = base + 4 * word as u64;
                extend_masked(&mut reads, at, read | both, base + size);
                extend_masked(&mut writes, at, written | both, base + size);
            }
        }
        (reads, writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(shadow: &Shadow, at: u64, bytes: u32, block: u64, touch: Touch) -> bool {
        shadow.touch(0, 64, at, bytes, block, touch).is_ok()
    }

    #[test]
    fn neighbours_in_a_word_do_not_race() {
        let shadow = Shadow::new(1);
        assert!(touch(&shadow, 0, 2, 0, Touch::Write));
        assert!(touch(&shadow, 2, 2, 1, Touch::Write));
        assert!(touch(&shadow, 2, 2, 1, Touch::Read));
        assert!(touch(&shadow, 0, 2, 0, Touch::Write));
        assert!(!touch(&shadow, 1, 1, 1, Touch::Read));
        assert!(!touch(&shadow, 0, 4, 2, Touch::Write));
    }

    #[test]
    fn ranges_are_exact_to_the_byte() {
        let shadow = Shadow::new(1);
        assert!(touch(&shadow, 0, 8, 0, Touch::Write) && touch(&shadow, 8, 4, 1, Touch::Write));
        assert!(touch(&shadow, 14, 2, 1, Touch::Write) && touch(&shadow, 12, 2, 0, Touch::Write));
        assert!(touch(&shadow, 20, 2, 0, Touch::Read) && touch(&shadow, 21, 3, 1, Touch::Read));
        assert!(touch(&shadow, 32, 4, 0, Touch::Atomic));
        let (reads, writes) = shadow.ranges([(1000, 64)].into_iter());
        assert_eq!(reads, [(1020, 1024), (1032, 1036)]);
        assert_eq!(writes, [(1000, 1016), (1032, 1036)]);
    }

    #[test]
    fn many_readers_are_fine_until_someone_writes() {
        let shadow = Shadow::new(1);
        assert!(touch(&shadow, 4, 4, 0, Touch::Read));
        assert!(touch(&shadow, 4, 4, 0, Touch::Write));
        assert!(touch(&shadow, 8, 4, 0, Touch::Read) && touch(&shadow, 8, 4, 1, Touch::Read));
        assert!(!touch(&shadow, 8, 4, 0, Touch::Write));
        assert!(touch(&shadow, 12, 2, 0, Touch::Read) && touch(&shadow, 12, 4, 1, Touch::Read));
        assert!(touch(&shadow, 14, 2, 1, Touch::Write));
        assert!(!touch(&shadow, 12, 1, 1, Touch::Write));
    }

    #[test]
    fn atomics_meet_atomics_only() {
        let shadow = Shadow::new(1);
        assert!(touch(&shadow, 0, 4, 0, Touch::Atomic) && touch(&shadow, 0, 4, 1, Touch::Atomic));
        assert!(!touch(&shadow, 0, 4, 2, Touch::Read));
        assert!(touch(&shadow, 0, 4, 2, Touch::AtomicRead));
        assert!(touch(&shadow, 8, 4, 0, Touch::Write));
        assert!(!touch(&shadow, 8, 4, 1, Touch::Atomic));
    }
}
