//! Executes one instruction of a fragment.

use super::alu::{Function, Lanes};
use super::block::{BARRIERS, Core, Step, fault, text};
use super::warp::{Fragment, Wait, Warp, thread_index};
use crate::finding::{Finding, FindingKind};
use crate::ptx::ir::{BarrierKind, LaneMask, Op, Special, Src};

/// Whether the fragment can simply go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Continue,
    /// The warp's fragments changed.
    Reschedule,
}

/// What an operand is read from.
pub(crate) struct Operands<'a> {
    launch: &'a super::launch::Launch<'a>,
    block: [u32; 3],
    clock: u64,
}

impl Operands<'_> {
    /// An operand's value in every lane.
    pub(crate) fn value(&self, warp: &Warp, src: Src) -> Lanes {
        let params = self.launch.params;
        let special = match src {
            Src::Reg(reg) => return warp.regs[reg as usize],
            Src::Imm(value) => return [value; 32],
            Src::Variable(index, offset) => {
                return [self.launch.module.address(index).wrapping_add_signed(offset); 32];
            }
            Src::Special(special) => special,
        };
        let by_lane = |f: fn(u32) -> u32| std::array::from_fn(|lane| u64::from(f(lane as u32)));
        let value = match special {
            Special::Tid(axis) => return warp.tid[usize::from(axis)],
            Special::LaneId => return by_lane(|lane| lane),
            Special::LaneMask(LaneMask::Equal) => return by_lane(|lane| 1 << lane),
            Special::LaneMask(LaneMask::Less) => return by_lane(|lane| (1 << lane) - 1),
            Special::LaneMask(LaneMask::LessEqual) => {
                return by_lane(|lane| u32::MAX >> (31 - lane));
            }
            Special::LaneMask(LaneMask::Greater) => {
                return by_lane(|lane| !(u32::MAX >> (31 - lane)));
            }
            Special::LaneMask(LaneMask::GreaterEqual) => return by_lane(|lane| u32::MAX << lane),
            Special::Ntid(axis) => params.block[usize::from(axis)],
            Special::Ctaid(axis) => self.block[usize::from(axis)],
            Special::Nctaid(axis) => params.grid[usize::from(axis)],
            Special::WarpId => warp.index as u32,
            Special::WarpCount => self.launch.threads_per_block.div_ceil(32),
            Special::SmId => self.block[0] % params.limits.multiprocessors.max(1),
            Special::SmCount => params.limits.multiprocessors,
            Special::GridId => 1,
            Special::Clock => return [self.clock; 32],
            Special::DynamicShared => params.dynamic_shared,
            Special::TotalShared => params.dynamic_shared + self.launch.entry.shared_bytes,
            Special::Constant(value) => value,
        };
        [u64::from(value); 32]
    }
}

/// Borrows an operand's lanes: registers in place, everything else through a local slot.
macro_rules! lanes {
    ($operands:expr, $warp:expr, $src:expr, $slot:ident) => {
        match $src {
            Src::Reg(reg) => &$warp.regs[reg as usize],
            other => {
                $slot = $operands.value($warp, other);
                &$slot
            }
        }
    };
}

/// Lanes in which an operand was never written.
pub(crate) fn undefined(warp: &Warp, src: Src) -> u32 {
    match src {
        Src::Reg(reg) => warp.undefined[reg as usize],
        _ => 0,
    }
}

impl Core<'_> {
    pub(crate) fn operands(&self) -> Operands<'_> {
        let clock = self.counters.warp_instructions - self.began;
        Operands { launch: self.launch, block: self.block, clock }
    }

    /// Executes the next instruction of fragment `at`.
    pub(crate) fn step(&mut self, warp: &mut Warp, at: usize) -> Step<Outcome> {
        let launch = self.launch;
        let Fragment { pc, mask, .. } = warp.fragments[at];
        let Some(instr) = launch.entry.code.instrs.get(pc as usize) else {
            return self.exit(warp, at, mask);
        };
        let mut active = mask;
        if let Some(guard) = instr.guard {
            let unknown = warp.undefined[guard.reg as usize] & mask;
            if unknown != 0 {
                let message = "a predicate that was never computed decides this instruction";
                return fault(unknown, Finding::new(FindingKind::UndefinedPredicate, message));
            }
            let values = &warp.regs[guard.reg as usize];
            let mut set = 0u32;
            for (lane, value) in values.iter().enumerate() {
                set |= ((*value & 1) as u32) << lane;
            }
            active &= if guard.negated { !set } else { set };
        }
        self.counters.warp_instructions += 1;
        self.counters.thread_instructions += u64::from(active.count_ones());
        if active == 0 {
            warp.fragments[at].pc += 1;
            return Ok(Outcome::Continue);
        }
        if matches!(
            instr.op,
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } | Op::Collective { .. }
        ) {
            let apart = mask != warp.live;
            let fragment = &mut warp.fragments[at];
            fragment.deed = pc.max(fragment.deed);
            fragment.apart = apart;
        }
        match &instr.op {
            Op::Alu { function, dst, results, src, flops, approximate, bitwise } => {
                let dst = &dst[..usize::from(*results)];
                let unknown = src.iter().fold(0, |lanes, src| lanes | undefined(warp, *src));
                if unknown & active != 0 && *bitwise {
                    self.alu_by_bit(warp, active, function, dst, src);
                } else {
                    self.alu(warp, active, function, dst, src);
                }
                self.counters.flops += u64::from(*flops) * u64::from(active.count_ones());
                if *approximate > 0 {
                    self.approximate[usize::from(*approximate) - 1] = true;
                }
            }
            Op::Load { .. } => self.load(warp, active, pc, &instr.op)?,
            Op::Store { .. } => self.store(warp, active, pc, &instr.op)?,
            Op::Atomic { .. } => self.atomic(warp, active, pc, &instr.op)?,
            Op::Branch { target } => return Ok(jump(warp, at, active, *target)),
            Op::BranchIndexed { index, targets } => {
                return self.branch_indexed(warp, at, active, *index, targets);
            }
            Op::Barrier { .. } | Op::Collective { .. } if active != mask => {
                // The lanes whose guard is false go on alone.
                let fragment = split(warp, at);
                warp.fragments[at] = Fragment { mask: active, ..fragment };
                warp.fragments.push(Fragment { pc: pc + 1, mask: mask & !active, ..fragment });
                return Ok(Outcome::Reschedule);
            }
            Op::Barrier { .. } => return self.barrier(warp, at, &instr.op),
            Op::Collective { collective, mask } => {
                return self.collective(warp, at, collective, *mask);
            }
            Op::ActiveMask { dst } => {
                warp.write(*dst, active, &[u64::from(active); 32], 0);
            }
            Op::Fence(order) => self.fence(warp.index, active, *order),
            Op::Nothing => {}
            Op::Exit => return self.exit(warp, at, active),
            Op::Trap(message) => {
                return fault(active, Finding::new(FindingKind::Trap, *message));
            }
        }
        warp.fragments[at].pc += 1;
        Ok(Outcome::Continue)
    }

    fn alu(
        &mut self,
        warp: &mut Warp,
        active: u32,
        function: &Function,
        dst: &[u32],
        src: &[Src; 4],
    ) {
        let operands = self.operands();
        let (slot0, slot1, slot2);
        let mut out: Lanes = [0; 32];
        let unknown;
        match function {
            Function::One(f) => {
                f(lanes!(operands, warp, src[0], slot0), &mut out);
                unknown = undefined(warp, src[0]);
            }
            Function::Two(f) => {
                let a = lanes!(operands, warp, src[0], slot0);
                f(a, lanes!(operands, warp, src[1], slot1), &mut out);
                unknown = undefined(warp, src[0]) | undefined(warp, src[1]);
            }
            Function::Three(f) => {
                let a = lanes!(operands, warp, src[0], slot0);
                let b = lanes!(operands, warp, src[1], slot1);
                f(a, b, lanes!(operands, warp, src[2], slot2), &mut out);
                unknown =
                    undefined(warp, src[0]) | undefined(warp, src[1]) | undefined(warp, src[2]);
            }
            Function::Select => {
                let a = lanes!(operands, warp, src[0], slot0);
                let b = lanes!(operands, warp, src[1], slot1);
                let p = lanes!(operands, warp, src[2], slot2);
                let mut first = 0u32;
                for lane in 0..32 {
                    let chosen = p[lane] & 1 != 0;
                    out[lane] = if chosen { a[lane] } else { b[lane] };
                    first |= u32::from(chosen) << lane;
                }
                unknown = undefined(warp, src[0]) & first
                    | undefined(warp, src[1]) & !first
                    | undefined(warp, src[2]);
            }
            Function::Many(f) => {
                let values = src.map(|src| operands.value(warp, src));
                let mut outs = [[0; 32]; 4];
                f(&values, &mut outs);
                let flags = src.iter().fold(0, |flags, src| flags | undefined(warp, *src));
                for (reg, value) in dst.iter().zip(&outs) {
                    warp.write(*reg, active, value, flags);
                }
                return;
            }
        }
        warp.write(dst[0], active, &out, unknown);
    }

    /// An instruction that moves bits around, some of which were never computed: the result's
    /// undefined bits are those that change with them. Compilers build words from padding and pick
    /// the meaningful bytes out again; only byte-precise tracking tells that from a bug.
    #[cold]
    fn alu_by_bit(
        &mut self,
        warp: &mut Warp,
        active: u32,
        function: &Function,
        dst: &[u32],
        src: &[Src; 4],
    ) {
        let operands = self.operands();
        let values = src.map(|src| operands.value(warp, src));
        let unknown = src.map(|src| match src {
            Src::Reg(reg) => warp.undefined_bits(reg),
            _ => [0; 32],
        });
        let mut first = [[0; 32]; 4];
        let mut changed: [Lanes; 4] = [[0; 32]; 4];
        // Every combination of zeros and ones in the undefined bits of three operands.
        for trial in 0..8u32 {
            let mut inputs = values;
            for (i, input) in inputs.iter_mut().enumerate() {
                let ones = trial >> (i % 3) & 1 == 1;
                for (lane, value) in input.iter_mut().enumerate() {
                    let bits = unknown[i][lane];
                    *value = if ones { *value | bits } else { *value & !bits };
                }
            }
            let mut outs = [[0; 32]; 4];
            match function {
                Function::One(f) => f(&inputs[0], &mut outs[0]),
                Function::Two(f) => f(&inputs[0], &inputs[1], &mut outs[0]),
                Function::Three(f) => f(&inputs[0], &inputs[1], &inputs[2], &mut outs[0]),
                Function::Many(f) => f(&inputs, &mut outs),
                Function::Select => {}
            }
            if trial == 0 {
                first = outs;
            }
            for (changed, (out, first)) in changed.iter_mut().zip(outs.iter().zip(&first)) {
                for lane in 0..32 {
                    changed[lane] |= out[lane] ^ first[lane];
                }
            }
        }
        for (reg, (value, bits)) in dst.iter().zip(first.iter().zip(&changed)) {
            warp.write_partial(*reg, active, value, bits);
        }
    }

    fn branch_indexed(
        &mut self,
        warp: &mut Warp,
        at: usize,
        active: u32,
        index: Src,
        targets: &[u32],
    ) -> Step<Outcome> {
        let unknown = undefined(warp, index) & active;
        if unknown != 0 {
            let message = "an index that was never computed selects the branch";
            return fault(unknown, Finding::new(FindingKind::UndefinedPredicate, message));
        }
        let values = self.operands().value(warp, index);
        let whole = split(warp, at);
        let mut rest = whole.mask & !active;
        if rest != 0 {
            warp.fragments.push(Fragment { pc: whole.pc + 1, mask: rest, ..whole });
        }
        rest = active;
        let mut first = true;
        while rest != 0 {
            let value = values[rest.trailing_zeros() as usize] & 0xffff_ffff;
            let mut group = 0u32;
            for (lane, other) in values.iter().enumerate() {
                group |= u32::from(other & 0xffff_ffff == value) << lane;
            }
            group &= rest;
            rest &= !group;
            let Some(&target) = targets.get(value as usize) else {
                let message = format!("index {value} is outside the branch table");
                return fault(group, Finding::new(FindingKind::InvalidInstruction, message));
            };
            let fragment = Fragment { mask: group, ..whole }.to(target);
            if first {
                warp.fragments[at] = fragment;
                first = false;
            } else {
                warp.fragments.push(fragment);
            }
        }
        Ok(Outcome::Reschedule)
    }

    fn exit(&mut self, warp: &mut Warp, at: usize, active: u32) -> Step<Outcome> {
        let Fragment { deed, met, apart, mask, .. } = warp.fragments[at];
        if apart && mask != warp.live {
            warp.left_apart |= active;
        }
        warp.live &= !active;
        for (lane, last) in warp.last_deeds.iter_mut().enumerate() {
            if active >> lane & 1 == 1 {
                *last = (deed, met);
            }
        }
        let fragment = &mut warp.fragments[at];
        fragment.mask &= !active;
        fragment.pc += 1;
        if fragment.mask == 0 {
            warp.fragments.swap_remove(at);
        }
        Ok(Outcome::Reschedule)
    }

    fn barrier(&mut self, warp: &mut Warp, at: usize, op: &Op) -> Step<Outcome> {
        let Op::Barrier { kind, id, threads, predicate, negated, aligned, .. } = op else {
            return Ok(Outcome::Continue);
        };
        let mask = warp.fragments[at].mask;
        if *aligned {
            self.whole_warp(warp, at)?;
        }
        let id = self.uniform(warp, mask, *id, "barrier number")?;
        if id >= BARRIERS as u64 {
            let message = format!("barrier {id}: a block has 16, numbered from 0");
            return fault(mask, Finding::new(FindingKind::InvalidInstruction, message));
        }
        let count = match threads {
            Some(src) => Some(self.uniform(warp, mask, *src, "barrier thread count")? as u32),
            None => None,
        };
        if let Some(count) = count
            && (count == 0 || !count.is_multiple_of(32))
        {
            let message = format!("barrier {id}: {count} threads is not a multiple of 32");
            return fault(mask, Finding::new(FindingKind::InvalidInstruction, message));
        }
        let votes = if matches!(kind, BarrierKind::Sync | BarrierKind::Arrive) {
            0
        } else {
            self.predicate(warp, mask, *predicate, *negated)?
        };
        self.acquire_at_barrier(warp.index, mask);
        let waiting = self.barriers[id as usize].arrived.iter().any(|lanes| *lanes != 0);
        let barrier = &mut self.barriers[id as usize];
        if waiting && barrier.threads != count {
            let message = format!(
                "barrier {id} is used with {count:?} threads while others wait with {:?}",
                barrier.threads
            );
            return fault(mask, Finding::new(FindingKind::InvalidInstruction, message));
        }
        if !waiting {
            barrier.all = true;
        }
        barrier.threads = count;
        barrier.count += votes.count_ones();
        barrier.all &= votes == mask;
        barrier.arrived[warp.index] |= mask;
        self.clocks.arrive(&mut barrier.release, warp.index, mask);
        self.counters.barriers += 1;
        let fragment = &mut warp.fragments[at];
        (fragment.deed, fragment.met, fragment.rounds) = (0, fragment.pc, 0);
        if *kind == BarrierKind::Arrive {
            warp.fragments[at].pc += 1;
            return Ok(Outcome::Continue);
        }
        warp.fragments[at].wait = Wait::Barrier(id as u32);
        Ok(Outcome::Reschedule)
    }

    /// Checks that all threads of a warp come to one aligned barrier (PTX ISA, `barrier`: with
    /// `.aligned`, as `bar.sync` is, all threads execute the same barrier instruction; in code under
    /// a condition only if all threads evaluate it identically). Threads that exited on the spot
    /// where the warp went apart are no violation: the barrier waits "for all non-exited threads".
    fn whole_warp(&self, warp: &Warp, at: usize) -> Step<()> {
        let here = warp.fragments[at];
        let code = &self.launch.entry.code;
        let elsewhere = warp.fragments.iter().find(|other| {
            let op = code.instrs.get(other.pc as usize).map(|instr| &instr.op);
            matches!(other.wait, Wait::Barrier(_))
                && other.pc != here.pc
                && matches!(op, Some(Op::Barrier { aligned: true, .. }))
        });
        let message = if let Some(other) = elsewhere {
            let line = code.instrs.get(other.pc as usize).map_or(0, |instr| instr.line);
            format!(
                "threads of one warp come to two different barrier instructions: lanes 0x{:08x} to \
                 this one, lanes 0x{:08x} to the one at ptx line {line}; all threads of a warp must \
                 execute the same one",
                here.mask, other.mask
            )
        } else if warp.left_apart != 0 {
            let lane = warp.left_apart.trailing_zeros();
            let linear = warp.index as u64 * 32 + u64::from(lane);
            format!(
                "a warp comes to a barrier without its lanes 0x{:08x} (the first is thread {}), \
                 which returned inside a branch that the others did not take; all threads of a warp \
                 must execute the same barrier",
                warp.left_apart,
                text(thread_index(linear, self.launch.params.block))
            )
        } else {
            return Ok(());
        };
        fault(here.mask, Finding::new(FindingKind::BarrierDivergence, message))
    }

    /// An operand that must be the same in all lanes of `mask`.
    fn uniform(&self, warp: &Warp, mask: u32, src: Src, what: &str) -> Step<u64> {
        let values = self.operands().value(warp, src);
        let first = values[mask.trailing_zeros() as usize & 31] & 0xffff_ffff;
        for (lane, value) in values.iter().enumerate() {
            if mask >> lane & 1 == 1 && value & 0xffff_ffff != first {
                let message = format!("the {what} differs between threads of a warp");
                return fault(1 << lane, Finding::new(FindingKind::InvalidInstruction, message));
            }
        }
        Ok(first)
    }

    /// The lanes of `mask` in which a predicate operand holds.
    pub(crate) fn predicate(&self, warp: &Warp, mask: u32, src: Src, negated: bool) -> Step<u32> {
        let unknown = undefined(warp, src) & mask;
        if unknown != 0 {
            let message = "a predicate that was never computed takes part in a vote";
            return fault(unknown, Finding::new(FindingKind::UndefinedPredicate, message));
        }
        let values = self.operands().value(warp, src);
        let mut set = 0u32;
        for (lane, value) in values.iter().enumerate() {
            set |= ((*value & 1) as u32) << lane;
        }
        Ok(mask & if negated { !set } else { set })
    }
}

/// A fragment that is about to go apart.
fn split(warp: &Warp, at: usize) -> Fragment {
    let fragment = warp.fragments[at];
    Fragment { apart: fragment.mask != warp.live, wait: Wait::None, ..fragment }
}

fn jump(warp: &mut Warp, at: usize, active: u32, target: u32) -> Outcome {
    let fragment = warp.fragments[at];
    if active == fragment.mask {
        warp.fragments[at] = fragment.to(target);
        return Outcome::Continue;
    }
    let fragment = split(warp, at);
    warp.fragments[at] = Fragment { mask: active, ..fragment }.to(target);
    let rest = fragment.mask & !active;
    warp.fragments.push(Fragment { pc: fragment.pc + 1, mask: rest, ..fragment });
    Outcome::Reschedule
}
