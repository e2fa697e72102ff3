//! Vector clocks: which queued operation is ordered before which.

use std::sync::Arc;

/// One timeline of operations that run one after the other: a stream, or a branch of a graph.
pub(crate) type Lane = u32;

/// How much of every lane is known to have happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    seen: Vec<u64>,
}

impl Clock {
    /// How many operations of `lane` are covered.
    pub(crate) fn get(&self, lane: Lane) -> u64 {
        self.seen.get(lane as usize).copied().unwrap_or(0)
    }

    /// Covers at least `count` operations of `lane`.
    pub(crate) fn raise(&mut self, lane: Lane, count: u64) {
        let index = lane as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, 0);
        }
        self.seen[index] = self.seen[index].max(count);
    }

    /// Covers everything `other` covers.
    pub(crate) fn join(&mut self, other: &Clock) {
        if self.seen.len() < other.seen.len() {
            self.seen.resize(other.seen.len(), 0);
        }
        for (mine, theirs) in self.seen.iter_mut().zip(&other.seen) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Whether the operation behind `stamp` happened before whoever holds this clock.
    pub(crate) fn covers(&self, stamp: &Stamp) -> bool {
        self.get(stamp.lane) >= stamp.count
    }
}

/// The identity of one operation on its lane, with the words a diagnosis uses for it.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    pub(crate) lane: Lane,
    pub(crate) count: u64,
    pub(crate) what: Arc<str>,
}

impl Stamp {
    pub(crate) fn same(&self, other: &Stamp) -> bool {
        self.lane == other.lane && self.count == other.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(lane: Lane, count: u64) -> Stamp {
        Stamp { lane, count, what: "x".into() }
    }

    #[test]
    fn join_covers_both_sides() {
        let mut a = Clock::default();
        a.raise(0, 3);
        let mut b = Clock::default();
        b.raise(2, 1);
        assert!(!a.covers(&stamp(2, 1)));
        a.join(&b);
        assert!(a.covers(&stamp(2, 1)) && a.covers(&stamp(0, 3)) && !a.covers(&stamp(0, 4)));
    }
}
