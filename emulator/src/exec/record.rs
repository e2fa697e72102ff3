//! Records of accesses that nothing later is known to follow: by row, and by word and byte.

use super::clocks::Clocks;
use crate::ptx::ir::Scope;

/// Bytes of a group.
pub(super) const GROUP: u64 = 128;

/// Who accesses, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accessor {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
    pub(crate) pc: u32,
    /// The scope of an atomic access.
    pub(crate) atomic: Option<Scope>,
    /// Lanes that store the same value to the same bytes; else the one.
    pub(crate) lanes: u32,
}

impl Accessor {
    /// One lane.
    pub(crate) fn new(warp: usize, lane: usize, pc: u32, atomic: Option<Scope>) -> Self {
        Self { warp, lane, pc, atomic, lanes: 1 << lane }
    }
}

/// Accesses of one instruction by lanes of one warp with equal clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) block: u32,
    pub(crate) warp: u16,
    pub(super) bytes: u8,
    pub(crate) atomic: Option<Scope>,
    /// Whether all lanes stored one value.
    pub(super) same: bool,
    pub(crate) lanes: u32,
    pub(super) clock: u32,
    pub(crate) pc: u32,
    pub(crate) write: bool,
}

impl Record {
    /// Whether both are accesses of one warp instruction to the same bytes.
    pub(super) fn same_instruction(&self, other: &Self) -> bool {
        (self.block, self.warp) == (other.block, other.warp)
            && self.clock == other.clock
            && self.bytes == other.bytes
            && self.pc == other.pc
            && self.atomic == other.atomic
    }

    /// Whether it is ordered before what the lanes of `now` do.
    pub(super) fn before(&self, clocks: &Clocks, now: &Self) -> bool {
        let (warp, other) = (usize::from(now.warp), usize::from(self.warp));
        if self.block == now.block {
            // A lane that takes part in a store of one value reads that value, whoever stored it.
            let own = self.same && !now.write && warp == other && now.lanes & !self.lanes == 0;
            if own || clocks.known(other, self.lanes, self.clock, warp) {
                return true;
            }
        }
        lanes_of(now.lanes)
            .all(|lane| clocks.ordered(self.block, other, self.lanes, self.clock, warp, lane))
    }

    /// Whether both are atomic, and each for the other's thread: then they do not race. (PTX ISA,
    /// memory consistency model, "morally strong".)
    fn strong(&self, other: &Self) -> bool {
        match (self.atomic, other.atomic) {
            (Some(a), Some(b)) => self.block == other.block || a.min(b) == Scope::Device,
            _ => false,
        }
    }
}

/// A row, cut to one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowRecord {
    /// The address lane 0 would access.
    pub(super) origin: u64,
    /// Bytes a lane accesses.
    pub(super) step: u32,
    pub(super) lanes: u32,
    pub(super) clock: u32,
    pub(super) pc: u32,
    pub(super) block: u32,
    pub(super) warp: u16,
    /// Bytes of the group, half open.
    pub(super) from: u8,
    pub(super) to: u8,
    pub(super) uniform: bool,
}

impl RowRecord {
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }

    /// Whether every byte of both belongs to the same thread in both.
    pub(super) fn same_threads(&self, other: &Self) -> bool {
        (self.block, self.warp) == (other.block, other.warp)
            && self.origin == other.origin
            && self.step == other.step
            && !self.uniform
            && !other.uniform
    }

    /// Whether it is ordered before `now`, as far as can be said for the row as a whole.
    pub(super) fn before(&self, clocks: &Clocks, now: &Self) -> bool {
        let Self { block, lanes, clock, .. } = *self;
        let (other, warp) = (usize::from(self.warp), usize::from(now.warp));
        self.same_threads(now)
            || block == now.block && clocks.known(other, lanes, clock, warp)
            || clocks.all_told((block, other, lanes, clock), warp, now.lanes)
    }

    pub(super) fn harmless(&self, clocks: &Clocks, now: &Self) -> bool {
        self.to <= now.from || now.to <= self.from || self.before(clocks, now)
    }

    /// The accesses by word: word of the group and record.
    pub(super) fn by_word(&self, group: u64, write: bool, mut each: impl FnMut(usize, Record)) {
        let Self { block, warp, clock, pc, .. } = *self;
        let record = |bytes, lanes| {
            let (atomic, same) = (None, false);
            Record { block, warp, bytes, atomic, same, lanes, clock, pc, write }
        };
        let base = group * GROUP;
        if self.uniform {
            for (word, bytes) in words(u64::from(self.from), u32::from(self.to - self.from)) {
                each(word, record(bytes, self.lanes));
            }
            return;
        }
        let mut at = u64::from(self.from);
        while at < u64::from(self.to) {
            // The origin may lie below address 0 when the first lanes take no part.
            let lane = (base + at).wrapping_sub(self.origin) / u64::from(self.step);
            let end = self.origin.wrapping_add((lane + 1) * u64::from(self.step));
            let end = end.wrapping_sub(base).min(self.to.into());
            for (word, bytes) in words(at, (end - at) as u32) {
                each(word, record(bytes, 1 << (lane & 31)));
            }
            at = end;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) writes: Vec<Record>,
    pub(super) reads: Vec<Record>,
}

impl Cell {
    /// Records an access; `Err` with the access it races with.
    pub(super) fn note(
        &mut self,
        clocks: &Clocks,
        now: Record,
        most_readers: usize,
    ) -> Result<(), Record> {
        conflict(&self.writes, clocks, &now)?;
        if !now.write {
            remember(&mut self.reads, clocks, now, most_readers);
            return Ok(());
        }
        conflict(&self.reads, clocks, &now)?;
        let keep = |record: &mut Record| {
            record.bytes &= !now.bytes;
            record.bytes != 0
        };
        self.reads.retain_mut(keep);
        if now.atomic.is_none() {
            self.writes.retain_mut(keep);
        }
        // Of many atomic updates the last ones are kept.
        if now.atomic.is_some() && self.writes.len() >= most_readers {
            self.writes.remove(0);
        }
        remember(&mut self.writes, clocks, now, usize::MAX);
        Ok(())
    }
}

pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = (mask != 0).then(|| mask.trailing_zeros() as usize);
        mask &= mask.wrapping_sub(1);
        lane
    })
}

/// The words of a range and the bytes of each.
pub(super) fn words(offset: u64, bytes: u32) -> impl Iterator<Item = (usize, u8)> {
    let end = offset + u64::from(bytes);
    (offset / 4..end.div_ceil(4)).map(move |word| {
        let from = offset.saturating_sub(word * 4).min(4) as u32;
        let to = (end - word * 4).min(4) as u32;
        (word as usize, ((1u32 << to) - (1u32 << from)) as u8)
    })
}

/// `Err` with a record that overlaps the bytes and is not ordered before `now`.
fn conflict(records: &[Record], clocks: &Clocks, now: &Record) -> Result<(), Record> {
    for record in records {
        if record.bytes & now.bytes == 0 || record.strong(now) {
            continue;
        }
        if !record.before(clocks, now) {
            return Err(*record);
        }
    }
    Ok(())
}

/// Adds an access. Records that happened before it are implied by it and dropped, so a list holds
/// concurrent accesses only.
fn remember(records: &mut Vec<Record>, clocks: &Clocks, now: Record, most: usize) {
    if let Some(record) = records.iter_mut().rev().find(|record| record.same_instruction(&now)) {
        record.lanes |= now.lanes;
        return;
    }
    records.retain(|record| {
        record.bytes & !now.bytes != 0
            || record.atomic != now.atomic
            || !record.before(clocks, &now)
    });
    if records.len() < most {
        records.push(now);
    }
}
