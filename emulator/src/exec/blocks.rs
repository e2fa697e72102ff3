//! Runs the blocks of a launch so that the seed alone decides what happens, on any number of workers.
//!
//! Blocks that cannot hear of each other run side by side. Then nothing depends on their timing,
//! unless something is found: then memory goes back to what it was, and the blocks run again, one
//! after the other in the seed's order, for the finding that belongs to the seed. Blocks that may
//! hear of each other, through atomics on global memory, run in turns that the seed draws.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::block::{Block, Common, Notes, next_random};
use super::launch::{Counters, Launch};
use super::undo::Undo;
use crate::finding::{Checked, FindingKind};
use crate::memory::lock;

/// Threads of a launch per worker: below, starting a worker costs more than it brings.
const WORTH_A_WORKER: u64 = 4096;
/// Bytes of old contents that workers keep between them, before they give up running side by side.
const MOST_UNDO: u64 = 1 << 29;

/// What all blocks did.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) counters: Counters,
    /// Which approximate instructions ran.
    pub(crate) approximate: Vec<bool>,
    pub(crate) notes: Notes,
}

impl Totals {
    fn new(launch: &Launch<'_>) -> Self {
        let approximate = vec![false; launch.entry.code.approximate.len()];
        Self { approximate, ..Self::default() }
    }

    fn add(&mut self, block: &Block<'_>) {
        let (counters, approximate) = block.totals();
        self.counters.add(&counters);
        for (to, from) in self.approximate.iter_mut().zip(approximate) {
            *to |= from;
        }
        for (pc, note) in block.notes() {
            // The first block's, in the launch's order.
            let first = self.notes.entry(*pc).or_insert_with(|| note.clone());
            if note.0 < first.0 {
                first.clone_from(note);
            }
        }
    }
}

/// Runs all blocks.
pub(crate) fn run(launch: &mut Launch<'_>, threads: usize) -> Checked<Totals> {
    if launch.communicates {
        return in_turns(launch);
    }
    let count = launch.blocks.saturating_mul(u64::from(launch.threads_per_block));
    let workers = (threads.max(1) as u64).min(launch.blocks).min(count / WORTH_A_WORKER + 1);
    if workers > 1 {
        if let Some(totals) = side_by_side(launch, workers) {
            return Ok(totals);
        }
        launch.start_over();
    }
    in_order(launch)
}

fn in_order(launch: &Launch<'_>) -> Checked<Totals> {
    let mut block = Block::new(launch, None);
    for position in 0..launch.blocks {
        block.run(position)?;
    }
    let mut totals = Totals::new(launch);
    totals.add(&block);
    Ok(totals)
}

/// Runs a few blocks in turns, one turn after the other. While none of them ends, more join them, up
/// to as many as a device holds: a block may wait for any of those.
fn in_turns(launch: &Launch<'_>) -> Checked<Totals> {
    let mut common = Common::new();
    let (mut idle, mut flying) = (Vec::new(), Vec::<Block<'_>>::new());
    let mut random = launch.seed.rotate_left(32);
    let mut window = 1 + next_random(&mut random) % 4;
    let (mut next, mut fruitless) = (0, 0);
    loop {
        while (flying.len() as u64) < window && next < launch.blocks {
            let mut block = idle.pop().unwrap_or_else(|| Block::new(launch, None));
            block.start(next);
            next += 1;
            flying.push(block);
        }
        if flying.is_empty() {
            break;
        }
        let draw = next_random(&mut random);
        let slot = (draw % flying.len() as u64) as usize;
        let block = &mut flying[slot];
        block.lend(&mut common);
        let outcome = block.go(64 + (draw >> 32) % 2048);
        block.lend(&mut common);
        match outcome {
            Ok(true) => {
                idle.push(flying.swap_remove(slot));
                fruitless = 0;
            }
            Ok(false) => fruitless += 1,
            Err(finding) if finding.kind == FindingKind::InstructionBudget => {
                // Of all that are in flight, the one that goes round most often.
                let spinning = flying.iter().map(Block::runaway);
                let most = spinning.reduce(|a, b| if b.0 > a.0 { b } else { a });
                return Err(most.map_or(finding, |(_, finding)| finding));
            }
            Err(finding) => return Err(finding),
        }
        if fruitless > flying.len() {
            window = (2 * window).min(launch.resident.max(1));
            fruitless = 0;
        }
    }
    let mut totals = Totals::new(launch);
    idle.iter().for_each(|block| totals.add(block));
    Ok(totals)
}

/// Runs blocks on several workers; `None`, with memory as it was, if there is a finding.
fn side_by_side(launch: &Launch<'_>, workers: u64) -> Option<Totals> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::new(launch));
    let logs = Mutex::new(Vec::new());
    let work = || {
        let mut block = Block::new(launch, Some(Undo::new(MOST_UNDO / workers)));
        while !stop.load(Relaxed) {
            let position = next.fetch_add(1, Relaxed);
            if position >= launch.blocks {
                break;
            }
            if block.run(position).is_err() {
                stop.store(true, Relaxed);
            }
        }
        lock(&totals).add(&block);
        lock(&logs).extend(block.into_undo());
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    if stop.into_inner() {
        // Two workers never wrote the same byte: the second one to try is a finding.
        for log in logs.into_inner().unwrap_or_else(PoisonError::into_inner) {
            log.apply(&launch.allocations);
        }
        return None;
    }
    Some(totals.into_inner().unwrap_or_else(PoisonError::into_inner))
}
