//! Lowers single instructions: opcode and modifiers to an operation.

use super::ir::{
    Access, Address, BarrierKind, Collective, Guard, Op, Order, Reduction, Reg, SINK, Scope,
    Shuffle, Space, Src, Update, Vote,
};
use super::lower::{Lowered, Lowerer};
use super::tree::{Instruction, Operand};
use crate::exec::address::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::exec::alu::{self, Function, Kind, Opcode, Ty};

/// Instructions known by name and refused: what they need is not modelled yet.
pub(crate) const REFUSED: &[&str] = &[
    "alloca",
    "applypriority",
    "bmsk",
    "clusterlaunchcontrol",
    "cp",
    "createpolicy",
    "discard",
    "dp2a",
    "fns",
    "getctarank",
    "griddepcontrol",
    "istypep",
    "ldmatrix",
    "ldu",
    "mapa",
    "mbarrier",
    "mma",
    "movmatrix",
    "multimem",
    "setmaxnreg",
    "stackrestore",
    "stacksave",
    "stmatrix",
    "suld",
    "suq",
    "sured",
    "sust",
    "szext",
    "tcgen05",
    "tensormap",
    "tex",
    "tld4",
    "txq",
    "vabsdiff",
    "vabsdiff2",
    "vabsdiff4",
    "vadd2",
    "vadd4",
    "vavrg2",
    "vavrg4",
    "vmax2",
    "vmax4",
    "vmin2",
    "vmin4",
    "vset2",
    "vset4",
    "vsub2",
    "vsub4",
    "vadd",
    "vmad",
    "vmax",
    "vmin",
    "vset",
    "vshl",
    "vshr",
    "vsub",
    "wgmma",
    "wmma",
];

const UNSIGNED32: Ty = Ty { kind: Kind::Unsigned, bits: 32, packed: false };

/// What the modifiers of an atomic access or a fence say of order; a fence without any does all.
fn order_of(opcode: &Opcode<'_>, fence: bool) -> Order {
    // There are no clusters: one is a block.
    let near = opcode.has("cta") || opcode.has("cluster");
    let (acquire, release) = (opcode.has("acquire"), opcode.has("release"));
    let both = opcode.has("acq_rel") || fence && !acquire && !release;
    Order {
        scope: if near { Scope::Block } else { Scope::Device },
        acquires: both || acquire,
        releases: both || release,
    }
}

impl<'a> Lowerer<'a> {
    pub(super) fn instruction(&mut self, instruction: &Instruction<'a>) -> Lowered<()> {
        let guard = self.guard(instruction)?;
        let opcode = Opcode::new(instruction.opcode);
        let operands = instruction.operands.as_slice();
        match opcode.base {
            "mov" if operands.iter().any(|o| matches!(o, Operand::Vector(_))) => {
                self.pack(guard, &opcode, operands)
            }
            "ld" => self.load(guard, &opcode, operands),
            "st" => self.store(guard, &opcode, operands),
            "atom" | "red" => self.atomic(guard, &opcode, operands),
            "bra" => match operands {
                [Operand::Name(label)] => {
                    self.branch(guard, label);
                    Ok(())
                }
                _ => self.error("expected a label"),
            },
            "brx" => match operands {
                [index, Operand::Name(table)] => {
                    let index = self.source(index, UNSIGNED32)?;
                    self.branch_indexed(guard, index, table)
                }
                _ => self.error("expected an index and a branch table"),
            },
            "call" if guard.is_some() => self.guarded_call(instruction),
            "call" => self.call(instruction),
            "ret" => {
                self.ret(guard);
                Ok(())
            }
            "exit" => self.simple(guard, Op::Exit),
            "trap" => self.simple(guard, Op::Trap("the kernel executed `trap`")),
            "brkpt" => self.simple(guard, Op::Trap("the kernel executed `brkpt`")),
            "membar" | "fence" if opcode.has("proxy") => {
                self.error("proxy fences: not modelled yet")
            }
            "membar" | "fence" => self.simple(guard, Op::Fence(order_of(&opcode, true))),
            "nanosleep" | "pmevent" | "prefetch" | "prefetchu" => self.simple(guard, Op::Nothing),
            "bar" | "barrier" => self.barrier(guard, &opcode, operands),
            "shfl" | "vote" | "match" | "redux" | "elect" => {
                self.collective(guard, &opcode, operands)
            }
            "activemask" => match operands {
                [dst] => {
                    let dst = self.destination(dst)?;
                    self.simple(guard, Op::ActiveMask { dst })
                }
                _ => self.error("expected one destination"),
            },
            "cvta" | "isspacep" => self.window(guard, &opcode, operands),
            base if REFUSED.contains(&base) => {
                self.error(format!("instruction `{base}` is not modelled yet"))
            }
            _ => self.register_instruction(guard, &opcode, instruction),
        }
    }

    fn simple(&mut self, guard: Option<Guard>, op: Op) -> Lowered<()> {
        self.push(guard, op);
        Ok(())
    }

    /// A call under a predicate jumps over its own expansion.
    fn guarded_call(&mut self, instruction: &Instruction<'a>) -> Lowered<()> {
        let guard = self.guard(instruction)?;
        let skip = guard.map(|guard| Guard { negated: !guard.negated, ..guard });
        let at = self.code.instrs.len();
        self.push(skip, Op::Branch { target: 0 });
        self.call(instruction)?;
        self.code.instrs[at].op = Op::Branch { target: self.code.instrs.len() as u32 };
        self.push(None, Op::Nothing);
        Ok(())
    }

    fn alu(
        &mut self,
        guard: Option<Guard>,
        function: Function,
        dst: &[Reg],
        src: &[Src],
    ) -> Lowered<()> {
        let mut op_dst = [SINK; 4];
        op_dst[..dst.len()].copy_from_slice(dst);
        let mut op_src = [Src::Imm(0); 4];
        op_src[..src.len()].copy_from_slice(src);
        let results = dst.len() as u8;
        self.simple(
            guard,
            Op::Alu {
                function,
                dst: op_dst,
                results,
                src: op_src,
                flops: 0,
                approximate: 0,
                bitwise: true,
            },
        )
    }

    /// A register-to-register instruction from the table in [`alu`].
    fn register_instruction(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        instruction: &Instruction<'a>,
    ) -> Lowered<()> {
        let pair = matches!(instruction.operands.first(), Some(Operand::Pair(..)));
        let Some(meaning) = alu::meaning(opcode, pair) else {
            return self.error(format!("instruction `{}` is not known", instruction.opcode));
        };
        let [first, rest @ ..] = instruction.operands.as_slice() else {
            return self.error("the instruction has no operands");
        };
        let mut dst = [SINK; 4];
        let mut results = match first {
            Operand::Pair(first, second) => {
                dst[0] = self.destination(first)?;
                dst[1] = self.destination(second)?;
                2
            }
            _ => {
                dst[0] = self.destination(first)?;
                1
            }
        };
        if rest.len() != meaning.sources {
            return self.error(format!(
                "`{}` takes {} operands, found {}",
                instruction.opcode,
                meaning.sources,
                rest.len()
            ));
        }
        if pair && !matches!(meaning.function, Function::Many(_)) {
            return self.error("this instruction has one destination");
        }
        let mut src = [Src::Imm(0); 4];
        for (slot, operand) in src.iter_mut().zip(rest) {
            *slot = match operand {
                // `setp … , !p`: the complement in a register of its own.
                Operand::Not(name) => {
                    let value = self.source(&Operand::Name(name), UNSIGNED32)?;
                    let complement = self.code.registers;
                    self.code.registers += 1;
                    self.alu(guard, alu::one(|p| !p & 1), &[complement], &[value])?;
                    Src::Reg(complement)
                }
                _ => self.source(operand, meaning.literal)?,
            };
        }
        if meaning.carry_in {
            src[meaning.sources] = Src::Reg(self.carry());
        }
        if meaning.carry_out {
            dst[results] = self.carry();
            results += 1;
        }
        let approximate = if meaning.approximate {
            let known = self.code.approximate.iter().position(|name| name == instruction.opcode);
            let index = known.unwrap_or_else(|| {
                self.code.approximate.push(instruction.opcode.to_owned());
                self.code.approximate.len() - 1
            });
            index as u16 + 1
        } else {
            0
        };
        let (function, flops, bitwise) = (meaning.function, meaning.flops, meaning.bitwise);
        let results = results as u8;
        self.simple(guard, Op::Alu { function, dst, results, src, flops, approximate, bitwise })
    }

    /// `mov` between a register and the elements of a vector.
    fn pack(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        let Some(ty) = opcode.ty(0) else { return self.error("`mov` without a type") };
        let width = |count: usize| ty.bits * (1 + u32::from(ty.packed)) / count.max(1) as u32;
        match operands {
            [Operand::Vector(elements), value] if (1..=4).contains(&elements.len()) => {
                let mut dst = Vec::new();
                for element in elements {
                    dst.push(self.destination(element)?);
                }
                let value = self.source(value, ty)?;
                let bits = width(elements.len());
                let mask = Ty { bits, ..ty }.mask();
                let function = alu::many(move |[a, ..]| {
                    [0, 1, 2, 3].map(|i| a.checked_shr(i * bits).unwrap_or(0) & mask)
                });
                self.alu(guard, function, &dst, &[value])
            }
            [destination, Operand::Vector(elements)] if (1..=4).contains(&elements.len()) => {
                let dst = self.destination(destination)?;
                let bits = width(elements.len());
                let element_ty = Ty { bits, ..ty };
                let mut src = Vec::new();
                for element in elements {
                    src.push(self.source(element, element_ty)?);
                }
                let (mask, count) = (element_ty.mask(), elements.len() as u32);
                let function = alu::many(move |values| {
                    let part = |i: u32| (values[i as usize] & mask) << (i * bits);
                    [(0..count).map(part).fold(0, |a, b| a | b), 0, 0, 0]
                });
                self.alu(guard, function, &[dst], &src)
            }
            _ => self.error("this form of `mov` is not understood"),
        }
    }

    /// Space, access and vector length of a memory instruction; refuses modifiers it does not know.
    fn memory_modifiers(&self, opcode: &Opcode<'_>) -> Lowered<(Space, Access, usize)> {
        let (mut space, mut access, mut count) = (Space::Generic, Access::Plain, 1);
        for modifier in &opcode.modifiers {
            match *modifier {
                "global" => space = Space::Global,
                "const" => space = Space::Const,
                "shared" | "shared::cta" => space = Space::Shared,
                "local" => space = Space::Local,
                "param" | "param::entry" | "param::func" => space = Space::Param,
                "relaxed" | "acquire" | "release" | "acq_rel" => {
                    access = Access::Atomic(order_of(opcode, false));
                }
                "v2" => count = 2,
                "v4" => count = 4,
                "v8" => count = 8,
                "weak" | "volatile" | "cta" | "gpu" | "sys" | "cluster" | "ca" | "cg" | "cs"
                | "lu" | "cv" | "wb" | "wt" | "nc" | "noftz" => {}
                other if other.starts_with("L1::") => {}
                other if other.starts_with("L2::") && other != "L2::cache_hint" => {}
                other if Ty::parse(other).is_some() || other == "b128" => {}
                "add" | "and" | "or" | "xor" | "min" | "max" | "inc" | "dec" | "exch" | "cas"
                    if matches!(opcode.base, "atom" | "red") => {}
                other => return self.error(format!("modifier `.{other}` is not modelled yet")),
            }
        }
        Ok((space, access, count))
    }

    fn element(&self, opcode: &Opcode<'_>) -> Lowered<Ty> {
        match opcode.modifiers.iter().rev().find_map(|modifier| Ty::parse(modifier)) {
            Some(ty) if ty.packed => Ok(Ty::B32),
            Some(ty) => Ok(ty),
            None => self.error("this type is not modelled in memory instructions"),
        }
    }

    fn place(&mut self, space: Space, operand: &Operand<'_>) -> Lowered<(Space, Address)> {
        let (address, named) = self.address(operand)?;
        let space = match (space, named) {
            (Space::Param, Some(found @ (Space::Frame | Space::Param))) => found,
            (Space::Generic, Some(found)) => found,
            (space, _) => space,
        };
        Ok((space, address))
    }

    fn load(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        let (space, access, count) = self.memory_modifiers(opcode)?;
        let ty = self.element(opcode)?;
        let [target, address] = operands else {
            return self.error("expected a destination and an address");
        };
        let mut dst = Vec::new();
        match target {
            Operand::Vector(elements) => {
                for element in elements {
                    dst.push(self.destination(element)?);
                }
            }
            _ => dst.push(self.destination(target)?),
        }
        if dst.len() != count {
            return self.error("the vector length does not fit the destination");
        }
        let (space, address) = self.place(space, address)?;
        let (bytes, signed) = ((ty.bits / 8) as u8, ty.signed());
        self.simple(guard, Op::Load { space, access, bytes, signed, dst, address })
    }

    fn store(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        let (space, access, count) = self.memory_modifiers(opcode)?;
        let ty = self.element(opcode)?;
        let [address, value] = operands else {
            return self.error("expected an address and a value");
        };
        let mut src = Vec::new();
        match value {
            Operand::Vector(elements) => {
                for element in elements {
                    src.push(self.source(element, ty)?);
                }
            }
            _ => src.push(self.source(value, ty)?),
        }
        if src.len() != count {
            return self.error("the vector length does not fit the value");
        }
        let (space, address) = self.place(space, address)?;
        let bytes = (ty.bits / 8) as u8;
        self.simple(guard, Op::Store { space, access, bytes, src, address })
    }

    fn atomic(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        let (space, _, count) = self.memory_modifiers(opcode)?;
        let Some(ty) = opcode.ty(0) else { return self.error("an atomic without a type") };
        let update = opcode.modifiers.iter().find_map(|modifier| {
            Some(match *modifier {
                "add" => Update::Add,
                "and" => Update::And,
                "or" => Update::Or,
                "xor" => Update::Xor,
                "min" => Update::Min,
                "max" => Update::Max,
                "inc" => Update::Inc,
                "dec" => Update::Dec,
                "exch" => Update::Exchange,
                "cas" => Update::CompareAndSwap,
                _ => return None,
            })
        });
        let Some(update) = update else { return self.error("this atomic is not modelled yet") };
        if count > 1 || ty.bits < 16 || ty.is_float() && update != Update::Add {
            return self.error("this form of atomic is not modelled yet");
        }
        let (dst, rest) = match (opcode.base, operands) {
            ("red", rest) => (None, rest),
            (_, [dst, rest @ ..]) => (Some(self.destination(dst)?), rest),
            _ => return self.error("an atomic without operands"),
        };
        let (address, operand, swap) = match rest {
            [address, operand] if update != Update::CompareAndSwap => {
                (address, self.source(operand, ty)?, Src::Imm(0))
            }
            [address, compare, swap] if update == Update::CompareAndSwap => {
                (address, self.source(compare, ty)?, self.source(swap, ty)?)
            }
            _ => return self.error("wrong number of operands"),
        };
        let (space, address) = self.place(space, address)?;
        let order = order_of(opcode, false);
        self.simple(guard, Op::Atomic { space, order, update, ty, dst, address, operand, swap })
    }

    fn barrier(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        if opcode.has("cluster") {
            return self.error("cluster barriers: not modelled yet");
        }
        if opcode.has("warp") {
            let [mask] = operands else { return self.error("expected a mask") };
            let mask = self.source(mask, UNSIGNED32)?;
            return self.simple(guard, Op::Collective { collective: Collective::Sync, mask });
        }
        let aligned = opcode.base == "bar" || opcode.has("aligned");
        let reduce = opcode.has("red");
        let kind = match () {
            () if opcode.has("arrive") => BarrierKind::Arrive,
            () if !reduce => BarrierKind::Sync,
            () if opcode.has("popc") => BarrierKind::Count,
            () if opcode.has("and") => BarrierKind::All,
            () => BarrierKind::Any,
        };
        let mut dst = SINK;
        let (mut predicate, mut negated) = (Src::Imm(0), false);
        let mut rest = operands;
        if reduce {
            let [target, middle @ .., last] = operands else {
                return self.error("expected a destination, a barrier and a predicate");
            };
            dst = self.destination(target)?;
            (predicate, negated) = self.predicate(last)?;
            rest = middle;
        }
        let (id, threads) = match rest {
            [id] => (self.source(id, UNSIGNED32)?, None),
            [id, threads] => {
                (self.source(id, UNSIGNED32)?, Some(self.source(threads, UNSIGNED32)?))
            }
            _ => return self.error("expected a barrier number"),
        };
        if kind == BarrierKind::Arrive && threads.is_none() {
            return self.error("`arrive` needs a thread count");
        }
        self.simple(guard, Op::Barrier { kind, id, threads, aligned, dst, predicate, negated })
    }

    fn predicate(&mut self, operand: &Operand<'_>) -> Lowered<(Src, bool)> {
        match operand {
            Operand::Not(name) => Ok((self.source(&Operand::Name(name), UNSIGNED32)?, true)),
            _ => Ok((self.source(operand, UNSIGNED32)?, false)),
        }
    }

    /// One or two destinations: `d` or `d|p`.
    fn pair(&mut self, operand: &Operand<'_>) -> Lowered<(Reg, Reg)> {
        match operand {
            Operand::Pair(first, second) => {
                Ok((self.destination(first)?, self.destination(second)?))
            }
            _ => Ok((self.destination(operand)?, SINK)),
        }
    }

    fn collective(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        if !opcode.has("sync") {
            return self.error("the form without `.sync` is not modelled");
        }
        let ty = opcode.ty(0).unwrap_or(UNSIGNED32);
        let find = |names: &[&str]| names.iter().position(|name| opcode.has(name));
        let (collective, mask) = match (opcode.base, operands) {
            ("shfl", [target, value, lane, clamp, mask]) => {
                let modes = [Shuffle::Up, Shuffle::Down, Shuffle::Butterfly, Shuffle::Index];
                let Some(mode) = find(&["up", "down", "bfly", "idx"]) else {
                    return self.error("unknown shuffle mode");
                };
                let (dst, in_range) = self.pair(target)?;
                let value = self.source(value, ty)?;
                let lane = self.source(lane, UNSIGNED32)?;
                let clamp = self.source(clamp, UNSIGNED32)?;
                let mode = modes[mode];
                (Collective::Shuffle { mode, dst, in_range, value, lane, clamp }, mask)
            }
            ("vote", [target, predicate, mask]) => {
                let votes = [Vote::All, Vote::Any, Vote::Uniform, Vote::Ballot];
                let Some(vote) = find(&["all", "any", "uni", "ballot"]) else {
                    return self.error("unknown vote");
                };
                let dst = self.destination(target)?;
                let (predicate, negated) = self.predicate(predicate)?;
                (Collective::Vote { vote: votes[vote], dst, predicate, negated }, mask)
            }
            ("match", [target, value, mask]) => {
                let (dst, uniform) = self.pair(target)?;
                let value = self.source(value, ty)?;
                (Collective::Match { all: opcode.has("all"), dst, uniform, value, ty }, mask)
            }
            ("redux", [target, value, mask]) => {
                let reductions = [
                    Reduction::Add,
                    Reduction::Min,
                    Reduction::Max,
                    Reduction::And,
                    Reduction::Or,
                    Reduction::Xor,
                ];
                let Some(reduction) = find(&["add", "min", "max", "and", "or", "xor"]) else {
                    return self.error("unknown reduction");
                };
                if ty.is_float() {
                    return self.error("`redux` on floats is not modelled yet");
                }
                let dst = self.destination(target)?;
                let value = self.source(value, ty)?;
                let reduction = reductions[reduction];
                (Collective::Reduce { reduction, dst, value, ty }, mask)
            }
            ("elect", [target, mask]) => {
                let (dst, elected) = self.pair(target)?;
                (Collective::Elect { dst, elected }, mask)
            }
            _ => return self.error("wrong number of operands"),
        };
        let mask = self.source(mask, UNSIGNED32)?;
        self.simple(guard, Op::Collective { collective, mask })
    }

    /// `cvta` and `isspacep`: arithmetic on the windows that map spaces into generic addresses.
    fn window(
        &mut self,
        guard: Option<Guard>,
        opcode: &Opcode<'_>,
        operands: &[Operand<'_>],
    ) -> Lowered<()> {
        let [dst, value] = operands else { return self.error("expected two operands") };
        let dst = self.destination(dst)?;
        let value = self.source(value, UNSIGNED32)?;
        let spaces = ["shared", "shared::cta", "local", "param", "param::entry"];
        let bases = [SHARED_WINDOW, SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, PARAM_WINDOW];
        let base = spaces.iter().position(|name| opcode.has(name)).map(|i| bases[i]);
        if base.is_none() && !opcode.has("global") && !opcode.has("const") {
            return self.error("this state space is not modelled yet");
        }
        let function = match (opcode.base, base) {
            ("isspacep", Some(base)) => {
                alu::one(move |a| u64::from(a.wrapping_sub(base) < WINDOW_BYTES))
            }
            ("isspacep", None) => alu::one(|a| {
                let inside = |base: u64| a.wrapping_sub(base) < WINDOW_BYTES;
                u64::from(![SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW].into_iter().any(inside))
            }),
            (_, None) => alu::one(|a| a),
            (_, Some(base)) if opcode.has("to") => alu::one(move |a| a.wrapping_sub(base)),
            (_, Some(base)) => alu::one(move |a| a.wrapping_add(base)),
        };
        self.alu(guard, function, &[dst], &[value])
    }
}
