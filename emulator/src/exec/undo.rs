//! What global memory held before a worker wrote to it.

use std::sync::Arc;

use crate::memory::{Allocation, Saved};

/// The old contents of everything that was written, in the order of writing.
#[derive(Debug)]
pub(crate) struct Undo {
    /// Number of the allocation, offset, bytes.
    ranges: Vec<(usize, u64, u64)>,
    saved: Saved,
    most: u64,
}

impl Undo {
    /// Room for about `most` bytes.
    pub(crate) fn new(most: u64) -> Self {
        Self { ranges: Vec::new(), saved: Saved::default(), most }
    }

    /// Keeps what is in a range that is about to be written; `false` if there is no room for it.
    pub(crate) fn save(
        &mut self,
        index: usize,
        allocation: &Allocation,
        offset: u64,
        bytes: u64,
    ) -> bool {
        let room = self.saved.bytes() + 24 * (self.ranges.len() as u64) < self.most;
        if room {
            self.ranges.push((index, offset, bytes));
            allocation.save(offset, bytes, &mut self.saved);
        }
        room
    }

    /// Puts everything back.
    pub(crate) fn apply(mut self, allocations: &[Arc<Allocation>]) {
        for (index, offset, bytes) in self.ranges.into_iter().rev() {
            allocations[index].restore(offset, bytes, &mut self.saved);
        }
    }
}
