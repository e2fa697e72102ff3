//! Races between threads of one block, by happens-before: for each byte, the accesses that nothing
//! later is known to follow.
//!
//! Memory is cut into groups of 128 bytes. As long as a group is accessed by rows (one warp
//! instruction, neighbouring lanes at neighbouring addresses), a few records of whole rows hold its
//! history; the first access that they cannot hold or decide spreads them to records by word and
//! byte, which are exact.

use super::clocks::Clocks;
use super::record::{Accessor, Cell, GROUP, Record, RowRecord, words};
use super::row::Row;

/// Words of a group.
const WORDS: usize = 32;
/// Row records a group holds of either kind.
const MOST_ROWS: usize = 8;
/// Groups of global memory remembered per block; later ones are not tracked.
const MOST_GROUPS: usize = 1 << 16;
/// Concurrent readers of a word of global memory that are remembered. A race with a later one alone
/// is missed, but nothing is reported that is not one.
const MOST_READERS: usize = 16;

type Cells = Box<[Cell; WORDS]>;

#[derive(Debug, Default)]
struct Group {
    number: u64,
    /// The block the records belong to; those of any other are void.
    generation: u64,
    writes: Vec<RowRecord>,
    reads: Vec<RowRecord>,
    /// Records by word; then there are none by row.
    cells: Option<Cells>,
}

/// Whether a row was recorded among rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    Yes,
    /// There is no race, and no more room.
    Full,
    /// There may be a race.
    No,
}

/// Room for new row records, kept from spread groups.
type Pool = Vec<Cells>;

impl Group {
    fn clear(&mut self, pool: &mut Pool) {
        self.writes.clear();
        self.reads.clear();
        if let Some(mut cells) = self.cells.take() {
            for cell in cells.iter_mut() {
                cell.writes.clear();
                cell.reads.clear();
            }
            pool.push(cells);
        }
    }

    /// Records a row among rows, if rows suffice.
    fn note_row(&mut self, clocks: &Clocks, now: RowRecord, write: bool) -> Noted {
        if !self.writes.iter().all(|old| old.harmless(clocks, &now))
            || write && !self.reads.iter().all(|old| old.harmless(clocks, &now))
        {
            return Noted::No;
        }
        let list = if write { &mut self.writes } else { &mut self.reads };
        let twin = list.iter_mut().find(|old| {
            old.same_threads(&now)
                && (old.clock, old.pc) == (now.clock, now.pc)
                && old.from <= now.to
                && now.from <= old.to
        });
        if let Some(old) = twin {
            (old.from, old.to) = (old.from.min(now.from), old.to.max(now.to));
            old.lanes |= now.lanes;
        } else {
            list.retain(|old| !(now.covers(old) && old.before(clocks, &now)));
            if list.len() >= MOST_ROWS {
                return Noted::Full;
            }
            list.push(now);
        }
        if write {
            // A later access that comes after this one comes after those too.
            self.reads.retain(|old| !now.covers(old));
        }
        Noted::Yes
    }

    /// The records by word, made from those by row if need be.
    fn cells(&mut self, number: u64, pool: &mut Pool) -> &mut Cells {
        let Self { writes, reads, cells, .. } = self;
        cells.get_or_insert_with(|| {
            let mut cells =
                pool.pop().unwrap_or_else(|| Box::new(std::array::from_fn(|_| Cell::default())));
            for row in writes.drain(..) {
                row.by_word(number, true, |word, record| cells[word].writes.push(record));
            }
            for row in reads.drain(..) {
                row.by_word(number, false, |word, record| cells[word].reads.push(record));
            }
            cells
        })
    }
}

/// The accesses of a block to one kind of memory.
#[derive(Debug)]
pub(crate) struct History {
    groups: Vec<Group>,
    /// Groups are found by hashing; else the number is the index.
    hashed: bool,
    generation: u64,
    used: usize,
    pool: Pool,
    most_readers: usize,
    /// Of all blocks of a launch: readers beyond a group's rows are forgotten.
    of_launch: bool,
}

impl History {
    /// Of shared memory: addresses below `bytes`.
    pub(crate) fn of_shared(bytes: usize) -> Self {
        Self::new(bytes.div_ceil(GROUP as usize), false, usize::MAX)
    }

    /// Of global memory, by one block.
    pub(crate) fn of_global() -> Self {
        Self::new(64, true, MOST_READERS)
    }

    /// Of global memory, by all blocks of a launch.
    pub(crate) fn of_launch() -> Self {
        Self { of_launch: true, ..Self::of_global() }
    }

    /// Groups that are remembered.
    fn most_groups(&self) -> usize {
        if self.of_launch { 16 * MOST_GROUPS } else { MOST_GROUPS }
    }

    fn new(groups: usize, hashed: bool, most_readers: usize) -> Self {
        let groups = (0..groups).map(|_| Group::default()).collect();
        Self {
            groups,
            hashed,
            generation: 1,
            used: 0,
            pool: Vec::new(),
            most_readers,
            of_launch: false,
        }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        self.generation += 1;
        self.used = 0;
    }

    /// Where a group's records are; `None` for one that is not tracked.
    fn slot(&mut self, number: u64) -> Option<usize> {
        if !self.hashed {
            let at = number as usize;
            self.groups.get(at)?;
            if self.groups[at].generation != self.generation {
                self.claim(at, number);
            }
            return Some(at);
        }
        if self.used * 2 >= self.groups.len() && self.groups.len() < 2 * self.most_groups() {
            self.grow();
        }
        let mask = self.groups.len() - 1;
        let mut at = hash(number) & mask;
        loop {
            let group = &self.groups[at];
            if group.generation != self.generation {
                if self.used >= self.most_groups() {
                    return None;
                }
                self.used += 1;
                self.claim(at, number);
                return Some(at);
            }
            if group.number == number {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    fn claim(&mut self, at: usize, number: u64) {
        let group = &mut self.groups[at];
        group.clear(&mut self.pool);
        (group.number, group.generation) = (number, self.generation);
    }

    fn grow(&mut self) {
        let count = self.groups.len() * 2;
        let empty = (0..count).map(|_| Group::default()).collect();
        let old = std::mem::replace(&mut self.groups, empty);
        for mut group in old {
            if group.generation != self.generation {
                group.clear(&mut self.pool);
                continue;
            }
            let mut at = hash(group.number) & (count - 1);
            while self.groups[at].generation == self.generation {
                at = (at + 1) & (count - 1);
            }
            self.groups[at] = group;
        }
    }

    /// Records a plain access of a row. `false` if there is a race, or may be one: then the lanes
    /// are to be noted one by one.
    pub(crate) fn note_row(
        &mut self,
        clocks: &Clocks,
        warp: usize,
        pc: u32,
        row: &Row,
        write: bool,
    ) -> bool {
        // Several lanes that write the same bytes race with each other.
        let Some(clock) = clocks.common(warp, row.lanes).filter(|_| !(write && row.uniform)) else {
            return false;
        };
        let (mut at, end) = (row.start, row.start + row.len());
        while at < end {
            let number = at / GROUP;
            let next = ((number + 1) * GROUP).min(end);
            let part = RowRecord {
                origin: row.start.wrapping_sub(u64::from(row.first * row.bytes)),
                step: row.bytes,
                lanes: row.lanes,
                clock,
                pc,
                block: clocks.block,
                warp: warp as u16,
                from: (at - number * GROUP) as u8,
                to: (next - number * GROUP) as u8,
                uniform: row.uniform,
            };
            at = next;
            if !self.note_part(clocks, number, part, write) {
                return false;
            }
        }
        true
    }

    fn note_part(
        &mut self,
        clocks: &Clocks,
        number: u64,
        mut part: RowRecord,
        write: bool,
    ) -> bool {
        let Some(at) = self.slot(number) else { return true };
        if !part.uniform {
            // Only the lanes of this part.
            let base = number * GROUP;
            let lane = |byte: u64| (base + byte).wrapping_sub(part.origin) / u64::from(part.step);
            let (low, high) = (lane(part.from.into()), lane(u64::from(part.to) - 1));
            part.lanes &= u32::MAX << (low & 31) & u32::MAX >> (31 - (high & 31));
        }
        let of_launch = self.of_launch;
        let group = &mut self.groups[at];
        if group.cells.is_none() {
            match group.note_row(clocks, part, write) {
                Noted::Yes => return true,
                Noted::Full if of_launch && !write => return true,
                Noted::Full | Noted::No => {}
            }
        }
        let cells = group.cells(number, &mut self.pool);
        let mut fine = true;
        let most_readers = self.most_readers;
        part.by_word(number, write, |word, record| {
            fine = fine && cells[word].note(clocks, record, most_readers).is_ok();
        });
        if fine && write && (part.from, u64::from(part.to)) == (0, GROUP) {
            // Everything before is before this: the group is one row again.
            group.clear(&mut self.pool);
            group.writes.push(part);
        }
        fine
    }

    /// Records an access of one lane; `Err` with the access it races with.
    pub(crate) fn note(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u64,
        bytes: u32,
        write: bool,
    ) -> Result<(), Record> {
        let clock = clocks.now(who.warp, who.lane);
        for (word, bytes) in words(address, bytes) {
            let number = (word / WORDS) as u64;
            let Some(at) = self.slot(number) else { continue };
            let record = Record {
                block: clocks.block,
                warp: who.warp as u16,
                bytes,
                atomic: who.atomic,
                same: write && who.lanes.count_ones() > 1,
                lanes: who.lanes,
                clock,
                pc: who.pc,
                write,
            };
            let cells = self.groups[at].cells(number, &mut self.pool);
            cells[word % WORDS].note(clocks, record, self.most_readers)?;
        }
        Ok(())
    }
}

fn hash(number: u64) -> usize {
    // Fibonacci hashing: arrays that are accessed in step lie at multiples of large powers of two.
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::clocks::Release;
    use crate::exec::record::lanes_of;
    use crate::ptx::ir::Scope;

    fn at(warp: usize, lane: usize) -> Accessor {
        Accessor::new(warp, lane, 0, None)
    }

    /// A row of all lanes.
    fn row(start: u64, bytes: u32) -> Row {
        Row { start, bytes, first: 0, count: 32, lanes: u32::MAX, uniform: false }
    }

    fn barrier(clocks: &mut Clocks, warps: usize) {
        let mut release = Release::default();
        (0..warps).for_each(|warp| clocks.arrive(&mut release, warp, u32::MAX));
        clocks.acquire(release, 0..warps);
    }

    #[test]
    fn races_are_between_unordered_threads_and_by_byte() {
        for mut history in [History::of_shared(64), History::of_global()] {
            let mut clocks = Clocks::new(0, 2);
            history.note(&clocks, at(0, 3), 4, 2, true).unwrap();
            history.note(&clocks, at(1, 3), 6, 2, true).unwrap();
            assert_eq!(history.note(&clocks, at(1, 0), 4, 4, false).unwrap_err().warp, 0);
            barrier(&mut clocks, 2);
            history.note(&clocks, at(1, 0), 4, 4, false).unwrap();
            history.note(&clocks, at(0, 0), 4, 4, false).unwrap();
            assert!(history.note(&clocks, at(0, 0), 4, 4, true).is_err());
        }
    }

    #[test]
    fn halves_of_a_word_belong_to_different_threads() {
        let (mut history, clocks) = (History::of_global(), Clocks::new(0, 1));
        history.note(&clocks, at(0, 0), 8, 2, true).unwrap();
        history.note(&clocks, at(0, 1), 10, 2, true).unwrap();
        history.note(&clocks, at(0, 1), 10, 2, false).unwrap();
        assert!(history.note(&clocks, at(0, 1), 8, 1, false).is_err());
        assert!(history.note(&clocks, at(0, 0), 8, 4, true).is_err());
    }

    #[test]
    fn a_warp_sync_orders_its_lanes_and_no_others() {
        let (mut shared, mut clocks) = (History::of_shared(64), Clocks::new(0, 1));
        shared.note(&clocks, at(0, 0), 0, 4, true).unwrap();
        assert!(shared.note(&clocks, at(0, 1), 0, 4, false).is_err());
        clocks.sync_lanes(0, 0b11);
        shared.note(&clocks, at(0, 1), 0, 4, false).unwrap();
        assert!(shared.note(&clocks, at(0, 2), 0, 4, false).is_err());
        clocks.sync_lanes(0, 0b110);
        shared.note(&clocks, at(0, 2), 0, 4, false).unwrap();
    }

    #[test]
    fn atomics_race_with_plain_accesses_only() {
        let (mut shared, clocks) = (History::of_shared(64), Clocks::new(0, 2));
        let atomic = |warp| Accessor { atomic: Some(Scope::Block), ..at(warp, 0) };
        shared.note(&clocks, atomic(0), 0, 4, true).unwrap();
        shared.note(&clocks, atomic(1), 0, 4, true).unwrap();
        assert!(shared.note(&clocks, at(0, 1), 0, 4, false).is_err());
    }

    #[test]
    fn tables_grow_without_forgetting_and_start_anew_for_each_block() {
        let (mut history, clocks) = (History::of_global(), Clocks::new(0, 1));
        for word in 0..10_000u64 {
            history.note(&clocks, at(0, 1), 4 * word * 7, 4, true).unwrap();
        }
        for word in 0..10_000u64 {
            assert!(history.note(&clocks, at(0, 2), 4 * word * 7, 4, false).is_err(), "{word}");
        }
        history.reset();
        history.note(&clocks, at(0, 2), 28, 4, false).unwrap();
        assert!(history.note_row(&clocks, 0, 0, &row(0, 4), false));
    }

    #[test]
    fn rows_of_the_same_threads_agree_and_shifted_ones_race() {
        let (mut history, mut clocks) = (History::of_global(), Clocks::new(0, 2));
        assert!(history.note_row(&clocks, 0, 0, &row(4096, 4), false));
        assert!(history.note_row(&clocks, 0, 1, &row(4096, 4), true));
        assert!(history.note_row(&clocks, 0, 2, &row(4096, 4), false));
        // The neighbour's element: lane i meets what lane i + 1 wrote.
        assert!(!history.note_row(&clocks, 0, 3, &row(4100, 4), false));
        assert!(!history.note_row(&clocks, 1, 4, &row(4096, 4), false));
        barrier(&mut clocks, 2);
        assert!(history.note_row(&clocks, 0, 3, &row(4100, 4), false));
        assert!(history.note_row(&clocks, 1, 4, &row(4096, 4), false));
        assert!(!history.note_row(&clocks, 1, 5, &row(4096, 4), true));
    }

    #[test]
    fn rows_and_single_lanes_meet_to_the_byte() {
        let (mut history, mut clocks) = (History::of_shared(1024), Clocks::new(0, 2));
        let halves = Row { first: 8, count: 8, lanes: 0xff00, ..row(0, 2) };
        assert!(history.note_row(&clocks, 0, 0, &halves, true));
        history.note(&clocks, at(1, 0), 16, 2, true).unwrap();
        history.note(&clocks, at(0, 15), 14, 2, false).unwrap();
        let record = history.note(&clocks, at(0, 9), 4, 2, false).unwrap_err();
        assert_eq!((record.lanes, record.write), (1 << 10, true));
        barrier(&mut clocks, 2);
        // Uniform reads by two warps, and a write of one of the words.
        let word = Row { start: 4, bytes: 4, uniform: true, ..row(4, 4) };
        assert!(history.note_row(&clocks, 0, 1, &word, false));
        assert!(history.note_row(&clocks, 1, 1, &word, false));
        assert!(history.note(&clocks, at(1, 3), 4, 4, true).is_err());
        assert!(!history.note_row(&clocks, 1, 2, &word, true));
    }

    #[test]
    fn rows_decide_as_single_lanes_do() {
        // Random rows and barriers: the record by rows must agree with the record by lane.
        let mut state = 7u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let (mut races, mut clean) = (0, 0);
        for _ in 0..3000 {
            let mut clocks = Clocks::new(0, 3);
            let (mut by_row, mut by_lane) = (History::of_shared(2048), History::of_shared(2048));
            for _ in 0..24 {
                if random(3) == 0 {
                    barrier(&mut clocks, 3);
                }
                let (warp, bytes) = (random(3) as usize, 1u32 << random(5));
                let count = 1 + random(32) as u32;
                let first = random(u64::from(33 - count)) as u32;
                let lanes = (u32::MAX >> (32 - count)) << first;
                let start = random(512) / u64::from(bytes) * u64::from(bytes);
                let (write, uniform) = (random(4) == 0, count > 1 && random(3) == 0);
                let access = Row { start, bytes, first, count, lanes, uniform };
                let mut found = false;
                for lane in lanes_of(lanes) {
                    let step = if uniform { 0 } else { lane as u64 - u64::from(first) };
                    let address = start + step * u64::from(bytes);
                    found |= by_lane.note(&clocks, at(warp, lane), address, bytes, write).is_err();
                    if found {
                        break;
                    }
                }
                assert_eq!(by_row.note_row(&clocks, warp, 0, &access, write), !found);
                if found {
                    races += 1;
                    break;
                }
                clean += 1;
            }
        }
        assert!(races > 500 && clean > 5000, "{races} {clean}");
    }
}
