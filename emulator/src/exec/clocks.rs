//! Happens-before: who has seen which accesses of whom.
//!
//! Every thread has a clock that ticks at each synchronisation it takes part in; an access is stamped
//! with its thread's clock. Barriers work on whole warps, so what a thread knows of other warps is
//! kept per warp and shared between warps that left the same barrier; what lanes of one warp know of
//! each other through `bar.warp.sync` is kept per lane. What a thread was told by a release that it
//! acquired (`fence.rs`), of its own block or others, is kept per lane too. Shuffles and votes order
//! nothing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use super::record::lanes_of;

/// What is known of threads of any block of the launch: by block, the clock of each of its threads.
pub(crate) type Known = Rc<BTreeMap<u32, Rc<Vec<u32>>>>;

/// Adds what `from` holds.
pub(crate) fn join(into: &mut Option<Known>, from: &Known) {
    let Some(known) = into else {
        *into = Some(Rc::clone(from));
        return;
    };
    if Rc::ptr_eq(known, from) {
        return;
    }
    let known = Rc::make_mut(known);
    for (block, clocks) in from.iter() {
        match known.entry(*block) {
            Entry::Vacant(entry) => {
                entry.insert(Rc::clone(clocks));
            }
            Entry::Occupied(mut entry) if !Rc::ptr_eq(entry.get(), clocks) => {
                for (to, from) in Rc::make_mut(entry.get_mut()).iter_mut().zip(clocks.iter()) {
                    *to = (*to).max(*from);
                }
            }
            Entry::Occupied(_) => {}
        }
    }
}

type LaneTable = [[u32; 32]; 32];

/// What each lane of a warp was told.
type Told = Box<[Option<Known>; 32]>;

/// The clocks of one block.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// The block's number.
    pub(crate) block: u32,
    own: Vec<[u32; 32]>,
    known: Vec<Rc<Vec<u32>>>,
    lanes: Vec<Option<Box<LaneTable>>>,
    told: Vec<Option<Told>>,
    /// Whether anyone was told anything.
    any_told: bool,
}

/// What the arrivals at a barrier release.
#[derive(Debug, Default)]
pub(crate) struct Release {
    merged: Vec<u32>,
    last: Option<Rc<Vec<u32>>>,
    told: Option<Known>,
}

impl Clocks {
    pub(crate) fn new(block: u32, warps: usize) -> Self {
        let nothing = Rc::new(vec![0; warps * 32]);
        Self {
            block,
            own: vec![[1; 32]; warps],
            known: vec![nothing; warps],
            lanes: (0..warps).map(|_| None).collect(),
            told: (0..warps).map(|_| None).collect(),
            any_told: false,
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

    /// Whether a thread of `warp` was told of what another thread did until its `clock`.
    fn was_told(
        &self,
        (warp, lane): (usize, usize),
        block: u32,
        thread: usize,
        clock: u32,
    ) -> bool {
        let told = self.told[warp].as_ref().and_then(|lanes| lanes[lane].as_ref());
        let clocks = told.and_then(|told| told.get(&block));
        clocks.is_some_and(|clocks| clocks.get(thread).is_some_and(|seen| clock <= *seen))
    }

    /// Whether all of `to` in `warp` were told of what `lanes` of warp `other` of a block did until
    /// their `clock`.
    pub(crate) fn all_told(
        &self,
        (block, other, lanes, clock): (u32, usize, u32, u32),
        warp: usize,
        to: u32,
    ) -> bool {
        let told = |lane| {
            lanes_of(lanes).all(|u| self.was_told((warp, lane), block, other * 32 + u, clock))
        };
        self.any_told && lanes_of(to).all(told)
    }

    /// Whether accesses stamped `clock` by `lanes` of warp `other` are ordered before the present
    /// of `lane` in `warp`.
    pub(crate) fn ordered(
        &self,
        block: u32,
        other: usize,
        lanes: u32,
        clock: u32,
        warp: usize,
        lane: usize,
    ) -> bool {
        if block != self.block {
            return self.all_told((block, other, lanes, clock), warp, 1 << lane);
        }
        let known = &self.known[warp][other * 32..other * 32 + 32];
        let mut rest = if other == warp { lanes & !(1 << lane) } else { lanes };
        while rest != 0 {
            let u = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            if clock <= known[u] {
                continue;
            }
            let table = if other == warp { self.lanes[warp].as_ref() } else { None };
            if table.is_none_or(|table| clock > table[lane][u])
                && !(self.any_told && self.was_told((warp, lane), block, other * 32 + u, clock))
            {
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
        if let Some(told) = self.told[warp].as_ref().filter(|_| self.any_told) {
            for known in lanes_of(lanes).filter_map(|lane| told[lane].as_ref()) {
                join(&mut release.told, known);
            }
        }
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
            if let Some(known) = &release.told {
                (0..32).for_each(|lane| self.tell(warp, lane, known));
            }
        }
    }

    /// Tells a thread what another one knew.
    pub(crate) fn tell(&mut self, warp: usize, lane: usize, known: &Known) {
        self.any_told = true;
        let told = self.told[warp].get_or_insert_with(|| Box::new([const { None }; 32]));
        join(&mut told[lane], known);
    }

    /// All that a thread knows, of itself too.
    pub(crate) fn all_of(&self, warp: usize, lane: usize) -> Known {
        let mut mine = (*self.known[warp]).clone();
        if let Some(table) = &self.lanes[warp] {
            for (to, from) in mine[warp * 32..].iter_mut().zip(table[lane]) {
                *to = (*to).max(from);
            }
        }
        mine[warp * 32 + lane] = self.own[warp][lane];
        let mut all = self.told[warp].as_ref().and_then(|lanes| lanes[lane].clone());
        join(&mut all, &Rc::new(BTreeMap::from([(self.block, Rc::new(mine))])));
        all.unwrap_or_default()
    }

    /// What a warp does from now on is later than all it has done. (All of its lanes, so that their
    /// clocks stay equal.)
    pub(crate) fn tick(&mut self, warp: usize) {
        self.own[warp].iter_mut().for_each(|clock| *clock += 1);
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
        if let Some(told) = self.told[warp].as_mut().filter(|_| self.any_told) {
            let mut all = None;
            for known in lanes_of(lanes).filter_map(|lane| told[lane].as_ref()) {
                join(&mut all, known);
            }
            lanes_of(lanes).for_each(|lane| told[lane].clone_from(&all));
        }
    }
}
