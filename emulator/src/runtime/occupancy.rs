//! Occupancy: how many blocks fit on a multiprocessor.

use std::sync::Arc;

use super::{
    Runtime,
    module::registers,
    status::{Outcome, Status},
};
use crate::ptx::Entry;

impl Runtime {
    /// Resident blocks of one multiprocessor, limited by threads, blocks, shared memory and the
    /// registers that PTX declares (an upper bound, so that the answer errs low).
    pub(crate) fn resident_blocks(
        &self,
        device: usize,
        entry: &Entry,
        threads: u32,
        dynamic: u32,
    ) -> u32 {
        let profile = &self.devices[device].profile;
        let warps = threads.div_ceil(32).max(1);
        let by_threads = profile.threads_per_multiprocessor / (warps * 32);
        // Registers are handed out per warp in units of 256.
        let by_registers = 65_536 / (warps * (registers(entry) * 32).next_multiple_of(256));
        // Each block costs 1 KiB of shared memory beyond its own, on capability 8.0 and later.
        let shared = entry.shared_bytes + dynamic + 1024;
        let by_shared = profile.shared_per_multiprocessor / shared;
        by_threads.min(by_registers).min(by_shared).min(profile.blocks_per_multiprocessor)
    }

    fn occupancy_facts(&mut self, function: u64) -> Outcome<(usize, Arc<Entry>)> {
        let found = self.function(function, "cuOccupancy*")?;
        let (context, entry) = (found.context, Arc::clone(&found.kernel.entry));
        let device = self.contexts.get(&context).ok_or(Status::CONTEXT_IS_DESTROYED)?.device;
        Ok((device, entry))
    }

    /// `cuOccupancyMaxActiveBlocksPerMultiprocessor`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for a block size outside 1 to 1024.
    pub fn occupancy(&mut self, function: u64, block: i32, dynamic: u64) -> Outcome<i32> {
        let (device, entry) = self.occupancy_facts(function)?;
        let threads = u32::try_from(block)
            .ok()
            .filter(|n| (1..=1024).contains(n))
            .ok_or(Status::INVALID_VALUE)?;
        let dynamic = u32::try_from(dynamic).map_err(|_| Status::INVALID_VALUE)?;
        Ok(self.resident_blocks(device, &entry, threads, dynamic) as i32)
    }

    /// `cuOccupancyMaxPotentialBlockSize`: smallest full grid and best block size.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn best_block(
        &mut self,
        function: u64,
        dynamic: impl Fn(i32) -> u64,
        limit: i32,
    ) -> Outcome<(i32, i32)> {
        let (device, entry) = self.occupancy_facts(function)?;
        let most = entry.max_threads.unwrap_or(1024).min(1024);
        let most = if limit > 0 { most.min(limit as u32) } else { most };
        let mut best = (0, 0, 0);
        for threads in (1..=(most / 32).max(1)).rev().map(|warps| 32 * warps) {
            let shared =
                u32::try_from(dynamic(threads as i32)).map_err(|_| Status::INVALID_VALUE)?;
            let blocks = self.resident_blocks(device, &entry, threads, shared);
            if blocks * threads > best.0 {
                best = (blocks * threads, threads, blocks);
            }
        }
        let grid = best.2 * self.devices[device].profile.multiprocessors;
        Ok((grid as i32, best.1 as i32))
    }

    /// `cuOccupancyAvailableDynamicSMemPerBlock`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for no blocks.
    pub fn available_shared(&mut self, function: u64, blocks: i32) -> Outcome<u64> {
        let (device, entry) = self.occupancy_facts(function)?;
        let blocks = u32::try_from(blocks).ok().filter(|n| *n > 0).ok_or(Status::INVALID_VALUE)?;
        let profile = &self.devices[device].profile;
        let share =
            (profile.shared_per_multiprocessor / blocks).saturating_sub(1024 + entry.shared_bytes);
        Ok(u64::from(share.min(profile.shared_per_block_optin.saturating_sub(entry.shared_bytes))))
    }
}
