//! The launch: its parameters, limits and options.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::blocks;
use super::shadow::Shadow;
use crate::finding::{Checked, Finding, FindingKind};
use crate::memory::{Allocation, DeviceMemory};
use crate::ptx::{Entry, LoadedModule};

/// What one launch may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Threads per block.
    pub threads_per_block: u32,
    /// Block extents.
    pub block: [u32; 3],
    /// Grid extents.
    pub grid: [u32; 3],
    /// Shared memory per block without opting in, in bytes.
    pub shared_bytes: u32,
    /// Shared memory per block after opting in, in bytes.
    pub shared_bytes_optin: u32,
    /// Multiprocessors (`%nsmid`).
    pub multiprocessors: u32,
}

impl DeviceLimits {
    /// An H100.
    pub const H100: Self = Self {
        threads_per_block: 1024,
        block: [1024, 1024, 64],
        grid: [0x7fff_ffff, 65_535, 65_535],
        shared_bytes: 48 << 10,
        shared_bytes_optin: 227 << 10,
        multiprocessors: 132,
    };
}

/// What to launch with.
#[derive(Debug, Clone, Copy)]
pub struct LaunchParams<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared: u32,
    /// Dynamic shared memory the function was allowed by attribute; the default limit if `None`.
    pub max_dynamic_shared: Option<u32>,
    /// The parameter buffer, laid out as [`crate::ptx::Entry::params`] says.
    pub params: &'a [u8],
    /// The device's limits.
    pub limits: DeviceLimits,
}

/// In which order blocks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOrder {
    /// A permutation drawn from the seed.
    Permuted,
    /// By linear index.
    InOrder,
}

/// How to run a launch.
#[derive(Debug, Clone, Copy)]
pub struct LaunchOptions {
    /// Decides block order and the interleaving of warps.
    pub seed: u64,
    /// Order of blocks.
    pub order: BlockOrder,
    /// Warp instructions after which the launch is ended as a runaway.
    pub instruction_budget: u64,
    /// Worker threads; results do not depend on it.
    pub threads: usize,
    /// Blocks that are in flight together at most, where blocks wait for each other. As on a device,
    /// one that waits for a block beyond them waits for ever.
    pub resident_blocks: u64,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            order: BlockOrder::Permuted,
            instruction_budget: 1 << 34,
            threads: 2,
            resident_blocks: 1024,
        }
    }
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Blocks run.
    pub blocks: u64,
    /// Threads run.
    pub threads: u64,
    /// Instructions, one per warp.
    pub warp_instructions: u64,
    /// Instructions, one per thread that executed it.
    pub thread_instructions: u64,
    /// Bytes threads loaded from global memory.
    pub global_bytes_loaded: u64,
    /// Bytes threads stored to global memory.
    pub global_bytes_stored: u64,
    /// 32-byte sectors requested by global loads, counted per warp instruction.
    pub sectors_loaded: u64,
    /// 32-byte sectors requested by global stores, counted per warp instruction.
    pub sectors_stored: u64,
    /// Extra passes shared-memory instructions need because lanes meet in a bank.
    pub bank_conflicts: u64,
    /// Floating-point operations (an fma counts two).
    pub flops: u64,
    /// Atomic operations by threads.
    pub atomics: u64,
    /// Barriers, one per arriving warp.
    pub barriers: u64,
}

/// The outcome of a launch without a finding.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LaunchReport {
    /// Work counted.
    pub counters: Counters,
    /// Instructions executed whose result is not what the hardware computes bit for bit.
    pub approximate: Vec<String>,
    /// What was found that ends nothing: [`FindingKind::SameValue`], once per instruction.
    pub notes: Vec<Finding>,
    /// Global address ranges (start, end) that were read, ascending and apart.
    #[serde(skip)]
    pub reads: Vec<(u64, u64)>,
    /// Global address ranges (start, end) that were written, ascending and apart.
    #[serde(skip)]
    pub writes: Vec<(u64, u64)>,
}

impl Counters {
    /// Adds another launch's (or block's) counts.
    pub fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.threads += other.threads;
        self.warp_instructions += other.warp_instructions;
        self.thread_instructions += other.thread_instructions;
        self.global_bytes_loaded += other.global_bytes_loaded;
        self.global_bytes_stored += other.global_bytes_stored;
        self.sectors_loaded += other.sectors_loaded;
        self.sectors_stored += other.sectors_stored;
        self.bank_conflicts += other.bank_conflicts;
        self.flops += other.flops;
        self.atomics += other.atomics;
        self.barriers += other.barriers;
    }
}

/// What all blocks of a launch share.
pub(crate) struct Launch<'a> {
    pub(crate) module: &'a LoadedModule,
    pub(crate) entry: &'a Entry,
    pub(crate) memory: &'a DeviceMemory,
    pub(crate) allocations: Vec<Arc<Allocation>>,
    pub(crate) params: &'a LaunchParams<'a>,
    /// Who touched which byte: for races between blocks, and for the order against other work.
    pub(crate) shadow: Shadow,
    pub(crate) threads_per_block: u32,
    pub(crate) seed: u64,
    pub(crate) order: BlockOrder,
    pub(crate) blocks: u64,
    pub(crate) resident: u64,
    /// Whether blocks may hear of each other.
    pub(crate) communicates: bool,
    /// Whether fences, or atomics that act as one, may order memory.
    pub(crate) fences: bool,
    pub(crate) budget: u64,
    spent: AtomicU64,
}

impl Launch<'_> {
    /// Takes instructions from the budget; `false` when it is gone.
    pub(crate) fn spend(&self, instructions: u64) -> bool {
        self.spent.fetch_add(instructions, Relaxed) + instructions <= self.budget
    }

    /// The block that comes at a position in the launch's order.
    pub(crate) fn block_at(&self, position: u64) -> u64 {
        match self.order {
            BlockOrder::Permuted => permuted(position, self.blocks, self.seed),
            BlockOrder::InOrder => position,
        }
    }

    /// Forgets what blocks have done, before they run again.
    pub(crate) fn start_over(&mut self) {
        self.shadow = Shadow::new(self.allocations.len());
        self.spent = AtomicU64::new(0);
    }
}

/// A seeded bijection of `0..count`: a Feistel network on the next even power of two, walked until
/// it lands inside.
fn permuted(index: u64, count: u64, seed: u64) -> u64 {
    let half = (64 - count.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..4u64 {
            let mixed = (right ^ seed.rotate_left(round as u32 * 16) ^ round)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (left, right) = (right, left ^ mixed >> 40 & mask);
        }
        value = left << half | right;
        if value < count {
            return value;
        }
    }
}

fn check(entry: &Entry, params: &LaunchParams<'_>) -> Checked<()> {
    let limits = &params.limits;
    let over = |message: String| {
        let mut finding = Finding::new(FindingKind::LimitExceeded, message);
        finding.kernel = Some(entry.name.clone());
        Err(finding)
    };
    for (axis, name) in ["x", "y", "z"].iter().enumerate() {
        let (grid, block) = (params.grid[axis], params.block[axis]);
        if grid == 0 || grid > limits.grid[axis] {
            return over(format!("grid.{name} is {grid}, allowed is 1..={}", limits.grid[axis]));
        }
        if block == 0 || block > limits.block[axis] {
            return over(format!("block.{name} is {block}, allowed is 1..={}", limits.block[axis]));
        }
    }
    let threads: u64 = params.block.iter().map(|extent| u64::from(*extent)).product();
    if threads > u64::from(limits.threads_per_block) {
        let most = limits.threads_per_block;
        return over(format!("a block of {threads} threads, the device allows {most}"));
    }
    if let Some(most) = entry.max_threads
        && threads > u64::from(most)
    {
        return over(format!("a block of {threads} threads, the kernel was built for {most}"));
    }
    if let Some(required) = entry.required_block
        && required != params.block
    {
        return over(format!("block {:?}, the kernel requires {required:?}", params.block));
    }
    let most = params
        .max_dynamic_shared
        .unwrap_or_else(|| limits.shared_bytes.saturating_sub(entry.shared_bytes));
    let total = u64::from(params.dynamic_shared) + u64::from(entry.shared_bytes);
    if params.dynamic_shared > most || total > u64::from(limits.shared_bytes_optin) {
        return over(format!(
            "{} bytes of dynamic and {} of static shared memory; allowed are {most} dynamic and \
             {} in all",
            params.dynamic_shared, entry.shared_bytes, limits.shared_bytes_optin
        ));
    }
    let blocks = params.grid.iter().map(|extent| u64::from(*extent)).product::<u64>();
    if blocks > 1 << 27 {
        return over(format!("a grid of {blocks} blocks is more than the emulator runs"));
    }
    if params.params.len() != entry.param_bytes as usize {
        let message = format!(
            "the kernel takes {} bytes of parameters, the launch passes {}",
            entry.param_bytes,
            params.params.len()
        );
        let mut finding = Finding::new(FindingKind::InvalidLaunch, message);
        finding.kernel = Some(entry.name.clone());
        return Err(finding);
    }
    Ok(())
}

/// Runs `entry` over the grid.
///
/// # Errors
/// The first [`crate::Finding`], by block order; memory then holds what was written before it. It
/// depends on the seed, not on the number of worker threads.
pub fn launch(
    module: &LoadedModule,
    entry: &str,
    memory: &DeviceMemory,
    params: &LaunchParams<'_>,
    options: &LaunchOptions,
) -> Checked<LaunchReport> {
    let Some(entry) = module.module().entry(entry) else {
        let message = format!("the module has no entry `{entry}`");
        return Err(Finding::new(FindingKind::InvalidLaunch, message));
    };
    check(entry, params)?;
    let allocations = memory.snapshot();
    let shadow = Shadow::new(allocations.len());
    let mut launch = Launch {
        module,
        entry,
        memory,
        allocations,
        params,
        shadow,
        threads_per_block: params.block.iter().product(),
        seed: options.seed,
        order: options.order,
        blocks: params.grid.iter().map(|extent| u64::from(*extent)).product(),
        resident: options.resident_blocks,
        communicates: entry.code.communicates(),
        fences: entry.code.has_fences(),
        budget: options.instruction_budget,
        spent: AtomicU64::new(0),
    };
    let blocks::Totals { counters, approximate: used, notes } =
        blocks::run(&mut launch, options.threads)?;
    let names = entry.code.approximate.iter().zip(used);
    let approximate = names.filter(|(_, used)| *used).map(|(name, _)| name.clone()).collect();
    let (reads, writes) =
        launch.shadow.ranges(launch.allocations.iter().map(|found| (found.base, found.size)));
    let notes = notes.into_values().map(|(_, finding)| *finding).collect();
    Ok(LaunchReport { counters, approximate, notes, reads, writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_orders_are_permutations_that_depend_on_the_seed() {
        for count in [1u64, 2, 3, 7, 64, 1000] {
            let mut seen: Vec<u64> = (0..count).map(|i| permuted(i, count, 5)).collect();
            let order = seen.clone();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
            if count > 60 {
                assert_ne!(order, (0..count).map(|i| permuted(i, count, 6)).collect::<Vec<_>>());
            }
        }
    }
}
