//! Byte-precise happens-before: who last wrote and who has read each byte, and was that ordered?
//!
//! Device memory and pinned host memory share one map, keyed by address. A segment holds bytes
//! with the same history; segments split where an access begins or ends and merge again when
//! their histories agree.

use std::collections::BTreeMap;

use super::clock::{Clock, Stamp};

/// A half-open byte range, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    pub(crate) fn new(start: u64, len: u64) -> Self {
        Span { start, end: start.saturating_add(len) }
    }

    pub(crate) fn overlaps(self, other: Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[derive(Clone, Debug, Default)]
struct History {
    write: Option<Stamp>,
    /// Reads since `write` that no later read is known to follow.
    reads: Vec<Stamp>,
}

impl History {
    fn same(&self, other: &History) -> bool {
        let writes = match (&self.write, &other.write) {
            (None, None) => true,
            (Some(a), Some(b)) => a.same(b),
            _ => false,
        };
        writes
            && self.reads.len() == other.reads.len()
            && self.reads.iter().zip(&other.reads).all(|(a, b)| a.same(b))
    }
}

/// Two accesses to the same bytes that nothing orders, at least one of them a write.
#[derive(Clone, Debug)]
pub(crate) struct Conflict {
    pub(crate) span: Span,
    pub(crate) earlier: Stamp,
    pub(crate) earlier_wrote: bool,
}

/// The access history of all memory that queued operations have touched.
#[derive(Debug, Default)]
pub(crate) struct OrderMap {
    /// start → (end, history); disjoint.
    segments: BTreeMap<u64, (u64, History)>,
}

impl OrderMap {
    /// Records a read and returns the first unordered write it meets.
    pub(crate) fn read(&mut self, span: Span, me: &Stamp, clock: &Clock) -> Option<Conflict> {
        self.visit(span, |at, history| {
            let conflict = match &history.write {
                Some(write) if !write.same(me) && !clock.covers(write) => {
                    Some(Conflict { span: at, earlier: write.clone(), earlier_wrote: true })
                }
                _ => None,
            };
            history.reads.retain(|read| !clock.covers(read) && !read.same(me));
            history.reads.push(me.clone());
            conflict
        })
    }

    /// Records a write and returns the first unordered access it meets.
    pub(crate) fn write(&mut self, span: Span, me: &Stamp, clock: &Clock) -> Option<Conflict> {
        self.visit(span, |at, history| {
            let mut conflict = None;
            if let Some(write) = &history.write
                && !write.same(me)
                && !clock.covers(write)
            {
                conflict = Some(Conflict { span: at, earlier: write.clone(), earlier_wrote: true });
            }
            if conflict.is_none()
                && let Some(read) =
                    history.reads.iter().find(|read| !read.same(me) && !clock.covers(read))
            {
                conflict = Some(Conflict { span: at, earlier: read.clone(), earlier_wrote: false });
            }
            history.write = Some(me.clone());
            history.reads.clear();
            conflict
        })
    }

    /// Forgets a range whose memory was given back.
    pub(crate) fn forget(&mut self, span: Span) {
        self.cut(span.start);
        self.cut(span.end);
        let starts: Vec<u64> = self.segments.range(span.start..span.end).map(|(s, _)| *s).collect();
        for start in starts {
            self.segments.remove(&start);
        }
    }

    /// The first access in `span` that `clock` does not cover: still possibly running.
    pub(crate) fn unordered(&self, span: Span, clock: &Clock) -> Option<Conflict> {
        let first = self.segments.range(..=span.start).next_back().map_or(span.start, |(s, _)| *s);
        for (start, (end, history)) in self.segments.range(first..span.end) {
            let at = Span { start: *start, end: *end };
            if !at.overlaps(span) {
                continue;
            }
            if let Some(write) = &history.write
                && !clock.covers(write)
            {
                return Some(Conflict { span: at, earlier: write.clone(), earlier_wrote: true });
            }
            if let Some(read) = history.reads.iter().find(|read| !clock.covers(read)) {
                return Some(Conflict { span: at, earlier: read.clone(), earlier_wrote: false });
            }
        }
        None
    }

    /// Makes `at` a segment boundary if it lies inside a segment.
    fn cut(&mut self, at: u64) {
        let Some((start, (end, history))) = self.segments.range_mut(..at).next_back() else {
            return;
        };
        if *end > at && *start < at {
            let tail = (*end, history.clone());
            *end = at;
            self.segments.insert(at, tail);
        }
    }

    fn visit(
        &mut self,
        span: Span,
        mut touch: impl FnMut(Span, &mut History) -> Option<Conflict>,
    ) -> Option<Conflict> {
        if span.start >= span.end {
            return None;
        }
        self.cut(span.start);
        self.cut(span.end);
        // Fill the gaps, so that the range is covered.
        let mut at = span.start;
        let mut gaps = Vec::new();
        for (start, (end, _)) in self.segments.range(span.start..span.end) {
            if *start > at {
                gaps.push((at, *start));
            }
            at = *end;
        }
        if at < span.end {
            gaps.push((at, span.end));
        }
        for (start, end) in gaps {
            self.segments.insert(start, (end, History::default()));
        }
        let mut found = None;
        for (start, (end, history)) in self.segments.range_mut(span.start..span.end) {
            let conflict = touch(Span { start: *start, end: *end }, history);
            if found.is_none() {
                found = conflict;
            }
        }
        self.merge(span);
        found
    }

    fn merge(&mut self, span: Span) {
        let first = self.segments.range(..span.start).next_back().map_or(span.start, |(s, _)| *s);
        let starts: Vec<u64> = self.segments.range(first..=span.end).map(|(s, _)| *s).collect();
        let mut keep: Option<u64> = None;
        for start in starts {
            let joined = match keep {
                Some(before) => match (self.segments.get(&before), self.segments.get(&start)) {
                    (Some((end, a)), Some((_, b))) => *end == start && a.same(b),
                    _ => false,
                },
                None => false,
            };
            if joined {
                if let (Some(before), Some((end, _))) = (keep, self.segments.remove(&start))
                    && let Some(segment) = self.segments.get_mut(&before)
                {
                    segment.0 = end;
                }
            } else {
                keep = Some(start);
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.segments.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(lane: u32, count: u64) -> (Stamp, Clock) {
        let mut clock = Clock::default();
        clock.raise(lane, count);
        (Stamp { lane, count, what: format!("op {count} of lane {lane}").into() }, clock)
    }

    #[test]
    fn unordered_write_and_read_conflict_to_the_byte() {
        let mut map = OrderMap::default();
        let (a, clock_a) = stamp(0, 1);
        let (b, clock_b) = stamp(1, 1);
        assert!(map.write(Span::new(100, 50), &a, &clock_a).is_none());
        assert!(map.read(Span::new(150, 10), &b, &clock_b).is_none());
        let conflict = map.read(Span::new(149, 10), &b, &clock_b).expect("one byte is shared");
        assert_eq!(conflict.span, Span { start: 149, end: 150 });
        assert!(conflict.earlier_wrote && conflict.earlier.same(&a));
    }

    #[test]
    fn a_later_write_meets_an_unordered_read() {
        let mut map = OrderMap::default();
        let (a, clock_a) = stamp(0, 1);
        let (b, mut clock_b) = stamp(1, 1);
        assert!(map.read(Span::new(0, 8), &a, &clock_a).is_none());
        let conflict = map.write(Span::new(4, 8), &b, &clock_b).expect("write after read");
        assert!(!conflict.earlier_wrote);
        clock_b.join(&clock_a);
        assert!(map.write(Span::new(0, 4), &b, &clock_b).is_none());
    }

    #[test]
    fn ordered_accesses_merge_into_one_segment() {
        let mut map = OrderMap::default();
        for part in 0..64 {
            let (a, clock) = stamp(0, 1);
            assert!(map.write(Span::new(part * 4, 4), &a, &clock).is_none());
        }
        assert_eq!(map.len(), 1);
        map.forget(Span::new(8, 8));
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn still_running_work_is_seen_by_a_free() {
        let mut map = OrderMap::default();
        let (a, clock) = stamp(3, 7);
        map.write(Span::new(0, 16), &a, &clock);
        assert!(map.unordered(Span::new(8, 4), &Clock::default()).is_some());
        assert!(map.unordered(Span::new(8, 4), &clock).is_none());
        assert!(map.unordered(Span::new(16, 4), &Clock::default()).is_none());
    }
}
