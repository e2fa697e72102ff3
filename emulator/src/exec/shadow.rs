//! Races between blocks of one launch on global memory.
//!
//! Nothing orders two blocks of a launch here, so two accesses of one byte by different blocks, one
//! of them a plain write (or one plain and one atomic), are a race whatever the schedule was.
//!
//! The record has three grains. A group of 128 bytes that blocks only touch in full, as most kernels
//! do, is one word of record. Otherwise the group is split: one word of record per four bytes, which
//! suffices as long as one block writes a word and its readers read the same bytes of it; the rare
//! rest goes to a table by byte.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};

use crate::memory::lock;

const ID_BITS: u32 = 28;
const ID: u64 = (1 << ID_BITS) - 1;
/// A writer field with this value: the word is recorded by byte.
const SPLIT: u64 = ID;
/// A reader field with this value: several blocks.
const SEVERAL: u64 = ID - 1;
/// Bytes of a group.
const GROUP: u64 = 128;
/// Set in a group's record: its words have records of their own.
const BY_WORD: u64 = 1 << 63;
/// Records allocated together.
const CHUNK: usize = 512;
/// Chunks whose places are allocated together.
const CHUNKS: usize = 256;

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

/// Bytes of an allocation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Number of the allocation.
    pub(crate) allocation: usize,
    /// The allocation's size.
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct ByteRecord {
    writer: u64,
    reader: u64,
}

type Chunk = OnceLock<Box<[AtomicU64]>>;
type Directory = OnceLock<Box<[Chunk]>>;

/// An array of records, zero until written, allocated where it is used: launches are many, and most
/// touch little of the memory there is.
#[derive(Debug, Default)]
struct Sparse(OnceLock<Box<[Directory]>>);

fn empty<T>(count: usize) -> Box<[OnceLock<T>]> {
    (0..count).map(|_| OnceLock::new()).collect()
}

impl Sparse {
    /// Record `index` of `count`.
    fn cell(&self, count: usize, index: usize) -> &AtomicU64 {
        let directories = self.0.get_or_init(|| empty(count.div_ceil(CHUNK * CHUNKS)));
        let directory = directories[index / CHUNK / CHUNKS].get_or_init(|| empty(CHUNKS));
        let chunk = &directory[index / CHUNK % CHUNKS];
        &chunk.get_or_init(|| bytemuck::allocation::zeroed_slice_box(CHUNK))[index % CHUNK]
    }

    /// Record `index` if it can have been written.
    fn get(&self, index: usize) -> Option<&AtomicU64> {
        let chunk = &self.0.get()?[index / CHUNK / CHUNKS].get()?[index / CHUNK % CHUNKS];
        chunk.get().map(|cells| &cells[index % CHUNK])
    }
}

/// The records of one allocation.
#[derive(Debug)]
struct Records {
    groups: Sparse,
    plain: Sparse,
    atomic: Sparse,
    /// First and last group that was touched.
    first: AtomicU64,
    last: AtomicU64,
}

/// The records of one launch.
#[derive(Debug)]
pub(crate) struct Shadow {
    allocations: Vec<Records>,
    split: Mutex<HashMap<(usize, usize), [ByteRecord; 4]>>,
    splitting: Mutex<()>,
}

fn conflict_of(id: u64, what: &'static str) -> Conflict {
    Conflict { block: (id != SEVERAL).then(|| id - 1), what }
}

fn id_of(block: u64) -> u64 {
    block.min(SEVERAL - 2) + 1
}

impl Shadow {
    pub(crate) fn new(allocations: usize) -> Self {
        let fresh = |_| Records {
            groups: Sparse::default(),
            plain: Sparse::default(),
            atomic: Sparse::default(),
            first: AtomicU64::new(u64::MAX),
            last: AtomicU64::new(0),
        };
        Self {
            allocations: (0..allocations).map(fresh).collect(),
            split: Mutex::new(HashMap::new()),
            splitting: Mutex::new(()),
        }
    }

    fn group(&self, place: Place, index: u64) -> &AtomicU64 {
        let groups = &self.allocations[place.allocation].groups;
        groups.cell(place.size.div_ceil(GROUP) as usize, index as usize)
    }

    /// Widens the range of groups that were touched.
    fn extent(&self, place: Place) {
        let records = &self.allocations[place.allocation];
        let (first, last) = (place.offset / GROUP, (place.offset + place.bytes - 1) / GROUP);
        if first < records.first.load(Relaxed) {
            records.first.fetch_min(first, Relaxed);
        }
        if last > records.last.load(Relaxed) {
            records.last.fetch_max(last, Relaxed);
        }
    }

    /// Records a plain access of any size, group by group where it covers them; a conflict is then
    /// to be looked for by [`Shadow::touch`], access by access.
    pub(crate) fn touch_row(&self, place: Place, block: u64, touch: Touch) -> bool {
        self.extent(place);
        let (mut at, end) = (place.offset, place.offset + place.bytes);
        while at < end {
            let next = ((at / GROUP + 1) * GROUP).min(end);
            let group = self.group(place, at / GROUP);
            let whole = next - at == GROUP;
            let noted = if whole { note_group(group, id_of(block), touch) } else { None };
            let fine = noted.unwrap_or_else(|| {
                let part = Place { offset: at, bytes: next - at, ..place };
                self.by_word(part, block, touch).is_ok()
            });
            if !fine {
                return false;
            }
            at = next;
        }
        true
    }

    /// Records an access.
    pub(crate) fn touch(&self, place: Place, block: u64, touch: Touch) -> Result<(), Conflict> {
        self.extent(place);
        self.by_word(place, block, touch)
    }

    fn by_word(&self, place: Place, block: u64, touch: Touch) -> Result<(), Conflict> {
        let Place { allocation, size, offset, bytes } = place;
        let me = id_of(block);
        let end = offset + bytes;
        for word in (offset / 4) as usize..end.div_ceil(4) as usize {
            let index = word as u64 / (GROUP / 4);
            let group = self.group(place, index);
            if group.load(SeqCst) != BY_WORD {
                self.split_group(place, index as usize, group);
            }
            let start = word as u64 * 4;
            let from = offset.saturating_sub(start).min(4) as u32;
            let to = (end - start).min(4) as u32;
            let mask = u64::from((1u32 << to) - (1u32 << from));
            if touch == Touch::Atomic {
                self.note_atomic(allocation, size, word, mask, me);
            }
            self.note_plain(allocation, size, word, mask, me, touch)?;
            if matches!(touch, Touch::Read | Touch::Write) {
                self.check_atomic(allocation, word, mask, me)?;
            }
        }
        Ok(())
    }

    /// Gives every word of a group its own record.
    fn split_group(&self, place: Place, index: usize, group: &AtomicU64) {
        let _alone = lock(&self.splitting);
        let mut old = group.load(SeqCst);
        while old != BY_WORD {
            let (writer, reader) = (old & ID, old >> ID_BITS & ID);
            let bytes = |id: u64| if id == 0 { 0 } else { 0xf };
            let record = old | bytes(writer) << 56 | bytes(reader) << 60;
            let words = (GROUP / 4) as usize;
            let last = place.size.div_ceil(4) as usize;
            for word in index * words..((index + 1) * words).min(last) {
                self.allocations[place.allocation].plain.cell(last, word).store(record, SeqCst);
            }
            match group.compare_exchange(old, BY_WORD, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    fn note_atomic(&self, allocation: usize, size: u64, word: usize, mask: u64, me: u64) {
        let cell = self.allocations[allocation].atomic.cell(size.div_ceil(4) as usize, word);
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
        let Some(cell) = self.allocations[allocation].atomic.get(word) else { return Ok(()) };
        let old = cell.load(SeqCst);
        let id = old & ID;
        if id != 0 && id != me && old >> 56 & mask != 0 {
            return Err(conflict_of(id, "updated it atomically"));
        }
        Ok(())
    }

    fn note_plain(
        &self,
        allocation: usize,
        size: u64,
        word: usize,
        mask: u64,
        me: u64,
        touch: Touch,
    ) -> Result<(), Conflict> {
        let cell = self.allocations[allocation].plain.cell(size.div_ceil(4) as usize, word);
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

/// Records an access to a whole group by `me`: whether it was without conflict, or `None` where the
/// group is recorded by word.
fn note_group(group: &AtomicU64, me: u64, touch: Touch) -> Option<bool> {
    let mut old = group.load(SeqCst);
    loop {
        if old & BY_WORD != 0 {
            return None;
        }
        let (writer, reader) = (old & ID, old >> ID_BITS & ID);
        if writer != 0 && writer != me {
            return Some(false);
        }
        let new = if touch == Touch::Write {
            if reader != 0 && reader != me {
                return Some(false);
            }
            old & !ID | me
        } else {
            let reader = if reader == 0 || reader == me { me } else { SEVERAL };
            old & !(ID << ID_BITS) | reader << ID_BITS
        };
        if new == old {
            return Some(true);
        }
        match group.compare_exchange_weak(old, new, SeqCst, SeqCst) {
            Ok(_) => return Some(true),
            Err(seen) => old = seen,
        }
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
            let records = &self.allocations[index];
            if records.groups.0.get().is_none() {
                continue;
            }
            let (first, last) = (records.first.load(SeqCst), records.last.load(SeqCst));
            for group in first..=last {
                let record = records.groups.get(group as usize);
                let record = record.map_or(0, |record| record.load(SeqCst));
                let at = base + group * GROUP;
                if record != BY_WORD {
                    if record >> ID_BITS & ID != 0 {
                        extend(&mut reads, at, at + GROUP);
                    }
                    if record & ID != 0 {
                        extend(&mut writes, at, at + GROUP);
                    }
                    continue;
                }
                let words = group * (GROUP / 4)..((group + 1) * (GROUP / 4)).min(size.div_ceil(4));
                for word in words {
                    let word = word as usize;
                    let load = |words: &Sparse| words.get(word).map_or(0, |cell| cell.load(SeqCst));
                    let (record, both) = (load(&records.plain), load(&records.atomic) >> 56);
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
        }
        (reads, writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(shadow: &Shadow, at: u64, bytes: u32, block: u64, touch: Touch) -> bool {
        let place = Place { allocation: 0, size: 64, offset: at, bytes: u64::from(bytes) };
        shadow.touch(place, block, touch).is_ok()
    }

    /// As `touch`, in an allocation of 640 bytes, by groups where possible.
    fn row(shadow: &Shadow, offset: u64, bytes: u64, block: u64, touch: Touch) -> bool {
        shadow.touch_row(Place { allocation: 0, size: 640, offset, bytes }, block, touch)
    }

    #[test]
    fn groups_and_words_see_each_other() {
        let shadow = Shadow::new(1);
        assert!(row(&shadow, 0, 256, 0, Touch::Write));
        assert!(row(&shadow, 256, 128, 0, Touch::Read) && row(&shadow, 256, 128, 1, Touch::Read));
        assert!(row(&shadow, 384, 100, 1, Touch::Write) && row(&shadow, 0, 256, 0, Touch::Read));
        let (reads, writes) = shadow.ranges([(0, 640)].into_iter());
        assert_eq!((reads, writes), (vec![(0, 384)], vec![(0, 256), (384, 484)]));
        // Against a whole group: in full, in part, and by a single word.
        assert!(!row(&shadow, 128, 128, 1, Touch::Read) && !row(&shadow, 100, 28, 1, Touch::Read));
        assert!(!row(&shadow, 256, 128, 1, Touch::Write) && !row(&shadow, 380, 4, 0, Touch::Write));
        // Against a part of a group.
        assert!(!row(&shadow, 384, 128, 0, Touch::Read) && row(&shadow, 484, 156, 0, Touch::Write));
        assert!(row(&shadow, 0, 128, 0, Touch::Write));
        let place = Place { allocation: 0, size: 640, offset: 4, bytes: 4 };
        let conflict = shadow.touch(place, 3, Touch::Read).unwrap_err();
        assert_eq!(conflict, Conflict { block: Some(0), what: "wrote it" });
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
    fn records_far_apart_are_kept_apart() {
        let (shadow, size) = (Shadow::new(1), 300 << 20);
        let at = |offset, bytes| Place { allocation: 0, size, offset, bytes };
        // Other chunks and other directories of groups, words and atomics.
        let places: Vec<u64> = vec![0, 64 << 10, 1 << 20, 20 << 20, size - 4096];
        for (block, start) in places.iter().enumerate() {
            let block = block as u64;
            assert!(shadow.touch_row(at(*start, 256), block, Touch::Write));
            assert!(shadow.touch(at(start + 256, 2), block, Touch::Read).is_ok());
            assert!(shadow.touch(at(start + 512, 4), block, Touch::Atomic).is_ok());
        }
        for start in &places {
            assert!(!shadow.touch_row(at(*start, 256), 99, Touch::Read));
            assert!(shadow.touch(at(start + 256, 1), 99, Touch::Write).is_err());
            assert!(shadow.touch(at(start + 512, 1), 99, Touch::Read).is_err());
        }
        let (reads, writes) = shadow.ranges([(0, size)].into_iter());
        let expected = |parts: [(u64, u64); 2]| -> Vec<(u64, u64)> {
            places.iter().flat_map(|s| parts.map(|(a, b)| (s + a, s + b))).collect()
        };
        assert_eq!(writes, expected([(0, 256), (512, 516)]));
        // A read that raced with an atomic was recorded before it was refused.
        assert_eq!(reads, expected([(256, 258), (512, 516)]));
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
