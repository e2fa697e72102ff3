//! Device memory as the runtime sees it: the interpreter's memory, with faults as findings.
//!
//! One memory serves all devices, so that an address means one thing in the whole process.

use crate::{
    finding::{Finding, FindingKind},
    memory::{DeviceMemory, ReadPolicy},
};

use super::report::Class;

/// What is wrong with an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    pub(crate) message: String,
}

/// The class of the Rust API that a finding of the interpreter belongs to.
pub(crate) fn class_of(kind: FindingKind) -> Class {
    match kind {
        FindingKind::OutOfBounds | FindingKind::ReadOnlyWrite => Class::OutOfBounds,
        FindingKind::Misaligned => Class::Misaligned,
        FindingKind::UseAfterFree => Class::UseAfterFree,
        FindingKind::DoubleFree => Class::DoubleFree,
        FindingKind::InvalidFree => Class::InvalidFree,
        FindingKind::Uninitialised
        | FindingKind::UndefinedAddress
        | FindingKind::UndefinedPredicate
        | FindingKind::UndefinedStore => Class::Uninitialized,
        FindingKind::SharedRace | FindingKind::GlobalRace => Class::Race,
        FindingKind::SameValue => Class::SameValue,
        FindingKind::BarrierDivergence | FindingKind::WarpMask => Class::Synchronization,
        FindingKind::LimitExceeded => Class::LaunchLimit,
        FindingKind::InvalidLaunch => Class::InvalidArgument,
        FindingKind::Deadlock | FindingKind::InstructionBudget => Class::Progress,
        FindingKind::Leak => Class::Leak,
        _ => Class::Kernel,
    }
}

impl From<Box<Finding>> for Fault {
    fn from(finding: Box<Finding>) -> Self {
        let mut message = finding.message;
        if let Some(allocation) = finding.allocation {
            message = format!("{message} ({allocation})");
        }
        Fault { class: class_of(finding.kind), message }
    }
}

/// Where device addresses lie: a range in which nothing of the process is ever mapped.
const DEVICE: std::ops::Range<u64> = 0x1000_0000_0000..0x5000_0000_0000;

/// Device memory of all devices.
#[derive(Debug)]
pub(crate) struct Store {
    memory: DeviceMemory,
}

impl Default for Store {
    fn default() -> Self {
        Store { memory: DeviceMemory::new(u64::MAX) }
    }
}

impl Store {
    pub(crate) fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    pub(crate) fn is_device_address(address: u64) -> bool {
        DEVICE.contains(&address)
    }

    pub(crate) fn allocate(&mut self, bytes: u64, label: &str) -> Option<u64> {
        self.memory.alloc(bytes, label).ok()
    }

    pub(crate) fn release(&mut self, address: u64) {
        // The caller's own table says that the allocation is live, so this cannot fail.
        let _ = self.memory.free(address);
    }

    /// Whether an allocation that is now freed started at `address`.
    pub(crate) fn was_freed(&self, address: u64) -> bool {
        self.find(address).is_none()
            && self.memory.describe(address).starts_with("freed allocation")
    }

    /// Base and size of the live allocation that holds `address`.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, u64)> {
        self.memory.allocation_at(address).map(|info| (info.address, info.bytes))
    }

    /// Checks that `len` bytes at `address` lie in one live allocation, and returns its base.
    pub(crate) fn check(&self, address: u64, len: u64) -> Result<u64, Fault> {
        if let Some((base, size)) = self.find(address) {
            let past = (address - base).saturating_add(len);
            if past <= size {
                return Ok(base);
            }
            return Err(Fault {
                class: Class::OutOfBounds,
                message: format!(
                    "{len} bytes at {address:#x} end {} bytes past the allocation of {size} bytes at {base:#x}",
                    past - size
                ),
            });
        }
        let place = self.memory.describe(address);
        let class = if place.starts_with("freed allocation") {
            Class::UseAfterFree
        } else {
            Class::OutOfBounds
        };
        Err(Fault { class, message: format!("{len} bytes at {address:#x}: {place}") })
    }

    /// Reads bytes that must all have been written.
    pub(crate) fn read_written(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        Ok(self.memory.copy_out(address, into, ReadPolicy::RequireInitialised)?)
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        Ok(self.memory.copy_out(address, into, ReadPolicy::AllowUninitialised)?)
    }

    pub(crate) fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        Ok(self.memory.copy_in(address, from)?)
    }

    /// Copies bytes and whether they were written.
    pub(crate) fn copy(&mut self, dst: u64, src: u64, len: u64) -> Result<(), Fault> {
        Ok(self.memory.copy_within(dst, src, len, ReadPolicy::AllowUninitialised)?)
    }

    /// `count` copies of the low `unit` bytes of `pattern`.
    pub(crate) fn fill(
        &mut self,
        dst: u64,
        pattern: u32,
        unit: u8,
        count: u64,
    ) -> Result<(), Fault> {
        Ok(self.memory.fill(dst, pattern, u32::from(unit), count)?)
    }
}
