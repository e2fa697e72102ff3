//! One block: its warps, barriers and schedule.

use std::collections::{BTreeMap, HashMap};

use super::alu::Lanes;
use super::clocks::{Clocks, Release};
use super::fence::{Messages, Variables};
use super::history::History;
use super::launch::{Counters, Launch};
use super::record::{Accessor, Record, lanes_of};
use super::shared::SharedMemory;
use super::step::Outcome;
use super::undo::Undo;
use super::warp::{Fragment, Wait, Warp, thread_index};
use crate::finding::{Checked, Finding, FindingKind};
use crate::ptx::ir::{BarrierKind, Op, Surroundings};

/// Barriers per block.
pub(crate) const BARRIERS: usize = 16;

/// A violation by a lane of the warp that is executing.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) lane: u32,
    pub(crate) finding: Box<Finding>,
}

/// Result of executing an instruction.
pub(crate) type Step<T> = Result<T, Box<Fault>>;

/// Fails with a finding of the lowest lane in `lanes`.
pub(crate) fn fault<T>(lanes: u32, finding: Box<Finding>) -> Step<T> {
    Err(Box::new(Fault { lane: lanes.trailing_zeros() & 31, finding }))
}

/// Who has arrived at a barrier.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    /// Lanes that arrived, by warp.
    pub(crate) arrived: Vec<u32>,
    pub(crate) threads: Option<u32>,
    pub(crate) count: u32,
    pub(crate) all: bool,
    pub(crate) release: Release,
}

/// A read of bytes that nothing has written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    pub(crate) who: Accessor,
    /// The address, or the offset in shared memory.
    pub(crate) at: u64,
    pub(crate) bytes: u32,
    pub(crate) global: bool,
}

/// Findings that end nothing, by instruction, with the place of their block in the launch's order.
pub(crate) type Notes = BTreeMap<u32, (u64, Box<Finding>)>;

/// What blocks that hear of each other have in common.
#[derive(Debug)]
pub(crate) struct Common {
    history: History,
    variables: Variables,
}

impl Common {
    pub(crate) fn new() -> Self {
        Self { history: History::of_launch(), variables: Variables::new() }
    }
}

/// What instructions need besides their warp.
pub(crate) struct Core<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) block: [u32; 3],
    pub(crate) linear: u64,
    /// The block's place in the launch's order.
    pub(crate) position: u64,
    pub(crate) shared: SharedMemory,
    pub(crate) clocks: Clocks,
    /// Who accessed which bytes of global and of shared memory.
    pub(crate) global_history: History,
    pub(crate) shared_history: History,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) messages: Messages,
    /// Atomic variables in global memory.
    pub(crate) variables: Variables,
    /// The other side of the race that was found last.
    pub(crate) raced: Option<Record>,
    pub(crate) watch: Option<Watch>,
    pub(crate) notes: Notes,
    pub(crate) counters: Counters,
    /// Of collectives that exited threads are named by: what lies around them.
    pub(crate) surroundings: HashMap<u32, Surroundings>,
    /// Approximate instructions executed, by index in the code's list.
    pub(crate) approximate: Vec<bool>,
    pub(crate) loaded: Option<Box<[Lanes; 8]>>,
    /// What `counters.warp_instructions` was when the block began: `%clock` counts from there.
    pub(crate) began: u64,
    /// Where old contents of global memory are kept, if the launch may have to be run again.
    pub(crate) undo: Option<Undo>,
}

/// A block, reusable for one after another.
pub(crate) struct Block<'a> {
    core: Core<'a>,
    warps: Vec<Warp>,
    runnable: Vec<usize>,
    random: u64,
}

pub(crate) fn next_random(state: &mut u64) -> u64 {
    // SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl<'a> Block<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>, undo: Option<Undo>) -> Self {
        let count = launch.threads_per_block.div_ceil(32) as usize;
        let code = &launch.entry.code;
        let (registers, local) = (code.registers as usize, code.local_bytes as usize);
        let block = launch.params.block;
        let warps = (0..count).map(|i| Warp::new(i, block, registers, local)).collect();
        let shared = SharedMemory::new(&code.shared, launch.params.dynamic_shared);
        let core = Core {
            launch,
            block: [0; 3],
            linear: 0,
            position: 0,
            shared_history: History::of_shared(shared.size()),
            shared,
            clocks: Clocks::new(0, count),
            global_history: History::of_global(),
            barriers: Vec::new(),
            messages: Messages::default(),
            variables: Variables::new(),
            raced: None,
            watch: None,
            notes: Notes::new(),
            counters: Counters::default(),
            surroundings: HashMap::new(),
            approximate: vec![false; code.approximate.len()],
            loaded: None,
            began: 0,
            undo,
        };
        Self { core, warps, runnable: Vec::new(), random: 0 }
    }

    /// What the blocks run so far have done.
    pub(crate) fn totals(&self) -> (Counters, &[bool]) {
        (self.core.counters, &self.core.approximate)
    }

    /// What was found that ended nothing.
    pub(crate) fn notes(&self) -> &Notes {
        &self.core.notes
    }

    /// Takes what blocks have in common, or gives it back.
    pub(crate) fn lend(&mut self, common: &mut Common) {
        std::mem::swap(&mut self.core.global_history, &mut common.history);
        std::mem::swap(&mut self.core.variables, &mut common.variables);
    }

    /// What memory held before.
    pub(crate) fn into_undo(self) -> Option<Undo> {
        self.core.undo
    }

    /// Runs the block at a position in the launch's order to its end.
    pub(crate) fn run(&mut self, position: u64) -> Checked<()> {
        self.start(position);
        self.go(u64::MAX).map(|_| ())
    }

    /// Prepares to run the block at a position in the launch's order.
    pub(crate) fn start(&mut self, position: u64) {
        let linear = self.core.launch.block_at(position);
        self.core.position = position;
        let [x, y, _] = self.core.launch.params.grid.map(u64::from);
        self.core.block = [(linear % x) as u32, (linear / x % y) as u32, (linear / (x * y)) as u32];
        self.core.linear = linear;
        self.core.shared.reset();
        if !self.core.launch.communicates {
            self.core.global_history.reset();
        }
        self.core.shared_history.reset();
        self.core.clocks = Clocks::new(linear as u32, self.warps.len());
        if self.core.launch.fences {
            self.core.messages = Messages::new(self.warps.len());
        }
        self.core.barriers.clear();
        for _ in 0..BARRIERS {
            let arrived = vec![0; self.warps.len()];
            self.core.barriers.push(Barrier { arrived, ..Barrier::default() });
        }
        for warp in &mut self.warps {
            warp.reset();
        }
        self.random = self.core.launch.seed ^ linear.wrapping_mul(0x2545_f491_4f6c_dd1d);
        self.core.began = self.core.counters.warp_instructions;
        self.core.counters.blocks += 1;
        self.core.counters.threads += u64::from(self.core.launch.threads_per_block);
        self.runnable = (0..self.warps.len()).collect();
    }

    /// Goes on for about `slice` warp instructions; whether the block has ended.
    pub(crate) fn go(&mut self, slice: u64) -> Checked<bool> {
        let end = self.core.counters.warp_instructions.saturating_add(slice);
        loop {
            while !self.runnable.is_empty() {
                let before = self.core.counters.warp_instructions;
                if before >= end {
                    return Ok(false);
                }
                let draw = next_random(&mut self.random);
                let slot = (draw % self.runnable.len() as u64) as usize;
                let quantum = 16 + (draw >> 32) % 240;
                let ran = self.run_warp(self.runnable[slot], quantum);
                let blocked = ran.map_err(|finding| self.explain(finding))?;
                let used = self.core.counters.warp_instructions - before;
                if !self.core.launch.spend(used) {
                    return Err(self.runaway().1);
                }
                if blocked {
                    self.runnable.swap_remove(slot);
                }
            }
            if self.warps.iter().all(|warp| warp.live == 0) {
                return Ok(true);
            }
            self.runnable = self.release_barriers()?;
            if self.runnable.is_empty() {
                return Err(self.stuck());
            }
        }
    }

    /// Says of a read of unwritten bytes who writes them later, if a thread of the block does with no
    /// barrier between: the rest of the block runs on until it waits.
    fn explain(&mut self, finding: Box<Finding>) -> Box<Finding> {
        let watch = self.core.watch.take();
        let Some(Watch { who, at, bytes, global }) =
            watch.filter(|_| finding.kind == FindingKind::Uninitialised)
        else {
            return finding;
        };
        for fragment in &mut self.warps[who.warp].fragments {
            if fragment.pc == who.pc {
                fragment.wait = Wait::Stopped;
            }
        }
        let history =
            if global { &mut self.core.global_history } else { &mut self.core.shared_history };
        if history.note(&self.core.clocks, who, at, bytes, false).is_err() {
            return finding;
        }
        for index in 0..self.warps.len() {
            self.core.raced = None;
            let Err(other) = self.run_warp(index, MOST_AFTER) else { continue };
            let read = |record: &Record| {
                (record.block, usize::from(record.warp), record.pc)
                    == (self.core.clocks.block, who.warp, who.pc)
                    && record.lanes & who.lanes != 0
            };
            if let (true, Some(thread)) = (self.core.raced.as_ref().is_some_and(read), other.thread)
            {
                let message = format!(
                    "{}; thread {} writes it later (ptx line {}), with no barrier between the two: \
                     a barrier is missing",
                    finding.message,
                    text(thread),
                    other.ptx_line.unwrap_or(0)
                );
                return Box::new(Finding { message, ..*finding });
            }
        }
        finding
    }

    /// Runs a warp for about `quantum` instructions; `true` if it cannot go on by itself.
    fn run_warp(&mut self, index: usize, quantum: u64) -> Checked<bool> {
        let warp = &mut self.warps[index];
        let mut left = quantum;
        loop {
            if warp.fragments.len() > 1 {
                warp.merge();
            }
            let fragments: Vec<_> = warp.fragments.iter().copied().enumerate().collect();
            let Some(at) = self.core.pick(warp) else {
                let retried = self.core.retry_collectives(warp);
                if retried.map_err(|(pc, fault)| self.core.locate_at(warp, pc, *fault))? {
                    continue;
                }
                return Ok(true);
            };
            // Run up to the next fragment's instruction, where the two can join.
            let others = fragments.iter().filter(|f| f.0 != at);
            let limit = others.map(|f| f.1.pc).filter(|pc| *pc > fragments[at].1.pc).min();
            let limit = limit.unwrap_or(u32::MAX);
            let (floor, mut rounds) = (fragments[at].1.pc, fragments[at].1.rounds);
            loop {
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
                match self.core.step(warp, at) {
                    Ok(Outcome::Continue) => {}
                    Ok(Outcome::Reschedule) => break,
                    Err(fault) => {
                        let pc = warp.fragments.get(at).map_or(0, |fragment| fragment.pc);
                        return Err(self.core.locate_at(warp, pc, *fault));
                    }
                }
                let Fragment { pc, rounds: now, .. } = warp.fragments[at];
                if fragments.len() > 1 {
                    warp.impatience += u32::from(now > rounds);
                    rounds = now;
                    if pc >= limit || pc < floor || warp.impatience > PATIENCE {
                        break;
                    }
                }
            }
        }
    }

    /// Completes every barrier all of whose threads have arrived; returns the warps that can run.
    fn release_barriers(&mut self) -> Checked<Vec<usize>> {
        let mut runnable = Vec::new();
        for id in 0..BARRIERS {
            let barrier = &self.core.barriers[id];
            if barrier.arrived.iter().all(|lanes| *lanes == 0) {
                continue;
            }
            // Threads that have exited hold nobody up (PTX ISA, `exit` and `barrier`), unless they
            // skipped the barrier and went on past it. What they wrote is not ordered by a barrier
            // they never reached. A thread that arrived without waiting may have exited since.
            let missing = |warp: &Warp| warp.live & !barrier.arrived[warp.index];
            let takes_part = |warp: &&Warp| barrier.arrived[warp.index] != 0;
            let done = match barrier.threads {
                Some(threads) => {
                    let warps = self.warps.iter().filter(takes_part);
                    warps.clone().all(|warp| missing(warp) == 0)
                        && warps.count() as u32 * 32 >= threads
                }
                None => self.warps.iter().all(|warp| missing(warp) == 0),
            };
            if !done {
                continue;
            }
            let absent = self.warps.iter().filter(|warp| {
                let exited = warp.launched & !warp.live & !barrier.arrived[warp.index];
                exited != 0 && (barrier.threads.is_none() || takes_part(warp))
            });
            if let Some(finding) = absent.filter_map(|warp| self.skipped(id as u32, warp)).next() {
                return Err(finding);
            }
            let arrived = vec![0; self.warps.len()];
            let fresh = Barrier { arrived, ..Barrier::default() };
            let barrier = std::mem::replace(&mut self.core.barriers[id], fresh);
            let waits = Wait::Barrier(id as u32);
            let waiting: Vec<usize> = self
                .warps
                .iter()
                .filter(|warp| warp.fragments.iter().any(|f| f.wait == waits))
                .map(|warp| warp.index)
                .collect();
            self.core.clocks.acquire(barrier.release, waiting.iter().copied());
            for index in waiting {
                let warp = &mut self.warps[index];
                for i in 0..warp.fragments.len() {
                    let fragment = warp.fragments[i];
                    if fragment.wait != waits {
                        continue;
                    }
                    let instr = &self.core.launch.entry.code.instrs[fragment.pc as usize];
                    if let Op::Barrier { kind, dst, .. } = &instr.op {
                        let value = match kind {
                            BarrierKind::Count => u64::from(barrier.count),
                            BarrierKind::All => u64::from(barrier.all),
                            _ => u64::from(barrier.count > 0),
                        };
                        warp.write(*dst, fragment.mask, &[value; 32], 0);
                    }
                    warp.fragments[i].wait = Wait::None;
                    warp.fragments[i].pc += 1;
                }
                runnable.push(index);
            }
        }
        runnable.sort_unstable();
        runnable.dedup();
        Ok(runnable)
    }

    /// The finding about a thread of `warp` that has exited, after it passed by the barrier that
    /// others wait at and did something that lies behind it.
    fn skipped(&self, id: u32, warp: &Warp) -> Option<Box<Finding>> {
        let waits = |f: &&Fragment| f.wait == Wait::Barrier(id);
        let mut waiting = self.warps.iter().flat_map(|warp| {
            warp.fragments.iter().filter(waits).map(move |fragment| (warp, *fragment))
        });
        let (other, fragment) = waiting.next()?;
        let exited =
            warp.launched & !warp.live & !self.core.barriers[id as usize].arrived[warp.index];
        let code = &self.core.launch.entry.code;
        let around = code.surroundings(fragment.pc);
        let passed = |lane: &usize| {
            let (deed, met) = warp.last_deeds[*lane];
            around.left_behind(deed, met)
        };
        let lane = lanes_of(exited).find(passed)?;
        let deed = code.instrs.get(warp.last_deeds[lane].0 as usize);
        let message = format!(
            "threads wait at barrier {id}, but thread {} went on past it without waiting (to ptx \
             line {}); every thread of a block must come to the same barriers, or have returned",
            text(thread_index((warp.index * 32 + lane) as u64, self.core.launch.params.block)),
            deed.map_or(0, |instr| instr.line)
        );
        let finding = Finding::new(FindingKind::BarrierDivergence, message);
        let lane = fragment.mask.trailing_zeros() & 31;
        Some(self.core.locate_at(other, fragment.pc, Fault { lane, finding }))
    }

    /// The finding about a launch that does not end: which thread has gone round a loop most often,
    /// and how often.
    pub(crate) fn runaway(&self) -> (u32, Box<Finding>) {
        let budget = self.core.launch.budget;
        let mut message =
            format!("the launch executed more than its budget of {budget} warp instructions");
        let running = self.warps.iter().flat_map(|warp| {
            let ready = warp.fragments.iter().filter(|f| f.wait == Wait::None);
            ready.map(move |fragment| (warp, *fragment))
        });
        // The first of the most.
        let most = running.reduce(|a, b| if b.1.rounds > a.1.rounds { b } else { a });
        let Some((warp, fragment)) = most else {
            return (0, Finding::new(FindingKind::InstructionBudget, message));
        };
        let lane = fragment.mask.trailing_zeros() & 31;
        let mut pc = fragment.pc;
        if fragment.rounds > 0 {
            pc = fragment.looped;
            let linear = warp.index as u64 * 32 + u64::from(lane);
            message += &format!(
                "; thread {} goes round a loop, {} times since its last barrier",
                text(thread_index(linear, self.core.launch.params.block)),
                fragment.rounds
            );
        }
        let finding = Finding::new(FindingKind::InstructionBudget, message);
        (fragment.rounds, self.core.locate_at(warp, pc, Fault { lane, finding }))
    }

    /// Nobody can go on: says who waits for what.
    fn stuck(&self) -> Box<Finding> {
        let mut waits = Vec::new();
        let mut culprit: Option<(FindingKind, usize, Fragment)> = None;
        for warp in &self.warps {
            for fragment in &warp.fragments {
                let instr = &self.core.launch.entry.code.instrs[fragment.pc as usize];
                let (what, kind) = match fragment.wait {
                    Wait::Barrier(id) => {
                        let aligned = matches!(instr.op, Op::Barrier { aligned: true, .. });
                        let partial =
                            self.core.barriers[id as usize].arrived[warp.index] != warp.launched;
                        let kind = if aligned && partial {
                            FindingKind::BarrierDivergence
                        } else {
                            FindingKind::Deadlock
                        };
                        let count = self.core.barriers[id as usize].threads;
                        let expected = count.map_or("all".to_owned(), |count| count.to_string());
                        (format!("at barrier {id} for {expected} threads"), kind)
                    }
                    Wait::Lanes(mask) => {
                        let missing = mask & warp.live & !fragment.mask;
                        (format!("for lanes 0x{missing:08x} of its warp"), FindingKind::WarpMask)
                    }
                    Wait::None | Wait::Stopped => continue,
                };
                let rank = |kind| match kind {
                    FindingKind::WarpMask => 0,
                    FindingKind::BarrierDivergence => 1,
                    _ => 2,
                };
                if culprit.is_none_or(|(old, ..)| rank(kind) < rank(old)) {
                    culprit = Some((kind, warp.index, *fragment));
                }
                waits.push(format!(
                    "warp {} lanes 0x{:08x} wait {what} (ptx line {})",
                    warp.index, fragment.mask, instr.line
                ));
            }
            let exited = warp.launched & !warp.live;
            if exited != 0 {
                waits.push(format!("warp {} lanes 0x{exited:08x} have exited", warp.index));
            }
        }
        let Some((kind, index, fragment)) = culprit else {
            return Finding::new(FindingKind::Deadlock, "no thread can run");
        };
        let message = format!("no thread of the block can go on: {}", waits.join("; "));
        let finding = Finding::new(kind, message);
        let lane = fragment.mask.trailing_zeros() & 31;
        self.core.locate_at(&self.warps[index], fragment.pc, Fault { lane, finding })
    }
}

/// Instructions a warp runs on after something was found, to say more about it.
const MOST_AFTER: u64 = 1 << 16;

/// Jumps back after which another fragment of the warp has its turn.
const PATIENCE: u32 = 64;

impl Core<'_> {
    /// The fragment of a warp that runs next: one that is about to exit, else the one that is furthest
    /// behind, so that threads join again. One that goes round in a loop may wait for another thread
    /// of its warp: then the others have their turn.
    fn pick(&self, warp: &mut Warp) -> Option<usize> {
        let instrs = &self.launch.entry.code.instrs;
        let exits = |f: &Fragment| {
            let instr = instrs.get(f.pc as usize);
            instr.is_none_or(|instr| instr.guard.is_none() && matches!(instr.op, Op::Exit))
        };
        let ready = || warp.fragments.iter().enumerate().filter(|f| f.1.wait == Wait::None);
        if warp.impatience > PATIENCE {
            let count = ready().count();
            let turn = ready().nth(warp.turn % count.max(1)).map(|f| f.0);
            (warp.impatience, warp.turn) = (0, warp.turn + 1);
            return turn;
        }
        ready().min_by_key(|f| (!exits(f.1), f.1.pc)).map(|f| f.0)
    }
}

/// An index as text.
pub(crate) fn text([x, y, z]: [u32; 3]) -> String {
    format!("({x}, {y}, {z})")
}

impl Core<'_> {
    /// Adds kernel, block, thread, PTX line and source line to a fault's finding.
    pub(crate) fn locate_at(&self, warp: &Warp, pc: u32, fault: Fault) -> Box<Finding> {
        let mut finding = fault.finding;
        let launch = self.launch;
        let code = &launch.entry.code;
        finding.kernel = Some(launch.entry.name.clone());
        finding.block = Some(self.block);
        let linear = warp.index as u64 * 32 + u64::from(fault.lane);
        finding.thread = Some(thread_index(linear, launch.params.block));
        if let Some(instr) = code.instrs.get(pc as usize) {
            let module = launch.module.module();
            finding.ptx_line = Some(instr.line);
            finding.ptx_text = module.line(instr.line).map(str::to_owned);
            let location = (instr.location as usize).checked_sub(1);
            finding.source = location
                .and_then(|i| code.locations.get(i))
                .and_then(|location| module.source_line(*location));
        }
        finding
    }
}
