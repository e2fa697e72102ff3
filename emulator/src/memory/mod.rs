//! Device global memory: allocations with a byte-precise record of what was written.
//!
//! Addresses are handed out once and never again, with a red zone after every allocation, so a stale
//! or stray address cannot land in somebody else's data unnoticed.

mod allocation;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use allocation::{Allocation, Saved};

use crate::finding::{Checked, Finding, FindingKind};

/// First address handed out; everything below is null-pointer territory.
const FIRST_ADDRESS: u64 = 0x0000_1000_0000_0000;
/// What `cuMemAlloc` guarantees is 256; a multiple keeps every allocation's sectors its own.
const ALIGNMENT: u64 = 512;
/// Least number of never-allocated bytes behind each allocation. There are at least as many as the
/// allocation has, so that mixed-up strides do not land in the next one.
const RED_ZONE: u64 = 1 << 20;

/// There is not enough device memory left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of device memory: {requested} bytes requested, {used} of {limit} in use")]
pub struct OutOfMemory {
    /// Bytes requested.
    pub requested: u64,
    /// Bytes in use at the time.
    pub used: u64,
    /// The device's limit in bytes.
    pub limit: u64,
}

/// Whether a read may touch bytes nothing has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPolicy {
    /// Unwritten bytes are a finding.
    RequireInitialised,
    /// Unwritten bytes read as `0xff`.
    AllowUninitialised,
}

/// What is known about one allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocationInfo {
    /// First address.
    pub address: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Label given at allocation.
    pub label: String,
    /// Running number, in order of allocation.
    pub serial: u64,
}

impl fmt::Display for AllocationInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} `{}`, {} bytes at 0x{:x}", self.serial, self.label, self.bytes, self.address)
    }
}

/// Locks, ignoring poison: every critical section here leaves its data consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Table {
    limit: u64,
    used: u64,
    peak: u64,
    next_address: u64,
    next_serial: u64,
    live: BTreeMap<u64, Arc<Allocation>>,
    freed: BTreeMap<u64, AllocationInfo>,
}

/// The global memory of one device, shared between threads.
#[derive(Debug)]
pub struct DeviceMemory {
    table: Mutex<Table>,
}

impl DeviceMemory {
    /// An empty memory of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            table: Mutex::new(Table {
                limit,
                used: 0,
                peak: 0,
                next_address: FIRST_ADDRESS,
                next_serial: 0,
                live: BTreeMap::new(),
                freed: BTreeMap::new(),
            }),
        }
    }

    /// Allocates `bytes`, none of them written, and returns the address (a multiple of 512).
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit (or this process's memory) would be exceeded.
    pub fn alloc(&self, bytes: u64, label: &str) -> Result<u64, OutOfMemory> {
        self.allocate(bytes, label, false)
    }

    /// Allocates memory that kernels may only read (`.const` variables).
    ///
    /// # Errors
    /// As [`DeviceMemory::alloc`].
    pub fn alloc_read_only(&self, bytes: u64, label: &str) -> Result<u64, OutOfMemory> {
        self.allocate(bytes, label, true)
    }

    fn allocate(&self, bytes: u64, label: &str, read_only: bool) -> Result<u64, OutOfMemory> {
        let mut table = lock(&self.table);
        let error = OutOfMemory { requested: bytes, used: table.used, limit: table.limit };
        if bytes > table.limit - table.used {
            return Err(error);
        }
        let base = table.next_address;
        let serial = table.next_serial;
        let allocation = Allocation::new(base, bytes, serial, label, read_only).ok_or(error)?;
        table.next_serial += 1;
        table.next_address = (base + bytes + bytes.max(RED_ZONE)).next_multiple_of(ALIGNMENT);
        table.used += bytes;
        table.peak = table.peak.max(table.used);
        table.live.insert(base, Arc::new(allocation));
        Ok(base)
    }

    /// Frees the allocation that starts at `address`; its range is remembered for diagnosis.
    ///
    /// # Errors
    /// [`FindingKind::DoubleFree`] for an address freed before, [`FindingKind::InvalidFree`] for one
    /// that no allocation starts at.
    pub fn free(&self, address: u64) -> Checked<()> {
        let mut table = lock(&self.table);
        if let Some(allocation) = table.live.remove(&address) {
            table.used -= allocation.size;
            table.freed.insert(address, allocation.info());
            return Ok(());
        }
        let finding = if let Some(info) = table.freed.get(&address) {
            Finding::new(FindingKind::DoubleFree, format!("0x{address:x} was freed before"))
                .in_allocation(info.to_string())
        } else {
            let description = describe(&table, address).1;
            Finding::new(
                FindingKind::InvalidFree,
                format!("0x{address:x} is not the start of an allocation: {description}"),
            )
            .in_allocation(description)
        };
        Err(finding.at(address))
    }

    /// Copies host bytes to the device.
    ///
    /// # Errors
    /// A finding when the range does not lie in one live allocation.
    pub fn copy_in(&self, address: u64, data: &[u8]) -> Checked<()> {
        if data.is_empty() {
            return Ok(());
        }
        let allocation = self.find(address, data.len() as u64, "copy to the device")?;
        allocation.write(address - allocation.base, data);
        Ok(())
    }

    /// Copies device bytes to the host.
    ///
    /// # Errors
    /// A finding when the range does not lie in one live allocation, or, under
    /// [`ReadPolicy::RequireInitialised`], when a byte of it was never written.
    pub fn copy_out(&self, address: u64, out: &mut [u8], policy: ReadPolicy) -> Checked<()> {
        if out.is_empty() {
            return Ok(());
        }
        let allocation = self.find(address, out.len() as u64, "copy from the device")?;
        let unwritten = allocation.read(address - allocation.base, out);
        match unwritten {
            Some(offset) if policy == ReadPolicy::RequireInitialised => {
                Err(unwritten_finding(&allocation, offset, "copy from the device"))
            }
            _ => Ok(()),
        }
    }

    /// Copies within the device; unwritten bytes stay unwritten in the destination.
    ///
    /// # Errors
    /// A finding when either range does not lie in one live allocation, when the ranges overlap, or,
    /// under [`ReadPolicy::RequireInitialised`], when a source byte was never written.
    pub fn copy_within(
        &self,
        destination: u64,
        source: u64,
        bytes: u64,
        policy: ReadPolicy,
    ) -> Checked<()> {
        if bytes == 0 {
            return Ok(());
        }
        let from = self.find(source, bytes, "device copy, source")?;
        let to = self.find(destination, bytes, "device copy, destination")?;
        if source < destination + bytes && destination < source + bytes {
            return Err(Finding::new(
                FindingKind::InvalidInstruction,
                format!("device copy of {bytes} bytes with overlapping ranges"),
            )
            .at(destination)
            .in_allocation(to.info().to_string()));
        }
        let mut buffer = vec![0u8; usize::try_from(bytes.min(1 << 16)).unwrap_or(1 << 16)];
        let mut done = 0u64;
        while done < bytes {
            let count = buffer.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
            let (offset_from, offset_to) =
                (source - from.base + done, destination - to.base + done);
            let unwritten = from.read(offset_from, &mut buffer[..count]);
            to.write(offset_to, &buffer[..count]);
            if let Some(offset) = unwritten {
                if policy == ReadPolicy::RequireInitialised {
                    return Err(unwritten_finding(&from, offset, "device copy"));
                }
                for i in 0..count as u64 {
                    if !from.is_written(offset_from + i) {
                        to.forget(offset_to + i);
                    }
                }
            }
            done += count as u64;
        }
        Ok(())
    }

    /// Writes `count` copies of the low `width` (1, 2 or 4) bytes of `pattern`.
    ///
    /// # Errors
    /// A finding when the range does not lie in one live allocation or `address` is not a multiple
    /// of `width`.
    pub fn fill(&self, address: u64, pattern: u32, width: u32, count: u64) -> Checked<()> {
        if count == 0 {
            return Ok(());
        }
        if !matches!(width, 1 | 2 | 4) || !address.is_multiple_of(u64::from(width)) {
            return Err(Finding::new(
                FindingKind::Misaligned,
                format!("fill of {width}-byte elements at 0x{address:x}"),
            )
            .at(address));
        }
        let bytes = count.saturating_mul(u64::from(width));
        let allocation = self.find(address, bytes, "fill")?;
        allocation.fill(address - allocation.base, pattern, width, bytes);
        Ok(())
    }

    /// The device's limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        lock(&self.table).limit
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        lock(&self.table).used
    }

    /// The most bytes that were in use at one time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        lock(&self.table).peak
    }

    /// Number of live allocations.
    #[must_use]
    pub fn live(&self) -> usize {
        lock(&self.table).live.len()
    }

    /// The live allocations, by address.
    #[must_use]
    pub fn allocations(&self) -> Vec<AllocationInfo> {
        lock(&self.table).live.values().map(|allocation| allocation.info()).collect()
    }

    /// The live allocation that contains `address`, if any.
    #[must_use]
    pub fn allocation_at(&self, address: u64) -> Option<AllocationInfo> {
        let table = lock(&self.table);
        let (_, allocation) = table.live.range(..=address).next_back()?;
        (address - allocation.base < allocation.size).then(|| allocation.info())
    }

    /// One [`FindingKind::Leak`] per live allocation whose label does not start with `module `.
    #[must_use]
    pub fn leaks(&self) -> Vec<Finding> {
        let leak = |info: AllocationInfo| {
            let message = format!("{} bytes were never freed", info.bytes);
            let finding = Finding::new(FindingKind::Leak, message);
            *finding.at(info.address).in_allocation(info.to_string())
        };
        let live = self.allocations();
        live.into_iter().filter(|info| !info.label.starts_with("module ")).map(leak).collect()
    }

    /// Says where `address` lies relative to the allocations, live and freed.
    #[must_use]
    pub fn describe(&self, address: u64) -> String {
        describe(&lock(&self.table), address).1
    }

    /// The live allocations as the interpreter uses them, by address.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        lock(&self.table).live.values().cloned().collect()
    }

    /// The finding for an access that no live allocation contains.
    pub(crate) fn stray(&self, address: u64, bytes: u64, what: &str) -> Box<Finding> {
        let (kind, description) = describe(&lock(&self.table), address);
        let message = match kind {
            FindingKind::UseAfterFree => format!("{what} of {bytes} bytes touches freed memory"),
            _ => format!("{what} of {bytes} bytes outside every allocation: {description}"),
        };
        Finding::new(kind, message).at(address).in_allocation(description)
    }

    fn find(&self, address: u64, bytes: u64, what: &str) -> Checked<Arc<Allocation>> {
        let found = {
            let table = lock(&self.table);
            let candidate = table.live.range(..=address).next_back();
            candidate.map(|(_, allocation)| Arc::clone(allocation))
        };
        if let Some(allocation) = found {
            if allocation.contains(address, bytes) {
                return Ok(allocation);
            }
            if address - allocation.base < allocation.size {
                let beyond = address - allocation.base + bytes - allocation.size;
                return Err(Finding::new(
                    FindingKind::OutOfBounds,
                    format!("{what} of {bytes} bytes ends {beyond} bytes past the allocation"),
                )
                .at(address)
                .in_allocation(allocation.info().to_string()));
            }
        }
        Err(self.stray(address, bytes, what))
    }
}

/// The kind of trouble an access at `address` is, and the nearest allocation in words.
fn describe(table: &Table, address: u64) -> (FindingKind, String) {
    if let Some((_, info)) = table.freed.range(..=address).next_back()
        && address - info.address < info.bytes.max(1)
    {
        return (FindingKind::UseAfterFree, format!("freed allocation {info}"));
    }
    if address < FIRST_ADDRESS / 2 {
        return (FindingKind::OutOfBounds, format!("0x{address:x} is no device address"));
    }
    let below = table.live.range(..=address).next_back().map(|(_, allocation)| allocation.info());
    let above = table.live.range(address..).next().map(|(_, allocation)| allocation.info());
    let gap = |info: &AllocationInfo| address.saturating_sub(info.address + info.bytes);
    let text = match (below, above) {
        (Some(info), _) if address - info.address < info.bytes => {
            format!("{} bytes into {info}", address - info.address)
        }
        (Some(info), above)
            if above.as_ref().is_none_or(|up| gap(&info) <= up.address - address) =>
        {
            format!("{} bytes past the end of {info}", gap(&info))
        }
        (_, Some(info)) => format!("{} bytes before {info}", info.address - address),
        _ => "there is no live allocation".to_owned(),
    };
    (FindingKind::OutOfBounds, text)
}

fn unwritten_finding(allocation: &Allocation, offset: u64, what: &str) -> Box<Finding> {
    Finding::new(
        FindingKind::Uninitialised,
        format!("{what} reads byte {offset} of an allocation, which nothing has written"),
    )
    .at(allocation.base + offset)
    .in_allocation(allocation.info().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_unwritten_ones_are_a_finding() {
        let memory = DeviceMemory::new(1 << 20);
        let a = memory.alloc(13, "a").unwrap();
        memory.copy_in(a + 1, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
        let mut out = [0u8; 7];
        memory.copy_out(a + 1, &mut out, ReadPolicy::RequireInitialised).unwrap();
        assert_eq!(out, [1, 2, 3, 4, 5, 6, 7]);
        let mut out = [0u8; 9];
        memory.copy_out(a, &mut out, ReadPolicy::AllowUninitialised).unwrap();
        assert_eq!(out, [0xff, 1, 2, 3, 4, 5, 6, 7, 0xff]);
        let finding = memory.copy_out(a, &mut out, ReadPolicy::RequireInitialised).unwrap_err();
        assert_eq!((finding.kind, finding.address), (FindingKind::Uninitialised, Some(a)));
    }

    #[test]
    fn ranges_are_checked_against_the_allocation() {
        let memory = DeviceMemory::new(1 << 20);
        let a = memory.alloc(100, "first").unwrap();
        let b = memory.alloc(100, "second").unwrap();
        assert!(b - a >= 100 + RED_ZONE);
        let finding = memory.copy_in(a + 96, &[0; 8]).unwrap_err();
        assert_eq!(finding.kind, FindingKind::OutOfBounds);
        assert!(finding.message.contains("4 bytes past"), "{finding}");
        let finding = memory.copy_in(a + 108, &[0; 8]).unwrap_err();
        assert!(finding.message.contains("8 bytes past the end of #0 `first`"), "{finding}");
        let finding = memory.copy_in(b - 16, &[0; 8]).unwrap_err();
        assert!(finding.message.contains("16 bytes before #1 `second`"), "{finding}");
    }

    #[test]
    fn frees_are_checked_and_remembered() {
        let memory = DeviceMemory::new(1000);
        let a = memory.alloc(600, "a").unwrap();
        assert_eq!(memory.alloc(600, "b").unwrap_err().used, 600);
        assert_eq!(memory.free(a + 4).unwrap_err().kind, FindingKind::InvalidFree);
        assert_eq!(memory.leaks().len(), 1);
        memory.free(a).unwrap();
        assert_eq!(memory.free(a).unwrap_err().kind, FindingKind::DoubleFree);
        assert_eq!(memory.copy_in(a + 8, &[1]).unwrap_err().kind, FindingKind::UseAfterFree);
        let b = memory.alloc(600, "b").unwrap();
        assert_ne!(a, b);
        assert_eq!((memory.used(), memory.live(), memory.peak()), (600, 1, 600));
    }

    #[test]
    fn fills_and_device_copies_keep_the_record_of_writes() {
        let memory = DeviceMemory::new(1 << 20);
        let a = memory.alloc(64, "a").unwrap();
        let b = memory.alloc(64, "b").unwrap();
        memory.fill(a + 2, 0x1234, 2, 3).unwrap();
        assert_eq!(memory.fill(a + 1, 0, 4, 1).unwrap_err().kind, FindingKind::Misaligned);
        memory.fill(b, 0, 1, 64).unwrap();
        memory.copy_within(b, a, 10, ReadPolicy::AllowUninitialised).unwrap();
        let mut out = [0u8; 10];
        memory.copy_out(b, &mut out, ReadPolicy::AllowUninitialised).unwrap();
        assert_eq!(out, [0xff, 0xff, 0x34, 0x12, 0x34, 0x12, 0x34, 0x12, 0xff, 0xff]);
        let finding = memory.copy_out(b, &mut out, ReadPolicy::RequireInitialised).unwrap_err();
        assert_eq!(finding.address, Some(b));
        assert!(memory.copy_within(a + 4, a, 8, ReadPolicy::AllowUninitialised).is_err());
    }

    #[test]
    fn every_alignment_and_length_copies_and_fills_exactly() {
        let memory = DeviceMemory::new(1 << 20);
        let data: Vec<u8> = (1..=32).collect();
        for start in 0..6u64 {
            for len in 0..14usize {
                let a = memory.alloc(32, "a").unwrap();
                memory.copy_in(a + start, &data[..len]).unwrap();
                let mut out = [0u8; 32];
                memory.copy_out(a, &mut out, ReadPolicy::AllowUninitialised).unwrap();
                for (at, byte) in out.iter().enumerate() {
                    let inside = (start as usize..start as usize + len).contains(&at);
                    assert_eq!(*byte, if inside { data[at - start as usize] } else { 0xff });
                }
                let mut part = vec![0u8; len];
                memory.copy_out(a + start, &mut part, ReadPolicy::RequireInitialised).unwrap();
                assert_eq!(part, data[..len]);
                let b = memory.alloc(64, "b").unwrap();
                for width in [1u64, 2, 4].into_iter().filter(|width| start % width == 0) {
                    memory.fill(b, 0, 4, 16).unwrap();
                    memory.fill(b + start, 0x0403_0201, width as u32, len as u64).unwrap();
                    let mut out = [0u8; 64];
                    memory.copy_out(b, &mut out, ReadPolicy::RequireInitialised).unwrap();
                    for (at, byte) in out.iter().enumerate() {
                        let from = (at as u64).wrapping_sub(start);
                        let inside = from < width * len as u64;
                        assert_eq!(*byte, if inside { (from % width + 1) as u8 } else { 0 });
                    }
                }
            }
        }
    }

    #[test]
    fn narrow_updates_leave_their_neighbours_alone() {
        let memory = DeviceMemory::new(1 << 20);
        let a = memory.alloc(16, "a").unwrap();
        memory.fill(a, 0x0102_0304, 4, 4).unwrap();
        let allocation = &memory.snapshot()[0];
        assert_eq!(allocation.update(2, 2, |old| old + 1), (0x0102, 3));
        assert_eq!(allocation.update(8, 8, |old| !old).0, 0x0102_0304_0102_0304);
        assert_eq!(allocation.load(0, 4), (0x0103_0304, 0xf));
        assert_eq!(allocation.load(8, 8), (!0x0102_0304_0102_0304, 0xff));
    }
}
