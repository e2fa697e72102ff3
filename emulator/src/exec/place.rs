//! Where an access goes: state space, bounds, alignment, and what is wrong when it goes nowhere.

use super::address::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use super::alu::Lanes;
use super::block::{Core, Step, fault};
use super::step::undefined;
use super::warp::Warp;
use crate::finding::{Finding, FindingKind};
use crate::ptx::ir::{Address, Space};

/// Where one lane's access goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Index of the allocation and offset in it.
    Global(usize, u64),
    Shared(u64),
    Local(u64),
    Param(u64),
}

/// What an instruction does to memory, for messages and checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intent {
    pub(crate) verb: &'static str,
    pub(crate) space: Space,
    /// Bytes of the whole access, a vector counted in full.
    pub(crate) bytes: u32,
    pub(crate) writes: bool,
}

impl Core<'_> {
    pub(crate) fn addresses(&self, warp: &Warp, active: u32, address: Address) -> Step<Lanes> {
        let unknown = undefined(warp, address.base) & active;
        if unknown != 0 {
            let message = "an address that was never computed is accessed";
            return fault(unknown, Finding::new(FindingKind::UndefinedAddress, message));
        }
        let mut lanes = self.operands().value(warp, address.base);
        if address.offset != 0 {
            for lane in &mut lanes {
                *lane = lane.wrapping_add_signed(address.offset);
            }
        }
        Ok(lanes)
    }

    /// Resolves and checks one lane's address: space, bounds, alignment.
    #[inline]
    pub(crate) fn place(
        &self,
        warp: &mut Warp,
        lane: u32,
        address: u64,
        intent: Intent,
    ) -> Step<Place> {
        let bytes = u64::from(intent.bytes);
        // Elements and vector lengths are powers of two.
        if address & (bytes - 1) != 0 {
            let message = format!(
                "{} of {bytes} bytes at an address that is {} past a multiple of {bytes}",
                intent.verb,
                address % bytes
            );
            let finding = Finding::new(FindingKind::Misaligned, message).at(address);
            return fault(1 << lane, finding);
        }
        match intent.space {
            Space::Global | Space::Const => self.global(warp, lane, address, intent),
            Space::Generic => {
                if address.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES {
                    self.shared_place(lane, address - SHARED_WINDOW, intent)
                } else if address.wrapping_sub(LOCAL_WINDOW) < WINDOW_BYTES {
                    self.local_place(warp, lane, address - LOCAL_WINDOW, intent)
                } else if address.wrapping_sub(PARAM_WINDOW) < WINDOW_BYTES {
                    self.param_place(lane, address - PARAM_WINDOW, intent)
                } else {
                    self.global(warp, lane, address, intent)
                }
            }
            Space::Shared => self.shared_place(lane, address & 0xffff_ffff, intent),
            Space::Local | Space::Frame => self.local_place(warp, lane, address, intent),
            Space::Param => self.param_place(lane, address, intent),
        }
    }

    /// The allocation that holds a range.
    #[inline]
    pub(crate) fn allocation(&self, warp: &mut Warp, address: u64, bytes: u64) -> Option<usize> {
        let allocations = &self.launch.allocations;
        let inside = |index: usize| {
            allocations.get(index).is_some_and(|found| found.contains(address, bytes))
        };
        if !inside(warp.recent) {
            let next = allocations.partition_point(|allocation| allocation.base <= address);
            warp.recent = Some(next.wrapping_sub(1)).filter(|index| inside(*index))?;
        }
        Some(warp.recent)
    }

    #[inline]
    fn global(&self, warp: &mut Warp, lane: u32, address: u64, intent: Intent) -> Step<Place> {
        let Some(index) = self.allocation(warp, address, u64::from(intent.bytes)) else {
            return fault(1 << lane, self.stray(address, intent));
        };
        let allocation = &self.launch.allocations[index];
        if intent.writes && allocation.read_only {
            let message = format!("{} to constant memory", intent.verb);
            let finding = Finding::new(FindingKind::ReadOnlyWrite, message).at(address);
            return fault(1 << lane, finding.in_allocation(allocation.describe()));
        }
        Ok(Place::Global(index, address - allocation.base))
    }

    #[cold]
    fn stray(&self, address: u64, intent: Intent) -> Box<Finding> {
        let bytes = u64::from(intent.bytes);
        let windows = [
            (SHARED_WINDOW, "the generic window of shared memory"),
            (LOCAL_WINDOW, "the generic window of local memory"),
            (PARAM_WINDOW, "the generic window of kernel parameters"),
        ];
        for (base, name) in windows {
            if address.wrapping_sub(base) < WINDOW_BYTES {
                let message = format!(
                    "{} of {bytes} bytes as global memory, but 0x{address:x} is in {name}",
                    intent.verb
                );
                return Finding::new(FindingKind::OutOfBounds, message).at(address);
            }
        }
        self.launch.memory.stray(address, bytes, intent.verb)
    }

    fn shared_place(&self, lane: u32, offset: u64, intent: Intent) -> Step<Place> {
        let bytes = u64::from(intent.bytes);
        if self.shared.extent(offset, bytes).is_some() {
            return Ok(Place::Shared(offset));
        }
        let below = self.shared.extents.iter().rev().filter(|e| u64::from(e.start) <= offset);
        let nearest = below.min_by_key(|extent| offset - u64::from(extent.start));
        let (message, description) = match nearest {
            Some(extent) => {
                let size = extent.end - extent.start;
                let at = offset - u64::from(extent.start);
                let beyond = (at + bytes).saturating_sub(u64::from(size));
                (
                    format!(
                        "{} of {bytes} bytes at byte {at} of shared `{}` ends {beyond} bytes past its end",
                        intent.verb, extent.name
                    ),
                    format!("shared `{}`, {size} bytes", extent.name),
                )
            }
            None => (
                format!("{} of {bytes} bytes at shared offset 0x{offset:x}", intent.verb),
                "the kernel has no shared array there".to_owned(),
            ),
        };
        let finding = Finding::new(FindingKind::OutOfBounds, message).at(offset);
        fault(1 << lane, finding.in_allocation(description))
    }

    fn local_place(&self, warp: &Warp, lane: u32, offset: u64, intent: Intent) -> Step<Place> {
        let (bytes, size) = (u64::from(intent.bytes), warp.local.bytes as u64);
        if offset.checked_add(bytes).is_some_and(|end| end <= size) {
            return Ok(Place::Local(offset));
        }
        let message = format!(
            "{} of {bytes} bytes at byte {} of local memory, which has {size}",
            intent.verb, offset as i64
        );
        fault(1 << lane, Finding::new(FindingKind::OutOfBounds, message).at(offset))
    }

    fn param_place(&self, lane: u32, offset: u64, intent: Intent) -> Step<Place> {
        let (bytes, size) = (u64::from(intent.bytes), self.launch.params.params.len() as u64);
        if intent.writes {
            let message = format!("{} to kernel parameters", intent.verb);
            return fault(1 << lane, Finding::new(FindingKind::ReadOnlyWrite, message));
        }
        if offset.checked_add(bytes).is_some_and(|end| end <= size) {
            return Ok(Place::Param(offset));
        }
        let message =
            format!("{} of {bytes} bytes at byte {offset} of {size} parameter bytes", intent.verb);
        fault(1 << lane, Finding::new(FindingKind::OutOfBounds, message).at(offset))
    }
}
