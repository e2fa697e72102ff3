//! Loads and stores of a warp, with every check on them, lane by lane. What is a row takes the short
//! way of `row_access.rs` first.

use super::alu::Lanes;
use super::block::{Core, Fault, Step, Watch, fault};
use super::fence::{Letter, Writes};
use super::place::{Intent, Place};
use super::record::{Accessor, lanes_of};
use super::row::Row;
use super::shadow::Touch;
use super::step::undefined;
use super::traffic::{Banks, Sectors};
use super::warp::Warp;
use crate::finding::{Finding, FindingKind};
use crate::ptx::ir::{Access, Op, Space, Src};

impl Core<'_> {
    pub(crate) fn unwritten<T>(&self, lane: u32, address: u64, what: String) -> Step<T> {
        let message = format!("a load reads memory that nothing has written: {what}");
        fault(1 << lane, Finding::new(FindingKind::Uninitialised, message).at(address))
    }

    /// Executes a load.
    pub(crate) fn load(&mut self, warp: &mut Warp, active: u32, pc: u32, op: &Op) -> Step<()> {
        let Op::Load { space, access, bytes, signed, dst, address } = op else { return Ok(()) };
        let element = u32::from(*bytes);
        let total = element * dst.len() as u32;
        let warp_index = warp.index;
        let intent = Intent { verb: "load", space: *space, bytes: total, writes: false };
        let addresses = self.addresses(warp, active, *address)?;
        if let Some(row) = Row::find(&addresses, active, total)
            && *access == Access::Plain
            && self.load_row(warp, &row, pc, op)
        {
            return Ok(());
        }
        // Taken out so that `self` stays usable; put back at the end, allocated anew after a fault.
        let mut loaded = self.loaded.take().unwrap_or_default();
        // Unwritten bits of loaded parameters, by destination.
        let mut padding: Option<Box<[Lanes; 8]>> = None;
        let atomic = access.scope();
        let touch = if atomic.is_some() { Touch::AtomicRead } else { Touch::Read };
        let letter = |lane, address, global| match *access {
            Access::Atomic(order) => {
                let (hears, writes) = (true, Writes::Nothing);
                Some(Letter { warp: warp_index, lane, address, global, order, hears, writes })
            }
            Access::Plain => None,
        };
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
                            let address = addresses[l] + step;
                            self.watch(warp_index, l, pc, address, element, true);
                            return self.unwritten(lane, addresses[l] + step, what);
                        }
                        value
                    }
                    Place::Shared(offset) => match self.shared.load(offset + step, element) {
                        Some(value) => value,
                        None => {
                            let what = self.shared_name(offset + step);
                            self.watch(warp_index, l, pc, offset + step, element, false);
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
                    let who = Accessor::new(warp.index, l, pc, atomic);
                    self.touch(who, index, offset, total, touch)?;
                    letter(l, addresses[l], true).into_iter().for_each(|it| self.carry(it));
                    sectors.add(addresses[l], total);
                    self.counters.global_bytes_loaded += u64::from(total);
                }
                Place::Shared(offset) => {
                    let who = Accessor::new(warp.index, l, pc, atomic);
                    let raced = self.shared_history.note(&self.clocks, who, offset, total, false);
                    raced.or_else(|record| self.shared_race(who, offset, "read", record))?;
                    letter(l, offset, false).into_iter().for_each(|it| self.carry(it));
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

    /// Remembers a read of what nothing has written: someone may write it later.
    fn watch(&mut self, warp: usize, lane: usize, pc: u32, at: u64, bytes: u32, global: bool) {
        let who = Accessor::new(warp, lane, pc, None);
        self.watch = Some(Watch { who, at, bytes, global });
    }

    /// For each lane, the lanes that store the same value to the same address as it does.
    fn twins(&self, warp: &Warp, active: u32, addresses: &Lanes, op: &Op) -> [u32; 32] {
        let mut twins = std::array::from_fn(|lane| 1 << lane);
        let Op::Store { access: Access::Plain, bytes, src, .. } = op else { return twins };
        let keep = u64::MAX >> (64 - 8 * u32::from(*bytes));
        let equal = |values: &Lanes, lane: usize, keep: u64| {
            let first = values[lane] & keep;
            let bits = values.iter().enumerate();
            bits.fold(0u32, |lanes, (i, value)| lanes | u32::from(value & keep == first) << i)
        };
        let mut rest = active;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            let mut same = equal(addresses, lane, u64::MAX) & rest;
            if !same.is_power_of_two() {
                for value in src {
                    same &= equal(&self.operands().value(warp, *value), lane, keep);
                    same &= !undefined(warp, *value);
                }
                if same >> lane & 1 == 0 || self.clocks.common(warp.index, same).is_none() {
                    same = 1 << lane;
                }
                lanes_of(same).for_each(|lane| twins[lane] = same);
            }
            rest &= !same;
        }
        twins
    }

    /// Notes that lanes of one instruction store one value to the same bytes.
    fn same_value(&mut self, warp: &Warp, who: Accessor) {
        if who.lanes.is_power_of_two() || self.notes.contains_key(&who.pc) {
            return;
        }
        let message = format!(
            "lanes 0x{:08x} of one instruction store the same value to the same bytes; one of them \
             would do",
            who.lanes
        );
        let finding = Finding::new(FindingKind::SameValue, message);
        let finding = self.locate_at(warp, who.pc, Fault { lane: who.lane as u32, finding });
        self.notes.insert(who.pc, (self.position, finding));
    }

    /// Keeps what memory holds that is about to be written, where the launch may run again; `false`
    /// when there is no more room: then it must.
    pub(crate) fn keep(&mut self, index: usize, offset: u64, bytes: u64) -> bool {
        let allocation = &self.launch.allocations[index];
        self.undo.as_mut().is_none_or(|undo| undo.save(index, allocation, offset, bytes))
    }

    /// Executes a store.
    pub(crate) fn store(&mut self, warp: &mut Warp, active: u32, pc: u32, op: &Op) -> Step<()> {
        let Op::Store { space, access, bytes, src, address } = op else { return Ok(()) };
        let element = u32::from(*bytes);
        let total = element * src.len() as u32;
        let intent = Intent { verb: "store", space: *space, bytes: total, writes: true };
        let addresses = self.addresses(warp, active, *address)?;
        if let Some(row) = Row::find(&addresses, active, total)
            && *access == Access::Plain
            && self.store_row(warp, &row, pc, op)
        {
            return Ok(());
        }
        let atomic = access.scope();
        let touch = if atomic.is_some() { Touch::Atomic } else { Touch::Write };
        let warp_index = warp.index;
        let letter = |lane, address, global| match *access {
            Access::Atomic(order) => {
                let (hears, writes) = (false, Writes::Value);
                Some(Letter { warp: warp_index, lane, address, global, order, hears, writes })
            }
            Access::Plain => None,
        };
        let twins = self.twins(warp, active, &addresses, op);
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
                if twins[l].trailing_zeros() != lane
                    && matches!(place, Place::Global(..) | Place::Shared(_))
                {
                    continue;
                }
                let who = Accessor { lanes: twins[l], ..Accessor::new(warp.index, l, pc, atomic) };
                let all = (1u32 << element) - 1;
                let defined = partial.as_ref().map_or(all, |defined| defined[l]);
                match place {
                    Place::Global(index, offset) => {
                        if k == 0 {
                            self.touch(who, index, offset, total, touch)?;
                            letter(l, addresses[l], true).into_iter().for_each(|it| self.carry(it));
                            self.same_value(warp, who);
                            if !self.keep(index, offset, total.into()) {
                                let message = "no room to keep what memory held";
                                let finding = Finding::new(FindingKind::LimitExceeded, message);
                                return fault(1 << lane, finding);
                            }
                            sectors.add(addresses[l], total);
                            let lanes = twins[l].count_ones();
                            self.counters.global_bytes_stored += u64::from(total * lanes);
                        }
                        let allocation = &self.launch.allocations[index];
                        for (at, bytes, value) in pieces(offset + step, element, values[l], defined)
                        {
                            allocation.store(at, bytes, value);
                        }
                    }
                    Place::Shared(offset) => {
                        if k == 0 {
                            let raced =
                                self.shared_history.note(&self.clocks, who, offset, total, true);
                            raced
                                .or_else(|record| self.shared_race(who, offset, "write", record))?;
                            letter(l, offset, false).into_iter().for_each(|it| self.carry(it));
                            self.same_value(warp, who);
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
