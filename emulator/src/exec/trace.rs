//! Races between threads of one block on global memory, by happens-before.
//!
//! A table of the words the block has touched, with the last writer of each byte and up to two
//! concurrent groups of readers. More readers than that are forgotten: a race with one of them alone
//! is missed, but nothing is reported that is not one.

use super::clocks::Clocks;
use super::shared::{Accessor, Record, conflict, words};

const WRITERS: usize = 4;
const READERS: usize = 2;
/// Words remembered per block; later ones are not tracked.
const MOST_WORDS: usize = 1 << 20;

#[derive(Debug, Clone)]
struct Entry {
    word: u64,
    /// The block the entry belongs to; anything else is an empty slot.
    generation: u64,
    writers: u8,
    readers: u8,
    writes: [Record; WRITERS],
    reads: [Record; READERS],
}

impl Entry {
    const EMPTY: Self = Self {
        word: 0,
        generation: 0,
        writers: 0,
        readers: 0,
        writes: [Record::NONE; WRITERS],
        reads: [Record::NONE; READERS],
    };
}

/// The table.
#[derive(Debug)]
pub(crate) struct Trace {
    entries: Vec<Entry>,
    generation: u64,
    used: usize,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { entries: vec![Entry::EMPTY; 1024], generation: 0, used: 0 }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        self.generation += 1;
        self.used = 0;
    }

    /// Records an access; `Err` with the access it races with.
    pub(crate) fn note(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u64,
        bytes: u32,
        write: bool,
    ) -> Result<(), Record> {
        for (word, mask) in words(address, bytes) {
            let Some(entry) = self.entry(word as u64) else { continue };
            let now = Record::new(who, clocks, mask, write);
            let writes = &entry.writes[..usize::from(entry.writers)];
            conflict(writes, clocks, who, mask)?;
            if !write {
                remember(&mut entry.reads, &mut entry.readers, clocks, who, now);
                continue;
            }
            conflict(&entry.reads[..usize::from(entry.readers)], clocks, who, mask)?;
            forget(&mut entry.reads, &mut entry.readers, mask);
            if !who.atomic {
                forget(&mut entry.writes, &mut entry.writers, mask);
            }
            remember(&mut entry.writes, &mut entry.writers, clocks, who, now);
        }
        Ok(())
    }

    fn entry(&mut self, word: u64) -> Option<&mut Entry> {
        if self.used * 2 > self.entries.len() && self.entries.len() < 2 * MOST_WORDS {
            self.grow();
        }
        let mask = self.entries.len() - 1;
        let mut at = slot(word) & mask;
        loop {
            let entry = &self.entries[at];
            if entry.generation != self.generation {
                if self.used >= MOST_WORDS {
                    return None;
                }
                self.used += 1;
                // The records of a former block stay behind the counts.
                let generation = self.generation;
                let entry = &mut self.entries[at];
                (entry.word, entry.generation) = (word, generation);
                (entry.writers, entry.readers) = (0, 0);
                return Some(entry);
            }
            if entry.word == word {
                return Some(&mut self.entries[at]);
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let count = self.entries.len() * 2;
        let old = std::mem::replace(&mut self.entries, vec![Entry::EMPTY; count]);
        for entry in old.into_iter().filter(|entry| entry.generation == self.generation) {
            let mut at = slot(entry.word) & (count - 1);
            while self.entries[at].generation == self.generation {
                at = (at + 1) & (count - 1);
            }
            self.entries[at] = entry;
        }
    }
}

fn slot(word: u64) -> usize {
    // Sixteen neighbours stay together, for the cache; their group is spread by Fibonacci hashing,
    // because arrays that are accessed in step lie at multiples of large powers of two.
    let group = (word >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (group << 4 | word & 15) as usize
}

/// Takes bytes away from the records, dropping those left without any.
fn forget(records: &mut [Record], count: &mut u8, mask: u8) {
    let mut kept = 0;
    for i in 0..usize::from(*count) {
        let mut record = records[i];
        record.bytes &= !mask;
        if record.bytes != 0 {
            records[kept] = record;
            kept += 1;
        }
    }
    *count = kept as u8;
}

/// Adds a record: to one of the same instruction, or in place of one it comes after, or where there
/// is room.
fn remember(records: &mut [Record], count: &mut u8, clocks: &Clocks, who: Accessor, now: Record) {
    let used = usize::from(*count);
    for record in &mut records[..used] {
        if record.same_instruction(&now) {
            record.lanes |= now.lanes;
            return;
        }
    }
    for record in &mut records[..used] {
        if record.bytes & !now.bytes == 0
            && record.atomic == now.atomic
            && record.before(clocks, who)
        {
            *record = now;
            return;
        }
    }
    if let Some(free) = records.get_mut(used) {
        *free = now;
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lane: usize) -> Accessor {
        Accessor { warp: 0, lane, pc: 0, atomic: false }
    }

    #[test]
    fn tables_grow_without_forgetting_and_start_anew_for_each_block() {
        let (mut trace, clocks) = (Trace::new(), Clocks::new(1));
        trace.reset();
        for word in 0..10_000u64 {
            trace.note(&clocks, at(1), 4 * word * 7, 4, true).unwrap();
        }
        for word in 0..10_000u64 {
            assert!(trace.note(&clocks, at(2), 4 * word * 7, 4, false).is_err(), "{word}");
        }
        trace.reset();
        trace.note(&clocks, at(2), 28, 4, false).unwrap();
    }

    #[test]
    fn halves_of_a_word_belong_to_different_threads() {
        let (mut trace, clocks) = (Trace::new(), Clocks::new(1));
        trace.reset();
        trace.note(&clocks, at(0), 8, 2, true).unwrap();
        trace.note(&clocks, at(1), 10, 2, true).unwrap();
        trace.note(&clocks, at(1), 10, 2, false).unwrap();
        assert!(trace.note(&clocks, at(1), 8, 1, false).is_err());
        assert!(trace.note(&clocks, at(0), 8, 4, true).is_err());
    }
}
