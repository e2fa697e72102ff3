//! Costs: what the program asked the device to do, in total and per kernel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the launches of one kernel, or of all kernels, cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelCounters {
    /// Launches that ran, graph nodes included.
    pub launches: u64,
    /// Blocks of those launches.
    pub blocks: u64,
    /// Threads of those launches.
    pub threads: u64,
    /// Thread-instructions executed.
    pub instructions: u64,
    /// Bytes that loads from global memory asked for.
    pub global_load_bytes: u64,
    /// Bytes that stores to global memory asked for.
    pub global_store_bytes: u64,
    /// 32-byte sectors of those loads, counted per warp instruction.
    pub global_load_sectors: u64,
    /// 32-byte sectors of those stores, counted per warp instruction.
    pub global_store_sectors: u64,
    /// Extra passes over shared memory that bank conflicts cost.
    pub bank_conflicts: u64,
    /// Floating-point operations; a fused multiply-add is two.
    pub flops: u64,
    /// Atomic operations by threads.
    pub atomics: u64,
    /// Barriers of a block, one per arriving warp.
    pub barriers: u64,
}

impl KernelCounters {
    /// Adds the costs of other launches.
    pub fn add(&mut self, other: &KernelCounters) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        self.threads += other.threads;
        self.instructions += other.instructions;
        self.global_load_bytes += other.global_load_bytes;
        self.global_store_bytes += other.global_store_bytes;
        self.global_load_sectors += other.global_load_sectors;
        self.global_store_sectors += other.global_store_sectors;
        self.bank_conflicts += other.bank_conflicts;
        self.flops += other.flops;
        self.atomics += other.atomics;
        self.barriers += other.barriers;
    }
}

/// Copies in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Number of copies.
    pub calls: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Everything the emulator counts, since it was loaded or reset.
///
/// Work counts when it runs, not when it is queued: synchronise before taking a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// All kernels together.
    pub total: KernelCounters,
    /// Each kernel by its entry name.
    pub kernels: BTreeMap<String, KernelCounters>,
    /// cuBLAS and cublasLt calls that enqueued a product.
    pub blas_calls: u64,
    /// Single matrix products in those calls: a batched call counts its batch.
    pub gemms: u64,
    /// Floating-point operations of those products, 2·m·n·k each.
    pub gemm_flops: u64,
    /// Device allocations, stream-ordered ones included.
    pub allocations: u64,
    /// Bytes of those allocations.
    pub allocated_bytes: u64,
    /// Device frees, stream-ordered ones included.
    pub frees: u64,
    /// Bytes allocated now.
    pub live_bytes: u64,
    /// The most bytes that were allocated at one time.
    pub peak_bytes: u64,
    /// Pinned host allocations.
    pub host_allocations: u64,
    /// Calls that made the host wait: context, stream and event synchronisation.
    pub synchronisations: u64,
    /// Copies that made the host wait.
    pub blocking_copies: u64,
    /// Host to device.
    pub host_to_device: Transfer,
    /// Device to host.
    pub device_to_host: Transfer,
    /// Device to device.
    pub device_to_device: Transfer,
    /// Memsets.
    pub memsets: Transfer,
    /// `cuGraphLaunch` calls.
    pub graph_launches: u64,
    /// Launch calls made by the host, whether queued or captured; graph replays add none.
    pub launch_calls: u64,
}
