//! Happens-before within a block: who has seen which accesses of whom.
//!
//! Every thread has a clock that ticks at each synchronisation it takes part in; an access is stamped
//! with its thread's clock. Barriers work on whole warps, so what a thread knows of other warps is
//! kept per warp and shared between warps that left the same barrier; what lanes of one warp know of
//! each other through `bar.warp.sync` is kept per lane. Shuffles, votes and fences order nothing.

use std::rc::Rc;

type LaneTable = [[u32; 32]; 32];

/// The clocks of one block.
#[derive(Debug)]
pub(crate) struct Clocks {
    own: Vec<[u32; 32]>,
    known: Vec<Rc<Vec<u32>>>,
    lanes: Vec<Option<Box<LaneTable>>>,
}

/// What the arrivals at a barrier release.
#[derive(Debug, Default)]
pub(crate) struct Release {
    merged: Vec<u32>,
    last: Option<Rc<Vec<u32>>>,
}

impl Clocks {
    pub(crate) fn new(warps: usize) -> Self {
        let nothing = Rc::new(vec![0; warps * 32]);
        Self {
            own: vec![[1; 32]; warps],
            known: vec![nothing; warps],
            lanes: (0..warps).map(|_| None).collect(),
        }
    }

    /// The stamp of an access now.
    pub(crate) fn now(&self, warp: usize, lane: usize) -> u32 {
        self.own[warp][lane]
    }

    /// The stamp that all of `lanes` have now, if it is one.
    pub(crate) fn common(&self, warp: usize, lanes: u32) -> Option<u32> {
        let own = &self.own[warp];
        let clock = own[lanes.trailing_zeros() as usize & 31];
        let mut same = true;
        for (lane, other) in own.iter().enumerate() {
            same &= *other == clock || lanes >> lane & 1 == 0;
        }
        same.then_some(clock)
    }

    /// Whether accesses stamped `clock` by `lanes` of warp `other` are ordered before the present
    /// of every lane in `warp`, as far as barriers of the block say.
    pub(crate) fn known(&self, other: usize, lanes: u32, clock: u32, warp: usize) -> bool {
        let known = &self.known[warp][other * 32..other * 32 + 32];
        let mut all = true;
        for (lane, seen) in known.iter().enumerate() {
            all &= clock <= *seen || lanes >> lane & 1 == 0;
        }
        all
    }

    /// Whether accesses stamped `clock` by `lanes` of warp `other` are ordered before the present
    /// of `lane` in `warp`.
    pub(crate) fn ordered(
        &self,
        other: usize,
        lanes: u32,
        clock: u32,
        warp: usize,
        lane: usize,
    ) -> bool {
        let known = &self.known[warp][other * 32..other * 32 + 32];
        let mut rest = if other == warp { lanes & !(1 << lane) } else { lanes };
        while rest != 0 {
            let u = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            if clock <= known[u] {
                continue;
            }
            let table = if other == warp { self.lanes[warp].as_ref() } else { None };
            if table.is_none_or(|table| clock > table[lane][u]) {
                return false;
            }
        }
        true
    }

    /// Adds what `lanes` of `warp` know to a barrier's release and ticks their clocks.
    pub(crate) fn arrive(&mut self, release: &mut Release, warp: usize, lanes: u32) {
        let known = &self.known[warp];
        if release.merged.is_empty() {
            release.merged.clone_from(known);
        } else if !release.last.as_ref().is_some_and(|last| Rc::ptr_eq(last, known)) {
            for (to, from) in release.merged.iter_mut().zip(known.iter()) {
                *to = (*to).max(*from);
            }
        }
        release.last = Some(Rc::clone(known));
        for lane in 0..32 {
            if lanes >> lane & 1 == 1 {
                release.merged[warp * 32 + lane] = self.own[warp][lane];
                self.own[warp][lane] += 1;
            }
        }
    }

    /// Gives the warps that waited what the barrier released.
    pub(crate) fn acquire(&mut self, release: Release, warps: impl Iterator<Item = usize>) {
        let merged = Rc::new(release.merged);
        for warp in warps {
            self.known[warp] = Rc::clone(&merged);
        }
    }

    /// `bar.warp.sync` of `lanes`.
    pub(crate) fn sync_lanes(&mut self, warp: usize, lanes: u32) {
        let own = &mut self.own[warp];
        let table = self.lanes[warp].get_or_insert_with(|| Box::new([[0; 32]; 32]));
        let members = (0..32).filter(|lane| lanes >> lane & 1 == 1);
        let mut merged = [0u32; 32];
        for lane in members.clone() {
            for (to, from) in merged.iter_mut().zip(table[lane]) {
                *to = (*to).max(from);
            }
        }
        for lane in members.clone() {
            merged[lane] = own[lane];
        }
        for lane in members {
            table[lane] = merged;
            own[lane] += 1;
        }
    }
}
