//! Races of an access with those of other threads and blocks, in words.

use super::block::{Core, Step, fault, text};
use super::record::{Accessor, Record};
use super::shadow::{self, Conflict, Touch};
use super::warp::thread_index;
use crate::finding::{Finding, FindingKind};
use crate::memory::Allocation;
use crate::ptx::ir::Scope;

impl Core<'_> {
    /// Checks an access to global memory against those of other threads and blocks.
    pub(crate) fn touch(
        &mut self,
        who: Accessor,
        index: usize,
        offset: u64,
        bytes: u32,
        touch: Touch,
    ) -> Step<()> {
        let launch = self.launch;
        let allocation = &launch.allocations[index];
        if launch.threads_per_block > 1 || launch.communicates {
            let write = matches!(touch, Touch::Write | Touch::Atomic);
            let address = allocation.base + offset;
            let raced = self.global_history.note(&self.clocks, who, address, bytes, write);
            if let Err(record) = raced {
                return self.block_race(who, allocation, offset, touch, record);
            }
        }
        let place = shadow::Place {
            allocation: index,
            size: allocation.size,
            offset,
            bytes: u64::from(bytes),
        };
        launch.shadow.touch(place, self.shadow_id(), touch).or_else(|conflict| {
            self.global_race(who.lane as u32, allocation, offset, touch, conflict)
        })
    }

    /// As whom the block touches memory in the record by block. Where blocks hear of each other, the
    /// record by thread knows what is ordered, and this one only what was touched.
    pub(crate) fn shadow_id(&self) -> u64 {
        if self.launch.communicates { 0 } else { self.linear }
    }

    #[cold]
    fn block_race(
        &mut self,
        who: Accessor,
        allocation: &Allocation,
        offset: u64,
        touch: Touch,
        record: Record,
    ) -> Step<()> {
        self.raced = Some(record);
        let missing = if record.block == self.clocks.block {
            "a barrier is missing between them"
        } else if who.atomic == Some(Scope::Block) || record.atomic == Some(Scope::Block) {
            "an atomic with the scope of a block is none for other blocks"
        } else {
            "nothing orders blocks but a release (`__threadfence()`, then an atomic) that the other \
             side acquires (an atomic, then `__threadfence()`), both with the device's scope"
        };
        let message = format!(
            "{} of byte {offset} of an allocation is not ordered with the {}; {missing}",
            match touch {
                Touch::Read | Touch::AtomicRead => "read",
                Touch::Write => "write",
                Touch::Atomic => "atomic update",
            },
            self.other_side(who, record)
        );
        let finding = Finding::new(FindingKind::GlobalRace, message).at(allocation.base + offset);
        fault(1 << who.lane, finding.in_allocation(allocation.describe()))
    }

    /// The other access of a race in words.
    fn other_side(&self, who: Accessor, record: Record) -> String {
        // The report names one thread of the other side that is not the offender.
        let own_warp = (record.block, usize::from(record.warp)) == (self.clocks.block, who.warp);
        let own = if own_warp { 1 << who.lane } else { 0 };
        let lane = u64::from((record.lanes & !own).trailing_zeros() & 31);
        let linear = u64::from(record.warp) * 32 + lane;
        let mut thread = text(thread_index(linear, self.launch.params.block));
        if record.block != self.clocks.block {
            let [x, y, _] = self.launch.params.grid;
            let i = record.block;
            thread = format!("{thread} of block {}", text([i % x, i / x % y, i / x / y]));
        }
        let line = self.launch.entry.code.instrs.get(record.pc as usize).map_or(0, |i| i.line);
        let verb = match (record.atomic, record.write) {
            (Some(_), true) => "atomic update",
            (_, true) => "write",
            (_, false) => "read",
        };
        format!("{verb} by thread {thread} at ptx line {line}")
    }

    #[cold]
    fn global_race(
        &self,
        lane: u32,
        allocation: &Allocation,
        offset: u64,
        touch: Touch,
        conflict: Conflict,
    ) -> Step<()> {
        let verb = match touch {
            Touch::Read | Touch::AtomicRead => "reads",
            Touch::Write => "writes",
            Touch::Atomic => "atomically updates",
        };
        let [x, y, _] = self.launch.params.grid.map(u64::from);
        let other = match conflict.block {
            Some(i) => {
                let index = [i % x, i / x % y, i / (x * y)].map(|index| index as u32);
                format!("block {}", text(index))
            }
            None => "several other blocks".to_owned(),
        };
        let message = format!(
            "block {} {verb} byte {offset} of an allocation, and {other} {} in the same launch; \
             nothing orders blocks",
            text(self.block),
            conflict.what
        );
        let finding = Finding::new(FindingKind::GlobalRace, message).at(allocation.base + offset);
        fault(1 << lane, finding.in_allocation(allocation.describe()))
    }

    #[cold]
    pub(crate) fn shared_race(
        &mut self,
        who: Accessor,
        offset: u64,
        verb: &str,
        record: Record,
    ) -> Step<()> {
        self.raced = Some(record);
        let name = self.shared.extent(offset, 1).map_or("?", |extent| extent.name.as_str());
        let start = self.shared.extent(offset, 1).map_or(0, |extent| u64::from(extent.start));
        let message = format!(
            "{verb} of byte {} of shared `{name}` is not ordered with the {}; a barrier is missing \
             between them",
            offset - start,
            self.other_side(who, record)
        );
        let finding = Finding::new(FindingKind::SharedRace, message).at(offset);
        fault(1 << who.lane, finding.in_allocation(format!("shared `{name}`")))
    }
}
