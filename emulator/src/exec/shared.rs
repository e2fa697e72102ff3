//! Shared memory of a block: bytes, which of them were written, and who touched them last.

use super::clocks::Clocks;
use crate::ptx::ir::SharedArray;

/// A shared array with its size in this launch.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    pub(crate) name: String,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// Accesses of one instruction by lanes of one warp with equal clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) warp: u16,
    pub(crate) bytes: u8,
    pub(crate) atomic: bool,
    pub(crate) lanes: u32,
    clock: u32,
    pub(crate) pc: u32,
    pub(crate) write: bool,
}

impl Record {
    pub(crate) const NONE: Self =
        Self { warp: 0, bytes: 0, atomic: false, lanes: 0, clock: 0, pc: 0, write: false };

    pub(crate) fn new(who: Accessor, clocks: &Clocks, bytes: u8, write: bool) -> Self {
        Self {
            warp: who.warp as u16,
            bytes,
            atomic: who.atomic,
            lanes: 1 << who.lane,
            clock: clocks.now(who.warp, who.lane),
            pc: who.pc,
            write,
        }
    }

    /// Whether both are accesses of one warp instruction to the same bytes.
    pub(crate) fn same_instruction(&self, other: &Self) -> bool {
        self.warp == other.warp
            && self.clock == other.clock
            && self.bytes == other.bytes
            && self.pc == other.pc
            && self.atomic == other.atomic
    }

    /// Whether it is ordered before what `who` does now.
    pub(crate) fn before(&self, clocks: &Clocks, who: Accessor) -> bool {
        clocks.ordered(usize::from(self.warp), self.lanes, self.clock, who.warp, who.lane)
    }
}

#[derive(Debug, Default)]
struct Cell {
    writes: Vec<Record>,
    reads: Vec<Record>,
}

/// Who accesses, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accessor {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
    pub(crate) pc: u32,
    pub(crate) atomic: bool,
}

/// The memory.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    pub(crate) extents: Vec<Extent>,
    words: Vec<u32>,
    /// For each word, the bytes that were written.
    written: Vec<u8>,
    cells: Vec<Cell>,
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
        let cells = (0..end / 4).map(|_| Cell::default()).collect();
        Self { extents, words: vec![0; end / 4], written: vec![0; end / 4], cells }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        for extent in &self.extents {
            // Arrays start at multiples of 16, so no word belongs to two.
            let words = extent.start as usize / 4..(extent.end as usize).div_ceil(4);
            self.written[words.clone()].fill(0);
            for cell in &mut self.cells[words] {
                cell.writes.clear();
                cell.reads.clear();
            }
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

    /// Records a read; `Err` with the write it races with.
    pub(crate) fn note_read(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        offset: u64,
        bytes: u32,
    ) -> Result<(), Record> {
        for (word, mask) in words(offset, bytes) {
            let cell = &mut self.cells[word];
            conflict(&cell.writes, clocks, who, mask)?;
            remember(&mut cell.reads, clocks, who, mask, false);
        }
        Ok(())
    }

    /// Records a write; `Err` with the access it races with.
    pub(crate) fn note_write(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        offset: u64,
        bytes: u32,
    ) -> Result<(), Record> {
        for (word, mask) in words(offset, bytes) {
            let cell = &mut self.cells[word];
            conflict(&cell.writes, clocks, who, mask)?;
            conflict(&cell.reads, clocks, who, mask)?;
            cell.reads.retain_mut(|record| {
                record.bytes &= !mask;
                record.bytes != 0
            });
            if !who.atomic {
                cell.writes.retain_mut(|record| {
                    record.bytes &= !mask;
                    record.bytes != 0
                });
            }
            remember(&mut cell.writes, clocks, who, mask, true);
        }
        Ok(())
    }
}

/// The words of a range and the bytes of each.
pub(crate) fn words(offset: u64, bytes: u32) -> impl Iterator<Item = (usize, u8)> {
    let end = offset + u64::from(bytes);
    (offset / 4..end.div_ceil(4)).map(move |word| {
        let from = offset.saturating_sub(word * 4).min(4) as u32;
        let to = (end - word * 4).min(4) as u32;
        (word as usize, ((1u32 << to) - (1u32 << from)) as u8)
    })
}

/// `Err` with a record that overlaps the bytes and is not ordered before `who`.
pub(crate) fn conflict(
    records: &[Record],
    clocks: &Clocks,
    who: Accessor,
    mask: u8,
) -> Result<(), Record> {
    for record in records {
        if record.bytes & mask == 0 || record.atomic && who.atomic {
            continue;
        }
        if !record.before(clocks, who) {
            return Err(*record);
        }
    }
    Ok(())
}

/// Adds an access. Records that happened before it are implied by it and dropped, so a list holds
/// concurrent accesses only.
fn remember(records: &mut Vec<Record>, clocks: &Clocks, who: Accessor, mask: u8, write: bool) {
    let now = Record::new(who, clocks, mask, write);
    if let Some(record) = records.iter_mut().rev().find(|record| record.same_instruction(&now)) {
        record.lanes |= now.lanes;
        return;
    }
    records.retain(|record| {
        record.bytes & !mask != 0 || record.atomic != now.atomic || !record.before(clocks, who)
    });
    records.push(now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::clocks::Release;

    fn memory() -> SharedMemory {
        let name = "s".to_owned();
        SharedMemory::new(&[SharedArray { name, offset: 0, bytes: 64, dynamic: false }], 0)
    }

    fn at(warp: usize, lane: usize) -> Accessor {
        Accessor { warp, lane, pc: 0, atomic: false }
    }

    #[test]
    fn races_are_between_unordered_threads_and_by_byte() {
        let (mut shared, mut clocks) = (memory(), Clocks::new(2));
        shared.note_write(&clocks, at(0, 3), 4, 2).unwrap();
        shared.note_write(&clocks, at(1, 3), 6, 2).unwrap();
        assert_eq!(shared.note_read(&clocks, at(1, 0), 4, 4).unwrap_err().warp, 0);
        let mut release = Release::default();
        clocks.arrive(&mut release, 0, u32::MAX);
        clocks.arrive(&mut release, 1, u32::MAX);
        clocks.acquire(release, 0..2);
        shared.note_read(&clocks, at(1, 0), 4, 4).unwrap();
        shared.note_read(&clocks, at(0, 0), 4, 4).unwrap();
        assert!(shared.note_write(&clocks, at(0, 0), 4, 4).is_err());
    }

    #[test]
    fn a_warp_sync_orders_its_lanes_and_no_others() {
        let (mut shared, mut clocks) = (memory(), Clocks::new(1));
        shared.note_write(&clocks, at(0, 0), 0, 4).unwrap();
        assert!(shared.note_read(&clocks, at(0, 1), 0, 4).is_err());
        clocks.sync_lanes(0, 0b11);
        shared.note_read(&clocks, at(0, 1), 0, 4).unwrap();
        assert!(shared.note_read(&clocks, at(0, 2), 0, 4).is_err());
        clocks.sync_lanes(0, 0b110);
        shared.note_read(&clocks, at(0, 2), 0, 4).unwrap();
    }

    #[test]
    fn atomics_race_with_plain_accesses_only() {
        let (mut shared, clocks) = (memory(), Clocks::new(2));
        let atomic = |warp| Accessor { atomic: true, ..at(warp, 0) };
        shared.note_write(&clocks, atomic(0), 0, 4).unwrap();
        shared.note_write(&clocks, atomic(1), 0, 4).unwrap();
        assert!(shared.note_read(&clocks, at(0, 1), 0, 4).is_err());
    }
}
