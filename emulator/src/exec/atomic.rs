//! Atomic read-modify-writes of a warp.

use super::alu::{Kind, Lanes, Rounding, Ty, add_odd, narrow};
use super::block::{Core, Step, fault};
use super::fence::{Letter, Writes};
use super::place::{Intent, Place};
use super::record::Accessor;
use super::shadow::Touch;
use super::step::undefined;
use super::warp::Warp;
use crate::finding::{Finding, FindingKind};
use crate::ptx::ir::{Op, Space, Update};

impl Core<'_> {
    /// Executes an atomic.
    pub(crate) fn atomic(&mut self, warp: &mut Warp, active: u32, pc: u32, op: &Op) -> Step<()> {
        let Op::Atomic { space, order, update, ty, dst, address, operand, swap } = op else {
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
        let (a, b) = (self.operands().value(warp, *operand), self.operands().value(warp, *swap));
        let mut old_values: Lanes = [0; 32];
        let mut rest = active;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let l = lane as usize;
            let global = !matches!(space, Space::Shared);
            let apply = |old: u64| updated(*update, *ty, global, old, a[l], b[l]);
            let place = self.place(warp, lane, addresses[l], intent)?;
            let who = Accessor::new(warp.index, l, pc, Some(order.scope));
            let (old, known) = match place {
                Place::Global(index, offset) => {
                    self.touch(who, index, offset, bytes, Touch::Atomic)?;
                    let allocation = &self.launch.allocations[index];
                    let (old, written) = allocation.update(offset, bytes, apply);
                    (
                        old,
                        written == (1 << bytes) - 1 || *update == Update::Exchange && dst.is_none(),
                    )
                }
                Place::Shared(offset) => {
                    let raced = self.shared_history.note(&self.clocks, who, offset, bytes, true);
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
            let (address, global) = match place {
                Place::Global(..) => (addresses[l], true),
                Place::Shared(offset) => (offset, false),
                Place::Local(_) | Place::Param(_) => continue,
            };
            // A compare-and-swap that fails only reads.
            let failed = *update == Update::CompareAndSwap && old != a[l] & ty.mask();
            let writes = if failed { Writes::Nothing } else { Writes::Update };
            let (warp, hears, order) = (warp.index, dst.is_some(), *order);
            self.carry(Letter { warp, lane: l, address, global, order, hears, writes });
        }
        self.counters.atomics += u64::from(active.count_ones());
        if let Some(dst) = dst {
            warp.write(*dst, active, &old_values, 0);
        }
        Ok(())
    }
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
                        add_odd(format.widen(flush(x)), format.widen(flush(y)))
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
