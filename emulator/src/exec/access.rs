//! Loads, stores and atomics of a warp, with every check on them.

use super::address::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use super::alu::{Kind, Lanes, Rounding, Ty, narrow};
use super::block::{Core, Step, fault, text};
use super::shadow::{Conflict, Touch};
use super::shared::{Accessor, Record};
use super::step::undefined;
use super::traffic::{Banks, Sectors};
use super::warp::{Warp, thread_index};
use crate::finding::{Finding, FindingKind};
use crate::memory::Allocation;
use crate::ptx::ir::{Access, Address, Op, Space, Src, Update};

/// Where one lane's access goes.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Index of the allocation and offset in it.
    Global(usize, u64),
    Shared(u64),
    Local(u64),
    Param(u64),
}

/// What an instruction does to memory, for messages and checks.
#[derive(Debug, Clone, Copy)]
struct Intent {
    verb: &'static str,
    space: Space,
    /// Bytes of the whole access, a vector counted in full.
    bytes: u32,
    writes: bool,
}

impl Core<'_> {
    fn addresses(&self, warp: &Warp, active: u32, address: Address) -> Step<Lanes> {
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
    fn place(&self, warp: &mut Warp, lane: u32, address: u64, intent: Intent) -> Step<Place> {
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

    #[inline]
    fn global(&self, warp: &mut Warp, lane: u32, address: u64, intent: Intent) -> Step<Place> {
        let launch = self.launch;
        let bytes = u64::from(intent.bytes);
        let inside = |allocation: &Allocation| allocation.contains(address, bytes);
        let mut index = warp.recent;
        if !launch.allocations.get(index).is_some_and(|allocation| inside(allocation)) {
            let next = launch.allocations.partition_point(|allocation| allocation.base <= address);
            index = next.wrapping_sub(1);
            if !launch.allocations.get(index).is_some_and(|allocation| inside(allocation)) {
                return fault(1 << lane, self.stray(address, intent));
            }
            warp.recent = index;
        }
        let allocation = &launch.allocations[index];
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

    /// Checks an access to global memory against those of other threads and blocks.
    fn touch(
        &mut self,
        who: Accessor,
        index: usize,
        offset: u64,
        bytes: u32,
        touch: Touch,
    ) -> Step<()> {
        let launch = self.launch;
        let allocation = &launch.allocations[index];
        if launch.threads_per_block > 1 {
            let write = matches!(touch, Touch::Write | Touch::Atomic);
            let address = allocation.base + offset;
            let raced = self.trace.note(&self.clocks, who, address, bytes, write);
            if let Err(record) = raced {
                return self.block_race(who, allocation, offset, touch, record);
            }
        }
        let Some(shadow) = &launch.shadow else { return Ok(()) };
        shadow.touch(index, allocation.size, offset, bytes, self.linear, touch).or_else(
            |conflict| self.global_race(who.lane as u32, allocation, offset, touch, conflict),
        )
    }

    #[cold]
    fn block_race(
        &self,
        who: Accessor,
        allocation: &Allocation,
        offset: u64,
        touch: Touch,
        record: Record,
    ) -> Step<()> {
        let message = format!(
            "{} of byte {offset} of an allocation is not ordered with the {}; a barrier is missing \
             between them",
            match touch {
                Touch::Read | Touch::AtomicRead => "read",
                Touch::Write => "write",
                Touch::Atomic => "atomic update",
            },
            self.other_side(who, record)
        );
        let finding = Finding::new(FindingKind::GlobalRace, message).at(allocation.base + offset);
        fault(1 << who.lane, finding.in_allocation(allocation.describe()))
    }

    /// The other access of a race in words.
    fn other_side(&self, who: Accessor, record: Record) -> String {
        // The report names one thread of the other side that is not the offender.
        let own = if usize::from(record.warp) == who.warp { 1 << who.lane } else { 0 };
        let lane = u64::from((record.lanes & !own).trailing_zeros() & 31);
        let linear = u64::from(record.warp) * 32 + lane;
        let thread = thread_index(linear, self.launch.params.block);
        let line = self.launch.entry.code.instrs.get(record.pc as usize).map_or(0, |i| i.line);
        let verb = if record.write { "write" } else { "read" };
        format!("{verb} by thread {} at ptx line {line}", text(thread))
    }

    #[cold]
    fn global_race(
        &self,
        lane: u32,
        allocation: &Allocation,
        offset: u64,
        touch: Touch,
        conflict: Conflict,
    ) -> Step<()> {
        let verb = match touch {
            Touch::Read | Touch::AtomicRead => "reads",
            Touch::Write => "writes",
            Touch::Atomic => "atomically updates",
        };
        let [x, y, _] = self.launch.params.grid.map(u64::from);
        let other = match conflict.block {
            Some(i) => {
                let index = [i % x, i / x % y, i / (x * y)].map(|index| index as u32);
                format!("block {}", text(index))
            }
            None => "several other blocks".to_owned(),
        };
        let message = format!(
            "block {} {verb} byte {offset} of an allocation, and {other} {} in the same launch; \
             nothing orders blocks",
            text(self.block),
            conflict.what
        );
        let finding = Finding::new(FindingKind::GlobalRace, message).at(allocation.base + offset);
        fault(1 << lane, finding.in_allocation(allocation.describe()))
    }

    #[cold]
    fn shared_race(&self, who: Accessor, offset: u64, verb: &str, record: Record) -> Step<()> {
        let name = self.shared.extent(offset, 1).map_or("?", |extent| extent.name.as_str());
        let start = self.shared.extent(offset, 1).map_or(0, |extent| u64::from(extent.start));
        let message = format!(
            "{verb} of byte {} of shared `{name}` is not ordered with the {}; a barrier is missing \
             between them",
            offset - start,
            self.other_side(who, record)
        );
        let finding = Finding::new(FindingKind::SharedRace, message).at(offset);
        fault(1 << who.lane, finding.in_allocation(format!("shared `{name}`")))
    }

    fn unwritten<T>(&self, lane: u32, address: u64, what: String) -> Step<T> {
        let message = format!("a load reads memory that nothing has written: {what}");
        fault(1 << lane, Finding::new(FindingKind::Uninitialised, message).at(address))
    }

    /// Executes a load.
    pub(crate) fn load(&mut self, warp: &mut Warp, active: u32, pc: u32, op: &Op) -> Step<()> {
        let Op::Load { space, access, bytes, signed, dst, address } = op else { return Ok(()) };
        let element = u32::from(*bytes);
        let total = element * dst.len() as u32;
        let intent = Intent { verb: "load", space: *space, bytes: total, writes: false };
        let addresses = self.addresses(warp, active, *address)?;
        // Taken out so that `self` stays usable; put back at the end, allocated anew after a fault.
        let mut loaded = self.loaded.take().unwrap_or_default();
        // Unwritten bits of loaded parameters, by destination.
        let mut padding: Option<Box<[Lanes; 8]>> = None;
        let touch = if *access == Access::Atomic { Touch::AtomicRead } else { Touch::Read };
        let (mut sectors, mut banks) = (Sectors::default(), None::<Banks>);
        let mut rest = active;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let l = lane as usize;
            let place = self.place(warp, lane, addresses[l], intent)?;
            for (k, out) in loaded.iter_mut().enumerate().take(dst.len()) {
                let step = k as u64 * u64::from(element);
                let value = match place {
                    Place::Global(index, offset) => {
                        let allocation = &self.launch.allocations[index];
                        let (value, written) = allocation.load(offset + step, element);
                        if written != (1 << element) - 1 {
                            let first = offset + step + u64::from(written.trailing_ones());
                            let what = format!("byte {first} of {}", allocation.describe());
                            return self.unwritten(lane, addresses[l] + step, what);
                        }
                        value
                    }
                    Place::Shared(offset) => match self.shared.load(offset + step, element) {
                        Some(value) => value,
                        None => {
                            let what = self.shared_name(offset + step);
                            return self.unwritten(lane, offset + step, what);
                        }
                    },
                    Place::Local(offset) => {
                        let (value, written) = warp.local.load(l, offset + step, element);
                        let missing = !written & ((1 << element) - 1);
                        // A parameter's padding may be copied as long as nobody uses it.
                        if missing != 0 && *space == Space::Frame {
                            padding.get_or_insert_default()[k][l] = spread(missing);
                        } else if missing != 0 {
                            let first = offset + step + u64::from(missing.trailing_zeros());
                            let what = format!("byte {first} of local memory");
                            return self.unwritten(lane, offset + step, what);
                        }
                        value
                    }
                    Place::Param(offset) => {
                        let at = (offset + step) as usize;
                        let mut value = [0u8; 8];
                        let source = &self.launch.params.params[at..at + element as usize];
                        value[..element as usize].copy_from_slice(source);
                        u64::from_le_bytes(value)
                    }
                };
                out[l] = if *signed {
                    let shift = 64 - 8 * element;
                    (((value << shift) as i64) >> shift) as u64
                } else {
                    value
                };
            }
            match place {
                Place::Global(index, offset) => {
                    let atomic = touch == Touch::AtomicRead;
                    let who = Accessor { warp: warp.index, lane: l, pc, atomic };
                    self.touch(who, index, offset, total, touch)?;
                    sectors.add(addresses[l], total);
                    self.counters.global_bytes_loaded += u64::from(total);
                }
                Place::Shared(offset) => {
                    let who = Accessor { warp: warp.index, lane: l, pc, atomic: false };
                    let raced = self.shared.note_read(&self.clocks, who, offset, total);
                    raced.or_else(|record| self.shared_race(who, offset, "read", record))?;
                    banks.get_or_insert_default().add(offset, total);
                }
                _ => {}
            }
        }
        self.counters.sectors_loaded += sectors.count();
        self.counters.bank_conflicts += banks.map_or(0, |mut banks| banks.conflicts());
        for (k, (reg, value)) in dst.iter().zip(loaded.iter()).enumerate() {
            match &padding {
                Some(bits) => warp.write_partial(*reg, active, value, &bits[k]),
                None => warp.write(*reg, active, value, 0),
            }
        }
        self.loaded = Some(loaded);
        Ok(())
    }

    fn shared_name(&self, offset: u64) -> String {
        self.shared.extent(offset, 1).map_or_else(String::new, |extent| {
            format!("byte {} of shared `{}`", offset - u64::from(extent.start), extent.name)
        })
    }

    /// Executes a store.
    pub(crate) fn store(&mut self, warp: &mut Warp, active: u32, pc: u32, op: &Op) -> Step<()> {
        let Op::Store { space, access, bytes, src, address } = op else { return Ok(()) };
        let element = u32::from(*bytes);
        let total = element * src.len() as u32;
        let intent = Intent { verb: "store", space: *space, bytes: total, writes: true };
        let addresses = self.addresses(warp, active, *address)?;
        let atomic = *access == Access::Atomic;
        let (mut sectors, mut banks) = (Sectors::default(), None::<Banks>);
        for (k, value) in src.iter().enumerate() {
            let unknown = undefined(warp, *value) & active;
            // Bytes of the element that are computed in full, by lane, when not all are.
            let partial = (unknown != 0).then(|| defined_bytes(warp, *value, element));
            if let Some(defined) = &partial
                && *space != Space::Frame
            {
                let nothing = |lane: &u32| unknown >> lane & 1 == 1 && defined[*lane as usize] == 0;
                if let Some(lane) = (0..32).find(nothing) {
                    let message = "a value that was never computed is stored";
                    let finding = Finding::new(FindingKind::UndefinedStore, message);
                    return fault(1 << lane, finding);
                }
            }
            let values = self.operands().value(warp, *value);
            let step = k as u64 * u64::from(element);
            let mut rest = active;
            while rest != 0 {
                let lane = rest.trailing_zeros();
                rest &= rest - 1;
                let l = lane as usize;
                let place = self.place(warp, lane, addresses[l], intent)?;
                let all = (1u32 << element) - 1;
                let defined = partial.as_ref().map_or(all, |defined| defined[l]);
                match place {
                    Place::Global(index, offset) => {
                        if k == 0 {
                            let touch = if atomic { Touch::Atomic } else { Touch::Write };
                            let who = Accessor { warp: warp.index, lane: l, pc, atomic };
                            self.touch(who, index, offset, total, touch)?;
                            sectors.add(addresses[l], total);
                            self.counters.global_bytes_stored += u64::from(total);
                        }
                        let allocation = &self.launch.allocations[index];
                        for (at, bytes, value) in pieces(offset + step, element, values[l], defined)
                        {
                            allocation.store(at, bytes, value);
                        }
                    }
                    Place::Shared(offset) => {
                        if k == 0 {
                            let who = Accessor { warp: warp.index, lane: l, pc, atomic };
                            let raced = self.shared.note_write(&self.clocks, who, offset, total);
                            raced
                                .or_else(|record| self.shared_race(who, offset, "write", record))?;
                            banks.get_or_insert_default().add(offset, total);
                        }
                        for (at, bytes, value) in pieces(offset + step, element, values[l], defined)
                        {
                            self.shared.store(at, bytes, value);
                        }
                    }
                    Place::Local(offset) => {
                        warp.local.store(l, offset + step, element, values[l], defined);
                    }
                    Place::Param(_) => {}
                }
            }
        }
        self.counters.sectors_stored += sectors.count();
        self.counters.bank_conflicts += banks.map_or(0, |mut banks| banks.conflicts());
        Ok(())
    }

    /// Executes an atomic.
    pub(crate) fn atomic(&mut self, warp: &mut Warp, active: u32, pc: u32, op: &Op) -> Step<()> {
        let Op::Atomic { space, update, ty, dst, address, operand, swap } = op else {
            return Ok(());
        };
        let bytes = if ty.packed { 4 } else { ty.bits / 8 };
        let intent = Intent { verb: "atomic", space: *space, bytes, writes: true };
        let addresses = self.addresses(warp, active, *address)?;
        let unknown = (undefined(warp, *operand) | undefined(warp, *swap)) & active;
        if unknown != 0 {
            let message = "a value that was never computed is stored by an atomic";
            return fault(unknown, Finding::new(FindingKind::UndefinedStore, message));
        }
        let (a, b) = (self.operand_of(warp, *operand), self.operand_of(warp, *swap));
        let mut old_values: Lanes = [0; 32];
        let mut rest = active;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let l = lane as usize;
            let global = !matches!(space, Space::Shared);
            let apply = |old: u64| updated(*update, *ty, global, old, a[l], b[l]);
            let place = self.place(warp, lane, addresses[l], intent)?;
            let (old, known) = match place {
                Place::Global(index, offset) => {
                    let who = Accessor { warp: warp.index, lane: l, pc, atomic: true };
                    self.touch(who, index, offset, bytes, Touch::Atomic)?;
                    let allocation = &self.launch.allocations[index];
                    let (old, written) = allocation.update(offset, bytes, apply);
                    (
                        old,
                        written == (1 << bytes) - 1 || *update == Update::Exchange && dst.is_none(),
                    )
                }
                Place::Shared(offset) => {
                    let who = Accessor { warp: warp.index, lane: l, pc, atomic: true };
                    let raced = self.shared.note_write(&self.clocks, who, offset, bytes);
                    raced
                        .or_else(|record| self.shared_race(who, offset, "atomic update", record))?;
                    let old = self.shared.load(offset, bytes);
                    self.shared.store(offset, bytes, apply(old.unwrap_or(0)));
                    (old.unwrap_or(0), old.is_some())
                }
                Place::Local(offset) => {
                    let (old, written) = warp.local.load(l, offset, bytes);
                    let all = (1 << bytes) - 1;
                    warp.local.store(l, offset, bytes, apply(old), all);
                    (old, written == all)
                }
                Place::Param(_) => (0, true),
            };
            if !known {
                let what = "the target of an atomic".to_owned();
                return self.unwritten(lane, addresses[l], what);
            }
            old_values[l] = old;
        }
        self.counters.atomics += u64::from(active.count_ones());
        if let Some(dst) = dst {
            warp.write(*dst, active, &old_values, 0);
        }
        Ok(())
    }

    fn operand_of(&self, warp: &Warp, src: Src) -> Lanes {
        self.operands().value(warp, src)
    }
}

/// A byte mask spread over a value: bit `i` becomes byte `i`.
fn spread(bytes: u32) -> u64 {
    (0..8).filter(|i| bytes >> i & 1 == 1).fold(0, |bits, i| bits | 0xff << (8 * i))
}

/// For each lane, the bytes of a stored element all of whose bits were computed.
#[cold]
fn defined_bytes(warp: &Warp, src: Src, bytes: u32) -> [u32; 32] {
    let Src::Reg(reg) = src else { return [u32::MAX; 32] };
    warp.undefined_bits(reg).map(|bits| {
        let defined = |i: &u32| bits >> (8 * i) & 0xff == 0;
        (0..bytes).filter(defined).fold(0, |mask, i| mask | 1 << i)
    })
}

/// A store cut into what is defined of it: one piece in the usual case, else single bytes.
fn pieces(
    offset: u64,
    bytes: u32,
    value: u64,
    defined: u32,
) -> impl Iterator<Item = (u64, u32, u64)> {
    let whole = defined == (1 << bytes) - 1;
    let count = if whole { 1 } else { bytes };
    (0..count)
        .filter(move |i| whole || defined >> i & 1 == 1)
        .map(move |i| (offset + u64::from(i), if whole { bytes } else { 1 }, value >> (8 * i)))
}

/// The value an atomic leaves.
fn updated(update: Update, ty: Ty, global: bool, old: u64, a: u64, b: u64) -> u64 {
    let mask = if ty.packed { 0xffff_ffff } else { ty.mask() };
    let (a, b) = (a & mask, b & mask);
    let signed = |x: u64| ty.extend(x);
    let pick_a = |yes: bool| if yes { a } else { old };
    match update {
        Update::Add => match ty.kind {
            Kind::Float(format) => {
                // On global memory `atom.add.f32` flushes subnormals (PTX ISA, `atom`).
                let ftz = global && ty.bits == 32;
                let flush = |x: u64| if ftz { format.flush(x) } else { x };
                let add = |x: u64, y: u64| {
                    let sum = format.widen(flush(x)) + format.widen(flush(y));
                    // f16, bf16 and f32 sums in f64: rounded again below, so formed to odd.
                    let sum = if ty.bits == 64 {
                        sum
                    } else {
                        super::alu::add_odd(format.widen(flush(x)), format.widen(flush(y)))
                    };
                    flush(narrow(sum, format, Rounding::Nearest))
                };
                if ty.packed {
                    add(old & 0xffff, a & 0xffff) | add(old >> 16 & 0xffff, a >> 16) << 16
                } else {
                    add(old, a)
                }
            }
            _ => old.wrapping_add(a) & mask,
        },
        Update::And => old & a,
        Update::Or => old | a,
        Update::Xor => old ^ a,
        Update::Min if ty.signed() => pick_a(signed(a) < signed(old)),
        Update::Min => pick_a(a < old),
        Update::Max if ty.signed() => pick_a(signed(a) > signed(old)),
        Update::Max => pick_a(a > old),
        Update::Inc if old >= a => 0,
        Update::Inc => old + 1,
        Update::Dec if old == 0 || old > a => a,
        Update::Dec => old - 1,
        Update::Exchange => a,
        Update::CompareAndSwap if old == a => b,
        Update::CompareAndSwap => old,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_follow_the_manual() {
        let u32_ty = Ty { kind: Kind::Unsigned, bits: 32, packed: false };
        let s32_ty = Ty { kind: Kind::Signed, bits: 32, packed: false };
        let apply = |update, ty, old, a| updated(update, ty, true, old, a, 9);
        assert_eq!(apply(Update::Inc, u32_ty, 3, 3), 0);
        assert_eq!(apply(Update::Dec, u32_ty, 0, 7), 7);
        assert_eq!(apply(Update::Min, s32_ty, 5, 0xffff_ffff), 0xffff_ffff);
        assert_eq!(apply(Update::Min, u32_ty, 5, 0xffff_ffff), 5);
        assert_eq!(apply(Update::CompareAndSwap, u32_ty, 4, 4), 9);
        assert_eq!(apply(Update::Add, u32_ty, 0xffff_ffff, 2), 1);
    }
}
