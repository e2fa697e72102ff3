//! Runs the blocks of a launch so that the seed alone decides what happens, on any number of workers.
//!
//! Blocks that cannot hear of each other run side by side. Then nothing depends on their timing,
//! unless something is found: then memory goes back to what it was, and the blocks run again, one
//! after the other in the seed's order, for the finding that belongs to the seed. Blocks that may
//! hear of each other, through atomics on global memory, always run in that order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::block::Block;
use super::launch::{Counters, Launch};
use super::undo::Undo;
use crate::finding::Checked;
use crate::memory::lock;

/// Threads of a launch per worker: below, starting a worker costs more than it brings.
const WORTH_A_WORKER: u64 = 4096;
/// Bytes of old contents that workers keep between them, before they give up running side by side.
const MOST_UNDO: u64 = 1 << 29;

/// Counters, and which approximate instructions ran.
pub(crate) type Totals = (Counters, Vec<bool>);

/// Runs all blocks.
pub(crate) fn run(launch: &mut Launch<'_>, threads: usize) -> Checked<Totals> {
    let count = launch.blocks.saturating_mul(u64::from(launch.threads_per_block));
    let workers = (threads.max(1) as u64).min(launch.blocks).min(count / WORTH_A_WORKER + 1);
    if workers > 1 && !launch.entry.code.communicates() {
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
        block.run(launch.block_at(position))?;
    }
    let (counters, approximate) = block.totals();
    Ok((counters, approximate.to_vec()))
}

/// Runs blocks on several workers; `None`, with memory as it was, if there is a finding.
fn side_by_side(launch: &Launch<'_>, workers: u64) -> Option<Totals> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let totals =
        Mutex::new((Counters::default(), vec![false; launch.entry.code.approximate.len()]));
    let logs = Mutex::new(Vec::new());
    let work = || {
        let mut block = Block::new(launch, Some(Undo::new(MOST_UNDO / workers)));
        while !stop.load(Relaxed) {
            let position = next.fetch_add(1, Relaxed);
            if position >= launch.blocks {
                break;
            }
            if block.run(launch.block_at(position)).is_err() {
                stop.store(true, Relaxed);
            }
        }
        let (counters, approximate) = block.totals();
        let mut totals = lock(&totals);
        totals.0.add(&counters);
        for (to, from) in totals.1.iter_mut().zip(approximate) {
            *to |= from;
        }
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
